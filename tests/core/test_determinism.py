"""Runs in fresh, forked and spawned processes and in threads, and the global generators, which nothing may touch."""

import multiprocessing
import os
import random
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import AsyncVectorEnv, AutoresetMode

import agents
from prune_env import PruneEnv, select
from prune_env.students.recipes import Recipe
from prune_env.trainer import Trainer
from tests.helpers.reference import toy

EPISODES = """
import hashlib
import gymnasium as gym, numpy as np, torch
import prune_env
torch.set_num_threads(1)
for seed in (0, 1):
    for model in ("mlp", "convnet:4-4-4", "summary"):
        summary = model == "summary"
        name = "DigitsSummary" if summary else "Digits"
        settings = {} if summary else {"model": model}
        env = gym.make(f"prune_env/{name}-v0", train_size=150, budget=2.0, label_noise=0.1, **settings)
        rng = np.random.default_rng(0)
        observation, info = env.reset(seed=seed)
        digest, done = hashlib.sha256(), False
        while not done:
            for name in [] if summary else sorted(observation):
                digest.update(observation[name].tobytes())
            digest.update(observation.tobytes() if summary else b"")
            digest.update(repr(sorted(info.items())).encode())
            weight = rng.uniform(0.5, 2, 150) * (rng.random(150) < 0.64)
            action = prune_env.select(weight, 0.5 * (rng.random(150) < 0.2))
            observation, reward, done, _, info = env.step(rng.uniform(-1, 1, 8) if summary else action)
        for values in env.unwrapped.trainer.model.state_dict().values():
            digest.update(values.numpy().tobytes())
        print(digest.hexdigest())
"""


def start(hash_seed: str) -> subprocess.Popen:
    environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
    root = Path(__file__).parents[2]
    return subprocess.Popen(
        [sys.executable, "-c", EPISODES], stdout=subprocess.PIPE, text=True, env=environment, cwd=root
    )


def test_processes_agree_bit_for_bit_whatever_the_hash_seed_and_another_seed_differs():
    processes = [start("0"), start("1"), start("4294967295")]
    outputs = [process.communicate(timeout=300)[0].split() for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0]
    assert outputs[0] == outputs[1] == outputs[2]
    assert len(outputs[0]) == len(set(outputs[0])) == 6


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
        trainer.train_epoch(trainer.select(select(np.ones(24, bool), 0.1)))
    trainer.evaluate(trainer.val_data)
    return [p.detach().numpy().copy() for p in trainer.model.parameters()]


def vector(seed: int = 0) -> list[np.ndarray]:
    """Members that train together, seen in summaries, chosen for by rules, and reset on the way."""
    env = gym.make_vec("prune_env/DigitsSummary-v0", num_envs=2, train_size=[60, 40], budget=[1.2, 1.5])
    rng, seen = np.random.default_rng(0), [env.reset(seed=seed)[0]]
    for _ in range(6):
        observations, rewards, *_ = env.step(rng.uniform(-1, 1, (2, 8)))
        seen += [observations, rewards]
    return seen


def agent(seed: int = 0) -> list[np.ndarray]:
    """A run with an agent of ours that draws, blends, and remembers."""
    env = gym.make("prune_env/Digits-v0", train_size=60, budget=1.5)
    chooser, rng = agents.make("ucb:keep=0.4+mixup=0.5"), np.random.default_rng([seed, 1])
    observation, _ = env.reset(seed=seed)
    seen, done = [], False
    while not done:
        observation, _, done, *_ = env.step(chooser(observation, rng))
        seen += list(observation.values())
    return seen


RUNS = [digits, dropout, vector, agent]


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


def same(a: list[np.ndarray], b: list[np.ndarray]) -> None:
    assert len(a) == len(b)
    for x, y in zip(a, b, strict=True):
        np.testing.assert_array_equal(x, y)


def test_two_runs_in_two_threads_are_those_of_one_after_the_other():
    """Each thread starts one kind of run while the other is in the middle of another kind."""
    kinds = [(run, seed) for run in RUNS for seed in (0, 1)]
    alone = [run(seed) for run, seed in kinds]
    with ThreadPoolExecutor(2) as threads:
        for _ in range(2):
            futures = [threads.submit(run, seed) for run, seed in kinds]
            for expected, future in zip(alone, futures, strict=True):
                same(expected, future.result())


def _go_on(env: gym.Env, steps: int, connection: Any = None) -> list[np.ndarray]:
    """So many more steps of an environment of 100 samples."""
    if connection is not None:
        torch.set_num_threads(1)
    rng, seen = np.random.default_rng(3), []
    for _ in range(steps):
        observation, reward, *_ = env.step(select(rng.random(100) < 0.6, 0.25))
        seen += [*observation.values(), np.array(reward)]
    if connection is not None:
        connection.send(seen)
    return seen


def _from_the_start(connection: Any) -> None:
    torch.set_num_threads(1)
    connection.send(digits())


def _in_child(method: str, target: Callable[..., Any], *arguments: Any) -> list[np.ndarray]:
    """What a child process, forked or spawned, sends."""
    context: Any = multiprocessing.get_context(method)
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=target, args=(*arguments, theirs))
    process.start()
    try:
        assert ours.poll(120), f"the {method}ed child says nothing"
        return ours.recv()
    finally:
        process.kill()
        process.join()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_forked_child_goes_on_with_the_numbers_of_its_parent():
    """Promised for one thread, as here: a child hangs that needs the threads which its parent had started."""
    assert torch.get_num_threads() == 1
    env = gym.make("prune_env/Digits-v0", train_size=100, budget=3.0)
    env.reset(seed=0)
    _go_on(env, 1)
    same(_in_child("fork", _go_on, env, 2), _go_on(env, 2))


@pytest.mark.slow
def test_a_spawned_child_has_the_numbers_of_its_parent():
    same(_in_child("spawn", _from_the_start), digits())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_an_async_vector_env_has_the_numbers_of_a_loop():
    """Single environments in processes of their own, one of them beyond the end of its episode."""

    def make(budget: float) -> Callable[[], gym.Env]:
        return lambda: gym.make("prune_env/Digits-v0", train_size=100, budget=budget, disable_env_checker=True)

    makers = [make(1.5), make(1.5)]
    together = AsyncVectorEnv(makers, context="fork", autoreset_mode=AutoresetMode.NEXT_STEP)
    try:
        alone = [maker() for maker in makers]
        batch, _ = together.reset(seed=[5, 9])  # pyright: ignore[reportArgumentType]
        rows, done = [env.reset(seed=seed)[0] for env, seed in zip(alone, (5, 9), strict=True)], [False, False]
        rng, rule, ends = np.random.default_rng(0), ("weight", "mixup", "score"), 0
        for _ in range(5):
            for k, row in enumerate(rows):
                same([batch[name][k] for name in row], list(row.values()))
            actions = [select(rng.random(100) < (0.5, 0.9)[k], 0.1) for k in range(2)]
            batch, rewards, ended, _, _ = together.step({name: np.stack([a[name] for a in actions]) for name in rule})
            for k, env in enumerate(alone):
                if done[k]:
                    rows[k], reward, done[k] = env.reset()[0], 0.0, False
                else:
                    rows[k], reward, done[k], *_ = env.step(actions[k])
                assert (rewards[k], ended[k]) == (reward, done[k])
            ends += sum(done)
        assert ends > 1
    finally:
        together.close(terminate=True)
