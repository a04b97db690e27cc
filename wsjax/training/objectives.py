"""What a base classifier is trained for: losses on several noisy copies per image.

A certificate asks for votes that agree, not only for the right answer on one copy.
The objectives here ask for that in different ways. The first four act after
whitening, where every Gaussian law of this package is plain Gaussian noise and the
adversary's ball is round; `docs/noise.md` has them measured against each other at equal
compute. "flow_adversarial" moves the images themselves within a Wasserstein
ball, and works without noise. "radius" is for networks that are 1-Lipschitz in W, whose
logits are scores: it asks for leads that certify a radius.
"""

import dataclasses
import math
import numbers

import jax
import jax.numpy as jnp

NAMES = (
    "cross_entropy",
    "consistency",
    "smooth_adversarial",
    "smooth_mix",
    "flow_adversarial",
    "radius",
)


@dataclasses.dataclass(frozen=True)
class Objective:
    """A loss and the copies it looks at.

    Attributes:
      name: "cross_entropy", the mean over all copies; "consistency", that and the
        divergence of each copy's answer from their mean; "smooth_adversarial", the
        cross-entropy after one gradient step against the averaged answer; "smooth_mix", the
        cross-entropy, and a second one part of the way along such a step, where the answer
        should be as much less certain; "flow_adversarial", the cross-entropy at images
        moved against that answer (`adversarial.ball_ascent`); "radius", the cross-entropy
        of how far the radius that the lead over each class certifies is beyond the one that
        is aimed at.
      copies: noisy copies of each image of a batch.
      consistency: weight of the divergence.
      mixing: weight of the second cross-entropy of "smooth_mix".
      label_smoothing: probability spread evenly over all classes in what the
        cross-entropy of every objective but "radius" compares with.
      attack_radius: length of the adversarial step, in standard deviations of the
        noise: a step of 1 costs an adversary the certificate scale c.
      ball_radius: Wasserstein distance that "flow_adversarial" moves images within,
        in pixels x fraction of mass.
      ball_steps: its gradient steps.
      ball_inner_steps: iterations of the projection after each.
      ball_warmup: fraction of all updates over which the radius grows to that.
      ground_metric: "l1" or "l2": of that distance.
      radius: what "radius" aims at, in pixels x fraction of mass.
      temperature: of its cross-entropy, in the same unit: a small one looks at the
        leads just about the radius only.
    """

    name: str = "cross_entropy"
    copies: int = 1
    consistency: float = 5.0
    mixing: float = 5.0
    label_smoothing: float = 0.0
    attack_radius: float = 1.0
    ball_radius: float = 0.0
    ball_steps: int = 7
    ball_inner_steps: int = 5
    ball_warmup: float = 0.3
    ground_metric: str = "l2"
    radius: float = 0.0
    temperature: float = 0.0

    def __post_init__(self):
        if self.name not in NAMES:
            raise ValueError(f"train.objective={self.name!r} is not one of {NAMES}.")
        if self.copies < 1:
            raise ValueError(f"train.copies={self.copies} must be at least 1.")
        if self.name == "consistency" and self.copies < 2:
            raise ValueError(
                f'train.objective="consistency" compares copies: train.copies='
                f"{self.copies} must be at least 2."
            )
        for field in (
            "consistency",
            "mixing",
            "attack_radius",
            "ball_radius",
            "radius",
            "temperature",
        ):
            value = getattr(self, field)
            if not (isinstance(value, numbers.Real) and 0 <= float(value) < math.inf):
                raise ValueError(f"train.{field}={value!r} is negative or not finite.")
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(
                f"train.label_smoothing={self.label_smoothing!r} is outside [0, 1)."
            )
        for field in ("ball_steps", "ball_inner_steps"):
            value = getattr(self, field)
            if value != int(value) or value < 1:
                raise ValueError(
                    f"train.{field}={value!r} is not a whole number above zero."
                )
        if not 0 <= self.ball_warmup <= 1:
            raise ValueError(
                f"train.ball_warmup={self.ball_warmup!r} is outside [0, 1]: it is a "
                f"fraction of the updates of the run, 0 for the full radius at once."
            )
        if self.moves_images and not self.ball_radius > 0:
            raise ValueError(
                f'train.objective="flow_adversarial" moves images within '
                f"train.ball_radius={self.ball_radius!r}, which must be positive: "
                f"pixels x fraction of mass, e.g. 0.3 for MNIST."
            )

        if self.name == "radius" and not (self.radius > 0 and self.temperature > 0):
            raise ValueError(
                f'train.objective="radius" needs train.radius={self.radius!r} and '
                f"train.temperature={self.temperature!r} above zero, both in pixels x "
                f"fraction of mass: 0.2 and 0.025 for MNIST, 0.01 and 0.005 for "
                f"CIFAR-10."
            )

    @property
    def attacks(self) -> bool:
        """Whether the loss needs an adversarial step of the noise first."""
        return self.name in ("smooth_adversarial", "smooth_mix")

    @property
    def mixes(self) -> bool:
        """Whether the loss also looks at copies part of the way along that step."""
        return self.name == "smooth_mix"

    @property
    def moves_images(self) -> bool:
        """Whether the loss is that of images moved within a ball."""
        return self.name == "flow_adversarial"

    def radius_at(self, step: jax.Array, total_steps: int) -> jax.Array | float:
        """Radius of the ball in one update; linear in it, then `ball_radius`.

        Args:
          step: updates made before, an int scalar.
          total_steps: updates of the whole run.
        """
        growing = self.ball_warmup * total_steps
        if growing < 1:
            return self.ball_radius
        return self.ball_radius * jnp.minimum((step + 1) / growing, 1)

    @property
    def looks_at(self) -> str | None:
        """The method of a module whose results `loss` is of; None for its logits."""
        return "leads" if self.name == "radius" else None

    def loss(self, found: jax.Array, labels: jax.Array) -> jax.Array:
        """Mean loss of a batch.

        Args:
          found: logits `[copies, B, K]`; for "radius" leads `[copies, B, K, K]` of each
            class over each other one.
          labels: `[B]` int.

        Returns:
          Scalar.

        Source: consistency: Jeong & Shin 2020 (NeurIPS), the divergence
        KL(mean || copy) plus half of the mean's entropy.
        """
        if self.name == "radius":
            # Of each class, by how much its radius falls short. The label has none.
            own = jnp.take_along_axis(found, labels[None, :, None, None], axis=2)[
                :, :, 0
            ]
            short = (self.radius - own) / self.temperature
            right = jax.nn.one_hot(labels, found.shape[-1], dtype=bool)
            found = jnp.where(right, 0.0, short)
        logs = jax.nn.log_softmax(found)
        own = jnp.take_along_axis(logs, labels[None, :, None], axis=-1)
        loss = -own.mean()
        if self.name != "radius":
            loss += self.label_smoothing * (own - logs).mean()
        if self.name == "consistency":
            log_mean = _log_mean(logs)
            mean = jnp.exp(log_mean)
            divergence = jnp.sum(mean * (log_mean - logs), axis=-1).mean()
            entropy = -jnp.sum(mean * log_mean, axis=-1).mean()
            loss = loss + self.consistency * divergence + 0.5 * entropy
        return loss

    def answers(self, found: jax.Array) -> jax.Array:
        """Classes `[copies, B]` that what `loss` is of stands for."""
        if self.name == "radius":
            itself = jnp.eye(found.shape[-1], dtype=bool)
            found = jnp.where(itself, jnp.inf, found).min(-1)
        return jnp.argmax(found, -1)

    def adversarial_step(self, against: jax.Array) -> jax.Array:
        """Shift of the view of each image, from a gradient.

        Args:
          against: `[B, ...]`, gradient of `averaged_loss` in the shift.

        Returns:
          `[B, ...]`, each of length `attack_radius` (0 where the gradient is 0).

        Source: Salman et al. 2019 (SmoothAdv), one step.
        """
        axes = tuple(range(1, against.ndim))
        length = jnp.sqrt(jnp.sum(against**2, axis=axes, keepdims=True))
        return self.attack_radius * against / jnp.maximum(length, 1e-30)

    def mixed_loss(
        self, found: jax.Array, answers: jax.Array, parts: jax.Array
    ) -> jax.Array:
        """Mean loss of copies part of the way to an adversarial one.

        Args:
          found: their logits `[copies, B, K]`.
          answers: probabilities `[B, K]` of the images themselves.
          parts: `[B]`, how much of the way, from 0 to 1/2.

        Returns:
          Scalar: the cross-entropy with those probabilities mixed with even ones,
          `mixing` times.

        Source: Jeong et al. 2021 (SmoothMix, NeurIPS), with one step.
        """
        parts = parts[:, None]
        wanted = (1 - parts) * answers + parts / found.shape[-1]
        return -self.mixing * (wanted * jax.nn.log_softmax(found)).sum(-1).mean()

    @staticmethod
    def averaged_loss(logits: jax.Array, labels: jax.Array) -> jax.Array:
        """`-log` of the mean probability of the true class, summed over the batch.

        The surrogate of the smoothed classifier that an adversary climbs; arguments
        as `loss`.
        """
        averaged = averaged_logits(logits)
        return -jnp.take_along_axis(averaged, labels[:, None], axis=-1).sum()


CROSS_ENTROPY = Objective()


def radii(
    scores: jax.Array, labels: jax.Array, constants: jax.Array | float = 2.0
) -> jax.Array:
    """What leads over each class certify, negative for those that are behind.

    Args:
      scores: `[..., B, K]`.
      labels: `[B]` int.
      constants: Lipschitz constants of the differences of scores, `[K, K]`, or one for
        all.

    Returns:
      `[..., B, K]`; infinite for the labels themselves.
    """
    classes = scores.shape[-1]
    own = jax.nn.one_hot(labels, classes, dtype=bool)
    lead = jnp.sum(jnp.where(own, scores, 0.0), -1, keepdims=True) - scores
    # Where rows are equal their scores differ by a constant: never zero, whatever it is.
    constants = jnp.maximum(jnp.broadcast_to(constants, (classes, classes)), 1e-3)
    return jnp.where(own, jnp.inf, lead / constants[labels])


def averaged_logits(logits: jax.Array) -> jax.Array:
    """Logarithm of the mean probabilities `[B, K]` of copies `[copies, B, K]`."""
    return _log_mean(jax.nn.log_softmax(logits))


def _log_mean(logs):
    """Logarithm of the mean over copies of probabilities given by logarithms."""
    return jax.scipy.special.logsumexp(logs, axis=0) - jnp.log(len(logs))
