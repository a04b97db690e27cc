"""Tests of wsjax.confidence."""

import fractions
import math
from unittest import mock

import numpy as np
from absl.testing import absltest, parameterized
from scipy import special, stats

from wsjax import confidence
from wsjax.confidence import lower_bound, top_two_p_value, upper_bound

ALPHAS = (0.001, 0.05, 0.3)
# Trials and counts with every kind of edge: none, one, half, all but one, all.
COUNTS = [
    (k, n)
    for n in (1, 2, 20, 1_000, 10_000, 1_000_000)
    for k in sorted({0, 1, n // 2, n - 1, n} & set(range(n + 1)))
]


class BoundTest(parameterized.TestCase):
    @parameterized.product(alpha=ALPHAS)
    def test_equal_the_quantiles_of_clopper_and_pearson(self, alpha):
        for k, n in COUNTS:
            lower = stats.beta.ppf(alpha, k, n - k + 1) if k else 0.0
            upper = stats.beta.ppf(1 - alpha, k + 1, n - k) if k < n else 1.0
            with self.subTest(k=k, n=n):
                self.assertAlmostEqual(lower_bound(k, n, alpha), lower, delta=3e-12)
                self.assertAlmostEqual(upper_bound(k, n, alpha), upper, delta=3e-12)

    @parameterized.product(alpha=ALPHAS)
    def test_are_one_sided_halves_of_the_exact_interval(self, alpha):
        for k, n in COUNTS:
            interval = stats.binomtest(k, n).proportion_ci(1 - 2 * alpha, "exact")
            with self.subTest(k=k, n=n):
                self.assertAlmostEqual(lower_bound(k, n, alpha), interval.low, 9)
                self.assertAlmostEqual(upper_bound(k, n, alpha), interval.high, 9)

    @parameterized.product(alpha=(1e-6, *ALPHAS), n=(1, 7, 500, 10_000, 100_000))
    def test_counts_as_extreme_are_no_likelier_than_alpha_at_the_bound(self, alpha, n):
        rng = np.random.default_rng(0)
        k = np.unique(np.concatenate([[0, 1, n - 1, n], rng.integers(0, n + 1, 300)]))

        lower, upper = lower_bound(k, n, alpha), upper_bound(k, n, alpha)

        # What is left of 1e-9 is room for the error of scipy's tail functions.
        above = np.where(k > 0, stats.binom.sf(k - 1, n, lower), 0.0)
        below = np.where(k < n, stats.binom.cdf(k, n, upper), 0.0)
        self.assertLessEqual(above.max(), alpha * (1 + 1e-9))
        self.assertLessEqual(below.max(), alpha * (1 + 1e-9))

    @parameterized.product(
        alpha=(1e-6, 0.025, *ALPHAS), failures=(0, 5, 998, 999, 1_000)
    )
    def test_many_votes_cost_no_accuracy(self, alpha, failures):
        # Quantile functions are least accurate here; see scipy's betaincinv(_, 1000, _).
        n = 10_000_000

        lower = lower_bound(n - failures, n, alpha)
        upper = upper_bound(failures, n, alpha)

        above = stats.binom.sf(n - failures - 1, n, lower)
        self.assertLessEqual(above, alpha * (1 + 1e-9))
        self.assertLessEqual(stats.binom.cdf(failures, n, upper), alpha * (1 + 1e-9))

    @parameterized.product(alpha=(1e-6, *ALPHAS), n=(1, 7, 30))
    def test_are_valid_in_exact_arithmetic_with_some_to_spare(self, alpha, n):
        def at_least(k, p):
            """P(at least k of n), in fractions."""
            p = fractions.Fraction(p)
            return sum(
                math.comb(n, j) * p**j * (1 - p) ** (n - j) for j in range(k, n + 1)
            )

        # Of the 1e-12 that is given away; 1 - 1e-6 has lost as much in rounding.
        spare = 0.0 if alpha == 1e-6 else 5e-13
        for k in range(n + 1):
            lower, upper = lower_bound(k, n, alpha), upper_bound(k, n, alpha)
            if k > 0:
                self.assertLessEqual(at_least(k, lower + spare), alpha)
            if k < n:
                self.assertLessEqual(1 - at_least(k + 1, upper - spare), alpha)

    def test_are_probabilities_however_many_votes_agree(self):
        n = 10**7
        self.assertLessEqual(upper_bound(n - 1, n, 1e-6), 1.0)
        self.assertGreaterEqual(lower_bound(1, n, 1e-6), 0.0)

    @parameterized.parameters(1e-9, 1e-6, 1e-4)
    def test_an_inaccurate_quantile_is_made_good(self, error):
        quantile, n, alpha = special.betaincinv, 1_000, 0.05

        def inaccurate(a, b, y):
            # For some of the counts, and on the side that claims too much.
            off = error * (np.minimum(a, b) % 3 == 0)
            return quantile(a, b, y) * (1 + (off if y == alpha else -off))

        k = np.arange(1, n)
        with mock.patch.object(special, "betaincinv", inaccurate):
            lower, upper = lower_bound(k, n, alpha), upper_bound(k, n, alpha)

        above, below = stats.binom.sf(k - 1, n, lower), stats.binom.cdf(k, n, upper)
        self.assertLessEqual(above.max(), alpha * (1 + 1e-9))
        self.assertLessEqual(below.max(), alpha * (1 + 1e-9))
        loss = 4 * error + 1e-11
        self.assertTrue((lower >= quantile(k, n - k + 1, alpha) - loss).all())
        self.assertTrue((upper <= quantile(k + 1, n - k, 1 - alpha) + loss).all())

    @parameterized.product(alpha=ALPHAS)
    def test_unanimous_votes_give_a_root_of_alpha(self, alpha):
        for n in (1, 100, 10_000, 100_000):
            exact = math.exp(math.log(alpha) / n)
            self.assertLessEqual(lower_bound(n, n, alpha), exact)
            self.assertAlmostEqual(lower_bound(n, n, alpha), exact, delta=3e-12)
            self.assertGreaterEqual(upper_bound(0, n, alpha), 1 - exact)

    @parameterized.product(alpha=(0.01, 0.1, 0.4), n=(1, 5, 30, 200))
    def test_fail_with_probability_at_most_alpha(self, alpha, n):
        k = np.arange(n + 1)
        lower, upper = lower_bound(k, n, alpha), upper_bound(k, n, alpha)
        # The worst p are just below a lower bound and just above an upper one.
        worst = np.concatenate([lower - 1e-9, upper + 1e-9])
        grid = np.concatenate(
            [np.linspace(0, 1, 101), worst[(worst > 0) & (worst < 1)]]
        )

        weights = stats.binom.pmf(k, n, grid[:, None])

        above = np.sum(weights * (lower > grid[:, None]), axis=1)
        below = np.sum(weights * (upper < grid[:, None]), axis=1)
        self.assertLessEqual(above.max(), alpha * (1 + 1e-9))
        self.assertLessEqual(below.max(), alpha * (1 + 1e-9))
        # Nor are they wasteful: some p make them fail almost as often as allowed.
        self.assertGreater(above.max(), alpha * (1 - 1e-3))
        self.assertGreater(below.max(), alpha * (1 - 1e-3))

    @parameterized.parameters(1, 2, 50, 10_000)
    def test_grow_with_the_count_and_enclose_it(self, n):
        k = np.arange(n + 1)
        lower, upper = lower_bound(k, n, 0.05), upper_bound(k, n, 0.05)

        self.assertTrue((np.diff(lower) > 0).all())
        self.assertTrue((np.diff(upper) > 0).all())
        self.assertTrue(((lower <= k / n) & (k / n <= upper)).all())
        self.assertEqual(lower[0], 0.0)
        self.assertEqual(upper[-1], 1.0)
        self.assertLess(lower.max(), 1.0)
        self.assertGreater(upper.min(), 0.0)

    def test_grow_apart_with_confidence_and_together_with_votes(self):
        self.assertLess(lower_bound(90, 100, 0.01), lower_bound(90, 100, 0.05))
        self.assertGreater(upper_bound(90, 100, 0.01), upper_bound(90, 100, 0.05))
        self.assertLess(lower_bound(90, 100, 0.05), lower_bound(900, 1000, 0.05))
        self.assertGreater(upper_bound(90, 100, 0.05), upper_bound(900, 1000, 0.05))

    def test_are_mirror_images(self):
        k = np.arange(0, 101)

        np.testing.assert_allclose(
            upper_bound(k, 100, 0.05), 1 - lower_bound(100 - k, 100, 0.05), atol=1e-11
        )

    def test_rare_classes_keep_their_digits(self):
        upper = upper_bound(0, 10**9, 0.05)

        self.assertAlmostEqual(upper / -math.log(0.05) * 10**9, 1.0, delta=1e-3)

    @parameterized.parameters(lower_bound, upper_bound)
    def test_are_float64_of_the_shape_of_the_counts(self, bound):
        self.assertIsInstance(bound(3, 10, 0.05), np.float64)
        self.assertIsInstance(bound(np.int32(3), 10, 0.05), np.float64)
        array = bound(np.array([[3, 4]], np.int32), 10, 0.05)
        self.assertEqual((array.dtype, array.shape), (np.float64, (1, 2)))
        self.assertEqual(array[0, 0], bound(3, 10, 0.05))

    @parameterized.product(
        bound=(lower_bound, upper_bound),
        alpha=(0, -0.1, 0.5, 0.95, 1, float("nan"), None, "0.05", np.array([0.05])),
    )
    def test_refuse_confidence_in_place_of_alpha(self, bound, alpha):
        with self.assertRaises(ValueError) as caught:
            bound(5, 10, alpha)
        self.assertIn(f"alpha={alpha!r} is outside (0, 0.5)", str(caught.exception))
        self.assertIn("95% confidence is alpha=0.05, not 0.95", str(caught.exception))

    @parameterized.product(bound=(lower_bound, upper_bound), n=(0, -5, 2.5))
    def test_refuse_no_votes(self, bound, n):
        with self.assertRaisesRegex(ValueError, f"n={n!r} is not a positive whole"):
            bound(0, n, 0.05)

    @parameterized.product(
        bound=(lower_bound, upper_bound),
        counts=(-1, 11, 0.5, 3.0, [3, 11], [-1, 3], np.array([0.2, 0.8])),
    )
    def test_refuse_what_is_no_count(self, bound, counts):
        with self.assertRaisesRegex(ValueError, "between 0 and n=10") as caught:
            bound(counts, 10, 0.05)
        self.assertIn(repr(counts), str(caught.exception))


class TopTwoTest(parameterized.TestCase):
    @parameterized.parameters(
        ([10, 0],), ([0, 10],), ([1, 0],), ([5, 5],), ([6, 5, 5],), ([3, 70, 20, 7],),
        ([4_900, 5_100],), ([990_000, 10_000, 500_000],), ([2, 0, 1, 0],),
    )  # fmt: skip
    def test_equals_the_binomial_test_on_the_two_largest_counts(self, votes):
        second, first = sorted(votes)[-2:]
        expected = stats.binomtest(first, first + second, 0.5).pvalue

        actual = top_two_p_value(np.array(votes, np.int32))

        self.assertIsInstance(actual, float)
        self.assertAlmostEqual(actual, expected, delta=1e-9 * expected)

    def test_is_one_for_a_tie(self):
        self.assertEqual(top_two_p_value([5, 5, 1]), 1.0)

    def test_does_not_depend_on_the_order_of_classes(self):
        votes = np.array([3, 70, 20, 7])
        for order in ([0, 1, 2, 3], [3, 2, 1, 0], [1, 0, 3, 2]):
            self.assertEqual(top_two_p_value(votes[order]), top_two_p_value(votes))

    @parameterized.parameters(([5],), (5,), ([[5, 5]],), ([],))
    def test_refuses_fewer_than_two_classes(self, votes):
        with self.assertRaisesRegex(ValueError, "at least two classes"):
            top_two_p_value(votes)

    def test_refuses_no_votes_and_shares(self):
        with self.assertRaisesRegex(ValueError, "n=0 is not a positive whole"):
            top_two_p_value([0, 0])
        with self.assertRaisesRegex(ValueError, "not whole numbers"):
            top_two_p_value([0.5, 1.5])
        with self.assertRaisesRegex(ValueError, "not whole numbers"):
            top_two_p_value([-1, 4])


class CheckAlphaTest(parameterized.TestCase):
    @parameterized.parameters(1e-300, 0.05, 0.499999, np.float32(0.05), np.float64(0.1))
    def test_accepts_failure_probabilities(self, alpha):
        confidence.check_alpha(alpha)


if __name__ == "__main__":
    absltest.main()
