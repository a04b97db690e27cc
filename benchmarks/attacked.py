"""Certified accuracy of released classifiers, and accuracy under attack: one figure.

  python benchmarks/attacked.py --set=mnist --out=docs/figures/mnist_attacks.png

draws both from the rows in released/runs (benchmarks/cards.py), on the images that were
attacked: solid lines are certified, dashed ones what the flow attack left.
"""

import argparse
import pathlib

import cards
import numpy as np
from envelope import KINDS

from wsjax import plots
from wsjax.runs import attack_report, released, report


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--set", choices=cards.WHOLE, default="mnist")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("attacks.png"))
    arguments = parser.parse_args()
    certified, attacked = {}, {}
    others = iter(plots.COLOURS[1::3])  # Of learned noise, several to a data set.
    for card in released.cards():
        name, metric = card["name"], card["ground_metric"]
        if card["data"] != arguments.set or not card["attack"]:
            continue
        folder = cards.rows_of(name)
        case = attack_report.Attacked("flow", cards.target_of(name))
        rows = attack_report.read(folder, case)
        (run,) = report.read_certified(folder)
        common = np.intersect1d(rows.ints("idx"), run.indices)
        alone = name.endswith("_potentials")
        colour = KINDS["potentials"] if alone else next(others)
        curve = run.curve_of(common)
        certified[f"certified: {name}"] = curve._replace(colour=colour)
        curve = attack_report.curve(rows, metric, common)
        attacked[name] = curve._replace(colour=colour)
    plots.accuracy_curves(arguments.out, certified, attacked, metric=metric)
    print(f"Figure: {arguments.out}")


if __name__ == "__main__":
    main()
