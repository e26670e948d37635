"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009), read and verified by torchvision."""

from functools import partial
from pathlib import Path

import numpy as np
from torchvision.datasets import CIFAR10, CIFAR100
from torchvision.datasets.utils import check_integrity

from prune_env.datasets.download import download
from prune_env.datasets.source import Samples, Source, Split, missing


def find(dataset: type[CIFAR10], root: Path, split: str, size: int) -> Split:
    """`size` plays no part: the images have one size."""
    names = [name for name, _ in (dataset.train_list if split == "train" else dataset.test_list)]
    files = [root / dataset.base_folder / name for name in [*names, dataset.meta["filename"]]]
    for path in files:
        if not path.exists():
            layout = f"{dataset.base_folder}/, as in {dataset.filename} (the 'python version')"
            raise missing(dataset.__name__.lower(), path, layout, downloadable=True)
    return Split(partial(read, dataset, root, split), files)


def read(dataset: type[CIFAR10], root: Path, split: str) -> Samples:
    """Raises ValueError when the files are not the official ones, byte for byte."""
    try:
        held = dataset(root, train=split == "train")
    except RuntimeError as error:
        raise ValueError(
            f"{root / dataset.base_folder} does not hold the official files (one is missing or its checksum differs): "
            "pass download=True to have them fetched or unpacked again"
        ) from error
    images = np.ascontiguousarray(held.data.transpose(0, 3, 1, 2))  # torchvision hands out (n, H, W, C)
    return Samples(images, np.array(held.targets, np.int64), tuple(held.classes))


def fetch(dataset: type[CIFAR10], root: Path) -> None:
    folder = root / dataset.base_folder
    checksums = [*dataset.train_list, *dataset.test_list, [dataset.meta["filename"], dataset.meta["md5"]]]
    if not all(check_integrity(folder / name, md5) for name, md5 in checksums):
        download(dataset.url, root / dataset.filename, dataset.tgz_md5)
        dataset(root, download=True)  # finds the archive with the right checksum, so it only unpacks and verifies


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
