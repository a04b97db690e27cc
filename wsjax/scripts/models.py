"""Released classifiers: names, what they certify, and how to load one.

wsjax models
wsjax models mnist_potentials
"""

import argparse
import json
import pathlib
import sys

from rich.table import Table

from wsjax.console.output import errors_in_a_sentence
from wsjax.runs import released, report


def start() -> None:
    """Runs it with the command line's arguments."""
    parser = argparse.ArgumentParser(
        pathlib.Path(sys.argv[0]).name,
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="*", help="whose cards to print")
    with errors_in_a_sentence(ValueError, OSError):
        given = parser.parse_args()
        for name in given.names:
            path = released.find(name)
            if not (card := released.card_of(path)):
                raise FileNotFoundError(f"There is no card beside {path}.")
            print(json.dumps(card, indent=2))
        if not given.names:
            report.show(table())
            print('In Python: wsjax.load_model("NAME").certify(image)')


def table() -> Table:
    """One line for each card."""
    found = Table(title="Released classifiers", title_justify="left")
    for head in ("name", "kind", "data", "ground metric"):
        found.add_column(head)
    for head in ("images", "accuracy", "median r", "attacked at"):
        found.add_column(head, justify="right")
    for card in released.cards():
        attack = card["attack"]
        found.add_row(
            *(card[key] for key in ("name", "kind", "data", "ground_metric")),
            f"{card['images']:,}",
            f"{card['accuracy']:.3f}",
            f"{card['median_radius']:.3g}",
            f"{attack['median_distance']:.3g}" if attack else "",
        )
    return found
