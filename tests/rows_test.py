"""Tests of wsjax.runs.rows."""

import errno
import math
import pathlib
import tempfile

import chex
import numpy as np
from absl.testing import absltest, parameterized

from wsjax.runs import rows

COLUMNS = ("idx", "label", "radius", "correct", "votes")


def row(index):
    """One row with numbers that are hard to write down."""
    rng = np.random.default_rng(index)
    radius = (math.inf, 0.1 + 0.2, 5e-324, float(rng.normal()), -0.0)[index % 5]
    return {
        "idx": index,
        "label": int(rng.integers(-1, 10)),
        "radius": np.float64(radius) if index % 2 else radius,
        "correct": bool(index % 2),
        "votes": rows.format_votes(rng.integers(0, 3, 10)),
    }


class RowsTest(chex.TestCase):
    def setUp(self):
        super().setUp()
        folder = self.enter_context(tempfile.TemporaryDirectory())
        self.path = pathlib.Path(folder) / "rows.tsv"

    def write(self, indices):
        with rows.RowWriter(self.path, COLUMNS) as writer:
            done = set(writer.done)
            for index in indices:
                writer.write(**row(index))
        return done

    def assert_holds(self, indices):
        """Exactly these rows, whatever their order in the file."""
        found = rows.read_rows(self.path)
        self.assertEqual(found.columns, list(COLUMNS))
        self.assertEqual(found.ints("idx").tolist(), list(indices))
        for name in ("label", "correct"):
            expected = [int(row(i)[name]) for i in indices]
            self.assertEqual(found.ints(name).tolist(), expected)
        expected = np.array([row(i)["radius"] for i in indices], np.float64)
        self.assertEqual(found.floats("radius").tobytes(), expected.tobytes())
        self.assertEqual(found.text("votes"), [row(i)["votes"] for i in indices])

    def test_round_trip_is_exact_and_sorted(self):
        self.assertEqual(self.write([5, 3, 0, 12]), set())
        self.assert_holds([0, 3, 5, 12])

    def test_every_row_is_readable_at_once(self):
        with rows.RowWriter(self.path, COLUMNS) as writer:
            for index in range(3):
                writer.write(**row(index))
                self.assert_holds(range(index + 1))

    def test_goes_on_after_a_cut_at_any_byte_of_the_last_line(self):
        self.write(range(4))
        whole = self.path.read_bytes()
        start = whole.rstrip(b"\n").rfind(b"\n") + 1
        for size in range(start, len(whole)):
            self.path.write_bytes(whole[:size])
            self.assertLen(rows.read_rows(self.path), 3)
            self.assertEqual(self.write([3]), {0, 1, 2})
            self.assertEqual(self.path.read_bytes(), whole)
        self.assertEqual(self.write([]), {0, 1, 2, 3})

    def test_goes_on_after_a_cut_at_any_byte_of_the_header(self):
        self.write([])
        header = self.path.read_bytes()
        for size in range(len(header)):
            self.path.write_bytes(header[:size])
            self.assertEqual(self.write([]), set())
            self.assertEqual(self.path.read_bytes(), header)

    @parameterized.named_parameters(
        ("cell_lost", 2, lambda cells: cells[:-1], "line 3 is damaged"),
        ("cell_more", 2, lambda cells: [*cells, "1"], "line 3 is damaged"),
        ("no_index", 1, lambda cells: ["x", *cells[1:]], "line 2 is damaged"),
        ("odd_digit", 1, lambda cells: ["²", *cells[1:]], "line 2 is damaged"),
        ("empty", 2, lambda cells: [], "line 3 is damaged"),
        ("repeated", 2, lambda cells: ["0", *cells[1:]], "line 3 .*repeated idx"),
        ("zeros", 2, lambda cells: ["\0" * 30], "line 3 is damaged"),
    )
    def test_refuses_a_damaged_line(self, number, damage, message):
        self.write(range(4))
        lines = self.path.read_text().splitlines()
        lines[number] = "\t".join(damage(lines[number].split("\t")))
        text = "\n".join(lines) + "\n"
        self.path.write_text(text)
        for use in (lambda: rows.read_rows(self.path), lambda: self.write([9])):
            with self.assertRaisesRegex(rows.RowsError, message):
                use()
        self.assertEqual(self.path.read_text(), text)

    def test_refuses_bytes_that_are_no_text(self):
        self.write(range(2))
        self.path.write_bytes(self.path.read_bytes() + b"\xff\xfe\n")
        with self.assertRaisesRegex(rows.RowsError, "line 4 is damaged"):
            rows.read_rows(self.path)

    def test_refuses_foreign_columns(self):
        with rows.RowWriter(self.path, ("idx", "other")) as writer:
            writer.write(idx=0, other=1)
        before = self.path.read_bytes()
        with self.assertRaisesRegex(rows.RowsError, "columns.*'other'.*'label'"):
            rows.RowWriter(self.path, COLUMNS)
        self.assertEqual(self.path.read_bytes(), before)

    @parameterized.parameters("", "\n", "a\tb\n1\t2\n")
    def test_refuses_a_file_without_header(self, text):
        self.path.write_text(text)
        with self.assertRaisesRegex(rows.RowsError, "no header"):
            rows.read_rows(self.path)

    def test_refuses_numbers_that_are_none(self):
        self.write([0])
        self.path.write_text(self.path.read_text().replace("inf", "inv"))
        with self.assertRaisesRegex(rows.RowsError, "'radius'.*inv"):
            rows.read_rows(self.path).floats("radius")
        with self.assertRaisesRegex(rows.RowsError, "No column 'mass'"):
            rows.read_rows(self.path).text("mass")

    def test_missing_file(self):
        with self.assertRaisesRegex(FileNotFoundError, "No rows at .*rows.tsv"):
            rows.read_rows(self.path)

    def test_a_full_disk_costs_no_row_that_was_written(self):
        with (
            self.assertRaises(OSError) as caught,
            rows.RowWriter(self.path, COLUMNS) as writer,
        ):
            writer.write(**row(0))
            self.addCleanup(writer._file.close)
            writer._file = open("/dev/full", "a")  # noqa: SIM115
            writer.write(**row(1))
        self.assertEqual(caught.exception.errno, errno.ENOSPC)
        self.assertRegex(str(caught.exception), "No space.*rows.tsv.*valid.*same comm")
        self.assert_holds([0])
        self.assertEqual(self.write([1]), {0})
        self.assert_holds([0, 1])

    def test_a_full_disk_hides_no_other_error(self):
        with (
            self.assertRaises(KeyError),
            rows.RowWriter(self.path, COLUMNS) as writer,
        ):
            self.addCleanup(writer._file.close)
            writer._file = open("/dev/full", "a")  # noqa: SIM115
            writer._file.write("x")
            raise KeyError

    def test_a_disk_that_is_full_at_the_end_is_reported(self):
        writer = rows.RowWriter(self.path, COLUMNS)
        self.addCleanup(writer._file.close)
        writer._file = open("/dev/full", "a")  # noqa: SIM115
        writer._file.write("x")
        with self.assertRaisesRegex(OSError, "No space.*valid"):
            writer.close()


class VotesTest(chex.TestCase):
    def test_round_trip(self):
        rng = np.random.default_rng(0)
        for size in (1, 2, 10, 1000):
            votes = rng.integers(0, 3, size) * rng.integers(0, 10_000, size)
            text = rows.format_votes(votes)
            np.testing.assert_array_equal(rows.parse_votes(text, size), votes)

    def test_form(self):
        self.assertEqual(rows.format_votes(np.array([0, 71, 0, 129])), "1:71,3:129")
        self.assertEqual(rows.format_votes(np.zeros(3, int)), "")
        np.testing.assert_array_equal(rows.parse_votes("", 3), [0, 0, 0])

    @parameterized.parameters(
        "1", "1:2:3", "a:1", "1:b", "5:1", "-1:4", "1:-4", "1:1.5"
    )
    def test_refuses(self, text):
        with self.assertRaisesRegex(rows.RowsError, "no votes of 5 classes"):
            rows.parse_votes(text, 5)


if __name__ == "__main__":
    absltest.main()
