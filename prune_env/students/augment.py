"""Random crop, flip and mixup of a batch, on its device, with a draw of its own for every sample.

The draws are a hash of (seed, sample, visit) and not a generator's stream: a sample's v-th visit looks the
same whichever samples are trained beside it, so paired runs of two agents differ by their choices alone.
"""

from __future__ import annotations

import torch
from torch import Tensor

_MASK = 0xFFFFFFFF


def hash32(x: Tensor) -> Tensor:
    """Mix int64 values in [0, 2^32) into int64 values in [0, 2^32) (C. Wellons' lowbias32)."""
    x = ((x ^ (x >> 16)) * 0x7FEB352D) & _MASK
    x = ((x ^ (x >> 15)) * 0x846CA68B) & _MASK
    return x ^ (x >> 16)


def draw(seed: int, indices: Tensor, visits: Tensor) -> tuple[Tensor, Tensor]:
    """Return two hashes (B,) int64 in [0, 2^32): of each sample, and of its visit.

    Args:
        seed: 32 bits.
        indices: (B,) int64.
        visits: (B,) int64, how often each was trained on before.
    """
    sample = hash32((indices ^ seed) & _MASK)
    return sample, hash32((sample + visits * 0x9E3779B9) & _MASK)


def crop_flip(images: Tensor, seed: int, indices: Tensor, visits: Tensor) -> Tensor:
    """Shift each image by up to an eighth of its side, mirrored at the border, and flip every other visit.

    Whether a sample's first visit is flipped is drawn; after that flips alternate by the sample's own visits
    (alternating flip, arXiv 2404.00498, keyed on epochs there, which a subset epoch would break).

    Args:
        images: (B, C, H, W) of any dtype; the result is like it.
        seed, indices, visits: see `draw`.
    """
    sample, visit = draw(seed, indices, visits)
    height, width = images.shape[2:]
    reach_y, reach_x = height // 8, width // 8
    top = visit % (2 * reach_y + 1) - reach_y
    left = (visit >> 16) % (2 * reach_x + 1) - reach_x
    flip = (sample + visits) % 2 == 1
    column = torch.arange(width, device=images.device)
    column = torch.where(flip[:, None], width - 1 - column, column)  # (B, W)
    y = _mirrored(top[:, None] + torch.arange(height, device=images.device), height)  # (B, H)
    x = _mirrored(left[:, None] + column, width)  # (B, W)
    flat = (y[:, :, None] * width + x[:, None, :]).flatten(1)  # (B, H * W)
    channels = images.shape[1]
    gathered = images.flatten(2).gather(2, flat[:, None].expand(-1, channels, -1))
    return gathered.view_as(images)


def _mirrored(places: Tensor, side: int) -> Tensor:
    """Return places in [0, side) for places up to a side beyond the border, mirrored at the outermost pixel."""
    return (side - 1) - ((side - 1) - places.abs()).abs()


def blend(images: Tensor, partners: Tensor, shares: Tensor) -> Tensor:
    """Return (1 - m) x + m x', the mixup of each image with its partner (arXiv 1710.09412).

    Args:
        images: (B, C, H, W) float32.
        partners: (B, C, H, W) float32.
        shares: (B,) float32, m.
    """
    return torch.lerp(images, partners, shares[:, None, None, None])
