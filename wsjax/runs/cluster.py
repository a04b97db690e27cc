"""Several processes at one run: joining, agreeing, and ending together.

A run on one process passes through here without doing anything. With several, each one
works through the same list in the same order, and process 0 alone writes. Whatever
they must know of each other goes through the functions below, which all processes call
in the same order: an error or a signal at one of them then ends them all, at the same
point and with a message, while a process that is gone takes the others with it (JAX
sees to that).
"""

import collections
import contextlib
import functools
import itertools
import json
import logging
import os
import pathlib
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from absl import flags
from jax.experimental import multihost_utils

from wsjax.console.signals import StopFlag, Stopped
from wsjax.runs import manifest
from wsjax.runs.rows import RowWriter

# Mistakes of the user or the machine, which a message explains better than a trace.
EXPLAINED = (ValueError, OSError, ImportError, FloatingPointError)

# Where files lie may differ between hosts; what is in them is compared.
_MAY_DIFFER = ("data.dir", "data.source", "model.checkpoint")

_COORDINATOR = flags.DEFINE_string(
    "coordinator", None, "HOST:PORT of process 0, for a run on several processes."
)
_NUM_PROCESSES = flags.DEFINE_integer(
    "num_processes", None, "How many there are; with --coordinator.", lower_bound=1
)
_PROCESS_ID = flags.DEFINE_integer(
    "process_id", None, "Which one this is, from 0; with --coordinator.", lower_bound=0
)
_DISTRIBUTED = flags.DEFINE_bool(
    "distributed", False, "Several processes, found out from Slurm, Open MPI or a TPU."
)
_HEARTBEAT = flags.DEFINE_integer(
    "heartbeat_timeout",
    60,
    "Seconds of silence after which a process counts as dead and the others end.",
    lower_bound=5,
)
FLAGS = tuple(
    flag.name
    for flag in (_COORDINATOR, _NUM_PROCESSES, _PROCESS_ID, _DISTRIBUTED, _HEARTBEAT)
)

_log = logging.getLogger("wsjax")


class ClusterError(ValueError):
    """Ends all processes of a run; every one of them raises it at the same point."""


def asked_for() -> bool:
    """Whether the command line asks for several processes."""
    return _DISTRIBUTED.value or any(
        flag.value is not None for flag in (_COORDINATOR, _NUM_PROCESSES, _PROCESS_ID)
    )


def join() -> None:
    """Joins the other processes, if the command line asks for several.

    Comes before anything that makes JAX start its backend. Returns once all have
    joined; JAX itself ends a process that has waited for five minutes.

    Raises:
      ValueError: the flags contradict each other, nothing can be found out, the
        processes have different numbers of devices, or the port is taken.
    """
    if not asked_for():
        return
    given = (_COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value)
    _check_flags(*given)
    # Its handler would swallow a SIGTERM that arrives before ours is set.
    jax.config.update("jax_enable_preemption_service", False)
    options: dict[str, Any] = {"heartbeat_timeout_seconds": _HEARTBEAT.value}
    if not _DISTRIBUTED.value:
        # JAX may abort while it waits; this line then says for what.
        _log.info("Process %d of %d joins %s.", given[2], given[1], given[0])
        # Otherwise JAX would take one GPU per process for granted under Slurm.
        options["cluster_detection_method"] = "deactivate"
    try:
        jax.distributed.initialize(*given, **options)
    except (RuntimeError, ValueError, TypeError) as error:
        raise ValueError(_why_not_joined(error)) from error
    devices = collections.Counter(device.process_index for device in jax.devices())
    if len(set(devices.values())) > 1:
        raise ClusterError(
            f"Each process needs the same number of devices, but they have "
            f"{dict(sorted(devices.items()))}. Leave the extra ones out, e.g. with "
            f"CUDA_VISIBLE_DEVICES."
        )


def _check_flags(coordinator, num_processes, process_id):
    named = {
        "--coordinator": coordinator,
        "--num_processes": num_processes,
        "--process_id": process_id,
    }
    missing = [name for name, value in named.items() if value is None]
    if _DISTRIBUTED.value:
        if len(missing) < len(named):
            raise ValueError(
                "--distributed finds out --coordinator, --num_processes and "
                "--process_id itself; give either it or the three."
            )
        return
    if missing:
        raise ValueError(
            f"{' and '.join(missing)} missing: several processes need --coordinator="
            f"HOST:PORT, --num_processes=N and --process_id=I, or --distributed alone "
            f"where Slurm, Open MPI or a TPU tells."
        )
    if not re.fullmatch(r".+:\d{1,5}", coordinator):
        raise ValueError(
            f"--coordinator={coordinator!r} is not HOST:PORT, such as 10.0.0.1:1234."
        )
    if process_id >= num_processes:
        raise ValueError(
            f"--process_id={process_id} is not below --num_processes={num_processes}; "
            f"processes are counted from 0."
        )


def _why_not_joined(error):
    if "start RPC server" in str(error):
        return (
            f"Process 0 cannot listen on the port of --coordinator="
            f"{_COORDINATOR.value}; another program has it. Choose another port for "
            f"all processes."
        )
    if _DISTRIBUTED.value:
        return (
            f"--distributed found no cluster ({error}). Start under srun, mpirun or on "
            f"a TPU, or give --coordinator, --num_processes and --process_id."
        )
    return f"The processes could not join: {error}"


def cores() -> int:
    """How many CPU cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def several() -> bool:
    """Whether this run has several processes."""
    # Without having joined, the question alone would start JAX's backend.
    return jax.distributed.is_initialized() and jax.process_count() > 1


def leads() -> bool:
    """Whether this process is the one that writes: the only one, or process 0."""
    return not several() or jax.process_index() == 0


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Runs a block at all processes; an error at one is raised at all.

    The block itself must not wait for other processes.

    Raises:
      ClusterError: the block failed here or elsewhere; the message is that of the
        first process that failed. On one process, the block's own error.
    """
    if not several():
        yield
        return
    failure = None
    try:
        yield
    except EXPLAINED as error:
        failure = error
    messages = _gather_text("" if failure is None else f"failed {sentence(failure)}")
    for number, message in enumerate(messages):
        if message:
            text = message.removeprefix("failed ")
            raise ClusterError(f"process {number}: {text}") from failure


def check_agreement(config: dict[str, Any], **facts: Any) -> None:
    """Makes sure that all processes are about to do the same.

    Args:
      config: resolved; places of files may differ.
      **facts: whatever else must agree, as plain values.

    Raises:
      ClusterError: at all processes; names the first one that differs from process 0
        and each difference.
    """
    if not several():
        return
    known = {
        **manifest.flat({"config": config, **facts}),
        **{f"version of {k}": v for k, v in manifest.versions().items()},
        "64-bit types": jax.config.read("jax_enable_x64"),
        "kind of device": jax.local_devices()[0].device_kind,
    }
    for key in _MAY_DIFFER:
        known.pop(f"config.{key}", None)
    first, *others = map(json.loads, _gather_text(json.dumps(known, default=str)))
    for number, other in enumerate(others, start=1):
        wrong = [
            f"{key} is {other.get(key)!r}, there {first.get(key)!r}"
            for key in sorted(first.keys() | other.keys())
            if first.get(key) != other.get(key)
        ]
        if wrong:
            raise ClusterError(
                f"Process {number} differs from process 0: {'; '.join(wrong)}. Start "
                f"all processes with the same command, files and packages."
            )


def _gather_text(text):
    """The texts of all processes, in order."""
    data = np.frombuffer(text.encode(), np.uint8)
    lengths = multihost_utils.process_allgather(np.int32(len(data)))
    padded = np.zeros(max(int(lengths.max()), 1), np.uint8)
    padded[: len(data)] = data
    every = multihost_utils.process_allgather(padded)
    return [bytes(row[:size]).decode() for row, size in zip(every, lengths)]


class SharedRows:
    """The rows of a run that all processes work at and process 0 writes.

    Use as a context manager around the loop over images. On one process it is a
    `RowWriter` and a `StopFlag`. With several, neither a full disk nor a signal ends
    the loop at once: both travel with `until_stopped` to all processes, which finish
    the batches already begun, and raise when the block ends.

    Attributes:
      todo: the items that have no row yet, the same for all processes.
    """

    def __init__(
        self,
        path: pathlib.Path,
        columns: Sequence[str],
        run: str,
        indices: Sequence[int],
    ):
        """Opens the rows on process 0, and tells the others what is left to do.

        Args:
          path: as in `RowWriter`.
          columns: as in `RowWriter`.
          run: as in `RowWriter`; asked for on process 0 alone.
          indices: what to work at, the same for all processes.

        Raises:
          RowsError: as `RowWriter`; with several processes, `ClusterError` at all.
          OSError: likewise.
        """
        self._writer: RowWriter | None = None
        self._failure: OSError | None = None
        with together():
            if leads():
                self._writer = RowWriter(path, columns, run)
        done = self._writer.done if self._writer else ()
        left = np.array([index not in done for index in indices], np.uint8)
        if several() and left.size:
            left = multihost_utils.broadcast_one_to_all(left)
        self.todo = [index for index, is_left in zip(indices, left) if is_left]
        self._stop = StopFlag()

    def until_stopped(self, items: Iterable[Any], every: int = 1) -> Iterator[Any]:
        """Passes items on, until a process was asked to stop or could not write.

        Args:
          items: the same for all processes, which ask for them in the same order.
          every: after how many of them the processes talk.

        Yields:
          The items.
        """
        asked = None
        for position, item in enumerate(items):
            if several() and position % every == 0:
                # The answer of last time has arrived with the votes since; this one
                # travels between those before and after it, and delays neither.
                if asked is not None and int(np.asarray(asked)):
                    return
                asked = _largest(self._stop.raised or self._failure is not None)
            yield item

    def write(self, **values: Any) -> None:
        """Appends a row, on process 0; see `RowWriter.write`."""
        if self._writer is None or self._failure is not None:
            return
        try:
            self._writer.write(**values)
        except OSError as error:
            if not several():
                raise
            self._failure = error

    def check(self) -> None:
        """On one process, raises `Stopped` if a signal has arrived."""
        if not several():
            self._stop.check()

    def __enter__(self):
        self._stop.__enter__()
        return self

    def __exit__(self, kind, *details):
        try:
            self._close(kind, *details)
            if kind is None and several():
                with together():
                    if self._failure is not None:
                        raise self._failure
                if signum := int(np.asarray(_largest(self._stop.signum or 0))):
                    raise Stopped(signum)
        finally:
            self._stop.__exit__(kind, *details)

    def _close(self, kind, *details):
        if self._writer is None:
            return
        try:
            self._writer.__exit__(kind, *details)
        except OSError as error:
            if not several():
                raise
            self._failure = self._failure or error


def in_turn(
    work: Callable[[Iterable], Iterator[dict[str, Any]]], rows: SharedRows
) -> Iterator[dict[str, Any]]:
    """Rows of work on the host: each process works at its share, all get all.

    Args:
      work: items to their rows, plain numbers and text.
      rows: what is left to do; on one process all of it is handed on at once.

    Yields:
      The rows, in order.

    Raises:
      ClusterError: the work failed at one process; on one process, its own error.
    """
    if not several():
        yield from work(rows.until_stopped(rows.todo))
        return
    count, rank = jax.process_count(), jax.process_index()
    waiting = rows.until_stopped(rows.todo, every=count)
    while group := list(itertools.islice(waiting, count)):
        with together():
            text = json.dumps(list(work(group[rank : rank + 1])), default=float)
        for part in _gather_text(text):
            yield from json.loads(part)


def _largest(number):
    """The largest of one number per process, as an array that arrives later."""
    total, sharding = _maximum()
    parts = [
        jax.device_put(np.array([number], np.int32), device)
        for device in jax.local_devices()
    ]
    return total(
        jax.make_array_from_single_device_arrays((jax.device_count(),), sharding, parts)
    )


@functools.cache
def _maximum():
    mesh = jax.sharding.Mesh(np.array(jax.devices()), ("devices",))
    split, same = (
        jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*axes))
        for axes in (("devices",), ())
    )
    return jax.jit(lambda values: values.max(), out_shardings=same), split


def is_lost(error: BaseException) -> bool:
    """Whether an error means that another process is gone.

    A collective that loses its other end fails with a status of the runtime, whose
    Python type depends on where it is noticed.
    """
    return several() and (
        isinstance(error, jax.errors.JaxRuntimeError)
        or re.match(r"[A-Z_]{5,}: ", str(error)) is not None
    )


LOST = (
    "Another process of this run ended or cannot be reached; its own messages tell why. "
    "Rows written so far are valid: start the run again, with any number of processes."
)


def leave(code: int) -> None:
    """Ends this process at once, if it has others: they must not wait for it.

    The ordinary way out waits until all processes have finished.
    """
    if several():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def sentence(error: BaseException) -> str:
    """An error in one line, with the file that an `OSError` is about."""
    if isinstance(error, OSError) and error.strerror:
        where = f" ({error.filename})" if error.filename else ""
        return f"{error.strerror}{where}"
    return " ".join(str(error).split())
