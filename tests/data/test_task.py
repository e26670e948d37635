"""How a split becomes training and validation, against figures counted by hand, and what `Data` promises."""

import gc
import hashlib
import pickle
import random
import re
import weakref

import numpy as np
import pytest
import torch

from prune_env import data as package
from prune_env.data import Data, Variant, load, load_test, sources
from prune_env.data.source import Samples
from prune_env.data.sources import read
from prune_env.data.task import (
    apportion,
    draw_per_class,
    imbalanced_rows,
    stratified_rows,
    validation_rows,
    with_duplicates,
    with_label_noise,
)

ALL_KNOBS = {"train_size": 300, "label_noise": 0.2, "imbalance": 5.0, "duplicates": 0.25}


def rng(seed=0):
    return np.random.default_rng(seed)


def same(one: Data, other: Data) -> bool:
    names = ("images", "labels", "source", "wrong")
    return all(torch.equal(getattr(one, name), getattr(other, name)) for name in names)


# ---------------------------------------------------------------- training, validation and test


def test_train_and_validation_are_the_official_training_split_once_each():
    official = read("digits", "train", None, False, None)
    train, validation = load("digits")
    assert sorted(train.source.tolist() + validation.source.tolist()) == list(range(1300))
    for data in (train, validation):
        rows = data.source.numpy()
        assert (np.diff(rows) > 0).all()
        np.testing.assert_array_equal(data.images, official.images[rows])
        np.testing.assert_array_equal(data.labels, official.labels[rows])
    expected = 0.2 * np.bincount(official.labels)
    assert (np.abs(np.bincount(validation.labels) - expected) < 1).all()  # stratified


def test_validation_ignores_every_knob_and_seed():
    _, validation = load("digits")
    _, other = load("digits", task_seed=7, **ALL_KNOBS)
    assert same(validation, other)
    assert validation.digest == other.digest


def test_too_few_images_of_a_class_and_too_few_classes_are_refused(monkeypatch):
    with pytest.raises(ValueError, match=r"class 'b' has 1 image\(s\) in the training split: two or more"):
        validation_rows(np.array([0, 0, 0, 1]), ("a", "b"), 0.1)
    assert len(validation_rows(np.array([0, 0, 1, 1]), ("a", "b"), 0.1)) == 1
    one = Samples(np.zeros((9, 1, 4, 4), np.uint8), np.zeros(9, np.int64), ("cat",))
    monkeypatch.setattr(sources, "read", lambda *_: one)
    with pytest.raises(ValueError, match=re.escape("'digits' has the classes ('cat',)")):
        load("digits")


def test_same_task_seed_same_task_other_seed_other_task():
    one, two, other = (load("digits", task_seed=seed, **ALL_KNOBS)[0] for seed in (3, 3, 4))
    assert same(one, two)
    assert one.digest == two.digest != other.digest
    assert not torch.equal(one.source, other.source)
    assert same(load("digits", task_seed=0)[0], load("digits", task_seed=1)[0])  # without knobs nothing is drawn


def test_the_digests_are_those_of_the_committed_results():
    """They are taken of the bytes of images and labels; results/digits is found by them."""
    train, validation = load("digits")
    assert train.digest == "bf66480c1c3ad5d607b2dd4ea4547948c4fd272929c4eea69760aaec1b44e0c7"
    assert validation.digest == "6d2ce80dad20c5c0652e136265be795e6b053f521879fba4983b78011fd067a4"
    test = load_test("digits")
    content = test.images.numpy().tobytes() + test.labels.numpy().astype("<i8").tobytes()
    assert test.digest == hashlib.sha256(content).hexdigest()


def test_global_generators_are_neither_read_nor_seeded():
    def states():
        return random.getstate(), pickle.dumps(np.random.get_state()), torch.get_rng_state().tolist()  # noqa: NPY002

    before = states()
    load("digits", **ALL_KNOBS)
    assert states() == before


# ---------------------------------------------------------------- the knobs


def test_apportion_by_hand():
    assert apportion(7, np.array([5, 3, 2])).tolist() == [4, 2, 1]  # 3.5, 2.1, 1.4
    assert apportion(2, np.array([1, 1, 1])).tolist() == [1, 1, 0]
    assert apportion(6, np.array([1, 2, 3])).tolist() == [1, 2, 3]


def test_draw_per_class_is_uniform():
    labels = np.array([1, 0, 1, 0, 1, 0])
    drawn = np.zeros(6)
    for seed in range(1000):
        rows = draw_per_class(labels, np.array([1, 2]), rng(seed))
        assert (np.diff(rows) > 0).all()
        assert np.bincount(labels[rows]).tolist() == [1, 2]
        drawn[rows] += 1
    np.testing.assert_allclose(drawn / 1000, [2 / 3, 1 / 3] * 3, atol=0.06)  # four standard deviations


def test_draw_per_class_takes_the_lowest_numbers_of_each_class():
    """Also with more classes than a byte can count; against a loop over classes."""
    labels = rng(1).integers(0, 300, 5000)
    sizes = np.bincount(labels, minlength=300) // 2
    numbers = rng(2).random(5000)
    expected = [
        row for c in range(300) for row in sorted(np.flatnonzero(labels == c), key=numbers.__getitem__)[: sizes[c]]
    ]
    assert draw_per_class(labels, sizes, rng(2)).tolist() == sorted(expected)


def test_validation_rows_are_drawn_once_for_a_split(monkeypatch):
    sources.forget()
    drawn = []
    monkeypatch.setattr(package, "validation_rows", lambda *of: drawn.append(of) or validation_rows(*of))
    first, second = (load("digits", task_seed=seed)[1] for seed in (0, 1))
    assert len(drawn) == 1
    assert same(first, second)


@pytest.mark.parametrize(
    ("counts", "ratio", "expected"),
    [
        ([100, 100, 100], 100, [100, 10, 1]),
        ([50, 100, 100], 25, [50, 10, 2]),
        ([100, 100, 5], 4, [20, 10, 5]),
        ([7, 9, 4], 1, [7, 9, 4]),
    ],
)
def test_imbalance_by_hand(counts, ratio, expected):
    labels = rng(1).permutation(np.repeat(np.arange(len(counts)), counts))
    rows = imbalanced_rows(labels, len(counts), ratio, rng())
    assert np.bincount(labels[rows]).tolist() == expected
    assert (np.diff(rows) > 0).all()


@pytest.mark.parametrize(
    ("counts", "size", "expected"),
    [([50, 30, 20], 10, [5, 3, 2]), ([50, 30, 20], 99, [50, 30, 20]), ([98, 1, 1], 10, [8, 1, 1])],
)
def test_train_size_by_hand(counts, size, expected):
    labels = rng(1).permutation(np.repeat(np.arange(3), counts))
    rows = stratified_rows("train_size", labels, 3, size, rng())
    assert len(np.unique(rows)) == size
    assert np.abs(np.bincount(labels[rows]) - expected).sum() <= (size == 99)


@pytest.mark.parametrize(("n", "share", "copies"), [(10, 0.3, 3), (7, 0.5, 4), (10, 0.0, 0), (10, 0.9, 9)])
def test_duplicates_by_hand(n, share, copies):
    rows = np.arange(n) * 10
    result = with_duplicates(rows, share, rng(5))
    stays = result == rows
    assert (~stays).sum() == copies
    assert len(np.unique(result)) == n - copies
    assert set(result[~stays]) <= set(rows[stays])  # never a copy of a sample that was itself replaced


def test_label_noise_is_uniform_over_the_other_classes():
    labels = np.full(9000, 2)
    noisy = with_label_noise(labels, 4, 1 / 3, rng())
    counts = np.bincount(noisy, minlength=4)
    assert counts[2] == 6000
    np.testing.assert_allclose(counts[[0, 1, 3]], 1000, atol=110)  # four standard deviations


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("label_noise", 1.1),
        ("label_noise", float("nan")),
        ("imbalance", 0.9),
        ("imbalance", float("inf")),
        ("duplicates", 1.0),
        ("train_size", 10.5),
        ("task_seed", -1),
    ],
)
def test_knobs_out_of_range_are_named(name, value):
    with pytest.raises(ValueError, match=rf"^{name}(=| is ){value}[ ;].*must be"):
        Variant(**{name: value})


@pytest.mark.parametrize(
    ("knobs", "words"),
    [
        ({"train_size": 9}, "train_size=9 must lie between 10, .* and 1040"),
        ({"train_size": 1041}, "train_size=1041 must lie between 10, .* and 1040"),
        ({"imbalance": 1e4}, "imbalance=10000.0 leaves class \\d empty: use 10\\d or less"),
    ],
)
def test_knobs_that_the_data_cannot_have_say_what_there_is(knobs, words):
    with pytest.raises(ValueError, match=words):
        load("digits", **knobs)


@pytest.mark.parametrize("knobs", [{"imbalance": 4.0}, {"train_size": 200, "duplicates": 0.4}, ALL_KNOBS])
def test_val_rest_adds_what_training_leaves_out_with_clean_labels(knobs):
    official = read("digits", "train", None, False, None)
    train, validation = load("digits", **knobs)
    same_train, more = load("digits", val_rest=True, **knobs)
    assert same(same_train, train)
    # what the size and the imbalance leave for training, before duplicates take the place of some of it
    whole, _ = load("digits", **{**knobs, "duplicates": 0.0, "label_noise": 0.0})
    left_out = set(range(1300)) - set(whole.source.tolist())
    assert more.source.tolist() == sorted(left_out)
    assert set(validation.source.tolist()) < left_out
    assert not left_out & set(train.source.tolist())
    rows = more.source.numpy()
    np.testing.assert_array_equal(more.images, official.images[rows])
    np.testing.assert_array_equal(more.labels, official.labels[rows])
    assert not more.wrong.any()
    assert not more.augment


@pytest.mark.parametrize("rest", [False, True])
def test_val_size_takes_a_part_of_validation_in_which_classes_keep_their_shares(rest):
    train, whole = load("digits", train_size=300, val_rest=rest)
    same_train, part = load("digits", train_size=300, val_rest=rest, val_size=100)
    assert same(same_train, train)
    assert len(part) == 100
    assert set(part.source.tolist()) < set(whole.source.tolist())
    shares = np.bincount(whole.labels, minlength=10) * 100 / len(whole)
    assert np.abs(np.bincount(part.labels, minlength=10) - shares).max() < 1
    assert same(load("digits", train_size=300, val_rest=rest, val_size=100, label_noise=0.5)[1], part)
    with pytest.raises(ValueError, match=f"val_size=9 must lie between 10, one a class, and {len(whole)}"):
        load("digits", train_size=300, val_rest=rest, val_size=9)


# ---------------------------------------------------------------- memory


def test_parts_with_the_same_images_share_their_memory_and_no_others():
    def address(data: Data) -> int:
        return data.images.untyped_storage().data_ptr()

    one, validation = load("digits", train_size=300)
    noisy, same_validation = load("digits", train_size=300, label_noise=0.2)
    other, _ = load("digits", train_size=300, task_seed=1)
    copies, more = load("digits", train_size=300, duplicates=0.2, val_rest=True)
    assert address(one) == address(noisy)
    assert address(validation) == address(same_validation)
    assert len({address(data) for data in (one, validation, other, copies, more)}) == 5
    assert one.digest != noisy.digest
    for data in (one, noisy, validation, more, load_test("digits")):  # nothing else can be reached through a tensor
        for tensor in (data.images, data.labels, data.source, data.wrong):
            assert tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()


def test_images_are_freed_when_nobody_uses_them():
    one, validation = load("digits", train_size=321, task_seed=77)
    images = weakref.ref(one.images)
    del one, validation
    gc.collect()
    assert images() is None


def test_batch_takes_any_order_and_repeats():
    train, _ = load("digits", label_noise=0.5)
    indices = torch.tensor([5, 0, 5, 1039])
    images, labels = train.batch(indices)
    assert torch.equal(images, train.images[indices])
    assert torch.equal(labels, train.labels[indices])
