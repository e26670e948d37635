"""The page of a report: what report.html, a jinja2 template, shows of the records of a sweep."""

from __future__ import annotations

import base64
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape
from numpy.typing import NDArray

from train.analysis import figures, pictures, statistics, summary
from train.analysis.records import Record, Results
from train.analysis.summary import FULL, Saving, Win, grouped
from train.analysis.table import MOSTLY, Row, rows
from train.analysis.text import count, listed, readable, spread

SHOWN = 30  # rows of a table up to which it is unfolded
PROVENANCE = {  # what is said of all runs, and how it is called
    "version": "prune_env",
    "commit": "commit",
    "dirty": "files differ from the commit",
    **{name: name for name in ("python", "torch", "numpy", "gymnasium", "device", "threads")},
    "bf16": "bfloat16",
    "command": "command",
}


def render(results: Results, title: str, sheets: Iterable[str], root: str | None) -> tuple[str, dict[str, bytes]]:
    """Return the page as HTML, and its figures by the names of their files.

    Args:
        results: what is reported.
        title: of the page.
        sheets: names of the CSV files beside the page.
        root: folder with the images, to show some; without it only those are shown that come with the package.
    """
    records = summary.latest(results.records)
    images: dict[str, bytes] = {}

    def keep(name: str, png: bytes) -> str:
        images[name] = png
        return embed(png)

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.globals |= {"spread": spread, "count": count, "listed": listed, "side": statistics.side}
    environment.globals |= {"breakable": breakable, "saved": saved, "keep": keep, "embed": embed}
    page = environment.get_template("report.html").render(
        title=title,
        style=Markup((Path(__file__).parent / "report.css").read_text()),
        compared=_compared(records, results.planned),
        mixed=summary.mixed_commits(records),
        tasks=[_task(n, name, own, root) for n, (name, own) in enumerate(summary.by_task(records).items(), start=1)],
        wins=summary.wins(records),
        failures=results.failures,
        provenance=_provenance(records),
        unreadable=results.unreadable,
        source=results.source,
        sheets=sheets,
        mostly=MOSTLY,
        margin=statistics.MARGIN,
        few_seeds=statistics.FEW_SEEDS,
        shown=SHOWN,
    )
    return readable(page), images


def embed(png: bytes) -> str:
    """Return an image's bytes as a source that the page itself holds."""
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def breakable(name: str) -> Markup:
    """Return a long name that may go on in the next line behind its punctuation."""
    return Markup(re.sub(r"(?<=[:,+])", "<wbr>", str(escape(name))))


def saved(saving: Saving) -> str:
    """Return the share of compute that is saved, in per cent."""
    ends = saving.interval and (round(100 * saving.interval[0]), round(100 * saving.interval[1]))
    # where all of it lies out of full's range the interval has no width, and says nothing
    return spread(round(100 * saving.saved), ends if ends and ends[0] < ends[1] else None, "+.0f")


def _compared(records: Sequence[Record], planned: int) -> str:
    """Say what was run, and how many of the planned runs if not all of them."""
    part = f"{len(records):,} of {planned:,} planned runs" if len(records) < planned else count(len(records), "run")
    networks = dict.fromkeys(record["configuration"]["recipe"]["model"] for record in records)
    budgets = sorted({record["budget"] for record in records})
    return (
        f"{part} of {count(len({r['agent'] for r in records}), 'agent')} on {listed(summary.by_task(records))}: "
        f"network {listed(networks)}, {count(len({r['seed'] for r in records}), 'seed')}, "
        f"{'budgets' if len(budgets) > 1 else 'budget'} {listed(f'{b:g}' for b in budgets)}, in full-epoch equivalents "
        "of compute."
    )


def _task(number: int, name: str, records: list[Record], root: str | None) -> dict[str, Any]:
    """What the template needs to know of a task."""
    groups = grouped(records)
    cells = {budget: rows(agents) for budget, agents in groups.items()}
    budget = max(cells, key=lambda budget: (len(cells[budget]), budget))  # of the diagnostics
    agents = {row.agent: groups[budget][row.agent] for row in cells[budget]}
    order = list(dict.fromkeys([*agents, *(record["agent"] for record in records)]))
    name = name or records[0]["configuration"]["env"]
    slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:40]
    train, missing = pictures.training_data(records[-1], root)
    classes = list(train.classes) if train else [str(i) for i in range(len(records[0]["results"]["class_visits"]))]
    labels = figures.class_labels(classes)
    wins, found = summary.wins(records), summary.equivalences(records)
    winners: dict[float, list[Win]] = {}
    for win in sorted(wins.winning, key=lambda win: (win.budget, -win.difference.mean)):
        winners.setdefault(win.budget, []).append(win)
    return {
        "name": name,
        "label": f"{number}-{slug}".rstrip("-"),
        "order": order,
        "cells": cells,
        "short": sum(map(len, cells.values())) <= SHOWN,
        "budget": budget,
        "agents": agents,
        "seeds": len({record["seed"] for record in records}),
        "rates": summary.rates(records),
        "wins": wins,
        "winners": winners,
        "undecided": [
            f"{b:g}" for b, row in cells.items() if b not in winners and any(r.difference_interval for r in row)
        ],
        "longer": _longer(records),
        # at some budgets full alone ran, to compare with
        "best": [b for b in summary.best(records) if len(cells[b.budget]) > 1 or len(order) == 1 or b.agent != FULL],
        "equivalences": found,
        "lossless": [f"{e.agent} at budget {e.budget:g}" for e in found if e.verdict == "lossless" and not e.vacuous],
        "vacuous": list(dict.fromkeys(f"{e.budget:g} against {e.larger:g}" for e in found if e.vacuous)),
        "savings": summary.savings(records),
        "falls": any(b < a - statistics.ROUNDING for a, b in pairwise(summary.full_curve(records).values())),
        "accuracy": [
            (f"Test accuracy over log budget: {', '.join(some)}", figures.accuracy(cells, some))
            for some in figures.chunks(order)
        ],
        "forests": [
            _forest(budget, cells[budget]) for budget in cells if any(r.difference is not None for r in cells[budget])
        ],
        "kept": _kept(agents),
        "classes": [
            (
                "Relative visits of each class, by agent",
                figures.classes(
                    _averages(agents, "class_visits"), classes, "visits relative to the class's share", ".2f", 1.0
                ),
            ),
            (
                "Test accuracy of each class, by agent",
                figures.classes(_averages(agents, "test_class_accuracy", 100.0), classes, "test accuracy (%)"),
            ),
        ],
        "renamed": [
            (str(index), label, name)
            for index, (label, name) in enumerate(zip(labels, classes, strict=True))
            if label != name or len(classes) > figures.NAMED
        ]
        if train
        else [],
        "missing": missing,
        **_sometimes(agents, train),
        "recipe": _recipe(records),
    }


def _longer(records: Sequence[Record]) -> str:
    """Say where full is best if that is before its largest budget; else nothing."""
    curve = summary.full_curve(records)
    at = max(curve, key=lambda budget: (round(curve[budget], 9), -budget), default=0.0)
    if not curve or at == max(curve):
        return ""
    last = max(curve)
    return f"Full training is best at budget {at:g}: {curve[at]:.2f} %, and {curve[last]:.2f} % at {last:g}."


def _forest(budget: float, cells: Sequence[Row]) -> tuple[str, bytes]:
    points = [figures.Point(r.agent, r.difference, r.difference_interval) for r in cells if r.difference is not None]
    points.sort(key=lambda point: -point.mean)
    alt = f"Paired differences to full at budget {budget:g}, {count(len(points), 'agent')}"
    return alt, figures.forest(points, f"difference to full at budget {budget:g} (points)")


def _averages(agents: dict[str, list[Record]], name: str, unit: float = 1.0) -> dict[str, NDArray]:
    return {agent: unit * _average([run["results"][name] for run in runs]) for agent, runs in agents.items()}


def _average(values: Sequence[Any]) -> NDArray:
    """Mean over seeds, (...) of (S, ...), of what is there: None and NaN are not; NaN where nothing is."""
    return np.ma.masked_invalid(np.array(values, dtype=np.float64)).mean(axis=0).filled(np.nan)


def _kept(agents: dict[str, list[Record]]) -> list[tuple[str, bytes]]:
    found = {a: _average([_grid(r["results"]["kept_by_difficulty"]) for r in runs]) for a, runs in agents.items()}
    return [
        (f"Share kept by difficulty and time: {', '.join(some)}", figures.kept({agent: found[agent] for agent in some}))
        for some in figures.chunks(list(found))
    ]


def _grid(shares: Sequence[Sequence[float | None] | None]) -> list[Sequence[float | None]]:
    """Shares kept, in each part of the budget those of the last step that had begun."""
    lines: list[Sequence[float | None]] = [[None] * max(len(row) for row in shares if row is not None)]
    for row in shares:
        lines.append(lines[-1] if row is None else row)
    return lines[1:]


def _sometimes(agents: dict[str, list[Record]], train: pictures.Data | None) -> dict[str, Any]:
    """The figure of the samples that were sometimes kept, and pictures of some if their images are there."""
    groups = ("always", "sometimes", "never")
    shares = {}
    for agent, runs in agents.items():
        found = [[run["results"]["sometimes"][group] for group in groups] for run in runs]
        chosen = [values for values in found if None not in values]
        if chosen:
            shares[agent] = np.mean(chosen, axis=0).tolist()
    drawn = (
        [("Shares of samples always, sometimes and never kept, by agent", figures.divided(shares))] if shares else []
    )
    shown = []
    for agent in pictures.pictured(list(shares)):
        if train is None:
            break
        run = min(agents[agent], key=lambda run: run["seed"])
        examples = run["results"]["sometimes"]["examples"]
        of_run = [(g, [pictures.thumbnail(train, *each) for each in some]) for g, some in examples.items() if some]
        shown.append((agent, run["seed"], of_run))
    return {"sometimes": drawn, "pictures": shown}


def _provenance(records: Sequence[Record]) -> list[tuple[str, Markup]]:
    of_runs = [record["provenance"] for record in records]
    lines = [(label, _values(run.get(name) for run in of_runs)) for name, label in PROVENANCE.items()]
    times = sorted(run["time"] for run in of_runs)
    return [*lines, ("runs ended", escape(f"{times[0]} to {times[-1]}"))]


def _recipe(records: Sequence[Record]) -> list[tuple[str, Markup]]:
    """What was trained how, a line a setting; values that are not the same for all runs with their budgets."""
    configurations = [(record["budget"], record["configuration"]) for record in records]
    lines = [("env", _values(c["env"] for _, c in configurations))]
    for part in ("settings", "recipe"):
        for name in dict.fromkeys(name for _, c in configurations for name in c[part] if name != "budget"):
            budgets: dict[str, list[float]] = {}
            for budget, c in configurations:
                at = budgets.setdefault(str(c[part].get(name)), [])
                at += [budget] if budget not in at else []
            told = [f"{value} at {listed(f'{b:g}' for b in at)}" for value, at in budgets.items()]
            lines.append((name, escape("; ".join(told) if len(budgets) > 1 else next(iter(budgets)))))
    parts = dict.fromkeys(part for r in records for part in r["provenance"]["data"])
    digests = [(f"{part} data, SHA-256", _values(r["provenance"]["data"].get(part) for r in records)) for part in parts]
    return lines + digests


def _values(values: Iterable[Any]) -> Markup:
    """Different values, each with how many runs have it if there are several."""
    counts = Counter(str(value) for value in values)
    lines = [
        Markup("<code>{}</code>{}").format(value, "" if len(counts) == 1 else f" ({count(n, 'run')})")
        for value, n in counts.items()
    ]
    return Markup("<br>").join(lines)
