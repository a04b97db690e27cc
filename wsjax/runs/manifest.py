"""`run.json`: what produced the files of a run directory.

One entry per script, each with the config, seed, versions, devices and data checksum.
A script that finds an entry of its own with another config refuses to add rows to it.
"""

import datetime
import json
import os
import pathlib
import platform
import sys
from importlib import metadata
from typing import Any

import jax

_FILE = "run.json"
_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "scipy")


class ConfigMismatch(ValueError):
    """A run directory holds results of another config."""


def prepare_workdir(workdir: pathlib.Path) -> pathlib.Path:
    """Creates a run directory and checks at once that it can be written.

    Raises:
      OSError: it cannot; the message names the directory and the remedy.
    """
    workdir = pathlib.Path(workdir).absolute()
    probe = workdir / ".writable"
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        probe.write_text("")
        probe.unlink()
    except OSError as error:
        raise OSError(
            error.errno,
            f"--workdir={workdir} cannot be written ({error.strerror}); choose a "
            f"directory you own, on a disk with room",
        ) from error
    return workdir


def record(
    workdir: pathlib.Path,
    script: str,
    config: dict[str, Any],
    *,
    data_checksum: str,
    classifier: str | None = None,
    certifier: dict[str, Any] | None = None,
    num_classes: int | None = None,
    may_differ: tuple[str, ...] = (),
) -> None:
    """Writes this script's entry, or checks it against the one that is there.

    Args:
      workdir: the run directory.
      script: "train", "certify" or "attack".
      config: plain nested dict; what the results depend on.
      data_checksum: of the data the script reads.
      classifier: fingerprint of the classifier the results are about, if any; rows of
        two classifiers must not share a file.
      num_classes: of the classifier: bounds on the runner-up depend on it.
      certifier: what it recorded of itself; reports go by it.
      may_differ: dotted keys that do not change results (devices, block sizes).

    Raises:
      ConfigMismatch: the directory holds results of this script with another config
        or other data; the message lists each difference.
      ValueError: `run.json` is damaged.
    """
    entry = {
        "config": config,
        "seed": config.get("seed"),
        "data_checksum": data_checksum,
        "classifier": classifier,
        "certifier": certifier,
        "num_classes": num_classes,
        "versions": versions(),
        "devices": devices(),
        "command": [pathlib.Path(sys.argv[0]).name, *sys.argv[1:]],
        "started": datetime.datetime.now(datetime.UTC).isoformat("T", "seconds"),
    }
    # Infinite settings as text: JSON has no such numbers.
    entry = json.loads(json.dumps(entry), parse_constant=str)
    whole = read(workdir)
    before = whole.get(script)
    if before is not None:
        old, new = flat(_compared(before)), flat(_compared(entry))
        ignored = {f"config.{key}" for key in may_differ}
        differences = [
            f"{key}: there {old.get(key)!r}, now {new.get(key)!r}"
            for key in sorted(old.keys() | new.keys())
            if key not in ignored and old.get(key) != new.get(key)
        ]
        if differences:
            raise ConfigMismatch(
                f"{workdir} holds results of {script}.py with another config ("
                + "; ".join(differences)
                + "). Choose another --workdir; certify.py and attack.py find the "
                f"classifier with --trained={workdir}."
            )
        entry["started"] = before["started"]
        history = before.get("resumed", [])
        entry["resumed"] = history + [
            {"versions": entry["versions"], "devices": entry["devices"]}
        ]
    whole[script] = entry
    path = pathlib.Path(workdir) / _FILE
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(whole, indent=2) + "\n")
    os.replace(temporary, path)


def read(workdir: pathlib.Path) -> dict[str, Any]:
    """Content of `run.json`, empty when there is none.

    Raises:
      ValueError: it is damaged.
    """
    path = pathlib.Path(workdir) / _FILE
    if not path.exists():
        return {}
    try:
        whole = json.loads(path.read_text())
        if not isinstance(whole, dict):
            raise ValueError(f"a {type(whole).__name__}, no object")  # noqa: TRY004
    except ValueError as error:
        raise ValueError(
            f"{path} is damaged ({error}); delete or restore it."
        ) from error
    return whole


def versions() -> dict[str, str]:
    """Versions of Python and of the packages results may depend on."""
    found = {"python": platform.python_version()}
    for package in ("wsjax", *_PACKAGES):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def devices() -> list[str]:
    """Kind and number of the devices of all processes, and the local processor."""
    kinds = [device.device_kind for device in jax.devices()]
    return [f"{kinds.count(kind)} x {kind}" for kind in dict.fromkeys(kinds)] + [
        f"{os.cpu_count()} {platform.machine()} processors"
    ]


def _compared(entry):
    """What must agree between the runs that add rows to one directory."""
    return {
        "config": entry["config"],
        "data": entry["data_checksum"],
        "classifier": entry.get("classifier"),
        "certifier": entry.get("certifier"),
    }


def flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Nested dicts as one, its keys joined by dots."""
    if not isinstance(tree, dict):
        return {prefix: tree}
    whole = {}
    for key, value in tree.items():
        whole.update(flat(value, f"{prefix}.{key}" if prefix else key))
    return whole
