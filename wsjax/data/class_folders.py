"""Folders of images, one per class: which classes there are, and which files."""

import os
import pathlib
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

ENDINGS = (".jpeg", ".jpg", ".png")
_UNREAD = (".bmp", ".gif", ".tif", ".tiff", ".webp")
# What file systems, archives and storage devices leave beside one's own folders, as
# they do files and folders whose name begins with a dot.
_FOREIGN = {
    "lost+found",
    "__MACOSX",
    "__pycache__",
    "@eaDir",
    "@Recycle",
    "#recycle",
    "$RECYCLE.BIN",
    "System Volume Information",
}


class ClassFolders(NamedTuple):
    """The image files of one split, ordered by class name and then by file name.

    Attributes:
      root: the folder of the split.
      classes: class names in the order of the labels.
      labels: `[N]` int32, read-only.
      files: N file names.
      example: the first image of the training split, or of this one without it.
    """

    root: pathlib.Path
    classes: list[str]
    labels: np.ndarray
    files: list[str]
    example: pathlib.Path

    def path(self, index: int) -> pathlib.Path:
        """Where the image at a position is."""
        return self.root / self.classes[self.labels[index]] / self.files[index]


def scan(
    title: str, dir: str | os.PathLike | None, split: str, test_names: tuple[str, ...]
) -> ClassFolders:
    """Lists the files of a split; reads none.

    A class's label is its place among the sorted folder names of `train`, of the split
    itself if there is no `train`. A folder that could shift labels, as it has no image
    in it, is an error; what is known to be no class is passed over.

    Args:
      title: name of the data set in messages.
      dir: the folder with `train`, and with one of `test_names`.
      split: "train" or "test".
      test_names: folder names of the test split; the first one that exists is taken.

    Returns:
      The files with their labels.

    Raises:
      FileNotFoundError: no such folder, or `dir` is None.
      ValueError: no class folders, an empty one, one that `train` lacks, or an image in
        a format that is not read.
    """
    title = f"{title}, {split} split"
    root = _split_folder(title, dir, ("train",) if split == "train" else test_names)
    names = _class_names(root)
    try:
        trained = _split_folder(title, dir, ("train",))
    except FileNotFoundError:
        trained = root
    classes = _class_names(trained)
    unknown = sorted(set(names) - set(classes))
    if unknown:
        raise ValueError(
            f"{root} has {len(unknown)} class folder(s) that the training split lacks, "
            f"such as {unknown[0]}: their images have no label."
        )
    files = {name: sorted(_images_in(root / name)) for name in names}
    labels = np.repeat(
        np.array([classes.index(name) for name in names], np.int32),
        [len(files[name]) for name in names],
    )
    labels.setflags(write=False)
    return ClassFolders(
        root,
        classes,
        labels,
        [file for name in names for file in files[name]],
        trained / classes[0] / min(_images_in(trained / classes[0])),
    )


def _split_folder(title, dir, names) -> pathlib.Path:
    wanted = f"{names[0]}/CLASS/ with {', '.join(ENDINGS)} files in it"
    if not dir:
        raise FileNotFoundError(
            f"{title}: needs the folder that has {wanted}, but dir={dir!r} "
            f"(--config.data.dir=...). wsjax downloads nothing."
        )
    places = [pathlib.Path(dir).expanduser() / name for name in names]
    for place in places:
        if place.is_dir():
            return place
    raise FileNotFoundError(
        f"{title}: there is no folder {' or '.join(map(str, places))}. Expected "
        f"{wanted} in the folder passed as dir; wsjax downloads nothing."
    )


def _class_names(root: pathlib.Path) -> list[str]:
    with os.scandir(root) as found:
        entries = [
            entry
            for entry in found
            if not entry.name.startswith(".") and entry.name not in _FOREIGN
        ]
        names = sorted(entry.name for entry in entries if entry.is_dir())
    if not names:
        raise ValueError(
            f"{root} has no class folders, but {len(entries)} other entries. Images "
            f"that come in one folder, as ImageNet's validation set does, have to be "
            f"sorted into {root.name}/CLASS/ first."
        )
    for name in names:
        if next(_images_in(root / name), None) is None:
            raise ValueError(
                f"{root / name} has no file ending in {', '.join(ENDINGS)}, and folders "
                f"in it are not searched. An empty class folder usually means that "
                f"unpacking stopped early; a folder that is no class has to go, as it "
                f"would change the labels."
            )
    return names


def _images_in(folder: pathlib.Path) -> Iterator[str]:
    with os.scandir(folder) as found:
        for entry in found:
            ending = os.path.splitext(entry.name)[1].lower()
            if entry.name.startswith(".") or entry.is_dir():
                continue
            if ending in ENDINGS:
                yield entry.name
            elif ending in _UNREAD:
                raise ValueError(
                    f"{entry.path} is in a format that is not read: convert it to one "
                    f"of {', '.join(ENDINGS)}, or take it away."
                )
