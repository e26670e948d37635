"""What it costs to keep images elsewhere than on the device: loading, training, and how much of one hides the other.

    python -m train.bench_loading --root DIR                  # images in DIR/train/<class>/
    python -m train.bench_loading --root DIR --image-size 64 --train-size 2000 --rounds 9

An epoch is one pass over the samples that are kept, with the trainer's own batches; validation is left out. "Hidden"
is (loading + training - both) / min(loading, training): 100 % where the longer of the two is all that is seen. All are
medians over rounds, in which every source has its turn, in this process, which trains on one thread.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import tyro
from rich.console import Console
from rich.table import Table

from prune_env import select
from prune_env.data import Data
from prune_env.env import PruneEnv
from prune_env.images import Images
from prune_env.residence import KINDS
from prune_env.trainer import Trainer
from train.bench import seconds


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


def load(data: Data, parts: list[torch.Tensor]) -> None:
    """Fetch the batches of an epoch and do nothing with them."""
    for _ in data.batches(parts):
        pass
    wait(data.device)


def train(trainer: Trainer, chosen: np.ndarray) -> None:
    """An epoch on the samples `chosen` (k,), without validation."""
    trainer._train(trainer.plan(trainer.select(select(chosen, n=trainer.ledger.n))))
    wait(trainer.device)


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def measure(env: PruneEnv, chosen: np.ndarray) -> tuple[float, float]:
    """Seconds of loading alone, and of an epoch, both on the samples `chosen` (k,)."""
    trainer = env.running
    order = torch.from_numpy(np.random.default_rng(len(chosen)).permutation(chosen)).to(trainer.device)
    loading = seconds(lambda: load(env.train_data, list(order.split(trainer.batch_size))))
    return loading, seconds(lambda: train(trainer, chosen))


def main(args: Args) -> None:
    torch.set_num_threads(1)
    settings: dict[str, Any] = {"image_size": args.image_size, "train_size": args.train_size, "model": args.model}
    budget = 2.0 + args.rounds * sum(args.keep) + len(args.keep)
    envs: dict[str, PruneEnv] = {}
    for kind in KINDS:
        envs[kind] = PruneEnv(
            "imagefolder", budget, root=args.root, images=kind, device=args.device, lr=1e-3, **settings
        )
        envs[kind].reset(seed=0)
        print(f"{kind} is ready", flush=True)
    table = Table(title=f"Seconds of an epoch, {args.train_size:,} images of {args.image_size} pixels, {args.model}")
    for column in ("images", "kept", "training alone", "loading alone", "both", "hidden"):
        table.add_column(column, justify="left" if column == "images" else "right")
    rng = np.random.default_rng(0)
    for keep in args.keep:
        times: dict[str, list[tuple[float, float]]] = {kind: [] for kind in KINDS}
        for _ in range(args.rounds + 1):
            chosen = np.sort(rng.choice(args.train_size, round(keep * args.train_size), replace=False))
            for kind, env in envs.items():
                times[kind].append(measure(env, chosen))
        medians = {kind: np.median(of_kind[1:], axis=0) for kind, of_kind in times.items()}  # the first warms up
        training = medians["device"][1]
        for kind, (loading, both) in medians.items():
            hidden = (loading + training - both) / min(loading, training)
            shown = f"{hidden:.0%}" if isinstance(envs[kind].train_data.images, Images) else ""
            table.add_row(kind, f"{keep:.0%}", f"{training:.2f}", f"{loading:.3f}", f"{both:.2f}", shown)
    Console(width=100).print(table)


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
