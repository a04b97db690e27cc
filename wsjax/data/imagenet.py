"""ImageNet: a folder per class, or a data set that tfds prepared.

The folder may hold other photographs, of any sizes: each is cropped to a square.
"""

import hashlib

from wsjax.data import class_folders, tfds_source
from wsjax.data.source import Options
from wsjax.data.stream import ImageStream


def load(split: str, options: Options) -> ImageStream:
    """Opens a split; decodes nothing yet.

    Args:
      split: "train", or "test" for ImageNet's validation set.
      options: `dir`, `source`, `image_size` and `resize`.

    Returns:
      An `ImageNetFolder`, or an `ImageNetTfds` if `source` is "tfds".

    Raises:
      FileNotFoundError: no such folder, or not prepared.
      ValueError: as `class_folders.scan` or `ImageStream`; or tfds prepared it in
        another format than array_record.
      ImportError: tfds or array_record is missing.
    """
    kind = ImageNetTfds if options.source == "tfds" else ImageNetFolder
    return kind(split, options)


class ImageNetFolder(ImageStream):
    """ImageNet from a folder per class: `train/<class>/*.JPEG`, `val/<class>/*.JPEG`.

    Order and labels are those of `class_folders.scan`; `validation` may stand for `val`.

    Attributes, beside those of every stream:
      classes: class names in the order of the labels.
      labels: `[N]` int32.
      checksum: SHA-256 of all file names with their class, in order. It tells two
        file lists apart, not two contents.
    """

    def __init__(self, split: str, options: Options) -> None:
        super().__init__(options)
        self._found = class_folders.scan(
            "ImageNet", options.dir, split, ("val", "validation")
        )
        self.classes, self.labels = self._found.classes, self._found.labels
        self.num_classes = len(self.classes)
        digest = hashlib.sha256()
        for label, file in zip(self.labels, self._found.files, strict=True):
            digest.update(f"{self.classes[label]}/{file}\n".encode())
        self.checksum = digest.hexdigest()

    def __len__(self) -> int:
        return len(self._found.files)

    def file_name(self, index: int) -> str:
        """Names the photograph at a position, such as n01440764_10026.JPEG."""
        return self._found.files[index]

    def _fetch(self, index):
        path = self._found.path(index)
        return path.read_bytes(), int(self.labels[index]), str(path)


class ImageNetTfds(ImageStream):
    """ImageNet from tfds' `imagenet2012`, prepared earlier as array_record.

    Images keep the order of tfds' records, which is not that of `ImageNetFolder`;
    `file_name` tells which is which. tfds re-encoded 23 of the training photographs,
    so their pixels differ from the original files'.

    Attributes, beside those of every stream:
      checksum: SHA-256 of tfds' `dataset_info.json`, which has the version and the
        size of every shard.
    """

    num_classes = 1000

    def __init__(self, split: str, options: Options) -> None:
        super().__init__(options)
        self._folder = tfds_source.find_prepared("imagenet2012", options.dir)
        self._records = tfds_source.open_sequence(
            self._folder,
            "train" if split == "train" else "validation",
            decode_images=False,
        )
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
