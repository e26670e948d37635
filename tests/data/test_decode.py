"""Images become upright RGB squares, as people and torchvision see them."""

from typing import Any

import numpy as np
import pytest
from PIL import Image
from torchvision.transforms.v2 import functional

from prune_env.data.decode import square
from tests.helpers import trees


@pytest.mark.parametrize(
    ("mode", "value", "suffix", "expected"),
    [
        ("L", 90, "png", (90, 90, 90)),
        ("1", 1, "png", (255, 255, 255)),
        ("P", 3, "png", (10, 20, 30)),
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
    expected = np.tile(np.reshape(expected, (3, 1, 1)), (4, 4))
    found = square(tmp_path / f"a.{suffix}", 4).astype(int)
    np.testing.assert_allclose(found, expected, atol=1 if suffix == "jpg" else 0)


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
    else:  # one colour stands for nothing
        ground, drawing = {"RGB": ((9, 9, 9), (0, 0, 0)), "L": (9, 0), "P": (0, 1)}[mode]
        image = Image.new(mode, (4, 4), ground)
        if mode == "P":
            image.putpalette([0, 0, 0, 0, 0, 0])
        image.putpixel((1, 2), drawing)
        options = {"transparency": ground}
    image.save(tmp_path / "a.png", **options)
    np.testing.assert_array_equal(square(tmp_path / "a.png", 4), np.stack([expected] * 3))


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif"])
@pytest.mark.parametrize("orientation", range(1, 10))
def test_images_are_turned_upright(tmp_path, suffix, orientation):
    """The four corners, told apart by their brightness, come where the standard says that they belong."""
    stored = np.kron([[40, 90], [140, 220]], np.ones((16, 16))).astype(np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(stored).convert("RGB").save(path, exif=exif)
    corners = square(path, 32)[0, [4, 4, 28, 28], [4, 28, 4, 28]].reshape(2, 2).astype(int)
    of_stored = np.array([[40, 90], [140, 220]])
    upright = {  # EXIF 2.32, table 6: where row 0 and column 0 of the stored image are as people see it
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
    Image.new("RGB", (32, 32)).save(tmp_path / "a.jpg", exif=b"Exif\0\0MM\0*\0\0\0\xff\1\2")
    assert square(tmp_path / "a.jpg", 32).shape == (3, 32, 32)


@pytest.mark.parametrize(("width", "height"), [(64, 48), (30, 119), (31, 7), (5, 200), (300, 2), (900, 1), (1, 900)])
def test_the_centre_is_what_torchvision_cuts_out(tmp_path, width, height):
    """With antialiasing. Extreme shapes, of which less is computed, may differ by rounding."""
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


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif"])
def test_an_empty_and_a_truncated_image_are_named(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(trees.random_images(1, 32, 0)[0].transpose(1, 2, 0)).save(path)
    content = path.read_bytes()
    for damaged in (b"", b"no image at all", content[: len(content) // 2]):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=rf"cannot decode the image {path}"):
            square(path, 8)


@pytest.mark.parametrize(("kind", "suffix"), [(np.uint16, "png"), (np.int32, "tif"), (np.float32, "tif")])
def test_more_than_8_bits_are_refused_by_name(tmp_path, kind, suffix):
    path = tmp_path / f"deep.{suffix}"
    Image.fromarray(np.full((32, 32), 300, kind)).save(path)
    with pytest.raises(ValueError, match=rf"{path} has more than 8 bits"):
        square(path, 8)
