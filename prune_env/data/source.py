"""What a data set must provide (`Source`) and what it hands over (`Samples`, or a `Listing` of image files)."""

import functools
import logging
import multiprocessing
import os
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import numpy as np


@dataclass(frozen=True, eq=False)
class Samples:
    """The decoded samples of one official split, in the official order. Nobody writes to the arrays."""

    images: np.ndarray  # (n, C, H, W) uint8; a memory-mapped one where they come from image files
    labels: np.ndarray  # (n,) int64
    classes: tuple[str, ...]
    state: str = ""  # digest of the files that `images` were decoded from; empty if they are no image files
    validation: np.ndarray | None = None  # (m,) int64 sorted rows that are for validation; None: a share is drawn
    gathered: WeakValueDictionary[Any, Any] = field(default_factory=WeakValueDictionary)  # parts in use, see `storage`


@dataclass(frozen=True)
class Listing:
    """One official split of image files, in the official order, before any is opened."""

    paths: list[Path]  # n, one a sample
    labels: np.ndarray  # (n,) int64
    classes: tuple[str, ...]
    index: list[Path] = field(default_factory=list)  # other files and folders that decide what is in the split


@dataclass(frozen=True)
class Source:
    """One data set: where it is found, how it is fetched, and what suits its images."""

    find: Callable[[Path, str, int], Samples | Listing]  # (root, "train" or "test", image size)
    fetch: Callable[[Path], None] | None  # downloads what root lacks; None: there is no download
    image_size: int  # pixels a side, unless another size is asked for
    resizable: bool
    validation_share: float  # of the official training split
    augment: bool  # whether random crop and flip suit the images


def missing(name: str, looked_for: Path, layout: str, downloadable: bool) -> FileNotFoundError:
    """Return the error for a data set that is not there: what was looked for, where, and how to get it."""
    by_download = ", or pass download=True (--download) to fetch it" if downloadable else " (it has no download)"
    return FileNotFoundError(
        f"data set {name!r} not found: {looked_for} does not exist. Pass root= (--root), or set the "
        f"environment variable PRUNE_ENV_DATA, to the folder that holds it{by_download}. Expected below root: {layout}"
    )


@functools.cache
def tell(line: str) -> None:
    """Log a line about a data set, once a process. Processes that multiprocessing started leave it to their parent."""
    if multiprocessing.parent_process() is None:
        logging.getLogger("prune_env").warning(line)


def composed(text: object) -> str:
    """Return text in the one form that names have here (NFC): systems write an accent in two ways."""
    return unicodedata.normalize("NFC", str(text))


def printable(name: str | os.PathLike[str]) -> str:
    """Return a file's name as text that can be printed and encoded: bytes that are not UTF-8 become \\xNN."""
    return os.fspath(name).encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
