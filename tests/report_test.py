"""Tests of wsjax.runs.report: what is made of rows on file."""

import functools
import json
import pathlib
import shutil
import tempfile

import chex
import numpy as np
from absl.testing import absltest, parameterized

import wsjax
from wsjax import certificates, scores
from wsjax.certifiers import votes
from wsjax.runs import manifest, report, rows

OLD_RUNS = pathlib.Path(__file__).parent / "runs_of_version_0_2"


def classify(images):
    """Never asked."""
    raise AssertionError(images)


class _Folder(chex.TestCase):
    def setUp(self):
        super().setUp()
        folder = self.enter_context(tempfile.TemporaryDirectory())
        self.folder = pathlib.Path(folder)


class ReportTest(_Folder):
    """Votes on file; theorem and level from `run.json`."""

    def setUp(self):
        super().setUp()
        rng = np.random.default_rng(0)
        self.votes = [
            (rng.multinomial(50, shares), rng.multinomial(400, shares))
            for shares in rng.dirichlet(np.full(3, 0.4), 30)
        ]

    def write(self, smoothing, choice="never", num_classes=3, kind=wsjax.FixedVotes):
        """A run directory as certify.py leaves it; its certificates."""
        certifier = kind(classify, smoothing, n0=50, n=400, use_runner_up=choice)
        found = [
            votes.certificate_from_votes(
                *counts, smoothing.scores, alpha=0.05, use_runner_up=choice
            )
            for counts in self.votes
        ]
        run = manifest.record(
            self.folder,
            "certify",
            {},
            data_checksum="abc",
            certifier=certifier.recorded(),
            num_classes=num_classes,
            num_images=30,
        )
        path = self.folder / report.CERTIFICATES
        with rows.RowWriter(path, report.columns(certifier), run) as writer:
            for index, certificate in enumerate(found):
                row = report.certificate_row(
                    index, index % 3, certificate, certifier, 0.1
                )
                writer.write(**row)
        return found

    def rewrite(self, index, **cells):
        """Changes cells of the row of an image as a run would write them."""
        path = self.folder / report.CERTIFICATES
        old = rows.read_rows(path)
        run = manifest.digest(manifest.read(self.folder)["certify"])
        path.unlink()
        with rows.RowWriter(path, old.columns, run) as writer:
            for row in old.cells:
                changed = cells if row[0] == str(index) else {}
                writer.write(**{**dict(zip(old.columns, row)), **changed})

    def edit(self, change):
        """Changes the entry of `run.json`."""
        path = self.folder / "run.json"
        whole = json.loads(path.read_text())
        change(whole["certify"])
        path.write_text(json.dumps(whole))

    def as_of_version_0_2(self, smoothing, settings, choice, spread):
        """The same run as that version left it: other columns, another entry."""
        found = self.write(smoothing, choice)

        def change(entry):
            del entry["certifier"], entry["may_differ"]
            entry["spread"] = spread
            entry["config"] = {
                "smoothing": {"certificate": "tight", **settings},
                "certify": {"alpha": 0.05, "use_runner_up": choice, "n0": 50, "n": 400},
            }

        self.edit(change)
        path = self.folder / report.CERTIFICATES
        old = rows.read_rows(path)
        kept = [c for c in old.columns if c not in ("lower", "upper", "lipschitz")]
        lines = [kept] + [
            [dict(zip(old.columns, cells))[name] for name in kept]
            for cells in old.cells
        ]
        path.write_text("".join("\t".join(line) + "\n" for line in lines))
        return found

    def assert_evaluates(self, expected, run):
        np.testing.assert_allclose(
            run.found.radii, [c.radius for c in expected], rtol=1e-12
        )
        labels = [c.label for c in expected]
        np.testing.assert_array_equal(run.found.labels, labels)
        self.assertGreater(run.found.radii.max(), 0)

    @parameterized.product(choice=("never", "always", "auto"), old=(False, True))
    def test_gaussian_noise_is_evaluated_with_the_kappa_on_record(self, choice, old):
        smoothing = wsjax.make_smoothing("power_law", 0.3, "l1", image_shape=(4, 5, 1))
        if old:
            settings = {"noise": "learned_view", "sigma": 0.0, "ground_metric": "l1"}
            kappa = 1 / smoothing.scores.scale
            found = self.as_of_version_0_2(smoothing, settings, choice, kappa)
        else:
            found = self.write(smoothing, choice)
        (run,) = report.read_certified(self.folder)

        self.assert_evaluates(found, run)
        self.assertEqual(run.metric, "l1")
        self.assertEqual(run.curve.images, len(found))
        some = run.curve_of(run.indices[::2])
        self.assertEqual(some.images, len(run.indices[::2]))
        right = (run.found.labels == run.labels)[::2]
        radii = np.sort(run.found.radii[::2][right & (run.found.radii[::2] > 0)])
        np.testing.assert_array_equal(np.sort(some.radii), radii)
        bounded = [c.evidence.runner_up is not None for c in found]
        self.assertEqual(any(bounded), choice != "never")
        self.assertEqual(all(bounded), choice == "always")

    @parameterized.parameters("never", "always", "auto")
    def test_rows_may_differ_in_their_number_of_votes(self, choice):
        rng = np.random.default_rng(1)
        self.votes = [
            (rng.multinomial(50, shares), rng.multinomial(50 * (1 + n % 7), shares))
            for n, shares in enumerate(rng.dirichlet(np.full(3, 0.4), 30))
        ]
        smoothing = wsjax.make_smoothing("flow_laplace", 0.02, "l2")
        certifier = functools.partial(wsjax.PilotVotes, max_radius_loss=0.1)
        found = self.write(smoothing, choice, kind=certifier)
        _, tight = report.read_certified(self.folder)
        self.assert_evaluates(found, tight)
        numbers = rows.read_rows(self.folder / report.CERTIFICATES).ints("n")
        self.assertEqual(set(numbers), set(range(50, 400, 50)))
        np.testing.assert_array_equal(tight.found.passes, numbers + 50)

    @parameterized.parameters("tight", "published")
    def test_laplace_votes_serve_both_theorems(self, certificate):
        smoothing = wsjax.make_smoothing("flow_laplace", 0.02, "l2", certificate)
        found = self.write(smoothing)
        published, tight = report.read_certified(self.folder)
        own = {"tight": tight, "published": published}[certificate]
        self.assert_evaluates(found, own)
        self.assertTrue((published.found.radii <= tight.found.radii).all())
        self.assertLess(published.found.radii.max(), tight.found.radii.max())
        (alone,) = report.read_certified(self.folder, [certificate])
        np.testing.assert_array_equal(alone.found.radii, own.found.radii)
        self.assertEqual(alone.name, f"{self.folder.name} ({certificate})")

    @parameterized.parameters("tight", "published")
    def test_runs_from_before_there_was_a_spread_have_a_sigma(self, certificate):
        smoothing = wsjax.make_smoothing("pixel_laplace", 0.02, "l2", certificate)
        settings = {"noise": "pixel_laplace", "sigma": 0.02, "ground_metric": "l2"}
        settings["certificate"] = certificate
        found = self.as_of_version_0_2(smoothing, settings, "never", None)
        self.edit(lambda entry: entry.pop("num_classes"))
        # Runs of that time say whether to use the runner-up by a truth value.
        self.edit(lambda e: e["config"]["certify"].update(use_runner_up=False))
        (run,) = report.read_certified(self.folder, [certificate])
        self.assert_evaluates(found, run)

    def test_theorems_that_nobody_proved_are_refused(self):
        self.write(wsjax.make_smoothing("flow_uniform", 0.02, "l2"))
        with self.assertRaisesRegex(ValueError, "not 'published'.*Laplace noise only"):
            report.read_certified(self.folder, ["published"])

    def test_gaussian_runs_without_a_kappa_are_refused(self):
        smoothing = wsjax.make_smoothing("power_law", 0.3, "l1", image_shape=(4, 5, 1))
        settings = {"noise": "flow_gaussian", "sigma": 0.3, "ground_metric": "l1"}
        self.as_of_version_0_2(smoothing, settings, "never", None)
        with self.assertRaisesRegex(ValueError, "did not record the kappa.*again"):
            report.read_certified(self.folder)

    @parameterized.parameters("always", "auto")
    def test_runner_up_bounds_without_a_number_of_classes_are_refused(self, choice):
        settings = {"noise": "flow_laplace", "sigma": 0.02, "ground_metric": "l2"}
        smoothing = wsjax.make_smoothing("flow_laplace", 0.02, "l2")
        self.as_of_version_0_2(smoothing, settings, choice, None)
        self.edit(lambda entry: entry.pop("num_classes"))
        with self.assertRaisesRegex(ValueError, "number of classes.*again"):
            report.read_certified(self.folder)

    @parameterized.parameters("always", "auto")
    def test_classes_that_never_appear_share_alpha_all_the_same(self, choice):
        # Ten classes, of which votes and labels show the first three.
        self.votes = [
            tuple(np.pad(part, (0, 7)) for part in counts) for counts in self.votes
        ]
        smoothing = wsjax.make_smoothing("flow_laplace", 0.02, "l2")
        found = self.write(smoothing, choice, num_classes=10)
        _, tight = report.read_certified(self.folder)
        self.assert_evaluates(found, tight)

    # A certified row, which is wrong in one cell each time.
    @parameterized.parameters(
        ("idx", "30", "The index 30 is that of no image"),
        ("label", "3", "The label of image {} is no class"),
        ("label", "-1", "The label of image {} is no class"),
        ("predict", "2", "The class of image {} is not the selected one"),
        ("predict", "-1", "The radius of image {} is none"),
        ("selected", "3", "The class selected for image {} is none"),
        ("selected", "2", "The class of image {} is not the selected one"),
        ("radius", "-0.5", "The radius of image {} is none"),
        ("radius", "0.0001", "The radius of image {} is not what its votes certify"),
        ("radius", "9.5", "The radius of image {} is not what its bounds certify"),
        ("lower", "0.0", "The radius of image {} is not what its bounds certify"),
        ("lipschitz", "9.0", "The radius of image {} is not what its bounds certify"),
        ("correct", "{}", "The column correct is wrong about image {}"),
        ("time", "-1.0", "The time of image {} is none"),
        ("time", "inf", "The time of image {} is none"),
        ("p_lower", "0.9", "The p_lower of image {} is not what its votes bound"),
        ("runner_up", "0.1", "The runner_up of image {} is not what its votes bound"),
        ("count", "399", "The count of image {} is not that of its votes"),
        ("n", "399", "The votes of image {} do not add up to its n"),
        ("votes", "0:400,1:1", "The votes of image {} do not add up to n=400"),
        ("votes", "2:400", "The count of image {} is not that of its votes"),
        ("votes", "3:400", "no votes of 3 classes"),
        ("selection_votes", "0:51", "The selection_votes of .* {} do not add up to n0=50"),
        ("selection_votes", "2:50", "The class selected for image {} does not lead in"),
    )  # fmt: skip
    def test_rows_that_contradict_themselves_are_refused(self, column, text, message):
        found = self.write(wsjax.make_smoothing("flow_laplace", 0.02, "l2"))
        index = next(
            i
            for i, certificate in enumerate(found)
            if 0 <= certificate.label < 2 and certificate.evidence.votes.min()
        )
        report.read_certified(self.folder)
        if column == "correct":
            text = str(int(found[index].label != index % 3))
        self.rewrite(index, **{column: text})
        with self.assertRaisesRegex(
            rows.RowsError,
            f"{report.CERTIFICATES} is damaged: .*{message.format(index)}",
        ):
            report.read_certified(self.folder)

    def test_more_votes_than_the_most_are_refused_in_other_kinds(self):
        smoothing = wsjax.make_smoothing("flow_laplace", 0.02, "l2")
        self.write(
            smoothing, kind=functools.partial(wsjax.PilotVotes, max_radius_loss=0.1)
        )
        self.rewrite(0, votes="0:401", n=401, count=401)
        with self.assertRaisesRegex(rows.RowsError, "image 0 do not add up to n=400"):
            report.read_certified(self.folder)

    def test_rows_that_were_edited_by_hand_are_refused(self):
        """Even where nothing contradicts them: another label, and what follows."""
        found = self.write(wsjax.make_smoothing("flow_laplace", 0.02, "l2"))
        path = self.folder / report.CERTIFICATES
        lines = path.read_text().splitlines()
        cells = lines[1].split("\t")
        cells[1] = "2"
        cells[4] = str(int(found[0].label == 2))
        path.write_text("\n".join([lines[0], "\t".join(cells), *lines[2:]]) + "\n")
        with self.assertRaisesRegex(
            rows.RowsError, "line 2 is damaged: it was changed"
        ):
            report.read_certified(self.folder)

    def test_rows_of_another_entry_are_refused(self):
        """As after sigma was changed in `run.json`, or the file deleted and remade."""
        self.write(wsjax.make_smoothing("flow_laplace", 0.02, "l2"))
        self.edit(lambda entry: entry["certifier"]["scores"].update(scale=0.2))
        with self.assertRaisesRegex(rows.RowsError, "belongs to another run"):
            report.read_certified(self.folder)

    def test_rows_without_an_entry_are_refused(self):
        self.write(wsjax.make_smoothing("flow_laplace", 0.02, "l2"))
        (self.folder / "run.json").write_text("{}")
        with self.assertRaisesRegex(ValueError, "certificates.tsv has no entry"):
            report.read_certified(self.folder)

    def test_rows_of_a_version_in_development_are_refused(self):
        self.write(wsjax.make_smoothing("flow_laplace", 0.02, "l2"))
        self.edit(lambda entry: entry.pop("may_differ"))
        with self.assertRaisesRegex(ValueError, "0.3 in development.*again in another"):
            report.read_certified(self.folder)


class OldRunsTest(_Folder):
    """Run directories that version 0.2 wrote, with the summaries it made of them."""

    @parameterized.parameters("digits", "laplace")
    def test_certificates_are_summarized_as_before(self, name):
        folder = self.folder / name
        shutil.copytree(OLD_RUNS / name, folder)
        expected = json.loads((folder / "summary.json").read_text())

        report.show_certificates(folder)

        found = json.loads((folder / "summary.json").read_text())
        self.assertEqual(found.keys(), expected.keys())
        for run, values in expected.items():
            for key, value in values.items():
                if "radius" not in key:
                    self.assertEqual(found[run][key], value, (run, key))
                else:
                    self.assertLessEqual(found[run][key], value)
                    self.assertAlmostEqual(found[run][key], value, delta=1e-12)
            self.assertGreater(values["median_radius"], 0)

    @parameterized.parameters(
        ("certificates.tsv", "2:10000", "2:10001", "add up to n=10000"),
        (
            "certificates.tsv",
            "2:10000",
            "4:10000",
            "count of image 0 is not that of it",
        ),
        (
            "certificates.tsv",
            "2:10000",
            "1:1,2:9999",
            "count of image 0 is not that of",
        ),
        ("certificates.tsv", "2:10000", "99999999999999:10000", "no votes of"),
        (
            "certificates.tsv",
            "\t0.05148066852080314\t",
            "\t0.06\t",
            "radius of image 0",
        ),
        ("certificates.tsv", "\n45\t", "\n045\t", "line 3 is damaged: '045' is no idx"),
        ("certificates.tsv", "\n45\t", "\n٤٥\t", "line 3 is damaged: '٤٥' is no idx"),
        ("certificates.tsv", "\n45\t6\t", "\n45\t٦\t", "'label' is damaged: '٦' at id"),
        ("verdicts.tsv", "\t0.04\t", "\t0.041\t", "image 0 is not one of the run's"),
        ("verdicts.tsv", "\t1300\t", "\t1200\t", "n_used of image 0 is not that of it"),
        (
            "verdicts.tsv",
            "2:100\t",
            "3:100\t",
            "image 0 does not lead in its selection",
        ),
        ("run.json", '"n0"', '"m0"', "run.json is damaged: it lacks .*'n0'"),
        (
            "run.json",
            '"smoothing": {',
            '"smoothing": 3, "s": {',
            "run.json is damaged: it",
        ),
    )
    def test_edited_rows_are_refused(self, name, old, new, message):
        folder = self.folder / "digits"
        shutil.copytree(OLD_RUNS / "digits", folder)
        path = folder / name
        text = path.read_text()
        self.assertIn(old, text)
        path.write_text(text.replace(old, new, -1 if name == "run.json" else 1))
        with self.assertRaisesRegex(ValueError, message):
            report.read_certified(
                folder, rows_file=name if name.endswith("tsv") else report.CERTIFICATES
            )

    def test_verdicts_are_summarized_as_before(self):
        folder = self.folder / "digits"
        shutil.copytree(OLD_RUNS / "digits", folder)
        expected = json.loads((folder / "verdicts.json").read_text())

        report.show_certificates(folder, "verdicts.tsv")

        (found,) = json.loads((folder / "verdicts.json").read_text()).values()
        self.assertEqual(found["certified_accuracy"], expected["certified_accuracy"])
        for new, old in (
            ("mean_passes", "mean_votes"),
            ("median_passes", "median_votes"),
            ("passes_at_once", "votes_at_once"),
            ("times_fewer", "times_fewer"),
        ):
            self.assertEqual(found[new], expected[old])


class RowTest(chex.TestCase):
    def test_an_abstention_is_not_correct_even_if_its_first_class_is(self):
        theorem = certificates.flow_laplace(0.1, "l1")
        counts = np.array([3, 7])
        certifier = wsjax.FixedVotes(
            classify, wsjax.make_smoothing("flow_laplace", 0.1, "l1")
        )
        found = votes.certificate_from_votes(
            counts, 10 * counts[::-1], theorem, alpha=0.1
        )
        row = report.certificate_row(5, 1, found, certifier, 0.25)
        self.assertEqual(tuple(row), report.columns(certifier))
        expected = {"idx": 5, "label": 1, "predict": -1, "radius": 0.0, "time": 0.25}
        expected |= {"correct": False, "selected": 1, "count": 30, "n": 100}
        self.assertEqual(row | expected, row)
        np.testing.assert_array_equal(row["selection_votes"], counts)

    def test_a_radius_is_what_the_numbers_beside_it_certify(self):
        theorem = certificates.flow_laplace(0.1, "l1")
        found = votes.certificate_from_votes(
            np.array([9, 1]), np.array([95, 5]), theorem, alpha=0.05
        )
        certifier = wsjax.FixedVotes(
            classify, wsjax.make_smoothing("flow_laplace", 0.1, "l1")
        )
        row = report.certificate_row(0, 0, found, certifier, 1.0)
        bounds = [row[name] for name in ("lower", "upper", "lipschitz")]
        self.assertEqual(row["radius"], scores.certified_radius(*bounds))
        self.assertGreater(row["radius"], 0)
        self.assertEqual(theorem.described(), certifier.recorded()["scores"])


if __name__ == "__main__":
    absltest.main()
