"""Bandit rules of Raju, Daruwalla, Lipasti 2021, "Accelerating Deep Learning with Dynamic Data Pruning".

arXiv 2111.12621. Samples are arms and the loss u at a visit is the pay-off, tracked by the running mean
m <- (1-a) m + a u and the running variance v <- (1-a) v + a (u-m)² with the old m. Both are the observation's
`loss_mean` and `loss_var`, so the paper's a = 0.8 is the environment's `ema`.

The paper reselects every T_p = 10 of its 200 epochs (?), 5 % of the run. Here the period is a share of the
*budget*, which is 10 epochs at any keep when the budget is that of 200 such epochs.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from prune_env import select
from prune_env.memory import Remembers
from prune_env.sampling import Action, Mask, Observation, check, fill, n_keep, top_k_mask


class Hold(Remembers):
    """Repeats a subset until floor(spent / period) changes; a period of 0 chooses in every step."""

    remembers = ("key", "mask")

    def __init__(self, period: float) -> None:
        self.period = period
        self.key: tuple[int, int] | None = None
        self.mask: Mask | None = None

    def __call__(self, observation: Observation, choose: Callable[[], Mask]) -> Mask:
        if self.period == 0:
            return choose()
        # spent is float32: 0.35 arrives as 0.34999999, which is still the seventh twentieth
        slot = math.floor(float(observation["spent"][0]) / self.period * (1 + 1e-6))
        key = (len(observation["loss"]), slot)  # another N is another data set
        if self.mask is None or key != self.key:
            self.key, self.mask = key, choose()
        return self.mask


@dataclass(kw_only=True)
class EpsilonGreedy(Remembers):
    """Epsilon-greedy: the round((1-ε)kN) largest m, and uniformly drawn others up to round(kN).

    Equal means (all log C before the first visit) are drawn uniformly. arXiv 2111.12621; ε = 0.1.

    Args:
        keep: share k kept in a step, in (0, 1].
        epsilon: share ε of the kept samples that is drawn, in [0, 1].
        period: share of the budget for which a subset is held, in [0, 1]; 0 reselects in every step.

    Raises:
        ValueError: a hyper-parameter out of range.
    """

    remembers = ("_held",)

    keep: float = 0.5
    epsilon: float = 0.1
    period: float = 0.05
    _held: Hold = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        check("keep", self.keep, "(0, 1]")
        check("epsilon", self.epsilon, "[0, 1]")
        check("period", self.period, "[0, 1]")
        self.reset()

    def reset(self) -> None:
        self._held = Hold(self.period)

    def __call__(self, observation: Observation, rng: np.random.Generator) -> Action:
        k = n_keep(self.keep, len(observation["loss"]))

        def choose() -> Mask:
            greedy = top_k_mask(observation["loss_mean"], round((1 - self.epsilon) * k), rng)
            return fill(greedy, k, rng)

        return select(self._held(observation, choose))


@dataclass(kw_only=True)
class UCB(Remembers):
    """UCB as the paper defines it: the round(kN) largest m + c·v, with the variance and no log t / n term.

    Equal scores are drawn uniformly. arXiv 2111.12621; c = 1.

    Args:
        keep: share k kept in a step, in (0, 1].
        c: weight of the variance, at least 0.
        period: share of the budget for which a subset is held, in [0, 1]; 0 reselects in every step.

    Raises:
        ValueError: a hyper-parameter out of range.
    """

    remembers = ("_held",)

    keep: float = 0.5
    c: float = 1.0
    period: float = 0.05
    _held: Hold = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        check("keep", self.keep, "(0, 1]")
        check("c", self.c, "[0, inf)")
        check("period", self.period, "[0, 1]")
        self.reset()

    def reset(self) -> None:
        self._held = Hold(self.period)

    def score(self, observation: Observation) -> NDArray[np.float32]:
        """(N,) upper confidence bound of each sample's loss."""
        return observation["loss_mean"] + np.float32(self.c) * observation["loss_var"]

    def __call__(self, observation: Observation, rng: np.random.Generator) -> Action:
        k = n_keep(self.keep, len(observation["loss"]))
        return select(self._held(observation, lambda: top_k_mask(self.score(observation), k, rng)))


class UCB1(UCB):
    """UCB1 of the textbooks (Auer et al. 2002): the round(kN) largest m + c·sqrt(ln(1 + Σn) / (1 + n)).

    n is a sample's number of visits and Σn that of all samples. Not a rule of the paper: it is here because
    "UCB" makes one expect it. Arguments and errors as for `UCB`.
    """

    def score(self, observation: Observation) -> NDArray[np.float32]:
        """(N,) upper confidence bound of each sample's loss."""
        visits = observation["visits"]
        log_total = np.log1p(visits.sum(dtype=np.float64)).astype(np.float32)
        return observation["loss_mean"] + np.float32(self.c) * np.sqrt(log_total / (1 + visits))
