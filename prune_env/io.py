"""Write files atomically, and read and write JSON lines."""

import errno
import hashlib
import json
import os
import re
import shutil
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

CHUNK = 1 << 20  # bytes hashed at a time
UNFINISHED = re.compile(r"\..+\.[0-9a-f]{32}")  # names of what is in the writing, see open_atomic


class DamagedFile(ValueError):
    """A file whose bytes are not what was written, or not ours at all."""


def write_atomic(path: str | Path, data: bytes) -> None:
    """Write `data` to `path` so that a reader, or a crash, meets either the old file or the whole new one."""
    with open_atomic(path) as file:
        file.write(data)


@contextmanager
def open_atomic(path: str | Path) -> Iterator[IO[bytes]]:
    """Open a new file in the folder of `path` (made if absent). It takes the place of `path` if the block ends well."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        with open(beside, "x+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
        sync_folder(path.parent)
    finally:
        beside.unlink(missing_ok=True)  # it is still there only when something above failed


def append_line(path: str | Path, value: dict[str, Any]) -> None:
    """Append one JSON line. It is on the disk when this returns; if it cannot be written, the file is as before.

    Raises ValueError for a number that JSON does not know (NaN, infinity), OSError when the disk is full.
    """
    line = json.dumps(value, allow_nan=False, separators=(",", ":")).encode() + b"\n"
    with open(path, "a+b", buffering=0) as file:
        before = file.seek(0, os.SEEK_END)
        if before:
            file.seek(before - 1)
            if file.read(1) != b"\n":  # a kill tore the last line; the new one must not join it
                line = b"\n" + line
        try:
            written = 0
            while written < len(line):  # a disk that is nearly full takes a part
                written += file.write(line[written:]) or 0
            os.fsync(file.fileno())
        except OSError:
            file.truncate(before)
            raise


def read_lines(path: str | Path) -> list[dict[str, Any]]:
    """Read JSON lines. A line that a kill has torn is dropped, and stderr says so. No file has no lines."""
    try:
        lines = Path(path).read_bytes().split(b"\n")
    except FileNotFoundError:
        return []
    values, torn = [], 0
    for line in filter(None, lines):
        try:
            value = json.loads(line)
        except ValueError:
            value = None
        if isinstance(value, dict):
            values.append(value)
        else:
            torn += 1
    if torn:
        print(f"{path}: {torn} torn line(s) dropped", file=sys.stderr)
    return values


def file_digest(path: str | Path, algorithm: str) -> str:
    """Return the hexadecimal digest of a file's content; `algorithm` as `hashlib` names it."""
    with open(path, "rb") as file:
        return _digest_of_rest(file, algorithm)


def _digest_of_rest(file: IO[bytes], algorithm: str) -> str:
    digest = hashlib.new(algorithm, usedforsecurity=False)
    while chunk := file.read(CHUNK):
        digest.update(chunk)
    return digest.hexdigest()


def sync_folder(folder: Path) -> None:
    """Let the names in `folder` outlast a power cut, where folders can be opened."""
    if os.name == "posix":
        with suppress(OSError):  # some file systems cannot, and the file is in its place already
            opened = os.open(folder, os.O_RDONLY)
            try:
                os.fsync(opened)
            finally:
                os.close(opened)


# What follows goes once train/execution no longer uses it.


def seal(path: str | Path, kind: str, data: bytes) -> None:
    """Write `data` with a digest, atomically; `kind` is a word for what it is and the version of its format."""
    with open_atomic(path) as file:
        file.write(_header(kind, hashlib.sha256(data).hexdigest()))
        file.write(data)


def unseal(path: str | Path, kind: str) -> bytes:
    """Read what `seal` wrote. Raises DamagedFile, naming the path, unless every byte is as written, in this format."""
    with open(path, "rb") as file:
        start = _check(path, file, kind)
        file.seek(start)
        return file.read()


def seal_line(kind: str, value: Any) -> bytes:
    """A line of JSON for a dict, with a digest as its last entry; `kind` as for `seal`.

    Raises:
        ValueError: a number that JSON does not know (NaN, infinity).
    """
    line = json.dumps(value, allow_nan=False, separators=(",", ":")).encode()
    comma = b"," if value else b""
    return line[:-1] + comma + _entry(kind, hashlib.sha256(line).hexdigest()) + b"}\n"


def unseal_line(kind: str, line: bytes) -> Any:
    """The dict of a line from `seal_line`, with or without the break. Raises DamagedFile unless it is as written."""
    line = line.removesuffix(b"\n")
    entry = _entry(kind, 64 * "0") + b"}"
    rest, digest = line[: -len(entry)], line[-66:-2]
    body = rest.removesuffix(b",") + b"}"
    if not rest or line != rest + _entry(kind, hashlib.sha256(body).hexdigest()) + b"}":
        known = line[-len(entry) :].replace(digest, b"") == entry.replace(64 * b"0", b"")
        why = "its content does not match its sha256" if known else f"it does not end with the sha256 of {kind!r}"
        raise DamagedFile(why)
    return json.loads(body)


def lock(file: IO[bytes], *, wait: bool) -> bool:
    """Lock an open file against other processes; the system unlocks it when it is closed or its process ends.

    Returns False where there are no locks, on Windows and on some file systems. Raises BlockingIOError if another
    process has it, unless that is to be waited for.
    """
    if fcntl is None:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
            raise
        return False
    return True


def sweep(folder: Path) -> None:
    """Remove files and folders that killed writers left unfinished in `folder`; nobody may be writing there."""
    for path in folder.glob(".*"):
        if not UNFINISHED.fullmatch(path.name):
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _header(kind: str, digest: str) -> bytes:
    return f"prune_env {kind} sha256 {digest:64}\n".encode()


def _entry(kind: str, digest: str) -> bytes:
    return f'"prune_env {kind} sha256":"{digest}"'.encode()


def _check(path: str | Path, file: IO[bytes], kind: str) -> int:
    """Where the content of a file begins; it is read to its end. Raises DamagedFile unless it is as written."""
    header = file.readline(200)
    tag = _header(kind, "").rstrip()
    if not header.startswith(tag):
        begins = "of another format" if header.startswith(b"prune_env ") else "damaged"
        raise DamagedFile(f"{path} is {begins}: it begins with {header[: len(tag)]!r}, not with {tag!r}")
    if header != _header(kind, _digest_of_rest(file, "sha256")):
        raise DamagedFile(f"{path} is damaged: its content does not match the sha256 in its first line")
    return len(header)
