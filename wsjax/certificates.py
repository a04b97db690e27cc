"""From probabilities to certified radii: one function per theorem.

Every function takes a lower confidence bound `p_lower` on the probability of the top
class under the noise and returns a radius `r` with this meaning: if the bound holds,
the smoothed classifier gives the same answer at every image of Wasserstein distance
less than `r` from the given one. The unit of `r` is pixels x fraction of the image's
mass; the two images have equal mass in every channel.

`runner_up` is an upper confidence bound on the probability of every other class.
Without one, `1 - p_lower` is used. The two confidence bounds must hold jointly.

The ground metric is the distance between pixels that mass travels: Manhattan ("l1")
or Euclidean ("l2"). Flow norms measure Manhattan cost. A Euclidean path is at most
sqrt(2) times shorter than a Manhattan one, so W_l1 <= sqrt(2) * W_l2 and a Manhattan
radius divided by sqrt(2) is a Euclidean radius.

Arithmetic is float64 on the host, numbers or arrays. Results are rounded down, but for
the loss of digits next to p = 1/2, at most 2e-16 of the noise's spread; the 1e-12 that
`confidence.lower_bound` gives away covers it many times over.
"""

import math
import numbers

import numpy as np
from scipy import special

GROUND_METRICS = ("l1", "l2")

# Far above the rounding error of the few operations below, far below any use.
_ROUND_DOWN = 1.0 - 2.0**-45


def _probabilities(p_lower, runner_up):
    """Both bounds as float64 arrays, after checks; radius 0 where they overlap."""
    p = np.asarray(p_lower, np.float64)
    q = 1.0 - p if runner_up is None else np.asarray(runner_up, np.float64)
    for name, value in (("p_lower", p), ("runner_up", q)):
        if not np.all((value >= 0) & (value <= 1)):
            raise ValueError(
                f"{name}={value!r} is not a probability between 0 and 1. It comes "
                f"from confidence.lower_bound or confidence.upper_bound."
            )
    # The classes are disjoint, so the truth always satisfies q <= 1 - p; never
    # letting a loose q undo what p alone shows keeps the bound monotone.
    return p, np.minimum(q, 1.0 - p)


def _check_spread(name: str, value: float) -> None:
    if not (isinstance(value, numbers.Real) and 0 < value < math.inf):
        raise ValueError(f"{name}={value!r} is not a positive finite number.")


def _finish(radius, ground_metric: str):
    """Manhattan flow norm -> radius in `ground_metric`, at least 0, rounded down."""
    if ground_metric not in GROUND_METRICS:
        raise ValueError(
            f"ground_metric={ground_metric!r} is not one of {GROUND_METRICS}: "
            f'"l1" moves mass along rows and columns, "l2" in straight lines.'
        )
    if ground_metric == "l2":
        radius = radius / math.sqrt(2.0)
    return np.maximum(radius * _ROUND_DOWN, 0.0)[()]


def flow_laplace_published(p_lower, sigma: float, ground_metric: str, runner_up=None):
    """Radius of Laplace flow noise as published: (b/2) log(p / q), b = sigma/sqrt(2).

    Assumes i.i.d. Laplace noise of standard deviation `sigma` (scale b) on every
    edge of the flow plan, wrap-around edges or not. Moving the plan by `delta`
    changes the log-density by at most ||delta||_1 / b, so every class probability
    changes by at most the factor exp(||delta||_1 / b); the top class stays ahead
    while exp(2 ||delta||_1 / b) < p / q.

    Args:
      p_lower: lower bound on the top class's probability, in [0, 1].
      sigma: standard deviation per edge, fraction of image mass.
      ground_metric: "l1" or "l2".
      runner_up: upper bound on the other classes' probabilities; default 1 - p.

    Returns:
      float64 radius (or array), 0 where nothing is certified.

    Raises:
      ValueError: an argument is outside its range.

    Source: Levine & Feizi, arXiv:1910.10783, Theorem 2 and Corollary 1 (after Lecuyer
    et al. 2019).
    """
    _check_spread("sigma", sigma)
    p, q = _probabilities(p_lower, runner_up)
    scale = sigma / math.sqrt(2.0)
    with np.errstate(divide="ignore"):
        radius = np.where(p > q, 0.5 * scale * (np.log(p) - np.log(q)), 0.0)
    return _finish(radius, ground_metric)


def flow_laplace(p_lower, sigma: float, ground_metric: str, runner_up=None):
    """Tight radius of Laplace flow noise: -b log(2 (1 - p)), b = sigma / sqrt(2).

    Same noise and same votes as `flow_laplace_published`, never a smaller radius
    and up to twice as large. For i.i.d. noise with a symmetric log-concave density
    and distribution function F, the worst shift of L1 norm r lies along one axis
    and leaves the top class at least F(F^{-1}(p) - r) and any other at most
    F(F^{-1}(q) + r); these are in order while r < (F^{-1}(p) - F^{-1}(q)) / 2. For
    Laplace and p >= 1/2 >= q that is -(b/2) log(4 q (1 - p)), and the published
    value when p < 1/2.

    Args:
      p_lower: lower bound on the top class's probability, in [0, 1].
      sigma: standard deviation per edge, fraction of image mass.
      ground_metric: "l1" or "l2".
      runner_up: upper bound on the other classes' probabilities; default 1 - p.

    Returns:
      float64 radius (or array), 0 where nothing is certified.

    Raises:
      ValueError: an argument is outside its range.

    Source: Teng, Lee & Yuan 2020; Yang et al. 2020 (binary). The form with a
    runner-up is proved in docs/theory.md, "Symmetric log-concave noise".
    """
    _check_spread("sigma", sigma)
    p, q = _probabilities(p_lower, runner_up)
    scale = sigma / math.sqrt(2.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        above_half = -0.5 * scale * np.log(4.0 * q * (1.0 - p))
        below_half = 0.5 * scale * (np.log(p) - np.log(q))
        radius = np.where(p >= 0.5, above_half, below_half)
    return _finish(np.where(p > q, radius, 0.0), ground_metric)


def flow_uniform(p_lower, sigma: float, ground_metric: str, runner_up=None):
    """Radius of uniform flow noise on [-lam, lam]: lam (p - q), lam = sqrt(3) sigma.

    Moving one edge's noise by r changes the probability of any event by at most
    r / (2 lam), and moving several by at most the sum.

    Args:
      p_lower: lower bound on the top class's probability, in [0, 1].
      sigma: standard deviation per edge, fraction of image mass.
      ground_metric: "l1" or "l2".
      runner_up: upper bound on the other classes' probabilities; default 1 - p.

    Returns:
      float64 radius (or array), 0 where nothing is certified.

    Raises:
      ValueError: an argument is outside its range.

    Source: Lee et al. 2019; Yang et al. 2020.
    """
    _check_spread("sigma", sigma)
    p, q = _probabilities(p_lower, runner_up)
    return _finish(sigma * math.sqrt(3.0) * (p - q), ground_metric)


def gaussian(p_lower, kappa: float, ground_metric: str, runner_up=None):
    """Radius of Gaussian noise: (Phi^{-1}(p) - Phi^{-1}(q)) / (2 kappa).

    Assumes that the classifier sees the image `mu` only through `phi(mu) + z`, with
    `z` standard normal and `phi` linear (or with Gaussian noise of any covariance
    `Sigma` added to it: `phi = Sigma^{-1/2}`), and that

        || phi(e_a - e_b) ||_2  <=  kappa * d(a, b)

    for all pixels `a`, `b` of one channel, `d` the ground metric. An optimal transport
    plan `pi` then shows `|| phi(mu' - mu) || <= sum pi_ab kappa d(a, b) = kappa W`, and
    the rest is the Gaussian theorem for L2 shifts of `phi(mu)`.

    Args:
      p_lower: lower bound on the top class's probability, in [0, 1].
      kappa: the constant for `ground_metric`, rounded up; see `gaussian.kappa`.
      ground_metric: "l1" or "l2", the metric `kappa` was computed for.
      runner_up: upper bound on the other classes' probabilities; default 1 - p.

    Returns:
      float64 radius (or array), 0 where nothing is certified.

    Raises:
      ValueError: an argument is outside its range.

    Source: docs/theory.md, 5.1; Cohen, Rosenfeld & Kolter 2019, Theorem 1.
    """
    _check_spread("kappa", kappa)
    p, q = _probabilities(p_lower, runner_up)
    with np.errstate(invalid="ignore"):
        radius = 0.5 * (special.ndtri(p) - special.ndtri(q)) / kappa
    # "l1" in either metric: no factor on top, kappa belongs to the metric.
    _finish(np.float64(0.0), ground_metric)
    return _finish(np.where(p > q, radius, 0.0), "l1")


def pixel_laplace_published(p_lower, sigma: float, ground_metric: str, runner_up=None):
    """Radius of the paper's pixel-noise baseline: (b/4) log(p / q).

    Assumes i.i.d. Laplace noise of standard deviation `sigma` on every pixel. Moving
    mass `t` to another pixel takes it from one and adds it to the other, over a
    distance of at least one pixel in either metric, so ||mu - mu'||_1 <= 2 W and
    the L1 radius is halved; there is no further factor for "l2".

    Args:
      p_lower: lower bound on the top class's probability, in [0, 1].
      sigma: standard deviation per pixel, fraction of image mass.
      ground_metric: "l1" or "l2"; the radius is the same.
      runner_up: upper bound on the other classes' probabilities; default 1 - p.

    Returns:
      float64 radius (or array), 0 where nothing is certified.

    Raises:
      ValueError: an argument is outside its range.

    Source: Levine & Feizi, arXiv:1910.10783, Section 5 (Laplace baseline).
    """
    _finish(np.float64(0.0), ground_metric)
    return flow_laplace_published(p_lower, sigma, "l1", runner_up) / 2.0


def pixel_laplace(p_lower, sigma: float, ground_metric: str, runner_up=None):
    """Tight radius of pixel Laplace noise: `flow_laplace` in L1, halved.

    Arguments, result and reason for the factor as in `pixel_laplace_published`;
    the L1 bound is that of Teng, Lee & Yuan 2020.
    """
    _finish(np.float64(0.0), ground_metric)
    return flow_laplace(p_lower, sigma, "l1", runner_up) / 2.0
