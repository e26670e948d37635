"""How this project's processes are started, end with their parent, and keep out of each other's folders."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import filelock
import torch

from prune_env.parent import end_with_parent

CONTEXT = multiprocessing.get_context("spawn")  # a fork of a process that has used torch's threads, or CUDA, can hang


def start() -> None:
    """Prepare a process of work: one thread, deaf to Ctrl-C, gone when its parent is."""
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches every process; the parent ends this one
    end_with_parent()


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
