"""What containers and batch systems allow is respected; files as the kernel shows them, in a folder of the test's."""

import os
import sys
from pathlib import Path

import pytest

from prune_env import machine


@pytest.fixture
def system(tmp_path, monkeypatch):
    """Write /proc/self/cgroup and files of control groups, below a root that is asked in place of /."""
    monkeypatch.setattr(machine, "ROOT", tmp_path)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)

    def write(line: str, files: dict[str, str]) -> None:
        for name, content in {"proc/self/cgroup": f"9:pids:/x:y\n{line}", **files}.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{content}\n")

    return write


V2 = {"sys/fs/cgroup/job/cpu.max": "350000 100000", "sys/fs/cgroup/job/step/cpu.max": "max 100000"}
V1 = {
    "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "-1",
    "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000",
    "sys/fs/cgroup/cpu,cpuacct/job/cpu.cfs_quota_us": "150000",
    "sys/fs/cgroup/cpu,cpuacct/job/cpu.cfs_period_us": "50000",
}
TOP2 = {"sys/fs/cgroup/cpu.max": "50000 100000"}
TOP1 = {"sys/fs/cgroup/cpu/cpu.cfs_quota_us": "200000", "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000"}
HYBRID = {"sys/fs/cgroup/unified/job/cpu.max": "400000 100000"}


@pytest.mark.parametrize(
    ("line", "files", "expected"),
    [
        ("0::/job/step", V2, 3),  # the job's quota holds for its step; half a core more is none
        ("0::/job/step", {**V2, "sys/fs/cgroup/job/step/cpu.max": "200000 100000"}, 2),
        ("0::/", TOP2, 1),  # as in a container; never below one
        ("0::/docker/0123", TOP2, 1),  # a container that sees its outer name
        ("4:cpu,cpuacct:/job", V1, 3),
        ("4:cpu,cpuacct:/", V1, 8),
        ("4:cpu,cpuacct:/docker/0123", TOP1, 2),  # where the folder is called after the one controller
        ("4:cpuset:/job", V1, 8),
        ("0::/job", HYBRID, 4),
        ("0::/job", {"sys/fs/cgroup/job/cpu.max": "nonsense"}, 8),
    ],
)
def test_cores_are_those_that_the_quota_gives(system, monkeypatch, line, files, expected):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    system(line, files)
    assert machine.cores() == expected
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")  # torchrun's processes share them
    assert machine.cores() == max(1, expected // 2)


MEMORY = {
    "sys/fs/cgroup/job/memory.max": "700",
    "sys/fs/cgroup/job/memory.current": "450",
    "sys/fs/cgroup/job/memory.stat": "active_file 9\ninactive_file 50",
    "sys/fs/cgroup/job/step/memory.max": "1000",
    "sys/fs/cgroup/job/step/memory.current": "400",
    "sys/fs/cgroup/job/step/memory.stat": "inactive_file 0",
    "sys/fs/cgroup/memory/memory.limit_in_bytes": "2000",
    "sys/fs/cgroup/memory/memory.usage_in_bytes": "100",
    "sys/fs/cgroup/memory/memory.stat": "total_inactive_file 0",
    "sys/fs/cgroup/memory/job/memory.limit_in_bytes": "500",
    "sys/fs/cgroup/memory/job/memory.usage_in_bytes": "400",
    "sys/fs/cgroup/memory/job/memory.stat": "inactive_file 7\ntotal_inactive_file 40",
}


@pytest.mark.parametrize(
    ("line", "left"),
    [
        ("0::/job/step", 700 - 450 + 50),  # the job's limit is below that of its step
        ("0::/", sys.maxsize),
        ("4:memory:/job", 500 - 400 + 40),
        ("4:memory:/another", 2000 - 100),
        ("3:cpuset:/job", sys.maxsize),
    ],
)
def test_memory_is_what_control_groups_leave(system, line, left):
    system(line, {**MEMORY, "proc/meminfo": "MemTotal: 9 kB\nMemAvailable: 3 kB"})
    assert machine.group_memory() == left
    assert machine.free_memory() == min(left, 3 * 1024)


def test_without_control_groups_there_is_no_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "ROOT", tmp_path)
    assert machine.cpu_quota() == float("inf")
    assert machine.group_memory() == sys.maxsize
    monkeypatch.setattr(machine, "ROOT", Path("/"))
    assert 2**24 < machine.free_memory() < 2**46
