"""What a run did to its data, against plain restatements and cases counted by hand."""

import json
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from train.execution.diagnostics import Diary, class_visits, draw_over_classes, gini, plain, quantiles


def parts_of(items: list, count: int) -> list[list]:
    """`count` runs of neighbours as equal in size as can be, the longer ones first."""
    size, longer = divmod(len(items), count)
    found, rest = [], list(items)
    for part in range(count):
        cut = size + (part < longer)
        found.append(rest[:cut])
        rest = rest[cut:]
    return found


def slow_kept(steps: list[tuple[list[float], int, list[bool]]]) -> list:
    """Of steps (difficulty, part of the budget, kept): mean share by part of the budget and of the samples."""
    table = []
    for time in range(20):
        rows = []
        for difficulty, at, kept in steps:
            if at == time:
                order = sorted(range(len(kept)), key=lambda i: (difficulty[i], i))
                rows.append([[kept[i] for i in part] for part in parts_of(order, 10)])
        if not rows:
            table.append(None)
            continue
        columns = zip(*rows, strict=True)
        table.append([np.mean([np.mean(part) for part in column]) if column[0] else None for column in columns])
    return table


def assert_tables(found, expected) -> None:
    assert len(found) == len(expected) == 20
    for row, other in zip(found, expected, strict=True):
        assert (row is None) == (other is None)
        for x, y in zip(row or [], other or [], strict=True):
            assert x is None if y is None else x == pytest.approx(y, abs=6e-5)


@given(n=st.integers(1, 45), steps=st.integers(0, 12), seed=st.integers(0, 1000), full=st.floats(0, 1))
@settings(max_examples=60, deadline=None)
def test_the_diary_against_its_restatement(n, steps, seed, full):
    rng = np.random.default_rng(seed)
    diary, entered = Diary(n), []
    for _ in range(steps):
        difficulty = rng.choice([0.0, 0.5, 1.0, 2.0], n) if rng.random() < 0.5 else rng.random(n)
        time = int(rng.integers(20))
        kept = np.ones(n, bool) if rng.random() < full else rng.random(n) < rng.random()
        diary.record(difficulty.astype(np.float32), (time + 0.5) / 20, kept)
        if any(kept):  # a step that only scores says nothing
            entered.append((difficulty.astype(np.float32).tolist(), time, kept.tolist()))
    assert_tables(diary.kept_by_difficulty(), slow_kept(entered))

    choices = [kept for *_, kept in entered if not all(kept)]  # nor does a step on everything
    labels = rng.integers(0, 3, n)
    found = diary.sometimes(labels)
    json.dumps(found, allow_nan=False)
    if not choices:
        empty = {"always": [], "sometimes": [], "never": []}
        assert found == {"always": None, "sometimes": None, "never": None, "examples": empty}
        return
    times = [sum(kept[i] for kept in choices) for i in range(n)]
    group = ["never" if t == 0 else "always" if t == len(choices) else "sometimes" for t in times]
    counts = Counter(group)
    for name in ("always", "sometimes", "never"):
        assert found[name] == pytest.approx(counts[name] / n)
        members = [i for i in range(n) if group[i] == name]
        examples = found["examples"][name]
        drawn = [i for i, _ in examples]
        assert len({*drawn}) == len(drawn) == min(8, len(members))
        assert {*drawn} <= {*members}
        assert [share for _, share in examples] == pytest.approx([times[i] / len(choices) for i in drawn], abs=6e-5)
        # no class has a second example before every class that still has samples has a first
        left = Counter(labels[members].tolist())
        for turn, i in enumerate(drawn):
            before = Counter(labels[drawn[:turn]].tolist())
            assert all(before[c] >= min(before[labels[i]], left[c]) for c in left)


def test_examples_are_drawn_alike_among_the_samples_of_a_class():
    labels = np.repeat([0, 1, 2], [2, 40, 58])  # sorted by class, as a folder of images is
    mask = np.arange(100) % 2 == 0
    times, classes = np.zeros(100), Counter()
    for seed in range(2000):
        drawn = draw_over_classes(mask, labels, 8, np.random.default_rng(seed))
        times[drawn] += 1
        classes[tuple(np.bincount(labels[drawn], minlength=3))] += 1
    assert {*classes} == {(1, 3, 4), (1, 4, 3)}  # only one sample of the first class is in the mask
    assert not times[~mask].any()
    for c, expected in ((1, 3.5 / 20), (2, 3.5 / 29)):
        np.testing.assert_allclose(times[mask & (labels == c)] / 2000, expected, atol=0.04)  # over 4 deviations


def test_a_step_that_begins_with_a_twentieth_is_in_it():
    diary = Diary(10)
    for step in range(20):
        share = float(np.float32(step / 20))  # as the observation has it
        diary.record(np.arange(10.0), share, np.arange(10) <= step // 2)
    diary.record(np.arange(10.0), 1.0, np.arange(10) < 1)  # the end of the budget is in the last part
    table = diary.kept_by_difficulty()
    assert table[:19] == [[1.0] * (step // 2 + 1) + [0.0] * (9 - step // 2) for step in range(19)]
    assert table[19] == [1.0] + [0.5] * 9


@given(st.lists(st.integers(0, 40), min_size=1, max_size=60))
@settings(max_examples=50, deadline=None)
def test_quantiles_are_visits_that_occur_and_split_the_samples(visits):
    found = quantiles(np.array(visits, dtype=np.float32))
    assert len(found) == 21
    assert found == sorted(found)
    assert set(found) <= set(visits)
    assert (found[0], found[-1]) == (min(visits), max(visits))
    ordered, last = sorted(visits), len(visits) - 1
    for twentieth, value in enumerate(found):
        near = range(max(0, -(-(2 * twentieth * last - 20) // 40)), (2 * twentieth * last + 20) // 40 + 1)
        assert value in [ordered[min(i, last)] for i in near]  # the nearest rank, either of two as near


@given(
    st.lists(st.tuples(st.integers(0, 4), st.integers(0, 9)), min_size=1, max_size=40),
)
@settings(max_examples=50, deadline=None)
def test_class_visits_against_counting(samples):
    labels, visits = map(list, zip(*samples, strict=True))
    found = class_visits(np.array(visits, np.float32), np.array(labels), 5)
    for c in range(5):
        mine = [v for label, v in samples if label == c]
        if not mine:
            assert np.isnan(found[c])
        elif not any(visits):
            assert found[c] == 1
        else:
            data_share, visit_share = len(mine) / len(samples), sum(mine) / sum(visits)
            assert found[c] == pytest.approx(visit_share / data_share)


@given(st.lists(st.integers(0, 20), min_size=1, max_size=30))
@settings(max_examples=50, deadline=None)
def test_gini_is_half_the_mean_difference_relative_to_the_mean(visits):
    n, total = len(visits), sum(visits)
    expected = sum(abs(a - b) for a in visits for b in visits) / (2 * n * total) if total else 0.0
    assert gini(np.array(visits, np.float32)) == pytest.approx(expected, abs=1e-12)


def test_plain_numbers():
    values = plain(np.array([0.123456, np.nan, 1.0], dtype=np.float32))
    assert values == [0.1235, None, 1.0]
    assert [type(value) for value in values] == [float, type(None), float]
