"""What `Pruner` costs a loop of one's own: a step with it against a step without it, and an epoch by its parts."""

from __future__ import annotations

from time import perf_counter

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import agents
from prune_env import Pruner, select
from prune_env.students import models
from train.bench.timing import in_turn, ratio

BATCH = 128
PARTS = ("observation", "check, order, weights", "indices of the batches", "record, progress", "statistics of losses")


def time_loops(batches: int, rounds: int, device: torch.device) -> tuple[float, float, float]:
    """Return median seconds of a step with and without a pruner, and the median ratio.

    Both loops are epochs of a small convnet on random images (3, 32, 32) of ten classes, in batches of 128 from a
    DataLoader.
    """
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (batches * BATCH, 3, 32, 32), dtype=torch.uint8, generator=generator)
    labels = torch.arange(len(images)) % 10
    dataset = TensorDataset(images, labels)
    pruner = Pruner(agents.make("full"), labels.numpy(), rounds + 2, batch_size=BATCH, device=device)
    loaders = DataLoader(dataset, BATCH, shuffle=True), DataLoader(dataset, batch_sampler=pruner)
    students = [models.build("convnet", 3, 32, 10, seed=0).to(device) for _ in loaders]
    optimizers = [torch.optim.SGD(student.parameters(), lr=0.01, momentum=0.9) for student in students]

    def descend(which: int, loss: Tensor) -> None:
        loss.backward()
        optimizers[which].step()
        optimizers[which].zero_grad()

    def predict(which: int, batch: Tensor) -> Tensor:
        return students[which](batch.to(device).float() / 255)

    def plain() -> None:
        for batch, targets in loaders[0]:
            descend(0, F.cross_entropy(predict(0, batch), targets.to(device)))

    def pruned() -> None:
        for index, (batch, targets) in zip(pruner.indices(), loaders[1], strict=True):
            descend(1, pruner.loss(predict(1, batch), targets.to(device), index))
        pruner.end_epoch()

    times = in_turn((pruned, plain), rounds, device) / batches
    ours, bare = np.median(times, axis=0).tolist()
    return ours, bare, ratio(times, 0, to=1)


def time_epoch(n: int, batch: int, rounds: int, device: torch.device) -> list[float]:
    """Return median seconds of each of `PARTS` in an epoch on all of n samples, of losses without logits."""
    action, losses, asked = select(np.ones(n)), torch.ones(2 * batch, device=device), []

    def agent(observation: dict, rng: np.random.Generator) -> dict:
        asked.append(perf_counter())
        return action

    pruner = Pruner(agent, n, rounds + 1, batch_size=batch, initial_loss=1.0, device=device)
    times = []
    for _ in range(rounds):
        begun = perf_counter()
        pruner.begin_epoch()
        marks = [begun, asked[-1], perf_counter()]
        indices = [index for index, _ in zip(pruner.indices(), pruner, strict=True)]
        marks.append(perf_counter())
        for index in indices:
            pruner.record(index, losses=losses[: len(index)])
            _ = pruner.progress
        marks.append(perf_counter())
        pruner.end_epoch()
        times.append(np.diff([*marks, perf_counter()]))
    return np.median(times, axis=0).tolist()
