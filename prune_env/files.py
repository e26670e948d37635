"""Files that are whole or absent: atomic writes, and arrays that carry their own digest."""

import hashlib
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import numpy as np

TAG = b"prune_env arrays 1 sha256 "
HEADER = len(TAG) + 64 + 1  # bytes of the first line: tag, digest in hex, newline
CHUNK = 1 << 20  # bytes hashed at a time


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
        file.write(bytes(HEADER))  # filled in below: the digest is known once the rest is written
        np.savez(file, **arrays)  # pyright: ignore[reportArgumentType]  # numpy 2 added a keyword in between
        file.seek(HEADER)
        digest = _digest_of_rest(file, "sha256")
        file.seek(0)
        file.write(TAG + digest.encode() + b"\n")


def load_arrays(path: str | Path) -> dict[str, np.ndarray]:
    """Read what `save_arrays` wrote. Raises DamagedFile, naming the path, unless every byte is as written."""
    with open(path, "rb") as file:
        header = file.read(HEADER)
        if not header.startswith(TAG):
            raise DamagedFile(f"{path} is damaged: it does not begin with {TAG.decode()!r}")
        if header != TAG + _digest_of_rest(file, "sha256").encode() + b"\n":
            raise DamagedFile(f"{path} is damaged: its content does not match the sha256 in its first line")
        file.seek(HEADER)
        with np.load(file, allow_pickle=False) as arrays:
            return dict(arrays)


def file_digest(path: str | Path, algorithm: str) -> str:
    """Hexadecimal digest of a file's content; `algorithm` as `hashlib` names it."""
    with open(path, "rb") as file:
        return _digest_of_rest(file, algorithm)


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
    finally:
        beside.unlink(missing_ok=True)  # it is still there only when something above failed
