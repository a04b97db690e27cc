"""What the tests of training and of the scripts share: tiny runs of both.

In one process: a dense layer on two kinds of image, with a progress bar that sends
signals. As a program: the scripts with a tiny config on scikit-learn's digits.
"""

import atexit
import functools
import json
import os
import pathlib
import runpy
import signal
import subprocess
import sys
import tempfile
import textwrap
from typing import NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from flax import linen as nn

from wsjax import noise
from wsjax.data import dataset
from wsjax.training import loop, optimizers, steps

_DEVICES = "--xla_force_host_platform_device_count"
ROOT = pathlib.Path(__file__).parents[1]
PERTURB = noise.FlowLaplace(0.02).perturb
STEPS_PER_EPOCH, NUM_EPOCHS = 5, 3


class Tiny(nn.Module):
    """Running statistics and a dense layer: compiles in no time."""

    @nn.compact
    def __call__(self, images, train=False):
        x = images.reshape(len(images), -1)
        x = nn.BatchNorm(use_running_average=not train, momentum=0.9)(x)
        return nn.Dense(2)(x)


def separable(count=40, seed=0):
    """Images bright on top (class 0) or at the bottom (class 1), in the form of data."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, count)
    images = rng.integers(0, 60, (count, 4, 3, 1), dtype=np.uint8)
    for image, label in zip(images, labels):
        image[2 * label : 2 * label + 2] += 150
    return dataset.make_dataset(images, labels, num_classes=2, scale=255.0)


@functools.cache
def sgd(total_steps, learning_rate=0.1, schedule="constant"):
    return optimizers.make_optimizer(
        optimizer="sgd",
        learning_rate=learning_rate,
        total_steps=total_steps,
        weight_decay=1e-3,
        schedule=schedule,
    )


def train(workdir, *, make_optimizer=None, perturb=PERTURB, **options):
    """A run of 15 steps in this process, the schedule's length being no other."""
    settings = {"batch_size": 8, "num_epochs": NUM_EPOCHS, **options}
    workdir.mkdir(exist_ok=True)
    return loop.train(
        workdir,
        Tiny(),
        make_optimizer or (lambda _: sgd(STEPS_PER_EPOCH * NUM_EPOCHS)),
        perturb,
        separable(),
        separable(30, seed=1),
        key=jax.random.key(5),
        seed=3,
        **settings,
    )


def compiling_once():
    """Patches that compile equal programs once, however many runs a process starts."""
    for name, function in _CACHED.items():
        yield mock.patch.object(steps, name, function)


_CACHED = {
    name: functools.cache(getattr(steps, name))
    for name in ("make_train_step", "make_eval_step")
}
_CACHED["init_state"] = lambda _, *build: jax.tree.map(jnp.copy, _first_state(*build))
_init_state = steps.init_state


@functools.cache
def _first_state(*build):
    return _init_state(jax.random.key(0), *build)


class Bar:
    """A progress bar that sends the process a signal, or dies, at chosen moments."""

    signal_at = None
    fuse = None

    def __init__(self, *, initial, **_):
        self.step = initial

    def update(self):
        self.step += 1
        Bar.burn()
        if self.step == Bar.signal_at:
            signal.raise_signal(signal.SIGTERM)

    @classmethod
    def burn(cls):
        if cls.fuse is not None:
            cls.fuse -= 1
            if cls.fuse < 0:
                raise PowerFailure

    def set_postfix(self, *_, **__):
        pass

    def close(self):
        pass


class PowerFailure(BaseException):
    """Passes through every `except Exception`."""


def burning(function):
    """Lets the fuse of `Bar` burn before and after a call."""

    def call(*args, **kwargs):
        Bar.burn()
        result = function(*args, **kwargs)
        Bar.burn()
        return result

    return call


def final_arrays(workdir):
    """Every array of the newest checkpoint, read without wsjax."""
    path = pathlib.Path(workdir).absolute() / "checkpoints"
    newest = max(int(p.name) for p in path.iterdir() if p.name.isdigit())
    with ocp.StandardCheckpointer() as reader:
        tree = reader.restore(path / str(newest) / "default")
    return jax.tree.map(np.asarray, {"newest": newest, **tree})


CONFIG = textwrap.dedent(
    '''\
    """A tiny run on digits."""
    import ml_collections


    def get_config():
        return ml_collections.ConfigDict({
            "seed": 7,
            "data": {
                "name": "digits", "source": "files", "dir": "", "stride": 1,
                "start": 0, "limit": 24, "train_limit": 192,
            },
            "model": {
                "name": "conv_small", "widths": (4, 8), "hidden": 16,
                "checkpoint": "",
            },
            "smoothing": {
                "noise": "flow_laplace", "sigma": 0.01, "ground_metric": "l2",
                "theorem": "tight",
            },
            "train": {
                "learning_rate": 0.1, "weight_decay": 5e-4, "schedule": "cosine",
                "batch_size": 16, "num_epochs": 3,
            },
            "certify": {"n0": 50, "n": 400, "alpha": 0.05, "block_size": 100},
        })
    '''
)


_COMPILED = tempfile.TemporaryDirectory()


def write_config(folder):
    path = pathlib.Path(folder) / "tiny.py"
    path.write_text(CONFIG)
    return path


def load_config(path):
    return runpy.run_path(str(path))["get_config"]()


def environment():
    """Without this process's eight devices."""
    env = dict(os.environ)
    flags = env.pop("XLA_FLAGS", "").split()
    env["XLA_FLAGS"] = " ".join(flag for flag in flags if _DEVICES not in flag)
    env["PYTHONPATH"] = str(ROOT)
    env["JAX_PLATFORMS"] = "cpu"
    # Programs that were compiled for one start serve the next.
    shared = env.get("JAX_COMPILATION_CACHE_DIR", _COMPILED.name)
    env["JAX_COMPILATION_CACHE_DIR"] = str(pathlib.Path(shared) / "programs")
    env["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    return env


def run(script, *arguments, prelude=""):
    """Exit code, stdout and stderr of a script (or `-m module`), as a user starts it.

    `prelude` is Python to run before it in the same process, ahead of its imports.
    """
    program = [str(ROOT / script)] if script.endswith(".py") else ["-m", script]
    if prelude:
        start = f"sys.argv = {[program[0], *map(str, arguments)]!r}\n"
        start += f"runpy.run_path({program[0]!r}, run_name='__main__')"
        program, arguments = ["-c", f"import runpy, sys\n{prelude}\n{start}"], ()
    done = subprocess.run(
        [sys.executable, *program, *map(str, arguments)],
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    return done.returncode, done.stdout, done.stderr


# Imports once, then runs one group of processes after another, forked off.
_FORKS = f"""
import gc, json, os, runpy, signal, sys, time
import matplotlib.pyplot, ot, sklearn.datasets
import wsjax.runs.attack_report, wsjax.runs.cluster, wsjax.runs.trained
import wsjax.training.loop

# Else each collection copies all of it in each process, and so does the end.
gc.collect()
gc.freeze()
for line in sys.stdin:
    started = {{}}
    for argv, prelude, devices, *paths in json.loads(line):
        pid = os.fork()
        if not pid:
            for stream, path in enumerate(paths, start=1):
                os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
            if devices:
                os.environ["XLA_FLAGS"] += f" {_DEVICES}={{devices}}"
            sys.argv = argv
            exec(prelude, {{}})
            runpy.run_path(argv[0], run_name="__main__")
            sys.exit()
        started[pid] = None
    late = time.monotonic() + 240
    while None in started.values():
        for pid in [p for p, code in started.items() if code is None]:
            found, status = os.waitpid(pid, os.WNOHANG)
            if found:
                started[pid] = os.waitstatus_to_exitcode(status)
            elif time.monotonic() > late:
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)
    print(json.dumps(list(started.values())), flush=True)
"""


class Forked(NamedTuple):
    """A script to run, `prelude` being Python to run before it in the same process.

    `prelude` arranges accidents. `devices` are those of JAX, by default as many as the
    script chooses.
    """

    script: str
    arguments: tuple = ()
    prelude: str = ""
    devices: int | None = None


@functools.cache
def _server():
    """Lives as long as the tests of this process."""
    server = subprocess.Popen(
        [sys.executable, "-c", _FORKS],
        env=environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    atexit.register(server.communicate)
    return server


def run_together(group):
    """Exit code, stdout and stderr of each of several `Forked` that run at once."""
    with tempfile.TemporaryDirectory() as folder:
        files = [pathlib.Path(folder, str(number)) for number in range(len(group))]
        jobs = []
        for case, file in zip(group, files):
            argv = [str(ROOT / case.script), *map(str, case.arguments)]
            paths = [f"{file}.out", f"{file}.err"]
            jobs.append([argv, case.prelude, case.devices, *paths])
        server = _server()
        server.stdin.write(json.dumps(jobs) + "\n")
        server.stdin.flush()
        codes = json.loads(server.stdout.readline())
        texts = [
            [pathlib.Path(x).read_text() for x in paths] for _, _, _, *paths in jobs
        ]
        return [(code, out, err) for code, (out, err) in zip(codes, texts, strict=True)]


def run_forked(script, *arguments, prelude=""):
    """Like `run`, in a process where imports are done already."""
    (result,) = run_together([Forked(script, arguments, prelude)])
    return result


def run_each(cases):
    """Like `run` for many cases `(script, *arguments)`, one after another."""
    return [run_forked(*case) for case in cases]
