"""The data sets: one small file per source, read the same way."""

import os
from pathlib import Path

from prune_env.datasets.cache import cached
from prune_env.datasets.cifar import CIFAR_10, CIFAR_100
from prune_env.datasets.digits import DIGITS
from prune_env.datasets.imagefolder import IMAGEFOLDER
from prune_env.datasets.source import Samples, Source
from prune_env.datasets.tiny_imagenet import TINY_IMAGENET

SOURCES: dict[str, Source] = {
    "digits": DIGITS,
    "cifar10": CIFAR_10,
    "cifar100": CIFAR_100,
    "tiny_imagenet": TINY_IMAGENET,
    "imagefolder": IMAGEFOLDER,
}


def get(name: str) -> Source:
    """The source called `name`. Raises ValueError, listing the names, if there is none."""
    if name not in SOURCES:
        raise ValueError(f"unknown data set {name!r}: choose one of {', '.join(SOURCES)}")
    return SOURCES[name]


def read(name: str, split: str, root: str | Path | None, download: bool, image_size: int | None) -> Samples:
    """One official split ("train" or "test") of the data set `name`, from the cache where possible.

    Raises ValueError for an unknown name or an image size it cannot have, FileNotFoundError when the data set
    is neither below `root` (by default $PRUNE_ENV_DATA, else ~/.cache/prune_env/data) nor to be downloaded.
    """
    source = get(name)
    size = source.image_size if image_size is None else image_size
    if not isinstance(size, int) or size < 1 or (size != source.image_size and not source.resizable):
        allowed = "a positive whole number of pixels" if source.resizable else f"{source.image_size} (its only size)"
        raise ValueError(f"image_size={image_size} for {name!r}: it must be {allowed}")
    where = Path(root or os.environ.get("PRUNE_ENV_DATA") or "~/.cache/prune_env/data").expanduser().absolute()
    if download and source.fetch is not None:
        source.fetch(where)
    found = source.find(where, split, size)
    if not found.files:  # embedded in the package: nothing to gain from a cache
        return found.read()
    return cached(found, where, f"{name}-{split}-{size}")
