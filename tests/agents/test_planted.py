"""A task whose good answer is known: half of the samples repeat others, and two labels of five are wrong."""

import gymnasium as gym
import numpy as np
import pytest

from prune_env import PruneEnv, select
from prune_env.data import Data

SEEDS = range(3)
TASK = {"train_size": 500, "duplicates": 0.5, "label_noise": 0.4, "budget": 5.0}


def full(data: Data) -> np.ndarray:
    return np.ones(len(data), bool)


def oracle(data: Data) -> np.ndarray:
    """Right labels, and each image once."""
    wrong, keep, seen = data.wrong.tolist(), np.zeros(len(data), bool), set()
    for i, source in enumerate(data.source.tolist()):
        if not wrong[i] and source not in seen:
            keep[i] = True
            seen.add(source)
    return keep


def anti_oracle(data: Data) -> np.ndarray:
    return data.wrong.numpy()


def final_accuracy(choose, seed: int) -> float:
    env = gym.make("prune_env/Digits-v0", **TASK)
    core = env.unwrapped
    assert isinstance(core, PruneEnv)
    _, info = env.reset(seed=seed)
    done = False
    while not done:
        *_, done, _, info = env.step(select(choose(core.train_data)))
    assert core.trainer is not None
    assert core.trainer.ledger.share > 0.98  # equal compute
    return info["val_accuracy"]


@pytest.fixture(scope="module")
def accuracies() -> dict[str, np.ndarray]:
    return {
        choose.__name__: np.array([final_accuracy(choose, seed) for seed in SEEDS])
        for choose in (full, oracle, anti_oracle)
    }


def test_dropping_wrong_and_repeated_samples_beats_training_on_everything(accuracies):
    gains = accuracies["oracle"] - accuracies["full"]
    assert gains.min() > 0.04
    assert accuracies["oracle"].min() > 0.9


def test_training_on_everything_still_learns(accuracies):
    assert accuracies["full"].min() > 0.7


def test_keeping_only_wrong_labels_ends_under_chance(accuracies):
    assert accuracies["anti_oracle"].max() < 0.1
