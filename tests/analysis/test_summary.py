"""Summaries of records against planted numbers, closed forms and plain loops; parts of sweeps as well as whole ones."""

import itertools
import random

import numpy as np
import pytest
from scipy import stats

from train.analysis import summary, table
from train.analysis.records import targets, told_apart
from train.analysis.statistics import mean_interval

HALF, OTHER = "ucb:keep=0.5", "random:keep=0.5"


def record(agent, budget, seed, accuracy, task="digits", **more):
    """What the summaries read of a line; `accuracy` in per cent."""
    spent = {"total": budget, "score": 0.0}
    result = {"test_accuracy": accuracy / 100, "kept": 1.0, "coverage": 1.0, "spent": spent}
    result["seconds"] = {"total": 1.0, "select": 0.1}
    return {"task": task, "agent": agent, "budget": budget, "seed": seed, "results": result, **more}


def runs(agent, budget, accuracies, task="digits"):
    """A record a seed 0, 1, ...; None for a run that is not there."""
    return [record(agent, budget, seed, a, task) for seed, a in enumerate(accuracies) if a is not None]


def grid(agents, budgets):
    return [r for agent, b in itertools.product(agents, budgets) for r in runs(agent, b, [80 + b, 81 + b])]


def is_mean(found, values):
    """Whether a mean with its interval and number of seeds is that of `values`."""
    assert (found.mean, found.seeds) == (pytest.approx(np.mean(values)), len(values))
    assert found.interval == (pytest.approx(mean_interval(values)) if len(values) > 1 else None)
    return True


def test_the_last_record_of_a_cell_and_seed_wins_and_the_order_is_told():
    records = [
        record("b", 6.0, 1, 50, old=True),
        record("b", 6.0, 0, 50),
        record("a", 3.0, 0, 50, task="cifar"),
        record("a", 3.0, 0, 50),
        record("b", 6.0, 1, 60),
    ]
    found = summary.latest(records)
    order = [(r["task"], r["budget"], r["agent"], r["seed"]) for r in found]
    assert order == [("digits", 3.0, "a", 0), ("digits", 6.0, "b", 0), ("digits", 6.0, "b", 1), ("cifar", 3.0, "a", 0)]
    assert found[2] is records[-1]
    assert summary.by_task(found) == {"digits": found[:3], "cifar": found[3:]}


def test_a_target_is_reached_by_the_mean_difference_to_full():
    records = runs("full", 3.0, [80, 82]) + runs(HALF, 3.0, [81, 84]) + runs(OTHER, 3.0, [82, 81])
    records = [{**record, "provenance": {}} for record in [*records, *runs("a", 6.0, [99])]]
    source = '[tasks.digits]\nenv = "x"\ntarget = 1.5\n[tasks.cifar]\nenv = "y"\n'
    assert targets(source) == {"digits": 1.5}
    assert targets("") == {}
    told = {  # the first differs from full by 1 and 2 points, the other by 2 and -1
        1.6: "no agent here reaches it.",
        1.5: "reached by ucb:keep=0.5 (+1.50).",
        0.5: "reached by ucb:keep=0.5 (+1.50) and random:keep=0.5 (+0.50).",
    }
    for target, ending in told.items():
        line = f"Target at budget {{}}: +{target:.2f} points over full; {{}}"
        expected = ["digits", line.format(3, ending), line.format(6, "no agent here reaches it.")]
        shown = table.plain(table.render_tasks(records, {"digits": target}))
        assert " ".join(shown.split()).startswith(" ".join(expected))
    assert "Target" not in table.plain(table.render_tasks(records, {"cifar": 1.0}))


def everything(records):
    """All summaries, without the order of their rows."""
    found = [*summary.improvements(records)]
    for own in summary.by_task(records).values():
        found += [*summary.areas(own), *summary.equivalences(own), *summary.savings(own), *summary.one_apart(own)]
        found += [(best.budget, best.accuracy) for best in summary.best(own)]  # which of equals is first, lines decide
        found += [row for agents in summary.grouped(own).values() for row in summary.rows(agents)]
    return sorted(map(str, found))


@pytest.mark.parametrize("share", [0.3, 1.0])
def test_parts_of_sweeps_in_any_order(share):
    """Whatever is missing nothing fails, and the order of the lines decides the order of the rows only."""
    rng = random.Random(7)
    cells = itertools.product(("digits", "cifar"), (3.0, 6.0), ("full", HALF, OTHER), range(3))
    records = [record(a, b, s, 90 + rng.randrange(-4, 5) / 5, task) for task, b, a, s in cells if rng.random() < share]
    records = summary.latest(records)
    for _ in range(3):
        assert everything(records) == everything(summary.latest(rng.sample(records, len(records))))
    for end in range(len(records)):
        everything(records[:end])


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
    assert (first.budget, first.agent, first.tied) == (3.0, "a", ("b",))
    assert is_mean(first.accuracy, [91, 92, 93.5])
    assert is_mean(first.difference, [1.0, 1.0, 1.5])
    assert (second.agent, second.tied, second.difference) == ("full", (), None)


def test_the_best_over_whose_seeds():
    (row,) = summary.best(runs("full", 3.0, [90.0, 90.0]) + runs("a", 3.0, [89.0, 89.0, 99.0, 99.0]))
    assert (row.agent, row.accuracy.seeds, row.accuracy.mean) == ("full", 2, 90.0)  # over the seeds of full
    (row,) = summary.best(runs("a", 3.0, [90.0, 90.5]) + runs("b", 3.0, [99.0]) + runs("c", 3.0, [89.0, 90.5]))
    assert (row.agent, row.difference, row.tied) == ("a", None, ("b", "c"))  # without full, over all
    assert summary.best([record("a", 3.0, 0, 90), record("b", 3.0, 1, 90)]) == []
    (row,) = summary.best([r for agent in ("a", "full", "b") for r in runs(agent, 3.0, [90.0, 91.0])])
    assert (row.agent, row.tied) == ("full", ("a", "b"))  # of equally good agents full
    rounded = [90.0 + d for d in (0.1, 0.2, -0.3)]  # the sum of the differences is 2.8e-17
    (row,) = summary.best(runs("full", 3.0, [90.0, 90.0, 90.0]) + runs("a", 3.0, rounded))
    assert len(row.tied) == 1


def test_the_agent_to_use_is_better_beyond_its_interval_or_full():
    records = [
        *runs("full", 3.0, [90.0, 91.0, 92.0]),
        *runs("a", 3.0, [91.0, 92.0, 93.5]),
        *runs("b", 3.0, [90.5, 91.5, 92.5]),  # better too, by less
        *runs("wide", 3.0, [99.0, 90.0, 95.0]),  # the highest mean, +9, -1 and +3, which says little
        *runs("full", 6.0, [95.0, 95.5, 96.0]),
        *runs("wide", 6.0, [96.0, 95.0, 97.0]),
        *runs("full", 12.0, [95.0, 95.5, 97.0]),  # no choice here
    ]
    first, second = summary.answers(records)
    assert (first.best.agent, first.agent) == ("wide", "a")
    assert is_mean(first.difference, [1.0, 1.0, 1.5])
    (saving,) = [s for s in summary.savings(records) if (s.agent, s.budget) == ("a", 3.0)]
    assert first.saving == saving
    assert (second.best.agent, second.agent, second.difference, second.saving) == ("wide", "full", None, None)
    (only,) = summary.answers([r for r in records if r["agent"] != "full" and r["budget"] == 3.0])
    assert (only.best.agent, only.agent, only.difference) == ("wide", None, None)  # nothing to compare with
    assert summary.answers(runs("full", 3.0, [90.0, 91.0])) == []


def test_a_glance_is_the_largest_block_of_agents_and_cells():
    gaps = {("digits", 3.0): 1.0, ("digits", 6.0): 2.0, ("cifar", 3.0): -4.0}
    records = []
    for (task, budget), gap in gaps.items():
        records += runs("full", budget, [80.0, 82.0], task)
        records += runs("a", budget, [80.0 + gap, 82.5 + gap], task)
        records += runs("b", budget, [81.0 + gap, 83.0 + gap], task)
    records += runs("c", 3.0, [99.0, 99.0])  # in one cell only
    records += runs("full", 9.0, [80.0, 80.0]) + runs("a", 9.0, [80.0, 80.0])  # of one agent only
    found = summary.glance(summary.latest(records))
    assert list(found) == list(gaps)
    for cell, gap in gaps.items():
        assert list(found[cell]) == ["b", "a"]  # the better mean first
        assert is_mean(found[cell]["a"], [gap, 0.5 + gap])
        assert is_mean(found[cell]["b"], [1.0 + gap, 1.0 + gap])
    assert summary.glance(runs("full", 3.0, [80.0]) + runs("a", 3.0, [80.0])) == {}  # one cell is a forest


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
    assert [line["agent"] for line in (full, a, b)] == ["full", "a", "b"]
    assert full["budgets"] == a["budgets"] == (2.0, 4.0, 16.0)
    assert [line["area"] for line in (full, a, b)] == pytest.approx([np.mean(of_full), np.mean(of_a), 70.0])
    assert full["interval"] == pytest.approx(mean_interval(of_full))
    assert is_mean(a["difference"], np.subtract(of_a, of_full))


def test_areas_take_the_largest_block_without_a_gap():
    main, ablations = ["full", "a", "b", "c", "d"], ["p", "q", "r", "s", "t"]
    records = grid(main, [3.0, 6.0, 12.0, 24.0, 48.0]) + grid(ablations, [6.0, 24.0])
    found = summary.areas(records)  # 4 x 5 of more than 9 x 2
    assert [(line["agent"], line["budgets"]) for line in found] == [(a, (3.0, 6.0, 12.0, 24.0, 48.0)) for a in main]
    found = summary.areas(records + grid(["u", "v"], [6.0, 24.0]))  # 11 x 2
    assert {line["budgets"] for line in found} == {(6.0, 24.0)}
    alone = grid(["full"], [3.0, 6.0, 12.0]) + grid(["a"], [6.0, 12.0, 25.0])  # budgets of one alone do not count
    assert {line["budgets"] for line in summary.areas(alone)} == {(6.0, 12.0)}
    assert summary.areas(grid(main, [3.0])) == []


def test_the_largest_block_against_all_subsets():
    rng = random.Random(3)
    for _ in range(40):
        have = {row: [c for c in range(5) if rng.random() < 0.6] for row in range(rng.randrange(7))}
        rows, columns = summary._block(have)
        assert all(set(columns) <= set(have[row]) for row in rows)
        subsets = itertools.chain.from_iterable(itertools.combinations(range(5), size) for size in range(6))
        largest = max(sum(set(c) <= set(has) for has in have.values()) * len(c) for c in subsets)
        assert len(rows) * len(columns) == largest


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
    assert (row["agent"], row["cells"]) == ("a", 4)
    assert is_mean(row["difference"], [(1 + 1 + 5 + 4) / 4, (0 + 0.5 - 1 + 0) / 4])
    assert row["probability"] == 0.75  # all of the first seed, (½ + 1 + 0 + ½) / 4 of the second
    assert row["interval"] == (0.0, 1.0)  # 0.75 ± 12.7 * 0.25, cut
    (row,) = summary.improvements(runs("full", 3.0, [90.0]) + runs("a", 3.0, [91.0]))
    assert (row["probability"], row["interval"]) == (1.0, None)


KEPT = {
    "full+mixup=0.5": None,
    "ucb:c=2,keep=0.3": 0.3,
    "ucb:keep=.5,c=1e+5+mixup=0.5": 0.5,
    "random:keep=5e-1": 0.5,
    "same_amounts:ucb:keep=0.3+mixup=0.5": 0.3,
    "my_agents:A:upkeep=0.7": None,
    "my_agents:A:keep=None": None,
    "my_agents:A:name='b,keep=0.7,',keep=0.2": 0.2,
    "learned:a.zip,agents=full/ucb:keep=0.3,c=2": None,
    "known_to_another_version:keep=0.5": None,
}


def test_the_share_that_a_spec_keeps():
    assert {spec: summary.keep_of(spec) for spec in KEPT} == KEPT


def test_equivalences_find_full_at_the_larger_budget():
    seventy = "ucb:keep=0.7"
    records = [
        *runs(HALF, 15.0, [90.0, 90.1, 90.2, 90.3, 90.4]),
        *runs(seventy, 15.0, [88.0] * 5),
        *runs("ucb:keep=0.3", 15.0, [90.0] * 5),  # full has no 50
        *(runs("ucb:keep=1.0", 15.0, [90.0] * 5) + runs("infobatch", 15.0, [90.0] * 5)),
        *runs("full", 15.0, [89.0, 89.0, 89.0, 89.0, 89.4]),
        *(runs("full", 21.43, [90.0] * 5) + runs("full", 30.0, [90.0, 90.1, 90.2, 90.3, 90.3])),
        *runs("full", 50.6, [99.0] * 5),  # 1.2 % off 15 / 0.3
        *runs(OTHER, 3.0, [90.0]),  # of one seed
        *runs("full", 6.0, [90.0, 91.0]),
    ]
    few, of_half, of_seventy = summary.equivalences(records)
    assert (few.verdict, few.difference.interval, few.same) == ("undecided", None, None)
    assert (of_half.agent, of_half.budget, of_half.keep, of_half.larger) == (HALF, 15.0, 0.5, 30.0)
    assert (of_half.verdict, of_half.vacuous) == ("lossless", False)
    assert is_mean(of_half.difference, [0, 0, 0, 0, 0.1])
    assert is_mean(of_half.same, [1.0, 1.1, 1.2, 1.3, 1.0])
    assert (of_seventy.agent, of_seventy.larger, of_seventy.verdict) == (seventy, 21.43, "lossy")


def test_a_label_hides_no_share_and_no_option():
    a, b = "ucb:keep=0.5,c=1", "ucb:keep=0.5"
    records = runs(a, 3.0, [90.0, 91.0]) + runs(b, 3.0, [89.0, 91.0]) + runs("full", 6.0, [90.0, 92.0])
    labels = {a: "mine", b: "theirs", "full": "full"}
    named = [{**record, "agent": labels[record["agent"]], "spec": record["agent"]} for record in records]
    for of in (summary.equivalences, summary.one_apart):
        plain, labelled = ([*map(str, of(some))] for some in (records, named))
        assert labelled == [line.replace(a, "mine").replace(b, "theirs") for line in plain] != []


def test_a_label_that_is_the_name_of_an_agent_is_told_apart_from_it():
    plain, labelled, alone = runs("random", 3.0, [90.0]) + runs("ucb", 3.0, [91.0]) + runs("middle", 3.0, [92.0])
    found = told_apart([plain, {**labelled, "label": "random"}, {**alone, "label": "mine"}])
    assert [record["agent"] for record in found] == ["random", "random (ucb)", "mine"]


def test_equivalences_are_vacuous_where_full_itself_is_lossless():
    records = [
        *(runs(HALF, 3.0, [92.0] * 5) + runs(OTHER, 3.0, [80.0] * 5)),
        *(runs("full", 3.0, [91.0] * 5) + runs("full", 6.0, [90.0, 90.1, 90.2, 90.3, 90.4])),
        *(runs(HALF, 24.0, [92.0] * 5) + runs("full", 24.0, [91.0] * 5) + runs("full", 48.0, [91.5] * 5)),
        *(runs(HALF, 96.0, [92.0] * 5) + runs("full", 192.0, [91.5] * 5)),  # full has no 96
    ]
    found = {(row.agent, row.budget): row for row in summary.equivalences(records)}
    row = found[HALF, 3.0]
    assert is_mean(row.itself, [1.0, 0.9, 0.8, 0.7, 0.6])
    assert (row.verdict, row.vacuous) == ("lossless", True)
    assert (found[OTHER, 3.0].verdict, found[OTHER, 3.0].vacuous) == ("lossy", True)
    assert not found[HALF, 24.0].vacuous  # half a point is lost
    assert (found[HALF, 96.0].itself, found[HALF, 96.0].vacuous) == (None, False)


def full_log(budgets, offsets=(0.0,), a=80.0, c=3.0):
    """`full` with accuracy a + c log b, each seed with its own offset."""
    return [r for b in budgets for r in runs("full", b, [a + c * np.log(b) + offset for offset in offsets])]


@pytest.mark.parametrize(("factor", "saved"), [(2.0, 0.5), (1.0, 0.0), (0.5, -1.0), (1.7, 1 - 1 / 1.7)])
def test_the_accuracy_of_full_at_another_budget_saves_that_much(factor, saved):
    offsets = (-0.5, 0.1, 0.3)
    agent = runs("a", 6.0, [80 + 3 * np.log(6.0 * factor) + offset for offset in offsets])
    begun = runs("full", 48.0, [95.0])  # one seed must not cost the others theirs
    (row,) = summary.savings(full_log([3.0, 7.0, 12.0, 24.0], offsets) + begun + agent)
    assert (row.agent, row.budget, row.seeds, row.bound) == ("a", 6.0, 3, None)
    assert row.full_budget == pytest.approx(6.0 * factor)
    assert row.saved == pytest.approx(saved)
    assert row.interval == pytest.approx((saved, saved))  # agent and full share the offsets of their seeds


def test_accuracies_beyond_those_of_full_give_bounds():
    full = full_log([3.0, 6.0, 12.0], (0.0, 0.2))
    best, worst = summary.savings(full + runs("a", 6.0, [99.0, 99.0]) + runs("b", 6.0, [50.0, 50.0]))
    assert (best.bound, best.full_budget, best.saved) == ("at_least", 12.0, 0.5)
    assert (worst.bound, worst.full_budget, worst.saved) == ("at_most", 3.0, -1.0)
    ends = [{**r, "agent": "a"} for r in full]  # the ends of the range themselves are no bounds
    assert [(row.bound, row.saved) for row in summary.savings(full + ends)] == [(None, 0.0)] * 3
    (single,) = summary.savings(full + runs("a", 6.0, [86.0]))
    assert (single.seeds, single.interval) == (1, None)
    assert summary.savings(runs("full", 3.0, [90.0, 90.0]) + runs("a", 3.0, [90.0, 90.0])) == []


def test_where_full_falls_the_smallest_budget_counts():
    full = [r for b, a in [(2.0, 80), (4.0, 90), (8.0, 85), (16.0, 90), (32.0, 92)] for r in runs("full", b, [a, a])]
    rows = {r.agent: r for r in summary.savings(full + runs("a", 4.0, [90, 90]) + runs("b", 4.0, [91, 91]))}
    assert rows["a"].full_budget == 4.0
    assert rows["b"].full_budget == pytest.approx(np.sqrt(16 * 32))
    records = runs("full", 6.0, [91.0, 93.0]) + runs("full", 3.0, [90.0, 91.0, 80.0]) + runs("full", 12.0, [70.0])
    assert summary.full_curve(records + runs("a", 24.0, [99.0])) == pytest.approx({3.0: 90.5, 6.0: 92.0})


def test_savings_have_the_budgets_at_which_a_t_test_does_not_tell_full_apart():
    budgets = np.array([3.0, 6.0, 12.0, 24.0])
    rng = np.random.default_rng(4)
    full = np.array([85.0, 88.0, 90.0, 91.0]) + rng.normal(0, 0.5, (5, 4))
    agent = 89.0 + rng.normal(0, 0.5, 5)
    records = [r for b, column in zip(budgets, full.T, strict=True) for r in runs("full", b, column)]
    (row,) = summary.savings(records + runs("a", 6.0, agent))
    fine = np.exp(np.linspace(np.log(3), np.log(24), 3000))
    gaps = agent - np.array([[np.interp(np.log(b), np.log(budgets), curve) for curve in full] for b in fine])
    t = gaps.mean(axis=1) / stats.sem(gaps, axis=1)
    alike = fine[np.abs(t) < stats.t.ppf(0.975, 4)]
    assert row.interval == pytest.approx((1 - 6 / alike[0], 1 - 6 / alike[-1]), abs=2e-3)
    assert row.full_budget == pytest.approx(fine[np.argmin(np.abs(gaps.mean(axis=1)))], rel=1e-3)


def test_agents_that_differ_in_one_thing():
    pairs = [
        ("full+mixup=0.5", "full"),
        ("random:keep=0.5", "static_random:keep=0.5"),
        ("ucb:keep=0.5,c=1e+1", "ucb:keep=0.5"),
        ("ucb:keep=0.5+anneal=0.1", "ucb:keep=0.5"),
        ("ucb:keep=0.5+anneal=0.1+mixup=0.5", "ucb:keep=0.5+anneal=0.1"),
        ("infobatch", "same_amounts:infobatch"),
        ("swdpp:keep=0.5,tau=0,q_max=0", "swdpp:keep=0.5,tau=0"),
        ("a.b:C:x='p,q=1',c=1e+1", "a.b:C:x='p,q=1'"),
    ]
    specs = {spec for pair in pairs for spec in pair} | {"static_random:keep=0.3", "ucb:keep=0.3", "my_module:MyAgent"}
    found = summary.one_apart([r for spec in specs for r in runs(spec, 3.0, [90.0])])
    assert [(line["agent"], line["against"]) for line in found] == sorted(pairs)


def test_one_apart_at_the_budgets_of_both():
    a, b = "ucb:keep=0.5,c=1", "ucb:keep=0.5"
    records = runs(a, 3.0, [90.0, 91.0, 92.0]) + runs(b, 3.0, [89.0, 91.0, 90.0])
    records += runs(a, 9.0, [90.0]) + runs(b, 9.0, [None, 90.0]) + runs(a, 12.0, [90.0])  # no seed in common
    (line,) = summary.one_apart(records)
    assert line["budget"] == 3.0
    assert is_mean(line["difference"], [1.0, 0.0, 2.0])


def test_mixed_commits_are_one_line():
    def of(*states):
        return [{"provenance": {"commit": commit, "dirty": dirty}} for commit, dirty in states]

    assert summary.mixed_commits(of(("a" * 40, True)) * 3) == ""
    mixed = of(*[("a" * 40, False)] * 1200, ("a" * 40, True), (None, None), ("b" * 40, False), ("c" * 40, False))
    said = "Mixed commits: aaaaaaa (1,200), aaaaaaa + changes (1), none (1), 2 more; --fresh runs all anew."
    assert summary.mixed_commits(mixed) == said
    assert len(said) < 100  # one line of the table


def test_rates_are_told_where_records_know_them():
    def of(rate, budget):
        return {"budget": budget, "rate": rate}

    assert summary.rates([of(None, 3.0)]) == summary.rates([{"budget": 3.0}]) == ""
    assert summary.rates([of("not tuned", 3.0), of("not tuned", 6.0)]) == "Learning rate: not tuned."
    several = [of("tuned", 6.0), of("tuned", 3.0), of("not tuned", 48.0), of("tuned", 6.0)]
    assert summary.rates(several) == "Learning rates: at budgets 3 and 6, tuned; at budget 48, not tuned."
    untuned = [of("near; tune it: python a", 3.0), of("far; tune it: python a", 6.0)]
    assert summary.rates(untuned) == "Learning rates: at budget 3, near; at budget 6, far; tune it:\npython a"
