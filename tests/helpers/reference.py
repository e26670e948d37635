"""Slow restatements of the core in plain Python, numpy and autograd, and small made-up data."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
import torch
from scipy import stats
from torch import Tensor, nn

from prune_env.data import Data

# ---------------------------------------------------------------- data


def toy(n: int = 24, classes: int = 3, channels: int = 1, size: int = 4, augment: bool = False, seed: int = 0) -> Data:
    """Noise with a faint mark of the class: every class occurs, in turn."""
    rng = np.random.default_rng([n, classes, channels, size, seed])
    labels = np.arange(n) % classes
    images = rng.integers(0, 200, (n, channels, size, size), dtype=np.uint8)
    images[np.arange(n), :, labels % size, :] += 55
    return Data(
        images=torch.from_numpy(images),
        labels=torch.from_numpy(labels),
        classes=tuple(f"class {c}" for c in range(classes)),
        source=torch.arange(n),
        wrong=torch.zeros(n, dtype=torch.bool),
        augment=augment,
    )


# ---------------------------------------------------------------- chance


def independent(table: np.ndarray) -> float:
    """Chi-square p-value of the rows and columns of a table of counts being independent."""
    expected = table.sum(1, keepdims=True) * table.sum(0) / table.sum()
    freedom = (table.shape[0] - 1) * (table.shape[1] - 1)
    return float(stats.chi2(freedom).sf(((table - expected) ** 2 / expected).sum()))


# ---------------------------------------------------------------- statistics


class SlowStats:
    """Statistics of samples, one sample at a time, in float64; `prune_env.stats.Stats` says what they are."""

    def __init__(self, n: int, classes: int, ema: float):
        self.ema, self.classes = ema, classes
        self.rows = [
            {
                "loss": math.log(classes),
                "loss_mean": math.log(classes),
                "loss_var": 0.0,
                "confidence": 1 / classes,
                "margin": 0.0,
                "margin_mean": 0.0,
                "entropy": 1.0,
                "el2n": math.sqrt((1 - 1 / classes) ** 2 + (classes - 1) / classes**2),
                "correct": 0.0,
                "forgets": 0.0,
                "visits": 0.0,
                "measured": None,
            }
            for _ in range(n)
        ]

    def visit(
        self, sample: int, logits: np.ndarray, label: int, clean: bool, spent: float, trained: bool = True
    ) -> tuple[int, int, int]:
        """Enter a visit, or a measurement by a forward pass alone; return (finite, measured, right), 0 or 1 each."""
        row = self.rows[sample]
        row["visits"] += trained
        if not all(math.isfinite(x) for x in logits):
            return 0, 0, 0
        if not clean:
            return 1, 0, 0
        z = [float(x) for x in logits]
        top = max(z)
        log_sum = top + math.log(sum(math.exp(x - top) for x in z))
        p = [math.exp(x - log_sum) for x in z]
        loss = min(log_sum - z[label], 100.0)
        right = z.index(top) == label  # the first of equals
        row["loss"] = loss
        row["confidence"] = p[label]
        row["margin"] = p[label] - max(p[c] for c in range(len(p)) if c != label)
        row["entropy"] = -sum(q * math.log(q) for q in p if q > 0) / math.log(self.classes)
        row["el2n"] = math.sqrt(sum((q - (c == label)) ** 2 for c, q in enumerate(p)))
        if row["correct"] and not right:
            row["forgets"] += 1
        row["correct"] = float(right)
        if row["measured"] is None:
            row["loss_mean"], row["loss_var"], row["margin_mean"] = loss, 0.0, row["margin"]
        else:
            a, old = self.ema, row["loss_mean"]
            row["loss_var"] = (1 - a) * row["loss_var"] + a * (loss - old) ** 2
            row["loss_mean"] = (1 - a) * old + a * loss
            row["margin_mean"] = 0.7 * row["margin_mean"] + 0.3 * row["margin"]
        row["measured"] = spent
        return 1, 1, int(right)

    def observe(self, spent: float) -> dict[str, np.ndarray]:
        names = [name for name in self.rows[0] if name != "measured"]
        seen = {name: np.array([row[name] for row in self.rows]) for name in names}
        seen["age"] = np.array([spent - (row["measured"] or 0.0) for row in self.rows])
        return seen


# ---------------------------------------------------------------- random numbers of augmentation


def hash32(x: int) -> int:
    """lowbias32 on Python's integers."""
    x ^= x >> 16
    x = x * 0x7FEB352D % 2**32
    x ^= x >> 15
    x = x * 0x846CA68B % 2**32
    return x ^ x >> 16


def crop_flip(image: np.ndarray, seed: int, sample: int, visits: int) -> np.ndarray:
    """Crop one image (C, H, W) out of its mirrored border, and mirror it on every other visit."""
    _, height, width = image.shape
    of_sample = hash32(sample ^ seed)
    of_visit = hash32((of_sample + visits * 0x9E3779B9) % 2**32)
    pad_y, pad_x = height // 8, width // 8
    top, left = of_visit % (2 * pad_y + 1), of_visit // 2**16 % (2 * pad_x + 1)
    padded = np.pad(image, ((0, 0), (pad_y, pad_y), (pad_x, pad_x)), mode="reflect")
    window = padded[:, top : top + height, left : left + width]
    return window[:, :, ::-1] if (of_sample + visits) % 2 else window


# ---------------------------------------------------------------- training


def schedule(progress: float, lr: float, warmup: float) -> float:
    """Rise in a straight line from 0 to `lr` at `warmup`, and fall in a straight line to 0 at 1."""
    return float(np.interp(progress, [0.0, warmup, 1.0], [0.0 if warmup else lr, lr, 0.0]))


def normalized(data: Data) -> Tensor:
    """(n, C, H, W) float32, each channel of the whole set with mean 0 and deviation 1."""
    pixels = data.images.numpy().astype(np.float64)
    mean, std = pixels.mean(axis=(0, 2, 3), keepdims=True), pixels.std(axis=(0, 2, 3), keepdims=True)
    return torch.from_numpy((pixels - mean) / std).float()


def smoothed_loss(logits: Tensor, label: int, smoothing: float) -> Tensor:
    """Cross-entropy of one row against (1 - s) onehot + s / C."""
    classes = len(logits)
    target = torch.full((classes,), smoothing / classes)
    target[label] += 1 - smoothing
    return -(target * (logits - logits.logsumexp(0))).sum()


class PlainSGD:
    """Nesterov momentum and weight decay written out: g += d p; v = m v + g; p -= lr (g + m v)."""

    def __init__(self, parameters: Iterable[nn.Parameter], momentum: float, decay: float):
        self.parameters = list(parameters)
        self.momentum, self.decay = momentum, decay
        self.velocity = [torch.zeros_like(p) for p in self.parameters]

    def step(self, lr: float, gradients: Iterable[Tensor]) -> None:
        with torch.no_grad():
            for p, v, gradient in zip(self.parameters, self.velocity, gradients, strict=True):
                g = gradient + self.decay * p
                v.mul_(self.momentum).add_(g)
                p.sub_(lr * (g + self.momentum * v))


def plain_epoch(
    model: nn.Module,
    sgd: PlainSGD,
    images: Tensor,
    labels: Tensor,
    rows: list[tuple[int, float, int, float]],
    sizes: list[int],
    batch_size: int,
    rates: list[float],
    smoothing: float = 0.0,
) -> None:
    """Train on rows of (sample, weight, partner, share) in batches of `sizes`, each one's loss sum(w l) / batch_size.

    Batch norm uses its running statistics where a batch is a single row.
    """
    remaining = iter(rows)
    batches = [[next(remaining) for _ in range(size)] for size in sizes]
    assert not list(remaining)
    for batch, rate in zip(batches, rates, strict=True):
        for module in model.modules():
            module.train(len(batch) > 1 or not isinstance(module, nn.BatchNorm2d))
        mixed = torch.stack([(1 - m) * images[i] + m * images[j] for i, _, j, m in batch])
        logits = model(mixed)
        total = torch.zeros(())
        for z, (i, weight, j, m) in zip(logits, batch, strict=True):
            mine = smoothed_loss(z, int(labels[i]), smoothing)
            other = smoothed_loss(z, int(labels[j]), smoothing)
            total = total + weight * ((1 - m) * mine + m * other)
        gradients = torch.autograd.grad(total / batch_size, sgd.parameters)
        sgd.step(rate, gradients)
