"""Tests of wsjax.certifiers.votes."""

import dataclasses
import inspect
import itertools
import math
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import oracles
from absl.testing import absltest, parameterized
from scipy import stats

from wsjax import ABSTAIN, Counting, FixedVotes, make_key, make_smoothing, votes
from wsjax.certifiers.votes import (
    VoteEvidence,
    certificate_from_votes,
    prediction_from_votes,
)

SHAPE = (2, 3, 1)
IMAGE = np.random.default_rng(0).uniform(0.5, 1.0, SHAPE).astype(np.float32)
LAPLACE = make_smoothing("flow_laplace", 0.1, "l1")
# One device and one size of blocks, so that one program serves most tests.
ONE_DEVICE = Counting(block_size=8, devices=tuple(jax.local_devices()[:1]))
SIZES = {"n0": 20, "n": 100, "alpha": 0.05}


def classify(images):
    """Three of the pixels as logits."""
    return images.reshape(len(images), -1)[:, :3]


def count(key, n):
    return np.asarray(
        votes.count_votes(
            key, IMAGE, classify, LAPLACE.perturb, n=n, **ONE_DEVICE.options
        )
    )


class CertificateFromVotesTest(parameterized.TestCase):
    @parameterized.product(
        certificate=("tight", "published"), metric=("l1", "l2"), alpha=(0.001, 0.3)
    )
    def test_is_selection_then_bound_then_theorem(self, certificate, metric, alpha):
        smooth = make_smoothing("flow_laplace", 0.1, metric, certificate)
        chosen, fresh = np.array([3, 15, 2]), np.array([20, 930, 50])

        result = certificate_from_votes(chosen, fresh, smooth.scores, alpha=alpha)

        p = stats.beta.ppf(alpha, 930, 71)
        b = 0.1 / math.sqrt(2)
        manhattan = {
            "tight": -b * math.log(2 * (1 - p)),
            "published": b / 2 * math.log(p / (1 - p)),
        }[certificate]
        expected = manhattan / {"l1": 1, "l2": math.sqrt(2)}[metric]
        self.assertEqual((result.label, result.selected), (1, 1))
        self.assertAlmostEqual(result.evidence.p_lower, p, delta=1e-11)
        self.assertAlmostEqual(result.radius, expected, delta=1e-9)
        self.assertLessEqual(result.radius, expected)
        self.assertIsNone(result.evidence.runner_up)
        np.testing.assert_array_equal(result.evidence.selection_votes, chosen)
        np.testing.assert_array_equal(result.evidence.votes, fresh)

    def test_runner_up_shares_alpha_among_all_bounds(self):
        chosen, fresh = np.array([3, 15, 2, 0]), np.array([250, 600, 100, 50])

        result = certificate_from_votes(
            chosen, fresh, LAPLACE.scores, alpha=0.06, use_runner_up="always"
        )

        p = stats.beta.ppf(0.03, 600, 401)
        q = stats.beta.ppf(1 - 0.01, 251, 750)
        self.assertAlmostEqual(result.evidence.p_lower, p, delta=1e-11)
        self.assertAlmostEqual(result.evidence.runner_up, q, delta=1e-11)
        expected = -0.1 / math.sqrt(8) * math.log(4 * q * (1 - p))
        self.assertAlmostEqual(result.radius, expected, delta=1e-9)

    def test_runner_up_is_never_above_the_rest(self):
        # Its own bound is looser here, as it allows for a third class.
        result = certificate_from_votes(
            np.array([9, 0, 0]), np.array([90, 10, 0]), LAPLACE.scores, alpha=0.05,
            use_runner_up="always",
        )  # fmt: skip

        self.assertGreater(
            stats.beta.ppf(1 - 0.0125, 11, 90), 1 - result.evidence.p_lower
        )
        self.assertEqual(result.evidence.runner_up, 1 - result.evidence.p_lower)

    def test_runner_up_certifies_classes_without_a_majority(self):
        chosen, fresh = np.array([9, 6, 5]), np.array([4_500, 2_750, 2_750])

        alone = certificate_from_votes(chosen, fresh, LAPLACE.scores, alpha=0.05)
        both = certificate_from_votes(
            chosen, fresh, LAPLACE.scores, alpha=0.05, use_runner_up="always"
        )

        self.assertEqual((alone.label, alone.radius), (ABSTAIN, 0.0))
        self.assertEqual(both.label, 0)
        self.assertGreater(both.radius, 0.0)

    def test_ways_with_runners_up_go_by_their_names(self):
        chosen, fresh = np.array([3, 15, 2]), np.array([20, 700, 280])

        def radius(**way):
            result = certificate_from_votes(
                chosen, fresh, LAPLACE.scores, alpha=0.05, **way
            )
            return result.radius, result.evidence.runner_up

        self.assertEqual(radius(), radius(use_runner_up="never"))
        self.assertNotEqual(radius(), radius(use_runner_up="always"))
        for bad in ("sometimes", None, 2, True):
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
        ((7, 7, 6), "never"),
    )
    def test_selection_votes_alone_decide_whether_others_are_bounded(self, chosen, way):
        # Whatever the fresh votes turn out to be, those that fit the choice or not.
        for fresh in ((9_990, 10, 0), (4_000, 3_000, 3_000), (0, 9_000, 1_000)):
            actual, expected = (
                certificate_from_votes(
                    np.array(chosen),
                    np.array(fresh),
                    LAPLACE.scores,
                    alpha=0.05,
                    use_runner_up=choice,
                )
                for choice in ("auto", way)
            )
            self.assertEqual(actual[:-1], expected[:-1])
            self.assertEqual(actual.evidence[:2], expected.evidence[:2])

    def test_choosing_is_best_for_votes_in_proportion(self):
        rng = np.random.default_rng(0)
        for chosen in rng.multinomial(20, rng.dirichlet(np.ones(3), 100)):
            # 997 has no share in whole votes; the leader gets what is left.
            fresh = chosen * 997 // 20
            fresh[chosen.argmax()] += 997 - fresh.sum()
            ways = {
                way: certificate_from_votes(
                    chosen, fresh, LAPLACE.scores, alpha=0.05, use_runner_up=way
                ).radius
                for way in ("never", "always", "auto")
            }
            self.assertEqual(ways["auto"], max(ways["never"], ways["always"]))

    def test_selection_votes_alone_select(self):
        result = certificate_from_votes(
            np.array([9, 11]), np.array([990, 10]), LAPLACE.scores, alpha=0.05
        )

        self.assertEqual((result.selected, result.label), (1, ABSTAIN))
        self.assertEqual(result.radius, 0.0)
        self.assertAlmostEqual(
            result.evidence.p_lower, stats.beta.ppf(0.05, 10, 991), delta=1e-11
        )

    @parameterized.parameters(10, 99, 1_000)
    def test_abstains_exactly_up_to_one_half(self, n):
        for k in range(n + 1):
            # P(at least k votes) at p = 1/2 is above alpha where 1/2 stays possible.
            possible = stats.binom.sf(k - 1, n, 0.5) > 0.05
            result = certificate_from_votes(
                np.array([1, 0]), np.array([k, n - k]), LAPLACE.scores, alpha=0.05
            )
            self.assertEqual(result.label == ABSTAIN, possible)
            self.assertEqual(result.evidence.p_lower <= 0.5, possible)
            self.assertEqual(result.radius == 0.0, possible)
            self.assertEqual(result.selected, 0)

    @parameterized.parameters(([9],), ([],), ([[5, 4]],), (9,))
    def test_refuses_votes_of_fewer_than_two_classes(self, counts):
        with self.assertRaisesRegex(ValueError, "at least two classes are needed"):
            certificate_from_votes(
                np.array([1, 1]), np.array(counts, int), LAPLACE.scores, alpha=0.05
            )

    @parameterized.parameters(0.5, 0.95, 0.0)
    def test_refuses_alpha_and_counts_outside_their_range(self, alpha):
        ones = np.array([1, 1])
        with self.assertRaisesRegex(ValueError, "95% confidence is alpha=0.05"):
            certificate_from_votes(ones, ones, LAPLACE.scores, alpha=alpha)
        with self.assertRaisesRegex(ValueError, "n=0 is not a positive"):
            certificate_from_votes(ones, 0 * ones, LAPLACE.scores, alpha=0.05)


def fixed(classify=classify, smoothing=LAPLACE, counting=ONE_DEVICE, **options):
    return FixedVotes(classify, smoothing, counting=counting, **(SIZES | options))


def certify(key, image, **options):
    return fixed(**options).certify(image, key)


def certify_each(pairs, **options):
    """Certificates of pairs `(key, image)`, read one by one."""
    pairs, again = itertools.tee(pairs)
    return fixed(**options).certify_each(
        (image for _, image in pairs), (key for key, _ in again)
    )


class CertificatesTestCase(parameterized.TestCase):
    def assert_same(self, actual, expected):
        for wanted, got in zip(expected, actual, strict=True):
            if isinstance(wanted, VoteEvidence):
                self.assert_same(got, wanted)
            else:
                np.testing.assert_array_equal(wanted, got)


class CertifyTest(CertificatesTestCase):
    @parameterized.parameters("never", "always")
    def test_counts_selects_and_bounds(self, use_runner_up):
        key = make_key(1)

        result = certify(key, IMAGE, use_runner_up=use_runner_up)

        key_select, key_estimate = jax.random.split(key)
        expected = certificate_from_votes(
            count(key_select, 20), count(key_estimate, 100), LAPLACE.scores,
            alpha=0.05, use_runner_up=use_runner_up,
        )  # fmt: skip
        self.assert_same(result, expected)
        self.assertEqual(result.evidence.selection_votes.sum(), 20)
        self.assertEqual(result.evidence.votes.sum(), 100)
        self.assertIsInstance(result.radius, float)
        self.assertIsInstance(result.label, int)

    def test_selection_and_estimation_share_no_draw(self):
        key, asked = make_key(2), []

        def record(key, image, classify, perturb, *, n, start, **_):
            asked.append((key, start, n))
            return np.array([n, 0])

        with mock.patch.object(votes, "count_votes", record):
            certify(key, IMAGE)

        self.assertEqual([(start, n) for _, start, n in asked], [(0, 20), (0, 100)])
        fold = jax.jit(jax.vmap(jax.random.fold_in, (None, 0)))
        draws = {
            tuple(data)
            for k, _, n in asked
            for data in np.asarray(jax.random.key_data(fold(k, np.arange(n)))).tolist()
        }
        self.assertLen(draws, 120)
        self.assertNotIn(tuple(jax.random.key_data(key).tolist()), draws)

    def test_labels_have_no_way_in(self):
        methods = ("certify", "certify_each", "predict", "predict_each")
        entries = [getattr(FixedVotes, name) for name in methods]
        for function in (*entries, FixedVotes, certificate_from_votes):
            names = " ".join(inspect.signature(function).parameters)
            self.assertNotRegex(names, "label|target|truth")

    def test_keys_decide(self):
        a, b = (certify(make_key(seed), IMAGE) for seed in (3, 4))
        self.assertTrue(np.any(a.evidence.votes != b.evidence.votes))

    def test_keys_are_asked_for(self):
        for run in (fixed().certify, fixed().predict):
            with self.assertRaisesRegex(ValueError, "pass a key for each image"):
                run(IMAGE)

    def test_a_classifier_of_nan_is_refused(self):
        broken = fixed(lambda images: classify(images) * jnp.nan)

        with self.assertRaisesRegex(ValueError, "NaN or infinite.* 20 of 20 noisy"):
            broken.certify(IMAGE, make_key(0))
        with self.assertRaisesRegex(ValueError, "NaN or infinite.* 100 of 100 noisy"):
            broken.predict(IMAGE, make_key(0))

    @parameterized.parameters(
        ({"alpha": 0.95}, "alpha=0.95 is outside"),
        ({"alpha": 0.0}, "alpha=0.0 is outside"),
        ({"n0": 0}, "n0=0 is not a positive whole number"),
        ({"n": 0}, "n=0 is not a positive whole number"),
        ({"n": 2.5}, "n=2.5 is not a positive whole number"),
        ({"n0": -1}, "n0=-1 is not a positive whole number"),
        ({"use_runner_up": "maybe"}, "use_runner_up='maybe' is not one of"),
        ({"share_draws": 0}, "share_draws=0 is not a positive whole number"),
        ({"share_draws": 1.5}, "share_draws=1.5 is not a positive whole number"),
    )
    def test_refuses_bad_settings(self, change, message):
        with self.assertRaisesRegex(ValueError, message):
            fixed(**change)

    def test_refuses_a_way_to_count_that_there_is_not(self):
        with self.assertRaisesRegex(ValueError, "backend='xmap'"):
            certify(make_key(0), IMAGE, counting=Counting(backend="xmap"))

    def test_one_vote_is_a_number_of_votes(self):
        self.assertEqual((fixed(n0=1).n0, fixed(n=2, alpha=0.3).n), (1, 2))

    @parameterized.parameters(
        (0.05, "never", 5), (0.001, "auto", 10), (0.05, "always", 6), (0.4, "never", 2)
    )
    def test_votes_that_certify_nothing_are_refused(self, alpha, runner_up, least):
        options = {"alpha": alpha, "use_runner_up": runner_up}
        fixed(n=least, **options)
        agreed = np.array([0, least - 1, 0])
        nothing = certificate_from_votes(agreed, agreed, LAPLACE.scores, **options)
        self.assertEqual(nothing.label, ABSTAIN)
        message = f"n={least - 1} votes certify nothing at .*n={least} or more"
        with self.assertRaisesRegex(ValueError, message):
            fixed(n=least - 1, **options)


class CertifyEachTest(CertificatesTestCase):
    def test_equals_certify_in_order(self):
        pairs = [(make_key(seed), (seed + 1) * IMAGE) for seed in range(3)]

        results = certify_each(iter(pairs))

        for (key, image), actual in zip(pairs, results, strict=True):
            self.assert_same(actual, certify(key, image))

    def test_no_images_give_no_certificates(self):
        self.assertEmpty(list(certify_each([])))

    def test_reads_one_pair_ahead(self):
        taken = []

        def pairs():
            for seed in range(4):
                taken.append(seed)
                yield make_key(seed), IMAGE

        results = certify_each(pairs())
        self.assertEmpty(taken)
        next(results)
        self.assertEqual(taken, [0, 1])
        next(results)
        self.assertEqual(taken, [0, 1, 2])

    def on_groups(self, pairs, devices=4, groups=2, **options):
        if jax.local_device_count() < devices:
            self.skipTest(f"Needs {devices} devices; tests/conftest.py makes eight.")
        counting = dataclasses.replace(
            ONE_DEVICE, devices=tuple(jax.local_devices()[:devices]), groups=groups
        )
        return certify_each(pairs, counting=counting, **options)

    def test_groups_of_devices_certify_the_same(self):
        # Two full batches and a part of one.
        pairs = [(make_key(seed), (seed + 1) * IMAGE) for seed in range(5)]

        results = self.on_groups(iter(pairs))

        for (key, image), actual in zip(pairs, results, strict=True):
            self.assert_same(actual, certify(key, image))

    def test_images_that_share_draws_are_certified_the_same(self):
        key, images = make_key(1), [(seed + 1) * IMAGE for seed in range(5)]
        expected = [certify(key, image) for image in images]
        pairs = [(key, image) for image in images]

        # Two stacks and a part of one, on one device and on groups of several.
        alone = certify_each(pairs, share_draws=2)
        grouped = self.on_groups(pairs, share_draws=2)

        for results in (alone, grouped):
            for wanted, actual in zip(expected, results, strict=True):
                self.assert_same(actual, wanted)

    def test_images_that_share_draws_share_a_key(self):
        pairs = [(make_key(seed), IMAGE) for seed in range(2)]

        with self.assertRaisesRegex(ValueError, "need one key"):
            list(certify_each(pairs, share_draws=2))

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
                self.assert_same(next(results), certify(key, IMAGE))
            with self.assertRaisesRegex(ValueError, "all black"):
                next(results)

    def test_refuses_groups_that_the_devices_cannot_form(self):
        with self.assertRaisesRegex(ValueError, "groups=3 does not divide 4 devices"):
            next(self.on_groups([(make_key(0), IMAGE)], groups=3))


class LayoutTest(parameterized.TestCase):
    def test_as_many_groups_as_suit_the_images(self):
        counting = Counting(block_size=8, groups=0)
        for images, share_draws in ((1, 1), (3, 1), (1_000, 1), (64, 32)):
            certifier = fixed(counting=counting, n=1_000, share_draws=share_draws)
            with mock.patch.object(votes, "choose_groups", return_value=3) as choose:
                laid_out = certifier.laid_out_for(images)

            stacks = -(-images // share_draws)
            numbers = (20 * share_draws, 1_000 * share_draws)
            choose.assert_called_once_with(len(votes.all_devices()), stacks, numbers, 8)
            self.assertEqual(laid_out.counting.groups, 3)
            self.assertEqual(laid_out.batch, 3 * share_draws)
            self.assertEqual(
                dataclasses.replace(laid_out, counting=counting), certifier
            )

    @parameterized.parameters(None, 1, 2)
    def test_groups_that_were_named_stay(self, groups):
        certifier = fixed(counting=Counting(groups=groups))
        self.assertIs(certifier.laid_out_for(100), certifier)
        self.assertEqual(certifier.batch, groups or 1)

    def test_images_that_share_draws_need_one_key(self):
        self.assertTrue(fixed(share_draws=2).one_key)
        self.assertFalse(fixed().one_key)


class PredictTest(parameterized.TestCase):
    def test_tests_the_votes_it_counts(self):
        key = make_key(5)

        result = fixed().predict(IMAGE, key)

        np.testing.assert_array_equal(result.votes, count(key, 100))
        self.assertEqual(result, prediction_from_votes(result.votes, 0.05))

    @parameterized.parameters(0.01, 0.05, 0.4)
    def test_abstains_exactly_when_the_leaders_may_be_alike(self, alpha):
        for first in range(15, 31):
            counts = np.array([30 - first, 0, first])
            p_value = stats.binomtest(first, 30, 0.5).pvalue

            result = prediction_from_votes(counts, alpha)

            self.assertAlmostEqual(result.p_value, p_value, delta=1e-12)
            self.assertEqual(result.label, 2 if p_value <= alpha else ABSTAIN)
            # At most alpha: equal will do.
            if first > 20 and result.p_value < 0.5:
                equal = prediction_from_votes(counts, result.p_value)
                self.assertEqual(equal.label, 2)

    @parameterized.parameters(0.0, 0.5, 0.95)
    def test_refuses_confidence_in_place_of_alpha(self, alpha):
        with self.assertRaisesRegex(ValueError, f"alpha={alpha} is outside"):
            fixed(alpha=alpha)
        with self.assertRaisesRegex(ValueError, f"alpha={alpha} is outside"):
            prediction_from_votes(np.array([9, 0]), alpha)


class CompilationTest(absltest.TestCase):
    def test_selection_estimation_and_all_images_share_one_program(self):
        smooth = make_smoothing("flow_laplace", 0.2, "l1")
        certify(make_key(0), IMAGE, smoothing=smooth)

        with oracles.compilations() as compiled:
            certify(make_key(1), 2 * IMAGE, smoothing=smooth, n0=7, n=33, alpha=0.1)

        self.assertEmpty(compiled)


if __name__ == "__main__":
    absltest.main()
