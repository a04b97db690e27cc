"""Tests of wsjax.images."""

import math

import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from wsjax import FixedVotes, make_key, make_smoothing
from wsjax.images import LEAST_MASS, MOST_MASS, check_image
from wsjax.noise import FlowLaplace

IMAGE = np.random.default_rng(0).uniform(0.5, 1.0, (2, 3, 1)).astype(np.float32)
CERTIFIER = FixedVotes(
    lambda images: images.reshape(len(images), -1),
    make_smoothing("flow_laplace", 0.1, "l1"),
)


class CheckImageTest(parameterized.TestCase):
    @parameterized.named_parameters(
        ("matrix", np.ones((2, 3), np.float32), r"shape \[H, W, C\], got \(2, 3\)"),
        ("batch", np.ones((1, 2, 3, 1), np.float32), "one image at a time"),
        ("empty", np.ones((0, 3, 1), np.float32), r"got \(0, 3, 1\)"),
        ("bytes", np.ones((2, 3, 1), np.uint8), r"uint8.*astype\(np.float32\) / 255"),
        ("integers", np.ones((2, 3, 1), int), "Image pixels are int64"),
        ("nan", np.full((2, 3, 1), np.nan, np.float32), "6 of the image's 6 pixels"),
        ("infinite", np.array([[[1.0], [np.inf]]]), "1 of the image's 2 pixels"),
        ("negative", np.array([[[1.0], [-0.5]]]), "smallest is -0.5.*standardisation"),
        ("half", np.ones((2, 3, 1), np.float16), "Image pixels are float16"),
        # Of one pixel: flow noise of 1 % of its mass is below what float32 has.
        ("tiny", np.array([[[2e-37], [0.0]]], np.float32), "mass of 2e-37, outside"),
        ("huge", np.array([[[2e37], [0.0]]], np.float32), "mass of 2e.37, outside"),
        ("black", np.zeros((2, 3, 1), np.float32), "all black.*undefined"),
    )
    def test_refuses(self, image, message):
        with self.assertRaisesRegex(ValueError, message):
            check_image(image)
        for run in (
            lambda: CERTIFIER.certify(image, make_key(0)),
            lambda: CERTIFIER.predict(image, make_key(0)),
        ):
            with self.assertRaisesRegex(ValueError, message):
                run()

    def test_accepts_any_nonnegative_mass(self):
        check_image(IMAGE)
        check_image(jnp.asarray(255 * IMAGE))
        check_image(np.array([[[0.0, 0.0, 1e-12]]], np.float64))

    @parameterized.parameters(LEAST_MASS, MOST_MASS)
    def test_noise_is_the_same_share_of_any_mass(self, mass):
        """Of a power of two, bit by bit, under as little and as much noise as there is."""
        factor = np.float32(2.0 ** np.rint(np.log2(mass)))
        image = np.array([[[1.0], [0.0]], [[0.0], [0.0]]], np.float32)
        for scale in (1.01e-12, 0.99e12):
            law = FlowLaplace(scale * math.sqrt(2))
            key = make_key(1)
            np.testing.assert_array_equal(
                law.perturb(key, factor * image), factor * law.perturb(key, image)
            )
            self.assertGreater(np.abs(law.perturb(key, image)[1]).min(), scale / 1e4)


if __name__ == "__main__":
    absltest.main()
