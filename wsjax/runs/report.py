"""Rows of a run directory, and what is made of them: tables and figures.

  python -m wsjax.runs.report runs/a runs/b --out=comparison.png

prints one table for several runs and overlays their curves.
"""

import argparse
import io
import json
import pathlib
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console
from rich.table import Table

from wsjax import evaluation, plots, smoothing
from wsjax.noise import NoiseLaw
from wsjax.runs import manifest
from wsjax.runs.rows import Rows, format_votes, read_rows

CERTIFICATES = "certificates.tsv"
CERTIFICATE_COLUMNS = (
    "idx",
    "label",
    "predict",
    "radius",
    "correct",
    "time",
    "selected",
    "p_lower",
    "runner_up",
    "count",
    "n",
    "selection_votes",
    "votes",
)


def certificate_row(
    index: int, label: int, certificate: smoothing.Certificate, seconds: float
) -> dict[str, Any]:
    """One row of `certificates.tsv`.

    `predict` is the certified class or -1 for an abstention; `selected` the class
    that won the selection, `count` its votes among the `n` that bound `p_lower`.
    """
    runner_up = certificate.runner_up
    return {
        "idx": index,
        "label": label,
        "predict": certificate.label,
        "radius": certificate.radius,
        "correct": certificate.label == label,
        "time": round(seconds, 4),
        "selected": certificate.selected,
        "p_lower": certificate.p_lower,
        "runner_up": "" if runner_up is None else repr(runner_up),
        "count": int(certificate.votes[certificate.selected]),
        "n": int(certificate.votes.sum()),
        "selection_votes": format_votes(certificate.selection_votes),
        "votes": format_votes(certificate.votes),
    }


class Certified(NamedTuple):
    """A run's rows under one theorem.

    Attributes:
      name: for tables and legends.
      metric: ground metric of the radii.
      summary: `evaluation.Summary`.
      labels: `[N]` true classes.
      certified_labels: `[N]` certified classes or -1.
      radii: `[N]` radii.
    """

    name: str
    metric: str
    summary: evaluation.Summary
    labels: np.ndarray
    certified_labels: np.ndarray
    radii: np.ndarray

    @property
    def curve(self) -> plots.Curve:
        """Certified accuracy against radius."""
        right = (self.certified_labels == self.labels) & (self.radii > 0)
        return plots.Curve(self.radii[right], len(self.labels))


def read_certified(
    workdir: pathlib.Path, certificates: Sequence[str] | None = None
) -> list[Certified]:
    """Evaluates a run's votes under one or more theorems.

    Args:
      workdir: a run directory in which certify.py wrote.
      certificates: names as in `make_smoothing`; default the run's own, and the
        published one beside it where there is one.

    Returns:
      One `Certified` per theorem, in that order.

    Raises:
      FileNotFoundError: nothing was certified there.
      ValueError: no rows yet, or damaged files.
    """
    workdir = pathlib.Path(workdir)
    rows = read_rows(workdir / CERTIFICATES)
    entry = manifest.read(workdir).get("certify")
    if entry is None:
        raise ValueError(f"{workdir} has rows but no entry of certify.py in run.json.")
    config = entry["config"]
    settings, certify = config["smoothing"], config["certify"]
    if certificates is None:
        certificates = [settings["certificate"]]
        if settings["noise"].endswith("laplace"):
            certificates = ["published", "tight"]
    spread = entry.get("spread")
    if spread is None:
        if not smoothing.spread_is_sigma(settings["noise"]):
            raise ValueError(
                f"{workdir} was certified by version 0.1, which did not record the "
                f"kappa of its {settings['noise']} noise; certify it again in another "
                f"--workdir."
            )
        spread = settings["sigma"]
    classes = entry.get("num_classes")
    if classes is None:
        if certify["use_runner_up"] not in (False, "never"):
            raise ValueError(
                f"{workdir} does not record its number of classes, on which bounds on "
                f"the runner-up depend; certify it again in another --workdir."
            )
        classes = _classes_seen(rows)
    return [
        _evaluate(workdir.name, rows, name, settings, certify, spread, classes)
        for name in certificates
    ]


def _classes_seen(rows):
    """Enough classes for all votes and labels; others change no bound on one class."""
    cells = (cell for name in ("votes", "selection_votes") for cell in rows.text(name))
    voted = (int(pair.split(":")[0]) for cell in cells for pair in cell.split(","))
    return 1 + max(1, int(rows.ints("label").max(initial=1)), max(voted, default=1))


def _evaluate(
    name: str, rows: Rows, bound, settings, certify, spread, classes
) -> Certified:
    # The noise is not drawn again; the theorem and the spread on record suffice.
    smooth = smoothing.Smoothing(
        NoiseLaw(),
        smoothing.theorem_about(settings["noise"], bound),
        spread,
        settings["ground_metric"],
    )
    labels = rows.ints("label")
    selection = rows.votes("selection_votes", classes)
    votes = rows.votes("votes", classes)
    alpha = certify["alpha"]
    results = [
        smoothing.certificate_from_votes(
            first, second, smooth, alpha=alpha, use_runner_up=certify["use_runner_up"]
        )
        for first, second in zip(selection, votes)
    ]
    predictions = [smoothing.prediction_from_votes(v, alpha).label for v in votes]
    certified_labels = np.array([result.label for result in results])
    radii = np.array([result.radius for result in results])
    summary = evaluation.summarize(
        labels, certified_labels, radii, np.array(predictions), votes
    )
    return Certified(
        f"{name} ({bound})",
        settings["ground_metric"],
        summary,
        labels,
        certified_labels,
        radii,
    )


def certificate_table(runs: Sequence[Certified]) -> Table:
    """The summary table: one line per run and theorem."""
    largest = max((float(run.radii.max(initial=0.0)) for run in runs), default=0.0)
    at = evaluation.ladder(largest, rungs=5)[1:]
    table = Table(title="Certified test images", title_justify="left")
    table.add_column("run (certificate)", overflow="fold")
    for head in ("images", "accuracy", "abstained", "base acc.", "median r", "mean r"):
        table.add_column(head, justify="right", no_wrap=True)
    for radius in at:
        table.add_column(f"r>={radius:.3g}", justify="right", no_wrap=True)
    for run in runs:
        shares = evaluation.certified_accuracy(
            run.labels, run.certified_labels, run.radii, at
        )
        total = run.summary
        table.add_row(
            run.name,
            str(total.images),
            f"{total.accuracy:.3f}",
            f"{total.abstained:.3f}",
            f"{total.base_accuracy:.3f}",
            _radius(total.median_radius),
            _radius(total.mean_radius),
            *(f"{share:.3f}" for share in shares),
        )
    return table


def _radius(value: float) -> str:
    """Four decimals, or scientific where those would hide it."""
    return f"{value:.4f}" if value <= 0 or value >= 0.001 else f"{value:.2e}"


def show(table: Table, path: pathlib.Path | None = None) -> None:
    """Prints a table, and writes it as text to `path`."""
    text = io.StringIO()
    # A fixed width for the file, so that it does not depend on the terminal.
    Console(file=text, width=140).print(table)
    Console(width=None if sys.stdout.isatty() else 140).print(table)
    if path is not None:
        path.write_text(text.getvalue())


def show_certificates(workdir: pathlib.Path) -> None:
    """Prints and writes the summary and the curve of one run directory."""
    runs = read_certified(workdir)
    show(certificate_table(runs), workdir / "summary.txt")
    as_json = {run.name: run.summary._asdict() for run in runs}
    (workdir / "summary.json").write_text(json.dumps(as_json, indent=2) + "\n")
    figure = workdir / "certified_accuracy.png"
    plots.accuracy_curves(
        figure, {run.name: run.curve for run in runs}, metric=runs[0].metric
    )
    print(f"Rows, summary and figure: {workdir}")


def _main() -> None:
    parser = argparse.ArgumentParser(description="Compares certified runs.")
    parser.add_argument("workdirs", nargs="+", type=pathlib.Path)
    parser.add_argument("--out", type=pathlib.Path, help="figure to write")
    parser.add_argument(
        "--certificate", action="append", choices=smoothing.CERTIFICATES
    )
    arguments = parser.parse_args()
    names = [workdir.name for workdir in arguments.workdirs]
    try:
        runs = [
            # The whole path where last parts alone would collide in the legend.
            run
            if names.count(workdir.name) == 1
            else run._replace(name=f"{workdir}: {run.name}")
            for workdir in arguments.workdirs
            for run in read_certified(workdir, arguments.certificate)
        ]
        metrics = {run.metric for run in runs}
        if len(metrics) > 1:
            raise ValueError(
                f"These runs use different ground metrics {sorted(metrics)}; their "
                f"radii cannot share a table or a figure."
            )
        show(certificate_table(runs))
        if arguments.out:
            curves = {run.name: run.curve for run in runs}
            plots.accuracy_curves(arguments.out, curves, metric=runs[0].metric)
    except (ValueError, OSError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    _main()
