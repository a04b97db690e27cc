"""Certificates from votes whose number is chosen for each image by a pilot."""

import dataclasses
from collections.abc import Iterable, Iterator
from typing import Any, ClassVar, Self

import jax

from wsjax import sequential
from wsjax.certifiers import queue
from wsjax.certifiers.base import Certificate
from wsjax.certifiers.votes import (
    IN_FLIGHT,
    Drawing,
    FixedVotes,
    certificate_from_votes,
    halves,
    needed,
)


@dataclasses.dataclass(frozen=True)
class PilotVotes(FixedVotes):
    """Like `FixedVotes`, with fewer than `n` votes where more gain little.

    The selection votes, which are independent of those that bound, choose how many
    these are: the least number that loses at most `max_radius_loss` of the radius of
    `n` votes, for every probability that they leave possible at level `alpha`.

    `use_runner_up` does not count for the choice of a number, and draws are not shared. The
    other attributes are those of `FixedVotes`.

    Attributes:
      max_radius_loss: share of the radius to give away, in (0, 1).

    Source: docs/theory.md, 3.9.
    """

    _: dataclasses.KW_ONLY
    max_radius_loss: float = 0.05

    exactly: ClassVar[tuple[str, ...]] = ("n0",)
    several_processes: ClassVar[bool] = False
    trigger: ClassVar[str | None] = "max_radius_loss"
    ignores: ClassVar[tuple[str, ...]] = ("groups",)

    def __post_init__(self):
        super().__post_init__()
        if not 0 < self.max_radius_loss < 1:
            raise ValueError(
                f"max_radius_loss={self.max_radius_loss!r} is outside (0, 1): it is "
                f"the share of the radius to give away, e.g. 0.05."
            )
        if self.share_draws != 1:
            raise ValueError(
                f"share_draws={self.share_draws} is not 1: each image gets a number of "
                f"votes of its own here."
            )

    def certify_each(
        self, images: Iterable[Any], keys: Iterable[jax.Array] | None = None
    ) -> Iterator[Certificate]:
        """See `Certifier.certify_each`; the votes of a result tell their number."""
        counter = self.counter()
        theorem = self.smoothing.scores

        def work(images, keys):
            key_select, key_estimate = halves(keys[0])
            pilot = Drawing(counter, key_select, images[0], [self.n0])
            selection_votes = yield from pilot.more()
            chosen = sequential.choose_n(
                int(selection_votes.max()),
                self.n0,
                n_max=self.n,
                radius=theorem.radius,
                max_loss=self.max_radius_loss,
                alpha=self.alpha,
                pilot_alpha=self.alpha,
            )
            estimation = Drawing(counter, key_estimate, images[0], [chosen])
            votes_of = yield from estimation.more()
            return [
                certificate_from_votes(
                    selection_votes,
                    votes_of,
                    theorem,
                    alpha=self.alpha,
                    use_runner_up=self.use_runner_up,
                )
            ]

        return queue.run(work, images, needed(keys), 1, IN_FLIGHT)

    @classmethod
    def settings(cls) -> dict[str, Any]:
        """See `Certifier.settings`: 0 stands for another kind there."""
        given = super().settings()
        del given["groups"]
        return {**given, "max_radius_loss": 0.0}

    @classmethod
    def from_run(cls, run: Any, **settings: Any) -> Self:
        return super().from_run(run, groups=None, **settings)

    def recorded(self) -> dict[str, Any]:
        return {**super().recorded(), "kind": "pilot"}
