"""From rows to tables and curves: what a run shows, in numbers.

Labels enter here, for the first time since training. NumPy only.
"""

from typing import NamedTuple

import numpy as np

from wsjax.smoothing import ABSTAIN


class Summary(NamedTuple):
    """Aggregates over certified test images.

    Attributes:
      images: number of images.
      accuracy: share whose prediction (two-sided test on the estimation votes, level
        alpha) is right.
      abstained: share for which that test abstains.
      base_accuracy: share of single noisy copies that the base classifier gets
        right.
      median_radius: median certified radius; a wrong certified class counts as -1
        and an abstention as 0, as in the published tables.
      mean_radius: mean over all images of the radius where the class is right, and
        0 elsewhere.
      certified: share that is right at radius above 0.
    """

    images: int
    accuracy: float
    abstained: float
    base_accuracy: float
    median_radius: float
    mean_radius: float
    certified: float


def summarize(
    labels: np.ndarray,
    certified_labels: np.ndarray,
    radii: np.ndarray,
    predictions: np.ndarray,
    votes: np.ndarray,
) -> Summary:
    """Aggregates a run.

    Args:
      labels: `[N]` true classes.
      certified_labels: `[N]` classes `certify` returned, or `ABSTAIN`.
      radii: `[N]` their radii.
      predictions: `[N]` classes `predict` returned, or `ABSTAIN`.
      votes: `[N, K]` estimation votes.

    Returns:
      A `Summary`.

    Raises:
      ValueError: there are no images.
    """
    if len(labels) == 0:
        raise ValueError("There are no rows to summarize yet.")
    scores = published_scores(labels, certified_labels, radii)
    right = certified_labels == labels
    own_votes = votes[np.arange(len(labels)), labels]
    return Summary(
        images=len(labels),
        accuracy=float(np.mean(predictions == labels)),
        abstained=float(np.mean(predictions == ABSTAIN)),
        base_accuracy=float(np.mean(own_votes / votes.sum(axis=1))),
        median_radius=float(np.median(scores)),
        mean_radius=float(np.mean(np.where(right, radii, 0.0))),
        certified=float(np.mean(right & (radii > 0))),
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
