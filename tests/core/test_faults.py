"""What a failed step leaves, what is told of a step that was cut, threads, and other people's tools."""

import copy
import subprocess
import sys
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

from prune_env import PruneEnv, data, select
from prune_env.policy.vector import PruneVectorEnv
from prune_env.trainer import Trainer
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


@pytest.mark.parametrize("model", ["mlp:8", "convnet:2-2-2"])
@pytest.mark.parametrize("before", [0, 1])
@pytest.mark.parametrize("batches", [0, 2])
def test_a_step_that_cannot_read_an_image_changes_nothing(monkeypatch, model, before, batches):
    env = PruneEnv(model=model, **SMALL, render_mode="ansi")
    monkeypatch.setattr("prune_env.trainer.FETCHED_PIXELS", 1)
    env.reset(seed=0)
    for _ in range(before):
        env.step(select(np.arange(60) < 20))
    untouched, action = copy.deepcopy(env), select(np.arange(60) < 50, 0.1, np.arange(60) > 50)
    with monkeypatch.context() as patch:
        patch.setattr(data.Data, "batches", broken_after(batches))
        with pytest.raises(OSError, match="this image cannot be read"):
            env.step(action)
    assert env.running.ledger == untouched.running.ledger
    groups = [run.optimizer.state_dict()["param_groups"] for run in (env.running, untouched.running)]
    assert groups[0] == groups[1]
    assert env.render() == untouched.render()
    for name, values in env.running.observe().items():
        np.testing.assert_array_equal(values, untouched.running.observe()[name])
    (ours, *_, info), (theirs, *_, other) = env.step(action), untouched.step(action)
    assert info == other
    for name, values in ours.items():
        np.testing.assert_array_equal(values, theirs[name])
    for a, b in zip(
        env.running.model.state_dict().values(), untouched.running.model.state_dict().values(), strict=True
    ):
        assert torch.equal(a, b)


# ---------------------------------------------------------------- figures are of what was trained on


def test_a_record_tells_what_was_trained_on_after_the_budgets_cut():
    run = Run("prune_env/Digits-v0", {"budget": 1.3, "device": "cpu"}, "full", 0)
    record = play(run, run.make_env())
    assert record["curve"]["kept"] == [1.0, pytest.approx(0.3, abs=1e-3)]
    assert record["results"]["kept"] == pytest.approx(0.65, abs=1e-3)
    by_time = [row for row in record["results"]["kept_by_difficulty"] if row is not None]
    assert np.mean(by_time[0]) == pytest.approx(1.0)
    assert np.mean(by_time[1]) == pytest.approx(0.3, abs=0.01)
    assert record["results"]["sometimes"]["always"] == pytest.approx(0.3, abs=1e-3)


def test_the_strip_shows_what_was_trained_on():
    env = PruneEnv(budget=1.5, train_size=60, batch_size=16, render_mode="rgb_array")
    env.reset(seed=0)
    for _ in range(2):
        env.step(select(np.ones(60)))
    assert [row.mean() for row in env.history.kept_by_rank] == pytest.approx([1.0, 0.5])
    assert (len(env.history.kept), len(env.history.dropped)) == (30, 30)


# ---------------------------------------------------------------- threads

FORKS = {
    "AsyncVectorEnv of summaries": """
env = gym.make_vec("prune_env/DigitsSummary-v0", num_envs=2, vectorization_mode="async")
env.reset(seed=0); env.step(env.action_space.sample()); env.close()
""",
    "AsyncVectorEnv": """
env = gym.make_vec("prune_env/Digits-v0", num_envs=2, vectorization_mode="async")
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
    "DataLoader": """
class Episodes(torch.utils.data.Dataset):
    def __len__(self): return 2
    def __getitem__(self, seed):
        return gym.make("prune_env/Digits-v0", model="mlp:4096").reset(seed=seed)[1]["val_accuracy"]
assert len(list(torch.utils.data.DataLoader(Episodes(), num_workers=2))) == 2
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


@pytest.mark.parametrize("model", ["mlp:8", "mlp:65536", "convnet:2-2-2"])
def test_small_fully_connected_students_train_on_one_thread(monkeypatch, one_thread, model):
    torch.set_num_threads(2)
    seen: list[int] = []
    forward = Trainer._forward
    watch = lambda *given: [seen.append(torch.get_num_threads()), forward(*given)][1]  # noqa: E731
    monkeypatch.setattr(Trainer, "_forward", watch)
    env = PruneEnv(**{**SMALL, "model": model})
    env.reset(seed=0)
    env.step(select(np.arange(60) < 20))
    assert set(seen) == {1 if model == "mlp:8" else 2}
    assert torch.get_num_threads() == 2


def test_the_batched_step_trains_on_one_thread(monkeypatch, one_thread):
    torch.set_num_threads(2)
    seen: list[int] = []
    bmm = torch.baddbmm
    monkeypatch.setattr(torch, "baddbmm", lambda *given: [seen.append(torch.get_num_threads()), bmm(*given)][1])
    env = PruneVectorEnv(2, **SMALL)
    env.reset(seed=0)
    env.step({"weight": np.ones((2, 60)), "mixup": np.zeros((2, 60))})
    assert set(seen) == {1}
    assert torch.get_num_threads() == 2


def test_the_number_of_threads_is_put_back_after_an_error(monkeypatch, one_thread):
    torch.set_num_threads(2)
    env = PruneEnv(**SMALL)
    env.reset(seed=0)
    monkeypatch.setattr(data.Data, "batches", broken_after(0))
    with pytest.raises(OSError, match="this image"):
        env.step(select(np.ones(60)))
    assert torch.get_num_threads() == 2


# ---------------------------------------------------------------- infos, and tools that stack them


@pytest.mark.parametrize("name", ["Digits-v0", "DigitsSummary-v0"])
def test_info_has_the_same_names_and_kinds_after_reset_and_step(name):
    env = gym.make(f"prune_env/{name}", **SMALL)
    _, first = env.reset(seed=0)
    *_, then = env.step(env.action_space.sample())
    kinds = [{name: value.dtype for name, value in info.items()} for info in (first, then)]
    assert kinds[0] == kinds[1]
    assert all(isinstance(value, np.generic) for info in (first, then) for value in info.values())
    assert (first["trained"], first["lr"], first["step"], then["step"]) == (0, 0.0, 0, 1)

    vector = gym.make_vec(f"prune_env/{name}", num_envs=2, **SMALL)
    _, first = vector.reset(seed=0)
    *_, then = vector.step(vector.action_space.sample())
    assert {name: value.dtype for name, value in first.items()} == {name: value.dtype for name, value in then.items()}
    assert {name: first[name].dtype for name in kinds[0]} == kinds[0]


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
