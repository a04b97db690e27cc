"""Laws of wsjax.flow on images and plans of whole numbers, where they hold exactly.

Float32 adds and subtracts whole numbers below 2**24 without rounding, so nothing
here needs a tolerance.
"""

import hypothesis
import jax
import numpy as np
import oracles
from absl.testing import absltest
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from wsjax.flow import (
    FlowPlan,
    apply_flow,
    divergence,
    flow_cost,
    flow_shape,
    potential_gradient,
)

# Few shapes, as each compiles anew, but every way in which an axis can be short.
SHAPES = ((1, 1, 1), (1, 5, 2), (4, 1, 1), (2, 2, 3), (3, 5, 1), (5, 4, 2))

_apply = oracles.on_host(apply_flow)
_cost = oracles.on_host(flow_cost)
_divergence = oracles.on_host(divergence, static_argnums=1)
_gradient = oracles.on_host(potential_gradient, static_argnums=1)


def whole(shape, least=-1000):
    return hnp.arrays(np.int32, shape, elements=st.integers(least, 1000)).map(
        lambda numbers: numbers.astype(np.float32)
    )


@st.composite
def case(draw, plans=1, wrap=None):
    """An image, then as many plans as asked for, all of one shape and layout."""
    shape = draw(st.sampled_from(SHAPES))
    wrapped = draw(st.booleans()) if wrap is None else wrap
    shapes = flow_shape(shape, wrapped)
    return draw(whole(shape, 0)), *(
        FlowPlan(draw(whole(shapes.vertical)), draw(whole(shapes.horizontal)))
        for _ in range(plans)
    )


def is_wrapped(image, plan):
    return plan.vertical.shape == image.shape


def inner_product(a, b):
    # Products of two such numbers need more digits than float32 has.
    return np.sum(np.asarray(a, np.float64) * np.asarray(b, np.float64))


def add(a, b):
    return jax.tree.map(np.add, a, b)


class FlowPropertiesTest(absltest.TestCase):
    @hypothesis.given(case())
    def test_equals_carrying_each_parcel_by_hand(self, drawn):
        image, plan = drawn

        expected = oracles.carry_each_parcel(image, plan, is_wrapped(image, plan))
        np.testing.assert_array_equal(_apply(image, plan), expected)

    @hypothesis.given(case())
    def test_mass_of_every_channel_is_kept(self, drawn):
        image, plan = drawn

        moved = np.asarray(_apply(image, plan))

        np.testing.assert_array_equal(moved.sum((0, 1)), image.sum((0, 1)))
        net = np.asarray(_divergence(plan, image.shape))
        np.testing.assert_array_equal(net.sum((0, 1)), 0.0)

    @hypothesis.given(case(plans=2))
    def test_plans_compose_by_adding_in_any_order(self, drawn):
        image, a, b = drawn

        at_once = _apply(image, add(a, b))

        np.testing.assert_array_equal(_apply(_apply(image, a), b), at_once)
        np.testing.assert_array_equal(_apply(_apply(image, b), a), at_once)

    @hypothesis.given(case())
    def test_the_opposite_plan_undoes_a_plan(self, drawn):
        image, plan = drawn

        back = jax.tree.map(np.negative, plan)

        np.testing.assert_array_equal(_apply(_apply(image, plan), back), image)

    @hypothesis.given(case(), st.integers(-5, 5))
    def test_scaling_image_and_plan_scales_the_result(self, drawn, factor):
        image, plan = drawn
        scale = np.float32(factor)

        scaled = _apply(scale * image, FlowPlan(*(scale * edges for edges in plan)))

        np.testing.assert_array_equal(scaled, scale * _apply(image, plan))

    @hypothesis.given(case(), st.data())
    def test_divergence_and_potential_gradient_are_adjoint(self, drawn, data):
        image, plan = drawn
        potential = data.draw(whole(image.shape))

        gradient = _gradient(potential, is_wrapped(image, plan))

        left = inner_product(potential, _divergence(plan, image.shape))
        right = sum(inner_product(a, b) for a, b in zip(gradient, plan))
        self.assertEqual(left, -right)

    @hypothesis.given(case(plans=2))
    def test_cost_is_a_norm(self, drawn):
        _, a, b = drawn

        self.assertLessEqual(_cost(add(a, b)), _cost(a) + _cost(b))
        self.assertEqual(_cost(jax.tree.map(np.negative, a)), _cost(a))
        self.assertEqual(_cost(jax.tree.map(lambda x: 3 * x, a)), 3 * _cost(a))
        self.assertEqual(_cost(jax.tree.map(np.zeros_like, a)), 0.0)
        self.assertEqual(_cost(a) == 0, not any(edges.any() for edges in a))

    @hypothesis.given(case(), st.data())
    def test_no_potential_gains_more_than_cost_times_its_steepest_step(
        self, drawn, data
    ):
        image, plan = drawn
        potential = data.draw(whole(image.shape))

        gradient = _gradient(potential, is_wrapped(image, plan))
        steepest = max(np.abs(edges).max(initial=0.0) for edges in gradient)
        moved = np.asarray(_apply(image, plan))
        gained = inner_product(potential, moved - image)

        self.assertLessEqual(abs(gained), float(steepest) * float(_cost(plan)))

    @hypothesis.given(case())
    def test_transposing_the_image_swaps_the_two_directions(self, drawn):
        image, plan = drawn
        transposed = FlowPlan(plan.horizontal, plan.vertical)
        transposed = FlowPlan(*(edges.transpose(1, 0, 2) for edges in transposed))

        moved = _apply(image.transpose(1, 0, 2), transposed)

        np.testing.assert_array_equal(moved, _apply(image, plan).transpose(1, 0, 2))

    @hypothesis.given(case(wrap=False))
    def test_a_bordered_plan_is_a_wrapped_one_that_leaves_the_seam_alone(self, drawn):
        image, plan = drawn
        wrapped = FlowPlan(
            np.pad(plan.vertical, ((0, 1), (0, 0), (0, 0))),
            np.pad(plan.horizontal, ((0, 0), (0, 1), (0, 0))),
        )

        np.testing.assert_array_equal(_apply(image, wrapped), _apply(image, plan))
        self.assertEqual(_cost(wrapped), _cost(plan))

    @hypothesis.given(case(wrap=True), st.integers(0, 4), st.integers(0, 4))
    def test_wrapped_flows_know_no_place(self, drawn, down, right):
        image, plan = drawn

        def moved_along(array):
            return np.roll(np.asarray(array), (down, right), (0, 1))

        shifted = _apply(moved_along(image), FlowPlan(*map(moved_along, plan)))

        np.testing.assert_array_equal(shifted, moved_along(_apply(image, plan)))

    @hypothesis.given(case(plans=0), st.data())
    def test_one_unit_along_a_path_costs_the_length_of_the_path(self, drawn, data):
        (image,) = drawn
        height, width, channels = image.shape
        row, column = st.integers(0, height - 1), st.integers(0, width - 1)
        (i, j), (k, m) = data.draw(
            st.tuples(st.tuples(row, column), st.tuples(row, column))
        )
        c = data.draw(st.integers(0, channels - 1))
        plan = FlowPlan(*(np.zeros(s, np.float32) for s in flow_shape(image.shape)))
        plan.vertical[min(i, k) : max(i, k), j, c] = 1 if k > i else -1
        plan.horizontal[k, min(j, m) : max(j, m), c] = 1 if m > j else -1

        moved = _apply(image, plan)

        expected = image.copy()
        expected[i, j, c] -= 1
        expected[k, m, c] += 1
        np.testing.assert_array_equal(moved, expected)
        self.assertEqual(_cost(plan), abs(i - k) + abs(j - m))


if __name__ == "__main__":
    absltest.main()
