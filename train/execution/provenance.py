"""Where a result comes from: code, libraries, machine, time."""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
from collections.abc import Iterable
from datetime import datetime, timezone
from pathlib import Path

import gymnasium
import numpy
import torch

import prune_env
from prune_env import ranks

ROOT = Path(__file__).resolve().parents[2]


def files_digest(paths: Iterable[Path]) -> str:
    """Return the SHA-256 (hex) of the content of files; "" without any."""
    digests = [hashlib.sha256(path.read_bytes()).digest() for path in paths]
    return hashlib.sha256(b"".join(digests)).hexdigest() if digests else ""


def of_code(root: Path = ROOT) -> dict[str, str | bool | None]:
    """Return the versions of the package and its libraries, and the state of the checkout at `root`.

    `commit` and `dirty` (files that differ from the commit, or are unknown to it, but for results/, which a run
    writes itself) are None where `root` is not the top of a git checkout that has a commit.
    """
    commit, top = _git(root, "rev-parse", "HEAD"), _git(root, "rev-parse", "--show-toplevel")
    is_checkout = commit is not None and top is not None and Path(top).resolve() == root.resolve()
    return {
        "version": prune_env.__version__,
        "commit": commit if is_checkout else None,
        "dirty": bool(_git(root, "status", "--porcelain", "--", ".", ":!results")) if is_checkout else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": numpy.__version__,
        "gymnasium": gymnasium.__version__,
    }


def _git(root: Path, *arguments: str) -> str | None:
    # inside a git hook GIT_DIR and its like would answer for another repository
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    command = ["git", "-C", str(root), *arguments]
    try:
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):  # no git, or nothing to ask it about
        return None


def of_machine() -> str:
    """Return what rounding depends on: a run that went on elsewhere is as exact as these agree."""
    gpu = [torch.cuda.get_device_name()] if torch.cuda.is_available() else []
    return ", ".join([_processor(), *gpu, f"torch {torch.__version__}"])


def of_process(device: torch.device) -> dict[str, str | int]:
    """Return what this process computes on, and the time (UTC)."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _processor()
    return {
        "device": f"{device.type} ({name})",
        "threads": torch.get_num_threads(),
        "ranks": ranks.here().size,
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def _processor() -> str:
    return f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"
