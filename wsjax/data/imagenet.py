"""ImageNet: a folder per class, or a data set that tfds prepared."""

import hashlib
import os
import pathlib

import numpy as np

from wsjax.data import tfds_source
from wsjax.data.stream import ImageStream

_ENDINGS = (".jpeg", ".jpg", ".png")


class ImageNetFolder(ImageStream):
    """ImageNet from a folder per class: `train/<class>/*.JPEG`, `val/<class>/*.JPEG`.

    Images are ordered by class name, then by file name; a class's label is its place
    among the sorted folder names of `train` (of the split itself, if there is no
    `train`). `validation` may stand for `val`.

    Attributes, beside those of every stream:
      classes: class names in the order of the labels.
      labels: `[N]` int32.
      checksum: SHA-256 of all file names with their class, in order. It tells two
        file lists apart, not two contents.
    """

    def __init__(
        self,
        dir: str | os.PathLike | None,
        split: str,
        *,
        image_size: int = 224,
        resize: int = 256,
        min_area: float = 0.08,
    ) -> None:
        """Lists the files; reads none.

        Args:
          dir: the folder with `train` and `val`.
          split: "train", or "test" for ImageNet's validation set.
          image_size: side of the images handed out.
          resize: short side before the central crop of the evaluation view.
          min_area: smallest share of a photograph in a training view.

        Raises:
          FileNotFoundError: no such folder, or `dir` is None.
          ValueError: no class folders, an empty one, or one that `train` lacks.
        """
        super().__init__(split, image_size, resize, min_area)
        self._root = _split_folder(dir, split)
        names = _class_folders(self._root)
        try:
            self.classes = _class_folders(_split_folder(dir, "train"))
        except FileNotFoundError:
            self.classes = names
        unknown = sorted(set(names) - set(self.classes))
        if unknown:
            raise ValueError(
                f"{self._root} has {len(unknown)} class folder(s) that the training "
                f"split lacks, such as {unknown[0]}: their images have no label."
            )
        self.num_classes = len(self.classes)
        label_of = {name: label for label, name in enumerate(self.classes)}
        files = [
            (name, file) for name in names for file in _images_in(self._root, name)
        ]
        self.labels = np.array([label_of[name] for name, _ in files], np.int32)
        self.labels.setflags(write=False)
        self._files = [file for _, file in files]
        listing = "".join(f"{name}/{file}\n" for name, file in files)
        self.checksum = hashlib.sha256(listing.encode()).hexdigest()

    def __len__(self) -> int:
        return len(self._files)

    def file_name(self, index: int) -> str:
        """Names the photograph at a position, such as n01440764_10026.JPEG."""
        return self._files[index]

    def _fetch(self, index):
        label = int(self.labels[index])
        path = self._root / self.classes[label] / self._files[index]
        return path.read_bytes(), label, str(path)


class ImageNetTfds(ImageStream):
    """ImageNet from tfds' `imagenet2012`, prepared earlier as array_record.

    Images keep the order of tfds' records, which is not that of `ImageNetFolder`;
    `file_name` tells which is which. tfds re-encoded 23 of the training photographs,
    so their pixels differ from the original files'.

    Attributes, beside those of every stream:
      checksum: SHA-256 of tfds' `dataset_info.json`, which has the version and the
        size of every shard.
    """

    def __init__(
        self,
        dir: str | os.PathLike | None,
        split: str,
        *,
        image_size: int = 224,
        resize: int = 256,
        min_area: float = 0.08,
    ) -> None:
        """Opens the prepared data set; decodes nothing.

        Args:
          dir: the `data_dir` given to tfds.
          split: "train", or "test" for ImageNet's validation set.
          image_size: side of the images handed out.
          resize: short side before the central crop of the evaluation view.
          min_area: smallest share of a photograph in a training view.

        Raises:
          FileNotFoundError: not prepared under `dir`, or `dir` is None.
          ValueError: prepared in another format.
          ImportError: tfds or array_record is missing.
        """
        super().__init__(split, image_size, resize, min_area)
        self._folder = tfds_source.find_prepared("imagenet2012", dir)
        self._records = tfds_source.open_sequence(
            self._folder,
            "train" if split == "train" else "validation",
            decode_images=False,
        )
        self.num_classes = 1000
        info = (self._folder / "dataset_info.json").read_bytes()
        self.checksum = hashlib.sha256(info).hexdigest()

    def __len__(self) -> int:
        return len(self._records)

    def file_name(self, index: int) -> str:
        """Names the photograph at a position, such as n01440764_10026.JPEG."""
        return _text(self._records[index]["file_name"])

    def _fetch(self, index):
        record = self._records[index]
        source = f"{_text(record['file_name'])} in {self._folder}"
        return record["image"], int(record["label"]), source


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _split_folder(dir: str | os.PathLike | None, split: str) -> pathlib.Path:
    names = ("train",) if split == "train" else ("val", "validation")
    if not dir:
        raise FileNotFoundError(
            f"ImageNet needs the folder that has {names[0]}/<class>/*.JPEG, but "
            f"dir={dir!r} (--config.data.dir=...). wsjax downloads nothing."
        )
    root = pathlib.Path(dir).expanduser()
    for name in names:
        if (root / name).is_dir():
            return root / name
    raise FileNotFoundError(
        f"ImageNet's {split} split is missing: there is no folder "
        f"{' or '.join(str(root / name) for name in names)}. Expected "
        f"{names[0]}/<class>/*.JPEG in the folder passed as dir; wsjax downloads "
        f"nothing."
    )


def _class_folders(root: pathlib.Path) -> list[str]:
    with os.scandir(root) as found:
        entries = [entry for entry in found if not entry.name.startswith(".")]
        names = sorted(entry.name for entry in entries if entry.is_dir())
    if not names:
        raise ValueError(
            f"{root} has no class folders, but {len(entries)} other entries. Expected "
            f"{root.name}/<class>/*.JPEG: validation images come in one folder and "
            f"have to be sorted into class folders first."
        )
    return names


def _images_in(root: pathlib.Path, name: str) -> list[str]:
    files = sorted(
        file
        for file in os.listdir(root / name)
        if file.lower().endswith(_ENDINGS) and not file.startswith(".")
    )
    if not files:
        raise ValueError(
            f"{root / name} has no file ending in {', '.join(_ENDINGS)}. An empty "
            f"class folder usually means that unpacking stopped early."
        )
    return files
