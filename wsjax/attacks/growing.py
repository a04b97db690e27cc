"""The loop of the published attacks: steps in a ball that grows until the answer is wrong.

All of them step, project onto a ball around the original, ask, and enlarge the ball by
some schedule. Each brings its compiled step and its schedule; who is asked when, and what
is made of the answers, is here.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from wsjax import text
from wsjax.attacks.checks import check_images
from wsjax.attacks.victims import (
    BrokenLogits,
    Draws,
    Victim,
    as_victim,
    check_labels,
    image_draws,
    is_wrong,
)

# What the draws of an image are for.
GRADIENT, _ANSWER, _VERIFY = range(3)


class AttackResult(NamedTuple):
    """What an attack made of N images; NumPy arrays.

    Attributes:
      adversarial: `[N, H, W, C]`: where the answer first turned wrong, the last
        point tried for failures, the image itself if its answer was wrong before.
      success: `[N]` bool, whether an answer was wrong.
      epsilon: `[N]`, nominal radius at the first success; 0 for images that were
        wrong before, inf for failures. See `measure` for distances.
      steps: `[N]` int, steps taken.
      verified: `[N]` bool, whether the answer at `adversarial` was wrong again, by
        votes drawn afresh; False for failures.
    """

    adversarial: np.ndarray
    success: np.ndarray
    epsilon: np.ndarray
    steps: np.ndarray
    verified: np.ndarray

    def __repr__(self) -> str:
        return text.short_repr(self)


class Slots(NamedTuple):
    """The images under attack; all have a leading axis of the batch size.

    Attributes:
      centers: `[B, H, W, C]`, the originals.
      points: `[B, H, W, C]`, how far the attack is.
      labels: `[B]`, the right answers.
      state: what else an attack remembers of each.
    """

    centers: jax.Array
    points: jax.Array
    labels: jax.Array
    state: Any


class Turn(NamedTuple):
    """What a step is told about the images in the slots; axes `[B]`.

    Attributes:
      radii: of their balls, pixels x fraction of mass.
      steps: taken before.
      live: whether there is one. What becomes of the others does not matter.
      draws: what they draw from.
    """

    radii: np.ndarray
    steps: np.ndarray
    live: np.ndarray
    draws: Draws


def grow(
    images: jax.Array,
    labels: jax.Array,
    victim: Victim | Callable[[jax.Array], jax.Array],
    *,
    key: jax.Array | None,
    begin: Callable[[np.ndarray], Any],
    step: Callable[[Slots, Turn], Slots],
    radius: Callable[[np.ndarray], np.ndarray],
    max_steps: int,
    batch_size: int,
    asks: Callable[[np.ndarray], np.ndarray] | None = None,
    abstention_counts: bool = False,
) -> AttackResult:
    """Attacks images until their answer is wrong, each with a ball of its own size.

    An image leaves at its first success and its place goes to the next one. Results for
    an image depend on its draws only, not on the other images (up to rounding, if the
    arithmetic of the classifier depends on its batch).

    Args:
      images: `[N, H, W, C]` float, in [0, 1], none all black.
      labels: `[N]` int, the right answers.
      victim: who is attacked; a plain callable is a classifier without noise.
      key: one key, `[N]` keys, or None where nothing is random; used up.
      begin: originals `[B, H, W, C]` to what a step remembers of them, leading axes B.
      step: a step uphill and back into the ball for every slot. Compiled: the loop is on
        the host, since gradients of convolutions inside XLA's own loops are several
        times slower on a CPU.
      radius: steps taken `[B]` to the radii of the balls of the next step.
      max_steps: steps per image before giving up.
      batch_size: slots.
      asks: steps taken `[B]` to whether their answer counts; default always.
      abstention_counts: whether an abstention is a success.

    Returns:
      `AttackResult`; `epsilon` is the radius at the first success, and `verified` repeats
      the answer with other draws.

    Raises:
      ValueError: images are outside [0, 1], not finite or all black; shapes do not
        agree; a label is no class; `key` is missing; a logit is NaN or infinite.
    """
    originals, right = check_images(images, labels)
    victim, count = as_victim(victim), len(originals)
    check_labels(victim, originals, right)
    draws = image_draws(victim, key, count)
    points, steps = originals.copy(), np.zeros(count, np.int32)

    def wrong(purpose, rows, points, where=None):
        keys = None
        if victim.answer is not None:
            keys = draws.pick(rows).keys_for(purpose, number=steps[rows])
        try:
            answers = victim.ask(keys, points, batch_size=batch_size, where=where)
        except BrokenLogits as broken:
            raise BrokenLogits(np.unique(rows[broken.rows])) from None
        found = is_wrong(answers, right[rows], abstention_counts=abstention_counts)
        return found if where is None else found & where

    everyone = np.arange(count)
    success = wrong(_ANSWER, everyone, points)
    epsilon = np.where(success, 0.0, np.inf)
    waiting = np.flatnonzero(~success)
    rows, live = np.zeros(batch_size, int), np.zeros(batch_size, bool)
    slots: Any = None
    while waiting.size or live.any():
        free = np.flatnonzero(~live)[: len(waiting)]
        if free.size:
            rows[free], waiting = waiting[: free.size], waiting[free.size :]
            new = np.isin(np.arange(batch_size), free)
            live, here = live | new, draws.pick(rows)
            centers = originals[rows]
            fresh = Slots(centers, centers, right[rows], begin(centers))
            slots = fresh if slots is None else _replaced(new, fresh, slots)
        radii = radius(steps[rows])
        turn = Turn(radii.astype(points.dtype), steps[rows], live, here)
        slots = step(slots, turn)
        steps[rows[live]] += 1
        counts = live if asks is None else live & asks(steps[rows])
        fooled = np.zeros(batch_size, bool)
        if counts.any():
            fooled = wrong(_ANSWER, rows, slots.points, counts)
        done = fooled | (live & (steps[rows] >= max_steps))
        if done.any():
            points[rows[done]] = np.asarray(slots.points)[done]
            success[rows[fooled]], epsilon[rows[fooled]] = True, radii[fooled]
            live = live & ~done
    verified = wrong(_VERIFY, everyone, points, success)
    return AttackResult(points, success, epsilon, steps, verified)


@jax.jit
def _replaced(where, new, old):
    def choose(new, old):
        return jnp.where(where.reshape(-1, *[1] * (new.ndim - 1)), new, old)

    return jax.tree.map(choose, new, old)


def as_numbers(settings: Any, *names: str) -> dict[str, Any]:
    """Settings as arrays, which can change without compiling anew."""
    values = {name: getattr(settings, name) for name in names}
    return {
        name: np.int32(value) if isinstance(value, int) else np.float32(value)
        for name, value in values.items()
    }


def for_each(function: Callable, *rows: Any) -> Any:
    """Maps over leading axes: one after the other on a CPU, together elsewhere.

    On a CPU every image then stops at its own last round, with its arrays in cache.
    """
    return jax.lax.platform_dependent(
        *rows,
        cpu=lambda *rows: jax.lax.map(lambda row: function(*row), rows),
        default=lambda *rows: jax.vmap(function)(*rows),
    )
