"""Tune the learning rate of full training, on validation, at several budgets.

    python -m train.tune --budget 3 10 30 --save digits

Everyone else uses the rate that is best for `full`: the baseline of every comparison is a tuned one.
"""

from __future__ import annotations

import json
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import tyro
from rich.console import Console
from rich.progress import track
from rich.table import Table

import prune_env
from prune_env import files
from train import workers


@dataclass
class Args:
    env: str = "prune_env/Digits-v0"
    """Id of the environment."""
    model: str | None = None
    """Name of the network; the id's default without."""
    budget: tuple[float, ...] = (3.0, 10.0, 30.0)
    """Budgets, in full-epoch equivalents; each gets a rate of its own."""
    lr: tuple[float, ...] = (0.0125, 0.025, 0.05, 0.1, 0.2, 0.4, 0.8)
    """Rates to try."""
    seeds: int = 5
    """Paired seeds."""
    batch_size: int | None = None
    """Rows of a batch; the recipe's without."""
    train_size: int | None = None
    """Training images; all without."""
    image_size: int | None = None
    """Side of the images; the id's default without."""
    root: str | None = None
    """Where the images are; else PRUNE_ENV_DATA."""
    workers: int = os.cpu_count() or 1
    """Parallel processes of one thread each."""
    save: str | None = None
    """Name of the data set, or "*" for any, under which the best rates go into prune_env/recipes.json."""


def full_training(env_id: str, settings: dict[str, Any], seed: int) -> tuple[float, str]:
    """Validation accuracy at the end of full training, in [0, 1] (0 if it diverged), and the model's name."""
    env = gym.make(env_id, disable_env_checker=True, **settings)
    observation, info = env.reset(seed=seed)
    everything = prune_env.select(np.ones(len(observation["loss"]), dtype=np.bool_))
    terminated = False
    while not terminated:
        _, _, terminated, _, info = env.step(everything)
    run = env.unwrapped
    assert isinstance(run, prune_env.PruneEnv)
    return 0.0 if info["diverged"] else info["val_accuracy"], run.recipe.model


def store(dataset: str, model: str, rates: dict[float, float]) -> None:
    """Put rates by budget into the recipes, beside what stands there for other budgets."""
    path = Path(str(resources.files("prune_env").joinpath("recipes.json")))
    table = json.loads(path.read_text())
    family = model.partition(":")[0]
    entry = table.setdefault(dataset, {}).setdefault(family, {**table["*"][family], "lr": {}})
    entry["lr"] |= {f"{budget:g}": rate for budget, rate in rates.items()}
    entry["lr"] = dict(sorted(entry["lr"].items(), key=lambda item: float(item[0])))
    lines = [
        f"  {json.dumps(name)}: {{\n"
        + ",\n".join(f"    {json.dumps(family)}: {json.dumps(recipe)}" for family, recipe in families.items())
        + "\n  }"
        for name, families in table.items()
    ]
    files.replace(path, ("{\n" + ",\n".join(lines) + "\n}\n").encode())


def main(args: Args) -> None:
    given = ("model", "batch_size", "train_size", "image_size", "root")
    fixed = {name: getattr(args, name) for name in given if getattr(args, name) is not None}
    cells = [(budget, lr, seed) for budget in args.budget for lr in args.lr for seed in range(args.seeds)]
    accuracy: dict[tuple[float, float], list[float]] = {}
    model = ""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(args.workers, mp_context=context, initializer=workers.start) as pool:
        futures = [
            pool.submit(full_training, args.env, {**fixed, "budget": budget, "lr": lr}, seed)
            for budget, lr, seed in cells
        ]
        for (budget, lr, _), future in track(list(zip(cells, futures, strict=True)), description="tuning"):
            value, model = future.result()
            accuracy.setdefault((budget, lr), []).append(100.0 * value)

    table = Table(
        title=f"{args.env}, {model}, full training: validation accuracy %, mean ± standard error", min_width=60
    )
    table.add_column("lr", justify="right")
    best: dict[float, float] = {}
    for budget in args.budget:
        table.add_column(f"budget {budget:g}", justify="right")
        best[budget] = max(args.lr, key=lambda lr, budget=budget: np.mean(accuracy[budget, lr]))
    for lr in args.lr:
        row = [accuracy[budget, lr] for budget in args.budget]
        marks = ["*" if best[budget] == lr else " " for budget in args.budget]
        error = [np.std(cell, ddof=1) / len(cell) ** 0.5 if len(cell) > 1 else float("nan") for cell in row]
        shown = zip(row, error, marks, strict=True)
        table.add_row(f"{lr:g}", *(f"{np.mean(cell):.2f} ± {e:.2f}{mark}" for cell, e, mark in shown))
    Console(width=max(100, 14 + 18 * len(args.budget))).print(table, f"* best of {args.seeds} paired seeds")
    if args.save is not None:
        store(args.save, model, best)


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
