"""Settings of all tests: eight devices on a CPU, and hypothesis without chance."""

import os
import tempfile

import hypothesis

# JAX reads this when it starts its backend, so it has to come before any test.
_DEVICES = "--xla_force_host_platform_device_count"
if _DEVICES not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_DEVICES}=8".strip()

# Programs that several tests compile alike are compiled once, for all workers together.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    _COMPILED = tempfile.TemporaryDirectory()
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _COMPILED.name
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"

hypothesis.settings.register_profile(
    "wsjax", derandomize=True, deadline=None, database=None, max_examples=40
)
hypothesis.settings.load_profile("wsjax")
