"""Summarise the records of a sweep in numbers: rows of tables, best agents, areas, equivalences, savings, wins.

Pure functions of records, the lines of results.jsonl. They work on a sweep in mid-way: what is missing is left out.
Accuracies are in per cent. Differences are in points, agent − other with the same seed. The functions take one record a
cell and seed, as `latest` gives them. The order of the records decides the order of the rows and nothing else.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise, permutations
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from agents import Spec, parse
from train.analysis import statistics
from train.analysis.records import Record
from train.analysis.statistics import ROUNDING, Interval, Mean, Verdict, lossless, mean_interval, mean_of, side
from train.analysis.text import listed

FULL = "full"
BETWEEN = 65  # points of a savings interval between two budgets of `full`
NAMED = 3  # commits of mixed records that are named
NEAR = 0.01  # relative: a budget of `full` this near to budget / keep counts as that

Runs = dict[int, float]  # test accuracy in [0, 1] by seed
Line = TypeVar("Line")
Column = TypeVar("Column", bound=Any)  # that can be ordered


@dataclass(frozen=True)
class Row:
    """An agent at one budget: means over its seeds. Accuracies and shares in per cent."""

    agent: str
    accuracy: Mean
    difference: Mean | None  # to `full` over the seeds both have; None for full itself and without such seeds
    kept: float
    coverage: float
    spent: float  # full-epoch equivalents, as all budgets
    seconds: float
    select_seconds: float


@dataclass(frozen=True)
class Best:
    """The agent with the highest mean accuracy at a budget, and who cannot be told from it."""

    budget: float
    agent: str
    accuracy: Mean  # over the seeds of `full`
    tied: tuple[str, ...]  # in the order of the records
    difference: Mean | None  # to `full` at the budget; None for full itself and without full


@dataclass(frozen=True)
class AgainstLarger:
    """An agent that keeps the share `keep`, at a budget, against `full` at budget / keep: about as many steps."""

    agent: str
    budget: float
    keep: float  # in (0, 1)
    larger: float  # the budget of full
    verdict: Verdict
    difference: Mean  # to full at the larger budget
    same: Mean | None  # to full at the same budget; None if that has not run
    itself: Mean | None  # of full at `budget` to full at `larger`, over the agent's seeds; None without any
    vacuous: bool  # full itself at `budget` is lossless: training longer brings nothing, so keeping less loses nothing


@dataclass(frozen=True)
class Saving:
    """How much less an agent trains than `full` needs for the same accuracy: saved = 1 − budget / full_budget."""

    agent: str
    budget: float
    seeds: int
    full_budget: float  # at which full has the agent's accuracy
    saved: float  # 0.3: 30 % saved; negative: needs more than full
    interval: Interval | None  # of saved; None from one seed. Ends are clipped to full's budgets like `saved`
    bound: Literal["at_least", "at_most"] | None  # what `saved` is if `full_budget` lies out of full's budgets


@dataclass(frozen=True)
class Answer:
    """The agent to use at a budget."""

    best: Best  # at this budget
    agent: str | None  # None where full was not run
    difference: Mean | None  # to `full`, and above it beyond the interval; None if no agent is
    saving: Saving | None  # of the agent; None for full, and where full has too few budgets


def latest(records: Sequence[Record]) -> list[Record]:
    """Return one record a (task, agent, budget, seed), the last, since a file can hold cells of older code as well.

    Ordered by task (first appearance), budget, agent (first appearance), seed.
    """
    tasks = {task: place for place, task in enumerate(dict.fromkeys(record["task"] for record in records))}
    agents = {agent: place for place, agent in enumerate(dict.fromkeys(record["agent"] for record in records))}
    last = {(tasks[r["task"]], r["budget"], agents[r["agent"]], r["seed"]): r for r in records}
    return [last[cell] for cell in sorted(last)]


def grouped(records: Sequence[Record]) -> dict[float, dict[str, list[Record]]]:
    """Return records by budget, ascending, then by agent in the order of appearance."""
    groups: dict[float, dict[str, list[Record]]] = {}
    for record in sorted(records, key=lambda record: record["budget"]):
        groups.setdefault(record["budget"], {}).setdefault(record["agent"], []).append(record)
    return groups


def by_task(records: Sequence[Record]) -> dict[str, list[Record]]:
    """Return the records of each task, tasks in the order of appearance."""
    tasks: dict[str, list[Record]] = {}
    for record in records:
        tasks.setdefault(record["task"], []).append(record)
    return tasks


def rows(agents: Mapping[str, Sequence[Record]]) -> list[Row]:
    """Return the rows of one budget: `full` first, then by accuracy. `agents` maps a spec to its runs, one a seed."""
    full = _accuracies(agents.get(FULL, []))
    result = []
    for agent, records in agents.items():
        runs, results = _accuracies(records), [record["results"] for record in records]
        row = Row(
            agent=agent,
            accuracy=mean_of([100.0 * accuracy for accuracy in runs.values()]),
            difference=None if agent == FULL else _difference(runs, full),
            kept=100.0 * float(np.mean([r["kept"] for r in results])),
            coverage=100.0 * float(np.mean([r["coverage"] for r in results])),
            spent=float(np.mean([r["spent"]["total"] for r in results])),
            seconds=float(np.mean([r["seconds"]["total"] for r in results])),
            select_seconds=float(np.mean([r["seconds"]["select"] for r in results])),
        )
        result.append(row)
    return sorted(result, key=lambda row: (row.agent != FULL, -row.accuracy.mean))


def best(records: Sequence[Record]) -> list[Best]:
    """Return the agent of one task with the highest mean accuracy at each budget, budgets ascending.

    Compared over the seeds that `full` has at the budget, among the agents that have all of them; without full over all
    seeds that any agent has there. A budget at which no agent has all seeds is left out. `tied` are the other agents,
    complete or not, that are not told apart: the interval of the difference to them touches 0, or there is none since
    one seed is common. Of equally good agents it is full, else the first in the records. The best of many is lucky as
    well as good: its mean is biased upwards.
    """
    found = []
    for budget, runs in _runs(records).items():
        seeds = _required(runs)
        complete = {agent: [100.0 * of[s] for s in sorted(seeds)] for agent, of in runs.items() if seeds <= of.keys()}
        if not complete:
            continue
        agent = max(complete, key=lambda name: (round(float(np.mean(complete[name])), 10), name == FULL))
        others = {other: _difference(runs[agent], of) for other, of in runs.items() if other != agent}
        tied = tuple(other for other, difference in others.items() if difference and not side(difference.interval))
        found.append(Best(budget, agent, mean_of(complete[agent]), tied, others.get(FULL)))
    return found


def answers(records: Sequence[Record]) -> list[Answer]:
    """Say which agent of one task to use at each budget at which there is a choice, budgets ascending.

    Of the agents that are better than `full` beyond the interval of the paired difference it is the one with the
    largest difference. Where none is, it is full.
    """
    saved = {(saving.agent, saving.budget): saving for saving in savings(records)}
    groups, found = grouped(records), []
    for each in best(records):
        agents = groups[each.budget]
        if [*agents] == [FULL]:
            continue
        better = {row.agent: row.difference for row in rows(agents) if row.difference}
        better = {agent: difference for agent, difference in better.items() if side(difference.interval) > 0}
        agent = max(better, key=lambda name, of=better: of[name].mean, default=FULL)
        answer = Answer(each, agent, better.get(agent), saved.get((agent, each.budget)))
        found.append(answer if FULL in agents else Answer(each, None, None, None))
    return found


def glance(records: Sequence[Record]) -> dict[tuple[str, float], dict[str, Mean]]:
    """Return the differences to `full` by cell (task, budget) and agent, in the same order in each cell.

    Cells and agents are the largest block without a gap, two cells or more. Tasks are in the order of the records,
    budgets ascending, and agents by their mean over the cells, the best first. Empty if there is no such block.
    """
    cells: dict[tuple[str, float], dict[str, Mean]] = {}
    for task, own in by_task(records).items():
        for budget, agents in grouped(own).items():
            cells[task, budget] = {row.agent: row.difference for row in rows(agents) if row.difference}
    have = {agent: [cell for cell in cells if agent in cells[cell]] for of in cells.values() for agent in of}
    agents, chosen = _block(have, least=2)
    agents.sort(key=lambda agent: -sum(cells[cell][agent].mean for cell in chosen))
    return {cell: {agent: of[agent] for agent in agents} for cell, of in cells.items() if cell in chosen}


def areas(records: Sequence[Record]) -> list[dict[str, Any]]:
    """Return the mean accuracy over log budget of the agents of one task, over the same budgets: lines of areas.csv.

    The agents and budgets are the largest block without a gap, two budgets or more, in which every agent has every seed
    of `full` at every budget: of a sweep that runs ablations at few budgets and the main agents at many it takes the
    main agents at many. What lies outside is left out, agents too. Full does not count for the size, since its further
    budgets are there to compare with. Seeds are those that all these budgets have. Agents in the order of the records.
    The difference is the area minus the area of full.
    """
    cells = _runs(records)
    names = list(dict.fromkeys(agent for agents in cells.values() for agent in agents))
    if FULL in names:
        cells = {budget: agents for budget, agents in cells.items() if FULL in agents}
    required = {budget: _required(agents) for budget, agents in cells.items()}
    complete = {agent: [b for b in cells if required[b] <= cells[b].get(agent, {}).keys()] for agent in names}
    chosen, budgets = _block({a: has for a, has in complete.items() if a != FULL} or complete, least=2)
    seeds = sorted(set.intersection(*(required[budget] for budget in budgets))) if budgets else []
    if not seeds:
        return []
    found = []
    of_seeds = {  # (S,) each
        agent: statistics.log_budget_area(budgets, [[100.0 * cells[b][agent][s] for b in budgets] for s in seeds])
        for agent in names
        if agent in chosen or agent == FULL
    }
    for agent, values in of_seeds.items():
        area = mean_of(values)
        difference = None if agent == FULL or FULL not in of_seeds else mean_of(values - of_seeds[FULL])
        line = {"agent": agent, "budgets": tuple(budgets), "seeds": area.seeds, "area": area.mean}
        found.append({**line, "interval": area.interval, "difference": difference})
    return found


def improvements(records: Sequence[Record]) -> list[dict[str, Any]]:
    """Compare every agent with `full` over the cells (task, budget) in which both ran: lines of improvements.csv.

    Seeds are the units: each gives its mean over the cells, over the largest block of cells and seeds without a gap.
    `probability`: that a run beats the run of full with its seed, ties half. Agents in the order of appearance.
    """
    agents: dict[str, dict[tuple[str, float], Runs]] = defaultdict(dict)
    for task, own in by_task(records).items():
        for budget, runs in _runs(own).items():
            full = runs.pop(FULL, {})
            for agent, of_agent in runs.items():
                gains = {seed: 100.0 * (of_agent[seed] - full[seed]) for seed in of_agent if seed in full}
                if gains:
                    agents[agent][task, budget] = gains
    found = []
    for agent, cells in agents.items():
        chosen, seeds = _block(cells)
        differences = np.array([[cells[cell][seed] for seed in seeds] for cell in chosen])  # (cells, S), points
        won = mean_of(np.heaviside(differences, 0.5).mean(axis=0))
        interval = won.interval and (max(won.interval[0], 0.0), min(won.interval[1], 1.0))
        line = {"agent": agent, "probability": won.mean, "interval": interval, "cells": len(chosen)}
        found.append({**line, "difference": mean_of(differences.mean(axis=0))})
    return found


def keep_of(spec: str) -> float | None:
    """Return the share that a spec says to keep: "ucb:keep=0.5+anneal=0.1" -> 0.5; None if it does not say."""
    parsed = _parsed(spec)
    if parsed is None:
        return None
    if parsed.name == "same_amounts":
        return keep_of(parsed.within[0])
    keep = parsed.options.get("keep")
    return float(keep) if isinstance(keep, int | float) else None


def equivalences(records: Sequence[Record]) -> list[AgainstLarger]:
    """Compare every agent of one task that keeps a share k in (0, 1), at budget b, with `full` at budget b / k.

    Budgets ascending, then agents in the order of the records. The budget of full may differ by one in a hundred (21.43
    for 15 / 0.7); without common seeds there the agent is left out. For the verdict see `statistics.lossless`. Where
    longer training brings nothing, full at budget b is lossless itself: such verdicts are marked as vacuous.
    """
    cells, specs = _runs(records), _specs(records)
    full = _of_full(cells)
    found = []
    for budget, agent, runs in _one_by_one(cells):
        keep = keep_of(specs[agent])
        if keep is None or not 0 < keep < 1:
            continue
        larger = min(full, key=lambda b, whole=budget / keep: (abs(b - whole), b), default=0.0)
        difference = _difference(runs, full.get(larger, {}))
        if difference is None or abs(larger * keep / budget - 1) > NEAR:
            continue
        of_full = {seed: accuracy for seed, accuracy in full.get(budget, {}).items() if seed in runs}
        same, itself = _difference(runs, of_full), _difference(of_full, full[larger])
        vacuous = itself is not None and lossless(itself) == "lossless"
        verdict = lossless(difference)
        found.append(AgainstLarger(agent, budget, keep, larger, verdict, difference, same, itself, vacuous))
    return found


def full_curve(records: Sequence[Record]) -> dict[float, float]:
    """Return the mean accuracy of `full` in % at the budgets of one task, ascending, over the same seeds at each.

    Budgets and seeds are the largest block without a gap. Empty without full.
    """
    full = _of_full(_runs(records))
    seeds, budgets = _block(_budgets_by_seed(full, set().union(*full.values())))
    return {budget: float(np.mean([100.0 * full[budget][seed] for seed in seeds])) for budget in budgets}


def savings(records: Sequence[Record]) -> list[Saving]:
    """Say how much less every agent of one task trains than `full` for the same accuracy, by budget, then agent.

    Full's accuracy is read off linearly in log budget between the budgets it has. It needs the smallest budget at which
    the mean of the paired differences, agent − full, is not above 0. The interval has the budgets at which 0 lies in
    the interval of these differences: from the first at which full is not told to be worse, to the first at which it is
    told to be as good. Accuracies above all of full's, or below full's at its smallest budget, give a bound. Seeds and
    full's budgets are the largest block without a gap of the seeds that the agent has; with fewer than two budgets the
    agent is left out.
    """
    cells = _runs(records)
    full = _of_full(cells)
    found = []
    for budget, agent, runs in _one_by_one(cells):
        seeds, budgets = _block(_budgets_by_seed(full, runs), least=2)
        if seeds and agent != FULL:
            gaps = 100.0 * np.array([[runs[seed] - full[b][seed] for b in budgets] for seed in seeds])
            found.append(_saving(agent, budget, np.array(budgets), gaps))
    return found


def _saving(agent: str, budget: float, budgets: NDArray[np.float64], gaps: NDArray[np.float64]) -> Saving:
    """`gaps` (S, B) in points: the agent at `budget` − full at `budgets` (B,)."""
    means = gaps.mean(axis=0)
    bound = "at_least" if means.min() > ROUNDING else "at_most" if means[0] < -ROUNDING else None
    interval = None
    if len(gaps) > 1:
        between = np.unique(np.concatenate([np.geomspace(*ends, BETWEEN) for ends in pairwise(budgets)]))
        ends = mean_interval([np.interp(np.log(between), np.log(budgets), gap) for gap in gaps])
        low, high = (1 - budget / _needed(between, end) for end in ends)
        interval = low, high
    needed = _needed(budgets, means)
    return Saving(agent, budget, len(gaps), needed, 1 - budget / needed, interval, bound)


def _needed(budgets: NDArray[np.float64], gaps: NDArray[np.float64]) -> float:
    """The smallest of `budgets` (B,), or else the last, at which `gaps` (B,) is not above 0; linear in log budget."""
    at = int(np.argmax(gaps <= ROUNDING)) if gaps.min() <= ROUNDING else len(gaps) - 1
    if at == 0 or gaps[at] >= 0:
        return float(budgets[at])
    share = gaps[at - 1] / (gaps[at - 1] - gaps[at])
    return float(budgets[at - 1] * (budgets[at] / budgets[at - 1]) ** share)


def one_apart(records: Sequence[Record]) -> list[dict[str, Any]]:
    """Compare the agents of one task that differ in one thing, at the budgets of both: lines of one-apart.csv.

    These are an agent with one option or switch more than another ("ucb:keep=0.5+mixup=0.5" and "ucb:keep=0.5"); an
    agent and its `same_amounts:`, which takes only the numbers of samples from it, and so lacks the agent's choice, its
    weights, Mixup and scoring; `random` and `static_random`, which differ in drawing anew.
    """
    specs = _specs(records)
    found = [
        {"agent": agent, "against": against, "budget": budget, "difference": difference}
        for budget, runs in _runs(records).items()
        for agent, against in permutations(runs, 2)
        if _are_one_apart(specs[agent], specs[against]) and (difference := _difference(runs[agent], runs[against]))
    ]
    return sorted(found, key=lambda line: (line["agent"], line["against"], line["budget"]))


@cache
def _are_one_apart(agent: str, against: str) -> bool:
    if against == f"same_amounts:{agent}" or (agent.startswith("random") and against == f"static_{agent}"):
        return True
    spec, other = _parsed(agent), _parsed(against)
    if spec is None or other is None or (spec.name, spec.within) != (other.name, other.within):
        return False
    own, theirs = ([*each.options.items(), *each.switches.items()] for each in (spec, other))
    return len(own) == len(theirs) + 1 and all(item in own for item in theirs)


def mixed_commits(records: Sequence[Record]) -> str:
    """Say in one line that the records are of several commits, or of one with and without changes; else nothing."""
    states = Counter((r["provenance"].get("commit"), r["provenance"].get("dirty")) for r in records)
    told = [
        f"{commit[:7] if commit else 'none'}{' + changes' if dirty else ''} ({many:,})"
        for (commit, dirty), many in states.most_common()
    ]
    rest = [f"{len(told) - NAMED} more"] if len(told) > NAMED else []
    return f"Mixed commits: {', '.join([*told[:NAMED], *rest])}; --fresh runs all anew." if len(told) > 1 else ""


def rates(records: Sequence[Record]) -> str:
    """Say what the learning rates were tuned for, with their budgets if that differs; nothing where no record tells.

    Commands that tune what is not tuned come last, once each and without a full stop, as people copy them.
    """
    budgets: dict[str, set[float]] = defaultdict(set)
    commands: dict[str, None] = {}
    for record in records:
        rate, _, command = (record.get("rate") or "").partition("; tune it: ")  # older records do not tell
        budgets[rate].add(record["budget"])
        commands[command] = None
    budgets.pop("", None)
    commands.pop("", None)
    told = f"Learning rate: {', '.join(budgets)}"
    if len(budgets) > 1:
        at = (f"at {_budgets(at)}, {rate}" for rate, at in budgets.items())
        told = f"Learning rates: {'; '.join(at)}"
    return "\n".join([f"{told}; tune it:", *commands]) if commands else f"{told}." if budgets else ""


def _budgets(budgets: Iterable[float]) -> str:
    """Budgets in a sentence: budget 3, budgets 3 and 6."""
    values = [f"{budget:g}" for budget in sorted(budgets)]
    return f"budget{'s' if len(values) > 1 else ''} {listed(values)}"


def labels(records: Iterable[Record]) -> str:
    """Say which agents have labels in these records; nothing where none has."""
    specs = {record["agent"]: record["spec"] for record in records if "spec" in record}
    return "; ".join(f"{label} is {spec}" for label, spec in specs.items()) + "." * bool(specs)


def _specs(records: Iterable[Record]) -> dict[str, str]:
    """Specs of agents by the names that they have in the records, which may be labels."""
    return {record["agent"]: record.get("spec", record["agent"]) for record in records}


@cache
def _parsed(spec: str) -> Spec | None:
    """What a spec says; None for one that this version does not know, so that its results can be reported too."""
    try:
        return parse(spec)
    except ValueError:
        return None


def _runs(records: Sequence[Record]) -> dict[float, dict[str, Runs]]:
    """Runs of one task by budget, ascending, and agent."""
    return {
        budget: {agent: _accuracies(of_agent) for agent, of_agent in agents.items()}
        for budget, agents in grouped(records).items()
    }


def _one_by_one(cells: Mapping[float, dict[str, Runs]]) -> Iterator[tuple[float, str, Runs]]:
    for budget, agents in cells.items():
        yield from ((budget, agent, runs) for agent, runs in agents.items())


def _accuracies(records: Iterable[Record]) -> Runs:
    return {record["seed"]: record["results"]["test_accuracy"] for record in records}


def _of_full(cells: Mapping[float, dict[str, Runs]]) -> dict[float, Runs]:
    return {budget: agents[FULL] for budget, agents in cells.items() if FULL in agents}


def _required(agents: Mapping[str, Runs]) -> set[int]:
    """The seeds that make an agent complete at a budget: those of `full`, without it all that any agent has."""
    return set(agents[FULL]) if FULL in agents else set().union(*agents.values())


def _difference(first: Runs, second: Runs) -> Mean | None:
    """first − second in points over their common seeds; None without any."""
    common = sorted(first.keys() & second.keys())
    return mean_of([100.0 * (first[seed] - second[seed]) for seed in common]) if common else None


def _budgets_by_seed(full: dict[float, Runs], seeds: Iterable[int]) -> dict[int, list[float]]:
    return {seed: [budget for budget in full if seed in full[budget]] for seed in sorted(seeds)}


def _block(have: Mapping[Line, Collection[Column]], least: int = 1) -> tuple[list[Line], list[Column]]:
    """The largest block without a gap of lines and `least` or more columns; `have` says which columns a line has.

    Lines in the order of `have`, columns ascending; both empty if there is none. Of equally large blocks that with more
    columns is taken, then that with the first columns.
    """
    candidates: set[frozenset[Column]] = set()  # intersections; the columns of any block that cannot be widened are one
    for columns in set(map(frozenset, have.values())):
        candidates |= {columns & other for other in candidates} | {columns}
    best_lines: list[Line] = []
    best_columns: list[Column] = []
    for columns in sorted(map(sorted, candidates), key=lambda columns: (-len(columns), columns)):
        lines = [line for line, has in have.items() if set(columns) <= set(has)]
        if len(columns) >= least and len(lines) * len(columns) > len(best_lines) * len(best_columns):
            best_lines, best_columns = lines, columns
    return best_lines, best_columns
