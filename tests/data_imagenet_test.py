"""Tests of wsjax.data's streams of photographs, on a small folder made here."""

import io
import itertools
import pathlib
import sys
import tempfile
import threading
import time
from unittest import mock

import numpy as np
import pytest
from absl.testing import absltest, parameterized

from wsjax import data
from wsjax.data import photographs, prefetch, tfds_source

Image = pytest.importorskip("PIL.Image")


def photograph(seed, height=40, width=60):
    """Smooth random colours, which survive JPEG."""
    coarse = np.random.default_rng(seed).integers(0, 256, (3, 4, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def encoded(picture, file_format="JPEG", **options):
    buffer = io.BytesIO()
    picture.save(buffer, file_format, **options)
    return buffer.getvalue()


class ImageNetFolderTest(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        self.dir = pathlib.Path(self.enter_context(tempfile.TemporaryDirectory()))
        seed = 0
        for split, names, count in (
            ("train", ("n03", "n01", "n02"), 4),
            ("val", ("n03", "n02"), 3),
        ):
            for name in names:
                folder = self.dir / split / name
                folder.mkdir(parents=True)
                for number in reversed(range(count)):
                    seed += 1
                    content = encoded(photograph(seed, 30 + seed, 70 - seed))
                    (folder / f"{name}_{number}.JPEG").write_bytes(content)
                (folder / "._hidden.JPEG").touch()
                (folder / "notes.txt").touch()

    def open(self, split="train", **kwargs):
        kwargs = {"dir": self.dir, "image_size": 24, "resize": 28} | kwargs
        return data.load("imagenet", split, **kwargs)

    def test_order_is_by_class_then_by_file_name(self):
        images = self.open()

        names = [images.file_name(index) for index in range(len(images))]
        expected = [f"n0{c}_{number}.JPEG" for c in (1, 2, 3) for number in range(4)]
        self.assertEqual(names, expected)
        np.testing.assert_array_equal(images.labels, np.repeat([0, 1, 2], 4))
        self.assertEqual(images.labels.dtype, np.int32)
        self.assertFalse(images.labels.flags.writeable)
        self.assertEqual((images.num_classes, images.scale), (3, 255))

    def test_classes_are_sorted_whatever_the_file_system_says(self):
        content = encoded(photograph(0))
        for letter in "qwertyuiopasdfghjklzxcvbnm":
            (self.dir / "letters" / "train" / letter).mkdir(parents=True)
            path = self.dir / "letters" / "train" / letter / f"{letter}.jpg"
            path.write_bytes(content)

        images = self.open(dir=self.dir / "letters")

        self.assertEqual("".join(images.classes), "abcdefghijklmnopqrstuvwxyz")
        self.assertEqual(images.file_name(2), "c.jpg")
        np.testing.assert_array_equal(images.labels, range(26))

    def test_labels_of_both_splits_mean_the_same_classes(self):
        images = self.open("test")

        self.assertEqual(images.classes, ["n01", "n02", "n03"])
        np.testing.assert_array_equal(images.labels, [1, 1, 1, 2, 2, 2])
        self.assertEqual(images.num_classes, 3)

    def test_validation_folder_may_be_spelled_out(self):
        expected = self.open("test").checksum
        (self.dir / "val").rename(self.dir / "validation")

        self.assertEqual(self.open("test").checksum, expected)

    def test_checksum_tells_file_lists_apart(self):
        before = self.open().checksum
        self.assertEqual(before, self.open().checksum)

        (self.dir / "train" / "n02" / "n02_3.JPEG").unlink()

        self.assertNotEqual(before, self.open().checksum)

    def test_indexing_follows_sequences(self):
        images = self.open()

        np.testing.assert_array_equal(images[-1][0], images[11][0])
        self.assertEqual(images[np.int64(5)][1], 1)
        self.assertLen(list(images), 12)
        with self.assertRaises(IndexError):
            images[12]

    def test_batches_are_all_images_in_order(self):
        images = self.open()

        batches = list(images.batches(5))

        self.assertEqual([len(batch.labels) for batch in batches], [5, 5, 2])
        self.assertEqual([len(batch.labels) for batch in images.batches(11)], [11, 1])
        self.assertEqual(batches[0].images.shape, (5, 24, 24, 3))
        self.assertEqual(batches[0].labels.dtype, np.int32)
        joined = data.ImageBatch(*map(np.concatenate, zip(*batches, strict=True)))
        np.testing.assert_array_equal(joined.indices, range(12))
        np.testing.assert_array_equal(joined.labels, images.labels)
        for image, index in zip(joined.images, joined.indices, strict=True):
            np.testing.assert_array_equal(image, images[index][0])

    def test_train_batches_follow_epoch_batches(self):
        images = self.open()
        order = data.epoch_batches(12, 5, seed=3, epoch=1)

        for batch, indices in zip(
            images.train_batches(5, seed=3, epoch=1), order, strict=True
        ):
            np.testing.assert_array_equal(batch.indices, indices)
            np.testing.assert_array_equal(batch.labels, images.labels[indices])
            for image, index in zip(batch.images, indices, strict=True):
                expected, _ = images.augmented(index, seed=3, epoch=1)
                np.testing.assert_array_equal(image, expected)

    def test_resumed_epoch_has_the_same_pixels(self):
        images = self.open()
        images.num_threads = 1
        whole = list(images.train_batches(3, seed=3, epoch=1))

        images.num_threads = 4
        rest = images.train_batches(3, seed=3, epoch=1, start_step=2)

        for actual, expected in zip(rest, whole[2:], strict=True):
            np.testing.assert_array_equal(actual.images, expected.images)

    def test_views_depend_on_seed_epoch_and_index(self):
        # One photograph twice: only the position differs.
        folder = self.dir / "train" / "n01"
        (folder / "n01_1.JPEG").write_bytes((folder / "n01_0.JPEG").read_bytes())
        images = self.open()

        views = {
            images.augmented(index, seed=seed, epoch=epoch)[0].tobytes()
            for index, seed, epoch in itertools.product(range(2), range(3), range(3))
        }

        self.assertLen(views, 18)

    @parameterized.parameters(b"", b"\xff\xd8\xff\xe0 broken", None)
    def test_damaged_photograph_is_named(self, content):
        path = self.dir / "train" / "n02" / "n02_2.JPEG"
        path.write_bytes(path.read_bytes()[:-300] if content is None else content)
        images = self.open()

        with self.assertRaisesRegex(ValueError, f"{path} cannot be decoded"):
            images[6]
        batches = images.batches(4)
        next(batches)
        with self.assertRaisesRegex(ValueError, f"{path} cannot be decoded"):
            next(batches)

    def test_missing_split_is_named(self):
        # The labels of ImageNet's test set are secret: it is no split.
        (self.dir / "val").rename(self.dir / "test")

        with self.assertRaisesRegex(FileNotFoundError, "test split.*val or .*validat"):
            self.open("test")
        self.open("train")
        with self.assertRaisesRegex(FileNotFoundError, "dir=None"):
            self.open(dir=None)

    def test_validation_images_in_one_folder_are_explained(self):
        for folder in list((self.dir / "val").iterdir()):
            folder.rename(self.dir / folder.name)
        (self.dir / "val" / "ILSVRC2012_val_00000001.JPEG").touch()

        with self.assertRaisesRegex(
            ValueError, "no class folders, but 1 other.*sorted"
        ):
            self.open("test")

    def test_empty_class_folder_is_refused(self):
        (self.dir / "train" / "n04").mkdir()

        with self.assertRaisesRegex(ValueError, "n04 has no file.*unpacking"):
            self.open()

    def test_an_empty_class_folder_of_training_is_no_class_of_the_test_split(self):
        (self.dir / "train" / "n00").mkdir()

        with self.assertRaisesRegex(ValueError, "n00 has no file.*change the labels"):
            self.open("test")

    @parameterized.parameters(
        "lost+found", "__MACOSX", "@eaDir", "#recycle", "$RECYCLE.BIN", ".cache"
    )
    def test_foreign_folders_are_no_classes(self, name):
        expected = self.open("test")
        for split in ("train", "val"):
            # Thumbnails, say: the name decides, whether or not images are inside.
            (self.dir / split / name).mkdir()
            (self.dir / split / name / "thumb.jpg").touch()
            inside = self.dir / split / "n02" / name
            inside.mkdir()
            (inside / "thumb.jpg").touch()

        actual = self.open("test")

        self.assertEqual(actual.classes, expected.classes)
        self.assertEqual(actual.checksum, expected.checksum)
        np.testing.assert_array_equal(actual.labels, expected.labels)

    def test_a_folder_named_like_an_image_is_no_image(self):
        expected = self.open().checksum
        (self.dir / "train" / "n02" / "n02_9.JPEG").mkdir()

        self.assertEqual(self.open().checksum, expected)
        for file in (self.dir / "train" / "n02").glob("*_?.JPEG"):
            if file.is_file():
                file.unlink()
        with self.assertRaisesRegex(ValueError, "n02 has no file.*not searched"):
            self.open()

    def test_a_link_that_leads_nowhere_keeps_its_place(self):
        expected = self.open()
        file = self.dir / "train" / "n02" / "n02_1.JPEG"
        file.unlink()
        file.symlink_to(self.dir / "gone.JPEG")

        actual = self.open()

        self.assertEqual(actual.checksum, expected.checksum)
        with self.assertRaisesRegex(FileNotFoundError, "n02_1.JPEG"):
            actual[5]

    @parameterized.parameters("a.bmp", "b.TIF", "c.webp")
    def test_images_that_are_not_read_are_not_left_out_in_silence(self, name):
        (self.dir / "train" / "n02" / name).touch()

        with self.assertRaisesRegex(ValueError, f"n02.{name} .*not read.*convert"):
            self.open()

    def test_class_that_was_never_trained_is_refused(self):
        (self.dir / "val" / "n02").rename(self.dir / "val" / "n09")

        with self.assertRaisesRegex(ValueError, "lacks, such as n09"):
            self.open("test")

    @parameterized.parameters(
        ({"split": "val"}, "split 'val'; expected one of train, test"),
        ({"image_size": 29}, "resize=28"),
    )
    def test_wrong_arguments_are_refused(self, kwargs, message):
        with self.assertRaisesRegex(ValueError, message):
            self.open(**kwargs)

    def test_batch_arguments_are_checked_at_once(self):
        with self.assertRaisesRegex(ValueError, "batch_size=13"):
            self.open().train_batches(13, seed=0, epoch=0)


class ImageNetTfdsTest(absltest.TestCase):
    def setUp(self):
        super().setUp()
        self.dir = pathlib.Path(self.enter_context(tempfile.TemporaryDirectory()))
        folder = self.dir / "imagenet2012" / "5.1.0"
        folder.mkdir(parents=True)
        (folder / "dataset_info.json").write_text("{}")

    def open(self, **kwargs):
        kwargs = {"dir": self.dir, "source": "tfds"} | kwargs
        return data.load("imagenet", "test", **kwargs)

    def test_gives_the_photographs_of_the_records(self):
        contents = [encoded(photograph(seed)) for seed in range(3)]
        records = [
            {"image": content, "label": np.int64(10 * i), "file_name": b"n%d.JPEG" % i}
            for i, content in enumerate(contents)
        ]
        with mock.patch.object(tfds_source, "open_sequence") as open_sequence:
            open_sequence.return_value = records
            images = self.open(image_size=24, resize=28)

        self.assertEqual(open_sequence.call_args.args[1], "validation")
        self.assertEqual((len(images), images.num_classes), (3, 1000))
        self.assertEqual(images.file_name(2), "n2.JPEG")
        (batch,) = images.batches(4)
        np.testing.assert_array_equal(batch.labels, [0, 10, 20])
        for content, image in zip(contents, batch.images, strict=True):
            expected = photographs.resize_and_crop(
                photographs.decode(content, ""), 28, 24
            )
            np.testing.assert_array_equal(image, expected)

    def test_format_without_random_access_is_refused(self):
        for info in self.dir.glob("*/*/dataset_info.json"):
            info.write_text('{"fileFormat": "tfrecord"}')

        with self.assertRaisesRegex(ValueError, "from start to end.*array_record"):
            self.open()

    def test_unprepared_says_what_to_run(self):
        with self.assertRaisesRegex(FileNotFoundError, "download_and_prepare"):
            self.open(dir=self.dir / "elsewhere")


class PhotographsTest(parameterized.TestCase):
    @parameterized.parameters("L", "RGB", "CMYK", "P", "RGBA", "LA", "1")
    def test_every_usual_mode_becomes_rgb(self, mode):
        picture = photograph(0).convert(mode)
        file_format = "JPEG" if mode in ("L", "RGB", "CMYK") else "PNG"

        actual = np.array(photographs.decode(encoded(picture, file_format), "x"))

        self.assertEqual(actual.shape, (40, 60, 3))
        expected = np.array(picture.convert("RGB"), int)
        self.assertLess(np.abs(actual - expected).mean(), 3)  # JPEG's error.

    @parameterized.product(
        mode=("L", "RGB", "CMYK"),
        options=({}, {"progressive": True}, {"restart_marker_blocks": 1}),
    )
    def test_an_end_mark_before_the_end_is_seen(self, mode, options):
        gray = Image.new("RGB", (60, 40), (128,) * 3)  # As decoders fill up.
        for picture in (photograph(0, 64, 96), gray):
            whole = encoded(picture.convert(mode), **options)
            photographs.decode(whole, "x")
        content = encoded(photograph(0, 64, 96).convert(mode), **options)
        cut = content[: len(content) * 4 // 5]
        for damaged in (cut + b"\xff\xd9", cut + b"\xff\xd9" + content[len(cut) :]):
            with self.assertRaisesRegex(ValueError, "x cannot be decoded"):
                photographs.decode(damaged, "x")
        # A thumbnail has marks of its own, and what comes after the image is none.
        about = b"\xff\xe1" + (len(whole) + 2).to_bytes(2, "big") + whole
        kept = content[:2] + about + content[2:] + whole
        photographs.decode(kept, "x")

    def test_sixteen_bits_are_refused_rather_than_cut_off(self):
        deep = Image.fromarray(np.full((5, 5), 60_000, np.uint16))

        with self.assertRaisesRegex(ValueError, "x cannot be decoded: mode I;16"):
            photographs.decode(encoded(deep, "PNG"), "x")

    def test_without_resizing_the_view_is_the_central_square(self):
        picture = photograph(0, height=30, width=50)

        actual = photographs.resize_and_crop(picture, resize=30, size=20)

        np.testing.assert_array_equal(actual, np.array(picture)[5:25, 15:35])

    @parameterized.parameters((30, 50), (50, 30), (7, 9), (333, 500), (28, 28))
    def test_short_side_is_resized_and_the_centre_kept(self, height, width):
        # Colour is position, so that the view tells where it was cut.
        rows, columns = np.mgrid[0:height, 0:width]
        pixels = np.stack([255 * rows / height, 255 * columns / width, 0 * rows], -1)
        picture = Image.fromarray(pixels.astype(np.uint8))

        view = photographs.resize_and_crop(picture, resize=28, size=24)

        self.assertEqual(view.shape, (24, 24, 3))
        middle = view[11:13, 11:13, :2].mean((0, 1))
        np.testing.assert_allclose(middle, 127.5, atol=24)
        extent = [
            view[-1, 12, 0] - int(view[0, 12, 0]),
            view[12, -1, 1] - int(view[12, 0, 1]),
        ]
        short = min(height, width)
        expected = np.array([short / height, short / width]) * 255 * 24 / 28
        np.testing.assert_allclose(extent, expected, atol=24)

    @parameterized.parameters((40, 60), (5, 3), (1, 1), (1, 300), (300, 1), (100, 20))
    def test_random_part_lies_inside_and_has_the_stated_size(self, height, width):
        rng = np.random.default_rng(0)
        for _ in range(200):
            left, top, right, bottom = photographs._random_box(
                (width, height), rng, 0.08
            )
            self.assertTrue(0 <= left < right <= width and 0 <= top < bottom <= height)
            if min(height, width) >= 20:
                area = (right - left) * (bottom - top)
                self.assertGreater(area, 0.07 * height * width)
                ratio = (right - left) / (bottom - top)
                self.assertBetween(ratio, 0.65, 1.55)

    def test_half_of_the_views_are_mirrored(self):
        # Brightness grows from left to right.
        pixels = np.broadcast_to(np.arange(0, 240, 4, np.uint8)[:, None], (40, 60, 3))
        rng = np.random.default_rng(0)

        views = [
            photographs.random_resized_crop(Image.fromarray(pixels), 16, rng)
            for _ in range(400)
        ]

        mirrored = [view[0, 0, 0] > view[0, -1, 0] for view in views]
        self.assertBetween(np.mean(mirrored), 0.4, 0.6)

    def test_missing_package_names_the_extra(self):
        self.enter_context(mock.patch.dict(sys.modules, {"PIL": None}))

        with self.assertRaisesRegex(ImportError, r"wsjax\[data\]"):
            photographs.decode(b"", "x")


class ReadGroupsTest(parameterized.TestCase):
    def test_order_does_not_depend_on_speed(self):
        def read(key):
            time.sleep(0.01 * (key % 3 == 0))
            return -key

        groups = [np.arange(5), np.arange(5, 6), np.arange(6, 11)]

        actual = list(prefetch.read_groups(read, groups, num_threads=4, ahead=2))

        self.assertEqual(actual, [[-key for key in group] for group in groups])
        self.assertEmpty(list(prefetch.read_groups(read, [], num_threads=4, ahead=2)))

    def test_reads_only_so_far_ahead_and_ends_its_threads(self):
        seen, before = [], set(threading.enumerate())

        def read(index):
            seen.append(index)
            return str(index)

        groups = np.arange(300).reshape(100, 3)
        results = prefetch.read_groups(read, groups, num_threads=2, ahead=3)

        self.assertEqual(next(results), ["0", "1", "2"])
        self.wait_until(lambda: len(seen) >= 12)
        time.sleep(0.1)
        self.assertLen(seen, 12)
        self.assertNotEmpty(set(threading.enumerate()) - before)
        results.close()
        self.wait_until(lambda: not set(threading.enumerate()) - before)
        self.assertLen(seen, 12)

    def test_a_failure_is_raised_in_the_place_of_its_group(self):
        def read(index):
            if index == 4:
                raise ValueError("item 4 is damaged")
            return index

        groups = [np.arange(3), np.arange(3, 6)]
        results = prefetch.read_groups(read, groups, num_threads=2, ahead=2)

        self.assertEqual(next(results), [0, 1, 2])
        with self.assertRaisesRegex(ValueError, "^item 4 is damaged$"):
            next(results)

    def test_missing_package_names_the_extra(self):
        self.enter_context(mock.patch.dict(sys.modules, {"grain": None}))

        with self.assertRaisesRegex(ImportError, r"wsjax\[data\]"):
            next(prefetch.read_groups(str, [np.arange(1)], num_threads=1, ahead=1))

    def wait_until(self, condition):
        for _ in range(200):
            if condition():
                return
            time.sleep(0.05)
        self.fail("nothing happened for ten seconds")


if __name__ == "__main__":
    absltest.main()
