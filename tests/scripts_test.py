"""Tests of the scripts as programs: train.py, certify.py and the report."""

import functools
import json
import pathlib
import shutil
import tempfile
import textwrap

import chex
import jax
import numpy as np
import tiny_runs
from absl.testing import absltest
from matplotlib import image as images
from scipy import stats

import wsjax
from wsjax import confidence, data
from wsjax.runs import (
    artefact,
    cluster,
    config,
    experiment,
    manifest,
    report,
    streams,
    trained,
)
from wsjax.runs.examples import Examples
from wsjax.runs.rows import read_rows

VERDICTS = wsjax.VotesAtRadii.rows_file

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


# Waits, as it has written a row, until certain files are there.
WAITING = """
import pathlib, time
from wsjax.runs import rows
write = rows.RowWriter.write

def write_and_wait(self, **values):
    write(self, **values)
    while not all(pathlib.Path(end).exists() for end in {ends}):
        time.sleep(0.05)

rows.RowWriter.write = write_and_wait
"""
# Begins once there are rows, and leaves a file at the end.
LATE = """
import atexit, pathlib, time

atexit.register(pathlib.Path({end!r}).touch)
while not pathlib.Path({rows!r}).exists():
    time.sleep(0.05)
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
        cls.stopped = tiny_runs.run_forked(
            "certify.py",
            *cls.arguments(cls.parts),
            trained,
            *thirds,
            prelude=STOPPED,
        )
        cls.certified = tiny_runs.run("certify.py", *cls.arguments(cls.whole))
        assert cls.certified[0] == 0, cls.certified
        cls.whole_rows = (cls.whole / "certificates.tsv").read_bytes()
        cls.stopped_rows = read_rows(cls.parts / "certificates.tsv")
        cls.repeated = cls.run_script("certify.py", cls.whole)
        cls.resumed = cls.run_script("certify.py", cls.parts, trained)

    @classmethod
    def arguments(cls, workdir):
        return f"--config={cls.config}", f"--workdir={workdir}"

    @classmethod
    def run_script(cls, script, workdir, *more):
        return tiny_runs.run_forked(script, *cls.arguments(workdir), *more)

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
        examples = Examples(settings.data, "test")
        classify, smoothing = trained.restore(settings, self.whole, examples)
        certifier = wsjax.FixedVotes(classify, smoothing, n0=50, n=400, alpha=0.05)
        key = streams.stream_key(7, streams.CERTIFY)
        rows = self.rows(self.whole)
        votes = {name: rows.votes(name, 10) for name in ("selection_votes", "votes")}
        for index in (2, 11):
            image, _ = examples[index]
            expected = certifier.certify(image, jax.random.fold_in(key, index))
            for name, found in votes.items():
                counted = getattr(expected.evidence, name)
                np.testing.assert_array_equal(found[index], counted)
            self.assertEqual(rows.ints("predict")[index], expected.label)
            radius = rows.floats("radius")[index]
            np.testing.assert_allclose(radius, expected.radius, rtol=1e-9)
        self.assertEqual(set(votes["selection_votes"].sum(axis=1)), {50})
        self.assertEqual(set(votes["votes"].sum(axis=1)), {400})
        counts = rows.ints("count")
        bounds = confidence.lower_bound(counts, 400, 0.05)
        np.testing.assert_allclose(rows.floats("p_lower"), bounds, rtol=1e-9)

    def test_exact_votes_are_for_the_shape_of_the_images(self):
        asked = tiny_runs.load_config(self.config)
        asked.smoothing.exact = True
        settings = config.resolve(asked)
        examples = Examples(settings.data, "test")
        _, smoothing = trained.restore(settings, self.whole, examples)
        self.assertEqual(smoothing.image_shape, tuple(examples.image_shape))
        self.assertGreater(smoothing.scores.slack, 0)
        prepared = smoothing.noise.prepare(examples[0][0])
        self.assertEqual(prepared.dtype, np.int32)

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
        # Certification has a device for each core.
        cases = (("train", "train", 1), ("certify", "test", cluster.cores()))
        for script, split, devices in cases:
            entry = entries[script]
            blocks = ("data", "model", "smoothing", script)
            plain = json.loads(json.dumps(resolved.plain(*blocks)))
            self.assertEqual(entry["config"], plain)
            self.assertEqual(entry["seed"], 7)
            self.assertEqual(entry["versions"]["jax"], jax.__version__)
            self.assertEqual(entry["devices"][0], f"{devices} x cpu")
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
        # Without what a row says of itself.
        cells = [line.split("\t")[:-2] for line in kept]
        self.assertEqual(cells, self.stopped_rows.cells)

    def test_trained_is_read_and_left_alone(self):
        self.assertFalse((self.parts / "checkpoints").exists())
        self.assertNotIn("certify.py", manifest.read(self.parts))
        self.assertNotIn("train", manifest.read(self.parts))

    def test_a_run_directory_is_for_one_process(self):
        workdir = self.folder / "busy"
        shutil.copytree(self.whole, workdir)
        (workdir / "certificates.tsv").unlink()
        scripts = ("train.py", "certify.py", "attack.py")
        holder, *others = tiny_runs.run_together(
            [
                tiny_runs.Forked(
                    "certify.py",
                    self.arguments(workdir),
                    WAITING.format(ends=[str(self.folder / x) for x in scripts]),
                ),
                *(
                    tiny_runs.Forked(
                        script,
                        self.arguments(workdir),
                        LATE.format(
                            rows=str(workdir / "certificates.tsv"),
                            end=str(self.folder / script),
                        ),
                    )
                    for script in scripts
                ),
            ]
        )
        self.assertEqual(holder[0], 0, holder)
        for code, out, err in others:
            self.assertEqual(code, 1, err)
            self.assertRegex(
                err,
                rf"error: {workdir} is in use by certify.py, process \d+ on \S+ since .* "
                r"wait for its end, stop it, or choose another --workdir",
            )
            self.assertNotIn("Traceback", out + err)
        self.assert_same_rows_apart_from_time(self.rows(workdir), self.rows(self.whole))
        self.assertFalse((workdir / ".lock").exists())

    def test_results_that_lost_their_entry_serve_their_own_config_alone(self):
        workdir = self.folder / "orphaned"
        shutil.copytree(self.whole, workdir)
        entry = workdir / "run.json"
        entry.unlink()
        rate = "--config.train.learning_rate=0.05"
        louder = "--config.smoothing.sigma=0.1"
        cases = {
            "certificates.tsv, line 2 is damaged: it belongs to another run": (
                *("certify.py", louder),
            ),
            "belong to another training run": ("train.py", rate),
        }
        for message, (script, change) in cases.items():
            code, out, err = self.run_script(script, workdir, change)
            self.assertEqual(code, 1)
            self.assertIn(message, err)
            self.assertNotIn("Traceback", out + err)
            self.assertFalse(entry.exists())
        for script in ("train.py", "certify.py"):
            code, _, err = self.run_script(script, workdir)
            self.assertEqual(code, 0, err)
        rows = (workdir / "certificates.tsv").read_bytes()
        self.assertEqual(rows, self.whole_rows)

    def test_a_run_that_came_to_nothing_leaves_the_directory_to_the_next(self):
        workdir = self.folder / "corrected"
        arguments = (*self.arguments(workdir), f"--trained={self.whole}")
        died = "import wsjax.runs.rows\nwsjax.runs.rows.RowWriter.write = exit"
        for alpha, prelude in ((0.01, died), (0.05, "")):
            code, _, err = tiny_runs.run_forked(
                "certify.py",
                *arguments,
                "--config.data.limit=2",
                f"--config.certify.alpha={alpha}",
                prelude=prelude,
            )
            self.assertEqual(code == 0, not prelude, err)
            entry = manifest.read(workdir)["certify"]
            self.assertEqual(entry["config"]["certify"]["alpha"], alpha)
        self.assertLen(self.rows(workdir), 2)

    def test_devices_that_are_not_there_take_a_sentence(self):
        code, out, err = tiny_runs.run_forked(
            "certify.py",
            *self.arguments(self.folder / "elsewhere"),
            prelude="import jax; jax.config.update('jax_platforms', 'cuda')",
        )
        self.assertEqual((code, out), (1, ""))
        self.assertStartsWith(err, "error: JAX finds no device of JAX_PLATFORMS=cuda")
        self.assertLen(err.splitlines(), 1)

    def test_what_nobody_waits_for_is_not_printed(self):
        """As libraries leave it behind that could not read or write a checkpoint."""
        left = """
from wsjax.runs import experiment
class Left:
    def __del__(self):
        raise OSError("nobody waits for this")
def fail(*_, left=[Left()]):
    left.clear()
    raise ValueError("a sentence")
experiment.make_model = fail
"""
        for more, shown in (((), False), (("--debug",), True)):
            code, _, err = tiny_runs.run_forked(
                *("train.py", *self.arguments(self.folder / "left"), *more),
                prelude=left,
            )
            self.assertEqual(code, 1)
            self.assertIn("a sentence", err)
            self.assertEqual("nobody waits" in err, shown)

    def test_report_overlays_runs(self):
        figure = self.folder / "both.png"
        code, out, err = tiny_runs.run(
            "wsjax", "report", self.whole, self.parts, "--out", figure
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
        files = {
            "syntax.py": ("def get_config():\n    return {\n", "line 2: '{' was never"),
            "failing.py": (
                "def get_config():\n    return 1 / 0\n",
                "line 2 (return 1 / 0): ZeroDivisionError: division by zero",
            ),
            "leaving.py": ("raise SystemExit(0)\n", "line 1 (raise SystemExit(0))"),
            "none.py": ("x = 1\n", "no attribute 'get_config'"),
            "empty.py": ("get_config = list\n", "get_config() returned []"),
            "truth.py": (
                f"{LEARNED.replace('return', 'c =')}    c.train.momentum = True\n",
                "(c.train.momentum = True): TypeError: momentum is a number, True is",
            ),
            "loud.py": (f"int('{'x' * 3000}')\n", "xx...): ValueError: invalid lit"),
        }
        for name, (text, message) in files.items():
            (self.folder / name).write_text(text)
            cases[message] = ("certify.py", f"--config={self.folder / name}", whole[1])
        cases |= {
            # As the command line reads them, and as they are used.
            "config.certify.n='abc' is not a whole number from 1 to 100,000,000": (
                *("certify.py", *whole, "--config.certify.n=abc"),
            ),
            "config.certify.block_size=-1 is not a whole number from 0 to 65,536": (
                *("attack.py", *whole, "--config.certify.block_size=-1"),
            ),
            "config.model.widths=(0,) is not a list of 1 or more values": (
                *("train.py", *whole, "--config.model.widths=(0,)"),
            ),
            "The model does not fit images of shape (8, 8, 1)": (
                *("train.py", *whole, "--config.model.widths=(4, 4, 4, 4)"),
            ),
        }
        results = tiny_runs.run_each(cases.values())
        for message, (code, out, err) in zip(cases, results):
            with self.subTest(message=message):
                lines = [x for x in err.splitlines() if x.startswith("error:")]
                self.assertLen(lines, 1, err)
                self.assertIn(message, lines[0])
                self.assertLess(len(lines[0]), 1_000)
                self.assertNotIn("Traceback", out + err)
                self.assertEqual(code, 1)
        self.assertEqual(
            (self.whole / "certificates.tsv").read_bytes(), self.whole_rows
        )
        self.assertEqual(
            manifest.read(self.whole)["certify"]["config"]["certify"]["n"], 400
        )


LEARNED = textwrap.dedent(
    '''\
    """A tiny run on digits under learned noise."""
    import ml_collections

    from wsjax.runs.config import with_defaults


    def get_config():
        return with_defaults(ml_collections.ConfigDict({
            "seed": 7,
            "data": {"name": "digits", "limit": 16, "train_limit": 320},
            "model": {"name": "mlp", "widths": (16,), "unit": "mass"},
            "smoothing": {
                "noise": "learned_view", "certificate_scale": 0.02,
                "ground_metric": "l2", "waves": 2,
            },
            "train": {
                "objective": "consistency", "copies": 2, "optimizer": "adam",
                "learning_rate": 0.01, "noise_learning_rate": 0.1,
                "schedule": "one_cycle", "batch_size": 32, "num_epochs": 4,
            },
            "certify": {
                "n0": 50, "n": 400, "alpha": 0.05, "use_runner_up": "auto",
                "block_size": 100,
            },
            "attack": {
                "n": 50, "pictures": 1,
                "flow": {"max_steps": 3, "num_samples": 8, "num_votes": 50},
            },
        }))
    '''
)


_TRAINED = tempfile.TemporaryDirectory()


@functools.cache
def trained_under_learned_noise():
    """A run directory as train.py leaves it with the config above."""
    config, workdir = (pathlib.Path(_TRAINED.name) / x for x in ("tiny.py", "trained"))
    config.write_text(LEARNED)
    ((code, _, err),) = tiny_runs.run_each(
        [("train.py", f"--config={config}", f"--workdir={workdir}")]
    )
    assert code == 0, err
    return workdir


class _OneConfig(chex.TestCase):
    """Runs of the scripts with one config file, `config`; `results` by name."""

    @classmethod
    def case(cls, script, workdir, *more):
        return (script, f"--config={cls.config}", f"--workdir={workdir}", *more)

    def finished(self, name):
        code, out, err = self.results[name]
        self.assertEqual(code, 0, err)
        return out


class LearnedNoiseTest(_OneConfig):
    """Train, certify, report and attack with noise that is learned."""

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        folder = tempfile.TemporaryDirectory()
        cls.addClassCleanup(folder.cleanup)
        cls.folder = pathlib.Path(folder.name)
        cls.config = cls.folder / "tiny_learned.py"
        cls.config.write_text(LEARNED)
        cls.whole, cls.other = cls.folder / "whole", cls.folder / "other"
        cls.file = cls.whole / artefact.NAME
        shutil.copytree(trained_under_learned_noise(), cls.whole)
        cls.first = artefact.read(cls.file)
        # As if training had been killed just before its end.
        cls.file.unlink()
        elsewhere = ("certify.py", f"--config.model.checkpoint={cls.file}")
        cases = {
            "too_early": cls.case("certify.py", cls.whole),
            "again": cls.case("train.py", cls.whole),
            "certified": cls.case("certify.py", cls.whole),
            "elsewhere": cls.case(elsewhere[0], cls.other, elsewhere[1]),
            "report": ("wsjax/__main__.py", "report", cls.whole, cls.other),
            "attacked": cls.case("attack.py", cls.whole, "--config.data.limit=2"),
            "other_scale": cls.case(
                "certify.py", cls.whole, "--config.smoothing.certificate_scale=0.03"
            ),
            "other_noise": cls.case(
                "certify.py", cls.whole, "--config.smoothing.noise=learned_spectrum"
            ),
            "fixed_noise": cls.case(
                "certify.py",
                cls.whole,
                "--config.smoothing.noise=flow_laplace",
                "--config.smoothing.sigma=0.01",
                "--config.smoothing.certificate_scale=0",
            ),
            "adversary": cls.case(
                "train.py",
                cls.folder / "never",
                "--config.smoothing.noise=flow_laplace",
                "--config.smoothing.sigma=0.01",
                "--config.smoothing.certificate_scale=0",
                "--config.train.objective=smooth_adversarial",
            ),
        }
        cls.results = dict(zip(cases, tiny_runs.run_each(cases.values())))

    def test_certifying_waits_for_the_end_of_training(self):
        code, out, err = self.results["too_early"]
        self.assertEqual(code, 1)
        self.assertNotIn("Traceback", out + err)
        (line,) = (x for x in err.splitlines() if x.startswith("error:"))
        self.assertIn(f"There is no {self.file}", line)
        self.assertIn("`wsjax train` writes it at the end", line)

    def test_training_again_writes_the_same_classifier_and_noise(self):
        self.finished("again")
        again = artefact.read(self.file)
        self.assertEqual(again.law, self.first.law)
        self.assertEqual(again[2:], self.first[2:])
        chex.assert_trees_all_equal(again.variables, self.first.variables)
        # The noise that is stored was trained: it is not what it began with.
        settings = config.resolve(tiny_runs.load_config(self.config))
        images = Examples(settings.data, "train").training_images()
        noise = experiment.make_learned_noise(settings, images)
        start = noise.freeze(noise.init())
        moved = np.abs(start.features - again.law.features).max()
        self.assertGreater(moved, 0.05 * np.abs(start.features).max())

    def test_its_file_is_loaded_as_a_released_one_without_a_card(self):
        """What lies beside it, of the same stem, tells of the checkpoints."""
        self.finished("again")
        self.assertTrue(self.file.with_suffix(".json").exists())
        model = wsjax.load_model(self.file)
        self.assertEqual(model.card, {})
        self.assertEqual(model.certifier.smoothing.noise, self.first.law)

    def test_rows_are_what_certify_returns(self):
        self.finished("certified")
        settings = config.resolve(tiny_runs.load_config(self.config))
        examples = Examples(settings.data, "test")
        classify, smoothing = trained.restore(settings, self.whole, examples)
        self.assertAlmostEqual(smoothing.scores.scale / 0.02, 1.0, delta=1e-5)
        rows = read_rows(self.whole / "certificates.tsv")
        self.assertEqual(rows.ints("idx").tolist(), list(range(16)))
        key = streams.stream_key(7, streams.CERTIFY)
        certifier = wsjax.FixedVotes(
            classify, smoothing, n0=50, n=400, alpha=0.05, use_runner_up="auto"
        )
        expected = certifier.certify(examples[3][0], jax.random.fold_in(key, 3))
        np.testing.assert_array_equal(
            rows.votes("votes", 10)[3], expected.evidence.votes
        )
        self.assertEqual(rows.floats("radius")[3], expected.radius)
        self.assertGreater(rows.ints("correct").sum(), 4)
        # All votes for one class: nothing is certified beyond what that gives.
        best = 0.02 * stats.norm.ppf(confidence.lower_bound(400, 400, 0.05))
        self.assertLessEqual(rows.floats("radius").max(), best * (1 + 2e-5))

    def test_a_released_file_gives_the_same_rows_elsewhere(self):
        self.finished("elsewhere")
        names = {"certificates.tsv", "run.json", "summary.txt", "summary.json"}
        self.assertEqual(
            {path.name for path in self.other.iterdir()},
            names | {"certified_accuracy.png"},
        )
        ours, theirs = (
            read_rows(folder / "certificates.tsv")
            for folder in (self.whole, self.other)
        )
        for name in set(ours.columns) - {"time"}:
            self.assertEqual(ours.text(name), theirs.text(name), name)
        entries = [manifest.read(x)["certify"] for x in (self.whole, self.other)]
        for key in ("classifier", "certifier", "data_checksum"):
            self.assertEqual(entries[0][key], entries[1][key])
            self.assertIsNotNone(entries[0][key])

    def test_report_evaluates_the_rows_anew(self):
        out = self.finished("report")
        rows = read_rows(self.whole / "certificates.tsv")
        (certified,) = report.read_certified(self.whole)
        np.testing.assert_allclose(
            certified.found.radii, rows.floats("radius"), rtol=1e-12
        )
        np.testing.assert_array_equal(certified.found.labels, rows.ints("predict"))
        for name in ("whole (tight)", "other (tight)"):
            self.assertIn(name, out)
        summary = json.loads((self.whole / "summary.json").read_text())
        self.assertEqual(list(summary), ["whole (tight)"])

    def test_attack_asks_the_classifier_under_its_noise(self):
        self.finished("attacked")
        for target in ("base", "smoothed"):
            rows = read_rows(self.whole / f"attack_flow_{target}.tsv")
            self.assertEqual(rows.ints("idx").tolist(), [0, 1])
        entries = manifest.read(self.whole)
        attacked, certified = entries["attack flow"], entries["certify"]
        self.assertEqual(attacked["classifier"], certified["classifier"])
        self.assertEqual(
            attacked["certifier"]["scores"], certified["certifier"]["scores"]
        )

    def test_bad_input_ends_with_one_line(self):
        for name, message in {
            "other_scale": "was trained for the certificate scale 0.02, the config "
            "says smoothing.certificate_scale=0.03",
            "other_noise": "holds noise 'learned_view', the config says",
            "fixed_noise": "does not fit this config's model or optimizer",
            "adversary": "train.objective='smooth_adversarial' moves the noise",
        }.items():
            code, out, err = self.results[name]
            with self.subTest(name=name):
                (line,) = (x for x in err.splitlines() if x.startswith("error:"))
                self.assertIn(message, line)
                self.assertNotIn("Traceback", out + err)
                self.assertEqual(code, 1)
        self.assertFalse((self.folder / "never" / "run.json").exists())


AT_RADII = "--config.certify.at_radii=(0.002, 0.005, 0.01)"
MORE = "--config.certify.n=2000"
LOSS = "--config.certify.max_radius_loss=0.2"
# Settings for fewer votes that are refused, and what is said about them.
REFUSED = {
    "is not an increasing list of at least one radius; sort it": (
        "--config.certify.at_radii=(0.01, 0.005)",
    ),
    "radius=5 is out of reach of this noise": ("--config.certify.at_radii=(0.01, 5)",),
    "at_radii=(-0.01,) is not a list of values, each a number in (0, 1000]": (
        "--config.certify.at_radii=(-0.01,)",
    ),
    "at_radii=('a',) is not a list of values, each a number in (0, 1000]": (
        "--config.certify.at_radii=('a',)",
    ),
    "first_look=0 is not a whole number from 1": (
        AT_RADII,
        "--config.certify.first_look=0",
    ),
    "beta=0.7 is not a number in [0, 0.5)": (AT_RADII, "--config.certify.beta=0.7"),
    "max_radius_loss=0.2 means nothing to config.certify.method='at_radii'": (
        AT_RADII,
        LOSS,
    ),
    "share_draws=0 is not a whole number from 1": ("--config.certify.share_draws=0",),
    "share_draws=2 means nothing to config.certify.method='at_radii'": (
        AT_RADII,
        "--config.certify.share_draws=2",
    ),
    "max_radius_loss=1.5 is not a number in [0, 1)": (
        "--config.certify.max_radius_loss=1.5",
    ),
    "config.certify.n: there 2000, now 400": (AT_RADII,),
}


class FewerVotesTest(_OneConfig):
    """One classifier, certified with fewer votes in two ways, in parts and at once."""

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        folder = tempfile.TemporaryDirectory()
        cls.addClassCleanup(folder.cleanup)
        cls.folder = pathlib.Path(folder.name)
        cls.config = cls.folder / "tiny_learned.py"
        cls.config.write_text(LEARNED)
        cls.whole = cls.folder / "whole"
        shutil.copytree(trained_under_learned_noise(), cls.whole)
        elsewhere = [f"--trained={cls.whole}", AT_RADII, MORE]
        cls.stopped = tiny_runs.run_forked(
            *cls.case("certify.py", cls.folder / "parts", *elsewhere),
            "--config.data.stride=3",
            prelude=STOPPED,
        )
        cls.stopped_rows = read_rows(cls.folder / "parts" / VERDICTS)
        cases = {
            "whole": cls.case("certify.py", cls.whole, AT_RADII, MORE),
            "again": cls.case("certify.py", cls.whole, AT_RADII, MORE),
            "parts": cls.case("certify.py", cls.folder / "parts", *elsewhere),
            "frugal": cls.case("certify.py", cls.whole, LOSS),
            "shared": cls.case(
                "certify.py",
                cls.folder / "shared",
                f"--trained={cls.whole}",
                "--config.certify.share_draws=3",
            ),
            **{
                message: cls.case("certify.py", cls.whole, *more)
                for message, more in REFUSED.items()
            },
        }
        cls.results = dict(zip(cases, tiny_runs.run_each(cases.values())))

    def restored(self):
        settings = config.resolve(tiny_runs.load_config(self.config))
        examples = Examples(settings.data, "test")
        return examples, *trained.restore(settings, self.whole, examples)

    def test_images_that_share_draws_are_certified_under_one_key(self):
        self.finished("shared")
        rows = read_rows(self.folder / "shared" / report.CERTIFICATES)
        self.assertEqual(rows.ints("idx").tolist(), list(range(16)))
        examples, classify, smoothing = self.restored()
        key = streams.stream_key(7, streams.CERTIFY)
        certifier = wsjax.FixedVotes(classify, smoothing, n0=50, n=400, alpha=0.05)
        for index in (0, 7, 15):
            expected = certifier.certify(examples[index][0], key)
            found = rows.votes("votes", 10)[index]
            np.testing.assert_array_equal(found, expected.evidence.votes)

    def test_verdicts_are_what_certify_at_returns(self):
        self.finished("whole")
        rows = read_rows(self.whole / VERDICTS)
        columns = ["idx", "label", "predict", "radius", "correct", "time"]
        self.assertEqual(rows.columns[:6], columns)
        self.assertEqual(rows.ints("idx").tolist(), list(range(16)))
        examples, classify, smoothing = self.restored()
        key = streams.stream_key(7, streams.CERTIFY)
        certifier = wsjax.VotesAtRadii(
            classify, smoothing, radii=(0.002, 0.005, 0.01), n0=50, n=2_000, alpha=0.05
        )
        for index in (1, 5):
            image, _ = examples[index]
            expected = certifier.certify(image, jax.random.fold_in(key, index))
            for name in ("selection_votes", "votes"):
                found = rows.votes(name, 10)[index]
                counted = getattr(expected.evidence, name)
                np.testing.assert_array_equal(found, counted)
            self.assertEqual(rows.ints("predict")[index], expected.label)
            self.assertEqual(rows.ints("selected")[index], expected.selected)
            self.assertEqual(rows.floats("radius")[index], expected.radius)
        used = rows.votes("votes", 10).sum(1) + rows.votes("selection_votes", 10).sum(1)
        np.testing.assert_array_equal(rows.ints("n_used"), used)
        self.assertLess(used.min(), 400)
        self.assertGreater(rows.floats("radius").max(), 0)
        right = rows.ints("predict") == rows.ints("label")
        np.testing.assert_array_equal(rows.ints("correct"), right)

    def test_summary(self):
        out = self.finished("whole")
        rows = read_rows(self.whole / VERDICTS)
        (summary,) = json.loads((self.whole / "verdicts.json").read_text()).values()
        right = rows.ints("correct") == 1
        for radius in (0.002, 0.005, 0.01):
            share = np.mean(right & (rows.floats("radius") >= radius))
            self.assertEqual(summary["certified_accuracy"][f"{radius:g}"], share)
            self.assertIn(f"r>={radius:g}", out)
            self.assertIn(f"{share:.3f}", out)
        used = rows.ints("n_used")
        self.assertEqual(summary["images"], 16)
        self.assertEqual(summary["mean_passes"], np.mean(used))
        self.assertEqual(summary["median_passes"], np.median(used))
        self.assertEqual(summary["passes_at_once"], 2_050)
        self.assertAlmostEqual(summary["times_fewer"], 2_050 / np.mean(used))
        self.assertIn("times fewer", (self.whole / "verdicts.txt").read_text())

    def test_stopped_and_resumed_parts_make_the_whole(self):
        code, _, err = self.stopped
        self.assertEqual(code, 143, err)
        self.assertEqual(self.stopped_rows.ints("idx").tolist(), [0, 3, 6])
        self.finished("parts")
        self.finished("again")
        parts = read_rows(self.folder / "parts" / VERDICTS)
        whole = read_rows(self.whole / VERDICTS)
        for name in set(whole.columns) - {"time"}:
            self.assertEqual(parts.text(name), whole.text(name), name)

    def test_run_json_has_an_entry_of_its_own(self):
        self.finished("frugal")
        entries = manifest.read(self.whole)
        verdicts = entries["certify at_radii"]["config"]["certify"]
        self.assertEqual(verdicts["at_radii"], [0.002, 0.005, 0.01])
        self.assertEqual((verdicts["n"], verdicts["first_look"]), (2_000, 100))
        self.assertNotIn("at_radii", entries["certify"]["config"]["certify"])

    def test_a_pilot_chooses_the_votes_of_each_row(self):
        self.finished("frugal")
        rows = read_rows(self.whole / report.CERTIFICATES)
        n = rows.ints("n")
        self.assertGreater(len(set(n)), 1)
        self.assertLessEqual(n.max(), 400)
        np.testing.assert_array_equal(rows.votes("votes", 10).sum(axis=1), n)
        # The report finds the very same radii in the votes.
        (found,) = report.read_certified(self.whole)
        np.testing.assert_allclose(found.found.radii, rows.floats("radius"), rtol=1e-12)
        np.testing.assert_array_equal(found.found.labels, rows.ints("predict"))
        self.assertGreater(found.found.radii.max(), 0)

    def test_bad_settings_end_with_one_line(self):
        for message in REFUSED:
            code, out, err = self.results[message]
            with self.subTest(message=message):
                (line,) = (x for x in err.splitlines() if x.startswith("error:"))
                self.assertIn(message, line)
                self.assertNotIn("Traceback", out + err)
                self.assertEqual(code, 1)


if __name__ == "__main__":
    absltest.main()
