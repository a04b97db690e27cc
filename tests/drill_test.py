"""Tests of the drill: each kind of accident once, and that it finds what is broken."""

import json
import re
import signal
import sys
import tempfile
from unittest import mock

import drill
from absl.testing import absltest, parameterized

# Certifying by neighbours takes no training and no votes; the rows are written alike.
SCENE = "certify by neighbours"
# Scripts that break a promise, by what is found.
BROKEN = {
    r"differs from a run left alone: \[\('certificates.tsv', '3'\)": """
from wsjax.runs import rows
honest = rows.RowWriter.write
def forgetful(self, **values):
    if values["idx"] != 3:
        honest(self, **values)
rows.RowWriter.write = forgetful
""",
    "a row that no undisturbed run has|differs from": """
from wsjax.runs import rows
honest = rows.RowWriter.write
def careless(self, **values):
    honest(self, **{**values, "num_exact": values["num_exact"] + 1})
rows.RowWriter.write = careless
""",
    "Traceback after exit code": """
from wsjax.runs import rows
rows.RowWriter.write = None
""",
}


@absltest.skipUnless(sys.platform == "linux", "Asks /proc.")
class DrillTest(parameterized.TestCase):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        folder = tempfile.TemporaryDirectory()
        cls.addClassCleanup(folder.cleanup)
        cls.site = drill.Site(folder.name, scenes=(SCENE,))

    def drill(self, *names, seed):
        said = []
        tallies = drill.drill(self.site, names, seed, count=1, say=said.append)
        return tallies, said

    def test_each_kind_of_accident_once(self):
        names = [name for name, kind in drill.KINDS.items() if SCENE in kind.scenes]
        names.remove("stopped while it starts")  # Four such are in signals_test.
        tallies, said = self.drill(*names, seed=0)
        self.assertEqual(said, [])
        for name, tally in tallies.items():
            self.assertTrue(tally.tried == 1 or tally.skipped, name)
        for line in drill.lines(tallies, seed=0):
            self.assertEqual((line["tried"], line["failed"]), (1, 0))
            self.assertIn("jax", line["versions"])

    def test_rows_lost_and_changed_and_traces_are_found(self):
        for found, sabotage in BROKEN.items():
            with mock.patch.object(self.site, "sabotage", sabotage):
                tallies, said = self.drill("killed", seed=1)
            with self.subTest(found=found):
                self.assertEqual((tallies["killed"].tried, len(said)), (1, 1))
                self.assertRegex(said[0], found)
                self.assertIn('--only="killed" --seed=1 --first=0 --count=1', said[0])
                self.assertEqual(tallies["killed"].failed, 1)


class DocumentTest(absltest.TestCase):
    def test_the_numbers_are_those_of_the_results(self):
        text = drill.DOCS.read_text()
        self.assertEqual(text, drill.with_counts(text, drill.RESULTS.read_text()))

    def test_every_kind_is_there_once_and_was_tried(self):
        named = re.findall(r"drill: (.*) \| ", drill.DOCS.read_text())
        self.assertCountEqual(", ".join(named).split(", "), drill.KINDS)
        found = [json.loads(x) for x in drill.RESULTS.read_text().splitlines()]
        self.assertContainsSubset(drill.KINDS, {each["kind"] for each in found})

    def test_every_test_named_exists(self):
        for name in re.findall(r"`(\w+_test)`", drill.DOCS.read_text()):
            self.assertTrue((drill.tiny_runs.ROOT / "tests" / f"{name}.py").exists())

    def test_counts_add_up(self):
        line = '{{"kind": "killed", "tried": {}, "failed": {}}}\n'
        text = "| x | y; drill: killed, stopped | 3 |\n| a | b | |\n"
        for counts, shown in (((4, 0), "1,004"), ((4, 2), "1,004, 2 failed")):
            results = line.format(1000, 0) + line.format(*counts)
            self.assertEqual(drill.with_counts(text, results), text.replace("3", shown))


class JudgementTest(parameterized.TestCase):
    @parameterized.parameters(
        (130, "stopped by SIGINT; run the same command to go on.", True),
        (0, "Rows, summary and figure: run", True),
        (130, "", False),
        (0, "stopped by SIGINT; run the same command to go on.", False),
        (143, "stopped by SIGTERM; run the same command to go on.", False),
        (143, "stopped by SIGINT; run the same command to go on.", False),
        (130, 2 * "stopped by SIGINT; run the same command to go on.\n", False),
        (-2, "", False),
    )
    def test_signals_end_with_a_sentence_and_their_code(self, code, text, kept):
        try:
            drill.is_stopped(drill.Ended(code, text), signal.SIGINT)
        except drill.Failed:
            self.assertFalse(kept)
        else:
            self.assertTrue(kept)

    @parameterized.parameters(
        (1, "error: n=0 is none.", True),
        (0, "", True),
        (1, "error: n=0\nis none.", False),
        (1, "", False),
        (0, "error: n=0 is none.", False),
        (1, "error: a\nerror: b", False),
        (1, f"error: {'x' * 2000}", False),
        (1, "Traceback (most recent call last):\nerror: x", False),
    )
    def test_errors_are_one_sentence_at_the_end(self, code, text, kept):
        try:
            drill.judge(drill.Ended(code, text))
        except drill.Failed:
            self.assertFalse(kept)
        else:
            self.assertTrue(kept)


if __name__ == "__main__":
    absltest.main()
