"""Rows of a run directory, and what is made of them: tables and figures."""

import io
import json
import pathlib
import re
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from rich.console import Console
from rich.table import Table

from wsjax import certificates, evaluation, files, plots, scores
from wsjax.certifiers import registry
from wsjax.certifiers.base import Certificate, Certifier, Outcomes, outside, refuse
from wsjax.runs import manifest
from wsjax.runs.rows import Rows, RowsError

CERTIFICATES = "certificates.tsv"

# What rows of all kinds begin with. `predict` is the certified class or -1 for an
# abstention, `selected` the class that was asked about. The radius was computed from
# `lower`, `upper` and `lipschitz`: `scores.certified_radius`.
SHARED = {
    "idx": "int",
    "label": "int",
    "predict": "int",
    "radius": "float",
    "correct": "int",
    "time": "float",
    "selected": "int",
}
_BOUNDS = {"lower": "float", "upper": "float", "lipschitz": "float"}

# Of each file of rows: its entry in `run.json`, and the name of its summary.
_NAMES = {
    CERTIFICATES: ("certify", "summary"),
    "verdicts.tsv": ("certify at_radii", "verdicts"),
}
ROWS_FILES = tuple(_NAMES)


def columns(kind: type[Certifier] | Certifier) -> tuple[str, ...]:
    """Names of the columns of a kind's rows, in order."""
    return (*SHARED, *_BOUNDS, *kind.columns)


def certificate_row(
    index: int, label: int, certificate: Certificate, certifier: Certifier, seconds
) -> dict[str, Any]:
    """One row: what all kinds tell, and what this kind does."""
    return {
        "idx": index,
        "label": label,
        "predict": certificate.label,
        "radius": certificate.radius,
        "correct": certificate.label == label,
        "time": round(seconds, 4),
        **{name: getattr(certificate, name) for name in ("selected", *_BOUNDS)},
        **certifier.cells(certificate),
    }


class Certified(NamedTuple):
    """A run's rows under one theorem.

    Attributes:
      name: for tables and legends.
      metric: ground metric of the radii.
      summary: `evaluation.Summary`.
      indices: `[N]` places in the data set.
      labels: `[N]` true classes.
      found: `certifiers.base.Outcomes`.
      radii: radii that the run asked about, or empty.
    """

    name: str
    metric: str
    summary: evaluation.Summary
    indices: np.ndarray
    labels: np.ndarray
    found: Outcomes
    radii: tuple[float, ...]

    @property
    def curve(self) -> plots.Curve:
        """Certified accuracy against radius."""
        return self.curve_of(self.indices)

    def curve_of(self, indices: np.ndarray) -> plots.Curve:
        """The same of some images, by their places in the data set."""
        among = np.isin(self.indices, indices)
        right = (self.found.labels == self.labels) & (self.found.radii > 0)
        return plots.Curve(self.found.radii[among & right], int(among.sum()))

    def certified_accuracy(self, at: ArrayLike) -> np.ndarray:
        """Share of images that are right with at least each of these radii."""
        return evaluation.certified_accuracy(
            self.labels, self.found.labels, self.found.radii, np.asarray(at)
        )


def read_certified(
    workdir: pathlib.Path,
    theorems: Sequence[str] | None = None,
    rows_file: str = CERTIFICATES,
) -> list[Certified]:
    """Evaluates the rows of a run.

    Args:
      workdir: a run directory in which `wsjax certify` wrote.
      theorems: names ("tight", "published") to keep, in this order, where
        rows serve several; default all.
      rows_file: which rows.

    Returns:
      One `Certified` per theorem.

    Raises:
      FileNotFoundError: nothing was certified there.
      ValueError: no rows yet, damaged files, or no such theorem about these rows.
    """
    workdir = pathlib.Path(workdir)
    entry, rows = manifest.read_rows(workdir, entry_name(rows_file), rows_file)
    recorded = entry.get("certifier")
    if recorded is None:
        recorded = _of_version_0_2(workdir, entry, rows_file)
    elif "may_differ" not in entry:
        raise ValueError(
            f"{workdir} was certified by a version of 0.3 in development, whose rows do "
            f"not say what they belong to; certify it again in another --workdir."
        )
    classes = entry.get("num_classes")
    if classes is None:
        if recorded.get("use_runner_up", "never") != "never":
            raise ValueError(
                f"{workdir} does not record its number of classes, on which bounds on "
                f"the runner-up depend; certify it again in another --workdir."
            )
        classes = _classes_seen(rows)
    kind = registry.get_kind(recorded.get("kind", ""))
    try:
        bounds = _BOUNDS if "lower" in rows.columns else {}
        arrays = rows.arrays({**SHARED, **bounds, **kind.columns}, classes)
        _check(arrays, classes, entry.get("num_images"))
        found = {each.theorem: each for each in kind.outcomes(arrays, recorded)}
    except ValueError as error:
        raise RowsError(
            f"{workdir / rows_file} is damaged: {error} Restore it, or delete these rows "
            f"and certify these images again."
        ) from error
    for name in theorems or ():
        if name not in found:
            raise ValueError(
                f"{workdir} has rows under {list(found)}, not {name!r}: a published "
                f"bound exists for Laplace noise only."
            )
    return [
        Certified(
            f"{workdir.name} ({name})" if name else workdir.name,
            recorded["ground_metric"],
            evaluation.summarize(arrays["label"], found[name]),
            arrays["idx"],
            arrays["label"],
            found[name],
            tuple(recorded.get("radii", ())),
        )
        for name in theorems or found
    ]


def entry_name(rows_file: str) -> str:
    """Name in `run.json` of what wrote these rows."""
    return _NAMES[rows_file][0]


def _check(arrays, classes, images):
    """Refuses rows that no run with so many classes and images has written."""
    label, predict, selected = (arrays[x] for x in ("label", "predict", "selected"))
    abstained, radius = predict == scores.ABSTAIN, arrays["radius"]
    refuse(
        arrays,
        {
            "The index {idx} is that of no image": outside(
                arrays["idx"], 0, images or np.inf
            ),
            "The label of image {idx} is no class": outside(label, 0, classes),
            "The class selected for image {idx} is none": outside(selected, 0, classes),
            "The class of image {idx} is not the selected one": ~abstained
            & (predict != selected),
            "The radius of image {idx} is none": ~(radius >= 0)
            | (abstained & (radius != 0)),
            "The column correct is wrong about image {idx}": arrays["correct"]
            != (predict == label),
            "The time of image {idx} is none": outside(arrays["time"], 0, np.inf),
        },
    )
    if "lower" in arrays:
        bounds = (np.where(np.isnan(arrays[b]), 0.0, arrays[b]) for b in _BOUNDS)
        most = scores.certified_radius(*bounds)
        # A radius among others that were asked about may be less.
        wrong = ~abstained & ~(radius <= most * (1 + 1e-9))
        refuse(
            arrays, {"The radius of image {idx} is not what its bounds certify": wrong}
        )


def _of_version_0_2(workdir, entry, rows_file):
    """What a certifier would have recorded, from a config of before there were any."""
    try:
        return _from_config(workdir, entry, rows_file)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"The entry of `wsjax certify` in {workdir / 'run.json'} is damaged: it lacks "
            f"what rows of version 0.2 need ({error}). Restore the file."
        ) from error


def _from_config(workdir, entry, rows_file):
    settings, certify = entry["config"]["smoothing"], entry["config"]["certify"]
    named = settings["noise"] in ("flow_laplace", "flow_uniform", "pixel_laplace")
    spread = entry.get("spread") or (settings["sigma"] if named else None)
    if spread is None:
        raise ValueError(
            f"{workdir} was certified by version 0.1, which did not record the kappa of "
            f"its {settings['noise']} noise; certify it again in another --workdir."
        )
    suffix = "_published" if settings["certificate"] == "published" else ""
    theorem = settings["noise"] + suffix if named else "gaussian"
    found = getattr(certificates, theorem)(spread, settings["ground_metric"])
    way = certify.get("use_runner_up", "never")
    return {
        "kind": "votes" if rows_file == CERTIFICATES else "at_radii",
        "ground_metric": settings["ground_metric"],
        "scores": vars(found),
        "alpha": certify["alpha"],
        "use_runner_up": {True: "always", False: "never"}.get(way, way),
        "radii": certify.get("at_radii", ()),
        "n0": certify["n0"],
        "n": certify["n"],
    }


def _classes_seen(rows: Rows) -> int:
    """Enough classes for all votes and labels; others change no bound on one class."""
    cells = (cell for name in ("votes", "selection_votes") for cell in rows.text(name))
    named = [x for cell in cells for x in re.findall(r"(?:^|,)([0-9]{1,9}):", cell)]
    return 1 + max(1, int(rows.ints("label").max(initial=1)), *map(int, named))


def certificate_table(runs: Sequence[Certified]) -> Table:
    """The summary table: one line per run and theorem."""
    largest = max((float(run.found.radii.max(initial=0.0)) for run in runs), default=0)
    asked = [run.radii for run in runs if run.radii]
    at = asked[0] if asked else evaluation.ladder(largest, rungs=5)[1:]
    table = Table(title="Certified test images", title_justify="left")
    table.add_column("run (theorem)", overflow="fold")
    heads = ("images", "accuracy", "abstained", "base acc.", "median r", "mean r")
    votes = any(run.summary.mean_passes is not None for run in runs)
    fewer = any(run.summary.times_fewer is not None for run in runs)
    for head in (*heads, *["votes"] * votes, *["times fewer"] * fewer):
        table.add_column(head, justify="right", no_wrap=True)
    for radius in at:
        table.add_column(f"r>={radius:.3g}", justify="right", no_wrap=True)
    for run in runs:
        total = run.summary
        table.add_row(
            run.name,
            str(total.images),
            f"{total.accuracy:.3f}",
            f"{total.abstained:.3f}",
            _maybe(total.base_accuracy, ".3f"),
            _radius(total.median_radius),
            _radius(total.mean_radius),
            *[_maybe(total.mean_passes, ".0f")] * votes,
            *[_maybe(total.times_fewer, ".1f")] * fewer,
            *(f"{share:.3f}" for share in run.certified_accuracy(at)),
        )
    return table


def _maybe(value, form):
    return "-" if value is None else format(value, form)


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
        files.write_whole(path, text.getvalue())


def show_certificates(workdir: pathlib.Path, rows_file: str = CERTIFICATES) -> None:
    """Prints and writes the summary and the curve of one run directory."""
    runs = read_certified(workdir, rows_file=rows_file)
    _, name = _NAMES[rows_file]
    show(certificate_table(runs), workdir / f"{name}.txt")
    as_json = {run.name: _as_json(run) for run in runs}
    files.write_whole(workdir / f"{name}.json", json.dumps(as_json, indent=2) + "\n")
    suffix = "" if rows_file == CERTIFICATES else f"_{name}"
    plots.accuracy_curves(
        workdir / f"certified_accuracy{suffix}.png",
        {run.name: run.curve for run in runs},
        metric=runs[0].metric,
    )
    print(f"Rows, summary and figure: {workdir}")


def _as_json(run):
    at = run.radii or evaluation.ladder(float(run.found.radii.max(initial=0.0)))[1:]
    shares = zip(at, run.certified_accuracy(at))
    return {
        **run.summary._asdict(),
        "certified_accuracy": {f"{radius:g}": float(share) for radius, share in shares},
    }
