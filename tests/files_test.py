"""Tests of wsjax.files."""

import errno
import fcntl
import os
import pathlib
import signal
import socket
import subprocess
import sys
import tempfile
from unittest import mock

from absl.testing import absltest, parameterized

from wsjax import files

# Takes the lock of a folder, says so, and waits to be killed.
HOLDER = """
import pathlib, sys
from wsjax import files
sys.argv[0] = "train.py"
with files.locked(sys.argv[1]):
    print("mine", flush=True)
    sys.stdin.read()
"""


class _Folder(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        folder = self.enter_context(tempfile.TemporaryDirectory())
        self.folder = pathlib.Path(folder)


class LockedTest(_Folder):
    def hold(self):
        holder = subprocess.Popen(
            [sys.executable, "-c", HOLDER, str(self.folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.addCleanup(holder.communicate)
        self.addCleanup(holder.kill)
        self.assertEqual(holder.stdout.readline(), "mine\n")
        return holder

    def take(self):
        with files.locked(self.folder):
            pass

    def test_one_process_at_a_time_who_is_named(self):
        holder = self.hold()
        with self.assertRaisesRegex(
            files.InUse,
            rf"in use by train.py, process {holder.pid} on {socket.gethostname()} since "
            r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\+00:00\. .*--workdir .*--trained=",
        ):
            self.take()
        holder.communicate("")
        self.take()
        self.assertEqual(os.listdir(self.folder), [])

    def test_a_lock_dies_with_its_process(self):
        holder = self.hold()
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        self.assertEqual(os.listdir(self.folder), [".lock"])
        self.take()

    def test_what_others_left_is_no_lock(self):
        for text in ("", "train.py, process 1 on elsewhere since 1999", "\0\xff"):
            (self.folder / ".lock").write_text(text)
            self.take()

    def test_ends_with_its_block_however_that_ends(self):
        with self.assertRaises(KeyError), files.locked(self.folder):
            raise KeyError
        self.take()

    def test_a_file_that_its_owner_takes_away_meanwhile_is_no_lock(self):
        """Waiting for a lock whose file is gone would lock nobody out."""
        lock, flock, calls = self.folder / ".lock", fcntl.flock, []

        def gone_at_first(*arguments):
            flock(*arguments)
            if not calls:
                lock.unlink()
            calls.append(arguments)

        with (
            mock.patch.object(fcntl, "flock", gone_at_first),
            files.locked(self.folder),
        ):
            self.assertLen(calls, 2)
            with self.assertRaises(files.InUse):
                self.take()

    @parameterized.parameters(errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
    def test_a_file_system_without_locks_is_told(self, number):
        error = OSError(number, os.strerror(number))
        with (
            mock.patch.object(fcntl, "flock", side_effect=error),
            self.assertLogs("wsjax", "WARNING") as logs,
        ):
            self.take()
        self.assertIn(f"{self.folder} keeps no locks", logs.output[0])


class WriteWholeTest(_Folder):
    def test_mode_is_that_of_the_umask(self):
        path = self.folder / "file"
        for umask in (0o022, 0o027, 0o077):
            before = os.umask(umask)
            try:
                files.write_whole(path, b"x")
            finally:
                os.umask(before)
            self.assertEqual(path.stat().st_mode & 0o777, 0o666 & ~umask)

    def test_a_full_disk_leaves_what_was_there(self):
        path = self.folder / "summary.json"
        files.write_whole(path, "ä")
        full = OSError(errno.ENOSPC, "No space left on device")
        for name in ("fsync", "replace"):
            with (
                mock.patch.object(os, name, side_effect=full),
                self.assertRaisesRegex(
                    OSError, "summary.json could not .*No space.*room"
                ),
            ):
                files.write_whole(path, "other")
            self.assertEqual(path.read_text(), "ä")
            self.assertEqual(os.listdir(self.folder), ["summary.json"])

    def test_names_the_file_that_cannot_be(self):
        with self.assertRaisesRegex(OSError, "nowhere/x could not be written .No such"):
            files.write_whole(self.folder / "nowhere" / "x", "")


class ParseJsonTest(parameterized.TestCase):
    def test_an_object(self):
        self.assertEqual(files.parse_json(b'{"a": [1, {"b": null}]}')["a"][0], 1)

    @parameterized.parameters(
        *(b"", b"{", b"[]", b"3", b"null", b"\xff\xfe{}", b'{"a": 1} x'),
        *(b'{"a":' * n + b"1" + b"}" * n for n in (60, 900, 100_000)),
        *(b'{"a":' + b"[" * n + b"]" * n + b"}" for n in (60, 900, 100_000)),
        b'{"a": ' + b"1" * 5000 + b"}",
    )
    def test_refuses(self, text):
        with self.assertRaises(ValueError):
            files.parse_json(text)


if __name__ == "__main__":
    absltest.main()
