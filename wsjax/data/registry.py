"""The data sets there are, and `load`: one call for all of them."""

from collections.abc import Callable
from typing import Any

from wsjax.data import digits, files, folder, imagenet, npz, tfds_source
from wsjax.data.source import Options, Source


def _published(split: str, options: Options) -> Source:
    if options.source == "files":
        return files.load(options.name, split, options.dir, verify=options.verify)
    if not options.verify:
        raise ValueError(
            "verify=False does not go with source='tfds', where the comparison with "
            "the published data is what proves that the order was restored."
        )
    return tfds_source.load(options.name, split, options.dir)


# What opens a split, by the name that `--config.data.name` gives.
DATA_SETS: dict[str, Callable[[str, Options], Source]] = {
    "digits": digits.load,
    "mnist": _published,
    "fashion_mnist": _published,
    "cifar10": _published,
    "imagenet": imagenet.load,
    "npz": npz.load,
    "folder": folder.load,
}


def load(name: str, split: str, **options: Any) -> Source:
    """Opens one split of a data set. Nothing is downloaded.

    Args:
      name: a key of `DATA_SETS`. "digits" (scikit-learn's 8 x 8 images) comes with that
        package; "mnist", "fashion_mnist", "cifar10" and "imagenet" are published, see
        `wsjax.data.files` and `wsjax.data.imagenet` for the forms their files may have;
        "npz" and "folder" are your own, see the modules of these names.
      split: "train" or "test".
      **options: the other fields of `Options`, by name: `dir` for all but digits;
        `source`, `verify`; `image_size` and `resize` for imagenet.

    Returns:
      The split in its published order, the same whatever the source: an `ImageStream`
      for imagenet, else a `Dataset`.

    Raises:
      ValueError: an unknown name, split or source; damaged, foreign or modified data.
      FileNotFoundError: data that is not there; the message says what to put where.
      ImportError: a package is missing; the message names the extra to install.
    """
    chosen = Options(name, **options)
    for given, value, known in (
        ("data set", name, DATA_SETS),
        ("split", split, ("train", "test")),
        ("source", chosen.source, ("files", "tfds")),
    ):
        if value not in known:
            raise ValueError(
                f"Unknown {given} {value!r}; expected one of {', '.join(known)}."
            )
    return DATA_SETS[name](split, chosen)
