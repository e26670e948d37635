"""Statics: score all samples in the first passes, then train on one subset for the rest of the run.

The scoring passes train on all data and are charged as any training, so the scores are paid for out of the same
budget; the papers take them from runs of their own.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from prune_env import select
from prune_env.memory import Remembers
from prune_env.sampling import (
    Action,
    Mask,
    Observation,
    all_samples,
    check,
    check_whole,
    in_last,
    latest,
    n_keep,
    top_k_mask,
)


@dataclass(kw_only=True)
class Static(Remembers):
    """Trains on all data until the share `scoring` of the budget is spent, then freezes what `choose` keeps.

    There is at least one pass over all data. `_sums` holds each sample's sum over these passes of the
    statistic `measured`, as the observation after each of them has it; its order is that of the mean. The
    agents that need another sum have their own `measure`.

    Args:
        keep: share k of the samples, in (0, 1].
        scoring: share of the budget for the scoring passes, in [0, 1], rounded up to whole passes.

    Raises:
        ValueError: a hyper-parameter out of range.
    """

    remembers = ("_sums", "_mask")

    measured: ClassVar[str]
    once: ClassVar[bool] = True  # the subset is chosen once in a run
    keep: float = 0.5
    scoring: float = 0.1
    _sums: NDArray[np.float64] = field(init=False, repr=False, compare=False)
    _mask: Mask | None = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        check("keep", self.keep, "(0, 1]")
        check("scoring", self.scoring, "[0, 1]")
        self.reset()

    def reset(self) -> None:
        self._sums, self._mask = np.empty(0), None

    def __call__(self, observation: Observation, rng: np.random.Generator) -> Action:
        n = len(observation["loss"])
        if n != len(self._sums):  # the first step, or another data set
            self.reset()
            self._sums = np.zeros(n)
        elif self._mask is None:
            self.measure(observation)
            if in_last(observation, 1 - self.scoring):
                return self.freeze(observation, rng)
        return all_samples(observation) if self._mask is None else select(self._mask)

    def measure(self, observation: Observation) -> None:
        """Add what a scoring pass has shown to `_sums`."""
        self._sums += observation[self.measured]

    def freeze(self, observation: Observation, rng: np.random.Generator) -> Action:
        """What follows the scoring passes: the first step with the subset."""
        self._mask = self.choose(observation, n_keep(self.keep, len(self._sums)), rng)
        return select(self._mask)

    def choose(self, observation: Observation, k: int, rng: np.random.Generator) -> Mask:
        """Mask of the k samples to keep; the largest sums, equals drawn uniformly."""
        return top_k_mask(self._sums, k, rng)


@dataclass(kw_only=True)
class EL2N(Static):
    """The round(kN) largest means of ‖p - y‖₂ over the scoring passes (Paul et al., arXiv 2107.07075).

    p is the prediction and y the one-hot label. The paper averages over ten networks, at one epoch early in
    training; here it is the early passes of one. Equals are drawn uniformly.

    Args:
        keep: share k of the samples, in (0, 1].
        scoring: share of the budget for the scoring passes, in [0, 1], rounded up to whole passes.

    Raises:
        ValueError: a hyper-parameter out of range.
    """

    measured = "el2n"


@dataclass(kw_only=True)
class Forgetting(Static):
    """The round(kN) most often forgotten samples (Toneva et al., arXiv 1812.05159).

    A sample is forgotten where a scoring pass finds it right and the next one wrong; one that no pass finds
    right counts as forgotten infinitely often. Equals are drawn uniformly, and most are equal after few
    passes: after one, the samples it found wrong come first and all others are alike.

    Args:
        keep: share k of the samples, in (0, 1].
        scoring: share of the budget for the scoring passes, in [0, 1], rounded up to whole passes.

    Raises:
        ValueError: a hyper-parameter out of range.
    """

    measured = "correct"
    scoring: float = 0.25

    def choose(self, observation: Observation, k: int, rng: np.random.Generator) -> Mask:
        return top_k_mask(np.where(self._sums > 0, observation["forgets"], np.inf), k, rng)


@dataclass(kw_only=True)
class Grand(Static):
    """GraNd-like: the round(kN) largest gradients at one point of training (Paul et al., arXiv 2107.07075).

    After the scoring passes, a step that trains on nothing scores all samples by a forward pass alone, at a
    third of a pass: ‖p - y‖₂ is the norm of the loss's gradient by the logits, thus by the last layer's
    bias, with the same weights for every sample, in evaluation mode. "-like", since GraNd is the norm of the
    gradient by all parameters, which is not observable, averaged over networks. Not at initialisation, where the
    paper's result did not hold up (Kirsch, arXiv 2303.14753). Equals are drawn uniformly.

    Args:
        keep: share k of the samples, in (0, 1].
        scoring: share of the budget for the passes before the forward pass, in [0, 1], rounded up to whole
            passes.

    Raises:
        ValueError: a hyper-parameter out of range.
    """

    remembers = ("_sums", "_mask", "_asked")

    measured = "el2n"
    _asked: bool = field(init=False, repr=False, compare=False)  # for the forward pass

    def reset(self) -> None:
        super().reset()
        self._asked = False

    def freeze(self, observation: Observation, rng: np.random.Generator) -> Action:
        if self._asked:
            return super().freeze(observation, rng)
        self._asked = True
        n = len(self._sums)
        return select(np.zeros(n), score=np.ones(n))

    def choose(self, observation: Observation, k: int, rng: np.random.Generator) -> Mask:
        return top_k_mask(observation["el2n"], k, rng)


@dataclass(kw_only=True)
class CCS(Static):
    """Coverage-centric coreset selection (Zheng et al., arXiv 2210.15809).

    A sample's hardness is minus its mean margin over the scoring passes; the paper's AUM is that mean for margins
    of logits, these are of probabilities. The min(round(βN), N - round(kN)) hardest are dropped, equals drawn
    uniformly. The range of hardness of the others is cut into strata of equal width, which share the budget
    b = round(kN): from the smallest stratum to the largest, each gives min(its size, ⌊b / strata left⌋)
    uniformly drawn samples, which are taken off b. Of strata of equal size the easier comes first.

    Args:
        keep: share k of the samples, in (0, 1].
        scoring: share of the budget for the scoring passes, in [0, 1], rounded up to whole passes.
        beta: share β of the hardest samples that is dropped, in [0, 1); the paper tunes it for each k.
        strata: number of strata, a whole number of at least 1.

    Raises:
        ValueError: a hyper-parameter out of range.
    """

    measured = "margin"
    beta: float = 0.1
    strata: int = 50

    def __post_init__(self) -> None:
        super().__post_init__()
        check("beta", self.beta, "[0, 1)")
        check_whole("strata", self.strata, "[1, inf)")

    def choose(self, observation: Observation, k: int, rng: np.random.Generator) -> Mask:
        n = len(self._sums)
        dropped = top_k_mask(-self._sums, min(round(self.beta * n), n - k), rng)
        left = rng.permutation(np.flatnonzero(~dropped))
        hardness = -self._sums[left]
        low, width = hardness.min(), np.ptp(hardness) or 1.0
        stratum = np.minimum(np.floor((hardness - low) / width * self.strata), self.strata - 1)
        groups = sorted((left[stratum == s] for s in np.unique(stratum)), key=len)  # empty strata give nothing
        mask = np.zeros(n, dtype=np.bool_)
        for i, group in enumerate(groups):
            share = (k - np.count_nonzero(mask)) // (len(groups) - i)
            mask[group[:share]] = True
        return mask


@dataclass(kw_only=True)
class DynUnc(Static):
    """Dyn-Unc: the round(kN) samples whose probability varies most (He et al., arXiv 2306.05175).

    p_t = exp(-loss) is the probability of the label in scoring pass t. U_s is the standard deviation of J
    consecutive p_t, the first of them in pass s, and the score is the mean of U_s over s. Where there are fewer
    passes than J, the one window has all of them. There are at least two passes, since one has no deviation.
    Equals are drawn uniformly.

    The paper takes J = 10 and the passes of a whole training run. A sample that Mixup blends in a pass counts with
    its probability of before.

    Args:
        keep: share k of the samples, in (0, 1].
        scoring: share of the budget for the scoring passes, in [0, 1], rounded up to whole passes.
        window: number J of passes in a window, a whole number of at least 2.

    Raises:
        ValueError: a hyper-parameter out of range.
    """

    remembers = ("_sums", "_mask", "_window")

    scoring: float = 0.25
    window: int = 10
    _window: NDArray[np.float32] = field(init=False, repr=False, compare=False)  # (passes up to J, N): p_t

    def __post_init__(self) -> None:
        super().__post_init__()
        check_whole("window", self.window, "[2, inf)")

    def reset(self) -> None:
        super().reset()
        self._window = np.empty((0, 0), dtype=np.float32)

    def measure(self, observation: Observation) -> None:
        is_first = len(self._window) < self.window  # the first window is not full, or is so with this pass
        self._window = latest(self._window, np.exp(-observation["loss"]), self.window)
        self._sums = self.uncertainty() + (0.0 if is_first else self._sums)

    def uncertainty(self) -> NDArray[np.float64]:
        """(N,) score of the window."""
        return self._window.std(axis=0, dtype=np.float64)

    def freeze(self, observation: Observation, rng: np.random.Generator) -> Action:
        if len(self._window) < 2:
            return all_samples(observation)
        self._window = self._window[:0]  # it has served, and would be in every checkpoint
        return super().freeze(observation, rng)


@dataclass(kw_only=True)
class DUAL(DynUnc):
    """DUAL: uncertain and difficult samples, and easier ones the fewer are kept (Cho et al., arXiv 2502.06905).

    The score S is that of Dyn-Unc with U_s (1 - m_s) in place of U_s, m_s being the mean of p in the window.
    round(kN) samples are drawn without replacement with weights φ(p̄) S. p̄ is the mean of p over all scoring
    passes, and φ the density of Beta(16 - b, b) with b = 15 (1 - μ)(1 - (1-k)^c), μ being the mean of p̄ of the ten
    largest S. The draw is the exponential race in its Gumbel form.

    Formulas and constants are those of the authors' code, with J = 10 and the first 30 of 200 epochs. Its c is 4 for
    CIFAR-100. The default is said to be the paper's for CIFAR-10 (?). p̄ is held between 10⁻⁶ and 1 - 10⁻⁶.

    Args:
        keep: share k of the samples, in (0, 1].
        scoring: share of the budget for the scoring passes, in [0, 1], rounded up to whole passes.
        window: number J of passes in a window, a whole number of at least 2.
        c: how late, as less is kept, the draw turns to easy samples, above 0.

    Raises:
        ValueError: a hyper-parameter out of range.
    """

    remembers = ("_sums", "_mask", "_window", "_total", "_passes")

    scoring: float = 0.15
    c: float = 5.5
    _total: NDArray[np.float64] = field(init=False, repr=False, compare=False)  # (N,): sum of p
    _passes: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        check("c", self.c, "(0, inf)")

    def reset(self) -> None:
        super().reset()
        self._total, self._passes = np.zeros(1), 0

    def measure(self, observation: Observation) -> None:
        super().measure(observation)
        self._total, self._passes = self._total + self._window[-1], self._passes + 1

    def uncertainty(self) -> NDArray[np.float64]:
        return super().uncertainty() * (1 - self._window.mean(axis=0, dtype=np.float64))

    def choose(self, observation: Observation, k: int, rng: np.random.Generator) -> Mask:
        n = len(self._sums)
        p = np.clip(self._total / self._passes, 1e-6, 1 - 1e-6)
        mu = p[top_k_mask(self._sums, min(10, n), rng)].mean()
        b = 15 * (1 - mu) * (1 - (1 - k / n) ** self.c)
        log_weight = (15 - b) * np.log(p) + (b - 1) * np.log(1 - p) + np.log(np.maximum(self._sums, 1e-300))
        return top_k_mask(log_weight + rng.gumbel(size=n), k, rng)
