"""What is to be run, checked before the first run: blocks of agents, budgets and seeds on a task."""

from __future__ import annotations

import functools
import os
import shlex
import traceback
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from itertools import product
from typing import Annotated, Any

import gymnasium as gym
import tyro

import agents
from prune_env import data
from prune_env.data.source import printable
from prune_env.data.task import VARIANT, Variant
from prune_env.students.recipes import Training, default_model, nearest, tuned
from train.execution import provenance, results
from train.execution.agent import Given, line_of
from train.execution.results import FILES
from train.execution.run import Failure, Run

PLAIN = "prune_env.env:PruneEnv"  # entry point of the environments in which agents choose samples
TASK = ("image_size", *VARIANT)
SETTINGS = (*TASK, *(option.name for option in fields(Training)))


@dataclass(frozen=True)
class Block:
    """Every agent with every keep, at every budget, with seeds 0, 1, ..., on one task."""

    task: str  # name of the task
    env: str  # id
    settings: dict[str, Any]  # of the environment, of SETTINGS; `lr` may be a dict of rates by budget
    agents: tuple[str, ...]  # specs, or names of what is given
    keep: tuple[float, ...]  # shares, for agents that take `keep` and do not set it
    budgets: tuple[float, ...]  # full-epoch equivalents
    seeds: int
    given: Mapping[str, Given] = field(default_factory=dict)  # agents of the calling program, by name
    labels: Mapping[str, str] = field(default_factory=dict)  # what tables call agents, by their specs with `keep`


@dataclass(frozen=True, kw_only=True)
class Data(Variant):
    """What is trained on, beside the data set."""

    image_size: int | None = None
    """Side in pixels that images are resized to, where the data set allows it."""


TaskOptions = Annotated[Data, tyro.conf.arg(name="task", help="")]
TrainingOptions = Annotated[Training, tyro.conf.arg(name="training", help="")]


def settings_of(task: Variant, training: Training) -> dict[str, Any]:
    """Return the options that differ from their defaults: keyword arguments of the environment."""
    values = {
        option.name: (getattr(of, option.name), option.default) for of in (task, training) for option in fields(of)
    }
    return {name: values[name][0] for name in SETTINGS if values[name][0] != values[name][1]}


def short_id(env_id: str) -> str:
    """Return an environment's id in short: "prune_env/CIFAR10-v0" -> "cifar10"."""
    return env_id.lower().removeprefix("prune_env/").removesuffix("-v0").replace("_", "")


def full_id(name: str) -> str:
    """Return the id of the environment that `name`, an id or a part such as "digits" or "CIFAR10-v0", means.

    A name that means none is returned as it is.
    """
    ours = (known for known, spec in gym.registry.items() if "dataset" in spec.kwargs)
    return next((known for known in ours if short_id(known) == short_id(name)), name)


def dataset_of(env_id: str) -> str:
    """Return the data set of an environment in which agents choose samples.

    Raises:
        ValueError: there is no such environment here, or it shows summaries, which agents cannot act on.
    """
    spec = gym.registry.get(env_id)
    if spec is None or "dataset" not in spec.kwargs:
        known = ", ".join(short_id(name) for name, other in gym.registry.items() if other.entry_point == PLAIN)
        raise ValueError(f"environment {env_id!r} is not one of prune_env's: {known}")
    if spec.entry_point != PLAIN:
        plain = env_id.replace("Summary-v", "-v")
        raise ValueError(f"environment {env_id!r} takes rules, and agents choose samples: use {plain!r}")
    return spec.kwargs["dataset"]


def with_rates(block: Block, root: str | None = None) -> dict[float, tuple[dict[str, Any], str]]:
    """Return a block's settings at each of its budgets, and what their learning rate was tuned for.

    A rate that the settings lack is the one tuned for full training at this budget, share of wrong labels and
    imbalance. The environment does not take it by itself, since agents could read the trouble from it.

    Args:
        block: what is run.
        root: folder with the images, for the command that tunes the rate.

    Raises:
        TypeError, ValueError: an option that `recipes.tuned` refuses, or labels that do not fit the images.
        OSError: labels of one's own that cannot be read.
    """
    dataset, size = _data_of(block), block.settings.get("image_size")
    model, optimizer = block.settings.get("model"), block.settings.get("optimizer", "sgd")
    from_python = isinstance(dataset, data.Arrays) or callable(model)
    found, noise, imbalance = {}, _wrong_share(block, root), block.settings.get("imbalance", 1.0)
    for budget in sorted(set(block.budgets)):
        settings = dict(block.settings)
        best = tuned(data.sources.name_of(dataset), model, budget, noise, size, optimizer, imbalance)
        rate = settings.get("lr", best.values["lr"])
        if isinstance(rate, dict):
            rate = rate[nearest(rate, budget)]
        if "lr" in settings or noise or imbalance != 1.0:  # else it is the environment's own
            settings["lr"] = rate
        if rate != best.values["lr"]:
            found[budget] = settings, f"lr {rate}: as given"
        elif best.fits or from_python:  # no command line names what is not in a file
            found[budget] = settings, best.description
        else:
            found[budget] = settings, f"{best.description}; tune it: {_tune_command(block, root)}"
    return found


def _wrong_share(block: Block, root: str | None) -> float:
    """Return the share of wrong labels among those that a block trains on."""
    if not block.settings.get("labels"):
        return block.settings.get("label_noise", 0.0)
    names = [name for name in TASK if name in block.settings and name != "reference"]
    train, _ = data.load(_data_of(block), root=root, **{name: block.settings[name] for name in names})
    return round(float(train.wrong.float().mean()), 4)


def _data_of(block: Block) -> str | data.Arrays:
    """Return the data set of a block's settings, else of its environment. Raises as `dataset_of`."""
    of_env = dataset_of(block.env)
    return block.settings.get("dataset", of_env)


def recipes_know(settings: Mapping[str, Any]) -> bool:
    """Return whether recipes.json has a place for rates of a task: one with uniform wrong labels or unlike classes."""
    others = any(settings.get(name) for name in ("labels", "duplicates", "corrupted"))
    return not others and settings.get("label_noise_kind", "uniform") == "uniform"


def _tune_command(block: Block, root: str | None) -> str:
    """Return the command line that tunes the rates of a block."""
    dataset, size = dataset_of(block.env), block.settings.get("image_size")
    flags = {"env": block.env, "model": default_model(dataset), **block.settings, "budget": sorted(set(block.budgets))}
    if recipes_know(block.settings):
        flags["save"] = f"{dataset}:{size}" if size else dataset
    for name in ("lr", "reference"):
        flags.pop(name, None)
    return command_of("tune", flags, root)


def command_of(program: str, flags: Mapping[str, Any], root: str | None) -> str:
    """Return the command line of a program with these options; `root` stands in it unless digits are the data."""
    if root is not None and dataset_of(flags["env"]) != "digits":
        flags = {**flags, "root": printable(root)}
    words = ["prune-env", program]
    for name, value in flags.items():
        if value is None or value is False:
            continue
        values = value if isinstance(value, list) else [] if value is True else [value]
        words += [f"--{name.replace('_', '-')}", *(_plain(value) for value in values)]
    return shlex.join(words)


def _plain(value: Any) -> str:
    return repr(float(value)).removesuffix(".0") if isinstance(value, float) else str(value)


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
    own_files: dict[str, str]  # by spec, the digest of the user's own files that it names now; "" without any


def make_plan(blocks: Iterable[Block], place: Place) -> Plan:
    """Check everything that can be wrong before a run: every agent, and each environment at each budget.

    An agent's own module that raises when it is imported costs its runs, and no other. Agents that do not ask for a
    reference run without it, and do not pay for it.

    Args:
        blocks: what to run.
        place: where.

    Raises:
        ValueError, TypeError, OSError, gymnasium.error.Error: what is wrong, in one line.
    """
    runs: dict[str, Run] = {}
    failures: dict[str, Failure] = {}  # by key: blocks may have the same runs
    own_files: dict[str, str] = {}
    device = "cpu"
    of_machine = {"root": place.root, "images": place.images}
    of_machine = {name: value for name, value in of_machine.items() if value not in (None, "auto")}

    @functools.cache
    def test_digest(dataset: str | data.Arrays, size: int | None) -> str:
        """Read the test split: that it is missing, or damaged, should not be found out at the end of a run."""
        where = {"root": place.root, "download": place.download, "images": place.images}
        return data.load_test(dataset, image_size=size, **where).digest

    def configuration_of(env_id: str, settings: dict[str, Any]) -> dict[str, Any]:
        env = gym.make(env_id, disable_env_checker=True, download=place.download, **settings)
        configuration = Run(env_id, settings, "", 0).configuration(env)
        env.close()
        return configuration

    for block in blocks:
        for name in ("agents", "budgets", "keep"):
            if not getattr(block, name):
                raise ValueError(f"{name} needs at least one value")
        if block.seeds < 1:
            raise ValueError(f"seeds is {block.seeds}; it must be at least 1")
        dataset = _data_of(block)
        specs: dict[str, Exception | None] = {}  # with each keep, in order; why one cannot be imported
        asks: dict[str, bool] = {}  # whether the agent needs a reference
        for spec, keep in product(block.agents, block.keep):  # before anything is fetched
            if spec in block.given:
                specs[spec], own_files[spec] = None, ""
                asks[spec] = agents.needs_reference(block.given[spec])
            else:
                try:
                    full_spec = agents.spec_with_keep(spec, keep)
                    agents.check(full_spec)
                    own_files[full_spec] = provenance.files_digest(agents.own_files(full_spec))
                    specs[full_spec], asks[full_spec] = None, agents.needs_reference(full_spec)
                except agents.Unimportable as error:
                    specs[spec], asks[spec] = error, False
            if any(asks.values()) and not block.settings.get("reference"):
                raise ValueError(
                    f"agent {spec!r} needs --reference FILE (reference=FILE), which prune-env reference can make"
                )
        test = test_digest(dataset, block.settings.get("image_size"))
        for budget, (of_task, rate) in with_rates(block, place.root).items():
            of_task |= {name: os.path.abspath(os.path.expanduser(of_task[name])) for name in FILES if of_task.get(name)}
            whole = {**of_task, **of_machine, "budget": budget, "device": place.device}
            without = {name: value for name, value in whole.items() if name != "reference"}
            settings = {asking: whole if asking else without for asking in set(asks.values())}
            configurations = {asking: configuration_of(block.env, own) for asking, own in settings.items()}
            for (spec, error), seed in product(specs.items(), range(block.seeds)):
                own, configuration, given = settings[asks[spec]], configurations[asks[spec]], block.given.get(spec)
                label = block.labels.get(spec, "")
                key = results.key_of(configuration, spec, seed, test)
                run = runs.setdefault(key, Run(block.env, own, spec, seed, block.task, key, rate, given, label))
                if error is not None:
                    failures[key] = Failure(run, line_of(error), "".join(traceback.format_exception(error)))
                device = configuration["device"]
    return Plan(runs, device, [*failures.values()], own_files)
