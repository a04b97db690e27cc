"""Votes per second: noise, forward pass and count, beside PyTorch on the same cores.

  python benchmarks/throughput.py --out=benchmarks/results/throughput.jsonl
  python benchmarks/throughput.py --model=resnet18_cifar --image=32,32,3 --n=2000
  python benchmarks/throughput.py --model=resnet18_cifar --image=32,32,3 --n=100000 \
      --dtype=bfloat16 --block-size=5000 --no-torch        (on an accelerator)

Networks have random weights. Every case is run once to compile, then all cases in turn,
several times over; medians count. The opponents in PyTorch (only where it is installed,
and only for conv_small) do the same work with flow noise of the Laplace law:

  * at once: eager, all draws of ten images in one batch, noise by torch.distributions:
    the obvious program;
  * image by image: the same with the draws of one image;
  * blocks: 250 draws at a time, channels last, inference mode, noise by inversion in
    place; eager, compiled, and frozen.

Share of peak: floating-point operations of the convolutions and products alone, over
those of the best matrix product of the same run. Memory: the largest resident set of a
process of its own that counts n votes, for growing n.
"""

import argparse
import functools
import json
import pathlib
import statistics
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table

import wsjax
from wsjax import gaussian, models, votes
from wsjax.runs import cli, manifest

SIGMA = 0.01
SHARED = 25


def main():
    arguments = parse()
    cli.one_cpu_device_per_core()
    if arguments.memory_of:
        return memory_of(arguments)
    shape = tuple(map(int, arguments.image.split(",")))
    image = np.random.default_rng(0).uniform(size=shape).astype(np.float32)
    classify, flops = network(arguments, shape)
    peak = matmul_peak(arguments.dtype or "float32")
    cases = ours(arguments, image, classify)
    if arguments.torch and arguments.model == "conv_small":
        cases |= theirs(arguments, image)
    seconds, cpu = timed(cases, arguments.repeats)
    lines = {}
    for name, (samples, _) in cases.items():
        rate = samples / seconds[name]
        lines[name] = {
            "samples_per_s": round(rate),
            "us_per_sample": round(1e6 / rate, 2),
            "cpu_us_per_sample": round(1e6 * cpu[name] / samples, 2),
            "share_of_peak": round(rate * flops / peak, 3),
        }
    without = lines["no noise"]["us_per_sample"]
    for name, line in lines.items():
        if name.startswith("noise"):
            line["share_of_noise"] = round(1 - without / line["us_per_sample"], 3)
    summary = compare(lines)
    record = {
        "model": arguments.model,
        "image": shape,
        "dtype": arguments.dtype or "float32",
        "n": arguments.n,
        "block_size": arguments.block_size,
        "repeats": arguments.repeats,
        "mflop_per_sample": round(flops / 1e6, 3),
        "matmul_gflops": round(peak / 1e9, 1),
        "lines": lines,
        "ratios": summary,
        "memory_mib": memory(arguments),
        "versions": {**manifest.versions(), **torch_version()},
        "devices": manifest.devices(),
        "cpu": processor(),
    }
    Console(width=140).print(table(record))
    print(json.dumps(summary, indent=2), json.dumps(record["memory_mib"]))
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        with arguments.out.open("a") as file:
            file.write(json.dumps(record) + "\n")


def parse():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="conv_small")
    parser.add_argument("--image", default="28,28,1", help="H,W,C")
    parser.add_argument("--dtype", help="of the network, e.g. bfloat16; residual ones")
    parser.add_argument("--n", type=int, default=10_000)
    parser.add_argument("--block-size", type=int, default=250)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--only", nargs="*", help="noise laws; default all")
    parser.add_argument("--torch", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument(
        "--memory", type=int, nargs="*", default=[1_000, 10_000, 100_000]
    )
    parser.add_argument("--memory-of", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=pathlib.Path)
    return parser.parse_args()


def network(arguments, shape):
    """The classifier, and the floating-point operations of one forward pass."""
    options = {"dtype": arguments.dtype} if arguments.dtype else {}
    module = models.create(arguments.model, 10, **options)
    variables = module.init(jax.random.key(0), np.zeros((1, *shape), np.float32))
    ones = np.zeros((8, *shape), np.float32)
    # `train` is the network as it is written down, without tricks that cost more.
    mutable = [name for name in variables if name != "params"]
    plain = jax.jit(functools.partial(module.apply, train=True, mutable=mutable))
    flops = plain.lower(variables, ones).compile().cost_analysis()["flops"] / 8
    return models.classifier(module, variables), flops


def laws(shape):
    """Noise of every kind, by name."""
    rng = np.random.default_rng(1)
    make = functools.partial(
        wsjax.make_smoothing, ground_metric="l2", image_shape=shape
    )
    found = {
        name: make(name, SIGMA).noise
        for name in (
            "flow_laplace",
            "flow_uniform",
            "pixel_laplace",
            "laplacian_gaussian",
            "power_law",
        )
    }
    found["flow_gaussian"] = wsjax.noise.FlowGaussian(SIGMA)
    if np.prod(shape) <= 1024:
        features = rng.normal(size=(80, *shape))
        mean = np.full(shape, 1 / np.prod(shape))
        found["view of 80"] = gaussian.GaussianView(features, features, mean)
    return found


def ours(arguments, image, classify):
    """`(samples, function)` by name."""
    count = functools.partial(
        votes.count_votes,
        wsjax.make_key(0),
        classify=classify,
        n=arguments.n,
        block_size=arguments.block_size,
    )

    def unmoved(key, image):
        # Something of the key, so that nothing can be computed ahead of the loop.
        return image + 1e-30 * jax.random.key_data(key)[0].astype(image.dtype)

    def run(image, perturb):
        return lambda: jax.block_until_ready(count(image, perturb=perturb))

    cases = {"no noise": (arguments.n, run(image, unmoved))}
    for name, law in laws(image.shape).items():
        if not arguments.only or name in arguments.only:
            cases[f"noise: {name}"] = (arguments.n, run(image, law.perturb))
    law = laws(image.shape)["flow_laplace"]
    stack = np.stack([image] * SHARED)
    cases[f"shared by {SHARED}: flow_laplace"] = (
        SHARED * arguments.n,
        run(stack, votes.Addition(law)),
    )
    return cases


def matmul_peak(dtype, size=2048):
    """Operations per second of one large matrix product, the best of ten."""
    a = jnp.asarray(np.random.default_rng(0).normal(size=(size, size)), dtype)
    product = jax.jit(jnp.matmul)
    jax.block_until_ready(product(a, a))
    best = np.inf
    for _ in range(10):
        start = time.perf_counter()
        jax.block_until_ready(product(a, a))
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best


def timed(cases, repeats):
    """Median wall and CPU seconds of each case; rounds over all cases."""
    wall, cpu = ({name: [] for name in cases} for _ in range(2))
    for _, run in cases.values():
        run()
    for _ in range(repeats):
        for name, (_, run) in cases.items():
            start, start_cpu = time.perf_counter(), time.process_time()
            run()
            wall[name].append(time.perf_counter() - start)
            cpu[name].append(time.process_time() - start_cpu)
    return (
        {name: statistics.median(values) for name, values in seconds.items()}
        for seconds in (wall, cpu)
    )


def theirs(arguments, image):
    """The opponents; empty where PyTorch is not installed."""
    try:
        import torch
    except ImportError:
        return {}
    from torch import nn

    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 16, 4, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 4, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32 * 49, 100),
        nn.ReLU(),
        nn.Linear(100, 10),
    ).eval()
    x = torch.from_numpy(image).permute(2, 0, 1)
    scale = SIGMA / 2**0.5 * float(image.sum())
    height, width = x.shape[1:]
    edges = (height - 1) * width + height * (width - 1)

    def laplace_of_library(count):
        return torch.distributions.Laplace(0.0, scale).sample((count, edges))

    def laplace_by_inversion(count):
        u = torch.empty(count, edges).uniform_(-1, 1)
        return torch.sign(u).mul_(-scale) * torch.log1p(u.abs_().neg_())

    def carried(x, noise):
        """Mass moved along the edges of a plan `[B, edges]`."""
        split = (height - 1) * width
        down = noise[:, :split].reshape(-1, 1, height - 1, width)
        right = noise[:, split:].reshape(-1, 1, height, width - 1)
        moved = x.expand(len(noise), -1, -1, -1).clone()
        moved[:, :, 1:] += down
        moved[:, :, :-1] -= down
        moved[..., 1:] += right
        moved[..., :-1] -= right
        return moved

    def counted(logits):
        return torch.bincount(logits.argmax(1), minlength=10)

    n, block = arguments.n, 250

    def at_once(images):
        with torch.no_grad():
            return counted(net(carried(x, laplace_of_library(images * n))))

    last = nn.Sequential(*net).to(memory_format=torch.channels_last)

    def step(noise):
        y = carried(x, noise).contiguous(memory_format=torch.channels_last)
        return counted(last(y))

    compiled = torch.compile(step)
    with_noise = torch.compile(lambda: step(laplace_by_inversion(block)))
    with torch.inference_mode():
        traced = torch.jit.trace(net, torch.zeros(block, 1, height, width))
    frozen = torch.jit.optimize_for_inference(torch.jit.freeze(traced))

    def in_blocks(one, noise=laplace_by_inversion):
        with torch.inference_mode():
            total = torch.zeros(10, dtype=torch.int64)
            for _ in range(n // block):
                total += one(noise(block))
            return total

    return {
        "torch: at once, 10 images": (10 * n, lambda: at_once(10)),
        "torch: image by image": (n, lambda: at_once(1)),
        "torch: blocks, eager": (n, lambda: in_blocks(step)),
        "torch: blocks, compiled": (n, lambda: in_blocks(compiled)),
        "torch: blocks, compiled with noise": (
            n,
            lambda: in_blocks(lambda _: with_noise(), lambda count: None),
        ),
        "torch: blocks, frozen": (
            n,
            lambda: in_blocks(lambda noise: counted(frozen(carried(x, noise)))),
        ),
    }


def compare(lines):
    """What the side by side says."""
    rate = {name: line["samples_per_s"] for name, line in lines.items()}
    noisy = {name: r for name, r in rate.items() if name.startswith("noise")}
    found = {
        "slowest law": min(noisy, key=noisy.get),
        "largest share of noise": max(
            line.get("share_of_noise", 0) for line in lines.values()
        ),
    }
    opponents = {name: r for name, r in rate.items() if name.startswith("torch")}
    if opponents:
        best = max(opponents, key=opponents.get)
        obvious = rate["torch: at once, 10 images"]
        shared = next(r for name, r in rate.items() if name.startswith("shared"))
        found |= {
            "best torch": best,
            "flow_laplace / obvious torch": ratio(rate["noise: flow_laplace"], obvious),
            "slowest law / obvious torch": ratio(min(noisy.values()), obvious),
            "flow_laplace / best torch": ratio(
                rate["noise: flow_laplace"], opponents[best]
            ),
            "shared / obvious torch": ratio(shared, obvious),
        }
    return found


def ratio(a, b):
    return round(a / b, 2)


def memory(arguments):
    """Largest resident set in MiB, by n, each in a process of its own."""
    found = {}
    for n in arguments.memory:
        command = [sys.executable, __file__, f"--memory-of={n}"]
        for name in ("model", "image", "block_size", "dtype"):
            if value := getattr(arguments, name):
                command.append(f"--{name.replace('_', '-')}={value}")
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        found[n] = int(done.stdout.split()[-1])
    return found


def memory_of(arguments):
    """Counts votes and prints the memory that took: the device's, where it knows."""
    shape = tuple(map(int, arguments.image.split(",")))
    image = np.random.default_rng(0).uniform(size=shape).astype(np.float32)
    classify, _ = network(arguments, shape)
    law = laws(shape)["flow_laplace"]
    counts = votes.count_votes(
        wsjax.make_key(0),
        image,
        classify,
        law.perturb,
        n=arguments.memory_of,
        block_size=arguments.block_size,
    )
    assert int(np.sum(counts)) == arguments.memory_of
    on_device = jax.local_devices()[0].memory_stats()
    if on_device:
        print(on_device["peak_bytes_in_use"] // 2**20)
    else:
        # Not getrusage: that would be the parent's, if larger.
        status = pathlib.Path("/proc/self/status").read_text().splitlines()
        print(next(int(line.split()[1]) for line in status if "VmHWM" in line) // 2**10)


def torch_version():
    try:
        import torch
    except ImportError:
        return {}
    return {"torch": torch.__version__}


def processor():
    """The name of the CPU, as far as the system tells."""
    path = pathlib.Path("/proc/cpuinfo")
    if not path.exists():
        return "unknown"
    names = [line for line in path.read_text().splitlines() if "model name" in line]
    return names[0].split(":")[1].strip() if names else "unknown"


def table(record):
    shown = Table(
        title=f"{record['model']} {record['image']}, {record['dtype']}, "
        f"n = {record['n']}; {record['mflop_per_sample']:g} MFLOP a sample, "
        f"matrix products {record['matmul_gflops']:g} GFLOP/s",
        title_justify="left",
    )
    shown.add_column("case")
    heads = (
        "samples_per_s",
        "us_per_sample",
        "cpu_us_per_sample",
        "share_of_peak",
        "share_of_noise",
    )
    for head in heads:
        shown.add_column(head.replace("_", " "), justify="right")
    for name, line in record["lines"].items():
        shown.add_row(name, *(str(line.get(head, "")) for head in heads))
    return shown


if __name__ == "__main__":
    main()
