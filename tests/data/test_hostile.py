"""Nothing that is read can run, and no archive writes outside its folder."""

import ast
import hashlib
import os
import pickle
import stat
import tarfile
import zipfile
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.datasets import CIFAR10

import agents
from agents.learned import Learned, Network
from prune_env import io, plain
from prune_env.data import cifar
from prune_env.data.download import untar, unzip
from prune_env.data.sources import read
from prune_env.io import DamagedFile
from tests.helpers import trees

ROOT = Path(__file__).parents[2]

# The source: every call that could make code of data.

# What turns data into objects by running it. `load` of json, tomllib or safetensors is not among them, nor is
# numpy's when it says allow_pickle=False.
MODULES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "marshal", "shelve", "joblib", "yaml", "jsonpickle"}
BUILTINS = {"eval", "exec", "compile", "__import__"}
LOADERS = {"load", "loads", "read_pickle", "recv", "unsafe_load", "full_load", "load_all", "Unpickler", "interact"}
HARMLESS = {"json.load", "json.loads", "tomllib.load", "tomllib.loads", "Network.load", "data.load", "safetensors.load"}

# file, what stands there -> why it may
PERMITTED = {
    ("prune_env/data/cifar.py", "import pickle"): "the format of CIFAR",
    ("prune_env/data/cifar.py", "pickle.Unpickler"): "looks up no name: see test_a_hostile_batch_of_cifar",
    ("prune_env/data/cifar.py", "_Unpickler(BytesIO(content), encoding='bytes').load"): "the same",
    (
        "agents/learned.py",
        "algorithm.load",
    ): "Stable-Baselines3's own reader, under trust=True only: see test_a_hostile_policy",
    ("train/execution/workers.py", "recv"): "the ends of a pipe to a process that this one started",
    ("train/learning/subproc_env.py", "recv"): "the same",
    ("train/learn.py", "torch.load"): "with weights_only=True",
}


def dangers(source: str) -> Iterator[str]:
    """What in a source could run data: imports, names and calls, as they stand there."""
    imported: dict[str, str] = {}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (f"import {one.name}" for one in node.names if one.name.partition(".")[0] in MODULES)
        elif isinstance(node, ast.ImportFrom):
            module = (node.module or "").partition(".")[0]
            imported |= {one.asname or one.name: f"{module}.{one.name}" for one in node.names}
            if module in MODULES:
                yield f"import {module}"
    tree = ast.parse(source)
    # names of arguments and of fields, as of a setting that says what is compiled
    declared = {id(node.target) for node in ast.walk(tree) if isinstance(node, ast.AnnAssign)}
    for function in (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)):
        own = {one.arg for one in (*function.args.args, *function.args.kwonlyargs)}
        declared |= {id(node) for node in ast.walk(function) if isinstance(node, ast.Name) and node.id in own}
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            yield from (ast.unparse(base) for base in node.bases if ast.unparse(base).endswith("Unpickler"))
        elif isinstance(node, ast.Name) and node.id in BUILTINS and id(node) not in declared:
            yield node.id
        elif isinstance(node, ast.Call):
            said = ast.unparse(node.func)
            name = imported.get(said, said)
            if name.rpartition(".")[2] not in LOADERS or name in HARMLESS:
                continue
            allow = [one.value for one in node.keywords if one.arg == "allow_pickle"]
            if name in ("np.load", "numpy.load") and [getattr(one, "value", None) for one in allow] == [False]:
                continue
            yield "recv" if name.endswith("recv") else said


def test_nothing_in_the_source_makes_code_of_data():
    sources = [path for folder in ("prune_env", "agents", "train") for path in sorted((ROOT / folder).rglob("*.py"))]
    assert len(sources) > 60
    found = {(path.relative_to(ROOT).as_posix(), one) for path in sources for one in dangers(path.read_text())}
    assert found == set(PERMITTED)


@pytest.mark.parametrize(
    ("source", "seen"),
    [
        ("import pickle as p", ["import pickle"]),
        ("from pickle import loads as l\nl(x)", ["import pickle", "l"]),
        ("def f():\n    import joblib", ["import joblib"]),
        ("import torch\ntorch.load(p)", ["torch.load"]),
        ("from torch import load\nload(p, weights_only=True)", ["load"]),
        ("from torch import load as read\nread(p)", ["read"]),
        ("np.load(p)", ["np.load"]),
        ("np.load(p, allow_pickle=True)", ["np.load"]),
        ("np.load(p, allow_pickle=x)", ["np.load"]),
        ("np.load(p, allow_pickle=False)", []),
        ("json.loads(p)", []),
        ("from safetensors.numpy import load\nload(p)", []),
        ("model.eval()\nast.literal_eval(x)", []),
        ("eval(x)\nf = exec", ["eval", "exec"]),
        ("class A:\n    compile: str\ndef f(exec, *, eval):\n    g(exec, eval)", []),
        ("def f(exec):\n    eval(exec)", ["eval"]),
        ("pd.read_pickle(x)", ["pd.read_pickle"]),
        ("class A(p.Unpickler): pass", ["p.Unpickler"]),
        ("PPO.load(p)", ["PPO.load"]),
    ],
)
def test_the_reader_of_sources_sees(source, seen):
    assert sorted(dangers(source)) == sorted(seen)


# The readers: a file that would leave a mark.


class Mark:
    """Unpickled, it makes an empty file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch '{self.path}'",)


@pytest.fixture
def mark(tmp_path, monkeypatch):
    """Where the mark of what ran would be: nowhere at the end."""
    monkeypatch.setenv("PRUNE_ENV_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "it ran"
    pickle.loads(pickle.dumps(Mark(path)))
    assert path.exists()  # so it would be seen
    path.unlink()
    yield path
    assert not path.exists()


def test_a_hostile_batch_of_cifar(tmp_path, monkeypatch, mark):
    """Also where its checksum is in the list."""
    splits = trees.cifar10(tmp_path, monkeypatch)
    folder = tmp_path / CIFAR10.base_folder
    official = cifar._checksums(CIFAR10)
    for name in ("data_batch_1", "test_batch", "batches.meta"):
        good = (folder / name).read_bytes()
        whole = cifar._unpickled(good)
        data = {"data": splits["train"][0][:20].reshape(20, -1), "labels": [0] * 20, "label_names": ["a"] * 10}
        hostile = [pickle.dumps(Mark(mark), protocol) for protocol in range(6)]
        hostile += [pickle.dumps({"data": Mark(mark), **whole}), pickle.dumps({**data, "more": Mark(mark)})]
        hostile += [pickle.dumps([Mark(mark)]) + good, good[:-1] + b"0" + pickle.dumps(Mark(mark))[2:]]
        hostile += [b"cos\nsystem\n(S'touch " + str(mark).encode() + b"'\ntR.", b"", b"no pickle", good[:-100]]
        hostile += [b"\x80\x04" + b"cnumpy\nload\n(S'x'\ntR.", b"c__builtin__\neval\n(S'1'\ntR.", b"}.", b"N."]
        for content in hostile:
            (folder / name).write_bytes(content)
            with pytest.raises(DamagedFile, match=rf"{name} (has another checksum|is missing or empty)"):
                cifar.read(CIFAR10, tmp_path, "train")
            with monkeypatch.context() as patch:
                md5 = io.file_digest(folder / name, "md5")
                patch.setattr(cifar, "_checksums", lambda _, name=name, md5=md5: {**official, name: md5})
                split = "test" if name == "test_batch" else "train"
                with pytest.raises(DamagedFile, match=r"not CIFAR, in spite of their checksums|missing or empty"):
                    cifar.read(CIFAR10, tmp_path, split)
        (folder / name).write_bytes(good)
    assert len(cifar.read(CIFAR10, tmp_path, "train").labels) == 100


@pytest.mark.parametrize("module", ["numpy", "numpy.core.multiarray", "numpy.lib.npyio", "numpy.testing"])
def test_names_in_a_batch_of_cifar_are_not_looked_up(module, mark):
    """Not even those of numpy, which can read files and run code too."""
    made = cifar._Unpickler(BytesIO(f"c{module}\nload\n(S'{mark}'\ntR.".encode()), encoding="bytes").load()
    assert type(made) is cifar._Inert
    with pytest.raises(pickle.UnpicklingError, match=r"it names posix.system"):
        cifar._Unpickler(BytesIO(pickle.dumps(Mark(mark)))).load()


def sealed(path: Path, content: bytes) -> bytes:
    """`content` in place of the arrays in a file of ours, with a digest that is right."""
    io.save_arrays(path, nothing=np.zeros(0))
    header = path.read_bytes().partition(b"\n")[0]
    digest = hashlib.sha256(content).hexdigest().encode()
    return header[:-64] + digest + b"\n" + content


def npz(**arrays: object) -> bytes:
    file = BytesIO()
    np.savez(file, **{name: np.asarray(value) for name, value in arrays.items()})  # pyright: ignore
    return file.getvalue()


def test_a_hostile_cache(tmp_path, mark):
    """Its digest is right, as whoever can write it can make it so."""
    splits = trees.imagefolder(tmp_path / "data", per_class=2)
    images, labels = splits["train"]
    read("imagefolder", "train", tmp_path / "data", False, None)
    (path,) = (tmp_path / "cache" / "decoded").iterdir()
    whole = io.load_arrays(path)
    evil = np.array([Mark(mark), None], object)
    contents = [npz(**{**whole, name: evil}) for name in whole]
    array = BytesIO()
    np.save(array, images)
    contents += [npz(images=images), pickle.dumps(Mark(mark)), b"", npz(**whole)[:-30], array.getvalue()]
    for content in contents:
        path.write_bytes(sealed(tmp_path / "header", content))
        with pytest.warns(UserWarning, match=str(path)):
            samples = read("imagefolder", "train", tmp_path / "data", False, None)
        np.testing.assert_array_equal(samples.images, images)
        np.testing.assert_array_equal(samples.labels, labels)
    path.write_bytes(sealed(tmp_path / "header", npz(**whole)))  # what is right is taken: the digests above were right
    assert len(io.load_arrays(path)) == len(whole)


def test_a_hostile_file_of_arrays(tmp_path, mark):
    for content in (npz(a=np.array([Mark(mark)], object)), pickle.dumps(Mark(mark))):
        (tmp_path / "file").write_bytes(sealed(tmp_path / "header", content))
        with pytest.raises((ValueError, zipfile.BadZipFile)):
            io.load_arrays(tmp_path / "file")
        (tmp_path / "file").write_bytes(content)
        with pytest.raises(DamagedFile):
            io.load_arrays(tmp_path / "file")


def test_a_hostile_checkpoint(tmp_path, mark):
    """Its digest is right."""
    path = tmp_path / "checkpoint"
    objects = pickle.dumps(np.array([Mark(mark)], object))
    contents = [*hostile_policies(mark), b'["array","|O",[1]]\n' + bytes(8), b'["pickle",3]\n' + objects, objects]
    for content in contents:
        io.seal(path, "checkpoint 1", content)
        with pytest.raises(ValueError, match=r"not from pack|Expecting value|codec can't decode"):
            plain.unpack(io.unseal(path, "checkpoint 1"))
        path.write_bytes(content)
        with pytest.raises(DamagedFile, match=f"{path} is damaged"):
            io.unseal(path, "checkpoint 1")


def hostile_policies(mark: Path) -> Iterator[bytes]:
    for content in ({"0.weight": Mark(mark)}, Mark(mark)):
        yield pickle.dumps(content)
        saved = BytesIO()
        torch.save(content, saved)
        yield saved.getvalue()
        zipped = BytesIO()
        with zipfile.ZipFile(zipped, "w") as archive:  # what Stable-Baselines3 would unpickle
            archive.writestr("data", '{"policy_class": {":type:": "t", ":serialized:": "gASV"}}')
            archive.writestr("policy.pth", pickle.dumps(content))
        yield zipped.getvalue()


@pytest.mark.parametrize("name", ["a.safetensors", "a.pt", "a.pkl", "a", "a.zip"])
def test_a_hostile_policy(tmp_path, mark, name):
    path = tmp_path / name
    for content in hostile_policies(mark):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="is damaged, or no safetensors file"):
            Network.load(path)
        for make in (lambda: Learned(path=str(path)), lambda: agents.make(f"learned:{path}")):
            with pytest.raises(ValueError, match="runs code that it holds" if name.endswith("zip") else "is damaged"):
                make()


# Archives.


@pytest.fixture
def outside(tmp_path):
    """The root where an archive is unpacked; the folder around it holds a file to be hit, and nothing else appears."""
    (tmp_path / "target").write_text("untouched")
    (tmp_path / "root").mkdir()
    yield tmp_path / "root"
    assert (tmp_path / "target").read_text() == "untouched"
    assert {path.name for path in tmp_path.iterdir()} <= {"target", "root", "a.zip", "a.tar.gz"}
    assert not Path("/evil.txt").exists()


def special(name: str, kind: bytes, link: str = "") -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname, member.devmajor, member.devminor = kind, link, 1, 3
    return member


def tarred(path: Path, members: list[tarfile.TarInfo | tuple[str, bytes]]) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                archive.addfile(member)
            else:
                plain = tarfile.TarInfo(member[0])
                plain.size = len(member[1])
                archive.addfile(plain, BytesIO(member[1]))
    return path


@pytest.mark.parametrize("target", ["TARGET", "../target", "../../target"])
@pytest.mark.parametrize(
    "kind",
    ["path", "inner path", "same name elsewhere", "link and file", "link to a folder", "hard link", "device"],
)
def test_a_hostile_tar(tmp_path, outside, kind, target):
    target = str(tmp_path / "target") if target == "TARGET" else target
    evil = {
        "path": [(target, b"evil")],
        "inner path": [(f"inside/{target}", b"evil"), (f"inside/./../{target}", b"evil")],
        "same name elsewhere": [("a", b"evil"), ("other/a", b"evil"), ("/inside/a", b"evil"), ("inside/b/a", b"evil")],
        "link and file": [special("inside/b", tarfile.SYMTYPE, target), ("inside/b", b"evil")],
        "link to a folder": [
            special("inside/sub", tarfile.SYMTYPE, target.removesuffix("target")),
            ("inside/sub/target", b"evil"),
            special("inside", tarfile.SYMTYPE, target.removesuffix("target") or "."),
            ("inside/target", b"evil"),
        ],
        "hard link": [special("inside/b", tarfile.LNKTYPE, target), ("inside/b", b"evil")],
        "device": [special("inside/b", tarfile.CHRTYPE), special("inside/c", tarfile.FIFOTYPE)],
    }[kind]
    archive = tarred(tmp_path / "a.tar.gz", [*evil, ("inside/a", b"good")])
    untar(archive, outside / "inside", ["a"])
    assert os.listdir(outside / "inside") == ["a"]
    assert (outside / "inside" / "a").read_bytes() == b"good"
    assert os.listdir(outside) == ["inside"]


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE])
def test_a_tar_whose_wanted_file_is_something_else(tmp_path, outside, kind):
    archive = tarred(tmp_path / "a.tar.gz", [special("inside/a", kind, str(tmp_path / "target"))])
    with pytest.raises(DamagedFile, match="lacks a in inside/"):
        untar(archive, outside / "inside", ["a"])
    assert os.listdir(outside) == []


@pytest.mark.parametrize(
    "name",
    ["../evil.txt", "inside/../../evil.txt", "/evil.txt", "..\\evil.txt", "other/evil.txt", "inside/..\\..\\evil.txt"],
)
def test_a_hostile_zip(tmp_path, outside, name):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("inside/good.txt", "good")
        archive.writestr(name, "evil")
    with pytest.raises(DamagedFile, match=r"not in inside/: not unpacked"):
        unzip(tmp_path / "a.zip", outside / "inside")
    assert os.listdir(outside) == []


def test_a_zip_with_a_link(tmp_path, outside):
    link = zipfile.ZipInfo("inside/sub")
    link.create_system, link.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr(link, str(tmp_path))
        archive.writestr("inside/sub/target", "evil")
    with pytest.raises(DamagedFile, match=r"holds 'inside/sub', which is a link: not unpacked"):
        unzip(tmp_path / "a.zip", outside / "inside")
    assert os.listdir(outside) == []
