"""Votes that certify the program itself: image and noise meet as whole numbers.

This is for Gaussian noise; `exact_flow` has the paper's laws. Elsewhere noise is added in
floating point, and the certificate is about the smoothed classifier in real arithmetic: a
classifier made for it can read an image's own rounding in the sums, and answer by that
(docs/theory.md, 4). Here nothing of the image's rounding is left for it to read. The image
is turned into the coordinates `phi(mu)` in which the noise is standard normal, on the host,
and these are rounded to a grid; whole numbers of the law of a rounded normal variable are
added, exactly; and all that follows is a function of the sums.

**Theorem.** Let `q(mu)` be whole numbers with `|g q_i - phi(mu)_i| <= g / 2 + e` in each of
D coordinates, and let independent whole numbers `Z_i` be added, whose law is that of
`round(N_i / g)`, `N` standard normal, up to `off` in total variation over all coordinates.
If at one image the probabilities of two classes are `P(y) >= p` and `P(j) <= q`, then
`P'(y) > P'(j)` at each image of distance W, equal mass in every channel, and

    kappa W + 2 sqrt(D) (g / 2 + e) + eta  <=  (Phi^{-1}(p - off) - Phi^{-1}(q + off)) / 2.

*Proof.* `q_i + round(N_i / g) = round(q_i + N_i / g)`, as `q_i` is whole: with `Z` as it
should be, the sums are a function of `g q(mu) + N`, Gaussian noise in real arithmetic,
whatever happens to them afterwards. The centres of two images differ by at most
`s = kappa W + 2 sqrt(D) (g / 2 + e)`, and docs/theory.md, 5.1 applies. With
`a = Phi^{-1}(p - off)`, `b = Phi^{-1}(q + off)` and `t = (a + b) / 2`,
`P'(y) >= Phi(a - s) - off >= Phi(t + eta) - off` and
`P'(j) <= Phi(b + s) + off <= Phi(t - eta) + off`. It remains that
`Phi(t + eta) - Phi(t - eta) > 2 off`. As `q + off` is taken for at least 1e-6 where `1 - p`
is, and `a > b`, `t > -4.76`, and `t <= 0` because `q <= 1 - p`: the density is above 4e-6
between `t - eta` and `t + eta`, and `eta = off / 4e-6` is enough if below .01. QED

In units of radius this is `ProbabilityScores.slack`. Nothing is assumed of float32: a
network that depends on a copy's place in a batch does so whatever the image is, and 5.1
holds for each place.

The mass of an image is no coordinate: noise does not hide it, and it is the same for all
images that transport can reach. It is summed so that images of equal mass have equal bits
of it (`math.fsum` is correctly rounded).
"""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from wsjax import exact_flow, gaussian, spectrum
from wsjax.flow import flow_shape
from wsjax.noise import FlowGaussian
from wsjax.smoothing import Smoothing, gaussian_smoothing
from wsjax.whole_numbers import WholeNumbers

STEPS = 2**11  # Of the grid, in one standard deviation of the noise.
GRID = 1 / STEPS

# Most that the table's law differs from a rounded normal variable's, in total variation.
TABLE_ERROR = 2.0**-48

LARGEST = 2**14  # Noise is smaller: 8 standard deviations.

# Least density in the proof.
_DENSITY = 4e-6

# Fractions of mass in a channel, beside the coordinates, in units of this.
_SHARE = 2.0**-24


@dataclasses.dataclass(frozen=True, eq=False)
class ExactNormal(WholeNumbers):
    """A Gaussian law whose noise is added to coordinates of the image as whole numbers.

    They are in units of `GRID`; for noise on the image itself, the C shares of its channels
    in the mass come after them.

    Attributes:
      law: `gaussian.GaussianView` or `gaussian.ColouredGaussian`.
    """

    law: Any

    arrays = ("law",)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """`(H, W, C)` of the images this law is for."""
        return self.law.image_shape

    def numbers(self, pixels: np.ndarray, masses: np.ndarray) -> np.ndarray:
        if isinstance(self.law, gaussian.GaussianView):
            return np.rint(_view(self.law, pixels) / GRID)
        waves = _waves(self.law, pixels) / GRID
        return np.rint(np.concatenate([waves, masses / _SHARE]))

    def too_large(self, number: float, end: float) -> str:
        return (
            f"The image is {number * GRID:.3g} standard deviations of the noise from the "
            f"mean in one coordinate, and whole numbers end at {end * GRID:.3g}."
        )

    def shown(self, key: jax.Array, whole: jax.Array) -> jax.Array:
        if isinstance(self.law, gaussian.GaussianView):
            sums = whole + rounded_normal(key, len(whole))
            shown = self.law.noise_of(sums.astype(jnp.float32) * GRID)
            return jnp.asarray(self.law.mean) + shown
        height, width, channels = self.image_shape
        coordinates, shares = whole[:-channels], whole[-channels:]
        sums = coordinates + rounded_normal(key, len(coordinates))
        waves = sums.astype(jnp.float32) * GRID
        shown = self.law.noise_of(waves.reshape(gaussian.waves_shape(self.image_shape)))
        even = shares.astype(jnp.float32) * (_SHARE / (height * width))
        if self.law.gain is not None:
            mean = jnp.asarray(self.law.mean)
            average = mean.mean((0, 1))
            gain = jnp.asarray(self.law.gain[0, 0])
            even = mean + gain @ (even - average)
        return shown + even


def exact(
    smoothing: Smoothing, image_shape: tuple[int, ...] | None = None
) -> Smoothing:
    """The same noise for votes that certify what the program computes.

    Args:
      smoothing: of "flow_laplace", "flow_uniform", "pixel_laplace"; or of a Gaussian law:
        a view, a spectrum ("power_law" and what is learned), "laplacian_gaussian", or
        "flow_gaussian" with `wrap=True`.
      image_shape: `(H, W, C)` of the images, where `smoothing` holds for any.

    Returns:
      A `Smoothing`; its radii are smaller by `scores.slack`. Certifiers draw exact votes
      with it, one image at a time.

    Raises:
      ValueError: of another law, or no shape or another one.

    Source: the theorems at the heads of this module and of `exact_flow`.
    """
    law: Any = smoothing.noise
    shape = smoothing.image_shape
    if image_shape is not None:
        image_shape = tuple(int(size) for size in image_shape)
        smoothing.check_shape(image_shape)
        shape = image_shape
    if isinstance(law, exact_flow.LAWS):
        if shape is None:
            raise ValueError(
                f"image_shape=None, and exact votes under {type(law).__name__} depend on "
                f"it; give image_shape=(H, W, C)."
            )
        flow_shape(shape)
        whole = exact_flow.ExactIid(law, shape)
        return Smoothing(whole, exact_flow.scores_of(whole, smoothing.scores), shape)
    gamma = {FlowGaussian: 1.0, gaussian.StencilGaussian: 2.0}.get(type(law))
    if gamma and shape and getattr(law, "wrap", True):
        power = spectrum.power_law(shape, law.sigma, gamma)
        law = gaussian.ColouredGaussian(spectrum.square_root(power))
    if shape is None or not isinstance(
        law, (gaussian.GaussianView, gaussian.ColouredGaussian)
    ):
        raise ValueError(
            f"There are no exact votes under {type(law).__name__}: Gaussian noise has to "
            f"be made of normal variables that stand for all of it. Use "
            f'"learned_view", "learned_spectrum", "power_law", "laplacian_gaussian", '
            f'"flow_gaussian" with wrap=True, "flow_laplace", "flow_uniform" or '
            f'"pixel_laplace".'
        )
    scores = gaussian_smoothing(law, shape, smoothing.ground_metric).scores
    kappa = 1 / scores.scale
    if isinstance(law, gaussian.GaussianView):
        count = len(law.features)
        # Sums of as many products as pixels, of mass one and of the mean.
        terms, largest = math.prod(shape) + 10, np.abs(law.features).max()
        error = 8 * terms * 2.0**-53 * float(largest)
    else:
        count = math.prod(gaussian.waves_shape(shape))
        # Two images are at most kappa (H + W) apart, and 2^-32 of that is a million times
        # what transforms in float64 lose.
        error = 2.0**-32 * kappa * sum(shape[:2])
    off = count * TABLE_ERROR
    slack = 2 * math.sqrt(count) * (GRID / 2 + error) + off / _DENSITY
    slack *= scores.scale * (1 + 1e-9)
    scores = dataclasses.replace(scores, slack=slack, off=off)
    return Smoothing(ExactNormal(law), scores, shape)


def rounded_normal(key: jax.Array, count: int) -> jax.Array:
    """Whole numbers, the rounded `2^11 G` of standard normal `G` up to `TABLE_ERROR`.

    Args:
      key: used up by this call.
      count: how many.

    Returns:
      `[count]` int32, of size below 2^14. Each takes 64 random bits: one is the sign, 14
      choose a column of the table, 49 one of the two sizes in it.
    """
    words = jax.random.bits(key, (2, count), jnp.uint32)
    return looked_up(words[0], words[1])


def looked_up(high, low):
    """Noise of 64 random bits."""
    most, least, other = _words_of_table()
    column = (high >> 18).astype(jnp.int32)
    part = high & jnp.uint32(2**17 - 1)

    def of_column(table):
        return jnp.asarray(table).at[column].get(mode="promise_in_bounds")

    threshold = of_column(most)
    below = (part < threshold) | ((part == threshold) & (low < of_column(least)))
    size = jnp.where(below, column, of_column(other))
    return jnp.where((high >> 17) & 1 == 1, -size, size)


@functools.cache
def _words_of_table():
    thresholds, other = alias_table()
    return (
        (thresholds >> 32).astype(np.uint32),
        (thresholds & (2**32 - 1)).astype(np.uint32),
        other.astype(np.int32),
    )


@functools.cache
def alias_table():
    """Thresholds `[2^14]` int64 and other sizes `[2^14]` of Walker's alias method.

    A column `i` stands for its own number below its threshold, of 2^49, and else for
    `other[i]`. So the probability of each size is a multiple of 2^-63, exactly: the
    sum of its parts.

    Source: Walker 1977; Vose 1991, here in whole numbers.
    """
    shares = [share * LARGEST for share in sizes_of_63_bits()]
    whole = 2**63
    thresholds, other = list(shares), list(range(LARGEST))
    small = [i for i, share in enumerate(shares) if share < whole]
    large = [i for i, share in enumerate(shares) if share > whole]
    while small:
        i, j = small.pop(), large[-1]
        other[i] = j
        thresholds[j] -= whole - thresholds[i]
        if thresholds[j] <= whole:
            large.pop()
            if thresholds[j] < whole:
                small.append(j)
    return np.array([t // LARGEST for t in thresholds], np.int64), np.array(other)


def sizes_of_63_bits() -> list[int]:
    """Probabilities of the sizes 0, 1, ... of rounded `2^11 G`, in units of 2^-63.

    That of size j is, with `h = 2^-12` and `x = j / 2^11`, the integral of the normal
    density over `x - h ... x + h` and its mirror image (0 has none):
    `2 h phi(x) (1 + (x^2 - 1) h^2 / 6 + ...)`, the next term below `(h x)^4 / 120 < 1e-13`,
    and taken too; after it 1e-19. `x^2 / 2` is exact in float64, so each is right to a
    relative 1e-15. Noise of more than 8 standard deviations, of probability 1.3e-15, is
    given to size 0, with what rounding leaves. Total variation: less than
    `1.3e-15 + 1e-15 + 2^14 2^-64 < 2^-48`.

    Returns:
      2^14 whole numbers whose sum is 2^63.
    """
    x = np.arange(LARGEST) / STEPS
    h = 0.5 / STEPS
    second = (x**2 - 1) * h**2 / 6
    fourth = (x**4 - 6 * x**2 + 3) * h**4 / 120
    density = np.exp(-(x**2) / 2) * math.sqrt(2 / math.pi)
    probabilities = 2 * h * density * (1 + second + fourth)
    found = [round(float(p) * 2**63) for p in probabilities]
    found[0] = 2**63 - sum(found[1:])
    return found


def _view(law, image):
    """`[D]` float64 coordinates of an image of mass one."""
    features = np.asarray(law.features, np.float64).reshape(len(law.features), -1)
    return features @ (image - np.asarray(law.mean, np.float64)).ravel()


def _waves(law, image):
    """Float64: the variables of least norm that `gaussian.colour` makes the image of.

    But for what is equal in all pixels. The image is `A y` with `A A^T` the covariance, so
    `y = A^T (A A^T)^{-1} image`.
    """
    if law.mean is not None:
        image = image - np.asarray(law.mean, np.float64)
    height, width, channels = law.image_shape
    power = np.array(law.spectrum)
    power[0, 0] = np.eye(channels)
    waves = np.fft.fft2(image, axes=(0, 1))
    waves[0, 0] = 0
    solved = np.linalg.solve(power, waves[..., None])[..., 0]
    dual = np.fft.ifft2(solved, axes=(0, 1)).real
    along, across = gaussian.synthesis(height, width)
    half = width // 2 + 1
    rows = (dual.transpose(2, 0, 1) @ across.T).reshape(channels, height, half, 2)
    rows = rows.transpose(2, 0, 3, 1).reshape(half, channels, 2 * height)
    mixed = (rows @ along.T).reshape(half, channels, 2, height)
    roots = np.asarray(law.amplitude[:, :half], np.float64)
    return np.einsum("hwij,wiph->wjph", roots, mixed).ravel()
