"""Keep decoded image files in one `.npy` file a split, which is memory-mapped."""

import hashlib
import os
import stat
import time
import warnings
from contextlib import ExitStack, suppress
from pathlib import Path

import numpy as np
from filelock import FileLock

from prune_env.data.decode import decode
from prune_env.data.source import Listing, Split, printable
from prune_env.io import UNFINISHED, open_atomic
from prune_env.machine import free_memory

VERSION = 2  # raise it when the same files would decode to other pixels
MEMORY_SHARE = 0.4  # of the free memory, for images that could not be cached
DAY = 24 * 60 * 60  # seconds


def decoded(split: Split, state: str, root: Path, name: str) -> np.ndarray:
    """Return the images (n, 3, size, size) uint8 of a split of image files, memory-mapped and decoded once.

    Other processes wait for the one that decodes. If the cache cannot be written, a warning says so, and the images
    are decoded into memory. Raises OSError if they do not fit there, ValueError for an image that cannot be decoded.

    Args:
        split: the split, with a listing.
        state: of its files, as from `state_of`.
        root, name: what the cache file is called after.
    """
    listing = split.listing
    assert listing is not None
    path = place(root, name, state, "npy")
    images = _open(path, listing)
    if images is not None:
        return images
    try:
        with ExitStack() as stack:
            path.parent.mkdir(parents=True, exist_ok=True)
            with suppress(NotImplementedError):  # a file system without locks: processes decode side by side
                stack.enter_context(FileLock(path.with_name(f"{_stem(root, name)}.lock")))
            images = _open(path, listing)  # the process that we waited for may have made it
            if images is None:
                _clean(path.parent, _stem(root, name))
                _write(path, listing)
                images = _open(path, listing)
    except OSError as error:
        needed = len(listing.paths) * 3 * listing.size**2
        if needed > MEMORY_SHARE * free_memory():
            raise OSError(
                error.errno,
                f"cannot write {printable(path)} ({error.strerror or error}), and the {needed / 2**30:.1f} GiB of "
                "decoded images do not fit into memory: make room there, or set PRUNE_ENV_CACHE to another folder",
            ) from error
        warnings.warn(
            f"no cache, images are decoded again next time: cannot write {printable(path)}: {error}", stacklevel=4
        )
    if images is None:
        images = np.concatenate(list(decode(listing.paths, listing.size)))
    return images


def _write(path: Path, listing: Listing) -> None:
    with open_atomic(path) as file:
        shape = len(listing.paths), 3, listing.size, listing.size
        np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
        for block in decode(listing.paths, listing.size):
            file.write(block.data)


def place(root: Path, name: str, state: str, kind: str) -> Path:
    """Return the cache file of this kind for what is called `name`, lies below `root` and has this state."""
    return folder() / f"{_stem(root, name)}-v{VERSION}-{state[:16]}.{kind}"


def _stem(root: Path, name: str) -> str:
    return f"{name}-{hashlib.sha256(os.fsencode(root)).hexdigest()[:16]}"


def folder() -> Path:
    """Return the folder of the cache: $PRUNE_ENV_CACHE/decoded, else below ~/.cache/prune_env."""
    if chosen := os.environ.get("PRUNE_ENV_CACHE"):
        return Path(chosen).expanduser() / "decoded"
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "prune_env" / "decoded"


def state_of(files: list[Path]) -> str:
    """Return a digest of absolute path, size and time of modification of each file.

    Raises OSError for one that cannot be found, ValueError for one that is no file: a pipe would never end.
    """
    digest = hashlib.sha256()
    for path in sorted(files):
        found = os.stat(path)
        if not stat.S_ISREG(found.st_mode) and not stat.S_ISDIR(found.st_mode):
            raise ValueError(f"{path} is neither a file nor a folder")
        digest.update(os.fsencode(path) + f"\0{found.st_size}\0{found.st_mtime_ns}\0".encode())
    return digest.hexdigest()


def _open(path: Path, listing: Listing) -> np.ndarray | None:
    try:
        images = np.load(path, mmap_mode="r", allow_pickle=False)
        if images.shape == (len(listing.paths), 3, listing.size, listing.size) and images.dtype == np.uint8:
            return images
        raise ValueError(f"it holds {images.dtype} of shape {images.shape}")
    except OSError:
        return None  # absent, or unreadable: if it cannot be written either, that is what the warning is for
    except (ValueError, EOFError) as error:
        warnings.warn(f"the cache {printable(path)} is built anew: {error}", stacklevel=5)
        return None


def _clean(folder: Path, stem: str) -> None:
    """Remove decoded images of former states and versions, and what writers left when they were killed a day ago."""
    for path in [*folder.glob(f"{stem}-*"), *folder.glob(f".{stem}-*")]:
        with suppress(OSError):  # another process cleans too
            if not UNFINISHED.fullmatch(path.name) or path.stat().st_mtime < time.time() - DAY:
                path.unlink()
