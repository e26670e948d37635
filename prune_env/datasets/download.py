"""Downloads that survive broken connections, and archives that are unpacked whole or not at all."""

import os
import sys
import tempfile
import urllib.request
import zipfile
from http.client import HTTPException
from pathlib import Path, PurePosixPath
from urllib.error import HTTPError, URLError

from prune_env.files import DamagedFile, file_digest

TIMEOUT = 60  # seconds without a byte
CHUNK = 1 << 16  # bytes


def download(url: str, path: Path, md5: str) -> None:
    """Fetch `url` to `path`, unless it is there with the right md5; goes on where an earlier try broke off.

    For one process at a time. Raises urllib.error.HTTPError when the server refuses, ConnectionError when a
    connection yields nothing, DamagedFile (and forgets what was fetched) when the md5 is wrong.
    """
    if path.exists() and file_digest(path, "md5") == md5:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    part.touch()
    while not _fetch_rest(url, part):
        pass  # the connection broke, but brought us further
    if (got := file_digest(part, "md5")) != md5:
        part.unlink()
        raise DamagedFile(f"{url}: the download has md5 {got}, expected {md5}; it was removed, try again")
    os.replace(part, path)


def _fetch_rest(url: str, part: Path) -> bool:
    """Add to `part` what one connection yields; whether the file is complete now."""
    before = part.stat().st_size
    request = urllib.request.Request(url, headers={"Range": f"bytes={before}-"} if before else {})
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT) as response, part.open("r+b") as file:
            # A server that ignores the range answers 200 and sends the file from its first byte.
            done = before if response.status == 206 else 0
            total = done + int(response.headers["Content-Length"])
            file.seek(done)
            file.truncate()
            while chunk := response.read(CHUNK):
                file.write(chunk)
                done += len(chunk)
                _show(part.stem, done, total)
        if done < total:
            raise ConnectionError(f"closed after {done} of {total} bytes")
        return True
    except HTTPError as error:
        if error.code == 416:  # there is nothing beyond what we have; the checksum tells whether that is right
            return True
        raise
    except (URLError, HTTPException, ConnectionError, TimeoutError) as error:
        after = part.stat().st_size
        if after > before:
            return False
        if after == 0:
            part.unlink()
            raise ConnectionError(f"{url}: {error}") from error
        raise ConnectionError(
            f"{url}: {error}. {after} bytes are kept in {part}; try again to go on from there"
        ) from error


def _show(name: str, done: int, total: int) -> None:
    if sys.stderr.isatty():
        end = "\n" if done == total else ""
        print(f"\r{name}: {done / 1e6:.1f} of {total / 1e6:.1f} MB", end=end, file=sys.stderr, flush=True)


def unzip(archive: Path, folder: Path) -> None:
    """Make `folder` from the folder of that name in `archive`; it appears whole or not at all.

    Raises ValueError for an archive with members outside that folder, FileExistsError if `folder` exists.
    """
    if folder.exists():
        raise FileExistsError(f"{folder} exists but is incomplete: remove it, and {archive} is unpacked there")
    with zipfile.ZipFile(archive) as members, tempfile.TemporaryDirectory(dir=folder.parent) as beside:
        for name in members.namelist():
            parts = PurePosixPath(name.replace("\\", "/")).parts
            if parts[:1] != (folder.name,) or ".." in parts:
                raise ValueError(f"{archive} holds {name!r}, which is not in {folder.name}/: not unpacked")
        members.extractall(beside)
        os.rename(Path(beside, folder.name), folder)
