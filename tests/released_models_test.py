"""Tests of released classifiers by name, and of the cards that tell of them."""

import contextlib
import importlib
import io
import json
import os
import pathlib
import re
import shutil
import sys
import tempfile
from unittest import mock

import numpy as np
from absl.testing import absltest, parameterized

import wsjax
from wsjax import data
from wsjax.runs import manifest, released, report
from wsjax.scripts import models
from wsjax.training.checkpoints import CheckpointError

ROOT = pathlib.Path(__file__).parents[1]
REAL_DATA = pathlib.Path(
    os.environ.get("WSJAX_DATA_DIR")
    or pathlib.Path(__file__).parents[2] / "shared" / "data"
)
NAMES = released.names()
EACH = parameterized.parameters(*NAMES)


def rows_of(name):
    folder = ROOT / "released" / "runs" / name
    return manifest.read_rows(folder, "certify", report.CERTIFICATES)[1]


class CardsTest(parameterized.TestCase):
    def test_each_file_has_one(self):
        self.assertLen(NAMES, 8)
        self.assertEqual([card["name"] for card in released.cards()], NAMES)

    @EACH
    def test_it_tells_of_the_file(self, name):
        path = ROOT / "released" / f"{name}.safetensors"
        card = released.read_card(path.with_suffix(".json"))
        self.assertEqual(card["sha256"], released.checksum(path))
        for key, value in released.describe(path).items():
            self.assertEqual(card[key], value)
        self.assertTrue((ROOT / "configs" / f"{card['config']}.py").exists())
        self.assertIn(f"configs/{card['config']}.py", card["commands"][0])

    @EACH
    def test_its_numbers_are_those_of_the_rows(self, name):
        card = released.read_card(ROOT / "released" / f"{name}.json")
        table = rows_of(name)
        right = table.ints("correct") == 1
        radii = np.where(right, table.floats("radius"), -1.0)
        self.assertEqual(card["images"], len(radii))
        # Answers count that votes make clear, whether or not they certify a radius.
        self.assertBetween(card["accuracy"], right.mean() - 1e-6, right.mean() + 0.005)
        self.assertAlmostEqual(card["median_radius"] / np.median(radii), 1, delta=1e-5)
        for radius, share in card["curve"].items():
            self.assertAlmostEqual(share, (radii >= float(radius)).mean(), places=5)

    def test_no_attack_succeeded_inside(self):
        tried = [card["attack"] for card in released.cards() if card["attack"]]
        self.assertGreaterEqual(len(tried), 6)
        for attack in tried:
            self.assertEqual(attack["inside"], 0)
            self.assertGreater(attack["least_ratio"], 1)

    def test_the_leaderboard_is_written_from_them(self):
        with mock.patch.object(sys, "path", [str(ROOT / "benchmarks"), *sys.path]):
            cards = importlib.import_module("cards")
        self.assertEqual(cards.LEADERBOARD.read_text(), cards.leaderboard())
        self.assertCountEqual(cards.ENTRIES, NAMES)
        # What --check does, of the one with the fewest rows.
        name = "cifar10_c0.000283"
        with contextlib.redirect_stdout(io.StringIO()):
            self.assertEmpty(cards.check(name, None))
            wrong = {
                **released.read_card(ROOT / "released" / f"{name}.json"),
                "accuracy": 1,
            }
            with mock.patch.object(released, "read_card", lambda path: wrong):
                self.assertRegex(cards.check(name, None)[0], "accuracy is 1, the rows")


class ReadmeTest(absltest.TestCase):
    def test_its_tables_are_what_rows_say(self):
        with mock.patch.object(sys, "path", [str(ROOT / "benchmarks"), *sys.path]):
            readme = importlib.import_module("readme")
        text = readme.README.read_text()
        self.assertEqual(text, readme.written(text))
        # And a table with another number in it is made anew.
        wrong = text.replace("| **MNIST** | .966 |", "| **MNIST** | .976 |")
        self.assertNotEqual(wrong, text)
        self.assertEqual(readme.written(wrong), text)
        self.assertCountEqual(re.findall(r"<!-- rows: (\S+) -->", text), readme.TABLES)

        # The table of kinds has more than rows say, and is written by hand.
        kept = readme.envelope.RESULTS / "envelope-mnist"
        for label, folder in (
            ("published noise, sigma = .01", kept / "published"),
            ("Gaussian view, c = .037", kept / "c=0.037"),
            ("Gaussian view, c = .1", kept / "c=0.1"),
            ("nearest neighbour in W", kept / "nearest"),
            ("**potentials**", released.folder() / "runs" / "mnist_potentials"),
        ):
            total = report.read_certified(folder)[0].summary
            radius = readme.size(total.median_radius, (0.02,))
            line = f"| {label} | {readme.share(total.accuracy)} | {radius} |"
            self.assertIn(line, text)


class LoadTest(parameterized.TestCase):
    @EACH
    def test_it_certifies_what_its_rows_say(self, name):
        model = wsjax.load_model(name.replace("_", "-"))
        folder = REAL_DATA / model.card["data"]
        if not folder.is_dir():
            self.skipTest(
                f"No {folder.name}: set WSJAX_DATA_DIR to the folder above it."
            )
        test = data.load(folder.name, "test", dir=folder)
        table = rows_of(name)
        image = data.as_float(test.images[table.ints("idx")[3]], test.scale)
        if not model.certifier.random:
            found = model.certify(image)
            self.assertEqual(found.label, table.ints("predict")[3])
            # In another batch, another order of float64's sums.
            wanted = table.floats("radius")[3]
            self.assertAlmostEqual(found.radius / wanted, 1, delta=1e-12)
            return
        # Votes cost too much here: of the classes alone.
        answers = np.asarray(model.classify(image[None]))
        self.assertEqual(answers.shape, (1, 10))
        self.assertEqual(model.certifier.n, 10_000)
        self.assertEqual(model.certifier.smoothing.scores.scale, model.card["scale"])

    def test_an_image_of_another_shape_is_refused(self):
        model = wsjax.load_model("mnist_c0.1")
        with self.assertRaisesRegex(ValueError, r"\(28, 28, 1\)"):
            model.certify(np.ones((27, 28, 1), np.float32))

    def test_unknown_names_are_told_what_there_is(self):
        with self.assertRaisesRegex(ValueError, "Did you mean mnist_potentials"):
            wsjax.load_model("mnist-potential")
        with self.assertRaisesRegex(ValueError, "There are .'cifar10_c0.000283'"):
            wsjax.load_model("zebra")

    def test_a_file_that_is_not_that_of_the_card_is_refused(self):
        folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
        for suffix in (".safetensors", ".json"):
            shutil.copy(ROOT / "released" / f"mnist_c0.1{suffix}", folder)
        path = folder / "mnist_c0.1.safetensors"
        with mock.patch.dict(os.environ, {"WSJAX_RELEASED_DIR": str(folder)}):
            self.assertEqual(released.names(), ["mnist_c0.1"])
            self.assertIn("learned view", repr(wsjax.load_model("mnist-c0.1")))
            with path.open("r+b") as file:
                file.seek(-8, os.SEEK_END)
                file.write(b"\0" * 8)
            with self.assertRaisesRegex(ValueError, "checksum.*the card says"):
                wsjax.load_model("mnist-c0.1")
            path.with_suffix(".json").write_text("{")
            with self.assertRaisesRegex(ValueError, "no card of a classifier"):
                wsjax.load_model(path)
            path.with_suffix(".json").write_text("{}")
            with self.assertRaisesRegex(ValueError, "lacks accuracy"):
                wsjax.load_model(path)
        path.with_suffix(".json").unlink()
        path.write_bytes(b"no arrays")
        with self.assertRaisesRegex(CheckpointError, "is damaged"):
            wsjax.load_model(path)
        with self.assertRaisesRegex(CheckpointError, "There is no"):
            wsjax.load_model(folder / "none.safetensors")


class CommandTest(absltest.TestCase):
    def run_with(self, *arguments):
        shown = io.StringIO()
        with (
            mock.patch.object(sys, "argv", ["wsjax models", *arguments]),
            contextlib.redirect_stdout(shown),
        ):
            models.start()
        return shown.getvalue()

    def test_lists_them(self):
        shown = self.run_with()
        for name in NAMES:
            self.assertIn(name[:12], shown)

    def test_prints_a_card(self):
        card = json.loads(self.run_with("mnist-potentials"))
        self.assertEqual(card["name"], "mnist_potentials")
        self.assertContainsSubset(released.KEYS, card)

    def test_kept_rows_tell_nothing_of_a_machine(self):
        for path in (ROOT / "released" / "runs").rglob("run.json"):
            self.assertNotRegex(path.read_text(), r'"/|=/|--workdir')


if __name__ == "__main__":
    absltest.main()
