"""Compare agents at equal compute: `prune-env evaluate --help`."""

from __future__ import annotations

import re
import shlex
import sys
import warnings
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import numpy as np
import tyro
from rich.console import Group
from rich.text import Text

import agents as rules
from prune_env.checks import real, text, whole
from prune_env.data import sources
from prune_env.data.source import printable
from prune_env.students.recipes import Training, default_model
from train.analysis import records as reading
from train.analysis import summary, table
from train.analysis.folder import write
from train.analysis.records import Results
from train.analysis.summary import FULL
from train.analysis.text import count, readable
from train.execution import command_line, program, results
from train.execution.agent import Given
from train.execution.executors import Where
from train.execution.plan import (
    SETTINGS,
    TASK,
    Block,
    Data,
    TaskOptions,
    TrainingOptions,
    dataset_of,
    full_id,
    settings_of,
)
from train.execution.program import Running, carry_out
from train.execution.results import Record

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


KEEP = (0.5,)


@dataclass(kw_only=True)
class Arguments:
    """Train with every agent under equal budgets and paired seeds; compare test accuracy.

    Results go to OUT/NAME: results.jsonl (one line a run, with its provenance), curves.csv, accuracy.png,
    table.txt, tensorboard/ (its steps are thousandths of a full-epoch equivalent), and failures.jsonl if an
    agent failed. Runs that results.jsonl has are not run again. The table that is printed is of the runs asked for.
    table.txt and curves.csv are of all runs in the folder, accuracy.png and tensorboard/ of those on the same task.

    `prune-env list` shows the agents, environments and models, and the options of each agent. Examples:
        prune-env evaluate --agents full random ucb:c=2 --budget 5 --seeds 3
        prune-env evaluate --agents full infobatch --env imagefolder --root DIR --train-size 5000
        prune-env evaluate --agents full --label half=my_agents:Mine fifth=my_agents:Mine:keep=0.2
    """

    agents: Annotated[tuple[str, ...], tyro.conf.arg(metavar="AGENT ...")] = DEFAULT_AGENTS
    """Agents with their options: `ucb`, `ucb:keep=0.3,c=2`, your own `my_module:MyAgent:option=1`."""
    env: str = "digits"
    """Environment, which is the data set: `digits`, `cifar10`, `imagefolder`, ..."""
    budget: Annotated[tuple[float, ...], tyro.conf.arg(metavar="FLOAT ...")] = (10.0,)
    """Compute of a run in full-epoch equivalents; several give a table each."""
    seeds: int = 5
    """Number of paired seeds: 0, 1, ..."""
    keep: Annotated[tuple[float, ...], tyro.conf.arg(metavar="FLOAT ...")] = KEEP
    """Share of the samples kept in a step, for agents that take `keep` and do not set it; several are compared."""
    label: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME=AGENT ...", help_behavior_hint="")] = ()
    """More agents, with the names that tables and figures have for them."""
    task: TaskOptions = field(default_factory=Data)
    training: TrainingOptions = field(default_factory=Training)
    running: Annotated[Running, tyro.conf.arg(name="images and result", help="")] = field(default_factory=Running)

    def blocks(self) -> tuple[str, list[Block], str]:
        """Return the default name of the folder of results, what to run, and no text of a file, see `carry_out`."""
        env, settings = full_id(self.env), settings_of(self.task, self.training)
        name, heading = names(env, settings, self.running.root)
        named, labels = _named_specs(self.label), {}
        for keep in self.keep:
            for spec, label in _labels(named, keep).items():
                alone = len(self.keep) == 1 or spec == named[label]  # else one name would be of several agents
                labels[spec] = label if alone else f"{label}:keep={keep:g}"
        agents = (*self.agents, *named.values())
        return name, [Block(heading, env, settings, agents, self.keep, self.budget, self.seeds, labels=labels)], ""


def names(env: str, settings: Mapping[str, Any], root: str | None) -> tuple[str, str]:
    """Return the default name of the folder of results, and the heading of their tables. Raises as `dataset_of`."""
    settings = results.plain_settings(settings)
    dataset = settings.get("dataset", dataset_of(env))
    model = settings.pop("model", None) or default_model(dataset)
    images = [printable(sources.folder(root).name)] if dataset == "imagefolder" else []
    plain = {
        name: value if isinstance(value, str) else f"{value:g}" for name, value in settings.items() if name in TASK
    }
    task = [f"{name}{value}" for name, value in plain.items()]
    name = re.sub(r"[^\w.-]+", "-", "-".join([dataset, *images, model, *task]))
    return name, ", ".join([env, *images, model, *(f"{name}={value}" for name, value in settings.items())])


def report(folder: Path, records: Sequence[Record], _: str = "") -> None:
    """Print the table of these runs; write files on all runs of the folder of results."""
    there, asked = write_files(folder, records), {record["key"] for record in records}
    shown = [record for record in there if record["key"] in asked]
    parts = [table.render_tasks(shown)]
    if others := len(there) - len(shown):
        note = readable(f"{folder / 'table.txt'} also has the {count(others, 'other run')} in this folder.")
        parts.append(Text(note, no_wrap=True, overflow="ignore"))
    table.display(Group(*parts))


def write_files(folder: Path, records: Sequence[Record]) -> list[Record]:
    """Write the files on all runs in the folder, those on one task about the task of these; return all."""
    asked = {record["key"] for record in records}
    found = [record for key, record in results.read(folder / "results.jsonl")[0].items() if key not in asked]
    there = reading.told_apart([*found, *records])
    task, there = there[-1]["task"], summary.latest(there)
    write(folder, there, [task])
    return there


def evaluate(
    agents: Mapping[str, str | Given] | Sequence[str | Given] = DEFAULT_AGENTS,
    env: str = "prune_env/Digits-v0",
    budgets: Sequence[float] = (10.0,),
    seeds: int = 5,
    *,
    folder: str | Path | None = None,
    workers: int | None = 0,
    root: str | None = None,
    download: bool = False,
    images: str = "auto",
    device: str = "auto",
    fresh: bool = False,
    save_models: bool = False,
    save_selections: bool = False,
    **settings: Any,
) -> Results:
    """Compare agents at equal compute, as `prune-env evaluate` does; see docs/python.md.

    Args:
        agents: by the names that they have in the results: specs, callables `agent(observation, rng) -> action`, of
            which each run has a copy that is reset, or classes of such, made anew for each run. Or a list of these.
        env: id of the environment, as in `prune_env/CIFAR10-v0`, or short, as in `cifar10`.
        budgets: compute of a run in full-epoch equivalents.
        seeds: number of paired seeds: 0, 1, ...
        folder: where results are kept, as by the program: runs that are there are not done again, but for those of
            callables and classes. By default nothing is kept.
        workers: processes that do the runs; None: one a core. 0: this process does them, and raises the first error.
        root, download, images, device: see `prune_env.PruneEnv`.
        fresh: whether to do all runs anew.
        save_models, save_selections: whether to save each run's student, and what each step trained on, in `folder`.
        **settings: of the environment, such as `train_size`, `model` and `lr`.

    Raises:
        ValueError, TypeError: a wrong argument; or callables with workers, whose processes do not have them.
        RuntimeError: no run has ended well. With workers, a warning says which runs failed.
        Taken: another program is writing to `folder`.
    """
    for name, value in (("agents", agents), ("budgets", budgets)):
        if isinstance(value, str) or not isinstance(value, Iterable):
            raise TypeError(f"{name} is {value!r}; it must be several, as in [{value!r}]")
    if unknown := settings.keys() - {"dataset", *SETTINGS}:
        known = f"there are dataset, {', '.join(SETTINGS)}, beside budgets=, seeds= and agents="
        raise TypeError(f"{min(unknown)!r} is no setting of the environment; {known}")
    agents = _named(agents)
    settings = {name: v.item() if isinstance(v, np.generic) else v for name, v in settings.items() if v is not None}
    given = {name: agent for name, agent in agents.items() if not isinstance(agent, str)}
    own = [*given, *(name for name, value in settings.items() if callable(value))]
    if workers != 0 and own:
        raise ValueError(
            f"workers is {workers}; {', '.join(own)} must then be given by name, as 'my_module:MyAgent' is"
        )
    if (save_models or save_selections) and folder is None:
        raise ValueError("save_models and save_selections need a folder")
    env = full_id(env)
    labels, (_, heading) = _labels(agents, *KEEP), names(env, settings, root)
    amounts = tuple(real("budgets", budget) for budget in budgets)
    of_specs = {spec: name for spec, name in labels.items() if spec != name}
    block = Block(heading, env, settings, tuple(labels), KEEP, amounts, whole("seeds", seeds), given, of_specs)
    found: list[Record] = []
    with TemporaryDirectory() if folder is None else nullcontext(folder) as place:
        running = Running(
            where=Where(workers=workers, device=device),
            root=root,
            download=download,
            images=images,
            fresh=fresh,
            save_models=save_models,
            save_selections=save_selections,
            name=Path(place).name,
            out=Path(place).parent,
        )

        def keep(at: Path, records: list[Record], _: str) -> None:
            found.extend(records)
            if folder is not None:
                write_files(at, records)

        at, plan, _ = program.planned(running, lambda: ("", [block], ""))
        program.finish(plan, at, running, "train.evaluate.evaluate", "", keep)
        failures = list(results.read(at / "failures.jsonl")[0].values())
    if failures:
        wrong = f"{len(failures)} of {len(plan.runs)} runs failed, the first with {failures[0]['error']}"
        if not found:
            raise RuntimeError(wrong)
        warnings.warn(f"{wrong} (see .failures)", stacklevel=2)
    return Results(reading.told_apart(found), failures, len(plan.runs), "", {})


def _named(agents: Mapping[str, str | Given] | Sequence[str | Given]) -> dict[str, str | Given]:
    """Return agents by their names; those of a list are specs, and what Python calls functions and classes.

    Raises TypeError for what is no agent, and ValueError for two of one name.
    """
    if isinstance(agents, Mapping):
        pairs = list(agents.items())
    else:
        pairs = [(a if isinstance(a, str) else getattr(a, "__name__", type(a).__name__), a) for a in agents]
    found: dict[str, str | Given] = {}
    for name, agent in pairs:
        if not isinstance(agent, str) and not callable(agent):
            example = "a spec, such as 'ucb:c=2', or a callable agent(observation, rng)"
            raise TypeError(f"agents: {name!r} is {agent!r}; it must be {example}")
        if text("the name of an agent", name) in found:
            raise ValueError(f"two agents are called {name!r}; give them names, as in {{'mine': agent}}")
        found[name] = agent
    return found


def _named_specs(labels: Sequence[str]) -> dict[str, str]:
    """Return specs by the names of `--label NAME=AGENT`. Raises ValueError for what has another form, or misleads."""
    found: dict[str, str] = {}
    for label in labels:
        name, _, spec = label.partition("=")
        if not name or not spec or ":" in name or name in rules.AGENTS:
            raise ValueError(f"--label is {label!r}; it must be NAME=AGENT, with a name that no agent has yet")
        if name in found:
            raise ValueError(f"--label {name!r} is given twice")
        found[name] = spec
    return found


def _labels(agents: Mapping[str, str | Given], keep: float) -> dict[str, str]:
    """Return the names of agents by their specs, to which `keep` is added; of what has none by the name itself.

    Raises:
        ValueError: a name that misleads, two names of one agent, or a wrong spec.
    """
    labels: dict[str, str] = {}
    for name, agent in agents.items():
        if isinstance(agent, str):
            if FULL in (name, agent) and name != agent:
                raise ValueError(f"agents: {name!r} is {agent!r}; differences are to {FULL!r}, which has no other name")
            spec = rules.spec_with_keep(agent, keep)
        elif name.partition(":")[0] in rules.AGENTS:
            raise ValueError(f"agents: {name!r} names an agent of this project; give yours another name")
        else:
            spec = name
        if spec in labels:
            raise ValueError(f"agents: {labels[spec]!r} and {name!r} are the same agent, {spec}")
        labels[spec] = spec if agent == name else name
    return labels


def main(args: Sequence[str] | None = None) -> int:
    """Run the program with `args` (else those of the command line); return its exit status, see `carry_out`."""
    try:
        arguments = command_line.read("evaluate", Arguments, args)
    except (TypeError, ValueError) as error:  # an option that is out of its range
        return command_line.refused(error)
    command = shlex.join(["prune-env", "evaluate", *(sys.argv[1:] if args is None else args)])
    return carry_out(arguments.running, command, arguments.blocks, report)


if __name__ == "__main__":
    sys.exit(main())
