"""Tests of wsjax.runs.attack_report: attacks held against certificates."""

import pathlib
import tempfile

from absl.testing import absltest, parameterized

from wsjax.runs import attack_report, report, rows


def table(folder, name, columns, entries):
    """A rows file with these values and zeros in the other columns, read back."""
    path = folder / name
    with rows.RowWriter(path, columns) as writer:
        for entry in entries:
            writer.write(**{**dict.fromkeys(columns, 0), **entry})
    return rows.read_rows(path)


class CrossingsTest(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)

    def crossings(self, attacks, certificates, metric="l2"):
        return attack_report.crossings(
            table(self.folder, "a.tsv", attack_report.COLUMNS, attacks),
            table(self.folder, "c.tsv", report.CERTIFICATE_COLUMNS, certificates),
            metric,
        )

    def test_a_success_below_the_radius_is_a_crossing_and_one_above_is_none(self):
        attacks = [
            {"idx": 0, "verified": 1, "l1": 0.9, "l2": 0.09},
            {"idx": 10, "verified": 1, "l1": 0.9, "l2": 0.11},
        ]
        certificates = [
            {"idx": i, "label": 4, "predict": 4, "radius": 0.1} for i in (0, 10, 20)
        ]
        self.assertEqual(self.crossings(attacks, certificates), ([0], 2))

    def test_the_metric_of_the_radii_is_the_one_compared(self):
        attacks = [{"idx": 0, "verified": 1, "l1": 0.9, "l2": 0.09}]
        certificates = [{"idx": 0, "label": 4, "predict": 4, "radius": 0.1}]
        self.assertEqual(self.crossings(attacks, certificates, "l1"), ([], 1))

    @parameterized.named_parameters(
        ("not_verified", {"verified": 0}, {}),
        ("another_class_was_certified", {}, {"predict": 3}),
        ("nothing_was_certified", {}, {"predict": -1, "radius": 0.0}),
        ("another_image", {"idx": 5}, {}),
    )
    def test_only_verified_attacks_on_right_certificates_count(self, attack, row):
        attacks = [{"idx": 0, "verified": 1, "l1": 0.01, "l2": 0.01, **attack}]
        certificates = [{"idx": 0, "label": 4, "predict": 4, "radius": 0.1, **row}]
        self.assertEqual(self.crossings(attacks, certificates), ([], 0))


if __name__ == "__main__":
    absltest.main()
