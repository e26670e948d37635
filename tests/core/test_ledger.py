"""What the ledger says against a hook that counts the rows going through the student, for every agent."""

from collections import Counter

import gymnasium as gym
import numpy as np
import pytest
from torch.nn.modules.module import register_module_forward_hook

from agents import AGENTS, make
from prune_env import PruneEnv, select


def play_and_count(agent, **kwargs) -> tuple[PruneEnv, Counter]:
    """An episode, and rows through the student by its mode: True in training, False in evaluation."""
    passes: list[tuple[object, bool, int]] = []
    hook = register_module_forward_hook(
        lambda module, args, out: passes.append((module, module.training, len(args[0])))
    )
    try:
        env = gym.make("prune_env/Digits-v0", train_size=150, batch_size=16, **kwargs)
        observation, _ = env.reset(seed=0)
        rng = np.random.default_rng(0)
        if hasattr(agent, "reset"):
            agent.reset()
        done = False
        while not done:
            observation, _, done, *_ = env.step(agent(observation, rng))
    finally:
        hook.remove()
    core = env.unwrapped
    assert isinstance(core, PruneEnv)
    assert core.trainer is not None
    rows: Counter = Counter()
    for module, training, count in passes:
        if module is core.trainer.model:
            rows[training] += count
    return core, rows


def mixing(observation, rng):
    """Mixes some of the rows: each still goes through the network once."""
    return select(rng.random(150) < 0.5, 0.5 * (rng.random(150) < 0.5))


def scoring(observation, rng):
    """Scores some of the rows, trained on or not, mixed or not."""
    return {**mixing(observation, rng), "score": rng.random(150) * (rng.random(150) < 0.4)}


OWN = {"mixing": mixing, "scoring": scoring}
SCORE = {"scoring", "grand", "kakurenbo"}  # the others never do


@pytest.mark.parametrize("name", [*AGENTS, *OWN, "kakurenbo+mixup=0.5", "same_amounts:kakurenbo"])
def test_compute_spent_is_what_went_through_the_student(name):
    core, rows = play_and_count(OWN.get(name) or make(name), budget=3.3)
    assert core.trainer is not None
    ledger = core.trainer.ledger
    scored = rows[False] - ledger.evaluate  # in evaluation mode, but not of validation
    assert ledger.train == rows[True]
    assert ledger.score == scored
    assert ledger.spent == pytest.approx((rows[True] + scored / 3) / 150)
    assert (scored > 0) == (name.partition("+")[0] in SCORE)
    assert ledger.evaluate % len(core.val_data) == 0
    assert 3 * rows[True] + scored <= 3 * 495
    assert 3 * 495 - 3 * rows[True] - scored < 3 * 16  # all of the budget is used, but for a part of a batch
    assert core._observe()["spent"][0] == pytest.approx((rows[True] + scored / 3) / 495)


def test_validation_is_counted_apart_and_free():
    core, rows = play_and_count(lambda observation, rng: select(np.arange(150) < 100), budget=2.0)
    assert core.trainer is not None
    assert rows == {True: 300, False: 4 * 260}  # before the run and after each of three steps
    assert core.trainer.ledger.spent == 2.0
    core.trainer.evaluate(core.val_data)
    assert (core.trainer.ledger.spent, core.trainer.ledger.evaluate) == (2.0, 5 * 260)


def test_seconds_are_measured_beside_it():
    core, _ = play_and_count(lambda observation, rng: select(np.ones(150, bool)), budget=2.0)
    assert core.trainer is not None
    seconds = core.trainer.ledger.seconds
    assert set(seconds) == {"train", "score", "evaluate"}
    assert seconds["train"] > 0
    assert seconds["evaluate"] > 0
