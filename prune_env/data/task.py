"""The knobs that make another task of a data set. Arguments, flags and sweep files all come from these fields."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Task:
    """What a run trains on, as far as its data goes; see `prune_env.data.load`, which also checks it."""

    image_size: int | None = None
    """Side in pixels that images are resized to, where the data set allows it."""
    train_size: int | None = None
    """Number of training samples, classes keeping their shares; None is all."""
    label_noise: float = 0.0
    """Share of the training labels that are wrong."""
    imbalance: float = 1.0
    """Ratio of the largest class to the smallest."""
    duplicates: float = 0.0
    """Share of the training samples that repeat others."""
    task_seed: int = 0
    """Seed of the four above."""
    val_rest: bool = False
    """Let validation also have the samples that training leaves out."""
