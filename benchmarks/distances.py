"""Distances of many pairs of images: bounds on the device, exact ones on the host.

  python benchmarks/distances.py --data=FOLDER --set=mnist

Times `bounded_distance` to a gap of 1 % and `exact_distance`, in CPU time per pair, on
test images against other test images (rescaled to equal mass) and against themselves
with a little mass moved. The first call, which compiles, is left out.
"""

import argparse
import time

import jax
import numpy as np
from rich.console import Console
from rich.table import Table

import wsjax
from wsjax import data
from wsjax.attacks import nearest_valid


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="folder of the original files")
    parser.add_argument("--set", default="mnist")
    parser.add_argument("--pairs", type=int, default=64)
    parser.add_argument("--exact", type=int, default=16, help="pairs solved exactly")
    arguments = parser.parse_args()
    test = data.load(arguments.set, "test", dir=arguments.data)
    images = data.as_float(test.images[: 2 * arguments.pairs], test.scale)
    a, b = images[: arguments.pairs], images[arguments.pairs :]
    b = b * (a.sum((1, 2), keepdims=True) / b.sum((1, 2), keepdims=True))
    noise = np.random.default_rng(0).normal(0, 0.05, a.shape).astype(a.dtype)
    moved = np.asarray(nearest_valid(a, a + noise * (a > 0)))
    table = Table(title=f"{arguments.set} on {jax.devices()[0].device_kind}")
    for head in ("pairs", "metric", "ms bounds", "gap", "iterations", "ms exact"):
        table.add_column(head, justify="right")
    for name, other in (("another image", b), ("moved", moved)):
        for metric in ("l1", "l2"):
            wsjax.bounded_distance(a, other, metric)
            start = time.process_time()
            bounds = wsjax.bounded_distance(a, other, metric)
            seconds = (time.process_time() - start) / len(a)
            spent = []
            for n in range(min(arguments.exact, len(a))):
                start = time.process_time()
                exact = wsjax.exact_distance(a[n], other[n], metric)
                spent.append(time.process_time() - start)
                assert bounds.lower[n] <= exact * (1 + 1e-9), (n, metric)
                assert exact <= bounds.upper[n] * (1 + 1e-9), (n, metric)
            table.add_row(
                name,
                metric,
                f"{1e3 * seconds:.2g}",
                f"{bounds.gap.max():.2g}",
                f"{np.median(bounds.iterations):g}",
                f"{1e3 * np.median(spent):.2g}",
            )
    Console().print(table)


if __name__ == "__main__":
    main()
