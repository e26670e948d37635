"""Statistics of the benchmark: intervals, probability of improvement, profiles, area over budgets, losslessness.

Intervals are 95 % percentile bootstraps from a fixed seed: the same results always print the same numbers. Over several
tasks the runs are resampled within each task (stratified: Agarwal et al. 2021, arXiv 2108.13264), and tasks weigh the
same, whatever their number of runs. The bootstrap does not mend few seeds: of five normal values the interval holds the
mean in 84 % of cases, of ten in 90 %, and values that are all equal give an interval without width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

LEVEL = 0.95
RESAMPLES = 10_000
SEED = 0  # fixed: the same results always print the same table
MARGIN = 0.2  # points below tuned `full` that still count as lossless
FEW_SEEDS = 5  # fewer say little about an average over seeds
ROUNDING = 1e-9  # points: far below a test sample's, far above a float's; an end on the margin is on neither side of it

Interval = tuple[float, float]
Verdict = Literal["lossless", "lossy", "undecided"]


class Improvement(NamedTuple):
    """How probable it is that a run of one agent beats a run of another, ties half: ½ is no improvement."""

    probability: float
    interval: Interval


class Profile(NamedTuple):
    """Share of runs above each threshold with its pointwise interval, each (T,)."""

    share: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]


class Equivalence(NamedTuple):
    """Whether an agent loses accuracy; mean difference to `full` and its interval in points."""

    verdict: Verdict
    difference: float
    interval: Interval


def mean_interval(values: ArrayLike) -> Interval:
    """Interval of the mean of `values` (S,), in their unit: (low, high).

    One value gives the degenerate interval (value, value): nothing is known about the spread.

    Raises:
        ValueError: no value, more than one axis, or a value that is not finite.
    """
    return _ends(_means(np.random.default_rng(SEED), _vector(values, "values")))


def means_interval(values: ArrayLike, statistic: Callable[[NDArray[np.float64]], NDArray[np.float64]]) -> Interval:
    """Interval of a statistic of the means over seeds of `values` (S, C): (low, high), in the statistic's unit.

    `statistic` takes the means of every resample, (RESAMPLES, C), and gives one number each, (RESAMPLES,). Whole rows
    are resampled, so what shares a seed stays together.

    Raises:
        ValueError: no value, other than two axes, or a value that is not finite.
    """
    table = np.asarray(values, dtype=np.float64)
    if table.ndim != 2 or not table.size:
        raise ValueError(f"values have shape {table.shape}; there must be two axes with at least one value")
    _check_finite(table, "values")
    return _ends(statistic(_counts(np.random.default_rng(SEED), len(table)) @ table / len(table)))


def stratified_interval(strata: Sequence[ArrayLike]) -> Interval:
    """Interval of the mean over tasks of the mean over runs, in the unit of the values: (low, high).

    `strata` has the values of a task's runs in each entry, (n,) with n of its own (arXiv 2108.13264).

    Raises:
        ValueError: no task, a task without runs or with more than one axis, or a value that is not finite.
    """
    rng = np.random.default_rng(SEED)
    return _ends(np.mean([_means(rng, values) for values in _tasks(strata, "values")], axis=0))


def probability_of_improvement(x: Sequence[ArrayLike], y: Sequence[ArrayLike]) -> Improvement:
    """P(X > Y) + ½ P(X = Y) of runs of x and y on the same task, mean over tasks (arXiv 2108.13264).

    `x` and `y` have the scores of a task's runs in each entry, (n,) and (m,). All n · m pairs are compared, which makes
    it the Mann–Whitney U / (n m); the runs of x and y are resampled independently. The number that other benchmarks
    report; where x and y share seeds, take `paired_improvement`. Runs of x that all beat those of y give (1, 1).

    Raises:
        ValueError: different numbers of tasks, no task, a task without runs, or a score that is not finite.
    """
    tasks_x, tasks_y = _tasks(x, "x"), _tasks(y, "y")
    if len(tasks_x) != len(tasks_y):
        raise ValueError(f"x has {len(tasks_x)} tasks and y has {len(tasks_y)}; they must be the same tasks")
    rng = np.random.default_rng(SEED)
    wins = [np.heaviside(a[:, None] - b, 0.5) for a, b in zip(tasks_x, tasks_y, strict=True)]  # each (n, m)
    resampled = [((_counts(rng, len(w)) @ w) * _counts(rng, w.shape[1])).sum(axis=1) / w.size for w in wins]
    return Improvement(float(np.mean([w.mean() for w in wins])), _ends(np.mean(resampled, axis=0)))


def paired_improvement(differences: Sequence[ArrayLike]) -> Improvement:
    """P(D > 0) + ½ P(D = 0) of differences D between two agents with the same seed, mean over tasks.

    `differences` has a task's in each entry, (n,), one a seed. The benchmark's choice, since its seeds are paired: what
    a seed does to both agents (initial weights, order, augmentation) cancels here, whereas it is noise in
    `probability_of_improvement`, which compares the runs of all seeds and is drawn towards ½ by it. That one is kept to
    compare with other work and for runs without common seeds. Nothing but wins gives (1, 1), however few they are.

    Raises:
        ValueError: no task, a task without differences, or a difference that is not finite.
    """
    wins = [np.heaviside(values, 0.5) for values in _tasks(differences, "differences")]
    return Improvement(float(np.mean([w.mean() for w in wins])), stratified_interval(wins))


def performance_profile(strata: Sequence[ArrayLike], thresholds: ArrayLike) -> Profile:
    """Share of runs that score above each of `thresholds` (T,), mean over tasks (arXiv 2108.13264).

    `strata` has the scores of a task's runs in each entry, (n,), in the unit of the thresholds. The interval is
    pointwise: it holds for one threshold at a time, not for the curve.

    Raises:
        ValueError: no task, a task without runs, no threshold, or a number that is not finite.
    """
    limits = _vector(thresholds, "thresholds")
    rng = np.random.default_rng(SEED)
    above = [(values[:, None] > limits).astype(np.float64) for values in _tasks(strata, "scores")]  # each (n, T)
    low, high = _quantiles(np.mean([_counts(rng, len(a)) @ a / len(a) for a in above], axis=0))
    return Profile(np.mean([a.mean(axis=0) for a in above], axis=0), low, high)


def log_budget_area(budgets: ArrayLike, accuracies: ArrayLike) -> np.float64 | NDArray[np.float64]:
    """Mean accuracy over log budget, (...), in the unit of `accuracies` (..., B): trapezoids over log(last / first).

    `budgets` (B,) are in any unit of compute, ascending; each accuracy is the last of its own completed run.

    Raises:
        ValueError: fewer than two budgets, budgets that are not positive or not ascending (equal ones neither), another
            number of accuracies than of budgets, or a number that is not finite.
    """
    budgets = _vector(budgets, "budgets")
    accuracies = np.asarray(accuracies, dtype=np.float64)
    if len(budgets) < 2:
        raise ValueError(f"there must be at least two budgets for an area, not {budgets.tolist()}")
    if budgets.min() <= 0:
        raise ValueError(f"budgets must be positive for their logarithm, not {budgets.tolist()}")
    if np.any(budgets[1:] <= budgets[:-1]):
        raise ValueError(f"budgets must be ascending without duplicates, not {budgets.tolist()}")
    if accuracies.ndim == 0 or accuracies.shape[-1] != len(budgets):
        raise ValueError(f"accuracies have shape {accuracies.shape}; the last axis must be the {len(budgets)} budgets")
    _check_finite(accuracies, "accuracies")
    widths = np.diff(np.log(budgets))
    return ((accuracies[..., 1:] + accuracies[..., :-1]) / 2 * widths).sum(axis=-1) / widths.sum()


def area_interval(budgets: ArrayLike, accuracies: ArrayLike) -> Interval:
    """Interval of the mean over seeds of `log_budget_area`, in the unit of `accuracies` (S, B): (low, high).

    Whole seeds are resampled: the runs of one seed share initial weights and order, so they are not independent.

    Raises:
        ValueError: as `log_budget_area`, and for accuracies without seeds or with other than two axes.
    """
    if np.ndim(accuracies) != 2:
        raise ValueError(f"accuracies have shape {np.shape(accuracies)}; there must be two axes, seeds and budgets")
    return mean_interval(log_budget_area(budgets, accuracies))


def lossless(differences: ArrayLike, margin: float = MARGIN) -> Equivalence:
    """Whether an agent loses accuracy to tuned `full` at the larger budget, from `differences` (S,) in points.

    A difference is agent − full with the same seed. The agent is "lossless" when the whole interval lies above
    −`margin` points, "lossy" when all of it lies below, and otherwise "undecided", as always with fewer than five
    seeds. Of agents that lose exactly the margin, five seeds call 8 % lossless, ten seeds 5 % (normal differences).

    Raises:
        ValueError: no difference, more than one axis, a difference that is not finite, or a margin below 0.
    """
    values = _vector(differences, "differences")
    if not 0 <= margin < np.inf:
        raise ValueError(f"the margin must be finite and at least 0 points, not {margin}")
    low, high = mean_interval(values)
    verdict: Verdict = "undecided"
    if len(values) >= FEW_SEEDS and low > -margin + ROUNDING:
        verdict = "lossless"
    elif len(values) >= FEW_SEEDS and high < -margin - ROUNDING:
        verdict = "lossy"
    return Equivalence(verdict, float(values.mean()), (low, high))


def _draws(rng: np.random.Generator, size: int) -> NDArray[np.int64]:
    """Indices of the runs in each resample of `size` runs, (RESAMPLES, size)."""
    return rng.integers(size, size=(RESAMPLES, size))


def _counts(rng: np.random.Generator, size: int) -> NDArray[np.float64]:
    """How often each resample has each of `size` runs, (RESAMPLES, size).

    Counts @ table sums the resampled rows of a table without the memory of taking them, and exactly for halves.
    """
    cells = _draws(rng, size) + size * np.arange(RESAMPLES)[:, None]
    return np.bincount(cells.ravel(), minlength=size * RESAMPLES).reshape(RESAMPLES, size).astype(np.float64)


def _means(rng: np.random.Generator, values: NDArray[np.float64]) -> NDArray[np.float64]:
    return values[_draws(rng, len(values))].mean(axis=1)  # (RESAMPLES,)


def _quantiles(resampled: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.quantile(resampled, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)  # (2, ...) of (RESAMPLES, ...)


def _ends(resampled: NDArray[np.float64]) -> Interval:
    low, high = _quantiles(resampled)
    return float(low), float(high)


def _tasks(strata: Sequence[ArrayLike], name: str) -> list[NDArray[np.float64]]:
    if not len(strata):
        raise ValueError(f"{name} have no task; there must be at least one")
    return [_vector(values, f"{name} of task {task}") for task, values in enumerate(strata)]


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
