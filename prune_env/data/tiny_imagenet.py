"""Read Tiny-ImageNet (Le and Yang 2015), with any number of its classes, as published or as usual scripts leave it."""

import tempfile
from pathlib import Path

import numpy as np
from torchvision.datasets.utils import extract_archive

from prune_env.data.decode import folders_in, image_files, images_beside
from prune_env.data.fetch import alone, download
from prune_env.data.source import Listing, Source, Split, missing

FOLDER = "tiny-imagenet-200"
URL = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"
MD5 = "90528d7ca1a48142e341f4ef8d21d0de"
LAYOUT = (
    f"{FOLDER}/wnids.txt, {FOLDER}/train/<wnid>/images/*.JPEG or {FOLDER}/train/<wnid>/*.JPEG, "
    f"{FOLDER}/val/val_annotations.txt with {FOLDER}/val/images/*.JPEG, or {FOLDER}/val/<wnid>/*.JPEG; root may also "
    f"be {FOLDER} itself"
)


def find(root: Path, split: str, size: int) -> Split:
    """The official validation images are the test split, as the official test images have no labels.

    A label is the position in wnids.txt. Images of training are those in the folders; where a class has its official
    list, <wnid>_boxes.txt, all that it names must be there. Test images are those in folders of classes, else those
    that val_annotations.txt names, which must be all that there are.

    Raises ValueError for a tree that contradicts itself, FileNotFoundError for an image that a list names.
    """
    folder = _folder(root)
    listing = folder / "wnids.txt"
    if not listing.exists():
        # download=True refuses what is there in part, so the advice to pass it would lead nowhere.
        for place in (root / FOLDER, root):
            if place.name == FOLDER and place.exists():
                raise FileNotFoundError(f"{place} is incomplete, it has no wnids.txt: {_again(place)}")
        raise missing("tiny_imagenet", listing, LAYOUT, downloadable=True)
    wnids = tuple(_text(listing).split())
    if not wnids or len(set(wnids)) < len(wnids):
        raise ValueError(f"{listing} must name each class once, one a line; it has {len(wnids)} entries")
    index, paths, labels = _train(folder, wnids) if split == "train" else _test(folder, wnids)
    return Split([listing, *index, *paths], listing=Listing(paths, labels, wnids, size))


def _folder(root: Path) -> Path:
    return root if (root / "wnids.txt").exists() else root / FOLDER


def _text(path: Path) -> str:
    return path.read_text("utf-8-sig", errors="replace")  # editors put a byte-order mark before the first name


def _again(folder: Path) -> str:
    return f"remove {folder} and fetch it anew"


def _train(folder: Path, wnids: tuple[str, ...]) -> tuple[list[Path], list[Path], np.ndarray]:
    per_class, absent = [], []
    for wnid in wnids:
        images = folder / "train" / wnid
        if not images.is_dir():
            raise FileNotFoundError(
                f"{folder / 'wnids.txt'} names the class {wnid}, but {images} does not exist: take the class out, or "
                f"{_again(folder)}"
            )
        per_class.append(image_files(images))
        there = {path.name for path in per_class[-1]}
        place = images / "images" if (images / "images").is_dir() else images
        absent += [place / name for name in _named(images) if name not in there]
    if absent:
        raise FileNotFoundError(
            f"{len(absent)} image(s) that <wnid>_boxes.txt names are missing, the first is {absent[0]}: "
            f"{_again(folder)}, or take their lines out of these files to do without"
        )
    return [], *_labelled(per_class, range(len(wnids)))


def _labelled(per_class: list[list[Path]], labels: range | list[int]) -> tuple[list[Path], np.ndarray]:
    repeated = np.repeat(np.array(labels, np.int64), [len(paths) for paths in per_class])
    return [path for paths in per_class for path in paths], repeated


def _named(images: Path) -> list[str]:
    """What the boxes file of a class says that its folder holds; nothing where there is no such file."""
    boxes = images / f"{images.name}_boxes.txt"
    if not boxes.exists():
        return []
    return [line.split("\t")[0] for line in _text(boxes).splitlines() if line.strip()]  # name, then a bounding box


def _test(folder: Path, wnids: tuple[str, ...]) -> tuple[list[Path], list[Path], np.ndarray]:
    val, annotations = folder / "val", folder / "val" / "val_annotations.txt"
    sorted_in = [wnid for wnid in wnids if (val / wnid).is_dir()]
    if sorted_in:
        if unknown := [path.name for path in folders_in(val) if path.name not in (*wnids, "images")]:
            raise ValueError(f"{val} holds classes that {folder / 'wnids.txt'} lacks: {', '.join(unknown)}")
        if left := [path for place in (val, val / "images") if place.is_dir() for path in images_beside(place)]:
            raise ValueError(
                f"{len(left)} image(s) in {val} are in no folder of a class, the first is {left[0]}: finish sorting "
                f"them, or {_again(folder)}"
            )
        return [], *_labelled([image_files(val / wnid) for wnid in sorted_in], [wnids.index(one) for one in sorted_in])
    if not annotations.exists():
        raise FileNotFoundError(
            f"{annotations} does not exist, nor do folders {val}/<wnid>/: {_again(folder)}. Expected below root: "
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
                f"{annotations}, line {number}: {path} does not exist; {_again(folder)}, or take the line out"
            )
        paths.append(path)
        labels.append(label_of[wnid])
    if not paths:
        raise ValueError(f"{annotations} is empty: it must name the images of the test split")
    if unnamed := sorted(set(image_files(val / "images")) - set(paths)):
        raise ValueError(
            f"{annotations} names no class of {len(unnamed)} image(s) beside it, the first is {unnamed[0]}: "
            f"{_again(folder)}, or take these images away"
        )
    return [annotations], paths, np.array(labels, np.int64)


def fetch(root: Path) -> None:
    """Download what is not there; the folder appears whole or not at all."""
    if (_folder(root) / "wnids.txt").exists():
        return
    with alone(root, FOLDER):
        if (root / FOLDER / "wnids.txt").exists():  # the process that we waited for may have made it
            return
        if (root / FOLDER).exists():
            raise FileExistsError(f"{root / FOLDER} exists but is incomplete: {_again(root / FOLDER)}")
        archive = root / f"{FOLDER}.zip"
        download(URL, archive, MD5)
        with tempfile.TemporaryDirectory(prefix=f".{FOLDER}.unpacking-", dir=root) as beside:
            extract_archive(archive, beside)
            (Path(beside) / FOLDER).rename(root / FOLDER)


TINY_IMAGENET = Source(find, fetch, image_size=64, resizable=True, validation_share=0.1, augment=True)
