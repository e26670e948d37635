"""A task: uint8 images of a training part and a validation part, for one device."""

import functools
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from prune_env.data import columns, sources
from prune_env.data.arrays import Arrays
from prune_env.data.confusion import confusion
from prune_env.data.corruption import Corruption
from prune_env.data.storage import Mapped, channel_sums, check_kind, chosen, digest_of, keep
from prune_env.data.task import VARIANT, Variant, validation_rows

__all__ = ["VARIANT", "Arrays", "Data", "Variant", "load", "load_test", "sources"]


@dataclass(frozen=True, eq=False)
class Data:
    """Samples for one device, where their labels are, and their images too unless they are `Mapped`."""

    images: Tensor | Any  # (n, C, H, W) uint8; a `Mapped` if they are read from a file
    labels: Tensor  # (n,) int64, what training sees
    classes: tuple[str, ...]
    source: Tensor  # (n,) int64, row of the official split that this sample is (a copy of)
    wrong: Tensor  # (n,) bool, label of another class than the true one
    augment: bool  # whether random crop and flip suit these images
    corrupted: Tensor | None = None  # (n,) bool, image spoiled; None: no image is
    reference: np.ndarray | None = None  # (n,) float32, a number from outside for each sample
    reference_flops: float = 0.0  # floating-point operations that the reference took

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Return images (k, C, H, W) uint8 and labels (k,) int64 of the samples `indices` (k,) int64."""
        (batch,) = self.batches([indices])
        return batch

    def batches(self, parts: Sequence[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield one `batch` for each of `parts`, indices (k,) int64, in their order.

        Images in a file are read ahead: see `Mapped.batches`.
        """
        if isinstance(self.images, Mapped):
            images = self.images.batches(parts, self.device)
        else:
            images = map(functools.partial(self.images.index_select, 0), parts)
        return zip(images, (self.labels.index_select(0, part) for part in parts), strict=True)

    @property
    def device(self) -> torch.device:
        """Where batches are."""
        return self.labels.device

    @functools.cached_property
    def digest(self) -> str:
        """sha256 over images and labels; computed when it is asked for."""
        return self._facts[0] if isinstance(self.images, Mapped) else digest_of(self.images, self.labels)

    @functools.cached_property
    def reference_digest(self) -> str:
        """sha256 of the reference and of what it took; empty without one."""
        if self.reference is None:
            return ""
        return hashlib.sha256(self.reference.tobytes() + repr(self.reference_flops).encode()).hexdigest()

    @functools.cached_property
    def moments(self) -> tuple[Tensor, Tensor]:
        """Mean and deviation of each channel, (C,) float32 each, in grey levels of 0 to 255."""
        sums = self._facts[1] if isinstance(self.images, Mapped) else channel_sums(self.images)
        height, width = self.images.shape[2:]
        mean, square = sums.cpu().double() / (len(self) * height * width)
        deviation = (square - mean.square()).clamp(min=1.0).sqrt()  # images without contrast stay finite
        return mean.float().to(self.device), deviation.float().to(self.device)

    @functools.cached_property
    def _facts(self) -> tuple[str, Tensor]:
        """Digest and channel sums of images in a file, from one pass."""
        assert isinstance(self.images, Mapped)
        return self.images.facts(self.labels)


def load(
    dataset: str | Arrays,
    *,
    root: str | Path | None = None,
    download: bool = False,
    image_size: int | None = None,
    images: str = "auto",
    device: torch.device | str = "cpu",
    **variant: Any,
) -> tuple[Data, Data]:
    """Return the training and the validation part of a data set's official training split, for `device`.

    The fields of `Variant`, such as `train_size`, vary the task. Parts that hold the same images share their memory.

    `images` says where they are kept, and changes no number:

    - `device`: in the device's memory;
    - `mapped`: in the file of the cache that image files are decoded to once, memory-mapped, of which batches are read
      ahead by a thread. The digest and the channel sums of a task take a pass over its images, once;
    - `auto`: the first of these that fits, see `prune_env.data.storage.room`.

    Raises TypeError or ValueError for a value of another type or out of range, and what `sources.read` raises.
    """
    varied = Variant(**variant)
    check_kind(images)
    samples, source = sources.read(dataset, "train", root, download, image_size), sources.get(dataset)
    if len(samples.classes) < 2:
        raise ValueError(f"data set {dataset!r} has the classes {samples.classes}; there is nothing to learn below two")
    rows = samples.validation
    if rows is None:
        rows = _drawn.get(samples)
    if rows is None:
        rows = _drawn[samples] = validation_rows(samples.labels, samples.classes, source.validation_share)
    parts = varied.parts(samples.labels, samples.classes, rows)
    device = torch.device(device)
    kind = chosen(images, samples, len(parts.train) + len(parts.validation), device)
    apart = 0 if samples.validation is None else len(samples.validation)  # validation of the caller's own, at the end

    def values_of(name: str, file: str) -> tuple[list[Any], float]:
        listed = functools.partial(sources.paths, dataset, root, image_size)
        return columns.values_of(name, file, parts.train, len(samples.labels) - apart, listed)

    def confused() -> np.ndarray:
        every = np.setdiff1d(np.arange(len(samples.labels)), rows)  # all but validation: the same for each task
        return confusion(samples.images, samples.labels, every, len(samples.classes))

    labels = samples.labels[parts.train]
    if varied.labels is not None:
        labels = columns.as_classes(varied.labels, values_of("labels", varied.labels)[0], samples.classes)
    labels, corruption = varied.noisy(labels, len(samples.classes), confused), varied.corruption(len(labels))
    train = _data(samples, parts.train, labels, corruption, source.augment, kind, device)
    if varied.reference is not None:
        values, flops = values_of("reference", varied.reference)
        reference = columns.as_numbers(varied.reference, values)
        train = replace(train, reference=reference, reference_flops=flops)
    validation = parts.validation
    untouched = Variant().corruption(len(validation))
    return train, _data(samples, validation, samples.labels[validation], untouched, False, kind, device)


def load_test(
    dataset: str | Arrays,
    *,
    root: str | Path | None = None,
    download: bool = False,
    image_size: int | None = None,
    images: str = "auto",
    device: torch.device | str = "cpu",
) -> Data:
    """Return the official test split: for the last line of an evaluation, never for an environment.

    Arguments as of `load`.
    """
    check_kind(images)
    samples = sources.read(dataset, "test", root, download, image_size)
    n, device = len(samples.labels), torch.device(device)
    kind = chosen(images, samples, n, device)
    return _data(samples, np.arange(n), samples.labels, Variant().corruption(n), False, kind, device)


# (m,) validation rows that were drawn from a split, since an environment asks for them with every new task
_drawn: WeakKeyDictionary[sources.Samples, np.ndarray] = WeakKeyDictionary()


def _data(
    samples: sources.Samples,
    rows: np.ndarray,
    labels: np.ndarray,
    corruption: Corruption,
    augment: bool,
    kind: str,
    device: torch.device,
) -> Data:
    """Return the samples `rows`; nothing else of the split can be reached through their images."""
    return Data(
        images=keep(kind, samples, rows, corruption, device),
        labels=torch.tensor(labels, device=device),
        classes=samples.classes,
        source=torch.tensor(rows, device=device),
        wrong=torch.tensor(labels != samples.labels[rows], device=device),
        augment=augment,
        corrupted=torch.tensor(corruption.kinds > 0, device=device),
    )
