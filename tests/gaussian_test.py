"""Tests of wsjax.gaussian.

The laws draw with `standard_normal` (on flows, `FlowGaussian.standard`). Where that is
replaced by a function that hands back its key, a law is a linear map of the white noise it
is given, and is compared with a dense matrix without any sampling.
"""

import contextlib
import functools
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import oracles
from absl.testing import absltest, parameterized
from scipy import stats

from wsjax import gaussian, make_key, noise, spectrum
from wsjax.gaussian import ColouredGaussian, GaussianView, StencilGaussian

METRICS = ("l1", "l2")
SHAPES = (
    ("gray", (5, 4, 1)),
    ("colour", (4, 6, 3)),
    ("odd", (3, 5, 2)),
    ("one_row", (1, 6, 1)),
    ("one_column", (7, 1, 2)),
)
EACH_SHAPE = parameterized.named_parameters(*SHAPES)
EACH_PICTURE = parameterized.named_parameters(*SHAPES[:3])


@contextlib.contextmanager
def white_as_key(dtype=np.float64):
    """Laws take white noise where they take keys."""

    def given(white, shape, dtype):
        assert white.shape == tuple(shape), (white.shape, shape)
        return white.astype(dtype)

    def as_they_are(words, divisor=1.0):
        return words / divisor

    with (
        mock.patch.object(gaussian, "standard_normal", given),
        mock.patch.object(
            gaussian, "normal_at", lambda white, at, dtype: white.ravel()[at]
        ),
        mock.patch.object(noise, "_words", given),
        mock.patch.object(noise.fast_random, "bits_at", lambda white, at, _: white[at]),
        mock.patch.object(noise.FlowGaussian, "standard", staticmethod(as_they_are)),
        jax.enable_x64(dtype == np.float64),
    ):
        yield


# Traced under `white_as_key` alone.
_perturb = oracles.on_host(lambda law, *given: law.perturb(*given))


@functools.partial(oracles.on_host, static_argnums=2)
def _sample_each(law, whites, shape):
    return jax.vmap(lambda white: law.sample(white, shape, whites.dtype))(whites)


def white_shape(law, shape):
    """Of the white noise that a law takes for an image."""
    return gaussian.waves_shape(shape) if isinstance(law, ColouredGaussian) else shape


def perturb_with(law, white, image, dtype=np.float64):
    with white_as_key(dtype):
        return _perturb(law, white.astype(dtype), image.astype(dtype))


@functools.cache
def map_from_white(law, shape, variables=None):
    """Dense `[variables, pixels]`: what a law makes of units of white noise."""
    variables = white_shape(law, shape) if variables is None else variables
    units = np.eye(np.prod(variables)).reshape(-1, *variables)
    with white_as_key():
        return _sample_each(law, units, shape).reshape(len(units), -1)


def covariance_drawn(law, shape, variables=None):
    rows = map_from_white(law, shape, variables)
    return rows.T @ rows


@functools.cache
def draw_many(law, count=4_000):
    """`[count, 4, 5, 2]`, with keys."""

    @oracles.on_host
    def draw_all(key):
        keys = jax.random.split(key, count)
        return jax.vmap(lambda key: law.sample(key, (4, 5, 2), jnp.float32))(keys)

    return draw_all(make_key(1))


def coloured(seed, shape, **filter_):
    s = oracles.random_spectrum(seed, shape, decades=1.0)
    return ColouredGaussian(spectrum.square_root(s), **filter_)


def wiener_gain(seed, shape):
    signal = oracles.random_spectrum(seed + 100, shape)
    return spectrum.wiener(signal, oracles.random_spectrum(seed, shape, decades=1.0))


def random_view(seed, shape, rank):
    rng = np.random.default_rng(seed)
    return GaussianView(
        rng.normal(size=(rank, *shape)),
        rng.normal(size=(rank, *shape)),
        rng.dirichlet(np.ones(np.prod(shape))).reshape(shape),
    )


def random_image(seed, shape, mass=30.0):
    image = np.random.default_rng(seed).dirichlet(np.ones(np.prod(shape)))
    return mass * image.reshape(shape)


class CovarianceTest(parameterized.TestCase):
    @EACH_SHAPE
    def test_coloured_noise_has_its_spectrum(self, shape):
        promised = oracles.random_spectrum(0, shape)
        law = ColouredGaussian(spectrum.square_root(promised))

        drawn = covariance_drawn(law, shape)

        np.testing.assert_allclose(drawn, oracles.circulant(law.spectrum), atol=1e-12)
        # The law holds its amplitude in float32.
        np.testing.assert_allclose(law.spectrum, promised, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(
            drawn, oracles.circulant(promised), atol=1e-6 * promised.max()
        )

    def test_any_square_root_will_do(self):
        # Triangular roots are not symmetric, and S = A A^T is not A^T A.
        shape = (4, 5, 3)
        promised = oracles.random_spectrum(1, shape)
        roots = np.zeros_like(promised)
        for frequency in np.ndindex(4, 5):
            if frequency != (0, 0):
                roots[frequency] = np.linalg.cholesky(promised[frequency])
        law = ColouredGaussian(roots)

        drawn = covariance_drawn(law, shape)

        np.testing.assert_allclose(
            drawn, oracles.circulant(promised), atol=1e-6 * promised.max()
        )
        np.testing.assert_allclose(drawn, oracles.circulant(law.spectrum), atol=1e-12)
        np.testing.assert_array_equal(law.spectrum, np.swapaxes(law.spectrum, 2, 3))

    @EACH_SHAPE
    def test_power_laws_have_the_power_of_the_laplacian(self, shape):
        law = ColouredGaussian(
            spectrum.square_root(spectrum.power_law(shape, 0.1, 1.5))
        )

        drawn = covariance_drawn(law, shape)

        expected = 0.01 * oracles.laplacian_power(shape, 1.5, wrap=True)
        np.testing.assert_allclose(drawn, expected, atol=1e-7)

    @EACH_SHAPE
    def test_the_stencil_has_the_square_of_the_laplacian(self, shape):
        drawn = covariance_drawn(StencilGaussian(0.1), shape)

        expected = 0.01 * oracles.laplacian_power(shape, 2.0, wrap=True)
        np.testing.assert_allclose(drawn, expected, atol=1e-14)

    @parameterized.product(
        wrap=(False, True), shape=((5, 4, 1), (3, 4, 2), (1, 6, 1), (2, 3, 1))
    )
    def test_flows_have_the_laplacian_of_their_edges(self, wrap, shape):
        edges = (len(oracles.edges(shape, wrap)),)

        drawn = covariance_drawn(noise.FlowGaussian(0.1, wrap=wrap), shape, edges)

        expected = 0.01 * oracles.laplacian_power(shape, 1.0, wrap)
        np.testing.assert_allclose(drawn, expected, atol=1e-14)

    def test_views_have_that_of_their_readout(self):
        law = random_view(0, (3, 4, 2), 5)

        drawn = covariance_drawn(law, (3, 4, 2), (5,))

        readout = law.readout.astype(float).reshape(5, -1)
        np.testing.assert_allclose(drawn, readout.T @ readout, atol=1e-12)

    @parameterized.named_parameters(
        ("coloured", coloured(3, (4, 5, 2))), ("stencil", StencilGaussian(0.3))
    )
    def test_noise_keeps_the_mass_of_every_channel(self, law):
        draws = draw_many(law)

        self.assertEqual(draws.dtype, np.float32)
        np.testing.assert_allclose(draws.sum((1, 2)), 0.0, atol=2e-5)
        self.assertGreater(np.abs(draws).max(), 1.0)

    @parameterized.named_parameters(
        ("coloured", coloured(3, (4, 5, 2))),
        ("stencil", StencilGaussian(0.3)),
        ("view", random_view(4, (4, 5, 2), 6)),
    )
    def test_draws_are_normal_with_that_covariance(self, law):
        draws = draw_many(law).reshape(-1, 40)

        variables = (6,) if isinstance(law, GaussianView) else None
        expected = covariance_drawn(law, (4, 5, 2), variables)
        scale = np.sqrt(np.outer(np.diag(expected), np.diag(expected)))
        # A sample's covariance deviates by sqrt(2 / n) of the variances at most.
        found, bound = draws.T @ draws / len(draws), 5 * (2 / len(draws)) ** 0.5
        self.assertLess(np.abs((found - expected) / scale).max(), bound)
        weights = np.random.default_rng(5).normal(size=40)
        lean = draws @ weights / (weights @ expected @ weights) ** 0.5
        self.assertGreater(stats.kstest(lean, stats.norm.cdf).pvalue, 0.01)

    @parameterized.parameters((4, 5, 2), (5, 6, 1), (1, 4, 3), (3, 1, 1))
    def test_colour_adds_up_waves(self, *shape):
        root = spectrum.square_root(oracles.random_spectrum(6, shape))
        half = root[:, : shape[1] // 2 + 1].astype(np.float32)
        waves = np.random.default_rng(6).normal(size=gaussian.waves_shape(shape))

        field = gaussian.colour(waves.astype(np.float32), half, shape[1])

        expected = oracles.sum_of_waves(waves, half, shape)
        np.testing.assert_allclose(field, expected, atol=2e-5)


class PerturbTest(parameterized.TestCase):
    @EACH_PICTURE
    def test_without_a_filter_adds_mass_times_noise(self, shape):
        rng = np.random.default_rng(0)
        for law in (coloured(0, shape), StencilGaussian(0.1)):
            white = rng.normal(size=white_shape(law, shape))
            image = random_image(1, shape)

            noisy = perturb_with(law, white, image)

            draw = (white.ravel() @ map_from_white(law, shape)).reshape(shape)
            expected = image + image.sum() * draw
            np.testing.assert_allclose(noisy, expected, atol=1e-10)

    @EACH_PICTURE
    def test_with_a_filter_filters_image_and_noise_alike(self, shape):
        gain, mean = wiener_gain(1, shape), random_image(2, shape, mass=1.0)
        law = coloured(1, shape, gain=gain, mean=mean)
        white = np.random.default_rng(1).normal(size=gaussian.waves_shape(shape))
        image = random_image(3, shape)

        picture = perturb_with(law, white, image)

        draw = (white.ravel() @ map_from_white(law, shape)).reshape(shape)
        noisy = image / image.sum() + draw
        mean = law.mean.astype(float)
        filter_ = oracles.circulant(law.gain.astype(float))
        filtered = (filter_ @ (noisy - mean).ravel()).reshape(shape) + mean
        np.testing.assert_allclose(picture, image.sum() * filtered, atol=1e-9)

    def test_the_filter_is_not_mistaken_for_its_transpose(self):
        # Gains of signals and noises that do not commute are no symmetric matrices.
        gain = wiener_gain(1, (4, 6, 3))

        self.assertGreater(np.abs(gain - np.swapaxes(gain, 2, 3)).max(), 0.05)

    @EACH_PICTURE
    def test_a_wiener_filter_keeps_the_mass_of_every_channel(self, shape):
        gain, mean = wiener_gain(2, shape), random_image(4, shape, mass=1.0)
        law = coloured(2, shape, gain=gain, mean=mean)
        white = np.random.default_rng(2).normal(size=gaussian.waves_shape(shape))
        image = random_image(5, shape)

        picture = perturb_with(law, white, image, np.float32)

        self.assertEqual((picture.shape, picture.dtype), (shape, np.float32))
        np.testing.assert_allclose(picture.sum((0, 1)), image.sum((0, 1)), atol=1e-3)
        self.assertGreater(np.abs(picture - image).max(), 1.0)

    def test_a_filter_against_strong_noise_loses_no_digits(self):
        # Short waves of the noise are 10,000 times the image: added up in float32
        # before the filter takes them out, they would take the image's digits along.
        shape = (6, 5, 1)
        waves = spectrum.power_law(shape, 1.0, 0.0)
        short = spectrum.laplacian(6, 5)[:, :, None, None] > 4
        power, signal = np.where(short, 1e8, 1e-6) * waves, 1e-4 * waves
        gain = spectrum.wiener(signal, power)
        law = ColouredGaussian(
            spectrum.square_root(power), gain, random_image(6, shape, mass=1.0)
        )
        white = (
            np.random.default_rng(3)
            .normal(size=gaussian.waves_shape(shape))
            .astype(np.float32)
        )
        image = random_image(7, shape, mass=1.0).astype(np.float32)

        single = perturb_with(law, white, image, np.float32)

        double = perturb_with(law, white, image)
        np.testing.assert_allclose(single, double, atol=1e-6)

    def test_views_are_what_is_read_out_of_features_and_noise(self):
        shape = (3, 4, 2)
        law = random_view(8, shape, 5)
        white, image = np.random.default_rng(8).normal(size=5), random_image(8, shape)

        picture = perturb_with(law, white, image)

        features, readout, mean = (
            np.asarray(a, float) for a in (law.features, law.readout, law.mean)
        )
        expected = mean.copy()
        for d in range(5):
            seen = np.sum(features[d] * (image / image.sum() - mean)) + white[d]
            expected += seen * readout[d]
        np.testing.assert_allclose(picture, image.sum() * expected, atol=1e-10)

    def test_images_that_the_features_cannot_tell_apart_look_alike(self):
        shape = (3, 4, 1)
        law = random_view(9, shape, 4)
        image = random_image(9, shape, mass=1.0)
        flat = law.features.reshape(4, -1).astype(float)
        _, _, rows = np.linalg.svd(np.vstack([flat, np.ones(12)]))
        unseen = image + 0.3 * rows[-1].reshape(shape)
        seen = image + 0.3 * (rows[0] - rows[0].mean()).reshape(shape)
        white = np.random.default_rng(4).normal(size=4)

        a, b, c = (perturb_with(law, white, i) for i in (image, unseen, seen))

        np.testing.assert_allclose(a, b, atol=1e-10)
        self.assertGreater(np.abs(a - c).max(), 0.1)

    @parameterized.named_parameters(
        ("coloured", coloured(3, (4, 5, 2))),
        (
            "filtered",
            coloured(
                3,
                (4, 5, 2),
                gain=wiener_gain(3, (4, 5, 2)),
                mean=random_image(10, (4, 5, 2), 1.0),
            ),
        ),
        ("stencil", StencilGaussian(0.3)),
        ("view", random_view(4, (4, 5, 2), 6)),
    )
    def test_units_do_not_matter_and_keys_decide(self, law):
        image = random_image(11, (4, 5, 2)).astype(np.float32)
        perturb = oracles.on_host(law.perturb)
        a, b = jax.random.split(make_key(5))

        noisy = perturb(a, image)

        scale = np.abs(noisy).max()
        np.testing.assert_allclose(
            perturb(a, 255 * image), 255 * noisy, atol=255e-5 * scale
        )
        np.testing.assert_array_equal(noisy, perturb(a, image))
        self.assertGreater(np.abs(noisy - perturb(b, image)).max(), 0.01 * scale)
        with jax.enable_x64(True):
            wide = jax.eval_shape(law.perturb, a, image.astype(np.float64))
        self.assertEqual(wide.dtype, np.float64)


def mean_square_error(estimate, features, covariance):
    """Of `estimate (phi x + z)` as an estimate of x, by the dense covariances."""
    miss = estimate @ features - np.eye(len(covariance))
    return np.trace(miss @ covariance @ miss.T) + np.sum(estimate**2)


class WienerReadoutTest(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        rng = np.random.default_rng(0)
        self.features = rng.normal(size=(5, 3, 4, 2))
        root = rng.normal(size=(24, 24))
        self.covariance = root @ root.T / 24 + 0.05 * np.eye(24)

    def test_is_the_mean_of_the_image_given_the_view(self):
        # By the other side of Woodbury's identity: (phi^T phi + C^-1)^-1 phi^T.
        flat = self.features.reshape(5, -1)
        expected = np.linalg.solve(
            flat.T @ flat + np.linalg.inv(self.covariance), flat.T
        )

        readout = gaussian.wiener_readout(self.features, self.covariance)

        self.assertEqual((readout.shape, readout.dtype), ((5, 3, 4, 2), np.float64))
        np.testing.assert_allclose(readout.reshape(5, -1).T, expected, atol=1e-10)

    def test_no_other_linear_estimate_errs_less(self):
        flat = self.features.reshape(5, -1)
        best = gaussian.wiener_readout(self.features, self.covariance)
        best = best.reshape(5, -1).T
        least = mean_square_error(best, flat, self.covariance)
        rng = np.random.default_rng(1)

        for _ in range(20):
            other = rng.normal(size=best.shape)
            for step in (1e-3, -1e-3):
                error = mean_square_error(best + step * other, flat, self.covariance)
                self.assertGreater(error, least)

    def test_images_all_alike_need_no_view(self):
        readout = gaussian.wiener_readout(self.features, np.zeros((24, 24)))

        np.testing.assert_array_equal(readout, 0.0)


def brute_force(features, metric):
    """Steepest pair of `pixel -> features[:, pixel]`, in extended precision."""
    points = np.asarray(features, np.longdouble)
    _, height, width, channels = points.shape
    worst = 0.0
    for a in np.ndindex(height, width):
        for b in np.ndindex(height, width):
            if a < b:
                for c in range(channels):
                    step = points[:, *a, c] - points[:, *b, c]
                    distance = oracles.pixel_distance(a, b, metric)
                    worst = max(worst, np.sqrt(np.sum(step**2)) / distance)
    return worst


class KappaTest(parameterized.TestCase):
    def check(self, law, precision, shape, metric, tightness=1e-6):
        brute, _, distance = oracles.hardest_move(precision, shape, metric)

        actual = gaussian.kappa(law, shape, metric)

        self.assertIsInstance(actual, float)
        # The brute force itself is off by rounding.
        self.assertGreaterEqual(actual, brute * (1 - 1e-9))
        self.assertLessEqual(actual, brute * (1 + tightness))
        return distance

    @parameterized.product(
        shape=((5, 7, 1), (4, 3, 2), (1, 6, 1), (7, 1, 2), (2, 2, 1)),
        wrap=(False, True),
        metric=METRICS,
    )
    def test_of_flows(self, shape, wrap, metric):
        covariance = 0.04 * oracles.laplacian_power(shape, 1.0, wrap)

        self.check(
            noise.FlowGaussian(0.2, wrap=wrap),
            np.linalg.pinv(covariance, rcond=1e-9, hermitian=True),
            shape,
            metric,
        )

    @parameterized.parameters(*METRICS)
    def test_of_flows_along_a_row_is_one_edge(self, metric):
        law = noise.FlowGaussian(0.2)

        self.assertAlmostEqual(gaussian.kappa(law, (1, 9, 3), metric), 5.0, delta=1e-12)

    @parameterized.product(shape=((5, 7, 1), (4, 3, 2), (1, 6, 1)), metric=METRICS)
    def test_of_the_stencil(self, shape, metric):
        covariance = 0.04 * oracles.laplacian_power(shape, 2.0, wrap=True)

        self.check(
            StencilGaussian(0.2),
            np.linalg.pinv(covariance, rcond=1e-9, hermitian=True),
            shape,
            metric,
        )

    @parameterized.product(shape=((5, 7, 1), (5, 7, 3)), metric=METRICS)
    def test_of_coloured_noise_is_about_the_amplitude_that_is_drawn(
        self, shape, metric
    ):
        # Float32 amplitudes: the constant of the float64 spectrum would be wrong.
        s = oracles.tilted_spectrum(0, shape)
        law = ColouredGaussian(spectrum.square_root(s))
        exact = oracles.exact_kappa(law.spectrum, metric)

        distance = self.check(
            law,
            np.linalg.pinv(covariance_drawn(law, shape), rcond=1e-9, hermitian=True),
            shape,
            metric,
        )

        self.assertAlmostEqual(distance, {"l1": 1, "l2": 2**0.5}[metric], places=12)
        self.assertGreaterEqual(gaussian.kappa(law, shape, metric), exact)
        self.assertNotEqual(exact, oracles.exact_kappa(s, metric))

    @parameterized.parameters(*METRICS)
    def test_a_filter_costs_nothing(self, metric):
        shape = (4, 5, 2)
        plain = coloured(1, shape)
        filtered = coloured(
            1, shape, gain=wiener_gain(1, shape), mean=random_image(0, shape, 1.0)
        )

        self.assertEqual(
            gaussian.kappa(plain, shape, metric),
            gaussian.kappa(filtered, shape, metric),
        )

    @parameterized.product(
        shape=((5, 7, 1), (5, 7, 3), (1, 6, 2), (7, 1, 1)),
        rank=(1, 4),
        metric=METRICS,
    )
    def test_of_views_is_the_steepest_pair(self, shape, rank, metric):
        law = random_view(rank, shape, rank)

        actual = gaussian.kappa(law, shape, metric)

        exact = brute_force(law.features, metric)
        self.assertGreaterEqual(actual, exact)
        self.assertLessEqual(actual, exact * (1 + 1e-12))

    def test_of_views_looks_along_diagonals_in_straight_lines_alone(self):
        ramp = np.add.outer(np.arange(5.0), np.arange(7.0))[None, :, :, None]
        law = GaussianView(ramp, ramp, np.full((5, 7, 1), 1 / 35))

        self.assertAlmostEqual(gaussian.kappa(law, (5, 7, 1), "l1"), 1.0, delta=1e-12)
        self.assertAlmostEqual(
            gaussian.kappa(law, (5, 7, 1), "l2"), 2**0.5, delta=1e-12
        )

    @parameterized.parameters(*METRICS)
    def test_pixels_of_different_channels_are_never_a_pair(self, metric):
        features = np.random.default_rng(0).normal(size=(3, 4, 5, 2))
        apart = features + np.array([0.0, 1e3])

        self.assertAlmostEqual(
            gaussian.feature_kappa(apart, metric),
            gaussian.feature_kappa(features, metric),
            delta=1e-8,
        )

    @parameterized.product(offset=(1e3, 1e6), metric=METRICS)
    def test_what_all_pixels_share_is_not_lost_in_rounding(self, offset, metric):
        for seed in range(10):
            features = np.random.default_rng(seed).normal(size=(3, 4, 5, 1)) + offset

            actual = gaussian.feature_kappa(features, metric)

            exact = brute_force(features, metric)
            self.assertGreaterEqual(actual, exact)
            self.assertLessEqual(actual, exact * (1 + 1e-14 * offset**2))

    def test_of_views_of_many_pixels_finds_a_pair_in_any_block(self):
        # 600 pixels are more than the 512 of a block; only one pair is steep.
        for steep in ((0, 1), (510, 511), (511, 512), (512, 513), (598, 599)):
            features = np.zeros((1, 1, 600, 1))
            features[0, 0, : steep[1]] = 1.0
            for metric in METRICS:
                self.assertAlmostEqual(
                    gaussian.feature_kappa(features, metric), 1.0, delta=1e-12
                )

    def test_of_views_adds_up_all_coordinates(self):
        features = np.zeros((4, 2, 1, 1))
        features[:, 1] = 1.0

        self.assertAlmostEqual(gaussian.feature_kappa(features, "l2"), 2.0, delta=1e-12)

    @parameterized.parameters(*METRICS)
    def test_is_inversely_proportional_to_the_noise(self, metric):
        for law in (
            noise.FlowGaussian,
            functools.partial(noise.FlowGaussian, wrap=True),
            StencilGaussian,
        ):
            ratio = gaussian.kappa(law(2.0**-7), (4, 5, 1), metric) / gaussian.kappa(
                law(0.5), (4, 5, 1), metric
            )
            self.assertAlmostEqual(ratio, 64, delta=1e-9)

    @parameterized.parameters(0.01, 0.02, 0.1, 0.3, 1e-4)
    def test_is_about_sigma_as_it_is_drawn_in_either_type(self, sigma):
        # float32 rounds some of these down and some up.
        drawn = min(sigma, float(np.float32(sigma)))
        for law, gamma, wrap in (
            (noise.FlowGaussian(sigma), 1.0, False),
            (noise.FlowGaussian(sigma, wrap=True), 1.0, True),
            (StencilGaussian(sigma), 2.0, True),
        ):
            covariance = oracles.laplacian_power((3, 4, 1), gamma, wrap)
            one, _, _ = oracles.hardest_move(
                np.linalg.pinv(covariance, rcond=1e-9, hermitian=True), (3, 4, 1), "l1"
            )

            actual = gaussian.kappa(law, (3, 4, 1), "l1")

            np.testing.assert_allclose(actual, one / drawn, rtol=1e-11)

    def test_of_noise_on_more_edges_is_smaller(self):
        bordered, wrapped = (
            gaussian.kappa(noise.FlowGaussian(1.0, wrap=wrap), (6, 7, 1), "l2")
            for wrap in (False, True)
        )

        self.assertLess(wrapped, bordered)
        self.assertLess(bordered, 1.0)

    @parameterized.parameters(
        noise.FlowLaplace(0.1), noise.FlowUniform(0.1), noise.PixelLaplace(0.1)
    )
    def test_refuses_other_noise(self, law):
        with self.assertRaises(ValueError) as caught:
            gaussian.kappa(law, (3, 4, 1), "l1")
        self.assertIn(f"{type(law).__name__} is no Gaussian law", str(caught.exception))

    @parameterized.named_parameters(
        ("wrapped", noise.FlowGaussian(0.1, wrap=True)),
        ("bordered", noise.FlowGaussian(0.1)),
        ("stencil", StencilGaussian(0.1)),
        ("coloured", coloured(0, (3, 4, 1))),
        ("view", random_view(0, (3, 4, 1), 2)),
    )
    def test_refuses_other_metrics(self, law):
        for metric in ("l3", "L2", None):
            with self.assertRaises(ValueError) as caught:
                gaussian.kappa(law, (3, 4, 1), metric)
            self.assertIn(
                f"ground_metric={metric!r} is not one of", str(caught.exception)
            )

    @parameterized.named_parameters(
        ("wrapped", noise.FlowGaussian(0.1, wrap=True)),
        ("bordered", noise.FlowGaussian(0.1)),
        ("stencil", StencilGaussian(0.1)),
        ("view", random_view(0, (1, 1, 1), 2)),
    )
    def test_refuses_one_pixel(self, law):
        with self.assertRaisesRegex(ValueError, "one pixel has no mass to move"):
            gaussian.kappa(law, (1, 1, 1), "l2")

    @parameterized.named_parameters(
        ("wrapped", noise.FlowGaussian(0.1, wrap=True)),
        ("bordered", noise.FlowGaussian(0.1)),
        ("stencil", StencilGaussian(0.1)),
    )
    def test_refuses_what_is_no_image(self, law):
        with self.assertRaisesRegex(ValueError, r"shape \[H, W, C\].*got \(3, 4\)"):
            gaussian.kappa(law, (3, 4), "l2")

    def test_refuses_bordered_flows_on_more_pixels_than_it_can_solve(self):
        with self.assertRaisesRegex(ValueError, "65 x 64 is too many. Use wrap=True"):
            gaussian.kappa(noise.FlowGaussian(0.1), (65, 64, 1), "l1")
        gaussian.kappa(noise.FlowGaussian(0.1, wrap=True), (65, 64, 1), "l1")


class ShapeTest(parameterized.TestCase):
    @parameterized.named_parameters(
        ("coloured", coloured(0, (3, 4, 2))),
        (
            "filtered",
            coloured(
                0,
                (3, 4, 2),
                gain=wiener_gain(0, (3, 4, 2)),
                mean=random_image(0, (3, 4, 2), 1.0),
            ),
        ),
        ("view", random_view(0, (3, 4, 2), 2)),
    )
    def test_laws_of_one_shape_refuse_all_others(self, law):
        self.assertEqual(law.image_shape, (3, 4, 2))
        for shape in ((4, 3, 2), (3, 4, 1), (3, 4), (1, 3, 4, 2)):
            for use in (
                lambda shape=shape: law.sample(make_key(0), shape, jnp.float32),
                lambda shape=shape: law.perturb(make_key(0), jnp.ones(shape)),
                lambda shape=shape: gaussian.kappa(law, shape, "l1"),
            ):
                with self.assertRaises(ValueError) as caught:
                    use()
                self.assertRegex(
                    str(caught.exception),
                    r"for images of shape \(3, 4, 2\), not|An? image has shape",
                )

    def test_the_stencil_refuses_what_is_no_image(self):
        with self.assertRaisesRegex(ValueError, r"\[H, W, C\].*\(5, 4\)"):
            StencilGaussian(0.1).sample(make_key(0), (5, 4), jnp.float32)

    @parameterized.parameters(jnp.float16, jnp.bfloat16, jnp.int32)
    def test_noise_is_drawn_in_no_coarser_type(self, dtype):
        shape = (3, 4, 1)
        for law in (coloured(0, shape), StencilGaussian(0.1), random_view(0, shape, 2)):
            with self.assertRaisesRegex(ValueError, "float32 or float64, not"):
                law.sample(make_key(0), shape, dtype)


class ConstructorTest(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        shape = self.shape = (3, 4, 2)
        self.amplitude = spectrum.square_root(oracles.random_spectrum(0, shape))
        self.gain, self.mean = wiener_gain(0, shape), random_image(0, shape, 1.0)
        self.view = random_view(0, shape, 5)

    @parameterized.parameters(0, -0.1, np.inf, np.nan, "0.1", None)
    def test_the_stencil_refuses_impossible_spreads(self, sigma):
        with self.assertRaisesRegex(ValueError, "positive finite number") as caught:
            StencilGaussian(sigma)
        self.assertIn(f"sigma={sigma!r}", str(caught.exception))

    def test_coloured_noise_has_to_have_a_spectrum(self):
        wide = np.concatenate([self.amplitude, self.amplitude], axis=-1)
        for wrong in (self.amplitude[0], np.ones((3, 4, 2)), wide):
            with self.assertRaisesRegex(ValueError, "shape"):
                ColouredGaussian(wrong)
        with self.assertRaisesRegex(ValueError, "NaN or infinite"):
            ColouredGaussian(self.amplitude * np.nan)
        silent = self.amplitude.copy()
        silent[1, 2] = silent[-1, -2] = 0
        with self.assertRaisesRegex(ValueError, "mass could move unseen"):
            ColouredGaussian(silent)
        lopsided = self.amplitude.copy()
        lopsided[1, 2] *= 2
        with self.assertRaisesRegex(ValueError, "not symmetric"):
            ColouredGaussian(lopsided)
        making = self.amplitude + 0.1 * np.eye(2)
        with self.assertRaisesRegex(ValueError, "at frequency zero"):
            ColouredGaussian(making)

    def test_roots_of_coloured_noise_have_to_agree_where_rfft2_keeps_both(self):
        # S(w) = S(-w) for these too, but noise drawn with them lacks waves of theirs:
        # the transform back keeps the mean of the two roots.
        shape = (6, 4, 1)
        roots = spectrum.square_root(spectrum.power_law(shape, 0.1, 1.0))
        roots[4:, 0] *= -1

        with self.assertRaisesRegex(ValueError, r"\(w\) and amplitude\(-w\) differ"):
            ColouredGaussian(roots)

    def test_power_too_small_for_float32_is_none(self):
        # What is drawn counts, not what was asked for.
        with self.assertRaisesRegex(ValueError, "not positive"):
            ColouredGaussian(1e-60 * self.amplitude)

    @parameterized.named_parameters(
        ("gain_alone", {"mean": None}, "gain and mean belong together"),
        ("mean_alone", {"gain": None}, "gain and mean belong together"),
        ("other_gain", {"gain": np.ones((3, 4, 2))}, r"gain has shape \(3, 4, 2\)"),
        ("other_mean", {"mean": np.ones((3, 4))}, r"mean has shape \(3, 4\)"),
        ("no_gain", {"gain": np.full((3, 4, 2, 2), np.nan)}, "gain or mean holds NaN"),
        ("no_mean", {"mean": np.full((3, 4, 2), np.inf)}, "gain or mean holds NaN"),
    )
    def test_coloured_noise_refuses(self, change, message):
        usual = {"amplitude": self.amplitude, "gain": self.gain, "mean": self.mean}
        ColouredGaussian(**usual)
        with self.assertRaisesRegex(ValueError, message):
            ColouredGaussian(**(usual | change))

    @parameterized.named_parameters(
        ("matrix", {"features": np.ones((5, 24))}, r"shape \[D, H, W, C\], got \(5,"),
        ("empty", {"features": np.ones((0, 3, 4, 2))}, r"got \(0, 3, 4, 2\)"),
        ("readout", {"readout": np.ones((4, 3, 4, 2))}, r"readout has shape \(4, 3,"),
        ("mean", {"mean": np.ones((3, 4))}, r"mean has shape \(3, 4\)"),
        ("nan", {"features": np.full((5, 3, 4, 2), np.nan)}, "features holds NaN"),
        ("inf", {"readout": np.full((5, 3, 4, 2), np.inf)}, "readout holds NaN"),
        ("nan_mean", {"mean": np.full((3, 4, 2), np.nan)}, "mean holds NaN"),
        ("too_large", {"features": np.full((5, 3, 4, 2), 1e39)}, "features holds NaN"),
    )
    def test_views_refuse(self, change, message):
        usual = {n: getattr(self.view, n) for n in ("features", "readout", "mean")}
        GaussianView(**usual)
        with np.errstate(over="ignore"), self.assertRaisesRegex(ValueError, message):
            GaussianView(**(usual | change))


class ValueTest(parameterized.TestCase):
    SHAPE = (3, 4, 2)

    def laws(self):
        """Two of each, and one for each of their arrays that is slightly different."""
        shape = self.SHAPE
        gain, mean = wiener_gain(0, shape), random_image(0, shape, 1.0)
        plain = {"amplitude": coloured(0, shape).amplitude}
        filtered = {**plain, "gain": gain, "mean": mean}
        view = random_view(0, shape, 5)
        view = {n: getattr(view, n) for n in ("features", "readout", "mean")}
        for law, fields in (
            (ColouredGaussian, plain),
            (ColouredGaussian, filtered),
            (GaussianView, view),
        ):
            others = [
                law(**(fields | {name: self.altered(name, value)}))
                for name, value in fields.items()
            ]
            copies = {name: np.array(value) for name, value in fields.items()}
            yield law(**fields), law(**copies), others

    @staticmethod
    def altered(name, value):
        """Another array, by little and near its end; amplitudes stay even."""
        changed = np.array(value)
        last = (1, 1) if name == "amplitude" else -1
        changed[last] *= 1.001
        if name == "amplitude":
            changed[-1, -1] *= 1.001
        return changed

    def test_laws_are_values(self):
        for law, same, others in self.laws():
            self.assertEqual(law, same)
            self.assertEqual(hash(law), hash(same))
            for other in others:
                self.assertNotEqual(law, other)
        everything = {law for laws in self.laws() for law in (*laws[:2], *laws[2])}
        self.assertLen(everything, 3 + 1 + 3 + 3)
        self.assertNotIn(StencilGaussian(0.1), everything)
        self.assertEqual(StencilGaussian(0.1), StencilGaussian(0.1))
        self.assertNotEqual(StencilGaussian(0.1), StencilGaussian(0.2))

    def test_arrays_with_the_same_bytes_in_other_places_differ(self):
        shape = self.SHAPE
        a, b = (
            np.random.default_rng(i).normal(size=(5, *shape)).astype(np.float32)
            for i in (0, 1)
        )
        mean = random_image(0, shape, 1.0)

        self.assertNotEqual(GaussianView(a, b, mean), GaussianView(b, a, mean))
        flipped = [array.reshape(5, 4, 3, 2) for array in (a, b)]
        self.assertNotEqual(
            GaussianView(a, b, mean), GaussianView(*flipped, mean.reshape(4, 3, 2))
        )

    def test_laws_do_not_change_with_the_arrays_they_were_made_from(self):
        amplitude = np.array(coloured(0, self.SHAPE).amplitude)
        law, kept = ColouredGaussian(amplitude), amplitude.copy()

        amplitude *= 2

        np.testing.assert_array_equal(law.amplitude, kept)
        for law, _, _ in self.laws():
            for name in law.arrays:
                value = getattr(law, name)
                if value is not None:
                    self.assertEqual(value.dtype, np.float32)
                    with self.assertRaisesRegex(ValueError, "read-only"):
                        value[...] = 0
            with self.assertRaises(AttributeError):
                law.mean = None

    def test_laws_of_equal_shapes_share_one_program(self):
        key, image = make_key(0), random_image(0, self.SHAPE).astype(np.float32)
        perturb = oracles.on_host(lambda law: law.perturb(key, image))
        for law, same, others in self.laws():
            first = perturb(law)
            with oracles.compilations() as compiled:
                np.testing.assert_array_equal(perturb(same), first)
                for other in others:
                    self.assertGreater(np.abs(perturb(other) - first).max(), 0)
            self.assertEmpty(compiled)
            self.assertEqual(jax.tree.map(lambda leaf: leaf, law), law)

    @parameterized.parameters(*METRICS)
    def test_kappa_is_float64_wherever_the_arrays_lie(self, metric):
        # Copied to devices, they are JAX's, which computes in float32.
        for law, _, _ in self.laws():
            placed = jax.tree.map(jnp.asarray, law)

            self.assertIsInstance(jax.tree.leaves(placed)[0], jax.Array)
            self.assertEqual(
                gaussian.kappa(placed, self.SHAPE, metric),
                gaussian.kappa(law, self.SHAPE, metric),
            )

    def test_copies_are_made_of_variables(self):
        key, image = make_key(2), random_image(0, self.SHAPE).astype(np.float32)

        @oracles.on_host
        def both_ways(law):
            return law.perturb(key, image), law.copy_of(image, law.variables(key))

        for law, _, _ in self.laws():
            noisy, again = both_ways(law)
            np.testing.assert_allclose(again, noisy, rtol=1e-4, atol=1e-4)


if __name__ == "__main__":
    absltest.main()
