"""Images that are not on the device, and how they get there while it trains."""

import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

AHEAD = 4  # parts that are read ahead
READERS = 2  # threads that read them
COUNTED = 2**20  # pixels summed at a time: 4 MiB as int32

Reader = Callable[[Sequence[np.ndarray], torch.device], Iterator[Tensor]]  # rows of a split, part by part, to images


class Images:
    """Images of some rows of a split, which `reader` reads; no others can be reached through it.

    Args:
        rows: (n,) int64.
        shape: (C, H, W) of an image.
        reader: takes rows of the split.
    """

    sums: Tensor  # (2, C) int64, of all pixels and of their squares

    def __init__(self, rows: np.ndarray, shape: tuple[int, ...], reader: Reader):
        self.shape = (len(rows), *shape)
        self._rows = rows
        self._reader = reader

    def batches(self, parts: Sequence[Tensor], device: torch.device) -> Iterator[Tensor]:
        """The images (k, C, H, W) uint8 of each of `parts` (k,) int64, on `device`; the next ones are read meanwhile.

        The host waits for the device once, for the indices. Whoever stops in the middle should close the iterator, or
        let go of it: threads and processes end with it. Raises IndexError for an index out of range, and what reading
        raises.
        """
        at = on_host(parts)
        if at.size and not 0 <= at.min() <= at.max() < len(self._rows):
            raise IndexError(f"indices from {at.min()} to {at.max()} into {len(self._rows)} images")
        ends = np.cumsum([len(part) for part in parts])
        return self._reader(np.split(self._rows[at], ends[:-1]), device)


def on_host(parts: Sequence[Tensor]) -> np.ndarray:
    """Indices, all parts together."""
    return torch.cat(list(parts)).cpu().numpy()


def buffer(shape: tuple[int, ...], device: torch.device) -> tuple[Tensor, np.ndarray]:
    """Memory for images that go to `device`, and a view of it; pinned for CUDA, which then copies without a wait."""
    images = torch.empty(shape, dtype=torch.uint8, pin_memory=device.type == "cuda")
    return images, images.numpy()


def channel_sums(images: Tensor) -> Tensor:
    """(2, C) int64, on their device: of the pixels of each channel of (n, C, H, W) uint8, and of their squares."""
    sums = torch.zeros(2, images.shape[1], dtype=torch.int64, device=images.device)
    for block in images.split(max(1, COUNTED // math.prod(images.shape[1:]))):
        pixels = block.int()
        sums += torch.stack([pixels.sum(dim=(0, 2, 3)), pixels.square().sum(dim=(0, 2, 3))])
    return sums


class Threads:
    """A reader: threads fill a buffer a part. Their number is small, as what they wait for is memory or a disk.

    Args:
        shape: (C, H, W) of an image.
        gather: copies rows (k,) of the split into (k, C, H, W) uint8.
    """

    def __init__(self, shape: tuple[int, ...], gather: Callable[[np.ndarray, np.ndarray], None]):
        self._shape = shape
        self._gather = gather

    def __call__(self, parts: Sequence[np.ndarray], device: torch.device) -> Iterator[Tensor]:
        pending: deque[tuple[Tensor, Future[None]]] = deque()
        pool = ThreadPoolExecutor(READERS)
        try:
            for rows in parts:
                images, view = buffer((len(rows), *self._shape), device)
                pending.append((images, pool.submit(self._gather, rows, view)))
                if len(pending) > AHEAD:
                    yield self._arrived(*pending.popleft(), device)
            while pending:
                yield self._arrived(*pending.popleft(), device)
        finally:
            pool.shutdown(cancel_futures=True)

    @staticmethod
    def _arrived(images: Tensor, filled: Future[None], device: torch.device) -> Tensor:
        filled.result()
        return images.to(device, non_blocking=True)
