"""A trained classifier, with its noise if any, in one file that holds no code.

`classifier.safetensors` has the arrays of the noise law (with the data statistics that
its filter was made from), those of the classifier, and as text what they belong to and
what they claim. Nothing of the claim is trusted: `kappa` is computed anew from the
arrays, and a file whose claim says otherwise is refused. For a network that needs no
noise it has whole numbers, whose slopes and norms are checked in exact arithmetic.
"""

import json
import pathlib
from typing import Any, NamedTuple

import numpy as np
from flax import traverse_util
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as to_bytes

from wsjax import files, gaussian
from wsjax.certificates import ProbabilityScores
from wsjax.network import LipschitzNetwork, Rows
from wsjax.noise import NoiseLaw
from wsjax.smoothing import gaussian_scores
from wsjax.training.checkpoints import CheckpointError, differences, fingerprint

NAME = "classifier.safetensors"
_FORMAT = "wsjax classifier 1"
_NETWORK_FORMAT = "wsjax network 1"
_FOR = {
    _FORMAT: ": it is for a config whose noise is learned, such as mnist",
    _NETWORK_FORMAT: ": it is for model.name='potentials', as in mnist_potentials",
}
# Of the arrays; files of before there was one are taken as they are.
_DIGEST = "sha256"
_LAWS = {
    law.__name__: law for law in (gaussian.ColouredGaussian, gaussian.GaussianView)
}

# Two machines may differ in the last digits of a float64 sum, not in more.
_AGREEMENT = 1e-9


class Artefact(NamedTuple):
    """What a file holds.

    Attributes:
      law: the noise, one of `gaussian.ColouredGaussian`, `gaussian.GaussianView`.
      variables: of the Flax module, `{"params": ..., ...}`.
      description: what the classifier belongs to, as `experiment.description` tells.
      scores: what probabilities under the law are worth, computed from its arrays, for
        the ground metric that the file names.
      provenance: config, seed, versions and devices of the training run.
    """

    law: NoiseLaw
    variables: dict[str, Any]
    description: dict[str, Any]
    scores: ProbabilityScores
    provenance: dict[str, Any]


def save(path: pathlib.Path, artefact: Artefact) -> None:
    """Writes a file, whole or not at all.

    Args:
      path: to write; replaced if it exists.
      artefact: what `scores` say is written as the file's claim.

    Raises:
      OSError: the disk is full or cannot be written.
    """
    arrays = {
        f"noise/{name}": np.ascontiguousarray(value)
        for name, value in vars(artefact.law).items()
        if isinstance(value, np.ndarray)
    }
    flat = traverse_util.flatten_dict({"variables": artefact.variables}, sep="/")
    arrays |= {key: np.asarray(value, order="C") for key, value in flat.items()}
    text = {
        "format": _FORMAT,
        "law": type(artefact.law).__name__,
        "description": json.dumps(artefact.description),
        "claim": json.dumps(
            {
                "ground_metric": artefact.scores.ground_metric,
                "kappa": 1.0 / artefact.scores.scale,
            }
        ),
        "provenance": json.dumps(artefact.provenance),
    }
    _write(path, arrays, text)


def save_network(
    path: pathlib.Path,
    network: LipschitzNetwork,
    description: dict[str, Any],
    provenance: dict[str, Any],
) -> None:
    """Writes a network that needs no noise, whole or not at all.

    Args:
      path: to write; replaced if it exists.
      network: its weights.
      description: as in `Artefact`.
      provenance: what tells of its training.

    Raises:
      OSError: the disk is full or cannot be written.
    """
    arrays = {"potentials": network.potentials, "offsets": network.offsets}
    layers = (*network.hidden, network.last)
    for number, rows in enumerate(layers):
        arrays |= {f"rows_{number}": rows.units, f"bias_{number}": rows.bias}
    claim = {
        "exponent": network.exponent,
        "exponents": [rows.exponent for rows in layers],
        "groups": network.groups,
        "pieces": network.pieces,
        "ground_metric": network.ground_metric,
    }
    text = {
        "format": _NETWORK_FORMAT,
        "description": json.dumps(description),
        "network": json.dumps(claim),
        "provenance": json.dumps(provenance),
    }
    _write(path, {k: np.ascontiguousarray(v) for k, v in arrays.items()}, text)


def is_network(path: pathlib.Path) -> bool:
    """Whether a file says that it holds a network that needs no noise.

    Args:
      path: of `save` or `save_network`.

    Returns:
      False too where there is no such file: reading it tells what is wrong.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            return (file.metadata() or {}).get("format") == _NETWORK_FORMAT
    except (SafetensorError, OSError):
        return False


def description_of(path: pathlib.Path) -> dict[str, Any]:
    """What the network in a file belongs to, as in `Artefact`.

    Raises:
      CheckpointError: as `load_network`.
    """
    return files.parse_json(_read(path, _NETWORK_FORMAT)[1]["description"])


def load_network(
    path: pathlib.Path, description: dict[str, Any] | None = None
) -> LipschitzNetwork:
    """Reads a network; what its certificates rest on is checked in exact arithmetic.

    Args:
      path: written by `save_network`.
      description: what the caller's config describes; None for any.

    Returns:
      The `LipschitzNetwork`.

    Raises:
      CheckpointError: there is no such file, it is damaged or of another format, a
        slope or row is larger than one, or it belongs to another model or data set;
        the message says which.
    """
    path = pathlib.Path(path)
    arrays, text = _read(path, _NETWORK_FORMAT)
    try:
        claim, about = (
            files.parse_json(text[key]) for key in ("network", "description")
        )
        *hidden, last = (
            Rows(arrays[f"rows_{number}"], int(exponent), arrays[f"bias_{number}"])
            for number, exponent in enumerate(claim["exponents"])
        )
        network = LipschitzNetwork(
            arrays["potentials"],
            int(claim["exponent"]),
            arrays["offsets"],
            tuple(hidden),
            last,
            groups=tuple(map(int, claim["groups"])),
            pieces=int(claim["pieces"]),
            ground_metric=claim["ground_metric"],
        )
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{path} is no network that certifies, or was changed ({error}) Do not "
            f"use this file."
        ) from error
    _check_description(path, about, description)
    return network


def _check_description(path, stored, described):
    if described is not None and (wrong := differences(stored, described)):
        raise CheckpointError(
            f"{path} is not the classifier this config describes: {'; '.join(wrong)}."
        )


def _write(path, arrays, text):
    text = {**text, _DIGEST: fingerprint(arrays)}
    files.write_whole(path, _in_order(to_bytes(arrays, text)))


def _in_order(content):
    """The same file with its header sorted: safetensors itself shuffles the text."""
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:start])
    sorted_ = json.dumps(header, sort_keys=True, separators=(",", ":")).encode()
    sorted_ += b" " * (-len(sorted_) % 8)  # Arrays begin at a multiple of eight.
    return len(sorted_).to_bytes(8, "little") + sorted_ + content[start:]


def _read(path, expected):
    """Arrays and text of a file of a format."""
    if not path.exists():
        raise CheckpointError(
            f"There is no {path}. `wsjax train` writes it at the end: run "
            f"it to the end with this config and workdir, or name a released file "
            f"with --config.model.checkpoint=FILE.safetensors."
        )
    try:
        with safe_open(path, framework="numpy") as file:
            text = file.metadata() or {}
            found = text.get("format")
            if found != expected:
                told = f"its format is {found!r}, not {expected!r}"
                raise ValueError(told + _FOR.get(found or "", ""))
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    # Types that NumPy lacks, such as bfloat16, are a TypeError.
    except (SafetensorError, OSError, ValueError, TypeError) as error:
        raise CheckpointError(
            f"{path} is no classifier of this program, or is damaged ({error})."
        ) from error
    if text.get(_DIGEST) not in (None, fingerprint(arrays)):
        raise CheckpointError(
            f"{path} is damaged: its arrays are not those that were written. Restore it, "
            f"or run `wsjax train` again."
        )
    return arrays, text


def load(path: pathlib.Path, description: dict[str, Any]) -> Artefact:
    """Reads a file and checks everything it says.

    Args:
      path: written by `save`.
      description: what the caller's config describes.

    Returns:
      The `Artefact`.

    Raises:
      CheckpointError: as `read`, or it belongs to another model or data set; the
        message says which.
    """
    stored = read(path)
    _check_description(path, stored.description, description)
    return stored


def read(path: pathlib.Path) -> Artefact:
    """Reads a file and checks its claim, whatever classifier it is.

    Args:
      path: written by `save`.

    Returns:
      The `Artefact`.

    Raises:
      CheckpointError: there is no such file, it is damaged or of another format, or
        it claims what its noise does not give; the message says which.
    """
    path = pathlib.Path(path)
    arrays, text = _read(path, _FORMAT)
    try:
        law = _LAWS[text["law"]](**_below("noise/", arrays))
        about, claim, provenance = (
            files.parse_json(text[key])
            for key in ("description", "claim", "provenance")
        )
        if not isinstance(provenance["config"]["smoothing"]["noise"], str):
            raise ValueError("its provenance names no noise")  # noqa: TRY004
        nested = _nested(_below("variables/", arrays))
        metric, claimed = str(claim["ground_metric"]), float(claim["kappa"])
        scores = gaussian_scores(law, law.image_shape, metric)
        found = 1.0 / scores.scale
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{path} is no classifier of this program, or is damaged ({error})."
        ) from error
    if not abs(found - claimed) <= _AGREEMENT * found:
        raise CheckpointError(
            f"{path} claims kappa={claimed!r} ({metric}), but its noise gives {found!r}. "
            f"One of the two was changed after training; do not use this file."
        )
    return Artefact(law, nested, about, scores, provenance)


def _nested(arrays):
    """Dicts of dicts, by the parts of names."""
    folders = {
        "/".join(parts[:length])
        for parts in (name.split("/") for name in arrays)
        for length in range(1, len(parts))
    }
    if clash := folders & arrays.keys():
        raise ValueError(f"{min(clash)!r} is both an array and a group of them")
    return traverse_util.unflatten_dict(arrays, sep="/")


def _below(prefix, arrays):
    """Those whose names begin so, by the rest of their names."""
    found = {name: value for name, value in arrays.items() if name.startswith(prefix)}
    return {name.removeprefix(prefix): value for name, value in found.items()}
