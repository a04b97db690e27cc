"""Noise whose shape is trained together with the classifier, at a fixed certificate.

Every parametrisation here is rescaled inside the loss so that `1 / kappa` equals the
`certificate_scale` c: whatever the parameters are, a class probability p certifies the
radius `c Phi^{-1}(p)`, and all that training can change is how often the classifier is
right under the noise. After training `freeze` makes a law of it, rescaled again in
float64; certificates recompute `kappa` from the law and trust nothing of this module.

Two parametrisations:

  * `LearnedSpectrum`: stationary noise, the logarithm of its power spectrum piecewise
    linear in the logarithm of `lap` (or free at every frequency), channels coupled;
  * `LearnedView`: any linear view of the image, started from the lowest waves.

What the loss sees are copies of the law itself (`law`), made of traced arrays. Both hand
the classifier the linear (Wiener) estimate of the image from the noisy view.

Traps met: `sqrt(S)` has an infinite gradient at `S(0) = 0`, so amplitudes are made of
exponentials of the logarithm and masked; the gradient of an exact maximum touches the
one worst pair of pixels only, so it is taken through a soft maximum (`_scale_to`).
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from wsjax import gaussian, spectrum

# Exponent of the mean that stands in for a maximum in gradients.
_SOFTNESS = 16.0

# The law that is kept certifies this much more than asked for, in relative terms, so
# that rounding its arrays to float32 does not take it below.
_MARGIN = 1e-6


@dataclasses.dataclass(frozen=True)
class FixedNoise:
    """A noise that is not trained, behind the interface of the learned ones.

    Attributes:
      perturb: `(key, image) -> noisy image`, or None for no noise.
    """

    perturb: Callable[[jax.Array, jax.Array], jax.Array] | None

    can_shift = False

    def init(self) -> tuple[()]:
        """Initial parameters: none."""
        return ()

    def law(self, params: Any) -> "FixedNoise":
        """What draws copies; see `gaussian.NormalLaw`."""
        del params
        return self

    def variables(self, key: jax.Array) -> jax.Array:
        """What one noisy copy is made of: its key."""
        return key

    def copy_of(self, image: jax.Array, variables: jax.Array) -> jax.Array:
        """One noisy copy of an image `[H, W, C]` in pixel units."""
        return image if self.perturb is None else self.perturb(variables, image)


class Statistics(NamedTuple):
    """What learned noise knows of the training images, each scaled to mass one.

    Attributes:
      mean: `[H, W, C]` float32.
      power: `[H, W, C, C]` float32 power spectrum about the mean.
      factor: `[R, H, W, C]` float32, with `factor^T factor` the covariance of the
        images but for its smallest eigenvalues.
    """

    mean: np.ndarray
    power: np.ndarray
    factor: np.ndarray


def statistics(images: np.ndarray, rank: int = 200) -> Statistics:
    """Computes `Statistics` of images `[N, H, W, C]`; `rank` 0 leaves the factor out.

    Raises:
      ValueError: there are no images, or one is all black.
    """
    mean, power = spectrum.power_spectrum(images)
    shape = images.shape[1:]
    size = int(np.prod(shape))
    covariance = np.zeros((size, size))
    for part in np.array_split(images, -(-len(images) // 4096)) if rank else ():
        mass = part.sum(axis=(1, 2, 3), keepdims=True, dtype=np.float64)
        flat = (part / mass - mean).reshape(len(part), -1)
        covariance += flat.T @ flat / len(images)
    factor = np.zeros((0, *shape))
    if rank:
        values, vectors = np.linalg.eigh(covariance)
        top = np.maximum(values[-rank:], 0.0)
        factor = (vectors[:, -rank:] * np.sqrt(top)).T.reshape(-1, *shape)
    return Statistics(
        mean.astype(np.float32), power.astype(np.float32), factor.astype(np.float32)
    )


@dataclasses.dataclass(frozen=True, eq=False)
class LearnedView:
    """Features of `gaussian.GaussianView`, free but for the scale of the certificate.

    Attributes:
      statistics: of the training images.
      certificate_scale: c = 1 / kappa, pixels x fraction of mass.
      ground_metric: "l1" or "l2".
      waves: the view starts from all waves of up to this many periods along each
        axis: `((2 waves + 1)**2 - 1)` features a channel.
      gamma: exponent of the initial noise, as in `spectrum.power_law`.
    """

    statistics: Statistics
    certificate_scale: float
    ground_metric: str
    waves: int = 4
    gamma: float = 2.0

    can_shift = True
    rank: ClassVar[int] = 200  # Of the statistics it needs.

    def init(self) -> dict[str, jax.Array]:
        """Features `[D, H, W, C]` of mean square one."""
        height, width, channels = self.statistics.mean.shape
        if not 1 <= self.waves <= min(height, width) // 2 - 1:
            raise ValueError(
                f"smoothing.waves={self.waves} is outside [1, "
                f"{min(height, width) // 2 - 1}] for images of {height} x {width}."
            )
        y, x = np.mgrid[:height, :width]
        lap = spectrum.laplacian(height, width)
        rows = []
        for ky in range(-self.waves, self.waves + 1):
            for kx in range(-self.waves, self.waves + 1):
                if (ky, kx) > (0, 0):
                    phase = 2 * np.pi * (ky * y / height + kx * x / width)
                    size = lap[ky, kx] ** (-self.gamma / 2)
                    rows += [size * np.cos(phase), size * np.sin(phase)]
        one = np.stack(rows)[..., None, None] * np.eye(channels)
        features = np.moveaxis(one, -1, 1).reshape(-1, height, width, channels)
        features /= np.sqrt(np.mean(features**2))
        return {"features": jnp.asarray(features, jnp.float32)}

    def law(self, params: Any) -> gaussian.GaussianView:
        """The law of traced parameters, scaled to the certificate; unchecked."""
        features = params["features"]
        squares = _near_slopes(features, self.ground_metric)
        features = features * _scale_to(self.certificate_scale, squares)
        return gaussian.GaussianView.unchecked(
            features=features,
            readout=self._readout(features),
            mean=self.statistics.mean,
        )

    def freeze(self, params: Any) -> gaussian.GaussianView:
        """The law, with exact scale; see `_exact_scale`."""
        start = np.asarray(params["features"], np.float64)
        one = gaussian.feature_kappa(start, self.ground_metric)
        features = start * _exact_scale(self.certificate_scale, one)
        factor = self.statistics.factor.astype(np.float64)
        flat = factor.reshape(len(factor), -1)
        readout = gaussian.wiener_readout(features, flat.T @ flat)
        return gaussian.GaussianView(features, readout, self.statistics.mean)

    def _readout(self, features):
        # (phi C phi^T + I)^{-1} phi C with C = F^T F and A = phi F^T: systems of the
        # number of features, and no product of the size of the image squared.
        # The barrier keeps the compiler from working on the constant itself.
        flat = self.statistics.factor.reshape(len(self.statistics.factor), -1)
        # Both ways round: a product with a transposed constant is ten times slower.
        factor, turned = jax.lax.optimization_barrier(
            (jnp.asarray(flat), jnp.asarray(np.ascontiguousarray(flat.T)))
        )
        cross = features.reshape(len(features), -1) @ turned
        total = cross @ cross.T + jnp.eye(len(features))
        # By LU: gradients of Cholesky solves are many times slower on a CPU.
        scores = jnp.linalg.solve(total, cross)
        return (scores @ factor).reshape(features.shape)


@dataclasses.dataclass(frozen=True, eq=False)
class LearnedSpectrum:
    """A spectrum `S(w)` that is a function of `lap(w)`, or free at each frequency.

    `S(w)^{-1} = U^T (I + N)^T D^2 (I + N) U` with `U` a fixed orthonormal basis of the
    channels (their sum first), `D = exp(-log_power / 2)` diagonal and `N` strictly lower
    triangular: every positive definite coupling of the channels is such a product.

    Attributes:
      statistics: of the training images.
      certificate_scale: c = 1 / kappa, pixels x fraction of mass.
      ground_metric: "l1" or "l2".
      bins: knots in `log lap`; 0 for a free value at every frequency.
      gamma: exponent of the initial noise.
      couple: whether the noise of different channels may be dependent.
      wiener: whether the classifier sees the filtered picture.
    """

    statistics: Statistics
    certificate_scale: float
    ground_metric: str
    bins: int = 24
    gamma: float = 2.0
    couple: bool = True
    wiener: bool = True

    can_shift = True
    rank: ClassVar[int] = 0

    def init(self) -> dict[str, jax.Array]:
        """`log_power` `[knots, C]`, and `coupling` `[knots, C (C - 1) / 2]`."""
        _, _, channels = self.statistics.mean.shape
        log_lap = self._knots()
        params = {"log_power": np.repeat(self.gamma * log_lap[:, None], channels, 1)}
        if self.couple and channels > 1:
            pairs = channels * (channels - 1) // 2
            params["coupling"] = np.zeros((len(log_lap), pairs))
        return {key: jnp.asarray(value, jnp.float32) for key, value in params.items()}

    def law(self, params: Any) -> gaussian.ColouredGaussian:
        """The law of traced parameters, scaled to the certificate; unchecked.

        Its filter holds the frequencies that `rfft2` keeps, which are all that it uses.
        """
        amplitude, precision = self._shape(params, jnp)
        squares = spectrum.squared_slopes(precision, self.ground_metric, jnp)
        # Twice the amplitude makes half of the slopes.
        amplitude = amplitude / _scale_to(self.certificate_scale, squares)
        law = functools.partial(
            gaussian.ColouredGaussian.unchecked, amplitude=amplitude
        )
        if not self.wiener:
            return law(gain=None, mean=None)
        half = amplitude[:, : amplitude.shape[1] // 2 + 1]
        signal = jnp.asarray(self.statistics.power)[:, : half.shape[1]]
        power = jnp.einsum("hwij,hwkj->hwik", half, half)
        # Unit matrices at frequency zero: there is no noise to be filtered there.
        zero = np.zeros(half.shape[:2], bool)
        zero[0, 0] = True
        eye = jnp.eye(half.shape[-1])
        total = jnp.where(zero[..., None, None], eye, signal + power)
        signal = jnp.where(zero[..., None, None], eye, signal)
        gain = jnp.swapaxes(jnp.linalg.solve(total, jnp.swapaxes(signal, 2, 3)), 2, 3)
        return law(gain=gain, mean=self.statistics.mean)

    def freeze(self, params: Any) -> gaussian.ColouredGaussian:
        """The law, with exact scale; see `_exact_scale`."""
        params = {key: np.asarray(value, np.float64) for key, value in params.items()}
        amplitude, _ = self._shape(params, np)
        one = spectrum.kappa(_square(amplitude), self.ground_metric)
        amplitude = amplitude / _exact_scale(self.certificate_scale, one)
        if not self.wiener:
            return gaussian.ColouredGaussian(amplitude)
        gain = spectrum.wiener(
            self.statistics.power.astype(np.float64), _square(amplitude)
        )
        return gaussian.ColouredGaussian(amplitude, gain, self.statistics.mean)

    def _knots(self):
        height, width, _ = self.statistics.mean.shape
        if self.bins:
            return spectrum.radial_position(height, width, self.bins)[2]
        lap = spectrum.laplacian(height, width)
        return np.log(np.maximum(lap, lap[lap > 0].min())).ravel()

    def _shape(self, params, xp):
        """Amplitude `[H, W, C, C]` and diagonal `[H, W, C]` of the inverse spectrum."""
        height, width, channels = self.statistics.mean.shape

        def spread(values):
            if self.bins:
                index, weight, _ = spectrum.radial_position(height, width, self.bins)
                weight = xp.asarray(weight[..., None], values.dtype)
                return values[index] * (1 - weight) + values[index + 1] * weight
            grid = values.reshape(height, width, -1)
            opposite = xp.roll(grid[::-1, ::-1], (1, 1), axis=(0, 1))
            return (grid + opposite) / 2

        moving = np.ones((height, width, 1, 1))
        moving[0, 0] = 0.0
        moving = xp.asarray(moving, params["log_power"].dtype)
        log_power = spread(params["log_power"])
        basis = xp.asarray(
            _channel_basis(channels) if self.couple else np.eye(channels),
            log_power.dtype,
        )
        lower = xp.eye(channels, dtype=log_power.dtype)
        if "coupling" in params:
            # Entries of a matrix from a list, as a product: differentiable anywhere.
            places = np.zeros((channels * (channels - 1) // 2, channels, channels))
            places[(np.arange(len(places)), *np.tril_indices(channels, -1))] = 1.0
            places = xp.asarray(places, log_power.dtype)
            lower = lower + xp.tensordot(spread(params["coupling"]), places, 1)
        unmixed = xp.einsum("...ij,jk->...ik", lower, basis)
        whiten = xp.exp(-log_power / 2)[..., None] * unmixed
        # The inverse of a unit lower triangular matrix, by its finite series.
        nilpotent = xp.eye(channels, dtype=log_power.dtype) - lower
        inverse = xp.eye(channels, dtype=log_power.dtype)
        for _ in range(channels - 1):
            inverse = xp.eye(channels, dtype=log_power.dtype) + nilpotent @ inverse
        amplitude = xp.einsum("ji,...jk->...ik", basis, inverse)
        amplitude = amplitude * xp.exp(log_power / 2)[..., None, :]
        precision = (whiten**2).sum(axis=-2)
        amplitude = xp.broadcast_to(amplitude, (height, width, channels, channels))
        return amplitude * moving, precision * moving[..., 0]


# By the name that configs call it.
LEARNED: dict[str, Any] = {
    "learned_view": LearnedView,
    "learned_spectrum": LearnedSpectrum,
}


def _square(amplitude):
    """The spectrum of noise of this amplitude, exactly symmetric."""
    power = np.einsum("hwij,hwkj->hwik", amplitude, amplitude)
    return (power + np.swapaxes(power, 2, 3)) / 2


def _channel_basis(channels: int) -> np.ndarray:
    """Orthonormal rows, the first proportional to the sum of all channels."""
    rows = np.eye(channels)
    rows[0] = 1.0
    q, r = np.linalg.qr(rows.T)
    return (q * np.sign(np.diag(r))).T


def _near_slopes(features, ground_metric):
    """`||phi_a - phi_b||^2 / d(a, b)^2` for pixels up to three pixels apart.

    Longer ways are sums of these, at most a few percent longer than straight; the
    exact constant is taken when the law is frozen.
    """
    reach = 1 if ground_metric == "l1" else 3
    # Features last: long inner loops for the sums over them.
    points = jnp.moveaxis(features, 0, -1)
    height, width = points.shape[:2]
    parts = []
    for dy in range(min(reach, height - 1) + 1):
        for dx in range(-min(reach, width - 1), min(reach, width - 1) + 1):
            near = abs(dx) + dy <= 1 if ground_metric == "l1" else dy**2 + dx**2 <= 9
            if (dy, dx) <= (0, 0) or not near:
                continue
            here = points[: height - dy, max(-dx, 0) : width - max(dx, 0)]
            there = points[dy:, max(dx, 0) : width - max(-dx, 0)]
            distance = dy**2 + dx**2
            parts.append(jnp.sum((here - there) ** 2, axis=-1).ravel() / distance)
    return jnp.concatenate(parts)


def _scale_to(certificate_scale, squares):
    """Factor on the features at which the largest slope becomes `1 / c`.

    The value is that of the exact maximum. Its gradient is that of a power mean, so
    that every pair of pixels close to the worst one is felt, not one pair alone.
    """
    largest = jax.lax.stop_gradient(jnp.max(squares))
    soft = jnp.mean((squares / largest + 1e-12) ** _SOFTNESS) ** (1.0 / _SOFTNESS)
    root = jnp.sqrt(largest) * jnp.sqrt(soft / jax.lax.stop_gradient(soft))
    return 1.0 / (certificate_scale * root)


def _exact_scale(certificate_scale, constant):
    """Factor on the features at which `kappa` is just below `1 / c`."""
    return (1.0 - _MARGIN) / (certificate_scale * constant)
