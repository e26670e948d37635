"""Read any tree of images, one folder a class: root/train/<class>/... and root/test/<class>/... (or root/val)."""

import unicodedata
from pathlib import Path

import numpy as np

from prune_env.data.decode import ENDINGS, folders_in, image_files, images_beside
from prune_env.data.source import Listing, Source, Split, missing, printable, tell
from prune_env.data.task import apportion, draw_per_class

LAYOUT = (
    "train/<class>/*.jpg (or .png, ...; deeper folders are fine) and test/<class>/ or val/<class>/; or <class>/ alone, "
    "which are split"
)
TRAIN = ("train", "training")
TEST = ("test", "testing", "val", "valid", "validation")  # the first that has labels; in any case of letters
TEST_SHARE = 0.2  # of a folder of classes without splits
TEST_SEED = 0  # fixed: the same images are held out always


def find(root: Path, split: str, size: int) -> Split:
    """Labels are positions among the sorted names of the class folders in train, compared after Unicode normalisation.

    A folder of test images without labels gives way to the next one that has them. Where there are no splits, a fixed
    fifth of each class is the test split.

    Raises ValueError for a tree without classes, images beside them, a class without images or with some that are
    not read, or a test class that train lacks.
    """
    root = _unwrapped(root)
    train = _named(root, TRAIN)
    if not train:
        if root.is_dir() and not _named(root, TEST) and sum(map(_has_images, folders_in(root))) > 1:
            return _divided(root, split, size)
        raise missing("imagefolder", root / "train", LAYOUT, downloadable=False)
    present = _classes(train[0])
    if not present:
        raise ValueError(f"{train[0]} holds no class folders; expected below root: {LAYOUT}")
    names = tuple(sorted(present))
    folder = train[0]
    if split == "test":
        folder, present = _test(root, names)
    paths, labels = _images(folder, present, names)
    # The train folder itself is listed because test labels depend on its classes: its time changes with them.
    return Split([train[0], *paths], listing=Listing(paths, labels, tuple(map(printable, names)), size))


def _unwrapped(root: Path) -> Path:
    """Enter the single folder that an archive was unpacked to, if the splits are in there."""
    if not root.is_dir() or _named(root, TRAIN + TEST):
        return root
    inner = [folder for folder in folders_in(root) if _named(folder, TRAIN)]
    return inner[0] if len(inner) == 1 else root


def _has_images(folder: Path) -> bool:
    return any(path.name.lower().endswith(ENDINGS) for path in folder.rglob("*"))


def _named(root: Path, names: tuple[str, ...]) -> list[Path]:
    """Folders of these names in `root`, whatever the case of their letters: in this order, then as they are written."""
    if not root.is_dir():
        return []
    there = [path for path in root.iterdir() if path.name.lower() in names and path.is_dir()]
    return sorted(there, key=lambda path: (names.index(path.name.lower()), path.name not in names, path.name))


def _classes(folder: Path) -> dict[str, list[Path]]:
    """Folders of each class. Systems write an accent in two ways: what differs only in that is one class."""
    found: dict[str, list[Path]] = {}
    for path in folders_in(folder):
        found.setdefault(unicodedata.normalize("NFC", path.name), []).append(path)
    return found


def _test(root: Path, names: tuple[str, ...]) -> tuple[Path, dict[str, list[Path]]]:
    there = _named(root, TEST)
    if not there:
        raise missing("imagefolder", root / "test", LAYOUT, downloadable=False)
    # A folder that shares no class with train, as test/unknown/, has no labels.
    labelled = [folder for folder in there if set(_classes(folder)) & set(names)]
    folder = (labelled or there)[0]
    present = _classes(folder)
    if unknown := sorted(set(present) - set(names)):
        raise ValueError(f"{folder} holds classes that {_named(root, TRAIN)[0]} lacks: {', '.join(unknown)}")
    if not present:
        raise ValueError(f"{folder} holds no class folders; expected below root: {LAYOUT}")
    return folder, present


def _images(folder: Path, present: dict[str, list[Path]], names: tuple[str, ...]) -> tuple[list[Path], np.ndarray]:
    if beside := images_beside(folder):
        raise ValueError(
            f"{len(beside)} image(s) in {folder} lie in no folder of a class, the first is {beside[0]}: move them "
            "into one, or take them away"
        )
    per_class = {name: [path for place in present[name] for path in image_files(place)] for name in sorted(present)}
    labels = np.repeat([names.index(name) for name in per_class], [len(files) for files in per_class.values()])
    return [path for files in per_class.values() for path in files], labels


def _divided(root: Path, split: str, size: int) -> Split:
    classes = _classes(root)
    names = tuple(sorted(classes))
    paths, labels = _images(root, classes, names)
    sizes = apportion(max(1, round(TEST_SHARE * len(paths))), np.bincount(labels))
    held_out = draw_per_class(labels, sizes, np.random.default_rng(TEST_SEED))
    rows = held_out if split == "test" else np.setdiff1d(np.arange(len(paths)), held_out)
    tell(
        f"{printable(root)} has no train and test folders: a fixed {TEST_SHARE:.0%} of each class, {len(held_out)} of "
        f"{len(paths)} images, is the test split"
    )
    chosen = [paths[row] for row in rows]
    return Split([root, *chosen], listing=Listing(chosen, labels[rows], tuple(map(printable, names)), size))


IMAGEFOLDER = Source(find, fetch=None, image_size=32, resizable=True, validation_share=0.1, augment=True)
