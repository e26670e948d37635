"""Images decoded when they are needed, by PyTorch's DataLoader and its processes."""

import multiprocessing
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from prune_env.data import cache
from prune_env.data.decode import decode, square
from prune_env.io import DamagedFile, row_checksums
from prune_env.parent import end_with_parent

UNKNOWN = -1  # in place of a checksum
PIECE = 32  # images that a worker decodes at a time: several share a batch, so that the first one comes soon


class Workers:
    """A reader: processes decode the image files of the rows.

    They are kept from one pass to the next, and end with this object; those of a pass that is broken off end at once.

    Args:
        paths: image file of each row of the split.
        size: pixels a side.
        count: of processes, for each pass that goes on.
    """

    def __init__(self, paths: Sequence[Path], size: int, count: int):
        self._paths = paths
        self._size = size
        self._count = count
        self._checksums = np.full(len(paths), UNKNOWN)
        self._idle: list[tuple[DataLoader, list]] = []  # with what it is to decode; several where passes overlap

    def expect(self, rows: np.ndarray, checksums: np.ndarray) -> None:
        """From now on the images of these rows must have these, CRC-32 of their pixels: the digest is of such ones."""
        self._checksums[rows] = checksums

    def __call__(self, parts: Sequence[np.ndarray], device: torch.device) -> Iterator[Tensor]:
        if len(parts) == 1:  # not worth the start of processes
            images = torch.from_numpy(decode([self._paths[row] for row in parts[0]], self._size))
            yield self._checked(parts[0], _with_checksums(images)).to(device)
            return
        loader, asked = self._idle.pop() if self._idle else self._start(device)
        pieces = [[rows[i : i + PIECE] for i in range(0, len(rows), PIECE)] for rows in parts]
        asked[:] = [[os.fspath(self._paths[row]) for row in rows] for part in pieces for rows in part]
        decoded, served = iter(loader), 0
        none = torch.empty((0, 3, self._size, self._size), dtype=torch.uint8, device=device)
        try:
            for part in pieces:
                images = [self._checked(rows, next(decoded)).to(device, non_blocking=True) for rows in part]
                served += 1
                yield torch.cat([none, *images])
        finally:
            if served == len(parts):
                self._idle.append((loader, asked))
            del loader, decoded  # lest the traceback of an error keep the processes alive

    def _checked(self, rows: np.ndarray, decoded: tuple[Tensor, list[int]] | Exception) -> Tensor:
        """The images that came of the files of rows; raises what was raised, DamagedFile if one is not as expected."""
        if isinstance(decoded, Exception):
            raise decoded
        images, checksums = decoded
        expected = self._checksums[rows]
        changed = (expected != UNKNOWN) & (expected != np.array(checksums))
        if changed.any():
            raise DamagedFile(
                f"the image {self._paths[int(rows[changed.argmax()])]} is another than when the digest of the task was "
                f"taken: restore it, or remove {cache.folder()}/*.content and start again"
            )
        return images

    def _start(self, device: torch.device) -> tuple[DataLoader, list]:
        asked: list[list[str]] = []
        # a fork of a process that has used threads, or CUDA, can hang
        safe = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
        loader = DataLoader(
            Decoder(self._size),
            batch_sampler=asked,
            num_workers=self._count,
            collate_fn=_as_it_is,
            pin_memory=device.type == "cuda",
            persistent_workers=True,
            multiprocessing_context=safe,
            worker_init_fn=_begin,
            generator=torch.Generator(),  # it draws a seed for its workers, else from the global generator
        )
        return loader, asked


class Decoder(Dataset):
    """What a worker has of a data set: it is sent the names of the files, so that it holds no list of them."""

    def __init__(self, size: int):
        self.size = size

    def __getitems__(self, paths: list[str]) -> tuple[Tensor, list[int]] | Exception:
        """(k, 3, size, size) uint8, and CRC-32 of each; or what was raised: PyTorch would wrap it in its own words."""
        try:
            return _with_checksums(torch.from_numpy(np.stack([square(Path(path), self.size) for path in paths])))
        except Exception as error:
            return error


def _begin(_: int) -> None:
    """PyTorch's own watch is for children of the process that is served; these are children of the fork server."""
    end_with_parent()


def _as_it_is(decoded: Any) -> Any:
    return decoded


def _with_checksums(images: Tensor) -> tuple[Tensor, list[int]]:
    images = images.contiguous()
    return images, row_checksums(images.numpy())
