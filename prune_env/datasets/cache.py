"""Decoded samples kept on disk, so that image files are decoded once."""

import hashlib
import os
import warnings
from pathlib import Path

import numpy as np

from prune_env.datasets.source import Samples, Split
from prune_env.files import DamagedFile, load_arrays, save_arrays

VERSION = 1  # raise it when the same files would decode to other arrays


def cached(split: Split, root: Path, name: str) -> Samples:
    """The samples of `split`, from the cache while its files are unchanged (path, size, time), else decoded.

    `root` and `name` say which cache file. One that is damaged, or cannot be written, costs a warning and a
    decoding, never an error.
    """
    place = hashlib.sha256(os.fsencode(root)).hexdigest()[:16]
    path = _folder() / f"{name}-{place}-v{VERSION}.arrays"
    state = _state(split.files)  # taken before reading: what changes meanwhile is noticed next time
    samples = _load(path, state)
    if samples is None:
        samples = split.read()
        _save(path, state, samples)
    return samples


def _folder() -> Path:
    if chosen := os.environ.get("PRUNE_ENV_CACHE"):
        return Path(chosen).expanduser() / "decoded"
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "prune_env" / "decoded"


def _state(files: list[Path]) -> str:
    """Digest of absolute path, size and time of modification of each file."""
    digest = hashlib.sha256()
    for path in sorted(files):
        stat = os.stat(path)
        digest.update(os.fsencode(path) + f"\0{stat.st_size}\0{stat.st_mtime_ns}\0".encode())
    return digest.hexdigest()


def _load(path: Path, state: str) -> Samples | None:
    """The samples cached at `path`; None if there are none or they were made from other files."""
    try:
        arrays = load_arrays(path)
    except OSError:
        return None  # absent, or unreadable: if it cannot be written either, that is what the warning is for
    except DamagedFile as error:
        warnings.warn(f"the cache is built anew: {error}", stacklevel=4)
        return None
    if str(arrays["state"]) != state:
        return None
    return Samples(arrays["images"], arrays["labels"], tuple(arrays["classes"].tolist()))


def _save(path: Path, state: str, samples: Samples) -> None:
    classes = np.array(samples.classes)
    try:
        save_arrays(path, images=samples.images, labels=samples.labels, classes=classes, state=np.array(state))
    except OSError as error:
        warnings.warn(f"no cache, images are decoded again next time: cannot write {path}: {error}", stacklevel=4)
