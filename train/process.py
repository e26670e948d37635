"""How this project's processes are started, end with their parent, and keep out of each other's folders."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from prune_env import files

CONTEXT = multiprocessing.get_context("spawn")  # a fork of a process that has used torch's threads, or CUDA, can hang


def start() -> None:
    """Prepare a process of work: one thread, deaf to Ctrl-C, gone when its parent is."""
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches every process; the parent ends this one
    threading.Thread(target=_follow_parent, daemon=True).start()


def _follow_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)  # the parent was killed: nobody would ever read the results


class Taken(Exception):
    """A folder that another program is writing to."""


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep others out of `folder`; raises Taken if one is in. Where there are no locks nobody is kept out."""
    with open(folder / ".lock", "ab") as file:
        try:
            files.lock(file, wait=False)
        except BlockingIOError as error:
            raise Taken(f"another program is writing to {folder}") from error
        yield
