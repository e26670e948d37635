"""Each rule against a plain restatement of it, on made-up statistics; and cases counted by hand."""

import itertools
import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import ArrayLike
from scipy import optimize, stats

from agents import make
from agents.kakurenbo import Kakurenbo
from agents.repb import RePB
from agents.seta import SeTa, group_ends
from agents.statics import CCS, EL2N, Forgetting, Grand
from agents.swdpp import difficulty, inclusion
from tests.agents.test_agents import assert_frequencies, frequencies, kept, observe, slow_ranks, slow_top

KEEPS = st.sampled_from([0.01, 0.1, 0.3, 0.5, 0.77, 1.0])
SIZES = st.integers(1, 60)
SEEDS = st.integers(0, 999)
few = settings(max_examples=25, deadline=None)


def rng_of(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def show(spent: float = 0.1, **statistics: ArrayLike) -> dict[str, np.ndarray]:
    """An observation with these statistics (N,) or of all samples alike; the others are made up."""
    n = max(np.size(values) for values in statistics.values())
    known = {name: np.broadcast_to(np.asarray(x, np.float32), n).copy() for name, x in statistics.items()}
    return {**observe(n, spent=spent), **known}


def chosen(agent: Any, *shown: dict[str, np.ndarray]) -> list[int]:
    """Samples that an agent trains on in the last of these steps."""
    rng = rng_of()
    return np.flatnonzero([kept(agent, observation, rng) for observation in shown][-1]).tolist()


# Baselines


@few
@given(SIZES, KEEPS, SEEDS)
def test_random_uses_each_permutation_once(n, keep, seed):
    agent, rng, visits, k = make(f"random:keep={keep}"), rng_of(seed), np.zeros(n, dtype=int), max(1, round(keep * n))
    for step in range(1, 30):
        mask = kept(agent, observe(n), rng)
        assert mask.sum() == k
        visits += mask
        # every finished permutation gave each sample once, the one in use some of them
        assert visits.min() >= step * k // n
        assert visits.max() <= step * k // n + 1


@pytest.mark.parametrize("spec", ["random:keep=0.3", "random:keep=0.3,fresh=True", "static_random:keep=0.3"])
def test_random_subsets_are_uniform(spec):
    assert_frequencies(frequencies(make(spec), [observe(20)], 2000), 2000, 0.3)


def test_random_reshuffles_and_static_random_does_not():
    rng, agent, fresh, static = rng_of(), *map(make, ("random", "random:fresh=True", "static_random"))
    assert len({tuple(kept(agent, observe(10), rng)) for _ in range(40)}) > 20  # 20 permutations have 40 halves
    assert min((kept(fresh, observe(10), rng) | kept(fresh, observe(10), rng)).sum() for _ in range(20)) < 10
    assert len({tuple(kept(static, observe(100, seed=step), rng)) for step in range(9)}) == 1


def test_balanced_draws_from_each_class_alike_until_a_class_is_used_up():
    """Class-balanced sampling, arXiv 1910.09217, without replacement."""
    observation = {**observe(40), "label": np.repeat([0, 1, 2], [24, 12, 4])}
    c = 20 / (math.sqrt(24) + math.sqrt(12) + 2)
    for power, share in ((1, [8 / 24, 8 / 12, 1]), (0, [0.5, 0.5, 0.5]), (0.5, c / np.sqrt([24, 12, 4]))):
        counts = frequencies(make(f"balanced:keep=0.5,power={power}"), [observation], 2000)
        assert_frequencies(counts, 2000, np.repeat(share, [24, 12, 4]))


def test_class_weights_are_inverse_sizes_of_mean_1():
    """Inverse class frequency, in arXiv 1901.05555."""
    observation = {**observe(40), "label": np.repeat([0, 1, 2], [24, 12, 4])}
    for power, of_class in ((1, 40 / 3 / np.array([24, 12, 4])), (0, [1.0, 1.0, 1.0])):
        action = make(f"class_weights:power={power}")(observation, rng_of())
        assert action["weight"].mean() == pytest.approx(1)
        np.testing.assert_allclose(action["weight"], np.repeat(of_class, [24, 12, 4]), rtol=1e-6)
    rare = {**observe(1000), "label": np.repeat([0, 1], [998, 2])}  # 1 / (2 / 1000) / 2 = 250
    assert make("class_weights")(rare, rng_of())["weight"][-1] == 10.0


# Bandits


@few
@given(SIZES, KEEPS, SEEDS, st.sampled_from([0, 1, 3]), st.sampled_from(["ucb", "ucb1"]))
def test_ucb(n, keep, seed, c, name):
    o = observe(n, seed=seed)
    total = sum(float(x) for x in o["visits"])
    scores = []
    for m, v, visits in zip(*(o[key].tolist() for key in ("loss_mean", "loss_var", "visits")), strict=True):
        scores.append(m + c * (v if name == "ucb" else math.sqrt(math.log(1 + total) / (1 + visits))))
    mask = kept(f"{name}:keep={keep},c={c}", o, rng_of())
    assert set(np.flatnonzero(mask)) == slow_top(scores, max(1, round(keep * n)))


def test_epsilon_greedy():
    observation = observe(20)
    greedy = slow_top(observation["loss_mean"].tolist(), 8)
    counts = frequencies(make("epsilon_greedy:keep=0.5,epsilon=0.2,period=0"), [observation], 2000)
    assert_frequencies(counts, 2000, np.array([1 if i in greedy else 2 / 12 for i in range(20)]))


@pytest.mark.parametrize("name", ["epsilon_greedy", "ucb", "ucb1"])
def test_a_subset_is_held_for_the_period(name):
    agent, rng = make(name), rng_of()
    masks = [kept(agent, observe(100, seed=step, spent=step / 200), rng) for step in range(200)]
    for step in range(1, 200):
        assert np.array_equal(masks[step], masks[step - 1]) == (step % 10 != 0), step
    every = make(f"{name}:period=0")
    first, second = (kept(every, observe(100, seed=seed, spent=0.5), rng) for seed in (1, 2))
    assert np.any(first != second)


# Losses


@few
@given(SIZES, KEEPS, SEEDS)
def test_rho_loss_keeps_the_largest_losses_over_the_irreducible_ones(n, keep, seed):
    """Mindermann et al., arXiv 2206.07137, equation 3: the training loss minus the irreducible holdout loss."""
    o = observe(n, seed=seed)
    reducible = [loss - own for loss, own in zip(o["loss"].tolist(), o["reference"].tolist(), strict=True)]
    mask = kept(f"rho_loss:keep={keep}", o, rng_of())
    assert set(np.flatnonzero(mask)) == slow_top(reducible, max(1, round(keep * n)))
    assert chosen(make("rho_loss"), show(loss=[5.0, 1.0, 3.0, 0.1], reference=[4.9, 0.1, 1.0, 0.0])) == [1, 2]


# InfoBatch


@few
@given(st.integers(1, 3000), st.sampled_from([0.0, 0.3, 0.5, 0.9]), SEEDS)
def test_infobatch_written_out(n, r, seed):
    o = observe(n, "mixed", seed)
    loss, seen = o["loss"].tolist(), (o["visits"] > 0).tolist()
    mean = sum(u for u, s in zip(loss, seen, strict=True) if s) / max(1, sum(seen))
    easy = [i for i in range(n) if seen[i] and loss[i] < mean]
    drawn = rng_of(5)
    size = int((1 - r) * len(easy) + drawn.random()) if easy else 0
    key = drawn.random(n, dtype=np.float32)
    expected = np.ones(n, dtype=np.float32)
    expected[easy] = 0.0
    expected[sorted(easy, key=lambda i: -key[i])[:size]] = np.float32(1 / (1 - r))
    weight = make(f"infobatch:r={r}")(o, rng_of(5))["weight"]
    if len(set(key.tolist())) == n:  # otherwise equals are drawn
        np.testing.assert_array_equal(weight, expected)
    np.testing.assert_array_equal(np.sort(weight), np.sort(expected))


@pytest.mark.parametrize(
    ("spec", "whole", "part"),
    [
        ("infobatch", observe(100, spent=0.875), observe(100, spent=0.87)),
        ("infobatch:anneal=0.1", observe(100, spent=0.9), observe(100, spent=0.89)),  # float32: 0.9 is 0.89999998
        ("infobatch", observe(100, "unseen"), observe(100)),
        ("infobatch:anneal=0", observe(100, "constant"), observe(100, spent=0.99)),
        ("swdpp:keep=0.2", observe(100, "unseen"), observe(100, spent=0.99)),
        ("swdpp:keep=0.2,anneal=0.125", observe(100, spent=0.875), observe(100, spent=0.87)),
    ],
)
def test_all_data_is_used_where_nothing_is_known_and_at_the_end(spec, whole, part):
    action = make(spec)(whole, rng_of())
    assert action["weight"].tolist() == [1] * 100
    assert not action["mixup"].any()
    assert not kept(spec, part, rng_of()).all()


# SwDPP


def slow_difficulty(o: dict[str, np.ndarray], dynamics: bool) -> list[float]:
    if not dynamics:
        return slow_ranks(o["loss"].tolist())
    volatility, hard = slow_ranks([math.sqrt(v) for v in o["loss_var"].tolist()]), slow_ranks(o["loss_mean"].tolist())
    age = [0.25 * min(a, 10) / 10 for a in o["age"].tolist()]
    return slow_ranks([h + 0.5 * d + a for h, d, a in zip(hard, volatility, age, strict=True)])


@few
@given(
    st.integers(2, 60),
    st.sampled_from(["trained", "mixed", "constant"]),
    st.booleans(),
    st.floats(0.05, 0.95),
    st.sampled_from([0.05, 0.25, 1.0]),
)
def test_swdpp_inclusion(n, state, dynamics, keep, tau):
    o = observe(n, state)
    k = max(1, round(keep * n)) / n
    g = slow_difficulty(o, dynamics)
    np.testing.assert_allclose(difficulty(o, dynamics), g, rtol=1e-12)

    def soft(b: float) -> np.ndarray:
        return np.array([k / 4 + (1 - k / 4) / (1 + math.exp(-((x - 0.5) / tau + b))) for x in g])

    expected = np.ones(n) if k == 1 else soft(optimize.brentq(lambda b: soft(b).mean() - k, -50, 50, xtol=1e-13))  # pyright: ignore
    np.testing.assert_allclose(inclusion(o, keep, tau, dynamics), expected, rtol=1e-8)


@few
@given(st.integers(1, 200), KEEPS, st.sampled_from([0, 0.001, 0.25]), st.sampled_from(["extreme", "constant", "mixed"]))
def test_swdpp_probabilities_sum_to_the_number_kept(n, keep, tau, state):
    pi = inclusion(observe(n, state), keep, tau)
    assert pi.sum() == pytest.approx(max(1, round(keep * n)), abs=1e-8)
    assert 0 <= pi.min() <= pi.max() <= 1


def test_swdpp_draws_with_its_probabilities_and_its_hard_cut_takes_the_largest():
    o = observe(40, "mixed")
    assert_frequencies(frequencies(make("swdpp:keep=0.3"), [o], 500), 500, inclusion(o, 0.3))
    o = observe(50)
    assert set(chosen("swdpp:tau=0,keep=0.3", o)) == slow_top(slow_difficulty(o, True), 15)
    assert set(chosen("swdpp:tau=0,keep=0.3,dynamics=False", o)) == slow_top(o["loss"].tolist(), 15)


def test_swdpp_weights():
    o = observe(200)
    weight = make("swdpp:keep=0.3,tau=0.1,reweight=True")(o, rng_of())["weight"]
    expected = np.array([min(0.3 / p, 3) for p in inclusion(o, 0.3, 0.1)])[weight > 0]
    assert max(expected) == 3  # the bound is met among these samples
    np.testing.assert_allclose(weight[weight > 0], expected, rtol=1e-6)
    assert set(make("swdpp:keep=0.3,tau=0.1")(o, rng_of())["weight"]) == {0, 1}


@pytest.mark.parametrize(("keep", "q_max", "q"), [(0.1, 0.5, 0.5), (0.4, 1.0, 0.5), (0.5, 0.3, 0.1), (0.7, 0.5, 0)])
def test_swdpp_mixup(keep, q_max, q):
    action = make(f"swdpp:keep={keep},q_max={q_max}")(observe(20_000), rng_of())
    shares = action["mixup"][action["weight"] > 0]
    assert_frequencies(np.array([np.count_nonzero(shares)]), len(shares), q)
    if q:
        assert stats.kstest(shares[shares > 0], lambda x: 2 * stats.beta.cdf(x, 0.4, 0.4)).pvalue > 0.001


# By difficulty


@few
@given(SIZES, KEEPS, SEEDS)
def test_loss_topk(n, keep, seed):
    o = observe(n, seed=seed)
    assert set(chosen(f"loss_topk:keep={keep}", o)) == slow_top(o["loss"].tolist(), max(1, round(keep * n)))


def test_orderdp_takes_the_hardest_of_a_pool():
    """A sample is kept if the pool has it and fewer than k harder ones: a sum of hypergeometric terms."""
    n, k, pool, o = 12, 3, 6, observe(12)
    by_rank = [
        sum(math.comb(rank, j) * math.comb(n - 1 - rank, pool - 1 - j) for j in range(k)) / math.comb(n, pool)
        for rank in range(n)
    ]
    expected = np.empty(n)
    expected[np.argsort(-o["loss"])] = by_rank
    assert_frequencies(frequencies(make("orderdp:keep=0.25,pool=0.5"), [o], 1500), 1500, expected)
    assert_frequencies(frequencies(make("orderdp:keep=0.25"), [o], 1500), 1500, expected)  # sqrt(0.25)


def test_middle_draws_without_replacement_by_weight():
    o = observe(6)
    z = [math.log(rho / (1 - rho)) for rho in slow_ranks(o["loss_mean"].tolist())]
    w = [math.exp(-((x / 1.8) ** 2)) for x in z]
    expected = np.zeros(6)
    for i, j in itertools.permutations(range(6), 2):  # first i, then j of the others
        expected[[i, j]] += w[i] / sum(w) * w[j] / (sum(w) - w[i])
    assert_frequencies(frequencies(make("middle:keep=0.333"), [o], 2000), 2000, expected)


# SeTa

CLUSTERS = [[0.01, 0.02, 0.03, 0.04, 0.05, 0.06], [1.0, 1.01, 1.02], [2.0, 2.02], [3.0, 3.01, 3.02], [4.0]]
PAIRS = [(loss, group) for group, losses in enumerate(CLUSTERS) for loss in losses]
LOSSES, GROUPS = zip(*[PAIRS[i] for i in rng_of(3).permutation(len(PAIRS))], strict=True)  # five clear groups of 15


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 4), SEEDS)
def test_k_means_finds_the_best_groups_of_few(groups, seed):
    x = np.sort(rng_of(seed).lognormal(-1, 1.5, 9)).astype(np.float32)

    def within(ends) -> float:
        parts = [[float(v) for v in x[a:b]] for a, b in itertools.pairwise(ends)]
        return sum((v - sum(part) / len(part)) ** 2 for part in parts for v in part)

    best = min(within([0, *cuts, 9]) for cuts in itertools.combinations(range(1, 9), groups - 1))
    assert min(within(group_ends(x, groups, rng_of(i))) for i in range(5)) == pytest.approx(best)


@pytest.mark.parametrize(
    ("window", "windows"),
    [
        (0.9, ["1234", "0123", "1234"]),  # the default leaves out the easiest and the hardest by turns
        (0.6, ["123", "234", "012", "123"]),
        (0.2, ["1", "2", "3", "4", "0", "1"]),
        (0.01, ["1", "2", "3", "4", "0", "1"]),
        (0.5, ["12", "23", "34", "01", "12"]),  # 2.5 groups are 2
        (1.0, ["01234"] * 3),
    ],
)
def test_the_window_slides_from_easy_to_hard_and_again(window, windows):
    agent, rng = SeTa(r=0, window=window), rng_of()
    assert kept(agent, show(loss=LOSSES), rng).all()
    for inside in windows:
        assert kept(agent, show(loss=LOSSES), rng).tolist() == [str(group) in inside for group in GROUPS]


def test_thinning_is_uniform_and_comes_first_and_last():
    thinned = frequencies(SeTa(r=0.4), [show(loss=LOSSES)], 800)
    assert_frequencies(thinned, 800, 0.6)
    last = frequencies(SeTa(), [show(loss=LOSSES), show(np.nextafter(np.float32(0.875), 0), loss=LOSSES)], 300)
    assert_frequencies(last, 300, round(0.9 * 15) / 15)
    before = [show(loss=LOSSES), show(0.874, loss=LOSSES)]
    assert not frequencies(SeTa(r=0), before, 3)[np.array(GROUPS) == 0].any()


def test_what_was_not_seen_is_in_every_window_and_equals_are_parted_at_random():
    visits = np.array([i % 3 > 0 for i in range(15)])
    shown, agent, rng = show(loss=np.where(visits, LOSSES, math.log(10)), visits=visits), SeTa(r=0), rng_of()
    kept(agent, shown, rng)
    for out in (0, 4):
        assert kept(agent, shown, rng).tolist() == [not visits[i] or GROUPS[i] != out for i in range(15)]
    equal = show(loss=[0.7] * 10)
    assert_frequencies(frequencies(SeTa(r=0), [equal, equal], 500), 500, 0.8)  # four of five groups of two


# KAKURENBO


@few
@given(
    st.integers(1, 200),
    st.sampled_from(["0", "0.29", "0.3", "0.9"]),
    st.sampled_from([(0.05, "1"), (0.45, "0.8"), (0.7, "0.6"), (0.95, "0.4"), (0.8, "0.4"), (0.5999, "0.8")]),
    st.sampled_from([0.0, 0.7, 0.9]),
    st.booleans(),
)
def test_kakurenbo_is_its_rule(n, hide, moment, confidence, nominal):
    spent, factor = moment
    o, rng = observe(n, "mixed", seed=n, spent=spent), rng_of(4)
    o["loss"] = (rng.permutation(n) / n).astype(np.float32)  # all different
    o["confidence"] = rng.random(n, dtype=np.float32)
    share = Fraction(hide) * Fraction(factor)
    lowest = sorted(range(n), key=lambda i: o["loss"][i])[: math.floor(share * n)]
    hidden = {i for i in lowest if o["visits"][i] and o["correct"][i] and o["confidence"][i] >= confidence - 1e-7}
    weight = float(1 / (1 - share)) if nominal else n / (n - len(hidden))
    if not o["visits"].any():
        hidden, weight = set(), 1.0
    action = Kakurenbo(hide=float(hide), confidence=confidence, nominal=nominal)(o, rng)
    assert set(np.flatnonzero(action["score"]).tolist()) == hidden
    np.testing.assert_allclose(action["weight"], [0 if i in hidden else weight for i in range(n)], rtol=1e-6)


# RePB


def test_repb_is_its_rule():
    n, rho = 200, 0.4
    agent, rng, history = RePB(rho=rho), rng_of(), []
    easy_in = easy = outside_in = outside = 0
    for t in range(40):
        losses = rng_of(t + 9).lognormal(-1, 1, n).astype(np.float32)
        weight = agent(show(loss=losses), rng)["weight"]
        now = set(np.flatnonzero(weight).tolist())
        last = history[-1] if history else set()
        mean = sum(float(losses[i]) for i in last) / max(1, len(last))
        for i in range(n):
            times = sum(i in before for before in history)
            assert weight[i] == (pytest.approx(min(t / times, 10) if t else 1, rel=1e-6) if i in now else 0)
            if t == 0 or (i in last and losses[i] >= mean):
                assert i in now
            elif i in last:
                easy, easy_in = easy + 1, easy_in + (i in now)
            else:
                outside, outside_in = outside + 1, outside_in + (i in now)
        history.append(now)
    assert min(easy, outside) > 1000
    assert_frequencies(np.array(easy_in), easy, 1 - rho)
    assert_frequencies(np.array(outside_in), outside, 1 - rho)


# Statics: what is shown is an observation before the first step and one after each


@settings(max_examples=30, deadline=None)
@given(
    st.sampled_from([EL2N, Forgetting, Grand, CCS]),
    st.sampled_from([(0.1, 0, 1), (0.1, 0.1, 1), (0.1, 0.11, 2), (0.1, 0.25, 3), (0.1, 0.7, 7), (0.01, 0.35, 35)]),
    SIZES,
    KEEPS,
)
def test_a_static_scores_in_whole_passes_and_then_keeps_its_subset(static, passes, n, keep):
    share, scoring, count = passes
    agent, rng, spent = static(keep=keep, scoring=scoring), rng_of(), 0.0
    for step in range(count):
        action = agent(observe(n, seed=step, spent=spent), rng)
        assert (action["weight"].min(), action["score"].max()) == (1, 0)
        spent = float(np.float32(spent + share))
    if static is Grand:  # a forward pass of all, alone
        action = agent(observe(n, seed=98, spent=spent), rng)
        assert (action["weight"].max(), action["score"].min()) == (0, 1)
    first, later = (kept(agent, observe(n, seed=seed, spent=x), rng) for seed, x in ((99, spent), (100, 0.9)))
    assert first.sum() == max(1, round(keep * n))
    np.testing.assert_array_equal(first, later)


def test_el2n_takes_the_mean_of_all_passes():
    shown = [show(0, el2n=[0, 0, 0, 1.4]), show(0.1, el2n=[0.9, 0.6, 0.2, 0]), show(0.2, el2n=[0.1, 0.6, 0.8, 0])]
    assert chosen(EL2N(keep=0.25, scoring=0.2), *shown) == [1]  # 0 after the first pass, 2 after the last, 3 before any
    assert chosen(EL2N(keep=0.25, scoring=0.1), *shown[:2]) == [0]


@few
@given(st.lists(st.text("rw", min_size=7, max_size=7), min_size=1, max_size=60), KEEPS)
def test_forgetting(histories, keep):
    """Each history tells in which of seven passes a sample was right."""
    shown = [show(0, correct=[0] * len(histories), forgets=0)]
    for t in range(1, 8):
        right, forgets = [h[t - 1] == "r" for h in histories], [h[:t].count("rw") for h in histories]
        shown.append(show(t / 10, correct=right, forgets=forgets))
    mine = chosen(Forgetting(keep=keep, scoring=0.7), *shown)
    events = sorted([100 if "r" not in h else h.count("rw") for h in histories], reverse=True)
    ours = sorted([100 if "r" not in histories[i] else histories[i].count("rw") for i in mine], reverse=True)
    assert ours == events[: max(1, round(keep * len(histories)))]


def test_grand_takes_the_forward_pass_alone():
    trained, scored = [1.2, 1.0, 0.5, 0.1, 0.2], [0.1, 0.2, 0.9, 1.0, 0.3]
    shown = [*(show(spent, el2n=trained) for spent in (0, 0.1, 0.2)), show(0.22, el2n=scored)]
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


@few
@given(st.integers(2, 101), KEEPS, st.sampled_from([0, 0.1, 0.6]), st.sampled_from([1, 2, 7, 50]))
def test_ccs(n, keep, beta, strata):
    margins = [(rng_of(seed).beta(3, 1, n) * 2 - 1).astype(np.float32) for seed in range(3)]  # few are hard
    shown = [show(step / 10, margin=margin) for step, margin in enumerate([margins[0], *margins])]
    members, counts = slow_ccs([margin.tolist() for margin in margins], max(1, round(keep * n)), beta, strata)
    mine = set(chosen(CCS(keep=keep, scoring=0.3, beta=beta, strata=strata), *shown))
    assert [len(mine & stratum) for stratum in members] == counts


def test_ccs_draws_the_samples_of_a_stratum_alike():
    # hardness of eight easy samples, of strata of one, two and three, and of what is dropped
    easy, rest = [0, 0.125, 0.0625, 0.1875, 0.01, 0.02, 0.03, 0.04], [0.375, 0.5, 0.625, 0.75, 0.9375, 0.875]
    margin = [-h for h in (*easy, *rest, 0.96875, 1, 0.984375, 0.953125)]
    agent = CCS(keep=9 / 18, scoring=0.1, beta=4 / 18, strata=4)
    counts = frequencies(agent, [show(0, margin=margin), show(0.1, margin=margin)], 600)
    # ⌊9/4⌋ = 2 but there is 1, ⌊8/3⌋ = 2, ⌊6/2⌋ = 3, 3 are left for the eight
    assert_frequencies(counts, 600, np.repeat([3 / 8, 1, 1, 1, 0], [8, 1, 2, 3, 4]))
