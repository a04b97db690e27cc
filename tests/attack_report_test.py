"""Tests of wsjax.runs.attack_report: attacks judged, and held against certificates."""

import pathlib
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from wsjax import ABSTAIN, exact_distance, make_smoothing
from wsjax.attacks import Victim, registry, smoothed
from wsjax.runs import attack_report, report, rows


def table(folder, name, columns, entries):
    """A rows file with these values and zeros in the other columns, read back."""
    path = folder / name
    with rows.RowWriter(path, columns) as writer:
        for entry in entries:
            writer.write(**{**dict.fromkeys(columns, 0), **entry})
    return rows.read_rows(path)


class CrossingsTest(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)

    def crossings(self, attacks, certificates, metric="l2"):
        return attack_report.crossings(
            table(self.folder, "a.tsv", attack_report.COLUMNS, attacks),
            table(self.folder, "c.tsv", report.CERTIFICATE_COLUMNS, certificates),
            metric,
        )

    def test_a_success_below_the_radius_is_a_crossing_and_one_above_is_none(self):
        attacks = [
            {"idx": 0, "verified": 1, "l1": 0.9, "l2": 0.09},
            {"idx": 10, "verified": 1, "l1": 0.9, "l2": 0.11},
        ]
        certificates = [
            {"idx": i, "label": 4, "predict": 4, "radius": 0.1} for i in (0, 10, 20)
        ]
        self.assertEqual(self.crossings(attacks, certificates), ([0], 2))

    def test_the_metric_of_the_radii_is_the_one_compared(self):
        attacks = [{"idx": 0, "verified": 1, "l1": 0.9, "l2": 0.09}]
        certificates = [{"idx": 0, "label": 4, "predict": 4, "radius": 0.1}]
        self.assertEqual(self.crossings(attacks, certificates, "l1"), ([], 1))

    @parameterized.named_parameters(
        ("not_verified", {"verified": 0}, {}),
        ("another_class_was_certified", {}, {"predict": 3}),
        ("nothing_was_certified", {}, {"predict": -1, "radius": 0.0}),
        ("another_image", {"idx": 5}, {}),
    )
    def test_only_verified_attacks_on_right_certificates_count(self, attack, row):
        attacks = [{"idx": 0, "verified": 1, "l1": 0.01, "l2": 0.01, **attack}]
        certificates = [{"idx": 0, "label": 4, "predict": 4, "radius": 0.1, **row}]
        self.assertEqual(self.crossings(attacks, certificates), ([], 0))


class JudgeTest(parameterized.TestCase):
    def judge(self, images, moved, victim):
        keys = jax.random.split(jax.random.key(0), len(images))
        return attack_report.judge(images, moved, victim, keys=keys)

    def images(self):
        return np.random.default_rng(0).uniform(0.2, 0.6, (3, 4, 5, 1)).astype("f4")

    def test_what_is_invalid_is_repaired_before_it_is_asked_and_measured(self):
        images = self.images()
        moved = images.copy()
        moved[1, 0, 0] = 1.5  # Above the range.
        moved[2] *= 0.5  # Without half of its mass.
        seen = []

        def classify(batch):
            jax.debug.callback(lambda points: seen.append(np.asarray(points)), batch)
            return jnp.stack([batch.sum((1, 2, 3)), jnp.full(len(batch), 1e3)], -1)

        judged = self.judge(images, moved, Victim(classify))

        np.testing.assert_array_equal(judged.predict, 1)
        asked = seen[-1]
        self.assertLessEqual(asked.max(), 1)
        np.testing.assert_allclose(
            asked.sum((1, 2, 3)), images.sum((1, 2, 3)), rtol=1e-5
        )
        np.testing.assert_array_equal(asked[0], images[0])
        np.testing.assert_allclose(judged.mass_error[2], 0.5, rtol=1e-5)
        self.assertAlmostEqual(judged.highest[1], 1.5)
        # Rescaled to its mass the last image is the original again.
        np.testing.assert_allclose(judged.raw_l1[[0, 2]], 0, atol=1e-6)
        for place, point in enumerate(asked):
            for metric in ("l1", "l2"):
                exact = exact_distance(images[place], point, metric)
                self.assertAlmostEqual(
                    getattr(judged, metric)[place], exact, delta=1e-5
                )

    def test_a_smoothed_classifier_can_abstain(self):
        images = self.images()

        def coin(batch):
            return jnp.stack([batch[:, 0, 0, 0], batch[:, 3, 4, 0]], -1)

        images[:, 3, 4] = images[:, 0, 0]
        noise = make_smoothing("flow_laplace", 0.05, "l2")
        victim = smoothed(coin, noise, n=200, alpha=0.05)
        judged = self.judge(images, images, victim)
        self.assertIn(ABSTAIN, judged.predict.tolist())

    def test_targets(self):
        flow, dual = registry.METHODS["flow"], registry.METHODS["dual"]
        chosen = attack_report.chosen_targets
        self.assertEqual(chosen("both", flow), ("base", "smoothed"))
        self.assertEqual(chosen("both", dual), ("base",))
        with self.assertRaisesRegex(ValueError, "attack.target='all'"):
            chosen("all", flow)
        with self.assertRaisesRegex(ValueError, r"one of \['flow', 'sinkhorn'\]"):
            chosen("smoothed", dual)


if __name__ == "__main__":
    absltest.main()
