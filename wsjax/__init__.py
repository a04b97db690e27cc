"""Certified robustness against Wasserstein attacks, in JAX.

The names below tell the story in order: move mass along a flow plan, make noise of
it, count votes under the noise, bound a probability, and certify a radius. They need
jax, numpy and scipy only. Models, training, data and attacks live in subpackages
that are imported by name.
"""

from wsjax._version import __version__
from wsjax.fast_random import make_key
from wsjax.fast_transport import Bounds, bounded_distance
from wsjax.flow import (
    FlowPlan,
    apply_flow,
    divergence,
    flow_cost,
    flow_shape,
    image_mass,
    normalize_mass,
    potential_gradient,
)
from wsjax.gaussian import ColouredGaussian, GaussianView, StencilGaussian
from wsjax.noise import FlowGaussian, FlowLaplace, FlowUniform, PixelLaplace
from wsjax.smoothing import (
    ABSTAIN,
    Certificate,
    Prediction,
    Smoothing,
    certify,
    certify_each,
    gaussian_smoothing,
    make_smoothing,
    predict,
)
from wsjax.transport import TransportPlan, exact_distance, flow_from_transport
from wsjax.verdicts import Verdict, certify_at, certify_each_at, predict_early
from wsjax.votes import count_votes, count_votes_each

__all__ = [
    "ABSTAIN",
    "Bounds",
    "Certificate",
    "ColouredGaussian",
    "FlowGaussian",
    "FlowLaplace",
    "FlowPlan",
    "FlowUniform",
    "GaussianView",
    "PixelLaplace",
    "Prediction",
    "Smoothing",
    "StencilGaussian",
    "TransportPlan",
    "Verdict",
    "__version__",
    "apply_flow",
    "bounded_distance",
    "certify",
    "certify_at",
    "certify_each",
    "certify_each_at",
    "count_votes",
    "count_votes_each",
    "divergence",
    "exact_distance",
    "flow_cost",
    "flow_from_transport",
    "flow_shape",
    "gaussian_smoothing",
    "image_mass",
    "make_key",
    "make_smoothing",
    "normalize_mass",
    "potential_gradient",
    "predict",
    "predict_early",
]
