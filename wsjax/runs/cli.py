"""What the scripts share: flags, and errors told in a sentence."""

import contextlib
import faulthandler
import importlib
import logging
import os
import pathlib
import re
import sys
import sysconfig
import threading
import traceback
import warnings
from collections.abc import Callable
from typing import Any

import jax
from absl import app, flags
from absl import logging as absl_logging
from ml_collections import config_flags

from wsjax import files
from wsjax.console import signals
from wsjax.console.output import quiet_when_unread
from wsjax.runs import cluster, describe, named_configs, ranges
from wsjax.runs.config import Config, ConfigError, resolve
from wsjax.runs.manifest import prepare_workdir

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Config by name or file, e.g. digits.", lock_config=True
)
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Run directory; default runs/NAME_OF_CONFIG."
)
_TRAINED = flags.DEFINE_string(
    "trained", None, "Run directory of the classifier, if it is not --workdir."
)
_DEBUG = flags.DEFINE_bool("debug", False, "Show full tracebacks.")


def run(
    main: Callable[[Config, pathlib.Path], None],
    several_processes: bool = False,
    counts_votes: bool = False,
) -> None:
    """Parses `--config`, `--config.key=value` and `--workdir`, then calls `main`.

    `main(config, workdir)` gets the resolved config and an existing, writable directory
    that no other run has: `--workdir`, or `runs/` and the config's name. Errors a user can
    do something about end the program with one message; `--debug` shows where they came
    from. A run stopped by a signal ends with that signal's exit code.

    Args:
      main: the script.
      several_processes: whether it can be one of several (`cluster`); then `workdir`
        exists, is writable and locked on process 0, and no other process writes.
      counts_votes: whether votes are most of its work; JAX then gets a CPU device for
        each core.
    """
    if counts_votes:
        one_cpu_device_per_core()
    # What libraries are warned of is for their authors, even under `python -W error`.
    warnings.filterwarnings("ignore", module=r"(?!wsjax\b|__main__)")
    shown = ["config", "workdir", "trained", "debug"]
    shown += cluster.FLAGS if several_processes else ()

    def parse(argv):
        asked = [x for x in argv if x not in describe.ASKING]
        if asked == argv:
            return _parse(argv)
        text = [sys.modules[main.__module__].__doc__ or "", describe.flags_text(shown)]
        if any(re.match("--?config(=|$)", x) for x in asked):
            _parse(asked)
            text.append(_described(main))
        else:
            text.append(describe.configs_text())
        print("\n".join(text))
        sys.exit(0)

    with quiet_when_unread():
        app.run(lambda argv: _call(main, argv, several_processes), flags_parser=parse)


def one_cpu_device_per_core() -> None:
    """Lets each core count blocks of its own instead of sharing the steps of one.

    On two cores 1.6 times as fast (benchmarks/throughput.py). Comes before anything
    that makes JAX start its backend; what XLA_FLAGS says already stays.
    """
    given = os.environ.get("XLA_FLAGS", "")
    if "xla_force_host_platform_device_count" not in given:
        jax.config.update("jax_num_cpu_devices", cluster.cores())
    if "xla_cpu_multi_thread_eigen" not in given:
        os.environ["XLA_FLAGS"] = f"{given} --xla_cpu_multi_thread_eigen=false".strip()


def trained_dir(workdir: pathlib.Path) -> pathlib.Path:
    """Where the classifier was trained: `--trained`, or the run directory itself."""
    return pathlib.Path(_TRAINED.value) if _TRAINED.value else workdir


def _described(main):
    """Settings of the config that the command line names, as a command uses them."""
    try:
        config = resolve(_CONFIG.value)
    except ConfigError as error:
        _fail(_sentence(error))
    return describe.settings_text(config, main.__module__.rpartition(".")[2])


def _parse(argv):
    argv = [*argv]
    for place, argument in enumerate(argv[:-1]):
        if re.fullmatch("--?config", argument):  # Its value is the next one.
            argv[place : place + 2] = [f"--config={argv[place + 1]}"]
    for place, argument in enumerate(argv):
        if given := re.match("--?config=(.+)", argument):
            try:
                argv[place] = f"--config={named_configs.find(given[1])}"
            except FileNotFoundError as error:
                _fail(_sentence(error))
    try:
        rest = flags.FLAGS(argv)
    except (Exception, SystemExit) as error:
        path = next((x for x in argv if re.match("--?config=", x)), "the config file")
        place = _place_in_config(error, path.partition("=")[2] or path)
        if "--debug" in argv or (isinstance(error, SystemExit) and not place):
            raise  # The latter after --help.
        _fail(place or _why_not_parsed(error))
    if not flags.FLAGS["config"].present:
        _fail(
            f"--config is missing. Name a file or one of "
            f"{', '.join(named_configs.names())}, e.g. --config=digits."
        )
    return rest


def _place_in_config(error, path):
    """Where the config file `path` failed and why, in a sentence; None if it did not."""
    causes = [error]
    while following := causes[0].__cause__ or causes[0].__context__:
        causes.insert(0, following)
    for cause in causes:
        what = _one_line(str(cause))
        if isinstance(cause, SyntaxError):
            where = f"{cause.filename}, line {cause.lineno}" if cause.filename else path
            return f"{where}: {cause.msg}."
        frames = traceback.extract_tb(cause.__traceback__)
        loader = [number for number, x in enumerate(frames) if x.filename == _LOADER]
        own = [x for x in frames[max(loader, default=len(frames)) :] if _is_users(x)]
        if own:
            # The innermost line that the user wrote.
            place = own[-1]
            return (
                f"{place.filename}, line {place.lineno} ({_cut(place.line)}): "
                f"{type(cause).__name__}: {_cut(what, 300)}"
            )
        if "get_config" in what:
            return f"{path}: {what}."
    return None


_LOADER = importlib.import_module("ml_collections.config_flags.config_flags").__file__
_LIBRARIES = (
    *set(map(sysconfig.get_path, ("stdlib", "purelib", "platlib"))),
    str(pathlib.Path(files.__file__).parent),
)


def _is_users(frame):
    return not frame.filename.startswith((*_LIBRARIES, "<"))


def _why_not_parsed(error):
    """What is wrong with a command line, in a sentence."""
    text = _one_line(str(error))
    if given := re.match(r"flag --config\.([\w.]+)=(.*?): ", text):
        key, value = given.groups()
        # A field of a model, whichever it is.
        allowed = ranges.range_of(key) or ranges.range_of(key.replace(".", ".*.", 1))
        if allowed:
            return allowed.refusal(f"config.{key}", repr(value))
    if isinstance(error, (AttributeError, KeyError)):
        # ml_collections' way of saying that an overridden key does not exist.
        cause: Any = error
        while isinstance(cause, Exception) and cause.args:
            cause = cause.args[0]
        return f"The config has no such setting: {_one_line(str(cause))}"
    return text


def _call(main, argv, several_processes):
    if len(argv) > 1:
        _fail(f"Unexpected arguments: {' '.join(argv[1:])}")
    _quiet_libraries()
    try:
        if cluster.asked_for() and not several_processes:
            raise ValueError(
                f"{pathlib.Path(sys.argv[0]).name} runs on one process and uses all of "
                f"its devices; of all commands, certify alone runs on several."
            )
        config = resolve(_CONFIG.value)
        config_path = config_flags.get_config_filename(flags.FLAGS["config"])
        default = named_configs.default_workdir(config_path)
        workdir = pathlib.Path(_WORKDIR.value or default)
        cluster.join()
        _check_devices()
        if cluster.several() and not _DEBUG.value:
            # JAX aborts processes whose others are gone, and says so: the traces of
            # all threads, which absl would print then, bury it.
            faulthandler.disable()
        with contextlib.ExitStack() as lock:
            with cluster.together():
                if cluster.leads():
                    workdir = prepare_workdir(workdir)
                    lock.enter_context(files.locked(workdir))
            main(config, workdir.absolute())
    except signals.Stopped as stopped:
        signals.tell(stopped)
        sys.exit(stopped.exit_code)
    except BrokenPipeError:
        raise  # Of standard output; no error.
    except cluster.ClusterError as error:
        # All processes end here at the same time, and may wait for each other.
        if _DEBUG.value:
            raise
        _fail(_sentence(error))
    except BaseException as error:
        if cluster.several():
            # The others wait for this one, which would wait for them.
            _tell(error)
            cluster.leave(1)
        if not _DEBUG.value and _out_of_memory(error):
            _fail(
                f"Out of memory: lower config.train.batch_size, certify.block_size or "
                f"attack.*.batch_size, whichever counts here ({_sentence(error)[:200]})"
            )
        if _DEBUG.value or not isinstance(error, cluster.EXPLAINED):
            raise
        _fail(_sentence(error))


def _check_devices():
    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:  # The latter without CUDA.
        wanted = jax.config.jax_platforms  # type: ignore[attr-defined]
        raise ValueError(
            f"JAX finds no device of JAX_PLATFORMS={wanted or ''} here "
            f"({_one_line(str(error)) or 'not installed'}). Leave it out for the best "
            f"there is, or set it to cpu."
        ) from error


def _out_of_memory(error):
    exhausted = "RESOURCE_EXHAUSTED" in str(error)
    return isinstance(error, MemoryError) or (
        isinstance(error, jax.errors.JaxRuntimeError) and exhausted
    )


def _tell(error):
    if _DEBUG.value or not isinstance(error, (*cluster.EXPLAINED, RuntimeError)):
        traceback.print_exception(error)
    elif cluster.is_lost(error):
        print(f"error: {cluster.LOST} ({_sentence(error)})", file=sys.stderr)
    else:
        print(f"error: {_sentence(error)}", file=sys.stderr)


def _quiet_libraries():
    """Our own messages only: checkpointing alone logs a dozen lines per save.

    What fails in a thread or coroutine of a library is raised where it is waited for, in a
    sentence.
    """
    if not _DEBUG.value:
        absl_logging.set_verbosity(absl_logging.FATAL)
        threading.excepthook = lambda _: None
        sys.unraisablehook = lambda _: None
        sys.excepthook = _except_late_answers
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger = logging.getLogger("wsjax")
    logger.handlers, logger.propagate = [handler], False
    logger.setLevel(logging.INFO)


def _except_late_answers(kind, error, trace):
    # TensorStore's, when a checkpoint could not be written and nobody waits any more.
    if str(error) != "Event loop is closed":
        sys.__excepthook__(kind, error, trace)


def _sentence(error):
    return _one_line(cluster.sentence(error))


def _one_line(message):
    """In a single line, and without the config loader's preface."""
    preface = "Configuration is not available because of an earlier failure to load: "
    return " ".join(message.removeprefix(preface).split())


def _cut(text, most=120):
    return text if len(text) <= most else f"{text[:most]}..."


def _fail(message):
    print(f"error: {message}", file=sys.stderr)
    sys.exit(1)
