"""How this project's processes are started, and end with their parent."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading

import torch

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
