"""InfoBatch: random pruning of the easier samples, with weights that keep the gradient unbiased."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from prune_env import select
from prune_env.sampling import Action, Observation, all_samples, check, fill, in_last


@dataclass(kw_only=True, frozen=True)
class InfoBatch:
    """InfoBatch (Qin et al., arXiv 2303.04947).

    W = {i seen: u_i < mean of u over the seen}, u the last loss. Of W a random share 1-r is kept with weight
    1/(1-r); every other sample is kept with weight 1. The expected weight of each sample is 1, so the
    expected gradient is that of the full data. In the last `anneal` of the budget all data is used.

    (1-r)|W| is rounded up or down at random, which keeps the expectation exact. Samples that were never
    visited are always kept; their initial loss is not a measurement. There is no keep: it drops about
    r|W| samples, and |W| depends on the losses.

    Args:
        r: share of W that is dropped, in [0, 0.9]; a kept one's weight 1/(1-r) is at most 10.
        anneal: share of the budget at the end that trains on all data, in [0, 1].

    Raises:
        ValueError: a hyper-parameter out of range.
    """

    r: float = 0.5
    anneal: float = 0.125

    def __post_init__(self) -> None:
        check("r", self.r, "[0, 0.9]")
        check("anneal", self.anneal, "[0, 1]")

    def __call__(self, observation: Observation, rng: np.random.Generator) -> Action:
        loss, seen = observation["loss"], observation["visits"] > 0
        if in_last(observation, self.anneal) or not seen.any():
            return all_samples(observation)
        # in float64 the mean never exceeds the largest loss, so W is never everything
        easy = seen & (loss < loss.mean(dtype=np.float64, where=seen))
        count = np.count_nonzero(easy)
        kept = int((1 - self.r) * count + rng.random())
        mask = fill(~easy, len(loss) - count + kept, rng)
        # by a product: a choice element by element takes ten times as long where it follows no pattern
        weight = np.float32(1 / (1 - self.r)) * (mask & easy)
        weight += mask & ~easy
        return select(weight)
