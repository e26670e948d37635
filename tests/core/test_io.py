import errno
import hashlib
import json
import os
import signal
import stat
import tempfile
import uuid
from pathlib import Path

import numpy as np
import pytest

from prune_env import io
from prune_env.io import (
    DamagedFile,
    file_digest,
    load_arrays,
    replace,
    save_arrays,
    seal,
    seal_line,
    sweep,
    unseal,
    unseal_line,
)
from tests.helpers.processes import fork, full_disk, others_folder, public_folder, wait
from train.execution import results


@pytest.fixture
def arrays():
    return {
        "images": np.arange(2 * 3 * 4, dtype=np.uint8).reshape(2, 3, 4),
        "empty": np.zeros((0, 5), np.int64),
        "names": np.array(["cat", "dög"]),
        "scalar": np.array(1.5),
    }


def test_arrays_come_back_as_they_were_saved(tmp_path, arrays):
    path = tmp_path / "new" / "folder" / "a.arrays"
    save_arrays(path, **arrays)
    loaded = load_arrays(path)
    assert loaded.keys() == arrays.keys()
    for name, array in arrays.items():
        assert loaded[name].dtype == array.dtype
        np.testing.assert_array_equal(loaded[name], array)
    assert os.listdir(path.parent) == ["a.arrays"]


def test_first_line_is_the_sha256_of_the_rest(tmp_path, arrays):
    save_arrays(tmp_path / "a", **arrays)
    header, rest = (tmp_path / "a").read_bytes().split(b"\n", 1)
    assert header.split(b" ")[-1].decode() == hashlib.sha256(rest).hexdigest()


def test_every_flipped_byte_and_every_truncation_is_noticed(tmp_path, arrays):
    path = tmp_path / "a"
    save_arrays(path, **arrays)
    good = path.read_bytes()
    for position in range(0, len(good), 7):
        bad = bytearray(good)
        bad[position] ^= 1
        path.write_bytes(bad)
        with pytest.raises(DamagedFile, match=str(path)):
            load_arrays(path)
    for length in [*range(0, len(good), 97), len(good) - 1]:
        path.write_bytes(good[:length])
        with pytest.raises(DamagedFile, match=str(path)):
            load_arrays(path)
    for foreign in (good + b"\0", b"", b"PK\x03\x04 something else\n"):
        path.write_bytes(foreign)
        with pytest.raises(DamagedFile, match=str(path)):
            load_arrays(path)


def test_an_absent_file_is_absent_not_damaged(tmp_path):
    with pytest.raises(FileNotFoundError):
        load_arrays(tmp_path / "none")


def test_objects_are_refused(tmp_path):
    with pytest.raises(ValueError, match="'bad' has dtype object"):
        save_arrays(tmp_path / "a", bad=np.array([{}]))
    assert os.listdir(tmp_path) == []


def test_replace_writes_new_files_and_over_old_ones(tmp_path):
    path = tmp_path / "deep" / "file"
    replace(path, b"one")
    replace(str(path), b"two")
    assert path.read_bytes() == b"two"
    assert os.listdir(path.parent) == ["file"]
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask  # readable by others, unlike mkstemp's files


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, step):
    path = tmp_path / "file"
    replace(path, b"old")

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, step, fail)
    with pytest.raises(OSError, match="disk full"):
        replace(path, b"new")
    with pytest.raises(OSError, match="disk full"):
        save_arrays(path, a=np.zeros(3))
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


def test_file_digest(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    assert file_digest(tmp_path / "a", "md5") == "900150983cd24fb0d6963f7d28e17f72"


# Sealed content


def test_sealed_content_comes_back(tmp_path):
    for content in (b"", b"\n", b"content", bytes(range(256)) * 10_000):
        seal(tmp_path / "new" / "a", "thing 1", content)
        assert unseal(tmp_path / "new" / "a", "thing 1") == content
        assert os.listdir(tmp_path / "new") == ["a"]
    header, rest = (tmp_path / "new" / "a").read_bytes().split(b"\n", 1)
    assert header == b"prune_env thing 1 sha256 " + hashlib.sha256(rest).hexdigest().encode()
    with pytest.raises(FileNotFoundError):
        unseal(tmp_path / "none", "thing 1")


def test_every_flipped_bit_of_a_sealed_file_is_noticed(tmp_path):
    path = tmp_path / "a"
    seal(path, "thing 1", b"a\nb")
    good = path.read_bytes()
    others = [flipped(good, bit) for bit in range(8 * len(good))]
    others += [good[:length] for length in range(len(good))]
    others += [good + b"\0", b"\0" + good, good + good, good[:90] + good[91:], b"\n", b"PK\x03\x04", b"prune_env\n"]
    others += [good.replace(b"\n", b"\r\n"), good.upper(), b"prune_env thing 1 sha256 " + b"0" * 10**6]
    for other in others:
        path.write_bytes(other)
        with pytest.raises(DamagedFile, match=f"^{path} is (damaged|of another format)"):
            unseal(path, "thing 1")
    path.write_bytes(good)
    assert unseal(path, "thing 1") == b"a\nb"


def flipped(data: bytes, bit: int) -> bytes:
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def test_another_kind_or_version_is_of_another_format(tmp_path):
    path = tmp_path / "a"
    for other in ("thing 2", "thing 10", "thing", "other 1"):
        seal(path, other, b"content")
        with pytest.raises(
            DamagedFile, match=rf"a is of another format: it begins with b'prune_env {other[:3]}.*thing 1"
        ):
            unseal(path, "thing 1")
    save_arrays(path, a=np.zeros(3))
    with pytest.raises(DamagedFile, match="a is of another format"):
        unseal(path, "thing 1")
    seal(path, "thing 1", b"content")
    with pytest.raises(DamagedFile, match="a is of another format"):
        load_arrays(path)
    path.write_bytes(b"<html>")
    with pytest.raises(DamagedFile, match="a is damaged: it begins with b'<html>'"):
        unseal(path, "thing 1")


VALUE = {"key": "käse", "x": 0.1, "deep": {"a": [1, None, "\n"]}}


def test_sealed_lines_come_back(tmp_path):
    for value in ({}, VALUE, {"prune_env thing 1 sha256": "0" * 64}, {"a": "}"}):
        line = seal_line("thing 1", value)
        assert line.endswith(b"\n")
        assert line.count(b"\n") == 1
        assert unseal_line("thing 1", line) == unseal_line("thing 1", line[:-1]) == value
        read = json.loads(line)  # for who knows nothing of digests, it is JSON with one entry more
        body = line[: line.rindex(b'"prune_env thing 1 sha256"')].rstrip(b",") + b"}"
        assert list(read.items())[-1] == ("prune_env thing 1 sha256", hashlib.sha256(body).hexdigest())
    for number in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="JSON"):
            seal_line("thing 1", {"a": number})


def test_every_flipped_bit_of_a_sealed_line_is_noticed():
    line = seal_line("thing 1", VALUE)[:-1]
    others = [flipped(line, bit) for bit in range(8 * len(line))]
    others += [line[:length] for length in range(len(line))] + [line[start:] for start in range(1, len(line))]
    others += [line + b" ", b" " + line, line + line, line + b"\r", line.replace(b'":', b'": '), b"", b"{}", b"null"]
    others += [json.dumps(VALUE).encode(), json.dumps(json.loads(line)).encode(), line[:-1] + b',"more":1}']
    for other in others:
        with pytest.raises(DamagedFile):
            unseal_line("thing 1", other)


def test_a_line_of_another_kind_is_said_to_be():
    for other in ("thing 2", "other 1", "thing 11"):
        with pytest.raises(DamagedFile, match="it does not end with the sha256 of 'thing 1'"):
            unseal_line("thing 1", seal_line(other, VALUE))
    with pytest.raises(DamagedFile, match="its content does not match its sha256"):
        unseal_line("thing 1", seal_line("thing 1", VALUE).replace(b"0.1", b"0.2"))


# Writers that were killed


def test_sweep_removes_what_killed_writers_left_and_nothing_else(tmp_path):
    beside = uuid.uuid4().hex
    kept = [
        "file",
        ".lock",
        ".file",
        f"file.{beside}",
        f".file.{beside[:-1]}",
        f".file.{beside.upper()}x",
        ".a.b",
        "..x",
    ]
    left = [f".file.{beside}", f".results.jsonl.{uuid.uuid4().hex}", f"..lock.{beside}"]
    for name in [*kept, *left]:
        (tmp_path / name).write_text("")
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / left[0]).write_text("")
    (tmp_path / f".events.{beside}" / "run").mkdir(parents=True)
    (tmp_path / f".events.{beside}" / "run" / "file").write_text("")
    (tmp_path / f".events.{beside}" / "link").symlink_to(tmp_path / "below")
    (tmp_path / f".link.{beside}").symlink_to(tmp_path / "below")
    sweep(tmp_path)
    assert sorted(os.listdir(tmp_path)) == sorted([*kept, "below"])
    assert os.listdir(tmp_path / "below") == [left[0]]  # each folder is swept by whoever has it to itself


@pytest.mark.parametrize("step", ["write", "fsync", "replace"])
def test_a_writer_killed_at_any_step_leaves_the_old_file(tmp_path, step):
    path = tmp_path / "file"
    seal(path, "thing 1", b"old")

    def die(*_):
        os.kill(os.getpid(), signal.SIGKILL)

    def work():
        if step == "write":
            with io._written_beside(path) as file:
                file.write(b"half")
                file.flush()
                die()
        setattr(os, step, die)
        seal(path, "thing 1", b"new")

    assert wait(fork(work)) == -signal.SIGKILL
    assert len(os.listdir(tmp_path)) == 2
    assert unseal(path, "thing 1") == b"old"
    sweep(tmp_path)
    assert os.listdir(tmp_path) == ["file"]


# Disks that are full, and folders of others


class Faulty:
    """A file that fails as a disk does, once so many bytes are written."""

    def __init__(self, file, room: int, error: int):
        self._file, self._room, self._error = file, room, error

    def __getattr__(self, name: str):
        return getattr(self._file, name)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._file.close()

    def write(self, data: bytes) -> int:
        written = self._file.write(data[: self._room])
        self._room -= written
        if not written and data:
            raise OSError(self._error, os.strerror(self._error))
        return written


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO, errno.EDQUOT])
def test_an_error_in_the_middle_of_writing_leaves_the_old_file_and_nothing_beside(tmp_path, monkeypatch, error):
    path = tmp_path / "file"
    seal(path, "thing 1", b"old")
    whole = open

    def opening(name, mode="r", **more):
        return Faulty(whole(name, mode, **more), 0 if "x" in mode else 10**9, error)

    monkeypatch.setattr(io, "open", opening, raising=False)
    for write in (
        lambda: replace(path, b"new" * 100),
        lambda: seal(path, "thing 1", b"new" * 100),
        lambda: save_arrays(path, a=np.zeros(300)),
    ):
        with pytest.raises(OSError, match=os.strerror(error)):
            write()
    assert unseal(path, "thing 1") == b"old"
    assert os.listdir(tmp_path) == ["file"]


def test_a_full_disk_leaves_the_old_file_and_nothing_beside(tmp_path):
    path = tmp_path / "file"
    seal(path, "thing 1", b"old")

    def work():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        with full_disk(1000):
            for write in (lambda: seal(path, "thing 1", bytes(5000)), lambda: save_arrays(path, a=np.zeros(900))):
                with pytest.raises(OSError, match="File too large"):
                    write()
            seal(path, "thing 1", b"small")

    assert wait(fork(work)) == 0
    assert unseal(path, "thing 1") == b"small"
    assert os.listdir(tmp_path) == ["file"]


def test_a_folder_of_others_is_named():
    with tempfile.TemporaryDirectory(dir=public_folder()) as folder:
        path = Path(folder) / "file"
        seal(path, "thing 1", b"old")

        def work():
            with others_folder(Path(folder)):
                assert unseal(path, "thing 1") == b"old"
                for write in (lambda: seal(path, "thing 1", b"new"), lambda: replace(path, b"new")):
                    with pytest.raises(PermissionError, match=r"Permission denied.*file"):
                        write()

        assert wait(fork(work)) == 0
        assert unseal(path, "thing 1") == b"old"
        assert os.listdir(folder) == ["file"]


@pytest.mark.parametrize("room", [0, 1, 50, 119])
def test_a_line_that_does_not_fit_leaves_the_results_as_they_were(tmp_path, room):
    path = tmp_path / "results.jsonl"
    results.append(path, {"key": "a"})
    before = path.read_bytes()

    def work():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        with full_disk(len(before) + room), pytest.raises(OSError, match="File too large"):
            results.append(path, {"key": "b", "long": "x" * 100})

    assert wait(fork(work)) == 0
    assert path.read_bytes() == before
    results.append(path, {"key": "b"})
    assert list(results.read(path)[0]) == ["a", "b"]


def test_a_line_after_a_torn_one_is_whole(tmp_path):
    path = tmp_path / "results.jsonl"
    for key in "ab":
        results.append(path, {"key": key})
    whole = path.read_bytes()
    path.write_bytes(whole[:-5])
    results.append(path, {"key": "c"})
    assert path.read_bytes().startswith(whole[:-5] + b"\n")
    found, damaged = results.read(path)
    assert (list(found), damaged) == (["a", "c"], 1)


def test_the_name_of_new_results_is_synced_too(tmp_path, monkeypatch):
    synced, fsync = [], os.fsync
    monkeypatch.setattr(os, "fsync", lambda file: (synced.append(os.fstat(file).st_ino), fsync(file)))
    path = tmp_path / "results.jsonl"
    for key in "ab":
        results.append(path, {"key": key})
    file, folder = path.stat().st_ino, tmp_path.stat().st_ino
    assert synced == [file, folder, file]


def test_an_error_when_a_line_is_synced_leaves_the_results_as_they_were(tmp_path, monkeypatch):
    path = tmp_path / "results.jsonl"
    results.append(path, {"key": "a"})
    before = path.read_bytes()

    def fail(_):
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        with pytest.raises(OSError, match="Input/output error"):
            results.append(path, {"key": "b"})
    assert path.read_bytes() == before


def test_every_damaged_line_of_results_is_set_aside_and_no_other(tmp_path):
    path = tmp_path / "results.jsonl"
    records = [{"key": key, "x": 1} for key in "abc"]
    results.write(path, records)
    lines = path.read_bytes().splitlines(keepends=True)
    for at in range(3):
        for bit in range(0, 8 * len(lines[at]) - 8, 29):  # but for its break, see below
            bad = flipped(lines[at], bit)
            if b"\n" in bad[:-1]:
                continue
            path.write_bytes(b"".join([*lines[:at], bad, *lines[at + 1 :]]))
            (tmp_path / "results.jsonl.damaged").unlink(missing_ok=True)
            found, damaged = results.read(path)
            assert damaged == 1
            assert list(found.values()) == records[:at] + records[at + 1 :]
            assert (tmp_path / "results.jsonl.damaged").read_bytes() == bad
            assert path.read_bytes() == b"".join(lines[:at] + lines[at + 1 :])
    path.write_bytes(lines[0][:-1] + b"\x0b" + lines[1] + lines[2])  # two lines that lost the break between them
    assert list(results.read(path)[0]) == ["c"]
    path.write_bytes(b"".join(lines).replace(b"record 1", b"record 0"))
    assert results.read(path, repair=False) == ({}, 3)
