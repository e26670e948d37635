"""What agents must not open, by whatever name."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any

# event -> how many of its arguments name files
NAMES = {"open": 1, "os.link": 2, "os.symlink": 2, "os.rename": 2}
NAMES |= dict.fromkeys(("os.mkdir", "os.remove", "os.rmdir", "os.truncate", "os.chmod", "os.chown", "os.utime"), 1)
OPEN_FILES = "/proc/self/fd"


class Watch:
    """An audit hook that refuses to open closed files, to give them other names, to make, change and remove them."""

    def __init__(self) -> None:
        self._closed: list[str] = []
        self._same: set[tuple[int, int]] = set()  # what `_identity` says of them

    def close(self, paths: Sequence[str]) -> None:
        """Refuse these files, and folders with all that is in them, from now on; real paths."""
        self._closed += paths
        self._same |= {known for path in paths if (known := _identity(path)) is not None}

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event not in NAMES or not self._closed:
            return
        for name in arguments[: NAMES[event]]:
            if isinstance(name, str | bytes | os.PathLike):  # and no open file's number
                for place in _places(os.fsdecode(name)):
                    path = os.path.realpath(place)
                    if self._is_closed(path) or (event == "os.rename" and self._is_around(path)):
                        raise PermissionError(f"an agent must not open {path}: it decides by what it observes")

    def _is_closed(self, path: str) -> bool:
        if any(path == one or path.startswith(one + os.sep) for one in self._closed):
            return True
        while _identity(path) not in self._same:  # by a hard link, or a mount
            path, below = os.path.dirname(path), path
            if path == below:
                return False
        return True

    def _is_around(self, path: str) -> bool:
        return any(one.startswith(os.path.join(path, "")) for one in self._closed)


def _identity(path: str) -> tuple[int, int] | None:
    with suppress(OSError):
        found = os.stat(path)
        return found.st_dev, found.st_ino
    return None


def _places(name: str) -> Iterator[str]:
    """Where a name leads from here, and, as events do not tell of every `dir_fd`, from each folder that is open."""
    yield name
    if not os.path.isabs(name):
        with suppress(OSError):  # not all systems have this folder
            for file in os.listdir(OPEN_FILES):
                yield os.path.join(OPEN_FILES, file, name)
