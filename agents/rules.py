"""Rules of a few numbers: what learned policies choose in every step, here fixed or drawn at random."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from prune_env import select
from prune_env.policy.rules import RULE_PARAMETERS, SMALLEST_KEEP, apply_rule, keep_parameter
from prune_env.sampling import Action, Observation, check


@dataclass(kw_only=True, frozen=True)
class Rule:
    """The same rule in every step; see `prune_env.policy.rules.RULE_PARAMETERS` for what it is made of.

    Args:
        keep: share kept, in [0.1, 1].
        loss, middle, volatility, age, randomness, weighting, balance, need, wrong, right: numbers in [-1, 1].
        mixup: share of the kept samples that are blended, in [0, 1].

    Raises:
        ValueError: a number out of range.
    """

    keep: float = 0.5
    loss: float = 0.0
    middle: float = 0.0
    volatility: float = 0.0
    age: float = 0.0
    randomness: float = 0.0
    weighting: float = 0.0
    mixup: float = 0.0
    balance: float = 0.0
    need: float = 0.0
    wrong: float = 0.0
    right: float = 0.0

    def __post_init__(self) -> None:
        for name in RULE_PARAMETERS:
            check(name, getattr(self, name), {"keep": f"[{SMALLEST_KEEP}, 1]", "mixup": "[0, 1]"}.get(name, "[-1, 1]"))

    @property
    def numbers(self) -> np.ndarray:
        """The rule parameters (R,), as policies choose them."""
        given = vars(self) | {"keep": keep_parameter(self.keep), "mixup": 2.0 * self.mixup - 1.0}
        return np.array([given[name] for name in RULE_PARAMETERS])

    def __call__(self, observation: Observation, rng: np.random.Generator) -> Action:
        return _act(observation, self.numbers, rng)


@dataclass(frozen=True)
class RandomRule:
    """A rule of numbers drawn uniformly in every step: what a policy that has learned nothing does."""

    def __call__(self, observation: Observation, rng: np.random.Generator) -> Action:
        numbers = rng.uniform(-1.0, 1.0, len(RULE_PARAMETERS))
        return _act(observation, numbers, rng)


def _act(observation: Observation, numbers: np.ndarray, rng: np.random.Generator) -> Action:
    action = apply_rule(observation, numbers, rng.random((len(observation["loss"]), 2)))
    return select(action["weight"], action["mixup"])
