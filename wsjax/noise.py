"""Noise laws: what is added to an image before each vote.

A law draws noise for an image of mass one. `perturb` scales it to the image at hand,
`x -> x + m * noise` with `m` the mass of `x`, so a classifier always sees pixel
units. Nothing is clipped: noisy pixels may be negative or above one, and clipping
them here would not be wrong (it is post-processing) but belongs to the model.

Laws are frozen and hashable, so they can be static arguments of `jax.jit`. Draws act
on one image; `votes.count_votes` maps them over many.
"""

import dataclasses
import math
import numbers

import jax
import jax.numpy as jnp

from wsjax.flow import FlowPlan, divergence, flow_shape, image_mass


def standard_laplace(key: jax.Array, shape: tuple[int, ...], dtype) -> jax.Array:
    """Laplace variables of scale one.

    One random bit is the sign and the others the magnitude, so the law is exactly
    symmetric and, in float32, reaches out to 22.2 scales (`jax.random.laplace`
    stops at 15.5 below and 16.6 above).

    Args:
      key: used up by this call.
      shape: of the result.
      dtype: float32 or float64.

    Returns:
      Array of `shape` and `dtype`, never infinite.

    Raises:
      ValueError: `dtype` is another type.
    """
    unit, negative = _unit_and_sign(key, shape, dtype)
    size = -jnp.log(unit)
    return jnp.where(negative == 1, -size, size)


def standard_uniform(key: jax.Array, shape: tuple[int, ...], dtype) -> jax.Array:
    """Uniform variables on [-1, 1); arguments as `standard_laplace`."""
    dtype = _checked_dtype(dtype)
    return jax.random.uniform(key, shape, dtype, minval=-1.0, maxval=1.0)


def standard_normal(key: jax.Array, shape: tuple[int, ...], dtype) -> jax.Array:
    """Gaussian variables of variance one; arguments as `standard_laplace`.

    As there, one random bit is the sign and the others the magnitude: exactly
    symmetric, and in float32 out to 6.3 standard deviations (`jax.random.normal`
    stops at 5.4, which 784 of them reach once in 20,000 draws).
    """
    unit, negative = _unit_and_sign(key, shape, dtype)
    size = -jax.scipy.special.ndtri(0.5 * unit)
    return jnp.where(negative == 1, -size, size)


def _unit_and_sign(key, shape, dtype):
    """Uniform variables in (0, 1] that reach close to 0, and random bits."""
    dtype = _checked_dtype(dtype)
    if dtype == jnp.float32:
        bits = jax.random.bits(key, shape, jnp.uint32)
        magnitude = (bits & jnp.uint32(0x7FFFFFFF)).astype(jnp.int32).astype(dtype)
        return (magnitude + 0.5) * 2.0**-31, bits >> 31
    bits = jax.random.bits(key, shape, jnp.uint64)
    magnitude = (bits >> 11).astype(jnp.int64).astype(dtype)
    return (magnitude + 0.5) * 2.0**-53, bits & jnp.uint64(1)


def _checked_dtype(dtype):
    dtype = jnp.dtype(dtype)
    if dtype not in (jnp.float32, jnp.float64):
        raise ValueError(
            f"Noise is drawn in float32 or float64, not {dtype}: the tails of coarser "
            f"types end too early for a certificate."
        )
    return dtype


class NoiseLaw:
    """A law of noise for images of mass one; see the subclasses."""

    def sample(self, key: jax.Array, image_shape: tuple[int, ...], dtype) -> jax.Array:
        """Draws noise for one image of mass one.

        Args:
          key: used up by this call.
          image_shape: `(H, W, C)`.
          dtype: float32 or float64.

        Returns:
          `[H, W, C]` of `dtype`, in fractions of the image's mass.

        Raises:
          ValueError: `image_shape` is not three positive sizes, or not the law's.
        """
        raise NotImplementedError

    def perturb(self, key: jax.Array, image: jax.Array) -> jax.Array:
        """Adds one draw to one image: `x + m * noise`, `m` the mass of `x`.

        Args:
          key: used up by this call.
          image: `[H, W, C]` float32 or float64, mass per pixel in any unit.

        Returns:
          `[H, W, C]` in the unit and dtype of `image`; not clipped.

        Raises:
          ValueError: `image` is not `[H, W, C]`.

        Source: Levine & Feizi, arXiv:1910.10783, Section 4. An adversary in the
        Wasserstein ball leaves `m` unchanged, so `m` may scale the noise.
        """
        return image + image_mass(image) * self.sample(key, image.shape, image.dtype)


@dataclasses.dataclass(frozen=True)
class IidNoise(NoiseLaw):
    """A law made of independent variables of one kind.

    Attributes:
      sigma: standard deviation of one variable (per edge for flow laws, per pixel
        for pixel laws), as a fraction of the image's mass.
    """

    sigma: float

    def __post_init__(self):
        if not (isinstance(self.sigma, numbers.Real) and 0 < self.sigma < math.inf):
            raise ValueError(
                f"sigma={self.sigma!r} is not a positive finite number. sigma is a "
                f"standard deviation as a fraction of the image's mass; 0.005 to "
                f"0.05 is usual for MNIST, 0.00005 to 0.001 for CIFAR-10."
            )

    @property
    def scale(self) -> float:
        """Factor from the standard variable of the law to one draw of it."""
        raise NotImplementedError

    def standard(self, key: jax.Array, shape: tuple[int, ...], dtype) -> jax.Array:
        """The law's variable before scaling; a function of this module."""
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class FlowNoise(IidNoise):
    """I.i.d. noise on the edges of the local flow plan; subclasses name the law.

    Attributes:
      sigma: standard deviation per edge, as a fraction of the image's mass.
      wrap: whether noise also flows along the edges that join opposite borders.
        Every plan of an adversary is a plan on the larger set of edges too, with
        the same norm, so the certificates hold for both; wrapping treats all
        pixels alike and adds noise at the border.
    """

    wrap: bool = False

    def sample_plan(
        self, key: jax.Array, image_shape: tuple[int, ...], dtype
    ) -> FlowPlan:
        """Draws a random flow plan; arguments as `sample`."""
        shapes = flow_shape(image_shape, self.wrap)
        counts = [math.prod(shape) for shape in shapes]
        draws = self.scale * self.standard(key, (sum(counts),), dtype)
        return FlowPlan(
            draws[: counts[0]].reshape(shapes.vertical),
            draws[counts[0] :].reshape(shapes.horizontal),
        )

    def sample(self, key: jax.Array, image_shape: tuple[int, ...], dtype) -> jax.Array:
        # The sign is immaterial to the law but is that of Delta(0, plan).
        return -divergence(self.sample_plan(key, image_shape, dtype), image_shape)


@dataclasses.dataclass(frozen=True)
class FlowLaplace(FlowNoise):
    """Laplace flow noise of scale b = sigma / sqrt(2) per edge: the paper's law."""

    @property
    def scale(self) -> float:
        return self.sigma / math.sqrt(2.0)

    def standard(self, key, shape, dtype):
        return standard_laplace(key, shape, dtype)


@dataclasses.dataclass(frozen=True)
class FlowUniform(FlowNoise):
    """Uniform flow noise on [-lam, lam] per edge, lam = sqrt(3) * sigma."""

    @property
    def scale(self) -> float:
        return self.sigma * math.sqrt(3.0)

    def standard(self, key, shape, dtype):
        return standard_uniform(key, shape, dtype)


@dataclasses.dataclass(frozen=True)
class FlowGaussian(FlowNoise):
    """Gaussian flow noise of standard deviation sigma per edge."""

    @property
    def scale(self) -> float:
        return self.sigma

    def standard(self, key, shape, dtype):
        return standard_normal(key, shape, dtype)


@dataclasses.dataclass(frozen=True)
class PixelLaplace(IidNoise):
    """Laplace noise of scale b = sigma / sqrt(2) per pixel: the paper's baseline.

    Unlike flow noise it does not preserve mass.
    """

    @property
    def scale(self) -> float:
        return self.sigma / math.sqrt(2.0)

    def standard(self, key, shape, dtype):
        return standard_laplace(key, shape, dtype)

    def sample(self, key: jax.Array, image_shape: tuple[int, ...], dtype) -> jax.Array:
        flow_shape(image_shape)
        return self.scale * self.standard(key, image_shape, dtype)
