"""Tests of wsjax.fast_transport."""

import functools
import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import oracles
from absl.testing import absltest, parameterized

from wsjax import fast_transport
from wsjax.fast_transport import STEPS, bounded_distance, bounds_of_excess
from wsjax.transport import exact_distance

SHAPES = {"gray": (5, 7, 1), "colour": (6, 3, 3), "one_row": (1, 7, 1)}
EACH_CASE = parameterized.named_parameters(
    (f"{name}_{metric}", shape, metric)
    for name, shape in SHAPES.items()
    for metric in ("l1", "l2")
)
EACH_METRIC = parameterized.parameters("l1", "l2")

# All batches have four pairs, so that little is compiled.
PAIRS = 4


def random_pairs(seed, shape):
    """Pairs of equal mass per channel: two noises, and each with a few changes."""
    rng = np.random.default_rng(seed)
    a, b = rng.uniform(0.1, 1, (2, PAIRS, *shape)) * (rng.uniform(size=shape) < 0.7)
    a[:, 0, 0] = b[:, -1, -1] = 0.5
    b[2:] = a[2:] * rng.uniform(0.5, 2, (PAIRS - 2, *shape))
    return a, b * (a.sum((1, 2)) / b.sum((1, 2)))[:, None, None]


@functools.cache
def solved(shape, metric):
    a, b = random_pairs(0, shape)
    return a, b, bounded_distance(a, b, metric)


def dots(shape, *pixels):
    """One image for each pixel, black elsewhere, with the whole mass there."""
    images = np.zeros((len(pixels), *shape))
    for image, (row, column) in zip(images, pixels):
        image[row, column] = 1.0
    return images


def carry_by_steps(image, flow, metric):
    """Moves every entry of an "l1" or "l2" flow; also what that costs."""
    moved, cost = np.array(image, np.float64), 0.0
    for (down, right), edges in zip(STEPS[metric], flow, strict=True):
        for (i, j, c), mass in np.ndenumerate(edges):
            start = (i, j - min(right, 0), c)
            end = (start[0] + down, start[1] + right, c)
            moved[start] -= mass
            moved[end] += mass
            cost += abs(mass) * oracles.pixel_distance(start, end, metric)
    return moved, cost


class BoundedDistanceTest(parameterized.TestCase):
    @EACH_CASE
    def test_brackets_the_exact_distance(self, shape, metric):
        a, b, bounds = solved(shape, metric)

        for n in range(PAIRS):
            exact = exact_distance(a[n], b[n], metric)
            self.assertGreater(exact, 0.02)
            self.assertLessEqual(bounds.lower[n], exact * (1 + 1e-12))
            self.assertGreaterEqual(bounds.upper[n], exact * (1 - 1e-12))
        np.testing.assert_allclose(
            bounds.gap, (bounds.upper - bounds.lower) / bounds.upper, atol=1e-12
        )
        self.assertLess(bounds.gap.max(), 0.01)
        self.assertLess(bounds.iterations.max(), 1000)

    @EACH_CASE
    def test_the_flow_carries_one_image_to_the_other_at_the_upper_bound(
        self, shape, metric
    ):
        a, b, bounds = solved(shape, metric)

        for n in range(PAIRS):
            flow = [edges[n] for edges in bounds.flow]
            moved, cost = carry_by_steps(a[n] / a[n].sum(), flow, metric)
            np.testing.assert_allclose(moved, b[n] / a[n].sum(), atol=1e-14)
            self.assertAlmostEqual(cost, bounds.upper[n], places=12)

    @EACH_CASE
    def test_the_potential_is_1_lipschitz_and_meets_the_lower_bound(
        self, shape, metric
    ):
        a, b, bounds = solved(shape, metric)

        for n in range(PAIRS):
            potential = bounds.potential[n]
            slope, _, _ = oracles.steepest_pair(potential, metric)
            self.assertLessEqual(slope, 1 + 1e-12)
            value = (potential * (a[n] - b[n])).sum() / a[n].sum()
            self.assertAlmostEqual(value, bounds.lower[n], places=12)

    def test_flows_of_l1_are_flow_plans(self):
        a, b, bounds = solved(SHAPES["colour"], "l1")
        plan = (bounds.flow.vertical[1], bounds.flow.horizontal[1])
        moved = oracles.carry_each_parcel(a[1] / a[1].sum(), plan, wrap=False)
        np.testing.assert_allclose(moved, b[1] / a[1].sum(), atol=1e-14)

    @EACH_METRIC
    def test_mass_that_crosses_the_whole_image(self, metric):
        shape = SHAPES["gray"]
        a = dots(shape, (0, 0), (4, 0), (0, 3), (2, 6))
        b = dots(shape, (4, 6), (0, 6), (4, 3), (2, 0))

        bounds = bounded_distance(a, b, metric)

        exact = {"l1": [10, 10, 4, 6], "l2": [52**0.5, 52**0.5, 4, 6]}[metric]
        self.assertTrue((bounds.lower <= np.multiply(exact, 1 + 1e-12)).all())
        self.assertTrue((bounds.upper >= np.multiply(exact, 1 - 1e-12)).all())
        self.assertLess(bounds.gap.max(), 0.01)

    @EACH_METRIC
    def test_equal_images_are_at_distance_zero_whatever_the_others(self, metric):
        a, b = random_pairs(1, SHAPES["gray"])
        b[0], b[2] = a[0], a[2] * (1 + 1e-7)

        bounds = bounded_distance(a, b, metric)

        for value in (bounds.lower, bounds.upper, bounds.gap, bounds.iterations):
            np.testing.assert_array_equal(value[[0, 2]], 0)
        for array in jax.tree.leaves(bounds):
            self.assertTrue(np.isfinite(array).all())
        self.assertGreater(bounds.lower[[1, 3]].min(), 0.02)

    @EACH_METRIC
    def test_channels_may_be_black_or_equal(self, metric):
        a, b = random_pairs(2, SHAPES["colour"])
        a[..., 1] = b[..., 1] = 0.0
        a[..., 2] = b[..., 2]

        bounds = bounded_distance(a, b, metric)

        for n in range(PAIRS):
            exact = exact_distance(a[n], b[n], metric)
            self.assertLessEqual(bounds.lower[n], exact * (1 + 1e-12))
            self.assertGreaterEqual(bounds.upper[n], exact * (1 - 1e-12))
        self.assertLess(bounds.gap.max(), 0.01)

    @EACH_METRIC
    def test_brackets_however_early_it_stops_and_closes_in(self, metric):
        a, b = random_pairs(3, SHAPES["gray"])
        exact = [exact_distance(*pair, metric) for pair in zip(a, b)]

        gaps = []
        for iterations in (1, 40, 400):
            bounds = bounded_distance(
                a, b, metric, iterations=iterations, tolerance=0.0
            )
            self.assertTrue((bounds.lower <= np.multiply(exact, 1 + 1e-12)).all())
            self.assertTrue((bounds.upper >= np.multiply(exact, 1 - 1e-12)).all())
            worst = bounds.gap.argmax()
            self.assertGreaterEqual(bounds.iterations[worst], iterations)
            gaps.append(bounds.gap.max())
        self.assertGreater(gaps[0], gaps[1])
        # Longer steps would do better than 48 directions in "l2".
        self.assertLess(gaps[2], {"l1": 1e-4, "l2": 0.008}[metric])

    @EACH_METRIC
    def test_repairs_a_wrong_answer(self, metric):
        a, b, _ = solved(SHAPES["gray"], metric)
        excess = (a - b) / a.sum((1, 2, 3), keepdims=True)
        answer = fast_transport._solve_on_device(np.float32(excess), metric, 1000, 0.01)
        answer = jax.device_get(answer)
        rng = np.random.default_rng(4)
        answer = answer._replace(
            flow=[edges + rng.normal(0, 0.01, edges.shape) for edges in answer.flow],
            potential=np.float32(
                1.3 * answer.potential + rng.normal(0, 0.1, answer.potential.shape)
            ),
        )
        steepest = fast_transport._steepest(answer.potential)

        bounds = fast_transport._evaluate(excess, answer, steepest, metric)

        for n in range(PAIRS):
            exact = exact_distance(a[n], b[n], metric)
            self.assertBetween(bounds.lower[n], 0.5 * exact, exact)
            self.assertGreater(bounds.upper[n], exact)
            slope, _, _ = oracles.steepest_pair(bounds.potential[n], metric)
            self.assertAlmostEqual(slope, 1.0, places=5)
            self.assertLessEqual(slope, 1 + 1e-12)
            flow = [edges[n] for edges in bounds.flow]
            moved, cost = carry_by_steps(a[n] / a[n].sum(), flow, metric)
            np.testing.assert_allclose(moved, b[n] / a[n].sum(), atol=1e-14)
            self.assertAlmostEqual(cost, bounds.upper[n], places=12)

    def test_pairs_do_not_depend_on_their_batch_nor_on_the_unit(self):
        a, b, together = solved(SHAPES["gray"], "l1")

        # A block of two, and one that is filled up.
        apart = bounded_distance(1e12 * a[:3], 1e12 * b[:3], "l1", block=2)

        # The others may have had it go on for longer.
        self.assertTrue((apart.iterations <= together.iterations[:3]).all())
        self.assertLess(apart.gap.max(), 0.01)
        np.testing.assert_allclose(apart.upper, together.upper[:3], rtol=0.01)
        for array in jax.tree.leaves(apart):
            self.assertLen(array, 3)

    @EACH_METRIC
    def test_no_pairs_and_no_neighbours(self, metric):
        nothing = bounded_distance(*np.ones((2, 0, 5, 4, 2)), metric)
        self.assertEqual(nothing.upper.shape, (0,))
        self.assertEqual(nothing.flow[1].shape, (0, 5, 3, 2))

        alone = bounded_distance(*np.ones((2, 3, 1, 1, 2)), metric)
        np.testing.assert_array_equal(alone.upper, np.zeros(3))
        self.assertEqual(alone.flow[0].shape, (3, 0, 1, 2))

    @parameterized.named_parameters(
        ("mass", lambda a: (a, 1.01 * a), {}, "Pair 0 of 3: Channel . has .* rescale"),
        ("nan", lambda a: (a, np.where(a > 0.97, np.nan, a)), {}, "Pair .* b has NaN"),
        ("black", lambda a: (0 * a, a), {}, "Pair 0 of 3: .* all black"),
        ("shapes", lambda a: (a, a[:2]), {}, "two batches"),
        ("single", lambda a: (a[0], a[0]), {}, r"a\[None\]"),
        ("metric", lambda a: (a, a), {"ground_metric": "l3"}, "'l3' is not one of"),
        ("iterations", lambda a: (a, a), {"iterations": 0}, "iterations=0"),
        ("tolerance", lambda a: (a, a), {"tolerance": np.nan}, "tolerance=nan"),
    )
    def test_refuses(self, spoil, options, message):
        a = np.random.default_rng(5).uniform(0.1, 1.0, size=(3, 4, 5, 2))
        with self.assertRaisesRegex(ValueError, message):
            bounded_distance(*spoil(a), **options)

    def test_refuses_large_images_in_l2_alone(self):
        with self.assertRaisesRegex(ValueError, "64 x 65 pixels are too large"):
            bounds_of_excess(jnp.zeros((1, 64, 65, 1)), "l2")
        jax.eval_shape(bounds_of_excess, jnp.zeros((1, 64, 65, 1)))


class BoundsOfExcessTest(parameterized.TestCase):
    @parameterized.parameters(("colour", "l1"), ("one_row", "l2"))
    def test_agrees_with_the_evaluation_in_float64_under_jit(self, name, metric):
        a, b, expected = solved(SHAPES[name], metric)
        excess = jnp.float32((a - b) / a.sum((1, 2, 3), keepdims=True))

        actual = jax.jit(bounds_of_excess, static_argnums=1)(excess, metric)

        self.assertIsInstance(actual.lower, jax.Array)
        chex.assert_trees_all_close(
            jax.device_get(actual._replace(gap=0, iterations=0)),
            jax.tree.map(np.float32, expected._replace(gap=0, iterations=0)),
            atol=1e-5,
        )
        chex.assert_trees_all_equal(np.asarray(actual.iterations), expected.iterations)

    def test_envelopes_are_minima_over_all_pixels(self):
        rng = np.random.default_rng(6)
        for shape in ((4, 6), (5, 1)):
            prices = rng.normal(0, 2, shape)
            prices[rng.uniform(size=shape) < 0.4] = np.inf
            for metric, envelope in (
                ("l1", fast_transport._city_envelope),
                ("l2", fast_transport._round_envelope),
            ):
                expected = np.full(shape, np.inf)
                for x in np.ndindex(shape):
                    for y in np.ndindex(shape):
                        price = prices[y] + oracles.pixel_distance(x, y, metric)
                        expected[x] = min(expected[x], price)
                actual = envelope(jnp.float32(prices)[:, :, None])[:, :, 0]
                np.testing.assert_allclose(actual, expected, atol=1e-5)

    def test_directions_of_l2_overestimate_by_less_than_a_hundredth(self):
        angles = sorted(np.arctan2(*step) % np.pi for step in STEPS["l2"])
        widest = np.diff([*angles, angles[0] + np.pi]).max()
        self.assertAlmostEqual(1 / np.cos(widest / 2), 1.00755, places=5)
        # Neighbours span all whole displacements.
        by_angle = sorted(STEPS["l2"], key=lambda step: np.arctan2(*step) % np.pi)
        for one, other in itertools.pairwise(by_angle):
            self.assertEqual(abs(one[0] * other[1] - one[1] * other[0]), 1)


if __name__ == "__main__":
    absltest.main()
