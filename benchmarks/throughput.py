"""Votes per second: noise, forward pass and count, beside PyTorch on the same cores.

  python benchmarks/throughput.py --out=benchmarks/results/throughput.jsonl \
      --authors=CHECKOUT
  python benchmarks/throughput.py --model=resnet18_cifar --image=32,32,3 --n=50
  python benchmarks/throughput.py --model=resnet18_cifar --image=32,32,3 --n=100000 \
      --dtype=bfloat16 --block-size=5000 --no-torch        (on an accelerator)

Networks have random weights. n votes are counted for each of ten images. Every case is
run once to compile, then all cases in turn, several times over; medians count, also of
the ratios within each round. The opponents in PyTorch (only where it is installed, and
only for conv_small) do the same work with flow noise of the Laplace law:

  * authors: the function of Levine and Feizi's own code, if --authors names a checkout of
    github.com/alevine0/wasserstein_smoothing (it imports statsmodels); ten images at once,
    as their script has it, and one at a time;
  * at once: eager, all draws of ten images in one batch, noise by torch.distributions:
    the obvious program; image by image: the same with the draws of one image;
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
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table

import wsjax
from wsjax import exact, exact_flow, gaussian, models, votes
from wsjax.runs import cli, manifest

SIGMA = 0.01
IMAGES = 10
SHARED = 25


def main():
    arguments = parse()
    cli.one_cpu_device_per_core()
    if arguments.memory_of:
        return memory_of(arguments)
    on_cpu = jax.default_backend() == "cpu"
    if arguments.shared_block_size is None:
        arguments.shared_block_size = 50 if on_cpu else arguments.block_size
    shape = tuple(map(int, arguments.image.split(",")))
    image = np.random.default_rng(0).uniform(size=shape).astype(np.float32)
    classify, flops = network(arguments, shape)
    peak = matmul_peak(arguments.dtype or "float32")
    cases = ours(arguments, image, classify)
    if arguments.torch and arguments.model == "conv_small":
        cases |= theirs(arguments, image)
    wall, cpu = timed(cases, arguments.repeats)
    lines = {}
    for name in cases:
        rate = 1e6 / np.median(wall[name])
        lines[name] = {
            "samples_per_s": round(rate),
            "us_per_sample": round(1e6 / rate, 2),
            "cpu_us_per_sample": round(np.median(cpu[name]), 2),
            "share_of_peak": round(rate * flops / peak, 3),
        }
        if name.startswith("noise"):
            saved = 1 - np.divide(wall["no noise"], wall[name])
            lines[name]["share_of_noise"] = round(float(np.median(saved)), 3)
    summary = compare(lines, wall)
    record = {
        "model": arguments.model,
        "image": shape,
        "dtype": arguments.dtype or "float32",
        "n": arguments.n,
        "images": IMAGES,
        "block_size": arguments.block_size,
        "shared_block_size": arguments.shared_block_size,
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
    if on_cpu:
        print("No GPU or TPU here: these are numbers of a CPU.")
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
    parser.add_argument("--authors", type=pathlib.Path, help="checkout of their code")
    parser.add_argument(
        "--shared-block-size", type=int, help="default 50 on a CPU, else --block-size"
    )
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
    # As it is written for a CPU: what GPU libraries compute is not counted by others.
    traced = plain.trace(variables, ones).lower(lowering_platforms=("cpu",))
    flops = traced.cost_analysis()["flops"] / 8
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


def in_whole_numbers(name, law, shape):
    """The law for exact votes, or None."""
    if name == "view of 80":
        return exact.exact(wsjax.gaussian_smoothing(law, shape, "l2")).noise
    if not isinstance(law, exact_flow.LAWS):
        return None
    smoothing = wsjax.make_smoothing(name, SIGMA, "l2")
    return exact.exact(smoothing, shape).noise


def ours(arguments, image, classify):
    """`(samples, function)` by name."""
    n, devices = arguments.n, votes.all_devices()
    classify = votes.replicate(classify, devices)
    keys = [wsjax.make_key(number) for number in range(IMAGES)]

    def unmoved(key, image):
        # Something of the key, so that nothing can be computed ahead of the loop.
        return image + 1e-30 * jax.random.key_data(key)[0].astype(image.dtype)

    def run(images, perturb, block_size=arguments.block_size):
        """As certify.py does it."""
        groups = votes.choose_groups(len(devices), len(images), (n,), block_size)
        count = functools.partial(
            votes.count_votes_each,
            keys[: len(images)],
            images,
            classify,
            perturb,
            n=n,
            block_size=block_size,
            groups=groups,
        )
        samples = n * len(images) * (images.shape[1] if images.ndim == 5 else 1)
        return samples, lambda: jax.block_until_ready(count())

    several = np.stack([image] * IMAGES)
    cases = {"no noise": run(several, unmoved)}
    for name, law in laws(image.shape).items():
        if not arguments.only or name in arguments.only:
            cases[f"noise: {name}"] = run(several, law.perturb)
            exactly = in_whole_numbers(name, law, image.shape)
            if exactly:
                prepared = np.stack([exactly.prepare(image)] * IMAGES)
                cases[f"noise: exact {name}"] = run(prepared, exactly.perturb)
    law = laws(image.shape)["flow_laplace"]
    stacks = np.stack([[image] * SHARED] * len(devices))
    cases[f"shared by {SHARED}: flow_laplace"] = run(
        stacks, votes.Addition(law), arguments.shared_block_size
    )
    return cases


def matmul_peak(dtype):
    """Operations per second of one large matrix product, the best of ten."""
    size = 2048 if jax.default_backend() == "cpu" else 8192
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
    """Wall and CPU microseconds a sample of each case and round; all cases in turn."""
    wall, cpu = ({name: [] for name in cases} for _ in range(2))
    for _, run in cases.values():
        run()
    for _ in range(repeats):
        for name, (samples, run) in cases.items():
            start, start_cpu = time.perf_counter(), time.process_time()
            run()
            wall[name].append(1e6 * (time.perf_counter() - start) / samples)
            cpu[name].append(1e6 * (time.process_time() - start_cpu) / samples)
    return wall, cpu


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
            for _ in range(IMAGES * n // block):
                total += one(noise(block))
            return total

    cases = {}
    if arguments.authors:
        function = code_of(arguments.authors)
        images = x.expand(IMAGES, 1, height, width)

        def authors(images):
            with torch.no_grad():
                return function(images, net, n, SIGMA)

        cases["torch: authors, 10 images"] = (IMAGES * n, lambda: authors(images))
        cases["torch: authors, 1 image"] = (n, lambda: authors(images[:1]))
    return cases | {
        "torch: at once, 10 images": (IMAGES * n, lambda: at_once(IMAGES)),
        "torch: image by image": (n, lambda: at_once(1)),
        "torch: blocks, eager": (IMAGES * n, lambda: in_blocks(step)),
        "torch: blocks, compiled": (IMAGES * n, lambda: in_blocks(compiled)),
        "torch: blocks, compiled with noise": (
            IMAGES * n,
            lambda: in_blocks(lambda _: with_noise(), lambda count: None),
        ),
        "torch: blocks, frozen": (
            IMAGES * n,
            lambda: in_blocks(lambda noise: counted(frozen(carried(x, noise)))),
        ),
    }


def code_of(checkout):
    """`wass_smooth_forward(images, net, n, sigma)` of the paper's authors."""
    import torch

    if not (checkout / "wass_smooth_utils.py").exists():
        raise SystemExit(
            f"--authors={checkout} holds no wass_smooth_utils.py; give a checkout of "
            f"https://github.com/alevine0/wasserstein_smoothing."
        )
    sys.path.insert(0, str(checkout))
    import wass_smooth_utils

    if not torch.cuda.is_available():
        # They move their tensors to a GPU; here they stay.
        torch.Tensor.cuda = lambda tensor: tensor
    return wass_smooth_utils.wass_smooth_forward


def compare(lines, wall):
    """What the side by side says; ratios are medians of those within each round."""
    noisy = [name for name in lines if name.startswith("noise")]
    slowest = min(noisy, key=lambda name: lines[name]["samples_per_s"])
    found = {
        "slowest law": slowest,
        "largest share of noise": max(lines[name]["share_of_noise"] for name in noisy),
    }

    def times(ours, theirs):
        return round(float(np.median(np.divide(wall[theirs], wall[ours]))), 2)

    for name in noisy:
        exactly = name.replace("noise: ", "noise: exact ")
        if exactly in lines:
            found[f"{exactly}, time / ordinary"] = times(name, exactly)
    opponents = [name for name in lines if name.startswith("torch")]
    if not opponents:
        return found
    best = max(opponents, key=lambda name: lines[name]["samples_per_s"])
    shared = next(name for name in lines if name.startswith("shared"))
    found |= {"best torch": best, "slowest law / best torch": times(slowest, best)}
    if "noise: flow_laplace" in lines:
        found["flow_laplace / best torch"] = times("noise: flow_laplace", best)
    for name in ("torch: authors, 10 images", "torch: at once, 10 images"):
        if name in lines:
            found[f"slowest law / {name}"] = times(slowest, name)
            found[f"shared / {name}"] = times(shared, name)
    return found


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
