"""Write the numbers of a report as CSV files, also those that its page has no room for."""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from io import StringIO
from typing import Any

import numpy as np
from numpy.typing import NDArray

from train.analysis import summary
from train.analysis.records import Record
from train.analysis.statistics import Mean
from train.analysis.summary import Row
from train.analysis.text import readable

Line = dict[str, Any]
SPOILED = {"wrong_visits": "wrong labels", "corrupted_visits": "corrupted images"}  # entries of results, in words


def make(records: Sequence[Record]) -> dict[str, str]:
    """Return the CSV files on `records`, texts by their names. Accuracies are in per cent and differences in points."""
    found: dict[str, list[Line]] = defaultdict(list)
    for task, own in summary.by_task(records).items():
        for budget, agents in summary.grouped(own).items():
            for row in summary.rows(agents):
                cell = {"task": task, "budget": budget, "agent": row.agent}
                results = [run["results"] for run in agents[row.agent]]
                found["agents.csv"].append({**cell, **_of_agent(row, results)})
                relative = mean([result["class_visits"] for result in results])
                accuracy = 100 * mean([result["test_class_accuracy"] for result in results])
                for what, values in (("relative visits", relative), ("test accuracy", accuracy)):
                    found["classes.csv"].append({**cell, "what": what, **{str(i): v for i, v in enumerate(values)}})
                visits = mean([result["visits"] for result in results])
                shares = np.linspace(0, 100, len(visits))
                found["visits.csv"].append({**cell, **{f"{s:g} %": v for s, v in zip(shares, visits, strict=True)}})
        found["lossless.csv"] += [{"task": task, **asdict(each)} for each in summary.equivalences(own)]
        found["savings.csv"] += [{"task": task, **asdict(each)} for each in summary.savings(own)]
        found["areas.csv"] += [{"task": task, **each} for each in summary.areas(own)]
        found["one-apart.csv"] += [{"task": task, **each} for each in summary.one_apart(own)]
    found["improvements.csv"] = summary.improvements(records)
    return {name: _text(lines) for name, lines in found.items() if lines}


def mean(values: Sequence[Sequence[Any]]) -> NDArray[np.float64]:
    """Return the mean over runs, (...) of (runs, ...); None in a run does not count, NaN is where nothing does."""
    return np.ma.masked_invalid(np.array(values, dtype=np.float64)).mean(axis=0).filled(np.nan)


def spoiled_visits(results: Sequence[Mapping[str, Any]], name: str) -> float | None:
    """Return the mean over runs of an entry of SPOILED; None if no sample was spoiled so."""
    values = [result[name] for result in results if result.get(name) is not None]  # older records lack an entry
    return float(np.mean(values)) if values else None


def _of_agent(row: Row, results: Sequence[Mapping[str, Any]]) -> Line:
    """A row of the table, and means over the seeds of what the table has no room for."""
    return {
        "seeds": row.accuracy.seeds,
        "accuracy": row.accuracy.mean,
        "accuracy_interval": row.accuracy.interval,
        "difference": row.difference and row.difference.mean,
        "difference_interval": row.difference and row.difference.interval,
        **{name: getattr(row, name) for name in ("kept", "coverage", "spent", "seconds", "select_seconds")},
        "worst_class": 100 * np.mean([r["test_worst_class_accuracy"] for r in results]),
        "gini": np.mean([r["visits_gini"] for r in results]),
        "age": np.mean([r["age"] for r in results]),
        **{name: spoiled_visits(results, name) for name in SPOILED},
        "scoring": np.mean([r["spent"]["score"] for r in results]),
        "diverged": sum(r["diverged"] for r in results),
    }


def _text(lines: Sequence[Line]) -> str:
    flat = [dict(_flat(line)) for line in lines]
    text = StringIO(newline="")
    names = dict.fromkeys(name for line in flat for name in line)
    columns = [name for name in names if f"{name}_mean" not in names]  # a difference that a line lacks is no column
    writer = csv.DictWriter(text, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat)
    return readable(text.getvalue())


def _flat(line: Line, before: str = "") -> Iterable[tuple[str, Any]]:
    """Entries of a line: those of a difference by themselves, an interval as its two ends, numbers to six digits."""
    for key, value in line.items():
        name = f"{before}{key}"
        if isinstance(value, Mean | dict):
            yield from _flat(value if isinstance(value, dict) else vars(value), f"{name}_")
        elif name.endswith("interval"):
            low, high = value or (np.nan, np.nan)
            yield from _flat({"low": low, "high": high}, name.removesuffix("interval"))
        elif isinstance(value, tuple):
            yield name, " ".join(f"{each:g}" for each in value)
        elif isinstance(value, float | np.floating):
            yield name, "" if np.isnan(value) else f"{value:.6g}"
        else:
            yield name, value
