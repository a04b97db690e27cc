"""Tests of wsjax.attacks.sinkhorn."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import oracles
from absl.testing import absltest, parameterized
from scipy import optimize, special

from wsjax.attacks import sinkhorn
from wsjax.attacks.sinkhorn import sinkhorn_projection
from wsjax.attacks.windows import window_cost
from wsjax.transport import exact_distance

EACH_CASE = parameterized.named_parameters(
    ("gray_l2", (4, 5, 1), "l2", 3),
    ("colour_l1", (3, 4, 2), "l1", 7),
)
EACH_DOMAIN = parameterized.named_parameters(("logs", True), ("sums", False))

# One compilation per shape and kind serves all tests.
project = jax.jit(
    sinkhorn_projection,
    static_argnames=("kernel_size", "ground_metric", "power", "log_domain"),
)


def random_case(seed, shape, size=0.03):
    """An image of mass one, partly black, and a point around it."""
    rng = np.random.default_rng(seed)
    center = rng.uniform(size=shape) * (rng.uniform(size=shape) < 0.7)
    center /= center.sum()
    return center, center + size * rng.normal(size=shape)


def allowed_pairs(center, metric, kernel_size):
    """Indices of pixels `from, to` within a window, and their distance."""
    reach = kernel_size // 2
    pixels = list(np.ndindex(center.shape))
    pairs = [
        (i, j, oracles.pixel_distance(a[:2], b[:2], metric))
        for i, a in enumerate(pixels)
        for j, b in enumerate(pixels)
        if a[2] == b[2] and max(abs(a[0] - b[0]), abs(a[1] - b[1])) <= reach
        if center[a] > 0
    ]
    start, end, cost = zip(*pairs)
    return np.array(start), np.array(end), np.array(cost)


def exact_projection(center, point, epsilon, metric, kernel_size):
    """Nearest point of the ball, by non-negative least squares over all plans.

    The constraints enter as equations of weight 10^4: their error is about 10^-8.
    """
    start, end, cost = allowed_pairs(center, metric, kernel_size)
    size, pairs, weight = center.size, np.arange(len(cost)), 1e4
    matrix = np.zeros((2 * size + 1, len(cost) + 1))
    matrix[end, pairs] = 1
    matrix[size + start, pairs] = weight
    matrix[-1, :-1] = weight * cost
    matrix[-1, -1] = weight  # What is left of the budget.
    wanted = np.r_[point.ravel(), weight * center.ravel(), weight * epsilon]
    plan, _ = optimize.nnls(matrix, wanted, maxiter=100 * len(cost))
    projected = np.zeros(size)
    np.add.at(projected, end, plan[:-1])
    return projected.reshape(center.shape)


def entropic_optimum(center, point, epsilon, metric, kernel_size, regularization):
    """The regularised problem, by a general-purpose solver on its dual."""
    start, end, cost = allowed_pairs(center, metric, kernel_size)
    inked = np.unique(start)

    def parts(variables):
        a = np.zeros(center.size)
        a[inked] = variables[: len(inked)]
        b, psi = variables[len(inked) : -1], variables[-1]
        plan = np.exp(a[start] + b[end] - psi * cost)
        return a, b, psi, plan

    def loss(variables):
        a, b, psi, plan = parts(variables)
        x, y = center.ravel(), point.ravel()
        dual = a @ x + b @ y - b @ b / (2 * regularization) - psi * epsilon
        slope_a = x - np.bincount(start, plan, center.size)
        slope_b = y - b / regularization - np.bincount(end, plan, center.size)
        slope = np.r_[slope_a[inked], slope_b, plan @ cost - epsilon]
        return plan.sum() - dual, -slope

    guess = np.r_[np.full(len(inked) + center.size, -4.0), 1.0]
    bounds = [(None, None)] * (len(guess) - 1) + [(0, None)]
    answer = optimize.minimize(
        loss,
        guess,
        jac=True,
        bounds=bounds,
        method="L-BFGS-B",
        options={"maxiter": 20_000, "maxfun": 40_000, "ftol": 0, "gtol": 1e-10},
    )
    plan = parts(answer.x)[-1]
    return np.bincount(end, plan, center.size).reshape(center.shape)


class WindowCostTest(chex.TestCase):
    @parameterized.product(
        metric=("l1", "l2"), power=(1.0, 2.0, 0.5), kernel_size=(3, 5)
    )
    def test_is_a_power_of_the_distance_to_the_middle(self, metric, power, kernel_size):
        actual = window_cost(kernel_size, metric, power)

        middle = (kernel_size // 2, kernel_size // 2)
        for pixel in np.ndindex(actual.shape):
            expected = oracles.pixel_distance(pixel, middle, metric) ** power
            self.assertAlmostEqual(actual[pixel], expected, places=12)

    @parameterized.parameters(
        ({"kernel_size": 4}, "kernel_size=4 is not an odd"),
        ({"kernel_size": 1}, "kernel_size=1 is not an odd"),
        ({"ground_metric": "l3"}, "ground_metric='l3' is not one of"),
        ({"power": 0}, "power=0 is not positive"),
    )
    def test_refuses(self, arguments, message):
        with self.assertRaisesRegex(ValueError, message):
            window_cost(**arguments)


class SolveExpPlusIdentityTest(chex.TestCase):
    def test_is_the_logarithm_of_wrights_omega_function(self):
        level = np.r_[np.linspace(-90, 90, 9001), np.logspace(2, 7, 50)]

        expected = np.log(special.wrightomega(level))

        for dtype, tolerance in ((np.float32, 1e-6), (np.float64, 1e-14)):
            with jax.enable_x64(dtype == np.float64):
                actual = sinkhorn._solve_exp_plus_identity(jnp.asarray(level, dtype))
            np.testing.assert_allclose(
                actual, expected, rtol=tolerance, atol=5 * tolerance
            )

    def test_does_not_overflow(self):
        level = jnp.asarray([-1e30, -1e5, 1e5, 1e30])
        actual = sinkhorn._solve_exp_plus_identity(level)
        np.testing.assert_allclose(
            actual, [-1e30, -1e5, np.log(1e5), np.log(1e30)], 1e-4
        )


class SinkhornProjectionTest(chex.TestCase):
    @EACH_CASE
    def test_solves_the_regularised_problem(self, shape, metric, kernel_size):
        for seed, epsilon in ((0, 0.05), (1, 0.15), (2, 0.4)):
            center, point = random_case(seed, shape)
            expected = entropic_optimum(
                center, point, epsilon, metric, kernel_size, 200
            )
            for log_domain in (True, False):
                with jax.enable_x64(True):
                    actual = project(
                        center,
                        point,
                        epsilon,
                        regularization=200.0,
                        kernel_size=kernel_size,
                        ground_metric=metric,
                        max_iterations=3_000,
                        tolerance=1e-13,
                        log_domain=log_domain,
                    )
                np.testing.assert_allclose(actual.image, expected, atol=2e-6)

    @EACH_CASE
    def test_tends_to_the_exact_projection(self, shape, metric, kernel_size):
        center, point = random_case(1, shape)
        expected = exact_projection(center, point, 0.15, metric, kernel_size)
        for regularization, error in ((1e3, 4e-3), (1e4, 4e-4)):
            with jax.enable_x64(True):
                actual = project(
                    center,
                    point,
                    0.15,
                    regularization=regularization,
                    kernel_size=kernel_size,
                    ground_metric=metric,
                    max_iterations=20_000,
                    tolerance=1e-11,
                )
            np.testing.assert_allclose(actual.image, expected, atol=error)

    @EACH_CASE
    def test_is_in_the_ball_and_keeps_the_mass_of_every_channel(
        self, shape, metric, kernel_size
    ):
        for seed in range(4):
            center, point = random_case(seed, shape, size=0.1)
            center, point = np.float32(40 * center), np.float32(40 * point)
            for max_iterations in (1, 3, 400):
                actual = project(
                    center,
                    point,
                    0.2,
                    kernel_size=kernel_size,
                    ground_metric=metric,
                    max_iterations=max_iterations,
                )
                z = np.asarray(actual.image)
                self.assertGreaterEqual(z.min(), 0.0)
                np.testing.assert_allclose(z.sum((0, 1)), center.sum((0, 1)), 1e-5)
                distance = exact_distance(center, z, metric)
                self.assertLessEqual(distance, actual.cost + 1e-5)
                self.assertLessEqual(actual.cost, 0.2 * (1 + 1e-5))
                self.assertLessEqual(actual.iterations, max_iterations)

    @EACH_DOMAIN
    def test_leaves_points_of_the_ball_where_they_are(self, log_domain):
        center, _ = random_case(2, (4, 5, 1))
        point = 0.9 * center + 0.1 * np.roll(center, 1, axis=1)
        point = np.where(center > 0, point, 0)
        point /= point.sum()
        self.assertLess(exact_distance(center, point, "l2"), 0.5)

        with jax.enable_x64(True):
            actual = project(
                center,
                point,
                1.0,
                regularization=3e3,
                max_iterations=5_000,
                tolerance=1e-10,
                log_domain=log_domain,
            )

        np.testing.assert_allclose(actual.image, point, atol=2e-3)

    def test_both_domains_agree(self):
        center, point = random_case(3, (4, 5, 2), size=0.01)
        images = [
            project(jnp.float32(center), jnp.float32(point), 0.2, log_domain=log_domain)
            for log_domain in (True, False)
        ]
        chex.assert_trees_all_close(images[0].image, images[1].image, atol=1e-5)

    def test_mass_cannot_leave_the_window(self):
        center, point = np.zeros((2, 4, 5, 2), np.float32)
        center[1, 3, 0], point[...] = 1.0, 1.0
        inside = np.zeros(center.shape, bool)
        inside[0:3, 2:5, 0] = True

        image = project(center, point, 3.0, kernel_size=3).image

        np.testing.assert_array_equal(image > 1e-6, inside)

    def test_the_window_may_be_larger_than_the_image(self):
        center, point = random_case(4, (1, 4, 1))
        image = project(jnp.float32(center), jnp.float32(point), 0.1, kernel_size=11)[0]
        self.assertLessEqual(exact_distance(jnp.float32(center), image), 0.1 + 1e-5)

    def test_the_unit_of_the_images_does_not_matter(self):
        center, point = map(jnp.float32, random_case(5, (4, 5, 2)))

        once = project(center, point, 0.1)
        scaled = project(255 * center, 255 * point, 0.1)

        chex.assert_trees_all_close(
            scaled.image, 255 * once.image, rtol=1e-3, atol=1e-3
        )
        chex.assert_trees_all_close(scaled.cost, once.cost, rtol=1e-4)

    @parameterized.product(log_domain=(True, False), one_channel_is_black=(True, False))
    def test_is_finite_on_black_pixels_and_for_far_points(
        self, log_domain, one_channel_is_black
    ):
        center, away = random_case(6, (4, 5, 2), size=1.0)
        center[:, :3] = 0.0
        if one_channel_is_black:
            center[..., 1] = 0.0
        center = np.float32(30 * center / center.sum())
        for size in (0.0, 0.1, 30.0, 1e4):
            actual = project(
                center,
                jnp.float32(center + size * away),
                1e-3,
                log_domain=log_domain,
            )
            chex.assert_tree_all_finite(actual)
            self.assertGreaterEqual(actual.image.min(), 0.0)
            after, before = actual.image.sum((0, 1)), center.sum((0, 1))
            np.testing.assert_allclose(after, before, rtol=1e-4)

    def test_maps_over_images_and_radii(self):
        cases = [random_case(seed, (4, 5, 2)) for seed in range(3)]
        centers, points = (np.float32(part) for part in zip(*cases))
        radii = np.float32([0.05, 0.2, 1.0])

        at_once = jax.jit(jax.vmap(sinkhorn_projection))(centers, points, radii)

        for n in range(3):
            alone = project(centers[n], points[n], radii[n])
            np.testing.assert_allclose(at_once.image[n], alone.image, atol=1e-4)
            np.testing.assert_allclose(at_once.cost[n], alone.cost, rtol=1e-3)

    @parameterized.parameters(
        ({"epsilon": 0.0}, "epsilon=0.0 is not a positive finite number"),
        ({"regularization": -1.0}, "regularization=-1.0 is not"),
        ({"tolerance": 0.0}, "tolerance=0.0 is not"),
        ({"max_iterations": 0}, "max_iterations=0 is not"),
        ({"kernel_size": 2}, "kernel_size=2"),
        ({"image": jnp.ones((4, 5, 2))}, "use jax.vmap|Use jax.vmap"),
        ({"center": jnp.ones((4, 5)), "image": jnp.ones((4, 5))}, r"\[H, W, C\]"),
        ({"center": jnp.ones((4, 5, 1), int)}, "int32; convert"),
    )
    def test_refuses(self, changes, message):
        image = jnp.ones((4, 5, 1))
        arguments = {"center": image, "image": image, "epsilon": 0.1} | changes
        with self.assertRaisesRegex(ValueError, message):
            functools.partial(sinkhorn_projection, **arguments)()


if __name__ == "__main__":
    absltest.main()
