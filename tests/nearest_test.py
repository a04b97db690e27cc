"""Tests of wsjax.nearest: it answers as if it had solved for every pair."""

import math
from unittest import mock

import numpy as np
from absl.testing import absltest, parameterized
from scipy.special import logsumexp

from wsjax import nearest, transport
from wsjax.nearest import Index
from wsjax.transport import exact_distance

ROUNDING = 1e-9
SHAPES = ((5, 4, 1), (3, 7, 1), (4, 3, 3), (1, 9, 1), (6, 1, 2))
EACH_CASE = parameterized.product(metric=("l1", "l2"), shape=SHAPES)
# Neighbours and softness.
MINIMA = ((1, 0.0), (3, math.inf), (4, 0.3), (2, 0.0))


def random_images(seed, number, shape=(5, 4, 1)):
    """Dim and bright images with black pixels, none of them all black."""
    rng = np.random.default_rng(seed)
    images = rng.integers(1, 256, (number, *shape))
    images[rng.uniform(size=images.shape) < 0.6] = 0
    images[::3] //= 4
    images[:, -1, -1] = 9
    return images.astype(np.uint8)


def random_labels(seed, number, classes=3):
    return np.random.default_rng(seed).permutation(np.arange(number) % classes)


def as_masses(image):
    return image / image.sum(dtype=float)


def with_masses_of(image, other):
    """`other`, each channel rescaled to the mass it has in `image`; None if black."""
    wanted, given = (x.sum((0, 1), dtype=float) for x in (image, other))
    if (given[wanted > 0] == 0).any():
        return None
    return other * np.where(wanted > 0, wanted / np.where(given > 0, given, 1), 0)


def all_distances(image, others, metric):
    moved = [with_masses_of(image, other) for other in others]
    return np.array(
        [np.inf if m is None else exact_distance(image, m, metric) for m in moved]
    )


def plain_scores(distances, labels, neighbours, softness, classes):
    scores = []
    for k in range(classes):
        few = np.sort(distances[labels == k])[:neighbours]
        if not len(few):
            scores.append(np.inf)
        elif softness == 0:
            scores.append(few[0])
        elif math.isinf(softness):
            scores.append(few.mean())
        else:
            scores.append(-softness * (logsumexp(-few / softness) - np.log(len(few))))
    return np.array(scores)


class ScoresTest(parameterized.TestCase):
    @EACH_CASE
    def test_equals_solving_for_every_pair(self, metric, shape):
        images, labels = random_images(0, 42, shape), random_labels(0, 42)
        index = Index(images, labels, metric)
        for image in random_images(1, 3, shape):
            distances = all_distances(image, images, metric)
            for neighbours, softness in MINIMA:
                expected = plain_scores(distances, labels, neighbours, softness, 3)

                with mock.patch.object(nearest, "_BATCH", 5):
                    found = index.scores(image, neighbours, softness)

                best, second, third = expected.argsort()
                two = [best, second]
                self.assertEqual(found.lower.argsort()[:2].tolist(), two)
                self.assertTrue((found.lower <= expected).all())
                self.assertTrue((found.upper >= expected).all())
                self.assertLess((found.upper - found.lower)[two].max(), ROUNDING)
                self.assertGreaterEqual(found.lower[third], found.lower[second])
                for k, number, distance in zip(two, found.nearest, found.distances):
                    self.assertEqual(labels[number], k)
                    self.assertAlmostEqual(
                        distance, distances[labels == k].min(), delta=ROUNDING
                    )
                    self.assertAlmostEqual(distances[number], distance, delta=ROUNDING)

    @parameterized.parameters("l1", "l2")
    def test_solves_for_few(self, metric):
        images = random_images(2, 200)
        index = Index(images, random_labels(2, 200), metric)
        total = sum(index.scores(image).num_exact for image in random_images(3, 5))
        self.assertBetween(total, 2 * 5, 10 * 5)

    @EACH_CASE
    def test_scores_change_by_no_more_than_the_distance(self, metric, shape):
        images, labels = random_images(4, 15, shape), random_labels(4, 15)
        index = Index(images, labels, metric)
        image = as_masses(random_images(5, 1, shape)[0])
        for seed in range(6):
            other = as_masses(random_images(10 + seed, 1, shape)[0])
            # Near and far.
            other = image + 0.4**seed * (with_masses_of(image, other) - image)
            distance = exact_distance(image, other, metric)
            for neighbours, softness in MINIMA:
                one, two = (
                    index.scores(x, neighbours, softness) for x in (image, other)
                )
                self.assertTrue((one.lower <= two.upper + distance).all())
                self.assertTrue((two.lower <= one.upper + distance).all())

    @parameterized.product(metric=("l1", "l2"), shape=SHAPES, which=(0, 1, 2, 3))
    def test_no_adversary_on_the_way_to_another_class_wins_within_the_radius(
        self, metric, shape, which
    ):
        images, labels = random_images(6, 15, shape), random_labels(6, 15)
        index, minimum = Index(images, labels, metric), MINIMA[which]
        for image in random_images(7, 2, shape):
            image = as_masses(image)
            found = index.scores(image, *minimum)
            best = found.lower.argmin()
            radius = (np.sort(found.lower)[1] - found.upper[best]) / 2
            self.assertGreater(radius, 0)
            target = with_masses_of(image, images[found.nearest[1]])
            flips = []
            for epsilon in radius * np.array([0.5, 0.99, 2, 3, 5]):
                way = epsilon / found.distances[1]
                moved = (1 - way) * image + way * target if way < 1 else target
                flips.append(index.scores(moved, *minimum).lower.argmin() != best)
            self.assertEqual(flips[:2], [False, False])

    @parameterized.parameters("l1", "l2")
    def test_the_radius_is_tight_for_an_image_of_the_index(self, metric):
        images = random_images(8, 2, (4, 3, 3))
        index = Index(images, np.array([0, 1]), metric)
        image, target = as_masses(images[0]), with_masses_of(*images) / images[0].sum()
        found = index.scores(image)
        self.assertEqual(found.distances[0], 0.0)
        radius = (found.lower[1] - found.upper[0]) / 2
        self.assertAlmostEqual(radius, exact_distance(image, target, metric) / 2)
        for factor, label in ((0.999, 0), (1.001, 1)):
            way = factor * radius / found.distances[1]
            moved = (1 - way) * image + way * target
            self.assertEqual(index.scores(moved).lower.argmin(), label)

    def test_units_do_not_matter(self):
        images, labels = random_images(9, 20, (4, 3, 3)), random_labels(9, 20)
        image = random_images(10, 1, (4, 3, 3))[0]
        expected = Index(images, labels, "l2").scores(image)
        for dtype, unit in ((np.float32, 1 / 256), (np.float64, 3.0), (np.int64, 7)):
            index = Index((images.astype(float) * unit).astype(dtype), labels, "l2")
            found = index.scores((image.astype(float) * unit).astype(dtype))
            np.testing.assert_array_equal(found.nearest, expected.nearest)
            np.testing.assert_allclose(found.distances, expected.distances, atol=1e-12)

    def test_classes_may_be_missing_and_need_not_be_reachable(self):
        images, labels = random_images(11, 12, (4, 3, 2)), np.arange(12) % 4
        labels[labels == 1] = 5
        images[labels == 2, ..., 1] = 0  # Nothing in the second channel.
        index = Index(images, labels, "l2")
        image = random_images(12, 1, (4, 3, 2))[0]

        found = index.scores(image, 2, 0.1, num_classes=7)

        self.assertEqual(found.lower.shape, (7,))
        self.assertEqual(np.flatnonzero(np.isfinite(found.lower)).tolist(), [0, 3, 5])
        self.assertTrue(np.isinf(found.upper[[1, 2, 4, 6]]).all())
        # Where the image has no mass there either, that does not matter.
        image[..., 1] = 0
        lower = index.scores(image, 2, 0.1).lower
        self.assertEqual(np.flatnonzero(np.isfinite(lower)).tolist(), [0, 2, 3, 5])

    def test_an_image_like_no_other(self):
        images = random_images(13, 4, (4, 3, 2))
        images[..., 1] = 0
        image = random_images(14, 1, (4, 3, 2))[0]
        found = Index(images, np.array([0, 0, 1, 1]), "l1").scores(image, 2, math.inf)
        self.assertTrue(np.isinf(found.lower).all())
        self.assertEqual((found.nearest.tolist(), found.num_exact), ([-1, -1], 0))

    def test_a_single_class_has_no_second(self):
        images = random_images(15, 5)
        found = Index(images, np.zeros(5, int), "l2").scores(images[3])
        self.assertEqual(found.nearest.tolist(), [3, -1])
        self.assertEqual(found.distances.tolist(), [0.0, np.inf])

    def test_equal_images_of_two_classes_leave_no_lead(self):
        images = random_images(16, 9)
        images[5] = images[4]
        found = Index(images, np.arange(9) % 3, "l2").scores(images[4])
        self.assertEqual(sorted(found.nearest.tolist()), [4, 5])
        self.assertEqual(found.distances.tolist(), [0.0, 0.0])
        self.assertLessEqual(np.sort(found.lower)[1], found.upper[found.lower.argmin()])

    def test_nothing_to_move(self):
        images = random_images(19, 2)
        for index, image in (
            (Index(images, np.arange(2), "l2"), images[1]),
            (Index(images[:, :1, :1] + 1, np.arange(2), "l1"), np.ones((1, 1, 1))),
        ):
            found = index.scores(image)
            self.assertEqual(found.distances[0], 0.0)
            self.assertEqual(found.distances[1] > 0, image.size > 1)

    def test_without_the_network_simplex(self):
        images, labels = random_images(17, 10), random_labels(17, 10)
        index, image = Index(images, labels, "l2"), random_images(18, 1)[0]
        expected = index.scores(image, 2, math.inf)
        with mock.patch.object(transport, "_network_simplex", lambda: None):
            found = index.scores(image, 2, math.inf)
        np.testing.assert_array_equal(found.nearest, expected.nearest)
        two = expected.lower.argsort()[:2]
        np.testing.assert_allclose(found.lower[two], expected.lower[two], atol=1e-8)
        self.assertTrue((found.lower[two] <= expected.upper[two]).all())
        self.assertTrue((found.upper[two] >= expected.lower[two]).all())


class NearestOtherTest(parameterized.TestCase):
    @parameterized.product(metric=("l1", "l2"), shape=SHAPES, batch=(2, 64))
    def test_is_that_of_solving_for_all(self, metric, shape, batch):
        images, labels = random_images(20, 40, shape), random_labels(20, 40)
        index = Index(images, labels, metric)
        for image, label in zip(random_images(21, 3, shape), range(3)):
            distances = all_distances(image, images, metric)
            distances[labels == label] = np.inf

            with mock.patch.object(nearest, "_BATCH", batch):
                number, distance = index.nearest_other(image, label)

            self.assertAlmostEqual(distance, distances.min(), delta=ROUNDING)
            self.assertAlmostEqual(distances[number], distance, delta=ROUNDING)

    def test_an_image_that_is_also_in_another_class_is_at_distance_zero(self):
        images, labels = random_images(22, 9), random_labels(22, 9)
        index = Index(images, labels, "l2")
        self.assertEqual(index.nearest_other(images[4], labels[4] + 1), (4, 0.0))

    def test_there_may_be_none(self):
        index = Index(random_images(23, 3), np.ones(3, int), "l2")
        self.assertEqual(index.nearest_other(random_images(24, 1)[0], 1), (-1, np.inf))


class BoundsTest(parameterized.TestCase):
    def bounds(self, index, image):
        """Of every kind, for gray images."""
        mass = as_masses(image).ravel()
        everything = np.arange(len(index.labels))
        yield "margins", index._margin_bounds(mass, 0)
        for number, schedule in enumerate(nearest._SCHEDULES):
            yield number, index._dual_bounds(mass, everything, 0, schedule)

    @parameterized.product(metric=("l1", "l2"), shape=((5, 4, 1), (3, 9, 1)))
    def test_do_not_exceed_the_distance_and_are_worth_having(self, metric, shape):
        images = random_images(30, 12, shape)
        index = Index(images, np.arange(12), metric)
        for image in random_images(31, 3, shape):
            distances = all_distances(image, images, metric)
            for (name, bound), share in zip(
                self.bounds(index, image), (0.3, 0.7, 0.9), strict=True
            ):
                self.assertTrue((bound <= distances + 1e-12).all(), name)
                self.assertTrue((bound > share * distances).all(), name)

    @parameterized.parameters("l1", "l2")
    def test_dots_are_exact_but_for_rounding_which_errs_downwards(self, metric):
        """No pair of margins, and no potential, proves more than a dot's way."""
        pixels = list(np.ndindex(9, 11))
        images = np.eye(len(pixels), dtype=np.uint8).reshape(-1, 9, 11, 1)
        index = Index(images, np.arange(len(pixels)), metric)
        steps = np.abs(np.array(pixels) - (2, 3))
        distances = steps.sum(1) if metric == "l1" else np.sqrt((steps**2).sum(1))
        for name, bound in self.bounds(index, images[pixels.index((2, 3))]):
            rounding = 1e-12 if name == "margins" else 0.0
            self.assertTrue((bound <= distances + rounding).all(), name)
            np.testing.assert_allclose(bound, distances, atol=1e-4, err_msg=str(name))

    @parameterized.parameters("l1", "l2")
    def test_any_prices_give_a_bound(self, metric):
        images = random_images(32, 4)
        index = Index(images, np.arange(4), metric)
        image = random_images(33, 1)[0]
        mass, distances = as_masses(image).ravel(), all_distances(image, images, metric)
        rng = np.random.default_rng(34)
        for spread in (0.1, 1.0, 3.0, np.nan):

            def prices(excess, distance, schedule, spread=spread):
                drawn = rng.normal(0, 1, excess.shape) * spread
                reach = 2 * distance.max()
                return np.nan_to_num(drawn).clip(-reach, reach).astype(np.float32)

            with mock.patch.object(nearest, "_sinkhorn_prices", prices):
                bounds = index._dual_bounds(mass, np.arange(4), 0, ())
            self.assertTrue((bounds <= distances).all())

    def test_prices_stay_within_reach_whatever_happens(self):
        excess = np.array([[1.0, 1.0], [-1.0, 0.0], [0.0, -1e-300], [0.0, -1.0]])
        distance = np.float32(np.abs(np.subtract.outer(*2 * [np.arange(4.0)])))
        for schedule in nearest._SCHEDULES:
            prices = nearest._sinkhorn_prices(excess, distance, schedule)
            self.assertTrue((np.abs(prices) <= 2 * distance.max()).all())


class SoftMinimumTest(absltest.TestCase):
    def test_is_between_the_minimum_and_the_mean(self):
        values = np.random.default_rng(40).uniform(0, 2, 6)
        softer = [nearest.soft_minimum(values, t) for t in (0, 1e-3, 0.1, 9, math.inf)]
        self.assertEqual(softer[0], values.min())
        self.assertEqual(softer[-1], values.mean())
        self.assertEqual(softer, sorted(softer))

    def test_infinite_values_count(self):
        values = np.array([0.3, np.inf])
        self.assertEqual(nearest.soft_minimum(values, 0.0), 0.3)
        self.assertEqual(nearest.soft_minimum(values, math.inf), np.inf)
        expected = 0.3 + 0.1 * math.log(2)
        self.assertAlmostEqual(nearest.soft_minimum(values, 0.1), expected)
        self.assertEqual(nearest.soft_minimum(values[1:], 0.1), np.inf)


def spoiled(images, value):
    images = images.astype(float)
    images[3, 2, 1] = value
    return images


class ErrorsTest(parameterized.TestCase):
    @parameterized.named_parameters(
        (
            "shape",
            lambda x, y: (x[0], y, "l2"),
            r"\(5, 4, 1\); expected \[N, H, W, C\]",
        ),
        ("none", lambda x, y: (x[:0], y[:0], "l2"), r"none of them zero"),
        (
            "black",
            lambda x, y: (x * (y != 2)[:, None, None, None], y, "l2"),
            "Image 2 is",
        ),
        ("nan", lambda x, y: (spoiled(x, np.nan), y, "l2"), "Image 3 has NaN"),
        ("infinite", lambda x, y: (spoiled(x, np.inf), y, "l2"), "Image 3 has NaN or"),
        ("negative", lambda x, y: (spoiled(x, -1), y, "l2"), "Image 3 .* lowest is -1"),
        ("labels", lambda x, y: (x, y[1:], "l2"), r"\(5,\) .* expected 6 integers"),
        ("fractions", lambda x, y: (x, y / 2, "l2"), "float64; expected 6 integers"),
        ("below", lambda x, y: (x, y - 1, "l2"), "Label -1 of image 0 is negative"),
        ("metric", lambda x, y: (x, y, "l3"), "'l3' is not one of"),
    )
    def test_an_index_refuses(self, arguments, message):
        with self.assertRaisesRegex(ValueError, message):
            Index(*arguments(random_images(50, 6), np.arange(6)))

    @parameterized.named_parameters(
        ("shape", lambda x: x[:-1], {}, r"\(4, 4, 1\), those of the index \(5, 4, 1\)"),
        ("black", lambda x: 0 * x, {}, "The image is all black"),
        ("tiny", lambda x: 1e-20 * x, {}, "The image has a mass outside"),
        ("huge", lambda x: 1e20 * x, {}, "The image has a mass outside"),
        ("nan", lambda x: np.where(x == 9, np.nan, x), {}, "The image has NaN"),
        ("negative", lambda x: -1.0 * x, {}, "The image has negative pixels"),
        ("classes", None, {"num_classes": 2}, "num_classes=2, but there is a label 2"),
        ("softness", None, {"softness": -1.0}, "softness=-1.0 is not a number of at"),
        ("softness_nan", None, {"softness": math.nan}, "softness=nan is not"),
        ("neighbours", None, {"neighbours": 0}, "neighbours=0 is not from 1 to 1"),
        ("many", None, {"neighbours": 2}, "from 1 to 1, .* of the smallest class, 2"),
    )
    def test_scores_refuse(self, spoil, options, message):
        images = random_images(51, 6)
        index = Index(images, np.array([0, 0, 0, 1, 1, 2]), "l2")
        image = spoil(images[1]) if spoil else images[1]
        with self.assertRaisesRegex(ValueError, message):
            index.scores(image, **options)
        if spoil:
            with self.assertRaisesRegex(ValueError, message):
                index.nearest_other(image, 0)


if __name__ == "__main__":
    absltest.main()
