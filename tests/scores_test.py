"""Tests of wsjax.scores: the theorem, by hand, in fractions and against adversaries."""

import fractions
import itertools
import math

import numpy as np
import oracles
from absl.testing import absltest, parameterized

from wsjax.scores import ABSTAIN, certified_radius, decide, lead

INF, NAN = math.inf, math.nan


def exact_radius(lower, upper, lipschitz):
    """Of finite bounds, in fractions."""
    lower, upper, lipschitz = (fractions.Fraction(x) for x in (lower, upper, lipschitz))
    return max((lower - upper) / lipschitz, fractions.Fraction(0))


class CertifiedRadiusTest(parameterized.TestCase):
    @parameterized.parameters(
        (3.0, 1.0, 2.0, 1.0),
        (3.0, 1.0, 0.5, 4.0),
        (-1.0, -3.0, 1.0, 2.0),
        (2.0, -2.0, 2.0, 2.0),
        (0.0, -0.5, 2.0, 0.25),
    )
    def test_is_the_lead_over_its_constant(self, lower, upper, lipschitz, radius):
        found = certified_radius(lower, upper, lipschitz)

        self.assertIsInstance(found, np.float64)
        self.assertLess(found, radius)
        self.assertAlmostEqual(found, radius, delta=1e-12)
        if lipschitz == 2.0:
            self.assertEqual(certified_radius(lower, upper), found)

    @parameterized.parameters((1.0, 1.0), (1.0, 2.0), (-3.0, -1.0), (0.0, 0.0))
    def test_without_a_lead_there_is_none(self, lower, upper):
        self.assertEqual(certified_radius(lower, upper), 0.0)

    @parameterized.parameters(
        (INF, 1.0, INF), (INF, -INF, INF), (0.0, -INF, INF), (-INF, -INF, 0.0),
        (INF, INF, 0.0), (-INF, 3.0, 0.0), (1.0, INF, 0.0), (-INF, INF, 0.0),
    )  # fmt: skip
    def test_infinite_bounds_are_worth_what_they_say(self, lower, upper, radius):
        self.assertEqual(certified_radius(lower, upper, 1.5), radius)

    def test_is_rounded_down(self):
        rng = np.random.default_rng(0)
        for _ in range(2_000):
            upper = float(rng.normal() * 10 ** rng.uniform(-6, 6))
            lead = abs(rng.normal()) * 10 ** rng.uniform(-16, 3)
            lower = float(upper + lead)
            lipschitz = float(rng.uniform(0.01, 2))
            found = float(certified_radius(lower, upper, lipschitz))

            self.assertLessEqual(
                fractions.Fraction(found), exact_radius(lower, upper, lipschitz)
            )

    def test_scores_may_be_off_by_a_rounding(self):
        # The two scores that were computed are wrong, both in the worse direction.
        rng, off = np.random.default_rng(1), fractions.Fraction(1, 2**46)
        for _ in range(2_000):
            lower, upper = rng.normal(size=2) * 10 ** rng.uniform(-6, 6, 2)
            lower, upper = float(lower), float(upper)
            # Leads that end by the rounding, and others.
            if rng.uniform() < 0.5:
                lower = upper + abs(upper) * 2.0 ** -rng.uniform(42, 48)
            found = fractions.Fraction(float(certified_radius(lower, upper)))

            true = [fractions.Fraction(x) for x in (lower, upper)]
            true[0] -= abs(true[0]) * off
            true[1] += abs(true[1]) * off
            self.assertLessEqual(found, exact_radius(*true, 2))

    def test_hardly_anything_is_given_away(self):
        lower, upper = (
            np.array([1.0, 1e6, 1e-6, 5.0]),
            np.array([0.5, -1e6, 1e-7, 5e-9]),
        )
        exact = (lower - upper) / 2
        np.testing.assert_allclose(certified_radius(lower, upper), exact, rtol=3e-13)

    def test_arrays_are_numbers_side_by_side(self):
        lower, upper = np.array([[1.0], [INF]]), np.array([0.5, 2.0, -INF])
        lipschitz = np.array([1.0, 2.0, 0.5])

        together = certified_radius(lower, upper, lipschitz)

        self.assertEqual((together.dtype, together.shape), (np.float64, (2, 3)))
        for i, j in np.ndindex(2, 3):
            alone = certified_radius(lower[i, 0], upper[j], lipschitz[j])
            self.assertEqual(together[i, j], alone)

    def test_refuses_what_is_no_bound_and_no_constant(self):
        for bounds in ((NAN, 1.0), (1.0, NAN), ([1.0, NAN], 0), (0, [1.0, NAN])):
            with self.assertRaisesRegex(ValueError, "hold NaN"):
                certified_radius(*bounds)
        for lipschitz in (0.0, -1.0, NAN, [1.0, 0.0]):
            with self.assertRaisesRegex(ValueError, "is not positive; 2 always holds"):
                certified_radius(1.0, 0.0, lipschitz)


class DecideTest(parameterized.TestCase):
    def test_abstentions_are_no_class_and_keep_their_number_in_files(self):
        self.assertEqual(ABSTAIN, -1)

    def test_by_hand(self):
        lower, upper = [0.5, 3.0, -1.0], [0.75, 3.5, 2.0]

        found = decide(lower, upper)

        self.assertEqual(found.label, 1)
        self.assertEqual(found.radius, certified_radius(3.0, 2.0))
        self.assertEqual(found[2:], (1, 3.0, 2.0, 2.0))
        for value, kind in zip(found, (int, float, int, float, float, float)):
            self.assertIs(type(value), kind)

    def test_constants_of_pairs_may_differ(self):
        lower = upper = np.array([0.0, 2.0, 1.0, -4.0])
        constants = np.full((4, 4), np.nan)
        # Leads of 2, 1 and 6 of class 1; the largest limits it.
        constants[1] = [0.5, 0.2, np.nan, 3.0]
        constants[1, 2] = 0.25
        found = decide(lower, upper, lipschitz=np.where(constants > 0, constants, 1))

        self.assertEqual((found.label, found[2:]), (1, (1, 2.0, -4.0, 3.0)))
        self.assertEqual(found.radius, certified_radius(2.0, -4.0, 3.0))
        self.assertAlmostEqual(found.radius, 2.0, delta=1e-12)

    def test_constants_belong_to_their_row(self):
        lower = upper = np.array([5.0, 0.0, 1.0])
        constants = np.array([[9.0, 0.5, 2.0], [7.0, 9.0, 7.0], [7.0, 7.0, 9.0]])

        found = decide(lower, upper, lipschitz=constants)

        self.assertEqual((found.upper, found.lipschitz), (1.0, 2.0))
        self.assertAlmostEqual(found.radius, 2.0, delta=1e-12)

    @parameterized.parameters(
        ([1.0, 1.0], [1.0, 1.0], 0, 1.0),
        ([1.0, 0.0], [2.0, 1.0], 0, 1.0),
        ([0.0, 0.0, 0.0], [1.0, 1.5, 2.5], 0, 2.5),
        ([-INF, -INF], [INF, INF], 0, INF),
        ([INF, INF], [INF, INF], 0, INF),
        ([2.0, 1.0, 0.0], [3.0, 2.5, 1.0], 0, 2.5),
    )
    def test_abstains_without_a_lead(self, lower, upper, own, limit):
        found = decide(lower, upper)

        self.assertEqual((found.label, found.radius), (ABSTAIN, 0.0))
        self.assertEqual((found.lower, found.upper), (lower[own], limit))

    def test_names_the_class_that_takes_the_lead(self):
        # The constants alone would name the other one.
        constants = np.array([[1.0, 1.0, 0.1], [1.0, 1.0, 1.0], [1.0, 1.0, 1.0]])
        found = decide([1.0, 0.0, 0.0], [1.0, 0.5, 3.0], lipschitz=constants)

        self.assertEqual((found.label, found.upper, found.lipschitz), (ABSTAIN, 3, 0.1))

    def test_of_several_that_may_lead_it_names_the_likeliest(self):
        found = decide([1.0, 0.0, 0.0, 0.0], [1.0, 2.0, 3.0, 0.5])
        self.assertEqual((found.label, found.upper), (ABSTAIN, 3.0))

    def test_a_tie_is_no_lead_beside_a_lead_of_next_to_nothing(self):
        own = 1.0 + 2.0**-52
        found = decide([own, 0.0, 0.0], [2.0, 1.0, own])
        self.assertEqual((found.label, found.upper), (ABSTAIN, own))

    def test_a_lead_of_next_to_nothing_has_a_label_and_no_radius(self):
        found = decide([1.0 + 2.0**-52, 0.0], [2.0, 1.0])

        self.assertEqual((found.label, found.radius), (0, 0.0))

    def test_infinite_bounds(self):
        found = decide([INF, 0.0], [INF, 1.0])
        self.assertEqual((found.label, found.radius), (0, INF))
        found = decide([1.0, -INF, -INF], [1.0, -INF, -INF])
        self.assertEqual((found.label, found.radius, found.upper), (0, INF, -INF))

    def test_the_class_may_be_chosen_before(self):
        lower, upper = [3.0, 1.0, 0.0], [4.0, 2.0, 0.5]

        self.assertEqual(decide(lower, upper, 0), decide(lower, upper))
        for selected in (1, 2):
            found = decide(lower, upper, selected)
            self.assertEqual((found.label, found.radius), (ABSTAIN, 0.0))
            self.assertEqual((found.lower, found.upper), (lower[selected], 4.0))

    def test_equals_trying_every_other_class(self):
        rng = np.random.default_rng(2)
        labels = set()
        for _ in range(300):
            classes = int(rng.integers(2, 6))
            lower = rng.normal(size=classes)
            upper = lower + rng.exponential(0.3, classes)
            constants = rng.uniform(0.1, 2, (classes, classes))
            found = decide(lower, upper, lipschitz=constants)

            own = int(lower.argmax())
            radii = {
                j: certified_radius(lower[own], upper[j], constants[own, j])
                for j in range(classes)
                if j != own
            }
            leads = all(lower[own] > upper[j] for j in radii)
            self.assertEqual(found.label, own if leads else ABSTAIN)
            self.assertEqual(found.radius, min(radii.values()) if leads else 0.0)
            # The radius is what the three numbers beside it make.
            if leads:
                self.assertEqual(found.radius, certified_radius(*found[3:]))
            labels.add(found.label)
        self.assertGreater(len(labels), 3)

    @parameterized.parameters(
        ([1.0], [2.0]), ([1.0, 2.0], [1.0, 2.0, 3.0]), ([[1.0, 2.0]], [[1.0, 2.0]]),
        ([], []),
    )  # fmt: skip
    def test_refuses_what_is_not_two_classes(self, lower, upper):
        with self.assertRaisesRegex(ValueError, "at least two classes are needed"):
            decide(lower, upper)

    @parameterized.parameters(
        ([NAN, 0.0], [1.0, 1.0]), ([0.0, 0.0], [1.0, NAN]), ([1.0, 0.0], [0.5, 1.0])
    )
    def test_refuses_nan_and_disorder(self, lower, upper):
        with self.assertRaisesRegex(ValueError, "hold NaN or are in disorder"):
            decide(lower, upper)


class LeadTest(parameterized.TestCase):
    def test_of_two_classes_it_is_what_bounds_on_all_scores_decide(self):
        for lower, upper in (
            (3.0, 1.0),
            (1.0, 1.0),
            (1.0, 3.0),
            (INF, 1.0),
            (1.0, INF),
        ):
            for lipschitz in (2.0, 0.5):
                expected = decide([lower, -INF], [INF, upper], 0, lipschitz)
                self.assertEqual(lead(0, lower, upper, lipschitz), expected)
        self.assertEqual(lead(0, 3.0, 1.0), lead(0, 3.0, 1.0, 2.0))

    def test_the_class_goes_by_its_number(self):
        found = lead(7, np.float64(3.0), np.float64(1.0))
        self.assertEqual((found.label, found.selected), (7, 7))
        self.assertEqual(found.radius, certified_radius(3.0, 1.0))
        found = lead(7, 1.0, 1.0)
        self.assertEqual((found.label, found.radius), (ABSTAIN, 0.0))
        self.assertEqual(found[2:], (7, 1.0, 1.0, 2.0))
        for value, kind in zip(found, (int, float, int, float, float, float)):
            self.assertIs(type(value), kind)

    def test_refuses_nan(self):
        with self.assertRaisesRegex(ValueError, "hold NaN"):
            lead(0, NAN, 1.0)


class TheoremTest(parameterized.TestCase):
    """Scores that are 1-Lipschitz in W keep their leader inside the radius."""

    SHAPE = (4, 4, 1)

    def image(self, rng):
        """Sparse ones: far from one another."""
        return rng.dirichlet(np.full(16, 0.15)).reshape(self.SHAPE)

    @parameterized.product(metric=("l1", "l2"), kind=("near", "far", "average"))
    def test_no_image_inside_the_radius_changes_the_answer(self, metric, kind):
        rng = np.random.default_rng(3)
        marks = [self.image(rng) for _ in range(4)]
        pairs = [(0, 1), (2, 3)]

        def scores(image):
            """Two 1-Lipschitz functions of distances to four images."""
            d = [oracles.wasserstein(image, mark, metric) for mark in marks]
            if kind == "near":
                return np.array([-min(d[i] for i in pair) for pair in pairs])
            if kind == "far":
                return np.array([max(d[i] for i in pair) for pair in pairs])
            return np.array([-np.mean([d[i] for i in pair]) for pair in pairs])

        inside = changed = 0
        for _ in range(6):
            image = self.image(rng)
            found = scores(image)
            decision = decide(found, found)
            self.assertEqual(decision.label, found.argmax())
            for other, share in itertools.product(marks, (0.7, 0.999)):
                # As near as the radius, or all the way: W is linear along the segment.
                whole = oracles.wasserstein(image, other, metric)
                for part in {min(1.0, share * decision.radius / whole), share}:
                    moved = (1 - part) * image + part * other
                    answer = scores(moved)
                    if part * whole <= decision.radius * (1 - 1e-9):
                        inside += 1
                        self.assertEqual(answer.argmax(), decision.label)
                    changed += answer.argmax() != decision.label
        self.assertGreater(inside, 30)
        self.assertGreater(changed, 3)

    @parameterized.parameters("l1", "l2")
    def test_on_the_way_to_the_other_class_it_ends_exactly_there(self, metric):
        # Scores of two images, asked at one of them: the radius is half their distance.
        rng = np.random.default_rng(4)
        one, other = self.image(rng), self.image(rng)
        distance = oracles.wasserstein(one, other, metric)

        decision = decide([0.0, -distance], [0.0, -distance])

        self.assertEqual(decision.label, 0)
        self.assertAlmostEqual(decision.radius, distance / 2, delta=1e-12)
        for part, expected in ((0.499, 0), (0.501, 1)):
            moved = (1 - part) * one + part * other
            scores = [
                -oracles.wasserstein(moved, mark, metric) for mark in (one, other)
            ]
            self.assertEqual(np.argmax(scores), expected)


if __name__ == "__main__":
    absltest.main()
