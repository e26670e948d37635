"""Results: the records of runs, as a table, a figure and a data frame; and those that a folder holds."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from train.execution import results
from train.execution.results import Record
from train.execution.toml import tomllib

if TYPE_CHECKING:
    import pandas  # pyright: ignore[reportMissingImports]
    from matplotlib.figure import Figure


class Text(str):
    """Text that Python's prompt and notebooks show as it is."""

    def __repr__(self) -> str:
        return str(self)


@dataclass(frozen=True, repr=False)
class Results:
    """What `train.evaluate.evaluate` returns, or what a folder of results holds; it is shown as its table.

    docs/records.md lists the fields of a record.
    """

    records: list[Record]
    failures: list[Record]  # "run" and "error" of each run that has no record, and its "traceback"
    planned: int  # runs of the last plan, or as many as there are and failed without a plan
    source: str  # text of the sweep file, "" if there was none
    unreadable: dict[str, int]  # lines that could not be read, by file

    def __repr__(self) -> str:
        return self.table()

    def table(self) -> Text:
        """Return the table that the program prints."""
        from train.analysis import table  # here: it needs this module

        return Text(table.plain(table.render_tasks(self.records, targets(self.source))))

    def plot(self) -> Figure:
        """Return the program's figure of accuracy against compute, of the first task."""
        from train.analysis import figures, summary  # matplotlib takes a second

        task, records = next(iter(summary.by_task(self.records).items()))
        return figures.evaluation(records, task)

    def to_frame(self) -> pandas.DataFrame:
        """Return a row a run: the numbers of its results, without curves. docs/python.md lists the columns.

        Raises:
            ModuleNotFoundError: pandas is not installed.
        """
        try:
            import pandas  # pyright: ignore[reportMissingImports]
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError("to_frame() needs pandas: pip install pandas", name="pandas") from error
        return pandas.DataFrame(list(map(_row, self.records)))


def _row(record: Record) -> dict[str, Any]:
    outcome = record["results"]
    row = {name: record[name] for name in ("task", "agent", "budget", "seed")}
    row |= {name: value for name, value in outcome.items() if not isinstance(value, dict | list)}
    return row | {f"{of}_{name}": value for of in ("spent", "seconds") for name, value in outcome[of].items()}


def targets(source: str) -> dict[str, float]:
    """Return the points over `full` that agents are to reach, by task, of those tasks of a sweep file that say so."""
    tasks = tomllib.loads(source).get("tasks", {})
    return {name: task["target"] for name, task in tasks.items() if "target" in task}


def told_apart(records: Collection[Record]) -> list[Record]:
    """Return records in which agents have their labels, and tasks different names if data or networks differ.

    Two folders of images can have one name, and a network of the caller's own may have been edited.
    """
    found, specs = [], defaultdict(set)  # by label; one that was given to several agents does not tell them apart
    for record in records:
        label, spec = record.get("label"), record.get("spec", record["agent"])
        specs[label or spec].add(spec)
        found.append({**record, "agent": label, "spec": spec} if label else record)
    found = [
        {**record, "agent": f"{record['agent']} ({record['spec']})"}
        if "spec" in record and len(specs[record["agent"]]) > 1
        else record
        for record in found
    ]
    for what, part in (("data", "provenance"), ("network", "configuration")):
        values = [json.dumps(record.get(part, {}).get(what), sort_keys=True) for record in found]
        kinds: dict[str, set[str]] = defaultdict(set)
        for record, value in zip(found, values, strict=True):
            kinds[record["task"]].add(value)
        for place, (record, value) in enumerate(zip(found, values, strict=True)):
            if len(kinds[record["task"]]) > 1:
                digest = hashlib.sha256(value.encode()).hexdigest()[:8]
                found[place] = {**record, "task": f"{record['task']}, {what} {digest}"}
    return found


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
    return Results(told_apart(runs.values()), list(failures.values()), len(keys), source, lines)
