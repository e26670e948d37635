"""The results file: one line of JSON for each finished run, appended as runs end."""

from __future__ import annotations

import gzip
import hashlib
import json
import lzma
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

from prune_env import checks, io
from prune_env.data import sources
from prune_env.students.recipes import Recipe

Record = dict[str, Any]
OF_MACHINE = ("root", "images", "device")  # settings of an environment on which no result depends
FILES = ("labels", "reference")  # settings that name a file, for which the digests of what it holds stand
OPENERS = {".gz": gzip.open, ".xz": lzma.open, "": open}  # the last is written, and newer


def key_of(configuration: Mapping[str, Any], agent: str, seed: int, test: str) -> str:
    """Return the SHA-256 (hex) that equal runs share: configuration, agent, seed and data.

    What the recipe says counts once, and only where it differs from a recipe's defaults. So a new option with a
    default, or a default that is written out, makes no run another one. The code is no part of the key: a record
    has the commit that it is from.

    A network of the caller's own is told apart by its name and its outline.

    Args:
        configuration: see `train.execution.run.Run.configuration`.
        agent: its spec.
        seed: of the run.
        test: digest of the test split.
    """
    recipe = {field.name: field.default for field in fields(Recipe)}
    settings = {
        name: float(value) if name == "budget" else value
        for name, value in configuration["settings"].items()
        if name not in recipe and name not in (*OF_MACHINE, *FILES)
    }
    chosen = {
        name: value
        for name, value in configuration["recipe"].items()
        if recipe.get(name, MISSING) is MISSING or value != recipe[name]
    }
    parts = [configuration["env"], settings, chosen, configuration["device"], configuration["data"], test, agent, seed]
    for name in ("network", "reference"):
        if name in configuration:
            parts.append(configuration[name])
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def plain_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings of an environment as JSON has them: with names for data, networks and files of the caller's."""
    named = {n: checks.named(n, value) if callable(value) else value for n, value in settings.items()}
    named |= {n: Path(named[n]).name for n in FILES if named.get(n)}
    return {n: sources.name_of(value) if n == "dataset" else value for n, value in named.items()}


def read(path: Path) -> tuple[dict[str, Record], int]:
    """Return the records in a file by their keys, and how many lines are no records.

    The file may be compressed, as PATH.xz or PATH.gz. Of two records with one key the later counts, and the one that is
    not compressed, which was written after. The last line can be torn by a kill. A file that is not there has no
    records.
    """
    records: dict[str, Record] = {}
    unreadable = 0
    for ending, opener in OPENERS.items():
        at = path.with_name(path.name + ending)
        if not at.exists():
            continue
        with opener(at, "rb") as file:
            for line in file:
                try:
                    record = json.loads(line)
                    records[record["key"]] = record
                except (ValueError, KeyError, TypeError):  # torn, or something else
                    unreadable += 1
    return records, unreadable


def write(path: Path, records: Iterable[Record]) -> None:
    """Put these records in place of the file; see `io.write_atomic` and `io.line` for errors."""
    io.write_atomic(path, b"".join(map(io.line, records)))


def write_plan(folder: Path, keys: Iterable[str], source: str) -> None:
    """Keep the keys of the runs that were planned, and the text of the file that they are from, in cells.json."""
    io.write_atomic(folder / "cells.json", json.dumps({"keys": list(keys), "file": source}).encode() + b"\n")


def read_plan(folder: Path, records: Mapping[str, Record]) -> tuple[list[str], str]:
    """Return what `write_plan` kept; all records, and no text, where there is no plan.

    Raises:
        ValueError: cells.json is damaged, with the remedy.
    """
    path = folder / "cells.json"
    if not path.exists():
        return list(records), ""
    try:
        plan = json.loads(path.read_bytes())
        return plan["keys"], plan["file"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged: {error}; run the same command again") from error
