"""Arguments that are what they should be, or an error that names them."""

from __future__ import annotations

import numbers
from collections.abc import Callable
from typing import Any


def real(name: str, value: object) -> float:
    """`value` as a float. Raises TypeError, naming it, for anything but a real number."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name} is {value!r}; it must be a number")
    return float(value)


def whole(name: str, value: object) -> int:
    """`value` as an int. Raises TypeError for what is no number, ValueError for a fraction, naming it."""
    real(name, value)
    if not isinstance(value, numbers.Integral):
        raise ValueError(f"{name} is {value!r}; it must be a whole number, such as 3")
    return int(value)


def text(name: str, value: object) -> str:
    """`value` as it is. Raises TypeError, naming it, for anything but a string."""
    if not isinstance(value, str):
        raise TypeError(f"{name} is {value!r}; it must be a string")
    return value


def named(name: str, value: str | Callable[..., Any]) -> str:
    """`value`, or module:name of what can be called. Raises TypeError, naming it, for anything else."""
    if not callable(value):
        return text(name, value)
    of = value if hasattr(value, "__qualname__") else type(value)
    return f"{of.__module__}:{of.__qualname__}"
