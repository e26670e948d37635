"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009): the official files, whose names and checksums torchvision lists."""

import hashlib
import io
import pickle
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from torchvision.datasets import CIFAR10, CIFAR100

from prune_env.data.download import alone, download, untar
from prune_env.data.source import Samples, Source, Split, missing
from prune_env.io import DamagedFile, file_digest


def find(dataset: type[CIFAR10], root: Path, split: str, size: int) -> Split:
    """`size` plays no part: the images have one size."""
    files = [root / dataset.base_folder / name for name in [*_batches(dataset, split), dataset.meta["filename"]]]
    for path in files:
        if not path.exists():
            layout = f"{dataset.base_folder}/, as in {dataset.filename} (the 'python version')"
            raise missing(dataset.__name__.lower(), path, layout, downloadable=True)
    return Split(partial(read, dataset, root, split), files)


def read(dataset: type[CIFAR10], root: Path, split: str) -> Samples:
    """Raises DamagedFile unless the files of both splits are the official ones, byte for byte."""
    folder = root / dataset.base_folder
    contents = {name: _official(folder, name, md5) for name, md5 in _checksums(dataset).items()}
    try:
        images, labels = zip(*(_batch(_unpickled(contents[name])) for name in _batches(dataset, split)), strict=True)
        names = _unpickled(contents[dataset.meta["filename"]])[dataset.meta["key"].encode()]
        return Samples(np.concatenate(images), np.concatenate(labels), tuple(name.decode() for name in names))
    except Exception as error:  # what is no pickle, or one of something else, raises anything
        raise DamagedFile(f"the files in {folder} are not CIFAR, in spite of their checksums: {error}") from error


def _official(folder: Path, name: str, md5: str) -> bytes:
    """The content of an official file, checked. Raises DamagedFile."""
    content = (folder / name).read_bytes() if (folder / name).exists() else b""
    if hashlib.md5(content, usedforsecurity=False).hexdigest() != md5:
        what = "has another checksum" if content else "is missing or empty"
        raise DamagedFile(
            f"{folder} does not hold the official files ({name} {what}): pass download=True to have them fetched or "
            "unpacked again"
        )
    return content


class _Inert:
    """What stands for everything that a file names: it takes what it is given, and does nothing."""

    def __init__(self, *given: Any):
        self.given = given

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Unpickler(pickle.Unpickler):
    """Builds lists, dicts, numbers and strings; no name in the file is looked up, so nothing of it can run."""

    def find_class(self, module: str, name: str) -> type[_Inert]:
        if module.partition(".")[0] != "numpy":
            raise pickle.UnpicklingError(f"it names {module}.{name}")
        return _Inert


def _unpickled(content: bytes) -> dict[bytes, Any]:
    """The dict in an official file, which was written by Python 2: its strings come as bytes, its arrays as _Inert."""
    return _Unpickler(io.BytesIO(content), encoding="bytes").load()


def _batch(batch: dict[bytes, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Images (n, 3, 32, 32) uint8 and labels (n,) int64, the images from what numpy hands to pickle."""
    *_, shape, dtype, fortran, pixels = batch[b"data"].state
    if dtype.given[0] != b"u1":
        raise ValueError(f"the images must be bytes (u1), not {dtype.given[0]}")
    images = np.frombuffer(pixels, np.uint8).reshape(shape, order="F" if fortran else "C").reshape(-1, 3, 32, 32)
    return images, np.array(batch[b"labels" if b"labels" in batch else b"fine_labels"], np.int64)


def fetch(dataset: type[CIFAR10], root: Path) -> None:
    if _whole(dataset, root):
        return
    with alone(root, dataset.base_folder):
        if not _whole(dataset, root):  # the process that we waited for may have done it
            download(dataset.url, root / dataset.filename, dataset.tgz_md5)
            untar(root / dataset.filename, root / dataset.base_folder, _checksums(dataset))


def _whole(dataset: type[CIFAR10], root: Path) -> bool:
    folder = root / dataset.base_folder
    return all(
        (folder / name).is_file() and file_digest(folder / name, "md5") == md5
        for name, md5 in _checksums(dataset).items()
    )


def _batches(dataset: type[CIFAR10], split: str) -> list[str]:
    return [name for name, _ in (dataset.train_list if split == "train" else dataset.test_list)]


def _checksums(dataset: type[CIFAR10]) -> dict[str, str]:
    """Name and md5 of every file that is read, in the order of the samples."""
    return {**dict([*dataset.train_list, *dataset.test_list]), dataset.meta["filename"]: dataset.meta["md5"]}


def _source(dataset: type[CIFAR10]) -> Source:
    return Source(
        partial(find, dataset),
        partial(fetch, dataset),
        image_size=32,
        resizable=False,
        validation_share=0.1,
        augment=True,
    )


CIFAR_10 = _source(CIFAR10)
CIFAR_100 = _source(CIFAR100)
