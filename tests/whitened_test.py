"""The network on whitened patches, and its fast convolution."""

import types

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from wsjax import models
from wsjax.data.dataset import make_dataset
from wsjax.models import fast_conv
from wsjax.runs import experiment


def images_of(*shape):
    return np.random.default_rng(0).uniform(0.2, 1.0, shape).astype(np.float32)


class Conv3x3Test(parameterized.TestCase):
    @parameterized.parameters(((7, 5, 6, 3), 4), ((70, 7, 7, 8), 5))
    def test_it_and_its_gradients_are_those_of_the_convolution(self, shape, width):
        images = jax.random.normal(jax.random.key(0), shape)
        kernel = jax.random.normal(jax.random.key(1), (3, 3, shape[-1], width))

        def plain(images, kernel):
            return jax.lax.conv_general_dilated(
                images,
                kernel,
                (1, 1),
                "SAME",
                dimension_numbers=("NHWC", "HWIO", "NHWC"),
            )

        expected, back = jax.vjp(plain, images, kernel)
        found, fast_back = jax.vjp(fast_conv.conv3x3, images, kernel)
        above = jax.random.normal(jax.random.key(2), expected.shape)
        np.testing.assert_array_equal(found, expected)
        for one, other in zip(back(above), fast_back(above), strict=True):
            np.testing.assert_allclose(other, one, atol=1e-5 * abs(one).max())
        elsewhere = fast_conv.kernel_gradient_by_convolution(images, above)
        np.testing.assert_allclose(elsewhere, back(above)[1], rtol=1e-5, atol=1e-3)


class WhitenedNetTest(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        self.module = models.create("whitened", 5, widths=(4, 6, 6), unit="mass")
        self.images = images_of(40, 13, 12, 3) * np.array([1, 0.5, 0.2], np.float32)
        self.images[..., 1:] += 0.3 * self.images[..., :-1]
        self.fresh = self.module.init(jax.random.key(0), self.images)

    def test_what_leaves_the_first_layer_is_white(self):
        variables = self.module.started(self.fresh, self.images)
        statistics = variables["batch_stats"]
        unit = self.images / self.images.mean((1, 2, 3), keepdims=True)
        out = jax.lax.conv_general_dilated(
            unit - statistics["patch"],
            statistics["whitening"],
            (1, 1),
            "VALID",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        flat = np.asarray(out).reshape(-1, 24)
        covariance = flat.T @ flat / len(flat)
        eye = np.eye(12)
        np.testing.assert_allclose(
            covariance, np.block([[eye, -eye], [-eye, eye]]), atol=0.1
        )

    @parameterized.parameters(None, 0.5)
    def test_a_run_starts_it_from_noisy_training_images(self, sigma):
        stored = np.asarray(255 * self.images / self.images.max(), np.uint8)
        examples = types.SimpleNamespace(
            data=make_dataset(stored, np.arange(40, dtype=np.int32) % 5, 5, 255)
        )

        def noise(key, image):
            return image + sigma * jax.random.normal(key, image.shape)

        start = experiment.make_start(
            self.module, examples, 3, None if sigma is None else noise
        )
        found = start(self.fresh)["batch_stats"]["whitening"]

        clean = self.module.started(self.fresh, stored / np.float32(255))
        expected = clean["batch_stats"]["whitening"]
        size = np.linalg.norm(found) / np.linalg.norm(expected)
        if sigma is None:
            self.assertAlmostEqual(size, 1, places=4)
        else:
            self.assertLess(size, 0.7)

    def test_training_leaves_the_whitening_as_it_is(self):
        variables = self.module.started(self.fresh, self.images)

        def loss(params):
            logits, updates = self.module.apply(
                {**variables, "params": params},
                self.images,
                train=True,
                mutable=["batch_stats"],
            )
            return logits.std(), (logits, updates)

        gradient, (logits, updates) = jax.grad(loss, has_aux=True)(variables["params"])
        self.assertEqual(logits.shape, (40, 5))
        for leaf in jax.tree.leaves(gradient):
            self.assertGreater(jnp.abs(leaf).max(), 0)
        before, after = variables["batch_stats"], updates["batch_stats"]
        for name in ("whitening", "patch"):
            np.testing.assert_array_equal(after[name], before[name])
        self.assertGreater(jnp.abs(after["BatchNorm_0"]["mean"]).max(), 0)

    def test_images_that_cannot_be_halved_so_often_are_refused(self):
        module = models.create("whitened", 5, widths=(4, 4, 4))
        init = lambda side: jax.eval_shape(
            module.init, jax.random.key(0), jnp.zeros((1, 20, side, 1))
        )
        init(9)
        with self.assertRaisesRegex(ValueError, "20 x 8 pixels 3 times.*more than 8"):
            init(8)

    def test_the_unit_of_images_does_not_matter(self):
        classify = models.classifier(self.module, self.fresh)
        np.testing.assert_allclose(
            classify(self.images), classify(3 * self.images), rtol=1e-4, atol=1e-5
        )

    def test_logits_of_bfloat16_are_float32_and_near(self):
        half = self.module.clone(dtype="bfloat16")
        logits = half.apply(self.fresh, self.images)
        self.assertEqual(logits.dtype, jnp.float32)
        expected = self.module.apply(self.fresh, self.images)
        np.testing.assert_allclose(logits, expected, atol=0.05 * abs(expected).max())


if __name__ == "__main__":
    absltest.main()
