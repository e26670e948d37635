"""Runs in fresh and forked processes and in threads, and the global generators, which nothing may touch."""

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
from tests.helpers import runs
from tests.helpers.reference import toy
from tests.helpers.runs import same

EPISODES = """
import hashlib
import gymnasium as gym, numpy as np, torch
import prune_env
torch.set_num_threads(1)
for seed, model in [(0, "mlp"), (1, "mlp"), (0, "convnet:4-4-4")]:
    env = gym.make("prune_env/Digits-v0", train_size=150, budget=2.0, label_noise=0.1, model=model)
    rng = np.random.default_rng(0)
    observation, info = env.reset(seed=seed)
    digest, done = hashlib.sha256(), False
    while not done:
        for name in sorted(observation):
            digest.update(observation[name].tobytes())
        digest.update(repr(sorted(info.items())).encode())
        weight = rng.uniform(0.5, 2, 150) * (rng.random(150) < 0.64)
        action = prune_env.select(weight, 0.5 * (rng.random(150) < 0.2), rng.random(150) < 0.1)
        observation, reward, done, _, info = env.step(action)
    for values in env.unwrapped.trainer.model.state_dict().values():
        digest.update(values.numpy().tobytes())
    print(digest.hexdigest())
"""


def start(hash_seed: str) -> subprocess.Popen:
    environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
    command, root = [sys.executable, "-c", EPISODES], Path(__file__).parents[2]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment, cwd=root)


def test_processes_agree_bit_for_bit_whatever_the_hash_seed():  # several seconds: each imports torch
    processes = [start("0"), start("4294967295")]
    outputs = [process.communicate(timeout=300)[0].split() for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert outputs[0] == outputs[1]
    assert len(outputs[0]) == len(set(outputs[0])) == 3


# ---------------------------------------------------------------- global generators, and threads


def episode(env: gym.Env, act: Callable[[Any, np.random.Generator], Any], seed: int) -> list:
    """What an agent sees from the first step to the last."""
    observation, _ = env.reset(seed=seed)
    rng, done = np.random.default_rng([seed, 1]), False
    seen: list = [observation]
    while not done:
        observation, _, done, *_ = env.step(act(observation, rng))
        seen.append(observation)
    return seen


def digits(seed: int = 0) -> list:
    """A run of an agent of ours that draws, blends and remembers."""
    return episode(runs.digits(train_size=60, budget=1.5), agents.make("ucb:keep=0.4+mixup=0.5"), seed)


def dropout(seed: int = 0) -> list:
    """A student that draws random numbers in training, and augmented images."""
    train = toy(24, channels=3, size=16, augment=True)
    student = runs.trainer(train, seed=seed, model=runs.DROPOUT, batch_size=12)
    results = [runs.run(student, np.ones(24, bool), 0.1) for _ in range(2)]
    return [vars(result) for result in results] + [student.model.state_dict()]


def vector(seed: int = 0) -> list:
    """Members that train at once, seen in summaries, chosen for by rules, and reset on the way."""
    env = gym.make_vec("prune_env/DigitsSummary-v0", num_envs=2, train_size=[60, 40], budget=[1.2, 1.5])
    rng, seen = np.random.default_rng(0), [env.reset(seed=seed)[0]]
    for _ in range(6):
        seen += env.step(rng.uniform(-1, 1, (2, 12)))[:2]
    return seen


RUNS = [digits, dropout, vector]


@pytest.mark.parametrize("run", RUNS)
def test_the_global_generators_are_neither_read_nor_written(run: Callable[..., list]):
    results = []
    for seed in (1, 2):  # another global state must change nothing
        torch.manual_seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        random.seed(seed)
        before = torch.get_rng_state(), np.random.get_state(), random.getstate()  # noqa: NPY002
        results.append(run())
        assert torch.equal(torch.get_rng_state(), before[0])
        np.testing.assert_equal(np.random.get_state(), before[1])  # noqa: NPY002
        assert random.getstate() == before[2]
    assert same(*results)
    assert not same(results[0], run(1))  # the seed decides


@pytest.mark.parametrize("run", [digits, dropout])
def test_another_thread_at_the_global_generators_changes_nothing(run: Callable[..., list]):
    """So they are not seeded for a moment and put back either."""
    calm, stop, turns = run(), threading.Event(), [0]

    def hammer() -> None:
        while not stop.is_set():
            torch.manual_seed(turns[0])
            np.random.seed(turns[0] % 1000)  # noqa: NPY002
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
    assert same(calm, disturbed)


def test_two_runs_in_two_threads_are_those_of_one_after_the_other():
    alone = [run(1) for run in RUNS]
    with ThreadPoolExecutor(2) as threads:
        futures = [threads.submit(run, 1) for run in RUNS]
        assert same(alone, [future.result() for future in futures])


# ---------------------------------------------------------------- processes that are forked


def _go_on(env: PruneEnv, connection: Any = None) -> list:
    """Two more steps of an environment."""
    rng = np.random.default_rng(3)
    seen = [env.step(select(rng.random(100) < 0.6, 0.25)) for _ in range(2)]
    if connection is not None:
        connection.send(seen)
    return seen


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_forked_child_goes_on_with_the_numbers_of_its_parent():
    """Promised for one thread, as here; see test_faults for the threads that a parent had started."""
    assert torch.get_num_threads() == 1
    env = runs.digits()
    env.reset(seed=0)
    env.step(select(np.ones(100)))
    context: Any = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_go_on, args=(env, theirs))
    process.start()
    theirs.close()
    try:
        assert ours.poll(120), "the forked child says nothing"
        assert same(ours.recv(), _go_on(env))
    finally:
        process.kill()
        process.join()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_an_async_vector_env_has_the_numbers_of_a_loop():
    """Single environments in their own processes, one of them beyond the end of its episode."""
    makers = [lambda: runs.digits(budget=1.5)] * 2
    several = AsyncVectorEnv(makers, context="fork", autoreset_mode=AutoresetMode.NEXT_STEP)
    try:
        alone = [maker() for maker in makers]
        batch, _ = several.reset(seed=[5, 9])  # pyright: ignore[reportArgumentType]
        rows, done = [env.reset(seed=seed)[0] for env, seed in zip(alone, (5, 9), strict=True)], [False, False]
        rng, ends = np.random.default_rng(0), 0
        for _ in range(5):
            for k, row in enumerate(rows):
                assert same({name: batch[name][k] for name in row}, row)
            actions = [select(rng.random(100) < (0.5, 0.9)[k], 0.1) for k in range(2)]
            stacked = {name: np.stack([action[name] for action in actions]) for name in actions[0]}
            batch, rewards, ended, _, _ = several.step(stacked)
            for k, env in enumerate(alone):
                if done[k]:
                    rows[k], reward, done[k] = env.reset()[0], 0.0, False
                else:
                    rows[k], reward, done[k], *_ = env.step(actions[k])
                assert (rewards[k], ended[k]) == (reward, done[k])
            ends += sum(done)
        assert ends > 1
    finally:
        several.close(terminate=True)
