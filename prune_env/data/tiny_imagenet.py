"""Read Tiny-ImageNet (Le and Yang 2015), with any number of its classes, as published or as usual scripts leave it."""

import tempfile
from pathlib import Path

import numpy as np
from torchvision.datasets.utils import extract_archive

from prune_env.data import fetch
from prune_env.data.decode import folders_in, image_files, images_beside
from prune_env.data.source import Listing, Source, missing

FOLDER = "tiny-imagenet-200"
URL = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"
MD5 = "90528d7ca1a48142e341f4ef8d21d0de"
LAYOUT = (
    f"{FOLDER}/wnids.txt, {FOLDER}/train/<wnid>/images/*.JPEG or {FOLDER}/train/<wnid>/*.JPEG, "
    f"{FOLDER}/val/val_annotations.txt with {FOLDER}/val/images/*.JPEG, or {FOLDER}/val/<wnid>/*.JPEG; root may also "
    f"be {FOLDER} itself"
)


def find(root: Path, split: str, size: int) -> Listing:
    """The official validation images are the test split, as the official test images have no labels.

    A label is the position in wnids.txt. Test images are those that val_annotations.txt names, or, where a script has
    sorted them, those in folders of classes.

    Raises ValueError for a tree that contradicts itself, FileNotFoundError for an image or a class that a list names.
    """
    folder = _folder(root)
    index = folder / "wnids.txt"
    if not index.exists():
        # download=True refuses what is there in part, so the advice to pass it would lead nowhere.
        for place in (root / FOLDER, root):
            if place.name == FOLDER and place.exists():
                raise FileNotFoundError(f"{place} is incomplete, it has no wnids.txt: {_again(place)}")
        raise missing("tiny_imagenet", index, LAYOUT, downloadable=True)
    wnids = tuple(_text(index).split())
    if not wnids or len(set(wnids)) < len(wnids):
        raise ValueError(f"{index} must name each class once, one a line; it has {len(wnids)} entries")
    val = folder / "val"
    if split == "train":
        for wnid in wnids:
            if not (folder / "train" / wnid).is_dir():
                raise FileNotFoundError(
                    f"{index} names the class {wnid}, but {folder / 'train' / wnid} does not exist: take the class "
                    f"out, or {_again(folder)}"
                )
        paths, labels = _in_folders(folder / "train", wnids)
    elif any((val / wnid).is_dir() for wnid in wnids):
        if unknown := {path.name for path in folders_in(val)} - {*wnids, "images"}:
            raise ValueError(f"{val} holds classes that {index} lacks: {', '.join(sorted(unknown))}")
        if left := [path for place in (val, val / "images") if place.is_dir() for path in images_beside(place)]:
            raise ValueError(
                f"{len(left)} image(s) in {val} are in no folder of a class, the first is {left[0]}: finish sorting "
                f"them, or {_again(folder)}"
            )
        paths, labels = _in_folders(val, wnids)
    else:
        paths, labels = _annotated(val, wnids)
    return Listing(paths, np.array(labels, np.int64), wnids, [index])


def _folder(root: Path) -> Path:
    return root if (root / "wnids.txt").exists() else root / FOLDER


def _text(path: Path) -> str:
    return path.read_text("utf-8-sig", errors="replace")  # editors put a byte-order mark before the first name


def _again(folder: Path) -> str:
    return f"remove {folder} and fetch it anew"


def _in_folders(folder: Path, wnids: tuple[str, ...]) -> tuple[list[Path], list[int]]:
    """Return the images in the folders of classes, and their labels."""
    paths, labels = [], []
    for label, wnid in enumerate(wnids):
        if (folder / wnid).is_dir():
            images = image_files(folder / wnid)
            if not images:
                raise ValueError(f"no images in {folder / wnid}: {_again(folder.parent)}")
            paths += images
            labels += [label] * len(images)
    return paths, labels


def _annotated(val: Path, wnids: tuple[str, ...]) -> tuple[list[Path], list[int]]:
    """Return the images that val_annotations.txt names, and their labels."""
    annotations = val / "val_annotations.txt"
    if not annotations.exists():
        raise FileNotFoundError(
            f"{annotations} does not exist, nor do folders {val}/<wnid>/: {_again(val.parent)}. Expected below root: "
            f"{LAYOUT}"
        )
    label_of = {wnid: label for label, wnid in enumerate(wnids)}
    paths, labels = [], []
    for number, line in enumerate(_text(annotations).splitlines(), start=1):
        name, wnid, *_ = [*line.split("\t"), ""]  # name, wnid, then a bounding box
        path = val / "images" / name
        if wnid not in label_of:
            raise ValueError(f"{annotations}, line {number}: class {wnid!r} is not in wnids.txt")
        if not path.is_file():
            raise FileNotFoundError(
                f"{annotations}, line {number}: {path} does not exist; {_again(val.parent)}, or take the line out"
            )
        paths.append(path)
        labels.append(label_of[wnid])
    if unnamed := sorted(set(image_files(val / "images")) - set(paths)):
        raise ValueError(
            f"{annotations} names no class of {len(unnamed)} image(s) beside it, the first is {unnamed[0]}: "
            f"{_again(val.parent)}, or take these images away"
        )
    return paths, labels


def download(root: Path) -> None:
    """Download what is not there; the folder appears whole or not at all."""

    def unpacked() -> None:
        if (root / FOLDER).exists():
            raise FileExistsError(f"{root / FOLDER} exists but is incomplete: {_again(root / FOLDER)}")
        archive = root / f"{FOLDER}.zip"
        fetch.download(URL, archive, MD5)
        with tempfile.TemporaryDirectory(prefix=f".{FOLDER}.unpacking-", dir=root) as beside:
            extract_archive(archive, beside)
            (Path(beside) / FOLDER).rename(root / FOLDER)

    fetch.once(root, FOLDER, lambda: (_folder(root) / "wnids.txt").exists(), unpacked)


TINY_IMAGENET = Source(find, download, image_size=64, resizable=True, validation_share=0.1, augment=True)
