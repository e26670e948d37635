"""Vary a data set's task: how its official training split becomes a training and a validation part."""

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import NamedTuple

import numpy as np

from prune_env.checks import real, text, whole
from prune_env.data.corruption import Corruption

VALIDATION_SEED = 0  # fixed: every task of a data set is judged on the same images
NOISE_KINDS = ("uniform", "pair", "confused")


@dataclass(frozen=True, kw_only=True)
class Variant:
    """What makes one task of a data set differ from another; all at their defaults leave the data as they are.

    Validation is carved first and is the same for every task. The training part then goes through `imbalance`,
    `train_size`, `duplicates`, `labels`, `label_noise` and `corrupted`, in this order, each drawing from its own
    generator seeded by `task_seed`. Samples stay in the official order; a duplicate stands in the place of the sample
    that it replaces. Validation and test keep their labels and images.

    Raises TypeError or ValueError for a value of another type or out of range.
    """

    train_size: int | None = None
    """Number of training samples, classes keeping their shares: from one a class to all; by default all."""
    label_noise: float = 0.0
    """Share of the labels replaced by another class: 0 to 1."""
    label_noise_kind: str = "uniform"
    """What replaces them: `uniform` (any other class), `pair` (the next one) or `confused` (those that a small model
    takes it for)."""
    labels: str | None = None
    """Training labels of your own, beside the true ones: a .csv, .parquet or .npy file, or FILE:COLUMN."""
    corrupted: float = 0.0
    """Share of the training images that are blurred, made noisy or partly hidden: 0 to 1."""
    imbalance: float = 1.0
    """Ratio of the largest to the smallest class, falling exponentially with the class: 1 or more."""
    duplicates: float = 0.0
    """Share of the training set that repeats other samples of it: at least 0 and below 1."""
    task_seed: int = 0
    """Seed of what is drawn: 0 or more."""
    val_rest: bool = False
    """Whether validation also has, with clean labels, the samples that `imbalance` and `train_size` leave out."""
    val_size: int | None = None
    """Number of validation samples, classes keeping their shares; by default all. Fewer make an epoch cheaper."""
    reference: str | None = None
    """A number for each training image, which agents see: a file, as for `labels`. Its column `flops` is charged."""

    def __post_init__(self) -> None:
        # Comparisons are written so that NaN fails them.
        for name in ("label_noise", "corrupted"):
            if not 0 <= real(name, getattr(self, name)) <= 1:
                raise ValueError(f"{name}={getattr(self, name)} must be a share between 0 and 1")
        if self.label_noise_kind not in NOISE_KINDS:
            raise ValueError(f"label_noise_kind={self.label_noise_kind!r} must be one of {', '.join(NOISE_KINDS)}")
        for name in ("labels", "reference"):
            if getattr(self, name) is not None:
                text(name, getattr(self, name))
        if not 1 <= real("imbalance", self.imbalance) < math.inf:
            raise ValueError(f"imbalance={self.imbalance} must be a finite ratio of 1 or more")
        if not 0 <= real("duplicates", self.duplicates) < 1:
            raise ValueError(f"duplicates={self.duplicates} must be a share of at least 0 and below 1")
        for name in ("train_size", "val_size"):
            if getattr(self, name) is not None:
                whole(name, getattr(self, name))
        if whole("task_seed", self.task_seed) < 0:
            raise ValueError(f"task_seed={self.task_seed} must be 0 or more")

    def parts(self, labels: np.ndarray, classes: tuple[str, ...], validation: np.ndarray) -> "Parts":
        """Divide the samples of a split with `labels` (n,), of which the rows `validation` (m,) are not trained on.

        Raises ValueError for what leaves a class empty.
        """
        every = np.delete(np.arange(len(labels)), validation)
        rngs = [np.random.default_rng((self.task_seed, knob)) for knob in (1, 2, 3)]
        rows = every[imbalanced_rows(labels[every], len(classes), self.imbalance, rngs[0])]
        if self.train_size is not None:
            rows = rows[stratified_rows("train_size", labels[rows], len(classes), self.train_size, rngs[1])]
        if self.val_rest:
            validation = np.delete(np.arange(len(labels)), rows)
        if self.val_size is not None:  # the same ones for every task that has the same to choose from
            rng = np.random.default_rng(VALIDATION_SEED)
            validation = validation[stratified_rows("val_size", labels[validation], len(classes), self.val_size, rng)]
        return Parts(with_duplicates(rows, self.duplicates, rngs[2]), validation)

    def noisy(self, labels: np.ndarray, classes: int, confusion: Callable[[], np.ndarray]) -> np.ndarray:
        """Return labels (n,) of which `label_noise` has replaced a share; `confusion` gives (C, C), see there."""
        rng = np.random.default_rng((self.task_seed, 4))
        probabilities = confusion() if self.label_noise and self.label_noise_kind == "confused" else None
        return with_label_noise(labels, classes, self.label_noise, rng, self.label_noise_kind, probabilities)

    def corruption(self, n: int) -> Corruption:
        """Return what is done to n training images."""
        rng = np.random.default_rng((self.task_seed, 5))
        return Corruption.drawn(n, self.corrupted, self.task_seed, rng)


VARIANT = tuple(field.name for field in fields(Variant))  # the names of what varies a task


class Parts(NamedTuple):
    """Rows of a split for training and validation."""

    train: np.ndarray  # (n,) int64
    validation: np.ndarray  # (m,) int64


def validation_rows(labels: np.ndarray, classes: tuple[str, ...], share: float) -> np.ndarray:
    """Sorted rows of a stratified `share` of samples with `labels` (n,); always the same ones.

    Raises ValueError for a class with a single sample: training would be left without it.
    """
    counts = np.bincount(labels, minlength=len(classes))
    if counts.min() < 2:
        name = classes[counts.argmin()]
        raise ValueError(
            f"class {name!r} has {counts.min()} image(s) in the training split: two or more are needed, since "
            "validation images are taken from there"
        )
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


def stratified_rows(name: str, labels: np.ndarray, classes: int, size: int, rng: np.random.Generator) -> np.ndarray:
    """Sorted rows of exactly `size` samples in which classes keep their shares, none below one sample.

    Raises ValueError for more samples than there are, or fewer than classes.
    """
    if not classes <= size <= len(labels):
        raise ValueError(f"{name}={size} must lie between {classes}, one a class, and {len(labels)}, all there are")
    counts = np.bincount(labels, minlength=classes)
    sizes = apportion(size, counts)
    for empty in np.flatnonzero((sizes == 0) & (counts > 0)):
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
    labels: np.ndarray,
    classes: int,
    share: float,
    rng: np.random.Generator,
    kind: str = "uniform",
    confusion: np.ndarray | None = None,
) -> np.ndarray:
    """`labels` (n,) with round(share · n) replaced by another class.

    By default all others are equally likely. `pair` is the next one, the first after the last. `confused` draws from
    the label's row of `confusion` (C, C), whose rows add up to 1 and whose diagonal is 0.
    """
    chosen = rng.permutation(len(labels))[: round(share * len(labels))]
    result = labels.copy()
    if kind == "confused" and confusion is not None:
        ends = np.cumsum(confusion, axis=1)
        ends = (ends / ends[:, -1:] + np.arange(classes)[:, None]).ravel()  # class c has the numbers from c to c + 1
        drawn = np.searchsorted(ends, labels[chosen] + rng.random(len(chosen)), side="right")
        result[chosen] = drawn - classes * labels[chosen]
    else:
        shift = 1 if kind == "pair" else rng.integers(1, classes, len(labels))[chosen]
        result[chosen] = (labels[chosen] + shift) % classes
    return result


def apportion(total: int, counts: np.ndarray) -> np.ndarray:
    """Split `total` in proportion to `counts` (C,): (C,) int64, largest remainders first, then lower classes."""
    shares, remainders = np.divmod(total * counts.astype(np.int64), counts.sum())
    shares[np.argsort(-remainders, kind="stable")[: total - shares.sum()]] += 1
    return shares


def draw_per_class(labels: np.ndarray, sizes: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Sorted rows holding `sizes[c]` uniformly drawn samples of each class c."""
    shuffled = np.argsort(rng.random(len(labels)))
    small = labels.astype(np.min_scalar_type(len(sizes)))  # numpy sorts 8 and 16 bits by radix: a quarter of the time
    order = shuffled[np.argsort(small[shuffled], kind="stable")]  # class by class, shuffled inside a class
    ordered = labels[order]
    starts = np.searchsorted(ordered, np.arange(len(sizes)))  # (C,)
    rank = np.arange(len(labels)) - starts[ordered]  # place inside the class, 0 first
    return np.sort(order[rank < sizes[ordered]])
