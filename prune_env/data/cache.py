"""Decoded samples kept on disk, so that image files are decoded once."""

import hashlib
import os
import stat
import time
import warnings
from contextlib import suppress
from pathlib import Path

import numpy as np

from prune_env.data.source import Samples, Split
from prune_env.io import UNFINISHED, load_arrays, save_arrays

VERSION = 1  # raise it when the same files would decode to other arrays
DAY = 24 * 60 * 60  # seconds


def cached(split: Split, root: Path, name: str) -> Samples:
    """The samples of `split`, from the cache while its files are unchanged (path, size, time), else decoded.

    `root` and `name` say which cache file. One that is damaged, or cannot be written, costs a warning and a
    decoding, never an error.
    """
    path = place(root, name, "arrays")
    state = state_of(split.files)  # taken before reading: what changes meanwhile is noticed next time
    samples = _load(path, state)
    if samples is None:
        samples = split.read()
        _save(path, state, samples)
    return samples


def place(root: Path, name: str, kind: str) -> Path:
    """The cache file of this kind for what is called `name` and lies below `root`."""
    return folder() / f"{name}-{hashlib.sha256(os.fsencode(root)).hexdigest()[:16]}-v{VERSION}.{kind}"


def folder() -> Path:
    if chosen := os.environ.get("PRUNE_ENV_CACHE"):
        return Path(chosen).expanduser() / "decoded"
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "prune_env" / "decoded"


def state_of(files: list[Path]) -> str:
    """Digest of absolute path, size and time of modification of each file.

    Raises OSError for one that cannot be found, ValueError for one that is no file: a pipe would never end.
    """
    digest = hashlib.sha256()
    for path in sorted(files):
        found = os.stat(path)
        if not stat.S_ISREG(found.st_mode) and not stat.S_ISDIR(found.st_mode):
            raise ValueError(f"{path} is neither a file nor a folder")
        digest.update(os.fsencode(path) + f"\0{found.st_size}\0{found.st_mtime_ns}\0".encode())
    return digest.hexdigest()


def _load(path: Path, state: str) -> Samples | None:
    """The samples cached at `path`; None if there are none or they were made from other files."""
    try:
        arrays = load_arrays(path)
        if str(arrays["state"]) != state:
            return None
        return Samples(arrays["images"], arrays["labels"], tuple(arrays["classes"].tolist()))
    except OSError:
        return None  # absent, or unreadable: if it cannot be written either, that is what the warning is for
    except Exception as error:  # damaged; or under a good digest something else, and reading that raises anything
        warnings.warn(f"the cache {path} is built anew: {error}", stacklevel=4)
        return None


def _save(path: Path, state: str, samples: Samples) -> None:
    classes = np.array(samples.classes)
    try:
        clean(path)
        save_arrays(path, images=samples.images, labels=samples.labels, classes=classes, state=np.array(state))
    except OSError as error:
        warnings.warn(f"no cache, images are decoded again next time: cannot write {path}: {error}", stacklevel=4)


def clean(path: Path, *, alone: bool = False) -> None:
    """Remove what writers of `path` left behind when they were killed.

    What another one may still be writing is not a day old; `alone`: a lock says that there is no other.
    """
    for left in path.parent.glob(f".{path.name}.*"):
        if not UNFINISHED.fullmatch(left.name):  # the lock itself
            continue
        with suppress(FileNotFoundError):  # another process sweeps too
            if alone or left.stat().st_mtime < time.time() - DAY:
                left.unlink()
