"""Intervals against scipy, areas against integrals, verdicts by hand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import integrate, stats

from train.analysis.statistics import log_budget_area, lossless, mean_interval, mean_of, seed_means, side
from train.analysis.text import plus_minus, spread


@given(st.lists(st.floats(-100, 100), min_size=2, max_size=25).filter(lambda values: np.std(values) > 1e-6))
def test_an_interval_is_students_t(values):
    expected = stats.t.interval(0.95, len(values) - 1, np.mean(values), stats.sem(values))
    found = mean_of(values)
    assert (found.mean, found.seeds) == (pytest.approx(np.mean(values)), len(values))
    assert found.interval == pytest.approx(expected, rel=1e-9, abs=1e-9)


def test_one_seed_has_no_interval():
    found = mean_of([0.25])
    assert (found.mean, found.interval, found.seeds) == (0.25, None, 1)
    assert spread(found.mean, found.interval, ".2f") == "0.25"
    assert spread(found.mean, found.interval, ".2f", " [–]") == "0.25 [–]"
    assert plus_minus([0.25], ".2f") == "0.25"
    assert plus_minus([1.0, 2.0, 3.0, 4.0, 5.0], "+.1f") == "+3.0 ± 0.71"  # sqrt(2.5 / 5)
    assert spread(94.125, (93.0, 95.25), "+.1f") == "+94.1 [+93.0, +95.2]"


def test_seeds_are_the_units_over_several_cells():
    """Cells that share the seeds' noise do not make an interval narrower: twelve copies of a cell are one cell."""
    cell = dict(enumerate([1.0, 2.0, 4.0, 8.0]))
    assert mean_interval(seed_means([cell] * 12)) == pytest.approx(mean_interval(list(cell.values())))
    # 7 is in one cell only; 1: (2 + 8) / 2, 3: (10 + 0) / 2
    assert seed_means([{3: 10.0, 1: 2.0, 7: 99.0}, {1: 8.0, 3: 0.0}]) == [5.0, 5.0]


def test_area_along_the_last_axis_and_in_any_unit_of_compute():
    accuracies = np.random.default_rng(11).random((2, 4, 3))
    areas = log_budget_area([2.0, 4.0, 16.0], accuracies)
    x = np.log([2.0, 4.0, 16.0])
    np.testing.assert_allclose(areas, integrate.trapezoid(accuracies, x, axis=-1) / (x[-1] - x[0]))
    np.testing.assert_allclose(areas, log_budget_area([200.0, 400.0, 1600.0], accuracies))


@pytest.mark.parametrize(
    ("differences", "verdict"),
    [
        ([-0.1, 0.0, 0.1, 0.0, 0.0], "lossless"),
        ([-0.1, -0.3, -0.2, -0.2, -0.1], "undecided"),
        ([-0.5, -0.9, -0.7, -0.4, -0.6], "lossy"),
        ([100 * (0.931 - 0.933)] * 5, "undecided"),  # on the margin, which rounding has put below
        ([100 * (0.733 - 0.735)] * 5, "undecided"),  # … or above
        ([1.0] * 4, "undecided"),  # few seeds
    ],
)
def test_verdict(differences, verdict):
    assert lossless(mean_of(differences)) == verdict


def test_sides():
    assert [side(i) for i in [(0.1, 1.0), (-1.0, -0.1), (-1.0, 1.0), (1e-12, 1.0), None]] == [1, -1, 0, 0, 0]
    assert side((0.1, 0.3), 0.5) == -1
