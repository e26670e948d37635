"""What is to be run, checked before the first run: blocks of agents, budgets and seeds on a task."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from itertools import product
from typing import Annotated, Any, cast

import gymnasium as gym
import tyro

import agents
from prune_env import PruneEnv, data
from prune_env.data.task import VARIANT, Variant
from prune_env.students.recipes import Training, default_model, nearest, tuned
from train.execution.companion import AgentDied, AgentError, Companion
from train.execution.episode import OF_MACHINE, Run
from train.execution.workers import DIED, Failure, Terms, closed_files

TASK = ("image_size", *VARIANT)
SETTINGS = (*TASK, *(option.name for option in fields(Training)))
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


@dataclass
class Options:
    """What to train on, and how: the flags of every program that trains."""

    env: str = "prune_env/Digits-v0"
    """Environment id: the data set."""
    image_size: int | None = None
    """Side in pixels that images are resized to, where the data set allows it."""
    variant: Annotated[Variant, tyro.conf.arg(name="")] = field(default_factory=Variant)
    training: Annotated[Training, tyro.conf.arg(name="")] = field(default_factory=Training)

    def settings(self) -> dict[str, Any]:
        """Return the options that differ from their defaults: keyword arguments of the environment."""
        settings = {} if self.image_size is None else {"image_size": self.image_size}
        for of in (self.variant, self.training):
            values = {option.name: (getattr(of, option.name), option.default) for option in fields(of)}
            settings |= {name: value for name, (value, default) in values.items() if value != default}
        return settings


def dataset_of(env_id: str) -> str:
    """Return the data set of an environment in which agents choose samples.

    Raises:
        gymnasium.error.Error: there is no such environment.
        ValueError: it belongs to another package, or shows summaries, which agents cannot act on.
    """
    spec = gym.spec(env_id)
    if "dataset" not in spec.kwargs:
        raise ValueError(f"environment {env_id!r} is not one of prune_env's")
    if spec.entry_point != "prune_env.env:PruneEnv":
        plain = env_id.replace("Summary-v", "-v")
        raise ValueError(f"environment {env_id!r} takes rules, and agents choose samples: use {plain!r}")
    return spec.kwargs["dataset"]


def with_rates(block: Block) -> dict[float, tuple[dict[str, Any], str]]:
    """Return a block's settings at each of its budgets, and what their learning rate was tuned for.

    A rate that the settings lack is the one tuned for full training at this budget and share of wrong labels. The
    environment does not take it by itself, since agents could read the share from it.

    Raises:
        TypeError, ValueError: an option that `recipes.tuned` refuses.
    """
    dataset, size = dataset_of(block.env), block.settings.get("image_size")
    budgets = sorted(set(block.budgets))
    flags = {"env": block.env, "model": default_model(dataset), **block.settings, "budget": budgets}
    flags["save"] = f"{dataset}:{size}" if size else dataset
    found = {}
    for budget in budgets:
        settings, noise = dict(block.settings), block.settings.get("label_noise", 0.0)
        tuned_to = tuned(dataset, settings.get("model"), budget, noise, size)
        rate = settings.get("lr", tuned_to.values["lr"])
        if isinstance(rate, dict):
            rate = rate[nearest(rate, budget)]
        if "lr" in settings or noise:  # else it is the environment's own
            settings["lr"] = rate
        if rate != tuned_to.values["lr"]:
            found[budget] = settings, f"lr {rate}: as given"
        elif tuned_to.fits:
            found[budget] = settings, tuned_to.description
        else:
            found[budget] = settings, f"{tuned_to.description}; tune it: {_command('train.tune', flags)}"
    return found


def _command(program: str, flags: Mapping[str, Any]) -> str:
    """The command line of a program, without a learning rate."""
    words = ["python", "-m", program]
    for name, value in flags.items():
        if name != "lr":
            values = value if isinstance(value, list) else [] if value is True else [value]
            words += [f"--{name.replace('_', '-')}", *(f"{v:g}" if isinstance(v, float) else str(v) for v in values)]
    return shlex.join(words)


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
        dataset = dataset_of(block.env)

        # Runs open the test split at their end: that it is missing, or damaged, should not be found out then.
        _, size = split = dataset, block.settings.get("image_size")
        if split not in splits:
            test = data.load_test(
                dataset, root=place.root, download=place.download, image_size=size, images=place.images
            )
            splits[split] = test.digest
            del test  # its memory, before that of the next
        digests = _digests(block, place, terms, failed)
        of_machine = {name: getattr(place, name) for name in OF_MACHINE if getattr(place, name) not in (None, "auto")}
        for budget, (of_task, rate) in with_rates(block).items():
            settings = {**of_task, **of_machine, "budget": budget, "device": place.device}
            env = gym.make(block.env, disable_env_checker=True, download=place.download, **settings)
            for (agent, digest), seed in product(digests.items(), range(block.seeds)):
                run = Run(block.env, settings, agent, seed, block.task, rate)
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
