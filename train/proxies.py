"""Say which cheap tasks order rules as the real ones do: `prune-env proxies --help`."""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro
from numpy.typing import NDArray
from rich.table import Table
from scipy.stats import spearmanr

from prune_env import io
from train.analysis import figures, records, table
from train.analysis.records import Record
from train.analysis.statistics import Mean
from train.execution import command_line

Gains = Mapping[tuple[str, str], float]  # points over `full` by trouble and agent


@dataclass
class Arguments:
    """Correlate the gains of rules over full training, on cheap tasks and on a target.

    proxies.txt has the table, and gains.png the gains on the target, by trouble and rule.

    The folder is of a sweep whose tasks are called `KIND: TROUBLE`, such as `mlp, 8 pixels: duplicates`. The gain of
    an agent is the mean over seeds of its validation accuracy minus the one of `full`, in points.
    """

    folder: tyro.conf.Positional[Path]
    """A folder of results, as `prune-env sweep` writes it."""
    target: str = "target"
    """The kind that the others are compared with."""


def gains(runs: Sequence[Record]) -> tuple[Mapping[str, Gains], Mapping[str, float]]:
    """Return the gains over `full` in points, by kind and then (trouble, agent), and each kind's seconds a run."""
    accuracy: dict[tuple[str, str, str, int], float] = {}
    seconds = defaultdict(list)
    for record in runs:
        kind, _, trouble = record["task"].partition(": ")
        accuracy[kind, trouble, record["agent"], record["seed"]] = 100.0 * record["results"]["val_accuracy"]
        seconds[kind].append(record["results"]["seconds"]["total"])
    found: dict[str, dict[tuple[str, str], list[float]]] = defaultdict(lambda: defaultdict(list))
    for (kind, trouble, agent, seed), value in accuracy.items():
        full = accuracy.get((kind, trouble, "full", seed))
        if agent != "full" and full is not None:
            found[kind][trouble, agent].append(value - full)
    means = {kind: {cell: float(np.mean(values)) for cell, values in cells.items()} for kind, cells in found.items()}
    return means, {kind: float(np.median(values)) for kind, values in seconds.items()}


def agreement(proxy: Gains, target: Gains) -> NDArray[np.float64]:
    """Return Pearson's correlation over all common (trouble, agent), and Spearman's in the mean over troubles."""
    common = sorted(proxy.keys() & target.keys())
    a, b = (np.array([of[cell] for cell in common]) for of in (proxy, target))
    troubles = np.array([trouble for trouble, _ in common])
    inside = [float(spearmanr(a[troubles == t], b[troubles == t]).statistic) for t in set(troubles.tolist())]  # pyright: ignore[reportAttributeAccessIssue]
    return np.array([np.corrcoef(a, b)[0, 1], np.mean(inside)])


def render(means: Mapping[str, Gains], seconds: Mapping[str, float], target: str) -> Table:
    """Return a row for each kind of cheap task."""
    rows = Table("kind", "correlation", "of ranks, inside a trouble", "seconds a run", "best rule's gain there")
    rows.columns[0].no_wrap = True
    for kind, cells in means.items():
        both, inside = agreement(cells, means[target])
        troubles = sorted({trouble for trouble, _ in cells})
        lost = []  # what the rule that is best on the proxy gains on the target
        for trouble in troubles:
            of_trouble = {agent: gain for (t, agent), gain in cells.items() if t == trouble}
            lost.append(means[target].get((trouble, max(of_trouble, key=of_trouble.__getitem__)), np.nan))
        figures = f"{both:.2f}", f"{inside:.2f}", f"{seconds[kind]:.2g}", f"{np.nanmean(lost):+.2f}"
        rows.add_row(kind, *figures)
    return rows


def picture(of_target: Gains, budget: float) -> bytes:
    """Draw rules × troubles on the target, the rule that gains most in the mean on top."""
    cells: dict[str, dict[str, float]] = defaultdict(dict)
    for (trouble, agent), gain in of_target.items():
        cells[agent][trouble] = gain
    troubles = list(dict.fromkeys(trouble for of in cells.values() for trouble in of))
    ran_all = [agent for agent in cells if len(cells[agent]) == len(troubles)]
    agents = sorted(ran_all, key=lambda agent: -np.mean(list(cells[agent].values())))
    shown = {(t, budget): {agent: Mean(cells[agent][t], None, 1) for agent in agents} for t in troubles}
    return figures.glance(shown, "points of validation accuracy over full training")[0]


def main(args: list[str] | None = None) -> int:
    """Run the program with `args` (else those of the command line); return its exit status."""
    given = command_line.read("proxies", Arguments, args)
    try:
        found = records.read(given.folder).records
        if len(budgets := {record["budget"] for record in found}) > 1:
            raise ValueError(f"{given.folder} has runs at the budgets {sorted(budgets)}; proxies compares them at one")
        means, seconds = gains(found)
        if given.target not in means:
            raise ValueError(f"{given.folder} has no tasks of the kind {given.target!r}; there are {', '.join(means)}")
        table.show(given.folder / "proxies.txt", render(means, seconds, given.target))
        io.write_atomic(given.folder / "gains.png", picture(means[given.target], found[0]["budget"]))
    except (ValueError, OSError) as error:
        return command_line.refused(error)
    return 0


if __name__ == "__main__":
    sys.exit(main())
