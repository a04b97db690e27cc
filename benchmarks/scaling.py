"""Weak scaling of certification: more devices and processes, as many more images.

  python benchmarks/scaling.py --out=scaling.jsonl
  python benchmarks/scaling.py --model=resnet50 --image=224,224,3 --classes=1000 \
      --n=10000 --block_size=1000 --images=8

Each case certifies --images images per device with a network of random weights: on
1, 2, 4, ... of this machine's devices in one process, then on all of them in two
processes that talk over the loopback interface (on a CPU, where processes share the
cores, this measures what the second one costs; on GPUs, each gets half of the cards).
A first batch, which compiles, is left out. Writes one line of JSON per case, with
versions and devices.

  python benchmarks/scaling.py --coordinator=HOST:PORT --num_processes=N --process_id=I

on every host, or --distributed under Slurm or on a TPU pod, measures the one case of
all their devices; process 0 writes it.
"""

import argparse
import itertools
import json
import os
import pathlib
import socket
import subprocess
import sys
import time

import jax
import numpy as np

import wsjax
from wsjax import models, votes
from wsjax.runs import manifest


def parse():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="conv_small")
    parser.add_argument("--image", default="28,28,1", help="H,W,C")
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--noise", default="flow_laplace")
    parser.add_argument("--sigma", type=float, default=0.01)
    parser.add_argument("--n0", type=int, default=1_000)
    parser.add_argument("--n", type=int, default=10_000)
    parser.add_argument("--block_size", type=int, default=250)
    parser.add_argument("--images", type=int, default=4, help="per device")
    parser.add_argument("--backend", default="shard_map", choices=votes.BACKENDS)
    parser.add_argument(
        "--out", type=pathlib.Path, default=pathlib.Path("scaling.jsonl")
    )
    parser.add_argument("--devices", type=int, help="measure this number alone")
    parser.add_argument("--coordinator")
    parser.add_argument("--num_processes", type=int)
    parser.add_argument("--process_id", type=int)
    parser.add_argument("--distributed", action="store_true")
    return parser.parse_args()


def main():
    arguments = parse()
    if arguments.coordinator or arguments.distributed:
        jax.distributed.initialize(
            arguments.coordinator, arguments.num_processes, arguments.process_id
        )
        measure(arguments, jax.device_count())
    elif arguments.devices:
        measure(arguments, arguments.devices)
    else:
        # Each case in processes of its own: none has what another one compiled.
        code = "import jax; print(jax.local_device_count(), jax.default_backend())"
        found = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        )
        count, backend = found.stdout.split()
        number = 1
        while number <= int(count):
            run([["--devices", str(number)]])
            number *= 2
        run_two_processes(int(count), backend)


def run_two_processes(count, backend):
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{sock.getsockname()[1]}"
    if backend != "cpu" and (backend != "gpu" or count < 2):
        print(f"{count} {backend}: no devices for two processes; left out.")
        return
    flags = ["--coordinator", address, "--num_processes", "2", "--process_id"]
    cards = [str(i) for i in range(count)]
    half = count // 2
    visible = [cards[:half], cards[half : 2 * half]]
    run(
        [[*flags, "0"], [*flags, "1"]],
        [{"CUDA_VISIBLE_DEVICES": ",".join(part)} for part in visible]
        if backend == "gpu"
        else None,
    )


def run(cases, environments=None):
    """Runs this program once for each list of further arguments, all at once."""
    started = [
        subprocess.Popen(
            [sys.executable, __file__, *sys.argv[1:], *more],
            env=os.environ | (environments[number] if environments else {}),
        )
        for number, more in enumerate(cases)
    ]
    if any(process.wait() for process in started):
        sys.exit("A case failed; its message stands above.")


def measure(arguments, count):
    """Certifies, and writes the line of one case."""
    shape = tuple(map(int, arguments.image.split(",")))
    devices = votes.all_devices()[:count]
    module = models.create(arguments.model, arguments.classes)
    empty = np.zeros((1, *shape), np.float32)
    # A NumPy seed, so that all processes have the same weights without talking.
    shapes = jax.eval_shape(module.init, jax.random.key(0), empty)
    rng = np.random.default_rng(0)
    variables = jax.tree.map(
        lambda leaf: rng.normal(0, 0.05, leaf.shape).astype(leaf.dtype), shapes
    )
    if "batch_stats" in variables:
        variables["batch_stats"] = jax.tree.map(np.ones_like, variables["batch_stats"])
    classify = models.classifier(module, variables)
    smoothing = wsjax.make_smoothing(
        arguments.noise, arguments.sigma, "l2", image_shape=shape
    )
    total = arguments.images * count
    sizes = (arguments.n0, arguments.n)
    groups = votes.choose_groups(count, total, sizes, arguments.block_size)
    images = rng.uniform(0.1, 1.0, (groups + total, *shape)).astype(np.float32)
    counting = wsjax.Counting(
        arguments.block_size, arguments.backend, devices=devices, groups=groups
    )
    certifier = wsjax.FixedVotes(
        classify, smoothing, n0=arguments.n0, n=arguments.n, counting=counting
    )
    results = certifier.certify_each(images, map(wsjax.make_key, itertools.count()))
    first = [next(results) for _ in range(groups)]
    wall, cpu = time.perf_counter(), time.process_time()
    rest = list(results)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    evidence = [certificate.evidence for certificate in rest]
    counted = sum(int(e.votes.sum() + e.selection_votes.sum()) for e in evidence)
    line = {
        "processes": jax.process_count(),
        "devices": count,
        "groups": groups,
        "images": len(rest),
        "seconds": round(wall, 4),
        "images_per_second": round(len(rest) / wall, 4),
        "copies_per_second": round(counted / wall, 1),
        "cpu_seconds_of_process_0": round(cpu, 3),
        "votes_of_first": first[0].evidence.votes.tolist(),
        "settings": {
            key: getattr(arguments, key)
            for key in (
                "model",
                "image",
                "classes",
                "noise",
                "sigma",
                "n0",
                "n",
                "block_size",
                "images",
                "backend",
            )
        },
        "versions": manifest.versions(),
        "hardware": manifest.devices(),
    }
    if jax.process_index() == 0:
        with arguments.out.open("a") as file:
            file.write(json.dumps(line) + "\n")
        print(
            f"{line['processes']} x process, {count} x device, {groups} groups: "
            f"{line['images_per_second']:g} images/s, "
            f"{line['copies_per_second']:g} copies/s"
        )


if __name__ == "__main__":
    main()
