"""Bounds on Wasserstein distances of many pairs of images at once, on the device.

`wsjax.transport` solves one pair exactly on the host. Here a batch of pairs is solved
together, in float32 on whatever device JAX uses, until a feasible flow and a feasible
potential of every pair agree to a percent or so. The two are then evaluated in float64
on the host: the distance lies between their values, however far the iteration got.

The problem is Beckmann's: the cheapest flow on the edges of the pixel grid whose
divergence is the excess of one image over the other. For the Manhattan metric the edges
join neighbours. For the Euclidean metric they are the steps of `STEPS["l2"]`, which
reach four pixels far; a mass that moves otherwise is carried in several steps. Steps
of neighbouring directions span all whole displacements (their determinants are 1),
and a displacement between two directions at an angle theta is overestimated by at
most 1 / cos(theta / 2): 1.00755 here, for directions between (1, 0) and (4, 1). All
steps of a path point into the rectangle of its two ends, so the border of the image
costs nothing extra. The lower bound does not suffer from this: its potential is
1-Lipschitz in the true metric, over all pairs of pixels.

The iteration is Douglas-Rachford splitting: project the flow on those with the right
divergence, shrink its entries, repeat. The projection is a Poisson problem, which the
cosine transform solves ("l1"), or a dense matrix ("l2"). This is what makes it fast:
10 to 40 iterations for a percent in "l1" on MNIST and CIFAR-10, where primal-dual steps
between neighbours (PDHG, step sizes tuned) take 150 to 400; 60 to 180 in "l2".

Distances are in pixels x fraction of the image's total mass, as in `wsjax.transport`.

Sources: Jacobs, Leger, Li & Osher, "Solving large-scale optimization problems with a
convergence rate independent of grid size", SIAM J. Numer. Anal. 57 (2019), for the
projection; Lieder, "On the convergence rate of the Halpern-iteration", Optim. Lett. 15
(2021), for the anchoring in "l2"; McShane, "Extension of range of functions", Bull. AMS
40 (1934), for the potentials.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from wsjax.flow import FlowPlan, flow_shape
from wsjax.metrics import check_ground_metric
from wsjax.transport import _SAME, MASS_TOLERANCE, _excess


def _mirrored(down, right):
    return ((down, right), (down, -right), (right, down), (right, -down))


# Steps `(down, right)` that the edges of a flow make; each edge is used either way.
STEPS = {
    "l1": ((1, 0), (0, 1)),
    "l2": (
        *((1, 0), (0, 1), (1, 1), (1, -1)),
        *_mirrored(2, 1),
        *_mirrored(3, 1),
        *_mirrored(3, 2),
        *_mirrored(4, 1),
        *_mirrored(4, 3),
    ),
}

# A dense matrix of this many pixels squared is 64 MiB.
_MOST_PIXELS = 4096

# The bounds are evaluated after so many iterations, and again and again. In "l2" that
# takes as long as some ten iterations.
_EVERY = {"l1": 10, "l2": 20}

# Over-relaxation of "l1". Anchored at the last evaluation instead, "l2" needs as little
# as half the iterations, and "l1" up to a half more.
_RELAXATION = 1.8


class Bounds(NamedTuple):
    """What is known about the distances of `N` pairs of images.

    Attributes:
      lower: `[N]`, not above the distance.
      upper: `[N]`, not below the distance.
      gap: `[N]`, `(upper - lower) / upper`; 0 for equal images.
      flow: a flow that carries `a` to `b` at the cost `upper`; mass per edge, as a
        fraction of the mass of `a`. For "l1" a `FlowPlan` of `[N, H-1, W, C]` and
        `[N, H, W-1, C]`. For "l2" one `[N, H-|y|, W-|x|, C]` for each step `(y, x)`
        of `STEPS["l2"]`: the mass that moves from a pixel to the one y rows below and
        x columns to the right. Entry `[n, i, j]` starts in row i, and in column j, or
        j - x if the step leads to the left. Steps that do not fit have no entries.
      potential: `[N, H, W, C]`, 1-Lipschitz in the ground metric within each channel;
        `lower` is `sum(potential * (a - b)) / sum(a)`.
      iterations: `[N]` int, how many it took until the gap was small enough.
    """

    lower: jax.Array | np.ndarray
    upper: jax.Array | np.ndarray
    gap: jax.Array | np.ndarray
    flow: tuple
    potential: jax.Array | np.ndarray
    iterations: jax.Array | np.ndarray


def bounded_distance(
    a: ArrayLike,
    b: ArrayLike,
    ground_metric: str = "l1",
    *,
    iterations: int = 1000,
    tolerance: float = 0.01,
    mass_tolerance: float = MASS_TOLERANCE,
    block: int | None = None,
) -> Bounds:
    """Lower and upper bounds on the Wasserstein distances of many pairs of images.

    The bounds are evaluated in float64: the flow is completed until it carries the
    excess to the last digit, and the potential is divided by its Lipschitz constant
    where that exceeds one. They hold up to rounding in float64, converged or not.

    Args:
      a: `[N, H, W, C]`, nonnegative, no image all zero, in any unit.
      b: the same shape and unit; channels whose mass differs from that in `a` by at
        most `mass_tolerance` are rescaled to agree.
      ground_metric: "l1" for Manhattan, "l2" for Euclidean distance of pixels.
      iterations: at most so many, rounded up to the next evaluation.
      tolerance: relative gap at which a pair is done.
      mass_tolerance: as in `exact_distance`.
      block: pairs solved together, those that are done waiting for the others. The
        default suits the caches of a CPU; elsewhere, 1024.

    Returns:
      `Bounds` of NumPy float64 arrays. In "l2" a flow takes 24 times the memory of an
      image, so tens of thousands of pairs should come in parts.

    Raises:
      ValueError: the arrays are not batches; a pair is refused by `exact_distance`,
        because masses differ or a pixel is NaN, infinite or negative; another ground
        metric; or images of more than 4096 pixels with "l2".
    """
    a, b = np.asarray(a), np.asarray(b)
    if a.ndim != 4 or a.shape != b.shape:
        raise ValueError(
            f"Expected two batches [N, H, W, C] of the same shape, got {a.shape} and "
            f"{b.shape}. A single pair is a[None], b[None]."
        )
    _check(a.shape, ground_metric, iterations, tolerance)
    excess = np.zeros(a.shape)
    for n, pair in enumerate(zip(a, b)):
        try:
            excess[n] = _excess(*pair, mass_tolerance)
            # Rounding: what a channel gives need not be what it takes.
            excess[n] *= np.abs(excess[n]).sum((0, 1)) / 2 > _SAME
        except ValueError as error:
            raise ValueError(f"Pair {n} of {len(a)}: {error}") from None
    if block is None:
        # Powers of two: vector registers are full, and few sizes are compiled.
        block = 1024
        while jax.default_backend() == "cpu" and block > max(1, 32 / a.shape[3]):
            block //= 2
    block = min(block, 1 << max(0, len(a) - 1).bit_length())
    # All are launched before the first is awaited: the host evaluates one block while
    # the device works on the next. Without pairs, there is one block, of none.
    launched = []
    for n in range(0, max(1, len(a)), block):
        part = excess[n : n + block]
        padded = np.zeros((block if len(part) else 0, *part.shape[1:]), np.float32)
        padded[: len(part)] = part
        answer = _solve_on_device(padded, ground_metric, iterations, tolerance)
        steepest = _steepest_on_device(answer.potential) if ground_metric == "l2" else 0
        launched.append((part, answer, steepest))
    evaluated = [
        _evaluate(part, jax.device_get(answer), jax.device_get(steepest), ground_metric)
        for part, answer, steepest in launched
    ]
    return jax.tree.map(lambda *each: np.concatenate(each), *evaluated)


def bounds_of_excess(
    excess: jax.Array,
    ground_metric: str = "l1",
    *,
    iterations: int = 1000,
    tolerance: float = 0.01,
) -> Bounds:
    """The iteration behind `bounded_distance`: all of it on the device, safe in `jit`.

    Bounds, flow and potential are those of float32 arithmetic: `lower` and `upper`
    may be off by some 1e-5 of themselves, in either direction, and the flow misses
    the excess by as much. `bounded_distance` repairs that.

    Args:
      excess: `[N, H, W, C]` float32, `a - b` as a fraction of the mass of `a`; it sums
        to zero in every channel. Not inspected.
      ground_metric: "l1" or "l2".
      iterations: at most so many, rounded up to the next evaluation; a Python number.
      tolerance: relative gap at which a pair is done; a Python number. The loop ends
        when all are.

    Returns:
      `Bounds` of JAX arrays in the dtype of `excess`.

    Raises:
      ValueError: as `bounded_distance`, about shapes and settings.
    """
    _check(excess.shape, ground_metric, iterations, tolerance)
    answer = _solve(excess, ground_metric, iterations, tolerance)
    flow, potential, moved = _as_images(answer, excess, ground_metric, jnp)
    return Bounds(
        (answer.lower.reshape(moved.shape) * moved).sum(1),
        (answer.upper.reshape(moved.shape) * moved).sum(1),
        answer.gap,
        flow,
        potential,
        answer.iterations,
    )


def _solve(excess, ground_metric, iterations, tolerance):
    """`bounds_of_excess` for traced settings, and before its results are put in order.

    Every channel of every image is a problem by itself, here with the mass that moves
    as the unit. Problems are the last axis of bounds, flows and potentials.
    """
    count, height, width, channels = excess.shape
    grid = _Grid(height, width, ground_metric)
    enough = 0.99 * tolerance  # With room for what rounding adds in float64.
    if count == 0 or not grid.steps:
        potential = jnp.zeros((height, width, count * channels), excess.dtype)
        flow = [potential[_ends(step, height, width)[0]] for step in grid.steps]
        none = potential[0, 0]
        images = none[:count]
        made = images.astype(jnp.int32)
        return Bounds(none, none, images, tuple(flow), potential, made)

    # Problems last: neighbours are then whole rows apart, for which all compilers have
    # fast code.
    surplus = excess.transpose(1, 2, 0, 3).reshape(height, width, count * channels)
    moved = jnp.abs(surplus).sum((0, 1)) / 2
    unit = jnp.where(moved > 0, moved, 1)
    surplus = surplus / unit

    def of_images(values):
        return (values * moved).reshape(count, channels).sum(1)

    # Least squares to start with. Its mean tells how large a flow is worth keeping.
    flow, _ = grid.correction_and_potential(surplus)
    threshold = grid.cost(flow) / (2 * height * width)
    threshold = jnp.where(threshold > 0, threshold, 1)

    def project_and_shrink(flow):
        correction, potential = grid.correction_and_potential(
            surplus - grid.divergence(flow)
        )
        shrunk = [
            _shrink(z + 2 * g, threshold / length)
            for z, g, length in zip(flow, correction, grid.lengths)
        ]
        return correction, shrunk, potential / threshold

    def relaxed(_, flow):
        correction, shrunk, _ = project_and_shrink(flow)
        return [
            z + _RELAXATION * (y - z - g) for z, y, g in zip(flow, shrunk, correction)
        ]

    def anchored(anchor, step, flow):
        correction, shrunk, _ = project_and_shrink(flow)
        weight = 1 / (step + 2.0)
        return [
            z0 * weight + (1 - weight) * (2 * (y - g) - z)
            for z0, z, y, g in zip(anchor, flow, shrunk, correction)
        ]

    def advance(state):
        flow, best, made = state
        step = functools.partial(anchored, flow) if ground_metric == "l2" else relaxed
        made = made + _EVERY[ground_metric]
        flow = jax.lax.fori_loop(0, _EVERY[ground_metric], step, flow)
        _, shrunk, potential = project_and_shrink(flow)
        # The shrunk flow is sparse, and the cheaper for it; what it misses is carried
        # by the least flow between neighbours.
        missing = grid.poisson(surplus - grid.divergence(shrunk))
        shrunk = [
            y + _fall(missing, step) if step in STEPS["l1"] else y
            for step, y in zip(grid.steps, shrunk)
        ]
        potential = grid.conjugate(potential, surplus)
        upper, lower = grid.cost(shrunk), (potential * surplus).sum((0, 1))
        cheaper, higher = upper < best.upper, lower > best.lower
        best = Bounds(
            jnp.where(higher, lower, best.lower),
            jnp.where(cheaper, upper, best.upper),
            best.gap,
            tuple(jnp.where(cheaper, y, kept) for y, kept in zip(shrunk, best.flow)),
            jnp.where(higher, potential, best.potential),
            jnp.where(best.gap <= enough, best.iterations, made),
        )
        return flow, best._replace(gap=gap(best)), made

    def gap(best):
        upper, lower = of_images(best.upper), of_images(best.lower)
        return jnp.where(upper > 0, (upper - lower) / jnp.where(upper > 0, upper, 1), 0)

    def unfinished(state):
        _, best, made = state
        return (made < iterations) & (best.gap > enough).any()

    # The least squares have the right divergence, and no potential is one as well.
    start = Bounds(
        jnp.zeros_like(moved),
        grid.cost(flow),
        jnp.zeros(count, excess.dtype),
        tuple(flow),
        jnp.zeros_like(surplus),
        jnp.zeros(count, jnp.int32),
    )
    start = start._replace(gap=gap(start))
    _, best, _ = jax.lax.while_loop(unfinished, advance, (flow, start, jnp.int32(0)))

    return best


_solve_on_device = jax.jit(_solve, static_argnums=1)


class _Grid:
    """Flows on the edges of a grid, one array `[H-|y|, W-|x|, B]` for each step.

    Steps that do not fit into the image are left out.
    """

    def __init__(self, height, width, ground_metric):
        self.height, self.width, self.ground_metric = height, width, ground_metric
        self.steps = [
            (down, right)
            for down, right in STEPS[ground_metric]
            if down < height and abs(right) < width
        ]
        self.lengths = [float(np.hypot(*step)) for step in self.steps]
        # Corrections prefer short edges, of which there are enough.
        self._weights = [length**-2 for length in self.lengths]
        self._waves = _cosines(height), _cosines(width)

    def poisson(self, missing):
        """Potential whose falls between neighbours have the divergence `missing`."""
        down, right = (jnp.asarray(waves, missing.dtype) for waves in self._waves)
        power = _frequencies(self.height)[:, None] + _frequencies(self.width)
        power[0, 0] = np.inf
        # Else TPUs, and GPUs on request, multiply in fewer digits.
        product = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)
        waves = product("uj,vjb->vub", right, product("vi,ijb->vjb", down, missing))
        waves *= jnp.asarray(1 / power, missing.dtype)[:, :, None]
        return product("vi,vjb->ijb", down, product("uj,vub->vjb", right, waves))

    def correction_and_potential(self, missing):
        """The least weighted squares with divergence `missing`, and its potential."""
        if self.ground_metric == "l1":
            potential = self.poisson(missing)
        else:
            inverse = _inverse_laplacian(self.height, self.width)
            flat = missing.reshape(self.height * self.width, -1)
            potential = jnp.matmul(inverse, flat, precision=jax.lax.Precision.HIGHEST)
            potential = potential.reshape(missing.shape)
        correction = [
            weight * _fall(potential, step)
            for weight, step in zip(self._weights, self.steps)
        ]
        return correction, potential

    def divergence(self, flow):
        """What leaves each pixel, `[H, W, B]`."""
        problems = flow[0].shape[2]
        total = jnp.zeros((self.height, self.width, problems), flow[0].dtype)
        for (down, right), edges in zip(self.steps, flow):
            left, right = max(0, -right), max(0, right)
            total += jnp.pad(edges, ((0, down), (left, right), (0, 0)))
            total -= jnp.pad(edges, ((down, 0), (right, left), (0, 0)))
        return total

    def cost(self, flow):
        """What each of `B` flows pays."""
        return sum(
            length * jnp.abs(edges).sum((0, 1))
            for length, edges in zip(self.lengths, flow)
        )

    def conjugate(self, potential, surplus):
        """A 1-Lipschitz potential that is at least as good as the given one.

        Where mass arrives, the prices are taken as given; where it leaves, they are
        as high as those allow; then the former are as low as the latter allow.
        """
        gives, takes = surplus > 0, surplus < 0
        envelope = _city_envelope if self.ground_metric == "l1" else _round_envelope
        price = envelope(jnp.where(takes, potential, jnp.inf))
        price = -envelope(jnp.where(gives, -price, jnp.inf))
        return jnp.where(gives.any((0, 1)), price, 0)


def _as_images(answer, excess, ground_metric, xp):
    """Flow and potential of `_solve` as in `Bounds`, and the mass moved, `[N, C]`.

    Only as many images as `excess` has. `xp` is the module to compute with.
    """
    count, height, width, channels = excess.shape
    moved = xp.abs(excess).sum((1, 2)) / 2

    def images(values):
        values = values.reshape(*values.shape[:2], -1, channels)
        return values.transpose(2, 0, 1, 3)[:count]

    given = dict(zip(_Grid(height, width, ground_metric).steps, answer.flow))
    flow = []
    for down, right in STEPS[ground_metric]:
        if (down, right) in given:
            flow.append(images(given[down, right]) * moved[:, None, None])
        else:
            rows, columns = max(0, height - down), max(0, width - abs(right))
            flow.append(xp.zeros((count, rows, columns, channels), excess.dtype))
    named = FlowPlan(*flow) if ground_metric == "l1" else tuple(flow)
    return named, images(answer.potential), moved


def _ends(step, height, width):
    """Where the edges of a step start and end, as slices of rows and columns."""
    down, right = step
    rows, columns = max(0, height - down), max(0, width - abs(right))
    left, right = max(0, -right), max(0, right)
    start = slice(0, rows), slice(left, left + columns)
    return start, (slice(down, down + rows), slice(right, right + columns))


def _fall(potential, step):
    """Start minus end along every edge, of a potential `[H, W, B]`."""
    start, end = _ends(step, *potential.shape[:2])
    return potential[start] - potential[end]


def _shrink(values, threshold):
    return values - jnp.clip(values, -threshold, threshold)


def _city_envelope(prices):
    """Least `prices[y] + |x - y|_1` over the pixels y, for every pixel x."""

    def step(least, row):
        least = jnp.minimum(least + 1, row)
        return least, least

    for _ in ("down", "right"):
        for back in (False, True):
            none = jnp.full_like(prices[0], jnp.inf)
            prices = jax.lax.scan(step, none, prices, reverse=back)[1]
        prices = prices.transpose(1, 0, 2)
    return prices


def _round_envelope(prices):
    """Least `prices[y] + |x - y|_2` over the pixels y, for every pixel x."""

    def lower(least, here, there, length):
        return jnp.minimum(least, there + length)

    return _over_pixels(lower, jnp.inf, prices)


def _steepest(potential):
    """Bounds `[B]` on the Lipschitz constants of potentials `[H, W, B]` in "l2"."""

    def higher(steepest, here, there, length):
        slope = jnp.abs(here - there) / jnp.where(length > 0, length, jnp.inf)
        return jnp.maximum(steepest, slope)

    slopes = _over_pixels(higher, 0.0, potential)
    # The difference, the length and the quotient are off by 2**-24 of themselves at
    # most, and by little more where division is not correctly rounded.
    return slopes.max((0, 1)) * (1 + 2**-20)


_steepest_on_device = jax.jit(_steepest)


def _over_pixels(update, start, values):
    """`x = update(x, values[x], values[y], |x - y|_2)` for every pixel y in turn.

    Does so for all pixels x at once, which start at `start`, and one row of pixels y
    after the other, lest there be an array of all pairs.
    """
    if values.shape[0] < values.shape[1]:
        # The pixels of a row are written out in the program: the fewer, the better.
        turned = _over_pixels(update, start, values.transpose(1, 0, 2))
        return turned.transpose(1, 0, 2)
    height, width, _ = values.shape
    rows, columns = np.arange(height), np.arange(width)
    # Entry [d, i, j]: from column i to column j, d rows away.
    lengths = np.hypot(rows[:, None, None], columns[:, None] - columns)
    lengths = jnp.asarray(lengths, values.dtype)

    def of_row(result, row):
        index, there = row
        length = lengths[jnp.abs(rows - index)]
        for column in range(width):
            result = update(result, values, there[column], length[:, :, column, None])
        return result, None

    start = jnp.full_like(values, start)
    return jax.lax.scan(of_row, start, (jnp.asarray(rows), values))[0]


def _cosines(size):
    """Orthonormal cosine transform (DCT-II), `[size, size]` float64."""
    k, i = np.arange(size)[:, None], np.arange(size)
    waves = np.cos(np.pi * k * (2 * i + 1) / (2 * size)) * np.sqrt(2 / size)
    waves[0] /= np.sqrt(2)
    return waves


def _frequencies(size):
    """Eigenvalues of minus the second difference on `size` pixels, float64."""
    return 4 * np.sin(np.pi * np.arange(size) / (2 * size)) ** 2


@functools.lru_cache(maxsize=4)
def _inverse_laplacian(height, width):
    """Pseudo-inverse of the weighted Laplacian of all steps of "l2", float32."""
    size = height * width
    pixels = np.arange(size).reshape(height, width)
    laplacian = np.full((size, size), 1 / size)  # Makes it regular.
    for step in STEPS["l2"]:
        start, end = (pixels[e].ravel() for e in _ends(step, height, width))
        weight = np.hypot(*step) ** -2.0
        for one, other in ((start, end), (end, start)):
            laplacian[one, one] += weight
            laplacian[one, other] -= weight
    return np.float32(np.linalg.inv(laplacian) - 1 / size)


def _evaluate(excess, answer, steepest, ground_metric):
    """Bounds in float64 from the float32 `answer`; padding is dropped."""
    _, height, width, channels = excess.shape
    flow, potential, _ = _as_images(answer, excess, ground_metric, np)
    ends = [_ends(step, height, width) for step in STEPS[ground_metric]]
    missing = excess.copy()
    for edges, (start, end) in zip(flow, ends):
        missing[:, *start] -= edges
        missing[:, *end] += edges
    # Rounding, some 1e-7: along the rows to the last column, and down there.
    sideways = np.cumsum(missing, axis=2)
    down, right = flow[:2]
    right += sideways[:, :, :-1]
    down[:, :, -1] += np.cumsum(sideways[:, :, -1], axis=1)[:, :-1]
    upper = sum(
        np.hypot(*step) * np.abs(edges).sum((1, 2, 3))
        for step, edges in zip(STEPS[ground_metric], flow)
    )

    potential = potential.astype(np.float64)
    if ground_metric == "l1":
        # Neighbours suffice: a path of adjacent pixels has the Manhattan length.
        steps = (np.abs(np.diff(potential, axis=axis)) for axis in (1, 2))
        steepest = np.maximum(*(step.max((1, 2), initial=0) for step in steps))
    else:
        steepest = steepest.reshape(-1, channels)[: len(excess)]
    potential /= np.maximum(steepest, 1)[:, None, None]
    potential *= ((potential * excess).sum((1, 2)) > 0)[:, None, None]
    lower = (potential * excess).sum((1, 2, 3))
    gap = np.maximum(upper - lower, 0) / np.where(upper > 0, upper, 1)
    made = answer.iterations[: len(excess)]
    return Bounds(lower, upper, gap, flow, potential, made)


def _check(shape, ground_metric, iterations, tolerance):
    flow_shape(shape[1:])
    check_ground_metric(ground_metric)
    if iterations < 1 or not tolerance >= 0:
        raise ValueError(
            f"iterations={iterations} should be at least 1, and tolerance={tolerance} "
            f"a relative gap such as 0.01."
        )
    if ground_metric == "l2" and shape[1] * shape[2] > _MOST_PIXELS:
        raise ValueError(
            f"Images of {shape[1]} x {shape[2]} pixels are too large for 'l2', which "
            f"needs a matrix of all pairs of pixels; {_MOST_PIXELS} pixels are the "
            f"most. 'l1' has no limit."
        )
