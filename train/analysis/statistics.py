"""Compute means over seeds with their intervals, areas over budgets, and verdicts of losslessness.

Every interval is the 95 % interval of a mean by Student's t. Its units are the seeds, since only they are independent:
a seed fixes the initial weights, the order and the augmentation of all agents, at all budgets and on all tasks. Over
several cells (task, budget) each seed gives one number, its mean over the cells.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

LEVEL = 0.95
MARGIN = 0.2  # points below tuned `full` that still count as lossless
FEW_SEEDS = 5  # fewer say little about an average over seeds
ROUNDING = 1e-9  # points: far below a test sample's, far above a float's; an end on the margin is on neither side of it

Interval = tuple[float, float]
Verdict = Literal["lossless", "lossy", "undecided"]


@dataclass(frozen=True)
class Mean:
    """A mean over seeds, at least one."""

    mean: float
    interval: Interval | None  # 95 %; None from one seed, which tells nothing about the spread
    seeds: int


def mean_of(values: ArrayLike) -> Mean:
    """Return the mean of `values` (S,), one a seed, in their unit."""
    values = np.asarray(values, dtype=np.float64)
    return Mean(float(values.mean()), mean_interval(values) if len(values) > 1 else None, len(values))


def mean_interval(values: ArrayLike) -> tuple[Any, Any]:
    """Return the lower and upper ends, each (...), of the means over seeds of `values` (S, ...), S >= 2."""
    from scipy.special import stdtrit  # a quarter of a second, which programs with one seed need not wait for

    values = np.asarray(values, dtype=np.float64)
    seeds, mean = len(values), values.mean(axis=0)
    reach = stdtrit(seeds - 1, (1 + LEVEL) / 2) * values.std(axis=0, ddof=1) / np.sqrt(seeds)
    return mean - reach, mean + reach


def seed_means(cells: Sequence[Mapping[int, float]]) -> list[float]:
    """Return one number a seed: its mean over `cells`, which map seeds to values. Seeds ascending.

    Only the seeds that every cell has count, so that cells weigh the same. `mean_of` the result has the interval
    over several tasks and budgets.
    """
    common = sorted(set.intersection(*map(set, cells)))
    return [float(np.mean([cell[seed] for cell in cells])) for seed in common]


def log_budget_area(budgets: ArrayLike, accuracies: ArrayLike) -> NDArray[np.float64]:
    """Return the mean accuracy over log budget, (...), in the unit of `accuracies` (..., B).

    It is the area by trapezoids over log(last / first). `budgets` (B,), B >= 2, are in any unit of compute, ascending.
    Each accuracy is the last of its own completed run.
    """
    accuracies = np.asarray(accuracies, dtype=np.float64)
    widths = np.diff(np.log(budgets))
    return ((accuracies[..., 1:] + accuracies[..., :-1]) / 2 * widths).sum(axis=-1) / widths.sum()


def lossless(difference: Mean) -> Verdict:
    """Say whether an agent loses accuracy to tuned `full` at the larger budget.

    `difference` is agent − full in points, paired by seed. The agent is "lossless" when the whole interval lies above
    −MARGIN points, "lossy" when all of it lies below, and otherwise "undecided", as always with fewer than FEW_SEEDS
    seeds. Of agents that lose exactly the margin, 2.5 % are called lossless (normal differences).
    """
    if difference.seeds < FEW_SEEDS:
        return "undecided"
    verdicts: dict[int, Verdict] = {1: "lossless", 0: "undecided", -1: "lossy"}
    return verdicts[side(difference.interval, -MARGIN)]


def side(interval: Interval | None, reference: float = 0.0) -> int:
    """Return 1 if the interval lies above the reference, -1 if below, 0 if it touches it or there is none."""
    if interval is None:
        return 0
    return int(interval[0] > reference + ROUNDING) - int(interval[1] < reference - ROUNDING)
