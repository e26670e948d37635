"""What is to be run, checked before the first run: blocks of agents, budgets and seeds on a task."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import product
from typing import Any, cast

import gymnasium as gym

import agents
from prune_env import PruneEnv, data
from prune_env.students.recipes import nearest
from train.execution.companion import AgentDied, AgentError, Companion
from train.execution.episode import OF_MACHINE, Run
from train.execution.workers import DIED, Failure, Terms, closed_files

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
UNKNOWN = "unknown"  # in place of the digest of an agent's code: no record has such a key


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
    failures: dict[str, Failure]  # by key, of runs whose agents cannot be imported
    tests: dict[str, str]  # by key, the digest of the test split that the run will open


def make_plan(blocks: Iterable[Block], place: Place, terms: Terms | None = None) -> Plan:
    """Check everything that can be wrong before a run: every agent, and each environment at each budget.

    What the module of somebody's own agent does wrong when it is imported costs its runs, and no other.

    Args:
        blocks: what to run.
        place: where.
        terms: of the runs, which also hold for looking at their agents.

    Raises:
        ValueError, TypeError, OSError, gymnasium.error.Error: what is wrong, in one line.
    """
    terms = terms or Terms()
    runs: dict[str, Run] = {}
    failures: dict[str, Failure] = {}
    failed: dict[str, AgentError] = {}
    tests: dict[str, str] = {}
    splits: dict[tuple[str, int | None], str] = {}  # digest of the test split, by data set and size of images
    device = "cpu"
    for block in blocks:
        for name in ("agents", "budgets", "keep"):
            if not getattr(block, name):
                raise ValueError(f"{name} needs at least one value")
        if block.seeds < 1:
            raise ValueError(f"seeds is {block.seeds}; it must be at least 1")
        for agent, keep in product(filter(agents.is_ours, block.agents), block.keep):  # before anything is fetched
            agents.check(agents.spec_with_keep(agent, keep))
        spec = gym.spec(block.env)
        if "dataset" not in spec.kwargs:
            raise ValueError(f"environment {block.env!r} is not one of prune_env's")

        # Runs open the test split at their end: that it is missing, or damaged, should not be found out then.
        dataset, size = split = spec.kwargs["dataset"], block.settings.get("image_size")
        if split not in splits:
            test = data.load_test(
                dataset, root=place.root, download=place.download, image_size=size, images=place.images
            )
            splits[split] = test.digest
            del test  # its memory, before that of the next
        digests = _digests(block, place, terms, failed)
        of_machine = {name: getattr(place, name) for name in OF_MACHINE if getattr(place, name) not in (None, "auto")}
        given = {**block.settings, **of_machine}
        for budget in sorted(set(block.budgets)):
            settings = {**given, "budget": budget, "device": place.device}
            if isinstance(given.get("lr"), dict):
                settings["lr"] = nearest(given["lr"], budget)
            env = gym.make(block.env, disable_env_checker=True, download=place.download, **settings)
            for (agent, digest), seed in product(digests.items(), range(block.seeds)):
                run = Run(block.env, settings, agent, seed, block.task)
                key = run.key(env, digest if isinstance(digest, str) else UNKNOWN)
                runs.setdefault(key, run)
                tests[key] = splits[split]
                if isinstance(digest, AgentError):
                    error = DIED if isinstance(digest, AgentDied) else str(digest)
                    failures[key] = Failure(key, run, error, digest.traceback)
            device = cast(PruneEnv, env.unwrapped).train_data.device.type
            env.close()
    return Plan(runs, device, failures, tests)


def _digests(block: Block, place: Place, terms: Terms, failed: dict[str, AgentError]) -> dict[str, str | AgentError]:
    """Digests of the code of a block's agents, by their specs with each keep, or why one is not known.

    Modules of somebody's own are imported elsewhere: here they could change what is measured, or end it. Those that
    `failed`, which is added to, are not tried again: it can take long.
    """
    found: dict[str, str | AgentError] = {}
    closed: list[str] = []
    if not all(map(agents.is_ours, block.agents)):
        where = gym.spec(block.env).kwargs["dataset"], place.root, block.settings.get("image_size")
        closed = [*closed_files(*where), *terms.closed()]
    for spec, keep in product(block.agents, block.keep):
        if agents.is_ours(spec):
            full_spec = agents.spec_with_keep(spec, keep)
            found[full_spec] = agents.source_digest(full_spec)
            continue
        try:
            if spec in failed:
                raise failed[spec]
            full_spec, digest = Companion(terms.agent_timeout).look(spec, keep, closed)
            found[full_spec] = digest
        except AgentError as error:
            found[spec] = failed[spec] = error
    return found
