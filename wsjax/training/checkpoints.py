"""Checkpoints of training runs, kept by Orbax, and classifiers restored from them.

Orbax writes to a temporary directory and renames it, so a checkpoint exists whole or
not at all. Beside the arrays lies what they belong to (model, data set, image shape),
and restoring into anything else is refused before any array is read.
"""

import contextlib
import errno
import hashlib
import json
import os
import pathlib
import shutil
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from wsjax import files
from wsjax.training.steps import TrainState

_FOLDER, _DESCRIPTION = "checkpoints", "classifier.json"
_DIGEST = "sha256"  # Of the arrays of a checkpoint, among its metadata.


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
            pathlib.Path(workdir).absolute() / _FOLDER,
            options=ocp.CheckpointManagerOptions(**options),
        )

    @property
    def latest_step(self) -> int | None:
        """Step of the newest checkpoint, None without one."""
        return self._manager.latest_step()

    def save(self, state: TrainState) -> None:
        """Writes a state under its step; returns once it is on disk.

        Raises:
          OSError: the disk is full or cannot be written; those before are kept.
        """
        step = int(state.step)
        if self.latest_step == step:
            return
        try:
            self._manager.save(
                step,
                args=ocp.args.StandardSave(state),
                custom_metadata={_DIGEST: fingerprint(state)},
            )
            self._manager.wait_until_finished()
        # TensorStore's errors are ValueErrors, and others of Orbax a bare Exception.
        except Exception as error:
            if not isinstance(error, OSError):
                full = "No space left on device" in str(error)
                number = errno.ENOSPC if full else errno.EIO
                error = OSError(number, os.strerror(number) if full else _reason(error))
            path = self._manager.directory / str(step)
            raise files.not_written(path, error) from error

    def restore(self, like: TrainState) -> TrainState:
        """Reads the newest checkpoint into the structure of `like`.

        Args:
          like: a state whose arrays give the shapes, dtypes and placement. Shapes
            without placement (`jax.eval_shape`) will do: the state then lies on the
            default device, wherever it was saved from.

        Returns:
          The saved state.

        Raises:
          CheckpointError: there is none, or its arrays have other shapes, or are not
            those that were saved.
        """
        if self.latest_step is None:
            raise CheckpointError(
                f"There is no checkpoint in {self._manager.directory}. Run "
                f"`wsjax train` with this config and workdir first."
            )
        abstract = jax.tree.map(_with_placement, like)
        try:
            restored = self._manager.restore(
                self.latest_step, args=ocp.args.StandardRestore(abstract)
            )
        # Orbax and TensorStore raise whatever they like, a bare Exception included.
        except Exception as error:
            raise self._damaged(
                f"does not fit this config's model or optimizer, or is damaged "
                f"({_reason(error)}). If it is damaged,"
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
        self._check_digest(restored)
        # Without placement, not tied to a device either.
        return jax.tree.map(
            lambda x, y: y if _placement(x) else jnp.asarray(np.asarray(y)),
            like,
            restored,
        )

    def _check_digest(self, restored):
        # TensorStore has a checksum for its indices, none for large arrays.
        saved = None
        with contextlib.suppress(Exception):
            saved = self._manager.metadata(self.latest_step).custom_metadata[_DIGEST]
        if saved not in (None, fingerprint(restored)):
            raise self._damaged("was changed after it was written:")

    def _damaged(self, how):
        return CheckpointError(
            f"The checkpoint of step {self.latest_step} in {self._manager.directory} "
            f"{how} delete the folder {self.latest_step} there and run `wsjax train` again."
        )

    def close(self) -> None:
        """Closes; what could not be written, `save` has told."""
        with contextlib.suppress(Exception):
            self._manager.close()


def fingerprint(*parts: Any) -> str:
    """Hex SHA-256 of the arrays of classifiers, noise laws and the like.

    Shapes and dtypes are included.
    """
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(parts):
        array = np.ascontiguousarray(leaf)
        digest.update(f"{array.dtype}{array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def _reason(error):
    """One line, without the storage specification that TensorStore appends."""
    reason, _, _ = str(error).strip().partition(" [tensorstore_spec")
    return reason.partition("\n")[0]


def _placement(leaf):
    return getattr(leaf, "sharding", None)


def _with_placement(leaf):
    # Without one, Orbax insists on the very devices the state was saved from.
    anywhere = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.ShapeDtypeStruct(
        leaf.shape, leaf.dtype, sharding=_placement(leaf) or anywhere
    )


def write_description(
    workdir: pathlib.Path, description: dict[str, Any], run: str
) -> None:
    """Records what a run's checkpoints belong to; see `check_description`, `check_run`.

    Those of another run that diverged are deleted before.
    """
    workdir = pathlib.Path(workdir)
    found, diverged = _owner(workdir)
    if diverged and found != run:
        shutil.rmtree(workdir / _FOLDER)
    _describe(workdir, {**description, "run": run})


def mark_diverged(workdir: pathlib.Path) -> None:
    """Notes that the run has diverged: its checkpoints stand in no other's way."""
    path = pathlib.Path(workdir) / _DESCRIPTION
    if path.exists():
        _describe(workdir, {**_read_description(path), "diverged": True})


def check_run(workdir: pathlib.Path, run: str) -> bool:
    """Refuses to go on from checkpoints of another training run.

    Those of one that diverged are no reason: it would again.

    Args:
      workdir: a run directory.
      run: digest of what training depends on, as in `write_description`.

    Returns:
      Whether there are checkpoints of this run.

    Raises:
      CheckpointError: there are some, and they do not say that they belong to
        this run.
    """
    workdir = pathlib.Path(workdir)
    if not _any(workdir):
        return False
    found, diverged = _owner(workdir)
    if found != run:
        if diverged:
            return False
        raise CheckpointError(
            f"The checkpoints in {workdir} belong to another training run ({found}, "
            f"this one is {run}): another config or data set, or another version. "
            f"Choose another --workdir, or move them away."
        )
    return True


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
            f"`wsjax train` with this config and --workdir first, or name a published "
            f"checkpoint with --config.model.checkpoint=FILE.pth."
        )
    saved = _read_description(path)
    for key in ("run", "diverged"):
        saved.pop(key, None)
    if wrong := differences(saved, description):
        raise CheckpointError(
            f"The classifier in {workdir} is not the one this config describes: "
            + "; ".join(wrong)
            + ". Use the config it was trained with, or another --workdir."
        )


def _any(workdir):
    return any(path.name.isdigit() for path in (workdir / _FOLDER).glob("*"))


def _owner(workdir):
    """The run that has the checkpoints of a directory, and whether it diverged."""
    path = workdir / _DESCRIPTION
    found = _read_description(path) if path.exists() and _any(workdir) else {}
    return found.get("run"), found.get("diverged", False)


def _describe(workdir, description):
    text = json.dumps(description, indent=2) + "\n"
    files.write_whole(pathlib.Path(workdir) / _DESCRIPTION, text)


def _read_description(path):
    try:
        return files.parse_json(path.read_bytes())
    except ValueError as error:
        raise CheckpointError(f"{path} is damaged ({error}); restore it.") from error


def check_variables(
    source: str | pathlib.Path, variables: Any, module: Any, image_shape: Sequence[int]
) -> None:
    """Refuses variables that are not those of a module.

    Args:
      source: names where they come from.
      variables: of a Flax module, nested dicts of arrays.
      module: the one that shall use them.
      image_shape: `(H, W, C)`.

    Raises:
      CheckpointError: some are missing, too many, of another shape or no numbers; the
        message lists the first few.
    """
    image = jnp.zeros((1, *image_shape), jnp.float32)
    wanted = jax.eval_shape(module.init, jax.random.key(0), image)
    found, needed = (
        {
            jax.tree_util.keystr(path, simple=True, separator="/"): leaf
            for path, leaf in x
        }
        for x in map(jax.tree_util.tree_leaves_with_path, (variables, wanted))
    )
    wrong = [f"{name} is missing" for name in sorted(needed.keys() - found.keys())]
    wrong += [f"{name} is too much" for name in sorted(found.keys() - needed.keys())]
    for name in sorted(found.keys() & needed.keys()):
        a, b = found[name], needed[name]
        if a.shape != b.shape or np.asarray(a).dtype.kind != np.dtype(b.dtype).kind:
            wrong.append(f"{name} is {a.dtype}{a.shape}, not {b.dtype}{b.shape}")
        elif not np.isfinite(a).all():
            wrong.append(f"{name} has NaN or infinite values")
    if wrong:
        more = f"; {len(wrong) - 5} more" if len(wrong) > 5 else ""
        raise CheckpointError(
            f"{source} does not hold the weights of this config's model: "
            f"{'; '.join(wrong[:5])}{more}."
        )


def differences(saved: dict[str, Any], description: dict[str, Any]) -> list[str]:
    """A phrase for each key in which two descriptions of a classifier differ."""
    wanted = json.loads(json.dumps(description))
    return [
        f"{key}: trained {saved.get(key)!r}, config {wanted.get(key)!r}"
        for key in sorted(saved.keys() | wanted.keys())
        if saved.get(key) != wanted.get(key)
    ]
