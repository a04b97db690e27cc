"""Exact Wasserstein distances, and the flow plans that attain them.

The distance is a linear program, solved on the host in float64: by the network simplex
of POT (https://pythonot.github.io, MIT licence) where that is installed, whose answers
are proved optimal here before they are used, and by SciPy's HiGHS otherwise. It is the
judge of attacks and certificates, so it errs by rounding only.

Distances are in pixels x fraction of the image's total mass: 0.01 is 1 % of the mass
moved by one pixel. Mass moves within its channel.
"""

import contextlib
import functools
import os
import sys
import warnings

import numpy as np
from jax.typing import ArrayLike

from wsjax.flow import FlowPlan, flow_shape
from wsjax.metrics import check_ground_metric, pixel_distance

# Pixels rounded to float32 are off by 6e-8 of themselves; a hundred such roundings
# that all err the same way stay below this.
MASS_TOLERANCE = 1e-5

_SAME = 1e-12  # Less moved mass than this, as a fraction, is float64 rounding.
OPTIMAL = 1e-11  # What a plan may lose, as a fraction of the longest way.
_SOLVER = {"primal_feasibility_tolerance": 1e-10, "dual_feasibility_tolerance": 1e-10}
# With so many pairs of pixels or more, HiGHS on the grid catches up with POT on pairs.
_MANY_PAIRS = 2**20


def exact_distance(
    a: ArrayLike,
    b: ArrayLike,
    ground_metric: str = "l1",
    *,
    mass_tolerance: float = MASS_TOLERANCE,
) -> float:
    """Wasserstein distance between two images of equal mass per channel.

    Channels of `b` whose mass differs from that in `a` by at most `mass_tolerance`
    are rescaled to agree exactly, which moves the result by at most `mass_tolerance`
    times the diameter of the image. On one x86-64 core a call takes, in ms::

                                   "l1"            "l2"
                               POT   HiGHS     POT   HiGHS
      MNIST, another image     1.3      19     1.6      57
      MNIST, moved a little    2.4      18     2.6      22
      CIFAR, another image      68     210     120   34000
      CIFAR, moved a little     72      91      97     300

    The first call imports POT, which takes a second or two. `bounded_distance` bounds
    many distances at once.

    Args:
      a: `[H, W, C]`, nonnegative and not all zero, in any unit.
      b: the same shape and unit.
      ground_metric: "l1" for Manhattan, "l2" for Euclidean distance of pixels.
      mass_tolerance: largest difference in mass per channel, and largest total of
        negative pixels, that passes for rounding; a fraction of the mass of `a`.

    Returns:
      The distance in pixels x fraction of the total mass; 0.0 for equal images.

    Raises:
      ValueError: shapes differ; a pixel is NaN, infinite or negative; an image is
        black; or a channel's masses differ; or another ground metric.

    Source: Levine & Feizi, arXiv:1910.10783, Section 4, for the Manhattan distance as
    a flow problem.
    """
    check_ground_metric(ground_metric)
    excess = _excess(a, b, mass_tolerance)
    pairs = ((excess > 0).sum((0, 1)) * (excess < 0).sum((0, 1))).max()
    if ground_metric == "l1" and (pairs > _MANY_PAIRS or _network_simplex() is None):
        return float(sum(np.abs(edges).sum() for edges in _flow(excess)))
    return _bounds(excess, ground_metric)[1]


def distance_bounds(
    a: ArrayLike,
    b: ArrayLike,
    ground_metric: str = "l1",
    *,
    mass_tolerance: float = MASS_TOLERANCE,
) -> tuple[float, float]:
    """Two numbers between which `exact_distance` is, each with its proof.

    Below, what prices prove that no pair of pixels undercuts (Kantorovich duality);
    above, what a plan costs, plus the length of the longest way for each unit of mass
    that it misplaces. The two differ by rounding, some 1e-14, by the network simplex,
    and by up to 1e-8 by HiGHS, whose tolerances are coarser.

    Returns `(lower, upper)`; they are proved in exact arithmetic, and evaluated in
    float64, with relative errors of some 1e-14. Arguments, unit and errors are those of
    `exact_distance`.
    """
    check_ground_metric(ground_metric)
    return _bounds(_excess(a, b, mass_tolerance), ground_metric)


def exact_flow(
    a: ArrayLike, b: ArrayLike, *, mass_tolerance: float = MASS_TOLERANCE
) -> FlowPlan:
    """A cheapest flow plan from one image to another: the "l1" distance, edge by edge.

    With `m` the mass of `a`, `apply_flow(a / m, plan)` is `b / m` and `flow_cost(plan)`
    the distance. There may be several such plans. This one has NumPy float64 arrays, in
    fractions of the mass of `a`.

    Source: Beckmann's form of the problem: minimise the L1 norm of the flow subject
    to its divergence, Levine & Feizi, arXiv:1910.10783, Section 4.

    Arguments and errors are those of `exact_distance`.
    """
    return _flow(_excess(a, b, mass_tolerance))


def exact_potential(
    a: ArrayLike, b: ArrayLike, ground_metric: str, *, mass_tolerance: float = 1e-6
) -> np.ndarray:
    """A Kantorovich potential: what an optimal plan moves mass down along.

    Args:
      a: image, as in `exact_distance`.
      b: image, likewise.
      ground_metric: "l1" or "l2".
      mass_tolerance: see there.

    Returns:
      `[H, W, C]` float64 u with `|u(p) - u(q)| <= d(p, q)` for all pixels of a channel
      and `<u, a - b>` the distance from a to b, for images of mass one.

    Raises:
      ValueError: as `exact_distance`.
    """
    excess = _excess(a, b, mass_tolerance)
    check_ground_metric(ground_metric)
    potential = np.zeros(excess.shape)
    pixels = np.argwhere(np.ones(excess.shape[:2]))
    for channel in range(excess.shape[2]):
        problem = _problem(excess[:, :, channel], ground_metric)
        if problem is not None:
            cost, give, take, target = problem
            prices = _cheapest(cost, give, take)[2][len(give) :]
            # What is furthest from being undercut: a minimum of functions of slope one.
            ways = pixel_distance(pixels[:, None] - target, ground_metric)
            lowest = (ways - prices).min(1)
            potential[:, :, channel] = lowest.reshape(excess.shape[:2])
    return potential


def _excess(a, b, mass_tolerance):
    """Checks two images; mass of `a` minus mass of `b`, as fractions, float64."""
    a, b = (np.asarray(image, np.float64) for image in (a, b))
    flow_shape(a.shape)
    if a.shape != b.shape:
        raise ValueError(f"The images have different shapes: {a.shape} and {b.shape}.")
    for name, image in (("a", a), ("b", b)):
        if not np.isfinite(image).all():
            raise ValueError(f"Image {name} has NaN or infinite pixels.")
        if not image.any():
            raise ValueError(f"Image {name} is all black: there is no mass to move.")
    # By a power of two, which is exact: in any unit no sum overflows, no share underflows.
    _, size = np.frexp(np.abs(a).max())
    with np.errstate(over="ignore"):
        a, b = np.ldexp(a, -size), np.ldexp(b, -size)
    for name, image in (("a", a), ("b", b)):
        negative = -image.clip(max=0).sum()
        if negative > mass_tolerance * image.sum():
            raise ValueError(
                f"Image {name} has negative pixels down to "
                f"{np.ldexp(image.min(), size):.3g}, {np.ldexp(negative, size):.3g} in "
                f"all. Mass is nonnegative: clip the image at zero and restore the mass "
                f"of its channels."
            )
    total = a.sum()
    mass_a, mass_b = a.sum((0, 1)) / total, b.sum((0, 1)) / total
    worst = np.abs(mass_a - mass_b).argmax()
    if np.abs(mass_a - mass_b)[worst] > mass_tolerance:
        raise ValueError(
            f"Channel {worst} has {mass_a[worst]:.6g} of the mass of a and "
            f"{mass_b[worst]:.6g} in b; they may differ by {mass_tolerance:g}. The "
            f"distance is between images of equal mass in each channel. To compare "
            f"them all the same, rescale: b * (a.sum((0, 1)) / b.sum((0, 1)))."
        )
    # A channel that is black in one image is, within tolerance, black in both.
    inked = (mass_a > 0) & (mass_b > 0)
    share = np.where(inked, mass_a, 0) / np.where(inked, mass_b, 1)
    return np.where(inked, a / total - b / total * share, 0)


def _flow(excess):
    """A cheapest flow that carries off `excess` `[H, W, C]`."""
    flow = FlowPlan(*(np.zeros(shape) for shape in flow_shape(excess.shape)))
    for channel in range(excess.shape[2]):
        surplus = excess[:, :, channel]
        moved = np.abs(surplus).sum() / 2
        if moved > _SAME:
            vertical, horizontal = _cheapest_flow(surplus / moved)
            flow.vertical[:, :, channel] = moved * vertical
            flow.horizontal[:, :, channel] = moved * horizontal
    return flow


def _bounds(excess, ground_metric):
    """Bounds on the cost of carrying off `excess` `[H, W, C]`, as `distance_bounds`."""
    bounds = np.zeros(2)
    for channel in range(excess.shape[2]):
        surplus = excess[:, :, channel]
        problem = _problem(surplus, ground_metric)
        if problem is not None:
            lower, upper, _ = _cheapest(*problem[:3])
            bounds += np.abs(surplus).sum() / 2 * np.array([lower, upper])
    return float(bounds[0]), float(bounds[1])


def _problem(surplus, ground_metric):
    """What it costs to carry off `surplus` `[H, W]`; None if it is level.

    `(cost [n, m], give [n], take [m], places of the takers [m, 2])`, `give` and `take` of
    mass one.
    """
    if np.abs(surplus).sum() / 2 <= _SAME:
        return None
    source, target = np.argwhere(surplus > 0), np.argwhere(surplus < 0)
    cost = pixel_distance(source[:, None] - target, ground_metric)
    give, take = surplus[surplus > 0], -surplus[surplus < 0]
    # Where hardly anything moves, their sums differ by more than rounding.
    return np.float64(cost), give / give.sum(), take / take.sum(), target


def _cheapest_flow(surplus):
    """Minimum-cost flow on the grid that carries off `surplus` `[H, W]`."""
    from scipy import optimize, sparse

    height, width = surplus.shape
    pixel = np.arange(height * width).reshape(height, width)
    start = np.concatenate([pixel[:-1].ravel(), pixel[:, :-1].ravel()])
    end = np.concatenate([pixel[1:].ravel(), pixel[:, 1:].ravel()])
    edges = np.arange(len(start))
    leaves = sparse.csc_array(
        (np.repeat([1.0, -1.0], len(edges)), (np.r_[start, end], np.r_[edges, edges])),
        shape=(height * width, len(edges)),
    )
    # The last pixel's balance follows from the others'; as an equation it would only
    # add rounding.
    balance = sparse.hstack([leaves, -leaves], format="csc")[:-1]
    answer = optimize.linprog(
        np.ones(2 * len(edges)),
        A_eq=balance,
        b_eq=surplus.ravel()[:-1],
        method="highs-ds",
        options=_SOLVER,
    )
    assert answer.status == 0, answer.message
    flow = answer.x[: len(edges)] - answer.x[len(edges) :]
    vertical = flow[: (height - 1) * width].reshape(height - 1, width)
    return vertical, flow[vertical.size :].reshape(height, width - 1)


def _cheapest(cost, give, take):
    """Bounds on the least `cost` `[n, m]` of a transport, and prices that prove them.

    From `give` to `take`, of mass one, `[n]` and `[m]`; prices are `[n + m]`.
    """
    bounds = _by_network_simplex(cost, give, take)
    return _by_column_generation(cost, give, take) if bounds is None else bounds


def _proved(cost, give, take, i, j, mass, prices):
    """What parcels of `mass` from `i` to `j` and `prices` `[n + m]` prove."""
    # Prices that no pair undercuts bound every plan from below. A plan that misplaces
    # mass is off by at most half the longest way for each unit, at either end, and
    # no way between any two of the pixels is longer than two of `cost`.
    slack = cost - prices[: len(give), None] - prices[len(give) :]
    lower = prices @ np.r_[give, take] + min(slack.min(), 0)
    left = np.bincount(i, mass, len(give)) - give
    arrived = np.bincount(j, mass, len(take)) - take
    misplaced = np.abs(left).sum() + np.abs(arrived).sum()
    return lower, mass @ cost[i, j] + misplaced * cost.max(), prices


def _by_network_simplex(cost, give, take):
    """By POT; None if that is not there, or if its answer is not proved optimal."""
    emd = _network_simplex()
    if emd is None:
        return None
    with warnings.catch_warnings():
        # It warns when it stops early. The proof below does not rely on that.
        warnings.simplefilter("ignore")
        plan, log = emd(give, take, cost, numItermax=10_000_000, log=True)
    i, j = np.nonzero(plan > 0)
    prices = np.r_[log["u"], log["v"]]
    found = _proved(cost, give, take, i, j, plan[i, j], prices)
    return found if found[1] - found[0] <= OPTIMAL * cost.max() else None


@functools.cache
def _network_simplex():
    """`ot.lp.emd`, or None without POT."""
    with contextlib.ExitStack() as restore:
        # POT would import every array library it finds, for 5 seconds in the case of
        # PyTorch. What is loaded already costs nothing, and may be wanted with POT.
        for library in ("torch", "tensorflow", "cupy"):
            name = {"torch": "PYTORCH"}.get(library, library.upper())
            variable = f"POT_BACKEND_DISABLE_{name}"
            if library not in sys.modules and variable not in os.environ:
                os.environ[variable] = "1"
                restore.callback(os.environ.pop, variable, None)
        try:
            from ot.lp import emd
        except ImportError:
            return None
    return emd


def _by_column_generation(cost, give, take):
    """By HiGHS, from few pairs to as many as it takes.

    Most pairs of pixels are too far apart to be used, so the program starts with near
    pairs only, and with a penalty for mass that these cannot place. Its prices then
    tell which of the other pairs could help; those join, until there are none: the
    prices prove that the plan is optimal among all pairs.
    """
    from scipy import optimize, sparse

    n, m = cost.shape
    listed = _smallest(cost, 16)
    # Paid by an unplaced parcel at both ends: twice the cost of the farthest pair.
    penalty = np.full(n + m, cost.max())
    while True:
        i, j = np.nonzero(listed)
        pairs = np.arange(len(i))
        sums = sparse.csc_array(
            (np.ones(2 * len(i)), (np.r_[i, n + j], np.r_[pairs, pairs]))
        )
        answer = optimize.linprog(
            np.r_[cost[i, j], penalty],
            A_eq=sparse.hstack([sums, sparse.eye_array(n + m)], format="csc"),
            b_eq=np.r_[give, take],
            method="highs-ds",
            options=_SOLVER,
        )
        assert answer.status == 0, answer.message
        prices = answer.eqlin.marginals
        reduced = np.where(listed, 0, cost - prices[:n, None] - prices[n:])
        helpful = reduced < -1e-9
        if not helpful.any():
            # HiGHS may leave masses below zero, by its tolerance.
            mass = answer.x[: len(i)].clip(min=0)
            return _proved(cost, give, take, i, j, mass, prices)
        listed |= helpful & _smallest(reduced, 4)


def _smallest(matrix, count):
    """Marks the `count` smallest entries of every row and of every column."""
    rows = np.sort(matrix, axis=1)[:, [min(count, matrix.shape[1]) - 1]]
    columns = np.sort(matrix, axis=0)[[min(count, matrix.shape[0]) - 1]]
    return (matrix <= rows) | (matrix <= columns)
