"""Where the images of a task are kept: on the device, in the host's memory, in a mapped file, or in their own files."""

import hashlib
import json
import math
import os
import shutil
import sys
import warnings
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from weakref import WeakValueDictionary

import numpy as np
import torch
from torch import Tensor

from prune_env.checks import text
from prune_env.data import cache, sources
from prune_env.data.images import Images, Threads, channel_sums
from prune_env.io import DamagedFile, row_checksums, seal, unseal

KINDS = ("device", "host", "mapped", "files")
DEVICE_SHARE = 0.5  # of the device's free memory, for images: the rest is for weights, activations and what is added
HOST_SHARE = 0.4  # of the free memory, for a decoded split: it is there twice while its parts are gathered
DISK_SHARE = 0.9  # of the free room in the cache folder
# by kind of control group, as of version 2 and 1: folder, files of limit and use, entry of memory.stat for cached files
GROUPS = {
    "": ("sys/fs/cgroup", "memory.max", "memory.current", "inactive_file"),
    "memory": ("sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
}
CONTENT = "content 2"  # digest, sums and checksums of images that take long to read, and the version of their file
PASS = 2**22  # bytes of images read at a time for these

Holder = Callable[[np.ndarray, np.ndarray], tuple[Tensor | Images, str]]  # rows, labels: images, digest of both


def choose(held: int, split: int, device: int | None, host: int, disk: int) -> str:
    """Where to keep the images of a split whose every sample is a file.

    Args:
        held: bytes of the images that training and validation use.
        split: bytes of all images of the split, which are decoded together for "device" and "host".
        device: bytes that are free on the device; None where that is the host's own memory.
        host: bytes of memory that are free.
        disk: bytes that are free for the cache, with those of the mapped file if there is one already.

    Returns:
        One of KINDS, the fastest that fits: by DEVICE_SHARE, HOST_SHARE and DISK_SHARE.
    """
    if split <= HOST_SHARE * host:
        return "device" if device is None or held <= DEVICE_SHARE * device else "host"
    return "mapped" if split <= DISK_SHARE * disk else "files"


def free_memory() -> int:
    """This process' share of the host's memory that can be taken; of all there is where the system does not tell."""
    try:
        lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        free = 1024 * int(lines["MemAvailable"].split()[0])
    except (OSError, KeyError):
        free = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else sys.maxsize
    return min(free, group_memory()) // processes()


def group_memory(root: Path = Path("/")) -> int:
    """Bytes that are left to this process by its control groups, in which containers and batch systems put limits.

    What the system has cached of files is not counted as used. `root` is that of /proc and /sys.
    """
    left = [sys.maxsize]
    with suppress(OSError):
        for line in (root / "proc/self/cgroup").read_text().splitlines():
            _, kinds, path = line.split(":", 2)
            if kinds not in GROUPS:
                continue
            base, limit, used, cached = GROUPS[kinds]
            top = root / base
            group = top / path.lstrip("/")  # inside of a container that folder may not be there, but the topmost is
            for folder in [group, *group.parents][: len(group.relative_to(top).parts) + 1]:
                with suppress(OSError, ValueError, KeyError):  # "max": no limit
                    most, now = (int((folder / name).read_text()) for name in (limit, used))
                    stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
                    left.append(max(0, most - now + int(stat[cached])))
    return min(left)


def cores() -> int:
    """This process' share of the cores that it may use."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, usable // processes())


def processes() -> int:
    """How many torchrun started on this machine, which share what it has."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def free_disk(folder: Path) -> int:
    """Bytes that are free where `folder` is, or will be; 0 where it cannot be written."""
    there = next(path for path in (folder, *folder.parents) if path.exists())
    writable = os.access(there, os.W_OK, effective_ids=os.access in os.supports_effective_ids)
    return shutil.disk_usage(there).free if writable else 0


def free_on(device: torch.device) -> int | None:
    """Bytes that are free on a CUDA device, with those that torch holds and does not use; None for any other."""
    if device.type != "cuda":
        return None
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + unused


def check_kind(images: str) -> None:
    """Raises TypeError or ValueError unless that is "auto" or one of KINDS."""
    if text("images", images) not in ("auto", *KINDS):
        raise ValueError(f"images is {images!r}; it must be one of auto, {', '.join(KINDS)}")


def holder(
    images: str,
    found: sources.Found,
    known: sources.Samples | sources.Listing,
    held: int,
    device: torch.device,
) -> Holder:
    """What holds the images of parts of a split, for batches on `device`.

    Args:
        images: "auto" or one of KINDS; for what has no listing, not "mapped" or "files".
        found: the split.
        known: its listing, or its samples.
        held: images of all parts.
        device: of batches.

    Raises:
        OSError, ValueError: what `sources.read` and `Mapped` raise.
    """
    split, root, name = found
    if images == "auto":
        images = _fitting(known, cache.place(root, name, "rows"), held, device)
    if images in ("device", "host"):
        samples = known if isinstance(known, sources.Samples) else sources.decoded(*found)
        return partial(_in_memory, samples.images, device, images == "host")
    assert isinstance(known, sources.Listing)
    state = cache.state_of(split.files)  # before reading: what changes meanwhile is noticed next time
    # what decodes is imported when it is needed: torchvision takes a second
    if images == "mapped":
        from prune_env.data.mapped import Mapped

        reader = Threads(known.shape[1:], Mapped(known, cache.place(root, name, "rows"), state).gather)
    else:
        from prune_env.data.workers import Workers

        reader = Workers(known.paths, known.size, cores())

    def elsewhere(rows: np.ndarray, labels: np.ndarray) -> tuple[Images, str]:
        kept = Images(rows, known.shape[1:], reader)
        key = hashlib.sha256(state.encode() + rows.tobytes() + labels.tobytes()).hexdigest()[:16]
        digest, kept.sums, checksums = _content(kept, labels, cache.place(root, f"{name}-{key}", "content"))
        if not isinstance(reader, Threads):
            reader.expect(rows, checksums)
        return kept, digest

    return elsewhere


def _fitting(known: sources.Samples | sources.Listing, mapped: Path, held: int, device: torch.device) -> str:
    if isinstance(known, sources.Samples):  # they are in memory
        size, split, disk = known.images[0].nbytes, 0, 0
    else:
        size, split = math.prod(known.shape[1:]), math.prod(known.shape)
        disk = free_disk(mapped.parent) + (mapped.stat().st_size if mapped.exists() else 0)
    return choose(held * size, split, free_on(device), free_memory(), disk)


_Key = tuple[str, tuple[int, ...], str]  # digest, shape, device
_held: WeakValueDictionary[_Key, Tensor] = WeakValueDictionary()  # images in use


def _in_memory(
    of_split: np.ndarray, device: torch.device, on_host: bool, rows: np.ndarray, labels: np.ndarray
) -> tuple[Tensor | Images, str]:
    """Gather `rows` into memory of their own, which parts with the same images share."""
    gathered = of_split[rows]
    content = hashlib.sha256(gathered.data)
    where = torch.device("cpu") if on_host else device
    key = content.hexdigest(), gathered.shape, str(where)
    images = _held.get(key)
    if images is None:
        images = _held[key] = torch.from_numpy(gathered).to(where)
    content.update(labels.data)  # as in Data's digest
    if not on_host:
        return images, content.hexdigest()

    def gather(rows: np.ndarray, into: np.ndarray) -> None:
        np.take(images.numpy(), rows, axis=0, out=into, mode="clip")  # "raise" would copy once more

    kept = Images(np.arange(len(rows)), images.shape[1:], Threads(images.shape[1:], gather))
    kept.sums = channel_sums(images)
    return kept, content.hexdigest()


def _content(images: Images, labels: np.ndarray, path: Path) -> tuple[str, Tensor, np.ndarray]:
    """sha256 over images and labels, channel sums, CRC-32 of each image: from `path`, else by a pass over them."""
    try:
        known = json.loads(unseal(path, CONTENT))
        return known["digest"], torch.tensor(known["sums"]), np.array(known["checksums"], np.uint32)
    except DamagedFile as error:
        warnings.warn(f"the cache is built anew: {error}", stacklevel=5)
    except OSError:
        pass  # absent, or unreadable: if it cannot be written either, that is what the warning is for
    digest, sums = hashlib.sha256(), torch.zeros(2, images.shape[1], dtype=torch.int64)
    checksums: list[int] = []
    parts = torch.arange(len(labels)).split(max(1, PASS // math.prod(images.shape[1:])))
    for block in images.batches(parts, torch.device("cpu")):
        digest.update(block.numpy().data)
        sums += channel_sums(block)
        checksums += row_checksums(block.numpy())
    digest.update(labels.data)
    try:
        cache.clean(path)
        known = {"digest": digest.hexdigest(), "sums": sums.tolist(), "checksums": checksums}
        seal(path, CONTENT, json.dumps(known).encode())
    except OSError as error:
        warnings.warn(f"the images are read through again next time: cannot write {path}: {error}", stacklevel=5)
    return digest.hexdigest(), sums, np.array(checksums, np.uint32)
