"""Checks of what attacks are given: images, and Python numbers."""

import dataclasses

import jax
import numpy as np


def check_settings(settings, *others):
    """Refuses settings of an attack: floats are positive and finite, integers positive.

    Args:
      settings: frozen dataclass with defaults, whose types say which is which.
      *others: names of those with another range.
    """
    for field in dataclasses.fields(settings):
        check = {float: check_positive, int: check_whole}.get(type(field.default))
        if check and field.name not in others:
            check(**{field.name: getattr(settings, field.name)})


def check_positive(**values):
    """Refuses numbers that are not positive and finite."""
    for name, value in _numbers(values):
        if not 0 < value < np.inf:
            raise ValueError(f"{name}={value} is not a positive finite number.")


def check_not_negative(**values):
    """Refuses numbers that are negative or not finite."""
    for name, value in _numbers(values):
        if not 0 <= value < np.inf:
            raise ValueError(f"{name}={value} is negative or not finite.")


def check_whole(**values):
    """Refuses numbers that are not whole and positive."""
    for name, value in _numbers(values):
        if not (value >= 1 and value % 1 == 0):
            raise ValueError(f"{name}={value} is not a whole number above zero.")


def check_images(images, labels):
    """Images and labels as NumPy arrays, checked.

    Args:
      images: `[N, H, W, C]` float, in [0, 1], none all black.
      labels: `[N]` int.

    Raises:
      ValueError: they are not that.
    """
    images, labels = np.asarray(images), np.asarray(labels)
    if images.ndim != 4 or 0 in images.shape:
        raise ValueError(
            f"images has shape {images.shape} instead of [N, H, W, C]. Grayscale "
            f"images need a last axis of size 1."
        )
    if not np.issubdtype(images.dtype, np.floating):
        raise ValueError(
            f"Pixels are {images.dtype}; convert to floats in [0, 1] first, e.g. "
            f"images.astype(np.float32) / 255."
        )
    if labels.shape != images.shape[:1] or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(
            f"labels has shape {labels.shape} and dtype {labels.dtype}; "
            f"{len(images)} images need as many integers."
        )
    if not np.isfinite(images).all():
        broken = np.flatnonzero(~np.isfinite(images).all((1, 2, 3)))
        raise ValueError(f"Images {broken.tolist()} have NaN or infinite pixels.")
    if images.min() < 0 or images.max() > 1:
        raise ValueError(
            f"Pixels run from {images.min():g} to {images.max():g}, outside [0, 1]. "
            f"Divide 8-bit images by 255; leave standardisation to the model."
        )
    black = np.flatnonzero(images.sum((1, 2, 3)) == 0)
    if black.size:
        raise ValueError(
            f"Images {black.tolist()} are all black: there is no mass to move. Leave "
            f"them out."
        )
    return images, labels


def _numbers(values):
    # Arrays pass without being read.
    return [
        (name, value)
        for name, value in values.items()
        if not isinstance(value, (jax.Array, np.ndarray))
    ]
