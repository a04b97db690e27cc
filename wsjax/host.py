"""Classifiers that are not JAX's: a function of NumPy arrays, in whatever framework.

Votes are counted without a callback: JAX draws the noise of a block of copies, the host
asks the classifier, and the next block is drawn meanwhile (`votes.count_votes` does so
wherever it is given a `HostClassifier`). Callbacks out of compiled programs, which hang
where several devices wait for each other, are left to the gradients of attacks.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


class HostClassifier:
    """A classifier that runs on the host, to be used wherever one in JAX can be.

    Votes, certificates and attacks take it as they take a function of JAX arrays; within
    compiled programs (attacks) it works on one device. `interop.torch_modules` and
    `interop.onnx_files` make them of PyTorch modules and ONNX files.

    Attributes:
      function: `[B, H, W, C]` float32 NumPy array in pixel units -> logits `[B, K]`, or
        whatever `numpy.asarray` makes that of. One fixed function of each image, whatever
        images are beside it.
      gradient: `(images, above) -> [B, H, W, C]`, gradient in the images of the sum of
        `above * function(images)`, with `above` `[B, K]`; None where there is none. Attacks
        need it, votes do not.
      batch_size: images of every call of `function`, where it takes exactly so many; what
        is missing is filled up with copies of the last. None for as many as there are.
    """

    def __init__(
        self,
        function: Callable[[np.ndarray], Any],
        gradient: Callable[[np.ndarray, np.ndarray], Any] | None = None,
        batch_size: int | None = None,
    ):
        """Takes a function and, if there is one, its gradient.

        Raises:
          TypeError: `function` is not callable.
          ValueError: `batch_size` is not a positive whole number.
        """
        if not callable(function):
            raise TypeError(f"Expected a callable, got {type(function).__name__}.")
        if batch_size is not None and (batch_size != int(batch_size) or batch_size < 1):
            raise ValueError(
                f"batch_size={batch_size!r} is not a positive whole number of images; "
                f"None is for batches of any size."
            )
        self.function, self.gradient = function, gradient
        self.batch_size = batch_size
        self._classes: dict[tuple[int, ...], int] = {}

    def __repr__(self) -> str:
        name = getattr(self.function, "__qualname__", type(self.function).__name__)
        return f"HostClassifier({name}, batch_size={self.batch_size})"

    def __call__(self, images: Any) -> Any:
        """Logits `[B, K]` float32 of images `[B, H, W, C]`; JAX's if traced, else NumPy's.

        Raises:
          TypeError: the function returned something else than numbers.
          ValueError: they are not `[B, K]`; or a gradient is asked for that is not there.
        """
        if not isinstance(images, jax.core.Tracer):
            return self._logits(np.asarray(images))
        shape = images.shape[1:]
        if shape not in self._classes:
            # Any image tells how many classes there are. A function may use JAX too, and
            # is not to be traced along.
            with jax.ensure_compile_time_eval():
                found = self._logits(np.full((1, *shape), 0.5))
            self._classes[shape] = found.shape[1]
        return _traced(self, self._classes[shape], images)

    def _logits(self, images):
        images = np.asarray(images, np.float32)
        found = [_numbers(self.function(part), part) for part in self._batches(images)]
        return np.concatenate(found)[: len(images)]

    def _gradient(self, images, above):
        if self.gradient is None:
            raise ValueError(
                "The classifier has no gradient, which attacks need: give "
                "HostClassifier(function, gradient=...) one, or a PyTorch module."
            )
        images, above = (np.asarray(x, np.float32) for x in (images, above))
        parts = zip(self._batches(images), self._batches(above), strict=True)
        found = [np.asarray(self.gradient(*part), np.float32) for part in parts]
        return np.concatenate(found)[: len(images)]

    def _batches(self, array):
        size = self.batch_size or len(array)
        for start in range(0, len(array), size):
            part = array[start : start + size]
            missing = size - len(part)
            yield np.pad(part, [(0, missing)] + [(0, 0)] * (part.ndim - 1), mode="edge")


def _numbers(found, images):
    """Logits `[B, K]` float32 that a function returned for images."""
    if found is None or isinstance(found, (dict, list, tuple, str, bytes)):
        raise TypeError(
            f"The classifier returned {_kind(found)} for images {images.shape}; it should "
            f"return an array of logits [B, K] alone. Wrap it in a function that picks it."
        )
    try:
        array = np.asarray(found)
    except Exception as error:
        raise TypeError(
            f"The classifier returned {type(found).__name__}, which NumPy cannot read "
            f"({error}); return a NumPy array of logits [B, K]."
        ) from error
    if array.dtype.kind not in "fiub" or array.ndim != 2 or len(array) != len(images):
        raise ValueError(
            f"The classifier turned images {images.shape} into {array.dtype} "
            f"{array.shape}; it should return logits [B, K], here "
            f"[{len(images)}, number of classes]."
        )
    return array.astype(np.float32)


def _kind(found):
    if isinstance(found, dict):
        return f"a dict with keys {list(found)[:8]}"
    if isinstance(found, (list, tuple)):
        return f"a {type(found).__name__} of {len(found)}"
    return "nothing" if found is None else f"a {type(found).__name__}"


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _traced(classifier, classes, images):
    shape = jax.ShapeDtypeStruct((len(images), classes), jnp.float32)
    return jax.pure_callback(
        classifier._logits, shape, images, vmap_method="sequential"
    )


def _forward(classifier, classes, images):
    return _traced(classifier, classes, images), images


def _backward(classifier, classes, images, above):
    del classes
    shape = jax.ShapeDtypeStruct(images.shape, jnp.float32)
    found = jax.pure_callback(
        classifier._gradient, shape, images, above, vmap_method="sequential"
    )
    return (found.astype(images.dtype),)


_traced.defvjp(_forward, _backward)


def count_votes(
    classifier: HostClassifier,
    perturb: jax.tree_util.Partial,
    keys: Sequence[jax.Array],
    images: np.ndarray,
    *,
    n: int,
    start: int,
    block_size: int,
    device: Any = None,
) -> np.ndarray:
    """Votes of `votes.count_votes_each`, draw by draw the same, counted on the host.

    Args:
      classifier: of the copies.
      perturb: as in `votes.count_votes`, a `Partial`.
      keys: `I` keys.
      images: `[I, H, W, C]`.
      n: number of draws of each image.
      start: number of the first.
      block_size: copies drawn and classified at a time.
      device: where they are drawn; None for JAX's first.

    Returns:
      `[I, K]` int32.
    """
    blocks = [
        (place, first)
        for place in range(len(images))
        for first in range(start, start + n, block_size)
    ]

    def drawn() -> Iterator[tuple[int, int, jax.Array]]:
        for place, first in blocks:
            image = jax.device_put(images[place], device)
            yield place, first, _copies(perturb, keys[place], image, first, block_size)

    counted: Any = None
    for place, first, copies in _one_ahead(drawn()):
        logits = classifier(np.asarray(copies)[: start + n - first])
        if counted is None:
            counted = np.zeros((len(images), logits.shape[1]), np.int32)
        winners = logits.argmax(1)[np.isfinite(logits).all(1)]
        counted[place] += np.bincount(winners, minlength=counted.shape[1])
    return counted


def _one_ahead(blocks):
    """The same, each handed out when the next has been queued."""
    ready = next(blocks)
    for following in blocks:
        yield ready
        ready = following
    yield ready


@functools.partial(jax.jit, static_argnames="size")
def _copies(perturb, key, image, first, size):
    """`[size, H, W, C]`: copies of draws from `first` on."""
    draws = first + jnp.arange(size, dtype=jnp.int32)
    keys = jax.vmap(lambda draw: jax.random.fold_in(key, draw))(draws)
    return jax.vmap(perturb, (0, None))(keys, image)
