"""What every agent owes its caller; and the made-up observations and small checks that tests of agents share.

Monte-Carlo frequencies may be off by 5 standard errors of a binomial share: by chance one comparison in two
million is, and the seeds are fixed.
"""

import math
import random
import sys
from importlib.util import module_from_spec, spec_from_file_location
from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import agents
from agents import AGENTS, make, spec_with_keep
from agents.switches import reset
from prune_env import selection

VARIANTS = [
    *AGENTS,
    "random:fresh=True",
    "epsilon_greedy:epsilon=1.0",
    "epsilon_greedy:period=0",
    "swdpp:tau=0",
    "swdpp:tau=0.001",
    "swdpp:dynamics=False",
    "swdpp:reweight=True",
    "infobatch:r=0.9",
    "orderdp:pool=1",
    "seta:r=0,window=0.6",
    "kakurenbo:hide=0.9,confidence=0",
    "kakurenbo:nominal=True",
    "repb:rho=0.9",
    "ccs:beta=0.9,strata=3",
    "dual:window=2,c=0.5",
    "rcap:beta=0.01",
    "ies:threshold=10",
    "pdd:threshold=1,revision=0",
    "selective_backprop:beta=0.5,staleness=1,least=0.1",
    "loss_topk:keep=0.3+oscillate=0.2",
    "ucb+mixup=1+anneal=0.125",
    "same_amounts:infobatch",
]
NO_KEEP = {"full", "class_weights", "infobatch", "seta", "kakurenbo", "repb", "learned", "random_rule"}
NO_KEEP |= {"ies", "pdd", "selective_backprop"}
SCORING = {"grand", "kakurenbo", "ies", "pdd", "selective_backprop"}
SMALLEST = {"rule": 0.1}  # share kept; of others any
STATES = ["unseen", "trained", "constant", "extreme", "mixed"]


def observe(n: int, state: str = "trained", seed: int = 0, spent: float = 0.3) -> dict[str, np.ndarray]:
    """An observation with made-up statistics of n samples of 10 classes."""
    rng = np.random.default_rng([n, seed])
    loss = rng.lognormal(-1, 1, n)
    mean, var, visits = loss * rng.uniform(0.5, 1.5, n), rng.lognormal(-3, 1, n), 1.0 + rng.poisson(3, n)
    age = rng.exponential(5, n)
    seen = {"unseen": np.zeros(n, dtype=bool), "mixed": rng.random(n) < 0.5}.get(state, np.ones(n, dtype=bool))
    if state == "constant":
        loss, mean, var, visits, age = (np.full(n, x) for x in (0.7, 0.7, 0.01, 3, 1))
    if state == "extreme":
        loss, mean = rng.choice([0.0, 1e-30, 100.0], (2, n))
        var = rng.choice([0.0, 1e-30, 1e4], n)
    p = np.exp(-loss)
    values = {
        "loss": np.where(seen, loss, math.log(10)),
        "loss_mean": np.where(seen, mean, math.log(10)),
        "loss_var": np.where(seen, var, 0),
        "confidence": p,
        "margin": 2 * p - 1,
        "margin_mean": np.where(seen, p - 0.5, 0),
        "entropy": 1 - p,
        "el2n": 1 - p,
        "correct": p > 0.5,
        "forgets": rng.poisson(1, n),
        "visits": np.where(seen, visits, 0),
        "age": np.where(seen, age, 3),
        "reference": rng.lognormal(-1, 1, n),
        "spent": [0.0 if state == "unseen" else spent],
        "budget": [10],
        "val_accuracy": [0.7],
        "train_accuracy": [0.8],
        "val_class_accuracy": rng.random(10),
    }
    labels = {"label": rng.integers(0, 10, n)}
    return {name: np.asarray(value, dtype=np.float32) for name, value in values.items()} | labels


def kept(agent: Any, observation: dict[str, np.ndarray], rng: np.random.Generator) -> np.ndarray:
    """(N,) mask of what an agent, or the agent of a spec, keeps."""
    agent = make(agent) if isinstance(agent, str) else agent
    return agent(observation, rng)["weight"] > 0


def assert_frequencies(counts: np.ndarray, draws: int, expected: np.ndarray | float) -> None:
    """Check how often something happened in so many draws against its probability."""
    error = np.sqrt(expected * (1 - np.asarray(expected)) / draws)
    np.testing.assert_array_less(np.abs(counts / draws - expected), 5 * error + 1e-6)


def frequencies(agent: Any, observations: list[dict[str, np.ndarray]], draws: int) -> np.ndarray:
    """How often each sample is kept in the last of some steps, of so many runs."""
    rng, counts = np.random.default_rng(0), np.zeros(len(observations[0]["loss"]))
    for _ in range(draws):
        reset(agent)
        counts += [kept(agent, observation, rng) for observation in observations][-1]
    return counts


def slow_top(scores: list[float], k: int) -> set[int]:
    """The k largest of different scores."""
    return set(sorted(range(len(scores)), key=lambda i: -scores[i])[:k])


def slow_ranks(values: list[float]) -> list[float]:
    n = len(values)
    return [(sum(x < y for x in values) + 0.5 * sum(x == y for x in values)) / n for y in values]


@pytest.mark.parametrize("spec", VARIANTS)
@settings(max_examples=4, deadline=None)
@given(
    n=st.integers(1, 120),
    keep=st.sampled_from([0.01, 0.3, 0.5, 1.0]),
    states=st.lists(st.sampled_from(STATES[1:]), min_size=3, max_size=5),
    seed=st.integers(0, 99),
)
def test_every_action_of_a_run_is_valid(spec, n, keep, states, seed):
    """With statistics that jump about as no run would have them, then a reset and the same once more."""
    name = spec.partition("+")[0].removeprefix("same_amounts:").partition(":")[0]
    keep = max(keep, SMALLEST.get(name, 0))
    agent, runs = make(spec_with_keep(spec, keep)), []
    for _ in range(2):
        reset(agent)
        rng, actions = np.random.default_rng(seed), []
        for step, state in enumerate(["unseen", *states]):
            observation = observe(n, state, seed + step, spent=step / (len(states) + 1))
            before = {name: value.copy() for name, value in observation.items()}
            action = selection.check(agent(observation, rng), n)
            assert action["weight"].any() or action["score"].any()  # else the run would end
            assert not action["mixup"][action["weight"] == 0].any()
            assert not action["score"].any() or name in SCORING
            for entry, value in observation.items():
                np.testing.assert_array_equal(value, before[entry])
            actions.append(action)
        if name not in NO_KEEP and "anneal" not in spec and "oscillate" not in spec:  # statics have chosen by then
            assert np.count_nonzero(actions[-1]["weight"]) == max(1, round(keep * n))
        runs.append(actions)
    np.testing.assert_equal(*runs)
    assert agent(observe(n + 1), np.random.default_rng(0))["weight"].shape == (n + 1,)  # another data set, no reset


def test_agents_draw_from_their_own_generator_only():
    before = random.getstate(), np.random.get_state(legacy=False), torch.get_rng_state()  # noqa: NPY002
    for spec in VARIANTS:
        make(spec)(observe(100, "mixed"), np.random.default_rng(3))
    assert before[0] == random.getstate()
    np.testing.assert_equal(before[1], np.random.get_state(legacy=False))  # noqa: NPY002
    assert torch.equal(before[2], torch.get_rng_state())


@pytest.mark.parametrize(
    "spec", ["loss_topk", "ucb:period=0", "ucb1", "epsilon_greedy:epsilon=0", "swdpp:tau=0", "orderdp:pool=1"]
)
def test_equals_are_drawn_uniformly(spec):
    observation = observe(12, "constant")
    for name in ("loss", "loss_mean"):
        observation[name][[2, 7]] = 5.0, 0.1  # one clearly above, one clearly below
    expected = np.full(12, 0.5)  # 5 of the 10 equals
    expected[[2, 7]] = 1, 0
    assert_frequencies(frequencies(make(spec_with_keep(spec, 0.5)), [observation], 1500), 1500, expected)


OUTSIDE = [  # values next to the bounds of each kind of option, and the interval that is named
    *((spec, "keep", 1.01, f"[{SMALLEST[spec]}, 1]" if spec in SMALLEST else "(0, 1]")
      for spec in AGENTS if spec not in NO_KEEP),
    ("random", "keep", True, "(0, 1]"),
    ("random", "fresh", 1, "True or False"),
    ("epsilon_greedy", "epsilon", -0.1, "[0, 1]"),
    ("ucb", "period", -1, "[0, 1]"),
    ("ucb1", "c", float("inf"), "[0, inf)"),
    ("infobatch", "r", 0.95, "[0, 0.9]"),
    ("middle", "width", float("nan"), "(0, inf)"),
    ("orderdp", "pool", 0.4, "at least keep"),
    ("swdpp", "tau", 1e-5, "[0.001, inf)"),
    ("seta", "groups", 2.5, "a whole number"),
    ("seta", "window", 0, "(0, 1]"),
    ("kakurenbo", "hide", 0.91, "[0, 0.9]"),
    ("repb", "rho", 1, "[0, 0.9]"),
    ("el2n", "scoring", 1.1, "[0, 1]"),
    ("ccs", "beta", 1, "[0, 1)"),
    ("ccs", "strata", 2.5, "a whole number"),
    ("dyn_unc", "window", 1, "[2, inf)"),
    ("dual", "window", 2.5, "a whole number"),
    ("dual", "c", 0, "(0, inf)"),
    ("rcap", "beta", 0, "(0, inf)"),
    ("ies", "threshold", 0, "(0, inf)"),
    ("ies", "window", 1.5, "a whole number"),
    ("pdd", "threshold", 1.01, "(0, 1]"),
    ("pdd", "revision", -1, "[0, inf)"),
    ("selective_backprop", "beta", -1, "[0, inf)"),
    ("selective_backprop", "least", 1.1, "[0, 1]"),
    ("selective_backprop", "staleness", 1.5, "a whole number"),
    ("rule", "loss", -1.1, "[-1, 1]"),
    ("rule", "mixup", 2, "[0, 1]"),
]  # fmt: skip


def test_options_are_checked():
    anything = [(spec, name, "much", "") for spec, agent in AGENTS.items() for name in signature(agent).parameters]
    for spec, name, wrong, allowed in [*OUTSIDE, *anything]:
        if name in ("path", "agents"):
            continue
        with pytest.raises(ValueError, match=name) as error:
            AGENTS[spec](**{name: wrong})
        assert str(error.value).startswith(f"{name} must be")
        assert allowed in str(error.value)
        assert str(error.value).endswith(repr(wrong))


@pytest.mark.parametrize("path", sorted(Path(agents.__file__).parent.glob("[!_]*.py")), ids=lambda path: path.stem)
def test_a_file_can_be_copied_alone(path, monkeypatch):
    monkeypatch.setitem(sys.modules, "agents", None)
    found: Any = spec_from_file_location("copied", path)
    module = module_from_spec(found)
    monkeypatch.setitem(sys.modules, "copied", module)
    found.loader.exec_module(module)
