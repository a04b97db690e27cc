"""What the scores of each noise law are: one function per theorem.

Let `p_k(mu)` be the probability of class `k` under the noise at the image `mu`. Each
theorem here names an increasing function `G` and a scale `c` such that `c G(p_k)` is
1-Lipschitz in the Wasserstein distance; `scores` does the rest. With a lower confidence
bound `p` on the probability of one class, and an upper one `q` on those of all others,
the radius is `c (G(p) - G(q)) / 2`. Without a bound on the others `q = 1 - p` is one,
since the classes are disjoint. The two confidence bounds must hold jointly.

The ground metric is the distance between pixels that mass travels: Manhattan ("l1")
or Euclidean ("l2"). Flow norms measure Manhattan cost. A Euclidean path is at most
sqrt(2) times shorter than a Manhattan one, so W_l1 <= sqrt(2) * W_l2, and scores that
are 1-Lipschitz in the one become so in the other when divided by sqrt(2).

Arithmetic is float64 on the host, numbers or arrays; radii are rounded down.
"""

import dataclasses
import math
import numbers
from collections.abc import Callable
from typing import Any

import numpy as np
from scipy import special

from wsjax.metrics import check_ground_metric
from wsjax.scores import certified_radius


def _laplace_quantile(p):
    """Of scale one: log(2 p) below the median, -log(2 (1 - p)) above."""
    below, above = np.log(2.0 * np.minimum(p, 0.5)), np.log(2.0 - 2.0 * p)
    return np.where(p < 0.5, below, -above)


# What the proofs about `off` hold for: 4e-6 times the largest eta in `exact` (`exact_flow`
# has a smaller one), and the least probability of another class at which a density is
# bounded from below.
_MOST_OFF = 4e-8
_LEAST_OTHER = 1e-6

_FUNCTIONS: dict[str, Callable] = {
    "gaussian": special.ndtri,
    "laplace": _laplace_quantile,
    "logarithm": np.log,
    "identity": np.asarray,
}


@dataclasses.dataclass(frozen=True)
class ProbabilityScores:
    """Scores `c G(p)` of classes with probability `p`; made by the theorems below.

    Attributes:
      function: G: "gaussian" (its quantile function), "laplace" (likewise),
        "logarithm" or "identity".
      scale: c, in pixels x fraction of mass, in [1e-12, 1e12]; not above the exact one.
      ground_metric: "l1" or "l2": of the distance in which they are 1-Lipschitz.
      slack: what bounds on scores are loosened by, in their unit, before they count;
      off: and bounds on probabilities, before they become scores. Both are 0 but for
        laws in whole numbers (`exact`), which prove what they are.
    """

    function: str
    scale: float
    ground_metric: str
    slack: float = 0.0
    off: float = 0.0

    def __post_init__(self):
        check_ground_metric(self.ground_metric)
        if self.function not in _FUNCTIONS:
            raise ValueError(
                f"function={self.function!r} is not one of {tuple(_FUNCTIONS)}."
            )
        # As little noise as float32 has at the least mass (`images`), and as much.
        if not (isinstance(self.scale, numbers.Real) and 1e-12 <= self.scale <= 1e12):
            raise ValueError(
                f"scale={self.scale!r} is outside [1e-12, 1e12], as that of the noise "
                f"is: a fraction of the image's mass, usually 0.00005 to 0.1."
            )
        if not (0 <= self.slack < math.inf and 0 <= self.off < _MOST_OFF):
            raise ValueError(
                f"slack={self.slack!r} or off={self.off!r} is negative, or off is not "
                f"below {_MOST_OFF:g}: what rounding does to a probability."
            )
        if self.off and self.function == "identity":
            raise ValueError(
                f"off={self.off!r} is for Gaussian and Laplace noise, not function="
                f"{self.function!r}; set it to 0."
            )

    def described(self) -> dict[str, Any]:
        """The fields, as a record of a run holds them: those of exact noise with it alone."""
        fields = dataclasses.asdict(self)
        return {k: v for k, v in fields.items() if v or k not in ("slack", "off")}

    def __call__(self, p):
        """Score of a probability.

        Args:
          p: in [0, 1], or array of such.

        Returns:
          float64 or array, increasing in `p`; -inf or inf where G is.

        Raises:
          ValueError: `p` is no probability.
        """
        p = _probability("p", p)
        with np.errstate(divide="ignore"):
            return (self.scale * _FUNCTIONS[self.function](p))[()]

    def radius(self, p_lower, runner_up=None):
        """Certified radius of a class.

        Args:
          p_lower: lower bound on its probability, in [0, 1], or array.
          runner_up: upper bound on every other class's; default `1 - p_lower`. It is
            never taken for larger than that, so that a loose one does no harm.

        Returns:
          float64 or array, pixels x fraction of mass, rounded down; 0 where nothing is
          certified.

        Raises:
          ValueError: an argument is no probability.
        """
        own, others = self.bounds(p_lower, runner_up)
        return certified_radius(own, others)

    def bounds(self, p_lower, runner_up=None):
        """Lower bound on a class's score and upper bound on the others'.

        Args:
          p_lower: as in `radius`.
          runner_up: see there.

        Returns:
          Two float64 or arrays.

        Raises:
          ValueError: an argument is no probability.
        """
        p = _probability("p_lower", p_lower)
        q = 1.0 - p
        if runner_up is not None:
            q = np.minimum(_probability("runner_up", runner_up), q)
        if self.off:
            # Small runner-ups are taken for larger, as the proofs want.
            q = np.minimum(
                np.maximum(q, np.minimum(1.0 - p, _LEAST_OTHER)) + self.off, 1
            )
            p = np.maximum(p - self.off, 0)
        return self(p) - self.slack, self(q) + self.slack

    def probability_for(self, radius: float) -> float:
        """The inverse of `radius`: which probability of a class certifies a radius.

        Every class with a probability above the result (it need not be known how far
        above) is certified at `radius`, by the bound on one class alone.

        Args:
          radius: in `ground_metric`, pixels x fraction of mass; positive.

        Returns:
          float64 in (1/2, 1): the least at which `self.radius` reaches `radius`, so
          rounded up.

        Raises:
          ValueError: `radius` is not positive, or no probability below 1 certifies it.
        """
        if not (isinstance(radius, numbers.Real) and 0 < radius < math.inf):
            raise ValueError(f"radius={radius!r} is not a positive finite number.")
        # The radius grows with p, and at 1/2 there is none. What rounding does to its
        # order is harmless: `high` itself always reaches the radius.
        low, high = 0.5, math.nextafter(1.0, 0.0)
        largest = float(self.radius(high))
        if largest < radius:
            raise ValueError(
                f"radius={radius!r} is out of reach of this noise: no probability below "
                f"1 certifies more than {largest:.6g}. Ask for less, or smooth with more "
                f"noise."
            )
        while low < (middle := 0.5 * (low + high)) < high:
            if self.radius(middle) >= radius:
                high = middle
            else:
                low = middle
        return high


def _probability(name, value):
    p = np.asarray(value, np.float64)
    if not np.all((p >= 0) & (p <= 1)):
        raise ValueError(
            f"{name}={p!r} is not a probability between 0 and 1. It comes from "
            f"confidence.lower_bound or confidence.upper_bound."
        )
    return p


def _along_edges(function, scale, ground_metric):
    """Scores that are 1-Lipschitz in the L1 norm of flows, for either metric."""
    factor = math.sqrt(0.5) if ground_metric == "l2" else 1.0
    return ProbabilityScores(function, scale * factor, ground_metric)


def _check_sigma(sigma: float) -> None:
    if not (isinstance(sigma, numbers.Real) and 0 < sigma < math.inf):
        raise ValueError(f"sigma={sigma!r} is not a positive finite number.")


def flow_laplace_published(sigma: float, ground_metric: str) -> ProbabilityScores:
    """Laplace flow noise as published: b log(p), b = sigma / sqrt(2).

    Assumes i.i.d. Laplace noise of standard deviation `sigma` (scale b) on every
    edge of the flow plan, wrap-around edges or not. Moving the plan by `delta`
    changes the log-density by at most ||delta||_1 / b, so every class probability
    changes by at most the factor exp(||delta||_1 / b), and b log(p) by at most
    ||delta||_1. The radius is (b/2) log(p / q).

    Args:
      sigma: standard deviation per edge, fraction of image mass.
      ground_metric: "l1" or "l2".

    Returns:
      The `ProbabilityScores`.

    Raises:
      ValueError: an argument is outside its range.

    Source: Levine & Feizi, arXiv:1910.10783, Theorem 2 and Corollary 1 (after Lecuyer
    et al. 2019).
    """
    _check_sigma(sigma)
    return _along_edges("logarithm", sigma / math.sqrt(2.0), ground_metric)


def flow_laplace(sigma: float, ground_metric: str) -> ProbabilityScores:
    """Laplace flow noise, tight: F^{-1}(p), the quantile function of scale b.

    Same noise and same votes as `flow_laplace_published`, never a smaller radius
    and up to twice as large. For i.i.d. noise with a symmetric log-concave density
    and distribution function F, the worst shift of L1 norm r lies along one axis
    and leaves a class of probability p at least F(F^{-1}(p) - r) and at most
    F(F^{-1}(p) + r): F^{-1}(p) is 1-Lipschitz in the shift. For Laplace noise the
    radius of one class is -b log(2 (1 - p)), b = sigma / sqrt(2).

    Source: Teng, Lee & Yuan 2020; Yang et al. 2020 (binary). The form with a
    runner-up is proved in docs/theory.md, "Symmetric log-concave noise".

    Arguments, result and errors as in `flow_laplace_published`.
    """
    _check_sigma(sigma)
    return _along_edges("laplace", sigma / math.sqrt(2.0), ground_metric)


def flow_uniform(sigma: float, ground_metric: str) -> ProbabilityScores:
    """Uniform flow noise on [-lam, lam]: 2 lam p, lam = sqrt(3) sigma.

    Moving one edge's noise by r changes the probability of any event by at most
    r / (2 lam), and moving several by at most the sum. The radius is lam (p - q).

    Source: Lee et al. 2019; Yang et al. 2020.

    Arguments, result and errors as in `flow_laplace_published`.
    """
    _check_sigma(sigma)
    return _along_edges("identity", 2.0 * math.sqrt(3.0) * sigma, ground_metric)


def gaussian(kappa: float, ground_metric: str) -> ProbabilityScores:
    """Gaussian noise: c Phi^{-1}(p), c = 1 / kappa.

    Assumes that the classifier sees the image `mu` only through `phi(mu) + z`, with
    `z` standard normal and `phi` linear (or with Gaussian noise of any covariance
    `Sigma` added to it: `phi = Sigma^{-1/2}`), and that

        || phi(e_a - e_b) ||_2  <=  kappa * d(a, b)

    for all pixels `a`, `b` of one channel, `d` the ground metric. An optimal transport
    plan `pi` then shows `|| phi(mu' - mu) || <= sum pi_ab kappa d(a, b) = kappa W`, and
    Phi^{-1}(p) is 1-Lipschitz in L2 shifts of `phi(mu)`. There is no factor for "l2" on
    top: kappa belongs to the metric.

    Args:
      kappa: the constant for `ground_metric`, rounded up; see `gaussian.kappa`.
      ground_metric: "l1" or "l2", the metric `kappa` was computed for.

    Returns:
      The `ProbabilityScores`.

    Raises:
      ValueError: an argument is outside its range.

    Source: docs/theory.md, 5.1; Cohen, Rosenfeld & Kolter 2019, Theorem 1; Salman et
    al. 2019, Lemma 1.
    """
    if not (isinstance(kappa, numbers.Real) and 0 < kappa < math.inf):
        raise ValueError(f"kappa={kappa!r} is not a positive finite number.")
    return ProbabilityScores("gaussian", 1.0 / kappa, ground_metric)


def pixel_laplace_published(sigma: float, ground_metric: str) -> ProbabilityScores:
    """The paper's pixel-noise baseline: (b/2) log(p), b = sigma / sqrt(2).

    Assumes i.i.d. Laplace noise of standard deviation `sigma` on every pixel. Moving
    mass `t` to another pixel takes it from one and adds it to the other, over a
    distance of at least one pixel in either metric, so ||mu - mu'||_1 <= 2 W and
    scores that are 1-Lipschitz in L1 are halved; there is no further factor for "l2".

    Source: Levine & Feizi, arXiv:1910.10783, Section 5 (Laplace baseline).

    Result and errors as in `flow_laplace_published`; `sigma` is per pixel.
    """
    _check_sigma(sigma)
    return ProbabilityScores("logarithm", 0.5 * sigma / math.sqrt(2.0), ground_metric)


def pixel_laplace(sigma: float, ground_metric: str) -> ProbabilityScores:
    """Pixel Laplace noise, tight: `flow_laplace` in L1, halved.

    Arguments, result and reason for the factor as in `pixel_laplace_published`;
    the L1 bound is that of Teng, Lee & Yuan 2020.
    """
    _check_sigma(sigma)
    return ProbabilityScores("laplace", 0.5 * sigma / math.sqrt(2.0), ground_metric)
