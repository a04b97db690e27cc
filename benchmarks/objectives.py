"""Training objectives against each other at equal compute.

  python benchmarks/objectives.py --data=FOLDER --set=mnist

trains configs/SET.py once for each objective, at one certificate scale and with as
many passes of images through the network, forward and back, for all (an adversarial step
costs a pass of its own), and certifies test images. Finished parts are not run again. With
--keep rows go to benchmarks/results, and without --data they are read from there.
"""

import argparse
import pathlib
from typing import NamedTuple

import repository
from envelope import RESULTS, SCRIPTS, Run, table

from wsjax.runs import report


class Setting(NamedTuple):
    """What is compared on one data set.

    Attributes:
      weights: of consistency.
      changes: "KEY=VALUE" in the config of all.
      radii: of the table.
    """

    weights: tuple[float, ...]
    changes: tuple[str, ...]
    radii: tuple[float, ...]


SETTINGS = {
    "mnist": Setting((1.0, 5.0), (), (0.02, 0.05, 0.1, 0.15, 0.2)),
    # A quarter of the products of the released network: it is trained many times.
    "cifar": Setting(
        (2.0,),
        ("model.widths=(16,64,64)", "certify.n0=100", "certify.n=1000"),
        (1e-4, 2e-4, 4e-4, 6e-4),
    ),
}


def plan(name, passes):
    """Runs of equal cost: epochs x copies x passes per copy is the same."""
    setting = SETTINGS[name]

    def run(label, objective, copies, each, *more):
        changes = (
            f"train.objective={objective}",
            f"train.copies={copies}",
            f"train.num_epochs={passes // (copies * each)}",
            *setting.changes,
            *more,
        )
        folder = label.replace(", ", "-").replace(" ", "-")
        return Run(folder, label, "learned", name, changes)

    return (
        run("cross-entropy, 1 copy", "cross_entropy", 1, 1),
        run("cross-entropy, 2 copies", "cross_entropy", 2, 1),
        *(
            run(
                f"consistency {weight:g}, 2 copies",
                "consistency",
                2,
                1,
                f"train.consistency={weight}",
            )
            for weight in setting.weights
        ),
        run("adversarial, 2 copies", "smooth_adversarial", 2, 2),
        # A step against the copies, them, and those on the way to it.
        run("mixed, 2 copies", "smooth_mix", 2, 3),
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", help="folder of the original files")
    parser.add_argument("--set", choices=SETTINGS, default="mnist")
    parser.add_argument("--out", type=pathlib.Path, help="default runs, or results")
    parser.add_argument("--passes", type=int, default=20, help="per training image")
    parser.add_argument("--stride", type=int, default=10, help="every so many images")
    parser.add_argument("--only", nargs="*", help="runs to make, e.g. mixed-2-copies")
    parser.add_argument("--keep", action="store_true", help="to benchmarks/results")
    arguments = parser.parse_args()
    out = arguments.out or (pathlib.Path("runs") if arguments.data else RESULTS)
    folder = out / f"objectives-{arguments.set}-{arguments.passes}"
    found = []
    for run in plan(arguments.set, arguments.passes):
        if arguments.only and run.name not in arguments.only:
            continue
        workdir = folder / run.name
        here = f"data.dir={arguments.data}", f"data.stride={arguments.stride}"
        for script in SCRIPTS if arguments.data else ():
            repository.run(script, run.config, workdir, *run.changes, *here)
        if not workdir.exists():
            continue
        if arguments.keep:
            kept = RESULTS / folder.name / run.name
            repository.keep(workdir, kept, (report.CERTIFICATES, "metrics.jsonl"))
        (certified, *_) = report.read_certified(workdir)
        found.append((run.label, run.kind, certified))
    title = f"{arguments.set}, {arguments.passes} passes"
    report.show(table(title, SETTINGS[arguments.set].radii, found))


if __name__ == "__main__":
    main()
