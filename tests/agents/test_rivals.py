"""Rules of 2019 to 2026 against plain restatements of their sources, on made-up statistics and planted histories."""

import itertools
import math
import statistics
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

import prune_env
from agents import make
from agents.difficulty import SelectiveBackprop
from agents.mastery import IES, PDD
from agents.rcap import RCAP
from agents.statics import DUAL, DynUnc
from prune_env.stats import of_losses
from tests.agents.test_agents import assert_frequencies, frequencies, kept, observe, slow_top
from tests.agents.test_rules import chosen, show

few = settings(max_examples=25, deadline=None)


def rng_of(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def passes(p: np.ndarray) -> list[dict[str, np.ndarray]]:
    """Observations before the first of T scoring passes and after each, with probabilities p (T, N); T/20 is spent."""
    return [show(t / 20, loss=-np.log(row)) for t, row in enumerate([np.full(p.shape[1], 0.1), *p])]


def slow_scores(p: np.ndarray, window: int, of_window: Callable[[list[float]], float]) -> list[float]:
    histories = [[float(x) for x in column] for column in p.T]
    starts = range(max(1, len(p) - window + 1))
    return [sum(of_window(h[s : s + window]) for s in starts) / len(starts) for h in histories]


def slow_dual(history: list[float]) -> float:
    return statistics.pstdev(history) * (1 - sum(history) / len(history))


WAVERING, MASTERED, HOPELESS = range(10), range(10, 20), range(20, 30)


def planted(count: int = 12) -> np.ndarray:
    """Probabilities (T, 30) of samples that waver, are mastered from the start, and stay hopeless."""
    rng = rng_of(1)
    means, widths = np.repeat([0.5, 0.96, 0.04], 10), np.repeat([0.4, 0.03, 0.03], 10)
    return means + widths * rng.uniform(-1, 1, (count, 30))


# Dyn-Unc and DUAL


@few
@given(st.integers(2, 14), st.sampled_from([2, 3, 10]), st.integers(1, 40), st.integers(0, 99))
def test_dyn_unc_is_arxiv_2306_05175(count, window, n, seed):
    """The mean over all windows of J passes of the standard deviation in the window; the largest are kept."""
    p, k = rng_of(seed).uniform(0.01, 0.99, (count, n)), max(1, round(0.4 * n))
    expected = slow_scores(p, window, statistics.pstdev)
    mine = chosen(DynUnc(keep=0.4, scoring=count / 20, window=window), *passes(p))
    assert len(mine) == k
    assert sum(expected[i] for i in mine) == pytest.approx(sum(expected[i] for i in slow_top(expected, k)), abs=1e-5)


def test_dyn_unc_and_dual_keep_what_wavers():
    assert chosen(DynUnc(keep=1 / 3, scoring=12 / 20), *passes(planted())) == list(WAVERING)
    counts = frequencies(DUAL(keep=1 / 6, scoring=12 / 20), passes(planted()), 40)
    assert counts[list(WAVERING)].sum() > 0.9 * counts.sum()


def test_one_pass_is_too_few_to_tell_how_a_probability_varies():
    for agent in (DynUnc(keep=0.5, scoring=0), DUAL(keep=0.5, scoring=0)):
        rng, shown = rng_of(), passes(planted(2))
        assert [kept(agent, observation, rng).sum() for observation in shown] == [30, 30, 15]
        assert kept(agent, show(0.9, loss=[1.0] * 30), rng).sum() == 15


@pytest.mark.parametrize(("count", "c"), [(3, 5.5), (6, 5.5), (3, 20)])
def test_dual_draws_as_arxiv_2502_06905(count, c):
    """The weight is the density of Beta(16 - b, b) at the mean probability, times the score."""
    p = rng_of(3).uniform(0.2, 0.8, (count, 14)) * rng_of(4).uniform(0.3, 1.2, 14)
    scores, mean = slow_scores(p, 4, slow_dual), p.mean(axis=0)
    mu = np.mean([mean[i] for i in slow_top(scores, 10)])
    b = 15 * (1 - mu) * (1 - (12 / 14) ** c)
    w = [stats.beta.pdf(m, 16 - b, b) * s for m, s in zip(mean, scores, strict=True)]
    expected = np.zeros(14)
    for i, j in itertools.permutations(range(14), 2):  # first i, then j of the others
        expected[[i, j]] += w[i] / sum(w) * w[j] / (sum(w) - w[i])
    counts = frequencies(DUAL(keep=2 / 14, scoring=count / 20, window=4, c=c), passes(p), 600)
    assert_frequencies(counts, 600, expected)


def test_dual_turns_to_easier_samples_the_less_is_kept():
    p = rng_of(5).uniform(0.1, 0.9, 400) + rng_of(6).uniform(-0.1, 0.1, (12, 400))
    easiness = [
        p.mean(axis=0)[chosen(DUAL(keep=keep, scoring=12 / 20), *passes(p))].mean() for keep in (0.5, 0.2, 0.05)
    ]
    assert easiness == sorted(easiness)


# RCAP


def slow_shares(loss: list[float], label: list[int], k: int) -> dict[int, float]:
    """Expected number of samples of each class: ∝ sqrt(class loss · class prior), no class above its size."""
    size = {c: label.count(c) for c in set(label)}
    if len(size) == 1:
        return dict.fromkeys(size, k)
    clipped = [min(u, math.log(len(size))) for u in loss]
    mean = {c: sum(u for u, of in zip(clipped, label, strict=True) if of == c) / size[c] for c in size}
    part = {c: math.sqrt(mean[c] * size[c] / len(label)) for c in size}
    full: set[int] = set()
    while True:
        left = k - sum(size[c] for c in full)
        others = {c: left * part[c] / sum(part[o] for o in size if o not in full) for c in size if c not in full}
        over = {c for c, share in others.items() if share > size[c]}
        if not over:
            return {**{c: size[c] for c in full}, **others}
        full |= over


@few
@given(st.integers(2, 60), st.sampled_from([0.1, 0.5, 0.9, 1.0]), st.integers(0, 99))
def test_rcap_shares_among_classes_are_arxiv_2606_11761(n, keep, seed):
    rng = rng_of(seed)
    label = rng.choice(7, n, p=[0.5, 0.2, 0, 0.1, 0.1, 0.05, 0.05])
    o = {**show(loss=rng.lognormal(-1, 1, n)), "label": label}
    k = max(1, round(keep * n))
    shares = slow_shares(o["loss"].tolist(), label.tolist(), k)
    mask = kept(RCAP(keep=keep), o, rng)
    assert mask.sum() == k
    for c, share in shares.items():
        assert math.floor(share + 1e-6) <= mask[label == c].sum() <= math.ceil(share - 1e-6)


def test_rcap_rounds_the_number_of_a_class_without_bias():
    o = {**show(loss=rng_of(2).lognormal(-1, 1, 12)), "label": np.repeat([0, 1, 2], [7, 3, 2])}
    shares = slow_shares(o["loss"].tolist(), o["label"].tolist(), 5)
    counts = np.bincount(o["label"], frequencies(RCAP(keep=5 / 12), [o], 1000))
    for c, share in shares.items():
        assert_frequencies(counts[c] - 1000 * math.floor(share), 1000, share % 1)


def test_rcap_draws_within_a_class_as_arxiv_2606_11761():
    loss = [0.05, 0.3, 0.5, 0.6, 3.0]  # the last one is clipped at ln 2, and so less likely than by its loss
    o = {**show(loss=[*loss, *loss[::-1]]), "label": np.repeat([0, 1], 5)}  # alike: two samples of each
    w = [math.exp(min(u, math.log(2)) / 0.5) for u in loss]
    expected = np.zeros(5)
    for i, j in itertools.permutations(range(5), 2):
        expected[[i, j]] += w[i] / sum(w) * w[j] / (sum(w) - w[i])
    counts = frequencies(RCAP(keep=0.4, beta=0.5), [o], 2000)
    assert_frequencies(counts[:5], 2000, expected)
    assert_frequencies(counts[5:], 2000, expected[::-1])


def test_rcap_gives_a_rare_and_hard_class_more_than_its_part():
    label = np.repeat([0, 1], [90, 10])
    shares = [
        kept(RCAP(keep=0.2), {**show(loss=np.where(label, hard, 0.15)), "label": label}, rng_of())[label == 1].sum()
        for hard in (0.15, 0.6)
    ]
    assert shares == [5, 8]  # sqrt(0.9) : sqrt(0.1) is 3 : 1, and sqrt(0.15 · 0.9) : sqrt(0.6 · 0.1) is 3 : 2
    nothing = {**show(loss=np.zeros(100)), "label": label}
    assert kept(RCAP(keep=0.2), nothing, rng_of()).sum() == 20  # no share is 0/0


# IES


@few
@given(st.integers(1, 4), st.integers(1, 30), st.integers(0, 99))
def test_ies_is_arxiv_2502_07547(window, n, seed):
    rng, threshold = rng_of(seed), 0.01
    agent, history = IES(threshold=threshold, window=window), []
    agent(show(0, loss=[2.3] * n, visits=0), rng)
    for t in range(1, 12):
        o = show(t / 20, loss=rng.uniform(1, 1.02, n), age=rng.choice([0, 0, 0.5], n))
        history.append(o["loss"].tolist())
        mastered = []
        for i in range(n):
            u = [losses[i] for losses in history]
            moves = [abs(u[s] - 2 * u[s - 1] + u[s - 2]) for s in range(2, len(u))][-window:]
            mastered.append(len(moves) == window and sum(moves) / window < threshold and o["age"][i] == 0)
        if all(mastered):
            mastered = [False] * n
        action = agent(o, rng)
        np.testing.assert_array_equal(action["score"], mastered)
        np.testing.assert_array_equal(action["weight"], np.logical_not(mastered))


def test_ies_drops_a_loss_that_falls_in_a_straight_line_and_takes_it_back_when_it_moves():
    agent, rng = IES(), rng_of()
    falling, wavering = [1 - 0.1 * t for t in range(9)], [0.5 + 0.01 * (-1) ** t for t in range(9)]
    falling[7] += 0.1  # forgotten a little
    shown = [show(t / 20, loss=pair, age=0) for t, pair in enumerate(zip(falling, wavering, strict=True))]
    dropped = [agent(o, rng)["score"].tolist() for o in shown]
    assert dropped == [[0, 0]] * 5 + [[1, 0]] * 2 + [[0, 0]] * 2  # the first is before any step


# Progressive data dropout


@few
@given(
    st.integers(1, 60),
    st.sampled_from(["unseen", "trained", "mixed"]),
    st.sampled_from([0.1, 0.3, 0.7, 1.0]),
    st.sampled_from([0, 1, 2.5]),
    st.sampled_from([0.1, 0.8, 0.85, 0.9, 0.99]),
)
def test_pdd_is_arxiv_2505_22342(n, state, threshold, revision, spent):
    o = observe(n, state, spent=spent)
    hard = [not v or math.exp(-u) < threshold for u, v in zip(o["loss"].tolist(), o["visits"].tolist(), strict=True)]
    left, cost = 10 * (1 - float(o["spent"][0])), sum(1 if h else 1 / 3 for h in hard) / n
    if not any(hard) or left - cost < revision:
        hard = [True] * n
    action = PDD(threshold=threshold, revision=revision)(o, rng_of())
    np.testing.assert_array_equal(action["weight"], hard)
    np.testing.assert_array_equal(action["score"], np.logical_not(hard))


@pytest.mark.parametrize("budget", [2.0, 4.5, 8.0])
def test_pdd_ends_with_a_whole_pass_of_revision(budget):
    env, agent, rng = gym.make("prune_env/Digits-v0", budget=budget, train_size=200, batch_size=20), PDD(), rng_of()
    (observation, _), terminated, steps = env.reset(seed=0), False, []
    while not terminated:
        action, before = agent(observation, rng), float(observation["spent"][0])
        observation, _, terminated, *_ = env.step(action)
        steps.append((action["weight"].mean(), budget * (float(observation["spent"][0]) - before)))
    last = list(itertools.takewhile(lambda step: step[0] == 1, reversed(steps)))
    assert [cost for _, cost in last[:2]][-1] == pytest.approx(1)  # a whole pass, and what was left of the budget
    assert len(last) <= 2
    assert len(steps) == 2 or min(steps)[0] < 0.9


# Selective-Backprop


@settings(max_examples=8, deadline=None)
@given(st.integers(1, 12), st.sampled_from([0, 1, 3]), st.sampled_from([0, 0.2]), st.integers(0, 99))
def test_selective_backprop_keeps_with_the_probability_of_arxiv_1910_00762(n, beta, least, seed):
    rng = rng_of(seed)
    o = show(loss=rng.choice([0.1, 0.5, *rng.lognormal(-1, 1, 10)], n), visits=rng.choice([0, 2], n))
    u = o["loss"].tolist()
    expected = [
        1 if not v else max(least, (sum(x <= own for x in u) / n) ** beta)
        for own, v in zip(u, o["visits"].tolist(), strict=True)
    ]
    counts = frequencies(SelectiveBackprop(beta=beta, least=least), [o], 400)
    assert_frequencies(counts, 400, np.array(expected))
    assert counts[np.argmax(o["loss"])] == 400  # so a step is never empty


def test_selective_backprop_measures_what_it_drops_every_third_step():
    agent, rng = SelectiveBackprop(staleness=3), rng_of()
    actions = [agent(observe(100, "unseen" if t == 0 else "trained"), rng) for t in range(10)]
    for t, action in enumerate(actions):
        dropped = (action["weight"] == 0) if t in (3, 6, 9) else np.zeros(100)
        np.testing.assert_array_equal(action["score"], dropped)


@pytest.mark.parametrize("name", ["dyn_unc", "dual", "rcap", "ies", "pdd", "selective_backprop"])
def test_losses_without_logits_are_enough(name):
    agent, rng = make(name), rng_of()
    for t in range(8):
        seen = of_losses(observe(50, "trained" if t else "unseen", seed=t, spent=t / 8))
        assert kept(agent, seen, rng).any()


# Oscillation


class Noting:
    """Takes a share, and notes it."""

    keep = 0.5

    def __call__(self, observation, rng):
        return prune_env.select(np.arange(round(self.keep * 100)), n=100)


def amounts(agent: Any, steps: int = 200) -> list[int]:
    rng = rng_of()
    return [int(kept(agent, observe(100, spent=t / steps), rng).sum()) for t in range(steps)]


@pytest.mark.parametrize("name", ["random", "ucb", "loss_topk", "rule", "tests.agents.test_rivals:Noting"])
def test_oscillate_takes_turns_between_a_low_and_a_high_share_as_arxiv_2605_14773(name):
    counts = amounts(make(f"{name}+oscillate=0.2"))
    assert counts == [30 if t // 20 % 2 == 0 else 70 for t in range(200)]  # a tenth of the budget each
    assert sum(counts) == 200 * 50


def test_oscillate_leaves_the_rule_and_the_other_switches_as_they_are():
    o = observe(100, spent=0.15)
    np.testing.assert_equal(make("ucb+oscillate=0.2")(o, rng_of()), make("ucb:keep=0.7")(o, rng_of()))
    both = make("loss_topk:keep=0.5+oscillate=0.2+anneal=0.1+mixup=1")
    assert amounts(both)[170:] == [30] * 10 + [100] * 20
    assert make("random+oscillate=0.2").state_dict() is not None  # pyright: ignore


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("infobatch+oscillate=0.1", "which InfoBatch does not"),
        ("same_amounts:random+oscillate=0.1", "which SameAmounts does not"),
        ("el2n+oscillate=0.1", "which EL2N does not"),
        ("static_random+oscillate=0.1", "which StaticRandom does not"),
        ("random:keep=0.2+oscillate=0.2", r"keep - oscillate must be a number in \(0, 1\], not 0.0"),
        ("random:keep=0.9+oscillate=0.2", r"keep \+ oscillate must be a number in \(0, 1\], not 1.1"),
        ("rule:keep=0.5+oscillate=0.45", r"keep must be a number in \[0.1, 1\], not 0.05"),
        ("orderdp:keep=0.4,pool=0.5+oscillate=0.3", "pool must be at least keep, which is 0.7, not 0.5"),
        ("random+oscillate=-0.1", r"oscillate must be a number in \[0, 1\), not -0.1"),
    ],
)
def test_oscillate_says_what_cannot_be(spec, words):
    with pytest.raises(ValueError, match=words):
        make(spec)
