"""Verdicts with as few votes as they need: fixed radii, predictions, chosen numbers.

Where the question is "is this image certified at radius r?", most images answer after a
few hundred votes. Draws are numbered, so what is drawn is always a beginning of the
draws that a fixed number of votes would take, whichever size the portions have.
"""

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from wsjax import confidence, sequential, votes
from wsjax.smoothing import (
    ABSTAIN,
    Certificate,
    Prediction,
    Smoothing,
    certificate_from_votes,
    check_image,
    check_protocol,
    fetch,
)

FIRST_LOOK = 100

# Images at work at a time: while the host reads one's votes, the devices have others'.
_IN_FLIGHT = 3


class Verdict(NamedTuple):
    """What `certify_at` found out about one image.

    Attributes:
      label: the certified class, or `ABSTAIN`.
      radius: the largest of the radii asked for at which it is certified; 0.0 with
        `ABSTAIN`.
      selected: the class that won the selection, whether or not it was certified.
      selection_votes: `[K]` int, at most `n0`.
      votes: `[K]` int, at most `n`; fresh draws.
    """

    label: int
    radius: float
    selected: int
    selection_votes: np.ndarray
    votes: np.ndarray


def check_radii(radii: Sequence[float], smoothing: Smoothing) -> np.ndarray:
    """What the probability of a class has to exceed, for each of some radii.

    Args:
      radii: positive and increasing, in the smoothing's ground metric.
      smoothing: noise law and theorem.

    Returns:
      `[R]` float64, not decreasing.

    Raises:
      ValueError: there is no radius, they are not positive and increasing, or one is
        out of reach of the noise.
    """
    if len(radii) == 0 or any(b <= a for a, b in itertools.pairwise(radii)):
        raise ValueError(
            f"radii={tuple(radii)!r} is not an increasing list of at least one radius; "
            f"sort it, and name each radius once."
        )
    thresholds = np.array([smoothing.probability_for(radius) for radius in radii])
    # Rounding up one threshold above the next would be no reason for disorder.
    return np.maximum.accumulate(thresholds)


def certify_at(
    key: jax.Array,
    image: jax.Array,
    classify: Callable[[jax.Array], jax.Array],
    smoothing: Smoothing,
    *,
    radii: Sequence[float],
    n0: int,
    n: int,
    alpha: float,
    beta: float | None = None,
    first_look: int = FIRST_LOOK,
    **counting,
) -> Verdict:
    """Certifies one image at the largest of some radii, with as few votes as that takes.

    With probability at least 1 - alpha over the draws, the smoothed classifier returns
    `label` at every image with the same mass in every channel whose Wasserstein
    distance is less than `radius`. Votes are looked at after `first_look`, twice that,
    and so on (`sequential.looks`), and `n` at the latest. Radii are tested from the
    smallest upwards, each at level `alpha` and only if all below it were certified. A
    wrong verdict then needs the first radius that is too large to be certified, whose
    own test does so with probability at most `alpha`: several radii cost no more than
    one.

    Args:
      key: used up by this call; the draws are the first ones of `certify`'s.
      image: `[H, W, C]` float, nonnegative, not all zero.
      classify: base classifier `[B, H, W, C] -> [B, K]` logits.
      smoothing: noise law and theorem.
      radii: increasing, in the smoothing's ground metric.
      n0: most votes that select the class. Any choice is valid, so this stops as soon
        as one class leads with p-value `alpha`, or none is likely enough for any radius.
      n: most fresh votes that decide about it.
      alpha: probability that this one verdict claims too much.
      beta: share of what is given up that `n` votes would have certified, as far as can
        be foreseen (`sequential.decide`); default `alpha`. Costs no soundness.
      first_look: votes before the first look.
      **counting: `block_size`, `devices`, `backend` of `votes.count_votes`. No block is
        larger than a device's share of the first look, so that none is half empty.

    Returns:
      A `Verdict`.

    Raises:
      ValueError: a bad argument, a bad image (`check_image`), or a classifier that
        returns NaN.

    Source: docs/theory.md, 3.5 to 3.7.
    """
    results = certify_each_at(
        [(key, image)],
        classify,
        smoothing,
        radii=radii,
        n0=n0,
        n=n,
        alpha=alpha,
        beta=beta,
        first_look=first_look,
        **counting,
    )
    return next(results)


def certify_each_at(
    keys_and_images: Iterable[tuple[jax.Array, jax.Array]],
    classify: Callable[[jax.Array], jax.Array],
    smoothing: Smoothing,
    *,
    radii: Sequence[float],
    n0: int,
    n: int,
    alpha: float,
    beta: float | None = None,
    first_look: int = FIRST_LOOK,
    **counting,
) -> Iterator[Verdict]:
    """Verdicts on images one after another, keeping the devices busy in between.

    Every result equals that of `certify_at` with the same key.

    Args:
      keys_and_images: pairs `(key, image)`; read a few ahead.
      classify: as in `certify_at`, and so the others.
      smoothing: see there.
      radii: see there.
      n0: see there.
      n: see there.
      alpha: see there.
      beta: see there.
      first_look: see there.
      **counting: see there.

    Yields:
      One `Verdict` per pair, in order.

    Raises:
      ValueError: as `certify_at`.
    """
    check_protocol(n0=n0, n=n, alpha=alpha)
    sequential.check_levels(alpha, beta)
    thresholds = check_radii(radii, smoothing)
    selecting = sequential.looks(first_look, n0)
    estimating = sequential.looks(first_look, n)
    count = _counter(classify, smoothing, first_look, counting)
    level = alpha if beta is None else beta

    def enough(votes_of):
        if sequential.leading_class_p_value(votes_of, n0) <= alpha:
            return True
        return sequential.out_of_reach(
            int(votes_of.max()),
            int(votes_of.sum()),
            float(thresholds[0]),
            n=n,
            alpha=alpha,
            beta=level,
        )

    def work(key, image):
        key_select, key_estimate = jax.random.split(key)
        selection = _Votes(count, key_select, image, selecting)
        # Estimation begins before it is known which class it is about.
        estimation = _Votes(count, key_estimate, image, estimating)
        selection_votes = yield from _until(enough, selection, n0)
        selected = int(np.argmax(selection_votes))
        certified = np.zeros(len(thresholds), bool)
        for _ in estimating:
            votes_of = yield from estimation.more()
            decisions = sequential.decide(
                int(votes_of[selected]),
                int(votes_of.sum()),
                thresholds,
                n=n,
                alpha=alpha,
                beta=beta,
            )
            # What was certified once stays so.
            certified |= decisions == sequential.CERTIFIED
            reached = int(np.argmin([*certified, False]))
            if reached == len(thresholds) or decisions[reached] == sequential.GIVEN_UP:
                break
        return Verdict(
            label=selected if reached else ABSTAIN,
            radius=float(radii[reached - 1]) if reached else 0.0,
            selected=selected,
            selection_votes=selection_votes,
            votes=votes_of,
        )

    return _interleaved(work, keys_and_images)


def predict_early(
    key: jax.Array,
    image: jax.Array,
    classify: Callable[[jax.Array], jax.Array],
    smoothing: Smoothing,
    *,
    n: int,
    alpha: float,
    first_look: int = FIRST_LOOK,
    **counting,
) -> Prediction:
    """The smoothed classifier's answer as soon as the votes are clear.

    Args:
      key: used up by this call; the draws are the first ones of `predict`'s.
      image: `[H, W, C]` float, nonnegative, not all zero.
      classify: base classifier `[B, H, W, C] -> [B, K]` logits.
      smoothing: noise law and theorem.
      n: most votes.
      alpha: probability of returning a class that is not the most likely one.
      first_look: votes before the first look; for the others see `sequential.looks`.
      **counting: as in `certify_at`.

    Returns:
      A `Prediction` with the votes drawn; `p_value` is
      `sequential.leading_class_p_value`.

    Raises:
      ValueError: a bad argument, a bad image (`check_image`), or a classifier that
        returns NaN.

    Source: docs/theory.md, 3.8.
    """
    results = predict_each_early(
        [(key, image)],
        classify,
        smoothing,
        n=n,
        alpha=alpha,
        first_look=first_look,
        **counting,
    )
    return next(results)


def predict_each_early(
    keys_and_images: Iterable[tuple[jax.Array, jax.Array]],
    classify: Callable[[jax.Array], jax.Array],
    smoothing: Smoothing,
    *,
    n: int,
    alpha: float,
    first_look: int = FIRST_LOOK,
    **counting,
) -> Iterator[Prediction]:
    """Predictions for images one after another, keeping the devices busy in between.

    Args:
      keys_and_images: pairs `(key, image)`; read a few ahead.
      classify: as in `predict_early`, and so the others.
      smoothing: see there.
      n: see there.
      alpha: see there.
      first_look: see there.
      **counting: see there.

    Yields:
      One `Prediction` per pair, in order.

    Raises:
      ValueError: as `predict_early`.
    """
    confidence.check_alpha(alpha)
    moments = sequential.looks(first_look, n)
    count = _counter(classify, smoothing, first_look, counting)

    def clear(votes_of):
        return sequential.leading_class_p_value(votes_of, n) <= alpha

    def work(key, image):
        votes_of = yield from _until(clear, _Votes(count, key, image, moments), n)
        p_value = sequential.leading_class_p_value(votes_of, n)
        label = int(np.argmax(votes_of)) if p_value <= alpha else ABSTAIN
        return Prediction(label, p_value, votes_of)

    return _interleaved(work, keys_and_images)


def certify_each_frugally(
    keys_and_images: Iterable[tuple[jax.Array, jax.Array]],
    classify: Callable[[jax.Array], jax.Array],
    smoothing: Smoothing,
    *,
    n0: int,
    n: int,
    alpha: float,
    max_radius_loss: float,
    use_runner_up: bool | str = "never",
    **counting,
) -> Iterator[Certificate]:
    """Like `smoothing.certify_each`, with fewer than `n` votes where more gain little.

    The selection votes, which are independent of those that bound, choose how many
    these are: the least number that loses at most `max_radius_loss` of the radius of
    `n` votes, for every probability that they leave possible at level `alpha`.

    Args:
      keys_and_images: pairs `(key, image)`; read a few ahead.
      classify: as in `smoothing.certify`, and so the others.
      smoothing: see there.
      n0: see there.
      n: most fresh votes.
      alpha: see there.
      max_radius_loss: share of the radius to give away, in (0, 1).
      use_runner_up: see there; the number of votes is chosen as if "never".
      **counting: see there.

    Yields:
      One `Certificate` per pair, in order; its votes tell their number.

    Raises:
      ValueError: as `smoothing.certify`, or `max_radius_loss` is outside its range.
    """
    check_protocol(n0=n0, n=n, alpha=alpha, use_runner_up=use_runner_up)
    if not 0 < max_radius_loss < 1:
        raise ValueError(
            f"max_radius_loss={max_radius_loss!r} is outside (0, 1): it is the share of "
            f"the radius to give away, e.g. 0.05."
        )
    count = _counter(classify, smoothing, None, counting)

    def work(key, image):
        key_select, key_estimate = jax.random.split(key)
        selection_votes = yield from _Votes(count, key_select, image, [n0]).more()
        chosen = sequential.choose_n(
            int(selection_votes.max()),
            n0,
            n_max=n,
            radius=smoothing.radius,
            max_loss=max_radius_loss,
            alpha=alpha,
            pilot_alpha=alpha,
        )
        estimation_votes = yield from _Votes(
            count, key_estimate, image, [chosen]
        ).more()
        return certificate_from_votes(
            selection_votes,
            estimation_votes,
            smoothing,
            alpha=alpha,
            use_runner_up=use_runner_up,
        )

    return _interleaved(work, keys_and_images)


def _counter(classify, smoothing, first_look, counting):
    """`count_votes` for one classifier; blocks no larger than a share of a look."""
    classify, counting = votes.as_argument(classify), dict(counting)
    if first_look is not None:
        devices = counting.get("devices")
        devices = jax.local_devices() if devices is None else devices
        share = -(-first_look // len(devices))
        counting["block_size"] = min(counting.get("block_size", share), share)

    def count(key, image, start, n):
        return votes.count_votes(
            key, image, classify, smoothing.perturb, start=start, n=n, **counting
        )

    return count


class _Votes:
    """Votes under one key that grow from look to look; the next ones are queued."""

    def __init__(self, count, key, image, moments):
        self._count = lambda start, n: count(key, image, start, n)
        self._moments, self._drawn = deque(moments), 0
        self._votes: np.ndarray | int = 0
        self._queued: Any = None
        self._queue()

    def _queue(self):
        if self._queued is None:
            size = self._moments.popleft() - self._drawn
            self._queued = self._count(self._drawn, size), size

    def more(self):
        """Yields once, to let others use the time; returns all votes so far."""
        self._queue()
        yield
        counts, size = self._queued
        self._queued = None
        self._votes = self._votes + fetch(counts, size)
        self._drawn += size
        return self._votes


def _until(enough, drawing, n):
    """Votes until `enough(votes)`, or `n` of them."""
    while True:
        votes_of = yield from drawing.more()
        if votes_of.sum() == n or enough(votes_of):
            return votes_of


def _interleaved(work, keys_and_images):
    """Runs the generators `work(key, image)` a few at a time; yields what they return.

    Each yields whenever it has queued votes and would wait for them next.
    """
    pairs = iter(keys_and_images)
    active: deque = deque()
    ended: dict = {}
    started = finished = 0
    reading = True
    while reading or finished < started:
        while reading and len(active) < _IN_FLIGHT:
            try:
                pair: Any = next(pairs, None)
                if pair is None:
                    reading = False
                    break
                check_image(pair[1])
                task = work(*pair)
                next(task)
                active.append((started, task))
            except ValueError as error:
                ended[started], reading = error, False
            started += 1
        if active:
            number, task = active.popleft()
            try:
                next(task)
                active.append((number, task))
            except StopIteration as stop:
                ended[number] = stop.value
            except ValueError as error:
                ended[number], reading = error, False
        while finished in ended:
            result = ended.pop(finished)
            finished += 1
            # What went wrong with one image does not cost the results before it.
            if isinstance(result, ValueError):
                raise result
            yield result
