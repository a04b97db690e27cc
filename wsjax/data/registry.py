"""The data sets there are, and `load`: one call for all of them."""

import os
from collections.abc import Callable

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


def load(
    name: str,
    split: str,
    *,
    dir: str | os.PathLike | None = None,
    source: str = Options.source,
    verify: bool = Options.verify,
    image_size: int = Options.image_size,
    resize: int = Options.resize,
) -> Source:
    """Opens one split of a data set. Nothing is downloaded.

    Args:
      name: a key of `DATA_SETS`. "digits" (scikit-learn's 8 x 8 images) comes with that
        package; "mnist", "fashion_mnist", "cifar10" and "imagenet" are published, see
        `wsjax.data.files` and `wsjax.data.imagenet` for the forms their files may have;
        "npz" and "folder" are your own, see the modules of these names.
      split: "train" or "test".
      dir: folder or file of the data; all but digits have one.
      source: as in `Options`, and so the others.
      verify: see there.
      image_size: of imagenet; see there.
      resize: likewise.

    Returns:
      The split in its published order, the same whatever the source: an `ImageStream`
      for imagenet, else a `Dataset`.

    Raises:
      ValueError: an unknown name, split or source; damaged, foreign or modified data.
      FileNotFoundError: data that is not there; the message says what to put where.
      ImportError: a package is missing; the message names the extra to install.
    """
    chosen = Options(name, dir, source, verify, image_size, resize)
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
