"""What an evaluation is asked to do, and whether it can be done."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import gymnasium as gym

import agents
from prune_env import PruneEnv, datasets
from train.episode import Run

# Arguments that go to the environment as they are; None leaves the choice to it.
TASK = ("image_size", "train_size", "label_noise", "imbalance", "duplicates", "task_seed")
TRAINING = (
    "batch_size",
    "lr",
    "momentum",
    "weight_decay",
    "warmup",
    "label_smoothing",
    "ema",
    "precision",
)
DEFAULT_AGENTS = (
    "full",
    "random",
    "random:fresh=True",
    "static_random",
    "epsilon_greedy",
    "ucb",
    "ucb1",
    "swdpp",
    "infobatch",
    "loss_topk",
    "middle",
)


@dataclass
class Arguments:
    """Train with every agent under equal budgets and paired seeds; compare test accuracy.

    Results go to OUT/NAME: results.jsonl (one line a run, with its provenance), curves.csv, accuracy.png,
    table.txt, tensorboard/ (its steps are thousandths of a full-epoch equivalent), and failures.jsonl if an
    agent failed. Runs that results.jsonl has are not run again.
    """

    agents: tuple[str, ...] = DEFAULT_AGENTS
    """Agents, e.g. `ucb`, `ucb:keep=0.3,c=2`, `my_module:MyAgent:option=1`."""
    env: str = "prune_env/Digits-v0"
    """Environment id: the data set."""
    model: str | None = None
    """Network; by default one that suits the data set."""
    budget: tuple[float, ...] = (10.0,)
    """Compute of a run in full-epoch equivalents; several give a table each."""
    keep: tuple[float, ...] = (0.5,)
    """Share of the samples kept in a step, for agents that take `keep` and do not set it; several are compared."""
    seeds: int = 5
    """Number of paired seeds: 0, 1, ..."""
    device: str = "auto"
    """Where to train: `auto` (CUDA where there is one), or a name torch knows."""
    workers: int | None = None
    """Parallel processes; by default one a core on the CPU, and one on CUDA."""

    train_size: int | None = None
    """Number of training samples, classes keeping their shares; by default all."""
    label_noise: float | None = None
    """Share of the training labels that are wrong."""
    imbalance: float | None = None
    """Ratio of the largest class to the smallest."""
    duplicates: float | None = None
    """Share of the training samples that repeat others."""
    task_seed: int | None = None
    """Seed of the four above."""

    root: str | None = None
    """Folder with the images; by default $PRUNE_ENV_DATA."""
    download: bool = False
    """Fetch images that are not there."""
    image_size: int | None = None
    """Side, in pixels, that images are resized to, where the data set allows it."""

    batch_size: int | None = None
    """Rows of a batch; by default the tuned recipe's, as for the next two."""
    lr: float | None = None
    """Peak learning rate."""
    weight_decay: float | None = None
    """Weight decay."""
    momentum: float | None = None
    """Momentum of SGD, 0.9 by default."""
    warmup: float | None = None
    """Share of the budget in which the learning rate rises, 0.1 by default."""
    label_smoothing: float | None = None
    """Smoothing of the training labels, none by default."""
    ema: float | None = None
    """Weight of the newest loss in its running mean and variance, 0.8 by default."""
    precision: str | None = None
    """`float32`, `bfloat16` or `auto` (the default)."""

    name: str | None = None
    """Folder of the results; by default made of data set, network and task."""
    out: Path = Path("runs")
    """Folder of that folder."""


@dataclass(frozen=True)
class Plan:
    """What an evaluation does, checked."""

    runs: dict[str, Run]  # by key, in the order of the figure
    folder: Path
    workers: int


def make_plan(arguments: Arguments) -> Plan:
    """Check everything that can be wrong before a run: build every agent, and the environment at each budget.

    Raises:
        ValueError, OSError, gymnasium.error.Error: what is wrong, in one line.
    """
    for name in ("agents", "budget", "keep"):
        if not getattr(arguments, name):
            raise ValueError(f"--{name} needs at least one value")
    for name in ("seeds", "workers"):
        value = getattr(arguments, name)
        if value is not None and value < 1:
            raise ValueError(f"--{name} is {value}; it must be at least 1")
    specs = _check_agents(arguments)
    spec = gym.spec(arguments.env)
    if "dataset" not in spec.kwargs:
        raise ValueError(f"environment {arguments.env!r} is not one of prune_env's")

    # Runs open the test split at their end: that it is missing should not be found out then.
    datasets.find(spec.kwargs["dataset"], "test", arguments.root, arguments.download, arguments.image_size)
    given = {n: getattr(arguments, n) for n in ("model", *TASK, *TRAINING, "root") if getattr(arguments, n) is not None}
    runs: dict[str, Run] = {}
    model, device = "", "cpu"
    for budget in sorted(set(arguments.budget)):
        settings = {**given, "budget": budget, "device": arguments.device}
        env = gym.make(arguments.env, disable_env_checker=True, download=arguments.download, **settings)
        for seed in range(arguments.seeds):
            for agent in specs:
                run = Run(arguments.env, settings, agent, seed)
                runs[run.key(env)] = run
        plain = cast(PruneEnv, env.unwrapped)
        model, device = plain.recipe.model, plain.train_data.images.device.type
        env.close()
    task = [f"{name}{given[name]:g}" for name in TASK if name in given]
    name = re.sub(r"[^\w.-]+", "-", "-".join([spec.kwargs["dataset"], model, *task]))
    return Plan(
        runs=runs,
        folder=arguments.out / (arguments.name or name),
        workers=arguments.workers or (1 if device == "cuda" else _cores()),
    )


def _check_agents(arguments: Arguments) -> list[str]:
    """The specs with each keep, each built once."""
    specs: dict[str, None] = {}
    for spec in arguments.agents:
        for keep in arguments.keep:
            try:
                full_spec = agents.spec_with_keep(spec, keep)
                agents.make(full_spec)
            except ValueError:
                raise
            except Exception as error:  # somebody's own module or class can raise anything
                raise ValueError(f"agent {spec!r} cannot be built: {type(error).__name__}: {error}") from error
            specs[full_spec] = None
    return list(specs)


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
