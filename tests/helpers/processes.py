"""What only another process, another user or a full disk can show."""

import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

if not hasattr(os, "fork"):
    pytest.skip("needs a system with fork", allow_module_level=True)

import resource

NOBODY = 65534


def fork(work: Callable[[], object], told: Path | None = None) -> int:
    """Do `work` in a process of its own, to be started before any thread; returns its id. stderr may go to `told`."""
    if pid := os.fork():
        return pid
    try:
        if told is not None:
            sys.stderr = told.open("w", buffering=1)
        work()
        os._exit(0)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(1)


def wait(pid: int) -> int:
    """The exit code of a forked process; a signal that ended it as a negative number."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    assert wait(pid) == -signal.SIGKILL


def until(happened: Callable[[], object], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    stat = Path(f"/proc/{pid}/stat")  # a dead one may lie there until somebody asks
    return not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] != "Z"


@contextmanager
def full_disk(room: int) -> Iterator[None]:
    """A limit of `room` bytes a file: writing on fails as it does when the disk is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@contextmanager
def others_folder(folder: Path) -> Iterator[None]:
    """`folder`, which lies where everybody may look, may be read and not written; by root neither."""
    root = os.geteuid() == 0
    folder.chmod(0o555)
    if root:
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)
        folder.chmod(0o755)


def public_folder() -> str:
    """A new folder where everybody may look; those of pytest are for their owner."""
    folder = tempfile.mkdtemp()
    os.chmod(folder, 0o755)
    return folder
