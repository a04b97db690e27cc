"""A data set that fits in memory, and its way to floating point."""

import dataclasses
import hashlib
from collections.abc import Iterator

import numpy as np

from wsjax import text
from wsjax.data.batches import epoch_batches
from wsjax.data.source import ImageBatch


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset(text.Short):
    """One split of a data set, in its published order: a `Source` in memory.

    Attributes:
      images: `[N, H, W, C]` uint8, from 0 (black) to `scale` (white); read-only.
      labels: `[N]` int32 in `[0, num_classes)`; read-only.
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

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """`(H, W, C)`."""
        return self.images.shape[1:]

    @property
    def arrays(self) -> tuple[np.ndarray, np.ndarray]:
        """`images` and `labels`."""
        return self.images, self.labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        return self.images[index], int(self.labels[index])

    def first(self, count: int) -> "Dataset":
        """The first `count` images, or all; the checksum stays that of the whole.

        Raises:
          ValueError: `count` is not positive.
        """
        if count < 1:
            raise ValueError(f"The first {count} images are none: at least 1.")
        return dataclasses.replace(
            self, images=self.images[:count], labels=self.labels[:count]
        )

    def batches(self, batch_size: int) -> Iterator[ImageBatch]:
        """All images once, in order; the last batch may be smaller."""
        for start in range(0, len(self), batch_size):
            yield self._batch(np.arange(start, min(start + batch_size, len(self))))

    def train_batches(
        self, batch_size: int, *, seed: int, epoch: int, start_step: int = 0
    ) -> Iterator[ImageBatch]:
        """One training epoch; arguments and errors are those of `epoch_batches`."""
        order = epoch_batches(
            len(self), batch_size, seed=seed, epoch=epoch, start_step=start_step
        )
        return map(self._batch, order)

    def _batch(self, indices):
        return ImageBatch(self.images[indices], self.labels[indices], indices)


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
