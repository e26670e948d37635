"""Write files atomically, and append JSON lines."""

import csv
import hashlib
import json
import os
import re
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from io import BytesIO, StringIO
from pathlib import Path
from typing import IO, Any

from numpy.typing import NDArray

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


def write_columns(path: str | Path, columns: Mapping[str, NDArray]) -> None:
    """Write columns of equal length to a CSV file, or to a Parquet file if the name ends so, which needs pyarrow."""
    if Path(path).suffix == ".parquet":
        import pyarrow  # pyright: ignore[reportMissingImports]
        from pyarrow import parquet  # pyright: ignore[reportMissingImports]

        content = BytesIO()
        parquet.write_table(pyarrow.table(dict(columns)), content)
        write_atomic(path, content.getvalue())
    else:
        text = StringIO(newline="")
        writer = csv.writer(text)
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))
        write_atomic(path, text.getvalue().encode())


def read_columns(path: Path) -> dict[str, list[Any]]:
    """Return the columns of a CSV file, as strings, or of a Parquet file, as they are.

    Raises ValueError, naming the file, for a table that is not whole, or a Parquet file without pyarrow.
    """
    if path.suffix == ".parquet":
        try:
            from pyarrow import parquet  # pyright: ignore[reportMissingImports]
        except ModuleNotFoundError as error:
            raise ValueError(f"{path} needs pyarrow (pip install pyarrow), or to be a CSV file") from error
        return parquet.read_table(path).to_pydict()
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            header, *lines = list(csv.reader(file)) or [[]]
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path} is no CSV file in UTF-8: {error}") from error
    if twice := [name for name in header if header.count(name) > 1]:
        raise ValueError(f"{path} has the column {twice[0]!r} twice")
    for number, fields in enumerate(lines, start=2):
        if fields and len(fields) != len(header):
            raise ValueError(f"{path}, line {number} has {len(fields)} fields; its first line names {len(header)}")
    return {name: [fields[i] for fields in lines if fields] for i, name in enumerate(header)}  # no empty lines


def line(value: Mapping[str, Any]) -> bytes:
    """Return one JSON line. Raises ValueError for a number that JSON does not know (NaN, infinity)."""
    return json.dumps(value, allow_nan=False, separators=(",", ":")).encode() + b"\n"


def append_line(path: str | Path, value: Mapping[str, Any]) -> None:
    """Append one JSON line. It is on the disk when this returns; if it cannot be written, the file is as before.

    Raises ValueError for a number that JSON does not know (NaN, infinity), OSError when the disk is full.
    """
    text = line(value)
    with open(path, "a+b", buffering=0) as file:
        before = file.seek(0, os.SEEK_END)
        if before:
            file.seek(before - 1)
            if file.read(1) != b"\n":  # a kill tore the last line; the new one must not join it
                text = b"\n" + text
        try:
            while text:  # a disk that is nearly full takes a part
                text = text[file.write(text) or 0 :]
            os.fsync(file.fileno())
        except OSError:
            file.truncate(before)
            raise


def file_digest(path: str | Path, algorithm: str) -> str:
    """Return the hexadecimal digest of a file's content; `algorithm` as `hashlib` names it."""
    digest = hashlib.new(algorithm, usedforsecurity=False)
    with open(path, "rb") as file:
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


def sweep(folder: Path) -> None:
    """Remove files and folders that killed writers left unfinished in `folder`; nobody may be writing there."""
    for path in folder.glob(".*"):
        if not UNFINISHED.fullmatch(path.name):
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
