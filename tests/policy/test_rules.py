"""Rules: known rules as points of the space, the soft draw against a slow one, weights, blending and batches."""

import math
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import rankdata

from agents.difficulty import Middle
from prune_env import selection
from prune_env.policy import rules
from prune_env.policy.rules import RULE_PARAMETERS, apply_rule, keep_parameter
from prune_env.sampling import n_keep
from tests.helpers.observations import Obs, change, f32, first_step, hostile, observe, pad, stack


def rule(**numbers: float) -> np.ndarray:
    """Numbers of a rule; without weights, blending and preference where nothing is said."""
    return f32([numbers.get(name, -1.0 if name == "mixup" else 0.0) for name in RULE_PARAMETERS])


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
    return apply_rule(many, np.broadcast_to(numbers, (times, len(RULE_PARAMETERS))), draws)


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


def preference(obs: Obs, numbers: np.ndarray) -> np.ndarray:
    """Of each sample, from the docstring."""
    named = dict(zip(RULE_PARAMETERS, numbers.tolist(), strict=True))
    n = len(obs["label"])

    def z(name: str) -> np.ndarray:
        rank = (rankdata(obs[name]) - 0.5) / n
        return np.log(rank / (1 - rank))

    u = 2 * named["loss"] * z("loss_mean") - named["middle"] * (z("loss_mean") / 1.8) ** 2
    u = u + 2 * named["volatility"] * z("loss_var") + 2 * named["age"] * z("age")
    label, margin = obs["label"].tolist(), obs["margin_mean"].tolist()
    there = sorted(set(label))
    accuracy = {c: float(obs["val_class_accuracy"][c]) for c in there}
    mean = sum(accuracy.values()) / len(there)
    for i, (c, m) in enumerate(zip(label, margin, strict=True)):
        u[i] -= named["balance"] * math.log(label.count(c) / (n / len(there)))
        u[i] += 2 * named["need"] * (mean - accuracy[c])
        u[i] -= 6 * named["wrong"] * max(-m, 0) + 6 * named["right"] * max(m, 0)
    return u


# ---------------------------------------------------------------- which samples


@given(seed=st.integers(0, 2**32), n=st.integers(1, 40), runs=st.sampled_from([(), (1,), (3,), (2, 2)]))
@settings(max_examples=40, deadline=None)
def test_the_largest_are_those_of_a_sort_whatever_is_equal(seed, n, runs):
    rng = np.random.default_rng(seed)
    keys = rng.choice([-np.inf, 0.0, 0.5, 1.0, *rng.random(2)], (*runs, n))
    k = rng.integers(1, n + 1, (*runs, 1))
    mask, border = rules._top_k(keys, k)
    assert (mask.shape, border.shape) == (keys.shape, k.shape)
    for run in np.ndindex(runs):
        order, count = np.argsort(-keys[run]).tolist(), int(k[run][0])
        assert sorted(np.flatnonzero(mask[run])) == sorted(order[:count])
        assert count == n or border[run] == keys[run][order[count]]


def test_full_is_a_point():
    action = apply_rule(observe(0), rule(keep=1, loss=0.7, weighting=0, randomness=0.3), uniforms(0, 60))
    np.testing.assert_array_equal(action["weight"], np.ones(60, np.float32))
    np.testing.assert_array_equal(action["mixup"], np.zeros(60, np.float32))
    assert action["weight"].dtype == action["mixup"].dtype == np.float32


def test_random_is_a_point_whatever_is_preferred():
    times, n = 2000, 40
    action = often(distinct(n), rule(keep=keeping(0.3), randomness=1, loss=1.0, middle=-0.5, age=0.4), times)
    assert (kept(action).sum(axis=1) == 12).all()
    near(kept(action).mean(axis=0), 0.3, times)


EXTREMES = [("loss", "loss_mean"), ("volatility", "loss_var"), ("age", "age")]


@pytest.mark.parametrize(("number", "statistic"), EXTREMES)
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_the_hardest_and_the_easiest_are_points(number, statistic, sign):
    obs, share = distinct(2000), 0.35
    action = apply_rule(obs, rule(keep=keeping(share), randomness=-1, **{number: sign}), uniforms(1, 2000))
    by_value = np.argsort(-sign * obs[statistic])
    np.testing.assert_array_equal(np.flatnonzero(kept(action)), np.sort(by_value[: round(2000 * share)]))


@pytest.mark.parametrize("seed", range(2))
def test_middle_is_a_point(seed):
    obs = observe(seed)
    gumbel = np.random.default_rng(seed).gumbel(size=60)
    draws = np.stack([np.exp(-np.exp(-gumbel)), np.zeros(60)], axis=-1)
    expected = Middle(keep=0.4)(obs, np.random.default_rng(seed))
    action = apply_rule(obs, rule(keep=keeping(0.4), middle=1), draws)
    np.testing.assert_array_equal(action["weight"], expected["weight"])


@pytest.mark.parametrize(
    "numbers",
    [
        rule(keep=keeping(0.375), loss=0.5),
        rule(keep=keeping(0.625), loss=0.6, randomness=0.4),
        rule(keep=keeping(0.5), middle=-0.8, volatility=0.3, age=-0.4, randomness=-0.3),
        rule(keep=keeping(0.375), need=-0.7, balance=0.6),
        rule(keep=keeping(0.5), wrong=0.9, right=-0.4, randomness=0.2),
    ],
)
def test_the_soft_rule_draws_one_after_the_other_without_replacement(numbers):
    times, n = 3000, 8
    obs = distinct(n)
    u = preference(obs, numbers)
    r = (float(numbers[RULE_PARAMETERS.index("randomness")]) + 1) / 2
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


def test_balance_of_one_draws_softly_by_inverse_class_frequency():
    """With one sample kept, each class is as likely as any other."""
    times, label = 4000, np.repeat([0, 3, 4], [6, 3, 1])
    obs = {**distinct(10), "label": label}
    drawn = kept(often(obs, rule(keep=-1, balance=1), times))
    near(np.array([drawn[:, label == c].any(axis=1).mean() for c in (0, 3, 4)]), 1 / 3, times)
    assert np.flatnonzero(drawn[:, label == 0].mean(axis=0)).size == 6


def test_need_prefers_classes_of_low_validation_accuracy():
    """With one sample kept, classes of one size are drawn as exp(-2 accuracy)."""
    times, label = 4000, np.arange(12) % 3
    accuracy = np.array([0.2, 0.9, 0.5])
    obs = {**distinct(12), "label": label, "val_class_accuracy": f32([*accuracy, 0.0])}  # nobody is of the last class
    drawn = kept(often(obs, rule(keep=-1, need=1), times))
    share = np.exp(-2 * accuracy) / np.exp(-2 * accuracy).sum()
    near(np.array([drawn[:, label == c].any(axis=1).mean() for c in range(3)]), share, times)


def test_what_is_surely_wrong_or_surely_right_can_be_left_out():
    margin = f32(np.linspace(-0.9, 0.9, 20))
    obs = {**distinct(20), "margin_mean": margin}
    for numbers, dropped in (({"wrong": 1}, range(5)), ({"right": 1}, range(15, 20)), ({"wrong": -1, "right": -1}, ())):
        action = apply_rule(obs, rule(keep=keeping(0.5), randomness=-1, **numbers), uniforms(0, 20))
        assert not kept(action)[list(dropped)].any()
    undecided = apply_rule(obs, rule(keep=keeping(0.5), randomness=-1, wrong=1, right=1), uniforms(0, 20))
    np.testing.assert_array_equal(np.flatnonzero(kept(undecided)), range(5, 15))


@given(keep=st.floats(0.1, 1.0), n=st.integers(1, 130), randomness=st.sampled_from([-1.0, 0.2, 1.0]))
@settings(max_examples=60, deadline=None)
def test_the_size_is_exactly_that_of_agents(keep, n, randomness):
    """Also where float32 rounds the parameter, and where the draws follow from the observation."""
    keep = round(keep, 2)
    parameters = rule(keep=float(np.float32(keep_parameter(keep))), loss=0.5, randomness=randomness)
    for draws in (uniforms(0, n), None):
        assert kept(apply_rule(observe(0, n=n), parameters, draws)).sum() == n_keep(keep, n)


@pytest.mark.parametrize("numbers", [{"loss": 1.0}, {"loss": -1.0, "age": 1.0, "volatility": 0.5}, {"middle": 1.0}, {}])
def test_equals_are_drawn_uniformly(numbers):
    times = 2000
    obs = change(first_step(), np.arange(40))
    action = often(obs, rule(keep=keeping(0.25), randomness=-1, **numbers), times)
    assert (kept(action).sum(axis=1) == 10).all()
    near(kept(action).mean(axis=0), 0.25, times)


# ---------------------------------------------------------------- weights and blending


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
    r = (float(numbers[RULE_PARAMETERS.index("randomness")]) + 1) / 2
    k = plain_k(float(numbers[0]), n)
    key = [(1 - r) * u[i] + r * -math.log(-math.log(draws[i, 0])) for i in range(n)]
    order = sorted(range(n), key=lambda i: -key[i])
    border = key[order[k]] if k < n else -math.inf
    chosen = order[:k]
    return chosen, [1.0 if k == n else -math.expm1(-math.exp(((1 - r) * u[i] - border) / r)) for i in chosen]


@pytest.mark.parametrize("numbers", WEIGHTED)
def test_weights_are_probabilities_to_a_power(numbers):
    obs = distinct(60)
    power = -float(numbers[RULE_PARAMETERS.index("weighting")])
    for seed in range(20):
        draws = uniforms(seed, 60)
        chosen, probability = plain_rule(obs, numbers, draws)
        weight = np.array(probability) ** power
        expected = np.zeros(60)
        expected[chosen] = np.clip(weight / weight.mean(), 1 / 3, 3)
        action = apply_rule(obs, numbers, draws)
        np.testing.assert_allclose(action["weight"], expected, rtol=1e-5)
        assert np.mean(weight / weight.mean()) == pytest.approx(1)
        if (np.abs(np.log(weight / weight.mean())) < math.log(3)).all():
            assert action["weight"][chosen].mean() == pytest.approx(1, rel=1e-6)


@pytest.mark.parametrize("mixup", [-1.0, 0.0, 0.6, 1.0])
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


# ---------------------------------------------------------------- any input, batches and errors


@given(
    hostile(),
    st.lists(st.floats(-2, 2), min_size=len(RULE_PARAMETERS), max_size=len(RULE_PARAMETERS)),
    st.integers(0, 99),
)
@settings(max_examples=100, deadline=None)
def test_a_rule_makes_a_valid_action_whatever_comes(obs, numbers, seed):
    n = len(obs["label"])
    draws = np.random.default_rng(seed).choice([0.0, 1 - 2**-53, 0.3, 0.7], (n, 2))
    with np.errstate(over="raise", invalid="raise", divide="raise"):
        action = apply_rule(obs, f32(numbers), draws)
    selection.check(action, n)
    assert np.count_nonzero(action["weight"]) == plain_k(float(f32(numbers)[0]), n)


def numbers_of(seed: int, *batch: int) -> np.ndarray:
    return f32(np.random.default_rng(seed).uniform(-1, 1, (*batch, len(RULE_PARAMETERS))))


@pytest.mark.parametrize("drawn", [True, False])
def test_a_batch_of_padded_runs_is_its_runs_one_by_one(drawn):
    runs = [observe(s, n=n) for s, n in enumerate((70, 31, 1, 60))]
    parameters, draws = numbers_of(0, 4), uniforms(0, 4, 70) if drawn else None
    padded = stack([pad(obs, 70, s) for s, obs in enumerate(runs)])
    together = apply_rule(padded, parameters, draws)
    for k, obs in enumerate(runs):
        n = len(obs["label"])
        for name, values in apply_rule(obs, parameters[k], None if draws is None else draws[k, :n]).items():
            np.testing.assert_allclose(together[name][k, :n], values, rtol=1e-6)
            assert not together[name][k, n:].any()
    square = {name: values.reshape(2, 2, -1) for name, values in padded.items()}
    reshaped = apply_rule(square, parameters.reshape(2, 2, -1), None if draws is None else draws.reshape(2, 2, 70, 2))
    np.testing.assert_array_equal(reshaped["weight"], together["weight"].reshape(2, 2, 70))


def same(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> bool:
    return all(np.array_equal(one[name], other[name]) for name in ("weight", "mixup"))


SOFT = rule(keep=0.2, loss=0.3, randomness=0.2, weighting=0.4, mixup=0.3)


def test_without_draws_the_same_observation_chooses_the_same():
    obs = observe(0)
    before = {name: values.copy() for name, values in obs.items()}
    state = pickle.dumps(np.random.get_state())  # noqa: NPY002
    action = apply_rule(obs, SOFT)
    assert same(apply_rule(before, SOFT, None), action)
    assert same(apply_rule({name: values.astype(np.float64) for name, values in obs.items()}, SOFT), action)
    for name, values in before.items():
        np.testing.assert_array_equal(obs[name], values)
    assert pickle.dumps(np.random.get_state()) == state  # noqa: NPY002
    np.random.random()  # noqa: NPY002  (nor is it read)
    assert same(apply_rule(obs, SOFT), action)
    assert kept(action).sum() == plain_k(0.2, 60)
    assert action["mixup"].any()


@pytest.mark.parametrize("name", ["spent", "val_accuracy", "label", "loss", "visits"])
def test_without_draws_another_observation_chooses_something_else(name):
    obs = observe(0)
    other = {**obs, name: obs[name].copy()}
    other[name][-1] += 1 if name in ("label", "visits") else np.float32(1e-3)
    one, another = (kept(apply_rule(each, rule(randomness=1))) for each in (obs, other))
    assert one.sum() == another.sum()
    assert (one != another).sum() > 5


def test_without_draws_randomness_is_uniform_over_observations():
    obs, times = observe(0), 4000
    many = {name: np.broadcast_to(values, (times, *values.shape)).copy() for name, values in obs.items()}
    many["spent"] = f32(np.linspace(0.0, 0.9, times)[:, None])  # all else is the same
    numbers = np.broadcast_to(rule(keep=keeping(0.25), loss=1, randomness=1, mixup=0.0), (times, len(RULE_PARAMETERS)))
    action = apply_rule(many, numbers)
    near(kept(action).mean(axis=0), 0.25, times)
    both = kept(action)[1:] & kept(action)[:-1]  # one step says nothing of the next
    near(both.mean(axis=0), 0.25**2, times)
    blended = action["mixup"] > 0
    near(blended.mean(axis=0), 0.125 * (obs["visits"] > 0), times)


def test_numbers_beyond_their_bounds_are_clipped():
    obs, draws = observe(0), uniforms(0, 60)
    numbers = 3.0 * numbers_of(0)
    one, other = (apply_rule(obs, each, draws) for each in (numbers, np.clip(numbers, -1, 1)))
    for name in one:
        np.testing.assert_array_equal(one[name], other[name])


@pytest.mark.parametrize(
    "wrong",
    [np.zeros(len(RULE_PARAMETERS) - 1), np.zeros((2, len(RULE_PARAMETERS))), np.full(len(RULE_PARAMETERS), np.nan)],
)
def test_wrong_parameters_and_draws_are_refused(wrong):
    with pytest.raises(ValueError, match=f"a rule is {len(RULE_PARAMETERS)} finite numbers, keep, loss"):
        apply_rule(observe(0), wrong, uniforms(0, 60))
    with pytest.raises(ValueError, match=r"draws have shape .* must have \(60, 2\)"):
        apply_rule(observe(0), rule(), uniforms(0, 59))
