"""Whole numbers for the paper's noise: Laplace and uniform on flow plans, Laplace on pixels.

As in `exact`, which these laws are reached by (`exact.exact`), image and noise meet as
whole numbers, and certificates hold for the program. Here no coordinates are needed: noise
is independent on edges, and whole numbers flow along them.

**Theorem.** Let noise be i.i.d. on the edges of a plan, and `h` a step. Of an image `mu` of
mass one let `I(mu)` be whole numbers, one a pixel, with `I(mu) = mu / h + r + div(rho)` for
an `r` that is the same for all images of equal mass in every channel and a flow `rho` on E
edges, `|rho_e| <= 1/2 + e`. Let the program show the classifier a function of the sums
`I(mu) + div(Z)` alone, `Z_e` independent whole numbers with the law of `floor(N_e / h)`,
`N_e` the noise. Then scores that are 1-Lipschitz in the L1 norm of shifts of `N` change by
at most `W_l1 + h E (1 + 2 e)` between two images at the distance `W_l1`.

*Proof.* A plan of the norm `W_l1` takes `mu` to `mu'` (docs/theory.md, 1.3). So
`I(mu') - I(mu)` is the divergence of a flow of the norm `W_l1 / h + E (1 + 2 e)`, and
whole: a flow of least norm with that divergence can be had in whole numbers, `D` (the
matrix of a graph is totally unimodular). As `D` is whole,
`D + floor(N / h) = floor((h D + N) / h)`. So the sums at `mu'` are the function of
`h D + N` that those at `mu` are of `N`, in real arithmetic, whatever happens to them
afterwards. QED Noise on pixels: `I(mu) = mu / h + rho` with `rho` on pixels, `D` is the
difference itself, and `||h D||_1 <= 2 W + h E (1 + 2 e)` with E the number of pixels.

`I` is made of sums along a path through all pixels of a channel, row by row and back again
(`prepare`): rounded to multiples of `h` they are off by the `rho` of the edges of the path,
and the last one is the mass of the channel, rounded: `r` is what it loses. Sums of P pixels
in float64 are off by `(P + 10) 2^-53 / h` steps at most: `e`.

**Draws.** Uniform noise is exact: `h` is a 2^24th of the interval. Laplace noise is drawn
after Marsaglia: a standard exponential variable is `ln 2 (M + X)`, with M geometric
(leading zeros of random bits) and X in [0, 1) of a density in proportion to `2^-X`, and
such an X is the least of N uniform variables if N has the probabilities `(ln 2)^n / n!`. In
steps of `h = b ln 2 / 2^22` this is so in whole numbers: the least of N random words of 22
bits. `Z` is that size or, for negative noise, its complement, `floor(-x) = -1 - floor(x)`.
With N at most 10 (`tail_of_50_bits`) all of it differs from its law by less than
`LAPLACE_ERROR` in total variation.

**What the draws are off.** Let it be `off` over all edges, and `p`, `q` bounds on the
probabilities of two classes at one image, as the program draws. With F the distribution
function of Laplace noise of scale one, `a = F^{-1}(p - off)`, `b = F^{-1}(q + off)`, shifts
below `(a - b) / 2 - eta` and `t = (a + b) / 2`, the probabilities at the other image are at
least `F(t + eta) - off` and at most `F(t - eta) + off`. The first is larger if the density
is above `off / eta` between `t - eta` and `t + eta`. Either `q >= 1e-6` (it is taken for
that), then `0 >= t` and `t - eta >= b`, and the density there, `F` itself, is at least
1e-6; or `q = 1 - p`, then `t = 0`. So `eta = 1.01e6 off` is enough if below 1. The
published bound is below the tight one for the same `p - off` and `q + off` (docs/theory.md,
2.3), so it holds with the same loss.
"""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy import special

from wsjax import fast_random, noise
from wsjax.certificates import ProbabilityScores
from wsjax.flow import FlowPlan, divergence, flow_shape
from wsjax.whole_numbers import WholeNumbers

LAWS = (noise.FlowLaplace, noise.FlowUniform, noise.PixelLaplace)

# Bits of a step: of a doubling of the Laplace density, and of the interval.
LAPLACE_BITS = 22
UNIFORM_BITS = 24

# Most that one Laplace draw differs from its law, in total variation.
LAPLACE_ERROR = 2.0**-46

# Uniform variables that the least is taken of, at most.
_MOST = 10


@dataclasses.dataclass(frozen=True, eq=False)
class ExactIid(WholeNumbers):
    """Independent noise that is added to an image of whole numbers.

    They are mass per pixel in units of `step`.

    Attributes:
      law: `noise.FlowLaplace`, `noise.FlowUniform` or `noise.PixelLaplace`.
      image_shape: `(H, W, C)` of the images.
    """

    law: Any
    image_shape: tuple[int, ...]

    arrays = ("law",)

    @property
    def step(self) -> float:
        """h: what the whole number one is worth, as a fraction of the image's mass."""
        if isinstance(self.law, noise.FlowUniform):
            return 2 * self.law.scale / 2**UNIFORM_BITS
        return self.law.scale * math.log(2) / 2**LAPLACE_BITS

    def numbers(self, pixels: np.ndarray, masses: np.ndarray) -> np.ndarray:
        if isinstance(self.law, noise.PixelLaplace):
            return np.rint(pixels / self.step)
        path = _back_and_forth(pixels).reshape(-1, len(masses))
        sums = np.cumsum(path, axis=0)
        sums[-1] = masses
        whole = np.diff(np.rint(sums / self.step), axis=0, prepend=0)
        return _back_and_forth(whole.reshape(pixels.shape))

    def too_large(self, number: float, end: float) -> str:
        return (
            f"A pixel holds {number * self.step:.3g} of the image's mass, and whole numbers "
            f"end at {end * self.step:.3g} under noise of sigma={self.law.sigma:g}."
        )

    def shown(self, key: jax.Array, whole: jax.Array) -> jax.Array:
        sums = whole.reshape(self.image_shape) + self._noise(key)
        return sums.astype(jnp.float32) * np.float32(self.step)

    def _noise(self, key):
        """`[H, W, C]` int32, in units of `step`."""
        shape = self.image_shape
        if isinstance(self.law, noise.PixelLaplace):
            pixels = jnp.arange(math.prod(shape), dtype=jnp.uint32)
            return laplace_at(key, pixels).reshape(shape)
        shapes = flow_shape(shape, self.law.wrap)
        down, right = (math.prod(edges) for edges in shapes)
        uniform = isinstance(self.law, noise.FlowUniform)
        drawn_at = functools.partial(uniform_at if uniform else laplace_at, key)
        # In two turns of a loop, from which XLA does not take the random bits to make
        # them anew wherever a draw is used: each is used several times.
        turns = jnp.arange(down + right + (down + right) % 2, dtype=jnp.uint32)
        drawn = jax.lax.map(drawn_at, turns.reshape(2, -1)).ravel()
        plan = FlowPlan(
            drawn[:down].reshape(shapes.vertical),
            drawn[down : down + right].reshape(shapes.horizontal),
        )
        return divergence(plan, shape)


def scores_of(law: ExactIid, scores: ProbabilityScores) -> ProbabilityScores:
    """Scores under noise in whole numbers.

    Args:
      law: the noise.
      scores: those of `law.law`, by any theorem of `certificates` about it.

    Returns:
      The same with `slack` and `off`.

    Raises:
      ValueError: there are too many edges for the proof.

    Source: the theorem at the head of this module.
    """
    height, width, channels = law.image_shape
    pixels = height * width
    if isinstance(law.law, noise.PixelLaplace):
        edges, drawn = pixels, pixels * channels
    else:
        edges = pixels - 1
        drawn = sum(map(math.prod, flow_shape(law.image_shape, law.law.wrap)))
    error = (pixels + 10) * 2.0**-53 / law.step
    if isinstance(law.law, noise.FlowUniform):
        step, off = 2.0**-UNIFORM_BITS, 0.0
    else:
        step, off = math.log(2) * 2.0**-LAPLACE_BITS, drawn * LAPLACE_ERROR
    # `scale` is the scale of noise, or the length of its interval, and what the metric
    # makes of it: so it is with all that noise loses.
    loss = step * channels * edges * (1 + 2 * error) + 1.01e6 * off
    slack = scores.scale * loss * (1 + 1e-9)
    return dataclasses.replace(scores, slack=slack, off=off)


def uniform_at(key: jax.Array, positions: jax.Array) -> jax.Array:
    """`floor` of uniform variables on [-2^23, 2^23), exactly.

    Args:
      key: used up by this call.
      positions: uint32, which of all draws of the key.

    Returns:
      int32 of the shape of `positions`.
    """
    bits = fast_random.words_at(key, positions, 2)[0]
    whole = (bits >> np.uint32(32 - UNIFORM_BITS)).astype(jnp.int32)
    return whole - 2 ** (UNIFORM_BITS - 1)


def laplace_at(key: jax.Array, positions: jax.Array) -> jax.Array:
    """`floor` of Laplace variables of scale `2^22 / ln 2`, up to `LAPLACE_ERROR`.

    Source: Marsaglia, "Generating Exponential Random Variables", 1961; here in whole
    numbers.

    Arguments and result as `uniform_at`; sizes are at most `50 * 2^22`.
    """
    return laplace_of(fast_random.words_at(key, positions, _MOST))


def laplace_of(words):
    """Laplace noise of 10 words each: of every one, 22 bits are a uniform variable."""
    uniform = [(w & np.uint32(2**LAPLACE_BITS - 1)).astype(jnp.int32) for w in words]
    rest = [(w >> np.uint32(LAPLACE_BITS)).astype(jnp.int32) for w in words]
    high = (rest[0] << 20) | (rest[1] << 10) | rest[2]
    low = (rest[3] << 10) | rest[4]
    least = uniform[0]
    for more, tail in zip(uniform[1:], tail_of_50_bits()):
        first, last = tail >> 20, tail & (2**20 - 1)
        counts = (high < first) | ((high == first) & (low < last))
        least = jnp.where(counts, jnp.minimum(least, more), least)
    # Leading zeros of 29 bits, and where there is no other, of 20 more.
    high = ((rest[5] & 511) << 20) | (rest[6] << 10) | rest[7]
    low = (rest[8] << 10) | rest[9]
    few = jax.lax.clz(high) - 3
    many = 29 + jax.lax.clz((low << 12) | 2**11)
    size = (jnp.where(high > 0, few, many) << LAPLACE_BITS) + least
    return jnp.where(rest[5] >= 512, ~size, size)


@functools.cache
def tail_of_50_bits() -> tuple[int, ...]:
    """Probabilities that N is above 1, 2, ..., 9, in units of 2^-50.

    The least of N uniform variables is at least `1 - y` with probability
    `sum P(N = n) y^n`, and should be with `2^y - 1 = sum (ln 2)^n y^n / n!`. In place of
    the first 10 terms stand those of its Chebyshev series up to degree 10,
    `2^y = sqrt(2) (I_0 + 2 sum I_k T_k(2 y - 1))` with Bessel functions `I_k` of
    `ln(2) / 2`: `T_k` goes up and down by `2 k` in all, so what is left out is
    `sum_{k > 10} 2 sqrt(2) k I_k < 3.4e-15` in total variation. Coefficients are right to
    3e-16, and rounded to 2^-50; the first one makes up for the others,
    `9 (2^-51 + 3e-16) < 6.8e-15`, and for what the series lacks at y = 1, 4e-16. M ends at
    49 where it should go on: `2^-50`. Less than 2^-46 together.

    Returns:
      9 whole numbers below 2^50, decreasing.
    """
    bessel = special.iv(np.arange(_MOST + 1), math.log(2) / 2)
    series = math.sqrt(2) * np.append(bessel[0], 2 * bessel[1:])
    chebyshev = np.polynomial.Chebyshev(series, domain=[0, 1])
    powers = chebyshev.convert(kind=np.polynomial.Polynomial, domain=[-1, 1])
    of_each = [round(float(p) * 2**50) for p in powers.coef[2:]]
    return tuple(sum(of_each[n:]) for n in range(len(of_each)))


def _back_and_forth(pixels):
    """Every other row reversed: neighbours in turn, once rows are put end to end."""
    turned = pixels.copy()
    turned[1::2] = turned[1::2, ::-1]
    return turned
