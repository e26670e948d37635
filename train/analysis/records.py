"""Read a folder of results: the records of its last plan, its failures and its sweep file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from train.execution import results
from train.execution.results import Record


@dataclass(frozen=True)
class Results:
    """What a folder of results holds."""

    records: list[Record]
    failures: list[Record]
    planned: int  # runs of the last plan, or as many as there are and failed without a plan
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
    runs, unreadable = results.read(folder / "results.jsonl")
    failures, unreadable_failures = results.read(folder / "failures.jsonl")
    keys, source = results.read_plan(folder, {**runs, **failures})
    if not source and (folder / "sweep.toml").exists():
        source = (folder / "sweep.toml").read_text()
    keys = dict.fromkeys(keys)
    runs = {key: runs[key] for key in keys if key in runs}
    failures = {key: failures[key] for key in keys if key in failures}
    if not runs:
        of_plan = " of the plan in cells.json" if (folder / "cells.json").exists() else ""
        # train.evaluate's --out is the folder above, and what people type here too
        below = sorted({str(path.parent) for path in folder.glob("*/results.jsonl*") if path.stat().st_size})
        advice = f"there are some in {', '.join(below)}" if below else f"is {folder} what train.sweep wrote?"
        raise ValueError(f"{folder / 'results.jsonl'} has no results{of_plan}; {advice}")
    lines = {"results.jsonl": unreadable, "failures.jsonl": unreadable_failures}
    return Results(list(runs.values()), list(failures.values()), len(keys), source, lines)
