"""Reads data sets that TensorFlow Datasets (tfds) prepared, in the published order.

tfds stores records sorted by a hash of their key, and says nowhere which image was
the first. In MNIST, Fashion-MNIST and CIFAR-10 the key is the published position,
so the same hash gives the order back. Whether it did is proven by the checksum of
the restored arrays, which also tells when tfds stored another set's images: its
cache of unpacked archives goes by file name, and MNIST's files are named like
Fashion-MNIST's.

Only prepared folders are opened, through `builder_from_directory`, which neither
downloads nor asks a server. The format array_record needs no TensorFlow; tfrecord,
tfds' default, does.
"""

import hashlib
import os
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from wsjax import files
from wsjax.data.dataset import Dataset, make_dataset
from wsjax.data.known import KNOWN, whose_arrays


def load(name: str, split: str, dir: str | os.PathLike | None) -> Dataset:
    """Loads one split from a prepared data set.

    Args:
      name: "mnist", "fashion_mnist" or "cifar10".
      split: "train" or "test".
      dir: the `data_dir` given to tfds, which holds `<name>/<version>/`.

    Returns:
      The `Dataset`, identical to that of `wsjax.data.files`.

    Raises:
      FileNotFoundError: not prepared under `dir`, or `dir` is None.
      ValueError: the prepared data is not the published data.
      ImportError: tfds, array_record or TensorFlow is missing.
    """
    known = KNOWN[name]
    folder = find_prepared(name, dir)
    num_records = _num_records(folder, split)
    images = np.zeros((num_records, *known.image_shape), np.uint8)
    labels = np.zeros(num_records, np.int32)
    order = published_positions(split, num_records)
    records = open_records(folder, split)
    # Were there too few records, the checksum would tell.
    for position, record in zip(order, records, strict=False):
        images[position] = record["image"]
        labels[position] = record["label"]
    dataset = make_dataset(images, labels, known.num_classes, scale=255.0)
    if dataset.checksum != known.checksums[split]:
        raise ValueError(_explain_mismatch(name, split, folder, dataset))
    return dataset


def published_positions(split: str, num_records: int) -> np.ndarray:
    """Recomputes where tfds' records were before tfds shuffled them.

    tfds sorts by the MD5 of the split's name followed by the key in decimal, read
    as one big-endian number (`tensorflow_datasets.core.hashing`).

    Args:
      split: name of the split.
      num_records: number of records N, with the keys 0 to N - 1.

    Returns:
      `[N]` int64: entry r is the published position of record r.
    """
    salted = hashlib.md5(split.encode(), usedforsecurity=False)
    hashes = []
    for key in range(num_records):
        hashed = salted.copy()
        hashed.update(str(key).encode())
        hashes.append(hashed.digest())
    return np.array(sorted(range(num_records), key=hashes.__getitem__), np.int64)


def find_prepared(name: str, dir: str | os.PathLike | None) -> pathlib.Path:
    """Finds the newest prepared version of a data set, without importing tfds.

    Args:
      name: tfds' name of the data set.
      dir: the `data_dir` given to tfds.

    Returns:
      The folder with `dataset_info.json`.

    Raises:
      FileNotFoundError: there is none, or `dir` is None.
    """
    command = (
        f"tfds.builder({name!r}, data_dir=DIR, file_format='array_record')"
        f".download_and_prepare()"
    )
    remedy = (
        f"Prepare the data set once, where TensorFlow and a network are: {command}, "
        f"in a DIR of its own; then pass DIR as dir. wsjax downloads nothing. Or use "
        f"source='files'."
    )
    if not dir:
        raise FileNotFoundError(f"source='tfds' needs dir, but dir={dir!r}. {remedy}")
    parent = pathlib.Path(dir).expanduser() / name
    prepared = [path.parent for path in parent.glob("*/dataset_info.json")]
    if not prepared:
        raise FileNotFoundError(
            f"tfds has not prepared {name} in {dir}: there is no "
            f"{parent / '<version>' / 'dataset_info.json'}. {remedy}"
        )
    return max(prepared, key=_version)


def open_records(folder: pathlib.Path, split: str) -> Iterable[Mapping[str, Any]]:
    """As `open_sequence`, for one pass, also in tfrecord.

    Raises:
      ImportError: tfds, array_record or TensorFlow is missing.
      ValueError: a format that does not work.
    """
    if _file_format(folder) != "tfrecord":
        return open_sequence(folder, split)
    tfds = _import_tfds()
    try:
        builder = tfds.builder_from_directory(folder)
        # A cycle of one: shard after shard, as they were written.
        config = tfds.ReadConfig(interleave_cycle_length=1, try_autocache=False)
        records = builder.as_dataset(split=split, read_config=config)
        return tfds.as_numpy(records)
    except ImportError as error:
        raise ImportError(
            f"{folder} is prepared as tfrecord, which needs TensorFlow ({error}): pip "
            f"install tensorflow, or prepare again with file_format='array_record'."
        ) from error


def open_sequence(
    folder: pathlib.Path, split: str, *, decode_images: bool = True
) -> Sequence[Mapping[str, Any]]:
    """Opens a prepared split for access by position, without TensorFlow.

    Args:
      folder: from `find_prepared`.
      split: name of the split.
      decode_images: False leaves the feature "image" as the stored bytes.

    Returns:
      The records in tfds' order. Several threads may read it.

    Raises:
      ImportError: tfds or array_record is missing.
      ValueError: a format other than array_record.
    """
    file_format = _file_format(folder)
    if file_format != "array_record":
        # parquet: 3,400 of 60,000 records came back (tfds 4.9.10).
        why = (
            "can only be read from start to end"
            if file_format == "tfrecord"
            else "is not read here, as tfds loses records of some formats"
        )
        raise ValueError(
            f"{folder} is prepared as {file_format}, which {why}. Prepare it with "
            f"file_format='array_record'."
        )
    tfds = _import_tfds()
    decoders = {} if decode_images else {"image": tfds.decode.SkipDecoding()}
    try:
        builder = tfds.builder_from_directory(folder)
        return builder.as_data_source(split, decoders=decoders)
    except ImportError as error:
        raise ImportError(
            f"{folder} cannot be opened ({error}): pip install 'wsjax[tfds]'."
        ) from error


def _import_tfds():
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise ImportError(
            "source='tfds' needs tensorflow_datasets: pip install 'wsjax[tfds]'."
        ) from error
    return tfds


def _file_format(folder: pathlib.Path) -> str:
    # Files from before there was a choice do not say.
    return _read_info(folder).get("fileFormat", "tfrecord")


def _read_info(folder: pathlib.Path) -> dict:
    path = folder / "dataset_info.json"
    try:
        return files.parse_json(path.read_bytes())
    except ValueError as error:
        raise _damaged(path, error) from error


def _damaged(path, error):
    return ValueError(f"{path} is damaged ({error}); prepare the data set again.")


def _num_records(folder: pathlib.Path, split: str) -> int:
    info = _read_info(folder).get("splits", [])
    try:
        lengths = {
            each["name"]: sum(map(int, each.get("shardLengths", []))) for each in info
        }
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _damaged(folder / "dataset_info.json", repr(error)) from error
    if split not in lengths:
        raise ValueError(
            f"{folder} has no split {split!r}, only {', '.join(lengths) or 'none'}."
        )
    return lengths[split]


def _version(folder: pathlib.Path) -> tuple[int, ...]:
    parts = folder.name.split(".")
    return tuple(int(part) for part in parts) if all(map(str.isdigit, parts)) else ()


def _explain_mismatch(
    name: str, split: str, folder: pathlib.Path, dataset: Dataset
) -> str:
    title = KNOWN[name].title
    actual = whose_arrays(dataset.checksum)
    if actual:
        return (
            f"{folder} claims to be {title}, but holds {actual}. tfds keeps unpacked "
            f"archives by file name, so preparing two sets with equally named files "
            f"under one data_dir or extract_dir gives the second the images of the "
            f"first. Delete {folder} and prepare {name} again in a data_dir of its "
            f"own, with an empty extract_dir."
        )
    return (
        f"The {split} split in {folder} is not the published {title}: checksum "
        f"{dataset.checksum}, expected {KNOWN[name].checksums[split]}, over "
        f"{len(dataset.labels):,} records. Either its content differs, or this "
        f"version of tfds orders records in another way. Prepare {name} again in a "
        f"data_dir of its own, or use source='files'."
    )
