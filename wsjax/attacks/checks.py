"""Checks of what attacks are given: images, and Python numbers."""

import dataclasses

import jax
import numpy as np

from wsjax.images import check_image


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
      images: `[N, H, W, C]`, each as `images.check_image` has it, in [0, 1].
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
    if labels.shape != images.shape[:1] or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(
            f"labels has shape {labels.shape} and dtype {labels.dtype}; "
            f"{len(images)} images need as many integers."
        )
    for index, image in enumerate(images):
        try:
            check_image(image)
            if image.max() > 1:
                raise ValueError(
                    f"The largest pixel is {image.max():g}, outside [0, 1]. Divide 8-bit "
                    f"images by 255."
                )
        except ValueError as error:
            raise ValueError(f"Image {index} of {len(images)}: {error}") from None
    return images, labels


def _numbers(values):
    # Arrays pass without being read.
    return [
        (name, value)
        for name, value in values.items()
        if not isinstance(value, (jax.Array, np.ndarray))
    ]
