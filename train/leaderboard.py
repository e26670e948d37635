"""Write the leaderboard, a page of docs/, from the committed records: `prune-env leaderboard --help`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from prune_env import io
from train.analysis import records, summary
from train.analysis.records import Record
from train.analysis.statistics import side
from train.analysis.text import listed, number, spread
from train.execution import command_line

COMMITTED = (
    *("easy", "digits", "digits-trouble", "rho-loss"),
    *("cifar10-cpu", "tiny20-cpu", "cifar10-trouble", "transfer"),
)
HEAD = """# Leaderboard

Agents by points of test accuracy over full training *at the same compute*, with the learning rate tuned for full
training at the budget and with the wrong labels and unlike classes of the task.

The brackets hold the 95 % interval of Student's t over the paired seeds. If it holds 0, nothing was shown: the first of
many agents is lucky as well as good. Agents whose whole interval lies below 0 are named under the table. Kept is the
share of the samples in a step.

This page is made from the records in [results](../results/README.md) by `prune-env leaderboard`.
[Submit a record](benchmark.md#submit-a-record) says how an agent of yours gets here.
"""


@dataclass
class Arguments:
    """Rank the agents of each task and budget by points over full training, in Markdown.

    Folders that share a task, of one name and of the same data, share its tables.
    """

    folders: tyro.conf.Positional[tuple[Path, ...]] = tuple(Path("results") / name for name in COMMITTED)
    """Folders with results.jsonl or results.jsonl.xz; of equal runs the last folder's count."""
    out: Path = Path("docs/leaderboard.md")
    """The page."""


def page(runs: Sequence[Record]) -> str:
    """Return the page on the records of runs: tables of agents by task and budget, where there is `full`."""
    lines = [HEAD]
    for task, of_task in summary.by_task(runs).items():
        lines.append(f"## {task}\n")
        for budget, agents in summary.grouped(of_task).items():
            full, *others = summary.rows(agents)
            ranked = [(row, row.difference) for row in others if row.difference]
            ranked.sort(key=lambda pair: -pair[1].mean)
            if not ranked:
                continue
            lines.append(f"### {task}, budget {budget:g}\n")
            lines.append("| agent | points over full | test accuracy % | kept % | seeds |\n|---|---|---|---|---|")
            for row, gain in ranked:
                if side(gain.interval) >= 0:
                    points = spread(gain.mean, gain.interval, "+.2f")
                    cells = f"`{row.agent}`", points, number(row.accuracy.mean, ".2f"), number(row.kept, ".0f")
                    lines.append(f"| {' | '.join(cells)} | {gain.seeds} |")
            lines.append(f"| `full` | | {number(full.accuracy.mean, '.2f')} | 100 | {full.accuracy.seeds} |\n")
            if worse := [f"`{row.agent}` ({number(d.mean, '+.2f')})" for row, d in ranked if side(d.interval) < 0]:
                lines.append(f"Below full: {listed(worse)}.\n")
    return "\n".join(lines).rstrip() + "\n"


def main(args: Sequence[str] | None = None) -> int:
    """Run the program with `args` (else those of the command line); return its exit status: 2 without results."""
    arguments = command_line.read("leaderboard", Arguments, args)
    try:
        found = [record for folder in arguments.folders for record in records.read(folder).records]
        io.write_atomic(arguments.out, page(summary.latest(records.told_apart(found))).encode())
    except (ValueError, OSError) as error:
        return command_line.refused(error)
    print(arguments.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
