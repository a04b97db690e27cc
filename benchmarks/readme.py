"""Tables of the README, from rows in this repository.

  python benchmarks/readme.py

writes what stands between `<!-- rows: NAME -->` and `<!-- end of rows -->` there: of
released/runs (benchmarks/cards.py) and of benchmarks/results (benchmarks/envelope.py
--keep). With --check it writes nothing and says which tables are not as their rows are.
"""

import argparse
import re
import sys

import envelope
import numpy as np
from cards import row, rows_of
from cards import short as share
from repository import ROOT

from wsjax.runs import report

README = ROOT / "README.md"
# Rows that are in released/ too; the others of their kind differ in settings.
RELEASED = {
    "mnist": ("c=0.037", "c=0.1", "potentials"),
    "fashion_mnist": ("c=0.08", "potentials"),
    "cifar": ("coupled", "wide, c=0.0004", "potentials"),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="compare, write nothing")
    arguments = parser.parse_args()
    text = README.read_text()
    now = written(text)
    if not arguments.check:
        README.write_text(now)
        print(f"Written: {README}")
    elif now != text:
        sys.exit(f"{README} is not what rows say: run python benchmarks/readme.py")


def written(text):
    """A text with its tables made anew.

    Raises:
      KeyError: it asks for a table that there is none of.
    """

    def table(found):
        return f"{found[1]}\n{TABLES[found[2]]()}\n{found[3]}"

    marked = r"(<!-- rows: (\S+) -->)\n.*?\n(<!-- end of rows -->)"
    return re.sub(marked, table, text, flags=re.DOTALL)


def certain():
    """Networks that need no votes, on all test images."""
    name = "mnist_potentials"
    lines = [
        ("**MNIST**", of_card(name)),
        *((label, certified) for _, label, certified in rows_of_plan(name)),
        ("**Fashion-MNIST**", of_card("fashion_mnist_potentials")),
    ]
    return markdown(lines, envelope.PLANS[name].radii, means=False)


def certain_cifar():
    """The same of CIFAR-10."""
    radii = (*envelope.PLANS["cifar"].radii, 2e-2)
    lines = [("**CIFAR-10**", of_card("cifar10_potentials"))]
    return markdown(lines, radii, means=False)


def of_card(name):
    """Rows of a released classifier."""
    (found,) = report.read_certified(rows_of(name))
    return found


def rows_of_plan(name):
    """`(name of the run, label, certified)` of each row of a plan."""
    for run in envelope.PLANS[name].runs:
        folder = envelope.RESULTS / f"envelope-{name}" / run.name
        for label, _, certified in envelope.rows(run, folder):
            yield run.name, label, certified


def of_plan(name, best=True):
    """All rows of a plan; the last line has the best of each column, if wanted."""
    radii = envelope.PLANS[name].radii
    lines = [
        (f"**{label}**" if run in RELEASED[name] else label, certified)
        for run, label, certified in rows_of_plan(name)
    ]
    table = markdown(lines, radii)
    if not best:
        return table
    shares = np.max([found.certified_accuracy(radii) for _, found in lines], 0)
    cells = ["best of these", "", "", "", *map(share, shares)]
    return f"{table}\n{row(cells)}"


def markdown(lines, radii, means=True):
    """A table of `(label, certified)`."""
    heads = ["", "accuracy", "median r", *(["mean r"] if means else [])]
    heads += [short(f"{radius:g}") for radius in radii]
    text = [row(heads), "|" + "---|" * len(heads)]
    for label, found in lines:
        total = found.summary
        sizes = [total.median_radius, *([total.mean_radius] if means else [])]
        cells = [label, share(total.accuracy), *(size(each, radii) for each in sizes)]
        text.append(row([*cells, *map(share, found.certified_accuracy(radii))]))
    return "\n".join(text)


def size(radius, radii):
    """A radius, with as many digits as the table's are apart."""
    return short(f"{radius:.4f}") if min(radii) > 1e-3 else f"{radius:.2e}"


def short(number):
    """Without the zero before the point."""
    return re.sub(r"^0(?=\.)", "", number)


TABLES = {
    "certain": certain,
    "certain-cifar": certain_cifar,
    "mnist": lambda: of_plan("mnist"),
    "fashion_mnist": lambda: of_plan("fashion_mnist"),
    "cifar": lambda: of_plan("cifar", best=False),
}


if __name__ == "__main__":
    main()
