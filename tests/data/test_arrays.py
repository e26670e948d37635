"""Data of somebody's own, in memory, against the same images as a folder and as they were given."""

import copy
import pickle
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

from prune_env import PruneEnv, data, select
from prune_env.data import Arrays
from tests.helpers import trees
from tests.helpers.runs import own_digits, play, same

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (30, 3, 8, 8), np.uint8)
LABELS = np.arange(30) % 3


@pytest.mark.parametrize(
    "images",
    [
        IMAGES,
        torch.from_numpy(IMAGES),
        IMAGES.transpose(0, 2, 3, 1),  # channels last
        (IMAGES / 255).astype(np.float32),
        torch.from_numpy(IMAGES).double() / 255,
    ],
    ids=["uint8", "tensor", "channels last", "float32", "float64 tensor"],
)
@pytest.mark.parametrize("labels", [LABELS, torch.from_numpy(LABELS), LABELS.astype(np.uint8)])
def test_images_of_every_form_are_the_same_data(images, labels):
    train, val = data.load(Arrays((images, labels), (images[:7], labels[:7])))
    np.testing.assert_array_equal(train.images, IMAGES)
    np.testing.assert_array_equal(train.labels, LABELS)
    np.testing.assert_array_equal(val.images, IMAGES[:7])
    np.testing.assert_array_equal(val.labels, LABELS[:7])
    assert train.classes == ("0", "1", "2")
    assert not train.augment


def test_grey_images_need_no_channel_and_the_caller_keeps_the_arrays():
    given = IMAGES[:, 0].copy()
    own = Arrays((given, LABELS), test=(given, LABELS), classes=("a", "b", "c"))
    given[:] = 0
    train, val = data.load(own)
    assert train.images.shape[1:] == (1, 8, 8)
    np.testing.assert_array_equal(data.load_test(own).images[:, 0], IMAGES[:, 0])
    rows = [part.source.numpy() for part in (train, val)]
    assert len(rows[1]) == 3  # a tenth
    np.testing.assert_array_equal(np.sort(np.concatenate(rows)), np.arange(30))
    assert sorted(val.labels.tolist()) == [0, 1, 2]
    assert train.classes == ("a", "b", "c")


def test_a_folder_and_its_images_in_memory_train_alike(tmp_path, monkeypatch):
    """The parts, whatever varies the task, and the numbers of a run."""
    monkeypatch.setenv("PRUNE_ENV_CACHE", str(tmp_path / "cache"))
    splits = trees.imagefolder(tmp_path / "images", per_class=20)
    own = Arrays(splits["train"], test=splits["test"], classes=("cat", "dog"), augment=True)
    settings: dict[str, Any] = {"label_noise": 0.2, "imbalance": 1.5, "duplicates": 0.1, "task_seed": 3}
    settings |= {"train_size": 20, "val_rest": True, "model": "convnet:2-2-2", "batch_size": 8, "budget": 2.0}
    folder = PruneEnv("imagefolder", root=str(tmp_path / "images"), **settings)
    memory = PruneEnv(own, **settings)
    assert memory.train_data.digest == folder.train_data.digest
    assert memory.val_data.digest == folder.val_data.digest
    assert data.load_test(own).digest == data.load_test("imagefolder", root=tmp_path / "images").digest
    assert same(play(memory, 0), play(folder, 0))
    assert same(play(PruneEnv(own, images="mapped", **settings), 0), play(folder, 0))


def test_given_validation_is_never_trained_on_and_the_task_varies_training_alone():
    own = own_digits()
    plain = data.load(own)
    for name, value in {"train_size": 50, "label_noise": 0.5, "imbalance": 5.0, "duplicates": 0.5}.items():
        varied: dict[str, Any] = {name: value}
        train, val = data.load(own, **varied)
        assert val.digest == plain[1].digest
        assert train.digest != plain[0].digest
        assert train.source.max() < 120
    train, val = data.load(own, train_size=50, val_rest=True)
    assert (len(train), len(val)) == (50, 260 + 70)


def test_images_are_resized():
    ramp = np.tile(np.arange(0, 256, 32, dtype=np.uint8), (30, 8, 1))
    train, _ = data.load(Arrays((ramp, LABELS)), image_size=4)
    # each pixel is a mean of its neighbours, symmetric inside
    np.testing.assert_allclose(train.images[0, 0, 1].numpy()[1:3], [80, 144], atol=1)
    assert train.images.shape[2:] == (4, 4)


@pytest.mark.parametrize("way", [copy.deepcopy, lambda own: pickle.loads(pickle.dumps(own))], ids=["copy", "pickle"])
@pytest.mark.parametrize("val", [None, (IMAGES[:4], LABELS[:4])])
def test_a_copy_is_the_same_data(way, val):
    own = Arrays((IMAGES, LABELS), val, (IMAGES[:5], LABELS[:5]), classes=("a", "b", "c"), augment=True)
    again = way(own)
    assert repr(again) == repr(own)
    assert repr(own) != repr(Arrays((IMAGES, LABELS), val, (IMAGES[:5], LABELS[1:6])))
    assert [part.digest for part in data.load(again)] == [part.digest for part in data.load(own)]
    assert data.load_test(again).digest == data.load_test(own).digest


def test_vector_envs_and_summaries_take_them():
    own = own_digits()
    settings: dict[str, Any] = {"dataset": own, "model": "mlp:4", "budget": 1.5}
    env = gym.make_vec("prune_env/Arrays-v0", num_envs=2, **{**settings, "dataset": [own, own]})
    env.reset(seed=3)
    _, rewards, *_ = env.step({name: np.stack([x] * 2) for name, x in select(np.ones(120)).items()})
    alone = PruneEnv(**settings)
    alone.reset(seed=3)
    assert rewards[0] == pytest.approx(alone.step(select(np.ones(120)))[1], abs=0.02)
    summary = gym.make("prune_env/ArraysSummary-v0", **settings)
    assert summary.reset(seed=0)[0].shape == summary.observation_space.shape
    with pytest.raises(ValueError, match=r"episodes here are of Arrays\(120 train, 260 val, 497 test"):
        summary.reset(options={"task": {"dataset": "digits", "lr_factor": 1.0}})


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"train": IMAGES}, "train is a ndarray"),
        ({"train": (IMAGES, LABELS[:5])}, "train has 30 images and 5 labels"),
        ({"train": (IMAGES, LABELS / 2)}, "labels of train are float64"),
        ({"train": (IMAGES, np.eye(3)[LABELS])}, "labels of train are float64"),
        ({"train": (IMAGES, LABELS + 1)}, r"labels of train go from 1 to 3 and lack 0; .* 0 to 2, .*numpy.unique"),
        ({"train": (IMAGES, LABELS * 2**60)}, "lack 1; .* 0 to 2"),  # as identifiers are; memory is not their measure
        ({"train": (IMAGES, LABELS), "classes": "abcd"}, "go from 0 to 2 and lack 3; .* 0 to 3"),
        ({"train": (IMAGES, LABELS), "test": (IMAGES, LABELS + 1)}, "labels of test go from 1 to 3"),
        ({"train": (IMAGES, LABELS), "val": (IMAGES, LABELS - 1)}, "labels of val go from -1 to 1"),
        ({"train": (IMAGES, LABELS), "val": (IMAGES[:, :1], LABELS)}, r"images of val are \(1, 8, 8\) each"),
        ({"train": (IMAGES[..., :5], LABELS)}, "H = W"),
        ({"train": (IMAGES / 255 - 0.5, LABELS)}, "float64 from -0.5 to 0.5; .* before any normalisation"),
        ({"train": (IMAGES.astype(np.int64), LABELS)}, "int64 from 0 to 255; they must be uint8"),
        ({"train": (IMAGES, LABELS), "classes": ("a", "b")}, "labels of train go from 0 to 2; there are the classes 0"),
    ],
)
def test_what_cannot_be_data_is_named(given, words):
    with pytest.raises((TypeError, ValueError), match=words):
        Arrays(**given)


def test_data_that_are_not_there_are_named():
    with pytest.raises(ValueError, match=r"unknown data set 'arrays'.*dataset=prune_env.data.Arrays"):
        gym.make("prune_env/Arrays-v0")
    with pytest.raises(TypeError, match=r"dataset is a tuple; it must be .* prune_env.data.Arrays\(train="):
        PruneEnv((IMAGES, LABELS))  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match=r"no test split.*Arrays\(test=\)"):
        data.load_test(Arrays((IMAGES, LABELS)))
