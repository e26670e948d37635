"""Small students and environments, episodes of random actions, what went through a network, exact comparison."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torch import nn
from torchvision.models._api import register_model

from prune_env import PruneEnv, data, select
from prune_env.data import Arrays, Data
from prune_env.selection import Action, Selection
from prune_env.students.recipes import Recipe
from prune_env.trainer import EpochResult, Trainer
from tests.helpers.reference import toy

DROPOUT = "torchvision:tiny_dropout"  # draws random numbers in training, has batch norm, and is small


def _tiny_dropout(*, weights: None, num_classes: int) -> nn.Module:
    body = (nn.Conv2d(3, 4, 3, stride=2), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten())
    return nn.Sequential(*body, nn.Dropout(0.2), nn.Linear(16, num_classes))


_tiny_dropout.__module__ = "torchvision.models.tiny"  # only torchvision's classifiers are students
register_model("tiny_dropout")(_tiny_dropout)


def trainer(
    train: Data | None = None, val: Data | None = None, budget: float = 3.0, seed: int = 0, **recipe
) -> Trainer:
    """A student of 24 samples of 3 classes, validated on 12 others, in batches of 8."""
    train = train or toy()
    _, channels, size, _ = train.images.shape
    val = val or toy(12, len(train.classes), channels, size, seed=1)
    small = {"model": "mlp:5", "batch_size": 8, "lr": 0.1, "weight_decay": 0.0, "precision": "float32"}
    return Trainer(train, val, Recipe(**{**small, **recipe}), budget, seed)


def run(student: Trainer, weight: Any, mixup: Any = None, score: Any = None) -> EpochResult:
    """Train for one step on what the arguments of `select` say."""
    return student.train_epoch(student.select(select(weight, mixup, score)))


def digits(**settings) -> PruneEnv:
    """An environment of 100 digits; its budget is 3 epochs, and batches have 16 samples."""
    task = {"train_size": 100, "budget": 3.0, "batch_size": 16, "device": "cpu"}
    env = gym.make("prune_env/Digits-v0", disable_env_checker=True, **{**task, **settings}).unwrapped
    assert isinstance(env, PruneEnv)
    return env


def own_digits(train_size: int = 120) -> Arrays:
    """Digits as somebody's own data: some to train on, 260 to validate on, 497 to test."""
    train, val = data.load("digits", train_size=train_size)
    test = data.load_test("digits")
    return Arrays(*((split.images, split.labels) for split in (train, val, test)))


def random_action(rng: np.random.Generator, n: int, keep: float = 0.6) -> Action:
    """Weights, mixup and scoring at random; nothing that was observed matters."""
    weight = rng.uniform(0.1, 3, n) * (rng.random(n) < keep)
    return select(weight, 0.5 * rng.random(n) * (rng.random(n) < 0.3), rng.random(n) < 0.1)


def play(env: PruneEnv, seed: int | None, agent_seed: int = 0) -> list[tuple]:
    """Everything that an episode of random actions returns."""
    rng = np.random.default_rng(agent_seed)
    trace: list[tuple] = [env.reset(seed=seed)]
    done = False
    while not done:
        trace.append(env.step(random_action(rng, len(env.train_data))))
        done = trace[-1][2]
    return trace


def same(a: Any, b: Any) -> bool:
    """Return whether two trees of plain values, arrays and tensors are equal bit for bit, NaN to NaN."""
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same(a[name], b[name]) for name in a)
    if isinstance(a, list | tuple):
        return isinstance(b, list | tuple) and len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and a.stride() == b.stride() and torch.equal(a, b)
    if isinstance(a, np.ndarray | np.generic | float):
        kind = np.asarray(a).dtype
        return kind == np.asarray(b).dtype and np.array_equal(a, b, equal_nan=kind.kind == "f")
    return type(a) is type(b) and bool(a == b)


def rows(selection: Selection) -> list[tuple[int, float, int, float]]:
    """(sample, weight, partner, share) of each row that is trained on."""
    columns = (selection.indices, selection.weights, selection.partners, selection.shares)
    return list(zip(*(column.tolist() for column in columns), strict=True))


def rates_of(student: Trainer) -> list[float]:
    """A list that grows by the learning rate of every batch."""
    rates: list[float] = []
    step = student.optimizer.step

    def noted() -> None:
        rates.append(student.optimizer.param_groups[0]["lr"])
        step()

    student.optimizer.step = noted
    return rates


class Watched:
    """What goes through a student's network, by phase: "trained", "scored", "validated".

    Args:
        student: watched from now on.
        scored: how many rows each step scores, before it validates.
        spoil: which rows of a phase are spoiled, counted from 0: their first logit becomes `value`, and they pass no
            gradient on.
        value: what is not finite.
    """

    def __init__(
        self,
        student: Trainer,
        scored: int = 0,
        spoil: Mapping[str, Sequence[int]] | None = None,
        value: float = float("nan"),
    ):
        self.scored, self.spoil, self.value = scored, spoil or {}, value
        self.clear()
        student.model.register_forward_hook(self._see)

    def clear(self) -> None:
        """Forget what was seen, before another step."""
        self._images = {phase: [] for phase in ("trained", "scored", "validated")}
        self._logits = {phase: [] for phase in self._images}

    def _see(self, module: nn.Module, args: Any, out: torch.Tensor) -> torch.Tensor:
        later = "scored" if self.count("scored") < self.scored else "validated"
        phase = "trained" if module.training else later
        numbers = range(self.count(phase), self.count(phase) + len(out))
        sick = torch.tensor([number in self.spoil.get(phase, ()) for number in numbers])[:, None]
        if sick.any():
            out = torch.where(
                sick & (torch.arange(out.shape[1]) == 0), self.value, torch.where(sick, out.detach(), out)
            )
        self._images[phase].append(args[0].detach().clone())
        self._logits[phase].append(out.detach().clone())
        return out

    def count(self, phase: str) -> int:
        """Number of rows."""
        return sum(map(len, self._logits[phase]))

    def sizes(self, phase: str) -> list[int]:
        """Rows of each batch."""
        return [len(batch) for batch in self._logits[phase]]

    def images(self, phase: str) -> np.ndarray:
        """(rows, C, H, W) as the network took them."""
        return torch.cat(self._images[phase]).numpy()

    def logits(self, phase: str) -> np.ndarray:
        """(rows, classes)."""
        return np.concatenate([batch.numpy() for batch in self._logits[phase]] or [np.empty((0, 1))])

    def nonfinite(self) -> int:
        """Number of rows of all phases with a logit that is not finite."""
        return sum(int((~np.isfinite(self.logits(phase)).all(axis=1)).sum()) for phase in self._logits)
