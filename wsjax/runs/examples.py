"""The images that a script works on, as its config's `data` block chooses them."""

import numpy as np

from wsjax import data
from wsjax.images import check_image
from wsjax.runs.config import DataBlock, pick


class Examples:
    """A split of a data set, as floating point.

    Attributes:
      data: the `data.Source`.
      name: of the data set.
      num_classes: number of classes.
      image_shape: `(H, W, C)`.
      checksum: of images and labels in order (for ImageNet: of their names).
    """

    def __init__(self, block: DataBlock, split: str):
        """Opens the split that a config's `data` block describes.

        Raises:
          ValueError, FileNotFoundError, ImportError: as `data.load`; or `train_limit` is
            negative, or set for a data set that is not in memory.
        """
        self.name = block.name
        options = vars(pick(data.Options, block))
        self.data = data.load(split=split, **options)
        limit = block.train_limit if split == "train" else 0
        if limit:
            if not isinstance(self.data, data.Dataset):
                raise ValueError(
                    f"data.train_limit={limit} means nothing to {self.name}, which is "
                    f"not held in memory; set it to 0."
                )
            self.data = self.data.first(limit)
        self.checksum = self.data.checksum
        self.num_classes = self.data.num_classes
        self.image_shape = self.data.image_shape

    def training_images(self) -> np.ndarray:
        """All images `[N, H, W, C]` as they are stored, for statistics.

        Raises:
          ValueError: they do not lie in memory.
        """
        if self.data.arrays is None:
            raise ValueError(
                f"Learned noise takes the statistics of the whole training set, which "
                f"{self.name} does not fit into memory for; use a named noise."
            )
        return self.data.arrays[0]

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        """Image `[H, W, C]` float32 in [0, 1], and its label."""
        image, label = self.data[index]
        return data.as_float(image, self.data.scale), label

    def checked(self, index: int) -> tuple[np.ndarray, int]:
        """As `examples[index]`, refused by name if nothing can be certified about it.

        Raises:
          ValueError: as `images.check_image`, with the position.
        """
        image, label = self[index]
        try:
            check_image(image)
        except ValueError as error:
            raise ValueError(f"Test image {index} of {self.name}: {error}") from error
        return image, label
