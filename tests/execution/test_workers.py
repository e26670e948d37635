"""Processes that die, hang or are left alone, and what becomes of the other runs."""

import json
import multiprocessing
import os
import time
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path

import pytest

from prune_env import data
from tests.helpers.processes import until
from train.execution import workers
from train.execution.episode import Run, play
from train.execution.process import CONTEXT
from train.execution.results import Record
from train.execution.workers import Failure, Terms, outcomes

pytestmark = pytest.mark.usefixtures("one_thread")
SETTINGS = {"train_size": 100, "budget": 2.0, "device": "cpu"}
HEAD = """
import os, signal, time
import numpy as np
from pathlib import Path
from agents import make

full = make('full')
"""
# many times what a pipe holds, there and back
HUGE = f"full+mixup=0.{'0' * 300_000}"
AGENTS = {
    "ends": """
def agent(observation, rng):
    if os.fork():
        os._exit(7)
    end = time.monotonic() + 600
    while time.monotonic() < end and not Path(__file__).with_name("over").exists():
        time.sleep(0.2)  # this child outlives the process, and holds what it inherited, the pipe among it
    os._exit(0)
""",
    "ends_at_first": """
def agent(observation, rng):
    marker = Path(__file__).with_name("marker")
    if not marker.exists():
        marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return full(observation, rng)
""",
    "clings": """
def agent(observation, rng):
    Path(__file__).with_name("clings").write_text(str(os.getpid()))
    signal.pthread_sigmask(signal.SIG_BLOCK, set(signal.Signals))
    while True:
        try:
            time.sleep(600)
        except BaseException:
            pass
""",
    "never_built": "class agent:\n    def __init__(self):\n        time.sleep(600)\n",
    "slow": "def agent(observation, rng):\n    time.sleep(1.6)\n    return full(observation, rng)\n",
    "raises": "def agent(observation, rng):\n    raise KeyError('no idea')\n",
    "interrupts": "def agent(observation, rng):\n    raise KeyboardInterrupt\n",
    "unprintable": """
class Odd(Exception):
    def __str__(self):
        raise ValueError

def agent(observation, rng):
    raise Odd
""",
    "searches": """
import gc, sys
import torch
import prune_env, train
from prune_env import compute, data, trainer
from train import diagnostics

def everything():
    frames = list(sys._current_frames().values())
    while frames:
        frame = frames.pop()
        frames += [frame.f_back] if frame.f_back else []
        yield from frame.f_locals.values()
    yield from gc.get_objects()
    for module in list(sys.modules.values()):
        yield from vars(module).values()

def students():
    ours = ("prune_env.trainer", "prune_env.env", "prune_env.data", "prune_env.stats", "prune_env.budget")
    for thing in everything():
        if type(thing).__module__ in ours or isinstance(thing, (torch.nn.Module, torch.optim.Optimizer)):
            yield type(thing)
        elif isinstance(thing, (np.ndarray, torch.Tensor)) and thing.ndim and len(thing) in LENGTHS:
            yield type(thing), thing.shape

def agent(observation, rng):
    found = list(students())
    if found:
        raise LookupError(f"found {found}")
    torch.ones(1000, 64) @ torch.ones(64, 10)  # a network of its own, if it likes
    nothing = lambda *args, **more: None
    for module in (data, diagnostics, compute, trainer.Trainer, prune_env.PruneEnv, compute.Ledger):
        for name in [name for name in vars(module) if not name.startswith("__")]:
            setattr(module, name, nothing)
    return full(observation, rng)
""",
}


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the agents' modules; spawned processes get `sys.path`."""
    monkeypatch.syspath_prepend(str(tmp_path))
    for name, code in AGENTS.items():
        splits = (*data.load("digits"), data.load_test("digits"))  # that with 100 samples, which is observed, is none
        code = code.replace("LENGTHS", repr({len(split) for split in splits}))
        (tmp_path / f"{name}_agent.py").write_text(HEAD + code)
    return tmp_path


def _runs(*names: str) -> dict[str, Run]:
    """Runs by key, of `agent` in the modules above or of the package's agents, seeds counting up."""
    specs = [f"{name}_agent:agent" if name in AGENTS else name for name in names]
    runs = [Run("prune_env/Digits-v0", SETTINGS, spec, seed, "digits") for seed, spec in enumerate(specs)]
    env = runs[0].make_env()
    return {run.key(env): run for run in runs}


def _sorted_out(runs: Mapping[str, Run], agent_timeout: float = 60.0) -> tuple[dict[str, Record], dict[str, Failure]]:
    """Records and failures of `runs` by their keys, from two processes that are gone afterwards."""
    found = list(outcomes(runs, 2, Terms(agent_timeout)))
    assert not multiprocessing.active_children()
    records = {outcome["key"]: outcome for outcome in found if isinstance(outcome, dict)}
    failures = {outcome.key: outcome for outcome in found if isinstance(outcome, Failure)}
    assert len(found) == len(runs)
    assert records.keys() | failures.keys() == runs.keys()
    return records, failures


def _failure(failures: Mapping[str, Failure], name: str) -> Failure:
    (failure,) = [failure for failure in failures.values() if failure.run.agent == f"{name}_agent:agent"]
    return failure


def _numbers(record: Record) -> str:
    """A record without times."""
    results = {name: value for name, value in record["results"].items() if name != "seconds"}
    provenance = {name: value for name, value in record["provenance"].items() if name != "time"}
    return json.dumps({**record, "results": results, "provenance": provenance})


def test_a_process_that_dies_costs_its_own_run_only(home: Path):
    runs = _runs("ends_at_first", "full", "raises", "interrupts", "unprintable", "random", HUGE, "ends")
    start = time.monotonic()
    records, failures = _sorted_out(runs)
    seconds = time.monotonic() - start
    (home / "over").touch()
    assert seconds < 300.0  # did not wait for the child of "ends"
    assert [record["agent"] for record in list(records.values())[-1:]] == ["ends_at_first_agent:agent"]  # tried again
    assert failures.keys() == {list(runs)[i] for i in (2, 3, 4, 7)}
    for key, failure in failures.items():
        assert failure.run == runs[key]
    assert (ends := _failure(failures, "ends")).error == workers.DIED
    assert ends.traceback == "exit code 7"
    assert _failure(failures, "raises").error == "KeyError: 'no idea'"
    assert "raise KeyError('no idea')" in _failure(failures, "raises").traceback
    assert _failure(failures, "interrupts").error == "KeyboardInterrupt"
    assert "Odd: <exception str() failed>" in _failure(failures, "unprintable").error
    for key, record in records.items():
        assert _numbers(record) == _numbers(play(runs[key], runs[key].make_env()))


def test_an_agent_finds_no_student_and_what_it_patches_decides_nothing(home: Path):
    """So a hidden forward through the student, or a look at a label, is impossible rather than charged."""
    settings = {**SETTINGS, "label_noise": 0.2}
    runs = [Run("prune_env/Digits-v0", settings, spec, 0, "digits") for spec in ("full", "searches_agent:agent")]
    records, failures = _sorted_out({run.key(run.make_env()): run for run in runs})
    assert not failures, [failure.error for failure in failures.values()]
    full, other = sorted(records.values(), key=lambda record: record["agent"])
    for name in ("curve", "configuration", "budget"):
        assert full[name] == other[name]
    for record in records.values():
        del record["results"]["seconds"]
    assert full["results"] == other["results"]
    assert other["results"]["spent"] == {
        "train": 2.0,
        "score": 0.0,
        "evaluate": pytest.approx(3 * 260 / 300),
        "total": 2.0,
    }


@pytest.mark.slow
def test_an_agent_that_hangs_fails_alone(home: Path):
    start = time.monotonic()
    records, failures = _sorted_out(_runs("slow", "full", "clings", "never_built"), agent_timeout=3.0)
    assert time.monotonic() - start < 300.0
    assert {record["agent"] for record in records.values()} == {"slow_agent:agent", "full"}
    assert len(failures) == 2
    doing = {
        failure.error.removeprefix("the agent took more than 3 s ").partition(";")[0] for failure in failures.values()
    }
    assert doing == {"for one decision", "to be made"}
    slow = next(record for record in records.values() if record["agent"] != "full")
    assert slow["results"]["seconds"]["select"] > 3.0  # in all: the clock is that of one decision


def test_leaving_early_ends_the_process_at_once(home: Path):
    with closing(outcomes(_runs("full", "clings"), 1, Terms())) as found:
        assert isinstance(next(found), dict)
        (process,) = multiprocessing.active_children()
        until((home / "clings").exists)
        start = time.monotonic()
    assert time.monotonic() - start < 60.0
    for pid in (process.pid or 0, int((home / "clings").read_text())):
        until(lambda pid=pid: not _alive(pid), 60)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    stat = Path(f"/proc/{pid}/stat")
    return not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] not in "ZX"


def test_processes_that_do_not_start_are_not_tried_for_ever(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(workers, "_serve", os.getpid)  # which takes no arguments
    records, failures = _sorted_out(_runs("full", "random", "full"))
    assert not records
    assert all("no process could start" in failure.error for failure in failures.values())


def test_one_that_is_killed_before_it_was_told_what_to_do_costs_nothing(monkeypatch: pytest.MonkeyPatch):
    begin, asked = CONTEXT.Process.start, []

    def start(self) -> None:
        asked.append(self)
        if len(asked) == 1:
            raise BrokenPipeError
        begin(self)

    monkeypatch.setattr(CONTEXT.Process, "start", start)
    records, failures = _sorted_out(_runs("full", "random", "full"))
    assert len(records) == 3
    assert not failures
    assert len(asked) == 2
