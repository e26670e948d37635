"""Processes that end with the one that started them."""

import multiprocessing
import os
import signal
import threading


def end_with_parent() -> None:
    """Have this process, started by multiprocessing, end when its parent does, also if that is killed.

    If it leads a group, what it has forked ends too.
    """
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow() -> None:
        parent.join()
        if hasattr(os, "killpg") and os.getpgrp() == os.getpid():
            os.killpg(0, signal.SIGKILL)
        os._exit(1)  # nobody would ever read what it does

    threading.Thread(target=follow, daemon=True).start()
