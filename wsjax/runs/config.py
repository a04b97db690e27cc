"""Configs: what may stand in them, defaults, and errors that name the mistake.

Each block is a frozen dataclass; its fields are the settings, those without a default
are required. The blocks `certify` and `attack` have the settings of whatever certifiers
and attacks are registered, and `model` those of its Flax module.
"""

import dataclasses
import difflib
import inspect
from collections.abc import Callable
from typing import Any, TypeVar

import ml_collections
from ml_collections import config_dict

from wsjax.attacks.registry import METHODS
from wsjax.certifiers.registry import KINDS
from wsjax.runs import ranges
from wsjax.training.objectives import Objective

_T = TypeVar("_T")


class ConfigError(ValueError):
    """A config lacks a key, has one too many, or a value of a wrong type or range."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataBlock:
    """Which images.

    Attributes:
      name: name of the data set; "npz" and "folder" are your own.
      source: "files", the originals, or "tfds", prepared earlier.
      dir: folder of the files, or data_dir of tfds.
      stride: every stride-th test image is certified or attacked.
      start: index of the first of them.
      limit: most test images that are; 0 for all.
      train_limit: train on so many of the first images; 0 for all.
      image_size: side of the crop, in pixels (imagenet).
      resize: length of the short side before it (imagenet).
    """

    name: str
    source: str = "files"
    dir: str = ""
    stride: int = 1
    start: int = 0
    limit: int = 0
    train_limit: int = 0
    image_size: int = 224
    resize: int = 256

    def chosen(self, count: int) -> range:
        """Positions of the test images to work on, of `count`.

        Raises:
          ConfigError: `start` leaves none, or `stride` only that one.
        """
        for name, most in (("start", count - 1), ("stride", count)):
            value = getattr(self, name)
            if value > most:
                raise ConfigError(
                    f"config.data.{name}={value} is more than {most}: there are {count} "
                    f"test images."
                )
        indices = range(self.start, count, self.stride)
        return indices[: self.limit] if self.limit else indices


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelBlock:
    """The base classifier.

    Attributes:
      name: name of the network.
      checkpoint: a released file, or FILE.pth of the paper's authors; "" for what was
        trained in the run directory.
      unit: "pixels", or "mass" to divide each image by its mean pixel.
      num_classes: of the model, if not that of the data.
      fields: of its Flax module.
    """

    name: str
    checkpoint: str = ""
    unit: str = "pixels"
    num_classes: int | None = None
    fields: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SmoothingBlock:
    """The noise. One block serves all scripts, so they cannot disagree.

    Attributes:
      noise: its law; "learned_..." is trained with the classifier.
      ground_metric: "l1" or "l2", of all radii.
      sigma: standard deviation as a fraction of the image's mass; of every noise but the
        learned ones.
      certificate_scale: c = 1 / kappa of learned noise, in pixels x fraction of mass: a
        class probability p certifies the radius c Phi^-1(p).
      theorem: "tight", or "published", the bound of the paper (Laplace noise only).
      wrap: whether flow noise also crosses opposite borders of the image.
      gamma: exponent of power_law, and of the spectrum that learned noise starts from.
      waves: periods along each axis at the start (learned_view).
      bins: knots of the spectrum, 0 for every frequency (learned_spectrum).
      couple_channels: whether noise of different channels is dependent
        (learned_spectrum).
      wiener: whether the classifier sees the filtered picture (learned_spectrum).
      exact: whether image and noise meet as whole numbers when certifying, so that
        certificates hold for the program (`exact`).
    """

    noise: str
    ground_metric: str
    sigma: float = 0.0
    certificate_scale: float = 0.0
    theorem: str = "tight"
    wrap: bool = False
    gamma: float = 2.0
    waves: int = 4
    bins: int = 24
    couple_channels: bool = True
    wiener: bool = True
    exact: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainBlock:
    """How the classifier is trained, and learned noise with it.

    Attributes:
      noisy: False trains on clean images.
      share_noise: one draw per batch, as the paper's code does.
      objective: what is minimised; see `training.objectives.Objective`.
      noise_learning_rate: peak, for learned noise; 0 keeps it as it starts.
      potential_learning_rate: peak, for potentials, in pixels.
      bias_learning_rate: peak, for what is added to potentials, in the unit of radii.
      augment: how training images are changed.
      optimizer: "sgd", "adam", or "muon" for kernels of convolutions.
      adam_learning_rate: with "muon", the peak for all other parameters.
      learning_rate: peak, for whatever has no rate of its own.
      momentum: of "sgd".
      weight_decay: of the model's parameters.
      schedule: how all learning rates change in the course of training.
      batch_size: images of a step.
      num_epochs: passes over the training images.
      checkpoint_every: epochs between checkpoints.
      evaluate_every: epochs between evaluations on test images.
    """

    noisy: bool = True
    share_noise: bool = False
    objective: str = Objective.name
    copies: int = Objective.copies
    consistency: float = Objective.consistency
    mixing: float = Objective.mixing
    label_smoothing: float = Objective.label_smoothing
    attack_radius: float = Objective.attack_radius
    ball_radius: float = Objective.ball_radius
    ball_steps: int = Objective.ball_steps
    ball_inner_steps: int = Objective.ball_inner_steps
    ball_warmup: float = Objective.ball_warmup
    radius: float = Objective.radius
    temperature: float = Objective.temperature
    noise_learning_rate: float = 0.0
    potential_learning_rate: float = 0.0
    bias_learning_rate: float = 0.0
    augment: str = "none"
    optimizer: str = "sgd"
    adam_learning_rate: float = 0.0
    learning_rate: float
    momentum: float = 0.9
    weight_decay: float = 0.0
    schedule: str = "constant"
    batch_size: int
    num_epochs: int
    checkpoint_every: int = 1
    evaluate_every: int = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class CertifyBlock:
    """How images are certified: one kind of certifier.

    Attributes:
      method: kind of certifier; "" in a config is the one whose own setting is set
        (at_radii, max_radius_loss), or votes.
      settings: of this kind; see `wsjax.certifiers`.
    """

    method: str
    settings: dict[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class AttackBlock:
    """How images are attacked.

    Attributes:
      method: the attack.
      target: the plain classifier, the smoothed one, or both.
      pictures: successes drawn in the figure.
      n: most votes of each answer that counts (smoothed); clear ones take fewer.
      alpha: probability that one of them is not the most likely class.
      settings: of each attack, documented there; an empty ground_metric stands for that
        of the smoothing.
    """

    method: str = "flow"
    target: str = "both"
    pictures: int = 6
    n: int = 10_000
    alpha: float = 0.05
    settings: dict[str, dict[str, Any]]


# Keys that change how fast a result comes, not what it is.
MAY_DIFFER = (
    "data.dir",
    "data.source",
    "data.stride",
    "data.start",
    "data.limit",
    "certify.block_size",
    "certify.backend",
    "certify.groups",
    *(f"attack.{name}.batch_size" for name in METHODS),
    "attack.method",
    "attack.target",
    "attack.pictures",
    "train.checkpoint_every",
    "train.evaluate_every",
)


def _of_all_kinds():
    """Every setting that some kind of certifier has, with its default."""
    found: dict[str, Any] = {}
    for kind in KINDS.values():
        for key, default in kind.settings().items():
            assert found.setdefault(key, default) == default, (kind, key)
    return found


def _required(block):
    """Whether a block has settings without which nothing can be done."""
    return any(default is dataclasses.MISSING for default in _BLOCKS[block].values())


def _defaults(block, **more):
    fields = {
        field.name: field.default
        for field in dataclasses.fields(block)
        if field.name not in ("settings", "fields")
    }
    return {**fields, **more}


# Every key a config may hold, with its default, `MISSING` for none.
_BLOCKS: dict[str, dict[str, Any]] = {
    "data": _defaults(DataBlock),
    "model": _defaults(ModelBlock),
    "smoothing": _defaults(SmoothingBlock),
    "train": _defaults(TrainBlock),
    "certify": {"method": "", **_of_all_kinds()},
    "attack": _defaults(
        AttackBlock,
        **{
            name: {**method.defaults(), "ground_metric": ""}
            for name, method in METHODS.items()
        },
    ),
}


def default_of(key: str) -> Any:
    """Default of a setting by dotted key; `dataclasses.MISSING` where there is none."""
    found: Any = _BLOCKS
    for part in key.split("."):
        found = found.get(part, dataclasses.MISSING)
        if not isinstance(found, dict):
            break
    return found


# Blocks that are made of their settings as they are.
_PLAIN = {"data": DataBlock, "smoothing": SmoothingBlock, "train": TrainBlock}

# Settings of version 0.2 that are called otherwise now.
_RENAMED = {"certificate": "theorem"}


class Config:
    """A checked config: `config.train.batch_size`.

    Blocks with required settings may be left out as a whole; asking for one that is not
    there says so.

    Attributes:
      seed: of all that is random. The others are blocks: see their dataclasses.
    """

    seed: int
    data: DataBlock
    model: ModelBlock
    smoothing: SmoothingBlock
    train: TrainBlock
    certify: CertifyBlock
    attack: AttackBlock

    def __init__(self, seed: int, blocks: dict[str, Any]):
        """Holds the blocks; `resolve` makes them."""
        self.seed = seed
        vars(self).update(blocks)

    def __getattr__(self, name: str) -> Any:
        if name in _BLOCKS:
            raise ConfigError(
                f"config.{name} is missing from the config; this script needs it."
            )
        raise AttributeError(name)

    def plain(self, *blocks: str) -> dict[str, Any]:
        """Nested dict of the seed and of those of the blocks that are there."""
        found: dict[str, Any] = {"seed": self.seed}
        for name in blocks or _BLOCKS:
            if name in vars(self):
                block = dataclasses.asdict(getattr(self, name))
                inner = {**block.pop("fields", {}), **block.pop("settings", {})}
                found[name] = {**block, **inner}
        return found


def with_defaults(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """Adds every setting that has a default, so that the command line can change it.

    Args:
      config: what a config file sets; changed in place.

    Returns:
      The same object, to be returned by `get_config`.
    """
    if "seed" not in config:
        config.seed = 0
    for name, defaults in _BLOCKS.items():
        if name in config or not _required(name):
            _fill(config, name, defaults)
    return config


class _Block(ml_collections.ConfigDict):
    """Refuses True and False in place of a float: a `ConfigDict` makes 1.0 and 0.0 of them."""

    def __setitem__(self, key, value):
        if isinstance(value, bool) and isinstance(self.get(key), float):
            raise TypeError(f"{key} is a number, {value} is none.")
        super().__setitem__(key, value)


def _fill(config, name, defaults):
    given = config.get(name, {})
    if not isinstance(given, (dict, ml_collections.ConfigDict)):
        return  # A mistake, of which `resolve` tells.
    config[name] = block = _Block(given)
    for key, default in defaults.items():
        if isinstance(default, dict):
            _fill(block, key, default)
        elif key not in block and default is not dataclasses.MISSING:
            block[key] = config_dict.placeholder(int) if default is None else default


def resolve(config: ml_collections.ConfigDict | dict[str, Any]) -> Config:
    """Checks a config and fills in defaults.

    Args:
      config: what `get_config()` returned, with overrides applied.

    Returns:
      The `Config`.

    Raises:
      ConfigError: an unknown or missing key, with suggestions; or a value that is not
        in the range of its key (`ranges.RANGES`).
    """
    given = config.to_dict() if hasattr(config, "to_dict") else config
    if not isinstance(given, dict):
        raise ConfigError(
            f"get_config() returned {given!r}, which is no "
            f"ml_collections.ConfigDict of settings."
        )
    for key in given.keys() - {"seed", *_BLOCKS}:
        raise ConfigError(
            f"config.{key} is not a setting.{suggest(key, ('seed', *_BLOCKS))}"
        )
    found = {
        name: _resolve_block(given.get(name, {}), defaults, name)
        for name, defaults in _BLOCKS.items()
        if name in given or not _required(name)
    }
    if "data" not in found:
        raise ConfigError("config.data.name is missing from the config.")
    made: dict[str, Any] = {}
    if "model" in found:
        known = _BLOCKS["model"]
        fields = {k: v for k, v in found["model"].items() if k not in known}
        made["model"] = pick(ModelBlock, found["model"], fields=fields)
    for name, block in _PLAIN.items():
        if name in found:
            made[name] = block(**found[name])
    made["certify"] = _of_one_kind(found["certify"])
    settings = {name: found["attack"][name] for name in METHODS}
    made["attack"] = pick(AttackBlock, found["attack"], settings=settings)
    return Config(_read("seed", given.get("seed", 0), ranges.range_of("seed")), made)


def pick(function: Callable[..., _T], *blocks: Any, **more: Any) -> _T:
    """Calls a function with those of its arguments that blocks have.

    Args:
      function: or a class.
      *blocks: dataclasses or dicts, the last one with a name counts.
      **more: further arguments; these count before all.

    Returns:
      What it returns.
    """
    names = inspect.signature(function).parameters
    given: dict[str, Any] = {}
    for block in blocks:
        given |= block if isinstance(block, dict) else vars(block)
    return function(**{**{k: v for k, v in given.items() if k in names}, **more})


def _of_one_kind(block):
    """The `certify` block with the settings of the kind it means, and no others."""
    defaults = _BLOCKS["certify"]
    changed = [key for key in defaults if block[key] != defaults[key]]
    meant = [name for name, kind in KINDS.items() if kind.trigger in changed]
    name = block["method"] or next(iter(meant), next(iter(KINDS)))
    kind = KINDS[name]
    chosen = {key: block[key] for key in kind.settings()}
    for key in changed:
        if key not in (*chosen, *kind.ignores, "method"):
            raise ConfigError(
                f"config.certify.{key}={block[key]!r} means nothing to "
                f"config.certify.method={name!r}; set it to {defaults[key]!r}."
            )
    return CertifyBlock(method=name, settings=chosen)


def _resolve_block(given, defaults, path):
    if not isinstance(given, dict):
        raise ConfigError(
            f"config.{path} should be a block of settings, got {given!r}."
        )
    for key in given.keys() - defaults.keys():
        if path != "model":
            raise ConfigError(
                f"config.{path}.{key} is not a setting.{suggest(key, defaults)}"
            )
    resolved = {}
    for key, default in defaults.items():
        name = f"{path}.{key}"
        if isinstance(default, dict):
            resolved[key] = _resolve_block(given.get(key, {}), default, name)
        elif key in given:
            resolved[key] = _read(name, given[key], ranges.range_of(name, default))
        elif default is dataclasses.MISSING:
            raise ConfigError(f"config.{name} is missing from the config.")
        else:
            resolved[key] = default
    for key in given.keys() - defaults.keys():
        # Those of the model's own; which of them it has, it says itself.
        allowed = ranges.range_of(f"model.{resolved['name']}.{key}")
        resolved[key] = _read(f"model.{key}", given[key], allowed)
    return resolved


def _read(key, value, allowed):
    """A setting as it is used; ConfigError unless it is in its range."""
    try:
        return allowed.read(f"config.{key}", value) if allowed else value
    except ValueError as error:
        raise ConfigError(str(error)) from error


def suggest(key: str, known) -> str:
    """A sentence with the closest known keys, or with all of them."""
    close = difflib.get_close_matches(_RENAMED.get(key, key), known, n=2)
    if close:
        return f" Did you mean {' or '.join(close)}?"
    return f" Settings there: {', '.join(known)}."
