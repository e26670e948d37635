"""From actions to rows: what is accepted, what is refused, and how the rest is drawn."""

import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

import prune_env
from prune_env import selection
from prune_env.selection import Selection, check, select
from tests.helpers.reference import independent


def f32(values) -> np.ndarray:
    return np.asarray(values, np.float32)


def same(action, weight, mixup) -> None:
    assert set(action) == {"weight", "mixup", "score"}
    for key, values in (("weight", weight), ("mixup", mixup)):
        assert action[key].dtype == np.float32
        np.testing.assert_array_equal(action[key], f32(values))


@pytest.mark.parametrize(
    ("args", "kwargs", "weight", "mixup"),
    [
        ([np.array([True, False, True])], {}, [1, 0, 1], [0, 0, 0]),
        ([[True, False, True]], {"n": 3}, [1, 0, 1], [0, 0, 0]),
        ([np.array([0.5, 0.0, 10.0])], {}, [0.5, 0, 10], [0, 0, 0]),
        ([[0.5, 0.0, 10.0], 0.25], {}, [0.5, 0, 10], [0.25, 0.25, 0.25]),
        ([np.array([2, 0])], {"n": 4}, [1, 0, 1, 0], [0, 0, 0, 0]),
        ([np.array([2], np.uint8), [0, 0.5, 0.1]], {"n": 3}, [0, 0, 1], [0, 0.5, 0.1]),
        ([[]], {"n": 3}, [0, 0, 0], [0, 0, 0]),
        ([()], {"n": 3}, [0, 0, 0], [0, 0, 0]),
        ([(2, 0)], {"n": 3}, [1, 0, 1], [0, 0, 0]),
        ([np.array([], np.int64)], {"n": 2}, [0, 0], [0, 0]),
        ([torch.tensor([1.5, 0.0])], {}, [1.5, 0], [0, 0]),
        ([np.array([1e-60, 1])], {}, [0, 1], [0, 0]),
    ],
)
def test_select_builds_actions(args, kwargs, weight, mixup):
    same(prune_env.select(*args, **kwargs), weight, mixup)


@pytest.mark.parametrize(
    ("args", "kwargs", "words"),
    [
        ([np.zeros(0, bool)], {"n": 3}, "0 entries"),
        ([np.ones(5, bool), np.zeros(3)], {}, r"mixup.*\(3,\).*\(5,\)"),
        ([[0, 1]], {}, "n=N"),
        ([[0, 3]], {"n": 3}, "index 3"),
        ([[0, -1]], {"n": 3}, "index -1"),
        ([[1, 1]], {"n": 3}, "repeated"),
        ([[True, False]], {"n": 3}, "2 entries"),
        ([()], {}, "n=N"),
        ([()], {"n": -1}, "n is -1"),
        ([[0, 1]], {"n": -3}, "n is -3"),
        ([[0, 1]], {"n": 2.5}, r"n is 2\.5"),
        ([[True, False]], {"n": 2.0}, r"n is 2\.0"),
        ([[True]], {"n": True}, "n is True"),
        ([np.ones((2, 2))], {}, r"\(2, 2\)"),
        ([np.float32(1.0)], {}, r"\(\)"),
        ([None], {}, r"weight"),
        ([[1.0, -0.5]], {}, r"-0\.5"),
        ([[1.0, 10.5]], {}, r"10\.5"),
        ([[1.0, np.nan]], {}, "nan"),
        ([[1.0, np.inf]], {}, "inf"),
        ([[1.0, 1.0], 0.6], {}, r"0\.6"),
        ([[1.0, 1.0], [0.1, np.nan]], {}, r"mixup.*nan"),
        ([np.array([1j, 0])], {}, "complex128"),
        ([np.array(["a", "b"])], {}, "dtype"),
    ],
)
def test_select_refuses(args, kwargs, words):
    with pytest.raises((ValueError, TypeError), match=words):
        select(*args, **kwargs)


def test_select_gives_arrays_of_its_own():
    weight, mixup = np.ones(3, np.float32), np.full(3, 0.25, np.float32)
    action = select(weight, mixup)
    weight[:], mixup[:] = 2, 0.5
    same(action, [1, 1, 1], [0.25, 0.25, 0.25])
    again = check(action, 3)
    again["weight"][:] = 3
    again["mixup"][:] = 0
    same(action, [1, 1, 1], [0.25, 0.25, 0.25])
    constant = select(np.ones(3, bool), 0.5)
    constant["mixup"][0] = 0  # each sample has a number of its own
    same(constant, [1, 1, 1], [0, 0.5, 0.5])


OK = np.ones(4, np.float32), np.zeros(4, np.float32)
WRONG_ACTIONS = {
    "None": (None, "NoneType"),
    "list": ([*OK], "list"),
    "tuple": (OK, "tuple"),
    "array": (OK[0], "ndarray"),
    "number": (3, "int"),
    "no mixup": ({"weight": OK[0]}, r"\['weight'\]"),
    "empty": ({}, r"\[\]"),
    "other key": ({"weight": OK[0], "mixup": OK[1], "extra": OK[1]}, "extra"),
    "misspelled": ({"weights": OK[0], "mixup": OK[1]}, "weights"),
    "short": ({"weight": OK[0][:3], "mixup": OK[1]}, r"weight.*\(3,\)"),
    "two axes": ({"weight": OK[0][None], "mixup": OK[1]}, r"weight.*\(1, 4\)"),
    "scalar": ({"weight": OK[0], "mixup": 0.5}, r"mixup.*\(\)"),
    "None inside": ({"weight": None, "mixup": OK[1]}, "weight.*object"),
    "text": ({"weight": OK[0], "mixup": np.array(list("abcd"))}, "mixup.*U1"),
    "complex": ({"weight": OK[0] * 1j, "mixup": OK[1]}, "weight.*complex"),
    "NaN": ({"weight": f32([1, 1, np.nan, 1]), "mixup": OK[1]}, r"weight.*\[2\].*nan"),
    "inf": ({"weight": f32([1, np.inf, 1, 1]), "mixup": OK[1]}, r"weight.*\[1\].*inf"),
    "-inf": ({"weight": f32([1, -np.inf, 1, 1]), "mixup": OK[1]}, r"weight.*\[1\].*-inf"),
    "negative": ({"weight": f32([1, 1, 1, -0.25]), "mixup": OK[1]}, r"weight.*\[3\].*-0\.25.*10"),
    "above": ({"weight": f32([12.5, 1, 1, 1]), "mixup": OK[1]}, r"weight.*\[0\].*12\.5.*10"),
    "mixup NaN": ({"weight": OK[0], "mixup": f32([0, 0, np.nan, 0])}, r"mixup.*\[2\].*nan"),
    "mixup negative": ({"weight": OK[0], "mixup": f32([0, -1, 0, 0])}, r"mixup.*\[1\].*-1"),
    "mixup above": ({"weight": OK[0], "mixup": f32([0, 0, 0, 0.75])}, r"mixup.*\[3\].*0\.75.*0\.5"),
    "ragged": ({"weight": [[1.0], [1.0, 2.0], 1.0, 1.0], "mixup": OK[1]}, "weight"),
    "beyond float32": ({"weight": np.array([1, 1, 1e300, 1]), "mixup": OK[1]}, r"weight.*\[2\].*10"),
    "with a gradient": ({"weight": torch.ones(4, requires_grad=True), "mixup": OK[1]}, r"action\['weight'\].*grad"),
    "bfloat16": ({"weight": torch.ones(4, dtype=torch.bfloat16), "mixup": OK[1]}, r"action\['weight'\].*BFloat16"),
    "mixup bfloat16": ({"weight": OK[0], "mixup": torch.zeros(4, dtype=torch.bfloat16)}, r"action\['mixup'\]"),
    "score NaN": ({"weight": OK[0], "mixup": OK[1], "score": f32([0, 0, np.nan, 0])}, r"score.*\[2\].*nan"),
    "score above": ({"weight": OK[0], "mixup": OK[1], "score": f32([0, 0, 0, 2])}, r"score.*\[3\].*2\.0.*1"),
    "score short": ({"weight": OK[0], "mixup": OK[1], "score": OK[1][:3]}, r"score.*\(3,\)"),
    "all NaN": ({"weight": np.full(4, np.nan), "mixup": OK[1]}, r"weight.*\[0\].*nan"),
}


@pytest.mark.parametrize("name", WRONG_ACTIONS)
def test_a_wrong_action_raises_one_error_that_names_the_value(name):
    action, words = WRONG_ACTIONS[name]
    with pytest.raises((ValueError, TypeError), match=re.compile(words, re.S)):
        check(action, 4)


def test_the_bounds_themselves_are_accepted():
    action = {"weight": np.array([0.0, 10, 1, 0]), "mixup": np.array([0.0, 0.5, 0, 0.5])}
    same(check(action, 4), action["weight"], action["mixup"])
    np.testing.assert_array_equal(check({**action, "score": [0, 1, 0.5, 0]}, 4)["score"], [0, 1, 0.5, 0])
    np.testing.assert_array_equal(check(action, 4)["score"], np.zeros(4))  # it may be left out
    same(check({"weight": [True, False], "mixup": [0, 0]}, 2), [1, 0], [0, 0])


def rows(action, seed: int) -> Selection:
    return Selection.from_action(action, np.random.default_rng(seed))


@given(seed=st.integers(0, 2**32), n=st.integers(1, 60), share=st.floats(0, 1), mixed=st.floats(0, 1))
@settings(max_examples=80, deadline=None)
def test_rows_are_what_the_action_keeps(seed, n, share, mixed):
    rng = np.random.default_rng(seed)
    weight = np.where(rng.random(n) < share, rng.uniform(0.1, 10, n), 0).astype(np.float32)
    mixup = np.where(rng.random(n) < mixed, rng.uniform(0.01, 0.5, n), 0).astype(np.float32)
    score = np.where(rng.random(n) < mixed, rng.uniform(0.01, 1.0, n), 0).astype(np.float32)
    selection = rows({"weight": weight, "mixup": mixup, "score": score}, seed)
    assert sorted(selection.scored) == [i for i in range(n) if score[i] > 0]
    kept = [i for i in range(n) if weight[i] > 0]
    dropped = [i for i in range(n) if weight[i] == 0]
    assert sorted(selection.indices) == kept
    assert len(selection) == len(kept)
    assert selection.mixed == sum(mixup[i] > 0 for i in kept)
    for i, w, j, m in zip(selection.indices, selection.weights, selection.partners, selection.shares, strict=True):
        assert (w, m) == (weight[i], mixup[i])
        assert j in (dropped or kept) if m > 0 else j == i
    head = selection.head(2, 1)
    assert len(head) == min(2, len(kept))
    for name in ("indices", "weights", "partners", "shares"):
        np.testing.assert_array_equal(getattr(head, name), getattr(selection, name)[:2])
    np.testing.assert_array_equal(head.scored, selection.scored[:1])


def test_two_agents_see_the_samples_that_both_keep_in_one_order():
    rng = np.random.default_rng(0)
    for seed in range(20):
        first, second = (select(rng.random(50) < share) for share in (0.7, 0.4))
        a, b = rows(first, seed).indices, rows(second, seed).indices
        common = set(a) & set(b)
        assert len(common) > 5
        assert [i for i in a if i in common] == [i for i in b if i in common]


@pytest.mark.parametrize("n", [0, 1, 2, 100, 70_000])
def test_the_order_is_that_of_sorting(n):
    rng = np.random.default_rng(n)
    place = rng.random(n)
    np.testing.assert_array_equal(selection.order(place), np.argsort(place))
    few = rng.choice([0.0, 0.25, 0.5, 1 - 2**-53], n)  # equals stay as they are
    np.testing.assert_array_equal(selection.order(few), sorted(range(n), key=lambda i: (few[i], i)))


def test_every_order_is_equally_likely():
    mask = np.array([True, False, True, True, False])
    orders = [tuple(rows(select(mask), seed).indices) for seed in range(3000)]
    counts = [orders.count(order) for order in sorted(set(orders))]
    assert len(counts) == 6
    assert stats.chisquare(counts).pvalue > 1e-4


def test_the_partner_is_uniform_over_the_dropped_samples():
    mask = np.arange(10) < 4
    action = select(mask, 0.5)
    partners = np.stack([s.partners[np.argsort(s.indices)] for s in (rows(action, seed) for seed in range(2000))])
    for column in partners.T:
        assert stats.chisquare(np.bincount(column - 4, minlength=6)).pvalue > 1e-4
    # samples draw theirs independently: all pairs of partners of the first two are equally likely
    pairs = np.bincount((partners[:, 0] - 4) * 6 + partners[:, 1] - 4, minlength=36)
    assert stats.chisquare(pairs).pvalue > 1e-4


def test_the_partner_is_uniform_over_the_kept_if_none_is_dropped():
    action = select(np.ones(5, bool), [0.5, 0, 0, 0, 0])
    partners = [int(s.partners[s.indices == 0][0]) for s in (rows(action, seed) for seed in range(2000))]
    assert stats.chisquare(np.bincount(partners, minlength=5)).pvalue > 1e-4


def test_the_partner_is_drawn_apart_from_the_place():
    action = select(np.arange(8) < 4, 0.5)
    table = np.zeros((4, 4))
    for seed in range(2000):
        s = rows(action, seed)
        table[np.flatnonzero(s.indices == 0)[0], s.partners[s.indices == 0] - 4] += 1
    assert independent(table) > 1e-4


def test_nothing_kept_makes_no_rows():
    selection = rows(select(np.zeros(5, bool), 0.5), 0)
    assert (len(selection), selection.mixed) == (0, 0)
    assert selection.indices.dtype == np.int64
