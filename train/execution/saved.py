"""What a run leaves beside its record, if it is asked to: the student's weights, and what each step trained on."""

from __future__ import annotations

import hashlib
import io as memory_io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from prune_env import io
from prune_env.data.source import printable
from prune_env.trainer import Trainer

NAME = 100  # characters of an agent's spec in a file's name, which may have 255 bytes


def run_name(agent: str, budget: float, seed: int) -> str:
    """Return a run's name for files, with a digest of the agent's spec where only that tells it from others."""
    spec = printable(agent)
    short = re.sub(r"[^\w.=,-]+", "-", spec, flags=re.ASCII)[:NAME]
    if short != spec.replace(":", "-"):
        short += f"-{hashlib.sha256(spec.encode()).hexdigest()[:8]}"
    return f"{short}-b{budget:g}-s{seed}"


def write_model(path: Path, trainer: Trainer) -> None:
    """Write the student's `state_dict()`, on the CPU, for `torch.load(path, weights_only=True)`."""
    written = memory_io.BytesIO()
    weights: dict[str, Tensor] = trainer.model.state_dict()
    torch.save({name: value.cpu() for name, value in weights.items()}, written)
    io.write_atomic(path, written.getvalue())


def write_selections(
    path: Path, weights: Sequence[NDArray[np.float32]], spent: Sequence[float], source: Tensor
) -> None:
    """Write a compressed .npz with what each of T steps trained on.

    Its arrays are `weight` (T, N) float32, the weight of each sample's loss, 0 if it was not trained on; `spent` (T,)
    float64, full-epoch equivalents after the step; and `source` (N,) int64, the row of the official training split
    that the sample is.

    Args:
        path: of the file.
        weights: (N,) of each step.
        spent: of each step.
        source: (N,), see `prune_env.data.Data`.
    """
    arrays: dict[str, Any] = {"weight": np.stack(weights), "spent": np.array(spent), "source": source.cpu().numpy()}
    with io.open_atomic(path) as file:
        np.savez_compressed(file, **arrays)
