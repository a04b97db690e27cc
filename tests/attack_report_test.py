"""Tests of wsjax.runs.attack_report: attacks judged, and held against certificates."""

import pathlib
import tempfile
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from wsjax import ABSTAIN, exact_distance, make_smoothing
from wsjax.attacks import AttackResult, Victim, registry, smoothed
from wsjax.runs import attack_report, manifest, report, rows, streams
from wsjax.scripts import attack


def table(folder, name, columns, entries):
    """A rows file with these values and zeros in the other columns, read back."""
    path = folder / name
    with rows.RowWriter(path, columns, "run") as writer:
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
        """Images inside, and number of images that can be compared."""
        found = attack_report.gaps(
            table(self.folder, "a.tsv", attack_report.COLUMNS, attacks),
            table(self.folder, "c.tsv", tuple(report.SHARED), certificates),
            metric,
        )
        return found.inside, len(found.indices)

    def test_a_success_below_the_radius_is_a_crossing_and_one_above_is_none(self):
        attacks = [
            {"idx": 0, "verified": 1, "l1": 0.9, "l2": 0.09},
            {"idx": 10, "verified": 1, "l1": 0.9, "l2": 0.11},
            {"idx": 20, "verified": 1, "l1": 0.9, "l2": 0.1},  # Balls are open.
        ]
        certificates = [
            {"idx": i, "label": 4, "predict": 4, "radius": 0.1} for i in (0, 10, 20)
        ]
        self.assertEqual(self.crossings(attacks, certificates), ([0], 3))

    def test_ratios_are_of_distance_to_radius(self):
        attacks = [{"idx": i, "verified": 1, "l2": 0.3 + i} for i in range(3)]
        certificates = [
            {"idx": 0, "label": 4, "predict": 4, "radius": 0.1},
            {"idx": 2, "label": 4, "predict": 4, "radius": 0.0},
        ]
        found = attack_report.gaps(
            table(self.folder, "a.tsv", attack_report.COLUMNS, attacks),
            table(self.folder, "c.tsv", tuple(report.SHARED), certificates),
            "l2",
        )
        np.testing.assert_array_equal(found.indices, [0, 2])
        np.testing.assert_allclose(found.ratios, [3.0])

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


class ReadTest(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        folder = self.enter_context(tempfile.TemporaryDirectory())
        self.folder = pathlib.Path(folder)
        self.case = attack_report.Attacked("flow", "base")
        self.run = manifest.record(
            self.folder,
            self.case.entry,
            {},
            data_checksum="abc",
            num_classes=10,
            num_images=20,
        )

    def write(self, run, **changes):
        row = dict.fromkeys(attack_report.COLUMNS, 0.0)
        row |= {"idx": 3, "label": 4, "predict": 5, "correct": 0, "success": 1}
        row |= {"verified": 1, "steps": 7, "radius": 0.5, "l1": 0.5, "l2": 0.4}
        path = self.folder / self.case.rows
        with rows.RowWriter(path, attack_report.COLUMNS, run) as writer:
            writer.write(**row | changes)

    def test_good_rows(self):
        self.write(self.run)
        self.write(self.run, idx=4, predict=ABSTAIN, verified=0, l1=np.inf)
        self.write(self.run, idx=5, predict=4, correct=1, verified=0, success=0)
        found = attack_report.read(self.folder, self.case)
        self.assertEqual(found.ints("idx").tolist(), [3, 4, 5])

    @parameterized.parameters(
        ("idx", 20), ("label", 10), ("label", -1), ("predict", 10), ("predict", -2),
        ("predict", 4), ("correct", 1), ("success", 2), ("success", 0), ("verified", 0),
        ("steps", -1), ("radius", -0.5), ("l1", -0.5), ("l2", -1.0), ("time", -1.0),
        ("radius", np.nan), ("l2", np.nan), ("mass_error", -0.1),
    )  # fmt: skip
    def test_rows_that_contradict_themselves_are_refused(self, column, value):
        self.write(self.run, **{column: value})
        with self.assertRaisesRegex(rows.RowsError, f"{self.case.rows} is damaged: "):
            attack_report.read(self.folder, self.case)

    def test_rows_of_another_run_or_of_none_are_refused(self):
        self.write("other")
        with self.assertRaisesRegex(rows.RowsError, "belongs to another run"):
            attack_report.read(self.folder, self.case)
        (self.folder / "run.json").unlink()
        with self.assertRaisesRegex(ValueError, "no entry 'attack flow' in run.json"):
            attack_report.read(self.folder, self.case)

    @parameterized.parameters(b"", b"x", b"\x93NUMPY\x01\x00", None)
    def test_a_damaged_picture_is_left_out(self, content):
        self.write(self.run)
        path = self.case.image(self.folder, 3)
        path.parent.mkdir()
        image = np.full((4, 5, 1), 0.05, np.float32)
        if content is None:
            attack_report.save_image(path, image[:2])
        else:
            path.write_bytes(content)
        found = attack_report.read(self.folder, self.case)
        examples = {3: (image, 4)}
        with self.assertLogs("wsjax", "WARNING") as logs:
            drawn = attack_report._pictures(self.folder, self.case, found, examples, 1)
        self.assertEqual(drawn, [])
        self.assertIn("000003.npy is no attacked image", logs.output[0])
        attack_report.save_image(path, image)
        (drawn,) = attack_report._pictures(self.folder, self.case, found, examples, 1)
        np.testing.assert_array_equal(drawn.adversarial, image)


class JudgeTest(parameterized.TestCase):
    def judge(self, images, moved, victim):
        keys = jax.random.split(jax.random.key(0), len(images))
        return attack_report.judge(images, moved, victim, keys=keys)

    def images(self):
        return np.random.default_rng(0).uniform(0.2, 0.6, (3, 4, 5, 1)).astype("f4")

    def test_what_is_invalid_is_repaired_before_it_is_asked_and_measured(self):
        images = self.images()
        moved = images.copy()
        moved[1] *= (moved[1].sum() - 1.5) / (moved[1].sum() - moved[1, 0, 0, 0])
        moved[1, 0, 0] = 1.5  # Above the range, of the same mass.
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

    def test_only_a_wrong_class_at_a_success_is_verified(self):
        five, two = np.arange(5), np.array([2.0] * 5)
        result = AttackResult(
            np.zeros((5, 4, 5, 1)),
            np.array([1, 1, 1, 0, 1], bool),
            np.array([0.3, 0.3, 0.3, np.inf, 0.0]),
            five,
            np.ones(5, bool),  # What the attack says of itself does not count.
        )
        predict = np.array([7, 4, ABSTAIN, 7, 7])
        judged = attack_report.Judgement(predict, *[two + i for i in range(7)])
        found = [
            attack_report.attack_row(10 + place, 4, result, judged, place, 1.23456)
            for place in range(5)
        ]
        self.assertEqual([row["verified"] for row in found], [1, 0, 0, 0, 1])
        self.assertEqual([row["correct"] for row in found], [0, 1, 0, 0, 0])
        self.assertEqual([row["success"] for row in found], [1, 1, 1, 0, 1])
        self.assertEqual([row["predict"] for row in found], predict.tolist())
        self.assertEqual([row["idx"] for row in found], [10, 11, 12, 13, 14])
        self.assertEqual(list(found[0]), list(attack_report.COLUMNS))
        names = attack_report.Judgement._fields[1:]
        self.assertEqual([found[0][name] for name in names], [2, 3, 4, 5, 6, 7, 8])
        chosen = ("label", "radius", "steps", "time")
        self.assertEqual([found[3][name] for name in chosen], [4, np.inf, 3, 1.2346])

    def test_shares_and_medians(self):
        folder = pathlib.Path(self.enter_context(tempfile.TemporaryDirectory()))
        entries = [
            {"radius": 0.0, "success": 1, "verified": 1, "predict": 3},
            {"radius": 0.25, "success": 1, "verified": 1, "l1": 0.4, "l2": 0.3}
            | {"mass_error": 0.02, "highest": 1.5},
            {"radius": 0.5, "success": 1, "verified": 0, "predict": ABSTAIN}
            | {"l1": 0.1, "l2": 0.1, "mass_error": 0.04},
            {"radius": np.inf, "success": 0, "verified": 0, "time": 2.0},
        ]
        entries = [{"idx": place, **entry} for place, entry in enumerate(entries)]
        rows = table(folder, "a.tsv", attack_report.COLUMNS, entries)
        self.assertEqual(
            attack_report._aggregate(rows),
            {
                "images": 4,
                "wrong_before": 0.25,
                "fooled": 0.75,
                "verified": 0.5,
                "abstained": 0.25,
                "nominal": 0.375,
                "l1": np.inf,  # A median of 0, .4 and two failures.
                "l2": np.inf,
                "mass_error": 0.03,
                "highest": 1.5,
                "seconds": 0.5,
            },
        )
        curve = attack_report.curve(rows, "l1", [1, 3, 7])
        self.assertEqual(curve[1], 2)
        np.testing.assert_array_equal(np.sort(curve[0]), [0.4, np.inf])
        curve = attack_report.curve(rows, "l1", range(4))
        self.assertEqual(curve[1], 4)
        np.testing.assert_array_equal(np.sort(curve[0]), [0.4, np.inf, np.inf])

    def test_curves_are_of_the_same_images(self):
        first, second = np.array([0, 10, 20]), np.array([20, 0, 5])
        np.testing.assert_array_equal(attack_report._common([first, second]), [0, 20])
        apart = attack_report._common([first, np.array([7])])
        np.testing.assert_array_equal(apart, [0, 7, 10, 20])

    def test_targets(self):
        flow, dual = registry.METHODS["flow"], registry.METHODS["dual"]
        chosen = attack_report.chosen_targets
        self.assertEqual(chosen("both", flow), ("base", "smoothed"))
        self.assertEqual(chosen("both", dual), ("base",))
        with self.assertRaisesRegex(ValueError, "attack.target='all'"):
            chosen("all", flow)
        with self.assertRaisesRegex(ValueError, r"one of \['flow', 'sinkhorn'\]"):
            chosen("smoothed", dual)


class ScriptTest(parameterized.TestCase):
    """`wsjax attack` itself."""

    def setUp(self):
        super().setUp()
        folder = self.enter_context(tempfile.TemporaryDirectory())
        self.folder = pathlib.Path(folder)

    def attack(self, indices, group_size):
        """Runs it; what the attack and the judge drew from, by index, and the rows."""
        images = {i: np.full((4, 5, 1), i / 100, np.float32) for i in range(1, 20)}
        seen = {"attack": {}, "judge": {}}

        class Examples(dict):
            def checked(self, index):
                return self[index]

        def note(name, images, keys):
            bits = map(tuple, jax.random.key_data(keys).tolist())
            those = np.rint(100 * images[:, 0, 0, 0]).astype(int).tolist()
            self.assertEmpty(set(those) & set(seen[name]))
            seen[name].update(zip(those, bits, strict=True))

        def run(images, labels, key):
            note("attack", images, key)
            return AttackResult(
                images, *(np.ones(len(images), t) for t in (bool, float, int, bool))
            )

        def judge(images, adversarial, victim, keys):
            note("judge", images, keys)
            return attack_report.Judgement(*np.ones((8, len(images))))

        case = attack_report.Attacked("flow", "smoothed")
        with mock.patch.object(attack_report, "judge", judge):
            attack.attack(
                self.folder,
                case,
                "run",
                run,
                None,
                Examples({index: (image, 1) for index, image in images.items()}),
                indices,
                seed=5,
                group_size=group_size,
            )
        return seen, rows.read_rows(self.folder / case.rows)

    def test_attack_and_verification_draw_by_image_from_streams_of_their_own(self):
        seen, written = self.attack([3, 8, 11], group_size=2)
        for name, stream in (("attack", streams.ATTACK), ("judge", streams.VERIFY)):
            key = streams.stream_key(5, stream)
            for index, bits in seen[name].items():
                own = jax.random.key_data(jax.random.fold_in(key, index))
                self.assertEqual(bits, tuple(own.tolist()))
        self.assertEqual(written.ints("idx").tolist(), [3, 8, 11])
        named = (streams.TRAIN, streams.CERTIFY, streams.ATTACK, streams.VERIFY)
        self.assertLen(set(named), 4)

    def test_a_resumed_run_draws_as_one_that_was_left_alone(self):
        whole, _ = self.attack([3, 8, 11, 12], group_size=3)
        for path in self.folder.iterdir():
            if path.is_file():
                path.unlink()
        first, _ = self.attack([3, 8], group_size=1)
        seen, written = self.attack([3, 8, 11, 12], group_size=3)
        self.assertEqual(list(seen["attack"]), [11, 12])
        for name, found in whole.items():
            self.assertEqual(first[name] | seen[name], found)
        self.assertEqual(written.ints("idx").tolist(), [3, 8, 11, 12])
        names = sorted(path.name for path in self.folder.glob("*/*.npy"))
        self.assertEqual(names, [f"{i:06d}.npy" for i in (3, 8, 11, 12)])


if __name__ == "__main__":
    absltest.main()
