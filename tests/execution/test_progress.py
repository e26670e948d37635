"""What is said while runs go on."""

import json
import time
from pathlib import Path
from typing import Any

import pytest

from train.execution import checkpoints, progress
from train.execution.checkpoints import Checkpoint, Note
from train.execution.progress import RunProgress, follow
from train.execution.run import Failure, Run


def run_of(agent: str, seed: int, label: str = "") -> Run:
    return Run("prune_env/Digits-v0", {"budget": 10.0}, agent, seed, "task", f"{agent}-{seed}", label=label)


def ended(seconds: float, accuracy: float = 0.5) -> dict[str, Any]:
    return {"results": {"seconds": {"total": seconds}, "test_accuracy": accuracy}}


def note(folder: Path, run: Run, **more: Any) -> None:
    told = Note(step=1, spent=1.0, val_accuracy=0.25, seconds=1.0, saved=0) | more
    path = folder / checkpoints.FOLDER / run.key / checkpoints.NOTE
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(told))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Any:
    class Clock:
        now = 1000.0

    monkeypatch.setattr(progress.time, "monotonic", lambda: Clock.now)
    return Clock


def test_the_time_left_does_not_count_start_up(tmp_path: Path, clock: Any, capsys: pytest.CaptureFixture[str]):
    runs = [run_of("full", 0), run_of("full", 1), run_of("ucb", 0, "mine")]
    shown = RunProgress(tmp_path)
    shown.say("begins")
    with shown.of(runs):
        assert shown.look() == (0.0, "starting", [])
        clock.now += 100.0  # processes start, and read images
        note(tmp_path, runs[2], step=4, spent=2.0, seconds=8.0)
        where = "step 4, 2.0 of 10, validation 25.0 %: mine, seed 0"
        assert shown.look() == (2 / 30, "0:01:52 left", [where])  # 2 units in 8 s, and 28 to go
        clock.now += 5.0
        assert shown.look()[1] == "0:01:47 left"  # nothing new is known: it goes down
        clock.now += 7.0
        shown.advance(ended(20.0, 0.9), runs[0])  # 12 units in 20 s
        shown.advance(ended(20.0, 0.92), runs[1])  # 22
        (tmp_path / checkpoints.FOLDER / runs[2].key / checkpoints.NOTE).unlink()
        failure = Failure(runs[2], "KeyError: 'x'", "")
        shown.advance(failure, runs[2])
    assert capsys.readouterr().err.splitlines() == [
        "begins",
        "2/3 task, full, budget 10: test accuracy 91.00 % in 2 runs; 0:00:07 left",
        "task, mine, budget 10, seed 0: failed: KeyError: 'x'",
        "3/3 task, mine, budget 10: failed; 0:00:00 left",
    ]


def test_what_was_done_before_is_said_and_is_not_to_be_done(tmp_path: Path, clock: Any, capsys: Any):
    runs = [run_of("full", seed) for seed in range(3)]
    note(tmp_path, runs[0], step=9, spent=9.0, saved=8)
    note(tmp_path, runs[1], step=4, spent=4.0, saved=0)  # begins anew
    shown = RunProgress(tmp_path)
    with shown.of(runs):
        assert shown.look() == (0.0, "starting", [])
        clock.now += 2.0
        note(tmp_path, runs[0], step=10, spent=9.5, saved=9, seconds=50.0)
        assert shown.look()[:2] == (0.5 / 21, "0:01:22 left")  # half a unit in 2 s
    assert capsys.readouterr().err == "goes on with 1 run at step 8\n"


def test_where_there_is_no_terminal_it_speaks_up_now_and_then(tmp_path: Path, monkeypatch: Any, capsys: Any):
    monkeypatch.setattr(progress, "SILENCE", 0.1)
    shown = RunProgress(tmp_path)
    shown.say("begins")
    with shown.of([run_of("full", 0)]):
        note(tmp_path, run_of("full", 0))
        time.sleep(0.4)
    assert "0/1 runs, 0:00:0" in capsys.readouterr().err
    assert list(follow(iter("ab"), "letters", 2)) == ["a", "b"]
    assert capsys.readouterr().err == "letters: 2\n"


def test_a_run_leaves_notes_one_a_second_and_after_a_checkpoint(tmp_path: Path, clock: Any):
    checkpoint = Checkpoint(checkpoints.folder_of(tmp_path, "key"))
    found = []
    for step, now in enumerate((0.0, 0.9, 1.1, 1.2, 1.3), start=1):
        clock.now = 1000.0 + now
        if step == 5:
            checkpoint.save({})
        checkpoint.tell(Note(step=step, spent=1.0, val_accuracy=0.5, seconds=now, saved=0))
        found.append(checkpoints.notes(tmp_path).get("key", {}).get("step"))
    assert found == [None, None, 3, 3, 5]
