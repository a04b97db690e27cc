"""Tests of wsjax.evaluation, on cases worked out by hand."""

import numpy as np
from absl.testing import absltest, parameterized

from wsjax import ABSTAIN
from wsjax.certifiers.base import Outcomes
from wsjax.evaluation import certified_accuracy, ladder, published_scores, summarize

# Right with a large and a small radius, wrong, abstained, right again.
LABELS = np.array([0, 1, 2, 1, 0])
CERTIFIED = np.array([0, 1, 0, ABSTAIN, 0])
RADII = np.array([0.04, 0.01, 0.05, 0.0, 0.02])
PREDICTIONS = np.array([0, 1, 0, ABSTAIN, ABSTAIN])
VOTES = np.array([[98, 1, 1], [20, 80, 0], [90, 0, 10], [50, 50, 0], [70, 20, 10]])


FOUND = Outcomes(
    "tight", CERTIFIED, RADII, PREDICTIONS, np.array([100, 50, 100, 20, 30]), 120, VOTES
)


class SummarizeTest(absltest.TestCase):
    def test_by_hand(self):
        summary = summarize(LABELS, FOUND)

        self.assertEqual(summary.images, 5)
        self.assertEqual(summary.accuracy, 2 / 5)
        self.assertEqual(summary.abstained, 2 / 5)
        base_accuracy = (0.98 + 0.8 + 0.1 + 0.5 + 0.7) / 5
        self.assertAlmostEqual(summary.base_accuracy, base_accuracy, places=12)
        self.assertEqual(summary.median_radius, 0.01)  # Of -1, 0, .01, .02, .04.
        self.assertAlmostEqual(summary.mean_radius, 0.07 / 5, places=12)
        self.assertEqual(summary.certified, 3 / 5)
        self.assertEqual(summary.mean_passes, 60)
        self.assertEqual(summary.median_passes, 50)
        self.assertEqual((summary.passes_at_once, summary.times_fewer), (120, 2))

    def test_an_even_number_of_images_takes_the_middle_of_two(self):
        four = (a[:4] for a in (CERTIFIED, RADII, PREDICTIONS))

        summary = summarize(LABELS[:4], Outcomes("", *four))

        self.assertAlmostEqual(summary.median_radius, 0.005)  # Of -1, 0, .01, .04.

    def test_labels_that_are_no_classes_are_refused(self):
        plain = FOUND._replace(votes=None)
        for label, found, message in (
            (3, FOUND, r"Image 1 has the label 3.*from 0 to 2 \(2 such labels\)"),
            (-1, FOUND, "the label -1"),
            (-1, plain, "the label -1.*from 0 "),
        ):
            labels = np.array([0, label, 2, label, 0])
            with self.assertRaisesRegex(ValueError, message):
                summarize(labels, found)
        summarize(np.array([0, 3, 2, 3, 0]), plain)  # How many there are is unknown.

    def test_votes_may_differ_in_number(self):
        votes, nothing = np.array([[1, 1], [30, 10]]), np.zeros(2)

        found = Outcomes("", nothing, nothing, nothing, votes=votes)

        base_accuracy = summarize(np.array([0, 1]), found).base_accuracy
        self.assertAlmostEqual(base_accuracy, (1 / 2 + 1 / 4) / 2)

    def test_what_was_not_counted_is_left_out(self):
        plain = FOUND._replace(votes=None, passes=None, most_passes=None)

        summary = summarize(LABELS, plain)

        expected = summarize(LABELS, FOUND)._asdict() | dict.fromkeys(
            (
                "base_accuracy", "mean_passes", "median_passes", "passes_at_once",
                "times_fewer",
            )
        )  # fmt: skip
        self.assertEqual(summary._asdict(), expected)
        all_votes = summarize(LABELS, FOUND._replace(most_passes=None))
        self.assertEqual((all_votes.mean_passes, all_votes.times_fewer), (60, None))

    def test_right_at_radius_zero_is_not_certified(self):
        zero = np.array([0])

        summary = summarize(zero, Outcomes("", zero, np.array([0.0]), zero))

        self.assertEqual((summary.certified, summary.accuracy), (0.0, 1.0))

    def test_values_are_plain_numbers(self):
        summary = summarize(LABELS, FOUND)

        for name, value in summary._asdict().items():
            whole = name in ("images", "passes_at_once")
            self.assertIs(type(value), int if whole else float)

    def test_refuses_an_empty_run(self):
        nothing = np.zeros(0, int)
        with self.assertRaisesRegex(ValueError, "no rows to summarize"):
            summarize(nothing, Outcomes("", nothing, nothing, nothing))


class ScoresTest(parameterized.TestCase):
    def test_wrong_classes_count_as_minus_one_and_abstentions_as_nothing(self):
        np.testing.assert_array_equal(
            published_scores(LABELS, CERTIFIED, RADII), [0.04, 0.01, -1.0, 0.0, 0.02]
        )

    @parameterized.parameters(
        (0.0, 3 / 5), (0.005, 3 / 5), (0.01, 3 / 5), (0.010001, 2 / 5), (0.02, 2 / 5),
        (0.04, 1 / 5), (0.05, 0.0),
    )  # fmt: skip
    def test_certified_accuracy_counts_right_images_from_the_radius_on(self, at, share):
        curve = certified_accuracy(LABELS, CERTIFIED, RADII, [at])

        np.testing.assert_array_equal(curve, [share])

    def test_certified_accuracy_is_a_falling_curve(self):
        rng = np.random.default_rng(0)
        labels, certified = rng.integers(-1, 3, (2, 50))
        radii, at = rng.uniform(size=50), np.linspace(0, 1, 30)

        curve = certified_accuracy(abs(labels), certified, radii, at)

        self.assertEqual(curve.shape, (30,))
        self.assertTrue((np.diff(curve) <= 0).all())
        for share, radius in zip(curve, at):
            right = [
                label == answer and r > 0 and r >= radius
                for label, answer, r in zip(abs(labels), certified, radii)
            ]
            self.assertAlmostEqual(share, np.mean(right))

    def test_at_zero_an_image_has_to_be_certified(self):
        curve = certified_accuracy(np.array([1]), np.array([1]), np.array([0.0]), [0.0])

        np.testing.assert_array_equal(curve, [0.0])


class LadderTest(parameterized.TestCase):
    @parameterized.parameters(
        (0.1, 6, [0, 0.02, 0.04, 0.06, 0.08, 0.1]),
        (0.06, 6, [0, 0.01, 0.02, 0.03, 0.04, 0.05, 0.06]),
        (0.055, 6, [0, 0.01, 0.02, 0.03, 0.04, 0.05]),
        (0.1187, 6, [0, 0.02, 0.04, 0.06, 0.08, 0.1]),
        (0.149, 6, [0, 0.05, 0.1]),
        (0.12, 6, [0, 0.02, 0.04, 0.06, 0.08, 0.1, 0.12]),
        (0.00068, 6, [0, 0.0002, 0.0004, 0.0006]),
        (40.0, 4, [0, 10, 20, 30, 40]),
        (41.0, 4, [0, 20, 40]),
    )
    def test_round_steps_up_to_the_largest(self, largest, rungs, expected):
        np.testing.assert_allclose(ladder(largest, rungs), expected, atol=1e-15)

    @parameterized.parameters(0.0, -1.0, float("nan"))
    def test_nothing_certified_leaves_zero(self, largest):
        np.testing.assert_array_equal(ladder(largest), [0.0])

    def test_never_passes_the_largest_nor_has_too_many_rungs(self):
        for largest in 10 ** np.random.default_rng(1).uniform(-6, 3, 300):
            steps = ladder(largest)
            self.assertLessEqual(steps[-1], largest * (1 + 1e-8))
            self.assertBetween(len(steps), 2, 7)
            self.assertGreater(steps[-1], 0.5 * largest)


if __name__ == "__main__":
    absltest.main()
