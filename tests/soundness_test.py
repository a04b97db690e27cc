"""No certificate may exceed what an exact adversary needs, nor fail too often.

The adversary of a linear classifier [sum(w * mu) > t] is known exactly. Under noise
with a symmetric law, its smoothed version answers like itself, so that the least
distance to another answer is (sum(w * mu) - t) / Lip(w), with Lip(w) the steepest
slope of w between two pixels of one channel (pixels may go negative here).
"""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import oracles
from absl.testing import absltest, parameterized
from scipy import stats

from wsjax import (
    Counting,
    FixedVotes,
    FlowPlan,
    VotesAtRadii,
    flow_shape,
    make_key,
    make_smoothing,
)
from wsjax.certifiers.votes import certificate_from_votes, prediction_from_votes
from wsjax.flow import apply_flow, flow_cost, potential_gradient

FLOWS = ("flow_laplace", "flow_uniform", "flow_gaussian")
GAUSSIAN = ("flow_gaussian", "laplacian_gaussian", "power_law")
NOISES = (*FLOWS, "pixel_laplace", "laplacian_gaussian", "power_law")
METRICS = ("l1", "l2")
GAMMA = 1.5  # Of "power_law".


def smoothing_of(name, sigma, metric, certificate="tight", wrap=False, *, shape):
    options = {"gamma": GAMMA, "image_shape": shape} if name in GAUSSIAN else {}
    return make_smoothing(name, sigma, metric, certificate, wrap, **options)


def every_smoothing(sigma, shape):
    for name, metric in itertools.product(NOISES, METRICS):
        for wrap in (False, True) if name in FLOWS else (False,):
            for certificate in ("tight", "published"):
                if certificate == "published" and not name.endswith("laplace"):
                    continue
                yield (
                    name,
                    smoothing_of(name, sigma, metric, certificate, wrap, shape=shape),
                )


def coefficients(name, smoothing, weights):
    """What each independent variable of the noise adds to `sum(weights * mu)`."""
    if name == "pixel_laplace":
        return weights.ravel()
    if name in FLOWS:
        return weights.ravel() @ oracles.incidence(weights.shape, smoothing.noise.wrap)
    power = {"laplacian_gaussian": 1.0, "power_law": GAMMA / 2}[name]
    return weights.ravel() @ oracles.laplacian_power(weights.shape, power, wrap=True)


def probabilities(name, sigma, smoothing, weights, margins):
    """Of the answer on the side of each margin, under the noise, without sampling."""
    law = oracles.flow_law(name, sigma)
    return oracles.linear_probability(
        law, coefficients(name, smoothing, weights), margins
    )


def random_weights(seed, shape):
    """Rough, smooth and steplike ones in turn."""
    rng = np.random.default_rng(seed)
    rough = rng.normal(size=shape)
    ramp = np.add.outer(np.arange(shape[0]), np.arange(shape[1]))[..., None]
    return (rough, ramp + 0.3 * rough, np.sign(rough) + 0.1 * rough)[seed % 3]


class LinearClassifierTest(parameterized.TestCase):
    @parameterized.product(seed=tuple(range(6)), shape=((3, 4, 1), (2, 3, 2)))
    def test_no_radius_exceeds_the_exact_one(self, seed, shape):
        weights = random_weights(seed, shape)
        sigma = (0.01, 0.3)[seed % 2]
        for name, smoothing in every_smoothing(sigma, shape):
            slope, _, _ = oracles.steepest_pair(weights, smoothing.ground_metric)
            spread = sigma * np.linalg.norm(coefficients(name, smoothing, weights))
            margins = spread * np.array([0.2, 1.0, 2.0])
            p = probabilities(name, sigma, smoothing, weights, margins)
            # A runner-up's bound is the rest of the probability, or above it.
            for radii in (
                smoothing.scores.radius(p),
                smoothing.scores.radius(p, 1 - p),
                smoothing.scores.radius(p, 1 - 0.9 * p),
            ):
                self.assertTrue((radii > 0).all(), (name, smoothing))
                self.assertTrue((radii <= margins / slope).all(), (name, smoothing))

    @parameterized.parameters(*FLOWS)
    def test_one_edge_is_certified_exactly(self, name):
        # A step between two columns of one row feels the noise on a single edge.
        weights = np.array([[0.0, 0.0, 1.0, 1.0]])[..., None]
        smoothing = smoothing_of(name, 0.1, "l1", shape=weights.shape)
        margins = np.array([0.01, 0.05, 0.15])

        p = probabilities(name, 0.1, smoothing, weights, margins)

        np.testing.assert_allclose(smoothing.scores.radius(p), margins, rtol=1e-9)

    def test_pixel_noise_counts_mass_where_it_leaves_and_where_it_arrives(self):
        smoothing = make_smoothing("pixel_laplace", 0.1, "l2")
        law = oracles.flow_law("pixel_laplace", 0.1)
        for margin in (0.05, 0.2):
            # One pixel may lose W and its neighbour gain it: 2 W in the L1 norm.
            p = float(law.cdf(2 * margin))
            self.assertAlmostEqual(smoothing.scores.radius(p), margin, delta=1e-9)

    @parameterized.product(metric=METRICS, seed=(1, 2))
    def test_the_exact_radius_is_reached_by_moving_mass_along_the_steepest_pair(
        self, metric, seed
    ):
        shape = (3, 4, 2)
        weights = random_weights(seed, shape)
        slope, start, end = oracles.steepest_pair(weights, metric)
        (i, j, c), (k, m, _) = start, end
        image = np.random.default_rng(seed).dirichlet(np.ones(24)).reshape(shape)
        margin = 0.02
        plan = FlowPlan(*(np.zeros(s) for s in flow_shape(shape)))
        plan.vertical[min(i, k) : max(i, k), j, c] = 1 if k > i else -1
        plan.horizontal[k, min(j, m) : max(j, m), c] = 1 if m > j else -1
        distance = oracles.pixel_distance((i, j), (k, m), metric)

        def lowered_by(cost):
            # Downhill: from the end of the pair to its start.
            amount = -cost / distance
            with jax.enable_x64(True):
                scaled = FlowPlan(*(jnp.asarray(amount * e) for e in plan))
                moved = np.asarray(apply_flow(jnp.asarray(image), scaled))
                manhattan = float(flow_cost(scaled))
            self.assertGreaterEqual(manhattan, cost - 1e-12)
            return np.sum(weights * image) - np.sum(weights * moved)

        self.assertGreater(lowered_by(1.001 * margin / slope), margin)
        self.assertLess(lowered_by(0.999 * margin / slope), margin)

    @parameterized.parameters(
        *((name, False) for name in NOISES),
        ("flow_laplace", True),
        ("flow_gaussian", True),
    )
    def test_the_noise_drawn_has_the_probability_worked_out(self, name, wrap):
        shape, count = (3, 4, 1), 10_000
        weights = random_weights(0, shape)
        smoothing = smoothing_of(name, 0.02, "l1", wrap=wrap, shape=shape)
        image = np.random.default_rng(7).dirichlet(np.ones(12)).reshape(shape)
        image = 200 * image.astype(np.float32)  # Mass 200, as in pixel units.
        # Rough weights feel noise of high frequency most.
        margin = 0.15 if name in ("laplacian_gaussian", "power_law") else 0.03

        @jax.jit
        def share(key):
            keys = jax.random.split(key, count)
            noisy = jax.vmap(smoothing.perturb, (0, None))(keys, image)
            lean = jnp.sum(weights * (noisy / 200), axis=(1, 2, 3))
            return jnp.mean(lean > np.sum(weights * image / 200) - margin)

        (p,) = probabilities(name, 0.02, smoothing, weights, [margin])
        self.assertBetween(p, 0.6, 0.98)
        deviation = (p * (1 - p) / count) ** 0.5
        # JAX's own generator draws the same and compiles faster here.
        found = float(share(jax.random.key(0)))
        self.assertAlmostEqual(found, p, delta=4 * deviation)

    def test_gradients_are_what_the_noise_adds(self):
        weights = random_weights(0, (3, 4, 1)).astype(np.float32)
        for wrap in (False, True):
            smoothing = make_smoothing("flow_laplace", 0.1, "l1", wrap=wrap)
            gradient = potential_gradient(weights, wrap)
            np.testing.assert_allclose(
                np.concatenate([np.ravel(edges) for edges in gradient]),
                coefficients("flow_laplace", smoothing, weights),
                atol=1e-6,
            )


def all_votes(n, classes):
    """`[V, K]`, every way in which `n` votes fall on some classes."""
    ways = itertools.product(range(n + 1), repeat=classes - 1)
    return np.array([[*way, n - sum(way)] for way in ways if sum(way) <= n])


ALPHA = 0.1
FRESH = all_votes(40, 3)
THEOREM = make_smoothing("flow_laplace", 0.1, "l1").scores


def certificate(chosen, fresh, way):
    return certificate_from_votes(
        chosen, fresh, THEOREM, alpha=ALPHA, use_runner_up=way
    )


@functools.cache
def every_radius(selected, way):
    """`[V]` radii of one class, whatever the votes."""
    chosen = 10 * np.eye(3, dtype=int)[selected]
    return np.array([certificate(chosen, fresh, way).radius for fresh in FRESH])


class CoverageTest(parameterized.TestCase):
    """Shares of wrong certificates among many, for a classifier of known votes."""

    @parameterized.product(
        p=((0.9, 0.1, 0), (0.6, 0.4, 0), (0.55, 0.25, 0.2), (0.4, 0.35, 0.25),
           (0.34, 0.34, 0.32), (0.48, 0.48, 0.04), (0.98, 0.01, 0.01)),
        way=("never", "always"),
    )  # fmt: skip
    def test_wrong_certificates_are_at_most_alpha(self, p, way):
        probability = stats.multinomial.pmf(FRESH, 40, p)
        self.assertAlmostEqual(probability.sum(), 1.0)
        for k in range(3):
            true = THEOREM.radius(p[k], np.delete(p, k).max())
            if way == "never":
                true = THEOREM.radius(p[k])
            wrong = probability[every_radius(k, way) > true].sum()
            self.assertLessEqual(wrong, ALPHA)

    def test_choosing_whether_to_bound_others_looks_at_no_fresh_vote(self):
        # So that it is as good as either way.
        ways = set()
        for chosen in all_votes(10, 3):
            selected = int(np.argmax(chosen))
            radii = [certificate(chosen, v, "auto").radius for v in FRESH[::90]]
            same = [
                way
                for way in ("never", "always")
                if np.array_equal(radii, every_radius(selected, way)[::90])
            ]
            self.assertNotEmpty(same)
            ways.update(same)
        self.assertLen(ways, 2)

    def test_certificates_do_fail_about_as_often_as_allowed(self):
        # So the test above would notice a level twice as high.
        n, true = 200, THEOREM.radius(0.9)
        wrong = [
            certificate(np.array([1, 0]), np.array([k, n - k]), "never").radius > true
            for k in range(n + 1)
        ]

        failures = np.sum(stats.binom.pmf(np.arange(n + 1), n, 0.9)[wrong])

        self.assertBetween(failures, 0.6 * ALPHA, ALPHA)

    @parameterized.parameters((0.34, 0.33, 0.33), (0.5, 0.49, 0.01), (0.51, 0.49, 0.0))
    def test_predictions_are_wrong_with_probability_at_most_alpha(self, *p):
        # The first class is the most likely one; to abstain is not wrong.
        wrong = [prediction_from_votes(votes, ALPHA).label > 0 for votes in FRESH]

        failures = np.sum(stats.multinomial.pmf(FRESH, 40, p)[wrong])

        self.assertLessEqual(failures, ALPHA)

    def real_draws(self, name, make, runs, margin):
        """Certificates of one image whose exact radius is `margin`, key by key."""
        # The step feels one edge, so the margin is the exact radius.
        smoothing = smoothing_of(name, 0.1, "l1", shape=(1, 4, 1))
        image = np.full((1, 4, 1), 0.25, np.float32)
        weights = np.array([[0.0, 0.0, 1.0, 1.0]], np.float32)[..., None]

        def classify(images):
            lean = jnp.sum(weights * images, axis=(1, 2, 3)) - 0.5 + margin
            return jnp.stack([-lean, lean], axis=-1)

        keys = jax.random.split(make_key(3), runs)
        return make(classify, smoothing).certify_each([image] * runs, keys)

    @parameterized.parameters("flow_laplace", "flow_gaussian")
    def test_certificates_of_real_draws_fail_at_most_alpha(self, name):
        alpha, runs, margin = 0.2, 100, 0.08

        def make(*classifier):
            devices = tuple(jax.local_devices()[:1])
            counting = Counting(block_size=50, devices=devices)
            return FixedVotes(*classifier, n0=10, n=50, alpha=alpha, counting=counting)

        certificates = self.real_draws(name, make, runs, margin)
        radii = np.array([c.radius for c in certificates if c.label == 1])

        failures = np.sum(radii > margin)
        self.assertLessEqual(failures, oracles.failures_allowed(runs, alpha))
        self.assertGreater(failures, 0.25 * alpha * runs)
        self.assertGreater(len(radii), 0.9 * runs)

    @parameterized.parameters("flow_laplace", "flow_gaussian")
    def test_radii_asked_for_fail_at_most_alpha_on_real_draws(self, name):
        alpha, runs, margin = 0.2, 100, 0.08
        # The first is true, the others claim too much.
        radii = (0.5 * margin, 1.0001 * margin, 1.05 * margin, 1.5 * margin)

        def make(*classifier):
            return VotesAtRadii(
                *classifier, radii=radii, n0=10, n=200, alpha=alpha, first_look=25,
                counting=Counting(devices=tuple(jax.local_devices()[:1])),
            )  # fmt: skip

        certificates = self.real_draws(name, make, runs, margin)
        found = np.array([certificate.radius for certificate in certificates])

        failures = np.sum(found > margin)
        self.assertLessEqual(failures, oracles.failures_allowed(runs, alpha))
        self.assertGreater(failures, 0)
        self.assertGreater(np.sum(found == radii[0]), 0.5 * runs)


if __name__ == "__main__":
    absltest.main()
