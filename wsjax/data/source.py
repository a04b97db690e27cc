"""What every data set is to the rest: images and labels in a fixed order."""

import dataclasses
import os
from collections.abc import Iterator
from typing import NamedTuple, Protocol

import numpy as np


class ImageBatch(NamedTuple):
    """Some images of a split.

    Attributes:
      images: `[B, H, W, C]` uint8.
      labels: `[B]` int32.
      indices: `[B]` int64, the images' positions in the split.
    """

    images: np.ndarray
    labels: np.ndarray
    indices: np.ndarray


@dataclasses.dataclass(frozen=True)
class Options:
    """How to open a data set; the part of a config's `data` block that says so.

    Attributes:
      name: of the data set, a key of `DATA_SETS`.
      dir: folder or file of the data.
      source: "files", or "tfds" for what TensorFlow Datasets prepared earlier; of the
        published sets alone.
      verify: whether to compare MNIST, Fashion-MNIST and CIFAR-10 with their published
        content. False is for a set of one's own in their format.
      image_size: side of the square images of imagenet,
      resize: and the short side of a photograph before the central square is cut out.
    """

    name: str
    dir: str | os.PathLike | None = None
    source: str = "files"
    verify: bool = True
    image_size: int = 224
    resize: int = 256


class Source(Protocol):
    """One split of a data set. `Dataset` lies in memory, `ImageStream` does not."""

    @property
    def num_classes(self) -> int:
        """Number of classes K; labels are 0 to K - 1."""

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """`(H, W, C)` of every image."""

    @property
    def scale(self) -> float:
        """What a stored pixel is divided by to lie in [0, 1]: 255, or 16 for digits."""

    @property
    def checksum(self) -> str:
        """Equal checksums mean the same images under the same positions."""

    @property
    def arrays(self) -> tuple[np.ndarray, np.ndarray] | None:
        """All images `[N, H, W, C]` uint8 and labels `[N]` int32; None of a stream."""

    def __len__(self) -> int:
        """Number of images N."""

    def __getitem__(self, index: int, /) -> tuple[np.ndarray, int]:
        """Image `[H, W, C]` uint8 and label; IndexError ends an iteration."""

    def batches(self, batch_size: int) -> Iterator[ImageBatch]:
        """All images once, in order; the last batch may be smaller."""

    def train_batches(
        self, batch_size: int, *, seed: int, epoch: int, start_step: int = 0
    ) -> Iterator[ImageBatch]:
        """One training epoch in the order of `epoch_batches`, perhaps augmented."""
