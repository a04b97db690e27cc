"""What a program says at its end: of an error, or to nobody any more, which is none."""

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


@contextlib.contextmanager
def errors_in_a_sentence(*kinds: type[Exception]) -> Iterator[None]:
    """Runs a program that ends with a sentence when the user can do something about it.

    Args:
      *kinds: of errors that explain themselves.

    Yields:
      Nothing.

    Raises:
      SystemExit: 1 after an error of these kinds; as `quiet_when_unread` of standard output.
    """
    with quiet_when_unread():
        try:
            yield
        except BrokenPipeError:
            raise  # Of standard output; no error.
        except kinds as error:
            print(f"error: {error}", file=sys.stderr)
            sys.exit(1)
