"""Files: written whole or not at all, read with suspicion, used by one run at a time."""

import contextlib
import datetime
import errno
import json
import logging
import os
import pathlib
import socket
import sys
from collections.abc import Iterator
from typing import Any

try:
    import fcntl
except ImportError:  # Not on Windows.
    fcntl = None  # type: ignore[assignment]

_LOCK = ".lock"
_DEEPEST = 50  # No file of ours has JSON nested further.
_log = logging.getLogger("wsjax")


class InUse(ValueError):
    """Another process is at work in a directory."""


def write_whole(path: str | os.PathLike, content: str | bytes) -> None:
    """Writes a file, whole or not at all: what was there before stays until the end.

    Args:
      path: to write; replaced if it exists.
      content: text, as UTF-8, or bytes.

    Raises:
      OSError: the disk is full or cannot be written; the message names the file.
    """
    path = pathlib.Path(path)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            # Else a machine that loses power may keep the new name of no content.
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):  # Half a file takes up room that is needed.
            temporary.unlink(missing_ok=True)
        raise not_written(path, error) from error


def not_written(path: str | os.PathLike, error: OSError) -> OSError:
    """The same error, in words that name the file and the remedy."""
    return OSError(
        error.errno,
        f"{path} could not be written ({error.strerror or error}); make room there and "
        f"run the same command again",
    )


def parse_json(text: str | bytes) -> dict[str, Any]:
    """A JSON object that somebody else may have written.

    Args:
      text: of the object.

    Returns:
      Its content.

    Raises:
      ValueError: it is no JSON, no object, or nested as no file of ours is.
    """
    try:
        found = json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    if not isinstance(found, dict):
        raise ValueError(f"a {type(found).__name__}, no object")  # noqa: TRY004
    level: list[Any] = [found]
    for _ in range(_DEEPEST):
        level = [
            value
            for item in level
            if isinstance(item, (dict, list))
            for value in (item.values() if isinstance(item, dict) else item)
        ]
    if level:
        raise ValueError("it is nested too deeply")
    return found


@contextlib.contextmanager
def locked(folder: str | os.PathLike) -> Iterator[None]:
    """Keeps a directory to this process, until the block ends or the process does.

    A lock of the kernel on the file `.lock`, which says who has it. It ends with its
    process, however that dies, so it cannot go stale; what the file says may.
    On a file system that keeps no locks a warning is all there is.

    Args:
      folder: the directory; it exists and can be written.

    Yields:
      Nothing.

    Raises:
      InUse: another process has it; the message says which, where and since when.
      OSError: it cannot be written.
    """
    path = pathlib.Path(folder) / _LOCK
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            _take(descriptor, path)
            # Whoever had it takes the file away at the end. Then this is no longer the
            # one that others look at.
            if _is_still(descriptor, path):
                _sign(descriptor)
                break
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            path.unlink()
        os.close(descriptor)


def _take(descriptor, path):
    try:
        if fcntl is None:
            raise OSError(errno.ENOSYS, "no locks here")
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in (errno.EAGAIN, errno.EACCES):
            _log.warning(
                "%s keeps no locks (%s): see to it that one process works there.",
                path.parent,
                error.strerror,
            )
            return
        holder = path.read_text(errors="replace").strip() or "another process"
        raise InUse(
            f"{path.parent} is in use by {holder}. Two at once would write each row "
            f"twice: wait for its end, stop it, or choose another --workdir (with "
            f"--trained={path.parent} for its classifier)."
        ) from error


def _is_still(descriptor, path):
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


def _sign(descriptor):
    now = datetime.datetime.now(datetime.UTC).isoformat(" ", "seconds")
    text = (
        f"{pathlib.Path(sys.argv[0]).name}, process {os.getpid()} on "
        f"{socket.gethostname()} since {now}\n"
    )
    with contextlib.suppress(OSError):  # On a full disk the lock is good all the same.
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, text.encode(), 0)
