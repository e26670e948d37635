"""Read CIFAR-10 and CIFAR-100 (Krizhevsky 2009) with torchvision, which checks the official files' checksums."""

from functools import partial
from pathlib import Path

import numpy as np
from torchvision.datasets import CIFAR10, CIFAR100
from torchvision.datasets.utils import check_integrity, extract_archive

from prune_env.data.fetch import alone, download
from prune_env.data.source import Samples, Source, Split, missing
from prune_env.io import DamagedFile


def find(dataset: type[CIFAR10], root: Path, split: str, size: int) -> Split:
    """`size` plays no part: the images have one size."""
    files = [path for path, _ in _files(dataset, root)]
    for path in files:
        if not path.exists():
            layout = f"{dataset.base_folder}/, as in {dataset.filename} (the 'python version')"
            raise missing(dataset.__name__.lower(), path, layout, downloadable=True)
    return Split(files, partial(read, dataset, root, split))


def read(dataset: type[CIFAR10], root: Path, split: str) -> Samples:
    """Raises DamagedFile unless the files of both splits are the official ones, byte for byte."""
    try:
        held = dataset(root, train=split == "train")
    except RuntimeError as error:
        damaged = next((path for path, md5 in _files(dataset, root) if not check_integrity(path, md5)), root)
        raise DamagedFile(
            f"{damaged} is not the official file, its checksum is another: remove {root / dataset.base_folder} and "
            "fetch it anew"
        ) from error
    images = np.ascontiguousarray(held.data.transpose(0, 3, 1, 2))
    return Samples(images, np.array(held.targets, np.int64), tuple(held.classes))


def fetch(dataset: type[CIFAR10], root: Path) -> None:
    """Download what is missing or damaged."""
    if _whole(dataset, root):
        return
    with alone(root, dataset.base_folder):
        if not _whole(dataset, root):  # the process that we waited for may have done it
            archive = root / dataset.filename
            download(dataset.url, archive, dataset.tgz_md5)
            extract_archive(archive, root)


def _whole(dataset: type[CIFAR10], root: Path) -> bool:
    return all(check_integrity(path, md5) for path, md5 in _files(dataset, root))


def _files(dataset: type[CIFAR10], root: Path) -> list[tuple[Path, str]]:
    """Path and md5 of every file that is read."""
    files = [*dataset.train_list, *dataset.test_list, (dataset.meta["filename"], dataset.meta["md5"])]
    return [(root / dataset.base_folder / name, md5) for name, md5 in files]


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
