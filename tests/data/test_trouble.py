"""Labels and images that are spoiled on purpose: how much, how, by which seed, and never in validation or test."""

import csv
import re
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import torch

from prune_env.data import Data, Variant, load, load_test, sources
from prune_env.data.columns import as_classes
from prune_env.data.confusion import confusion
from prune_env.data.corruption import GREY, KINDS, NOISE, spoiled
from prune_env.data.task import with_label_noise
from tests.helpers import trees


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def same(one: Data, other: Data) -> bool:
    return all(torch.equal(getattr(one, name), getattr(other, name)) for name in ("images", "labels", "wrong"))


# ---------------------------------------------------------------- label noise


def test_a_pair_is_the_next_class_and_the_first_after_the_last():
    labels = np.array([0, 1, 2, 2])
    assert with_label_noise(labels, 3, 1.0, rng(), "pair").tolist() == [1, 2, 0, 0]
    noisy = with_label_noise(np.repeat([0, 1, 2], 10), 3, 0.3, rng(), "pair")
    moved = noisy != np.repeat([0, 1, 2], 10)
    assert moved.sum() == 9
    assert (noisy[moved] == (np.repeat([0, 1, 2], 10)[moved] + 1) % 3).all()


def test_confused_labels_are_drawn_from_the_row_of_their_class():
    table = np.array([[0, 0.75, 0.25], [1, 0, 0], [0, 1, 0]])
    for label, expected in enumerate(8000 * table):
        counts = np.bincount(with_label_noise(np.full(8000, label), 3, 1.0, rng(), "confused", table), minlength=3)
        np.testing.assert_allclose(counts, expected, atol=160)  # four standard deviations
        assert (counts[table[label] == 0] == 0).all()


def test_the_confusion_of_single_pixels_is_that_of_gaussians_written_out():
    """Classes 1 and 2 are nearly as bright; the variance is the pooled one, with a thousandth for the ridge."""
    labels = np.repeat([0, 1, 2, 3], 40)
    pixels = np.rint(rng().normal(np.array([20, 100, 115, 220])[labels], 12)).clip(0, 255).astype(np.uint8)
    means = [pixels[labels == c].mean() for c in range(4)]
    variance = 1.001 * np.mean([(float(x) - means[c]) ** 2 for x, c in zip(pixels, labels, strict=True)])
    expected = np.zeros((4, 4))
    for x, c in zip(pixels.tolist(), labels.tolist(), strict=True):
        p = [0.0 if k == c else np.exp(-((x - means[k]) ** 2) / 2 / variance) for k in range(4)]
        expected[c] += np.array(p) / sum(p) / 40
    found = confusion(pixels[:, None, None, None], labels, np.arange(160), 4)
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-12)
    assert found[1, 2] > 0.99 < found[2, 1]
    some = np.flatnonzero(labels != 3)  # rows that are not given play no part
    np.testing.assert_allclose(confusion(pixels[:, None, None, None], labels, some, 3).sum(1), 1)


@pytest.mark.parametrize("kind", ["uniform", "pair", "confused"])
def test_each_kind_replaces_the_share_and_leaves_validation(kind):
    clean, validation = load("digits", train_size=300)
    noisy, same_validation = load("digits", train_size=300, label_noise=0.3, label_noise_kind=kind)
    assert noisy.wrong.sum() == 90
    assert torch.equal(noisy.labels != clean.labels, noisy.wrong)
    assert same(validation, same_validation)
    assert same(noisy, load("digits", train_size=300, label_noise=0.3, label_noise_kind=kind)[0])
    other, _ = load("digits", train_size=300, label_noise=0.3, label_noise_kind=kind, task_seed=1)
    assert not torch.equal(other.wrong, noisy.wrong)


# ---------------------------------------------------------------- labels of one's own


def write(path: Path, *lines: tuple) -> str:
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows(lines)
    return str(path)


def test_empty_lines_are_no_lines(tmp_path):
    lines = [(row, row % 10) for row in range(1300)]
    plain, _ = load("digits", labels=write(tmp_path / "own.csv", ("index", "label"), *lines))
    spaced, _ = load("digits", labels=write(tmp_path / "spaced.csv", ("index", "label"), (), *lines, (), ()))
    assert torch.equal(plain.labels, spaced.labels)


def test_labels_of_all_images_in_the_official_order(tmp_path):
    own = np.arange(1300) % 10
    np.save(tmp_path / "own.npy", own)
    clean, validation = load("digits", train_size=200, duplicates=0.2)
    train, same_validation = load("digits", train_size=200, duplicates=0.2, labels=str(tmp_path / "own.npy"))
    np.testing.assert_array_equal(train.labels, own[train.source])
    assert torch.equal(train.wrong, train.labels != clean.labels)
    assert torch.equal(train.images, clean.images)
    assert same(validation, same_validation)
    more, _ = load("digits", train_size=200, duplicates=0.2, labels=str(tmp_path / "own.npy"), label_noise=1.0)
    assert (more.labels != train.labels).all()  # noise comes on top
    assert torch.equal(more.wrong, more.labels != clean.labels)


def test_labels_by_number_name_the_column_and_may_be_names_or_numbers(tmp_path):
    clean, _ = load("digits", train_size=50)
    rows = clean.source.tolist()
    lines = [(row, (row + 1) % 10, "abc"[row % 3]) for row in reversed(rows)]
    unused = next(row for row in range(1300) if row not in rows)
    file = write(tmp_path / "own.csv", ("index", "worse", "note"), *lines, (unused, 3, "of an image that is not used"))
    train, _ = load("digits", train_size=50, labels=f"{file}:worse")
    assert train.labels.tolist() == [(row + 1) % 10 for row in rows]
    with pytest.raises(ValueError, match=r"has the columns worse, note; name one of them, as in .*own.csv:worse"):
        load("digits", train_size=50, labels=file)
    with pytest.raises(ValueError, match=r"'[abc]' is no class; there are 0, .*4, \.\.\., or the numbers 0 to 9"):
        load("digits", train_size=50, labels=f"{file}:note")


def test_labels_by_file_name_with_as_many_folders_as_tell_images_apart(tmp_path, monkeypatch):
    monkeypatch.setenv("PRUNE_ENV_CACHE", str(tmp_path / "cache"))
    root = tmp_path / "tree"
    trees.imagefolder(root, ("a", "b", "c"), per_class=6, size=8)
    files = sorted((root / "train").glob("*/*"))
    clean, _ = load("imagefolder", root=root, image_size=8)
    true = [files[row].parent.name for row in clean.source.tolist()]
    own = {"a": "b", "b": "b", "c": "a"}
    lines = [(path.relative_to(root / "train").as_posix(), own[path.parent.name]) for path in files]
    for keyed in (lines, [(str(path), own[path.parent.name]) for path in files]):
        file = write(tmp_path / "own.csv", ("file", "label"), *keyed)
        train, _ = load("imagefolder", root=root, image_size=8, labels=file)
        assert [train.classes[label] for label in train.labels] == [own[name] for name in true]
        assert train.wrong.tolist() == [name != "b" for name in true]
    trees.write_png(root / "train" / "b" / files[0].name, trees.random_images(1, 8, seed=9)[0])
    sources.forget()
    short = write(tmp_path / "short.csv", ("file", "label"), (files[0].name, "a"))
    with pytest.raises(ValueError, match=f"'{files[0].name}' are several images; write folders too, as in b/"):
        load("imagefolder", root=root, image_size=8, labels=short)
    twice = write(tmp_path / "twice.csv", ("file", "label"), ("train/a/" + files[0].name, "a"), lines[0])
    with pytest.raises(ValueError, match=f"'a/{files[0].name}' and 'train/a/{files[0].name}' are the same image"):
        load("imagefolder", root=root, image_size=8, labels=twice)
    with pytest.raises(ValueError, match=r"has no line for 1\d of 17 training images, such as .*/train/a/"):
        load("imagefolder", root=root, image_size=8, labels=write(tmp_path / "few.csv", ("file", "label"), *lines[-3:]))


@pytest.mark.parametrize("of_folders", ["NFC", "NFD"])
@pytest.mark.parametrize("of_file", ["NFC", "NFD"])
def test_accents_are_the_same_however_a_system_writes_them(of_folders, of_file, tmp_path, monkeypatch):
    monkeypatch.setenv("PRUNE_ENV_CACHE", str(tmp_path / "cache"))
    root = tmp_path / "tree"
    names = tuple(unicodedata.normalize(of_folders, name) for name in ("café", "thé"))
    trees.imagefolder(root, names, per_class=6, size=8)
    key, label = (unicodedata.normalize(of_file, text) for text in ("café/", "thé"))
    lines = [(f"{key}{path.name}", label) for path in (root / "train" / names[0]).iterdir()]
    lines += [(str(path), label) for path in (root / "train" / names[1]).iterdir()]
    file = write(tmp_path / "own.csv", ("file", "label"), *lines)
    train, _ = load("imagefolder", root=root, image_size=8, labels=file)
    assert train.classes == ("café", "thé")
    assert set(train.labels.tolist()) == {1}


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ([("index;label",), ("0;1",)], "has no commas between its columns: 'index;label'; export it with commas"),
        ([("index", "label"), (0, 1), (0, 2)], "has the key 0 twice"),
        ([("index", "label"), (7, 1), ("07", 2)], "has the key 7 twice"),
        ([("index", "label"), (0, 1), (1300, 2)], "has the key '1300'; the images .* are numbered 0 to 1299"),
        ([("index", "label"), ("0.0", 1), ("-1", 2)], "has the key '-1'; the images .* are numbered 0 to 1299"),
        ([("file", "label"), ("a/b.png", 1), ("a//b.png", 2)], "has the key 'a/b.png' twice"),
        ([("index", "label", "label"), (0, 1, 2)], "has the column 'label' twice"),
        ([("x.png", "label"), ("a.png", 1), ("a.png", 2)], "has the key 'a.png' twice"),
        ([("index", "label"), *((row, "") for row in range(1300))], "'' is no class; there are 0, 1"),
        ([("index", "flops"), (0, 1)], "must have a line for each image: a number or a file name, then a value"),
        ([("index", "label"), (0, 1), (1,)], "line 3 has 1 fields; its first line names 2"),
        ([("index", "label"), (1299, 1)], "has no line for (19|20) of 20 training images, such as number \\d+"),
        ([("file", "label"), ("x.png", 1)], "the images of 'digits' have no file names: number them"),
        ([("label",), (1,)], "must have a line for each image: a number or a file name, then a value"),
        ([], "must have a line for each image"),
    ],
)
def test_a_file_that_does_not_fit_is_named_with_what_is_wrong(lines, words, tmp_path):
    with pytest.raises(ValueError, match=words):
        load("digits", train_size=20, labels=write(tmp_path / "own.csv", *lines))


@pytest.mark.parametrize(
    ("values", "wrong"), [(["cat", "bird"], "bird"), (["0", "7"], "7"), (["cat", "0"], "0"), (["", "cat"], "")]
)
def test_the_label_that_is_no_class_is_named_and_not_one_that_is(values, wrong):
    with pytest.raises(ValueError, match=f"'{wrong}' is no class; there are cat, dog, or the numbers 0 to 1"):
        as_classes("own.csv", values, ("cat", "dog"))


def test_a_file_of_labels_that_is_not_there_is_named():
    with pytest.raises(FileNotFoundError, match=r"^labels='nowhere\.csv:it': nowhere\.csv does not exist$"):
        load("digits", train_size=20, labels="nowhere.csv:it")


def test_an_array_of_another_length_or_kind_is_refused(tmp_path):
    path = tmp_path / "own.npy"
    np.save(path, np.zeros(20))
    with pytest.raises(ValueError, match=re.escape("has shape (20,); it must be (1300,), the whole official")):
        load("digits", train_size=20, labels=str(path))
    with open(path, "wb") as file:
        np.savez(file, np.zeros(1300))
    with pytest.raises(ValueError, match=r"own\.npy is an archive of arrays; save one array with numpy\.save"):
        load("digits", train_size=20, labels=str(path))
    path.write_bytes(b"")
    with pytest.raises(ValueError, match=r"own\.npy is no array of plain values"):
        load("digits", train_size=20, labels=str(path))
    (tmp_path / "own.csv").write_bytes(b"index,label\n0,\xff\n")
    with pytest.raises(ValueError, match=r"own\.csv is no CSV file in UTF-8"):
        load("digits", train_size=20, labels=str(tmp_path / "own.csv"))
    np.save(path, np.array([{}, 1], object), allow_pickle=True)
    with pytest.raises(ValueError, match=r"own\.npy is no array of plain values"):
        load("digits", train_size=20, labels=str(path))
    for value in ("nan", "1e7", "high"):
        file = write(tmp_path / "scores.csv", ("index", "score"), *((row, value) for row in range(1300)))
        with pytest.raises(ValueError, match=f"'{value}' must be a number between"):
            load("digits", train_size=20, reference=file)


def test_a_parquet_file_is_read_as_a_csv_file_is(tmp_path):
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    table = pyarrow.table({"index": np.arange(1300), "label": np.arange(1300) % 10})
    parquet.write_table(table, tmp_path / "own.parquet")
    train, _ = load("digits", train_size=20, labels=str(tmp_path / "own.parquet"))
    np.testing.assert_array_equal(train.labels, train.source % 10)


# ---------------------------------------------------------------- corrupted images


def test_a_share_of_the_images_is_spoiled_by_the_seed_and_no_other_image():
    clean, validation = load("digits", train_size=300)
    train, same_validation = load("digits", train_size=300, corrupted=0.4)
    assert train.corrupted is not None
    assert train.corrupted.sum() == 120
    changed = (train.images != clean.images).flatten(1).any(1)
    assert not (changed & ~train.corrupted).any()
    assert (changed & train.corrupted).sum() > 110  # grey may hide what was as grey
    assert torch.equal(train.labels, clean.labels)
    assert same(validation, same_validation)
    assert same_validation.corrupted is not None
    assert not same_validation.corrupted.any()
    assert load_test("digits").corrupted.sum() == 0  # pyright: ignore[reportOptionalMemberAccess]
    assert torch.equal(clean.images, load("digits", train_size=300)[0].images)  # what is shared was copied first
    assert same(train, load("digits", train_size=300, corrupted=0.4)[0])
    assert train.digest not in (clean.digest, load("digits", train_size=300, corrupted=0.4, task_seed=1)[0].digest)


def test_copies_of_an_image_are_spoiled_each_by_itself():
    train, _ = load("digits", train_size=200, duplicates=0.8, corrupted=1.0)
    assert len(train.images.flatten(1).unique(dim=0)) > 120  # of 40 images


def test_a_blur_is_the_mean_of_a_square_and_an_occlusion_a_grey_one():
    image = rng().integers(0, 256, (3, 32, 32), np.uint8)
    blurred, hidden = spoiled(image, "blur", rng()), spoiled(image, "occlusion", rng())
    for c, i, j in ((0, 0, 0), (1, 10, 17), (2, 31, 30)):
        around = image[c, max(0, i - 2) : i + 3, max(0, j - 2) : j + 3].astype(float)
        assert blurred[c, i, j] == pytest.approx(around.mean(), abs=0.51)
    grey = (hidden == GREY).all(0)
    assert grey.sum() in range(256, 260)  # a quarter, and pixels that were as grey
    top, left = np.argwhere(grey).min(0)
    assert grey[top : top + 16, left : left + 16].all()
    np.testing.assert_array_equal(hidden[:, ~grey], image[:, ~grey])


def test_noise_is_gaussian_and_every_kind_is_drawn_alike():
    noise = spoiled(np.full((3, 32, 32), 127, np.uint8), "noise", rng()).astype(float) - 127
    assert noise.std() == pytest.approx(NOISE, rel=0.1)  # a twentieth is clipped
    assert abs(noise.mean()) < 5
    kinds = Variant(corrupted=0.9).corruption(3000).kinds
    np.testing.assert_allclose(np.bincount(kinds, minlength=4), [300, 900, 900, 900], atol=100)
    assert len(KINDS) == 3
