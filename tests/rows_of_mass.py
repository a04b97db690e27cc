"""A certifier of one's own, as CONTRIBUTING says: this file and a line in the registry."""

import dataclasses
import types
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from wsjax import scores
from wsjax.certifiers import base
from wsjax.certifiers.base import Certificate, Outcomes, Prediction


@dataclasses.dataclass(frozen=True)
class RowsOfMass(base.Certifier):
    """Is more mass above the middle? Half the difference of two sums is the score.

    A unit of mass that moves by one pixel changes each sum by one at most, and so each
    half by a half: 1-Lipschitz with room to spare.
    """

    share: float = 0.5

    columns: ClassVar[Mapping[str, str]] = {"above": "float"}

    def certify_each(self, images, keys=None):
        for image in images:
            rows = np.asarray(image, np.float64).sum((1, 2)) / np.sum(image)
            above = rows[: int(self.share * len(rows))].sum()
            both = np.array([above, 1 - above]) / 2
            decision = scores.decide(both, both)
            yield Certificate(*decision, types.SimpleNamespace(above=above))

    def predict_each(self, images, keys=None):
        for found in self.certify_each(images):
            yield Prediction(found.selected)

    def held(self):
        return ()

    @classmethod
    def settings(cls) -> dict[str, Any]:
        return {"share": 0.5}

    @classmethod
    def from_run(cls, run, **settings):
        return cls(**settings)

    def recorded(self):
        return {"kind": "rows_of_mass", "ground_metric": "l1"}

    def cells(self, certificate):
        return {"above": certificate.evidence.above}

    @classmethod
    def outcomes(cls, rows, recorded):
        return [Outcomes("", rows["predict"], rows["radius"], rows["selected"])]
