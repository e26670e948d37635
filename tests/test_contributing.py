"""The diffs of CONTRIBUTING.md fit the code: what stands around and in place of their new lines occurs once."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DIFFS = re.findall(r"^```diff\n(.*?)^```", (ROOT / "CONTRIBUTING.md").read_text(), re.M | re.S)


def apply(diff: str, folder: Path) -> list[Path]:
    """Apply a diff without line numbers to the files below `folder`; return them."""
    changed = []
    for name, hunks in re.findall(r"^--- (\S+)\n(.*?)(?=^--- |\Z)", diff, re.M | re.S):
        path = folder / name
        text = path.read_text() if path.exists() else ""
        for hunk in filter(None, re.split(r"^@@\n", hunks, flags=re.M)):
            old, new = ("".join(re.findall(rf"^[ {sign}](.*\n)", hunk, re.M)) for sign in "-+")
            assert text.count(old) == 1 or not path.exists(), f"{name} has not exactly one\n{old}"
            text = text.replace(old, new) if old else text + new
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        changed.append(path)
    return changed


@pytest.mark.parametrize("diff", DIFFS, ids=lambda diff: diff.split()[1])
def test_a_diff_fits_the_code(diff, tmp_path):
    assert diff.count("\n") < 20
    names = re.findall(r"^--- (\S+)", diff, re.M)
    for name in names:
        if (ROOT / name).exists():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text((ROOT / name).read_text())
    for path in apply(diff, tmp_path):
        compile(path.read_text(), str(path), "exec")
