"""Photographs that do not fit in memory: decoded one by one, in a fixed order."""

import abc
import operator
from collections.abc import Callable, Iterable, Iterator

import numpy as np

from wsjax.data import photographs, prefetch
from wsjax.data.batches import epoch_batches
from wsjax.data.source import SPLITS, ImageBatch

# Keeps an image's draws apart from those of `epoch_batches`: NumPy seeds with
# (seed, epoch) and (seed, epoch, 0) give the same stream.
_AUGMENT_STREAM = 1


class ImageStream(abc.ABC):
    """A data set of photographs, read when asked for: a `Source` not in memory.

    A subclass says how many there are, what they are called, and fetches one.

    Attributes:
      num_classes: number of classes.
      checksum: see the subclass.
      scale: 255.0, what a pixel is divided by to lie in [0, 1].
      arrays: None.
      image_size: side S of the images handed out.
      resize: short side before the central crop of the evaluation view.
      min_area: smallest share of a photograph in a training view.
    """

    num_classes: int
    checksum: str
    scale = 255.0
    arrays = None

    def __init__(
        self,
        split: str,
        image_size: int = 224,
        resize: int = 256,
        min_area: float = 0.08,
    ) -> None:
        if split not in SPLITS:
            raise ValueError(
                f"Unknown split {split!r}; expected train or test, where test is "
                f"ImageNet's validation set: the labels of its test set are secret."
            )
        if not 0 < image_size <= resize:
            raise ValueError(
                f"image_size={image_size} must be between 1 and resize={resize}, the "
                f"short side that the central square is cut from."
            )
        if not 0 < min_area <= 1:
            raise ValueError(f"min_area={min_area} is outside (0, 1].")
        self.image_size = image_size
        self.resize = resize
        self.min_area = min_area

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """`(S, S, 3)`."""
        return self.image_size, self.image_size, 3

    @abc.abstractmethod
    def __len__(self) -> int:
        """Number of images."""

    @abc.abstractmethod
    def file_name(self, index: int) -> str:
        """Names the photograph at a position, to match rows of other sources."""

    @abc.abstractmethod
    def _fetch(self, index: int) -> tuple[bytes, int, str]:
        """Returns a photograph's bytes, its label and where it comes from."""

    def _decode(self, index):
        content, label, source = self._fetch(index)
        return photographs.decode(content, source), label

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        """Decodes one image in its evaluation view.

        Args:
          index: position; negative ones count from the end.

        Returns:
          `[S, S, 3]` uint8 and the label: short side resized to `resize`, then the
          central square.

        Raises:
          IndexError: no such position.
          ValueError: the file is damaged; the message names it.
        """
        photograph, label = self._decode(range(len(self))[operator.index(index)])
        view = photographs.resize_and_crop(photograph, self.resize, self.image_size)
        return view, label

    def augmented(self, index: int, *, seed: int, epoch: int) -> tuple[np.ndarray, int]:
        """Decodes one image in a training view, a function of all three arguments.

        Args:
          index: position; negative ones count from the end.
          seed: the run's data seed.
          epoch: number of the epoch.

        Returns:
          `[S, S, 3]` uint8 and the label: a random part of the photograph, resized
          and mirrored half of the time. It is the same whatever was read before, so
          a resumed run sees the pixels an uninterrupted one would have seen.

        Raises:
          IndexError: no such position.
          ValueError: the file is damaged; the message names it.
        """
        index = range(len(self))[operator.index(index)]
        photograph, label = self._decode(index)
        rng = np.random.default_rng((seed, epoch, index, _AUGMENT_STREAM))
        view = photographs.random_resized_crop(
            photograph, self.image_size, rng, self.min_area
        )
        return view, label

    def batches(
        self, batch_size: int, *, num_threads: int = 8, ahead: int = 2
    ) -> Iterator[ImageBatch]:
        """Iterates over all images once, in order, in their evaluation view.

        Args:
          batch_size: images per batch; the last batch may be smaller.
          num_threads: threads that decode.
          ahead: batches decoded ahead of the caller. At most `ahead + 1` batches
            are in memory.

        Returns:
          Iterator over `ImageBatch`.

        Raises:
          ValueError: an argument below 1. While iterating: a damaged file.
        """
        _check_positive(batch_size=batch_size, num_threads=num_threads, ahead=ahead)
        indices = np.arange(len(self))
        groups = (
            indices[start : start + batch_size]
            for start in range(0, len(indices), batch_size)
        )
        return _assemble(self.__getitem__, groups, num_threads, ahead)

    def train_batches(
        self,
        batch_size: int,
        *,
        seed: int,
        epoch: int,
        start_step: int = 0,
        num_threads: int = 8,
        ahead: int = 2,
    ) -> Iterator[ImageBatch]:
        """Iterates over one training epoch: shuffled, in training views.

        Args:
          batch_size: images per batch; the remainder of the epoch is left out.
          seed: the run's data seed, for order and views.
          epoch: number of the epoch.
          start_step: batches to skip without decoding them, to resume a run.
          num_threads: threads that decode.
          ahead: as in `batches`.

        Returns:
          Iterator over `ImageBatch`, with the order of `epoch_batches`.

        Raises:
          ValueError: see `epoch_batches`. While iterating: a damaged file.
        """
        _check_positive(num_threads=num_threads, ahead=ahead)
        groups = epoch_batches(
            len(self), batch_size, seed=seed, epoch=epoch, start_step=start_step
        )

        def read(index):
            return self.augmented(index, seed=seed, epoch=epoch)

        return _assemble(read, groups, num_threads, ahead)


def _check_positive(**values: int) -> None:
    for name, value in values.items():
        if value < 1:
            raise ValueError(f"{name}={value} must be at least 1.")


def _assemble(
    read: Callable[[int], tuple[np.ndarray, int]],
    groups: Iterable[np.ndarray],
    num_threads: int,
    ahead: int,
) -> Iterator[ImageBatch]:
    """Reads groups of indices into batches."""

    def read_one(index):
        return *read(index), index

    for items in prefetch.read_groups(
        read_one, groups, num_threads=num_threads, ahead=ahead
    ):
        images, labels, indices = zip(*items, strict=True)
        yield ImageBatch(
            np.stack(images), np.array(labels, np.int32), np.array(indices, np.int64)
        )
