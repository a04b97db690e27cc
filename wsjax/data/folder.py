"""A folder of your own images, one folder per class, all of one size.

  DIR/train/CLASS/*.png     also .jpg and .jpeg
  DIR/test/CLASS/*.png      or val/, or validation/

Images are ordered by class name, then by file name; labels are places among the sorted
class names of `train`. An image is gray, `[H, W, 1]`, or colour, `[H, W, 3]`, as its
file is. Photographs of many sizes are what "imagenet" is for: it crops them.
"""

import numpy as np

from wsjax.data import class_folders, photographs, prefetch
from wsjax.data.dataset import Dataset, make_dataset
from wsjax.data.source import Options

_GROUP = 256  # Images decoded between checks.


def load(split: str, options: Options) -> Dataset:
    """Reads a split into memory.

    Args:
      split: "train" or "test".
      options: `dir` is the folder with `train` and `test`.

    Returns:
      The `Dataset`, with scale 255.

    Raises:
      FileNotFoundError: no such folder.
      ValueError: an image is damaged, or of another size or kind than the first one of
        the training split; or what `class_folders.scan` refuses.
      ImportError: Pillow is not installed.
    """
    found = class_folders.scan(
        "Your folder of images", options.dir, split, ("test", "val", "validation")
    )
    expected = _read(found.example).shape
    images = np.zeros((len(found.files), *expected), np.uint8)
    places = np.arange(len(images))
    groups = [places[i : i + _GROUP] for i in range(0, len(places), _GROUP)]

    def read(index):
        return _read(found.path(index))

    for group, pixels in zip(
        groups, prefetch.read_groups(read, groups, num_threads=8, ahead=1), strict=True
    ):
        for index, image in zip(group, pixels, strict=True):
            if image.shape != expected:
                raise ValueError(
                    f"{found.path(index)} is {_kind(image.shape)}, where "
                    f"{found.example} is {_kind(expected)}: all images of both splits "
                    f"have one size, and all are gray or all are colour. Convert them, "
                    f"or use data.name=imagenet, which crops a square out of each."
                )
            images[index] = image
    return make_dataset(images, found.labels, len(found.classes), scale=255.0)


def _read(path):
    image = photographs.decode(path.read_bytes(), str(path), keep_gray=True)
    return np.asarray(image).reshape(image.height, image.width, -1)


def _kind(shape):
    height, width, channels = shape
    return f"{height} x {width} pixels, {'gray' if channels == 1 else 'colour'}"
