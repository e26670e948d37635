"""Downloads that survive broken connections, and archives that are unpacked whole or not at all."""

import gzip
import os
import shutil
import stat
import sys
import tarfile
import tempfile
import urllib.request
import warnings
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path, PurePosixPath
from typing import IO
from urllib.error import HTTPError, URLError

from prune_env.io import DamagedFile, file_digest, lock

TIMEOUT = 60  # seconds without a byte
CHUNK = 1 << 16  # bytes
# what reading raises when the bytes are not those of a good archive; RuntimeError: encrypted, of an unknown method
DAMAGE = (tarfile.TarError, gzip.BadGzipFile, zipfile.BadZipFile, zlib.error, EOFError, RuntimeError)


@contextmanager
def alone(root: Path, name: str) -> Iterator[bool]:
    """While the block fetches the folder `name` into `root`, other processes that enter wait for its end.

    What earlier ones, killed, left half unpacked is removed. The lock is the system's: a dead owner's is released.
    Where there are no locks (the block is told: False), processes that fetch at the same time cost time, never a
    partial set.

    Raises OSError, saying where and what to do, when `root` cannot be written: read-only, disk full.
    """
    try:
        root.mkdir(parents=True, exist_ok=True)
        with open(root / f".{name}.lock", "ab") as file:
            if locked := _lock(file, root / name):
                for left in root.glob(f".{name}.unpacking-*"):
                    shutil.rmtree(left)
            yield locked
    except (ConnectionError, FileExistsError):
        raise
    except OSError as error:
        told = f"cannot put {name} into {root}: {error.strerror or error}; make room there, or choose another folder"
        raise OSError(error.errno, told) from error


def _lock(file: IO[bytes], what: Path) -> bool:
    """Wait until no other process holds `file`; whether this one does now."""
    try:
        return lock(file, wait=False)
    except BlockingIOError:
        print(f"waiting for another process that fetches {what}", file=sys.stderr, flush=True)
        return lock(file, wait=True)


def download(url: str, path: Path, md5: str) -> None:
    """Fetch `url` to `path`, unless it is there with the right md5; goes on where an earlier try broke off.

    Another file at `path` costs a warning, and is replaced once the right one is there.

    For one process at a time: see `alone`. Raises ConnectionError when the server refuses, sends a web page, or a
    connection yields nothing; DamagedFile (and forgets what was fetched) when the md5 is wrong.
    """
    if path.exists():
        if not (wrong := _unlike(path, md5)):
            return
        warnings.warn(f"{path} is not the right file ({wrong}): it is fetched anew", stacklevel=2)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    try:
        while not _fetch_rest(url, part):
            pass  # the connection broke, but brought us further
    except ConnectionError as error:
        kept = part.stat().st_size
        goes_on = f"{kept} bytes are kept in {part}; try again to go on from there. " if kept else ""
        raise ConnectionError(
            f"cannot fetch {url}: {error}. {goes_on}Without a connection, put the file (md5 {md5}) at {path} by other "
            "means: download=True takes it from there"
        ) from error
    finally:
        if part.exists() and not part.stat().st_size:
            part.unlink()
    if wrong := _unlike(part, md5):
        part.unlink()
        raise DamagedFile(f"{url} did not yield the right file ({wrong}); what came was removed, try again")
    os.replace(part, path)


def _unlike(path: Path, md5: str) -> str:
    """What tells the file at `path` from the one with this md5; empty if nothing does."""
    if (got := file_digest(path, "md5")) == md5:
        return ""
    with open(path, "rb") as file:
        page = _is_page(file.read(CHUNK))
    return "a web page" if page else f"{path.stat().st_size} bytes with md5 {got}, expected {md5}"


def _is_page(start: bytes) -> bool:
    """Whether a file that starts like this is HTML; no archive is."""
    return start.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"<")


def _fetch_rest(url: str, part: Path) -> bool:
    """Add to `part` what one connection yields; whether the file is complete now."""
    with open(part, "ab") as file:
        before = file.tell()
        try:
            for at, piece, total in _pieces(url, before):
                if at != file.tell():
                    file.seek(at)
                    file.truncate()
                file.write(piece)
                _show(part.stem, at + len(piece), total)
        except ConnectionError:
            if file.tell() <= before:
                raise
            return False
    return True


def _pieces(url: str, start: int) -> Iterator[tuple[int, bytes, int | None]]:
    """What one connection yields: place in the file, bytes, and length of the whole file if the server tells.

    It begins at `start`, or at 0 if the server cannot do that. Raises ConnectionError for whatever goes wrong on the
    way; for a web page too, since it says that of the network or the host, and what came before is still good.
    """
    request = urllib.request.Request(url, headers={"Range": f"bytes={start}-"} if start else {})
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT) as response:
            at = start if response.status == 206 else 0
            length = response.headers["Content-Length"]
            total = None if length is None else at + int(length)
            while piece := response.read(CHUNK):
                if at == 0 and _is_page(piece):
                    raise ConnectionError("it sends a web page in place of the file; open it in a browser to see why")
                yield at, piece, total
                at += len(piece)
            if at == 0:
                raise ConnectionError("it sends an empty file")
            if total is not None and at < total:
                raise ConnectionError(f"closed after {at} of {total} bytes")
    except HTTPError as error:
        if error.code != 416:  # there is nothing beyond what we have; the md5 tells whether that is right
            raise ConnectionError(str(error)) from error
    except ConnectionError:
        raise
    except (OSError, HTTPException, ValueError) as error:  # ValueError: a length, or a new address, that is none
        raise ConnectionError(str(error.reason if isinstance(error, URLError) else error)) from error


def _show(name: str, done: int, total: int | None) -> None:
    if sys.stderr.isatty():
        whole, end = ("?", "") if total is None else (f"{total / 1e6:.1f}", "\n" if done == total else "")
        print(f"\r{name}: {done / 1e6:.1f} of {whole} MB", end=end, file=sys.stderr, flush=True)


def untar(archive: Path, folder: Path, names: Iterable[str]) -> None:
    """Put the files `names`, of the folder of that name in `archive`, into `folder`, each whole or not at all.

    Nothing else in the archive is looked at, so it has no say in what is written where. Raises DamagedFile for an
    archive that cannot be read or lacks one of the files.
    """
    with _unpacking(archive, folder) as beside, tarfile.open(archive) as members:
        lacking = set(names)
        for member in members:
            place, _, name = member.name.rpartition("/")
            if place == folder.name and name in lacking and member.isreg():  # a link is no file
                lacking.remove(name)
                with open(beside / name, "xb") as file:
                    shutil.copyfileobj(members.extractfile(member), file)  # pyright: ignore[reportArgumentType]
        if lacking:
            raise DamagedFile(f"{archive} lacks {', '.join(sorted(lacking))} in {folder.name}/: not unpacked")
        folder.mkdir(exist_ok=True)
        for path in beside.iterdir():
            os.replace(path, folder / path.name)


def unzip(archive: Path, folder: Path) -> None:
    """Make `folder` from the folder of that name in `archive`; it appears whole or not at all.

    Raises DamagedFile for an archive that cannot be read, or has links or members outside that folder;
    FileExistsError if `folder` exists.
    """
    if folder.exists():
        raise FileExistsError(f"{folder} exists but is incomplete: remove it, and {archive} is unpacked there")
    with _unpacking(archive, folder) as beside, zipfile.ZipFile(archive) as members:
        for member in members.infolist():
            parts = PurePosixPath(member.filename.replace("\\", "/")).parts
            if parts[:1] != (folder.name,) or ".." in parts:
                raise DamagedFile(f"{archive} holds {member.filename!r}, not in {folder.name}/: not unpacked")
            if stat.S_ISLNK(member.external_attr >> 16):
                raise DamagedFile(f"{archive} holds {member.filename!r}, which is a link: not unpacked")
        members.extractall(beside)
        os.rename(beside / folder.name, folder)


@contextmanager
def _unpacking(archive: Path, folder: Path) -> Iterator[Path]:
    """A folder beside `folder`, gone afterwards; `alone` knows its name. Damage in the block names `archive`."""
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.unpacking-", dir=folder.parent) as beside:
        try:
            yield Path(beside)
        except DAMAGE as error:
            raise DamagedFile(f"{archive} is damaged: {error}") from error
