"""Wherever images are kept, the numbers are the same; they are read once a process, and decoded once a machine."""

import os
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from prune_env import PruneEnv, select
from prune_env.data import cache as cached
from prune_env.data import decode, load, sources, storage
from prune_env.data.sources import read
from prune_env.data.storage import AHEAD, KINDS, Mapped
from tests.helpers import processes, trees

KNOBS: dict[str, Any] = {"train_size": 60, "label_noise": 0.2, "imbalance": 2.0, "duplicates": 0.2, "task_seed": 3}
KNOBS |= {"corrupted": 0.4}


@pytest.fixture(scope="module")
def envs(tmp_path_factory) -> Iterator[dict[str, PruneEnv]]:
    """The same task, with its images in each place."""
    root = tmp_path_factory.mktemp("tree")
    trees.imagefolder(root, ("a", "b", "c"), per_class=40, size=16)
    settings: dict[str, Any] = {"image_size": 16, "model": "convnet:4-4-4", "batch_size": 11, "budget": 4.0, **KNOBS}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PRUNE_ENV_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield {kind: PruneEnv("imagefolder", root=str(root), images=kind, **settings) for kind in KINDS}


@pytest.fixture
def decoded(monkeypatch) -> list:
    """Paths of the images that were decoded."""
    paths, square = [], decode.square
    monkeypatch.setattr(decode, "square", lambda path, size: (paths.append(path), square(path, size))[1])
    return paths


def test_digests_and_moments_do_not_depend_on_the_place(envs):
    for part in ("train_data", "val_data"):
        device, mapped = (getattr(envs[kind], part) for kind in KINDS)
        assert isinstance(mapped.images, Mapped)
        assert device.digest == mapped.digest
        pixels = device.images.double().numpy()
        for found in (device, mapped):
            np.testing.assert_allclose(found.moments[0], pixels.mean((0, 2, 3)), rtol=1e-6)
            np.testing.assert_allclose(found.moments[1], pixels.std((0, 2, 3)), rtol=1e-6)


def test_batches_are_those_of_images_on_the_device(envs):
    ours, theirs = envs["mapped"].train_data, envs["device"].train_data
    order = torch.randperm(2 * len(ours), generator=torch.Generator().manual_seed(0)) % len(ours)  # each one twice
    for sizes in ([7] * 17 + [1], [120], [40] * 3, [0, 119, 0, 1]):
        parts = order.split(sizes)
        for one, same in zip(ours.batches(parts), theirs.batches(parts), strict=True):
            assert torch.equal(one[0], same[0])
            assert torch.equal(one[1], same[1])
    for index in (-1, len(ours)):
        with pytest.raises(IndexError):
            ours.batch(torch.tensor([index]))


def test_an_episode_is_the_same_bit_for_bit_and_goes_on_in_another_place(envs):
    """With mixup, for which two passes over the images go side by side, and scoring."""
    rng = np.random.default_rng(0)
    n = len(envs["device"].train_data)
    actions = [
        select(rng.random(n) * (rng.random(n) < 0.6), 0.3 * (rng.random(n) < 0.5), rng.random(n) < 0.3)
        for _ in range(3)
    ]
    seen = []
    for first, then in (("device", "device"), ("mapped", "mapped"), ("mapped", "device"), ("device", "mapped")):
        envs[first].reset(seed=1)
        envs[first].step(actions[0])
        envs[then].load_state_dict(envs[first].state_dict())
        steps = [envs[then].step(action) for action in actions[1:]]
        trainer = envs[then].trainer
        assert trainer is not None
        weights = [weight.numpy().copy() for weight in trainer.model.state_dict().values()]
        seen.append([*(step[0][name] for step in steps for name in step[0]), *(step[1] for step in steps), *weights])
    for other in seen[1:]:
        for one, same in zip(other, seen[0], strict=True):
            np.testing.assert_array_equal(one, same)


def test_a_thread_reads_ahead_and_ends_with_the_iterator(tmp_path, monkeypatch):
    trees.imagefolder(tmp_path, per_class=40, size=8)
    train, _ = load("imagefolder", root=tmp_path, image_size=8, images="mapped")
    gathered, gather = [], Mapped._gather
    monkeypatch.setattr(Mapped, "_gather", lambda *args: (gather(*args), gathered.append(1)))
    before = threading.active_count()
    batches = train.batches(torch.arange(70).split(2))
    for served in range(1, 5):
        next(batches)
        processes.until(lambda wanted=served + AHEAD: len(gathered) == wanted)
    del batches
    processes.until(lambda: threading.active_count() == before)


@pytest.mark.parametrize(("kind", "error"), [("host", ValueError), ("", ValueError), (None, TypeError)])
def test_an_unknown_place_is_named(kind, error):
    with pytest.raises(error, match=r"images is"):
        load("digits", images=kind)


def test_auto_takes_the_device_if_training_and_validation_fit(tmp_path, monkeypatch):
    trees.imagefolder(tmp_path, size=8)
    for room, mapped in ((20 * 3 * 8 * 8, False), (20 * 3 * 8 * 8 - 1, True)):
        monkeypatch.setattr(storage, "room", lambda _, room=room: room)
        train, _ = load("imagefolder", root=tmp_path, image_size=8)
        assert isinstance(train.images, Mapped) == mapped


def test_the_facts_of_mapped_images_are_taken_once(tmp_path, cache, monkeypatch):
    trees.imagefolder(tmp_path, size=8)
    digest = load("imagefolder", root=tmp_path, image_size=8)[0].digest
    load("imagefolder", root=tmp_path, image_size=8, images="mapped")[0].moments  # noqa: B018
    monkeypatch.setattr(Mapped, "batches", lambda *_: pytest.fail("a second pass"))
    assert load("imagefolder", root=tmp_path, image_size=8, images="mapped")[0].digest == digest


# ---------------------------------------------------------------- once a process, once a machine


def test_a_split_is_read_once_a_process_and_cannot_be_written(tmp_path, monkeypatch):
    trees.imagefolder(tmp_path)
    first = read("imagefolder", "train", tmp_path, False, None)
    monkeypatch.setattr(os, "walk", lambda *_, **__: pytest.fail("the folder is walked again"))
    assert read("imagefolder", "train", tmp_path, False, 32) is first
    with pytest.raises(ValueError, match="read-only"):
        first.images[0] = 0


def test_a_new_process_notices_changes_and_decodes_nothing_else(tmp_path, decoded, cache):
    images = trees.imagefolder(tmp_path)["train"][0].copy()
    changed = tmp_path / "train" / "cat" / "00003.png"

    def read_train() -> tuple[np.ndarray, int]:
        sources.forget()  # as in a new process
        decoded.clear()
        return read("imagefolder", "train", tmp_path, False, None).images, len(decoded)

    assert [read_train()[1] for _ in range(2)] == [20, 0]
    images[3] = 255 - images[3]
    trees.write_png(changed, images[3])
    found, count = read_train()
    np.testing.assert_array_equal(found, images)
    assert count == 20
    changed.unlink()
    found, count = read_train()
    np.testing.assert_array_equal(found, np.delete(images, 3, axis=0))
    assert (count, read_train()[1]) == (19, 0)
    assert len(list(cache.glob("*.npy"))) == 1  # those of former states are gone


def test_a_cache_that_cannot_be_written_says_what_to_do_and_leaves_no_half_of_a_file(tmp_path, cache, monkeypatch):
    trees.imagefolder(tmp_path)
    words = "cannot write the decoded images to .*: make room there, or set PRUNE_ENV_CACHE to another folder"
    with processes.full_disk(20_000), pytest.raises(OSError, match=words):
        read("imagefolder", "train", tmp_path, False, None)
    assert {path.suffix for path in cache.iterdir()} == {".lock"}
    monkeypatch.setenv("PRUNE_ENV_CACHE", str(tmp_path / "train" / "cat" / "00000.png"))
    with pytest.raises(OSError, match=words):
        read("imagefolder", "train", tmp_path, False, None)


def test_two_processes_decode_once(tmp_path, cache):
    trees.imagefolder(tmp_path, per_class=20)

    def work():
        counted, write = [], cached._write
        cached._write = lambda *args: (counted.append(1), write(*args))
        read("imagefolder", "train", tmp_path, False, None)
        (tmp_path / f"wrote-{os.getpid()}").write_text(str(len(counted)))

    started = [processes.fork(work) for _ in range(2)]
    assert [processes.wait(one) for one in started] == [0, 0]
    assert sum(int(path.read_text()) for path in tmp_path.glob("wrote-*")) == 1
