"""`run.json`: what produced the files of a run directory.

One entry per script, each with the config, seed, versions, devices and data checksum.
A script that finds an entry of its own with another config refuses to add rows to it.
What decides about results has a digest, which rows carry (`runs.rows`): an entry that
was lost or changed is noticed by what it belonged to.
"""

import datetime
import json
import os
import pathlib
import platform
import sys
from collections.abc import Callable
from importlib import metadata
from typing import Any

import jax

from wsjax import files
from wsjax.runs import rows

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
    num_images: int | None = None,
    may_differ: tuple[str, ...] = (),
    check: Callable[[str], Any] = lambda run: True,
) -> str:
    """Writes this script's entry, or checks it against the one that is there.

    Args:
      workdir: the run directory.
      script: "train", "certify" or "attack".
      config: plain nested dict; what the results depend on.
      data_checksum: of the data the script reads.
      classifier: fingerprint of the classifier the results are about, if any; rows of
        two classifiers must not share a file.
      certifier: what it recorded of itself; reports go by it.
      num_classes: of the classifier: bounds on the runner-up depend on it.
      num_images: of the data: indices of rows are below it.
      may_differ: dotted keys that do not change results (devices, block sizes).
      check: called with the digest before anything is written; tells whether there are
        results, and raises ValueError where they carry another. Without any, an entry
        is of a run that came to nothing, and stands in nobody's way.

    Returns:
      The entry's `digest`, for the results to carry.

    Raises:
      ConfigMismatch: the directory holds results of this script with another config
        or other data; the message lists each difference.
      ValueError: `run.json` is damaged.
      OSError: it cannot be written.
    """
    entry = {
        "config": config,
        "seed": config.get("seed"),
        "data_checksum": data_checksum,
        "classifier": classifier,
        "certifier": certifier,
        "num_classes": num_classes,
        "num_images": num_images,
        "may_differ": list(may_differ),
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
        # What may differ by now: a key may have been added to these since.
        old, new = (_compared(each, may_differ) for each in (before, entry))
        differences = [
            f"{key}: there {old.get(key)!r}, now {new.get(key)!r}"
            for key in sorted(old.keys() | new.keys())
            if old.get(key) != new.get(key)
        ]
        if differences and _has_results(check, digest(entry)):
            raise ConfigMismatch(
                f"{workdir} holds results of `wsjax {script.split()[0]}` with another "
                "config ("
                + "; ".join(differences)
                + "). Choose another --workdir; `wsjax certify` and `wsjax attack` find "
                f"the classifier with --trained={workdir}."
            )
        if differences:
            before = None
    if before is not None:
        entry["started"] = before["started"]
        history = before.get("resumed", [])
        entry["resumed"] = history + [
            {"versions": entry["versions"], "devices": entry["devices"]}
        ]
        # The rows that are there go by the list of their first run.
        entry["may_differ"] = before.get("may_differ", list(may_differ))
    run = digest(entry)
    check(run)
    whole[script] = entry
    text = json.dumps(whole, indent=2) + "\n"
    files.write_whole(pathlib.Path(workdir) / _FILE, text)
    return run


def _has_results(check, run):
    try:
        return check(run)
    except ValueError:  # Those of another run, or damaged.
        return True


def digest(entry: dict[str, Any]) -> str:
    """Of all that an entry says about what results depend on; see `rows.digest`."""
    return rows.digest(_compared(entry, entry["may_differ"]))


def read_rows(workdir: pathlib.Path, script: str, name: str) -> tuple[dict, rows.Rows]:
    """Rows, and the entry that they belong to.

    Args:
      workdir: a run directory.
      script: name of the entry.
      name: of the file.

    Returns:
      The entry and its `rows.Rows`. Those of version 0.2 do not say where they belong.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it is damaged, it has no entry, or it belongs to another one.
    """
    path = pathlib.Path(workdir) / name
    if path.exists() and script not in (whole := read(workdir)):
        raise ValueError(
            f"{path} has no entry {script!r} in {_FILE} beside it, which says what its "
            f"rows belong to. Restore {_FILE}, or run the script that wrote the rows "
            f"again with the same config."
        )
    entry = whole[script] if path.exists() else {}
    run = digest(entry) if "may_differ" in entry else None
    return entry, rows.read_rows(path, run)


def read(workdir: pathlib.Path) -> dict[str, Any]:
    """Content of `run.json`, empty when there is none.

    Raises:
      ValueError: it is damaged.
    """
    path = pathlib.Path(workdir) / _FILE
    if not path.exists():
        return {}
    try:
        whole = files.parse_json(path.read_bytes())
        for script, entry in whole.items():
            _check_types(script, entry)
    except ValueError as error:
        raise ValueError(
            f"{path} is damaged ({error}). Restore it, or move it away: results that "
            f"are there serve the config that they were made with, and no other."
        ) from error
    return whole


_TYPES: dict[str, Any] = {
    "config": dict,
    "seed": int | None,
    "data_checksum": str,
    "classifier": str | None,
    "certifier": dict | None,
    "num_classes": int | None,
    "num_images": int | None,
    "may_differ": list,
    "versions": dict,
    "devices": list,
    "command": list,
    "started": str,
    "resumed": list,
    "spread": float | int | None,  # Of version 0.2.
}
_ALWAYS = ("config", "data_checksum", "started")


def _check_types(script, entry):
    if not isinstance(entry, dict):
        raise ValueError(f"{script!r} is no object")  # noqa: TRY004
    for key in (*_ALWAYS, *entry):
        if key not in entry:
            raise ValueError(f"{script!r} has no {key!r}")
        if not isinstance(entry[key], _TYPES.get(key, object)):
            found = str(entry[key])[:40]
            raise ValueError(f"{key!r} of {script!r} is {found!r}")  # noqa: TRY004


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


def _compared(entry, may_differ):
    """What must agree between the runs that add rows to one directory, by dotted key."""
    found = {
        "config": entry["config"],
        "data": entry["data_checksum"],
        "classifier": entry.get("classifier"),
        "certifier": entry.get("certifier"),
        "num_classes": entry.get("num_classes"),
        "num_images": entry.get("num_images"),
    }
    ignored = {f"config.{key}" for key in may_differ}
    return {key: value for key, value in flat(found).items() if key not in ignored}


def flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Nested dicts as one, its keys joined by dots."""
    if not isinstance(tree, dict):
        return {prefix: tree}
    whole = {}
    for key, value in tree.items():
        whole.update(flat(value, f"{prefix}.{key}" if prefix else key))
    return whole
