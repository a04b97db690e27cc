"""One training step and one evaluation step, as pure jitted functions."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from wsjax.training.adversarial import ball_ascent
from wsjax.training.learned_noise import FixedNoise
from wsjax.training.objectives import (
    CROSS_ENTROPY,
    Objective,
    averaged_logits,
    radii,
)


class TrainState(NamedTuple):
    """Everything a run needs to go on, apart from its config.

    Attributes:
      step: int32 scalar, number of updates made.
      params: the module's parameters.
      batch_stats: its running statistics; empty for models without BatchNorm.
      noise: parameters of learned noise; empty for fixed noise.
      opt_state: Optax state.
    """

    step: jax.Array
    params: Any
    batch_stats: Any
    opt_state: Any
    noise: Any = ()

    @property
    def variables(self) -> dict[str, Any]:
        """The module's variables, as `models.classifier` takes them."""
        if self.batch_stats:
            return {"params": self.params, "batch_stats": self.batch_stats}
        return {"params": self.params}


def init_state(
    key: jax.Array,
    module: nn.Module,
    image_shape: tuple[int, int, int],
    optimizer: optax.GradientTransformation,
    noise: Any = None,
    start: Callable[[Any], Any] | None = None,
) -> TrainState:
    """Fresh parameters of a classifier and of learned noise; uses up `key`.

    `start` may change the variables of the classifier.
    """
    images = jnp.zeros((1, *image_shape), jnp.float32)
    variables = jax.jit(module.init)(key, images)
    variables = variables if start is None else start(variables)
    params = variables["params"]
    noise_params = as_noise(noise).init()
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        batch_stats=variables.get("batch_stats", {}),
        opt_state=optimizer.init(trainable(params, noise_params)),
        noise=noise_params,
    )


def trainable(params: Any, noise_params: Any) -> Any:
    """What the optimizer sees: the parameters, with those of learned noise if any."""
    return {"model": params, "noise": noise_params} if noise_params else params


Perturb = Callable[[jax.Array, jax.Array], jax.Array]


def as_noise(noise: Any) -> Any:
    """A noise behind the interface of `learned_noise`: wraps `perturb` or None."""
    return noise if hasattr(noise, "law") else FixedNoise(noise)


def perturb_batch(
    key: jax.Array,
    images: jax.Array,
    law: Any,
    share_noise: bool,
    shift: jax.Array | None = None,
) -> jax.Array:
    """One noisy copy of each image of a batch `[B, H, W, C]`; uses up `key`.

    Args:
      key: of this batch.
      images: float.
      law: a `gaussian.NormalLaw`, a `learned_noise.FixedNoise`, or what the latter is
        made of.
      share_noise: whether all images get the same draw (scaled by their own mass),
        as the paper's code does. By default each image draws its own.
      shift: `[B, ...]` added to the variables of the copies, or None.

    Returns:
      Array of the shape and dtype of `images`.
    """
    law = law if hasattr(law, "copy_of") else FixedNoise(law)
    if share_noise:
        one = law.variables(key)
        variables = jnp.broadcast_to(one, (len(images), *one.shape))
    else:
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(len(images)))
        variables = jax.vmap(law.variables)(keys)
    if shift is not None:
        variables = variables + shift
    return jax.vmap(law.copy_of)(images, variables)


def make_train_step(
    module: nn.Module,
    optimizer: optax.GradientTransformation,
    perturb: Perturb | Any | None,
    *,
    scale: float,
    share_noise: bool = False,
    augment: Callable[[jax.Array, jax.Array], jax.Array] | None = None,
    objective: Objective = CROSS_ENTROPY,
    total_steps: int = 0,
) -> Callable:
    """Builds the jitted update `(state, key, images, labels) -> (state, metrics)`.

    The loss is the objective on noisy copies; classifier and learned noise descend
    on it together. "flow_adversarial" moves the images first, against the classifier
    as it is before the step and under the very draws of noise that the loss will see;
    running statistics see the moved images only.

    The state's buffers are donated. `key` is that of the run; the step's own
    randomness is `fold_in(key, state.step)`, so a resumed run repeats it.

    Args:
      module: Flax classifier.
      optimizer: Optax transformation of `trainable(params, noise)`.
      perturb: noise on one image, a noise of `learned_noise`, or None to train
        without noise.
      scale: divisor that turns the data's integers into pixels in [0, 1].
      share_noise: see `perturb_batch`.
      augment: `(key, images) -> images` before the noise, or None. Mass is measured
        after it.
      objective: loss and number of copies.
      total_steps: updates of the whole run, which the warm-up of a ball is a fraction
        of; 0 for none.

    Returns:
      The step; `images` `[B, H, W, C]` uint8, `labels` `[B]` int32; metrics are
      scalars "loss" and "accuracy" on the noisy batch, moved if the objective moves
      it.

    Raises:
      ValueError: as `check_objective`.
    """
    noise = as_noise(perturb)
    check_objective(objective, noise)

    def apply(params, batch_stats, images):
        return module.apply(
            {"params": params, "batch_stats": batch_stats},
            images,
            train=True,
            mutable=["batch_stats"],
            method=objective.looks_at,
        )

    def step(state, key, images, labels):
        step_key = jax.random.fold_in(key, state.step)
        key_augment, key_noise = jax.random.split(step_key)
        images = images.astype(jnp.float32) / scale
        if augment is not None:
            images = augment(key_augment, images)
        copies = objective.copies

        def logits_of(images, learned, law, shift=None):
            repeated = jnp.tile(images, (copies, 1, 1, 1))
            if shift is not None:
                shift = jnp.tile(shift, (copies,) + (1,) * (shift.ndim - 1))
            noisy = perturb_batch(key_noise, repeated, law, share_noise, shift)
            logits: Any
            logits, updates = apply(learned["model"], state.batch_stats, noisy)
            return logits.reshape(copies, len(labels), *logits.shape[1:]), updates

        learned = {"model": state.params, "noise": state.noise}
        if objective.moves_images:
            images = ball_ascent(
                images,
                labels,
                lambda points: averaged_logits(logits_of(points, learned, noise)[0]),
                radius=objective.radius_at(state.step, total_steps),
                steps=objective.ball_steps,
                inner_steps=objective.ball_inner_steps,
                ground_metric=objective.ground_metric,
                key=jax.random.fold_in(step_key, 2),  # 0 and 1 are those of the split.
            )

        def loss_of(learned):
            law = noise.law(learned["noise"])
            shift, parts = None, None
            if objective.attacks:
                still = jax.lax.stop_gradient((learned, law))
                draw = jax.eval_shape(law.variables, key_noise)
                against = jax.grad(
                    lambda start: objective.averaged_loss(
                        logits_of(images, *still, start)[0], labels
                    )
                )(jnp.zeros((len(labels), *draw.shape), draw.dtype))
                shift = jax.lax.stop_gradient(objective.adversarial_step(against))
                if objective.mixes:
                    of_parts = jax.random.fold_in(step_key, 3)
                    parts = jax.random.uniform(of_parts, labels.shape) / 2
                    shift = parts.reshape(-1, *(1,) * len(draw.shape)) * shift
            if parts is None:
                logits, updates = logits_of(images, learned, law, shift)
                return objective.loss(logits, labels), (logits, updates)
            logits, updates = logits_of(images, learned, law)
            mixed, _ = logits_of(images, learned, law, shift)
            answers = jax.lax.stop_gradient(jnp.exp(averaged_logits(logits)))
            loss = objective.loss(logits, labels)
            loss += objective.mixed_loss(mixed, answers, parts)
            return loss, (logits, updates)

        grads = jax.value_and_grad(loss_of, has_aux=True)
        (loss, (logits, updates)), gradient = grads(learned)
        before = trainable(state.params, state.noise)
        changes, opt_state = optimizer.update(
            trainable(gradient["model"], gradient["noise"]), state.opt_state, before
        )
        after = optax.apply_updates(before, changes)
        accuracy = jnp.mean(objective.answers(logits) == labels)
        state = TrainState(
            step=state.step + 1,
            params=after["model"] if state.noise else after,
            batch_stats=updates.get("batch_stats", state.batch_stats),
            opt_state=opt_state,
            noise=after["noise"] if state.noise else state.noise,
        )
        return state, {"loss": loss, "accuracy": accuracy}

    return jax.jit(step, donate_argnums=0)


def check_objective(objective: Objective, noise: Any) -> None:
    """Refuses an objective and a noise that do not go together.

    Raises:
      ValueError: the objective shifts the noise, and the noise cannot be shifted; or
        it moves images, and the noise is learned.
    """
    if objective.attacks and not as_noise(noise).can_shift:
        raise ValueError(
            f"train.objective={objective.name!r} moves the noise in its own whitened "
            f'space, which only smoothing.noise="learned_view" and "learned_spectrum" '
            f"have; use another objective."
        )
    if objective.moves_images and not isinstance(as_noise(noise), FixedNoise):
        raise ValueError(
            f"train.objective={objective.name!r} moves images under a fixed noise or "
            f"none. For learned noise, use train.objective='smooth_adversarial', which "
            f"moves what the classifier sees of them; or set smoothing.noise to one "
            f"that is not learned, and train.noisy=False to train without it."
        )


def make_eval_step(
    module: nn.Module, perturb: Perturb | Any | None, *, scale: float
) -> Callable:
    """Builds `(state, key, images, labels) -> radii [B]`, on one noisy copy each.

    They are positive where the answer is right; of scores, what the lead certifies.
    """
    noise = as_noise(perturb)

    def step(state, key, images, labels):
        images = images.astype(jnp.float32) / scale
        images = perturb_batch(key, images, noise.law(state.noise), False)
        logits: Any = module.apply(state.variables, images, train=False)
        constants: Any = 2.0
        if hasattr(module, "constants"):
            constants = module.apply(state.variables, method="constants")
        return radii(logits, labels, constants).min(-1)

    return jax.jit(step)
