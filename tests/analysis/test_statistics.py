"""Statistics against scipy, enumerations, closed forms and numbers by hand."""

import itertools
import random

import numpy as np
import pytest
from scipy import integrate, stats

from train.analysis import statistics
from train.analysis.statistics import (
    area_interval,
    log_budget_area,
    lossless,
    mean_interval,
    paired_improvement,
    performance_profile,
    probability_of_improvement,
    stratified_interval,
)

# standard error of the 2.5 % quantile of 10,000 normal draws, in their standard deviations
QUANTILE_ERROR = np.sqrt(0.025 * 0.975 / statistics.RESAMPLES) / stats.norm.pdf(stats.norm.ppf(0.025))
REFUSED = [float("nan"), float("inf"), -float("inf")]


def scipy_interval(samples, statistic):
    return stats.bootstrap(
        samples,
        statistic,
        confidence_level=0.95,
        method="percentile",
        n_resamples=statistics.RESAMPLES,
        rng=np.random.default_rng(5),
    )


def about(reference):
    """The ends of a bootstrap up to five standard errors of the difference of two independent ones."""
    ends = tuple(reference.confidence_interval)
    return pytest.approx(ends, abs=5 * np.sqrt(2) * QUANTILE_ERROR * reference.standard_error)


def enumerated(tasks):
    """95 % interval of a mean over tasks, of (statistic, sizes) each, from all resamples, which are equally likely."""
    per_task = []
    for statistic, sizes in tasks:
        draws = [itertools.product(range(size), repeat=size) for size in sizes]
        per_task.append([statistic(*indices) for indices in itertools.product(*draws)])
    means = [sum(values) / len(values) for values in itertools.product(*per_task)]
    return tuple(np.quantile(means, [0.025, 0.975], method="inverted_cdf"))


def beats(a, b):
    return 1.0 if a > b else 0.5 if a == b else 0.0


# the mean


def test_agrees_with_scipy():
    values = np.random.default_rng(3).normal(93.0, 0.7, size=9)
    assert mean_interval(values) == about(scipy_interval((values,), np.mean))


@pytest.mark.parametrize(("zeros", "ones"), [(3, 2), (13, 12), (90, 10)])
def test_of_zeros_and_ones_is_binomial(zeros: int, ones: int):
    size = zeros + ones
    exact = stats.binom.ppf([0.025, 0.975], size, ones / size) / size
    assert mean_interval([0.0] * zeros + [1.0] * ones) == pytest.approx(tuple(exact), abs=1e-12)


def test_of_many_normal_values_is_the_textbook_interval():
    draws = np.random.default_rng(1).normal(70.0, 2.0, size=(10, 100))
    ends = (np.array([mean_interval(values) for values in draws]) - draws.mean(axis=1, keepdims=True)).T
    z = (ends / (draws.std(axis=1) / np.sqrt(100))).mean(axis=1)  # in standard errors of the mean
    assert z == pytest.approx([-1.96, 1.96], abs=5 * QUANTILE_ERROR / np.sqrt(10))


@pytest.mark.parametrize(("size", "least", "most"), [(5, 0.78, 0.90), (20, 0.90, 0.97)])
def test_holds_the_mean_as_often_as_the_docstring_says(size: int, least: float, most: float):
    draws = np.random.default_rng(0).normal(size=(200, size))
    covered = np.mean([low <= 0.0 <= high for low, high in map(mean_interval, draws)])
    assert least <= covered <= most


def test_is_the_same_every_time_and_moves_with_the_values():
    values = np.array([1.0, 2.0, 4.0, 8.0])
    low, high = mean_interval(values)
    assert mean_interval(values) == (low, high)
    assert mean_interval(10.0 + values) == pytest.approx((10.0 + low, 10.0 + high))


def test_keeps_the_numbers_of_tables_already_printed():
    assert mean_interval([93.2, 93.6, 93.9, 94.1, 93.4]) == pytest.approx((93.36, 93.92), abs=1e-9)


def test_one_value_gives_itself():
    assert mean_interval([0.25]) == (0.25, 0.25)


@pytest.mark.parametrize("values", [[], [[1.0, 2.0]], 1.0])
def test_refuses_other_shapes(values):
    with pytest.raises(ValueError, match="one axis"):
        mean_interval(values)


# the mean over tasks


def test_stratified_agrees_with_scipy():
    rng = np.random.default_rng(7)
    strata = [rng.normal(60.0, 1.0, size=5), rng.normal(90.0, 3.0, size=8), rng.normal(75.0, 0.5, size=12)]

    def statistic(a, b, c, axis):
        return (a.mean(axis=axis) + b.mean(axis=axis) + c.mean(axis=axis)) / 3

    assert stratified_interval(strata) == about(scipy_interval(strata, statistic))


def test_stratified_of_one_task_is_the_interval_of_its_mean():
    values = [1.0, 2.0, 4.0, 8.0, 9.0]
    assert stratified_interval([values]) == mean_interval(values)


def test_tasks_are_resampled_independently_and_weigh_the_same():
    rng = np.random.default_rng(2)
    few, many = rng.normal(0.0, 2.0, size=50), rng.normal(50.0, 3.0, size=300)
    error = np.sqrt(few.var() / 50 + many.var() / 300) / 2
    center = (few.mean() + many.mean()) / 2
    expected = (center - 1.96 * error, center + 1.96 * error)
    assert stratified_interval([few, many]) == pytest.approx(expected, abs=5 * QUANTILE_ERROR * error)
    # of four copies of a task it is half as wide as of one: no resample is used twice
    (low, high), (low_4, high_4) = mean_interval(few), stratified_interval([few] * 4)
    assert (high_4 - low_4) / (high - low) == pytest.approx(0.5, abs=0.05)


def test_differences_between_tasks_do_not_widen_the_interval():
    assert stratified_interval([[10.0, 10.0], [90.0, 90.0, 90.0]]) == (50.0, 50.0)


# probability of improvement


def test_probability_of_improvement_is_that_of_loops_and_of_mann_whitney():
    rng = np.random.default_rng(4)
    x = [np.round(rng.normal(0.3, 1.0, size=n), 1) for n in (5, 9, 30)]  # rounded: with ties
    y = [np.round(rng.normal(0.0, 1.0, size=m), 1) for m in (7, 4, 30)]
    loops, u = [], []
    for a, b in zip(x, y, strict=True):
        loops.append(sum(beats(p, q) for p in a for q in b) / (len(a) * len(b)))
        u.append(stats.mannwhitneyu(a, b).statistic / (len(a) * len(b)))
    probability, (low, high) = probability_of_improvement(x, y)
    assert probability == pytest.approx(sum(loops) / 3, abs=1e-12)
    assert probability == pytest.approx(np.mean(u), abs=1e-12)
    assert low < probability < high


@pytest.mark.parametrize(("x", "y"), [([[6, 6, 1], [2, 3]], [[4, 3], [1, 6]]), ([[2, 3, 3], [6, 4]], [[5, 0], [2, 6]])])
def test_interval_of_the_probability_of_improvement_is_that_of_all_resamples(x, y):
    # of scores with no step of the distribution of resamples within six standard errors of 2.5 or 97.5 %
    def task(a, b):
        return lambda i, j: sum(beats(a[p], b[q]) for p in i for q in j) / (len(a) * len(b))

    expected = enumerated([(task(a, b), (len(a), len(b))) for a, b in zip(x, y, strict=True)])
    assert probability_of_improvement(x, y).interval == pytest.approx(expected, abs=1e-12)


def test_interval_of_the_probability_of_improvement_agrees_with_scipy():
    rng = np.random.default_rng(8)
    x, y = rng.normal(0.5, 1.0, size=12), rng.normal(0.0, 1.0, size=15)

    def statistic(a, b, axis):
        return np.mean(a[..., :, None] > b[..., None, :], axis=(-2, -1))

    assert probability_of_improvement([x], [y]).interval == about(scipy_interval((x, y), statistic))


def test_no_improvement_over_itself():
    x = [np.arange(7.0), [3.0, 1.0, 1.0]]
    probability, (low, high) = probability_of_improvement(x, x)
    assert probability == 0.5
    assert low < 0.4 < 0.6 < high  # resampled together, x and itself would always be level
    assert probability_of_improvement([[1.0, 1.0]], [[1.0]]) == (0.5, (0.5, 0.5))


def test_improvement_of_a_constant_shift_is_certain_and_the_other_way_impossible():
    x, y = [[11.0, 12.0, 13.0], [5.0]], [[1.0, 2.0, 3.0], [4.0, 4.5]]
    assert probability_of_improvement(x, y) == (1.0, (1.0, 1.0))
    assert probability_of_improvement(y, x) == (0.0, (0.0, 0.0))


def test_probability_of_improvement_of_normal_scores():
    rng = np.random.default_rng(6)
    x, y = rng.normal(1.0, 1.0, size=150), rng.normal(0.0, 1.0, size=150)
    probability, (low, high) = probability_of_improvement([x], [y])
    assert low < stats.norm.cdf(1.0 / np.sqrt(2.0)) < high
    assert high - low < 0.13
    assert low < probability < high


def test_paired_improvement_by_hand():
    probability, interval = paired_improvement([[1.0, 0.0, -2.0, 3.0], [0.1, 0.2]])
    assert probability == pytest.approx((2.5 / 4 + 1.0) / 2)
    task = enumerated([(lambda i: sum([1.0, 0.5, 0.0, 1.0][p] for p in i) / 4, (4,))])
    assert interval == pytest.approx(tuple((end + 1.0) / 2 for end in task), abs=1e-12)


def test_pairing_finds_a_small_gain_under_the_noise_of_the_seeds():
    rng = np.random.default_rng(9)
    y = rng.normal(70.0, 2.0, size=10)
    x = y + 0.5
    assert paired_improvement([x - y]) == (1.0, (1.0, 1.0))
    probability, (low, _) = probability_of_improvement([x], [y])
    assert 0.5 < probability < 0.75
    assert low < 0.5


def test_refuses_different_tasks():
    with pytest.raises(ValueError, match="x has 2 tasks and y has 1"):
        probability_of_improvement([[1.0], [2.0]], [[1.0]])


# profile


def test_profile_by_hand():
    profile = performance_profile([[1.0, 2.0, 3.0, 4.0], [2.0, 2.0]], [0.0, 2.0, 3.5, 4.0])
    assert profile.share.tolist() == [1.0, 0.25, 0.125, 0.0]  # above, not at
    binomial = stats.binom.ppf([0.025, 0.975], 4, 0.5) / 4 / 2
    assert (profile.low[1], profile.high[1]) == tuple(binomial)
    assert (profile.low[0], profile.high[0], profile.low[3], profile.high[3]) == (1.0, 1.0, 0.0, 0.0)


def test_profile_at_each_threshold_is_the_mean_of_what_is_above():
    rng = np.random.default_rng(10)
    strata = [rng.normal(size=6), *[rng.normal(size=9)] * 3]  # equal tasks differ in their resamples
    thresholds = np.linspace(-1.0, 1.0, 5)
    share, low, high = performance_profile(strata, thresholds)
    assert np.all(np.diff(share) <= 0)
    for t, threshold in enumerate(thresholds):
        above = [(values > threshold).astype(float) for values in strata]
        assert share[t] == pytest.approx(np.mean([a.mean() for a in above]), abs=1e-12)
        assert (low[t], high[t]) == pytest.approx(stratified_interval(above), abs=1e-12)


# area over log budgets


def test_area_of_a_line_in_log_budget_is_its_middle():
    budgets = np.array([1.0, 3.0, 4.0, 25.0])
    assert log_budget_area(budgets, 50.0 + 7.0 * np.log(budgets)) == pytest.approx(50.0 + 7.0 * np.log(5.0))
    assert log_budget_area(budgets, np.full(4, 0.9)) == pytest.approx(0.9)


def test_area_by_hand_along_the_last_axis_and_in_any_unit_of_compute():
    # two octaves of one, then one of two: trapezoids 1 · 1.5 and 2 · 2.5, over three octaves
    assert log_budget_area([2.0, 4.0, 16.0], [1.0, 2.0, 3.0]) == pytest.approx((1 * 1.5 + 2 * 2.5) / 3)
    accuracies = np.random.default_rng(11).random((2, 4, 3))
    areas = log_budget_area([2.0, 4.0, 16.0], accuracies)
    assert np.shape(areas) == (2, 4)
    x = np.log([2.0, 4.0, 16.0])
    np.testing.assert_allclose(areas, integrate.trapezoid(accuracies, x, axis=-1) / (x[-1] - x[0]))
    np.testing.assert_allclose(areas, log_budget_area([200.0, 400.0, 1600.0], accuracies))


def test_interval_of_the_area_agrees_with_scipy():
    rng = np.random.default_rng(12)
    budgets = np.array([1.0, 2.0, 5.0, 10.0])
    accuracies = np.array([60.0, 65.0, 70.0, 72.0]) + rng.normal(0.0, 1.0, size=(9, 1)) + rng.normal(size=(9, 4))

    def statistic(*columns, axis):
        curve = np.stack([column.mean(axis=axis) for column in columns], axis=-1)
        return integrate.trapezoid(curve, np.log(budgets), axis=-1) / np.log(10.0)

    reference = stats.bootstrap(
        tuple(accuracies.T),
        statistic,
        paired=True,  # the rows stay together
        method="percentile",
        n_resamples=statistics.RESAMPLES,
        rng=np.random.default_rng(5),
    )
    assert area_interval(budgets, accuracies) == about(reference)


@pytest.mark.parametrize(
    ("budgets", "accuracies", "message"),
    [
        ([1.0], [0.5], "at least two"),
        ([], [], "one axis"),
        ([0.0, 1.0], [0.5, 0.6], "positive"),
        ([-1.0, 1.0], [0.5, 0.6], "positive"),
        ([2.0, 1.0], [0.5, 0.6], "ascending"),
        ([1.0, 2.0, 2.0], [0.5, 0.6, 0.7], "ascending"),
        ([1.0, 2.0], [0.5, 0.6, 0.7], r"shape \(3,\)"),
        ([1.0, 2.0], 0.5, r"shape \(\)"),
        ([1.0, float("nan")], [0.5, 0.6], r"budgets must be finite; there is nan at \[1\]"),
        ([1.0, 2.0], [[0.5, 0.6], [0.5, float("inf")]], r"accuracies must be finite; there is inf at \[1, 1\]"),
    ],
)
def test_area_refuses(budgets, accuracies, message):
    with pytest.raises(ValueError, match=message):
        log_budget_area(budgets, accuracies)


@pytest.mark.parametrize(
    ("accuracies", "message"),
    [([0.5, 0.6], "two axes"), (np.zeros((2, 3, 2)), "two axes"), (np.zeros((0, 2)), "at least one value")],
)
def test_interval_of_the_area_needs_seeds_by_budgets(accuracies, message):
    with pytest.raises(ValueError, match=message):
        area_interval([1.0, 2.0], accuracies)


# losslessness


@pytest.mark.parametrize(
    ("differences", "verdict"),
    [
        ([-0.1, 0.0, 0.1, 0.0, 0.0], "lossless"),
        ([0.5, 0.9, 0.7, 0.4, 0.6], "lossless"),
        ([-0.1, -0.3, -0.2, -0.2, -0.1], "undecided"),
        ([-0.5, -0.9, -0.7, -0.4, -0.6], "lossy"),
        ([-0.19] * 5, "lossless"),
        ([-0.21] * 5, "lossy"),
        ([100 * (0.931 - 0.933)] * 5, "undecided"),  # on the margin, which rounding has put below
        ([100 * (0.733 - 0.735)] * 5, "undecided"),  # … or above
        ([1.0] * 4, "undecided"),
        ([-1.0] * 4, "undecided"),
        ([1.0], "undecided"),
    ],
)
def test_verdict(differences, verdict):
    result = lossless(differences)
    assert result.verdict == verdict
    assert result.difference == pytest.approx(np.mean(differences))
    assert result.interval == mean_interval(differences)


def test_verdict_goes_by_the_margin():
    differences = [-0.4, -0.5, -0.6, -0.5, -0.5]
    assert lossless(differences).verdict == "lossy"
    assert lossless(differences, margin=0.5).verdict == "undecided"
    assert lossless(differences, margin=1.0).verdict == "lossless"
    for margin in (-0.1, *REFUSED):
        with pytest.raises(ValueError, match="margin"):
            lossless(differences, margin=margin)


# all of them

CALLS = {
    "mean_interval": lambda values: mean_interval(values),
    "stratified_interval": lambda values: stratified_interval([[1.0, 2.0], values]),
    "probability_of_improvement x": lambda values: probability_of_improvement([[1.0], values], [[1.0], [2.0]]),
    "probability_of_improvement y": lambda values: probability_of_improvement([[1.0], [2.0]], [[1.0], values]),
    "paired_improvement": lambda values: paired_improvement([[1.0], values]),
    "performance_profile": lambda values: performance_profile([[1.0], values], [0.5]),
    "performance_profile thresholds": lambda values: performance_profile([[1.0]], values),
    "area_interval": lambda values: area_interval([1.0, 2.0, 4.0], [values, values]),
    "lossless": lambda values: lossless(values),
}
calls = pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)


@calls
@pytest.mark.parametrize("bad", REFUSED)
def test_refuses_what_is_not_finite_and_names_it(call, bad):
    with pytest.raises(ValueError, match=rf"finite; there is {bad} at \[.*1\]"):
        call([1.0, bad, 2.0])


@calls
def test_refuses_nothing(call):
    with pytest.raises(ValueError, match="shape"):
        call([])


@pytest.mark.parametrize(
    "call",
    [
        stratified_interval,
        paired_improvement,
        lambda tasks: probability_of_improvement(tasks, tasks),
        lambda tasks: performance_profile(tasks, [0.5]),
    ],
)
def test_refuses_no_task(call):
    with pytest.raises(ValueError, match="no task"):
        call([])


def test_names_the_task_that_is_empty():
    with pytest.raises(ValueError, match=r"y of task 1 have shape \(0,\)"):
        probability_of_improvement([[1.0], [2.0]], [[1.0], []])


@calls
def test_gives_the_same_numbers_again_whatever_others_draw_and_leaves_their_generators_alone(call):
    values = np.array([1.0, 5.0, 2.0])
    first = call(values)
    np.random.seed(123)  # noqa: NPY002
    random.seed(123)
    before = str(np.random.get_state()), random.getstate()  # noqa: NPY002
    np.testing.assert_equal(call(values), first)
    assert (str(np.random.get_state()), random.getstate()) == before  # noqa: NPY002
    assert values.tolist() == [1.0, 5.0, 2.0]
