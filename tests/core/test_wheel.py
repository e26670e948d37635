"""The wheel: what it has works where there is no checkout."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.test_readme import BLOCK, ROOT

PARTS = ("prune_env", "pyproject.toml", "LICENSE", "docs/wheel.md")
# what the wheel does not depend on, and an installed checkout may have
WITHOUT = "import sys; sys.modules |= dict.fromkeys(['agents', 'train', 'stable_baselines3', 'scipy', 'tyro', 'rich'])"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The content of the wheel, in a folder that can be put on the path."""
    home = tmp_path_factory.mktemp("wheel")
    files = subprocess.run(["git", "ls-files", *PARTS], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in files.splitlines():
        (home / "source" / name).parent.mkdir(parents=True, exist_ok=True)
        (home / "source" / name).write_bytes((ROOT / name).read_bytes())
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", home, home / "source"]
    subprocess.run(command, check=True)
    (built,) = home.glob("*.whl")
    with zipfile.ZipFile(built) as file:
        file.extractall(home / "site")
    return home / "site"


def run(wheel: Path, home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python with the wheel in front of whatever is installed."""
    environment = {**os.environ, "PYTHONPATH": str(wheel), "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, *arguments], cwd=home, env=environment, capture_output=True, text=True)


@pytest.mark.slow  # builds the wheel
def test_its_description_runs_and_the_programs_are_elsewhere(wheel: Path, tmp_path: Path):
    page = (ROOT / "docs" / "wheel.md").read_text()
    where = "import prune_env; print(prune_env.__file__)"
    (tmp_path / "page.py").write_text("\n".join([WITHOUT, where, *BLOCK.findall(page)]))
    done = run(wheel, tmp_path, "page.py")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == str(wheel / "prune_env" / "__init__.py")
    assert {path.name for path in wheel.iterdir() if path.suffix != ".dist-info"} == {"prune_env"}
    (info,) = wheel.glob("*.dist-info")
    assert page in (info / "METADATA").read_text()
    assert "prune-env = prune_env.__main__:main" in (info / "entry_points.txt").read_text().splitlines()
    refused = run(wheel, tmp_path, "-m", "prune_env", "evaluate")
    assert refused.returncode == 2
    assert refused.stderr.count("\n") == 1
    assert "not in the wheel" in refused.stderr
