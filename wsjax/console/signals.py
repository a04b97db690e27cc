"""Stopping on Ctrl-C, SIGTERM or SIGHUP: with a sentence, at any moment.

A program calls `end_on_signals` before the imports that take seconds. From then on a
signal ends it at once. Nothing is lost by that, since files are written whole or not at
all, and rows as they are found (`runs`). Where work is worth finishing first, a
`StopFlag` notes the signal instead; a second one ends the program all the same.

Imports the standard library alone.
"""

import atexit
import contextlib
import os
import signal
import threading
from typing import ClassVar

# A terminal that is closed sends SIGHUP, which other systems do not have.
SIGNALS = tuple(
    getattr(signal, name)
    for name in ("SIGINT", "SIGTERM", "SIGHUP")
    if hasattr(signal, name)
)


class Stopped(Exception):
    """A signal asked the run to stop, and everything finished so far is saved.

    Attributes:
      exit_code: what a shell expects after that signal, 128 + its number.
    """

    def __init__(self, signum: int):
        super().__init__(f"stopped by {signal.Signals(signum).name}")
        self.exit_code = 128 + signum


def end_on_signals() -> None:
    """Makes signals end this process, with a sentence; those ignored so far stay so.

    While the main thread is busy outside of Python, compiling for minutes say, a thread
    of its own hears them.
    """
    for signum in SIGNALS:
        if _is_heeded(signum):
            signal.signal(signum, _end)
    heard, tell_it = os.pipe()
    os.set_blocking(tell_it, False)
    signal.set_wakeup_fd(tell_it, warn_on_full_buffer=False)
    threading.Thread(target=_hear, args=(heard,), daemon=True).start()
    # Registered before all others, it comes last.
    atexit.register(_end_in_peace)


def tell(stopped: Stopped) -> None:
    """Says on standard error what stopped the process and what to do, once."""
    with _telling:
        if not _told:
            start = "\n" if os.isatty(2) else ""  # A progress bar may be there.
            text = f"{start}{stopped}; run the same command to go on.\n"
            # Not by a file of Python's, which may be in the middle of something.
            with contextlib.suppress(OSError):
                os.write(2, text.encode())
            _told.append(stopped)


_telling = threading.RLock()
_told: list[Stopped] = []


def _end(signum, _frame=None):
    stopped = Stopped(signum)
    tell(stopped)
    os._exit(stopped.exit_code)


def _end_in_peace():
    # Everything is done. Python would let signals of its last moments kill the process.
    for signum in SIGNALS:
        signal.signal(signum, signal.SIG_IGN)


def _hear(pipe):
    while True:
        for signum in os.read(pipe, 1):
            flag = StopFlag.noting
            if signum not in SIGNALS or not _is_heeded(signum):
                continue
            if flag is None or flag.heard:
                _end(signum)
            else:
                flag.heard = True


def _is_heeded(signum):
    return signal.getsignal(signum) != signal.SIG_IGN  # As nohup has it.


class StopFlag:
    """Notes signals instead of dying; a second one acts as usual.

    Use as a context manager around a loop that calls `check` between units of work.
    Outside the main thread, where handlers cannot be set, it does nothing.

    Attributes:
      signum: the number of the signal that has arrived, None without one.
      heard: whether one was sent; the main thread may be too busy to note it.
      noting: the flag that would note a signal now, if any.
    """

    noting: ClassVar["StopFlag | None"] = None

    def __init__(self):
        self.signum: int | None = None
        self.heard = False
        self._previous = {}

    def __enter__(self):
        if threading.current_thread() is threading.main_thread():
            for signum in SIGNALS:
                if _is_heeded(signum):
                    self._previous[signum] = signal.signal(signum, self._note)
            StopFlag.noting = self
        return self

    def __exit__(self, kind, *_):
        self._restore()
        if StopFlag.noting is self:
            StopFlag.noting = None
        if kind is None:
            self.check()

    def _note(self, signum, _frame):
        self.signum = signum
        self._restore()

    def _restore(self):
        for signum, handler in self._previous.items():
            signal.signal(signum, handler)
        self._previous = {}

    @property
    def raised(self) -> bool:
        """Whether a signal has arrived."""
        return self.signum is not None

    def check(self) -> None:
        """Raises `Stopped` if a signal has arrived; so does the end of the block."""
        if self.signum is not None:
            raise Stopped(self.signum)
