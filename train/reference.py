"""Write the irreducible losses that `rho_loss` needs: `prune-env reference --help`."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path

import gymnasium as gym
import numpy as np
import torch
import tyro
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from prune_env import PruneEnv, io, select
from prune_env.budget import TRAIN_COST
from prune_env.data import Data
from prune_env.students import models
from prune_env.students.recipes import Training, default_model
from prune_env.trainer import Trainer
from train.execution import command_line
from train.execution.plan import (
    Block,
    TaskOptions,
    TrainingOptions,
    command_of,
    dataset_of,
    full_id,
    settings_of,
    with_rates,
)
from train.execution.plan import Data as Task


@dataclass(kw_only=True)
class Arguments:
    """Measure each training image by a small model that was not trained on it.

    One model is trained on a random half of the training images and measures the other half, a second one the other
    way round. FILE gets a line for each image: its number in the official training split, its cross-entropy
    (`reference`), and its share of what training and measuring took in floating-point operations (`flops`). A run with
    reference=FILE is charged the sum. The images and labels are those of the task; validation and test are not used.
    """

    file: tyro.conf.Positional[Path]
    """What to write: a .csv or .parquet file."""
    env: str = "digits"
    """Environment, which is the data set: `digits`, `cifar10`, `imagefolder`, ..."""
    budget: float = 10.0
    """Epochs that each model trains for on its half, so that both cost as many epochs of all images."""
    seed: int = 0
    """Of the halves and of training."""
    root: str | None = None
    """Folder with the images; by default $PRUNE_ENV_DATA."""
    device: str = "auto"
    """Where to train: `auto` (CUDA where there is one), or a name torch knows."""
    task: TaskOptions = field(default_factory=Task)
    training: TrainingOptions = field(default_factory=Training)

    def __post_init__(self) -> None:
        self.env = full_id(self.env)
        if self.seed < 0:
            raise ValueError(f"seed={self.seed} must be 0 or more")
        if self.file.is_dir():
            raise ValueError(f"{self.file} is a folder; name a .csv or .parquet file")


def irreducible_losses(env: PruneEnv, seed: int) -> tuple[NDArray[np.float32], int]:
    """Return the loss (N,) of each sample in a model that was not trained on it, and the forward passes of all that.

    Args:
        env: its data, its recipe and its budget are used.
        seed: of the halves and of training.

    Raises:
        ValueError: training diverged.
    """
    train = env.train_data
    losses, passes = torch.empty(len(train)), 0
    order = torch.from_numpy(np.random.default_rng(seed).permutation(len(train))).to(train.device)
    halves = order.tensor_split(2)
    for own, other in (halves, halves[::-1]):
        student = Trainer(_part(train, own), _part(train, other), env.recipe, env.budget, seed)
        finished = False
        while not finished:
            result = student.train_epoch(student.select(select(np.ones(len(own)))))
            finished = result.finished
            if result.diverged:
                raise ValueError(f"training diverged at lr {env.recipe.lr:g}: lower --lr")
        everything = torch.arange(len(other), device=other.device)
        with torch.no_grad():
            for rows, logits, labels in student.predict(student.val_data, everything):
                losses[other[rows].cpu()] = F.cross_entropy(logits, labels, reduction="none").cpu()
        passes += student.ledger.used + len(other)
    return losses.numpy(), passes


def _part(train: Data, rows: Tensor) -> Data:
    """Return the samples `rows` (k,) of data on the device."""
    columns = {name: getattr(train, name)[rows] for name in ("images", "labels", "source", "wrong", "corrupted")}
    return replace(train, **columns)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program with `arguments` (else the command line's); return its exit status, 2 for wrong arguments."""
    try:
        args = command_line.read("reference", Arguments, arguments)
        if args.task.reference or args.task.duplicates:
            raise ValueError(
                "leave out --reference, and --duplicates: a file has one number for all copies of an image"
            )
        if args.file.suffix not in (".csv", ".parquet"):
            raise ValueError(f"{args.file} must end in .csv or .parquet")
        if args.file.suffix == ".parquet" and find_spec("pyarrow") is None:
            raise ValueError(f"{args.file} needs pyarrow (pip install pyarrow), or to end in .csv")
        block = Block("", args.env, settings_of(args.task, args.training), (), (), (args.budget,), 1)
        settings, rate = with_rates(block, args.root)[args.budget]
        own = {"budget": args.budget, "root": args.root, "device": args.device, "images": "device"}
        env = gym.make(args.env, disable_env_checker=True, **settings, **own).unwrapped
        assert isinstance(env, PruneEnv)
        losses, passes = irreducible_losses(env, args.seed)
    except (ValueError, TypeError, OSError, gym.error.Error) as error:
        return command_line.refused(error)
    train = env.train_data
    _, channels, size, _ = train.images.shape
    flops = passes * models.flops(env.recipe.model, channels, size, len(train.classes))
    columns = {
        "index": train.source.cpu().numpy(),
        "reference": losses,
        "flops": np.full(len(train), flops / len(train)),
    }
    try:
        io.write_columns(args.file, columns)
    except OSError as error:
        return command_line.refused(error)
    model = default_model(dataset_of(args.env))  # what the command below trains
    epochs = flops / (TRAIN_COST * len(train) * models.flops(model, channels, size, len(train.classes)))
    print(f"wrote {args.file}: {len(train)} losses, mean {losses.mean():.3f}; {flops:.3g} floating-point operations")
    print(f"learning rate: {rate}")
    print(
        f"a run of rho_loss pays {epochs:.3g} full-epoch equivalents of its --budget for this if it trains {model}, "
        "less with a larger network, more with a smaller one"
    )
    task = {**settings_of(args.task, Training()), "reference": str(args.file), "agents": ["full", "random", "rho_loss"]}
    task["budget"] = math.ceil(epochs) + args.budget  # what the losses cost, and some for the run itself
    print(f"next: {command_of('evaluate', {'env': args.env, **task}, args.root)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
