"""Votes that certify the program itself: image and noise meet as whole numbers.

Elsewhere noise is added in floating point, and the certificate is about the smoothed
classifier in real arithmetic: a classifier made for it can read an image's own rounding in
the sums, and answer by that (docs/theory.md, 4). Here nothing of the image's rounding is
left for it to read. The image is turned into the coordinates `phi(mu)` in which the noise is
standard normal, on the host, and these are rounded to a grid; whole numbers of the law of a
rounded normal variable are added, exactly; and all that follows is a function of the sums.

**Theorem.** Let `q(mu)` be whole numbers with `|h q_i - phi(mu)_i| <= h / 2 + e` in each of
D coordinates, `Z_i = round(N_i / h)` with `N` standard normal, and let `p_k(mu)` be the
probability that a function of `q(mu) + Z` is `k`. Then `c Phi^{-1}(p_k)` changes by at most
`W + 2 c sqrt(D) (h / 2 + e)` between images of distance W, where `1 / c = kappa` as in
`certificates.gaussian`.

*Proof.* `q_i + round(N_i / h) = round(q_i + N_i / h)`, as `q_i` is whole: the sums are a
function of `h q(mu) + N`, and so is the answer. For two images
`||h q(mu') - h q(mu)|| <= ||phi(mu') - phi(mu)|| + 2 sqrt(D) (h / 2 + e)`, of which the
first term is at most `kappa W`, and `Phi^{-1}(p)` is 1-Lipschitz in shifts of `N`. QED

Rounding costs the radius `2 c sqrt(D) (h / 2 + e)` (`ProbabilityScores.slack`). Numbers are
drawn from a table of 63-bit probabilities; how far its law is from that of `Z` is subtracted
from every probability (`ProbabilityScores.off`).

The mass of an image is no coordinate: pictures are shown with a mean pixel of one, whatever
that of the image. Classifiers that divide by the mean pixel (`model.unit="mass"`) see no
difference.
"""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy import special

from wsjax import gaussian, spectrum
from wsjax.noise import FlowGaussian, NoiseLaw, normal_size
from wsjax.smoothing import Smoothing, gaussian_smoothing

# h: whole numbers are this many standard deviations of the noise apart.
GRID = 2.0**-12

# The table ends here; 6e-10 of the mass lies beyond.
_LAST = 6.2

# What `scipy.special.ndtr` is taken to be off by, of its value: 16 units in the last place.
_OFF = 2.0**-48

# Fractions of mass in a channel, beside the coordinates, in units of this.
_SHARE = 2.0**-24


@dataclasses.dataclass(frozen=True, eq=False)
class ExactNormal(NoiseLaw):
    """A Gaussian law whose noise is added to coordinates of the image as whole numbers.

    `perturb` takes what `prepare` returns. Of an image of floats it makes a copy by the
    law itself, at a mean pixel of one: what gradients need, and no certificate may use.

    Attributes:
      law: `gaussian.GaussianView` or `gaussian.ColouredGaussian`.
      table: `[J, 2]` uint32, see `rounded_normal_table`.
    """

    law: Any
    table: Any

    arrays = ("law", "table")

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """`(H, W, C)` of the images this law is for."""
        return self.law.image_shape

    def prepare(self, image: Any) -> np.ndarray:
        """Whole numbers that stand for an image; on the host, in float64.

        Args:
          image: `[H, W, C]` float, of any mass.

        Returns:
          `[D, 1, 1]` int32: coordinates in units of `GRID`, then for noise on the image
          itself the C masses of its channels.

        Raises:
          ValueError: another shape, or numbers beyond 2^30.
        """
        pixels = np.asarray(image, np.float64)
        if pixels.shape != self.image_shape:
            raise ValueError(
                f"Exact votes are for one image of shape {self.image_shape} at a time, "
                f"got {pixels.shape}; draws cannot be shared (share_draws=1)."
            )
        # Correctly rounded sums: equal for images whose masses are equal.
        masses = np.array([math.fsum(x.ravel()) for x in np.moveaxis(pixels, 2, 0)])
        mass = math.fsum(masses)
        if isinstance(self.law, gaussian.GaussianView):
            numbers = _view(self.law, pixels / mass) / GRID
        else:
            numbers = np.concatenate(
                [_waves(self.law, pixels / mass) / GRID, masses / mass / _SHARE]
            )
        whole = np.rint(numbers)
        if not np.all(np.abs(whole) < 2**30):
            raise ValueError(
                f"The image is {np.abs(whole).max() * GRID:.3g} standard deviations of "
                f"the noise from the mean in one coordinate, and whole numbers end at "
                f"{2**30 * GRID:.3g}. Smooth with more noise."
            )
        return whole.astype(np.int32)[:, None, None]

    def perturb(self, key: jax.Array, image: jax.Array) -> jax.Array:
        """One noisy picture of mean pixel one.

        Args:
          key: used up by this call.
          image: what `prepare` made of one, or an image of floats; see the class.

        Returns:
          `[H, W, C]` float32.
        """
        pixels = math.prod(self.image_shape)
        if jnp.issubdtype(image.dtype, jnp.floating):
            return self.law.perturb(key, image * (pixels / jnp.sum(image)))
        whole = image[:, 0, 0]
        if isinstance(self.law, gaussian.GaussianView):
            sums = whole + rounded_normal(key, len(whole), self.table)
            shown = self.law.noise_of(sums.astype(jnp.float32) * GRID)
            return pixels * (jnp.asarray(self.law.mean) + shown)
        height, width, channels = self.image_shape
        coordinates, shares = whole[:-channels], whole[-channels:]
        sums = coordinates + rounded_normal(key, len(coordinates), self.table)
        waves = sums.astype(jnp.float32) * GRID
        shown = self.law.noise_of(waves.reshape(gaussian.waves_shape(self.image_shape)))
        even = shares.astype(jnp.float32) * (_SHARE / (height * width))
        if self.law.gain is not None:
            mean = jnp.asarray(self.law.mean)
            average = mean.mean((0, 1))
            gain = jnp.asarray(self.law.gain[0, 0])
            even = mean + gain @ (even - average)
        return pixels * (shown + even)


def exact(smoothing: Smoothing) -> Smoothing:
    """The same noise for votes that certify what the program computes.

    Args:
      smoothing: of a Gaussian law: a view, a spectrum ("power_law" and what is learned),
        "laplacian_gaussian", or "flow_gaussian" with `wrap=True`.

    Returns:
      A `Smoothing`; its radii are smaller by `scores.slack`. Certifiers draw exact votes
      with it, one image at a time.

    Raises:
      ValueError: of another law.

    Source: the theorem at the head of this module.
    """
    law: Any = smoothing.noise
    shape = smoothing.image_shape
    gamma = {FlowGaussian: 1.0, gaussian.StencilGaussian: 2.0}.get(type(law))
    if gamma and shape and getattr(law, "wrap", True):
        power = spectrum.power_law(shape, law.sigma, gamma)
        law = gaussian.ColouredGaussian(spectrum.square_root(power))
    if shape is None or not isinstance(
        law, (gaussian.GaussianView, gaussian.ColouredGaussian)
    ):
        raise ValueError(
            f"There are no exact votes under {type(law).__name__}: the law has to be "
            f"Gaussian, and made of normal variables that stand for all of its noise. Use "
            f'"learned_view", "learned_spectrum", "power_law", "laplacian_gaussian", or '
            f'"flow_gaussian" with wrap=True.'
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
    table, off = rounded_normal_table()
    slack = 2 * scores.scale * math.sqrt(count) * (GRID / 2 + error) * (1 + 1e-9)
    scores = dataclasses.replace(scores, slack=slack, off=count * off)
    return Smoothing(ExactNormal(law, table), scores, shape)


@functools.cache
def rounded_normal_table() -> tuple[np.ndarray, float]:
    """Probabilities that a rounded normal variable is far from zero.

    Returns:
      `[J, 2]` uint32, of `P(|Z| >= j) 2^63` for `j = 0, 1, ...` its high and low words,
      zero for the last; and a bound on how far, in total variation, what is drawn by it is
      from `Z = round(N / GRID)`.
    """
    beyond = 2 * special.ndtr(-(np.arange(round(_LAST / GRID)) + 0.5) * GRID)
    units = [2**63 - 1, *(int(p * 2.0**63) for p in beyond.tolist()), 0]
    table = np.array([(x >> 32, x & 0xFFFFFFFF) for x in units], np.uint32)
    table.setflags(write=False)
    # |Z| = j has the probability of one entry less the next. What is beyond the last entry
    # falls on it.
    off = math.fsum(beyond) * _OFF + len(units) * 2.0**-62 + 2 * float(beyond[-1])
    return table, off


def rounded_normal(key: jax.Array, count: int, table: jax.Array) -> jax.Array:
    """Whole numbers of the law of `round(N / GRID)`, N standard normal.

    Args:
      key: used up by this call.
      count: how many.
      table: of `rounded_normal_table`.

    Returns:
      `[count]` int32, of absolute value at most `6.2 / GRID`.
    """
    words = jax.random.bits(key, (2, count), "uint32")
    return looked_up(words[0], words[1], jnp.asarray(table))


def looked_up(first: jax.Array, second: jax.Array, table: jax.Array) -> jax.Array:
    """A sign, and how many entries of the table, but for one, other 63 bits are below.

    Where to look is found in float32, and off by a fiftieth of an entry at most; the
    neighbours decide.

    Args:
      first: uint32, the sign and the high bits.
      second: uint32, the low bits.
      table: of `rounded_normal_table`.

    Returns:
      int32 of their shape.
    """
    high = first & jnp.uint32(0x7FFFFFFF)
    # By way of signed integers, which every processor converts at once.
    low = (second >> 1).astype(jnp.int32).astype(jnp.float32) * 2.0**-31
    unit = (high.astype(jnp.int32).astype(jnp.float32) + low) * 2.0**-31
    about = normal_size(jnp.maximum(unit, 2.0**-31)) * (1 / GRID)
    about = jnp.clip(jnp.round(about).astype(jnp.int32), 1, len(table) - 2)
    found = about - 1
    for place in (about, about + 1):
        of_high, of_low = table[place, 0], table[place, 1]
        below = (high < of_high) | ((high == of_high) & (second < of_low))
        found = found + below.astype(jnp.int32)
    return jnp.where(first >> 31 == 1, -found, found)


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
