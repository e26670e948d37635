import hashlib
import os
import stat

import numpy as np
import pytest

from prune_env.files import DamagedFile, file_digest, load_arrays, replace, save_arrays


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
