"""Tests of wsjax.training.adversarial, and of training steps that move images by it."""

import functools
import pathlib
import tempfile
from unittest import mock

import chex
import config_test
import jax
import jax.numpy as jnp
import numpy as np
import optax
import oracles
import tiny_runs
from absl.testing import absltest, parameterized

from wsjax import exact_distance
from wsjax.console import signals
from wsjax.runs import config, experiment
from wsjax.training import learned_noise, loop, steps
from wsjax.training.adversarial import ball_ascent
from wsjax.training.objectives import Objective

# Compiled in half the time: each program here is used a few times only.
QUICKLY = {"xla_backend_optimization_level": 0}
EACH_METRIC = parameterized.parameters("l1", "l2")


def pictures(shape, count=6, seed=0, lit=0.6):
    """Partly black and partly white, as digits are; and weights of two classes."""
    rng = np.random.default_rng(seed)
    images = rng.uniform(0, 1.5, (count, *shape)).clip(0, 1)
    images *= rng.uniform(size=images.shape) < lit
    images[:, 0, 1] = 1
    weights = rng.normal(size=(*shape, 2))
    return images.astype(np.float32), weights.astype(np.float32)


@functools.cache
def ascent(ground_metric, num_steps, inner_steps):
    """Points of linear classifiers; programs are shared by tests of like shapes."""

    def call(images, labels, weights, radius, seed, bias):
        return ball_ascent(
            images,
            labels,
            lambda points: jnp.tensordot(points, weights, 3) + bias,
            radius=radius,
            steps=num_steps,
            inner_steps=inner_steps,
            ground_metric=ground_metric,
            key=jax.random.key(seed),
        )

    compiled = oracles.on_host(call, compiler_options=QUICKLY)
    return lambda *arguments, bias=(0, 0): compiled(*arguments, np.float32(bias))


def distances(images, points, metric):
    return np.array([exact_distance(*pair, metric) for pair in zip(images, points)])


class BallTest(chex.TestCase):
    # Few iterations leave flows that take pixels out of their range, most of all where
    # mass crosses black pixels; long images make it expensive to put that right.
    @parameterized.parameters(
        ("l1", (3, 16, 1), 3, 3), ("l1", (4, 5, 3), 4, 5), ("l2", (3, 16, 1), 3, 3)
    )
    def test_points_stay_in_their_ball_with_mass_and_range(
        self, metric, shape, num_steps, inner_steps
    ):
        images, weights = pictures(shape, lit=0.12)
        find = ascent(metric, num_steps, inner_steps)
        for radius in (0.05, 0.3, 1.0):
            points = find(images, np.arange(6) % 2, weights, radius, 0)
            self.assertEqual(points.dtype, np.float32)
            self.assertGreaterEqual(points.min(), 0)
            self.assertLessEqual(points.max(), 1)
            masses = [x.sum((1, 2), dtype=np.float64) for x in (images, points)]
            np.testing.assert_allclose(*masses, rtol=2e-6)
            far = distances(images, points, metric)
            self.assertLess(far.max(), 1.02 * radius)
            self.assertGreater(far.min(), 0.2 * radius)

    @EACH_METRIC
    def test_no_nearer_image_has_the_loss_of_a_linear_classifier(self, metric):
        images, weights = pictures((3, 4, 1), seed=1)
        labels = np.arange(6) % 2
        radius = 0.2
        points = ascent(metric, 12, 10)(images, labels, weights, radius, 0)
        # The margin of the label; the least distance at which it is as low as here.
        own = np.stack([weights[..., y] - weights[..., 1 - y] for y in labels])
        least = [
            oracles.nearest_below(image, slope, metric, np.sum(slope * point))
            for image, slope, point in zip(images.astype(float), own, points)
        ]
        # Of flows along 8 directions some cost 1.08 times the Euclidean distance.
        self.assertGreater(min(least), (0.95 if metric == "l1" else 0.9) * radius)
        self.assertLess(max(least), 1.02 * radius)

    def test_climbs_where_squares_of_slopes_vanish(self):
        images, weights = pictures((3, 4, 1))
        weights[..., 0] = 0
        find = functools.partial(
            ascent("l1", 12, 10), images, np.zeros(6, int), weights, 0.2, 0
        )
        # With a start of 70, p of the other class and its slopes are e^-70.
        np.testing.assert_allclose(find(bias=(70, 0)), find(), atol=1e-3)

    def test_starts_at_random(self):
        images, _ = pictures((3, 4, 1))
        images = np.repeat(images[:1], 16, axis=0)
        flat = np.zeros((3, 4, 1, 2), np.float32)  # Nowhere to climb.
        find = functools.partial(ascent("l1", 1, 30), images, np.zeros(16, int), flat)
        one, same, other = find(0.3, 0), find(0.3, 0), find(0.3, 1)
        np.testing.assert_array_equal(one, same)
        self.assertGreater(np.abs(other - one).max((1, 2, 3)).min(), 1e-3)
        far = distances(images, one, "l1")
        self.assertLess(far.max(), 1.02 * 0.3)
        # Anywhere in the ball, near its middle as well.
        self.assertLess(far.min(), 0.05 * 0.3)
        self.assertGreater(far.max(), 0.5 * 0.3)

    def test_a_black_image_stays_and_spoils_no_other(self):
        images, weights = pictures((3, 4, 1))
        images[2] = 0
        points = ascent("l1", 12, 10)(images, np.zeros(6, int), weights, 0.2, 0)
        np.testing.assert_array_equal(points[2], 0)
        chex.assert_tree_all_finite(points)
        self.assertGreater(distances(images[3:], points[3:], "l1").min(), 0.1)

    def test_refuses_a_metric_by_name(self):
        images, weights = pictures((3, 4, 1))
        with self.assertRaisesRegex(ValueError, "ground_metric='l3' is not one of"):
            ascent("l3", 1, 1)(images, np.zeros(6, int), weights, 0.3, 0)


BALL = {"ball_radius": 0.3, "ball_steps": 2, "ball_inner_steps": 3, "ball_warmup": 0.5}


class StepTest(chex.TestCase):
    @parameterized.named_parameters(
        ("plain", None, 1, 2, 0, 0.3),
        # The fourth of ten updates over which the radius grows.
        ("noisy_and_warming_up", tiny_runs.PERTURB, 2, 1, 20, 0.12),
    )
    def test_equals_plain_training_on_the_moved_images(
        self, perturb, copies, num_steps, total_steps, radius
    ):
        data, key = tiny_runs.separable(8), jax.random.key(4)
        images, labels = data.images / np.float32(255), data.labels
        module, optimizer = tiny_runs.Tiny(), optax.sgd(0.1)
        first = steps.init_state(jax.random.key(2), module, (4, 3, 1), optimizer)
        first = jax.device_get(first._replace(step=np.int32(3)))
        step_key = jax.random.fold_in(key, 3)
        _, key_noise = jax.random.split(step_key)

        def answers(points):
            noisy = steps.perturb_batch(
                key_noise, jnp.tile(points, (copies, 1, 1, 1)), perturb, False
            )
            logits, _ = module.apply(
                first.variables, noisy, train=True, mutable=["batch_stats"]
            )
            return jnp.log(jax.nn.softmax(logits).reshape(copies, 8, -1).mean(0))

        def move():
            return ball_ascent(
                images,
                labels,
                answers,
                radius=radius,
                steps=num_steps,
                inner_steps=3,
                ground_metric="l1",
                key=jax.random.fold_in(step_key, 2),
            )

        moved = oracles.on_host(move, compiler_options=QUICKLY)()

        def updated(objective, *batches):
            step = steps.make_train_step(
                module,
                optimizer,
                perturb,
                scale=255.0 if objective.moves_images else 1.0,
                objective=objective,
                total_steps=total_steps,
            )
            compiled = step.lower(first, key, batches[0], labels).compile(QUICKLY)
            for pixels in batches:
                start = jax.device_put(first)
                state, values = compiled(start, key, pixels, labels)
                yield jax.device_get((state.variables, values))

        ball = {**BALL, "ball_steps": num_steps}
        ball = Objective("flow_adversarial", copies, ground_metric="l1", **ball)
        (actual,) = updated(ball, data.images)
        expected, unmoved = updated(Objective(copies=copies), moved, images)
        chex.assert_trees_all_close(actual, expected, atol=2e-4)
        self.assertGreater(actual[1]["loss"], unmoved[1]["loss"] + 0.01)

    def test_a_run_that_is_stopped_ends_as_if_left_alone(self):
        folder = pathlib.Path(self.enter_context(tempfile.TemporaryDirectory()))
        self.enter_context(mock.patch.object(loop, "progress", tiny_runs.Bar))
        for patch in tiny_runs.compiling_once():
            self.enter_context(patch)
        make = self.enter_context(
            mock.patch.object(steps, "make_train_step", wraps=steps.make_train_step)
        )
        # Its radius grows over the first seven steps.
        objective = Objective("flow_adversarial", **{**BALL, "ball_steps": 1})
        run = functools.partial(tiny_runs.train, perturb=None, objective=objective)
        run(folder / "left_alone")
        with (
            mock.patch.object(tiny_runs.Bar, "signal_at", 3),
            self.assertRaises(signals.Stopped),
        ):
            run(folder / "stopped")
        self.assertEqual(tiny_runs.final_arrays(folder / "stopped")["newest"], 3)
        run(folder / "stopped")
        ends = [tiny_runs.final_arrays(folder / x) for x in ("left_alone", "stopped")]
        chex.assert_trees_all_equal(*ends)
        self.assertEqual(ends[0]["newest"], 15)
        for call in make.call_args_list:
            self.assertEqual(call.kwargs["objective"], objective)
            self.assertEqual(call.kwargs["total_steps"], 15)


class SettingsTest(chex.TestCase):
    def test_the_radius_grows_to_what_is_asked_for(self):
        objective = Objective("flow_adversarial", ball_radius=0.4, ball_warmup=0.25)
        radii = [float(objective.radius_at(np.int32(t), 16)) for t in range(6)]
        np.testing.assert_allclose(radii, [0.1, 0.2, 0.3, 0.4, 0.4, 0.4], rtol=1e-6)
        for total_steps, warmup in ((0, 0.25), (16, 0.0)):
            objective = Objective(
                "flow_adversarial", ball_radius=0.4, ball_warmup=warmup
            )
            self.assertEqual(float(objective.radius_at(0, total_steps)), 0.4)

    def test_come_from_the_config(self):
        train = {"objective": "flow_adversarial", **BALL}
        resolved = config.resolve(config_test.least(train=train))
        for metric in ("l1", "l2"):
            built = experiment.make_objective(resolved.train, metric)
            self.assertEqual(
                built, Objective("flow_adversarial", ground_metric=metric, **BALL)
            )

    @parameterized.named_parameters(
        ("no_radius", {}, r"ball_radius=0.0, which must be positive.*0\.3 for MNIST"),
        ("negative", {"ball_radius": -0.1}, "ball_radius=-0.1 is negative"),
        ("nan", {"ball_radius": float("nan")}, "ball_radius=nan is negative or not"),
        ("steps", {"ball_steps": 0}, "ball_steps=0 is not a whole number above zero"),
        ("inner", {"ball_inner_steps": 1.5}, "ball_inner_steps=1.5 is not a whole"),
        ("warmup", {"ball_warmup": 30.0}, r"ball_warmup=30.0 is outside \[0, 1\]"),
    )
    def test_are_refused_outside_their_range(self, wrong, message):
        right = {"ball_radius": 0.3} if wrong else {}
        Objective("flow_adversarial", ball_radius=0.3)
        with self.assertRaisesRegex(ValueError, message):
            Objective("flow_adversarial", **{**right, **wrong})

    def test_learned_noise_is_refused_with_a_remedy(self):
        objective = Objective("flow_adversarial", ball_radius=0.3)
        images = np.random.default_rng(0).integers(0, 256, (9, 4, 5, 1), np.uint8)
        noise = learned_noise.LearnedView(
            learned_noise.statistics(images), 0.05, "l2", waves=1
        )
        message = "moves images under a fixed noise or none.*'smooth_adversarial'"
        with self.assertRaisesRegex(ValueError, message):
            steps.check_objective(objective, noise)
        with self.assertRaisesRegex(ValueError, message):
            steps.make_train_step(
                tiny_runs.Tiny(),
                optax.sgd(0.1),
                noise,
                scale=255.0,
                objective=objective,
            )
        for fixed in (None, tiny_runs.PERTURB):
            steps.check_objective(objective, fixed)


if __name__ == "__main__":
    absltest.main()
