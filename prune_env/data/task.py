"""Vary a data set's task: what its training part is made of."""

from dataclasses import dataclass, fields


@dataclass(frozen=True, kw_only=True)
class Variant:
    """What makes one task of a data set differ from another; all at their defaults leave the data as they are.

    These fields are arguments of `PruneEnv`, flags of the programs, and entries of a sweep file's tasks.
    """

    train_size: int | None = None
    """Number of training samples, classes keeping their shares: from one a class to all; None: all."""
    label_noise: float = 0.0
    """Share of the labels replaced by another class: 0 to 1."""
    imbalance: float = 1.0
    """Ratio of the largest to the smallest class, falling exponentially with the class: 1 or more."""
    duplicates: float = 0.0
    """Share of the training set that repeats other samples of it: at least 0 and below 1."""
    task_seed: int = 0
    """Seed of what is drawn: 0 or more."""
    val_rest: bool = False
    """Whether validation also has, with clean labels, the samples that `imbalance` and `train_size` leave out."""


VARIANT = tuple(field.name for field in fields(Variant))  # the names of what varies a task
