"""The attack of Hu et al.: projected Sinkhorn steps that respect the pixel range.

Hu, Swaminathan, Salman & Yang, "Improved Image Wasserstein Attacks and Defenses",
2020, arXiv:2004.12478, keep the idea of Wong, Schmidt & Kolter (`pgd`) and mend its
model of an image: a pixel holds no more than one, and the projection knows it
(`sinkhorn`), so that clipping afterwards takes (almost) no mass away. A projection goes
on from the multipliers of the step before.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from wsjax.attacks import growing, losses
from wsjax.attacks.checks import check_not_negative, check_settings
from wsjax.attacks.growing import AttackResult
from wsjax.attacks.sinkhorn import Duals, sinkhorn_projection
from wsjax.attacks.victims import Victim, as_victim
from wsjax.attacks.windows import window_cost


@dataclasses.dataclass(frozen=True)
class CapacityAttack:
    """Settings of the attack; the defaults are those of the authors on MNIST:
    radii .01, .02, ... up to 2, one step each.

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
      slack: see `sinkhorn_projection`. Zero keeps every point in its ball.
      mass_tolerance: see `sinkhorn_projection`.
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
        window_cost(self.kernel_size, self.ground_metric)
        check_settings(self, "epsilon_growth", "slack")
        check_not_negative(epsilon_growth=self.epsilon_growth, slack=self.slack)


def capacity_attack(
    images: jax.Array,
    labels: jax.Array,
    victim: Victim | Callable[[jax.Array], jax.Array],
    *,
    key: jax.Array | None = None,
    settings: CapacityAttack = CapacityAttack(),
) -> AttackResult:
    """Steps along the gradient of the cross-entropy, projects, clips, asks again.

    Nothing is repaired: points can be outside their ball by the tolerances, see
    `measure`.

    Arguments, result and errors are those of `sinkhorn_attack`; gradients are without
    noise, and `key` is for answers only.

    Source: Hu, Swaminathan, Salman & Yang, arXiv:2004.12478, and the schedule of
    their published code.
    """
    victim = as_victim(victim)
    projection = ("regularization", "tolerance", "slack", "mass_tolerance")
    return growing.grow(
        images,
        labels,
        victim,
        key=key,
        begin=lambda centers: Duals(
            np.zeros_like(centers), np.ones(len(centers), centers.dtype)
        ),
        step=functools.partial(
            _step,
            numbers=growing.as_numbers(settings, "step_size", "projection_iterations"),
            options=growing.as_numbers(settings, *projection),
            classify=victim.arguments()[0],
            window=(settings.kernel_size, settings.ground_metric),
        ),
        radius=lambda steps: (
            settings.epsilon + steps // settings.epsilon_every * settings.epsilon_growth
        ),
        max_steps=settings.max_steps,
        batch_size=settings.batch_size,
    )


@functools.partial(jax.jit, static_argnames="window")
def _step(slots, turn, *, numbers, options, classify, window):
    """One step of every slot: uphill, projected, clipped."""
    centers, points, labels, duals = slots

    def project(center, image, epsilon, duals, live):
        return sinkhorn_projection(
            center,
            image,
            epsilon,
            capacity=1.0,
            duals=duals,
            kernel_size=window[0],
            ground_metric=window[1],
            # Nobody waits for images that are done.
            max_iterations=jnp.where(live, numbers["projection_iterations"], 0),
            **options,
        )

    slopes = losses.with_largest_one(losses.uphill(points, labels, classify))
    mass = centers.sum((1, 2, 3), keepdims=True)
    stepped = points + numbers["step_size"] / centers.shape[-1] * mass * slopes
    found = growing.for_each(project, centers, stepped, turn.radii, duals, turn.live)
    return slots._replace(points=jnp.clip(found.image, 0, 1), state=found.duals)
