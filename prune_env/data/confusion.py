"""Which classes a small model takes for each other."""

from __future__ import annotations

import numpy as np
import torch
from torch.nn import functional as F

from prune_env.data.task import draw_per_class

IMAGES = 20_000  # looked at, at most, as many of each class: half a second
SIDE = 8  # pixels that images are shrunk to
RIDGE = 1e-3  # of the mean variance, added to each: pixels may be constant
BLOCK = 512  # images shrunk at a time


def confusion(images: np.ndarray, labels: np.ndarray, rows: np.ndarray, classes: int) -> np.ndarray:
    """Return (C, C) float64: how probable each wrong class is for the images of a class; rows add up to 1.

    The model is a linear discriminant (Gaussians of one covariance, equal priors) on the images shrunk to SIDE pixels,
    fitted to them in closed form. Row c is the mean, over the images of class c, of the probabilities that it gives the
    other classes if c is ruled out. A data set has one confusion: the only draw has a fixed seed.

    Args:
        images: (n, channels, H, W) uint8, some of each class.
        labels: (n,) int64.
        rows: (m,) of those, which are looked at.
        classes: C, 2 or more.
    """
    sizes = np.minimum(np.bincount(labels[rows], minlength=classes), max(1, IMAGES // classes))
    rows = rows[draw_per_class(labels[rows], sizes, np.random.default_rng(0))]
    x = np.concatenate([_shrunk(images[rows[i : i + BLOCK]]) for i in range(0, len(rows), BLOCK)])  # (m, F)
    y = labels[rows]
    of_class = np.eye(classes)[y] / sizes[y, None]  # (m, C); columns add up to 1
    means = of_class.T @ x  # (C, F)
    centred = x - means[y]
    covariance = centred.T @ centred / len(x)
    covariance += RIDGE * max(np.trace(covariance) / len(covariance), 1.0) * np.eye(len(covariance))
    directions = np.linalg.solve(covariance, means.T)  # (F, C)
    scores = x @ directions - (means.T * directions).sum(0) / 2  # (m, C), log probabilities but for a constant
    scores[np.arange(len(y)), y] = -np.inf
    wrong = np.exp(scores - scores.max(1, keepdims=True))
    return of_class.T @ (wrong / wrong.sum(1, keepdims=True))


def _shrunk(images: np.ndarray) -> np.ndarray:
    """Return (n, F) float64: images (n, channels, H, W) uint8 of at most SIDE pixels a side."""
    side = min(SIDE, images.shape[2])
    return F.adaptive_avg_pool2d(torch.from_numpy(images).float(), side).flatten(1).double().numpy()
