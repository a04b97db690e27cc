"""Reads the published files of MNIST, Fashion-MNIST and CIFAR-10.

Accepted, in the given folder or where `KnownSet.folders` says below it:

  * idx files (MNIST, Fashion-MNIST) and CIFAR-10's binary version,
  * each plain, `.gz` or `.xz`,
  * for CIFAR-10 also `cifar-10-binary.tar.gz` as it was published.

Unpacked bytes are compared with the published ones, so a damaged, foreign or
modified file is an error here and not an odd result later.
"""

import gzip
import hashlib
import lzma
import os
import pathlib
import tarfile
import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from wsjax.data.dataset import Dataset, make_dataset
from wsjax.data.known import KNOWN, KnownSet, RawFile, whose_file

_OPENERS: dict[str, Callable[..., Any]] = {"": open, ".gz": gzip.open, ".xz": lzma.open}
_DAMAGE = (
    EOFError,
    zlib.error,
    gzip.BadGzipFile,
    lzma.LZMAError,
    tarfile.TarError,
)
_IDX_MAGIC = {2051: "an idx file of images", 2049: "an idx file of labels"}


class _Found(NamedTuple):
    """A wanted file and where it is: a file of its own, or inside a tar archive."""

    raw: RawFile
    path: pathlib.Path
    in_archive: bool


def load(
    name: str, split: str, dir: str | os.PathLike | None, *, verify: bool = True
) -> Dataset:
    """Loads one split from its published files.

    Args:
      name: "mnist", "fashion_mnist" or "cifar10".
      split: "train" or "test".
      dir: folder of the files, or one above it.
      verify: whether to compare with the published content. Without it any number
        of images of the right shape will do.

    Returns:
      The `Dataset`.

    Raises:
      FileNotFoundError: a file is missing, or `dir` is None.
      ValueError: a file is damaged, foreign or modified.
    """
    known = KNOWN[name]
    found = _locate(name, split, dir)
    contents = _unpack(found, verify)
    for each, content in zip(found, contents, strict=True):
        if verify:
            _compare(known, each, content)
    decode = _decode_cifar if name == "cifar10" else _decode_idx
    images, labels = decode(known, found, contents)
    if len(labels) and labels.max() >= known.num_classes:
        raise ValueError(
            f"{found[-1].path} has a label {labels.max()}; the labels of {known.title} "
            f"are 0 to {known.num_classes - 1}."
        )
    dataset = make_dataset(images, labels, known.num_classes, scale=255.0)
    assert not verify or dataset.checksum == known.checksums[split]
    return dataset


def _locate(name: str, split: str, dir: str | os.PathLike | None) -> list[_Found]:
    """Finds the split's files in the first folder that has them all."""
    known = KNOWN[name]
    wanted = known.files[split]
    if not dir:
        raise FileNotFoundError(
            f"{known.title} needs the folder its files are in, but dir={dir!r}. "
            + _remedy(name, split)
        )
    root = pathlib.Path(dir).expanduser()
    if not root.is_dir():
        raise FileNotFoundError(
            f"{known.title}: there is no folder {root} (from {pathlib.Path.cwd()}). "
            + _remedy(name, split)
        )
    folders = [root / below for below in known.folders]
    per_folder = [_search(folder, wanted, known.archive) for folder in folders]
    best = max(per_folder, key=len)  # The first one, of several.
    if len(best) == len(wanted):
        return best
    missing = [raw.name for raw in wanted if raw not in [each.raw for each in best]]
    raise FileNotFoundError(
        f"{known.title}, {split} split: missing {', '.join(missing)}, with no ending, "
        f".gz or .xz. Looked in {', '.join(str(folder) for folder in folders)}. "
        + _remedy(name, split)
    )


def _search(
    folder: pathlib.Path, wanted: tuple[RawFile, ...], archive: str | None
) -> list[_Found]:
    found = []
    for raw in wanted:
        # Unpackers that trust the gzip header name the file with a dot.
        stems = (raw.name, raw.name.replace("-idx", ".idx"))
        paths = [folder / (stem + ending) for stem in stems for ending in _OPENERS]
        found += [_Found(raw, path, False) for path in paths if path.is_file()][:1]
    if archive and len(found) < len(wanted) and (folder / archive).is_file():
        found = [_Found(raw, folder / archive, True) for raw in wanted]
    return found


def _remedy(name: str, split: str) -> str:
    known = KNOWN[name]
    files = ", ".join(raw.name for raw in known.files[split])
    if known.archive:
        files += f" (or {known.archive}; the Python version is not read)"
    return (
        f"Put {files} into a folder {name}/ and pass the folder above it, or pass the "
        f"files' own folder, as dir (--config.data.dir=...). They are published at "
        f"{known.origin}; wsjax downloads nothing."
    )


def _unpack(found: list[_Found], verify: bool) -> list[bytes]:
    """Reads the unpacked bytes; with `verify`, one more than expected at most."""
    limits = {each.raw: each.raw.size + 1 if verify else -1 for each in found}
    if found[0].in_archive:
        return _unpack_archive(found[0].path, limits)
    contents = []
    for each in found:
        opener = _OPENERS.get(each.path.suffix, open)
        try:
            with opener(each.path, "rb") as file:
                contents.append(file.read(limits[each.raw]))
        except _DAMAGE as error:
            raise ValueError(_describe_damage(each.path, error)) from error
    return contents


def _unpack_archive(path: pathlib.Path, limits: dict[RawFile, int]) -> list[bytes]:
    """Reads several members in one pass: going back means decompressing again."""
    contents = {}
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                file = archive.extractfile(member) if member.isfile() else None
                for raw, limit in limits.items():
                    if file and pathlib.PurePosixPath(member.name).name == raw.name:
                        contents[raw] = file.read(limit)
                if len(contents) == len(limits):
                    break
    except _DAMAGE as error:
        raise ValueError(_describe_damage(path, error)) from error
    missing = [raw.name for raw in limits if raw not in contents]
    if missing:
        raise ValueError(
            f"{path} has no {', '.join(missing)} in it. Expected the binary version "
            f"of CIFAR-10, as published."
        )
    return [contents[raw] for raw in limits]


def _describe_damage(path: pathlib.Path, error: Exception) -> str:
    with open(path, "rb") as file:
        start = file.read(16)
    return (
        f"{path} is damaged: {type(error).__name__}: {error}. It has "
        f"{path.stat().st_size:,} bytes and begins with {start!r}. Copy it again; a "
        f"broken-off download looks like this."
    )


def _compare(known: KnownSet, found: _Found, content: bytes) -> None:
    """Raises unless the content is the published one."""
    raw = found.raw
    where = f"{found.path} ({raw.name})" if found.in_archive else str(found.path)
    digest = hashlib.sha256(content).hexdigest()
    if digest == raw.sha256:
        return
    foreign = whose_file(digest)
    if foreign:
        raise ValueError(
            f"{where} is {foreign}, where {raw.name} of {known.title} should be. "
            f"Replace it, or pass the folder of {known.title} as dir."
        )
    if len(content) != raw.size:
        size = f"{len(content):,}" if len(content) < raw.size else "more"
        raise ValueError(
            f"{where} has the wrong size: {size} unpacked bytes, where {raw.name} of "
            f"{known.title} has {raw.size:,}. Copy it again; for a data set of your "
            f"own in this format pass verify=False."
        )
    raise ValueError(
        f"{where} is not the published {raw.name} of {known.title}: right size, other "
        f"content (SHA-256 {digest}, expected {raw.sha256}). Copy it again; for a "
        f"modified data set of your own pass verify=False."
    )


def _decode_idx(
    known: KnownSet, found: list[_Found], contents: list[bytes]
) -> tuple[np.ndarray, np.ndarray]:
    height, width, _ = known.image_shape
    images = _idx_array(found[0].path, contents[0], 2051, (height, width))
    labels = _idx_array(found[1].path, contents[1], 2049, ())
    if len(images) != len(labels):
        raise ValueError(
            f"{found[0].path} has {len(images)} images, but {found[1].path} has "
            f"{len(labels)} labels. They belong to different sets."
        )
    return images[..., np.newaxis], labels


def _idx_array(
    path: pathlib.Path, content: bytes, magic: int, item_shape: tuple[int, ...]
) -> np.ndarray:
    """Parses idx: big-endian magic number, count and item shape, then uint8."""
    header_size = 4 * (2 + len(item_shape))
    words = content[: min(header_size, len(content) // 4 * 4)]
    header = np.frombuffer(words, ">u4").tolist()
    if header and header[0] != magic:
        actual = _IDX_MAGIC.get(header[0], "no idx file of bytes")
        raise ValueError(
            f"{path} begins with the number {header[0]}, so it is {actual}; expected "
            f"{magic}, {_IDX_MAGIC[magic]}."
        )
    if len(content) < header_size:
        raise ValueError(f"{path} ends within its header: {len(content)} bytes.")
    if tuple(header[2:]) != item_shape:
        raise ValueError(
            f"{path} has images of shape {tuple(header[2:])}, expected {item_shape}."
        )
    values = np.frombuffer(content, np.uint8, offset=header_size)
    if values.size != header[1] * int(np.prod(item_shape)):
        raise ValueError(
            f"{path} announces {header[1]} items of shape {item_shape}, but holds "
            f"{values.size} bytes after its header."
        )
    return values.reshape(-1, *item_shape)


def _decode_cifar(
    known: KnownSet, found: list[_Found], contents: list[bytes]
) -> tuple[np.ndarray, np.ndarray]:
    """Parses records of a label byte and the red, green and blue planes."""
    height, width, channels = known.image_shape
    record_size = 1 + height * width * channels
    for each, content in zip(found, contents, strict=True):
        if len(content) % record_size:
            raise ValueError(
                f"{each.path} has {len(content):,} unpacked bytes, not a multiple of "
                f"{record_size:,}. Is it CIFAR-100, with two labels per image?"
            )
    records = np.concatenate(
        [np.frombuffer(content, np.uint8) for content in contents]
    ).reshape(-1, record_size)
    planes = records[:, 1:].reshape(-1, channels, height, width)
    return planes.transpose(0, 2, 3, 1), records[:, 0]
