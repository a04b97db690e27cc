"""Tests of wsjax.attacks.dual."""

import dataclasses

import chex
import jax
import numpy as np
from absl.testing import absltest, parameterized
from capacity_test import linear, linear_case, pairs, smallest_radius
from scipy import optimize

from wsjax.attacks import dual
from wsjax.attacks.dual import (
    WU_FRANK_WOLFE,
    WU_PROJECTION,
    DualAttack,
    coupling_image,
    coupling_projection,
    dual_attack,
    linear_oracle,
)
from wsjax.transport import exact_distance

EACH_CASE = parameterized.named_parameters(
    ("gray_l2", (4, 5, 1), "l2", 5), ("colour_l1", (3, 4, 2), "l1", 3)
)
EACH_METHOD = parameterized.named_parameters(
    ("projection", "projection"), ("frank_wolfe", "frank_wolfe")
)
SHAPE = (4, 5, 1)
SETTINGS = DualAttack(epsilons=(0.2,), max_steps=100, batch_size=4)

# One compilation per shape serves all tests.
_project = jax.jit(coupling_projection, static_argnames="ground_metric")
_maximise = jax.jit(linear_oracle, static_argnames=("kernel_size", "ground_metric"))


def project(center, mass, epsilon, metric, price=0.0):
    arguments = map(np.float32, (center, mass, epsilon))
    return _project(*arguments, ground_metric=metric, price=np.float32(price))


def maximise(center, slopes, epsilon, metric, kernel_size, gamma=1e-3):
    arguments = map(np.float32, (center, slopes, epsilon))
    return _maximise(
        *arguments,
        gamma=np.float32(gamma),
        kernel_size=kernel_size,
        ground_metric=metric,
    )


def random_case(seed, shape, kernel_size):
    """A partly black image, and a coupling that is far from one."""
    rng = np.random.default_rng(seed)
    center = rng.uniform(-0.4, 1.0, size=shape).clip(0)
    goal = 0.5 * rng.normal(size=(kernel_size, kernel_size, *shape))
    goal[kernel_size // 2, kernel_size // 2] += center
    return center, goal


def slots(shape, metric, kernel_size):
    """Where `pairs` are in a coupling `[k, k, H, W, C]`, flattened; and the pairs."""
    start, end, cost = pairs(shape, metric, kernel_size)
    pixel = np.array(list(np.ndindex(shape)))
    down, right, _ = (pixel[end] - pixel[start]).T + kernel_size // 2
    where = (down * kernel_size + right) * np.prod(shape) + start
    return where, start, end, cost


def nearest_plan(center, goal, epsilon, metric, kernel_size):
    """The projection by non-negative least squares; equations have weight 10^4."""
    where, start, _, cost = slots(center.shape, metric, kernel_size)
    number, size, weight = np.arange(len(cost)), center.size, 1e4
    matrix = np.zeros((len(cost) + size + 1, len(cost) + 1))
    matrix[number, number] = 1
    matrix[len(cost) + start, number] = weight
    matrix[-1] = weight * np.r_[cost, 1]
    budget = epsilon * center.sum()
    wanted = np.r_[goal.ravel()[where], weight * center.ravel(), weight * budget]
    found, _ = optimize.nnls(matrix, wanted, maxiter=100 * len(cost))
    plan = np.zeros(goal.size)
    plan[where] = found[:-1]
    return plan.reshape(goal.shape)


def check_plan(center, found, epsilon, metric):
    """That a coupling is one, and pays what it says, within budget."""
    plan = np.asarray(found.mass, np.float64)
    where, start, end, cost = slots(center.shape, metric, len(plan))
    mass = plan.ravel()[where]
    assert plan.min() >= 0
    np.testing.assert_allclose(mass.sum(), plan.sum(), rtol=1e-6)
    rows = np.bincount(start, mass, center.size)
    np.testing.assert_allclose(rows, center.ravel(), rtol=1e-5)
    np.testing.assert_allclose(mass @ cost / center.sum(), found.cost, rtol=1e-4)
    assert found.cost <= epsilon * (1 + 1e-5)
    image = np.asarray(coupling_image(found.mass))
    np.testing.assert_allclose(
        image.ravel(),
        np.bincount(end, mass, center.size),
        rtol=1e-4,
        atol=1e-6 * center.max(),
    )
    assert exact_distance(center, image, metric) <= found.cost + 1e-5


class CouplingProjectionTest(chex.TestCase):
    @EACH_CASE
    def test_is_the_nearest_plan(self, shape, metric, kernel_size):
        for seed, epsilon in ((0, 0.05), (1, 0.3), (2, 1.0)):
            center, goal = random_case(seed, shape, kernel_size)
            expected = nearest_plan(center, goal, epsilon, metric, kernel_size)

            for price in (0.0, 1e-3, 10.0):
                actual = project(center, goal, epsilon, metric, price)

                np.testing.assert_allclose(actual.mass, expected, atol=2e-5)
                check_plan(center, actual, epsilon, metric)

    def test_where_the_budget_is_ample_rows_are_projected_onto_simplices(self):
        center, goal = random_case(3, SHAPE, 5)
        where, start, *_ = slots(SHAPE, "l2", 5)

        actual = project(center, goal, 100.0, "l2")

        self.assertEqual(actual.price, 0.0)
        for pixel, mass in enumerate(center.ravel()):
            row = goal.ravel()[where[start == pixel]]
            low, high = row.min() - mass - 1, row.max()
            for _ in range(80):
                tau = (low + high) / 2
                heavy = (row - tau).clip(0).sum() > mass
                low, high = (tau, high) if heavy else (low, tau)
            found = actual.mass.ravel()[where[start == pixel]]
            np.testing.assert_allclose(found, (row - low).clip(0), atol=1e-6)

    @parameterized.named_parameters(
        ("dark", np.full(SHAPE, 1e-7), 1.0),
        ("one_pixel", np.eye(1, 20, 7).reshape(SHAPE), 1.0),
        ("full", np.ones(SHAPE), 1.0),
        ("far", np.ones(SHAPE), 1e4),
        ("flat", np.ones(SHAPE), 0.0),
    )
    def test_is_a_plan_in_extremes(self, center, scale):
        goal = scale * np.random.default_rng(0).normal(size=(5, 5, *SHAPE))
        for epsilon in (1e-6, 0.3):
            found = project(center, goal, epsilon, "l2")
            chex.assert_tree_all_finite(found)
            check_plan(center, found, epsilon, "l2")

    @parameterized.parameters(
        ({"epsilon": 0.0}, "epsilon=0.0 is not a positive"),
        ({"max_iterations": 0}, "max_iterations=0 is not a whole"),
        ({"ground_metric": "l3"}, "ground_metric='l3' is not one of"),
        ({"mass": np.ones((5, 3, 2, 2, 1))}, r"must be \[H, W, C\] and \[k, k"),
        ({"center": np.ones((2, 2, 1), int)}, "convert it to floats"),
    )
    def test_refuses(self, arguments, message):
        usual = {"center": np.ones((2, 2, 1)), "mass": np.ones((5, 5, 2, 2, 1))}
        with self.assertRaisesRegex(ValueError, message):
            coupling_projection(**{"epsilon": 0.1, **usual, **arguments})


class LinearOracleTest(chex.TestCase):
    @EACH_CASE
    def test_reaches_the_linear_program_up_to_its_entropy(
        self, shape, metric, kernel_size
    ):
        rng = np.random.default_rng(0)
        _, start, end, cost = slots(shape, metric, kernel_size)
        for seed, epsilon in ((0, 0.05), (1, 0.4)):
            center, _ = random_case(seed, shape, kernel_size)
            slopes = rng.uniform(-1, 1, size=shape)
            rows = np.zeros((center.size, len(cost)))
            rows[start, np.arange(len(cost))] = 1
            program = optimize.linprog(
                -slopes.ravel()[end],
                A_eq=rows,
                b_eq=center.ravel(),
                A_ub=cost[None],
                b_ub=[epsilon * center.sum()],
            )

            for gamma in (0.1, 1e-3, 1e-8):
                found = maximise(center, slopes, epsilon, metric, kernel_size, gamma)

                check_plan(center, found, epsilon, metric)
                value = (coupling_image(found.mass) * slopes).sum()
                most = gamma * center.sum() * np.log(kernel_size**2)
                self.assertLessEqual(value, -program.fun + 1e-4)
                self.assertGreaterEqual(value, -program.fun - most - 1e-4)

    def test_has_the_largest_value_and_entropy(self):
        center, _ = random_case(2, SHAPE, 5)
        slopes = np.random.default_rng(2).uniform(-1, 1, size=SHAPE)
        where, start, end, cost = slots(SHAPE, "l2", 5)
        gamma, budget = 0.3, 0.2 * center.sum()

        def rows(price):
            weights = np.exp((slopes.ravel()[end] - price * cost) / gamma)
            sums = np.bincount(start, weights)
            return center.ravel()[start] * weights / sums[start], sums

        # The dual, a convex function of the price alone.
        def bound(price):
            return gamma * center.ravel() @ np.log(rows(price)[1]) + price * budget

        price = optimize.minimize_scalar(
            bound, bounds=(0, 20), method="bounded", options={"xatol": 1e-10}
        ).x

        found = maximise(center, slopes, 0.2, "l2", 5, gamma)

        self.assertAlmostEqual(found.price, price, places=3)
        actual = found.mass.ravel()[where]
        np.testing.assert_allclose(actual, rows(price)[0], atol=1e-4)

    @parameterized.named_parameters(
        ("dark", np.full(SHAPE, 1e-7), 1.0),
        ("one_pixel", np.eye(1, 20, 7).reshape(SHAPE), 1.0),
        ("steep", np.ones(SHAPE), 1e4),
        ("flat", np.ones(SHAPE), 0.0),
    )
    def test_is_a_plan_in_extremes(self, center, scale):
        slopes = scale * np.random.default_rng(0).normal(size=SHAPE)
        for epsilon in (1e-6, 0.3):
            found = maximise(center, slopes, epsilon, "l2", 5)
            chex.assert_tree_all_finite(found)
            check_plan(center, found, epsilon, "l2")

    @parameterized.parameters(
        ({"gamma": 0.0}, "gamma=0.0 is not a positive"),
        ({"kernel_size": 4}, "kernel_size=4 is not an odd"),
        ({"slopes": np.ones((2, 3, 1))}, "must be"),
    )
    def test_refuses(self, arguments, message):
        usual = {"center": np.ones((2, 2, 1)), "slopes": np.ones((2, 2, 1))}
        with self.assertRaisesRegex(ValueError, message):
            linear_oracle(**{"epsilon": 0.1, **usual, **arguments})


def least_radii(images, labels, weights, metric, kernel_size):
    """Per image, what misleads a linear classifier if pixels may exceed one."""
    return np.array(
        [
            smallest_radius(image, label, weights, metric, kernel_size, 1e3)
            for image, label in zip(images, labels)
        ]
    )


class DualAttackTest(chex.TestCase):
    @EACH_METHOD
    def test_succeeds_from_the_smallest_radius_of_a_linear_classifier(self, method):
        images, labels, weights, classify = linear_case(0, 5)
        least = least_radii(images, labels, weights, "l2", 5)
        for image in range(2):
            settings = dataclasses.replace(
                SETTINGS,
                method=method,
                clamp_loss=False,
                epsilons=(least[image] * 0.98, least[image] * 1.02),
            )

            result = dual_attack(images, labels, classify, settings=settings)

            # Those whose radius lies between are misled at the second only.
            expected = np.where(least < settings.epsilons[1], 1, np.inf)
            expected[expected == 1] = settings.epsilons[1]
            expected[least < settings.epsilons[0]] = settings.epsilons[0]
            np.testing.assert_allclose(result.epsilon, expected)
            self.assertEqual(result.epsilon[image], settings.epsilons[1])
            self.assertEqual(result.steps[image], 200)
            np.testing.assert_array_equal(result.success, result.epsilon < np.inf)
            np.testing.assert_array_equal(result.verified, result.success)

    @EACH_METHOD
    def test_every_radius_begins_at_the_original(self, method):
        images, _, weights, _ = linear_case(2, 4)

        def classify(points):  # With a gradient that is another one at every point.
            return linear(weights)(points**3)

        labels = np.asarray(classify(images).argmax(-1))
        settings = dataclasses.replace(
            SETTINGS, method=method, clamp_loss=False, max_steps=2, epsilons=(0.02, 0.3)
        )
        both = dual_attack(images, labels, classify, settings=settings)
        settings = dataclasses.replace(settings, epsilons=(0.3,))
        alone = dual_attack(images, labels, classify, settings=settings)
        later = both.steps == 4
        self.assertTrue(later.any())
        np.testing.assert_allclose(
            both.adversarial[later], alone.adversarial[later], atol=1e-5
        )

    @EACH_METHOD
    def test_keeps_mass_and_radius_but_not_the_range(self, method):
        images, labels, _, classify = linear_case(1, 5)
        settings = dataclasses.replace(
            SETTINGS, method=method, epsilons=(0.5,), clamp_loss=False
        )

        result = dual_attack(images, labels, classify, settings=settings)

        self.assertGreater(result.adversarial.max(), 1.5)
        self.assertGreaterEqual(result.adversarial.min(), 0)
        for image, moved in zip(images, result.adversarial):
            # Refuses images of different mass.
            distance = exact_distance(image, moved, "l2")
            self.assertBetween(distance, 0.3, 0.5 * (1 + 1e-4))

    @EACH_METHOD
    def test_the_loss_sees_the_clipped_image(self, method):
        images, labels, _, classify = linear_case(1, 4)

        peaks = []
        for clamp in (True, False):
            settings = dataclasses.replace(SETTINGS, method=method, clamp_loss=clamp)
            result = dual_attack(images, labels, classify, settings=settings)
            peaks.append((result.adversarial - 1).clip(0).sum())

        # Nothing above one is worth anything to the clipped loss.
        self.assertGreater(peaks[0], 0)
        self.assertLess(peaks[0], 0.7 * peaks[1])

    @EACH_METHOD
    def test_pixels_on_the_border_of_the_range_take_part(self, method):
        # All that can be gained is to take mass out of white pixels.
        image = np.zeros((1, *SHAPE), np.float32)
        image[0, :, :2] = 1
        classify = linear(image[0] > 0)
        settings = dataclasses.replace(SETTINGS, method=method, epsilons=(0.5,))

        result = dual_attack(image, np.array([1]), classify, settings=settings)

        self.assertGreater(result.adversarial[0, :, 2:].sum(), 0.2 * image.sum())

    def test_stops_early_if_asked(self):
        images, labels, _, classify = linear_case(2, 7)
        settings = dataclasses.replace(SETTINGS, epsilons=(0.1, 0.4))
        late = dual_attack(images, labels, classify, settings=settings)
        settings = dataclasses.replace(settings, early_stop=True)
        early = dual_attack(images, labels, classify, settings=settings)

        self.assertTrue((early.epsilon <= late.epsilon).all())
        self.assertTrue((early.steps <= late.steps).all())
        stopped = early.success & (early.epsilon == 0.1)
        self.assertTrue(stopped.any())
        self.assertLess(early.steps[stopped].max(), 100)
        np.testing.assert_array_equal(early.verified, early.success)

    def test_other_images_and_batches_change_nothing(self):
        images, labels, _, classify = linear_case(2, 7)
        labels[6] = 1 - labels[6]
        whole = dual_attack(images, labels, classify, settings=SETTINGS)
        compiled = dual._step._cache_size()

        part = dual_attack(images[3:5], labels[3:5], classify, settings=SETTINGS)
        settings = dataclasses.replace(
            SETTINGS, max_steps=3, epsilons=(0.1, 0.2), step_size=0.05
        )
        few = dual_attack(images, labels, classify, settings=settings)

        self.assertEqual(dual._step._cache_size(), compiled)
        np.testing.assert_allclose(part.adversarial, whole.adversarial[3:5], atol=1e-4)
        for result in (whole, few):
            self.assertEqual((result.epsilon[6], result.steps[6]), (0, 0))
            np.testing.assert_array_equal(result.adversarial[6], images[6])
        np.testing.assert_array_equal(few.steps[~few.success], 6)

    def test_colour(self):
        images, labels, weights, classify = linear_case(3, 3, (3, 4, 3))
        least = least_radii(images, labels, weights, "l1", 3)
        settings = dataclasses.replace(
            SETTINGS,
            ground_metric="l1",
            kernel_size=3,
            clamp_loss=False,
            epsilons=(least.max() * 1.05,),
        )

        result = dual_attack(images, labels, classify, settings=settings)

        self.assertTrue(result.success.all())
        for image, moved in zip(images, result.adversarial):
            distance = exact_distance(image, moved, "l1")
            self.assertLess(distance, settings.epsilons[0] * (1 + 1e-4))

    def test_a_classifier_that_returns_nan_is_named(self):
        images, labels, weights, _ = linear_case(2, 7)
        scores = np.tensordot(images, weights, 3)
        first = scores.argmax()

        # At once, and when the attack has lowered the score.
        for trap in (scores.max() + 1, scores.max() - 1e-4):
            with self.assertRaisesRegex(ValueError, r"NaN or inf on images \[0\]"):
                dual_attack(
                    images[[first]],
                    labels[[first]],
                    linear(weights, trap),
                    settings=dataclasses.replace(SETTINGS, max_steps=3),
                )

    @parameterized.parameters(
        ({"method": "newton"}, "method='newton' is not one of"),
        ({"epsilons": 0.5}, "epsilons=0.5 is not a tuple"),
        ({"epsilons": ()}, r"epsilons=\(\) is not a tuple"),
        ({"epsilons": (0.2, 0.1)}, "increasing"),
        ({"epsilons": (0.0, 0.1)}, "epsilons=0.0 is not a positive"),
        ({"gamma": -1.0}, "gamma=-1.0 is not a positive"),
        ({"max_steps": 0}, "max_steps=0 is not a whole"),
        ({"ground_metric": "l3"}, "ground_metric='l3' is not one of"),
    )
    def test_settings_refuse(self, arguments, message):
        with self.assertRaisesRegex(ValueError, message):
            DualAttack(**arguments)

    def test_presets(self):
        self.assertEqual(WU_PROJECTION.method, "projection")
        self.assertEqual(WU_FRANK_WOLFE.method, "frank_wolfe")
        for preset in (WU_PROJECTION, WU_FRANK_WOLFE):
            self.assertEqual(preset.max_steps, 300)
            self.assertEqual(preset.gamma, 1e-3)
            self.assertTrue(preset.clamp_loss)
            self.assertFalse(preset.early_stop)


if __name__ == "__main__":
    absltest.main()
