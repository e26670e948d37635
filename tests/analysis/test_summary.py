"""Summaries of records against planted numbers, closed forms and plain loops; parts of sweeps as well as whole ones."""

import dataclasses
import itertools
import random

import numpy as np
import pytest
from scipy import stats

from train.analysis import summary
from train.analysis.statistics import mean_interval
from train.analysis.summary import Difference, Win

HALF, OTHER = "ucb:keep=0.5", "random:keep=0.5"


def record(agent, budget, seed, accuracy, task="digits", **more):
    """What the summaries read of a line; `accuracy` in per cent."""
    result = {"test_accuracy": accuracy / 100}
    return {"task": task, "agent": agent, "budget": budget, "seed": seed, "results": result, **more}


def runs(agent, budget, accuracies, task="digits"):
    """A record a seed 0, 1, ...; None for a run that is not there."""
    return [record(agent, budget, seed, a, task) for seed, a in enumerate(accuracies) if a is not None]


def sweep(tasks=("digits", "cifar"), budgets=(3.0, 6.0, 12.0), seeds=3):
    """A whole sweep with accuracies on a grid of fifths, so that equal ones occur."""
    rng = np.random.default_rng(7)
    return [
        record(agent, budget, seed, 80 + round(3 * np.log(budget)) + rng.integers(-4, 5) / 5, task)
        for task in tasks
        for budget in budgets
        for agent in ("full", HALF, OTHER, "ucb:keep=0.25")
        for seed in range(seeds)
    ]


def everything(records):
    """All summaries; tuples, so that they can be compared."""
    records = summary.latest(records)
    tasks = summary.by_task(records)
    per_task = {
        task: (
            summary.best(of_task),
            summary.areas(of_task),
            summary.equivalences(of_task),
            summary.savings(of_task),
            summary.pairs(of_task, HALF, OTHER),
        )
        for task, of_task in tasks.items()
    }
    return per_task, summary.improvements(records), summary.wins(records)


def approx(difference, mean, interval, seeds):
    assert difference.seeds == seeds
    assert difference.mean == pytest.approx(mean)
    assert difference.interval == (None if interval is None else pytest.approx(interval))
    return True


# the records


def test_the_last_record_of_a_cell_and_seed_wins_and_the_order_is_told():
    records = [
        record("b", 6.0, 1, 50, old=True),
        record("b", 6.0, 0, 50),
        record("a", 6.0, 0, 50),
        record("a", 3.0, 0, 50, task="cifar"),
        record("a", 3.0, 0, 50),
        record("b", 6.0, 1, 60),
    ]
    found = summary.latest(records)
    assert [(r["task"], r["budget"], r["agent"], r["seed"]) for r in found] == [
        ("digits", 3.0, "a", 0),
        ("digits", 6.0, "b", 0),
        ("digits", 6.0, "b", 1),
        ("digits", 6.0, "a", 0),
        ("cifar", 3.0, "a", 0),
    ]
    assert found[2] is records[-1]
    assert list(summary.by_task(found)) == ["digits", "cifar"]
    assert summary.by_task(found)["cifar"] == found[4:]
    assert summary.latest([]) == []
    assert summary.by_task([]) == {}


def unordered(numbers):
    """The summaries without the order of their rows."""
    per_task, improvements, wins = numbers
    tasks = {}
    for task, (best, *others) in per_task.items():
        told = [dataclasses.replace(row, tied=tuple(sorted(row.tied))) for row in best]
        tasks[task] = [told, *(set(rows) for rows in others)]
    return tasks, set(improvements), dataclasses.replace(wins, winning=tuple(sorted(map(str, wins.winning))))


def test_the_order_of_the_lines_decides_the_order_of_rows_only():
    records = sweep()
    expected = unordered(everything(records))
    shuffled = records.copy()
    random.Random(1).shuffle(shuffled)
    assert unordered(everything(shuffled)) == expected
    outdated = [{**r, "results": {"test_accuracy": 0.0}} for r in records[:20]]
    assert everything(outdated + records) == everything(records)  # the last of a cell counts


@pytest.mark.parametrize("without", ["", "full", HALF])
@pytest.mark.parametrize("seeds", [1, 2])
def test_a_sweep_in_midway_can_be_summed_up(without, seeds):
    records = [r for r in sweep(budgets=(3.0, 6.0), seeds=seeds) if r["agent"] != without]
    for end in range(0, len(records) + 1, 3):
        _, improvements, wins = everything(records[:end])
        if without == "full":
            assert (improvements, wins.cells) == ([], 0)
        if seeds == 1:
            assert wins.cells == 0
            assert all(row.interval is None and row.difference.interval is None for row in improvements)
    gaps = random.Random(2)
    for _ in range(6):
        everything([r for r in records if gaps.random() < 0.5])


# best


def test_the_best_its_equals_and_its_difference_to_full():
    records = [
        *runs("full", 3.0, [90.0, 91.0, 92.0]),
        *runs("a", 3.0, [91.0, 92.0, 93.5]),
        *runs("b", 3.0, [91.5, 91.5, 93.0]),  # differs from a by +0.5, -0.5, -0.5
        *runs("c", 3.0, [99.0, 99.0]),  # not all seeds
        *runs("d", 3.0, [80.0, 80.0, 80.0]),
        *runs("full", 6.0, [95.0, 95.0, 95.0]),
    ]
    first, second = summary.best(records)
    assert (first.budget, first.agent, first.seeds) == (3.0, "a", 3)
    assert first.accuracy == pytest.approx((91 + 92 + 93.5) / 3)
    assert first.interval == pytest.approx(mean_interval([91, 92, 93.5]))
    assert first.tied == ("b",)
    assert first.difference
    assert approx(first.difference, 3.5 / 3, mean_interval([1.0, 1.0, 1.5]), 3)
    assert (second.agent, second.tied, second.difference) == ("full", (), None)


def test_the_best_is_compared_over_the_seeds_of_full():
    records = runs("full", 3.0, [90.0, 90.0]) + runs("a", 3.0, [89.0, 89.0, 99.0, 99.0])
    (row,) = summary.best(records)
    assert (row.agent, row.seeds, row.accuracy) == ("full", 2, 90.0)


def test_without_full_the_best_has_all_seeds():
    records = runs("a", 3.0, [90.0, 90.5]) + runs("b", 3.0, [99.0]) + runs("c", 3.0, [89.0, 90.5])
    (row,) = summary.best(records)
    assert (row.agent, row.seeds, row.difference) == ("a", 2, None)
    assert row.tied == ("b", "c")  # b: from one seed nothing is told apart; c: 1.0 and 0.0
    assert summary.best([record("a", 3.0, 0, 90), record("b", 3.0, 1, 90)]) == []


def test_of_equally_good_agents_full_is_named():
    records = [r for agent in ("a", "full", "b") for r in runs(agent, 3.0, [90.0, 91.0])]
    (row,) = summary.best(records)
    assert (row.agent, row.tied, row.difference) == ("full", ("a", "b"), None)


def test_equal_accuracies_are_tied_despite_rounding():
    differences = [0.1, 0.2, -0.3]  # their sum is 2.8e-17
    records = runs("full", 3.0, [90.0, 90.0, 90.0]) + runs("a", 3.0, [90.0 + d for d in differences])
    (row,) = summary.best(records)
    assert len(row.tied) == 1


# areas


def test_areas_by_hand():
    records = [
        *(runs("full", 2.0, [80.0, 82.0]) + runs("full", 4.0, [90.0, 90.0]) + runs("full", 16.0, [94.0, 96.0])),
        *(runs("a", 2.0, [81.0, 85.0]) + runs("a", 4.0, [91.0, 91.0]) + runs("a", 16.0, [93.0, 95.0])),
        *(runs("b", 2.0, [70.0, 70.0]) + runs("b", 4.0, [70.0, 70.0]) + runs("b", 16.0, [70.0, 70.0])),
        *(runs("short", 2.0, [99.0, 99.0]) + runs("short", 4.0, [99.0, 99.0])),  # with it 3 x 2, without it 2 x 3
        *runs("full", 32.0, [99.0, 99.0]),
    ]
    full, a, b = summary.areas(records)
    # widths of log 2 and 2 log 2: a third and two thirds
    of_full = [(80 + 90) / 6 + (90 + 94) / 3, (82 + 90) / 6 + (90 + 96) / 3]
    of_a = [(81 + 91) / 6 + (91 + 93) / 3, (85 + 91) / 6 + (91 + 95) / 3]
    assert (full.agent, a.agent, b.agent) == ("full", "a", "b")
    assert full.budgets == a.budgets == (2.0, 4.0, 16.0)
    assert (full.area, a.area, b.area) == pytest.approx((np.mean(of_full), np.mean(of_a), 70.0))
    assert full.interval == pytest.approx(mean_interval(of_full))
    assert full.difference is None
    assert a.difference
    differences = np.subtract(of_a, of_full)
    assert approx(a.difference, differences.mean(), mean_interval(differences), 2)


def test_areas_take_the_largest_block_without_a_gap():
    def agents(names, budgets):
        return [r for name, b in itertools.product(names, budgets) for r in runs(name, b, [80 + b, 81 + b])]

    main, ablations = ["full", "a", "b", "c", "d"], ["p", "q", "r", "s", "t"]
    records = agents(main, [3.0, 6.0, 12.0, 24.0, 48.0]) + agents(ablations, [6.0, 24.0])
    assert {row.budgets for row in summary.areas(records)} == {(3.0, 6.0, 12.0, 24.0, 48.0)}  # 4 x 5 of more than 9 x 2
    assert [row.agent for row in summary.areas(records)] == main
    more = records + agents(["u", "v"], [6.0, 24.0])  # 11 x 2
    assert {row.budgets for row in summary.areas(more)} == {(6.0, 24.0)}
    assert len(summary.areas(more)) == 12
    # the budgets that full has alone do not count, nor those that full lacks
    alone = agents(["full"], [3.0, 6.0, 12.0, 24.0, 48.0]) + agents(["a"], [6.0, 24.0, 25.0])
    assert [(row.agent, row.budgets) for row in summary.areas(alone)] == [("full", (6.0, 24.0)), ("a", (6.0, 24.0))]
    assert [row.budgets for row in summary.areas(agents(["full"], [3.0, 6.0]))] == [(3.0, 6.0)]
    assert [row.budgets for row in summary.areas(agents(["a"], [3.0, 6.0]))] == [(3.0, 6.0)]
    assert summary.areas(agents(main, [3.0])) == []
    assert summary.areas(agents(["full"], [3.0, 6.0]) + agents(["a"], [3.0])) == []


def test_a_budget_whose_seeds_have_just_begun_does_not_cost_the_others_theirs():
    records = [r for b in (3.0, 6.0) for a in ("full", "a") for r in runs(a, b, [80 + b, 81 + b, 82 + b])]
    records += runs("full", 12.0, [95.0]) + runs("a", 12.0, [95.0])
    assert {(row.budgets, row.seeds) for row in summary.areas(records)} == {((3.0, 6.0), 3)}


def largest_block(have):
    """Size of the largest block without a gap, from all sets of columns."""
    columns = sorted(set().union(*have.values()))
    chosen = itertools.chain.from_iterable(itertools.combinations(columns, size) for size in range(1, len(columns) + 1))
    return max((sum(set(c) <= set(has) for has in have.values()) * len(c) for c in chosen), default=0)


def test_the_largest_block_against_all_subsets():
    rng = random.Random(3)
    for _ in range(200):
        have = {row: [c for c in range(5) if rng.random() < 0.6] for row in range(rng.randrange(7))}
        rows, columns = summary._block(have)
        assert all(set(columns) <= set(have[row]) for row in rows)
        assert len(rows) * len(columns) == (largest_block(have) if any(have.values()) else 0)


# improvements


def test_improvements_have_the_seeds_as_units():
    records = [
        *(runs("full", 3.0, [90.0, 90.0, 90.0]) + runs("a", 3.0, [91.0, 90.0, 89.0])),
        *(runs("full", 6.0, [90.0, 92.0, 94.0]) + runs("a", 6.0, [91.0, 92.5, 94.5])),
        *(runs("full", 3.0, [50.0, 50.0], "cifar") + runs("a", 3.0, [55.0, 49.0], "cifar")),  # no third seed
        *(runs("full", 6.0, [50.0, 50.0], "cifar") + runs("a", 6.0, [54.0, 50.0], "cifar")),
        *runs("alone", 9.0, [90.0, 90.0]),
    ]
    # the largest block without a gap: four cells with seeds 0 and 1
    (row,) = summary.improvements(records)
    assert (row.agent, row.cells) == ("a", 4)
    first, second = (1 + 1 + 5 + 4) / 4, (0 + 0.5 - 1 + 0) / 4
    assert approx(row.difference, (first + second) / 2, mean_interval([first, second]), 2)
    assert row.probability == 0.75  # all of the first seed, (½ + 1 + 0 + ½) / 4 of the second
    assert row.interval == (0.0, 1.0)  # 0.75 ± 12.7 * 0.25, cut
    (row,) = summary.improvements(runs("full", 3.0, [90.0]) + runs("a", 3.0, [91.0]))
    assert (row.probability, row.interval) == (1.0, None)
    assert approx(row.difference, 1.0, None, 1)


# equivalences


@pytest.mark.parametrize(
    ("spec", "keep"),
    [
        ("full", None),
        ("ucb:keep=0.5", 0.5),
        ("ucb:c=2,keep=0.3", 0.3),
        ("ucb:keep=0.5+anneal=0.1", 0.5),
        ("ucb:keep=.5,c=1e+5+mixup=0.5", 0.5),
        ("random:keep=5e-1", 0.5),
        ("same_amounts:ucb:keep=0.3+mixup=0.5", 0.3),
        ("my_agents:A:upkeep=0.7", None),
        ("my_agents:A:keep=None", None),
        ("my_agents:A:name='b,keep=0.7,',keep=0.2", 0.2),
        ("full+mixup=0.5", None),
    ],
)
def test_the_share_that_a_spec_keeps(spec, keep):
    assert summary.keep_of(spec) == keep


def test_equivalences_find_full_at_the_larger_budget():
    seventy = "ucb:keep=0.7"
    records = [
        *runs(HALF, 15.0, [90.0, 90.1, 90.2, 90.3, 90.4]),
        *runs(seventy, 15.0, [88.0, 88.0, 88.0, 88.0, 88.0]),
        *runs("ucb:keep=0.3", 15.0, [90.0] * 5),  # full has no 50
        *runs("ucb:keep=1.0", 15.0, [90.0] * 5),
        *runs("infobatch", 15.0, [90.0] * 5),
        *runs("full", 15.0, [89.0, 89.0, 89.0, 89.0, 89.4]),
        *runs("full", 21.43, [90.0, 90.0, 90.0, 90.0, 90.0]),
        *runs("full", 30.0, [90.0, 90.1, 90.2, 90.3, 90.3]),
        *runs("full", 50.6, [99.0] * 5),  # 1.2 % off 15 / 0.3
    ]
    of_half, of_seventy = summary.equivalences(records)
    assert (of_half.agent, of_half.budget, of_half.keep, of_half.larger) == (HALF, 15.0, 0.5, 30.0)
    assert of_half.verdict == "lossless"
    assert approx(of_half.difference, 0.02, mean_interval([0, 0, 0, 0, 0.1]), 5)
    assert of_half.same
    assert approx(of_half.same, 1.12, mean_interval([1.0, 1.1, 1.2, 1.3, 1.0]), 5)
    assert (of_seventy.agent, of_seventy.larger, of_seventy.verdict) == (seventy, 21.43, "lossy")
    assert summary.equivalences(records, margin=5.0)[1].verdict == "lossless"
    with pytest.raises(ValueError, match="margin"):
        summary.equivalences(records, margin=-1.0)


def test_equivalences_are_vacuous_where_full_itself_is_lossless():
    five = [90.0, 90.1, 90.2, 90.3, 90.4]
    records = [
        *(runs(HALF, 3.0, [92.0] * 5) + runs(OTHER, 3.0, [80.0] * 5) + runs("ucb:keep=0.25", 3.0, [92.0] * 5)),
        *(runs("full", 3.0, [91.0] * 5) + runs("full", 6.0, five) + runs("full", 12.0, [91.2] * 5)),
        *(runs(HALF, 12.0, [92.0] * 5) + runs("full", 24.0, [91.0] * 5)),
        *(runs(HALF, 24.0, [92.0] * 5) + runs("full", 48.0, [91.5] * 5)),
        *(runs(HALF, 96.0, [92.0] * 5) + runs("full", 192.0, [91.5] * 5)),  # full has no 96
    ]
    found = {(row.agent, row.budget): row for row in summary.equivalences(records)}
    row = found[HALF, 3.0]
    assert row.itself
    assert approx(row.itself, 0.8, mean_interval([1.0, 0.9, 0.8, 0.7, 0.6]), 5)
    assert (row.verdict, row.vacuous) == ("lossless", True)
    assert (found[OTHER, 3.0].verdict, found[OTHER, 3.0].vacuous) == ("lossy", True)
    # an end on the margin does not lie above it
    assert (found["ucb:keep=0.25", 3.0].verdict, found["ucb:keep=0.25", 3.0].vacuous) == ("lossless", False)
    assert found[HALF, 12.0].vacuous
    assert not found[HALF, 24.0].vacuous  # half a point is lost
    assert (found[HALF, 96.0].itself, found[HALF, 96.0].vacuous) == (None, False)
    assert {row.vacuous for row in summary.equivalences(records, margin=2.0)} == {True, False}
    assert all(row.vacuous for row in summary.equivalences(records, margin=2.0) if row.budget < 96.0)
    # over the agent's seeds alone, and few of them decide nothing
    some = runs(HALF, 3.0, [92.0, None, 92.0]) + [r for r in records if r["agent"] == "full"]
    (row,) = summary.equivalences(some)
    assert row.itself
    assert approx(row.itself, 0.9, mean_interval([1.0, 0.8]), 2)
    assert not row.vacuous


def test_equivalences_of_few_seeds():
    few = runs(HALF, 3.0, [90.0]) + runs("full", 6.0, [90.0, 91.0])
    (row,) = summary.equivalences(few)
    assert (row.verdict, row.difference, row.same) == ("undecided", Difference(0.0, None, 1), None)
    assert summary.equivalences([record(HALF, 3.0, 0, 90), record("full", 6.0, 1, 90)]) == []
    assert summary.equivalences(runs(HALF, 3.0, [90.0])) == []


# savings


def test_the_curve_of_full_is_over_the_same_seeds():
    records = runs("full", 6.0, [91.0, 93.0]) + runs("full", 3.0, [90.0, 91.0, 80.0]) + runs("full", 12.0, [70.0])
    assert summary.full_curve(records + runs("a", 24.0, [99.0])) == pytest.approx({3.0: 90.5, 6.0: 92.0})
    assert summary.full_curve(runs("a", 3.0, [90.0])) == {}


def full_log(budgets, offsets=(0.0,), a=80.0, c=3.0):
    """`full` with accuracy a + c log b, each seed with its own offset."""
    return [r for b in budgets for r in runs("full", b, [a + c * np.log(b) + offset for offset in offsets])]


@pytest.mark.parametrize(("factor", "saved"), [(2.0, 0.5), (1.0, 0.0), (0.5, -1.0), (1.7, 1 - 1 / 1.7)])
def test_the_accuracy_of_full_at_another_budget_saves_that_much(factor, saved):
    offsets = (-0.5, 0.1, 0.3)
    agent = runs("a", 6.0, [80 + 3 * np.log(6.0 * factor) + offset for offset in offsets])
    (row,) = summary.savings(full_log([3.0, 7.0, 12.0, 24.0], offsets) + agent)
    assert (row.agent, row.budget, row.seeds, row.bound) == ("a", 6.0, 3, None)
    assert row.full_budget == pytest.approx(6.0 * factor)
    assert row.saved == pytest.approx(saved)
    assert row.interval == pytest.approx((saved, saved))  # agent and full share the offsets of their seeds


def test_accuracies_beyond_those_of_full_give_bounds():
    full = full_log([3.0, 6.0, 12.0], (0.0, 0.2))
    best, worst = summary.savings(full + runs("a", 6.0, [99.0, 99.0]) + runs("b", 6.0, [50.0, 50.0]))
    assert (best.bound, best.full_budget, best.saved) == ("at_least", pytest.approx(12.0), pytest.approx(0.5))
    assert (worst.bound, worst.full_budget, worst.saved) == ("at_most", pytest.approx(3.0), pytest.approx(-1.0))
    # the ends of the range themselves are no bounds
    ends = [{**r, "agent": "a"} for r in full]
    assert [(row.bound, row.saved) for row in summary.savings(full + ends)] == [(None, pytest.approx(0.0))] * 3


def test_where_full_falls_the_smallest_budget_counts():
    full = [r for b, a in [(2.0, 80), (4.0, 90), (8.0, 85), (16.0, 90), (32.0, 92)] for r in runs("full", b, [a, a])]
    rows = {r.agent: r for r in summary.savings(full + runs("a", 4.0, [90, 90]) + runs("b", 4.0, [91, 91]))}
    assert rows["a"].full_budget == pytest.approx(4.0)
    assert rows["b"].full_budget == pytest.approx(np.sqrt(16 * 32))
    # the last accuracy lies below the highest
    falling = runs("full", 2.0, [90.0]) + runs("full", 4.0, [80.0])
    (above,) = summary.savings(falling + runs("a", 2.0, [90.5]))
    (within,) = summary.savings(falling + runs("a", 2.0, [85.0]))
    assert (above.bound, within.bound) == ("at_least", "at_most")
    assert (above.full_budget, within.full_budget) == (pytest.approx(4.0), pytest.approx(2.0))


def test_savings_have_the_budgets_at_which_a_t_test_does_not_tell_full_apart():
    budgets = np.array([3.0, 6.0, 12.0, 24.0])
    rng = np.random.default_rng(4)
    full = np.array([85.0, 88.0, 90.0, 91.0]) + rng.normal(0, 0.5, (5, 4))
    agent = 89.0 + rng.normal(0, 0.5, 5)
    records = [r for b, column in zip(budgets, full.T, strict=True) for r in runs("full", b, column)]
    (row,) = summary.savings(records + runs("a", 6.0, agent))
    grid = np.exp(np.linspace(np.log(3), np.log(24), 3000))
    gaps = agent - np.array([[np.interp(np.log(b), np.log(budgets), curve) for curve in full] for b in grid])
    alike = grid[np.array([stats.ttest_1samp(gap, 0.0)[1] for gap in gaps]) > 0.05]
    assert row.interval == pytest.approx((1 - 6 / alike[0], 1 - 6 / alike[-1]), abs=2e-3)
    assert row.full_budget == pytest.approx(grid[np.argmin(np.abs(gaps.mean(axis=1)))], rel=1e-3)


def test_savings_of_parts_of_a_sweep():
    full = full_log([3.0, 6.0, 12.0], (0.0, 0.2, 0.4))
    begun = runs("full", 24.0, [95.0])  # one seed must not cost the others theirs
    (row,) = summary.savings(full + begun + runs("a", 6.0, [86.0, 86.2, None, 70.0]))
    assert (row.seeds, row.bound) == (2, None)
    (single,) = summary.savings(full + runs("a", 6.0, [86.0]))
    assert (single.seeds, single.interval) == (1, None)
    assert summary.savings(runs("full", 3.0, [90.0, 90.0]) + runs("a", 3.0, [90.0, 90.0])) == []
    assert summary.savings(runs("a", 3.0, [90.0, 90.0])) == []


# pairs and wins


def test_pairs_at_the_budgets_of_both():
    records = [
        *(runs("a", 6.0, [90.0, 91.0]) + runs("b", 6.0, [89.0, None])),
        *(runs("a", 3.0, [90.0, 91.0, 92.0]) + runs("b", 3.0, [89.0, 91.0, 90.0])),
        *(runs("a", 9.0, [90.0]) + runs("b", 9.0, [None, 90.0]) + runs("a", 12.0, [90.0])),
    ]
    low, high = summary.pairs(records, "a", "b")
    assert (low.budget, high.budget) == (3.0, 6.0)
    assert approx(low.difference, 1.0, mean_interval([1.0, 0.0, 2.0]), 3)
    assert approx(high.difference, 1.0, None, 1)
    (reverse, _) = summary.pairs(records, "b", "a")
    assert reverse.difference.mean == pytest.approx(-1.0)
    assert summary.pairs(records, "a", "none") == []


def test_wins_are_counted_and_named():
    records = [
        *(runs("full", 3.0, [90.0, 90.0, 90.0]) + runs("a", 3.0, [91.0, 91.5, 91.0]) + runs("b", 3.0, [89, 88.5, 89])),
        *(runs("c", 3.0, [91.0, 89.0, 90.0]) + runs("one", 3.0, [99.0])),
        *(runs("full", 3.0, [50.0, 50.0], "cifar") + runs("a", 3.0, [50.0, 50.5], "cifar")),  # touches 0
        *runs("rounded", 3.0, [50.0 + 1e-12, 50.0 + 1e-12], "cifar"),
        *runs("a", 6.0, [99.0, 99.0]),  # no full
    ]
    found = summary.wins(records)
    assert (found.cells, found.above, found.below) == (5, 1, 1)
    assert found.expected == pytest.approx(0.025 * 5)
    (win,) = found.winning
    assert isinstance(win, Win)
    assert (win.task, win.budget, win.agent, win.difference.seeds) == ("digits", 3.0, "a", 3)
    empty = summary.wins([])
    assert (empty.cells, empty.above, empty.below, empty.expected, empty.winning) == (0, 0, 0, 0, ())


def test_agents_that_differ_in_one_thing():
    specs = [
        "full",
        "full+mixup=0.5",
        "random:keep=0.5",
        "static_random:keep=0.5",
        "static_random:keep=0.3",
        "ucb:keep=0.5",
        "ucb:keep=0.5,c=1e+1",
        "ucb:keep=0.5+anneal=0.1",
        "ucb:keep=0.5+anneal=0.1+mixup=0.5",
        "ucb:keep=0.3",
        "infobatch",
        "infobatch:r=0.3",
        "same_amounts:infobatch",
        "my_module:MyAgent",
    ]
    assert sorted(summary.one_apart(specs)) == sorted(
        [
            ("full+mixup=0.5", "full"),
            ("random:keep=0.5", "static_random:keep=0.5"),
            ("ucb:keep=0.5,c=1e+1", "ucb:keep=0.5"),
            ("ucb:keep=0.5+anneal=0.1", "ucb:keep=0.5"),
            ("ucb:keep=0.5+anneal=0.1+mixup=0.5", "ucb:keep=0.5+anneal=0.1"),
            ("infobatch:r=0.3", "infobatch"),
            ("infobatch", "same_amounts:infobatch"),
        ]
    )
    assert summary.one_apart([]) == []


def test_one_option_or_one_switch_is_one_thing():
    specs = [
        "swdpp:keep=0.5",
        "swdpp:keep=0.5,tau=0",
        "swdpp:keep=0.5,tau=0,dynamics=False,q_max=0",
        "swdpp:keep=0.5,tau=0,dynamics=False",
        "swdpp:keep=0.5,tau=0+mixup=0.5",
        "swdpp:keep=0.5+mixup=0.5",
        "same_amounts:swdpp:keep=0.5",
        "a.b:C:x='p,q=1',c=1e+1",
        "a.b:C:x='p,q=1'",
        "a.b:C",
    ]
    assert sorted(summary.one_apart(specs)) == sorted(
        [
            ("swdpp:keep=0.5,tau=0", "swdpp:keep=0.5"),
            ("swdpp:keep=0.5,tau=0,dynamics=False,q_max=0", "swdpp:keep=0.5,tau=0,dynamics=False"),
            ("swdpp:keep=0.5,tau=0,dynamics=False", "swdpp:keep=0.5,tau=0"),
            ("swdpp:keep=0.5,tau=0+mixup=0.5", "swdpp:keep=0.5,tau=0"),
            ("swdpp:keep=0.5,tau=0+mixup=0.5", "swdpp:keep=0.5+mixup=0.5"),
            ("swdpp:keep=0.5+mixup=0.5", "swdpp:keep=0.5"),
            ("swdpp:keep=0.5", "same_amounts:swdpp:keep=0.5"),
            ("a.b:C:x='p,q=1',c=1e+1", "a.b:C:x='p,q=1'"),
            ("a.b:C:x='p,q=1'", "a.b:C"),
        ]
    )


def test_mixed_commits_are_one_line():
    def of(*states):
        return [{"provenance": {"commit": commit, "dirty": dirty}} for commit, dirty in states]

    assert summary.mixed_commits(of(("a" * 40, True)) * 3) == ""
    assert summary.mixed_commits([{}, {}]) == ""  # no git
    mixed = of(*[("a" * 40, False)] * 1200, ("a" * 40, True), (None, None), ("b" * 40, False), ("c" * 40, False))
    said = "Mixed commits: aaaaaaa (1,200), aaaaaaa + changes (1), none (1), 2 more; --fresh runs all anew."
    assert summary.mixed_commits(mixed) == said


def test_rates_are_told_where_records_know_them():
    def of(rate, budget):
        return {"budget": budget, "configuration": {"rate": rate} if rate else {}}

    assert summary.rates([of(None, 3.0)]) == summary.rates([{"budget": 3.0}]) == ""
    assert summary.rates([of("not tuned", 3.0), of("not tuned", 6.0)]) == "Learning rate: not tuned."
    several = [of("tuned", 6.0), of("tuned", 3.0), of("not tuned", 48.0), of("tuned", 6.0)]
    assert summary.rates(several) == "Learning rates: tuned (budget 3, 6); not tuned (budget 48)."
