"""From rows to tables and curves: what a run shows, in numbers.

Labels enter here, for the first time since training. NumPy only.
"""

from typing import NamedTuple

import numpy as np

from wsjax.certifiers.base import Outcomes
from wsjax.scores import ABSTAIN


class Summary(NamedTuple):
    """Aggregates over certified test images.

    Attributes:
      images: number of images.
      accuracy: share whose prediction is right (with votes: by a two-sided test on
        those that bound, level alpha).
      abstained: share without a prediction.
      base_accuracy: share of single noisy copies that the base classifier gets
        right; None without votes.
      median_radius: median certified radius; a wrong certified class counts as -1
        and an abstention as 0, as in the published tables.
      mean_radius: mean over all images of the radius where the class is right, and
        0 elsewhere.
      certified: share that is right at radius above 0.
      mean_passes: mean number of times the classifier was asked about an image, with
      median_passes: its median; None where nothing was counted.
      passes_at_once: how many it would be without looking in between, and
      times_fewer: that over `mean_passes`; None where it makes no difference.
    """

    images: int
    accuracy: float
    abstained: float
    base_accuracy: float | None
    median_radius: float
    mean_radius: float
    certified: float
    mean_passes: float | None = None
    median_passes: float | None = None
    passes_at_once: int | None = None
    times_fewer: float | None = None


def summarize(labels: np.ndarray, found: Outcomes) -> Summary:
    """Aggregates a run.

    Args:
      labels: `[N]` true classes.
      found: what the run found out.

    Returns:
      A `Summary`.

    Raises:
      ValueError: there are no images, or a label is no class.
    """
    labels = np.asarray(labels)
    if len(labels) == 0:
        raise ValueError("There are no rows to summarize yet.")
    classes = np.inf if found.votes is None else found.votes.shape[1]
    wrong = np.flatnonzero((labels < 0) | (labels >= classes))
    if wrong.size:
        raise ValueError(
            f"Image {wrong[0]} has the label {labels[wrong[0]]}, which is no class: they "
            f"are numbered from 0{'' if found.votes is None else f' to {classes - 1}'} "
            f"({wrong.size} such labels)."
        )
    scores = published_scores(labels, found.labels, found.radii)
    right = found.labels == labels
    base = mean = median = times = None
    if found.votes is not None:
        own_votes = found.votes[np.arange(len(labels)), labels]
        base = float(np.mean(own_votes / found.votes.sum(axis=1)))
    if found.passes is not None:
        mean, median = float(np.mean(found.passes)), float(np.median(found.passes))
        if found.most_passes is not None:
            times = found.most_passes / mean
    return Summary(
        images=len(labels),
        accuracy=float(np.mean(found.predictions == labels)),
        abstained=float(np.mean(found.predictions == ABSTAIN)),
        base_accuracy=base,
        median_radius=float(np.median(scores)),
        mean_radius=float(np.mean(np.where(right, found.radii, 0.0))),
        certified=float(np.mean(right & (found.radii > 0))),
        mean_passes=mean,
        median_passes=median,
        passes_at_once=found.most_passes,
        times_fewer=times,
    )


def published_scores(
    labels: np.ndarray, certified_labels: np.ndarray, radii: np.ndarray
) -> np.ndarray:
    """`[N]` radii in which a wrong class counts as -1 and an abstention as 0."""
    wrong = (certified_labels != labels) & (certified_labels != ABSTAIN)
    return np.where(wrong, -1.0, np.where(certified_labels == labels, radii, 0.0))


def certified_accuracy(
    labels: np.ndarray,
    certified_labels: np.ndarray,
    radii: np.ndarray,
    at: np.ndarray,
) -> np.ndarray:
    """Share of images that are right with a radius of at least each of `at`.

    Args:
      labels: `[N]` true classes.
      certified_labels: `[N]` certified classes or `ABSTAIN`.
      radii: `[N]` their radii.
      at: `[R]` radii; at 0 an image counts if it is certified at all.

    Returns:
      `[R]` float64.
    """
    right = (certified_labels == labels) & (radii > 0)
    return np.mean(right & (radii >= np.asarray(at)[:, None]), axis=1)


def ladder(largest: float, rungs: int = 6) -> np.ndarray:
    """Round radii from 0 up to about `largest`, evenly spaced, to report at."""
    if not largest > 0:
        return np.zeros(1)
    step = largest / rungs
    magnitude = 10.0 ** np.floor(np.log10(step))
    step = (
        next(m for m in (1, 2, 5, 10) if m * magnitude >= step * (1 - 1e-9)) * magnitude
    )
    return step * np.arange(int(np.floor(largest / step + 1e-9)) + 1)
