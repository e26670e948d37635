"""Parts of a run's state that are what they should be, or a ValueError that says which is not."""

from __future__ import annotations

import math
import numbers
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor


def entries(what: str, value: object, names: Iterable[str], *, others: bool = False) -> dict[str, Any]:
    """`value` as it is, a dict with these entries, and no `others` unless they are allowed."""
    if not isinstance(value, dict):
        raise ValueError(f"{what} is of type {type(value).__name__}; it must be a dict")
    wanted = set(names)
    if lacking := sorted(wanted - set(value)):
        raise ValueError(f"{what} lacks {', '.join(lacking)}")
    if not others and (unknown := sorted(map(str, set(value) - wanted))):
        raise ValueError(f"{what} has {', '.join(unknown)}, of which nothing is known")
    return value


def number(what: str, value: object, most: float = math.inf) -> None:
    """Raises unless that is a finite number from 0 to `most`."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0.0 <= value <= most or value == math.inf:
        raise ValueError(f"{what} is {value!r}; it must be a number from 0 to {most:g}")


def count(what: str, value: object) -> None:
    """Raises unless that is a whole number from 0."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < 0:
        raise ValueError(f"{what} is {value!r}; it must be a whole number, 0 or more")


def tensor(what: str, value: object, like: Tensor, *, finite: bool = False) -> None:
    """Raises unless that is a tensor of the same shape and type, on any device, and `finite` if that is asked for."""
    if not isinstance(value, Tensor):
        raise ValueError(f"{what} is of type {type(value).__name__}; it must be a tensor")
    if value.shape != like.shape or value.dtype != like.dtype:
        theirs, own = (f"{tuple(one.shape)} {one.dtype}" for one in (value, like))
        raise ValueError(f"{what} is {theirs}; it must be {own}")
    if finite and not torch.isfinite(value).all():
        raise ValueError(f"{what} has numbers that are not finite")
