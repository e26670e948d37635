"""Annealing, Mixup and amounts alone around an agent, against plain restatements; and the specs that name them."""

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from numpy.typing import ArrayLike
from scipy import stats

from agents import AGENTS, make, spec_with_keep, switches
from agents.switches import SameAmounts, Switched
from prune_env import PruneEnv, select
from tests.agents.test_agents import STATES, assert_frequencies, observe

ROOT = Path(__file__).resolve().parents[2]


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


class Fixed:
    """Does always the same, draws as often as told, and counts its calls."""

    def __init__(self, weight: ArrayLike, mixup: ArrayLike = 0.0, score: ArrayLike | None = None, draws: int = 3):
        self.action = select(np.asarray(weight, dtype=np.float64), mixup, score)
        self.draws, self.calls, self.resets = draws, 0, 0

    def reset(self) -> None:
        self.resets += 1

    def __call__(self, observation, rng):
        self.calls += 1
        rng.random(self.draws)
        return {name: values.copy() for name, values in self.action.items()}


# Annealing


@pytest.mark.parametrize("share", [0.05, 0.1, 0.125, 0.2, 0.3, 0.35, 0.5, 0.9, 1.0])
def test_annealing_begins_exactly_with_its_share(share):
    """The observation's share is float32: 0.9 arrives as 0.89999998."""
    inner = Fixed(np.arange(10) % 2)
    agent = Switched(agent=inner, anneal=share)
    steps = 200
    for step in range(steps):
        observation = {**observe(10), "spent": np.array([step / steps], dtype=np.float32)}
        annealed = step >= round((1 - share) * steps)
        calls = inner.calls
        action = agent(observation, generator())
        assert inner.calls == calls + (not annealed)
        np.testing.assert_array_equal(action["weight"], 1 if annealed else np.arange(10) % 2)
        assert not action["mixup"].any()
        assert not action["score"].any()


def test_annealing_uses_neither_weights_nor_mixup_nor_scoring():
    agent = Switched(agent=Fixed(2.5 * (np.arange(10) % 2), 0.4, np.ones(10)), anneal=0.25, mixup=1.0)
    before, after = (agent({**observe(10), "spent": np.array([x], np.float32)}, generator()) for x in (0.7499, 0.75))
    assert set(before["weight"]) == {0, 2.5}
    assert before["score"].all()
    np.testing.assert_array_equal(after["weight"], np.ones(10))
    np.testing.assert_array_equal(after["mixup"], np.zeros(10))
    np.testing.assert_array_equal(after["score"], np.zeros(10))


def test_without_annealing_the_last_step_is_the_agents():
    agent = Switched(agent=Fixed(np.arange(10) < 3), mixup=0.5)
    assert agent({**observe(10), "spent": np.array([0.999], np.float32)}, generator())["weight"].sum() == 3


# Mixup


def cdf(x):
    """Of min(λ, 1-λ), λ ~ Beta(0.4, 0.4), which is symmetric."""
    return 2 * stats.beta.cdf(x, 0.4, 0.4)


@pytest.mark.parametrize("q", [0.1, 0.5, 1.0])
def test_mixup_has_its_probability_and_its_shares(q):
    n, rng, draws = 40, generator(), 600
    weight, own = np.arange(n) % 4 > 0, np.where(np.arange(n) % 8 == 1, 0.3, 0)
    observation = observe(n)
    observation["visits"] = np.where(np.arange(n) < 10, 0, 3).astype(np.float32)
    agent = Switched(agent=Fixed(weight, own), mixup=q)
    counts, shares = np.zeros(n), []
    for _ in range(draws):
        mixup = agent(observation, rng)["mixup"]
        counts += mixup > 0
        shares += mixup[(mixup > 0) & (own == 0)].tolist()
        np.testing.assert_array_equal(mixup[own > 0], np.float32(0.3))
    can = weight & (own == 0) & (np.arange(n) >= 10)
    assert_frequencies(counts, draws, np.where(own > 0, 1.0, np.where(can, q, 0.0)))
    assert stats.kstest(shares, cdf).pvalue > 0.001
    assert max(shares) <= 0.5


def test_mixup_of_one_sample_says_nothing_of_another():
    rng, agent = generator(), Switched(agent=Fixed(np.ones(4)), mixup=0.5)
    mixed = np.array([agent(observe(4), rng)["mixup"] > 0 for _ in range(4000)])
    patterns = mixed @ (1 << np.arange(4))
    assert_frequencies(np.bincount(patterns, minlength=16), 4000, np.full(16, 1 / 16))


def test_mixup_keeps_weights_and_scoring():
    weight, score = np.linspace(0, 10, 20), np.arange(20) % 3 == 0
    action = Switched(agent=Fixed(weight, 0.0, score), mixup=1.0)(observe(20), generator())
    np.testing.assert_array_equal(action["weight"], weight.astype(np.float32))
    np.testing.assert_array_equal(action["score"], score)
    np.testing.assert_array_equal(action["mixup"] > 0, weight > 0)


def test_mixup_takes_what_an_agent_may_return():
    def bare(observation, rng):
        return {"weight": [True] * 3 + [False] * 3, "mixup": [0] * 6}

    own: Any = bare
    action = Switched(agent=own, mixup=1.0)(observe(6), generator())
    assert (action["mixup"] > 0).tolist() == [True] * 3 + [False] * 3
    assert not action["score"].any()


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("name", AGENTS)
def test_a_first_visit_is_never_mixed_and_all_else_may_be(name, state):
    action = make(f"{name}+mixup=1.0")(observe(50, state), generator(1))
    alone = make(name)(observe(50, state), generator(1))
    np.testing.assert_array_equal(action["weight"], alone["weight"])
    np.testing.assert_array_equal(action["score"], alone["score"])
    seen = observe(50, state)["visits"] > 0
    if name != "swdpp":  # which blends by itself, and has its own account of that
        np.testing.assert_array_equal(action["mixup"] > 0, (alone["weight"] > 0) & seen)


@pytest.mark.parametrize("switch", ["", "+mixup=0", "+mixup=0.0", "+anneal=0.0", "+mixup=0+anneal=0"])
@pytest.mark.parametrize("name", AGENTS)
def test_a_switch_that_is_off_draws_nothing(name, switch):
    alone, wrapped = make(name), make(name + switch)
    rngs = generator(4), generator(4)
    for step in range(4):
        observation = observe(60, "mixed", seed=step, spent=step / 8)
        actions = [agent(observation, rng) for agent, rng in zip((alone, wrapped), rngs, strict=True)]
        for entry in ("weight", "mixup", "score"):
            np.testing.assert_array_equal(actions[0][entry], actions[1][entry])
        assert rngs[0].bit_generator.state == rngs[1].bit_generator.state


def test_mixup_draws_after_the_agent():
    """Its choice in a step is that without the switch, given the same generator."""
    for name in AGENTS:
        alone, mixed = (make(spec)(observe(60), generator(5)) for spec in (name, f"{name}+mixup=0.7"))
        np.testing.assert_array_equal(alone["weight"], mixed["weight"])


# Amounts alone


def episode(agent, **kwargs) -> list[tuple[dict, dict]]:
    """Observations before and actions of a run on digits."""
    env = gym.make("prune_env/Digits-v0", **{"budget": 5.0, "train_size": 200, "batch_size": 32, **kwargs})
    assert isinstance(env.unwrapped, PruneEnv)
    observation, _ = env.reset(seed=1)
    getattr(agent, "reset", lambda: None)()
    rng, found, terminated = generator(2), [], False
    while not terminated:
        action = agent(observation, rng)
        found.append((observation, action))
        observation, _, terminated, *_ = env.step(action)
    return found


class Noted:
    """Another agent, and what it returned."""

    def __init__(self, agent):
        self.agent, self.kept = agent, []

    def reset(self) -> None:
        switches.reset(self.agent)
        self.kept.clear()

    def __call__(self, observation, rng):
        action = self.agent(observation, rng)
        self.kept.append(int((action["weight"] > 0).sum()))
        return action


@pytest.mark.parametrize("name", ["infobatch", "ucb:keep=0.3", "kakurenbo:confidence=0.2", "seta", "repb", "swdpp"])
def test_same_amounts_in_a_run(name):
    inner = Noted(make(name))
    steps = episode(SameAmounts(agent=inner))
    kept = [int((action["weight"] > 0).sum()) for _, action in steps]
    assert kept == inner.kept
    assert len(kept) > 4
    assert name.startswith("ucb") or len(set(kept)) > 1
    for _, action in steps:
        assert set(action["weight"].tolist()) <= {0.0, 1.0}
        assert not action["mixup"].any()
        assert not action["score"].any()


def test_same_amounts_by_each_rule_on_what_the_run_has_shown():
    """How many InfoBatch, KAKURENBO and UCB keep is restated from the observation."""
    for observation, action in episode(make("same_amounts:ucb:keep=0.3")):
        assert action["weight"].sum() == 60 == round(0.3 * len(observation["loss"]))
    for observation, action in episode(make("same_amounts:infobatch:r=0.4,anneal=0")):
        seen = [float(u) for u, v in zip(observation["loss"], observation["visits"], strict=True) if v > 0]
        easy = sum(u < sum(seen) / len(seen) for u in seen)
        assert abs(action["weight"].sum() - (200 - 0.4 * easy)) < 1
    for observation, action in episode(make("same_amounts:kakurenbo:confidence=0.2")):
        o = {name: observation[name].tolist() for name in ("loss", "visits", "correct", "confidence")}
        spent = observation["spent"][0] + 1e-6
        share = 0.3 * (1 - 0.2 * sum(spent >= x for x in (0.3, 0.6, 0.8)))
        order = sorted(range(200), key=lambda i: o["loss"][i])[: int(200 * share + 1e-9)]
        hidden = [i for i in order if o["correct"][i] and o["confidence"][i] >= 0.2 and o["visits"][i]]
        assert action["weight"].sum() == 200 - (len(hidden) if any(o["visits"]) else 0)


@pytest.mark.parametrize("name", ["loss_topk:keep=0.3", "infobatch", "kakurenbo:hide=0.5,confidence=0"])
def test_same_amounts_draws_every_sample_alike_whatever_its_loss(name):
    observation, agent, rng, draws = observe(20), make(f"same_amounts:{name}"), generator(), 3000
    masks = np.array([agent(observation, rng)["weight"] > 0 for _ in range(draws)])
    mean = masks.mean()
    assert 0.2 < mean < 0.95
    assert_frequencies(masks.sum(axis=0), draws, np.full(20, mean))
    if name.startswith("loss_topk"):  # 6 of 20: pairs as in draws without replacement
        together = (masks[:, :1] & masks[:, 1:]).sum(axis=0)
        assert_frequencies(together, draws, np.full(19, 6 / 20 * 5 / 19))


def test_same_amounts_of_nothing_and_of_everything():
    for weight in (np.zeros(7), np.ones(7), 0.1 * (np.arange(7) == 3)):
        action = SameAmounts(agent=Fixed(weight, 0.5, np.ones(7)))(observe(7), generator())
        assert action["weight"].sum() == np.count_nonzero(weight)


def test_a_reset_reaches_the_agent_inside():
    inner = Fixed(np.ones(3))
    agent = Switched(agent=SameAmounts(agent=Switched(agent=inner, mixup=0.5)), anneal=0.1)
    agent.reset()
    agent.reset()
    assert inner.resets == 2
    plain: Any = lambda observation, rng: select(np.ones(3))  # noqa: E731
    Switched(agent=SameAmounts(agent=plain), mixup=0.5).reset()  # keeps no state: nothing to do


@pytest.mark.parametrize("wrap", ["static_random:keep=0.3+mixup=0.5", "same_amounts:seta+mixup=0.5"])
def test_a_wrapped_agent_starts_over_after_a_reset(wrap):
    agent = make(wrap)

    def run(agent) -> list:
        switches.reset(agent)
        rng = generator(7)
        return [agent(observe(40, seed=step), rng)["weight"].tolist() for step in range(5)]

    first = run(agent)
    assert run(agent) == first == run(make(wrap))


# Specs


def settings_of(agent) -> Any:
    """An agent as nested names and settings."""
    if isinstance(agent, Switched):
        return {"anneal": agent.anneal, "mixup": agent.mixup, "agent": settings_of(agent.agent)}
    if isinstance(agent, SameAmounts):
        return ["same", settings_of(agent.agent)]
    return repr(agent)


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("ucb", "UCB(keep=0.5, c=1.0, period=0.05)"),
        ("ucb:c=1e+5", "UCB(keep=0.5, c=100000.0, period=0.05)"),
        ("ucb+mixup=0.5", {"anneal": 0.0, "mixup": 0.5, "agent": "UCB(keep=0.5, c=1.0, period=0.05)"}),
        (
            "ucb:c=1e+5,keep=0.3+anneal=1e-1+mixup=5e-1",
            {"anneal": 0.1, "mixup": 0.5, "agent": "UCB(keep=0.3, c=100000.0, period=0.05)"},
        ),
        ("full+mixup=1+anneal=0.125", {"anneal": 0.125, "mixup": 1, "agent": "Full()"}),
        ("full+anneal=0.125+mixup=1", {"anneal": 0.125, "mixup": 1, "agent": "Full()"}),
        ("same_amounts:full", ["same", "Full()"]),
        ("same_amounts:ucb:c=2", ["same", "UCB(keep=0.5, c=2, period=0.05)"]),
        ("same_amounts:same_amounts:full", ["same", ["same", "Full()"]]),
        ("same_amounts:full+mixup=0.5", {"anneal": 0.0, "mixup": 0.5, "agent": ["same", "Full()"]}),
    ],
)
def test_what_a_spec_builds(spec, expected):
    assert settings_of(make(spec)) == expected


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("ucb+keep=0.3", ["'ucb+keep=0.3'", "'keep'", "anneal, mixup"]),
        ("ucb+Mixup=0.3", ["'Mixup'", "not known"]),
        ("same_amounts:ucb+period=0.3", ["'period'", "not known"]),
        ("ucb+mixup=0.5+mixup=0.3", ["'ucb+mixup=0.5+mixup=0.3'"]),
        ("ucb+mixup=0.5+mixup=0.5", ["'ucb+mixup=0.5+mixup=0.5'"]),
        ("ucb+mixup", ["'ucb+mixup'", "unknown agent"]),
        ("ucb+mixup=", ["'mixup='", "option=value"]),
        ("ucb+mixup=half", ["mixup=half", "literal"]),
        ("ucb+mixup=1.5", ["mixup must be a number in [0, 1]", "1.5"]),
        ("ucb+mixup='a'", ["mixup must be a number in [0, 1]"]),
        ("ucb+anneal=-0.1", ["anneal must be a number in [0, 1]", "-0.1"]),
        ("ucb+anneal=True", ["anneal must be a number in [0, 1]", "True"]),
        ("ucb:c=-1+mixup=0.5", ["c must be", "-1"]),
        ("+mixup=0.5", ["unknown agent"]),
        ("same_amounts", ["same_amounts", "same_amounts:AGENT"]),
        ("same_amounts:", ["same_amounts:AGENT"]),
        ("same_amounts:+mixup=0.5", ["same_amounts:AGENT"]),
        ("same_amounts:same_amounts", ["same_amounts:AGENT"]),
        ("same_amounts:ucbb", ["unknown agent 'ucbb'"]),
        ("same_amounts:keep=0.3", ["unknown agent 'keep=0.3'"]),
        ("same_amounts:infobatch:keep=0.3", ["'keep'", "r=0.5, anneal=0.125"]),
    ],
)
def test_what_is_wrong_with_a_spec(spec, words):
    for asked in (make, lambda spec: spec_with_keep(spec, 0.5) and make(spec)):
        with pytest.raises(ValueError) as error:  # noqa: PT011
            asked(spec)
        for word in words:
            assert word in str(error.value)


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("ucb+mixup=0.5", "ucb:keep=0.3+mixup=0.5"),
        ("ucb:c=1e+5+mixup=0.5+anneal=0.1", "ucb:keep=0.3,c=1e+5+mixup=0.5+anneal=0.1"),
        ("ucb:keep=0.7+mixup=0.5", "ucb:keep=0.7+mixup=0.5"),
        ("same_amounts:ucb", "same_amounts:ucb:keep=0.3"),
        ("same_amounts:same_amounts:ucb:c=2+anneal=0.1", "same_amounts:same_amounts:ucb:keep=0.3,c=2+anneal=0.1"),
        ("same_amounts:ucb:keep=0.7", "same_amounts:ucb:keep=0.7"),
        ("same_amounts:infobatch", "same_amounts:infobatch"),
        ("infobatch+mixup=0.5", "infobatch+mixup=0.5"),
        ("full+mixup=0.5", "full+mixup=0.5"),
    ],
)
def test_spec_with_keep(spec, expected):
    assert spec_with_keep(spec, 0.3) == expected
    assert spec_with_keep(expected, 0.9) == expected  # what is set stays
    make(expected)


MINE = """
import numpy as np
from prune_env import select

class MyAgent:
    def __init__(self, opt, keep=0.5):
        self.opt, self.keep = opt, keep

    def __call__(self, observation, rng):
        n = len(observation["loss"])
        return select(float(self.opt) * (np.arange(n) < self.keep * n))
"""


# In the environment


def test_switches_in_a_run():
    steps = episode(make("random:keep=0.5+anneal=0.3+mixup=0.8"))
    mixed = 0
    for observation, action in steps:
        if observation["spent"][0] >= 0.7 - 1e-6:
            assert (action["weight"].sum(), action["mixup"].any()) == (200, False)
        else:
            assert action["weight"].sum() == 100
            assert not action["mixup"][observation["visits"] == 0].any()
            mixed += int((action["mixup"] > 0).sum())
    assert mixed > 100


def test_the_amounts_of_an_agent_with_a_step_that_only_scores():
    spent = [float(observation["spent"][0]) for observation, _ in episode(make("same_amounts:grand"))]
    assert spent[-1] > 0.8
