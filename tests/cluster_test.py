"""Tests of runs on several processes: same rows, and everyone ends when one does."""

import pathlib
import signal
import socket
import tempfile
from unittest import mock

import chex
import jax
import tiny_runs
from absl.testing import absltest, flagsaver, parameterized

from wsjax.console import signals
from wsjax.runs import cluster, experiment, manifest
from wsjax.runs import config as configs
from wsjax.runs.examples import Examples
from wsjax.runs.rows import read_rows
from wsjax.training import checkpoints, steps

# Sends this process a signal once it is through with an image.
SIGNAL = """
import os, signal
from wsjax.runs import cluster
write = cluster.SharedRows.write

def write_and_act(self, **values):
    write(self, **values)
    if values["idx"] == {index}:
        os.kill(os.getpid(), signal.{name})

cluster.SharedRows.write = write_and_act
"""

# As if the disk were full when the row of an image is to be written.
FULL_DISK = """
import errno
from wsjax.runs import rows
write = rows.RowWriter.write

def write_or_fail(self, **values):
    if values["idx"] == {index}:
        raise self._explained(OSError(errno.ENOSPC, "No space left on device"))
    write(self, **values)

rows.RowWriter.write = write_or_fail
"""


NEAREST = """
import ml_collections

def get_config():
    return ml_collections.ConfigDict({
        "data": {"name": "digits", "limit": 7, "train_limit": 60},
        "certify": {"method": "nearest"},
    })
"""


def free_port():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


class ProcessesTest(chex.TestCase):
    """Two processes on this machine, over the loopback interface."""

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        try:
            free_port()
        except OSError as error:
            raise absltest.SkipTest(f"No loopback interface: {error}") from error
        folder = tempfile.TemporaryDirectory()
        cls.addClassCleanup(folder.cleanup)
        cls.folder = pathlib.Path(folder.name)
        cls.config = tiny_runs.write_config(cls.folder)
        cls.trained = cls.folder / "trained"
        cls.write_untrained(cls.trained)
        (done,) = cls.run_group("alone", {})
        assert done[0] == 0, done
        cls.expected = cls.rows_but_time("alone")

    @classmethod
    def write_untrained(cls, workdir):
        """A classifier as train.py leaves it, with the weights it starts from."""
        config = configs.resolve(tiny_runs.load_config(cls.config))
        examples = Examples(config.data, "test")
        module = experiment.make_model(config.model, examples.num_classes)
        optimizer = experiment.make_optimizer(config.train, 1)
        shape = examples.image_shape
        state = steps.init_state(jax.random.key(1), module, shape, optimizer)
        workdir.mkdir()
        description = experiment.description(config, examples)
        checkpoints.write_description(workdir, description, "run")
        store = checkpoints.Checkpoints(workdir)
        store.save(state)
        store.close()

    @classmethod
    def run_group(cls, name, *processes, devices=1):
        """Runs certify.py on several processes; exit code, stdout and stderr of each.

        Each of `processes` holds what is particular about one: `prelude`, Python to run
        before, `more`, further arguments, and `argv`, all of them but the workdir.
        """
        for _ in range(3):
            port, group = free_port(), []
            for number, special in enumerate(processes):
                voting = [
                    f"--config={cls.config}",
                    f"--trained={cls.trained}",
                    # So much noise that votes differ.
                    "--config.smoothing.sigma=0.05",
                ]
                argv = [
                    f"--workdir={cls.folder / name}",
                    *special.get("argv", voting),
                ]
                if len(processes) > 1:
                    argv += [
                        f"--coordinator=127.0.0.1:{port}",
                        f"--num_processes={len(processes)}",
                        f"--process_id={number}",
                        "--heartbeat_timeout=20",
                    ]
                argv += special.get("more", ())
                prelude = special.get("prelude", "")
                group.append(tiny_runs.Forked("certify.py", argv, prelude, devices))
            results = tiny_runs.run_together(group)
            if not any("another program has it" in err for *_, err in results):
                break
        return results

    @classmethod
    def rows_but_time(cls, name):
        """Whole lines of the rows file, without the column that may differ."""
        path = cls.folder / name / "certificates.tsv"
        lines = [line.split("\t") for line in path.read_text().split("\n")]
        time = lines[0].index("time")
        return [cells[:time] + cells[time + 1 :] for cells in lines]

    def written(self, name):
        return read_rows(self.folder / name / "certificates.tsv").ints("idx").tolist()

    def assert_says(self, message, results):
        for *_, text in results:
            self.assertIn(message, text)

    def test_rows_are_those_of_one_process(self):
        votes = [cells[-3] for cells in self.expected[1:-1]]
        self.assertLen(votes, 24)
        self.assertGreater(sum("," in cell for cell in votes), 12, votes)

        results = self.run_group("two", {}, {}, devices=2)

        self.assertEqual([code for code, *_ in results], [0, 0], results)
        self.assertEqual(self.rows_but_time("two"), self.expected)
        # Only process 0 tells of the run, and it knows the devices of all.
        entry = manifest.read(self.folder / "two")["certify"]
        self.assertEqual(entry["devices"][0], "4 x cpu")
        self.assertTrue((self.folder / "two" / "summary.txt").exists())
        self.assertIn("24/24", results[0][2])
        self.assertNotIn("24/24", results[1][2])

    def test_work_on_the_host_is_shared_out(self):
        path = self.folder / "nearest.py"
        path.write_text(NEAREST)
        nearest = {"argv": [f"--config={path}"]}
        # Who certifies which image, beside the rows.
        prelude = """
from wsjax.certifiers.nearest import NearestNeighbours
certify = NearestNeighbours.certify_each

def tell(self, images, keys=None):
    for certificate in certify(self, images, keys):
        print("certified", flush=True)
        yield certificate

NearestNeighbours.certify_each = tell
"""
        (alone,) = self.run_group("nearest", nearest)
        self.assertEqual(alone[0], 0, alone)
        both = [{**nearest, "prelude": prelude}] * 2
        results = self.run_group("nearest two", *both)

        self.assertEqual([code for code, *_ in results], [0, 0], results)
        self.assertEqual(self.written("nearest two"), list(range(7)))
        expected, found = map(self.rows_but_time, ("nearest", "nearest two"))
        self.assertEqual(found, expected)
        shares = [out.count("certified\n") for _, out, _ in results]
        self.assertEqual(shares, [4, 3])

    def test_whatever_ends_a_process_ends_all_and_costs_no_row(self):
        def act(name, index):
            return {"prelude": SIGNAL.format(index=index, name=name)}

        with self.subTest("process 1 is killed"):
            results = self.run_group("again", {}, act("SIGKILL", 3))
            self.assertEqual(results[1][0], -9)
            self.assert_ended_by_loss(results[0])
            self.assertNotEmpty(self.written("again"))
            self.assertLess(len(self.written("again")), 12)

        with self.subTest("the disk of process 0 is full"):
            full = {"prelude": FULL_DISK.format(index=9)}
            results = self.run_group("again", full, {})
            self.assertEqual([code for code, *_ in results], [1, 1], results)
            self.assert_says("process 0: No space left on device", results)
            self.assert_says("make room and run the same command again", results)
            self.assertEqual(self.written("again"), list(range(9)))

        with self.subTest("process 1 is asked to stop"):
            results = self.run_group("again", {}, act("SIGTERM", 10))
            self.assertEqual([code for code, *_ in results], [143, 143], results)
            self.assert_says("stopped by SIGTERM; run the same command", results)
            # What was begun is finished: the batch at hand and two more.
            self.assertBetween(len(self.written("again")), 11, 17)

        with self.subTest("process 0 is killed"):
            results = self.run_group("again", act("SIGKILL", 19), {})
            self.assertEqual(results[0][0], -9)
            self.assert_ended_by_loss(results[1])
            self.assertEqual(self.written("again"), list(range(20)))

        with self.subTest("one process finishes"):
            (done,) = self.run_group("again", {})
            self.assertEqual(done[0], 0, done)
            self.assertEqual(self.rows_but_time("again"), self.expected)

    def assert_ended_by_loss(self, result):
        """By our message or, where it comes first, by JAX's."""
        code, _, text = result
        self.assertIn(code, (1, -signal.SIGABRT), text)
        self.assertRegex(text, "Another process of this run|another task died")

    def test_processes_that_do_not_agree_end_before_any_row(self):
        other = {"more": ["--config.certify.n=500", "--config.data.dir=elsewhere"]}
        with self.subTest("another config"):
            results = self.run_group("disagree", {}, other)
            message = (
                "Process 1 differs from process 0: certifier.n is 500, there 400; "
            )
            self.assertEqual([code for code, *_ in results], [1, 1], results)
            self.assert_says(
                f"error: {message}config.certify.n is 500, there 400. Start all",
                results,
            )
        with self.subTest("no classifier"):
            results = self.run_group("disagree", {}, {"more": ["--trained=/nowhere"]})
            self.assertEqual([code for code, *_ in results], [1, 1], results)
            self.assert_says("error: process 1: No trained classifier", results)
        with self.subTest("a directory that process 0 cannot write"):
            (self.folder / "taken").write_text("")
            results = self.run_group("taken", {}, {})
            self.assertEqual([code for code, *_ in results], [1, 1], results)
            self.assert_says("error: process 0: ", results)
            self.assert_says("taken cannot be written", results)
        self.assertFalse((self.folder / "disagree" / "certificates.tsv").exists())
        self.assertFalse((self.folder / "disagree" / "run.json").exists())

    def test_scripts_of_one_process_say_so(self):
        three = ("--coordinator=127.0.0.1:1", "--num_processes=2", "--process_id=0")
        cases = {
            "error: train.py runs on one process": ("train.py", *three),
            "error: attack.py runs on one process": ("attack.py", "--distributed"),
            "error: --process_id missing": ("certify.py", *three[:2]),
        }
        results = tiny_runs.run_together(
            [
                tiny_runs.Forked(script, (f"--config={self.config}", *flags))
                for script, *flags in cases.values()
            ]
        )
        self.assertEqual([code for code, *_ in results], [1, 1, 1])
        for message, (*_, err) in zip(cases, results):
            self.assertIn(message, err)


class FlagsTest(parameterized.TestCase):
    @parameterized.parameters(
        ({"coordinator": "h:1", "num_processes": 2}, "--process_id missing"),
        ({"process_id": 0}, "--coordinator and --num_processes missing"),
        ({"coordinator": "h", "num_processes": 2, "process_id": 0}, "not HOST:PORT"),
        (
            {"coordinator": "h:1", "num_processes": 2, "process_id": 2},
            "--process_id=2 is not below --num_processes=2",
        ),
        ({"distributed": True, "process_id": 0}, "either it or the three"),
    )
    def test_refuses(self, given, message):
        with self.flags(**given), self.assertRaisesRegex(ValueError, message):
            cluster.join()

    def test_no_cluster_is_found_where_there_is_none(self):
        failing = mock.patch.object(
            jax.distributed, "initialize", side_effect=ValueError("nothing there")
        )
        with (
            self.flags(distributed=True),
            failing,
            self.assertRaisesRegex(ValueError, "no cluster .nothing there.*srun"),
        ):
            cluster.join()

    def flags(self, **given):
        if not cluster.flags.FLAGS.is_parsed():
            cluster.flags.FLAGS.mark_as_parsed()
        return flagsaver.flagsaver(**given)


class OneProcessTest(parameterized.TestCase):
    """On one process everything passes through."""

    def rows(self, **options):
        folder = self.enter_context(tempfile.TemporaryDirectory())
        path = pathlib.Path(folder) / "rows.tsv"
        options = {"columns": ("idx", "x"), "run": "", "indices": range(4), **options}
        return path, cluster.SharedRows(path, **options)

    def test_nothing_is_asked_for(self):
        with FlagsTest.flags(self):
            self.assertFalse(cluster.asked_for())
            cluster.join()
        self.assertFalse(cluster.several())
        self.assertTrue(cluster.leads())
        self.assertFalse(cluster.is_lost(ValueError("UNAVAILABLE: Socket closed")))
        cluster.check_agreement({"seed": 1}, checksum="x")
        self.assertIsNone(cluster.leave(1))

    def test_errors_stay_what_they_are(self):
        with self.assertRaisesRegex(KeyError, "x"), cluster.together():
            raise KeyError("x")

    def test_rows_are_written_and_not_done_again(self):
        path, rows = self.rows()
        with rows:
            self.assertEqual(rows.todo, [0, 1, 2, 3])
            self.assertEqual(list(rows.until_stopped(rows.todo, 2)), rows.todo)
            rows.write(idx=2, x=5)
        again = cluster.SharedRows(path, ("idx", "x"), "", range(4))
        with again:
            self.assertEqual(again.todo, [0, 1, 3])
        self.assertEqual(read_rows(path).ints("x").tolist(), [5])

    def test_a_signal_stops_at_the_next_check(self):
        path, rows = self.rows()
        with self.assertRaises(signals.Stopped) as caught, rows:
            rows.check()
            rows.write(idx=0, x=1)
            signal.raise_signal(signal.SIGTERM)
            rows.check()
        self.assertEqual(caught.exception.exit_code, 143)
        self.assertLen(read_rows(path), 1)

    def test_a_full_disk_is_told_at_once(self):
        _, rows = self.rows()
        full = mock.patch.object(
            cluster.RowWriter, "write", side_effect=OSError(28, "full")
        )
        with full, rows, self.assertRaisesRegex(OSError, "full"):
            rows.write(idx=0, x=1)


if __name__ == "__main__":
    absltest.main()
