"""Downloads from a server on loopback, and what becomes of their archives."""

import contextlib
import errno
import hashlib
import os
import shutil
import socket
import tarfile
import threading
import warnings
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from prune_env.data.download import alone, download, untar, unzip
from torchvision.datasets import CIFAR10

from prune_env import io
from prune_env.data import cifar as cifar_source
from prune_env.data import download as downloads
from prune_env.data import load, load_test, tiny_imagenet
from prune_env.data.sources import read
from prune_env.io import DamagedFile
from tests.helpers import processes, trees

PAGE = b"\xef\xbb\xbf\n<!DOCTYPE html><html><title>Log in to the network</title></html>"


class Server(ThreadingHTTPServer):
    def __init__(self, content: bytes):
        super().__init__(("127.0.0.1", 0), Handler)
        self.content = content
        self.url = f"http://127.0.0.1:{self.server_port}/file"
        self.ranges = True  # whether Range is honoured
        self.lengths = True  # whether it tells how long the file is
        self.odd: tuple[str, str] | None = None  # a header, and nothing else
        self.limits: list[int] = []  # bytes after which the next connections break off
        self.asked: list[str | None] = []  # the Range header of every request
        self.go = threading.Event()  # the second half of the file waits for it
        self.go.set()
        self.thread = threading.Thread(target=self.serve_forever, args=(0.01,))

    def handle_error(self, request, client_address):
        pass  # the client was killed


class Handler(BaseHTTPRequestHandler):
    server: Server  # pyright: ignore[reportIncompatibleVariableOverride]

    def do_GET(self):
        wanted = self.headers["Range"]
        self.server.asked.append(wanted)
        start = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted and self.server.ranges else 0
        body = self.server.content[start:]
        if self.path != "/file":
            self.send_error(404)
        elif self.server.odd:
            self.send_response(302 if self.server.odd[0] == "Location" else 200)
            self.send_header(*self.server.odd)
            self.end_headers()
        elif start and not body:
            self.send_error(416)
        else:
            self.send_response(206 if start else 200)
            if self.server.lengths:
                self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.server.limits:
                self.wfile.write(body[: self.server.limits.pop(0)])
                self.connection.shutdown(socket.SHUT_RDWR)
            else:
                half = len(body) // 2
                self.wfile.write(body[:half])
                self.server.go.wait()
                self.wfile.write(body[half:])

    def log_message(self, format, *args):
        pass


@pytest.fixture
def sleeping():
    """A server that takes connections, and answers them once its thread is started: processes are forked before."""
    served = Server(np.random.default_rng(0).bytes(300_000))
    yield served
    served.go.set()
    if served.thread.is_alive():
        served.shutdown()
        served.thread.join()
    served.server_close()


@pytest.fixture
def server(sleeping):
    sleeping.thread.start()
    return sleeping


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("PRUNE_ENV_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def tiny(tmp_path, monkeypatch, sleeping):
    """What Tiny-ImageNet holds, and its archive; the server has it."""
    splits = trees.tiny_imagenet(tmp_path / "original", per_class=3)
    archive = shutil.make_archive(str(tmp_path / "packed"), "zip", tmp_path / "original", "tiny-imagenet-200")
    sleeping.content = Path(archive).read_bytes()
    monkeypatch.setattr(tiny_imagenet, "URL", sleeping.url)
    monkeypatch.setattr(tiny_imagenet, "MD5", md5(sleeping.content))
    return splits, sleeping.content


@pytest.fixture
def cifar(tmp_path, monkeypatch, sleeping):
    """What CIFAR-10 holds, and its archive; the server has it."""
    splits = trees.cifar10(tmp_path / "original", monkeypatch)
    packed = BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        archive.add(tmp_path / "original" / CIFAR10.base_folder, CIFAR10.base_folder)
    sleeping.content = packed.getvalue()
    monkeypatch.setattr(CIFAR10, "url", sleeping.url)
    monkeypatch.setattr(CIFAR10, "tgz_md5", md5(sleeping.content))
    return splits, sleeping.content


@pytest.fixture(params=["tiny_imagenet", "cifar10"])
def dataset(request):
    """Name, what it holds, its archive, and the names of that and of the folder that is unpacked."""
    if request.param == "cifar10":
        return request.param, *request.getfixturevalue("cifar"), CIFAR10.filename, CIFAR10.base_folder
    return request.param, *request.getfixturevalue("tiny"), "tiny-imagenet-200.zip", "tiny-imagenet-200"


def md5(content):
    return hashlib.md5(content).hexdigest()


def assert_holds(name, root, splits, fetch=False):
    for split, (images, labels) in splits.items():
        samples = read(name, split, root, fetch, None)
        np.testing.assert_array_equal(samples.images, images)
        np.testing.assert_array_equal(samples.labels, labels)


def flipped(content, at=-30):
    damaged = bytearray(content)
    damaged[at] ^= 1
    return bytes(damaged)


# One file.


def test_download(tmp_path, server):
    path = tmp_path / "new" / "file"
    download(server.url, path, md5(server.content))
    assert path.read_bytes() == server.content
    assert os.listdir(path.parent) == ["file"]
    download(server.url, path, md5(server.content))
    assert server.asked == [None]  # what is there is not fetched again


def test_a_broken_download_goes_on_where_it_broke(tmp_path, server):
    server.limits = [100_000, 50_000]
    download(server.url, tmp_path / "file", md5(server.content))
    assert (tmp_path / "file").read_bytes() == server.content
    assert server.asked == [None, "bytes=100000-", "bytes=150000-"]


def test_a_later_call_goes_on_with_the_part(tmp_path, server):
    server.limits = [100_000, 0]
    with pytest.raises(ConnectionError, match=r"100000 bytes are kept in .*file.part"):
        download(server.url, tmp_path / "file", md5(server.content))
    assert os.listdir(tmp_path) == ["file.part"]
    download(server.url, tmp_path / "file", md5(server.content))
    assert (tmp_path / "file").read_bytes() == server.content
    assert server.asked[-1] == "bytes=100000-"


@pytest.mark.parametrize("there", [0, 1000, 400_000])
def test_a_server_that_ignores_ranges_starts_over(tmp_path, server, there):
    server.ranges = False
    (tmp_path / "file.part").write_bytes(b"x" * there)
    download(server.url, tmp_path / "file", md5(server.content))
    assert (tmp_path / "file").read_bytes() == server.content


def test_a_server_that_does_not_tell_the_length(tmp_path, server):
    server.lengths = False
    download(server.url, tmp_path / "file", md5(server.content))
    assert (tmp_path / "file").read_bytes() == server.content


def test_a_complete_part_is_only_verified(tmp_path, server):
    (tmp_path / "file.part").write_bytes(server.content)
    download(server.url, tmp_path / "file", md5(server.content))
    assert os.listdir(tmp_path) == ["file"]


def test_a_wrong_checksum_removes_the_part(tmp_path, server):
    with pytest.raises(DamagedFile, match=f"300000 bytes with md5 {md5(server.content)}, expected 0123"):
        download(server.url, tmp_path / "file", "0123")
    assert os.listdir(tmp_path) == []


def test_one_changed_byte_on_the_way_is_noticed(tmp_path, server):
    right, server.content = md5(server.content), flipped(server.content)
    with pytest.raises(DamagedFile, match=f"{server.url} did not yield the right file"):
        download(server.url, tmp_path / "file", right)
    assert os.listdir(tmp_path) == []


def test_a_part_of_another_file_is_noticed(tmp_path, server):
    (tmp_path / "file.part").write_bytes(b"x" * 1000)
    with pytest.raises(DamagedFile, match="what came was removed, try again"):
        download(server.url, tmp_path / "file", md5(server.content))
    download(server.url, tmp_path / "file", md5(server.content))
    assert (tmp_path / "file").read_bytes() == server.content


def test_a_web_page_in_place_of_the_file_is_called_that(tmp_path, server):
    server.content = PAGE
    with pytest.raises(ConnectionError, match=f"cannot fetch {server.url}: it sends a web page in place of the file"):
        download(server.url, tmp_path / "file", "0123")
    assert os.listdir(tmp_path) == []


def test_an_empty_file_is_called_that(tmp_path, server):
    server.content = b""
    with pytest.raises(ConnectionError, match=f"cannot fetch {server.url}: it sends an empty file. Without"):
        download(server.url, tmp_path / "file", "0123")
    assert os.listdir(tmp_path) == []


def test_a_web_page_does_not_cost_what_was_fetched_before(tmp_path, server):
    server.limits = [100_000, 0]
    right = server.content
    with pytest.raises(ConnectionError):
        download(server.url, tmp_path / "file", md5(right))
    server.content, server.ranges = PAGE, False
    with pytest.raises(ConnectionError, match=r"a web page in place of the file.* 100000 bytes are kept"):
        download(server.url, tmp_path / "file", md5(right))
    server.content, server.ranges = right, True
    download(server.url, tmp_path / "file", md5(right))
    assert (tmp_path / "file").read_bytes() == right
    assert server.asked[-1] == "bytes=100000-"


@pytest.mark.parametrize(
    ("made", "words"),
    [(lambda _: PAGE, "a web page"), (lambda good: good[:-1], "299999 bytes with md5"), (flipped, "300000 bytes with")],
    ids=["web page", "truncated", "changed byte"],
)
def test_what_was_saved_as_the_archive_is_looked_at(tmp_path, server, made, words):
    path = tmp_path / "file"
    path.write_bytes(made(server.content))
    with pytest.warns(UserWarning, match=rf"{path} is not the right file \({words}"):
        download(server.url, path, md5(server.content))
    assert path.read_bytes() == server.content


def test_a_wrong_archive_stays_until_the_right_one_is_there(tmp_path, server):
    (tmp_path / "file").write_bytes(b"of the user")
    server.limits = [0]
    with pytest.warns(UserWarning, match="not the right file"), pytest.raises(ConnectionError):
        download(server.url, tmp_path / "file", md5(server.content))
    assert (tmp_path / "file").read_bytes() == b"of the user"


def test_a_refusal_is_raised_at_once(tmp_path, server):
    with pytest.raises(ConnectionError, match=f"cannot fetch {server.url}s: HTTP Error 404"):
        download(server.url + "s", tmp_path / "file", "0123")
    assert server.asked == [None]
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("Content-Length", "10, 10"),
        ("Content-Length", "ten"),
        ("Location", "http://[bad/file"),
        ("Location", "http://localhost:port/file"),
        ("Location", "ftps:file"),
    ],
)
def test_an_odd_header_is_told_like_any_refusal(tmp_path, server, name, value):
    server.odd = name, value
    with pytest.raises(ConnectionError, match=rf"^cannot fetch {server.url}: .*Without a connection, put the file"):
        download(server.url, tmp_path / "file", "0123")
    assert os.listdir(tmp_path) == []


def test_a_host_that_does_not_answer(tmp_path):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/file"
        with pytest.raises(ConnectionError, match=f"cannot fetch {url}: .*refused"):
            download(url, tmp_path / "file", "0123")
    assert os.listdir(tmp_path) == []


def test_a_connection_that_ends_for_another_reason_than_closing(tmp_path, server, monkeypatch):
    def unreachable(*_, **__):
        raise OSError(errno.EHOSTUNREACH, os.strerror(errno.EHOSTUNREACH))

    server.limits = [0]
    monkeypatch.setattr("http.client.HTTPResponse.read", unreachable)
    with pytest.raises(ConnectionError, match="No route to host"):
        download(server.url, tmp_path / "file", "0123")


# Whole data sets.


def test_it_is_fetched_unpacked_and_read(tmp_path, server, dataset):
    name, splits, _, archive, folder = dataset
    server.limits = [1000]
    assert_holds(name, tmp_path / "root", splits, fetch=True)
    assert server.asked == [None, "bytes=1000-"]
    assert sorted(os.listdir(tmp_path / "root")) == sorted([f".{folder}.lock", folder, archive])
    load(name, root=tmp_path / "root", download=True)
    load_test(name, root=tmp_path / "root", download=True)
    assert len(server.asked) == 2


def test_without_a_network_the_message_says_what_to_do(tmp_path, monkeypatch, dataset):
    name, splits, content, archive, _ = dataset

    def unknown(*_, **__):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    monkeypatch.setattr(socket, "create_connection", unknown)
    root = tmp_path / "root"
    with pytest.raises(ConnectionError) as caught:
        load(name, root=root, download=True)
    for part in ("Name or service not known", "http://127", md5(content), str(root / archive), "download=True"):
        assert part in str(caught.value)
    (root / archive).write_bytes(content)  # which helps
    assert_holds(name, root, splits, fetch=True)


def test_a_truncated_archive_is_not_unpacked(tmp_path, server, dataset):
    name, splits, content, archive, _ = dataset
    root = tmp_path / "root"
    root.mkdir()
    (root / archive).write_bytes(content[: len(content) // 2])
    server.limits = [0]
    with pytest.warns(UserWarning, match="not the right file"), pytest.raises(ConnectionError):
        load(name, root=root, download=True)
    with pytest.raises(FileNotFoundError, match="pass download=True"):
        load(name, root=root)
    with pytest.warns(UserWarning, match="not the right file"):
        load(name, root=root, download=True)
    assert_holds(name, root, splits)


@pytest.mark.parametrize("killed", [False, True])
def test_two_processes_fetch_it_once(tmp_path, sleeping, dataset, killed):
    name, splits, content, archive, folder = dataset
    root = tmp_path / "root"
    told = [tmp_path / "told 0", tmp_path / "told 1"]
    sleeping.go.clear()
    ids = [processes.fork(lambda: load(name, root=root, download=True), one) for one in told]
    sleeping.thread.start()
    processes.until(lambda: any("waiting for another" in one.read_text() for one in told if one.exists()))
    waits = ["waiting" in one.read_text() for one in told]
    assert sorted(waits) == [False, True]
    assert str(root / folder) in told[waits.index(True)].read_text()
    part, there = root / f"{archive}.part", 0
    if killed:  # the other takes the lock, and goes on from what there is
        processes.until(lambda: part.exists() and part.stat().st_size >= min(len(content) // 4, downloads.CHUNK))
        there = part.stat().st_size
        processes.kill(ids.pop(waits.index(False)))
    sleeping.go.set()
    assert [processes.wait(one) for one in ids] == [0] * len(ids)
    assert len(sleeping.asked) == 1 + killed
    if there:
        assert sleeping.asked[1] == f"bytes={there}-"
    assert_holds(name, root, splits)
    assert not part.exists()


def test_a_download_that_was_killed_goes_on(tmp_path, sleeping):
    path = tmp_path / "file"
    sleeping.go.clear()
    one = processes.fork(lambda: download(sleeping.url, path, md5(sleeping.content)))
    sleeping.thread.start()
    part = tmp_path / "file.part"
    processes.until(lambda: part.exists() and part.stat().st_size >= 2 * downloads.CHUNK)
    processes.kill(one)
    there = part.stat().st_size
    sleeping.go.set()
    download(sleeping.url, path, md5(sleeping.content))
    assert path.read_bytes() == sleeping.content
    assert sleeping.asked == [None, f"bytes={there}-"]


@pytest.mark.parametrize("after", [1, 3, 6])
def test_a_killed_unpacking_is_mended(tmp_path, monkeypatch, dataset, after):
    name, splits, content, archive, folder = dataset
    root = tmp_path / "root"
    root.mkdir()
    (root / archive).write_bytes(content)

    def dies_in_the_middle():
        copied, copy = [], shutil.copyfileobj

        def copy_and_die(source, target, *length):
            copied.append(target)
            if len(copied) == after:
                target.write(source.read(100))
                target.flush()
                os.kill(os.getpid(), 9)
            copy(source, target, *length)

        shutil.copyfileobj = copy_and_die
        load(name, root=root, download=True)

    assert processes.wait(processes.fork(dies_in_the_middle)) == -9
    (left,) = root.glob(".*unpacking*")
    assert any(path.is_file() for path in left.rglob("*"))
    assert not (root / folder).exists()
    with pytest.raises(FileNotFoundError, match="pass download=True"):
        load(name, root=root)
    assert_holds(name, root, splits, fetch=True)
    assert sorted(os.listdir(root)) == sorted([f".{folder}.lock", folder, archive])


@pytest.mark.parametrize("after", range(1, 8))
def test_cifar_is_mended_when_killed_while_its_files_are_moved(tmp_path, cifar, after):
    splits, content = cifar
    (tmp_path / CIFAR10.filename).write_bytes(content)

    def dies_in_the_middle():
        moved, move = [], os.replace

        def move_and_die(source, target):
            moved.append(target)
            move(source, target)
            if len(moved) == after:
                os.kill(os.getpid(), 9)

        os.replace = move_and_die
        load("cifar10", root=tmp_path, download=True)

    assert processes.wait(processes.fork(dies_in_the_middle)) == -9
    if after < 7:
        with pytest.raises((FileNotFoundError, DamagedFile), match="pass download=True"):
            assert_holds("cifar10", tmp_path, splits)
    assert_holds("cifar10", tmp_path, splits, fetch=True)
    assert not list(tmp_path.glob(".*unpacking*/*"))


def half_unpacked(root, content):
    """What a tar that was killed leaves: some files, and the last of them in part."""
    with tarfile.open(fileobj=BytesIO(content)) as members:
        members.extractall(root, filter="data") if hasattr(tarfile, "data_filter") else members.extractall(root)
    folder = root / CIFAR10.base_folder
    (folder / "data_batch_4").write_bytes((folder / "data_batch_4").read_bytes()[:5000])
    return folder


def test_a_folder_that_something_else_left_half_unpacked_is_mended(tmp_path, cifar):
    splits, content = cifar
    folder = half_unpacked(tmp_path, content)
    (folder / "notes.txt").write_text("of the user")
    (tmp_path / CIFAR10.filename).write_bytes(content)
    with pytest.raises(DamagedFile, match=r"data_batch_4 has another checksum\): pass download=True"):
        load("cifar10", root=tmp_path)
    load("cifar10", root=tmp_path, download=True)
    (folder / "test_batch").unlink()
    with pytest.raises(FileNotFoundError, match="test_batch does not exist"):
        load_test("cifar10", root=tmp_path)
    assert_holds("cifar10", tmp_path, splits, fetch=True)
    assert (folder / "notes.txt").read_text() == "of the user"


def test_an_incomplete_folder_is_left_to_the_user(tmp_path, tiny):
    splits, content = tiny
    (tmp_path / "tiny-imagenet-200" / "train").mkdir(parents=True)
    (tmp_path / "tiny-imagenet-200.zip").write_bytes(content)
    with pytest.raises(FileExistsError, match="is incomplete: remove it"):
        load("tiny_imagenet", root=tmp_path, download=True)
    shutil.rmtree(tmp_path / "tiny-imagenet-200")
    assert_holds("tiny_imagenet", tmp_path, splits, fetch=True)


# Disks that are full or not ours.


def test_a_disk_that_fills_up_while_fetching(tmp_path, server, dataset):
    name, splits, content, archive, folder = dataset
    room = len(content) // 3
    with (
        processes.full_disk(room),
        pytest.raises(OSError, match=f"cannot put {folder} into {tmp_path / 'root'}: File too large; make room"),
    ):
        load(name, root=tmp_path / "root", download=True)
    assert sorted(os.listdir(tmp_path / "root")) == sorted([f".{folder}.lock", f"{archive}.part"])
    there = (tmp_path / "root" / f"{archive}.part").stat().st_size
    assert there <= room
    assert_holds(name, tmp_path / "root", splits, fetch=True)
    assert server.asked == [None, f"bytes={there}-" if there else None]


def test_a_disk_that_fills_up_while_unpacking(tmp_path, dataset):
    name, splits, content, archive, folder = dataset
    (tmp_path / archive).write_bytes(content)
    with processes.full_disk(5000), pytest.raises(OSError, match=f"cannot put {folder} into {tmp_path}: File too"):
        load(name, root=tmp_path, download=True)
    assert not (tmp_path / folder).exists()
    assert not list(tmp_path.glob(".*unpacking*"))
    assert_holds(name, tmp_path, splits, fetch=True)


@pytest.fixture
def public(monkeypatch):
    """A folder where everybody may look, for tests as another user."""
    folder = Path(processes.public_folder())
    monkeypatch.setenv("PRUNE_ENV_CACHE", str(folder / "cache"))
    yield folder
    shutil.rmtree(folder)


def test_a_root_that_cannot_be_written(public, dataset):
    name, _, _, _, folder = dataset
    (public / "root").mkdir()
    with (
        processes.others_folder(public / "root"),
        pytest.raises(PermissionError, match=f"cannot put {folder} into {public / 'root'}: Permission denied; make"),
    ):
        load(name, root=public / "root", download=True)


def test_what_is_whole_is_read_from_a_root_that_cannot_be_written(public, dataset):
    name, splits, content, archive, folder = dataset
    root, cache = public / "root", public / "cache"
    root.mkdir()
    cache.mkdir()
    cache.chmod(0o777)
    (root / archive).write_bytes(content)
    read(name, "train", root, True, None)
    shutil.rmtree(cache / "decoded")
    (root / f".{folder}.lock").unlink()
    with processes.others_folder(root), warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_holds(name, root, splits, fetch=True)


# Systems without locks.


@pytest.mark.parametrize("why", ["windows", "file system"])
def test_without_locks_it_works_and_removes_nothing(tmp_path, monkeypatch, dataset, why):
    name, splits, content, archive, folder = dataset
    if why == "windows":
        monkeypatch.setattr(io, "fcntl", None)
    else:

        def refuse(*_):
            raise OSError(errno.ENOLCK, "No locks available")

        monkeypatch.setattr(io.fcntl, "flock", refuse)
    (tmp_path / "root" / f".{folder}.unpacking-of another").mkdir(parents=True)
    (tmp_path / "root" / archive).write_bytes(content)
    assert_holds(name, tmp_path / "root", splits, fetch=True)
    assert (tmp_path / "root" / f".{folder}.unpacking-of another").exists()


@pytest.mark.filterwarnings("ignore:.*is not the right file")
def test_without_locks_two_processes_cost_time_and_never_leave_a_part_of_it(tmp_path, sleeping, dataset, monkeypatch):
    name, splits, *_ = dataset
    monkeypatch.setattr(io, "fcntl", None)
    root = tmp_path / "root"
    ids = [processes.fork(lambda: load(name, root=root, download=True), tmp_path / str(one)) for one in range(3)]
    sleeping.thread.start()
    for one, pid in enumerate(ids):
        told = "" if processes.wait(pid) == 0 else (tmp_path / str(one)).read_text()
        assert not told or "Error: " in told or "DamagedFile: " in told
    with contextlib.suppress(FileNotFoundError, DamagedFile):
        assert_holds(name, root, splits)
    with contextlib.suppress(DamagedFile):  # of the pieces of two
        load(name, root=root, download=True)
    assert_holds(name, root, splits, fetch=True)


def test_who_has_waited_does_not_unpack_again(tmp_path, monkeypatch):
    looks = iter([False, True])  # before the lock and behind it
    monkeypatch.setattr(cifar_source, "_whole", lambda *_: next(looks))
    cifar_source.fetch(CIFAR10, tmp_path)
    assert os.listdir(tmp_path) == [f".{CIFAR10.base_folder}.lock"]


def test_a_lock_is_for_one_folder(tmp_path):
    with alone(tmp_path, "a"), alone(tmp_path, "b"):
        pass


# Archives.


def test_a_failed_extraction_leaves_nothing(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for number in range(3):
            archive.writestr(f"inside/{number}.txt", "content" * 10)
    content = bytearray((tmp_path / "a.zip").read_bytes())
    content[content.rindex(b"content" * 10)] ^= 1  # the last member no longer matches its CRC
    (tmp_path / "a.zip").write_bytes(content)
    with pytest.raises(DamagedFile, match=f"{tmp_path / 'a.zip'} is damaged: Bad CRC-32"):
        unzip(tmp_path / "a.zip", tmp_path / "inside")
    assert os.listdir(tmp_path) == ["a.zip"]


@pytest.mark.filterwarnings("ignore:the cache")
def test_damage_that_the_checksum_of_the_archive_lets_pass(tmp_path, monkeypatch, dataset):
    """Cut anywhere, or one byte changed anywhere: the right samples, or an error and nothing that passes for them."""
    name, splits, good, archive, _ = dataset
    rng = np.random.default_rng(0)
    damaged = [good[:end] for end in rng.integers(0, len(good), 10)] + [b"", PAGE]
    damaged += [flipped(good, at) for at in rng.integers(0, len(good), 40)]
    refused = 0
    for number, content in enumerate(damaged):
        root = tmp_path / str(number)
        root.mkdir()
        (root / archive).write_bytes(content)
        monkeypatch.setattr(*((CIFAR10, "tgz_md5") if name == "cifar10" else (tiny_imagenet, "MD5")), md5(content))
        try:
            assert_holds(name, root, splits, fetch=True)
        except DamagedFile as error:
            assert str(root) in str(error)  # noqa: PT017
            with pytest.raises((FileNotFoundError, DamagedFile)):
                assert_holds(name, root, splits)
            refused += 1
        shutil.rmtree(root)
    assert refused > 40


def test_an_archive_that_lacks_a_file_is_not_unpacked(tmp_path, cifar):
    (tmp_path / "a.tar.gz").write_bytes(cifar[1])
    folder = tmp_path / "new" / CIFAR10.base_folder
    folder.parent.mkdir()
    with pytest.raises(DamagedFile, match=r"a.tar.gz lacks data_batch_6, other in cifar-10-batches-py/: not unpacked"):
        untar(tmp_path / "a.tar.gz", folder, ["data_batch_1", "data_batch_6", "other"])
    assert os.listdir(folder.parent) == []


def test_an_existing_folder_is_not_overwritten(tmp_path):
    (tmp_path / "inside").mkdir()
    with pytest.raises(FileExistsError, match="remove it"):
        unzip(tmp_path / "a.zip", tmp_path / "inside")
