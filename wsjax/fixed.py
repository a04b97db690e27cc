"""Whether a classifier is one fixed function of each image, as theorems ask of it.

Normalisation by the batch, dropout by place and the like make an answer depend on the
images beside it; a closure over weights that change goes on, inside compiled programs,
with the first ones. Neither shows in the votes.
"""

import functools
import hashlib
import re
import weakref
from typing import Any

import jax
import numpy as np

from wsjax.votes import logits_of

# Of the spread of all logits. Rounding, in half precision too, is below.
_MOST_CHANGE = 0.01

_CONTEXT = ("jax_enable_x64", "jax_default_matmul_precision")

# Image shapes that classifiers were tried on, and what functions were when first seen.
_TRIED: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()
_SEEN: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()


def check_fixed(classify: jax.tree_util.Partial, image: Any) -> None:
    """Refuses a classifier that is no fixed function; once for each and image shape.

    Two of four noisy copies of an image are classified beside the two others, in reverse
    order, and beside images of another kind. A function that was seen before is traced
    again, and compared with what it was.

    Args:
      classify: as `votes.as_argument` makes it. One that is kept is tried once.
      image: `[H, W, C]`.

    Raises:
      ValueError: logits depend on the other images of a batch, or on the place in it; a
        function has changed since it was compiled; or it returns no logits.
    """
    tried = _TRIED.setdefault(classify, set())
    image = np.asarray(image)
    if image.shape in tried:
        return
    # Of arrays that are spread over processes, this one's copy.
    own = jax.tree.map(
        lambda x: x.addressable_data(0) if isinstance(x, jax.Array) else x, classify
    )
    rng = np.random.default_rng(0)
    shape, size = (4, *image.shape), image.max()
    copies = (image + 0.05 * size * rng.normal(size=shape)).astype(image.dtype)
    others = (size * rng.uniform(-5, 5, shape)).astype(image.dtype)
    others[::2] = copies[::2]
    _check_unchanged(own, copies)
    found, turned, apart = (
        np.asarray(_logits(own, batch), np.float64)
        for batch in (copies, copies[::-1], others)
    )
    spread = found.max() - found.min()
    for logits, which in (
        (turned[::-1], "the order of its batch"),
        (np.where([[1], [0], [1], [0]], apart, found), "the other images of its batch"),
    ):
        change = np.abs(logits - found).max()
        if change > _MOST_CHANGE * spread:  # Not where they are no numbers.
            raise ValueError(
                f"The classifier is no fixed function of an image: logits between "
                f"{found.min():.3g} and {found.max():.3g} change by {change:.3g} with "
                f"{which}. Turn off batch statistics and dropout (train=False, "
                f"use_running_average=True, or model.eval() of an NNX module), and "
                f"whatever else mixes images."
            )
    tried.add(image.shape)


@jax.jit
def _logits(classify, images):
    return logits_of(classify, images)


def _check_unchanged(classify, images):
    """Refuses a function that closes over something else than it did when first seen."""
    try:
        seen = _SEEN.setdefault(classify.func, {})
    except TypeError:  # Cannot be referred to weakly: compiled programs are its own.
        return
    leaves, tree = jax.tree.flatten((classify.args, classify.keywords))

    def anew(leaves, images):  # Not the same object, so that nothing is remembered.
        args, options = jax.tree.unflatten(tree, leaves)
        return logits_of(functools.partial(classify.func, *args, **options), images)

    traced = jax.make_jaxpr(anew)(leaves, images)
    digest = hashlib.sha256(re.sub(r"0x[0-9a-f]+", "", str(traced)).encode())
    for constant in traced.consts:
        if jax.dtypes.issubdtype(constant.dtype, jax.dtypes.prng_key):
            constant = jax.random.key_data(constant)
        digest.update(np.ascontiguousarray(constant).data)
    # What other compiled programs would be for.
    asked = (
        tree,
        *((np.shape(leaf), getattr(leaf, "dtype", None)) for leaf in (*leaves, images)),
        *(getattr(jax.config, name) for name in _CONTEXT),
    )
    if seen.setdefault(asked, digest.digest()) != digest.digest():
        raise ValueError(
            "The classifier is another function than when it was first used: something "
            "that it closes over has changed, and compiled programs go on with what it "
            "was. Pass weights as arguments, jax.tree_util.Partial(apply, weights), or "
            "make a new function for new ones."
        )
