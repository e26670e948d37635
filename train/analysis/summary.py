"""What the records of a sweep say, in numbers: best agents, areas, improvements, equivalences, savings, wins.

Pure functions of records, the lines of results.jsonl. They work on a sweep in mid-way: what is missing is left out.
Accuracies are in per cent. Differences are in points, agent − other with the same seed. The functions take one record a
cell and seed, as `latest` gives them. The order of the records decides the order of the rows and nothing else.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from agents import split_switches
from train.analysis import statistics
from train.analysis.records import Record
from train.analysis.statistics import MARGIN, ROUNDING, Interval, Verdict, side

FULL = "full"
# at the beginning of an option: what follows has whole strings
OPTION = r"(?=\s*[A-Za-z_]\w*\s*=(?:[^'\"]|'[^']*'|\"[^\"]*\")*$)"
BETWEEN = 65  # points of a savings interval between two budgets of `full`
NAMED = 3  # commits of mixed records that are named
NEAR = 0.01  # relative: a budget of `full` this near to budget / keep counts as that

Runs = dict[int, float]  # test accuracy in [0, 1] by seed
Table = dict[str, dict[float, Runs]]  # of one task, by agent and budget
Row = TypeVar("Row")
Column = TypeVar("Column", bound=Any)  # that can be ordered


@dataclass(frozen=True)
class Difference:
    """Mean of the paired differences, first − second with the same seed, in points."""

    mean: float
    interval: Interval | None  # 95 %; None from one seed
    seeds: int  # that both have, at least one


@dataclass(frozen=True)
class Best:
    """The agent with the highest mean accuracy at a budget, and who cannot be told from it."""

    budget: float  # full-epoch equivalents, as all budgets
    agent: str
    seeds: int  # compared: those of `full`
    accuracy: float  # %, mean over these
    interval: Interval | None  # %; None from one seed
    tied: tuple[str, ...]  # in the order of the records
    difference: Difference | None  # to `full` at the budget; None for full itself and without full


@dataclass(frozen=True)
class Area:
    """Mean accuracy of an agent over log budget."""

    agent: str
    budgets: tuple[float, ...]  # ascending, the same for all agents of a task, two or more
    seeds: int
    area: float  # %
    interval: Interval | None  # %; None from one seed
    difference: Difference | None  # of the areas, to that of `full`; None for full itself and without full


@dataclass(frozen=True)
class AgentImprovement:
    """How an agent compares with `full` over all cells (task, budget) that have both. Cells weigh the same."""

    agent: str
    probability: float  # that a run beats that of full with its seed, ties half
    interval: Interval | None  # of the probability; None from one seed
    cells: int
    difference: Difference  # over the cells


@dataclass(frozen=True)
class AgainstLarger:
    """An agent that keeps the share `keep`, at a budget, against `full` at budget / keep: about as many steps."""

    agent: str
    budget: float
    keep: float  # in (0, 1)
    larger: float  # the budget of full
    verdict: Verdict
    difference: Difference  # to full at the larger budget
    same: Difference | None  # to full at the same budget; None if that has not run
    itself: Difference | None  # of full at `budget` to full at `larger`, over those seeds that it has; None without any
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
class Paired:
    """The difference between two agents at a budget."""

    budget: float
    difference: Difference  # first − second


@dataclass(frozen=True)
class Win:
    """A cell in which an agent is better than `full`."""

    task: str
    budget: float
    agent: str
    difference: Difference  # to full; its interval lies above 0


@dataclass(frozen=True)
class Wins:
    """How many intervals of the difference to `full` lie off 0, of all cells (task, budget, agent) that have one."""

    cells: int
    above: int
    below: int
    expected: float  # on each side by chance if nothing differed: 2.5 % of the cells
    winning: tuple[Win, ...]  # those above


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


def best(records: Sequence[Record]) -> list[Best]:
    """Return the agent of one task with the highest mean accuracy at each budget, budgets ascending.

    Compared over the seeds that `full` has at the budget, among the agents that have all of them; without full over all
    seeds that any agent has there. A budget at which no agent has all seeds is left out. `tied` are the other agents,
    complete or not, that are not told apart: the interval of the difference to them touches 0, or there is none since
    one seed is common. Of equally good agents it is full, else the first in the records. The best of many is lucky as
    well as good: its mean is biased upwards.
    """
    table = _table(records)
    found = []
    for budget, seeds in sorted(_required(table).items()):
        runs = {agent: budgets[budget] for agent, budgets in table.items() if budget in budgets}
        means = {agent: _mean(of[seed] for seed in sorted(seeds)) for agent, of in runs.items() if seeds <= of.keys()}
        if not means:
            continue
        agent = max(means, key=lambda name: (round(means[name], 12), name == FULL))
        accuracies = [100.0 * runs[agent][seed] for seed in sorted(seeds)]
        others = {other: _difference(runs[agent], of) for other, of in runs.items() if other != agent}
        found.append(
            Best(
                budget=budget,
                agent=agent,
                seeds=len(seeds),
                accuracy=_mean(accuracies),
                interval=_interval(accuracies),
                tied=tuple(
                    other for other, difference in others.items() if difference and not side(difference.interval)
                ),
                difference=others.get(FULL),
            )
        )
    return found


def areas(records: Sequence[Record]) -> list[Area]:
    """Return the mean accuracy over log budget of the agents of one task, over the same budgets.

    The budgets, agents and seeds are the largest block of runs without a gap, two budgets or more, in which every agent
    has every seed at every budget: of a sweep that runs ablations at few budgets and the main agents at many it takes
    the main agents at many. What lies outside is left out, agents too. With `full` in the task only budgets that it has
    count. Empty with fewer than two such budgets. Agents in the order of the records.
    """
    table = _table(records)
    required = _required(table)
    if FULL in table:
        required = {budget: seeds for budget, seeds in required.items() if budget in table[FULL]}
    blocks = []
    for seeds in _intersections(required.values()):
        complete = {
            agent: [b for b, runs in budgets.items() if b in required and seeds <= (runs.keys() & required[b])]
            for agent, budgets in table.items()
        }
        # full does not count for the size: its further budgets are there to compare with
        chosen, budgets = _block({a: has for a, has in complete.items() if a != FULL} or complete, least=2)
        blocks.append((len(seeds) * len(chosen) * len(budgets), sorted(seeds), budgets, chosen))
    size, seeds, budgets, chosen = max(blocks, default=(0, [], [], []))
    if not size:
        return []
    agents = [agent for agent in table if agent in chosen or agent == FULL]
    curves = {agent: 100.0 * np.array([[table[agent][b][s] for b in budgets] for s in seeds]) for agent in agents}
    of_full = curves.get(FULL)
    return [_area(agent, budgets, curve, None if agent == FULL else of_full) for agent, curve in curves.items()]


def _area(agent: str, budgets: list[float], curve: NDArray[np.float64], full: NDArray[np.float64] | None) -> Area:
    """`curve` and `full` are accuracies in %, (S, B)."""
    of_seed = np.asarray(statistics.log_budget_area(budgets, curve))  # (S,)
    difference = None
    if full is not None:
        difference = _of_values(np.asarray(statistics.log_budget_area(budgets, curve - full)))
    return Area(agent, tuple(budgets), len(of_seed), float(of_seed.mean()), _interval(of_seed), difference)


def improvements(records: Sequence[Record]) -> list[AgentImprovement]:
    """Compare every agent with `full` over the cells (task, budget) in which both ran; cells weigh the same.

    Agents in the order of appearance. Seeds are the units: each gives its mean over the cells, over the largest block
    of cells and seeds without a gap.
    """
    found = []
    for agent, cells in _by_agent(_to_full(records)).items():
        chosen, seeds = _block(cells)
        differences = [{seed: cells[cell][seed] for seed in seeds} for cell in chosen]
        won = [{seed: float(np.heaviside(d, 0.5)) for seed, d in cell.items()} for cell in differences]
        wins = _of_values(statistics.seed_means(won))
        difference = _of_values(statistics.seed_means(differences))
        interval = wins.interval and (max(wins.interval[0], 0.0), min(wins.interval[1], 1.0))
        found.append(AgentImprovement(agent, wins.mean, interval, len(chosen), difference))
    return found


def keep_of(spec: str) -> float | None:
    """Return the share that a spec says to keep: "ucb:keep=0.5+anneal=0.1" -> 0.5; None if it does not say.

    Read off the text, so that results of agents that cannot be imported here can be reported too.
    """
    unquoted = re.sub(r"'[^']*'|\"[^\"]*\"", "''", spec)
    found = re.search(r"[:,]\s*keep\s*=\s*((?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)\s*(?=[,+]|$)", unquoted)
    return float(found[1]) if found else None


def equivalences(records: Sequence[Record], margin: float = MARGIN) -> list[AgainstLarger]:
    """Compare every agent of one task that keeps a share k in (0, 1), at budget b, with `full` at budget b / k.

    Budgets ascending, then agents in the order of the records. The budget of full may differ by one in a hundred (21.43
    for 15 / 0.7); without common seeds there the agent is left out. `margin` in points, see `statistics.lossless`.
    Where longer training brings nothing, full at budget b is lossless itself: such verdicts are marked as vacuous.

    Raises:
        ValueError: a margin below 0 or not finite.
    """
    table = _table(records)
    full = table.get(FULL, {})
    found = []
    for budget, agent, runs in _cells(table):
        keep = keep_of(agent)
        if keep is None or not 0 < keep < 1:
            continue
        whole = budget / keep
        larger = min(full, key=lambda b: (abs(b - whole), b), default=0.0)
        if abs(larger / whole - 1) > NEAR:
            continue
        difference = _difference(runs, full[larger])
        if difference is None:
            continue
        verdict = statistics.lossless(_differences(runs, full[larger]), margin).verdict
        of_full = {seed: accuracy for seed, accuracy in full.get(budget, {}).items() if seed in runs}
        same = _difference(runs, of_full)
        itself = _differences(of_full, full[larger])
        vacuous = bool(itself) and statistics.lossless(itself, margin).verdict == "lossless"
        of_itself = _of_values(itself) if itself else None
        found.append(AgainstLarger(agent, budget, keep, larger, verdict, difference, same, of_itself, vacuous))
    return found


def full_curve(records: Sequence[Record]) -> dict[float, float]:
    """Return the mean accuracy of `full` in % at the budgets of one task, ascending, over the same seeds at each.

    Budgets and seeds are the largest block without a gap, as in `areas`. Empty without full.
    """
    full = _table(records).get(FULL, {})
    seeds = {seed: [budget for budget in full if seed in full[budget]] for seed in sorted(set().union(*full.values()))}
    common, budgets = _block(seeds)
    return {budget: _mean(100.0 * full[budget][seed] for seed in common) for budget in budgets}


def savings(records: Sequence[Record]) -> list[Saving]:
    """Say how much less every agent of one task trains than `full` for the same accuracy, by budget, then agent.

    Full's accuracy is read off linearly in log budget between the budgets it has. It needs the smallest budget at which
    the mean of the paired differences, agent − full, is not above 0. The interval has the budgets at which 0 lies in
    the interval of these differences: from the first at which full is not told to be worse, to the first at which it is
    told to be as good. Accuracies above all of full's, or below full's at its smallest budget, give a bound. Seeds and
    full's budgets are the largest block without a gap of the seeds that the agent has; with fewer than two budgets the
    agent is left out.
    """
    table = _table(records)
    full = table.pop(FULL, {})
    found = []
    for budget, agent, runs in _cells(table):
        seeds, budgets = _block({seed: [b for b in full if seed in full[b]] for seed in sorted(runs)}, least=2)
        if seeds:
            gaps = 100.0 * np.array([[runs[seed] - full[b][seed] for b in budgets] for seed in seeds])
            found.append(_saving(agent, budget, np.array(budgets), gaps))
    return found


def _saving(agent: str, budget: float, budgets: NDArray[np.float64], gaps: NDArray[np.float64]) -> Saving:
    """`gaps` (S, B) in points: the agent at `budget` − full at `budgets` (B,)."""
    means = gaps.mean(axis=0)
    bound: Literal["at_least", "at_most"] | None = None
    if means.min() > ROUNDING:
        bound = "at_least"
    elif means[0] < -ROUNDING:
        bound = "at_most"
    interval = None
    if len(gaps) > 1:
        between = np.unique(np.concatenate([np.geomspace(*ends, BETWEEN) for ends in pairwise(budgets)]))
        ends = statistics.mean_intervals(np.stack([np.interp(np.log(between), np.log(budgets), gap) for gap in gaps]))
        interval = 1 - budget / _needed(between, ends[0]), 1 - budget / _needed(between, ends[1])
    needed = _needed(budgets, means)
    return Saving(agent, budget, len(gaps), needed, 1 - budget / needed, interval, bound)


def _needed(budgets: NDArray[np.float64], gaps: NDArray[np.float64]) -> float:
    """The smallest of `budgets` (B,), or else the last, at which `gaps` (B,) is not above 0; linear in log budget."""
    at = int(np.argmax(gaps <= ROUNDING)) if gaps.min() <= ROUNDING else len(gaps) - 1
    if at == 0 or gaps[at] >= 0:
        return float(budgets[at])
    share = gaps[at - 1] / (gaps[at - 1] - gaps[at])
    return float(budgets[at - 1] * (budgets[at] / budgets[at - 1]) ** share)


def pairs(records: Sequence[Record], first: str, second: str) -> list[Paired]:
    """Return the paired differences first − second at every budget at which both have a common seed, ascending."""
    table = _table(records)
    of_first, of_second = table.get(first, {}), table.get(second, {})
    differences = {b: _difference(of_first[b], of_second[b]) for b in sorted(of_first.keys() & of_second.keys())}
    return [Paired(budget, difference) for budget, difference in differences.items() if difference]


def one_apart(specs: Collection[str]) -> list[tuple[str, str]]:
    """Return pairs of agents that differ in one thing, for `pairs`: what does that thing bring?

    An agent with one switch ("ucb:keep=0.5+mixup=0.5" and "ucb:keep=0.5") or one option more than another
    ("swdpp:keep=0.5,tau=0" and "swdpp:keep=0.5"); one and its `same_amounts:`, which takes only the numbers of samples
    from it: it lacks the agent's choice, and its weights, Mixup and scoring too where it has them; and `random` and
    `static_random` with the same keep, which differ in drawing anew.
    """
    found = []
    for spec in specs:
        base, switches = split_switches(spec)
        agent, *options = re.split(f":{OPTION}", base, maxsplit=1)
        options = re.split(f",{OPTION}", options[0]) if options else []
        names = [_spec(agent, others, switches) for others in _without_one(options)]
        names += [_spec(agent, options, others) for others in _without_one(switches)]
        found += [(spec, less) for less in names if less in specs]
        for other in (f"same_amounts:{spec}", f"static_{spec}" if base.startswith("random") else ""):
            if other in specs:
                found.append((spec, other))
    return found


def _without_one(parts: Sequence[str]) -> list[list[str]]:
    return [[*parts[:place], *parts[place + 1 :]] for place in range(len(parts))]


def _spec(agent: str, options: Sequence[str], switches: Sequence[str]) -> str:
    return "+".join([f"{agent}:{','.join(options)}" if options else agent, *switches])


def wins(records: Sequence[Record]) -> Wins:
    """Count the cells (task, budget, agent) that tell an agent apart from `full`, and how many would by chance.

    Cells with fewer than two common seeds have no interval and do not count. Cells of a task share the runs of full, so
    chance wins come in clusters.
    """
    found = {cell: _of_values(list(of_seed.values())) for cell, of_seed in _to_full(records).items()}
    told = {cell: difference for cell, difference in found.items() if difference.interval is not None}
    sides = {cell: side(difference.interval) for cell, difference in told.items()}
    return Wins(
        cells=len(told),
        above=sum(place > 0 for place in sides.values()),
        below=sum(place < 0 for place in sides.values()),
        expected=(1 - statistics.LEVEL) / 2 * len(told),
        winning=tuple(Win(*cell, told[cell]) for cell, place in sides.items() if place > 0),
    )


def mixed_commits(records: Sequence[Record]) -> str:
    """Say in one line that the records are of several commits, or of one with and without changes; else nothing."""
    states = Counter((r.get("provenance", {}).get("commit"), r.get("provenance", {}).get("dirty")) for r in records)
    if len(states) < 2:
        return ""
    told = [
        f"{str(commit)[:7] if commit else 'none'}{' + changes' if dirty else ''} ({many:,})"
        for (commit, dirty), many in states.most_common()
    ]
    rest = [f"{len(told) - NAMED} more"] if len(told) > NAMED else []
    return f"Mixed commits: {', '.join([*told[:NAMED], *rest])}; --fresh runs all anew."


def rates(records: Sequence[Record]) -> str:
    """Say what the learning rates were tuned for, with their budgets if that differs; nothing where no record tells."""
    budgets: dict[str, list[float]] = {}
    for record in records:
        rate = record.get("rate")
        if rate and record["budget"] not in budgets.setdefault(rate, []):
            budgets[rate].append(record["budget"])
    if len(budgets) < 2:
        return "".join(f"Learning rate: {rate}." for rate in budgets)
    told = (f"{rate} (budget {', '.join(f'{b:g}' for b in sorted(at))})" for rate, at in budgets.items())
    return f"Learning rates: {'; '.join(told)}."


def _table(records: Sequence[Record]) -> Table:
    table: Table = {}
    for record in records:
        runs = table.setdefault(record["agent"], {}).setdefault(record["budget"], {})
        runs[record["seed"]] = record["results"]["test_accuracy"]
    return table


def _cells(table: Table) -> list[tuple[float, str, Runs]]:
    """(budget, agent, runs), budgets ascending and agents in the order of the table."""
    cells = [(budget, agent, runs) for agent, budgets in table.items() for budget, runs in budgets.items()]
    return sorted(cells, key=lambda cell: cell[0])


def _required(table: Table) -> dict[float, frozenset[int]]:
    """The seeds that make an agent complete at each budget: those of `full`, without it there all that any has."""
    seeds: dict[float, frozenset[int]] = {}
    for budget, _, runs in _cells(table):
        seeds[budget] = seeds.get(budget, frozenset()) | frozenset(runs)
    return seeds | {budget: frozenset(runs) for budget, runs in table.get(FULL, {}).items()}


def _to_full(records: Sequence[Record]) -> dict[tuple[str, float, str], dict[int, float]]:
    """Differences to `full` in points by seed, ascending, of each (task, budget, agent) that has one."""
    found = {}
    for task, of_task in by_task(records).items():
        table = _table(of_task)
        full = table.pop(FULL, {})
        for budget, agent, runs in _cells(table):
            differences = _by_seed(runs, full.get(budget, {}))
            if differences:
                found[task, budget, agent] = differences
    return found


def _by_agent(
    cells: Mapping[tuple[str, float, str], dict[int, float]],
) -> dict[str, dict[tuple[str, float], dict[int, float]]]:
    agents: dict[str, dict[tuple[str, float], dict[int, float]]] = {}
    for (task, budget, agent), differences in cells.items():
        agents.setdefault(agent, {})[task, budget] = differences
    return agents


def _by_seed(first: Runs, second: Runs) -> dict[int, float]:
    """first − second in points by common seed, ascending."""
    return {seed: 100.0 * (first[seed] - second[seed]) for seed in sorted(first.keys() & second.keys())}


def _differences(first: Runs, second: Runs) -> list[float]:
    return list(_by_seed(first, second).values())


def _difference(first: Runs, second: Runs) -> Difference | None:
    values = _differences(first, second)
    return _of_values(values) if values else None


def _of_values(values: Sequence[float] | NDArray[np.float64]) -> Difference:
    return Difference(_mean(values), _interval(values), len(values))


def _interval(values: Sequence[float] | NDArray[np.float64]) -> Interval | None:
    return statistics.mean_interval(values) if len(values) > 1 else None


def _mean(values: Iterable[float]) -> float:
    return float(np.mean(list(values)))


def _block(have: Mapping[Row, Collection[Column]], least: int = 1) -> tuple[list[Row], list[Column]]:
    """The largest block without a gap of rows and `least` or more columns; `have` says which columns a row has.

    Rows in the order of `have`, columns ascending; both empty if there is none. Of equally large blocks that with more
    columns is taken, then that with the first columns.
    """
    rows: list[Row] = []
    columns: list[Column] = []
    for candidate in sorted(map(sorted, _intersections(map(frozenset, have.values()))), key=lambda c: (-len(c), c)):
        holders = [row for row, has in have.items() if set(candidate) <= set(has)]
        if len(candidate) >= least and len(holders) * len(candidate) > len(rows) * len(columns):
            rows, columns = holders, candidate
    return rows, columns


def _intersections(sets: Iterable[frozenset[Column]]) -> set[frozenset[Column]]:
    """All intersections of one or more of the sets: the columns of any block that cannot be widened are among them."""
    found: set[frozenset[Column]] = set()
    for members in set(sets):
        found |= {members & other for other in found} | {members}
    return found
