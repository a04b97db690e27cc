"""Training metrics on disk: one JSON object per line, and TensorBoard events."""

import contextlib
import json
import pathlib
import time

from wsjax import files


class MetricsWriter:
    """Appends metrics to `metrics.jsonl` and, where installed, to TensorBoard.

    On resuming at a step, lines of later steps are dropped: the run will write them
    again. Every line is flushed, so a killed run loses at most one.
    """

    def __init__(self, workdir: pathlib.Path, resume_step: int):
        """Opens the files of a run directory, keeping metrics up to `resume_step`."""
        self._path = workdir / "metrics.jsonl"
        kept = [line for line in read_metrics(workdir) if line["step"] <= resume_step]
        text = "".join(json.dumps(line) + "\n" for line in kept)
        files.write_whole(self._path, text)
        self._file = self._path.open("a")
        self._board: _Board | None
        try:
            self._board = _Board(workdir / "tensorboard", purge_step=resume_step + 1)
        except ImportError:
            self._board = None

    def write(self, step: int, values: dict[str, float]) -> None:
        """Records scalars that belong to `step`."""
        try:
            self._file.write(json.dumps({"step": step, **values}) + "\n")
            self._file.flush()
            if self._board is not None:
                self._board.write(step, values)
        except OSError as error:
            raise files.not_written(self._path, error) from error

    def close(self) -> None:
        """Closes both; what could not be written, `write` has told."""
        with contextlib.suppress(OSError):
            self._file.close()
        if self._board is not None:
            with contextlib.suppress(OSError):
                self._board.close()


class _Board:
    """Events for TensorBoard.

    What `tensorboardX.SummaryWriter` does, without its thread: that dies on a full disk,
    and the next writes would wait for it forever.
    """

    def __init__(self, folder, purge_step):
        from tensorboardX import event_file_writer, summary
        from tensorboardX.proto import event_pb2

        folder.mkdir(exist_ok=True)
        self._file = event_file_writer.EventsWriter(str(folder / "events"))
        self._scalar, self._event = summary.scalar, event_pb2.Event
        start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        self._put(purge_step, session_log=start)

    def _put(self, step, **content):
        self._file.write_event(self._event(wall_time=time.time(), step=step, **content))

    def write(self, step, values):
        for name, value in values.items():
            self._put(step, summary=self._scalar(name, value))
        self._file.flush()

    def close(self):
        self._file.close()


def read_metrics(workdir: pathlib.Path) -> list[dict]:
    """Lines of `metrics.jsonl`, oldest first; an unfinished last line is left out.

    Raises:
      ValueError: a line is damaged; the message names it.
    """
    path = workdir / "metrics.jsonl"
    if not path.exists():
        return []
    rows = []
    for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], start=1):
        try:
            row = files.parse_json(line)
            if type(row.get("step")) is not int:
                raise ValueError(f"its step is {row.get('step')!r}")
        except ValueError as error:
            raise ValueError(
                f"{path}, line {number} is damaged ({error}); delete that line."
            ) from error
        rows.append(row)
    return rows
