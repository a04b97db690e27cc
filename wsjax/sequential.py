"""Decisions after as few votes as they need, in float64 on the host.

A confidence bound at a fixed number of votes holds for that number. What is here holds
whenever one looks and whenever one stops: evidence against a hypothesis is a betting
account that a true hypothesis keeps from growing. Every rounding errs towards less
evidence, that is, towards abstaining.
"""

import bisect
import functools
import math
from collections.abc import Callable

import numpy as np
from scipy import special

from wsjax import confidence

# Rounding errors of the logarithms below, per vote, are under 1e-14 of a unit.
_SLACK_PER_VOTE = 1e-12

# Of alpha, what the test at the last vote gets. Half costs the betting account log(2).
_LAST_LOOK = 0.5

# Classes next to what the last vote certifies are lost more often than the mean over all,
# by up to 2.3 times where one looks as `looks` says. This much of `beta` is for the mean.
_MEAN_SHARE = 0.4

# Of a sum that is made term by term.
_MOST_TERMS = 100_000

CERTIFIED, UNDECIDED, GIVEN_UP = 1, 0, -1


def log_evidence_above(successes, failures, p0):
    """Log of the evidence against "the success probability is at most `p0`".

    The evidence `E` is the mean of the likelihood ratio `(q / p0)^S ((1-q) / (1-p0))^F`
    over `q` from the Beta(1/2, 1/2) law above `p0`. Valid at any stopping time: if
    `p <= p0`, the factor by which one more vote changes the ratio has mean
    `p q/p0 + (1-p) (1-q)/(1-p0) <= 1`, so `E` is a nonnegative supermartingale that
    starts at 1, and by Ville's inequality it ever reaches `1 / alpha` with probability
    at most `alpha`.

    `E` grows with every success and shrinks with every failure.

    Args:
      successes: integer count, or array of them; votes so far for the class.
      failures: integer count, or array; votes so far for all others.
      p0: probability in (0, 1), or array; the three are broadcast.

    Returns:
      float64, or array of them: `log E`, rounded down; -inf for next to none.

    Raises:
      ValueError: an argument is outside its range.

    Source: docs/theory.md, 3.5; Ville 1939; the mixture of Krichevsky & Trofimov 1981.
    """
    for counts in (successes, failures):
        counts = np.asarray(counts)
        if counts.size and not (
            np.issubdtype(counts.dtype, np.integer) and counts.min() >= 0
        ):
            raise ValueError(f"Counts {counts!r} are not whole numbers of votes.")
    threshold = np.asarray(p0, np.float64)
    if not np.all((threshold > 0) & (threshold < 1)):
        raise ValueError(
            f"p0={p0!r} is not a probability strictly between 0 and 1; "
            f"Smoothing.probability_for(radius) gives that of a radius."
        )
    s, f = np.asarray(successes, np.float64), np.asarray(failures, np.float64)
    # What the posterior leaves above p0 vanishes only where the votes speak for the
    # hypothesis. There it may underflow, to no evidence.
    with np.errstate(divide="ignore"):
        posterior = np.log(special.betaincc(s + 0.5, f + 0.5, threshold))
        prior = np.log(special.betaincc(0.5, 0.5, threshold))
    value = (
        special.betaln(s + 0.5, f + 0.5)
        - special.betaln(0.5, 0.5)
        + (posterior - prior)
        - s * np.log(threshold)
        - f * np.log1p(-threshold)
    )
    value = value - _SLACK_PER_VOTE * (1.0 + s + f)
    return np.where(np.isnan(value), -np.inf, value)[()]


def chance(successes: int, failures: int, further: int, needed: int) -> float:
    """Predictive probability that further votes hold a number of successes.

    If the success probability has the Beta(1/2, 1/2) law before any vote, further
    successes have a beta-binomial law after some votes. No certificate rests on it.

    Args:
      successes: votes so far for the class.
      failures: votes so far for all others.
      further: number of votes to come.
      needed: of them for the class, at least.

    Returns:
      float in [0, 1]; to four digits where there are more than 100,000 terms.
    """
    if needed <= 0:
        return 1.0
    if needed > further:
        return 0.0
    a, b = successes + 0.5, failures + 0.5
    log_first = (
        special.betaln(needed + a, further - needed + b)
        - special.betaln(a, b)
        - special.betaln(needed + 1, further - needed + 1)
        - math.log(further + 1)
    )
    if further - needed > _MOST_TERMS:
        return min(1.0, _sum_over_panels(successes, failures, further, needed))
    # Each probability is a known multiple of the one before.
    k = np.arange(needed, further, dtype=np.float64)
    with np.errstate(over="ignore", under="ignore"):
        ratios = (further - k) / (k + 1) * (k + a) / (further - k - 1 + b)
        total = 1.0 + float(np.sum(np.cumprod(ratios)))
    if not math.isfinite(total):
        return 1.0
    return min(1.0, math.exp(min(0.0, log_first + math.log(total))))


def _sum_over_panels(successes, failures, further, needed):
    """`chance` where terms are too many to add up: the first and the last, and integrals.

    Between them a sum over k is an integral to a relative error of the inverse square
    of the distance from the ends. Panels double in size away from the ends and from the
    mode, so that each is smooth.
    """
    a, b = successes + 0.5, failures + 0.5

    def probability(k):
        return np.exp(
            special.betaln(k + a, further - k + b)
            - special.betaln(a, b)
            - special.betaln(k + 1.0, further - k + 1.0)
            - math.log(further + 1)
        )

    single = np.arange(100.0)
    first, last = needed + 99.5, further - 99.5
    steps = 2.0 ** np.arange(32)
    mode = further * min(max((a - 1) / max(a + b - 2, 1e-9), 0.0), 1.0)
    inner = [first + steps, last - steps, mode + steps, mode - steps, [first, last]]
    cuts = np.unique(np.clip(np.concatenate(inner), first, last))
    nodes, weights = np.polynomial.legendre.leggauss(16)
    half = np.diff(cuts)[:, None] / 2
    within = np.sum(half * weights * probability(cuts[:-1, None] + half * (1 + nodes)))
    ends = probability(needed + single).sum() + probability(further - single).sum()
    return float(within + ends)


def decide(
    successes,
    trials: int,
    p0,
    *,
    n: int,
    alpha: float,
    beta: float | None = None,
):
    """Whether a class is certified to have a probability above `p0`, after some votes.

    Certified: the evidence above `p0` reaches `2 / alpha`, or, at vote `n`, the bound of
    Clopper and Pearson at level `alpha / 2` exceeds `p0`. Both are events of the whole
    sequence of votes, each with probability at most `alpha / 2` if `p <= p0`. So over
    all looks together a false "certified" has probability at most `alpha`, whatever
    the moments at which one looks. The second part costs the first a factor of two in
    evidence, and gives back nearly all that is decided with `n` votes at once.

    Given up: a class with failures to its name whose `chance` to be certified at vote
    `n` is at most `0.4 beta`, or one for which not even unanimous votes from here to `n`
    would do. An abstention claims nothing, so giving up needs no share of `alpha`. If
    probabilities have the law that `chance` assumes, at most a share `0.4 beta` of what
    is given up would have been certified at vote `n`; for the least favourable
    probability, next to what `n` votes certify, the share of all is about `beta`.

    Args:
      successes: integer votes for the class among the first `trials`, or array.
      trials: votes so far, from 0 to `n`.
      p0: probability in (0, 1), or array of them, broadcast against `successes`.
      n: number of votes at which to stop in any case.
      alpha: probability of a false "certified", in (0, 1/2), for each `p0`.
      beta: how often to lose, by giving up, what `n` votes would certify, in (0, 1/2);
        default `alpha`.

    Returns:
      `CERTIFIED` (1), `UNDECIDED` (0, never at `trials = n`) or `GIVEN_UP` (-1), or int
      array.

    Raises:
      ValueError: an argument is outside its range.

    Source: docs/theory.md, 3.5 and 3.6.
    """
    check_levels(alpha, beta)
    counts = np.asarray(successes)
    if int(n) != n or not 0 <= trials <= n or n < 1 or np.any(counts > trials):
        raise ValueError(
            f"{successes!r} successes among {trials} of n={n!r} votes: these are whole "
            f"numbers with 0 <= successes <= trials <= n and n at least 1."
        )
    beta = alpha if beta is None else beta
    certified = _certifies(counts, trials, p0, n, alpha)
    least = _given_up_below(trials, p0, int(n), alpha, beta)
    given_up = (counts < least) | (trials == n)
    return np.where(certified, CERTIFIED, np.where(given_up, GIVEN_UP, UNDECIDED))[()]


def can_certify(p0: float, *, n: int, alpha: float) -> bool:
    """Whether `n` votes that all agree certify a probability above `p0`; see `decide`."""
    return _least_to_certify(p0, n, alpha) <= n


def out_of_reach(
    successes: int,
    trials: int,
    p0: float,
    *,
    n: int,
    alpha: float,
    beta: float,
) -> bool:
    """Whether `n` fresh votes would hardly certify a class, by votes of its selection.

    Args:
      successes: votes for the class.
      trials: votes of the selection.
      p0: as in `decide`, and so the others.
      n: see there.
      alpha: see there.
      beta: see there.

    Returns:
      True where `decide` would give up had it to begin anew.
    """
    failures = trials - successes
    needed = _least_to_certify(p0, n, alpha)
    hopeless = failures and chance(successes, failures, n, needed) <= _MEAN_SHARE * beta
    return bool(hopeless or needed > n)


@functools.partial(np.vectorize, otypes=[int], excluded=[0, 2, 3, 4])
@functools.lru_cache(maxsize=100_000)
def _given_up_below(trials, p0, n, alpha, beta):
    """The least number of successes among some votes at which not to give up."""
    needed = _least_to_certify(p0, n, alpha)
    further = n - trials
    hopeless = max(0, needed - further)
    if hopeless > trials:
        return trials + 1

    def worth_it(successes):
        odds = chance(successes, trials - successes, further, needed - successes)
        return odds > _MEAN_SHARE * beta

    # Without a failure the law that `chance` assumes is no guide: networks often have
    # hardly any.
    return hopeless + bisect.bisect_left(range(hopeless, trials), True, key=worth_it)


@functools.lru_cache(maxsize=10_000)
def _least_to_certify(p0, n, alpha):
    """The least number of successes that certifies at the last vote; `n + 1` if none."""

    # Another success never lowers the evidence, nor the bound.
    def enough(successes):
        return bool(_certifies(successes, n, p0, n, alpha))

    return bisect.bisect_left(range(n + 1), True, key=enough)


def _certifies(successes, trials, p0, n, alpha):
    level = alpha * (1.0 - _LAST_LOOK)
    log_evidence = log_evidence_above(successes, trials - successes, p0)
    certified = log_evidence >= -math.log(level)
    if trials == n:
        bound = confidence.lower_bound(successes, n, alpha * _LAST_LOOK)
        certified = certified | (bound > p0)
    return certified


def check_levels(alpha: float, beta: float | None = None) -> None:
    """Raises ValueError unless both are numbers in (0, 1/2), or `beta` is None."""
    confidence.check_alpha(alpha)
    if beta is not None and not 0 < beta < 0.5:
        raise ValueError(
            f"beta={beta!r} is outside (0, 0.5). beta is the probability of giving up "
            f"what more votes would have certified; None stands for alpha."
        )


def looks(first: int, n: int) -> list[int]:
    """Numbers of votes after which to decide.

    They are 1, 2, 3, 4, 6, 8, 12, 16, 24 and so on times `first`, and `n` at last.

    Args:
      first: votes before the first decision, at least 1.
      n: votes after which to stop in any case, at least 1.

    Returns:
      Increasing list that ends with `n`.

    Raises:
      ValueError: an argument is not a positive whole number.
    """
    for name, value in (("first_look", first), ("n", n)):
        if int(value) != value or value < 1:
            raise ValueError(
                f"{name}={value!r} is not a positive whole number of votes; 100 before "
                f"the first look is usual."
            )
    moments, step = [], 1
    while step * first < n:
        moments.append(int(step * first))
        # By the second-highest bit: a half of a power of two, a third of what follows.
        step += max(1, 2 ** (step.bit_length() - 2))
    return [*moments, int(n)]


def leading_class_p_value(votes, n: int) -> float:
    """P-value of "the leading class is not the most likely one", at any time up to `n`.

    Let class `c` be the most likely one. For another class `k`, the votes for `k` or
    `c` alone are independent, with a probability of at most 1/2 for `k`; by Ville the
    evidence that it is above 1/2 ever reaches `2 (K - 1) / alpha` with probability
    `alpha / (2 (K - 1))`, over all `k` together `alpha / 2`. The leading class has to
    reach this against every other class, `c` included, and the evidence is least
    against the second. At vote `n` the two-sided test of the two leading classes, whose
    errors have probability `alpha / 2` at that level, is another way to be convinced.

    So if one looks as often as one likes and returns the leading class the first time
    that this is at most `alpha`, it is wrong with probability at most `alpha`.

    Args:
      votes: `[K]` integer counts per class, K >= 2.
      n: number of votes at which to stop in any case.

    Returns:
      float in (0, 1].

    Raises:
      ValueError: `votes` has fewer than two classes, none or more than `n` votes, or is
        not integer.

    Source: docs/theory.md, 3.8; Hung & Fithian 2019 for the last vote.
    """
    counts = np.asarray(votes)
    at_last = confidence.top_two_p_value(counts)
    if counts.sum() > n:
        raise ValueError(f"{counts.sum()} votes are more than n={n}.")
    second, first = np.sort(counts)[-2:]
    share = 1.0 - _LAST_LOOK
    log_evidence = float(log_evidence_above(first, second, 0.5))
    log_p = math.log((len(counts) - 1) / share) - log_evidence
    if counts.sum() == n:
        log_p = min(log_p, math.log(at_last / _LAST_LOOK) if at_last > 0 else -math.inf)
    # Rounded up where it would underflow: a p-value is never 0.
    return math.exp(min(0.0, max(log_p, -700.0)))


def choose_n(
    successes: int,
    trials: int,
    *,
    n_max: int,
    radius: Callable,
    max_loss: float,
    alpha: float,
    pilot_alpha: float | None = None,
    n_min: int = 100,
) -> int:
    """The least number of votes that is expected to certify nearly as much as `n_max`.

    The loss of `n` votes is `1 - radius(n) / radius(n_max)`, with both radii those of
    votes in proportion to `p`. Here `p` is the share of the pilot votes, or the worst
    value that the pilot leaves possible. The choice only looks at the pilot: a bound
    from fresh votes of that number is as valid as ever, even where the pilot misleads.

    Args:
      successes: votes for the class among the pilot's.
      trials: pilot votes, at least one.
      n_max: votes to compare with, and the most that is returned.
      radius: `p_lower -> radius`, for arrays; 0 where nothing is certified.
      max_loss: largest relative loss of radius, in [0, 1).
      alpha: level of the bound that the fresh votes will give, in (0, 1/2).
      pilot_alpha: level at which each end of the pilot's interval for `p` may be wrong;
        None takes the pilot's share for `p`.
      n_min: least number of votes to return.

    Returns:
      Number of fresh votes: `n_max` divided by a power of 2^(1/4), rounded up.

    Raises:
      ValueError: an argument is outside its range.

    Source: the idea of a pilot is that of Chen et al. 2022, "Input-specific robustness
    certification for randomized smoothing".
    """
    confidence.check_alpha(alpha)
    if not 0 <= max_loss < 1:
        raise ValueError(
            f"max_loss={max_loss!r} is outside [0, 1): it is the share of the radius "
            f"to give away, e.g. 0.05."
        )
    if pilot_alpha is None:
        low = high = successes / trials
        confidence.lower_bound(successes, trials, alpha)  # Checks the counts.
    else:
        low = float(confidence.lower_bound(successes, trials, pilot_alpha))
        high = float(confidence.upper_bound(successes, trials, pilot_alpha))
    # Losses are largest next to 1/2, where radii end, and next to 1, where bounds do.
    possible = np.unique(np.linspace(low, high, 33))

    def radii(n):
        votes = np.floor(possible * n + 1e-9).astype(np.int64)
        return radius(confidence.lower_bound(votes, n, alpha))

    goal = (1.0 - max_loss) * radii(n_max)
    chosen, step = int(n_max), 1
    while chosen > n_min:
        n = max(n_min, math.ceil(n_max / 2 ** (step / 4)))
        if np.any(radii(n) < goal):
            break
        chosen, step = n, step + 1
    return chosen
