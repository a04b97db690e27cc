"""Training metrics on disk: one JSON object per line, and TensorBoard events."""

import json
import pathlib

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
        try:
            from tensorboardX import SummaryWriter
        except ImportError:
            self._board = None
        else:
            self._board = SummaryWriter(
                str(workdir / "tensorboard"), purge_step=resume_step + 1
            )

    def write(self, step: int, values: dict[str, float]) -> None:
        """Records scalars that belong to `step`."""
        try:
            self._file.write(json.dumps({"step": step, **values}) + "\n")
            self._file.flush()
        except OSError as error:
            raise files.not_written(self._path, error) from error
        if self._board is not None:
            for name, value in values.items():
                self._board.add_scalar(name, value, step)
            self._board.flush()

    def close(self) -> None:
        """Closes both."""
        self._file.close()
        if self._board is not None:
            self._board.close()


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
