"""The results file: one line of JSON for each finished run, appended as runs end."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

from prune_env import io
from prune_env.students.recipes import Recipe

Record = dict[str, Any]
OF_MACHINE = ("root", "images", "device")  # settings of an environment on which no result depends
SEAL = "prune_env record 1 sha256"  # the last entry of lines that were written before 2026-11-29


def key_of(configuration: Mapping[str, Any], agent: str, seed: int, test: str) -> str:
    """Return the SHA-256 (hex) that equal runs share: configuration, agent, seed and data.

    What the recipe says counts once, and only where it differs from a recipe's defaults. So a new option with a
    default, or a default that is written out, makes no run another one. The code is no part of the key: a record
    tells the commit that it is from.

    Args:
        configuration: of a record, see `train.execution.run.configuration`.
        agent: its spec.
        seed: of the run.
        test: digest of the test split.
    """
    recipe = {field.name: field.default for field in fields(Recipe)}
    settings = {
        name: float(value) if name == "budget" else value
        for name, value in configuration["settings"].items()
        if name not in recipe and name not in OF_MACHINE
    }
    chosen = {
        name: value
        for name, value in configuration["recipe"].items()
        if recipe.get(name, MISSING) is MISSING or value != recipe[name]
    }
    parts = [configuration["env"], settings, chosen, configuration["device"], configuration["data"], test, agent, seed]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def read(path: Path) -> tuple[dict[str, Record], int]:
    """Return the records in a file by their keys, the later of two with one key, and how many lines are no records.

    A kill can tear the last line; nobody gets to see it. A file that is not there has no records.
    """
    records: dict[str, Record] = {}
    unreadable = 0
    for line in path.read_bytes().split(b"\n") if path.exists() else []:
        try:
            record = json.loads(line) if line else None
        except ValueError:  # torn, or not UTF-8
            record = {}
        if record is None:
            continue
        if not isinstance(record, dict) or "key" not in record:
            unreadable += 1
            continue
        record.pop(SEAL, None)
        if "configuration" in record:  # of a run that ended; its key may be of an older kind
            test = record["provenance"]["data"]["test"]
            record["key"] = key_of(record["configuration"], record["agent"], record["seed"], test)
        records[record["key"]] = record
    return records, unreadable


def write(path: Path, records: Iterable[Record]) -> None:
    """Put these records in place of the file. Errors as for `append`."""
    io.write_atomic(path, b"".join(map(_line, records)))


def append(path: Path, record: Record) -> None:
    """Add one line, on the disk when this returns; if it cannot be written, the file is as before.

    Raises:
        ValueError: a number that JSON does not know (NaN, infinity).
        OSError: the disk is full, or the file must not be written.
    """
    line = _line(record)
    with open(path, "ab", buffering=0) as file:
        before = file.tell()
        try:
            while line:  # a disk that is nearly full takes a part
                line = line[file.write(line) :]
            os.fsync(file.fileno())
        except OSError:
            file.truncate(before)
            raise


def _line(record: Record) -> bytes:
    return json.dumps(record, allow_nan=False, separators=(",", ":")).encode() + b"\n"


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


def grouped(records: Sequence[Record]) -> dict[float, dict[str, list[Record]]]:
    """Records by budget, ascending, then by agent in the order of appearance."""
    groups: dict[float, dict[str, list[Record]]] = {}
    for record in sorted(records, key=lambda record: record["budget"]):
        groups.setdefault(record["budget"], {}).setdefault(record["agent"], []).append(record)
    return groups
