"""Certified accuracy of learned noise, of potentials and of the published method.

  python benchmarks/envelope.py --data=FOLDER --set=mnist

trains and certifies one classifier for each certificate scale with configs/SET.py, those
that need no votes with configs/SET_potentials.py and SET_nearest.py, and the published
method with configs/paper/SET_fast.py, on the same test images; prints them in one table,
and draws the curves. Finished parts are not run again, so it can be stopped and repeated
at will. With --keep their rows go to benchmarks/results, from where

  python benchmarks/envelope.py --set=mnist --no-run

draws the same, and benchmarks/readme.py makes the tables of the README.
"""

import argparse
import pathlib
from typing import NamedTuple

import repository
from rich.table import Table

from wsjax import plots
from wsjax.runs import report
from wsjax.runs.rows import read_rows

RESULTS = repository.ROOT / "benchmarks" / "results"
SCRIPTS = "train.py", "certify.py"
WALL = "wall/{}-l2.tsv"  # Of benchmarks/wall.py --out=benchmarks/results/wall
# The same colour for the same kind, whatever the data.
KINDS = {
    "published": plots.COLOURS[0],
    "learned": plots.COLOURS[1],
    "potentials": plots.COLOURS[2],
    "nearest": plots.COLOURS[3],
}


class Run(NamedTuple):
    """One row of a table.

    Attributes:
      name: of its run directory.
      label: in tables and figures.
      kind: one of `KINDS`; published noise has a row for each of its two bounds.
      config: path below configs/, without .py.
      changes: "KEY=VALUE" in it.
      scripts: what it takes.
    """

    name: str
    label: str
    kind: str
    config: str
    changes: tuple[str, ...] = ()
    scripts: tuple[str, ...] = SCRIPTS


class Plan(NamedTuple):
    """The runs of one data set, the radii of its table, and where a log axis begins."""

    runs: tuple[Run, ...]
    radii: tuple[float, ...]
    log_from: float


def published(config, sigma, *changes, name="published", label="published"):
    return Run(name, f"{label}, sigma = {sigma}", "published", config, changes)


def learned(config, scale, *changes):
    """A certificate scale of its own, with images of every size moved alike."""
    changes = (f"smoothing.certificate_scale={scale}", *changes)
    label = f"learned noise, c = {str(scale).lstrip('0')}"
    return Run(f"c={scale}", label, "learned", config, changes)


def potentials(config):
    """Without votes; on the images that the others are certified on."""
    label = "potentials"
    return Run("potentials", label, "potentials", config, ("data.stride=10",))


def nearest(name, label, *changes):
    return Run(name, label, "nearest", "mnist_nearest", changes, ("certify.py",))


def other_potentials(name, label, *changes):
    """Another network for the digits, on all test images."""
    changes = "model.potentials=1024", "train.num_epochs=12", *changes
    return Run(name, label, "potentials", "mnist_potentials", changes)


WIDE = "model.widths=(64,256,256)", "train.batch_size=256", "train.num_epochs=60"
MNIST_RADII = (0.02, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3)

PLANS = {
    "mnist": Plan(
        (
            published("paper/mnist_fast", ".01"),
            # A light hand where accuracy is what is wanted.
            learned("mnist", 0.037, "train.consistency=0.5", "train.augment=none"),
            learned("mnist", 0.04, "train.consistency=1.0", "train.augment=none"),
            learned("mnist", 0.06),
            learned("mnist", 0.1),
            nearest("nearest", "nearest neighbour in W"),
            nearest(
                "nearest 16",
                "nearest neighbours in W, soft minimum over 16 of a class",
                "certify.neighbours=16",
                "certify.softness=0.08",
            ),
            potentials("mnist_potentials"),
        ),
        MNIST_RADII,
        log_from=5e-3,
    ),
    "mnist_potentials": Plan(
        (
            other_potentials(
                "r=0.1", "MNIST, trained for radius .1", "train.radius=0.1"
            ),
            other_potentials(
                "r=0.3", "MNIST, trained for radius .3", "train.radius=0.3"
            ),
            other_potentials("l1", "MNIST, l1", "model.ground_metric=l1"),
        ),
        (*MNIST_RADII, 0.35),
        log_from=2e-2,
    ),
    "fashion_mnist": Plan(
        (
            published(
                "paper/fashion_mnist_fast", ".002", name="published, sigma=0.002"
            ),
            published(
                "paper/fashion_mnist_fast",
                ".005",
                "smoothing.sigma=0.005",
                name="published, sigma=0.005",
            ),
            learned("fashion_mnist", 0.03, "train.consistency=1.0"),
            learned("fashion_mnist", 0.08),
            potentials("fashion_mnist_potentials"),
        ),
        (0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.25),
        log_from=2e-3,
    ),
    "cifar": Plan(
        (
            published("paper/cifar_fast", "2e-4"),
            published(
                "paper/cifar_fast",
                "2e-4",
                *WIDE,
                name="published, wide",
                label="published, wide network",
            ),
            Run(
                "not coupled",
                "learned, channels independent, c = 2.83e-4",
                "learned",
                "cifar",
                ("smoothing.couple_channels=False",),
            ),
            Run("coupled", "learned, c = 2.83e-4", "learned", "cifar"),
            Run(
                "wide, c=0.000283",
                "learned, wide network, c = 2.83e-4",
                "learned",
                "cifar_wide",
            ),
            Run(
                "wide, c=0.0004",
                "learned, wide network, c = 4e-4",
                "learned",
                "cifar_wide",
                ("smoothing.certificate_scale=4e-4",),
            ),
            potentials("cifar_potentials"),
        ),
        (2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2),
        log_from=1e-4,
    ),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", help="folder of the original files")
    parser.add_argument("--set", choices=PLANS, default="mnist")
    parser.add_argument("--out", type=pathlib.Path, help="default runs, or results")
    parser.add_argument("--only", nargs="*", help='rows to run, e.g. "c=0.06"')
    parser.add_argument(
        "--no-run", action="store_true", help="tables of what was run before"
    )
    parser.add_argument(
        "--keep", action="store_true", help="copy rows to benchmarks/results"
    )
    arguments = parser.parse_args()
    if not (arguments.no_run or arguments.data):
        parser.error("--data=FOLDER is needed to run anything.")
    plan = PLANS[arguments.set]
    out = arguments.out or (RESULTS if arguments.no_run else pathlib.Path("runs"))
    folder = out / f"envelope-{arguments.set}"
    found = []
    for run in plan.runs:
        if arguments.only and run.name not in arguments.only:
            continue
        workdir = folder / run.name
        for script in () if arguments.no_run else run.scripts:
            changes = f"data.dir={arguments.data}", *run.changes
            repository.run(script, run.config, workdir, *changes)
        if arguments.keep:
            kept = RESULTS / folder.name / run.name
            repository.keep(workdir, kept, (report.CERTIFICATES, "metrics.jsonl"))
        found += rows(run, workdir)
    drawn = folder if arguments.out else pathlib.Path("runs") / folder.name
    drawn.mkdir(parents=True, exist_ok=True)
    report.show(table(arguments.set, plan.radii, found), drawn / "table.txt")
    figure(
        drawn / "certified_accuracy.png",
        found,
        plan.log_from,
        RESULTS / WALL.format(arguments.set),
    )
    print(f"Table and figure: {drawn}")


def rows(run, workdir):
    """`(label, kind, certified)` of each row of a run."""
    if run.kind != "published":
        (certified,) = report.read_certified(workdir)
        return [(run.label, run.kind, certified)]
    labels = run.label, f"{run.label}, tight bound"
    bounds = report.read_certified(workdir, ["published", "tight"])
    return [(label, run.kind, found) for label, found in zip(labels, bounds)]


def figure(path, found, log_from, wall):
    """Curves of rows, in the ground metric of the first, and the wall if it is known."""
    metric = found[0][2].metric
    curves = {
        label: certified.curve._replace(colour=KINDS[kind])
        for label, kind, certified in found
        if certified.metric == metric
    }
    if wall.exists():
        walls = read_rows(wall).floats("distance") / 2
        black = plots.COLOURS[-1]
        curves["half way to another class"] = plots.Curve(walls, len(walls), black)
    plots.accuracy_curves(path, curves, metric=metric, log_from=log_from)


def table(title, radii, found):
    """One line a row."""
    lines = Table(title=f"{title}: certified test images", title_justify="left")
    lines.add_column("run")
    for head in ("images", "accuracy", "median r", "mean r"):
        lines.add_column(head, justify="right")
    for radius in radii:
        lines.add_column(f"{radius:g}", justify="right")
    for label, _, certified in found:
        total = certified.summary
        lines.add_row(
            label,
            str(total.images),
            f"{total.accuracy:.3f}",
            f"{total.median_radius:.3g}",
            f"{total.mean_radius:.3g}",
            *(f"{share:.3f}" for share in certified.certified_accuracy(radii)),
        )
    return lines


if __name__ == "__main__":
    main()
