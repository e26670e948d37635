"""The table of statistics against one sample at a time in float64, and against figures counted by hand."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prune_env import stats
from prune_env.stats import Stats
from tests.helpers.reference import SlowStats

CPU = torch.device("cpu")
EXTREMES = [0.0, 1.0, -1.0, 45.0, -45.0]  # losses below the bound of 100; beyond it see the test of bounds
NOT_FINITE = [math.nan, math.inf, -math.inf]


def close(seen: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert set(seen) == set(expected) == set(stats.COLUMNS)
    for name, values in expected.items():
        tolerance = 3e-5 if name in ("loss", "loss_mean", "age") else 1e-3 if name == "loss_var" else 2e-6
        np.testing.assert_allclose(seen[name], values, rtol=tolerance, atol=3e-6, err_msg=name)
        assert seen[name].dtype == np.float32


@given(
    seed=st.integers(0, 2**32 - 1),
    n=st.integers(1, 12),
    classes=st.integers(2, 6),
    ema=st.sampled_from([0.05, 0.5, 0.8, 1.0]),
    epochs=st.integers(1, 6),
    wild=st.sampled_from([0.0, 0.1, 0.5]),
)
@settings(max_examples=60, deadline=None)
def test_any_order_of_visits_agrees_with_the_slow_version(seed, n, classes, ema, epochs, wild):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, n)
    fast, slow = Stats(n, classes, ema, CPU), SlowStats(n, classes, ema)
    close(fast.observe(0.0), slow.observe(0.0))
    spent = 0.0
    for _ in range(epochs):
        spent += float(rng.random())
        for part in np.array_split(rng.permutation(n)[: rng.integers(1, n + 1)], rng.integers(1, 4)):
            logits = rng.normal(0, 3, (len(part), classes)).astype(np.float32)
            logits = np.where(rng.random(logits.shape) < wild, rng.choice(EXTREMES, logits.shape), logits)
            logits = np.where(rng.random(logits.shape) < wild / 4, rng.choice(NOT_FINITE, logits.shape), logits)
            logits = logits.astype(np.float32)
            clean = rng.random(len(part)) < 0.7
            rows, z, y, unmixed = (torch.from_numpy(x) for x in (part, logits, labels[part], clean))
            told = fast.update(rows, z, y, unmixed, spent)
            visits = [slow.visit(i, z, labels[i], c, spent) for i, z, c in zip(part, logits, clean, strict=True)] or [
                (0, 0, 0)
            ]
            assert told.sum(dim=1).tolist() == np.sum(visits, axis=0).tolist()
        close(fast.observe(spent + 0.5), slow.observe(spent + 0.5))


def test_before_the_first_visit_a_sample_stands_as_a_uniform_prediction_leaves_it():
    seen = Stats(3, 10, 0.8, CPU).observe(0.0)
    expected = {
        "loss": 2.302585,
        "loss_mean": 2.302585,
        "loss_var": 0,
        "confidence": 0.1,
        "margin": 0,
        "entropy": 1,
        "el2n": 0.948683,  # sqrt(0.9² + 9 · 0.1²)
        "correct": 0,
        "forgets": 0,
        "visits": 0,
        "age": 0,
    }
    for name, value in expected.items():
        np.testing.assert_allclose(seen[name], np.full(3, value), atol=1e-6, err_msg=name)


def visit(table: Stats, logits: list[float], label: int, spent: float = 1.0, clean: bool = True) -> None:
    table.update(torch.tensor([0]), torch.tensor([logits]), torch.tensor([label]), torch.tensor([clean]), spent)


def test_statistics_of_one_visit_counted_by_hand():
    table = Stats(1, 4, 0.8, CPU)
    visit(table, [math.log(x) for x in (4, 2, 1, 1)], label=1)  # p = 1/2, 1/4, 1/8, 1/8
    seen = {name: float(values[0]) for name, values in table.observe(1.0).items()}
    assert seen["loss"] == pytest.approx(math.log(4), abs=1e-6)
    assert seen["confidence"] == pytest.approx(0.25, abs=1e-6)
    assert seen["margin"] == pytest.approx(-0.25, abs=1e-6)
    assert seen["entropy"] == pytest.approx((0.5 * 1 + 0.25 * 2 + 0.25 * 3) / 2, abs=1e-6)  # in bits, of 2
    assert seen["el2n"] == pytest.approx(math.sqrt(0.25 + 0.5625 + 1 / 64 + 1 / 64), abs=1e-6)
    assert (seen["correct"], seen["visits"], seen["age"]) == (0, 1, 0)


@pytest.mark.parametrize("logits", [[-1e4, 0.0, 0.0], [-3e38, 3e38, 3e38], [0.0, 0.0, 200.0]])
def test_what_enters_the_running_mean_is_clipped_too(logits):
    table = Stats(1, 3, 0.5, CPU)
    visit(table, logits, label=0)  # a loss of 100, wherever it would be
    visit(table, [500.0, 0.0, 0.0], label=0)  # a loss of 0
    seen = table.observe(1.0)
    assert seen["loss_mean"][0] == pytest.approx(50.0, abs=1e-4)
    assert seen["loss_var"][0] == pytest.approx(0.5 * 100.0**2, rel=1e-5)


def test_running_mean_and_variance_counted_by_hand():
    table = Stats(1, 2, 0.25, CPU)
    losses = [0.5, 1.5, 3.0]
    for loss in losses:
        visit(table, [0.0, math.log(math.expm1(loss))], label=0)  # log(1 + e^z) = loss
    seen = table.observe(1.0)
    mean_2 = 0.75 * 0.5 + 0.25 * 1.5
    var_2 = 0.25 * (1.5 - 0.5) ** 2
    assert seen["loss"][0] == pytest.approx(3.0, abs=1e-5)
    assert seen["loss_mean"][0] == pytest.approx(0.75 * mean_2 + 0.25 * 3.0, abs=1e-5)
    assert seen["loss_var"][0] == pytest.approx(0.75 * var_2 + 0.25 * (3.0 - mean_2) ** 2, abs=1e-5)


def test_forgetting_is_counted_over_measured_visits():
    table = Stats(1, 2, 0.8, CPU)
    right, wrong, broken = [1.0, 0.0], [0.0, 1.0], [math.nan, 0.0]
    # wrong right right wrong | mixed wrong, not finite: not measured | right wrong wrong
    for logits, clean in [(wrong, True), (right, True), (right, True), (wrong, True)]:
        visit(table, logits, 0, clean=clean)
    assert table.observe(1.0)["forgets"][0] == 1
    visit(table, right, 0)
    visit(table, wrong, 0, clean=False)
    visit(table, broken, 0)
    assert (table.observe(1.0)["forgets"][0], table.observe(1.0)["correct"][0]) == (1, 1)
    visit(table, wrong, 0)
    visit(table, wrong, 0)
    assert table.observe(1.0)["forgets"][0] == 2
    assert table.observe(1.0)["visits"][0] == 9


def test_age_runs_from_the_last_measurement_and_a_mixed_visit_is_none():
    table = Stats(2, 2, 0.8, CPU)
    visit(table, [1.0, 0.0], 0, spent=0.75)
    visit(table, [1.0, 0.0], 0, spent=1.5, clean=False)
    np.testing.assert_array_equal(table.observe(2.0)["age"], np.array([1.25, 2.0], np.float32))


def test_statistics_stay_within_their_bounds_where_numbers_are_extreme():
    table = Stats(1, 3, 1.0, CPU)
    visit(table, [3e38, -3e38, -3e38], label=1)
    seen = table.observe(1.0)
    assert seen["loss"][0] == seen["loss_mean"][0] == 100  # not infinite
    close_to = dict.fromkeys(("confidence", "entropy"), 0) | {"margin": -1, "el2n": math.sqrt(2)}
    assert {name: float(seen[name][0]) for name in close_to} == pytest.approx(close_to, abs=1e-6)
    visit(table, [-3e38, 3e38, -3e38], label=1)
    seen = table.observe(1.0)
    assert seen["loss_var"][0] == 100**2
    close_to = {"loss": 0, "confidence": 1, "margin": 1, "el2n": 0}
    assert {name: float(seen[name][0]) for name in close_to} == pytest.approx(close_to, abs=1e-6)
    for name, (low, high) in stats.BOUNDS.items():
        assert low <= float(seen[name][0]) <= high, name


def test_visits_stop_at_the_largest_exact_count():
    table = Stats(1, 2, 0.8, CPU)
    table.table[:, stats.COLUMNS.index("visits")] = 2.0**24 - 1
    for _ in range(3):
        visit(table, [0.0, 1.0], 0)
    assert table.observe(1.0)["visits"][0] == 2**24 == stats.BOUNDS["visits"][1]


def test_visits_are_told_for_the_samples_asked():
    table = Stats(3, 2, 0.8, CPU)
    for clean in (True, False, True):
        visit(table, [1.0, 0.0], 0, clean=clean)
    assert table.visits(torch.tensor([2, 0])).tolist() == [0, 3]


def test_observations_are_copies():
    table = Stats(4, 3, 0.8, CPU)
    before = table.table.clone()
    first, second = table.observe(0.0), table.observe(0.0)
    arrays = [*first.values(), *second.values(), table.table.numpy()]
    for i, a in enumerate(arrays):
        assert not any(np.shares_memory(a, b) for b in arrays[:i])
    for values in first.values():
        values[:] = -7
    assert torch.equal(table.table, before)


def test_a_sample_takes_at_most_64_bytes():
    table = Stats(1000, 10, 0.8, CPU)
    assert sum(x.untyped_storage().nbytes() for x in vars(table).values() if torch.is_tensor(x)) <= 64 * 1000


@pytest.mark.parametrize("numbers", [1, 7, 30, 2**19])
def test_rows_entered_a_few_at_a_time_are_those_entered_together(numbers, monkeypatch):
    monkeypatch.setattr(stats, "CACHED_NUMBERS", numbers)
    generator = torch.Generator().manual_seed(0)
    few, whole = (Stats(40, 7, 0.8, CPU) for _ in range(2))
    for spent in (1.0, 2.0):
        indices = torch.randperm(40, generator=generator)[:33]
        logits = torch.randn(33, 7, generator=generator)
        logits[5] = torch.nan
        labels = torch.randint(7, (33,), generator=generator)
        clean = torch.rand(33, generator=generator) < 0.8
        told = few.update(indices, logits, labels, clean, spent)
        assert torch.equal(told, stats.enter(whole.table, indices, logits, labels, clean, spent, 0.8))
        assert torch.equal(few.table, whole.table)
    nothing = torch.zeros(0, dtype=torch.int64)
    assert few.update(nothing, torch.zeros(0, 7), nothing, nothing.bool(), 3.0).shape == (3, 0)
    assert torch.equal(few.table, whole.table)
