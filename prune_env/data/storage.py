"""Keep the images of a task on the device if they fit, else in the memory-mapped file that they were decoded to."""

import hashlib
import math
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from prune_env.checks import text
from prune_env.data.corruption import Corruption
from prune_env.data.source import Samples
from prune_env.machine import free_memory

KINDS = ("device", "mapped")
DEVICE_SHARE = 0.5  # of the device's free memory, for images: the rest is for weights, activations and what is added
MEMORY_SHARE = 0.4  # of the host's, where that is the device
AHEAD = 4  # batches that are read ahead
COUNTED = 2**20  # pixels summed at a time: 4 MiB as int32
PASS = 2**22  # bytes of images read at a time for their digest


class Mapped:
    """Images of some rows of a split, which a thread reads ahead; no others can be reached through it.

    Args:
        samples: the split.
        rows: (n,) int64.
        corruption: what is done to the images of these rows.
    """

    def __init__(self, samples: Samples, rows: np.ndarray, corruption: Corruption):
        self.shape = (len(rows), *samples.images.shape[1:])
        self._samples = samples
        self._rows = rows
        self._corruption = corruption

    def batches(self, parts: Sequence[Tensor], device: torch.device) -> Iterator[Tensor]:
        """Yield the images (k, C, H, W) uint8 of each of `parts` (k,) int64, on `device`; the next are read meanwhile.

        The host waits for the device once, for the indices. Whoever stops in the middle should close the iterator, or
        let go of it: the thread ends with it. Raises IndexError for an index out of range.
        """
        at = on_host(parts)
        if at.size and not 0 <= at.min() <= at.max() < len(self._rows):
            raise IndexError(f"indices from {at.min()} to {at.max()} into {len(self._rows)} images")
        ends = np.cumsum([len(part) for part in parts])
        return self._read(np.split(at, ends[:-1]), device)

    def _read(self, parts: Sequence[np.ndarray], device: torch.device) -> Iterator[Tensor]:
        pending: deque[tuple[Tensor, Future[None]]] = deque()

        def next_batch() -> Tensor:
            images, filled = pending.popleft()
            filled.result()
            return images.to(device, non_blocking=True)

        with ThreadPoolExecutor(1) as reader:
            try:
                for places in parts:
                    images, view = buffer((len(places), *self.shape[1:]), device)
                    pending.append((images, reader.submit(self._gather, places, view)))
                    if len(pending) > AHEAD:
                        yield next_batch()
                while pending:
                    yield next_batch()
            finally:
                reader.shutdown(cancel_futures=True)

    def _gather(self, places: np.ndarray, into: np.ndarray) -> None:
        """Copy the images of places (k,) among the rows into (k, C, H, W) uint8, going forwards through the file."""
        rows = self._rows[places]
        for at in np.argsort(rows).tolist():
            into[at] = self._samples.images[rows[at]]
        self._corruption.apply(into, places)

    def facts(self, labels: Tensor) -> tuple[str, Tensor]:
        """Return `digest_of` and `channel_sums` of these images. They take a pass, which the cache remembers."""
        from prune_env.data import cache

        of = hashlib.sha256(self._samples.state.encode() + self._rows.tobytes() + labels.cpu().numpy().tobytes())
        of.update(self._corruption.digest)
        known = cache.folder() / f"facts-{of.hexdigest()[:32]}.json"

        def compute() -> dict:
            digest, sums = hashlib.sha256(), torch.zeros(2, self.shape[1], dtype=torch.int64)
            parts = torch.arange(len(self._rows)).split(max(1, PASS // math.prod(self.shape[1:])))
            for block in self.batches(parts, torch.device("cpu")):
                digest.update(block.numpy().data)
                sums += channel_sums(block)
            digest.update(labels.cpu().numpy().data)
            return {"digest": digest.hexdigest(), "sums": sums.tolist()}

        facts = cache.remembered(known, compute) if self._samples.state else compute()
        return facts["digest"], torch.tensor(facts["sums"])


def chosen(kind: str, samples: Samples, n: int, device: torch.device) -> str:
    """Return `kind`, one of KINDS; for `auto`, "device" if `n` images fit there and else "mapped"."""
    if kind == "auto":
        return "device" if n * math.prod(samples.images.shape[1:]) <= room(device) else "mapped"
    return kind


def keep(
    kind: str, samples: Samples, rows: np.ndarray, corruption: Corruption, device: torch.device
) -> Tensor | Mapped:
    """Return the images of `rows` (n,) of a split, kept as `kind` says. Parts with the same images share memory."""
    if kind == "mapped":
        return Mapped(samples, rows, corruption)
    key = hashlib.sha256(rows.tobytes() + corruption.digest).hexdigest(), str(device)
    images = samples.gathered.get(key)
    if images is None:
        taken = np.take(samples.images, rows, axis=0)
        corruption.apply(taken, np.arange(len(rows)))
        images = samples.gathered[key] = torch.from_numpy(taken).to(device)
    return images


def room(device: torch.device) -> float:
    """Return the bytes that images may take on a device."""
    if device.type != "cuda":
        return MEMORY_SHARE * free_memory()
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return DEVICE_SHARE * (torch.cuda.mem_get_info(device)[0] + unused)


def check_kind(images: str) -> None:
    """Raises TypeError or ValueError unless that is "auto" or one of KINDS."""
    if text("images", images) not in ("auto", *KINDS):
        raise ValueError(f"images is {images!r}; it must be one of auto, {', '.join(KINDS)}")


def on_host(parts: Sequence[Tensor]) -> np.ndarray:
    """Return the indices of all parts together."""
    return torch.cat(list(parts)).cpu().numpy()


def buffer(shape: tuple[int, ...], device: torch.device) -> tuple[Tensor, np.ndarray]:
    """Return memory for images that go to `device`, and a view of it. CUDA copies from pinned memory without a wait."""
    images = torch.empty(shape, dtype=torch.uint8, pin_memory=device.type == "cuda")
    return images, images.numpy()


def channel_sums(images: Tensor) -> Tensor:
    """Return (2, C) int64: sums of the pixels of each channel of `images` (n, C, H, W) uint8, and of their squares."""
    sums = torch.zeros(2, images.shape[1], dtype=torch.int64, device=images.device)
    for block in images.split(max(1, COUNTED // math.prod(images.shape[1:]))):
        pixels = block.int()
        sums += torch.stack([pixels.sum(dim=(0, 2, 3)), pixels.square().sum(dim=(0, 2, 3))])
    return sums


def digest_of(images: Tensor, labels: Tensor) -> str:
    """Return the sha256 of images and labels, one after the other."""
    digest = hashlib.sha256()
    for tensor in (images, labels):
        digest.update(tensor.cpu().contiguous().numpy().data)
    return digest.hexdigest()
