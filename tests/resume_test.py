"""A training run that is killed at any moment and repeated ends as if left alone."""

import pathlib
import tempfile
from unittest import mock

import chex
import numpy as np
import tiny_runs
from absl.testing import absltest, parameterized
from tiny_runs import Bar, PowerFailure, final_arrays

from wsjax import noise
from wsjax.console import signals
from wsjax.training import loop

# So much noise that accuracy under it is another for every draw.
LOUD = noise.FlowLaplace(0.3).perturb


def metrics_text(workdir):
    return (workdir / "metrics.jsonl").read_text()


class InProcessTest(chex.TestCase):
    """In one process, at every step: the loss is read every third step."""

    def setUp(self):
        super().setUp()
        folder = self.enter_context(tempfile.TemporaryDirectory())
        self.folder = pathlib.Path(folder)
        self.enter_context(mock.patch.object(loop, "progress", Bar))
        self.enter_context(mock.patch.object(loop, "_LOG_EVERY", 3))
        for patch in tiny_runs.compiling_once():
            self.enter_context(patch)

    def run_once(self, name, **options):
        return tiny_runs.train(self.folder / name, perturb=LOUD, **options)

    def assert_same_end(self, name):
        chex.assert_trees_all_equal(
            final_arrays(self.folder / name), final_arrays(self.folder / "left_alone")
        )
        self.assertEqual(
            metrics_text(self.folder / name), metrics_text(self.folder / "left_alone")
        )

    # A reading of the loss, the end of an epoch, a step in between, the last step.
    @parameterized.parameters((1, (3, 5, 6, 7, 10, 15)), (2, (1, 4, 5, 10, 12)))
    def test_stopped_by_a_signal_at_any_step(self, evaluate_every, moments):
        options = {"evaluate_every": evaluate_every, "checkpoint_every": 2}
        self.run_once("left_alone", **options)
        for step in moments:
            name = f"stopped_{step}"
            with (
                mock.patch.object(Bar, "signal_at", step),
                self.assertRaises(signals.Stopped) as caught,
            ):
                self.run_once(name, **options)
            self.assertEqual(caught.exception.exit_code, 143)
            self.assertEqual(final_arrays(self.folder / name)["newest"], step)
            self.run_once(name, **options)
            with self.subTest(step=step):
                self.assert_same_end(name)

    def test_dying_over_and_over(self):
        self.run_once("left_alone")
        rng, deaths = np.random.default_rng(0), 0
        for patch in (
            mock.patch.object(
                loop.MetricsWriter, "write", tiny_runs.burning(loop.MetricsWriter.write)
            ),
            mock.patch.object(
                loop.Checkpoints, "save", tiny_runs.burning(loop.Checkpoints.save)
            ),
        ):
            self.enter_context(patch)
        for number in range(2):
            finished = False
            while not finished:
                with mock.patch.object(Bar, "fuse", int(rng.integers(0, 22))):
                    try:
                        self.run_once(f"died_{number}")
                        finished = True
                    except PowerFailure:
                        deaths += 1
            self.assert_same_end(f"died_{number}")
        self.assertGreater(deaths, 6)

    def test_a_finished_run_changes_nothing_when_repeated(self):
        self.run_once("left_alone")
        before = metrics_text(self.folder / "left_alone")
        arrays = final_arrays(self.folder / "left_alone")
        self.run_once("left_alone")
        self.assertEqual(metrics_text(self.folder / "left_alone"), before)
        chex.assert_trees_all_equal(final_arrays(self.folder / "left_alone"), arrays)


# Dies without warning 20 ms into writing the second checkpoint.
KILLED_WHILE_SAVING = """
import os, signal, threading
from wsjax.training import checkpoints
save = checkpoints.Checkpoints.save

def save_and_die(self, state, count=[]):
    count.append(1)
    if len(count) == 2:
        act = lambda: os.kill(os.getpid(), signal.SIGKILL)
        threading.Timer(0.02, act).start()
        save(self, state)
        threading.Event().wait()
    save(self, state)

checkpoints.Checkpoints.save = save_and_die
"""
# Is asked to stop in the middle of the third epoch it sees.
STOPPED = """
import signal
from wsjax.training import loop
from tqdm import tqdm

class Bar(tqdm):
    def update(self):
        super().update()
        if self.n == {step}:
            signal.raise_signal(signal.SIGTERM)

loop.progress = Bar
"""


class ProgramTest(chex.TestCase):
    def test_killed_then_stopped_then_finished(self):
        folder = pathlib.Path(self.enter_context(tempfile.TemporaryDirectory()))
        config = tiny_runs.write_config(folder)

        def arguments(name):
            return f"--config={config}", f"--workdir={folder / name}"

        def forked(name, prelude=""):
            return tiny_runs.Forked("train.py", arguments(name), prelude)

        (code, _, err), killed = tiny_runs.run_together(
            [forked("left_alone"), forked("again", KILLED_WHILE_SAVING)]
        )
        self.assertEqual(code, 0, err)
        self.assertEqual(killed[0], -9)
        (stopped,) = tiny_runs.run_together([forked("again", STOPPED.format(step=29))])
        code, _, err = stopped
        self.assertEqual(code, 143, err)
        self.assertIn("stopped by SIGTERM; run the same command to go on", err)
        code, _, err = tiny_runs.run("train.py", *arguments("again"))
        self.assertEqual(code, 0, err)
        self.assertIn("Resuming at step 29 of 36", err)

        self.assertEqual(
            metrics_text(folder / "again"), metrics_text(folder / "left_alone")
        )
        chex.assert_trees_all_equal(
            final_arrays(folder / "again"), final_arrays(folder / "left_alone")
        )


if __name__ == "__main__":
    absltest.main()
