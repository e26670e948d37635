"""Keep decoded image files in one `.npy` file a split, which is memory-mapped."""

import hashlib
import json
import os
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

from prune_env.data.decode import decode
from prune_env.data.source import Listing, Samples, printable
from prune_env.io import open_atomic, write_atomic

VERSION = 2  # raise it when the same files would decode to other pixels


def decoded(listing: Listing, size: int, root: Path, name: str) -> Samples:
    """Return the samples of a split of image files, decoded once to squares of `size` pixels and memory-mapped.

    The cache file is called after `root` and `name`. Other processes wait for the one that decodes.

    Raises OSError if the cache cannot be written, ValueError for an image that cannot be decoded.
    """
    state = state_of([*listing.index, *listing.paths])  # before reading: what changes meanwhile is noticed next time
    path = place(root, name, state, "npy")
    try:
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            lock = FileLock(path.with_name(f"{_stem(root, name)}.lock"))
            with ExitStack() as stack:
                with suppress(NotImplementedError):  # a file system without locks: processes decode side by side
                    stack.enter_context(lock)
                if not path.exists():  # the process that we waited for may have made it
                    _remove_former(path.parent, _stem(root, name), unfinished=lock.is_locked)
                    _write(path, listing.paths, size)
    except OSError as error:
        raise OSError(
            error.errno,
            f"cannot write the decoded images to {printable(path)} ({error.strerror or error}): make room there, or "
            "set PRUNE_ENV_CACHE to another folder",
        ) from error
    return Samples(np.load(path, mmap_mode="r"), listing.labels, listing.classes, state)


def _write(path: Path, paths: list[Path], size: int) -> None:
    with open_atomic(path) as file:
        header = {"descr": "|u1", "fortran_order": False, "shape": (len(paths), 3, size, size)}
        np.lib.format.write_array_header_1_0(file, header)
        for block in decode(paths, size):
            file.write(block.data)


def _remove_former(folder: Path, stem: str, unfinished: bool) -> None:
    """Remove decoded images of former states and versions, and files that killed writers left `unfinished`."""
    for path in [*folder.glob(f"{stem}-*"), *(folder.glob(f".{stem}-*") if unfinished else ())]:
        path.unlink(missing_ok=True)


def remembered(path: Path, compute: Callable[[], Any]) -> Any:
    """Return the value in a JSON file of the cache. Where there is no such file, compute the value and write it."""
    with suppress(OSError, ValueError):
        return json.loads(path.read_bytes())
    value = compute()
    with suppress(OSError):
        write_atomic(path, json.dumps(value).encode())
    return value


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

    Raises OSError for a file that cannot be found.
    """
    digest = hashlib.sha256()
    for path in sorted(files):
        found = os.stat(path)
        digest.update(os.fsencode(path) + f"\0{found.st_size}\0{found.st_mtime_ns}\0".encode())
    return digest.hexdigest()
