"""Runs that are killed, at any moment and however often, end as one that was not."""

import json
import os
import signal
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from prune_env import data
from prune_env.trainer import Trainer
from tests.helpers.processes import fork, full_disk, wait
from train.execution import checkpoints, provenance
from train.execution.agent import Seat
from train.execution.checkpoints import Checkpoint
from train.execution.process import Taken, locked
from train.execution.results import Record
from train.execution.run import Failure, Run, Terms, attempt, play

pytestmark = pytest.mark.usefixtures("one_thread")
HALF = "random:keep=0.5"  # costs 0.5 a step
SETTINGS = {"train_size": 100, "budget": 4.0, "device": "cpu", "model": "mlp:8", "batch_size": 25}


def run_of(agent: str = HALF) -> Run:
    return Run("prune_env/Digits-v0", SETTINGS, agent, 3, "digits")


def numbers(record: Record) -> str:
    """What must not depend on kills: all but seconds, and where it was done."""
    outcome = {name: value for name, value in record["results"].items() if name != "seconds"}
    return json.dumps([record["key"], outcome, record["curve"], record["configuration"]])


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def at_call(many: int, happens: Callable[[], None], function: Callable[..., Any]) -> Callable[..., Any]:
    """`function`, before whose call number `many`, counted from 1, something happens."""
    count = 0

    def counted(*args: Any, **more: Any) -> Any:
        nonlocal count
        count += 1
        if count == many:
            happens()
        return function(*args, **more)

    return counted


# where a process is killed, and what is called there
POINTS: dict[str, tuple[Any, str]] = {
    "decision": (Seat, "act"),  # between a checkpoint and the step that follows
    "batch": (torch, "_fused_sgd_"),  # two batches a step, so in mid-epoch
    "recording": (Checkpoint, "due"),  # the step is done, and recorded
    "saving": (torch, "save"),  # and no checkpoint of it begun
    "written": (os, "fsync"),  # in the middle of writing a checkpoint
    "renaming": (os, "replace"),  # written, and not in its place
    "test": (data, "load_test"),  # after the last step
}


def killed(run: Run, home: Path, point: str, many: int, files: dict[str, Path] | None = None) -> None:
    """Go on with `run` in a process that is killed by SIGKILL at the call number `many` there."""

    def work() -> None:
        warnings.simplefilter("ignore")
        env = run.make_env()
        owner, name = POINTS[point]
        setattr(owner, name, at_call(many, die, getattr(owner, name)))
        play(run, env, checkpoint=Checkpoint(home), files=files)

    assert wait(fork(work)) == -signal.SIGKILL, (point, many)


def finished(run: Run, home: Path) -> Record:
    return play(run, run.make_env(), checkpoint=Checkpoint(home))


@pytest.fixture(scope="module")
def straight() -> Record:
    """The run that nobody kills: 8 steps of 0.5."""
    run = run_of()
    record = play(run, run.make_env())
    assert record["curve"]["spent"] == [0.5 * step for step in range(1, 9)]
    return record


def others(*kills: tuple[str, int]) -> Any:
    """Kills that are tried in slow tests: each is a process."""
    return pytest.param(list(kills), marks=pytest.mark.slow)


@pytest.mark.parametrize(
    "kills",
    [
        [("written", 3), ("decision", 2)],
        others(("batch", 2)),  # the first step, of which nothing is kept
        others(("recording", 5), ("saving", 1)),
        others(("written", 1), ("renaming", 5)),
        others(("test", 1)),  # the last step is not kept: it is done again
        others(("batch", 10), ("batch", 2), ("renaming", 2), ("decision", 2), ("test", 1)),
    ],
    ids=str,
)
def test_killed_and_gone_on_with_it_ends_the_same(kills: list[tuple[str, int]], tmp_path: Path, straight: Record):
    for point, many in kills:
        killed(run_of(), tmp_path / "run", point, many)
    record = finished(run_of(), tmp_path / "run")
    assert numbers(record) == numbers(straight)
    assert record["results"]["spent"]["total"] == 4.0  # what is done twice is charged once


def test_a_run_goes_on_from_its_checkpoint_and_says_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for place in ("first", "second"):
        monkeypatch.setattr(provenance, "of_machine", lambda place=place: place)
        killed(run_of(), tmp_path / "run", "decision", 3)
    steps, epoch = [], Trainer.train_epoch
    monkeypatch.setattr(Trainer, "train_epoch", lambda *args: steps.append(0) or epoch(*args))
    record = finished(run_of(), tmp_path / "run")
    assert len(steps) == 8 - 2 * 2
    assert record["provenance"]["machines"] == ["first", "second"]


@pytest.mark.parametrize("before", [True, False])
def test_selections_are_whole_whatever_was_asked_for_before_the_kill(before: bool, tmp_path: Path):
    files = {"selections": tmp_path / "it.npz"}
    killed(run_of(), tmp_path / "run", "decision", 3, files if before else None)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        run = run_of()
        play(run, run.make_env(), checkpoint=Checkpoint(tmp_path / "run"), files=files)
    assert any("no selections" in str(each.message) for each in warned) == (not before)
    found = np.load(files["selections"])["weight"]
    # slices of permutations: every second step keeps what the one before did not
    assert (found[::2] + found[1::2]).tolist() == [[1.0] * 100] * 4
    assert found.sum(axis=1).tolist() == [50.0] * 8


def test_an_agent_without_a_state_starts_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    module = (
        "from agents import make\n\nclass Counts:\n    def __init__(self):\n        self.count, self.full = 0, "
        "make('random')\n    def __call__(self, seen, rng):\n        self.count += 1\n        return "
        "self.full(seen, rng)\n"
    )
    (tmp_path / "counts_steps.py").write_text(module)
    monkeypatch.syspath_prepend(str(tmp_path))
    run = run_of("counts_steps:Counts")
    expected = play(run, run.make_env())
    killed(run, tmp_path / "run", "decision", 5)
    assert not (tmp_path / "run").exists()
    assert numbers(finished(run, tmp_path / "run")) == numbers(expected)


def test_an_agent_that_was_edited_starts_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    module = "from agents.baselines import Random\n\n\nclass Mine(Random):\n    pass\n"
    (tmp_path / "edited_slices.py").write_text(module)
    monkeypatch.syspath_prepend(str(tmp_path))
    run = run_of("edited_slices:Mine")
    expected = play(run, run.make_env())
    killed(run, tmp_path / "run", "decision", 5)
    (tmp_path / "edited_slices.py").write_text(f"# another\n{module}")
    with pytest.warns(UserWarning, match="seed 3, starts over: .*the agent has changed"):
        assert numbers(finished(run, tmp_path / "run")) == numbers(expected)


@pytest.fixture(scope="module")
def half_way(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The checkpoint of a run after its fourth step."""
    home = tmp_path_factory.mktemp("run")
    killed(run_of(), home, "decision", 5)
    path = home / "checkpoint.pt"
    return path.read_bytes()


@pytest.mark.parametrize("damage", ["cut", "empty", "foreign", "pickle", "another agent", "another run"])
def test_a_checkpoint_that_cannot_be_used_is_named_and_the_run_starts_over(
    damage: str, tmp_path: Path, straight: Record, half_way: bytes
):
    path = tmp_path / "checkpoint.pt"
    contents = {"cut": half_way[:-100], "empty": b"", "foreign": b"PK" * 50}
    path.write_bytes(contents.get(damage, half_way))
    run, expected, words = run_of(), straight, "checkpoint.pt cannot be read, so this run starts over"
    if damage == "pickle":  # of code: it must not run
        torch.save({"env": die}, path)
    if damage.startswith("another"):
        of = {"agent": "ucb"} if damage == "another agent" else {"settings": {**SETTINGS, "lr": 0.1}}
        run, words = replace(run, **of), "run '.*', seed 3, starts over: "
        expected = play(run, run.make_env())
    with pytest.warns(UserWarning, match=words):
        assert numbers(finished(run, tmp_path)) == numbers(expected)


def test_a_full_disk_costs_checkpoints_and_no_run(tmp_path: Path, straight: Record):
    with full_disk(1000), pytest.warns(UserWarning, match="no checkpoint: cannot write"):
        record = finished(run_of(), tmp_path / "run")
    assert numbers(record) == numbers(straight)
    assert not list((tmp_path / "run").iterdir())


def test_checkpoints_are_that_far_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    now = 0.0
    monkeypatch.setattr(checkpoints.time, "monotonic", lambda: now)
    checkpoint = Checkpoint(tmp_path, every=60.0)
    due = []
    for now in (59.0, 60.0, 119.0, 120.0, 121.0):  # noqa: B007  (read above)
        due.append(checkpoint.due())
        if due[-1]:
            checkpoint.save({})
    assert due == [False, True, False, True, False]


def test_whoever_goes_on_waits_for_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, straight: Record):
    run = replace(run_of(), key=straight["key"])
    terms = Terms(tmp_path)
    folder = checkpoints.folder_of(tmp_path, run.key)
    monkeypatch.setattr("train.execution.run.OTHERS_END", 0.1)
    with locked(folder):
        refused = attempt(run, terms)
        with pytest.raises(Taken), locked(folder):
            pass
    assert isinstance(refused, Failure)
    assert "another program is writing to" in refused.error
    record = attempt(run, terms)
    assert isinstance(record, dict)
    assert numbers(record) == numbers(straight)
    checkpoints.forget(tmp_path, run.key)
    assert not (tmp_path / checkpoints.FOLDER).exists()
