"""Teach a policy what wins with each kind of trouble: `prune-env distil --help`."""

from __future__ import annotations

import itertools
import json
import shlex
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from torch import nn

import agents
from agents.rules import Rule
from prune_env import io
from prune_env.machine import cores
from prune_env.policy.features import FEATURES
from prune_env.policy.learned import Network
from prune_env.policy.rules import FULL, RULE_PARAMETERS
from prune_env.policy.tasks import Task
from train.analysis import records, table
from train.analysis.text import plus_minus
from train.execution import command_line, provenance
from train.learning import ppo
from train.learning.rollouts import distribution, draw_pairs
from train.learning.workers import Workers

VALIDATION_SEEDS = range(20_000, 20_004)  # of each validation task
NOISE = 0.1  # deviation of what is added to standardised features in the fit, so that near runs are answered alike
STEPS = 2000  # of a fit
STEPS_FILE = "steps.npz"
BATCH = 512


@dataclass
class Arguments:
    """Distil one policy from fixed rules that are known to win, each with its own kind of trouble.

    The rules are chosen from the results of sweeps: of each kind of trouble, the `rule:...` that gained most over
    `full` in validation, less one standard error. They are told the trouble; the policy has to see it. It plays tasks
    of all kinds of trouble, and learns to answer what it sees in a run with the numbers of the rule (DAgger, arXiv
    1011.0686, with a teacher that knows more, arXiv 1912.12294). OUT gets policy.npz, what it gains in validation,
    validation.txt, and the steps, steps.npz.
    """

    sweeps: tyro.conf.Positional[tuple[Path, ...]]
    """Folders of results. Where several have the same tasks and agents, their gains are averaged."""
    tasks: str = "mixed"
    """Distribution of tasks that the policy plays: a name, several joined by +, or a TOML file."""
    root: tuple[str, ...] = ()
    """Folders of images, for tasks of image folders."""
    digits_policy: Path | None = None
    """A policy of `prune-env learn`: the teacher on digits with wrong labels or unlike classes, in place of rules."""
    also: tuple[Path, ...] = ()
    """Folders of other distillations, whose steps are learned from, too, but for those of validation tasks."""
    rounds: int = 4
    """Rounds of play. In the first one the teachers play, later the policy. With --also it always plays, if at all."""
    episodes: int = 384
    """Episodes of a round."""
    processes: int = cores()
    """Processes that play."""
    seed: int = 0
    """Seed of everything that is drawn."""
    out: Path = Path("runs/distil")
    """Folder of the policy."""


NO_TROUBLE = {"label_noise": 0.0, "imbalance": 1.0, "duplicates": 0.0}
Trouble = tuple[bool, float, float, float]  # whether of digits, and where the trouble lies: see `trouble_of`


def trouble_of(dataset: str, label_noise: float, imbalance: float, duplicates: float) -> Trouble:
    """Return the kind of trouble, as coordinates in which about 1 is a clear difference."""
    return dataset == "digits", label_noise / 0.2, float(np.log10(imbalance)), duplicates / 0.3


def _trouble_of_task(task: Task) -> Trouble:
    return trouble_of(task.dataset, task.label_noise, task.imbalance, task.duplicates)


def teachers_of(folders: Sequence[Path]) -> tuple[dict[Trouble, Rule], list[dict[str, Any]]]:
    """Choose the best rule for each kind of trouble; return these, and all gains for people to read.

    Raises:
        ValueError: no results, or none of rules beside `full`.
    """
    accuracy: dict[Trouble, dict[str, dict[tuple, float]]] = defaultdict(lambda: defaultdict(dict))
    for place, folder in enumerate(folders):
        for record in records.read(folder).records:
            settings = record["configuration"]["settings"]
            dataset = "digits" if "Digits" in record["configuration"]["env"] else "images"
            its = {name: settings.get(name, free) for name, free in NO_TROUBLE.items()}
            trouble = trouble_of(dataset, **its)
            run = place, record["task"], record["budget"], record["seed"]
            accuracy[trouble][record.get("spec", record["agent"])][run] = 100.0 * record["results"]["val_accuracy"]
    gains = {
        (trouble, spec): np.array([value - of["full"][run] for run, value in its.items() if run in of["full"]])
        for trouble, of in accuracy.items()
        for spec, its in of.items()
        if spec.startswith("rule:") and "full" in of
    }
    gains = {key: its for key, its in gains.items() if len(its)}
    spread: dict[bool, float] = {}  # of a run, in points, on digits and on other images; few seeds say little alone
    for digits in {trouble[0] for trouble in accuracy}:
        variances = [its.var(ddof=1) for (kind, _), its in gains.items() if kind[0] == digits and len(its) > 1]
        if not variances:
            raise ValueError(f"{', '.join(map(str, folders))}: there are no rules with two seeds beside full")
        spread[digits] = float(np.sqrt(np.mean(variances)))
    best: dict[Trouble, Rule] = {}
    lines = []
    for trouble in accuracy:
        scores = {"rule:keep=1.0": 0.0}
        for (kind, spec), its in gains.items():
            if kind == trouble:
                scores[spec] = float(its.mean() - spread[trouble[0]] / np.sqrt(len(its)))
                lines.append({"trouble": trouble, "rule": spec, "gain": float(its.mean()), "runs": len(its)})
        chosen = max(scores, key=scores.__getitem__)
        best[trouble] = agents.make(chosen)  # pyright: ignore[reportArgumentType]
        lines.append({"trouble": trouble, "chosen": chosen, "deviation_of_a_run": spread[trouble[0]]})
    return best, lines


def _words(trouble: Trouble) -> str:
    digits, noise, unlike, duplicates = trouble
    found = [f"{20 * noise:.0f} % wrong labels"] * (noise > 0) + [f"classes {10**unlike:.0f}:1"] * (unlike > 0)
    found += [f"{30 * duplicates:.0f} % duplicates"] * (duplicates > 0)
    return ("digits, " if digits else "") + (", ".join(found) or "clean")


def taught(teachers: dict[Trouble, Rule], task: Task) -> NDArray[np.float64]:
    """Return the numbers (R,) for a task: those of the kinds of trouble around it, the nearer the more.

    A task on a kind has the numbers of that. Weights fall with the fourth power of the distance.
    """
    digits, *place = _trouble_of_task(task)
    of = {kind[1:]: rule for kind, rule in teachers.items() if kind[0] == digits}
    of = of or {kind[1:]: rule for kind, rule in teachers.items()}
    squares = np.array([np.sum((np.array(kind) - place) ** 2) for kind in of])
    weights = 1.0 / np.maximum(squares, 1e-6) ** 2
    return weights @ np.array([rule.numbers for rule in of.values()]) / weights.sum()


def of_the_policy(task: Task) -> bool:
    """Return whether the policy of --digits-policy is the teacher on a task.

    Clean digits stay with the rules: images on which a network is as accurate look like digits, and are larger.
    """
    return task.dataset == "digits" and (task.label_noise > 0.0 or task.imbalance > 1.0)


def fit(features: NDArray, numbers: NDArray, seed: int) -> Network:
    """Fit a policy (D,) -> (R,) to features (S, D) and the rule parameters (S, R) that belong to them.

    It learns the median of each number among the runs that look alike, not their mean: a trouble that is not seen yet,
    as before the first step, is answered as most runs are, and not with half a rule against it.
    """
    draws = torch.Generator().manual_seed(seed)
    shift, scale = features.mean(axis=0), features.std(axis=0)
    scale = np.where(scale < ppo.SMALLEST_SCALE, np.inf, scale)
    inputs, targets = (torch.tensor(x, dtype=torch.float32) for x in ((features - shift) / scale, numbers))
    sizes = [len(FEATURES), 64, 64, len(RULE_PARAMETERS)]
    # without their own values, which torch would draw from its global generator
    layers = [nn.Linear(a, b, device="meta").to_empty(device="cpu") for a, b in itertools.pairwise(sizes)]
    for layer in layers:
        nn.init.normal_(layer.weight, 0.0, layer.in_features**-0.5, generator=draws)
        nn.init.zeros_(layer.bias)
    net = nn.Sequential(layers[0], nn.Tanh(), layers[1], nn.Tanh(), layers[2])
    optimizer = torch.optim.AdamW(net.parameters(), 2e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=STEPS)
    for _ in range(STEPS):
        rows = torch.randint(len(inputs), (BATCH,), generator=draws)
        seen = inputs[rows] + NOISE * torch.randn((BATCH, len(FEATURES)), generator=draws)
        loss = (net(seen) - targets[rows]).abs().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    plain = [(layer.weight.detach().numpy().copy(), layer.bias.detach().numpy().copy()) for layer in layers]
    return ppo.of_scaled(plain, shift, scale, {})


def read_steps(folder: Path) -> tuple[list[Task], NDArray[np.float32]]:
    """Return the task of each step that a distillation has kept, and what was seen before it (S, D)."""
    with np.load(folder / STEPS_FILE) as file:
        tasks = [Task(**task) for task in json.loads(file["tasks"].item())]
        return [tasks[i] for i in file["of"]], file["features"]


def write_steps(folder: Path, played: Sequence[Task], features: NDArray[np.float32]) -> None:
    """Keep what `read_steps` returns."""
    of_task = {task: i for i, task in enumerate(dict.fromkeys(played))}
    of, tasks = np.array([of_task[task] for task in played]), json.dumps([asdict(task) for task in of_task])
    file = BytesIO()
    np.savez_compressed(file, features=features, of=of, tasks=np.array(tasks))
    io.write_atomic(folder / STEPS_FILE, file.getvalue())


def _seconds(folder: Path) -> float:
    """Return how long another distillation took; its policy lies beside its steps."""
    return Network.load(folder / "policy.npz").card["training"]["seconds"]


def distil(given: Arguments, console: Console) -> Network:
    """Choose the teachers, play, fit, and judge the policy on validation tasks."""
    begun = time.perf_counter() - sum(map(_seconds, given.also))
    if min(given.episodes, given.processes) < 1 or given.rounds < 0:
        raise ValueError("--episodes and --processes must be at least 1, and --rounds 0 or more")
    if not given.rounds and not given.also:
        raise ValueError("--rounds 0 plays nothing, and there are no steps of --also to learn from")
    tasks = distribution(given.tasks, given.root)
    if not tasks.validation:
        raise ValueError(f"--tasks {given.tasks} has no validation tasks, on which the policy is judged")
    given.out.mkdir(parents=True, exist_ok=True)
    teachers, lines = teachers_of(given.sweeps)
    shown = Table("trouble", "teacher")
    for line in lines:
        if "chosen" in line:
            shown.add_row(_words(line["trouble"]), line["chosen"])
    console.print(shown)
    of_digits = None if given.digits_policy is None else Network.load(given.digits_policy)
    rng = np.random.default_rng([given.seed, 0])
    played, features = [], []  # the task of each step, and what was seen before it
    for folder in given.also:
        others, seen = read_steps(folder)
        kept = [i for i, task in enumerate(others) if task not in tasks.validation]  # other roots cut otherwise
        played += [others[i] for i in kept]
        features.append(seen[kept])

    def learn() -> Network:
        answers = {task: taught(teachers, task) for task in set(played)}
        numbers, seen = np.array([answers[task] for task in played]), np.concatenate(features)
        if of_digits is not None:
            rows = np.array([of_the_policy(task) for task in played])
            numbers[rows] = of_digits(seen[rows])
        found = fit(seen, numbers, given.seed)
        missed = np.abs(np.clip(found(seen), -1, 1) - numbers).mean()
        console.print(f"{len(played):,} steps, {missed:.2f} from the teachers' numbers")
        return found

    policy = learn() if played else None
    with closing(Workers(tasks, given.processes)) as workers:
        for _ in range(given.rounds):
            pairs = draw_pairs(tasks, given.episodes, rng)
            rules = np.array([taught(teachers, task) for task, _ in pairs])
            of, seen = workers.watch(pairs, rules if policy is None else policy)
            played += [pairs[j][0] for j in of]
            features.append(seen)
            policy = learn()
        if policy is None:
            raise ValueError("--rounds 0 plays nothing, and all steps of --also are of validation tasks")
        pairs = [(task, seed) for task in tasks.validation for seed in VALIDATION_SEEDS]
        told = np.array([taught(teachers, task) for task, _ in pairs])
        full, theirs = (workers.play(pairs, rules) for rules in (FULL, told))
        if of_digits is not None:
            digits = [i for i, (task, _) in enumerate(pairs) if of_the_policy(task)]
            theirs[digits] = workers.play([pairs[i] for i in digits], of_digits)
        own = workers.play(pairs, policy)
    points = {"teachers": 100.0 * (theirs - full), "policy": 100.0 * (own - full)}
    kinds = [_words(_trouble_of_task(task)) for task, _ in pairs]
    shown = Table("trouble", "runs", *points, title="Points over full training in validation")
    for kind in dict.fromkeys(kinds):
        of = np.array([other == kind for other in kinds])
        shown.add_row(kind, str(of.sum()), *(plus_minus(its[of], "+.2f") for its in points.values()))
    shown.add_row("all", str(len(pairs)), *(plus_minus(its, "+.2f") for its in points.values()))
    table.show(given.out / "validation.txt", shown)
    every = np.concatenate(features)
    card = {
        "program": "distil",
        "arguments": json.loads(json.dumps(asdict(given), default=str)),
        "teachers": "; ".join(f"{_words(line['trouble'])}: {line['chosen']}" for line in lines if "chosen" in line),
        "training": {
            "searched": sum(line["runs"] for line in lines if "rule" in line),
            "episodes": int((every[:, FEATURES.index("spent")] == -1.0).sum()),  # that began: also those of --also
            "steps": len(every),
            "seconds": time.perf_counter() - begun,
        },
        "tasks": asdict(tasks),
        "validation": {"pairs": len(pairs), "points_over_full": float(points["policy"].mean())},
        "machine": provenance.of_machine(),
        "code": provenance.of_code(),
    }
    write_steps(given.out, played, every)
    network = replace(policy, card=card)
    network.save(given.out / "policy.npz")
    return network


def main(args: list[str] | None = None) -> int:
    """Run the program with `args` (else those of the command line); return its exit status."""
    given = command_line.read("distil", Arguments, args)
    torch.set_num_threads(1)  # the other cores have processes of their own
    try:
        distil(given, Console())
    except (ValueError, OSError) as error:
        return command_line.refused(error)
    path = given.out / "policy.npz"
    next_one = shlex.join(["prune-env", "evaluate", "--agents", "full", "balanced", f"learned:{path}"])
    print(f"wrote {path}\nnext: {next_one}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
