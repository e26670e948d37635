"""Plain values as bytes: everything plain comes back as it was, everything else is refused, nothing runs."""

import json
import pickle
from collections import OrderedDict, namedtuple
from contextlib import suppress
from enum import IntEnum
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from prune_env.plain import NotPlain, pack, unpack

TENSORS = [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool]
DTYPES = ["?", "i1", "u1", "i8", "u4", "f2", "f4", "f8", "c8", "c16", ">f4", ">i8", "S3", "U4"]


@st.composite
def tensors(draw: st.DrawFn) -> torch.Tensor:
    """Of any bits, so every NaN, infinity and denormal too; also transposed ones, and such that need gradients."""
    dtype = draw(st.sampled_from(TENSORS))
    shape = draw(st.lists(st.integers(0, 3), max_size=3))
    size = int(np.prod(shape)) * dtype.itemsize
    data = draw(st.binary(min_size=size, max_size=size))
    if dtype is torch.bool:
        data = bytes(byte % 2 for byte in data)
    flat = torch.frombuffer(bytearray(data), dtype=dtype) if size else torch.empty(0, dtype=dtype)
    tensor = flat.reshape(shape)
    if draw(st.booleans()) and dtype.is_floating_point:
        tensor = tensor.requires_grad_()
    return tensor.T if len(shape) == 2 and draw(st.booleans()) else tensor


arrays = st.sampled_from(DTYPES).flatmap(
    lambda dtype: hnp.arrays(np.dtype(dtype), hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3))
)
text = st.text(st.characters(exclude_categories=["Cs"]))
numbers = st.floats() | st.integers() | st.booleans()
leaves = st.none() | numbers | text | st.text() | st.binary() | arrays | tensors()
keys = numbers.filter(lambda key: key == key) | text | st.none() | st.binary() | st.tuples(st.integers(), text)
trees = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(keys, inner, max_size=4)
        | st.dictionaries(text, inner, max_size=4).map(OrderedDict)
    ),
    max_leaves=12,
)


def bits(tensor: torch.Tensor) -> bytes:
    return bytes(tensor.detach().contiguous().reshape(-1).view(torch.uint8).tolist())


def assert_same(found: Any, given: Any) -> None:
    """Types and bits, and the order of what has one; written without a look at what `pack` does."""
    if isinstance(given, torch.Tensor):
        assert type(found) is torch.Tensor
        assert (found.dtype, found.shape, found.requires_grad) == (given.dtype, given.shape, False)
        assert bits(found) == bits(given)
        found.numpy() if found.dtype is not torch.bfloat16 else None  # on the CPU
    elif isinstance(given, np.ndarray):
        assert type(found) is np.ndarray
        assert (found.dtype, found.shape) == (given.dtype, given.shape)
        assert found.tobytes() == given.tobytes()
        assert not found.flags.writeable or found.size == 0
    elif isinstance(given, dict):
        assert type(found) is dict
        for key, other in zip(found, given, strict=True):
            assert_same(key, other)
            assert_same(found[key], given[other])
    elif isinstance(given, list | tuple):
        assert type(found) is type(given)
        for one, other in zip(found, given, strict=True):
            assert_same(one, other)
    else:
        assert type(found) is type(given)
        assert repr(found) == repr(given)  # -0.0, NaN


@settings(max_examples=60)
@given(trees)
@example([np.array(["dög", ""]), np.array([b"a\0", b"\0"]), np.zeros((0, 3)), np.array(-0.0), 2**4000, -0.0])
@example({1: "int", 1.5: float("nan"), "1": float("-inf"), None: 5e-324, (1, "a"): b"\n", False: []})
@example(OrderedDict(b=torch.tensor([float("nan"), -0.0, float("inf")], dtype=torch.bfloat16), a=torch.empty(3, 0)))
@example(["array", "<f8", [2]])
@example([[["tensor"]], ("dict", [["a", 1]]), {"kind": ["list", []]}])
def test_what_is_plain_comes_back_bit_for_bit(tree: Any):
    assert_same(unpack(pack(tree)), tree)
    assert pack(unpack(pack(tree))) == pack(tree)


def test_parameters_and_views_and_numpys_scalars_are_their_numbers():
    weight = torch.arange(24.0).reshape(2, 3, 2, 2).contiguous(memory_format=torch.channels_last)
    tree = {
        "parameter": torch.nn.Parameter(weight),
        "every other": torch.arange(10)[::2],
        "one number": torch.tensor(3, dtype=torch.int8),
        "columns": np.asfortranarray(np.arange(6).reshape(2, 3)),
        "backwards": np.arange(3)[::-1],
        "scalar": np.float32(0.1),
    }
    found = unpack(pack(tree))
    assert torch.equal(found["parameter"], weight)
    assert found["every other"].tolist() == [0, 2, 4, 6, 8]
    assert found["one number"].shape == ()
    assert found["one number"].item() == 3
    assert found["columns"].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert found["backwards"].tolist() == [2, 1, 0]
    assert (found["scalar"].shape, found["scalar"].dtype, found["scalar"][()]) == ((), np.float32, np.float32(0.1))


def test_arrays_are_views_and_tensors_are_copies():
    data = pack([np.zeros(3), torch.zeros(3)])
    array, tensor = unpack(data)
    with pytest.raises(ValueError, match="read-only"):
        array[0] = 1
    tensor += 1
    assert unpack(data)[1].tolist() == [0, 0, 0]


class _Number(IntEnum):
    ONE = 1


class _List(list):
    pass


class _Array(np.ndarray):
    pass


Pair = namedtuple("Pair", "a b")


@pytest.mark.parametrize(
    ("thing", "name"),
    [
        ({1, 2}, "builtins.set"),
        (frozenset(), "builtins.frozenset"),
        (object(), "builtins.object"),
        (len, "builtins.builtin_function_or_method"),
        (lambda: 1, "builtins.function"),
        (Path("a"), "pathlib"),
        (1 + 2j, "builtins.complex"),
        (bytearray(b"a"), "builtins.bytearray"),
        (range(3), "builtins.range"),
        (Pair(1, 2), "Pair"),
        (_List(), "_List"),
        (_Number.ONE, "_Number"),
        (np.zeros(2).view(_Array), "_Array"),
        (np.array([{}]), "numpy.ndarray"),
        (np.array(["2026-01-01"], "datetime64[D]"), "numpy.ndarray"),
        (np.zeros(2, [("a", "f4"), ("b", "O")]), "numpy.ndarray"),
        (np.random.default_rng(0), "Generator"),
        (torch.nn.Linear(1, 1), "Linear"),
        (torch.device("cpu"), "torch.device"),
    ],
)
def test_everything_else_is_refused_by_place_and_name(thing: Any, name: str):
    with pytest.raises(NotPlain, match=rf"^the value is a .*{name}"):
        pack(thing)
    with pytest.raises(NotPlain, match=rf"^\['deep'\]\[1\]\[3\] is a .*{name}"):
        pack({"deep": [0, {3: thing}]})
    try:
        hash(thing)
    except TypeError:
        return
    with pytest.raises(NotPlain, match=rf"^\[0\] key is a .*{name}"):
        pack([{thing: 1}])


def opens(data: bytes) -> None:
    """That reading either goes well or raises ValueError."""
    with suppress(ValueError):
        unpack(data)


@settings(max_examples=200)
@given(st.binary())
@example(b"")
@example(b"\n")
@example(b"[]\n")
@example(b'["list"]\n')
@example(b'["array","O",[1]]\n12345678')
@example(b'["array","<f8",[-1]]\n12345678')
@example(b'["array","<f8",[4611686018427387904,4]]\n')
@example(b'["array","<f8",[1e999]]\n')
@example(b'["tensor","load",[1]]\n')
@example(b'["tensor","float32",[0,-1]]\n')
@example(b'["tensor","float32",[-1]]\nabcd')
@example(b'["tensor","os.system",["ls"]]\n')
@example(b'["array",["<f8"],[1]]\n12345678')
@example(b'["array","<f8"]\n12345678')
@example(b'["array","<f8",[[1]]]\n12345678')
@example(b'["array","<f8",[0,1e30]]\n')
@example(b'["array","<f8",[0,100000000000000000000]]\n')
@example(b'["array","<i4,(2,",[1]]\n12345678')
@example(b'["array","<U99999999999999999999",[0]]\n')
@example(b'["list",[["bytes",-5],["bytes",5]]]\n')
@example(b'["bytes",-5]\nabcdef')
@example(b'["bytes",1e400]\nabcdef')
@example(b'["dict",[[["list",[]],1]]]\n')
@example(b'"\xff"\n')
@example(pickle.dumps({"a": 1}))
def test_any_bytes_are_read_or_refused(data: bytes):
    opens(data)
    opens(data + b"\n")


@pytest.mark.parametrize("head", [b"[" * 100_000, b'["list",[' * 50_000, b"1" * 10_000], ids=["[", "list", "1"])
def test_deep_and_long_heads_are_refused(head: bytes):
    with pytest.raises(ValueError):  # noqa: PT011
        unpack(head + b"\n")


json_trees = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 2**65) | st.floats() | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(max_size=3), inner, max_size=2)
        | st.tuples(
            st.sampled_from(["list", "tuple", "dict", "bytes", "tensor", "array"]),
            inner | st.sampled_from(["float32", "bfloat16", "bool", "load", "<f8", "O", "V4", "i4,f8", "U3", "dtype"]),
            st.lists(st.integers(-3, 5), max_size=3) | inner,
        )
    ),
    max_leaves=10,
)


@settings(max_examples=200)
@given(json_trees, st.binary(max_size=40))
def test_heads_of_any_form_are_read_or_refused(head: Any, numbers: bytes):
    opens(json.dumps(head).encode() + b"\n" + numbers)


@settings(max_examples=60)
@given(trees, st.data())
def test_every_truncation_and_addition_is_refused(tree: Any, data: st.DataObject):
    packed = pack(tree)
    with pytest.raises(ValueError, match="too many"):
        unpack(packed + b"\0")
    head, _, numbers = packed.partition(b"\n")
    if numbers:
        end = data.draw(st.integers(len(head) + 1, len(packed) - 1))
        with pytest.raises(ValueError, match="are missing"):
            unpack(packed[:end])
    if not isinstance(tree, int | float):  # 12 without its last digit is a number too
        with pytest.raises(ValueError):  # noqa: PT011  (any: it may be the decoder of JSON that says so)
            unpack(packed[: data.draw(st.integers(0, len(head) - 1))])


@settings(max_examples=60)
@given(trees, st.data())
def test_flipped_bits_are_read_or_refused(tree: Any, data: st.DataObject):
    packed = bytearray(pack(tree))
    at = data.draw(st.integers(0, len(packed) - 1))
    packed[at] ^= 1 << data.draw(st.integers(0, 7))
    opens(bytes(packed))


def test_what_pack_never_writes_is_refused():
    for head in (
        b'{"a":1}',
        b'["list",[["bytes",-5],["bytes",5]]]',  # which would end where it began
        b'["array","<f8",[-1]]',
        b'["array","<f8",[true]]',
        b'["array","<f8",[1],[2]]',
        b'["tensor","float32",[0,-1]]',
        b'["tensor","float",[[1]]]',
        b'["set",[1]]',
    ):
        with pytest.raises(ValueError, match=r"^these bytes are not from pack"):
            unpack(head + b"\n")


def test_nothing_is_executed(tmp_path: Path):
    """What another reader would run: a pickle, alone, as an array of objects and as the name of a type."""

    class Hostile:
        def __reduce__(self):
            return Path.touch, (tmp_path / "ran",)

    evil = pickle.dumps(Hostile())
    for data in (
        evil,
        b"\n" + evil,
        b'["array","O",[1]]\n' + evil,
        b'["array","|O",[]]\n' + evil[:8],
        b'["array","O",[0]]\n',
        b'["tensor","load",[1]]\n' + evil,
        b'["tensor","__dict__",[1]]\n' + evil,
        b'["tensor","_utils._rebuild_tensor",[]]\n',
        f"__import__('pathlib').Path({str(tmp_path / 'ran')!r}).touch()\n".encode(),
    ):
        with pytest.raises(ValueError):  # noqa: PT011
            unpack(data)
    assert not (tmp_path / "ran").exists()
    pickle.loads(evil)  # it does run where it is let
    assert (tmp_path / "ran").exists()
