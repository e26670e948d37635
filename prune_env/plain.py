"""Plain values and arrays as bytes, and back: nothing that is read can run."""

from __future__ import annotations

import json
import math
import re
from collections import OrderedDict
from typing import Any

import numpy as np
import torch

DTYPE = re.compile(r"[<>|][biufcSU]\d+")  # of arrays: numbers and strings
Plain = Any  # None, bool, int, float, str, bytes; arrays, tensors; lists, tuples and dicts of these


class NotPlain(TypeError):
    """A value that is not made of plain ones."""


def pack(tree: Plain) -> bytes:
    """`tree` as bytes that `unpack` reads: a line of JSON, then the numbers of all arrays.

    Numpy's scalars come back as arrays without axes, an OrderedDict as a dict, tensors on the CPU.

    Raises:
        NotPlain: for any other type, subclasses of these types among them; the message says where it is.
    """
    buffers: list[bytes | memoryview] = []
    head = json.dumps(_encode(tree, "", buffers))
    return b"".join([head.encode(), b"\n", *buffers])


def unpack(data: bytes) -> Plain:
    """What `pack` was given. Arrays are read-only views of `data`, tensors copies.

    Raises:
        ValueError: `data` is not from `pack`.
    """
    head, _, numbers = data.partition(b"\n")
    try:
        tree, at = _decode(json.loads(head), memoryview(numbers), 0)
    except (
        TypeError,
        OverflowError,
        RuntimeError,
    ) as error:  # JSON of another form: RuntimeError is torch's and depth's
        raise ValueError(f"these bytes are not from pack: {type(error).__name__}: {error}") from error
    if at != len(numbers):
        raise ValueError(f"these bytes are not from pack: {len(numbers) - at} too many")
    return tree


def _encode(value: Any, where: str, buffers: list[bytes | memoryview]) -> Any:
    """JSON for `value`: itself, or [kind, ...] for what JSON does not have; floats are exact, NaN and infinity too."""
    kind = type(value)
    if value is None or kind in (bool, int, float, str):
        return value
    if kind in (list, tuple):
        return [kind.__name__, [_encode(one, f"{where}[{i}]", buffers) for i, one in enumerate(value)]]
    if kind in (dict, OrderedDict):  # pairs, as keys may be numbers
        pairs = [
            [_encode(key, f"{where} key", buffers), _encode(one, f"{where}[{key!r}]", buffers)]
            for key, one in value.items()
        ]
        return ["dict", pairs]
    if kind is bytes:
        buffers.append(value)
        return ["bytes", len(value)]
    if isinstance(value, torch.Tensor):  # a parameter, too, is its numbers
        array = value.detach().cpu().contiguous()
        buffers.append(array.view(-1).view(torch.uint8).numpy().tobytes() if array.numel() else b"")
        return ["tensor", str(array.dtype).removeprefix("torch."), list(array.shape)]
    if kind is np.ndarray or isinstance(value, np.generic):
        array = np.asarray(value)
        if DTYPE.fullmatch(array.dtype.str):
            buffers.append(array.tobytes())
            return ["array", array.dtype.str, list(array.shape)]
    raise NotPlain(f"{where or 'the value'} is a {kind.__module__}.{kind.__qualname__}")


def _decode(node: Any, numbers: memoryview, at: int) -> tuple[Any, int]:
    """The value of a node of JSON, and where the bytes that follow its own begin."""
    if isinstance(node, dict):
        raise ValueError("these bytes are not from pack: there is an object")
    if not isinstance(node, list):
        return node, at
    kind, what, *shape = node
    if kind in ("list", "tuple"):
        values = []
        for one in what:
            value, at = _decode(one, numbers, at)
            values.append(value)
        return (values if kind == "list" else tuple(values)), at
    if kind == "dict":
        table = {}
        for key, one in what:
            key, at = _decode(key, numbers, at)
            table[key], at = _decode(one, numbers, at)
        return table, at
    if kind == "bytes":
        return bytes(_take(numbers, at, what)), at + what
    if kind == "tensor":
        dtype = vars(torch).get(what)
        if not isinstance(dtype, torch.dtype):
            raise ValueError(f"these bytes are not from pack: torch has no dtype {what!r}")
        size = dtype.itemsize * _count(shape)
        taken = bytearray(_take(numbers, at, size))
        flat = torch.frombuffer(taken, dtype=dtype) if size else torch.empty(0, dtype=dtype)
        return flat.reshape(shape[0]), at + size
    if kind == "array":
        if not DTYPE.fullmatch(what):
            raise ValueError(f"these bytes are not from pack: arrays have no dtype {what!r}")
        dtype = np.dtype(what)
        size = dtype.itemsize * _count(shape)
        return np.frombuffer(_take(numbers, at, size), dtype).reshape(shape[0]), at + size
    raise ValueError(f"these bytes are not from pack: there is no kind {kind!r}")


def _count(shape: list[Any]) -> int:
    """How many numbers an array has; `shape` is what follows the dtype."""
    sides = shape[0] if len(shape) == 1 else None
    if not isinstance(sides, list) or not all(type(side) is int and side >= 0 for side in sides):
        raise ValueError(f"these bytes are not from pack: {shape!r} is no shape")
    return math.prod(sides)


def _take(numbers: memoryview, at: int, size: int) -> memoryview:
    if type(size) is not int or size < 0:
        raise ValueError(f"these bytes are not from pack: {size!r} is no size")
    if at + size > len(numbers):
        raise ValueError(f"these bytes are not from pack: {at + size - len(numbers)} are missing")
    return numbers[at : at + size]
