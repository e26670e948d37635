"""Any tree of images, one folder a class: root/train/<class>/... and root/test/<class>/... (or root/val)."""

from pathlib import Path

import numpy as np

from prune_env.data.decode import check_beside, class_folders, image_files, split_of
from prune_env.data.source import Listing, Source, Split, missing

LAYOUT = "train/<class>/*.jpg (or .png, ...; deeper folders are fine) and test/<class>/ or val/<class>/"


def find(root: Path, split: str, size: int) -> Split:
    """Labels are positions among the sorted names of the class folders in train.

    `test` goes before `val` if it has class folders; without them it has no labels.

    Raises ValueError for a tree without classes, images beside them, a class without images or with some that are
    not read, or a test class that train lacks.
    """
    classes = tuple(class_folders(_existing(root / "train")))
    if not classes:
        raise ValueError(f"{root / 'train'} holds no class folders; expected below root: {LAYOUT}")
    if split == "train":
        folder, present = root / "train", list(classes)
    else:
        held = [name for name in ("test", "val") if (root / name).is_dir() and class_folders(root / name)]
        folder = _existing(root / (held[0] if held else "test"))
        present = class_folders(folder)
        if unknown := sorted(set(present) - set(classes)):
            raise ValueError(f"{folder} holds classes that {root / 'train'} lacks: {', '.join(unknown)}")
        if not present:
            raise ValueError(f"{folder} holds no class folders; expected below root: {LAYOUT}")
    check_beside(folder)
    per_class = [image_files(folder / name) for name in present]
    paths = [path for files in per_class for path in files]
    labels = np.repeat([classes.index(name) for name in present], [len(files) for files in per_class])
    # The train folder itself is listed because test labels depend on its classes: its time changes with them.
    return split_of(Listing(paths, labels, classes, size), [root / "train"])


def _existing(folder: Path) -> Path:
    if not folder.is_dir():
        raise missing("imagefolder", folder, LAYOUT, downloadable=False)
    return folder


IMAGEFOLDER = Source(find, fetch=None, image_size=32, resizable=True, validation_share=0.1, augment=True)
