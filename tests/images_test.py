"""Tests of wsjax.images."""

import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from wsjax import FixedVotes, make_key, make_smoothing
from wsjax.images import check_image

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
        check_image(np.array([[[0.0, 0.0, 1e-30]]], np.float64))


if __name__ == "__main__":
    absltest.main()
