"""Checkpoints of training runs, kept by Orbax, and classifiers restored from them.

Orbax writes to a temporary directory and renames it, so a checkpoint exists whole or
not at all. Beside the arrays lies what they belong to (model, data set, image shape),
and restoring into anything else is refused before any array is read.
"""

import json
import os
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from wsjax.training.steps import TrainState

_DESCRIPTION = "classifier.json"


class CheckpointError(ValueError):
    """A checkpoint is missing, or belongs to another architecture or data set."""


class Checkpoints:
    """The checkpoints of one run directory; the newest two are kept."""

    def __init__(self, workdir: pathlib.Path):
        """Opens (and creates, if needed) `workdir/checkpoints`.

        A process that is one of several reads by itself, and creates nothing.
        """
        options: dict[str, Any] = {"max_to_keep": 2}
        if jax.process_count() > 1:
            alone = jax.process_index()
            options |= {
                "create": False,
                "multiprocessing_options": ocp.options.MultiprocessingOptions(
                    primary_host=alone,
                    active_processes={alone},
                    barrier_sync_key_prefix=f"process_{alone}",
                ),
            }
        self._manager = ocp.CheckpointManager(
            pathlib.Path(workdir).absolute() / "checkpoints",
            options=ocp.CheckpointManagerOptions(**options),
        )

    @property
    def latest_step(self) -> int | None:
        """Step of the newest checkpoint, None without one."""
        return self._manager.latest_step()

    def save(self, state: TrainState) -> None:
        """Writes a state under its step; returns once it is on disk."""
        step = int(state.step)
        if self.latest_step != step:
            self._manager.save(step, args=ocp.args.StandardSave(state))
            self._manager.wait_until_finished()

    def restore(self, like: TrainState) -> TrainState:
        """Reads the newest checkpoint into the structure of `like`.

        Args:
          like: a state whose arrays give the shapes, dtypes and placement. Shapes
            without placement (`jax.eval_shape`) will do: the state then lies on the
            default device, wherever it was saved from.

        Returns:
          The saved state.

        Raises:
          CheckpointError: there is none, or its arrays have other shapes.
        """
        if self.latest_step is None:
            raise CheckpointError(
                f"There is no checkpoint in {self._manager.directory}. Run train.py "
                f"with this config and workdir first."
            )
        abstract = jax.tree.map(_with_placement, like)
        try:
            restored = self._manager.restore(
                self.latest_step, args=ocp.args.StandardRestore(abstract)
            )
        except (ValueError, KeyError, TypeError, FileNotFoundError) as error:
            # Without the storage specification that TensorStore appends.
            reason, _, _ = str(error).strip().partition(" [tensorstore_spec")
            raise CheckpointError(
                f"The checkpoint of step {self.latest_step} in "
                f"{self._manager.directory} does not fit this config's model or "
                f"optimizer, or is damaged ({reason.partition(chr(10))[0]}). If it is "
                f"damaged, delete the folder {self.latest_step} there and run "
                f"train.py again."
            ) from error
        shapes = [
            (x.shape, y.shape) for x, y in zip(*map(jax.tree.leaves, (like, restored)))
        ]
        if any(a != b for a, b in shapes):
            raise CheckpointError(
                f"The checkpoint of step {self.latest_step} in "
                f"{self._manager.directory} has arrays of other shapes than this "
                f"config's model."
            )
        # Without placement, not tied to a device either.
        return jax.tree.map(
            lambda x, y: y if _placement(x) else jnp.asarray(np.asarray(y)),
            like,
            restored,
        )

    def close(self) -> None:
        """Waits for pending writes and closes."""
        self._manager.close()


def _placement(leaf):
    return getattr(leaf, "sharding", None)


def _with_placement(leaf):
    # Without one, Orbax insists on the very devices the state was saved from.
    anywhere = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.ShapeDtypeStruct(
        leaf.shape, leaf.dtype, sharding=_placement(leaf) or anywhere
    )


def write_description(workdir: pathlib.Path, description: dict[str, Any]) -> None:
    """Records what a run's checkpoints belong to; see `check_description`."""
    path = pathlib.Path(workdir) / _DESCRIPTION
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(description, indent=2) + "\n")
    os.replace(temporary, path)


def check_description(workdir: pathlib.Path, description: dict[str, Any]) -> None:
    """Refuses checkpoints of another architecture or data set.

    Args:
      workdir: a run directory.
      description: what the caller's config describes, as in `write_description`.

    Raises:
      CheckpointError: nothing was trained there, or something else was; the
        message names each difference.
    """
    path = pathlib.Path(workdir) / _DESCRIPTION
    if not path.exists():
        raise CheckpointError(
            f"No trained classifier in {workdir}: {path.name} is missing. Run "
            f"train.py with this config and --workdir first, or name a published "
            f"checkpoint with --config.model.checkpoint=FILE.pth."
        )
    try:
        saved = json.loads(path.read_text())
    except ValueError as error:
        raise CheckpointError(f"{path} is damaged ({error}).") from error
    if wrong := differences(saved, description):
        raise CheckpointError(
            f"The classifier in {workdir} is not the one this config describes: "
            + "; ".join(wrong)
            + ". Use the config it was trained with, or another --workdir."
        )


def differences(saved: dict[str, Any], description: dict[str, Any]) -> list[str]:
    """A phrase for each key in which two descriptions of a classifier differ."""
    wanted = json.loads(json.dumps(description))
    return [
        f"{key}: trained {saved.get(key)!r}, config {wanted.get(key)!r}"
        for key in sorted(saved.keys() | wanted.keys())
        if saved.get(key) != wanted.get(key)
    ]
