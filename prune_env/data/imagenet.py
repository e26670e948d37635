"""ImageNet (ILSVRC 2012) as torchvision reads it: train/<wnid>/ and val/<wnid>/, or the official archives."""

import tempfile
from pathlib import Path

from torchvision.datasets import imagenet as official

from prune_env.data import imagefolder
from prune_env.data.fetch import once
from prune_env.data.source import Listing, Source, missing
from prune_env.io import DamagedFile

ARCHIVES = {name: archive for name, (archive, _) in official.ARCHIVE_META.items()}  # of "train", "val" and "devkit"
FOLDERS = ("train", "val")
LAYOUT = f"train/<wnid>/*.JPEG and val/<wnid>/*.JPEG, or the official archives {', '.join(ARCHIVES.values())}"


def find(root: Path, split: str, size: int) -> Listing:
    """The official validation images are the test split, as the official test images have no labels.

    A label is the position of its WordNet id among the sorted ones, as with torchvision. `meta.bin`, which torchvision
    leaves there, is not read: it is a pickle, and holds nothing else that matters here. Augmentation is the shift by an
    eighth and the flip that all data sets have: images are kept as squares of one size, of which random-resized crops
    cannot be made.
    """
    for folder in FOLDERS[: 1 if split == "train" else 2]:
        if not (root / folder).is_dir():
            if (root / ARCHIVES[folder]).exists():
                raise FileNotFoundError(f"{root / ARCHIVES[folder]} is packed: pass download=True to have it unpacked")
            raise missing("imagenet", root / folder, LAYOUT, downloadable=False)
    return imagefolder.find(root, split, size)


def unpack(root: Path) -> None:
    """Unpack the official archives that are there; each folder appears whole or not at all.

    They cannot be downloaded without an account at image-net.org. Needs scipy, for the labels of the validation images.

    Raises DamagedFile if an archive has not the official md5, or one of the three is missing.
    """

    def packed() -> list[str]:
        return [name for name in FOLDERS if not (root / name).exists() and (root / ARCHIVES[name]).exists()]

    def unpack_all() -> None:
        for name in packed():
            with tempfile.TemporaryDirectory(prefix=".imagenet.unpacking-", dir=root) as beside:
                _unpack(name, root, Path(beside))
                (Path(beside) / name).rename(root / name)

    once(root, "imagenet", lambda: not packed(), unpack_all)


def _unpack(name: str, root: Path, beside: Path) -> None:
    try:
        archive = str(root / ARCHIVES[name])
        if name == "train":
            official.parse_train_archive(beside, archive)
        else:  # its labels are in the devkit, and go through a meta.bin that is written here a moment before
            official.parse_devkit_archive(beside, str(root / ARCHIVES["devkit"]))
            official.parse_val_archive(beside, archive)
    except RuntimeError as error:  # torchvision's, of an archive that is missing or another
        raise DamagedFile(str(error)) from error


# 2 % are 26 images a class: an accuracy of 75 % is known to 0.3 points, for 1 % more compute in an epoch
IMAGENET = Source(find, unpack, image_size=224, resizable=True, validation_share=0.02, augment=True)
