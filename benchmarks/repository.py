"""Scripts of the repository, run one after another by benchmarks that can be repeated."""

import json
import pathlib
import re
import shutil
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent


def run(script, config, workdir, *changes, trained=None):
    """Runs one script, and ends with its exit code if it fails.

    Args:
      script: "train.py", "certify.py" or "attack.py".
      config: path below configs/, without .py.
      workdir: run directory; finished parts are not run again.
      *changes: "KEY=VALUE" in the config.
      trained: run directory of the classifier, if it is another.
    """
    command = [
        sys.executable,
        str(ROOT / script),
        f"--config={ROOT / 'configs' / config}.py",
        f"--workdir={workdir}",
        *(f"--config.{change}" for change in changes),
        *([f"--trained={trained}"] if trained else []),
    ]
    print(" ".join(command[1:]), flush=True)
    done = subprocess.run(command, check=False)
    if done.returncode:
        sys.exit(done.returncode)


def keep(workdir, kept, files):
    """Copies results of a run; places on this machine are left out.

    Args:
      workdir: run directory.
      kept: where they go.
      files: names of those that are copied, beside run.json, if they are there.
    """
    kept.mkdir(parents=True, exist_ok=True)
    for file in files:
        if (workdir / file).exists():
            shutil.copy(workdir / file, kept)
    entries = json.loads((workdir / "run.json").read_text())
    for entry in entries.values():
        entry["config"]["data"]["dir"] = "data"
        model = entry["config"].get("model", {})
        if checkpoint := pathlib.PurePath(model.get("checkpoint", "")).name:
            model["checkpoint"] = f"released/{checkpoint}"
        script, *options = entry["command"]
        here = "--workdir", "--config.data.dir"
        short = (word for word in options if not word.startswith(here))
        short = [re.sub("=/.*/(configs|released)/", r"=\1/", word) for word in short]
        entry["command"] = [pathlib.PurePath(script).name, *short]
    (kept / "run.json").write_text(json.dumps(entries, indent=2) + "\n")
