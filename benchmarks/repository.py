"""Scripts of the repository, run one after another by benchmarks that can be repeated."""

import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent


def run(script, config, workdir, *changes):
    """Runs one script, and ends with its exit code if it fails.

    Args:
      script: "train.py", "certify.py" or "attack.py".
      config: path below configs/, without .py.
      workdir: run directory; finished parts are not run again.
      *changes: "KEY=VALUE" in the config.
    """
    command = [
        sys.executable,
        str(ROOT / script),
        f"--config={ROOT / 'configs' / config}.py",
        f"--workdir={workdir}",
        *(f"--config.{change}" for change in changes),
    ]
    print(" ".join(command[1:]), flush=True)
    done = subprocess.run(command, check=False)
    if done.returncode:
        sys.exit(done.returncode)
