"""The numbers of a report as CSV files, also those that its page has no room for."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from dataclasses import asdict, is_dataclass
from io import StringIO
from typing import Any

import numpy as np

from train.analysis import summary
from train.analysis.records import Record
from train.analysis.summary import grouped
from train.analysis.table import rows
from train.analysis.text import readable

Line = dict[str, Any]


def make(records: Sequence[Record]) -> dict[str, str]:
    """Return the CSV files on `records`, texts by their names. Accuracies are in per cent and differences in points."""
    found: dict[str, list[Line]] = {"agents.csv": [], "classes.csv": [], "visits.csv": []}
    one_apart: list[Line] = []
    tables = {"lossless.csv": summary.equivalences, "savings.csv": summary.savings, "areas.csv": summary.areas}
    for task, own in summary.by_task(records).items():
        for budget, agents in grouped(own).items():
            for row in rows(agents):
                cell = {"task": task, "budget": budget, "agent": row.agent}
                runs = agents[row.agent]
                found["agents.csv"].append({**cell, **asdict(row), **_diagnostics(runs)})
                for name, means in _classes(runs):
                    found["classes.csv"].append({**cell, "what": name, **{str(i): v for i, v in enumerate(means)}})
                visits = _mean(runs, "visits")
                shares = np.linspace(0, 100, len(visits))
                found["visits.csv"].append({**cell, **{f"{s:g} %": v for s, v in zip(shares, visits, strict=True)}})
        for name, function in tables.items():
            found.setdefault(name, []).extend({"task": task, **asdict(each)} for each in function(own))
        for first, second in summary.one_apart({record["agent"] for record in own}):
            pairs = summary.pairs(own, first, second)
            one_apart += [{"task": task, "agent": first, "against": second, **asdict(pair)} for pair in pairs]
    found["one-apart.csv"] = one_apart
    found["improvements.csv"] = [asdict(each) for each in summary.improvements(records)]
    return {name: _text(lines) for name, lines in found.items() if lines}


def _diagnostics(runs: Sequence[Record]) -> Line:
    """Means over the seeds of an agent."""
    results = [run["results"] for run in runs]
    wrong = [r["wrong_visits"] for r in results if r["wrong_visits"] is not None]
    return {
        "worst_class": 100 * np.mean([r["test_worst_class_accuracy"] for r in results]),
        "gini": np.mean([r["visits_gini"] for r in results]),
        "age": np.mean([r["age"] for r in results]),
        "wrong_visits": np.mean(wrong) if wrong else None,
        "scoring": np.mean([r["spent"]["score"] for r in results]),
        "diverged": sum(r["diverged"] for r in results),
    }


def _classes(runs: Sequence[Record]) -> Iterable[tuple[str, np.ndarray]]:
    yield "relative visits", _mean(runs, "class_visits")
    yield "test accuracy", 100 * _mean(runs, "test_class_accuracy")


def _mean(runs: Sequence[Record], name: str) -> np.ndarray:
    values = np.array([run["results"][name] for run in runs], dtype=np.float64)
    return np.ma.masked_invalid(values).mean(axis=0).filled(np.nan)


def _text(lines: Sequence[Line]) -> str:
    flat = [dict(_flat(line)) for line in lines]
    text = StringIO(newline="")
    writer = csv.DictWriter(text, list(dict.fromkeys(name for line in flat for name in line)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat)
    return readable(text.getvalue())


def _flat(line: Line, before: str = "") -> Iterable[tuple[str, Any]]:
    """Entries of a line: those of a difference by themselves, an interval as its two ends, numbers to six digits."""
    for name, value in line.items():
        if is_dataclass(value) or isinstance(value, dict):
            yield from _flat(value, f"{before}{name}_")  # pyright: ignore[reportArgumentType]
        elif name.endswith("interval"):
            stem = before + name.removesuffix("interval")
            yield from ((f"{stem}low", _digits(value and value[0])), (f"{stem}high", _digits(value and value[1])))
        elif isinstance(value, tuple):
            yield before + name, " ".join(f"{each:g}" for each in value)
        else:
            yield before + name, _digits(value)


def _digits(value: Any) -> Any:
    if isinstance(value, float | np.floating):
        return "" if np.isnan(value) else f"{value:.6g}"
    return value
