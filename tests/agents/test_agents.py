"""Agents against plain restatements of their rules, and what every agent owes its caller.

Monte-Carlo frequencies may be off by 5 standard errors of a binomial share: by chance one comparison in two
million is, and the seeds are fixed.
"""

import itertools
import math
import random
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import optimize, stats

from agents import AGENTS, bandits, make, source_digest, spec_with_keep
from agents.learned import Learned, Network
from agents.swdpp import difficulty, inclusion
from prune_env import sampling, selection
from prune_env.policy.features import FEATURES
from prune_env.policy.rules import RULE_PARAMETERS

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
    "ucb+mixup=1+anneal=0.125",
    "same_amounts:infobatch",
]
STATICS = {"el2n", "forgetting", "grand", "ccs"}  # keep everything while they score, thus on their first call
NO_KEEP = {"full", "infobatch", "seta", "kakurenbo", "repb", "learned", "random_rule"}
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
        "entropy": 1 - p,
        "el2n": 1 - p,
        "correct": p > 0.5,
        "forgets": rng.poisson(1, n),
        "visits": np.where(seen, visits, 0),
        "age": np.where(seen, age, 3),
        "spent": [0.0 if state == "unseen" else spent],
        "budget": [10],
        "val_accuracy": [0.7],
        "train_accuracy": [0.8],
    }
    labels = {"label": rng.integers(0, 10, n)}
    return {name: np.asarray(value, dtype=np.float32) for name, value in values.items()} | labels


def name_of(spec: str) -> str:
    """The agent of a spec, without options and switches: "ucb:c=2+mixup=1" -> "ucb"."""
    return spec.partition("+")[0].removeprefix("same_amounts:").partition(":")[0]


def build(spec: str) -> Any:
    return make(spec)


def kept(agent, observation, rng) -> np.ndarray:
    """(N,) mask of what an agent, or the agent of a spec, keeps."""
    agent = make(agent) if isinstance(agent, str) else agent
    return agent(observation, rng)["weight"] > 0


def assert_frequencies(counts: np.ndarray, draws: int, expected: np.ndarray | float) -> None:
    error = np.sqrt(expected * (1 - np.asarray(expected)) / draws)
    np.testing.assert_array_less(np.abs(counts / draws - expected), 5 * error + 1e-6)


def slow_ranks(values) -> list[float]:
    n = len(values)
    return [(sum(x < y for x in values) + 0.5 * sum(x == y for x in values)) / n for y in values]


@pytest.fixture(autouse=True, scope="module")
def untrained(tmp_path_factory):
    """What is called learned here does not hang on what was learned."""
    path, rng = tmp_path_factory.mktemp("policies") / "untrained.safetensors", np.random.default_rng(0)
    weight, bias = rng.normal(0, 0.1, (len(RULE_PARAMETERS), len(FEATURES))), rng.uniform(-1, 1, len(RULE_PARAMETERS))
    Network([(weight, bias)], "tanh", "tanh", {}).save(path)
    defaults: dict[str, Any] = Learned.__init__.__kwdefaults__  # pyright: ignore[reportAssignmentType]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(defaults, "path", str(path))
        patch.setattr(Learned, "path", str(path))
        yield


# What every agent owes


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("n", [10, 1000])
@pytest.mark.parametrize("keep", [0.01, 0.5, 1])
@pytest.mark.parametrize("spec", VARIANTS)
def test_action_is_valid(spec, keep, n, state):
    keep = max(keep, SMALLEST.get(spec, 0))
    spec = spec_with_keep(spec, keep)
    observation = observe(n, state)
    before = {name: value.copy() for name, value in observation.items()}
    action = make(spec)(observation, np.random.default_rng(1))
    assert set(action) == {"weight", "mixup", "score"}
    for values, bound in ((action["weight"], 10), (action["mixup"], 0.5), (action["score"], 1)):
        assert values.shape == (n,)
        assert values.dtype == np.float32
        assert np.isfinite(values).all()
        assert values.min() >= 0
        assert values.max() <= bound
    assert np.all(action["mixup"][action["weight"] == 0] == 0)
    for name, value in observation.items():
        np.testing.assert_array_equal(value, before[name])
        assert not np.shares_memory(value, action["weight"])
    name, count = name_of(spec), np.count_nonzero(action["weight"])
    # a first call: nothing has been kept before, whatever the statistics say
    if name in STATICS | {"full", "repb"} or (name in {"swdpp", "infobatch", "kakurenbo"} and state == "unseen"):
        assert count == n
    elif name == "seta":
        assert count == (n if "r=0," in spec else round(0.9 * n))
    elif name in NO_KEEP:
        assert 1 <= count <= n
    else:
        assert count == max(1, round(keep * n))
    hides = name == "kakurenbo" and not spec.startswith("same_amounts")
    np.testing.assert_array_equal(action["score"], (action["weight"] == 0) & hides)


@pytest.mark.parametrize("state", STATES[1:])
@pytest.mark.parametrize("n", [1, 2, 100])
@pytest.mark.parametrize("keep", [0.01, 0.5, 1])
@pytest.mark.parametrize("spec", VARIANTS)
def test_actions_are_valid_through_a_run(spec, keep, n, state):
    """With statistics that jump about as no run would have them, then a reset in the middle and once more."""
    keep = max(keep, SMALLEST.get(spec, 0))
    spec = spec_with_keep(spec, keep)
    agent, rng = build(spec), np.random.default_rng(1)
    for _ in range(2):
        scored, count = False, 0
        for step in range(7):
            observation = observe(n, state if step else "unseen", seed=step, spent=step / 7)
            action = selection.check(agent(observation, rng), n)
            assert action["weight"].any() or action["score"].any()  # else the run would end
            assert not action["mixup"][action["weight"] == 0].any()
            scored |= bool(action["score"].any())
            count = np.count_nonzero(action["weight"])
        if name_of(spec) not in NO_KEEP and "anneal" not in spec:
            assert count == max(1, round(keep * n))
        assert scored <= (name_of(spec) in {"grand", "kakurenbo"})
        getattr(agent, "reset", lambda: None)()


@pytest.mark.parametrize("spec", VARIANTS)
def test_only_its_own_generator(spec):
    observation = observe(100, "mixed")
    before = random.getstate(), np.random.get_state(legacy=False), torch.get_rng_state()  # noqa: NPY002
    first, again = (make(spec)(observation, np.random.default_rng(3)) for _ in range(2))
    after = random.getstate(), np.random.get_state(legacy=False), torch.get_rng_state()  # noqa: NPY002
    for name in first:
        np.testing.assert_array_equal(first[name], again[name])
    assert before[0] == after[0]
    np.testing.assert_equal(before[1], after[1])
    assert torch.equal(before[2], after[2])


@pytest.mark.parametrize("spec", VARIANTS)
def test_goes_on_with_another_data_set_without_reset(spec):
    agent, rng = make(spec), np.random.default_rng(0)
    for n in (100, 10, 1000):
        assert agent(observe(n), rng)["weight"].shape == (n,)


@pytest.mark.parametrize("spec", ["loss_topk", "ucb", "ucb1", "epsilon_greedy:epsilon=0", "swdpp:tau=0"])
def test_equals_are_drawn_uniformly(spec):
    observation = observe(12, "constant")
    for name in ("loss", "loss_mean"):
        observation[name][[2, 7]] = 5.0, 0.1  # one clearly above, one clearly below
    agent, rng, draws = make(f"{spec}{',' if ':' in spec else ':'}keep=0.5"), np.random.default_rng(0), 3000
    counts = np.zeros(12)
    for _ in range(draws):
        getattr(agent, "reset", lambda: None)()
        counts += kept(agent, observation, rng)
    expected = np.full(12, 0.5)  # 5 of the 10 equals
    expected[[2, 7]] = 1, 0
    assert_frequencies(counts, draws, expected)


# Parts


@pytest.mark.parametrize("k", [0, 1, 4, 5, 9, 10])
def test_hardest_uniform_and_fill(k):
    rng = np.random.default_rng(0)
    scores = np.array([3, 1, 2, 2, 2, 5, 0, 0, 7, 2], dtype=np.float32)
    mask = sampling.hardest(scores, k, rng)
    assert sorted(scores[mask], reverse=True) == sorted(scores, reverse=True)[:k]
    assert sampling.uniform(10, k, rng).sum() == k
    some = scores > 4
    if k >= 2:
        filled = sampling.fill(some, k, rng)
        assert filled.sum() == k
        assert filled[some].all()


SCORES = {
    "all different": lambda rng, n: rng.permutation(n),
    "three values": lambda rng, n: rng.integers(0, 3, n),
    "mostly 0": lambda rng, n: np.maximum(rng.normal(size=n), 0.0),
    "constant": lambda rng, n: np.full(n, 0.7),
    "infinite": lambda rng, n: rng.choice([-np.inf, 0.0, 1.0, np.inf], n),
    "rising": lambda rng, n: np.arange(n) // 2,
    "falling": lambda rng, n: -np.arange(n),
    # every score that the evenly spaced sample sees is the largest, or the smallest
    "high where looked at": lambda rng, n: rng.random(n) + 9.0 * (np.arange(n) % (n // sampling.SAMPLE or 1) == 0),
    "low where looked at": lambda rng, n: rng.random(n) - 9.0 * (np.arange(n) % (n // sampling.SAMPLE or 1) == 0),
}


@pytest.mark.parametrize("n", [1, 40, 4 * sampling.SAMPLE - 1, 4 * sampling.SAMPLE, 50_000])
@pytest.mark.parametrize("name", SCORES)
def test_partitioned_is_sorted(name, n):
    rng = np.random.default_rng(n)
    scores = SCORES[name](rng, n).astype(np.float32)
    ordered = np.sort(scores)
    for k in sorted({0, 1, 2, n // 100, n // 3, n // 2, n - n // 50, n - 1, n} & set(range(n + 1))):
        expected = np.zeros(n, dtype=np.bool_)
        if k:
            border = ordered[n - k]
            assert sampling.largest(scores, k) == border
            expected = scores > border
            drawn = np.random.default_rng(k)
            equals = np.flatnonzero(scores == border)
            expected[drawn.choice(equals, k - expected.sum(), replace=False, shuffle=False)] = True
        np.testing.assert_array_equal(sampling.hardest(scores, k, np.random.default_rng(k)), expected)


@pytest.mark.parametrize("r", [0.0, 0.3, 0.9])
def test_infobatch_weights_are_those_of_the_choice_written_out(r):
    rng = np.random.default_rng(0)
    for n, losses in ((7, [0.0, 1.0]), (500, [0.1, 0.2, 3.0]), (60_000, np.linspace(0, 2, 50))):
        observation = observe(n, "mixed")
        observation["loss"] = rng.choice(losses, n).astype(np.float32)
        seen = observation["visits"] > 0
        easy = seen & (observation["loss"] < observation["loss"].astype(np.float64)[seen].mean())
        drawn = np.random.default_rng(5)
        kept_easy = int((1 - r) * easy.sum() + drawn.random())
        key = drawn.random(n, dtype=np.float32)
        first = sorted(np.flatnonzero(easy), key=lambda i: (-key[i], i))
        expected = np.ones(n, dtype=np.float32)
        expected[easy] = 0.0
        expected[first[:kept_easy]] = np.float32(1 / (1 - r))
        weight = make(f"infobatch:r={r}")(observation, np.random.default_rng(5))["weight"]
        np.testing.assert_array_equal(np.sort(weight), np.sort(expected))
        if len(set(key.tolist())) == n:  # then nothing else is drawn
            np.testing.assert_array_equal(weight, expected)


def test_uniform_draws_every_subset_alike():
    rng, draws = np.random.default_rng(0), 4000
    counts = Counter(tuple(np.flatnonzero(sampling.uniform(5, 2, rng)).tolist()) for _ in range(draws))
    subsets = list(itertools.combinations(range(5), 2))
    assert_frequencies(np.array([counts[subset] for subset in subsets]), draws, np.full(10, 0.1))


@pytest.mark.parametrize("values", [[3.0, 1.0, 2.0, 1.0, 1.0], [0.5] * 4, [2.0], [1e-30, 0.0, 100.0, 0.0]])
def test_ranks(values):
    values = np.array(values, dtype=np.float32)
    np.testing.assert_allclose(sampling.ranks(values), slow_ranks(values))
    np.testing.assert_allclose(sampling.ranks(values), (stats.rankdata(values) - 0.5) / len(values))


@pytest.mark.parametrize(
    "pi",
    [
        [0.1, 0.9, 0.35, 0.65, 0.5, 0.5],
        [1.0, 0.0, 1.0, 0.25, 0.5, 0.25],
        [1.0, 0.0, 1.0, 0.0],
        [1.0, 1.0, 1.0],
        [1 / 3] * 6,
    ],
)
def test_systematic_has_its_probabilities(pi):
    pi, rng, draws = np.array(pi), np.random.default_rng(0), 4000
    k = round(pi.sum())
    masks = np.array([sampling.systematic(pi, k, rng) for _ in range(draws)])
    assert np.all(masks.sum(axis=1) == k)
    assert_frequencies(masks.sum(axis=0), draws, pi)


@pytest.mark.parametrize("u", [0.0, np.nextafter(1, 0)])
@pytest.mark.parametrize("pi", [[0.1] * 10, [0.2, 0.4, 0.3, 0.1, 0.0]])
def test_systematic_counts_right_where_the_sum_is_rounded(pi, u):
    class Fixed:
        """A generator that leaves the order and draws an end of [0, 1)."""

        def permutation(self, order):
            return order

        def random(self):
            return u

    assert np.cumsum(pi)[-1] != 1  # the first sum ends below 1, the second above
    fixed: Any = Fixed()
    assert sampling.systematic(np.array(pi), 1, fixed).sum() == 1


def test_systematic_ties_no_pair_together():
    rng, draws = np.random.default_rng(0), 4000
    masks = (sampling.systematic(np.full(6, 0.5), 3, rng) for _ in range(draws))
    counts = Counter(tuple(np.flatnonzero(mask).tolist()) for mask in masks)
    subsets = list(itertools.combinations(range(6), 3))
    assert_frequencies(np.array([counts[subset] for subset in subsets]), draws, np.full(20, 1 / 20))


# Baselines


@pytest.mark.parametrize(("n", "keep"), [(12, 0.25), (12, 1 / 3), (10, 0.3), (11, 0.4), (10, 0.7), (7, 0.99)])
def test_random_uses_each_permutation_once(n, keep):
    agent, rng, k = build(f"random:keep={keep}"), np.random.default_rng(0), round(keep * n)
    for _ in range(2):  # after reset as before
        agent.reset()
        visits = np.zeros(n, dtype=int)
        for step in range(1, 60):
            mask = kept(agent, observe(n), rng)
            assert mask.sum() == k
            visits += mask
            # all samples of every finished permutation, and some of the one in use
            assert visits.min() >= step * k // n
            assert visits.max() <= step * k // n + 1


def test_random_reshuffles_and_fresh_does_not_care():
    rng = np.random.default_rng(0)
    agent = make("random:keep=0.5")
    halves = {tuple(kept(agent, observe(10), rng)) for _ in range(40)}
    assert len(halves) > 20  # 20 permutations make up to 40 halves
    fresh = make("random:keep=0.5,fresh=True")
    pairs = [kept(fresh, observe(10), rng) | kept(fresh, observe(10), rng) for _ in range(20)]
    assert min(pair.sum() for pair in pairs) < 10


def test_static_random_changes_only_at_reset():
    agent, rng = build("static_random:keep=0.3"), np.random.default_rng(0)
    first = kept(agent, observe(100, "unseen"), rng)
    for seed in range(5):
        np.testing.assert_array_equal(kept(agent, observe(100, seed=seed, spent=seed / 5), rng), first)
    agent.reset()
    assert np.any(kept(agent, observe(100), rng) != first)


# Bandits


def slow_top(scores: list[float], k: int) -> set[int]:
    return set(sorted(range(len(scores)), key=lambda i: -scores[i])[:k])


@pytest.mark.parametrize("c", [0, 1, 3])
@pytest.mark.parametrize("name", ["ucb", "ucb1"])
def test_ucb(name, c):
    o = observe(50)
    total = sum(float(x) for x in o["visits"])
    scores = []
    for m, v, visits in zip(*(o[key].tolist() for key in ("loss_mean", "loss_var", "visits")), strict=True):
        bonus = v if name == "ucb" else math.sqrt(math.log(1 + total) / (1 + visits))
        scores.append(m + c * bonus)
    mask = kept(f"{name}:keep=0.3,c={c}", o, np.random.default_rng(0))
    assert set(np.flatnonzero(mask)) == slow_top(scores, 15)


def test_bonus_changes_the_choice():
    o = observe(50)
    chosen = {tuple(kept(spec, o, np.random.default_rng(0))) for spec in ("ucb:c=0", "ucb:c=5", "ucb1:c=5")}
    assert len(chosen) == 3


def test_epsilon_greedy():
    o, rng, draws = observe(20), np.random.default_rng(0), 3000
    greedy = slow_top(o["loss_mean"].tolist(), 8)
    agent = make("epsilon_greedy:keep=0.5,epsilon=0.2,period=0")
    masks = np.array([kept(agent, o, rng) for _ in range(draws)])
    assert np.all(masks.sum(axis=1) == 10)
    expected = [1 if i in greedy else 2 / 12 for i in range(20)]
    assert_frequencies(masks.sum(axis=0), draws, np.array(expected))


@pytest.mark.parametrize("name", ["epsilon_greedy", "ucb", "ucb1"])
def test_subset_is_held_for_the_period(name):
    agent, rng = build(name), np.random.default_rng(0)
    masks = [kept(agent, observe(100, seed=step, spent=step / 200), rng) for step in range(200)]
    for step in range(1, 200):
        same = np.array_equal(masks[step], masks[step - 1])
        assert same == (step % 10 != 0), step
    agent.reset()
    first = kept(agent, observe(100, seed=199, spent=0.97), rng)
    assert np.any(first != masks[-1])
    every = make(f"{name}:period=0")
    first, second = (kept(every, observe(100, seed=seed, spent=0.5), rng) for seed in (1, 2))
    assert np.any(first != second)


# InfoBatch


@pytest.mark.parametrize("r", [0, 0.3, 0.5, 0.9])
def test_infobatch_keeps_the_expected_gradient(r):
    o, draws = observe(41, "mixed"), 6000
    loss, seen = o["loss"].tolist(), (o["visits"] > 0).tolist()
    mean = sum(u for u, s in zip(loss, seen, strict=True) if s) / sum(seen)
    easy = np.array([s and u < mean for u, s in zip(loss, seen, strict=True)])
    agent, rng = make(f"infobatch:r={r}"), np.random.default_rng(0)
    weights = np.array([agent(o, rng)["weight"] for _ in range(draws)])
    assert np.all(weights[:, ~easy] == 1)
    np.testing.assert_allclose(np.unique(weights[:, easy]), [1] if r == 0 else [0, 1 / (1 - r)], rtol=1e-6)
    sizes = np.count_nonzero(weights[:, easy], axis=1)
    exact = (1 - r) * easy.sum()
    assert np.all(np.abs(sizes - exact) < 1)
    assert_frequencies(np.count_nonzero(weights[:, easy], axis=0), draws, np.full(easy.sum(), 1 - r))
    gradients = np.random.default_rng(1).normal(size=(41, 3))  # of the samples' losses, any
    steps = weights @ gradients  # (draws, 3)
    error = steps.std(axis=0) / math.sqrt(draws)
    np.testing.assert_array_less(np.abs(steps.mean(axis=0) - gradients.sum(axis=0)), 5 * error + 1e-4)


def test_infobatch_uses_all_data_at_the_end_and_where_it_knows_nothing():
    rng = np.random.default_rng(0)
    assert not kept("infobatch", observe(100, spent=0.87), rng).all()
    assert kept("infobatch", observe(100, spent=0.875), rng).all()
    assert kept("infobatch:anneal=0.1", observe(100, spent=0.9), rng).all()  # 0.9 is 0.89999998 in float32
    assert not kept("infobatch:anneal=0", observe(100, spent=0.99), rng).all()
    assert kept("infobatch", observe(100, "unseen"), rng).all()
    assert kept("infobatch", observe(100, "constant"), rng).all()


# SwDPP


def slow_difficulty(o, dynamics: bool) -> list[float]:
    if not dynamics:
        return slow_ranks(o["loss"].tolist())
    volatility = slow_ranks([math.sqrt(v) for v in o["loss_var"].tolist()])
    hard = slow_ranks(o["loss_mean"].tolist())
    age = [0.25 * min(a, 10) / 10 for a in o["age"].tolist()]
    return slow_ranks([h + 0.5 * d + a for h, d, a in zip(hard, volatility, age, strict=True)])


@pytest.mark.parametrize("state", ["trained", "mixed", "constant"])
@pytest.mark.parametrize("dynamics", [True, False])
@pytest.mark.parametrize(("keep", "tau"), [(0.1, 0.25), (0.5, 0.25), (0.5, 0.05), (0.9, 1.0)])
def test_swdpp_inclusion(keep, tau, dynamics, state):
    o = observe(60, state)
    g = slow_difficulty(o, dynamics)
    np.testing.assert_allclose(difficulty(o, dynamics), g, rtol=1e-12)

    def soft(b: float) -> np.ndarray:
        low = keep / 4
        return np.array([low + (1 - low) / (1 + math.exp(-((x - 0.5) / tau + b))) for x in g])

    b: Any = optimize.brentq(lambda b: soft(b).mean() - keep, -50, 50, xtol=1e-13)
    pi = inclusion(o, keep, tau, dynamics)
    np.testing.assert_allclose(pi, soft(b), rtol=1e-8)
    assert pi.mean() == pytest.approx(keep, abs=1e-12)


@pytest.mark.parametrize("tau", [0, 0.001, 0.25])
@pytest.mark.parametrize("keep", [0.004, 0.3, 0.996, 1])
@pytest.mark.parametrize("state", STATES)
def test_swdpp_probabilities_sum_to_the_number_kept(state, keep, tau):
    pi = inclusion(observe(1000, state), keep, tau)
    assert pi.sum() == pytest.approx(round(keep * 1000), abs=1e-8)
    assert pi.min() >= 0
    assert pi.max() <= 1
    if state in ("constant", "unseen"):
        np.testing.assert_allclose(pi, keep, rtol=1e-9)


@pytest.mark.parametrize("spec", ["swdpp:keep=0.3", "swdpp:keep=0.6,tau=0.05", "swdpp:keep=0.5,dynamics=False"])
def test_swdpp_draws_with_its_probabilities(spec):
    o, rng, draws = observe(40, "mixed"), np.random.default_rng(0), 3000
    agent = build(spec)
    pi = inclusion(o, agent.keep, agent.tau, agent.dynamics)
    assert_frequencies(np.sum([kept(agent, o, rng) for _ in range(draws)], axis=0), draws, pi)


def test_swdpp_hard_cut_keeps_the_largest():
    o = observe(50)
    mask = kept("swdpp:tau=0,keep=0.3", o, np.random.default_rng(0))
    assert set(np.flatnonzero(mask)) == slow_top(slow_difficulty(o, True), 15)
    mask = kept("swdpp:tau=0,keep=0.3,dynamics=False", o, np.random.default_rng(0))
    assert set(np.flatnonzero(mask)) == slow_top(o["loss"].tolist(), 15)


def test_swdpp_weights():
    o = observe(200)
    weight = make("swdpp:keep=0.3,tau=0.1,reweight=True")(o, np.random.default_rng(0))["weight"]
    expected = np.array([min(0.3 / p, 3) for p in inclusion(o, 0.3, 0.1)])[weight > 0]
    assert max(expected) == 3  # the bound is met among these samples
    np.testing.assert_allclose(weight[weight > 0], expected, rtol=1e-6)
    plain = make("swdpp:keep=0.3,tau=0.1")(o, np.random.default_rng(0))["weight"]
    np.testing.assert_array_equal(plain, weight > 0)


@pytest.mark.parametrize(("keep", "q_max"), [(0.1, 0.5), (0.4, 0.5), (0.4, 1.0), (0.5, 0.3), (0.05, 0.5)])
def test_swdpp_mixup(keep, q_max):
    o, rng = observe(20_000), np.random.default_rng(0)
    action = make(f"swdpp:keep={keep},q_max={q_max}")(o, rng)
    shares = action["mixup"][action["weight"] > 0]
    q = q_max * min(max((1 - keep - 0.3) / 0.6, 0), 1)
    assert_frequencies(np.array([np.count_nonzero(shares)]), len(shares), q)
    blended = shares[shares > 0]

    def cdf(x):  # of min(λ, 1-λ), λ symmetric
        return 2 * stats.beta.cdf(x, 0.4, 0.4)

    assert stats.kstest(blended, cdf).pvalue > 0.001


@pytest.mark.parametrize("spec", ["swdpp:keep=0.7", "swdpp:keep=1", "swdpp:keep=0.2,q_max=0"])
def test_swdpp_without_mixup(spec):
    assert np.count_nonzero(make(spec)(observe(500), np.random.default_rng(0))["mixup"]) == 0


def test_swdpp_uses_all_data_first_and_if_told_last():
    rng = np.random.default_rng(0)
    for spec, observation in (
        ("swdpp:keep=0.2", observe(100, "unseen")),
        ("swdpp:keep=0.2,anneal=0.125", observe(100, spent=0.875)),
    ):
        action = make(spec)(observation, rng)
        np.testing.assert_array_equal(action["weight"], np.ones(100))
        np.testing.assert_array_equal(action["mixup"], np.zeros(100))
    assert kept("swdpp:keep=0.2", observe(100, spent=0.99), rng).sum() == 20
    assert kept("swdpp:keep=0.2,anneal=0.125", observe(100, spent=0.87), rng).sum() == 20


# By difficulty


def test_loss_topk():
    o = observe(50)
    mask = kept("loss_topk:keep=0.3", o, np.random.default_rng(0))
    assert set(np.flatnonzero(mask)) == slow_top(o["loss"].tolist(), 15)


@pytest.mark.parametrize("width", [1.0, 1.8])
def test_middle_draws_without_replacement_by_weight(width):
    o, rng, draws = observe(6), np.random.default_rng(0), 6000
    z = [math.log(rho / (1 - rho)) for rho in slow_ranks(o["loss_mean"].tolist())]
    w = [math.exp(-((x / width) ** 2)) for x in z]
    expected = np.zeros(6)
    for i, j in itertools.permutations(range(6), 2):  # first i, then j of the others
        expected[[i, j]] += w[i] / sum(w) * w[j] / (sum(w) - w[i])
    agent = make(f"middle:keep=0.333,width={width}")
    counts = np.sum([kept(agent, o, rng) for _ in range(draws)], axis=0)
    assert_frequencies(counts, draws, expected)


# Specs


def test_make_sets_the_options():
    assert repr(make("ucb")) == "UCB(keep=0.5, c=1.0, period=0.05)"
    assert repr(make("ucb:")) == repr(make("ucb"))
    assert repr(make("ucb:keep=0.3,c=2")) == "UCB(keep=0.3, c=2, period=0.05)"
    assert repr(make("swdpp:reweight=True, tau=0")).startswith("SwDPP(keep=0.5, tau=0, dynamics=True, q_max=0.5, r")
    assert {name: type(make(name)) for name in AGENTS} == AGENTS


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """A module of the user's own with two agents and a number."""
    source = """
import numpy as np
class MyAgent:
    def __init__(self, sizes, keep=0.5, mode="a,b"):
        self.settings = sizes, keep, mode
    def __call__(self, observation, rng):
        return {}
class Plain:
    pass
def function(observation, rng):
    return {"weight": np.ones(3), "mixup": np.zeros(3)}
number = 3
class Counter:
    def __init__(self):
        self.calls = []
    def __call__(self, observation, rng):
        self.calls.append(rng)
        return {}
counter = Counter()
"""
    file = tmp_path / "my_agents_module.py"
    file.write_text(source)
    (tmp_path / "my_broken_module.py").write_text("import there_is_no_such_module")
    monkeypatch.syspath_prepend(tmp_path)
    yield file
    sys.modules.pop("my_agents_module", None)


def test_make_your_own(mine):
    agent = build("my_agents_module:MyAgent:sizes=(1, 2),mode='x:y,z'")
    assert agent.settings == ((1, 2), 0.5, "x:y,z")
    np.testing.assert_array_equal(make("my_agents_module:function")({}, np.random.default_rng())["weight"], 1)


def test_an_instance_passes_no_state_from_run_to_run(mine):
    first = build("my_agents_module:counter")
    first({}, np.random.default_rng())
    assert len(first.calls) == 1
    assert build("my_agents_module:counter").calls == []
    assert sys.modules["my_agents_module"].counter.calls == []


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("ucbb", ["'ucbb'", *AGENTS, "module:Class"]),
        ("ucbb:keep=0.3", ["'ucbb:keep=0.3'", "loss_topk", "module:Class"]),
        ("", ["unknown agent ''"]),
        (":MyAgent", ["unknown agent ':MyAgent'"]),
        ("learned:policy.zip", ["learned:policy.zip,trust=True", "safetensors"]),
        ("learned:policy.safetensors", ["policy policy.safetensors cannot be read", "No such file"]),
        ("rule:keep=0.09", ["keep", "[0.1, 1]", "0.09"]),
        ("random_rule:keep=0.5", ["'keep'", "the options of random_rule are: none"]),
        ("ucb:kep=0.3", ["'kep'", "keep=0.5, c=1.0, period=0.05"]),
        ("full:keep=0.3", ["'keep'", "the options of full are: none"]),
        ("infobatch:keep=0.3", ["'keep'", "r=0.5, anneal=0.125"]),
        ("ucb:0.3", ["'0.3'", "option=value"]),
        ("ucb:keep", ["'keep'", "option=value"]),
        ("ucb:keep=", ["'keep='", "option=value"]),
        ("ucb:keep=0.3)(c=2", ["'keep=0.3)(c=2'", "option=value"]),
        ("ucb:keep=0.3,keep=0.5", ["keep=0.5"]),
        ("ucb:**{}", ["**{}"]),
        ("ucb:keep=abc", ["keep=abc", "literal"]),
        ("ucb:keep=3", ["keep", "(0, 1]", "3"]),
        ("no_such_module:Agent", ["'no_such_module'", "cannot be imported"]),
        ("my_broken_module:Agent", ["'my_broken_module'", "there_is_no_such_module"]),
        ("my_agents_module:Nobody", ["'my_agents_module'", "'Nobody'"]),
        ("my_agents_module:number", ["my_agents_module:number", "3", "cannot be called"]),
        ("my_agents_module:function:keep=0.3", ["my_agents_module:function", "takes no options"]),
        ("my_agents_module:MyAgent", ["'sizes'", "sizes, keep=0.5, mode='a,b'"]),
    ],
)
def test_make_says_what_is_wrong(mine, spec, words):
    with pytest.raises(ValueError) as error:  # noqa: PT011
        make(spec)
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize(
    ("spec", "name", "wrong", "allowed"),
    [
        *(
            (spec, "keep", wrong, f"[{SMALLEST[spec]}, 1]" if spec in SMALLEST else "(0, 1]")
            for spec in AGENTS
            if spec not in NO_KEEP
            for wrong in (0, 1.01, -1, True, "half", None)
        ),
        ("random", "fresh", 1, "True or False"),
        ("epsilon_greedy", "epsilon", -0.1, "[0, 1]"),
        ("epsilon_greedy", "period", 2, "[0, 1]"),
        ("ucb", "period", -1, "[0, 1]"),
        ("ucb", "c", -1, "[0, inf)"),
        ("ucb1", "c", 1e999, "[0, inf)"),
        ("infobatch", "r", 0.95, "[0, 0.9]"),
        ("infobatch", "anneal", 1.5, "[0, 1]"),
        ("middle", "width", 0, "(0, inf)"),
        ("middle", "width", float("nan"), "(0, inf)"),
        ("swdpp", "tau", 1e-5, "[0.001, inf)"),
        ("swdpp", "tau", -1, "[0.001, inf)"),
        ("swdpp", "dynamics", 0, "True or False"),
        ("swdpp", "q_max", 1.1, "[0, 1]"),
        ("swdpp", "reweight", "yes", "True or False"),
        ("swdpp", "anneal", -0.1, "[0, 1]"),
    ],
)
def test_hyper_parameters_are_checked(spec, name, wrong, allowed):
    with pytest.raises(ValueError, match=name) as error:
        AGENTS[spec](**{name: wrong})
    assert str(error.value).startswith(f"{name} must be")
    assert allowed in str(error.value)
    assert str(error.value).endswith(repr(wrong))


def test_spec_with_keep(mine):
    assert spec_with_keep("ucb", 0.3) == "ucb:keep=0.3"
    assert spec_with_keep("ucb:c=2", 0.3) == "ucb:keep=0.3,c=2"
    assert spec_with_keep("my_agents_module:MyAgent:sizes=1", 0.3) == "my_agents_module:MyAgent:keep=0.3,sizes=1"
    for unchanged in (*NO_KEEP, "infobatch:r=0.3", "ucb:c=2,keep=0.9", "my_agents_module:function"):
        assert spec_with_keep(unchanged, 0.3) == unchanged
    assert repr(make(spec_with_keep("ucb:c=2", 0.3))) == "UCB(keep=0.3, c=2, period=0.05)"


def test_source_digest_follows_the_code(mine):
    assert source_digest("ucb") == source_digest("ucb1:keep=0.3")  # one file
    assert len({source_digest(name) for name in ("ucb", "full", "swdpp", "infobatch", "middle")}) == 5
    own = source_digest("my_agents_module:MyAgent")
    assert own == source_digest("my_agents_module:function")
    mine.write_text(mine.read_text() + "# changed\n")
    assert own != source_digest("my_agents_module:MyAgent")


@pytest.mark.parametrize(("module", "others"), [(sampling, True), (bandits, False)])
def test_source_digest_follows_the_parts_and_the_agents_own_module(mine, tmp_path, monkeypatch, module, others):
    copy = tmp_path / "copy.py"
    copy.write_bytes(Path(module.__file__).read_bytes())
    before = {spec: source_digest(spec) for spec in ("ucb", "full", "my_agents_module:MyAgent")}
    monkeypatch.setattr(module, "__file__", str(copy))
    assert {spec: source_digest(spec) for spec in before} == before  # it is the content that counts
    copy.write_bytes(copy.read_bytes() + b"# changed\n")
    changed = {spec: source_digest(spec) != digest for spec, digest in before.items()}
    assert changed == {"ucb": True, "full": others, "my_agents_module:MyAgent": others}
