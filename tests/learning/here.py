"""Small tasks, and workers in this process, without the time that processes take to start."""

from __future__ import annotations

from typing import Any

from prune_env.policy.tasks import TaskDistribution
from train.learning.workers import Worker, Workers

TINY: dict[str, Any] = {
    "values": {
        "train_size": (60,),
        "label_noise": (0.0, 0.2),
        "imbalance": (1.0, 2.0),
        "model": ("mlp:4",),
        "budget": (1.0, 1.5),
        "val_rest": (True,),
    },
    "validations": 1,
    "held_outs": 1,
}
VARIED = TaskDistribution(
    {"train_size": (40, 60), "label_noise": (0.0, 0.2), "model": ("mlp:4",), "budget": (1.0, 2.5), "val_rest": (True,)},
    validations=1,
    held_outs=1,
)


class Here(Workers):
    """`Workers` in this process; notes what was played."""

    played: list[tuple[list, Any]]  # pairs and policy; a fixture sets it

    def __init__(self, tasks: TaskDistribution, count: int):
        self.count = count
        self._workers = [Worker(tasks) for _ in range(count)]

    def call(self, method, arguments):
        return [getattr(worker, method)(*its) for worker, its in zip(self._workers, arguments, strict=False)]

    def play(self, pairs, policy):
        self.played.append((list(pairs), policy))
        return super().play(pairs, policy)

    def close(self) -> None:
        pass
