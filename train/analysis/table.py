"""Make the table of an evaluation: agents at equal compute, by budget."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping, Sequence
from io import StringIO
from pathlib import Path
from types import MappingProxyType

from rich import box
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from prune_env import io
from train.analysis import summary
from train.analysis.records import Record
from train.analysis.statistics import FEW_SEEDS
from train.analysis.summary import Row, grouped, rows
from train.analysis.text import folded, listed, number, readable, spread

WIDTH = 100  # characters: what fits a README and a narrow terminal
MOSTLY = 0.98  # share of the budget below which compute is not equal any more


def render(records: Sequence[Record], seeds: int) -> RenderableType:
    """Make the tables of one task, a budget each, with how to read them; `seeds` is how many were asked for."""
    groups = grouped(records)
    parts: list[RenderableType] = [*rate_lines(records)]
    incomplete, unspent = [], []
    for budget, agents in groups.items():
        ordered = rows(agents)
        parts += [_Budget(budget, ordered), ""]
        unspent += [f"{row.agent} at budget {budget:g}" for row in ordered if row.spent < MOSTLY * budget]
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
        sizes = sorted({record["configuration"]["recipe"]["batch_size"] for record in records})
        rows_of_a_batch = " or ".join(map(str, sizes))
        notes.append(
            f"Not compared at equal compute: {', '.join(unspent)} spent less than {MOSTLY:.0%} of the budget. A run "
            f"ends when less than one batch is left, here of {rows_of_a_batch} samples (a smaller --batch-size leaves "
            "less), or when its agent stops."
        )
    if incomplete:
        notes.append(f"Of {seeds} seeds, {'; '.join(incomplete)}.")
    notes += [summary.labels(records), summary.mixed_commits(records)]
    return Group(*parts, *(Text(readable(note)) for note in notes if note))


def rate_lines(records: Sequence[Record]) -> list[Text]:
    """Return what the learning rates were tuned for, and commands that tune them, which are not wrapped."""
    told, *commands = summary.rates(records).splitlines() or [""]
    lines = [Text(told)] if told else []
    return lines + [Text(command, no_wrap=True, overflow="ignore") for command in commands]


def render_tasks(records: Sequence[Record], targets: Mapping[str, float] = MappingProxyType({})) -> RenderableType:
    """Make the tables of every task of a sweep, below its name; some tasks have targets, in points over full."""
    parts: list[RenderableType] = []
    for task, of_task in summary.by_task(records).items():
        seeds = max(record["seed"] for record in of_task) + 1
        parts += [Text(readable(task), style="bold")]
        parts += [Text(readable(_reached(of_task, targets[task])))] if task in targets else []
        parts += [render(of_task, seeds), ""]
    return Group(*parts)


def _reached(records: Sequence[Record], target: float) -> str:
    """Say in a line for each budget of a task which agents reach its target."""
    lines = []
    for budget, agents in grouped(records).items():
        points = {row.agent: row.difference.mean for row in rows(agents) if row.difference}
        told = [f"{agent} ({number(gain, '+.2f')})" for agent, gain in points.items() if gain >= target]
        reached = f"reached by {listed(told)}" if told else "no agent here reaches it"
        lines.append(f"Target at budget {budget:g}: {number(target, '+.2f')} points over full; {reached}.")
    return "\n".join(lines)


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


class Name:
    """An agent's spec in a cell, folded behind punctuation; square brackets in it are not rich's markup."""

    def __init__(self, spec: str):
        self.spec = readable(spec)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield Text(folded(self.spec, options.max_width))

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        return Measurement(max(map(len, re.split("(?<=[:,+/])", self.spec))), len(self.spec))


class _Budget:
    """The table of one budget; a narrow terminal has no room for all of its columns."""

    def __init__(self, budget: float, ordered: list[Row]):
        self._budget, self._rows = budget, ordered

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        table = Table(box=box.SIMPLE_HEAD, padding=0, title_justify="left", title_style="bold")
        table.title = f"Budget {self._budget:g} full-epoch equivalents"
        table.add_column("agent")
        for header, needs, _ in COLUMNS:
            if options.max_width >= needs:
                table.add_column(header, justify="right", no_wrap=True)
        for row in self._rows:
            cells = (cell(row) for _, needs, cell in COLUMNS if options.max_width >= needs)
            table.add_row(Name(row.agent), *cells)
        yield table


def _difference(row: Row) -> str:
    return "" if row.difference is None else spread(row.difference.mean, row.difference.interval, "+.2f", " [–]")


COLUMNS: tuple[tuple[str, int, Callable[[Row], str]], ...] = (  # header, characters of a terminal that it needs, cell
    ("test accuracy %", 0, lambda row: spread(row.accuracy.mean, row.accuracy.interval, ".2f", " [–]")),
    ("difference to full", 0, _difference),
    ("kept\n%", 0, lambda row: number(row.kept, ".1f")),
    ("cover\n%", WIDTH, lambda row: number(row.coverage, ".1f")),
    ("spent", 0, lambda row: number(row.spent, ".2f")),
    ("time\ns", 0, lambda row: number(row.seconds, ".2f")),
    ("agent\ns", WIDTH, lambda row: number(row.select_seconds, ".3f")),
)
