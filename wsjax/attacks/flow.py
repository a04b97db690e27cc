"""The flow attack: the nearest image of another answer, in the ball exactly.

Gradient steps in image space, each followed by a projection onto all images that a flow
plan of bounded cost can reach without leaving [0, 1] (`polytope`). The radius shrinks
while the answer is wrong and grows while it is right, so that the search follows the
decision boundary inwards. What comes out is repaired to exact mass and range, moved
along the segment back to the original until its answer is about to change, and measured
by the exact Wasserstein distance. The radius it reports is that distance.

Against a smoothed classifier, gradients are those of the mean softmax over noisy copies,
and answers along the segment are votes. The last point is asked once more by votes that
nothing has seen before: `AttackResult.verified` is the word that counts.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from wsjax.attacks import losses, polytope, repair
from wsjax.attacks.checks import check_images, check_settings
from wsjax.attacks.growing import AttackResult
from wsjax.attacks.victims import (
    Draws,
    Victim,
    as_victim,
    check_labels,
    image_draws,
    is_wrong,
)
from wsjax.transport import exact_distance

# Candidates for the end of the segment, beyond the point that the search found.
_STRETCHES = (1.0, 1.03, 1.1, 1.25, 1.6)
_HALVINGS, _HALVINGS_BY_VOTE = 10, 7
_OVERSHOOT = 1.02  # Past the last point that won a vote, for the one that counts.
_SETTLING = 100  # Iterations that make the best flow respect the range.


@dataclasses.dataclass(frozen=True)
class FlowAttack:
    """Settings of the attack.

    Attributes:
      ground_metric: "l1" or "l2": of the distance to be small.
      radius: stay within this distance, in pixels x fraction of mass; 0 looks for the
        smallest that succeeds.
      max_steps: gradient steps.
      inner_steps: iterations of the projection after each.
      neighbours: 4, 8 or 16 directions in which mass flows; 0 for 4 with "l1", where
        that is exact, and 8 with "l2". Paths along 4 cost up to 1.42 times the
        Euclidean distance, along 8 up to 1.09 times, along 16 up to 1.03 times; the
        reported distance is exact for any.
      loss: "margin", "cross_entropy" or "dlr".
      targeted: whether `labels` are the answers to reach.
      step_size: Euclidean length of a gradient step, as a fraction of the radius.
      start_radius: where the search for the smallest radius starts.
      restarts: independent searches, all but the first from random points; the best
        counts.
      levels: 255 for a result in whole 8-bit levels, 0 for floats.
      num_samples: noisy copies per gradient (smoothed).
      num_votes: most votes per answer while searching along the segment, if the
        victim has early answers;
      batch_size: images that `classify` gets at a time; noisy copies count.
    """

    ground_metric: str = "l1"
    radius: float = 0.0
    max_steps: int = 100
    inner_steps: int = 10
    neighbours: int = 0
    loss: str = "margin"
    targeted: bool = False
    step_size: float = 0.3
    start_radius: float = 0.2
    restarts: int = 1
    levels: int = 0
    num_samples: int = 64
    num_votes: int = 2_000
    batch_size: int = 32

    def __post_init__(self):
        polytope.lengths(self.directions, self.ground_metric)
        if self.loss not in losses.LOSSES:
            raise ValueError(f"loss={self.loss!r} is not one of {losses.LOSSES}.")
        if not 0 <= self.radius < np.inf:
            raise ValueError(
                f"radius={self.radius} is no distance: a positive number of pixels x "
                f"fraction of mass, or 0 to look for the smallest."
            )
        check_settings(self, "radius", "neighbours", "levels")
        if self.levels != int(self.levels) or self.levels < 0:
            raise ValueError(
                f"levels={self.levels} is neither 0 (any floats) nor the largest "
                f"level, e.g. 255."
            )

    @property
    def directions(self) -> int:
        """`neighbours`, with the default filled in."""
        return self.neighbours or polytope.default_neighbours(self.ground_metric)


class _State(NamedTuple):
    """One search on B images.

    Attributes:
      flow: `polytope.Flow`, the present point.
      radius: `[B]`, in pixels x pixel units, like all here.
      best: `[B]`, smallest cost of a wrong answer.
      edges: the best flow.
    """

    flow: polytope.Flow
    radius: jax.Array
    best: jax.Array
    edges: jax.Array


# What the draws of an image are for.
_GRADIENT, _ANSWER = range(2)


def flow_attack(
    images: jax.Array,
    labels: jax.Array,
    victim: Victim | Callable[[jax.Array], jax.Array],
    *,
    key: jax.Array | None = None,
    settings: FlowAttack = FlowAttack(),
) -> AttackResult:
    """Attacks images with exact mass, range and distance.

    Results for an image depend on its draws only, not on the other images (up to
    rounding, if the arithmetic of the classifier depends on its batch).

    Args:
      images: `[N, H, W, C]` float, in [0, 1], none all black.
      labels: `[N]` int, the right answers, or the wanted ones with
        `settings.targeted`.
      victim: who is attacked (`victims`), or a plain classifier: images `[B, H, W, C]`
        to logits `[B, K]`, differentiable.
      key: one for all images or one for each, `[N]`; required with restarts or if the
        victim is random; used up by this call.
      settings: see `FlowAttack`.

    Returns:
      `AttackResult`. `epsilon` is the exact distance in `settings.ground_metric`. With
      a fixed radius, no image is farther than that. Pixels are in [0, 1] and every
      channel keeps its mass, up to float32 rounding. Failures return the image itself.

    Raises:
      ValueError: images are outside [0, 1], not finite or all black; shapes do not
        agree; a label is no class; `key` is missing; a logit is NaN or infinite.

    Source: this project; the radius follows Pintor et al., "Fast Minimum-norm
    Adversarial Attacks through Adaptive Norm Constraints", 2021.
    """
    originals, right = check_images(images, labels)
    victim, total = as_victim(victim), len(originals)
    check_labels(victim, originals, right)
    if key is None and settings.restarts > 1:
        raise ValueError("An attack with restarts is random: pass key=.")
    draws = image_draws(victim, key, total)
    copies = 1 if victim.perturb is None else settings.num_samples
    batch = max(1, settings.batch_size // copies)
    adversarial = originals.copy()
    success, verified = np.zeros(total, bool), np.zeros(total, bool)
    epsilon, steps = np.full(total, np.inf), np.zeros(total, np.int32)
    for first in range(0, total, batch):
        rows = np.arange(first, min(first + batch, total))
        # Filled up by repeating, so that nothing compiles twice.
        padded = np.resize(rows, batch)
        group = _Group(
            originals[padded],
            right[padded],
            draws.pick(padded),
            np.arange(batch) < len(rows),
            victim,
            settings,
        )
        found = group.attack()
        for whole, part in zip(
            (adversarial, success, epsilon, steps, verified), found, strict=True
        ):
            whole[rows] = part[: len(rows)]
    return AttackResult(adversarial, success, epsilon, steps, verified)


@dataclasses.dataclass
class _Group:
    """Images that are attacked together; those not `real` fill up the batch."""

    images: np.ndarray
    labels: np.ndarray
    draws: Draws
    real: np.ndarray
    victim: Victim
    settings: FlowAttack

    def __post_init__(self):
        # How often each was asked: what others are asked must not change its draws.
        self.asked = np.zeros(len(self.images), int)

    def wrong(self, points, where, early=True):
        """Whether the answers at `[B, H, W, C]` are wrong, by draws of their own.

        Only images `where` that is true are asked, and can be.
        """
        where = self.real & where
        self.asked += where
        answers = self.victim.ask(
            self.draws.keys_for(_ANSWER, number=self.asked),
            points,
            batch_size=len(points),
            where=where,
            max_votes=self.settings.num_votes if early else None,
        )
        return where & is_wrong(answers, self.labels, self.settings.targeted)

    def attack(self):
        """The parts of an `AttackResult`."""
        images, settings = self.images, self.settings
        before = self.wrong(images, True, early=False)
        best, distance = images.copy(), np.where(before, 0.0, np.inf)
        steps = np.where(before, 0, settings.max_steps * settings.restarts)
        if not before[self.real].all():
            for restart in range(settings.restarts):
                edges = self.descend(restart)
                for ends in _candidates(images, edges, settings):
                    points, ok = self.shorten(ends, ~before)
                    points, far = self.judge(points, ok)
                    better = far < distance
                    best[better], distance[better] = points[better], far[better]
        success = np.isfinite(distance)
        verified = self.wrong(best, success, early=False)
        return best, success, distance, steps, verified

    def descend(self, restart):
        """One search; the edges of its best flow, `[K, H, W, C, B]`."""
        settings, images = self.settings, jnp.asarray(self.images)
        search = self.draws, np.int32(restart)
        state = _begin(images, *search, settings=settings, randomly=restart > 0)
        classify, perturb = self.victim.arguments()
        # A loop on the host over one compiled step: gradients of convolutions inside
        # XLA's own loops are several times slower on a CPU. Nothing is waited for.
        for step in range(settings.max_steps):
            state = _step(
                state,
                images,
                self.labels,
                *search,
                np.float32(step),
                classify,
                perturb,
                settings=settings,
            )
        return state.edges

    def shorten(self, ends, where):
        """The first wrong answers on the segments from the images to their ends."""
        images = self.images
        ok = np.zeros(len(images), bool)
        chosen = images.copy()
        for stretch in _STRETCHES:
            end = ends
            if stretch > 1:
                longer = images + np.float32(stretch) * (ends - images)
                end = np.asarray(repair.nearest_valid(images, longer))
            here = self.wrong(end, where & ~ok)
            chosen[here], ok = end[here], ok | here
            if ok[where & self.real].all():
                break
        # The point kept is one that was asked: a vote there need not be won again.
        ends, kept = chosen, chosen.copy()
        low, high = np.zeros(len(images)), np.ones(len(images))
        by_vote = self.victim.is_random
        halvings = _HALVINGS_BY_VOTE if by_vote else _HALVINGS
        for _ in range(halvings if ok.any() else 0):
            middle = (low + high) / 2
            points = _between(images, ends, middle)
            there = self.wrong(points, ok)
            kept[there] = points[there]
            low, high = np.where(there, low, middle), np.where(there, middle, high)
        if by_vote:
            kept = _between(images, ends, np.minimum(1, _OVERSHOOT * high))
        return kept, ok

    def judge(self, points, ok):
        """Rounds if asked to; exact distances, infinite for what does not count."""
        if self.settings.levels:
            points, ok = self.on_levels(points, ok)
        far = np.where(ok, self.distances(points, ok), np.inf)
        if self.settings.radius:
            far[far > self.settings.radius] = np.inf
        return points, far

    def on_levels(self, points, ok):
        """The first of a few longer steps whose rounded image is still wrong."""
        images = self.images
        found, done = points.copy(), ~ok
        for stretch in (1, 1.02, 1.05, 1.1, 1.2, 1.4):
            longer = images + np.float32(stretch) * (points - images)
            valid = repair.nearest_valid(images, longer)
            whole = repair.round_to_levels(images, valid, self.settings.levels)
            here = self.wrong(whole, ~done)
            found[here], done = whole[here], done | here
            if done[self.real].all():
                break
        return found, ok & done

    def distances(self, points, where=None):
        """Exact distances from the images, zero where they are not asked for."""
        metric = self.settings.ground_metric
        where = np.ones(len(points), bool) if where is None else where
        return np.array(
            [
                exact_distance(image, point, metric) if ask else 0.0
                for image, point, ask in zip(self.images, points, where)
            ]
        )


def _between(images, ends, share):
    """Points of segments; valid like both ends, which a convex combination keeps."""
    share = share.astype(images.dtype)[:, None, None, None]
    return np.clip(images + share * (ends - images), 0, 1)


def _flow_settings(settings):
    return {
        "neighbours": settings.directions,
        "weights": tuple(
            polytope.lengths(settings.directions, settings.ground_metric).tolist()
        ),
    }


def _batch_last(images):
    return jnp.moveaxis(images, 0, -1)


@functools.partial(jax.jit, static_argnames=("settings", "randomly"))
def _begin(images, draws, restart, *, settings, randomly):
    """State at the images, or at random points within half the first radius."""
    here, mass = _batch_last(images), images.sum((1, 2, 3))
    flow = polytope.start(here, settings.directions)
    radius = mass * (settings.radius or settings.start_radius)
    if randomly:
        keys = draws.keys_for(_GRADIENT, restart)
        noise = jax.vmap(lambda k: jax.random.normal(k, images.shape[1:]))(keys)
        points = here + _batch_last(noise).astype(images.dtype)
        how = _flow_settings(settings)
        flow = polytope.project(here, points, radius / 2, flow, iterations=20, **how)
    return _State(flow, radius, jnp.full_like(radius, jnp.inf), flow.edges)


@functools.partial(jax.jit, static_argnames="settings", donate_argnums=0)
def _step(state, images, labels, draws, restart, step, classify, perturb, *, settings):
    """Asks, remembers, adapts the radius, steps downhill and projects."""
    how = _flow_settings(settings)
    here = _batch_last(images)
    raw = here + polytope.carry(state.flow.edges, settings.directions)
    points = jnp.moveaxis(jnp.clip(raw, 0, 1), -1, 0)
    keys: Any = None
    if perturb is not None:
        keys = draws.keys_for(_GRADIENT, restart, number=(step + 1).astype(jnp.int32))

    def objective(points):
        scores, votes = losses.mean_scores(
            points, keys, classify, perturb, settings.num_samples
        )
        value = losses.loss(scores, labels, settings.loss, settings.targeted)
        return value.sum(), (scores, votes)

    slope, (scores, votes) = jax.grad(objective, has_aux=True)(points)
    wrong = losses.margin(scores, labels, settings.targeted) < 0
    if perturb is not None:
        # Of many tries some are lucky: four standard deviations, or four votes in
        # five where there are few. What that gives away in radius, the segment search
        # takes back.
        lead = -losses.margin(votes, labels, settings.targeted)
        own = jnp.take_along_axis(votes, labels[:, None], axis=1)[:, 0]
        both = 2 * own + jnp.where(settings.targeted, -lead, lead)
        wrong &= lead > jnp.minimum(4 * jnp.sqrt(both / settings.num_samples), 0.6)
    outside = (jnp.maximum(raw - 1, 0) + jnp.maximum(-raw, 0)).sum((0, 1, 2))
    spent = polytope.cost(state.flow.edges, how["weights"]) + 3 * outside
    progress = (1 + jnp.cos(jnp.pi * step / settings.max_steps)) / 2
    better = wrong & (spent < state.best)
    best = jnp.where(better, spent, state.best)
    pace = 0.005 + 0.095 * progress
    radius = jnp.where(
        wrong,
        jnp.minimum(state.radius, jnp.minimum(spent, best)) * (1 - pace),
        jnp.minimum(state.radius * (1 + pace), best * (1 - 0.2 * pace)),
    )
    if settings.radius:
        radius = jnp.minimum(radius, settings.radius * images.sum((1, 2, 3)))
    edges = jnp.where(better, state.flow.edges, state.edges)
    length = settings.step_size * (0.1 + 0.9 * progress) * radius
    downhill = length[:, None, None, None] * losses.with_norm_one(slope)
    target = _batch_last(points - downhill)
    flow = polytope.project(
        here, target, radius, state.flow, iterations=settings.inner_steps, **how
    )
    return _State(flow, radius, best, edges)


def _candidates(images, edges, settings):
    """Valid images near the best flow: as it is, and after settling into the range."""
    return [np.asarray(ends) for ends in _settle(images, edges, settings=settings)]


@functools.partial(jax.jit, static_argnames="settings")
def _settle(images, edges, *, settings):
    how = _flow_settings(settings)
    here = _batch_last(images)
    raw = here + polytope.carry(edges, settings.directions)
    spent = polytope.cost(edges, how["weights"])
    room = spent * 1.02 + 1e-3
    flow = polytope.start(here, settings.directions)._replace(edges=edges)
    flow = polytope.project(here, raw, room, flow, iterations=_SETTLING, **how)
    settled = here + polytope.carry(flow.edges, settings.directions)
    return [
        repair.nearest_valid(images, jnp.moveaxis(points, -1, 0))
        for points in (raw, settled)
    ]
