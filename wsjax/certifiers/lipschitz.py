"""Certificates without votes: the lead of a network that is 1-Lipschitz in W.

Theorem and proof are at the heads of `wsjax.scores` and `wsjax.network`. One forward pass
an image, nothing drawn, no probability of error.
"""

import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, ClassVar, NamedTuple, Self

import jax
import numpy as np

from wsjax import scores
from wsjax.certifiers import base, queue
from wsjax.certifiers.base import Certificate
from wsjax.network import LipschitzNetwork


class LipschitzEvidence(NamedTuple):
    """What the bounds of a certificate were made of.

    Attributes:
      rival: the class that limits the radius.
    """

    rival: int


@dataclasses.dataclass(frozen=True, eq=False)
class LipschitzScores(base.WithoutVotes):
    """The largest score of a `network.LipschitzNetwork`, and half of its lead.

    Holds for certain, also for the answers as they are computed: what these may be off
    by, at either image, is taken from every lead.

    Attributes:
      network: the weights.
    """

    network: LipschitzNetwork

    columns: ClassVar[Mapping[str, str]] = {"rival": "int"}

    def certify_each(
        self, images: Iterable[Any], keys: Iterable[jax.Array] | None = None
    ) -> Iterator[Certificate]:
        """See `Certifier.certify_each`; keys are not used.

        Raises:
          ValueError: as `Certifier.certify`, or `network.LipschitzNetwork.scores`.
        """
        del keys
        # At this image and at the one that it is moved to.
        off = 2 * self.network.precision
        # Of scores whose difference is always the same, the radius is finite still.
        constants = np.maximum(self.network.constants, 2.0**-30)
        for found in self._scores(images):
            decision = scores.decide(
                found - off, found + off, int(found.argmax()), constants
            )
            others = found.copy()
            others[decision.selected] = -np.inf
            rival = int(np.flatnonzero(others + off == decision.upper)[0])
            yield Certificate(*decision, LipschitzEvidence(rival))

    def _scores(self, images):
        """Yields the scores of one image after another."""

        def fitting():
            for image in images:
                self.network.check_shape(np.shape(image))
                yield image

        def work(batch, _):
            yield from ()  # Nothing is waited for.
            # Products of a few rows are rounded in another order than those of many,
            # and the last bits of a row would depend on where a run stopped.
            batch = np.stack(batch)
            missing = [(0, -len(batch) % 100)] + [(0, 0)] * 3
            found = self.network.scores(np.pad(batch, missing, mode="edge"))
            return found[: len(batch)]

        return queue.run(work, fitting(), itertools.repeat(None), self.batch, 1)

    @property
    def batch(self) -> int:
        """Images of one product of matrices."""
        return 500

    def held(self) -> Any:
        """The weights, and what they are multiples of."""
        network = self.network
        return (
            network.potentials,
            network.exponent,
            network.offsets,
            network.hidden,
            network.last,
            network.groups,
            network.pieces,
        )

    @classmethod
    def settings(cls) -> dict[str, Any]:
        return {}

    @classmethod
    def from_run(cls, run: Any, **settings: Any) -> Self:
        """See `Certifier.from_run`."""
        return cls(run.network, **settings)

    def recorded(self) -> dict[str, Any]:
        return {"kind": "lipschitz", "ground_metric": self.network.ground_metric}
