"""Checks of Python numbers that attacks are given; arrays pass without being read."""

import jax
import numpy as np


def check_positive(**values):
    """Refuses numbers that are not positive and finite."""
    for name, value in _numbers(values):
        if not 0 < value < np.inf:
            raise ValueError(f"{name}={value} is not a positive finite number.")


def check_not_negative(**values):
    """Refuses numbers that are negative or not finite."""
    for name, value in _numbers(values):
        if not 0 <= value < np.inf:
            raise ValueError(f"{name}={value} is negative or not finite.")


def check_whole(**values):
    """Refuses numbers that are not whole and positive."""
    for name, value in _numbers(values):
        if not (value >= 1 and value % 1 == 0):
            raise ValueError(f"{name}={value} is not a whole number above zero.")


def _numbers(values):
    return [
        (name, value)
        for name, value in values.items()
        if not isinstance(value, (jax.Array, np.ndarray))
    ]
