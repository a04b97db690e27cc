"""The attack of the paper's experiments: projected gradient steps, growing budget.

Levine & Feizi attack with the method of Wong, Schmidt & Kolter: step along the
gradient of the cross-entropy, project onto a Wasserstein ball around the original
(`sinkhorn`), clip to [0, 1], and enlarge the ball every few steps until the answer is
wrong. Against a smoothed classifier the gradient is that of the mean softmax over
noisy copies, and the answer is a vote.

What the published code reports is kept: `epsilon`, the radius of the ball when the
answer first turned wrong. It is nominal. The entropy keeps the image well inside the
ball, and clipping takes mass away; `measure` tells the distance. Beyond it,
`AttackResult.verified` repeats each vote with fresh draws, since an attack that stops
at the first wrong vote of many also stops at a lucky one.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from wsjax.attacks import growing, losses
from wsjax.attacks.checks import check_images, check_settings
from wsjax.attacks.growing import AttackResult
from wsjax.attacks.sinkhorn import sinkhorn_projection
from wsjax.attacks.victims import Victim, as_victim
from wsjax.attacks.windows import window_cost


@dataclasses.dataclass(frozen=True)
class SinkhornAttack:
    """Settings of the attack; the defaults are those of the paper's MNIST scripts.

    Attributes:
      step: "sign" (of the gradient) or "l2" (the gradient, scaled to norm one).
      step_size: length of a step, in pixel units.
      epsilon: first radius of the ball, in pixels x fraction of mass.
      epsilon_factor: what the radius is multiplied by,
      epsilon_every: after this many steps.
      max_steps: steps per image before giving up.
      ground_metric: "l2" for the cost `(di^2 + dj^2)^(power / 2)`, "l1" for
        `(|di| + |dj|)^power`.
      power: one for a metric.
      kernel_size: mass travels at most `kernel_size // 2` pixels along each axis.
      regularization: lambda of the projection.
      projection_iterations: at most, per projection.
      tolerance: relative change of the dual at which a projection stops; see
        `sinkhorn` for why not the 1e-4 of the published code.
      clamp: whether to clip to [0, 1] after projecting, which loses mass.
      num_samples: noisy copies per gradient (smoothed).
      abstention_counts: whether an abstention is a success, as in the published
        code. Default False: the classifier must return a wrong class.
      batch_size: images that `classify` gets at a time. A smoothed image takes up
        `num_samples` of it. Too few images are padded, so nothing compiles twice.
    """

    step: str = "sign"
    step_size: float = 0.1
    epsilon: float = 0.3
    epsilon_factor: float = 1.1
    epsilon_every: int = 10
    max_steps: int = 200
    ground_metric: str = "l2"
    power: float = 1.0
    kernel_size: int = 5
    regularization: float = 1000.0
    projection_iterations: int = 400
    tolerance: float = 1e-5
    clamp: bool = True
    num_samples: int = 128
    abstention_counts: bool = False
    batch_size: int = 32

    def __post_init__(self):
        if self.step not in ("sign", "l2"):
            raise ValueError(f"step={self.step!r} is neither 'sign' nor 'l2'.")
        if not self.epsilon_factor >= 1:
            raise ValueError(
                f"epsilon_factor={self.epsilon_factor} is below 1; the ball grows. "
                f"Use 1.0 for an attack at one fixed radius."
            )
        window_cost(self.kernel_size, self.ground_metric, self.power)
        check_settings(self)


def sinkhorn_attack(
    images: jax.Array,
    labels: jax.Array,
    victim: Victim | Callable[[jax.Array], jax.Array],
    *,
    key: jax.Array | None = None,
    settings: SinkhornAttack = SinkhornAttack(),
) -> AttackResult:
    """Steps along the gradient, projects, clips to [0, 1], asks again.

    Args:
      images: `[N, H, W, C]` float, in [0, 1], none all black.
      labels: `[N]` int, the right answers.
      victim: who is attacked (`victims`), or a plain classifier: images `[B, H, W, C]`
        to logits `[B, K]`, differentiable.
      key: one for all images or one for each, `[N]`; required if the victim is random;
        used up by this call.
      settings: see `SinkhornAttack`.

    Returns:
      `AttackResult`.

    Raises:
      ValueError: images are outside [0, 1], not finite or all black; shapes do not
        agree; a label is no class; `key` is missing; a logit is NaN or infinite.

    Source: Levine & Feizi, arXiv:1910.10783, Section 6 and published code; Wong,
    Schmidt & Kolter, arXiv:1902.07906, for the attack on a plain classifier.
    """
    victim, (originals, _) = as_victim(victim), check_images(images, labels)
    classify, perturb = victim.arguments()
    draws = 1 if perturb is None else settings.num_samples

    def is_dark(centers):
        """Which images a step moves too far, against their mass, for sums of numbers."""
        # About twice the range of `lambda (z - y)`, in units of mass one.
        span = 4 * settings.regularization * settings.step_size
        return span > 80 * centers.sum((1, 2, 3))

    compiled = {name: getattr(settings, name) for name in _How._fields[1:]}
    names = ("step_size", "regularization", "tolerance", "projection_iterations")
    return growing.grow(
        images,
        labels,
        victim,
        key=key,
        begin=is_dark,
        step=functools.partial(
            _step,
            numbers=growing.as_numbers(settings, *names),
            classify=classify,
            perturb=perturb,
            how=_How(bool(is_dark(originals).any()), **compiled),
        ),
        radius=lambda steps: (
            settings.epsilon
            * settings.epsilon_factor ** (steps // settings.epsilon_every)
        ),
        max_steps=settings.max_steps,
        batch_size=max(1, settings.batch_size // draws),
        abstention_counts=settings.abstention_counts,
    )


class _How(NamedTuple):
    """What is compiled into a step; whether any image is dark, and settings."""

    any_dark: bool
    step: str
    ground_metric: str
    power: float
    kernel_size: int
    clamp: bool
    num_samples: int


@functools.partial(jax.jit, static_argnames="how")
def _step(slots, turn, *, numbers, classify, perturb, how):
    """One step and projection for a batch."""
    centers, points, labels, dark = slots
    keys = turn.draws.keys_for(growing.GRADIENT, number=turn.steps)
    slopes = losses.uphill(points, labels, classify, perturb, keys, how.num_samples)
    if how.step == "sign":
        slopes = jnp.sign(slopes)
    else:
        slopes = losses.with_norm_one(slopes)

    def project(center, point, epsilon, log_domain):
        return sinkhorn_projection(
            center,
            point,
            epsilon,
            regularization=numbers["regularization"],
            kernel_size=how.kernel_size,
            ground_metric=how.ground_metric,
            power=how.power,
            max_iterations=numbers["projection_iterations"],
            tolerance=numbers["tolerance"],
            log_domain=log_domain,
        ).image

    def one(live, dark, *row):
        ways: list[Callable[..., jax.Array]] = [lambda center, point, epsilon: point]
        ways += [
            functools.partial(project, log_domain=log_domain)
            for log_domain in (False, True)[: 1 + how.any_dark]
        ]
        return jax.lax.switch(jnp.where(live, 1 + dark, 0), ways, *row)

    stepped = points + numbers["step_size"] * slopes
    moved = growing.for_each(one, turn.live, dark, centers, stepped, turn.radii)
    return slots._replace(points=jnp.clip(moved, 0, 1) if how.clamp else moved)
