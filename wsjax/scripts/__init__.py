"""The command `wsjax`: each of its commands is a module here with a function `start`.

  wsjax train --config=digits

is `python -m wsjax train --config=digits`, and from a checkout `python train.py
--config=configs/digits.py`. Imports the standard library alone before signals are heeded.
"""

import difflib
import importlib
import sys

from wsjax._version import __version__
from wsjax.console import signals
from wsjax.console.output import quiet_when_unread

COMMANDS = {
    "train": "train a base classifier, and its noise",
    "certify": "certify test images: a class and a radius for each",
    "attack": "attack a trained classifier, plain and smoothed",
    "report": "tables and curves of run directories",
    "models": "released classifiers, and what they certify",
}

_HELP = """\
Certified robustness against Wasserstein attacks.

  wsjax COMMAND --config=NAME_OR_FILE [--config.KEY=VALUE ...] [--workdir=FOLDER]

{commands}

NAME_OR_FILE is a config that comes with wsjax, such as digits, or a file of your own.
`wsjax COMMAND --help` tells of a command and lists the configs by name, `wsjax COMMAND
--config=digits --help` the settings of one. A first try, in minutes and without a download:

  pip install 'wsjax[digits]'
  wsjax train --config=digits
  wsjax certify --config=digits
  wsjax report"""


def main() -> None:
    """Runs the command that the command line names."""
    name, *_ = [*sys.argv[1:], "--help"]
    if name in COMMANDS:
        sys.argv[:2] = [f"wsjax {name}"]
        start(name)
    elif name in ("--help", "-h", "help"):
        listed = "\n".join(f"  {each:9}{does}" for each, does in COMMANDS.items())
        _say(_HELP.format(commands=listed))
    elif name == "--version":
        _say(f"wsjax {__version__}")
    else:
        close = difflib.get_close_matches(name, COMMANDS, n=1)
        meant = f"Did you mean {close[0]}" if close else f"It has {', '.join(COMMANDS)}"
        sys.exit(f"error: wsjax has no command {name!r}. {meant}; see wsjax --help.")


def start(name: str) -> None:
    """Runs a command on the rest of the command line; signals end it with a sentence."""
    signals.end_on_signals()
    try:
        script = importlib.import_module(f"wsjax.scripts.{name}")
    except ModuleNotFoundError as error:
        if (error.name or "wsjax").partition(".")[0] == "wsjax":
            raise
        extra = "train" if name == "train" else "certify"
        sys.exit(
            f"error: `wsjax {name}` needs {error.name}, which is not installed: "
            f"pip install 'wsjax[{extra}]'."
        )
    script.start()


def _say(text):
    with quiet_when_unread():
        print(text)
