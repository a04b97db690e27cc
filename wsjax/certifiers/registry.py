"""Every kind of certifier by the name that configs call it."""

from wsjax.certifiers.at_radii import VotesAtRadii
from wsjax.certifiers.base import Certifier
from wsjax.certifiers.lipschitz import LipschitzScores
from wsjax.certifiers.nearest import NearestNeighbours
from wsjax.certifiers.pilot import PilotVotes
from wsjax.certifiers.votes import FixedVotes

# A kind of your own: a file beside this one, and a line here.
KINDS: dict[str, type[Certifier]] = {
    "votes": FixedVotes,
    "at_radii": VotesAtRadii,
    "pilot": PilotVotes,
    "lipschitz": LipschitzScores,
    "nearest": NearestNeighbours,
}


def get_kind(name: str) -> type[Certifier]:
    """The class of that name, a key of `KINDS`; ValueError if there is none."""
    if name not in KINDS:
        raise ValueError(f"certify.method={name!r} is not one of {tuple(KINDS)}.")
    return KINDS[name]
