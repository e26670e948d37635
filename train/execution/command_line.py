"""Read the command lines of all programs: flags without prefixes, and no default `None` in the help."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import is_dataclass, replace
from typing import Annotated, Any, TypeVar, get_args

import tyro
from tyro.constructors import ConstructorRegistry, StructConstructorSpec, StructFieldSpec, StructTypeInfo

from train.analysis.text import readable

LOOK = (tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff)  # `--fresh`, and no `--no-fresh`
REGISTRY = ConstructorRegistry()

T = TypeVar("T")


class _Wrong(Exception):
    """What a dataclass raises, which tyro would print in a box if it were a ValueError."""


_reading: set[type] = set()


def read(name: str, arguments: type[T], args: Sequence[str] | None, description: str | None = None) -> T:
    """Return what the command line of the program `name` says.

    Args:
        name: of the program, for the usage line.
        arguments: a dataclass. A dataclass inside is a group of options of its own, called as its `tyro.conf.arg`.
        args: the words; None for those of the process.
        description: of the program; by default the docstring of the dataclass.

    Raises:
        SystemExit: after the help, or a message about a word that is wrong.
        ValueError: a dataclass refuses its values.
    """
    of = {"prog": f"prune-env {name}", "description": description, "config": LOOK, "registry": REGISTRY}
    try:
        return tyro.cli(arguments, args=args, **of)
    except _Wrong as error:
        raise ValueError(str(error)) from error.__cause__


def refused(why: object, status: int = 2) -> int:
    """Say in one line why a program ends; return its exit status."""
    print(readable(f"error: {' '.join(str(why).split())}"), file=sys.stderr)
    return status


def run(name: str, programs: Mapping[str, Any], args: Sequence[str] | None, description: str | None) -> None:
    """Call the function that the first word names, with what the others say. Raises as `read` and the function."""
    of = {"prog": f"prune-env {name}", "description": description, "config": LOOK, "registry": REGISTRY}
    tyro.extras.subcommand_cli_from_dict(dict(programs), args=args, **of)


@REGISTRY.struct_rule
def _ours(info: StructTypeInfo) -> StructConstructorSpec | None:
    """Leave out the defaults None and (), as the text of such an option says what holds then, and False of flags."""
    if not is_dataclass(info.type) or info.type in _reading:
        return None
    _reading.add(info.type)  # so that tyro's own rule answers now
    try:
        found = ConstructorRegistry.get_struct_spec(info)
    finally:
        _reading.discard(info.type)
    if not isinstance(found, StructConstructorSpec):
        return None
    made = found.instantiate

    def instantiate(**values: Any) -> Any:
        try:
            return made(**values)
        except (TypeError, ValueError) as error:
            raise _Wrong(str(error)) from error

    instantiate.__doc__ = info.type.__doc__  # tyro describes the program by it
    return replace(found, instantiate=instantiate, fields=tuple(map(_shown, found.fields)))


def _shown(field: StructFieldSpec) -> StructFieldSpec:
    if field.default == ():
        return replace(field, type=Annotated[field.type, tyro.conf.arg(help_behavior_hint="")])
    if field.default is not None and field.default is not False:
        return field
    metavar = next((kind.__name__.upper() for kind in get_args(field.type) if isinstance(kind, type)), None)
    return replace(field, type=Annotated[field.type, tyro.conf.arg(help_behavior_hint="", metavar=metavar)])
