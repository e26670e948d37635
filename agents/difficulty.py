"""Rules that order the samples by their loss alone: the hardest, the middle."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from agents.parts import Action, Observation, check, hardest, how_many, ranks
from prune_env import select


@dataclass(kw_only=True)
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
        return select(hardest(loss, how_many(self.keep, len(loss)), rng))


@dataclass(kw_only=True)
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
        return select(hardest(keys, how_many(self.keep, len(rank)), rng))
