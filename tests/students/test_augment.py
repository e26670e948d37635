"""Crop, flip and mixup against one image at a time."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from prune_env.students import augment
from tests.helpers import reference
from tests.helpers.reference import independent


def test_the_hash_is_lowbias32():
    """As https://github.com/skeeto/hash-prospector has it, here on Python's integers."""
    values = [*range(100), *(2**31 + i for i in range(100)), *(2**32 - 1 - i for i in range(100))]
    assert augment.hash32(torch.tensor(values)).tolist() == [reference.hash32(x) for x in values]


@given(
    shape=st.sampled_from([(1, 8, 8), (3, 16, 16), (3, 32, 32), (2, 9, 17), (1, 4, 4), (3, 40, 24)]),
    seed=st.integers(0, 2**32 - 1),
    draws=st.integers(0, 2**32 - 1),
)
@settings(max_examples=25)
def test_crop_and_flip_agree_with_one_image_at_a_time(shape, seed, draws):
    rng = np.random.default_rng(draws)
    count = 6
    images = rng.normal(size=(count, *shape)).astype(np.float32)
    samples = rng.choice([0, 1, 7, 49_999, 1_281_166, 2**31], count)
    visits = rng.choice([0, 1, 2, 3, 500, 2**24], count)
    result = augment.crop_flip(torch.from_numpy(images), seed, torch.from_numpy(samples), torch.from_numpy(visits))
    expected = [reference.crop_flip(x, seed, int(i), int(v)) for x, i, v in zip(images, samples, visits, strict=True)]
    np.testing.assert_array_equal(result.numpy(), np.stack(expected))


def positions(samples: torch.Tensor, visits: torch.Tensor, seed: int = 5) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Top, left and whether flipped, read off images that hold their own coordinates (33 wide, 16 high)."""
    y, x = np.meshgrid(np.arange(16), np.arange(32), indexing="ij")
    image = torch.from_numpy(np.stack([y, x]).astype(np.float32)).expand(len(samples), -1, -1, -1)
    seen = augment.crop_flip(image, seed, samples, visits).numpy()
    flipped = seen[:, 1, 8, 20] < seen[:, 1, 8, 10]
    left = np.where(flipped, seen[:, 1, 8, 31 - 10], seen[:, 1, 8, 10]) - 10
    return seen[:, 0, 8, 0] - 8, left, flipped


def test_shifts_are_uniform_and_every_draw_is_its_own():
    samples = torch.arange(5000)
    top, left, flipped = positions(samples, torch.zeros(5000, dtype=torch.int64))
    assert set(top) == set(range(-2, 3))
    assert set(left) == set(range(-4, 5))
    cells = np.bincount(((top + 2) * 9 + left + 4).astype(int) * 2 + flipped, minlength=90)
    assert stats.chisquare(cells).pvalue > 1e-4  # all combinations of shift and flip
    later = positions(samples, torch.ones(5000, dtype=torch.int64))
    table = np.zeros((5, 5))
    np.add.at(table, ((top + 2).astype(int), (later[0] + 2).astype(int)), 1)
    assert independent(table) > 1e-4  # the next visit's shift does not follow from this one's
    other = positions(samples, torch.zeros(5000, dtype=torch.int64), seed=6)
    table = np.zeros((9, 9))
    np.add.at(table, ((left + 4).astype(int), (other[1] + 4).astype(int)), 1)
    assert independent(table) > 1e-4  # nor another seed's


def test_flips_alternate_by_visits_from_a_drawn_start():
    visits = torch.arange(6)
    _, _, flipped = positions(torch.arange(400).repeat_interleave(6), visits.repeat(400))
    starts = flipped[::6]
    np.testing.assert_array_equal(flipped.reshape(400, 6), np.stack([starts, ~starts] * 3, axis=1))
    assert stats.binomtest(int(starts.sum()), 400).pvalue > 1e-4


def test_a_sample_looks_the_same_whatever_is_beside_it():
    images = torch.rand(10, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    samples, visits = torch.arange(10), torch.arange(10) % 3
    together = augment.crop_flip(images, 9, samples, visits)
    for i in range(10):
        alone = augment.crop_flip(images[i : i + 1], 9, samples[i : i + 1], visits[i : i + 1])
        assert torch.equal(alone[0], together[i])


def test_small_images_are_flipped_only():
    image = torch.arange(16.0).view(1, 1, 4, 4)
    result = augment.crop_flip(image, 3, torch.tensor([5]), torch.tensor([0]))
    assert result.tolist() in (image.tolist(), image.flip(3).tolist())


def test_blend_is_the_weighted_mean_of_two_images():
    shares = [0.0, 0.1, 0.25, 0.5]
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 4, 3, 5, 5)).astype(np.float32)
    expected = [(1 - m) * x + m * y for m, x, y in zip(shares, a.astype(float), b.astype(float), strict=True)]
    result = augment.blend(torch.from_numpy(a), torch.from_numpy(b), torch.tensor(shares))
    np.testing.assert_allclose(result.numpy(), np.stack(expected), atol=1e-6)
