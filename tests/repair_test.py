"""Tests of wsjax.attacks.repair and wsjax.attacks.losses."""

import chex
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

    def test_cross_entropy_is_the_log_probability(self):
        expected = [
            row[label] - np.log(np.exp(row).sum())
            for row, label in zip(self.logits, self.labels)
        ]
        actual = losses.loss(self.logits, self.labels, "cross_entropy")
        np.testing.assert_allclose(actual, expected, rtol=1e-5)
        targeted = losses.loss(self.logits, self.labels, "cross_entropy", True)
        np.testing.assert_allclose(targeted, np.negative(expected), rtol=1e-5)

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

    def test_unknown_loss(self):
        with self.assertRaisesRegex(ValueError, "loss='hinge'"):
            losses.loss(self.logits, self.labels, "hinge")


if __name__ == "__main__":
    absltest.main()
