"""Tests of wsjax.attacks.capacity."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import oracles
from absl.testing import absltest, parameterized
from scipy import optimize

from wsjax.attacks import capacity
from wsjax.attacks.capacity import CapacityAttack, capacity_attack
from wsjax.attacks.sinkhorn import Duals, sinkhorn_projection
from wsjax.attacks.windows import Grid
from wsjax.transport import exact_distance

EACH_CASE = parameterized.named_parameters(
    ("gray_l2", (4, 5, 1), "l2", 5), ("colour_l1", (3, 4, 2), "l1", 3)
)
SHAPE = (4, 5, 1)
# A lambda that fits images of twenty pixels; small so that few rounds are needed.
SETTINGS = CapacityAttack(max_steps=60, batch_size=4, regularization=300.0, slack=0.0)

_project = jax.jit(
    sinkhorn_projection,
    static_argnames=("kernel_size", "ground_metric", "log_domain"),
)


def project(center, point, epsilon, duals=None, **options):
    """One compilation per shape serves cold and warm starts."""
    if duals is None:
        duals = Duals(np.zeros(center.shape, np.float32), np.float32(1))
    defaults = {"tolerance": 1e-7, "mass_tolerance": 1e-5, "slack": 0.0}
    return _project(
        np.float32(center),
        np.float32(point),
        np.float32(epsilon),
        duals=duals,
        **{"max_iterations": 3000, "capacity": 1.0, **defaults, **options},
    )


def random_case(seed, shape):
    """An image in [0, 1] with black and white pixels, and a point beyond the range."""
    rng = np.random.default_rng(seed)
    center = rng.uniform(-0.4, 1.4, size=shape).clip(0, 1)
    return center, center + 0.05 * center.sum() * rng.normal(size=shape)


def pairs(shape, metric, kernel_size):
    """Indices of pixels `from, to` within a window of each other, and distances."""
    reach = kernel_size // 2
    pixels = list(np.ndindex(shape))
    found = [
        (i, j, oracles.pixel_distance(a[:2], b[:2], metric))
        for i, a in enumerate(pixels)
        for j, b in enumerate(pixels)
        if a[2] == b[2] and max(abs(a[0] - b[0]), abs(a[1] - b[1])) <= reach
    ]
    start, end, cost = zip(*found)
    return np.array(start), np.array(end), np.array(cost)


def entropic_optimum(center, point, epsilon, metric, kernel_size, regularization):
    """The problem by a general-purpose solver on its dual, with phi of its own."""
    mass, size = center.sum(), center.size
    x, y, cap = center.ravel() / mass, point.ravel() / mass, 1 / mass
    start, end, cost = pairs(center.shape, metric, kernel_size)
    inked = x > 0
    start, end, cost = (array[inked[start]] for array in (start, end, cost))

    def loss(variables):
        a, b, phi = variables[:-1].reshape(3, size)
        psi, pull = variables[-1], b + phi
        plan = np.exp(a[start] + b[end] - psi * cost)
        dual = a @ x + pull @ y - pull @ pull / (2 * regularization)
        dual -= phi.sum() * cap + psi * epsilon + plan.sum()
        z = y - pull / regularization
        slope_a = x - np.bincount(start, plan, size)
        slope_b = z - np.bincount(end, plan, size)
        slope = np.r_[slope_a, slope_b, z - cap, plan @ cost - epsilon]
        return -dual, -slope

    guess = np.r_[np.full(2 * size, -2.0), np.zeros(size), 1.0]
    guess[:size] = np.where(inked, guess[:size], 0)
    free, positive = (None, None), (0, None)
    answer = optimize.minimize(
        loss,
        guess,
        jac=True,
        bounds=[free] * 2 * size + [positive] * (size + 1),
        method="L-BFGS-B",
        options={"maxiter": 20_000, "maxfun": 40_000, "ftol": 0, "gtol": 1e-10},
    )
    a, b, _ = answer.x[:-1].reshape(3, size)
    plan = np.exp(a[start] + b[end] - answer.x[-1] * cost)
    return mass * np.bincount(end, plan, size).reshape(center.shape)


def nearest_image(center, point, epsilon, metric, kernel_size):
    """The Euclidean projection, by least squares over plans with constraints.

    The constraints enter as equations of weight 10^4: their error is about 10^-8.
    """
    mass, size = center.sum(), center.size
    start, end, cost = pairs(center.shape, metric, kernel_size)
    number, weight = np.arange(len(cost)), 1e4
    matrix = np.zeros((3 * size + 1, len(cost) + size + 1))
    matrix[end, number] = 1
    matrix[size + start, number] = weight
    matrix[2 * size + end, number] = weight
    room = len(cost) + np.arange(size)  # What is left of a pixel's capacity,
    matrix[2 * size + np.arange(size), room] = weight
    matrix[-1, : len(cost)] = weight * cost
    matrix[-1, -1] = weight  # and of the budget.
    x, y = center.ravel() / mass, point.ravel() / mass
    ones = np.full(size, weight / mass)
    wanted = np.r_[y, weight * x, ones, weight * epsilon]
    plan, _ = optimize.nnls(matrix, wanted, maxiter=100 * len(cost))
    return mass * np.bincount(end, plan[: len(cost)], size).reshape(center.shape)


class GridTest(chex.TestCase):
    @parameterized.parameters(((3, 4, 2), 3), ((2, 3, 1), 5), ((1, 1, 1), 3))
    def test_sees_what_lies_at_each_offset(self, shape, kernel_size):
        image = np.random.default_rng(0).normal(size=shape).astype(np.float32)
        grid = Grid(shape, kernel_size)

        seen = grid.picture(jnp.stack(grid.seen(grid.flat(image), 9)))

        reach = kernel_size // 2
        expected = np.full((kernel_size, kernel_size, *shape), 9.0)
        for i, j, r, s, c in np.ndindex(expected.shape):
            row, column = r + i - reach, s + j - reach
            if 0 <= row < shape[0] and 0 <= column < shape[1]:
                expected[i, j, r, s, c] = image[row, column, c]
        # Between the rows lies what `flat` put there, which was zero.
        actual = np.asarray(seen).reshape(expected.shape)
        beyond = (expected == 9) & (actual == 0)
        chex.assert_trees_all_equal(np.where(beyond, 9, actual), np.float32(expected))

    def test_sums_over_the_window(self):
        rng = np.random.default_rng(1)
        grid, shape = Grid((3, 4, 2), 3), (3, 4, 2)
        a, b = rng.normal(scale=8, size=(2, *shape))
        weights = rng.normal(size=(3, 3))

        start, end, _ = pairs(shape, "l2", 3)
        pixel = np.array(list(np.ndindex(shape)))
        weight = weights[tuple((pixel[end] - pixel[start])[:, :2].T + 1)]
        terms = np.exp(a.ravel()[start] + b.ravel()[end] + weight)
        sums = np.bincount(start, np.exp(b.ravel()[end] + weight))
        moves = (pixel[end] - pixel[start])[:, :2] + 1
        moved = np.bincount(moves @ [3, 1], terms).reshape(3, 3)
        flat_a, flat_b = (
            grid.flat(np.float32(a), -1e30),
            grid.flat(np.float32(b), -1e30),
        )
        log_weights = jnp.float32(weights)

        for log_domain in (True, False):
            actual = grid.picture(grid.log_sums(flat_b, log_weights, log_domain))
            np.testing.assert_allclose(actual.ravel(), np.log(sums), rtol=1e-5)
            actual = grid.mass_by_offset(flat_a, flat_b, log_weights, log_domain)
            np.testing.assert_allclose(actual, moved, rtol=1e-4)


class CapacityProjectionTest(chex.TestCase):
    @EACH_CASE
    def test_solves_the_entropic_problem(self, shape, metric, kernel_size):
        for seed, epsilon in ((0, 0.05), (1, 0.3)):
            center, point = random_case(seed, shape)
            expected = entropic_optimum(
                center, point, epsilon, metric, kernel_size, 100.0
            )

            actual = project(
                center,
                point,
                epsilon,
                regularization=100.0,
                ground_metric=metric,
                kernel_size=kernel_size,
            )

            self.assertGreater(expected.max(), 0.999)  # The capacity binds.
            np.testing.assert_allclose(actual.image, expected, atol=3e-3)
            self.assertLess(actual.excess, 2e-5)

    @EACH_CASE
    def test_comes_close_to_the_nearest_image(self, shape, metric, kernel_size):
        center, point = random_case(5, shape)
        expected = nearest_image(center, point, 0.2, metric, kernel_size)
        options = {"ground_metric": metric, "kernel_size": kernel_size}

        unbound, actual = (
            project(
                center, point, 0.2, regularization=2e3, capacity=capacity, **options
            )
            for capacity in (1e3, 1.0)
        )

        self.assertGreater(unbound.image.max(), 1.1)
        np.testing.assert_allclose(actual.image, expected, atol=0.02)
        far = np.square(expected - point).sum()
        self.assertBetween(np.square(actual.image - point).sum() / far, 0.999, 1.003)

    @EACH_CASE
    def test_claims_no_less_than_the_distance(self, shape, metric, kernel_size):
        options = {"ground_metric": metric, "kernel_size": kernel_size}
        for seed in range(2):
            center, point = random_case(seed, shape)
            for rounds in (1, 200):
                for epsilon, slack in ((0.01, 0.0), (0.2, 0.0), (0.05, 0.01)):
                    found = project(
                        center,
                        point,
                        epsilon,
                        slack=slack,
                        max_iterations=rounds,
                        **options,
                    )
                    distance = exact_distance(center, found.image, metric)
                    self.assertLessEqual(distance, found.cost + 1e-5)
                    self.assertLessEqual(found.cost, (epsilon + slack) * (1 + 1e-5))
                    above = (found.image - 1).clip(0).sum() / center.sum()
                    self.assertAlmostEqual(above, found.excess, places=5)
                    np.testing.assert_allclose(
                        found.image.sum((0, 1)), center.sum((0, 1)), rtol=1e-5
                    )

    def test_sums_and_logarithms_agree(self):
        center, point = random_case(6, SHAPE)
        point = center + 0.3 * (point - center)
        options = {"ground_metric": "l2", "kernel_size": 5, "regularization": 100.0}
        images = []
        for cap in (1.0, 1e3, None):
            both = [
                project(center, point, 0.1, capacity=cap, log_domain=logs, **options)
                for logs in (True, False)
            ]
            np.testing.assert_allclose(both[0].image, both[1].image, atol=1e-3)
            images.append(both[0].image)
        # A capacity that does not bind is none; the other binds.
        np.testing.assert_allclose(images[1], images[2], atol=1e-3)
        self.assertGreater(np.abs(images[0] - images[2]).max(), 0.05)

    def test_stops_when_little_is_above_the_capacity(self):
        center, point = random_case(3, SHAPE)
        options = {"ground_metric": "l2", "kernel_size": 5, "tolerance": 1.0}

        loose, tight = (
            project(center, point, 0.3, mass_tolerance=most, **options)
            for most in (0.01, 1e-5)
        )

        self.assertLess(loose.iterations, tight.iterations)
        self.assertLess(tight.iterations, 3000)
        self.assertLessEqual(loose.excess, 0.02)
        self.assertLessEqual(tight.excess, 2e-5)

    def test_starts_warm(self):
        center, point = random_case(5, SHAPE)
        options = {"ground_metric": "l2", "kernel_size": 5, "regularization": 100.0}
        cold = project(center, point, 0.1, **options)

        again = project(center, point, 0.1, duals=cold.duals, **options)

        np.testing.assert_allclose(again.image, cold.image, atol=2e-3)
        self.assertLess(again.iterations, cold.iterations / 3)

    @parameterized.named_parameters(
        ("dark", np.full(SHAPE, 1e-6)),
        ("one_pixel", np.eye(1, 20, 7).reshape(SHAPE)),
        ("one_dark_pixel", 1e-9 * np.eye(1, 20, 7).reshape(SHAPE)),
        ("full", np.ones(SHAPE)),
        ("full_but_one", 1 - np.eye(1, 20, 7).reshape(SHAPE)),
    )
    def test_is_a_valid_image_in_extremes(self, center):
        point = np.random.default_rng(0).normal(size=SHAPE)
        duals = None
        for scale in (0.06 * center.sum(), 1e3, -1e3, 1e6, -1e6, 0.0):
            found = project(
                center,
                center + scale * point,
                0.1,
                duals,
                ground_metric="l2",
                kernel_size=5,
                max_iterations=300,
            )

            chex.assert_tree_all_finite(found)
            self.assertGreaterEqual(found.image.min(), 0)
            self.assertLess(exact_distance(center, found.image, "l2"), 0.1002)
            above = (found.image - 1).clip(0).sum() / center.sum()
            self.assertAlmostEqual(above, found.excess, places=5)
            if duals is None:
                self.assertLess(found.excess, 0.01)
            # Those of the opposite point: as far from the answer as can be.
            duals = found.duals

    def test_full_images_stay(self):
        point = np.random.default_rng(0).normal(size=SHAPE)
        options = {"ground_metric": "l2", "kernel_size": 5}

        found = project(np.ones(SHAPE), point, 0.1, **options)

        np.testing.assert_allclose(found.image, 1, atol=1e-2)

    @parameterized.parameters(
        ({"epsilon": 0.0}, "epsilon=0.0 is not a positive"),
        ({"capacity": -1}, "capacity=-1 is not a positive"),
        ({"slack": -0.1}, "slack=-0.1 is negative"),
        ({"kernel_size": 4}, "kernel_size=4 is not an odd"),
        ({"ground_metric": "l3"}, "ground_metric='l3' is not one of"),
        ({"center": np.ones((2, 2))}, "must be"),
        ({"center": np.ones(SHAPE, int)}, "convert it to floats"),
    )
    def test_refuses(self, arguments, message):
        image = np.ones(SHAPE)
        usual = {"center": image, "image": image, "epsilon": 0.1}
        with self.assertRaisesRegex(ValueError, message):
            sinkhorn_projection(**{"capacity": 1.0, **usual, **arguments})


def linear_logits(weights, trap, images):
    """Two classes, told apart by the sign of `sum(weights * image)`.

    Not numbers where the sum is below `trap`.
    """
    score = jnp.tensordot(images, weights, 3)
    score = jnp.where(score < trap, jnp.nan, score)
    return jnp.stack([-score, score], axis=-1)


def linear(weights, trap=-np.inf):
    return jax.tree_util.Partial(linear_logits, jnp.float32(weights), jnp.float32(trap))


def linear_case(seed, count, shape=SHAPE):
    """Bright images of class 1, and a linear classifier that transport misleads."""
    rng = np.random.default_rng(seed)
    images = rng.uniform(0.0, 1.1, size=(count, *shape)).clip(0, 1)
    weights = rng.normal(size=shape)
    weights -= weights.mean((0, 1))
    excess = np.tensordot(images, weights, 3) - rng.uniform(0.1, 1.0, size=count)
    images -= np.multiply.outer(excess, weights / (weights**2).sum())
    images = images.clip(0, 1).astype(np.float32)
    labels = (np.tensordot(images, weights, 3) > 0).astype(np.int32)
    return images, labels, weights, linear(weights)


def smallest_radius(image, label, weights, metric, kernel_size, cap=1.0):
    """Cheapest transport of a misclassified image in range, by linear programming."""
    start, end, cost = pairs(image.shape, metric, kernel_size)
    size, number = image.size, np.arange(len(cost))
    rows, columns = np.zeros((2, size, len(cost)))
    rows[start, number] = columns[end, number] = 1
    sign = 1 if label else -1
    answer = optimize.linprog(
        cost,
        A_eq=rows,
        b_eq=image.ravel(),
        A_ub=np.r_[columns, [sign * weights.ravel()[end]]],
        b_ub=np.r_[np.full(size, cap), 0],
    )
    assert answer.status == 0, answer.message
    return answer.fun / image.sum()


class CapacityAttackTest(chex.TestCase):
    def test_comes_near_the_smallest_radius_of_a_linear_classifier(self):
        images, labels, weights, classify = linear_case(0, 6)
        settings = dataclasses.replace(
            SETTINGS, regularization=1000.0, mass_tolerance=1e-3
        )

        result = capacity_attack(images, labels, classify, settings=settings)

        self.assertTrue(result.success.all())
        self.assertTrue(result.verified.all())
        self.assertGreater(np.ptp(result.steps), 0)
        answers = np.argmax(classify(result.adversarial), -1)
        self.assertTrue((answers != labels).all())
        self.assertBetween(result.adversarial.min(), 0, 1)
        self.assertLessEqual(result.adversarial.max(), 1)
        np.testing.assert_allclose(result.epsilon, 0.01 * result.steps, rtol=1e-6)
        for image, label, radius in zip(images, labels, result.epsilon):
            least = smallest_radius(image, label, weights, "l2", 5)
            self.assertBetween(radius, least * 0.99, least * 1.1 + 0.02)

    def test_projections_go_on_from_the_step_before(self):
        images, labels, weights, classify = linear_case(0, 6)
        # Alone, a single round would leave images far inside the ball.
        settings = dataclasses.replace(
            SETTINGS, regularization=1000.0, projection_iterations=1
        )

        result = capacity_attack(images, labels, classify, settings=settings)

        for image, label, radius in zip(images, labels, result.epsilon):
            least = smallest_radius(image, label, weights, "l2", 5)
            self.assertLess(radius, least * 1.5 + 0.05)

    def test_stays_in_its_ball(self):
        images, labels, _, classify = linear_case(1, 4)
        settings = dataclasses.replace(SETTINGS, mass_tolerance=1e-4, epsilon_every=3)

        result = capacity_attack(images, labels, classify, settings=settings)

        self.assertTrue(result.success.all())
        grown = 0.01 * ((result.steps - 1) // 3)
        np.testing.assert_allclose(result.epsilon, 0.01 + grown, rtol=1e-6)
        self.assertGreater(result.steps.max(), 3)
        for image, moved, radius in zip(images, result.adversarial, result.epsilon):
            restored = moved * (image.sum() / moved.sum())
            self.assertLess(np.abs(restored - moved).sum(), 1e-3 * image.sum())
            distance = exact_distance(image, restored, "l2")
            self.assertLess(distance, radius + 1e-3)

    def test_other_images_and_batches_change_nothing(self):
        images, labels, _, classify = linear_case(2, 7)
        whole = capacity_attack(images, labels, classify, settings=SETTINGS)
        compiled = capacity._step._cache_size()

        part = capacity_attack(images[3:5], labels[3:5], classify, settings=SETTINGS)
        settings = dataclasses.replace(SETTINGS, max_steps=59, epsilon=0.0101)
        capacity_attack(images[:1], labels[:1], classify, settings=settings)

        self.assertEqual(capacity._step._cache_size(), compiled)
        np.testing.assert_array_equal(part.steps, whole.steps[3:5])
        np.testing.assert_allclose(part.adversarial, whole.adversarial[3:5], atol=1e-5)

    def test_colour_keeps_the_mass_of_channels(self):
        shape = (3, 4, 3)
        images, labels, _, classify = linear_case(3, 3, shape)
        settings = dataclasses.replace(
            SETTINGS, ground_metric="l1", kernel_size=3, mass_tolerance=1e-3
        )

        result = capacity_attack(images, labels, classify, settings=settings)

        self.assertTrue(result.success.all())
        self.assertGreater(np.abs(result.adversarial - images).max(), 0.01)
        masses = [x.sum((1, 2)) for x in (images, result.adversarial)]
        np.testing.assert_allclose(*masses, rtol=0.01)

    def test_gives_up_in_the_end_and_leaves_wrong_images_alone(self):
        images, labels, _, classify = linear_case(4, 5)
        labels[1] = 1 - labels[1]
        settings = dataclasses.replace(
            SETTINGS, max_steps=2, epsilon=1e-5, epsilon_growth=0.0
        )

        result = capacity_attack(images, labels, classify, settings=settings)

        np.testing.assert_array_equal(result.success, [False, True] + [False] * 3)
        np.testing.assert_array_equal(result.epsilon, [np.inf, 0] + [np.inf] * 3)
        np.testing.assert_array_equal(result.steps, [2, 0, 2, 2, 2])
        np.testing.assert_array_equal(result.adversarial[1], images[1])
        self.assertGreater(np.abs(result.adversarial - images)[0].max(), 0)

    def test_a_classifier_that_returns_nan_is_named(self):
        images, labels, weights, _ = linear_case(5, 2)
        scores = np.tensordot(images, weights, 3)
        self.assertTrue((labels == 1).all())

        # At once, and as soon as the attack has lowered a score.
        for trap, broken in ((scores.max() + 1, r"\[0, 1\]"), (scores.max(), "")):
            with self.assertRaisesRegex(ValueError, "NaN or inf on images " + broken):
                classify = linear(weights, trap - 1e-4)
                rows = slice(None) if broken else scores.argmax() + np.arange(1)
                capacity_attack(images[rows], labels[rows], classify, settings=SETTINGS)

    @parameterized.parameters(
        ({"step_size": 0.0}, "step_size=0.0 is not a positive"),
        ({"epsilon": -1.0}, "epsilon=-1.0 is not a positive"),
        ({"epsilon_growth": -0.1}, "epsilon_growth=-0.1 is negative"),
        ({"epsilon_every": 0}, "epsilon_every=0 is not a whole"),
        ({"max_steps": 1.5}, "max_steps=1.5 is not a whole"),
        ({"slack": np.inf}, "slack=inf is negative or not finite"),
        ({"ground_metric": "l3"}, "ground_metric='l3' is not one of"),
        ({"kernel_size": 6}, "kernel_size=6 is not an odd"),
    )
    def test_settings_refuse(self, arguments, message):
        with self.assertRaisesRegex(ValueError, message):
            CapacityAttack(**arguments)

    def test_defaults_are_those_of_the_authors(self):
        hu = CapacityAttack()
        self.assertEqual(hu.ground_metric, "l2")
        self.assertEqual(
            (hu.epsilon, hu.epsilon_growth, hu.max_steps), (0.01,) * 2 + (200,)
        )


if __name__ == "__main__":
    absltest.main()
