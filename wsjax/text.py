"""How values look at the prompt: long arrays by shape and dtype, numbers erring down."""

import dataclasses
import decimal
from collections.abc import Mapping
from typing import Any

import numpy as np

# Entries of a list of numbers that is shown as it is, such as votes, and characters of
# what others make of their objects.
_MOST_ENTRIES, _MOST_CHARACTERS = 16, 120


class Short:
    """Gives dataclasses derived from it a `repr` that is short whatever they hold."""

    def __init_subclass__(cls, **options: Any):
        super().__init_subclass__(**options)
        # In the class itself: `dataclass` would put one of its own there.
        if "__repr__" not in vars(cls):
            cls.__repr__ = short_repr  # type: ignore[method-assign]


def short_repr(value: Any) -> str:
    """A dataclass or NamedTuple by its fields, each as `shown` shows it."""
    if dataclasses.is_dataclass(value):
        names = [field.name for field in dataclasses.fields(value) if field.repr]
    else:
        names = value._fields
    fields = (f"{name}={shown(getattr(value, name))}" for name in names)
    return f"{type(value).__name__}({', '.join(fields)})"


def shown(value: Any) -> str:
    """A value in few characters.

    Args:
      value: anything; arrays may be traced.

    Returns:
      Arrays as `float32[28, 28, 1]`, a few whole numbers or floats as they are,
      functions by name, nested containers of arrays by how many these are, and others by
      their `repr` where that is short.
    """
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return _array(value)
    if type(value).__name__ == "Partial":  # Of JAX.
        parts = map(shown, (value.func, *value.args, *value.keywords.values()))
        return f"Partial({', '.join(parts)})"
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return repr(value) if "__repr__" in vars(type(value)) else short_repr(value)
    if isinstance(value, (Mapping, list, tuple)):
        return _container(value)
    if callable(value) and hasattr(value, "__qualname__"):
        return value.__qualname__
    text = repr(value)
    if isinstance(value, Short) or (len(text) <= _MOST_CHARACTERS and "\n" not in text):
        return text
    arrays = _arrays(value)
    return f"<{type(value).__name__}{_of(arrays)}>"


def rounded_down(value: float, digits: int = 4) -> str:
    """A number with so many significant digits, never above it."""
    context = decimal.Context(prec=digits, rounding=decimal.ROUND_FLOOR)
    return f"{float(context.create_decimal(value)):.{digits}g}"


def _array(value):
    size = int(np.prod(value.shape))
    few = len(value.shape) == 1 and size <= _MOST_ENTRIES
    if few and value.dtype.kind in "iufb" and not _is_traced(value):
        return str(np.asarray(value).tolist())
    return f"{value.dtype}{list(value.shape)}"


# Data sets are read, and show themselves, without JAX.
def _is_traced(value):
    if isinstance(value, np.ndarray):
        return False
    import jax

    return isinstance(value, jax.core.Tracer)


def _arrays(value):
    import jax

    return [x for x in jax.tree.leaves(value) if hasattr(x, "shape")]


def _container(value):
    arrays = _arrays(value)
    text = "" if arrays else repr(value)
    if text and len(text) <= _MOST_CHARACTERS:
        return text
    return f"<{type(value).__name__} of {len(value)}{_of(arrays)}>"


def _of(arrays):
    if not arrays:
        return ""
    numbers = sum(int(np.prod(x.shape)) for x in arrays)
    return f": {numbers:,} numbers in {len(arrays)} arrays"
