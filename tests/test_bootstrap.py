"""Intervals over seeds, against scipy and a closed form."""

import numpy as np
import pytest
from scipy import stats

from train.bootstrap import mean_interval


def test_agrees_with_scipy():
    values = np.random.default_rng(3).normal(93.0, 0.7, size=9)
    reference = stats.bootstrap(
        (values,),
        np.mean,
        confidence_level=0.95,
        method="percentile",
        n_resamples=20_000,
        rng=np.random.default_rng(5),
    ).confidence_interval
    # the ends of two independent bootstraps differ by a few standard errors of a 2.5 % quantile
    assert mean_interval(values) == pytest.approx(tuple(reference), abs=0.02)


@pytest.mark.parametrize(("zeros", "ones"), [(3, 2), (13, 12), (90, 10)])
def test_of_zeros_and_ones_is_binomial(zeros: int, ones: int):
    size = zeros + ones
    exact = stats.binom.ppf([0.025, 0.975], size, ones / size) / size
    assert mean_interval([0.0] * zeros + [1.0] * ones) == pytest.approx(tuple(exact), abs=1e-12)


def test_holds_the_mean_at_about_its_level():
    draws = np.random.default_rng(0).normal(size=(300, 30))
    covered = np.mean([low <= 0.0 <= high for low, high in map(mean_interval, draws)])
    assert 0.89 <= covered <= 0.98  # a percentile interval of 30 values is a little short


def test_is_the_same_every_time_and_moves_with_the_values():
    values = np.array([1.0, 2.0, 4.0, 8.0])
    low, high = mean_interval(values)
    assert mean_interval(values) == (low, high)
    assert mean_interval(10.0 + values) == pytest.approx((10.0 + low, 10.0 + high))


def test_one_value_gives_itself():
    assert mean_interval([0.25]) == (0.25, 0.25)


@pytest.mark.parametrize("values", [[], [[1.0, 2.0]], 1.0])
def test_refuses_other_shapes(values):
    with pytest.raises(ValueError, match="one axis"):
        mean_interval(values)
