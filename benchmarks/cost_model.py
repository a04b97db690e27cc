"""How long a certification takes on many accelerators: a model, not a measurement.

  python benchmarks/cost_model.py
  python benchmarks/cost_model.py --devices=8 --achieved=0.25 --n=10000

The defaults are ImageNet with a ResNet-50 at n = 100,000 on 64 GPUs. docs/scaling.md has
the formulas and says where the numbers come from; replace --achieved, --noise_ns and
--host_ms by what `benchmarks/scaling.py` measures on your machine.
"""

import argparse
import dataclasses
import math
from typing import NamedTuple

from rich.console import Console
from rich.table import Table

from wsjax import votes


@dataclasses.dataclass(frozen=True)
class Case:
    """What is certified, on what; units are in the names or comments."""

    images: int = 50_000
    n0: int = 1_000
    n: int = 100_000
    block_size: int = 1_000
    pixels: int = 224 * 224 * 3
    classes: int = 1_000
    gflop: float = 8.2  # Of one forward pass of one image; 2 FLOP per multiply-add.
    weights_mb: float = 102.0
    activation_mb: float = 45.0  # Read and written per image, where it is the limit.
    devices: int = 64
    peak_tflops: float = 989.0  # Dense bf16 of one device.
    achieved: float = 0.4  # Fraction of it.
    memory_gbps: float = 3350.0
    noise_ns: float = 0.02  # Per pixel of a copy: draw numbers, move mass.
    link_gbps: float = 25.0  # Between hosts, bytes.
    latency_us: float = 20.0  # Of one step of an all-reduce.
    host_ms: float = 10.0  # Per image and process: read, decode, row.


class Cost(NamedTuple):
    """What the model says; seconds unless said otherwise."""

    groups: int
    copy: float  # One noisy copy on one device, in the block.
    batch: float  # Votes of `groups` images.
    useful: float  # Share of the copies classified that count.
    communication: float  # Per batch.
    host: float  # Per batch, hidden behind the votes of the one before.
    total: float
    images_per_second: float
    bound: str  # What limits a copy: arithmetic or memory.


def cost(case: Case) -> Cost:
    """Evaluates the formulas of docs/scaling.md."""
    arithmetic = case.gflop * 1e9 / (case.peak_tflops * 1e12 * case.achieved)
    per_block = case.weights_mb / case.block_size + case.activation_mb
    memory = per_block * 1e6 / (case.memory_gbps * 1e9)
    noise = case.noise_ns * 1e-9 * case.pixels
    copy = max(arithmetic, memory) + noise
    trials = (case.n0, case.n)
    groups = votes.choose_groups(case.devices, case.images, trials, case.block_size)
    members = case.devices // groups
    rounds = sum(math.ceil(math.ceil(t / case.block_size) / members) for t in trials)
    # Counts of selection and of estimation, and the flag that says whether to stop.
    steps = math.ceil(math.log2(max(case.devices, 2)))
    sent = 2 * 4 * case.classes * groups
    # A ring sends everything twice.
    sending = 2 * sent / (case.link_gbps * 1e9)
    communication = 3 * steps * case.latency_us * 1e-6 + sending
    host = case.host_ms * 1e-3 * groups
    votes_of_batch = rounds * case.block_size * copy
    batch = max(votes_of_batch + communication, host)
    batches = math.ceil(case.images / groups)
    total = batches * batch
    useful = (
        sum(trials) * case.images / (batches * rounds * case.block_size * case.devices)
    )
    return Cost(
        groups,
        copy,
        votes_of_batch,
        useful,
        communication,
        host,
        total,
        case.images / total,
        "arithmetic" if arithmetic >= memory else "memory",
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for field in dataclasses.fields(Case):
        parser.add_argument(
            f"--{field.name}", type=type(field.default), default=field.default
        )
    given = Case(**vars(parser.parse_args()))
    table = Table(title="Extrapolated, not measured", title_justify="left")
    for head in ("devices", "groups", "useful", "s/batch", "ms comm.", "s host"):
        table.add_column(head, justify="right")
    for head in ("images/s", "hours", "limit"):
        table.add_column(head, justify="right")
    for devices in sorted({1, 8, given.devices, 4 * given.devices}):
        found = cost(dataclasses.replace(given, devices=devices))
        table.add_row(
            str(devices),
            str(found.groups),
            f"{found.useful:.1%}",
            f"{found.batch:.3g}",
            f"{1e3 * found.communication:.2g}",
            f"{found.host:.2g}",
            f"{found.images_per_second:.3g}",
            f"{found.total / 3600:.3g}",
            found.bound,
        )
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
