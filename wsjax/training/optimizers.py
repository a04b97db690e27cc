"""Optimizers and learning-rate schedules, built from the `train` block of a config."""

import optax

SCHEDULES = ("constant", "cosine", "one_cycle")
OPTIMIZERS = ("sgd", "adam")


def make_optimizer(
    *,
    optimizer: str,
    learning_rate: float,
    total_steps: int,
    momentum: float = 0.9,
    weight_decay: float = 0.0,
    schedule: str = "constant",
) -> optax.GradientTransformation:
    """Builds an optimizer with its schedule.

    Args:
      optimizer: "sgd" with Nesterov-free momentum, weight decay added to the
        gradient of every parameter (as the paper's protocol has it); or "adam" with
        decoupled weight decay.
      learning_rate: peak of the schedule.
      total_steps: length of the schedule.
      momentum: of SGD.
      weight_decay: coefficient, 0 for none.
      schedule: "constant"; "cosine" from the peak to 0; or "one_cycle", up over the
        first 30 % of steps and down to almost 0.

    Returns:
      An Optax transformation.

    Raises:
      ValueError: an unknown name or a number outside its range.
    """
    if not learning_rate > 0:
        raise ValueError(f"learning_rate={learning_rate!r} is not positive.")
    if weight_decay < 0:
        raise ValueError(f"weight_decay={weight_decay!r} is negative.")
    if schedule == "constant":
        rate = learning_rate
    elif schedule == "cosine":
        rate = optax.cosine_decay_schedule(learning_rate, total_steps)
    elif schedule == "one_cycle":
        rate = optax.cosine_onecycle_schedule(total_steps, learning_rate)
    else:
        raise ValueError(f"schedule={schedule!r} is not one of {SCHEDULES}.")
    if optimizer == "sgd":
        return optax.chain(
            optax.add_decayed_weights(weight_decay), optax.sgd(rate, momentum)
        )
    if optimizer == "adam":
        return optax.adamw(rate, weight_decay=weight_decay)
    raise ValueError(f"optimizer={optimizer!r} is not one of {OPTIMIZERS}.")
