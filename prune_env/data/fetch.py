"""Download with torchvision, one process at a time, with errors that say what to do."""

import shutil
from collections.abc import Callable
from http.client import HTTPException
from pathlib import Path
from urllib.error import URLError

from filelock import FileLock
from torchvision.datasets.utils import download_url

from prune_env.io import DamagedFile


def once(root: Path, name: str, there: Callable[[], bool], fetch: Callable[[], None]) -> None:
    """Let one process `fetch` what is called `name` into `root`, unless it is `there`; others wait.

    Raises OSError, saying where and what to do, when `root` cannot be written: read-only, disk full.
    """
    if there():
        return
    try:
        root.mkdir(parents=True, exist_ok=True)
        with FileLock(root / f".{name}.lock"):
            for left in root.glob(f".{name}.unpacking-*"):  # of a process that was killed
                shutil.rmtree(left)
            if not there():  # the process that we waited for may have done it
                fetch()
    except (ConnectionError, FileExistsError):
        raise
    except OSError as error:
        told = f"cannot put {name} into {root}: {error.strerror or error}; make room there, or choose another folder"
        raise OSError(error.errno, told) from error


def download(url: str, path: Path, md5: str) -> None:
    """Fetch `url` to `path`, unless it is there with the right md5.

    Raises ConnectionError when nothing comes, DamagedFile when something else comes.
    """
    try:
        download_url(url, str(path.parent), path.name, md5)
    except RuntimeError as error:
        path.unlink(missing_ok=True)
        raise DamagedFile(f"{url} did not yield the file with md5 {md5}; what came was removed, try again") from error
    except (URLError, ConnectionError, TimeoutError, HTTPException) as error:
        path.unlink(missing_ok=True)
        raise ConnectionError(
            f"cannot fetch {url}: {getattr(error, 'reason', error)}. Without a connection, put the file (md5 {md5}) at "
            f"{path} by other means: it is taken from there"
        ) from error
