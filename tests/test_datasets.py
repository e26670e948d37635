import hashlib
import io
import os
import shutil
import socket
import tarfile
import threading
import warnings
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.error import HTTPError

import numpy as np
import pytest
from PIL import Image
from torchvision.datasets import CIFAR10

from prune_env.data import load, load_test
from prune_env.datasets import SOURCES, read, tiny_imagenet
from prune_env.datasets.decode import square
from prune_env.datasets.download import download, unzip
from prune_env.files import DamagedFile
from tests import trees


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    folder = tmp_path / "cache"
    monkeypatch.setenv("PRUNE_ENV_CACHE", str(folder))
    monkeypatch.delenv("PRUNE_ENV_DATA", raising=False)
    return folder / "decoded"


@pytest.fixture
def decoded(monkeypatch):
    """Paths of the images that were decoded."""
    from prune_env.datasets import decode

    paths = []
    opened = decode.Image.open
    monkeypatch.setattr(decode.Image, "open", lambda path: (paths.append(path), opened(path))[1])
    return paths


def assert_holds(name, root, splits, image_size=None):
    for split, (images, labels) in splits.items():
        samples = read(name, split, root, False, image_size)
        assert (samples.images.dtype, samples.labels.dtype) == (np.uint8, np.int64)
        np.testing.assert_array_equal(samples.images, images)
        np.testing.assert_array_equal(samples.labels, labels)


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


def test_cifar10(tmp_path, monkeypatch):
    assert_holds("cifar10", tmp_path, trees.cifar10(tmp_path, monkeypatch))
    train, validation = load("cifar10", root=tmp_path)
    assert (len(train), len(validation), len(train.classes)) == (90, 10, 10)


def test_cifar100(tmp_path, monkeypatch):
    assert_holds("cifar100", tmp_path, trees.cifar100(tmp_path, monkeypatch))
    assert len(load("cifar100", root=tmp_path)[0].classes) == 100


def test_cifar_with_a_wrong_byte(tmp_path, monkeypatch):
    trees.cifar10(tmp_path, monkeypatch)
    with (tmp_path / "cifar-10-batches-py" / "data_batch_2").open("r+b") as file:
        file.seek(500)
        file.write(b"?")
    with pytest.raises(ValueError, match="does not hold the official files"):
        load("cifar10", root=tmp_path)


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


def test_imagefolder_needs_no_test_to_train(tmp_path):
    trees.imagefolder(tmp_path)
    shutil.rmtree(tmp_path / "test")
    assert len(load("imagefolder", root=tmp_path)[0]) == 18
    with pytest.raises(FileNotFoundError, match=str(tmp_path / "test")):
        load_test("imagefolder", root=tmp_path)


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


def test_the_centre_is_cut_out_of_a_long_image(tmp_path):
    trees.write_png(tmp_path / "wide.png", stripes(20, 8, "x"))
    np.testing.assert_array_equal(square(tmp_path / "wide.png", 8)[0], np.tile(np.arange(6, 14), (8, 1)))
    trees.write_png(tmp_path / "high.png", stripes(8, 20, "y"))
    np.testing.assert_array_equal(square(tmp_path / "high.png", 8)[0].T, np.tile(np.arange(6, 14), (8, 1)))


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


def test_small_images_are_enlarged(tmp_path):
    trees.write_png(tmp_path / "flat.png", np.full((3, 2, 5), 77, np.uint8))
    np.testing.assert_array_equal(square(tmp_path / "flat.png", 16), 77)


@pytest.mark.parametrize(
    ("mode", "value", "suffix", "expected"),
    [
        ("L", 90, "png", (90, 90, 90)),
        ("1", 1, "png", (255, 255, 255)),
        ("P", 3, "png", (10, 20, 30)),
        ("RGBA", (10, 20, 30, 128), "png", (10, 20, 30)),
        ("CMYK", (255, 0, 0, 0), "tiff", (0, 255, 255)),
    ],
)
def test_every_kind_of_image_becomes_rgb(tmp_path, mode, value, suffix, expected):
    image = Image.new(mode, (4, 4), value)
    if mode == "P":
        image.putpalette([0] * 9 + [10, 20, 30])
    image.save(tmp_path / f"a.{suffix}")
    np.testing.assert_array_equal(square(tmp_path / f"a.{suffix}", 4), np.tile(np.reshape(expected, (3, 1, 1)), (4, 4)))


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


def test_a_test_folder_without_classes_makes_way_for_val(tmp_path):
    splits = trees.imagefolder(tmp_path, test="val")
    trees.write_png(tmp_path / "test" / "unlabelled.png", trees.random_images(1, 32, 9)[0])
    assert_holds("imagefolder", tmp_path, splits)


def test_unknown_name_lists_the_names():
    with pytest.raises(
        ValueError, match="'mnist': choose one of digits, cifar10, cifar100, tiny_imagenet, imagefolder"
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
            assert ("pass download=True" in message) == (name != "imagefolder")


def test_the_default_root_is_below_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=str(tmp_path / ".cache/prune_env/data/train")):
        load("imagefolder")


@pytest.mark.parametrize(
    ("name", "size"), [("digits", 16), ("cifar10", 64), ("imagefolder", 0), ("imagefolder", -3), ("imagefolder", 8.5)]
)
def test_image_sizes_that_cannot_be(name, size):
    with pytest.raises(ValueError, match=f"image_size(={size} for '{name}'| is {size})"):
        load(name, image_size=size)


def test_imagefolder_errors(tmp_path):
    (tmp_path / "train").mkdir()
    with pytest.raises(ValueError, match=r"train holds no class folders"):
        load("imagefolder", root=tmp_path)
    (tmp_path / "train" / "empty").mkdir()
    with pytest.raises(ValueError, match=r"no images in .*train/empty"):
        load("imagefolder", root=tmp_path)
    for number in range(3):
        (tmp_path / "train" / "empty" / f"{number}.jpg").write_bytes(b"no image at all")
    with pytest.raises(ValueError, match=r"cannot decode the image .*train/empty/\d.jpg"):
        load("imagefolder", root=tmp_path)


def test_a_truncated_image_is_named(tmp_path):
    trees.write_png(tmp_path / "a.png", trees.random_images(1, 32, 0)[0])
    (tmp_path / "a.png").write_bytes((tmp_path / "a.png").read_bytes()[:1000])
    with pytest.raises(ValueError, match=str(tmp_path / "a.png")):
        square(tmp_path / "a.png", 32)


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
    annotations.write_text("")
    with pytest.raises(ValueError, match="is empty"):
        load_test("tiny_imagenet", root=tmp_path)

    shutil.rmtree(folder / "train" / "n01")
    with pytest.raises(FileNotFoundError, match=r"names the class n01, but .*train/n01/images does not exist"):
        load("tiny_imagenet", root=tmp_path)
    (folder / "wnids.txt").write_text("n02\nn02\n")
    with pytest.raises(ValueError, match="must name each class once"):
        load("tiny_imagenet", root=tmp_path)


# The cache.


def test_images_are_decoded_once(tmp_path, decoded, cache):
    splits = trees.imagefolder(tmp_path)
    assert_holds("imagefolder", tmp_path, splits)
    assert len(decoded) == 40
    assert len(list(cache.iterdir())) == 2  # train and test apart
    assert_holds("imagefolder", tmp_path, splits)
    assert read("imagefolder", "train", tmp_path, False, None).classes == ("cat", "dog")
    assert len(decoded) == 40
    read("imagefolder", "train", tmp_path, False, 16)
    assert len(decoded) == 60


def test_every_flipped_byte_of_the_cache_is_noticed_and_the_cache_rebuilt(tmp_path, decoded, cache):
    splits = trees.imagefolder(tmp_path, per_class=2)
    del splits["test"]
    assert_holds("imagefolder", tmp_path, splits)
    (path,) = cache.iterdir()
    good = path.read_bytes()
    damaged = [b"", good[:-1], b"other\n" + good]
    for position in (0, 30, 89, 91, 200, len(good) // 2, len(good) - 1):
        damaged.append(good[:position] + bytes([good[position] ^ 4]) + good[position + 1 :])
    for content in damaged:
        path.write_bytes(content)
        decoded.clear()
        with pytest.warns(UserWarning, match=str(path)):
            assert_holds("imagefolder", tmp_path, splits)
        assert len(decoded) == 4
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert_holds("imagefolder", tmp_path, splits)
        assert len(decoded) == 4


def test_changed_files_are_decoded_again(tmp_path, decoded):
    images = trees.imagefolder(tmp_path)["train"][0].copy()
    changed = tmp_path / "train" / "cat" / "00003.png"

    def read_train():
        decoded.clear()
        samples = read("imagefolder", "train", tmp_path, False, None)
        return samples.images, len(decoded)

    read_train()
    images[3] = 255 - images[3]
    trees.write_png(changed, images[3])
    found, count = read_train()
    np.testing.assert_array_equal(found, images)
    assert count == 20
    os.utime(changed, ns=(0, 0))
    assert read_train()[1] == 20
    changed.unlink()
    found, count = read_train()
    np.testing.assert_array_equal(found, np.delete(images, 3, axis=0))
    assert count == 19
    changed.with_name("00002.png").rename(changed)
    assert read_train()[1] == 19
    assert read_train()[1] == 0


def test_a_new_training_class_renumbers_the_cached_test_labels(tmp_path):
    trees.imagefolder(tmp_path, per_class=2)
    assert load_test("imagefolder", root=tmp_path).labels.tolist() == [0, 0, 1, 1]
    trees.write_png(tmp_path / "train" / "ant" / "a.png", trees.random_images(1, 32, 9)[0])
    test = load_test("imagefolder", root=tmp_path)
    assert test.classes == ("ant", "cat", "dog")
    assert test.labels.tolist() == [1, 1, 2, 2]


def test_changed_annotations_are_read_again(tmp_path):
    trees.tiny_imagenet(tmp_path, per_class=2)
    load_test("tiny_imagenet", root=tmp_path)
    path = tmp_path / "tiny-imagenet-200" / "val" / "val_annotations.txt"
    path.write_text("val_1.JPEG\tn03\t0\t0\t1\t1\n")
    assert load_test("tiny_imagenet", root=tmp_path).labels.tolist() == [2]


def test_two_roots_do_not_share_a_cache(tmp_path, decoded):
    for number in (0, 1):
        trees.imagefolder(tmp_path / str(number), per_class=2 + number)
    for _ in range(2):
        assert [len(read("imagefolder", "train", tmp_path / n, False, None).labels) for n in "01"] == [4, 6]
    assert len(decoded) == 10


def test_a_cache_that_cannot_be_written_costs_one_warning(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("PRUNE_ENV_CACHE", str(tmp_path / "file"))
    splits = trees.imagefolder(tmp_path, per_class=2)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        load("imagefolder", root=tmp_path)
    assert [str(warning.message).split(":")[0] for warning in caught] == [
        "no cache, images are decoded again next time"
    ]
    assert len(splits["train"][0]) == 4


def test_the_cache_folder_without_our_variable(tmp_path, monkeypatch):
    trees.imagefolder(tmp_path / "data", per_class=2)
    monkeypatch.delenv("PRUNE_ENV_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    load("imagefolder", root=tmp_path / "data")
    assert len(list((tmp_path / "xdg" / "prune_env" / "decoded").iterdir())) == 1
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    load("imagefolder", root=tmp_path / "data")
    assert len(list((tmp_path / "home" / ".cache" / "prune_env" / "decoded").iterdir())) == 1


def test_digits_are_not_cached(cache):
    load("digits")
    assert not cache.exists()


# Downloads, from a server in this process.


class Server(ThreadingHTTPServer):
    def __init__(self, content):
        super().__init__(("127.0.0.1", 0), Handler)
        self.content = content
        self.url = f"http://127.0.0.1:{self.server_port}/file"
        self.ranges = True  # whether Range is honoured
        self.limits = []  # bytes after which the next connections break off
        self.asked = []  # the Range header of every request


class Handler(BaseHTTPRequestHandler):
    server: Server  # pyright: ignore[reportIncompatibleVariableOverride]

    def do_GET(self):
        wanted = self.headers["Range"]
        self.server.asked.append(wanted)
        start = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted and self.server.ranges else 0
        body = self.server.content[start:]
        if self.path != "/file":
            self.send_error(404)
        elif start and not body:
            self.send_error(416)
        else:
            self.send_response(206 if start else 200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.server.limits:
                self.wfile.write(body[: self.server.limits.pop(0)])
                self.connection.shutdown(socket.SHUT_RDWR)
            else:
                self.wfile.write(body)

    def log_message(self, format, *args):
        pass


@pytest.fixture
def server():
    served = Server(np.random.default_rng(0).bytes(300_000))
    thread = threading.Thread(target=served.serve_forever, args=(0.01,))
    thread.start()
    yield served
    served.shutdown()
    thread.join()
    served.server_close()


def md5(content):
    return hashlib.md5(content).hexdigest()


def test_download(tmp_path, server):
    path = tmp_path / "new" / "file"
    download(server.url, path, md5(server.content))
    assert path.read_bytes() == server.content
    assert os.listdir(path.parent) == ["file"]
    download(server.url, path, md5(server.content))
    assert server.asked == [None]  # what is there is not fetched again


def test_a_broken_download_goes_on_where_it_broke(tmp_path, server):
    server.limits = [100_000, 50_000]
    download(server.url, tmp_path / "file", md5(server.content))
    assert (tmp_path / "file").read_bytes() == server.content
    assert server.asked == [None, "bytes=100000-", "bytes=150000-"]


def test_a_later_call_goes_on_with_the_part(tmp_path, server):
    server.limits = [100_000, 0]
    with pytest.raises(ConnectionError, match=r"100000 bytes are kept in .*file.part"):
        download(server.url, tmp_path / "file", md5(server.content))
    assert os.listdir(tmp_path) == ["file.part"]
    download(server.url, tmp_path / "file", md5(server.content))
    assert (tmp_path / "file").read_bytes() == server.content
    assert server.asked[-1] == "bytes=100000-"


def test_a_server_that_ignores_ranges_starts_over(tmp_path, server):
    server.ranges = False
    (tmp_path / "file.part").write_bytes(b"x" * 400_000)
    download(server.url, tmp_path / "file", md5(server.content))
    assert (tmp_path / "file").read_bytes() == server.content


def test_a_complete_part_is_only_verified(tmp_path, server):
    (tmp_path / "file.part").write_bytes(server.content)
    download(server.url, tmp_path / "file", md5(server.content))
    assert os.listdir(tmp_path) == ["file"]


def test_a_wrong_checksum_removes_the_part(tmp_path, server):
    with pytest.raises(DamagedFile, match=f"md5 {md5(server.content)}, expected 0123"):
        download(server.url, tmp_path / "file", "0123")
    assert os.listdir(tmp_path) == []


def test_a_refusal_is_raised_at_once(tmp_path, server):
    with pytest.raises(HTTPError, match="404"):
        download(server.url + "s", tmp_path / "file", "0123")
    assert server.asked == [None]


def test_a_host_that_does_not_answer(tmp_path, server):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/file"
        with pytest.raises(ConnectionError, match=f"{url}: .*refused"):
            download(url, tmp_path / "file", "0123")


def test_cifar10_is_fetched_unpacked_and_read(tmp_path, monkeypatch, server):
    splits = trees.cifar10(tmp_path / "original", monkeypatch)
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        archive.add(tmp_path / "original" / CIFAR10.base_folder, CIFAR10.base_folder)
    server.content = packed.getvalue()
    server.limits = [1000]
    monkeypatch.setattr(CIFAR10, "url", server.url)
    monkeypatch.setattr(CIFAR10, "tgz_md5", md5(server.content))
    train, _ = load("cifar10", root=tmp_path / "fetched", download=True)
    assert len(train) == 90
    assert_holds("cifar10", tmp_path / "fetched", splits)
    batch = tmp_path / "fetched" / CIFAR10.base_folder / "data_batch_1"
    batch.write_bytes(b"damaged")
    load("cifar10", root=tmp_path / "fetched", download=True)
    assert_holds("cifar10", tmp_path / "fetched", splits)
    assert server.asked == [None, "bytes=1000-"]


def test_tiny_imagenet_is_fetched_unpacked_and_read(tmp_path, monkeypatch, server):
    splits = trees.tiny_imagenet(tmp_path / "original", per_class=3)
    archive = shutil.make_archive(str(tmp_path / "packed"), "zip", tmp_path / "original", "tiny-imagenet-200")
    with open(archive, "rb") as file:
        server.content = file.read()
    monkeypatch.setattr(tiny_imagenet, "URL", server.url)
    monkeypatch.setattr(tiny_imagenet, "MD5", md5(server.content))
    load("tiny_imagenet", root=tmp_path / "fetched", download=True)
    assert_holds("tiny_imagenet", tmp_path / "fetched", splits)
    load("tiny_imagenet", root=tmp_path / "fetched", download=True)
    assert server.asked == [None]
    assert sorted(os.listdir(tmp_path / "fetched")) == ["tiny-imagenet-200", "tiny-imagenet-200.zip"]


@pytest.mark.parametrize(
    "name", ["../evil.txt", "inside/../../evil.txt", "/evil.txt", "..\\evil.txt", "other/evil.txt"]
)
def test_an_archive_cannot_write_outside_its_folder(tmp_path, name):
    (tmp_path / "root").mkdir()
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("inside/good.txt", "good")
        archive.writestr(name, "evil")
    with pytest.raises(ValueError, match=r"which is not in inside/"):
        unzip(tmp_path / "a.zip", tmp_path / "root" / "inside")
    assert os.listdir(tmp_path / "root") == []
    assert sorted(os.listdir(tmp_path)) == ["a.zip", "root"]


def test_a_failed_extraction_leaves_nothing(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for number in range(3):
            archive.writestr(f"inside/{number}.txt", "content" * 10)
    content = bytearray((tmp_path / "a.zip").read_bytes())
    content[content.rindex(b"content" * 10)] ^= 1  # the last member no longer matches its CRC
    (tmp_path / "a.zip").write_bytes(content)
    with pytest.raises(zipfile.BadZipFile):
        unzip(tmp_path / "a.zip", tmp_path / "inside")
    assert os.listdir(tmp_path) == ["a.zip"]


def test_an_existing_folder_is_not_overwritten(tmp_path):
    (tmp_path / "inside").mkdir()
    with pytest.raises(FileExistsError, match="remove it"):
        unzip(tmp_path / "a.zip", tmp_path / "inside")
