"""Tests of wsjax.attacks.repair and wsjax.attacks.losses."""

import chex
import jax
import numpy as np
from absl.testing import absltest, parameterized

from wsjax.attacks import losses, repair


def case(seed, shape=(5, 4, 3, 2)):
    """Images, and points that leave their range and mass."""
    rng = np.random.default_rng(seed)
    images = rng.uniform(size=shape).astype(np.float32)
    return images, (images + rng.normal(size=shape)).astype(np.float32)


class NearestValidTest(chex.TestCase):
    def test_mass_and_range_are_those_of_an_image(self):
        images, points = case(0)
        valid = np.asarray(repair.nearest_valid(images, points))
        chex.assert_trees_all_close(valid.sum((1, 2)), images.sum((1, 2)), rtol=2e-6)
        self.assertTrue((valid >= 0).all() and (valid <= 1).all())

    def test_no_valid_image_is_closer(self):
        images, points = case(1)
        valid = np.asarray(repair.nearest_valid(images, points), np.float64)
        slope = valid - points
        for n, c in np.ndindex(len(images), images.shape[-1]):
            # The valid image that goes farthest along minus the slope fills the
            # pixels of the least slope first.
            order = np.argsort(slope[n, ..., c].ravel())
            mass, best = images[n, ..., c].sum(dtype=np.float64), 0.0
            for pixel in order:
                best += min(1.0, mass) * slope[n, ..., c].ravel()[pixel]
                mass -= min(1.0, mass)
            here = (slope[n, ..., c] * valid[n, ..., c]).sum()
            self.assertLess(here - best, 1e-5)

    def test_valid_points_stay_up_to_rounding(self):
        images, _ = case(2)
        chex.assert_trees_all_close(
            repair.nearest_valid(images, images), images, atol=1e-6
        )

    def test_black_and_white_channels(self):
        images = np.zeros((1, 3, 3, 2), np.float32)
        images[..., 1] = 1
        points = np.random.default_rng(0).normal(size=images.shape).astype(np.float32)
        chex.assert_trees_all_close(
            repair.nearest_valid(images, points), images, atol=1e-6
        )


class RoundToLevelsTest(chex.TestCase):
    def test_keeps_the_mass_to_the_last_level(self):
        rng = np.random.default_rng(0)
        images = rng.integers(0, 256, size=(4, 6, 5, 3)) / 255
        moved = images + 0.2 * rng.normal(size=images.shape)
        points = np.asarray(repair.nearest_valid(images, moved))
        rounded = repair.round_to_levels(images, points)
        levels = np.rint(rounded * 255)
        np.testing.assert_array_equal(rounded, (levels / 255).astype(np.float32))
        np.testing.assert_array_equal(
            levels.sum((1, 2)), np.rint(images * 255).sum((1, 2))
        )
        self.assertLess(np.abs(levels - 255 * points).max(), 1 + 1e-3)
        self.assertTrue((levels >= 0).all() and (levels <= 255).all())

    def test_images_between_levels_are_refused(self):
        images = np.full((1, 2, 2, 1), 0.3301)
        with self.assertRaisesRegex(ValueError, "8-bit"):
            repair.round_to_levels(images, images)


class LossesTest(parameterized.TestCase):
    logits = np.array([[1.0, 3.0, -2.0, 0.5], [0.0, -1.0, 4.0, 4.5]], np.float32)
    labels = np.array([1, 2])

    def test_margin(self):
        actual = losses.margin(self.logits, self.labels)
        np.testing.assert_allclose(actual, [2.0, -0.5])
        targeted = losses.margin(self.logits, self.labels, targeted=True)
        np.testing.assert_allclose(targeted, [-2.0, 0.5])

    def test_cross_entropy_goes_the_way_of_the_log_probability(self):
        def log_probability(logits):
            return jax.nn.log_softmax(logits)[np.arange(2), self.labels].sum()

        def odds(logits, *targeted):
            return losses.loss(logits, self.labels, "cross_entropy", *targeted).sum()

        chance = jax.nn.softmax(self.logits)[np.arange(2), self.labels]
        expected = jax.grad(log_probability)(self.logits) / (1 - chance[:, None])
        actual = jax.grad(odds)(self.logits)
        np.testing.assert_allclose(actual, expected, rtol=1e-4)
        targeted = jax.grad(odds)(self.logits, True)
        np.testing.assert_allclose(targeted, -actual)
        # Where the probability is one, its logarithm has no gradient left.
        sure = jax.grad(odds)(100 * self.logits)
        np.testing.assert_allclose(sure[0], [-1, 1, 0, 0], atol=1e-5)

    def test_dlr_does_not_depend_on_the_scale(self):
        actual = losses.loss(self.logits, self.labels, "dlr")
        np.testing.assert_allclose(actual, [2 / 2.5, -0.5 / 4.5], rtol=1e-6)
        scaled = losses.loss(1000 * self.logits, self.labels, "dlr")
        np.testing.assert_allclose(scaled, actual, rtol=1e-5)

    def test_two_classes_and_equal_logits_are_finite(self):
        for logits in (self.logits[:, :2], np.zeros((2, 4), np.float32)):
            for name in losses.LOSSES:
                actual = losses.loss(logits, np.array([0, 1]), name)
                self.assertTrue(np.isfinite(actual).all(), name)

    def test_slopes_of_no_use_count_as_zero(self):
        slopes = np.zeros((4, 2, 3, 1), np.float32)
        slopes[0, 1, 2], slopes[0, 0, 0] = -4, 2
        slopes[2, 0, 0], slopes[3, 0, 0] = np.nan, np.inf
        actual = losses.with_largest_one(slopes)
        np.testing.assert_array_equal(actual[0], slopes[0] / 4)
        np.testing.assert_array_equal(actual[1:], 0)

    def test_norms_of_slopes_of_any_size(self):
        slopes = np.array([3.0, -4.0], np.float32).reshape(1, 1, 2, 1)
        for unit in (1e-38, 1e-30, 1.0, 1e30):
            actual = losses.with_norm_one(np.float32(unit) * slopes)
            np.testing.assert_allclose(actual.ravel(), [0.6, -0.8], rtol=1e-5)
        np.testing.assert_array_equal(losses.with_norm_one(0 * slopes), 0)

    def test_usual_unit(self):
        near = np.float32([[4.0, -2.0, 1.0], [4.0, -3.0, 1.0]])
        for unit in (1e-30, 1e-6, 1e6, 1e30):
            actual = losses.in_usual_unit(np.float32(unit) * near)
            spread = 4 if unit < 1 else 80
            expected = near * spread / np.array([[6.0], [7.0]])
            np.testing.assert_allclose(actual, expected, rtol=1e-5)
        np.testing.assert_array_equal(losses.in_usual_unit(near), near)
        copies = losses.in_usual_unit(1e6 * near[None])
        np.testing.assert_allclose(copies, near[None] * 80 / 6.5, rtol=1e-5)
        for outputs in (jax.nn.softmax(near), jax.nn.log_softmax(near)):
            actual = losses.in_usual_unit(outputs)
            np.testing.assert_allclose(actual, jax.nn.log_softmax(near), rtol=1e-5)
        flat = np.zeros((1, 3), np.float32)
        np.testing.assert_array_equal(losses.in_usual_unit(flat), flat)

    def test_unknown_loss(self):
        with self.assertRaisesRegex(ValueError, "loss='hinge'"):
            losses.loss(self.logits, self.labels, "hinge")


if __name__ == "__main__":
    absltest.main()
