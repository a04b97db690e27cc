"""Gaussian noise of any covariance, and the constant that certifies it.

The theorem behind all laws here: let `phi` be a linear map with

    || phi(e_a - e_b) ||_2  <=  kappa * d(a, b)     for all pixels a, b of one channel,

and let the classifier see the image only through `phi(mu) + z`, `z` standard normal.
Then a class probability of `p` certifies the radius `Phi^{-1}(p) / kappa` in the
Wasserstein distance of ground metric `d` (`certificates.gaussian`). Noise of covariance
`Sigma` added to the image is the case `phi = Sigma^{-1/2}`; a map that forgets part of
the image is as good. What is done with the noisy view afterwards (filtering it,
drawing a picture of it, classifying it) is post-processing.

A law that is made of standard normal variables also says how (`NormalLaw`), so that
training can move them.
"""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from wsjax import spectrum
from wsjax.flow import flow_shape, image_mass
from wsjax.metrics import check_ground_metric
from wsjax.noise import (
    FlowGaussian,
    IidNoise,
    NoiseLaw,
    normal_at,
    standard_normal,
)


@dataclasses.dataclass(frozen=True)
class StencilGaussian(IidNoise):
    """The five-point Laplacian of white noise, wrap-around: a local law, no FFT.

    Its power spectrum is `sigma**2 * lap**2`. Every pixel sends a random multiple of
    one unit of mass to each of its four neighbours and takes it from itself.
    """

    @property
    def scale(self) -> float:
        return self.sigma

    def sample(self, key: jax.Array, image_shape: tuple[int, ...], dtype) -> jax.Array:
        flow_shape(image_shape)
        # The border is drawn again on the other side: neighbours are then slices, and of
        # one vector, which takes half of the time of shifted arrays on a CPU.
        white = normal_at(key, _wrapped_positions(tuple(image_shape)).ravel(), dtype)
        height, width, channels = image_shape
        row = (width + 2) * channels

        def moved(by):
            return white[row + by : row + by + height * row]

        around = (moved(-row) + moved(row)) + (moved(-channels) + moved(channels))
        balance = (4.0 * moved(0) - around).reshape(height, width + 2, channels)
        return self.scale * balance[:, 1:-1]


@functools.cache
def _wrapped_positions(image_shape):
    """`[H + 2, W + 2, C]`: positions of pixels, and of those beyond the border."""
    inside = np.arange(math.prod(image_shape), dtype=np.uint32).reshape(image_shape)
    return np.pad(inside, ((1, 1), (1, 1), (0, 0)), mode="wrap")


@dataclasses.dataclass(frozen=True, eq=False)
class NormalLaw(NoiseLaw):
    """A law whose noise is a linear function of standard normal variables."""

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """`(H, W, C)` of the images this law is for."""
        raise NotImplementedError

    def variables(self, key: jax.Array, dtype: Any = jnp.float32) -> jax.Array:
        """The variables of one copy; uses up `key`."""
        raise NotImplementedError

    def noise_of(self, variables: jax.Array) -> jax.Array:
        """`[H, W, C]`: what `added` makes of these variables."""
        raise NotImplementedError

    def copy_of(self, image: jax.Array, variables: jax.Array) -> jax.Array:
        """`[H, W, C]`: what `perturb` makes of these variables, up to rounding."""
        return self.picture(image) + self.strength(image) * self.noise_of(variables)

    def added(self, key: jax.Array, image_shape: tuple[int, ...], dtype) -> jax.Array:
        _check_shape(image_shape, self.image_shape)
        return self.noise_of(self.variables(key, dtype))


@dataclasses.dataclass(frozen=True, eq=False)
class ColouredGaussian(NormalLaw):
    """Gaussian noise with a power spectrum on the torus; see `spectrum`.

    With `gain` and `mean`, `perturb` returns the filtered picture: image plus noise,
    minus `mean`, through the filter, plus `mean` (all scaled to the image's mass).

    Attributes:
      amplitude: `[H, W, C, C]` float32, a square root of the spectrum at each
        frequency: `S(w) = amplitude(w) amplitude(w)^T`, symmetric in `w`.
      gain: `[H, W, C, C]` float32 filter applied after the noise, e.g.
        `spectrum.wiener`, or None for none.
      mean: `[H, W, C]` float32 image of mass one about which the filter works; None
        without `gain`.
    """

    amplitude: np.ndarray
    gain: np.ndarray | None = None
    mean: np.ndarray | None = None

    arrays = ("amplitude", "gain", "mean")

    def __post_init__(self):
        if (self.gain is None) != (self.mean is None):
            raise ValueError("gain and mean belong together; give both or neither.")
        object.__setattr__(self, "amplitude", np.asarray(self.amplitude, np.float32))
        spectrum.check_layout(self.amplitude)
        spectrum.check_spectrum(self.spectrum)
        # The spectrum alone does not see a sign that w and -w do not share, and a
        # real transform would lose such waves from the noise.
        if not spectrum.is_even(self.amplitude):
            raise ValueError(
                "amplitude(w) and amplitude(-w) differ; noise is real only where they "
                "are equal. Use spectrum.square_root."
            )
        if self.gain is not None and self.mean is not None:
            if self.gain.shape != self.amplitude.shape:
                raise ValueError(
                    f"gain has shape {self.gain.shape}, the spectrum "
                    f"{self.amplitude.shape}."
                )
            if self.mean.shape != self.amplitude.shape[:3]:
                raise ValueError(
                    f"mean has shape {self.mean.shape}, images of this spectrum "
                    f"{self.amplitude.shape[:3]}."
                )
            if not (np.isfinite(self.gain).all() and np.isfinite(self.mean).all()):
                raise ValueError("gain or mean holds NaN or infinite values.")
        self._freeze()

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return self.amplitude.shape[:3]

    @property
    def spectrum(self) -> np.ndarray:
        """`[H, W, C, C]` float64 power spectrum of the noise as it is drawn."""
        root = np.asarray(self.amplitude, np.float64)
        power = np.einsum("hwij,hwkj->hwik", root, root)
        return (power + np.swapaxes(power, 2, 3)) / 2

    def variables(self, key: jax.Array, dtype: Any = jnp.float32) -> jax.Array:
        """Normal variables for all waves, `waves_shape`; uses up `key`."""
        return standard_normal(key, waves_shape(self.image_shape), dtype)

    def sample(self, key: jax.Array, image_shape: tuple[int, ...], dtype) -> jax.Array:
        _check_shape(image_shape, self.image_shape)
        waves = self.variables(key, dtype)
        return colour(waves, self._half(self.amplitude, dtype), image_shape[1])

    def picture(self, image: jax.Array) -> jax.Array:
        """The image, through the filter if the law has one; see `NoiseLaw.picture`."""
        if self.gain is None or self.mean is None:
            return image
        _check_shape(image.shape, self.image_shape)
        mass, mean = image_mass(image), jnp.asarray(self.mean, image.dtype)
        waves = jnp.fft.rfft2(image / mass - mean, axes=(0, 1))
        waves = jnp.einsum("hwij,hwj->hwi", self._half(self.gain, image.dtype), waves)
        shown = jnp.fft.irfft2(waves, s=image.shape[:2], axes=(0, 1))
        return mass * (shown + mean)

    def noise_of(self, variables: jax.Array) -> jax.Array:
        """The noise, through the filter if the law has one."""
        width, dtype = self.image_shape[1], variables.dtype
        amplitude = self._half(self.amplitude, dtype)
        if self.gain is not None:
            # Before the noise is: where that is a thousand times the signal, the product
            # is small, and float32 loses nothing.
            gain = self._half(self.gain, dtype)
            amplitude = jnp.einsum("hwij,hwjk->hwik", gain, amplitude)
        return colour(variables, amplitude, width)

    def _half(self, matrices, dtype):
        """The frequencies that `rfft2` keeps, of all or of these."""
        kept = self.image_shape[1] // 2 + 1
        return jnp.asarray(matrices[:, :kept], dtype)


@dataclasses.dataclass(frozen=True, eq=False)
class GaussianView(NormalLaw):
    """A linear view of the image under standard normal noise, drawn as a picture.

    The view is `phi (mu - mean) + z`: `features` holds `phi`, one row per coordinate.
    `perturb` returns `m * (mean + readout (view))`: an image again, in pixel units.

    Attributes:
      features: `[D, H, W, C]` float32; `features[:, a]` is what mass one at pixel `a`
        adds to the view, in standard deviations of the noise.
      readout: `[D, H, W, C]` float32; what a unit in each coordinate adds to the
        picture, e.g. `wiener_readout`.
      mean: `[H, W, C]` float32 image of mass one.
    """

    features: np.ndarray
    readout: np.ndarray
    mean: np.ndarray

    arrays = ("features", "readout", "mean")

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value = np.asarray(getattr(self, field.name), np.float32)
            if not np.isfinite(value).all():
                raise ValueError(f"{field.name} holds NaN or infinite values.")
            object.__setattr__(self, field.name, value)
        if self.features.ndim != 4 or 0 in self.features.shape:
            raise ValueError(
                f"features have shape [D, H, W, C], got {self.features.shape}."
            )
        if self.readout.shape != self.features.shape:
            raise ValueError(
                f"readout has shape {self.readout.shape}, features "
                f"{self.features.shape}."
            )
        if self.mean.shape != self.features.shape[1:]:
            raise ValueError(
                f"mean has shape {self.mean.shape}, features are for images "
                f"{self.features.shape[1:]}."
            )
        self._freeze()

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return self.features.shape[1:]

    def variables(self, key: jax.Array, dtype: Any = jnp.float32) -> jax.Array:
        """One for each feature; uses up `key`."""
        return standard_normal(key, self.features.shape[:1], dtype)

    def sample(self, key: jax.Array, image_shape: tuple[int, ...], dtype) -> jax.Array:
        return self.added(key, image_shape, dtype)

    def picture(self, image: jax.Array) -> jax.Array:
        """The picture of the view without noise; see `NoiseLaw.picture`."""
        return self.copy_of(image, jnp.zeros(len(self.features), image.dtype))

    def noise_of(self, variables: jax.Array) -> jax.Array:
        """What the variables add to the picture."""
        return _product(variables, self.readout.astype(variables.dtype), 1)

    def copy_of(self, image: jax.Array, variables: jax.Array) -> jax.Array:
        """The picture of one noisy view."""
        _check_shape(image.shape, self.image_shape)
        mass, dtype = image_mass(image), image.dtype
        mean = self.mean.astype(dtype)
        view = _product(self.features.astype(dtype), image / mass - mean, 3)
        return mass * (mean + self.noise_of(view + variables))


# Accelerators may round the factors of a product to ten bits. The certificate is about
# the view as it is defined, so it is computed in full precision.
_product = functools.partial(jnp.tensordot, precision=jax.lax.Precision.HIGHEST)


def waves_shape(image_shape: tuple[int, ...]) -> tuple[int, int, int, int]:
    """Shape `(W // 2 + 1, C, 2, H)` of what `colour` makes a noise image `(H, W, C)` of.

    Cosine and sine of every wave, the first half of those along the width; see `colour`.
    """
    height, width, channels = image_shape
    return (width // 2 + 1, channels, 2, height)


def colour(waves: jax.Array, amplitude: jax.Array, width: int) -> jax.Array:
    """Gaussian noise of a spectrum, as the sum of all waves with random amplitudes.

    White noise has independent normal variables for its waves, so these are what is
    drawn, and the image is synthesised from them by two small matrix products: on a
    CPU a fifth of the time of transforming white noise forth and back.

    Args:
      waves: `waves_shape(image_shape)`, independent standard normal variables.
      amplitude: `[H, W // 2 + 1, C, C]` with `S(w) = amplitude(w) amplitude(w)^T`,
        the half of it that `rfft2` keeps; equal at `w` and `-w`.
      width: W, which the halves leave open.

    Returns:
      `[H, W, C]`, of covariance `1 / (H W) sum_w S(w) cos(w . (x - x'))`.
    """
    half, channels, _, height = waves.shape
    along, across = (
        jnp.asarray(matrix, waves.dtype) for matrix in synthesis(height, width)
    )
    roots = jnp.transpose(amplitude, (1, 2, 3, 0))  # [W // 2 + 1, C, C, H]
    parts = [roots[:, :, j, None, :] * waves[:, j, None] for j in range(channels)]
    mixed = functools.reduce(jnp.add, parts)
    rows = _product(mixed.reshape(half, channels, 2 * height), along, 1)
    rows = rows.reshape(half, channels, 2, height).transpose(1, 3, 0, 2)
    field = _product(rows.reshape(channels, height, 2 * half), across, 1)
    return jnp.moveaxis(field, 0, -1)


@functools.cache
def synthesis(height, width):
    """Two matrices that make an image of its waves, float64.

    `[2 H, 2 H]` from (part, frequency) along the height to (part, row), and
    `[2 (W // 2 + 1), W]` from (frequency, part) along the width to the column. Waves
    `w` and `-w` are the same: one of each pair is kept, with the weight of both.
    """
    half = width // 2 + 1
    turn = 2 * np.pi * np.outer(np.arange(height), np.arange(height)) / height
    along = np.block([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
    turn = 2 * np.pi * np.outer(np.arange(half), np.arange(width)) / width
    alone = np.isin(np.arange(half), [0, width / 2])
    weight = np.sqrt(np.where(alone, 1, 2) / (height * width))[:, None]
    across = np.stack([weight * np.cos(turn), -weight * np.sin(turn)], axis=1)
    return along, across.reshape(2 * half, width)


def wiener_readout(features: np.ndarray, covariance: np.ndarray) -> np.ndarray:
    """The linear estimate of an image from its noisy view with the least mean square.

    With `phi` the features and `C` the covariance of the images,
    `C phi^T (phi C phi^T + I)^{-1}`.

    Args:
      features: `[D, H, W, C]`.
      covariance: `[H W C, H W C]` of images of mass one.

    Returns:
      `[D, H, W, C]` float64.
    """
    flat = np.asarray(features, np.float64).reshape(len(features), -1)
    cross = flat @ covariance
    total = cross @ flat.T + np.eye(len(flat))
    return np.linalg.solve(total, cross).reshape(features.shape)


def kappa(law: NoiseLaw, image_shape: tuple[int, ...], ground_metric: str) -> float:
    """Largest change of the view, in standard deviations, per unit of transport.

    Computed from the arrays the law draws with, in float64 on the host, rounded up.

    Args:
      law: a Gaussian law of this module or `noise.FlowGaussian`.
      image_shape: `(H, W, C)` of the images.
      ground_metric: "l1" or "l2".

    Returns:
      float, per pixel.

    Raises:
      ValueError: the law is for other images or is not Gaussian, or an unknown
        metric.

    Source: docs/theory.md, section 5.
    """
    if isinstance(law, FlowGaussian) and not law.wrap:
        return feature_kappa(_bordered_flow_features(law, image_shape), ground_metric)
    if isinstance(law, (FlowGaussian, StencilGaussian)):
        gamma = 1.0 if isinstance(law, FlowGaussian) else 2.0
        # One channel is like another, and channels are independent.
        one = (*image_shape[:2], 1)
        flow_shape(image_shape)
        power = spectrum.power_law(one, _drawn_sigma(law), gamma)
        return spectrum.kappa(power, ground_metric)
    if isinstance(law, ColouredGaussian):
        _check_shape(image_shape, law.image_shape)
        return spectrum.kappa(law.spectrum, ground_metric)
    if isinstance(law, GaussianView):
        _check_shape(image_shape, law.image_shape)
        return feature_kappa(law.features, ground_metric)
    raise ValueError(f"{type(law).__name__} is no Gaussian law; it has no kappa.")


def feature_kappa(features: np.ndarray, ground_metric: str) -> float:
    """Lipschitz constant of `pixel -> features[:, pixel]`, the worst over channels.

    In the Manhattan metric adjacent pixels decide: any other pair is joined by a path
    of `d(a, b)` edges. In the Euclidean metric all pairs are looked at.

    Args:
      features: `[D, H, W, C]`.
      ground_metric: "l1" or "l2".

    Returns:
      float, per pixel; float64, rounded up.

    Raises:
      ValueError: an unknown metric, or images of one pixel.
    """
    phi = np.asarray(features, np.float64)
    count, height, width, channels = phi.shape
    if height * width == 1:
        raise ValueError("An image of one pixel has no mass to move.")
    check_ground_metric(ground_metric)
    if ground_metric == "l1":
        steps = (np.diff(phi, axis=axis) for axis in (1, 2))
        squares = [(step**2).sum(axis=0).max(initial=0.0) for step in steps]
        return _rounded_up_root(max(squares), count)
    y, x = np.divmod(np.arange(height * width), width)
    worst = 0.0
    for channel in range(channels):
        points = phi[..., channel].reshape(count, -1).T
        norms = (points**2).sum(axis=1)
        # In blocks of rows, so that memory does not grow with the square of pixels.
        for rows in np.array_split(np.arange(len(points)), -(-len(points) // 512)):
            squares = norms[rows, None] + norms - 2.0 * points[rows] @ points.T
            # The three terms cancel; this much may be missing from the difference.
            squares += 4e-16 * (count + 4) * (norms[rows, None] + norms)
            distances = (y[rows, None] - y) ** 2 + (x[rows, None] - x) ** 2
            apart = distances > 0
            worst = max(worst, (squares[apart] / distances[apart]).max(initial=0.0))
    return _rounded_up_root(worst, count)


def _rounded_up_root(square, terms):
    return float(np.sqrt(square) * (1.0 + 1e-15 * (terms + 4)))


def _bordered_flow_features(law, image_shape):
    """`Sigma^{-1/2}` of Gaussian flow noise without wrap-around edges.

    `Sigma / sigma**2` is the Laplacian of the grid graph, which the cosine transform
    diagonalises.
    """
    flow_shape(image_shape)
    height, width, _ = image_shape
    if height * width > 4096:
        raise ValueError(
            f"The exact constant of flow_gaussian without wrap-around edges needs all "
            f"modes of the grid, and {height} x {width} is too many. Use wrap=True."
        )

    def modes(size):
        order = np.arange(size)[:, None]
        wave = np.cos(np.pi * order * (np.arange(size) + 0.5) / size)
        return (
            wave * np.where(order > 0, math.sqrt(2.0 / size), math.sqrt(1.0 / size)),
            4.0 * np.sin(np.pi * order[:, 0] / (2 * size)) ** 2,
        )

    (rows, row_values), (columns, column_values) = modes(height), modes(width)
    values = (row_values[:, None] + column_values).ravel()[1:]
    both = np.einsum("ky,lx->klyx", rows, columns).reshape(-1, height, width)[1:]
    sizes = _drawn_sigma(law) * np.sqrt(values)
    return (both / sizes[:, None, None])[..., None]


def _drawn_sigma(law):
    """`sigma` as float32 noise has it, if that is smaller."""
    return min(law.sigma, float(np.float32(law.sigma)))


def _check_shape(given, expected):
    if tuple(given) != tuple(expected):
        raise ValueError(
            f"This noise was made for images of shape {tuple(expected)}, not "
            f"{tuple(given)}."
        )
