"""Tests of CONTRIBUTING: each kind of part is a file and a line in a registry.

A law with its theorem and a certifier are added here; tests/data_recipe_test.py adds a
data set, tests/victims_test.py an attack.
"""

import pathlib
import tempfile
from unittest import mock

import chex
import jax
import numpy as np
import tiny_runs
from absl.testing import absltest
from rows_of_mass import RowsOfMass

from wsjax import certificates, noise, smoothing
from wsjax.certifiers import registry
from wsjax.runs import config, experiment, report
from wsjax.runs.rows import read_rows


class TwoPointNoise(noise.FlowNoise):
    """Uniform noise under another name, twice as wide: a law of one's own."""

    @property
    def scale(self):
        return 2 * self.sigma * 3**0.5

    standard = staticmethod(noise.FlowUniform.standard)


def two_point_scores(law, image_shape, ground_metric):
    """The theorem about it: that of uniform noise of twice the deviation."""
    return certificates.flow_uniform(2 * law.sigma, ground_metric)


class LawTest(chex.TestCase):
    def test_a_law_is_a_class_a_theorem_and_a_line(self):
        line = smoothing.Law(TwoPointNoise, two_point_scores, takes=("wrap",))
        with mock.patch.dict(smoothing.LAWS, two_point=line):
            resolved = config.resolve(
                {
                    "data": {"name": "digits"},
                    "smoothing": {
                        "noise": "two_point",
                        "sigma": 0.1,
                        "ground_metric": "l1",
                        "wrap": True,
                    },
                }
            )
            made = experiment.make_smoothing(resolved, (4, 4, 1))
        self.assertEqual(made.noise, TwoPointNoise(0.1, wrap=True))
        self.assertEqual(made.scores, certificates.flow_uniform(0.2, "l1"))
        image = np.ones((4, 4, 1), np.float32)
        copy = made.perturb(jax.random.key(0), image)
        self.assertGreater(np.abs(copy - image).max(), 0)
        np.testing.assert_allclose(copy.sum(), image.sum(), rtol=1e-5)


class CertifierTest(chex.TestCase):
    def test_a_certifier_is_a_class_and_a_line(self):
        with tempfile.TemporaryDirectory() as folder:
            self.certify(pathlib.Path(folder))

    def certify(self, folder):
        path = folder / "mine.py"
        path.write_text(
            "import ml_collections\n"
            "def get_config():\n"
            "    return ml_collections.ConfigDict({\n"
            "        'data': {'name': 'digits', 'stride': 60},\n"
            "        'certify': {'method': 'rows_of_mass', 'share': 0.25},\n"
            "    })\n"
        )
        # As a line in the registry would, before anything reads it.
        here = pathlib.Path(__file__).parent
        line = (
            f"import sys; sys.path.append({str(here)!r})\n"
            "from wsjax.certifiers import registry\n"
            "from rows_of_mass import RowsOfMass\n"
            "registry.KINDS['rows_of_mass'] = RowsOfMass\n"
        )
        workdir = folder / "run"
        code, out, err = tiny_runs.run(
            "certify.py", f"--config={path}", f"--workdir={workdir}", prelude=line
        )
        self.assertEqual(code, 0, err)
        self.assertIn("accuracy", out)
        rows = read_rows(workdir / "certificates.tsv")
        self.assertEqual(tuple(rows.columns), report.columns(RowsOfMass))
        above = rows.floats("above")
        np.testing.assert_allclose(
            rows.floats("radius"), np.abs(2 * above - 1) / 4, rtol=1e-12
        )
        with mock.patch.dict(registry.KINDS, rows_of_mass=RowsOfMass):
            (run,) = report.read_certified(workdir)
        np.testing.assert_array_equal(run.found.radii, rows.floats("radius"))
        self.assertEqual(run.metric, "l1")


if __name__ == "__main__":
    absltest.main()
