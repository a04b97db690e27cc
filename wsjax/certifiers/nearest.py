"""Certificates without votes: half the lead of the nearest labelled images.

Scores are distances to the nearest images of each class, with a minus sign. The theorem
and its proof are at the head of `wsjax.nearest`. Nothing is drawn, and nothing trained.
"""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, ClassVar, NamedTuple, Self

import jax
import numpy as np

from wsjax import scores
from wsjax.certifiers import base
from wsjax.certifiers.base import Certificate
from wsjax.images import check_image
from wsjax.nearest import Index


class NearestEvidence(NamedTuple):
    """Which images are nearest.

    Attributes:
      nearest: index of the nearest image of the selected class, -1 for none.
      distance: to it; infinite for none.
      rival: index of the nearest image of the class of the second least score.
      rival_distance: to it.
      num_exact: how many distances were solved for.
    """

    nearest: int
    distance: float
    rival: int
    rival_distance: float
    num_exact: int


@dataclasses.dataclass(frozen=True)
class NearestNeighbours(base.WithoutVotes):
    """The class whose images are nearest in exact Wasserstein distance.

    Holds for certain, also for the answers as they are computed: what these may be off
    by is taken from every lead.

    Attributes:
      index: the labelled images.
      neighbours: how many images of a class its score depends on.
      softness: of the minimum over these, in pixels x fraction of mass: 0 for the
        nearest alone, `math.inf` for the mean.
      num_classes: K; None for one more than the largest label.
    """

    index: Index
    _: dataclasses.KW_ONLY
    neighbours: int = 1
    softness: float = 0.0
    num_classes: int | None = None

    columns: ClassVar[Mapping[str, str]] = {
        "nearest": "int",
        "distance": "float",
        "rival": "int",
        "rival_distance": "float",
        "num_exact": "int",
    }

    def __post_init__(self):
        self.index.check(self.neighbours, self.softness, self.num_classes)

    def certify_each(
        self, images: Iterable[Any], keys: Iterable[jax.Array] | None = None
    ) -> Iterator[Certificate]:
        """See `Certifier.certify_each`; keys are not used.

        Raises:
          ValueError: as `Certifier.certify`, or `nearest.Index.scores`.
        """
        del keys
        for image in images:
            check_image(image)
            found = self.index.scores(
                image, self.neighbours, self.softness, self.num_classes
            )
            selected = int(found.lower.argmin())
            highest = found.upper + self.index.precision
            # Where no other class has candidates, no image is further than this.
            height, width, _ = self.index.image_shape
            lowest = np.minimum(found.lower, highest[selected] + 2 * (height + width))
            decision = scores.decide(-highest, -lowest, selected)
            evidence = NearestEvidence(
                int(found.nearest[0]),
                float(found.distances[0]),
                int(found.nearest[1]),
                float(found.distances[1]),
                found.num_exact,
            )
            yield Certificate(*decision, evidence)

    def held(self) -> Any:
        """The images and their labels."""
        return self.index.images, self.index.labels

    @classmethod
    def settings(cls) -> dict[str, Any]:
        return {"neighbours": 1, "softness": 0.0, "ground_metric": "l2"}

    @classmethod
    def from_run(cls, run: Any, **settings: Any) -> Self:
        """See `Certifier.from_run`: of the training set, without images all black."""
        examples = run.training_set()
        if examples.data.arrays is None:
            raise ValueError(
                f"certify.method='nearest' keeps the training set in memory, which "
                f"{examples.name} does not fit into; use a kind that votes."
            )
        images, labels = examples.data.arrays
        inked = images.any((1, 2, 3))
        if not inked.all():
            images, labels = images[inked], labels[inked]
        index = Index(images, labels, settings.pop("ground_metric"))
        return cls(index, num_classes=examples.num_classes, **settings)

    def recorded(self) -> dict[str, Any]:
        return {
            "kind": "nearest",
            "ground_metric": self.index.ground_metric,
            "neighbours": self.neighbours,
            "softness": self.softness,
        }
