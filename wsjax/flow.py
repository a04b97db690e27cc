"""Flow plans, image mass, and the map Delta that moves mass along a plan.

Everything here is pure and safe under `jit`, `vmap` and `grad`. Functions act on
one image `[H, W, C]` of any size, floating dtype kept; callers `vmap` over batches.
"""

from typing import Generic, NamedTuple, TypeVar

import jax
import jax.numpy as jnp

from wsjax import text

Edges = TypeVar("Edges")  # Arrays, or the shapes of arrays.


class FlowPlan(NamedTuple, Generic[Edges]):
    """A local flow plan delta: one signed real per pair of adjacent pixels.

    Positive entries carry mass down (`vertical`) or right (`horizontal`), within a
    channel. Two layouts exist, told apart by the shapes alone:

      * bordered (the paper's): `[H-1, W, C]` and `[H, W-1, C]`; nothing crosses
        the border of the image;
      * wrapped: `[H, W, C]` each; the last row's vertical edges lead to the first
        row and the last column's horizontal edges to the first column.

    Attributes:
      vertical: mass moved from pixel `[i, j]` to `[i+1, j]`.
      horizontal: mass moved from pixel `[i, j]` to `[i, j+1]`.
    """

    vertical: Edges
    horizontal: Edges

    def __repr__(self) -> str:
        return text.short_repr(self)


def flow_shape(image_shape: tuple[int, ...], wrap: bool = False) -> FlowPlan[tuple]:
    """Shapes of the two edge arrays of a plan on an image.

    Args:
      image_shape: `(H, W, C)`, each at least one.
      wrap: whether edges also join opposite borders.

    Returns:
      `FlowPlan` whose two entries are shape tuples.

    Raises:
      ValueError: `image_shape` is not three positive sizes.
    """
    if len(image_shape) != 3 or min(image_shape) < 1:
        raise ValueError(
            f"An image has shape [H, W, C] with positive sizes, got {image_shape}. "
            f"A grayscale image needs a last axis of size 1; a batch needs jax.vmap."
        )
    height, width, channels = image_shape
    if wrap:
        return FlowPlan((height, width, channels), (height, width, channels))
    return FlowPlan((height - 1, width, channels), (height, width - 1, channels))


def apply_flow(image: jax.Array, flow: FlowPlan[jax.Array]) -> jax.Array:
    """Moves mass along `flow`: the map x -> Delta(x, delta) of the paper.

    Mass leaving a pixel arrives at a neighbour in the same channel. Hence, up to
    rounding,

      * the mass of every channel is unchanged, and
      * plans compose by adding: applying `a`, then `b`, is applying `a + b`.

    The second property carries the certificate: noise on the plan and an
    adversary's plan act alike. Pixels may go negative; clipping them here
    would break both properties.

    Args:
      image: `[H, W, C]` float, mass per pixel; total mass one when the result
        feeds a certificate (see `normalize_mass`).
      flow: plan of shape `flow_shape(image.shape)`, or of shape
        `flow_shape(image.shape, wrap=True)`, in the unit and dtype of `image`.

    Returns:
      `[H, W, C]`, dtype of `image`.

    Raises:
      ValueError: `flow` belongs to another image shape.

    Source: Levine & Feizi, "Wasserstein Smoothing", arXiv:1910.10783, Section 4.
    """
    return image - divergence(flow, image.shape)


def divergence(flow: FlowPlan[jax.Array], image_shape: tuple[int, ...]) -> jax.Array:
    """Net mass that leaves each pixel under `flow`; sums to zero in each channel.

    `apply_flow(image, flow) == image - divergence(flow, image.shape)`. It is the
    adjoint of `potential_gradient` up to sign:
    `sum(potential * divergence(flow)) == -<potential_gradient(potential), flow>`.

    Args:
      flow: bordered or wrapped plan for an image of shape `image_shape`.
      image_shape: `(H, W, C)`.

    Returns:
      `[H, W, C]`, dtype of the plan.

    Raises:
      ValueError: `flow` belongs to another image shape.
    """
    given = FlowPlan(flow.vertical.shape, flow.horizontal.shape)
    bordered = flow_shape(image_shape)
    wrapped = flow_shape(image_shape, wrap=True)
    if given not in (bordered, wrapped):
        raise ValueError(
            f"Flow shapes {tuple(given)} do not fit an image of shape {image_shape}, "
            f"which needs {tuple(bordered)}, or {tuple(wrapped)} with wrap-around "
            f"edges."
        )
    height, width, channels = image_shape
    # Rows of width x channels: long inner loops, and concatenations of whole blocks,
    # are what compiles well on a CPU (2.6 times faster than pads of [H, W, C]).
    vertical = flow.vertical.reshape(len(flow.vertical), width * channels)
    horizontal = flow.horizontal.reshape(height, given.horizontal[1] * channels)
    if given == bordered:
        # A zero edge on each side: nothing crosses the border.
        first = last = jnp.zeros((1, width * channels), vertical.dtype)
        left = right = jnp.zeros((height, channels), horizontal.dtype)
        before = jnp.concatenate([first, vertical], axis=0)
        after = jnp.concatenate([vertical, last], axis=0)
        before_x = jnp.concatenate([left, horizontal], axis=1)
        after_x = jnp.concatenate([horizontal, right], axis=1)
    else:
        before, after = jnp.roll(vertical, 1, axis=0), vertical
        before_x, after_x = jnp.roll(horizontal, channels, axis=1), horizontal
    return ((after - before) + (after_x - before_x)).reshape(image_shape)


def potential_gradient(potential: jax.Array, wrap: bool = False) -> FlowPlan[jax.Array]:
    """Differences of a potential along every edge: end minus start.

    By duality, moving mass along `flow` changes `sum(potential * image)` by the
    inner product of `potential_gradient(potential)` and `flow`. A potential with
    all differences in [-1, 1] is 1-Lipschitz in the Manhattan metric, so it bounds
    the Wasserstein distance from below.

    Args:
      potential: `[H, W, C]` float.
      wrap: whether to include the edges that join opposite borders.

    Returns:
      `FlowPlan` of shape `flow_shape(potential.shape, wrap)`.

    Raises:
      ValueError: `potential` is not `[H, W, C]`.
    """
    flow_shape(potential.shape)
    if wrap:
        return FlowPlan(
            jnp.roll(potential, -1, axis=0) - potential,
            jnp.roll(potential, -1, axis=1) - potential,
        )
    return FlowPlan(jnp.diff(potential, axis=0), jnp.diff(potential, axis=1))


def flow_cost(flow: FlowPlan[jax.Array]) -> jax.Array:
    """L1 norm of a plan: the Manhattan cost of the transport it performs.

    Args:
      flow: any plan; mass per edge.

    Returns:
      Scalar, dtype of the plan, in pixels x mass.

    Source: Levine & Feizi, arXiv:1910.10783, Section 4: the minimum of this norm
    over the plans that turn `mu` into `mu'` is the Manhattan distance W(mu, mu').
    """
    return jnp.abs(flow.vertical).sum() + jnp.abs(flow.horizontal).sum()


def image_mass(image: jax.Array) -> jax.Array:
    """Total mass of one image, over pixels and channels.

    Args:
      image: `[H, W, C]`, nonnegative.

    Returns:
      Scalar, dtype of `image`.

    Raises:
      ValueError: `image` is not `[H, W, C]`.
    """
    flow_shape(image.shape)
    return image.sum()


def normalize_mass(image: jax.Array) -> jax.Array:
    """Rescales an image to total mass one: the `mu = x / m` of the certificates.

    Args:
      image: `[H, W, C]` float, nonnegative and not all zero. Arrays are not
        inspected here (this runs under `jit`); `check_image` does that on the host.

    Returns:
      `[H, W, C]`, dtype of `image`; not finite when the image is all black.

    Raises:
      ValueError: `image` is not `[H, W, C]`.
    """
    return image / image_mass(image)
