"""Scoring: a forward pass alone, against plain PyTorch; its price in thirds, against counting."""

import copy
import io
import itertools
import math
from collections import Counter
from fractions import Fraction

import gymnasium as gym
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from prune_env import PruneEnv, select
from prune_env.trainer import Trainer
from tests.core.test_trainer import rates_of, recipe, run, trainer
from tests.helpers.reference import SlowStats, normalized, schedule, toy

MOBILENET = "torchvision:mobilenet_v3_small"  # has dropout and batch norm
STUDENTS = [("mlp:5", 3, 8), ("convnet:3-4-5", 3, 16), (MOBILENET, 3, 32)]


def student_of(model: str, channels: int, size: int, budget: float = 12.0, **kwargs) -> Trainer:
    train = toy(24, 3, channels, size, augment=True)
    settings_ = {"lr": 0.01 if model == MOBILENET else 0.2, "batch_size": 5, "model": model, **kwargs}
    return trainer(train, budget=budget, **settings_)


def counted(student: Trainer) -> Counter:
    """Rows through the network from now on, by its mode: True in training."""
    rows: Counter = Counter()

    def count(module: torch.nn.Module, args: tuple[torch.Tensor]) -> None:
        rows[module.training] += len(args[0])

    student.model.register_forward_pre_hook(count)
    return rows


def state_of(student: Trainer) -> dict:
    """A copy of everything that training goes on from, but for the statistics and the ledger."""
    state = copy.deepcopy(student.state_dict())
    return {name: state[name] for name in ("model", "optimizer", "masks", "batches", "step", "val_accuracy")}


def assert_same(a, b) -> None:
    assert type(a) is type(b)
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        for name in a:
            assert_same(a[name], b[name])
    elif isinstance(a, list | tuple):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_same(x, y)
    elif isinstance(a, torch.Tensor):
        assert torch.equal(a, b)
    elif isinstance(a, np.ndarray):
        np.testing.assert_array_equal(a, b)
    else:
        assert a == b


# ---------------------------------------------------------------- what is measured


@pytest.mark.parametrize("evaluated", [512, 7])  # rows in a batch
@pytest.mark.parametrize(("model", "channels", "size"), STUDENTS)
def test_scored_samples_are_measured_by_a_plain_forward_pass(model, channels, size, evaluated, monkeypatch):
    """Trained on, scored, both, mixed and scored, neither: every statistic of every sample, step for step."""
    monkeypatch.setattr("prune_env.trainer.EVALUATION_BATCH", evaluated)
    student = student_of(model, channels, size, ema=0.7, label_smoothing=0.1)
    images, labels = normalized(student.train_data), student.train_data.labels
    slow = SlowStats(24, 3, 0.7)
    trained: list[torch.Tensor] = []
    student.model.register_forward_hook(
        lambda module, args, out: trained.append(out.detach().clone()) if module.training else None
    )
    rng = np.random.default_rng(0)
    thirds, kinds = 0, Counter()
    for step in range(6):
        weight, mixup, score = rng.random(24) < 0.5, 0.4 * (rng.random(24) < 0.4), rng.random(24) < 0.5
        if step == 4:
            weight[:] = False
        trained.clear()
        before = student.observe()
        selection = student.select(select(weight, mixup, score))
        result = student.train_epoch(selection)
        spent = (thirds := thirds + 3 * int(weight.sum()) + int(score.sum())) / 72
        counts = np.zeros(3)
        logits = torch.cat(trained) if trained else torch.empty(0, 3)
        for z, i, share in zip(logits, selection.indices.tolist(), selection.shares, strict=True):
            counts += slow.visit(i, z.numpy(), int(labels[i]), share == 0, spent)
        network = copy.deepcopy(student.model).eval()
        network._forward_hooks.clear()
        with torch.no_grad():
            plain = network(images)
        for i in np.flatnonzero(score).tolist():
            assert slow.visit(i, plain[i].numpy(), int(labels[i]), True, spent)[:2] == (1, 1)
            slow.rows[i]["visits"] -= 1  # to be measured is no visit
        seen = student.observe()
        for name, values in slow.observe(spent).items():
            np.testing.assert_allclose(seen[name], values, rtol=2e-4, atol=2e-5, err_msg=name)
        kept_as_it_was = ~score & (~weight | (mixup > 0))
        for name in set(seen) & set(slow.rows[0]) - {"visits"}:
            np.testing.assert_array_equal(seen[name][kept_as_it_was], before[name][kept_as_it_was], err_msg=name)
        np.testing.assert_array_equal(seen["visits"] - before["visits"], weight)
        assert not seen["age"][score].any()
        assert (seen["age"][~score & ~weight] > before["age"][~score & ~weight]).all()
        assert result.train_accuracy == (counts[2] / counts[1] if counts[1] else before["train_accuracy"])
        assert (result.trained, result.scored, result.diverged) == (weight.sum(), score.sum(), False)
        kinds.update(zip(weight.tolist(), (mixup > 0).tolist(), score.tolist(), strict=True))
    assert len(kinds) == 8  # every combination occurred
    assert sum(row["forgets"] for row in slow.rows) > 0 or model == MOBILENET


def test_a_scored_sample_has_the_statistics_that_follow_from_its_logits_by_hand():
    student = trainer(toy(24, 2), batch_size=4, budget=9.0, ema=0.25)
    outputs = iter([(0.0, math.log(3)), (math.log(4), 0.0)])  # the label is 0: p = 1/4, then 4/5
    with torch.no_grad():
        for p in student.model.parameters():
            p.zero_()
    bias = [p for p in student.model.parameters() if p.shape == (2,)][-1]
    losses = (math.log(4), math.log(5 / 4))
    spents = (1 / 72, 2 / 72)
    seen: dict = {}
    for (a, b), loss, own, spent in zip(outputs, losses, (0.25, 0.8), spents, strict=True):
        with torch.no_grad():
            bias.copy_(torch.tensor([a, b]))
        result = run(student, np.zeros(24), score=np.arange(24) == 6)
        seen = {name: float(values[6]) for name, values in student.observe().items() if len(values) == 24}
        assert result.spent == 1 / 72
        assert student.ledger.spent == pytest.approx(spent)
        assert seen["loss"] == pytest.approx(loss, rel=1e-5)
        assert seen["confidence"] == pytest.approx(own, rel=1e-5)
        assert seen["margin"] == pytest.approx(own - (1 - own), rel=1e-5)
        assert seen["el2n"] == pytest.approx(math.sqrt(2) * (1 - own), rel=1e-5)
        entropy = -(own * math.log2(own) + (1 - own) * math.log2(1 - own))
        assert seen["entropy"] == pytest.approx(entropy, rel=1e-5)
        assert (seen["visits"], seen["age"], seen["correct"]) == (0, 0, own > 0.5)
    first, second = losses
    assert seen["loss_mean"] == pytest.approx(0.75 * first + 0.25 * second, rel=1e-5)
    assert seen["loss_var"] == pytest.approx(0.25 * (second - first) ** 2, rel=1e-5)
    assert seen["forgets"] == 0
    with torch.no_grad():
        bias.copy_(torch.tensor([0.0, 1.0]))
    run(student, np.zeros(24), score=np.arange(24) == 6)
    seen = student.observe()
    assert (seen["forgets"].sum(), seen["forgets"][6], seen["correct"].sum()) == (1, 1, 0)


# ---------------------------------------------------------------- what is not touched


@pytest.mark.parametrize(("model", "channels", "size"), STUDENTS)
def test_training_goes_on_as_in_a_run_that_was_charged_alike_without_scoring(model, channels, size):
    """Weights, momentum, running statistics and dropout's generator, bit for bit."""
    one, other = (student_of(model, channels, size, budget=8.0) for _ in range(2))
    rates = [rates_of(student) for student in (one, other)]
    rng = np.random.default_rng(1)
    for step in range(5):
        action = rng.random(24) < 0.8, np.where(rng.random(24) < 0.3, 0.3, 0)
        if step == 3:
            action = np.zeros(24, bool), np.zeros(24)
        score = rng.random(24) < 0.6
        result = run(one, *action, score=score)
        if step != 3:
            without = run(other, *action)
        else:
            other.step += 1
            without = result
        other.ledger.score += int(score.sum())  # charged, and nothing done for it
        assert_same(state_of(one), state_of(other))
        assert (result.trained, result.mixed, result.train_accuracy) == (
            without.trained,
            without.mixed,
            without.train_accuracy,
        )
        assert (result.val_accuracy, result.val_loss) == (without.val_accuracy, without.val_loss)
        assert one.ledger.used == other.ledger.used
    assert rates[0] == rates[1]
    assert len(rates[0]) > 12


@pytest.mark.parametrize(("model", "channels", "size"), STUDENTS)
def test_a_step_that_only_scores_leaves_the_network_alone(model, channels, size):
    student = student_of(model, channels, size)
    run(student, np.ones(24, bool))
    before = state_of(student)
    result = run(student, np.zeros(24, bool), score=np.ones(24, bool))
    after = state_of(student)
    assert after.pop("step") == before.pop("step") + 1
    assert_same(before, after)
    assert (result.trained, result.scored, result.spent, result.gained) == (0, 24, 1 / 3, 0.0)
    assert (result.finished, result.diverged, result.cut) == (False, False, False)


def test_scoring_draws_no_order_and_no_partners():
    student = trainer()
    weight, mixup = np.arange(24) < 15, 0.25
    plain = student.select(select(weight, mixup))
    scored = student.select(select(weight, mixup, np.arange(24) % 2))
    for name in ("indices", "weights", "partners", "shares"):
        np.testing.assert_array_equal(getattr(plain, name), getattr(scored, name))
    assert sorted(scored.scored) == list(range(1, 24, 2))
    assert plain.scored.size == 0


def test_a_share_above_0_scores_and_how_large_it_is_does_not_matter():
    seen = []
    for share in (1.0, 0.3, 1e-30):
        student = trainer()
        assert run(student, np.ones(24, bool), score=share * (np.arange(24) < 5)).scored == 5
        seen.append(student.observe())
    assert_same(seen[0], seen[1])
    assert_same(seen[0], seen[2])


# ---------------------------------------------------------------- the price


@given(
    n=st.integers(2, 30),
    batch_size=st.integers(1, 40),
    tenths=st.integers(10, 35),
    warmup=st.sampled_from([0.0, 0.1, 0.6]),
    sizes=st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)).filter(any), min_size=1, max_size=6),
)
@settings(max_examples=60, deadline=None)
def test_the_budget_in_thirds(n, batch_size, tenths, warmup, sizes):
    train, val = toy(n, 2), toy(4, 2)
    student = Trainer(train, val, recipe("mlp:2", batch_size, warmup=warmup, lr=0.01), budget=tenths / 10, seed=n)
    rates, rows, batch = rates_of(student), counted(student), min(batch_size, n)
    total = Fraction(n * tenths, 10)  # in visits, a scored sample being a third of one
    total -= total % Fraction(1, 3)
    left = total
    for step, (wanted, asked) in enumerate(itertools.cycle((min(k, n), min(s, n)) for k, s in sizes)):
        rng = np.random.default_rng(step)
        rows.clear()
        rates.clear()
        result = run(student, rng.permutation(n) < wanted, score=rng.permutation(n) < asked)
        start = total - left
        trained = min(wanted, math.floor(left))
        left -= trained
        reached = total - left
        scored = min(asked, int(left * 3))
        left -= Fraction(scored, 3)
        assert (result.trained, result.scored) == (trained, scored)
        assert (rows[True], rows[False]) == (trained, scored + 4)  # and the validation
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


@pytest.mark.parametrize(("scored", "ends"), [(21, False), (22, True), (24, True)])
def test_the_rate_ends_at_zero_where_scoring_leaves_less_than_a_batch(scored, ends):
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


@pytest.mark.slow
def test_what_is_scored_in_a_cut_step_is_a_uniformly_random_part():
    runs, asked, fits = 400, 12, 5
    counts, pairs = np.zeros(24), 0
    for seed in range(runs):
        student = trainer(toy(24, 3, size=3), budget=(24 + 4) / 24 + fits / 72, batch_size=4, seed=seed, model="mlp:1")
        run(student, np.ones(24, bool))
        # the 4 are trained on first, and 5 thirds are left
        result = run(student, np.arange(24) < 4, score=np.arange(24) >= 24 - asked)
        assert (result.trained, result.scored, result.cut, result.finished) == (4, fits, True, True)
        assert student.ledger.used == student.ledger.total
        measured = (student.observe()["age"] == 0) & (np.arange(24) >= 4)
        assert measured.sum() == fits
        counts += measured
        pairs += bool(measured[12] and measured[13])
    assert not counts[:12].any()
    share = fits / asked
    chi2 = ((counts[12:] - runs * share) ** 2).sum() / (runs * share * (1 - share)) * (asked - 1) / asked
    assert stats.chi2(asked - 1).sf(chi2) > 1e-4
    assert stats.binomtest(pairs, runs, share * (fits - 1) / (asked - 1)).pvalue > 1e-4


def test_training_comes_before_scoring_where_the_budget_allows_one():
    student = trainer(budget=1.5, batch_size=4)  # 36 visits
    run(student, np.ones(24, bool))
    result = run(student, np.ones(24, bool), score=np.ones(24, bool))
    assert (result.trained, result.scored, result.cut, result.finished) == (12, 0, True, True)
    assert student.ledger.spent == 1.5


def test_what_ends_a_run():
    student = trainer(budget=3.0)
    for _ in range(4):
        assert not run(student, np.zeros(24, bool), score=np.ones(24, bool)).finished
    assert student.ledger.spent == pytest.approx(4 / 3)
    result = run(student, np.zeros(24, bool), score=np.zeros(24, bool))
    assert (result.finished, result.cut, result.spent) == (True, False, 0.0)


def test_a_run_can_be_spent_on_scoring_alone():
    student = trainer(budget=1.0, batch_size=8)
    finished, steps, results = False, 0, []
    while not finished:
        results.append(run(student, np.zeros(24, bool), score=np.ones(24, bool)))
        finished, steps = results[-1].finished, steps + 1
    # 72 thirds: after two thirds of the budget exactly one batch of 8 is left, which does not end it
    assert (steps, student.ledger.used) == (3, 72)
    assert [result.lr == 0.0 for result in results] == [False, False, True]
    assert student.observe()["visits"].tolist() == [0.0] * 24


# ---------------------------------------------------------------- divergence


def test_a_scored_row_that_is_not_finite_is_divergence_and_not_measured():
    student = trainer(budget=5.0)
    run(student, np.ones(24, bool))
    before = student.observe()

    def spoil(module, args, out):
        """The first of five rows, as many as are scored."""
        return torch.where(torch.arange(len(out))[:, None] == 0, math.nan, out) if len(out) == 5 else None

    student.model.register_forward_hook(spoil)
    score = np.arange(24) < 5
    result = run(student, np.zeros(24, bool), score=score)
    assert (result.diverged, result.finished, result.scored) == (True, True, 5)
    assert math.isfinite(result.val_loss)
    seen = student.observe()
    assert (seen["age"] == 0).sum() == 4
    np.testing.assert_array_equal(seen["visits"], before["visits"])
    assert all(np.isfinite(values).all() for values in seen.values())
    assert student.ledger.score == 5  # it was done, and is paid for


@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_infinite_weights_are_divergence_in_a_step_that_only_scores(value):
    student = trainer(budget=5.0)
    with torch.no_grad():
        student.model.get_parameter("3.bias")[0] = value
    result = run(student, np.zeros(24, bool), score=np.arange(24) < 3)
    assert (result.diverged, result.finished, result.val_accuracy, result.val_loss) == (True, True, 0.0, 100.0)
    np.testing.assert_allclose(student.observe()["loss"], math.log(3), rtol=1e-6)


# ---------------------------------------------------------------- the environment


def digits(**kwargs) -> PruneEnv:
    env = gym.make("prune_env/Digits-v0", disable_env_checker=True, **{"train_size": 90, "batch_size": 16, **kwargs})
    assert isinstance(env.unwrapped, PruneEnv)
    return env.unwrapped


def test_the_action_space_holds_what_select_builds_and_the_environment_takes_what_it_samples():
    env = digits(budget=6.0)
    rng = np.random.default_rng(0)
    assert isinstance(env.action_space, gym.spaces.Dict)
    space = env.action_space["score"]
    assert isinstance(space, gym.spaces.Box)
    assert (space.shape, space.dtype, space.low.max(), space.high.min()) == ((90,), np.float32, 0, 1)
    for score in (None, rng.random(90) < 0.5, rng.random(90), np.ones(90)):
        assert env.action_space.contains(select(rng.random(90), 0.5, score))
    env.action_space.seed(0)
    env.reset(seed=0)
    *_, info = env.step(env.action_space.sample())
    assert info["scored"] == 90  # a uniform draw is hardly ever 0


def test_info_and_the_ledger_are_exact_in_thirds():
    env, rng = digits(budget=4.1), np.random.default_rng(0)  # 369 visits
    env.reset(seed=0)
    assert env.trainer is not None
    rows, thirds, terminated, steps = counted(env.trainer), 0, False, 0
    while not terminated:
        weight, score = rng.random(90) < 0.4, rng.random(90) < 0.6
        mixup = 0.5 * (rng.random(90) < 0.3)
        observation, _, terminated, truncated, info = env.step(select(weight, mixup, score))
        steps += 1
        assert not truncated
        assert 3 * rows[True] + rows[False] - steps * len(env.val_data) == thirds + round(info["spent"] * 270)
        thirds += 3 * info["trained"] + info["scored"]
        assert info["spent"] == (3 * info["trained"] + info["scored"]) / 270
        assert info["total_spent"] == thirds / 270
        assert observation["spent"][0] == np.float32(thirds / 1107)
        assert info["kept"] == weight.mean()
        assert info["coverage"] == (observation["visits"] > 0).mean()
        assert info["cut"] == (terminated and (info["trained"], info["scored"]) != (weight.sum(), score.sum()))
        if not terminated:
            assert (info["trained"], info["scored"]) == (weight.sum(), score.sum())
    assert steps > 5
    ledger = env.trainer.ledger
    assert (rows[True], rows[False]) == (ledger.train, ledger.score + steps * len(env.val_data))
    assert ledger.evaluate == (steps + 1) * len(env.val_data)
    assert 1107 - 3 * 16 < 3 * ledger.train + ledger.score <= 1107
    assert ledger.seconds["score"] > 0


def test_the_reward_pays_for_scoring():
    env = digits(budget=4.0, price=0.5)
    _, info = env.reset(seed=0)
    before = info["val_accuracy"]
    _, reward, *_, info = env.step(select(np.arange(90) < 30, score=np.arange(90) < 45))
    assert reward == pytest.approx((info["val_accuracy"] - before) / 4 - 0.5 * (1 / 3 + 1 / 6))


def test_an_action_without_score_is_one_that_scores_nothing():
    def episode(form: str) -> list:
        env, rng = digits(budget=3.0), np.random.default_rng(0)
        found: list = [env.reset(seed=3)]
        while True:
            action = select(rng.random(90) < 0.5, 0.5 * (rng.random(90) < 0.3))
            if form == "left out":
                del action["score"]
            elif form == "zeros":
                action["score"] = np.zeros(90, np.float32)
            found.append(env.step(action))
            if found[-1][2]:
                return found

    forms = [episode(form) for form in ("left out", "zeros", "as select has it")]
    assert_same(forms[0], forms[1])
    assert_same(forms[0], forms[2])
    assert all(info["scored"] == 0 for *_, info in forms[0][1:])


def test_equal_seeds_and_actions_give_equal_numbers():
    def episode(env: PruneEnv) -> list:
        rng = np.random.default_rng(0)
        found: list = [env.reset(seed=3)]
        while True:
            found.append(env.step(select(rng.random(90) < 0.5, score=rng.random(90) < 0.5)))
            if found[-1][2]:
                return found

    env = digits(budget=4.0)
    first = episode(env)
    assert_same(first, episode(env))
    assert_same(first, episode(digits(budget=4.0)))


@pytest.mark.parametrize("score", ["weight", "mixup"])
def test_a_missing_entry_other_than_score_is_refused(score):
    env = digits()
    env.reset(seed=0)
    action = select(np.ones(90))
    del action[score]
    with pytest.raises(ValueError, match="the action has the keys"):
        env.step(action)
    assert env.trainer is not None
    assert env.trainer.ledger.used == 0


def test_a_saved_run_with_scoring_goes_on_bit_for_bit():
    straight, resumed = (student_of(MOBILENET, 3, 32, budget=5.0) for _ in range(2))
    rng = np.random.default_rng(0)
    actions = [(rng.random(24) < 0.7, 0.25 * (rng.random(24) < 0.3), rng.random(24) < 0.5) for _ in range(4)]
    file, results = io.BytesIO(), []
    for step, action in enumerate(actions):
        if step == 2:
            torch.save(straight.state_dict(), file)
        results.append(run(straight, action[0], action[1], score=action[2]))
    file.seek(0)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    assert [run(resumed, weight, mixup, score=score) for weight, mixup, score in actions[2:]] == results[2:]
    assert_same(state_of(straight), state_of(resumed))
    assert_same(straight.observe(), resumed.observe())
    assert straight.ledger.score == resumed.ledger.score == sum(int(score.sum()) for *_, score in actions)
