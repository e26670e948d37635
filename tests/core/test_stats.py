"""The table of statistics against one sample at a time in float64, and against figures counted by hand."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prune_env import stats
from prune_env.env import observations
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
@settings(max_examples=40)
def test_any_order_of_visits_agrees_with_the_slow_version(seed, n, classes, ema, epochs, wild):
    """Visits and measurements, clean and mixed, with logits that are large, equal or not finite."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, n)
    fast, slow = Stats(n, classes, ema, CPU), SlowStats(n, classes, ema)
    close(fast.observe(0.0), slow.observe(0.0))
    spent = 0.0
    for _ in range(epochs):
        spent += float(rng.random())
        trained = bool(rng.random() < 0.7)
        for part in np.array_split(rng.permutation(n)[: rng.integers(1, n + 1)], rng.integers(1, 4)):
            logits = rng.normal(0, 3, (len(part), classes))
            logits = np.where(rng.random(logits.shape) < wild, rng.choice(EXTREMES, logits.shape), logits)
            logits = np.where(rng.random(logits.shape) < wild / 4, rng.choice(NOT_FINITE, logits.shape), logits)
            logits = logits.astype(np.float32)
            clean = rng.random(len(part)) < 0.7
            rows, z, y, unmixed = (torch.from_numpy(x) for x in (part, logits, labels[part], clean))
            found = fast.update(rows, z, y, unmixed, spent, trained=trained)
            expected = [
                slow.visit(i, z, labels[i], c, spent, trained) for i, z, c in zip(part, logits, clean, strict=True)
            ]
            assert found.T.tolist() == [list(map(bool, row)) for row in expected]
        close(fast.observe(spent + 0.5), slow.observe(spent + 0.5))


FLOATS = st.floats(width=32) | st.sampled_from([3.4e38, -3.4e38, 1e-45, 0.0])


@given(logits=st.lists(st.tuples(FLOATS, FLOATS, FLOATS), min_size=1, max_size=8), visits=st.integers(1, 4))
@settings(max_examples=40)
def test_whatever_a_student_puts_out_is_seen_within_the_bounds(logits, visits):
    n = len(logits)
    table, z = Stats(n, 3, 0.5, CPU), torch.tensor(logits, dtype=torch.float32)
    for visit in range(visits):
        now = z.roll(visit, 0)
        found = table.update(torch.arange(n), now, torch.arange(n) % 3, torch.ones(n).bool(), 1.0 + visit)
        assert found[0].tolist() == np.isfinite(now.numpy()).all(axis=1).tolist()
    seen = table.observe(float(visits))
    space = observations(n, 3, 5.0)
    assert all(space[name].contains(values) for name, values in seen.items())
    assert (seen["visits"] == visits).all()


def visit(table: Stats, logits: list[float], label: int, spent: float = 1.0, clean: bool = True) -> dict[str, float]:
    """Enter a visit of sample 0; return its statistics."""
    table.update(torch.tensor([0]), torch.tensor([logits]), torch.tensor([label]), torch.tensor([clean]), spent)
    return {name: float(values[0]) for name, values in table.observe(spent).items()}


def test_before_the_first_visit_a_sample_stands_as_a_uniform_prediction_leaves_it():
    expected = dict.fromkeys(stats.COLUMNS, 0.0) | {"loss": 2.302585, "loss_mean": 2.302585, "confidence": 0.1}
    expected |= {"entropy": 1.0, "el2n": 0.948683}  # sqrt(0.9² + 9 · 0.1²)
    for name, values in Stats(3, 10, 0.8, CPU).observe(0.0).items():
        np.testing.assert_allclose(values, np.full(3, expected[name]), atol=1e-6, err_msg=name)


def test_statistics_of_one_visit_counted_by_hand():
    seen = visit(Stats(1, 4, 0.8, CPU), [math.log(x) for x in (4, 2, 1, 1)], label=1)  # p = 1/2, 1/4, 1/8, 1/8
    expected = {"loss": math.log(4), "confidence": 0.25, "margin": -0.25, "correct": 0, "visits": 1, "age": 0}
    expected["entropy"] = (0.5 * 1 + 0.25 * 2 + 0.25 * 3) / 2  # in bits, of 2
    expected["el2n"] = math.sqrt(0.25 + 0.5625 + 1 / 64 + 1 / 64)
    assert {name: seen[name] for name in expected} == pytest.approx(expected, abs=1e-6)


def test_running_mean_and_variance_counted_by_hand():
    table = Stats(1, 2, 0.25, CPU)
    for loss in (0.5, 1.5, 3.0):
        seen = visit(table, [0.0, math.log(math.expm1(loss))], label=0)  # log(1 + e^z) = loss
    mean_2, var_2 = 0.75 * 0.5 + 0.25 * 1.5, 0.25 * (1.5 - 0.5) ** 2
    assert seen["loss"] == pytest.approx(3.0, abs=1e-5)
    assert seen["loss_mean"] == pytest.approx(0.75 * mean_2 + 0.25 * 3.0, abs=1e-5)
    assert seen["loss_var"] == pytest.approx(0.75 * var_2 + 0.25 * (3.0 - mean_2) ** 2, abs=1e-5)


def test_forgetting_is_counted_over_measured_visits():
    table = Stats(1, 2, 0.8, CPU)
    right, wrong, broken = [1.0, 0.0], [0.0, 1.0], [math.nan, 0.0]
    # wrong right right wrong right | mixed wrong, not finite: not measured | wrong wrong
    course = [(wrong, True), (right, True), (right, True), (wrong, True), (right, True)]
    course += [(wrong, False), (broken, True), (wrong, True), (wrong, True)]
    forgets = [visit(table, logits, 0, clean=clean)["forgets"] for logits, clean in course]
    assert forgets == [0, 0, 0, 1, 1, 1, 1, 2, 2]
    assert table.observe(1.0)["visits"][0] == 9


def test_age_runs_from_the_last_measurement_and_a_mixed_visit_is_none():
    table = Stats(2, 2, 0.8, CPU)
    visit(table, [1.0, 0.0], 0, spent=0.75)
    visit(table, [1.0, 0.0], 0, spent=1.5, clean=False)
    np.testing.assert_array_equal(table.observe(2.0)["age"], np.array([1.25, 2.0], np.float32))


def test_statistics_stay_within_their_bounds_where_numbers_are_extreme():
    table = Stats(1, 3, 0.5, CPU)
    seen = visit(table, [3e38, -3e38, -3e38], label=1)
    expected = {"loss": 100, "loss_mean": 100, "confidence": 0, "entropy": 0, "margin": -1, "el2n": math.sqrt(2)}
    assert {name: seen[name] for name in expected} == pytest.approx(expected, abs=1e-6)  # a loss that is not infinite
    seen = visit(table, [-3e38, 3e38, -3e38], label=1)
    expected = {"loss": 0, "loss_mean": 50, "loss_var": 0.5 * 100**2, "confidence": 1, "margin": 1, "el2n": 0}
    assert {name: seen[name] for name in expected} == pytest.approx(expected, abs=1e-4)


def test_observations_are_copies_and_a_sample_takes_at_most_64_bytes():
    table = Stats(1000, 10, 0.8, CPU)
    for values in table.observe(0.0).values():
        values[:] = -7
    assert all((values >= 0).all() for values in table.observe(0.0).values())
    assert sum(x.untyped_storage().nbytes() for x in vars(table).values() if torch.is_tensor(x)) <= 64 * 1000
