"""Statics and OrderDP against plain restatements of their rules, on statistics made by hand and in the environment.

What is fed is what a run would show: an observation before the first step and one after each.
"""

import itertools
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

import prune_env  # noqa: F401  (registers the environments)
from agents.difficulty import LossTopK, OrderDP
from agents.statics import CCS, EL2N, Forgetting, Grand
from tests.agents.test_agents import STATES, assert_frequencies, kept, observe, slow_top

STATICS = [EL2N, Forgetting, Grand, CCS]


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def show(spent: float, **statistics) -> dict[str, np.ndarray]:
    """An observation with these statistics; the others are made up."""
    n = len(next(iter(statistics.values())))
    known = {name: np.array(values, dtype=np.float32) for name, values in statistics.items()}
    return {**observe(n, spent=spent), **known}


def play(agent, *shown: dict[str, np.ndarray], seed: int = 0) -> dict[str, np.ndarray]:
    """The last action of an agent that sees these one after the other."""
    rng = generator(seed)
    return [agent(observation, rng) for observation in shown][-1]


def chosen(agent, *shown: dict[str, np.ndarray], seed: int = 0) -> list[int]:
    """Samples that the last action trains on."""
    return np.flatnonzero(play(agent, *shown, seed=seed)["weight"]).tolist()


def passes(n: int, share: float, count: int, state: str = "trained", seed: int = 0) -> list[dict[str, np.ndarray]]:
    """What is seen of `count` passes of this share of the budget each, first of all nothing."""
    shown = [observe(n, state, 10 * seed + step) for step in range(count + 1)]
    spent = np.float32(0)
    for observation in shown:
        observation["spent"] = np.array([spent])
        spent += np.float32(share)
    return shown


# How long it scores, what it freezes


@pytest.mark.parametrize(
    ("share", "scoring", "expected"),
    [(0.1, 0, 1), (0.1, 0.1, 1), (0.1, 0.11, 2), (0.1, 0.25, 3), (0.1, 0.3, 3), (0.1, 0.7, 7), (0.01, 0.35, 35)],
)
@pytest.mark.parametrize("static", STATICS)
def test_scores_in_whole_passes(static, share, scoring, expected):
    agent, rng = static(keep=0.5, scoring=scoring), generator()
    shown = passes(20, share, expected)
    for observation in shown[:-1]:
        action = agent(observation, rng)
        np.testing.assert_array_equal(action["weight"], 1)
        np.testing.assert_array_equal(action["score"], 0)
    if static is Grand:
        action = agent(shown[-1], rng)
        np.testing.assert_array_equal(action["weight"], 0)
        np.testing.assert_array_equal(action["score"], 1)
    action = agent(shown[-1], rng)
    assert set(action["weight"]) == {0, 1}
    np.testing.assert_array_equal(action["score"], 0)


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("static", STATICS)
def test_freezes_exactly_its_share(static, state):
    for n, keep in itertools.product([1, 2, 7, 10, 101], [0.01, 0.35, 0.5, 0.93, 1]):
        agent, rng = static(keep=keep, scoring=0.2), generator()
        shown = passes(n, 0.1, 3, state)  # one more than scores, for Grand
        mask = [kept(agent, observation, rng) for observation in shown][-1]
        assert mask.sum() == max(1, round(keep * n))
        later = kept(agent, observe(n, state, seed=50, spent=0.9), rng)
        np.testing.assert_array_equal(later, mask)


@pytest.mark.parametrize("seen", range(6))
@pytest.mark.parametrize("static", STATICS)
def test_reset_forgets_everything(static, seen):
    agent = static(keep=0.4, scoring=0.3)
    for observation in passes(50, 0.1, 4, seed=1)[:seen]:
        agent(observation, generator(1))
    agent.reset()
    assert_same_choices(agent, static(keep=0.4, scoring=0.3), passes(50, 0.1, 5, seed=2))


@pytest.mark.parametrize("seen", range(1, 6))
@pytest.mark.parametrize("static", STATICS)
def test_another_number_of_samples_starts_over(static, seen):
    agent = static(keep=0.4, scoring=0.3)
    for observation in passes(50, 0.1, 4, seed=1)[:seen]:
        agent(observation, generator(1))
    assert_same_choices(agent, static(keep=0.4, scoring=0.3), passes(49, 0.1, 5, seed=2))


def assert_same_choices(agent, fresh, shown) -> None:
    rng, again = generator(3), generator(3)
    for observation in shown:
        one, other = agent(observation, rng), fresh(observation, again)
        for name in ("weight", "score"):
            np.testing.assert_array_equal(one[name], other[name])


@pytest.mark.parametrize("static", STATICS)
def test_equals_are_drawn_uniformly(static):
    """Ten equals and, by every statistic, one easy and one hard sample; CCS drops the hard one."""
    hard, easy = 2, 7
    statistics = {
        name: [at_hard if i == hard else at_easy if i == easy else at_others for i in range(12)]
        for name, at_hard, at_easy, at_others in [
            ("el2n", 1.25, 0.0, 0.5),
            ("margin", -0.5, 1.0, 0.0),
            ("correct", 0, 1, 1),
            ("forgets", 0, 0, 1),
        ]
    }
    options: dict[str, Any] = {"beta": 1 / 12} if static is CCS else {}
    agent, rng, draws = static(keep=0.5, scoring=0, **options), generator(), 1500
    counts, shown = np.zeros(12), [show(spent, **statistics) for spent in (0, 0.1, 0.2)]
    for _ in range(draws):
        agent.reset()
        mask = [kept(agent, observation, rng) for observation in shown][-1]
        counts += mask
    expected = np.full(12, 0.5)
    expected[[hard, easy]] = (0, 1) if static is CCS else (1, 0)
    assert_frequencies(counts, draws, expected)


# The rules


def test_el2n_takes_the_mean_of_all_passes():
    shown = [show(0, el2n=[0, 0, 0, 1.4]), show(0.1, el2n=[0.9, 0.6, 0.2, 0]), show(0.2, el2n=[0.1, 0.6, 0.8, 0])]
    agent = EL2N(keep=0.25, scoring=0.2)
    assert chosen(agent, *shown) == [1]  # 0 after the first pass, 2 after the last, 3 before any
    agent = EL2N(keep=0.25, scoring=0.1)
    assert chosen(agent, *shown[:2]) == [0]


@pytest.mark.parametrize("keep", [0.1, 0.37, 0.8])
def test_el2n(keep):
    shown = passes(51, 0.1, 3)
    means = [sum(float(observation["el2n"][i]) for observation in shown[1:]) / 3 for i in range(51)]
    assert set(chosen(EL2N(keep=keep, scoring=0.3), *shown)) == slow_top(means, round(keep * 51))


def learned(histories: list[str]) -> list[dict[str, np.ndarray]]:
    """What is seen of samples that were right (r) or wrong (w) in each pass, a tenth of the budget each."""
    shown = [show(0, correct=[0] * len(histories), forgets=[0] * len(histories))]
    for t in range(1, len(histories[0]) + 1):
        correct = [history[t - 1] == "r" for history in histories]
        shown.append(show(t / 10, correct=correct, forgets=[history[:t].count("rw") for history in histories]))
    return shown


@pytest.mark.parametrize(
    ("k", "expected"), [(1, [1]), (2, [1, 4]), (3, [1, 3, 4]), (4, [0, 1, 3, 4]), (6, [0, 1, 2, 3, 4, 5])]
)
def test_forgetting_by_hand(k, expected):
    #            once    never   no      twice   thrice   no, late
    histories = ["rrwwww", "wwwwww", "rrrrrr", "rwrwww", "rwrwrw", "wwwwwr"]
    assert chosen(Forgetting(keep=k / 6, scoring=0.6), *learned(histories)) == expected


@pytest.mark.parametrize("keep", [0.05, 0.2, 0.5])
def test_forgetting(keep):
    rng = generator(5)
    histories = ["".join(rng.choice(["r", "w"], 7)) for _ in range(200)] + ["w" * 7] * 8
    own = chosen(Forgetting(keep=keep, scoring=0.7), *learned(histories))
    events = [100 if "r" not in history else history.count("rw") for history in histories]
    assert sorted((events[i] for i in own), reverse=True) == sorted(events, reverse=True)[: round(keep * 208)]


def test_grand_takes_the_forward_pass_alone():
    trained, scored = [1.2, 1.0, 0.5, 0.1, 0.2], [0.1, 0.2, 0.9, 1.0, 0.3]
    shown = [show(0, el2n=trained), show(0.1, el2n=trained), show(0.2, el2n=trained), show(0.22, el2n=scored)]
    assert chosen(Grand(keep=0.4, scoring=0.2), *shown) == [2, 3]


def slow_ccs(margins: list[list[float]], k: int, beta: float, strata: int) -> tuple[list[set[int]], list[int]]:
    """Samples of each stratum from easy to hard, and how many of each are kept; all margins differ."""
    n = len(margins[0])
    hardness = {i: -sum(margin[i] for margin in margins) / len(margins) for i in range(n)}
    left = sorted(hardness, key=lambda i: hardness[i])
    for _ in range(round(beta * n)):
        if len(left) > k:
            left.pop()
    low, high = hardness[left[0]], hardness[left[-1]]
    members: list[set[int]] = [set() for _ in range(strata)]
    for i in left:
        s = 0
        while s < strata - 1 and hardness[i] >= low + (s + 1) * (high - low) / strata:
            s += 1
        members[s].add(i)
    counts, budget, waiting = [0] * strata, k, list(range(strata))
    while waiting:
        s = min(waiting, key=lambda s: (len(members[s]), s))
        counts[s] = min(len(members[s]), budget // len(waiting))
        budget -= counts[s]
        waiting.remove(s)
    assert budget == 0
    return members, counts


@pytest.mark.parametrize("strata", [1, 2, 7, 50])
@pytest.mark.parametrize("beta", [0, 0.1, 0.6])
@pytest.mark.parametrize(("n", "keep"), [(101, 0.3), (60, 0.5), (37, 0.85), (23, 1)])
def test_ccs(n, keep, beta, strata):
    shown = passes(n, 0.1, 3)
    for seed, observation in enumerate(shown):
        observation["margin"] = generator(seed).beta(3, 1, n).astype(np.float32) * 2 - 1  # few are hard
    margins = [observation["margin"].tolist() for observation in shown[1:]]
    members, counts = slow_ccs(margins, round(keep * n), beta, strata)
    mine = set(chosen(CCS(keep=keep, scoring=0.3, beta=beta, strata=strata), *shown))
    assert [len(mine & stratum) for stratum in members] == counts
    assert len(mine) == sum(counts)


# Hardness of 18 samples: eight easy ones, then strata of one, two and three, and what is dropped.
EASY, ONE, TWO, THREE = [0, 0.125, 0.0625, 0.1875, 0.01, 0.02, 0.03, 0.04], [0.375], [0.5, 0.625], [0.75, 0.9375, 0.875]
TOO_HARD = [0.96875, 1, 0.984375, 0.953125]


@pytest.mark.parametrize(
    ("k", "expected"),
    [
        (1, [1, 0, 0, 0]),  # ⌊1/4⌋, ⌊1/3⌋ and ⌊1/2⌋ are 0, so the largest stratum gives it
        (5, [2, 1, 1, 1]),
        (9, [3, 1, 2, 3]),  # ⌊9/4⌋ = 2 but there is 1, ⌊8/3⌋ = 2, ⌊6/2⌋ = 3, 3 are left
        (12, [6, 1, 2, 3]),
    ],
)
def test_ccs_by_hand(k, expected):
    margin = [-h for h in (*EASY, *ONE, *TWO, *THREE, *TOO_HARD)]
    agent, rng, draws = CCS(keep=k / 18, scoring=0.1, beta=4 / 18, strata=4), generator(), 600
    counts, shown = np.zeros(18), [show(0, margin=margin), show(0.1, margin=margin)]
    for _ in range(draws):
        agent.reset()
        mask = [kept(agent, observation, rng) for observation in shown][-1]
        assert [part.sum() for part in np.split(mask, [8, 9, 11, 14])] == [*expected, 0]
        counts += mask
    shares = np.repeat(np.array([*expected, 0]) / [8, 1, 2, 3, 4], [8, 1, 2, 3, 4])
    assert_frequencies(counts, draws, shares)  # each sample of a stratum alike


def test_ccs_of_equal_strata_the_harder_gives_the_rest():
    margin = [0, -0.1, -0.2, -0.8, -0.9, -1]
    mask = chosen(CCS(keep=0.5, scoring=0, beta=0, strata=2), show(0, margin=margin), show(0.1, margin=margin))
    assert [len(set(mask) & half) for half in ({0, 1, 2}, {3, 4, 5})] == [1, 2]


def test_ccs_drops_no_more_than_leaves_its_share():
    margin = np.linspace(1, -1, 20)
    for keep, dropped in ((0.95, [19]), (0.9, [18, 19]), (1, [])):
        mask = chosen(CCS(keep=keep, beta=0.1, scoring=0), show(0, margin=margin), show(0.1, margin=margin))
        assert sorted(set(range(20)) - set(mask)) == dropped


# In the environment


def episode(agent, budget: float, seed: int = 0) -> tuple[list[dict], list[dict], list[dict], Any]:
    """Observations, actions and infos of a run on the digits, and the environment itself."""
    env = gym.make("prune_env/Digits-v0", budget=budget)
    observation, _ = env.reset(seed=seed)
    shown, actions, infos, rng, terminated = [observation], [], [], generator(), False
    while not terminated:
        actions.append(agent(shown[-1], rng))
        observation, _, terminated, _, info = env.step(actions[-1])
        shown.append(observation)
        infos.append(info)
    return shown, actions, infos, env.unwrapped


@pytest.mark.parametrize(("scoring", "full"), [(0.1, 1), (0.25, 1), (0.5, 2)])
@pytest.mark.parametrize("static", STATICS)
def test_scoring_is_charged(static, scoring, full):
    _, actions, infos, env = episode(static(keep=0.3, scoring=scoring), 4.0)
    n = len(env.train_data)
    k = round(0.3 * n)
    for info in infos[:full]:
        assert (info["kept"], info["trained"], info["scored"], info["spent"]) == (1, n, 0, 1)
    rest = infos[full:]
    if static is Grand:
        forward = rest.pop(0)
        assert (forward["kept"], forward["trained"], forward["scored"]) == (0, 0, n)
        assert forward["spent"] == pytest.approx(1 / 3)
        assert forward["coverage"] == 1
    assert env.trainer.ledger.score == (n if static is Grand else 0)
    for info in rest[:-1]:  # the last may be cut
        assert (info["kept"], info["trained"], info["scored"]) == (k / n, k, 0)
    subsets = {action["weight"].tobytes() for action in actions[-len(rest) :]}
    assert len(subsets) == 1
    assert len(rest) >= 5
    assert 4 - env.recipe.batch_size / n < infos[-1]["total_spent"] <= 4


def test_el2n_of_a_run():
    shown, actions, _, env = episode(EL2N(keep=0.3, scoring=0.5), 6.0)
    n = len(env.train_data)
    means = [sum(float(observation["el2n"][i]) for observation in shown[1:4]) / 3 for i in range(n)]
    assert set(np.flatnonzero(actions[-1]["weight"])) == slow_top(means, round(0.3 * n))


def test_forgetting_of_a_run():
    shown, actions, _, env = episode(Forgetting(keep=0.2, scoring=0.5), 10.0)
    n = len(env.train_data)
    histories = ["".join("wr"[int(observation["correct"][i])] for observation in shown[1:6]) for i in range(n)]
    events = [100 if "r" not in history else history.count("rw") for history in histories]
    own = actions[-1]["weight"] > 0
    assert 1 <= events.count(100) < own.sum()
    assert sorted(np.array(events)[own])[::-1] == sorted(events)[::-1][: own.sum()]


def test_grand_of_a_run():
    shown, actions, _, _ = episode(Grand(keep=0.3, scoring=0.25), 4.0)
    trained, scored, own = shown[1], shown[2], actions[2]["weight"] > 0
    np.testing.assert_array_equal(scored["visits"], 1)
    np.testing.assert_array_equal(scored["age"], 0)
    assert np.mean(scored["el2n"] != trained["el2n"]) > 0.9
    assert scored["el2n"][own].min() >= scored["el2n"][~own].max()
    assert trained["el2n"][own].min() < trained["el2n"][~own].max()  # of the training pass it were others


@pytest.mark.parametrize("static", STATICS)
def test_a_budget_that_ends_while_scoring(static):
    _, actions, infos, env = episode(static(keep=0.3, scoring=1), 1.2)
    assert [info["trained"] for info in infos] == [1040, 208]
    assert all(action["weight"].all() for action in actions)
    assert env.trainer.ledger.score == 0


# OrderDP


@pytest.mark.parametrize(
    ("n", "keep", "pool", "size"),
    [(8, 0.25, None, 4), (7, 0.3, None, 4), (6, 1 / 3, 2 / 3, 4), (9, 1 / 3, 0.5, 4), (6, 0.5, 0.5, 3), (5, 0.4, 1, 5)],
)
def test_orderdp_keeps_the_hardest_of_every_pool(n, keep, pool, size):
    o, rng, draws, k = observe(n), generator(), 3000, round(keep * n)
    pools = list(itertools.combinations(range(n), size))
    loss = o["loss"].tolist()
    expected = np.zeros(n)
    for members in pools:
        expected[sorted(members, key=lambda i: -loss[i])[:k]] += 1 / len(pools)
    agent = OrderDP(keep=keep, pool=pool)
    masks = np.array([kept(agent, o, rng) for _ in range(draws)])
    assert np.all(masks.sum(axis=1) == k)
    assert_frequencies(masks.sum(axis=0), draws, np.minimum(expected, 1))


def test_orderdp_at_its_ends():
    o, rng = observe(50), generator()
    np.testing.assert_array_equal(kept(OrderDP(keep=0.3, pool=1), o, rng), kept(LossTopK(keep=0.3), o, rng))
    draws = np.sum([kept(OrderDP(keep=0.3, pool=0.3), o, rng) for _ in range(2000)], axis=0)
    assert_frequencies(draws, 2000, np.full(50, 0.3))


@pytest.mark.parametrize("state", STATES)
def test_orderdp_keeps_exactly_its_share(state):
    for n, keep in itertools.product([1, 2, 7, 10, 101], [0.01, 0.5, 0.93, 1]):
        for pool in (None, keep, 1):
            mask = kept(OrderDP(keep=keep, pool=pool), observe(n, state), generator())
            assert mask.sum() == max(1, round(keep * n))


@pytest.mark.parametrize("state", ["unseen", "constant"])
def test_orderdp_draws_equals_uniformly(state):
    o, rng = observe(10, state), generator()
    counts = np.sum([kept(OrderDP(keep=0.4), o, rng) for _ in range(2000)], axis=0)
    assert_frequencies(counts, 2000, np.full(10, 0.4))


# Options


@pytest.mark.parametrize(
    ("agent", "options", "allowed"),
    [
        *((agent, {"keep": wrong}, "(0, 1]") for agent in (*STATICS, OrderDP) for wrong in (0, 1.1, True, None)),
        *((agent, {"scoring": wrong}, "[0, 1]") for agent in STATICS for wrong in (-0.1, 1.1, "half")),
        *((CCS, {"beta": wrong}, "[0, 1)") for wrong in (-0.1, 1, None)),
        *((CCS, {"strata": wrong}, "[1, inf)") for wrong in (0, True, float("nan"), float("inf"))),
        (CCS, {"strata": 2.5}, "a whole number"),
        *((OrderDP, {"pool": wrong}, "(0, 1]") for wrong in (0, 1.1, "half")),
        (OrderDP, {"pool": 0.49}, "at least keep"),
    ],
)
def test_options_are_checked(agent, options, allowed):
    ((name, wrong),) = options.items()
    with pytest.raises(ValueError, match=name) as error:
        agent(**options)
    assert str(error.value).startswith(f"{name} must be")
    assert allowed in str(error.value)
    assert str(error.value).endswith(repr(wrong))


def test_the_order_of_the_options():
    assert [repr(agent()) for agent in (EL2N, Forgetting, Grand, CCS, OrderDP)] == [
        "EL2N(keep=0.5, scoring=0.1)",
        "Forgetting(keep=0.5, scoring=0.25)",
        "Grand(keep=0.5, scoring=0.1)",
        "CCS(keep=0.5, scoring=0.1, beta=0.1, strata=50)",
        "OrderDP(keep=0.5, pool=None)",
    ]
