"""Configs: what may stand in them, defaults, and errors that name the mistake."""

import difflib
from typing import Any, NamedTuple

import ml_collections
from ml_collections import config_dict

from wsjax.attacks.registry import METHODS
from wsjax.certifiers.registry import KINDS, get_kind


class Required(NamedTuple):
    """Stands in the schema for a key that has no default."""

    type: type


def _of_all_kinds():
    """Every setting that some kind of certifier has, with its default."""
    found: dict[str, Any] = {}
    for kind in KINDS.values():
        for key, default in kind.settings().items():
            assert found.setdefault(key, default) == default, (kind, key)
    return found


# Every key a config may hold; a value here is the default. One `smoothing` block
# serves training, certification and attack, so they cannot disagree.
_SCHEMA: dict[str, Any] = {
    "seed": 0,
    "data": {
        "name": Required(str),  # digits, mnist, fashion_mnist, cifar10, imagenet.
        "source": "files",  # "files" (the originals) or "tfds" (prepared earlier).
        "dir": "",  # Folder of the files, or data_dir of tfds.
        "stride": 1,  # Every stride-th test image is certified or attacked,
        "start": 0,  # from this one on,
        "limit": 0,  # at most this many; 0 for all.
        "train_limit": 0,  # Train on the first images only; 0 for all.
        "image_size": 224,  # ImageNet only: side of the crop,
        "resize": 256,  # and of the short side before it.
    },
    "model": {
        "name": Required(str),
        "checkpoint": "",  # FILE.pth of the paper's authors instead of training.
        "unit": "pixels",  # Or "mass": divide each image by its mean pixel.
        "num_classes": None,  # Anything else is a field of the Flax module.
    },
    "smoothing": {
        "noise": Required(str),
        "sigma": 0.0,  # Standard deviation; every noise but the learned ones,
        "certificate_scale": 0.0,  # which have c = 1 / kappa instead.
        "ground_metric": Required(str),
        "certificate": "tight",
        "wrap": False,
        "gamma": 2.0,  # Exponent of power_law; where learned noise starts from.
        "waves": 4,  # learned_view: periods along each axis at its start.
        "bins": 24,  # learned_spectrum: knots, 0 for every frequency;
        "couple_channels": True,  # dependent noise in different channels;
        "wiener": True,  # show the classifier the filtered picture.
    },
    "train": {
        "noisy": True,  # False trains on clean images.
        "share_noise": False,  # One draw per batch, as the paper's code does.
        # Or "consistency", "smooth_adversarial", "flow_adversarial".
        "objective": "cross_entropy",
        "copies": 1,  # Noisy copies of each image in a batch.
        "consistency": 5.0,  # Weight of the objective of that name.
        "attack_radius": 1.0,  # Of smooth_adversarial, in std. dev. of the noise.
        "ball_radius": 0.0,  # Of flow_adversarial, pixels x fraction of mass;
        "ball_steps": 7,  # its gradient steps, and iterations of the
        "ball_inner_steps": 5,  # projection after each;
        "ball_warmup": 0.3,  # fraction of training over which the radius grows.
        "noise_learning_rate": 0.0,  # Peak, for learned noise; 0 keeps it.
        "augment": "none",  # "crop_flip" or "affine".
        "optimizer": "sgd",
        "learning_rate": Required(float),
        "momentum": 0.9,
        "weight_decay": 0.0,
        "schedule": "constant",
        "batch_size": Required(int),
        "num_epochs": Required(int),
        "checkpoint_every": 1,
        "evaluate_every": 1,
    },
    # One kind of certifier, by name or by the setting that only it has; those of other
    # kinds are left alone. Documented there: `wsjax.certifiers`.
    "certify": {"method": "", **_of_all_kinds()},
    "attack": {
        "method": "flow",  # Or "sinkhorn", "capacity", "dual".
        "target": "both",  # "base", "smoothed" or "both".
        "pictures": 6,  # Successes drawn in the figure.
        "n": 10_000,  # Votes of the answers that count (smoothed),
        "alpha": 0.05,  # chance that one is not the most likely class.
        # Settings of each attack, documented there; an empty ground_metric stands for
        # that of the smoothing.
        **{
            name: {**method.defaults(), "ground_metric": ""}
            for name, method in METHODS.items()
        },
    },
}

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


class ConfigError(ValueError):
    """A config lacks a key, has one too many, or a value of a wrong type."""


def with_defaults(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """Adds every setting that has a default, so that the command line can change it.

    Args:
      config: what a config file sets; changed in place.

    Returns:
      The same object, to be returned by `get_config`.
    """
    _fill(config, _SCHEMA)
    return config


def _fill(block, schema):
    for key, default in schema.items():
        if isinstance(default, dict):
            if key not in block:
                block[key] = {}
            _fill(block[key], default)
        elif key not in block and not isinstance(default, Required):
            block[key] = config_dict.placeholder(int) if default is None else default


def resolve(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """Checks a config and fills in defaults.

    Args:
      config: what `get_config()` returned, with overrides applied.

    Returns:
      Nested dict with every key of the schema; `model` may hold more, the fields of
      its Flax module.

    Raises:
      ConfigError: an unknown or missing key, or a wrong type; with suggestions.
    """
    given = config.to_dict() if hasattr(config, "to_dict") else dict(config)
    resolved = _resolve_block(given, _SCHEMA, "config")
    return {**resolved, "certify": _of_one_kind(resolved["certify"])}


def _of_one_kind(block):
    """The `certify` block with the settings of the kind it means, and no others."""
    defaults = _SCHEMA["certify"]
    changed = [key for key in defaults if block[key] != defaults[key]]
    meant = [name for name, kind in KINDS.items() if kind.trigger in changed]
    name = block["method"] or next(iter(meant), next(iter(KINDS)))
    try:
        kind = get_kind(name)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    chosen = {key: block[key] for key in kind.settings()}
    for key in changed:
        if key not in (*chosen, *kind.ignores, "method"):
            raise ConfigError(
                f"config.certify.{key}={block[key]!r} means nothing to "
                f"config.certify.method={name!r}; set it to {defaults[key]!r}."
            )
    return {"method": name, **chosen}


def select(resolved: dict[str, Any], *blocks: str) -> dict[str, Any]:
    """The part of a resolved config that one script's results depend on."""
    return {key: resolved[key] for key in ("seed", *blocks)}


def _resolve_block(given, schema, path):
    if not isinstance(given, dict):
        raise ConfigError(f"{path} should be a block of settings, got {given!r}.")
    for key in given.keys() - schema.keys():
        if path == "config.model":
            continue
        raise ConfigError(f"{path}.{key} is not a setting.{suggest(key, schema)}")
    resolved = dict(given) if path == "config.model" else {}
    for key, default in schema.items():
        name = f"{path}.{key}"
        if isinstance(default, dict):
            resolved[key] = _resolve_block(given.get(key, {}), default, name)
        elif key not in given:
            if isinstance(default, Required):
                raise ConfigError(f"{name} is missing from the config.")
            resolved[key] = default
        else:
            resolved[key] = _of_type(given[key], default, name)
    return resolved


def _of_type(value, default, name):
    if default is None:
        return value
    kind = default.type if isinstance(default, Required) else type(default)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise ConfigError(f"{name}={value!r} should be of type {kind.__name__}.")
    return value


def suggest(key: str, known) -> str:
    """A sentence with the closest known keys, or with all of them."""
    close = difflib.get_close_matches(key, known, n=2)
    if close:
        return f" Did you mean {' or '.join(close)}?"
    return f" Settings there: {', '.join(known)}."
