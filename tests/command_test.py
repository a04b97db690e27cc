"""Tests of the command `wsjax`: its commands, configs by name, and what --help tells."""

import dataclasses
import io
import os
import pathlib
import re
import subprocess
import sys
import tempfile
from unittest import mock

import tiny_runs
from absl.testing import absltest, parameterized
from config_test import SETTINGS

from wsjax import scripts
from wsjax.attacks.registry import METHODS
from wsjax.runs import config, describe, named_configs, ranges
from wsjax.scripts import report


def run_command(*arguments, folder=None):
    """Exit code, stdout and stderr of `python -m wsjax`, in a folder."""
    done = subprocess.run(
        [sys.executable, "-m", "wsjax", *arguments],
        cwd=folder,
        env=tiny_runs.environment(),
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    return done.returncode, done.stdout, done.stderr


class CommandTest(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        self.folder = self.enter_context(tempfile.TemporaryDirectory())

    @parameterized.parameters("--help", "-h", "")
    def test_help_lists_the_commands(self, asked):
        code, out, err = run_command(*filter(None, [asked]), folder=self.folder)
        self.assertEqual((code, err), (0, ""))
        for name in scripts.COMMANDS:
            self.assertRegex(out, rf"(?m)^  {name} +\w")

    def test_every_command_has_a_module_and_a_script(self):
        modules = {
            path.stem for path in pathlib.Path(scripts.__file__).parent.iterdir()
        }
        self.assertEqual(set(scripts.COMMANDS), modules - {"__init__", "__pycache__"})

    def test_what_is_no_command_takes_a_sentence(self):
        for name, hint in (
            ("cretify", "Did you mean certify"),
            ("xyz", "It has train"),
        ):
            code, out, err = run_command(name, folder=self.folder)
            self.assertEqual((code, out), (1, ""))
            self.assertRegex(err, f"^error: wsjax has no command '{name}'. {hint}.*\n$")

    def test_help_of_a_config_tells_its_settings_wherever_one_is(self):
        code, out, err = run_command(
            *("certify", "--config=paper/mnist", "--config.certify.n=77", "--help"),
            folder=self.folder,
        )
        self.assertEqual((code, err), (0, ""))
        self.assertIn("--config.certify.n=77\n      Fresh votes that bound", out)
        self.assertIn("A whole number from 1 to 100,000,000", out)
        self.assertIn("Default: 10000.", out)
        self.assertNotIn("config.train.", out)
        self.assertEmpty(os.listdir(self.folder))

    def test_an_unknown_name_lists_the_known(self):
        code, _, err = run_command("train", "--config", "mnits", folder=self.folder)
        self.assertEqual(code, 1)
        self.assertRegex(err, "^error: --config=mnits .* Did you mean mnist\\?.*\n$")
        for name in named_configs.names():
            self.assertIn(name, err)

    def test_a_whole_run_by_name_outside_of_the_repository(self):
        # Of a kind that needs no training.
        quick = "data.name=digits data.train_limit=64 data.limit=3"
        quick = [f"--config.{setting}" for setting in quick.split()]
        code, _, err = run_command(
            *("certify", "--config=mnist_nearest", *quick), folder=self.folder
        )
        self.assertEqual(code, 0, err)
        code, out, err = run_command("report", folder=self.folder)
        self.assertEqual((code, err), (0, ""))
        self.assertRegex(out, r"mnist_nearest\s+\S\s+3 ")
        run = pathlib.Path(self.folder, "runs/mnist_nearest")
        self.assertEqual(report.everything(run.parent), [run])
        with mock.patch.object(sys, "stdout", io.StringIO()) as printed:
            report.show([run])
        self.assertEqual(printed.getvalue(), out)
        with self.assertRaisesRegex(FileNotFoundError, "No rows at"):
            report.show([run, run.parent])


class NamesTest(parameterized.TestCase):
    def test_names_are_those_of_the_files(self):
        for name in named_configs.names():
            path = named_configs.find(name)
            self.assertEqual(path, str(tiny_runs.ROOT / "configs" / f"{name}.py"))
        self.assertContainsSubset({"digits", "paper/mnist"}, named_configs.names())

    def test_files_stay_what_they_are(self):
        folder = self.enter_context(tempfile.TemporaryDirectory())
        before = os.getcwd()
        self.addCleanup(os.chdir, before)
        os.chdir(folder)
        # Of a checkout, whether or not one is there.
        self.assertEqual(
            named_configs.find("configs/mnist.py:3"), named_configs.find("mnist") + ":3"
        )
        pathlib.Path("mnist.py").touch()
        self.assertEqual(named_configs.find("mnist.py:3"), "mnist.py:3")
        pathlib.Path("digits").touch()
        self.assertTrue(named_configs.find("digits").endswith("configs/digits.py"))
        with self.assertRaisesRegex(FileNotFoundError, "neither a file nor the name"):
            named_configs.find("nowhere.py")


class DescriptionTest(parameterized.TestCase):
    def test_every_setting_has_a_meaning(self):
        for key in SETTINGS:
            block, *inner = key.split(".")
            model = inner[0] if block == "model" and len(inner) > 1 else ""
            short = f"model.{inner[-1]}" if model else key
            meant = describe.meaning(short, model)
            self.assertNotEmpty(meant, key)
            self.assertNotRegex(meant, r"\n|  |see there", key)

    @parameterized.parameters(*named_configs.names())
    def test_values_defaults_and_ranges_are_those_that_count(self, name):
        found = tiny_runs.load_config(named_configs.find(name))
        resolved = config.resolve(found)
        plain = resolved.plain()
        for command, blocks in describe._BLOCKS.items():
            text = describe.settings_text(resolved, command)
            shown = dict(re.findall(r"^  --config\.(\S+?)=(.*)$", text, re.MULTILINE))
            for block in set(blocks) & set(plain):
                for key, value in plain[block].items():
                    if block == "attack" and key in METHODS:
                        continue
                    self.assertEqual(shown.pop(f"{block}.{key}"), repr(value))
            ours = resolved.attack.settings[resolved.attack.method]
            if command == "attack":
                for key, value in ours.items():
                    key = f"attack.{resolved.attack.method}.{key}"
                    self.assertEqual(shown.pop(key), repr(value))
            self.assertEqual(shown.pop("seed"), str(resolved.seed))
            # Fields of the model that the config left alone.
            self.assertEmpty([key for key in shown if not key.startswith("model.")])

    def test_defaults_are_those_of_the_table(self):
        for key, default in SETTINGS.items():
            if key != "seed" and (key.split(".")[0], key.count(".")) != ("model", 2):
                self.assertEqual(config.default_of(key), default, key)
        self.assertIs(config.default_of("model.widths"), dataclasses.MISSING)

    def test_the_range_is_told_in_the_words_of_its_refusal(self):
        text = describe.settings_text(
            config.resolve(tiny_runs.load_config(named_configs.find("digits"))), "train"
        )
        words = str(ranges.range_of("train.momentum").words)
        self.assertIn(words[1:], text)


if __name__ == "__main__":
    absltest.main()
