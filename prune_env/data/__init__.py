"""The task: uint8 images of a training part and a validation part, for one device, with knobs that vary it."""

import dataclasses
import functools
import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from prune_env.checks import real, whole
from prune_env.data import sources
from prune_env.data.images import Images, channel_sums
from prune_env.data.residence import Holder, check_kind, holder

VALIDATION_SEED = 0  # fixed: every task of a data set is judged on the same images


@dataclass(frozen=True, eq=False)
class Data:
    """Samples for one device, where their labels are, and their images too unless they are `Images`."""

    images: Tensor | Any  # (n, C, H, W) uint8; an `Images` if they are kept elsewhere
    labels: Tensor  # (n,) int64, what training sees
    classes: tuple[str, ...]
    source: Tensor  # (n,) int64, row of the official split that this sample is (a copy of)
    wrong: Tensor  # (n,) bool, label replaced by label_noise
    augment: bool  # whether random crop and flip suit these images
    digest: str = ""  # sha256 over images and labels as held; computed when not given

    def __post_init__(self) -> None:
        if not self.digest:
            object.__setattr__(self, "digest", _digest(self.images, self.labels))

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Images (k, C, H, W) uint8 and labels (k,) int64 of the samples `indices` (k,) int64."""
        (batch,) = self.batches([indices])
        return batch

    def batches(self, parts: Sequence[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        """One `batch` for each of `parts`, indices (k,) int64, in their order.

        Images that are kept elsewhere are read ahead: see `Images.batches`.
        """
        if isinstance(self.images, Images):
            images = self.images.batches(parts, self.device)
        else:
            images = (self.images.index_select(0, part) for part in parts)
        return zip(images, (self.labels.index_select(0, part) for part in parts), strict=True)

    @property
    def device(self) -> torch.device:
        """Where batches are."""
        return self.labels.device

    @functools.cached_property
    def moments(self) -> tuple[Tensor, Tensor]:
        """Mean and deviation of each channel, (C,) float32 each, in grey levels of 0 to 255."""
        sums = self.images.sums if isinstance(self.images, Images) else channel_sums(self.images)
        height, width = self.images.shape[2:]
        mean, square = sums.cpu().double() / (len(self) * height * width)
        deviation = (square - mean.square()).clamp(min=1.0).sqrt()  # images without contrast stay finite
        return mean.float().to(self.device), deviation.float().to(self.device)

    def to(self, device: torch.device | str) -> "Data":
        """The same samples for `device`; images that are kept elsewhere stay there."""
        names = ("labels", "source", "wrong") if isinstance(self.images, Images) else _TENSORS
        return dataclasses.replace(self, **{name: getattr(self, name).to(device) for name in names})


_TENSORS = ("images", "labels", "source", "wrong")


def load(
    dataset: str,
    *,
    root: str | Path | None = None,
    download: bool = False,
    image_size: int | None = None,
    train_size: int | None = None,
    label_noise: float = 0.0,
    imbalance: float = 1.0,
    duplicates: float = 0.0,
    task_seed: int = 0,
    val_rest: bool = False,
    images: str = "auto",
    device: torch.device | str = "cpu",
) -> tuple[Data, Data]:
    """Training and validation part of a data set's official training split, for `device`.

    Validation is carved first and is the same for every task. The training part then goes through the knobs
    in this order, each drawing from its own generator seeded by `task_seed`:

    - `imbalance`: ratio >= 1 of the largest to the smallest class, falling exponentially with the class;
    - `train_size`: number of samples, classes keeping their shares;
    - `duplicates`: share of the training set that repeats other samples of it;
    - `label_noise`: share of the labels replaced by another class.

    With `val_rest` validation also has, with clean labels, the samples that `imbalance` and `train_size` leave out: a
    smaller error where tasks are for teaching a policy. Parts that hold the same images share their memory.
    Samples stay in the official order; a duplicate stands in the place of the sample that it replaces.

    `images` says where they are kept, and changes no number:

    - `device`: in the device's memory;
    - `host`: in the host's, from where batches are sent, read ahead by threads;
    - `mapped`: decoded into a file of the cache folder once, of which batches are read likewise. Each image has a
      checksum that is compared whenever it is read; a damaged one is decoded again;
    - `files`: nowhere; processes decode them whenever they are needed. They import the main module, so that a script
      needs its `if __name__ == "__main__"`, and a daemonic process cannot have them;
    - `auto`: the first of these that fits, see `prune_env.data.residence.choose`.

    Without the images in memory, their digest and channel sums take a pass over them, once for each task.

    Raises TypeError or ValueError for a knob of another type or out of range, and what `sources.read` and `Mapped`
    raise.
    """
    _check_knobs(train_size, label_noise, imbalance, duplicates, task_seed)
    found, samples = _find(dataset, "train", root, download, image_size, images)
    labels, names, origin = samples.labels, samples.classes, sources.get(dataset)
    classes = len(names)
    if classes < 2:
        raise ValueError(f"data set {dataset!r} has the classes {names}; there is nothing to learn below two")
    held_out = validation_rows(labels, names, origin.validation_share)
    rows = np.setdiff1d(np.arange(len(labels)), held_out)

    rngs = [np.random.default_rng((task_seed, knob)) for knob in (1, 2, 3, 4)]
    every, rows = rows, rows[imbalanced_rows(labels[rows], classes, imbalance, rngs[0])]
    if train_size is not None:
        rows = rows[stratified_rows(labels[rows], classes, train_size, rngs[1])]
    if val_rest:
        held_out = np.union1d(held_out, np.setdiff1d(every, rows))
    rows = with_duplicates(rows, duplicates, rngs[2])
    noisy, wrong = with_label_noise(labels[rows], classes, label_noise, rngs[3])

    hold = holder(images, found, samples, len(rows) + len(held_out), torch.device(device))
    train = _part(hold, names, rows, noisy, wrong, origin.augment, device)
    clean = np.zeros(len(held_out), bool)
    return train, _part(hold, names, held_out, labels[held_out], clean, False, device)


def load_test(
    dataset: str,
    *,
    root: str | Path | None = None,
    download: bool = False,
    image_size: int | None = None,
    images: str = "auto",
    device: torch.device | str = "cpu",
) -> Data:
    """The official test split: for the last line of an evaluation, never for an environment. Arguments as of `load`."""
    found, samples = _find(dataset, "test", root, download, image_size, images)
    rows = np.arange(len(samples.labels))
    hold = holder(images, found, samples, len(rows), torch.device(device))
    return _part(hold, samples.classes, rows, samples.labels, np.zeros(len(rows), bool), False, device)


def validation_rows(labels: np.ndarray, classes: tuple[str, ...], share: float) -> np.ndarray:
    """Sorted rows of a stratified `share` of samples with `labels` (n,); always the same ones.

    Raises ValueError for a class with a single sample: training would be left without it.
    """
    counts = np.bincount(labels, minlength=len(classes))
    if counts.min() < 2:
        name = classes[counts.argmin()]
        raise ValueError(f"class {name!r} has {counts.min()} training images: two or more are needed")
    sizes = apportion(max(1, round(share * len(labels))), counts)
    return draw_per_class(labels, sizes, np.random.default_rng(VALIDATION_SEED))


def imbalanced_rows(labels: np.ndarray, classes: int, ratio: float, rng: np.random.Generator) -> np.ndarray:
    """Sorted rows that leave class c with n_max · ratio^(−c / (C−1)) samples; ratio 1 leaves all as they are.

    n_max is the largest for which every class has that many. Raises ValueError if a class would be empty.
    """
    if ratio == 1:
        return np.arange(len(labels))
    counts = np.bincount(labels, minlength=classes)
    profile = ratio ** -np.linspace(0, 1, classes)
    sizes = np.rint(profile * (counts / profile).min()).astype(np.int64)
    if sizes.min() < 1:
        raise ValueError(f"imbalance={ratio} leaves class {sizes.argmin()} empty: use {sizes.max()} or less")
    return draw_per_class(labels, sizes, rng)


def stratified_rows(labels: np.ndarray, classes: int, size: int, rng: np.random.Generator) -> np.ndarray:
    """Sorted rows of exactly `size` samples in which classes keep their shares, none below one sample.

    Raises ValueError for more samples than there are, or fewer than classes.
    """
    if not classes <= size <= len(labels):
        raise ValueError(f"train_size={size} must lie between {classes}, one a class, and {len(labels)}, all there are")
    sizes = apportion(size, np.bincount(labels, minlength=classes))
    for empty in np.flatnonzero(sizes == 0):
        sizes[sizes.argmax()] -= 1
        sizes[empty] = 1
    return draw_per_class(labels, sizes, rng)


def with_duplicates(rows: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    """`rows` (n,) with round(share · n) replaced, in place, by uniform draws among those that stay."""
    order = rng.permutation(len(rows))
    copies = round(share * len(rows))
    replaced, kept = order[:copies], order[copies:]
    if len(kept) == 0:
        raise ValueError(f"duplicates={share} leaves none of {len(rows)} samples to copy: it must be lower")
    result = rows.copy()
    result[replaced] = rows[rng.choice(kept, copies)]
    return result


def with_label_noise(
    labels: np.ndarray, classes: int, share: float, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """`labels` (n,) with round(share · n) replaced by a uniformly drawn other class, and which (n,) bool.

    Raises ValueError if there is no other class.
    """
    if share > 0 and classes < 2:
        raise ValueError(f"label_noise={share} needs another class: the data set has {classes}")
    chosen = rng.permutation(len(labels))[: round(share * len(labels))]
    wrong = np.zeros(len(labels), bool)
    wrong[chosen] = True
    shift = rng.integers(1, max(classes, 2), len(labels))
    return np.where(wrong, (labels + shift) % classes, labels), wrong


def apportion(total: int, counts: np.ndarray) -> np.ndarray:
    """Split `total` in proportion to `counts` (C,): (C,) int64, largest remainders first, then lower classes."""
    shares, remainders = np.divmod(total * counts.astype(np.int64), counts.sum())
    shares[np.argsort(-remainders, kind="stable")[: total - shares.sum()]] += 1
    return shares


def draw_per_class(labels: np.ndarray, sizes: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Sorted rows holding `sizes[c]` uniformly drawn samples of each class c."""
    order = np.lexsort((rng.random(len(labels)), labels))  # class by class, shuffled inside a class
    ordered = labels[order]
    rank = np.arange(len(labels)) - np.searchsorted(ordered, ordered)  # place inside the class, 0 first
    return np.sort(order[rank < sizes[ordered]])


def _check_knobs(
    train_size: int | None, label_noise: float, imbalance: float, duplicates: float, task_seed: int
) -> None:
    # Comparisons are written so that NaN fails them.
    if not 0 <= real("label_noise", label_noise) <= 1:
        raise ValueError(f"label_noise={label_noise} must be a share between 0 and 1")
    if not 1 <= real("imbalance", imbalance) < math.inf:
        raise ValueError(f"imbalance={imbalance} must be a finite ratio of 1 or more")
    if not 0 <= real("duplicates", duplicates) < 1:
        raise ValueError(f"duplicates={duplicates} must be a share of at least 0 and below 1")
    if train_size is not None:
        whole("train_size", train_size)
    if whole("task_seed", task_seed) < 0:
        raise ValueError(f"task_seed={task_seed} must be 0 or more")


def _find(
    dataset: str, split: str, root: str | Path | None, download: bool, image_size: int | None, images: str
) -> tuple[sources.Found, sources.Samples | sources.Listing]:
    """A split, and its labels: of image files without opening one."""
    check_kind(images)
    found = sources.find(dataset, split, root, download, image_size)
    listing = found[0].listing
    if listing is None and images in ("mapped", "files"):
        raise ValueError(f"images={images!r} is for image files, and {dataset!r} has none: use auto, device or host")
    return found, listing or sources.decoded(*found)


def _part(
    hold: Holder,
    classes: tuple[str, ...],
    rows: np.ndarray,
    labels: np.ndarray,
    wrong: np.ndarray,
    augment: bool,
    device: torch.device | str,
) -> Data:
    """The samples `rows`; nothing else of the split can be reached through their images."""
    images, digest = hold(rows, labels)
    return Data(
        images=images,
        labels=torch.tensor(labels, device=device),
        classes=classes,
        source=torch.tensor(rows, device=device),
        wrong=torch.tensor(wrong, device=device),
        augment=augment,
        digest=digest,
    )


def _digest(images: Tensor, labels: Tensor) -> str:
    digest = hashlib.sha256()
    for tensor in (images, labels):
        digest.update(tensor.cpu().contiguous().numpy().data)
    return digest.hexdigest()
