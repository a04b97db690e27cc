"""Who is attacked, and how it is asked: the one place where attacks get answers.

An attack needs two things of a classifier: gradients, and answers that count. Those of
a plain classifier are both of its logits. A smoothed classifier, or anything else that
answers by more than logits, brings a function for its answers, and the noise over which
gradients are averaged; attacks do not know how answers are found.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from wsjax import text
from wsjax.certifiers.at_radii import FIRST_LOOK
from wsjax.certifiers.votes import FixedVotes
from wsjax.network import LipschitzNetwork
from wsjax.scores import ABSTAIN
from wsjax.smoothing import Smoothing
from wsjax.votes import as_argument, check_key, logits_of

_NOT_FINITE = -2  # Stands for the answer when a logit is NaN or infinite.

Answer = Callable[[jax.Array, np.ndarray], Sequence[int] | np.ndarray]


@dataclasses.dataclass(frozen=True)
class Victim(text.Short):
    """A classifier under attack.

    Attributes:
      classify: images `[B, H, W, C]` to logits `[B, K]`, differentiable: gradients are
        of these. Pass weights as `jax.tree_util.Partial(apply, variables)` and they stay
        arguments of compiled programs.
      perturb: noise on one image, `(key, image) -> image`, over which gradients are
        averaged; None for those of `classify` itself.
      answer: `(keys [B], images [B, H, W, C]) -> labels [B]`, with `ABSTAIN`; None for
        the argmax of the logits, which needs no keys.
      answer_early: the same with a third argument, the most votes an answer may take,
        for a search that asks often; None for `answer`.
    """

    classify: Callable[[jax.Array], jax.Array]
    perturb: Callable[[jax.Array, jax.Array], jax.Array] | None = None
    answer: Answer | None = None
    answer_early: Callable[..., Any] | None = None

    @property
    def is_random(self) -> bool:
        """Whether gradients or answers need keys."""
        return self.perturb is not None or self.answer is not None

    def arguments(self):
        """`classify` and `perturb` (or None) as arguments of compiled programs."""
        perturb = None if self.perturb is None else as_argument(self.perturb)
        return as_argument(self.classify), perturb

    def ask(
        self,
        keys: Any,
        images: np.ndarray | jax.Array,
        *,
        batch_size: int,
        where: np.ndarray | None = None,
        max_votes: int | None = None,
    ) -> np.ndarray:
        """Its answers to images of any number.

        Args:
          keys: `[N]`, used up; may be None where `answer` is.
          images: `[N, H, W, C]`.
          batch_size: of a classifier that is asked for logits. Batches are filled up, so
            that nothing compiles twice.
          where: `[N]` bool: who is asked; the others count as abstentions.
          max_votes: ask for an early answer, by so many votes at most.

        Returns:
          `[N]` int; abstentions are `ABSTAIN`.

        Raises:
          BrokenLogits: a logit is NaN or infinite.
        """
        where = np.ones(len(images), bool) if where is None else where
        found = np.full(len(images), ABSTAIN)
        if self.answer is None:
            for start in range(0, len(images), batch_size):
                here = slice(start, start + batch_size)
                found[here] = self._argmax(images, here)
            found[~where] = ABSTAIN
            if (found == _NOT_FINITE).any():
                raise BrokenLogits(np.flatnonzero(found == _NOT_FINITE))
        elif where.any():
            rows = np.flatnonzero(where)
            question = keys[rows], np.asarray(images)[rows]
            if max_votes is None or self.answer_early is None:
                found[rows] = self.answer(*question)
            else:
                found[rows] = self.answer_early(*question, max_votes)
        return found

    def _argmax(self, images, here):
        size = here.stop - here.start
        if len(images) != size:  # What is on the device stays there.
            images = np.asarray(images)[here]
        count = len(images)
        if count < size:
            images = np.resize(images, (size, *images.shape[1:]))
        labels = _argmax(jnp.asarray(images), as_argument(self.classify))
        return np.asarray(labels)[:count]


class BrokenLogits(ValueError):
    """A classifier returned logits that are not numbers.

    Attributes:
      rows: `[M]` int, for which of the images it was given.
    """

    def __init__(self, rows: np.ndarray):
        super().__init__(f"classify returns NaN or inf on images {rows.tolist()}.")
        self.rows = rows


def as_victim(victim: Victim | Callable) -> Victim:
    """A victim as it is; any other callable as a plain classifier."""
    return victim if isinstance(victim, Victim) else Victim(victim)


def check_labels(victim: Victim, images: np.ndarray, labels: np.ndarray) -> None:
    """Refuses labels that are no classes of who is attacked; computes nothing.

    Args:
      victim: who is attacked.
      images: `[N, H, W, C]`.
      labels: `[N]` int.

    Raises:
      ValueError: a label is not from 0 to K - 1, or `classify` returns no logits.
    """

    def logits(classify, images):
        return logits_of(classify, images)

    one = jax.ShapeDtypeStruct((1, *images.shape[1:]), images.dtype)
    classes = jax.eval_shape(logits, as_argument(victim.classify), one).shape[1]
    wrong = np.flatnonzero((labels < 0) | (labels >= classes))
    if wrong.size:
        raise ValueError(
            f"Image {wrong[0]} has the label {labels[wrong[0]]}, and the classifier "
            f"{classes} classes, 0 to {classes - 1} ({wrong.size} such labels)."
        )


def smoothed(
    classify: Callable[[jax.Array], jax.Array],
    smoothing: Smoothing,
    *,
    n: int,
    alpha: float,
) -> Victim:
    """The classifier smoothed by a noise, which answers by votes or abstains.

    Args:
      classify: base classifier, as in `Victim`.
      smoothing: its noise.
      n: most votes per answer; clear ones stop before.
      alpha: probability that an answer is not the most likely class, whenever it stops.
        Early answers are asked for often, so that luck would have many chances: at a
        hundredth of it.

    Returns:
      The `Victim`.
    """
    classify = as_argument(classify)
    voters = FixedVotes(classify, smoothing, n=n, alpha=alpha)

    def asked(voters, images, keys):
        answers = voters.predict_each(images, keys, first_look=FIRST_LOOK)
        return [each.label for each in answers]

    def answer(keys, images):
        return asked(voters, images, keys)

    @functools.cache
    def hasty(max_votes):
        return dataclasses.replace(voters, n=max_votes, alpha=alpha / 100)

    def answer_early(keys, images, max_votes):
        return asked(hasty(max_votes), images, keys)

    return Victim(classify, smoothing.perturb, answer, answer_early)


def scored(network: LipschitzNetwork) -> Victim:
    """A network that certifies itself: gradients in float32, answers as certified."""

    def answer(keys, images):
        del keys
        return network.scores(images).argmax(1)

    return Victim(network.on_device(), answer=answer)


def is_wrong(
    answers: np.ndarray,
    labels: np.ndarray,
    targeted: bool = False,
    abstention_counts: bool = False,
) -> np.ndarray:
    """`[B]` bool: which answers are what an attack wants.

    Args:
      answers: `[B]` int, with `ABSTAIN`.
      labels: `[B]` int: right answers, or wanted ones if `targeted`.
      targeted: whether an answer must equal the label.
      abstention_counts: whether an abstention is a success, as in the published code.
    """
    if targeted:
        return answers == labels
    return (answers != labels) & ((answers != ABSTAIN) | abstention_counts)


class Draws(NamedTuple):
    """What B images draw from: each from a key and a place of its own.

    Neither the batch an image is in nor the other images matter to its draws.

    Attributes:
      keys: `[B]`.
      places: `[B]` int, which tells apart the images that share a key.
    """

    keys: jax.Array
    places: np.ndarray | jax.Array

    def pick(self, rows: np.ndarray) -> "Draws":
        """The draws of some images."""
        return _pick(self, rows)

    def keys_for(self, *purpose: Any, number: Any = None) -> jax.Array:
        """`[B]` keys, a different one for each purpose, image and number.

        Args:
          *purpose: whole numbers, one for all images.
          number: whole number, one for all images or `[B]`; None for none.
        """
        return _keys_for(self, purpose, number)


def image_draws(victim: Victim, key: jax.Array | None, count: int) -> Draws:
    """What images draw from, given one key for all or one for each.

    Args:
      victim: who is attacked.
      key: one key, `[N]` keys, or None where nothing is random.
      count: N.

    Returns:
      `Draws` of N images.

    Raises:
      ValueError: there is no key, or another number of them.
    """
    if key is None:
        if victim.is_random:
            raise ValueError(
                "An attack on a victim with noise or answers of its own is random: "
                "pass key=."
            )
        key = jax.random.key(0)  # Keeps one program for all.
    if np.ndim(key) == 0:
        key = check_key(key)
        return Draws(jnp.broadcast_to(key, (count,)), np.arange(count))
    if key.shape != (count,):
        raise ValueError(
            f"key has shape {key.shape}; pass one key, or one for each of the {count} "
            f"images."
        )
    return Draws(key, np.zeros(count, int))


@jax.jit
def _pick(draws, rows):
    return jax.tree.map(lambda leaf: jnp.asarray(leaf)[rows], draws)


@jax.jit
def _keys_for(draws, purpose, number):
    def one(key, place, numbers):
        for part in (*purpose, place, *numbers):
            key = jax.random.fold_in(key, part)
        return key

    count = draws.places.shape
    numbers = [] if number is None else [jnp.broadcast_to(number, count)]
    return jax.vmap(one)(draws.keys, draws.places, numbers)


@jax.jit
def _argmax(images, classify):
    logits = logits_of(classify, images)
    finite = jnp.isfinite(logits).all(axis=-1)
    return jnp.where(finite, logits.argmax(axis=-1), _NOT_FINITE)
