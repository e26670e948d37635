"""Decoded images in a file that is mapped into memory, for splits that do not fit into memory."""

import sys
import warnings
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np

from prune_env.data.cache import clean
from prune_env.data.decode import decode, square
from prune_env.data.download import alone
from prune_env.data.source import Listing
from prune_env.io import DamagedFile, Rows, open_rows, save_rows

BLOCK = 1024  # images decoded at a time: 147 MiB of 224 pixels


class Mapped:
    """The images of a listing, decoded into the cache folder once, and read from there by row.

    One whose bytes are not what was written is decoded again from its file, with a warning, and put right.

    Args:
        listing: of the split.
        path: of the file, from `place`.
        state: of the split's files; a file of another state is replaced.

    Raises:
        OSError: there is no such file yet, and it cannot be written.
        ValueError: an image that cannot be decoded, while it is made.
    """

    def __init__(self, listing: Listing, path: Path, state: str):
        self.listing, self.path = listing, path
        rows = self._open(state)
        if rows is None:
            with alone(path.parent, path.name) as locked:
                rows = self._open(state)  # the process that we waited for may have made it
                if rows is None:
                    clean(path, alone=locked)
                    save_rows(path, state, self._decoded())
                    rows = open_rows(path, state, listing.shape)
        assert rows is not None
        self._rows = rows

    def gather(self, rows: np.ndarray, into: np.ndarray) -> None:
        """Copy the images of rows (k,) of the split into (k, C, H, W) uint8.

        Raises:
            DamagedFile: one is damaged, and its image file is another by now.
            ValueError: one is damaged, and its image file cannot be decoded.
        """
        for at in np.argsort(rows).tolist():  # forwards through the file
            if not self._rows.read(int(rows[at]), into[at]):
                self._mend(int(rows[at]), into[at])

    def _mend(self, row: int, into: np.ndarray) -> None:
        file = self.listing.paths[row]
        into[:] = square(file, self.listing.size)
        if not self._rows.matches(row, into):
            raise DamagedFile(f"{self.path} is damaged at the image {file}, which is another by now: start again")
        warnings.warn(f"{self.path} is damaged at the image {file}, which is decoded again", stacklevel=2)
        with suppress(OSError):  # read-only: it is decoded again each time
            self._rows.mend(row, into)

    def _open(self, state: str) -> Rows | None:
        try:
            return open_rows(self.path, state, self.listing.shape)
        except DamagedFile as error:
            warnings.warn(f"the cache is built anew: {error}", stacklevel=4)
            return None

    def _decoded(self) -> Iterator[np.ndarray]:
        paths = self.listing.paths
        for start in range(0, len(paths), BLOCK):
            if sys.stderr.isatty():
                print(f"\r{self.path.name}: {start:,} of {len(paths):,} images", end="", file=sys.stderr, flush=True)
            yield decode(paths[start : start + BLOCK], self.listing.size)
