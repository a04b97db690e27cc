"""One theorem for every certificate: scores that are 1-Lipschitz in W, and their lead.

Call `g: images -> R^K` *scores* if each of them is 1-Lipschitz in the Wasserstein
distance: `|g_k(mu) - g_k(mu')| <= W(mu, mu')` for all images of equal mass in every
channel.

**Theorem.** Let `lower_y <= g_y(mu)` and `g_j(mu) <= upper_j` for all classes `j != y`,
and let `L_yj` be a Lipschitz constant of `g_y - g_j`, at most 2. Then `argmax g` answers
`y` at every image `mu'` with

    W(mu, mu')  <  min_j (lower_y - upper_j) / L_yj.

*Proof.* `(g_y - g_j)(mu') >= (g_y - g_j)(mu) - L_yj W(mu, mu') > 0` for each `j`. QED

Everything this package certifies is of this kind, and kinds differ only in how scores
are found: functions of class probabilities under noise, with confidence bounds
(`certificates`); distances to labelled images, exactly (`nearest`). Averages, minima,
maxima, sorting, soft minima and any other map of scores that is 1-Lipschitz in the
maximum norm give scores again, by composition.

Numbers on the host, float64. Results are rounded down: scores may be off by 2^-46 of
their size.
"""

from typing import NamedTuple

import numpy as np

ABSTAIN = -1

# Of each score. Far above the rounding error of the few operations that make one, far
# below any use.
_SLACK = 2.0**-44


class Decision(NamedTuple):
    """What bounds on scores decide about one image.

    Attributes:
      label: the class that is certified, or `ABSTAIN`.
      radius: certified radius, 0.0 with `ABSTAIN`.
      selected: the class that was asked about,
      lower: lower bound on its score,
      upper: upper bound on that of the class that limits the radius,
      lipschitz: and the constant of their difference: what `radius` is made of.
    """

    label: int
    radius: float
    selected: int
    lower: float
    upper: float
    lipschitz: float


def certified_radius(lower, upper, lipschitz=2.0):
    """Half the lead, or the part of it that the Lipschitz constant leaves.

    Args:
      lower: lower bound on the score of a class, or array of them.
      upper: upper bound on the score of another class, or array.
      lipschitz: of the difference of the two scores, positive; 2 always holds.

    Returns:
      float64, or array of them, in the unit of the scores (pixels x fraction of mass),
      rounded down; 0 where there is no lead.

    Raises:
      ValueError: a bound is NaN, or `lipschitz` is not positive.

    Source: the theorem at the head of this module.
    """
    lower, upper, lipschitz = (
        np.asarray(x, np.float64) for x in (lower, upper, lipschitz)
    )
    if np.isnan(lower).any() or np.isnan(upper).any():
        raise ValueError(f"Bounds {lower!r} and {upper!r} on scores hold NaN.")
    if not np.all(lipschitz > 0):
        raise ValueError(f"lipschitz={lipschitz!r} is not positive; 2 always holds.")
    finite = np.isfinite(lower) & np.isfinite(upper)
    a, b = np.where(finite, lower, 0.0), np.where(finite, upper, 0.0)
    lead = a - b - _SLACK * (np.abs(a) + np.abs(b))
    lead = np.where(finite, lead, np.where(lower > upper, np.inf, 0.0))
    return np.maximum(lead / lipschitz, 0.0)[()]


def decide(lower, upper, selected: int | None = None, lipschitz=2.0) -> Decision:
    """Label and radius from bounds on the scores of all classes.

    Args:
      lower: `[K]` lower bounds on the scores of one image.
      upper: `[K]` upper bounds, none below its lower bound.
      selected: the class to certify; default the one with the largest lower bound.
        Bounds that hold with some probability need one that was chosen without them.
      lipschitz: constants of the differences of scores: one for all, or `[K, K]`.

    Returns:
      A `Decision`.

    Raises:
      ValueError: there are not two classes, or bounds are NaN or in disorder.

    Source: the theorem at the head of this module.
    """
    lower, upper = np.asarray(lower, np.float64), np.asarray(upper, np.float64)
    if lower.ndim != 1 or lower.shape != upper.shape or len(lower) < 2:
        raise ValueError(
            f"Bounds on the scores of at least two classes are needed, got shapes "
            f"{lower.shape} and {upper.shape}."
        )
    chosen = None if selected is None else [selected]
    return decide_each(lower[None], upper[None], chosen, lipschitz)[0]


def decide_each(lower, upper, selected=None, lipschitz=2.0) -> list[Decision]:
    """Likewise for many images at once.

    Args:
      lower: `[N, K]`.
      upper: `[N, K]`.
      selected: `[N]` int, or None.
      lipschitz: as `decide`.

    Returns:
      N `Decision`s.

    Raises:
      ValueError: as `decide`.
    """
    if not np.all(lower <= upper):
        raise ValueError(f"Bounds {lower!r} and {upper!r} hold NaN or are in disorder.")
    images, classes = lower.shape
    own = lower.argmax(1) if selected is None else np.asarray(selected)
    each = np.arange(images)
    others = np.arange(classes - 1) + (np.arange(classes - 1) >= own[:, None])
    least, most = lower[each, own], upper[each[:, None], others]
    constants = np.broadcast_to(lipschitz, (classes, classes))[own[:, None], others]
    radii = certified_radius(least[:, None], most, constants)
    leads = (least[:, None] > most).all(1)
    worst = np.where(leads, radii.argmin(1), most.argmax(1))
    labels, radii = (
        np.where(leads, own, ABSTAIN),
        np.where(leads, radii[each, worst], 0),
    )
    rows = labels, radii, own, least, most[each, worst], constants[each, worst]
    return list(map(Decision, *(x.tolist() for x in rows)))


def lead(selected: int, lower: float, upper: float, lipschitz: float = 2.0) -> Decision:
    """Likewise, from a bound on the score of one class and one on those of all others.

    Args:
      selected: the class.
      lower: lower bound on its score.
      upper: upper bound on the others'.
      lipschitz: as in `certified_radius`.

    Returns:
      A `Decision`.

    Raises:
      ValueError: as `certified_radius`.
    """
    radius = float(certified_radius(lower, upper, lipschitz))
    label, radius = (selected, radius) if lower > upper else (ABSTAIN, 0.0)
    numbers = map(float, (lower, upper, lipschitz))
    return Decision(label, radius, selected, *numbers)
