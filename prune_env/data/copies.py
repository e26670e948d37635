"""Count image files that are exact copies of others where they should not be."""

import hashlib
import json
import os
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable
from contextlib import suppress
from pathlib import Path

from prune_env.data.source import Listing
from prune_env.io import file_digest, write_atomic

TAIL = 4096  # bytes at the end of a file that tell nearly all files of one size apart


def report(train: Listing, test: Listing | None, known: Path) -> str:
    """Return one line on files that are in both splits, or in two classes of one; empty if there are none.

    `known` is the cache file of the counts.
    """
    try:
        leaked, ambiguous = json.loads(known.read_bytes())
    except (OSError, ValueError):
        leaked, ambiguous = count(train, test)
        with suppress(OSError):
            write_atomic(known, json.dumps([leaked, ambiguous]).encode())
    parts = []
    if leaked and test:
        parts.append(f"{leaked} of {len(test.paths)} test images are exact copies of training images")
    if ambiguous:
        parts.append(f"{ambiguous} image(s) are in more than one class")
    return " and ".join(parts)


def count(train: Listing, test: Listing | None) -> tuple[int, int]:
    """Return how many test files are copies of training files, and how many files are in two classes of their split."""
    files = [(path, "train", label) for path, label in zip(train.paths, train.labels.tolist(), strict=True)]
    if test is not None:
        files += [(path, "test", label) for path, label in zip(test.paths, test.labels.tolist(), strict=True)]
    groups: list[list[int]] = [list(range(len(files)))]
    # Each look costs more than the one before, and is taken of fewer files.
    looks: tuple[Callable[[Path], Hashable], ...] = (os.path.getsize, _tail, lambda path: file_digest(path, "sha256"))
    for look in looks:
        groups = [same for group in groups for same in _divided(group, lambda at, look=look: look(files[at][0]))]
    leaked = ambiguous = 0
    for group in groups:
        splits = [files[at][1] for at in group]
        if "train" in splits:
            leaked += splits.count("test")
        for split in ("train", "test"):
            ambiguous += len({files[at][2] for at in group if files[at][1] == split}) > 1
    return leaked, ambiguous


def _divided(group: Iterable[int], key: Callable[[int], Hashable]) -> list[list[int]]:
    """Those of `group` that share their key with another."""
    same = defaultdict(list)
    for at in group:
        same[key(at)].append(at)
    return [one for one in same.values() if len(one) > 1]


def _tail(path: Path) -> bytes:
    with open(path, "rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL))
        return hashlib.blake2b(file.read(), digest_size=16).digest()
