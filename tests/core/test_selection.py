"""From actions to rows: what is accepted, what is refused, and how the rest is drawn."""

import itertools
import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from prune_env.selection import Selection, check, order, select
from tests.helpers.reference import independent
from tests.helpers.runs import same

SEEDS = st.integers(0, 2**32 - 1)


def f32(values) -> np.ndarray:
    return np.asarray(values, np.float32)


def drawn(action, seed) -> Selection:
    return Selection.from_action(action, np.random.default_rng(seed))


# ---------------------------------------------------------------- what is accepted


@given(seed=SEEDS, n=st.integers(1, 40), share=st.floats(0, 1), mixup=st.sampled_from([0.0, 1e-45, 0.3, 0.5]))
@settings(max_examples=30)
def test_masks_weights_and_indices_say_the_same(seed, n, share, mixup):
    rng = np.random.default_rng(seed)
    mask, score = rng.random(n) < share, rng.random(n) < 0.5
    indices = rng.permutation(np.flatnonzero(mask))
    expected = {"weight": f32(mask), "mixup": np.full(n, np.float32(mixup)), "score": f32(score)}
    for way in (mask, mask.tolist(), mask.astype(float), mask.astype(np.float16), torch.from_numpy(mask)):
        action = select(way, mixup, score)
        assert same(action, expected)
        again = check(action, n)
        assert same(again, expected)
        assert not any(np.shares_memory(again[name], action[name]) for name in action)
    for way in (indices, indices.astype(np.uint8), indices.tolist(), tuple(indices)):
        assert same(select(way, mixup, score, n=n), expected)


def test_weights_are_kept_and_the_bounds_themselves_are_accepted():
    weight, mixup = f32([0.0, 10, 1.5, 0]), f32([0.0, 0.5, 0, 0.5])
    action = select(weight, mixup)
    assert same(action, {"weight": weight, "mixup": mixup, "score": f32([0, 0, 0, 0])})
    weight[:] = 2
    assert action["weight"][1] == 10  # a copy
    without_score = {"weight": [True, False], "mixup": [0, 0]}
    assert same(check(without_score, 2), {"weight": f32([1, 0]), "mixup": f32([0, 0]), "score": f32([0, 0])})
    assert check({**action, "score": [0, 1, 0.5, 0]}, 4)["score"].tolist() == [0, 1, 0.5, 0]
    assert select(np.array([1e-60, 1]))["weight"].tolist() == [0, 1]  # as float32


@given(st.lists(st.integers(0, 2**53 - 1) | st.integers(2**52, 2**52 + 5), max_size=60))
def test_the_order_of_draws_is_that_of_a_stable_sort(draws):
    """Also of draws that are equal, or differ in their last bits only."""
    place = np.array(draws, float) / 2**53
    assert order(place).tolist() == sorted(range(len(place)), key=lambda i: place[i])


def test_zeros_and_ones_are_a_mask_where_they_cannot_be_indices():
    for mask in ([0, 1, 1, 0], [1, 1], [0, 0, 0]):
        for n in (None, len(mask)):
            assert select(mask, n=n)["weight"].tolist() == mask
            assert select(np.array(mask, np.uint8), n=n)["weight"].tolist() == mask
    assert select([1, 0], n=2)["weight"].tolist() == [1, 1]  # both samples by index
    assert select([1, 0], n=4)["weight"].tolist() == [1, 1, 0, 0]


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("args", "n", "words"),
    [
        ([np.zeros(0, bool)], 3, "0 entries"),
        ([np.ones(5, bool), np.zeros(3)], None, r"mixup.*\(3,\).*\(5,\)"),
        ([[0, 1]], None, "n=N"),
        ([()], None, "n=N"),
        ([[0, 3]], 3, "index 3"),
        ([[0, -1]], 3, "index -1"),
        ([[1, 1]], 3, "repeated"),
        ([[True, False]], 3, "2 entries"),
        ([[0, 1]], -3, "n is -3"),
        ([[0, 1]], 2.5, r"n is 2\.5"),
        ([np.ones((2, 2))], None, r"\(2, 2\)"),
        ([None], None, "weight"),
        ([[1.0, 10.5]], None, r"10\.5"),
        ([[1.0, np.nan]], None, "nan"),
        ([[1.0, 1.0], 0.6], None, r"0\.6"),
        ([np.array(["a", "b"])], None, "dtype"),
    ],
)
def test_select_refuses(args, n, words):
    with pytest.raises((ValueError, TypeError), match=words):
        select(*args, n=n)


ONES, ZEROS = np.ones(4, np.float32), np.zeros(4, np.float32)


def weights(*values) -> dict:
    return {"weight": f32(values), "mixup": ZEROS}


WRONG_ACTIONS = {
    "None": (None, "the action is None, as of a function without `return`"),
    "array": (ONES, "ndarray"),
    "no mixup": ({"weight": ONES}, r"\['weight'\]"),
    "no weight": ({"mixup": ONES}, r"\['mixup'\]"),
    "misspelled": ({"weights": ONES, "mixup": ZEROS}, "weights"),
    "other key": ({"weight": ONES, "mixup": ZEROS, "extra": ZEROS}, "extra"),
    "short": (weights(1, 1, 1), r"weight.*\(3,\)"),
    "two axes": ({"weight": ONES[None], "mixup": ZEROS}, r"weight.*\(1, 4\)"),
    "scalar": ({"weight": ONES, "mixup": 0.5}, r"mixup.*\(\)"),
    "None inside": ({"weight": None, "mixup": ZEROS}, "weight.*object"),
    "text": ({"weight": ONES, "mixup": np.array(list("abcd"))}, "mixup.*U1"),
    "ragged": ({"weight": [[1.0], [1.0, 2.0], 1.0, 1.0], "mixup": ZEROS}, "weight"),
    "NaN": (weights(1, 1, np.nan, 1), r"weight.*\[2\].*nan"),
    "inf": (weights(1, np.inf, 1, 1), r"weight.*\[1\].*inf"),
    "negative": (weights(1, 1, 1, -0.25), r"weight.*\[3\].*-0\.25.*10"),
    "above": (weights(12.5, 1, 1, 1), r"weight.*\[0\].*12\.5.*10"),
    "beyond float32": ({"weight": np.array([1, 1, 1e300, 1]), "mixup": ZEROS}, r"weight.*\[2\].*10"),
    "mixup above": ({"weight": ONES, "mixup": f32([0, 0, 0, 0.75])}, r"mixup.*\[3\].*0\.75.*0\.5"),
    "score above": ({"weight": ONES, "mixup": ZEROS, "score": f32([0, 0, 0, 2])}, r"score.*\[3\].*2\.0.*1"),
    "with a gradient": ({"weight": torch.ones(4, requires_grad=True), "mixup": ZEROS}, r"action\['weight'\].*grad"),
    "bfloat16": ({"weight": ONES, "mixup": torch.zeros(4, dtype=torch.bfloat16)}, r"action\['mixup'\].*BFloat16"),
}


@pytest.mark.parametrize("name", WRONG_ACTIONS)
def test_a_wrong_action_raises_one_error_that_names_the_value(name):
    action, words = WRONG_ACTIONS[name]
    with pytest.raises((ValueError, TypeError), match=re.compile(words, re.S)):
        check(action, 4)


# ---------------------------------------------------------------- what is drawn


@given(seed=SEEDS, n=st.integers(1, 60), share=st.floats(0, 1), mixed=st.floats(0, 1))
@settings(max_examples=50)
def test_rows_are_what_the_action_keeps(seed, n, share, mixed):
    rng = np.random.default_rng(seed)
    weight = f32(rng.uniform(0.1, 10, n) * (rng.random(n) < share))
    mixup, score = (f32(rng.uniform(0.01, 0.5, n) * (rng.random(n) < mixed)) for _ in range(2))
    selection = drawn({"weight": weight, "mixup": mixup, "score": score}, seed)
    kept, dropped = np.flatnonzero(weight).tolist(), np.flatnonzero(weight == 0).tolist()
    assert sorted(selection.scored) == np.flatnonzero(score).tolist()
    assert sorted(selection.indices) == kept
    assert (len(selection), selection.mixed) == (len(kept), np.count_nonzero(mixup[kept]))
    for i, w, j, m in zip(selection.indices, selection.weights, selection.partners, selection.shares, strict=True):
        assert (w, m) == (weight[i], mixup[i])
        assert j in (dropped or kept) if m > 0 else j == i
    head = selection.head(2, 1)
    for name in ("indices", "weights", "partners", "shares"):
        np.testing.assert_array_equal(getattr(head, name), getattr(selection, name)[:2])
    np.testing.assert_array_equal(head.scored, selection.scored[:1])


@given(seed=SEEDS, n=st.integers(2, 30), data=st.data())
@settings(max_examples=30)
def test_what_two_actions_share_they_share_in_order_and_partners(seed, n, data):
    """Under one generator, the place of a sample and its draw of a partner do not depend on what else is chosen."""
    rng = np.random.default_rng(seed)
    shares = data.draw(st.tuples(st.floats(0, 1), st.floats(0, 1), st.floats(0, 1)))
    weights = [f32(rng.random(n) < share) for share in shares[:2]]
    mixups = [*(f32(0.5 * (rng.random(n) < share)) for share in shares[1:]), np.full(n, np.float32(0.1))]
    scores = [f32(rng.random(n) < share) for share in shares[1:]]
    chosen = {
        (w, m, s): drawn({"weight": weights[w], "mixup": mixups[m], "score": scores[s]}, seed)
        for w, m, s in itertools.product(range(2), range(3), range(2))
    }
    orders = [rows for each in chosen.values() for rows in (each.indices.tolist(), each.scored.tolist())]
    for one, other in itertools.combinations(orders, 2):
        common = set(one) & set(other)
        assert [i for i in one if i in common] == [i for i in other if i in common]
    partners: dict[tuple[int, int], int] = {}
    for (w, _, _), each in chosen.items():
        for i, j, share in zip(each.indices, each.partners, each.shares, strict=True):
            if share > 0:
                assert partners.setdefault((w, i), j) == j


def test_every_order_is_equally_likely():
    action = select([True, False, True, True, False])
    orders = [tuple(drawn(action, seed).indices) for seed in range(1500)]
    counts = [orders.count(order) for order in sorted(set(orders))]
    assert len(counts) == 6
    assert stats.chisquare(counts).pvalue > 1e-4


@pytest.mark.parametrize(("kept", "pool"), [(4, range(4, 8)), (5, range(5))])
def test_the_partner_is_uniform_over_the_dropped_samples_or_all_if_none_is_dropped(kept, pool):
    """Apart from the place, and independently for two samples."""
    action = select(np.arange(max(kept, pool.stop)) < kept, 0.5)
    places, pairs = np.zeros((kept, len(pool))), np.zeros((len(pool), len(pool)))
    for seed in range(1500):
        rows = drawn(action, seed)
        place, other = np.argsort(rows.indices)[:2]
        places[place, rows.partners[place] - pool.start] += 1
        pairs[rows.partners[place] - pool.start, rows.partners[other] - pool.start] += 1
    assert stats.chisquare(places.sum(axis=0)).pvalue > 1e-4
    assert stats.chisquare(pairs.ravel()).pvalue > 1e-4
    assert independent(places) > 1e-4


def test_a_large_order_is_sorted_by_the_draws():
    """Beyond 2**16 samples, where draws share the digits that are sorted first."""
    selection = drawn(select(np.ones(70_000, bool)), 0)
    np.testing.assert_array_equal(selection.indices, np.argsort(np.random.default_rng(0).random(70_000)))
