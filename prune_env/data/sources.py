"""The data sets: one small file per source, read the same way, and once a process."""

import importlib
import multiprocessing
import os
from contextlib import suppress
from pathlib import Path

from prune_env.checks import whole
from prune_env.data import arrays
from prune_env.data.arrays import Arrays
from prune_env.data.source import Listing, Samples, Source, printable, tell

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
OWN = "prune_env.data.Arrays(train=(images, labels))"

_read: dict[tuple[str, Path, int], Samples] = {}  # training splits by data set, root and image size


def name_of(dataset: str | Arrays) -> str:
    """Return what recipes and records call a data set. Raises TypeError for what is neither a name nor `Arrays`."""
    if isinstance(dataset, Arrays):
        return arrays.NAME
    if not isinstance(dataset, str):
        raise TypeError(f"dataset is a {type(dataset).__name__}; it must be a name, or {OWN}")
    return dataset


def get(name: str | Arrays) -> Source:
    """Return the source called `name`. Raises ValueError, listing the names, if there is none."""
    if isinstance(name, Arrays):
        return name.source
    if name not in SOURCES:
        raise ValueError(f"unknown data set {name!r}: choose one of {', '.join(SOURCES)}, or pass dataset={OWN}")
    module, attribute = SOURCES[name]
    return getattr(importlib.import_module(f"prune_env.data.{module}"), attribute)


def read(dataset: str | Arrays, split: str, root: str | Path | None, download: bool, image_size: int | None) -> Samples:
    """Return the decoded samples of one official split ("train" or "test") of a data set.

    Training splits are read once a process, and shared: a folder that changes is noticed by the next process.

    Raises ValueError for an unknown name or an image size it cannot have, FileNotFoundError when the data set
    is neither below `root` (by default $PRUNE_ENV_DATA, else ~/.cache/prune_env/data) nor to be downloaded.
    """
    name, source = name_of(dataset), get(dataset)
    size = source.image_size if image_size is None else image_size
    if whole("image_size", size) < 1 or (size != source.image_size and not source.resizable):
        allowed = "a positive whole number of pixels" if source.resizable else f"{source.image_size} (its only size)"
        raise ValueError(f"image_size={image_size} for {name!r}: it must be {allowed}")
    if isinstance(dataset, Arrays):  # is in memory, for as long as the caller wants
        return dataset.find(split, size)
    if root is not None and not isinstance(root, str | os.PathLike):
        raise TypeError(f"root is {root!r}; it must be a path")
    where = folder(root)
    key = name, where, size
    if split == "train" and key in _read:
        return _read[key]

    if download and source.fetch is not None:
        source.fetch(where)
    samples = source.find(where, split, size)
    if isinstance(samples, Listing):
        from prune_env.data import cache  # only image files need it, and Pillow

        listing, samples = samples, cache.decoded(samples, size, where, f"{name}-{split}-{size}")
        if split == "train" and multiprocessing.parent_process() is None:  # else the parent has told
            _tell_of_copies(name, where, size, listing)
    for array in (samples.images, samples.labels):
        array.setflags(write=False)
    if split == "train":  # nothing in the package holds on to test labels, which environments must not reach
        _read[key] = samples
    return samples


def paths(dataset: str | Arrays, root: str | Path | None, image_size: int | None) -> list[Path]:
    """Return the image files of the training split, in the official order.

    They are listed anew: kept beside every split, the names of a million files would take 300 MB.

    Raises ValueError for a data set that is not made of image files.
    """
    source = get(dataset)
    found = None if isinstance(dataset, Arrays) else source.find(folder(root), "train", image_size or source.image_size)
    if not isinstance(found, Listing):
        raise ValueError(f"the images of {name_of(dataset)!r} have no file names: number them from 0 on instead")
    return found.paths


def folder(root: str | Path | None) -> Path:
    """Return the folder in which data sets are looked for."""
    return Path(root or os.environ.get("PRUNE_ENV_DATA") or "~/.cache/prune_env/data").expanduser().absolute()


def forget() -> None:
    """Let the next `read` look at the folders again."""
    _read.clear()


def _tell_of_copies(name: str, root: Path, size: int, train: Listing) -> None:
    """Say once how many test images are copies of training images, and how many images are in two classes."""
    from prune_env.data import cache, copies

    test = None
    with suppress(OSError, ValueError):  # whoever reads the test split is told what is wrong with it
        test = get(name).find(root, "test", size)
    assert test is None or isinstance(test, Listing)
    files = [*train.paths, *(test.paths if test else [])]
    known = cache.place(root, f"{name}-copies", cache.state_of(files), "json")
    leaked, ambiguous = cache.remembered(known, lambda: copies.count(train, test))
    parts = []
    if leaked and test:
        parts.append(f"{leaked} of {len(test.paths)} test images are exact copies of training images")
    if ambiguous:
        parts.append(f"{ambiguous} image(s) are in more than one class")
    if parts:
        tell(f"{printable(root)}: {' and '.join(parts)}")
