"""Stopping a long run cleanly on Ctrl-C or SIGTERM."""

import signal
import threading


class Stopped(Exception):
    """A signal asked the run to stop, and everything finished so far is saved.

    Attributes:
      exit_code: what a shell expects after that signal, 128 + its number.
    """

    def __init__(self, signum: int):
        super().__init__(f"stopped by {signal.Signals(signum).name}")
        self.exit_code = 128 + signum


class StopFlag:
    """Notes SIGINT and SIGTERM instead of dying; a second one acts as usual.

    Use as a context manager around a loop that calls `check` between units of work.
    Outside the main thread, where handlers cannot be set, it does nothing.

    Attributes:
      signum: the number of the signal that has arrived, None without one.
    """

    def __init__(self):
        self.signum: int | None = None
        self._previous = {}

    def __enter__(self):
        if threading.current_thread() is threading.main_thread():
            for signum in (signal.SIGINT, signal.SIGTERM):
                self._previous[signum] = signal.signal(signum, self._note)
        return self

    def __exit__(self, *_):
        self._restore()

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
        """Raises `Stopped` if a signal has arrived."""
        if self.signum is not None:
            raise Stopped(self.signum)
