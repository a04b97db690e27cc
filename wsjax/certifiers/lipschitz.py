"""Certificates without votes: the lead of a network that is 1-Lipschitz in W.

Theorem and proof are at the heads of `wsjax.scores` and `wsjax.network`. One forward pass
an image, nothing drawn, no probability of error.
"""

import dataclasses
import functools
import itertools
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, ClassVar, NamedTuple, Self

import jax
import numpy as np

from wsjax import scores
from wsjax.certifiers import base, queue
from wsjax.certifiers.base import Certificate
from wsjax.local_slopes import LocalSlopes
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
      network: the weights; TypeError for anything else.
      local: whether to look for a larger radius near each image, with
        `local_slopes.LocalSlopes`: as certain, in seconds an image.
    """

    network: LipschitzNetwork
    _: dataclasses.KW_ONLY
    local: bool = False

    def __post_init__(self):
        if not isinstance(self.network, LipschitzNetwork):
            raise TypeError(
                f"network is a {type(self.network).__name__}, not a LipschitzNetwork: a "
                f"classifier without proven constants is certified by FixedVotes."
            )

    columns: ClassVar[Mapping[str, str]] = {"rival": "int"}

    def certify_each(
        self, images: Iterable[Any], keys: Iterable[jax.Array] | None = None
    ) -> Iterator[Certificate]:
        """See `Certifier.certify_each`; keys are not used.

        Raises:
          ValueError: as `Certifier.certify`, or `network.LipschitzNetwork.scores`.
        """
        del keys

        def fitting():
            for image in images:
                self.network.check_shape(np.shape(image))
                yield image

        return queue.run(
            self._certified, fitting(), itertools.repeat(None), self.batch, 1
        )

    def _certified(self, images, _):
        """Certificates of a batch."""
        yield from ()  # Nothing is waited for.
        # Products of a few rows are rounded in another order than those of many,
        # and the last bits of a row would depend on where a run stopped.
        missing = [(0, -len(images) % 100)] + [(0, 0)] * 3
        batch = np.pad(np.stack(images), missing, mode="edge")
        found = self.network.scores(batch)[: len(images)]
        # At this image and at the one that it is moved to.
        off = 2 * self.network.precision
        # Of scores whose difference is always the same, the radius is finite still.
        constants = np.maximum(self.network.constants, 2.0**-30)
        decisions = scores.decide_each(
            found - off, found + off, found.argmax(1), constants
        )
        others = found + off
        others[np.arange(len(found)), found.argmax(1)] = -np.inf
        limits = np.array([[decision.upper] for decision in decisions])
        rivals = (others == limits).argmax(1).tolist()
        if self.local:
            each = zip(images, found, strict=True)
            near = [self._near(image, row - off, row + off) for image, row in each]
            decisions, rivals = map(list, zip(*near, strict=True))
        return [
            Certificate(*decision, LipschitzEvidence(rival))
            for decision, rival in zip(decisions, rivals, strict=True)
        ]

    def _near(self, image, lower, upper):
        """Decision by local slopes, and the class that limits it."""
        selected = int(lower.argmax())
        leads = scores.certified_radius(lower[selected], upper, 1.0)
        radius, rival = self._slopes.radius(image, selected, leads)
        # Its mean slope all the way.
        slope = leads[rival] / radius * (1.0 + 2.0**-50) if radius > 0 else 2.0
        return scores.lead(selected, lower[selected], upper[rival], slope), rival

    @functools.cached_property
    def _slopes(self):
        return LocalSlopes(self.network)

    @property
    def batch(self) -> int:
        """Images of one product of matrices; few where each takes long."""
        return 10 if self.local else 500

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
        return {"local": False}

    @classmethod
    def from_run(cls, run: Any, **settings: Any) -> Self:
        """See `Certifier.from_run`."""
        return cls(run.network, **settings)

    def recorded(self) -> dict[str, Any]:
        return {
            "kind": "lipschitz",
            "ground_metric": self.network.ground_metric,
            "local": self.local,
        }
