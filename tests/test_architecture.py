"""Imports run one way: train, agents, prune_env; and inside prune_env from the face to the parts."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# module or room of prune_env -> what it may import of prune_env; a new one has to be placed here
ALLOWED: dict[str, set[str]] = {
    "__init__": {"env", "selection"},
    "env": {"budget", "checks", "data", "render", "selection", "stats", "students", "trainer"},
    "policy": {"data", "env", "policy", "selection", "students", "trainer"},
    "trainer": {"budget", "data", "ranks", "selection", "stats", "students"},
    "render": {"data"},
    "data": {"checks", "data", "io", "parent"},
    "students": {"budget", "checks", "selection", "stats", "students", "trainer"},
    "sampling": {"selection"},
    "parent": set(),
    "checks": set(),
    "budget": set(),
    "io": set(),
    "plain": set(),
    "ranks": set(),
    "selection": {"checks"},
    "stats": set(),
}
CORE_PACKAGES = {"gymnasium", "numpy", "torch", "torchvision"}
PILLOW = {"render", "data"}  # comes with torchvision: decoding images and drawing frames


def files(package: str) -> list[Path]:
    found = sorted((ROOT / package).rglob("*.py"))
    assert found, package
    return found


def imports(path: Path) -> set[str]:
    """Dotted names of what a file imports, also inside functions; relative ones resolved."""
    names: set[str] = set()
    package = path.relative_to(ROOT).parent.parts
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            module = ".".join(filter(None, [base, node.module]))
            names |= {f"{module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Call) and getattr(node.func, "id", getattr(node.func, "attr", "")) == "__import__":
            raise AssertionError(f"{path} calls __import__, which this test cannot follow")
    return names


def top(name: str) -> str:
    return name.partition(".")[0]


def inside(name: str) -> str:
    """prune_env.data.load -> data; prune_env.PruneEnv -> __init__."""
    part = name.split(".")[1] if "." in name else "__init__"
    here = ROOT / "prune_env"
    return part if (here / f"{part}.py").exists() or (here / part).is_dir() else "__init__"


def module(path: Path) -> str:
    return path.relative_to(ROOT / "prune_env").with_suffix("").parts[0]


@pytest.mark.parametrize("path", files("prune_env"), ids=lambda path: str(path.relative_to(ROOT)))
def test_the_core_imports_downwards_only(path):
    allowed = ALLOWED[module(path)]
    for name in imports(path):
        if top(name) == "prune_env":
            assert inside(name) in allowed, f"{path.name} imports {name}"
        elif top(name) not in sys.stdlib_module_names:
            packages = CORE_PACKAGES | ({"PIL"} if module(path) in PILLOW else set())
            assert top(name) in packages, f"{path.name} imports {name}"


def test_the_arrows_have_no_cycle():
    def depth(name: str, above: tuple[str, ...] = ()) -> int:
        assert name not in above, f"cycle: {above} {name}"
        return 1 + max((depth(below, (*above, name)) for below in ALLOWED[name] - {name}), default=0)

    assert depth("__init__") > depth("env") > depth("trainer") > max(map(depth, ALLOWED["trainer"]))
    there = {module(path) for path in files("prune_env")}
    assert there == set(ALLOWED)


# file of agents -> what else it may import: learned policies act through features and rules, and are read from files
MORE = {
    "__init__.py": {"prune_env.policy.features", "prune_env.policy.rules"},
    "rules.py": {"prune_env.policy.rules"},
    "learned.py": {
        "gymnasium.spaces",
        "prune_env.policy.features",
        "prune_env.policy.rules",
        "prune_env.io",
        "safetensors",
        "stable_baselines3",
        "sb3_contrib",
    },
}


@pytest.mark.parametrize("path", files("agents"), ids=lambda path: path.name)
def test_agents_import_numpy_and_select_only(path):
    allowed = {"agents", "numpy", "prune_env.select"} | sys.stdlib_module_names | MORE.get(path.name, set())
    for name in imports(path):
        assert any(name == one or name.startswith(f"{one}.") for one in allowed), f"{path.name} imports {name}"


def test_agents_load_without_what_only_policies_need():
    """safetensors and Stable-Baselines3 come with the extra for training."""
    heavy = ("safetensors", "stable_baselines3", "sb3_contrib")
    code = f"import sys, agents; agents.make('rule'); print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize("path", files("train"), ids=lambda path: path.name)
def test_nothing_imports_the_tests_and_nothing_below_imports_the_programs(path):
    assert not {top(name) for name in imports(path)} & {"tests", "pytest", "hypothesis"}


def test_the_reader_of_imports_reads_all_forms(tmp_path, monkeypatch):
    monkeypatch.setattr(f"{__name__}.ROOT", tmp_path)
    folder = tmp_path / "prune_env" / "sub"
    folder.mkdir(parents=True)
    (tmp_path / "prune_env" / "data.py").touch()
    (folder / "a.py").write_text(
        "import os.path as p, agents.ucb\nfrom . import b\nfrom ..data import load\n"
        "def f():\n    from train import learn\n    if True:\n        import scipy\n"
    )
    names = imports(folder / "a.py")
    assert names == {"os.path", "agents.ucb", "prune_env.sub.b", "prune_env.data.load", "train.learn", "scipy"}
    assert [inside(name) for name in ("prune_env.data.load", "prune_env.PruneEnv", "prune_env")] == [
        "data",
        "__init__",
        "__init__",
    ]
