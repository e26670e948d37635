"""Rules that look at no statistic: all the data, a random part of it, always the same part, rare classes first."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from prune_env import select
from prune_env.memory import Remembers
from prune_env.sampling import Action, Mask, Observation, all_samples, check, n_keep, proportional, systematic, uniform


@dataclass(kw_only=True, frozen=True)
class Full:
    """Every sample, weight 1.

    At a smaller budget this is "train shorter with the schedule compressed": the baseline to beat.
    """

    def __call__(self, observation: Observation, rng: np.random.Generator) -> Action:
        return all_samples(observation)


@dataclass(kw_only=True)
class Random(Remembers):
    """RS2 (Okanovic et al., arXiv 2305.18424): consecutive slices of one permutation.

    Step t keeps the next round(kN) samples of a random permutation. When fewer are left, the slice takes them
    and is filled up from a new permutation, in which the samples that are in the slice already keep their
    places for later. So a step always has round(kN) distinct samples, and each permutation is used up
    exactly once.

    Args:
        keep: share k kept in a step, in (0, 1].
        fresh: draw round(kN) fresh samples in every step instead: "uniform dynamic" of Raju et al.,
            arXiv 2111.12621.

    Raises:
        ValueError: a hyper-parameter out of range.
    """

    remembers = ("_left", "_n")

    keep: float = 0.5
    fresh: bool = False
    _left: NDArray[np.int64] = field(init=False, repr=False, compare=False)  # rest of the permutation
    _n: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        check("keep", self.keep, "(0, 1]")
        check("fresh", self.fresh, bool)
        self.reset()

    def reset(self) -> None:
        self._left, self._n = np.empty(0, dtype=np.int64), 0

    def __call__(self, observation: Observation, rng: np.random.Generator) -> Action:
        n = len(observation["loss"])
        k = n_keep(self.keep, n)
        if self.fresh:
            return select(uniform(n, k, rng))
        if n != self._n:  # another data set: its samples are others
            self.reset()
            self._n = n
        mask = np.zeros(n, dtype=np.bool_)
        mask[self._left[:k]] = True
        self._left = self._left[k:]
        missing = k - np.count_nonzero(mask)
        if missing:
            order = rng.permutation(n)
            first = np.flatnonzero(~mask[order])[:missing]
            mask[order[first]] = True
            self._left = np.delete(order, first)
        return select(mask)


@dataclass(kw_only=True)
class StaticRandom(Remembers):
    """One random subset of round(kN) samples for the whole run.

    Args:
        keep: share k of the samples, in (0, 1].

    Raises:
        ValueError: a hyper-parameter out of range.
    """

    remembers = ("_mask",)

    once: ClassVar[bool] = True  # the subset is chosen once in a run
    keep: float = 0.5
    _mask: Mask = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        check("keep", self.keep, "(0, 1]")
        self.reset()

    def reset(self) -> None:
        self._mask = np.empty(0, dtype=np.bool_)

    def __call__(self, observation: Observation, rng: np.random.Generator) -> Action:
        n = len(observation["loss"])
        if n != len(self._mask):  # the first step, or another data set
            self._mask = uniform(n, n_keep(self.keep, n), rng)
        return select(self._mask)


@dataclass(kw_only=True, frozen=True)
class Balanced:
    """Rare classes first: a fresh draw in every step, with inclusion probability ∝ 1 / (class size)^power.

    Of a class so rare that its probability would be above 1, all samples are kept. With equal classes this is
    `random:fresh=True`. It is the yardstick on unlike classes, and looks at the labels alone. Class-balanced sampling
    (arXiv 1910.09217), but without replacement.

    Args:
        keep: share k kept in a step, in (0, 1].
        power: 1 draws from each class alike, 0 uniformly; in [0, 10].

    Raises:
        ValueError: a hyper-parameter out of range.
    """

    keep: float = 0.5
    power: float = 1.0

    def __post_init__(self) -> None:
        check("keep", self.keep, "(0, 1]")
        check("power", self.power, "[0, 10]")

    def __call__(self, observation: Observation, rng: np.random.Generator) -> Action:
        label = observation["label"]
        k = n_keep(self.keep, len(label))
        size = np.bincount(label)[label] / len(label)  # of the sample's own class
        return select(systematic(proportional(size**-self.power, k), k, rng))


@dataclass(kw_only=True, frozen=True)
class ClassWeights:
    """All samples, with loss weights ∝ 1 / (class size)^power, of mean 1: `balanced` without a draw.

    A weight above 10, the most that an action may have, becomes 10. With equal classes this is `full`. It looks at the
    labels alone. arXiv 1901.05555 compares its own weights with these.

    Args:
        power: 1 gives each class the same sum of weights, 0 each sample the same weight; in [0, 10].

    Raises:
        ValueError: a hyper-parameter out of range.
    """

    power: float = 1.0

    def __post_init__(self) -> None:
        check("power", self.power, "[0, 10]")

    def __call__(self, observation: Observation, rng: np.random.Generator) -> Action:
        label = observation["label"]
        weight = (np.bincount(label)[label] / len(label)) ** -self.power
        return select(np.minimum(weight / weight.mean(), 10.0))
