"""Certificates of Gaussian noise against the exact adversary of linear classifiers.

All laws here show the classifier a picture `A mu + b + N z`, `z` standard normal. For
[sum(v * picture) > t], the probability of an answer is Phi(margin / |N^T v|), and the
least distance to another answer margin / Lip(w) with w = A^T v (pixels may go negative
here). The theorem is tight: both are in the ratio `kappa` when `v` listens to what the
worst move of mass does to the view.
"""

import functools

import jax
import numpy as np
import oracles
from absl.testing import absltest, parameterized
from scipy import stats

from wsjax import (
    ColouredGaussian,
    FlowGaussian,
    GaussianView,
    gaussian_smoothing,
    make_key,
    spectrum,
)
from wsjax.certifiers.votes import certificate_from_votes
from wsjax.gaussian import StencilGaussian

SHAPE = (5, 6, 2)
PIXELS = 60
# Steeper along the diagonal than along rows and columns.
RAMP = np.zeros(SHAPE) + np.add.outer(np.arange(5), np.arange(6))[..., None]
SIGMA = 2.0**-6  # The same in float32.
MASS = 200.0  # As of an image in pixel units.
P = 0.9
METRICS = ("l1", "l2")
EACH_LAW = ("flow", "flow_wrapped", "stencil", "coloured", "filtered", "view")
DRAWN = ("coloured", "filtered", "view")


def pseudo_inverse(matrix):
    return np.linalg.pinv(matrix, rcond=1e-9, hermitian=True)


@functools.cache
def law_and_map(name):
    """A law; `A` of its picture; covariance `N N^T`; and `M^T M`, M mu + z its view."""
    rng = np.random.default_rng(0)
    mean = rng.dirichlet(np.ones(PIXELS)).reshape(SHAPE)
    identity = np.eye(PIXELS)
    if name == "view":
        features = (3.0 * RAMP + rng.normal(size=(7, *SHAPE))) / SIGMA
        law = GaussianView(features, rng.normal(size=(7, *SHAPE)) * SIGMA, mean)
        features, readout = (
            np.asarray(a, float).reshape(7, -1) for a in (law.features, law.readout)
        )
        return law, readout.T @ features, readout.T @ readout, features.T @ features
    if name.startswith("flow"):
        wrap = name == "flow_wrapped"
        law = FlowGaussian(SIGMA, wrap=wrap)
        covariance = SIGMA**2 * oracles.laplacian_power(SHAPE, 1.0, wrap)
        return law, identity, covariance, pseudo_inverse(covariance)
    if name == "stencil":
        covariance = SIGMA**2 * oracles.laplacian_power(SHAPE, 2.0, wrap=True)
        return StencilGaussian(SIGMA), identity, covariance, pseudo_inverse(covariance)
    if name == "coloured":
        power = SIGMA**2 * oracles.tilted_spectrum(1, SHAPE)
        law, seen = ColouredGaussian(spectrum.square_root(power)), identity
    else:
        power = SIGMA**2 * oracles.random_spectrum(1, SHAPE, decades=1.0)
        amplitude = spectrum.square_root(power)
        signal = SIGMA**2 * oracles.random_spectrum(2, SHAPE, decades=1.0)
        law = ColouredGaussian(amplitude, spectrum.wiener(signal, power), mean)
        seen = oracles.circulant(law.gain.astype(float))
    # The law holds its amplitude in float32; this is what it draws with.
    root = law.amplitude.astype(float)
    covariance = oracles.circulant(np.einsum("hwij,hwkj->hwik", root, root))
    return law, seen, seen @ covariance @ seen.T, pseudo_inverse(covariance)


def listener(name, direction):
    """`v` such that `A^T v` is `M^T M direction`."""
    _, seen, _, precision = law_and_map(name)
    return np.linalg.lstsq(seen.T, precision @ direction.ravel(), rcond=None)[0]


def exact(name, v, metric):
    """Spread of `sum(v * picture)` under the noise, and `Lip(w)`."""
    _, seen, covariance, _ = law_and_map(name)
    slope, _, _ = oracles.steepest_pair((v @ seen).reshape(SHAPE), metric)
    return np.sqrt(v @ covariance @ v), slope


def random_listeners(name):
    """Rough, smooth and steplike classifiers, and those that are hard at some pair."""
    rng = np.random.default_rng(3)
    for _ in range(4):
        rough = rng.normal(size=SHAPE)
        yield rough.ravel()
        yield (RAMP + 0.3 * rough).ravel()
        yield np.sign(rough).ravel()
        direction = np.zeros(PIXELS)
        a, b = rng.choice(PIXELS // 2, 2, replace=False)
        direction[2 * a], direction[2 * b] = 1, -1
        yield listener(name, direction)


class LinearClassifierTest(parameterized.TestCase):
    @parameterized.product(name=EACH_LAW, metric=METRICS)
    def test_no_radius_exceeds_the_exact_one(self, name, metric):
        smoothing = gaussian_smoothing(law_and_map(name)[0], SHAPE, metric)
        for v in random_listeners(name):
            spread, slope = exact(name, v, metric)
            gaps = np.array([0.1, 1.0, 3.0])
            p = stats.norm.cdf(gaps)
            for radii in (
                smoothing.scores.radius(p),
                smoothing.scores.radius(p, 1 - 0.9 * p),
            ):
                self.assertTrue((radii > 0).all())
                self.assertTrue((radii <= gaps * spread / slope * (1 + 1e-9)).all())

    @parameterized.product(name=EACH_LAW, metric=METRICS)
    def test_the_worst_move_is_certified_exactly(self, name, metric):
        law, seen, _, precision = law_and_map(name)
        smoothing = gaussian_smoothing(law, SHAPE, metric)
        _, move, distance = oracles.hardest_move(precision, SHAPE, metric)
        v = listener(name, move)

        spread, slope = exact(name, v, metric)

        gaps = np.array([0.01, 0.5, 2.0, 4.0])
        radii = smoothing.scores.radius(stats.norm.cdf(gaps))
        np.testing.assert_allclose(radii, gaps * spread / slope, rtol=1e-9)
        self.assertAlmostEqual(v @ seen @ move.ravel() / distance / slope, 1.0)

    @parameterized.product(name=EACH_LAW, metric=METRICS)
    def test_no_radius_with_a_runner_up_exceeds_the_exact_one(self, name, metric):
        # The runner-up answers where the lean is below another, lower threshold.
        law, _, _, precision = law_and_map(name)
        smoothing = gaussian_smoothing(law, SHAPE, metric)
        first, second = np.array([-0.5, -0.1, 0.2, 2.0]), np.array([1.0, 0.3, 0.2, 3.0])
        p, q = stats.norm.cdf(first), stats.norm.cdf(-second)
        radii = smoothing.scores.radius(p, q)
        # Leaning lower by `s` makes both as likely when first - s = s - second.
        gaps = (first + second) / 2
        self.assertTrue((gaps > 0).all())

        for v in random_listeners(name):
            spread, slope = exact(name, v, metric)
            self.assertTrue((radii <= gaps * spread / slope * (1 + 1e-9)).all())

        _, move, _ = oracles.hardest_move(precision, SHAPE, metric)
        spread, slope = exact(name, listener(name, move), metric)
        np.testing.assert_allclose(radii, gaps * spread / slope, rtol=1e-9)

    @parameterized.parameters("coloured", "view")
    def test_the_constant_of_the_other_metric_would_be_found_out(self, name):
        law, _, _, precision = law_and_map(name)
        _, move, _ = oracles.hardest_move(precision, SHAPE, "l2")
        spread, slope = exact(name, listener(name, move), "l2")

        wrong = gaussian_smoothing(law, SHAPE, "l1").scores.radius(P)

        self.assertGreater(wrong, 1.001 * stats.norm.ppf(P) * spread / slope)


@functools.partial(oracles.on_host, static_argnums=(0, 4))
def leans(law, key, image, v, count):
    """`sum(v * picture)`, of mass one, for so many draws of a law."""
    pictures = jax.vmap(law.perturb, (0, None))(jax.random.split(key, count), image)
    return pictures.reshape(count, -1) @ v / MASS


class DrawnTest(parameterized.TestCase):
    """Real draws of a law under the classifier that the theorem is tight for."""

    DRAWS = 28_000

    def hardest(self, name):
        law, seen, _, precision = law_and_map(name)
        smoothing = gaussian_smoothing(law, SHAPE, "l2")
        image = np.random.default_rng(4).dirichlet(np.ones(PIXELS)).reshape(SHAPE)
        _, move, distance = oracles.hardest_move(precision, SHAPE, "l2")
        v = listener(name, move)
        v /= exact(name, v, "l2")[0]
        mean = getattr(law, "mean", None)
        mean = np.zeros(PIXELS) if mean is None else mean.astype(float).ravel()
        centre = v @ (seen @ (image.ravel() - mean) + mean)
        # Downhill, by so much for each unit of transport.
        return smoothing, image, v, centre - stats.norm.ppf(P), -move / distance

    def draw(self, law, seed, image, v):
        return leans(
            law,
            make_key(seed),
            np.float32(MASS * image),
            v.astype(np.float32),
            self.DRAWS,
        )

    @parameterized.parameters(*DRAWN)
    def test_the_vote_turns_where_the_certificate_ends(self, name):
        smoothing, image, v, threshold, step = self.hardest(name)
        radius = smoothing.scores.radius(P)

        for distance in (0.0, 0.9, 1.1):
            moved = image + distance * radius * step
            drawn = self.draw(smoothing.noise, 0, moved, v)

            p = stats.norm.cdf((1 - distance) * stats.norm.ppf(P))
            deviation = (p * (1 - p) / self.DRAWS) ** 0.5
            share = np.mean(drawn > threshold)
            self.assertAlmostEqual(share, p, delta=4 * deviation)
            self.assertEqual(share > 0.5, distance < 1)

    @parameterized.parameters(*DRAWN)
    def test_certificates_fail_at_most_alpha_and_about_as_often(self, name):
        alpha, runs, n0 = 0.1, 400, 10
        smoothing, image, v, threshold, _ = self.hardest(name)
        spread, slope = exact(name, v, "l2")
        farthest = stats.norm.ppf(P) * spread / slope
        wins = self.draw(smoothing.noise, 1, image, v) > threshold
        wins = wins.reshape(runs, -1)

        failures = {"never": 0, "always": 0}
        for run in wins:
            selection, estimation = (
                np.array([np.sum(~part), np.sum(part)]) for part in (run[:n0], run[n0:])
            )
            for use_runner_up in failures:
                certificate = certificate_from_votes(
                    selection,
                    estimation,
                    smoothing.scores,
                    alpha=alpha,
                    use_runner_up=use_runner_up,
                )
                wrong = certificate.label == 0 or certificate.radius > farthest
                failures[use_runner_up] += wrong

        allowed = oracles.failures_allowed(runs, alpha)
        self.assertLessEqual(failures["never"], allowed)
        self.assertLessEqual(failures["always"], allowed)
        self.assertGreater(failures["never"], 0.25 * alpha * runs)


if __name__ == "__main__":
    absltest.main()
