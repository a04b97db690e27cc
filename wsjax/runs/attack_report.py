"""Rows of attacks, and what is made of them: a table, curves, pictures."""

import json
import pathlib
from typing import Any

import numpy as np
from rich.table import Table

from wsjax import plots
from wsjax.attacks import AttackResult, Measurement
from wsjax.runs import manifest, report
from wsjax.runs.rows import Rows, read_rows
from wsjax.transport import exact_flow

TARGETS = ("base", "smoothed")

# `radius` is the nominal radius of the ball at the first success (0 for an image that
# was wrong to begin with, inf for a failure); `correct` whether the answer to the last
# image, asked once more by fresh votes, is right; l1, l2 the exact distances.
COLUMNS = (
    "idx",
    "label",
    "predict",
    "radius",
    "correct",
    "time",
    "success",
    "verified",
    "steps",
    "l1",
    "l2",
    "mass_error",
    "lowest",
    "highest",
)


def chosen_targets(name: str) -> tuple[str, ...]:
    """The classifiers that `config.attack.target` names.

    Raises:
      ValueError: it is none of "base", "smoothed" and "both".
    """
    if name not in (*TARGETS, "both"):
        raise ValueError(f"attack.target={name!r} is not one of {(*TARGETS, 'both')}.")
    return TARGETS if name == "both" else (name,)


def rows_name(target: str) -> str:
    """File of a target's rows."""
    return f"attack_{target}.tsv"


def folder_name(target: str) -> str:
    """Folder of a target's adversarial images, one `.npy` each."""
    return f"adversarial_{target}"


def attack_row(
    index: int,
    label: int,
    result: AttackResult,
    distances: Measurement,
    place: int,
    seconds: float,
) -> dict[str, Any]:
    """One row of `attack_*.tsv`: the image at `place` of an attacked group."""
    return {
        "idx": index,
        "label": label,
        "predict": int(result.answer[place]),
        "radius": float(result.epsilon[place]),
        "correct": int(result.answer[place]) == label,
        "time": round(seconds, 4),
        "success": bool(result.success[place]),
        "verified": bool(result.verified[place]),
        "steps": int(result.steps[place]),
        **{name: float(getattr(distances, name)[place]) for name in COLUMNS[-5:]},
    }


def attack_table(attacked: dict[str, Rows]) -> Table:
    """The summary table: one line per target."""
    table = Table(title="Attacked test images", title_justify="left")
    table.add_column("target")
    heads = (
        "images",
        "wrong before",
        "fooled",
        "verified",
        "median nominal r",
        "median exact l1",
        "median exact l2",
        "median mass error",
        "s/image",
    )
    for head in heads:
        table.add_column(head, justify="right")
    for target, rows in attacked.items():
        total = _aggregate(rows)
        table.add_row(
            target,
            str(total["images"]),
            *(f"{total[key]:.3f}" for key in ("wrong_before", "fooled", "verified")),
            *(f"{total[key]:.4f}" for key in ("nominal", "l1", "l2", "mass_error")),
            f"{total['seconds']:.2f}",
        )
    return table


def _aggregate(rows):
    """Medians are over all images: a failure counts as inf, a wrong one as 0."""
    verified = rows.ints("verified") == 1
    nominal = rows.floats("radius")
    distances = {
        name: np.where(verified, rows.floats(name), np.inf) for name in ("l1", "l2")
    }
    moved = verified & (nominal > 0)
    return {
        "images": len(rows),
        "wrong_before": float(np.mean(nominal == 0)),
        "fooled": float(np.mean(rows.ints("success"))),
        "verified": float(np.mean(verified)),
        "nominal": float(np.median(nominal)),
        "l1": float(np.median(distances["l1"])),
        "l2": float(np.median(distances["l2"])),
        "mass_error": float(
            np.median(rows.floats("mass_error")[moved]) if moved.any() else 0.0
        ),
        "seconds": float(np.mean(rows.floats("time"))),
    }


def show_attacks(workdir: pathlib.Path, examples: Any, pictures: int) -> None:
    """Prints and writes the summary, the curves and the pictures of a run directory.

    Args:
      workdir: where attack.py wrote.
      examples: `experiment.Examples` of the attacked images.
      pictures: how many successes to draw per target.

    Raises:
      FileNotFoundError: nothing was attacked there.
    """
    attacked = {
        target: read_rows(workdir / rows_name(target))
        for target in TARGETS
        if (workdir / rows_name(target)).exists()
    }
    attacked = {target: rows for target, rows in attacked.items() if len(rows)}
    if not attacked:
        raise FileNotFoundError(f"No attacked images in {workdir}; run attack.py.")
    report.show(attack_table(attacked), workdir / "attack_summary.txt")
    totals = {target: _aggregate(rows) for target, rows in attacked.items()}
    (workdir / "attack_summary.json").write_text(json.dumps(totals, indent=2) + "\n")
    metric = manifest.read(workdir)["attack"]["config"]["smoothing"]["ground_metric"]
    certified = {}
    if (workdir / report.CERTIFICATES).exists():
        certified = {f"certified: {r.name}": r.curve for r in report.read_certified(workdir)}
    plots.accuracy_curves(
        workdir / "attacks.png",
        certified,
        {target: _curve(rows, metric) for target, rows in attacked.items()},
        metric=metric,
    )
    for target, rows in attacked.items():
        drawn = _pictures(workdir, target, rows, examples, pictures)
        if drawn:
            plots.adversarial_pictures(workdir / f"adversarial_{target}.png", drawn)
    print(f"Rows, images, summary and figures: {workdir}")


def _curve(rows, metric):
    """Accuracy against the exact distance of the verified adversarial images."""
    distances = np.where(rows.ints("verified") == 1, rows.floats(metric), np.inf)
    right_before = rows.floats("radius") > 0
    return plots.Curve(distances[right_before], len(rows))


def _pictures(workdir, target, rows, examples, count):
    found = []
    places = np.flatnonzero((rows.ints("verified") == 1) & (rows.floats("radius") > 0))
    for place in places[:count]:
        index = rows.ints("idx")[place]
        image, label = examples[index]
        path = workdir / folder_name(target) / f"{index:06d}.npy"
        if not path.exists():
            continue
        moved = np.load(path, allow_pickle=False)
        masses = image.sum((0, 1), dtype=np.float64), moved.sum((0, 1), dtype=np.float64)
        flow = None
        if not ((masses[1] == 0) & (masses[0] > 0)).any():
            # As `measure` does: clipping lost mass, which is put back first.
            restored = moved * (masses[0] / np.where(masses[1] == 0, 1, masses[1]))
            flow = exact_flow(image, restored)
        title = (
            f"{label}, taken for {rows.ints('predict')[place]}\n"
            f"W = {rows.floats('l1')[place]:.3f} (l1), {rows.floats('l2')[place]:.3f} (l2)"
        )
        found.append(plots.Picture(image, moved, flow, title))
    return found
