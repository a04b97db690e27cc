"""Image data: small sets as arrays, ImageNet as a stream, both in a fixed order.

    train = load("digits", "train")
    test = load("mnist", "test", dir="../shared/data")
    pixels = as_float(test.images, test.scale)

Every split is a `Source`: it has a length, images with labels by position, and batches.
Every row of a result names its test image by position, so an image's position is
part of the data here: whatever the storage, `load` returns the published order and
proves it by a checksum. Nothing in this package opens a network connection.

Importing it needs NumPy only. `random_crop_flip` is in `wsjax.data.augment`, which
needs JAX.
"""

from wsjax.data.batches import epoch_batches
from wsjax.data.dataset import Dataset, as_float, make_dataset
from wsjax.data.registry import DATA_SETS, load
from wsjax.data.source import ImageBatch, Options, Source

__all__ = [
    "DATA_SETS",
    "Dataset",
    "ImageBatch",
    "Options",
    "Source",
    "as_float",
    "epoch_batches",
    "load",
    "make_dataset",
]
