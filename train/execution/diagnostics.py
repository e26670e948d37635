"""What a run did to its data: visits by sample and class, and what it kept, by difficulty and over time."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

TIMES = 20  # equal parts of the budget
RANKS = 10  # equal parts of the samples, by difficulty
EXAMPLES = 8  # samples named in each group


class Diary:
    """Counts what is trained on.

    Args:
        n: number of training samples N.
    """

    def __init__(self, n: int):
        self.choices = 0  # steps in which something was dropped
        self.times_kept = np.zeros(n, dtype=np.int64)  # in these
        self._shares = np.zeros((TIMES, RANKS))  # summed over the steps of each part of the budget
        self._steps = np.zeros(TIMES, dtype=np.int64)

    def record(self, difficulty: NDArray, spent: float, kept: NDArray[np.bool_]) -> None:
        """Enter one step; one that trains on nothing chooses nothing.

        Args:
            difficulty: (N,) mean losses that the agent saw.
            spent: share of the budget used before the step, in [0, 1].
            kept: (N,) what was trained on.
        """
        if not kept.any():
            return
        order = np.argsort(difficulty, kind="stable")
        time = min(int(spent * TIMES + 1e-5), TIMES - 1)  # spent is float32: 0.7 arrives as 0.69999999
        self._shares[time] += [part.mean() if len(part) else np.nan for part in np.array_split(kept[order], RANKS)]
        self._steps[time] += 1
        if not kept.all():
            self.choices += 1
            self.times_kept += kept

    def kept_by_difficulty(self) -> list[list[float | None] | None]:
        """Return the shares kept: a row each of TIMES parts of the budget, a column each of RANKS parts of the samples.

        The easiest samples come first. A part of the budget in which no step began, or without samples, is None.
        """
        sums = zip(self._shares, self._steps, strict=True)
        return [plain(shares / steps) if steps else None for shares, steps in sums]

    def sometimes(self, labels: NDArray) -> dict[str, Any]:
        """Divide the samples into always, sometimes and never kept, over the steps that dropped something.

        "Sometimes samples" are those of Raju et al., arXiv 2111.12621: important in a part of the training only.

        Args:
            labels: (N,) class indices.

        Returns:
            "always", "sometimes", "never": shares of N, None if no step dropped anything; "examples": for each
            of the three up to EXAMPLES [index, share of the steps in which it was kept], see `draw_over_classes`.
        """
        groups = ("always", "sometimes", "never")
        if not self.choices:
            return {**dict.fromkeys(groups), "examples": {group: [] for group in groups}}
        share = self.times_kept / self.choices
        among = {"always": share == 1.0, "sometimes": (share > 0.0) & (share < 1.0), "never": share == 0.0}
        rng = np.random.default_rng(0)
        examples = {
            group: [[int(i), round(float(share[i]), 4)] for i in draw_over_classes(mask, labels, EXAMPLES, rng)]
            for group, mask in among.items()
        }
        return {**{group: float(mask.mean()) for group, mask in among.items()}, "examples": examples}


def draw_over_classes(mask: NDArray[np.bool_], labels: NDArray, count: int, rng: np.random.Generator) -> NDArray:
    """Draw up to `count` of the samples in `mask` (N,) at random: one of each class, then a second of each, and so on.

    Without turns, the first samples of a folder of images are all of its first class.
    """
    drawn = rng.permutation(np.flatnonzero(mask))
    by_class = np.argsort(labels[drawn], kind="stable")
    _, first, sizes = np.unique(labels[drawn][by_class], return_index=True, return_counts=True)
    turn = np.empty(len(drawn), np.int64)
    turn[by_class] = np.arange(len(drawn)) - np.repeat(first, sizes)
    return drawn[np.argsort(turn, kind="stable")][:count]


def plain(values: NDArray) -> list[float | None]:
    """Return numbers for JSON: four decimals, and None for NaN."""
    return [None if np.isnan(value) else round(float(value), 4) for value in values]


def quantiles(visits: NDArray) -> list[int]:
    """Return the visits, of (N,), at 0, 5, ..., 100 % of the samples in ascending order."""
    return [int(q) for q in np.quantile(visits, np.linspace(0.0, 1.0, 21), method="nearest")]


def gini(visits: NDArray) -> float:
    """Return the Gini coefficient of counts (N,): 0 all equal, 1 - 1/N all on one sample; 0 without visits."""
    ordered = np.sort(visits.astype(np.float64))
    n, total = len(ordered), ordered.sum()
    if total == 0.0:
        return 0.0
    return float((2 * np.arange(1, n + 1) - n - 1) @ ordered / (n * total))


def relative_visits(visits: NDArray, mask: Tensor | None) -> float | None:
    """Return the mean visits of the samples of a mask (N,), relative to those of all; None without such or visits."""
    some = np.zeros(len(visits), np.bool_) if mask is None else mask.cpu().numpy()
    return float(visits[some].mean() / visits.mean()) if some.any() and visits.any() else None


def class_visits(visits: NDArray, labels: NDArray, classes: int) -> NDArray[np.float64]:
    """Return how often each class was visited, relative to its share of the data; (classes,).

    Args:
        visits: (N,) counts.
        labels: (N,) class indices. Classes without samples are NaN.
        classes: how many there are.

    Returns:
        1 is in proportion to the data, and what no visits at all give.
    """
    samples = np.bincount(labels, minlength=classes)
    if not visits.any():
        return np.where(samples > 0, 1.0, np.nan)
    with np.errstate(invalid="ignore"):
        mean = np.bincount(labels, weights=visits, minlength=classes) / samples  # 0 / 0 is NaN
    return mean / np.mean(visits, dtype=np.float64)
