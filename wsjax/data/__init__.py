"""Image data: small sets as arrays, ImageNet as a stream, both in a fixed order.

    train = load("digits", "train")
    test = load("mnist", "test", dir="../shared/data")
    pixels = as_float(test.images, test.scale)

Every row of a result names its test image by position, so an image's position is
part of the data here: whatever the storage, `load` returns the published order and
proves it by a checksum. Nothing in this package opens a network connection.

Importing it needs NumPy only. `random_crop_flip` is in `wsjax.data.augment`, which
needs JAX.
"""

from wsjax.data.batches import epoch_batches
from wsjax.data.dataset import Dataset, as_float
from wsjax.data.imagenet import ImageNetFolder, ImageNetTfds
from wsjax.data.loading import load
from wsjax.data.stream import ImageBatch

__all__ = [
    "Dataset",
    "ImageBatch",
    "ImageNetFolder",
    "ImageNetTfds",
    "as_float",
    "epoch_batches",
    "load",
]
