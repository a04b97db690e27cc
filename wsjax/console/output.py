"""Standard output that nobody reads (any more) is no error."""

import contextlib
import os
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def quiet_when_unread() -> Iterator[None]:
    """Runs a program whose reader may have seen enough, as `head -1` has, or be none.

    Yields:
      Nothing.

    Raises:
      SystemExit: quietly, with the code of a process that SIGPIPE ended.
    """
    # Started with closed files, as `>&-` does, Python has none.
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115
    try:
        try:
            yield
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        # Else it is tried again at the very end, and complained about.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + 13)
