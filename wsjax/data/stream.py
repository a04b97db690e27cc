"""Photographs that do not fit in memory: decoded one by one, in a fixed order."""

import abc
import operator
from collections.abc import Iterator
from functools import partial

import numpy as np

from wsjax.data import photographs, prefetch
from wsjax.data.batches import epoch_batches
from wsjax.data.source import ImageBatch, Options

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
      num_threads: threads that decode batches.
      ahead: batches decoded ahead of the caller; at most `ahead + 1` are in memory.
    """

    num_classes: int
    checksum: str
    scale = 255.0
    arrays = None
    num_threads = 8
    ahead = 2

    def __init__(self, options: Options) -> None:
        """Takes the sizes.

        Raises:
          ValueError: they do not fit each other.
        """
        self.image_size, self.resize = options.image_size, options.resize
        if not 0 < self.image_size <= self.resize:
            raise ValueError(
                f"image_size={self.image_size} must be between 1 and "
                f"resize={self.resize}, the short side that the central square is cut "
                f"from."
            )

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
          index: as in `__getitem__`, as are the errors.
          seed: the run's data seed.
          epoch: number of the epoch.

        Returns:
          `[S, S, 3]` uint8 and the label: a random part of the photograph, resized
          and mirrored half of the time. It is the same whatever was read before, so
          a resumed run sees the pixels an uninterrupted one would have seen.
        """
        index = range(len(self))[operator.index(index)]
        photograph, label = self._decode(index)
        rng = np.random.default_rng((seed, epoch, index, _AUGMENT_STREAM))
        return photographs.random_resized_crop(photograph, self.image_size, rng), label

    def batches(self, batch_size: int) -> Iterator[ImageBatch]:
        """See `Source.batches`: evaluation views. ValueError, on the way, of a damaged file."""
        groups = np.split(
            np.arange(len(self)), range(batch_size, len(self), batch_size)
        )
        return self._read(self.__getitem__, groups)

    def train_batches(
        self, batch_size: int, *, seed: int, epoch: int, start_step: int = 0
    ) -> Iterator[ImageBatch]:
        """See `Source.train_batches`: training views; batches to skip are not decoded.

        Raises:
          ValueError: see `epoch_batches`. While iterating: a damaged file.
        """
        groups = epoch_batches(
            len(self), batch_size, seed=seed, epoch=epoch, start_step=start_step
        )
        return self._read(partial(self.augmented, seed=seed, epoch=epoch), list(groups))

    def _read(self, read, groups):
        def read_one(index):
            return *read(index), index

        for items in prefetch.read_groups(
            read_one, groups, num_threads=self.num_threads, ahead=self.ahead
        ):
            images, labels, indices = zip(*items, strict=True)
            yield ImageBatch(
                np.stack(images),
                np.array(labels, np.int32),
                np.array(indices, np.int64),
            )
