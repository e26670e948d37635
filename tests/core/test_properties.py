"""What holds for whatever hypothesis draws: of selections, samplings, statistics, budgets and encodings.

Elsewhere, and not repeated here: rows are what an action keeps (test_selection); statistics of one run, trained on only
(test_stats); the ledger against fractions (test_compute); budget and rate of one student (test_trainer); summaries and
rules of hostile statistics (test_encoding); values that hypothesis would not find (test_numbers).

Monte-Carlo frequencies may be off by 6 standard errors of a binomial share; the draws are fixed.
"""

import itertools
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.stats import rankdata

from prune_env import PruneEnv, sampling, select, selection, stats
from prune_env.budget import Ledger
from prune_env.env import observations
from prune_env.policy.features import FEATURES, extract_features, initial_history, update_history
from prune_env.policy.rules import RULE_PARAMETERS, apply_rule
from prune_env.policy.vector import PruneVectorEnv
from prune_env.selection import Selection
from prune_env.stats import BOUNDS, COLUMNS, Stats
from tests.helpers.reference import SlowStats

SEEDS = st.integers(0, 2**32 - 1)
CPU = torch.device("cpu")


def few(examples: int) -> settings:
    return settings(deadline=None, derandomize=True, max_examples=examples)


def near(counts: np.ndarray, draws: int, expected: np.ndarray | float) -> None:
    """Frequencies as probable as they should be; those of probability 0 and 1, exactly."""
    error = np.sqrt(expected * (1.0 - np.asarray(expected)) / draws)
    np.testing.assert_array_less(np.abs(counts / draws - expected), 6 * error + 1e-9)


# ---------------------------------------------------------------- selection


@given(seed=SEEDS, n=st.integers(1, 40), share=st.floats(0, 1), mixup=st.sampled_from([0.0, 1e-45, 0.3, 0.5]))
@few(60)
def test_masks_weights_and_indices_say_the_same(seed, n, share, mixup):
    rng = np.random.default_rng(seed)
    mask = rng.random(n) < share
    indices = rng.permutation(np.flatnonzero(mask))
    score = rng.random(n) < 0.5
    expected = {"weight": mask, "mixup": np.full(n, np.float32(mixup)), "score": score}
    for said in (mask, mask.tolist(), mask.astype(float), mask.astype(np.float16), torch.from_numpy(mask)):
        action = select(said, mixup, score)
        assert {name: values.tolist() for name, values in action.items()} == {
            name: values.astype(np.float32).tolist() for name, values in expected.items()
        }
        again = selection.check(action, n)
        assert all(np.array_equal(again[name], action[name]) for name in action)
        assert not any(np.shares_memory(again[name], action[name]) for name in action)
    for said in (indices, indices.astype(np.uint8), indices.tolist()):
        assert all(np.array_equal(select(said, mixup, score, n=n)[name], action[name]) for name in action)


@given(seed=SEEDS, n=st.integers(2, 30), data=st.data())
@few(60)
def test_what_two_actions_share_they_share_in_order_and_partners(seed, n, data):
    """Under one generator: the place of a sample and its draw of a partner are its own."""
    rng = np.random.default_rng(seed)
    shares = data.draw(st.tuples(st.floats(0, 1), st.floats(0, 1), st.floats(0, 1)))
    weights = [(rng.random(n) < share).astype(np.float32) for share in shares[:2]]
    mixups = [np.float32(0.5) * (rng.random(n) < share).astype(np.float32) for share in shares[1:]]
    scores = [(rng.random(n) < share).astype(np.float32) for share in shares[1:]]

    def rows(weight: np.ndarray, mixup: np.ndarray, score: np.ndarray) -> Selection:
        action = {"weight": weight, "mixup": mixup, "score": score}
        return Selection.from_action(action, np.random.default_rng(seed))

    orders = [rows(w, m, s) for w, m, s in itertools.product(weights, mixups, scores)]
    lists = [each.indices.tolist() for each in orders] + [each.scored.tolist() for each in orders]
    for one, other in itertools.combinations(lists, 2):
        common = set(one) & set(other)
        assert [i for i in one if i in common] == [i for i in other if i in common]
    for weight in weights:
        of, dropped = {}, set(np.flatnonzero(weight == 0).tolist())
        for mixup in (*mixups, np.full(n, np.float32(0.1))):
            chosen = rows(weight, mixup, scores[0])
            for i, j, share in zip(chosen.indices, chosen.partners, chosen.shares, strict=True):
                if share == 0:
                    assert j == i
                    continue
                assert of.setdefault(i, j) == j  # whatever else is mixed
                if dropped:
                    assert j in dropped
                    assert j != i


@given(seed=SEEDS, n=st.integers(2, 8), data=st.data())
@few(8)
def test_partners_are_uniform_whoever_is_dropped(seed, n, data):
    kept = np.array(data.draw(st.lists(st.booleans(), min_size=n, max_size=n)))
    assume(kept.any())
    action, draws = select(kept, 0.5), 500
    pool = ~kept if (~kept).any() else kept
    counts = np.zeros((n, n))
    for draw in range(draws):
        chosen = Selection.from_action(action, np.random.default_rng([seed, draw]))
        counts[chosen.indices, chosen.partners] += 1
    near(counts, draws, np.outer(kept, pool) / pool.sum())


# ---------------------------------------------------------------- sampling


SCORES = st.sampled_from([-np.inf, -1e38, -1.0, 0.0, 1e-45, 1e-30, 0.5, 0.5000001, 2.0, 1e38, np.inf])


@given(seed=SEEDS, scores=st.lists(SCORES, min_size=1, max_size=12), data=st.data())
@few(25)
def test_the_hardest_are_kept_and_equals_at_the_border_with_equal_probability(seed, scores, data):
    values, draws, rng = np.array(scores, np.float32), 400, np.random.default_rng(seed)
    n, k = len(scores), data.draw(st.integers(0, len(scores)))
    masks = np.array([sampling.top_k_mask(values, k, rng) for _ in range(draws)])
    assert (masks.sum(axis=1) == k).all()
    expected = np.zeros(n)
    for i, value in enumerate(values):
        above, equal = np.sum(values > value), np.sum(values == value)
        expected[i] = min(max((k - above) / equal, 0.0), 1.0)
    near(masks.sum(axis=0), draws, expected)


@given(seed=SEEDS, n=st.integers(1, 10), data=st.data())
@few(20)
def test_uniform_and_fill_have_their_frequencies(seed, n, data):
    draws, rng = 500, np.random.default_rng(seed)
    k = data.draw(st.integers(0, n))
    masks = np.array([sampling.uniform(n, k, rng) for _ in range(draws)])
    assert (masks.sum(axis=1) == k).all()
    near(masks.sum(axis=0), draws, k / n)
    pairs = masks.T.astype(int) @ masks
    off = ~np.eye(n, dtype=bool)
    near(pairs[off], draws, k * (k - 1) / max(n * (n - 1), 1))

    given_ = np.array(data.draw(st.lists(st.booleans(), min_size=n, max_size=n)))
    total = data.draw(st.integers(int(given_.sum()), n))
    filled = np.array([sampling.fill(given_, total, rng) for _ in range(draws)])
    assert (filled.sum(axis=1) == total).all()
    others = n - given_.sum()
    near(filled.sum(axis=0), draws, np.where(given_, 1.0, (total - given_.sum()) / max(others, 1)))


@given(seed=SEEDS, data=st.data())
@few(25)
def test_systematic_has_any_probabilities(seed, data):
    part = st.one_of(st.floats(0, 1), st.sampled_from([0.0, 1.0, 1e-300, 1e-12, 1 - 1e-12, 0.5]))
    free = data.draw(st.lists(part, min_size=1, max_size=9))
    k = -int(-sum(free) // 1)  # rounded up; the last ones take what is missing
    pi = np.append(free, min(max(k - sum(free), 0.0), 1.0))
    draws, rng = 400, np.random.default_rng(seed)
    masks = np.array([sampling.systematic(pi, k, rng) for _ in range(draws)])
    assert (masks.sum(axis=1) == k).all()
    near(masks.sum(axis=0), draws, np.where(pi < 1e-6, 0.0, np.where(pi > 1 - 1e-6, 1.0, pi)))


@given(seed=SEEDS, n=st.integers(1, 300), share=st.floats(0, 1), q=st.sampled_from([0.0, 0.2, 1.0]))
@few(25)
def test_only_what_is_kept_is_blended(seed, n, share, q):
    rng = np.random.default_rng(seed)
    mask = rng.random(n) < share
    shares = sampling.mixup_shares(mask, q, rng)
    assert (shares.dtype, shares.shape) == (np.float32, (n,))
    assert not shares[~mask].any()
    assert shares.max() <= 0.5
    near(np.array(np.count_nonzero(shares)), max(mask.sum(), 1), q if mask.any() else 0.0)
    selection.check({"weight": mask, "mixup": shares}, n)


@given(values=st.lists(st.floats(-(2.0**100), 2.0**100, width=32), min_size=1, max_size=30))
@few(60)
def test_ranks_are_those_of_scipy(values):
    found = sampling.ranks(np.array(values, np.float32))
    np.testing.assert_allclose(found, (rankdata(values) - 0.5) / len(values), rtol=1e-12)
    assert found.mean() == pytest.approx(0.5)


# ---------------------------------------------------------------- statistics


@given(seed=SEEDS, runs=st.integers(1, 3), classes=st.integers(2, 5), data=st.data())
@few(40)
def test_statistics_of_several_runs_in_one_table(seed, runs, classes, data):
    """Each with its own size, weight of the newest and time; visits, and measurements that are none."""
    rng = np.random.default_rng(seed)
    sizes = [data.draw(st.integers(1, 5)) for _ in range(runs)]
    emas = [data.draw(st.sampled_from([0.1, 0.8, 1.0])) for _ in range(runs)]
    tables = [Stats(n, classes, ema, CPU) for n, ema in zip(sizes, emas, strict=True)]
    slow = [SlowStats(n, classes, ema) for n, ema in zip(sizes, emas, strict=True)]
    table = torch.cat([each.table for each in tables])
    rows = [(run, i) for run, n in enumerate(sizes) for i in range(n)]
    spent = np.zeros(runs)
    for _ in range(data.draw(st.integers(1, 5))):
        spent += rng.random(runs)
        trained = bool(rng.random() < 0.6)
        chosen = rng.permutation(len(rows))[: rng.integers(1, len(rows) + 1)]
        logits = rng.choice([-40.0, -1.0, 0.0, 1e-45, 1.0, 2.5], (len(chosen), classes)).astype(np.float32)
        logits[rng.random(len(chosen)) < 0.1, 0] = rng.choice([np.nan, np.inf, -np.inf])
        labels, clean = rng.integers(0, classes, len(chosen)), rng.random(len(chosen)) < 0.8
        run = np.array([rows[c][0] for c in chosen])
        told = stats.enter(
            table,
            torch.from_numpy(chosen),
            torch.from_numpy(logits),
            torch.from_numpy(labels),
            torch.from_numpy(clean),
            torch.tensor(spent[run], dtype=torch.float32),
            torch.tensor(emas)[run],
            trained=trained,
        )
        for at, c in enumerate(chosen):
            of, i = rows[c]
            assert told[:, at].tolist() == [
                bool(x) for x in slow[of].visit(i, logits[at], int(labels[at]), bool(clean[at]), float(spent[of]))
            ]
            slow[of].rows[i]["visits"] -= not trained
    for run, part in enumerate(table.split(sizes)):
        tables[run].table = part.clone()
        expected = slow[run].observe(spent[run])
        for name, values in tables[run].observe(spent[run]).items():
            np.testing.assert_allclose(values, expected[name], rtol=1e-3, atol=1e-5, err_msg=name)


@given(seed=SEEDS, n=st.integers(2, 12), cuts=st.lists(st.integers(0, 12), max_size=3))
@few(30)
def test_statistics_hang_neither_on_the_order_nor_on_the_batches(seed, n, cuts):
    rng = np.random.default_rng(seed)
    start = Stats(n, 3, 0.8, CPU)
    start.table.copy_(torch.from_numpy(rng.random(start.table.shape)))
    logits = torch.from_numpy(rng.normal(0, 4, (n, 3)).astype(np.float32))
    labels, clean = torch.from_numpy(rng.integers(0, 3, n)), torch.from_numpy(rng.random(n) < 0.7)
    tables, every, order = [], torch.arange(n), torch.from_numpy(rng.permutation(n))
    for batches in ([every], torch.tensor_split(order, sorted(cuts))):
        table = Stats(n, 3, 0.8, CPU)
        table.table.copy_(start.table)
        for rows in batches:
            table.update(rows, logits[rows], labels[rows], clean[rows], 1.5)
        tables.append(table.table)
    torch.testing.assert_close(tables[0], tables[1], rtol=1e-6, atol=1e-6)
    counted = [COLUMNS.index(name) for name in ("correct", "forgets", "visits", "age")]
    assert torch.equal(tables[0][:, counted], tables[1][:, counted])


FLOATS = st.floats(width=32) | st.sampled_from([3.4e38, -3.4e38, 1e-45, 0.0])


@given(logits=st.lists(st.tuples(FLOATS, FLOATS, FLOATS), min_size=1, max_size=8), visits=st.integers(1, 4))
@few(100)
def test_whatever_a_student_puts_out_is_seen_within_the_bounds(logits, visits):
    n = len(logits)
    table, z = Stats(n, 3, 0.5, CPU), torch.tensor(logits, dtype=torch.float32)
    for visit in range(visits):
        told = table.update(torch.arange(n), z.roll(visit, 0), torch.arange(n) % 3, torch.ones(n).bool(), 1.0 + visit)
        assert told[0].tolist() == np.isfinite(z.roll(visit, 0).numpy()).all(axis=1).tolist()
    seen = table.observe(float(visits))
    figures = {name: np.zeros(1, np.float32) for name in ("spent", "budget", "val_accuracy", "train_accuracy")}
    assert observations(n, 3, 5.0).contains({**seen, **figures, "label": np.arange(n) % 3})
    assert (seen["visits"] == visits).all()


# ---------------------------------------------------------------- budgets


@given(
    n=st.integers(1, 2**40),
    thirds=st.integers(1, 10**6),
    steps=st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), max_size=8),
)
@few(100)
def test_a_ledger_never_lets_more_be_spent_than_there_is(n, thirds, steps):
    """Whoever trains on no more than is affordable, and scores with no more than the rest."""
    budget = Fraction(thirds, 1000)
    assume(budget * n * 3 < 2**50)  # of a float's 53 digits
    ledger = Ledger(n, thirds / 1000)
    whole = budget * n * 3 // 1
    assert abs(ledger.total - whole) <= whole * Fraction(1, 10**14)
    assume(ledger.total > 0)
    charged = 0
    for train, score in steps:
        k = int(train * ledger.affordable)
        ledger.train += k
        s = int(score * (ledger.total - ledger.used))
        ledger.score += s
        charged += 3 * k + s
        assert ledger.used == charged <= ledger.total
        assert 0 <= ledger.affordable == (ledger.total - charged) // 3
        assert 0.0 <= ledger.share <= 1.0
        assert ledger.spent == pytest.approx(charged / 3 / n, rel=1e-14)


def any_action(rng: np.random.Generator, n: int) -> dict[str, np.ndarray]:
    """Of every kind there is: none, one, some or all, to train on and to score, at any weight and share."""

    def some(bound: float) -> np.ndarray:
        share = rng.choice([0.0, 1 / n, 0.3, 0.8, 1.0], p=[0.1, 0.2, 0.3, 0.3, 0.1])
        return (rng.permutation(n) < round(share * n)) * rng.choice([bound, bound / 10, rng.uniform(0, bound)])

    return {"weight": some(10.0), "mixup": some(0.5), "score": some(1.0)}


class Account:
    """What one episode must come to, in whole thirds of a sample."""

    def __init__(self, n: int, budget: float, price: float, info: dict[str, Any]):
        self.n, self.budget, self.price = n, Fraction(str(budget)), price
        self.first = self.last = info["val_accuracy"]
        self.thirds, self.reward, self.spent = 0, 0.0, 0.0

    def book(self, obs: dict[str, np.ndarray], reward: float, terminated: bool, info: dict[str, Any]) -> None:
        step = 3 * int(info["trained"]) + int(info["scored"])
        self.thirds += step
        self.reward += reward
        self.spent += info["spent"]
        whole = 3 * self.n * self.budget // 1
        assert self.thirds <= whole
        assert info["spent"] == pytest.approx(step / 3 / self.n, rel=1e-12)
        assert self.spent == pytest.approx(info["total_spent"], rel=1e-12)
        assert info["total_spent"] == pytest.approx(self.thirds / 3 / self.n, rel=1e-12)
        assert obs["spent"][0] == pytest.approx(self.thirds / float(whole), rel=1e-6)
        assert reward == pytest.approx(
            (info["val_accuracy"] - self.last) / float(self.budget) - self.price * step / 3 / self.n, abs=1e-9
        )
        self.last = info["val_accuracy"]
        gained = (self.last - self.first) / float(self.budget)
        assert self.reward == pytest.approx(gained - self.price * self.spent, abs=1e-9)  # it telescopes
        assert 0.0 <= info["lr"] < np.inf
        assert bool(info["cut"]) <= (self.thirds > whole - 3)  # cut only where nothing is left
        assert info["mixed"] <= info["trained"] <= round(info["kept"] * self.n)
        if terminated and step and not info["diverged"]:
            assert whole - self.thirds < 3 * min(self.n, 8)  # less than a batch


@given(
    seed=SEEDS,
    n=st.integers(10, 30),
    tenths=st.integers(10, 45),
    price=st.sampled_from([0.0, 0.3]),
    lr=st.sampled_from([0.1, 1e30]),
)
@few(15)
def test_episodes_of_any_actions_keep_their_accounts(seed, n, tenths, price, lr):
    budget, rng = tenths / 10, np.random.default_rng(seed)
    env = PruneEnv(train_size=n, budget=budget, price=price, model="mlp:4", batch_size=8, lr=lr)
    for _ in range(2):
        _, info = env.reset(seed=int(rng.integers(2**32)))
        account, terminated = Account(n, budget, price, info), False
        while not terminated:
            obs, reward, terminated, _, info = env.step(any_action(rng, n))
            account.book(obs, reward, terminated, info)


@given(seed=SEEDS, tenths=st.lists(st.integers(10, 40), min_size=3, max_size=3))
@few(5)
def test_members_of_a_vector_keep_their_accounts(seed, tenths):
    sizes, budgets, rng = [30, 17, 22], [t / 10 for t in tenths], np.random.default_rng(seed)
    task: dict[str, Any] = {"train_size": sizes, "budget": budgets, "lr": [0.1, 1e30, 0.2]}
    env = PruneVectorEnv(3, model="mlp:4", batch_size=8, price=0.2, **task)
    obs, infos = env.reset(seed=seed)
    accounts = [
        Account(n, b, 0.2, {"val_accuracy": infos["val_accuracy"][k]})
        for k, (n, b) in enumerate(zip(sizes, budgets, strict=True))
    ]
    ended = np.zeros(3, bool)
    for _ in range(12):
        each = [any_action(rng, 30) for _ in sizes]
        obs, rewards, terminated, _, infos = env.step({name: np.stack([a[name] for a in each]) for name in each[0]})
        for k, account in enumerate(accounts):
            if ended[k]:  # this step has only reset it
                assert rewards[k] == 0.0
                account.__init__(sizes[k], budgets[k], 0.2, {"val_accuracy": infos["val_accuracy"][k]})
                continue
            info = {name: values[k] for name, values in infos.items()}
            account.book({name: values[k] for name, values in obs.items()}, rewards[k], terminated[k], info)
        ended = terminated


# ---------------------------------------------------------------- encoding


Obs = dict[str, np.ndarray]
FIGURES = ("spent", "budget", "val_accuracy", "train_accuracy")


def changed(obs: Obs, rows: np.ndarray) -> Obs:
    return {name: values if name in FIGURES else values[rows] for name, values in obs.items()}


@st.composite
def runs(draw, sizes: st.SearchStrategy[int]) -> tuple[Obs, Obs]:
    """Two observations of one run, some columns at their bounds, with many equals, or of unlike size."""
    n, seed = draw(sizes), draw(SEEDS)
    kinds = draw(st.lists(st.sampled_from(["plain", "plain", "equal", "bounds", "tiny"]), min_size=11, max_size=11))
    rng = np.random.default_rng(seed)
    before: Obs = {}
    for (name, (low, high)), kind in zip({**BOUNDS, "age": (0.0, 8.0)}.items(), kinds, strict=True):
        middle = min(high, 5.0)
        column: dict[str, Any] = {
            "plain": rng.uniform(low, middle, n),
            "equal": rng.choice(np.linspace(low, middle, 4), n),
            "bounds": rng.choice([low, high, middle], n),
            "tiny": rng.choice([0.0, 1e-45, 1e-20, middle], n),
        }
        before[name] = column[kind].astype(np.float32)
    before["visits"] = np.floor(before["visits"])
    classes = draw(st.sampled_from([1, 2, 7]))
    before["label"] = rng.integers(0, classes, n)
    figures = {
        "spent": 0.2,
        "budget": draw(st.sampled_from([0.5, 8.0, 1e6])),
        "val_accuracy": 0.3,
        "train_accuracy": 0.4,
    }
    before |= {name: np.array([value], np.float32) for name, value in figures.items()}
    kept = rng.random(n) < draw(st.sampled_from([0.0, 0.3, 1.0]))
    after: Obs = {**before, "visits": before["visits"] + kept.astype(np.float32), "spent": np.array([0.25], np.float32)}
    after["age"] = np.where(kept, np.float32(0), before["age"] + np.float32(1))
    after["correct"] = np.where(kept, (rng.random(n) < 0.5).astype(np.float32), before["correct"])
    return before, after


def summary(before: Obs, after: Obs) -> np.ndarray:
    found = extract_features(after, update_history(initial_history(), before))
    assert found.shape == (len(FEATURES),)
    assert np.abs(found).max() <= 1.0  # false for a NaN
    return found


INTERPOLATED = np.array([name.startswith(("loss_q", "loss_c", "volatility", "age")) for name in FEATURES])


@given(run=runs(st.integers(1, 40)), seed=SEEDS)
@few(60)
def test_a_summary_hangs_neither_on_the_order_of_samples_nor_on_the_names_of_classes(run, seed):
    rng = np.random.default_rng(seed)
    n = len(run[0]["label"])
    order, names = rng.permutation(n), rng.permutation(50)
    shuffled = [changed(obs, order) for obs in run]
    renamed = [{**obs, "label": names[obs["label"]]} for obs in run]
    plain = summary(*run)
    np.testing.assert_allclose(summary(*shuffled), plain, atol=2e-6)
    np.testing.assert_allclose(summary(*renamed), plain, atol=2e-6)


@given(run=runs(st.integers(1, 6).map(lambda tens: 10 * tens)), times=st.integers(2, 5), seed=SEEDS)
@few(40)
def test_a_summary_does_not_hang_on_the_number_of_samples(run, times, seed):
    """Each sample `times` over, somewhere; but for quantiles, which lie between neighbours."""
    n = len(run[0]["label"])
    rows = np.random.default_rng(seed).permutation(np.tile(np.arange(n), times))
    one, many = summary(*run), summary(*(changed(obs, rows) for obs in run))
    np.testing.assert_allclose(many[~INTERPOLATED], one[~INTERPOLATED], atol=5e-6)


NUMBERS = st.lists(
    st.floats(-1, 1) | st.sampled_from([-1.0, 0.0, 1.0, 1e-300]),
    min_size=len(RULE_PARAMETERS),
    max_size=len(RULE_PARAMETERS),
)


@given(run=runs(st.integers(1, 40)), numbers=NUMBERS, seed=SEEDS)
@few(100)
def test_a_rule_keeps_its_size_and_its_weights_are_valid(run, numbers, seed):
    obs, n = run[1], len(run[1]["label"])
    rng = np.random.default_rng(seed)
    draws = np.where(rng.random((n, 2)) < 0.2, rng.choice([0.0, 1 - 2**-53], (n, 2)), rng.random((n, 2)))
    action = apply_rule(obs, np.array(numbers), draws)
    selection.check(action, n)
    kept = action["weight"] > 0
    share = 0.1 ** ((1 - numbers[0]) / 2)
    assert kept.sum() in {max(1, int(np.floor(share * n + 0.5 + e))) for e in (-1e-9, 0.0, 1e-9)} | {
        max(1, round(share * n))
    }
    assert action["weight"][kept].min() >= np.float32(1 / 3)
    assert action["weight"][kept].max() <= 3.0
    assert not action["mixup"][~kept | (obs["visits"] == 0)].any()
    if numbers[RULE_PARAMETERS.index("mixup")] == -1.0:
        assert not action["mixup"].any()
    if numbers[RULE_PARAMETERS.index("weighting")] == 0.0:
        assert set(action["weight"][kept]) == {1.0}


@given(run=runs(st.integers(1, 30)), numbers=NUMBERS, seed=SEEDS)
@few(60)
def test_a_rule_goes_by_samples_and_by_the_order_of_their_statistics(run, numbers, seed):
    """It follows a permutation of samples with their draws, and does not see how far apart they are."""
    obs, rng = run[1], np.random.default_rng(seed)
    n, rule = len(run[1]["label"]), np.array(numbers)
    draws = rng.random((n, 2))
    plain = apply_rule(obs, rule, draws)
    order = rng.permutation(n)
    shuffled = apply_rule(changed(obs, order), rule, draws[order])
    stretched = dict(obs)
    for name in ("loss_mean", "loss_var", "age"):
        _, place = np.unique(obs[name], return_inverse=True)
        stretched[name] = np.cumsum(rng.uniform(0.1, 1.0, n))[place].astype(np.float32)
    other = apply_rule({**stretched, "loss": 0 * obs["loss"], "margin": 0 * obs["margin"]}, rule, draws)
    for name, values in plain.items():
        np.testing.assert_allclose(shuffled[name], values[order], rtol=1e-6, err_msg=name)
        np.testing.assert_array_equal(other[name], values, err_msg=name)


@given(
    numbers=NUMBERS,
    at=st.sets(st.integers(0, len(RULE_PARAMETERS) - 1), min_size=1),
    value=st.sampled_from([np.nan, np.inf, -np.inf]),
)
@few(40)
def test_a_rule_of_numbers_that_are_none_is_refused(numbers, at, value):
    obs: Obs = {name: np.zeros(3, np.float32) for name in COLUMNS} | {"label": np.arange(3)}
    rule = np.array(numbers)
    rule[list(at)] = value
    with pytest.raises(ValueError, match=f"{len(RULE_PARAMETERS)} finite numbers"):
        apply_rule(obs, rule, np.zeros((3, 2)))
