"""SeTa: random thinning, then a window over groups of like loss that slides from easy to hard."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from prune_env import select
from prune_env.memory import Remembers
from prune_env.sampling import Action, Observation, check, in_last, n_keep, uniform

STARTS = 10  # runs of k-means


@dataclass(kw_only=True)
class SeTa(Remembers):
    """SeTa, "Scale Efficient Training for Large Datasets" (Zhou et al., arXiv 2503.13385).

    Step t = 0, 1, ... draws round((1-r)N) samples uniformly and sorts the seen ones among them into G groups by
    k-means of their last loss. With W = round(window G) it keeps groups s+1..s+W in the order of their means,
    s = t mod (G-W+1): easy to hard, and again. Weights are 1. Step 0 and the last `anneal` of the budget keep
    all that are drawn. All this follows the authors' code; the paper is said to round window G up (?), which
    would leave no group out at the code's own setting for CIFAR, the default here.

    Samples not yet seen, about r of them in step 1, are in every window if drawn; the authors' code gives them
    a loss of 3, which mostly puts them into the last group. Where fewer than G losses differ, the groups are of
    equal size in order of loss, equals in random order; a window without samples keeps all that are drawn.

    There is no keep. A cycle keeps (1-r) Σ_g p_g c_g/(G-W+1) of the samples on average, p_g being the share of
    them in group g and c_g the number of windows that group g is in: by default (1-r)(1 - (p_1+p_5)/2), as the
    easiest and the hardest group are left out by turns. Where most losses are near 0, p_1 is most of the data,
    and every other step is a short one.

    Args:
        r: share that the thinning drops, in [0, 0.9]. 0.1, 5 and 0.9 are what the authors' code has for CIFAR,
            "lossless"; for ImageNet it has 0, 5 and 0.6.
        groups: number of groups G, at least 1.
        window: share of the groups in the window, in (0, 1]; at least one is.
        anneal: share of the budget at the end that is only thinned, in [0, 1].

    Raises:
        ValueError: a hyper-parameter out of range.
    """

    remembers = ("_step", "_n")

    r: float = 0.1
    groups: int = 5
    window: float = 0.9
    anneal: float = 0.125
    _step: int = field(init=False, repr=False, compare=False)
    _n: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        check("r", self.r, "[0, 0.9]")
        check("groups", self.groups, "[1, inf)")
        if not isinstance(self.groups, int | np.integer):
            raise ValueError(f"groups must be a whole number, not {self.groups!r}")
        check("window", self.window, "(0, 1]")
        check("anneal", self.anneal, "[0, 1]")
        self.reset()

    def reset(self) -> None:
        self._step, self._n = 0, 0

    def __call__(self, observation: Observation, rng: np.random.Generator) -> Action:
        loss, n = observation["loss"], len(observation["loss"])
        if n != self._n:  # another data set
            self._step, self._n = 0, n
        step, self._step = self._step, self._step + 1
        drawn = uniform(n, n_keep(1 - self.r, n), rng)
        seen = np.flatnonzero(drawn & (observation["visits"] > 0))
        if step == 0 or in_last(observation, self.anneal) or not len(seen):
            return select(drawn)
        seen = rng.permutation(seen)
        seen = seen[np.argsort(loss[seen], kind="stable")]
        ends = group_ends(loss[seen], self.groups, rng)
        width = n_keep(self.window, self.groups)
        start = step % (self.groups - width + 1)
        mask = drawn.copy()
        mask[seen[: ends[start]]] = False
        mask[seen[ends[start + width] :]] = False
        return select(mask if mask.any() else drawn)


def group_ends(losses: NDArray[np.floating], groups: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """(groups + 1,) ends of the groups that k-means makes of sorted `losses` (n,): 0, ..., n.

    The best of STARTS runs of Lloyd's iterations from k-means++ centres; one run often splits the wrong group.
    With fewer than `groups` different losses, equal parts.
    """
    x = losses.astype(np.float64)
    if np.count_nonzero(np.diff(x)) + 1 < groups:
        return np.arange(groups + 1) * len(x) // groups
    total = np.concatenate([[0.0], np.cumsum(x)])

    def between(ends: NDArray[np.int64]) -> float:  # the larger, the smaller the squares within the groups
        return float((np.diff(total[ends]) ** 2 / np.maximum(np.diff(ends), 1)).sum())

    return max((_lloyd(x, total, groups, rng) for _ in range(STARTS)), key=between)


def _lloyd(
    x: NDArray[np.float64], total: NDArray[np.float64], groups: int, rng: np.random.Generator
) -> NDArray[np.int64]:
    """Ends of the groups of sorted x (n,) that one start leads to; total (n+1,) are the sums of x from its start."""
    centres = x[[rng.integers(len(x))]]
    far = np.full(len(x), np.inf)  # squared distance to the nearest centre
    for _ in range(1, groups):
        far = np.minimum(far, (x - centres[-1]) ** 2)
        centres = np.append(centres, rng.choice(x, p=far / far.sum()))
    centres.sort()
    ends = np.empty(0, dtype=np.int64)
    for _ in range(300):
        cuts = np.searchsorted(x, (centres[1:] + centres[:-1]) / 2)
        last, ends = ends, np.concatenate([[0], cuts, [len(x)]])
        if np.array_equal(ends, last):
            break
        counts = np.diff(ends)
        centres = np.where(counts > 0, np.diff(total[ends]) / np.maximum(counts, 1), centres)
    return ends
