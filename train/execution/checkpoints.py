"""Where a run stands, kept while it goes on: one that was killed goes on from there, and what was lost is told."""

from __future__ import annotations

import shutil
import struct
import time
import warnings
import zlib
from collections.abc import Collection, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

from prune_env import io
from prune_env.plain import pack, unpack
from train.execution import provenance

FOLDER = "checkpoints"  # in the folder of results
KIND = "checkpoint 3"
KEPT = 2  # generations: should the last be damaged there is one before
ENDED = -1  # in place of the units
JOURNAL = struct.Struct("<qqq")  # interruptions, units wasted before, most units that this attempt can have used


class Keeper:
    """The checkpoints of one run, and a journal of the compute that kills have cost it.

    Without a folder nothing is kept.

    Args:
        folder: of the run, see `folder_of`.
        every: seconds from one checkpoint to the next, taken at the end of a step.
        of: the key of the run: a checkpoint that has another is not its own, wherever it lies.
    """

    def __init__(self, folder: Path | None = None, every: float = 0.0, of: str = ""):
        self._folder, self._every, self._of = folder, every, of
        self._tried: Path | None = None  # the checkpoint that the run is about to go on from
        self._asked = time.monotonic()
        self.interruptions = 0
        self.wasted = 0  # units of the ledger, charged in attempts that were killed and done again
        self.machines = [provenance.of_machine()]  # that did what is kept, in order, then this one
        self._journal: BinaryIO | None = None

    def begin(self) -> None:
        """Look what is left of former attempts; nobody else may be at this run."""
        if self._folder is None:
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        io.sweep(self._folder)
        (self._folder / "journal").touch()
        self._journal = open(self._folder / "journal", "r+b", buffering=0)  # noqa: SIM115  (until `close`)

    def states(self) -> Iterator[Any]:
        """What was saved, newest first; a file that is damaged, or of another run, costs a warning.

        The last one that was asked for is where the run goes on; if none was good, it begins anew.
        """
        here = self.machines
        for path in self._paths():
            try:
                kept = unpack(io.unseal(path, KIND))
                if kept["of"] != self._of:
                    raise ValueError(f"{path} is of another run")
            except (ValueError, OSError) as error:  # damaged, of another format, or not packed by this version
                warnings.warn(f"a checkpoint is passed over: {error}", stacklevel=2)
                continue
            self.machines = list(dict.fromkeys([*kept["machines"], *here]))
            self._tried = path
            yield kept["state"]
        self.machines, self._tried = here, None

    def refuse(self, why: Exception) -> bool:
        """Remove the checkpoint that the run could not go on from, with a warning; whether there was one.

        The next attempt has the one before, or begins anew.
        """
        if self._tried is None:
            return False
        warnings.warn(f"a checkpoint is passed over: {self._tried}: {why}", stacklevel=2)
        self._tried.unlink()
        return True

    def resume(self, used: int) -> None:
        """The run goes on from here, `used` units of the ledger in: what the attempt before did beyond is waste."""
        begun, self._tried = self._tried is not None, None
        if self._journal is None:
            return
        data = self._journal.read(JOURNAL.size + 4)
        if data or begun:  # without a checkpoint there may have been no attempt, and nothing is in a new journal
            self.interruptions = 1
            if len(data) == JOURNAL.size + 4 and zlib.crc32(data[:-4]) == int.from_bytes(data[-4:], "little"):
                interruptions, wasted, most = JOURNAL.unpack(data[:-4])
                self.interruptions, self.wasted = interruptions + (most != ENDED), wasted + max(0, most - used)
            else:
                lost = f"{self._journal.name} is damaged, or gone: what former attempts have wasted is not known"
                warnings.warn(lost, stacklevel=2)
        self.note(used)

    def note(self, most: int) -> None:
        """The step that begins now ends at no more than this many units. A kill loses nothing of what is noted."""
        if self._journal is not None:
            data = JOURNAL.pack(self.interruptions, self.wasted, most)
            with suppress(OSError):  # a full disk costs what is told of waste, and no run
                self._journal.seek(0)
                self._journal.write(data + zlib.crc32(data).to_bytes(4, "little"))

    def due(self) -> bool:
        """Whether it is time for the next checkpoint; then the time runs anew, whatever comes of this one."""
        now = time.monotonic()
        if self._folder is None or now - self._asked < self._every:
            return False
        self._asked = now
        return True

    def save(self, step: int, state: Any) -> None:
        """Keep this state, plain values and tensors, and the one before; where the disk is full, a warning."""
        assert self._folder is not None
        path = self._folder / f"{step:09d}"
        try:
            io.seal(path, KIND, pack({"of": self._of, "machines": self.machines, "state": state}))
        except OSError as error:
            warnings.warn(f"no checkpoint: cannot write {path}: {error}", stacklevel=2)
            return
        paths = self._paths()
        later = [one for one in paths if one > path]  # damaged, or this would not be done again
        for old in [*later, *[one for one in paths if one <= path][KEPT:]]:
            with suppress(OSError):
                old.unlink()

    def end(self) -> None:
        """The run has ended by itself; should it go on after all, that is no interruption."""
        self.note(ENDED)

    def close(self) -> None:
        """Let go of the journal; what is kept stays."""
        if self._journal is not None:
            self._journal.close()
            self._journal = None

    def _paths(self) -> list[Path]:
        if self._folder is None:
            return []
        return sorted((path for path in self._folder.iterdir() if path.name.isdecimal()), reverse=True)


def folder_of(results: Path, key: str) -> Path:
    """Where the run with this key keeps its checkpoints."""
    return results / FOLDER / key


def forget(results: Path, key: str) -> None:
    """Remove what a run has kept, once its record is written or it cannot go on."""
    shutil.rmtree(folder_of(results, key), ignore_errors=True)
    with suppress(OSError):
        (results / FOLDER).rmdir()  # with the last of them


def forget_others(results: Path, keys: Collection[str]) -> None:
    """Remove what runs with other keys have kept: those of former plans, which nobody goes on with."""
    for key in sorted({path.name for path in (results / FOLDER).glob("*")} - set(keys)):
        forget(results, key)
