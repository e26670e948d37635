"""The data sets: one small file per source, read the same way, and once a process."""

import importlib
import multiprocessing
import os
from collections import OrderedDict
from contextlib import suppress
from pathlib import Path

import numpy as np

from prune_env.checks import whole
from prune_env.data.source import Listing, Samples, Source, Split, printable, tell

__all__ = ["SOURCES", "Found", "Listing", "Samples", "Source", "Split", "find", "forget", "get", "read"]

# Module and name of each source; a module is imported when it is asked for, since torchvision's readers take
# more than a second, in every process.
SOURCES = {
    "digits": ("digits", "DIGITS"),
    "cifar10": ("cifar", "CIFAR_10"),
    "cifar100": ("cifar", "CIFAR_100"),
    "tiny_imagenet": ("tiny_imagenet", "TINY_IMAGENET"),
    "imagefolder": ("imagefolder", "IMAGEFOLDER"),
    "imagenet": ("imagenet", "IMAGENET"),
}
KEPT = 2**30  # bytes of arrays in memory that a process keeps of the splits it has read; memory-mapped ones are extra

Found = tuple[Split, Path, str]  # a split, the root it was found below, and a name for its decoded copy

_Key = tuple[str, str, Path, int]  # data set, split, root, image size
_read: OrderedDict[_Key, Samples] = OrderedDict()  # the last one used at the end


def get(name: str) -> Source:
    """Return the source called `name`. Raises ValueError, listing the names, if there is none."""
    if name not in SOURCES:
        raise ValueError(f"unknown data set {name!r}: choose one of {', '.join(SOURCES)}")
    module, attribute = SOURCES[name]
    return getattr(importlib.import_module(f"prune_env.data.{module}"), attribute)


def find(name: str, split: str, root: str | Path | None, download: bool, image_size: int | None) -> Found:
    """Find one official split ("train" or "test") of the data set `name`, without opening an image.

    Raises ValueError for an unknown name or an image size it cannot have, FileNotFoundError when the data set
    is neither below `root` (by default $PRUNE_ENV_DATA, else ~/.cache/prune_env/data) nor to be downloaded.
    """
    _, _, where, size = _key(name, split, root, image_size)
    source = get(name)
    if download and source.fetch is not None:
        source.fetch(where)
    return source.find(where, split, size), where, f"{name}-{split}-{size}"


def read(name: str, split: str, root: str | Path | None, download: bool, image_size: int | None) -> Samples:
    """Return the decoded samples of a split. Arguments and errors as for `find`.

    Training splits are read once a process, and shared: a folder that changes is noticed by the next process. It keeps
    the splits that it used last, up to KEPT bytes of memory. Image files are decoded into a memory-mapped file of the
    cache, which takes none.
    """
    key = _key(name, split, root, image_size)
    if key in _read:
        _read.move_to_end(key)
        return _read[key]
    found, where, label = find(name, split, root, download, image_size)
    samples = _decoded(found, where, label)
    if found.listing is not None:
        _tell_of_copies(name, split, where, key[-1], found.listing)
    if split == "train":  # nothing in the package holds on to test labels, which environments must not reach
        _read[key] = samples
    while sum(map(_private, _read.values())) > KEPT:
        _read.popitem(last=False)
    return samples


def forget() -> None:
    """Let the next `read` look at the folders again."""
    _read.clear()


def _key(name: str, split: str, root: str | Path | None, image_size: int | None) -> _Key:
    source = get(name)
    size = source.image_size if image_size is None else image_size
    if whole("image_size", size) < 1 or (size != source.image_size and not source.resizable):
        allowed = "a positive whole number of pixels" if source.resizable else f"{source.image_size} (its only size)"
        raise ValueError(f"image_size={image_size} for {name!r}: it must be {allowed}")
    if root is not None and not isinstance(root, str | os.PathLike):
        raise TypeError(f"root is {root!r}; it must be a path")
    where = Path(root or os.environ.get("PRUNE_ENV_DATA") or "~/.cache/prune_env/data").expanduser().absolute()
    return name, split, where, size


def _decoded(split: Split, where: Path, label: str) -> Samples:
    if split.read is not None:
        samples = split.read()
    else:
        from prune_env.data import cache  # only image files need it, and Pillow

        assert split.listing is not None
        state = cache.state_of(split.files)  # before reading: what changes meanwhile is noticed next time
        images = cache.decoded(split, state, where, label)
        samples = Samples(images, split.listing.labels, split.listing.classes, state)
    for array in (samples.images, samples.labels):
        array.setflags(write=False)
    return samples


def _private(samples: Samples) -> int:
    """Bytes of memory that only this process has."""
    return samples.labels.nbytes + (0 if isinstance(samples.images, np.memmap) else samples.images.nbytes)


def _tell_of_copies(name: str, split: str, root: Path, size: int, listing: Listing) -> None:
    """Say once how many test images are copies of training images, and how many images are in two classes."""
    if multiprocessing.parent_process() is not None:
        return  # the parent says so
    from prune_env.data import cache, copies

    both = {split: listing}
    with suppress(OSError, ValueError):  # whoever reads the other one is told what is wrong with it
        other = "test" if split == "train" else "train"
        if (theirs := get(name).find(root, other, size).listing) is not None:
            both[other] = theirs
    if "train" not in both:
        return
    state = cache.state_of([path for one in both.values() for path in one.paths])
    known = cache.place(root, f"{name}-copies", state, "json")
    if line := copies.report(both["train"], both.get("test"), known):
        tell(f"{printable(root)}: {line}")
