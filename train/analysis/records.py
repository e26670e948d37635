"""Read a folder of results: the records of its last plan, its failures and its sweep file."""

from __future__ import annotations

import gzip
import json
import lzma
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Record = dict[str, Any]
OPENERS = {"": open, ".xz": lzma.open, ".gz": gzip.open}


@dataclass(frozen=True)
class Results:
    """What a folder of results holds."""

    records: list[Record]
    failures: list[Record]
    planned: int  # runs of the last plan, or as many as there are without a plan
    source: str  # text of the sweep file, "" if there was none
    unreadable: dict[str, int]  # lines that could not be read, by file


def read(folder: Path) -> Results:
    """Read what `train.sweep` or `train.evaluate` wrote to `folder`; it may still be running, nothing is changed.

    Runs that the last plan, cells.json there, does not have are left out. results.jsonl may be compressed, as
    results.jsonl.xz or results.jsonl.gz.

    Raises:
        ValueError: there are no results, or cells.json is damaged.
        OSError: a file cannot be read.
    """
    runs, unreadable = read_lines(folder / "results.jsonl")
    failures, unreadable_failures = read_lines(folder / "failures.jsonl")
    source = (folder / "sweep.toml").read_text() if (folder / "sweep.toml").exists() else ""
    planned, cells = len(runs), folder / "cells.json"
    if cells.exists():
        try:
            plan = json.loads(cells.read_bytes())
            keys, source = dict.fromkeys(plan["keys"]), plan["file"]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{cells} is damaged or of another format: run the same command again") from error
        planned = len(keys)
        runs = {key: runs[key] for key in keys if key in runs}
        failures = {key: failures[key] for key in keys if key in failures}
    if not runs:
        of_plan = " of the plan in cells.json" if cells.exists() else ""
        raise ValueError(f"{folder / 'results.jsonl'} has no results{of_plan}; is {folder} what train.sweep wrote?")
    lines = {"results.jsonl": unreadable, "failures.jsonl": unreadable_failures}
    return Results(list(runs.values()), list(failures.values()), planned, source, lines)


def read_lines(path: Path) -> tuple[dict[str, Record], int]:
    """Return the records of `path`, or of `path` compressed, by their keys, and how many lines could not be read.

    A line is JSON with a "key". The digest at the end of lines of earlier versions is not compared. A file that is not
    there has no records.
    """
    found: dict[str, Record] = {}
    unreadable = 0
    for ending, opener in OPENERS.items():
        at = path.with_name(path.name + ending)
        if not at.exists():
            continue
        with opener(at, "rb") as file:
            for line in file:
                try:
                    record = json.loads(line)
                    found[record["key"]] = record
                except (ValueError, KeyError, TypeError):
                    unreadable += 1
    return found, unreadable
