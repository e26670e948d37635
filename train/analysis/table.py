"""The table of an evaluation: agents at equal compute, by budget."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

import numpy as np
from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from prune_env import io
from train.analysis.statistics import FEW_SEEDS, mean_interval
from train.execution.results import Record, grouped

WIDTH = 100  # characters: what fits a README and a narrow terminal
MOSTLY = 0.98  # share of the budget below which compute is not equal any more


@dataclass(frozen=True)
class Row:
    """An agent at one budget: means over its seeds. Accuracies and shares in per cent."""

    agent: str
    seeds: int
    accuracy: float
    accuracy_interval: tuple[float, float]
    difference: float | None  # to `full` over the seeds both have, in points; None without such seeds
    difference_interval: tuple[float, float] | None  # None from one seed as well
    kept: float
    coverage: float
    spent: float
    seconds: float
    select_seconds: float


def rows(agents: dict[str, list[Record]]) -> list[Row]:
    """The rows of one budget: `full` first, then by accuracy. `agents` maps a spec to its runs, one a seed."""
    full = {record["seed"]: record["results"]["test_accuracy"] for record in agents.get("full", [])}
    result = [_row(agent, records, full) for agent, records in agents.items()]
    return sorted(result, key=lambda row: (row.agent != "full", -row.accuracy))


def _row(agent: str, records: list[Record], full: dict[int, float]) -> Row:
    results = [record["results"] for record in records]
    accuracies = [100.0 * r["test_accuracy"] for r in results]
    differences = [
        100.0 * (record["results"]["test_accuracy"] - full[record["seed"]])
        for record in records
        if agent != "full" and record["seed"] in full
    ]
    return Row(
        agent=agent,
        seeds=len(records),
        accuracy=float(np.mean(accuracies)),
        accuracy_interval=mean_interval(accuracies),
        difference=float(np.mean(differences)) if differences else None,
        difference_interval=mean_interval(differences) if len(differences) > 1 else None,
        kept=100.0 * float(np.mean([r["kept"] for r in results])),
        coverage=100.0 * float(np.mean([r["coverage"] for r in results])),
        spent=float(np.mean([r["spent"]["total"] for r in results])),
        seconds=float(np.mean([r["seconds"]["total"] for r in results])),
        select_seconds=float(np.mean([r["seconds"]["select"] for r in results])),
    )


def render(records: Sequence[Record], seeds: int) -> RenderableType:
    """The tables of all budgets with what has to be known to read them; `seeds` is how many were asked for."""
    groups = grouped(records)
    parts: list[RenderableType] = []
    incomplete, unspent = [], []
    for budget, agents in groups.items():
        ordered = rows(agents)
        parts += [_table(budget, ordered), ""]
        unspent += [f"{row.agent} at {budget:g}" for row in ordered if row.spent < MOSTLY * budget]
        incomplete += [f"{row.agent} at {budget:g} has {row.seeds}" for row in ordered if row.seeds < seeds]
    notes = [
        "Accuracy on the test split, which each run opens once, at its end, in % with the 95 % bootstrap interval over "
        f"{seeds} {'seed' if seeds == 1 else 'paired seeds'}; difference to full at the same budget, paired by seed, "
        "in points. Kept: share of the samples that the agent keeps in a step. Cover: share ever trained on. Spent: "
        "full-epoch equivalents. Time: seconds of a whole run, and of these what the agent took.",
    ]
    if any("full" not in agents for agents in groups.values()):
        notes.append("The difference needs the agent full.")
    if seeds < FEW_SEEDS:
        notes.append(f"Few seeds: {seeds}. Five or more are needed to tell agents apart.")
    if unspent:
        notes.append(
            f"Not compared at equal compute: {', '.join(unspent)} spent less than {MOSTLY:.0%} of the budget. A run "
            "ends when less than one batch is left (a smaller --batch-size leaves less), or when its agent stops."
        )
    if incomplete:
        notes.append(f"Of {seeds} seeds, {'; '.join(incomplete)}.")
    return Group(*parts, *map(Text, notes))


def rates(records: Sequence[Record]) -> Text:
    """Return what the learning rate of each budget was tuned for, a line each; nothing of records from before."""
    budgets: dict[str, set[float]] = {}
    for record in records:
        if record.get("rate"):
            budgets.setdefault(record["rate"], set()).add(record["budget"])
    return Text("\n".join(f"Budget {', '.join(f'{b:g}' for b in sorted(at))}: {rate}" for rate, at in budgets.items()))


def show(path: Path, tables: RenderableType) -> None:
    """Print tables, in colour where that is a terminal, and write them to `path`."""
    text = StringIO()
    Console(width=WIDTH, file=text).print(tables)
    plain = "".join(line.rstrip() + "\n" for line in text.getvalue().splitlines())
    io.write_atomic(path, plain.encode())
    if sys.stdout.isatty():
        Console().print(tables)
    else:
        print(plain, end="")


def _table(budget: float, ordered: list[Row]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=0, title_justify="left", title_style="bold")
    table.title = f"Budget {budget:g} full-epoch equivalents"
    table.add_column("agent", overflow="fold")
    headers = ("test accuracy %", "difference to full", "kept\n%", "cover\n%", "spent", "time\ns", "agent\ns")
    for header in headers:
        table.add_column(header, justify="right", no_wrap=True)
    for row in ordered:
        table.add_row(
            Text(row.agent),  # square brackets in a spec are not rich's markup
            f"{row.accuracy:.2f} {_interval(row.accuracy_interval if row.seeds > 1 else None, '.2f')}",
            "" if row.difference is None else f"{row.difference:+.2f} {_interval(row.difference_interval, '+.2f')}",
            f"{row.kept:.1f}",
            f"{row.coverage:.1f}",
            f"{row.spent:.2f}",
            f"{row.seconds:.2f}",
            f"{row.select_seconds:.3f}",
        )
    return table


def _interval(interval: tuple[float, float] | None, form: str) -> str:
    return "[–]" if interval is None else f"[{interval[0]:{form}}, {interval[1]:{form}}]"
