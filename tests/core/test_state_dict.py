"""A run goes on from its state, bit for bit; a state of another run, or none at all, is refused."""

import copy
import io
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

from prune_env import select
from tests.helpers.reference import toy
from tests.helpers.runs import DROPOUT, digits, random_action, run, same, trainer
from train.execution.checkpoints import Checkpoint

ENVIRONMENTS: dict[str, dict[str, Any]] = {
    "mlp": {"model": "mlp:8", "render_mode": "rgb_array", "label_smoothing": 0.1, "price": 0.01, "momentum": 0.0},
    "convnet": {"model": "convnet:4-4-4", "render_mode": "ansi"},  # in channels_last, its momentum too
    "adamw": {"model": "convnet:4-4-4", "optimizer": "adamw", "render_mode": "ansi"},
}


@pytest.mark.parametrize("kind", ENVIRONMENTS)
def test_an_environment_goes_on_bit_for_bit(kind, tmp_path):
    """From a file: before the first step, in the middle and before the last; the next run begins alike too."""
    env, other = (digits(train_size=60, **ENVIRONMENTS[kind]) for _ in range(2))
    rng, over = np.random.default_rng(4), False
    seen, _ = env.reset(seed=5)
    observations, actions, steps, checkpoints = [seen], [], [], []
    while not over:
        checkpoints.append(Checkpoint(tmp_path / str(len(steps))))
        checkpoints[-1].save(env.state_dict())
        actions.append(random_action(rng, 60))
        steps.append(env.step(actions[-1]))
        observations.append(steps[-1][0])
        over = steps[-1][2]
    weights, picture = copy.deepcopy(env.state_dict()["trainer"]["model"]), env.render()
    following = env.reset()
    for at in (0, len(steps) // 2, len(steps) - 1):
        other.reset(seed=8 + at)  # whatever it was at before
        assert same(other.load_state_dict(checkpoints[at].load()), observations[at])
        assert same([other.step(action) for action in actions[at:]], steps[at:])
        assert same(other.state_dict()["trainer"]["model"], weights)
        assert same(other.render(), picture)
        assert same(other.reset(), following)


def test_dropout_goes_on_with_its_masks():
    straight, resumed = (trainer(toy(24, 3, 3, 16, augment=True), model=DROPOUT, budget=5.0) for _ in range(2))
    rng, file = np.random.default_rng(0), io.BytesIO()
    actions = [random_action(rng, 24) for _ in range(4)]
    for action in actions[:2]:
        straight.train_epoch(straight.select(action))
    torch.save(straight.state_dict(), file)
    file.seek(0)
    run(resumed, np.ones(24, bool))  # whatever was there is replaced
    resumed.load_state_dict(torch.load(file, weights_only=True))
    for action in actions[2:]:
        assert len({each.train_epoch(each.select(action)) for each in (straight, resumed)}) == 1
    states = [student.state_dict() for student in (straight, resumed)]
    for state in states:
        del state["ledger"]["seconds"]
    assert same(*states)


def test_one_state_starts_several_runs():
    mask = np.arange(24) < 16
    first = trainer(budget=6.0)
    run(first, mask)
    state = copy.deepcopy(first.state_dict())
    outcomes = []
    for _ in range(2):
        resumed = trainer(budget=6.0)
        resumed.load_state_dict(state)
        outcomes.append([run(resumed, mask) for _ in range(2)])
    assert outcomes[0] == outcomes[1]
    assert same(state["model"], first.state_dict()["model"])


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"budget": 5.0}, "a run with budget=4.0; this one has 5.0"),
        ({"lr": 0.123}, "this one has 0.123"),
        ({"label_noise": 0.2}, "a run with data="),
        ({"model": "mlp:9"}, "a run with model='mlp:8'; this one has 'mlp:9'"),
    ],
)
def test_the_state_of_another_run_is_refused_and_changes_nothing(changed, words):
    task = {"model": "mlp:8", "budget": 4.0}
    env, other = digits(**task), digits(**{**task, **changed})
    for seed, each in enumerate((env, other)):
        each.reset(seed=seed)
        each.step(select(np.ones(100)))
    before, trainer = copy.deepcopy(other.state_dict()), other.trainer
    with pytest.raises(ValueError, match=words):
        other.load_state_dict(env.state_dict())
    assert same(other.state_dict(), before)
    assert other.trainer is trainer


def test_students_of_unlike_seeds_refuse_each_others_state():
    with pytest.raises(ValueError, match="seed"):
        trainer(seed=0).load_state_dict(trainer(seed=1).state_dict())


NO_STATES: dict[str, tuple[tuple[Any, ...], Any]] = {  # where something is put, and what
    "None": ((), None),
    "no run": (("trainer", "run"), None),
    "a weight": (("trainer", "model", "1.weight"), torch.ones(1, 64)),
    "NaN": (("trainer", "statistics"), torch.full((100, 11), float("nan"))),
    "no history": (("history",), {}),
    "another generator": (("generator", "bit_generator"), "MT19937"),
}


@pytest.mark.parametrize("kind", NO_STATES)
def test_what_is_no_state_is_refused_and_changes_nothing(kind):
    env = digits(model="mlp:8", render_mode="ansi")
    with pytest.raises(gym.error.ResetNeeded):
        env.state_dict()
    env.reset(seed=5)
    env.step(select(np.arange(100) < 30))
    (*path, last), bad = ["state", *NO_STATES[kind][0]], {"state": copy.deepcopy(env.state_dict())}
    env.step(select(np.arange(100) < 40))
    before, trainer = copy.deepcopy(env.state_dict()), env.trainer
    part = bad
    for name in path:
        part = part[name]
    part[last] = NO_STATES[kind][1]
    with pytest.raises(ValueError, match="state"):
        env.load_state_dict(bad["state"])
    assert env.trainer is trainer
    assert same(env.state_dict(), before)
