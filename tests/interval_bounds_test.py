"""Tests of benchmarks/interval_bounds.py: no point of a box is below its bounds."""

import contextlib
import functools
import io
import itertools
import json
import pathlib
import sys
import tempfile
from fractions import Fraction
from unittest import mock

import jax
import numpy as np
from absl.testing import absltest, parameterized

from wsjax import data, exact_distance, potentials
from wsjax.certifiers.lipschitz import LipschitzScores
from wsjax.data.dataset import make_dataset
from wsjax.models.potentials import PotentialNet

sys.path.append(str(pathlib.Path(__file__).parents[1] / "benchmarks"))
import interval_bounds

SHAPE = (6, 5, 1)
BY_CROWN_IBP = functools.partial(interval_bounds.by_crown, inner=False)
EACH_BOUND = parameterized.named_parameters(
    ("intervals", "relu", interval_bounds.by_intervals),
    ("intervals_sorted", "sorted", interval_bounds.by_intervals),
    ("crown_ibp", "relu", BY_CROWN_IBP),
    ("crown", "relu", interval_bounds.by_crown),
)


def some_images(seed, count):
    rng = np.random.default_rng(seed)
    found = rng.uniform(size=(count, *SHAPE)) ** 3
    return found / found.sum((1, 2, 3), keepdims=True)


def random_net(kind, seed=0):
    """Potentials and a few layers of any weights, for four classes."""
    rng = np.random.default_rng(seed)
    groups = {"relu": (1, 0, 0, 0), "sorted": (4, 2, 5, 3)}[kind]
    widths = 16, 12, 10, 9
    hidden = tuple(
        (rng.normal(size=(after, before)) / 2, rng.normal(size=after) / 4)
        for before, after in itertools.pairwise(widths)
    )
    rows = rng.normal(size=(4, 9))
    units = potentials.quantised(rng.normal(size=(*SHAPE, 16)) * 3, "l2", 10)
    net = interval_bounds.BoxNet(
        np.ldexp(units.astype(np.float64), -10),
        rng.normal(size=16) / 4,
        groups,
        hidden,
        rows[:, None] - rows,
        np.zeros((4, 4)),
    )
    # Images have different answers: none at a typical one.
    values, _ = interval_bounds.measured(net, some_images(seed, 9))
    return net._replace(bias=-leads(net, values.mean(0)))


def leads(net, values):
    """Leads `[K, K]` at one point `[J]`, number by number."""
    for (rows, bias), group in zip(net.hidden, net.groups, strict=False):
        values = rows @ one_by_one(values, group) + bias
    return net.rows @ one_by_one(values, net.groups[-1]) + net.bias


def one_by_one(values, group):
    if group == 0:
        return np.array([x if x > 0 else 0.0 for x in values])
    found, apart = np.array(values), len(values) // group
    for first in range(apart):
        found[first::apart] = sorted(values[first::apart])
    return found


class BoundsTest(parameterized.TestCase):
    @EACH_BOUND
    def test_no_point_of_the_box_is_below(self, kind, bounds):
        rng = np.random.default_rng(1)
        closest = []
        for seed, reach in enumerate((0.003, 0.03, 0.1, 0.3)):
            net = random_net(kind, seed)
            values, _ = interval_bounds.measured(net, some_images(seed, 4))
            classes = rng.integers(0, 4, 4)
            found = bounds(net, values, np.full(4, reach))[np.arange(4), classes]
            for one, middle, k in zip(found, values, classes, strict=True):
                # Corners, and corners where a lead is least as far as one sees from here.
                shifts = reach * rng.choice([-1, 0.5, 1], (100, 16))
                slopes = [
                    leads(net, middle + step)[k] - leads(net, middle - step)[k]
                    for step in np.eye(16) * 1e-5
                ]
                shifts = np.concatenate([shifts, -reach * np.sign(slopes).T])
                least = np.min([leads(net, middle + x)[k] for x in shifts], 0)
                others = np.arange(4) != k
                self.assertTrue((one <= least)[others].all())
                closest.append((least - one)[others].min() / reach)
        # Not just any number that is small enough; intervals are tested below.
        if bounds is not interval_bounds.by_intervals:
            self.assertLess(min(closest), 0.1)

    @EACH_BOUND
    def test_no_image_within_that_distance_is_below(self, kind, bounds):
        net, images = random_net(kind), some_images(2, 12)
        for image, other in zip(images[::2], images[1::2], strict=True):
            moved = 0.9 * image + 0.1 * other
            reach = exact_distance(image, moved, "l2")
            values, off = interval_bounds.measured(net, np.stack([image, moved]))
            self.assertLessEqual(np.abs(values[0] - values[1]).max(), reach + off)
            found = bounds(net, values[:1], np.array([reach + off]))[0]
            others = ~np.eye(4, dtype=bool)
            self.assertTrue((found <= leads(net, values[1]))[others].all())

    @EACH_BOUND
    def test_no_image_within_a_radius_has_another_answer(self, kind, bounds):
        net, images = random_net(kind), some_images(3, 40)
        classes, radii = interval_bounds.certified(net, images, bounds)
        values, _ = interval_bounds.measured(net, images)
        itself = np.where(np.eye(4), np.inf, 0)
        answers = [int((leads(net, x) + itself).min(1).argmax()) for x in values]
        self.assertEqual(classes.tolist(), answers)
        self.assertGreater(np.median(radii), 0)
        crossed = 0
        for one in range(0, 40, 4):
            for other in np.flatnonzero(classes != classes[one])[:3]:
                distance = exact_distance(images[one], images[other], "l2")
                self.assertLess(radii[one], distance)
                crossed += 1
        self.assertGreater(crossed, 5)

    @EACH_BOUND
    def test_bounds_of_a_point_are_below_it_in_exact_arithmetic(self, kind, bounds):
        net = random_net(kind)
        values, _ = interval_bounds.measured(net, some_images(4, 1))
        found = bounds(net, values, np.zeros(1))[0, 2]
        exact = np.vectorize(Fraction, otypes=[object])
        rational = net._replace(
            hidden=tuple(tuple(map(exact, layer)) for layer in net.hidden),
            rows=exact(net.rows),
            bias=exact(net.bias),
        )
        expected = leads(rational, exact(values[0]))[2]
        for k in (0, 1, 3):
            self.assertLess(Fraction(found[k]), expected[k])
            self.assertLess(expected[k] - Fraction(found[k]), 1e-10)

    def test_intervals_of_one_layer_are_attained(self):
        net = random_net("relu")
        rows, bias = net.hidden[0]
        middle = np.random.default_rng(0).normal(size=16)
        box = (middle - 0.3)[None], (middle + 0.3)[None]
        low, high = interval_bounds.hidden_boxes(net.hidden[:1], (1,), *box)[1]
        for row, shift, least, most in zip(rows, bias, low[0], high[0], strict=True):
            worst = middle - 0.3 * np.sign(row), middle + 0.3 * np.sign(row)
            np.testing.assert_allclose([row @ x + shift for x in worst], [least, most])
        # Likewise of leads, whose rows are differences of rows: not their two bounds.
        rng = np.random.default_rng(1)
        net = net._replace(hidden=(), groups=(1,), rows=rng.normal(size=(4, 4, 16)))
        found = interval_bounds.by_intervals(net, middle[None], np.array([0.3]))[:, 1]
        for k, row in enumerate(net.rows[1]):
            worst = row @ (middle - 0.3 * np.sign(row)) + net.bias[1, k]
            np.testing.assert_allclose(found[0, k], worst)

    def test_linear_bounds_are_exact_where_no_number_changes_sign(self):
        net = random_net("relu")
        values, _ = interval_bounds.measured(net, some_images(5, 3))
        reach = 1e-6
        for bounds in (BY_CROWN_IBP, interval_bounds.by_crown):
            found = bounds(net, values, np.full(3, reach))[np.arange(3), np.arange(3)]
            for k in range(3):
                slopes = [
                    (leads(net, values[k] + x) - leads(net, values[k] - x))[k] / 2e-6
                    for x in np.eye(16) * 1e-6
                ]
                expected = leads(net, values[k])[k] - reach * np.abs(slopes).sum(0)
                np.testing.assert_allclose(found[k], expected, atol=1e-9)

    def test_intervals_certify_lipschitz_layers_as_leads_do(self):
        module = PotentialNet(4, 16, (8,), (4, 2))
        images = some_images(6, 20)
        params = dict(jax.jit(module.init)(jax.random.key(0), images)["params"])
        # Norms of exactly one, which no interval is narrower than; answers that differ.
        outputs = module.apply({"params": params}, images, method="_outputs")
        params["bias_1"] = params["bias_1"] - outputs[0]
        recipe = interval_bounds.Recipe("", module.widths, module.groups)
        net = interval_bounds.frozen(params, recipe, 4)
        found = interval_bounds.certified(net, images, interval_bounds.by_intervals)
        certifier = LipschitzScores(module.frozen(params))
        for one, *other in zip(certifier.certify_each(images), *found, strict=True):
            if one.radius > 0.005:
                np.testing.assert_allclose(other, [one.selected, one.radius], atol=5e-4)
        self.assertGreater(found[1].max(), 0.01)

    def test_linear_bounds_refuse_sorting(self):
        with self.assertRaisesRegex(ValueError, "ReLU only"):
            nothing = np.zeros((1, 16)), np.zeros(1)
            interval_bounds.by_crown(random_net("sorted"), *nothing)


class TrainingTest(parameterized.TestCase):
    @parameterized.parameters("scores", "pairs")
    def test_rows_of_leads_are_antisymmetric(self, head):
        last = np.random.default_rng(0).normal(size=(4 if head == "scores" else 6, 3))
        found = interval_bounds.lead_rows(jax.numpy.asarray(last), head, 4)
        np.testing.assert_array_equal(found, -found.swapaxes(0, 1))
        self.assertEqual(found.shape, (4, 4, 3))
        self.assertLen(np.unique(np.abs(found[..., 0])), 7)

    def test_the_script_trains_and_certifies(self):
        rng = np.random.default_rng(0)
        images = rng.integers(1, 256, (48, 5, 4, 1)).astype(np.uint8)
        few = make_dataset(images, np.arange(48) % 3, 10, 255)
        recipe = interval_bounds.Recipe("small", (8, 6), share=0.4, crown=True)
        out = pathlib.Path(self.enter_context(tempfile.TemporaryDirectory()))
        options = f"--data=none --epochs=2 --batch_size=16 --potentials=16 --out={out}"
        with (
            mock.patch.object(data, "load", lambda name, split, dir: few),
            mock.patch.object(interval_bounds, "RECIPES", (recipe,)),
            mock.patch.object(interval_bounds, "CONTINUED", {}),  # Saves seconds.
            mock.patch.object(sys, "argv", ["", *options.split(), "--stride=2"]),
            contextlib.redirect_stdout(io.StringIO()),
        ):
            interval_bounds.main()
        rows = [json.loads(line) for line in (out / "rows.jsonl").open()]
        self.assertEqual([row["images"] for row in rows], [48, 48, 24, 24, 24])
        # Bounds of both kinds start from the radii that intervals have.
        for row in rows[3:]:
            self.assertGreaterEqual(row["median"], rows[2]["median"])


if __name__ == "__main__":
    absltest.main()
