"""The attacks of Wu, Wang & Yu: exact projection, and Frank-Wolfe, on transport plans.

Wu, Wang & Yu, "Stronger and Faster Wasserstein Adversarial Attacks", ICML 2020, search
among couplings instead of images. For an image `x`, a window of offsets d with ground
costs C_d, a coupling `pi[d, i]` is the mass that pixel i sends to pixel i + d, and

    Pi = {pi >= 0,  sum_d pi[d, i] = x_i,  <pi, C> <= epsilon}.

The image is what arrives, `z_j = sum_d pi[d, j - d]`, and the gradient of a loss for pi
is that for z, seen from each offset. Written here from the two problems they solve,
both by a price `lambda >= 0` of the budget:

  * Projection of a coupling G: minimise `|pi - G|^2` over Pi. At a given price every
    pixel is on its own: its row is the projection of `G_i - lambda C` onto the simplex
    of mass x_i, `max(G_i - lambda C - tau_i, 0)`. tau_i solves a convex, piecewise
    linear equation, which Newton's method from the left solves exactly.
  * Linear minimisation with entropy: maximise `<pi, G> - gamma sum pi log pi` over Pi.
    At a given price the rows are `x_i softmax((G_i - lambda C) / gamma)`.

Either way what is spent falls as lambda rises. lambda is found by Newton's method
inside a bracket that every fifth step halves; the plans at the two ends are then mixed
to spend epsilon exactly, which also gives a vertex's neighbour its share where gamma is
so small that spending jumps.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from wsjax.attacks import growing, losses
from wsjax.attacks.checks import check_positive, check_settings, check_whole
from wsjax.attacks.growing import AttackResult
from wsjax.attacks.victims import Victim, as_victim
from wsjax.attacks.windows import EMPTY, Grid, window_cost

METHODS = ("projection", "frank_wolfe")

_ROUNDING = 1e-6  # A pixel this far above one is one.


class Coupling(NamedTuple):
    """A transport plan within a window, and the price that led to it.

    Attributes:
      mass: `[k, k, H, W, C]`, what the pixel `[H, W, C]` sends to the one at each
        offset of the window, in the unit of the image.
      price: scalar, lambda: what a unit of the budget is worth.
      cost: scalar, what the plan pays, pixels x fraction of mass.
    """

    mass: jax.Array
    price: jax.Array
    cost: jax.Array


def coupling_image(mass: jax.Array) -> jax.Array:
    """The image that a coupling makes: what arrives at each pixel.

    Args:
      mass: `[k, k, H, W, C]`, see `Coupling`; nothing leaves the image.

    Returns:
      `[H, W, C]`.
    """
    grid = Grid(mass.shape[2:], len(mass))
    flat = grid.flat(mass)
    return grid.picture(grid.arrived(flat.reshape(-1, grid.length)))


def coupling_projection(
    center: jax.Array,
    mass: jax.Array,
    epsilon: jax.Array | float,
    *,
    ground_metric: str = "l2",
    price: jax.Array | float = 0.0,
    max_iterations: jax.Array | int = 40,
    tolerance: float = 1e-5,
) -> Coupling:
    """The coupling within budget that is nearest to given numbers.

    Runs under `jit` and `vmap`.

    Args:
      center: `[H, W, C]` float, nonnegative and not all zero.
      mass: `[k, k, H, W, C]` of any sign, in the unit of `center`. What leads out of
        the image is ignored.
      epsilon: positive scalar, pixels x fraction of the mass of `center`.
      ground_metric: "l1" or "l2".
      price: where to start, nearer to the answer being faster.
      max_iterations: evaluations of what is spent, at most.
      tolerance: relative error in what is spent at which to stop; the budget itself
        is kept to rounding.

    Returns:
      `Coupling`, dtypes of `center`.

    Raises:
      ValueError: shapes do not fit, or a Python number is outside its range.

    Source: Wu, Wang & Yu, ICML 2020, Section 4; derivation at the head of this module.
    """
    setting = _Problem(center, mass, epsilon, ground_metric, max_iterations, tolerance)
    plan_at = functools.partial(_projected_rows, setting)
    goal, x, costs = setting.goal, setting.x, setting.costs[:, None]
    # From here on, every row stays where it is.
    stay = len(costs) // 2
    away = jnp.where(costs > 0, (goal - goal[stay] + x) / jnp.maximum(costs, 1), 0)
    highest = jnp.maximum(jnp.where((x > 0) & setting.inside, away, 0).max(), 0)
    return setting.solve(plan_at, highest, price)


def linear_oracle(
    center: jax.Array,
    slopes: jax.Array,
    epsilon: jax.Array | float,
    *,
    gamma: float = 1e-3,
    kernel_size: int = 5,
    ground_metric: str = "l2",
    price: jax.Array | float = 0.0,
    max_iterations: jax.Array | int = 50,
    tolerance: float = 1e-5,
) -> Coupling:
    """The coupling within budget that goes farthest uphill, up to an entropy.

    Runs under `jit` and `vmap`.

    Args:
      center: as in `coupling_projection`, as are all that are not named here.
      slopes: `[H, W, C]`, what a unit of mass in each pixel is worth.
      gamma: weight of the entropy, in the unit of `slopes`. As it goes to zero the
        answer goes to that of the linear program.
      kernel_size: see `window_cost`.

    Returns:
      `Coupling`, dtypes of `center`; errors as there.

    Source: Wu, Wang & Yu, ICML 2020, Section 5; derivation at the head of this module.
    """
    check_positive(gamma=gamma)
    if slopes.shape != center.shape:
        raise ValueError(
            f"slopes has shape {slopes.shape} and center {center.shape}; both must "
            f"be [H, W, C]. Use jax.vmap for batches."
        )
    grid = Grid(center.shape, kernel_size)
    window_cost(kernel_size, ground_metric)  # Refuses before anything is laid out.
    seen = jnp.stack(grid.seen(grid.flat(slopes), 0))
    mass = grid.picture(seen).reshape(kernel_size, kernel_size, *center.shape)
    setting = _Problem(center, mass, epsilon, ground_metric, max_iterations, tolerance)
    plan_at = functools.partial(_softmax_rows, setting, gamma)
    # The steepest rise within a window, and what makes all other terms together
    # cheaper than epsilon: sum_d C_d exp((rise - price C_d) / gamma), with costs of
    # at least one, falls in them.
    dtype, costs = center.dtype, setting.costs[:, None]
    goal = jnp.where(setting.inside & (setting.x > 0), setting.goal, -jnp.inf)
    rise = jnp.where(setting.x > 0, goal - setting.goal[len(costs) // 2], 0).max()
    budget = jnp.maximum(jnp.asarray(epsilon, dtype), jnp.finfo(dtype).tiny)
    highest = rise + gamma * jnp.maximum(jnp.log(costs.sum() / budget), 1)
    return setting.solve(plan_at, highest, price)


class _Problem:
    """What the two problems share: the coupling as vectors, and the search for lambda.

    Attributes:
      x: `[L]`, the centre, on a `Grid`.
      goal: `[k * k, L]`, finite.
      inside: `[k * k, L]` bool, whether an offset leads to a pixel.
      costs: `[k * k]`.
    """

    def __init__(self, center, mass, epsilon, ground_metric, max_iterations, tolerance):
        size = mass.shape[0]
        if center.ndim != 3 or mass.shape != (size, size, *center.shape):
            raise ValueError(
                f"center has shape {center.shape} and mass {mass.shape}; they must be "
                f"[H, W, C] and [k, k, H, W, C]. Use jax.vmap for batches."
            )
        if not jnp.issubdtype(center.dtype, jnp.floating):
            raise ValueError(f"center is {center.dtype}; convert it to floats first.")
        check_positive(epsilon=epsilon, tolerance=tolerance)
        check_whole(max_iterations=max_iterations)
        dtype = center.dtype
        self.grid = Grid(center.shape, size)
        self.costs = jnp.asarray(window_cost(size, ground_metric), dtype).ravel()
        self.x = self.grid.flat(center)
        pixels = self.grid.flat(jnp.ones_like(center))
        self.inside = jnp.stack(self.grid.seen(pixels, 0)) > 0
        flat = self.grid.flat(mass.astype(dtype)).reshape(size**2, self.grid.length)
        self.goal = jnp.where(self.inside, flat, 0)
        self.budget = jnp.asarray(epsilon, dtype) * center.sum()
        self.max_iterations, self.tolerance = max_iterations, tolerance

    def solve(self, plan_at, highest, start):
        """The `Coupling` at the price, from `start` on, that spends the budget.

        `plan_at` makes of a price a plan `[k * k, L]` and the slope of what it spends,
        which at the price `highest` is less than the budget.
        """

        def spent(plan):
            return plan.sum(1) @ self.costs

        def narrow(state):
            low, high, price, _, iteration = state
            plan, slope = plan_at(price)
            excess = spent(plan) - self.budget
            met = jnp.abs(excess) <= self.tolerance * self.budget
            met |= (price <= 0) & (excess <= 0)
            low = jnp.where((excess > 0) | met, price, low)
            high = jnp.where((excess <= 0) | met, price, high)
            newton = price - excess / jnp.minimum(slope, -jnp.finfo(slope.dtype).tiny)
            # The lower end may be zero and not yet tried, when the budget is ample.
            newton = jnp.where(low <= 0, jnp.maximum(newton, 0), newton)
            # Newton's method alone can go back and forth between two kinks.
            usable = (newton >= low) & (newton < high) & (iteration % 5 != 4)
            price = jnp.where(usable, newton, (low + high) / 2)
            return low, high, price, met, iteration + 1

        def unfinished(state):
            low, high, _, met, iteration = state
            return ~met & (low < high) & (iteration < self.max_iterations)

        zero = jnp.zeros_like(self.budget)
        price = jnp.clip(jnp.asarray(start, zero.dtype), 0, highest)
        no, first = jnp.zeros((), bool), jnp.zeros((), jnp.int32)
        state = (zero, highest, price, no, first)
        low, high, *_ = jax.lax.while_loop(unfinished, narrow, state)

        plan, more = plan_at(high)[0], plan_at(low)[0]
        over, under = spent(more) - self.budget, self.budget - spent(plan)
        ends = (over > 0) & (under > 0)
        share = jnp.where(ends, under / jnp.where(ends, over + under, 1), 0)
        plan = plan + share * (more - plan)
        # Only rounding, or a price that was not found, is left to put right.
        total = plan.sum(0)
        plan = plan * jnp.where(total > 0, self.x / jnp.where(total > 0, total, 1), 0)
        cost = spent(plan)
        share = jnp.minimum(
            1, self.budget / jnp.maximum(cost, jnp.finfo(cost.dtype).tiny)
        )
        staying = jnp.zeros_like(plan).at[len(plan) // 2].set(self.x)
        plan = staying + share * (plan - staying)
        size, shape = self.grid.kernel_size, self.grid.shape
        mass = self.grid.picture(plan).reshape(size, size, *shape)
        return Coupling(mass, high, share * cost / self.x.sum())


def _projected_rows(problem, price):
    """Rows projected onto their simplices at a price; see `_Problem.solve`."""
    costs, x = problem.costs[:, None], problem.x
    values = jnp.where(problem.inside, problem.goal - price * costs, EMPTY)
    # From the peak down, only the first x matters: keeps the digits of dark pixels.
    values -= values.max(0)
    rounding = 4 * jnp.finfo(values.dtype).eps * x

    # Of a convex equation that falls in tau: from the left Newton's method climbs to
    # the root and is there after at most k * k pieces.
    def climb(state):
        tau, _, iteration = state
        above = values - tau
        count = jnp.maximum((above > 0).sum(0), 1)
        next_tau = tau + (jnp.maximum(above, 0).sum(0) - x) / count
        return next_tau, (next_tau - tau > rounding).any(), iteration + 1

    def climbing(state):
        _, moved, iteration = state
        return moved & (iteration < len(values))

    start = (-x, jnp.ones((), bool), jnp.zeros((), jnp.int32))
    tau, *_ = jax.lax.while_loop(climbing, climb, start)
    plan = jnp.where(x > 0, jnp.maximum(values - tau, 0), 0)
    active = plan > 0
    count = jnp.maximum(active.sum(0), 1)
    first, second = (active * costs).sum(0), (active * costs**2).sum(0)
    return plan, -(second - first**2 / count).sum()


def _softmax_rows(problem, gamma, price):
    """Rows of largest value and entropy at a price; see `_Problem.solve`."""
    costs = problem.costs[:, None]
    values = jnp.where(problem.inside, problem.goal - price * costs, EMPTY)
    weights = jnp.exp((values - values.max(0)) / gamma)
    shares = weights / weights.sum(0)
    first, second = (shares * costs).sum(0), (shares * costs**2).sum(0)
    return problem.x * shares, -(problem.x * (second - first**2)).sum() / gamma


@dataclasses.dataclass(frozen=True)
class DualAttack:
    """Settings of the attack; the defaults are those of the authors on MNIST.

    Attributes:
      method: "projection" (projected gradient steps) or "frank_wolfe".
      epsilons: radii to try, increasing, each from the original image anew; pixels x
        fraction of mass. The published code takes one.
      max_steps: steps per image and radius.
      step_size: length of a step of "projection", the largest change of an entry of
        the coupling, in pixel units: .1 on MNIST, .01 on CIFAR and ImageNet.
      gamma: entropy of "frank_wolfe", for gradients with a largest entry of one.
      dual_iterations: evaluations at most per search for lambda.
      ground_metric: "l2" for the Euclidean, "l1" for the Manhattan distance.
      kernel_size: mass travels at most `kernel_size // 2` pixels along each axis.
      clamp_loss: whether the loss is that of the image clipped to [0, 1]. The image
        returned is not clipped either way.
      early_stop: whether an image stops at its first wrong answer. The published
        code goes on to the end, and the last point is judged.
      batch_size: images that `classify` gets at a time. Too few images are padded,
        so nothing compiles twice.
    """

    method: str = "projection"
    epsilons: tuple[float, ...] = (0.5,)
    max_steps: int = 300
    step_size: float = 0.1
    gamma: float = 1e-3
    dual_iterations: int = 50
    ground_metric: str = "l2"
    kernel_size: int = 5
    clamp_loss: bool = True
    early_stop: bool = False
    batch_size: int = 32

    def __post_init__(self):
        if self.method not in METHODS:
            raise ValueError(f"method={self.method!r} is not one of {METHODS}.")
        radii = self.epsilons
        if not isinstance(radii, tuple) or not radii or list(radii) != sorted(radii):
            raise ValueError(
                f"epsilons={radii!r} is not a tuple of increasing radii; one radius "
                f"is (0.5,)."
            )
        for epsilon in radii:
            check_positive(epsilons=epsilon)
        window_cost(self.kernel_size, self.ground_metric)
        check_settings(self)


WU_PROJECTION = DualAttack("projection", dual_iterations=25)
"""Projected gradient steps: 300 of .1 at radius .5, Euclidean, window 5 x 5."""

WU_FRANK_WOLFE = DualAttack("frank_wolfe")
"""Frank-Wolfe: 300 steps at radius .5, entropy .001, Euclidean, window 5 x 5."""


def dual_attack(
    images: jax.Array,
    labels: jax.Array,
    victim: Victim | Callable[[jax.Array], jax.Array],
    *,
    key: jax.Array | None = None,
    settings: DualAttack = WU_PROJECTION,
) -> AttackResult:
    """Attacks images at one radius, or at several in turn until one succeeds.

    Steps uphill on the cross-entropy of the clipped image, with gradients scaled to a
    largest entry of one, among the couplings within budget. Nothing is repaired: an
    image has the mass of its original and is in the ball, but pixels can exceed one.

    Arguments and errors are those of `sinkhorn_attack`; gradients are without noise, and
    `key` is for answers only.

    Returns:
      `AttackResult`; `epsilon` is the smallest successful radius, `steps` counts those
      at all radii, and answers are those at the unclipped image.

    Source: Wu, Wang & Yu, "Stronger and Faster Wasserstein Adversarial Attacks", ICML
    2020, arXiv:2008.02883, and the schedule of their published code.
    """
    victim = as_victim(victim)
    radii, window = np.array(settings.epsilons), (settings.kernel_size,) * 2
    numbers = growing.as_numbers(
        settings, "max_steps", "step_size", "gamma", "dual_iterations"
    )
    numbers["ceiling"] = np.float32(1 if settings.clamp_loss else np.inf)

    def begin(centers):
        # The image is linear in the coupling: "frank_wolfe" averages images, not plans.
        size = window if settings.method == "projection" else (0, 0)
        plans = np.zeros((len(centers), *size, *centers.shape[1:]), centers.dtype)
        return plans, np.zeros(len(centers), centers.dtype)

    return growing.grow(
        images,
        labels,
        victim,
        key=key,
        begin=begin,
        step=functools.partial(
            _step,
            numbers=numbers,
            classify=victim.arguments()[0],
            compiled=(settings.method, settings.kernel_size, settings.ground_metric),
        ),
        radius=lambda steps: radii[
            np.minimum(steps // settings.max_steps, len(radii) - 1)
        ],
        max_steps=settings.max_steps * len(radii),
        batch_size=settings.batch_size,
        asks=None
        if settings.early_stop
        else lambda steps: steps % settings.max_steps == 0,
    )


@functools.partial(jax.jit, static_argnames="compiled")
def _step(slots, turn, *, numbers, classify, compiled):
    """One step of every slot."""
    method, size, ground_metric = compiled
    centers, points, labels, (plans, prices) = slots
    grid = Grid(centers.shape[1:], size)
    # At every radius from the original anew.
    steps = turn.steps % numbers["max_steps"]
    anew = (steps == 0)[:, None, None, None]
    points, prices = jnp.where(anew, centers, points), jnp.where(steps == 0, 0, prices)
    # Clipping passes no gradient beyond the ceiling, and all of it there. Below zero
    # there is nothing.
    ceiling = numbers["ceiling"].astype(points.dtype)
    slopes = losses.uphill(jnp.minimum(points, ceiling), labels, classify)
    slopes = jnp.where(points <= ceiling + _ROUNDING, slopes, 0)
    slopes = losses.with_largest_one(slopes)

    def search(price, live):
        # Nobody waits for images that are done.
        most = jnp.where(live, numbers["dual_iterations"], 0)
        return {"ground_metric": ground_metric, "price": price, "max_iterations": most}

    def project(center, plan, slopes, epsilon, price, live):
        seen = grid.picture(jnp.stack(grid.seen(grid.flat(slopes), 0)))
        goal = plan + numbers["step_size"] * seen.reshape(plan.shape)
        found = coupling_projection(center, goal, epsilon, **search(price, live))
        return found.mass, coupling_image(found.mass), found.price

    def farthest(center, slopes, epsilon, price, live):
        found = linear_oracle(
            center,
            slopes,
            epsilon,
            gamma=numbers["gamma"],
            kernel_size=size,
            **search(price, live),
        )
        return coupling_image(found.mass), found.price

    ball = slopes, turn.radii, prices, turn.live
    if method == "projection":
        staying = jnp.zeros_like(plans).at[:, size // 2, size // 2].set(centers)
        plans = jnp.where(anew[..., None, None], staying, plans)
        plans, points, prices = growing.for_each(project, centers, plans, *ball)
    else:
        far, prices = growing.for_each(farthest, centers, *ball)
        share = (2 / (steps + 2).astype(far.dtype))[:, None, None, None]
        points = points + share * (far - points)
    return slots._replace(points=points, state=(plans, prices))
