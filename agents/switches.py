"""What an agent can be wrapped in, so that a gain can be attributed: its amounts alone, annealing, Mixup, turns."""

from __future__ import annotations

from dataclasses import dataclass, field, is_dataclass, replace

import numpy as np

from prune_env import select
from prune_env.memory import Remembers, reset
from prune_env.sampling import Action, Agent, Observation, all_samples, check, in_last, mixup_shares, uniform

PHASES = 10  # of an oscillation


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
    """An agent with annealing, Mixup, an oscillating keep, or several of these.

    The oscillation is PODS (Yang et al., arXiv 2605.14773), a reconstruction: what is public is that phases with
    a low share and phases with a high one take turns, low first, with as much data in all as at the share between
    them. Here the first, third, … tenth of the budget has keep - oscillate, the second, fourth, … keep + oscillate;
    the amounts and the number of phases are this project's choice (?). The compute is the budget's in any case.

    Args:
        agent: what is wrapped.
        anneal: share of the budget at the end that trains on all data with weight 1 and unmixed, in [0, 1].
        mixup: probability with which a kept sample that the agent does not blend itself is blended, in [0, 1];
            see `prune_env.sampling.mixup_shares`. First visits stay unmixed, so that every sample is measured once.
        oscillate: how far the agent's `keep` is moved down and up, at least 0; both shares must lie in (0, 1],
            and in the agent's own range.

    Raises:
        ValueError: a share out of range; an agent to oscillate that has no `keep`, or uses it once in a run.
    """

    remembers = ("agent",)

    agent: Agent
    anneal: float = 0.0
    mixup: float = 0.0
    oscillate: float = 0.0
    _keep: float = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        check("anneal", self.anneal, "[0, 1]")
        check("mixup", self.mixup, "[0, 1]")
        check("oscillate", self.oscillate, "[0, 1)")
        if self.oscillate:
            self._keep = getattr(self.agent, "keep", 0.0)
            if not self._keep or getattr(self.agent, "once", False):
                name = type(self.agent).__name__
                raise ValueError(f"oscillate is for agents that keep a share in every step, which {name} does not")
            check("keep - oscillate", round(self._keep - self.oscillate, 9), "(0, 1]")
            check("keep + oscillate", round(self._keep + self.oscillate, 9), "(0, 1]")
            if is_dataclass(self.agent) and not isinstance(self.agent, type):
                for moved in (self._keep - self.oscillate, self._keep + self.oscillate):
                    replace(self.agent, keep=round(moved, 9))  # raises where the agent's own range is narrower

    def reset(self) -> None:
        reset(self.agent)

    def __call__(self, observation: Observation, rng: np.random.Generator) -> Action:
        if in_last(observation, self.anneal):
            return all_samples(observation)
        if self.oscillate:
            is_high = int(float(observation["spent"][0]) * PHASES + 1e-5) % 2  # spent is float32
            keep = self._keep + (self.oscillate if is_high else -self.oscillate)
            object.__setattr__(self.agent, "keep", keep)  # also of an agent that is frozen otherwise
        action = self.agent(observation, rng)
        if self.mixup == 0:  # nothing is drawn: the agent goes on as without the switch
            return action
        mixup = np.asarray(action["mixup"])
        mask = (np.asarray(action["weight"]) > 0) & (mixup == 0) & (observation["visits"] > 0)
        shares = mixup_shares(mask, self.mixup, rng)
        return select(np.asarray(action["weight"], dtype=np.float64), mixup + shares, action.get("score"))
