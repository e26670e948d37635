"""Read CIFAR-10 and CIFAR-100 (Krizhevsky 2009) with torchvision, which checks the official files' checksums."""

from functools import partial
from pathlib import Path

import numpy as np
from torchvision.datasets import CIFAR10, CIFAR100
from torchvision.datasets.utils import check_integrity, extract_archive

from prune_env.data import fetch
from prune_env.data.source import Samples, Source, missing
from prune_env.io import DamagedFile


def find(dataset: type[CIFAR10], root: Path, split: str, size: int) -> Samples:
    """Return a split; `size` plays no part, as the images have one size.

    Raises FileNotFoundError if nothing is there, DamagedFile unless all files are the official ones, byte for byte.
    """
    folder = root / dataset.base_folder
    if not folder.exists():
        layout = f"{dataset.base_folder}/, as in {dataset.filename} (the 'python version')"
        raise missing(dataset.__name__.lower(), folder, layout, downloadable=True)
    try:
        official = dataset(root, train=split == "train")
    except RuntimeError as error:
        raise DamagedFile(
            f"{folder} does not hold the official files, byte for byte: pass download=True to fetch them anew"
        ) from error
    images = np.ascontiguousarray(official.data.transpose(0, 3, 1, 2))
    return Samples(images, np.array(official.targets, np.int64), tuple(official.classes))


def download(dataset: type[CIFAR10], root: Path) -> None:
    """Download the official archive if a file is missing or damaged."""
    files = [*dataset.train_list, *dataset.test_list, (dataset.meta["filename"], dataset.meta["md5"])]

    def whole() -> bool:
        return all(check_integrity(root / dataset.base_folder / name, md5) for name, md5 in files)

    def unpacked() -> None:
        archive = root / dataset.filename
        fetch.download(dataset.url, archive, dataset.tgz_md5)
        extract_archive(archive, root)

    fetch.once(root, dataset.base_folder, whole, unpacked)


def _source(dataset: type[CIFAR10]) -> Source:
    return Source(
        partial(find, dataset),
        partial(download, dataset),
        image_size=32,
        resizable=False,
        validation_share=0.1,
        augment=True,
    )


CIFAR_10 = _source(CIFAR10)
CIFAR_100 = _source(CIFAR100)
