"""Configs that come with wsjax, by name: `mnist`, `paper/mnist`."""

import difflib
import pathlib

import wsjax

_PACKAGE = pathlib.Path(wsjax.__file__).parent


def folder() -> pathlib.Path:
    """Where they are: within the package, or beside it in a checkout."""
    installed = _PACKAGE / "configs"
    return installed if installed.is_dir() else _PACKAGE.parent / "configs"


def names() -> list[str]:
    """Those there are; those of the published method, `paper/...`, last."""
    there = folder()
    paths = (x.relative_to(there).with_suffix("") for x in there.rglob("*.py"))
    return sorted((x.as_posix() for x in paths), key=lambda name: ("/" in name, name))


def find(given: str) -> str:
    """The file of a config.

    Args:
      given: a name of `names()`, or a file; either may be followed by `:VARIANT`, which
        `get_config` gets. `configs/NAME.py` is that config also where there is no such
        file.

    Returns:
      The path of the file, with the variant.

    Raises:
      FileNotFoundError: there is neither such a config nor such a file; the message lists
        the known ones.
    """
    path, colon, variant = given.partition(":")
    name = path.removesuffix(".py").removeprefix("configs/")
    known = names()
    if path in known or (name in known and not pathlib.Path(path).is_file()):
        path = str(folder() / f"{name}.py")
    elif not pathlib.Path(path).is_file():
        close = difflib.get_close_matches(name, known, n=1)
        meant = f"Did you mean {close[0]}? " if close else ""
        raise FileNotFoundError(
            f"--config={given} is neither a file nor the name of a config. {meant}"
            f"Names: {', '.join(known)}."
        )
    return path + colon + variant


def default_workdir(config: str) -> pathlib.Path:
    """The run directory of a config where none is named.

    Args:
      config: name or path, with or without a variant: `paper/mnist:0.01` and
        `configs/paper/mnist.py:0.01` -> `runs/paper-mnist-0.01`.

    Returns:
      A path below `runs/`.
    """
    path, _, variant = config.partition(":")
    parts = list(pathlib.Path(path).with_suffix("").parts)
    if "configs" in parts:
        # The last: folders above may be called so too.
        parts = parts[len(parts) - parts[::-1].index("configs") :]
    elif path not in names():
        parts = parts[-1:]
    name = "-".join([*parts, *filter(None, [variant])])
    return pathlib.Path("runs") / name.replace("/", "-")
