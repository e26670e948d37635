"""Statistics of the benchmark: intervals over seeds, area over budgets, losslessness.

Every interval is the 95 % interval of a mean by Student's t. Its units are the seeds, since only they are independent:
a seed fixes the initial weights, the order and the augmentation of all agents, at all budgets and on all tasks. Over
several cells (task, budget) each seed gives one number, its mean over the cells.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

LEVEL = 0.95
MARGIN = 0.2  # points below tuned `full` that still count as lossless
FEW_SEEDS = 5  # fewer say little about an average over seeds
ROUNDING = 1e-9  # points: far below a test sample's, far above a float's; an end on the margin is on neither side of it

Interval = tuple[float, float]
Verdict = Literal["lossless", "lossy", "undecided"]


class Equivalence(NamedTuple):
    """Whether an agent loses accuracy; mean difference to `full` and its interval in points."""

    verdict: Verdict
    difference: float
    interval: Interval


def mean_interval(values: ArrayLike) -> Interval:
    """Return the interval (low, high) of the mean of `values` (S,), one a seed, in their unit.

    One value gives (value, value), since nothing is known about the spread.

    Raises:
        ValueError: no value, more than one axis, or a value that is not finite.
    """
    low, high = mean_intervals(_vector(values, "values"))
    return float(low), float(high)


def mean_intervals(values: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the lower and upper ends, each (...), of the means over seeds of `values` (S, ...)."""
    seeds, mean = len(values), values.mean(axis=0)
    if seeds == 1:
        return mean, mean
    from scipy.special import stdtrit  # a quarter of a second, which programs with one seed need not wait for

    reach = stdtrit(seeds - 1, (1 + LEVEL) / 2) * values.std(axis=0, ddof=1) / np.sqrt(seeds)
    return mean - reach, mean + reach


def seed_means(cells: Sequence[Mapping[int, float]]) -> list[float]:
    """Return one number a seed: its mean over `cells`, which map seeds to values. Seeds ascending.

    Only the seeds that every cell has count, so that cells weigh the same. `mean_interval` of the result is the
    interval over several tasks and budgets.

    Raises:
        ValueError: no cell, or no seed that all cells have.
    """
    common = sorted(set.intersection(*(set(cell) for cell in cells))) if cells else []
    if not common:
        raise ValueError(f"{len(cells)} cells have no seed in common; they need one at least")
    return [float(np.mean([cell[seed] for cell in cells])) for seed in common]


def log_budget_area(budgets: ArrayLike, accuracies: ArrayLike) -> np.float64 | NDArray[np.float64]:
    """Return the mean accuracy over log budget, (...), in the unit of `accuracies` (..., B).

    It is the area by trapezoids over log(last / first). `budgets` (B,) are in any unit of compute, ascending. Each
    accuracy is the last of its own completed run.

    Raises:
        ValueError: fewer than two budgets, budgets that are not positive or not ascending, another number of accuracies
            than of budgets, or a number that is not finite.
    """
    budgets = _vector(budgets, "budgets")
    accuracies = np.asarray(accuracies, dtype=np.float64)
    if len(budgets) < 2:
        raise ValueError(f"there must be at least two budgets for an area, not {budgets.tolist()}")
    if budgets.min() <= 0 or np.any(budgets[1:] <= budgets[:-1]):
        raise ValueError(f"budgets must be positive and ascending without duplicates, not {budgets.tolist()}")
    if accuracies.ndim == 0 or accuracies.shape[-1] != len(budgets):
        raise ValueError(f"accuracies have shape {accuracies.shape}; the last axis must be the {len(budgets)} budgets")
    _check_finite(accuracies, "accuracies")
    widths = np.diff(np.log(budgets))
    return ((accuracies[..., 1:] + accuracies[..., :-1]) / 2 * widths).sum(axis=-1) / widths.sum()


def lossless(differences: ArrayLike, margin: float = MARGIN) -> Equivalence:
    """Say whether an agent loses accuracy to tuned `full` at the larger budget, from `differences` (S,) in points.

    A difference is agent − full with the same seed. The agent is "lossless" when the whole interval lies above
    −`margin` points, "lossy" when all of it lies below, and otherwise "undecided", as always with fewer than five
    seeds. Of agents that lose exactly the margin, 2.5 % are called lossless (normal differences).

    Raises:
        ValueError: no difference, more than one axis, a difference that is not finite, or a margin below 0.
    """
    values = _vector(differences, "differences")
    if not 0 <= margin < np.inf:
        raise ValueError(f"the margin must be finite and at least 0 points, not {margin}")
    low, high = mean_interval(values)
    verdict: Verdict = "undecided"
    if len(values) >= FEW_SEEDS and side((low, high), -margin):
        verdict = "lossless" if side((low, high), -margin) > 0 else "lossy"
    return Equivalence(verdict, float(values.mean()), (low, high))


def side(interval: Interval | None, reference: float = 0.0) -> int:
    """Return 1 if the interval lies above the reference, -1 if below, 0 if it touches it or there is none."""
    if interval is None:
        return 0
    return int(interval[0] > reference + ROUNDING) - int(interval[1] < reference - ROUNDING)


def _vector(values: ArrayLike, name: str) -> NDArray[np.float64]:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or not len(array):
        raise ValueError(f"{name} have shape {array.shape}; there must be one axis with at least one value")
    _check_finite(array, name)
    return array


def _check_finite(array: NDArray[np.float64], name: str) -> None:
    places = np.argwhere(~np.isfinite(array))
    if len(places):
        found = ", ".join(f"{array[tuple(place)]} at {place.tolist()}" for place in places[:5])
        raise ValueError(f"{name} must be finite; there is {found}{', …' if len(places) > 5 else ''}")
