"""A drill: accidents at random to runs of the scripts, and whether promises were kept.

  python tests/drill.py --minutes=10 --seed=0 --out=benchmarks/results/drill.jsonl
  python tests/drill.py --only=killed --seed=0 --first=17 --count=1   # one of them again

Each accident befalls train.py, certify.py or attack.py, with tiny settings, in a process
of its own. After it, the same command has to end with what a run has that was left
alone: the same rows, weights and metrics, to the last bit. What a script says and its
exit code are judged as well; what that means for each kind of accident is said there.
A script that loses a row, say, is found out (drill_test.py).

Moments are drawn as a time, which a busy machine changes, or as a number of operations
on files of the run directory. Linux only.
"""

import argparse
import collections
import datetime
import functools
import json
import math
import pathlib
import random
import re
import shutil
import signal
import subprocess
import tempfile
import textwrap
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import ml_collections
import numpy as np
import tiny_runs
from rich.console import Console
from rich.table import Table
from sklearn import datasets

from wsjax.runs import config as configs
from wsjax.runs import manifest

RESULTS = tiny_runs.ROOT / "benchmarks" / "results" / "drill.jsonl"
DOCS = tiny_runs.ROOT / "docs" / "trust.md"

CONFIG = textwrap.dedent(
    '''\
    """A very tiny run on digits, from files."""
    from math import inf, nan

    import ml_collections

    from wsjax.runs.config import with_defaults


    def get_config():
        config = with_defaults(ml_collections.ConfigDict({{
            "seed": 7,
            "data": {{
                "name": "npz", "dir": {data!r}, "limit": 6, "train_limit": 64,
            }},
            "model": {{"name": "conv_small", "widths": (4, 8), "hidden": 16}},
            "smoothing": {{
                "noise": "flow_laplace", "sigma": 0.01, "ground_metric": "l2",
            }},
            "train": {{
                "learning_rate": 0.1, "schedule": "cosine", "batch_size": 16,
                "num_epochs": 3,
            }},
            "certify": {{"n0": 20, "n": 100, "block_size": 20}},
            "attack": {{
                "n": 50, "pictures": 1,
                "flow": {{
                    "max_steps": 3, "num_samples": 8, "num_votes": 50,
                    "batch_size": 2,
                }},
            }},
        }}))
        {more}
        return config
    '''
)
_LEARNED = (
    "--config.smoothing.noise=learned_view",
    "--config.smoothing.sigma=0",
    "--config.smoothing.certificate_scale=0.02",
    "--config.smoothing.waves=2",
    "--config.train.noise_learning_rate=0.1",
)


class Scene(NamedTuple):
    """A command: `trained` is the scene that has its classifier, if any."""

    script: str
    more: tuple[str, ...] = ()
    trained: str = ""


SCENES = {
    "train": Scene("train.py"),
    "certify": Scene("certify.py", trained="train"),
    "attack": Scene("attack.py", trained="train"),
    "train with its noise": Scene("train.py", _LEARNED),
    "certify at radii": Scene(
        "certify.py",
        (*_LEARNED, "--config.certify.at_radii=(0.002, 0.005)"),
        trained="train with its noise",
    ),
    "certify by neighbours": Scene("certify.py", ("--config.certify.method=nearest",)),
}


class Failed(Exception):
    """A promise was broken."""


class Ended(NamedTuple):
    """How a process ended: `text` is all it wrote."""

    code: int
    text: str

    @property
    def errors(self) -> list[str]:
        return [x for x in self.text.splitlines() if x.startswith("error:")]


def judge(ended):
    """What holds whatever has happened: words, not traces, and one sentence of errors."""
    for sign in ("Traceback", "Exception ignored", "Fatal Python error"):
        if sign in ended.text:
            raise Failed(f"{sign} after exit code {ended.code}")
    if ended.code == 1:
        if len(ended.errors) != 1 or ended.text.splitlines()[-1:] != ended.errors:
            raise Failed("exit code 1 without one last line that begins with error:")
        if len(ended.errors[0]) > 1500:
            raise Failed(f"a sentence of {len(ended.errors[0])} characters")
    elif ended.errors:
        raise Failed(f"an error, and exit code {ended.code}")


def is_stopped(ended, *signums):
    """It ended by one of the signals with its sentence, once, or before they came."""
    told = re.findall("stopped by (.*); run the same command to go on", ended.text)
    codes = {(): 0, **{(each.name,): 128 + each for each in signums}}
    if codes.get(tuple(told)) != ended.code:
        raise Failed(f"exit code {ended.code} and {told} after {signums}")


# Runs the script in a process of its own and sends it signals, each after some seconds,
# the first no sooner than it heeds them. Ends as it did. The output passes by, since a
# limit of the size of files is none of what the script says.
_WATCHED = """
import os, resource, signal, time
read, write = os.pipe()
script = os.fork()
if script:
    os.close(write)
    def heeds():
        with open(f"/proc/{{script}}/status") as status:
            text = status.read()
        mask = int(text.partition("SigCgt:")[2].split()[0], 16)
        return mask >> (signal.SIGTERM - 1) & 1 or "State:\\tZ" in text
    while {moments!r} and not heeds():
        time.sleep(0.001)
    for delay, signum in {moments!r}:
        time.sleep(delay)
        os.kill(script, signum)
    while part := os.read(read, 1 << 16):
        os.write(2, part)
    code = os.waitstatus_to_exitcode(os.waitpid(script, 0)[1])
    if code < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    os._exit(code)
os.close(read)
os.dup2(write, 1)
os.dup2(write, 2)
if {room!r} is not None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, ({room!r}, resource.RLIM_INFINITY))
"""
# Sends the process a signal at a certain operation on files below a directory.
_AT_OPERATION = """
import os, sys
seen = 0
def count(event, arguments):
    global seen
    if event in {events!r} and str(arguments[0]).startswith({folder!r}):
        seen += 1
        if seen == {number}:
            os.kill(os.getpid(), {signum})
sys.addaudithook(count)
"""
_EVENTS = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate")


class Site:
    """Data, a config, and for each scene what an undisturbed run of it leaves behind.

    Attributes:
      folder: everything is below it.
      scenes: names of those that accidents befall.
      sabotage: Python to run in each process ahead of an accident's script: the drill
        itself is tried by it.
    """

    def __init__(self, folder, scenes=tuple(SCENES), sabotage=""):
        self.folder, self.scenes = pathlib.Path(folder), tuple(scenes)
        self.sabotage = sabotage
        self.data = self.folder / "data"
        self.data.mkdir()
        digits = datasets.load_digits()
        images = (digits.images * 15).astype(np.uint8)
        for name, part in (("train", slice(0, 80)), ("test", slice(80, 90))):
            path = self.data / f"{name}.npz"
            np.savez_compressed(path, images=images[part], labels=digits.target[part])
        self.config = self.write_config(self.folder)

    def write_config(self, folder, more="pass"):
        path = pathlib.Path(folder) / "tiny.py"
        path.write_text(CONFIG.format(data=str(self.data), more=more))
        return path

    def home(self, scene):
        """Where the undisturbed run of a scene has been."""
        return self.reference(scene)[0]

    @functools.cache  # noqa: B019
    def reference(self, name):
        """Of an undisturbed run: directory, results, seconds, operations on files."""
        workdir = self.folder / "left alone" / name / "run"
        count = workdir.parent / "operations"
        prelude = (
            _operations(workdir, 0, 0)
            + f"import atexit\natexit.register(lambda: open({str(count)!r}, 'w')"
            ".write(str(seen)))\n"
        )
        workdir.parent.mkdir(parents=True)
        # Where something had to be compiled first, again: how long does it take?
        for _ in range(2):
            shutil.rmtree(workdir, ignore_errors=True)
            before = time.monotonic()
            ended = self.start(name, workdir, prelude=prelude)
            seconds = time.monotonic() - before
            if ended.code:
                raise RuntimeError(f"{name} fails undisturbed: {ended.text}")
            if seconds < 5:
                break
        return workdir, results(workdir), seconds, int(count.read_text())

    def command(self, name, workdir, *more, config=None, trained=None):
        scene = SCENES[name]
        arguments = [f"--config={config or self.config}", f"--workdir={workdir}"]
        if scene.trained:
            arguments += [f"--trained={trained or self.home(scene.trained)}"]
        return scene.script, (*arguments, *scene.more, *more)

    def start(self, name, workdir, *more, prelude="", **places):
        """Runs a scene's command to its end."""
        script, arguments = self.command(name, workdir, *more, **places)
        code, out, err = tiny_runs.run_forked(script, *arguments, prelude=prelude)
        return Ended(code, out + err)


def _operations(folder, number, signum):
    return _AT_OPERATION.format(
        events=_EVENTS, folder=str(folder), number=number, signum=int(signum)
    )


def rows(workdir):
    """Whole lines of all files of rows, apart from their times: cells by file and idx."""
    found = {}
    for path in sorted(pathlib.Path(workdir).glob("*.tsv")):
        lines = path.read_bytes().decode(errors="replace").split("\n")[:-1]
        columns, *lines = [line.split("\t") for line in lines] or [[]]
        for cells in lines:
            if len(cells) != len(columns):
                raise Failed(f"{path.name} has a row of {len(cells)} cells")
            if (path.name, cells[0]) in found:
                raise Failed(f"{path.name} has two rows of image {cells[0]}")
            timeless = [x for name, x in zip(columns, cells) if name != "time"]
            found[path.name, cells[0]] = timeless
    return found


def results(workdir):
    """Everything in a run directory that a second run has to repeat to the last bit."""
    workdir = pathlib.Path(workdir)
    found: dict[Any, Any] = dict(rows(workdir))
    for path in workdir.rglob("*"):
        name, parts = str(path.relative_to(workdir)), path.relative_to(workdir).parts
        if path.is_dir() or {"tensorboard", "checkpoints"} & set(parts):
            continue
        exact = path.suffix in (".npy", ".json", ".jsonl", ".safetensors")
        times = name in ("run.json", "attack_summary.json") or path.suffix == ".txt"
        found[name] = path.read_bytes() if exact and not times else b""
    if (workdir / "checkpoints").exists():
        arrays = tiny_runs.final_arrays(workdir)
        found["checkpoints"] = [
            (str(path), value.tobytes()) for path, value in _leaves(arrays)
        ]
        names = (path.name for path in (workdir / "checkpoints").iterdir())
        found["names of checkpoints"] = sorted(names)
    for script, entry in manifest.read(workdir).items():
        kept = ("config", "data_checksum", "classifier", "certifier", "num_images")
        # Where data lie makes no difference.
        text = json.dumps({key: entry.get(key) for key in kept}, sort_keys=True)
        found["run.json", script] = re.sub('"dir": "[^"]*"', "", text)
    return found


def _leaves(tree, path=""):
    if isinstance(tree, dict):
        for key in sorted(tree):
            yield from _leaves(tree[key], f"{path}/{key}")
    elif isinstance(tree, (list, tuple)):
        for number, value in enumerate(tree):
            yield from _leaves(value, f"{path}/{number}")
    elif tree is not None:
        yield path, np.asarray(tree)


def newest(workdir):
    """Step of the newest checkpoint that is whole."""
    steps = (x.name for x in (pathlib.Path(workdir) / "checkpoints").glob("*"))
    return max((int(step) for step in steps if step.isdigit()), default=0)


class Trial:
    """One accident to one scene, in a directory of its own.

    Attributes:
      rng: of everything random here.
      workdir: the run directory; nothing is there yet.
      told: what the processes said, in order.
    """

    def __init__(self, site, rng, scenes, folder):
        self.site, self.rng = site, rng
        self.scene = rng.choice([x for x in site.scenes if x in scenes])
        self.folder = pathlib.Path(folder)
        self.workdir = self.folder / "run"
        self.told: list[Ended] = []
        # Not those of this accident, else the first one would take longer than others.
        _, self.expected, self.seconds, self.operations = site.reference(self.scene)

    def run(self, *more, real=False, scene=None, prelude="", **places):
        """Runs the command, perhaps as a real process, and looks at how it ended."""
        prelude = self.site.sabotage + "\n" + prelude
        scene = scene or self.scene
        if real:
            script, arguments = self.site.command(scene, self.workdir, *more)
            code, out, err = tiny_runs.run(script, *arguments, prelude=prelude)
            ended = Ended(code, out + err)
        else:
            ended = self.site.start(
                scene, self.workdir, *more, prelude=prelude, **places
            )
        self.told.append(ended)
        judge(ended)
        return ended

    def disturb(self, *signums, gap=0.0, real=False):
        """Sends signals at a random moment; returns how the process ended."""
        rng, before = self.rng, self.standing()
        if len(signums) == 1 and not real and rng.random() < 0.5:
            number = rng.randint(1, self.operations)
            prelude = _operations(self.workdir, number, signums[0])
        else:
            # Programs that start need some seconds to import.
            latest = 4.0 if real else 1.1 * self.seconds
            moments = [(rng.uniform(0, latest), int(signums[0]))]
            moments += [(rng.uniform(0, gap), int(x)) for x in signums[1:]]
            prelude = _WATCHED.format(moments=moments, room=None)
        ended = self.run(prelude=prelude, real=real)
        self.nothing_lost(before)
        return ended

    def standing(self):
        """Rows and checkpoints that are there."""
        if not self.workdir.exists():
            return {}, 0
        found = rows(self.workdir)
        for key, cells in found.items():
            if self.expected.get(key) != cells:
                raise Failed(f"a row that no undisturbed run has: {key} {cells}")
        return found, newest(self.workdir)

    def nothing_lost(self, before):
        now = self.standing()
        if lost := before[0].keys() - now[0].keys():
            raise Failed(f"rows are gone: {sorted(lost)}")
        if now[1] < before[1]:
            raise Failed(f"checkpoint {before[1]} is gone, {now[1]} is the newest")

    def goes_on(self, **places):
        """The same command now ends with what an undisturbed run has."""
        before = self.standing()
        ended = self.run(**places)
        if ended.code:
            raise Failed(f"does not go on, exit code {ended.code}")
        self.nothing_lost(before)
        self.compare()

    def compare(self, but=()):
        found = results(self.workdir)
        differing = [
            key
            for key in sorted(found.keys() | self.expected.keys(), key=str)
            if found.get(key) != self.expected.get(key) and key not in but
        ]
        if differing:
            raise Failed(f"differs from a run left alone: {differing}")


class Kind(NamedTuple):
    """A kind of accident, and the scenes that it may befall."""

    act: Callable[[Trial], None]
    scenes: tuple[str, ...]


KINDS: dict[str, Kind] = {}


def kind(name, scenes=tuple(SCENES)):
    """Registers a function of a `Trial`, which raises `Failed`."""

    def register(act):
        KINDS[name] = Kind(act, scenes)
        return act

    return register


@kind("killed")
def killed(trial):
    """SIGKILL, up to three times; no words are expected."""
    for _ in range(trial.rng.randint(1, 3)):
        ended = trial.disturb(signal.SIGKILL)
        if ended.code not in (-9, 0):
            raise Failed(f"exit code {ended.code}")
    trial.goes_on()


@kind("stopped")
def stopped(trial):
    """SIGINT, SIGTERM or SIGHUP, up to twice: one sentence, 128 + its number."""
    for _ in range(trial.rng.randint(1, 2)):
        signum = trial.rng.choice((signal.SIGINT, signal.SIGTERM, signal.SIGHUP))
        is_stopped(trial.disturb(signum), signum)
    trial.goes_on()


@kind("stopped while it starts")
def stopped_while_it_starts(trial):
    """Likewise while a program still imports, in a process that begins with nothing."""
    signum = trial.rng.choice((signal.SIGINT, signal.SIGTERM, signal.SIGHUP))
    is_stopped(trial.disturb(signum, real=True), signum)
    trial.goes_on()


@kind("Ctrl-C twice")
def stopped_twice(trial):
    """A second signal soon after the first: still one sentence."""
    second = trial.rng.choice((signal.SIGINT, signal.SIGTERM))
    ended = trial.disturb(signal.SIGINT, second, gap=0.5)
    is_stopped(ended, signal.SIGINT, second)
    trial.goes_on()


@kind("two at once")
def two_at_once(trial):
    """Two or three processes in one directory: one works, or one after another."""
    delays = [0.0, *(trial.rng.uniform(0, 1.2 * trial.seconds) for _ in "12")]
    delays = delays[: trial.rng.randint(2, 3)]
    script, arguments = trial.site.command(trial.scene, trial.workdir)
    sleep = trial.site.sabotage + "\nimport time; time.sleep({})"
    group = [tiny_runs.Forked(script, arguments, sleep.format(x)) for x in delays]
    all_ended = [Ended(code, a + b) for code, a, b in tiny_runs.run_together(group)]
    for ended in all_ended:
        trial.told.append(ended)
        judge(ended)
        if ended.code and f"{trial.workdir} is in use by" not in ended.text:
            raise Failed(f"exit code {ended.code} without a word about the other one")
    if all(ended.code for ended in all_ended):
        raise Failed("each was told of another one")
    trial.compare()
    trial.goes_on()


def _is_full(trial, ended):
    if ended.code not in (0, 1):
        raise Failed(f"exit code {ended.code} on a full disk")
    if ended.code and "room" not in ended.errors[0]:
        raise Failed("nothing is said about room")
    trial.standing()


@kind("file too large")
def file_too_large(trial):
    """No file may have more than so many bytes: writing ends in the middle of one."""
    room = int(2 ** trial.rng.uniform(0, 16))
    ended = trial.run(prelude=_WATCHED.format(moments=[], room=room))
    _is_full(trial, ended)
    trial.goes_on()


@kind("full disk")
def full_disk(trial):
    """A file system with room for so many bytes."""
    room = int(2 ** trial.rng.uniform(10, 18))
    trial.workdir.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "drill", trial.workdir]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        raise Skipped("mounting a file system takes root")
    try:
        ballast = trial.workdir / "ballast"
        ballast.write_bytes(bytes(2**22 - room))
        _is_full(trial, trial.run())
        ballast.unlink()
        trial.goes_on()
    finally:
        subprocess.run(["umount", trial.workdir], check=True)


class Skipped(Exception):
    """An accident that cannot be arranged here."""


_VALUES = (
    *("", "abc", "ä\t'\"", "x" * 5000, None, True, False, (), [], {}, (1,), (0.1, 0.2)),
    *(
        (1, "a"),
        (-0.01,),
        (math.nan,),
        math.nan,
        math.inf,
        -math.inf,
        -1,
        0,
        -0.0,
        1,
        2,
    ),
    *(0.3, 1e9, 1e-9, 10**30),
)


def _settings():
    """Every key with its default, as in an empty config file."""
    blank = {block: {} for block in ("data", "model", "smoothing", "train")}
    found = manifest.flat(configs.with_defaults(ml_collections.ConfigDict(blank)))
    names = ("data.name", "model.name", "smoothing.noise", "smoothing.ground_metric")
    required = {
        **dict.fromkeys(names, ""),
        "model.widths": (),
        "model.hidden": 0,
        "train.learning_rate": 0.0,
        "train.batch_size": 0,
        "train.num_epochs": 0,
    }
    return {**found, **required}


@kind("wrong setting")
def wrong_setting(trial):
    """Any value for any setting, on the command line or in the file.

    It is refused in a sentence that names the setting or shows the value, and nothing is
    left behind; or it is used. Then the directory either belongs to that run, or the
    corrected command goes on.
    """
    settings = _settings()
    key, value = trial.rng.choice(sorted(settings)), trial.rng.choice(_VALUES)
    shown = value if isinstance(value, str) else repr(value)
    places, more = {}, [f"--config.{key}={shown}"]
    if trial.rng.random() < 0.5:
        text = f"config.{key} = {value!r}"
        places, more = {"config": trial.site.write_config(trial.folder, text)}, []
    trial.told.append(Ended(0, f"{key} = {value!r:.80}, {'in a file' * bool(places)}"))
    # Some are taken, and would make it long.
    late = [(8.0 + 2 * trial.seconds, int(signal.SIGTERM))]
    ended = trial.run(*more, prelude=_LATE.format(moments=late), **places)
    if ended.code not in (0, 1, 143):
        raise Failed(f"exit code {ended.code}")
    if isinstance(value, bool) and isinstance(settings[key], float) and ended.code != 1:
        raise Failed("a number may be True")
    if ended.code == 1:
        said = ended.errors[0]
        if key.rpartition(".")[2] not in said and shown[:40] not in said:
            raise Failed("the sentence names neither the setting nor the value")
    if not trial.workdir.exists() or not list(trial.workdir.iterdir()):
        if ended.code != 1:
            raise Failed("nothing was done")
        return  # As if nothing had happened.
    again = trial.run()
    if again.code == 1 and "another config" in again.text and ended.code != 1:
        return
    if again.code:
        raise Failed("the corrected command does not go on")
    trial.compare()


# Sends a signal if the process is still there after some seconds.
_LATE = """
import signal, threading, os
for delay, signum in {moments!r}:
    late = threading.Timer(delay, os.kill, (os.getpid(), signum))
    late.daemon = True
    late.start()
"""


def _damage(rng, path):
    """Does something to a file; returns what."""
    content = path.read_bytes()
    way = rng.choice(("cut", "one bit", "one byte", "empty", "foreign", "gone"))
    if way == "cut":
        path.write_bytes(content[: rng.randrange(len(content) + 1)])
    elif way in ("one bit", "one byte") and content:
        place = rng.randrange(len(content))
        by = 1 << rng.randrange(8) if way == "one bit" else rng.randrange(1, 256)
        damaged = bytearray(content)
        damaged[place] ^= by
        path.write_bytes(damaged)
        way += f" ({place}: {content[place]} is {damaged[place]})"
    elif way == "foreign":
        foreign = (b"[]", b"{}", b"null", b"\n", b"idx\n", rng.randbytes(1000))
        path.write_bytes(rng.choice(foreign))
    elif way == "gone":
        path.unlink()
    else:
        path.write_bytes(b"")
    return way


def _is_refused_or_harmless(trial, ended, path, but=()):
    if ended.code not in (0, 1):
        raise Failed(f"exit code {ended.code}")
    if ended.code == 0:
        trial.compare(but)
    elif not any(part in ended.text for part in (path.name, str(path.parent))):
        named = [x for x in path.parts[-5:] if x and x in ended.errors[0]]
        if not named:
            raise Failed(f"the sentence does not name {path}")


@kind("damaged file")
def damaged_file(trial):
    """A file of a finished or unfinished run, or of its classifier, is cut, changed, gone.

    It is refused by name, or makes no difference. With the file restored, all goes on.
    """
    rng, scene, places = trial.rng, SCENES[trial.scene], {}
    shutil.copytree(trial.site.home(trial.scene), trial.workdir)
    roots = [trial.workdir]
    if scene.trained:
        places["trained"] = trial.folder / "trained"
        shutil.copytree(trial.site.home(scene.trained), places["trained"])
        roots.append(places["trained"])
    state = rng.choice(("finished", "unfinished", "unfinished", "not begun"))
    if state == "not begun" and scene.trained:
        shutil.rmtree(roots.pop(0))
    elif state != "finished" and scene.script == "train.py":
        shutil.rmtree(trial.workdir / "checkpoints" / str(newest(trial.workdir)))
    elif state != "finished":
        path = rng.choice(sorted(trial.workdir.glob("*.tsv")))
        lines = path.read_bytes().splitlines(keepends=True)
        path.write_bytes(b"".join(lines[: rng.randint(1, len(lines))]))
    root = rng.choice(roots)
    found = sorted(
        path
        for path in root.rglob("*")
        if path.is_file() and "tensorboard" not in path.parts
    )
    # Half of the time every byte is as likely as another, else every file.
    sizes = [path.stat().st_size for path in found]
    (path,) = rng.choices(found, rng.choice((sizes, [1] * len(found))))
    content = path.read_bytes()
    way = _damage(rng, path)
    trial.told.append(Ended(0, f"{path.relative_to(trial.folder)}: {way}"))
    damaged = path.read_bytes() if path.exists() else None
    ended = trial.run(**places)
    if path.name == "_sharding" and path.exists() and path.read_bytes() == damaged:
        # Says on which devices arrays were. wsjax does without; who reads them here does not.
        path.write_bytes(content)
    # Nothing vouches for metrics and adversarial images; entries of other names in
    # run.json may be those of another version.
    but = set()
    if path.name == "metrics.jsonl" or path.suffix == ".npy":
        but = {str(path.relative_to(root))}
    elif path.name == "run.json" and ended.code == 0:
        but = {key for key in results(trial.workdir) if key[0] == path.name}
        but -= trial.expected.keys()
    _is_refused_or_harmless(trial, ended, path, but)
    if ended.code:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        trial.goes_on(**places)


@kind("damaged data")
def damaged_data(trial):
    """A file of the data is damaged while some rows are there already."""
    rng = trial.rng
    shutil.copytree(trial.site.home(trial.scene), trial.workdir)
    if SCENES[trial.scene].script != "train.py":
        path = rng.choice(sorted(trial.workdir.glob("*.tsv")))
        lines = path.read_bytes().splitlines(keepends=True)
        path.write_bytes(b"".join(lines[: rng.randint(2, len(lines))]))
    data = trial.folder / "data"
    shutil.copytree(trial.site.data, data)
    path = rng.choice(sorted(data.iterdir()))
    if rng.random() < 0.3:  # Other images, in good order.
        with np.load(path) as archive:
            arrays = dict(archive)
        arrays["images"][rng.randrange(3)] ^= 1
        np.savez(path, **arrays)
        way = "other images"
    else:
        way = _damage(rng, path)
    trial.told.append(Ended(0, f"{path.name}: {way}"))
    before = trial.standing()
    ended = trial.run(f"--config.data.dir={data}")
    if ended.code not in (0, 1):
        raise Failed(f"exit code {ended.code}")
    trial.nothing_lost(before)
    if ended.code == 0:
        trial.compare()
    trial.goes_on()


@kind("diverged", scenes=("train", "train with its noise"))
def diverged(trial):
    """Training diverges, perhaps after some epochs; the corrected command goes on."""
    name = trial.rng.choice(("learning_rate", "weight_decay"))
    value = {"learning_rate": 1000.0, "weight_decay": 100.0}[name]
    ended = trial.run(
        f"--config.train.{name}={value}",
        f"--config.train.num_epochs={trial.rng.randint(3, 40)}",
        "--config.train.schedule=constant",
    )
    if ended.code == 0:
        return
    if "loss became" not in ended.text:
        raise Failed("nothing is said about the loss")
    trial.goes_on()


class Tally:
    """Counts of a kind."""

    def __init__(self):
        self.tried = self.failed = 0
        self.seconds = 0.0
        self.skipped = ""


def attempt(site, name, seed, number):
    """One accident of a kind; returns what went wrong, in lines, or None.

    Raises:
      Skipped: it cannot be arranged here.
    """
    kind_ = KINDS[name]
    rng = random.Random(f"{seed} {name} {number}")
    with tempfile.TemporaryDirectory(dir=site.folder) as folder:
        trial = Trial(site, rng, kind_.scenes, folder)
        try:
            kind_.act(trial)
        except Skipped:
            raise
        # What a drill cannot read is no better than what a script cannot.
        except Exception as failed:  # noqa: BLE001
            told = "\n".join(f"[{x.code}] {x.text.strip()}" for x in trial.told)
            return (
                f"{name} ({trial.scene}): {failed!r}\n{textwrap.indent(told, '    ')}\n"
                f'  repeat: python tests/drill.py --only="{name}" --seed={seed} '
                f"--first={number} --count=1"
            )
    return None


def drill(
    site, names, seed, *, minutes=None, first=0, count=None, turn=10.0, say=print
):
    """Kinds in turn, some seconds each, until the time is up or each was had `count` times.

    Returns:
      `Tally` by name.
    """
    tallies = {name: Tally() for name in names}
    numbers = collections.Counter(dict.fromkeys(names, first))
    until = time.monotonic() + 60 * minutes if minutes else float("inf")
    left = set(names)
    while left and time.monotonic() < until:
        for name in [name for name in names if name in left]:
            tally, began = tallies[name], time.monotonic()
            while True:
                before = time.monotonic()
                try:
                    failure = attempt(site, name, seed, numbers[name])
                except Skipped as reason:
                    tally.skipped = str(reason)
                    left.discard(name)
                    break
                numbers[name] += 1
                tally.tried += 1
                tally.failed += failure is not None
                tally.seconds += time.monotonic() - before
                if failure:
                    say(failure)
                if count is not None and tally.tried >= count:
                    left.discard(name)
                    break
                if time.monotonic() - began > turn or time.monotonic() > until:
                    break
    return tallies


def table(tallies):
    shown = Table(title="Accidents", title_justify="left")
    for head in ("kind", "tried", "failed", "s each"):
        shown.add_column(head, justify="left" if head == "kind" else "right")
    for name, tally in tallies.items():
        each = f"{tally.seconds / tally.tried:.1f}" if tally.tried else tally.skipped
        shown.add_row(name, str(tally.tried), str(tally.failed), each)
    return shown


def lines(tallies, seed):
    """One object per kind that was tried, for the file of results."""
    for name, tally in tallies.items():
        if tally.tried:
            yield {
                "kind": name,
                "tried": tally.tried,
                "failed": tally.failed,
                "seconds": round(tally.seconds, 1),
                "seed": seed,
                "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
                "versions": manifest.versions(),
                "devices": manifest.devices(),
            }


def with_counts(text, results):
    """docs/trust.md with the numbers of a file of results in its table."""
    tried, failed = collections.Counter(), collections.Counter()
    for line in results.splitlines():
        each = json.loads(line)
        tried[each["kind"]] += each["tried"]
        failed[each["kind"]] += each["failed"]

    def counted(match):
        names = match["names"].split(", ")
        number = f"{sum(tried[name] for name in names):,}"
        if broken := sum(failed[name] for name in names):
            number += f", {broken} failed"
        return f"drill: {match['names']} | {number} |"

    return re.sub(r"drill: (?P<names>.*?) \| .* \|", counted, text)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, help="by default, each kind once")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", action="append", choices=KINDS, metavar="KIND")
    parser.add_argument("--first", type=int, default=0, help="number of the accident")
    parser.add_argument("--count", type=int, help="of accidents of each kind")
    parser.add_argument("--out", type=pathlib.Path, help="file to add the counts to")
    arguments = parser.parse_args()
    count = arguments.count or (None if arguments.minutes else 1)
    with tempfile.TemporaryDirectory() as folder:
        tallies = drill(
            Site(folder),
            arguments.only or list(KINDS),
            arguments.seed,
            minutes=arguments.minutes,
            first=arguments.first,
            count=count,
            say=functools.partial(print, flush=True),
        )
    Console(width=100).print(table(tallies))
    if arguments.out:
        with arguments.out.open("a") as file:
            for line in lines(tallies, arguments.seed):
                file.write(json.dumps(line) + "\n")
        if arguments.out.resolve() == RESULTS.resolve():
            DOCS.write_text(with_counts(DOCS.read_text(), RESULTS.read_text()))
    raise SystemExit(any(tally.failed for tally in tallies.values()))


if __name__ == "__main__":
    main()
