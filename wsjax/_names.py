"""The public names, in the order of the story; `wsjax` shows them as its own."""

from wsjax._version import __version__
from wsjax.certifiers.at_radii import VotesAtRadii
from wsjax.certifiers.base import Certificate, Certifier, Prediction
from wsjax.certifiers.lipschitz import LipschitzScores
from wsjax.certifiers.nearest import NearestNeighbours
from wsjax.certifiers.pilot import PilotVotes
from wsjax.certifiers.votes import Counting, FixedVotes
from wsjax.fast_random import make_key
from wsjax.fast_transport import bounded_distance
from wsjax.flow import (
    FlowPlan,
    apply_flow,
    flow_cost,
    flow_shape,
    image_mass,
    normalize_mass,
)
from wsjax.gaussian import ColouredGaussian, GaussianView
from wsjax.host import HostClassifier
from wsjax.noise import FlowGaussian, FlowLaplace, FlowUniform, NoiseLaw, PixelLaplace
from wsjax.scores import ABSTAIN
from wsjax.smoothing import Smoothing, gaussian_smoothing, make_smoothing
from wsjax.transport import exact_distance
from wsjax.votes import count_votes

__all__ = [
    "ABSTAIN",
    "Certificate",
    "Certifier",
    "ColouredGaussian",
    "Counting",
    "FixedVotes",
    "FlowGaussian",
    "FlowLaplace",
    "FlowPlan",
    "FlowUniform",
    "GaussianView",
    "HostClassifier",
    "LipschitzScores",
    "NearestNeighbours",
    "NoiseLaw",
    "PilotVotes",
    "PixelLaplace",
    "Prediction",
    "Smoothing",
    "VotesAtRadii",
    "__version__",
    "apply_flow",
    "bounded_distance",
    "count_votes",
    "exact_distance",
    "flow_cost",
    "flow_shape",
    "gaussian_smoothing",
    "image_mass",
    "make_key",
    "make_smoothing",
    "normalize_mass",
]
