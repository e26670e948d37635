"""ImageNet in its official layout, folders and archives; made up, and tiny."""

from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from torchvision.datasets import ImageNet
from torchvision.datasets import imagenet as official

from prune_env import select
from prune_env.data import load, load_test
from prune_env.data.decode import square
from prune_env.data.sources import get, read
from prune_env.io import DamagedFile
from prune_env.students.recipes import Recipe, tuned
from tests.helpers import trees
from tests.helpers.trees import assert_holds


@pytest.fixture
def root(tmp_path) -> Path:
    return tmp_path / "imagenet"


def test_folders(root):
    assert_holds("imagenet", root, trees.imagenet(root), image_size=40)
    assert read("imagenet", "train", root, False, 40).classes == trees.WNIDS
    train, validation = load("imagenet", root=root)
    assert train.images.shape == (29, 3, 224, 224)
    assert len(validation) == 1  # 2 % of 30
    assert load_test("imagenet", root=root).images.shape == (30, 3, 224, 224)


def test_archives_are_unpacked_when_that_is_asked_for(root, monkeypatch):
    splits = trees.imagenet_archives(root, monkeypatch)
    archives = set(root.iterdir())
    for read_split in (load, load_test):
        with pytest.raises(FileNotFoundError, match=r"train\.tar is packed: pass download=True"):
            read_split("imagenet", root=root)
    load("imagenet", root=root, download=True, image_size=40)
    assert_holds("imagenet", root, splits, image_size=40)
    assert {path.name for path in set(root.iterdir()) - archives} == {"train", "val", ".imagenet.lock"}


def test_labels_are_those_of_torchvision(root, monkeypatch):
    trees.imagenet_archives(root, monkeypatch)
    load("imagenet", root=root, download=True, image_size=40)
    for ours, theirs in (("train", "train"), ("test", "val")):
        found, expected = read("imagenet", ours, root, False, 40), ImageNet(root, theirs)
        assert found.labels.tolist() == expected.targets
        assert found.classes == tuple(expected.wnids)
        np.testing.assert_array_equal(found.images, [square(Path(path), 40) for path, _ in expected.imgs])


@pytest.mark.parametrize(("name", "damage"), [("train", "a byte"), ("val", "a byte"), ("devkit", "gone")])
def test_a_damaged_archive_is_named_and_leaves_nothing(root, monkeypatch, name, damage):
    trees.imagenet_archives(root, monkeypatch)
    path = root / official.ARCHIVE_META[name][0]
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    if damage == "gone":
        path.unlink()
    with pytest.raises(DamagedFile, match=path.name):
        load_test("imagenet", root=root, download=True, image_size=40)
    assert name not in {path.name for path in root.iterdir() if path.is_dir()}


def test_the_usual_recipe():
    recipe = Recipe(**tuned("imagenet", None, 90.0).values)
    assert (recipe.model, recipe.batch_size, recipe.lr) == ("torchvision:resnet50", 256, 0.1)
    assert (recipe.weight_decay, recipe.momentum) == (1e-4, 0.9)
    assert get("imagenet").image_size == 224


@pytest.mark.slow
def test_a_step_of_the_default_student(root):
    trees.imagenet(root)
    env = gym.make("prune_env/ImageNet-v0", root=str(root), images="mapped", batch_size=10)
    env.reset(seed=0)
    *_, info = env.step(select(np.ones(29, bool)))
    assert info["trained"] == 29
    assert np.isfinite(info["val_loss"])
    assert torch.get_num_threads() == 1
