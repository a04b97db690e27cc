"""Released classifiers by name: each with its certifier, and a card that tells of it.

A card is `NAME.json` beside `NAME.safetensors`, and says what the classifier is for and
what it certifies. Its numbers are computed from rows (`benchmarks/cards.py`), and the
checksum of the file is compared with the card's whenever it is loaded.
"""

import dataclasses
import difflib
import functools
import hashlib
import json
import os
import pathlib
from collections.abc import Callable
from typing import Any

import jax

import wsjax
from wsjax import models
from wsjax.certifiers.base import Certificate, Certifier
from wsjax.certifiers.lipschitz import LipschitzScores
from wsjax.certifiers.votes import FixedVotes
from wsjax.fast_random import make_key
from wsjax.runs import artefact, config, experiment
from wsjax.smoothing import gaussian_smoothing

_PACKAGE = pathlib.Path(wsjax.__file__).parent

# What every card has; `benchmarks/cards.py` computes them.
KEYS = (
    *("name", "description", "kind", "data", "image_shape", "ground_metric", "scale"),
    *("config", "settings", "sha256", "licence", "limits"),
    *("images", "accuracy", "median_radius", "mean_radius", "curve", "attack"),
    *("alpha", "n0", "n", "commands", "versions", "devices"),
)


def folder() -> pathlib.Path:
    """Where released classifiers are.

    Returns:
      What `WSJAX_RELEASED_DIR` says; else the folder that is installed with the package,
      or that of the checkout.
    """
    given = os.environ.get("WSJAX_RELEASED_DIR")
    if given:
        return pathlib.Path(given)
    installed = _PACKAGE / "released"
    return installed if installed.is_dir() else _PACKAGE.parent / "released"


def names() -> list[str]:
    """Names of those that are there, with a card or without."""
    return sorted(path.stem for path in folder().glob("*.safetensors"))


def read_card(path: pathlib.Path) -> dict[str, Any]:
    """The card of a classifier.

    Args:
      path: `NAME.json`.

    Returns:
      Its content, see `KEYS`.

    Raises:
      ValueError: it is damaged, or lacks a key.
      FileNotFoundError: there is none.
    """
    try:
        card = json.loads(path.read_text())
        missing = sorted({*KEYS} - {*card})
    except (ValueError, TypeError, RecursionError) as error:
        raise ValueError(
            f"{path} is no card of a classifier ({type(error).__name__}); restore it, or "
            f"make it anew: python benchmarks/cards.py --data=FOLDER {path.stem}"
        ) from error
    if missing:
        raise ValueError(
            f"{path} lacks {', '.join(missing)}; restore it, or make it anew: python "
            f"benchmarks/cards.py --data=FOLDER {path.stem}"
        )
    return card


def card_of(path: pathlib.Path) -> dict[str, Any]:
    """The card beside a file; empty where there is none.

    Args:
      path: FILE.safetensors. That of a run directory has no card: what has its stem there
        tells of the checkpoints.

    Returns:
      As `read_card`.

    Raises:
      ValueError: the card is damaged, or lacks a key.
    """
    about = path.with_suffix(".json")
    has_card = about.exists() and path.name != artefact.NAME
    return read_card(about) if has_card else {}


@dataclasses.dataclass(frozen=True, repr=False)
class Released:
    """A released classifier.

    Attributes:
      name: of its file.
      classify: images `[B, H, W, C]`, pixels in [0, 1], to logits `[B, K]`: the base
        classifier, or the scores in float32 of a network that needs no noise.
      certifier: what certifies images, as it was released (n0, n and alpha for votes).
      card: what is known of it; empty for a file that has none.
    """

    name: str
    classify: Callable[[jax.Array], jax.Array]
    certifier: Certifier
    card: dict[str, Any]

    def __repr__(self):
        kind = type(self.certifier).__name__
        about = self.card.get("description", "no card")
        return f"Released({self.name!r}, {kind}: {about})"

    def certify(self, image: Any, key: jax.Array | None = None) -> Certificate:
        """Certifies one image.

        Args:
          image: `[H, W, C]` float, pixels in [0, 1].
          key: for votes; default `make_key(0)`, the same for each image.

        Returns:
          The `Certificate`.

        Raises:
          ValueError: as `Certifier.certify`.
        """
        if not self.certifier.random:
            return self.certifier.certify(image)
        return self.certifier.certify(image, make_key(0) if key is None else key)


def load_model(name: str | os.PathLike) -> Released:
    """A released classifier and its certifier.

    Args:
      name: such as "mnist_potentials" or "mnist-potentials" (`wsjax models` lists them),
        or the path of a file FILE.safetensors.

    Returns:
      The `Released`.

    Raises:
      ValueError: there is none of this name, or its checksum is not that of its card.
      CheckpointError: the file is damaged; see `artefact.read`.
      FileNotFoundError: there is no such file.
    """
    path = find(name)
    card = card_of(path)
    if card and card["sha256"] != checksum(path):
        raise ValueError(
            f"{path} is not the file that {path.stem}.json tells of: its checksum (sha256) is "
            f"{checksum(path)[:12]}..., the card says {card['sha256'][:12]}.... Restore "
            f"the file, or delete the card to load it as it is."
        )
    if artefact.is_network(path):
        network = artefact.load_network(path)
        return Released(path.stem, network.on_device(), LipschitzScores(network), card)
    stored = artefact.read(path)
    module = _module(stored.description)
    classify = models.classifier(module, stored.variables)
    shape = tuple(stored.description["image_shape"])
    smooth = gaussian_smoothing(stored.law, shape, stored.scores.ground_metric)
    votes = {key: card[key] for key in ("n0", "n", "alpha") if card}
    certifier = FixedVotes(classify, smooth, use_runner_up="auto", **votes)
    return Released(path.stem, classify, certifier, card)


def find(name: str | os.PathLike) -> pathlib.Path:
    """The file of a released classifier.

    Args:
      name: as in `load_model`.

    Returns:
      Its path; that of a path is itself.

    Raises:
      ValueError: there is none of this name.
    """
    path = pathlib.Path(name)
    if path.suffix == ".safetensors":
        return path
    known, stem = names(), str(name).replace("-", "_")
    if stem not in known:
        close = difflib.get_close_matches(stem, known, n=2)
        meant = (
            f"Did you mean {' or '.join(close)}?" if close else f"There are {known}."
        )
        raise ValueError(
            f"name={str(name)!r} is no released classifier in {folder()}. {meant} A path "
            f"ends in .safetensors."
        )
    return folder() / f"{stem}.safetensors"


def describe(path: pathlib.Path) -> dict[str, Any]:
    """What a file says of itself.

    Args:
      path: FILE.safetensors.

    Returns:
      `kind` ("potentials" or "smoothed"), `data`, `image_shape`, `ground_metric`, and
      `scale`, the certificate scale c of the noise, None without noise.

    Raises:
      CheckpointError: as `artefact.read`.
    """
    if artefact.is_network(path):
        network, about = artefact.load_network(path), artefact.description_of(path)
        metric, kind, scale = network.ground_metric, "potentials", None
    else:
        stored = artefact.read(path)
        metric, scale = stored.scores.ground_metric, stored.scores.scale
        about, kind = stored.description, "smoothed"
    return {
        "kind": kind,
        "data": about["data"],
        "image_shape": about["image_shape"],
        "ground_metric": metric,
        "scale": scale,
    }


def checksum(path: pathlib.Path) -> str:
    """SHA-256 of a file, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def cards() -> list[dict[str, Any]]:
    """The cards of all that are there, in the order of their names."""
    paths = (folder() / f"{name}.json" for name in names())
    return [read_card(path) for path in paths if path.exists()]


@functools.cache
def _modules(text):
    block = config.resolve(
        {"data": {"name": "digits"}, "model": json.loads(text)}
    ).model
    assert block.num_classes is not None  # A description always has them.
    return experiment.make_model(block, block.num_classes)


def _module(description):
    return _modules(json.dumps(description["model"], sort_keys=True))
