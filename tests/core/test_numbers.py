"""Numbers at their worst: logits that are not finite, statistics at their bounds, one sample, none, 2**24 and more.

A row whose logits are not finite is counted (`nonfinite`), never measured and never right; a single one is divergence,
which ends the episode and leaves nothing behind. Rows are spoiled by hooks on the student, by weights that are no
numbers, and by learning rates that really diverge. What was finite is told by what the student put out, row by row.

Elsewhere: divergence of single students in test_trainer and test_score, with others in test_batched_mlp, test_vector;
wrong actions in test_selection; encodings of hostile statistics in test_features.
"""

import copy
import functools
import itertools
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from fractions import Fraction
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

from agents import AGENTS, make, spec_with_keep
from prune_env import PruneEnv, sampling, select, selection, stats, trainer
from prune_env.budget import Ledger
from prune_env.data import Data
from prune_env.env import observations
from prune_env.policy import features, rules
from prune_env.policy.vector import PruneVectorEnv
from prune_env.selection import Selection
from prune_env.stats import Stats
from prune_env.students.batched_mlp import train_epochs
from prune_env.trainer import EpochResult, Evaluation, Trainer
from tests.core.test_env import equal, equal_traces, play
from tests.helpers.reference import SlowStats, toy
from tests.policy.test_vector import equal as nearly_equal
from tests.policy.test_vector import everything, trainers
from tests.students.test_batched_mlp import student
from train.execution import run as episode
from train.execution.run import Run

MANY = 2**24 + 5  # float32 does not count so far
NOT_FINITE = [math.nan, math.inf, -math.inf]
TASK: dict[str, Any] = {"train_size": 100, "budget": 3.0, "batch_size": 16}


class Watched:
    """What a student puts out, with chosen rows spoiled on the way; these pass no gradient on.

    Args:
        student: watched from now on.
        measures: how many rows its next step scores before it validates.
        value: what the first logit of spoiled rows becomes.
        spoil: for "trained", "scored" and "validated", which rows of that phase are spoiled, counted from 0.
    """

    def __init__(
        self,
        student: Trainer,
        measures: int = 0,
        value: float = math.nan,
        spoil: Mapping[str, Sequence[int]] | None = None,
    ):
        self.logits: dict[str, list[torch.Tensor]] = {"trained": [], "scored": [], "validated": []}
        self.measures, self.value, self.spoil = measures, value, spoil or {}
        student.model.register_forward_hook(self._see)

    def _see(self, module: torch.nn.Module, args: Any, out: torch.Tensor) -> torch.Tensor:
        later = "scored" if sum(map(len, self.logits["scored"])) < self.measures else "validated"
        phase = "trained" if module.training else later
        start = sum(map(len, self.logits[phase]))
        rows = range(start, start + len(out))
        sick = torch.tensor([row in self.spoil.get(phase, []) for row in rows])
        first = torch.arange(out.shape[1]) == 0
        out = torch.where(sick[:, None] & first, self.value, out)
        out = torch.where(sick[:, None], out.detach(), out)
        self.logits[phase].append(out.detach().float().clone())
        return out

    def rows(self, phase: str) -> np.ndarray:
        """(rows, C) of all that was put out in a phase."""
        return np.concatenate([logits.numpy() for logits in self.logits[phase]] or [np.empty((0, 0))])

    def nonfinite(self) -> int:
        return sum(not all(map(math.isfinite, row)) for phase in self.logits for row in self.rows(phase).tolist())


def assert_finite(student: Trainer, result: EpochResult) -> None:
    """Everything that leaves a step, within its bounds."""
    assert all(map(math.isfinite, asdict(result).values()))
    assert 0.0 <= result.val_loss <= stats.MAX_LOSS
    assert min(result.val_accuracy, result.train_accuracy) >= 0.0
    assert max(result.val_accuracy, result.train_accuracy) <= 1.0
    space = observations(student.ledger.n, len(student.train_data.classes), student.ledger.budget)
    assert space.contains({**student.observe(), "label": student.train_data.labels.numpy()})


# ---------------------------------------------------------------- rows that are not finite


WHO = {  # of 20 rows trained on in batches of 8, 10 scored, 12 validated
    "one": {"trained": [9], "scored": [3], "validated": [11]},
    "the last": {"trained": [19], "scored": [9], "validated": [0]},
    "a batch": {"trained": range(8, 16), "scored": range(10), "validated": range(12)},
    "all": {"trained": range(20), "scored": range(10), "validated": range(12)},
    "none": {"trained": [], "scored": [], "validated": []},
}


@pytest.mark.parametrize("value", NOT_FINITE)
@pytest.mark.parametrize("who", WHO)
@pytest.mark.parametrize("phases", [["trained"], ["scored"], ["validated"], ["trained", "scored", "validated"]])
def test_rows_that_are_not_finite_are_counted_and_reach_nothing(phases, who, value):
    ours = student(lr=0.05)
    rng = np.random.default_rng(0)
    chosen = ours.select(select(np.arange(24) < 20, 0.4 * (rng.random(24) < 0.3), np.arange(24) >= 14))
    watched = Watched(ours, 10, value, {phase: WHO[who][phase] for phase in phases})
    result = ours.train_epoch(chosen)
    count = sum(len(WHO[who][phase]) for phase in phases)
    assert result.nonfinite == watched.nonfinite() == count
    assert (result.diverged, result.finished) == (count > 0, count > 0)
    assert (result.trained, result.scored) == (20, 10)  # it was done, and is paid for
    assert ours.ledger.used == 3 * 20 + 10
    assert_finite(ours, result)

    slow, now = SlowStats(24, 3, 0.8), ours.ledger.spent
    labels = ours.train_data.labels.tolist()
    told = [
        slow.visit(i, logits, labels[i], share == 0.0, now)
        for i, share, logits in zip(chosen.indices, chosen.shares, watched.rows("trained"), strict=True)
    ]
    for i, logits in zip(chosen.scored, watched.rows("scored"), strict=True):
        slow.visit(i, logits, labels[i], True, now)
        slow.rows[i]["visits"] -= 1
    expected = slow.observe(now)
    for name, values in ours.stats.observe(now).items():
        np.testing.assert_allclose(values, expected[name], rtol=1e-3, atol=1e-5, err_msg=name)
    finite, measured, right = np.sum(told, axis=0)
    assert finite == 20 - len(WHO[who]["trained"]) * ("trained" in phases)
    assert result.train_accuracy == (right / measured if measured else 0.0)
    truth = ours.val_data.labels.tolist()
    good = [np.isfinite(z).all() and z.argmax() == y for z, y in zip(watched.rows("validated"), truth, strict=True)]
    assert result.val_accuracy == sum(good) / 12


@pytest.mark.parametrize("lr", [1e3, 1e6, 1e15, 1e30, 1e38])
@pytest.mark.parametrize("model", ["mlp:5", "convnet:2-2-2"])
def test_rates_that_diverge(model, lr):
    train = toy(24, 3, 1, 16)
    ours = student(model, train, lr=lr, budget=40.0, warmup=0.0)
    while True:
        watched = Watched(ours)
        result = ours.train_epoch(ours.select(select(np.ones(24, bool))))
        assert result.nonfinite == watched.nonfinite()
        assert result.diverged == (result.nonfinite > 0)
        assert_finite(ours, result)
        if result.finished:
            break
    if lr >= 1e15:  # below that, rounding decides whether all units die instead
        assert result.diverged
        assert ours.ledger.affordable > 8


def test_a_step_whose_own_logits_were_finite_is_found_out_by_its_validation():
    """One batch, and a gradient that is no number."""
    ours = student(batch_size=24)
    last = ours.model.get_parameter("3.bias")
    last.register_hook(lambda gradient: gradient * math.nan)
    result = ours.train_epoch(ours.select(select(np.ones(24, bool), score=np.arange(24) < 5)))
    assert torch.isnan(last).all()
    assert (result.nonfinite, result.diverged) == (5 + 12, True)
    assert (ours.observe()["loss"] != np.float32(math.log(3))).sum() == 24  # as the logits of the training told
    assert_finite(ours, result)


@pytest.mark.parametrize("model", ["mlp:5-4", "convnet:2-2-2", "resnet9:2-2-2-2"])
def test_a_single_weight_that_is_no_number_is_always_noticed(model):
    train = toy(6, 3, 3, 16)
    healthy = student(model, train, toy(4, 3, 3, 16, seed=1), batch_size=6, lr=0.01)
    healthy.train_epoch(healthy.select(select(np.ones(6))))
    for name, values in healthy.model.state_dict().items():
        if values.dtype != torch.float32:
            continue  # the number of batches that batch norm has seen
        ours = copy.deepcopy(healthy)
        with torch.no_grad():
            ours.model.state_dict()[name][(-1,) * values.ndim] = math.nan
        result = ours.train_epoch(ours.select(select(np.zeros(6), score=np.arange(6) < 2)))
        assert (result.nonfinite, result.diverged) == (2 + 4, True), name
        assert_finite(ours, result)


def test_an_infinite_loss_of_finite_logits_is_no_divergence():
    """Its statistics are clipped, its gradient is finite: probabilities minus labels."""
    ours = student(lr=0.01)
    huge = torch.tensor([3e38, 3e38, -3e38])  # whose sum is not finite on the way
    ours.model.register_forward_hook(lambda module, args, out: out * 1e-30 + huge)
    result = ours.train_epoch(ours.select(select(np.ones(24), score=np.arange(24) < 4)))
    assert (result.nonfinite, result.diverged, result.finished) == (0, False, False)
    assert_finite(ours, result)
    of_third = ours.train_data.labels.numpy() == 2
    np.testing.assert_allclose(ours.observe()["loss"], np.where(of_third, 100.0, math.log(2)), rtol=1e-6)
    assert all(torch.isfinite(p).all() for p in ours.model.parameters())


@pytest.mark.parametrize("batch", [[0], [2, 0], list(range(8))])
@pytest.mark.parametrize("value", NOT_FINITE)
def test_what_is_not_finite_is_told_row_by_row(value, batch):
    """Beside rows as large as they can be, by training and by validation alike."""
    rng = np.random.default_rng(0)
    logits = rng.choice(np.array([-3.4e38, -1.0, 0.0, 1e-45, 3.4e38], np.float32), (8, 4))
    logits[batch, rng.integers(0, 4, len(batch))] = value
    z, labels = torch.from_numpy(logits), torch.arange(8) % 4
    finite = np.isfinite(logits).all(axis=1)
    table = Stats(8, 4, 0.8, torch.device("cpu"))
    told = table.update(torch.arange(8), z, labels, torch.ones(8, dtype=torch.bool), 0.5)
    np.testing.assert_array_equal(told[0].numpy(), finite)
    np.testing.assert_array_equal(table.observe(1.0)["age"], np.where(finite, np.float32(0.5), np.float32(1.0)))
    assert trainer.tally(z, labels)[1][0] == finite.sum()
    assert all(np.isfinite(values).all() for values in table.observe(1.0).values())


# ---------------------------------------------------------------- the environment, and what follows


def digits(**settings) -> PruneEnv:
    env = gym.make("prune_env/Digits-v0", disable_env_checker=True, **{**TASK, **settings}).unwrapped
    assert isinstance(env, PruneEnv)
    return env


def running(env: PruneEnv) -> Trainer:
    assert env.trainer is not None
    return env.trainer


def spoiled(env: PruneEnv, sick: str) -> tuple:
    """What the step returns in which training, scoring or validation breaks, or all the weights do."""
    if sick == "weights":
        with torch.no_grad():
            next(iter(running(env).model.parameters())).fill_(math.nan)
    else:
        Watched(running(env), 10, spoil={sick: [4]})
    return env.step(select(np.arange(100) < 40, 0.2, np.arange(100) >= 90))


COUNTS = {"trained": 1, "scored": 1, "validated": 1, "weights": 40 + 10 + 260}


@pytest.mark.parametrize("sick", COUNTS)
def test_divergence_ends_the_episode_and_the_next_is_that_of_a_fresh_environment(sick):
    env = digits(price=0.1)
    _, info = env.reset(seed=5)
    before = info["val_accuracy"]
    *_, info = env.step(select(np.arange(100) < 40))
    assert (info["nonfinite"], info["diverged"]) == (0, False)
    before = info["val_accuracy"]
    observation, reward, terminated, truncated, info = spoiled(env, sick)
    assert (terminated, truncated, info["diverged"], info["nonfinite"]) == (True, False, True, COUNTS[sick])
    assert type(info["nonfinite"]) is np.int64
    assert env.observation_space.contains(observation)
    assert all(np.isfinite(values).all() for values in observation.values())
    assert reward == pytest.approx((info["val_accuracy"] - before) / 3.0 - 0.1 * (0.4 + 0.1 / 3), abs=1e-12)
    with pytest.raises(gym.error.ResetNeeded):
        env.step(select(np.ones(100)))
    equal_traces(play(env, seed=7), play(digits(price=0.1), seed=7))
    # without a seed the next run follows from the last one, whatever became of it
    env.reset(seed=5)
    spoiled(env, sick)
    calm = digits(price=0.1)
    calm.reset(seed=5)
    equal_traces(play(env, seed=None), play(calm, seed=None))


def test_a_rate_that_diverges_does_so_in_every_episode_alike():
    env = digits(lr=1e30)
    first, fresh = play(env, seed=3), play(digits(lr=1e30), seed=4)
    assert first[-1][4]["diverged"]
    equal_traces(play(env, seed=4), fresh)
    assert fresh[-1][4]["nonfinite"] >= 260  # all of validation


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
    monkeypatch.undo()
    assert episode.play(run, run.make_env())["results"]["test_nonfinite"] == 0


# ---------------------------------------------------------------- beside others


def vector(num_envs: int = 3, **settings) -> PruneVectorEnv:
    task = {"train_size": 40, "budget": 4.0, "batch_size": 16, "model": "mlp:8"}
    env = gym.make_vec("prune_env/Digits-v0", num_envs=num_envs, **{**task, **settings})
    assert isinstance(env, PruneVectorEnv)
    return env


@pytest.mark.parametrize("model", ["mlp:8", "convnet:2-2-2"])
def test_the_others_are_not_touched_by_one_whose_weights_are_no_numbers(model):
    env, calm = vector(model=model, budget=6.0), vector(model=model, budget=6.0)
    actions = everything(env)
    actions["score"][:, :7] = 1.0
    env.reset(seed=0)
    calm.reset(seed=0)
    for step in range(4):
        if step == 1:
            with torch.no_grad():
                for p in trainers(env)[1].model.parameters():
                    p.fill_(math.nan)
        ours, theirs = env.step(actions), calm.step(actions)
        assert ours[2].tolist() == ours[4]["diverged"].tolist() == [False, step == 1, False]
        assert env.observation_space.contains(ours[0])
        assert np.isfinite(ours[1]).all()
        for k in (0, 2):
            for name in ours[0]:
                if step < 2 or model != "mlp:8":  # the same number of students, or one after another
                    np.testing.assert_array_equal(ours[0][name][k], theirs[0][name][k])
                else:
                    nearly_equal(ours[0][name][k], theirs[0][name][k])
            assert ours[1][k] == pytest.approx(theirs[1][k], abs=1e-6)
        if step == 2:  # the sick one starts anew, as a fresh environment does
            single = PruneEnv(train_size=40, budget=6.0, batch_size=16, model=model)
            single.reset(seed=1)
            fresh, _ = single.reset()
            equal({name: values[1] for name, values in ours[0].items()}, fresh)
        else:
            sick = 40 + 7 + 260 if step == 1 else 0
            assert ours[4]["nonfinite"].tolist() == [0, sick, 0]
            assert ours[4]["nonfinite"].dtype.kind == "i"


def test_the_others_are_not_touched_by_one_whose_rows_break():
    """Convolutional students train in turn, so that a hook can spoil rows of one of them."""
    env, calm = (vector(model="convnet:2-2-2") for _ in range(2))
    env.reset(seed=0)
    calm.reset(seed=0)
    Watched(trainers(env)[1], spoil={"trained": [3, 30], "validated": range(5)})
    ours, theirs = env.step(everything(env)), calm.step(everything(calm))
    assert ours[4]["nonfinite"].tolist() == [0, 7, 0]
    assert ours[2].tolist() == [False, True, False]
    for k in (0, 2):
        equal(*({name: values[k] for name, values in each[0].items()} for each in (ours, theirs)))
        assert ours[1][k] == theirs[1][k]


@pytest.mark.filterwarnings("error")
def test_students_count_together_what_they_count_alone():
    """What breaks in a student of a stack cannot be hooked: rates that diverge, weights that are no numbers."""
    lrs = [0.1, 1e30, 0.05, 1e20, 1e300, 0.1]  # one that float32 does not hold
    students = [student(seed=k, lr=lr, budget=9.0) for k, lr in enumerate(lrs)]
    with torch.no_grad():
        for value, k in ((math.nan, 2), (math.inf, 5)):
            students[k].model.get_parameter("3.bias")[1] = value
    alone = copy.deepcopy(students)
    for _ in range(3):
        actions = [select(np.arange(24) < 21, 0.0, np.arange(24) < 3) for _ in students]
        chosen = [s.select(action) for s, action in zip(students, actions, strict=True)]
        watched = [Watched(s) for s in alone]
        together_ = train_epochs(students, chosen)
        apart = [s.train_epoch(c) for s, c in zip(alone, chosen, strict=True)]
        assert [r.nonfinite for r in together_] == [r.nonfinite for r in apart] == [w.nonfinite() for w in watched]
        for s, result in zip(students, together_, strict=True):
            assert result.diverged == (result.nonfinite > 0)
            assert_finite(s, result)
        going = [k for k, result in enumerate(together_) if not result.finished]
        students, alone = [students[k] for k in going], [alone[k] for k in going]
    assert len(students) == 1


# ---------------------------------------------------------------- more samples than float32 counts


def told_of_many(*rows: int):
    """In place of `Stats.update`: so many rows at a time, all measured and right; one row stands for them."""
    left = iter(rows)
    return lambda *args, **kwargs: torch.full((3, 1), next(left))


def test_rows_are_counted_exactly(monkeypatch):
    """2**24 and then some: in float32 the few would be lost, and their loss taken for divergence."""
    ours = student(batch_size=8)
    monkeypatch.setattr(trainer, "PENDING_LOGITS", 1)  # each batch's statistics by themselves
    monkeypatch.setattr(ours.stats, "update", told_of_many(2**24, 1, 1))
    assert ours._train(ours.fit(ours.select(select(np.ones(24))))).tolist() == [2**24 + 2] * 3
    monkeypatch.setattr(trainer, "EVALUATION_BATCH", 8)
    monkeypatch.setattr(ours.stats, "update", told_of_many(2**24, 1, 1))
    assert ours.score(ours.fit(ours.select(select(np.zeros(24), score=np.ones(24))))).tolist() == [2**24 + 2]


def test_results_of_more_rows_than_float32_counts():
    """What was counted on the device, as the host sees it: one row of 2**24 + 1 was not finite."""
    ours = student(val=toy(12))
    ours.ledger = Ledger(MANY, 1.0)
    rows = np.broadcast_to(np.int64(0), 2**24 + 1)
    chosen = Selection(
        rows, np.broadcast_to(np.float32(1), len(rows)), rows, np.broadcast_to(np.float32(0), len(rows)), rows[:3]
    )
    epoch = ours.fit(chosen)
    assert (len(epoch.rows), len(epoch.rows.scored)) == (2**24 + 1, 3)
    result = ours.charge(epoch, [2**24, 2**24, 2**24 - 1, 3, 12, 4, 4, 4, 1, 2, 3], 6.0, [0.0] * 3)
    assert (result.nonfinite, result.diverged, result.trained) == (1, True, 2**24 + 1)
    assert (result.val_accuracy, result.val_loss, result.train_accuracy) == (0.5, 0.5, (2**24 - 1) / 2**24)
    assert result.spent == (3 * (2**24 + 1) + 3) / (3 * MANY)
    assert ours.ledger.affordable == 3


@pytest.mark.parametrize("n", [MANY, 10**8])
def test_a_budget_of_many_samples_loses_none(n):
    for hundredths in range(1, 30_000, 7):
        ledger = Ledger(n, hundredths / 100)
        assert ledger.total == Fraction(hundredths, 100) * n * 3 // 1
        ledger.train = ledger.affordable
        assert 0 <= ledger.total - ledger.used < 3
        assert ledger.share <= 1.0
    ledger = Ledger(n, 2.0, train=n, score=n - 1)
    assert (ledger.affordable, ledger.used) == ((2 * n + 1) // 3, 4 * n - 1)
    assert ledger.spent == pytest.approx((4 * n - 1) / (3 * n), rel=1e-15)


FEW = np.array([0, 5, 2**24 - 1, 2**24, 2**24 + 1, MANY - 1])


def test_actions_on_many_samples():
    action = select(FEW, 0.25, n=MANY)
    assert np.flatnonzero(action["weight"]).tolist() == FEW.tolist()
    thin = {name: np.broadcast_to(np.float32(0), MANY) for name in ("mixup", "score")}
    thin["weight"] = action["weight"]
    thin["weight"][2**24 + 1] = -1.0
    with pytest.raises(ValueError, match=rf"weight'\]\[{2**24 + 1}\] is -1"):
        selection.check(thin, MANY)
    with pytest.raises(ValueError, match=rf"index {MANY} is not among"):
        select(np.append(FEW, MANY), n=MANY)


def test_rows_of_many_samples():
    weight = np.zeros(MANY, np.float32)
    weight[FEW] = FEW % 7 + 1
    zero, quarter = (np.broadcast_to(np.float32(x), MANY) for x in (0.0, 0.25))
    rows = Selection.from_action({"weight": weight, "mixup": quarter, "score": zero}, np.random.default_rng(0))
    assert sorted(rows.indices) == FEW.tolist()
    np.testing.assert_array_equal(rows.weights, rows.indices % 7 + 1)
    assert not set(rows.partners) & set(FEW)
    rows = Selection.from_action({"weight": zero, "mixup": zero, "score": weight}, np.random.default_rng(1))
    assert (len(rows), sorted(rows.scored)) == (0, FEW.tolist())


def test_statistics_of_many_samples():
    """Of the table only the pages that are touched take memory."""
    table = Stats(1, 3, 0.5, torch.device("cpu"))
    table.table = torch.from_numpy(np.zeros((MANY, len(stats.COLUMNS)), np.float32))
    rows = torch.from_numpy(FEW)
    logits = torch.eye(6)[:, :3]
    for visit in range(2):
        told = table.update(
            rows, logits, torch.zeros(6, dtype=torch.int64), torch.ones(6, dtype=torch.bool), 1.0 + visit
        )
        assert told[0].tolist() == [True] * 6
    assert table.visits(rows).tolist() == [2] * 6
    assert table.visits(rows + torch.tensor([1, 1, -1, 3, 1, -1])).tolist() == [0] * 6
    slow = SlowStats(1, 3, 0.5)
    slow.rows[0] |= {"loss": 0.0, "loss_mean": 0.0, "measured": 0.0}
    for visit in range(2):
        slow.visit(0, logits[0].numpy(), 0, True, 1.0 + visit)
    first, last = table.table[0], table.table[MANY - 1]
    for name in ("loss", "loss_mean", "loss_var", "margin", "el2n", "visits"):
        assert first[stats.COLUMNS.index(name)] == pytest.approx(slow.rows[0][name], abs=1e-6)
    torch.testing.assert_close(last, table.table[FEW[3]])


@pytest.mark.parametrize("k", [0, 1, 2**24 + 1, MANY])
def test_draws_from_many_samples_have_their_size(k):
    """More samples than there are float32 numbers in [0, 1): the equals among the keys are drawn, too."""
    mask = sampling.uniform(MANY, k, np.random.default_rng(0))
    assert mask.shape == (MANY,)
    assert np.count_nonzero(mask) == k
    if k == 2**24 + 1:
        assert 0 < np.count_nonzero(~mask[: MANY // 2]) < 4  # of the four dropped, by this seed


def test_systematic_draws_among_many_samples():
    pi = np.ones(MANY)
    pi[FEW] = 0.5
    mask = sampling.systematic(pi, MANY - 3, np.random.default_rng(0))
    assert np.count_nonzero(mask) == MANY - 3
    assert np.count_nonzero(mask[FEW]) == 3


# ---------------------------------------------------------------- observations at their bounds


BUDGET = 1e6  # the largest there is, and with it the age


def extreme(kind: str, low: float, high: float, n: int, rng: np.random.Generator) -> np.ndarray:
    """(n,) a statistic within its bounds; 1e-45 is the smallest number above 0 in float32."""
    middle = low / 3 + high * 2 / 3
    return {
        "zero": np.zeros(n),
        "lowest": np.full(n, low),
        "highest": np.full(n, high),
        "denormal": np.full(n, 1e-45),
        "zero or denormal": rng.choice([0.0, 1e-45, 3e-45], n),
        "at either bound": rng.choice([low, high], n),
        "constant": np.full(n, middle),
        "one above the others": np.where(np.arange(n) == n - 1, high, middle),
        "one below the others": np.where(np.arange(n) == 0, low, middle),
        "neighbours": np.where(
            rng.random(n) < 0.5, np.float32(middle), np.nextafter(np.float32(middle), np.float32(0))
        ),
        "of every size": rng.choice([low, 1e-45, 1e-20, middle, high], n),
    }[kind]


KINDS = [
    "zero",
    "lowest",
    "highest",
    "denormal",
    "zero or denormal",
    "at either bound",
    "constant",
    "one above the others",
    "one below the others",
    "neighbours",
    "of every size",
]
VISITS = {
    "never": lambda n: 0 * n,
    "all": lambda n: 0 * n + 1,
    "some": lambda n: n % 2,
    "often": lambda n: 0 * n + 2**24,
}


@functools.cache
def observe(kind: str, visits: str, n: int, spent: float) -> dict[str, np.ndarray]:
    """Of up to three of five classes; the others have no samples. Nobody may write into it."""
    rng = np.random.default_rng([KINDS.index(kind), len(visits), n])
    bounds = {**stats.BOUNDS, "age": (0.0, BUDGET)}
    values = {name: extreme(kind, *bound, n, rng) for name, bound in bounds.items()}
    values["visits"] = VISITS[visits](np.arange(n))
    values |= {"spent": [spent], "budget": [BUDGET], "val_accuracy": rng.choice([0, 1e-45, 1], 1)}
    values |= {"train_accuracy": rng.choice([0, 1e-45, 1], 1)}
    observation = {name: np.asarray(value, np.float32) for name, value in values.items()}
    observation["label"] = rng.choice([0, 2, 4], n)
    for value in observation.values():
        value.flags.writeable = False
    return observation


VARIANTS = [
    *AGENTS,
    "random:fresh=True",
    "epsilon_greedy:epsilon=1.0",
    "epsilon_greedy:period=0",
    "ucb:c=1e30,period=0",
    "ucb1:c=1e30,period=0",
    "swdpp:tau=0",
    "swdpp:tau=0.001,reweight=True",
    "swdpp:dynamics=False",
    "infobatch:r=0.9,anneal=0",
    "orderdp:pool=1",
    "middle:width=0.001",
    "seta:r=0,window=0.6,anneal=0",
    "seta:groups=50,window=0.01",
    "kakurenbo:hide=0.9,confidence=0",
    "kakurenbo:nominal=True",
    "repb:rho=0.9",
    "ccs:beta=0.9,strata=3",
    "rule:loss=1,middle=1,volatility=1,age=1,randomness=-1,weighting=-1,mixup=1",
    "rule:loss=-1,middle=-1,volatility=-1,age=-1,randomness=1,weighting=1",
    "same_amounts:infobatch",
    "same_amounts:grand",
    "same_amounts:kakurenbo",
    "ucb+mixup=1+anneal=0.125",
    "kakurenbo+mixup=1",
]


def test_observations_at_their_bounds_lie_in_the_space():
    space = observations(7, 5, BUDGET)
    for kind in KINDS:
        for visits in VISITS:
            assert space.contains(observe(kind, visits, 7, 1.0))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("spec", VARIANTS)
def test_agents_act_on_whatever_lies_within_the_bounds(spec):
    """From the first step to the last, keeping one sample, some or all of 1, 2, 3 and 7."""
    smallest = 0.1 if spec.startswith("rule") else 1e-9
    for n, keep, kind in itertools.product((1, 2, 3, 7), (smallest, 1.0), KINDS):
        agent, rng = make(spec_with_keep(spec, keep)), np.random.default_rng(n)
        for visits, spent in zip(VISITS, (0.0, 0.3, 0.5, 1.0), strict=True):
            observation = observe(kind, visits, n, spent)
            with np.errstate(over="raise", divide="raise", invalid="raise"):
                action = selection.check(agent(observation, rng), n)
            assert action["weight"].any() or action["score"].any()  # else the run would end


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


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("n", [1, 2, 3, 7])
def test_encodings_of_whatever_lies_within_the_bounds(n):
    rng = np.random.default_rng(n)
    for kind, visits in itertools.product(KINDS, VISITS):
        past = features.initial_history()
        for spent in (0.0, 1e-45, 0.5, 1.0):
            observation = observe(kind, visits, n, spent)
            with np.errstate(over="raise", divide="raise", invalid="raise"):
                summary, past = features.extract_features(observation, past), features.update_history(past, observation)
                numbers = rng.choice([-1.0, -1e-45, 0.0, 0.3, 1.0], len(rules.RULE_PARAMETERS))
                action = rules.apply_rule(observation, numbers, rng.choice([0.0, 0.5, 1 - 2**-53], (n, 2)))
            assert np.abs(summary).max() <= 1.0  # false for a NaN
            assert np.isfinite(past).all()
            selection.check(action, n)
            assert np.count_nonzero(action["weight"]) == max(1, round(0.1 ** ((1 - numbers[0]) / 2) * n))


# ---------------------------------------------------------------- none, one and all; a class without samples


@pytest.mark.parametrize("n", [1, 2, 3, 40])
def test_none_one_and_all(n):
    rng = np.random.default_rng(0)
    for k in {0, 1, n}:
        scores = rng.choice(np.array([0.0, 1e-45, 1e38], np.float32), n)
        mask = sampling.top_k_mask(scores, k, rng)
        assert sorted(scores[mask].tolist()) == sorted(scores.tolist())[n - k :]
        for drawn in (sampling.uniform(n, k, rng), sampling.fill(np.zeros(n, bool), k, rng), mask):
            assert np.count_nonzero(drawn) == k
            by_mask, by_index = select(drawn, 0.5), select(np.flatnonzero(drawn), 0.5, n=n)
            equal(by_mask, by_index)
            rows = Selection.from_action(by_mask, rng)
            assert (len(rows), rows.mixed) == (k, k)
            assert sorted(rows.indices) == np.flatnonzero(drawn).tolist()
            others = np.flatnonzero(~drawn) if k < n else np.arange(n)
            assert set(rows.partners) <= set(others)
        assert np.count_nonzero(sampling.systematic(np.full(n, k / n), k, rng)) == k


@pytest.mark.parametrize("model", ["mlp:8", "convnet:2-2-2"])
@pytest.mark.parametrize("score", [0, 1, 40])
@pytest.mark.parametrize("k", [0, 1, 40])
def test_steps_on_none_one_and_all(k, score, model):
    env = digits(train_size=40, model=model, budget=3.0)
    before, info = env.reset(seed=0)
    weights = copy.deepcopy(running(env).model.state_dict())
    observation, reward, terminated, _, after = env.step(select(np.arange(40) < k, 0.5, np.arange(40) < score))
    assert (after["trained"], after["mixed"], after["scored"], after["nonfinite"]) == (k, k, score, 0)
    assert after["spent"] == pytest.approx((k + score / 3) / 40)
    assert (terminated, after["diverged"]) == (k + score == 0, False)
    assert reward == (after["val_accuracy"] - info["val_accuracy"]) / 3.0
    assert env.observation_space.contains(observation)
    np.testing.assert_array_equal(observation["visits"], np.arange(40) < k)
    np.testing.assert_array_equal(observation["loss"] != before["loss"], np.arange(40) < score)  # mixed is not measured
    same = all(torch.equal(p, weights[name]) for name, p in running(env).model.state_dict().items())
    assert same == (k == 0)


@pytest.mark.parametrize("n", [1, 2, 3])
def test_data_of_few_samples_train(n):
    """Down to a single one, of one of three classes."""
    for weight in (np.ones(n), np.arange(n) < 1):
        ours = student(train=toy(n), budget=9.0)
        while True:
            watched = Watched(ours)
            result = ours.train_epoch(ours.select(select(weight, 0.25 * (ours.step % 2), np.ones(n))))
            assert result.nonfinite == watched.nonfinite() == 0
            assert_finite(ours, result)
            if result.finished:
                break
        assert ours.ledger.affordable < ours.batch_size


def test_a_class_that_would_be_empty_is_refused():
    with pytest.raises(ValueError, match=r"imbalance=1000000.0 leaves class \d empty: use \d+ or less") as said:
        PruneEnv(imbalance=1e6)
    largest = float(re.findall(r"use (\d+)", str(said.value))[0])
    labels = PruneEnv(imbalance=largest).train_data.labels
    assert torch.bincount(labels, minlength=10).min() == 1
    with pytest.raises(ValueError, match="leaves class 9 empty"):
        PruneEnv(imbalance=3 * largest)
    with pytest.raises(ValueError, match="train_size=9 must lie between 10"):
        PruneEnv(train_size=9)


@pytest.mark.parametrize("agent", ["learned", "random_rule", "infobatch", "ccs", "same_amounts:infobatch"])
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
        assert np.isfinite(features.extract_features(observation)).all()
