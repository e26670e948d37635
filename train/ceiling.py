"""Say what rules could win: `prune-env ceiling --help`."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from prune_env import PruneEnv, io, select
from prune_env.machine import cores
from prune_env.policy.rules import FULL, RULE_PARAMETERS
from prune_env.policy.tasks import Task, TaskDistribution
from train.analysis import table
from train.analysis.statistics import mean_of
from train.analysis.text import number, spread
from train.execution import command_line, provenance, results
from train.learning import search
from train.learning.rollouts import Pair
from train.learning.workers import Workers

TROUBLES: dict[str, dict[str, Any]] = {
    "clean": {},
    "20 % wrong labels": {"label_noise": 0.2},
    "40 % wrong labels": {"label_noise": 0.4},
    "duplicates": {"duplicates": 0.3},
    "classes 20:1": {"imbalance": 20.0},
    "20 % wrong labels, classes 10:1": {"label_noise": 0.2, "imbalance": 10.0},
}
SPACES = {  # the parameters that may differ from full training
    "tilts of ranks": RULE_PARAMETERS[: RULE_PARAMETERS.index("balance")],
    "with classes and margins": RULE_PARAMETERS,
}
JUDGED = 1000  # the first task_seed and seed of the runs that judge a rule; the search draws others


@dataclass
class Arguments:
    """Search, for each kind of trouble, the fixed rule with the highest validation accuracy; judge it on other runs.

    There are two spaces of rules: tilts of ranks alone, and with classes and margins. Beside them an oracle: full
    training on all samples but those of wrong labels. OUT gets ceiling.txt, and ceiling.jsonl with a line for each
    search: the same command goes on from there.
    """

    root: str | None = None
    """A folder of images; by default the tasks are of digits."""
    image_size: int = 8
    """Side of the images in pixels."""
    model: str = "mlp:64"
    """The student."""
    lr_factor: float = 1.0
    """Factor on the rate that full training is given: `prune-env tune` says what it should be."""
    train_size: int | None = None
    """Training samples; by default 400 of digits, else 2,000."""
    val_size: int | None = None
    """Validation samples; by default all of digits, else 2,000."""
    budget: float = 8.0
    """Full-epoch equivalents."""
    generations: int = 8
    """Of each search, of 48 rules on six pairs of task and seed."""
    runs: int = 24
    """Pairs of task and seed, which no search draws, on which rules are judged."""
    processes: int = cores()
    """Processes that play."""
    seed: int = 0
    """Seed of the searches."""
    out: Path = Path("runs/ceiling")
    """Folder of the results."""

    def __post_init__(self) -> None:
        of_digits = self.root is None
        if self.train_size is None:
            self.train_size = 400 if of_digits else 2000
        if self.val_size is None and not of_digits:
            self.val_size = 2000


def tasks_of(given: Arguments, trouble: str) -> TaskDistribution:
    """Return the tasks of one kind of trouble: eight draws of the training part."""
    data = {"dataset": ("digits",)} if given.root is None else {"dataset": ("imagefolder",), "root": (given.root,)}
    values = {
        name: (getattr(given, name),)
        for name in ("image_size", "model", "lr_factor", "train_size", "val_size", "budget")
    }
    settings = {name: (value,) for name, value in TROUBLES[trouble].items()}
    return TaskDistribution({**data, **values, **settings, "task_seed": tuple(range(8))}, validations=0, held_outs=0)


def judged(tasks: TaskDistribution, runs: int) -> list[Pair]:
    """Return pairs of a task and a seed that no search draws."""
    return [(replace(tasks.training[0], task_seed=JUDGED + i), JUDGED + i) for i in range(runs)]


def oracle(task: Task, seed: int) -> float:
    """Return the validation accuracy of full training on all samples but those of wrong labels."""
    env = PruneEnv(**task.settings())
    _, info = env.reset(seed=seed)
    right = ~env.train_data.wrong.cpu().numpy()
    over = False
    while not over:
        _, _, over, _, info = env.step(select(right))
    return float(info["val_accuracy"])


def key_of(given: Arguments, trouble: str, space: str) -> str:
    """Return what a search is found again by: everything that its result depends on, but for the code."""
    values = {name: value for name, value in asdict(given).items() if name not in ("out", "processes", "root")}
    settings = tasks_of(given, trouble).training[0].settings()
    data = PruneEnv(**settings).train_data.digest
    return json.dumps({"trouble": trouble, "space": space, **values, "lr": settings["lr"], "data": data})


def measure(given: Arguments, trouble: str, space: str) -> dict[str, Any]:
    """Search a rule, and return it with its points over full training in each judging run, and the oracle's."""
    tasks = tasks_of(given, trouble)
    pairs = judged(tasks, given.runs)
    with closing(Workers(tasks, given.processes)) as workers:
        rng = np.random.default_rng(given.seed)
        rule, _ = search.fixed_rule(workers, tasks, rng, lambda done: done < given.generations, SPACES[space])
        full, reached = (workers.play(pairs, np.array(rules)) for rules in (FULL, rule))
    found = {"trouble": trouble, "space": space, "rule": dict(zip(RULE_PARAMETERS, rule.tolist(), strict=True))}
    points = {"full": (100 * full).tolist(), "over_full": (100 * (reached - full)).tolist()}
    if "label_noise" in TROUBLES[trouble]:
        clean = np.array([oracle(task, seed) for task, seed in pairs])
        points["oracle_over_full"] = (100 * (clean - full)).tolist()
    return {**found, **points, "code": provenance.of_code()}


def render(found: Iterable[dict[str, Any]]) -> Group:
    """Return a row for each kind of trouble, and below them the rules. The intervals are of the judging runs."""
    of = {(one["trouble"], one["space"]): one for one in found}
    rows = Table("trouble", "full %")
    for name in (*SPACES, "oracle"):
        rows.add_column(name, min_width=17)  # of a mean with its interval
    rules = []
    for trouble in TROUBLES:
        there = {space: of[trouble, space] for space in SPACES if (trouble, space) in of}
        if there:
            gains = [_words(there[space]["over_full"]) if space in there else "" for space in SPACES]
            one = next(iter(there.values()))
            oracles = _words(one["oracle_over_full"]) if "oracle_over_full" in one else ""
            rows.add_row(trouble, number(float(np.mean(one["full"])), ".1f"), *gains, oracles)
        for space, one in there.items():
            numbers = [f"{name} {number(value, '+.1f')}" for name, value in one["rule"].items() if abs(value) >= 0.15]
            rules.append(Text(f"{trouble}, {space}: {', '.join(numbers)}"))
    return Group(rows, *rules)


def _words(points: list[float]) -> str:
    mean = mean_of(points)
    return spread(mean.mean, mean.interval, "+.1f")


def main(args: list[str] | None = None) -> int:
    """Run the program with `args` (else those of the command line); return its exit status."""
    given = command_line.read("ceiling", Arguments, args)
    torch.set_num_threads(1)  # the other cores have processes of their own
    path = given.out / "ceiling.jsonl"
    try:
        if min(given.generations, given.runs, given.processes) < 1:
            raise ValueError("--generations, --runs and --processes must be at least 1")
        given.out.mkdir(parents=True, exist_ok=True)
        found, torn = results.read(path)
        if torn:
            results.write(path, found.values())
        asked = {(trouble, space): key_of(given, trouble, space) for trouble in TROUBLES for space in SPACES}
        for (trouble, space), key in asked.items():
            if key not in found:
                Console(stderr=True).print(f"searching: {trouble}, {space}")
                found[key] = {"key": key, **measure(given, trouble, space)}
                io.append_line(path, found[key])
    except (ValueError, OSError) as error:
        return command_line.refused(error)
    except KeyboardInterrupt:
        print("interrupted; the same command goes on", file=sys.stderr)
        return 130
    table.show(given.out / "ceiling.txt", render(found[key] for key in asked.values()))
    print(f"wrote to {given.out}: ceiling.txt, ceiling.jsonl", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
