"""Rows of attacks, and what is made of them: a table, curves, pictures."""

import json
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from rich.table import Table

from wsjax import plots, smoothing
from wsjax.attacks import AttackResult, Measurement, SinkhornAttack, restore_mass
from wsjax.runs import manifest, report
from wsjax.runs.rows import Rows, read_rows
from wsjax.smoothing import ABSTAIN
from wsjax.transport import exact_flow
from wsjax.votes import as_argument

TARGETS = ("base", "smoothed")

# `radius` is nominal: the ball at the first success, by the rule of the attack (0 for an
# image that was wrong to begin with, inf for a failure). `predict` is the answer at the
# last image after the mass that clipping took is restored, by fresh votes; `l1` and `l2`
# are the exact distances of that image. `success` is the attack's own word, `verified`
# adds that `predict` is a wrong class, not an abstention.
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


def make_ask(
    classify: Callable[[jax.Array], jax.Array],
    smooth: smoothing.Smoothing | None,
    settings: SinkhornAttack,
) -> Callable[[jax.Array, np.ndarray | None], int | None]:
    """The question put to a classifier once its attack is over.

    Args:
      classify: base classifier.
      smooth: noise of the smoothed classifier, or None for the plain one.
      settings: number of votes and level.

    Returns:
      `(key, image or None) -> class, ABSTAIN, or None for no image`.
    """
    logits = jax.jit(lambda classifier, images: classifier(images))

    def ask(key, image):
        if image is None:
            return None
        image = np.asarray(image, np.float32)
        if smooth is None:
            return int(np.argmax(logits(as_argument(classify), image[None])[0]))
        return smoothing.predict(
            key, image, classify, smooth, n=settings.n, alpha=settings.alpha
        ).label

    return ask


def attack_row(
    index: int,
    label: int,
    answer: int | None,
    result: AttackResult,
    distances: Measurement,
    place: int,
    seconds: float,
) -> dict[str, Any]:
    """One row of `attack_*.tsv`: the image at `place` of an attacked group."""
    predict = ABSTAIN if answer is None else answer
    success = bool(result.success[place])
    return {
        "idx": index,
        "label": label,
        "predict": predict,
        "radius": float(result.epsilon[place]),
        "correct": predict == label,
        "time": round(seconds, 4),
        "success": success,
        "verified": success and predict not in (label, ABSTAIN),
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
        certified = {
            f"certified: {r.name}": r.curve for r in report.read_certified(workdir)
        }
        if "smoothed" in attacked:
            _report_crossings(workdir, attacked["smoothed"], metric)
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


def crossings(attacked: Rows, certificates: Rows, metric: str) -> tuple[list[int], int]:
    """Images that were fooled closer than their certified radius.

    Args:
      attacked: rows of attack.py on the smoothed classifier.
      certificates: rows of certify.py on the same classifier.
      metric: ground metric of the radii.

    Returns:
      `(images, compared)`: positions of the images whose verified adversarial image
      has an exact distance below the radius certified for the class it left, and the
      number of images with both a verified attack and a certificate. A certificate
      fails with probability alpha; more crossings than that are a mistake somewhere.
    """
    radii = {
        int(index): float(radius)
        for index, predict, label, radius in zip(
            certificates.ints("idx"),
            certificates.ints("predict"),
            certificates.ints("label"),
            certificates.floats("radius"),
        )
        if predict == label
    }
    both = [
        (int(index), float(distance))
        for index, verified, distance in zip(
            attacked.ints("idx"), attacked.ints("verified"), attacked.floats(metric)
        )
        if verified and int(index) in radii
    ]
    inside = [index for index, distance in both if distance < radii[index]]
    return inside, len(both)


def _report_crossings(workdir, rows, metric):
    inside, compared = crossings(rows, read_rows(workdir / report.CERTIFICATES), metric)
    if inside:
        print(
            f"WARNING: {len(inside)} of {compared} images were fooled inside their "
            f"certified radius: {inside[:20]}. A share of alpha may be; more are not."
        )
    else:
        print(f"No success inside a certified radius ({compared} images compared).")


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
        restored = restore_mass(image, moved)
        flow = None if restored is None else exact_flow(image, restored)
        title = (
            f"{label}, taken for {rows.ints('predict')[place]}\n"
            f"W = {rows.floats('l1')[place]:.3f} (l1), {rows.floats('l2')[place]:.3f} (l2)"
        )
        found.append(plots.Picture(image, moved, flow, title))
    return found
