"""Runs that are killed, at any moment and however often, end as one that was not; what was lost is told."""

import copy
import json
import os
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any, cast

import gymnasium as gym
import numpy as np
import pytest
import torch

from prune_env import PruneEnv, io, select
from prune_env.plain import pack, unpack
from prune_env.trainer import Trainer
from tests.agents.test_learned import choosing
from tests.helpers import trees
from tests.helpers.processes import fork, wait
from train.execution import checkpoints, companion, episode, provenance, results, workers
from train.execution.checkpoints import KIND, Keeper, folder_of
from train.execution.episode import Run, play
from train.execution.results import Record

pytestmark = pytest.mark.usefixtures("one_thread")
ROOT = Path(__file__).parents[2]
CHOICE = ",agents=infobatch/swdpp/same_amounts:ucb"
HALF = "random:keep=0.5"  # costs 0.5 a step
SETTINGS = {"train_size": 100, "budget": 4.0, "device": "cpu", "model": "mlp:8", "batch_size": 25}


# The state of an environment


def digits(model: str, **more: Any) -> PruneEnv:
    settings = {"train_size": 60, "budget": 4.0, "batch_size": 16, "device": "cpu", **more}
    return cast(PruneEnv, gym.make("prune_env/Digits-v0", model=model, **settings).unwrapped)


def folder(root: Path) -> PruneEnv:
    """With dropout: its masks are drawn from a generator of their own."""
    trees.imagefolder(root, per_class=16)
    settings = {"root": str(root), "model": "torchvision:mobilenet_v3_small", "budget": 3.0, "batch_size": 8}
    return cast(PruneEnv, gym.make("prune_env/ImageFolder-v0", **settings, device="cpu").unwrapped)


def actions(n: int, many: int) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(4)
    return [select(rng.random(n) < 0.6, rng.random(n) * 0.5 * (i % 2), rng.random(n) < 0.2) for i in range(many)]


def follow(env: PruneEnv, chosen: list[Any]) -> tuple[list[Any], bytes]:
    """All that comes of these actions until the end, and the weights then, the frame, and the next run's beginning."""
    found: list[Any] = []
    for action in chosen:
        found.append(env.step(action))
        if found[-1][2]:
            break
    assert found[-1][2]
    weights = cast(Trainer, env.trainer).model.state_dict()
    frame = env.render() if env.render_mode else None
    return found, pack([weights, frame, list(env.reset())])


ENVIRONMENTS: dict[str, Callable[[Path], PruneEnv]] = {
    "mlp": lambda _: digits("mlp:8"),
    "ansi": lambda _: digits("mlp:8", render_mode="ansi", label_smoothing=0.1, price=0.01),
    "rgb_array": lambda _: digits("mlp:8", render_mode="rgb_array", momentum=0.0),
    "convnet": lambda _: digits("convnet:4-4-4"),  # in channels_last, its momentum too
    "dropout": folder,
}


@pytest.mark.parametrize("kind", ENVIRONMENTS)
def test_an_environment_goes_on_bit_for_bit(kind: str, tmp_path: Path):
    env, other = (ENVIRONMENTS[kind](tmp_path / name) for name in "ab") if kind == "dropout" else (
        ENVIRONMENTS[kind](tmp_path) for _ in "ab"
    )  # fmt: skip
    chosen = actions(len(env.train_data), 30)
    begun, _ = env.reset(seed=5)
    states, seen = [pack(env.state_dict())], [begun]
    straight = []
    for action in chosen:
        straight.append(env.step(action))
        if straight[-1][2]:
            break
        seen.append(straight[-1][0])
        states.append(pack(env.state_dict()))
    env.reset(seed=5)
    found, ended = follow(env, chosen)
    assert pack(found) == pack(straight)  # the reference itself
    assert len(states) > 3
    for at in {0, 1, len(states) // 2, len(states) - 1}:
        if at % 2:
            other.reset(seed=8)  # whatever it was at before
        told = other.load_state_dict(unpack(states[at]))
        assert pack(told) == pack(seen[at])
        assert pack(other.state_dict()) == states[at]
        rest, rests_end = follow(other, chosen[at:])
        assert pack(rest) == pack(straight[at:])
        assert rests_end == ended
    with pytest.raises(gym.error.ResetNeeded):
        ENVIRONMENTS["mlp"](tmp_path).state_dict()


def test_a_finished_run_stays_finished():
    env, other = digits("mlp:8"), digits("mlp:8")
    env.reset(seed=1)
    env.step(select(np.zeros(60)))
    other.load_state_dict(unpack(pack(env.state_dict())))
    with pytest.raises(gym.error.ResetNeeded):
        other.step(select(np.ones(60)))


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"budget": 5.0}, "a run with budget=4.0; this one has 5.0"),
        ({"lr": 0.123}, "this one has 0.123"),
        ({"label_noise": 0.2}, "a run with data="),
        ({"train_size": 61}, "a run with data="),
        ({"model": "mlp:9"}, "a run with model='mlp:8'; this one has 'mlp:9'"),
        ({"momentum": 0.5}, "a run with momentum=0.9; this one has 0.5"),
        ({"ema": 0.5}, "a run with ema=0.8"),
    ],
)
def test_the_state_of_another_run_is_refused_and_changes_nothing(changed: dict[str, Any], words: str):
    env = digits("mlp:8")
    env.reset(seed=5)
    env.step(select(np.ones(60)))
    state = env.state_dict()
    other = digits(**{"model": "mlp:8", **changed})
    other.reset(seed=6)
    other.step(select(np.ones(len(other.train_data))))
    before, trainer = pack(other.state_dict()), other.trainer
    with pytest.raises(ValueError, match=words):
        other.load_state_dict(state)
    assert pack(other.state_dict()) == before
    assert other.trainer is trainer


WEIGHT = ("trainer", "model", "1.weight")
NO_STATES: dict[str, tuple[tuple[Any, ...], Any]] = {  # where something is put, and what
    "nothing": ((), {}),
    "None": ((), None),
    "no trainer": (("trainer",), None),
    "no run": (("trainer", "run"), None),
    "no weights": (("trainer", "model"), {}),
    "a weight": (WEIGHT, torch.ones(1, 64)),
    "a row": (("trainer", "statistics"), torch.ones(1, 11)),
    "NaN": (("trainer", "statistics"), torch.full((60, 11), float("nan"))),
    "no rate": (("trainer", "optimizer", "param_groups"), []),
    "no ledger": (("trainer", "ledger"), None),
    "no history": (("history",), {}),
    "no generator": (("generator",), {}),
    "another generator": (("generator", "bit_generator"), "MT19937"),
}


@pytest.mark.parametrize("kind", NO_STATES)
def test_what_is_no_state_is_refused_and_changes_nothing(kind: str):
    env = digits("mlp:8", render_mode="ansi")
    env.reset(seed=5)
    env.step(select(np.arange(60) < 30))
    (*path, last), bad = ["state", *NO_STATES[kind][0]], {"state": unpack(pack(env.state_dict()))}
    env.step(select(np.arange(60) < 40))
    before, trainer = pack(env.state_dict()), env.trainer
    part = bad
    for name in path:
        part = part[name]
    part[last] = NO_STATES[kind][1]
    with pytest.raises(ValueError, match="state"):
        env.load_state_dict(bad["state"])
    assert env.trainer is trainer
    assert pack(env.state_dict()) == before


# Runs


def run_of(agent: str = HALF, **more: Any) -> Run:
    return Run("prune_env/Digits-v0", {**SETTINGS, **more}, agent, 3, "digits")


def numbers(record: Record) -> str:
    """What must not depend on kills: all but seconds, and what is told of the kills."""
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
    "decision": (companion.Seat, "act"),  # between a checkpoint and the step that follows
    "batch": (Trainer, "_settle_norms"),  # two batches a step, so in mid-epoch
    "statistics": (Trainer, "conclude"),  # trained, validated, and not yet entered
    "recording": (Keeper, "due"),  # the step is done, and recorded
    "saving": (io, "seal"),  # the step is done, and no checkpoint of it begun
    "written": (os, "fsync"),  # in the middle of writing a checkpoint
    "renaming": (os, "replace"),  # written, and not in its place
    "thinning": (Path, "unlink"),  # in its place, and the oldest still there
    "test": (episode.data, "load_test"),  # after the last step
}


def killed(run: Run, home: Path, point: str, many: int, every: float = 0.0, of: str = "") -> None:
    """Go on with `run` in a process that is killed by SIGKILL at the call number `many` there."""

    def work() -> None:
        warnings.simplefilter("ignore")
        env = run.make_env()
        owner, name = POINTS[point]
        setattr(owner, name, at_call(many, die, getattr(owner, name)))
        play(run, env, keeper=Keeper(home, every, of))

    assert wait(fork(work)) == -signal.SIGKILL, (point, many)


def finished(run: Run, home: Path, every: float = 0.0) -> Record:
    return play(run, run.make_env(), keeper=Keeper(home, every))


def waste(record: Record) -> tuple[int, float]:
    told = record["provenance"]["waste"]
    return told["interruptions"], told["spent"]


@pytest.fixture(scope="module")
def straight() -> Record:
    """The run that nobody kills: 8 steps of 0.5."""
    run = run_of()
    record = play(run, run.make_env())
    assert record["curve"]["spent"] == [0.5 * step for step in range(1, 9)]
    assert waste(record) == (0, 0.0)
    return record


@pytest.mark.parametrize(
    ("point", "many", "lost"),
    [
        ("decision", 1, 0.0),
        ("decision", 5, 0.0),
        ("batch", 2, 0.5),  # the first step, of which nothing is kept
        ("batch", 10, 0.5),  # in the fifth, after the checkpoint at 2
        ("batch", 16, 0.5),  # in the last
        ("statistics", 5, 0.5),
        ("recording", 5, 0.5),
        ("saving", 5, 0.5),
        ("written", 5, 0.5),
        ("renaming", 1, 0.5),
        ("renaming", 5, 0.5),
        ("thinning", 12, 0.0),
        ("test", 1, 0.5),  # the last step is not kept: it is done again
    ],
)
def test_killed_once(point: str, many: int, lost: float, tmp_path: Path, straight: Record):
    killed(run_of(), tmp_path / "run", point, many)
    record = finished(run_of(), tmp_path / "run")
    assert numbers(record) == numbers(straight)
    assert waste(record) == (1, lost)
    assert record["results"]["spent"]["total"] == 4.0  # never in what is spent
    assert not [path for path in (tmp_path / "run").iterdir() if path.name.startswith(".")]  # leftovers are swept


@pytest.mark.parametrize(
    "kills",
    [
        [("batch", 10), ("batch", 2)],  # twice in the step after 2
        [("batch", 4), ("renaming", 3), ("decision", 2)],
        [("saving", 1), ("saving", 1), ("test", 1)],
    ],
)
def test_killed_several_times(kills: list[tuple[str, int]], tmp_path: Path, straight: Record):
    for point, many in kills:
        killed(run_of(), tmp_path / "run", point, many)
    record = finished(run_of(), tmp_path / "run")
    assert numbers(record) == numbers(straight)
    assert waste(record) == (len(kills), sum(0.5 for point, _ in kills if point != "decision"))


def test_a_run_that_goes_on_elsewhere_says_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Rounding may differ there; what is not kept was not done there."""
    monkeypatch.setattr(provenance, "of_machine", lambda: "nowhere")
    killed(run_of(), tmp_path / "run", "batch", 2)  # before anything is kept
    for place in ("first", "first", "third"):
        monkeypatch.setattr(provenance, "of_machine", lambda place=place: place)
        killed(run_of(), tmp_path / "run", "decision", 3)
    record = finished(run_of(), tmp_path / "run")
    assert record["provenance"]["machines"] == ["first", "third"]
    monkeypatch.undo()
    assert finished(run_of(), tmp_path / "other")["provenance"]["machines"] == [provenance.of_machine()]


@pytest.mark.parametrize("agent", ["infobatch", "kakurenbo", "same_amounts:el2n", "learned", "swdpp+mixup=0.5", CHOICE])
def test_agents_with_a_memory(agent: str, tmp_path: Path):
    if agent == CHOICE:
        agent = choosing(tmp_path / "policy.zip", 3) + CHOICE
    run = run_of(agent, budget=6.0)
    env = run.make_env()
    record = play(run, env)
    killed(run, tmp_path / "run", "statistics", 2)
    killed(run, tmp_path / "run", "saving", 2)
    again = finished(run, tmp_path / "run")
    assert numbers(again) == numbers(record)
    assert waste(again)[0] == 2
    spent = [0.0, *record["curve"]["spent"]]
    assert waste(again)[1] == pytest.approx(spent[3] - spent[1], abs=1e-5)


def test_a_run_killed_between_checkpoints_loses_all_since_the_last(tmp_path: Path, straight: Record):
    for many in (6, 4):  # no time for a checkpoint, and so all is lost
        killed(run_of(), tmp_path / "run", "statistics", many, every=1e9)
    record = finished(run_of(), tmp_path / "run", every=1e9)
    assert numbers(record) == numbers(straight)
    assert waste(record) == (2, 3.0 + 2.0)


def test_an_agent_that_cannot_be_captured_starts_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, straight: Record
):
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "closed_in.py").write_text(
        "from agents import make\n\ndef build():\n    inner = make('random:keep=0.5')\n"
        "    return lambda observation, rng: inner(observation, rng)\n\nagent = build()\n"
    )
    run = run_of("closed_in:agent")
    killed(run, tmp_path / "run", "batch", 10)
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["journal"]
    record = finished(run, tmp_path / "run")
    assert waste(record) == (1, 2.5)
    assert record["curve"] == straight["curve"]


def kept(home: Path) -> list[Path]:
    """Checkpoints, oldest first."""
    return sorted(path for path in home.iterdir() if path.name.isdecimal())


def test_the_last_two_are_kept(tmp_path: Path):
    killed(run_of(), tmp_path / "run", "batch", 10)
    assert [path.name for path in kept(tmp_path / "run")] == ["000000003", "000000004"]
    assert unpack(io.unseal(kept(tmp_path / "run")[1], KIND))["state"]["curve"]["spent"] == [0.5, 1.0, 1.5, 2.0]


def damages(good: bytes) -> dict[str, bytes]:
    head, rest = good.split(b"\n", 1)
    older = b"prune_env checkpoint 0 sha256 " + head[-64:] + b"\n" + rest
    flips = {f"bit {bit}": bytes(good[: bit // 8]) + bytes([good[bit // 8] ^ 1 << bit % 8]) + good[bit // 8 + 1 :]
             for bit in (3, 8 * 40, 8 * 120, 8 * len(good) // 2, 8 * len(good) - 1)}  # fmt: skip
    cuts = {f"{length} bytes": good[:length] for length in (0, 10, len(head) + 1, len(good) // 2, len(good) - 1)}
    return {**flips, **cuts, "page": b"<!DOCTYPE html>\n", "older": older, "longer": good + b"\0"}


def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(tmp_path: Path, straight: Record):
    home = tmp_path / "run"
    killed(run_of(), home, "batch", 10)  # in the step after 2
    contents = {path: path.read_bytes() for path in home.iterdir()}
    first, last = kept(home)

    def after(changes: dict[Path, bytes]) -> tuple[Record, list[str]]:
        for path in home.iterdir():
            path.unlink()
        for path, content in {**contents, **changes}.items():
            path.write_bytes(content)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            record = finished(run_of(), home)
        return record, [str(warning.message) for warning in caught]

    for name, content in damages(contents[last]).items():
        record, said = after({last: content})
        assert numbers(record) == numbers(straight), name
        assert waste(record) == (1, 1.0), name  # from 1.5, and 2.5 may have been reached
        assert len(said) == 1, name
        assert said[0].startswith(f"a checkpoint is passed over: {last} is "), said
        assert ("of another format" in said[0]) == (name in ("older", "10 bytes")), said
    record, said = after({first: b"", last: contents[last][:-1]})
    assert numbers(record) == numbers(straight)
    assert waste(record) == (1, 2.5)
    assert [str(path) in line for path, line in zip((last, first), said, strict=True)] == [True, True]
    record, said = after({first: b""})  # who is not needed is not looked at
    assert (waste(record), said) == ((1, 0.5), [])


@pytest.mark.parametrize("content", [None, b"", b"\0" * 10, b"x" * 28, b"x" * 100])
def test_a_damaged_journal_counts_one_interruption(content: bytes | None, tmp_path: Path, straight: Record):
    killed(run_of(), tmp_path / "run", "batch", 10)
    journal = tmp_path / "run" / "journal"
    journal.unlink() if content is None else journal.write_bytes(content)
    with pytest.warns(UserWarning, match=f"{journal} is damaged, or gone: what former attempts have wasted"):
        record = finished(run_of(), tmp_path / "run")
    assert numbers(record) == numbers(straight)
    assert waste(record) == (1, 0.0)


def test_leftovers_and_foreign_files_are_not_read(tmp_path: Path, straight: Record):
    killed(run_of(), tmp_path / "run", "batch", 10)
    for name in (".000000009." + "a" * 32, "notes.txt", "000000009.tmp", "journal~"):
        (tmp_path / "run" / name).write_bytes(b"rubbish")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert numbers(finished(run_of(), tmp_path / "run")) == numbers(straight)
    assert not (tmp_path / "run" / (".000000009." + "a" * 32)).exists()


def test_a_full_disk_costs_checkpoints_and_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, straight: Record):
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.warns(UserWarning, match=r"no checkpoint: cannot write .*No space left"):
        record = finished(run_of(), tmp_path / "run")
    assert numbers(record) == numbers(straight)
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["journal"]


def test_a_checkpoint_of_another_run_is_passed_over(tmp_path: Path):
    """It cannot come to that by itself, as the folder is named after all that a run depends on."""
    killed(run_of(), tmp_path / "run", "batch", 10)
    other = run_of(budget=3.0)
    with pytest.warns(UserWarning, match=r"a run with budget=4.0; this one has 3.0"):
        record = finished(other, tmp_path / "run")
    assert numbers(record) == numbers(play(other, other.make_env()))


def test_a_checkpoint_of_another_agent_is_passed_over(tmp_path: Path, straight: Record):
    """Its data, recipe, budget and seed are those of this run: only what it is sealed with tells them apart."""
    killed(run_of("random:keep=0.9"), tmp_path / "other", "statistics", 3, of="other")
    killed(run_of(), tmp_path / "run", "statistics", 6, of="run")  # in the sixth step: 4 and 5 are kept
    lent = tmp_path / "run" / "000000006"
    kept(tmp_path / "other")[-1].rename(lent)
    with pytest.warns(UserWarning, match=f"a checkpoint is passed over: {lent} is of another run"):
        record = play(run_of(), run_of().make_env(), keeper=Keeper(tmp_path / "run", of="run"))
    assert numbers(record) == numbers(straight)
    assert waste(record) == (1, 0.5)


FORGETFUL = """
from pathlib import Path

from agents import make

class Agent:
    def __init__(self):
        self.inner, self.decisions = make("random:keep=0.5"), 0

    def __call__(self, observation, rng):
        self.decisions += 1
        return self.inner(observation, rng)

    def state_dict(self):
        return {"decisions": self.decisions}

    def load_state_dict(self, state):
        if str(state["decisions"]) in Path(__file__).with_name("forgotten").read_text().split():
            raise LookupError("no idea")
        self.decisions = state["decisions"]
"""


@pytest.mark.parametrize(("forgotten", "lost"), [("5", 1.0), ("4 5", 3.0)])
def test_a_checkpoint_that_the_agent_cannot_go_on_from_does_not_end_the_run(
    forgotten: str, lost: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, straight: Record
):
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "forgetful.py").write_text(FORGETFUL)
    (tmp_path / "forgotten").write_text("")
    monkeypatch.delitem(sys.modules, "forgetful", raising=False)  # that of the other case
    run, results_folder = run_of("forgetful:Agent"), tmp_path / "results"
    key = run.key(run.make_env())
    killed(run, folder_of(results_folder, key), "statistics", 6, of=key)
    (tmp_path / "forgotten").write_text(forgotten)
    with (
        closing(companion.Companion(60.0)) as its,
        pytest.warns(UserWarning, match="a checkpoint is passed over") as caught,
    ):
        record = workers.attempt(key, run, its, workers.Terms(folder=results_folder, checkpoint_seconds=1e9))
    assert isinstance(record, dict), record
    assert record["curve"] == straight["curve"]
    assert waste(record) == (1, lost)
    said = [str(warning.message) for warning in caught]
    assert [line.split(": ")[-2:] for line in said] == [["LookupError", "no idea"]] * len(forgotten.split())


def test_forgetting(tmp_path: Path):
    for key in "ab":
        killed(run_of(), folder_of(tmp_path, key), "batch", 6)
    checkpoints.forget(tmp_path, "a")
    assert [path.name for path in (tmp_path / checkpoints.FOLDER).iterdir()] == ["b"]
    checkpoints.forget(tmp_path, "b")
    checkpoints.forget(tmp_path, "b")
    assert list(tmp_path.iterdir()) == []


# The programs


MORTAL = """
import multiprocessing, os, signal, time
from pathlib import Path

from agents import make

HOME = Path(__file__).parent

class Agent:
    \"\"\"SeTa, for whom all dies: first the process that its student is in, then the whole program.\"\"\"

    def __init__(self):
        self.inner = make("seta")

    def reset(self):
        self.inner.reset()

    def __call__(self, observation, rng):
        for spent, name in ((0.3, "worker"), (0.6, "program")):
            if observation["spent"][0] >= spent and not (HOME / name).exists():
                (HOME / name).touch()
                if name == "worker":
                    os.kill(multiprocessing.parent_process().pid, signal.SIGKILL)
                else:
                    os.killpg(os.getsid(0), signal.SIGKILL)
                time.sleep(60)
        return self.inner(observation, rng)

def fails(observation, rng):
    if observation["spent"][0] > 0.5:
        raise LookupError("no idea")
    return make("full")(observation, rng)
"""


@pytest.mark.slow
def test_a_program_whose_worker_dies_and_that_is_killed_itself_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "mortal.py").write_text(MORTAL)
    arguments = ["--train-size", "100", "--budget", "4", "--model", "mlp:8", "--batch-size", "25", "--seeds", "1"]
    arguments += ["--agents", "mortal:fails", "mortal:Agent", "--device", "cpu", "--checkpoint-seconds", "0"]
    arguments += ["--workers", "1", "--out", str(tmp_path), "--name", "it"]
    home = tmp_path / "it"

    def program(*more: str) -> int:
        command = [sys.executable, "-m", "train.evaluate", *arguments, *more]
        environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}"}
        # a session of its own, to be killed with all that belongs to it
        return subprocess.run(command, env=environment, start_new_session=True, timeout=200).returncode

    assert program() == -signal.SIGKILL
    assert (tmp_path / "worker").exists()
    (left,) = (home / checkpoints.FOLDER).iterdir()  # that of the run that failed is gone
    assert kept(left)
    (home / (".results.jsonl." + "a" * 32)).write_text("what a killed writer left")
    assert program() == 1
    (record,) = results.read(home / "results.jsonl")[0].values()
    assert record["key"] == left.name
    assert not (home / checkpoints.FOLDER).exists()
    assert not list(home.glob(".results*"))
    (failure,) = results.read(home / "failures.jsonl")[0].values()
    assert failure["error"] == "LookupError: no idea"
    assert record["provenance"]["waste"] == {"interruptions": 2, "spent": 0.0}  # killed before a step had begun
    run = Run("prune_env/Digits-v0", record["configuration"]["settings"], "mortal:Agent", 0, "digits")
    assert numbers(record) == numbers(play(run, run.make_env()))

    # a kill between the line of a record and the end of its checkpoints
    killed(run, folder_of(home, record["key"]), "batch", 6)
    before = copy.deepcopy(record)
    assert program("--agents", "mortal:Agent") == 0
    assert not (home / checkpoints.FOLDER).exists()
    assert list(results.read(home / "results.jsonl")[0].values()) == [before]
