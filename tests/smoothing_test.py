"""Tests of wsjax.smoothing."""

import functools
import inspect
import math
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import oracles
from absl.testing import absltest, parameterized
from scipy import stats

from wsjax import certificates, gaussian, make_key, noise, votes
from wsjax.smoothing import (
    ABSTAIN,
    NOISES,
    certificate_from_votes,
    certify,
    certify_each,
    check_image,
    gaussian_smoothing,
    make_smoothing,
    predict,
    prediction_from_votes,
    theorem_about,
)

SHAPE = (2, 3, 1)
IMAGE = np.random.default_rng(0).uniform(0.5, 1.0, SHAPE).astype(np.float32)
LAPLACE = make_smoothing("flow_laplace", 0.1, "l1")
# One device and one size of blocks, so that one program serves most tests.
COUNTING = {"block_size": 8, "devices": jax.local_devices()[:1]}
SIZES = {"n0": 20, "n": 100, "alpha": 0.05}
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


def count(key, n):
    return np.asarray(
        votes.count_votes(key, IMAGE, classify, LAPLACE.perturb, n=n, **COUNTING)
    )


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
            self.assertAlmostEqual(smooth.radius(p) / quantile, 1.0, delta=0.06)

    @parameterized.product(metric=("l1", "l2"), certificate=("tight", "published"))
    def test_passes_everything_to_the_theorem(self, metric, certificate):
        for name in ("flow_laplace", "pixel_laplace"):
            smooth = make_smoothing(name, 0.25, metric, certificate)
            suffix = {"tight": "", "published": "_published"}[certificate]
            theorem = getattr(certificates, name + suffix)
            p, q = np.array([0.4, 0.9]), np.array([0.3, 0.02])
            np.testing.assert_array_equal(
                smooth.radius(p, q), theorem(p, 0.25, metric, q)
            )
            self.assertEqual(smooth.radius(0.9), theorem(0.9, 0.25, metric))

    @parameterized.product(metric=("l1", "l2"), certificate=("tight", "published"))
    def test_iid_noise_is_certified_for_images_of_any_shape(self, metric, certificate):
        smooth = make_smoothing(
            "flow_laplace", 0.25, metric, certificate, image_shape=(5, 4, 1)
        )

        self.assertEqual((smooth.spread, smooth.image_shape), (0.25, None))
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
        np.testing.assert_allclose(smooth.spread, kappa, rtol=1e-7)
        self.assertEqual(smooth.theorem, certificates.gaussian)
        self.assertEqual((smooth.ground_metric, smooth.image_shape), (metric, shape))
        p, q = np.array([0.4, 0.9]), np.array([0.3, 0.02])
        gap = stats.norm.ppf(p) - stats.norm.ppf(q)
        np.testing.assert_allclose(smooth.radius(p, q), gap / 2 / kappa, rtol=1e-7)
        np.testing.assert_allclose(
            smooth.radius(0.9), stats.norm.ppf(0.9) / kappa, rtol=1e-7
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
                smooth.perturb(make_key(0), jnp.ones(other))
            self.assertIn(
                f"images of shape {SHAPE}, not {other}", str(caught.exception)
            )
            self.assertIn(f"image_shape={other}", str(caught.exception))
            with self.assertRaisesRegex(ValueError, "certifies images of shape"):
                certify(
                    make_key(0), jnp.ones(other), classify, smooth, **SIZES, **COUNTING
                )
        self.assertEqual(
            jax.eval_shape(smooth.perturb, make_key(0), IMAGE).shape, SHAPE
        )

    @parameterized.parameters(
        ({"image_shape": None}, "needs image_shape=.H, W, C.: how much Gaussian"),
        ({"image_shape": (1, 1, 1)}, "one pixel has no mass to move"),
        ({"image_shape": (4, 5, 0)}, r"\(4, 5, 0\)"),
        ({"ground_metric": "L2"}, "ground_metric='L2' is not one of .*l1"),
        ({"sigma": 0.0}, "sigma=0.0 .*positive finite"),
        ({"certificate": "published"}, "exists for Laplace noise only"),
    )
    def test_gaussian_noise_refuses_what_has_no_meaning(self, change, message):
        for name in GAUSSIAN:
            usual = {"sigma": 0.1, "ground_metric": "l1", "image_shape": SHAPE}
            with self.assertRaisesRegex(ValueError, message):
                make_smoothing(name, **(usual | change))

    def test_tight_is_the_default_and_wrapping_is_not(self):
        self.assertEqual(LAPLACE.theorem, certificates.flow_laplace)
        self.assertFalse(LAPLACE.noise.wrap)
        self.assertTrue(make_smoothing("flow_uniform", 0.1, "l1", wrap=True).noise.wrap)

    def test_perturb_is_that_of_the_noise(self):
        key = make_key(0)
        np.testing.assert_array_equal(
            LAPLACE.perturb(key, IMAGE), noise.FlowLaplace(0.1).perturb(key, IMAGE)
        )

    @parameterized.parameters(
        ({"noise": "laplace"}, "noise='laplace' is not one of .*flow_laplace"),
        ({"certificate": "exact"}, "certificate='exact' is not one of .*tight"),
        ({"ground_metric": "L2"}, "ground_metric='L2' is not one of .*l1"),
        ({"sigma": 0.0}, "sigma=0.0 is not a positive finite number"),
        ({"sigma": -1.0}, "sigma=-1.0 is not a positive finite number"),
        ({"noise": "pixel_laplace", "wrap": True}, "wrap=True needs flow noise"),
        ({"noise": "power_law", "wrap": True}, "wrap=True needs flow noise"),
        ({"noise": "laplacian_gaussian", "wrap": True}, "wrap=True needs flow noise"),
        (
            {"noise": "flow_uniform", "certificate": "published"},
            "exists for Laplace noise only.*'flow_uniform'",
        ),
        (
            {"noise": "flow_gaussian", "certificate": "published"},
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
        ("flow_gaussian", "tight", certificates.gaussian),
        ("power_law", "tight", certificates.gaussian),
        ("learned", "tight", certificates.gaussian),
    )
    def test_names_the_theorem(self, name, certificate, theorem):
        self.assertEqual(theorem_about(name, certificate), theorem)

    def test_refuses_theorems_that_nobody_published(self):
        for name in ("flow_uniform", "flow_gaussian", "learned"):
            with self.assertRaisesRegex(ValueError, f"Laplace noise only, .*'{name}'"):
                theorem_about(name, "published")
        with self.assertRaisesRegex(ValueError, "certificate='exact' is not one of"):
            theorem_about("learned", "exact")


class GaussianSmoothingTest(parameterized.TestCase):
    def test_takes_its_constant_from_the_law(self):
        features = np.random.default_rng(0).normal(size=(4, *SHAPE))
        law = gaussian.GaussianView(features, features, np.full(SHAPE, 1 / 6))
        for metric in ("l1", "l2"):
            smooth = gaussian_smoothing(law, np.array(SHAPE), metric)

            flat = law.features.reshape(4, -1).astype(float)
            kappa, _, _ = oracles.hardest_move(flat.T @ flat, SHAPE, metric)
            np.testing.assert_allclose(smooth.spread, kappa, rtol=1e-12)
            self.assertIs(smooth.noise, law)
            self.assertEqual(smooth.theorem, certificates.gaussian)
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
        key = make_key(3)

        noise = smoothing.added(key, self.IMAGE.shape, self.IMAGE.dtype)
        copy = smoothing.picture(self.IMAGE) + smoothing.strength(self.IMAGE) * noise

        np.testing.assert_allclose(copy, smoothing.perturb(key, self.IMAGE), rtol=1e-5)
        np.testing.assert_array_equal(smoothing.picture(self.IMAGE), self.IMAGE)
        self.assertGreater(np.abs(copy - self.IMAGE).min(), 0)

    def test_pictures_are_of_the_certified_shape(self):
        smoothing = make_smoothing("power_law", 0.1, "l1", image_shape=(4, 6, 1))

        with self.assertRaisesRegex(ValueError, r"images of shape \(4, 6, 1\), not"):
            smoothing.picture(self.IMAGE)


class ProbabilityForTest(parameterized.TestCase):
    @parameterized.product(
        name=NOISES, metric=("l1", "l2"), certificate=("tight", "published")
    )
    def test_is_the_least_probability_that_certifies(self, name, metric, certificate):
        if certificate == "published" and not name.endswith("laplace"):
            self.skipTest("Nobody published one.")
        shape = {"image_shape": (4, 5, 1)} if name in GAUSSIAN else {}
        smooth = make_smoothing(name, 0.1, metric, certificate, **shape)
        largest = float(smooth.radius(math.nextafter(1.0, 0.0)))
        for share in (1e-9, 0.001, 0.1, 0.5, 0.9, 0.99, 1.0):
            p = smooth.probability_for(share * largest)
            self.assertBetween(p, 0.5, 1.0)
            self.assertGreaterEqual(smooth.radius(p), share * largest)
            # Nor is it more than the rounding too high, but next to 1.
            below = p - max(1e-11 * (p - 0.5), 3e-16)
            self.assertLess(smooth.radius(below), share * largest)

    @parameterized.parameters(0.01, 0.1, 0.5)
    def test_inverts_the_formulas(self, radius):
        laplace = 1 - 0.5 * math.exp(-radius / (0.1 / math.sqrt(2)))
        self.assertAlmostEqual(LAPLACE.probability_for(radius), laplace, delta=1e-12)
        smooth = make_smoothing("power_law", 0.1, "l2", image_shape=SHAPE)
        gauss = stats.norm.cdf(radius * smooth.spread)
        self.assertAlmostEqual(smooth.probability_for(radius), gauss, delta=1e-12)
        uniform = make_smoothing("flow_uniform", 1.0, "l1")
        share = 0.5 + radius / math.sqrt(12)
        self.assertAlmostEqual(uniform.probability_for(radius), share, delta=1e-12)

    def test_refuses_what_is_no_radius_or_out_of_reach(self):
        for radius in (0, -0.1, math.inf, math.nan, "0.1", None):
            with self.assertRaisesRegex(ValueError, "not a positive finite number"):
                LAPLACE.probability_for(radius)
        uniform = make_smoothing("flow_uniform", 0.1, "l1")
        with self.assertRaisesRegex(ValueError, "out of reach.*more than 0.173205"):
            uniform.probability_for(0.1733)


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
            lambda: certify(make_key(0), image, classify, LAPLACE, **SIZES),
            lambda: predict(make_key(0), image, classify, LAPLACE, n=9, alpha=0.1),
        ):
            with self.assertRaisesRegex(ValueError, message):
                run()

    def test_accepts_any_nonnegative_mass(self):
        check_image(IMAGE)
        check_image(jnp.asarray(255 * IMAGE))
        check_image(np.array([[[0.0, 0.0, 1e-30]]], np.float64))


class CertificateFromVotesTest(parameterized.TestCase):
    @parameterized.product(
        certificate=("tight", "published"), metric=("l1", "l2"), alpha=(0.001, 0.3)
    )
    def test_is_selection_then_bound_then_theorem(self, certificate, metric, alpha):
        smooth = make_smoothing("flow_laplace", 0.1, metric, certificate)
        chosen, fresh = np.array([3, 15, 2]), np.array([20, 930, 50])

        result = certificate_from_votes(chosen, fresh, smooth, alpha=alpha)

        p = stats.beta.ppf(alpha, 930, 71)
        b = 0.1 / math.sqrt(2)
        manhattan = {
            "tight": -b * math.log(2 * (1 - p)),
            "published": b / 2 * math.log(p / (1 - p)),
        }[certificate]
        expected = manhattan / {"l1": 1, "l2": math.sqrt(2)}[metric]
        self.assertEqual((result.label, result.selected), (1, 1))
        self.assertAlmostEqual(result.p_lower, p, delta=1e-11)
        self.assertAlmostEqual(result.radius, expected, delta=1e-9)
        self.assertLessEqual(result.radius, expected)
        self.assertIsNone(result.runner_up)
        np.testing.assert_array_equal(result.selection_votes, chosen)
        np.testing.assert_array_equal(result.votes, fresh)

    def test_runner_up_shares_alpha_among_all_bounds(self):
        chosen, fresh = np.array([3, 15, 2, 0]), np.array([250, 600, 100, 50])

        result = certificate_from_votes(
            chosen, fresh, LAPLACE, alpha=0.06, use_runner_up=True
        )

        p = stats.beta.ppf(0.03, 600, 401)
        q = stats.beta.ppf(1 - 0.01, 251, 750)
        self.assertAlmostEqual(result.p_lower, p, delta=1e-11)
        self.assertAlmostEqual(result.runner_up, q, delta=1e-11)
        expected = -0.1 / math.sqrt(8) * math.log(4 * q * (1 - p))
        self.assertAlmostEqual(result.radius, expected, delta=1e-9)

    def test_runner_up_is_never_above_the_rest(self):
        # Its own bound is looser here, as it allows for a third class.
        result = certificate_from_votes(
            np.array([9, 0, 0]), np.array([90, 10, 0]), LAPLACE, alpha=0.05,
            use_runner_up=True,
        )  # fmt: skip

        self.assertGreater(stats.beta.ppf(1 - 0.0125, 11, 90), 1 - result.p_lower)
        self.assertEqual(result.runner_up, 1 - result.p_lower)

    def test_runner_up_certifies_classes_without_a_majority(self):
        chosen, fresh = np.array([9, 6, 5]), np.array([4_500, 2_750, 2_750])

        alone = certificate_from_votes(chosen, fresh, LAPLACE, alpha=0.05)
        both = certificate_from_votes(
            chosen, fresh, LAPLACE, alpha=0.05, use_runner_up=True
        )

        self.assertEqual((alone.label, alone.radius), (ABSTAIN, 0.0))
        self.assertEqual(both.label, 0)
        self.assertGreater(both.radius, 0.0)

    def test_ways_with_runners_up_go_by_their_names(self):
        chosen, fresh = np.array([3, 15, 2]), np.array([20, 700, 280])

        def radius(**way):
            result = certificate_from_votes(chosen, fresh, LAPLACE, alpha=0.05, **way)
            return result.radius, result.runner_up

        self.assertEqual(radius(use_runner_up="always"), radius(use_runner_up=True))
        self.assertEqual(radius(use_runner_up="never"), radius(use_runner_up=False))
        self.assertEqual(radius(), radius(use_runner_up="never"))
        self.assertNotEqual(radius(), radius(use_runner_up="always"))
        for bad in ("sometimes", None, 2):
            with self.assertRaisesRegex(
                ValueError, f"use_runner_up={bad!r} is not one"
            ):
                radius(use_runner_up=bad)

    @parameterized.parameters(
        ((6_000, 2_000, 2_000), "always"),
        ((4_000, 3_000, 3_000), "always"),
        ((9_990, 10, 0), "never"),
        ((10_000, 0, 0), "never"),
        ((3, 15, 2), "always"),
        ((0, 0, 20), "never"),
    )
    def test_selection_votes_alone_decide_whether_others_are_bounded(self, chosen, way):
        # Whatever the fresh votes turn out to be, those that fit the choice or not.
        for fresh in ((9_990, 10, 0), (4_000, 3_000, 3_000), (0, 9_000, 1_000)):
            actual, expected = (
                certificate_from_votes(
                    np.array(chosen),
                    np.array(fresh),
                    LAPLACE,
                    alpha=0.05,
                    use_runner_up=choice,
                )
                for choice in ("auto", way)
            )
            self.assertEqual(actual[:5], expected[:5])

    def test_selection_votes_alone_select(self):
        result = certificate_from_votes(
            np.array([9, 11]), np.array([990, 10]), LAPLACE, alpha=0.05
        )

        self.assertEqual((result.selected, result.label), (1, ABSTAIN))
        self.assertEqual(result.radius, 0.0)
        self.assertAlmostEqual(
            result.p_lower, stats.beta.ppf(0.05, 10, 991), delta=1e-11
        )

    @parameterized.parameters(10, 99, 1_000)
    def test_abstains_exactly_up_to_one_half(self, n):
        for k in range(n + 1):
            # P(at least k votes) at p = 1/2 is above alpha where 1/2 stays possible.
            possible = stats.binom.sf(k - 1, n, 0.5) > 0.05
            result = certificate_from_votes(
                np.array([1, 0]), np.array([k, n - k]), LAPLACE, alpha=0.05
            )
            self.assertEqual(result.label == ABSTAIN, possible)
            self.assertEqual(result.p_lower <= 0.5, possible)
            self.assertEqual(result.radius == 0.0, possible)
            self.assertEqual(result.selected, 0)

    @parameterized.parameters(0.5, 0.95, 0.0)
    def test_refuses_alpha_and_counts_outside_their_range(self, alpha):
        ones = np.array([1, 1])
        with self.assertRaisesRegex(ValueError, "95% confidence is alpha=0.05"):
            certificate_from_votes(ones, ones, LAPLACE, alpha=alpha)
        with self.assertRaisesRegex(ValueError, "n=0 is not a positive"):
            certificate_from_votes(ones, 0 * ones, LAPLACE, alpha=0.05)


class CertifyTest(parameterized.TestCase):
    @parameterized.parameters(False, True)
    def test_counts_selects_and_bounds(self, use_runner_up):
        key = make_key(1)

        result = certify(
            key, IMAGE, classify, LAPLACE, **SIZES, use_runner_up=use_runner_up,
            **COUNTING,
        )  # fmt: skip

        key_select, key_estimate = jax.random.split(key)
        expected = certificate_from_votes(
            count(key_select, 20), count(key_estimate, 100), LAPLACE, alpha=0.05,
            use_runner_up=use_runner_up,
        )  # fmt: skip
        for field, actual, wanted in zip(result._fields, result, expected):
            np.testing.assert_array_equal(actual, wanted, err_msg=field)
        self.assertEqual(result.selection_votes.sum(), 20)
        self.assertEqual(result.votes.sum(), 100)
        self.assertIsInstance(result.radius, float)
        self.assertIsInstance(result.label, int)

    def test_selection_and_estimation_share_no_draw(self):
        key, asked = make_key(2), []

        def record(key, image, classify, perturb, *, n):
            asked.append((key, n))
            return np.array([n, 0])

        with mock.patch.object(votes, "count_votes", record):
            certify(key, IMAGE, classify, LAPLACE, **SIZES)

        self.assertEqual([n for _, n in asked], [20, 100])
        fold = jax.jit(jax.vmap(jax.random.fold_in, (None, 0)))
        draws = {
            tuple(data)
            for k, n in asked
            for data in np.asarray(jax.random.key_data(fold(k, np.arange(n)))).tolist()
        }
        self.assertLen(draws, 120)
        self.assertNotIn(tuple(jax.random.key_data(key).tolist()), draws)

    def test_labels_have_no_way_in(self):
        for function in (certify, certify_each, certificate_from_votes, predict):
            names = " ".join(inspect.signature(function).parameters)
            self.assertNotRegex(names, "label|target|truth")

    def test_keys_decide(self):
        a, b = (
            certify(make_key(seed), IMAGE, classify, LAPLACE, **SIZES, **COUNTING)
            for seed in (3, 4)
        )
        self.assertTrue(np.any(a.votes != b.votes))

    def test_a_classifier_of_nan_is_refused(self):
        def broken(images):
            return classify(images) * jnp.nan

        with self.assertRaisesRegex(ValueError, "NaN or infinite.* 20 of 20 noisy"):
            certify(make_key(0), IMAGE, broken, LAPLACE, **SIZES, **COUNTING)
        with self.assertRaisesRegex(ValueError, "NaN or infinite.* 9 of 9 noisy"):
            predict(make_key(0), IMAGE, broken, LAPLACE, n=9, alpha=0.1, **COUNTING)

    @parameterized.parameters(
        ({"alpha": 0.95}, "alpha=0.95 is outside"),
        ({"alpha": 0.0}, "alpha=0.0 is outside"),
        ({"n0": 0}, "n0=0 is not a positive whole number"),
        ({"n": 0}, "n=0 is not a positive whole number"),
        ({"n": 2.5}, "n=2.5 is not a positive whole number"),
        ({"n0": -1}, "n0=-1 is not a positive whole number"),
        ({"backend": "xmap"}, "backend='xmap'"),
    )
    def test_refuses_bad_settings(self, change, message):
        with self.assertRaisesRegex(ValueError, message):
            certify(make_key(0), IMAGE, classify, LAPLACE, **(SIZES | change))


class CertifyEachTest(absltest.TestCase):
    def test_equals_certify_in_order(self):
        pairs = [(make_key(seed), (seed + 1) * IMAGE) for seed in range(3)]

        results = certify_each(iter(pairs), classify, LAPLACE, **SIZES, **COUNTING)

        for (key, image), actual in zip(pairs, results, strict=True):
            expected = certify(key, image, classify, LAPLACE, **SIZES, **COUNTING)
            for wanted, got in zip(expected, actual, strict=True):
                np.testing.assert_array_equal(wanted, got)

    def test_no_images_give_no_certificates(self):
        self.assertEmpty(list(certify_each([], classify, LAPLACE, **SIZES)))

    def test_reads_one_pair_ahead(self):
        taken = []

        def pairs():
            for seed in range(4):
                taken.append(seed)
                yield make_key(seed), IMAGE

        results = certify_each(pairs(), classify, LAPLACE, **SIZES, **COUNTING)
        self.assertEmpty(taken)
        next(results)
        self.assertEqual(taken, [0, 1])
        next(results)
        self.assertEqual(taken, [0, 1, 2])

    def on_groups(self, pairs, devices=4, groups=2, **options):
        if jax.local_device_count() < devices:
            self.skipTest(f"Needs {devices} devices; tests/conftest.py makes eight.")
        counting = {**COUNTING, "devices": jax.local_devices()[:devices]}
        return certify_each(
            pairs, classify, LAPLACE, groups=groups, **SIZES, **counting, **options
        )

    def test_groups_of_devices_certify_the_same(self):
        # Two full batches and a part of one.
        pairs = [(make_key(seed), (seed + 1) * IMAGE) for seed in range(5)]

        results = self.on_groups(iter(pairs))

        for (key, image), actual in zip(pairs, results, strict=True):
            expected = certify(key, image, classify, LAPLACE, **SIZES, **COUNTING)
            for wanted, got in zip(expected, actual, strict=True):
                np.testing.assert_array_equal(wanted, got)

    def test_images_that_share_draws_are_certified_the_same(self):
        key, images = make_key(1), [(seed + 1) * IMAGE for seed in range(5)]
        expected = [
            certify(key, image, classify, LAPLACE, **SIZES, **COUNTING)
            for image in images
        ]
        pairs = [(key, image) for image in images]
        by_hand = functools.partial(
            certify_each, classify=classify, smoothing=LAPLACE, **SIZES
        )

        # Two stacks and a part of one, on one device and on groups of several.
        alone = by_hand(pairs, share_draws=2, **COUNTING)
        grouped = self.on_groups(pairs, share_draws=2)

        for results in (alone, grouped):
            for wanted, actual in zip(expected, results, strict=True):
                for number, got in zip(wanted, actual, strict=True):
                    np.testing.assert_array_equal(number, got)

    def test_images_that_share_draws_share_a_key(self):
        pairs = [(make_key(seed), IMAGE) for seed in range(2)]

        with self.assertRaisesRegex(ValueError, "need one key"):
            list(certify_each(pairs, classify, LAPLACE, share_draws=2, **SIZES))
        with self.assertRaisesRegex(ValueError, "share_draws=0"):
            list(certify_each(pairs, classify, LAPLACE, share_draws=0, **SIZES))

    def test_groups_read_one_batch_ahead(self):
        taken = []

        def pairs():
            for seed in range(8):
                taken.append(seed)
                yield make_key(seed), IMAGE

        results = self.on_groups(pairs())
        next(results)
        self.assertEqual(taken, [0, 1, 2, 3])
        next(results)
        self.assertEqual(taken, [0, 1, 2, 3])
        next(results)
        self.assertEqual(taken, [0, 1, 2, 3, 4, 5])

    def test_a_bad_image_costs_no_result_of_those_before_it(self):
        for good in (0, 1, 2, 3):
            pairs = [(make_key(seed), IMAGE) for seed in range(good)]
            results = self.on_groups([*pairs, (make_key(9), 0 * IMAGE), *pairs])
            for key, _ in pairs:
                expected = certify(key, IMAGE, classify, LAPLACE, **SIZES, **COUNTING)
                np.testing.assert_array_equal(next(results).votes, expected.votes)
            with self.assertRaisesRegex(ValueError, "all black"):
                next(results)

    def test_refuses_groups_that_the_devices_cannot_form(self):
        with self.assertRaisesRegex(ValueError, "groups=3 does not divide 4 devices"):
            next(self.on_groups([(make_key(0), IMAGE)], groups=3))


class PredictTest(parameterized.TestCase):
    def test_tests_the_votes_it_counts(self):
        key = make_key(5)

        result = predict(key, IMAGE, classify, LAPLACE, n=100, alpha=0.05, **COUNTING)

        counts = count(key, 100)
        np.testing.assert_array_equal(result.votes, counts)
        self.assertEqual(result, prediction_from_votes(result.votes, 0.05))

    @parameterized.parameters(0.01, 0.05, 0.4)
    def test_abstains_exactly_when_the_leaders_may_be_alike(self, alpha):
        for first in range(15, 31):
            counts = np.array([30 - first, 0, first])
            p_value = stats.binomtest(first, 30, 0.5).pvalue

            result = prediction_from_votes(counts, alpha)

            self.assertAlmostEqual(result.p_value, p_value, delta=1e-12)
            self.assertEqual(result.label, 2 if p_value <= alpha else ABSTAIN)

    @parameterized.parameters(0.0, 0.5, 0.95)
    def test_refuses_confidence_in_place_of_alpha(self, alpha):
        with self.assertRaisesRegex(ValueError, f"alpha={alpha} is outside"):
            predict(make_key(0), IMAGE, classify, LAPLACE, n=9, alpha=alpha)
        with self.assertRaisesRegex(ValueError, f"alpha={alpha} is outside"):
            prediction_from_votes(np.array([9, 0]), alpha)


class CompilationTest(absltest.TestCase):
    def test_selection_estimation_and_all_images_share_one_program(self):
        smooth = make_smoothing("flow_laplace", 0.2, "l1")
        certify(make_key(0), IMAGE, classify, smooth, **SIZES, **COUNTING)

        with oracles.compilations() as compiled:
            certify(
                make_key(1),
                2 * IMAGE,
                classify,
                smooth,
                n0=7,
                n=33,
                alpha=0.1,
                **COUNTING,
            )

        self.assertEmpty(compiled)


if __name__ == "__main__":
    absltest.main()
