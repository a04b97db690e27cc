"""Noise laws: what is added to an image before each vote.

A law draws noise for an image of mass one. `perturb` scales it to the image at hand,
`x -> x + m * noise` with `m` the mass of `x`, so a classifier always sees pixel
units. Nothing is clipped: noisy pixels may be negative or above one, and clipping
them here would not be wrong (it is post-processing) but belongs to the model.

Laws are values and pytrees: their arrays are arguments of compiled programs, so laws of
equal shapes share one, and their numbers are part of it. Draws act on one image;
`votes.count_votes` maps them over many.
"""

import dataclasses
import functools
import math
import numbers
from typing import Any, ClassVar, Self

import jax
import jax.numpy as jnp
import numpy as np
from scipy import special

from wsjax import fast_random, text
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
    return _laplace(_words(key, shape, dtype))


def standard_normal(key: jax.Array, shape: tuple[int, ...], dtype) -> jax.Array:
    """Gaussian variables of variance one; arguments as `standard_laplace`.

    As there, one random bit is the sign and the others the magnitude: exactly
    symmetric, and in float32 out to 6.3 standard deviations (`jax.random.normal`
    stops at 5.4, which 784 of them reach once in 20,000 draws).
    """
    return _normal(_words(key, shape, dtype))


def normal_at(key: jax.Array, positions: np.ndarray, dtype) -> jax.Array:
    """What `standard_normal` has at given positions of an array.

    Args:
      key: used up by this call.
      positions: uint32 array, row-major positions, in any order and number.
      dtype: float32 or float64.

    Returns:
      Array of the shape of `positions` and of `dtype`.

    Raises:
      ValueError: `dtype` is another type.
    """
    return _normal(fast_random.bits_at(key, positions, _word_size(dtype)))


def _words(key, shape, dtype):
    """Random bits: as many in each word as `dtype` has."""
    return jax.random.bits(key, shape, f"uint{_word_size(dtype)}")


def _word_size(dtype):
    return 8 * _checked_dtype(dtype).itemsize


# Each turns words into variables over a divisor, as the last thing it does: a division
# is what XLA computes once and keeps. A sign put in last would be recomputed, with the
# random bits below it, wherever the variable is used.
def _laplace(words, divisor=1.0):
    unit, sign = _unit_and_sign(words)
    return -jnp.log(unit) / (sign * divisor)


def _normal(words, divisor=1.0):
    unit, sign = _unit_and_sign(words)
    if unit.dtype == jnp.float64:
        return -jax.scipy.special.ndtri(0.5 * unit) / (sign * divisor)
    return _normal_size(unit) / (sign * divisor)


def _uniform(words, divisor=1.0):
    # The highest bits alone, so that every value is exact.
    bits = jnp.finfo(_float_of(words)).nmant
    steps = words >> (8 * words.dtype.itemsize - bits)
    # By way of signed integers, which every processor converts at once.
    steps = steps.astype(f"int{8 * words.dtype.itemsize}").astype(_float_of(words))
    value = steps * 2.0 ** (1 - bits) - 1
    # A divisor that is known beforehand would be turned into a factor.
    return jnp.abs(value) / (jnp.where(value < 0, -1.0, 1.0) * divisor)


def _float_of(words):
    return jnp.float32 if words.dtype == jnp.uint32 else jnp.float64


def _unit_and_sign(words):
    """Uniform variables in (0, 1] that reach close to 0, and signs."""
    if words.dtype == jnp.uint32:
        magnitude = (words & jnp.uint32(0x7FFFFFFF)).astype(jnp.int32)
        unit, sign = (magnitude.astype(jnp.float32) + 0.5) * 2.0**-31, words >> 31
    else:
        magnitude = (words >> 11).astype(jnp.int64)
        unit = (magnitude.astype(jnp.float64) + 0.5) * 2.0**-53
        sign = words & jnp.uint64(1)
    return unit, jnp.where(sign == 1, -1.0, 1.0).astype(unit.dtype)


def _normal_size(unit):
    """float32 `|z|` that a normal variable exceeds with probability `unit`.

    Of `w = -log(unit (2 - unit))`, `|z| / (1 - unit)` is smooth: a polynomial in w up
    to a breakpoint, one in sqrt(w) beyond, both within 1e-7 of SciPy's quantile. A
    third of the time of `ndtri`.
    """
    near, far = _normal_polynomials()
    w = -jnp.log(unit * (2 - unit))
    t = w * np.float32(2 / _NEAR) - 1
    first, last = math.sqrt(_NEAR), math.sqrt(_FAR)
    scale = np.float32(2 / (last - first))
    u = (jnp.sqrt(w) - np.float32(first)) * scale - 1
    return (1 - unit) * jnp.where(w < _NEAR, _horner(near, t), _horner(far, u))


_NEAR, _FAR = 6.0, 22.5  # -log(2**-32 * 2) is 21.5, the farthest there is.


def _horner(coefficients, t):
    value = jnp.full_like(t, coefficients[-1])
    for coefficient in coefficients[-2::-1]:
        value = value * t + np.float32(coefficient)
    return value


@functools.cache
def _normal_polynomials():
    """Coefficients on [-1, 1], lowest power first: float64, fitted to SciPy."""

    def size_over_share(w):
        share = np.sqrt(-np.expm1(-w))  # 1 - unit
        unit = np.exp(-w) / (1 + share)
        central = math.sqrt(2) * special.erfinv(share)
        return np.where(share < 0.5, central, -special.ndtri(unit / 2)) / share

    def fit(function, degree):
        chebyshev = np.polynomial.chebyshev
        nodes = np.cos(np.pi * (np.arange(1_000) + 0.5) / 1_000)
        values = function(nodes)
        series = chebyshev.chebfit(nodes, values, degree, w=1 / values)
        return chebyshev.cheb2poly(series)

    first, last = math.sqrt(_NEAR), math.sqrt(_FAR)
    return (
        fit(lambda t: size_over_share((t + 1) * (_NEAR / 2)), 9),
        fit(lambda t: size_over_share((first + (t + 1) / 2 * (last - first)) ** 2), 8),
    )


def _checked_dtype(dtype):
    dtype = jnp.dtype(dtype)
    if dtype not in (jnp.float32, jnp.float64):
        raise ValueError(
            f"Noise is drawn in float32 or float64, not {dtype}: the tails of coarser "
            f"types end too early for a certificate. Convert the image first, e.g. "
            f"image.astype(np.float32) / 255."
        )
    return dtype


@dataclasses.dataclass(frozen=True, eq=False)
class NoiseLaw(text.Short):
    """A law of noise for images of mass one.

    A new law is a frozen dataclass derived from this class (or, if it is made of
    independent variables of one kind, from `IidNoise` or `FlowNoise`) with the method
    `sample`: one draw of noise, a pure function of its key that `jax.vmap` can map. That
    is all that counting votes and training with it need.

    A law that shows the classifier something else than the noisy image, such as a
    filtered one, also has `picture` and `added`: a copy is
    `picture(x) + strength(x) * added(key, ...)`, where `picture` and `strength` know
    nothing of the draw and `added` nothing of the image. Both parts have to be made from
    the noisy image alone, or the theorem about the noise says nothing about the copy.

    Fields that hold arrays are named in `arrays` and such a dataclass says `eq=False`;
    `__post_init__` checks them and ends with `_freeze`. All others are numbers, which a
    program is compiled for. What the noise certifies is said elsewhere, in the theorem
    that `smoothing.Smoothing` pairs it with.

    Attributes:
      arrays: names of the fields that hold arrays, or None instead.
    """

    arrays: ClassVar[tuple[str, ...]] = ()

    def __init_subclass__(cls, **options):
        super().__init_subclass__(**options)

        def numbers_of():
            fields = (field.name for field in dataclasses.fields(cls))
            return [name for name in fields if name not in cls.arrays]

        def flatten(law):
            fixed = tuple(getattr(law, name) for name in numbers_of())
            return tuple(getattr(law, name) for name in cls.arrays), fixed

        def unflatten(fixed, arrays):
            pairs = zip((*numbers_of(), *cls.arrays), (*fixed, *arrays), strict=True)
            return cls.unchecked(**dict(pairs))

        jax.tree_util.register_pytree_node(cls, flatten, unflatten)

    @classmethod
    def unchecked(cls, **fields: Any) -> Self:
        """A law of these fields as they are, which may be traced: no host looks at them."""
        law = object.__new__(cls)
        for name, value in fields.items():
            object.__setattr__(law, name, value)
        return law

    def __eq__(self, other):
        return (
            self is other
            or type(self) is type(other)
            and all(
                np.array_equal(getattr(self, field.name), getattr(other, field.name))
                for field in dataclasses.fields(self)
            )
        )

    def __hash__(self):
        return hash((type(self), *(np.shape(getattr(self, a)) for a in self.arrays)))

    def _freeze(self):
        """Makes the arrays float32 and read-only, and the law's own."""
        for name in self.arrays:
            if getattr(self, name) is not None:
                value = np.array(getattr(self, name), np.float32, order="C")
                value.setflags(write=False)
                object.__setattr__(self, name, value)

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
        """Adds one draw to one image: `picture(x) + m * added`, `m` the mass of `x`.

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
        noise = self.added(key, image.shape, image.dtype)
        return self.picture(image) + self.strength(image) * noise

    def prepare(self, image: Any) -> Any:
        """What stands for an image where votes are counted; on the host.

        Args:
          image: `[H, W, C]` float, or a stack of them that share their noise.

        Returns:
          What `perturb` takes in its place: the image itself, unless a law has its own.
        """
        return image

    def picture(self, image: jax.Array) -> jax.Array:
        """What noise is added to, `[H, W, C]`: the image, unless a law filters it."""
        return image

    def strength(self, image: jax.Array) -> jax.Array:
        """The factor of the noise: the mass of the image, a scalar."""
        return image_mass(image)

    def added(self, key: jax.Array, image_shape: tuple[int, ...], dtype) -> jax.Array:
        """What is added to the picture of mass one: `sample`, unless a law filters it."""
        return self.sample(key, image_shape, dtype)


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

    @staticmethod
    def standard(words: jax.Array, divisor: Any = 1.0) -> jax.Array:
        """The law's variables before scaling, each over its divisor.

        Args:
          words: random bits, uint32 for float32 and uint64 for float64.
          divisor: one, or infinite where there is to be none; broadcasts.

        Returns:
          Floats of the size of `words`.
        """
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
        draws = self.scale * self.standard(_words(key, (sum(counts),), dtype))
        return FlowPlan(
            draws[: counts[0]].reshape(shapes.vertical),
            draws[counts[0] :].reshape(shapes.horizontal),
        )

    def sample(self, key: jax.Array, image_shape: tuple[int, ...], dtype) -> jax.Array:
        # The sign is immaterial to the law but is that of Delta(0, plan).
        if self.wrap:
            return -divergence(self.sample_plan(key, image_shape, dtype), image_shape)
        # The same plan with its border drawn in: what flows into each pixel from above
        # and, behind that, from the left. Then every pixel's balance is four slices of
        # one vector, three times as fast as shifted arrays on a CPU.
        positions, divisor = _bordered_layout(tuple(image_shape))
        words = fast_random.bits_at(key, positions, _word_size(dtype))
        into = self.standard(words, jnp.asarray(divisor, dtype))
        height, width, channels = image_shape
        pixels, row = height * width * channels, width * channels
        vertical, horizontal = into[: pixels + row], into[pixels + row :]
        balance = (vertical[:pixels] - vertical[row:]) + (
            horizontal[:pixels] - horizontal[channels:]
        )
        return self.scale * balance.reshape(image_shape)


@functools.cache
def _bordered_layout(image_shape):
    """Where in a plan's draws each edge stands, and its divisor.

    Two vectors over all edges into pixels from above, a row more than the image, and
    from the left, a pixel more; infinite divisors for those that cross the border.
    """
    shapes = flow_shape(image_shape)
    height, width, channels = image_shape
    down = np.full((height + 1, width, channels), -1, np.int64)
    right = np.full((height, width, channels), -1, np.int64)
    count = math.prod(shapes.vertical)
    down[1:height] = np.arange(count).reshape(shapes.vertical)
    across = np.arange(math.prod(shapes.horizontal)).reshape(shapes.horizontal)
    right[:, 1:] = count + across
    edges = np.concatenate([down.ravel(), right.ravel(), np.full(channels, -1)])
    return np.maximum(edges, 0).astype(np.uint32), np.where(edges < 0, np.inf, 1.0)


@dataclasses.dataclass(frozen=True)
class FlowLaplace(FlowNoise):
    """Laplace flow noise of scale b = sigma / sqrt(2) per edge: the paper's law."""

    @property
    def scale(self) -> float:
        return self.sigma / math.sqrt(2.0)

    standard = staticmethod(_laplace)


@dataclasses.dataclass(frozen=True)
class FlowUniform(FlowNoise):
    """Uniform flow noise on [-lam, lam] per edge, lam = sqrt(3) * sigma."""

    @property
    def scale(self) -> float:
        return self.sigma * math.sqrt(3.0)

    standard = staticmethod(_uniform)


@dataclasses.dataclass(frozen=True)
class FlowGaussian(FlowNoise):
    """Gaussian flow noise of standard deviation sigma per edge."""

    @property
    def scale(self) -> float:
        return self.sigma

    standard = staticmethod(_normal)


@dataclasses.dataclass(frozen=True)
class PixelLaplace(IidNoise):
    """Laplace noise of scale b = sigma / sqrt(2) per pixel: the paper's baseline.

    Unlike flow noise it does not preserve mass.
    """

    @property
    def scale(self) -> float:
        return self.sigma / math.sqrt(2.0)

    standard = staticmethod(_laplace)

    def sample(self, key: jax.Array, image_shape: tuple[int, ...], dtype) -> jax.Array:
        flow_shape(image_shape)
        return self.scale * self.standard(_words(key, image_shape, dtype))
