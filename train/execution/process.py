"""How this project's processes are started, end with their parent, and keep out of each other's folders."""

from __future__ import annotations

import multiprocessing
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import filelock
import torch

from prune_env.parent import end_with_parent

CONTEXT = multiprocessing.get_context("spawn")  # a fork of a process that has used torch's threads, or CUDA, can hang


def start() -> None:
    """Prepare a process of work: one thread, deaf to Ctrl-C, gone when its parent is."""
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches every process; the parent ends this one
    end_with_parent()


@contextmanager
def without_main() -> Iterator[None]:
    """Let processes that are spawned inside not import the program's main module again.

    A script without `if __name__ == "__main__"` would start itself again. What is sent to the process must be none of
    that module's.
    """
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


class Taken(Exception):
    """A folder that another program is writing to."""


@contextmanager
def locked(folder: Path, seconds: float = 0.0) -> Iterator[None]:
    """Be the only program that writes to a folder, which is made if absent.

    Raises:
        Taken: another program still holds it after so many seconds.
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with filelock.FileLock(folder / ".lock", timeout=seconds):
            yield
    except filelock.Timeout as error:
        raise Taken(f"another program is writing to {folder}") from error
