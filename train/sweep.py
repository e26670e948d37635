"""Run what a sweep file lists: `prune-env sweep --help`."""

from __future__ import annotations

import math
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import tyro

from prune_env import io
from train.analysis import summary, table
from train.analysis.folder import write
from train.analysis.records import targets, told_apart
from train.execution import command_line, toml
from train.execution.plan import SETTINGS, Block, full_id
from train.execution.program import Running, carry_out
from train.execution.results import Record


@dataclass(kw_only=True)
class Arguments:
    """Run the cells of a sweep file: tasks x agents x budgets x seeds.

    Results go to OUT/NAME, by default named after the file: results.jsonl (one line a cell, written once, with its
    provenance), table.txt, curves.csv, accuracy.png (one a task), tensorboard/, a copy of the file, and
    failures.jsonl if an agent failed. Cells that results.jsonl has are not run again, so a sweep that was stopped
    goes on where it was. `prune-env report OUT/NAME` makes the report. Examples:
        prune-env sweep sweeps/digits.toml
        prune-env sweep sweeps/digits.toml --agents my_agents:Mine --workers 8
    """

    file: tyro.conf.Positional[Path]
    """The sweep file, see docs/benchmark.md."""
    agents: Annotated[tuple[str, ...], tyro.conf.arg(metavar="AGENT ...", help_behavior_hint="")] = ()
    """More agents, entered beside the file's in every block."""
    running: Annotated[Running, tyro.conf.arg(name="images and result", help="")] = field(default_factory=Running)


DEFAULTS = {"keep": [0.5], "seeds": 5}
LISTS = {"tasks": str, "agents": str, "budgets": float, "keep": float}


def read(path: Path, more_agents: tuple[str, ...] = ()) -> tuple[list[Block], str]:
    """Return the blocks of a sweep file, and its text.

    Args:
        path: a TOML file with `[tasks.NAME]` tables, each with an `env` and what it sets of that (`lr` may be a
            table of rates by budget, of which the nearest in ratio is taken) and, for the tables, the `target` that
            an agent is to reach, in points over `full`; and `agents`, `budgets`, `keep` and `seeds` at the top or in
            `[[blocks]]`, where the top holds for what a block does not set; a block may also name its `tasks`, all by
            default.
        more_agents: specs that are entered in every block too.

    Raises:
        ValueError: the file is no TOML, or an entry is missing, unknown or of another type.
        OSError: it cannot be read.
    """
    document, text = toml.read(path)
    tasks, blocks = document.pop("tasks", {}), document.pop("blocks", [{}])
    if not isinstance(tasks, dict) or not tasks or not all(isinstance(task, dict) for task in tasks.values()):
        raise ValueError(f"{path} has no tasks: it needs a table [tasks.NAME] with an env for each")
    if not isinstance(blocks, list) or not blocks or not all(isinstance(block, dict) for block in blocks):
        raise ValueError(f"{path}: blocks must be tables, [[blocks]]")
    for name, task in tasks.items():
        where = f"{path}: task {name!r}"
        _check_known(where, task, ("env", "target", *SETTINGS))
        target = task.pop("target", 1)  # `records.targets` reads it
        if type(target) not in (int, float) or not 0 < target < 100:
            raise ValueError(f"{where}: target is {target!r}; it must be points over full, between 0 and 100")
        if not isinstance(task.get("env"), str):
            raise ValueError(f"{where} needs an env, the id of an environment")
        same = [other for other in tasks if tasks[other] == task]
        if len(same) > 1:  # their cells would be one and the same
            raise ValueError(f"{path}: tasks {' and '.join(map(repr, same))} are the same task")
    settings = {name: _settings(f"{path}: task {name!r}", task) for name, task in tasks.items()}
    _check_known(str(path), document, (*LISTS, "seeds"))
    found: list[Block] = []
    for number, block in enumerate(blocks, start=1):
        where = f"{path}: block {number}"
        _check_known(where, block, (*LISTS, "seeds"))
        entries = {**DEFAULTS, "tasks": list(tasks), **document, **block}
        values = {name: _list(where, name, kind, entries) for name, kind in LISTS.items()}
        specs, seeds = (*values["agents"], *more_agents), entries["seeds"]
        if type(seeds) is not int or seeds < 1:
            raise ValueError(f"{where}: seeds is {seeds!r}; it must be a whole number of at least 1")
        for name in values["tasks"]:
            if name not in tasks:
                raise ValueError(f"{where}: task {name!r} is not known; there are {', '.join(tasks)}")
            env = full_id(tasks[name]["env"])
            found.append(Block(name, env, settings[name], specs, values["keep"], values["budgets"], seeds))
    return found, text


def _settings(where: str, task: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of a task; learning rates by budget as numbers: {"3": 0.1} -> {3.0: 0.1}."""
    settings = {name: value for name, value in task.items() if name != "env"}
    if not isinstance(table := settings.get("lr"), dict):
        return settings
    try:
        rates = {float(budget): float(rate) for budget, rate in table.items()}
    except (TypeError, ValueError):
        rates = {}
    if not rates or not all(0.0 < x < math.inf for pair in rates.items() for x in pair):
        raise ValueError(f"{where}: lr is {table!r}; it must be a positive number, or such numbers by budget")
    return settings | {"lr": rates}


def _check_known(where: str, entries: dict[str, Any], known: Sequence[str]) -> None:
    unknown = sorted(set(entries) - set(known))
    if unknown:
        of_task = "; it is a setting of a task, and stands below [tasks.NAME]" if unknown[0] in SETTINGS else ""
        raise ValueError(f"{where}: {unknown[0]!r} is not known; there are {', '.join(known)}{of_task}")


def _list(where: str, name: str, kind: type, entries: dict[str, Any]) -> tuple[Any, ...]:
    values = entries.get(name)
    kinds = (int, float) if kind is float else (kind,)
    if not isinstance(values, list) or not values or any(type(value) not in kinds for value in values):
        content = {str: "strings", float: "numbers"}[kind]
        raise ValueError(f"{where}: {name} is {values!r}; it must be a list of {content} with at least one")
    return tuple(kind(value) for value in values)


def report(folder: Path, records: Sequence[Record], source: str) -> None:
    """Print the tables, task by task; write them and the sweep file's text into the folder of results."""
    io.write_atomic(folder / "sweep.toml", source.encode())
    shown = summary.latest(told_apart(records))
    write(folder, shown, {record["task"] for record in shown}, source)
    table.display(table.render_tasks(shown, targets(source)))


def main(args: Sequence[str] | None = None) -> int:
    """Run the program with `args` (else those of the command line); return its exit status, see `carry_out`."""
    arguments = command_line.read("sweep", Arguments, args)
    command = shlex.join(["prune-env", "sweep", *(sys.argv[1:] if args is None else args)])

    def blocks() -> tuple[str, list[Block], str]:
        found, text = read(arguments.file, arguments.agents)
        return arguments.file.stem, found, text

    return carry_out(arguments.running, command, blocks, report)


if __name__ == "__main__":
    sys.exit(main())
