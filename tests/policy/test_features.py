"""Features: each against its definition, a sample at a time, and what must not change them."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import kurtosis, rankdata, skew

from prune_env.policy.features import FEATURES, HISTORY, extract_features, initial_history, update_history
from prune_env.sampling import ranks
from prune_env.stats import BOUNDS
from tests.helpers.observations import FIGURES, Obs, change, f32, first_step, hostile, later, observe, pad, stack

SEEDS = st.integers(0, 2**16)


def past_of(observations: list[Obs]) -> np.ndarray:
    past = initial_history()
    for obs in observations:
        past = update_history(past, obs)
    return past


def plain_summary(obs: Obs, earlier: list[Obs]) -> dict[str, float]:
    """SUMMARY entry by entry, from what its comments say, a sample at a time."""
    rows = [i for i, label in enumerate(obs["label"]) if label >= 0]
    n = len(rows)
    label = [int(obs["label"][i]) for i in rows]
    stat = {name: [float(obs[name][i]) for i in rows] for name in (*BOUNDS, "age") if name in obs}
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

    def hardest(losses: list[float]) -> float:
        """Mean of the largest tenth."""
        largest = sorted(losses, reverse=True)[: max(n // 10, 1)]
        return sum(largest) / len(largest)

    hard = 0.0
    for at, before in enumerate(earlier):
        value = hardest([float(before["loss_mean"][i]) for i in rows])
        hard = (hard + value) / 2 if at else value
    passed = now["spent"] - means.get("spent", now["spent"])

    loss, visits = stat["loss_mean"], stat["visits"]
    margins = stat["margin_mean"]
    size = [label.count(k) for k in there]
    accuracy = [float(obs["val_class_accuracy"][k]) for k in there]
    behind = np.mean(accuracy) - accuracy
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
        "hard_slope": math.tanh((hardest(loss) - hard) / math.log(c) / passed) if passed > 0 else 0.0,
        "margin_bimodality": 2 * ((skew(margins) ** 2 + 1) / kurtosis(margins, fisher=False)) - 1
        if np.std(margins) > 0
        else -1 / 3,
        "class_spread": 4 * float(np.std(accuracy)) - 1,
        "class_worst": 2 * min(accuracy) - 1,
        "rare_behind": float(np.corrcoef(-np.log(size), behind)[0, 1])
        if len(set(size)) > 1 and len(set(accuracy)) > 1
        else 0.0,
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
    for percent in (5, 25, 50, 75, 95):
        result |= {f"margin_q{percent}": float(np.quantile(margins, percent / 100))}
    return {name: min(max(value, -1.0), 1.0) for name, value in result.items()}


def a_run() -> list[Obs]:
    run = [first_step()]
    for seed in range(4):
        run.append(later(run[-1], seed))
    return run


SITUATIONS: dict[str, list[Obs]] = {
    "random": [observe(1, n=97, classes=10)],
    "with a history": [observe(2), later(observe(2), 0)],
    "first step": [first_step()],
    "fifth step": a_run(),
    "all measured": [observe(5), later(observe(5), 1, keep=1.1, mix=0.0)],
    "nothing kept": [observe(6), later(observe(6), 1, keep=0.0)],
    "all mixed": [observe(7), later(observe(7), 1, mix=1.1)],
    "scored": [observe(10), {**observe(10), "age": np.zeros(60, np.float32)}],
    "one sample": [change(observe(3, unseen=0.0), [0])],
    "one class": [{**observe(4), "label": np.full(60, 3)}],
    "all unseen": [observe(8, unseen=1.0)],
    "padded": [pad(observe(9), 80)],
}


@pytest.mark.parametrize("run", SITUATIONS.values(), ids=SITUATIONS)
def test_every_entry_is_what_its_name_says(run):
    *earlier, obs = run
    expected = plain_summary(obs, earlier)
    assert set(expected) == set(FEATURES)
    assert len(set(FEATURES)) == len(FEATURES)
    found = extract_features(obs, past_of(earlier))
    assert (found.shape, found.dtype) == ((len(FEATURES),), np.float32)
    for name, value in zip(FEATURES, found.tolist(), strict=True):
        assert value == pytest.approx(expected[name], abs=2e-5), name


def test_the_past_is_running_means_and_the_last_visits():
    run = a_run()
    past = past_of(run)
    assert (past.shape, past.dtype) == ((len(HISTORY),), np.float32)
    for at, name in enumerate(("spent", "val_accuracy", "train_accuracy")):
        a, b, c, d, e = (float(obs[name][0]) for obs in run)
        assert past[at] == pytest.approx((a + b + 2 * c + 4 * d + 8 * e) / 16, abs=1e-6)
    a, b, c, d, e = (np.sort(obs["loss_mean"])[-6:].mean() for obs in run)  # of 60
    assert past[3] == pytest.approx((a + b + 2 * c + 4 * d + 8 * e) / 16, abs=1e-5)
    assert past[4] == pytest.approx(run[-1]["visits"].mean(), rel=1e-6)


def entries(*prefixes: str) -> np.ndarray:
    return np.array([name.startswith(prefixes) for name in FEATURES])


@given(SEEDS)
@settings(max_examples=10, deadline=None)
def test_order_and_padding_of_samples_change_nothing(seed):
    before = observe(seed)
    obs, order = later(before, seed), np.random.default_rng(seed).permutation(90)
    expected = extract_features(obs, past_of([before]))
    padded, padded_before = (change(pad(each, 90, seed + i), order) for i, each in enumerate((obs, before)))
    np.testing.assert_allclose(past_of([padded_before]), past_of([before]), rtol=1e-6)
    np.testing.assert_allclose(extract_features(padded, past_of([padded_before])), expected, atol=1e-6)


def test_the_number_of_samples_changes_nothing():
    before = observe(0, n=400)
    obs = later(before, 0)
    many, many_before = (change(each, np.tile(np.arange(400), 5)) for each in (obs, before))
    one, several = extract_features(obs, past_of([before])), extract_features(many, past_of([many_before]))
    quantiles = entries("loss_q", "loss_c", "volatility", "age", "margin_q")  # interpolated between other neighbours
    np.testing.assert_allclose(several[~quantiles], one[~quantiles], atol=2e-6)
    np.testing.assert_allclose(several[quantiles], one[quantiles], atol=0.02)


@pytest.mark.parametrize("scale", [0.01, 30.0])
def test_the_scale_of_losses_shows_only_against_log_c(scale):
    obs = observe(0)
    scaled = {**obs, "loss": obs["loss"] * scale, "loss_mean": f32(obs["loss_mean"] * scale)}
    scaled["loss_var"] = f32(obs["loss_var"] * scale**2)
    absolute = entries("loss_c") | (np.array(FEATURES) == "loss")
    one, other = extract_features(obs), extract_features(scaled)
    np.testing.assert_allclose(other[~absolute], one[~absolute], atol=1e-5)
    assert (np.sign(scale - 1) * (other[absolute] - one[absolute]) > 0).all()


def test_a_batch_is_its_runs_one_by_one_and_no_history_is_the_initial_one():
    runs = [[observe(s, classes=c), later(observe(s, classes=c), s)] for s, c in ((0, 3), (1, 10), (2, 5), (3, 2))]
    before, obs = (stack([run[at] for run in runs]) for at in (0, 1))
    past = update_history(initial_history(4), before)
    summaries = extract_features(obs, past)
    assert (summaries.shape, summaries.dtype) == ((4, len(FEATURES)), np.float32)
    for k, run in enumerate(runs):
        np.testing.assert_array_equal(past[k], past_of(run[:1]))
        np.testing.assert_array_equal(summaries[k], extract_features(run[1], past[k]))
    square = {name: values.reshape(2, 2, -1) for name, values in obs.items()}
    np.testing.assert_array_equal(extract_features(square, past.reshape(2, 2, -1)), summaries.reshape(2, 2, -1))
    assert initial_history(2, 3).shape == (2, 3, len(HISTORY))
    np.testing.assert_array_equal(extract_features(obs), extract_features(obs, initial_history(4)))


@given(st.data())
@settings(max_examples=100, deadline=None)
def test_a_summary_is_finite_and_within_its_bounds_whatever_comes(data):
    obs = data.draw(hostile())
    past = data.draw(
        st.sampled_from(
            [
                initial_history(),
                f32([0, 0, 0, 0, 0]),
                f32([1, 1, 1, 100, 2**24]),
                update_history(initial_history(), obs),
            ]
        )
    )
    with np.errstate(over="raise", invalid="raise", divide="raise"):
        summary, new = extract_features(obs, past), update_history(past, obs)
    assert summary.dtype == new.dtype == np.float32
    assert np.isfinite(new).all()
    assert (np.abs(summary) <= 1.0).all()


@given(SEEDS)
@settings(max_examples=20, deadline=None)
def test_ranks_are_those_of_scipy(seed):
    values = np.random.default_rng(seed).integers(0, 9, (3, 30)) * 0.5
    valid = np.random.default_rng(seed).random((3, 30)) < 0.7
    found = ranks(values, valid)
    for k in range(3):
        n = valid[k].sum()
        np.testing.assert_allclose(found[k][valid[k]], (rankdata(values[k][valid[k]]) - 0.5) / n, rtol=1e-12)
    assert ((found > 0) & (found < 1)).all()
