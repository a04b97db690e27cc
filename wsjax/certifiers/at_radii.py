"""Certificates at fixed radii, with as few votes as they need.

Where the question is "is this image certified at radius r?", most images answer after a
few hundred votes. Draws are numbered, so what is drawn is always a beginning of the
draws that a fixed number of votes would take, whichever size the portions have.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple, Self

import jax
import numpy as np

from wsjax import scores, sequential, text
from wsjax.certificates import ProbabilityScores
from wsjax.certifiers import queue
from wsjax.certifiers.base import Certificate, Outcomes, Prediction, refuse
from wsjax.certifiers.votes import (
    IN_FLIGHT,
    Drawing,
    VoteCertifier,
    check_votes,
    halves,
    needed,
    share,
)

FIRST_LOOK = 100


class LookEvidence(NamedTuple):
    """The votes at which one image was decided.

    Attributes:
      selection_votes: `[K]` int, at most `n0`.
      votes: `[K]` int, at most `n`; fresh draws.
    """

    selection_votes: np.ndarray
    votes: np.ndarray

    def __repr__(self) -> str:
        return text.short_repr(self)


def check_radii(radii: Sequence[float], theorem: ProbabilityScores) -> np.ndarray:
    """What the probability of a class has to exceed, for each of some radii.

    Args:
      radii: positive and increasing, in the theorem's ground metric.
      theorem: what probabilities are worth.

    Returns:
      `[R]` float64, not decreasing.

    Raises:
      ValueError: there is no radius, they are not positive and increasing, or one is
        out of reach of the noise.
    """
    if len(radii) == 0 or any(b <= a for a, b in itertools.pairwise(radii)):
        raise ValueError(
            f"radii={tuple(radii)!r} is not an increasing list of at least one radius; "
            f"sort it, and name each radius once."
        )
    thresholds = np.array([theorem.probability_for(radius) for radius in radii])
    # Rounding up one threshold above the next would be no reason for disorder.
    return np.maximum.accumulate(thresholds)


@dataclasses.dataclass(frozen=True)
class VotesAtRadii(VoteCertifier):
    """Certifies each image at the largest of some radii, stopping as soon as it can.

    With probability at least 1 - alpha over the draws, the smoothed classifier returns
    `label` within `radius`. Votes are looked at after `first_look`, twice that, and so
    on (`sequential.looks`), and `n` at the latest. Radii are tested from the smallest
    upwards, each at level `alpha` and only if all below it were certified. A wrong
    certificate then needs the first radius that is too large to be certified, whose own
    test does so with probability at most `alpha`: several radii cost no more than one.

    `n0` and `n` are the most votes. Any choice of the class is valid, so selection stops as
    soon as one class leads with p-value `alpha`, or none is likely enough for any radius.
    The other attributes are those of `VoteCertifier`.

    Attributes:
      radii: increasing, in the smoothing's ground metric.
      beta: share of what is given up that `n` votes would have certified, as far as can
        be foreseen (`sequential.decide`); None for `alpha`. Costs no soundness.
      first_look: votes before the first look. No block is larger than a device's share
        of them, so that none is half empty.

    Source: docs/theory.md, 3.5 to 3.7.
    """

    _: dataclasses.KW_ONLY
    radii: tuple[float, ...]
    beta: float | None = None
    first_look: int = FIRST_LOOK

    columns: ClassVar[Mapping[str, str]] = {
        "n_used": "int",
        "selection_votes": "votes",
        "votes": "votes",
    }
    rows_file: ClassVar[str] = "verdicts.tsv"
    several_processes: ClassVar[bool] = False
    trigger: ClassVar[str | None] = "at_radii"
    ignores: ClassVar[tuple[str, ...]] = ("use_runner_up", "groups")

    def __post_init__(self):
        super().__post_init__()
        sequential.check_levels(self.alpha, self.beta)
        sequential.looks(self.first_look, self.n)
        if not all(isinstance(radius, (int, float)) for radius in self.radii):
            raise ValueError(f"radii={self.radii!r} is not a list of numbers.")
        least = float(self.thresholds[0])
        if not sequential.can_certify(least, n=self.n, alpha=self.alpha):
            raise ValueError(
                f"n={self.n} votes do not certify a radius of {self.radii[0]} at "
                f"alpha={self.alpha}, even if all of them agree: a probability above "
                f"{least:.6g} is needed. Take more votes, or smaller radii."
            )

    @functools.cached_property
    def thresholds(self) -> np.ndarray:
        """What the probability of a class has to exceed, for each of the radii."""
        return check_radii(self.radii, self.smoothing.scores)

    def certify_each(
        self, images: Iterable[Any], keys: Iterable[jax.Array] | None = None
    ) -> Iterator[Certificate]:
        theorem = self.smoothing.scores
        thresholds = self.thresholds
        selecting = sequential.looks(self.first_look, self.n0)
        estimating = sequential.looks(self.first_look, self.n)
        counter = self.counter(share(self, self.first_look))
        level = self.alpha if self.beta is None else self.beta

        def enough(counts):
            if sequential.leading_class_p_value(counts, self.n0) <= self.alpha:
                return True
            return sequential.out_of_reach(
                int(counts.max()),
                int(counts.sum()),
                float(thresholds[0]),
                n=self.n,
                alpha=self.alpha,
                beta=level,
            )

        def work(images, keys):
            key_select, key_estimate = halves(keys[0])
            selection = Drawing(counter, key_select, images[0], selecting)
            # Estimation begins before it is known which class it is about.
            estimation = Drawing(counter, key_estimate, images[0], estimating)
            selection_votes = yield from selection.until(enough)
            selected = int(np.argmax(selection_votes))
            certified = np.zeros(len(thresholds), bool)
            for _ in estimating:
                counts = yield from estimation.more()
                decisions = sequential.decide(
                    int(counts[selected]),
                    int(counts.sum()),
                    thresholds,
                    n=self.n,
                    alpha=self.alpha,
                    beta=self.beta,
                )
                # What was certified once stays so.
                certified |= decisions == sequential.CERTIFIED
                reached = int(np.argmin([*certified, False]))
                if reached == len(thresholds) or (
                    decisions[reached] == sequential.GIVEN_UP
                ):
                    break
            own, others, radius = -math.inf, math.inf, 0.0
            if reached:  # Then the probability is above its threshold.
                own, others = theorem.bounds(thresholds[reached - 1])
                radius = float(self.radii[reached - 1])
            decision = scores.lead(selected, own, others)._replace(radius=radius)
            return [Certificate(*decision, LookEvidence(selection_votes, counts))]

        return queue.run(work, images, needed(keys), 1, IN_FLIGHT)

    def predict_each(
        self,
        images: Iterable[Any],
        keys: Iterable[jax.Array] | None = None,
        first_look: int | None = None,
    ) -> Iterator[Prediction]:
        """Answers as soon as the votes are clear; see `VoteCertifier.predict_each`."""
        return super().predict_each(images, keys, first_look or self.first_look)

    @classmethod
    def settings(cls) -> dict[str, Any]:
        """See `Certifier.settings`: the radii are called "at_radii" there."""
        given = super().settings()
        del given["radii"], given["groups"]
        return {**given, "at_radii": (), "beta": 0.0}

    @classmethod
    def from_run(cls, run: Any, **settings: Any) -> Self:
        settings["radii"] = tuple(settings.pop("at_radii"))
        settings["beta"] = settings["beta"] or None
        return super().from_run(run, groups=None, **settings)

    def recorded(self) -> dict[str, Any]:
        return {
            **super().recorded(),
            "kind": "at_radii",
            "radii": list(self.radii),
        }

    def cells(self, certificate: Certificate) -> dict[str, Any]:
        evidence = certificate.evidence
        return {
            "n_used": int(evidence.selection_votes.sum() + evidence.votes.sum()),
            "selection_votes": evidence.selection_votes,
            "votes": evidence.votes,
        }

    @classmethod
    def outcomes(
        cls, rows: Mapping[str, np.ndarray], recorded: Mapping[str, Any]
    ) -> list[Outcomes]:
        """See `Certifier.outcomes`; an answer is the certified class."""
        radii, given = rows["radius"], [0.0, *recorded["radii"]]
        check_votes(rows, recorded)
        cast = rows["selection_votes"].sum(1) + rows["votes"].sum(1)
        own = f"The radius of image {{idx}} is not one of the run's, {given[1:]}"
        refuse(
            rows,
            {
                own: ~np.isin(radii, given),
                "The radius of image {idx} does not go with its class": (radii > 0)
                != (rows["predict"] != scores.ABSTAIN),
                "The n_used of image {idx} is not that of its votes": rows["n_used"]
                != cast,
            },
        )
        return [
            Outcomes(
                "at radii",
                rows["predict"],
                radii,
                rows["predict"],
                rows["n_used"],
                recorded["n0"] + recorded["n"],
                rows["votes"],
            )
        ]
