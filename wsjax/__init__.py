"""Certified robustness against Wasserstein attacks, in JAX.

The names below tell the story in order: move mass along a flow plan, make noise of
it, count votes under the noise, and certify a radius; or certify without votes, by
distances. They need jax, numpy and scipy only. Models, training, data and attacks live
in subpackages that are imported by name (`load_model`, a released classifier by its name,
needs flax and safetensors), and so does what is told of in fewer words:
`wsjax.spectrum`, `wsjax.confidence`, `wsjax.certificates`, `wsjax.scores`.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wsjax import certificates as certificates
    from wsjax import confidence as confidence
    from wsjax import scores as scores
    from wsjax import spectrum as spectrum
    from wsjax._names import *
    from wsjax.runs.released import load_model as load_model


# Public names that need more than the core does.
_ELSEWHERE = {"load_model": "wsjax.runs.released"}


# When one of them is asked for, and not before: JAX takes seconds to come, and a
# program wants to heed signals from the start (`wsjax.console.signals`).
def _load(name: str) -> Any:
    import importlib.util

    if importlib.util.find_spec(f"wsjax.{name}"):
        return importlib.import_module(f"wsjax.{name}")
    if name in _ELSEWHERE:
        home = importlib.import_module(_ELSEWHERE[name])
        return globals().setdefault(name, getattr(home, name))
    names = importlib.import_module("wsjax._names")
    if name not in ("__all__", *names.__all__):
        raise AttributeError(f"module 'wsjax' has no attribute {name!r}")
    return globals().setdefault(name, getattr(names, name))


def __dir__() -> list[str]:
    return sorted({*globals(), *_ELSEWHERE, *_load("__all__")})


if not TYPE_CHECKING:  # Which would take any name then.
    __getattr__ = _load
