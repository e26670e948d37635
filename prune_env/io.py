"""Files that are whole or absent: atomic writes, and content that carries its own digest."""

import errno
import hashlib
import json
import math
import os
import re
import shutil
import uuid
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

ARRAYS = "arrays 1"  # what follows, and the version of its format
ROWS = "rows 2"
CHUNK = 1 << 20  # bytes hashed at a time
UNFINISHED = re.compile(r"\..+\.[0-9a-f]{32}")  # names of what is in the writing, see _written_beside


class DamagedFile(ValueError):
    """A file whose bytes are not those that were written, or not ours at all."""


def replace(path: str | Path, data: bytes) -> None:
    """Write `data` to `path` so that a reader, or a crash, meets either the old file or the whole new one."""
    with _written_beside(Path(path)) as file:
        file.write(data)


def save_arrays(path: str | Path, **arrays: np.ndarray) -> None:
    """Write named arrays with a digest, atomically. Raises ValueError for arrays of Python objects."""
    for name, array in arrays.items():
        if array.dtype.hasobject:
            raise ValueError(f"array {name!r} has dtype {array.dtype}: only numbers and strings can be saved")
    with _written_beside(Path(path)) as file:
        start = len(_header(ARRAYS, ""))
        file.write(bytes(start))  # filled in below: the digest is known once the rest is written
        np.savez(file, **arrays)  # pyright: ignore[reportArgumentType]  # numpy 2 added a keyword in between
        file.seek(start)
        digest = _digest_of_rest(file, "sha256")
        file.seek(0)
        file.write(_header(ARRAYS, digest))


def load_arrays(path: str | Path) -> dict[str, np.ndarray]:
    """Read what `save_arrays` wrote. Raises DamagedFile, naming the path, unless every byte is as written."""
    with open(path, "rb") as file:
        start = _check(path, file, ARRAYS)
        file.seek(start)
        with np.load(file, allow_pickle=False) as arrays:
            return dict(arrays)


def seal(path: str | Path, kind: str, data: bytes) -> None:
    """Write `data` with a digest, atomically; `kind` is a word for what it is and the version of its format."""
    with _written_beside(Path(path)) as file:
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


def row_checksums(rows: np.ndarray) -> list[int]:
    """CRC-32 of each row of an array (n, ...) that lies whole in memory."""
    return [zlib.crc32(row.data) for row in rows]


def save_rows(path: str | Path, state: str, blocks: Iterable[np.ndarray]) -> None:
    """Write the rows of uint8 arrays (k, ...), atomically, with a checksum each; one block is in memory at a time.

    `state` (64 characters, as of a sha256) says what they are of.
    """
    with _written_beside(Path(path)) as file:
        file.write(_header(ROWS, "") + _signed(state))  # the digest is filled in below
        checksums: list[int] = []
        for block in blocks:
            file.write(block.data)
            checksums += row_checksums(block)
        trailer = np.array(checksums, "<u4").tobytes()
        file.write(trailer)
        file.seek(0)
        file.write(_header(ROWS, _digest_of_rows(state, trailer)))


def open_rows(path: str | Path, state: str, shape: tuple[int, ...]) -> "Rows | None":
    """The rows (n, ...) of this shape that were saved with `state`; None if there is no file, or one of another state.

    The checksums are read and not the rows, of which there may be more than memory holds: each is checked when it is
    read. Raises DamagedFile, naming the path, for any other file.
    """
    empty, ours = _header(ROWS, ""), _signed(state)
    start = len(empty) + len(ours)
    try:
        with open(path, "rb") as file:
            header, theirs = file.read(len(empty)), file.read(len(ours))
            file.seek(start + math.prod(shape))
            trailer = file.read()
    except FileNotFoundError:
        return None
    whole = theirs == _signed(theirs[: len(state)].decode(errors="replace"))
    if theirs != ours and whole and header.startswith(empty.rstrip()):
        return None
    if theirs != ours or len(trailer) != 4 * shape[0] or header != _header(ROWS, _digest_of_rows(state, trailer)):
        raise DamagedFile(f"{path} is damaged: the checksums of its rows do not match the sha256 in its first line")
    return Rows(path, np.memmap(path, np.uint8, "r", start, shape), np.frombuffer(trailer, "<u4"))


@dataclass(frozen=True, eq=False)
class Rows:
    """Rows in a file that is mapped into memory: see `open_rows`."""

    path: str | Path
    content: np.memmap  # (n, ...) uint8
    checksums: np.ndarray  # (n,) uint32, CRC-32 of each row

    def read(self, row: int, into: np.ndarray) -> bool:
        """Copy a row; whether it is as it was saved."""
        np.copyto(into, self.content[row])
        return self.matches(row, into)

    def matches(self, row: int, content: np.ndarray) -> bool:
        """Whether that is what was saved as this row."""
        return zlib.crc32(content.data) == self.checksums[row]

    def mend(self, row: int, content: np.ndarray) -> None:
        """Write a damaged row anew, in its place: a write that is broken off leaves it as damaged as it was."""
        with open(self.path, "r+b") as file:
            file.seek(self.content.offset + row * content.nbytes)
            file.write(content.data)


def _signed(state: str) -> bytes:
    """What a file of rows is of, with a digest: else one that was damaged there would pass for one of another state."""
    return state.encode() + hashlib.sha256(state.encode()).hexdigest().encode()


def _digest_of_rows(state: str, checksums: bytes) -> str:
    return hashlib.sha256(state.encode() + checksums).hexdigest()


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


def file_digest(path: str | Path, algorithm: str) -> str:
    """Hexadecimal digest of a file's content; `algorithm` as `hashlib` names it."""
    with open(path, "rb") as file:
        return _digest_of_rest(file, algorithm)


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


def _digest_of_rest(file: IO[bytes], algorithm: str) -> str:
    digest = hashlib.new(algorithm, usedforsecurity=False)
    while chunk := file.read(CHUNK):
        digest.update(chunk)
    return digest.hexdigest()


@contextmanager
def _written_beside(path: Path) -> Iterator[IO[bytes]]:
    """A new file in the folder of `path` (made if absent) that takes its place when the block ends well."""
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


def sync_folder(folder: Path) -> None:
    """Let the names in `folder` outlast a power cut, where folders can be opened."""
    if os.name == "posix":
        with suppress(OSError):  # some file systems cannot, and the file is in its place already
            opened = os.open(folder, os.O_RDONLY)
            try:
                os.fsync(opened)
            finally:
                os.close(opened)
