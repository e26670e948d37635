"""Scoring: a forward pass alone, against plain PyTorch; its price in thirds, against counting."""

import copy
import itertools
import math
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prune_env import select
from prune_env.trainer import Trainer
from tests.helpers.reference import SlowStats, normalized, schedule, toy
from tests.helpers.runs import DROPOUT, Watched, rates_of, run, same, trainer


def student_of(model: str, budget: float = 12.0, **recipe) -> Trainer:
    return trainer(toy(24, 3, 3, 16, augment=True), budget=budget, model=model, lr=0.2, batch_size=5, **recipe)


# ---------------------------------------------------------------- the statistics of what is trained on and scored


@pytest.mark.parametrize("model", ["mlp:5", "convnet:3-4-5", DROPOUT])  # the last has batch norm and dropout
def test_trained_and_scored_samples_have_the_statistics_of_their_logits(model):
    """Trained on, scored, both, mixed and scored, neither: every statistic of every sample, step for step."""
    student = student_of(model, ema=0.7, label_smoothing=0.1)
    images, labels = normalized(student.train_data), student.train_data.labels.tolist()
    slow, rng, thirds, kinds = SlowStats(24, 3, 0.7), np.random.default_rng(0), 0, Counter()
    plain = copy.deepcopy(student.model).eval()
    watched = Watched(student)
    for step in range(6):
        weight, mixup, score = rng.random(24) < 0.5, 0.4 * (rng.random(24) < 0.4), rng.random(24) < 0.5
        if step == 4:
            weight[:] = False
        watched.clear()
        before = student.observe()
        selection = student.select(select(weight, mixup, score))
        result = student.train_epoch(selection)
        spent = (thirds := thirds + 3 * int(weight.sum()) + int(score.sum())) / 72
        counts = np.zeros(3)
        for z, i, share in zip(watched.logits("trained"), selection.indices, selection.shares, strict=True):
            counts += slow.visit(i, z, labels[i], share == 0, spent)
        plain.load_state_dict(student.model.state_dict())
        with torch.no_grad():
            logits = plain(images).numpy()
        for i in np.flatnonzero(score).tolist():
            slow.visit(i, logits[i], labels[i], True, spent, trained=False)
        seen = student.observe()
        for name, values in slow.observe(spent).items():
            np.testing.assert_allclose(seen[name], values, rtol=2e-4, atol=2e-5, err_msg=name)
        unmeasured = ~score & (~weight | (mixup > 0))
        for name in seen.keys() & slow.rows[0].keys() - {"visits"}:
            np.testing.assert_array_equal(seen[name][unmeasured], before[name][unmeasured], err_msg=name)
        assert result.train_accuracy == (counts[2] / counts[1] if counts[1] else before["train_accuracy"])
        assert (result.trained, result.scored, result.diverged) == (weight.sum(), score.sum(), False)
        kinds.update(zip(weight.tolist(), (mixup > 0).tolist(), score.tolist(), strict=True))
    assert len(kinds) == 8  # every combination occurred


def test_the_statistics_of_a_scored_sample_counted_by_hand():
    student = trainer(toy(24, 2), batch_size=4, budget=9.0, ema=0.25)
    with torch.no_grad():
        for p in student.model.parameters():
            p.zero_()
    bias = [p for p in student.model.parameters() if p.shape == (2,)][-1]

    def score(*logits: float) -> dict[str, float]:
        with torch.no_grad():
            bias.copy_(torch.tensor(logits))
        assert run(student, np.zeros(24), score=np.arange(24) == 6).spent == 1 / 72
        return {name: float(values[6]) for name, values in student.observe().items() if len(values) == 24}

    seen: dict[str, float] = {}
    for number, (logits, own) in enumerate([((0.0, math.log(3)), 0.25), ((math.log(4), 0.0), 0.8)]):  # the label is 0
        seen = score(*logits)
        assert student.ledger.spent == pytest.approx((number + 1) / 72)
        entropy = -(own * math.log2(own) + (1 - own) * math.log2(1 - own))
        expected = {"loss": -math.log(own), "confidence": own, "margin": 2 * own - 1, "entropy": entropy}
        expected |= {"el2n": math.sqrt(2) * (1 - own), "visits": 0, "age": 0, "correct": float(own > 0.5), "forgets": 0}
        assert {name: seen[name] for name in expected} == pytest.approx(expected, rel=1e-5)
    first, second = math.log(4), math.log(5 / 4)
    assert seen["loss_mean"] == pytest.approx(0.75 * first + 0.25 * second, rel=1e-5)
    assert seen["loss_var"] == pytest.approx(0.25 * (second - first) ** 2, rel=1e-5)
    assert score(0.0, 1.0)["forgets"] == 1


# ---------------------------------------------------------------- what is not touched


def test_scoring_changes_nothing_but_statistics_and_charge():
    """Weights, momentum, running statistics and dropout's generator equal a run's that was charged without scoring."""
    one, other = (student_of(DROPOUT, budget=8.0) for _ in range(2))
    rates, rng = [rates_of(student) for student in (one, other)], np.random.default_rng(1)
    for step in range(5):
        weight, mixup = rng.random(24) < 0.8, 0.3 * (rng.random(24) < 0.3)
        score = rng.random(24) < 0.6
        if step == 3:  # a step that only scores
            result = run(one, np.zeros(24), score=score)
            assert (result.trained, result.gained, result.finished) == (0, 0.0, False)
            other.step += 1
        else:
            result, without = run(one, weight, mixup, score), run(other, weight, mixup)
            assert (result.train_accuracy, result.val_loss) == (without.train_accuracy, without.val_loss)
        other.ledger.score += int(score.sum())
        states = [copy.deepcopy(student.state_dict()) for student in (one, other)]
        for state in states:
            del state["statistics"], state["ledger"]["seconds"], state["ledger"]["evaluate"]
        assert same(*states)
    assert rates[0] == rates[1]
    assert len(rates[0]) > 12


def test_scoring_draws_no_order_and_no_partners():
    student = trainer()
    plain, scored = (student.select(select(np.arange(24) < 15, 0.25, score)) for score in (None, np.arange(24) % 2))
    for name in ("indices", "weights", "partners", "shares"):
        np.testing.assert_array_equal(getattr(plain, name), getattr(scored, name))
    assert (sorted(scored.scored), plain.scored.size) == (list(range(1, 24, 2)), 0)


# ---------------------------------------------------------------- the price


@given(
    n=st.integers(2, 30),
    batch_size=st.integers(1, 40),
    tenths=st.integers(10, 35),
    warmup=st.sampled_from([0.0, 0.1, 0.6]),
    sizes=st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)).filter(any), min_size=1, max_size=6),
)
@settings(max_examples=40)
def test_the_budget_holds_in_thirds_and_the_rate_ends_at_zero(n, batch_size, tenths, warmup, sizes):
    train, val, budget = toy(n, 2), toy(4, 2), tenths / 10
    student = trainer(train, val, budget, seed=n, model="mlp:2", batch_size=batch_size, warmup=warmup, lr=0.01)
    rates, watched, batch = rates_of(student), Watched(student), min(batch_size, n)
    total = Fraction(n * tenths, 10)  # in visits, a scored sample being a third of one
    total -= total % Fraction(1, 3)
    left = total
    for step, (wanted, asked) in enumerate(itertools.cycle((min(k, n), min(s, n)) for k, s in sizes)):
        rng = np.random.default_rng(step)
        watched.clear()
        rates.clear()
        start, trained = total - left, min(wanted, math.floor(left))
        left -= trained
        reached = total - left
        scored = min(asked, int(left * 3))
        left -= Fraction(scored, 3)
        result = run(student, rng.permutation(n) < wanted, score=rng.permutation(n) < asked)
        assert (result.trained, result.scored) == (trained, scored)
        assert (watched.count("trained"), watched.count("validated")) == (trained, scored + 4)
        assert set(watched.sizes("trained")[:-1]) <= {batch}
        assert (student.ledger.train + Fraction(student.ledger.score, 3)) == total - left
        assert result.spent == pytest.approx(float((trained + Fraction(scored, 3)) / n), rel=1e-12)
        assert student.ledger.spent == pytest.approx(float((total - left) / n), rel=1e-12)
        assert student.observe()["spent"][0] == np.float32((total - left) / total)
        assert result.cut == ((trained, scored) != (wanted, asked))
        last = left < batch
        assert result.finished == last
        middles = [start + at + Fraction(min(batch, trained - at), 2) for at in range(0, trained, batch)]
        expected = [schedule(float(x / (reached if last else total)), 0.01, warmup) for x in middles]
        assert rates == pytest.approx(expected, rel=1e-6)
        if last:
            assert result.lr == 0.0
            break
        assert result.lr == pytest.approx(schedule(float((total - left) / total), 0.01, warmup))
        assert result.lr > 0
    assert 0 <= left < batch
    assert student.observe()["visits"].sum() == student.ledger.train


@pytest.mark.parametrize(("scored", "ends"), [(21, False), (22, True)])
def test_the_rate_ends_at_zero_where_less_than_a_batch_is_left(scored, ends):
    # 50 visits, 8 in a batch: after 24 and 11 there are 15 left, of which 21 scored samples take 7 and leave a batch
    student = trainer(budget=50 / 24 + 1e-9, warmup=0.0, momentum=0.0)
    rates = rates_of(student)
    run(student, np.ones(24, bool))
    result = run(student, np.arange(24) < 11, score=np.arange(24) < scored)
    assert (result.finished, result.cut, result.trained, result.scored) == (ends, False, 11, scored)
    horizon = 35 if ends else 50
    early = [schedule(x / 50, 0.1, 0) for x in (4, 12, 20)]
    assert rates == pytest.approx(early + [schedule(x / horizon, 0.1, 0) for x in (28, 33.5)], rel=1e-6)
    assert (result.lr == 0.0) == ends
