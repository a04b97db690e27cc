"""Tests of wsjax.attacks.pgd and wsjax.attacks.measurement."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import oracles
from absl.testing import absltest, parameterized

from wsjax.attacks import (
    SinkhornAttack,
    Victim,
    measure,
    sinkhorn_attack,
    smoothed,
)
from wsjax.attacks.measurement import restore_mass
from wsjax.scores import ABSTAIN
from wsjax.smoothing import make_smoothing
from wsjax.transport import exact_distance

SHAPE = (4, 5, 1)
# A lambda that fits images of twenty pixels; small so that few rounds are needed.
SETTINGS = SinkhornAttack(
    epsilon=0.02, epsilon_every=2, max_steps=40, batch_size=4, regularization=300.0
)
# One object for all tests: another one would compile anew.
SMOOTHING = make_smoothing("flow_laplace", 0.01, "l2")


def linear_logits(weights, images):
    """Two classes, told apart by the sign of `sum(weights * image)`."""
    score = jnp.tensordot(images, weights, 3)
    return jnp.stack([-score, score], axis=-1)


def linear_case(seed, count):
    """Images of class 1, and a linear classifier that a little transport misleads."""
    rng = np.random.default_rng(seed)
    images = rng.uniform(0.25, 0.75, size=(count, *SHAPE))
    weights = rng.normal(size=SHAPE)
    weights -= weights.mean()
    # Puts the scores where they should be.
    excess = np.tensordot(images, weights, 3) - rng.uniform(0.1, 1.0, size=count)
    images -= np.multiply.outer(excess, weights / (weights**2).sum())
    classify = jax.tree_util.Partial(linear_logits, jnp.float32(weights))
    return images.clip(0, 1).astype(np.float32), np.ones(count, np.int32), classify


def always_right(keys, images):
    return np.ones(len(images), int)


def answers(classify, images):
    return np.argmax(classify(jnp.asarray(images)), axis=-1)


class SinkhornAttackTest(chex.TestCase):
    @parameterized.parameters(("sign", True), ("sign", False), ("l2", False))
    def test_a_success_is_an_image_that_is_classified_wrongly(self, step, clamp):
        images, labels, classify = linear_case(0, 6)
        settings = dataclasses.replace(SETTINGS, step=step, clamp=clamp)

        result = sinkhorn_attack(images, labels, classify, settings=settings)

        wrong = answers(classify, result.adversarial) != labels
        np.testing.assert_array_equal(result.success, wrong)
        np.testing.assert_array_equal(result.verified, wrong)
        self.assertGreater(result.success.sum(), 4)
        self.assertGreater(np.ptp(result.steps), 0)

    def test_epsilon_is_the_radius_at_the_first_success(self):
        images, labels, classify = linear_case(1, 6)
        settings = dataclasses.replace(SETTINGS, clamp=False)

        result = sinkhorn_attack(images, labels, classify, settings=settings)

        tried = result.success & (result.steps > 0)
        self.assertGreater(tried.sum(), 2)
        growths = (result.steps - 1) // settings.epsilon_every
        expected = settings.epsilon * settings.epsilon_factor**growths
        np.testing.assert_allclose(result.epsilon[tried], expected[tried])
        self.assertTrue((result.epsilon[~result.success] == np.inf).all())
        for n in np.flatnonzero(tried):
            distance = exact_distance(images[n], result.adversarial[n], "l2")
            self.assertGreater(distance, 0.0)
            self.assertLessEqual(distance, result.epsilon[n] * (1 + 1e-4))

    @parameterized.parameters("l1", "l2")
    def test_stays_in_the_ball_of_its_ground_metric(self, metric):
        images, labels, classify = linear_case(2, 4)
        settings = dataclasses.replace(
            SETTINGS,
            ground_metric=metric,
            epsilon=0.1,
            epsilon_factor=1.0,
            max_steps=4,
            clamp=False,
        )

        # Every answer counts as right: the attack goes on to the end.
        result = sinkhorn_attack(
            images,
            labels,
            Victim(classify, answer=always_right),
            key=jax.random.key(0),
            settings=settings,
        )

        self.assertFalse(result.success.any())
        np.testing.assert_array_equal(result.steps, 4)
        for image, moved in zip(images, result.adversarial):
            distance = exact_distance(image, moved, metric)
            self.assertBetween(distance, 0.03, 0.1 * (1 + 1e-4))

    def test_clamping_keeps_pixels_in_range(self):
        images, labels, classify = linear_case(3, 4)
        images = np.clip(images * 1.6, 0, 1)

        for clamp in (True, False):
            settings = dataclasses.replace(
                SETTINGS, clamp=clamp, epsilon=1.0, max_steps=5
            )
            result = sinkhorn_attack(
                images,
                labels,
                Victim(classify, answer=always_right),
                key=jax.random.key(0),
                settings=settings,
            )
            self.assertGreaterEqual(result.adversarial.min(), 0.0)
            if clamp:
                self.assertLessEqual(result.adversarial.max(), 1.0)
            else:
                self.assertGreater(result.adversarial.max(), 1.0)

    def test_images_that_are_wrong_already_are_left_alone(self):
        images, labels, classify = linear_case(4, 5)
        labels[[1, 3]] = 0

        result = sinkhorn_attack(images, labels, classify, settings=SETTINGS)

        for n in (1, 3):
            self.assertEqual(result.epsilon[n], 0.0)
            self.assertEqual(result.steps[n], 0)
            self.assertTrue(result.success[n] and result.verified[n])
            np.testing.assert_array_equal(result.adversarial[n], images[n])
        self.assertTrue((result.steps[[0, 2, 4]] > 0).all())

    def test_failures_are_reported(self):
        images, labels, classify = linear_case(5, 3)
        classify = jax.tree.map(jnp.ones_like, classify)  # Sees the mass only.

        result = sinkhorn_attack(
            images,
            labels,
            classify,
            settings=dataclasses.replace(SETTINGS, max_steps=3),
        )

        self.assertFalse(result.success.any() or result.verified.any())
        np.testing.assert_array_equal(result.epsilon, np.inf)
        np.testing.assert_array_equal(result.steps, 3)

    def test_a_result_does_not_depend_on_the_other_images(self):
        images, labels, classify = linear_case(6, 7)

        together = sinkhorn_attack(images, labels, classify, settings=SETTINGS)

        for few in (slice(0, 1), slice(0, 3)):
            alone = sinkhorn_attack(
                images[few], labels[few], classify, settings=SETTINGS
            )
            for actual, expected in zip(alone, together):
                np.testing.assert_allclose(actual, expected[few], atol=1e-6)

    def test_new_weights_counts_and_radii_compile_nothing(self):
        images, labels, classify = linear_case(7, 6)
        sinkhorn_attack(images, labels, classify, settings=SETTINGS)
        other = jax.tree.map(lambda weights: 1.01 * weights, classify)
        settings = dataclasses.replace(SETTINGS, epsilon=0.03, max_steps=10)

        with oracles.compilations() as compiled:
            sinkhorn_attack(images[:5], labels[:5], other, settings=settings)

        self.assertEmpty(compiled)

    def test_dark_images_are_projected_by_logarithms(self):
        # Against a mass of 0.2, a step of 0.1 times lambda leaves float32's range.
        images, labels, classify = linear_case(8, 2)
        images[0] *= 0.02
        settings = dataclasses.replace(SETTINGS, clamp=False, max_steps=3, epsilon=0.1)

        result = sinkhorn_attack(
            images,
            labels,
            Victim(classify, answer=always_right),
            key=jax.random.key(0),
            settings=settings,
        )

        for image, moved, epsilon in zip(images, result.adversarial, (0.11, 0.11)):
            np.testing.assert_allclose(moved.sum(), image.sum(), rtol=1e-4)
            distance = exact_distance(image, moved, "l2")
            self.assertBetween(distance, 0.02, epsilon * (1 + 1e-3))

    @parameterized.named_parameters(
        ("range", lambda x: 255 * x, r"Image 0 .*outside \[0, 1\]. Divide 8-bit"),
        ("negative", lambda x: x - 0.5, r"Image 0 of 3: Pixels are mass"),
        ("nan", lambda x: np.where(x == x[1, 0, 0, 0], np.nan, x), "Image 1 .* NaN"),
        ("black", lambda x: x * np.reshape([1, 1, 0], (3, 1, 1, 1)), "Image 2 .*black"),
        (
            "mass",
            lambda x: x * np.float32(1e-20),
            "Image 0 .* mass of 1.08e-19, outside",
        ),
        ("integers", lambda x: x.astype(int), "Image pixels are int64"),
        ("half", lambda x: x.astype(np.float16), "Image pixels are float16"),
        ("one_image", lambda x: x[0], r"instead of \[N, H, W, C\]"),
        ("count", lambda x: x[:2], "2 images need as many integers"),
    )
    def test_refuses_images(self, spoil, message):
        images, labels, classify = linear_case(9, 3)
        with self.assertRaisesRegex(ValueError, message):
            sinkhorn_attack(spoil(images), labels, classify, settings=SETTINGS)

    def test_refuses_a_classifier_that_returns_nan(self):
        images, labels, _ = linear_case(10, 3)
        with self.assertRaisesRegex(ValueError, r"NaN or inf on images \[0, 1, 2"):
            sinkhorn_attack(
                images,
                labels,
                lambda images: jnp.full((len(images), 2), jnp.nan),
                settings=SETTINGS,
            )

    @parameterized.parameters(
        ({"step": "linf"}, "step='linf' is neither"),
        ({"epsilon": 0.0}, "epsilon=0.0 is not a positive"),
        ({"step_size": -0.1}, "step_size=-0.1"),
        ({"epsilon_factor": 0.9}, "epsilon_factor=0.9 is below 1"),
        ({"max_steps": 0}, "max_steps=0 is not a whole number above zero"),
        ({"kernel_size": 4}, "kernel_size=4 is not an odd"),
        ({"ground_metric": "l3"}, "'l3'"),
    )
    def test_settings_refuse(self, changes, message):
        with self.assertRaisesRegex(ValueError, message):
            SinkhornAttack(**changes)


class SmoothedAttackTest(chex.TestCase):
    settings = dataclasses.replace(SETTINGS, num_samples=4, batch_size=8)

    def attack(self, case, seed=0, answer=None, settings=settings):
        images, labels, classify = case
        victim = smoothed(classify, SMOOTHING, n=100, alpha=0.05)
        if answer is not None:
            victim = dataclasses.replace(victim, answer=answer)
        key = jax.random.key(seed)
        return sinkhorn_attack(images, labels, victim, key=key, settings=settings)

    def test_misleads_the_votes(self):
        case = linear_case(20, 3)

        result = self.attack(case)

        self.assertTrue(result.success.all())
        # Linear, and noise is symmetric: the likelier class is that of the image.
        sure = result.verified
        self.assertGreater(sure.sum(), 0)
        np.testing.assert_array_equal(answers(case[2], result.adversarial)[sure], 0)

    def test_the_key_decides(self):
        case = linear_case(21, 2)

        one, same, other = (self.attack(case, seed) for seed in (0, 0, 1))

        chex.assert_trees_all_equal(one, same)
        self.assertTrue((one.adversarial != other.adversarial).any())

    def test_steps_along_the_gradient_of_the_mean_softmax(self):
        # Noise chooses between two sides. On one, class 1 has logit s; on the other
        # class 1 has logit -3 s. Here s = 2.
        def classify(images):
            side = jnp.where(images[:, 0, 0, 0] > 0.5, 1, -3)
            s = 0.1 * jnp.tensordot(images[..., 0].sum(1), jnp.arange(5.0), 1)
            return jnp.stack([jnp.zeros_like(s), side * s], axis=-1)

        def flip(key, image):
            sign = jax.random.rademacher(key, (), image.dtype)
            return image.at[0, 0, 0].set(0.5 + sign)

        images = np.full((1, *SHAPE), 0.5, np.float32)
        settings = dataclasses.replace(
            SETTINGS, step="l2", num_samples=16, max_steps=1, clamp=False, epsilon=5.0
        )

        result = sinkhorn_attack(
            images,
            np.array([1]),
            Victim(classify, flip, always_right),
            key=jax.random.key(2),
            settings=settings,
        )

        # The mean softmax follows the copies whose answer can still change: s falls,
        # so mass leaves the right. The mean of the log softmax would follow the other
        # copies, whose loss is nearly linear, the opposite way.
        moved = (result.adversarial - images)[0, ..., 0].sum(0)
        self.assertLess(moved[4], moved[1])

    def test_abstentions_count_when_asked_to(self):
        case = linear_case(22, 2)

        def undecided(keys, images):
            return np.full(len(images), ABSTAIN)

        for counts in (False, True):
            settings = dataclasses.replace(
                self.settings, abstention_counts=counts, max_steps=2
            )
            result = self.attack(case, answer=undecided, settings=settings)
            self.assertTrue((result.success == counts).all())
            self.assertTrue((result.verified == counts).all())

    def test_successes_are_voted_on_again_with_keys_not_used_before(self):
        case = linear_case(23, 2)
        seen = []

        def wrong_once(keys, images):
            """Wrong on the second call only: a lucky draw of the attack."""
            seen.extend(np.asarray(jax.random.key_data(keys)).tolist())
            calls = len(seen) // len(keys)
            return np.full(len(images), 0 if calls == 2 else 1)

        result = self.attack(case, answer=wrong_once)

        self.assertTrue(result.success.all())
        np.testing.assert_array_equal(result.steps, 1)
        self.assertFalse(result.verified.any())
        self.assertLen(seen, 6)
        self.assertLen({tuple(key) for key in seen}, 6)

    def test_needs_a_key(self):
        images, labels, classify = linear_case(24, 1)
        with self.assertRaisesRegex(ValueError, "pass key="):
            victim = smoothed(classify, SMOOTHING, n=100, alpha=0.05)
            sinkhorn_attack(images, labels, victim)


class MeasureTest(chex.TestCase):
    def test_measures_both_metrics_and_the_range(self):
        images = np.full((2, 4, 5, 1), 0.1)
        moved = images.copy()
        moved[0, 0, 0] -= 0.1
        moved[0, 3, 4] += 0.1

        actual = measure(images, moved)

        np.testing.assert_allclose(actual.l1, [7 / 20, 0.0], atol=1e-9)
        np.testing.assert_allclose(actual.l2, [5 / 20, 0.0], atol=1e-9)
        np.testing.assert_allclose(actual.mass_error, 0.0, atol=1e-12)
        np.testing.assert_allclose(actual.lowest, [0.0, 0.1], atol=1e-12)
        np.testing.assert_allclose(actual.highest, [0.2, 0.1])

    def test_restores_the_mass_of_every_channel_first(self):
        rng = np.random.default_rng(30)
        images, others = rng.uniform(size=(2, 1, 3, 4, 2))
        others *= images.sum((1, 2)) / others.sum((1, 2))
        lossy = others * [0.9, 1.2]

        actual = measure(images, lossy)

        restored = restore_mass(images[0], lossy[0])
        np.testing.assert_allclose(restored, others[0])
        for metric in ("l1", "l2"):
            expected = exact_distance(images[0], others[0], metric)
            self.assertAlmostEqual(getattr(actual, metric)[0], expected, places=9)
        masses = images.sum((1, 2))[0]
        expected = (0.1 * masses[0] + 0.2 * masses[1]) / masses.sum()
        self.assertAlmostEqual(actual.mass_error[0], expected, places=12)

    def test_a_channel_that_went_black_is_infinitely_far(self):
        images = np.full((1, 3, 4, 2), 0.5)
        moved = images * [1.0, 0.0]

        actual = measure(images, moved)

        self.assertEqual((actual.l1[0], actual.l2[0]), (np.inf, np.inf))
        self.assertEqual(actual.mass_error[0], 0.5)
        self.assertIsNone(restore_mass(images[0], moved[0]))

    def test_a_channel_that_was_black_loses_what_it_gained(self):
        images = np.full((1, 3, 4, 2), 0.5) * [1.0, 0.0]
        moved = images + [0.0, 0.25]

        actual = measure(images, moved)

        self.assertEqual((actual.l1[0], actual.mass_error[0]), (0.0, 0.5))

    def test_refuses_other_shapes(self):
        with self.assertRaisesRegex(ValueError, r"must both be \[N, H, W, C\]"):
            measure(np.ones((1, 3, 4, 1)), np.ones((3, 4, 1)))


if __name__ == "__main__":
    absltest.main()
