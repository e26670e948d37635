import shutil
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from prune_env import data
from prune_env.data import digits, sources
from prune_env.data.decode import square
from prune_env.data.sources import SOURCES
from prune_env.io import DamagedFile
from tests.helpers import trees
from tests.helpers.trees import assert_holds
from train import evaluate


def anew(function):
    """The function as a new process would see the folders."""

    def call(*args, **settings):
        sources.forget()
        return function(*args, **settings)

    return call


load, load_test, read = map(anew, (data.load, data.load_test, sources.read))

# Each source, pixel by pixel.


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


@pytest.mark.parametrize("damage", ["a byte", "empty"])
def test_damaged_digits_are_named_in_one_line(tmp_path, monkeypatch, capsys, damage):
    path = Path(digits.__file__).with_name("digits.npz")
    good = path.read_bytes()
    changed = tmp_path / path.name
    np.savez(changed, images=np.zeros((1797, 8, 8), np.uint8), labels=np.zeros(1797, np.uint8))
    bad = {"truncated": good[:-1], "empty": b"", "another": changed.read_bytes()}
    flipped = good[:9000] + bytes([good[9000] ^ 4]) + good[9001:]
    changed.write_bytes(bad.get(damage, flipped))
    monkeypatch.setattr(digits, "resources", SimpleNamespace(files=lambda _: tmp_path))
    for read_split in (load, load_test):
        with pytest.raises(DamagedFile, match=f"^{changed} is damaged: .*install the package again"):
            read_split("digits")
    assert evaluate.main(["--agents", "full", "--out", str(tmp_path / "runs")]) == 2
    error = capsys.readouterr().err
    assert error.splitlines()[-1].startswith(f"error: {changed} is damaged")
    assert "Traceback" not in error


def test_cifar10(tmp_path, monkeypatch):
    assert_holds("cifar10", tmp_path, trees.cifar10(tmp_path, monkeypatch))
    train, validation = load("cifar10", root=tmp_path)
    assert (len(train), len(validation), len(train.classes)) == (90, 10, 10)


def test_cifar100(tmp_path, monkeypatch):
    assert_holds("cifar100", tmp_path, trees.cifar100(tmp_path, monkeypatch))
    assert len(load("cifar100", root=tmp_path)[0].classes) == 100


def test_tiny_imagenet(tmp_path):
    splits = trees.tiny_imagenet(tmp_path)
    assert_holds("tiny_imagenet", tmp_path, splits)
    assert_holds("tiny_imagenet", tmp_path / "tiny-imagenet-200", splits)
    assert load_test("tiny_imagenet", root=tmp_path).classes == ("n02", "n01", "n03")  # the order of wnids.txt


def test_tiny_imagenet_in_another_size(tmp_path):
    splits = trees.tiny_imagenet(tmp_path, per_class=2)
    samples = read("tiny_imagenet", "train", tmp_path, False, 16)
    image = Image.fromarray(splits["train"][0][0].transpose(1, 2, 0)).resize((16, 16), Image.Resampling.BILINEAR)
    assert samples.images.shape == (6, 3, 16, 16)
    np.testing.assert_array_equal(samples.images[0], np.asarray(image).transpose(2, 0, 1))


@pytest.mark.parametrize("test", ["test", "val"])
def test_imagefolder(tmp_path, test):
    splits = trees.imagefolder(tmp_path, ("b", "a", "c"), per_class=3, test=test)
    order = np.r_[3:6, 0:3, 6:9]  # classes are sorted
    expected = {split: (images[order], np.repeat([0, 1, 2], 3)) for split, (images, _) in splits.items()}
    assert_holds("imagefolder", tmp_path, expected)
    assert read("imagefolder", "train", tmp_path, False, None).classes == ("a", "b", "c")


def test_imagefolder_prefers_test_to_val(tmp_path):
    splits = trees.imagefolder(tmp_path)
    trees.write_png(tmp_path / "val" / "cat" / "a.png", trees.random_images(1, 32, 9)[0])
    assert_holds("imagefolder", tmp_path, splits)


def test_imagefolder_takes_nested_files_and_ignores_what_is_hidden_or_no_image(tmp_path):
    splits = trees.imagefolder(tmp_path, per_class=3)
    image = trees.random_images(1, 32, 9)[0]
    for hidden in (".ipynb_checkpoints/a.png", "cat/.a.png", "cat/.thumbs/a.png"):
        trees.write_png(tmp_path / "train" / hidden, image)
    (tmp_path / "train" / "cat" / "notes.txt").write_text("no image")
    (tmp_path / "train" / "list.csv").write_text("no class")
    assert_holds("imagefolder", tmp_path, splits)
    trees.write_png(tmp_path / "train" / "cat" / "z" / "y" / "x.PNG", image)
    samples = read("imagefolder", "train", tmp_path, False, None)
    np.testing.assert_array_equal(samples.images[3], image)
    assert np.bincount(samples.labels).tolist() == [4, 3]


def test_test_classes_may_be_fewer_but_not_others(tmp_path):
    splits = trees.imagefolder(tmp_path, ("a", "b"))
    shutil.rmtree(tmp_path / "test" / "a")
    test = load_test("imagefolder", root=tmp_path)
    assert test.classes == ("a", "b")
    assert set(test.labels.tolist()) == {1}
    np.testing.assert_array_equal(test.images, splits["test"][0][10:])
    trees.write_png(tmp_path / "test" / "zebra" / "a.png", trees.random_images(1, 32, 9)[0])
    with pytest.raises(ValueError, match="train lacks: zebra"):
        load_test("imagefolder", root=tmp_path)


# Geometry and colour.


def stripes(width, height, along):
    """Red rises by one a pixel along x or y, so a pixel tells where it came from."""
    ramp = np.broadcast_to(np.arange(width) if along == "x" else np.arange(height)[:, None], (height, width))
    return np.stack([ramp, 0 * ramp, 255 + 0 * ramp]).astype(np.uint8)


def test_the_shorter_side_is_resized_with_antialiasing(tmp_path):
    trees.write_png(tmp_path / "wide.png", stripes(80, 32, "x"))
    image = square(tmp_path / "wide.png", 8)  # 80 x 32 -> 20 x 8 -> the middle 8
    assert image.shape == (3, 8, 8)
    assert (image[1] == 0).all()
    assert (image[2] == 255).all()
    centres = 4 * np.arange(6, 14) + 1.5  # of four source pixels each
    np.testing.assert_allclose(image[0], np.tile(centres, (8, 1)), atol=0.51)
    checks = np.indices((32, 32)).sum(0) % 2 * 255
    trees.write_png(tmp_path / "checks.png", np.stack([checks] * 3).astype(np.uint8))
    inner = square(tmp_path / "checks.png", 8)[:, 1:-1, 1:-1].astype(int)  # without antialiasing: 0 or 255
    np.testing.assert_allclose(inner, 127.5, atol=3)


@pytest.mark.parametrize(
    ("mode", "value", "suffix", "expected"),
    [
        ("L", 90, "png", (90, 90, 90)),
        ("1", 1, "png", (255, 255, 255)),
        ("P", 3, "png", (10, 20, 30)),
        ("L", 90, "jpg", (90, 90, 90)),
        ("L", 90, "pgm", (90, 90, 90)),
        ("CMYK", (255, 0, 0, 0), "tiff", (0, 255, 255)),
        ("CMYK", (255, 0, 0, 0), "jpg", (0, 255, 255)),
        ("YCbCr", (90, 128, 128), "jpg", (90, 90, 90)),
    ],
)
def test_every_kind_of_image_becomes_rgb(tmp_path, mode, value, suffix, expected):
    image = Image.new(mode, (4, 4), value)
    if mode == "P":
        image.putpalette([0] * 9 + [10, 20, 30])
    image.save(tmp_path / f"a.{suffix}")
    with Image.open(tmp_path / f"a.{suffix}") as stored:
        assert stored.mode == ("RGB" if mode == "YCbCr" else mode)
    found = square(tmp_path / f"a.{suffix}", 4).astype(int)
    expected = np.tile(np.reshape(expected, (3, 1, 1)), (4, 4))
    np.testing.assert_allclose(found, expected, atol=1 if suffix == "jpg" else 0)


# Errors.


@pytest.mark.parametrize(("kind", "suffix"), [(np.uint16, ".png"), (np.int32, ".tif"), (np.float32, ".tif")])
def test_more_than_8_bits_are_refused_by_name(tmp_path, kind, suffix):
    trees.imagefolder(tmp_path)
    path = tmp_path / "train" / "dog" / f"deep{suffix}"
    Image.fromarray(np.full((32, 32), 300, kind)).save(path)
    with pytest.raises(ValueError, match=rf"{path} has more than 8 bits"):
        load("imagefolder", root=tmp_path)


@pytest.mark.parametrize("target", [".", "..", "../.."])
def test_a_link_to_a_folder_above_lists_every_image_once(tmp_path, target):
    splits = trees.imagefolder(tmp_path, per_class=3)
    (tmp_path / "train" / "cat" / "me").symlink_to(target)
    assert_holds("imagefolder", tmp_path, splits)


def test_links_to_other_folders_are_followed(tmp_path):
    images = trees.random_images(1, 32, 9)
    splits = trees.imagefolder(tmp_path / "root", per_class=3)
    trees.write_png(tmp_path / "elsewhere" / "deep" / "a.png", images[0])
    (tmp_path / "elsewhere" / "back").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "root" / "train" / "dog" / "z").symlink_to(tmp_path / "elsewhere")
    found, labels = splits["train"]
    expected = np.concatenate([found, images]), np.append(labels, 1)
    assert_holds("imagefolder", tmp_path / "root", {"train": expected, "test": splits["test"]})


def test_unknown_name_lists_the_names():
    with pytest.raises(
        ValueError, match="'mnist': choose one of digits, cifar10, cifar100, tiny_imagenet, imagefolder, imagenet"
    ):
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


@pytest.mark.parametrize(
    ("name", "size"), [("digits", 0), ("cifar10", 64), ("imagefolder", 0), ("imagefolder", -3), ("imagefolder", 8.5)]
)
def test_image_sizes_that_cannot_be(name, size):
    with pytest.raises(ValueError, match=f"image_size(={size} for '{name}'| is {size})"):
        load(name, image_size=size)


def test_an_image_that_cannot_be_decoded_is_named(tmp_path):
    trees.imagefolder(tmp_path)
    (tmp_path / "train" / "cat" / "a.jpg").write_bytes(b"no image at all")
    with pytest.raises(ValueError, match=r"cannot decode the image .*train/cat/a.jpg"):
        load("imagefolder", root=tmp_path)


@pytest.mark.parametrize("ending", ["gif", "jfif", "JPE", "jp2", "mpo", "HEIC"])
def test_images_of_a_format_that_is_not_read_are_named(tmp_path, ending):
    splits = trees.imagefolder(tmp_path, per_class=3)
    folder = tmp_path / "train" / "dog"
    for name in ("notes.txt", "boxes", "a.json", "a.h5", "a.pdf", f".a.{ending}", f"a.{ending}.txt"):
        (folder / name).write_text("no image, or hidden")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_holds("imagefolder", tmp_path, splits)
    for name in ("b", "deep/a"):
        trees.write_png(folder / f"{name}.{ending}", trees.random_images(1, 32, 9)[0])
    words = rf"^2 image\(s\) in {folder} end in none of \.jpg, .*\.webp, the first is {folder}/b\.{ending}: convert"
    for _ in range(2):
        with pytest.raises(ValueError, match=words):
            load("imagefolder", root=tmp_path)


@pytest.mark.parametrize("name", ["a.png.part", "A.JPG.crdownload", "deep/a.jpeg.tmp"])
def test_images_that_are_half_written_are_named(tmp_path, name):
    trees.imagefolder(tmp_path, per_class=3)
    folder = tmp_path / "test" / "dog"
    (folder / "deep").mkdir()
    (folder / name).write_bytes(b"half")
    with pytest.raises(
        ValueError, match=rf"^1 image\(s\) in {folder} end in none of .*, the first is {folder / name}:"
    ):
        load_test("imagefolder", root=tmp_path)


@pytest.mark.parametrize("name", ["a.png", "A.JPG", "a.gif", "a.png.part"])
def test_images_beside_the_folders_of_classes_are_named(tmp_path, name):
    splits = trees.imagefolder(tmp_path, per_class=3)
    for place in ("train/.a.png", "test/.a.png", "train/notes.txt", "a.png"):
        (tmp_path / place).write_bytes(b"hidden, no image, or of no split")
    assert_holds("imagefolder", tmp_path, splits)
    for split, read_split in (("train", load), ("test", load_test)):
        (tmp_path / split / name).write_bytes(b"lost")
        words = rf"^1 image\(s\) in {tmp_path / split} lie in no folder of a class, the first is .*{split}/{name}:"
        with pytest.raises(ValueError, match=words):
            read_split("imagefolder", root=tmp_path)
        (tmp_path / split / name).unlink()


def test_tiny_imagenet_errors(tmp_path):
    trees.tiny_imagenet(tmp_path, per_class=3)
    folder = tmp_path / "tiny-imagenet-200"
    annotations = folder / "val" / "val_annotations.txt"
    good = annotations.read_text()

    annotations.write_text(good + "val_0.JPEG\tn99\t0\t0\t1\t1\n")
    with pytest.raises(ValueError, match=r"val_annotations.txt, line 10: class 'n99' is not in wnids.txt"):
        load_test("tiny_imagenet", root=tmp_path)
    annotations.write_text("val_99.JPEG\tn01\t0\t0\t1\t1\n")
    with pytest.raises(FileNotFoundError, match=r"line 1: .*val_99.JPEG does not exist"):
        load_test("tiny_imagenet", root=tmp_path)
    annotations.write_text("nonsense\n")
    with pytest.raises(ValueError, match="line 1: class ''"):
        load_test("tiny_imagenet", root=tmp_path)
    annotations.write_text("".join(good.splitlines(keepends=True)[:6]))  # truncated
    with pytest.raises(ValueError, match=r"names no class of 3 image\(s\) .*val_6.JPEG"):
        load_test("tiny_imagenet", root=tmp_path)
    annotations.write_text(good)
    (folder / "val" / "images" / ".val_9.JPEG").touch()
    assert len(load_test("tiny_imagenet", root=tmp_path)) == 9

    shutil.rmtree(folder / "train" / "n01")
    with pytest.raises(FileNotFoundError, match=r"names the class n01, but .*train/n01 does not exist"):
        load("tiny_imagenet", root=tmp_path)
    (folder / "wnids.txt").write_text("n02\nn02\n")
    with pytest.raises(ValueError, match="must name each class once"):
        load("tiny_imagenet", root=tmp_path)


@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp", "tif", "webp", "ppm"])
def test_an_empty_and_a_truncated_image_are_named(tmp_path, suffix):
    trees.imagefolder(tmp_path, per_class=3)
    path = tmp_path / "train" / "dog" / f"a.{suffix}"
    Image.fromarray(trees.random_images(1, 32, 0)[0].transpose(1, 2, 0)).save(path)
    load("imagefolder", root=tmp_path)
    content = path.read_bytes()
    for half in (b"", content[:1], content[: len(content) // 2]):
        path.write_bytes(half)
        with pytest.raises(ValueError, match=rf"cannot decode the image {path}"):
            load("imagefolder", root=tmp_path)


@pytest.mark.parametrize("place", ["train/zebra", "train/dog/more", "train/dog/x.jpg", "test/dog/more"])
def test_a_link_that_leads_nowhere_is_named(tmp_path, place):
    """It may stand for a whole class on a disk that is not there."""
    trees.imagefolder(tmp_path, per_class=3)
    (tmp_path / place).symlink_to(tmp_path / "unmounted")
    with pytest.raises(FileNotFoundError, match=str(tmp_path / place)):
        (load_test if place.startswith("test") else load)("imagefolder", root=tmp_path)
