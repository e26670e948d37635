"""What a data set must provide (`Source`) and what it hands over (`Split`, `Samples`)."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np


@dataclass(frozen=True)
class Samples:
    """The decoded samples of one official split, in the official order."""

    images: np.ndarray  # (n, C, H, W) uint8
    labels: np.ndarray  # (n,) int64
    classes: tuple[str, ...]


@dataclass(frozen=True)
class Listing:
    """What is known of a split of image files before one is opened, in the official order."""

    paths: list[Path]  # n, one a sample
    labels: np.ndarray  # (n,) int64
    classes: tuple[str, ...]
    size: int  # pixels a side, once decoded

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(n, C, H, W) of the images."""
        return len(self.paths), 3, self.size, self.size


@dataclass(frozen=True)
class Split:
    """One official split, found but not yet decoded."""

    read: Callable[[], Samples]
    files: list[Path]  # all that decides what `read` returns; a cached copy holds while they are unchanged
    listing: Listing | None = None  # where every sample is a file of its own


@dataclass(frozen=True)
class Source:
    """One data set: where it is found, how it is fetched, and what suits its images."""

    find: Callable[[Path, str, int], Split]  # (root, "train" or "test", image size)
    fetch: Callable[[Path], None] | None  # downloads what root lacks; None: there is no download
    image_size: int  # pixels a side, unless another size is asked for
    resizable: bool
    validation_share: float  # of the official training split
    augment: bool  # whether random crop and flip suit the images


def missing(name: str, looked_for: Path, layout: str, downloadable: bool) -> FileNotFoundError:
    """The error for a data set that is not there: what was looked for, where, and how to get it."""
    by_download = ", or pass download=True to fetch it" if downloadable else " (it has no download)"
    return FileNotFoundError(
        f"data set {name!r} not found: {looked_for} does not exist. Pass root= or set the environment "
        f"variable PRUNE_ENV_DATA to the folder that holds it{by_download}. Expected below root: {layout}"
    )
