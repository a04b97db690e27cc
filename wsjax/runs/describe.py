"""What `--help` tells: the flags of a command, the configs, the settings of one.

Ranges are those of `ranges`, meanings those of the docstrings: each setting is an
attribute of the class that has it.
"""

import dataclasses
import inspect
import re
import textwrap
from collections.abc import Iterable
from typing import Any

from absl import flags

from wsjax import models
from wsjax.attacks.registry import METHODS
from wsjax.certifiers.registry import KINDS
from wsjax.certifiers.votes import Counting
from wsjax.runs import config, named_configs, ranges
from wsjax.training.objectives import Objective

# Ways to ask for help.
ASKING = ("--help", "-help", "-h", "--helpfull", "--helpshort")

# Blocks of a config that each command reads, in order.
_BLOCKS = {
    "train": ("data", "model", "smoothing", "train"),
    "certify": ("data", "model", "smoothing", "certify"),
    "attack": ("data", "model", "smoothing", "attack"),
}
# Settings that are called otherwise than the attributes they become.
_RENAMED = {"certify.at_radii": "certify.radii"}
# Settings that are no attribute, or one that may be more than a config can say.
_OTHERS = {
    "seed": "of all that is random",
    "certify.ground_metric": "of the distances between images (nearest)",
    "certify.groups": "groups of devices, each with images of its own",
}


def flags_text(names: Iterable[str]) -> str:
    """The flags of a command.

    Args:
      names: of absl flags.

    Returns:
      Lines of text.
    """
    lines = ["Flags:"]
    for name in names:
        value = "" if isinstance(flags.FLAGS[name], flags.BooleanFlag) else "=..."
        lines += _entry(f"--{name}{value}", flags.FLAGS[name].help or "")
    return "\n".join(lines)


def configs_text() -> str:
    """The configs there are, by name."""
    return "\n".join(
        [
            "\nConfigs by name; with --config=NAME, --help tells the settings of one:",
            *_wrapped(", ".join(named_configs.names()), 2),
        ]
    )


def settings_text(settings: config.Config, command: str) -> str:
    """The settings of a config that a command reads, with range and meaning.

    Args:
      settings: the resolved config.
      command: "train", "certify" or "attack".

    Returns:
      Lines of text: key and value, the default where that is another, what the
      value may be, and what it means.
    """
    lines = ["\nSettings of this config that count here:"]
    lines += _setting("seed", settings.seed, 0)
    whole = settings.plain()
    for name in _BLOCKS[command]:
        if name not in whole:
            continue
        chosen = whole[name]
        if name == "attack":
            method = chosen["method"]
            chosen = {
                k: v for k, v in chosen.items() if k not in METHODS or k == method
            }
        elif name == "model":
            chosen = {**chosen, **_fields(chosen["name"]), **chosen}
        for key, value in chosen.items():
            inner = value if isinstance(value, dict) else {}
            for rest, each in inner.items() or ((None, value),):
                dotted = f"{name}.{key}" + (f".{rest}" if rest else "")
                lines += _setting(dotted, each, config.default_of(dotted), chosen)
    return "\n".join(lines)


def meaning(key: str, model: str = "", kind: str = "") -> str:
    """What a setting means.

    Args:
      key: dotted.
      model: name of the model, of whose fields the setting may be one.
      kind: name of the certifier, likewise.

    Returns:
      A phrase, "" where no docstring has one.
    """
    if key in _OTHERS:
        return _OTHERS[key]
    block, _, name = _RENAMED.get(key, key).partition(".")
    method, _, inner = name.partition(".")
    if block == "attack" and method in METHODS and inner:
        if inner == "ground_metric":
            return 'of the distance to be small; "" is that of the smoothing'
        return attributes(METHODS[method].settings).get(inner, "")
    homes: dict[str, tuple[Any, ...]] = {
        "data": (config.DataBlock,),
        "model": (config.ModelBlock, *_module(model)),
        "smoothing": (config.SmoothingBlock,),
        "train": (config.TrainBlock, Objective),
        "certify": (config.CertifyBlock, *_certifiers(kind), Counting),
        "attack": (config.AttackBlock,),
    }
    found = (attributes(home).get(name) for home in homes.get(block, ()))
    return next(filter(None, found), "")


def attributes(kind: type) -> dict[str, str]:
    """What the docstrings of a class and of its bases say about each attribute."""
    found: dict[str, str] = {}
    for each in reversed(kind.__mro__):
        text = inspect.cleandoc(vars(each).get("__doc__") or "")
        _, head, section = text.partition("\nAttributes")
        section = re.split(r"\n(?=\S)", section.partition(":\n")[2])[0] if head else ""
        for name, meant in re.findall(
            r"^  (\w+): (.*(?:\n    .*)*)", section, re.MULTILINE
        ):
            found[name] = " ".join(meant.split()).rstrip(",;.")
    return found


def _module(name):
    """The class of a model, if there is one."""
    return (models.module_class(name),) if name in models.NAMES else ()


def _fields(name):
    """Fields of a model that a config may set, with their defaults."""
    known = {
        field.name: field.default
        for field in dataclasses.fields(models.module_class(name))
        if field.name not in ("parent", "name")
    }
    return known | models.fixed_fields(name)


def _certifiers(kind):
    return (KINDS[kind],) if kind in KINDS else tuple(KINDS.values())


def _setting(key, value, default, block=None):
    """Lines about one setting."""
    block = block or {}
    of_model = str(block.get("name", "")) if key.startswith("model.") else ""
    of_kind = str(block.get("method", "")) if key.startswith("certify.") else ""
    long = key.replace(".", f".{of_model}.", 1)
    allowed = ranges.range_of(key) or ranges.range_of(long, value)
    shown = "" if value is dataclasses.MISSING else f"{value!r}"
    text = meaning(key, of_model, of_kind)
    parts = [f"{text[:1].upper()}{text[1:]}."] if text else []
    if allowed:
        words = str(allowed.words)
        parts += [f"{words[:1].upper()}{words[1:]}.", allowed.hint]
    if default is not dataclasses.MISSING and default != value:
        parts.append(f"Default: {default!r}.")
    return _entry(f"--config.{key}={shown}", " ".join(filter(None, parts)))


def _entry(head, text):
    return [f"  {head}", *_wrapped(text, 6)]


def _wrapped(text, indent):
    start = " " * indent
    filling = textwrap.TextWrapper(
        88,
        initial_indent=start,
        subsequent_indent=start,
        break_on_hyphens=False,
        break_long_words=False,
    )
    return filling.wrap(text)
