"""The leaderboard: planted records give the rows that a person would write, and the committed page is up to date."""

import json
from pathlib import Path

import pytest

from train import leaderboard

ROOT = Path(__file__).parents[2]
ACCURACIES = {  # in per cent, by agent, of seeds 0, 1, 2
    "full": [90.0, 91.0, 92.0],
    "random:keep=0.5": [90.0, 91.5, 92.0],  # 0, +0.5, 0
    "ucb:keep=0.5": [92.0, 93.5, 94.0],  # +2, +2.5, +2
    "el2n:keep=0.5": [85.0, 86.5, 87.0],  # -5, -4.5, -5
}
# Of three differences one is half a point off: the standard error is 1/6, and t of two degrees of freedom is 4.303.
ROWS = """## digits

### digits, budget 3

| agent | points over full | test accuracy % | kept % | seeds |
|---|---|---|---|---|
| `ucb:keep=0.5` | +2.17 [+1.45, +2.88] | 93.17 | 50 | 3 |
| `random:keep=0.5` | +0.17 [-0.55, +0.88] | 91.17 | 50 | 3 |
| `full` | | 91.00 | 100 | 3 |

Below full: `el2n:keep=0.5` (-4.83).
"""


def write(folder: Path, accuracies: dict[str, list[float]], budget: float = 3.0) -> Path:
    """Write a folder of results with what the page reads."""
    folder.mkdir()
    lines = []
    for agent, values in accuracies.items():
        for seed, value in enumerate(values):
            results = {"test_accuracy": value / 100, "kept": 1.0 if agent == "full" else 0.5, "coverage": 1.0}
            results |= {"spent": {"total": budget}, "seconds": {"total": 1.0, "select": 0.0}}
            run = {"task": "digits", "agent": agent, "budget": budget, "seed": seed, "results": results}
            lines.append(json.dumps({"key": f"{agent}-{budget}-{seed}", **run}))
    (folder / "results.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def test_planted_records_have_the_rows_computed_by_hand(tmp_path: Path):
    old = {"full": ACCURACIES["full"], "ucb:keep=0.5": [10.0, 10.0, 10.0]}
    folders = [write(tmp_path / "old", old), write(tmp_path / "new", ACCURACIES)]  # the last folder counts
    folders.append(write(tmp_path / "other", {"full": [95.0]}, budget=6.0))  # with nothing to rank
    out = tmp_path / "page.md"
    assert leaderboard.main([*map(str, folders), "--out", str(out)]) == 0
    assert out.read_text() == leaderboard.HEAD + "\n" + ROWS


def test_without_results_nothing_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert leaderboard.main([str(tmp_path), "--out", str(tmp_path / "page.md")]) == 2
    assert "has no results" in capsys.readouterr().err
    assert not (tmp_path / "page.md").exists()


# over 2 s: it reads 4,000 records
def test_the_committed_page_is_that_of_the_committed_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(ROOT)
    assert leaderboard.main(["--out", str(tmp_path / "page.md")]) == 0
    assert (tmp_path / "page.md").read_text() == Path("docs/leaderboard.md").read_text()
