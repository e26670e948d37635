"""Make the page of a report: what report.html, a jinja2 template, shows of the records of a sweep."""

from __future__ import annotations

import base64
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from train.analysis import figures, pictures, sheets, statistics, summary
from train.analysis.records import Record, Results
from train.analysis.statistics import Mean, side
from train.analysis.summary import FULL, Row, Saving
from train.analysis.table import MOSTLY
from train.analysis.text import count, listed, number, readable, spread
from train.execution.diagnostics import RANKS

HERE = Path(__file__).parent
SHOWN = 30  # rows of a table up to which it is unfolded
GROUPS = ("always", "sometimes", "never")  # how often a sample was kept
PROVENANCE = {  # what is said of all runs, and how it is called
    "version": "prune_env",
    "commit": "commit",
    "dirty": "files differ from the commit",
    **{name: name for name in ("python", "torch", "numpy", "gymnasium", "device", "threads")},
    "bf16": "bfloat16",
    "command": "command",
}


def render(results: Results, title: str, files: Iterable[str], root: str | None) -> tuple[str, dict[str, bytes]]:
    """Return the page as HTML, and its figures by the names of their files.

    Args:
        results: what is reported.
        title: of the page.
        files: names of the CSV files beside the page.
        root: folder with the images, to show some; without it only those are shown that come with the package.
    """
    records = summary.latest(results.records)
    environment = Environment(
        loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.globals |= {"spread": spread, "count": count, "listed": listed, "side": side}
    environment.globals |= {"breakable": breakable, "bound": bound, "saved": saved, "embed": embed, "points": points}
    tasks = [_task(n, name, own, root) for n, (name, own) in enumerate(summary.by_task(records).items(), start=1)]
    glance = [
        (f"glance-{n}.png", "Points over full, agents × troubles", png)
        for n, png in enumerate(figures.glance(summary.glance(records)), start=1)
    ]
    page = environment.get_template("report.html").render(
        title=title,
        style=Markup((HERE / "report.css").read_text()),
        results=results,
        compared=_compared(records, len(results.records), results.planned),
        labels=summary.labels(records),
        mixed=summary.mixed_commits(records),
        tasks=tasks,
        glance=glance,
        gained=any(answer.saving for task in tasks for answer in task["answers"]),
        full=any(record["agent"] == FULL for record in records),
        sides=[each for task in tasks for each in task["sides"]],
        provenance=_provenance(records),
        sheets=files,
        mostly=MOSTLY,
        shown=SHOWN,
        statistics=statistics,
    )
    drawn = [*glance, *(each for task in tasks for some in task["figures"].values() for each in some)]
    return readable(page), {name: png for name, _, png in drawn}


def embed(png: bytes) -> str:
    """Return an image's bytes as a source that the page itself holds."""
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def breakable(name: str) -> Markup:
    """Return a long name that may go on in the next line behind its punctuation."""
    return Markup(re.sub(r"(?<=[:,+/])", "<wbr>", str(escape(name))))


def bound(saving: Saving) -> str:
    """Return the words before what is only a bound."""
    return {"at_least": "at least ", "at_most": "at most ", None: ""}[saving.bound]


def saved(saving: Saving) -> str:
    """Return the share of compute that is saved, in per cent."""
    ends = saving.interval and (round(100 * saving.interval[0]), round(100 * saving.interval[1]))
    # where all of it lies out of full's range the interval has no width, and says nothing
    share = spread(round(100 * saving.saved), ends if ends and ends[0] < ends[1] else None, "+.0f")
    return bound(saving) + share


def points(difference: Mean | None) -> Markup:
    """Return a difference in points with its interval, marked where that leaves out 0."""
    if difference is None:
        return Markup("–")
    kind = {1: "up", 0: "", -1: "down"}[side(difference.interval)]
    return Markup('<span class="{}">{}</span>').format(kind, spread(difference.mean, difference.interval, "+.2f"))


def _compared(records: Sequence[Record], done: int, planned: int) -> str:
    """Say what was run, and how many of the planned runs if not all of them."""
    part = f"{done:,} of {planned:,} planned runs" if done < planned else count(len(records), "run")
    networks = dict.fromkeys(record["configuration"]["recipe"]["model"] for record in records)
    budgets = sorted({record["budget"] for record in records})
    tasks = summary.by_task(records)
    where = listed(tasks) if len(tasks) < 4 else count(len(tasks), "task")  # the table of answers names them
    return (
        f"{part} of {count(len({r['agent'] for r in records}), 'agent')} on {where}: "
        f"network {listed(networks)}, {count(len({r['seed'] for r in records}), 'seed')}, "
        f"{'budgets' if len(budgets) > 1 else 'budget'} {listed(f'{b:g}' for b in budgets)}, in full-epoch equivalents "
        "of compute."
    )


def _task(number: int, name: str, records: list[Record], root: str | None) -> dict[str, Any]:
    """What the template needs to know of a task."""
    groups = summary.grouped(records)
    cells = {budget: summary.rows(agents) for budget, agents in groups.items()}
    budget = max(cells, key=lambda budget: (len(cells[budget]), budget))  # of the diagnostics
    agents = {row.agent: groups[budget][row.agent] for row in cells[budget]}
    order = list(dict.fromkeys([*agents, *(record["agent"] for record in records)]))
    label = f"{number}-{re.sub(r'[^a-z0-9]+', '-', name.lower()).strip('-')[:40]}".rstrip("-")
    differences = {budget: _differences(of_budget) for budget, of_budget in cells.items()}
    compared = [each for of_budget in differences.values() for each in of_budget.values() if each.interval]
    found, gained = summary.equivalences(records), summary.savings(records)
    needed = {"accuracy over budget": len(cells) > 1, "verdicts of losslessness": found, "compute saved": gained}
    shares = _shares(agents)
    drawn: dict[str, list[tuple[str, str, bytes]]] = defaultdict(list)  # by kind: file, words and image
    for kind, alt, png in _figures(cells, differences, order, agents, shares):
        drawn[kind].append((f"{label}-{kind}-{len(drawn[kind]) + 1}.png", alt, png))
    train, missing = pictures.training_data(records[-1], root)
    return {
        "name": name,
        "label": label,
        "order": order,
        "cells": cells,
        "short": sum(map(len, cells.values())) <= SHOWN,
        "budget": budget,
        "agents": agents,
        "seeds": len({record["seed"] for record in records}),
        "rates": summary.rates(records),
        "sides": [side(difference.interval) for difference in compared],
        "answers": summary.answers(records),
        "longer": _longer(summary.full_curve(records)),
        "equivalences": found,
        "lossless": [f"{e.agent} at budget {e.budget:g}" for e in found if e.verdict == "lossless" and not e.vacuous],
        "vacuous": list(dict.fromkeys(f"{e.budget:g} against {e.larger:g}" for e in found if e.vacuous)),
        "savings": gained,
        "absent": [what for what, has in needed.items() if not has],
        "figures": drawn,
        "spoiled": [(what, visits) for name, what in sheets.SPOILED.items() if (visits := _spoiled(agents, name))],
        "missing": missing,
        "pictures": [_examples(agent, agents[agent], train) for agent in pictures.pictured(list(shares)) if train],
        "recipe": _recipe(records),
    }


def _differences(rows: Iterable[Row]) -> dict[str, Mean]:
    """Differences to full by agent, the largest first."""
    found = {row.agent: row.difference for row in rows if row.difference}
    return dict(sorted(found.items(), key=lambda each: -each[1].mean))


def _longer(curve: dict[float, float]) -> str:
    """Say where full is best if that is before its largest budget; else nothing."""
    at = max(curve, key=lambda budget: (round(curve[budget], 9), -budget), default=0.0)
    last = max(curve, default=0.0)
    if at == last:
        return ""
    best, end = number(curve[at], ".2f"), number(curve[last], ".2f")
    return f"Full training is best at budget {at:g}: {best} %, and {end} % at {last:g}."


def _figures(
    cells: dict[float, list[Row]],
    differences: dict[float, dict[str, Mean]],
    order: Sequence[str],
    agents: dict[str, list[Record]],
    shares: dict[str, list[float]],
) -> Iterator[tuple[str, str, bytes]]:
    """Draw the images of a task; yield the kind of each, what it shows in words, and the image."""
    for some in figures.chunks(order) if len(cells) > 1 else []:
        yield "accuracy", f"Test accuracy over log budget: {', '.join(some)}", figures.accuracy(cells, some)
    for budget, of_budget in differences.items():
        if of_budget:
            alt = f"Paired differences to full at budget {budget:g}, {count(len(of_budget), 'agent')}"
            label = f"difference to full at budget {budget:g} (points)"
            yield "differences", alt, figures.forest(of_budget, label)
    for some in figures.chunks(list(agents)):
        kept = {a: sheets.mean([_filled(r["results"]["kept_by_difficulty"]) for r in agents[a]]) for a in some}
        yield "kept", f"Share kept by difficulty and time: {', '.join(some)}", figures.kept(kept)
    if shares:
        yield "sometimes", "Shares of samples always, sometimes and never kept, by agent", figures.divided(shares)


def _spoiled(agents: dict[str, list[Record]], name: str) -> dict[str, float]:
    """Visits of samples that are spoiled in one way, relative to all, by agent."""
    found = {agent: sheets.spoiled_visits([run["results"] for run in runs], name) for agent, runs in agents.items()}
    return {agent: visits for agent, visits in found.items() if visits is not None}


def _filled(shares: Sequence[Sequence[float | None] | None]) -> list[Sequence[float | None]]:
    """Shares kept, in each part of the budget those of the last step that had begun."""
    lines: list[Sequence[float | None]] = [[None] * RANKS]
    for row in shares:
        lines.append(lines[-1] if row is None else row)
    return lines[1:]


def _shares(agents: dict[str, list[Record]]) -> dict[str, list[float]]:
    """Shares of samples always, sometimes and never kept by each agent that dropped any; means over seeds."""
    found = {
        a: [[run["results"]["sometimes"][group] for group in GROUPS] for run in runs] for a, runs in agents.items()
    }
    chosen = {agent: [values for values in of_runs if None not in values] for agent, of_runs in found.items()}
    return {agent: np.mean(of_runs, axis=0).tolist() for agent, of_runs in chosen.items() if of_runs}


def _examples(agent: str, runs: Sequence[Record], train: pictures.Data) -> tuple[str, int, list[tuple[str, list]]]:
    """Thumbnails of samples by how often the agent kept them, with the first seed."""
    run = min(runs, key=lambda run: run["seed"])
    examples = run["results"]["sometimes"]["examples"]
    shown = [(group, [pictures.thumbnail(train, *each) for each in some]) for group, some in examples.items() if some]
    return agent, run["seed"], shown


def _provenance(records: Sequence[Record]) -> list[tuple[str, Markup]]:
    of_runs = [record["provenance"] for record in records]
    lines = [(label, _values(run.get(name) for run in of_runs)) for name, label in PROVENANCE.items()]
    times = sorted(run["time"] for run in of_runs)
    return [*lines, ("runs ended", escape(f"{times[0]} to {times[-1]}"))]


def _recipe(records: Sequence[Record]) -> list[tuple[str, Markup]]:
    """What was trained how, a line a setting; values that are not the same for all runs with their budgets."""
    lines = [("env", _values(record["configuration"]["env"] for record in records))]
    for part in ("settings", "recipe"):
        settings = [(record["configuration"][part], record["budget"]) for record in records]
        for name in dict.fromkeys(name for own, _ in settings for name in own if name != "budget"):
            budgets: dict[str, dict[str, None]] = defaultdict(dict)
            for own, budget in settings:
                budgets[str(own.get(name))][f"{budget:g}"] = None
            told = [f"{value} at {listed(at)}" if len(budgets) > 1 else value for value, at in budgets.items()]
            lines.append((name, escape("; ".join(told))))
    data = [record["provenance"]["data"] for record in records]
    parts = dict.fromkeys(part for own in data for part in own)
    return lines + [(f"{part} data, SHA-256", _values(own.get(part) for own in data)) for part in parts]


def _values(values: Iterable[Any]) -> Markup:
    """Different values, each with how many runs have it if there are several."""
    counts = Counter(map(str, values))
    lines = [
        Markup("<code>{}</code>{}").format(value, "" if len(counts) == 1 else f" ({count(n, 'run')})")
        for value, n in counts.items()
    ]
    return Markup("<br>").join(lines)
