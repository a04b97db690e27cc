"""Tests of wsjax.console: signals at any moment, and output that nobody reads."""

import os
import pathlib
import signal
import subprocess
import sys
import time

import tiny_runs
from absl.testing import absltest, parameterized

from wsjax import scripts
from wsjax.console import signals

EACH = ((signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129))
SENTENCE = "stopped by {}; run the same command to go on.\n"
# Minutes outside of Python, where no handler of Python's can run.
BUSY = "hashlib.pbkdf2_hmac('sha256', b'', b'', 10**9)"
START = "import hashlib; from wsjax.console import signals; signals.end_on_signals(); "


def start(*command):
    return subprocess.Popen(
        [sys.executable, *map(str, command)],
        cwd=tiny_runs.ROOT,
        env=tiny_runs.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for_handlers(process):
    """Until it catches the last of the signals, as the kernel knows."""
    status = pathlib.Path(f"/proc/{process.pid}/status")
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        caught = status.read_text().partition("SigCgt:")[2].split()
        if caught and int(caught[0], 16) >> (signals.SIGNALS[-1] - 1) & 1:
            return
        time.sleep(0.002)
    raise TimeoutError(process.args)


@absltest.skipUnless(sys.platform == "linux", "Asks /proc.")
class SignalsTest(parameterized.TestCase):
    def assert_ends(self, process, signum, code):
        began = time.monotonic()
        out, err = process.communicate(timeout=60)
        self.assertEqual((out, err), ("", SENTENCE.format(signum.name)))
        self.assertEqual(process.returncode, code)
        self.assertLess(time.monotonic() - began, 20)

    @parameterized.parameters(
        *zip(EACH, ("train.py", "certify.py", "attack.py")),
        *((EACH[0], ("-mwsjax", name)) for name in scripts.COMMANDS),
    )
    def test_a_program_ends_with_a_sentence_while_it_still_imports(self, each, script):
        script = (script,) if isinstance(script, str) else script
        process = start(*script, "--config=nowhere.py")
        wait_for_handlers(process)
        process.send_signal(each[0])
        self.assert_ends(process, *each)

    @parameterized.parameters(*EACH)
    def test_the_first_signal_ends_what_no_flag_waits_for(self, signum, code):
        process = start("-c", START + BUSY)
        wait_for_handlers(process)
        time.sleep(0.2)
        process.send_signal(signum)
        self.assert_ends(process, signum, code)

    @parameterized.parameters(*EACH)
    def test_the_second_signal_ends_what_waits_for_a_unit_of_work(self, signum, code):
        process = start("-c", f"{START}\nwith signals.StopFlag(): {BUSY}")
        wait_for_handlers(process)
        time.sleep(0.2)
        process.send_signal(signum)
        with self.assertRaises(subprocess.TimeoutExpired):
            process.wait(0.5)
        process.send_signal(signum)
        self.assert_ends(process, signum, code)

    @parameterized.parameters(*EACH)
    def test_a_signal_to_a_program_that_has_ended_changes_nothing(self, signum, _):
        """Its modules are taken apart when the last object of this one goes."""
        text = f"""{START}
import os
class Last:
    def __del__(self, kill=os.kill, me=os.getpid()):
        kill(me, {int(signum)})
last = Last()
print("done")"""
        process = start("-c", text)
        self.assertEqual(process.communicate(timeout=60), ("done\n", ""))
        self.assertEqual(process.returncode, 0)

    def test_ignored_signals_stay_ignored(self):
        text = (
            "import os, signal; signal.signal(signal.SIGHUP, signal.SIG_IGN); "
            f"{START}os.kill(os.getpid(), signal.SIGHUP)\n"
            "with signals.StopFlag() as flag: os.kill(os.getpid(), signal.SIGHUP)\n"
            "print(flag.signum)"
        )
        out, err = start("-c", text).communicate(timeout=60)
        self.assertEqual((out, err), ("None\n", ""))

    def test_a_signal_that_nobody_checked_for_stops_at_the_end_of_the_block(self):
        before = [signal.getsignal(signum) for signum in signals.SIGNALS]
        for signum, code in EACH:
            with (
                self.assertRaises(signals.Stopped) as caught,
                signals.StopFlag() as flag,
            ):
                self.assertFalse(flag.raised)
                signal.raise_signal(signum)
                self.assertTrue(flag.raised)
            self.assertEqual(caught.exception.exit_code, code)
            self.assertIsNone(signals.StopFlag.noting)
        self.assertEqual([signal.getsignal(s) for s in signals.SIGNALS], before)

    def test_another_error_is_not_hidden_by_a_signal(self):
        with self.assertRaisesRegex(KeyError, "other"), signals.StopFlag():
            signal.raise_signal(signal.SIGTERM)
            raise KeyError("other")


class OutputTest(parameterized.TestCase):
    @parameterized.parameters("print('x' * 10**6)", "print('x', flush=True)", "print()")
    def test_output_that_nobody_reads_ends_quietly(self, then):
        text = (
            "from wsjax.console.output import quiet_when_unread\n"
            f"with quiet_when_unread(): {then}"
        )
        read, write = os.pipe()
        os.close(read)
        for stdout, code in ((write, 141), (None, 0)):
            closed = "import os, sys; sys.stdout = None\n" if stdout is None else ""
            done = subprocess.run(
                [sys.executable, "-c", closed + text],
                cwd=tiny_runs.ROOT,
                stdout=stdout,
                stderr=subprocess.PIPE,
                check=False,
            )
            self.assertEqual((done.returncode, done.stderr), (code, b""))
        os.close(write)


if __name__ == "__main__":
    absltest.main()
