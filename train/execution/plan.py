"""What is to be run, checked before the first run: blocks of agents, budgets and seeds on a task."""

from __future__ import annotations

import traceback
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import product
from typing import Any, cast

import gymnasium as gym

import agents
from prune_env import PruneEnv, data
from prune_env.students.recipes import nearest
from train.execution import provenance, results
from train.execution.agent import line_of
from train.execution.run import Failure, Run

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
    device: str  # type of the device that they train on
    failures: list[Failure]  # of runs whose agents cannot be imported
    own_files: dict[str, str]  # by spec, the digest of the files of somebody's own that it names now; "" without any


def make_plan(blocks: Iterable[Block], place: Place) -> Plan:
    """Check everything that can be wrong before a run: every agent, and each environment at each budget.

    An agent's own module that raises when it is imported costs its runs, and no other.

    Args:
        blocks: what to run.
        place: where.

    Raises:
        ValueError, TypeError, OSError, gymnasium.error.Error: what is wrong, in one line.
    """
    runs: dict[str, Run] = {}
    failures: list[Failure] = []
    own_files: dict[str, str] = {}
    tests: dict[tuple[str, int | None], str] = {}  # digest of the test split, by data set and size of images
    device = "cpu"
    for block in blocks:
        for name in ("agents", "budgets", "keep"):
            if not getattr(block, name):
                raise ValueError(f"{name} needs at least one value")
        if block.seeds < 1:
            raise ValueError(f"seeds is {block.seeds}; it must be at least 1")
        specs: dict[str, Exception | None] = {}  # with each keep, in order; why one cannot be imported
        for spec, keep in product(block.agents, block.keep):  # before anything is fetched
            try:
                full_spec = agents.spec_with_keep(spec, keep)
                agents.check(full_spec)
                own_files[full_spec] = provenance.files_digest(agents.own_files(full_spec))
                specs[full_spec] = None
            except agents.Unimportable as error:
                specs[spec] = error
        test = _test_split(block, place, tests)
        of_machine = {name: getattr(place, name) for name in ("root", "images")}
        given = {**block.settings, **{n: value for n, value in of_machine.items() if value not in (None, "auto")}}
        for budget in sorted(set(block.budgets)):
            settings = {**given, "budget": budget, "device": place.device}
            if isinstance(given.get("lr"), dict):
                settings["lr"] = nearest(given["lr"], budget)
            env = gym.make(block.env, disable_env_checker=True, download=place.download, **settings)
            if not isinstance(env.observation_space, gym.spaces.Dict):
                raise ValueError(
                    f"agents see every sample, and {block.env!r} shows summaries; name its twin without them"
                )
            configuration = Run(block.env, settings, "", 0).configuration(env)
            for (spec, error), seed in product(specs.items(), range(block.seeds)):
                key = results.key_of(configuration, spec, seed, test)
                run = runs.setdefault(key, Run(block.env, settings, spec, seed, block.task, key))
                if error is not None:
                    failures.append(Failure(run, line_of(error), "".join(traceback.format_exception(error))))
            device = cast(PruneEnv, env.unwrapped).train_data.device.type
            env.close()
    return Plan(runs, device, failures, own_files)


def _test_split(block: Block, place: Place, known: dict[tuple[str, int | None], str]) -> str:
    """Digest of the test split of a block's data set.

    Runs open that split at their end: that it is missing, or damaged, should not be found out then.
    """
    spec = gym.spec(block.env)
    if "dataset" not in spec.kwargs:
        raise ValueError(f"environment {block.env!r} is not one of prune_env's")
    dataset, size = split = spec.kwargs["dataset"], block.settings.get("image_size")
    if split not in known:
        test = data.load_test(dataset, root=place.root, download=place.download, image_size=size, images=place.images)
        known[split] = test.digest
    return known[split]
