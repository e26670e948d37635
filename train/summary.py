"""What the records of a sweep say, in numbers: best agents, areas, improvements, equivalences, savings, wins.

Pure functions of records, the lines of results.jsonl, that work on a sweep in mid-way: what is not there is left out.
Accuracies are in per cent and differences in points, agent − other with the same seed. The functions take one record a
cell and seed, as `latest` gives them; their order is that of the numbers' rows and decides nothing else.
"""

from __future__ import annotations

import math
import re
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from train import statistics
from train.results import Record
from train.statistics import MARGIN, Interval, Profile, Verdict

FULL = "full"


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
    pairs: int  # of runs, over all cells
    difference: float  # points, mean over cells of the mean over seeds
    difference_interval: Interval | None  # points


@dataclass(frozen=True)
class AgainstLarger:
    """An agent that keeps the share `keep`, at a budget, against `full` at budget / keep: as many steps, more compute."""

    agent: str
    budget: float
    keep: float  # in (0, 1)
    larger: float  # the budget of full
    verdict: Verdict
    difference: Difference  # to full at the larger budget
    same: Difference | None  # to full at the same budget; None if that has not run


@dataclass(frozen=True)
class Saving:
    """How much less an agent trains than `full` needs for the same accuracy: saved = 1 − budget / full_budget."""

    agent: str
    budget: float
    seeds: int
    full_budget: float  # at which full has the agent's accuracy
    saved: float  # 0.3: 30 % saved; negative: needs more than full
    interval: Interval | None  # of saved; None from one seed. Ends are clipped to full's range like `saved`
    bound: Literal["at_least", "at_most"] | None  # what `saved` is if the accuracy lies out of full's range

    @property
    def clipped(self) -> bool:
        """Whether the accuracy lies above (`at_least`) or below (`at_most`) all that full reaches."""
        return self.bound is not None


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
    expected: float  # on each side by chance if nothing differed, were the intervals exact: 2.5 % of the cells
    expected_few: float  # the same for so few seeds: the bootstrap's intervals are too narrow, see `wins`
    winning: tuple[Win, ...]  # those above


def latest(records: Sequence[Record]) -> list[Record]:
    """One record a (task, agent, budget, seed), the last, since a file can hold cells of older code as well.

    Ordered by task (first appearance), budget, agent (first appearance), seed.
    """
    raise NotImplementedError


def by_task(records: Sequence[Record]) -> dict[str, list[Record]]:
    """The records of each task, tasks in the order of appearance."""
    raise NotImplementedError


def best(records: Sequence[Record]) -> list[Best]:
    """The best agent of one task at each budget, budgets ascending."""
    raise NotImplementedError


def areas(records: Sequence[Record]) -> list[Area]:
    """Area under accuracy over log budget of the agents of one task; empty with fewer than two budgets."""
    raise NotImplementedError


def improvements(records: Sequence[Record]) -> list[AgentImprovement]:
    """Probability of improvement over `full` of each agent that shares a cell with it."""
    raise NotImplementedError


def profile(records: Sequence[Record], thresholds: ArrayLike) -> dict[str, Profile]:
    """Share of the paired differences to `full` above each threshold (points), by agent."""
    raise NotImplementedError


def keep_of(spec: str) -> float | None:
    """The share that a spec says to keep: "ucb:keep=0.5+anneal=0.1" -> 0.5; None if it does not say."""
    raise NotImplementedError


def equivalences(records: Sequence[Record], margin: float = MARGIN) -> list[AgainstLarger]:
    """Every agent of one task that keeps a share k against `full` at budget / k."""
    raise NotImplementedError


def savings(records: Sequence[Record]) -> list[Saving]:
    """What every agent of one task saves against `full` at each budget."""
    raise NotImplementedError


def pairs(records: Sequence[Record], first: str, second: str) -> list[Paired]:
    """Paired differences first − second at every budget of one task that both have, ascending."""
    raise NotImplementedError


def wins(records: Sequence[Record]) -> Wins:
    """Count the cells in which an agent is told apart from `full`."""
    raise NotImplementedError
