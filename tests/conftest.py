"""Settings of all tests: eight devices on a CPU, and hypothesis without chance."""

import os

# Read when JAX starts its backend, so this has to come before any test module.
_DEVICES = "--xla_force_host_platform_device_count"
if _DEVICES not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_DEVICES}=8".strip()

import hypothesis

hypothesis.settings.register_profile(
    "wsjax", derandomize=True, deadline=None, database=None, max_examples=40
)
hypothesis.settings.load_profile("wsjax")
