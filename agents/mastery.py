"""Rules that stop training on what is mastered, and watch it by a forward pass alone: IES and progressive dropout."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from prune_env import select
from prune_env.memory import Remembers
from prune_env.sampling import Action, Observation, all_samples, check, check_whole, latest


@dataclass(kw_only=True)
class IES(Remembers):
    """IES, instance-dependent early stopping (Yuan et al., arXiv 2502.07547).

    A sample is mastered while the mean of the last w values of |u_t - 2 u_{t-1} + u_{t-2}| is below δ, u_t being its
    loss in step t. The mastered are not trained on. A forward pass alone (`score`) measures them at the end of the
    step, so that one whose loss moves again comes back. Weights are 1. Where all are mastered, all are trained on.

    In a long run the rate decays, nothing moves, and all but a few are mastered: then most of the budget goes into
    the forward passes, which are charged. The authors count the saved backward passes.

    The first w + 2 steps train on all data, as so many losses are needed; the authors' code waits one step more. It
    has w = 3, and δ = 0.001 for CIFAR-10 and twice that for CIFAR-100. A sample that the last step did not measure,
    since Mixup blended it, is trained on. There is no keep.

    Args:
        threshold: δ, above 0.
        window: w, a whole number of at least 1.

    Raises:
        ValueError: a hyper-parameter out of range.
    """

    remembers = ("_losses",)

    threshold: float = 0.001
    window: int = 3
    _losses: NDArray[np.float32] = field(init=False, repr=False, compare=False)  # (steps up to w + 2, N): u_t

    def __post_init__(self) -> None:
        check("threshold", self.threshold, "(0, inf)")
        check_whole("window", self.window, "[1, inf)")
        self.reset()

    def reset(self) -> None:
        self._losses = np.empty((0, 0), dtype=np.float32)

    def __call__(self, observation: Observation, rng: np.random.Generator) -> Action:
        loss, length = observation["loss"], self.window + 2
        if len(loss) != self._losses.shape[1]:  # the first step, or another data set
            self._losses = np.empty((0, len(loss)), dtype=np.float32)
            return all_samples(observation)
        self._losses = latest(self._losses, loss, length)
        if len(self._losses) < length:
            return all_samples(observation)
        moves = np.abs(np.diff(self._losses, n=2, axis=0)).mean(axis=0)
        mastered = (moves < self.threshold) & (observation["age"] == 0)
        return all_samples(observation) if mastered.all() else select(~mastered, score=mastered)


@dataclass(kw_only=True, frozen=True)
class PDD:
    """Progressive data dropout by difficulty, DBPD (Sathiyanarayanan et al., arXiv 2505.22342).

    A step trains on the samples whose label has a probability p = exp(-loss) below τ, and on those never seen. A
    forward pass alone (`score`) measures the others at the end of the step, so that a forgotten one comes back.
    The last pass of the budget is the revision: it trains on all data. It begins with the step after which another
    step as the one at hand would leave less than `revision`. Weights are 1. Where all have p ≥ τ, all are
    trained on.

    The authors' code measures each batch right before it trains on a part of it, and their count of samples used
    leaves these forward passes out. Here they are charged: 5/8 of a step's compute where a sixth is trained on.
    There is no keep.

    Args:
        threshold: τ, in (0, 1]. The authors' example has 0.3.
        revision: passes over all data at the end, at least 0. The authors' example has the last one of 30 epochs.

    Raises:
        ValueError: a hyper-parameter out of range.
    """

    threshold: float = 0.3
    revision: float = 1.0

    def __post_init__(self) -> None:
        check("threshold", self.threshold, "(0, 1]")
        check("revision", self.revision, "[0, inf)")

    def __call__(self, observation: Observation, rng: np.random.Generator) -> Action:
        hard = (observation["visits"] == 0) | (np.exp(-observation["loss"]) < self.threshold)
        left = float(observation["budget"][0] * (1 - observation["spent"][0]))  # passes
        cost = (1 + 2 * hard.mean()) / 3  # a forward pass alone is a third
        if left - cost < self.revision or not hard.any():
            return all_samples(observation)
        return select(hard, score=~hard)
