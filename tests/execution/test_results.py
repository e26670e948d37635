"""The file of results, the key of a run, and what is said of the code that records are from."""

import lzma
from pathlib import Path
from typing import Any

import pytest

from prune_env import io
from tests.helpers.processes import full_disk
from train.execution import results
from train.execution.results import key_of

CONFIGURATION = {
    "env": "prune_env/Digits-v0",
    "settings": {"budget": 3, "device": "auto"},
    "recipe": {"model": "mlp", "batch_size": 32, "lr": 0.2, "momentum": 0.9},
    "device": "cpu",
    "data": {"train": "t", "val": "v"},
}
OTHERS: dict[str, Any] = {
    "env": "prune_env/CIFAR10-v0",
    "settings": {"budget": 4, "device": "auto"},
    "recipe": {"model": "mlp", "batch_size": 32, "lr": 0.1, "momentum": 0.9},
    "device": "cuda",
    "data": {"train": "other", "val": "v"},
}
ALIKE: dict[str, Any] = {
    "settings": {"budget": 3.0, "device": "cpu", "lr": 0.2, "root": "/somewhere", "images": "mapped"},
    "recipe": {**CONFIGURATION["recipe"], "weight_decay": 5e-4, "compile": "off"},  # the defaults
}


def record(number: int, **more: Any) -> dict[str, Any]:
    data = {**CONFIGURATION["data"], "test": "s"}
    made = {"agent": "full", "seed": number, "configuration": CONFIGURATION, "provenance": {"data": data, **more}}
    return {"key": key_of(CONFIGURATION, "full", number, "s"), **made}


def test_a_key_changes_with_what_decides_a_result_and_nothing_else():
    keys = [key_of(CONFIGURATION, "full", 0, "s")]
    keys += [key_of({**CONFIGURATION, name: value}, "full", 0, "s") for name, value in OTHERS.items()]
    keys += [key_of(CONFIGURATION, "ucb", 0, "s"), key_of(CONFIGURATION, "full", 1, "s")]
    keys += [key_of(CONFIGURATION, "full", 0, "another test split")]
    assert len(set(keys)) == len(keys) == 9
    for name, value in ALIKE.items():
        assert key_of({**CONFIGURATION, name: value}, "full", 0, "s") == keys[0]
    noisy = {**CONFIGURATION, "settings": {"budget": 3, "label_noise": 0.2}}
    assert key_of(noisy, "full", 0, "s") not in keys


def test_lines_are_read_as_they_were_written_whatever_a_kill_has_torn(tmp_path: Path):
    path = tmp_path / "results.jsonl"
    assert results.read(path) == ({}, 0)
    written = [record(number) for number in range(3)]
    for one in written:
        io.append_line(path, one)
    whole = {one["key"]: one for one in written}
    assert results.read(path) == (whole, 0)
    content = path.read_bytes()
    ends = [i for i, byte in enumerate(content) if byte == ord("\n")]
    for cut in (0, 1, ends[0], ends[0] + 1, ends[1] - 1, ends[1] + 7, ends[2]):
        path.write_bytes(content[:cut])
        read, torn = results.read(path)
        there = sum(end <= cut for end in ends)
        assert list(read.values()) == written[:there]
        assert torn == int(cut > 0 and cut not in ends and cut - 1 not in ends)
    path.write_bytes(content + b'\xff\xfe\n[1]\n{"no": "key"}\n')
    assert results.read(path) == (whole, 3)
    results.write(path, written[:2])
    assert list(results.read(path)[0].values()) == written[:2]


def test_what_was_done_after_the_file_was_compressed_counts(tmp_path: Path):
    path = tmp_path / "results.jsonl"
    before, after = record(0, dirty=True), record(0, dirty=False)
    (tmp_path / "results.jsonl.xz").write_bytes(lzma.compress(io.line(before) + io.line(record(1))))
    io.append_line(path, after)
    assert list(results.read(path)[0].values()) == [after, record(1)]


def test_a_line_that_cannot_be_written_leaves_the_file_as_it_was(tmp_path: Path):
    path = tmp_path / "results.jsonl"
    io.append_line(path, record(0))
    before = path.read_bytes()
    with full_disk(len(before) + 10), pytest.raises(OSError):  # noqa: PT011
        io.append_line(path, record(1))
    with pytest.raises(ValueError, match="not JSON compliant"):
        io.append_line(path, {"key": "a", "x": float("nan")})
    assert path.read_bytes() == before


def test_the_committed_records_can_be_read(repository: Path):
    paths = sorted((repository / "results").glob("*/results.jsonl.xz"), key=lambda path: path.stat().st_size)
    assert len(paths) == 10
    for path in paths[:-1]:  # the largest takes a second
        records, unreadable = results.read(path.with_suffix(""))
        assert len(records) >= 35
        assert unreadable == 0
