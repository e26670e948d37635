"""Read any tree of images, one folder a class: root/train/<class>/... and root/test/<class>/... (or root/val)."""

from pathlib import Path

import numpy as np

from prune_env.data.decode import ENDINGS, folders_in, has_images, image_files, images_beside
from prune_env.data.source import Listing, Source, composed, missing, printable, tell
from prune_env.data.task import apportion, draw_per_class

LAYOUT = (
    "train/<class>/*.jpg (or .png, ...; deeper folders are fine) and test/<class>/ or val/<class>/; or <class>/ alone, "
    "which are split"
)
TRAIN = ("train", "training")
TEST = ("test", "testing", "val", "valid", "validation")  # the first that has labels; in any case of letters
TEST_SHARE = 0.2  # of a folder of classes without splits
TEST_SEED = 0  # fixed: the same images are held out always


def find(root: Path, split: str, size: int) -> Listing:
    """Find the images of a split; labels are positions among the sorted class names of train, Unicode normalised.

    A class is a folder with images. A folder without any, such as logs/, is left out, and one line says so; but where
    the same folder of another split has images, its own are missing, which is an error. The first test folder that
    has images of a class counts: one that is empty or has no labels gives way to the next. Without splits, a fixed
    fifth of each class is the test split.

    Raises ValueError for a tree without classes, images beside them, a class whose images are missing or of formats
    that are not read, a test class that train lacks, or a class with too few images to be split.
    """
    root = _unwrapped(root)
    trains, tests = _named(root, TRAIN), _named(root, TEST)
    if not trains:
        if root.is_dir() and not tests and len(_with_images(root)) > 1:
            return _divided(root, split)
        raise missing("imagefolder", root / "train", LAYOUT, downloadable=False)
    folder = train = trains[0]
    classes = _classes(train, tests)
    names = tuple(sorted(classes))
    if split == "test":
        if not tests:
            raise FileNotFoundError(
                f"{root} has no test split: test/<class>/ or val/<class>/ beside {train.name}/. Make one, or pass "
                f"root={train}, of which a fixed part of each class is then the test split"
            )
        folder = next((test for test in tests if set(_with_images(test)) & set(names)), tests[0])
        classes = _classes(folder, [train])
        if unknown := sorted(set(classes) - set(names)):
            raise ValueError(f"{folder} holds classes that {train} lacks: {', '.join(map(printable, unknown))}")
    paths, labels = _images(folder, classes, names)
    # The train folder itself is listed because test labels depend on its classes: its time changes with them.
    return Listing(paths, labels, tuple(map(printable, names)), [train])


def _unwrapped(root: Path) -> Path:
    """Enter the single folder that an archive was unpacked to, if the splits are in there."""
    if not root.is_dir() or _named(root, TRAIN + TEST):
        return root
    inner = [folder for folder in folders_in(root) if _named(folder, TRAIN)]
    return inner[0] if len(inner) == 1 else root


def _named(root: Path, names: tuple[str, ...]) -> list[Path]:
    """Folders of these names in `root`, whatever the case of their letters: in this order, then as they are written."""
    if not root.is_dir():
        return []
    there = [path for path in root.iterdir() if path.name.lower() in names and path.is_dir()]
    return sorted(there, key=lambda path: (names.index(path.name.lower()), path.name not in names, path.name))


def _folders(folder: Path) -> dict[str, list[Path]]:
    """Return the folders in `folder` by name. Systems write an accent in two ways: such folders have one name."""
    found: dict[str, list[Path]] = {}
    for path in folders_in(folder):
        found.setdefault(composed(path.name), []).append(path)
    return found


def _with_images(folder: Path) -> dict[str, list[Path]]:
    return {name: paths for name, paths in _folders(folder).items() if any(map(has_images, paths))}


def _classes(folder: Path, others: list[Path]) -> dict[str, list[Path]]:
    """Return the folders of each class in `folder`, and say which folders have no images and are left out.

    Raises ValueError if no folder is left, or if a folder that is left out has images in one of the `others`.
    """
    classes = _with_images(folder)
    if not classes:
        raise ValueError(f"{folder} holds no class folders with images; expected below root: {LAYOUT}")
    empty = sorted(set(_folders(folder)) - set(classes))
    for other in others:
        for name in set(empty) & set(_with_images(other)):
            raise ValueError(
                f"no images in {folder / name}: it needs at least one file that ends in {', '.join(ENDINGS)}, as "
                f"{other} has images of this class"
            )
    if empty:
        names = ", ".join(map(printable, empty))
        tell(f"{printable(folder)}: folders without images are no classes and are left out: {names}")
    return classes


def _images(folder: Path, present: dict[str, list[Path]], names: tuple[str, ...]) -> tuple[list[Path], np.ndarray]:
    if beside := images_beside(folder):
        raise ValueError(
            f"{len(beside)} image(s) in {folder} lie in no folder of a class, the first is {beside[0]}: move them "
            "into one, or take them away"
        )
    per_class = {name: [path for place in present[name] for path in image_files(place)] for name in sorted(present)}
    labels = np.repeat([names.index(name) for name in per_class], [len(files) for files in per_class.values()])
    return [path for files in per_class.values() for path in files], labels


def _divided(root: Path, split: str) -> Listing:
    classes = _classes(root, others=[])
    names = tuple(sorted(classes))
    paths, labels = _images(root, classes, names)
    counts = np.bincount(labels)
    sizes = apportion(max(1, round(TEST_SHARE * len(paths))), counts)
    if (counts - sizes).min() < 2:  # training and validation need one each
        few = ", ".join(f"{printable(names[label])} has {counts[label]}" for label in np.flatnonzero(counts < 3))
        raise ValueError(
            f"{printable(root)} has no train and test folders, and the automatic split into training, validation and "
            f"test images needs at least 3 images a class: {few}. Add images, or take these classes away"
        )
    held_out = draw_per_class(labels, sizes, np.random.default_rng(TEST_SEED))
    rows = held_out if split == "test" else np.setdiff1d(np.arange(len(paths)), held_out)
    tell(
        f"{printable(root)} has no train and test folders: a fixed {TEST_SHARE:.0%} of each class, {len(held_out)} of "
        f"{len(paths)} images, is the test split"
    )
    return Listing([paths[row] for row in rows], labels[rows], tuple(map(printable, names)), [root])


IMAGEFOLDER = Source(find, fetch=None, image_size=32, resizable=True, validation_share=0.1, augment=True)
