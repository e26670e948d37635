"""Tune the learning rate of full training, on validation, at several budgets.

    prune-env tune --budget 3 10 30 --save digits

Every agent uses the rate that is best for `full`, so that the baseline of every comparison is a tuned one.
"""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from importlib import resources
from itertools import repeat
from pathlib import Path
from typing import Annotated, Any

import gymnasium as gym
import numpy as np
import tyro
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

import prune_env
from prune_env import io
from prune_env.checks import named
from prune_env.data import sources
from prune_env.machine import cores
from prune_env.students.recipes import Recipe, Training, entry_name, tuned
from train.analysis.text import plus_minus
from train.execution import command_line, process
from train.execution.plan import Data, TaskOptions, dataset_of, full_id, recipes_know, settings_of, short_id
from train.execution.progress import follow

RECIPES = Path(str(resources.files("prune_env.students").joinpath("recipes.json")))


@dataclass(frozen=True)
class Untuned(Training):
    """What is not tuned."""

    lr: Annotated[None, tyro.conf.Suppress, tyro.conf.Fixed, tyro.conf.arg(name="tuned-lr")] = None


@dataclass(kw_only=True)
class Arguments:
    """Train on all data at every budget and rate, and show which rate validates best."""

    env: str = "digits"
    """Environment, which is the data set: `digits`, `cifar10`, `imagefolder`, ..."""
    budget: Annotated[tuple[float, ...], tyro.conf.arg(metavar="FLOAT ...")] = (3.0, 10.0, 30.0)
    """Budgets, in full-epoch equivalents; each gets a rate of its own."""
    lr: Annotated[tuple[float, ...], tyro.conf.arg(metavar="FLOAT ...", help_behavior_hint="")] = ()
    """Rates to try; by default 0.0125, doubled up to 0.8, and for `--optimizer adamw` a fortieth of each."""
    seeds: int = 5
    """Number of paired seeds: 0, 1, ..."""
    root: str | None = None
    """Folder with the images; by default $PRUNE_ENV_DATA."""
    workers: int = cores()
    """Parallel processes of one thread each."""
    save: str | None = None
    """Data set, or `*` for any other, whose entry in students/recipes.json the best rates replace. DATASET:SIZE is the
    entry for images of --image-size SIZE alone."""
    task: TaskOptions = field(default_factory=Data)
    training: Annotated[Training, tyro.conf.arg(name="training", help="", constructor=Untuned)] = field(
        default_factory=Untuned
    )

    def __post_init__(self) -> None:
        self.env = full_id(self.env)
        if not self.lr:
            least = 0.0125 / 40 if self.training.optimizer == "adamw" else 0.0125
            self.lr = tuple(least * 2**doubled for doubled in range(7))


def full_training(env_id: str, settings: dict[str, Any], seed: int) -> float:
    """Validation accuracy at the end of full training, in [0, 1]; 0 if it diverged."""
    env = gym.make(env_id, disable_env_checker=True, **settings)
    observation, info = env.reset(seed=seed)
    everything = prune_env.select(np.ones(len(observation["loss"]), dtype=np.bool_))
    terminated = False
    while not terminated:
        _, _, terminated, _, info = env.step(everything)
    return 0.0 if info["diverged"] else info["val_accuracy"]


def store(
    path: Path,
    of: str,
    recipe: Recipe,
    rates: dict[float, float],
    command: str,
    label_noise: float = 0.0,
    imbalance: float = 1.0,
) -> None:
    """Replace the rates by budget of a data set (`of`, as --save) and network in the recipes at `path`.

    Rates for wrong labels or unlike classes stand beside the rates for clean labels and classes of like size. Where
    there are none for these, the rates that were in use are kept for them, as customary ones.
    """
    table = json.loads(path.read_text())
    entries = table.setdefault(of, {})
    model, optimizer = named("model", recipe.model), recipe.optimizer
    entry = entries.setdefault(entry_name(model, optimizer), {})
    found = {"lr": {f"{budget:g}": rates[budget] for budget in sorted(rates)}, "command": command}
    if (label_noise or imbalance != 1.0) and not entry:
        dataset, _, size = of.partition(":")
        others = {"image_size": int(size or 0), "optimizer": optimizer}
        in_use = {b: tuned(dataset, model, b, **others).values["lr"] for b in sorted(rates)}
        entry |= {"lr": {f"{budget:g}": rate for budget, rate in in_use.items()}, "command": None}
    place = entry if imbalance == 1.0 else entry.setdefault("unlike", {}).setdefault(f"{imbalance:g}", {})
    if label_noise:
        place.setdefault("noisy", {})[f"{label_noise:g}"] = found
    else:
        place |= found
    fixed = {"batch_size": recipe.batch_size, "weight_decay": recipe.weight_decay}
    entries[entry_name(model, optimizer)] = {**fixed, **entry, **fixed}
    lines = [
        f"  {json.dumps(name)}: {{\n"
        + ",\n".join(f"    {json.dumps(family)}: {json.dumps(recipe)}" for family, recipe in families.items())
        + "\n  }"
        for name, families in table.items()
    ]
    io.write_atomic(path, ("{\n" + ",\n".join(lines) + "\n}\n").encode())


def check(args: Arguments, fixed: dict[str, Any]) -> Recipe:
    """Return the recipe that is tuned, but for its rate; `fixed` are settings of the environment.

    Raises:
        ValueError, TypeError, OSError, gymnasium.error.Error: what is wrong, in one line.
    """
    if len(set(args.budget)) < len(args.budget) or len(set(args.lr)) < len(args.lr):
        raise ValueError("--budget and --lr must not repeat a value")
    if min(args.seeds, args.workers, len(args.budget), len(args.lr)) < 1:
        raise ValueError("--seeds and --workers must be at least 1, and --budget and --lr need a value each")
    if args.save and not recipes_know(fixed):
        raise ValueError(
            "--save keeps rates for uniform label noise and unlike classes: give others as --lr or in a sweep file"
        )
    dataset_of(args.env)
    run = None
    for budget in args.budget:
        run = gym.make(args.env, disable_env_checker=True, **{**fixed, "budget": budget}).unwrapped
    assert isinstance(run, prune_env.PruneEnv)
    for lr in args.lr:
        replace(run.recipe, lr=lr)  # checks the rate, without reading the images again
    sized = [f"{name}:{args.task.image_size}" for name in sources.SOURCES]
    if args.save not in (None, "*", *sources.SOURCES, *sized):
        names = ", ".join(sources.SOURCES)
        raise ValueError(f"--save is {args.save!r}; it must be '*', or one of {names}, bare or with :--image-size")
    return run.recipe


def tune(args: Arguments, fixed: dict[str, Any]) -> dict[tuple[float, float], list[float]]:
    """Validation accuracies, in %, of all seeds, by budget and rate."""
    cells = [(budget, lr, seed) for budget in args.budget for lr in args.lr for seed in range(args.seeds)]
    accuracy: dict[tuple[float, float], list[float]] = {}
    with ProcessPoolExecutor(args.workers, mp_context=process.CONTEXT, initializer=process.start) as pool:
        settings = [{**fixed, "budget": budget, "lr": lr} for budget, lr, _ in cells]
        results = pool.map(full_training, repeat(args.env), settings, [seed for *_, seed in cells])
        for (budget, lr, _), result in zip(cells, follow(results, "runs", len(cells)), strict=True):
            accuracy.setdefault((budget, lr), []).append(100.0 * result)
    return accuracy


def best_rates(accuracy: Mapping[tuple[float, float], Sequence[float] | NDArray]) -> dict[float, float]:
    """Return the rate with the highest mean accuracy at each budget, from accuracies by budget and rate."""
    budgets, rates = dict.fromkeys(b for b, _ in accuracy), dict.fromkeys(lr for _, lr in accuracy)
    return {budget: max(rates, key=lambda lr, budget=budget: np.mean(accuracy[budget, lr])) for budget in budgets}


def table_of(title: str, accuracy: Mapping[tuple[float, float], Sequence[float] | NDArray]) -> Table:
    """Return a table of accuracies, in % and by budget and rate: a row a rate, a star beside the best of a budget."""
    best, several = best_rates(accuracy), len(next(iter(accuracy.values()))) > 1
    error = ", mean ± standard error" if several else ""
    table = Table(title=f"{title}: validation accuracy %{error}", min_width=60)
    table.add_column("lr", justify="right")
    for budget in best:
        table.add_column(f"budget {budget:g}", justify="right")
    for lr in dict.fromkeys(lr for _, lr in accuracy):
        cells = (plus_minus(accuracy[b, lr], ".2f") + ("*" if best[b] == lr else " ") for b in best)
        table.add_row(f"{lr:g}", *cells)
    return table


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program with `arguments` (else the command line's); return its exit status, 2 for wrong arguments."""
    command = shlex.join(["prune-env", "tune", *(sys.argv[1:] if arguments is None else arguments)])
    try:
        args = command_line.read("tune", Arguments, arguments, __doc__)
        fixed = settings_of(args.task, args.training) | ({} if args.root is None else {"root": args.root})
        recipe = check(args, fixed)
    except (ValueError, TypeError, OSError, gym.error.Error) as error:
        return command_line.refused(error)
    accuracy = tune(args, fixed)
    best = best_rates(accuracy)
    table = table_of(f"{args.env}, {recipe.model}, full training", accuracy)
    over = f"{args.seeds} paired seeds" if args.seeds > 1 else "1 seed"
    Console(width=max(100, 14 + 18 * len(args.budget))).print(table, f"* best of {over}")
    if args.save is None:
        print("next: --lr gives a rate to a program; this command with --save keeps them for all", file=sys.stderr)
    else:
        store(RECIPES, args.save, recipe, best, command, args.task.label_noise, args.task.imbalance)
        print(f"wrote {RECIPES}\nnext: prune-env evaluate --env {short_id(args.env)}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
