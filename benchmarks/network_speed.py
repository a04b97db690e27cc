"""Votes and training steps of the network of configs/cifar.py, beside PyTorch.

  python benchmarks/network_speed.py votes --out=benchmarks/results/network_speed.jsonl
  python benchmarks/network_speed.py training --out=benchmarks/results/network_speed.jsonl

PyTorch has the same network with the same weights (its logits are compared first), images
as it likes them best (channels last), eager and compiled. Votes are without noise:
benchmarks/throughput.py measures what noise costs. A training step is the cross-entropy
of a batch and SGD with Nesterov's momentum in both; ours is measured with all that the
config does, too: learned noise, two copies of each image, consistency, Muon. Every case
is run once to compile, then all in turn, several times over; medians count, also of the
ratios within each round.

Share of peak: operations of convolutions and products alone, over those of the best
matrix product of the same run. As certify.py does, votes have a device for each core;
as train.py does, training has one.
"""

import argparse
import functools
import itertools
import json
import pathlib
import runpy

import jax
import numpy as np
import optax
import repository
import throughput
from rich.console import Console
from rich.table import Table

import wsjax
from wsjax import models, votes
from wsjax.runs import cli, experiment, manifest
from wsjax.runs.config import resolve
from wsjax.training import steps

SHAPE = 32, 32, 3
IMAGES = 10
RATE = 1e-3


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("votes", "training"))
    parser.add_argument("--config", default="cifar")
    parser.add_argument("--block-size", type=int, default=250, help="of votes")
    parser.add_argument("--n", type=int, default=1_000, help="votes for each of ten")
    parser.add_argument("--steps", type=int, default=3, help="training steps a round")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--out", type=pathlib.Path)
    arguments = parser.parse_args()
    voting = arguments.what == "votes"
    if voting:
        cli.one_cpu_device_per_core()
    file = repository.ROOT / "configs" / f"{arguments.config}.py"
    config = resolve(runpy.run_path(str(file))["get_config"]())
    module = experiment.make_model(config.model, 10)
    rng = np.random.default_rng(0)
    batch = arguments.block_size if voting else config.train.batch_size
    images = rng.integers(0, 256, (batch, *SHAPE), dtype=np.uint8)
    labels = rng.integers(0, 10, batch, dtype=np.int32)
    variables = jax.jit(module.init)(jax.random.key(0), np.zeros((1, *SHAPE)))
    variables = module.started(variables, images / np.float32(255))
    peak = throughput.matmul_peak("float32")
    forward, whitening = operations(module.widths)
    if voting:
        cases = our_votes(arguments, module, variables, images[0])
        cases |= their_votes(arguments, module, variables, images)
    else:
        cases = our_steps(arguments, config, module, variables, images, labels)
        cases |= their_steps(arguments, module, variables, images, labels)
    wall, cpu = throughput.timed(cases, arguments.repeats)
    # A gradient is two more of each product; whitening has none.
    flops = forward if voting else 3 * forward - 2 * whitening
    lines = {
        name: {
            "samples_per_s": round(1e6 / np.median(wall[name])),
            "us_per_sample": round(np.median(wall[name]), 1),
            "cpu_us_per_sample": round(np.median(cpu[name]), 1),
            "share_of_peak": round(flops / peak / np.median(wall[name]) * 1e6, 3),
        }
        for name in cases
    }
    opponents = [name for name in cases if name.startswith("torch")]
    best = np.min([wall[name] for name in opponents], axis=0) if opponents else np.nan
    ours = next(iter(cases))
    record = {
        "what": arguments.what,
        "config": arguments.config,
        "widths": list(module.widths),
        "batch": batch,
        "repeats": arguments.repeats,
        "mflop_per_sample": round(flops / 1e6, 1),
        "matmul_gflops": round(peak / 1e9, 1),
        "lines": lines,
        "over_the_best_of_torch": round(float(np.median(best / wall[ours])), 2),
        "versions": {**manifest.versions(), **throughput.torch_version()},
        "devices": manifest.devices(),
        "cpu": throughput.processor(),
    }
    show(record)
    if arguments.out:
        with arguments.out.open("a") as file:
            file.write(json.dumps(record) + "\n")


def operations(widths):
    """Multiplications and sums of one forward pass, and those of the whitening in it."""
    size, channels = SHAPE[0] - 1, 24
    whitening = total = 2 * size**2 * 12 * channels
    for width in widths:
        total += 2 * size**2 * 9 * channels * width
        size //= 2
        total += 2 * size**2 * 9 * width * width
        channels = width
    return total + 2 * channels * 10, whitening


def our_votes(arguments, module, variables, image):
    devices = votes.all_devices()
    classify = votes.replicate(models.classifier(module, variables), devices)
    images = np.stack([image / np.float32(255)] * IMAGES)

    def unmoved(key, image):
        # Something of the key, so that nothing can be computed ahead of the loop.
        return image + 1e-30 * jax.random.key_data(key)[0].astype(image.dtype)

    n, block = arguments.n, arguments.block_size
    count = functools.partial(
        votes.count_votes_each,
        [wsjax.make_key(number) for number in range(IMAGES)],
        images,
        classify,
        unmoved,
        n=n,
        block_size=block,
        groups=votes.choose_groups(len(devices), IMAGES, (n,), block),
    )
    return {"ours": (n * IMAGES, lambda: jax.block_until_ready(count()))}


def our_steps(arguments, config, module, variables, images, labels):
    """`(samples, function)`: plain steps, and those of the config with its noise."""
    plain = optax.sgd(RATE, momentum=0.9, nesterov=True)
    noise = experiment.make_learned_noise(config, images)
    whole = experiment.make_optimizer(config.train, 10_000, True, module)
    objective = experiment.make_objective(config.train)
    cases = {}
    for name, optimizer, perturb, options in (
        ("ours", plain, None, {}),
        ("ours, all of the config", whole, noise, {"objective": objective}),
    ):
        step = steps.make_train_step(module, optimizer, perturb, scale=255.0, **options)
        key = jax.random.key(1)
        start = lambda _: jax.tree.map(np.copy, variables)
        state = [steps.init_state(key, module, SHAPE, optimizer, perturb, start)]

        def run(step=step, state=state, key=key):
            for _ in range(arguments.steps):
                state[0], metrics = step(state[0], key, images, labels)
            return jax.block_until_ready(metrics)

        copies = objective.copies if perturb else 1
        cases[name] = copies * arguments.steps * len(images), run
    return cases


def in_torch(module, variables):
    """The network in PyTorch, with the same weights."""
    import torch
    from torch import nn
    from torch.nn import functional

    params, statistics = variables["params"], variables["batch_stats"]

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Conv2d(3, 24, 2)
            self.first.weight.requires_grad_(False)
            self.register_buffer(
                "patch", tensor(statistics["patch"]).reshape(1, 3, 1, 1)
            )
            sizes = [24, *(width for width in module.widths for _ in range(2))]
            self.convs = nn.ModuleList(
                nn.Conv2d(a, b, 3, padding=1, bias=False)
                for a, b in itertools.pairwise(sizes)
            )
            self.norms = nn.ModuleList(nn.BatchNorm2d(width) for width in sizes[1:])
            for norm in self.norms:
                norm.eps = 1e-5
                norm.weight.requires_grad_(False)
            self.last = nn.Linear(sizes[-1], 10, bias=False)

        def forward(self, x):
            x = functional.gelu(self.first(x - self.patch), approximate="tanh")
            for number, (conv, norm) in enumerate(zip(self.convs, self.norms)):
                x = conv(x)
                x = functional.max_pool2d(x, 2) if number % 2 == 0 else x
                x = functional.gelu(norm(x), approximate="tanh")
            return self.last(x.amax((2, 3)))

    def tensor(array):
        return torch.from_numpy(np.array(array))

    net = Net()
    weights = {
        "first.weight": tensor(statistics["whitening"]).permute(3, 2, 0, 1),
        "first.bias": tensor(params["whitened_bias"]),
        "last.weight": tensor(params["Dense_0"]["kernel"]).T,
    }
    for number in range(len(net.convs)):
        kernel = tensor(params[f"Conv_{number}"]["kernel"])
        weights[f"convs.{number}.weight"] = kernel.permute(3, 2, 0, 1)
    net.load_state_dict(weights, strict=False)
    net = net.to(memory_format=torch.channels_last)
    mass = module.unit == "mass"

    def prepared(images):
        """Floats `[B, C, H, W]` in memory as `[B, H, W, C]`."""
        x = images.permute(0, 3, 1, 2).float() / 255
        return x * (x[0].numel() / x.sum((1, 2, 3), keepdim=True)) if mass else x

    return torch, net, prepared


def their_votes(arguments, module, variables, images):
    try:
        torch, net, prepared = in_torch(module, variables)
    except ImportError:
        return {}
    net.eval()
    x = torch.from_numpy(images)
    with torch.inference_mode():
        theirs = net(prepared(x)).numpy()
    ours = models.classifier(module, variables)(images / np.float32(255))
    np.testing.assert_allclose(theirs, ours, rtol=1e-3, atol=1e-3)

    def vote(x):
        return torch.bincount(net(prepared(x)).argmax(1), minlength=10)

    compiled = torch.compile(vote)
    n = arguments.n * IMAGES

    def run(vote):
        with torch.inference_mode():
            return sum(vote(x) for _ in range(n // len(x)))

    return {
        "torch: eager": (n, lambda: run(vote)),
        "torch: compiled": (n, lambda: run(compiled)),
    }


def their_steps(arguments, module, variables, images, labels):
    try:
        torch, _, _ = in_torch(module, variables)
    except ImportError:
        return {}
    x, y = torch.from_numpy(images), torch.from_numpy(labels).long()
    cases = {}
    for name, compiled in (("eager", False), ("compiled", True)):
        _, net, prepared = in_torch(module, variables)
        net.train()
        rest = [p for p in net.parameters() if p.requires_grad]
        optimizer = torch.optim.SGD(rest, RATE, momentum=0.9, nesterov=True)

        def loss_of(x, y, net=net, prepared=prepared):
            return torch.nn.functional.cross_entropy(net(prepared(x)), y)

        loss_of = torch.compile(loss_of) if compiled else loss_of

        def run(loss_of=loss_of, optimizer=optimizer):
            for _ in range(arguments.steps):
                optimizer.zero_grad(set_to_none=True)
                loss_of(x, y).backward()
                optimizer.step()

        cases[f"torch: {name}"] = arguments.steps * len(images), run
    return cases


def show(record):
    table = Table(
        title=f"{record['what']}, widths {record['widths']}, batches of "
        f"{record['batch']}; {record['mflop_per_sample']:g} MFLOP a sample, matrix "
        f"products {record['matmul_gflops']:g} GFLOP/s",
        title_justify="left",
    )
    table.add_column("case")
    heads = next(iter(record["lines"].values()))
    for head in heads:
        table.add_column(head.replace("_", " "), justify="right")
    for name, line in record["lines"].items():
        table.add_row(name, *(str(line[head]) for head in heads))
    Console(width=140).print(table)
    print(f"Over the best of PyTorch: {record['over_the_best_of_torch']}")


if __name__ == "__main__":
    main()
