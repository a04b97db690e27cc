"""Tests of benchmarks/wall.py: its search equals solving for every pair."""

import contextlib
import io
import pathlib
import runpy
import sys
import tempfile
from unittest import mock

import numpy as np
from absl.testing import absltest, parameterized

from wsjax import data, transport
from wsjax.data.dataset import make_dataset
from wsjax.runs import rows

SCRIPT = pathlib.Path(__file__).parents[1] / "benchmarks" / "wall.py"
wall = runpy.run_path(str(SCRIPT))
ROUNDING = 1e-9


def random_set(seed, number, shape=(5, 4, 1)):
    """Dim and bright images with black pixels, in three classes."""
    rng = np.random.default_rng(seed)
    images = rng.integers(1, 256, (number, *shape))
    images[rng.uniform(size=images.shape) < 0.6] = 0
    images[::3] //= 4
    images[:, 1, 1] = 9  # None is all black.
    labels = rng.integers(0, 3, number)
    return make_dataset(images.astype(np.uint8), labels, 3, 255)


def all_distances(image, others, metric):
    mass, masses = (x / x.sum((-3, -2, -1), keepdims=True) for x in (image, others))
    return np.array([transport.exact_distance(mass, m, metric) for m in masses])


class SearchTest(parameterized.TestCase):
    @parameterized.product(metric=("l1", "l2"), shape=((5, 4, 1), (3, 9, 1)))
    def test_bounds_do_not_exceed_the_distance(self, metric, shape):
        train, test = random_set(0, 12, shape), random_set(1, 3, shape)
        search = wall["Search"](train.images, train.labels, metric)
        for image in test.images:
            mass = image.ravel() / image.sum()
            distances = all_distances(image, train.images, metric)

            bounds = {"margins": search.margin_bounds(mass)}
            for name in ("COARSE", "FINE"):
                bounds[name] = search.dual_bounds(mass, np.arange(12), wall[name])

            for name, bound in bounds.items():
                self.assertEqual(bound.shape, (12,))
                self.assertTrue((bound <= distances + ROUNDING).all(), name)
            # And they are worth having.
            self.assertTrue((bounds["margins"] > 0.3 * distances).all())
            self.assertTrue((bounds["FINE"] > 0.9 * distances).all())

    @parameterized.parameters("l1", "l2")
    def test_any_prices_give_a_bound(self, metric):
        train, test = random_set(2, 4), random_set(3, 1)
        search = wall["Search"](train.images, train.labels, metric)
        mass = test.images[0].ravel() / test.images[0].sum()
        distances = all_distances(test.images[0], train.images, metric)
        for seed in range(20):
            prices = np.random.default_rng(seed).normal(0, 2, mass.size)
            for index, distance in enumerate(distances):
                excess = mass - search.masses([index])[0]
                value = wall["_dual_value"](search._distance, excess, prices)
                self.assertLessEqual(value, distance + ROUNDING)

    def test_bounds_are_exact_where_they_have_to_be(self):
        """A dot that moves by (3, 1): no pair of margins proves more than its norm."""
        images = np.zeros((2, 5, 4, 1), np.uint8)
        images[0, 0, 0], images[1, 3, 1] = 9, 200
        mass = images[0].ravel() / images[0].sum()
        for metric, distance in (("l1", 4.0), ("l2", np.sqrt(10))):
            search = wall["Search"](images, np.arange(2), metric)

            np.testing.assert_allclose(search.margin_bounds(mass), [0, distance])
            dual = search.dual_bounds(mass, np.arange(2), wall["COARSE"])
            np.testing.assert_allclose(dual, [0, distance])

    @parameterized.product(metric=("l1", "l2"), guesses=(1, 4))
    def test_the_nearest_is_that_of_solving_for_all(self, metric, guesses):
        train, test = random_set(4, 40), random_set(5, 6)
        search = wall["Search"](train.images, train.labels, metric)
        with mock.patch.dict(search.nearest.__globals__, GUESSES=guesses, BATCH=3):
            for image, label in zip(test.images, test.labels):
                distances = all_distances(image, train.images, metric)
                distances[train.labels == label] = np.inf

                nearest, distance = search.nearest(image, label)

                self.assertAlmostEqual(distance, distances.min(), delta=ROUNDING)
                self.assertAlmostEqual(distances[nearest], distance, delta=ROUNDING)
        # Nobody would need the search otherwise.
        self.assertLess(search.num_exact, 6 * 10)

    def test_an_image_that_is_also_in_another_class_is_at_distance_zero(self):
        train = random_set(6, 9)
        search = wall["Search"](train.images, train.labels, "l2")

        nearest, distance = search.nearest(train.images[4], train.labels[4] + 1)

        self.assertEqual((nearest, distance), (4, 0.0))


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
