"""A data set of the caller's own, in memory."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from prune_env.data.source import Samples, Source

Pair = tuple[Any, Any]  # images and labels, arrays or tensors
NAME = "arrays"  # what programs and recipes call such data


class Arrays:
    """Images and labels in memory: `PruneEnv(dataset=Arrays((images, labels)))`.

    Images are square: (n, H, W), (n, C, H, W) or (n, H, W, C), arrays or tensors. They are uint8, or floats in [0, 1],
    which are rounded to 256 levels. Labels are (n,) whole numbers from 0 on, and training has each of them. Everything
    is copied.

    Args:
        train: images and labels to train on.
        val: to validate on. Without it, a fixed tenth of each class of `train` is taken, as from a folder of images.
        test: for the programs, which open it at the end of a run. No environment looks at it.
        classes: names of the classes; by default their numbers.
        augment: whether random crop and flip suit the images.

    Raises TypeError or ValueError for what is not so, naming it.
    """

    def __init__(
        self,
        train: Pair,
        val: Pair | None = None,
        test: Pair | None = None,
        *,
        classes: Sequence[str] | None = None,
        augment: bool = False,
    ):
        given = (("train", train), ("val", val), ("test", test))
        parts = {name: _read(name, pair) for name, pair in given if pair is not None}
        images, labels = parts["train"]
        present = np.unique(labels)
        names = tuple(map(str, range(len(present)) if classes is None else classes))
        if len(absent := np.setdiff1d(np.arange(len(names)), present)):
            raise ValueError(
                f"labels of train go from {present[0]} to {present[-1]} and lack {absent[0]}; they must be 0 to "
                f"{len(names) - 1}, each with samples: numpy.unique(labels, return_inverse=True)[1] numbers them so"
            )
        for name, (others, theirs) in parts.items():
            if others.shape[1:] != images.shape[1:]:
                raise ValueError(f"images of {name} are {others.shape[1:]} each, of train {images.shape[1:]}")
            if not 0 <= theirs.min() <= theirs.max() < len(names):
                raise ValueError(
                    f"labels of {name} go from {theirs.min()} to {theirs.max()}; there are the classes 0 to "
                    f"{len(names) - 1}"
                )
        known = [parts[name] for name in ("train", "val") if name in parts]
        images, labels = (np.concatenate(arrays) for arrays in zip(*known, strict=True))
        rows = np.arange(len(known[0][1]), len(labels)) if "val" in parts else None
        self._splits = {"train": Samples(images, labels, names, validation=rows)}
        if "test" in parts:
            others, theirs = parts["test"]
            self._splits["test"] = Samples(others.copy(), theirs, names)
        self._resized: dict[tuple[str, int], Samples] = {}
        self.augment = augment

    @property
    def source(self) -> Source:
        """These arrays, as any data set."""
        side = self._splits["train"].images.shape[2]
        return Source(lambda root, split, size: self.find(split, size), None, side, True, 0.1, self.augment)

    def find(self, split: str, size: int) -> Samples:
        """Return a split, its images `size` pixels a side. Raises ValueError for a test split that was not given."""
        if split not in self._splits:
            raise ValueError("these arrays have no test split, which is opened at the end of a run: pass Arrays(test=)")
        samples = self._splits[split]
        if size == samples.images.shape[2]:
            return samples
        if (split, size) not in self._resized:
            images = F.interpolate(torch.from_numpy(samples.images), (size, size), mode="bilinear", antialias=True)
            self._resized[split, size] = Samples(
                images.numpy(), samples.labels, samples.classes, validation=samples.validation
            )
        return self._resized[split, size]

    @functools.cached_property
    def digest(self) -> str:
        """sha256 of everything that an environment or a program reads."""
        digest = hashlib.sha256()
        for split, samples in self._splits.items():
            head = split, samples.images.shape, samples.classes, self.augment, samples.validation is None
            digest.update(repr(head).encode())
            for array in (samples.images, samples.labels):
                digest.update(array.data)
        return digest.hexdigest()

    def __repr__(self) -> str:
        sizes = ", ".join(f"{len(labels)} {name}" for name, (_, labels) in self._parts().items())
        return f"Arrays({sizes}, sha256 {self.digest[:16]})"

    def _parts(self) -> dict[str, Pair]:
        """Return what was given, as it is kept."""
        train = self._splits["train"]
        first = len(train.labels) if train.validation is None else len(train.labels) - len(train.validation)
        found = {"train": (train.images[:first], train.labels[:first])}
        if train.validation is not None:
            found["val"] = train.images[first:], train.labels[first:]
        if "test" in self._splits:
            found["test"] = self._splits["test"].images, self._splits["test"].labels
        return found

    def __deepcopy__(self, memo: dict) -> Arrays:
        return self  # nobody writes to it, and `gym.make` copies its arguments

    def __reduce__(self):
        settings = {"classes": self._splits["train"].classes, "augment": self.augment}
        return functools.partial(Arrays, **self._parts(), **settings), ()


def _read(name: str, pair: Pair) -> tuple[np.ndarray, np.ndarray]:
    """Return images (n, C, H, W) uint8 and labels (n,) int64, which may still share the caller's memory."""
    if not isinstance(pair, tuple | list) or len(pair) != 2:
        raise TypeError(f"{name} is a {type(pair).__name__}; it must be (images, labels)")
    images, labels = (x.detach().cpu().numpy() if isinstance(x, torch.Tensor) else np.asarray(x) for x in pair)
    if labels.ndim != 1 or labels.dtype.kind not in "iu" or len(labels) == 0:
        raise ValueError(f"labels of {name} are {labels.dtype} {labels.shape}; they must be (n,) whole numbers")
    if len(images) != len(labels):
        raise ValueError(f"{name} has {len(images)} images and {len(labels)} labels")
    shape = images.shape
    if images.ndim == 3:
        images = images[:, None]
    elif images.ndim == 4 and shape[2] != shape[3] and shape[1] == shape[2]:
        images = images.transpose(0, 3, 1, 2)
    if images.ndim != 4 or images.shape[2] != images.shape[3]:
        raise ValueError(f"images of {name} are {shape}; they must be (n, H, W), (n, C, H, W) or (n, H, W, C), H = W")
    if images.dtype.kind == "f" and 0.0 <= images.min() <= images.max() <= 1.0:
        images = np.rint(images * 255.0)
    elif images.dtype != np.uint8:
        raise ValueError(
            f"images of {name} are {images.dtype} from {images.min():g} to {images.max():g}; they must be uint8, or "
            "floats in [0, 1] before any normalisation"
        )
    return np.ascontiguousarray(images, np.uint8), labels.astype(np.int64)
