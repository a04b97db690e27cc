"""Tests of wsjax.data.augment.random_affine."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized
from scipy import ndimage

from wsjax.data.augment import random_affine


def blob(shape=(12, 10, 2)):
    """A smooth image away from the border."""
    rng = np.random.default_rng(0)
    image = np.zeros(shape, np.float32)
    image[3:9, 3:7] = rng.uniform(0.5, 1, (6, 4, shape[2]))
    return image


class RandomAffineTest(chex.TestCase):
    def test_without_motion_images_stay_as_they_are(self):
        images = jnp.asarray(blob())[None]
        still = random_affine(jax.random.key(0), images, 0.0, 0.0, 0.0)
        chex.assert_trees_all_close(still, images, atol=1e-6)

    def test_equals_scipy_with_the_same_matrix(self):
        image, key = blob(), jax.random.key(3)
        moved = random_affine(key, jnp.asarray(image)[None], 20.0, 0.2, 1.5)[0]
        draws = jax.random.uniform(
            jax.random.fold_in(key, 0), (5,), minval=-1.0, maxval=1.0
        )
        draws = np.asarray(draws, np.float64)
        angle = np.deg2rad(20.0 * draws[0])
        turn = np.array(
            [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
        )
        # New pixel o comes from M (o - middle - shift) + middle, rows of M scaled.
        matrix = (turn / (1 + 0.2 * draws[1:3])).T
        middle = np.array([5.5, 4.5])
        offset = middle - matrix @ (middle + 1.5 * draws[3:])
        for channel in range(image.shape[2]):
            expected = ndimage.affine_transform(
                image[..., channel].astype(np.float64), matrix, offset, order=1
            )
            # SciPy does not blend with the black outside within the last pixel.
            inner = (slice(2, -2), slice(2, -2))
            np.testing.assert_allclose(
                np.asarray(moved)[..., channel][inner], expected[inner], atol=1e-5
            )

    def test_each_image_moves_in_its_own_way_whatever_the_batch(self):
        images = jnp.asarray(np.stack([blob()] * 3))
        key = jax.random.key(1)
        moved = random_affine(key, images)
        self.assertGreater(float(jnp.abs(moved[0] - moved[1]).max()), 0.01)
        chex.assert_trees_all_close(
            random_affine(key, images[:2]), moved[:2], atol=1e-6
        )

    @parameterized.parameters(
        ({"degrees": -1.0}, "degrees=-1.0"),
        ({"zoom": 1.0}, "zoom=1.0"),
        ({"shift": -0.5}, "shift=-0.5"),
    )
    def test_refuses_numbers_outside_their_range(self, changes, message):
        with self.assertRaisesRegex(ValueError, message):
            random_affine(jax.random.key(0), jnp.ones((1, 4, 4, 1)), **changes)

    def test_refuses_a_single_image(self):
        with self.assertRaisesRegex(ValueError, "Expected a batch"):
            random_affine(jax.random.key(0), jnp.ones((4, 4, 1)))


if __name__ == "__main__":
    absltest.main()
