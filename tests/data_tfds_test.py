"""Tests of wsjax.data's tfds source, on sets that tfds itself prepares here.

TensorFlow is not needed: tfds writes array_record without it as long as an image is
a plain tensor. Its writer shuffles these few records as it does MNIST's.
"""

import json
import pathlib
import socket
import sys
import tempfile
from unittest import mock

import numpy as np
import pytest
from absl.testing import absltest, parameterized

from wsjax import data
from wsjax.data import dataset, known, tfds_source

tfds = pytest.importorskip("tensorflow_datasets")
pytest.importorskip("array_record")
pytest.importorskip("importlib_resources")  # tfds needs it to write.

SIZES = {"train": 23, "test": 12}


def tiny_set(like, seed):
    """A `KnownSet` of a few images like `like`, and split -> (images, labels)."""
    rng = np.random.default_rng(seed)
    arrays = {
        split: (
            rng.integers(0, 256, (size, *like.image_shape), dtype=np.uint8),
            rng.integers(0, 10, size),
        )
        for split, size in SIZES.items()
    }
    checksums = {split: dataset.checksum_of(*arrays[split]) for split in arrays}
    return like._replace(checksums=checksums), arrays


class TinyBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Writes given arrays under a given name, keyed by position as tfds' MNIST is."""

    VERSION = tfds.core.Version("3.0.1")

    def __init__(self, name, arrays, **kwargs):
        self.name = name
        self._arrays = arrays
        super().__init__(**kwargs)

    def _info(self):
        shape = self._arrays["train"][0].shape[1:]
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Tensor(shape=shape, dtype=np.uint8),
                    "label": tfds.features.ClassLabel(num_classes=10),
                }
            ),
        )

    def _split_generators(self, dl_manager):
        return {split: self._generate_examples(split) for split in self._arrays}

    def _generate_examples(self, split):
        for index, (image, label) in enumerate(zip(*self._arrays[split], strict=True)):
            yield index, {"image": image, "label": int(label)}


def prepare(dir, name, arrays, file_format="array_record"):
    builder = TinyBuilder(name, arrays, data_dir=dir, file_format=file_format)
    builder.download_and_prepare()
    return builder


class TfdsSourceTest(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        self.dir = pathlib.Path(self.enter_context(tempfile.TemporaryDirectory()))
        tiny, self.arrays = {}, {}
        for seed, (name, like) in enumerate(known.KNOWN.items()):
            tiny[name], self.arrays[name] = tiny_set(like, seed)
        self.enter_context(mock.patch.dict(known.KNOWN, tiny))

    def load(self, name, split):
        # tfds would otherwise wait for minutes where there is no network.
        with mock.patch.object(socket, "socket", side_effect=AssertionError):
            return data.load(name, split, dir=str(self.dir), source="tfds")

    @parameterized.product(
        name=("mnist", "fashion_mnist", "cifar10"), split=("train", "test")
    )
    def test_restores_the_published_order(self, name, split):
        images, labels = self.arrays[name][split]
        prepare(self.dir, name, self.arrays[name])

        actual = self.load(name, split)

        np.testing.assert_array_equal(actual.images, images)
        np.testing.assert_array_equal(actual.labels, labels)
        self.assertEqual(actual.checksum, known.KNOWN[name].checksums[split])

    def test_tfds_did_shuffle(self):
        builder = prepare(self.dir, "mnist", self.arrays["mnist"])

        records = builder.as_data_source("train")

        stored = np.stack([record["image"] for record in records])
        self.assertFalse(np.array_equal(stored, self.arrays["mnist"]["train"][0]))

    def test_positions_are_those_of_tfds_own_hasher(self):
        from tensorflow_datasets.core import hashing

        hasher = hashing.Hasher("test")
        expected = sorted(range(500), key=hasher.hash_key)

        actual = tfds_source.published_positions("test", 500)

        np.testing.assert_array_equal(actual, expected)

    def test_another_sets_images_are_recognised(self):
        prepare(self.dir, "fashion_mnist", self.arrays["mnist"])

        with self.assertRaisesRegex(
            ValueError, "claims to be Fashion-MNIST, but holds the test split of MNIST"
        ):
            self.load("fashion_mnist", "test")

    @parameterized.named_parameters(
        ("changed_pixel", lambda images, labels: (images ^ 1, labels)),
        ("other_label", lambda images, labels: (images, (labels + 1) % 10)),
        ("other_order", lambda images, labels: (images[::-1], labels[::-1])),
        ("fewer", lambda images, labels: (images[:-1], labels[:-1])),
    )
    def test_anything_but_the_published_data_is_refused(self, modify):
        arrays = {key: modify(*value) for key, value in self.arrays["mnist"].items()}
        prepare(self.dir, "mnist", arrays)

        with self.assertRaisesRegex(ValueError, "not the published MNIST: checksum"):
            self.load("mnist", "test")

    def test_newest_version_is_read(self):
        prepare(self.dir, "mnist", self.arrays["mnist"])
        versions = self.dir / "mnist"
        for other in ("3.0.0", "2.9.1", "tmp.incomplete"):
            (versions / other).mkdir()
            (versions / other / "dataset_info.json").write_text("{}")

        found = tfds_source.find_prepared("mnist", self.dir)

        self.assertEqual(found, versions / "3.0.1")
        (versions / "3.0.1").rename(versions / "3.0.10")
        (versions / "3.0.9").mkdir()
        (versions / "3.0.9" / "dataset_info.json").write_text("{}")
        found = tfds_source.find_prepared("mnist", self.dir)
        self.assertEqual(found, versions / "3.0.10")

    def test_unprepared_says_what_to_run(self):
        with self.assertRaisesRegex(
            FileNotFoundError, "not prepared cifar10.*download_and_prepare"
        ):
            self.load("cifar10", "test")
        with self.assertRaisesRegex(FileNotFoundError, "dir=None"):
            data.load("cifar10", "test", source="tfds")

    def test_missing_split_is_named(self):
        only_train = {"train": self.arrays["mnist"]["train"]}
        prepare(self.dir, "mnist", only_train)

        with self.assertRaisesRegex(ValueError, "no split 'test', only train"):
            self.load("mnist", "test")

    def test_parquet_is_refused(self):
        self.set_format("parquet")

        with self.assertRaisesRegex(ValueError, "parquet.*array_record"):
            self.load("mnist", "test")

    def test_tfrecord_without_tensorflow_says_what_it_needs(self):
        self.set_format("tfrecord")
        self.enter_context(mock.patch.dict(sys.modules, {"tensorflow": None}))

        with self.assertRaisesRegex(ImportError, "tfrecord.*needs TensorFlow"):
            self.load("mnist", "test")

    def test_missing_tfds_names_the_extra(self):
        prepare(self.dir, "mnist", self.arrays["mnist"])
        self.enter_context(mock.patch.dict(sys.modules, {"tensorflow_datasets": None}))

        with self.assertRaisesRegex(ImportError, r"wsjax\[tfds\]"):
            self.load("mnist", "test")

    @parameterized.parameters(
        *("", "[]", "{", 10**5 * "[", '{"splits": 3}', '{"splits": [3]}'),
        '{"splits": [{"name": "test", "shardLengths": ["x"]}]}',
    )
    def test_a_damaged_description_is_named(self, text):
        self.set_format("array_record")
        path = self.dir / "mnist" / "3.0.1" / "dataset_info.json"
        path.write_text(text)
        with self.assertRaisesRegex(ValueError, "dataset_info.json is damaged"):
            tfds_source._num_records(path.parent, "test")

    def set_format(self, file_format):
        """Prepares MNIST, then claims another format for it."""
        prepare(self.dir, "mnist", self.arrays["mnist"])
        path = self.dir / "mnist" / "3.0.1" / "dataset_info.json"
        info = json.loads(path.read_text()) | {"fileFormat": file_format}
        path.write_text(json.dumps(info))


if __name__ == "__main__":
    absltest.main()
