"""SwDPP, sample-wise dynamic probabilistic pruning: a reconstruction.

Huang, Zhou, Huang, Ding 2024, IEEE Signal Processing Letters 31:3034-3038, doi 10.1109/LSP.2024.3484289. The
paper's formulas are not public. What is public: pruning is a *sampling* problem instead of a hard cut of the
easy samples; a soft selection keeps expressing the learning dynamics and relaxes the selection bias; a
probabilistic Mixup keeps information diverse at high pruning rates. Every formula and constant below is this
project's own reading of those sentences (?).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from prune_env import select
from prune_env.sampling import Action, Observation, blended, check, everything, how_many, in_last, ranks, systematic

MAX_REWEIGHT = 3.0


def difficulty(observation: Observation, dynamics: bool) -> NDArray[np.float64]:
    """(N,) rank g in (0, 1) by which samples are preferred; equals share one rank.

    g = rank(rank(m) + ½ rank(d) + ¼ min(age, 10)/10), m the loss mean, d = sqrt(loss variance).
    Without dynamics g is the rank of the last loss: one measurement, no history and no age.
    """
    if not dynamics:
        return ranks(observation["loss"])
    volatility = ranks(observation["loss_var"])  # the rank of d: the root changes no order
    return ranks(ranks(observation["loss_mean"]) + volatility / 2 + np.minimum(observation["age"], 10) / 40)


def inclusion(observation: Observation, keep: float, tau: float = 0.25, dynamics: bool = True) -> NDArray[np.float64]:
    """(N,) inclusion probabilities π in [0, 1] with sum round(kN).

    π_i = π_min + (1 - π_min) sigmoid((g_i - ½)/τ + b), π_min = k/4, and b by bisection such that the mean of
    π is k = round(keep N)/N. τ = 0 is the hard cut, without the floor π_min: 1 for the round(kN) largest g,
    equals at the border sharing what is left, 0 for the others.

    Args:
        observation: as the environment returns it.
        keep: share kept, in (0, 1].
        tau: temperature τ of the soft selection, in units of rank; 0, or at least 0.001.
        dynamics: see `difficulty`.
    """
    g = difficulty(observation, dynamics)
    kept = how_many(keep, len(g))
    k = kept / len(g)
    if kept == len(g):
        return np.ones(len(g))
    if tau == 0:
        border = np.partition(g, len(g) - kept)[len(g) - kept]
        equal = g == border
        shared = (kept - np.count_nonzero(g > border)) / np.count_nonzero(equal)
        return np.where(equal, shared, np.where(g > border, 1.0, 0.0))
    floor = k / 4
    target = (k - floor) / (1 - floor)  # mean that the sigmoids must have
    tilt = (g - 0.5) / tau

    def sigmoid(b: float) -> NDArray[np.float64]:
        return 0.5 + 0.5 * np.tanh((tilt + b) / 2)  # never overflows

    centre = math.log(target / (1 - target))
    low, high = centre - 0.5 / tau, centre + 0.5 / tau  # |tilt| < ½/τ
    for _ in range(50):
        b = (low + high) / 2
        low, high = (low, b) if sigmoid(b).mean() > target else (b, high)
    return floor + (1 - floor) * sigmoid(low)


@dataclass(kw_only=True)
class SwDPP:
    """Sample-wise dynamic probabilistic pruning (a reconstruction, see the module).

    The first pass is over all data. Then exactly round(kN) distinct samples are drawn with the probabilities
    π of `inclusion`. Mixup: a kept sample is blended with probability q = q_max clip((p - 0.3)/0.6, 0, 1),
    p = 1 - k; the partner's share is min(λ, 1-λ), λ ~ Beta(0.4, 0.4). Nothing is blended at k ≥ 0.7.

    Args:
        keep: share k kept in a step, in (0, 1].
        tau: temperature of the soft selection; 0 is the hard cut, otherwise at least 0.001.
        dynamics: prefer by loss mean, volatility and age; False by the last loss alone.
        q_max: largest probability of Mixup, in [0, 1]; 0 is without.
        reweight: weights min(k/π_i, 3) in place of 1, so that a batch's gradient is that of all data but for
            the bound.
        anneal: share of the budget at the end that trains on all data, in [0, 1]; the variant has 0.125.

    Raises:
        ValueError: a hyper-parameter out of range.
    """

    keep: float = 0.5
    tau: float = 0.25
    dynamics: bool = True
    q_max: float = 0.5
    reweight: bool = False
    anneal: float = 0.0

    def __post_init__(self) -> None:
        check("keep", self.keep, "(0, 1]")
        if self.tau != 0:  # smaller ones are the hard cut, but for rounding errors
            check("tau", self.tau, "[0.001, inf)")
        check("dynamics", self.dynamics, bool)
        check("q_max", self.q_max, "[0, 1]")
        check("reweight", self.reweight, bool)
        check("anneal", self.anneal, "[0, 1]")

    def __call__(self, observation: Observation, rng: np.random.Generator) -> Action:
        n = len(observation["loss"])
        if in_last(observation, self.anneal) or not observation["visits"].any():
            return everything(observation)
        pi = inclusion(observation, self.keep, self.tau, self.dynamics)
        kept = how_many(self.keep, n)
        mask = systematic(pi, kept, rng)
        weight = mask.astype(np.float32)
        if self.reweight:
            weight[mask] = np.minimum(kept / n / pi[mask], MAX_REWEIGHT)
        q = self.q_max * min(max((1 - self.keep - 0.3) / 0.6, 0.0), 1.0)
        return select(weight, blended(mask, q, rng))
