"""Certified accuracy of learned noise, of potentials and of the published method.

  python benchmarks/envelope.py --data=FOLDER --set=mnist

trains and certifies one classifier for each certificate scale with configs/SET.py, one
that needs no votes with configs/SET_potentials.py, and the published method with
configs/paper/SET_fast.py, on the same test images; prints
them in one table with their upper envelope, and draws the curves. Finished parts are
not run again, so it can be stopped and repeated at will.
"""

import argparse
import pathlib
from typing import NamedTuple

import numpy as np
import repository
from rich.table import Table

from wsjax import plots
from wsjax.runs import report
from wsjax.runs.rows import read_rows


class Run(NamedTuple):
    """One row of a table: a name, a config, and what is changed in it."""

    name: str
    config: str
    changes: tuple[str, ...]


class Plan(NamedTuple):
    """The runs of one data set, the radii of its table, and where a log axis begins."""

    runs: tuple[Run, ...]
    radii: tuple[float, ...]
    log_from: float = 0.0


def learned(name, config, scale, *changes):
    return Run(name, config, (f"smoothing.certificate_scale={scale}", *changes))


def potentials(config, name="potentials", *changes):
    """Without votes; on the images that the others are certified on."""
    return Run(name, config, ("data.stride=10", *changes))


SMALLER = "model.potentials=1024", "train.num_epochs=12"
WIDE = "model.widths=(64,256,256)", "train.batch_size=256", "train.num_epochs=60"


PLANS = {
    "mnist": Plan(
        (
            Run("published", "paper/mnist_fast", ()),
            # A light hand where accuracy is what is wanted.
            learned(
                "c=0.037",
                "mnist",
                0.037,
                "train.consistency=0.5",
                "train.augment=none",
            ),
            learned(
                "c=0.04",
                "mnist",
                0.04,
                "train.consistency=1.0",
                "train.augment=none",
            ),
            learned("c=0.06", "mnist", 0.06),
            learned("c=0.1", "mnist", 0.1),
            potentials("mnist_potentials"),
            potentials(
                "mnist_potentials", "potentials, r=0.1", "train.radius=0.1", *SMALLER
            ),
            potentials(
                "mnist_potentials", "potentials, r=0.3", "train.radius=0.3", *SMALLER
            ),
        ),
        (0.02, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3),
    ),
    "fashion_mnist": Plan(
        (
            Run("published, sigma=0.002", "paper/fashion_mnist_fast", ()),
            Run(
                "published, sigma=0.005",
                "paper/fashion_mnist_fast",
                ("smoothing.sigma=0.005",),
            ),
            learned("c=0.03", "fashion_mnist", 0.03, "train.consistency=1.0"),
            learned("c=0.08", "fashion_mnist", 0.08),
            potentials("fashion_mnist_potentials"),
        ),
        (0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.25),
    ),
    "cifar": Plan(
        (
            Run("published", "paper/cifar_fast", ()),
            Run("published, wide", "paper/cifar_fast", WIDE),
            Run("not coupled", "cifar", ("smoothing.couple_channels=False",)),
            Run("coupled", "cifar", ()),
            Run("wide, c=0.000283", "cifar_wide", ()),
            Run("wide, c=0.0004", "cifar_wide", ("smoothing.certificate_scale=4e-4",)),
            potentials("cifar_potentials"),
        ),
        (2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2),
        log_from=1e-4,
    ),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="folder of the original files")
    parser.add_argument("--set", choices=PLANS, default="mnist")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("runs"))
    parser.add_argument("--only", nargs="*", help='rows to run, e.g. "c=0.06"')
    parser.add_argument(
        "--wall", type=pathlib.Path, help="rows of benchmarks/wall.py to draw beside"
    )
    parser.add_argument(
        "--no-run", action="store_true", help="tables of what was run before"
    )
    arguments = parser.parse_args()
    plan = PLANS[arguments.set]
    folder = arguments.out / f"envelope-{arguments.set}"
    certified = {}
    for run in plan.runs:
        if arguments.only and run.name not in arguments.only:
            continue
        workdir = folder / run.name
        for script in () if arguments.no_run else ("train.py", "certify.py"):
            changes = f"data.dir={arguments.data}", *run.changes
            repository.run(script, run.config, workdir, *changes)
        published = run.name.startswith("published")
        bounds = ["published"] if published else None
        certified[run.name], *_ = report.read_certified(workdir, bounds)
        if published:
            name = f"{run.name}, tight bound"
            certified[name], *_ = report.read_certified(workdir, ["tight"])
    report.show(table(arguments.set, plan.radii, certified), folder / "table.txt")
    curves = {name: run.curve for name, run in certified.items()}
    if arguments.wall:
        walls = read_rows(arguments.wall).floats("distance") / 2
        curves["half way to another class"] = plots.Curve(walls, len(walls))
    plots.accuracy_curves(
        folder / "certified_accuracy.png",
        curves,
        metric=next(iter(certified.values())).metric,
        log_from=plan.log_from,
    )
    print(f"Table and figure: {folder}")


def table(title, radii, certified, envelope=True):
    """One line a run, and the best of the learned ones at each radius."""
    lines = Table(title=f"{title}: certified test images", title_justify="left")
    lines.add_column("run")
    for head in ("images", "accuracy", "median r", "mean r"):
        lines.add_column(head, justify="right")
    for radius in radii:
        lines.add_column(f"{radius:g}", justify="right")
    shares = {name: run.certified_accuracy(radii) for name, run in certified.items()}
    for name, run in certified.items():
        total = run.summary
        lines.add_row(
            name,
            str(total.images),
            f"{total.accuracy:.3f}",
            f"{total.median_radius:.3g}",
            f"{total.mean_radius:.3g}",
            *(f"{share:.3f}" for share in shares[name]),
        )
    ours = [share for name, share in shares.items() if "published" not in name]
    if envelope and len(ours) > 1:
        best = np.max(ours, axis=0)
        lines.add_row("envelope", "", "", "", "", *(f"{share:.3f}" for share in best))
    return lines


if __name__ == "__main__":
    main()
