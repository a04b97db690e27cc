"""Settings of all tests: eight devices on a CPU, and hypothesis without chance."""

import os
import signal
import tempfile

import hypothesis

# JAX reads these when it starts its backend, so they have to come before any test.
# Most programs of the tests run once: compiling them well takes longer than running them.
_FLAGS = {
    "--xla_force_host_platform_device_count": 8,
    "--xla_backend_optimization_level": 0,
}
for _flag, _value in _FLAGS.items():
    if _flag not in os.environ.get("XLA_FLAGS", ""):
        os.environ["XLA_FLAGS"] = (
            f"{os.environ.get('XLA_FLAGS', '')} {_flag}={_value}".strip()
        )

# Programs that several tests compile alike are compiled once, for all workers together.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    _COMPILED = tempfile.TemporaryDirectory()
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _COMPILED.name
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"

# Tests send signals to themselves and to programs that they start. What starts the tests
# may have asked to ignore some, as nohup does, and programs keep to what was asked before.
for _signum in (signal.SIGINT, signal.SIGHUP):
    if signal.getsignal(_signum) == signal.SIG_IGN:
        signal.signal(_signum, signal.SIG_DFL)

hypothesis.settings.register_profile(
    "wsjax", derandomize=True, deadline=None, database=None, max_examples=40
)
hypothesis.settings.load_profile("wsjax")
