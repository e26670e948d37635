"""Judge a policy on tasks that no policy is trained on.

python -m train.heldout tasks digits                                  # the three parts of a distribution, listed
python -m train.heldout sweep digits --agents full learned > x.toml   # the held-out part as a sweep file
python -m train.heldout compare learned runs/x                        # paired differences to every other agent
"""

from __future__ import annotations

import csv
import json
import sys
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from io import StringIO
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro
from rich.console import Console
from rich.table import Table
from rich.text import Text

from prune_env import io
from prune_env.policy.tasks import Task
from train.analysis import statistics, summary
from train.analysis import table as tables
from train.analysis.records import Record
from train.analysis.text import spread
from train.execution import results
from train.execution.plan import TASK
from train.learning.rollouts import distribution

ID = {
    "digits": "Digits",
    "cifar10": "CIFAR10",
    "cifar100": "CIFAR100",
    "tiny_imagenet": "TinyImageNet",
    "imagefolder": "ImageFolder",
    "imagenet": "ImageNet",
}


@dataclass
class Tasks:
    """List the tasks of a distribution: budgets apart, those held out, for validation and for training."""

    name: tyro.conf.Positional[str]
    """Of the distribution; see prune_env/policy/tasks.py, or a TOML file with its arguments."""

    def run(self) -> None:
        tasks_of = distribution(self.name)
        for part in ("held_out", "validation", "training"):
            budgets = tasks_of.held_out_budgets if part == "held_out" else tasks_of.budgets
            tasks = without_budgets(getattr(tasks_of, part))
            print(f"{part}: {len(tasks)}, each at the budgets {', '.join(f'{budget:g}' for budget in budgets)}")
            for task in tasks:
                print(f"  {title(task)}")


@dataclass
class Sweep:
    """Print the held-out tasks of a distribution as a sweep file."""

    name: tyro.conf.Positional[str]
    """Of the distribution."""
    agents: tuple[str, ...]
    """Agents that are compared."""
    seeds: int = 20
    """Paired seeds of each task."""

    def run(self) -> None:
        tasks_of = distribution(self.name)
        if not self.agents:
            raise ValueError("agents needs at least one value")
        lines = [
            f"# The held-out tasks of {self.name!r}; made by `python -m train.heldout sweep {self.name}`.",
            f"seeds = {self.seeds}",
            f"budgets = {json.dumps(list(tasks_of.held_out_budgets))}",
            "keep = [0.5]",
            f"agents = {json.dumps(list(self.agents), indent=2)}",
        ]
        held_out = without_budgets(tasks_of.held_out)
        for name, times in Counter(map(title, held_out)).items():
            if times > 1:
                raise ValueError(
                    f"{times} held-out tasks would be called {name!r}: they differ in root or val_rest only"
                )
        for task in held_out:
            rates = {
                json.dumps(f"{budget:g}"): replace(task, budget=budget).settings()["lr"]
                for budget in tasks_of.held_out_budgets
            }
            values = {
                name: value for name, value in asdict(task).items() if name in (*TASK, "model") and value is not None
            }
            lines += ["", f"[tasks.{json.dumps(title(task))}]", f'env = "prune_env/{ID[task.dataset]}-v0"']
            lines += [f"{name} = {json.dumps(value)}" for name, value in values.items()]
            lines.append(f"lr = {{ {', '.join(f'{budget} = {rate:g}' for budget, rate in rates.items())} }}")
        print("\n".join(lines))


@dataclass
class Compare:
    """Print the paired differences of an agent to every other, in points of test accuracy.

    The mean over tasks and budgets; the intervals are Student's t with the seeds as units.
    """

    agent: tyro.conf.Positional[str]
    """Spec of the agent."""
    folders: tyro.conf.Positional[tuple[Path, ...]]
    """Results of a sweep, or of several that share names of tasks."""
    where: str = ""
    """Only the task of this name, else those whose names have this in them."""
    budgets: tuple[float, ...] = ()
    """Only these, else all that the agent has."""
    out: Path | None = None
    """Folder for comparison.txt and accuracy.csv, the final test accuracy (in %) of every run."""

    def run(self) -> None:
        every: list[Record] = []
        if not self.folders:
            raise ValueError("compare needs at least one folder of results")
        for folder in self.folders:
            found, damaged = results.read(folder / "results.jsonl")
            if not found and not damaged:
                raise ValueError(f"{folder} has no results.jsonl: it is no folder of results")
            if damaged:
                print(f"warning: {damaged} line(s) of {folder / 'results.jsonl'} are damaged", file=sys.stderr)
            every += found.values()
        exact = any(record["task"] == self.where for record in every)
        records = [
            record
            for record in summary.latest(every)
            if (record["task"] == self.where if exact else self.where in record["task"])
            and (not self.budgets or record["budget"] in self.budgets)
        ]
        if self.agent not in {record["agent"] for record in records}:
            folders = ", ".join(map(str, self.folders))
            raise ValueError(f"{folders} have no runs of {self.agent!r} on such tasks at such budgets")
        shown = comparison(records, self.agent)
        if self.out is None:
            Console(width=tables.WIDTH).print(shown)
            return
        tables.show(self.out / "comparison.txt", shown)
        text = StringIO()
        lines = csv.writer(text, lineterminator="\n")
        lines.writerow(("task", "budget", "agent", "seed", "test_accuracy"))
        for run in records:
            accuracy = f"{100.0 * run['results']['test_accuracy']:.2f}"
            lines.writerow((run["task"], f"{run['budget']:g}", run["agent"], run["seed"], accuracy))
        io.write_atomic(self.out / "accuracy.csv", text.getvalue().encode())


def title(task: Task) -> str:
    """A task in words, its budget apart."""
    plain = asdict(Task())
    said = [f"{name} {value}" for name, value in asdict(task).items() if name != "budget" and value != plain[name]]
    return ", ".join([task.dataset, *(part for part in said if not part.startswith(("dataset", "root", "val_rest")))])


def without_budgets(tasks: Sequence[Task]) -> list[Task]:
    """Each task once, at its first budget."""
    first: dict[Task, Task] = {}
    for task in tasks:
        first.setdefault(replace(task, budget=1.0), task)
    return list(first.values())


def comparison(records: Sequence[Record], agent: str) -> Table:
    """Accuracy, area and differences of `agent` to every agent that ran everything that it ran.

    Below it stands who ran a part of that only, and what full training needs for the same accuracy.
    """
    accuracy: dict[str, dict[tuple[str, float, int], float]] = defaultdict(dict)
    for record in records:
        cell = record["task"], record["budget"], record["seed"]
        accuracy[record["agent"]][cell] = 100.0 * record["results"]["test_accuracy"]
    own = accuracy[agent]
    strata: dict[tuple[str, float], list[tuple[str, float, int]]] = defaultdict(list)
    for cell in sorted(own):
        strata[cell[:2]].append(cell)
    tasks = {cell[0] for cell in own}
    table = Table(title=Text(f"{agent}: points of test accuracy over others, on {len(tasks)} tasks"))
    table.add_column("agent", overflow="fold")
    for name in ("accuracy %", "difference", "area's difference", "better,\ntasks x budgets"):
        table.add_column(name, justify="right", no_wrap=True)
    rows, lacking = [], []
    for other, theirs in accuracy.items():
        if not set(theirs) >= set(own):
            lacking += [other] if set(theirs) & set(own) else []
            continue
        differences = [{cell[2]: own[cell] - theirs[cell] for cell in cells} for cells in strata.values()]
        mean = float(np.mean([np.mean([theirs[cell] for cell in cells]) for cells in strata.values()]))
        better = sum(float(np.mean([*values.values()])) > statistics.ROUNDING for values in differences)
        told = _spread(differences), _spread(_areas(own, theirs)), f"{better} of {len(differences)}"
        rows.append((mean, other, told if other != agent else ()))
    for mean, other, told in sorted(rows, reverse=True):
        table.add_row(Text(other), f"{mean:.2f}", *told)  # square brackets in a spec are not rich's markup
    below = [f"left out, since some of these runs are missing: {', '.join(lacking)}"] if lacking else []
    if agent != summary.FULL and summary.FULL in accuracy:
        below += _saved(own, accuracy[summary.FULL], agent, len(tasks))
    table.caption = Text("\n".join(below)) if below else None
    return table


def _saved(
    own: Mapping[tuple[str, float, int], float], full: Mapping[tuple[str, float, int], float], agent: str, tasks: int
) -> list[str]:
    """How much longer full training needs for the accuracy of `agent`, both as means over that many tasks."""
    means: list[Record] = []
    for name, accuracy in ((agent, own), (summary.FULL, full)):
        of_tasks: dict[tuple[float, int], list[float]] = defaultdict(list)
        for cell, value in accuracy.items():
            if cell in own:
                of_tasks[cell[1:]].append(value / 100.0)
        means += [
            {"agent": name, "budget": budget, "seed": seed, "results": {"test_accuracy": float(np.mean(values))}}
            for (budget, seed), values in of_tasks.items()
            if len(values) == tasks
        ]
    needs = {"at_least": ("more than ", "at least "), "at_most": ("less than ", "at most "), None: ("", "")}
    lines = []
    for saving in summary.savings(means):
        budget, share = needs[saving.bound]
        low, high = saving.interval or (saving.saved, saving.saved)
        between = f" [{100 * low:+.0f}, {100 * high:+.0f}]" if saving.bound is None else ""
        lines.append(
            f"budget {saving.budget:g}: full training needs {budget}{saving.full_budget:.3g} for the same mean, saved "
            f"{share}{100 * saving.saved:+.0f} %{between}"
        )
    return lines


def _spread(cells: Sequence[Mapping[int, float]]) -> str:
    """Mean over cells of values by seed, and its interval with the seeds as units; nothing without a common seed."""
    if not cells or not set.intersection(*map(set, cells)):
        return ""
    found = statistics.mean_of(statistics.seed_means(cells))
    return spread(found.mean, found.interval, "+.2f")


def _areas(
    own: dict[tuple[str, float, int], float], theirs: dict[tuple[str, float, int], float]
) -> list[dict[int, float]]:
    """Differences of the area under accuracy over log budget by task, and in each by seed that has all budgets.

    A task with one budget only has no area, and is left out.
    """
    differences: dict[str, dict[int, dict[float, float]]] = defaultdict(lambda: defaultdict(dict))
    for task, budget, seed in sorted(own):
        cell = task, budget, seed
        differences[task][seed][budget] = own[cell] - theirs[cell]
    areas = []
    for seeds in differences.values():
        budgets = sorted({budget for by in seeds.values() for budget in by})
        whole = {seed: [by[b] for b in budgets] for seed, by in seeds.items() if len(by) == len(budgets)}
        if len(budgets) > 1 and whole:
            of_seeds = np.asarray(statistics.log_budget_area(budgets, list(whole.values())))
            areas.append(dict(zip(whole, of_seeds.tolist(), strict=True)))
    return areas


def main(args: list[str] | None = None) -> int:
    """Run the program with `args` (else those of the command line); return its exit status."""
    kinds = (
        Annotated[Tasks, tyro.conf.subcommand("tasks")]
        | Annotated[Sweep, tyro.conf.subcommand("sweep")]
        | Annotated[Compare, tyro.conf.subcommand("compare")]
    )
    command = tyro.cli(kinds, args=args, description=__doc__)  # pyright: ignore[reportCallIssue, reportArgumentType]
    try:
        command.run()
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
