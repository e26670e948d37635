"""SeTa, KAKURENBO and RePB against plain restatements of their rules and cases counted by hand."""

import itertools
import math
from fractions import Fraction

import gymnasium as gym
import numpy as np
import pytest
from numpy.typing import ArrayLike

from agents.kakurenbo import Kakurenbo
from agents.repb import RePB
from agents.seta import SeTa, group_ends
from prune_env import selection
from tests.agents.test_agents import STATES, assert_frequencies, observe

RIVALS = [SeTa, Kakurenbo, RePB]


def with_losses(
    losses: ArrayLike,
    *,
    spent: float = 0.1,
    visits: ArrayLike = 1,
    confidence: ArrayLike = 0.99,
    correct: ArrayLike = 1,
) -> dict[str, np.ndarray]:
    """An observation with these last losses; the rest as told, or made up."""
    n = np.size(losses)
    observation = observe(n, spent=spent)
    for name, values in {"loss": losses, "visits": visits, "confidence": confidence, "correct": correct}.items():
        observation[name] = np.broadcast_to(np.asarray(values, dtype=np.float32), n).copy()
    return observation


def kept(action) -> list[int]:
    return np.flatnonzero(action["weight"]).tolist()


# What each owes


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("n", [1, 2, 10, 100])
@pytest.mark.parametrize("rival", RIVALS)
def test_every_step_of_a_run_is_valid(rival, n, state):
    agent, again = rival(), rival()
    rng, same = np.random.default_rng(1), np.random.default_rng(1)
    for step in range(12):
        observation = observe(n, state if step else "unseen", seed=step, spent=step / 12)
        before = {name: value.copy() for name, value in observation.items()}
        action, repeated = agent(observation, rng), again(observation, same)
        assert selection.check(action, n).keys() == {"weight", "mixup", "score"}
        assert action["weight"].any()
        assert not action["mixup"].any()
        assert rival is Kakurenbo or not action["score"].any()
        for name in action:
            np.testing.assert_array_equal(action[name], repeated[name])
        for name, value in observation.items():
            np.testing.assert_array_equal(value, before[name])


@pytest.mark.parametrize("rival", [SeTa, RePB])
def test_starts_over_after_a_reset_and_with_another_data_set(rival):
    def run(agent, n: int) -> list[list[float]]:
        rng = np.random.default_rng(5)
        return [agent(observe(n, seed=step), rng)["weight"].tolist() for step in range(4)]

    fresh, agent = run(rival(), 60), rival()
    assert run(agent, 60) == fresh
    assert run(agent, 60) != fresh  # it goes on where it was
    agent.reset()
    assert run(agent, 60) == fresh
    assert run(agent, 50) == run(rival(), 50)
    assert run(agent, 60) == fresh


@pytest.mark.parametrize(
    ("rival", "options"),
    [
        (SeTa, {"r": -0.1}),
        (SeTa, {"r": 0.95}),
        (SeTa, {"groups": 0}),
        (SeTa, {"groups": 2.5}),
        (SeTa, {"groups": True}),
        (SeTa, {"window": 0}),
        (SeTa, {"window": 1.1}),
        (SeTa, {"anneal": 2}),
        (Kakurenbo, {"hide": 0.91}),
        (Kakurenbo, {"hide": -0.1}),
        (Kakurenbo, {"confidence": 1.5}),
        (Kakurenbo, {"nominal": 1}),
        (RePB, {"rho": 1}),
        (RePB, {"rho": "0.5"}),
    ],
)
def test_options_are_checked(rival, options):
    with pytest.raises(ValueError, match=next(iter(options))):
        rival(**options)


# SeTa

CLUSTERS = [[0.01, 0.02, 0.03, 0.04, 0.05, 0.06], [1.0, 1.01, 1.02], [2.0, 2.02], [3.0, 3.01, 3.02], [4.0]]


def clustered() -> tuple[list[float], list[int]]:
    """15 losses in random order that fall into five clear groups, and the group of each."""
    pairs = [(loss, group) for group, losses in enumerate(CLUSTERS) for loss in losses]
    order = np.random.default_rng(3).permutation(len(pairs))
    return [pairs[i][0] for i in order], [pairs[i][1] for i in order]


@pytest.mark.parametrize("groups", [1, 2, 3, 4])
@pytest.mark.parametrize("seed", range(5))
def test_k_means_finds_the_best_groups_of_few(groups, seed):
    x = np.sort(np.random.default_rng(seed).lognormal(-1, 1.5, 9)).astype(np.float32)

    def within(ends) -> float:
        parts = [[float(v) for v in x[a:b]] for a, b in itertools.pairwise(ends)]
        return sum((v - sum(part) / len(part)) ** 2 for part in parts for v in part)

    best = min(within([0, *cuts, 9]) for cuts in itertools.combinations(range(1, 9), groups - 1))
    found = [within(group_ends(x, groups, np.random.default_rng(i))) for i in range(20)]
    assert min(found) == pytest.approx(best)
    assert np.median(found) == pytest.approx(best)


@pytest.mark.parametrize("groups", [2, 5, 10])
def test_k_means_leaves_every_loss_with_its_nearest_mean(groups):
    for seed in range(10):
        rng = np.random.default_rng(seed)
        x = np.sort(rng.lognormal(-2, 2, 300)).astype(np.float32)
        ends = group_ends(x, groups, rng)
        assert ends[0] == 0
        assert ends[-1] == 300
        means = [float(np.mean(x[a:b], dtype=np.float64)) for a, b in itertools.pairwise(ends)]
        for group, (a, b) in enumerate(itertools.pairwise(ends)):
            assert a < b
            for value in x[a:b]:
                distances = [abs(float(value) - mean) for mean in means]
                assert distances[group] <= min(distances) + 1e-9


def test_the_default_window_leaves_out_the_easiest_and_the_hardest_by_turns():
    losses, groups = clustered()
    agent, rng = SeTa(r=0), np.random.default_rng(0)
    sizes = []
    for step in range(6):
        mine = kept(agent(with_losses(losses), rng))
        out = [] if step == 0 else [0] if step % 2 else [4]
        assert mine == [i for i, group in enumerate(groups) if group not in out]
        sizes.append(len(mine))
    assert sizes == [15, 9, 14, 9, 14, 9]
    assert np.mean(sizes[1:3]) == 15 * (1 - (6 / 15 + 1 / 15) / 2)  # the share that the docstring tells


@pytest.mark.parametrize(
    ("window", "windows"),
    [
        (0.6, ["123", "234", "012", "123", "234", "012"]),
        (0.2, ["1", "2", "3", "4", "0", "1"]),
        (0.01, ["1", "2", "3", "4", "0", "1"]),
        (0.5, ["1 2", "2 3", "3 4", "0 1", "1 2", "2 3"]),  # 2.5 groups are 2
        (1.0, ["01234"] * 6),
    ],
)
def test_the_window_slides_from_easy_to_hard_and_again(window, windows):
    losses, groups = clustered()
    agent, rng = SeTa(r=0, window=window), np.random.default_rng(0)
    assert len(kept(agent(with_losses(losses), rng))) == 15
    for inside in windows:
        assert kept(agent(with_losses(losses), rng)) == [i for i, g in enumerate(groups) if str(g) in inside]


def test_thinning_is_uniform_and_comes_first():
    losses, groups = clustered()
    rng, draws, counts, first = np.random.default_rng(0), 400, np.zeros(15), np.zeros(15)
    for _ in range(draws):
        agent = SeTa(r=0.4, groups=2, window=0.5, anneal=0)
        whole = agent(with_losses(losses), rng)["weight"]
        assert whole.sum() == 9
        first += whole
        counts += agent(with_losses([g > 2 for g in groups]), rng)["weight"]  # step 1: the harder of two groups
    assert_frequencies(first, draws, np.full(15, 0.6))
    # the four hard ones are in where drawn; nine of fifteen cannot miss all of the eleven easy ones
    expected = np.array([0.6 if g > 2 else 0.0 for g in groups])
    none_hard = math.comb(11, 9) / math.comb(15, 9)  # then the losses are equal, and parts of equal size are made
    np.testing.assert_array_less(np.abs(counts / draws - expected), 5 * np.sqrt(0.25 / draws) + none_hard)


@pytest.mark.parametrize(
    ("spent", "last"), [(0.874, False), (np.nextafter(np.float32(0.875), np.float32(0)), True), (0.875, True)]
)
def test_the_last_eighth_is_only_thinned(spent, last):
    losses = clustered()[0] * 4  # thinning does not drop all four of the hardest group
    agent, rng = SeTa(), np.random.default_rng(0)
    counts = np.zeros(60)
    for _ in range(150):
        agent.reset()
        agent(with_losses(losses), rng)
        mask = agent(with_losses(losses, spent=spent), rng)["weight"]
        counts += mask
        assert not last or mask.sum() == 54
    easy = np.array(losses) < 0.5
    if last:
        assert_frequencies(counts, 150, np.full(60, 0.9))
    else:
        assert not counts[easy].any()


def test_what_was_not_seen_is_in_every_window():
    losses, groups = clustered()
    visits = np.array([i % 3 > 0 for i in range(15)], dtype=np.float32)
    shown = np.where(visits > 0, losses, math.log(10))
    agent, rng = SeTa(r=0), np.random.default_rng(0)
    agent(with_losses(shown, visits=visits), rng)
    seen_groups = {g for g, v in zip(groups, visits, strict=True) if v}
    assert len(seen_groups) == 5
    for out in (0, 4):
        mine = kept(agent(with_losses(shown, visits=visits), rng))
        assert mine == [i for i in range(15) if not visits[i] or groups[i] != out]


def test_equal_losses_are_parted_at_random():
    agent, rng, draws, counts = SeTa(r=0), np.random.default_rng(0), 500, np.zeros(10)
    for _ in range(draws):
        agent.reset()
        agent(with_losses([0.7] * 10), rng)
        mask = agent(with_losses([0.7] * 10), rng)["weight"]
        assert mask.sum() == 8  # four of five groups of two
        counts += mask
    assert_frequencies(counts, draws, np.full(10, 0.8))


# KAKURENBO


def slow_hidden(observation, hide: str, confidence: float, factor: str) -> set[int]:
    n = len(observation["loss"])
    lowest = sorted(range(n), key=lambda i: observation["loss"][i])[: math.floor(Fraction(hide) * Fraction(factor) * n)]
    hidden = set()
    for i in lowest:
        sure = observation["confidence"][i] >= confidence - 1e-7
        if observation["visits"][i] >= 1 and observation["correct"][i] == 1 and sure:
            hidden.add(i)
    return hidden


@pytest.mark.parametrize(("spent", "factor"), [(0.05, "1"), (0.45, "0.8"), (0.7, "0.6"), (0.95, "0.4")])
@pytest.mark.parametrize("hide", ["0", "0.29", "0.3", "0.9"])
@pytest.mark.parametrize("n", [1, 10, 50, 100, 333])
def test_kakurenbo_is_its_rule(n, hide, spent, factor):
    for state, confidence in itertools.product(("trained", "mixed"), (0.0, 0.7, 0.9)):
        observation = observe(n, state, seed=n, spent=spent)
        if not observation["visits"].any():
            continue
        rng = np.random.default_rng(4)
        observation["loss"] = (rng.permutation(n) / n).astype(np.float32)  # all different
        observation["confidence"] = rng.random(n, dtype=np.float32)
        hidden = slow_hidden(observation, hide, confidence, factor)
        nominal = 1 / (1 - Fraction(hide) * Fraction(factor))
        for by_name, expected in ((False, n / (n - len(hidden))), (True, float(nominal))):
            action = Kakurenbo(hide=float(hide), confidence=confidence, nominal=by_name)(observation, rng)
            assert set(np.flatnonzero(action["score"]).tolist()) == hidden
            for i in range(n):
                assert action["weight"][i] == (0 if i in hidden else pytest.approx(expected, rel=1e-6))


def test_kakurenbo_counted_by_hand():
    losses = [0.9, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 1.0]
    correct = [1, 1, 0, 1, 1, 1, 1, 1, 1, 1]
    confidence = [0.9, 0.7, 0.9, 0.69, 0.95, 0.9, 0.9, 0.9, 0.9, 0.9]
    observation = with_losses(losses, correct=correct, confidence=confidence)
    action = Kakurenbo(hide=0.4)(observation, np.random.default_rng(0))
    # of 1, 2, 3, 4 the second is wrong and the third unsure: both are moved back, and nothing replaces them
    np.testing.assert_array_equal(action["score"], [0, 1, 0, 0, 1, 0, 0, 0, 0, 0])
    np.testing.assert_allclose(action["weight"], [1.25, 0, 1.25, 1.25, 0, 1.25, 1.25, 1.25, 1.25, 1.25])
    assert action["weight"].sum() == pytest.approx(10)
    forgotten = with_losses(losses, correct=[1, 0, *correct[2:]], confidence=confidence)
    assert kept(Kakurenbo(hide=0.4)(forgotten, np.random.default_rng(0))) == [0, 1, 2, 3, 5, 6, 7, 8, 9]


@pytest.mark.parametrize(
    ("spent", "hidden"),
    [
        (0.0, 50),
        (0.2999, 50),
        (np.float32(0.3), 40),
        (np.nextafter(np.float32(0.6), np.float32(0)), 30),
        (0.5999, 40),
        (np.float32(0.6), 30),
        (0.7999, 30),
        (np.float32(0.8), 20),
        (np.float32(4 * 0.2), 20),
        (1.0, 20),
    ],
)
def test_kakurenbo_hides_less_in_steps(spent, hidden):
    observation = with_losses(np.arange(100) / 100, spent=float(spent))
    assert Kakurenbo(hide=0.5)(observation, np.random.default_rng(0))["score"].sum() == hidden


@pytest.mark.parametrize("nominal", [False, True])
def test_kakurenbo_hides_nothing_before_anything_is_measured(nominal):
    observation = with_losses([0.1] * 10, visits=0)
    action = Kakurenbo(nominal=nominal)(observation, np.random.default_rng(0))
    np.testing.assert_array_equal(action["weight"], 1)
    assert not action["score"].any()


def test_kakurenbo_draws_equals_uniformly():
    agent, rng, draws, counts = Kakurenbo(), np.random.default_rng(0), 800, np.zeros(10)
    for _ in range(draws):
        counts += agent(with_losses([0.2] * 9 + [0.1]), rng)["score"]
    assert_frequencies(counts, draws, np.array([2 / 9] * 9 + [1.0]))


def test_kakurenbo_weights_reach_the_bound_and_no_more():
    action = Kakurenbo(hide=0.9)(with_losses(np.arange(10)), np.random.default_rng(0))
    assert action["weight"].tolist() == [0] * 9 + [10]


def test_kakurenbo_scores_what_it_hides_and_pays_for_it():
    env = gym.make("prune_env/Digits-v0", budget=4.0)
    observation, _ = env.reset(seed=0)
    agent, rng, terminated = Kakurenbo(), np.random.default_rng(0), False
    n, scored, trained, steps = len(observation["loss"]), 0, 0, 0
    while not terminated:
        action = agent(observation, rng)
        hidden = np.flatnonzero(action["score"])
        before = observation
        observation, _, terminated, _, info = env.step(action)
        if not terminated:  # the last step may be cut
            assert info["scored"] == len(hidden)
            assert info["trained"] == n - len(hidden)
            assert info["spent"] == pytest.approx((n - len(hidden) + len(hidden) / 3) / n)
            np.testing.assert_array_equal(observation["visits"][hidden], before["visits"][hidden])
            assert not observation["age"][hidden].any()
        scored, trained, steps = scored + info["scored"], trained + info["trained"], steps + 1
    ledger = env.unwrapped.trainer.ledger  # pyright: ignore[reportAttributeAccessIssue]
    assert (ledger.score, ledger.train) == (scored, trained)
    assert scored > n / 2
    assert steps > 4  # what it saved bought a step more
    assert 3 * trained + scored <= 3 * 4 * n < 3 * trained + scored + 3 * 1000
    env.close()


# RePB


def test_repb_is_its_rule():
    n, rho = 200, 0.4
    agent, rng, history = RePB(rho=rho), np.random.default_rng(0), []
    easy_in = easy = outside_in = outside = 0
    for t in range(40):
        losses = np.random.default_rng([t, 9]).lognormal(-1, 1, n).astype(np.float32)
        action = agent(with_losses(losses), rng)
        now = set(kept(action))
        if t == 0:
            assert len(now) == n
        else:
            last = history[-1]
            mean = sum(float(losses[i]) for i in last) / len(last)
            for i in range(n):
                if i not in last:
                    outside, outside_in = outside + 1, outside_in + (i in now)
                elif losses[i] < mean:
                    easy, easy_in = easy + 1, easy_in + (i in now)
                else:
                    assert i in now
            for i in now:
                times = sum(i in chosen for chosen in history)
                assert action["weight"][i] == pytest.approx(min(t / times, 10), rel=1e-6)
        history.append(now)
    assert easy > 1000
    assert outside > 1000
    assert_frequencies(np.array(easy_in), easy, 1 - rho)
    assert_frequencies(np.array(outside_in), outside, 1 - rho)


def test_repb_counted_by_hand():
    class Draws:
        """A generator that draws what it is told."""

        def __init__(self, *rows):
            self.rows = list(rows)

        def random(self, n):
            return np.array(self.rows.pop(0)[:n])

    losses, agent = [0.0, 1.0, 2.0, 5.0], RePB()
    rng = Draws([0.9, 0.1, 0.5, 0.0], [0.1, 0.7, 0.2, 0.3], [0.6, 0.6, 0.6, 0.6])

    def weights(losses):
        return agent(with_losses(losses), rng)["weight"].tolist()  # pyright: ignore[reportArgumentType]

    assert weights(losses) == [1, 1, 1, 1]
    assert weights(losses) == [1, 0, 1, 1]  # mean 2: 0 and 1 are below, 1 is dropped
    # the mean of 0, 4 and 5 is 3: 0 is dropped, 1 comes back after one step of two
    assert weights([0.0, 1.0, 4.0, 5.0]) == [0, 2, 1, 1]
    assert weights(losses) == [1.5, 1.5, 1, 1]


@pytest.mark.parametrize("rho", [0.5, 0.8])
def test_repb_expected_weight_is_almost_1(rho):
    n, agent, rng = 20_000, RePB(rho=rho), np.random.default_rng(0)
    observation = with_losses(np.arange(n) < 100)  # 100 are hard, the others always below the mean
    for t in range(9):  # the bound of 10 is not reached
        weight = agent(observation, rng)["weight"]
        easy = weight[100:].astype(np.float64)
        expected = 1 - rho**t if t else 1
        assert abs(easy.mean() - expected) <= 5 * easy.std() / math.sqrt(len(easy)) + 1e-6
        assert np.all(weight[:100] > 0)


def test_repb_weights_are_bounded_and_settle():
    n, agent, rng = 3000, RePB(rho=0.9), np.random.default_rng(0)
    observation = with_losses(np.arange(n) < 10)
    largest = [agent(observation, rng)["weight"].max() for _ in range(30)]
    assert max(largest) == 10
    assert largest[1] == 1
    agent = RePB(rho=0.5)
    weight = [agent(observation, rng)["weight"][10:] for _ in range(400)][-1]
    assert np.median(weight[weight > 0]) == pytest.approx(2, rel=0.02)


@pytest.mark.parametrize(("rho", "losses"), [(0, np.arange(10)), (0.9, [0.7] * 10), (0.9, [3.0])])
def test_repb_drops_nothing_without_rho_or_a_difference(rho, losses):
    agent, rng = RePB(rho=rho), np.random.default_rng(0)
    for _ in range(20):
        assert agent(with_losses(losses), rng)["weight"].tolist() == [1] * len(losses)
