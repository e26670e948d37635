"""Annealing, Mixup and amounts alone around an agent, against plain restatements."""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import ArrayLike
from scipy import stats

import prune_env  # noqa: F401  (registers the environments)
from agents import AGENTS, make, switches
from agents.switches import SameAmounts, Switched
from prune_env import select
from tests.agents.test_agents import STATES, assert_frequencies, frequencies, observe


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


class Fixed:
    """Does always the same, draws three numbers, and counts its calls."""

    def __init__(self, weight: ArrayLike, mixup: ArrayLike = 0.0, score: ArrayLike | None = None):
        self.action = select(np.asarray(weight, dtype=np.float64), mixup, score)
        self.calls = self.resets = 0

    def reset(self) -> None:
        self.resets += 1

    def __call__(self, observation, rng):
        self.calls += 1
        rng.random(3)
        return {name: values.copy() for name, values in self.action.items()}


@settings(max_examples=20, deadline=None)
@given(st.sampled_from([0.0, 0.05, 0.1, 0.125, 0.2, 0.35, 0.9, 1.0]))
def test_annealing_begins_exactly_with_its_share(share):
    """The observation's share is float32: 0.9 arrives as 0.89999998."""
    inner = Fixed(2.5 * (np.arange(10) % 2), 0.4, np.ones(10))
    agent, observation = Switched(agent=inner, anneal=share, mixup=1.0), observe(10)
    for step in range(200):
        annealed, calls = step >= round((1 - share) * 200), inner.calls
        action = agent({**observation, "spent": np.array([step / 200], np.float32)}, generator())
        assert inner.calls == calls + (not annealed)
        if annealed:
            assert [action[name].tolist() for name in ("weight", "mixup", "score")] == [[1] * 10, [0] * 10, [0] * 10]
        else:
            np.testing.assert_array_equal(action["weight"], 2.5 * (np.arange(10) % 2))
            assert action["score"].all()


@pytest.mark.parametrize("q", [0.1, 0.5, 1.0])
def test_mixup_has_its_probability_and_its_shares(q):
    """What was never seen stays unmixed, and what the agent blends by itself stays as it is."""
    n, rng, draws = 40, generator(), 600
    weight, own = np.arange(n) % 4 > 0, np.where(np.arange(n) % 8 == 1, 0.3, 0)
    observation = observe(n)
    observation["visits"] = np.where(np.arange(n) < 10, 0, 3).astype(np.float32)
    agent = Switched(agent=Fixed(weight, own), mixup=q)
    mixup = np.array([agent(observation, rng)["mixup"] for _ in range(draws)])
    assert np.all(mixup[:, own > 0] == np.float32(0.3))
    can = weight & (own == 0) & (np.arange(n) >= 10)
    assert_frequencies((mixup > 0).sum(axis=0), draws, np.where(own > 0, 1.0, np.where(can, q, 0.0)))
    # of min(λ, 1-λ), λ ~ Beta(0.4, 0.4), which is symmetric
    shares = mixup[(mixup > 0) & (own == 0)]
    assert stats.kstest(shares, lambda x: 2 * stats.beta.cdf(x, 0.4, 0.4)).pvalue > 0.001


def test_mixup_takes_what_an_agent_may_return():
    def bare(observation, rng):
        return {"weight": [True] * 3 + [False] * 3, "mixup": [0] * 6}

    own: Any = bare
    action = Switched(agent=own, mixup=1.0)(observe(6), generator())
    assert (action["mixup"] > 0).tolist() == [True] * 3 + [False] * 3
    assert not action["score"].any()


@pytest.mark.parametrize("name", AGENTS)
def test_a_switch_changes_no_choice_and_one_that_is_off_draws_nothing(name):
    for state in STATES:
        alone, off, mixed = (make(name + switch) for switch in ("", "+mixup=0+anneal=0.0", "+mixup=1.0"))
        rngs = [generator(4) for _ in range(3)]
        o = observe(50, state)
        first, same, blended = (agent(o, rng) for agent, rng in zip((alone, off, mixed), rngs, strict=True))
        for entry in first:
            np.testing.assert_array_equal(first[entry], same[entry])
            assert entry == "mixup" or np.array_equal(first[entry], blended[entry])
        assert rngs[0].bit_generator.state == rngs[1].bit_generator.state
        if name != "swdpp":  # which blends by itself
            np.testing.assert_array_equal(blended["mixup"] > 0, (first["weight"] > 0) & (o["visits"] > 0))


class Noted:
    """Another agent, and how many samples it kept."""

    def __init__(self, agent):
        self.agent, self.kept = agent, []

    def __call__(self, observation, rng):
        action = self.agent(observation, rng)
        self.kept.append(np.count_nonzero(action["weight"]))
        return action


@pytest.mark.parametrize("name", ["infobatch", "ucb:keep=0.3", "kakurenbo:confidence=0.2", "grand", "swdpp"])
def test_same_amounts_in_a_run(name):
    env = gym.make("prune_env/Digits-v0", budget=5.0, train_size=200, batch_size=32)
    inner, rng, terminated = Noted(make(name)), generator(2), False
    agent, (observation, _) = SameAmounts(agent=inner), env.reset(seed=1)
    while not terminated:
        action = agent(observation, rng)
        assert np.count_nonzero(action["weight"]) == inner.kept[-1] == action["weight"].sum()
        assert not action["mixup"].any()
        assert action["score"].any() == (inner.kept[-1] == 0)  # a step that only scores, of grand
        observation, _, terminated, *_ = env.step(action)
    assert len(inner.kept) > 4
    assert name.startswith("ucb") or len(set(inner.kept)) > 1


@pytest.mark.parametrize("name", ["loss_topk:keep=0.3", "kakurenbo:hide=0.5,confidence=0"])
def test_same_amounts_draws_every_sample_alike_whatever_its_loss(name):
    counts = frequencies(make(f"same_amounts:{name}"), [observe(20)], 2000)
    assert 0.2 < counts.mean() / 2000 < 0.95
    assert_frequencies(counts, 2000, np.full(20, counts.mean() / 2000))


def test_a_reset_reaches_the_agent_inside():
    inner = Fixed(np.ones(3))
    agent = Switched(agent=SameAmounts(agent=Switched(agent=inner, mixup=0.5)), anneal=0.1)
    agent.reset()
    agent.reset()
    assert inner.resets == 2
    switches.reset(SameAmounts(agent=lambda observation, rng: select(np.ones(3))))  # keeps no state: nothing to do
