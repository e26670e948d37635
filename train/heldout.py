"""Judge a policy on tasks that no policy is trained on.

    prune-env heldout tasks digits                                  # the three parts of a distribution
    prune-env heldout sweep digits --agents full learned > x.toml   # the held-out part as a sweep file
    prune-env heldout compare learned runs/x                        # paired differences to every other agent

Held-out tasks have draws that training never had and, but for `convnets`, other students and budgets.
"""

from __future__ import annotations

import csv
import itertools
import json
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from fnmatch import fnmatchcase
from io import StringIO
from pathlib import Path

import gymnasium as gym
import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text
from tyro.conf import Positional

from prune_env import io
from prune_env.policy.tasks import Task
from train.analysis import records, statistics, summary
from train.analysis import table as tables
from train.analysis.records import Record
from train.analysis.text import count, number, spread
from train.execution import command_line
from train.execution.plan import PLAIN, TASK
from train.learning.rollouts import distribution

LISTED = 8  # values of an option; of more numbers the ends are told
Cells = Mapping[tuple[str, float], Mapping[int, float]]  # test accuracy in % by (task, budget) and seed


def tasks(name: Positional[str], *, root: tuple[str, ...] = ()) -> None:
    """Say how many tasks a distribution holds out, validates on and trains on, and what they are drawn from.

    Args:
        name: Of the distribution: `digits`, `natural`, `convnets`, `mixed`, or a TOML file with its arguments.
        root: Folders of images, for tasks of image folders.
    """
    tasks_of = distribution(name, root)
    for one, part in itertools.product(tasks_of.parts, ("held_out", "validation", "training")):
        budgets = one.held_out_budgets if part == "held_out" else one.budgets
        found = without_budgets(getattr(one, part))
        each = f"each at the budgets {', '.join(f'{budget:g}' for budget in budgets)}"
        print(f"{part}: {count(len(found), 'task')}, {each}")
        for option, values in ranges(found).items():
            print(f"  {option}: {values}")


def sweep(name: Positional[str], *, agents: tuple[str, ...], seeds: int = 20) -> None:
    """Print the held-out tasks of a distribution as a sweep file. `prune-env sweep --root` says whose images they are.

    Args:
        name: Of the distribution.
        agents: Agents that are compared.
        seeds: Paired seeds of each task.
    """
    tasks_of = distribution(name)
    found: dict[Task, set[float]] = {}
    for task in tasks_of.held_out:
        found.setdefault(replace(task, budget=1.0), set()).add(task.budget)
    held_out = {task: tuple(sorted(budgets)) for task, budgets in found.items()}  # parts of a mixture have their own
    if not held_out:
        raise ValueError(f"{name} holds out no tasks: held_outs is 0")
    for called, times in Counter(map(title, held_out)).items():
        if times > 1:
            raise ValueError(f"{times} held-out tasks would be called {called!r}: they differ in root or val_rest only")
    ids = {spec.kwargs.get("dataset"): env_id for env_id, spec in gym.registry.items() if spec.entry_point == PLAIN}
    lines = [
        f"# The held-out tasks of {name!r}; made by `prune-env heldout sweep {name}`.",
        f"seeds = {seeds}",
        "keep = [0.5]",
        f"agents = {json.dumps(list(agents), indent=2)}",
    ]
    for task, budgets in held_out.items():
        lines += ["", f"[tasks.{json.dumps(title(task))}]", f"env = {json.dumps(ids[task.dataset])}"]
        given = {option: value for option, value in asdict(task).items() if option in (*TASK, "model")}
        lines += [f"{option} = {json.dumps(value)}" for option, value in given.items() if value is not None]
        rates = [(budget, replace(task, budget=budget).settings()["lr"]) for budget in budgets]
        lines.append("lr = { " + ", ".join(f'"{budget:g}" = {rate:g}' for budget, rate in rates) + " }")
    for budgets in dict.fromkeys(held_out.values()):
        titles = [title(task) for task, its in held_out.items() if its == budgets]
        lines += ["", "[[blocks]]", f"budgets = {json.dumps(budgets)}", f"tasks = {json.dumps(titles, indent=2)}"]
    print("\n".join(lines))


def compare(
    agent: Positional[str],
    folders: Positional[tuple[Path, ...]],
    *,
    where: str = "",
    budgets: tuple[float, ...] = (),
    out: Path | None = None,
) -> None:
    """Print the paired differences of an agent to every other, in points of test accuracy.

    The mean over tasks and budgets; the intervals are Student's t with the seeds as units.

    Args:
        agent: Spec of the agent. `*` stands for anything: policies that were left without a data set each are one.
        folders: Results of a sweep, or of several that share names of tasks.
        where: Only the task of this name, else those whose names have this in them.
        budgets: Only these, else all that the agent has.
        out: Folder for comparison.txt, cells.csv (the differences at each task and budget) and accuracy.csv (the final
            test accuracy of every run, in %).
    """
    found = latest_runs(folders)
    names = {record["task"] for record in found}
    wanted = {where} if where in names else {name for name in names if where in name}
    found = [r for r in found if r["task"] in wanted and (not budgets or r["budget"] in budgets)]
    found = _as_one(found, agent)
    if agent not in {record["agent"] for record in found}:
        raise ValueError(f"{', '.join(map(str, folders))} have no runs of {agent!r} on such tasks at such budgets")
    shown = comparison(found, agent)
    if out is None:
        Console(width=tables.WIDTH).print(shown)
        return
    tables.show(out / "comparison.txt", shown)
    runs = [
        (r["task"], f"{r['budget']:g}", r["agent"], r["seed"], number(100.0 * r["results"]["test_accuracy"], ".2f"))
        for r in found
    ]
    cells = ("task", "budget", "accuracy", "against", "difference", "low", "high", "seeds")
    for name, header, rows in (
        ("accuracy.csv", ("task", "budget", "agent", "seed", "test_accuracy"), runs),
        ("cells.csv", cells, by_cell(found, agent)),
    ):
        text = StringIO()
        csv.writer(text, lineterminator="\n").writerows([header, *rows])
        io.write_atomic(out / name, text.getvalue().encode())
    print(f"wrote to {out}: comparison.txt, cells.csv, accuracy.csv", file=sys.stderr)


def _as_one(records: Sequence[Record], pattern: str) -> list[Record]:
    """Name all agents of a pattern by it. Raises ValueError if two of them made the same run."""
    found, run_by = [], {}
    for record in records:
        if fnmatchcase(record["agent"], pattern):
            other = run_by.setdefault((record["task"], record["budget"], record["seed"]), record["agent"])
            if other != record["agent"]:
                both = f"{other} and {record['agent']} on {record['task']}"
                raise ValueError(f"{pattern!r} is both {both}; it must be one agent a task")
            record = {**record, "agent": pattern}
        found.append(record)
    return found


def latest_runs(folders: Sequence[Path]) -> list[Record]:
    """Return the latest run of each kind in all folders."""
    if not folders:
        raise ValueError("compare needs at least one folder of results")
    found: list[Record] = []
    for folder in folders:
        read = records.read(folder)
        if damaged := read.unreadable["results.jsonl"]:
            print(f"warning: {damaged} line(s) of {folder / 'results.jsonl'} are damaged", file=sys.stderr)
        found += read.records
    return summary.latest(found)


def title(task: Task) -> str:
    """Return a task in words, without its budget."""
    plain = asdict(Task())
    silent = ("dataset", "root", "val_rest", "budget")
    changed = {name: value for name, value in asdict(task).items() if name not in silent and value != plain[name]}
    return ", ".join([task.dataset, *(f"{name} {value}" for name, value in changed.items())])


def ranges(tasks: Sequence[Task]) -> dict[str, str]:
    """Return the values that options have in tasks: few are listed, and of many numbers the ends are told."""
    found = {}
    for option in asdict(Task()):
        values = sorted({getattr(task, option) for task in tasks}, key=lambda value: (value is not None, value))
        if option == "budget" or values in ([], [getattr(Task(), option)]):
            continue
        many = len(values) > LISTED and all(isinstance(value, int | float) for value in values)
        found[option] = f"{values[0]} to {values[-1]}, {len(values)} values" if many else ", ".join(map(str, values))
    return found


def without_budgets(tasks: Sequence[Task]) -> list[Task]:
    """Return each task once, at budget 1."""
    return list(dict.fromkeys(replace(task, budget=1.0) for task in tasks))


def comparison(records: Sequence[Record], agent: str) -> Table:
    """Return accuracy, area and differences of `agent` to every other, on what both ran.

    Agents that ran only a part of what it ran come last, and have no accuracy. The caption names them, and says what
    full training needs for the same accuracy.
    """
    accuracy = _accuracies(records)
    own = accuracy[agent]
    tasks = {task for task, _ in own}
    table = Table(title=Text(f"{agent}: points of test accuracy over others, on {len(tasks)} tasks"))
    table.add_column("agent", overflow="fold")
    for name in ("accuracy %", "difference", "area's difference", "better,\ntasks x budgets"):
        table.add_column(name, justify="right", no_wrap=True)
    rows, incomplete = [], []
    for other, its in accuracy.items():
        common = {cell: seeds for cell, seeds in _restricted(its, own).items() if seeds}
        if not common:
            continue
        differences = _differences(_restricted(own, common), common) if other != agent else ()
        if any(len(common.get(cell, ())) < len(own[cell]) for cell in own):
            incomplete.append((other, differences))
            continue
        mean = float(np.mean([np.mean(list(seeds.values())) for seeds in common.values()]))
        rows.append((mean, other, differences))
    for mean, other, differences in sorted(rows, reverse=True):
        table.add_row(tables.Name(other), number(mean, ".2f"), *differences)
    for other, differences in incomplete:
        table.add_row(tables.Name(other), "", *differences)
    parts = [other for other, _ in incomplete]
    below = [f"on a part of these runs: {', '.join(parts)}"] if parts else []
    if agent != summary.FULL and summary.FULL in accuracy and summary.FULL not in parts:
        below += _saved(own, _restricted(accuracy[summary.FULL], own), agent)
    table.caption = Text("\n".join(below)) if below else None
    return table


def by_cell(records: Sequence[Record], agent: str) -> list[tuple[str, ...]]:
    """Return a row for each task and budget of `agent`, and each other agent there; see `compare`."""
    accuracy = _accuracies(records)
    rows = []
    for cell, own in accuracy[agent].items():
        for other, its in accuracy.items():
            gaps = [own[seed] - a for seed, a in its.get(cell, {}).items() if seed in own]
            if not gaps or other == agent:
                continue
            mean = statistics.mean_of(gaps)
            low, high = (number(end, ".2f") for end in mean.interval) if mean.interval else ("", "")
            whole = number(float(np.mean(list(own.values()))), ".2f")
            rows.append((cell[0], f"{cell[1]:g}", whole, other, number(mean.mean, ".2f"), low, high, str(len(gaps))))
    return rows


def _accuracies(records: Sequence[Record]) -> dict[str, Cells]:
    """Return the accuracies of each agent, in the order of the records; cells and seeds ascend."""
    accuracy: dict[str, dict[tuple[str, float], dict[int, float]]] = {record["agent"]: {} for record in records}
    for record in sorted(records, key=lambda record: (record["task"], record["budget"], record["seed"])):
        cell = accuracy[record["agent"]].setdefault((record["task"], record["budget"]), {})
        cell[record["seed"]] = 100.0 * record["results"]["test_accuracy"]
    return dict(accuracy)


def _restricted(cells: Cells, own: Cells) -> Cells:
    """Return the runs that `own` has too, by the cells of `own`."""
    return {cell: {seed: a for seed, a in cells.get(cell, {}).items() if seed in own[cell]} for cell in own}


def _differences(own: Cells, its: Cells) -> tuple[str, str, str]:
    """Return difference, difference of areas, and in how many cells `own` is better. Both have the same runs."""
    gaps = {cell: {seed: own[cell][seed] - its[cell][seed] for seed in own[cell]} for cell in own}
    better = sum(float(np.mean(list(gap.values()))) > statistics.ROUNDING for gap in gaps.values())
    return _spread(list(gaps.values())), _spread(_areas(gaps)), f"{better} of {len(gaps)}"


def _spread(cells: Sequence[Mapping[int, float]]) -> str:
    """Return mean and interval over cells of values by seed; nothing without a seed that all cells have."""
    if not cells or not set.intersection(*map(set, cells)):
        return ""
    found = statistics.mean_of(statistics.seed_means(cells))
    return spread(found.mean, found.interval, "+.2f")


def _areas(cells: Cells) -> list[dict[int, float]]:
    """Return for each task the area over log budget of values by seed. Seeds that lack a budget are left out.

    A task with only one budget has no area, and is left out.
    """
    areas = []
    for name in dict.fromkeys(task for task, _ in cells):
        curve = {budget: seeds for (task, budget), seeds in cells.items() if task == name}
        whole = sorted(set.intersection(*map(set, curve.values())))
        if len(curve) > 1 and whole:
            values = [[seeds[seed] for seeds in curve.values()] for seed in whole]  # (S, B)
            areas.append(dict(zip(whole, statistics.log_budget_area(list(curve), values).tolist(), strict=True)))
    return areas


def _saved(own: Cells, full: Cells, agent: str) -> list[str]:
    """Say how much longer full training needs for the accuracy of `agent`, both as means over all tasks."""
    means: list[Record] = []
    for name, cells in ((agent, own), (summary.FULL, full)):
        for budget in dict.fromkeys(budget for _, budget in own):
            of_tasks = [cells.get((task, budget), {}) for task in dict.fromkeys(task for task, _ in own)]
            for seed in sorted(set.intersection(*map(set, of_tasks))):
                mean = float(np.mean([seeds[seed] / 100.0 for seeds in of_tasks]))
                means.append({"agent": name, "budget": budget, "seed": seed, "results": {"test_accuracy": mean}})
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


def main(args: list[str] | None = None) -> int:
    """Run the program with `args` (else those of the command line); return its exit status."""
    programs = {"tasks": tasks, "sweep": sweep, "compare": compare}
    try:
        command_line.run("heldout", programs, args, __doc__)
    except (ValueError, OSError) as error:
        return command_line.refused(error)
    return 0


if __name__ == "__main__":
    sys.exit(main())
