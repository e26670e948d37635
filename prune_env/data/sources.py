"""The data sets: one small file per source, read the same way."""

import importlib
import os
from pathlib import Path

from prune_env.checks import whole
from prune_env.data.cache import cached
from prune_env.data.source import Listing, Samples, Source, Split

__all__ = ["SOURCES", "Found", "Listing", "Samples", "Source", "Split", "decoded", "find", "get", "read"]

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

Found = tuple[Split, Path, str]  # a split, the root it was found below, and a name for its decoded copy


def get(name: str) -> Source:
    """The source called `name`. Raises ValueError, listing the names, if there is none."""
    if name not in SOURCES:
        raise ValueError(f"unknown data set {name!r}: choose one of {', '.join(SOURCES)}")
    module, attribute = SOURCES[name]
    return getattr(importlib.import_module(f"prune_env.data.{module}"), attribute)


def find(name: str, split: str, root: str | Path | None, download: bool, image_size: int | None) -> Found:
    """One official split ("train" or "test") of the data set `name`: where it is, without opening an image.

    Raises ValueError for an unknown name or an image size it cannot have, FileNotFoundError when the data set
    is neither below `root` (by default $PRUNE_ENV_DATA, else ~/.cache/prune_env/data) nor to be downloaded.
    """
    source = get(name)
    size = source.image_size if image_size is None else image_size
    if whole("image_size", size) < 1 or (size != source.image_size and not source.resizable):
        allowed = "a positive whole number of pixels" if source.resizable else f"{source.image_size} (its only size)"
        raise ValueError(f"image_size={image_size} for {name!r}: it must be {allowed}")
    if root is not None and not isinstance(root, str | os.PathLike):
        raise TypeError(f"root is {root!r}; it must be a path")
    where = Path(root or os.environ.get("PRUNE_ENV_DATA") or "~/.cache/prune_env/data").expanduser().absolute()
    if download and source.fetch is not None:
        source.fetch(where)
    return source.find(where, split, size), where, f"{name}-{split}-{size}"


def read(name: str, split: str, root: str | Path | None, download: bool, image_size: int | None) -> Samples:
    """The decoded samples of a split, from the cache where possible. Arguments and errors as for `find`."""
    return decoded(*find(name, split, root, download, image_size))


def decoded(found: Split, where: Path, label: str) -> Samples:
    """The samples of what `find` found, as of `read`."""
    if not found.files:  # embedded in the package: nothing to gain from a cache
        return found.read()
    return cached(found, where, label)
