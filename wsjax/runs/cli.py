"""What the scripts share: flags, and errors told in a sentence."""

import logging
import pathlib
import sys
from collections.abc import Callable
from typing import Any

from absl import app, flags
from absl import logging as absl_logging
from ml_collections import config_flags

from wsjax.runs.config import resolve
from wsjax.runs.manifest import prepare_workdir
from wsjax.runs.signals import Stopped

# Mistakes of the user or the machine, which a message explains better than a trace.
_EXPLAINED = (ValueError, OSError, ImportError, FloatingPointError)


def run(main: Callable[[dict[str, Any], pathlib.Path], None]) -> None:
    """Parses `--config`, `--config.key=value` and `--workdir`, then calls `main`.

    `main(config, workdir)` gets the resolved config and an existing, writable
    directory: `--workdir`, or `runs/` and the config's name. Errors a user can do
    something about end the program with one message; `--debug` shows where they
    came from. A run stopped by a signal ends with that signal's exit code.
    """
    config_flag = config_flags.DEFINE_config_file(
        "config", None, "Experiment config, e.g. configs/digits.py.", lock_config=True
    )
    workdir_flag = flags.DEFINE_string(
        "workdir", None, "Run directory; default runs/NAME_OF_CONFIG."
    )
    debug_flag = flags.DEFINE_bool("debug", False, "Show full tracebacks.")
    flags.mark_flag_as_required("config")

    def parse(argv):
        try:
            return flags.FLAGS(argv)
        except (AttributeError, KeyError) as error:
            # ml_collections' way of saying that an overridden key does not exist.
            message = str(error.args[0] if error.args else error)
            _fail(f"An override names no setting of the config: {message}")
        except (flags.Error, TypeError, ValueError, FileNotFoundError) as error:
            _fail(str(error))

    def call(argv):
        if len(argv) > 1:
            _fail(f"Unexpected arguments: {' '.join(argv[1:])}")
        _quiet_libraries()
        try:
            config = resolve(config_flag.value)
            workdir = workdir_flag.value or default_workdir(
                flags.FLAGS["config"].config_filename
            )
            main(config, prepare_workdir(workdir))
        except Stopped as stopped:
            print(f"{stopped}; run the same command to go on.", file=sys.stderr)
            sys.exit(stopped.exit_code)
        except _EXPLAINED as error:
            if debug_flag.value:
                raise
            _fail(_sentence(error))

    app.run(call, flags_parser=parse)


def default_workdir(config_path: str) -> pathlib.Path:
    """`configs/paper/mnist.py:0.01` -> `runs/paper-mnist-0.01`."""
    path, _, variant = str(config_path).partition(":")
    parts = list(pathlib.Path(path).with_suffix("").parts)
    if "configs" in parts:
        parts = parts[parts.index("configs") + 1 :]
    else:
        parts = parts[-1:]
    name = "-".join([*parts, *filter(None, [variant])])
    return pathlib.Path("runs") / name.replace("/", "-")


def _quiet_libraries():
    """Our own messages only: checkpointing alone logs a dozen lines per save."""
    absl_logging.set_verbosity(absl_logging.ERROR)
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger = logging.getLogger("wsjax")
    logger.handlers, logger.propagate = [handler], False
    logger.setLevel(logging.INFO)


def _sentence(error):
    if isinstance(error, OSError) and error.strerror:
        where = f" ({error.filename})" if error.filename else ""
        return f"{error.strerror}{where}"
    return str(error)


def _fail(message):
    print(f"error: {message}", file=sys.stderr)
    sys.exit(1)
