"""The ledger's arithmetic, against fractions and figures counted by hand."""

from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from prune_env.budget import Ledger, Stopwatch


def test_a_pass_counted_by_hand():
    ledger = Ledger(n=10, budget=2.5)
    assert (ledger.total, ledger.used, ledger.affordable, ledger.spent, ledger.share) == (75, 0, 25, 0, 0)
    ledger.train += 10
    assert (ledger.spent, ledger.share, ledger.affordable) == (1.0, 0.4, 15)
    ledger.score += 10  # a forward pass alone is a third
    assert ledger.spent == pytest.approx(4 / 3)
    assert ledger.affordable == 11  # 35 thirds are left
    ledger.evaluate += 1000
    assert ledger.spent == pytest.approx(4 / 3)
    ledger.train += 11
    assert (ledger.used, ledger.affordable) == (73, 0)


@pytest.mark.parametrize(
    ("budget", "n", "samples"), [(0.7, 10, 7), (4.1, 30, 123), (0.29, 100, 29), (140 * 0.7, 1000, 98_000), (1.0, 7, 7)]
)
def test_rounding_of_the_budget_loses_no_sample(budget, n, samples):
    assert Ledger(n, budget).affordable == samples


@given(
    n=st.integers(1, 1_281_167),
    tenths=st.integers(1, 3000),
    parts=st.lists(st.tuples(st.integers(0, 5000), st.integers(0, 5000)), max_size=6),
)
def test_the_ledger_agrees_with_fractions(n, tenths, parts):
    budget = Fraction(tenths, 10)
    ledger = Ledger(n, tenths / 10)
    charged = Fraction(0)
    for train, score in parts:
        ledger.train += train
        ledger.score += score
        charged += Fraction(train, n) + Fraction(score, 3 * n)
    assert ledger.spent == pytest.approx(float(charged))
    assert ledger.affordable == ((budget - charged) * n) // 1
    if charged <= budget and budget * n >= 1:
        # the budget is counted in whole thirds of a sample
        assert float(charged / budget) - 1e-9 <= ledger.share <= 1 + 1e-9


def test_stretches_lie_between_marks():
    watch = Stopwatch(torch.device("cpu"))
    assert watch.stretches() == []
    for _ in range(3):
        watch.mark()
    assert len(watch.stretches()) == 2
    assert all(seconds >= 0 for seconds in watch.stretches())
