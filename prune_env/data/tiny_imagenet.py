"""Tiny-ImageNet (Le and Yang 2015) in its official folders, with any number of its classes."""

from pathlib import Path

import numpy as np

from prune_env.data.decode import image_files, split_of
from prune_env.data.download import alone, download, unzip
from prune_env.data.source import Listing, Source, Split, missing

FOLDER = "tiny-imagenet-200"
URL = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"
MD5 = "90528d7ca1a48142e341f4ef8d21d0de"
LAYOUT = (
    f"{FOLDER}/wnids.txt, {FOLDER}/train/<wnid>/images/*.JPEG, {FOLDER}/val/val_annotations.txt, "
    f"{FOLDER}/val/images/*.JPEG; root may also be {FOLDER} itself"
)


def find(root: Path, split: str, size: int) -> Split:
    """The official validation images are the test split, as the official test images have no labels.

    A label is the position in wnids.txt. Images of training are those in the folders; where a class has its official
    list, <wnid>_boxes.txt, all that it names must be there. Test images are those that val_annotations.txt names, which
    must be all that there are: a list that was cut off at the end of a line looks like a whole one.

    Raises ValueError for a tree that contradicts itself, FileNotFoundError for an image that a list names.
    """
    folder = _folder(root)
    listing = folder / "wnids.txt"
    if not listing.exists():
        raise missing("tiny_imagenet", listing, LAYOUT, downloadable=True)
    wnids = tuple(listing.read_text().split())
    if not wnids or len(set(wnids)) < len(wnids):
        raise ValueError(f"{listing} must name each class once, one a line; it has {len(wnids)} entries")
    index, paths, labels = _train(folder, wnids) if split == "train" else _test(folder, wnids)
    return split_of(Listing(paths, labels, wnids, size), [listing, *index])


def _folder(root: Path) -> Path:
    return root if (root / "wnids.txt").exists() else root / FOLDER


def _train(folder: Path, wnids: tuple[str, ...]) -> tuple[list[Path], list[Path], np.ndarray]:
    per_class, absent = [], []
    for wnid in wnids:
        images = folder / "train" / wnid / "images"
        if not images.is_dir():
            raise FileNotFoundError(
                f"{folder / 'wnids.txt'} names the class {wnid}, but {images} does not exist: take the class out, or "
                f"remove {folder} and pass download=True to have it whole"
            )
        per_class.append(image_files(images))
        there = set(per_class[-1])
        absent += [path for path in _named(images) if path not in there]
    if absent:
        raise FileNotFoundError(
            f"{len(absent)} image(s) that <wnid>_boxes.txt names are missing, the first is {absent[0]}: remove "
            f"{folder} and pass download=True to have it whole, or take their lines out of these files to do without"
        )
    labels = np.repeat(np.arange(len(wnids)), [len(paths) for paths in per_class])
    return [], [path for paths in per_class for path in paths], labels


def _named(images: Path) -> list[Path]:
    """What the boxes file of a class says that its folder of images holds; nothing where there is no such file."""
    boxes = images.parent / f"{images.parent.name}_boxes.txt"
    if not boxes.exists():
        return []
    lines = boxes.read_text(errors="replace").splitlines()
    return [images / line.split("\t")[0] for line in lines if line.strip()]  # name, then a bounding box


def _test(folder: Path, wnids: tuple[str, ...]) -> tuple[list[Path], list[Path], np.ndarray]:
    annotations = folder / "val" / "val_annotations.txt"
    if not annotations.exists():
        raise missing("tiny_imagenet", annotations, LAYOUT, downloadable=True)
    label_of = {wnid: label for label, wnid in enumerate(wnids)}
    paths, labels = [], []
    for number, line in enumerate(annotations.read_text().splitlines(), start=1):
        name, wnid, *_ = [*line.split("\t"), ""]  # name, wnid, then a bounding box
        path = folder / "val" / "images" / name
        if wnid not in label_of:
            raise ValueError(f"{annotations}, line {number}: class {wnid!r} is not in wnids.txt")
        if not path.is_file():
            raise FileNotFoundError(f"{annotations}, line {number}: {path} does not exist")
        paths.append(path)
        labels.append(label_of[wnid])
    if not paths:
        raise ValueError(f"{annotations} is empty: it must name the images of the test split")
    if unnamed := sorted(set(image_files(folder / "val" / "images")) - set(paths)):
        raise ValueError(
            f"{annotations} names no class of {len(unnamed)} image(s) beside it, the first is {unnamed[0]}: remove "
            f"{folder} and pass download=True to have it whole, or take these images away"
        )
    return [annotations], paths, np.array(labels, np.int64)


def fetch(root: Path) -> None:
    if not (_folder(root) / "wnids.txt").exists():
        with alone(root, FOLDER):
            if not (root / FOLDER / "wnids.txt").exists():  # the process that we waited for may have made it
                download(URL, root / f"{FOLDER}.zip", MD5)
                unzip(root / f"{FOLDER}.zip", root / FOLDER)


TINY_IMAGENET = Source(find, fetch, image_size=64, resizable=True, validation_share=0.1, augment=True)
