"""Your own images and labels in NumPy's .npz files.

  DIR/train.npz and DIR/test.npz   each with the arrays `images` and `labels`, or
  FILE.npz                         with `train_images`, `train_labels`, `test_images`
                                   and `test_labels`; or with `images` and `labels`
                                   alone, which are a test split

`images` are `[N, H, W]` or `[N, H, W, C]`: uint8 from 0 to 255, or floating point in
[0, 1]. **Floating point is stored as the nearest of 256 levels**, so training,
certificates and attacks are about the rounded images; a warning says so where that moves
a pixel. `labels` are `[N]` integers from 0 to K - 1, where K - 1 is the largest training
label (test label, if there is no training split).
"""

import contextlib
import logging
import os
import pathlib
import zipfile
import zlib
from typing import NamedTuple

import numpy as np

from wsjax.data.dataset import Dataset, make_dataset
from wsjax.data.source import Options

_log = logging.getLogger("wsjax")
_DAMAGE = (OSError, ValueError, EOFError, RuntimeError, zlib.error, zipfile.BadZipFile)
_FORMS = (
    "Expected a folder with train.npz and test.npz, each with the arrays images and "
    "labels; or a file with train_images, train_labels, test_images and test_labels; or "
    "a file with the images and labels of a test split"
)


class _Split(NamedTuple):
    """Where the arrays of a split are: a file, and the beginning of their names."""

    path: pathlib.Path
    prefix: str


def load(split: str, options: Options) -> Dataset:
    """Reads a split into memory. Nothing in the file is executed.

    Args:
      split: "train" or "test".
      options: `dir` is the folder or the file.

    Returns:
      The `Dataset`, with scale 255.

    Raises:
      FileNotFoundError: no such folder or file.
      ValueError: a damaged file, missing arrays, or arrays of a wrong type, shape or
        range; shapes that differ between the splits, labels that training lacks.
    """
    chosen = _find(split, options.dir)
    if chosen is None:
        raise FileNotFoundError(f"{options.dir} has no {split} split. {_FORMS}.")
    labels = _labels(chosen)
    trained = (split == "test" and _find("train", options.dir)) or chosen
    num_classes = _num_classes(trained, _labels(trained))
    if labels.max() >= num_classes:
        raise ValueError(
            f"{chosen.path} has a label {labels.max()}, but those of the training split "
            f"in {trained.path} are 0 to {num_classes - 1}."
        )
    shape, expected = _image_shape(chosen), _image_shape(trained)
    if shape != expected:
        raise ValueError(
            f"{chosen.path} has images of shape {shape}, but those of the training split "
            f"in {trained.path} are {expected}: they have to be equal."
        )
    images = _images(chosen).reshape(-1, *shape)
    if len(images) != len(labels):
        raise ValueError(
            f"{chosen.path} has {len(images)} images, but {len(labels)} labels."
        )
    return make_dataset(images, labels, num_classes, scale=255.0)


def _find(split: str, dir: str | os.PathLike | None) -> _Split | None:
    """The split, or None where the folder or file is there without it."""
    path = pathlib.Path(dir or "").expanduser()
    if not dir or not path.exists():
        raise FileNotFoundError(
            f"There is no file or folder dir={str(dir)!r} (--config.data.dir=...; from "
            f"{pathlib.Path.cwd()}). {_FORMS}; wsjax downloads nothing."
        )
    if path.is_dir():
        file = path / f"{split}.npz"
        return _Split(file, "") if file.is_file() else None
    with _opened(path) as (_, names):
        if f"{split}_images" in names:
            return _Split(path, f"{split}_")
        return _Split(path, "") if split == "test" and "images" in names else None


@contextlib.contextmanager
def _opened(path):
    """The archive and the names of its arrays; what is wrong with it names the file."""
    try:
        with zipfile.ZipFile(path) as archive:
            yield archive, [name.removesuffix(".npy") for name in archive.namelist()]
    except _DAMAGE as error:
        raise ValueError(
            f"{path} cannot be read as a .npz file: {type(error).__name__}: {error}. "
            f"Write it by np.savez(path, images=..., labels=...), without object arrays, "
            f"or copy it again: it may be broken off."
        ) from error


def _whole(member):
    return np.lib.format.read_array(member, allow_pickle=False)


def _header(member):
    """Shape and dtype of an array; reads no more than that."""
    form = np.lib.format
    old = form.read_magic(member) == (1, 0)
    read = form.read_array_header_1_0 if old else form.read_array_header_2_0
    shape, _, dtype = read(member)
    return shape, dtype


def _array(split, name, read=_whole):
    key = split.prefix + name
    with _opened(split.path) as (archive, names):
        if key in names:
            with archive.open(f"{key}.npy") as member:
                return read(member)
    raise ValueError(
        f"{split.path} has no array {key!r}, only {', '.join(names) or 'none'}. {_FORMS}."
    )


def _labels(split: _Split) -> np.ndarray:
    labels = _array(split, "labels")
    if labels.ndim != 1 or not len(labels) or labels.dtype.kind not in "iu":
        raise ValueError(
            f"The labels in {split.path} are {labels.dtype} of shape {labels.shape}; "
            f"expected integers of shape (N,), one per image: classes, not one-hot rows."
        )
    if labels.min() < 0:
        raise ValueError(
            f"{split.path} has a label {labels.min()}; labels are 0 to K - 1."
        )
    return labels


def _num_classes(split: _Split, labels: np.ndarray) -> int:
    count = int(labels.max()) + 1
    if not 2 <= count <= max(1000, len(labels)):
        raise ValueError(
            f"The largest label in {split.path} is {labels.max()}, which would make "
            f"{count} classes of {len(labels)} images: at least 2, and at most 1,000 or "
            f"as many as images. Number the classes 0 to K - 1, such as by "
            f"np.unique(labels, return_inverse=True)."
        )
    return count


def _image_shape(split: _Split) -> tuple[int, int, int]:
    """`(H, W, C)`, after a look at the header alone."""
    shape, dtype = _array(split, "images", _header)
    channels_first = len(shape) == 4 and shape[1] in (1, 3) and shape[3] > 4
    if len(shape) not in (3, 4) or 0 in shape or channels_first:
        raise ValueError(
            f"The images in {split.path} have shape {shape}; expected (N, H, W), or "
            f"(N, H, W, C) with the channels last: np.moveaxis(images, 1, -1) turns "
            f"(N, C, H, W) into that."
        )
    if dtype != np.uint8 and dtype.kind != "f":
        raise ValueError(
            f"The images in {split.path} are {dtype}; expected uint8 from 0 to 255, or "
            f"floating point in [0, 1]. Convert whole numbers by images.astype(np.uint8)."
        )
    return (*shape[1:3], *(shape[3:] or (1,)))


def _images(split: _Split) -> np.ndarray:
    images = _array(split, "images")
    if images.dtype == np.uint8:
        return images
    low, high = images.min(), images.max()
    if not (low >= 0 and high <= 1):  # Also where a pixel is not a number.
        raise ValueError(
            f"The images in {split.path} are {images.dtype} from {low} to {high}; "
            f"expected [0, 1]. Divide by the largest possible value, or store uint8."
        )
    levels = np.rint(255 * images)
    if np.abs(255 * images - levels).max() > 0.1:
        _log.warning(
            "The images in %s are rounded to the nearest of 256 levels: training, "
            "certificates and attacks are about the rounded images.",
            split.path,
        )
    return levels.astype(np.uint8)
