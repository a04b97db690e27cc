"""Optimizers and learning-rate schedules, built from the `train` block of a config."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import optax
from optax import contrib

SCHEDULES = ("constant", "cosine", "one_cycle")
OPTIMIZERS = ("sgd", "adam", "muon")


def make_optimizer(
    *,
    optimizer: str,
    learning_rate: float,
    total_steps: int,
    momentum: float = 0.9,
    weight_decay: float = 0.0,
    adam_learning_rate: float = 0.0,
    schedule: str = "constant",
    noise_learning_rate: float | None = None,
    rates: Mapping[str, float] | None = None,
    project: Callable[[Any], Any] | None = None,
) -> optax.GradientTransformation:
    """Builds an optimizer with its schedule.

    Args:
      optimizer: "sgd" with Nesterov-free momentum, weight decay added to the
        gradient of every parameter (as the paper's protocol has it); "adam" with
        decoupled weight decay; or "muon", which makes the update of each kernel of a
        convolution orthogonal, and is Adam with Nesterov's momentum for all others.
      learning_rate: peak of the schedule.
      total_steps: length of the schedule.
      momentum: of SGD.
      weight_decay: coefficient, 0 for none.
      adam_learning_rate: peak for what "muon" leaves to Adam.
      schedule: "constant"; "cosine" from the peak to 0; or "one_cycle", up over the
        first 30 % of steps and down to almost 0.
      noise_learning_rate: peak for the parameters of learned noise, by Adam without
        decay on the same schedule; 0 leaves them as they are; None where there are
        none.
      rates: peaks for parameters of the model whose names begin so, if they have
        their own.
      project: applied to the model's parameters after each update, or None.

    Returns:
      An Optax transformation; of `{"model": ..., "noise": ...}` with a
      `noise_learning_rate`, else of the model's parameters.

    Raises:
      ValueError: an unknown name or a number outside its range.
    """
    if not learning_rate > 0:
        raise ValueError(f"learning_rate={learning_rate!r} is not positive.")
    if weight_decay < 0:
        raise ValueError(f"weight_decay={weight_decay!r} is negative.")
    if schedule not in SCHEDULES:
        raise ValueError(f"schedule={schedule!r} is not one of {SCHEDULES}.")

    def at(peak):
        rate = _rate(schedule, peak, total_steps)
        if optimizer == "sgd":
            return optax.chain(
                optax.add_decayed_weights(weight_decay), optax.sgd(rate, momentum)
            )
        if optimizer == "muon":
            return contrib.muon(
                rate,
                weight_decay=weight_decay,
                adam_weight_decay=weight_decay,
                adam_learning_rate=_rate(schedule, adam_learning_rate, total_steps),
                muon_weight_dimension_numbers=_convolutions,
            )
        return optax.adamw(rate, weight_decay=weight_decay)

    if optimizer not in OPTIMIZERS:
        raise ValueError(f"optimizer={optimizer!r} is not one of {OPTIMIZERS}.")
    if optimizer == "muon" and not adam_learning_rate > 0:
        raise ValueError(
            f'adam_learning_rate={adam_learning_rate!r} is not positive: optimizer="muon" '
            f"is for kernels of convolutions, and Adam for all other parameters."
        )
    model = at(learning_rate)
    if rates:
        for name, peak in rates.items():
            if not peak > 0:
                raise ValueError(
                    f"The learning rate {peak!r} of {name} is not positive."
                )
        each = {name: at(peak) for name, peak in rates.items()}
        model = optax.partition({"": model, **each}, functools.partial(_begin, rates))
    if project is not None:
        model = projected(model, project)
    if noise_learning_rate is None:
        return model
    if not noise_learning_rate >= 0:
        raise ValueError(f"noise_learning_rate={noise_learning_rate!r} is negative.")
    noise = optax.set_to_zero()
    if noise_learning_rate > 0:
        noise = optax.adam(_rate(schedule, noise_learning_rate, total_steps))
    parts = {"model": "model", "noise": "noise"}
    return optax.partition({"model": model, "noise": noise}, parts)


def projected(
    optimizer: optax.GradientTransformation, project: Callable[[Any], Any]
) -> optax.GradientTransformation:
    """An optimizer whose updates end where `project` takes them.

    Args:
      optimizer: of parameters.
      project: parameters -> parameters.

    Returns:
      The transformation; parameters have to be passed to its `update`.
    """

    def update(gradients, state, params=None):
        changes, state = optimizer.update(gradients, state, params)
        after = project(optax.apply_updates(params, changes))
        return optax.tree.sub(after, params), state

    return optax.GradientTransformation(optimizer.init, update)


def _convolutions(params):
    """For each parameter which axes of it Muon takes as a matrix's, None for Adam."""
    matrix = contrib.MuonDimensionNumbers((0, 1, 2), (3,))
    return jax.tree.map(lambda x: matrix if x.ndim == 4 else None, params)


def _begin(beginnings, params):
    """For each parameter which of the beginnings its name has, "" for none."""
    return {
        name: next((b for b in beginnings if name.startswith(b)), "") for name in params
    }


def _rate(schedule, peak, total_steps):
    if schedule == "cosine":
        return optax.cosine_decay_schedule(peak, total_steps)
    if schedule == "one_cycle":
        return optax.cosine_onecycle_schedule(total_steps, peak)
    return peak
