"""RePB: random pruning of the easier samples, with weights from how often each was trained on."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from prune_env import select
from prune_env.memory import Remembers
from prune_env.sampling import Action, Mask, Observation, check

MAX_WEIGHT = 10.0  # the environment's bound


@dataclass(kw_only=True)
class RePB(Remembers):
    """RePB, "Inconsistency Biases in Dynamic Data Pruning" (ICLR 2026, OpenReview Zw1Uw7u6Su); reconstructed.

    D_1 is all data. D_{t+1} holds a sample of D_t whose loss is at least μ, one of D_t below μ with probability
    1-ρ, and one outside D_t with probability 1-ρ. In step t+1 its weight is t/N_i(t), N_i(t) being how many of
    D_1..D_t it was in, at most 10.

    N_i/t estimates p_i, the share of steps that i is trained in, so that the expected weight p_i t/N_i is about 1
    and the expected gradient that of all data. It lags where p_i changes, and in the first steps weights sum to
    less than N: a sample that is always below μ is in every later step with probability 1-ρ, whatever came
    before, so its expected weight in step t+1 is 1-ρ^t but for the bound, and its weight tends to InfoBatch's
    1/(1-ρ).

    The rule is taken from summaries, for paper and code could not be had (?). In the paper μ is the mean over a
    window of one or a few batches, to compare losses of one state of the model; an observation does not tell the
    batches, so here it is the mean over D_t, last losses all of the one step. ρ is not told (?): 0.5 is
    InfoBatch's r. No last phase on all data is told of. There is no keep: it drops about ρ times all but those
    of D_t that are at least at μ.

    Args:
        rho: probability ρ that a sample below the mean is dropped, in [0, 0.9].

    Raises:
        ValueError: a hyper-parameter out of range.
    """

    remembers = ("_last", "_counts", "_step")

    rho: float = 0.5
    _last: Mask = field(init=False, repr=False, compare=False)  # D_t
    _counts: NDArray[np.int64] = field(init=False, repr=False, compare=False)  # N_i(t)
    _step: int = field(init=False, repr=False, compare=False)  # t

    def __post_init__(self) -> None:
        check("rho", self.rho, "[0, 0.9]")
        self.reset()

    def reset(self) -> None:
        self._last = np.empty(0, dtype=np.bool_)

    def __call__(self, observation: Observation, rng: np.random.Generator) -> Action:
        loss = observation["loss"]
        if len(loss) != len(self._last):  # the first step, or another data set
            mask = np.ones(len(loss), dtype=np.bool_)
            self._counts, self._step = np.zeros(len(loss), dtype=np.int64), 0
        else:
            # in float64 the mean never exceeds the largest loss, so D is never empty
            hard = self._last & (loss >= loss.mean(dtype=np.float64, where=self._last))
            mask = hard | (rng.random(len(loss)) >= self.rho)
        weight = mask * np.minimum(self._step / np.maximum(self._counts, 1), MAX_WEIGHT) if self._step else mask
        self._last, self._counts, self._step = mask, self._counts + mask, self._step + 1
        return select(weight)
