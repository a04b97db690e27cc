"""Result files: tab-separated, one flushed row per image, resumable.

A run that was killed leaves at worst an unfinished last line. Opening the file again
drops that line, hands back the rows before it, and appends after them.

Every row ends with two cells of its own: `run`, a digest of what it belongs to, and
`check`, one of that and of the row (but for `time`, which is another each time). Rows of
another run and rows that were changed by hand are told from those of this run.
"""

import contextlib
import hashlib
import json
import os
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

# Columns of the file itself, after those of its rows.
_OWN = ("run", "check")
# Numbers as they are written: `int` and `float` take much else, such as digits of other
# scripts, and zeros in front.
_INT = re.compile(r"0|-?[1-9][0-9]{0,17}")
_FLOAT = re.compile(r"-?(0|[1-9][0-9]*)([.][0-9]+)?(e[+-]?[0-9]+)?|-?inf|nan")
_MAYBE = re.compile(f"|{_FLOAT.pattern}")


def digest(facts: Any) -> str:
    """What rows belong to, in 16 characters: of plain nested values."""
    text = json.dumps(facts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class RowsError(ValueError):
    """A rows file is damaged or belongs to something else."""


class RowWriter:
    """Appends rows to a file with a fixed header.

    Attributes:
      done: `idx` of every row that was in the file when it was opened.
    """

    def __init__(self, path: pathlib.Path, columns: Sequence[str], run: str):
        """Opens `path`, creating it with a header if need be.

        Args:
          path: the file.
          columns: names; the first is "idx", an integer that is unique.
          run: `digest` of what the rows belong to.

        Raises:
          RowsError: as `check`.
          OSError: it cannot be written.
        """
        self._path, self._columns = pathlib.Path(path), tuple(columns)
        self._run = run
        found = check(self._path, columns, run)
        self.done = {int(row[0]) for row in found.cells}
        if self._path.exists():
            with self._path.open("r+b") as file:
                file.truncate(len(_whole_lines(self._path)) if self.done else 0)
        self._file = self._path.open("a", newline="")
        if self._path.stat().st_size == 0:
            self._put((*self._columns, *_OWN))

    def write(self, **values) -> None:
        """Appends one row; every column is named. Returns once it is handed over.

        Raises:
          OSError: the disk is full or gone; rows written before stay valid.
        """
        assert set(values) == set(self._columns), (set(values), self._columns)
        cells = [_format(values[name]) for name in self._columns]
        own = (self._run, _check_of(self._run, self._columns, cells))
        self._put((*cells, *own))

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
      columns: names in file order, without those of the file itself.
      cells: one list of strings per row.
    """

    def __init__(self, columns: list[str], cells: list[list[str]]):
        """Holds them."""
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
        return self._numbers(name, _FLOAT, float, np.float64)

    def ints(self, name: str) -> np.ndarray:
        """One column as `[rows]` int64."""
        return self._numbers(name, _INT, int, np.int64)

    def _numbers(self, name, pattern, kind, dtype):
        cells = self.text(name)
        for row, cell in zip(self.cells, cells):
            if not pattern.fullmatch(cell):
                raise RowsError(
                    f"Column {name!r} is damaged: {cell[:40]!r} at idx {row[0]} is no "
                    f"{kind.__name__} as it would be written."
                )
        return np.array([kind(cell) for cell in cells], dtype)

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
            "float": self._never_nan,
            "maybe": lambda name: self._numbers(
                name, _MAYBE, lambda cell: float(cell or "nan"), np.float64
            ),
            "votes": lambda name: self.votes(name, num_classes),
            "text": lambda name: np.array(self.text(name)),
        }
        return {name: read[kind](name) for name, kind in kinds.items()}

    def to_pandas(self) -> Any:
        """The rows as a pandas frame, which writes CSV, Parquet and much else.

        `read_rows(path).to_pandas().to_parquet("rows.parquet")`

        Returns:
          `pandas.DataFrame`, one row each: int64 and float64 columns, an empty cell in a
          float column being NaN; votes stay the text `class:count,...`.

        Raises:
          ImportError: pandas is missing.
        """
        try:
            import pandas
        except ImportError as error:
            raise ImportError(
                "Frames need pandas: pip install 'wsjax[frames]'."
            ) from error
        return pandas.DataFrame({name: self._by_form(name) for name in self.columns})

    def _by_form(self, name):
        """A column as numbers, if all of its cells have the form of numbers."""
        cells = self.text(name)
        if cells and all(map(_INT.fullmatch, cells)):
            return self.ints(name)
        if any(cells) and all(map(_MAYBE.fullmatch, cells)):
            return np.array([float(cell or "nan") for cell in cells], np.float64)
        return np.array(cells, object)

    def _never_nan(self, name):
        found = self.floats(name)
        if np.isnan(found).any():
            raise RowsError(f"Column {name!r} is damaged: it has a NaN.")
        return found


def check(path: pathlib.Path, columns: Sequence[str], run: str) -> Rows:
    """What a file holds already, if a run may go on with it.

    Args:
      path: the file; it need not exist.
      columns: as in `RowWriter`.
      run: see there.

    Returns:
      Its `Rows`; none where there is no file.

    Raises:
      RowsError: the file has other columns or a damaged row, or belongs to another run.
    """
    path = pathlib.Path(path)
    whole = _whole_lines(path) if path.exists() else b""
    if not whole:
        return Rows(list(columns), [])
    rows, owned = _parse(path, whole, run)
    if not rows:  # A header alone, of whatever run that came to nothing.
        return Rows(list(columns), [])
    if rows.columns != list(columns) or not owned:
        raise RowsError(
            f"{path} has columns {rows.columns}, expected {[*columns, *_OWN]}. It is "
            f"from another version; move it away or choose another --workdir."
        )
    return rows


def read_rows(path: pathlib.Path, run: str | None = None) -> Rows:
    """Reads a rows file, sorted by `idx`; an unfinished last line is left out.

    Args:
      path: the file.
      run: `digest` of what its rows have to belong to; None for any, and for files of
        version 0.2, which do not tell.

    Raises:
      FileNotFoundError: there is none.
      RowsError: it has no header or a damaged row, or belongs to another run.
    """
    path = pathlib.Path(path)
    if not path.exists():
        raise FileNotFoundError(f"No rows at {path}; run the script that writes them.")
    rows, owned = _parse(path, _whole_lines(path), run)
    if run is not None and not owned:
        raise RowsError(
            f"{path} does not say what its rows belong to; restore the file as it was "
            f"written, or move it away and run the script again."
        )
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
        for pair in text.split(",") if text else ():
            label, count = map(int, pair.split(":"))
            votes[label] = count
    except (ValueError, IndexError, OverflowError):
        votes[:] = -1
    # One text for one result: no signs, zeros in front, classes twice or out of order.
    if votes.min() < 0 or format_votes(votes) != text:
        raise RowsError(f"{text[:80]!r} are no votes of {num_classes} classes.")
    return votes


def _whole_lines(path):
    content = path.read_bytes()
    return content[: content.rfind(b"\n") + 1]


def _parse(path, content, run=None):
    """`Rows`, and whether they say what they belong to."""
    # Lines end in one way only: whatever else would end one is a part of its cell.
    text = content.decode(errors="replace").split("\n")[:-1]
    lines = [line.split("\t") for line in text]
    if not lines or lines[0][:1] != ["idx"]:
        raise RowsError(f"{path} has no header line that begins with idx.")
    columns, cells = lines[0], lines[1:]
    owned = columns[-len(_OWN) :] == list(_OWN)
    kept: dict[str, list[str]] = {}
    for number, row in enumerate(cells, start=2):
        fault = _fault(columns, row, owned, run)
        if not fault and row[0] in kept:
            if _timeless(columns, kept[row[0]]) == _timeless(columns, row):
                continue  # Written twice, by two processes at once.
            fault = "a repeated idx with another result"
        if fault:
            raise RowsError(f"{path}, line {number} is damaged: {fault}.")
        kept[row[0]] = row
    width = len(columns) - len(_OWN) * owned
    return Rows(columns[:width], [row[:width] for row in kept.values()]), owned


def _fault(columns, row, owned, run):
    """What is wrong with a row, and what to do about it; "" for nothing."""
    again = "Delete that line and run again"
    if len(row) != len(columns):
        return f"{len(row)} cells where {len(columns)} belong. {again}"
    if not _INT.fullmatch(row[0]) or row[0].startswith("-"):
        return f"{row[0][:40]!r} is no idx. {again}"
    if not owned:
        return ""
    *cells, its_run, its_check = row
    if its_check != _check_of(its_run, columns, cells):
        return f"it was changed after it was written. {again}"
    if run not in (None, its_run):
        return (
            f"it belongs to another run ({its_run}, this one is {run}): another config, "
            f"classifier or data set, or another version. Move the file away, or choose "
            f"another --workdir"
        )
    return ""


def _timeless(columns, cells):
    return [cell for name, cell in zip(columns, cells) if name != "time"]


def _check_of(run, columns, cells):
    return digest([run, _timeless(columns, cells)])


def _format(value):
    if isinstance(value, (bool, np.bool_)):
        return str(int(value))
    if isinstance(value, (float, np.floating)):
        # Shortest text that reads back as the same number.
        return repr(float(value))
    if isinstance(value, np.ndarray):
        return format_votes(value)
    return "" if value is None else str(value)
