"""Tests of wsjax.training.learned_noise: scaled to the certificate, whatever it learns."""

import dataclasses
import functools
import itertools
import types

import chex
import jax
import jax.numpy as jnp
import numpy as np
import oracles
from absl.testing import absltest, parameterized

from wsjax import gaussian
from wsjax.training import learned_noise
from wsjax.training.learned_noise import LearnedSpectrum, LearnedView

SCALE = 0.07  # The certificate scale c of all noise here.

VIEWS = {
    "gray_l1": ((6, 7, 1), "l1", {"waves": 2}),
    "gray_l2": ((7, 6, 1), "l2", {"waves": 2, "gamma": 1.0}),
    "colour_l2": ((5, 4, 3), "l2", {"waves": 1}),
}
SPECTRA = {
    "gray_radial_l1": ((4, 5, 1), "l1", {"bins": 6}),
    "gray_free_l2": ((5, 4, 1), "l2", {"bins": 0, "gamma": 1.0}),
    "coupled_radial_l2": ((3, 5, 3), "l2", {"bins": 2}),
    "coupled_free_l1": ((4, 3, 3), "l1", {"bins": 0}),
    "uncoupled_radial_l1": ((4, 3, 3), "l1", {"bins": 5, "couple": False}),
    "uncoupled_unfiltered_l2": (
        (3, 4, 3),
        "l2",
        {"bins": 0, "couple": False, "wiener": False},
    ),
}
EACH_VIEW = parameterized.parameters(*VIEWS)
EACH_SPECTRUM = parameterized.parameters(*SPECTRA)
EACH = parameterized.parameters(*VIEWS, *SPECTRA)
# Most by which the way over pixels up to three apart is longer than straight: halfway
# between the directions (1, 0) and (2, 1).
DETOUR = 1 / np.cos(np.arctan(0.5) / 2)


def some_images(shape, count=12, seed=0):
    """Images as data sets hold them, their pixels related."""
    rng = np.random.default_rng(seed)
    bright = rng.integers(0, 56, (count, 1, 1, 1))
    return (rng.integers(1, 200, (count, *shape)) + bright).astype(np.uint8)


def quickly(function):
    """Compiled in half the time, as each program here is used once or twice."""
    return oracles.on_host(
        function, compiler_options={"xla_backend_optimization_level": 0}
    )


@functools.cache
def built(name):
    """One case: its noise, two sets of parameters, and what comes of them.

    `compute(params, weights)` is `(law, slope, picture)`: the law of traced parameters, the
    gradient of `sum(weights * law)`, and the picture of `image` under `key`.
    """
    kind, (shape, metric, options) = (
        (LearnedView, VIEWS[name])
        if name in VIEWS
        else (LearnedSpectrum, SPECTRA[name])
    )
    statistics = learned_noise.statistics(
        some_images(shape), 200 if kind is LearnedView else 0
    )
    noise = kind(statistics, SCALE, metric, **options)
    rng = np.random.default_rng(1)
    start = noise.init()
    moved = jax.tree.map(
        lambda x: x + jnp.asarray(rng.normal(size=x.shape), jnp.float32), start
    )
    weights = jax.tree.map(
        lambda x: jnp.asarray(rng.normal(size=x.shape), jnp.float32),
        jax.eval_shape(noise.law, start),
    )
    image, key = some_images(shape, 1, seed=3)[0] / np.float32(255), jax.random.key(4)

    @quickly
    def compute(params, weights):
        law, pull_back = jax.vjp(noise.law, params)
        picture = law.copy_of(image, law.variables(key))
        return law, pull_back(weights)[0], picture

    params = {"start": start, "moved": moved}
    results = {which: compute(values, weights) for which, values in params.items()}
    return types.SimpleNamespace(
        noise=noise,
        shape=shape,
        metric=metric,
        image=image,
        key=key,
        compute=compute,
        weights=weights,
        params=params,
        laws={which: result[0] for which, result in results.items()},
        slopes={which: result[1] for which, result in results.items()},
        picture=results["moved"][2],
    )


def mixing(amplitude, shape):
    """Matrix that turns white noise into noise of this amplitude, by float64 FFTs."""
    half = np.asarray(amplitude, np.float64)[:, : shape[1] // 2 + 1]
    columns = []
    for white in np.eye(np.prod(shape)):
        waves = np.fft.rfft2(white.reshape(shape), axes=(0, 1))
        waves = np.einsum("hwij,hwj->hwi", half, waves)
        columns.append(np.fft.irfft2(waves, s=shape[:2], axes=(0, 1)).ravel())
    return np.array(columns).T


def distance(a, b, metric):
    """Of two pixels `(row, column)`."""
    steps = np.abs(np.subtract(a, b))
    return steps.sum() if metric == "l1" else np.hypot(*steps)


def slowly(features_or_amplitude, shape, metric):
    """`kappa` over all pairs of pixels, one after the other, from dense matrices."""
    array = np.asarray(features_or_amplitude, np.float64)
    if array.shape[1:] == shape:
        flat = array.reshape(len(array), -1)
        precision = flat.T @ flat
    else:
        matrix = mixing(array, shape)
        precision = np.linalg.pinv(matrix @ matrix.T, rcond=1e-10, hermitian=True)
    worst = 0.0
    for a, b in itertools.combinations(np.ndindex(shape[:2]), 2):
        for c in range(shape[2]):
            move = np.zeros(shape)
            move[*a, c], move[*b, c] = 1.0, -1.0
            square = move.ravel() @ precision @ move.ravel()
            worst = max(worst, square**0.5 / distance(a, b, metric))
    return worst


def assert_close(actual, expected, tolerance):
    """Entries agree to a share of the largest."""
    size = np.abs(expected).max()
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance * size)


class CertificateTest(chex.TestCase):
    @EACH
    def test_the_law_of_the_loss_certifies_its_scale(self, name):
        case = built(name)
        for which, law in case.laws.items():
            array = law.features if name in VIEWS else law.amplitude
            constant = SCALE * slowly(array, case.shape, case.metric)
            if name in VIEWS and case.metric == "l2":
                # Only pairs of near pixels are looked at while training.
                self.assertBetween(constant, 1 - 1e-5, DETOUR, which)
            else:
                self.assertAlmostEqual(constant, 1.0, delta=1e-4, msg=which)

    @EACH
    def test_frozen_law_certifies_its_scale_and_hardly_more(self, name):
        case = built(name)
        for which, params in case.params.items():
            law = case.noise.freeze(params)
            self.assertEqual(law.image_shape, case.shape)
            constant = SCALE * gaussian.kappa(law, case.shape, case.metric)
            self.assertBetween(constant, 1 - 1e-5, 1.0, which)
            array = law.features if name in VIEWS else law.amplitude
            dense = SCALE * slowly(array, case.shape, case.metric)
            self.assertAlmostEqual(dense, constant, delta=1e-6, msg=which)

    def test_a_view_whose_worst_pixels_are_far_apart_is_frozen_exactly(self):
        # A ramp up the direction (3, 1): of near pairs, those in (2, 1) come closest.
        case = built("gray_l2")
        height, width, _ = case.shape
        ramp = np.add.outer(3 * np.arange(height), np.arange(width)) / np.sqrt(10)
        features = np.zeros(case.params["start"]["features"].shape, np.float32)
        features[0, ..., 0] = ramp

        seen, _, _ = case.compute({"features": features}, case.weights)
        law = case.noise.freeze({"features": features})

        too_much = np.sqrt(50) / 7
        self.assertBetween(too_much, 1.01, DETOUR)
        constant = SCALE * slowly(seen.features, case.shape, "l2")
        self.assertAlmostEqual(constant, too_much, delta=1e-5)
        constant = SCALE * slowly(law.features, case.shape, "l2")
        self.assertBetween(constant, 1 - 1e-5, 1.0)

    @EACH
    def test_does_not_feel_the_size_of_the_parameters(self, name):
        case = built(name)
        for which, slope in case.slopes.items():
            chex.assert_tree_all_finite(slope)
            if name in VIEWS:
                slope, params = slope["features"], case.params[which]["features"]
                along, size = np.vdot(slope, params), np.linalg.norm(params)
            else:
                # A louder spectrum is a larger logarithm.
                slope = slope["log_power"]
                along, size = slope.sum(), slope.size**0.5
            self.assertGreater(np.linalg.norm(slope), 0)
            self.assertLess(abs(along), 1e-4 * np.linalg.norm(slope) * size, which)

    @EACH_VIEW
    def test_gradient_feels_every_pair_by_a_power_mean(self, name):
        """Instead of the largest slope, the norm of exponent 16 of all: by differences."""
        case = built(name)
        reach = 1 if case.metric == "l1" else 3
        pairs = [
            (a, b, distance(a, b, case.metric))
            for a, b in itertools.combinations(np.ndindex(case.shape[:2]), 2)
            if distance(a, b, case.metric) <= reach
        ]

        def squares(features):
            moves = [(features[:, *a] - features[:, *b]) / d for a, b, d in pairs]
            return np.sum(np.square(moves), axis=1)

        def soft(features):
            return np.mean(squares(features) ** 16) ** (1 / 32)

        start = np.asarray(case.params["moved"]["features"], np.float64)
        first = squares(start).max() ** 0.5, soft(start)
        # Weights on the features alone, so that the readout plays no part.
        weights = np.asarray(case.weights.features, np.float64)
        direction = np.random.default_rng(2).normal(size=start.shape)

        def value(size):
            features = start + size * direction
            return np.sum(weights * features) * first[1] / soft(features)

        change = (value(1e-5) - value(-1e-5)) / 2e-5 / (SCALE * first[0])
        alone = jax.tree.map(jnp.zeros_like, case.weights)
        alone = dataclasses.replace(alone, features=case.weights.features)
        _, slope, _ = case.compute(case.params["moved"], alone)
        ratio = np.vdot(slope["features"], direction) / change
        self.assertAlmostEqual(ratio, 1.0, delta=1e-3)


class PictureTest(chex.TestCase):
    @EACH
    def test_the_law_draws_what_training_saw(self, name):
        case = built(name)
        if name in VIEWS:
            # Training looks at near pairs, the law at all; here, one is the worst.
            constant = SCALE * slowly(
                case.laws["moved"].features, case.shape, case.metric
            )
            self.assertAlmostEqual(constant, 1.0, delta=1e-5)
        law = case.noise.freeze(case.params["moved"])

        expected = quickly(law.perturb)(case.key, case.image)

        assert_close(case.picture, expected, 1e-4)
        self.assertGreater(np.abs(case.picture - case.image).max(), 1e-2)

    @parameterized.parameters("gray_l1", "colour_l2")
    def test_readout_of_a_view_is_the_linear_estimate(self, name):
        case = built(name)
        features, readout = case.laws["moved"].features, case.laws["moved"].readout
        phi = np.float64(features).reshape(len(features), -1)
        images = some_images(case.shape).reshape(12, -1).astype(np.float64)
        images /= images.sum(axis=1, keepdims=True)
        covariance = np.cov(images.T, bias=True)
        total = phi @ covariance @ phi.T + np.eye(len(phi))
        expected = (covariance @ phi.T @ np.linalg.inv(total)).T.reshape(readout.shape)
        assert_close(readout, expected, 1e-4)
        self.assertGreater(np.abs(expected).max(), 1e-3)

    @parameterized.parameters("gray_free_l2", "coupled_radial_l2")
    def test_filter_of_a_spectrum_is_that_of_wiener(self, name):
        case = built(name)
        amplitude, gain = case.laws["moved"].amplitude, case.laws["moved"].gain
        images = some_images(case.shape).astype(np.float64)
        images /= images.sum(axis=(1, 2, 3), keepdims=True)
        waves = np.fft.fft2(images - images.mean(axis=0), axes=(1, 2))
        for v, u in np.ndindex(gain.shape[:2]):
            if (v, u) == (0, 0):
                expected = np.eye(case.shape[2])
            else:
                wave = waves[:, v, u]
                signal = np.real(wave.T @ wave.conj()) / 12 / np.prod(case.shape[:2])
                noise = np.float64(amplitude[v, u]) @ np.float64(amplitude[v, u]).T
                expected = signal @ np.linalg.inv(signal + noise)
            np.testing.assert_allclose(gain[v, u], expected, atol=1e-4)

    def test_without_a_filter_the_noise_is_added(self):
        case = built("uncoupled_unfiltered_l2")
        seen = case.laws["moved"]
        self.assertIsNone(seen.gain)
        law = case.noise.freeze(case.params["moved"])
        self.assertIsNone(law.gain)
        self.assertIsNone(law.mean)
        waves = np.asarray(law.variables(case.key))
        half = seen.amplitude[:, : case.shape[1] // 2 + 1]
        moved = oracles.sum_of_waves(waves, half, case.shape)
        expected = case.image + case.image.sum() * moved
        assert_close(case.picture, expected, 1e-5)

    @parameterized.parameters("colour_l2", "gray_free_l2")
    def test_variables_are_standard_normal(self, name):
        keys = jax.random.split(jax.random.key(0), 1000)
        values = quickly(jax.vmap(built(name).laws["start"].variables))(keys).ravel()
        self.assertLess(abs(values.mean()), 5 / len(values) ** 0.5)
        self.assertLess(abs(values.var() - 1), 8 / len(values) ** 0.5)
        self.assertLess(abs(np.mean(values**4) - 3), 50 / len(values) ** 0.5)


class ViewTest(chex.TestCase):
    @EACH_VIEW
    def test_starts_from_the_lowest_waves(self, name):
        case = built(name)
        features = np.asarray(case.params["start"]["features"])
        height, width, channels = case.shape
        waves, gamma = case.noise.waves, case.noise.gamma
        side = 2 * waves + 1
        self.assertEqual(features.shape, ((side**2 - 1) * channels, *case.shape))
        self.assertAlmostEqual(np.mean(features**2), 1.0, places=5)
        # Every row lives in one channel, and is one wave there.
        seen = []
        for row in features:
            (channel,) = np.flatnonzero(np.abs(row).max(axis=(0, 1)))
            power = np.abs(np.fft.fft2(row[..., channel])) ** 2
            v, u = np.unravel_index(np.argmax(power), power.shape)
            v, u = (k if 2 * k < n else k - n for k, n in ((v, height), (u, width)))
            self.assertLessEqual(max(abs(v), abs(u)), waves)
            mirrored = power[v, u] + power[-v, -u]
            self.assertAlmostEqual(mirrored / power.sum(), 1.0, places=4)
            lap = (
                4
                - 2 * np.cos(2 * np.pi * v / height)
                - 2 * np.cos(2 * np.pi * u / width)
            )
            seen.append(((max((v, u), (-v, -u)), channel), power.sum() * lap**gamma))
        counts = {key: sum(k == key for k, _ in seen) for key, _ in seen}
        self.assertLen(counts, (side**2 - 1) // 2 * channels)
        self.assertEqual(set(counts.values()), {2})
        # Power falls as `lap ** -gamma`, the inverse of the noise's spectrum.
        sizes = np.array([size for _, size in seen])
        np.testing.assert_allclose(sizes / sizes[0], 1.0, rtol=1e-3)

    @parameterized.parameters(
        (0, (8, 9, 1), r"waves=0 is outside \[1, 3\] for images of 8 x 9"),
        (-1, (8, 9, 1), r"waves=-1 is outside \[1, 3\]"),
        (4, (8, 9, 1), r"waves=4 is outside \[1, 3\]"),
        (3, (9, 7, 3), r"waves=3 is outside \[1, 2\]"),
    )
    def test_refuses_waves_that_the_image_has_not(self, waves, shape, message):
        about = learned_noise.statistics(some_images(shape), 0)
        with self.assertRaisesRegex(ValueError, f"smoothing.{message}"):
            LearnedView(about, SCALE, "l2", waves=waves).init()
        LearnedView(about, SCALE, "l2", waves=1).init()


class SpectrumTest(chex.TestCase):
    @EACH_SPECTRUM
    def test_amplitude_and_precision_belong_together(self, name):
        case = built(name)
        for params in case.params.values():
            exact = {key: np.float64(value) for key, value in params.items()}
            amplitude, diagonal = case.noise._shape(exact, np)
            spectrum = np.einsum("hwij,hwkj->hwik", amplitude, amplitude)
            reflected = np.roll(spectrum[::-1, ::-1], (1, 1), axis=(0, 1))
            np.testing.assert_array_equal(spectrum, reflected)
            for v, u in np.ndindex(case.shape[:2]):
                if (v, u) == (0, 0):
                    self.assertFalse(spectrum[0, 0].any())
                    self.assertFalse(diagonal[0, 0].any())
                    continue
                inverse = np.linalg.inv(spectrum[v, u])
                np.testing.assert_allclose(diagonal[v, u], np.diag(inverse), rtol=1e-9)

    @EACH_SPECTRUM
    def test_starts_from_a_power_of_the_laplacian(self, name):
        case = built(name)
        height, width, channels = case.shape
        law = case.noise.freeze(case.params["start"])
        lap = np.zeros((height, width))
        for v, u in np.ndindex(height, width):
            lap[v, u] = 4 - 2 * np.cos(2 * np.pi * v / height)
            lap[v, u] -= 2 * np.cos(2 * np.pi * u / width)
        power = np.where(lap > 1e-9, np.abs(lap) ** case.noise.gamma, 0)
        power *= law.spectrum[0, 1, 0, 0] / power[0, 1]
        expected = power[..., None, None] * np.eye(channels)
        assert_close(law.spectrum, expected, 1e-5)

    def test_radial_spectra_are_straight_between_knots(self):
        """In logarithms of the Laplacian; by interpolation at even knots."""
        case = built("gray_radial_l1")
        log_power = np.float64(case.params["moved"]["log_power"])[:, 0]
        law = case.noise.freeze(case.params["moved"])
        height, width, _ = case.shape
        v, u = np.mgrid[:height, :width]
        lap = 4 - 2 * np.cos(2 * np.pi * v / height) - 2 * np.cos(2 * np.pi * u / width)
        moving = lap > 1e-9
        knots = np.linspace(np.log(lap[moving].min()), np.log(8), 6)
        expected = np.exp(np.interp(np.log(lap[moving]), knots, log_power))
        actual = law.spectrum[..., 0, 0][moving]
        np.testing.assert_allclose(
            actual / actual[0], expected / expected[0], rtol=1e-5
        )

    def test_free_spectra_have_a_value_of_their_own_at_each_frequency(self):
        case = built("gray_free_l2")
        height, width, _ = case.shape
        log_power = np.float64(case.params["moved"]["log_power"]).reshape(height, width)
        law = case.noise.freeze(case.params["moved"])
        for v, u in np.ndindex(height, width):
            if (v, u) == (0, 0):
                continue
            both = log_power[v, u] + log_power[-v % height, -u % width]
            ratio = law.spectrum[v, u, 0, 0] / law.spectrum[0, 1, 0, 0]
            first = (log_power[0, 1] + log_power[0, width - 1]) / 2
            self.assertAlmostEqual(np.log(ratio), both / 2 - first, places=4)

    def test_coupled_channels_begin_with_their_sum(self):
        case = built("coupled_radial_l2")
        params = {key: np.zeros_like(x) for key, x in case.params["start"].items()}
        params["log_power"][:] = (np.log(5.0), np.log(2.0), np.log(2.0))
        law = case.noise.freeze(params)
        brightness = np.full((3, 3), 1 / 3)
        expected = 5 * brightness + 2 * (np.eye(3) - brightness)
        for matrix in law.spectrum.reshape(-1, 3, 3)[1:]:
            assert_close(matrix / matrix[0, 0] * expected[0, 0], expected, 1e-5)

    @parameterized.parameters("coupled_radial_l2", "coupled_free_l1")
    def test_coupled_channels_are_dependent(self, name):
        law = built(name).noise.freeze(built(name).params["moved"])
        for matrix in law.spectrum.reshape(-1, 3, 3)[1:]:
            spreads = np.sqrt(np.diag(matrix))
            shares = np.abs(matrix / np.outer(spreads, spreads))
            self.assertGreater(shares[np.triu_indices(3, 1)].max(), 0.02)

    @parameterized.parameters("uncoupled_radial_l1", "uncoupled_unfiltered_l2")
    def test_uncoupled_channels_are_independent(self, name):
        case = built(name)
        self.assertEqual(set(case.params["start"]), {"log_power"})
        law = case.noise.freeze(case.params["moved"])
        between = law.spectrum * (1 - np.eye(3))
        self.assertFalse(between.any())

    @parameterized.parameters(1, -3)
    def test_refuses_too_few_bins(self, bins):
        about = learned_noise.statistics(some_images((4, 5, 1)), 0)
        with self.assertRaisesRegex(ValueError, f"bins={bins} is below 2"):
            LearnedSpectrum(about, SCALE, "l2", bins=bins).init()


class StatisticsTest(chex.TestCase):
    def masses(self, images):
        flat = images.reshape(len(images), -1).astype(np.float64)
        return flat / flat.sum(axis=1, keepdims=True)

    @parameterized.parameters((30, (3, 4, 1)), (9, (3, 2, 3)), (5000, (2, 2, 1)))
    def test_are_those_of_numpy(self, count, shape):
        images = some_images(shape, count)
        flat = self.masses(images)

        found = learned_noise.statistics(images)

        mean = flat.mean(axis=0).reshape(shape)
        np.testing.assert_allclose(found.mean, mean, rtol=1e-5)
        factor = found.factor.reshape(len(found.factor), -1)
        covariance = np.cov(flat.T, bias=True)
        assert_close(factor.T @ factor, covariance, 1e-5)
        waves = np.fft.fft2(flat.reshape(count, *shape) - mean, axes=(1, 2))
        power = np.einsum("nhwi,nhwj->hwij", waves, waves.conj()).real
        assert_close(found.power, power / count / np.prod(shape[:2]), 1e-5)
        for array in found:
            self.assertEqual(array.dtype, np.float32)

    @parameterized.parameters(1, 3, 7)
    def test_of_a_small_rank_keep_the_largest_part(self, rank):
        flat = self.masses(some_images((3, 4, 1), 40))

        found = learned_noise.statistics(some_images((3, 4, 1), 40), rank)

        self.assertEqual(found.factor.shape, (rank, 3, 4, 1))
        _, sizes, right = np.linalg.svd(flat - flat.mean(axis=0))
        best = (right[:rank].T * (sizes[:rank] ** 2 / 40)) @ right[:rank]
        factor = found.factor.reshape(rank, -1)
        assert_close(factor.T @ factor, best, 1e-5)

    def test_rank_zero_leaves_the_factor_out(self):
        found = learned_noise.statistics(some_images((3, 4, 1)), 0)
        self.assertEqual(found.factor.shape, (0, 3, 4, 1))
        self.assertGreater(found.power[1:].min(), 0)

    def test_look_at_shares_of_mass(self):
        images = some_images((3, 4, 1)).astype(np.float32)
        dimmed = images * np.linspace(0.1, 1, len(images))[:, None, None, None]
        chex.assert_trees_all_close(
            learned_noise.statistics(dimmed).mean,
            learned_noise.statistics(images).mean,
            rtol=1e-5,
        )

    def test_refuse_black_images_and_none(self):
        images = some_images((3, 4, 1))
        images[[2, 5]] = 0
        with self.assertRaisesRegex(ValueError, "2 images are all black"):
            learned_noise.statistics(images)
        with self.assertRaisesRegex(ValueError, r"images \[N, H, W, C\]"):
            learned_noise.statistics(images[:0])


class FixedNoiseTest(chex.TestCase):
    def test_has_no_parameters_and_uses_the_key_as_it_is(self):
        def perturb(key, image):
            return image + jax.random.normal(key, image.shape)

        noise, key = learned_noise.FixedNoise(perturb), jax.random.key(3)
        image = jnp.ones((2, 3, 1))
        self.assertEqual(noise.init(), ())
        self.assertFalse(noise.can_shift)
        law = noise.law(())
        actual = law.copy_of(image, law.variables(key))
        chex.assert_trees_all_equal(actual, perturb(key, image))
        nothing = learned_noise.FixedNoise(None)
        self.assertIs(nothing.copy_of(image, key), image)


if __name__ == "__main__":
    absltest.main()
