"""Counting votes: classify noisy copies of an image and count the answers.

The room knows neither flows nor theorems. It takes two callables, `classify` and
`perturb`, and spreads `n` draws over the local devices. A draw's randomness depends
on the key and on the number of the draw alone, `fold_in(key, draw)`, so the counts
are the same for any number of devices, any size and order of blocks (as far as the
classifier's own arithmetic does not depend on the size of its batch), and whichever
other images are run. Memory holds one block of noisy images per device, never `n`.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, PartitionSpec

_AXIS = "draws"

BACKENDS = ("pmap", "shard_map")


def as_argument(function: Callable) -> jax.tree_util.Partial:
    """Wraps a callable so that it can pass through `jax.jit` as an argument.

    A `jax.tree_util.Partial(apply, variables)` is passed on as it is: its arrays
    stay arguments of the compiled program rather than constants inside it, so new
    weights need no new compilation. Any other callable is treated as fixed; keep
    one object and reuse it, since each new object compiles anew.

    Args:
      function: any callable.

    Returns:
      A `Partial` with the same behaviour.

    Raises:
      TypeError: `function` is not callable.
    """
    if isinstance(function, jax.tree_util.Partial):
        return function
    if not callable(function):
        raise TypeError(f"Expected a callable, got {type(function).__name__}.")
    return jax.tree_util.Partial(function)


def count_votes(
    key: jax.Array,
    image: jax.Array,
    classify: Callable[[jax.Array], jax.Array],
    perturb: Callable[[jax.Array, jax.Array], jax.Array],
    *,
    n: int,
    start: int = 0,
    block_size: int = 250,
    devices: Sequence[Any] | None = None,
    backend: str = "pmap",
) -> jax.Array:
    """Counts how often each class wins among `n` noisy copies of one image.

    Draw `i` is `argmax(classify(perturb(fold_in(key, i), image)))`. A copy whose
    logits are not all numbers votes for nothing, so counts that sum to less than
    `n` reveal a broken classifier.

    One program serves every `n` and every image of one shape. The call returns as
    soon as the work is queued; reading the result waits for it.

    Args:
      key: used up by this call.
      image: `[H, W, C]` float.
      classify: `[B, H, W, C] -> [B, K]` logits; a vote goes to the largest, ties
        to the smallest class index. See `as_argument` for weights.
      perturb: `(key, [H, W, C]) -> [H, W, C]`, one noisy copy, e.g. the method
        `perturb` of a noise law.
      n: number of draws, at least one.
      start: number of the first draw. Counts of `n` draws and those of `m` more from
        `start=n` sum to the counts of `n + m` draws.
      block_size: draws classified at a time on one device. Around 250 suits a
        CPU's caches; larger is better on accelerators. Keep it fixed within a run.
      devices: local devices to use; default all of this process.
      backend: "pmap", or "shard_map", what `pmap` compiles to; same counts.

    Returns:
      `[K]` int32 counts.

    Raises:
      ValueError: `n` or `block_size` is not positive, `start` is negative, draws reach
        2**31, the backend is unknown, or the classifier's output is not `[B, K]`.
    """
    for name, value in (("n", n), ("block_size", block_size)):
        if int(value) != value or not 1 <= value < 2**31 - 2**24:
            raise ValueError(
                f"{name}={value!r} is not a whole number between 1 and 2**31 - 2**24."
            )
    if int(start) != start or not 0 <= start < 2**31 - 2**24 - n:
        raise ValueError(
            f"start={start!r} is not a whole number from 0 with start + n={n} below "
            f"2**31 - 2**24."
        )
    if block_size > 2**24:
        raise ValueError(f"block_size={block_size} is above 2**24; use smaller blocks.")
    if backend not in BACKENDS:
        raise ValueError(f"backend={backend!r} is not one of {BACKENDS}.")
    devices = tuple(jax.local_devices() if devices is None else devices)
    classify, perturb = as_argument(classify), as_argument(perturb)
    image = jnp.asarray(image)
    blocks = jax.ShapeDtypeStruct((int(block_size), *image.shape), image.dtype)
    logits = jax.eval_shape(classify, blocks)
    if logits.ndim != 2 or logits.shape[0] != block_size:
        raise ValueError(
            f"classify turned images {blocks.shape} into {logits.shape}; it should "
            f"return logits [B, K], here [{block_size}, number of classes]."
        )
    counter = _counter(int(block_size), logits.shape[1], devices, backend)
    draws = np.array([start, start + n], np.int32)
    return counter(classify, perturb, key, image, draws)


def _block_votes(first, end, size, num_classes, classify, perturb, keys_from, image):
    """`[K]` int32 votes of draws `first + (0 ... size - 1)` below `end`."""
    draws = first + jnp.arange(size, dtype=jnp.int32)

    def copy(draw):
        return perturb(jax.random.fold_in(keys_from, draw), image)

    # XLA merges cheap steps of the noise into whatever reads it, and makes the random
    # bits anew for every reader. It does not look into a branch; this one is always
    # taken, which it cannot know.
    nothing = (0 * draws).astype(image.dtype)
    copies = jax.lax.cond(
        first < end,
        jax.vmap(copy),
        lambda draws: jnp.zeros_like(image) + nothing.reshape(-1, *[1] * image.ndim),
        draws,
    )
    logits = classify(copies)
    valid = (draws < end) & jnp.all(jnp.isfinite(logits), axis=-1)
    winners = jnp.argmax(logits, axis=-1)
    # Comparing beats scattering on every backend at these sizes.
    hits = winners[:, None] == jnp.arange(num_classes, dtype=winners.dtype)
    return jnp.sum(hits & valid[:, None], axis=0, dtype=jnp.int32)


@functools.cache
def _counter(block_size, num_classes, devices, backend):
    """The compiled counting loop for one layout of blocks over devices."""
    stride = len(devices)

    def on_one_device(first_block, classify, perturb, key, image, draws):
        start, end = draws
        blocks = (end - start + block_size - 1) // block_size
        # Device d takes blocks d, d + stride, ...: a loop of run-time length, so
        # that selection and estimation, with other n, share one program.
        rounds = jnp.maximum(blocks - first_block + stride - 1, 0) // stride

        def add_block(i, votes):
            first = start + (first_block + i * stride) * block_size
            return votes + _block_votes(
                first, end, block_size, num_classes, classify, perturb, key, image
            )

        votes = jnp.zeros((num_classes,), jnp.int32)
        if backend == "shard_map":
            votes = jax.lax.pcast(votes, _AXIS, to="varying")
        votes = jax.lax.fori_loop(0, rounds, add_block, votes)
        return jax.lax.psum(votes, _AXIS)

    first_blocks = np.arange(stride, dtype=np.int32)
    if backend == "pmap":
        mapped = jax.pmap(
            on_one_device,
            axis_name=_AXIS,
            in_axes=(0, None, None, None, None, None),
            out_axes=None,
            devices=devices,
        )
        return functools.partial(mapped, first_blocks)

    # Auto axis types: the default (explicit) ones would want every array placed.
    mesh = Mesh(np.array(devices), (_AXIS,), axis_types=(AxisType.Auto,))
    everywhere = PartitionSpec()
    mapped = jax.jit(
        jax.shard_map(
            lambda first, *rest: on_one_device(first[0], *rest),
            mesh=mesh,
            in_specs=(PartitionSpec(_AXIS),) + (everywhere,) * 5,
            out_specs=everywhere,
        )
    )
    return functools.partial(mapped, first_blocks)
