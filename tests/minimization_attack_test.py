"""Tests of wsjax.interop.minimization_attack."""

import types

import chex
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest

from wsjax.attacks import FlowAttack
from wsjax.interop.minimization_attack import WassersteinAttack
from wsjax.transport import exact_distance

ATTACK = WassersteinAttack(FlowAttack(max_steps=30, batch_size=4))


def left_or_right(images):
    """Class 0 for images with more mass on the left."""
    left, right = images[:, :, :2].sum((1, 2, 3)), images[:, :, 2:].sum((1, 2, 3))
    return jnp.stack([left, right], -1)


def images():
    found = np.zeros((3, 3, 4, 1), np.float32)
    for place, share in enumerate((0.6, 0.7, 0.9)):
        found[place, :, :2] = share / 2
        found[place, :, 2:] = (1 - share) / 2
    return found, np.zeros(3, int)


class WassersteinAttackTest(chex.TestCase):
    def test_least_radii_are_those_of_the_boundary(self):
        inputs, labels = images()
        raw, clipped, success = ATTACK(left_or_right, inputs, labels)
        self.assertIs(raw, clipped)
        self.assertTrue(success.all())
        far = [exact_distance(*pair) for pair in zip(inputs, raw)]
        # So much of the mass has to cross the middle, by one pixel.
        np.testing.assert_allclose(far, [0.1, 0.2, 0.4], rtol=0.02)

    def test_success_and_clipping_at_each_radius(self):
        inputs, labels = images()
        radii = [0.05, 0.15, 0.3, 0.5]
        raw, clipped, success = ATTACK(left_or_right, inputs, labels, epsilons=radii)
        expected = np.array([[r > far for far in (0.1, 0.2, 0.4)] for r in radii])
        np.testing.assert_array_equal(success, expected)
        self.assertLen(raw, 4)
        for radius, batch in zip(radii, clipped):
            for image, point in zip(inputs, batch):
                self.assertLessEqual(exact_distance(image, point), radius + 1e-5)
        one = ATTACK(left_or_right, inputs, labels, epsilons=0.15)
        np.testing.assert_array_equal(one[2], expected[1])
        np.testing.assert_array_equal(one[1], clipped[1])

    def test_seeds_have_one_name(self):
        with self.assertRaisesRegex(ValueError, "seed=4294967296 is no whole number"):
            WassersteinAttack(seed=2**32)

    def test_criteria(self):
        inputs, labels = images()
        wrapped = types.SimpleNamespace(raw=labels)
        plain = ATTACK(left_or_right, inputs, types.SimpleNamespace(labels=wrapped))
        target = types.SimpleNamespace(target_classes=1 - labels)
        targeted = ATTACK(left_or_right, inputs, target)
        np.testing.assert_allclose(plain[0], targeted[0], atol=1e-5)
        with self.assertRaisesRegex(ValueError, "target_classes: str"):
            ATTACK(left_or_right, inputs, "cats")

    def test_bad_bounds_and_settings(self):
        inputs, labels = images()

        class Model:
            bounds = (-1, 1)
            __call__ = staticmethod(left_or_right)

        with self.assertRaisesRegex(ValueError, r"bounds=\(-1, 1\) must be \(0, 1\)"):
            ATTACK(Model(), inputs, labels)
        with self.assertRaisesRegex(ValueError, "radius=0.1 fixes one radius"):
            WassersteinAttack(FlowAttack(radius=0.1))


if __name__ == "__main__":
    absltest.main()
