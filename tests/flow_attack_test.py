"""Tests of wsjax.attacks.flow."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import oracles
from absl.testing import absltest, parameterized

from wsjax.attacks import (
    FlowAttack,
    Victim,
    flow,
    flow_attack,
    measure,
    smoothed,
    victims,
)
from wsjax.certifiers.votes import FixedVotes
from wsjax.scores import ABSTAIN
from wsjax.smoothing import make_smoothing

SHAPE = (4, 5, 1)
SETTINGS = FlowAttack(batch_size=4, start_radius=0.1)
# One object for all tests: another one would compile anew.
SMOOTHING = make_smoothing("flow_laplace", 0.01, "l2")


def linear_logits(weights, images):
    """Two classes, told apart by the sign of `sum(weights * image)`."""
    score = jnp.tensordot(images, weights, 3)
    return jnp.stack([-score, score], axis=-1)


def linear_case(seed, count, shape=SHAPE):
    """Images of class 1 in 8-bit levels, many dark, and a linear classifier."""
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, size=(count, *shape))
    images[rng.uniform(size=images.shape) < 0.3] = 0
    images = (images / 255).astype(np.float32)
    weights = rng.normal(size=shape).astype(np.float32)
    # The class boundary cuts off a quarter of each image's room, on average.
    scores = np.tensordot(images, weights, 3) / images.sum((1, 2, 3))
    weights -= scores.min() - 0.1
    return images, np.ones(count, np.int32), weights


def classifier(weights):
    return jax.tree_util.Partial(linear_logits, jnp.float32(weights))


class FlowAttackTest(chex.TestCase):
    def check_valid(self, images, result):
        """Range, mass, and that the radius is the exact distance."""
        measured = measure(images, result.adversarial)
        self.assertLess(measured.mass_error.max(), 1e-6)
        self.assertGreaterEqual(measured.lowest.min(), 0)
        self.assertLessEqual(measured.highest.max(), 1)
        return measured

    @parameterized.named_parameters(
        ("manhattan", "l1", SHAPE, 1.02),
        ("euclidean", "l2", SHAPE, 1.02),
        ("colour", "l1", (3, 4, 2), 1.02),
    )
    def test_radius_is_near_the_least_that_any_image_has(self, metric, shape, factor):
        images, labels, weights = linear_case(0, 6, shape)
        settings = dataclasses.replace(SETTINGS, ground_metric=metric)

        result = flow_attack(images, labels, classifier(weights), settings=settings)

        least = np.array([oracles.nearest_below(x, weights, metric) for x in images])
        possible = np.isfinite(least)
        self.assertGreater(possible.sum(), 3)
        np.testing.assert_array_equal(result.success, possible)
        measured = self.check_valid(images, result)
        exact = getattr(measured, metric)[possible]
        np.testing.assert_allclose(result.epsilon[possible], exact, rtol=1e-5)
        self.assertTrue((exact >= least[possible] * (1 - 1e-4)).all())
        self.assertLess((exact / least[possible]).max(), factor)
        answers = np.argmax(classifier(weights)(result.adversarial), -1)
        np.testing.assert_array_equal(answers != labels, result.verified)

    def test_the_unit_of_the_logits_does_not_matter(self):
        images, labels, weights = linear_case(0, 4)
        # Three classes, so that there is a scale between them to be lost.
        settings = dataclasses.replace(SETTINGS, max_steps=10)

        def outputs(kind, unit, weights, points):
            logits = linear_logits(weights, points)
            third = jnp.sin(9 * points).sum((1, 2, 3))[:, None]
            logits = jnp.concatenate([logits, third], 1)
            return kind(logits) * unit

        def found(kind, unit):
            name = jax.tree_util.Partial(
                functools.partial(outputs, kind), np.float32(unit), weights
            )
            return flow_attack(images, labels, name, settings=settings).epsilon

        expected = found(jnp.array, 1.0)
        self.assertTrue(np.isfinite(expected).all())
        for unit in (1e-30, 1e-20, 1e20, 1e25):
            np.testing.assert_allclose(found(jnp.array, unit), expected, rtol=1e-3)
        np.testing.assert_allclose(found(jax.nn.softmax, 1.0), expected, rtol=1e-3)

    def test_a_step_where_there_is_no_slope_stays(self):
        # Of so much mass that a step over the least number is infinite.
        images, labels = np.ones((1, 20, 20, 1), np.float32), np.ones(1, int)
        victim = Victim(
            lambda points: jnp.maximum(points[:, :3, 0, 0] - 2, jnp.eye(3)[1])
        )
        draws, first = victims.image_draws(victim, None, 1), np.int32(0)
        state = flow._begin(images, draws, first, settings=SETTINGS, randomly=False)
        state = flow._step(
            state,
            images,
            labels,
            draws,
            first,
            np.float32(0),
            *victim.arguments(),
            settings=SETTINGS,
        )
        np.testing.assert_array_equal(state.flow.edges, 0)
        self.assertGreater(state.radius[0], SETTINGS.start_radius * 400)

    def test_fixed_radius_is_kept_and_used(self):
        images, labels, weights = linear_case(1, 8)
        least = np.array([oracles.nearest_below(x, weights, "l1") for x in images])
        radius = float(np.median(least[np.isfinite(least)]))
        settings = dataclasses.replace(SETTINGS, radius=radius)

        result = flow_attack(images, labels, classifier(weights), settings=settings)

        self.check_valid(images, result)
        self.assertLessEqual(measure(images, result.adversarial).l1.max(), radius)
        np.testing.assert_array_equal(result.success[least < 0.9 * radius], True)
        np.testing.assert_array_equal(result.success[least > radius], False)
        np.testing.assert_array_equal(
            result.adversarial[~result.success], images[~result.success]
        )

    def test_what_is_beyond_a_fixed_radius_is_no_success(self):
        images = np.full((2, *SHAPE), 0.5, np.float32)
        points = images.copy()
        for place, moved in enumerate((0.2, 0.4)):  # By one pixel, of a mass of 10.
            points[place, 0, 0] -= moved
            points[place, 0, 1] += moved
        settings = dataclasses.replace(SETTINGS, radius=0.03)
        draws = victims.image_draws(Victim(None), None, 2)
        everyone = np.ones(2, bool)
        group = flow._Group(images, None, draws, everyone, Victim(None), settings)
        _, far = group.judge(points, everyone)
        np.testing.assert_allclose(far, [0.02, np.inf], rtol=1e-5)

    def test_targeted(self):
        images, labels, weights = linear_case(0, 4)
        wanted = dataclasses.replace(SETTINGS, targeted=True, loss="cross_entropy")
        plain = dataclasses.replace(SETTINGS, loss="cross_entropy")
        classify = classifier(weights)
        reached = flow_attack(images, 1 - labels, classify, settings=wanted)
        fooled = flow_attack(images, labels, classify, settings=plain)
        np.testing.assert_allclose(reached.epsilon, fooled.epsilon, rtol=1e-3)
        already = flow_attack(images, labels, classify, settings=wanted)
        np.testing.assert_array_equal(already.epsilon, 0)

    def test_whole_levels(self):
        images, labels, weights = linear_case(0, 6)
        settings = dataclasses.replace(SETTINGS, levels=255)
        result = flow_attack(images, labels, classifier(weights), settings=settings)
        self.assertTrue(result.success.any())
        levels = np.rint(result.adversarial * 255)
        np.testing.assert_allclose(result.adversarial * 255, levels, atol=1e-4)
        np.testing.assert_array_equal(
            levels.sum((1, 2, 3)), np.rint(images * 255).sum((1, 2, 3))
        )
        np.testing.assert_array_equal(result.verified, result.success)

    def test_more_searches_find_nothing_worse(self):
        images, labels, weights = linear_case(2, 4)
        twice = dataclasses.replace(SETTINGS, restarts=2, max_steps=20)
        once = dataclasses.replace(SETTINGS, max_steps=20)
        classify, key = classifier(weights), jax.random.key(0)
        more = flow_attack(images, labels, classify, key=key, settings=twice)
        less = flow_attack(images, labels, classify, key=key, settings=once)
        self.assertTrue((more.epsilon <= less.epsilon * (1 + 1e-6)).all())
        with self.assertRaisesRegex(ValueError, "restarts is random: pass key"):
            flow_attack(images, labels, classify, settings=twice)

    @parameterized.parameters(1, 7)
    def test_restarts_of_an_image_depend_on_its_key_alone(self, batch_size):
        images, *_ = linear_case(2, 7)

        # A wavy boundary: what a search finds depends on where it starts.
        def classify(points):
            sums = jnp.einsum("bhwc,hwck->bk", points, waves)
            score = 2 + sums[:, 0] + 4 * jnp.sin(3 * sums[:, 1:]).sum(1)
            return jnp.stack([-score, score], -1)

        waves = np.random.default_rng(1).normal(size=(*SHAPE, 4)).astype(np.float32)
        labels = np.asarray(classify(images).argmax(-1))
        settings = dataclasses.replace(
            SETTINGS, restarts=3, max_steps=4, start_radius=0.5
        )
        keys = jax.random.split(jax.random.key(0), 7)
        expected, other = (
            flow_attack(images, labels, classify, key=k, settings=settings)
            for k in (keys, keys[::-1])
        )
        chosen = dataclasses.replace(settings, batch_size=batch_size)
        for rows in (slice(0, 7), np.array([5, 2])):
            found = flow_attack(
                images[rows], labels[rows], classify, key=keys[rows], settings=chosen
            )
            np.testing.assert_allclose(found.epsilon, expected.epsilon[rows], rtol=1e-3)
        apart = np.abs(other.epsilon / expected.epsilon - 1)
        self.assertGreater(np.nanmax(apart), 0.02)

    def test_every_restart_starts_elsewhere(self):
        images, *_ = linear_case(2, 2)
        images[1] = images[0]
        draws = victims.image_draws(Victim(None), jax.random.key(0), 2)
        starts = [
            flow._begin(
                images, draws, np.int32(restart), settings=SETTINGS, randomly=True
            ).flow.edges
            for restart in (1, 2, 2)
        ]
        np.testing.assert_array_equal(starts[1], starts[2])
        for one, other in ((starts[0], starts[1]), np.moveaxis(starts[0], -1, 0)):
            self.assertGreater(np.abs(one - other).max(), 1e-3)

    def test_no_question_is_asked_twice_under_one_key(self):
        images, labels, weights = linear_case(0, 3)
        seen = []

        def answer(keys, points):
            seen.extend(map(tuple, jax.random.key_data(keys).tolist()))
            scores = np.tensordot(np.asarray(points), weights, 3)
            return (scores > 0).astype(int)

        victim = Victim(classifier(weights), answer=answer)
        settings = dataclasses.replace(SETTINGS, max_steps=5, levels=255)
        flow_attack(images, labels, victim, key=jax.random.key(0), settings=settings)
        # Before, of two candidates, ten times on the segments, and to verify.
        self.assertGreater(len(seen), 3 * 10)
        self.assertLen(set(seen), len(seen))

    @parameterized.parameters(1, 3)
    def test_what_others_are_asked_does_not_change_the_draws(self, batch_size):
        images, labels, weights = linear_case(0, 3)
        labels = labels * [1, 0, 1]  # The second is wrong before anything is asked.
        asked = {}

        def answer(keys, points):
            scores = np.tensordot(np.asarray(points), weights, 3)
            asked.setdefault(batch, set()).update(
                map(tuple, jax.random.key_data(keys).tolist())
            )
            return (scores > 0).astype(int)

        victim = Victim(classifier(weights), answer=answer)
        keys = jax.random.split(jax.random.key(0), 3)
        for batch in (2, batch_size):
            settings = dataclasses.replace(SETTINGS, max_steps=5, batch_size=batch)
            flow_attack(images, labels, victim, key=keys, settings=settings)
        self.assertGreater(len(asked[2]), 20)
        self.assertEqual(asked[2], asked[batch_size])

    def test_early_answers_lead_and_others_count(self):
        images, labels, weights = linear_case(0, 2)
        asked = []

        def early(keys, points, max_votes):
            asked.append(max_votes)
            return np.zeros(len(points), int)  # Of luck: always wrong.

        victim = Victim(
            classifier(weights),
            answer=lambda keys, points: np.ones(len(points), int),
            answer_early=early,
        )
        settings = dataclasses.replace(SETTINGS, max_steps=5, num_votes=123)
        found = flow_attack(
            images, labels, victim, key=jax.random.key(0), settings=settings
        )
        self.assertEqual(set(asked), {123})
        self.assertTrue(found.success.all())
        self.assertFalse(found.verified.any())

    def test_images_that_are_wrong_already_stay(self):
        images, labels, weights = linear_case(0, 2)
        result = flow_attack(images, 1 - labels, classifier(weights), settings=SETTINGS)
        np.testing.assert_array_equal(result.adversarial, images)
        np.testing.assert_array_equal(result.epsilon, 0)
        np.testing.assert_array_equal(result.steps, 0)
        self.assertTrue(result.verified.all())

    def test_results_do_not_depend_on_the_batch(self):
        images, labels, weights = linear_case(0, 5)
        classify = classifier(weights)
        whole = flow_attack(images, labels, classify, settings=SETTINGS)
        alone = flow_attack(images[4:], labels[4:], classify, settings=SETTINGS)
        np.testing.assert_allclose(whole.epsilon[4:], alone.epsilon, rtol=1e-3)

    def test_new_weights_and_images_compile_nothing(self):
        images, labels, weights = linear_case(0, 4)
        flow_attack(images, labels, classifier(weights), settings=SETTINGS)
        with oracles.compilations() as compiled:
            flow_attack(
                images[::-1], labels, classifier(2 * weights), settings=SETTINGS
            )
        self.assertEqual(compiled, [])

    def test_abstentions_are_no_success(self):
        images, labels, weights = linear_case(0, 2)
        result = flow_attack(
            images,
            labels,
            Victim(
                classifier(weights),
                answer=lambda keys, images: np.full(len(images), ABSTAIN),
            ),
            key=jax.random.key(0),
            settings=SETTINGS,
        )
        self.assertFalse(result.success.any() or result.verified.any())
        np.testing.assert_array_equal(result.adversarial, images)

    def test_smoothed_classifier_is_wrong_by_fresh_votes(self):
        images, labels, weights = linear_case(0, 2)
        classify = classifier(weights)
        settings = dataclasses.replace(
            SETTINGS, ground_metric="l2", num_samples=16, num_votes=400
        )
        victim = smoothed(classify, SMOOTHING, n=1000, alpha=0.05)
        result = flow_attack(
            images,
            labels,
            victim,
            key=jax.random.key(0),
            settings=settings,
        )
        self.assertTrue(result.verified.all())
        self.check_valid(images, result)
        for place, point in enumerate(result.adversarial):
            least = oracles.nearest_below(images[place], weights, "l2")
            self.assertGreater(result.epsilon[place], 0.98 * least)
            self.assertLess(result.epsilon[place], 1.3 * least + 0.02)
            judge = FixedVotes(classify, SMOOTHING, n=1000, alpha=0.05)
            answer = judge.predict(point, jax.random.key(9))
            self.assertEqual(answer.label, 0)
        with self.assertRaisesRegex(ValueError, "pass key="):
            flow_attack(images, labels, victim)

    def test_broken_classifiers_are_named(self):
        images, labels, _ = linear_case(0, 2)

        def broken(images):
            return jnp.full((len(images), 2), jnp.nan)

        with self.assertRaisesRegex(ValueError, r"NaN or inf on images \[0, 1"):
            flow_attack(images, labels, broken, settings=SETTINGS)

    @parameterized.parameters(
        ({"radius": -0.1}, "radius=-0.1 is no distance"),
        ({"ground_metric": "linf"}, "ground_metric='linf'"),
        ({"neighbours": 6}, "neighbours=6"),
        ({"loss": "hinge"}, "loss='hinge'"),
        ({"max_steps": 0}, "max_steps=0"),
        ({"step_size": 0.0}, "step_size=0.0"),
        ({"levels": -1}, "levels=-1"),
    )
    def test_settings_outside_their_range(self, settings, message):
        with self.assertRaisesRegex(ValueError, message):
            FlowAttack(**settings)


if __name__ == "__main__":
    absltest.main()
