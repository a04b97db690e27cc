"""Euclidean projection onto the images that a flow plan of bounded cost can reach.

Given an image x, a point v and a radius r, find

    minimise |z - v|^2   over   z = x + A d,   0 <= z <= 1,   sum_e w_e |d_e| <= r,

where d is a flow on the edges of a stencil (every pixel to its neighbours at a few fixed
offsets, within its channel), w_e the length of an edge, and A carries mass along. Any
such z has the mass of x in every channel and lies within r of it: these are all images
of the Wasserstein ball, not a window of it, for the Manhattan metric and the stencil of
nearest neighbours.

The range of pixels is what makes the problem hard: a dark pixel has nothing to give and
a bright one no room. It is solved as a saddle point,

    min over d in the ball, max over u:   <u, x + A d> - g*(u),
    g(z) = |z - v|^2 / 2 within the box,

by the primal-dual iteration of Chambolle & Pock. A step needs the stencil twice, a clip
and a soft threshold. Three things make it cheap inside an attack:

  * flow and multiplier are handed from call to call, so a few steps are enough;
  * the threshold that puts a flow on the sphere is handed on as well, and improved by
    Newton steps, exact after a few, in place of a sort;
  * the batch is the last axis, so that shifts are copies of whole blocks and sums over an
    image are sums of vectors.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from wsjax.metrics import check_ground_metric, pixel_distance

# Directed once: the flow along an edge is signed. Worst ratio of the stencil's distance
# to the Euclidean one: between two neighbouring directions, halfway.
STENCILS = {
    4: ((1, 0), (0, 1)),
    8: ((1, 0), (0, 1), (1, 1), (1, -1)),
    16: (
        *((1, 0), (0, 1), (1, 1), (1, -1)),
        *((2, 1), (1, 2), (2, -1), (1, -2)),
    ),
}


class Flow(NamedTuple):
    """A point of the iteration; everything a later projection starts from.

    Attributes:
      edges: `[K, H, W, C, B]`, what each pixel sends along the K-th offset.
      multiplier: `[H, W, C, B]`, of the equation `z = x + A d`.
      threshold: `[B]`, subtracted from edges per unit length.
    """

    edges: jax.Array
    multiplier: jax.Array
    threshold: jax.Array


def default_neighbours(ground_metric: str) -> int:
    """4 for "l1", where such paths are exact; 8 for "l2"; ValueError for any other."""
    check_ground_metric(ground_metric)
    return 4 if ground_metric == "l1" else 8


def lengths(neighbours: int, ground_metric: str) -> np.ndarray:
    """`[K]`: length of each edge of a stencil.

    Args:
      neighbours: 4, 8 or 16.
      ground_metric: "l1" or "l2".

    Raises:
      ValueError: there is no such stencil, or another metric.
    """
    return pixel_distance(np.array(_offsets(neighbours), float), ground_metric)


def carry(edges: jax.Array, neighbours: int) -> jax.Array:
    """The change that a flow makes: A d.

    Args:
      edges: `[K, H, W, C, B]`; those that would leave the image must be zero.
      neighbours: number of the stencil, static.

    Returns:
      `[H, W, C, B]`, zero in sum over every channel.
    """
    moved = [
        _shift(edge, step) - edge for edge, step in zip(edges, _offsets(neighbours))
    ]
    return functools.reduce(jnp.add, moved)


def cost(edges: jax.Array, weights: jax.Array | np.ndarray) -> jax.Array:
    """`[B]`: what flows `[K, H, W, C, B]` pay on edges of length `weights` `[K]`."""
    return jnp.tensordot(
        jnp.asarray(weights, edges.dtype), jnp.abs(edges).sum((1, 2, 3)), 1
    )


def start(images: jax.Array, neighbours: int) -> Flow:
    """No flow on images `[H, W, C, B]`."""
    count = len(_offsets(neighbours))
    return Flow(
        jnp.zeros((count, *images.shape), images.dtype),
        jnp.zeros_like(images),
        jnp.zeros(images.shape[-1], images.dtype),
    )


def project(
    images: jax.Array,
    points: jax.Array,
    radius: jax.Array,
    flow: Flow,
    *,
    neighbours: int,
    weights: Sequence[float],
    iterations: int,
    balance: float = 1.0,
) -> Flow:
    """Moves a flow towards the one whose image is nearest to a point of its own.

    Converges to the projection as `iterations` grows. After finitely many, the flow is
    in the ball up to the accuracy of its threshold, and `images + carry(edges)` leaves
    [0, 1] by what the multiplier has not yet seen: clip and repair before use.

    Args:
      images: `[H, W, C, B]` in [0, 1].
      points: the same shape, any values.
      radius: `[B]`, in pixels x pixel units (not fractions of mass).
      flow: of `start`, or what an earlier call returned.
      neighbours: number of the stencil, static.
      weights: `[K]`, lengths of its edges, static.
      iterations: static.
      balance: step of the multiplier; the step of the flow is its inverse over the
        squared norm of A.

    Returns:
      `Flow`.

    Source: Chambolle & Pock, "A first-order primal-dual algorithm for convex problems
    with applications to imaging", JMIV 2011, Algorithm 1.
    """
    shape = images.shape
    inside = _inside(shape[:2], neighbours)
    # |A|^2 is at most 4 per offset; a hundredth keeps the steps stable in rounding.
    step = 0.99 / (4 * len(weights) * balance)
    length = jnp.asarray(weights, images.dtype).reshape(-1, 1, 1, 1, 1)

    def once(_, state):
        edges, ahead, u, threshold = state
        w = u + balance * (images + carry(ahead, neighbours))
        u = w - balance * jnp.clip((points + w) / (1 + balance), 0, 1)
        pull = jnp.stack([(_shift(u, (-a, -b)) - u) for a, b in _offsets(neighbours)])
        moved = (edges - step * pull) * inside
        size = jnp.abs(moved)
        for _ in range(2):
            above = size > threshold * length
            spent = (jnp.where(above, size, 0) * length).sum((0, 1, 2, 3)) - radius
            slope = (jnp.where(above, length, 0) * length).sum((0, 1, 2, 3))
            threshold = jnp.maximum(spent / jnp.maximum(slope, 1e-9), 0)
        new = jnp.sign(moved) * jnp.maximum(size - threshold * length, 0)
        return new, 2 * new - edges, u, threshold

    first = (flow.edges, flow.edges, flow.multiplier, flow.threshold)
    edges, _, u, threshold = jax.lax.fori_loop(0, iterations, once, first)
    return Flow(edges, u, threshold)


def _offsets(neighbours):
    if neighbours not in STENCILS:
        raise ValueError(f"neighbours={neighbours} is not one of {tuple(STENCILS)}.")
    return STENCILS[neighbours]


def _inside(size, neighbours):
    """`[K, H, W, 1, 1]`: which edges stay within the image."""
    height, width = size
    i, j = np.mgrid[:height, :width]
    marks = [
        (i + a < height) & (j + b >= 0) & (j + b < width)
        for a, b in _offsets(neighbours)
    ]
    return np.stack(marks)[..., None, None].astype(np.float32)


def _shift(field, step):
    """Every pixel's value moved by `step`, zeros from outside; `[H, W, C, B]`."""
    for axis, by in enumerate(step):
        if by:
            size = field.shape[axis]
            by = max(-size, min(size, by))
            none = jnp.zeros_like(jax.lax.slice_in_dim(field, 0, abs(by), axis=axis))
            if by > 0:
                kept = jax.lax.slice_in_dim(field, 0, size - by, axis=axis)
                field = jnp.concatenate([none, kept], axis)
            else:
                kept = jax.lax.slice_in_dim(field, -by, size, axis=axis)
                field = jnp.concatenate([kept, none], axis)
    return field
