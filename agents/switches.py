"""What any agent can be wrapped in, so that a gain can be attributed: its amounts alone, annealing, Mixup."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from prune_env import select
from prune_env.memory import Remembers, reset
from prune_env.sampling import Action, Agent, Observation, all_samples, check, in_last, mixup_shares, uniform


@dataclass(kw_only=True)
class SameAmounts(Remembers):
    """As many samples as another agent keeps, drawn uniformly, with weight 1: is it the choice or the schedule?

    The other agent sees what this run has revealed and decides in every step; of its decision only the number
    of samples is used. Its weights and Mixup are not, nor its scoring but for a step that only scores.

    Args:
        agent: the other one.
    """

    remembers = ("agent",)

    agent: Agent

    def reset(self) -> None:
        reset(self.agent)

    def __call__(self, observation: Observation, rng: np.random.Generator) -> Action:
        action = self.agent(observation, rng)
        kept = int(np.count_nonzero(action["weight"]))
        mask = uniform(len(observation["loss"]), kept, rng)
        return select(mask, score=None if kept else action.get("score"))


@dataclass(kw_only=True)
class Switched(Remembers):
    """An agent with annealing, Mixup, or both.

    Args:
        agent: what is wrapped.
        anneal: share of the budget at the end that trains on all data with weight 1 and unmixed, in [0, 1].
        mixup: probability with which a kept sample that the agent does not blend itself is blended, in [0, 1];
            see `prune_env.sampling.mixup_shares`. First visits stay unmixed, so that every sample is measured once.

    Raises:
        ValueError: a share out of range.
    """

    remembers = ("agent",)

    agent: Agent
    anneal: float = 0.0
    mixup: float = 0.0

    def __post_init__(self) -> None:
        check("anneal", self.anneal, "[0, 1]")
        check("mixup", self.mixup, "[0, 1]")

    def reset(self) -> None:
        reset(self.agent)

    def __call__(self, observation: Observation, rng: np.random.Generator) -> Action:
        if in_last(observation, self.anneal):
            return all_samples(observation)
        action = self.agent(observation, rng)
        if self.mixup == 0:  # nothing is drawn: the agent goes on as without the switch
            return action
        mixup = np.asarray(action["mixup"])
        mask = (np.asarray(action["weight"]) > 0) & (mixup == 0) & (observation["visits"] > 0)
        shares = mixup_shares(mask, self.mixup, rng)
        return select(np.asarray(action["weight"], dtype=np.float64), mixup + shares, action.get("score"))
