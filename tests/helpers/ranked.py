"""Students that train on the same selections whatever the number of ranks: what tests/core/test_ranks.py compares.

torchrun --nproc-per-node 2 -m tests.helpers.ranked FILE
"""

import sys
from typing import cast

import numpy as np
import torch
import torch.distributed as dist

from prune_env import ranks
from prune_env.selection import select
from prune_env.students.recipes import Recipe
from prune_env.trainer import Trainer
from tests.helpers.reference import toy

N = 37  # batches of 8 leave one of 5: parts of 3 and 2 rows; with 33 rows, a lone one
RECIPES = {
    "mlp": Recipe("mlp:8", 8, 0.1, precision="float32"),
    "convnet": Recipe("convnet:2-3-4", 8, 0.05, precision="float32", label_smoothing=0.1),
}

PARTS = {"uneven parts": (slice(0, 2), slice(2, 5)), "an empty part": (slice(0, 5), slice(5, 5))}  # of two ranks


def train(recipe: Recipe) -> dict[str, np.ndarray]:
    """Three steps and what they leave: parameters, statistics and results, by name."""
    size = 16
    student = Trainer(toy(N, 3, 2, size, augment=True), toy(11, 3, 2, size, seed=1), recipe, 8.0, seed=5)
    rng = np.random.default_rng(0)
    found: dict[str, np.ndarray] = {}
    everything, most, alone = np.ones(N), np.arange(N) < 33, np.arange(N) == 4
    for step, mask in enumerate((everything, most, everything, alone)):
        # where nothing is dropped, partners are samples that this step trains on too
        mixup = np.where(rng.random(N) < 0.4, 0.3, 0.0)
        action = select(mask * rng.uniform(0.5, 2.0, N), mixup, score=(mask == 0) | (rng.random(N) < 0.2))
        result = student.train_epoch(student.select(action))
        told = (result.trained, result.mixed, result.scored, result.spent, result.train_accuracy, result.nonfinite)
        found[f"step {step}"] = np.array([*told, result.val_accuracy, result.val_loss, result.lr], np.float64)
    found |= {f"model {name}": value.numpy() for name, value in student.model.state_dict().items()}
    found |= {f"seen {name}": values for name, values in student.observe().items()}
    return found


def normalise(rows: slice) -> dict[str, np.ndarray]:
    """Batch norm, in float64, of some of five rows, forward and backward; running averages too."""
    rng = np.random.default_rng(3)
    given, factors = (torch.from_numpy(rng.normal(2.0, 3.0, (5, 3, 2, 2)))[rows] for _ in range(2))
    plain = torch.nn.BatchNorm2d(3, momentum=0.3, dtype=torch.float64)
    torch.nn.init.constant_(plain.weight, 1.5)
    norm = cast(torch.nn.BatchNorm2d, next(ranks.here().synchronised(torch.nn.Sequential(plain)).children()))
    given.requires_grad_()
    out = norm(given)
    (out * factors).sum().backward()
    gradients = {"given": given.grad, "weight": norm.weight.grad, "bias": norm.bias.grad}
    found = {"out": out.detach(), **gradients, **dict(norm.named_buffers())}
    return {name: value.numpy() for name, value in found.items() if value is not None}


if __name__ == "__main__":
    dist.init_process_group()
    rank = dist.get_rank()
    found = {f"{of}: {name}": value for of in RECIPES for name, value in train(RECIPES[of]).items()}
    for case, rows in PARTS.items():
        found |= {f"{case}: {name}": value for name, value in normalise(rows[rank]).items()}
    np.savez(f"{sys.argv[1]}{rank}.npz", **found)  # pyright: ignore[reportArgumentType]
    dist.destroy_process_group()
