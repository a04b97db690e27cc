"""Tests of wsjax.data: sets in memory, batches, augmentation."""

import gzip
import hashlib
import lzma
import os
import pathlib
import re
import socket
import subprocess
import sys
import tarfile
import tempfile
from unittest import mock

import chex
import jax
import numpy as np
from absl.testing import absltest, parameterized

from wsjax import data
from wsjax.data import dataset, known
from wsjax.data.augment import random_crop_flip

REAL_DATA = pathlib.Path(
    os.environ.get("WSJAX_DATA_DIR")
    or pathlib.Path(__file__).parents[2] / "shared" / "data"
)


def idx_file(magic, array):
    header = np.array([magic, *array.shape], ">u4")
    return header.tobytes() + array.tobytes()


def raw_file(name, content):
    return known.RawFile(name, len(content), hashlib.sha256(content).hexdigest())


def tiny_idx_set(like, seed):
    """Six training and four test images in the form of `like`.

    Returns a `KnownSet`, file name -> bytes, and split -> (images, labels).
    """
    rng = np.random.default_rng(seed)
    files, contents, arrays, checksums = {}, {}, {}, {}
    for split, size in (("train", 6), ("test", 4)):
        images = rng.integers(0, 256, (size, 28, 28), dtype=np.uint8)
        labels = rng.integers(0, 10, size, dtype=np.uint8)
        images_name, labels_name = (raw.name for raw in like.files[split])
        contents[images_name] = idx_file(2051, images)
        contents[labels_name] = idx_file(2049, labels)
        files[split] = tuple(
            raw_file(name, contents[name]) for name in (images_name, labels_name)
        )
        arrays[split] = images[..., None], labels
        checksums[split] = dataset.checksum_of(*arrays[split])
    return like._replace(files=files, checksums=checksums), contents, arrays


def tiny_cifar(like, seed):
    """Two images per file in CIFAR-10's binary form; returns as `tiny_idx_set`."""
    rng = np.random.default_rng(seed)
    files, contents, arrays, checksums = {}, {}, {}, {}
    for split, raws in like.files.items():
        images, labels = [], []
        for raw in raws:
            contents[raw.name] = b""
            for _ in range(2):
                image = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
                label = int(rng.integers(10))
                planes = b"".join(image[:, :, c].tobytes() for c in range(3))
                contents[raw.name] += bytes([label]) + planes
                images.append(image)
                labels.append(label)
        files[split] = tuple(raw_file(raw.name, contents[raw.name]) for raw in raws)
        arrays[split] = np.stack(images), np.array(labels, np.uint8)
        checksums[split] = dataset.checksum_of(*arrays[split])
    return like._replace(files=files, checksums=checksums), contents, arrays


class FilesTest(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        self.dir = pathlib.Path(self.enter_context(tempfile.TemporaryDirectory()))
        tiny, self.contents, self.arrays = {}, {}, {}
        for seed, name in enumerate(("mnist", "fashion_mnist")):
            tiny[name], self.contents[name], self.arrays[name] = tiny_idx_set(
                known.KNOWN[name], seed
            )
        tiny["cifar10"], self.contents["cifar10"], self.arrays["cifar10"] = tiny_cifar(
            known.KNOWN["cifar10"], 2
        )
        self.enter_context(mock.patch.dict(known.KNOWN, tiny))
        # Whatever goes wrong below, nothing may reach for a network.
        self.enter_context(
            mock.patch.object(socket, "socket", side_effect=AssertionError)
        )

    def write(self, folder, name, ending=""):
        folder = self.dir / folder
        folder.mkdir(parents=True, exist_ok=True)
        pack = {"": bytes, ".gz": gzip.compress, ".xz": lzma.compress}[ending]
        for file, content in self.contents[name].items():
            (folder / (file + ending)).write_bytes(pack(content))
        return folder

    def assert_loads(self, name, dir):
        for split, (images, labels) in self.arrays[name].items():
            actual = data.load(name, split, dir=dir)
            chex.assert_trees_all_equal(actual.images, images)
            np.testing.assert_array_equal(actual.labels, labels)
            self.assertEqual(actual.labels.dtype, np.int32)
            self.assertEqual(actual.num_classes, 10)
            self.assertEqual(actual.scale, 255)
            self.assertFalse(actual.images.flags.writeable)
            self.assertFalse(actual.labels.flags.writeable)

    @parameterized.product(
        name=("mnist", "fashion_mnist", "cifar10"),
        below=("", "NAME"),
        ending=("", ".gz", ".xz"),
    )
    def test_reads_every_packing_in_the_folder_or_one_below(self, name, below, ending):
        self.write(below.replace("NAME", name), name, ending)

        self.assert_loads(name, str(self.dir))

    def test_reads_cifar_from_the_published_archive(self):
        folder = self.write("unpacked", "cifar10")
        with tarfile.open(self.dir / "cifar-10-binary.tar.gz", "w:gz") as archive:
            for path in sorted(folder.iterdir(), reverse=True):
                archive.add(path, f"cifar-10-batches-bin/{path.name}")

        self.assert_loads("cifar10", self.dir)

    def test_reads_names_with_a_dot_as_unpackers_write_them(self):
        for path in self.write("", "mnist").iterdir():
            path.rename(self.dir / path.name.replace("-idx", ".idx"))

        self.assert_loads("mnist", self.dir)

    def test_missing_files_are_listed_with_the_places_searched(self):
        (self.write("mnist", "mnist") / "t10k-labels-idx1-ubyte").unlink()

        with self.assertRaises(FileNotFoundError) as caught:
            data.load("mnist", "test", dir=self.dir)

        message = str(caught.exception)
        self.assertIn("missing t10k-labels-idx1-ubyte, with", message)
        self.assertIn(str(self.dir / "mnist"), message)
        self.assertIn("downloads nothing", message)
        data.load("mnist", "train", dir=self.dir)  # Needs no test files.

    @parameterized.parameters(None, "", "no/such/folder")
    def test_no_folder_says_what_to_put_where(self, dir):
        with self.assertRaisesRegex(FileNotFoundError, "test_batch.bin .*as dir"):
            data.load("cifar10", "test", dir=dir)

    @parameterized.parameters(".gz", ".xz")
    def test_broken_off_copy_is_called_damaged(self, ending):
        path = self.write("", "mnist", ending) / f"t10k-images-idx3-ubyte{ending}"
        path.write_bytes(path.read_bytes()[:-20])

        with self.assertRaisesRegex(
            ValueError, f"{re.escape(str(path))} is damaged.*bytes"
        ):
            data.load("mnist", "test", dir=self.dir)

    @parameterized.parameters(".gz", ".xz")
    def test_web_page_in_place_of_the_file_is_shown(self, ending):
        path = self.write("", "mnist", ending) / f"t10k-images-idx3-ubyte{ending}"
        path.write_bytes(b"<html>Not found</html>")

        with self.assertRaisesRegex(ValueError, "begins with b'<html>Not"):
            data.load("mnist", "test", dir=self.dir)

    def test_broken_off_archive_is_called_damaged(self):
        folder = self.write("unpacked", "cifar10")
        path = self.dir / "cifar-10-binary.tar.gz"
        with tarfile.open(path, "w:gz") as archive:
            archive.add(folder, "cifar-10-batches-bin")
        path.write_bytes(path.read_bytes()[:2000])

        with self.assertRaisesRegex(ValueError, "is damaged"):
            data.load("cifar10", "train", dir=self.dir)

    def test_another_sets_file_is_recognised(self):
        self.write("", "fashion_mnist", ".gz")

        with self.assertRaisesRegex(ValueError, "of Fashion-MNIST, where .* of MNIST"):
            data.load("mnist", "test", dir=self.dir)

    def test_labels_in_place_of_images_are_recognised(self):
        self.write("", "mnist")
        (self.dir / "t10k-labels-idx1-ubyte").replace(
            self.dir / "t10k-images-idx3-ubyte"
        )
        (self.dir / "t10k-labels-idx1-ubyte").touch()

        with self.assertRaisesRegex(ValueError, "is the file t10k-labels"):
            data.load("mnist", "test", dir=self.dir)
        with self.assertRaisesRegex(ValueError, "2049.*labels; expected 2051"):
            data.load("mnist", "test", dir=self.dir, verify=False)

    @parameterized.named_parameters(
        ("shorter", lambda content: content[:-1], "wrong size"),
        ("longer", lambda content: content + b"\0", "more unpacked bytes"),
        ("changed", lambda content: content[:-1] + b"\0", "other content"),
    )
    def test_modified_content_is_refused(self, modify, message):
        path = self.write("", "mnist") / "train-images-idx3-ubyte"
        path.write_bytes(modify(path.read_bytes()))

        with self.assertRaisesRegex(ValueError, message):
            data.load("mnist", "train", dir=self.dir)

    def test_own_images_are_read_without_verification(self):
        self.write("", "mnist")
        images = np.full((3, 28, 28), 7, np.uint8)
        (self.dir / "train-images-idx3-ubyte").write_bytes(idx_file(2051, images))
        labels_path = self.dir / "train-labels-idx1-ubyte"
        labels_path.write_bytes(idx_file(2049, np.array([1, 0, 9], np.uint8)))

        actual = data.load("mnist", "train", dir=self.dir, verify=False)

        np.testing.assert_array_equal(actual.images, images[..., None])
        np.testing.assert_array_equal(actual.labels, [1, 0, 9])
        labels_path.write_bytes(idx_file(2049, np.array([1, 0, 10], np.uint8)))
        with self.assertRaisesRegex(ValueError, "has a label 10"):
            data.load("mnist", "train", dir=self.dir, verify=False)
        labels_path.write_bytes(idx_file(2049, np.array([1, 0], np.uint8)))
        with self.assertRaisesRegex(ValueError, "3 images.* 2 labels"):
            data.load("mnist", "train", dir=self.dir, verify=False)

    def test_cifar100_is_not_taken_for_cifar10(self):
        path = self.write("", "cifar10") / "test_batch.bin"
        path.write_bytes(bytes(3074 * 5))

        with self.assertRaisesRegex(ValueError, "CIFAR-100"):
            data.load("cifar10", "test", dir=self.dir, verify=False)


class RealFilesTest(parameterized.TestCase):
    """The published files, where this machine has them."""

    @parameterized.parameters(
        ("mnist", "test", [7, 2, 1, 0, 4], (10_000, 28, 28, 1)),
        ("mnist", "train", [5, 0, 4, 1, 9], (60_000, 28, 28, 1)),
        ("fashion_mnist", "test", [9, 2, 1, 1, 6], (10_000, 28, 28, 1)),
        ("fashion_mnist", "train", [9, 0, 0, 3, 0], (60_000, 28, 28, 1)),
        ("cifar10", "test", [3, 8, 8, 0, 6], (10_000, 32, 32, 3)),
        ("cifar10", "train", [6, 9, 9, 4, 1], (50_000, 32, 32, 3)),
    )
    def test_first_labels_and_class_counts_are_the_published_ones(
        self, name, split, first_labels, shape
    ):
        if not (REAL_DATA / name).is_dir():
            self.skipTest(f"No {name}: set WSJAX_DATA_DIR to the folder above it.")

        actual = data.load(name, split, dir=REAL_DATA)

        self.assertEqual(actual.images.shape, shape)
        np.testing.assert_array_equal(actual.labels[:5], first_labels)
        if name != "mnist":  # MNIST's classes differ in size.
            np.testing.assert_array_equal(
                np.bincount(actual.labels), [shape[0] // 10] * 10
            )


class DigitsTest(parameterized.TestCase):
    def test_splits_are_disjoint_and_complete(self):
        from sklearn.datasets import load_digits

        train, test = data.load("digits", "train"), data.load("digits", "test")

        both = np.concatenate([train.images, test.images])[..., 0]
        np.testing.assert_array_equal(both, load_digits().images)
        self.assertEqual(test.images.shape, (360, 8, 8, 1))
        self.assertEqual(test.images.dtype, np.uint8)
        counts = np.bincount(test.labels)
        self.assertEqual((counts.min(), counts.max()), (33, 37))

    def test_brightest_pixel_is_one(self):
        train = data.load("digits", "train")

        pixels = data.as_float(train.images, train.scale)

        self.assertEqual(pixels.dtype, np.float32)
        self.assertEqual((pixels.min(), pixels.max()), (0.0, 1.0))

    def test_missing_package_names_the_extra(self):
        self.enter_context(mock.patch.dict(sys.modules, {"sklearn.datasets": None}))

        with self.assertRaisesRegex(ImportError, r"wsjax\[digits\]"):
            data.load("digits", "test")


class LoadTest(parameterized.TestCase):
    @parameterized.parameters(
        (("mnits", "test"), {}, "data set 'mnits'.*digits, mnist"),
        (("mnist", "val"), {}, "split 'val'.*train, test"),
        (("mnist", "test"), {"source": "hub"}, "source 'hub'"),
        (("mnist", "test"), {"source": "tfds", "verify": False}, "order"),
    )
    def test_wrong_arguments_are_explained(self, args, kwargs, message):
        with self.assertRaisesRegex(ValueError, message):
            data.load(*args, **kwargs)

    def test_importing_needs_numpy_only(self):
        # An empty package in place of wsjax/__init__.py, which may import JAX.
        code = """
import sys, types
package = types.ModuleType("wsjax")
package.__path__ = [sys.argv[1]]
sys.modules["wsjax"] = package
import wsjax.data
heavy = {"jax", "flax", "optax", "tensorflow_datasets", "PIL", "sklearn", "scipy"}
sys.exit(f"imported {heavy & set(sys.modules)}" if heavy & set(sys.modules) else 0)
"""
        folder = pathlib.Path(data.__file__).parents[1]

        subprocess.run([sys.executable, "-c", code, folder], check=True)


class DatasetTest(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        rng = np.random.default_rng(0)
        self.images = rng.integers(0, 256, (11, 3, 2, 1), dtype=np.uint8)
        self.labels = rng.integers(0, 4, 11)
        self.data = data.make_dataset(self.images.copy(), self.labels, 4, 255.0)

    def test_is_a_sequence_of_images_with_labels(self):
        self.assertLen(self.data, 11)
        self.assertEqual(self.data.image_shape, (3, 2, 1))
        for index, (image, label) in enumerate(self.data):
            np.testing.assert_array_equal(image, self.images[index])
            self.assertEqual(label, self.labels[index])
            self.assertIs(type(label), int)
        np.testing.assert_array_equal(self.data[-1][0], self.images[10])
        with self.assertRaises(IndexError):
            self.data[11]

    def test_batches_are_all_images_in_order(self):
        batches = list(self.data.batches(4))

        self.assertEqual([len(batch.labels) for batch in batches], [4, 4, 3])
        joined = data.ImageBatch(*map(np.concatenate, zip(*batches, strict=True)))
        np.testing.assert_array_equal(joined.indices, range(11))
        np.testing.assert_array_equal(joined.images, self.images)
        np.testing.assert_array_equal(joined.labels, self.labels)

    def test_train_batches_follow_epoch_batches(self):
        order = data.epoch_batches(11, 3, seed=5, epoch=2, start_step=1)
        batches = self.data.train_batches(3, seed=5, epoch=2, start_step=1)
        for batch, indices in zip(batches, order, strict=True):
            np.testing.assert_array_equal(batch.indices, indices)
            np.testing.assert_array_equal(batch.images, self.images[indices])
            np.testing.assert_array_equal(batch.labels, self.labels[indices])

    def test_the_first_images_are_those_of_the_whole(self):
        part = self.data.first(3)

        self.assertLen(part, 3)
        np.testing.assert_array_equal(part.images, self.images[:3])
        np.testing.assert_array_equal(part.labels, self.labels[:3])
        self.assertEqual(part.checksum, self.data.checksum)
        self.assertLen(self.data.first(100), 11)
        for count in (0, -1):
            with self.assertRaisesRegex(ValueError, f"first {count} images"):
                self.data.first(count)


class AsFloatTest(absltest.TestCase):
    def test_divides_by_scale(self):
        images = np.array([0, 51, 255], np.uint8)
        np.testing.assert_allclose(data.as_float(images, 255), [0, 0.2, 1], rtol=1e-7)

    def test_refuses_what_would_leave_the_unit_interval(self):
        with self.assertRaisesRegex(ValueError, "again"):
            data.as_float(np.ones(3, np.float32), 255)
        with self.assertRaisesRegex(ValueError, "brightest pixel is 255"):
            data.as_float(np.array([255], np.uint8), 16)


class EpochBatchesTest(parameterized.TestCase):
    def test_an_epoch_visits_each_image_at_most_once(self):
        batches = list(data.epoch_batches(11, 3, seed=4, epoch=2))

        self.assertEqual([batch.shape for batch in batches], [(3,)] * 3)
        visited = np.concatenate(batches)
        self.assertLen(set(visited.tolist()), 9)
        self.assertTrue(set(visited.tolist()) <= set(range(11)))

    def test_resuming_continues_the_same_epoch(self):
        whole = list(data.epoch_batches(11, 3, seed=4, epoch=2))
        rest = list(data.epoch_batches(11, 3, seed=4, epoch=2, start_step=2))

        np.testing.assert_array_equal(rest, whole[2:])
        self.assertEmpty(list(data.epoch_batches(11, 3, seed=4, epoch=2, start_step=3)))

    def test_seeds_and_epochs_give_different_orders(self):
        orders = {
            tuple(next(data.epoch_batches(50, 50, seed=seed, epoch=epoch)))
            for seed in range(3)
            for epoch in range(3)
        }
        self.assertLen(orders, 9)

    @parameterized.parameters(
        ({"batch_size": 12}, "no full batch"),
        ({"batch_size": 0}, "outside"),
        ({"start_step": 4}, "not of the run"),
        ({"epoch": -1}, "negative"),
    )
    def test_wrong_arguments_are_refused_at_once(self, changed, message):
        kwargs = {"batch_size": 3, "seed": 0, "epoch": 0} | changed
        with self.assertRaisesRegex(ValueError, message):
            data.epoch_batches(11, **kwargs)


class RandomCropFlipTest(chex.TestCase):
    def setUp(self):
        super().setUp()
        rng = np.random.default_rng(0)
        self.images = rng.integers(1, 256, (64, 5, 4, 3), dtype=np.uint8)

    @chex.variants(with_jit=True, without_jit=True)
    def test_each_result_is_one_shifted_and_perhaps_mirrored_image(self):
        crop_flip = self.variant(lambda key, x: random_crop_flip(key, x, padding=1))

        actual = crop_flip(jax.random.key(0), self.images)

        self.assertEqual(actual.dtype, np.uint8)
        moves = set()
        for image, result in zip(self.images, np.asarray(actual), strict=True):
            possible = {}
            for down in (-1, 0, 1):
                for right in (-1, 0, 1):
                    moved = np.zeros_like(image)
                    for (i, j, c), value in np.ndenumerate(image):
                        if 0 <= i + down < 5 and 0 <= j + right < 4:
                            moved[i + down, j + right, c] = value
                    possible[moved.tobytes()] = (down, right, False)
                    possible[moved[:, ::-1].tobytes()] = (down, right, True)
            self.assertIn(result.tobytes(), possible)
            moves.add(possible[result.tobytes()])
        self.assertLen(moves, 18)  # All nine shifts, mirrored and not.

    def test_an_image_does_not_depend_on_the_rest_of_the_batch(self):
        key = jax.random.key(1)

        whole = jax.jit(random_crop_flip)(key, self.images)
        part = jax.jit(random_crop_flip)(key, self.images[:3])

        chex.assert_trees_all_equal(whole[:3], part)

    def test_without_padding_mass_is_kept(self):
        actual = random_crop_flip(jax.random.key(2), self.images, padding=0)

        np.testing.assert_array_equal(
            np.sum(actual, (1, 2, 3), dtype=int), self.images.sum((1, 2, 3), dtype=int)
        )

    def test_single_image_is_refused(self):
        with self.assertRaisesRegex(ValueError, "batch"):
            random_crop_flip(jax.random.key(0), self.images[0])


if __name__ == "__main__":
    absltest.main()
