"""Tests of the scripts as programs: train.py, certify.py and the report."""

import json
import pathlib
import tempfile

import chex
import jax
import numpy as np
import tiny_runs
from absl.testing import absltest
from matplotlib import image as images

import wsjax
from wsjax import confidence, data
from wsjax.runs import config, experiment, manifest, report, streams
from wsjax.runs.rows import read_rows

# Sends the process SIGTERM as it has written the row of image 6.
STOPPED = """
import signal
from wsjax.runs import rows
write = rows.RowWriter.write

def write_and_stop(self, **values):
    write(self, **values)
    if values["idx"] == 6:
        signal.raise_signal(signal.SIGTERM)

rows.RowWriter.write = write_and_stop
"""


class ScriptsTest(chex.TestCase):
    """One training run; its test images certified at once, and in two parts."""

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        folder = tempfile.TemporaryDirectory()
        cls.addClassCleanup(folder.cleanup)
        cls.folder = pathlib.Path(folder.name)
        cls.config = tiny_runs.write_config(cls.folder)
        cls.whole, cls.parts = cls.folder / "whole", cls.folder / "parts"
        cls.trained = cls.run_script("train.py", cls.whole)
        assert cls.trained[0] == 0, cls.trained
        trained = f"--trained={cls.whole}"
        thirds = ("--config.data.stride=3", "--config.data.limit=8")
        stopped = tiny_runs.start(
            "certify.py",
            *cls.arguments(cls.parts),
            trained,
            *thirds,
            prelude=STOPPED,
        )
        cls.certified = cls.run_script("certify.py", cls.whole)
        assert cls.certified[0] == 0, cls.certified
        cls.whole_rows = (cls.whole / "certificates.tsv").read_bytes()
        cls.stopped = tiny_runs.finish(stopped)
        cls.stopped_rows = read_rows(cls.parts / "certificates.tsv")
        repeated = tiny_runs.start("certify.py", *cls.arguments(cls.whole))
        cls.resumed = cls.run_script("certify.py", cls.parts, trained)
        cls.repeated = tiny_runs.finish(repeated)

    @classmethod
    def arguments(cls, workdir):
        return f"--config={cls.config}", f"--workdir={workdir}"

    @classmethod
    def run_script(cls, script, workdir, *more):
        return tiny_runs.run(script, *cls.arguments(workdir), *more)

    def rows(self, workdir):
        return read_rows(workdir / "certificates.tsv")

    def assert_same_rows_apart_from_time(self, a, b):
        self.assertEqual(a.columns, b.columns)
        for name in set(a.columns) - {"time"}:
            self.assertEqual(a.text(name), b.text(name), name)

    def test_train_writes_checkpoints_and_metrics(self):
        names = {path.name for path in (self.whole / "checkpoints").iterdir()}
        self.assertEqual(names, {"24", "36"})
        lines = (self.whole / "metrics.jsonl").read_text().splitlines()
        self.assertEqual([json.loads(x)["step"] for x in lines], [12, 24, 36])
        self.assertIn("epoch 3: test accuracy under noise", self.trained[1])

    def test_one_row_per_image_under_the_published_columns(self):
        rows = self.rows(self.whole)
        columns = ["idx", "label", "predict", "radius", "correct", "time"]
        self.assertEqual(rows.columns[:6], columns)
        self.assertEqual(rows.ints("idx").tolist(), list(range(24)))
        labels = data.load("digits", "test").labels[:24]
        np.testing.assert_array_equal(rows.ints("label"), labels)
        predict = rows.ints("predict")
        np.testing.assert_array_equal(rows.ints("correct"), predict == labels)
        np.testing.assert_array_equal(rows.floats("radius") > 0, predict >= 0)
        self.assertGreater(rows.floats("time").min(), 0)
        self.assertGreater(rows.ints("correct").sum(), 0)

    def test_rows_are_what_certify_returns(self):
        # In this process there are eight devices: the votes are the same.
        settings = config.resolve(tiny_runs.load_config(self.config))
        examples = experiment.Examples(settings["data"], "test")
        classify = experiment.restore_classifier(settings, self.whole, examples)
        smoothing = experiment.make_smoothing(settings)
        key = streams.stream_key(7, streams.CERTIFY)
        rows = self.rows(self.whole)
        votes = {name: rows.votes(name, 10) for name in ("selection_votes", "votes")}
        for index in (2, 11):
            expected = wsjax.certify(
                jax.random.fold_in(key, index),
                examples[index][0],
                classify,
                smoothing,
                n0=50,
                n=400,
                alpha=0.05,
                block_size=100,
            )
            for name, found in votes.items():
                np.testing.assert_array_equal(found[index], getattr(expected, name))
            self.assertEqual(rows.ints("predict")[index], expected.label)
            radius = rows.floats("radius")[index]
            np.testing.assert_allclose(radius, expected.radius, rtol=1e-9)
        self.assertEqual(set(votes["selection_votes"].sum(axis=1)), {50})
        self.assertEqual(set(votes["votes"].sum(axis=1)), {400})
        counts = rows.ints("count")
        bounds = confidence.lower_bound(counts, 400, 0.05)
        np.testing.assert_allclose(rows.floats("p_lower"), bounds, rtol=1e-9)

    def test_summary_and_figure(self):
        rows = self.rows(self.whole)
        summary = json.loads((self.whole / "summary.json").read_text())
        self.assertEqual(list(summary), ["whole (published)", "whole (tight)"])
        for name, values in summary.items():
            self.assertEqual(values["images"], 24)
            self.assertIn(name, (self.whole / "summary.txt").read_text())
            self.assertIn(name, self.certified[1])
        right = rows.ints("correct") == 1
        mean = np.mean(np.where(right, rows.floats("radius"), 0))
        self.assertAlmostEqual(summary["whole (tight)"]["mean_radius"], mean)
        share = np.mean(right & (rows.floats("radius") > 0))
        self.assertAlmostEqual(summary["whole (tight)"]["certified"], share)
        figure = images.imread(self.whole / "certified_accuracy.png")
        self.assertGreater(figure.var(), 1e-3)

    def test_run_json_tells_what_produced_the_files(self):
        entries = manifest.read(self.whole)
        resolved = config.resolve(tiny_runs.load_config(self.config))
        resolved["model"]["widths"] = list(resolved["model"]["widths"])
        for script, split in (("train", "train"), ("certify", "test")):
            entry = entries[script]
            blocks = ("data", "model", "smoothing", script)
            self.assertEqual(entry["config"], config.select(resolved, *blocks))
            self.assertEqual(entry["seed"], 7)
            self.assertEqual(entry["versions"]["jax"], jax.__version__)
            self.assertEqual(entry["devices"][0], "1 x cpu")
            checksum = data.load("digits", split).checksum
            self.assertEqual(entry["data_checksum"], checksum)
            self.assertEqual(entry["command"][0], f"{script}.py")

    def test_certifying_again_does_nothing_again(self):
        code, out, err = self.repeated
        self.assertEqual(code, 0, err)
        self.assertEqual(
            (self.whole / "certificates.tsv").read_bytes(), self.whole_rows
        )
        self.assertIn("whole (tight)", out)

    def test_stopped_by_sigterm(self):
        code, _, err = self.stopped
        self.assertEqual(code, 143, err)
        self.assertIn("stopped by SIGTERM; run the same command to go on", err)
        self.assertEqual(self.stopped_rows.ints("idx").tolist(), [0, 3, 6])

    def test_parts_make_the_whole(self):
        code, _, err = self.resumed
        self.assertEqual(code, 0, err)
        self.assert_same_rows_apart_from_time(
            self.rows(self.parts), self.rows(self.whole)
        )
        # The rows from before the signal are still the same, first in the file.
        kept = (self.parts / "certificates.tsv").read_text().splitlines()[1:4]
        self.assertEqual([line.split("\t") for line in kept], self.stopped_rows.cells)

    def test_trained_is_read_and_left_alone(self):
        self.assertFalse((self.parts / "checkpoints").exists())
        self.assertNotIn("certify.py", manifest.read(self.parts))
        self.assertNotIn("train", manifest.read(self.parts))

    def test_report_overlays_runs(self):
        figure = self.folder / "both.png"
        code, out, err = tiny_runs.run(
            "wsjax.runs.report", self.whole, self.parts, "--out", figure
        )
        self.assertEqual(code, 0, err)
        for name in ("whole", "parts"):
            for certificate in ("published", "tight"):
                self.assertIn(f"{name} ({certificate})", out)
        self.assertGreater(images.imread(figure).var(), 1e-3)

    def test_bad_input_ends_with_one_line(self):
        foreign, taken = self.folder / "foreign", self.folder / "taken"
        foreign.mkdir()
        described = json.loads((self.whole / "classifier.json").read_text())
        described = {**described, "data": "mnist", "image_shape": [28, 28, 1]}
        (foreign / "classifier.json").write_text(json.dumps(described))
        taken.write_text("")
        whole = self.arguments(self.whole)
        cases = {
            "no such setting: 'nn'": ("certify.py", *whole, "--config.certify.nn=3"),
            "nowhere.py": ("certify.py", "--config=nowhere.py"),
            "--config is missing": ("certify.py", whole[1]),
            "sigma=0.0": ("certify.py", *whole, "--config.smoothing.sigma=0"),
            "sigma=-1.0": ("train.py", *whole, "--config.smoothing.sigma=-1"),
            "95% confidence is alpha=0.05": (
                "certify.py",
                *whole,
                "--config.certify.alpha=0.95",
            ),
            "n=0 ": ("certify.py", *whole, "--config.certify.n=0"),
            "n0=0 ": ("certify.py", *whole, "--config.certify.n0=0"),
            "/no/such/folder": (
                "certify.py",
                *whole,
                "--config.data.name=mnist",
                "--config.data.dir=/no/such/folder",
            ),
            "data: trained 'mnist', config 'digits'": (
                "certify.py",
                whole[0],
                f"--workdir={foreign}",
            ),
            "taken cannot be written": ("train.py", whole[0], f"--workdir={taken}"),
            "config.certify.n: there 400, now 500": (
                "certify.py",
                *whole,
                "--config.certify.n=500",
            ),
        }
        results = tiny_runs.run_each(cases.values())
        for message, (code, out, err) in zip(cases, results):
            with self.subTest(message=message):
                lines = [x for x in err.splitlines() if x.startswith("error:")]
                self.assertLen(lines, 1, err)
                self.assertIn(message, lines[0])
                self.assertNotIn("Traceback", out + err)
                self.assertEqual(code, 1)
        self.assertEqual(
            (self.whole / "certificates.tsv").read_bytes(), self.whole_rows
        )
        self.assertEqual(
            manifest.read(self.whole)["certify"]["config"]["certify"]["n"], 400
        )


class RowTest(chex.TestCase):
    def test_an_abstention_is_not_correct_even_if_its_first_class_is(self):
        votes = np.array([3, 7])
        certificate = wsjax.Certificate(-1, 0.0, 1, 0.4, None, votes, 10 * votes)
        row = report.certificate_row(5, 1, certificate, 0.25)
        self.assertEqual(tuple(row), report.CERTIFICATE_COLUMNS)
        expected = {"idx": 5, "label": 1, "predict": -1, "radius": 0.0, "time": 0.25}
        expected |= {"correct": False, "selected": 1, "count": 70, "n": 100}
        expected |= {"selection_votes": "0:3,1:7", "votes": "0:30,1:70"}
        self.assertEqual(row | expected, row)


if __name__ == "__main__":
    absltest.main()
