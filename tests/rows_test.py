"""Tests of wsjax.runs.rows."""

import errno
import math
import pathlib
import tempfile

import chex
import numpy as np
from absl.testing import absltest, parameterized

from wsjax.runs import rows

RUN = rows.digest({"sigma": 0.01})
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


def edited(cells, place):
    """Cells with another digit in one of them."""
    cells[place] = cells[place].translate(str.maketrans("0123456789", "1234567890"))
    return cells


class RowsTest(chex.TestCase):
    def setUp(self):
        super().setUp()
        folder = self.enter_context(tempfile.TemporaryDirectory())
        self.path = pathlib.Path(folder) / "rows.tsv"

    def write(self, indices):
        with rows.RowWriter(self.path, COLUMNS, RUN) as writer:
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
        with rows.RowWriter(self.path, COLUMNS, RUN) as writer:
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
        ("other_script", 1, lambda cells: ["٠", *cells[1:]], "line 2 is damaged"),
        ("zero_in_front", 2, lambda cells: ["01", *cells[1:]], "line 3 .*'01' is no"),
        ("below_zero", 2, lambda cells: ["-1", *cells[1:]], "line 3 .*'-1' is no idx"),
        *(
            (
                f"changed_{place}",
                3,
                lambda cells, p=place: edited(cells, p),
                "line 4 .*ch",
            )
            for place in (0, 1, 2, 3, 4, 5, 6)
        ),
        ("empty", 2, lambda cells: [], "line 3 is damaged"),
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

    def test_rows_of_another_run_are_refused(self):
        """As where `run.json` was deleted and another sigma asked for."""
        other = rows.digest({"sigma": 0.1})
        self.write([0, 1])
        before = self.path.read_bytes()
        for use in (
            lambda: rows.RowWriter(self.path, COLUMNS, other),
            lambda: rows.check(self.path, COLUMNS, other),
            lambda: rows.read_rows(self.path, other),
        ):
            with self.assertRaisesRegex(
                rows.RowsError, f"another run .{RUN}, this one is {other}.*--workdir"
            ):
                use()
        self.assertEqual(self.path.read_bytes(), before)
        self.assertLen(rows.read_rows(self.path, RUN), 2)

    def test_rows_of_two_runs_in_one_file_are_told_apart(self):
        self.write([0])
        alien = self.path.with_name("other.tsv")
        with rows.RowWriter(alien, COLUMNS, "other") as writer:
            writer.write(**row(1))
        with self.path.open("a") as file:
            file.write(alien.read_text().splitlines(keepends=True)[1])
        with self.assertRaisesRegex(rows.RowsError, "line 3 .*another run .other"):
            rows.read_rows(self.path, RUN)

    def test_rows_that_do_not_tell_are_refused_where_it_matters(self):
        """Those of version 0.2, and files that lost their last columns."""
        self.path.write_text("idx\tlabel\n0\t1\n")
        self.assertLen(rows.read_rows(self.path), 1)
        with self.assertRaisesRegex(rows.RowsError, "does not say what.*belong to"):
            rows.read_rows(self.path, RUN)
        with self.assertRaisesRegex(rows.RowsError, "from another version"):
            rows.RowWriter(self.path, ("idx", "label"), RUN)

    def test_what_was_written_twice_counts_once(self):
        """As by two processes at once, whose rows differ in their time."""
        columns = (*COLUMNS, "time")
        with (
            rows.RowWriter(self.path, columns, RUN) as one,
            rows.RowWriter(self.path, columns, RUN) as two,
        ):
            for index in (1, 0):
                one.write(**row(index), time=0.25)
                two.write(**row(index), time=0.5)
        found = rows.read_rows(self.path, RUN)
        self.assertEqual(found.ints("idx").tolist(), [0, 1])
        self.assertEqual(found.floats("time").tolist(), [0.25, 0.25])
        with rows.RowWriter(self.path, columns, RUN) as three:
            self.assertEqual(three.done, {0, 1})
            three.write(**(row(0) | {"label": 77}), time=0.25)
        with self.assertRaisesRegex(rows.RowsError, "line 6 .*repeated idx with anoth"):
            rows.read_rows(self.path)

    @parameterized.parameters(
        ("label", "+1"), ("label", "1_0"), ("label", "-0"), ("label", "٣"),
        ("label", " 1"), ("label", "1" * 30), ("label", "1.0"), ("label", ""),
        ("radius", "٣.0"), ("radius", "1_0.0"), ("radius", "0x1p3"), ("radius", "01.0"),
        ("radius", "1.2.3"), ("radius", "inv"), ("radius", "Infinity"), ("radius", ""),
    )  # fmt: skip
    def test_numbers_are_read_as_they_are_written(self, column, text):
        found = rows.Rows(["idx", column], [["0", text]])
        read = found.ints if column == "label" else found.floats
        with self.assertRaisesRegex(rows.RowsError, f"{column}' is damaged.*at idx 0"):
            read(column)

    def test_nan_is_nothing_and_no_number(self):
        found = rows.Rows(["idx", "a", "b"], [["0", "nan", ""]])
        np.testing.assert_array_equal(found.arrays({"b": "maybe"}, 2)["b"], [np.nan])
        with self.assertRaisesRegex(rows.RowsError, "'a' is damaged: it has a NaN"):
            found.arrays({"a": "float"}, 2)

    def test_a_header_alone_binds_nobody(self):
        with rows.RowWriter(self.path, ("idx", "other"), "another run"):
            pass
        self.write([3])
        self.assert_holds([3])

    def test_refuses_foreign_columns(self):
        with rows.RowWriter(self.path, ("idx", "other"), RUN) as writer:
            writer.write(idx=0, other=1)
        before = self.path.read_bytes()
        with self.assertRaisesRegex(rows.RowsError, "columns.*'other'.*'label'"):
            rows.RowWriter(self.path, COLUMNS, RUN)
        self.assertEqual(self.path.read_bytes(), before)

    @parameterized.parameters("", "\n", "a\tb\n1\t2\n")
    def test_refuses_a_file_without_header(self, text):
        self.path.write_text(text)
        with self.assertRaisesRegex(rows.RowsError, "no header"):
            rows.read_rows(self.path)

    def test_refuses_a_column_that_is_not_there(self):
        self.write([0])
        with self.assertRaisesRegex(rows.RowsError, "No column 'mass'"):
            rows.read_rows(self.path).text("mass")

    def test_missing_file(self):
        with self.assertRaisesRegex(FileNotFoundError, "No rows at .*rows.tsv"):
            rows.read_rows(self.path)

    def test_a_full_disk_costs_no_row_that_was_written(self):
        with (
            self.assertRaises(OSError) as caught,
            rows.RowWriter(self.path, COLUMNS, RUN) as writer,
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
            rows.RowWriter(self.path, COLUMNS, RUN) as writer,
        ):
            self.addCleanup(writer._file.close)
            writer._file = open("/dev/full", "a")  # noqa: SIM115
            writer._file.write("x")
            raise KeyError

    def test_a_disk_that_is_full_at_the_end_is_reported(self):
        writer = rows.RowWriter(self.path, COLUMNS, RUN)
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
        *("1", "1:2:3", "a:1", "1:b", "5:1", "-1:4", "1:-4", "1:1.5", "1:0", ","),
        *("2:1,1:1", "1:1,1:1", "1:01", "01:1", "+1:1", "1:1_0", "١:1", " 1:1"),
        *("0:-1,1:-1,2:-1,3:-1,4:-1", "1:1,", f"1:{2**63}"),
    )
    def test_refuses(self, text):
        with self.assertRaisesRegex(rows.RowsError, "no votes of 5 classes"):
            rows.parse_votes(text, 5)


if __name__ == "__main__":
    absltest.main()
