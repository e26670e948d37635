"""Small fake data sets on disk, in the layouts of the real ones, with pixels known exactly."""

import hashlib
import struct
import tarfile
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from scipy.io import savemat
from torchvision.datasets import CIFAR10, CIFAR100
from torchvision.datasets import imagenet as official

from prune_env.data import sources

Arrays = tuple[np.ndarray, np.ndarray]  # images (n, 3, H, W) uint8, labels (n,) int64


def random_images(count: int, size: int, seed: int) -> np.ndarray:
    """Noise, (count, 3, size, size) uint8."""
    return np.random.default_rng(seed).integers(0, 256, (count, 3, size, size), np.uint8)


def write_png(path: Path, image: np.ndarray) -> None:
    """Lossless whatever the file is called: Pillow goes by the content. `image` is (3, H, W) uint8."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0))).save(path, "PNG")


def imagefolder(
    root: Path, classes: tuple[str, ...] = ("cat", "dog"), per_class: int = 10, size: int = 32, test: str = "test"
) -> dict[str, Arrays]:
    """`root`/train and `root`/`test`; returns the arrays of "train" and "test" in the order they are read."""
    labels = np.repeat(np.arange(len(classes)), per_class)
    splits = {}
    for seed, (split, folder) in enumerate({"train": "train", "test": test}.items()):
        images = random_images(len(labels), size, seed)
        for row, label in enumerate(labels):
            write_png(root / folder / classes[label] / f"{row:05d}.png", images[row])
        splits[split] = images, labels
    return splits


def tiny_imagenet(
    root: Path, classes: tuple[str, ...] = ("n02", "n01", "n03"), per_class: int = 10, size: int = 64
) -> dict[str, Arrays]:
    """`root`/tiny-imagenet-200 with `per_class` training and test images a class; test images are interleaved."""
    folder = root / "tiny-imagenet-200"
    labels = np.repeat(np.arange(len(classes)), per_class)
    train, test = random_images(len(labels), size, 2), random_images(len(labels), size, 3)
    for row, label in enumerate(labels):
        write_png(folder / "train" / classes[label] / "images" / f"{classes[label]}_{row:05d}.JPEG", train[row])
    test_labels = np.tile(np.arange(len(classes)), per_class)
    lines = []
    for row, label in enumerate(test_labels):
        write_png(folder / "val" / "images" / f"val_{row}.JPEG", test[row])
        lines.append(f"val_{row}.JPEG\t{classes[label]}\t0\t0\t62\t62\n")
    (folder / "val" / "val_annotations.txt").write_text("".join(lines))
    (folder / "wnids.txt").write_text("\n".join(classes) + "\n")
    return {"train": (train, labels), "test": (test, test_labels)}


WNIDS = ("n01440764", "n01443537", "n01484850")  # in the order of labels


def imagenet(root: Path, per_class: int = 10, size: int = 40) -> dict[str, Arrays]:
    """`root`/train/<wnid> and `root`/val/<wnid>, three classes; 40 pixels are less than the 224 they are read with."""
    splits = imagefolder(root, WNIDS, per_class, size, test="val")
    for path in sorted(root.rglob("*.png")):
        path.rename(path.with_suffix(".JPEG"))
    return splits


def imagenet_archives(root: Path, monkeypatch, per_class: int = 4, size: int = 40) -> dict[str, Arrays]:
    """The three official archives, packed as the official ones are, in `root`; torchvision is told their checksums."""
    with tempfile.TemporaryDirectory() as folder:
        splits = imagenet(Path(folder), per_class, size)
        devkit = Path(folder) / "ILSVRC2012_devkit_t12" / "data"
        devkit.mkdir(parents=True)
        fields = [("ILSVRC2012_ID", "O"), ("WNID", "O"), ("words", "O"), ("gloss", "O"), ("num_children", "O")]
        ids = {wnid: 3 - label for label, wnid in enumerate(WNIDS)}  # not the order of the labels
        synsets = [(ids[wnid], wnid, f"{wnid}, also so called", "a fish", 0) for wnid in WNIDS]
        synsets += [(4, "n00001740", "entity", "not a class, but what classes are of", 3)]
        savemat(devkit / "meta.mat", {"synsets": np.array(synsets, dtype=fields)})
        val = sorted(Path(folder, "val").rglob("*.JPEG"), key=lambda path: path.name)
        truth = "".join(f"{ids[path.parent.name]}\n" for path in val)
        (devkit / "ILSVRC2012_validation_ground_truth.txt").write_text(truth)

        root.mkdir(parents=True, exist_ok=True)
        for wnid in WNIDS:
            with tarfile.open(Path(folder) / f"{wnid}.tar", "w") as packed:
                for path in sorted(Path(folder, "train", wnid).iterdir()):
                    packed.add(path, path.name)
        members = {
            "train": [(Path(folder) / f"{wnid}.tar", f"{wnid}.tar") for wnid in WNIDS],
            "val": [(path, path.name) for path in val],
            "devkit": [(devkit.parent, devkit.parent.name)],
        }
        checksums = {}
        for name, (file, _) in official.ARCHIVE_META.items():
            with tarfile.open(root / file, "w:gz" if file.endswith("gz") else "w") as packed:
                for path, inside in members[name]:
                    packed.add(path, inside)
            checksums[name] = file, hashlib.md5((root / file).read_bytes()).hexdigest()
    monkeypatch.setattr(official, "ARCHIVE_META", checksums)
    return splits


def cifar10(root: Path, monkeypatch, per_batch: int = 20) -> dict[str, Arrays]:
    """`root`/cifar-10-batches-py of five batches and a test batch; torchvision is told their checksums."""
    return _cifar(CIFAR10, "labels", 10, root, monkeypatch, per_batch)


def cifar100(root: Path, monkeypatch, per_batch: int = 200) -> dict[str, Arrays]:
    """`root`/cifar-100-python with one training batch and a test batch; torchvision is told their checksums."""
    return _cifar(CIFAR100, "fine_labels", 100, root, monkeypatch, per_batch)


def python2_pickle(value: Any) -> bytes:
    """`value` as the official files hold it, which cPickle of Python 2 wrote: strings are bytes, numpy's names old."""
    return b"\x80\x02" + _opcodes(value) + b"."


def _opcodes(value: Any) -> bytes:
    if isinstance(value, dict):
        return b"}(" + b"".join(_opcodes(key) + _opcodes(one) for key, one in value.items()) + b"u"
    if isinstance(value, list):
        return b"](" + b"".join(map(_opcodes, value)) + b"e"
    if isinstance(value, int):
        return b"J" + struct.pack("<i", value)
    if isinstance(value, str):
        return _opcodes(value.encode())
    if isinstance(value, bytes):
        return b"T" + struct.pack("<i", len(value)) + value
    empty = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\n"
    empty += _opcodes(0) + b"\x85" + _opcodes("b") + b"\x87R"
    shape = b"".join(map(_opcodes, value.shape)) + b"\x86"
    dtype = b"cnumpy\ndtype\n" + _opcodes(value.dtype.str[1:]) + _opcodes(0) + _opcodes(1) + b"\x87R"
    dtype += b"(" + _opcodes(3) + _opcodes("|") + b"NNN" + _opcodes(-1) + _opcodes(-1) + _opcodes(0) + b"tb"
    fortran = b"\x89" if value.flags.c_contiguous else b"\x88"
    return empty + b"(" + _opcodes(1) + shape + dtype + fortran + _opcodes(value.tobytes("A")) + b"tb"


def _cifar(
    dataset: type[CIFAR10], key: str, classes: int, root: Path, monkeypatch, per_batch: int
) -> dict[str, Arrays]:
    folder = root / dataset.base_folder
    folder.mkdir(parents=True)

    def write(name: str, content: dict) -> str:
        data = python2_pickle(content)
        (folder / name).write_bytes(data)
        return hashlib.md5(data).hexdigest()

    splits = {}
    for seed, split in enumerate(("train", "test"), start=4):
        names = [name for name, _ in getattr(dataset, f"{split}_list")]
        images = random_images(len(names) * per_batch, 32, seed)
        labels = np.arange(len(images)) % classes
        checksums = []
        for number, name in enumerate(names):
            rows = slice(number * per_batch, (number + 1) * per_batch)
            batch = {"data": images[rows].reshape(per_batch, -1), key: labels[rows].tolist()}
            checksums.append([name, write(name, batch)])
        monkeypatch.setattr(dataset, f"{split}_list", checksums)
        splits[split] = images, labels
    meta = dataset.meta
    md5 = write(meta["filename"], {meta["key"]: [f"class {number}" for number in range(classes)]})
    monkeypatch.setattr(dataset, "meta", {**meta, "md5": md5})
    return splits


def assert_holds(name: str, root: Path, splits: dict[str, Arrays], image_size: int | None = None) -> None:
    """Assert that a new process would read just these arrays."""
    sources.forget()
    for split, (images, labels) in splits.items():
        samples = sources.read(name, split, root, False, image_size)
        assert (samples.images.dtype, samples.labels.dtype) == (np.uint8, np.int64)
        np.testing.assert_array_equal(samples.images, images)
        np.testing.assert_array_equal(samples.labels, labels)
