"""A data set that fits in memory, and its way to floating point."""

import hashlib
from typing import NamedTuple

import numpy as np


class Dataset(NamedTuple):
    """One split of a data set, in its published order. The arrays are read-only.

    Attributes:
      images: `[N, H, W, C]` uint8, from 0 (black) to `scale` (white).
      labels: `[N]` int32 in `[0, num_classes)`.
      num_classes: number of classes K.
      scale: what a pixel is divided by to lie in [0, 1]: 255, or 16 for digits.
      checksum: hex SHA-256 of the images' and then the labels' bytes, see
        `checksum_of`. Two runs with equal checksums saw the same images under the
        same positions.
    """

    images: np.ndarray
    labels: np.ndarray
    num_classes: int
    scale: float
    checksum: str


def make_dataset(
    images: np.ndarray, labels: np.ndarray, num_classes: int, scale: float
) -> Dataset:
    """Puts arrays into a `Dataset`: dtypes, checksum, and no more writing.

    Args:
      images: `[N, H, W, C]` uint8.
      labels: `[N]` integers in `[0, num_classes)`.
      num_classes: number of classes.
      scale: the pixel value that means one.

    Returns:
      The `Dataset`. It may share memory with `images`.
    """
    images = np.ascontiguousarray(images)
    labels = np.ascontiguousarray(labels, np.int32)
    assert images.dtype == np.uint8 and images.ndim == 4, (images.dtype, images.shape)
    assert labels.shape == images.shape[:1], (labels.shape, images.shape)
    images.setflags(write=False)
    labels.setflags(write=False)
    return Dataset(images, labels, num_classes, scale, checksum_of(images, labels))


def checksum_of(images: np.ndarray, labels: np.ndarray) -> str:
    """Hashes images and labels, in their order.

    Args:
      images: `[N, H, W, C]` uint8.
      labels: `[N]` integers; hashed as little-endian int32.

    Returns:
      SHA-256 of the images' bytes followed by the labels' bytes, 64 hex digits.
    """
    digest = hashlib.sha256(np.ascontiguousarray(images).data)
    digest.update(np.ascontiguousarray(labels, "<i4").data)
    return digest.hexdigest()


def as_float(images: np.ndarray, scale: float) -> np.ndarray:
    """Turns stored pixels into floating point pixels in [0, 1].

    Args:
      images: uint8 of any shape, as in `Dataset.images`.
      scale: `Dataset.scale` of the same set.

    Returns:
      float32 in [0, 1], of the shape of `images`. Not yet mass: the caller divides
      by each image's sum, after any augmentation.

    Raises:
      ValueError: `images` is not uint8, or holds values above `scale`.
    """
    images = np.asarray(images)
    if images.dtype != np.uint8:
        raise ValueError(
            f"as_float takes stored uint8 pixels, not {images.dtype}. Pixels that "
            f"are floating point already must not be divided by scale={scale} again."
        )
    if images.size and images.max() > scale:
        raise ValueError(
            f"The brightest pixel is {images.max()}, but scale={scale} should be the "
            f"largest possible. Pass the scale that came with these images."
        )
    return np.divide(images, np.float32(scale), dtype=np.float32)
