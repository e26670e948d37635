"""Spoil a share of the training images: blur them, add noise, or hide a part."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional as F

KINDS = ("blur", "noise", "occlusion")
NOISE = 64.0  # standard deviation in grey levels of 0 to 255
GREY = 127  # of what hides a part


@dataclass(frozen=True, eq=False)
class Corruption:
    """Which images of the training part are spoiled, and how; the same for each place that images are kept in."""

    kinds: np.ndarray  # (n,) int8: 0 for an image that stays as it is, else 1 + the place in KINDS
    seed: int  # of the task

    @classmethod
    def drawn(cls, n: int, share: float, seed: int, rng: np.random.Generator) -> Corruption:
        """Draw round(share · n) of n images, and for each of them one of KINDS, all equally likely."""
        kinds = np.zeros(n, np.int8)
        chosen = rng.permutation(n)[: round(share * n)]
        kinds[chosen] = rng.integers(1, len(KINDS) + 1, len(chosen))
        return cls(kinds, seed)

    @property
    def digest(self) -> bytes:
        """sha256 of what is done to the images; empty if nothing is."""
        return hashlib.sha256(self.kinds.tobytes() + str(self.seed).encode()).digest() if self.kinds.any() else b""

    def apply(self, images: np.ndarray, places: np.ndarray) -> None:
        """Spoil images (k, C, H, W) uint8 of the `places` (k,) in the training part, as far as they are to be."""
        for at in np.flatnonzero(self.kinds[places]).tolist():
            kind, rng = KINDS[self.kinds[places[at]] - 1], np.random.default_rng([self.seed, 6, int(places[at])])
            images[at] = spoiled(images[at], kind, rng)


def spoiled(image: np.ndarray, kind: str, rng: np.random.Generator) -> np.ndarray:
    """Return an image (C, H, W) uint8 that is spoiled in one of three ways.

    `blur` takes means over squares, 5 pixels wide for 32 a side. `noise` adds Gaussian noise to each pixel and channel.
    `occlusion` lays a grey square over a quarter of the image, at a random place.
    """
    side = image.shape[1]
    if kind == "blur":
        reach = max(1, side // 16)
        pixels = torch.tensor(image, dtype=torch.float32)
        mean = F.avg_pool2d(pixels, 2 * reach + 1, stride=1, padding=reach, count_include_pad=False)
        return mean.round().to(torch.uint8).numpy()
    if kind == "noise":
        return np.clip(np.rint(image + NOISE * rng.standard_normal(image.shape)), 0, 255).astype(np.uint8)
    hidden = max(1, side // 2)
    top, left = rng.integers(0, side - hidden + 1, 2)
    result = image.copy()
    result[:, top : top + hidden, left : left + hidden] = GREY
    return result
