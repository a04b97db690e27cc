"""Tests of wsjax.certificates."""

import decimal
import math
import warnings

import numpy as np
import oracles
from absl.testing import absltest, parameterized
from scipy import stats

from wsjax import certificates


def radii_of(theorem):
    """`(p_lower, spread, ground_metric, runner_up) -> radius`, in one call."""

    def radius(p_lower, spread, ground_metric, runner_up=None):
        return theorem(spread, ground_metric).radius(p_lower, runner_up)

    return radius


def of_sigma(p_lower, sigma, ground_metric, runner_up=None):
    """The Gaussian theorem for a shift that is felt by one variable of this spread."""
    return gaussian(p_lower, 1.0 / sigma, ground_metric, runner_up)


flow_laplace = radii_of(certificates.flow_laplace)
flow_laplace_published = radii_of(certificates.flow_laplace_published)
flow_uniform = radii_of(certificates.flow_uniform)
gaussian = radii_of(certificates.gaussian)
pixel_laplace = radii_of(certificates.pixel_laplace)
pixel_laplace_published = radii_of(certificates.pixel_laplace_published)

TIGHT = {
    "flow_laplace": flow_laplace,
    "flow_uniform": flow_uniform,
    "gaussian": of_sigma,
}
THEOREMS = {
    **TIGHT,
    "flow_laplace_published": flow_laplace_published,
    "pixel_laplace": pixel_laplace,
    "pixel_laplace_published": pixel_laplace_published,
}
EACH_TIGHT = parameterized.named_parameters((name, name) for name in TIGHT)
EACH_THEOREM = parameterized.named_parameters(*THEOREMS.items())
GRID = np.concatenate([np.linspace(0, 1, 201), 1 - np.logspace(-11, -3, 30)])
GRID = np.sort(GRID)
PI = "3.14159265358979323846264338327950288419716939937510582097494"


def exact_normal_cdf(x):
    """In as many digits as decimals have; the series of the error function."""
    term = x / (2 * decimal.Decimal(PI)).sqrt()
    total, n = decimal.Decimal("0.5") + term, 0
    while abs(term) > decimal.Decimal(10) ** -45:
        n += 1
        term *= -x * x / (2 * n)
        total += term / (2 * n + 1)
    return total


def exact_normal_ppf(p):
    """Newton's method from a start of 14 digits, each step doubling them."""
    x = decimal.Decimal(float(stats.norm.ppf(float(p))))
    for _ in range(3):
        density = (-x * x / 2).exp() / (2 * decimal.Decimal(PI)).sqrt()
        x -= (exact_normal_cdf(x) - p) / density
    return x


def exact_laplace(p, q, sigma):
    """Tight and published radius in 50 digits, from the same float64 inputs."""
    p, q, b = decimal.Decimal(p), decimal.Decimal(q), decimal.Decimal(sigma)
    b = b / decimal.Decimal(2).sqrt()
    published = b / 2 * (p.ln() - q.ln())
    if p < decimal.Decimal("0.5"):
        return published, published
    return -b / 2 * (4 * q * (1 - p)).ln(), published


class WorstCaseTest(parameterized.TestCase):
    """Radii against the adversary that knows which event the votes were about."""

    @parameterized.product(name=tuple(TIGHT), p=(0.55, 0.8, 0.95, 0.999))
    def test_no_event_loses_its_majority_before_the_radius(self, name, p):
        law = oracles.flow_law(name, 0.3)
        radius = TIGHT[name](p, 0.3, "l1")

        on_one_edge = oracles.least_probability_after(law, p, [radius], 200_001)
        just_after = oracles.least_probability_after(law, p, [1.02 * radius], 200_001)

        self.assertGreaterEqual(on_one_edge, 0.5 - 1e-9)
        self.assertLess(just_after, 0.5)

    @parameterized.product(name=tuple(TIGHT), p=(0.6, 0.9, 0.99), share=(0.1, 0.5, 0.8))
    def test_spreading_the_shift_over_two_edges_does_not_help(self, name, p, share):
        law = oracles.flow_law(name, 0.3)
        radius = TIGHT[name](p, 0.3, "l1")
        shifts = [share * radius, (1 - share) * radius]

        self.assertGreaterEqual(
            oracles.least_probability_after(law, p, shifts, 301), 0.5 - 1e-9
        )

    @parameterized.product(
        name=tuple(TIGHT),
        p_and_q=((0.4, 0.2), (0.5, 0.1), (0.45, 0.44), (0.7, 0.05), (0.9, 0.02)),
    )
    def test_no_other_event_overtakes_before_the_radius(self, name, p_and_q):
        p, q = p_and_q
        law = oracles.flow_law(name, 0.3)
        radius = TIGHT[name](p, 0.3, "l1", q)

        def lead(shift):
            top = oracles.least_probability_after(law, p, [shift], 100_001)
            other = 1 - oracles.least_probability_after(law, 1 - q, [shift], 100_001)
            return top - other

        self.assertGreaterEqual(lead(radius), -1e-9)
        self.assertLess(lead(1.02 * radius + 1e-3), 0.0)

    @parameterized.product(p=(0.6, 0.9, 0.99), share=(0.1, 0.5, 0.8))
    def test_gaussian_shifts_count_by_their_euclidean_length(self, p, share):
        law = oracles.flow_law("gaussian", 0.3)
        radius = gaussian(p, 1 / 0.3, "l2")
        direction = np.array([share, (1 - share**2) ** 0.5])

        at = oracles.least_probability_after(law, p, radius * direction, 301)
        after = oracles.least_probability_after(law, p, 1.1 * radius * direction, 301)

        self.assertGreaterEqual(at, 0.5 - 1e-9)
        self.assertLess(after, 0.5)

    @EACH_TIGHT
    def test_half_lines_reach_the_radius_exactly(self, name):
        law = oracles.flow_law(name, 0.02)
        p = np.array([0.5001, 0.6, 0.9, 0.999, 1 - 1e-7])

        radius = TIGHT[name](p, 0.02, "l1")

        np.testing.assert_allclose(radius, law.ppf(p), rtol=1e-9)
        # After that shift, a half-line of probability p is a coin toss.
        np.testing.assert_allclose(law.cdf(law.ppf(p) - radius), 0.5, atol=1e-9)

    @EACH_TIGHT
    def test_two_half_lines_meet_at_the_radius_with_a_runner_up(self, name):
        law = oracles.flow_law(name, 0.02)
        p, q = np.array([0.4, 0.5, 0.6, 0.9, 0.999]), np.array([0.3, 0.1, 0.39, 0, 0])
        q = np.maximum(q, 0.5 * (1 - p) * (q == 0))

        radius = TIGHT[name](p, 0.02, "l1", q)

        top = law.cdf(law.ppf(p) - radius)
        other = law.cdf(law.ppf(q) + radius)
        np.testing.assert_allclose(top, other, atol=1e-9)

    @EACH_TIGHT
    def test_runner_up_agrees_with_half_the_gap_of_quantiles(self, name):
        law = oracles.flow_law(name, 0.02)
        for p, q in ((0.4, 0.2), (0.5, 0.5), (0.6, 0.05), (0.9, 0.02), (0.99, 0.001)):
            expected = max(0.0, (law.ppf(p) - law.ppf(q)) / 2)
            actual = TIGHT[name](p, 0.02, "l1", q)
            self.assertAlmostEqual(actual, expected, delta=1e-12)


class PublishedTest(parameterized.TestCase):
    @parameterized.parameters(0.001, 0.01, 0.5)
    def test_is_the_formula_of_the_reference_code(self, sigma):
        p = np.linspace(0.501, 0.9999, 57)
        manhattan = (np.log(p) - np.log(1 - p)) * sigma / 2**1.5

        for metric, expected in (("l1", manhattan), ("l2", manhattan / 2**0.5)):
            actual = flow_laplace_published(p, sigma, metric)
            # Next to 1/2, rounding down is seen: the two scores are alike.
            np.testing.assert_allclose(actual, expected, rtol=1e-12, atol=1e-13 * sigma)
            self.assertTrue((actual <= expected).all())

    def test_is_never_above_the_tight_radius_nor_below_half_of_it(self):
        for runner_up in (None, 0.3, 0.05, 0.001):
            p = GRID[GRID < 1]
            tight = flow_laplace(p, 0.01, "l1", runner_up)
            published = flow_laplace_published(p, 0.01, "l1", runner_up)
            self.assertTrue((published <= tight + 1e-17).all())
            self.assertTrue((tight <= 2 * published + 1e-17).all())

    @parameterized.parameters(
        (0.6, 1.101, 2.416, 2.195),
        (0.8, 1.322, 2.120, 1.604),
        (0.9, 1.465, 1.784, 1.218),
        (0.95, 1.564, 1.497, 0.957),
        (0.99, 1.703, 1.045, 0.614),
        (0.999, 1.800, 0.708, 0.393),
    )
    def test_ratios_of_the_catalogue(
        self, p, tight_to_published, uniform_to_published, uniform_to_tight
    ):
        tight = flow_laplace(p, 0.01, "l1")
        published = flow_laplace_published(p, 0.01, "l1")
        uniform = flow_uniform(p, 0.01, "l1")

        self.assertAlmostEqual(tight / published, tight_to_published, delta=6e-4)
        self.assertAlmostEqual(uniform / published, uniform_to_published, delta=6e-4)
        self.assertAlmostEqual(uniform / tight, uniform_to_tight, delta=6e-4)

    def test_exact_multiclass_radius_of_the_catalogue(self):
        b = 0.01 / math.sqrt(2)

        radius = flow_laplace(0.9, 0.01, "l1", 0.02)

        self.assertAlmostEqual(radius / b, 2.414, delta=1e-3)

    def test_gaussian_is_the_formula_of_cohen(self):
        for metric in ("l1", "l2"):
            radius = gaussian(0.95, 2.5, metric, 0.02)

            expected = 0.2 * (stats.norm.ppf(0.95) - stats.norm.ppf(0.02))
            self.assertAlmostEqual(radius, expected, delta=1e-12)


class EveryTheoremTest(parameterized.TestCase):
    @EACH_THEOREM
    def test_nothing_is_certified_up_to_one_half(self, theorem):
        radius = theorem(GRID[GRID <= 0.5], 0.01, "l1")

        np.testing.assert_array_equal(radius, 0.0)
        self.assertGreater(theorem(0.5001, 0.01, "l1"), 0.0)

    @EACH_THEOREM
    def test_grows_with_the_probability_of_the_class(self, theorem):
        for runner_up in (None, 0.4, 0.1, 1e-4, 0.0):
            with np.errstate(invalid="ignore"):
                radius = theorem(GRID, 0.01, "l1", runner_up)
                steps = np.diff(radius[np.isfinite(radius)])
            self.assertTrue((steps >= 0).all())
            self.assertTrue((radius >= 0).all())

    @EACH_THEOREM
    def test_shrinks_with_the_probability_of_the_runner_up(self, theorem):
        for p in (0.2, 0.45, 0.5, 0.7, 0.99):
            radius = theorem(np.full(99, p), 0.01, "l1", np.linspace(0.01, 0.99, 99))
            self.assertTrue((np.diff(radius) <= 0).all())

    @EACH_THEOREM
    def test_a_runner_up_is_never_worse_than_none(self, theorem):
        p = GRID[GRID < 1]
        for runner_up in (0.9, 0.4, 0.1, 1e-3):
            with_it = theorem(p, 0.01, "l1", runner_up)
            self.assertTrue((with_it >= theorem(p, 0.01, "l1") - 1e-17).all())

    @EACH_THEOREM
    def test_a_runner_up_of_the_rest_changes_nothing(self, theorem):
        p = GRID[(GRID > 0.5) & (GRID < 1)]

        np.testing.assert_array_equal(
            theorem(p, 0.01, "l2", 1 - p), theorem(p, 0.01, "l2")
        )

    @EACH_THEOREM
    def test_certifies_nothing_against_a_likelier_runner_up(self, theorem):
        self.assertEqual(theorem(0.3, 0.01, "l1", 0.3), 0.0)
        self.assertEqual(theorem(0.3, 0.01, "l1", 0.4), 0.0)
        self.assertGreater(theorem(0.3, 0.01, "l1", 0.29), 0.0)

    @EACH_THEOREM
    def test_is_proportional_to_the_spread(self, theorem):
        p = np.array([0.6, 0.9, 0.999])

        np.testing.assert_allclose(
            theorem(p, 0.3, "l1"), 30 * theorem(p, 0.01, "l1"), rtol=1e-13
        )

    @EACH_THEOREM
    def test_arrays_are_numbers_side_by_side(self, theorem):
        p, q = np.array([[0.3, 0.6], [0.9, 0.99]]), np.array([[0.2, 0.3], [0.05, 0.01]])

        together = theorem(p, 0.01, "l1", q)

        self.assertEqual((together.dtype, together.shape), (np.float64, (2, 2)))
        for i, j in np.ndindex(2, 2):
            alone = theorem(float(p[i, j]), 0.01, "l1", float(q[i, j]))
            self.assertIsInstance(alone, np.float64)
            self.assertEqual(together[i, j], alone)

    @EACH_THEOREM
    def test_is_a_number_at_every_edge(self, theorem):
        with warnings.catch_warnings():
            warnings.filterwarnings("error", category=RuntimeWarning)
            for p in (0.0, 0.5, 1.0):
                for q in (None, 0.2, 0.5, 1.0):
                    self.assertFalse(np.isnan(theorem(p, 0.01, "l1", q)), (p, q))

    @EACH_THEOREM
    def test_refuses_what_is_no_probability(self, theorem):
        for bad in (-0.1, 1.1, math.nan, np.array([0.9, 1.5])):
            with self.assertRaises(ValueError) as caught:
                theorem(bad, 0.01, "l1")
            self.assertIn("p_lower=", str(caught.exception))
            self.assertIn("confidence.lower_bound", str(caught.exception))
            with self.assertRaisesRegex(ValueError, "runner_up=.*not a probability"):
                theorem(0.9, 0.01, "l1", bad)

    @EACH_THEOREM
    def test_refuses_impossible_spreads_and_metrics(self, theorem):
        name = "sigma"
        if theorem is of_sigma:
            theorem, name = gaussian, "kappa"
        for spread in (0, -0.01, math.inf, math.nan, None):
            with self.assertRaises(ValueError) as caught:
                theorem(0.9, spread, "l1")
            self.assertIn(f"{name}={spread!r} is not a positive", str(caught.exception))
        for metric in ("l3", "L1", None, 2):
            with self.assertRaises(ValueError) as caught:
                theorem(0.9, 0.01, metric)
            self.assertIn(f"ground_metric={metric!r}", str(caught.exception))
            self.assertIn("rows and columns", str(caught.exception))


class ProbabilityScoresTest(parameterized.TestCase):
    """Made by hand, as rows on file are read back."""

    @parameterized.parameters(
        ({"function": "cauchy"}, "function='cauchy' is not one of .*gaussian"),
        ({"scale": 0.0}, "scale=0.0 is outside .*fraction"),
        ({"scale": -1.0}, "scale=-1.0 is outside"),
        ({"scale": 1e-13}, "scale=1e-13 is outside"),
        ({"scale": math.inf}, "scale=inf is outside"),
        ({"scale": math.nan}, "scale=nan is outside"),
        ({"scale": None}, "scale=None is outside"),
        ({"ground_metric": "L1"}, "ground_metric='L1' is not one of"),
    )
    def test_refuses_what_has_no_meaning(self, change, message):
        usual = {"function": "laplace", "scale": 1.0, "ground_metric": "l1"}
        certificates.ProbabilityScores(**usual)
        with self.assertRaisesRegex(ValueError, message):
            certificates.ProbabilityScores(**(usual | change))

    @parameterized.parameters(*THEOREMS)
    def test_scores_grow_and_know_probabilities(self, name):
        theorem = getattr(certificates, name)(0.7, "l1")
        p = np.linspace(0, 1, 101)
        scores = theorem(p)
        self.assertEqual((scores.dtype, scores.shape), (np.float64, (101,)))
        self.assertTrue((np.diff(scores) > 0).all())
        self.assertIsInstance(theorem(0.3), np.float64)
        for bad in (-0.1, 1.1, math.nan):
            with self.assertRaisesRegex(ValueError, "p=.*is not a probability"):
                theorem(bad)


class GroundMetricTest(parameterized.TestCase):
    @parameterized.parameters(
        flow_laplace,
        flow_uniform,
        flow_laplace_published,
    )
    def test_straight_lines_cost_flow_noise_a_factor_of_root_two(self, theorem):
        p = GRID[GRID < 1]

        np.testing.assert_allclose(
            theorem(p, 0.01, "l2"), theorem(p, 0.01, "l1") / math.sqrt(2), rtol=1e-12
        )

    def test_the_constant_of_gaussian_noise_holds_the_metric_already(self):
        p = GRID[GRID < 1]

        np.testing.assert_array_equal(gaussian(p, 3.0, "l2"), gaussian(p, 3.0, "l1"))

    @parameterized.parameters(
        (pixel_laplace, flow_laplace),
        (pixel_laplace_published, flow_laplace_published),
    )
    def test_pixel_noise_certifies_half_in_either_metric(self, pixel, flow):
        p = GRID[GRID < 1]
        for runner_up in (None, 0.1):
            half = flow(p, 0.01, "l1", runner_up) / 2
            np.testing.assert_array_equal(pixel(p, 0.01, "l1", runner_up), half)
            np.testing.assert_array_equal(pixel(p, 0.01, "l2", runner_up), half)


class Version02Test(parameterized.TestCase):
    """What version 0.2 certified, and hardly less: the scores claim nothing new."""

    @parameterized.product(
        name=(
            "flow_laplace",
            "flow_laplace_published",
            "flow_uniform",
            "gaussian",
            "pixel_laplace",
            "pixel_laplace_published",
        ),
        metric=("l1", "l2"),
        spread=(1e-3, 0.01, 1 / 3, 7.0),
    )
    def test_no_radius_is_larger_and_none_is_much_smaller(self, name, metric, spread):
        edges = 10.0 ** np.linspace(-15, -2, 53)
        p = np.concatenate(
            [np.linspace(0, 1, 402), edges, 1 - edges, 0.5 + edges, 0.5 - edges]
        )
        q = np.concatenate([np.linspace(0, 1, 52), edges, 0.5 - edges])[:, None]
        scores = getattr(certificates, name)(spread, metric)

        for runner_up in (None, q, np.minimum(q * (1 - p), 1)):
            new = scores.radius(p, runner_up)
            old = oracles.radius_of_version_0_2(name, p, spread, metric, runner_up)

            self.assertFalse(np.isnan(new).any())
            self.assertEqual(new.shape, np.shape(old))
            np.testing.assert_array_equal(np.isinf(new), np.isinf(old))
            finite = np.isfinite(old)
            # Next to 1/2, version 0.2 lost digits of the tight Laplace radius, upwards or
            # downwards; `RoundingTest` has the exact one.
            lost = spread * 2.0**-53 if name.endswith("laplace") else 0.0
            self.assertEqual(np.sum((new > old + lost)[finite]), 0)
            self.assertEqual(np.sum((new > old)[finite & (old > 1e-3 * spread)]), 0)
            # Absolute where two scores that are not small are nearly alike.
            own, others = scores.bounds(p, runner_up)
            sizes = np.where(finite, np.abs(own) + np.abs(others), 0)
            least = old * (1 - 1e-12) - 1e-13 * sizes - lost
            self.assertTrue((new >= least)[finite].all())


class RoundingTest(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        self.enter_context(decimal.localcontext(prec=50))

    def cases(self, p):
        for p_lower in p:
            for q in (1 - p_lower, 0.7 * (1 - p_lower)):
                yield float(p_lower), float(q), exact_laplace(p_lower, q, 0.01)

    def test_radii_are_rounded_down(self):
        rng = np.random.default_rng(0)
        p = np.concatenate(
            [rng.uniform(0.51, 1, 300), 1 - 10 ** rng.uniform(-11, -1, 300)]
        )
        for p_lower, q, (tight, published) in self.cases(p):
            actual = flow_laplace(p_lower, 0.01, "l1", q)
            self.assertLessEqual(decimal.Decimal(float(actual)), tight)
            self.assertGreater(actual, float(tight) * (1 - 1e-12))
            actual = flow_laplace_published(p_lower, 0.01, "l1", q)
            self.assertLessEqual(decimal.Decimal(float(actual)), published)

    def test_gaussian_radii_are_rounded_down(self):
        rng = np.random.default_rng(2)
        p = np.concatenate(
            [rng.uniform(0.51, 1, 150), 1 - 10 ** rng.uniform(-11, -1, 150)]
        )
        kappa = decimal.Decimal("0.75")
        for p_lower, q, _ in self.cases(p):
            least = exact_normal_ppf(decimal.Decimal(p_lower))
            exact = (least - exact_normal_ppf(decimal.Decimal(q))) / (2 * kappa)
            actual = gaussian(p_lower, 0.75, "l1", q)
            self.assertLessEqual(decimal.Decimal(float(actual)), exact)
            self.assertGreater(actual, float(exact) * (1 - 1e-12))

    def test_radii_near_zero_are_rounded_down_too(self):
        p = 0.5 + 10 ** np.random.default_rng(1).uniform(-12, -2, 300)
        for p_lower, q, (tight, published) in self.cases(p):
            actual = flow_laplace(p_lower, 0.01, "l1", q)
            self.assertLessEqual(decimal.Decimal(float(actual)), tight)
            self.assertGreaterEqual(actual, float(tight) * (1 - 1e-12) - 2e-18)
            actual = flow_laplace_published(p_lower, 0.01, "l1", q)
            self.assertLessEqual(decimal.Decimal(float(actual)), published)

    def test_gaussian_radii_near_zero_are_rounded_down_too(self):
        p = 0.5 + 10 ** np.random.default_rng(3).uniform(-12, -2, 100)
        for p_lower, q, _ in self.cases(p):
            least = exact_normal_ppf(decimal.Decimal(p_lower))
            exact = (least - exact_normal_ppf(decimal.Decimal(q))) / 200
            actual = gaussian(p_lower, 100.0, "l1", q)
            self.assertLessEqual(decimal.Decimal(float(actual)), exact)
            self.assertGreaterEqual(actual, float(exact) * (1 - 1e-12) - 2e-18)


if __name__ == "__main__":
    absltest.main()
