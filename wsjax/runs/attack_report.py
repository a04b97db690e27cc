"""Rows of attacks, and what is made of them: a table, curves, pictures."""

import functools
import io
import json
import logging
import pathlib
from typing import Any, NamedTuple

import jax
import numpy as np
from rich.table import Table

from wsjax import files, plots
from wsjax.attacks import AttackResult, measure, repair
from wsjax.attacks.registry import METHODS, Method
from wsjax.attacks.victims import ABSTAIN, Victim
from wsjax.certifiers.base import outside, refuse
from wsjax.runs import config as configs
from wsjax.runs import manifest, report
from wsjax.runs.rows import Rows, RowsError
from wsjax.transport import MASS_TOLERANCE, exact_flow

TARGETS = ("base", "smoothed")
_log = logging.getLogger("wsjax")


class Attacked(NamedTuple):
    """One attack on one classifier.

    Attributes:
      method: name of the attack.
      target: "base" or "smoothed".
    """

    method: str
    target: str

    @property
    def title(self) -> str:
        """Name in tables and figures."""
        return f"{self.method}, {self.target}"

    @property
    def rows(self) -> str:
        """File of the rows."""
        return f"attack_{self.method}_{self.target}.tsv"

    @property
    def entry(self) -> str:
        """Name in `run.json`."""
        return f"attack {self.method}"

    def image(self, workdir: pathlib.Path, index: int) -> pathlib.Path:
        """File of one adversarial image of a run directory."""
        return workdir / self.folder / f"{index:06d}.npy"

    @property
    def folder(self) -> str:
        """Folder of the adversarial images, one `.npy` each."""
        return f"adversarial_{self.method}_{self.target}"


class Judgement(NamedTuple):
    """What N attacked images are worth; NumPy arrays `[N]`, as in `COLUMNS`."""

    predict: np.ndarray
    l1: np.ndarray
    l2: np.ndarray
    mass_error: np.ndarray
    lowest: np.ndarray
    highest: np.ndarray
    raw_l1: np.ndarray
    raw_l2: np.ndarray


# `radius` is nominal: what the attack says of itself (0 for an image that was wrong to
# begin with, inf for a failure), and `success` its own word. The rest is judged after
# it, at the nearest valid image: pixels in [0, 1], mass as in the original. `predict`
# is the answer there, by fresh votes; `verified` says that it is a wrong class, not an
# abstention; `l1` and `l2` are the exact distances. What had to be repaired: mass lost
# or gained, lowest and highest pixel, and the distances before (of the image rescaled
# to its mass, whatever its range).
COLUMNS = (
    *("idx", "label", "predict", "radius", "correct", "time"),
    *("success", "verified", "steps"),
    *Judgement._fields[1:],
)


_KINDS = {
    **dict.fromkeys(("idx", "label", "predict", "correct"), "int"),
    **dict.fromkeys(("success", "verified", "steps"), "int"),
    **dict.fromkeys(("radius", "time", *Judgement._fields[1:]), "float"),
}


def read(workdir: pathlib.Path, case: Attacked) -> Rows:
    """Rows of one attack on one classifier.

    Raises:
      FileNotFoundError: it has not been run there.
      ValueError: the rows are damaged, contradict themselves, or belong to another run.
    """
    entry, rows = manifest.read_rows(workdir, case.entry, case.rows)
    most = [entry.get(name) or np.inf for name in ("num_classes", "num_images")]
    try:
        _check(rows.arrays(_KINDS, 0), *most)
    except ValueError as error:
        raise RowsError(
            f"{workdir / case.rows} is damaged: {error} Restore it, or delete these "
            f"rows and attack these images again."
        ) from error
    return rows


def _check(rows, classes, images):
    """Refuses rows that no attack has written."""
    label, predict, success = (rows[x] for x in ("label", "predict", "success"))
    fooled = (success == 1) & (predict != label) & (predict != ABSTAIN)
    lengths = ("time", "l1", "l2", "raw_l1", "raw_l2", "mass_error")
    refuse(
        rows,
        {
            "The index {idx} is that of no image": outside(rows["idx"], 0, images),
            "The label of image {idx} is no class": outside(label, 0, classes),
            "The answer to image {idx} is no class": outside(predict, ABSTAIN, classes),
            "The column correct is wrong about image {idx}": rows["correct"]
            != (predict == label),
            "The success at image {idx} is neither 0 nor 1": outside(success, 0, 2),
            "The column verified is wrong about image {idx}": rows["verified"]
            != fooled,
            "The steps at image {idx} are none": rows["steps"] < 0,
            "The radius of image {idx} is none": ~(rows["radius"] >= 0),
            **{
                f"The {name} of image {{idx}} is below 0": rows[name] < 0
                for name in lengths
            },
        },
    )


def save_image(path: pathlib.Path, image: np.ndarray) -> None:
    """Writes an adversarial image, whole or not at all."""
    content = io.BytesIO()
    np.save(content, image, allow_pickle=False)
    files.write_whole(path, content.getvalue())


def chosen_targets(name: str, method: Method) -> tuple[str, ...]:
    """The classifiers that `config.attack.target` names.

    Raises:
      ValueError: it is none of "base", "smoothed" and "both", or the method attacks
        plain classifiers only.
    """
    if name not in (*TARGETS, "both"):
        raise ValueError(f"attack.target={name!r} is not one of {(*TARGETS, 'both')}.")
    if name == "smoothed" and not method.smoothed:
        able = [other for other, method in METHODS.items() if method.smoothed]
        raise ValueError(
            f"attack.target='smoothed' needs an attack on smoothed classifiers: set "
            f"attack.method to one of {able}, or attack.target to 'base'."
        )
    if name == "both":
        return TARGETS if method.smoothed else ("base",)
    return (name,)


def only_plain(targets: tuple[str, ...]) -> tuple[str, ...]:
    """Those for a network that certifies itself, and has no smoothed version.

    Raises:
      ValueError: only that was asked for.
    """
    if "base" not in targets:
        raise ValueError(
            "attack.target='smoothed' means nothing to a network that certifies "
            "itself; use 'base'."
        )
    return ("base",)


def recorded(config: configs.Config) -> dict[str, Any]:
    """The part of a resolved config that the rows of its attack depend on."""
    attack, method = config.plain("attack")["attack"], config.attack.method
    kept = {key: attack[key] for key in ("n", "alpha", method)}
    return {**config.plain("data", "model", "smoothing"), "attack": kept}


def judge(
    images: np.ndarray,
    adversarial: np.ndarray,
    victim: Victim,
    *,
    keys: jax.Array,
) -> Judgement:
    """Repairs attacked images, measures them and asks once more.

    Args:
      images: `[N, H, W, C]`, the originals.
      adversarial: what the attack returned.
      victim: who was attacked.
      keys: `[N]`, never used before.
    """
    raw = measure(images, adversarial)
    valid = np.array(repair.nearest_valid(images, adversarial))
    # What is valid already stays as it is, to the last bit; negative pixels have been
    # refused.
    fine = (raw.mass_error <= MASS_TOLERANCE) & (raw.highest <= 1)
    valid[fine] = adversarial[fine]
    l1, l2 = raw.l1.copy(), raw.l2.copy()
    if not fine.all():
        repaired = measure(images[~fine], valid[~fine])
        l1[~fine], l2[~fine] = repaired.l1, repaired.l2
    predict = victim.ask(keys, valid.astype(np.float32), batch_size=len(valid))
    return Judgement(
        predict, l1, l2, raw.mass_error, raw.lowest, raw.highest, raw.l1, raw.l2
    )


def attack_row(
    index: int,
    label: int,
    result: AttackResult,
    judged: Judgement,
    place: int,
    seconds: float,
) -> dict[str, Any]:
    """One row of `attack_*.tsv`: the image at `place` of an attacked group."""
    predict = int(judged.predict[place])
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
        **{name: float(getattr(judged, name)[place]) for name in judged._fields[1:]},
    }


def read_all(workdir: pathlib.Path) -> dict[Attacked, Rows]:
    """Rows of every attack that ran in a directory; raises ValueError as `read`."""
    cases = [Attacked(method, target) for target in TARGETS for method in METHODS]
    found = {
        case: read(workdir, case) for case in cases if (workdir / case.rows).exists()
    }
    return {case: rows for case, rows in found.items() if len(rows)}


def attack_table(attacked: dict[Attacked, Rows]) -> Table:
    """The summary table: one line per attack and classifier."""
    table = Table(title="Attacked test images", title_justify="left")
    table.add_column("attack, classifier")
    heads = (
        "images",
        "wrong before",
        "fooled",
        "verified",
        "abstained",
        "median nominal r",
        "median exact l1",
        "median exact l2",
        "mass error",
        "highest pixel",
        "s/image",
    )
    for head in heads:
        table.add_column(head, justify="right")
    shares = ("wrong_before", "fooled", "verified", "abstained")
    for case, rows in attacked.items():
        total = _aggregate(rows)
        table.add_row(
            case.title,
            str(total["images"]),
            *(f"{total[key]:.3f}" for key in shares),
            *(f"{total[key]:.4g}" for key in ("nominal", "l1", "l2")),
            *(f"{total[key]:.2g}" for key in ("mass_error", "highest")),
            f"{total['seconds']:.3g}",
        )
    return table


def _aggregate(rows):
    """Medians are over all images: a failure counts as inf, a wrong one as 0."""
    verified = rows.ints("verified") == 1
    nominal = rows.floats("radius")
    moved = (rows.ints("success") == 1) & (nominal > 0)
    return {
        "images": len(rows),
        "wrong_before": float(np.mean(nominal == 0)),
        "fooled": float(np.mean(rows.ints("success"))),
        "verified": float(np.mean(verified)),
        "abstained": float(np.mean(rows.ints("predict") == ABSTAIN)),
        "nominal": float(np.median(nominal)),
        **{
            name: float(np.median(np.where(verified, rows.floats(name), np.inf)))
            for name in ("l1", "l2")
        },
        "mass_error": float(
            np.median(rows.floats("mass_error")[moved]) if moved.any() else 0.0
        ),
        "highest": float(rows.floats("highest").max()),
        "seconds": float(np.mean(rows.floats("time"))),
    }


def show_attacks(workdir: pathlib.Path, examples: Any, pictures: int) -> None:
    """Prints and writes the summary, the curves and the pictures of a run directory.

    Args:
      workdir: where `wsjax attack` wrote.
      examples: `Examples` of the attacked images.
      pictures: how many successes to draw per attack and classifier.

    Raises:
      FileNotFoundError: nothing was attacked there.
    """
    attacked = read_all(workdir)
    if not attacked:
        raise FileNotFoundError(
            f"No attacked images in {workdir}; run `wsjax attack` with this --workdir."
        )
    report.show(attack_table(attacked), workdir / "attack_summary.txt")
    totals = {case.title: _aggregate(rows) for case, rows in attacked.items()}
    text = json.dumps(totals, indent=2) + "\n"
    files.write_whole(workdir / "attack_summary.json", text)
    entry = manifest.read(workdir)[next(iter(attacked)).entry]
    alone = "ground_metric" in (entry.get("certifier") or {})  # Certifies itself.
    metric = (entry["certifier"] if alone else entry["config"]["smoothing"])[
        "ground_metric"
    ]
    certified = {}
    # Curves are of the images that all of them know.
    common = _common([rows.ints("idx") for rows in attacked.values()])
    if (workdir / report.CERTIFICATES).exists():
        runs = report.read_certified(workdir)
        both = np.intersect1d(common, runs[0].indices)
        if len(both):
            common = both
            certified = {f"certified: {r.name}": r.curve_of(both) for r in runs}
        for case, rows in attacked.items():
            if case.target == "smoothed" or alone:
                _report_crossings(workdir, case, rows, metric, alone)
    plots.accuracy_curves(
        workdir / "attacks.png",
        certified,
        {case.title: curve(rows, metric, common) for case, rows in attacked.items()},
        metric=metric,
    )
    for case, rows in attacked.items():
        drawn = _pictures(workdir, case, rows, examples, pictures)
        if drawn:
            plots.adversarial_pictures(workdir / f"{case.folder}.png", drawn)
    print(f"Rows, images, summary and figures: {workdir}")


class Gaps(NamedTuple):
    """What attack and certificate say about the images that have both, `[M]` each.

    Attributes:
      indices: int, places in the data set.
      radii: certified for the class that the image left.
      distances: exact, to the verified adversarial image.
    """

    indices: np.ndarray
    radii: np.ndarray
    distances: np.ndarray

    @property
    def inside(self) -> list[int]:
        """Images that were fooled closer than their certified radius."""
        return self.indices[self.distances < self.radii].tolist()

    @property
    def ratios(self) -> np.ndarray:
        """Of the attacked distance to the certified radius, where that is positive."""
        certified = self.radii > 0
        return self.distances[certified] / self.radii[certified]


def gaps(attacked: Rows, certificates: Rows, metric: str) -> Gaps:
    """Images with both a verified attack and a certificate of their own class.

    Args:
      attacked: rows of `wsjax attack` on the certified classifier.
      certificates: rows of `wsjax certify` on the same classifier.
      metric: ground metric of the radii.

    Returns:
      `Gaps`. A certificate from votes fails with probability alpha, and more images
      inside than that are a mistake somewhere; of other certificates one is.
    """
    right = certificates.ints("predict") == certificates.ints("label")
    radii = dict(
        zip(certificates.ints("idx")[right], certificates.floats("radius")[right])
    )
    fooled = attacked.ints("verified") == 1
    indices, distances = attacked.ints("idx")[fooled], attacked.floats(metric)[fooled]
    both = np.array([index in radii for index in indices], bool)
    indices, distances = indices[both], distances[both]
    return Gaps(indices, np.array([radii[i] for i in indices], float), distances)


def _report_crossings(workdir, case, rows, metric, certain):
    certificates = manifest.read_rows(workdir, "certify", report.CERTIFICATES)[1]
    found = gaps(rows, certificates, metric)
    inside, compared = found.inside, len(found.indices)
    if inside:
        excuse = (
            "Not one may be" if certain else "A share of alpha may be; more are not"
        )
        print(
            f"WARNING: {len(inside)} of {compared} images were fooled by {case.method} "
            f"inside their certified radius: {inside[:20]}. {excuse}."
        )
    else:
        print(
            f"No success of {case.method} inside a certified radius ({compared} images "
            f"compared)."
        )
    if len(found.ratios):
        print(
            f"Attacked distance over certified radius: median "
            f"{np.median(found.ratios):.3g}, least {found.ratios.min():.3g}."
        )
    lines = ["idx\tradius\tdistance\n"]
    lines += [f"{i}\t{r!r}\t{d!r}\n" for i, r, d in zip(*map(np.ndarray.tolist, found))]
    name = f"gaps_{case.method}_{case.target}.tsv"
    files.write_whole(workdir / name, "".join(lines))


def _common(sets):
    """Numbers that each of these arrays has; if there are none, all that any has."""
    found = functools.reduce(np.intersect1d, sets)
    return found if len(found) else functools.reduce(np.union1d, sets)


def curve(rows: Rows, metric: str, indices: Any) -> plots.Curve:
    """Accuracy under attack, against the exact distance of verified successes.

    Args:
      rows: of `wsjax attack`.
      metric: ground metric of the distances.
      indices: places in the data set of the images that count.
    """
    distances = np.where(rows.ints("verified") == 1, rows.floats(metric), np.inf)
    among = np.isin(rows.ints("idx"), indices)
    right_before = rows.floats("radius") > 0
    return plots.Curve(distances[among & right_before], int(among.sum()))


def _pictures(workdir, case, rows, examples, count):
    found = []
    places = np.flatnonzero((rows.ints("verified") == 1) & (rows.floats("radius") > 0))
    for place in places[:count]:
        index = rows.ints("idx")[place]
        image, label = examples[index]
        path = case.image(workdir, index)
        if not path.exists():
            continue
        try:
            moved = np.load(path, allow_pickle=False)
            if moved.shape != image.shape or not np.isfinite(moved).all():
                raise ValueError(f"an array of shape {moved.shape}")
        except (ValueError, EOFError, TypeError) as error:
            _log.warning("%s is no attacked image (%s); not drawn.", path, error)
            continue
        valid = np.asarray(repair.nearest_valid(image[None], moved[None]))[0]
        title = (
            f"{label}, taken for {rows.ints('predict')[place]}\n"
            f"W = {rows.floats('l1')[place]:.3g} (l1), {rows.floats('l2')[place]:.3g} (l2)"
        )
        found.append(plots.AttackedImage(image, moved, exact_flow(image, valid), title))
    return found
