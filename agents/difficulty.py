"""Rules that order the samples by their loss alone: the hardest, for sure or by chance or of a pool; the middle."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from prune_env import select
from prune_env.memory import Remembers
from prune_env.sampling import Action, Observation, check, check_whole, n_keep, ranks, top_k_mask, uniform


@dataclass(kw_only=True, frozen=True)
class LossTopK:
    """The round(kN) largest last losses; equals are drawn uniformly. The naive rule, after no paper.

    Args:
        keep: share k kept in a step, in (0, 1].

    Raises:
        ValueError: a hyper-parameter out of range.
    """

    keep: float = 0.5

    def __post_init__(self) -> None:
        check("keep", self.keep, "(0, 1]")

    def __call__(self, observation: Observation, rng: np.random.Generator) -> Action:
        loss = observation["loss"]
        return select(top_k_mask(loss, n_keep(self.keep, len(loss)), rng))


@dataclass(kw_only=True, frozen=True)
class RhoLoss:
    """RHO-LOSS (Mindermann et al., arXiv 2206.07137): the round(kN) largest ℓ − r, of last losses ℓ.

    The reference r is the irreducible loss: the loss in a small model that was not trained on the sample. It is large
    where the label is wrong or the image tells little. The paper chooses from each batch by fresh losses; here the
    statistics of training serve, over all samples. Equals are drawn uniformly.

    Args:
        keep: share k kept in a step, in (0, 1].

    Raises:
        ValueError: a hyper-parameter out of range, or an observation without a reference.
    """

    needs_reference: ClassVar[bool] = True
    keep: float = 0.5

    def __post_init__(self) -> None:
        check("keep", self.keep, "(0, 1]")

    def __call__(self, observation: Observation, rng: np.random.Generator) -> Action:
        if "reference" not in observation:
            raise ValueError("rho_loss needs a reference, which prune-env reference can make: reference=FILE")
        loss = observation["loss"]
        return select(top_k_mask(loss - observation["reference"], n_keep(self.keep, len(loss)), rng))


@dataclass(kw_only=True, frozen=True)
class OrderDP:
    """OrderDP (Jin et al., arXiv 2606.08574): of a random pool, the largest last losses.

    A step draws a fresh uniform pool of max(round(sN), round(kN)) samples and keeps the round(kN) of it with the
    largest last losses, a share q = k/s. Equals, and so all samples before their first visit, are drawn
    uniformly.

    Args:
        keep: share k kept in a step, in (0, 1].
        pool: share s of the pool, in [keep, 1]; None is sqrt(keep), so that s = q. At 1 this is `LossTopK`,
            at `keep` it is a random subset.

    Raises:
        ValueError: a hyper-parameter out of range.
    """

    keep: float = 0.5
    pool: float | None = None

    def __post_init__(self) -> None:
        check("keep", self.keep, "(0, 1]")
        if self.pool is None:
            return
        check("pool", self.pool, "(0, 1]")
        if self.pool < self.keep:
            raise ValueError(f"pool must be at least keep, which is {self.keep!r}, not {self.pool!r}")

    def __call__(self, observation: Observation, rng: np.random.Generator) -> Action:
        loss = observation["loss"]
        k = n_keep(self.keep, len(loss))
        share = math.sqrt(self.keep) if self.pool is None else self.pool
        pool = uniform(len(loss), max(k, round(share * len(loss))), rng)
        return select(top_k_mask(np.where(pool, loss, -np.inf), k, rng))


@dataclass(kw_only=True, frozen=True)
class Middle:
    """Prefers the middle: drops what is mastered and what is hopeless. This project's own rule.

    round(kN) samples are drawn without replacement with weights exp(-(z/width)²), z = ln(ρ/(1-ρ)) and ρ in
    (0, 1) the rank of the loss mean. The draw is the exponential race in its Gumbel form: the k largest
    -(z/width)² + Gumbel(0, 1).

    Args:
        keep: share k kept in a step, in (0, 1].
        width: scale of z that is still preferred, above 0; at 1.8 the ranks 0.14 and 0.86 have weight 1/e.

    Raises:
        ValueError: a hyper-parameter out of range.
    """

    keep: float = 0.5
    width: float = 1.8

    def __post_init__(self) -> None:
        check("keep", self.keep, "(0, 1]")
        check("width", self.width, "(0, inf)")

    def __call__(self, observation: Observation, rng: np.random.Generator) -> Action:
        rank = ranks(observation["loss_mean"])  # (N,) float64
        z = np.log(rank / (1 - rank))
        keys = rng.gumbel(size=len(rank)) - (z / self.width) ** 2
        return select(top_k_mask(keys, n_keep(self.keep, len(rank)), rng))


@dataclass(kw_only=True)
class SelectiveBackprop(Remembers):
    """Selective-Backprop with stale losses (Jiang et al., arXiv 1910.00762).

    A sample is kept with probability max(s_min, F(u)^β), u being its last loss and F(u) the share of samples whose
    last loss is at most u; all are kept before their first visit. Draws are independent, and weights 1. Every
    `staleness` steps a forward pass alone (`score`) measures what was dropped, so that a low loss is not believed
    for ever. There is no keep: where all losses differ, 1/(β+1) is kept in expectation, and the largest for certain.

    F is of the last 1,024 losses in the authors' code, here of all samples. β = 3, s_min = 0 and three steps are the
    values of its example.

    Args:
        beta: selectivity β, at least 0; 0 keeps all.
        least: s_min, in [0, 1].
        staleness: number of steps from one forward pass to the next, a whole number of at least 1.

    Raises:
        ValueError: a hyper-parameter out of range.
    """

    remembers = ("_step",)

    beta: float = 3.0
    least: float = 0.0
    staleness: int = 3
    _step: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        check("beta", self.beta, "[0, inf)")
        check("least", self.least, "[0, 1]")
        check_whole("staleness", self.staleness, "[1, inf)")
        self.reset()

    def reset(self) -> None:
        self._step = 0

    def __call__(self, observation: Observation, rng: np.random.Generator) -> Action:
        loss, step = observation["loss"], self._step
        self._step += 1
        share = np.searchsorted(np.sort(loss), loss, side="right") / len(loss)  # F(u)
        chosen = rng.random(len(loss)) < np.maximum(share**self.beta, self.least)
        mask = chosen | (observation["visits"] == 0)
        return select(mask, score=~mask if step and step % self.staleness == 0 else None)
