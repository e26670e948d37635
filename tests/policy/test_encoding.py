"""Small spaces from big ones: against plain restatements, sample by sample, and what must not change anything."""

import math
import pickle
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import rankdata

from agents.difficulty import Middle
from prune_env import selection
from prune_env.policy import encoding
from prune_env.policy.encoding import RULE, SUMMARY, begin, decode_rule, keep_number, remember, summarize
from prune_env.sampling import n_keep
from prune_env.stats import BOUNDS

Obs = dict[str, np.ndarray]
FIGURES = ("spent", "budget", "val_accuracy", "train_accuracy")


def f32(values) -> np.ndarray:
    return np.asarray(values, np.float32)


def observe(seed: int, n: int = 60, classes: int = 5, unseen: float = 0.2) -> Obs:
    """Random statistics as a run in its middle has them: some samples unseen, some just measured, uneven classes."""
    rng = np.random.default_rng(seed)
    seen = rng.random(n) >= unseen
    mean = np.where(seen, rng.gamma(1.0, 0.8, n), math.log(classes))
    stats = {
        "loss": mean + rng.random(n),
        "loss_mean": mean,
        "loss_var": seen * rng.gamma(1.0, 0.3, n),
        "confidence": rng.random(n),
        "margin": rng.uniform(-1, 1, n),
        "entropy": rng.random(n),
        "el2n": rng.uniform(0, 1.4, n),
        "correct": seen & (rng.random(n) < 0.6),
        "forgets": seen * rng.poisson(0.5, n),
        "visits": seen * rng.integers(1, 6, n),
        "age": np.where(seen, rng.choice([0.0, 0.3, 1.1, 2.5], n), 3.0),
    }
    figures = {"spent": 0.1 + 0.4 * rng.random(), "budget": 8.0, "val_accuracy": 0.6, "train_accuracy": rng.random()}
    obs: Obs = {name: f32(values) for name, values in stats.items()}
    obs |= {name: f32([value]) for name, value in figures.items()}
    obs["label"] = np.minimum(rng.geometric(0.4, n) - 1, classes - 1).astype(np.int64)
    return obs


def first_step(n: int = 60, classes: int = 5) -> Obs:
    """What `reset` observes: a uniform prediction for everything."""
    start = {"loss": math.log(classes), "loss_mean": math.log(classes), "entropy": 1.0, "confidence": 1 / classes}
    start |= {"el2n": math.sqrt(1 - 1 / classes)}
    obs: Obs = {name: np.full(n, start.get(name, 0.0), np.float32) for name in BOUNDS | {"age": 0}}
    obs |= {name: f32([0.0]) for name in FIGURES} | {"budget": f32([10.0]), "val_accuracy": f32([0.11])}
    obs["label"] = np.arange(n) % classes
    return obs


def later(obs: Obs, seed: int, keep: float = 0.4, mix: float = 0.3) -> Obs:
    """An observation after `obs`, when a share was kept and some of that was blended."""
    rng = np.random.default_rng(seed)
    n = len(obs["label"])
    kept = rng.random(n) < keep
    measured = kept & (rng.random(n) >= mix)
    new = dict(obs)
    new["visits"] = f32(obs["visits"] + kept)
    new["age"] = f32(np.where(measured, 0.0, obs["age"] + np.float32(0.4)))
    new["loss_mean"] = f32(np.where(measured, rng.gamma(1.0, 0.5, n), obs["loss_mean"]))
    new["correct"] = f32(np.where(measured, rng.random(n) < 0.7, obs["correct"]))
    new["spent"] = obs["spent"] + np.float32(0.05)
    new["val_accuracy"] = f32([rng.uniform(0.2, 0.9)])
    new["train_accuracy"] = f32([rng.uniform(0.2, 0.9)])
    return new


def change(obs: Obs, rows) -> Obs:
    """Rows taken out, repeated or put in another order."""
    return {name: values if name in FIGURES else values[rows] for name, values in obs.items()}


def pad(obs: Obs, n: int, seed: int = 0) -> Obs:
    """Rows that are not there, among the others' end, of statistics that mean nothing."""
    rng = np.random.default_rng(seed)
    more = n - len(obs["label"])
    garbage = {name: rng.choice([0.0, 0.5, high, np.nan], more) for name, (_, high) in BOUNDS.items()}
    garbage |= {"age": rng.choice([0.0, 7.0], more), "label": np.full(more, -1)}
    return {
        name: values if name in FIGURES else np.concatenate([values, garbage[name].astype(values.dtype)])
        for name, values in obs.items()
    }


def stack(observations: list[Obs]) -> Obs:
    return {name: np.stack([obs[name] for obs in observations]) for name in observations[0]}


def past_of(observations: list[Obs]) -> np.ndarray:
    past = begin()
    for obs in observations:
        past = remember(past, obs)
    return past


# ---------------------------------------------------------------- the summary, restated


def plain_summary(obs: Obs, earlier: list[Obs]) -> dict[str, float]:
    """SUMMARY entry by entry, from what its comments say, a sample at a time."""
    rows = [i for i, label in enumerate(obs["label"]) if label >= 0]
    n = len(rows)
    label = [int(obs["label"][i]) for i in rows]
    stat = {name: [float(obs[name][i]) for i in rows] for name in (*BOUNDS, "age")}
    now = {name: float(obs[name][0]) for name in FIGURES}
    there = sorted(set(label))
    c = max(len(there), 2)

    def share(flags) -> float:
        flags = list(flags)
        return sum(bool(flag) for flag in flags) / len(flags) if flags else 0.0

    def bounded(ratio: float) -> float:
        """[0, inf) to [-1, 1) with 1 at 0."""
        return (ratio - 1) / (ratio + 1)

    def over_chance(accuracy: float) -> float:
        """-1 where guessing stands, 1 where everything is right."""
        return -1 + 2 * (accuracy - 1 / c) / (1 - 1 / c)

    means: dict[str, float] = {}
    for before in earlier:
        for name in ("spent", "val_accuracy", "train_accuracy"):
            value = float(before[name][0])
            means[name] = (means[name] + value) / 2 if name in means else value

    def slope(name: str) -> float:
        passed = now["spent"] - means.get("spent", now["spent"])
        return math.tanh((now[name] - means[name]) / passed) if passed > 0 else 0.0

    loss, visits = stat["loss_mean"], stat["visits"]
    mean_loss = sum(loss) / n
    largest = sorted(loss, reverse=True)[: max(n // 10, 1)]
    of_class = [np.mean([x for x, y in zip(loss, label, strict=True) if y == k]) for k in there]
    volatility = [math.sqrt(v) / x for v, x in zip(stat["loss_var"], loss, strict=True)]
    seen = [v > 0 for v in visits]
    right = [x > 0 for x in stat["correct"]]
    differences = sum(abs(a - b) for a in visits for b in visits) / n**2
    gini = differences / (2 * sum(visits) / n) if sum(visits) else 0.0

    kept = 0.0
    if earlier:
        kept = sum(visits) / n - sum(float(earlier[-1]["visits"][i]) for i in rows) / n
    just = [i for i in range(n) if seen[i] and stat["age"][i] == 0]
    others = [i for i in range(n) if seen[i] and i not in just]
    rank = (rankdata(loss) - 0.5) / n
    both = bool(just) and bool(others)

    result = {
        "spent": 2 * now["spent"] - 1,
        "log_budget": math.log10(now["budget"]) - 1,
        "log_classes": math.log10(c) - 1,
        "balance": 2 * sum(-p * math.log(p) for p in (label.count(k) / n for k in there)) / math.log(c) - 1,
        "val_accuracy": over_chance(now["val_accuracy"]),
        "train_accuracy": over_chance(now["train_accuracy"]),
        "gap": now["train_accuracy"] - now["val_accuracy"],
        "val_slope": slope("val_accuracy"),
        "train_slope": slope("train_accuracy"),
        "loss": bounded(mean_loss / math.log(c)),
        "loss_top_tenth": 2 * sum(largest) / sum(loss) - 1,
        "loss_spread_of_classes": bounded(float(np.std(of_class)) / mean_loss),
        "right": 2 * share(right) - 1,
        "never_seen": 2 * share(not s for s in seen) - 1,
        "never_right": 2 * share(seen[i] and not right[i] and not stat["forgets"][i] for i in range(n)) - 1,
        "forgotten": 2 * share(seen[i] and not right[i] and stat["forgets"][i] > 0 for i in range(n)) - 1,
        "ever_forgotten": 2 * share(f > 0 for f in stat["forgets"]) - 1,
        "surely_wrong": 2 * share(m < -0.5 for m in stat["margin"]) - 1,
        "surely_right": 2 * share(m > 0.5 for m in stat["margin"]) - 1,
        "confidence": 2 * sum(stat["confidence"]) / n - 1,
        "entropy": 2 * sum(stat["entropy"]) / n - 1,
        "el2n": 2 * sum(stat["el2n"]) / n / math.sqrt(2) - 1,
        "visits_gini": 2 * gini - 1,
        "last_kept": 2 * kept - 1,
        "last_mixed": 2 * (1 - len(just) / n / kept if kept else 0.0) - 1,
        "last_loss_rank": 2 * float(np.mean(rank[just])) - 1 if just else 0.0,
        "last_right": share(right[i] for i in just) - share(right[i] for i in others) if both else 0.0,
    }
    for percent in (5, 25, 50, 75, 90, 97):
        quantile = float(np.quantile(loss, percent / 100))
        result |= {f"loss_q{percent}": bounded(quantile / mean_loss)}
        result |= {f"loss_c{percent}": bounded(quantile / math.log(c))}
    for percent in (50, 90):
        result |= {f"volatility_q{percent}": bounded(float(np.quantile(volatility, percent / 100)))}
        result |= {f"age_q{percent}": bounded(float(np.quantile(stat["age"], percent / 100)))}
    return {name: min(max(value, -1.0), 1.0) for name, value in result.items()}


def single_sample() -> Obs:
    return change(observe(3, unseen=0.0), [0])


def one_class() -> Obs:
    obs = observe(4)
    return {**obs, "label": np.full_like(obs["label"], 3)}


def a_run() -> list[Obs]:
    run = [first_step()]
    for seed in range(4):
        run.append(later(run[-1], seed))
    return run


def all_measured_now() -> Obs:
    """Some of it by a forward pass alone, and never trained on."""
    return {**observe(10), "age": np.zeros(60, np.float32)}


SITUATIONS: dict[str, list[Obs]] = {
    "random": [observe(0)],
    "random, another": [observe(1, n=97, classes=10)],
    "with a past": [observe(2), later(observe(2), 0)],
    "first step": [first_step()],
    "second step": a_run()[:2],
    "fifth step": a_run(),
    "all measured": [observe(5), later(observe(5), 1, keep=1.1, mix=0.0)],
    "nothing kept": [observe(6), later(observe(6), 1, keep=0.0)],
    "all mixed": [observe(7), later(observe(7), 1, mix=1.1)],
    "scored": [observe(10), all_measured_now()],
    "one sample": [single_sample()],
    "one class": [one_class()],
    "all unseen": [observe(8, unseen=1.0)],
    "padded": [pad(observe(9), 80)],
}


@pytest.mark.parametrize("run", SITUATIONS.values(), ids=SITUATIONS)
def test_every_entry_is_what_its_name_says(run):
    *earlier, obs = run
    expected = plain_summary(obs, earlier)
    assert set(expected) == set(SUMMARY)
    assert len(set(SUMMARY)) == len(SUMMARY)
    found = summarize(obs, past_of(earlier))
    assert (found.shape, found.dtype) == ((len(SUMMARY),), np.float32)
    for name, value in zip(SUMMARY, found.tolist(), strict=True):
        assert value == pytest.approx(expected[name], abs=2e-5), name


def test_without_a_past_the_run_counts_as_just_begun():
    obs = observe(0)
    np.testing.assert_array_equal(summarize(obs), summarize(obs, begin()))


def test_the_past_is_running_means_and_the_last_visits():
    run = a_run()
    past = past_of(run)
    assert (past.shape, past.dtype) == ((len(encoding.PAST),), np.float32)
    for at, name in enumerate(("spent", "val_accuracy", "train_accuracy")):
        a, b, c, d, e = (float(obs[name][0]) for obs in run)
        assert past[at] == pytest.approx((a + b + 2 * c + 4 * d + 8 * e) / 16, abs=1e-6)
    assert past[3] == pytest.approx(run[-1]["visits"].mean(), rel=1e-6)


# ---------------------------------------------------------------- the summary: what must change nothing


def entries(*prefixes: str) -> np.ndarray:
    return np.array([name.startswith(prefixes) for name in SUMMARY])


@pytest.mark.parametrize("seed", range(3))
def test_the_order_of_samples_says_nothing(seed):
    before, obs = observe(seed), later(observe(seed), seed)
    order = np.random.default_rng(seed).permutation(60)
    shuffled = summarize(change(obs, order), past_of([change(before, order)]))
    np.testing.assert_allclose(shuffled, summarize(obs, past_of([before])), atol=1e-6)


@pytest.mark.parametrize("times", [2, 5])
def test_the_number_of_samples_says_nothing(times):
    before = observe(0, n=400)
    obs = later(before, 0)
    many, many_before = (change(each, np.tile(np.arange(400), times)) for each in (obs, before))
    one, several = summarize(obs, past_of([before])), summarize(many, past_of([many_before]))
    quantiles = entries("loss_q", "loss_c", "volatility", "age")  # interpolated between other neighbours
    np.testing.assert_allclose(several[~quantiles], one[~quantiles], atol=2e-6)
    np.testing.assert_allclose(several[quantiles], one[quantiles], atol=0.02)


@pytest.mark.parametrize("scale", [0.01, 30.0])
def test_the_scale_of_losses_shows_only_against_log_c(scale):
    obs = observe(0)
    scaled = {**obs, "loss": obs["loss"] * scale, "loss_mean": obs["loss_mean"] * scale}
    scaled["loss_var"] = obs["loss_var"] * scale**2
    told = entries("loss_c") | (np.array(SUMMARY) == "loss")
    one, other = summarize(obs), summarize(f32_all(scaled))
    np.testing.assert_allclose(other[~told], one[~told], atol=1e-5)
    assert (np.sign(scale - 1) * (other[told] - one[told]) > 0).all()


def f32_all(obs: Obs) -> Obs:
    return {name: values if name == "label" else f32(values) for name, values in obs.items()}


def test_losses_that_grow_with_log_c_say_nothing():
    few, many = first_step(classes=2), first_step(classes=60)
    loss = np.random.default_rng(0).gamma(1.0, 1.0, 60)
    for obs, classes in ((few, 2), (many, 60)):
        obs["loss_mean"] = f32(loss * math.log(classes))
    # what differs by class, or counts classes, may differ
    same = entries("loss_q", "loss_c", "loss_top", "volatility") | (np.array(SUMMARY) == "loss")
    np.testing.assert_allclose(summarize(few)[same], summarize(many)[same], atol=1e-5)


@pytest.mark.parametrize("seed", range(3))
def test_rows_that_are_not_there_say_nothing(seed):
    before = observe(seed)
    obs = later(before, seed)
    padded, padded_before = pad(obs, 90, seed), pad(before, 90, seed + 1)
    np.testing.assert_allclose(past_of([padded_before]), past_of([before]), rtol=1e-6)
    np.testing.assert_allclose(
        summarize(padded, past_of([padded_before])), summarize(obs, past_of([before])), atol=1e-6
    )
    order = np.random.default_rng(seed).permutation(90)  # also where they stand says nothing
    np.testing.assert_allclose(summarize(change(padded, order)), summarize(obs), atol=1e-6)


def test_a_batch_is_its_runs_one_by_one():
    runs = [[observe(s, classes=c), later(observe(s, classes=c), s)] for s, c in ((0, 3), (1, 10), (2, 5), (3, 2))]
    before, obs = (stack([run[at] for run in runs]) for at in (0, 1))
    past = remember(begin(4), before)
    summaries = summarize(obs, past)
    assert (summaries.shape, summaries.dtype) == ((4, len(SUMMARY)), np.float32)
    for k, run in enumerate(runs):
        np.testing.assert_array_equal(past[k], past_of(run[:1]))
        np.testing.assert_array_equal(summaries[k], summarize(run[1], past[k]))
    square = {name: values.reshape(2, 2, -1) for name, values in obs.items()}
    np.testing.assert_array_equal(summarize(square, past.reshape(2, 2, -1)), summaries.reshape(2, 2, -1))
    assert begin(2, 3).shape == (2, 3, len(encoding.PAST))


# ---------------------------------------------------------------- the summary: whatever comes


HOSTILE = ("low", "high", "tiny", "huge", "random")


@st.composite
def hostile(draw) -> Obs:
    """Columns at a bound, of the smallest or largest floats there are; one sample, one class, none seen."""
    n = draw(st.sampled_from([1, 2, 3, 11]))
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    obs: Obs = {}
    for name, (low, high) in {**BOUNDS, "age": (0.0, 1e6)}.items():
        kind = draw(st.sampled_from(HOSTILE))
        largest = 3e38 if name.startswith("loss") else high
        column: dict[str, Any] = {"low": low, "high": high, "tiny": 1e-45, "huge": rng.choice([0.0, largest], n)}
        obs[name] = f32(np.broadcast_to(column.get(kind, rng.uniform(low, high, n)), n))
    for name in FIGURES:
        obs[name] = f32([draw(st.sampled_from([0.0, 1e-45, 0.5, 1.0]))])
    obs["budget"] = f32([draw(st.sampled_from([1e-3, 1.0, 1e6]))])
    obs["label"] = rng.integers(0, draw(st.sampled_from([1, 2, 1000])), n)
    return obs


@given(st.data())
@settings(max_examples=150)
def test_a_summary_is_finite_and_within_its_bounds_whatever_comes(data):
    obs = data.draw(hostile())
    past = data.draw(st.sampled_from([begin(), f32([0, 0, 0, 0]), f32([1, 1, 1, 2**24]), remember(begin(), obs)]))
    with np.errstate(over="raise", invalid="raise", divide="raise"):
        summary, new = summarize(obs, past), remember(past, obs)
    assert summary.dtype == new.dtype == np.float32
    assert np.isfinite(new).all()
    assert (np.abs(summary) <= 1.0).all()


@given(hostile(), st.lists(st.floats(-2, 2), min_size=len(RULE), max_size=len(RULE)), st.integers(0, 99))
@settings(max_examples=150)
def test_a_rule_makes_a_valid_action_whatever_comes(obs, numbers, seed):
    n = len(obs["label"])
    draws = np.random.default_rng(seed).choice([0.0, 1 - 2**-53, 0.3, 0.7], (n, 2))
    with np.errstate(over="raise", invalid="raise", divide="raise"):
        action = decode_rule(obs, f32(numbers), draws)
    selection.check(action, n)
    assert np.count_nonzero(action["weight"]) == plain_k(float(f32(numbers)[0]), n)


# ---------------------------------------------------------------- the rule


def rule(**numbers: float) -> np.ndarray:
    """Numbers of a rule; without weights, blending and preference where nothing is said."""
    return f32([numbers.get(name, -1.0 if name == "mixup" else 0.0) for name in RULE])


def keeping(share: float) -> float:
    """The number that keeps a share: 0.1 at -1, everything at 1, and evenly on a log scale between."""
    return 1.0 + 2.0 * math.log10(share)


def plain_k(keep: float, n: int) -> int:
    keep = min(max(keep, -1.0), 1.0)
    return max(1, round(10 ** ((keep - 1) / 2) * n))


def uniforms(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).random((*shape, 2))


def often(obs: Obs, numbers: np.ndarray, times: int, seed: int = 0) -> dict[str, np.ndarray]:
    """The same rule in the same situation, with other draws each time; (times, N)."""
    many = {name: np.broadcast_to(values, (times, *values.shape)) for name, values in obs.items()}
    draws = uniforms(seed, times, len(obs["label"]))
    return decode_rule(many, np.broadcast_to(numbers, (times, len(RULE))), draws)


def kept(action: dict[str, np.ndarray]) -> np.ndarray:
    return action["weight"] > 0


def distinct(n: int = 40, seed: int = 0) -> Obs:
    """An observation whose running losses all differ."""
    obs = observe(seed, n=n)
    obs["loss_mean"] = f32(np.random.default_rng(seed).permutation(n) * 0.1 + 0.05)
    obs["loss_var"] = f32(np.random.default_rng(seed + 1).permutation(n) * 0.01)
    obs["age"] = f32(np.random.default_rng(seed + 2).permutation(n) * 0.01)
    return obs


def near(frequency: np.ndarray, probability: np.ndarray | float, times: int) -> None:
    """Each frequency within five standard deviations of a binomial."""
    deviation = np.sqrt(np.maximum(np.multiply(probability, np.subtract(1.0, probability)), 1e-9) / times)
    assert (np.abs(frequency - probability) <= 5 * deviation).all()


@given(seed=st.integers(0, 2**32), n=st.integers(1, 40), runs=st.sampled_from([(), (1,), (3,), (2, 2)]))
@settings(max_examples=80, deadline=None)
def test_the_largest_are_those_of_a_sort_whatever_is_equal(seed, n, runs):
    rng = np.random.default_rng(seed)
    keys = rng.choice([-np.inf, 0.0, 0.5, 1.0, *rng.random(2)], (*runs, n))
    k = rng.integers(1, n + 1, (*runs, 1))
    mask, border = encoding._largest(keys, k)
    assert (mask.shape, border.shape) == (keys.shape, k.shape)
    for run in np.ndindex(runs):
        order, count = np.argsort(-keys[run]).tolist(), int(k[run][0])
        assert sorted(np.flatnonzero(mask[run])) == sorted(order[:count])
        assert count == n or border[run] == keys[run][order[count]]


def test_full_is_a_point():
    action = decode_rule(observe(0), rule(keep=1, loss=0.7, weighting=0, randomness=0.3), uniforms(0, 60))
    np.testing.assert_array_equal(action["weight"], np.ones(60, np.float32))
    np.testing.assert_array_equal(action["mixup"], np.zeros(60, np.float32))
    assert action["weight"].dtype == action["mixup"].dtype == np.float32


@pytest.mark.parametrize("other", [{}, {"loss": 1.0, "middle": -0.5, "age": 0.4}])
def test_random_is_a_point(other):
    times, n = 2000, 40
    action = often(distinct(n), rule(keep=keeping(0.3), randomness=1, **other), times)
    assert (kept(action).sum(axis=1) == 12).all()
    near(kept(action).mean(axis=0), 0.3, times)


EXTREMES = [("loss", "loss_mean"), ("volatility", "loss_var"), ("age", "age")]


@pytest.mark.parametrize(("number", "statistic"), EXTREMES)
@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("share", [0.1, 0.35, 0.8])
def test_the_hardest_and_the_easiest_are_points(number, statistic, sign, share):
    n = 2000
    obs = distinct(n)
    action = decode_rule(obs, rule(keep=keeping(share), randomness=-1, **{number: sign}), uniforms(1, n))
    by_value = np.argsort(-sign * obs[statistic])
    np.testing.assert_array_equal(np.flatnonzero(kept(action)), np.sort(by_value[: round(n * share)]))


@pytest.mark.parametrize(("sign", "middle"), [(1.0, True), (-1.0, False)])
def test_the_middle_and_both_ends_are_points(sign, middle):
    obs = distinct(n=41)
    action = decode_rule(obs, rule(keep=keeping(21 / 41), randomness=-1, middle=sign), uniforms(1, 41))
    place = np.argsort(np.argsort(obs["loss_mean"]))
    inside = np.abs(place - 20) <= 10
    if middle:
        np.testing.assert_array_equal(kept(action), inside)
    else:  # 20 lie outside; one of the two that come next is drawn
        assert kept(action).sum() == 21
        assert kept(action)[~inside].all()
        assert kept(action)[np.abs(place - 20) == 10].sum() == 1


@pytest.mark.parametrize("seed", range(5))
def test_middle_is_a_point(seed):
    obs = observe(seed)
    gumbel = np.random.default_rng(seed).gumbel(size=60)
    draws = np.stack([np.exp(-np.exp(-gumbel)), np.zeros(60)], axis=-1)
    expected = Middle(keep=0.4)(obs, np.random.default_rng(seed))
    action = decode_rule(obs, rule(keep=keeping(0.4), middle=1), draws)
    np.testing.assert_array_equal(action["weight"], expected["weight"])


def preference(obs: Obs, numbers: np.ndarray) -> np.ndarray:
    """Of each sample, from the docstring."""
    named = dict(zip(RULE, numbers.tolist(), strict=True))
    n = len(obs["label"])

    def z(name: str) -> np.ndarray:
        rank = (rankdata(obs[name]) - 0.5) / n
        return np.log(rank / (1 - rank))

    u = 2 * named["loss"] * z("loss_mean") - named["middle"] * (z("loss_mean") / 1.8) ** 2
    return u + 2 * named["volatility"] * z("loss_var") + 2 * named["age"] * z("age")


@pytest.mark.parametrize(
    "numbers",
    [
        rule(keep=keeping(0.375), loss=0.5),
        rule(keep=keeping(0.625), loss=0.6, randomness=0.4),
        rule(keep=keeping(0.5), middle=-0.8, volatility=0.3, age=-0.4, randomness=-0.3),
    ],
)
def test_the_soft_rule_draws_one_after_the_other_without_replacement(numbers):
    times, n = 3000, 8
    obs = distinct(n)
    u = preference(obs, numbers)
    r = (float(numbers[RULE.index("randomness")]) + 1) / 2
    k = plain_k(float(numbers[0]), n)
    rng = np.random.default_rng(0)
    drawn = np.zeros((times, n), bool)
    for row in drawn:
        weight = np.exp((1 - r) * u / r)
        for _ in range(k):
            chosen = np.searchsorted(np.cumsum(weight), rng.random() * weight.sum(), side="right")
            row[chosen] = True
            weight[chosen] = 0.0
    expected, found = drawn.mean(axis=0), kept(often(obs, numbers, times)).mean(axis=0)
    deviation = np.sqrt((expected * (1 - expected) + found * (1 - found) + 1e-4) / times)
    assert (np.abs(found - expected) <= 5 * deviation).all()
    assert found.max() - found.min() > 0.2
    order = np.argsort(u)
    assert (np.diff(found[order]) > -5 * deviation.max()).all()


@pytest.mark.parametrize("n", [1, 2, 7, 60, 1001])
@pytest.mark.parametrize("keep", [-1.0, -0.9, -0.37, 0.0, 0.5, 0.999, 1.0, -5.0, 3.0])
def test_the_size_is_exact(n, keep):
    obs = observe(0, n=n)
    for randomness in (-1.0, 0.2, 1.0):
        numbers = rule(keep=keep, loss=0.5, randomness=randomness)
        assert kept(decode_rule(obs, numbers, uniforms(0, n))).sum() == plain_k(float(np.float32(keep)), n)


@pytest.mark.parametrize("keep", [0.25, 0.3, 0.35, 0.5, 0.7, 0.75, 0.9])
def test_the_size_is_that_of_agents_also_in_single_precision(keep):
    """Half of an odd number is rounded alike, whatever float32 makes of the rule's number."""
    number = np.float32(keep_number(keep))
    for n in range(1, 130):
        chosen = kept(decode_rule(observe(0, n=n), rule(keep=float(number)), uniforms(0, n)))
        assert chosen.sum() == n_keep(keep, n)


@pytest.mark.parametrize("numbers", [{"loss": 1.0}, {"loss": -1.0, "age": 1.0, "volatility": 0.5}, {"middle": 1.0}, {}])
def test_equals_are_drawn_uniformly(numbers):
    times = 2000
    obs = change(first_step(), np.arange(40))
    action = often(obs, rule(keep=keeping(0.25), randomness=-1, **numbers), times)
    assert (kept(action).sum(axis=1) == 10).all()
    near(kept(action).mean(axis=0), 0.25, times)


def test_equals_at_the_border_are_drawn_uniformly():
    obs = distinct()
    obs["loss_mean"] = f32([5.0] * 4 + [1.0] * 12 + [0.1] * 24)
    mask = kept(often(obs, rule(keep=keeping(0.25), loss=1, randomness=-1), 2000))
    assert mask[:, :4].all()
    assert not mask[:, 16:].any()
    near(mask[:, 4:16].mean(axis=0), 0.5, 2000)


# ---------------------------------------------------------------- the rule: weights


WEIGHTED = [
    rule(keep=keeping(0.5), loss=0.4, weighting=1),
    rule(keep=keeping(0.25), loss=-0.3, middle=0.5, randomness=0.4, weighting=1),
    rule(keep=keeping(0.5), age=0.8, weighting=0.5, randomness=-0.2),
    rule(keep=keeping(0.5), loss=1.0, weighting=-1),
    rule(keep=1.0, loss=1.0, weighting=1),
]


def plain_rule(obs: Obs, numbers: np.ndarray, draws: np.ndarray) -> tuple[list[int], list[float]]:
    """Who is kept, and with which probability: from the docstring, a sample at a time."""
    n = len(obs["label"])
    u = preference(obs, numbers)
    r = (float(numbers[RULE.index("randomness")]) + 1) / 2
    k = plain_k(float(numbers[0]), n)
    key = [(1 - r) * u[i] + r * -math.log(-math.log(draws[i, 0])) for i in range(n)]
    order = sorted(range(n), key=lambda i: -key[i])
    border = key[order[k]] if k < n else -math.inf
    chosen = order[:k]
    return chosen, [1.0 if k == n else -math.expm1(-math.exp(((1 - r) * u[i] - border) / r)) for i in chosen]


@pytest.mark.parametrize("numbers", WEIGHTED)
def test_weights_are_probabilities_to_a_power(numbers):
    obs = distinct(60)
    power = -float(numbers[RULE.index("weighting")])
    for seed in range(20):
        draws = uniforms(seed, 60)
        chosen, probability = plain_rule(obs, numbers, draws)
        weight = np.array(probability) ** power
        expected = np.zeros(60)
        expected[chosen] = np.clip(weight / weight.mean(), 1 / 3, 3)
        action = decode_rule(obs, numbers, draws)
        np.testing.assert_allclose(action["weight"], expected, rtol=1e-5)
        assert np.mean(weight / weight.mean()) == pytest.approx(1)
        if (np.abs(np.log(weight / weight.mean())) < math.log(3)).all():
            assert action["weight"][chosen].mean() == pytest.approx(1, rel=1e-6)


MILD = [  # no weight is clipped
    rule(keep=keeping(0.5), loss=0.1, weighting=1),
    rule(keep=keeping(0.3), loss=0.1, middle=0.1, randomness=0.2, weighting=1),
]


@pytest.mark.parametrize("numbers", MILD)
def test_importance_weights_estimate_a_total_without_bias(numbers):
    """But for the scale, which they lose where their mean is made 1."""
    times, n = 1500, 20
    obs = distinct(n)
    x = obs["loss_mean"].astype(np.float64)  # preferred where it is large
    weights, draws = often(obs, numbers, times)["weight"], uniforms(0, times, n)
    weighted, plain = np.zeros((2, times))
    for i in range(times):
        chosen, probability = plain_rule(obs, numbers, draws[i])
        weight = weights[i, chosen].astype(np.float64)
        assert 1 / 3 < weight.min() <= weight.max() < 3
        weighted[i] = np.mean(1 / np.array(probability)) * np.sum(weight * x[chosen])
        plain[i] = n * np.mean(x[chosen])
    assert abs(weighted.mean() - x.sum()) < 5 * weighted.std() / math.sqrt(times)
    assert abs(plain.mean() - x.sum()) > 5 * plain.std() / math.sqrt(times)


@pytest.mark.parametrize("randomness", [-1.0, 0.0, 1.0])
def test_without_weighting_the_weights_are_one(randomness):
    action = decode_rule(observe(0), rule(loss=1, randomness=randomness, weighting=0), uniforms(0, 60))
    assert set(action["weight"].tolist()) == {0.0, 1.0}


@pytest.mark.parametrize("weighting", [-1.0, 0.5, 1.0])
@pytest.mark.parametrize("randomness", [-1.0, -0.9, 0.0, 1.0])
def test_weights_stay_within_a_factor_of_three(weighting, randomness):
    action = often(distinct(), rule(loss=1, weighting=weighting, randomness=randomness), 50)
    weights = action["weight"][kept(action)]
    assert np.float32(1 / 3) <= weights.min() <= 1.0 <= weights.max() <= 3.0


# ---------------------------------------------------------------- the rule: blending


@pytest.mark.parametrize("mixup", [-1.0, -0.5, 0.0, 0.6, 1.0])
def test_what_was_seen_before_is_blended_as_often_as_the_rule_says(mixup):
    times = 500
    obs = observe(0)
    action = often(obs, rule(keep=keeping(0.5), mixup=mixup), times)
    mixed = action["mixup"] > 0
    can_be = kept(action) & (obs["visits"] > 0)
    assert not (mixed & ~can_be).any()
    near(mixed[can_be].mean(), (mixup + 1) / 2, can_be.sum())
    shares = action["mixup"][mixed]
    if mixup > -1:
        assert shares.min() > 0
        assert shares.max() <= 0.5
        # half the square of a uniform number: mean 1/6, deviation sqrt(1/20 - 1/36)
        assert abs(shares.mean() - 1 / 6) < 5 * math.sqrt(1 / 20 - 1 / 36) / math.sqrt(len(shares))
        assert (shares < 0.125).mean() == pytest.approx(0.5, abs=2.5 / math.sqrt(len(shares)))


def test_blending_leaves_the_choice_alone():
    obs, draws = observe(0), uniforms(0, 60)
    without, with_it = (decode_rule(obs, rule(loss=0.5, weighting=0.3, mixup=mixup), draws) for mixup in (-1, 1))
    np.testing.assert_array_equal(without["weight"], with_it["weight"])


# ---------------------------------------------------------------- the rule: batches and errors


def numbers_of(seed: int, *batch: int) -> np.ndarray:
    return f32(np.random.default_rng(seed).uniform(-1, 1, (*batch, len(RULE))))


@pytest.mark.parametrize("seed", range(5))
def test_rows_that_are_not_there_are_never_chosen_and_change_nothing(seed):
    obs = observe(seed)
    numbers, draws = numbers_of(seed), uniforms(seed, 90)
    alone, padded = decode_rule(obs, numbers, draws[:60]), decode_rule(pad(obs, 90, seed), numbers, draws)
    for name, values in padded.items():
        np.testing.assert_allclose(values[:60], alone[name], rtol=1e-6)
        np.testing.assert_array_equal(values[60:], 0.0)


def test_a_batch_of_actions_is_its_runs_one_by_one():
    runs = [pad(observe(s, n=n), 70, s) for s, n in enumerate((70, 31, 1, 60))]
    numbers, draws = numbers_of(0, 4), uniforms(0, 4, 70)
    together = decode_rule(stack(runs), numbers, draws)
    for k, obs in enumerate(runs):
        for name, values in decode_rule(obs, numbers[k], draws[k]).items():
            np.testing.assert_array_equal(together[name][k], values)
    square = {name: values.reshape(2, 2, -1) for name, values in stack(runs).items()}
    reshaped = decode_rule(square, numbers.reshape(2, 2, -1), draws.reshape(2, 2, 70, 2))
    np.testing.assert_array_equal(reshaped["weight"], together["weight"].reshape(2, 2, 70))


def same(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> bool:
    return all(np.array_equal(one[name], other[name]) for name in ("weight", "mixup"))


SOFT = rule(keep=0.2, loss=0.3, randomness=0.2, weighting=0.4, mixup=0.3)


def test_without_draws_the_same_observation_chooses_the_same():
    obs = observe(0)
    before = {name: values.copy() for name, values in obs.items()}
    state = pickle.dumps(np.random.get_state())  # noqa: NPY002
    action = decode_rule(obs, SOFT)
    assert same(decode_rule(before, SOFT, None), action)
    assert same(decode_rule({name: values.astype(np.float64) for name, values in obs.items()}, SOFT), action)
    for name, values in before.items():
        np.testing.assert_array_equal(obs[name], values)
    assert pickle.dumps(np.random.get_state()) == state  # noqa: NPY002
    np.random.random()  # noqa: NPY002  (nor is it read)
    assert same(decode_rule(obs, SOFT), action)
    assert kept(action).sum() == plain_k(0.2, 60)
    assert action["mixup"].any()


@pytest.mark.parametrize("name", ["spent", "val_accuracy", "label", "loss", "visits"])
def test_without_draws_another_observation_chooses_something_else(name):
    obs = observe(0)
    other = {**obs, name: obs[name].copy()}
    other[name][-1] += 1 if name in ("label", "visits") else np.float32(1e-3)
    one, another = (kept(decode_rule(each, rule(randomness=1))) for each in (obs, other))
    assert one.sum() == another.sum()
    assert (one != another).sum() > 5


@pytest.mark.parametrize("seed", range(3))
def test_without_draws_rows_that_are_not_there_change_nothing(seed):
    obs, numbers = observe(seed), numbers_of(seed)
    alone = decode_rule(obs, numbers)
    for other in (1, 2):
        padded = decode_rule(pad(obs, 90, other), numbers)
        for name, values in padded.items():
            np.testing.assert_allclose(values[:60], alone[name], rtol=1e-6)
            np.testing.assert_array_equal(values[60:], 0.0)


def test_without_draws_a_batch_is_its_runs_one_by_one():
    runs = [pad(observe(s, n=n), 70, s) for s, n in enumerate((70, 31, 1, 60))]
    numbers = numbers_of(0, 4)
    together = decode_rule(stack(runs), numbers)
    for k, obs in enumerate(runs):
        for name, values in decode_rule(obs, numbers[k]).items():
            np.testing.assert_array_equal(together[name][k], values)
    square = {name: values.reshape(2, 2, -1) for name, values in stack(runs).items()}
    reshaped = decode_rule(square, numbers.reshape(2, 2, -1))
    np.testing.assert_array_equal(reshaped["weight"], together["weight"].reshape(2, 2, 70))


@pytest.mark.parametrize("n", [1, 2, 7, 60, 1001])
@pytest.mark.parametrize("keep", [-1.0, -0.37, 0.0, 0.999, 1.0])
def test_without_draws_the_size_is_exact(n, keep):
    action = decode_rule(observe(0, n=n), rule(keep=keep, loss=0.5, randomness=0.5))
    assert kept(action).sum() == plain_k(float(np.float32(keep)), n)


def test_without_draws_randomness_is_uniform_over_observations():
    obs, times = observe(0), 4000
    many = {name: np.broadcast_to(values, (times, *values.shape)).copy() for name, values in obs.items()}
    many["spent"] = f32(np.linspace(0.0, 0.9, times)[:, None])  # all else is the same
    numbers = np.broadcast_to(rule(keep=keeping(0.25), loss=1, randomness=1, mixup=0.0), (times, len(RULE)))
    action = decode_rule(many, numbers)
    near(kept(action).mean(axis=0), 0.25, times)
    both = kept(action)[1:] & kept(action)[:-1]  # one step says nothing of the next
    near(both.mean(axis=0), 0.25**2, times)
    blended = action["mixup"] > 0
    near(blended.mean(axis=0), 0.125 * (obs["visits"] > 0), times)


def test_numbers_beyond_their_bounds_are_clipped():
    obs, draws = observe(0), uniforms(0, 60)
    numbers = 3.0 * numbers_of(0)
    one, other = (decode_rule(obs, each, draws) for each in (numbers, np.clip(numbers, -1, 1)))
    for name in one:
        np.testing.assert_array_equal(one[name], other[name])


WRONG_NUMBERS = {
    "one too few": np.zeros(len(RULE) - 1),
    "one too many": np.zeros(len(RULE) + 1),
    "a single number": np.float64(0.5),
    "two rules": np.zeros((2, len(RULE))),
    "nan": np.full(len(RULE), np.nan),
    "infinite": np.where(np.arange(len(RULE)) == 3, np.inf, 0.0),
}


@pytest.mark.parametrize("numbers", WRONG_NUMBERS.values(), ids=WRONG_NUMBERS)
def test_wrong_numbers_are_refused(numbers):
    with pytest.raises(ValueError, match=f"a rule is {len(RULE)} finite numbers, keep, loss"):
        decode_rule(observe(0), numbers, uniforms(0, 60))


@pytest.mark.parametrize("shape", [(60,), (1,), (59,), (2, 60)])
def test_wrong_draws_are_refused(shape):
    with pytest.raises(ValueError, match=r"draws have shape .* must have \(60, 2\)"):
        decode_rule(observe(0), rule(), np.zeros(shape) if shape == (60,) else uniforms(0, *shape))


@pytest.mark.parametrize("seed", range(3))
def test_ranks_are_those_of_scipy(seed):
    values = np.random.default_rng(seed).integers(0, 9, (3, 30)) * 0.5
    there = np.random.default_rng(seed).random((3, 30)) < 0.7
    found = encoding.ranks(values, there)
    for k in range(3):
        n = there[k].sum()
        np.testing.assert_allclose(found[k][there[k]], (rankdata(values[k][there[k]]) - 0.5) / n, rtol=1e-12)
    assert ((found > 0) & (found < 1)).all()
