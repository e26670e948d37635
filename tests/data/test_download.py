"""Downloads, from a server of the test's: what comes is whole, and what fails says what to do."""

import hashlib
import os
import shutil
import tarfile
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from torchvision.datasets import CIFAR10

from prune_env.data import load, load_test, tiny_imagenet
from prune_env.io import DamagedFile
from tests.helpers import processes, trees
from tests.helpers.trees import assert_holds


class Server(ThreadingHTTPServer):
    """Serves one archive, and counts how often."""

    def __init__(self, content: bytes):
        super().__init__(("127.0.0.1", 0), Handler)
        self.content, self.served = content, 0
        self.url = f"http://127.0.0.1:{self.server_port}/archive"
        threading.Thread(target=self.serve_forever, daemon=True).start()


class Handler(BaseHTTPRequestHandler):
    def do_HEAD(self):
        self.send_response(200)
        self.end_headers()

    def do_GET(self):
        assert isinstance(self.server, Server)
        self.server.served += 1
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.server.content)))
        self.end_headers()
        self.wfile.write(self.server.content)

    def log_message(self, format, *args):
        pass


@pytest.fixture(params=["cifar10", "tiny_imagenet"])
def dataset(request, tmp_path, monkeypatch):
    """Name, arrays and server of a data set that is nowhere on the disk; its archive has the official checksum."""
    made = tmp_path / "made"
    if request.param == "cifar10":
        splits = trees.cifar10(made, monkeypatch)
        with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as archive:
            archive.add(made / CIFAR10.base_folder, CIFAR10.base_folder)
        content = (tmp_path / "a.tar.gz").read_bytes()
        server = Server(content)
        monkeypatch.setattr(CIFAR10, "url", server.url)
        monkeypatch.setattr(CIFAR10, "tgz_md5", hashlib.md5(content).hexdigest())
    else:
        splits = trees.tiny_imagenet(made, per_class=3)
        with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
            for path in sorted(made.rglob("*")):
                archive.write(path, path.relative_to(made))
        content = (tmp_path / "a.zip").read_bytes()
        server = Server(content)
        monkeypatch.setattr(tiny_imagenet, "URL", server.url)
        monkeypatch.setattr(tiny_imagenet, "MD5", hashlib.md5(content).hexdigest())
    yield request.param, splits, server
    server.shutdown()
    server.server_close()


def test_it_is_fetched_unpacked_and_read_once(tmp_path, dataset):
    name, splits, server = dataset
    load(name, root=tmp_path / "root", download=True)
    assert_holds(name, tmp_path / "root", splits)
    load_test(name, root=tmp_path / "root", download=True)
    assert server.served == 2  # torchvision asks where the address leads, then fetches


def test_an_archive_that_was_put_there_is_taken(tmp_path, dataset):
    name, splits, server = dataset
    archive = CIFAR10.filename if name == "cifar10" else "tiny-imagenet-200.zip"
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / archive).write_bytes(server.content)
    load(name, root=tmp_path / "root", download=True)
    assert_holds(name, tmp_path / "root", splits)
    assert server.served == 0


def test_what_is_not_the_official_archive_is_refused_and_removed(tmp_path, dataset):
    name, splits, server = dataset
    good = server.content
    server.content = good[:-30] + b"?" + good[-29:]
    with pytest.raises(DamagedFile, match=r"did not yield the file with md5 .*try again"):
        load(name, root=tmp_path / "root", download=True)
    assert {path.suffix for path in (tmp_path / "root").iterdir()} == {".lock"}
    server.content = good
    load(name, root=tmp_path / "root", download=True)
    assert_holds(name, tmp_path / "root", splits)


def test_without_a_network_the_message_says_what_to_do(tmp_path, dataset):
    name, _, server = dataset
    server.shutdown()
    server.server_close()
    with pytest.raises(ConnectionError, match=r"cannot fetch http.*Without a connection, put the file \(md5 .*\) at "):
        load(name, root=tmp_path / "root", download=True)


@pytest.mark.parametrize("damage", ["a byte", "gone"])
def test_a_damaged_folder_of_cifar_is_named_and_mended_by_a_download(tmp_path, monkeypatch, damage):
    splits = trees.cifar10(tmp_path, monkeypatch)
    path = tmp_path / CIFAR10.base_folder / "test_batch"  # of the other split: better known before training
    with tarfile.open(tmp_path / CIFAR10.filename, "w:gz") as archive:
        archive.add(path.parent, CIFAR10.base_folder)
    monkeypatch.setattr(CIFAR10, "tgz_md5", hashlib.md5((tmp_path / CIFAR10.filename).read_bytes()).hexdigest())
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    if damage == "gone":
        path.unlink()
    with pytest.raises(DamagedFile, match=rf"{path.parent} does not hold the official files, .* pass download=True"):
        load("cifar10", root=tmp_path)
    load("cifar10", root=tmp_path, download=True)
    assert_holds("cifar10", tmp_path, splits)


def test_two_processes_fetch_it_once(tmp_path, dataset):
    name, _, server = dataset
    started = [processes.fork(lambda: load(name, root=tmp_path / "root", download=True)) for _ in range(2)]
    assert [processes.wait(one) for one in started] == [0, 0]
    assert server.served == 2  # torchvision asks where the address leads, then fetches


def test_a_killed_unpacking_is_mended(tmp_path, dataset):
    name, splits, server = dataset

    def dies_in_the_middle():
        from prune_env.data import cifar

        def extract(archive, folder):
            (Path(folder) / "half").mkdir()
            os.kill(os.getpid(), 9)

        cifar.extract_archive = tiny_imagenet.extract_archive = extract
        load(name, root=tmp_path / "root", download=True)

    assert processes.wait(processes.fork(dies_in_the_middle)) == -9
    load(name, root=tmp_path / "root", download=True)
    assert_holds(name, tmp_path / "root", splits)
    assert not list((tmp_path / "root").glob("*unpacking*"))
    assert server.served == 2  # torchvision asks where the address leads, then fetches


def test_an_incomplete_folder_of_tiny_imagenet_is_left_to_the_user(tmp_path):
    (tmp_path / "tiny-imagenet-200").mkdir()
    with pytest.raises(FileExistsError, match=r"tiny-imagenet-200 exists but is incomplete: remove"):
        load("tiny_imagenet", root=tmp_path, download=True)


def test_a_root_that_cannot_be_written_is_named(dataset):
    folder = Path(processes.public_folder())
    try:
        with (
            processes.others_folder(folder),
            pytest.raises(OSError, match=rf"cannot put .* into {folder}: .*make room"),
        ):
            load(dataset[0], root=folder, download=True)
    finally:
        shutil.rmtree(folder)
