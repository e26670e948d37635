"""Folders of images that people have: layouts, names, litter, folders that are no classes, and exact copies."""

import logging
import os
import shutil
import unicodedata
from pathlib import Path

import numpy as np
import pytest

from prune_env.data import copies, load, load_test, sources
from prune_env.data.sources import read
from tests.helpers import trees
from tests.helpers.trees import assert_holds
from train import evaluate, report

NOISE = trees.random_images(1, 32, 9)[0]


def again(*args):
    sources.forget()
    return read(*args)


# ---------------------------------------------------------------- files and links


def test_classes_are_sorted_and_the_test_split_comes_before_val(tmp_path):
    splits = trees.imagefolder(tmp_path, ("b", "a", "c"), per_class=3)
    trees.write_png(tmp_path / "val" / "a" / "a.png", NOISE)
    order = np.r_[3:6, 0:3, 6:9]
    expected = {split: (images[order], np.repeat([0, 1, 2], 3)) for split, (images, _) in splits.items()}
    assert_holds("imagefolder", tmp_path, expected)
    assert read("imagefolder", "train", tmp_path, False, None).classes == ("a", "b", "c")


def test_nested_files_and_links_are_followed_each_once(tmp_path):
    splits = trees.imagefolder(tmp_path, per_class=3)
    for number, target in enumerate((".", "..", "../..")):
        (tmp_path / "train" / "cat" / f"loop{number}").symlink_to(target)
    (tmp_path / "train" / "cat" / "notes.txt").write_text("no image")
    (tmp_path / "train" / "list.csv").write_text("no class")
    assert_holds("imagefolder", tmp_path, splits)
    trees.write_png(tmp_path / "elsewhere" / "deep" / "a.PNG", NOISE)
    (tmp_path / "elsewhere" / "back").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "train" / "dog" / "z").symlink_to(tmp_path / "elsewhere")
    found, labels = splits["train"]
    expected = np.concatenate([found, NOISE[None]]), np.append(labels, 1)
    assert_holds("imagefolder", tmp_path, {"train": expected, "test": splits["test"]})


@pytest.mark.parametrize("place", ["train/zebra", "train/dog/more", "train/dog/x.jpg", "test/dog/more"])
def test_a_link_that_leads_nowhere_is_named(tmp_path, place):
    """It may stand for a whole class on a disk that is not there."""
    trees.imagefolder(tmp_path, per_class=3)
    (tmp_path / place).symlink_to(tmp_path / "unmounted")
    with pytest.raises(FileNotFoundError, match=str(tmp_path / place)):
        (load_test if place.startswith("test") else load)("imagefolder", root=tmp_path)


@pytest.mark.parametrize("name", ["a.gif", "a.jfif", "deep/a.JPE", "a.HEIC", "a.png.part", "deep/A.JPG.crdownload"])
def test_images_that_are_not_read_are_named(tmp_path, name):
    splits = trees.imagefolder(tmp_path, per_class=3)
    folder = tmp_path / "train" / "dog"
    (folder / "deep").mkdir()
    for other in ("notes.txt", "boxes", "a.json", "a.h5", "a.pdf", ".a.gif", "a.gif.txt", "a.part"):
        (folder / other).write_text("no image, or hidden")
    assert_holds("imagefolder", tmp_path, splits)
    (folder / name).write_bytes(b"")
    words = rf"^1 image\(s\) in {folder} end in none of \.jpg, .*\.webp, the first is {folder / name}: convert"
    with pytest.raises(ValueError, match=words):
        again("imagefolder", "train", tmp_path, False, None)


@pytest.mark.parametrize("name", ["a.png", "A.JPG", "a.gif", "a.png.part"])
def test_images_beside_the_folders_of_classes_are_named(tmp_path, name):
    trees.imagefolder(tmp_path, per_class=3)
    for split, read_split in (("train", load), ("test", load_test)):
        (tmp_path / split / name).write_bytes(b"lost")
        words = rf"^1 image\(s\) in {tmp_path / split} lie in no folder of a class, the first is .*{split}/{name}:"
        with pytest.raises(ValueError, match=words):
            read_split("imagefolder", root=tmp_path)
        (tmp_path / split / name).unlink()


def test_test_classes_may_be_fewer_but_not_others(tmp_path):
    splits = trees.imagefolder(tmp_path, ("a", "b"))
    shutil.rmtree(tmp_path / "test" / "a")
    test = load_test("imagefolder", root=tmp_path)
    assert test.classes == ("a", "b")
    assert set(test.labels.tolist()) == {1}
    np.testing.assert_array_equal(test.images, splits["test"][0][10:])
    trees.write_png(tmp_path / "test" / "zebra" / "a.png", NOISE)
    with pytest.raises(ValueError, match="train lacks: zebra"):
        load_test("imagefolder", root=tmp_path)


# ---------------------------------------------------------------- litter and names


@pytest.mark.parametrize(
    "litter",
    ["@eaDir", "__MACOSX", ".AppleDouble", ".ipynb_checkpoints", "#recycle", "$RECYCLE.BIN", "lost+found", "@__thumb"],
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
