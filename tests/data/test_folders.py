"""Folders that people have: odd images, odd names, litter, and layouts that scripts leave."""

import logging
import os
import shutil
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from torchvision.transforms.v2 import functional

from prune_env.data import copies, load, load_test, sources
from prune_env.data.decode import square
from prune_env.data.sources import read
from tests.helpers import trees
from tests.helpers.trees import assert_holds
from train import evaluate, report

NOISE = trees.random_images(1, 32, 9)[0]


def again(*args):
    sources.forget()
    return read(*args)


# ---------------------------------------------------------------- images


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "RGB", "L"])
def test_a_drawing_on_a_transparent_ground_is_seen_on_white(tmp_path, mode):
    """All pixels are black; only transparency draws. A half transparent one is grey."""
    image = Image.new("RGBA", (4, 4), (0, 0, 0, 0))
    image.putpixel((1, 2), (0, 0, 0, 255))
    expected = np.full((4, 4), 255)
    expected[2, 1] = 0
    options: dict[str, Any] = {}
    if mode in ("RGBA", "LA"):
        image.putpixel((3, 3), (0, 0, 0, 128))
        expected[3, 3] = 127
        image = image.convert(mode)
    elif mode == "P":
        alpha = image.getchannel("A")
        image = Image.new("P", (4, 4), 0)
        image.putpalette([0, 0, 0, 0, 0, 0])
        image.paste(1, mask=alpha)
        options = {"transparency": 0}
    else:  # one colour stands for nothing
        ground, drawing = {"RGB": ((9, 9, 9), (0, 0, 0)), "L": (9, 0)}[mode]
        image = Image.new(mode, (4, 4), ground)
        image.putpixel((1, 2), drawing)
        options = {"transparency": ground}
    image.save(tmp_path / "a.png", **options)
    np.testing.assert_array_equal(square(tmp_path / "a.png", 4), np.stack([expected] * 3))


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
@pytest.mark.parametrize("orientation", range(1, 10))
def test_images_are_turned_upright(tmp_path, suffix, orientation):
    """The four corners, told apart by their brightness, come where the standard says that they belong."""
    stored = np.kron([[40, 90], [140, 220]], np.ones((16, 16))).astype(np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(stored).convert("RGB").save(path, exif=exif, lossless=True)  # JPEG has no such option
    corners = square(path, 32)[0, [4, 4, 28, 28], [4, 28, 4, 28]].reshape(2, 2).astype(int)
    of_stored = np.array([[40, 90], [140, 220]])
    upright = {  # EXIF 2.32, table 6: where row 0 and column 0 of what is stored are as people see it
        2: of_stored[:, ::-1],
        3: of_stored[::-1, ::-1],
        4: of_stored[::-1],
        5: of_stored.T,
        6: np.rot90(of_stored, -1),
        7: of_stored[::-1, ::-1].T,
        8: np.rot90(of_stored),
    }.get(orientation, of_stored)
    np.testing.assert_allclose(corners, upright, atol=3)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_a_broken_orientation_tag_costs_nothing(tmp_path):
    Image.fromarray(NOISE.transpose(1, 2, 0)).save(tmp_path / "a.jpg", exif=b"Exif\0\0MM\0*\0\0\0\xff\1\2")
    assert square(tmp_path / "a.jpg", 32).shape == (3, 32, 32)


@pytest.mark.parametrize(("width", "height"), [(64, 48), (30, 119), (31, 7), (5, 200), (300, 2), (900, 1), (1, 900)])
def test_the_centre_is_what_torchvision_cuts_out(tmp_path, width, height):
    """Extreme shapes, of which less is computed, may differ by rounding."""
    image: Any = Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8))
    image.save(tmp_path / "a.png")
    expected = functional.center_crop(functional.resize(image, [24]), [24])
    found = square(tmp_path / "a.png", 24).transpose(1, 2, 0).astype(int)
    extreme = max(width, height) > 4 * min(width, height)
    np.testing.assert_allclose(found, np.asarray(expected), atol=1 if extreme else 0)


def test_a_thin_image_is_never_larger_than_the_result(tmp_path, monkeypatch):
    trees.write_png(tmp_path / "thin.png", np.zeros((3, 1, 8000), np.uint8))
    sizes, resize = [], Image.Image.resize

    def watched(image, size, *args, **more):
        sizes.append(size)
        return resize(image, size, *args, **more)

    monkeypatch.setattr(Image.Image, "resize", watched)
    assert square(tmp_path / "thin.png", 224).shape == (3, 224, 224)
    assert sizes == [(224, 224)]


# ---------------------------------------------------------------- litter and names


@pytest.mark.parametrize(
    "litter",
    ["@eaDir", "__MACOSX", ".AppleDouble", ".ipynb_checkpoints", "#recycle", "$RECYCLE.BIN", "lost+found"],
)
def test_litter_is_left_out_wherever_it_lies(tmp_path, litter):
    splits = trees.imagefolder(tmp_path, per_class=3)
    for place in ("", "train", "train/cat", "train/dog/deep", "test", "test/cat"):
        trees.write_png(tmp_path / place / litter / "a.png" / "SYNOPHOTO_THUMB_M.jpg", NOISE)
    for name in ("Thumbs.db", "desktop.ini", "._a.png", ".DS_Store"):
        (tmp_path / "train" / "cat" / name).write_bytes(b"no image")
        (tmp_path / "train" / name).write_bytes(b"no image")
    assert_holds("imagefolder", tmp_path, splits)


def test_class_names_are_compared_after_unicode_normalisation(tmp_path):
    composed, decomposed = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))
    splits = trees.imagefolder(tmp_path, ("bar", composed), per_class=4)
    (tmp_path / "test" / composed).rename(tmp_path / "test" / decomposed)
    assert_holds("imagefolder", tmp_path, splits)
    (tmp_path / "train" / decomposed).mkdir()  # a copy by another system has both in one folder
    last = tmp_path / "train" / composed / "00007.png"
    last.rename(tmp_path / "train" / decomposed / last.name)
    assert again("imagefolder", "train", tmp_path, False, None).classes == ("bar", composed)
    assert np.bincount(again("imagefolder", "train", tmp_path, False, None).labels).tolist() == [4, 4]


def not_utf8(root: Path) -> Path:
    """Images of a class whose name, and that of a file and of the root, are not UTF-8."""
    root = Path(os.fsdecode(os.fsencode(root) + b"/im\xe1genes"))
    trees.imagefolder(root, ("chien", "hut"), per_class=8, size=8)
    for split in ("train", "test"):
        folder = Path(os.fsdecode(os.fsencode(root / split) + b"/b\xeat\xe9"))
        (root / split / "hut").rename(folder)
        Path(folder / "00008.png").rename(os.fsdecode(os.fsencode(folder) + b"/\xe9.png"))
    return root


def test_class_names_that_are_not_utf8_can_be_printed(tmp_path):
    train, _ = load("imagefolder", root=not_utf8(tmp_path))
    assert train.classes == ("b\\xeat\\xe9", "chien")
    for name in train.classes:
        name.encode()


@pytest.mark.slow
def test_names_that_are_not_utf8_work_through_to_the_report(tmp_path, capsys):
    root, out = not_utf8(tmp_path), tmp_path / "runs"
    arguments = ["--env", "prune_env/ImageFolder-v0", "--root", str(root), "--agents", "random", "--seeds", "2"]
    more = ["--budget", "2", "--image-size", "8", "--model", "mlp:4", "--batch-size", "4", "--out", str(out)]
    assert evaluate.main([*arguments, *more]) == 0
    (folder,) = (path.parent for path in out.rglob("results.jsonl"))
    assert report.main([str(folder), "--root", str(root)]) == 0
    capsys.readouterr()[0].encode()
    assert (folder / "report.html").read_text(encoding="utf-8")


# ---------------------------------------------------------------- layouts


@pytest.mark.parametrize(
    ("train", "test"),
    [("train", "valid"), ("train", "validation"), ("Train", "Test"), ("TRAINING", "val"), ("Training", "Testing")],
)
def test_splits_are_found_by_their_usual_names(tmp_path, train, test):
    splits = trees.imagefolder(tmp_path, per_class=3)
    (tmp_path / "train").rename(tmp_path / train)
    (tmp_path / "test").rename(tmp_path / test)
    assert_holds("imagefolder", tmp_path, splits)


def test_the_splits_are_found_in_the_folder_of_an_archive(tmp_path):
    splits = trees.imagefolder(tmp_path / "pets-v2", per_class=3)
    (tmp_path / "__MACOSX").mkdir()
    assert_holds("imagefolder", tmp_path, splits)


@pytest.mark.parametrize("images", ["a.png", "unknown/a.png", "images/deep/a.png", None])
@pytest.mark.parametrize("empty", [(), ("cat", "dog")])
def test_a_test_folder_without_labelled_images_gives_way_to_one_that_has_them(tmp_path, images, empty):
    splits = trees.imagefolder(tmp_path, test="val")
    (tmp_path / "test").mkdir()
    for name in empty:
        (tmp_path / "test" / name).mkdir()
    if images:
        trees.write_png(tmp_path / "test" / images, NOISE)
    assert_holds("imagefolder", tmp_path, splits)


def test_folders_without_images_are_left_out_and_named_in_one_line(tmp_path, caplog):
    splits = trees.imagefolder(tmp_path, per_class=10)
    for folder in ("train/logs/deep", "train/checkpoints", "test/logs"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "train" / "logs" / "events.txt").write_text("no image")
    line = "folders without images are no classes and are left out"
    assert_holds("imagefolder", tmp_path, splits)
    assert caplog.messages == [f"{tmp_path / 'train'}: {line}: checkpoints, logs", f"{tmp_path / 'test'}: {line}: logs"]
    (tmp_path / "train").rename(tmp_path / "alone")
    assert load("imagefolder", root=tmp_path / "alone")[0].classes == ("cat", "dog")
    assert caplog.messages[2] == f"{tmp_path / 'alone'}: {line}: checkpoints, logs"


def test_an_empty_folder_of_a_class_that_the_other_split_has_is_an_error(tmp_path):
    trees.imagefolder(tmp_path, ("a", "b", "c"))
    for split, other, read_split in (("test", "train", load_test), ("train", "test", load)):
        for path in (tmp_path / split / "c").iterdir():
            path.rename(tmp_path / path.name)
        with pytest.raises(ValueError, match=rf"no images in {tmp_path}/{split}/c: .*, as {tmp_path}/{other} has"):
            read_split("imagefolder", root=tmp_path)
        for path in tmp_path.glob("*.png"):
            path.rename(tmp_path / split / "c" / path.name)


@pytest.mark.parametrize("folders", [(), ("cat", "dog")])
def test_a_tree_without_images_in_folders_of_classes_says_what_is_expected(tmp_path, folders):
    for folder in folders:
        (tmp_path / "train" / folder).mkdir(parents=True)
    trees.write_png(tmp_path / "train" / "a.png", NOISE)
    for read_split in (load, load_test):
        with pytest.raises(ValueError, match="train holds no class folders with images; expected below root: train/<"):
            read_split("imagefolder", root=tmp_path)


def test_training_images_without_a_test_split_say_how_to_get_one(tmp_path):
    trees.imagefolder(tmp_path, test="elsewhere")
    with pytest.raises(FileNotFoundError, match=rf"no test split: .*or pass root={tmp_path}/train") as caught:
        load_test("imagefolder", root=tmp_path)
    assert "not found" not in str(caught.value)
    assert len(load_test("imagefolder", root=tmp_path / "train")) == 4


@pytest.mark.parametrize("counts", [(9, 1), (1, 1), (2, 9, 1)])
def test_a_class_too_small_for_the_automatic_split_is_named(tmp_path, counts):
    few = [f"class{number} has {count}" for number, count in enumerate(counts) if count < 3]
    for number, count in enumerate(counts):
        for image in range(count):
            trees.write_png(tmp_path / f"class{number}" / f"{image}.png", NOISE)
    words = rf"{tmp_path} has no train and test folders, .* at least 3 images a class: {', '.join(few)}\. Add images"
    for read_split in (load, load_test):
        with pytest.raises(ValueError, match=words):
            read_split("imagefolder", root=tmp_path)


def test_a_folder_of_classes_is_split_by_a_fixed_seed_and_says_so(tmp_path, caplog):
    trees.imagefolder(tmp_path / "with splits", ("a", "b"), per_class=20, size=8)
    root = tmp_path / "with splits" / "train"
    train, validation = load("imagefolder", root=root, image_size=8)
    test = load_test("imagefolder", root=root, image_size=8)
    assert (len(train) + len(validation), len(test)) == (32, 8)
    assert np.bincount(test.labels).tolist() == [4, 4]
    images = [part.images.numpy().reshape(len(part), -1) for part in (train, validation, test)]
    assert len(np.unique(np.concatenate(images), axis=0)) == 40  # each image once
    (line,) = caplog.messages
    assert line == f"{root} has no train and test folders: a fixed 20% of each class, 8 of 40 images, is the test split"
    sources.forget()
    assert load_test("imagefolder", root=root, image_size=8).digest == test.digest


# ---------------------------------------------------------------- copies


def test_copies_across_splits_and_classes_are_told_in_one_line(tmp_path, caplog):
    trees.imagefolder(tmp_path, per_class=10)
    train, test = tmp_path / "train", tmp_path / "test"
    for name in ("00000.png", "00001.png"):
        shutil.copy(train / "cat" / name, test / "cat" / f"copy of {name}")
    shutil.copy(train / "cat" / "00002.png", test / "dog" / "renamed.jpg")
    shutil.copy(train / "cat" / "00003.png", train / "dog" / "also a cat.png")
    shutil.copy(train / "cat" / "00004.png", train / "cat" / "twice in its class.png")
    line = (
        f"{tmp_path}: 3 of 23 test images are exact copies of training images and 1 image(s) are in more than one class"
    )
    load("imagefolder", root=tmp_path)
    load_test("imagefolder", root=tmp_path)
    assert caplog.messages == [line]
    assert caplog.records[0].levelno == logging.WARNING  # which Python shows without any configuration


def test_copies_are_counted_as_a_slow_plain_count_does(tmp_path):
    """Files of few sizes, many alike, some in their last bytes only."""
    rng = np.random.default_rng(0)
    paths, contents = [], []
    for number in range(60):
        first, last, length = (int(rng.integers(*bounds)) for bounds in ((0, 3), (0, 2), (1, 4)))
        contents.append(bytes([first]) + bytes(5000) + bytes([last]) * length)
        paths.append(tmp_path / str(number))
        paths[-1].write_bytes(contents[-1])
    labels = rng.integers(0, 3, 60)
    train, test = (sources.Listing(paths[part], labels[part], ("a", "b", "c")) for part in (slice(9), slice(9, 60)))
    leaked = sum(one in contents[:9] for one in contents[9:])
    ambiguous = sum(
        len({label for other, label in zip(contents[part], labels[part], strict=True) if other == one}) > 1
        for part in (slice(9), slice(9, 60))
        for one in set(contents[part])
    )
    assert copies.count(train, test) == (leaked, ambiguous)
    assert 0 < leaked < 51
    assert ambiguous > 0


# ---------------------------------------------------------------- Tiny-ImageNet as scripts leave it


def flattened(folder: Path) -> None:
    """train/<wnid>/images/*.JPEG becomes train/<wnid>/*.JPEG."""
    for images in folder.glob("train/*/images"):
        for path in images.iterdir():
            path.rename(images.parent / path.name)
        images.rmdir()


def sorted_val(folder: Path, below: str) -> None:
    for line in (folder / "val" / "val_annotations.txt").read_text().splitlines():
        name, wnid, *_ = line.split("\t")
        place = folder / "val" / wnid / below
        place.mkdir(parents=True, exist_ok=True)
        (folder / "val" / "images" / name).rename(place / name)


@pytest.mark.parametrize("below", ["", "images"])
@pytest.mark.parametrize("left", ["all", "nothing"])
def test_tiny_imagenet_in_folders_of_classes(tmp_path, below, left):
    splits = trees.tiny_imagenet(tmp_path, per_class=3)
    folder = tmp_path / "tiny-imagenet-200"
    flattened(folder)
    sorted_val(folder, below)
    if left == "nothing":
        (folder / "val" / "images").rmdir()
        (folder / "val" / "val_annotations.txt").unlink()
    images, labels = splits["test"]
    order = np.argsort(labels, kind="stable")  # class by class, in the order of wnids.txt
    assert_holds("tiny_imagenet", tmp_path, {"train": splits["train"], "test": (images[order], labels[order])})


def test_tiny_imagenet_half_sorted_is_refused(tmp_path):
    trees.tiny_imagenet(tmp_path, per_class=3)
    folder = tmp_path / "tiny-imagenet-200"
    sorted_val(folder, "")
    trees.write_png(folder / "val" / "images" / "val_9.JPEG", NOISE)
    with pytest.raises(ValueError, match=r"1 image\(s\) in .*val are in no folder of a class, the first is .*val_9"):
        load_test("tiny_imagenet", root=tmp_path)
    (folder / "val" / "images" / "val_9.JPEG").unlink()
    trees.write_png(folder / "val" / "n99" / "a.JPEG", NOISE)
    with pytest.raises(ValueError, match=r"val holds classes that .*wnids.txt lacks: n99"):
        load_test("tiny_imagenet", root=tmp_path)


def test_byte_order_marks_and_other_line_ends_in_lists(tmp_path):
    splits = trees.tiny_imagenet(tmp_path, per_class=3)
    folder = tmp_path / "tiny-imagenet-200"
    boxes = folder / "train" / "n02" / "n02_boxes.txt"
    boxes.write_text("n02_00000.JPEG\t0\t0\t62\t62\n")
    for path in (folder / "wnids.txt", folder / "val" / "val_annotations.txt", boxes):
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    assert_holds("tiny_imagenet", tmp_path, splits)


@pytest.mark.parametrize("damage", ["train/n01", "val/val_annotations.txt", "val/images/val_0.JPEG"])
def test_download_of_a_damaged_folder_does_not_advise_to_download(tmp_path, damage):
    trees.tiny_imagenet(tmp_path, per_class=3)
    path = tmp_path / "tiny-imagenet-200" / damage
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises((ValueError, OSError)) as caught:
        (load if "train" in damage else load_test)("tiny_imagenet", root=tmp_path, download=True)
    assert "download=True" not in str(caught.value)
    assert path.name in str(caught.value)


@pytest.mark.parametrize("where", ["", "tiny-imagenet-200"])
def test_a_folder_without_its_list_of_classes_does_not_advise_to_download(tmp_path, where):
    trees.tiny_imagenet(tmp_path, per_class=3)
    (tmp_path / "tiny-imagenet-200" / "wnids.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"tiny-imagenet-200 is incomplete, it has no wnids.txt: remove"):
        load("tiny_imagenet", root=tmp_path / where)


def test_folders_of_another_data_set_are_not_told_to_be_removed(tmp_path):
    (tmp_path / "train" / "cat").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match="download=True") as caught:
        load("tiny_imagenet", root=tmp_path)
    assert "remove" not in str(caught.value)
