"""What a policy does and which of its inputs it uses: `prune-env explain POLICY`.

Plays the validation tasks of a distribution with the policy as it is, and with one group of features after the other
held at its mean; many features are nearly redundant, so a single one is hardly missed. Writes choices.png and
inputs.txt beside the policy, or into --out. With --card it only prints the policy's model card.
"""

from __future__ import annotations

import itertools
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
import tyro
from matplotlib.figure import Figure
from numpy.typing import NDArray
from rich.table import Table

from prune_env import PruneEnv, io
from prune_env.machine import cores
from prune_env.policy.features import FEATURES, LOSS_QUANTILES, MARGIN_QUANTILES
from prune_env.policy.learned import SHIPPED, Network
from prune_env.policy.rules import RULE_PARAMETERS, SMALLEST_KEEP
from prune_env.policy.tasks import Task
from train.analysis import card, statistics, table
from train.analysis.figures import COLOURS, png
from train.analysis.text import spread
from train.execution import command_line
from train.execution.progress import follow
from train.learning.rollouts import Pair, distribution
from train.learning.workers import Workers

BINS = 10  # of the budget, in the figure
NATURAL: dict[str, tuple[str, Callable[[NDArray], NDArray]]] = {  # rule parameters in units that people know
    "keep": ("share kept", lambda numbers: SMALLEST_KEEP ** ((1.0 - numbers) / 2.0)),
    "mixup": ("share blended", lambda numbers: (numbers + 1.0) / 2.0),
}
GROUPS = {  # of features that are nearly redundant; each feature is in one group
    "time and budget": ("spent", "log_budget"),
    "accuracies, gap and slopes": ("val_accuracy", "train_accuracy", "gap", "val_slope", "train_slope"),
    "level of the losses": ("loss", *(f"loss_c{round(100 * q)}" for q in LOSS_QUANTILES)),
    "shape of the losses": (*(f"loss_q{round(100 * q)}" for q in LOSS_QUANTILES), "loss_top_tenth"),
    "right, forgotten and confidence": (
        *("right", "never_right", "forgotten", "ever_forgotten"),
        *("surely_wrong", "surely_right", "confidence", "entropy", "el2n"),
    ),
    "margins": ("hard_slope", "margin_bimodality", *(f"margin_q{round(100 * q)}" for q in MARGIN_QUANTILES)),
    "volatility": ("volatility_q50", "volatility_q90"),
    "age and visits": ("never_seen", "age_q50", "age_q90", "visits_gini"),
    "classes and balance": (
        "log_classes",
        "balance",
        "loss_spread_of_classes",
        "class_spread",
        "class_worst",
        "rare_behind",
    ),
    "the last step": ("last_kept", "last_mixed", "last_loss_rank", "last_right"),
}


@dataclass
class Arguments:
    """Show what a policy chooses over time with each kind of trouble, and what it loses without groups of inputs."""

    policy: tyro.conf.Positional[Path] = SHIPPED
    """An npz file of `prune-env learn`, or one saved by `Network.save`; by default the shipped policy."""
    card: bool = False
    """Print the policy's model card instead: who trained it, on which tasks, how long, how well it did, its limits."""
    tasks: str = "digits"
    """Distribution, or a TOML file of one, whose validation tasks are played."""
    root: tuple[str, ...] = ()
    """Folders of images, for tasks of image folders."""
    seeds: int = 8
    """Seeds of each task."""
    processes: int = cores()
    """Processes that share the work."""
    out: Path | None = None
    """Folder for choices.png and inputs.txt; by default that of the policy."""


def without(network: Network, held: Mapping[str, float], summaries: NDArray, begun: NDArray[np.bool_]) -> NDArray:
    """Play a network with some features held at values."""
    changed = summaries.copy()
    for name, value in held.items():
        changed[:, FEATURES.index(name)] = value
    return network(changed)


def inputs(network: Network, pairs: Sequence[Pair], workers: Workers, means: NDArray) -> Table:
    """Measure the points of accuracy lost when groups of features are held at `means` (D,)."""
    whole, mean_of = workers.play(pairs, network), dict(zip(FEATURES, means.tolist(), strict=True))
    seeds = np.array([seed for _, seed in pairs])  # the units of the intervals: each has the same tasks
    lost = []
    for group, names in follow(GROUPS.items(), "holding a group of inputs at its mean", len(GROUPS)):
        policy = partial(without, network, {name: mean_of[name] for name in names})
        points = 100.0 * (whole - workers.play(pairs, policy))
        found = statistics.mean_of([points[seeds == seed].mean() for seed in np.unique(seeds)])
        lost.append((found.mean, found.interval, group))
    table = Table(title=f"Points of validation accuracy lost without a group of inputs, {len(pairs)} runs")
    table.add_column("group of inputs held at its mean")
    table.add_column("points", justify="right")
    for mean, interval, group in sorted(lost, reverse=True):
        table.add_row(group, spread(mean, interval, "+.2f"))
    return table


def trouble(task: Task) -> str:
    """Return the kind of trouble of a task, without how much of it."""
    found = ["wrong labels"] * (task.label_noise > 0.0) + ["unlike classes"] * (task.imbalance > 1.0)
    return ", ".join(found) or ("duplicates" if task.duplicates else "clean")


def choices(runs: Mapping[str, tuple[NDArray, NDArray]]) -> bytes:
    """Draw each rule parameter over the share of the budget spent, with a line for each group of tasks, as a PNG.

    Lines are means over runs. Bands reach from the lower to the upper quartile.
    """
    figure = Figure(figsize=(11, 7.5), dpi=120, layout="constrained")
    panels = figure.subplots(3, 4, sharex=True)
    edges = np.linspace(0.0, 1.0, BINS + 1)
    looks = [(colour, style) for style in ("-", "--") for colour in COLOURS]
    for (colour, style), (group, (seen, chosen)) in zip(itertools.cycle(looks), runs.items(), strict=False):
        spent = (seen[:, FEATURES.index("spent")] + 1.0) / 2.0
        place = np.clip(np.digitize(spent, edges) - 1, 0, BINS - 1)
        filled = [i for i in range(BINS) if np.any(place == i)]
        middles = (edges[:-1] + edges[1:])[filled] / 2.0
        for r, (name, panel) in enumerate(zip(RULE_PARAMETERS, panels.flat, strict=True)):
            title, natural = NATURAL.get(name, (name, lambda numbers: numbers))
            numbers = [natural(chosen[place == i, r]) for i in filled]
            panel.plot(middles, [x.mean() for x in numbers], color=colour, linestyle=style, label=group)
            low, high = np.transpose([np.quantile(x, (0.25, 0.75)) for x in numbers])
            panel.fill_between(middles, low, high, color=colour, alpha=0.15, linewidth=0)
            panel.set_title(title)
            panel.set_ylim(0.0 if name in NATURAL else -1.02, 1.02)
    for panel in panels[-1]:
        panel.set_xlabel("share of the budget spent")
    figure.legend(*panels[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    return png(figure)


def main(args: list[str] | None = None) -> int:
    """Run the program with `args` (else those of the command line); return its exit status."""
    given = command_line.read("explain", Arguments, args)
    torch.set_num_threads(1)  # the other cores have processes of their own
    folder = given.out or given.policy.parent
    spec = "learned" if given.policy == SHIPPED else f"learned:{given.policy}"
    try:
        network = Network.load(given.policy)
        if given.card:
            if not network.card:
                raise ValueError(f"{given.policy} has no card; policies of prune-env learn have one")
            table.display(card.make(network, str(given.policy), spec))
            return 0
        if min(given.seeds, given.processes) < 1:
            raise ValueError("--seeds and --processes must be at least 1")
        tasks = distribution(given.tasks, given.root)
        if not tasks.validation:
            raise ValueError(f"{given.tasks} has no validation tasks, which are what is played")
        for task in {(task.dataset, task.root): task for task in tasks.validation}.values():
            PruneEnv(**task.settings())  # images that are missing are missed here, in one line
        folder.mkdir(parents=True, exist_ok=True)
    except (ValueError, OSError) as error:
        return command_line.refused(error)
    pairs = [(task, 20_000 + seed) for task in tasks.validation for seed in range(given.seeds)]
    runs: dict[str, tuple[NDArray, NDArray]] = {}
    of_kind: dict[str, list[Pair]] = {}
    several = len(tasks.datasets) > 1
    for task, seed in pairs:
        kind = f"{'digits' if task.dataset == 'digits' else 'images'}: " * several + trouble(task)
        of_kind.setdefault(kind, []).append((task, seed))
    with closing(Workers(tasks, given.processes)) as workers:
        for kind, its in follow(of_kind.items(), "playing the policy, by kind of trouble", len(of_kind)):
            _, seen = workers.watch(its, network)
            runs[kind] = seen, network(seen)
        io.write_atomic(folder / "choices.png", choices(runs))
        means = np.concatenate([seen for seen, _ in runs.values()]).mean(axis=0)
        lost = inputs(network, pairs, workers, means)
    table.show(folder / "inputs.txt", lost)
    print(f"wrote to {folder}: choices.png, inputs.txt", file=sys.stderr)
    print(f"next: {shlex.join(['prune-env', 'evaluate', '--agents', 'full', spec])}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
