"""What is to be run, checked before the first run: blocks of agents, budgets and seeds on a task."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, cast

import gymnasium as gym

import agents
from prune_env import PruneEnv, datasets
from prune_env.recipes import nearest
from train.episode import OF_MACHINE, Run

# What a task may set of its environment; what is not set is left to it.
TASK = ("image_size", "train_size", "label_noise", "imbalance", "duplicates", "task_seed", "val_rest")
TRAINING = (
    "batch_size",
    "lr",
    "momentum",
    "weight_decay",
    "warmup",
    "label_smoothing",
    "ema",
    "precision",
    "compile",
)
SETTINGS = ("model", *TASK, *TRAINING)


@dataclass(frozen=True)
class Block:
    """Every agent with every keep, at every budget, with seeds 0, 1, ..., on one task."""

    task: str  # name of the task
    env: str  # id
    settings: dict[str, Any]  # of the environment, of SETTINGS; `lr` may be a dict of rates by budget
    agents: tuple[str, ...]  # specs
    keep: tuple[float, ...]  # shares, for agents that take `keep` and do not set it
    budgets: tuple[float, ...]  # full-epoch equivalents
    seeds: int


@dataclass(frozen=True)
class Place:
    """Where runs find their images and their device."""

    root: str | None
    download: bool
    device: str
    images: str = "auto"  # where they are kept, see `prune_env.data.load`


@dataclass(frozen=True)
class Plan:
    """The runs there are to do."""

    runs: dict[str, Run]  # by key, in the order of the blocks, and in each by budget, agent and seed
    device: str  # type of that which they train on


def make_plan(blocks: Iterable[Block], place: Place) -> Plan:
    """Check everything that can be wrong before a run: every agent, and each environment at each budget.

    Raises:
        ValueError, TypeError, OSError, gymnasium.error.Error: what is wrong, in one line.
    """
    runs: dict[str, Run] = {}
    device = "cpu"
    for block in blocks:
        for name in ("agents", "budgets", "keep"):
            if not getattr(block, name):
                raise ValueError(f"{name} needs at least one value")
        if block.seeds < 1:
            raise ValueError(f"seeds is {block.seeds}; it must be at least 1")
        specs = _with_keeps(block.agents, block.keep)
        spec = gym.spec(block.env)
        if "dataset" not in spec.kwargs:
            raise ValueError(f"environment {block.env!r} is not one of prune_env's")

        # Runs open the test split at their end: that it is missing should not be found out then.
        size = block.settings.get("image_size")
        datasets.find(spec.kwargs["dataset"], "test", place.root, place.download, size)
        of_machine = {name: getattr(place, name) for name in OF_MACHINE if getattr(place, name) not in (None, "auto")}
        given = {**block.settings, **of_machine}
        for budget in sorted(set(block.budgets)):
            settings = {**given, "budget": budget, "device": place.device}
            if isinstance(given.get("lr"), dict):
                settings["lr"] = nearest(given["lr"], budget)
            env = gym.make(block.env, disable_env_checker=True, download=place.download, **settings)
            for agent in specs:
                for seed in range(block.seeds):
                    run = Run(block.env, settings, agent, seed, block.task)
                    runs.setdefault(run.key(env), run)
            device = cast(PruneEnv, env.unwrapped).train_data.device.type
            env.close()
    return Plan(runs, device)


def _with_keeps(specs: Iterable[str], keeps: Iterable[float]) -> list[str]:
    """The specs with each keep, checked. What building an agent of somebody's own raises is for its cells to tell."""
    complete: dict[str, None] = {}
    for spec in specs:
        for keep in keeps:
            full_spec = agents.spec_with_keep(spec, keep)
            agents.check(full_spec)
            complete[full_spec] = None
    return list(complete)
