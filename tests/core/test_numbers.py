"""Numbers at their worst: logits that are not finite, divergence, data of a few samples.

A row whose logits are not finite is counted (`nonfinite`), never measured and never right. One such row is divergence,
which ends the episode and leaves nothing behind. Divergence of one member beside others is tested in tests/policy and
tests/students, wrong actions in test_selection.
"""

import copy
import math
from dataclasses import asdict

import gymnasium as gym
import numpy as np
import pytest
import torch

from agents import make
from prune_env import select, stats
from prune_env.data import Data
from prune_env.env import observations
from prune_env.evaluation import Evaluation
from prune_env.policy.features import extract_features
from prune_env.trainer import EpochResult, Trainer
from tests.helpers.reference import SlowStats, toy
from tests.helpers.runs import Watched, digits, play, run, same, trainer
from train.execution import run as episode
from train.execution.run import Run

NOT_FINITE = [math.nan, math.inf, -math.inf]


def assert_finite(student: Trainer, result: EpochResult) -> None:
    """Assert that everything which leaves a step lies within its bounds."""
    assert all(map(math.isfinite, asdict(result).values()))
    assert 0.0 <= result.val_loss <= stats.MAX_LOSS
    assert (
        0.0 <= min(result.val_accuracy, result.train_accuracy) <= max(result.val_accuracy, result.train_accuracy) <= 1
    )
    space = observations(student.ledger.n, len(student.train_data.classes), student.ledger.budget)
    assert space.contains({**student.observe(), "label": student.train_data.labels.numpy()})


# ---------------------------------------------------------------- rows that are not finite


SPOILED = {  # of 20 rows trained on in batches of 8, 10 scored, 12 validated
    "one trained on": {"trained": [9]},
    "one scored": {"scored": [3]},
    "one validated": {"validated": [11]},
    "a batch": {"trained": range(8, 16), "scored": range(10), "validated": [0]},
    "all": {"trained": range(20), "scored": range(10), "validated": range(12)},
    "none": {},
}


@pytest.mark.parametrize(("who", "value"), list(zip(SPOILED, NOT_FINITE * 2, strict=True)))
def test_rows_that_are_not_finite_are_counted_and_reach_nothing(who, value):
    ours, spoil = trainer(lr=0.05), SPOILED[who]
    mixup = 0.4 * (np.random.default_rng(0).random(24) < 0.3)
    chosen = ours.select(select(np.arange(24) < 20, mixup, np.arange(24) >= 14))
    watched = Watched(ours, 10, spoil, value)
    result = ours.train_epoch(chosen)
    count = sum(map(len, spoil.values()))
    assert result.nonfinite == watched.nonfinite() == count
    assert (result.diverged, result.finished) == (count > 0, count > 0)
    assert (result.trained, result.scored, ours.ledger.used) == (20, 10, 3 * 20 + 10)  # it was done, and is paid for
    assert_finite(ours, result)
    assert all(torch.isfinite(p).all() for p in ours.model.parameters())

    slow, now, labels = SlowStats(24, 3, 0.8), ours.ledger.spent, ours.train_data.labels.tolist()
    visits = zip(chosen.indices, watched.logits("trained"), chosen.shares, strict=True)
    found = [slow.visit(i, logits, labels[i], share == 0.0, now) for i, logits, share in visits]
    for i, logits in zip(chosen.scored, watched.logits("scored"), strict=True):
        slow.visit(i, logits, labels[i], True, now, trained=False)
    seen = ours.observe()
    for name, values in slow.observe(now).items():
        np.testing.assert_allclose(seen[name], values, rtol=1e-3, atol=1e-5, err_msg=name)
    _, measured, right = np.sum(found, axis=0)
    assert result.train_accuracy == (right / measured if measured else 0.0)
    truth = zip(watched.logits("validated"), ours.val_data.labels.tolist(), strict=True)
    assert result.val_accuracy == sum(np.isfinite(z).all() and z.argmax() == y for z, y in truth) / 12


@pytest.mark.parametrize(("model", "lr"), [("mlp:5", 1e3), ("mlp:5", 1e15), ("convnet:2-2-2", 1e38)])
def test_rates_that_diverge(model, lr):
    ours = trainer(toy(24, 3, 1, 16), model=model, lr=lr, budget=20.0, warmup=0.0)
    finished = False
    while not finished:
        watched = Watched(ours)
        result = run(ours, np.ones(24, bool))
        assert result.nonfinite == watched.nonfinite()
        assert result.diverged == (result.nonfinite > 0)
        assert_finite(ours, result)
        finished = result.finished
    if lr >= 1e15:  # below, rounding decides whether all units die instead
        assert ours.ledger.spent < 15


def test_a_step_whose_training_logits_were_finite_is_found_out_by_its_validation():
    """One batch, and a gradient that is NaN."""
    ours = trainer(batch_size=24)
    last = list(ours.model.parameters())[-1]
    last.register_hook(lambda gradient: gradient * math.nan)
    result = run(ours, np.ones(24, bool), score=np.arange(24) < 5)
    assert (result.nonfinite, result.diverged) == (5 + 12, True)
    assert (ours.observe()["loss"] != np.float32(math.log(3))).all()  # as measured in training
    assert_finite(ours, result)


def test_a_single_weight_that_is_nan_is_always_noticed():
    healthy = trainer(toy(6, 3, 3, 16), toy(4, 3, 3, 16, seed=1), model="convnet:2-2-2", batch_size=6, lr=0.01)
    run(healthy, np.ones(6))
    for name, values in healthy.model.state_dict().items():
        if values.dtype != torch.float32:
            continue  # the number of batches that batch norm has seen
        ours = copy.deepcopy(healthy)
        with torch.no_grad():
            ours.model.state_dict()[name][(-1,) * values.ndim] = math.nan
        result = run(ours, np.zeros(6), score=np.arange(6) < 2)
        assert (result.nonfinite, result.diverged) == (2 + 4, True), name


def test_an_infinite_loss_of_finite_logits_is_no_divergence():
    """Its statistics are clipped, its gradient is finite: probabilities minus labels."""
    ours = trainer(lr=0.01)
    huge = torch.tensor([3e38, 3e38, -3e38])  # whose sum is not finite on the way
    ours.model.register_forward_hook(lambda module, args, out: out * 1e-30 + huge)
    result = run(ours, np.ones(24), score=np.arange(24) < 4)
    assert (result.nonfinite, result.diverged, result.finished) == (0, False, False)
    assert_finite(ours, result)
    of_third = ours.train_data.labels.numpy() == 2
    np.testing.assert_allclose(ours.observe()["loss"], np.where(of_third, 100.0, math.log(2)), rtol=1e-6)
    assert all(torch.isfinite(p).all() for p in ours.model.parameters())


# ---------------------------------------------------------------- the environment, and programs


def test_divergence_ends_the_episode_and_the_next_is_a_fresh_environments():
    env, calm = digits(price=0.1), digits(price=0.1)
    _, info = env.reset(seed=5)
    before = info["val_accuracy"]
    Watched(env.running, 10, {"trained": [4]})
    observation, reward, terminated, truncated, info = env.step(select(np.arange(100) < 40, 0.2, np.arange(100) >= 90))
    assert (terminated, truncated, info["diverged"], info["nonfinite"]) == (True, False, True, 1)
    assert env.observation_space.contains(observation)
    assert reward == pytest.approx((info["val_accuracy"] - before) / 3.0 - 0.1 * (0.4 + 0.1 / 3), abs=1e-12)
    with pytest.raises(gym.error.ResetNeeded):
        env.step(select(np.ones(100)))
    calm.reset(seed=5)
    assert same(play(env, seed=None), play(calm, seed=None))  # the next run follows from the last one
    assert same(play(env, seed=7), play(digits(price=0.1), seed=7))


def test_what_breaks_on_test_images_only_is_counted(monkeypatch):
    """Validation was fine, so that the run did not diverge."""
    evaluate = Trainer.evaluate

    def spoiled_on_test(self: Trainer, data: Data) -> Evaluation:
        if len(data) == 497:
            with torch.no_grad():
                list(self.model.parameters())[-1].fill_(math.inf)
        return evaluate(self, data)

    monkeypatch.setattr(Trainer, "evaluate", spoiled_on_test)
    run = Run("prune_env/Digits-v0", {"train_size": 40, "budget": 1.0, "model": "mlp:4"}, "full", seed=0)
    found = episode.play(run, run.make_env())["results"]
    assert (found["nonfinite"], found["diverged"]) == (0, False)
    assert (found["test_nonfinite"], found["test_accuracy"]) == (497, 0.0)
    assert math.isfinite(found["test_loss"])


# ---------------------------------------------------------------- few samples, a class without any


@pytest.mark.parametrize("n", [1, 2, 3])
def test_data_of_few_samples_train(n):
    """Down to a single one, of one of three classes."""
    ours = trainer(toy(n), budget=9.0)
    finished = False
    while not finished:
        result = run(ours, np.ones(n), 0.25 * (ours.step % 2), np.ones(n))
        assert result.nonfinite == 0
        assert_finite(ours, result)
        finished = result.finished
    assert ours.ledger.affordable < ours.batch_size


@pytest.mark.parametrize("agent", ["learned", "ccs", "same_amounts:infobatch"])
def test_a_class_that_wrong_labels_leave_empty_does_no_harm(agent):
    env = digits(train_size=10, batch_size=5, label_noise=1.0, task_seed=0, budget=8.0)
    act, rng = make(agent), np.random.default_rng(0)
    observation, _ = env.reset(seed=0)
    assert len(set(observation["label"].tolist())) < 10
    terminated = False
    while not terminated:
        observation, reward, terminated, _, info = env.step(act(observation, rng))
        assert env.observation_space.contains(observation)
        assert (math.isfinite(reward), info["nonfinite"]) == (True, 0)
        assert np.isfinite(extract_features(observation)).all()


@pytest.mark.parametrize("spec", ["infobatch:anneal=0", "repb"])
def test_among_equals_nobody_is_below_the_mean(spec):
    """However the mean of equal losses is rounded."""
    rng = np.random.default_rng(0)
    for n in range(1, 60):
        loss = np.full(n, rng.choice([rng.uniform(0, 100), 1e-45, 100.0]), np.float32)
        observation = {"loss": loss, "visits": np.ones(n, np.float32), "spent": np.zeros(1, np.float32)}
        agent = make(spec)
        for _ in range(3):
            np.testing.assert_array_equal(agent(observation, rng)["weight"], np.ones(n))
