"""Make the table of an evaluation: agents at equal compute, by budget."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from io import StringIO
from pathlib import Path

from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from prune_env import io
from train.analysis import summary
from train.analysis.records import Record
from train.analysis.statistics import FEW_SEEDS
from train.analysis.summary import Row, grouped, rows
from train.analysis.text import readable, spread

WIDTH = 100  # characters: what fits a README and a narrow terminal
MOSTLY = 0.98  # share of the budget below which compute is not equal any more


def render(records: Sequence[Record], seeds: int) -> RenderableType:
    """Make the tables of one task, a budget each, with how to read them; `seeds` is how many were asked for."""
    groups = grouped(records)
    parts: list[RenderableType] = [*rate_lines(records)]
    incomplete, unspent = [], []
    for budget, agents in groups.items():
        ordered = rows(agents)
        parts += [_table(budget, ordered), ""]
        unspent += [f"{row.agent} at {budget:g}" for row in ordered if row.spent < MOSTLY * budget]
        incomplete += [
            f"{row.agent} at {budget:g} has {row.accuracy.seeds}" for row in ordered if row.accuracy.seeds < seeds
        ]
    over = f"{seeds} paired seeds" if seeds > 1 else "1 seed"
    notes = [
        f"Test accuracy over {over}, with the 95 % interval of Student's t. Each run opens the test split once, at its "
        "end. Difference: points of accuracy over full at the same budget, paired by seed. Kept: share of the samples "
        "in a step. Cover: share ever trained on. Spent: full-epoch equivalents. Time: seconds of a whole run, and of "
        "these what the agent took.",
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
    notes.append(summary.mixed_commits(records))
    return Group(*parts, *(Text(readable(note)) for note in notes if note))


def rate_lines(records: Sequence[Record]) -> list[Text]:
    """Return what the learning rates were tuned for, and commands that tune them, which are not wrapped."""
    told, *commands = summary.rates(records).splitlines() or [""]
    lines = [Text(told)] if told else []
    return lines + [Text(command, no_wrap=True, overflow="ignore") for command in commands]


def render_tasks(records: Sequence[Record]) -> RenderableType:
    """Make the tables of every task of a sweep, below its name."""
    parts: list[RenderableType] = []
    for task, of_task in summary.by_task(records).items():
        seeds = max(record["seed"] for record in of_task) + 1
        parts += [Text(readable(task), style="bold"), render(of_task, seeds), ""]
    return Group(*parts)


def show(path: Path, tables: RenderableType) -> None:
    """Print tables, and write them to `path`."""
    write(path, tables)
    display(tables)


def display(tables: RenderableType) -> None:
    """Print tables, in colour where that is a terminal."""
    if sys.stdout.isatty():
        Console().print(tables, crop=False)  # no command is cut
    else:
        print(plain(tables), end="")


def write(path: Path, tables: RenderableType) -> None:
    """Write tables to `path` as plain text."""
    io.write_atomic(path, plain(tables).encode())


def plain(tables: RenderableType) -> str:
    """Return tables as text of WIDTH columns."""
    text = StringIO()
    Console(width=WIDTH, file=text, force_terminal=False, force_jupyter=False).print(tables, crop=False)
    return "".join(line.rstrip() + "\n" for line in text.getvalue().splitlines())


def _table(budget: float, ordered: list[Row]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=0, title_justify="left", title_style="bold")
    table.title = f"Budget {budget:g} full-epoch equivalents"
    table.add_column("agent", overflow="fold")
    headers = ("test accuracy %", "difference to full", "kept\n%", "cover\n%", "spent", "time\ns", "agent\ns")
    for header in headers:
        table.add_column(header, justify="right", no_wrap=True)
    for row in ordered:
        difference = row.difference
        table.add_row(
            Text(readable(row.agent)),  # square brackets in a spec are not rich's markup
            spread(row.accuracy.mean, row.accuracy.interval, ".2f", " [–]"),
            "" if difference is None else spread(difference.mean, difference.interval, "+.2f", " [–]"),
            f"{row.kept:.1f}",
            f"{row.coverage:.1f}",
            f"{row.spent:.2f}",
            f"{row.seconds:.2f}",
            f"{row.select_seconds:.3f}",
        )
    return table
