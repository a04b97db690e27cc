"""Power spectra of Gaussian noise on the torus, and what they certify.

A stationary Gaussian image on the `H x W` torus is described by its power spectrum:
one positive semidefinite `C x C` matrix `S(w)` for each frequency `w`, the covariance
of the channels there. Spectra are arrays `[H, W, C, C]` in the layout of `fft2` over
the first two axes, in squared fractions of the image's mass: white noise of standard
deviation `sigma` has `S(w) = sigma**2 * identity`. They are real and symmetric,
`S(-w) = S(w)`, and zero at frequency zero, so that noise moves mass and makes none.

`kappa` is the number that a spectrum contributes to a certificate: no transport of
cost `W` moves an image by more than `kappa * W` standard deviations of the noise.
"""

import numpy as np

from wsjax.metrics import check_ground_metric

# Relative error of an FFT of the sizes in use, with room to spare.
_FFT_SLACK = 1e-13

_SINGULAR = 1e-10


def laplacian(height: int, width: int) -> np.ndarray:
    """Eigenvalues of minus the five-point Laplacian on the torus.

    `lap(w) = 4 - 2 cos(w_y) - 2 cos(w_x)`: the power spectrum of the divergence of
    white noise of variance one on all edges, wrap-around edges included.

    Args:
      height: rows H.
      width: columns W.

    Returns:
      `[H, W]` float64 in [0, 8]; 0 at frequency zero only.
    """
    y = 2.0 * np.pi * np.fft.fftfreq(height)
    x = 2.0 * np.pi * np.fft.fftfreq(width)
    # 2 sin^2(w / 2) instead of 1 - cos(w): exact zeros and no cancellation.
    return 4.0 * (np.sin(y / 2)[:, None] ** 2 + np.sin(x / 2)[None, :] ** 2)


def power_law(image_shape: tuple[int, ...], sigma: float, gamma: float) -> np.ndarray:
    """The family `S = sigma**2 * lap**gamma`, the same in every channel.

    `gamma = 0` is white pixel noise (without its mean), 1 Gaussian noise on the edges
    of the flow plan, 2 the five-point Laplacian of white noise; larger values push
    the noise to higher frequencies.

    Args:
      image_shape: `(H, W, C)`.
      sigma: standard deviation per pixel, edge or stencil centre; fraction of mass.
      gamma: exponent.

    Returns:
      `[H, W, C, C]` float64.

    Raises:
      ValueError: `image_shape` or a number is outside its range.
    """
    if len(image_shape) != 3 or min(image_shape) < 1:
        raise ValueError(f"An image has shape (H, W, C), got {image_shape}.")
    height, width, channels = image_shape
    if not (0 < sigma < np.inf and np.isfinite(gamma)):
        raise ValueError(
            f"sigma={sigma!r} and gamma={gamma!r} should be a positive finite and a "
            f"finite number."
        )
    lap = laplacian(height, width)
    power = np.zeros_like(lap)
    moving = lap > 0
    power[moving] = sigma**2 * lap[moving] ** gamma
    return power[:, :, None, None] * np.eye(channels)


def radial_position(height: int, width: int, bins: int):
    """Where each frequency lies among `bins` knots that are even in `log lap`.

    Args:
      height: rows H.
      width: columns W.
      bins: number of knots, at least two; the first at the smallest positive
        eigenvalue of `laplacian`, the last at its largest possible value, 8.

    Returns:
      `(index, weight, knots)`: `[H, W]` int32 knot below, `[H, W]` float64 share of the
      knot above, `[bins]` float64 values of `log lap` at the knots. Frequency zero
      is placed on the first knot.

    Raises:
      ValueError: fewer than two bins, or an image of one pixel.
    """
    if bins < 2:
        raise ValueError(f"bins={bins} is below 2: a radial spectrum needs two knots.")
    lap = laplacian(height, width)
    if not lap.any():
        raise ValueError("An image of one pixel has no mass to move.")
    least = lap[lap > 0].min()
    knots = np.linspace(np.log(least), np.log(8.0), bins)
    place = (np.log(np.maximum(lap, least)) - knots[0]) / (knots[1] - knots[0])
    index = np.clip(np.floor(place), 0, bins - 2).astype(np.int32)
    return index, place - index, knots


def power_spectrum(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and power spectrum of a set of images, each scaled to mass one.

    Args:
      images: `[N, H, W, C]`, any unit, each with positive mass.

    Returns:
      `(mean, power)`: `[H, W, C]` float64, and `[H, W, C, C]` float64: average over
      the images of `Re(z z^H) / (H W)`, `z` the transform of image minus mean, in
      the unit of a noise spectrum. Frequency zero is kept: channels of different
      images hold different shares of the mass.

    Raises:
      ValueError: there are no images, or one has no mass.
    """
    if images.ndim != 4 or len(images) == 0:
        raise ValueError(f"Expected images [N, H, W, C], got shape {images.shape}.")
    mean = np.zeros(images.shape[1:])
    _, height, width, channels = images.shape
    half = np.zeros((height, width // 2 + 1, channels, channels))
    parts = np.array_split(images, max(1, len(images) // 1000))
    for part in parts:
        mean += _unit_mass(part).sum(axis=0)
    mean /= len(images)
    for part in parts:
        waves = np.fft.rfft2(_unit_mass(part) - mean, axes=(1, 2))
        left, right = waves.transpose(1, 2, 3, 0), waves.transpose(1, 2, 0, 3)
        half += (left.real @ right.real) + (left.imag @ right.imag)
    # Real images: the other half of the frequencies mirrors this one.
    rest = np.arange(1, width - width // 2)
    mirrored = np.roll(half[::-1], 1, axis=0)[:, rest[::-1]]
    power = np.concatenate([half, mirrored], axis=1)
    return mean, power / (len(images) * height * width)


def _unit_mass(images):
    images = np.asarray(images, np.float64)
    mass = images.sum(axis=(1, 2, 3), keepdims=True)
    if not (mass > 0).all():
        raise ValueError(f"{int((mass <= 0).sum())} images are all black; leave them.")
    return images / mass


def wiener(signal: np.ndarray, noise: np.ndarray) -> np.ndarray:
    """The linear filter that best recovers a signal from signal plus noise.

    `H(w) = P(w) (P(w) + S(w))^{-1}`. It is applied to what the noise has already been
    added to, so it costs no certificate: filtering is post-processing.

    Args:
      signal: `[H, W, C, C]` power spectrum P of the images.
      noise: `[H, W, C, C]` power spectrum S of the noise.

    Returns:
      `[H, W, C, C]` float64; the identity where there is no noise at all.
    """
    total = signal + noise
    silent = ~noise.any(axis=(2, 3))
    total[silent] = np.eye(total.shape[-1])
    gain = np.swapaxes(np.linalg.solve(total, np.swapaxes(signal, 2, 3)), 2, 3)
    gain[silent] = np.eye(total.shape[-1])
    return gain


def check_spectrum(spectrum: np.ndarray) -> None:
    """Refuses arrays that are not the spectrum of noise that a certificate can use.

    Args:
      spectrum: array-like `[H, W, C, C]`.

    Raises:
      ValueError: wrong shape, not finite, not symmetric (in the channels, or between
        `w` and `-w`), power at frequency zero, or not positive definite elsewhere.
    """
    s = np.asarray(spectrum)
    check_layout(s)
    if not np.isfinite(s).all():
        raise ValueError("The spectrum holds NaN or infinite values.")
    if s.shape[0] * s.shape[1] == 1:
        raise ValueError("An image of one pixel has no mass to move.")
    if s[0, 0].any():
        raise ValueError(
            f"The spectrum has power {s[0, 0].max():.3g} at frequency zero: such noise "
            f"changes the mass of a channel. Set spectrum[0, 0] to 0."
        )
    if (s != np.swapaxes(s, 2, 3)).any() or not is_even(s):
        raise ValueError(
            "The spectrum is not symmetric: S(w) should be a symmetric matrix and "
            "equal to S(-w)."
        )
    values = np.linalg.eigvalsh(s.reshape(-1, *s.shape[2:])[1:].astype(np.float64))
    # Below this a matrix is singular as far as its inverse can be told.
    if not (values[:, 0] > _SINGULAR * np.abs(values).max(axis=1)).all():
        raise ValueError(
            f"The spectrum's smallest eigenvalue away from frequency zero is "
            f"{values.min():.3g}, not positive (or below {_SINGULAR:g} of the largest "
            f"there): mass could move unseen by the noise."
        )


def check_layout(matrices: np.ndarray) -> None:
    """Raises ValueError unless an array has the shape `[H, W, C, C]` of a spectrum."""
    shape = matrices.shape
    if len(shape) != 4 or shape[2] != shape[3] or 0 in shape:
        raise ValueError(f"A spectrum has shape [H, W, C, C], got {shape}.")


def kappa(spectrum: np.ndarray, ground_metric: str) -> float:
    """Largest change, in standard deviations, per unit of transport.

    For all pixels `a != b` of one channel, with `e_a` the image of mass one at `a`,

        (e_a - e_b)^T Sigma^+ (e_a - e_b)  <=  kappa**2 * d(a, b)**2,

    and equality holds for some pair. `Sigma^+` is stationary too, with spectrum
    `S(w)^{-1}`; with `K_c` the inverse transform of its diagonal entry for channel `c`,
    the left side is `2 (K_c[0] - K_c[a - b])`, so one FFT gives all pairs at once. Any
    offset on the torus joins some pair of pixels inside the image whose distance is
    the offset's torus distance, and no closer pair, so nothing is lost.

    Args:
      spectrum: `[H, W, C, C]` that passes `check_spectrum`.
      ground_metric: "l1" or "l2".

    Returns:
      float, per pixel; float64 arithmetic on the host, rounded up.

    Raises:
      ValueError: `check_spectrum` refuses the spectrum, or an unknown metric.

    Source: docs/theory.md, 5.2.
    """
    check_spectrum(spectrum)
    s = np.asarray(spectrum, np.float64)
    precision = np.zeros(s.shape[:3])
    inverse = np.linalg.inv(s.reshape(-1, *s.shape[2:])[1:])
    precision.reshape(-1, s.shape[2])[1:] = np.diagonal(inverse, axis1=1, axis2=2)
    squares = squared_slopes(precision, ground_metric, np)
    # The transform's error is relative to the sum of what it adds up, and the
    # inverse's to the condition of the matrices.
    condition = np.linalg.cond(s.reshape(-1, *s.shape[2:])[1:]).max()
    error = precision.mean(axis=(0, 1)).max() * _FFT_SLACK
    error += squares.max() * condition * 1e-15
    return float(np.sqrt(squares.max() + 4.0 * error) * (1.0 + 1e-14))


def squared_slopes(precision, ground_metric: str, xp):
    """`2 (K_c[0] - K_c[o]) / d(o)**2` for every offset `o` on the torus.

    The device's half of `kappa`, which may be differentiated when a spectrum is
    learned; certificates use `kappa`.

    Args:
      precision: `[H, W, C]`, diagonal of `S(w)^{-1}`, 0 at frequency zero.
      ground_metric: "l1" or "l2".
      xp: `numpy`, or `jax.numpy` under `jit` and `grad`.

    Returns:
      `[H, W, C]`, dtype of `precision`; 0 at offset zero.
    """
    height, width, _ = precision.shape
    inverse_square = 1.0 / torus_distances(height, width, ground_metric) ** 2
    kernel = xp.fft.ifft2(precision, axes=(0, 1)).real
    weights = xp.asarray(inverse_square[:, :, None], precision.dtype)
    return 2.0 * (kernel[:1, :1] - kernel) * weights


def torus_distances(height: int, width: int, ground_metric: str) -> np.ndarray:
    """Length of every offset on the torus, infinite for offset zero.

    Args:
      height: rows H.
      width: columns W.
      ground_metric: "l1" or "l2".

    Returns:
      `[H, W]` float64, in pixels.

    Raises:
      ValueError: an unknown metric.
    """
    check_ground_metric(ground_metric)
    # Distances on a ring from its first position.
    y, x = (np.minimum(np.arange(n), n - np.arange(n)) * 1.0 for n in (height, width))
    y = y[:, None]
    distances = y + x if ground_metric == "l1" else np.hypot(y, x)
    distances[0, 0] = np.inf
    return distances


def square_root(spectrum: np.ndarray) -> np.ndarray:
    """Symmetric square roots of the matrices of a spectrum, `[H, W, C, C]` float64."""
    values, vectors = np.linalg.eigh(np.asarray(spectrum, np.float64))
    roots = np.sqrt(np.maximum(values, 0.0))
    return np.einsum("hwij,hwj,hwkj->hwik", vectors, roots, vectors)


def is_even(matrices: np.ndarray) -> bool:
    """Whether an array `[H, W, ...]` over frequencies has equal values at w and -w."""
    mirrored = np.roll(matrices[::-1, ::-1], (1, 1), axis=(0, 1))
    return bool((matrices == mirrored).all())
