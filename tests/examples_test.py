"""Tests of examples/: they run, and what they print is true."""

import contextlib
import io
import pathlib
import runpy

from absl.testing import absltest

EXAMPLES = pathlib.Path(__file__).parents[1] / "examples"


def run(name):
    """Lines that the example prints."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
    return printed.getvalue().splitlines()


class ExamplesTest(absltest.TestCase):
    def test_certify_a_plain_function(self):
        heading, *rows = run("certify_a_plain_function.py")

        self.assertIn("radius", heading)
        self.assertLen(rows, 6)
        certified = [row.split() for row in rows if "abstains" not in row]
        self.assertGreater(len(certified), 3)
        for label, answer, radius, after_attack in certified:
            self.assertEqual(label, answer)
            self.assertGreater(float(radius), 0.0)
            # The attack stays within the radius, where the answer may not change.
            self.assertEqual(answer, after_attack)


if __name__ == "__main__":
    absltest.main()
