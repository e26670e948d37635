"""What an agent remembers, as plain values: so that a run that was killed goes on with the same agent."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from enum import Enum
from functools import cached_property
from types import BuiltinFunctionType, FunctionType, MemberDescriptorType, ModuleType, SimpleNamespace
from typing import Any

import numpy as np

PLAIN = (type(None), bool, int, float, str, bytes)
FUNCTIONS = (FunctionType, BuiltinFunctionType, type, type(np.argsort))  # the last is numpy's own


LIBRARIES = {*sys.stdlib_module_names, "numpy", "torch"}  # whose classes no agent remembers something in
PYTHONS = {  # names that Python, or its library, gives a class
    "__module__", "__qualname__", "__doc__", "__dict__", "__weakref__", "__slots__", "__annotations__", "__hash__",
    "__annotate__", "__annotate_func__", "__annotations_cache__", "__type_params__", "__parameters__", "__orig_bases__",
    "__match_args__", "__dataclass_fields__", "__dataclass_params__", "__abstractmethods__", "_abc_impl",
    "__static_attributes__", "__firstlineno__", "__slotnames__", "__protocol_attrs__", "__non_callable_proto_members__",
}  # fmt: skip


class _Bare:
    """What has nothing but attributes: an object that is larger keeps something else where nobody sees it."""


class Opaque(TypeError):
    """An agent whose memory cannot be told from its attributes."""


def capture(agent: Any, rng: np.random.Generator | None = None) -> Any:
    """All that `agent` remembers: None, numbers, strings, arrays, and lists, tuples and dicts of these.

    That is what its attributes hold, and those of the objects in them, generators of numpy included; or, if it has
    both `state_dict()` and `load_state_dict(state)`, what the first returns. What the classes of these objects have is
    there to be compared with that of a new agent, and not restored. A function remembers nothing: what one keeps in
    its module, or a method in defaults of its arguments, is not seen.

    Args:
        agent: the object.
        rng: the generator that it is called with, which it may hold too; what that remembers is not part of it.

    Raises:
        Opaque: an attribute holds something else, such as a function with variables of its own, or two of them share
            their memory, which would be two memories afterwards; the message says which.
    """
    return _Capture(rng).of(agent, "the agent")


def restore(agent: Any, state: Any, rng: np.random.Generator | None = None) -> None:
    """Let `agent`, made and reset as the other was, remember what `capture` of that returned.

    Args:
        agent: the object, which is changed.
        state: from `capture`.
        rng: the generator that it will be called with.

    Raises:
        Opaque: it has not got the same objects in its attributes.
    """
    _restored(agent, state, "the agent", rng)


class _Capture:
    """One look at an agent; what was seen is kept, to notice what is shared."""

    def __init__(self, rng: np.random.Generator | None):
        self._rng = rng
        self._seen: dict[int, Any] = {}  # by id, which is taken by another once the thing is gone
        if rng is not None:
            self._see(rng.bit_generator, "")
        self._arrays: list[np.ndarray] = []

    def of(self, value: Any, where: str) -> Any:
        kind = type(value)
        if kind in PLAIN:
            return value
        if isinstance(value, np.generic):
            return ["scalar", np.asarray(value)]
        if isinstance(value, FUNCTIONS):
            if _keeps(value):
                raise Opaque(f"{where} is a function with variables of its own")
            if not _found(value):  # all lambdas have one name: which of them it was could not be told
                raise Opaque(f"{where} is a function, or a class, that its module does not have by its name")
            name = f"{value.__module__}.{value.__qualname__}"
            return ["function", name, self._of_class(value, where)] if isinstance(value, type) else ["function", name]
        if kind is tuple:  # that it is in two places would not be noticed
            return ["tuple", [self.of(one, f"{where}[{i}]") for i, one in enumerate(value)]]
        if value is self._rng:
            return ["rng"]
        self._see(value, where)
        if kind is np.ndarray:
            if value.dtype.hasobject:
                raise Opaque(f"{where} is an array of objects")
            if not value.flags.c_contiguous:
                raise Opaque(f"{where} is an array whose numbers do not lie in their order")
            if any(np.may_share_memory(value, other) for other in self._arrays):
                raise Opaque(f"{where} shares its memory with another array")
            self._arrays.append(value)
            return value.copy()
        if kind is list:
            return ["list", [self.of(one, f"{where}[{i}]") for i, one in enumerate(value)]]
        if kind is dict:
            return ["dict", {self._key(key, where): self.of(one, f"{where}[{key!r}]") for key, one in value.items()}]
        if isinstance(value, np.random.Generator):
            if getattr(value.bit_generator.seed_seq, "n_children_spawned", 0):
                raise Opaque(f"{where} is a generator that has spawned others")
            self._see(value.bit_generator, f"the bit generator of {where}")
            return ["generator", self.of(value.bit_generator.state, where)]
        name = f"{kind.__module__}.{kind.__qualname__}"
        methods = _methods(value)
        if methods:
            return ["told", name, self.of(methods[0](), f"{where}.state_dict()")]
        bare = kind is SimpleNamespace or (hasattr(value, "__dict__") and kind.__basicsize__ == _Bare.__basicsize__)
        if not bare or kind.__itemsize__ or isinstance(value, Enum):
            raise Opaque(f"{where} is a {name}")
        in_class = self._of_class(kind, where)
        attributes = {key: self.of(one, f"{where}.{key}") for key, one in vars(value).items()}
        return ["object", name, attributes, in_class]

    @staticmethod
    def _of_class(kind: type, where: str) -> list[str]:
        """What a class has: a name there can stand for another value later, which a new agent's class does not have."""
        written = []
        for shared, key, one in _own(kind):
            if not _constant(one):
                raise Opaque(f"{where} could remember something in {shared.__qualname__}.{key}, which its class has")
            written.append(f"{key}={_written(one)}")
        return written

    def _see(self, value: Any, where: str) -> None:
        if id(value) in self._seen:
            raise Opaque(f"{where} is in two places")
        self._seen[id(value)] = value

    @staticmethod
    def _key(key: Any, where: str) -> Any:
        if type(key) not in PLAIN:
            raise Opaque(f"{where} has the key {key!r}")
        return key


def _keeps(function: Any) -> bool:
    """Whether a function, or a class, could remember something itself."""
    if isinstance(function, BuiltinFunctionType):
        return not isinstance(function.__self__, ModuleType | None)  # it is the method of an object
    if not isinstance(function, FunctionType):
        return False
    defaults = [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]
    return bool(function.__closure__ or vars(function) or any(type(one) not in (*PLAIN, tuple) for one in defaults))


def _found(function: Any) -> bool:
    """Whether its module has a function, or a class, under its name."""
    found = sys.modules.get(function.__module__)
    for name in function.__qualname__.split("."):
        found = getattr(found, name, None)
    return found is function


def _own(kind: type) -> Iterator[tuple[type, str, Any]]:
    """Class, name and value of what a class and those above it have, but for what Python put there, and libraries."""
    for shared in kind.__mro__[:-1]:
        if shared.__module__.partition(".")[0] in LIBRARIES:
            continue
        for key, one in vars(shared).items():
            method = key.startswith("__") and key != "__call__" and isinstance(one, FunctionType)
            if not (method and _bare(one)) and key not in PYTHONS:
                yield shared, key, one


def _bare(function: FunctionType) -> bool:
    """Whether it has no attributes but Python's marks."""
    return all(key.startswith("__") for key in vars(function))


def _constant(value: Any, within: tuple[type, ...] = ()) -> bool:
    """Whether what a class has cannot be changed: plain values, and methods that have no variables of their own.

    A class is constant if all that it has is; `within` are the classes that it is looked for in.
    """
    if type(value) in (tuple, frozenset):
        return all(_constant(one, within) for one in value)
    if isinstance(value, type):
        return value in within or all(_constant(one, (*within, value)) for _, _, one in _own(value))
    if isinstance(value, property):
        return all(map(_constant, (value.fget, value.fset, value.fdel)))
    if isinstance(value, staticmethod | classmethod):
        return _constant(value.__func__)
    if isinstance(value, cached_property):
        return _constant(value.func)
    if isinstance(value, FunctionType):  # `super()` makes `__class__` a variable, Python's marks begin with "__"
        return set(value.__code__.co_freevars) <= {"__class__"} and _bare(value)
    if isinstance(value, BuiltinFunctionType):
        return not _keeps(value)
    return type(value) in PLAIN or isinstance(value, (np.number, np.bool_, MemberDescriptorType, *FUNCTIONS))


def _written(value: Any, within: tuple[type, ...] = ()) -> str:
    """What `_constant` knows, in words that are the same in every process."""
    if isinstance(value, type):
        own = () if value in within else _own(value)
        words = [f"{key}={_written(one, (*within, value))}" for _, key, one in own]
        return f"{value.__module__}.{value.__qualname__}({', '.join(words)})"
    if type(value) in (tuple, frozenset):
        words = [_written(one, within) for one in value]
        return f"{type(value).__name__}({', '.join(words if type(value) is tuple else sorted(words))})"
    if hasattr(type(value), "__get__"):  # its address is another each time
        return getattr(value, "__qualname__", "")
    return repr(value)


def _methods(value: Any) -> tuple[Callable[..., Any], Callable[..., Any]] | None:
    """`state_dict` and `load_state_dict`, of what has both."""
    tells, told = (getattr(value, name, None) for name in ("state_dict", "load_state_dict"))
    return (tells, told) if callable(tells) and callable(told) else None


def _restored(old: Any, state: Any, where: str, rng: np.random.Generator | None) -> Any:
    """The value that `state` was captured from; objects are those of `old`, changed."""
    if isinstance(state, np.ndarray):
        return state.copy()
    if not isinstance(state, list):
        return state
    kind, *rest = state
    if kind == "rng":
        return rng
    if kind == "scalar":
        return rest[0][()]
    if kind in ("list", "tuple"):
        before = old if isinstance(old, list | tuple) else ()
        values = [
            _restored(before[i] if i < len(before) else None, one, f"{where}[{i}]", rng)
            for i, one in enumerate(rest[0])
        ]
        return values if kind == "list" else tuple(values)
    if kind == "dict":
        before = old if isinstance(old, dict) else {}
        return {key: _restored(before.get(key), one, f"{where}[{key!r}]", rng) for key, one in rest[0].items()}
    if kind == "generator":
        inner = _restored(None, rest[0], where, rng)
        if (
            not isinstance(old, np.random.Generator)
            or old.bit_generator.state["bit_generator"] != inner["bit_generator"]
        ):
            raise Opaque(f"{where} is no generator of the same kind when the agent is new")
        old.bit_generator.state = inner
        return old
    name = f"{old.__module__}.{old.__qualname__}" if kind == "function" and hasattr(old, "__qualname__") else None
    if kind != "function":
        name = f"{type(old).__module__}.{type(old).__qualname__}"
    if name != rest[0]:
        raise Opaque(f"{where} is no {rest[0]} when the agent is new")
    if kind == "told":
        methods = _methods(old)
        assert methods is not None
        methods[1](_restored(None, rest[1], f"{where}.state_dict()", rng))
    elif kind == "object":
        for key in set(vars(old)) - set(rest[1]):
            object.__delattr__(old, key)
        for key, one in rest[1].items():
            # also where a frozen dataclass forbids it
            object.__setattr__(old, key, _restored(vars(old).get(key), one, f"{where}.{key}", rng))
    return old
