"""`load`: one call for every data set that fits in memory."""

import os

from wsjax.data import digits, files, tfds_source
from wsjax.data.dataset import Dataset
from wsjax.data.known import KNOWN

_NAMES = ("digits", *KNOWN)
_SPLITS = ("train", "test")
_SOURCES = ("files", "tfds")


def load(
    name: str,
    split: str,
    *,
    dir: str | os.PathLike | None = None,
    source: str = "files",
    verify: bool = True,
) -> Dataset:
    """Loads one split into memory, in its published order.

    The sources give identical arrays. "files" reads the original files, see
    `wsjax.data.files` for the forms they may have; "tfds" reads a data set that
    TensorFlow Datasets prepared earlier and undoes its shuffling, see
    `wsjax.data.tfds_source`. Neither downloads anything.

    Args:
      name: "digits" (scikit-learn's 8 x 8 images, part of that package),
        "mnist", "fashion_mnist" or "cifar10".
      split: "train" or "test".
      dir: folder of the data: for "files" the folder of the files, or one above
        it; for "tfds" the `data_dir` of the preparation. Ignored for digits.
      source: "files" or "tfds". Ignored for digits.
      verify: whether "files" compares the content with the published data. False
        is for a set of one's own in the format of a published one; shapes and label
        range are checked even so.

    Returns:
      The `Dataset`.

    Raises:
      ValueError: an unknown name, split or source; damaged, foreign or modified
        data.
      FileNotFoundError: data that is not there; the message says what to put where.
      ImportError: a package is missing; the message names the extra to install.
    """
    if name == "imagenet":
        raise ValueError(
            "imagenet does not fit in memory, so load() does not offer it: use "
            "wsjax.data.ImageNetFolder or wsjax.data.ImageNetTfds."
        )
    for given, value, known in (
        ("data set", name, _NAMES),
        ("split", split, _SPLITS),
        ("source", source, _SOURCES),
    ):
        if value not in known:
            raise ValueError(
                f"Unknown {given} {value!r}; expected one of {', '.join(known)}."
            )
    if name == "digits":
        return digits.load(split)
    if source == "files":
        return files.load(name, split, dir, verify=verify)
    if not verify:
        raise ValueError(
            "verify=False does not go with source='tfds', where the comparison with "
            "the published data is what proves that the order was restored."
        )
    return tfds_source.load(name, split, dir)
