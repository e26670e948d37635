"""Runs in fresh processes, and the global generators, which nothing may read or write."""

import os
import random
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch

from prune_env import PruneEnv, select
from prune_env.recipes import Recipe
from prune_env.trainer import Trainer
from tests.reference import toy

EPISODES = """
import hashlib, sys
import gymnasium as gym, numpy as np, torch
import prune_env
torch.set_num_threads(1)
for model in ("mlp", "convnet:4-4-4"):
    env = gym.make("prune_env/Digits-v0", model=model, train_size=150, budget=2.0, label_noise=0.1)
    observation, info = env.reset(seed=int(sys.argv[1]))
    rng, digest, done = np.random.default_rng(0), hashlib.sha256(), False
    while not done:
        for name in sorted(observation):
            digest.update(observation[name].tobytes())
        digest.update(repr(sorted(info.items())).encode())
        weight = rng.uniform(0.5, 2, 150) * (rng.random(150) < 0.64)
        observation, reward, done, _, info = env.step(prune_env.select(weight, 0.5 * (rng.random(150) < 0.2)))
    for values in env.unwrapped.trainer.model.state_dict().values():
        digest.update(values.numpy().tobytes())
    print(digest.hexdigest())
"""


def start(seed: int, hash_seed: str) -> subprocess.Popen:
    environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
    root = Path(__file__).parents[1]
    return subprocess.Popen(
        [sys.executable, "-c", EPISODES, str(seed)], stdout=subprocess.PIPE, text=True, env=environment, cwd=root
    )


def test_processes_with_one_seed_agree_bit_for_bit_and_another_seed_differs():
    processes = [start(0, "1"), start(0, "2"), start(1, "1")]
    outputs = [process.communicate(timeout=300)[0].split() for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0]
    assert [len(output) for output in outputs] == [2, 2, 2]
    assert outputs[0] == outputs[1]
    assert all(a != b for a, b in zip(outputs[0], outputs[2], strict=True))


def digits(seed: int = 0) -> list[np.ndarray]:
    env = gym.make("prune_env/Digits-v0", train_size=100, budget=2.0)
    observation, _ = env.reset(seed=seed)
    rng = np.random.default_rng(0)
    seen, done = [], False
    while not done:
        observation, _, done, *_ = env.step(select(rng.random(100) < 0.6, 0.25))
        seen += list(observation.values())
    core = env.unwrapped
    assert isinstance(core, PruneEnv)
    assert core.trainer is not None
    core.trainer.evaluate(core.val_data)
    env.close()
    return seen


def dropout(seed: int = 0) -> list[np.ndarray]:
    """A student that draws random numbers in training, and augmented images."""
    train = toy(24, channels=3, size=32, augment=True)
    recipe = Recipe("torchvision:mobilenet_v3_small", 12, 0.05, precision="float32")
    trainer = Trainer(train, toy(6, channels=3, size=32), recipe, 2.0, seed)
    assert trainer.masks is not None
    for _ in range(2):
        trainer.run_epoch(trainer.select(select(np.ones(24, bool), 0.1)))
    trainer.evaluate(trainer.val_data)
    return [p.detach().numpy().copy() for p in trainer.model.parameters()]


RUNS = [digits, dropout]


@pytest.mark.parametrize("run", RUNS)
def test_the_global_generators_are_neither_read_nor_written(run: Callable[..., list[np.ndarray]]):
    results = []
    for seed in (1, 2):  # a global state of another kind must change nothing
        torch.manual_seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        random.seed(seed)
        before = torch.get_rng_state(), np.random.get_state(), random.getstate()  # noqa: NPY002
        results.append(run())
        assert torch.equal(torch.get_rng_state(), before[0])
        np.testing.assert_equal(np.random.get_state(), before[1])  # noqa: NPY002
        assert random.getstate() == before[2]
    for a, b in zip(*results, strict=True):
        np.testing.assert_array_equal(a, b)


def test_dropout_masks_follow_the_seed():
    a, b = dropout(0), dropout(1)
    assert any(not np.array_equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("run", RUNS)
def test_another_thread_at_the_global_generators_changes_nothing(run: Callable[..., list[np.ndarray]]):
    calm = run()
    stop, turns = threading.Event(), [0]

    def hammer() -> None:
        while not stop.is_set():
            torch.manual_seed(turns[0])
            torch.rand(3)
            np.random.seed(turns[0] % 1000)  # noqa: NPY002
            np.random.rand(3)  # noqa: NPY002
            random.seed(turns[0])
            turns[0] += 1
            stop.wait(1e-4)

    thread = threading.Thread(target=hammer)
    thread.start()
    try:
        disturbed = run()
    finally:
        stop.set()
        thread.join()
    assert turns[0] > 10
    for a, b in zip(calm, disturbed, strict=True):
        np.testing.assert_array_equal(a, b)
