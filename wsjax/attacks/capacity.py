"""The attack of Hu et al.: projected Sinkhorn steps that respect the pixel range.

Hu, Swaminathan, Salman & Yang, "Improved Image Wasserstein Attacks and Defenses",
2020, arXiv:2004.12478, keep the idea of Wong, Schmidt & Kolter (`sinkhorn`) and mend
its model of an image: a pixel holds no more than `capacity`, and the projection knows
it, so that clipping afterwards takes (almost) no mass away. Written here from the
optimisation problem:

Given an image `x` of mass one, a point `y` and a ground cost C on pairs of pixels,

    minimise  (lambda / 2) |z - y|^2 + sum_ij P_ij (log P_ij - 1)
    over      P >= 0,  P 1 = x,  P^T 1 = z,  <P, C> <= epsilon,  z <= cap,

with `cap` the capacity of a pixel as a fraction of the mass. Multipliers -a, -b, psi
and phi >= 0 of the four constraints give the plan `P_ij = exp(a_i + b_j - psi C_ij)`
and the point `z = y - (b + phi) / lambda`. The dual is maximised over one block at a
time. With `K = exp(-psi C)`, `s = K^T exp(a)`:

  * a:        row sums of P equal x, so  exp(a) = x / (K exp(b));
  * b, phi:   column sums of P equal z. Without the capacity, `t = log(lambda z)`
              solves  e^t + t = log(lambda s) + lambda y  (`sinkhorn`); where that z
              is above it, z = cap, and phi makes up the rest. Either way

                  t = min(that t, log(lambda cap)),   b = t - log(lambda s),

              and phi = max(0, lambda (y - cap) - b) need not be stored;
  * psi:      <P, C> = epsilon, or psi = 0 if that already costs less.

Adding a number to a and taking it from b leaves P as it is; the number that gives z
the mass of x is approached from the safe side, by a bound on the curvature.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from wsjax.attacks.answers import check_images
from wsjax.attacks.checks import check_not_negative, check_positive, check_whole
from wsjax.attacks.pgd import AttackResult
from wsjax.attacks.sinkhorn import (
    _EMPTY,
    _RELAXATION,
    _solve_budget,
    _solve_exp_plus_identity,
    window_cost,
)
from wsjax.votes import as_argument

_FARTHEST = 1e4  # Exponents beyond this have too few digits left in float32.


class CapacityDuals(NamedTuple):
    """Where a projection can take up again; see the head of this module.

    Attributes:
      b: `[H, W, C]`, multipliers of the column sums.
      psi: scalar, nonnegative, price of a unit of the budget.
    """

    b: jax.Array | np.ndarray
    psi: jax.Array | np.ndarray


class CapacityProjection(NamedTuple):
    """Where the projection ended, and what carries the centre there.

    Attributes:
      image: `[H, W, C]`, the projected image, nonnegative, in the unit of the centre
        and with its mass in every channel.
      cost: scalar, what the plan found pays; at least the Wasserstein distance from
        the centre to `image`, at most `epsilon + slack`. Pixels x mass fraction.
      excess: scalar, what `image` has above the capacity, as a fraction of the mass.
      iterations: scalar int32, rounds of updates.
      duals: `CapacityDuals`, to start the projection of a nearby point from.
    """

    image: jax.Array
    cost: jax.Array
    excess: jax.Array
    iterations: jax.Array
    duals: CapacityDuals


def capacity_projection(
    center: jax.Array,
    image: jax.Array,
    epsilon: jax.Array | float,
    *,
    capacity: float = 1.0,
    duals: CapacityDuals | None = None,
    regularization: float = 1000.0,
    kernel_size: int = 5,
    ground_metric: str = "l2",
    max_iterations: jax.Array | int = 400,
    tolerance: float = 1e-4,
    slack: float = 1e-3,
    mass_tolerance: float = 0.01,
) -> CapacityProjection:
    """Projects one image onto the images of a Wasserstein ball that fit the range.

    Whenever the iteration stops, the rows of the plan are made exact, which keeps the
    mass, and a plan that costs more than `epsilon + slack` is shortened towards staying
    put. What is approximate is the capacity: the rounds go on until about
    `mass_tolerance` lies above it, or run out, and `excess` tells what does. Runs
    under `jit` and `vmap`, all sums over the window in the log domain.

    Args:
      center: `[H, W, C]` float, in [0, capacity] and not all zero.
      image: `[H, W, C]` float in the unit of `center`; of any sign and mass. What
        differs from `center` by more than 10^4 / lambda of its mass counts as that.
      epsilon: positive scalar, pixels x fraction of the mass of `center`.
      capacity: largest value of a pixel, in the unit of `center`.
      duals: those of an earlier projection on the same centre; default a cold start.
      regularization: lambda, in units where `center` has mass one.
      kernel_size: see `window_cost`, as is `ground_metric`.
      ground_metric: "l1" or "l2".
      max_iterations: rounds at most.
      tolerance: stop when a round changes the dual by less than this, relatively
        (absolutely, where the dual is below one), and `mass_tolerance` is met.
      slack: what a plan may overspend, pixels x mass fraction. The published code
        accepts 0.001; with zero the result is in the ball.
      mass_tolerance: fraction of the mass that may lie above the capacity, 1 % in
        the published code (there it is missing instead).

    Returns:
      `CapacityProjection`, dtypes of `center`.

    Raises:
      ValueError: shapes differ, or a Python number is outside the stated range.

    Source: Hu, Swaminathan, Salman & Yang, arXiv:2004.12478; derivation at the head
    of this module.
    """
    if center.ndim != 3 or center.shape != image.shape:
        raise ValueError(
            f"center has shape {center.shape} and image {image.shape}; both must be "
            f"[H, W, C]. Use jax.vmap for batches."
        )
    if not jnp.issubdtype(center.dtype, jnp.floating):
        raise ValueError(f"center is {center.dtype}; convert it to floats first.")
    check_positive(epsilon=epsilon, regularization=regularization, capacity=capacity)
    check_positive(tolerance=tolerance, mass_tolerance=mass_tolerance)
    check_whole(max_iterations=max_iterations)
    check_not_negative(slack=slack)
    dtype, lam, channels = center.dtype, regularization, center.shape[2]
    grid = Grid(center.shape, kernel_size)
    costs = jnp.asarray(window_cost(kernel_size, ground_metric), dtype)
    epsilon = jnp.asarray(epsilon, dtype)

    mass = center.sum()
    cap = capacity / mass
    x = grid.flat(center / mass)
    inked = x > 0
    log_x = jnp.where(inked, jnp.log(jnp.where(inked, x, 1)), _EMPTY)
    # Pixels that no mass can get to keep z = 0 and take no part.
    near = functools.reduce(jnp.maximum, grid.seen(x, 0)) > 0
    near &= grid.flat(jnp.ones_like(center)) > 0
    most = _FARTHEST / lam
    y = jnp.clip(grid.flat(image.astype(dtype) / mass), x - most, x + most)
    y = jnp.where(near, y, 0)
    log_epsilon = jnp.log(jnp.maximum(epsilon, jnp.finfo(dtype).tiny))

    def by_channel(field):
        """Sums over the pixels of each channel, in the places of its pixels."""
        return jnp.tile(field.reshape(-1, channels).sum(0), len(field) // channels)

    mass_by_channel = by_channel(x)
    num_near = jnp.maximum(by_channel(near.astype(dtype)), 1)

    def nearest(b):
        """The z that minimises `(lambda / 2) (z - y)^2 + b z` below the capacity."""
        return jnp.where(near, jnp.minimum(y - b / lam, cap), 0)

    def rows(b, psi):
        sums = grid.log_sums(jnp.where(near, b, _EMPTY), -psi * costs)
        return jnp.where(inked, log_x - sums, _EMPTY)

    def one_round(state):
        b, psi, dual, *_, iteration = state
        a = rows(b, psi)
        log_s = grid.log_sums(a, -psi * costs)
        # The plan of the moment has exact rows; these are its columns.
        z = jnp.where(near, jnp.exp(b + log_s), 0)
        excess = jnp.maximum(z - cap, 0).sum()
        shift = jnp.zeros_like(b)
        for _ in range(3):
            wanting = by_channel(nearest(b + shift)) - mass_by_channel
            shift += lam * wanting / num_near
        a, b, log_s = a - shift, b + shift, log_s - shift
        level = jnp.log(lam) + log_s
        t = _solve_exp_plus_identity(jnp.where(near, level + lam * y, 0))
        b_best = jnp.minimum(t, jnp.log(lam * cap)) - level
        b = jnp.where(near, b + _RELAXATION * (b_best - b), 0)
        moved = grid.mass_by_offset(a, jnp.where(near, b, _EMPTY), -psi * costs)
        rise = _solve_budget(moved, costs, log_epsilon, -psi)
        z = nearest(b)
        new_dual = (
            jnp.where(inked, a * x, 0).sum()
            + jnp.where(near, lam / 2 * (z - y) ** 2 + b * z, 0).sum()
            - (psi + rise) * epsilon
            - (moved * jnp.exp(-rise * costs)).sum()
        )
        gain = jnp.abs(new_dual - dual) / jnp.maximum(1, jnp.abs(new_dual))
        return b, psi + rise, new_dual, gain, excess, iteration + 1

    def unfinished(state):
        *_, gain, excess, iteration = state
        accurate = (gain <= tolerance) & (excess <= mass_tolerance)
        return ~accurate & (iteration < max_iterations)

    if duals is None:
        duals = CapacityDuals(jnp.zeros_like(center), jnp.ones((), dtype))
    infinite = jnp.array(jnp.inf, dtype)
    start = (
        jnp.where(near, grid.flat(duals.b.astype(dtype)), 0),
        jnp.asarray(duals.psi, dtype),
        -infinite,
        infinite,
        infinite,
        jnp.zeros((), jnp.int32),
    )
    b, psi, *_, iterations = jax.lax.while_loop(unfinished, one_round, start)

    # Rows exact once more; what overspends is shortened towards the identity.
    a = rows(b, psi)
    moved = grid.mass_by_offset(a, jnp.where(near, b, _EMPTY), -psi * costs)
    cost = (moved * costs).sum()
    share = jnp.minimum(1, (epsilon + slack) / jnp.maximum(cost, jnp.finfo(dtype).tiny))
    z = jnp.where(near, jnp.exp(b + grid.log_sums(a, -psi * costs)), 0)
    # Removes rounding only: the columns of such a plan add up to its rows.
    total = by_channel(z)
    z = jnp.where(total > 0, z * (mass_by_channel / jnp.where(total > 0, total, 1)), x)
    z = x + share * (z - x)
    return CapacityProjection(
        grid.picture(z) * mass,
        share * cost,
        jnp.maximum(z - cap, 0).sum(),
        iterations,
        CapacityDuals(grid.picture(b), psi),
    )


@dataclasses.dataclass(frozen=True)
class CapacityAttack:
    """Settings of the attack; the defaults are those of the authors on MNIST.

    Attributes:
      step_size: largest change of a pixel in a step, as a fraction of the image's
        mass; divided by the number of channels. The published .06 is a big step: on
        MNIST, about six times the range of a pixel.
      epsilon: first radius of the ball, in pixels x fraction of mass.
      epsilon_growth: what is added to the radius,
      epsilon_every: after this many steps. Zero growth attacks at one radius.
      max_steps: steps per image before giving up.
      ground_metric: "l2" for the Euclidean, "l1" for the Manhattan distance.
      kernel_size: mass travels at most `kernel_size // 2` pixels along each axis.
      regularization: lambda of the projection.
      projection_iterations: at most, per projection. The published code has no bound
        where its tolerances are not met.
      tolerance: relative change of the dual at which a projection stops.
      slack: see `capacity_projection`. Zero keeps every point in its ball.
      mass_tolerance: see `capacity_projection`.
      batch_size: images that `classify` gets at a time. Too few images are padded,
        so nothing compiles twice.
    """

    step_size: float = 0.06
    epsilon: float = 0.01
    epsilon_growth: float = 0.01
    epsilon_every: int = 1
    max_steps: int = 200
    ground_metric: str = "l2"
    kernel_size: int = 5
    regularization: float = 1000.0
    projection_iterations: int = 400
    tolerance: float = 1e-4
    slack: float = 1e-3
    mass_tolerance: float = 0.01
    batch_size: int = 32

    def __post_init__(self):
        check_positive(
            step_size=self.step_size,
            epsilon=self.epsilon,
            regularization=self.regularization,
            tolerance=self.tolerance,
            mass_tolerance=self.mass_tolerance,
        )
        check_not_negative(epsilon_growth=self.epsilon_growth, slack=self.slack)
        check_whole(
            epsilon_every=self.epsilon_every,
            max_steps=self.max_steps,
            projection_iterations=self.projection_iterations,
            batch_size=self.batch_size,
        )
        window_cost(self.kernel_size, self.ground_metric)


HU = CapacityAttack()
"""Growing radius: .01, .02, ... up to 2, one step each; Euclidean, window 5 x 5."""

HU_FIXED = CapacityAttack(epsilon=0.1, epsilon_growth=0.0, max_steps=100)
"""A hundred steps at one radius: set `epsilon` by `dataclasses.replace`."""

# Settings that change without compiling anew.
_NUMBERS = (
    "step_size",
    "epsilon",
    "epsilon_growth",
    "epsilon_every",
    "max_steps",
    "regularization",
    "projection_iterations",
    "tolerance",
    "slack",
    "mass_tolerance",
)


def capacity_attack(
    images: jax.Array,
    labels: jax.Array,
    classify: Callable[[jax.Array], jax.Array],
    *,
    key: jax.Array | None = None,
    settings: CapacityAttack = HU,
) -> AttackResult:
    """Attacks images until their answer is wrong, each with a ball of its own size.

    Steps along the gradient of the cross-entropy, scaled to a largest entry of one;
    projects, from the duals of the step before; clips to [0, 1]; asks again. An image
    leaves at its first success and its place goes to the next one. Nothing is
    repaired: points can be outside their ball by the tolerances, see `measure`.

    Args:
      images: `[N, H, W, C]` float, in [0, 1], none all black.
      labels: `[N]` int, the right answers.
      classify: images `[B, H, W, C]` to logits `[B, K]`, differentiable. Pass weights
        as `jax.tree_util.Partial(apply, variables)` and they stay arguments of the
        compiled program.
      key: not used, the attack draws nothing; here so that attacks can be exchanged.
      settings: see `CapacityAttack`.

    Returns:
      `AttackResult`. `epsilon` is nominal; `verified` repeats the answer.

    Raises:
      ValueError: images are outside [0, 1], not finite or all black; shapes do not
        agree; `classify` returns NaN.

    Source: Hu, Swaminathan, Salman & Yang, arXiv:2004.12478, and the schedule of
    their published code.
    """
    del key
    originals, right = check_images(images, labels)
    classify = as_argument(classify)
    numbers = {name: _as_array(getattr(settings, name)) for name in _NUMBERS}
    window = (settings.kernel_size, settings.ground_metric)
    points, steps = originals.copy(), np.zeros(len(originals), np.int32)
    success = wrong_answers(points, right, classify, settings.batch_size)
    epsilon = np.where(success, 0.0, np.inf)

    waiting, size = np.flatnonzero(~success), settings.batch_size
    held = np.zeros(0, np.int64)  # Rows of the images in the first slots.
    slots = _filled(originals, right, np.zeros(size, np.int64))
    while waiting.size or held.size:
        free = size - held.size
        held, waiting = np.r_[held, waiting[:free]], waiting[free:]
        slots = _joined(slots, _filled(originals, right, held[size - free :]), free)
        # Slots that end empty wait for others only while there is nobody to fill them.
        patience = np.int32(max(1, size // 4) if waiting.size else size + 1)
        idle = np.int32(size - held.size)
        ran = _run(slots, numbers, patience + idle, classify, window=window)
        slots = jax.tree.map(np.asarray, ran)
        here = slice(0, held.size)
        if slots.broken[here].any():
            raise_broken(held[slots.broken[here]])
        points[held], steps[held] = slots.point[here], slots.steps[here]
        success[held] = slots.fooled[here]
        stays = np.flatnonzero(slots.live[here])
        held = held[stays]
        # Those that go on move up; the places behind them are refilled or idle.
        order = np.resize(stays, size) if stays.size else np.zeros(size, np.int64)
        live = np.arange(size) < stays.size
        slots = _picked(slots, order)._replace(live=live)

    tried = success & (steps > 0)
    grown = (steps - 1) // settings.epsilon_every * settings.epsilon_growth
    epsilon = np.where(tried, settings.epsilon + grown, epsilon)
    verified = success & wrong_answers(points, right, classify, settings.batch_size)
    return AttackResult(points, success, epsilon, steps, verified)


def _as_array(number):
    return np.int32(number) if isinstance(number, int) else np.float32(number)


class _Slots(NamedTuple):
    """The images under attack; all have a leading axis of the batch size."""

    center: np.ndarray  # [B, H, W, C]
    point: np.ndarray  # [B, H, W, C]
    label: np.ndarray  # [B]
    duals: CapacityDuals
    steps: np.ndarray  # [B] int32
    live: np.ndarray  # [B] bool: whether to go on.
    fooled: np.ndarray  # [B] bool
    broken: np.ndarray  # [B] bool: logits that are not numbers.


def _filled(originals, right, rows):
    """Slots with the images `rows` before their first step."""
    count, centers = len(rows), originals[rows]
    no = np.zeros(count, bool)
    duals = CapacityDuals(np.zeros_like(centers), np.ones(count, centers.dtype))
    steps = np.zeros(count, np.int32)
    return _Slots(centers, centers, right[rows], duals, steps, ~no, no, no)


def _joined(slots, new, free):
    """Puts `new` into the first of the `free` last slots; the others do not run."""
    size, count = len(slots.live), len(new.live)
    start = size - free

    def join(old, leaf):
        return np.concatenate([old[:start], leaf, old[start + count :]])

    joined = jax.tree.map(join, slots, new)
    return joined._replace(live=joined.live & (np.arange(size) < start + count))


def _picked(slots, order):
    return jax.tree.map(lambda leaf: leaf[order], slots)


def _run(slots, numbers, patience, classify, *, window):
    """Steps until so many slots are idle, or all."""
    # A loop on the host: gradients of convolutions inside XLA's own loops are several
    # times slower on a CPU.
    live = np.asarray(slots.live)
    while live.any() and (~live).sum() < patience:
        slots = _step(slots, numbers, classify, window=window)
        live = np.asarray(slots.live)
    return slots


@functools.partial(jax.jit, static_argnames="window")
def _step(slots, numbers, classify, *, window):
    """One step of every live slot: uphill, projected, clipped, asked."""
    kernel_size, ground_metric = window
    options = {
        name: numbers[name]
        for name in ("regularization", "tolerance", "slack", "mass_tolerance")
    }

    def project(center, image, epsilon, duals, live):
        return capacity_projection(
            center,
            image,
            epsilon,
            duals=duals,
            kernel_size=kernel_size,
            ground_metric=ground_metric,
            # Nobody waits for images that are done.
            max_iterations=jnp.where(live, numbers["projection_iterations"], 0),
            **options,
        )

    center, point, label, duals, steps, live, fooled, broken = slots
    uphill = unit_ascent(point, label, classify)
    mass = center.sum((1, 2, 3), keepdims=True)
    length = numbers["step_size"] / center.shape[-1] * mass
    growths = steps // numbers["epsilon_every"]
    epsilon = numbers["epsilon"] + growths * numbers["epsilon_growth"]
    found = for_each(
        project,
        center,
        point + length * uphill,
        epsilon.astype(center.dtype),
        duals,
        live,
    )
    moved = jnp.clip(found.image, 0, 1)
    errs, senseless = ask_once(moved, label, classify)

    def update(new, old):
        return jnp.where(live.reshape(-1, *[1] * (old.ndim - 1)), new, old)

    fooled, broken = update(errs, fooled), update(senseless, broken)
    steps = update(steps + 1, steps)
    return _Slots(
        center,
        update(moved, point),
        label,
        jax.tree.map(update, found.duals, duals),
        steps,
        live & ~fooled & ~broken & (steps < numbers["max_steps"]),
        fooled,
        broken,
    )


def unit_ascent(points, labels, classify, inside=None):
    """Gradient of the cross-entropy, scaled to a largest entry of one per image.

    Args:
      points: `[B, H, W, C]`, where.
      labels: `[B]` int, the right answers.
      classify: images to logits.
      inside: optional `[B, H, W, C]` bool; elsewhere the gradient counts as zero.

    Returns:
      `[B, H, W, C]`; zero where the gradient vanishes or is not a number.
    """

    def loss(points):
        scores = jax.nn.log_softmax(classify(points))
        return -jnp.take_along_axis(scores, labels[:, None], axis=-1).sum()

    uphill = jax.grad(loss)(points)
    if inside is not None:
        uphill = jnp.where(inside, uphill, 0)
    steepest = jnp.abs(uphill).max((1, 2, 3), keepdims=True)
    usable = (steepest > 0) & jnp.isfinite(steepest)
    return jnp.where(usable, uphill / jnp.where(usable, steepest, 1), 0)


def wrong_answers(points, right, classify, batch_size):
    """`[N]` bool: whether `classify` errs at `points`, asked in batches of one size.

    Raises:
      ValueError: a logit is not a finite number.
    """
    errs = np.zeros(len(points), bool)
    rows = np.arange(len(points))
    for block in np.split(rows, range(batch_size, len(rows), batch_size)):
        padded = np.resize(block, batch_size)
        found, broken = ask_once(jnp.asarray(points[padded]), right[padded], classify)
        if np.any(broken):
            raise_broken(padded[np.asarray(broken)])
        errs[block] = np.asarray(found)[: len(block)]
    return errs


def raise_broken(rows):
    """Names the images whose logits are not numbers."""
    rows = np.unique(rows).tolist()
    raise ValueError(f"classify returns NaN or inf on images {rows}.")


@jax.jit
def ask_once(points, labels, classify):
    """`[B]` bool each: which answers are wrong, and which logits are not numbers."""
    logits = classify(points)
    finite = jnp.isfinite(logits).all(axis=-1)
    return finite & (logits.argmax(axis=-1) != labels), ~finite


def for_each(function, *rows):
    """Maps over leading axes: one after the other on a CPU, together elsewhere.

    On a CPU every image then stops at its own last round, with its arrays in cache.
    """
    return jax.lax.platform_dependent(
        *rows,
        cpu=lambda *rows: jax.lax.map(lambda row: function(*row), rows),
        default=lambda *rows: jax.vmap(function)(*rows),
    )


class Grid:
    """Images as vectors in which each offset of a window is one contiguous slice.

    Every row is followed by `reach = kernel_size // 2` columns of nothing, which
    serve as border on its right and on the left of the next row. On a CPU sums over
    the window are 5 to 15 times as fast as on arrays `[H, W, C]`.

    Args:
      shape: `(H, W, C)`.
      kernel_size: side of the window, odd.
    """

    def __init__(self, shape: Sequence[int], kernel_size: int):
        height, width, channels = shape
        reach = kernel_size // 2
        self.shape, self.kernel_size, self.reach = tuple(shape), kernel_size, reach
        row = (width + reach) * channels
        self.length = height * row
        self.margin = reach * (row + channels)
        # Of the pixels of the window, in the order of `window_cost(...).ravel()`.
        self.offsets = [
            i * row + j * channels
            for i in range(-reach, reach + 1)
            for j in range(-reach, reach + 1)
        ]

    def flat(self, image, fill=0):
        """`[..., H, W, C]` to `[..., length]`, with `fill` between the rows."""
        sides = [(0, 0)] * image.ndim
        sides[-2] = (0, self.reach)
        padded = jnp.pad(image, sides, constant_values=fill)
        return padded.reshape(*image.shape[:-3], self.length)

    def picture(self, flat):
        """`[..., length]` back to `[..., H, W, C]`."""
        height, width, channels = self.shape
        rows = flat.reshape(*flat.shape[:-1], height, width + self.reach, channels)
        return rows[..., :width, :]

    def seen(self, flat, fill):
        """The vector as seen from each offset of the window: a list of vectors."""
        wide = jnp.pad(flat, self.margin, constant_values=fill)
        starts = [self.margin + offset for offset in self.offsets]
        return [wide[start : start + self.length] for start in starts]

    def arrived(self, parcels):
        """Sums what `parcels` `[k * k, length]` sends to each pixel; `seen` transposed.

        Nothing may be sent out of the image.
        """
        wide = [
            jnp.pad(parcel, (self.margin + offset, self.margin - offset))
            for parcel, offset in zip(parcels, self.offsets)
        ]
        return functools.reduce(jnp.add, wide)[self.margin : self.margin + self.length]

    def log_sums(self, log_field, log_weights):
        """`log sum_d exp(log_field[i + d] + log_weights[d])` for every pixel i."""
        nothing = jnp.full_like(log_field, _EMPTY)

        def higher(peak, there):
            return jnp.maximum(peak, there), ()

        peak, _ = self._scan(higher, nothing, log_field, log_weights)

        def add(total, there):
            return total + jnp.exp(there - peak), ()

        total, _ = self._scan(add, jnp.zeros_like(peak), log_field, log_weights)
        return peak + jnp.log(total)

    def mass_by_offset(self, a, b, log_weights):
        """`[k, k]`: what `exp(a_i + b_{i + d} + log_weights[d])` sums to over i."""

        def add_up(nothing, there):
            # Of a plan of mass one; early rounds can be far from it, but not infinite.
            return nothing, jnp.exp(jnp.minimum(a + there, 60)).sum()

        _, sums = self._scan(add_up, (), b, log_weights)
        return sums.reshape(log_weights.shape)

    def _scan(self, step, start, log_field, log_weights):
        """`lax.scan` of `step` over the window, one weighted look at the field each.

        Written out, the terms take XLA three times as long to compile and to run.
        """
        wide = jnp.pad(log_field, self.margin, constant_values=_EMPTY)

        def body(carry, offset):
            start, weight = offset
            there = jax.lax.dynamic_slice(wide, (start,), (self.length,))
            return step(carry, there + weight)

        starts = self.margin + jnp.array(self.offsets)
        offsets = (starts, log_weights.ravel())
        return jax.lax.scan(body, start, offsets, unroll=self.kernel_size)
