"""What a failed step leaves, threads and forks, and other people's tools."""

import copy
import subprocess
import sys
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

from prune_env import data, select
from prune_env.policy.vector import PruneVectorEnv
from tests.helpers.reference import toy
from tests.helpers.runs import digits, run, same, trainer
from train.execution.run import Run, play

SMALL = {"budget": 2.0, "train_size": 60, "batch_size": 16}

# ---------------------------------------------------------------- an error leaves everything as it was


def broken_after(batches: int):
    """In place of `Data.batches`: the image after so many batches cannot be read."""
    real = data.Data.batches

    def read(self: Any, parts: Any):
        for i, batch in enumerate(real(self, parts)):
            if i == batches:
                raise OSError("this image cannot be read")
            yield batch

    return read


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize(("model", "before", "batches"), [("mlp:8", 0, 0), ("mlp:8", 1, 2), ("convnet:2-2-2", 1, 2)])
def test_a_step_that_cannot_read_an_image_changes_nothing(monkeypatch, model, before, batches, optimizer):
    env = digits(model=model, optimizer=optimizer, **SMALL, render_mode="ansi")
    monkeypatch.setattr("prune_env.trainer.FETCHED_PIXELS", 1)
    env.reset(seed=0)
    for _ in range(before):
        env.step(select(np.arange(60) < 20))
    untouched, action = copy.deepcopy(env), select(np.arange(60) < 50, 0.1, np.arange(60) > 50)
    with monkeypatch.context() as patch:
        patch.setattr(data.Data, "batches", broken_after(batches))
        with pytest.raises(OSError, match="this image cannot be read"):
            env.step(action)
    assert same(env.state_dict(), untouched.state_dict())
    assert env.render() == untouched.render()
    assert same(env.step(action), untouched.step(action))


# ---------------------------------------------------------------- figures are of what was trained on


def test_a_record_tells_what_was_trained_on_after_the_budgets_cut():
    run = Run("prune_env/Digits-v0", {"budget": 1.3, "device": "cpu"}, "full", 0)
    record = play(run, run.make_env())
    assert record["curve"]["kept"] == [1.0, pytest.approx(0.3, abs=1e-3)]
    assert record["results"]["kept"] == pytest.approx(0.65, abs=1e-3)
    by_time = [row for row in record["results"]["kept_by_difficulty"] if row is not None]
    assert [np.mean(row) for row in by_time] == pytest.approx([1.0, 0.3], abs=0.01)
    assert record["results"]["sometimes"]["always"] == pytest.approx(0.3, abs=1e-3)


# ---------------------------------------------------------------- threads

FORKS = {
    "AsyncVectorEnv of summaries": """
env = gym.make_vec("prune_env/DigitsSummary-v0", num_envs=2, vectorization_mode="async")
env.reset(seed=0); env.step(env.action_space.sample()); env.close()
""",
    "SubprocVecEnv": """
from stable_baselines3.common.vec_env import SubprocVecEnv
env = SubprocVecEnv([lambda: gym.make("prune_env/DigitsSummary-v0")] * 2, start_method="fork")
env.reset(); env.step(np.zeros((2, *env.action_space.shape))); env.close()
""",
    "ProcessPoolExecutor": """
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
def run(seed):
    env = gym.make("prune_env/Digits-v0", budget=1.0)
    env.reset(seed=seed)
    return env.step(prune_env.select(np.ones(1040)))[1]
with ProcessPoolExecutor(2, multiprocessing.get_context("fork")) as pool:
    assert len(list(pool.map(run, range(2)))) == 2
""",
}


@pytest.mark.slow  # a few seconds each: a process that imports torch, and has threads before it forks
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("forks", FORKS)
def test_a_process_that_forks_after_using_threads_does_not_hang(forks):
    start = """
import gymnasium as gym, numpy as np, torch, prune_env
torch.set_num_threads(4)
torch.randn(2000, 2000) @ torch.randn(2000, 2000)
gym.make("prune_env/Digits-v0", model="mlp:4096").reset(seed=0)
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", start + FORKS[forks]], check=True, timeout=90)


def threads_in(monkeypatch, of: Any, name: str) -> list[int]:
    """A list that grows by torch's number of threads whenever a function of it is called."""
    seen: list[int] = []
    original = getattr(of, name)
    monkeypatch.setattr(
        of, name, lambda *given, **more: [seen.append(torch.get_num_threads()), original(*given, **more)][1]
    )
    return seen


@pytest.mark.parametrize(("model", "size", "threads"), [("mlp:8", 4, 1), ("mlp:65536", 8, 2), ("convnet:2-2-2", 8, 2)])
def test_small_fully_connected_students_train_on_one_thread(monkeypatch, one_thread, model, size, threads):
    torch.set_num_threads(2)
    student = trainer(toy(24, size=size), model=model, batch_size=24)
    seen = threads_in(monkeypatch, torch.nn.Linear, "forward")
    run(student, np.ones(24), score=np.ones(24))
    assert set(seen) == {threads}
    monkeypatch.setattr(data.Data, "batches", broken_after(0))
    with pytest.raises(OSError, match="this image"):
        run(student, np.ones(24))
    assert torch.get_num_threads() == 2  # put back, also after an error


def test_batched_students_train_on_one_thread(monkeypatch, one_thread):
    torch.set_num_threads(2)
    seen = threads_in(monkeypatch, torch, "baddbmm")
    env = PruneVectorEnv(2, **SMALL)
    env.reset(seed=0)
    env.step({"weight": np.ones((2, 60)), "mixup": np.zeros((2, 60))})
    assert set(seen) == {1}
    assert torch.get_num_threads() == 2


# ---------------------------------------------------------------- infos, and tools that stack them


@pytest.mark.parametrize("name", ["Digits-v0", "DigitsSummary-v0"])
def test_info_has_the_same_names_and_kinds_after_reset_and_step(name):
    """NumPy scalars of counted work: nothing is timed."""
    env = gym.make(f"prune_env/{name}", **SMALL)
    _, first = env.reset(seed=0)
    _, reward, *_, then = env.step(env.action_space.sample())
    kinds = [{name: value.dtype for name, value in info.items()} for info in (first, then)]
    assert kinds[0] == kinds[1]
    assert all(isinstance(value, np.number) and np.isfinite(value) for info in (first, then) for value in info.values())
    assert not any(word in name for name in then for word in ("second", "time", "wall"))
    assert type(reward) is float
    assert (first["trained"], first["lr"], first["step"], then["step"]) == (0, 0.0, 0, 1)

    vector = gym.make_vec(f"prune_env/{name}", num_envs=2, **SMALL)
    _, first = vector.reset(seed=0)
    *_, then = vector.step(vector.action_space.sample())
    assert {name: value.dtype for name, value in first.items()} == {name: value.dtype for name, value in then.items()}
    assert {name: first[name].dtype for name in kinds[0]} == kinds[0]


# over 2 s: Minari writes an episode of every sample's statistics
def test_minari_records_infos(tmp_path, monkeypatch):
    minari = pytest.importorskip("minari", reason="minari is not installed")
    pytest.importorskip("h5py", reason="h5py, which minari writes with, is not installed")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    env = minari.DataCollector(gym.make("prune_env/DigitsSummary-v0", **SMALL), record_infos=True)
    for seed in range(2):
        env.reset(seed=seed)
        done = False
        while not done:
            *_, done, _, _ = env.step(env.action_space.sample())
    dataset = env.create_dataset("prune-env/digits-v0")
    for episode in dataset.iterate_episodes():
        assert episode.infos["trained"].shape == episode.infos["kept"].shape == (len(episode.rewards) + 1,)
    env.close()


@pytest.mark.slow  # importing torchrl takes several seconds
@pytest.mark.filterwarnings("ignore")
def test_torchrl_stacks_infos():
    torchrl = pytest.importorskip("torchrl.envs", reason="torchrl is not installed")
    rollout = torchrl.GymEnv("prune_env/DigitsSummary-v0", budget=2.0).auto_register_info_dict().rollout(2)
    assert rollout["next", "trained"].shape[0] == rollout.shape[0]
    several = torchrl.GymEnv("prune_env:prune_env/DigitsSummary-v0", num_envs=2, budget=2.0)
    assert several.rollout(2).shape[0] == 2
    several.close()
