"""What training has revealed about every sample: one (N, F) table on the device."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import repeat

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

CACHED_ROWS = 8192  # transposed at a time: 384 KiB, which a core's cache holds
CACHED_NUMBERS = 2**17  # logits entered at a time: 512 KiB; each of a dozen passes makes as many anew
MAX_LOSS = 100.0
MAX_COUNT = 2.0**24  # the largest count float32 holds exactly

# Statistics of a sample with their finite bounds: entries of the observation, and columns of the table.
BOUNDS = {
    "loss": (0.0, MAX_LOSS),
    "loss_mean": (0.0, MAX_LOSS),
    "loss_var": (0.0, MAX_LOSS**2),
    "confidence": (0.0, 1.0),
    "margin": (-1.0, 1.0),
    "margin_mean": (-1.0, 1.0),
    "entropy": (0.0, 1.0),
    "el2n": (0.0, math.sqrt(2.0)),
    "correct": (0.0, 1.0),
    "forgets": (0.0, MAX_COUNT),
    "visits": (0.0, MAX_COUNT),
}
LOW, HIGH = np.array(list(BOUNDS.values()), np.float32).T[..., None]  # (F - 1, 1) each
# `age` is bounded by the budget. Its column holds the compute spent when the sample was last measured, -1 for never.
COLUMNS = (*BOUNDS, "age")
_VISITS = COLUMNS.index("visits")
MARGIN_EMA = 0.3  # weight of the newest margin: a margin that stays low through training tells a wrong label
OF_LOSSES = ("loss", "loss_mean", "loss_var", "visits", "age")  # what losses without logits tell


class Stats:
    """Statistics of N samples, updated from the logits of the training pass itself.

    Before its first measured visit a sample stands as a uniform prediction would leave it: loss log C,
    confidence 1 / C, margin 0, entropy 1. The running mean and variance start with the first measured loss u
    (mean u, variance 0); from then on v <- (1 - a) v + a (u - m)^2 with the old m, m <- (1 - a) m + a u
    (Raju et al., arXiv 2111.12621). The running mean of the margin starts likewise, with a = 0.3 (the idea of AUM,
    arXiv 2001.10528).

    Args:
        n: number of samples N.
        classes: number of classes C.
        ema: a, the weight of the newest loss, in (0, 1].
        device: where the table lives; 48 bytes a sample.
        initial_loss: of a sample before its first measured visit; log C by default.
    """

    def __init__(self, n: int, classes: int, ema: float, device: torch.device, *, initial_loss: float | None = None):
        self.ema = ema
        loss = math.log(classes) if initial_loss is None else initial_loss
        start = dict.fromkeys(COLUMNS, 0.0) | {"loss": loss, "loss_mean": loss, "entropy": 1.0}
        start |= {"age": -1.0, "confidence": 1.0 / classes, "el2n": math.sqrt(1.0 - 1.0 / classes)}
        row = torch.tensor([start[name] for name in COLUMNS], device=device)  # (F,)
        self.table = row.repeat(n, 1)  # (N, F) float32

    def update(
        self,
        indices: Tensor,
        logits: Tensor | None,
        labels: Tensor | None,
        clean: Tensor,
        spent: float,
        losses: Tensor | None = None,
        *,
        trained: bool = True,
    ) -> Tensor:
        """Enter one visit of each of B distinct samples, or one measurement; arguments and result as of `enter`."""
        return enter(self.table, indices, logits, labels, clean, spent, self.ema, losses, trained=trained)

    def visits(self, indices: Tensor) -> Tensor:
        """Return how often each of (B,) samples was trained on, (B,) int64."""
        return self.table[indices, _VISITS].long()

    def observe(self, now: float, **figures: float | Sequence[float]) -> dict[str, NDArray[np.float32]]:
        """Copy all statistics to the host, (N,) float32 each, clipped to their bounds; and figures of the run.

        Args:
            now: full-epoch equivalents of compute so far, from which ages are counted.
            figures: by name; a number becomes (1,) float32.
        """
        rows = self.table.cpu().numpy()  # (N, F)
        columns = np.empty(rows.shape[::-1], np.float32)  # (F, N)
        for start in range(0, len(rows), CACHED_ROWS):
            columns[:, start : start + CACHED_ROWS] = rows[start : start + CACHED_ROWS].T
        seen: dict[str, NDArray[np.float32]] = dict(zip(COLUMNS, columns, strict=True))
        seen["age"] = np.clip(np.float32(now) - np.maximum(seen["age"], 0.0), 0.0, np.float32(now))
        np.clip(columns[: len(BOUNDS)], LOW, HIGH, out=columns[: len(BOUNDS)])
        return {**seen, **{name: np.array(value, np.float32, ndmin=1) for name, value in figures.items()}}


class OfLosses(dict[str, NDArray]):
    """What an agent sees of losses without logits. An entry that is missing says why."""

    def __missing__(self, name: str) -> NDArray:
        remedy = "; give labels, or groups, in place of the number of samples" if name == "label" else ""
        raise KeyError(
            f"the agent reads {name!r}, and the loop gives losses without logits: there are {list(self)}{remedy}"
        )


def of_losses(seen: Mapping[str, NDArray]) -> OfLosses:
    """Return the part of an observation that losses without logits tell."""
    unknown = {*COLUMNS, "train_accuracy", "val_class_accuracy"} - set(OF_LOSSES)
    return OfLosses({name: values for name, values in seen.items() if name not in unknown})


def enter(
    table: Tensor,
    indices: Tensor,
    logits: Tensor | None,
    labels: Tensor | None,
    clean: Tensor,
    spent: float | Tensor,
    ema: float | Tensor,
    losses: Tensor | None = None,
    *,
    trained: bool = True,
) -> Tensor:
    """Enter one visit of each of B distinct samples, or one measurement by a forward pass alone.

    Mixed rows count as visits and leave everything else as it was. So do rows whose logits or losses are not
    finite: they are counted, never measured. A CPU does a few rows at a time: with a thousand classes that takes a
    quarter of the time.

    Args:
        table: (N, F) float32, changed in place; the tables of several runs may be concatenated.
        indices: (B,) int64, distinct.
        logits: (B, C) float32, of that pass; None where there are losses alone, which leave most columns as they were.
        labels: (B,) int64; None likewise.
        clean: (B,) bool, false where the row was blended with a partner.
        spent: time of the measurement in full-epoch equivalents of compute; one or (B,).
        ema: weight of the newest loss; one or (B,).
        losses: (B,) float32, clipped to [0, MAX_LOSS]; the cross-entropy of the logits by default.
        trained: whether this was a visit; a sample that is only scored keeps its count.

    Returns:
        (3, B) bool: whether a row was finite; whether it was measured, which needs a clean row too; and whether it
        was measured and predicted right.
    """
    width = 8 if logits is None else logits.shape[1]  # without logits it is rows of the table that the cache holds
    at_once = max(1, CACHED_NUMBERS // width)
    if table.device.type == "cpu" and len(indices) > at_once:
        given = (indices, logits, labels, clean, spent, ema, losses)
        columns = [values.split(at_once) if isinstance(values, Tensor) else repeat(values) for values in given]
        pieces = zip(*columns, strict=False)  # numbers are repeated for ever
        return torch.cat([enter(table, *piece, trained=trained) for piece in pieces], dim=1)

    rows = table.index_select(0, indices)  # (B, F)
    old = dict(zip(COLUMNS, rows.t(), strict=True))  # (B,) each
    first = old["age"] < 0.0  # never measured
    new: dict[str, Tensor] = {}
    finite = torch.ones_like(clean)
    if logits is not None and labels is not None:
        new, finite = measure(logits, labels)
        mean = torch.lerp(old["margin_mean"], new["margin"], MARGIN_EMA)
        new["margin_mean"] = torch.where(first, new["margin"], mean)
        new["forgets"] = old["forgets"] + old["correct"] * (1.0 - new["correct"])
    if losses is not None:
        new["loss"], finite = losses.clamp(0.0, MAX_LOSS), finite & torch.isfinite(losses)
    loss = new["loss"]
    deviation = torch.where(first, 0.0, loss - old["loss_mean"])
    new["loss_mean"] = torch.where(first, loss, old["loss_mean"] + ema * deviation)
    new["loss_var"] = (1.0 - ema) * old["loss_var"] + ema * deviation.square()
    new["age"] = torch.zeros_like(loss) + spent

    measured = clean & finite
    after = torch.stack([new.get(name, old[name]) for name in COLUMNS], dim=1)
    rows = torch.where(measured[:, None], after, rows)
    rows[:, _VISITS] += float(trained)
    table.index_copy_(0, indices, rows)
    return torch.stack([finite, measured, measured & (new.get("correct", old["correct"]) > 0.0)])


def measure(logits: Tensor, labels: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """Return what the logits (B, C) of one pass say about samples of labels (B,), and whether they were finite.

    Returns:
        (B,) float32 by name of the column; (B,) bool.
    """
    label = labels[:, None]  # (B, 1)
    top, predicted = logits.max(dim=1, keepdim=True)  # (B, 1) each
    z = (logits - top).clamp(min=-MAX_LOSS)  # (B, C)
    e = z.exp()
    total = e.sum(dim=1, keepdim=True)  # (B, 1)
    p = e / total
    log_total = total.log()[:, 0]
    own = p.gather(1, label)  # (B, 1)
    confidence = own[:, 0]
    values = {
        "loss": (log_total - z.gather(1, label)[:, 0]).clamp(max=MAX_LOSS),
        "confidence": confidence,
        "margin": confidence - p.scatter(1, label, -1.0).amax(dim=1),
        "entropy": (log_total - (p * z).sum(dim=1)) / math.log(p.shape[1]),
        "el2n": p.scatter(1, label, own - 1.0).norm(dim=1),
        "correct": (predicted == label)[:, 0].float(),
    }
    # NaN and inf show in the total, NaN and -inf in the smallest logit; a sum of the logits could overflow
    return values, torch.isfinite(total[:, 0]) & torch.isfinite(logits.amin(dim=1))
