"""1,797 handwritten digits of 8x8 pixels, embedded in the package: origin and licence in DIGITS.md."""

import hashlib
import io
from importlib import resources
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from prune_env.data.source import Samples, Source
from prune_env.io import DamagedFile

SIZE = 8  # pixels a side, as they were published
SHA256 = "b2dab7b501728c22e9119ad76740b2e17c77a231e42d1e592380d90886f1a05e"  # of digits.npz
TRAIN = 1300  # neighbours seem to share their writer, so the last 497 are mostly by other hands


def find(root: Path, split: str, size: int) -> Samples:
    """Return digits of `size` pixels a side, means over what lies in each; `root` plays no part.

    Digits of 3 or 4 pixels are a hard task. Raises DamagedFile unless the file is as published, byte for byte.
    """
    path = resources.files("prune_env.data").joinpath("digits.npz")
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != SHA256:
        raise DamagedFile(f"{path} is damaged: its content does not match its sha256; install the package again")
    rows = slice(TRAIN) if split == "train" else slice(TRAIN, None)
    with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
        images = arrays["images"][rows, None] * np.uint8(15)  # 0..16 -> 0..240, (n, 1, 8, 8)
        labels = arrays["labels"][rows].astype(np.int64)
    if size != SIZE:
        images = F.adaptive_avg_pool2d(torch.from_numpy(images).float(), size).round().to(torch.uint8).numpy()
    return Samples(images, labels, classes=tuple("0123456789"))


DIGITS = Source(find, fetch=None, image_size=SIZE, resizable=True, validation_share=0.2, augment=False)
