"""Count image files that are exact copies of others where they should not be."""

import os
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable
from pathlib import Path

from prune_env.data.source import Listing
from prune_env.io import file_digest

TAIL = 4096  # bytes at the end of a file that tell nearly all files apart

File = tuple[Path, str, int]  # a sample's file, split and label


def count(train: Listing, test: Listing | None) -> tuple[int, int]:
    """Return how many test files are copies of training files, and how many files are in two classes of their split."""
    splits = {"train": train, "test": test} if test else {"train": train}
    files = [
        (path, split, label)
        for split, listing in splits.items()
        for path, label in zip(listing.paths, listing.labels.tolist(), strict=True)
    ]
    leaked = ambiguous = 0
    for alike in _divided(files, _tail):
        for same in _divided(alike, lambda path: file_digest(path, "sha256")):  # reads few files to their end
            where = [split for _, split, _ in same]
            if "train" in where:
                leaked += where.count("test")
            for split in splits:
                ambiguous += len({label for _, of, label in same if of == split}) > 1
    return leaked, ambiguous


def _divided(files: Iterable[File], look: Callable[[Path], Hashable]) -> list[list[File]]:
    """Group files by how they look; files that look like no other are left out."""
    groups = defaultdict(list)
    for file in files:
        groups[look(file[0])].append(file)
    return [group for group in groups.values() if len(group) > 1]


def _tail(path: Path) -> tuple[int, int]:
    """Return the size of a file and a hash of its end."""
    with open(path, "rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - TAIL))
        return size, hash(file.read())
