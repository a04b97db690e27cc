"""Tests of wsjax.spectrum."""

import math

import numpy as np
import oracles
from absl.testing import absltest, parameterized

from wsjax import spectrum

METRICS = ("l1", "l2")
SIZES = ((5, 7), (4, 6), (3, 8), (1, 6), (2, 2))


def waves(height, width):
    """Every wave on the torus: frequency and the wave itself, raveled."""
    pixels = np.array(list(np.ndindex(height, width)))
    for v, u in np.ndindex(height, width):
        phase = pixels @ np.array([v / height, u / width])
        yield (v, u), np.exp(2j * np.pi * phase)


def dense_inverse(dense):
    return np.linalg.pinv(dense, rcond=1e-9, hermitian=True)


class LaplacianTest(parameterized.TestCase):
    @parameterized.parameters(*SIZES)
    def test_holds_the_eigenvalue_of_every_wave(self, height, width):
        dense = oracles.laplacian_power((height, width, 1), 1.0, wrap=True)

        eigenvalues = spectrum.laplacian(height, width)

        for frequency, wave in waves(height, width):
            np.testing.assert_allclose(
                dense @ wave, eigenvalues[frequency] * wave, atol=1e-12
            )
        self.assertEqual(eigenvalues[0, 0], 0.0)
        self.assertEqual(np.count_nonzero(eigenvalues), height * width - 1)

    def test_is_even_to_the_last_bit(self):
        for height, width in SIZES:
            eigenvalues = spectrum.laplacian(height, width)
            for v, u in np.ndindex(height, width):
                self.assertEqual(eigenvalues[v, u], eigenvalues[-v, -u])


class PowerLawTest(parameterized.TestCase):
    @parameterized.parameters(0.0, 1.0, 1.5, 2.0, -0.5)
    def test_is_the_power_of_the_laplacian_in_each_channel(self, gamma):
        power = spectrum.power_law((3, 4, 2), 0.3, gamma)

        expected = 0.09 * np.kron(
            oracles.laplacian_power((3, 4, 1), gamma, wrap=True), np.eye(2)
        )
        np.testing.assert_allclose(oracles.circulant(power), expected, atol=1e-13)
        spectrum.check_spectrum(power)

    @parameterized.parameters(
        ((3, 4), 0.1, 1.0, r"shape \(H, W, C\), got \(3, 4\)"),
        ((3, 0, 1), 0.1, 1.0, r"got \(3, 0, 1\)"),
        ((3, 4, 1), 0.0, 1.0, "sigma=0.0 and gamma=1.0 should be a positive finite"),
        ((3, 4, 1), -1.0, 1.0, "sigma=-1.0"),
        ((3, 4, 1), math.inf, 1.0, "sigma=inf"),
        ((3, 4, 1), math.nan, 1.0, "sigma=nan"),
        ((3, 4, 1), 0.1, math.inf, "gamma=inf"),
        ((3, 4, 1), 0.1, math.nan, "gamma=nan"),
    )
    def test_refuses(self, shape, sigma, gamma, message):
        with self.assertRaisesRegex(ValueError, message):
            spectrum.power_law(shape, sigma, gamma)


class RadialPositionTest(parameterized.TestCase):
    @parameterized.product(
        size=((5, 7), (4, 6), (1, 6), (2, 2), (28, 28)), bins=(2, 5, 24)
    )
    def test_weighs_the_knots_around_the_logarithm_of_each_eigenvalue(self, size, bins):
        height, width = size

        index, weight, knots = spectrum.radial_position(height, width, bins)

        self.assertEqual((index.shape, index.dtype), (size, np.int32))
        self.assertEqual((weight.shape, knots.shape), (size, (bins,)))
        self.assertBetween(index.min(), 0, bins - 2)
        self.assertBetween(index.max(), 0, bins - 2)
        self.assertBetween(weight.min(), 0, 1)
        self.assertBetween(weight.max(), 0, 1 + 1e-12)
        between = (1 - weight) * knots[index] + weight * knots[index + 1]
        eigenvalues = [
            4 - 2 * math.cos(2 * math.pi * v / height) - 2 * math.cos(2 * math.pi * u / width)
            for v, u in np.ndindex(height, width)
        ]  # fmt: skip
        np.testing.assert_allclose(
            np.exp(between).ravel()[1:], eigenvalues[1:], rtol=1e-12
        )
        self.assertEqual((index[0, 0], weight[0, 0]), (0, 0.0))

    def test_knots_are_even_from_the_longest_wave_to_eight(self):
        _, _, knots = spectrum.radial_position(28, 20, 24)

        self.assertAlmostEqual(
            math.exp(knots[0]), 2 - 2 * math.cos(2 * math.pi / 28), delta=1e-12
        )
        self.assertAlmostEqual(math.exp(knots[-1]), 8.0, delta=1e-12)
        np.testing.assert_allclose(np.diff(knots), knots[1] - knots[0], rtol=1e-12)

    def test_neighbouring_sizes_of_a_spectrum_keep_their_meaning(self):
        # An odd image has no wave of the shortest length; its knots end there still.
        knots = [spectrum.radial_position(n, n, 3)[2][-1] for n in (6, 7)]

        self.assertEqual(*knots)

    def test_refuses_one_knot_and_one_pixel(self):
        with self.assertRaisesRegex(ValueError, "bins=1 is below 2.*two knots"):
            spectrum.radial_position(5, 7, 1)
        with self.assertRaisesRegex(ValueError, "one pixel has no mass to move"):
            spectrum.radial_position(1, 1, 4)


class PowerSpectrumTest(parameterized.TestCase):
    @parameterized.parameters(
        ((4, 5, 2), 7),
        ((3, 4, 3), 1),
        ((2, 3, 1), 2_500),
        ((5, 1, 1), 4),
        ((3, 2, 2), 4),
        ((1, 6, 1), 4),
    )
    def test_is_the_average_of_each_image_by_itself(self, shape, count):
        height, width, channels = shape
        images = np.random.default_rng(0).uniform(0, 9, (count, *shape))

        mean, power = spectrum.power_spectrum(images.astype(np.float32))

        images = images.astype(np.float32).astype(float)
        units = [image / image.sum() for image in images]
        np.testing.assert_allclose(mean, sum(units) / count, rtol=1e-12)
        expected = np.zeros((height, width, channels, channels))
        table = dict(waves(height, width))
        for unit in units:
            centred = (unit - mean).reshape(-1, channels)
            for frequency, wave in table.items():
                z = wave.conj() @ centred
                expected[frequency] += np.outer(z, z.conj()).real
        expected /= count * height * width
        np.testing.assert_allclose(power, expected, rtol=1e-9, atol=1e-15)

    def test_whole_numbers_are_images_too(self):
        images = np.random.default_rng(1).integers(0, 255, (3, 4, 5, 1), np.uint8)

        mean, power = spectrum.power_spectrum(images)

        expected = spectrum.power_spectrum(images / 255.0)
        np.testing.assert_allclose(mean, expected[0], rtol=1e-12)
        np.testing.assert_allclose(power, expected[1], rtol=1e-9, atol=1e-18)

    def test_of_many_draws_is_the_spectrum_they_were_drawn_with(self):
        shape, count, rng = (3, 4, 2), 4_000, np.random.default_rng(2)
        promised = 1e-6 * oracles.random_spectrum(0, shape, decades=1.0)
        covariance = oracles.circulant(promised)
        draws = rng.multivariate_normal(np.zeros(24), covariance, count)
        mean = rng.dirichlet(np.ones(24)).reshape(shape)

        _, power = spectrum.power_spectrum(mean + draws.reshape(-1, *shape))

        # Entry [c, d] of one wave deviates by sqrt(2 S_cc S_dd / count) at most.
        diagonal = np.sqrt(np.einsum("hwcc->hwc", promised))
        deviation = diagonal[..., :, None] * diagonal[..., None, :]
        deviation *= (2 / count) ** 0.5
        self.assertTrue((np.abs(power - promised) <= 5 * deviation + 1e-15).all())

    @parameterized.parameters(
        (np.ones((4, 5, 1)), r"images \[N, H, W, C\], got shape \(4, 5, 1\)"),
        (np.ones((0, 4, 5, 1)), r"got shape \(0, 4, 5, 1\)"),
        (np.stack([np.ones((4, 5, 1)), np.zeros((4, 5, 1))]), "1 images are all black"),
    )
    def test_refuses(self, images, message):
        with self.assertRaisesRegex(ValueError, message):
            spectrum.power_spectrum(images)


def mean_square_error(filter_, signal, noise):
    """Of `filter_ (x + eta)` as an estimate of x, by the dense covariances."""
    miss = filter_ - np.eye(len(filter_))
    return np.trace(miss @ signal @ miss.T) + np.trace(filter_ @ noise @ filter_.T)


class WienerTest(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        shape = (3, 4, 2)
        self.signal = oracles.random_spectrum(0, shape)
        self.signal[0, 0] = [[0.7, 0.2], [0.2, 0.4]]
        self.noise = oracles.random_spectrum(1, shape)
        self.dense = [oracles.circulant(s) for s in (self.signal, self.noise)]

    def test_is_the_dense_formula(self):
        signal, noise = self.dense

        gain = spectrum.wiener(self.signal, self.noise)

        expected = signal @ np.linalg.inv(signal + noise)
        np.testing.assert_allclose(oracles.circulant(gain), expected, atol=1e-10)

    def test_no_other_linear_filter_errs_less(self):
        signal, noise = self.dense
        rng = np.random.default_rng(2)
        best = oracles.circulant(spectrum.wiener(self.signal, self.noise))
        least = mean_square_error(best, signal, noise)

        for _ in range(20):
            other = rng.normal(size=best.shape)
            for step in (1e-3, -1e-3):
                error = mean_square_error(best + step * other, signal, noise)
                self.assertGreater(error, least)

    def test_is_the_identity_where_there_is_no_noise(self):
        self.signal[0, 0] = 0
        self.noise[1, 2] = self.noise[-1, -2] = 0

        gain = spectrum.wiener(self.signal, self.noise)

        for frequency in ((0, 0), (1, 2), (-1, -2)):
            np.testing.assert_array_equal(gain[frequency], np.eye(2))
        self.assertGreater(np.abs(gain[0, 1] - np.eye(2)).max(), 0.01)

    def test_leaves_its_arguments_alone(self):
        before = self.signal.copy(), self.noise.copy()

        spectrum.wiener(self.signal, self.noise)

        np.testing.assert_array_equal(before, (self.signal, self.noise))


class CheckSpectrumTest(parameterized.TestCase):
    def test_accepts_noise_of_every_kind(self):
        for shape in ((5, 7, 1), (4, 6, 3), (1, 6, 2), (2, 1, 1)):
            for s in (
                oracles.random_spectrum(0, shape),
                spectrum.power_law(shape, 1e-4, 3.0),
                spectrum.power_law(shape, 0.1, 2.0).astype(np.float32),
            ):
                spectrum.check_spectrum(s)
                spectrum.check_spectrum(s.tolist())

    @parameterized.parameters(
        ((5, 7, 1),), ((5, 7),), ((5, 7, 1, 2),), ((0, 7, 1, 1),), ((5, 7, 0, 0),)
    )
    def test_refuses_other_shapes(self, shape):
        with self.assertRaises(ValueError) as caught:
            spectrum.check_spectrum(np.ones(shape))
        self.assertIn(f"shape [H, W, C, C], got {shape}", str(caught.exception))

    @parameterized.parameters(np.nan, np.inf, -np.inf)
    def test_refuses_numbers_that_are_none(self, bad):
        s = oracles.random_spectrum(0, (4, 6, 2))
        s[2, 3, 0, 0] = bad
        with self.assertRaisesRegex(ValueError, "NaN or infinite"):
            spectrum.check_spectrum(s)

    def test_refuses_one_pixel(self):
        with self.assertRaisesRegex(ValueError, "one pixel has no mass to move"):
            spectrum.check_spectrum(np.zeros((1, 1, 2, 2)))

    @parameterized.parameters(1e-300, -0.25)
    def test_refuses_power_at_frequency_zero(self, power):
        s = oracles.random_spectrum(0, (4, 6, 2))
        s[0, 0, 1, 1] = power
        with self.assertRaises(ValueError) as caught:
            spectrum.check_spectrum(s)
        self.assertIn("at frequency zero: such noise changes", str(caught.exception))
        self.assertIn("Set spectrum[0, 0] to 0", str(caught.exception))

    @parameterized.named_parameters(
        ("channels", [(1, 2, 0, 1), (-1, -2, 0, 1)]),
        ("frequencies", [(1, 2, 0, 0)]),
        ("rows_of_an_edge", [(1, 0, 0, 0)]),
        ("columns_of_an_edge", [(0, 2, 1, 1)]),
    )
    def test_refuses_what_is_not_symmetric(self, entries):
        s = oracles.random_spectrum(0, (4, 6, 2))
        for entry in entries:
            s[entry] = np.nextafter(s[entry], np.inf)
        with self.assertRaisesRegex(ValueError, r"not symmetric: .* equal to S\(-w\)"):
            spectrum.check_spectrum(s)

    @parameterized.named_parameters(
        ("silent", [[0.0, 0.0], [0.0, 0.0]]),
        ("silent_for_one_colour", [[1.0, 1.0], [1.0, 1.0]]),
        ("silent_to_rounding", [[677.0, 2031.0], [2031.0, 6093.0]]),
        ("indefinite", [[1.0, 2.0], [2.0, 1.0]]),
        ("negative", [[-1.0, 0.0], [0.0, -1.0]]),
    )
    def test_refuses_mass_that_moves_unseen(self, matrix):
        s = oracles.random_spectrum(0, (4, 6, 2))
        s[1, 2] = s[-1, -2] = matrix
        with self.assertRaisesRegex(ValueError, "smallest eigenvalue .* not positive"):
            spectrum.check_spectrum(s)
        with self.assertRaisesRegex(ValueError, "mass could move unseen"):
            spectrum.kappa(s, "l1")


class KappaTest(parameterized.TestCase):
    def check(self, s, covariance, shape, metric):
        inverse = dense_inverse(covariance)
        brute, move, distance = oracles.hardest_move(inverse, shape, metric)
        # Every move has a finite size, or the brute force would mean nothing.
        np.testing.assert_allclose(
            covariance @ (inverse @ move.ravel()), move.ravel(), atol=1e-8
        )

        actual = spectrum.kappa(s, metric)

        self.assertIsInstance(actual, float)
        # The brute force itself is off by rounding; `exact_kappa` is not.
        self.assertGreaterEqual(actual, brute * (1 - 1e-9))
        self.assertLessEqual(actual, brute * (1 + 1e-6))
        exact = oracles.exact_kappa(s, metric)
        self.assertGreaterEqual(actual, exact)
        self.assertLessEqual(actual, exact * (1 + 1e-11))
        return distance

    @parameterized.product(gamma=(0.0, 1.0, 1.5, 2.0, 3.0), metric=METRICS)
    def test_of_power_laws_is_the_worst_of_all_pairs(self, gamma, metric):
        shape = (5, 7, 1)
        covariance = 0.09 * oracles.laplacian_power(shape, gamma, wrap=True)

        self.check(spectrum.power_law(shape, 0.3, gamma), covariance, shape, metric)

    @parameterized.product(
        shape=((5, 7, 1), (5, 7, 3), (4, 6, 2), (1, 8, 1)), metric=METRICS
    )
    def test_of_any_spectrum_is_the_worst_of_all_pairs(self, shape, metric):
        s = oracles.random_spectrum(3, shape)

        self.check(s, oracles.circulant(s), shape, metric)

    @parameterized.product(channels=(1, 3), metric=METRICS)
    def test_looks_at_pixels_that_are_not_adjacent(self, channels, metric):
        shape = (5, 7, channels)
        s = oracles.tilted_spectrum(4, shape)

        distance = self.check(s, oracles.circulant(s), shape, metric)

        # Along rows and columns, no pair is worse than the worst of adjacent ones.
        self.assertAlmostEqual(distance, {"l1": 1, "l2": 2**0.5}[metric], places=12)

    @parameterized.parameters(*METRICS)
    def test_is_rounded_up(self, metric):
        for seed, decades in ((5, 0.1), (6, 6.0), (7, 12.0)):
            for channels in (1, 2):
                s = oracles.random_spectrum(seed, (4, 5, channels), decades)
                exact = oracles.exact_kappa(s, metric)
                actual = spectrum.kappa(s, metric)
                self.assertGreaterEqual(actual, exact)
                self.assertLessEqual(actual, exact * (1 + 1e-9))

    @parameterized.parameters(*METRICS)
    def test_of_nearly_dependent_channels_is_rounded_up(self, metric):
        for seed in range(5):
            s = oracles.random_spectrum(seed, (3, 4, 2))
            s[..., 0, 1] = s[..., 1, 0] = (1 - 1e-9) * np.sqrt(
                s[..., 0, 0] * s[..., 1, 1]
            )

            actual = spectrum.kappa(s, metric)

            exact = oracles.exact_kappa(s, metric)
            self.assertGreaterEqual(actual, exact)
            self.assertLessEqual(actual, exact * (1 + 1e-4))

    @parameterized.product(size=(3, 8, 28), metric=METRICS)
    def test_of_flow_on_a_square_torus_is_fosters_theorem(self, size, metric):
        # Effective resistances of all 2 n edges of a connected graph sum to n - 1, and
        # on a square torus all edges are alike.
        pixels = size * size
        s = spectrum.power_law((size, size, 1), 0.2, 1.0)

        expected = ((pixels - 1) / (2 * pixels)) ** 0.5 / 0.2
        self.assertAlmostEqual(spectrum.kappa(s, metric), expected, delta=1e-10)

    @parameterized.parameters(*METRICS)
    def test_of_white_noise_is_the_root_of_two(self, metric):
        s = spectrum.power_law((28, 28, 3), 1.0, 0.0)

        self.assertAlmostEqual(spectrum.kappa(s, metric), 2**0.5, delta=1e-10)

    def test_is_inversely_proportional_to_the_amplitude(self):
        s = oracles.random_spectrum(8, (4, 6, 2))

        self.assertAlmostEqual(
            spectrum.kappa(s, "l2") / spectrum.kappa(100 * s, "l2"), 10, delta=1e-9
        )

    def test_channels_that_are_coupled_certify_what_is_left_of_each_other(self):
        # [[1, r], [r, 1]] at every wave: the inverse's diagonal is 1 / (1 - r^2).
        s = spectrum.power_law((4, 6, 2), 1.0, 0.0)
        s[..., 0, 1] = s[..., 1, 0] = 0.6 * s[..., 0, 0]

        self.assertAlmostEqual(
            spectrum.kappa(s, "l1"), (2 / (1 - 0.6**2)) ** 0.5, delta=1e-10
        )

    @parameterized.parameters("l3", "L1", None, 2)
    def test_refuses_other_metrics(self, metric):
        s = spectrum.power_law((3, 4, 1), 1.0, 1.0)
        with self.assertRaises(ValueError) as caught:
            spectrum.kappa(s, metric)
        self.assertIn(f"ground_metric={metric!r} is not one of", str(caught.exception))

    def test_refuses_what_is_no_spectrum(self):
        with self.assertRaisesRegex(ValueError, r"shape \[H, W, C, C\]"):
            spectrum.kappa(np.ones((3, 4)), "l1")
        with self.assertRaisesRegex(ValueError, "one pixel has no mass to move"):
            spectrum.kappa(spectrum.power_law((1, 1, 1), 1.0, 1.0), "l1")


class SquaredSlopesTest(parameterized.TestCase):
    @parameterized.parameters(*METRICS)
    def test_holds_every_offset_of_every_channel(self, metric):
        shape = (4, 5, 2)
        s = oracles.random_spectrum(9, shape)
        inverse = dense_inverse(oracles.circulant(s))
        precision = np.zeros(shape)
        for v, u in np.ndindex(4, 5):
            if (v, u) != (0, 0):
                precision[v, u] = np.diagonal(np.linalg.inv(s[v, u]))

        slopes = spectrum.squared_slopes(precision, metric, np)

        np.testing.assert_allclose(slopes[0, 0], 0.0, atol=1e-15)
        for y, x, c in np.ndindex(shape):
            if (y, x) != (0, 0):
                move = np.zeros(shape)
                move[y, x, c], move[0, 0, c] = 1, -1
                square = move.ravel() @ inverse @ move.ravel()
                distance = oracles.pixel_distance((y, x), (0, 0), metric, (4, 5))
                self.assertAlmostEqual(slopes[y, x, c], square / distance**2, places=8)


class TorusDistancesTest(parameterized.TestCase):
    @parameterized.product(size=((5, 7), (4, 6), (1, 3)), metric=METRICS)
    def test_is_the_least_distance_of_pixels_so_far_apart(self, size, metric):
        distances = spectrum.torus_distances(*size, metric)

        self.assertEqual(distances[0, 0], np.inf)
        least = np.full(size, np.inf)
        for a in np.ndindex(size):
            for b in np.ndindex(size):
                offset = (b[0] - a[0]) % size[0], (b[1] - a[1]) % size[1]
                distance = oracles.pixel_distance(a, b, metric)
                least[offset] = min(least[offset], distance or np.inf)
        np.testing.assert_array_equal(distances, least)


class SquareRootTest(parameterized.TestCase):
    def test_squares_to_the_spectrum(self):
        s = oracles.random_spectrum(10, (4, 5, 3))
        s[1, 2] = s[-1, -2] = np.outer([1, 2, 3], [1, 2, 3])  # Singular.

        roots = spectrum.square_root(s)

        self.assertEqual((roots.dtype, roots.shape), (np.float64, s.shape))
        for frequency in np.ndindex(4, 5):
            root = roots[frequency]
            np.testing.assert_allclose(root @ root, s[frequency], atol=1e-12)
            np.testing.assert_allclose(root, root.T, atol=1e-14)
            self.assertGreaterEqual(np.linalg.eigvalsh(root).min(), -1e-12)
            np.testing.assert_array_equal(root, roots[-frequency[0], -frequency[1]])
        np.testing.assert_array_equal(roots[0, 0], 0.0)


if __name__ == "__main__":
    absltest.main()
