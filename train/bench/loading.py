"""Measure what memory-mapped images cost: loading, training, and how much of one hides the other.

    python -m train.bench.loading --root DIR                  # images in DIR/train/<class>/
    python -m train.bench.loading --root DIR --image-size 64 --train-size 2000 --rounds 9

An epoch is one pass over the samples that are kept, with the trainer's own batches; validation is left out. "Waited" is
how long training waits for its batches. "Hidden" is (loading + training - both) / min(loading, training): 100 % where
all that is seen is the longer of the two; where loading is less than a twentieth of training, that is lost in the noise
and not shown. All are medians over rounds in this process, which trains on one thread.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields

import numpy as np
import torch
import tyro
from rich.console import Console
from rich.table import Table

from prune_env import select
from prune_env.data import Data
from prune_env.data.storage import KINDS
from prune_env.env import PruneEnv
from prune_env.trainer import Trainer
from train.bench.timing import seconds


@dataclass
class Args:
    root: str
    """Folder of images, as for prune_env/ImageFolder-v0."""
    train_size: int = 2000
    """Training images taken from it."""
    image_size: int = 64
    """Their side."""
    model: str = "convnet"
    """The student."""
    keep: tuple[float, ...] = (1.0, 0.3)
    """Shares of the samples, drawn at random for each epoch."""
    rounds: int = 5
    """Timed epochs of each kind; the median counts."""
    device: str = "auto"
    """Where the student trains."""


@dataclass(frozen=True, eq=False)
class Watched(Data):
    """Data that notes how long each batch is waited for."""

    waits: list[float] = field(default_factory=list)  # seconds

    def batches(self, parts: Sequence[torch.Tensor]) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        batches = super().batches(parts)
        for _ in parts:
            start = time.perf_counter()
            batch = next(batches)
            self.waits.append(time.perf_counter() - start)
            yield batch


def train(trainer: Trainer, chosen: np.ndarray) -> None:
    """An epoch on the samples `chosen` (k,), without validation."""
    selection = trainer.select(select(chosen, n=trainer.ledger.n))
    trainer._train(trainer.ledger.plan(selection, trainer.batch_size))


def measure(resident: Trainer, other: Trainer, chosen: np.ndarray) -> tuple[float, float, float, float]:
    """Seconds of training alone, of loading alone, of both, and waited in that, on the samples `chosen` (k,)."""
    order = torch.from_numpy(np.random.default_rng(len(chosen)).permutation(chosen)).to(other.device)
    data = other.train_data
    training = seconds(lambda: train(resident, chosen), resident.device)
    loading = seconds(lambda: sum(1 for _ in data.batches(order.split(other.batch_size))), data.device)
    watched = other.train_data = Watched(**{one.name: getattr(data, one.name) for one in fields(data)})
    both = seconds(lambda: train(other, chosen), other.device)
    other.train_data = data
    return training, loading, both, sum(watched.waits)


def main(args: Args) -> None:
    torch.set_num_threads(1)
    budget = 2.0 + len(KINDS) * (args.rounds + 1) * sum(args.keep)
    settings = {name: getattr(args, name) for name in ("root", "train_size", "image_size", "model", "device")}
    students: dict[str, Trainer] = {}
    for kind in KINDS:
        env = PruneEnv("imagefolder", budget, images=kind, lr=1e-3, **settings)
        env.reset(seed=0)
        students[kind] = env.running
    resident = students.pop("device")
    table = Table(title=f"Seconds of an epoch, {args.train_size:,} images of {args.image_size} pixels, {args.model}")
    for column in ("images", "kept", "training alone", "loading alone", "both", "waited", "hidden"):
        table.add_column(column, justify="left" if column == "images" else "right")
    rng = np.random.default_rng(0)
    for keep in args.keep:
        times: dict[str, list[tuple[float, float, float, float]]] = {kind: [] for kind in students}
        for _ in range(args.rounds + 1):
            chosen = np.sort(rng.choice(args.train_size, round(keep * args.train_size), replace=False))
            for kind, student in students.items():
                times[kind].append(measure(resident, student, chosen))
        for kind, rounds in times.items():
            training, loading, both, waited = np.array(rounds[1:]).T  # the first warms up
            hidden = np.median((loading + training - both) / np.minimum(loading, training))
            told = np.median(loading) > np.median(training) / 20
            figures = (f"{np.median(of_rounds):.3f}" for of_rounds in (training, loading, both, waited))
            table.add_row(kind, f"{keep:.0%}", *figures, f"{hidden:.0%}" if told else "")
    Console(width=100).print(table)


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
