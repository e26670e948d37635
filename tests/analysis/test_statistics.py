"""Intervals against scipy, areas against integrals, verdicts and errors by hand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import integrate, stats

from train.analysis.statistics import log_budget_area, lossless, mean_interval, mean_intervals, seed_means, side

numbers = st.floats(-100, 100)


@given(st.lists(numbers, min_size=2, max_size=25).filter(lambda values: np.std(values) > 1e-6))
def test_an_interval_is_students_t(values):
    expected = stats.t.interval(0.95, len(values) - 1, np.mean(values), stats.sem(values))
    assert mean_interval(values) == pytest.approx(expected, rel=1e-9, abs=1e-9)


def test_an_interval_by_hand():
    # mean 3, deviation sqrt(2.5), t(0.975, 4) = 2.776445
    assert mean_interval([1, 2, 3, 4, 5]) == pytest.approx((3 - 1.963243, 3 + 1.963243), abs=1e-6)
    assert mean_interval([0, 2]) == pytest.approx((1 - 12.7062, 1 + 12.7062), abs=1e-4)
    assert mean_interval([0.25]) == (0.25, 0.25)
    assert mean_interval([0.5] * 4) == (0.5, 0.5)


@pytest.mark.parametrize("seeds", [2, 5, 10])
def test_intervals_hold_the_mean_as_often_as_they_say(seeds):
    low, high = mean_intervals(np.random.default_rng(0).normal(3.0, 2.0, (seeds, 20_000)))
    assert np.mean((low <= 3.0) & (high >= 3.0)) == pytest.approx(0.95, abs=5 * np.sqrt(0.95 * 0.05 / 20_000))


def test_seeds_are_the_units_over_several_cells():
    """Cells that share the seeds' noise do not make an interval narrower: twelve copies of a cell are one cell."""
    cell = dict(enumerate([1.0, 2.0, 4.0, 8.0]))
    assert mean_interval(seed_means([cell] * 12)) == pytest.approx(mean_interval(list(cell.values())))
    # 7 is in one cell only; 1: (2 + 8) / 2, 3: (10 + 0) / 2
    assert seed_means([{3: 10.0, 1: 2.0, 7: 99.0}, {1: 8.0, 3: 0.0}]) == [5.0, 5.0]
    for none in ([], [{}], [{1: 2.0}, {2: 2.0}]):
        with pytest.raises(ValueError, match="no seed in common"):
            seed_means(none)


def test_area_of_a_line_in_log_budget_is_its_middle():
    budgets = np.array([1.0, 3.0, 4.0, 25.0])
    assert log_budget_area(budgets, 50.0 + 7.0 * np.log(budgets)) == pytest.approx(50.0 + 7.0 * np.log(5.0))


def test_area_along_the_last_axis_and_in_any_unit_of_compute():
    # two octaves of one, then one of two: trapezoids 1 · 1.5 and 2 · 2.5, over three octaves
    assert log_budget_area([2.0, 4.0, 16.0], [1.0, 2.0, 3.0]) == pytest.approx((1 * 1.5 + 2 * 2.5) / 3)
    accuracies = np.random.default_rng(11).random((2, 4, 3))
    areas = log_budget_area([2.0, 4.0, 16.0], accuracies)
    x = np.log([2.0, 4.0, 16.0])
    np.testing.assert_allclose(areas, integrate.trapezoid(accuracies, x, axis=-1) / (x[-1] - x[0]))
    np.testing.assert_allclose(areas, log_budget_area([200.0, 400.0, 1600.0], accuracies))


@pytest.mark.parametrize(
    ("differences", "margin", "verdict"),
    [
        ([-0.1, 0.0, 0.1, 0.0, 0.0], 0.2, "lossless"),
        ([-0.1, -0.3, -0.2, -0.2, -0.1], 0.2, "undecided"),
        ([-0.5, -0.9, -0.7, -0.4, -0.6], 0.2, "lossy"),
        ([-0.5, -0.9, -0.7, -0.4, -0.6], 0.6, "undecided"),
        ([-0.5, -0.9, -0.7, -0.4, -0.6], 1.0, "lossless"),
        ([100 * (0.931 - 0.933)] * 5, 0.2, "undecided"),  # on the margin, which rounding has put below
        ([100 * (0.733 - 0.735)] * 5, 0.2, "undecided"),  # … or above
        ([1.0] * 4, 0.2, "undecided"),  # few seeds
    ],
)
def test_verdict(differences, margin, verdict):
    found = lossless(differences, margin)
    assert found == (verdict, pytest.approx(np.mean(differences)), mean_interval(differences))


def test_sides():
    assert [side(i) for i in [(0.1, 1.0), (-1.0, -0.1), (-1.0, 1.0), (1e-12, 1.0), None]] == [1, -1, 0, 0, 0]
    assert side((0.1, 0.3), 0.5) == -1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: mean_interval([]), "one axis"),
        (lambda: mean_interval([[1.0, 2.0]]), "one axis"),
        (lambda: mean_interval([1.0, float("nan")]), r"values must be finite; there is nan at \[1\]"),
        (lambda: lossless([1.0, float("inf")]), r"differences must be finite; there is inf at \[1\]"),
        (lambda: lossless([1.0], -0.1), "margin"),
        (lambda: lossless([1.0], float("nan")), "margin"),
        (lambda: log_budget_area([1.0], [0.5]), "at least two"),
        (lambda: log_budget_area([0.0, 1.0], [0.5, 0.6]), "positive"),
        (lambda: log_budget_area([1.0, 2.0, 2.0], [0.5, 0.6, 0.7]), "ascending"),
        (lambda: log_budget_area([1.0, 2.0], [0.5, 0.6, 0.7]), r"shape \(3,\)"),
        (lambda: log_budget_area([1.0, 2.0], [[0.5, 0.6], [0.5, float("inf")]]), r"there is inf at \[1, 1\]"),
    ],
)
def test_refuses(call, message):
    with pytest.raises(ValueError, match=message):
        call()
