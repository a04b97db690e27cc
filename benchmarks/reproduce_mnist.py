"""Reproduces the paper's MNIST table from scratch: seven rows, train and certify.

  python benchmarks/reproduce_mnist.py --data=FOLDER --recipe=fast

trains with configs/paper/mnist_fast.py (20 epochs; `--recipe=paper`:
configs/paper/mnist.py, 200 epochs), certifies every tenth test image, and prints the
published bound and the tight bound on the same votes beside reference values. Finished
parts are not run again, so it can be stopped and repeated at will. Two cores need some 10
minutes a row with the fast recipe.
"""

import argparse
import pathlib

import repository
from rich.table import Table

from wsjax.runs import report

CONFIGS = {"fast": "paper/mnist_fast", "paper": "paper/mnist"}

# Accuracy in percent, median radius (l2), base accuracy under noise in percent:
# measured with the classifiers that the paper's authors released.
REFERENCE = {
    ("flow_laplace", 0.005): (98.70, 0.0101, 98.01),
    ("flow_laplace", 0.01): (98.00, 0.0134, 95.09),
    ("flow_laplace", 0.02): (94.04, 0.0103, 80.69),
    ("flow_laplace", 0.05): (72.8, 0.0, 44.3),
    ("pixel_laplace", 0.005): (98.91, 0.0061, 97.45),
    ("pixel_laplace", 0.01): (97.37, 0.0054, 89.39),
    ("pixel_laplace", 0.02): (90.77, 0.0032, 66.58),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="folder of the MNIST idx files")
    parser.add_argument("--recipe", choices=CONFIGS, default="fast")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("runs"))
    parser.add_argument(
        "--only", nargs="*", help="rows to run, e.g. flow_laplace:0.01; default all"
    )
    parser.add_argument(
        "--override", nargs="*", default=[], help="e.g. train.share_noise=True"
    )
    arguments = parser.parse_args()
    table = Table(title=f"MNIST, recipe {arguments.recipe}; ours / reference")
    table.add_column("noise, sigma")
    for head in ("accuracy %", "base accuracy %", "median r", "tight median r"):
        table.add_column(head, justify="right")
    for (noise, sigma), (accuracy, median, base) in REFERENCE.items():
        if arguments.only and f"{noise}:{sigma}" not in arguments.only:
            continue
        workdir = arguments.out / f"mnist-{arguments.recipe}" / f"{noise}-{sigma}"
        for script in ("train.py", "certify.py"):
            repository.run(
                script,
                CONFIGS[arguments.recipe],
                workdir,
                f"data.dir={arguments.data}",
                f"smoothing.noise={noise}",
                f"smoothing.sigma={sigma}",
                *arguments.override,
            )
        published, tight = report.read_certified(workdir, ("published", "tight"))
        ours = published.summary
        table.add_row(
            f"{noise} {sigma}",
            f"{100 * ours.accuracy:.2f} / {accuracy}",
            f"{100 * ours.base_accuracy:.2f} / {base}",
            f"{ours.median_radius:.4f} / {median}",
            f"{tight.summary.median_radius:.4f}",
        )
    out = arguments.out / f"mnist-{arguments.recipe}" / "table.txt"
    report.show(table, out)
    print(f"Table: {out}")


if __name__ == "__main__":
    main()
