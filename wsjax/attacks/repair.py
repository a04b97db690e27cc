"""Making a valid image of what an attack returns: pixels in [0, 1], mass unchanged.

A Wasserstein ball holds images of equal mass. Attacks that clip lose mass, attacks that
do not clip return pixels above one. Both are put right here in the same way, so that
distances and answers of different attacks compare.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike


@jax.jit
def nearest_valid(images: jax.Array, points: jax.Array) -> jax.Array:
    """The valid images nearest to given points, in Euclidean distance.

    Adds one number to all pixels of a channel and clips, the number chosen such that
    the channel has the mass it has in `images`: that is the projection onto
    `{0 <= z <= 1, sum z = mass}`. Masses agree to float rounding.

    Args:
      images: `[N, H, W, C]` float in [0, 1]; only the masses of channels are used.
      points: the same shape, finite.

    Returns:
      `[N, H, W, C]`, dtype of `points`.

    Source: the optimality conditions of the projection; the number solves a monotone
    equation, here by bisection.
    """
    mass = images.astype(points.dtype).sum((1, 2), keepdims=True)
    low = points.min((1, 2), keepdims=True) - 1  # Every pixel becomes one,
    high = points.max((1, 2), keepdims=True)  # or zero.

    def halve(_, bracket):
        low, high = bracket
        middle = (low + high) / 2
        heavy = jnp.clip(points - middle, 0, 1).sum((1, 2), keepdims=True) > mass
        return jnp.where(heavy, middle, low), jnp.where(heavy, high, middle)

    low, high = jax.lax.fori_loop(0, 30, halve, (low, high))
    valid = jnp.clip(points - (low + high) / 2, 0, 1)
    # What rounding of the bracket leaves, spread over the pixels that can take it.
    free = (valid > 0) & (valid < 1)
    missing = mass - valid.sum((1, 2), keepdims=True)
    share = missing / jnp.maximum(free.sum((1, 2), keepdims=True), 1)
    return jnp.clip(jnp.where(free, valid + share, valid), 0, 1)


def round_to_levels(images: ArrayLike, points: ArrayLike, levels: int = 255):
    """Rounds valid images to whole levels, each channel to exactly its mass.

    Every pixel goes to one of its two neighbouring levels, those with the largest
    fractions up: as many as the channel's mass asks for. An image read from 8-bit
    files keeps its mass to the last unit.

    Args:
      images: `[N, H, W, C]` in [0, 1], whose masses are kept; in whole levels, as
        images read from files are.
      points: the same shape; valid images of these masses (`nearest_valid`).
      levels: 255 for 8-bit images.

    Returns:
      `[N, H, W, C]` float32 array, whole multiples of `1 / levels` in float32.

    Raises:
      ValueError: a channel of `images` has no whole number of levels.
    """
    masses = levels * np.asarray(images, np.float64).sum((1, 2))
    wanted = np.rint(masses).astype(int)
    worst = np.abs(masses - wanted).max(initial=0)
    if worst > 0.01:
        raise ValueError(
            f"The mass of a channel is {worst:.3g} levels away from a whole number of "
            f"1/{levels}. Rounding keeps mass only for images that are in levels "
            f"themselves, such as 8-bit images divided by 255."
        )
    scaled = (levels * np.asarray(points, np.float64)).clip(0, levels)
    down = np.floor(scaled)
    order = (scaled - down).reshape(len(scaled), -1, scaled.shape[-1])
    rank = (-order).argsort(1, kind="stable").argsort(1, kind="stable")
    lacking = wanted - down.sum((1, 2)).astype(int)
    up = (rank < lacking[:, None]).reshape(scaled.shape)
    return ((down + up) / levels).astype(np.float32)
