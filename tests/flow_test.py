"""Tests of wsjax.flow."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import oracles
from absl.testing import absltest, parameterized

from wsjax.flow import (
    FlowPlan,
    apply_flow,
    divergence,
    flow_cost,
    flow_shape,
    image_mass,
    normalize_mass,
    potential_gradient,
)

SHAPES = {
    "gray": (5, 4, 1),
    "colour": (3, 6, 3),
    "one_row": (1, 7, 1),
    "one_column": (6, 1, 2),
    "two_by_two": (2, 2, 1),
    "one_pixel": (1, 1, 1),
}
EACH_SHAPE = parameterized.named_parameters(*SHAPES.items())
EACH_LAYOUT = parameterized.named_parameters(
    (f"{name}_{layout}", shape, wrap)
    for name, shape in SHAPES.items()
    for layout, wrap in (("bordered", False), ("wrapped", True))
)

FEW_LAYOUTS = parameterized.product(shape=((3, 6, 3), (1, 7, 1)), wrap=(False, True))

# One compilation per shape and layout serves all tests.
_apply = oracles.on_host(apply_flow)
_divergence = oracles.on_host(divergence, static_argnums=1)
_gradient = oracles.on_host(potential_gradient, static_argnums=1)
_cost = oracles.on_host(flow_cost)
_normalize = oracles.on_host(normalize_mass)


def random_case(seed, shape, wrap=False, dtype=np.float32):
    """An image and two plans."""
    rng = np.random.default_rng(seed)

    def plan():
        return FlowPlan(
            *(rng.normal(size=s).astype(dtype) for s in flow_shape(shape, wrap))
        )

    return rng.uniform(size=shape).astype(dtype), plan(), plan()


def inner_product(a, b):
    return sum(float(np.sum(x * y)) for x, y in zip(a, b))


class FlowTestCase(chex.TestCase):
    def setUp(self):
        super().setUp()
        self.enter_context(jax.numpy_rank_promotion("raise"))
        self.enter_context(jax.numpy_dtype_promotion("strict"))


class FlowShapeTest(parameterized.TestCase):
    def test_bordered_plans_have_one_edge_less_along_their_axis(self):
        self.assertEqual(flow_shape((5, 4, 3)), FlowPlan((4, 4, 3), (5, 3, 3)))

    def test_wrapped_plans_have_one_edge_per_pixel_and_axis(self):
        self.assertEqual(
            flow_shape((5, 4, 3), wrap=True), FlowPlan((5, 4, 3), (5, 4, 3))
        )

    @EACH_LAYOUT
    def test_counts_the_edges(self, shape, wrap):
        sizes = [int(np.prod(s)) for s in flow_shape(shape, wrap)]

        self.assertLen(oracles.edges(shape, wrap), sum(sizes))

    @parameterized.parameters((5, 4), (2, 5, 4, 1), (0, 4, 1), (5, 4, 0), ())
    def test_refuses_what_is_no_image(self, *shape):
        with self.assertRaisesRegex(ValueError, r"\[H, W, C\].*got \(") as caught:
            flow_shape(shape)
        self.assertIn(str(shape), str(caught.exception))
        self.assertIn("jax.vmap", str(caught.exception))


class ApplyFlowTest(FlowTestCase):
    @chex.variants(with_jit=True, without_jit=True)
    @FEW_LAYOUTS
    def test_runs_with_and_without_jit(self, shape, wrap):
        image, plan, _ = random_case(0, shape, wrap)

        moved = self.variant(apply_flow)(image, plan)
        gradient = self.variant(potential_gradient, static_argnums=1)(image, wrap)
        cost = self.variant(flow_cost)(plan)

        chex.assert_trees_all_close(moved, _apply(image, plan), atol=1e-6)
        chex.assert_trees_all_close(gradient, _gradient(image, wrap), atol=1e-6)
        chex.assert_trees_all_close(cost, _cost(plan), rtol=1e-6)

    @EACH_LAYOUT
    def test_equals_carrying_each_parcel_by_hand(self, shape, wrap):
        image, plan, _ = random_case(0, shape, wrap)

        moved = _apply(image, plan)

        chex.assert_type(moved, jnp.float32)
        expected = oracles.carry_each_parcel(image, plan, wrap)
        chex.assert_trees_all_close(moved, expected, atol=1e-5)

    @EACH_LAYOUT
    def test_keeps_the_mass_of_every_channel(self, shape, wrap):
        image, plan, _ = random_case(1, shape, wrap)

        moved = _apply(image, plan)

        np.testing.assert_allclose(moved.sum((0, 1)), image.sum((0, 1)), atol=2e-5)

    @EACH_LAYOUT
    def test_plans_compose_by_adding(self, shape, wrap):
        image, a, b = random_case(2, shape, wrap)

        in_turn = _apply(_apply(image, a), b)
        at_once = _apply(image, jax.tree.map(np.add, a, b))

        chex.assert_trees_all_close(in_turn, at_once, atol=1e-5)

    @FEW_LAYOUTS
    def test_float64_stays_float64(self, shape, wrap):
        image, plan, _ = random_case(3, shape, wrap, np.float64)
        with jax.enable_x64(True):
            moved, cost, normalized = (
                _apply(image, plan),
                _cost(plan),
                _normalize(image),
            )

        chex.assert_type([moved, cost, normalized], np.float64)
        expected = oracles.carry_each_parcel(image, plan, wrap)
        np.testing.assert_allclose(moved, expected, atol=1e-14)

    @parameterized.named_parameters(("bordered", False), ("wrapped", True))
    def test_vmap_is_a_loop_over_images(self, wrap):
        cases = [random_case(seed, (4, 3, 2), wrap)[:2] for seed in range(5)]
        images, plans = jax.tree.map(lambda *leaves: np.stack(leaves), *cases)

        actual = jax.jit(jax.vmap(apply_flow))(images, plans)

        expected = np.stack([_apply(image, plan) for image, plan in cases])
        np.testing.assert_allclose(actual, expected, atol=1e-6)

    @FEW_LAYOUTS
    def test_gradient_in_the_plan_is_the_gradient_of_the_potential(self, shape, wrap):
        image, plan, _ = random_case(4, shape, wrap)
        potential = random_case(5, shape)[0]

        @jax.jit
        def weigh(image, plan):
            return jnp.sum(potential * apply_flow(image, plan))

        in_image, in_plan = jax.grad(weigh, argnums=(0, 1))(image, plan)

        matrix = oracles.incidence(shape, wrap)
        raveled = np.concatenate([np.ravel(edges) for edges in in_plan])
        np.testing.assert_allclose(in_image, potential)
        np.testing.assert_allclose(raveled, potential.ravel() @ matrix, atol=1e-5)

    @parameterized.parameters(
        ((4, 4, 1), (5, 4, 1)), ((4, 5, 1), (4, 4, 1)), ((5, 4, 1), (5, 3, 1))
    )
    def test_refuses_the_plan_of_another_image(self, vertical, horizontal):
        plan = FlowPlan(np.zeros(vertical), np.zeros(horizontal))
        image = np.zeros((5, 4, 1), np.float32)
        for run in (apply_flow, jax.jit(apply_flow)):
            with self.assertRaises(ValueError) as caught:
                run(image, plan)
            message = str(caught.exception)
            self.assertIn(f"Flow shapes ({vertical}, {horizontal})", message)
            self.assertIn("image of shape (5, 4, 1)", message)
            self.assertIn("needs ((4, 4, 1), (5, 3, 1))", message)
            self.assertIn("((5, 4, 1), (5, 4, 1)) with wrap-around", message)

    def test_moves_down_and_right_for_positive_entries(self):
        image = np.zeros((2, 3, 1), np.float32)
        plan = FlowPlan(
            np.array([[[3.0], [0], [0]]], np.float32),
            np.array([[[0.0], [0]], [[0], [5]]], np.float32),
        )

        moved = _apply(image, plan)

        np.testing.assert_array_equal(moved[..., 0], [[-3, 0, 0], [3, -5, 5]])


class DivergenceTest(FlowTestCase):
    @EACH_LAYOUT
    def test_is_what_apply_flow_takes_away(self, shape, wrap):
        image, plan, _ = random_case(6, shape, wrap)

        net = _divergence(plan, shape)

        np.testing.assert_allclose(_apply(image, plan), image - net, atol=1e-6)
        np.testing.assert_allclose(
            net.ravel(),
            -oracles.incidence(shape, wrap)
            @ np.concatenate([plan.vertical.ravel(), plan.horizontal.ravel()]),
            atol=1e-5,
        )

    @EACH_LAYOUT
    def test_is_minus_the_adjoint_of_potential_gradient(self, shape, wrap):
        potential, plan, _ = random_case(7, shape, wrap)

        gradient = _gradient(potential, wrap)

        self.assertEqual(
            FlowPlan(*(edges.shape for edges in gradient)), flow_shape(shape, wrap)
        )
        self.assertAlmostEqual(
            float(np.sum(potential * _divergence(plan, shape))),
            -inner_product(gradient, plan),
            delta=1e-4,
        )

    def test_potential_gradient_is_end_minus_start(self):
        gradient = potential_gradient(np.array([[[1.0], [4]], [[9], [25]]], np.float32))

        np.testing.assert_array_equal(gradient.vertical[..., 0], [[8, 21]])
        np.testing.assert_array_equal(gradient.horizontal[..., 0], [[3], [16]])

    def test_refuses_a_potential_without_channels(self):
        with self.assertRaisesRegex(ValueError, r"\[H, W, C\].*\(5, 4\)"):
            potential_gradient(np.zeros((5, 4)))


class MassTest(FlowTestCase):
    @EACH_SHAPE
    def test_normalized_images_have_mass_one_over_all_channels(self, shape):
        image = 255 * random_case(8, shape)[0]

        normalized = _normalize(image)

        self.assertAlmostEqual(float(np.sum(normalized)), 1.0, delta=1e-6)
        np.testing.assert_allclose(
            normalized, image / np.sum(image, dtype=np.float64), rtol=1e-6
        )

    def test_image_mass_sums_pixels_and_channels(self):
        self.assertEqual(image_mass(np.ones((2, 3, 4), np.float32)), 24.0)

    def test_a_black_image_is_not_finite_afterwards(self):
        self.assertFalse(np.isfinite(normalize_mass(jnp.zeros((2, 2, 1)))).any())

    @parameterized.parameters(image_mass, normalize_mass)
    def test_refuses_batches(self, function):
        with self.assertRaisesRegex(ValueError, r"got \(2, 5, 4, 1\)"):
            function(np.ones((2, 5, 4, 1)))


class TransportTest(FlowTestCase):
    """The facts about W1 that the certificates rest on."""

    @EACH_LAYOUT
    def test_flow_cost_adds_the_size_of_every_edge(self, shape, wrap):
        plan = random_case(9, shape, wrap)[1]

        expected = sum(abs(float(mass)) for edges in plan for mass in edges.ravel())

        self.assertAlmostEqual(float(_cost(plan)), expected, delta=1e-4)

    @parameterized.product(shape=((3, 4, 1), (1, 6, 2), (3, 2, 2)), wrap=(False, True))
    def test_cheapest_plan_costs_the_manhattan_distance(self, shape, wrap):
        rng = np.random.default_rng(10)
        mu, nu = rng.dirichlet(np.ones(int(np.prod(shape))), 2).reshape(2, *shape)
        nu *= mu.sum((0, 1)) / nu.sum((0, 1))

        raveled, cost = oracles.cheapest_plan(mu, nu, wrap)
        split = np.prod(flow_shape(shape, wrap).vertical)
        plan = FlowPlan(
            raveled[:split].reshape(flow_shape(shape, wrap).vertical),
            raveled[split:].reshape(flow_shape(shape, wrap).horizontal),
        )
        with jax.enable_x64(True):
            np.testing.assert_allclose(_apply(mu, plan), nu, atol=1e-12)
            self.assertAlmostEqual(float(_cost(plan)), cost, places=12)
        exact = oracles.wasserstein(mu, nu, "l1", wrap)
        self.assertAlmostEqual(cost, exact, places=9)

    @parameterized.parameters(range(6))
    def test_no_plan_is_cheaper_than_the_distance_it_moves(self, seed):
        image, plan, _ = random_case(seed, (3, 4, 2))
        plan = FlowPlan(*(0.2 * edges for edges in plan))
        image = image + 3.0  # Nothing goes negative.

        moved = np.asarray(_apply(image, plan), np.float64)
        moved *= image.sum((0, 1), np.float64) / moved.sum((0, 1))

        manhattan = oracles.wasserstein(image, moved, "l1")
        euclidean = oracles.wasserstein(image, moved, "l2")
        self.assertGreaterEqual(float(_cost(plan)), manhattan - 1e-4)
        self.assertLessEqual(euclidean, manhattan + 1e-9)
        self.assertLessEqual(manhattan, np.sqrt(2) * euclidean + 1e-9)

    @parameterized.parameters(range(4))
    def test_potentials_with_differences_up_to_one_bound_it_below(self, seed):
        rng = np.random.default_rng(seed)
        mu, nu = rng.dirichlet(np.ones(12), 2).reshape(2, 3, 4, 1)
        potential = rng.normal(size=(3, 4, 1)).astype(np.float32)
        steepest = max(np.abs(edges).max() for edges in _gradient(potential, False))

        bound = np.sum(potential / steepest * (nu - mu))

        self.assertLessEqual(abs(bound), oracles.wasserstein(mu, nu, "l1") + 1e-6)


if __name__ == "__main__":
    absltest.main()
