"""Training objectives against each other at equal compute, on MNIST.

  python benchmarks/objectives.py --data=FOLDER

trains configs/mnist.py once for each objective, at one certificate scale and with as
many passes of images through the network, forward and back, for all (an adversarial step
costs a pass of its own), and certifies every tenth test image. Finished parts are not
run again.
"""

import argparse
import pathlib

from envelope import Run, execute, table

from wsjax.runs import report

PASSES = 20  # Forward and backward, per training image.


def plan(passes):
    """Runs of equal cost: epochs x copies x passes per copy is the same."""

    def run(name, objective, copies, each, *more):
        return Run(
            name,
            "mnist",
            (
                f"train.objective={objective}",
                f"train.copies={copies}",
                f"train.num_epochs={passes // (copies * each)}",
                *more,
            ),
        )

    return (
        run("cross-entropy, 1 copy", "cross_entropy", 1, 1),
        run("cross-entropy, 2 copies", "cross_entropy", 2, 1),
        run("consistency 1, 2 copies", "consistency", 2, 1, "train.consistency=1.0"),
        run("consistency 5, 2 copies", "consistency", 2, 1, "train.consistency=5.0"),
        run("adversarial, 2 copies", "smooth_adversarial", 2, 2),
        # A step against the copies, them, and those on the way to it.
        run("mixed, 2 copies", "smooth_mix", 2, 3),
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="folder of the original files")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("runs"))
    parser.add_argument("--passes", type=int, default=PASSES)
    parser.add_argument("--stride", type=int, default=10, help="every so many images")
    arguments = parser.parse_args()
    folder = arguments.out / f"objectives-{arguments.passes}"
    certified = {}
    for run in plan(arguments.passes):
        workdir = folder / run.name.replace(", ", "-").replace(" ", "-")
        run = run._replace(changes=(*run.changes, f"data.stride={arguments.stride}"))
        for script in ("train.py", "certify.py"):
            execute(script, run, workdir, arguments.data)
        certified[run.name], *_ = report.read_certified(workdir)
    radii = (0.02, 0.05, 0.1, 0.15, 0.2)
    lines = table(f"MNIST, {arguments.passes} passes", radii, certified, envelope=False)
    report.show(lines, folder / "table.txt")
    print(f"Table: {folder / 'table.txt'}")


if __name__ == "__main__":
    main()
