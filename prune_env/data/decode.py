"""Decode image files to squares, and list those of a folder."""

import os
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

ENDINGS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")  # torchvision's
UNREAD = (  # images of other formats
    *(".jfif", ".jpe", ".jp2", ".j2k", ".jpf", ".jpx", ".jxl", ".mpo", ".gif", ".apng", ".avif", ".heic", ".heif"),
    *(".pbm", ".pnm", ".tga", ".dds", ".dib", ".ico", ".icns", ".pcx", ".psd", ".sgi", ".rgb", ".rgba", ".xbm", ".xpm"),
)
UNFINISHED = (".part", ".partial", ".crdownload", ".download", ".tmp")  # what programs add to a name as they write it
# What systems and programs leave among the user's files, in lower case. Names that begin with a dot are left out too.
LITTER = {
    *("@eadir", "@tmp", "@recycle", "#recycle", "#snapshot", "@synoresource"),  # network storage
    *("@__thumb", "@recently-snapshot", "@snapshot", "@sharebin"),
    *("$recycle.bin", "system volume information", "recycler", "thumbs.db", "ehthumbs.db", "desktop.ini"),  # Windows
    *("__macosx", "icon\r", "network trash folder", "temporary items"),  # macOS
    *("lost+found", "__pycache__", "_gsdata_", "~tmp"),
}
EXTREME = 4  # the longer side over the shorter one, from which on the centre is cut out before it is resized
BLOCK = 1024  # images decoded at a time: 147 MiB of 224 pixels


def is_litter(name: str) -> bool:
    """Say whether a file or folder of this name is hidden, or none of the user's."""
    return name.startswith(".") or name.lower() in LITTER


def folders_in(folder: Path) -> list[Path]:
    """Return the sorted folders in `folder` that are not litter. Raises FileNotFoundError for a broken link."""
    shown = [path for path in folder.iterdir() if not is_litter(path.name)]
    for path in shown:
        _check_link(path)
    return sorted(path for path in shown if path.is_dir())


def has_images(folder: Path) -> bool:
    """Say whether an image lies below `folder`, read or not."""
    return any(_is_read(path) or _is_unread(path) for path in _files_below(folder))


def image_files(folder: Path) -> list[Path]:
    """Return the sorted image files below `folder`: those with one of ENDINGS. Litter is left out.

    Raises ValueError for images of other formats (.gif, .jfif, ...) and for images that are not written to their end
    (.png.part, ...), OSError for a folder that cannot be entered and a link that leads nowhere: all these would be
    missing without a word. Any other file may lie there.
    """
    files = list(_files_below(folder))
    found = sorted(filter(_is_read, files))
    if unread := sorted(filter(_is_unread, files)):
        raise ValueError(
            f"{len(unread)} image(s) in {folder} end in none of {', '.join(ENDINGS)}, the first is {unread[0]}: "
            "convert, rename (a .jfif is a .jpg) or finish them, or take them away"
        )
    return found


def _files_below(folder: Path) -> Iterator[Path]:
    # A link to a folder above would lead round in circles, to other classes or to the test images.
    entered = set(map(str, folder.resolve().parents))
    for place, folders, files in os.walk(folder, onerror=_raise, followlinks=True):
        if (real := os.path.realpath(place)) in entered:
            folders.clear()
            continue
        entered.add(real)
        folders[:] = [name for name in folders if not is_litter(name)]
        for path in (Path(place, name) for name in files if not is_litter(name)):
            if not _is_read(path):  # a broken link to an image is met when the image is read
                _check_link(path)
            yield path


def images_beside(folder: Path) -> list[Path]:
    """Return the sorted images in `folder` itself, read or not."""
    files = [path for path in folder.iterdir() if not is_litter(path.name) and not path.is_dir()]
    return sorted(path for path in files if _is_read(path) or _is_unread(path))


def _is_read(path: Path) -> bool:
    return path.suffix.lower() in ENDINGS


def _is_unread(path: Path) -> bool:
    half_written = path.suffix.lower() in UNFINISHED and path.stem.lower().endswith(ENDINGS)
    return half_written or path.suffix.lower() in UNREAD


def _raise(error: OSError) -> None:
    raise error


def _check_link(path: Path) -> None:
    if path.is_symlink() and not path.exists():
        raise FileNotFoundError(f"{path} is a link to {os.readlink(path)}, which does not exist")


def decode(paths: list[Path], size: int) -> Iterator[np.ndarray]:
    """Decode files to RGB squares of `size` pixels, block by block: (k, 3, size, size) uint8.

    Raises ValueError, naming the file, for one that cannot be decoded.
    """
    # Pillow releases the interpreter lock while it decodes: photographs gain, thumbnails neither gain nor lose.
    if len(paths) > BLOCK and not sys.stderr.isatty():
        print(f"decoding {len(paths):,} images", file=sys.stderr, flush=True)
    with ThreadPoolExecutor() as pool:
        for start in range(0, len(paths), BLOCK):
            if sys.stderr.isatty():
                print(f"\rdecoding {start:,} of {len(paths):,} images", end="", file=sys.stderr, flush=True)
            block = paths[start : start + BLOCK]
            images = np.empty((len(block), 3, size, size), np.uint8)
            for row, image in enumerate(pool.map(lambda path: square(path, size), block)):
                images[row] = image
            yield images
    if sys.stderr.isatty():
        print(file=sys.stderr)


def square(path: Path, size: int) -> np.ndarray:
    """Decode one image as people see it: upright, on white where it is transparent, RGB.

    The shorter side is resized to `size` (bilinear, antialiased), and the centre cut out.

    Returns (3, size, size) uint8. Raises ValueError, naming the file, if it cannot be decoded.
    """
    try:
        with Image.open(path) as stored:
            mode, image = stored.mode, _as_seen(stored)
    except Exception as error:  # decoders of damaged files raise anything from SyntaxError to struct.error
        raise ValueError(f"cannot decode the image {path}: {error}") from error
    if mode[0] in "IF":  # Pillow cuts 16 bits off at 255, which leaves an image white
        raise ValueError(f"the image {path} has more than 8 bits a channel (mode {mode!r}): convert it to 8 bits")
    return np.asarray(_centre(image, size)).transpose(2, 0, 1)


def _as_seen(image: Image.Image) -> Image.Image:
    """Return an RGB image that is upright, and white where `image` is transparent."""
    image.load()
    with suppress(Exception):  # cameras write tags that nobody can read
        ImageOps.exif_transpose(image, in_place=True)
    if not image.has_transparency_data:
        return image.convert("RGB")
    drawing = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", drawing.size, "white"), drawing).convert("RGB")


def _centre(image: Image.Image, size: int) -> Image.Image:
    """Resize the shorter side to `size`, and cut out the centre, as torchvision does."""
    if image.size == (size, size):
        return image
    shorter = min(image.size)
    resized = [size if side == shorter else int(size * side / shorter) for side in image.size]
    left, upper = (round((side - size) / 2) for side in resized)
    if max(resized) <= EXTREME * size:
        return image.resize(resized, Image.Resampling.BILINEAR).crop((left, upper, left + size, upper + size))
    # The same up to rounding, and never larger than the result.
    across, down = (side / whole for side, whole in zip(image.size, resized, strict=True))
    box = left * across, upper * down, (left + size) * across, (upper + size) * down
    return image.resize((size, size), Image.Resampling.BILINEAR, box=box)
