"""Tune the rates of full training for all tasks of a distribution: `prune-env rates natural --root DIR`.

`prune-env tune` does so for one student. Here many students train in one batch, which takes a fraction of the time.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from itertools import pairwise, product

import torch
import tyro
from numpy.typing import NDArray
from rich.console import Console

from prune_env import PruneEnv
from prune_env.machine import cores
from prune_env.policy.rules import FULL
from prune_env.policy.tasks import Task, Tasks
from train.analysis.text import listed
from train.execution import command_line
from train.learning.rollouts import distribution
from train.learning.workers import Workers
from train.tune import RECIPES, best_rates, store, table_of

# what recipes know no other rates for
APART = {"duplicates": 0.0, "lr_factor": 1.0, "task_seed": 0, "root": None}


@dataclass
class Arguments:
    """Tune for every student, size of images, share of wrong labels, imbalance and budget that tasks have.

    Held-out tasks count, too.

    The rates with the highest mean validation accuracy replace those in students/recipes.json. Batch size and weight
    decay stay as they are there.
    """

    tasks: tyro.conf.Positional[str]
    """Distribution of tasks: a name, several joined by +, or a TOML file with its arguments."""
    root: tuple[str, ...] = ()
    """Folders of images, for tasks of image folders."""
    lr: tuple[float, ...] = (0.00625, 0.0125, 0.025, 0.05, 0.1, 0.2)
    """Rates to try."""
    seeds: int = 5
    """Number of paired seeds, of the run and of the draw of the training part: 0, 1, ..."""
    processes: int = cores()
    """Processes that train."""


def every_task(tasks: Tasks) -> tuple[Task, ...]:
    """Return the tasks of all parts: held-out ones may have a data set that no other has."""
    return *tasks.training, *tasks.validation, *tasks.held_out


def kinds_of(tasks: Tasks) -> dict[Task, tuple[float, ...]]:
    """Return a task of each kind that has rates of its own, and the budgets of the kind. Clean labels come first.

    Raises:
        ValueError: two kinds would have the same place in the recipes.
    """
    budgets: dict[Task, set[float]] = {}
    for task in every_task(tasks):
        budgets.setdefault(replace(task, **APART, budget=1.0), set()).add(task.budget)
    kinds = sorted(budgets, key=place)
    for first, second in pairwise(kinds):
        if place(first) == place(second):
            differ = [name for name, value in asdict(first).items() if value != getattr(second, name)]
            raise ValueError(f"recipes keep one rate for tasks that differ in {listed(differ)} only: tune one of them")
    return {kind: tuple(sorted(budgets[kind])) for kind in kinds}


def place(kind: Task) -> tuple:
    """Return what recipes tell rates apart by."""
    return kind.dataset, kind.image_size or 0, kind.model, kind.imbalance, kind.label_noise


def accuracies(
    kind: Task, budgets: Sequence[float], roots: Sequence[str | None], given: Arguments, workers: Workers
) -> dict[tuple[float, float], NDArray]:
    """Return validation accuracies of full training, in %, one for each seed and root, by budget and rate."""
    pairs = []
    for budget in budgets:
        at = replace(kind, budget=budget)
        tuned = at.settings()["lr"]
        for lr, root, seed in product(given.lr, roots, range(given.seeds)):
            pairs.append((replace(at, lr_factor=lr / tuned, root=root, task_seed=seed), seed))
    reached = 100.0 * workers.play(pairs, FULL).reshape(len(budgets), len(given.lr), -1)
    return {(b, lr): reached[i, j] for i, b in enumerate(budgets) for j, lr in enumerate(given.lr)}


def main(args: Sequence[str] | None = None) -> int:
    """Run the program with `args` (else those of the command line); return its exit status."""
    command = shlex.join(["prune-env", "rates", *(sys.argv[1:] if args is None else args)])
    given = command_line.read("rates", Arguments, args)
    torch.set_num_threads(1)  # the other cores have processes of their own
    try:
        if min(given.seeds, given.processes, len(given.lr)) < 1 or min(given.lr) <= 0:
            raise ValueError("--seeds and --processes must be at least 1, and --lr needs rates above 0")
        tasks = distribution(given.tasks, given.root)
        with closing(Workers(tasks, given.processes)) as workers:
            for kind, budgets in kinds_of(tasks).items():
                roots = list(dict.fromkeys(task.root for task in every_task(tasks) if task.dataset == kind.dataset))
                accuracy = accuracies(kind, budgets, roots, given, workers)
                size = f":{kind.image_size}" if kind.image_size else ""
                title = f"{kind.dataset}{size}, {kind.model}, {kind.label_noise:.0%} wrong labels"
                title += f", classes {kind.imbalance:g}:1" * (kind.imbalance != 1.0)
                Console().print(table_of(title, accuracy))
                recipe = PruneEnv(**replace(kind, root=roots[0]).settings()).recipe
                rates = best_rates(accuracy)
                store(RECIPES, f"{kind.dataset}{size}", recipe, rates, command, kind.label_noise, kind.imbalance)
    except (ValueError, OSError) as error:
        return command_line.refused(error)
    return 0


if __name__ == "__main__":
    sys.exit(main())
