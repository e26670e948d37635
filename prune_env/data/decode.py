"""From folders of image files to one uint8 array."""

import os
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from PIL.ImageFile import StubImageFile
from torchvision.datasets.folder import IMG_EXTENSIONS
from torchvision.transforms.v2 import functional

from prune_env.data.source import Listing, Samples, Split

BLOCK = 64  # images a thread takes at a time
FOREIGN = {".heic", ".heif", ".avif", ".jxl"}  # images that some releases of Pillow do not know
UNFINISHED = (".part", ".partial", ".crdownload", ".download", ".tmp")  # what programs add to a name as they write it


def class_folders(folder: Path) -> list[str]:
    """Sorted names of the folders in `folder`, hidden ones ignored. Raises FileNotFoundError for a broken link."""
    shown = [path for path in folder.iterdir() if not path.name.startswith(".")]
    for path in shown:
        _check_link(path)
    return sorted(path.name for path in shown if path.is_dir())


def image_files(folder: Path) -> list[Path]:
    """Sorted image files below `folder`: those with torchvision's endings, hidden files and folders ignored.

    Raises ValueError if there are none, for images of other formats that Pillow knows (.gif, .jfif, ...) and for those
    that somebody has not finished writing (.png.part, ...), OSError for a folder that cannot be entered and a link that
    leads nowhere: all these would be missing without a word. They are not read either, as the samples would then depend
    on what Pillow's release knows. Any other file may lie there.
    """
    found: list[Path] = []
    unread: list[Path] = []
    # A link to a folder above would lead round in circles, to other classes or to the test images.
    entered = set(map(str, folder.resolve().parents))
    for place, folders, files in os.walk(folder, onerror=_raise, followlinks=True):
        if (real := os.path.realpath(place)) in entered:
            folders.clear()
            continue
        entered.add(real)
        if not folders and not files and place.lower().endswith(IMG_EXTENSIONS):
            raise ValueError(f"{place} is an empty folder that is named like an image: take it away, or rename it")
        folders[:] = [name for name in folders if not name.startswith(".")]
        for path in (Path(place, name) for name in files if not name.startswith(".")):
            if path.name.lower().endswith(IMG_EXTENSIONS):
                found.append(path)
                continue
            _check_link(path)
            if path.suffix.lower() in _unread_endings() or _is_unfinished(path):
                unread.append(path)
    if unread:
        raise ValueError(
            f"{len(unread)} image(s) in {folder} end in none of {', '.join(IMG_EXTENSIONS)}, the first is "
            f"{min(unread)}: convert, rename (a .jfif is a .jpg) or finish them, or take them away"
        )
    if not found:
        raise ValueError(f"no images in {folder}: it needs at least one file that ends in {', '.join(IMG_EXTENSIONS)}")
    return sorted(found)


@cache
def _unread_endings() -> frozenset[str]:
    """Endings of images that `image_files` does not list: those that Pillow opens, and FOREIGN."""
    endings = Image.registered_extensions()  # has all of Pillow's formats imported
    stubs = {kind for kind, (opens, _) in Image.OPEN.items() if getattr(opens, "__base__", None) is StubImageFile}
    opened = {*Image.OPEN, "MPO"} - stubs  # MPO is opened as JPEG; stubs (HDF5, ...) are known and not decoded
    known = {ending for ending, kind in endings.items() if kind in opened}
    return frozenset(known | FOREIGN) - {*IMG_EXTENSIONS}


def _is_unfinished(path: Path) -> bool:
    return path.suffix.lower() in UNFINISHED and path.stem.lower().endswith(IMG_EXTENSIONS)


def check_beside(folder: Path) -> None:
    """Raises ValueError for images in `folder` itself, which has folders of classes: no class has them."""
    endings = (*IMG_EXTENSIONS, *_unread_endings())
    shown = [path for path in folder.iterdir() if not path.name.startswith(".") and not path.is_dir()]
    beside = [path for path in shown if path.name.lower().endswith(endings) or _is_unfinished(path)]
    if beside:
        raise ValueError(
            f"{len(beside)} image(s) in {folder} lie in no folder of a class, the first is {min(beside)}: move them "
            "into one, or take them away"
        )


def _raise(error: OSError) -> None:
    raise error


def _check_link(path: Path) -> None:
    if path.is_symlink() and not path.exists():
        raise FileNotFoundError(f"{path} is a link to {os.readlink(path)}, which does not exist")


def split_of(listing: Listing, others: list[Path]) -> Split:
    """The split of a listing; `others` are the files, beside its images, that decide what is in it."""
    return Split(
        lambda: Samples(decode(listing.paths, listing.size), listing.labels, listing.classes),
        [*others, *listing.paths],
        listing,
    )


def decode(paths: list[Path], size: int) -> np.ndarray:
    """Decode files to RGB squares of `size` pixels: (n, 3, size, size) uint8.

    Raises ValueError, naming the file, for one that cannot be decoded.
    """
    images = np.empty((len(paths), 3, size, size), np.uint8)

    def fill(start: int) -> None:
        for row in range(start, min(start + BLOCK, len(paths))):
            images[row] = square(paths[row], size)

    # Pillow releases the interpreter lock while it decodes: photographs gain, thumbnails neither gain nor lose.
    with ThreadPoolExecutor() as pool:
        for _ in pool.map(fill, range(0, len(paths), BLOCK)):
            pass  # the result is in `images`; asking for it raises what went wrong in the thread
    return images


def square(path: Path, size: int) -> np.ndarray:
    """One image as RGB, shorter side resized to `size` (bilinear, antialiased), then cut out of the centre.

    Returns (3, size, size) uint8.
    """
    try:
        with Image.open(path) as stored:
            mode = stored.mode
            image: Any = stored.convert("RGB")  # what torchvision's functions take, though their hints say tensors
    except Exception as error:  # decoders of damaged files raise anything from SyntaxError to struct.error
        raise ValueError(f"cannot decode the image {path}: {error}") from error
    if mode[0] in "IF":  # Pillow cuts 16 bits off at 255, which leaves an image white
        raise ValueError(f"the image {path} has more than 8 bits a channel (mode {mode!r}): convert it to 8 bits")
    if image.size != (size, size):
        image = functional.center_crop(functional.resize(image, [size]), [size])
    return np.asarray(image).transpose(2, 0, 1)
