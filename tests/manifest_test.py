"""Tests of wsjax.runs.manifest."""

import copy
import functools
import json
import pathlib
import sys
import tempfile
from unittest import mock

import chex
import jax
from absl.testing import absltest, parameterized

from wsjax.runs import config as configs
from wsjax.runs import manifest, rows

CONFIG = {
    "seed": 3,
    "data": {"name": "digits", "dir": "", "stride": 5},
    "smoothing": {"sigma": 0.1, "wrap": False},
    "certify": {"n": 100, "block_size": 10},
}


def changed(path, value):
    """`CONFIG` with another value at a dotted key; None takes the key away."""
    config = copy.deepcopy(CONFIG)
    *blocks, key = path.split(".")
    block = config
    for name in blocks:
        block = block[name]
    if value is None:
        del block[key]
    else:
        block[key] = value
    return config


class ManifestTest(chex.TestCase):
    def setUp(self):
        super().setUp()
        folder = self.enter_context(tempfile.TemporaryDirectory())
        self.folder = pathlib.Path(folder)
        self.file = self.folder / "run.json"

    def record(self, config=CONFIG, script="certify", checksum="abc", **more):
        manifest.record(
            self.folder,
            script,
            config,
            data_checksum=checksum,
            may_differ=configs.MAY_DIFFER,
            **more,
        )

    def test_records_what_produced_the_results(self):
        with mock.patch.object(sys, "argv", ["/some/where/certify.py", "--x=1"]):
            self.record()
        entry = json.loads(self.file.read_text())["certify"]
        self.assertEqual(entry["config"], CONFIG)
        self.assertEqual(entry["seed"], 3)
        self.assertEqual(entry["data_checksum"], "abc")
        self.assertEqual(entry["versions"]["jax"], jax.__version__)
        self.assertContainsSubset({"python", "numpy", "scipy"}, entry["versions"])
        self.assertEqual(entry["devices"][0], "8 x cpu")
        self.assertEqual(entry["command"], ["certify.py", "--x=1"])
        self.assertRegex(entry["started"], r"^\d{4}-\d\d-\d\dT[\d:]+\+00:00$")
        self.assertNotIn("resumed", entry)

    def test_scripts_have_entries_of_their_own(self):
        self.record()
        self.record(changed("seed", 4), script="train")
        found = manifest.read(self.folder)
        self.assertEqual(found["certify"]["seed"], 3)
        self.assertEqual(found["train"]["seed"], 4)

    def test_going_on_is_noted_and_keeps_the_start(self):
        self.record()
        whole = manifest.read(self.folder)
        before = whole["certify"]
        before["started"] = "2019-10-23T00:00:00+00:00"
        self.file.write_text(json.dumps(whole))
        with mock.patch.object(manifest, "devices", lambda: ["2 x tpu"]):
            self.record()
        self.record()
        after = manifest.read(self.folder)["certify"]
        self.assertEqual(after["started"], before["started"])
        devices = [part["devices"] for part in after["resumed"]]
        self.assertEqual(devices, [["2 x tpu"], before["devices"]])

    @parameterized.parameters(
        ("seed", 4, "config.seed: there 3, now 4"),
        ("smoothing.sigma", 0.2, "config.smoothing.sigma: there 0.1, now 0.2"),
        ("certify.n", 200, "config.certify.n: there 100, now 200"),
        ("smoothing.wrap", None, "config.smoothing.wrap: there False, now None"),
        ("data.new", 1, "config.data.new: there None, now 1"),
    )
    def test_refuses_another_config(self, key, value, message):
        self.record()
        before = self.file.read_text()
        with self.assertRaises(manifest.ConfigMismatch) as caught:
            self.record(changed(key, value))
        self.assertIn(message, str(caught.exception))
        self.assertIn(f"--trained={self.folder}", str(caught.exception))
        self.assertEqual(self.file.read_text(), before)

    def test_an_entry_without_results_refuses_nothing(self):
        self.record()

        def damaged(run):
            raise ValueError("of another run")

        for check in (lambda run: True, damaged):
            with self.assertRaises(manifest.ConfigMismatch):
                self.record(changed("seed", 4), check=check)
        self.record(changed("seed", 4), check=lambda run: 0)
        entry = manifest.read(self.folder)["certify"]
        self.assertEqual(entry["config"]["seed"], 4)
        self.assertNotIn("resumed", entry)

    def test_lists_all_differences(self):
        self.record()
        other = changed("seed", 4)
        other["certify"]["n"] = 7
        with self.assertRaisesRegex(
            manifest.ConfigMismatch, "certify.n: there 100, now 7; config.seed: there 3"
        ):
            self.record(other)

    def test_refuses_other_data(self):
        self.record()
        with self.assertRaisesRegex(
            manifest.ConfigMismatch, "data: there 'abc', now 'def'"
        ):
            self.record(checksum="def")

    def test_refuses_another_classifier(self):
        config = {"seed": 0}
        record = functools.partial(
            manifest.record, self.folder, "certify", config, data_checksum="abc"
        )
        record(classifier="first")
        record(classifier="first")
        with self.assertRaisesRegex(
            manifest.ConfigMismatch, "classifier: there 'first', now 'second'"
        ):
            record(classifier="second")

    def test_refuses_another_theorem_about_the_noise(self):
        def record(scale):
            scores = {"function": "gaussian", "scale": scale, "ground_metric": "l2"}
            manifest.record(
                self.folder,
                "certify",
                {"seed": 0},
                data_checksum="abc",
                certifier={"kind": "votes", "scores": scores},
            )

        record(0.25)
        record(0.25)
        kept = manifest.read(self.folder)["certify"]["certifier"]
        self.assertEqual(kept["scores"]["scale"], 0.25)
        with self.assertRaisesRegex(
            manifest.ConfigMismatch, "scores.scale: there 0.25, now 0.2500001"
        ):
            record(0.2500001)

    @parameterized.parameters(
        ("data.dir", "/elsewhere"), ("data.stride", 1), ("certify.block_size", 99)
    )
    def test_what_changes_no_result_may_differ(self, key, value):
        self.record()
        self.record(changed(key, value))

    def test_everything_that_may_differ_is_a_setting(self):
        resolved = configs.resolve(
            {
                "data": {"name": "digits"},
                "model": {"name": "conv_small"},
                "smoothing": {
                    "noise": "flow_laplace",
                    "sigma": 1.0,
                    "ground_metric": "l1",
                },
                "train": {"learning_rate": 1.0, "batch_size": 1, "num_epochs": 1},
                "certify": {"n0": 1, "n": 1, "alpha": 0.1},
            }
        )
        for key in configs.MAY_DIFFER:
            *blocks, name = key.split(".")
            there = resolved.plain()
            for block in blocks:
                there = there[block]
            self.assertIn(name, there, key)

    def test_tuples_equal_the_lists_they_become(self):
        self.record(changed("data.widths", (1, 2)))
        self.record(changed("data.widths", [1, 2]))

    @parameterized.parameters(
        *("", "{", "[]", "3", '{"certify": ', '{"certify": []}', '{"certify": {}}'),
        '{"certify": {"config": 3, "data_checksum": "a", "started": ""}}',
        '{"train": {"config": {}, "data_checksum": "a", "started": "", "resumed": 1}}',
        *(6 * depth * "[" + 6 * depth * "]" for depth in (100, 100_000)),
        *('{"a":' * depth + "1" + "}" * depth for depth in (100, 100_000)),
    )
    def test_damaged(self, text):
        self.file.write_text(text)
        for use in (self.record, lambda: manifest.read(self.folder)):
            with self.assertRaisesRegex(ValueError, "run.json is damaged.*Restore it"):
                use()
        self.assertEqual(self.file.read_text(), text)

    def test_a_digest_tells_runs_apart(self):
        def of(config=CONFIG, **facts):
            with tempfile.TemporaryDirectory() as folder:
                facts = {"data_checksum": "abc", **facts}
                return manifest.record(
                    pathlib.Path(folder),
                    "certify",
                    config,
                    may_differ=configs.MAY_DIFFER,
                    **facts,
                )

        own = of()
        self.assertRegex(own, "^[0-9a-f]{16}$")
        self.assertEqual(own, of(changed("data.stride", 1)))
        others = [
            of(changed("smoothing.sigma", 0.2)),
            of(changed("seed", 4)),
            of(data_checksum="abd"),
            of(classifier="other"),
            of(certifier={"scores": {"scale": 0.1}}),
            of(num_classes=10),
        ]
        self.assertLen({own, *others}, 7)

    def test_the_digest_of_an_entry_is_that_of_its_rows_when_it_is_read_again(self):
        config = changed("smoothing.sigma", float("inf"))
        run = manifest.record(
            self.folder, "certify", config, data_checksum="a", may_differ=("data.dir",)
        )
        entry = manifest.read(self.folder)["certify"]
        self.assertEqual(manifest.digest(entry), run)
        entry["config"]["smoothing"]["sigma"] = 0.1
        self.assertNotEqual(manifest.digest(entry), run)

    def test_going_on_keeps_the_digest(self):
        """Also with another version, that lets more keys differ."""
        once = manifest.record(self.folder, "certify", CONFIG, data_checksum="a")
        again = manifest.record(
            self.folder, "certify", CONFIG, data_checksum="a", may_differ=("seed",)
        )
        self.assertEqual(once, again)

    def test_results_of_another_run_leave_no_entry(self):
        path = self.folder / "rows.tsv"
        with rows.RowWriter(path, ("idx",), "other"):
            pass
        with rows.RowWriter(path, ("idx",), "other") as writer:
            writer.write(idx=0)
        with self.assertRaisesRegex(rows.RowsError, "belongs to another run"):
            manifest.record(
                self.folder,
                "certify",
                CONFIG,
                data_checksum="a",
                check=functools.partial(rows.check, path, ("idx",)),
            )
        self.assertFalse(self.file.exists())

    def test_rows_and_their_entry(self):
        run = manifest.record(self.folder, "certify", CONFIG, data_checksum="a")
        path = self.folder / "rows.tsv"
        with rows.RowWriter(path, ("idx",), run) as writer:
            writer.write(idx=3)
        entry, found = manifest.read_rows(self.folder, "certify", "rows.tsv")
        self.assertEqual(entry["config"], CONFIG)
        self.assertEqual(found.ints("idx").tolist(), [3])
        with self.assertRaises(FileNotFoundError):
            manifest.read_rows(self.folder, "certify", "others.tsv")
        whole = self.file.read_text()
        self.file.write_text(whole.replace('"sigma": 0.1', '"sigma": 1.0'))
        with self.assertRaisesRegex(rows.RowsError, "belongs to another run"):
            manifest.read_rows(self.folder, "certify", "rows.tsv")
        self.file.unlink()
        with self.assertRaisesRegex(ValueError, "no entry 'certify' in run.json"):
            manifest.read_rows(self.folder, "certify", "rows.tsv")

    def test_missing(self):
        self.assertEqual(manifest.read(self.folder), {})


class WorkdirTest(chex.TestCase):
    def setUp(self):
        super().setUp()
        folder = self.enter_context(tempfile.TemporaryDirectory())
        self.folder = pathlib.Path(folder)

    def test_is_created_with_parents_and_left_empty(self):
        made = manifest.prepare_workdir(self.folder / "a" / "b")
        self.assertTrue(made.is_absolute())
        self.assertEqual(list(made.iterdir()), [])
        self.assertEqual(manifest.prepare_workdir(made), made)

    @parameterized.parameters("taken", "taken/below")
    def test_refuses_a_file_in_its_place(self, name):
        (self.folder / "taken").write_text("mine")
        with self.assertRaisesRegex(OSError, f"--workdir=.*{name} cannot be written"):
            manifest.prepare_workdir(self.folder / name)
        self.assertEqual((self.folder / "taken").read_text(), "mine")

    def test_refuses_a_folder_without_room(self):
        full = OSError(28, "No space left on device")
        with (
            mock.patch.object(pathlib.Path, "write_text", side_effect=full),
            self.assertRaisesRegex(OSError, "cannot be written .No space.*with room"),
        ):
            manifest.prepare_workdir(self.folder)


if __name__ == "__main__":
    absltest.main()
