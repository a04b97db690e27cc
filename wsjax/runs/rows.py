"""Result files: tab-separated, one flushed row per image, resumable.

A run that was killed leaves at worst an unfinished last line. Opening the file again
drops that line, hands back the rows before it, and appends after them.
"""

import contextlib
import csv
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


class RowsError(ValueError):
    """A rows file is damaged or belongs to something else."""


class RowWriter:
    """Appends rows to a file with a fixed header.

    Attributes:
      done: `idx` of every row that was in the file when it was opened.
    """

    def __init__(self, path: pathlib.Path, columns: Sequence[str]):
        """Opens `path`, creating it with a header if need be.

        Args:
          path: the file.
          columns: names; the first is "idx", an integer that is unique.

        Raises:
          RowsError: the file has other columns or a damaged row.
          OSError: it cannot be written.
        """
        self._path, self._columns = pathlib.Path(path), tuple(columns)
        self.done = set()
        if self._path.exists():
            whole = _whole_lines(self._path)
            if whole:
                rows = _parse(self._path, whole)
                if tuple(rows.columns) != self._columns:
                    raise RowsError(
                        f"{path} has columns {rows.columns}, expected "
                        f"{list(columns)}. It is from another version; move it away "
                        f"or choose another --workdir."
                    )
                self.done = {int(row[0]) for row in rows.cells}
            with self._path.open("r+b") as file:
                file.truncate(len(whole))
        self._file = self._path.open("a", newline="")
        if self._path.stat().st_size == 0:
            self._put(self._columns)

    def write(self, **values) -> None:
        """Appends one row; every column is named. Returns once it is handed over.

        Raises:
          OSError: the disk is full or gone; rows written before stay valid.
        """
        assert set(values) == set(self._columns), (set(values), self._columns)
        self._put([_format(values[name]) for name in self._columns])

    def _put(self, cells):
        try:
            self._file.write("\t".join(cells) + "\n")
            self._file.flush()
        except OSError as error:
            raise self._explained(error) from error

    def _explained(self, error):
        return OSError(
            error.errno,
            f"{error.strerror}: the rows in {self._path} up to here are valid; "
            f"make room and run the same command again to go on",
        )

    def close(self) -> None:
        """Closes the file, with everything on disk.

        Raises:
          OSError: as `write`.
        """
        try:
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise self._explained(error) from error
        finally:
            # What could not be flushed is tried again, and fails again.
            with contextlib.suppress(OSError):
                self._file.close()

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        try:
            self.close()
        except OSError:
            if kind is None:  # Otherwise the first error tells more.
                raise


class Rows:
    """The content of a rows file, by column.

    Attributes:
      columns: names in file order.
      cells: one list of strings per row.
    """

    def __init__(self, columns: list[str], cells: list[list[str]]):
        self.columns, self.cells = columns, cells

    def __len__(self) -> int:
        return len(self.cells)

    def text(self, name: str) -> list[str]:
        """One column as strings.

        Raises:
          RowsError: there is no such column.
        """
        if name not in self.columns:
            raise RowsError(f"No column {name!r} in {self.columns}.")
        index = self.columns.index(name)
        return [row[index] for row in self.cells]

    def floats(self, name: str) -> np.ndarray:
        """One column as `[rows]` float64."""
        return self._numbers(name, float, np.float64)

    def ints(self, name: str) -> np.ndarray:
        """One column as `[rows]` int64."""
        return self._numbers(name, int, np.int64)

    def _numbers(self, name, kind, dtype):
        try:
            return np.array([kind(cell) for cell in self.text(name)], dtype)
        except ValueError as error:
            raise RowsError(f"Column {name!r} is damaged: {error}.") from error

    def votes(self, name: str, num_classes: int) -> np.ndarray:
        """One column of `format_votes` cells as `[rows, num_classes]` int64."""
        cells = [parse_votes(cell, num_classes) for cell in self.text(name)]
        return np.array(cells, np.int64).reshape(len(cells), num_classes)

    def arrays(self, kinds: Mapping[str, str], num_classes: int) -> dict[str, Any]:
        """Columns as arrays.

        Args:
          kinds: what is in each column, as `certifiers.base.Certifier.columns` says.
          num_classes: K of "votes".

        Returns:
          `[rows]` or `[rows, K]` arrays by name; nothing in a "maybe" cell is NaN.

        Raises:
          RowsError: a column is missing or damaged.
        """
        read = {
            "int": self.ints,
            "float": self.floats,
            "maybe": lambda name: self._numbers(
                name, lambda cell: float(cell or "nan"), np.float64
            ),
            "votes": lambda name: self.votes(name, num_classes),
            "text": lambda name: np.array(self.text(name)),
        }
        return {name: read[kind](name) for name, kind in kinds.items()}


def read_rows(path: pathlib.Path) -> Rows:
    """Reads a rows file, sorted by `idx`; an unfinished last line is left out.

    Raises:
      FileNotFoundError: there is none.
      RowsError: it has no header or a damaged row.
    """
    path = pathlib.Path(path)
    if not path.exists():
        raise FileNotFoundError(f"No rows at {path}; run the script that writes them.")
    rows = _parse(path, _whole_lines(path))
    rows.cells.sort(key=lambda row: int(row[0]))
    return rows


def format_votes(votes: np.ndarray) -> str:
    """Counts per class as `class:count` pairs, zero counts left out."""
    return ",".join(f"{k}:{count}" for k, count in enumerate(votes) if count)


def parse_votes(text: str, num_classes: int) -> np.ndarray:
    """Inverse of `format_votes`: `[num_classes]` int64.

    Raises:
      RowsError: the text is no list of pairs of classes below `num_classes`.
    """
    votes = np.zeros(num_classes, np.int64)
    try:
        for pair in filter(None, text.split(",")):
            label, count = map(int, pair.split(":"))
            if min(label, count) < 0:
                raise ValueError(pair)
            votes[label] = count
    except (ValueError, IndexError) as error:
        raise RowsError(f"{text!r} are no votes of {num_classes} classes.") from error
    return votes


def _whole_lines(path):
    content = path.read_bytes()
    return content[: content.rfind(b"\n") + 1]


def _parse(path, content):
    text = content.decode(errors="replace").splitlines()
    lines = list(csv.reader(text, delimiter="\t", quoting=csv.QUOTE_NONE))
    if not lines or lines[0][:1] != ["idx"]:
        raise RowsError(f"{path} has no header line that begins with idx.")
    columns, cells = lines[0], lines[1:]
    seen = set()
    for number, row in enumerate(cells, start=2):
        if len(row) != len(columns) or not row[0].isdecimal() or row[0] in seen:
            raise RowsError(
                f"{path}, line {number} is damaged: {len(row)} cells where "
                f"{len(columns)} belong, or a bad or repeated idx. Delete that line "
                f"and run again."
            )
        seen.add(row[0])
    return Rows(columns, cells)


def _format(value):
    if isinstance(value, (bool, np.bool_)):
        return str(int(value))
    if isinstance(value, (float, np.floating)):
        # Shortest text that reads back as the same number.
        return repr(float(value))
    if isinstance(value, np.ndarray):
        return format_votes(value)
    return "" if value is None else str(value)
