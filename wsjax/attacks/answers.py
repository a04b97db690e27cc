"""The question an attack puts to its victim, and checks on what it is given."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from wsjax import smoothing as smoothed
from wsjax.certifiers.at_radii import FIRST_LOOK
from wsjax.certifiers.votes import FixedVotes
from wsjax.scores import ABSTAIN
from wsjax.votes import as_argument

_NOT_FINITE = -2  # Stands for the answer when a logit is NaN or infinite.

Ask = Callable[[Any, np.ndarray], np.ndarray]


def make_ask(
    classify: Callable[[jax.Array], jax.Array],
    smoothing: smoothed.Smoothing | None,
    decide: Callable[[jax.Array, jax.Array], np.ndarray] | None,
    n: int,
    alpha: float,
    early: bool = False,
) -> Ask:
    """`(keys [B], images [B, H, W, C]) -> labels [B]` of a classifier.

    Args:
      classify: images to logits.
      smoothing: ask the classifier smoothed by this noise, or None.
      decide: answers in place of both, or None.
      n: votes per answer of a smoothed classifier.
      alpha: its level.
      early: whether a smoothed classifier answers as soon as its votes are clear
        (`certifiers.votes`), by `n` votes at most.

    Returns:
      The function; abstentions are `ABSTAIN`. Keys may be None for a plain classifier.
      It raises ValueError where a logit is NaN or infinite.
    """
    classify = as_argument(classify)

    def ask(keys, images):
        if decide is not None:
            return np.asarray(decide(keys, jnp.asarray(images)))
        if smoothing is not None:
            voters = FixedVotes(classify, smoothing, n=n, alpha=alpha)
            look = FIRST_LOOK if early else None
            answers = voters.predict_each(np.asarray(images), keys, look)
            return np.array([answer.label for answer in answers])
        found = np.asarray(_argmax(jnp.asarray(images), classify))
        if (found == _NOT_FINITE).any():
            broken = np.flatnonzero(found == _NOT_FINITE).tolist()
            raise ValueError(
                f"classify returns NaN or inf on images {broken} of a batch."
            )
        return found

    return ask


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


def check_images(images, labels):
    """Images and labels as NumPy arrays, checked.

    Args:
      images: `[N, H, W, C]` float, in [0, 1], none all black.
      labels: `[N]` int.

    Raises:
      ValueError: they are not that.
    """
    images, labels = np.asarray(images), np.asarray(labels)
    if images.ndim != 4 or 0 in images.shape:
        raise ValueError(
            f"images has shape {images.shape} instead of [N, H, W, C]. Grayscale "
            f"images need a last axis of size 1."
        )
    if not np.issubdtype(images.dtype, np.floating):
        raise ValueError(
            f"Pixels are {images.dtype}; convert to floats in [0, 1] first, e.g. "
            f"images.astype(np.float32) / 255."
        )
    if labels.shape != images.shape[:1] or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(
            f"labels has shape {labels.shape} and dtype {labels.dtype}; "
            f"{len(images)} images need as many integers."
        )
    if not np.isfinite(images).all():
        broken = np.flatnonzero(~np.isfinite(images).all((1, 2, 3)))
        raise ValueError(f"Images {broken.tolist()} have NaN or infinite pixels.")
    if images.min() < 0 or images.max() > 1:
        raise ValueError(
            f"Pixels run from {images.min():g} to {images.max():g}, outside [0, 1]. "
            f"Divide 8-bit images by 255; leave standardisation to the model."
        )
    black = np.flatnonzero(images.sum((1, 2, 3)) == 0)
    if black.size:
        raise ValueError(
            f"Images {black.tolist()} are all black: there is no mass to move. Leave "
            f"them out."
        )
    return images, labels


@jax.jit
def fold_in(key: jax.Array, rows: jax.Array, steps: jax.Array) -> jax.Array:
    """One key per image and step, whichever other images are run."""

    def one(row, step):
        return jax.random.fold_in(jax.random.fold_in(key, row), step)

    return jax.vmap(one)(rows, steps)


@jax.jit
def _argmax(images, classify):
    logits = classify(images)
    finite = jnp.isfinite(logits).all(axis=-1)
    return jnp.where(finite, logits.argmax(axis=-1), _NOT_FINITE)
