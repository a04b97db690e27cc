"""Tests of the way from a config's `data` block to images, also of a new data set."""

import pathlib
import sys
import tempfile
from unittest import mock

import numpy as np
import tiny_runs
from absl import flags
from absl.testing import absltest, parameterized

from wsjax import data
from wsjax.runs import config as configs
from wsjax.runs.examples import Examples
from wsjax.runs.rows import read_rows
from wsjax.scripts import certify, train

# All that the author of a data set writes: this file, and one line of the registry.
TOY = '''
"""Bright rows: the upper half (0) or the lower half (1)."""

import numpy as np

from wsjax.data.dataset import make_dataset


def load(split, options):
    rng = np.random.default_rng(split == "test")
    labels = rng.permutation(np.arange(48) % 2)
    images = rng.integers(0, 60, (48, 8, 6, 1), dtype=np.uint8)
    for image, label in zip(images, labels):
        image[4 * label : 4 * label + 4] += 150
    return make_dataset(images, labels, num_classes=2, scale=255.0)
'''


class RecipeTest(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        self.dir = pathlib.Path(self.enter_context(tempfile.TemporaryDirectory()))

    def test_a_data_set_is_a_file_and_a_line_of_the_registry(self):
        (self.dir / "toy_of_this_test.py").write_text(TOY)
        self.enter_context(mock.patch.object(sys, "path", [str(self.dir), *sys.path]))
        self.addCleanup(sys.modules.pop, "toy_of_this_test", None)
        import toy_of_this_test

        line = {"toy": toy_of_this_test.load}
        self.enter_context(mock.patch.dict(data.DATA_SETS, line))

        rows = self.train_and_certify({"name": "toy", "limit": 2})

        self.assertEqual(rows.ints("idx").tolist(), [0, 1])
        labels = data.load("toy", "test").labels
        np.testing.assert_array_equal(rows.ints("label"), labels[:2])
        np.testing.assert_array_equal(rows.ints("predict"), labels[:2])
        self.assertGreater(rows.floats("radius").min(), 0)

    def train_and_certify(self, block):
        """Runs both scripts with a config; rows of the second."""
        config = tiny_runs.load_config(tiny_runs.write_config(self.dir))
        config.data = block
        config.model = {"name": "mlp", "widths": (8,)}
        config.train.evaluate_every = config.train.checkpoint_every = 3
        workdir = self.dir / "run"
        workdir.mkdir()
        flags.FLAGS.mark_as_parsed()
        for script in (train, certify):
            script.main(configs.resolve(config), workdir)
        return read_rows(workdir / "certificates.tsv")


class ExamplesTest(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        self.dir = pathlib.Path(self.enter_context(tempfile.TemporaryDirectory()))
        rng = np.random.default_rng(0)
        self.images = rng.integers(0, 256, (5, 4, 3, 2), dtype=np.uint8)
        self.labels = np.array([0, 1, 2, 1, 1])
        for split in ("train", "test"):
            np.savez(self.dir / f"{split}.npz", images=self.images, labels=self.labels)

    def open(self, split="test", **block):
        return Examples(
            self.block(**{"name": "npz", "dir": str(self.dir)} | block), split
        )

    def block(self, **block):
        (self.dir / "config").mkdir(exist_ok=True)
        config = tiny_runs.load_config(tiny_runs.write_config(self.dir / "config"))
        config.data = block
        return configs.resolve(config).data

    def test_images_are_floating_point_with_their_labels(self):
        examples = self.open()

        self.assertLen(examples, 5)
        self.assertEqual((examples.name, examples.num_classes), ("npz", 3))
        self.assertEqual(examples.image_shape, (4, 3, 2))
        self.assertEqual(
            examples.checksum, data.load("npz", "test", dir=self.dir).checksum
        )
        for index in range(5):
            for image, label in (examples[index], examples.checked(index)):
                self.assertEqual(image.dtype, np.float32)
                np.testing.assert_allclose(image, self.images[index] / 255, rtol=1e-6)
                self.assertEqual(label, self.labels[index])

    def test_an_image_is_decoded_once(self):
        examples = self.open()
        read = []

        class Counted:
            scale = 255.0

            def __getitem__(self, index):
                read.append(index)
                return self.held[index]

        counted = Counted()
        counted.held, examples.data = examples.data, counted

        examples.checked(3)

        self.assertEqual(read, [3])

    def test_what_cannot_be_certified_is_refused_by_name(self):
        self.images[2] = 0
        np.savez(self.dir / "test.npz", images=self.images, labels=self.labels)
        examples = self.open()

        examples.checked(1)
        with self.assertRaisesRegex(ValueError, "^Test image 2 of npz: .*mass"):
            examples.checked(2)
        self.assertEqual(examples[2][1], 2)

    def test_train_limit_takes_the_first_images_of_training_alone(self):
        train, test = (self.open(split, train_limit=3) for split in ("train", "test"))

        np.testing.assert_array_equal(train.training_images(), self.images[:3])
        self.assertEqual((len(train), train.num_classes), (3, 3))
        self.assertEqual(train.checksum, self.open("train").checksum)
        self.assertLen(test, 5)
        with self.assertRaisesRegex(configs.ConfigError, "train_limit=-1"):
            self.open("train", train_limit=-1)

    def test_a_stream_is_read_through_the_same_interface(self):
        from PIL import Image

        for split in ("train", "val"):
            for name in ("a", "b"):
                (self.dir / split / name).mkdir(parents=True)
                for number in range(2):
                    pixels = np.full((9, 12, 3), 100 * number + 50, np.uint8)
                    path = self.dir / split / name / f"{number}.png"
                    Image.fromarray(pixels).save(path)
        sizes = {"name": "imagenet", "image_size": 6, "resize": 8}

        examples = self.open(**sizes)

        self.assertLen(examples, 4)
        self.assertEqual(examples.image_shape, (6, 6, 3))
        image, label = examples.checked(3)
        np.testing.assert_allclose(image, np.full((6, 6, 3), 150 / 255), rtol=1e-6)
        self.assertEqual(label, 1)
        with self.assertRaisesRegex(ValueError, "imagenet does not fit into memory"):
            examples.training_images()
        with self.assertRaisesRegex(ValueError, "train_limit=3 means nothing to imag"):
            self.open("train", train_limit=3, **sizes)
        with self.assertRaisesRegex(ValueError, "source='hub'.*'files', 'tfds'"):
            self.open(source="hub", **sizes)

    def test_an_unknown_name_lists_the_known_ones(self):
        with self.assertRaisesRegex(ValueError, "'cats'.*digits', .*npz', 'folder"):
            self.open(name="cats")

    def test_every_option_is_a_setting(self):
        block = self.block(name="npz")
        self.assertContainsSubset(
            set(vars(data.Options("npz"))) - {"verify"}, vars(block)
        )
        for name in ("source", "image_size", "resize"):
            self.assertEqual(
                getattr(data.Options("npz"), name), getattr(block, name), name
            )


class ChosenTest(parameterized.TestCase):
    @parameterized.parameters(
        ((1, 0, 0), range(10)),
        ((3, 0, 0), [0, 3, 6, 9]),
        ((3, 2, 0), [2, 5, 8]),
        ((3, 2, 2), [2, 5]),
        ((1, 9, 5), [9]),
    )
    def test_every_stride_th_from_start_at_most_limit(self, numbers, expected):
        block = dict(zip(("stride", "start", "limit"), numbers))
        chosen = configs.DataBlock(name="digits", **block).chosen(10)
        self.assertEqual(list(chosen), list(expected))

    @parameterized.parameters(("start", 10, 9), ("stride", 11, 10))
    def test_refuses_what_chooses_no_image_or_one_alone(self, name, value, most):
        with self.assertRaisesRegex(
            configs.ConfigError, f"{name}={value} is more than {most}: there are 10"
        ):
            configs.DataBlock(name="digits", **{name: value}).chosen(10)


if __name__ == "__main__":
    absltest.main()
