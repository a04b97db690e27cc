"""The training loop: epochs over a data set, checkpoints, metrics, resumption.

Everything random is a function of the key, the seed, the epoch and the step, and a
checkpoint holds the whole state, so a run that is killed at any moment and started
again ends with the same weights and metrics, bit for bit, as one left alone.
"""

import logging
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from wsjax import data
from wsjax.console.progress import progress
from wsjax.console.signals import StopFlag
from wsjax.training import steps
from wsjax.training.checkpoints import Checkpoints, mark_diverged
from wsjax.training.metrics import MetricsWriter, read_metrics
from wsjax.training.objectives import CROSS_ENTROPY, Objective

_log = logging.getLogger("wsjax")

_LOG_EVERY = 50  # Steps between readings of the loss; each reading waits for it.


def train(
    workdir: pathlib.Path,
    module: Any,
    make_optimizer: Callable[[int], Any],
    perturb: steps.Perturb | Any | None,
    train_data: data.Source,
    test_data: data.Source,
    *,
    key: jax.Array,
    seed: int,
    batch_size: int,
    num_epochs: int,
    share_noise: bool = False,
    augment: Callable[[jax.Array, jax.Array], jax.Array] | None = None,
    checkpoint_every: int = 1,
    evaluate_every: int = 1,
    objective: Objective = CROSS_ENTROPY,
    start: Callable[[Any], Any] | None = None,
) -> steps.TrainState:
    """Trains a base classifier in `workdir`, going on from a checkpoint found there.

    Args:
      workdir: existing directory for checkpoints and metrics.
      module: Flax classifier.
      make_optimizer: total number of steps -> Optax transformation.
      perturb: noise on one image, a noise of `learned_noise`, or None.
      train_data: images and labels, in memory or streamed.
      test_data: likewise; only measured on, under one noisy copy per image.
      key: of initial weights, augmentation and noise; used up.
      seed: of the order of images.
      batch_size: images per step, over all devices.
      num_epochs: passes over the training set.
      share_noise: see `steps.perturb_batch`.
      augment: see `steps.make_train_step`.
      checkpoint_every: epochs between checkpoints; the last is always kept.
      evaluate_every: epochs between measurements on `test_data`.
      objective: loss and number of noisy copies per image.
      start: fresh parameters of the module -> parameters to start from, or None.

    Returns:
      The final state.

    Raises:
      runs.signals.Stopped: a signal asked to stop; a checkpoint was written.
      checkpoints.CheckpointError: `workdir` holds checkpoints of another model.
      FloatingPointError: the loss is not finite; no such state is kept, and the
        checkpoints before it leave the directory to another run.
      ValueError: a number is outside its range, or a batch fits neither the
        training set nor the devices.
    """
    check_settings(
        train_data,
        batch_size=batch_size,
        num_epochs=num_epochs,
        checkpoint_every=checkpoint_every,
        evaluate_every=evaluate_every,
    )
    feed = _Feed(train_data, batch_size, seed)
    total_steps = num_epochs * feed.steps_per_epoch
    optimizer = make_optimizer(total_steps)
    key_init, key_train, key_eval = jax.random.split(key, 3)
    checkpoints = Checkpoints(workdir)
    state = steps.init_state(
        key_init,
        module,
        train_data.image_shape,
        optimizer,
        perturb,
        start if checkpoints.latest_step is None else None,
    )
    state = _replicate(state)
    if checkpoints.latest_step is not None:
        state = checkpoints.restore(state)
        _log.info("Resuming at step %d of %d.", int(state.step), total_steps)
    update = steps.make_train_step(
        module,
        optimizer,
        perturb,
        scale=train_data.scale,
        share_noise=share_noise,
        augment=augment,
        objective=objective,
        total_steps=total_steps,
    )
    measure = steps.make_eval_step(module, perturb, scale=test_data.scale)
    metrics = MetricsWriter(workdir, int(state.step))
    # The host counts steps itself: reading state.step would wait for the device.
    step = int(state.step)
    bar = progress(total=total_steps, initial=step, unit="step", desc="train")
    first_epoch = step // feed.steps_per_epoch
    if step and not any(
        line["step"] == step and "epoch" in line for line in read_metrics(workdir)
    ):
        # Between epochs, the one before may have lost its measurement.
        first_epoch = (step - 1) // feed.steps_per_epoch
    try:
        with StopFlag() as stop:
            for epoch in range(first_epoch, num_epochs):
                start = step - epoch * feed.steps_per_epoch
                for images, labels in feed.batches(epoch, start):
                    state, values = update(state, key_train, images, labels)
                    step += 1
                    bar.update()
                    report = step % _LOG_EVERY == 0
                    if report or stop.raised or step % feed.steps_per_epoch == 0:
                        values = _finite(step, values)
                    if report:
                        # One batch, not a mean over steps: a resumed run has not
                        # seen those before it.
                        metrics.write(step, values)
                        bar.set_postfix(values, refresh=False)
                    if stop.raised:
                        checkpoints.save(state)
                        stop.check()
                last = epoch + 1 == num_epochs
                if last or (epoch + 1) % checkpoint_every == 0:
                    checkpoints.save(state)
                if last or (epoch + 1) % evaluate_every == 0:
                    radii = _radii(
                        measure, state, jax.random.fold_in(key_eval, epoch), test_data
                    )
                    found = {"noisy_accuracy": float(np.mean(radii > 0))}
                    under = "" if perturb is None else " under noise"
                    shown = f"test accuracy{under} {found['noisy_accuracy']:.4f}"
                    if objective.name == "radius":
                        found["median_radius"] = float(np.median(radii))
                        shown += f", median radius {found['median_radius']:.4g}"
                    metrics.write(step, {"epoch": epoch + 1, **found})
                    tqdm.write(f"epoch {epoch + 1}: {shown}")
    except FloatingPointError:
        mark_diverged(workdir)
        raise
    finally:
        bar.close()
        metrics.close()
        checkpoints.close()
    return state


def _finite(step, values):
    """Metrics of one step as Python numbers, refused if training has diverged."""
    values = {name: float(value) for name, value in jax.device_get(values).items()}
    if not np.isfinite(values["loss"]):
        raise FloatingPointError(
            f"The training loss became {values['loss']} by step {step}. Lower "
            f"config.train.learning_rate or the noise level and run again; this run's "
            f"checkpoints are kept until then."
        )
    return values


def _radii(measure, state, key, test_data, batch_size=500):
    """`[N]` radii of the right answers on one noisy copy of each test image."""
    radii = []
    for index, (images, labels, _) in enumerate(test_data.batches(batch_size)):
        missing = batch_size - len(labels)
        # The last batch keeps the compiled shape.
        images = np.pad(images, ((0, missing), (0, 0), (0, 0), (0, 0)), mode="edge")
        labels = np.pad(labels, (0, missing), mode="edge")
        found = measure(state, jax.random.fold_in(key, index), images, labels)
        radii.append(found[: batch_size - missing])
    return np.concatenate(jax.device_get(radii))


def check_settings(
    train_data: data.Source,
    *,
    batch_size: int,
    num_epochs: int,
    checkpoint_every: int = 1,
    evaluate_every: int = 1,
) -> None:
    """Refuses settings that `train` could not work with, before anything is written.

    Args:
      train_data: as in `train`.
      batch_size: images per step.
      num_epochs: see there, as are the others.
      checkpoint_every: see there.
      evaluate_every: see there.

    Raises:
      ValueError: a number is not positive, or a batch fits neither the training set
        nor the devices, or steps are too many to be counted.
    """
    for name, value in (
        ("batch_size", batch_size),
        ("num_epochs", num_epochs),
        ("checkpoint_every", checkpoint_every),
        ("evaluate_every", evaluate_every),
    ):
        if value < 1:
            raise ValueError(f"{name}={value} must be at least 1.")
    if batch_size > len(train_data):
        raise ValueError(
            f"batch_size={batch_size} is more than the {len(train_data)} "
            f"training images; lower config.train.batch_size."
        )
    total_steps = num_epochs * (len(train_data) // batch_size)
    if total_steps >= 2**31:
        raise ValueError(
            f"num_epochs={num_epochs} with batch_size={batch_size} make {total_steps:,} "
            f"steps, more than 2**31 - 1; lower config.train.num_epochs."
        )
    _batch_sharding(batch_size)


class _Feed:
    """Batches of a training set, on the devices, from any epoch and step."""

    def __init__(self, train_data, batch_size, seed):
        self._data, self._batch_size, self._seed = train_data, batch_size, seed
        self.steps_per_epoch = len(train_data) // batch_size
        self._sharding = _batch_sharding(batch_size)
        # Small sets live on the devices whole; a step then moves indices only.
        self._arrays = train_data.arrays and _replicate(train_data.arrays)

    def batches(self, epoch, start_step):
        """Yields `(images, labels)` of one epoch, from its step `start_step` on."""
        order = {"seed": self._seed, "epoch": epoch, "start_step": start_step}
        if self._arrays is None:
            for batch in self._data.train_batches(self._batch_size, **order):
                yield jax.device_put((batch.images, batch.labels), self._sharding)
            return
        for index in data.epoch_batches(len(self._data), self._batch_size, **order):
            index = jax.device_put(index.astype(np.int32), self._sharding)
            yield _gather(self._arrays, index)


@jax.jit
def _gather(arrays, index):
    return jax.tree.map(lambda array: array[index], arrays)


def _mesh():
    return jax.sharding.Mesh(
        np.array(jax.local_devices()),
        ("batch",),
        axis_types=(jax.sharding.AxisType.Auto,),
    )


def _batch_sharding(batch_size):
    """Splits batches over the local devices; on one device this is a no-op."""
    count = jax.local_device_count()
    if batch_size % count:
        raise ValueError(
            f"batch_size={batch_size} does not divide among {count} devices; make it "
            f"a multiple."
        )
    return jax.sharding.NamedSharding(_mesh(), jax.sharding.PartitionSpec("batch"))


def _replicate(tree):
    everywhere = jax.sharding.NamedSharding(_mesh(), jax.sharding.PartitionSpec())
    return jax.device_put(tree, everywhere)
