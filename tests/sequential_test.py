"""Tests of wsjax.sequential."""

import functools
import math
from unittest import mock

import numpy as np
import oracles
from absl.testing import absltest, parameterized
from scipy import stats

from wsjax import confidence, sequential
from wsjax.sequential import (
    CERTIFIED,
    GIVEN_UP,
    UNDECIDED,
    chance,
    choose_n,
    decide,
    leading_class_p_value,
    log_evidence_above,
    looks,
    out_of_reach,
)

# Thresholds of small and of large radii.
THRESHOLDS = (0.02, 0.5, 0.691, 0.95, 0.9999)


def mean_ratio(successes, failures, p0, nodes=None):
    """Log of the mean likelihood ratio above `p0`: with `q = sin(a)^2`, `a` is uniform.

    Gauss-Legendre nodes where their number is given, else a fine grid of midpoints.
    """
    start, end = math.asin(math.sqrt(p0)), math.pi / 2
    if nodes:
        places, weights = np.polynomial.legendre.leggauss(nodes)
        places, weights = (places + 1) / 2, weights / 2
    else:
        places, weights = (np.arange(2_000_000) + 0.5) / 2_000_000, 1 / 2_000_000
    angles = start + places * (end - start)
    log_ratio = successes * (2 * np.log(np.sin(angles)) - math.log(p0))
    log_ratio += failures * (2 * np.log(np.cos(angles)) - math.log1p(-p0))
    top = log_ratio.max()
    return top + math.log(np.sum(weights * np.exp(log_ratio - top)))


class LogEvidenceTest(parameterized.TestCase):
    @parameterized.parameters(*THRESHOLDS)
    def test_is_the_mean_likelihood_ratio_rounded_down(self, p0):
        for s, f in [(0, 0), (1, 0), (0, 1), (7, 3), (30, 30), (59, 1), (2, 50)]:
            expected = mean_ratio(s, f, p0, nodes=200)
            # Where there is next to none, its digits do not matter.
            if expected > -20:
                actual = log_evidence_above(s, f, p0)
                self.assertLess(actual, expected, (s, f))
                self.assertAlmostEqual(actual, expected, delta=1e-9)

    @parameterized.parameters(
        (9_990, 10, 0.9985), (9_999_000, 1_000, 0.9998), (10**7, 0, 0.9999),
        (5_010_000, 4_990_000, 0.5), (6_915_000, 3_085_000, 0.691), (10**7, 0, 0.5),
        (400_000, 600_000, 0.399),
    )  # fmt: skip
    def test_many_votes_cost_little_accuracy(self, s, f, p0):
        expected = mean_ratio(s, f, p0)
        actual = log_evidence_above(s, f, p0)
        self.assertLess(actual, expected + 1e-7 * abs(expected))
        self.assertAlmostEqual(actual, expected, delta=1e-4 + 1e-6 * abs(expected))

    def test_underflow_is_no_evidence(self):
        self.assertEqual(log_evidence_above(0, 10**7, 0.9999), -np.inf)
        self.assertEqual(log_evidence_above(5 * 10**6, 5 * 10**6, 0.9), -np.inf)

    @parameterized.parameters(*THRESHOLDS, 1e-9, 1 - 1e-9)
    def test_starts_at_one_and_is_never_nan(self, p0):
        self.assertLess(log_evidence_above(0, 0, p0), 0)
        self.assertGreater(log_evidence_above(0, 0, p0), -1e-9)
        counts = np.array([0, 1, 10, 999, 10**5, 10**7])
        found = log_evidence_above(counts[:, None], counts, p0)
        self.assertFalse(np.isnan(found).any())

    @parameterized.parameters(*THRESHOLDS)
    def test_grows_with_successes_and_shrinks_with_failures(self, p0):
        counts = np.arange(60)
        found = log_evidence_above(counts[:, None], counts, p0)
        found = np.maximum(found, -600.0)
        self.assertGreaterEqual(np.diff(found, axis=0).min(), -1e-9)
        self.assertLessEqual(np.diff(found, axis=1).max(), 1e-9)

    @parameterized.product(p0=(0.5, 0.691, 0.95, 0.99), alpha=(0.05, 0.2))
    def test_a_true_hypothesis_is_ever_rejected_with_probability_at_most_alpha(
        self, p0, alpha
    ):
        # Exact, over every moment up to the last: the most patient adversary.
        last, rejected = 400, 0.0
        alive = np.ones(1)
        for t in range(1, last + 1):
            alive = np.append(alive * (1 - p0), 0) + np.append(0, alive * p0)
            s = np.arange(t + 1)
            stop = log_evidence_above(s, t - s, p0) >= -math.log(alpha)
            rejected += alive[stop].sum()
            alive[stop] = 0
        self.assertLessEqual(rejected, alpha)
        if p0 == 0.5:
            # Nor is it wasteful: twice the level would be noticed.
            self.assertGreater(rejected, 0.6 * alpha)

    def test_broadcasts(self):
        found = log_evidence_above(np.array([[3], [4]]), np.array([0, 1]), 0.5)
        self.assertEqual((found.dtype, found.shape), (np.float64, (2, 2)))
        self.assertEqual(found[1, 1], log_evidence_above(4, 1, 0.5))
        self.assertIsInstance(log_evidence_above(4, 1, 0.5), np.float64)

    def test_refuses_what_is_no_count_and_no_probability(self):
        for counts in ((-1, 0), (0, -1), (0.5, 1), ([1, -1], 0)):
            with self.assertRaisesRegex(ValueError, "not whole numbers of votes"):
                log_evidence_above(*counts, 0.5)
        for p0 in (0, 1, -0.1, float("nan"), [0.5, 1.0]):
            with self.assertRaisesRegex(ValueError, "strictly between 0 and 1"):
                log_evidence_above(1, 1, p0)


def least_to_certify(n, p0, alpha):
    """The least number of successes that certifies at the last vote, by trying all."""
    s = np.arange(n + 1)
    certified = log_evidence_above(s, n - s, p0) >= math.log(2 / alpha)
    certified |= confidence.lower_bound(s, n, alpha / 2) > p0
    return int(np.argmax([*certified, True]))


class ChanceTest(parameterized.TestCase):
    @parameterized.parameters(
        (7, 3, 20), (0, 0, 5), (0, 4, 9), (98, 2, 9_900), (400, 9, 100), (1, 30, 60)
    )
    def test_is_the_upper_tail_of_the_beta_binomial_law(self, s, f, further):
        law = stats.betabinom(further, s + 0.5, f + 0.5)
        for needed in np.unique(np.linspace(1, further, 12).astype(int)):
            actual = chance(s, f, further, int(needed))
            np.testing.assert_allclose(
                actual, law.sf(needed - 1), rtol=1e-5, atol=1e-12
            )

    @parameterized.parameters(
        (7, 3), (0, 0), (3, 0), (0, 4), (98, 2), (60_000, 40_000), (99_000, 1_000)
    )
    def test_without_end_it_is_that_of_a_beta_law(self, s, f):
        further = 2**31
        law = stats.beta(s + 0.5, f + 0.5)
        for share in law.ppf([1e-6, 0.01, 0.5, 0.95]):
            actual = chance(s, f, further, math.ceil(share * further))
            self.assertAlmostEqual(actual / law.sf(share), 1, places=3)

    @parameterized.parameters(
        (500, 300, 300_000), (20, 1, 200_000), (90_000, 9, 120_000)
    )
    def test_panels_add_up_to_the_sum_of_all_terms(self, s, f, further):
        for share in stats.beta(s + 0.5, f + 0.5).ppf([0.01, 0.3, 0.999]):
            needed = int(share * further)
            with mock.patch.object(sequential, "_MOST_TERMS", further):
                expected = chance(s, f, further, needed)
            with mock.patch.object(sequential, "_MOST_TERMS", 1_000):
                actual = chance(s, f, further, needed)
            self.assertAlmostEqual(actual / expected, 1, places=4)

    def test_ends_are_certain(self):
        self.assertEqual(chance(3, 4, 10, 0), 1)
        self.assertEqual(chance(3, 4, 10, -2), 1)
        self.assertEqual(chance(3, 4, 10, 11), 0)
        self.assertEqual(chance(3, 4, 0, 1), 0)

    def test_many_votes_neither_overflow_nor_vanish(self):
        self.assertAlmostEqual(chance(90_000, 10_000, 10**6, 500_000), 1, places=4)
        self.assertLess(chance(10_000, 90_000, 10**6, 500_000), 1e-300)


class OutOfReachTest(parameterized.TestCase):
    def test_is_the_chance_of_a_fresh_start(self):
        n, alpha, beta = 500, 0.1, 0.05
        for p0 in (0.6, 0.9):
            needed = least_to_certify(n, p0, alpha)
            found = []
            for s in range(40):
                expected = stats.betabinom.sf(needed - 1, n, s + 0.5, 40 - s + 0.5)
                found.append(out_of_reach(s, 40, p0, n=n, alpha=alpha, beta=beta))
                self.assertEqual(found[-1], expected <= 0.4 * beta)
            self.assertLen(set(found), 2)

    def test_a_class_without_failures_may_do_anything_that_votes_can_show(self):
        options = {"alpha": 0.05, "beta": 0.4}
        self.assertFalse(out_of_reach(100, 100, 0.9999, n=10**5, **options))
        self.assertTrue(out_of_reach(100, 100, 0.9999, n=10**4, **options))


def paths(p, n, runs, seed=0):
    """`[runs, n]` successes after each of `n` votes."""
    votes = np.random.default_rng(seed).random((runs, n)) < p
    return np.cumsum(votes, axis=1)


@functools.cache
def decisions(n, p0, alpha, beta, moments):
    """For each moment, the decision for each number of successes."""
    return {
        t: decide(np.arange(t + 1), t, p0, n=n, alpha=alpha, beta=beta) for t in moments
    }


def ended(successes, n, p0, alpha, beta=None, moments=None):
    """`[runs]` first decision along each path, and the moment it falls."""
    moments = tuple(range(1, n + 1)) if moments is None else tuple(moments)
    table = decisions(n, p0, alpha, beta, moments)
    found = np.zeros(len(successes), int)
    when = np.zeros(len(successes), int)
    for t in moments:
        now = np.where(found == UNDECIDED, table[t][successes[:, t - 1]], UNDECIDED)
        found, when = found + now, np.where(now != UNDECIDED, t, when)
    return found, when


class DecideTest(parameterized.TestCase):
    @parameterized.product(p0=(0.5, 0.7, 0.95), alpha=(0.05, 0.2))
    def test_false_certificates_are_rare_however_often_one_looks(self, p0, alpha):
        n, runs = 400, 4_000
        for seed, p in enumerate((p0, p0 - 0.02)):
            found, _ = ended(paths(p, n, runs, seed), n, p0, alpha)
            wrong = np.sum(found == CERTIFIED)
            self.assertLessEqual(wrong, oracles.failures_allowed(runs, alpha))
        # Without ever giving up it comes close to what is allowed.
        table = decisions(n, p0, alpha, None, tuple(range(1, n + 1)))
        successes = paths(p0, n, runs)
        ever = [table[t][successes[:, t - 1]] == CERTIFIED for t in table]
        wrong = np.sum(np.any(ever, axis=0))
        self.assertLessEqual(wrong, oracles.failures_allowed(runs, alpha))
        self.assertGreater(wrong, 0.4 * alpha * runs)

    @parameterized.product(p0=(0.5, 0.7, 0.95), beta=(0.05, 0.2))
    def test_loses_what_the_last_vote_would_certify_at_most_with_beta(self, p0, beta):
        n, runs, alpha = 1_000, 4_000, 0.1
        moments = tuple(looks(20, n))
        at_last = least_to_certify(n, p0, alpha) / n
        worst = 0
        for seed, steps in enumerate((-1, 0, 1, 2, 4)):
            p = at_last + steps * math.sqrt(p0 * (1 - p0) / n)
            successes = paths(p, n, runs, seed)
            found, _ = ended(successes, n, p0, alpha, beta, moments)
            at_once = confidence.lower_bound(successes[:, -1], n, alpha / 2) > p0
            lost = np.sum(at_once & (found == GIVEN_UP))
            self.assertLessEqual(lost, oracles.failures_allowed(runs, beta))
            worst = max(worst, lost)
        self.assertGreater(worst, beta / 3 * runs)

    @parameterized.parameters(0.7, 0.95)
    def test_of_what_is_given_up_little_would_be_certified(self, p0):
        # With probabilities from the law that the prediction assumes.
        n, runs, alpha, beta = 400, 20_000, 0.1, 0.2
        rng = np.random.default_rng(3)
        moments = tuple(looks(5, n))
        p = rng.beta(0.5, 0.5, runs)
        successes = np.cumsum(rng.random((runs, n)) < p[:, None], axis=1)
        found, when = ended(successes, n, p0, alpha, beta, moments)
        given_up = (found == GIVEN_UP) & (when < n)
        at_once = successes[:, -1] >= least_to_certify(n, p0, alpha)
        self.assertLessEqual(
            np.sum(at_once & given_up),
            oracles.failures_allowed(int(given_up.sum()), 0.4 * beta),
        )

    @parameterized.product(
        p=(0.55, 0.69, 0.72, 0.75, 0.8, 0.9, 0.99, 1.0), p0=(0.7, 0.95)
    )
    def test_verdicts_agree_with_those_of_all_votes_at_once(self, p, p0):
        n, runs, alpha = 2_000, 500, 0.05
        successes = paths(p, n, runs)
        found, when = ended(successes, n, p0, alpha, moments=looks(50, n))
        early = found == CERTIFIED
        bounds = {
            level: confidence.lower_bound(successes[:, -1], n, level) > p0
            for level in (alpha / 2, alpha)
        }
        lost = bounds[alpha / 2] & ~early
        self.assertLessEqual(lost.sum(), oracles.failures_allowed(runs, alpha))
        # And nothing is certified on the wrong side that often.
        if p <= p0:
            allowed = oracles.failures_allowed(runs, alpha)
            self.assertLessEqual(early.sum(), allowed)
        if abs(p - p0) > 0.08:
            self.assertLess(when.mean(), n / 5)

    def test_is_what_it_says(self):
        n, alpha, beta = 300, 0.1, 0.02
        p0 = np.array([0.5, 0.8, 0.97])
        pairs = [(30, 30), (60, 100), (85, 100), (280, 300), (250, 300), (3, 40)]
        pairs += [(95, 100), (92, 100), (8, 10), (240, 290), (0, 0), (1, 3)]
        for s, t in pairs:
            certified = log_evidence_above(s, t - s, p0) >= math.log(2 / alpha)
            if t == n:
                certified |= confidence.lower_bound(s, n, alpha / 2) > p0
            at_last = np.array([least_to_certify(n, p, alpha) for p in p0])
            odds = stats.betabinom.sf(at_last - s - 1, n - t, s + 0.5, t - s + 0.5)
            given_up = (s < t) & (odds <= 0.4 * beta) | (s + n - t < at_last) | (t == n)
            found = decide(s, t, p0, n=n, alpha=alpha, beta=beta)
            np.testing.assert_array_equal(found == CERTIFIED, certified)
            np.testing.assert_array_equal(found == GIVEN_UP, given_up & ~certified)
            if t == n:
                self.assertNotIn(UNDECIDED, found)

    def test_gives_up_at_once_where_no_vote_could_change_it(self):
        n, alpha, tiny = 50, 0.05, 1e-300
        for p0 in (0.6, 0.9):
            for t in (1, 10, 30, 49):
                for s in range(t + 1):
                    found = decide(s, t, p0, n=n, alpha=alpha, beta=tiny)
                    ways = [
                        decide(s + more, t + k, p0, n=n, alpha=alpha, beta=tiny)
                        for k in range(n - t + 1)
                        for more in {0, k // 2, k}
                    ]
                    self.assertEqual(found == GIVEN_UP, CERTIFIED not in ways, (s, t))
        # So many votes can never certify so much, and none is needed to know it.
        self.assertEqual(decide(0, 0, 0.95, n=20, alpha=0.05), GIVEN_UP)

    def test_does_not_give_up_without_a_failure_what_can_be_certified(self):
        n, p0, options = 10**5, 0.9999, {"alpha": 0.05, "beta": 0.4}
        needed = least_to_certify(n, p0, 0.05)
        self.assertLess(chance(100, 0, n - 100, needed - 100), 0.4 * 0.4)

        self.assertEqual(decide(100, 100, p0, n=n, **options), UNDECIDED)
        self.assertEqual(decide(99, 100, p0, n=n, **options), GIVEN_UP)

    def test_one_vote_is_a_number_of_votes(self):
        # The bound of one vote for the class is 0.025.
        self.assertEqual(decide(1, 1, 0.02, n=1, alpha=0.05), CERTIFIED)
        self.assertEqual(decide(1, 1, 0.03, n=1, alpha=0.05), GIVEN_UP)

    def test_refuses_what_makes_no_sense(self):
        for s, t, n in [(3, 2, 5), (3, 6, 5), (0, 0, 0), (1, 2, 2.5)]:
            with self.assertRaisesRegex(ValueError, "0 <= successes <= trials <= n"):
                decide(s, t, 0.5, n=n, alpha=0.05)
        with self.assertRaisesRegex(ValueError, "alpha=0.95"):
            decide(1, 2, 0.5, n=5, alpha=0.95)
        for beta in (0, 0.5, -1, float("nan")):
            with self.assertRaisesRegex(ValueError, f"beta={beta!r} is outside"):
                decide(1, 2, 0.5, n=5, alpha=0.05, beta=beta)


class LooksTest(parameterized.TestCase):
    @parameterized.parameters(
        (100, 1_000, [100, 200, 300, 400, 600, 800, 1_000]),
        (1, 40, [1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 40]),
        (100, 100, [100]), (100, 30, [30]), (1, 5, [1, 2, 3, 4, 5]), (64, 128, [64, 128]),
    )  # fmt: skip
    def test_grow_by_a_third_to_a_half(self, first, n, expected):
        self.assertEqual(looks(first, n), expected)

    @parameterized.parameters((0, 5, "first_look=0"), (5, 0, "n=0"), (1.5, 9, "1.5"))
    def test_refuse_no_votes(self, first, n, message):
        with self.assertRaisesRegex(ValueError, message):
            looks(first, n)


class LeadingClassTest(parameterized.TestCase):
    @parameterized.product(
        p=(
            (0.34, 0.33, 0.33),
            (0.5, 0.5),
            (0.3, 0.3, 0.2, 0.2),
            (0.2,) * 5,
            (0.11, 0.1, *(0.79 / 8,) * 8),
        ),
        alpha=(0.05, 0.2),
    )
    def test_wrong_leaders_are_returned_at_most_with_alpha(self, p, alpha):
        n, runs, every = 300, 1_000, 5
        rng = np.random.default_rng(1)
        steps = rng.multinomial(every, p, (runs, n // every))
        votes = np.cumsum(steps, axis=1)

        # The p-value knows the two leading counts alone, and whether all votes are in.
        ranked = np.sort(votes, axis=-1)[..., -2:]
        last = np.broadcast_to(votes.sum(-1) == n, ranked.shape[:2])[..., None]
        _, where, number = np.unique(
            np.concatenate([ranked, last], -1).reshape(-1, 3),
            axis=0,
            return_index=True,
            return_inverse=True,
        )
        some = votes.reshape(-1, len(p))[where]
        convinced = np.array([leading_class_p_value(v, n) <= alpha for v in some])
        stops = convinced[number].reshape(runs, -1)
        # Among classes alike, the first stands for the most likely one.
        leader = votes.argmax(-1)[np.arange(runs), stops.argmax(1)]
        wrong = np.sum(stops.any(1) & (leader != 0))
        self.assertLessEqual(wrong, oracles.failures_allowed(runs, alpha))

    def test_clear_leaders_take_few_votes(self):
        self.assertLess(leading_class_p_value(np.array([60, 20, 20]), 10_000), 1e-3)
        self.assertLess(leading_class_p_value([0, 15] + [0] * 8, 100), 0.05)

    def test_is_what_it_says(self):
        for counts in ([12, 3, 1], [50, 30, 20], [5, 5, 0], [0, 0, 100]):
            counts = np.array(counts)
            second, first = np.sort(counts)[-2:]
            ratio = mean_ratio(int(first), int(second), 0.5, nodes=300)
            early = min(1.0, 4 * math.exp(-ratio))
            found = leading_class_p_value(counts, 1_000)
            self.assertAlmostEqual(found, early, delta=1e-8 * early)
            at_last = stats.binomtest(int(first), int(first + second), 0.5).pvalue
            found = leading_class_p_value(counts, int(counts.sum()))
            expected = min(1.0, early, 2 * at_last)
            self.assertAlmostEqual(found, expected, delta=1e-8 * expected)

    def test_is_never_zero(self):
        self.assertGreater(leading_class_p_value([10**6, 0], 10**6), 0)
        self.assertEqual(leading_class_p_value([5, 5, 1], 11), 1.0)

    def test_refuses_what_is_no_votes(self):
        with self.assertRaisesRegex(ValueError, "at least two classes"):
            leading_class_p_value([5], 10)
        with self.assertRaisesRegex(ValueError, "11 votes are more than n=10"):
            leading_class_p_value([5, 6], 10)


def gaussian_radius(p):
    return np.maximum(stats.norm.ppf(p), 0.0)


class ChooseNTest(parameterized.TestCase):
    def choose(self, successes, trials=1_000, **options):
        options = {
            "n_max": 10_000, "radius": gaussian_radius, "max_loss": 0.05, "alpha": 0.05,
            **options,
        }  # fmt: skip
        return choose_n(successes, trials, **options)

    @parameterized.product(share=(0.6, 0.8, 0.95, 1.0), loss=(0.02, 0.1, 0.3))
    def test_loses_as_much_as_allowed_and_hardly_less(self, share, loss):
        successes = round(1_000 * share)

        def lost(n):
            bounds = [
                confidence.lower_bound(math.floor(share * m + 1e-9), m, 0.05)
                for m in (n, 10_000)
            ]
            return 1 - gaussian_radius(bounds[0]) / gaussian_radius(bounds[1])

        n = self.choose(successes, max_loss=loss)

        self.assertBetween(n, 100, 10_000)
        self.assertLessEqual(lost(n), loss + 1e-12)
        if n > 100:
            step = round(4 * math.log2(10_000 / n)) + 1
            self.assertGreater(
                lost(max(100, math.ceil(10_000 / 2 ** (step / 4)))), loss
            )

    def test_the_worst_of_an_interval_takes_more_votes(self):
        for successes in (700, 950, 1_000):
            expected = self.choose(successes)
            for level in (0.2, 0.05):
                worst = self.choose(successes, pilot_alpha=level)
                self.assertGreaterEqual(worst, expected)
                expected = worst

    def test_no_loss_takes_them_all_and_much_loss_few(self):
        self.assertEqual(self.choose(900, max_loss=0.0), 10_000)
        self.assertEqual(self.choose(900, max_loss=0.9), 100)
        self.assertEqual(self.choose(900, max_loss=0.9, n_min=300), 300)
        # Nothing to lose.
        self.assertEqual(self.choose(200), 100)
        self.assertEqual(self.choose(9, 10, n_max=50), 50)

    @parameterized.parameters(0.7, 0.95)
    def test_bounds_from_fresh_votes_of_that_number_stay_valid(self, p):
        alpha, runs, rng = 0.1, 3_000, np.random.default_rng(0)
        number = functools.cache(
            lambda k: self.choose(k, 50, n_max=1_000, max_loss=0.1, alpha=alpha)
        )
        pilots = rng.binomial(50, p, runs)
        numbers = np.array([number(int(k)) for k in pilots])
        self.assertGreater(len(set(numbers)), 1)
        fresh = rng.binomial(numbers, p)
        wrong = sum(
            confidence.lower_bound(int(k), int(n), alpha) > p
            for k, n in zip(fresh, numbers)
        )
        self.assertLessEqual(wrong, oracles.failures_allowed(runs, alpha))
        self.assertGreater(wrong, 0.5 * alpha * runs)

    def test_refuses_what_is_out_of_range(self):
        for loss in (-0.1, 1.0, float("nan")):
            with self.assertRaisesRegex(ValueError, r"outside \[0, 1\)"):
                self.choose(900, max_loss=loss)
        with self.assertRaisesRegex(ValueError, "between 0 and n=1000"):
            self.choose(1_001)
        with self.assertRaisesRegex(ValueError, "alpha=0.7"):
            self.choose(900, alpha=0.7)


class LevelsTest(absltest.TestCase):
    def test_none_stands_for_alpha(self):
        sequential.check_levels(0.05)
        sequential.check_levels(0.05, None)
        sequential.check_levels(0.05, 0.3)


if __name__ == "__main__":
    absltest.main()
