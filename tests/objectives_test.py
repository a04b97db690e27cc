"""Tests of wsjax.training.objectives, and of steps that train a noise by them."""

import functools
import pathlib
import tempfile
from unittest import mock

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import oracles
import tiny_runs
from absl.testing import absltest, parameterized
from flax import linen as nn
from scipy import special

from wsjax.console import signals
from wsjax.data import dataset
from wsjax.training import learned_noise, loop, optimizers, steps
from wsjax.training.objectives import NAMES, Objective

SHAPE = (4, 5, 1)
# Compiled in half the time: each program here is used a few times only.
QUICKLY = {"xla_backend_optimization_level": 0}
EACH_OBJECTIVE = parameterized.parameters(*NAMES)


def losses_one_by_one(logits, labels):
    """Means over a batch: cross-entropy, divergence from the mean, its entropy."""
    copies, batch, classes = logits.shape
    cross, divergence, entropy = [], [], []
    for b in range(batch):
        each = [special.softmax(logits[m, b]) for m in range(copies)]
        mean = sum(each) / copies
        cross += [-np.log(p[labels[b]]) for p in each]
        for p in each:
            parts = [mean[k] * np.log(mean[k] / p[k]) for k in range(classes)]
            divergence.append(sum(parts))
        entropy.append(-sum(mean[k] * np.log(mean[k]) for k in range(classes)))
    return np.mean(cross), np.mean(divergence), np.mean(entropy)


def averaged_loss_one_by_one(logits, labels):
    total = 0.0
    for b, label in enumerate(labels):
        total -= np.log(np.mean([special.softmax(copy[b])[label] for copy in logits]))
    return total


def some_logits(shape=(3, 4, 5), seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(scale=2, size=shape), rng.integers(0, shape[-1], shape[1])


class LossTest(chex.TestCase):
    @parameterized.parameters((3, 0.0), (3, 5.0), (2, 0.3))
    def test_equals_loops(self, copies, weight):
        logits, labels = some_logits((copies, 4, 5))
        cross, divergence, entropy = losses_one_by_one(logits, labels)
        expected = {
            "cross_entropy": cross,
            "smooth_adversarial": cross,
            "smooth_mix": cross,
            "flow_adversarial": cross,
            "consistency": cross + weight * divergence + 0.5 * entropy,
        }
        for name, value in expected.items():
            objective = Objective(name, copies, weight, ball_radius=0.1)
            actual = float(oracles.on_host(objective.loss)(logits, labels))
            self.assertAlmostEqual(actual, value, places=5)
            self.assertEqual(objective.attacks, name.startswith("smooth_"))

    def test_label_smoothing_compares_with_a_mixture_of_labels_and_all_classes(self):
        logits, labels = some_logits((2, 4, 5))
        wanted = 0.7 * np.eye(5)[labels] + 0.3 / 5
        logs = special.log_softmax(logits, axis=-1)
        objective = Objective(copies=2, label_smoothing=0.3)
        actual = float(oracles.on_host(objective.loss)(logits, labels))
        self.assertAlmostEqual(actual, -(wanted * logs).sum(-1).mean(), places=5)

    def test_averaged_loss_equals_loops(self):
        for shape in ((3, 4, 5), (1, 2, 3)):
            logits, labels = some_logits(shape)
            actual = float(oracles.on_host(Objective.averaged_loss)(logits, labels))
            expected = averaged_loss_one_by_one(logits, labels)
            self.assertAlmostEqual(actual, expected, places=4)

    def test_copies_that_agree_diverge_by_nothing(self):
        logits, labels = some_logits((1, 4, 5))
        same = np.repeat(logits, 3, axis=0)
        differing, _ = some_logits((3, 4, 5))

        @oracles.on_host
        def losses(logits):
            return [
                Objective("consistency", 3, weight).loss(logits, labels)
                for weight in (0.0, 1e3)
            ]

        self.assertAlmostEqual(*map(float, losses(same)), places=3)
        less, more = losses(differing)
        self.assertGreater(more, less + 10)

    @EACH_OBJECTIVE
    def test_stays_finite_for_certain_answers(self, name):
        logits = jnp.array([[[0.0, 300.0], [500.0, 0.0]], [[400.0, 0.0], [0.0, 9.0]]])
        labels = np.array([0, 1])
        objective = Objective(name, 2, ball_radius=0.1, radius=0.1, temperature=0.01)
        if objective.looks_at == "leads":
            logits = logits[..., None] - logits[..., None, :]
        value_and_slope = oracles.on_host(jax.value_and_grad(objective.loss))
        value, slope = value_and_slope(logits, labels)
        chex.assert_tree_all_finite((value, slope))


class AdversarialStepTest(chex.TestCase):
    @parameterized.parameters(0.0, 0.5, 3.0)
    def test_has_the_length_asked_for_along_the_gradient(self, radius):
        against = np.random.default_rng(0).normal(size=(4, 2, 3, 1)) * 1e-6
        objective = Objective("smooth_adversarial", attack_radius=radius)
        for step, gradient in zip(objective.adversarial_step(against), against):
            expected = radius * gradient / np.sqrt(np.sum(gradient**2))
            np.testing.assert_allclose(step, expected, atol=1e-6)

    def test_is_zero_where_the_gradient_is(self):
        against = np.random.default_rng(0).normal(size=(3, 7))
        against[1] = 0.0
        step = Objective("smooth_adversarial").adversarial_step(jnp.asarray(against))
        np.testing.assert_array_equal(step[1], 0.0)
        lengths = np.linalg.norm(step, axis=1)
        np.testing.assert_allclose(lengths, [1, 0, 1], rtol=1e-5)

    @parameterized.parameters(1, 3)
    def test_raises_the_averaged_loss_as_no_other_short_step_does(self, copies):
        rng = np.random.default_rng(1)
        weights, labels = rng.normal(size=(6, 3)), np.array([0, 2, 1])
        views = rng.normal(size=(copies, 3, 6))
        objective = Objective("smooth_adversarial", copies, attack_radius=1e-2)

        @oracles.on_host
        def loss_and_slope(shift):
            return jax.value_and_grad(
                lambda s: objective.averaged_loss((views + s) @ weights, labels)
            )(shift)

        start, slope = loss_and_slope(np.zeros((3, 6)))
        step = np.asarray(objective.adversarial_step(slope))
        rise = loss_and_slope(step)[0] - start
        self.assertAlmostEqual(
            rise / (1e-2 * np.linalg.norm(slope, axis=1).sum()), 1, 1
        )
        for _ in range(20):
            other = rng.normal(size=step.shape)
            other *= 1e-2 / np.linalg.norm(other, axis=1, keepdims=True)
            self.assertLess(loss_and_slope(other)[0] - start, rise)


class RefusalTest(chex.TestCase):
    @parameterized.named_parameters(
        ("name", {"name": "crossentropy"}, "objective='crossentropy'.*'consistency'"),
        ("copies", {"copies": 0}, "train.copies=0 must be at least 1"),
        (
            "one_copy",
            {"name": "consistency", "copies": 1},
            "compares copies: train.copies=1 must be at least 2",
        ),
        ("weight", {"consistency": -1.0}, "train.consistency=-1.0 is negative"),
        ("smoothing", {"label_smoothing": 1.0}, "label_smoothing=1.0 is outside"),
        ("nan", {"consistency": float("nan")}, "train.consistency=nan"),
        ("radius", {"attack_radius": -0.1}, "train.attack_radius=-0.1"),
        ("far", {"attack_radius": float("inf")}, "attack_radius=inf .*not finite"),
        ("text", {"attack_radius": "1"}, "attack_radius='1'"),
    )
    def test_settings(self, wrong, message):
        with self.assertRaisesRegex(ValueError, message):
            Objective(**wrong)

    @parameterized.named_parameters(("fixed", tiny_runs.PERTURB), ("none", None))
    def test_an_adversary_of_noise_that_cannot_be_shifted(self, perturb):
        message = (
            "'smooth_adversarial' moves the noise.*learned_view.*another objective"
        )
        objective = Objective("smooth_adversarial")
        with self.assertRaisesRegex(ValueError, message):
            steps.check_objective(objective, perturb)
        with self.assertRaisesRegex(ValueError, message):
            steps.make_train_step(
                Dense(), optax.sgd(0.1), perturb, scale=255.0, objective=objective
            )
        for name in ("view", "spectrum"):
            steps.check_objective(objective, learned(name))
        for name in ("cross_entropy", "consistency"):
            steps.check_objective(Objective(name, 2), perturb)


class Dense(nn.Module):
    """No running statistics: an answer does not depend on the other images."""

    @nn.compact
    def __call__(self, images, train=False):
        return nn.Dense(2)(images.reshape(len(images), -1))


def separable(count=40, seed=0):
    """As `tiny_runs.separable`, large enough for a view."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, count)
    images = rng.integers(0, 60, (count, *SHAPE), dtype=np.uint8)
    for image, label in zip(images, labels):
        image[2 * label : 2 * label + 2] += 150
    return dataset.make_dataset(images, labels, num_classes=2, scale=255.0)


@functools.cache
def learned(name, scale=0.05):
    """A noise that can be learned; one object for each, so that programs are shared."""
    about = learned_noise.statistics(separable().images)
    if name == "view":
        return learned_noise.LearnedView(about, scale, "l2", waves=1)
    return learned_noise.LearnedSpectrum(about, scale, "l2", bins=4)


@functools.cache
def optimizer_of(noise_learning_rate):
    return optimizers.make_optimizer(
        optimizer="adam",
        learning_rate=0.02,
        total_steps=15,
        weight_decay=0.1,
        noise_learning_rate=noise_learning_rate,
    )


@functools.cache
def pictures_of(noise):
    """Function of parameters, images and draws `[copies, B, ...]` to pictures."""

    def pictures(params, images, draws):
        of_each = jax.vmap(noise.law(params).copy_of)
        return jax.vmap(of_each, (None, 0))(images, draws)

    return oracles.on_host(pictures, compiler_options=QUICKLY)


class Trained:
    """A training step that is compiled once, and the data and keys it is tried on."""

    data, key = separable(8), jax.random.key(7)
    images, labels = data.images / np.float32(255), data.labels

    def __init__(self, objective, noise, noise_learning_rate):
        self.objective = Objective(
            objective, 2, consistency=3.0, mixing=0.7, attack_radius=1.5
        )
        self.noise, self.optimizer = learned(noise), optimizer_of(noise_learning_rate)
        step = steps.make_train_step(
            Dense(), self.optimizer, self.noise, scale=255.0, objective=self.objective
        )
        arguments = self.first_state(), self.key, self.data.images, self.labels
        self.step = step.lower(*arguments).compile(QUICKLY)

    def first_state(self):
        key = jax.random.key(2)
        return steps.init_state(key, Dense(), SHAPE, self.optimizer, self.noise)

    def __call__(self, state):
        return self.step(state, self.key, self.data.images, self.labels)

    def draws(self):
        """What the first step adds noise by: `[copies, B, ...]`."""
        _, key = jax.random.split(jax.random.fold_in(self.key, 0))
        law = self.noise.freeze(self.first_state().noise)
        draws = np.array([law.variables(jax.random.fold_in(key, i)) for i in range(16)])
        return draws.reshape(2, 8, *draws.shape[1:])

    def logits(self, state):
        """Function of draws `[copies, B, ...]` to logits, the classifier in float64."""
        params = jax.tree.map(np.array, state.noise)
        weights = jax.tree.map(np.float64, state.params["Dense_0"])

        def of_draws(draws):
            pictures = pictures_of(self.noise)(params, self.images, draws)
            flat = pictures.reshape(*draws.shape[:2], -1)
            return flat @ weights["kernel"] + weights["bias"]

        return of_draws


CASES = {
    # At a rate of zero, the noise is kept.
    "cross_entropy": ("cross_entropy", "view", 0.0),
    "consistency": ("consistency", "view", 0.05),
    "adversarial_view": ("smooth_adversarial", "view", 0.05),
    "adversarial_spectrum": ("smooth_adversarial", "spectrum", 0.05),
    "mix_view": ("smooth_mix", "view", 0.05),
}
EACH_CASE = parameterized.parameters(*CASES)


@functools.cache
def trained(name):
    return Trained(*CASES[name])


class StepTest(chex.TestCase):
    @EACH_CASE
    def test_loss_is_that_of_copies_drawn_one_by_one(self, name):
        case = trained(name)
        state, draws = case.first_state(), case.draws()
        logits_of = case.logits(state)
        still = logits = logits_of(draws)
        if case.objective.attacks:
            clean, _, _ = losses_one_by_one(logits, case.labels)
            parts = np.ones(len(case.labels))
            if case.objective.mixes:
                of_step = jax.random.fold_in(jax.random.fold_in(case.key, 0), 3)
                parts = np.array(jax.random.uniform(of_step, parts.shape)) / 2
            # A classifier of pictures that are linear in the shift: its logits move
            # by as much for every copy, and by differences as well as by slopes.
            units = np.eye(draws[0, 0].size, dtype=np.float32)
            turns = [
                logits_of(draws + unit.reshape(draws[0, 0].shape)) - logits
                for unit in units
            ]
            for b, label in enumerate(case.labels):
                answers = special.softmax(logits[:, b], axis=-1)
                # Slope of -log(mean of p[label]) in the logits of each copy.
                slope = answers[:, label, None] * (answers - np.eye(2)[label])
                slope /= answers[:, label].sum()
                against = [np.sum(slope * turn[:, b]) for turn in turns]
                shift = 1.5 * np.array(against) / np.linalg.norm(against)
                draws[:, b] += parts[b] * shift.reshape(draws[0, 0].shape)
            logits = logits_of(draws)
        expected, divergence, entropy = losses_one_by_one(logits, case.labels)
        if case.objective.name == "consistency":
            expected += 3.0 * divergence + 0.5 * entropy
        if case.objective.mixes:
            expected = clean
            for b, part in enumerate(parts):
                sure = special.softmax(still[:, b], axis=-1).mean(0)
                for copy in logits[:, b]:
                    for k, log in enumerate(special.log_softmax(copy)):
                        wanted = (1 - part) * sure[k] + part / 2
                        expected -= 0.7 * wanted * log / (2 * len(parts))
            logits = still

        _, values = case(state)

        self.assertAlmostEqual(float(values["loss"]), expected, delta=1e-3 * expected)
        accuracy = np.mean(logits.argmax(axis=-1) == case.labels)
        self.assertAlmostEqual(float(values["accuracy"]), accuracy, places=6)
        if case.objective.attacks:
            self.assertGreater(float(values["loss"]), clean + 0.01)

    @EACH_CASE
    def test_training_lowers_the_loss_and_moves_the_noise(self, name):
        case = trained(name)
        state, losses = case.first_state(), []
        before = jax.tree.map(np.array, state.noise)
        for _ in range(30):
            state, values = case(state)
            losses.append(float(values["loss"]))
        self.assertLess(np.mean(losses[-5:]), 0.6 * np.mean(losses[:5]))
        _, _, rate = CASES[name]
        for start, end in zip(*map(jax.tree.leaves, (before, state.noise))):
            if rate:
                self.assertTrue(np.isfinite(end).all())
                self.assertGreater(np.abs(end - start).max(), 0.01)
            else:
                np.testing.assert_array_equal(end, start)

    def test_evaluation_shows_the_noise_as_it_is_now(self):
        class Louder:
            """As much of learned noise as an evaluation needs."""

            def __init__(self, size=None):
                self.size = size

            def law(self, params):
                return Louder(2 * params)

            def variables(self, key):
                return jax.random.normal(key, SHAPE)

            def copy_of(self, image, variables):
                return image + self.size * variables

        images, key = separable(30).images, jax.random.key(5)
        first = trained("cross_entropy").first_state()
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, np.arange(30))
        draws = np.asarray(jax.vmap(Louder().variables)(keys)).reshape(30, -1)
        weights = jax.tree.map(np.asarray, first.params["Dense_0"])

        def answers_of(noise):
            noisy = images.reshape(30, -1) / np.float32(255) + 2 * noise * draws
            return np.argmax(noisy @ weights["kernel"] + weights["bias"], axis=-1)

        labels = answers_of(0.05)
        expected = np.sum(answers_of(2.0) == labels)
        measure = steps.make_eval_step(Dense(), Louder(), scale=255.0)
        for noise, count in ((0.05, 30), (2.0, expected)):
            state = first._replace(noise=jnp.float32(noise))
            radii = measure(state, key, images, labels)
            self.assertEqual(int((radii > 0).sum()), count)
        self.assertLess(expected, 30)


class NoiseOptimizerTest(chex.TestCase):
    def params(self):
        rng = np.random.default_rng(0)
        return {
            "model": {"kernel": jnp.asarray(rng.normal(size=(3, 2)), jnp.float32)},
            "noise": {"log_power": jnp.asarray(rng.normal(size=(4, 1)), jnp.float32)},
        }

    def moved(self, gradient, count=1, **settings):
        """Parameters after some updates by the same gradient."""
        optimizer = optimizers.make_optimizer(
            **{
                "optimizer": "sgd",
                "learning_rate": 0.1,
                "total_steps": 10,
                "momentum": 0.0,
                **settings,
            }
        )
        params = self.params()
        state = optimizer.init(params)
        for _ in range(count):
            changes, state = optimizer.update(gradient, state, params)
            params = optax.apply_updates(params, changes)
        return params

    @parameterized.product(optimizer=("sgd", "adam"), rate=(0.0, 0.3))
    def test_weight_decay_does_not_touch_the_noise(self, optimizer, rate):
        before, still = self.params(), jax.tree.map(jnp.zeros_like, self.params())
        after = self.moved(
            still,
            3,
            optimizer=optimizer,
            weight_decay=0.5,
            noise_learning_rate=rate,
        )
        chex.assert_trees_all_equal(after["noise"], before["noise"])
        shrunk = np.abs(after["model"]["kernel"] / before["model"]["kernel"])
        np.testing.assert_allclose(shrunk, (1 - 0.1 * 0.5) ** 3, rtol=1e-5)

    @parameterized.product(optimizer=("sgd", "adam"))
    def test_rate_zero_leaves_the_noise_bit_by_bit(self, optimizer):
        before, slope = self.params(), jax.tree.map(jnp.ones_like, self.params())
        after = self.moved(slope, 3, optimizer=optimizer, noise_learning_rate=0.0)
        chex.assert_trees_all_equal(after["noise"], before["noise"])
        self.assertGreater(
            np.abs(after["model"]["kernel"] - before["model"]["kernel"]).min(), 0.1
        )

    @parameterized.parameters(("constant", [1, 1, 1]), ("cosine", [1, 0.75, 0.25]))
    def test_the_noise_follows_adam_on_the_schedule_of_the_model(self, schedule, rates):
        # By a gradient that never changes, Adam moves its rate against the sign.
        before, slope = self.params(), jax.tree.map(jnp.ones_like, self.params())
        slope["noise"]["log_power"] *= -7.0
        after = self.moved(
            slope, 3, schedule=schedule, total_steps=3, noise_learning_rate=0.3
        )
        total = 0.3 * sum(rates)
        np.testing.assert_allclose(
            after["noise"]["log_power"] - before["noise"]["log_power"], total, rtol=1e-4
        )

    def test_without_learned_noise_the_model_is_all(self):
        optimizer = optimizers.make_optimizer(
            optimizer="sgd", learning_rate=0.1, total_steps=3
        )
        params = {"kernel": jnp.ones(3)}
        changes, _ = optimizer.update(params, optimizer.init(params), params)
        chex.assert_trees_all_close(changes, {"kernel": jnp.full(3, -0.1)})
        self.assertIs(steps.trainable(params, ()), params)
        both = {"model": params, "noise": {"log_power": 0}}
        self.assertEqual(steps.trainable(params, {"log_power": 0}), both)

    @parameterized.parameters(-0.1, float("nan"))
    def test_refuses_a_rate(self, rate):
        with self.assertRaisesRegex(ValueError, f"noise_learning_rate={rate}"):
            optimizers.make_optimizer(
                optimizer="sgd",
                learning_rate=0.1,
                total_steps=3,
                noise_learning_rate=rate,
            )


class LoopTest(chex.TestCase):
    def setUp(self):
        super().setUp()
        folder = self.enter_context(tempfile.TemporaryDirectory())
        self.folder = pathlib.Path(folder)
        self.enter_context(mock.patch.object(loop, "progress", tiny_runs.Bar))
        for patch in tiny_runs.compiling_once():
            self.enter_context(patch)

    def train(self, name):
        workdir = self.folder / name
        workdir.mkdir(exist_ok=True)
        return loop.train(
            workdir,
            Dense(),
            lambda _: optimizer_of(0.05),
            learned("spectrum"),
            separable(),
            separable(30, seed=1),
            key=jax.random.key(5),
            seed=3,
            batch_size=8,
            num_epochs=3,
            objective=Objective("consistency", copies=2),
        )

    def test_a_run_that_was_stopped_ends_as_if_left_alone(self):
        expected = self.train("left_alone")
        for step in (3, 7, 10):
            with (
                mock.patch.object(tiny_runs.Bar, "signal_at", step),
                self.assertRaises(signals.Stopped),
            ):
                self.train("stopped")
            kept = tiny_runs.final_arrays(self.folder / "stopped")
            self.assertEqual(kept["newest"], step)
        chex.assert_trees_all_equal(self.train("stopped"), expected)
        names = ("stopped", "left_alone")
        chex.assert_trees_all_equal(
            *(tiny_runs.final_arrays(self.folder / name) for name in names)
        )
        texts = [(self.folder / name / "metrics.jsonl").read_text() for name in names]
        self.assertEqual(*texts)
        start = learned("spectrum").init()
        for first, last in zip(*map(jax.tree.leaves, (start, expected.noise))):
            self.assertGreater(np.abs(first - last).max(), 0.01)


if __name__ == "__main__":
    absltest.main()
