"""Predictions on a whole split: summed up on the device, read on the host."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from prune_env.data import Data
from prune_env.ranks import Ranks
from prune_env.stats import MAX_LOSS


def tally(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Sum up predictions.

    Args:
        logits: (…, B, C) float32.
        labels: (…, B) int64; a row with the label -1 does not count.

    Returns:
        loss (…,) float32, clipped to MAX_LOSS a row; counts (…, 1 + 2 C) int64: rows of finite logits, rows of each
        class, and of these the ones predicted right.
    """
    real = labels >= 0
    finite = torch.isfinite(logits).all(dim=-1) & real  # (…, B)
    right = (logits.argmax(dim=-1) == labels) & finite
    loss = -logits.log_softmax(dim=-1).gather(-1, labels.clamp(min=0)[..., None])[..., 0]
    loss = loss.nan_to_num(MAX_LOSS).clamp(max=MAX_LOSS) * real
    none = labels.new_zeros(*labels.shape[:-1], logits.shape[-1])  # (…, C)
    of_class = [none.scatter_add(-1, labels.clamp(min=0), rows.long()) for rows in (real, right)]
    return loss.sum(dim=-1), torch.cat([finite.sum(dim=-1, keepdim=True), *of_class], dim=-1)


def total(tallies: Sequence[tuple[Tensor, Tensor]], ranks: Ranks) -> Tensor:
    """Sum up what `tally` returned for the batches of a split, over ranks too.

    Returns:
        (…, 2 + 2 C) int64: the counts, and last the bits of the loss. So both reach the host in one exact transfer;
        not every device has float64, which would hold both.
    """
    losses, counts = (ranks.sum(torch.stack(parts).sum(dim=0)) for parts in zip(*tallies, strict=True))
    return torch.cat([counts, losses.view(torch.int32).long()[..., None]], dim=-1)


@dataclass(frozen=True)
class Evaluation:
    """Predictions on a whole split. A row whose logits are not finite counts as wrong."""

    accuracy: float
    loss: float  # mean cross-entropy, clipped to MAX_LOSS
    class_accuracy: tuple[float, ...]  # (C,), NaN for a class without samples
    nonfinite: int  # such rows

    @classmethod
    def of(cls, sums: list[int], data: Data) -> Evaluation:
        """From what `total` returned for all rows of `data`."""
        classes = len(data.classes)
        finite, rows, right, loss_bits = sums[0], sums[1 : 1 + classes], sums[1 + classes : -1], sums[-1]
        loss = float(np.int32(loss_bits).view(np.float32)) / len(data)
        by_class = tuple(r / c if c else math.nan for r, c in zip(right, rows, strict=True))
        return cls(sum(right) / len(data), loss, by_class, len(data) - finite)

    @property
    def known_class_accuracy(self) -> list[float]:
        """Return what agents see, (C,): a class without samples has the accuracy of all."""
        return [self.accuracy if math.isnan(own) else own for own in self.class_accuracy]
