"""Which images something can be certified about."""

import numpy as np

# What an image may weigh. Noise is mass times a scale of 1e-12 and more (`certificates`),
# so neither underflows in float32 (below 1e-38 it would be flushed to zero, and the image
# go out as it is) nor overflows.
LEAST_MASS, MOST_MASS = 1e-12, 1e12


def has_usable_mass(mass):
    """Whether a mass, or each of an array of them, is between the least and the most."""
    return (mass >= LEAST_MASS) & (mass <= MOST_MASS)


def check_image(image) -> None:
    """Refuses images about which no certificate can say anything.

    Args:
      image: array-like `[H, W, C]`; inspected on the host.

    Raises:
      ValueError: wrong number of axes, not float32 or float64, NaN or infinite or negative
        pixels, no mass at all, or a mass outside [1e-12, 1e12].
    """
    pixels = np.asarray(image)
    if pixels.ndim != 3 or 0 in pixels.shape:
        raise ValueError(
            f"An image has shape [H, W, C], got {pixels.shape}. A grayscale image "
            f"needs a last axis of size 1; of a batch, pass one image at a time."
        )
    if pixels.dtype not in (np.float32, np.float64):
        raise ValueError(
            f"Image pixels are {pixels.dtype}, not float32 or float64; convert first, "
            f"e.g. image.astype(np.float32) / 255."
        )
    if not np.isfinite(pixels).all():
        bad = int(np.size(pixels) - np.isfinite(pixels).sum())
        raise ValueError(f"{bad} of the image's {pixels.size} pixels are NaN or inf.")
    if pixels.min() < 0:
        raise ValueError(
            f"Pixels are mass and cannot be negative, but the smallest is "
            f"{pixels.min()}. Undo any standardisation (it belongs to the model, "
            f"after the noise) and pass pixels in [0, 1]."
        )
    mass = pixels.sum(dtype=np.float64)
    if not mass > 0:
        raise ValueError(
            "The image is all black: it has no mass to move, so its Wasserstein "
            "distance to other images is undefined. Leave it out."
        )
    if not has_usable_mass(mass):
        raise ValueError(
            f"The image has a mass of {mass:.3g}, outside [{LEAST_MASS:g}, "
            f"{MOST_MASS:g}]: products with it would underflow or overflow. Rescale it, "
            f"with all others and before the classifier is trained, e.g. to pixels in "
            f"[0, 1]."
        )
