"""Tests of users' own data: .npz files, and a folder of images per class."""

import io
import pathlib
import tempfile
import zipfile

import numpy as np
import pytest
from absl.testing import absltest, parameterized

from wsjax import data
from wsjax.data import dataset

Image = pytest.importorskip("PIL.Image")


def numbers(size, shape=(5, 4, 3), seed=0, classes=3):
    """Images, and labels among which every class occurs."""
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (size, *shape), dtype=np.uint8)
    return images, rng.permutation(np.arange(size) % classes)


class Bomb:
    """Pickled, it would create a file where it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return pathlib.Path.touch, (self.path,)


class _OwnTest(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        self.dir = pathlib.Path(self.enter_context(tempfile.TemporaryDirectory()))

    def assert_holds(self, actual, images, labels, num_classes):
        np.testing.assert_array_equal(actual.images, images)
        np.testing.assert_array_equal(actual.labels, labels)
        self.assertEqual(actual.images.dtype, np.uint8)
        self.assertEqual((actual.num_classes, actual.scale), (num_classes, 255))
        self.assertEqual(actual.checksum, dataset.checksum_of(images, labels))


class NpzTest(_OwnTest):
    def save(self, name="train.npz", size=6, images=None, labels=None, **options):
        """Writes a file; what is not given is made up."""
        fallback = numbers(size, **options)
        images = fallback[0] if images is None else images
        labels = fallback[1] if labels is None else labels
        np.savez(self.dir / name, images=images, labels=labels)
        return images, labels

    def load(self, split="train", dir=None):
        return data.load("npz", split, dir=dir or self.dir)

    @parameterized.named_parameters(("plain", np.savez), ("small", np.savez_compressed))
    def test_reads_a_file_for_each_split(self, save):
        train, test = numbers(7, seed=1), numbers(4, seed=2)
        for name, (images, labels) in (("train", train), ("test", test)):
            save(
                self.dir / f"{name}.npz", images=images, labels=labels, more=np.ones(3)
            )

        self.assert_holds(self.load(), *train, 3)
        self.assert_holds(self.load("test"), *test, 3)

    def test_reads_one_file_of_both_splits(self):
        train, test = numbers(7, seed=1), numbers(4, seed=2)
        arrays = {
            f"{split}_{name}": array
            for split, pair in (("train", train), ("test", test))
            for name, array in zip(("images", "labels"), pair, strict=True)
        }
        np.savez(self.dir / "both.npz", **arrays)

        self.assert_holds(self.load("train", self.dir / "both.npz"), *train, 3)
        self.assert_holds(self.load("test", self.dir / "both.npz"), *test, 3)

    def test_a_file_without_splits_is_a_test_split(self):
        images, labels = self.save("mine.npz")

        self.assert_holds(self.load("test", self.dir / "mine.npz"), images, labels, 3)
        with self.assertRaisesRegex(FileNotFoundError, "no train split.*train_images"):
            self.load("train", self.dir / "mine.npz")

    def test_images_without_channels_get_one(self):
        images, labels = self.save(shape=(5, 4))

        self.assert_holds(self.load(), images[..., None], labels, 3)

    @parameterized.parameters(np.float16, np.float32, np.float64, ">f4")
    def test_floating_point_keeps_the_levels_it_came_from(self, dtype):
        images, labels = numbers(30)
        self.save(images=(images / 255).astype(dtype), labels=labels)

        with self.assertNoLogs("wsjax"):
            self.assert_holds(self.load(), images, labels, 3)

    def test_other_floating_point_is_rounded_and_said_to_be(self):
        images = np.random.default_rng(0).random((6, 5, 4, 1))
        self.save(images=images)

        with self.assertLogs("wsjax", "WARNING") as logs:
            actual = self.load()

        self.assertRegex(logs.output[0], "train.npz are rounded to the nearest of 256")
        error = data.as_float(actual.images, actual.scale) - images
        self.assertLessEqual(np.abs(error).max(), 0.5 / 255 + 1e-7)

    def test_classes_are_those_of_the_training_split(self):
        self.save(labels=[0, 1, 2, 3, 4, 4])
        self.save("test.npz", labels=[0, 1, 2, 0, 1, 2])

        self.assertEqual(self.load("test").num_classes, 5)
        self.save("test.npz", labels=[0, 1, 2, 0, 1, 5])
        with self.assertRaisesRegex(ValueError, "test.npz has a label 5.*0 to 4"):
            self.load("test")

    def test_there_may_be_as_many_classes_as_images(self):
        labels = np.arange(1500)
        self.save(images=np.ones((1500, 2, 1), np.uint8), labels=labels)

        self.assertEqual(self.load().num_classes, 1500)
        self.save(images=np.ones((1500, 2, 1), np.uint8), labels=labels + 1)
        with self.assertRaisesRegex(ValueError, "is 1500, .*1501 classes of 1500"):
            self.load()

    @parameterized.named_parameters(
        ("negative", [0, 1, -1, 0, 1, 2], "has a label -1; labels are 0 to"),
        ("absurd", [0, 1, 1000, 0, 1, 2], "is 1000, .*1001 classes of 6"),
        ("unsigned", np.array([0, 1, 2**63] * 2, np.uint64), "9223372036854775809 cl"),
        ("one_class", [0] * 6, "is 0, .*1 classes.*at least 2"),
        ("float", np.arange(6.0) % 3, "float64 of shape .*integers"),
        ("one_hot", np.eye(6, dtype=int), r"int64 of shape \(6, 6\).*one-hot"),
        ("text", np.array(list("abcabc")), "<U1"),
        ("truth", np.arange(6) < 3, "bool"),
        ("fewer", [0, 1, 2, 0, 1], "6 images, but 5 labels"),
        ("none", np.zeros(0, int), r"int64 of shape \(0,\)"),
    )
    def test_refuses_labels(self, labels, message):
        self.save(labels=labels)

        with self.assertRaisesRegex(ValueError, f"train.npz.*{message}"):
            self.load()

    @parameterized.named_parameters(
        ("scaled", 255.0 * np.ones((6, 4, 4)), "float64 from 255.0 to 255.0"),
        ("negative", -0.1 * np.ones((6, 4, 4)), "from -0.1 to -0.1; expected"),
        ("nan", np.full((6, 4, 4), np.nan), "from nan to nan"),
        ("half_nan", np.where(np.eye(4) * np.ones((6, 1, 1)), np.nan, 0), "to nan"),
        ("integers", np.ones((6, 4, 4), np.int64), r"int64.*astype\(np.uint8\)"),
        ("truth", np.ones((6, 4, 4), bool), "are bool; expected uint8"),
        ("complex", np.ones((6, 4, 4), complex), "are complex128"),
        ("flat", np.zeros((6, 16), np.uint8), r"shape \(6, 16\); expected"),
        ("video", np.zeros((6, 2, 4, 4, 3), np.uint8), r"shape \(6, 2, 4, 4, 3\)"),
        ("channels", np.zeros((6, 3, 8, 8), np.uint8), "channels last.*moveaxis"),
        ("no_pixel", np.zeros((6, 0, 8), np.uint8), r"shape \(6, 0, 8\)"),
        ("no_image", np.zeros((0, 8, 8), np.uint8), r"shape \(0, 8, 8\)"),
    )
    def test_refuses_images(self, images, message):
        self.save(images=images)

        with self.assertRaisesRegex(ValueError, f"train.npz.*{message}"):
            self.load()

    def test_refuses_splits_of_different_shapes(self):
        self.save(shape=(5, 4))
        for shape in ((4, 5), (5, 4, 3)):
            self.save("test.npz", shape=shape)
            with self.assertRaisesRegex(
                ValueError,
                r"test.npz has images of shape \(.*train.npz are \(5, 4, 1\)",
            ):
                self.load("test")

    def test_missing_arrays_are_named_with_those_that_are_there(self):
        np.savez(self.dir / "train.npz", x=np.ones(3), labels=[0, 1, 2])
        with self.assertRaisesRegex(
            ValueError, "no array 'images', only x, labels.*Expected"
        ):
            self.load()
        np.savez(self.dir / "train.npz", images=np.ones((3, 4, 4)))
        with self.assertRaisesRegex(ValueError, "no array 'labels', only images"):
            self.load()
        np.savez(self.dir / "both.npz", test_images=np.ones((3, 4, 4)))
        with self.assertRaisesRegex(ValueError, "no array 'test_labels'"):
            self.load("test", self.dir / "both.npz")

    @parameterized.parameters(None, "", "no/such/place")
    def test_nothing_there_says_what_to_put_where(self, dir):
        with self.assertRaisesRegex(
            FileNotFoundError, "config.data.dir.*Expected a folder with train.npz"
        ):
            data.load("npz", "test", dir=dir)

    def test_a_folder_without_the_split_says_so(self):
        self.save("test.npz")

        self.assertEqual(self.load("test").num_classes, 3)
        with self.assertRaisesRegex(FileNotFoundError, "has no train split. Expected"):
            self.load("train")

    @parameterized.product(save=(np.savez, np.savez_compressed), keep=(0, 0.5, 0.98))
    def test_a_broken_off_copy_is_named(self, save, keep):
        images, labels = numbers(60)
        path = self.dir / "train.npz"
        save(path, images=images, labels=labels)
        content = path.read_bytes()
        path.write_bytes(content[: int(keep * len(content))])

        with self.assertRaisesRegex(ValueError, f"{path} cannot be read.*broken off"):
            self.load()

    @parameterized.parameters(np.savez, np.savez_compressed)
    def test_a_flipped_bit_is_found(self, save):
        images, labels = numbers(60)
        path = self.dir / "train.npz"
        save(path, images=images, labels=labels)
        content = bytearray(path.read_bytes())
        content[2000] ^= 4
        path.write_bytes(content)

        with self.assertRaisesRegex(ValueError, f"{path} cannot be read"):
            self.load()

    @parameterized.named_parameters(
        ("page", b"<html>Not found</html>"), ("npy", None), ("header", b"\x93NUMPY\x01")
    )
    def test_other_files_are_refused(self, content):
        path = self.dir / "train.npz"
        if content is None:
            with open(path, "wb") as file:
                np.save(file, np.ones((3, 4, 4)))
        else:
            with zipfile.ZipFile(path, "w") as archive:
                for name in ("images.npy", "labels.npy"):
                    archive.writestr(name, content)

        with self.assertRaisesRegex(ValueError, f"{path} cannot be read as a .npz"):
            self.load()

    @parameterized.parameters("images", "labels")
    def test_nothing_in_a_file_is_executed(self, name):
        mark = self.dir / "executed"
        self.save(**{name: np.array([Bomb(mark)] * 6, object)})

        with self.assertRaisesRegex(ValueError, "train.npz"):
            self.load()
        self.assertFalse(mark.exists())


class FolderTest(_OwnTest):
    def write(self, path, array, **options):
        path = self.dir / path
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(array).save(path, **options)
        return path

    def fill(self, split, classes, shape, seed=0, numbers=range(2)):
        """Writes images of each class; returns all in the order they should have."""
        rng, found = np.random.default_rng(seed), []
        for name in reversed(classes):
            for number in reversed(numbers):
                image = rng.integers(0, 256, shape, dtype=np.uint8)
                self.write(f"{split}/{name}/{number}.png", image)
                found.insert(0, image)
        return np.stack(found)

    def load(self, split="train"):
        return data.load("folder", split, dir=self.dir)

    @parameterized.product(shape=((5, 4), (5, 4, 3)), test=("test", "val"))
    def test_reads_classes_in_order(self, shape, test):
        train = self.fill("train", "abc", shape, numbers=range(100, 400))
        held_out = self.fill(test, "bc", shape, seed=1)
        whole = (5, 4, 1) if len(shape) == 2 else shape

        self.assert_holds(
            self.load(), train.reshape(-1, *whole), np.repeat([0, 1, 2], 300), 3
        )
        self.assert_holds(
            self.load("test"), held_out.reshape(-1, *whole), [1, 1, 2, 2], 3
        )

    def test_a_folder_named_test_comes_before_val(self):
        self.fill("train", "ab", (5, 4))
        expected = self.fill("test", "ab", (5, 4), seed=1)
        self.fill("val", "ab", (5, 4), seed=2)

        np.testing.assert_array_equal(self.load("test").images[..., 0], expected)

    def test_what_is_no_class_and_no_image_changes_nothing(self):
        expected = self.fill("train", "bc", (5, 4))
        for name in ("@eaDir", "lost+found", ".a", "__MACOSX"):
            self.write(f"train/{name}/0.png", expected[0])
        (self.dir / "train" / "b" / "a.png").mkdir()
        (self.dir / "train" / "b" / "._0.png").touch()
        (self.dir / "train" / "labels.csv").touch()

        self.assert_holds(self.load(), expected[..., None], [0, 0, 1, 1], 2)

    def test_an_empty_folder_is_refused_in_both_splits(self):
        for split in ("train", "test"):
            self.fill(split, "bc", (5, 4))
        (self.dir / "train" / "a").mkdir()

        for split in ("train", "test"):
            with self.assertRaisesRegex(ValueError, "train.a has no file"):
                self.load(split)

    @parameterized.parameters("L", "1", "LA")
    def test_gray_images_have_one_channel(self, mode):
        gray = Image.fromarray(numbers(1, (5, 4))[0][0]).convert(mode)
        for name in ("a/0", "b/0"):
            path = self.dir / "train" / f"{name}.png"
            path.parent.mkdir(parents=True)
            gray.save(path)

        actual = self.load()

        self.assertEqual(actual.image_shape, (5, 4, 1))
        np.testing.assert_array_equal(actual.images[0, ..., 0], gray.convert("L"))

    @parameterized.parameters("RGBA", "P", "RGB")
    def test_other_images_have_three(self, mode):
        self.fill("train", "ab", (5, 4, 3))
        other = Image.fromarray(numbers(1)[0][0]).convert(mode)
        other.save(self.dir / "train" / "b" / "9.png")

        actual = self.load()

        np.testing.assert_array_equal(actual.images[-1], other.convert("RGB"))

    @parameterized.named_parameters(
        ("size", "train", (4, 5), "4 x 5 pixels, gray, where .*train.a.0.png is 5 x 4"),
        ("kind", "train", (5, 4, 3), "5 x 4 pixels, colour, where .*gray.*imagenet"),
        ("split", "test", (5, 6), "test.b.9.png is 5 x 6 .*train.a.0.png is 5 x 4"),
    )
    def test_what_does_not_fit_is_named(self, split, shape, message):
        for name in ("train", "test"):
            self.fill(name, "ab", (5, 4))
        self.write(f"{split}/b/9.png", np.zeros(shape, np.uint8))

        with self.assertRaisesRegex(ValueError, message):
            self.load(split)

    def test_splits_of_different_shapes_are_refused(self):
        self.fill("train", "ab", (5, 4))
        self.fill("test", "ab", (5, 4, 3))

        with self.assertRaisesRegex(
            ValueError, "test.a.0.png is .*colour, where .*train"
        ):
            self.load("test")

    @parameterized.named_parameters(("empty", 0), ("broken_off", 60))
    def test_a_damaged_image_is_named(self, keep):
        self.fill("train", "ab", (20, 20))
        path = self.dir / "train" / "b" / "1.png"
        path.write_bytes(path.read_bytes()[:keep])

        with self.assertRaisesRegex(ValueError, f"{path} cannot be decoded"):
            self.load()

    def test_deep_images_are_refused_rather_than_cut_off(self):
        self.fill("train", "ab", (5, 4))
        self.write("train/b/9.png", np.full((5, 4), 60_000, np.uint16))

        with self.assertRaisesRegex(ValueError, "b.9.png .*more than eight bits"):
            self.load()

    def test_jpegs_are_read_as_pillow_reads_them(self):
        image = np.full((8, 8, 3), (200, 30, 90), np.uint8)
        self.write("train/a/0.jpg", image)
        path = self.write("train/b/0.JPEG", image, format="JPEG")
        self.write("train/b/1.jpeg", image)

        actual = self.load()

        self.assertLen(actual, 3)
        expected = np.array(Image.open(io.BytesIO(path.read_bytes())))
        np.testing.assert_array_equal(actual.images[1], expected)

    def test_missing_folders_say_what_to_put_where(self):
        with self.assertRaisesRegex(
            FileNotFoundError,
            "Your folder.*test split.*test or .*val.*CLASS/ with .jpeg",
        ):
            self.load("test")
        with self.assertRaisesRegex(FileNotFoundError, "train.CLASS/.*dir=None"):
            data.load("folder", "train")


if __name__ == "__main__":
    absltest.main()
