"""What this machine, and the container or batch job in it, leaves to this process."""

import os
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

ROOT = Path("/")  # of /proc and /sys


def cores() -> int:
    """Return this process' share of the cores that it may use: affinity, and the CPU quotas of its control groups."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, int(min(usable, cpu_quota())) // processes())


def cpu_quota() -> float:
    """Return the cores that this process' control groups allow, the smallest quota on the way up; inf without one."""
    quota = float("inf")
    for folder, version in _groups("cpu"):
        files = ["cpu.max"] if version == 2 else ["cpu.cfs_quota_us", "cpu.cfs_period_us"]
        with suppress(OSError, ValueError):  # no such file, or "max": no limit
            limit, period = map(int, " ".join((folder / file).read_text() for file in files).split())
            if limit > 0:  # version 1 has -1 for no limit
                quota = min(quota, limit / period)
    return quota


def free_memory() -> int:
    """Return the bytes of memory that this process can take; of all there is where the system does not tell."""
    try:
        lines = dict(line.split(":") for line in (ROOT / "proc/meminfo").read_text().splitlines())
        free = 1024 * int(lines["MemAvailable"].split()[0])
    except (OSError, KeyError):
        free = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else sys.maxsize
    return min(free, group_memory()) // processes()


def group_memory() -> int:
    """Return the bytes that this process' control groups leave. What the system caches of files counts as free."""
    left = sys.maxsize
    for folder, version in _groups("memory"):
        limit, used, cached = "max", "current", "inactive_file"
        if version == 1:
            limit, used, cached = "limit_in_bytes", "usage_in_bytes", "total_inactive_file"
        with suppress(OSError, ValueError, KeyError):  # no such file, or "max": no limit
            most, now = (int((folder / f"memory.{name}").read_text()) for name in (limit, used))
            stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
            left = min(left, max(0, most - now + int(stat[cached])))
    return left


def processes() -> int:
    """Return how many processes torchrun started on this machine; they share what it has."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def _groups(controller: str) -> Iterator[tuple[Path, int]]:
    """Yield the folders of this process' control groups, from its own up to the topmost, and their version.

    Inside a container its own folder may not be there under that name; the topmost is.
    """
    try:
        lines = (ROOT / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            tops, version = [ROOT / "sys/fs/cgroup", ROOT / "sys/fs/cgroup/unified"], 2
        elif controller in controllers.split(","):
            tops, version = [ROOT / "sys/fs/cgroup" / name for name in dict.fromkeys((controllers, controller))], 1
        else:
            continue
        parts = Path(path.lstrip("/")).parts
        for top in tops:
            for depth in range(len(parts), -1, -1):
                yield top.joinpath(*parts[:depth]), version
