"""Tests of wsjax.smoothing."""

import dataclasses
import itertools
import math
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import oracles
from absl.testing import absltest, parameterized
from scipy import stats

from wsjax import Counting, FixedVotes, certificates, gaussian, make_key, noise
from wsjax.smoothing import LAWS, gaussian_smoothing, make_smoothing, theorem_about

SHAPE = (2, 3, 1)
IMAGE = np.random.default_rng(0).uniform(0.5, 1.0, SHAPE).astype(np.float32)
LAPLACE = make_smoothing("flow_laplace", 0.1, "l1")
EACH_NOISE = parameterized.parameters(
    ("flow_laplace", noise.FlowLaplace),
    ("flow_uniform", noise.FlowUniform),
    ("flow_gaussian", noise.FlowGaussian),
    ("pixel_laplace", noise.PixelLaplace),
)
GAUSSIAN = ("flow_gaussian", "laplacian_gaussian", "power_law")


def classify(images):
    """Three of the pixels as logits."""
    return images.reshape(len(images), -1)[:, :3]


class MakeSmoothingTest(parameterized.TestCase):
    @EACH_NOISE
    def test_theorem_is_about_the_noise(self, name, law):
        # On one row, Gaussian flow noise is felt edge by edge, as in flow space.
        row = {"image_shape": (1, 9, 1)} if name in GAUSSIAN else {}
        smooth = make_smoothing(name, 0.25, "l1", **row)

        self.assertEqual(smooth.noise, law(0.25))
        draw = getattr(smooth.noise, "sample_plan", smooth.noise.sample)
        drawn = jax.jit(lambda: draw(make_key(0), (100, 100, 2), jnp.float32))()
        drawn = np.concatenate([np.ravel(part) for part in jax.tree.leaves(drawn)])
        # Tight radii are the quantiles of one edge, or half those of one pixel.
        for p in (0.6, 0.9, 0.99):
            quantile = np.quantile(drawn, p) / (2 if name == "pixel_laplace" else 1)
            self.assertAlmostEqual(smooth.scores.radius(p) / quantile, 1.0, delta=0.06)

    @parameterized.product(metric=("l1", "l2"), certificate=("tight", "published"))
    def test_passes_everything_to_the_theorem(self, metric, certificate):
        for name in ("flow_laplace", "pixel_laplace"):
            smooth = make_smoothing(name, 0.25, metric, certificate)
            suffix = {"tight": "", "published": "_published"}[certificate]
            theorem = getattr(certificates, name + suffix)
            p, q = np.array([0.4, 0.9]), np.array([0.3, 0.02])
            expected = theorem(0.25, metric)
            self.assertEqual(smooth.scores, expected)
            np.testing.assert_array_equal(
                smooth.scores.radius(p, q), expected.radius(p, q)
            )

    @parameterized.product(metric=("l1", "l2"), certificate=("tight", "published"))
    def test_iid_noise_is_certified_for_images_of_any_shape(self, metric, certificate):
        smooth = make_smoothing(
            "flow_laplace", 0.25, metric, certificate, image_shape=(5, 4, 1)
        )

        self.assertIsNone(smooth.image_shape)
        self.assertEqual(smooth.noise.sigma, 0.25)
        self.assertEqual(
            smooth, make_smoothing("flow_laplace", 0.25, metric, certificate)
        )

    @parameterized.product(
        name_and_wrap=(("flow_gaussian", True), *((name, False) for name in GAUSSIAN)),
        metric=("l1", "l2"),
    )
    def test_gaussian_noise_is_certified_by_its_covariance(self, name_and_wrap, metric):
        name, wrap = name_and_wrap
        shape = (4, 5, 2)

        smooth = make_smoothing(
            name, 0.25, metric, wrap=wrap, gamma=1.5, image_shape=list(shape)
        )

        exponent = {"laplacian_gaussian": 2.0, "power_law": 1.5}.get(name, 1.0)
        torus = wrap or name != "flow_gaussian"
        covariance = 0.25**2 * oracles.laplacian_power(shape, exponent, torus)
        precision = np.linalg.pinv(covariance, rcond=1e-9, hermitian=True)
        kappa, _, _ = oracles.hardest_move(precision, shape, metric)
        # Amplitudes of power laws are float32.
        np.testing.assert_allclose(smooth.scores.scale, 1 / kappa, rtol=1e-7)
        self.assertEqual(smooth.scores.function, "gaussian")
        self.assertEqual((smooth.ground_metric, smooth.image_shape), (metric, shape))
        p, q = np.array([0.4, 0.9]), np.array([0.3, 0.02])
        gap = stats.norm.ppf(p) - stats.norm.ppf(q)
        np.testing.assert_allclose(
            smooth.scores.radius(p, q), gap / 2 / kappa, rtol=1e-7
        )
        np.testing.assert_allclose(
            smooth.scores.radius(0.9), stats.norm.ppf(0.9) / kappa, rtol=1e-7
        )

    def test_gaussian_laws_go_by_their_names(self):
        def law(name, **options):
            return make_smoothing(name, 0.1, "l1", image_shape=SHAPE, **options).noise

        self.assertEqual(law("flow_gaussian"), noise.FlowGaussian(0.1))
        self.assertEqual(
            law("flow_gaussian", wrap=True), noise.FlowGaussian(0.1, wrap=True)
        )
        self.assertEqual(law("laplacian_gaussian"), gaussian.StencilGaussian(sigma=0.1))
        power = law("power_law", gamma=1.5)
        expected = 0.01 * oracles.laplacian_power(SHAPE, 1.5, wrap=True)
        np.testing.assert_allclose(
            oracles.circulant(power.spectrum), expected, atol=1e-8
        )
        self.assertEqual(law("power_law"), law("power_law", gamma=2.0))
        self.assertNotEqual(law("power_law"), power)

    @parameterized.parameters(*GAUSSIAN)
    def test_gaussian_noise_refuses_images_of_another_shape(self, name):
        smooth = make_smoothing(name, 0.1, "l1", image_shape=SHAPE)

        for other in ((3, 2, 1), (2, 3, 2), (4, 3, 1)):
            with self.assertRaises(ValueError) as caught:
                smooth.perturb(make_key(0), np.ones(other))
            self.assertIn(
                f"images of shape {SHAPE}, not {other}", str(caught.exception)
            )
            self.assertIn(f"image_shape={other}", str(caught.exception))
            # One after another, in groups, or several that share their noise.
            for way in ({}, {"counting": Counting(groups=1)}, {"share_draws": 2}):
                certifier = FixedVotes(classify, smooth, **way)
                for run in (certifier.certify, certifier.predict):
                    with self.assertRaisesRegex(ValueError, "certifies images of sh"):
                        run(np.ones(other), make_key(0))
        self.assertEqual(
            jax.eval_shape(smooth.perturb, make_key(0), IMAGE).shape, SHAPE
        )

    @parameterized.parameters(
        ({"image_shape": None}, "needs image_shape=.H, W, C.: how much Gaussian"),
        ({"image_shape": (1, 1, 1)}, "one pixel has no mass to move"),
        ({"image_shape": (4, 5, 0)}, r"\(4, 5, 0\)"),
        ({"ground_metric": "L2"}, "ground_metric='L2' is not one of .*l1"),
        ({"sigma": 0.0}, "sigma=0.0 .*positive finite"),
        ({"theorem": "published"}, "exists for Laplace noise only"),
    )
    def test_gaussian_noise_refuses_what_has_no_meaning(self, change, message):
        for name in GAUSSIAN:
            usual = {"sigma": 0.1, "ground_metric": "l1", "image_shape": SHAPE}
            with self.assertRaisesRegex(ValueError, message):
                make_smoothing(name, **(usual | change))

    def test_tight_is_the_default_and_wrapping_is_not(self):
        self.assertEqual(LAPLACE.scores, certificates.flow_laplace(0.1, "l1"))
        self.assertEqual(LAPLACE.scores.function, "laplace")
        self.assertFalse(LAPLACE.noise.wrap)
        self.assertTrue(make_smoothing("flow_uniform", 0.1, "l1", wrap=True).noise.wrap)

    def test_perturb_is_that_of_the_noise(self):
        key = make_key(0)
        ours, its = oracles.on_host(
            lambda: [
                law.perturb(key, IMAGE) for law in (LAPLACE, noise.FlowLaplace(0.1))
            ]
        )()
        np.testing.assert_array_equal(ours, its)

    @parameterized.parameters(
        ({"noise": "laplace"}, "noise='laplace' is not one of .*flow_laplace"),
        ({"theorem": "exact"}, "theorem='exact' is not one of .*tight"),
        ({"ground_metric": "L2"}, "ground_metric='L2' is not one of .*l1"),
        ({"sigma": 0.0}, "sigma=0.0 is not a positive finite number"),
        ({"sigma": -1.0}, "sigma=-1.0 is not a positive finite number"),
        ({"noise": "pixel_laplace", "wrap": True}, "wrap=True needs flow noise"),
        ({"noise": "power_law", "wrap": True}, "wrap=True needs flow noise"),
        ({"noise": "laplacian_gaussian", "wrap": True}, "wrap=True needs flow noise"),
        (
            {"noise": "flow_uniform", "theorem": "published"},
            "exists for Laplace noise only.*'flow_uniform'",
        ),
        (
            {"noise": "flow_gaussian", "theorem": "published"},
            "exists for Laplace noise only.*'flow_gaussian'",
        ),
    )
    def test_refuses_what_has_no_meaning(self, change, message):
        usual = {"noise": "flow_laplace", "sigma": 0.1, "ground_metric": "l1"}
        with self.assertRaisesRegex(ValueError, message):
            make_smoothing(**(usual | change))


class TheoremAboutTest(parameterized.TestCase):
    @parameterized.parameters(
        ("flow_laplace", "tight", certificates.flow_laplace),
        ("flow_laplace", "published", certificates.flow_laplace_published),
        ("pixel_laplace", "tight", certificates.pixel_laplace),
        ("pixel_laplace", "published", certificates.pixel_laplace_published),
        ("flow_uniform", "tight", certificates.flow_uniform),
    )
    def test_names_the_theorem(self, name, certificate, theorem):
        law = LAWS[name].make(sigma=0.3)
        for metric in ("l1", "l2"):
            found = theorem_about(name, certificate)(law, SHAPE, metric)
            self.assertEqual(found, theorem(0.3, metric))

    @parameterized.parameters(*GAUSSIAN, "learned")
    def test_gaussian_noise_has_one_theorem_whatever_its_name(self, name):
        law = gaussian.StencilGaussian(0.3)
        for metric in ("l1", "l2"):
            found = theorem_about(name, "tight")(law, SHAPE, metric)
            kappa = gaussian.kappa(law, SHAPE, metric)
            self.assertLessEqual(found.scale, 1 / kappa)
            self.assertGreater(found.scale, (1 - 5e-10) / kappa)
            whole = certificates.gaussian(kappa, metric)
            self.assertEqual(found, dataclasses.replace(whole, scale=found.scale))

    def test_other_last_digits_on_another_machine_change_no_scale(self):
        law = gaussian.StencilGaussian(0.3)
        kappa = gaussian.kappa(law, SHAPE, "l2")
        scales = set()
        for off in (0, -1e-13, 1e-13):
            there = mock.patch.object(
                gaussian, "kappa", lambda *_, k=kappa * (1 + off): k
            )
            with there:
                scales.add(gaussian_smoothing(law, SHAPE, "l2").scores.scale)
        self.assertLen(scales, 1)
        self.assertLessEqual(scales.pop(), 1 / (kappa * (1 + 1e-13)))

    def test_refuses_theorems_that_nobody_published(self):
        for name in ("flow_uniform", "flow_gaussian", "learned"):
            with self.assertRaisesRegex(ValueError, f"Laplace noise only, .*'{name}'"):
                theorem_about(name, "published")
        with self.assertRaisesRegex(ValueError, "theorem='exact' is not one of"):
            theorem_about("learned", "exact")


class GaussianSmoothingTest(parameterized.TestCase):
    def test_takes_its_constant_from_the_law(self):
        features = np.random.default_rng(0).normal(size=(4, *SHAPE))
        law = gaussian.GaussianView(features, features, np.full(SHAPE, 1 / 6))
        for metric in ("l1", "l2"):
            smooth = gaussian_smoothing(law, np.array(SHAPE), metric)

            flat = law.features.reshape(4, -1).astype(float)
            kappa, _, _ = oracles.hardest_move(flat.T @ flat, SHAPE, metric)
            self.assertLessEqual(smooth.scores.scale, (1 + 1e-12) / kappa)
            self.assertGreater(smooth.scores.scale, (1 - 5e-10) / kappa)
            self.assertIs(smooth.noise, law)
            self.assertEqual(smooth.scores.function, "gaussian")
            self.assertEqual(smooth.ground_metric, metric)
            self.assertEqual(smooth.image_shape, SHAPE)
            self.assertIsInstance(hash(smooth), int)

    def test_equals_what_is_made_by_name(self):
        law = gaussian.StencilGaussian(0.1)

        smooth = gaussian_smoothing(law, SHAPE, "l2")

        named = make_smoothing("laplacian_gaussian", 0.1, "l2", image_shape=SHAPE)
        self.assertEqual(smooth, named)
        self.assertEqual(hash(smooth), hash(named))

    def test_refuses_other_noise_other_images_and_other_metrics(self):
        with self.assertRaisesRegex(ValueError, "FlowLaplace is no Gaussian law"):
            gaussian_smoothing(noise.FlowLaplace(0.1), SHAPE, "l1")
        view = np.ones((1, 3, 3, 1))
        view = gaussian.GaussianView(view, view, view[0])
        with self.assertRaisesRegex(ValueError, r"shape \(3, 3, 1\), not \(2, 3, 1\)"):
            gaussian_smoothing(view, SHAPE, "l1")
        with self.assertRaisesRegex(ValueError, "ground_metric='L1' is not one of"):
            gaussian_smoothing(gaussian.StencilGaussian(0.1), SHAPE, "L1")


class PartsTest(parameterized.TestCase):
    IMAGE = np.random.default_rng(2).uniform(size=(4, 5, 1)).astype(np.float32)

    @parameterized.parameters("flow_laplace", "pixel_laplace", *GAUSSIAN)
    def test_parts_add_up_to_the_noisy_copy(self, name):
        smoothing = make_smoothing(name, 0.1, "l1", image_shape=self.IMAGE.shape)
        law = smoothing.noise

        @oracles.on_host
        def parts(key, image):
            noise = law.added(key, image.shape, image.dtype)
            picture, strength = law.picture(image), law.strength(image)
            return noise, picture, strength, smoothing.perturb(key, image)

        noise, picture, strength, copy = parts(make_key(3), self.IMAGE)

        np.testing.assert_allclose(copy, picture + strength * noise, rtol=1e-5)
        np.testing.assert_array_equal(picture, self.IMAGE)
        self.assertGreater(np.abs(copy - self.IMAGE).min(), 0)


class ProbabilityForTest(parameterized.TestCase):
    @parameterized.parameters(
        *itertools.product(LAWS, ("l1", "l2"), ("tight",)),
        *itertools.product(
            ("flow_laplace", "pixel_laplace"), ("l1", "l2"), ("published",)
        ),
    )
    def test_is_the_least_probability_that_certifies(self, name, metric, certificate):
        shape = {"image_shape": (4, 5, 1)} if name in GAUSSIAN else {}
        smooth = make_smoothing(name, 0.1, metric, certificate, **shape)
        largest = float(smooth.scores.radius(math.nextafter(1.0, 0.0)))
        for share in (1e-9, 0.001, 0.1, 0.5, 0.9, 0.99, 1.0):
            p = smooth.scores.probability_for(share * largest)
            self.assertBetween(p, 0.5, 1.0)
            self.assertGreaterEqual(smooth.scores.radius(p), share * largest)
            # Nor is it more than the rounding too high, but next to 1.
            below = p - max(1e-11 * (p - 0.5), 3e-16)
            self.assertLess(smooth.scores.radius(below), share * largest)

    @parameterized.parameters(0.01, 0.1, 0.5)
    def test_inverts_the_formulas(self, radius):
        laplace = 1 - 0.5 * math.exp(-radius / (0.1 / math.sqrt(2)))
        self.assertAlmostEqual(
            LAPLACE.scores.probability_for(radius), laplace, delta=1e-12
        )
        smooth = make_smoothing("power_law", 0.1, "l2", image_shape=SHAPE)
        gauss = stats.norm.cdf(radius / smooth.scores.scale)
        self.assertAlmostEqual(
            smooth.scores.probability_for(radius), gauss, delta=1e-12
        )
        uniform = make_smoothing("flow_uniform", 1.0, "l1")
        share = 0.5 + radius / math.sqrt(12)
        self.assertAlmostEqual(
            uniform.scores.probability_for(radius), share, delta=1e-12
        )

    def test_refuses_what_is_no_radius_or_out_of_reach(self):
        for radius in (0, -0.1, math.inf, math.nan, "0.1", None):
            with self.assertRaisesRegex(ValueError, "not a positive finite number"):
                LAPLACE.scores.probability_for(radius)
        uniform = make_smoothing("flow_uniform", 0.1, "l1")
        with self.assertRaisesRegex(ValueError, "out of reach.*more than 0.173205"):
            uniform.scores.probability_for(0.1733)


if __name__ == "__main__":
    absltest.main()
