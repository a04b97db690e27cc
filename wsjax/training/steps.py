"""One training step and one evaluation step, as pure jitted functions."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn


class TrainState(NamedTuple):
    """Everything a run needs to go on, apart from its config.

    Attributes:
      step: int32 scalar, number of updates made.
      params: the module's parameters.
      batch_stats: its running statistics; empty for models without BatchNorm.
      opt_state: Optax state.
    """

    step: jax.Array
    params: Any
    batch_stats: Any
    opt_state: Any

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
) -> TrainState:
    """Fresh parameters; uses up `key`."""
    images = jnp.zeros((1, *image_shape), jnp.float32)
    variables = jax.jit(module.init)(key, images)
    params = variables["params"]
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        batch_stats=variables.get("batch_stats", {}),
        opt_state=optimizer.init(params),
    )


Perturb = Callable[[jax.Array, jax.Array], jax.Array]


def perturb_batch(
    key: jax.Array, images: jax.Array, perturb: Perturb | None, share_noise: bool
) -> jax.Array:
    """One noisy copy of each image of a batch `[B, H, W, C]`; uses up `key`.

    Args:
      key: of this batch.
      images: float.
      perturb: noise on one image, or None for none.
      share_noise: whether all images get the same draw (scaled by their own mass),
        as the paper's code does. By default each image draws its own.

    Returns:
      Array of the shape and dtype of `images`.
    """
    if perturb is None:
        return images
    if share_noise:
        return jax.vmap(perturb, (None, 0))(key, images)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(len(images)))
    return jax.vmap(perturb)(keys, images)


def make_train_step(
    module: nn.Module,
    optimizer: optax.GradientTransformation,
    perturb: Perturb | None,
    *,
    scale: float,
    share_noise: bool = False,
    augment: Callable[[jax.Array, jax.Array], jax.Array] | None = None,
) -> Callable:
    """Builds the jitted update `(state, key, images, labels) -> (state, metrics)`.

    The loss is the cross-entropy of the base classifier on noisy copies. The
    state's buffers are donated. `key` is that of the run; the step's own randomness
    is `fold_in(key, state.step)`, so a resumed run repeats it.

    Args:
      module: Flax classifier.
      optimizer: Optax transformation.
      perturb: noise on one image, or None to train without noise.
      scale: divisor that turns the data's integers into pixels in [0, 1].
      share_noise: see `perturb_batch`.
      augment: `(key, images) -> images` before the noise, or None. Mass is measured
        after it.

    Returns:
      The step; `images` `[B, H, W, C]` uint8, `labels` `[B]` int32; metrics are
      scalars "loss" and "accuracy" on the noisy batch.
    """

    def step(state, key, images, labels):
        key_augment, key_noise = jax.random.split(jax.random.fold_in(key, state.step))
        images = images.astype(jnp.float32) / scale
        if augment is not None:
            images = augment(key_augment, images)
        images = perturb_batch(key_noise, images, perturb, share_noise)

        def loss_of(params):
            logits: Any
            logits, updates = module.apply(
                {"params": params, "batch_stats": state.batch_stats},
                images,
                train=True,
                mutable=["batch_stats"],
            )
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
            return losses.mean(), (logits, updates)

        grads = jax.value_and_grad(loss_of, has_aux=True)
        (loss, (logits, updates)), gradient = grads(state.params)
        changes, opt_state = optimizer.update(gradient, state.opt_state, state.params)
        accuracy = jnp.mean(jnp.argmax(logits, -1) == labels)
        state = TrainState(
            step=state.step + 1,
            params=optax.apply_updates(state.params, changes),
            batch_stats=updates.get("batch_stats", state.batch_stats),
            opt_state=opt_state,
        )
        return state, {"loss": loss, "accuracy": accuracy}

    return jax.jit(step, donate_argnums=0)


def make_eval_step(
    module: nn.Module, perturb: Perturb | None, *, scale: float
) -> Callable:
    """Builds `(state, key, images, labels) -> number correct on one noisy copy each`."""

    def step(state, key, images, labels):
        images = images.astype(jnp.float32) / scale
        images = perturb_batch(key, images, perturb, share_noise=False)
        logits: Any = module.apply(state.variables, images, train=False)
        return jnp.sum(jnp.argmax(logits, -1) == labels)

    return jax.jit(step)
