"""Where a run stands, saved while it goes on: a run that was killed goes on from its last checkpoint."""

from __future__ import annotations

import io as memory_io
import json
import math
import shutil
import time
import warnings
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import torch

from prune_env import io

FOLDER = "checkpoints"  # in the folder of results
NOTE = "progress.json"  # in the folder of a run
TELL = 1.0  # seconds from one note to the next: shorter runs leave none
# What `weights_only` lets through beside tensors: arrays and scalars of numpy, which hold numbers and no code.
_NUMPY = [bytes, np.ndarray, np.dtype, np.empty(0).__reduce__()[0], np.float64(0).__reduce__()[0]]
_NUMPY += [type(np.dtype(kind)) for kind in "?bBhHiIlLqQefdSU"]


class Note(TypedDict):
    """Where a run stands."""

    step: int
    spent: float  # full-epoch equivalents
    val_accuracy: float  # in [0, 1]
    seconds: float  # that it has been training
    saved: int  # step of the checkpoint from which it would go on; 0 without one


class Checkpoint:
    """The last checkpoint of one run.

    Args:
        folder: of the run, see `folder_of`.
        every: seconds from one checkpoint to the next.
    """

    def __init__(self, folder: Path, every: float = 0.0):
        self.path = folder / "checkpoint.pt"
        self._every = every
        self._saved = self._told = time.monotonic()

    def load(self) -> Any:
        """Return the state that was saved last; None if there is none, or, with a warning, if it cannot be read."""
        if self.path.parent.exists():
            io.sweep(self.path.parent)  # what a kill has left half written; nobody else is at this run
        if not self.path.exists():
            return None
        try:
            with torch.serialization.safe_globals(_NUMPY):
                return torch.load(self.path, map_location="cpu", weights_only=True)
        except Exception as error:  # torch raises many kinds for a damaged file
            why = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            warnings.warn(f"{self.path} cannot be read, so this run starts over: {why}", stacklevel=2)
            return None

    def forget(self) -> None:
        """Remove what was saved."""
        self.path.unlink(missing_ok=True)

    def due(self) -> bool:
        """Say whether it is time for the next checkpoint."""
        return time.monotonic() - self._saved >= self._every

    def tell(self, note: Note) -> None:
        """Leave a note for who watches, if the last one is old, or there is a new checkpoint."""
        if time.monotonic() - self._told >= TELL:
            self._told = time.monotonic()
            with suppress(OSError):
                io.write_atomic(self.path.with_name(NOTE), json.dumps(note).encode())

    def save(self, state: Any) -> None:
        """Replace the checkpoint by this state: plain values, arrays and tensors. A full disk costs a warning."""
        self._saved = time.monotonic()
        written = memory_io.BytesIO()
        torch.save(state, written)
        try:
            io.write_atomic(self.path, written.getvalue())
            self._told = -math.inf
        except OSError as error:
            warnings.warn(f"no checkpoint: cannot write {self.path}: {error}", stacklevel=2)


def notes(results: Path) -> dict[str, Note]:
    """Return the notes of runs that have not ended, by their keys."""
    found: dict[str, Note] = {}
    for path in (results / FOLDER).glob(f"*/{NOTE}"):
        with suppress(OSError, ValueError):  # the run has ended just now
            found[path.parent.name] = json.loads(path.read_bytes())
    return found


def folder_of(results: Path, key: str) -> Path:
    """Return the folder in which the run with this key keeps its checkpoint."""
    return results / FOLDER / key


def forget(results: Path, key: str) -> None:
    """Remove what a run has kept, once its record is written or its agent has failed."""
    shutil.rmtree(folder_of(results, key), ignore_errors=True)
    with suppress(OSError):
        (results / FOLDER).rmdir()  # with the last of them


def forget_others(results: Path, keys: Collection[str]) -> None:
    """Remove what runs with other keys have kept: nobody goes on with the runs of former plans."""
    for path in (results / FOLDER).glob("*"):
        if path.name not in keys:
            forget(results, path.name)
