"""Each source, pixel by pixel, and what is said when its files are missing or damaged."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from prune_env.data import digits, load, load_test
from prune_env.data.sources import SOURCES, read
from prune_env.io import DamagedFile
from tests.helpers import trees
from tests.helpers.trees import assert_holds
from train import evaluate


def test_digits_are_the_uci_ones():
    train, test = read("digits", "train", None, False, None), read("digits", "test", None, False, None)
    images, labels = np.concatenate([train.images, test.images]), np.concatenate([train.labels, test.labels])
    assert images.shape == (1797, 1, 8, 8)
    assert np.bincount(labels).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]  # UCI's own table
    assert images.sum(dtype=np.int64) == 15 * 561718
    first = [  # the 0 that opens optdigits.tes
        [0, 0, 5, 13, 9, 1, 0, 0],
        [0, 0, 13, 15, 10, 15, 5, 0],
        [0, 3, 15, 2, 0, 11, 8, 0],
        [0, 4, 12, 0, 0, 8, 8, 0],
        [0, 5, 8, 0, 0, 9, 8, 0],
        [0, 4, 11, 0, 1, 12, 7, 0],
        [0, 2, 14, 5, 10, 12, 0, 0],
        [0, 0, 6, 13, 10, 0, 0, 0],
    ]
    np.testing.assert_array_equal(images[0, 0], np.array(first) * 15)
    assert train.labels[:10].tolist() == list(range(10))
    assert test.labels[-5:].tolist() == [9, 0, 8, 9, 8]


@pytest.mark.parametrize("size", [1, 3, 4, 7])
def test_smaller_digits_are_means_over_what_lies_in_each_pixel(size):
    """In plain loops; each pixel covers those that it touches, so that 3 of 8 overlap by one."""
    whole, small = (read("digits", "test", None, False, side) for side in (None, size))
    assert (small.images.shape, small.images.dtype) == ((497, 1, size, size), np.uint8)
    for image, shrunk in zip(whole.images[:40, 0].astype(float), small.images[:40, 0], strict=True):
        for y, x in np.ndindex(size, size):
            rows = slice(8 * y // size, -(-8 * (y + 1) // size))
            columns = slice(8 * x // size, -(-8 * (x + 1) // size))
            assert abs(shrunk[y, x] - image[rows, columns].mean()) <= 0.5 + 1e-4


def test_damaged_digits_are_named_in_one_line(tmp_path, monkeypatch, capsys):
    path = Path(digits.__file__).with_name("digits.npz")
    changed = tmp_path / path.name
    changed.write_bytes(path.read_bytes()[:-1] + b"?")
    monkeypatch.setattr(digits, "resources", SimpleNamespace(files=lambda _: tmp_path))
    with pytest.raises(DamagedFile, match=f"^{changed} is damaged: .*install the package again"):
        load("digits")
    assert evaluate.main(["--agents", "full", "--out", str(tmp_path / "runs")]) == 2
    error = capsys.readouterr().err
    assert error.splitlines()[-1].startswith(f"error: {changed} is damaged")
    assert "Traceback" not in error


def test_cifar(tmp_path, monkeypatch):
    assert_holds("cifar10", tmp_path, trees.cifar10(tmp_path, monkeypatch))
    train, validation = load("cifar10", root=tmp_path)
    assert (len(train), len(validation), len(train.classes)) == (90, 10, 10)
    assert_holds("cifar100", tmp_path, trees.cifar100(tmp_path, monkeypatch))
    assert len(load("cifar100", root=tmp_path)[0].classes) == 100


# ---------------------------------------------------------------- Tiny-ImageNet


def test_tiny_imagenet(tmp_path):
    splits = trees.tiny_imagenet(tmp_path)
    assert_holds("tiny_imagenet", tmp_path, splits)
    assert_holds("tiny_imagenet", tmp_path / "tiny-imagenet-200", splits)
    assert load_test("tiny_imagenet", root=tmp_path).classes == ("n02", "n01", "n03")  # the order of wnids.txt
    small = read("tiny_imagenet", "train", tmp_path, False, 16)
    image = Image.fromarray(splits["train"][0][0].transpose(1, 2, 0)).resize((16, 16), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(small.images[0], np.asarray(image).transpose(2, 0, 1))


def sorted_val(folder: Path, below: str) -> None:
    for line in (folder / "val" / "val_annotations.txt").read_text().splitlines():
        name, wnid, *_ = line.split("\t")
        place = folder / "val" / wnid / below
        place.mkdir(parents=True, exist_ok=True)
        (folder / "val" / "images" / name).rename(place / name)


@pytest.mark.parametrize(("below", "left"), [("", True), ("images", False)])
def test_tiny_imagenet_in_folders_of_classes(tmp_path, below, left):
    splits = trees.tiny_imagenet(tmp_path, per_class=3)
    folder = tmp_path / "tiny-imagenet-200"
    for path in folder.glob("train/*/images/*"):  # train/<wnid>/images/*.JPEG becomes train/<wnid>/*.JPEG
        path.rename(path.parents[1] / path.name)
    sorted_val(folder, below)
    if not left:
        (folder / "val" / "images").rmdir()
        (folder / "val" / "val_annotations.txt").unlink()
    images, labels = splits["test"]
    order = np.argsort(labels, kind="stable")  # class by class, in the order of wnids.txt
    assert_holds("tiny_imagenet", tmp_path, {"train": splits["train"], "test": (images[order], labels[order])})


def test_tiny_imagenet_half_sorted_is_refused(tmp_path):
    trees.tiny_imagenet(tmp_path, per_class=3)
    folder = tmp_path / "tiny-imagenet-200"
    sorted_val(folder, "")
    image = trees.random_images(1, 64, 9)[0]
    trees.write_png(folder / "val" / "images" / "val_9.JPEG", image)
    with pytest.raises(ValueError, match=r"1 image\(s\) in .*val are in no folder of a class, the first is .*val_9"):
        load_test("tiny_imagenet", root=tmp_path)
    trees.write_png(folder / "val" / "n99" / "a.JPEG", image)
    with pytest.raises(ValueError, match=r"val holds classes that .*wnids.txt lacks: n99"):
        load_test("tiny_imagenet", root=tmp_path)


def test_byte_order_marks_and_other_line_ends_in_lists(tmp_path):
    splits = trees.tiny_imagenet(tmp_path, per_class=3)
    folder = tmp_path / "tiny-imagenet-200"
    for path in (folder / "wnids.txt", folder / "val" / "val_annotations.txt"):
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    assert_holds("tiny_imagenet", tmp_path, splits)


def test_tiny_imagenet_errors(tmp_path):
    trees.tiny_imagenet(tmp_path, per_class=3)
    folder = tmp_path / "tiny-imagenet-200"
    annotations = folder / "val" / "val_annotations.txt"
    good = annotations.read_text()
    for content, words in {
        good + "val_0.JPEG\tn99\t0\t0\t1\t1\n": r"val_annotations.txt, line 10: class 'n99' is not in wnids.txt",
        "val_99.JPEG\tn01\t0\t0\t1\t1\n": r"line 1: .*val_99.JPEG does not exist",
        "nonsense\n": "line 1: class ''",
        "".join(good.splitlines(keepends=True)[:6]): r"names no class of 3 image\(s\) .*val_6.JPEG",  # truncated
    }.items():
        annotations.write_text(content)
        with pytest.raises((ValueError, FileNotFoundError), match=words):
            load_test("tiny_imagenet", root=tmp_path)
    shutil.rmtree(folder / "train" / "n02" / "images")
    with pytest.raises(ValueError, match=r"no images in .*train/n02: remove"):
        load("tiny_imagenet", root=tmp_path)
    (folder / "wnids.txt").write_text("n02\nn02\n")
    with pytest.raises(ValueError, match="must name each class once"):
        load("tiny_imagenet", root=tmp_path)


@pytest.mark.parametrize("damage", ["train/n01", "val/val_annotations.txt", "val/images/val_0.JPEG"])
def test_download_of_a_damaged_folder_does_not_advise_to_download(tmp_path, damage):
    trees.tiny_imagenet(tmp_path, per_class=3)
    path = tmp_path / "tiny-imagenet-200" / damage
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises((ValueError, OSError), match=path.name) as caught:
        (load if "train" in damage else load_test)("tiny_imagenet", root=tmp_path, download=True)
    assert "download=True" not in str(caught.value)


def test_a_folder_without_its_list_of_classes_does_not_advise_to_download(tmp_path):
    (tmp_path / "tiny-imagenet-200" / "train").mkdir(parents=True)
    for root in (tmp_path, tmp_path / "tiny-imagenet-200"):
        with pytest.raises(FileNotFoundError, match=r"tiny-imagenet-200 is incomplete, it has no wnids.txt: remove"):
            load("tiny_imagenet", root=root)
    with pytest.raises(FileNotFoundError, match="download=True") as caught:  # another data set is not to be removed
        load("tiny_imagenet", root=tmp_path / "tiny-imagenet-200" / "train")
    assert "remove" not in str(caught.value)


# ---------------------------------------------------------------- errors of all


def test_unknown_name_lists_the_names():
    with pytest.raises(ValueError, match="'mnist': choose one of digits, cifar10, cifar100, tiny_imagenet, imagefold"):
        load("mnist")


@pytest.mark.parametrize("name", [name for name in SOURCES if name != "digits"])
def test_a_missing_data_set_says_what_where_and_how(tmp_path, monkeypatch, name):
    monkeypatch.setenv("PRUNE_ENV_DATA", str(tmp_path / "by variable"))
    for root, where in ((None, tmp_path / "by variable"), (tmp_path / "by argument", tmp_path / "by argument")):
        for read_split in (load, load_test):
            with pytest.raises(FileNotFoundError) as caught:
                read_split(name, root=root)
            message = str(caught.value)
            for part in (repr(name), str(where), "root=", "PRUNE_ENV_DATA", "Expected below root"):
                assert part in message
            assert ("pass download=True" in message) == (name not in ("imagefolder", "imagenet"))


@pytest.mark.parametrize(("name", "size"), [("digits", 0), ("cifar10", 64), ("imagefolder", 8.5)])
def test_image_sizes_that_cannot_be(name, size):
    with pytest.raises(ValueError, match=f"image_size(={size} for '{name}'| is {size})"):
        load(name, image_size=size)
