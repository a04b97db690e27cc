"""From counted votes to bounds on probabilities, in float64 on the host.

The device counts in integers; everything after that happens here, because the same
formulas in float32 claim too much. Each bound errs on the safe side of its rounding.
"""

import numbers

import numpy as np
from scipy import special

# The quantile function is not directed, and for some arguments accurate to six digits
# only. This much is given away at once, and more until the defining tail agrees.
_SLACK = 1e-12


def check_alpha(alpha: float) -> None:
    """Raises ValueError unless `alpha` is a number in (0, 1/2)."""
    if not (isinstance(alpha, numbers.Real) and 0 < alpha < 0.5):
        raise ValueError(
            f"alpha={alpha!r} is outside (0, 0.5). alpha is the probability that the "
            f"statement is wrong: 95% confidence is alpha=0.05, not 0.95."
        )


def _check_counts(successes, trials) -> None:
    if np.ndim(trials) or int(trials) != trials or trials < 1:
        raise ValueError(
            f"n={trials!r} is not a positive whole number of votes; at least one "
            f"vote is needed to bound a probability."
        )
    counts = np.asarray(successes)
    if counts.size and not (
        np.issubdtype(counts.dtype, np.integer)
        and counts.min() >= 0
        and counts.max() <= trials
    ):
        raise ValueError(
            f"Counts {successes!r} are not whole numbers between 0 and n={trials}."
        )


def lower_bound(successes, trials: int, alpha: float):
    """One-sided lower confidence bound on a success probability.

    If `successes ~ Binomial(trials, p)`, the bound exceeds `p` with probability at
    most `alpha`, for every `p`.

    Args:
      successes: integer count, or array of them, in [0, trials].
      trials: number of independent votes, at least one.
      alpha: failure probability, in (0, 1/2).

    Returns:
      float64, or array of them, in [0, 1); rounded down.

    Raises:
      ValueError: an argument is outside its range.

    Source: Clopper & Pearson 1934: the `alpha` quantile of
    Beta(successes, trials - successes + 1), and 0 for no success.
    """
    check_alpha(alpha)
    _check_counts(successes, trials)
    k = np.asarray(successes, np.float64)
    a, b = np.maximum(k, 1.0), trials - np.maximum(k, 1.0) + 1.0
    bound = np.maximum(special.betaincinv(a, b, alpha) - _SLACK, 0.0)
    step = _SLACK
    # At a valid bound, `successes` or more have probability at most alpha.
    while (wrong := special.betainc(a, b, bound) > alpha).any():
        bound = np.where(wrong, np.maximum(bound - step, 0.0), bound)
        step *= 2
    return np.where(k > 0, bound, 0.0)[()]


def upper_bound(successes, trials: int, alpha: float):
    """One-sided upper confidence bound; the mirror image of `lower_bound`.

    Args:
      successes: integer count, or array of them, in [0, trials].
      trials: number of independent votes, at least one.
      alpha: probability that the bound falls below the truth, in (0, 1/2).

    Returns:
      float64, or array of them, in (0, 1]; rounded up.

    Raises:
      ValueError: an argument is outside its range.

    Source: Clopper & Pearson 1934.
    """
    check_alpha(alpha)
    _check_counts(successes, trials)
    k = np.asarray(successes, np.float64)
    # Not 1 - lower_bound(failures): for rare classes that would lose digits.
    a, b = np.minimum(k, trials - 1.0) + 1.0, np.maximum(trials - k, 1.0)
    bound = np.minimum(special.betaincinv(a, b, 1.0 - alpha) + _SLACK, 1.0)
    step = _SLACK
    # At a valid bound, `successes` or fewer have probability at most alpha.
    while (wrong := special.betaincc(a, b, bound) > alpha).any():
        bound = np.where(wrong, np.minimum(bound + step, 1.0), bound)
        step *= 2
    return np.where(k < trials, bound, 1.0)[()]


def top_two_p_value(votes) -> float:
    """Two-sided p-value of "the two leading classes are equally likely".

    Args:
      votes: `[K]` integer counts per class, at least one vote in total, K >= 2.

    Returns:
      float in (0, 1]. Where it is at most `alpha`, the leading class is the most
      likely one with confidence 1 - alpha.

    Raises:
      ValueError: `votes` has fewer than two classes, no vote, or is not integer.

    Source: Hung & Fithian 2019, "Rank verification for exponential families", as
    used by Cohen, Rosenfeld & Kolter 2019, Section 3.2.2, and by the paper's code.
    """
    counts = np.asarray(votes)
    if counts.ndim != 1 or counts.size < 2:
        raise ValueError(f"Votes of at least two classes are needed, got {counts!r}.")
    _check_counts(counts, int(counts.sum()))
    second, first = np.sort(counts)[-2:]
    # Under equality the smaller count is Binomial(first + second, 1/2), which is
    # symmetric, so both tails are alike.
    return float(min(1.0, 2.0 * special.bdtr(float(second), int(first + second), 0.5)))
