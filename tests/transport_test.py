"""Tests of wsjax.transport."""

import os
import sys
import warnings
from unittest import mock

import chex
import numpy as np
import oracles
from absl.testing import absltest, parameterized

from wsjax import transport
from wsjax.transport import distance_bounds, exact_distance, exact_flow

SHAPES = {
    "gray": (5, 4, 1),
    "colour": (3, 4, 3),
    "one_row": (1, 7, 2),
    "one_column": (6, 1, 1),
}
EACH_SHAPE = parameterized.named_parameters(*SHAPES.items())
EACH_CASE = parameterized.named_parameters(
    (f"{name}_{metric}", shape, metric)
    for name, shape in SHAPES.items()
    for metric in ("l1", "l2")
)


def random_pair(seed, shape, unit=1.0):
    """Two images of equal mass per channel that are black in different places."""
    rng = np.random.default_rng(seed)
    a, b = rng.uniform(0.1, 1.0, size=(2, *shape)) * (rng.uniform(size=shape) < 0.7)
    b = np.roll(b, 1, axis=(0, 1))
    a[0, 0] = b[0, -1] = 0.5
    return unit * a, unit * b * a.sum((0, 1)) / b.sum((0, 1))


def dot(shape, row, column, channel=0):
    image = np.zeros(shape)
    image[row, column, channel] = 1.0
    return image


def without_pot():
    return mock.patch.object(transport, "_network_simplex", lambda: None)


class ExactDistanceTest(chex.TestCase):
    @EACH_CASE
    def test_equals_a_linear_program_over_all_pairs_of_pixels(self, shape, metric):
        a, b = random_pair(0, shape, unit=3.0)

        actual = exact_distance(a, b, metric)

        expected = oracles.wasserstein(a / a.sum(), b / a.sum(), metric)
        self.assertGreater(expected, 0.1)
        self.assertAlmostEqual(actual, expected, places=9)

    @parameterized.parameters(("l1", 7.0), ("l2", 5.0))
    def test_a_dot_travels_the_distance_of_its_pixels(self, metric, expected):
        a, b = dot((6, 7, 1), 1, 5), dot((6, 7, 1), 4, 1)

        self.assertAlmostEqual(exact_distance(a, b, metric), expected, places=9)

    @parameterized.parameters("l1", "l2")
    def test_counts_the_moved_share_of_the_mass_of_all_channels(self, metric):
        shape = (4, 5, 2)
        rest = 2.0 * dot(shape, 0, 0) + 1.0 * dot(shape, 3, 1, channel=1)
        a, b = rest + dot(shape, 1, 4, channel=1), rest + dot(shape, 1, 2, channel=1)

        actual = exact_distance(a, b, metric)

        self.assertAlmostEqual(actual, 2 * 1 / 4, places=9)

    @EACH_CASE
    def test_is_zero_between_equal_images_only(self, shape, metric):
        a, b = random_pair(1, shape)

        self.assertEqual(exact_distance(a, a, metric), 0.0)
        self.assertGreater(exact_distance(a, b, metric), 0.0)

    @parameterized.parameters("l1", "l2")
    def test_a_pixel_alone_is_at_distance_zero_from_itself(self, metric):
        self.assertEqual(exact_distance(*np.ones((2, 1, 1, 3)), metric), 0.0)

    @parameterized.parameters("l1", "l2")
    def test_uses_far_pairs_where_near_ones_will_not_do(self, metric):
        # From the left half to the right half: the nearest pixels are not enough.
        a, b = np.zeros((2, 7, 12, 1))
        a[:, :6], b[:, 6:] = np.random.default_rng(2).uniform(size=(2, 7, 6, 1)) ** 4
        a, b = a / a.sum(), b / b.sum()

        actual = exact_distance(a, b, metric)

        expected = oracles.wasserstein(a, b, metric)
        self.assertAlmostEqual(actual, expected, places=6)
        with without_pot():
            for bound in distance_bounds(a, b, metric):
                self.assertAlmostEqual(bound, actual, places=8)

    @parameterized.parameters("l1", "l2")
    def test_one_row_has_a_closed_form(self, metric):
        a, b = random_pair(3, (1, 9, 1))

        expected = np.abs(np.cumsum(a - b)).sum() / a.sum()

        self.assertAlmostEqual(exact_distance(a, b, metric), expected, places=9)

    def test_tiny_and_huge_units_are_the_same(self):
        a, b = random_pair(4, (3, 5, 1))

        expected = exact_distance(a, b, "l2")

        for unit in (1e-300, 1e-12, 1e12, 1e307):
            actual = exact_distance(unit * a, unit * b, "l2")
            self.assertAlmostEqual(actual, expected, places=9)

    def test_small_differences_keep_their_digits(self):
        a = np.full((4, 5, 1), 1.0)
        step = 1e-7 * (dot(a.shape, 0, 0) - dot(a.shape, 3, 4))

        for metric, length in (("l1", 7.0), ("l2", 5.0)):
            actual = exact_distance(a, a + step, metric) / (1e-7 * length / a.sum())
            self.assertAlmostEqual(actual, 1.0, places=6)

    @parameterized.parameters("l1", "l2")
    def test_a_last_digit_of_float32_is_next_to_nothing(self, metric):
        image = np.random.default_rng(0).random((28, 28, 1)).astype(np.float32)
        for pixels in ([3], [3, 400]):
            other = image.copy().ravel()
            for pixel, towards in zip(pixels, (1, 0)):
                other[pixel] = np.nextafter(other[pixel], np.float32(towards))
            distance = exact_distance(image, other.reshape(image.shape), metric)
            self.assertBetween(distance, 0, 1e-7)

    def test_forgives_the_rounding_of_float32(self):
        a, b = random_pair(5, (28, 28, 1))
        expected = exact_distance(a, b)

        for unit in (1.0, 1 / 255, 1 / 3):
            actual = exact_distance(np.float32(unit * a), np.float32(unit * b))
            self.assertAlmostEqual(actual, expected, places=4)

    @parameterized.parameters("l1", "l2")
    def test_restores_equal_mass_within_the_tolerance(self, metric):
        a, _ = random_pair(9, (5, 4, 2))

        for factor in (1 - 8e-6, 1 + 8e-6):
            self.assertLess(exact_distance(a, factor * a, metric), 1e-12)

    def test_a_channel_that_is_black_in_both_images_is_fine(self):
        a, b = random_pair(6, (3, 4, 2))
        a[..., 1] = b[..., 1] = 0.0

        actual = exact_distance(a, b, "l2")

        expected = exact_distance(a[..., :1], b[..., :1], "l2")
        self.assertAlmostEqual(actual, expected, places=9)

    @parameterized.named_parameters(
        ("shapes", lambda a: (a, a[:-1]), "different shapes"),
        ("no_channel_axis", lambda a: (a[..., 0], a[..., 0]), r"\[H, W, C\]"),
        ("nan", lambda a: (a, np.where(a > 0.9, np.nan, a)), "b has NaN"),
        ("negative", lambda a: (a - 0.3, a), "a has negative pixels down to -0.197"),
        ("all_black", lambda a: (a, 0 * a), "b is all black"),
        ("tiny", lambda a: (a, 1e-300 * a), "Channel . has .* rescale"),
        ("huge", lambda a: (1e-300 * a, 1e300 * a), "Channel . has .* rescale"),
        ("mass", lambda a: (a, 1.01 * a), "Channel . has .* rescale"),
        ("channels", lambda a: (a, a[..., ::-1] + 0), "Channel . has .* rescale"),
    )
    def test_refuses(self, spoil, message):
        a = np.random.default_rng(7).uniform(0.1, 1.0, size=(4, 5, 2))

        for function in (exact_distance, exact_flow, distance_bounds):
            with self.assertRaisesRegex(ValueError, message):
                function(*spoil(a))

    def test_refuses_other_metrics(self):
        a, b = random_pair(8, (3, 4, 1))
        for function in (exact_distance, distance_bounds):
            with self.assertRaisesRegex(ValueError, "'l3' is not one of"):
                function(a, b, "l3")


class ExactPlansTest(chex.TestCase):
    @EACH_SHAPE
    def test_the_flow_carries_one_image_to_the_other(self, shape):
        a, b = random_pair(10, shape, unit=2.0)

        flow = exact_flow(a, b)

        moved = oracles.carry_each_parcel(a / a.sum(), flow, wrap=False)
        np.testing.assert_allclose(moved, b / a.sum(), atol=1e-12)
        cost = sum(np.abs(edges).sum() for edges in flow)
        self.assertAlmostEqual(cost, exact_distance(a, b, "l1"), places=12)


class NetworkSimplexTest(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        if transport._network_simplex() is None:
            self.skipTest("POT is not installed.")

    @parameterized.parameters("l1", "l2")
    def test_both_solvers_agree_with_a_dense_linear_program(self, metric):
        shapes = [(3, 4, 1), (4, 3, 1), (1, 6, 1), (2, 3, 3), (5, 1, 2)]
        for seed in range(100):
            a, b = random_pair(seed, shapes[seed % len(shapes)], unit=2.0)

            by_simplex = exact_distance(a, b, metric)
            with without_pot():
                by_highs = exact_distance(a, b, metric)
                lower, upper = distance_bounds(a, b, metric)

            expected = oracles.wasserstein(a / a.sum(), b / a.sum(), metric)
            self.assertAlmostEqual(by_simplex, expected, delta=1e-9)
            self.assertAlmostEqual(by_highs, expected, delta=1e-9)
            self.assertBetween(expected, lower - 1e-9, upper + 1e-9)
            self.assertBetween(upper - lower, -1e-14, 1e-8)
            lower, upper = distance_bounds(a, b, metric)
            self.assertBetween(expected, lower - 1e-9, upper + 1e-9)
            self.assertBetween(upper - lower, -1e-14, 1e-12)

    @parameterized.parameters("l1", "l2")
    def test_the_simplex_is_what_answers(self, metric):
        a, b = random_pair(40, (5, 6, 2))
        with (
            mock.patch.object(transport, "_by_column_generation") as plan,
            mock.patch.object(transport, "_cheapest_flow") as flow,
        ):
            self.assertGreater(exact_distance(a, b, metric), 0.0)
        plan.assert_not_called()
        flow.assert_not_called()

    def test_many_pairs_go_to_the_flow_solver(self):
        a, b = random_pair(41, (4, 5, 1))
        expected = exact_distance(a, b)
        with (
            mock.patch.object(transport, "_MANY_PAIRS", 10),
            mock.patch.object(transport, "_bounds") as plan,
        ):
            self.assertAlmostEqual(exact_distance(a, b), expected, places=9)
        plan.assert_not_called()

    @parameterized.named_parameters(
        ("dearer_plan", lambda p, u, v: (np.outer(p.sum(1), p.sum(0)), u, v)),
        ("mass_lost", lambda p, u, v: (p * (1 - 1e-9), u, v)),
        ("mass_misplaced", lambda p, u, v: (np.roll(p, 1, axis=0), u, v)),
        ("prices_too_low", lambda p, u, v: (p, u - 1e-6, v)),
        ("price_undercut", lambda p, u, v: (p, u + 1e-6 * (u == u[0]), v)),
        ("not_a_number", lambda p, u, v: (p, u + np.nan, v)),
        ("nothing", lambda p, u, v: (0 * p, 0 * u, 0 * v)),
    )
    def test_an_answer_without_proof_is_not_used(self, spoil):
        a, b = random_pair(42, (5, 4, 1))
        expected = oracles.wasserstein(a / a.sum(), b / a.sum(), "l2")
        emd = transport._network_simplex()

        def spoiled(*arguments, **options):
            plan, log = emd(*arguments, **options)
            plan, u, v = spoil(plan, log["u"], log["v"])
            return plan, {"u": u, "v": v}

        with (
            mock.patch.object(transport, "_network_simplex", lambda: spoiled),
            mock.patch.object(
                transport,
                "_by_column_generation",
                wraps=transport._by_column_generation,
            ) as fallback,
        ):
            actual = exact_distance(a, b, "l2")

        fallback.assert_called_once()
        self.assertAlmostEqual(actual, expected, places=9)

    def test_a_simplex_that_stops_early_is_not_used_and_does_not_warn(self):
        a, b = random_pair(43, (6, 7, 1))
        emd = transport._network_simplex()

        def early(*arguments, **options):
            return emd(*arguments, **{**options, "numItermax": 1})

        with (
            mock.patch.object(transport, "_network_simplex", lambda: early),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("error")
            actual = exact_distance(a, b, "l2")

        self.assertAlmostEqual(actual, exact_distance(a, b, "l2"), places=9)

    def test_leaves_the_environment_as_it_was(self):
        before = dict(os.environ)
        transport._network_simplex.__wrapped__()
        self.assertEqual(dict(os.environ), before)

    def test_pot_may_be_absent(self):
        with mock.patch.dict(sys.modules, {"ot": None, "ot.lp": None}):
            self.assertIsNone(transport._network_simplex.__wrapped__())


if __name__ == "__main__":
    absltest.main()
