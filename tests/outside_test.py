"""Tests of benchmarks/outside.py, on a stand-in for what it fetches."""

import importlib
import json
import pathlib
import sys
from unittest import mock

import numpy as np
from absl.testing import absltest

import wsjax
from wsjax import ColouredGaussian, spectrum

ROOT = pathlib.Path(__file__).parents[1]
with mock.patch.object(sys, "path", [str(ROOT / "benchmarks"), *sys.path]):
    outside = importlib.import_module("outside")


class OutsideTest(absltest.TestCase):
    def test_the_tables_are_those_of_the_results(self):
        lines = (ROOT / "benchmarks" / "results" / "outside.jsonl").read_text()
        records = [json.loads(line) for line in lines.splitlines()]
        self.assertEqual([r["name"] for r in records], list(outside.PACKAGES))
        text = (ROOT / "docs" / "outside.md").read_text()
        self.assertIn(outside.markdown(records), text)

    def test_a_network_of_the_host_is_certified_in_each_way(self):
        rng = np.random.default_rng(0)
        images = rng.uniform(0.1, 0.3, (8, 6, 6, 1)).astype(np.float32)
        labels = np.arange(8) % 2
        for image, label in zip(images, labels):
            image[:, 3 * label : 3 * label + 3] += 0.5

        def halves(pictures):
            left = pictures[:, :, :3].sum((1, 2, 3))
            return np.stack([left, pictures[:, :, 3:].sum((1, 2, 3))], -1)

        law = ColouredGaussian(
            spectrum.square_root(spectrum.power_law(images.shape[1:], 1e-3, 2.0))
        )
        case = outside.Case(
            "halves",
            wsjax.HostClassifier(halves),
            images,
            labels,
            images,
            {"noise": law},
            (1e-3,),
            20,
            200,
            {"steps": 3, "batch": 4, "width": 2},
            0,
        )
        lines = outside.measured(case)
        self.assertEqual([x["way"] for x in lines], ["no noise", "noise", "denoiser"])
        for line in lines[:2]:
            self.assertEqual(line["accuracy"], 1.0)
        self.assertGreater(lines[1]["median_radius"], 1e-3)
        self.assertEqual(lines[1]["certified"], {"0.001": 1.0})


if __name__ == "__main__":
    absltest.main()
