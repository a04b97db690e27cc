"""Tests of benchmarks/wall.py."""

import contextlib
import io
import pathlib
import runpy
import sys
import tempfile
from unittest import mock

import numpy as np
from absl.testing import absltest

from wsjax import data
from wsjax.data.dataset import make_dataset
from wsjax.runs import rows

SCRIPT = pathlib.Path(__file__).parents[1] / "benchmarks" / "wall.py"


def random_set(seed, number, shape=(5, 4, 1)):
    """Dim and bright images with black pixels, in three classes."""
    rng = np.random.default_rng(seed)
    images = rng.integers(1, 256, (number, *shape))
    images[rng.uniform(size=images.shape) < 0.6] = 0
    images[::3] //= 4
    images[:, 1, 1] = 9  # None is all black.
    labels = rng.integers(0, 3, number)
    return make_dataset(images.astype(np.uint8), labels, 3, 255)


class ScriptTest(absltest.TestCase):
    def run_script(self, out, *arguments):
        sets = {"train": random_set(7, 30), "test": random_set(8, 8)}
        argv = [str(SCRIPT), "--data=none", f"--out={out}", *arguments]
        printed = io.StringIO()
        with (
            mock.patch.object(data, "load", lambda name, split, dir: sets[split]),
            mock.patch.object(sys, "argv", argv),
            contextlib.redirect_stdout(printed),
        ):
            runpy.run_path(str(SCRIPT), run_name="__main__")
        return printed.getvalue()

    def test_rows_are_kept_and_the_table_covers_what_was_asked_for(self):
        out = pathlib.Path(self.enter_context(tempfile.TemporaryDirectory()), "new")
        self.run_script(out, "--stride=4")
        path = out / "mnist-l2.tsv"
        before = path.read_text()

        printed = self.run_script(out, "--stride=2", "--limit=3")

        after = rows.read_rows(path)
        self.assertTrue(path.read_text().startswith(before))
        self.assertEqual(after.ints("idx").tolist(), [0, 2, 4])
        self.assertTrue((after.ints("label") != after.ints("nearest_label")).all())
        median = np.median(after.floats("distance")) / 2
        self.assertIn(f"{median:.4f}", printed)


if __name__ == "__main__":
    absltest.main()
