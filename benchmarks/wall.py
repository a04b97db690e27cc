"""How far could any certificate reach? Half the distance to another class.

  python benchmarks/wall.py --data=FOLDER --set=mnist --stride=10

finds, for every tenth test image, the training image of another class that is nearest
in exact Wasserstein distance W, and reports W / 2, the wall.

Why a wall: on the way from the test image to the training image, (1 - t) x + t x',
the first is t W away and the second (1 - t) W. A classifier that gives each its label
and is certified within r of x and r' of x' therefore has r + r' <= W, or some mixture
would have two labels. So no certificate exceeds W / 2 on both. It may on one of them,
at the expense of the other; and nothing is said about a classifier that is wrong on
the training image. Distances are in pixels x fraction of the mass, as radii are.

`wsjax.nearest` does the search, whose result is that of solving for all of them. Rows go
to OUT/SET-METRIC.tsv, and a stopped run goes on from there. On one x86-64 core an image
of MNIST takes some 0.03 seconds, one of Fashion-MNIST 0.06. Set OMP_NUM_THREADS=1 where
other work wants the cores: the matrices are too small for more.
"""

import argparse
import pathlib
import sys

import numpy as np
from rich.table import Table

from wsjax import data, files, nearest
from wsjax.console.progress import progress
from wsjax.console.signals import StopFlag, Stopped
from wsjax.runs import report, rows

COLUMNS = ("idx", "label", "nearest", "nearest_label", "distance")
RADII = (0.05, 0.10, 0.15, 0.20, 0.25, 0.30)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="folder of the idx files")
    parser.add_argument("--set", choices=("mnist", "fashion_mnist"), default="mnist")
    parser.add_argument("--metric", choices=("l1", "l2"), default="l2")
    parser.add_argument("--stride", type=int, default=10, help="every which test image")
    parser.add_argument("--limit", type=int, help="stop after so many images")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("runs/wall"))
    arguments = parser.parse_args()
    train, test = (
        data.load(arguments.set, split, dir=arguments.data)
        for split in ("train", "test")
    )
    chosen = range(0, len(test.images), arguments.stride)[: arguments.limit]
    arguments.out.mkdir(parents=True, exist_ok=True)
    path = arguments.out / f"{arguments.set}-{arguments.metric}.tsv"
    try:
        run = rows.digest([train.checksum, test.checksum, arguments.metric])
        with (
            files.locked(arguments.out),
            rows.RowWriter(path, COLUMNS, run) as writer,
            StopFlag() as stop,
        ):
            todo = [index for index in chosen if index not in writer.done]
            images = nearest.Index(train.images, train.labels, arguments.metric)
            for index in progress(todo, desc=f"wall {arguments.set}", unit="image"):
                label = test.labels[index]
                other, distance = images.nearest_other(test.images[index], label)
                writer.write(
                    idx=index,
                    label=label,
                    nearest=other,
                    nearest_label=train.labels[other],
                    distance=distance,
                )
                stop.check()
    except files.InUse as error:
        sys.exit(f"error: {error}")
    except Stopped as stopped:
        print(f"{stopped}; the same command goes on from {path}", file=sys.stderr)
        sys.exit(stopped.exit_code)
    written = rows.read_rows(path)
    distances = written.floats("distance")[np.isin(written.ints("idx"), chosen)]
    report.show(wall_table(distances, arguments.set, arguments.metric))
    print(f"Rows: {path}")


def wall_table(distances: np.ndarray, name: str, ground_metric: str) -> Table:
    """Summary of the walls, half the `distances` `[n]`."""
    walls = distances / 2
    table = Table(
        title="Half the distance to the nearest training image of any other class"
    )
    table.add_column("test set")
    shares = (f">= {radius:.2f} %" for radius in RADII)
    for head in ("metric", "images", "smallest", "median", "mean", *shares):
        table.add_column(head, justify="right")
    table.add_row(
        name,
        ground_metric,
        str(len(walls)),
        f"{walls.min():.4f}",
        f"{np.median(walls):.4f}",
        f"{walls.mean():.4f}",
        *(f"{100 * (walls >= radius).mean():.1f}" for radius in RADII),
    )
    return table


if __name__ == "__main__":
    main()
