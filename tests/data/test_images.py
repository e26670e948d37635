"""Wherever images are kept, the numbers are the same, nothing is left behind, and damage is noticed."""

import gc
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from PIL import Image

from prune_env import PruneEnv, io, select
from prune_env.data import Data, load, load_test, mapped, residence, workers
from prune_env.data.images import AHEAD, Images, Threads
from prune_env.data.residence import KINDS, choose
from prune_env.io import DamagedFile
from tests.helpers import processes, trees

GIB = 2**30
# what workers are forked from: torch is imported there once, and not in each of them
multiprocessing.set_forkserver_preload(["prune_env.data.workers", "train.execution.program"])
STATE, PIXELS = 89, 89 + 64 + 64  # where they begin in a mapped file
KNOBS: dict[str, Any] = {"train_size": 60, "label_noise": 0.2, "imbalance": 2.0, "duplicates": 0.2, "task_seed": 3}
ELSEWHERE = ("host", "mapped", "files")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("PRUNE_ENV_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(residence, "cores", lambda: 1)
    return tmp_path / "cache" / "decoded"


@pytest.fixture(scope="module")
def envs(tmp_path_factory) -> Iterator[dict[str, PruneEnv]]:
    """The same task, with its images in each place."""
    root = tmp_path_factory.mktemp("tree")
    trees.imagefolder(root, ("a", "b", "c"), per_class=40, size=16)
    settings: dict[str, Any] = {"image_size": 16, "model": "convnet:4-4-4", "batch_size": 11, "budget": 4.0, **KNOBS}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PRUNE_ENV_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setattr(residence, "cores", lambda: 1)
        yield {kind: PruneEnv("imagefolder", root=str(root), images=kind, **settings) for kind in KINDS}


# ---------------------------------------------------------------- the same numbers


def test_digests_and_moments_do_not_depend_on_the_place(envs):
    for part in ("train_data", "val_data"):
        first, *others = (getattr(env, part) for env in envs.values())
        assert isinstance(first.images, torch.Tensor)
        for other in others:
            assert isinstance(other.images, Images)
            assert other.images.shape == tuple(first.images.shape)
            assert other.digest == first.digest
            for name in ("labels", "source", "wrong"):
                assert torch.equal(getattr(first, name), getattr(other, name))
            for one, same in zip(first.moments, other.moments, strict=True):
                assert torch.equal(one, same)


@pytest.mark.parametrize("kind", ELSEWHERE)
def test_batches_are_those_of_images_on_the_device(envs, kind):
    ours, theirs = envs[kind].train_data, envs["device"].train_data
    order = torch.randperm(2 * len(ours), generator=torch.Generator().manual_seed(0)) % len(ours)  # each one twice
    for sizes in ([7] * 17 + [1], [120], [40] * 3, [1] * 3 + [117]):
        parts = order.split(sizes)
        found, expected = list(ours.batches(parts)), list(theirs.batches(parts))
        assert len(found) == len(sizes)
        for one, same in zip(found, expected, strict=True):
            assert one[0].dtype == torch.uint8
            assert torch.equal(one[0], same[0])
            assert torch.equal(one[1], same[1])
    assert torch.equal(ours.batch(order[:5])[0], theirs.batch(order[:5])[0])
    parts = [order[:0], order[:3], order[:0]]  # a rank may have no row of a batch
    assert [images.shape[1:] for images, _ in ours.batches(parts)] == [(3, 16, 16)] * 3
    assert ours.batch(order[:0])[0].shape == (0, 3, 16, 16)


def test_an_episode_is_the_same_bit_for_bit(envs):
    """With mixup, for which two passes over the images go side by side, and scoring."""
    seen: dict[str, list] = {}
    for kind, env in envs.items():
        rng = np.random.default_rng(0)
        steps = [env.reset(seed=1)]
        while not steps[-1][-1].get("finished"):
            n = len(env.train_data)
            action = select(rng.random(n) * (rng.random(n) < 0.6), 0.3 * (rng.random(n) < 0.5), rng.random(n) < 0.3)
            steps.append(env.step(action))
        assert env.trainer is not None
        seen[kind] = [*steps, env.trainer.model.state_dict(), env.trainer.optimizer.state_dict()["state"]]
    for kind in ELSEWHERE:
        assert_equal(seen[kind], seen["device"])


def assert_equal(one: Any, other: Any) -> None:
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        one, other = list(one.values()), list(other.values())
    if isinstance(one, list | tuple):
        assert len(one) == len(other)
        for a, b in zip(one, other, strict=True):
            assert_equal(a, b)
    elif isinstance(one, torch.Tensor):
        assert torch.equal(one, other)
    else:
        np.testing.assert_array_equal(one, other)


def test_a_run_goes_on_where_its_images_are_in_another_place(envs):
    action = select(np.ones(len(envs["device"].train_data), bool))
    seen = {}
    for there, here in (("device", "mapped"), ("mapped", "host"), ("host", "device")):
        envs[there].reset(seed=2)
        envs[there].step(action)
        envs[here].load_state_dict(envs[there].state_dict())
        seen[here] = envs[here].step(action)
    assert_equal(seen["mapped"], seen["host"])
    assert_equal(seen["mapped"], seen["device"])


@pytest.mark.parametrize("kind", KINDS)
def test_frames_show_the_images(envs, kind):
    env = envs[kind]
    env.render_mode = "rgb_array"
    env.reset(seed=0)
    env.step(select(np.arange(30), n=len(env.train_data)))
    frame = env.render()
    env.render_mode = None
    env.reset(seed=0)
    envs["device"].render_mode = "rgb_array"
    envs["device"].reset(seed=0)
    envs["device"].step(select(np.arange(30), n=len(env.train_data)))
    np.testing.assert_array_equal(frame, envs["device"].render())
    envs["device"].render_mode = None


@pytest.mark.parametrize("kind", ELSEWHERE)
def test_the_test_split_too(tmp_path, kind):
    trees.imagefolder(tmp_path, per_class=4, size=8)
    there, resident = (load_test("imagefolder", root=tmp_path, images=k) for k in (kind, "device"))
    assert there.digest == resident.digest
    every = torch.arange(8)
    assert torch.equal(there.batch(every)[0], resident.batch(every)[0])
    moved = there.to("cpu")
    assert moved.images is there.images
    assert torch.equal(moved.batch(every)[1], resident.labels)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("index", [-1, 10_000])
def test_nothing_but_its_own_images_can_be_reached(envs, kind, index):
    for part in (envs[kind].train_data, envs[kind].val_data):
        index = len(part) if index > 0 else index
        with pytest.raises((IndexError, RuntimeError), match=r"index|indices"):
            list(part.batches([torch.tensor([0]), torch.tensor([index])]))


@pytest.mark.parametrize("kind", ["host", "auto"])
def test_what_is_in_memory_anyway_can_be_kept_there(kind):
    resident, there = load("digits", images="device", **KNOBS)[0], load("digits", images=kind, **KNOBS)[0]
    assert there.digest == resident.digest
    assert torch.equal(there.batch(torch.arange(60))[0], resident.images)
    assert isinstance(there.images, Images) == (kind == "host")


# ---------------------------------------------------------------- nothing is left behind


@pytest.fixture
def left_behind():
    """Threads and processes that there were not before."""

    def there() -> set[Any]:
        return {*threading.enumerate(), *multiprocessing.active_children()}

    gc.collect()
    before = there()
    return lambda: there() - before


def fail_in(batches: Iterator) -> None:
    for _ in batches:
        raise KeyError("in the epoch")


@pytest.mark.parametrize("kind", ELSEWHERE)
def test_an_iterator_that_is_let_go_of_leaves_nothing_behind(tmp_path, kind, left_behind):
    trees.imagefolder(tmp_path, per_class=40, size=8)
    train, _ = load("imagefolder", root=tmp_path, image_size=8, images=kind)
    parts = torch.arange(len(train)).split(2)
    batches = train.batches(parts)
    next(batches)
    assert left_behind()
    del batches
    processes.until(lambda: not left_behind())

    with pytest.raises(KeyError):
        fail_in(train.batches(parts))
    processes.until(lambda: not left_behind())
    assert len(list(train.batches(parts))) == 36  # and another one works
    assert bool(left_behind()) == (kind == "files")  # kept for the next epoch
    del train, _
    processes.until(lambda: not left_behind())


def test_threads_read_ahead_and_no_further():
    read: list[int] = []
    reader = Threads((1,), lambda rows, into: read.append(int(rows[0])))
    batches = reader([np.array([row]) for row in range(100)], torch.device("cpu"))
    for served in range(1, 20):
        next(batches)
        processes.until(lambda wanted=served + AHEAD: len(read) == wanted)
    assert read == sorted(read)


# ---------------------------------------------------------------- damage


def test_a_file_that_is_damaged_meanwhile_is_named_and_ends_the_epoch(tmp_path, left_behind):
    trees.imagefolder(tmp_path, per_class=20, size=8)
    env = PruneEnv("imagefolder", root=str(tmp_path), image_size=8, model="mlp:4", batch_size=4, images="files")
    env.reset(seed=0)
    path = tmp_path / "train" / "dog" / "00030.png"
    good = path.read_bytes()
    path.write_bytes(good[:50])
    everything = select(np.ones(len(env.train_data), bool))
    with pytest.raises(ValueError, match=rf"^cannot decode the image {path}: ") as caught:
        env.step(everything)
    assert "Traceback" not in str(caught.value)
    processes.until(lambda: not left_behind())  # while the error is looked at
    path.write_bytes(good)
    env.reset(seed=0)
    env.step(everything)


@pytest.fixture
def tree(tmp_path) -> tuple[Path, torch.Tensor]:
    """The root of some images, and what training has of them."""
    trees.imagefolder(tmp_path / "tree", per_class=10, size=8)
    return tmp_path / "tree", load("imagefolder", root=tmp_path / "tree", image_size=8)[0].images


def everything(part: Data) -> torch.Tensor:
    return torch.cat([images for images, _ in part.batches(torch.arange(len(part)).split(4))])


def mapped_train(root: Path) -> Data:
    return load("imagefolder", root=root, image_size=8, images="mapped")[0]


def rows_file(cache: Path) -> Path:
    (path,) = cache.glob("*.rows")
    return path


@pytest.fixture
def decoded(monkeypatch) -> list[Path]:
    """Images that are decoded for the mapped file."""
    paths: list[Path] = []
    block, single = mapped.decode, mapped.square
    monkeypatch.setattr(mapped, "decode", lambda files, size: (paths.extend(files), block(files, size))[1])
    monkeypatch.setattr(mapped, "square", lambda file, size: (paths.append(file), single(file, size))[1])
    return paths


def test_a_mapped_file_is_made_once_and_read_through_once(tree, cache, decoded, monkeypatch):
    root, expected = tree
    assert torch.equal(everything(mapped_train(root)), expected)
    assert len(decoded) == 20
    before = {path: path.read_bytes() for path in cache.iterdir()}
    monkeypatch.setattr(Images, "batches", None)  # no pass over the images
    mapped_train(root)
    assert len(decoded) == 20
    assert {path: path.read_bytes() for path in cache.iterdir()} == before


@pytest.mark.parametrize("share", [0.1, 0.35, 0.6, 0.8])
@pytest.mark.parametrize("when", ["in use", "opened"])
def test_a_flipped_byte_of_an_image_is_noticed_when_it_is_read_and_put_right(tree, cache, decoded, share, when):
    root, expected = tree
    train = mapped_train(root)
    path = rows_file(cache)
    good = path.read_bytes()
    row = int(20 * share)
    path.write_bytes(changed_at(good, PIXELS + row * 192 + 100))
    decoded.clear()
    if when == "opened":
        train = mapped_train(root)
    with pytest.warns(UserWarning, match=rf"{path} is damaged at the image .*/{row:05d}.png, which is decoded again"):
        assert torch.equal(everything(train), expected)
    assert [one.name for one in decoded] == [f"{row:05d}.png"]
    assert path.read_bytes() == good
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(everything(mapped_train(root)), expected)


def test_a_damaged_image_whose_file_is_another_by_now_is_named(tree, cache):
    root, _ = tree
    train = mapped_train(root)
    path, changed = rows_file(cache), root / "train" / "cat" / "00002.png"
    path.write_bytes(changed_at(path.read_bytes(), PIXELS + 2 * 192))
    trees.write_png(changed, np.zeros((3, 8, 8), np.uint8))
    with pytest.raises(DamagedFile, match=rf"{path} is damaged at the image {changed}, which is another by now"):
        everything(train)
    changed.write_bytes(b"")
    with pytest.raises(ValueError, match=f"cannot decode the image {changed}"):
        everything(train)


@pytest.mark.parametrize(
    "position",
    [0, 30, 88, STATE, STATE + 63, STATE + 64, PIXELS - 1, -1, -40, "truncated", "longer", "half a head", "empty"],
)
def test_a_mapped_file_with_damaged_checksums_is_made_anew(tree, cache, decoded, position):
    root, expected = tree
    mapped_train(root)
    path = rows_file(cache)
    good = path.read_bytes()
    bad = {"truncated": good[:-1], "longer": good + b"x", "half a head": good[:100], "empty": b""}.get(position)
    path.write_bytes(bad if bad is not None else changed_at(good, position % len(good)))
    decoded.clear()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert torch.equal(everything(mapped_train(root)), expected)
    assert len(decoded) == 20
    assert path.read_bytes() == good
    assert any(str(path) in str(one.message) for one in caught)


def changed_at(content: bytes, position: int) -> bytes:
    return content[:position] + bytes([content[position] ^ 4]) + content[position + 1 :]


def test_other_images_make_another_mapped_file(tree, cache, decoded):
    root, _ = tree
    mapped_train(root)
    trees.write_png(root / "train" / "dog" / "z.png", trees.random_images(1, 8, 9)[0])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train = mapped_train(root)
    assert len(decoded) == 20 + 21
    assert torch.equal(everything(train), load("imagefolder", root=root, image_size=8)[0].images)
    assert rows_file(cache).stat().st_size < 22 * 200


@pytest.mark.parametrize("kind", ["mapped", "files"])
def test_what_is_known_of_the_images_is_made_anew_when_it_is_damaged(tree, cache, kind):
    root, _ = tree

    def facts():
        parts = load("imagefolder", root=root, image_size=8, images=kind)
        return [(part.digest, cast(Images, part.images).sums.tolist()) for part in parts]

    good = facts()
    for path in cache.glob("*.content"):
        path.write_bytes(changed_at(path.read_bytes(), 150))
    with pytest.warns(UserWarning, match="the cache is built anew: .* is damaged"):
        assert facts() == good
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert facts() == good


@pytest.mark.parametrize("at", ["one", "many"])
def test_an_image_that_changed_unseen_since_its_digest_was_taken_is_named(tmp_path, at):
    """A bit flips on the disk, and the file has its time and its size still; BMP has no checksum."""
    trees.imagefolder(tmp_path, per_class=10, size=8)
    for path in tmp_path.rglob("*.png"):
        Image.open(path).save(path.with_suffix(".bmp"))
        path.unlink()

    def train() -> Data:
        return load("imagefolder", root=tmp_path, image_size=8, images="files")[0]

    def parts(data: Data) -> list[torch.Tensor]:
        return [torch.arange(len(data))] if at == "one" else list(torch.arange(len(data)).split(5))

    first = train()
    good = [images for images, _ in first.batches(parts(first))]
    changed = sorted((tmp_path / "train").rglob("*.bmp"))[int(first.source[7])]
    content, times = changed.read_bytes(), os.stat(changed)
    changed.write_bytes(changed_at(content, len(content) - 9))
    os.utime(changed, ns=(times.st_atime_ns, times.st_mtime_ns))
    for data in (first, train()):
        assert data.digest == first.digest
        with pytest.raises(DamagedFile, match=f"the image {changed} is another than when the digest"):
            list(data.batches(parts(data)))
    changed.write_bytes(content)
    os.utime(changed, ns=(times.st_atime_ns, times.st_mtime_ns))
    data = train()
    for (images, _), expected in zip(data.batches(parts(data)), good, strict=True):
        assert torch.equal(images, expected)


@pytest.fixture
def public(monkeypatch) -> Iterator[Path]:
    """A folder where everybody may look, for tests as another user."""
    folder = Path(processes.public_folder())
    monkeypatch.setenv("PRUNE_ENV_CACHE", str(folder / "cache"))
    trees.imagefolder(folder / "root", per_class=10, size=8)
    (folder / "cache" / "decoded").mkdir(parents=True)
    yield folder
    shutil.rmtree(folder)


def test_a_cache_that_is_read_only(public):
    with processes.others_folder(public / "cache" / "decoded"):
        with pytest.raises(PermissionError, match=r"cannot put .*rows into .*/cache/decoded: .*another folder"):
            mapped_train(public / "root")
        with pytest.warns(UserWarning, match="the images are read through again next time: cannot write"):
            load("imagefolder", root=public / "root", image_size=8, images="files")
        assert residence.free_disk(public / "cache" / "decoded" / "deeper") == 0  # so it is not chosen
    expected = everything(mapped_train(public / "root"))
    path = rows_file(public / "cache" / "decoded")
    path.write_bytes(changed_at(path.read_bytes(), PIXELS + 2 * 192))
    with processes.others_folder(public / "cache" / "decoded"), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert torch.equal(everything(mapped_train(public / "root")), expected)
    assert len(caught) == 1
    assert "decoded again" in str(caught[0].message)


def test_a_disk_that_fills_up_leaves_no_half_of_a_file(tree, cache):
    root, _ = tree
    before = set(cache.iterdir())
    with processes.full_disk(3000), pytest.raises(OSError, match=r"cannot put .*rows into .*File too large; make room"):
        mapped_train(root)
    assert {path.suffix for path in set(cache.iterdir()) - before} == {".lock"}


def test_two_processes_make_one_mapped_file(tmp_path, cache, monkeypatch):
    trees.imagefolder(tmp_path / "tree", per_class=10, size=8)
    block = mapped.decode

    def slow(files: list[Path], size: int) -> np.ndarray:
        with (tmp_path / "decoded").open("a") as file:
            file.write("x\n")
        time.sleep(0.5)
        return block(files, size)

    monkeypatch.setattr(mapped, "decode", slow)
    both = [processes.fork(lambda: mapped_train(tmp_path / "tree")) for _ in range(2)]
    assert [processes.wait(one) for one in both] == [0, 0]
    assert (tmp_path / "decoded").read_text() == "x\n"
    assert mapped_train(tmp_path / "tree").digest == load("imagefolder", root=tmp_path / "tree", image_size=8)[0].digest


def test_an_old_lock_is_left_to_those_who_wait_for_it(tree, cache):
    """Another process would lock a new file of that name, and come in beside."""
    root, _ = tree
    mapped_train(root)
    path = rows_file(cache)
    path.unlink()
    (lock,) = cache.glob(".*.rows.lock")
    os.utime(lock, (0, 0))
    before = lock.stat().st_ino
    mapped_train(root)
    assert lock.stat().st_ino == before


@pytest.mark.parametrize("locks", [True, False])
def test_what_a_killed_writer_of_a_mapped_file_left_goes_at_once_where_a_lock_tells(
    tmp_path, cache, monkeypatch, locks
):
    trees.imagefolder(tmp_path / "tree", per_class=10, size=8)
    if not locks:
        monkeypatch.setattr(io, "fcntl", None)

    def dies_while_it_writes():
        os.fsync = lambda _: os.kill(os.getpid(), signal.SIGKILL)
        mapped_train(tmp_path / "tree")

    assert processes.wait(processes.fork(dies_while_it_writes)) == -signal.SIGKILL
    (left,) = (path for path in cache.glob(".*.rows.*") if path.suffix != ".lock")
    mapped_train(tmp_path / "tree")
    assert left.exists() != locks  # else it may be in the writing
    rows_file(cache).unlink()
    if not locks:
        os.utime(left, (0, 0))
        mapped_train(tmp_path / "tree")
        assert not left.exists()


def test_what_a_killed_writer_of_what_is_known_left_is_removed_after_a_day(tree, cache):
    root, _ = tree
    mapped_train(root)
    known = list(cache.glob("*.content"))
    left = [path.with_name(f".{path.name}.{'a' * 32}") for path in known]
    assert len(known) == 2
    for path in (*known, *left):
        path.write_bytes(b"half")
    os.utime(left[0], (0, 0))
    with pytest.warns(UserWarning, match="the cache is built anew"):
        mapped_train(root)
    assert [path.exists() for path in left] == [False, True]


# ---------------------------------------------------------------- the choice


@pytest.mark.parametrize(
    ("held", "split", "device", "host", "disk", "expected"),
    [
        (1, 2, 4, 8, 0, "device"),
        (4, 4, 8, 16, 0, "device"),  # exactly half of the device
        (5, 5, 8, 16, 9, "host"),
        (4, 7, 8, 16, 9, "mapped"),  # would fit on the device, but it cannot be decoded in memory
        (1, 100, 80, 24, 100, "files"),
        (1, 100, 80, 24, 120, "mapped"),
        (5, 6, None, 15, 0, "device"),  # on a CPU that is the host's memory
        (5, 6, None, 14, 7, "mapped"),
        (5, 6, None, 14, 6, "files"),
        (192, 192, 78, 2000, 0, "host"),  # ImageNet on a large machine with one H100
        (192, 192, 78, 128, 60, "files"),
        (192, 192, 78, 128, 1000, "mapped"),
    ],
)
def test_the_choice_by_hand(held, split, device, host, disk, expected):
    scaled = (held * GIB, split * GIB, None if device is None else device * GIB, host * GIB, disk * GIB)
    assert choose(*scaled) == expected


def reader_of(part: Data) -> object:
    return cast(Images, part.images)._reader


@pytest.mark.parametrize(
    ("memory", "disk", "kind"), [(None, None, "device"), (100, None, "mapped"), (100, 100, "files")]
)
def test_auto_asks_the_machine(tree, monkeypatch, memory, disk, kind):
    root, expected = tree
    if memory is not None:
        monkeypatch.setattr(residence, "free_memory", lambda: memory)
    if disk is not None:
        monkeypatch.setattr(residence, "free_disk", lambda folder: disk)
    train, _ = load("imagefolder", root=root, image_size=8)
    if kind == "device":
        assert isinstance(train.images, torch.Tensor)
    else:
        assert isinstance(reader_of(train), {"mapped": Threads, "files": workers.Workers}[kind])
    assert torch.equal(everything(train), expected)


def test_a_mapped_file_that_is_there_needs_no_room(tree, monkeypatch):
    root, _ = tree
    mapped_train(root)
    monkeypatch.setattr(residence, "free_memory", lambda: 0)
    monkeypatch.setattr(residence, "free_disk", lambda folder: 1000)
    assert isinstance(reader_of(load("imagefolder", root=root, image_size=8)[0]), Threads)


def test_what_the_machine_tells_is_plausible(tmp_path):
    assert 2**26 < residence.free_memory() < 2**46


def group(folder: Path, **content: str | int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in content.items():
        (folder / f"memory.{name}").write_text(f"{value}\n")


@pytest.mark.parametrize(
    ("line", "left"),
    [
        ("0::/job/step", 700 - 450 + 50),  # the job's limit is below that of its step
        ("0::/job", 300),
        ("0::/", sys.maxsize),
        ("0::/somewhere/else", sys.maxsize),  # as in a container, but with no limit at the top
        ("4:memory:/job", 500 - 600 + 40),
        ("4:memory:/another", 2000 - 100),
        ("3:cpuset:/job", sys.maxsize),
    ],
)
def test_control_groups_limit_what_is_free(tmp_path, monkeypatch, line, left):
    (tmp_path / "proc" / "self").mkdir(parents=True)
    (tmp_path / "proc" / "self" / "cgroup").write_text(f"9:pids:/x:y\n{line}\n")
    two, one = tmp_path / "sys/fs/cgroup", tmp_path / "sys/fs/cgroup/memory"
    group(two / "job", max=700, current=450, stat="active_file 9\ninactive_file 50")
    group(two / "job" / "step", max=1000, current=400, stat="inactive_file 0")
    group(one, limit_in_bytes=2000, usage_in_bytes=100, stat="total_inactive_file 0")
    group(one / "job", limit_in_bytes=500, usage_in_bytes=600, stat="inactive_file 7\ntotal_inactive_file 40")
    assert residence.group_memory(tmp_path) == max(0, left)
    monkeypatch.setattr(residence, "group_memory", lambda: 1000)
    assert residence.free_memory() == 1000


def test_without_control_groups_there_is_no_limit(tmp_path):
    assert residence.group_memory(tmp_path) == sys.maxsize
    assert 0 < residence.free_disk(tmp_path / "not" / "there") <= shutil.disk_usage(tmp_path).total
    assert residence.free_on(torch.device("cpu")) is None


def test_processes_of_torchrun_share_the_machine(monkeypatch):
    monkeypatch.undo()  # of the single core that other tests are given
    alone, alone_cores = residence.free_memory(), residence.cores()
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert residence.free_memory() == pytest.approx(alone / 4, rel=0.2)
    assert residence.cores() == max(1, alone_cores // 4)


@pytest.mark.parametrize(("kind", "error"), [("gpu", ValueError), ("", ValueError), (None, TypeError), (3, TypeError)])
def test_an_unknown_place_is_named(kind, error):
    with pytest.raises(error, match=r"images is"):
        load("digits", images=kind)
    with pytest.raises(error, match=r"images is"):
        PruneEnv(images=kind)


@pytest.mark.parametrize("kind", ["mapped", "files"])
@pytest.mark.parametrize("name", ["digits", "cifar10"])
def test_what_has_no_image_files_is_refused(tmp_path, monkeypatch, kind, name):
    trees.cifar10(tmp_path, monkeypatch)
    with pytest.raises(ValueError, match=rf"images='{kind}' is for image files, and '{name}' has none: use auto"):
        load(name, root=tmp_path, images=kind)


# ---------------------------------------------------------------- memory

MEASURE = """
import sys, threading, time, torch
from pathlib import Path
from prune_env.data import load

def anonymous():
    lines = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines["RssAnon"].split()[0])

def watch():
    global peak
    while True:
        peak = max(peak, anonymous())
        time.sleep(0.002)

if __name__ == "__main__":
    torch.set_num_threads(1)
    from prune_env.data.sources import mapped, workers  # imports are not what is measured

    peak = before = anonymous()
    threading.Thread(target=watch, daemon=True).start()
    train, _ = load("imagefolder", root=sys.argv[1], image_size=64, images=sys.argv[2])
    for images, _ in train.batches(torch.randperm(len(train)).split(64)):
        pass
    print(peak - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")
def test_memory_does_not_grow_with_the_number_of_images(tmp_path, repository):
    """Private memory, in KiB: what the system may drop, as the pages of a mapped file, is not counted."""
    script = tmp_path / "measure.py"
    script.write_text(MEASURE)
    taken = {}
    for count in (2000, 6000):
        root = tmp_path / str(count)
        for split, n in (("train", count), ("test", 2)):
            for row, image in enumerate(trees.random_images(n, 32, 0)):
                trees.write_png(root / split / "ab"[row % 2] / f"{row}.png", image)
        for kind in ("device", "mapped", "files"):
            command = [sys.executable, str(script), str(root), kind]
            # what is free goes back to the system at once, so that what is measured is what is in use
            environment = {
                **os.environ,
                "MALLOC_MMAP_THRESHOLD_": "65536",
                "PRUNE_ENV_CACHE": str(root / "cache"),
                "PYTHONPATH": str(repository),
            }
            done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
            taken[kind, count] = int(done.stdout)
    print(taken)  # shown by `pytest -s`
    more = 4000 * 64 * 64 * 3 / 1024  # KiB of images
    assert taken["device", 6000] - taken["device", 2000] > more
    for kind in ("mapped", "files"):
        assert taken[kind, 6000] - taken[kind, 2000] < 0.2 * more


READS = """
import sys
from pathlib import Path
import torch
from prune_env.data.workers import Workers

if __name__ == "__main__":
    import multiprocessing
    import time
    images = sorted(Path(sys.argv[1]).rglob("*.png"))
    batches = Workers(images, 8, 1)([[0, 1], [2, 3]], torch.device("cpu"))
    next(batches)
    print(multiprocessing.active_children()[0].pid, flush=True)
    time.sleep(600)
"""


@pytest.mark.skipif("forkserver" not in multiprocessing.get_all_start_methods(), reason="needs a fork server")
def test_a_decoding_process_ends_with_a_trainer_that_is_killed(tmp_path, repository):
    """They are children of the fork server, which nobody kills."""
    trees.imagefolder(tmp_path / "tree")
    (tmp_path / "reads.py").write_text(READS)
    command = [sys.executable, str(tmp_path / "reads.py"), str(tmp_path / "tree")]
    environment = {**os.environ, "PYTHONPATH": str(repository)}
    reading = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    assert reading.stdout is not None
    decoder = int(reading.stdout.readline())
    assert processes.alive(decoder)
    reading.kill()
    reading.wait()
    processes.until(lambda: not processes.alive(decoder), seconds=20)
    reading.stdout.close()
