"""Files are the old ones or the whole new ones, whatever happens while they are written."""

import errno
import json
import os
import signal
import stat

import pytest

from prune_env.io import append_line, file_digest, open_atomic
from prune_env.io import write_atomic as write
from tests.helpers.processes import fork, full_disk, wait


def test_new_files_and_over_old_ones(tmp_path):
    path = tmp_path / "deep" / "file"
    write(path, b"one")
    write(str(path), b"two")
    assert path.read_bytes() == b"two"
    assert os.listdir(path.parent) == ["file"]
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask  # readable by others, unlike mkstemp's files


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, step):
    path = tmp_path / "file"
    write(path, b"old")

    def fail(*_):
        raise OSError(errno.EIO, "disk error")

    with monkeypatch.context() as patch:
        patch.setattr(os, step, fail)
        with pytest.raises(OSError, match="disk error"):
            write(path, b"new")
    with pytest.raises(ZeroDivisionError), open_atomic(path) as file:
        file.write(bytes(1 // 0))
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_writer_killed_at_any_step_leaves_the_old_file(tmp_path, step):
    path = tmp_path / "file"
    write(path, b"old")

    def work():
        setattr(os, step, lambda *_: os.kill(os.getpid(), signal.SIGKILL))
        write(path, b"new")

    assert wait(fork(work)) == -signal.SIGKILL
    assert path.read_bytes() == b"old"


def test_a_full_disk_leaves_the_old_file_and_the_old_lines(tmp_path):
    path, lines = tmp_path / "file", tmp_path / "lines"
    write(path, b"old")
    append_line(lines, {"key": "a"})
    before = lines.read_bytes()

    def work():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        with full_disk(len(before) + 50):
            with pytest.raises(OSError, match="File too large"):
                write(path, bytes(5000))
            with pytest.raises(OSError, match="File too large"):
                append_line(lines, {"key": "b", "long": "x" * 100})

    assert wait(fork(work)) == 0
    assert (path.read_bytes(), lines.read_bytes()) == (b"old", before)
    assert sorted(os.listdir(tmp_path)) == ["file", "lines"]


def test_a_line_after_a_torn_one_is_whole(tmp_path):
    path = tmp_path / "lines"
    values = [{"key": "a", "x": 0.1}, {"key": "b", "name": "caf\udce9 é"}, {"key": "c"}]
    append_line(path, values[0])
    append_line(path, values[1])
    whole = path.read_bytes()
    assert [json.loads(line) for line in whole.splitlines()] == values[:2]
    for cut in range(1, len(whole.splitlines()[1])):
        torn = whole[:-1][:-cut]
        path.write_bytes(torn)
        append_line(path, values[2])
        assert path.read_bytes() == torn + b"\n" * (not torn.endswith(b"\n")) + b'{"key":"c"}\n'
    with pytest.raises(ValueError, match="not JSON compliant"):
        append_line(path, {"x": float("nan")})


def test_file_digest(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    assert file_digest(tmp_path / "a", "md5") == "900150983cd24fb0d6963f7d28e17f72"
