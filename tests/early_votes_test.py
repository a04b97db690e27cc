"""Tests of certifiers that stop early: wsjax.certifiers.at_radii and .pilot."""

import dataclasses
import itertools
import math
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import oracles
from absl.testing import absltest, parameterized
from scipy import stats

from wsjax import (
    ABSTAIN,
    Counting,
    FixedVotes,
    PilotVotes,
    VotesAtRadii,
    make_key,
    make_smoothing,
    sequential,
    votes,
)
from wsjax.certifiers.at_radii import check_radii
from wsjax.certifiers.votes import certificate_from_votes

SHAPE = (1, 4, 1)
IMAGE = np.full(SHAPE, 0.25, np.float32)
WEIGHTS = np.array([0.0, 0.0, 1.0, 1.0], np.float32).reshape(SHAPE)
LAPLACE = make_smoothing("flow_laplace", 0.1, "l1")
ONE_DEVICE = Counting(devices=tuple(jax.local_devices()[:1]))
SIZES = {"n0": 60, "n": 600, "alpha": 0.05}
RADII = (0.03, 0.06, 0.12)
MARGINS = (-0.1, -0.001, 0.005, 0.05, 0.075, 0.11, 0.3)


def classify(images):
    """On the bright side; the step feels one edge, so the margin is the exact radius.

    A third class never wins.
    """
    lean = jnp.sum(WEIGHTS * images, axis=(1, 2, 3)) - 0.5
    return jnp.stack([-lean, lean, -10 - lean**2], axis=-1)


def leaning(margin):
    """An image that the classifier puts `margin` away from its border."""
    return IMAGE + np.float32(margin / 2) * (2 * WEIGHTS - 1)


def keys(count, seed=0):
    return list(jax.random.split(make_key(seed), count))


PAIRS = list(zip(keys(len(MARGINS)), map(leaning, MARGINS)))


def at_radii(classify=classify, counting=ONE_DEVICE, **options):
    usual = {"radii": RADII, "first_look": 20, **SIZES}
    return VotesAtRadii(classify, LAPLACE, counting=counting, **(usual | options))


def each(method, pairs, **options):
    """Results of `certify_each` or `predict_each` for pairs `(key, image)`."""
    pairs, again = itertools.tee(pairs)
    return method((image for _, image in pairs), (key for key, _ in again), **options)


@jax.jit
def many_draws(key, image):
    noisy = jax.vmap(lambda i: LAPLACE.perturb(jax.random.fold_in(key, i), image))
    return jnp.argmax(classify(noisy(jnp.arange(1_000))), axis=-1)


def draws(key, image, n):
    """`[n]` the class that each draw votes for."""
    return np.asarray(many_draws(key, image))[:n]


def counted(classes):
    return np.bincount(classes, minlength=3)


class CheckRadiiTest(parameterized.TestCase):
    def test_gives_the_probabilities_that_certify(self):
        scale = 0.1 / math.sqrt(2)
        expected = 1 - 0.5 * np.exp(-np.array(RADII) / scale)
        np.testing.assert_allclose(
            check_radii(RADII, LAPLACE.scores), expected, rtol=1e-9
        )

    @parameterized.parameters(((),), ((0.1, 0.05),), ((0.1, 0.1),))
    def test_refuses_disorder(self, radii):
        with self.assertRaisesRegex(ValueError, "not an increasing list"):
            check_radii(radii, LAPLACE.scores)

    def test_refuses_what_is_no_radius_or_out_of_reach(self):
        with self.assertRaisesRegex(ValueError, "radius=-0.1 is not a positive"):
            check_radii((-0.1, 0.1), LAPLACE.scores)
        uniform = make_smoothing("flow_uniform", 0.1, "l1")
        with self.assertRaisesRegex(ValueError, "radius=0.2 is out of reach"):
            check_radii((0.1, 0.2), uniform.scores)


class CertifyAtTest(parameterized.TestCase):
    def expected(self, key, image, radii=RADII):
        """A certificate worked out radius by radius, on draws made one by one."""
        key_select, key_estimate = jax.random.split(key)
        n0, n, alpha = SIZES["n0"], SIZES["n"], SIZES["alpha"]
        chosen, fresh = draws(key_select, image, n0), draws(key_estimate, image, n)
        thresholds = [LAPLACE.scores.probability_for(radius) for radius in radii]
        for t in (20, 40, 60):
            selection = counted(chosen[:t])
            first = selection.max()
            if sequential.leading_class_p_value(
                selection, n0
            ) <= alpha or sequential.out_of_reach(
                first, t, thresholds[0], n=n, alpha=alpha, beta=alpha
            ):
                break
        selected = int(selection.argmax())
        reached, t = 0, 20
        moments = (20, 40, 60, 80, 120, 160, 240, 320, 480, n)
        while reached < len(radii):
            decision = sequential.decide(
                int(np.sum(fresh[:t] == selected)), t, thresholds[reached], n=n,
                alpha=alpha,
            )  # fmt: skip
            if decision == sequential.CERTIFIED:
                reached += 1
            elif decision == sequential.GIVEN_UP:
                break
            else:
                t = next(u for u in moments if u > t)
        return (
            selected if reached else ABSTAIN,
            radii[reached - 1] if reached else 0.0,
            selected,
            selection.tolist(),
            counted(fresh[:t]).tolist(),
        )

    def found(self, verdict):
        chosen, fresh = verdict.evidence
        return (*verdict[:3], chosen.tolist(), fresh.tolist())

    def test_decides_on_beginnings_of_the_draws(self):
        found = [
            self.found(verdict) for verdict in each(at_radii().certify_each, PAIRS)
        ]
        self.assertEqual(found, [self.expected(*pair) for pair in PAIRS])
        # Something of everything.
        self.assertEqual({v[1] for v in found}, {0.0, *RADII})
        used = {sum(v[4]) for v in found}
        self.assertLess(min(used), 100)
        self.assertEqual(max(used), 600)
        self.assertIn(0, [v[0] for v in found])

    def test_one_image_is_as_good_as_many(self):
        several = each(at_radii().certify_each, PAIRS)
        for (key, image), expected in zip(PAIRS, several, strict=True):
            alone = at_radii().certify(image, key)
            self.assertEqual(self.found(alone), self.found(expected))

    @parameterized.parameters(
        {"block_size": 7},
        {"devices": tuple(jax.local_devices()[:3])},
        {"devices": tuple(jax.local_devices()[:2]), "backend": "shard_map"},
    )
    def test_blocks_and_devices_change_nothing(self, **counting):
        key, image = PAIRS[4]
        expected = self.expected(key, image)
        counting = dataclasses.replace(ONE_DEVICE, **counting)
        found = at_radii(counting=counting).certify(image, key)
        self.assertEqual(self.found(found), expected)

    def test_votes_that_certify_no_radius_are_refused(self):
        least = next(
            n
            for n in range(1, 100)
            if sequential.decide(
                n, n, LAPLACE.scores.probability_for(0.03), n=n, alpha=0.05
            )
            == sequential.CERTIFIED
        )
        at_radii(n=least, n0=5, first_look=2)  # The larger radii may be out of reach.
        message = f"n={least - 1} votes do not certify a radius of 0.03 at alpha=0.05"
        with self.assertRaisesRegex(ValueError, message):
            at_radii(n=least - 1, n0=5, first_look=2)

    def test_no_block_is_larger_than_a_share_of_the_first_look(self):
        sizes = []

        count_votes = votes.count_votes

        def spy(*args, block_size, **kwargs):
            sizes.append(block_size)
            return count_votes(*args, block_size=block_size, **kwargs)

        with mock.patch.object(votes, "count_votes", spy):
            for options, expected in (
                ({}, 20),
                ({"block_size": 7}, 7),
                ({"block_size": 1_000}, 20),
                ({"devices": tuple(jax.local_devices()[:3])}, 7),
            ):
                sizes.clear()
                key, image = PAIRS[-1]
                counting = dataclasses.replace(ONE_DEVICE, **options)
                at_radii(counting=counting).certify(image, key)
                self.assertEqual(set(sizes), {expected})

    @parameterized.parameters(
        # Decisions at the looks, for each of three radii: 1 certified, -1 given up.
        ([(0, 1, 0), (0, 0, 0), (1, 0, -1)], 2, 3),
        ([(0, 1, 1), (1, 0, 0)], 3, 2),
        ([(-1, 1, 1)], 0, 1),
        ([(1, -1, 1)], 1, 1),
        ([(1, 0, -1), (-1, 1, 0), (0, 0, -1)], 2, 3),
        ([(1, 1, 1)], 3, 1),
    )
    def test_the_smallest_radius_comes_first(self, decisions, reached, looked):
        with mock.patch.object(
            sequential, "decide", side_effect=list(map(np.array, decisions))
        ) as decide:
            key, image = PAIRS[-1]
            found = at_radii().certify(image, key)
        self.assertEqual(found.radius, (0.0, *RADII)[reached])
        self.assertEqual(found.label, 1 if reached else ABSTAIN)
        self.assertEqual(decide.call_count, looked)
        self.assertEqual(found.evidence.votes.sum(), (20, 40, 60)[looked - 1])

    def test_results_before_a_bad_image_are_not_lost(self):
        for bad in (np.zeros(SHAPE, np.float32), np.full(SHAPE, np.nan, np.float32)):
            pairs = [*PAIRS[2:5], (make_key(1), bad), *PAIRS[:2]]
            results = each(at_radii().certify_each, pairs)
            for pair in PAIRS[2:5]:
                self.assertEqual(self.found(next(results)), self.expected(*pair))
            with self.assertRaisesRegex(ValueError, "all black|NaN"):
                next(results)

    def test_a_classifier_of_nan_is_refused_after_the_results_before(self):
        # The images at work beside it take longer than the one that fails.
        good = [(key, leaning(0.06)) for key in keys(2)]
        broken = (make_key(2), np.full(SHAPE, 1e-6, np.float32))

        def classify_or_not(images):
            dim = jnp.sum(images, axis=(1, 2, 3), keepdims=True)[:, 0, 0] < 0.5
            return jnp.where(dim, jnp.nan, classify(images))

        results = each(at_radii(classify_or_not).certify_each, [*good, broken, *good])
        for pair in good:
            self.assertEqual(self.found(next(results)), self.expected(*pair))
        with self.assertRaisesRegex(ValueError, "NaN or infinite logits"):
            next(results)

    def test_no_images_give_no_verdicts_and_few_are_read_ahead(self):
        self.assertEmpty(list(at_radii().certify_each([], [])))
        read = []

        def pairs():
            for number in itertools.count():
                read.append(number)
                yield PAIRS[-1]

        results = each(at_radii().certify_each, pairs())
        self.assertEmpty(read)
        for done in range(1, 6):
            next(results)
            self.assertLessEqual(len(read), done + 3)

    @parameterized.parameters(
        ({"radii": ()}, "not an increasing list"),
        ({"radii": ("0.1",)}, "not a list of numbers"),
        ({"radii": (1e3,)}, "radius=1000.0 is out of reach"),
        ({"n": 0}, "n=0 is not a positive whole number"),
        ({"alpha": 0.95}, "95% confidence is alpha=0.05"),
        ({"beta": 0.7}, "beta=0.7 is outside"),
        ({"first_look": 0}, "first_look=0 is not a positive"),
        ({"n0": -1}, "n0=-1 is not a positive"),
    )
    def test_refuses_bad_settings(self, change, message):
        with self.assertRaisesRegex(ValueError, message):
            at_radii(**change)


class PredictEarlyTest(parameterized.TestCase):
    def test_stops_when_the_votes_are_clear(self):
        n, alpha = SIZES["n"], SIZES["alpha"]
        fixed = FixedVotes(classify, LAPLACE, counting=ONE_DEVICE, **SIZES)
        used = []
        for (key, image), found, again in zip(
            PAIRS,
            each(at_radii().predict_each, PAIRS),
            each(fixed.predict_each, PAIRS, first_look=20),
            strict=True,
        ):
            classes = draws(key, image, n)
            for t in (20, 40, 60, 80, 120, 160, 240, 320, 480, 600):
                counts = counted(classes[:t])
                p_value = sequential.leading_class_p_value(counts, n)
                if p_value <= alpha:
                    break
            label = int(counts.argmax()) if p_value <= alpha else ABSTAIN
            self.assertEqual((found.label, found.p_value), (label, p_value))
            np.testing.assert_array_equal(found.votes, counts)
            np.testing.assert_array_equal(again.votes, counts)
            used.append(t)
            alone = at_radii().predict(image, key)
            np.testing.assert_array_equal(alone.votes, counts)
            # Clear answers are the same with all votes.
            at_once = fixed.predict(image, key)
            self.assertEqual(at_once.votes.sum(), n)
            if found.label != ABSTAIN:
                self.assertEqual(at_once.label, found.label)
        self.assertEqual((min(used), max(used)), (20, n))

    def test_refuses_bad_settings(self):
        with self.assertRaisesRegex(ValueError, "first_look=-1"):
            fixed = FixedVotes(classify, LAPLACE, counting=ONE_DEVICE, **SIZES)
            each(fixed.predict_each, PAIRS, first_look=-1)


class PilotTest(parameterized.TestCase):
    def pilot(self, n, max_radius_loss=0.2, use_runner_up="never", n0=60):
        return PilotVotes(
            classify, LAPLACE, n0=n0, n=n, alpha=0.05, counting=ONE_DEVICE,
            max_radius_loss=max_radius_loss, use_runner_up=use_runner_up,
        )  # fmt: skip

    @parameterized.parameters("never", "auto")
    def test_the_selection_votes_choose_how_many_follow(self, use_runner_up):
        pilot = self.pilot(1_000, use_runner_up=use_runner_up)
        numbers = set()
        for (key, image), certificate in zip(
            PAIRS, each(pilot.certify_each, PAIRS), strict=True
        ):
            key_select, key_estimate = jax.random.split(key)
            selection = counted(draws(key_select, image, 60))
            n = sequential.choose_n(
                int(selection.max()), 60, n_max=1_000, radius=LAPLACE.scores.radius,
                max_loss=0.2, alpha=0.05, pilot_alpha=0.05,
            )  # fmt: skip
            fresh = counted(draws(key_estimate, image, n))
            expected = certificate_from_votes(
                selection, fresh, LAPLACE.scores, alpha=0.05,
                use_runner_up=use_runner_up,
            )  # fmt: skip
            self.assertEqual(certificate[:-1], expected[:-1])
            for one, other in zip(certificate.evidence, expected.evidence, strict=True):
                np.testing.assert_array_equal(one, other)
            numbers.add(n)
        self.assertGreater(len(numbers), 1)

    def test_hardly_any_loss_takes_the_votes_of_certify(self):
        fixed = FixedVotes(
            classify, LAPLACE, n0=60, n=300, alpha=0.05, counting=ONE_DEVICE
        )
        for one, other in zip(
            each(self.pilot(300, 1e-9).certify_each, PAIRS),
            each(fixed.certify_each, PAIRS),
            strict=True,
        ):
            # Where nothing can be certified with all votes there is nothing to lose.
            if other.radius > 0:
                np.testing.assert_array_equal(one.evidence.votes, other.evidence.votes)
                self.assertEqual(one.radius, other.radius)

    @parameterized.parameters(0, -0.1, 1.0, math.nan)
    def test_refuses_bad_losses(self, loss):
        with self.assertRaisesRegex(ValueError, r"outside \(0, 1\)"):
            self.pilot(9, loss)

    def test_refuses_what_votes_of_a_fixed_number_refuse(self):
        for change in ({"alpha": 0.95}, {"n0": 0}, {"use_runner_up": "maybe"}):
            with self.assertRaisesRegex(ValueError, f"{next(iter(change))}="):
                dataclasses.replace(self.pilot(9), **change)

    def test_refuses_shared_draws(self):
        with self.assertRaisesRegex(ValueError, "a number of votes of its own"):
            dataclasses.replace(self.pilot(9), share_draws=2)


class CoverageTest(parameterized.TestCase):
    """Shares of wrong certificates among many, for a classifier of known votes."""

    def each(self, method, p, runs, seed, **options):
        rng = np.random.default_rng(seed)
        with mock.patch.object(
            votes, "count_votes", lambda *_, n, **__: rng.multinomial(n, p)
        ):
            # Nothing is drawn with it; keys of JAX's own kind split faster.
            pairs = itertools.repeat((jax.random.key(0), IMAGE), runs)
            return list(each(method, pairs, **options))

    @parameterized.product(
        p=((0.9, 0.1, 0.0), (0.55, 0.25, 0.2), (0.4, 0.35, 0.25), (0.985, 0.015, 0.0)),
        below=(0, 3),
    )
    def test_too_large_radii_are_certified_with_probability_at_most_alpha(
        self, p, below
    ):
        alpha, runs, (first, *_) = 0.1, 250, p
        # All of the radii from number `below` on are too large, the first barely.
        true = max(float(LAPLACE.scores.radius(first)), 1e-4)
        rising = 1.00001 * true * np.array([1.0, 1.02, 1.1, 1.5])
        radii = (*(true * np.array([0.5, 0.8, 0.97])[:below]), *rising)

        certifier = at_radii(radii=radii, n0=40, n=400, alpha=alpha, first_look=10)
        found = self.each(certifier.certify_each, p, runs, 0)

        # Of a class less likely than 1/2, nothing is true.
        wrong = sum(
            v.radius > (true if v.selected == 0 and first > 0.5 else 0) for v in found
        )
        self.assertLessEqual(wrong, oracles.failures_allowed(runs, alpha))

    def test_certificates_do_fail_sometimes(self):
        # So the test above has something to count.
        alpha, runs = 0.1, 250
        true = float(LAPLACE.scores.radius(0.9))
        certifier = at_radii(
            radii=(1.00001 * true,), n0=40, n=400, alpha=alpha, beta=1e-9, first_look=5
        )
        found = self.each(certifier.certify_each, (0.9, 0.1), runs, 1)
        wrong = sum(v.radius > true for v in found)
        self.assertGreater(wrong, 0.2 * alpha * runs)

    @parameterized.parameters((0.9, 0.1), (0.7, 0.3), (0.985, 0.015))
    def test_radii_within_reach_are_found(self, *p):
        alpha, runs = 0.05, 150
        true = float(LAPLACE.scores.radius(p[0]))
        certifier = at_radii(
            radii=(0.3 * true, 0.6 * true), n0=40, n=2_000, alpha=alpha, first_look=10
        )
        found = self.each(certifier.certify_each, p, runs, 2)
        # Lost to `beta`, at each of two radii, or to a bad selection: about nothing.
        missed = sum(v.radius < 0.6 * true for v in found)
        allowed = 2 * alpha + stats.binom.cdf(20, 40, p[0])
        self.assertLessEqual(missed, oracles.failures_allowed(runs, allowed))
        self.assertLess(np.mean([v.evidence.votes.sum() for v in found]), 1_200)

    @parameterized.parameters((0.34, 0.33, 0.33), (0.5, 0.49, 0.01), (0.52, 0.48, 0.0))
    def test_predictions_are_wrong_with_probability_at_most_alpha(self, *p):
        alpha, runs = 0.1, 250
        certifier = at_radii(n=400, alpha=alpha, first_look=5)
        found = self.each(certifier.predict_each, p, runs, 3)
        wrong = sum(prediction.label > 0 for prediction in found)
        self.assertLessEqual(wrong, oracles.failures_allowed(runs, alpha))


if __name__ == "__main__":
    absltest.main()
