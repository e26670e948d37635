"""Agents in a process of their own: whatever one does there costs its own run, with a line that says what was wrong."""

import io
import json
import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from prune_env.data import cache, sources
from tests.helpers import trees
from tests.helpers.processes import alive, fork, kill, until
from train.execution import companion, runner, workers
from train.execution.companion import AgentDied, AgentError, Companion, closed_to_agents, line_of
from train.execution.episode import Run, play
from train.execution.results import Record
from train.execution.workers import Failure, Terms

ROOT = Path(__file__).parents[2]
SETTINGS = {"train_size": 100, "budget": 2.0, "device": "cpu"}
HEAD = """
import builtins, os, random, sys, time
from pathlib import Path

import numpy as np
import torch

import prune_env
from agents import make

full = make("full")
digits = Path(prune_env.__file__).with_name("datasets") / "digits.npz"
"""
OPEN = "PermissionError: an agent must not open "
# what an agent does instead of `full`'s decision -> what is said of it; None: nothing, and the run is that of `full`
ONE_DECISION = {
    "raise KeyError('no idea')": "KeyError: 'no idea'",
    "raise SystemExit('enough')": "SystemExit: enough",
    "raise KeyboardInterrupt": "KeyboardInterrupt",
    "raise ValueError('two\\nlines')": "ValueError: two lines",
    "raise type('Odd', (Exception,), {'__str__': lambda self: 1 / 0})": "Odd: <exception str() failed>",
    "def deep(): deep()\n    deep()": "RecursionError: maximum recursion depth exceeded",
    "np.zeros(2**45)": "MemoryError: Unable to allocate",
    # actions
    "return None": "the action is a NoneType",
    "return 3": "the action is a int",
    "return {'weight': np.ones(3), 'mixup': np.ones(3)}": "ValueError: action['weight'] has shape (3,)",
    "return {'mixup': np.zeros(100)}": "ValueError: the action has the keys ['mixup']",
    "return {'weight': np.full(100, 'a'), 'mixup': np.zeros(100)}": "action['weight']",
    "return {'weight': [object()] * 100, 'mixup': np.zeros(100)}": "action['weight']",
    "action = full(observation, rng); action['weight'][3] = np.nan; return action": "action['weight'][3] is nan",
    "action = full(observation, rng); action['weight'][3] = np.inf; return action": "action['weight'][3] is inf",
    "action = full(observation, rng); action['weight'][3] = -1; return action": "action['weight'][3] is -1",
    # the observation
    "observation['loss'][0] = 9": "read-only; an agent must not change its observation: copy what it works on",
    "observation['loss_mean'].sort()": "read-only; an agent must not change its observation",
    "np.add(observation['age'], 1, out=observation['age'])": "read-only; an agent must not change its observation",
    "observation.clear(); raise LookupError('mine')": "LookupError: mine",  # the dict is its own
    # global generators
    "random.random()": "RuntimeError: the agent drew from random's global generator, or seeded it",
    "random.seed(3)": "RuntimeError: the agent drew from random's global generator, or seeded it",
    "np.random.rand()": "RuntimeError: the agent drew from numpy.random's global generator, or seeded it",
    "np.random.seed(3)": "RuntimeError: the agent drew from numpy.random's global generator, or seeded it",
    "torch.rand(1)": "RuntimeError: the agent drew from torch's global generator, or seeded it",
    "torch.manual_seed(3)": "RuntimeError: the agent drew from torch's global generator, or seeded it",
    # the data
    "open(digits, 'rb')": f"{OPEN}{{digits}}",
    "os.open(digits, os.O_RDONLY)": f"{OPEN}{{digits}}",
    "digits.read_bytes()": f"{OPEN}{{digits}}",
    "os.chdir(digits.parent); np.load('digits.npz')": f"{OPEN}{{digits}}",
    "os.symlink(digits, HOME / 'link'); open(HOME / 'link')": f"{OPEN}{{digits}}",
    "open(os.fsencode(digits))": f"{OPEN}{{digits}}",
    "os.link(digits, HOME / 'linked'); open(HOME / 'linked')": f"{OPEN}{{digits}}",
    "os.open('digits.npz', os.O_RDONLY, dir_fd=os.open(digits.parent, os.O_RDONLY))": f"{OPEN}{{digits}}",
    "prune_env.data.load_test('digits')": f"{OPEN}{{digits}}",
    "prune_env.data.load('digits')": f"{OPEN}{{digits}}",
    "prune_env.PruneEnv('digits', device='cpu')": f"{OPEN}{{digits}}",
    "open(CACHE / 'decoded.arrays')": f"{OPEN}{{cache}}",
    # what is no harm
    "import tempfile; tempfile.TemporaryDirectory(dir=HOME).cleanup()": None,
    "(HOME / 'a').touch(); os.rename(HOME / 'a', HOME / 'b')": None,
    "time.sleep(0.2)": None,
    "torch.set_num_threads(2)": None,
    "print('x' * 300_000); print('y' * 300_000, file=sys.stderr)": None,
    "sys.stdout = sys.stderr = None": None,
    "builtins.sum = max; os.environ.clear(); os.chdir('/')": None,
    "time.perf_counter = time.monotonic = lambda: 0.0": None,
    "state = random.getstate(); random.random(); random.setstate(state)": None,
    "[threshold := np.zeros((512, 64)) @ np.zeros((64, 512)) for _ in range(20)]": None,  # compute of its own
}
WHEN = """
def do(observation, rng):
    {}
    return full(observation, rng)

def agent(observation, rng):
    return (do if observation["spent"][0] >= {} else full)(observation, rng)
"""
OTHERS = {
    "exits": ("def agent(observation, rng):\n    os._exit(7)\n", workers.DIED, "exit code 7"),
    "killed": ("def agent(observation, rng):\n    os.kill(os.getpid(), 9)\n", workers.DIED, "exit code -9"),
    # itself only; the first line is for who runs these tests
    "its_group": (
        "def agent(observation, rng):\n    assert os.getpgrp() == os.getpid()\n    os.killpg(0, 9)\n",
        workers.DIED,
        "exit code -9",
    ),
    "forks": (
        "def agent(observation, rng):\n    if os.fork():\n        os._exit(7)\n    time.sleep(20)\n    os._exit(0)\n",
        workers.DIED,
        "exit code 7",
    ),
    "built": ("class agent:\n    def __init__(self):\n        raise KeyError('no')\n", "KeyError: 'no'", "__init__"),
    "reset": (
        "class agent:\n    def reset(self):\n        raise KeyError('no')\n    __call__ = full\n",
        "KeyError",
        "no",
    ),
}


@pytest.fixture(scope="module", autouse=True)
def _processes_at_once() -> Iterator[None]:
    """By fork of this one: what is new and has to import torch takes seconds (`test_workers` does that)."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(companion, "CONTEXT", multiprocessing.get_context("fork"))
        yield
    torch.set_num_threads(before)
    assert not multiprocessing.active_children()


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def write(home: Path, name: str, code: str) -> str:
    """The spec of `agent` in a module with this code."""
    (home / f"{name}.py").write_text(
        f"{HEAD}\nHOME = Path({str(home)!r})\nCACHE = Path({str(cache.folder())!r})\n{code}"
    )
    return f"{name}:agent"


def attempt(spec: str, player: Companion, seed: int = 0, **settings: object) -> Record | Failure:
    run = Run("prune_env/Digits-v0", {**SETTINGS, **settings}, spec, seed, "digits")
    return workers.attempt(run.key(run.make_env()), run, player, Terms())


def student(record: Record | Failure) -> str:
    """What a record says of the student: all but seconds, and the agent's name."""
    assert isinstance(record, dict), record
    results = {name: value for name, value in record["results"].items() if name != "seconds"}
    return json.dumps([results, record["curve"], record["provenance"]["waste"], record["configuration"]])


@pytest.mark.usefixtures("capfd")
def test_what_an_agent_does_costs_its_own_run_and_is_named(home: Path):
    """One after the other in one worker, and runs of another agent between them."""
    cache.folder().mkdir(parents=True, exist_ok=True)
    (cache.folder() / "decoded.arrays").write_bytes(b"labels")
    said_of = {"digits": Path(sources.__file__).with_name("digits.npz"), "cache": cache.folder()}
    run = Run("prune_env/Digits-v0", SETTINGS, "full", 0, "digits")
    full, other = student(play(run, run.make_env())), student(play(Run(*_of(run, "random")), run.make_env()))
    wrong = []
    with closing(Companion(60.0)) as player:
        for i, (code, said) in enumerate(ONE_DECISION.items()):
            spec = write(home, f"agent{i}", WHEN.format(code, i % 2 / 2))  # at once, or in the middle of the run
            found = attempt(spec, player)
            if said is None:
                wrong += [(code, found)] if student(found) != full else []
            elif not isinstance(found, Failure) or said.format(**said_of) not in found.error or "\n" in found.error:
                wrong.append((code, found))
            elif f"agent{i}.py" not in found.traceback and "action" not in found.error and "drew" not in found.error:
                wrong.append((code, found.traceback))
            if i % 8 == 7 and student(attempt("random", player)) != other:
                wrong.append((code, "the run after it is not what it is alone"))
    assert not wrong, "\n".join(map(repr, wrong))


def _of(run: Run, agent: str) -> tuple:
    return run.env, run.settings, agent, run.seed, run.task


def test_a_process_that_ends_and_an_agent_that_cannot_be_built(home: Path):
    with closing(Companion(60.0)) as player:
        for name, (code, said, trace) in OTHERS.items():
            start = time.monotonic()
            found = attempt(write(home, name, code), player)
            assert time.monotonic() - start < 15, name  # not for the child of "forks"
            assert isinstance(found, Failure), name
            assert found.error.startswith(said), found
            assert trace in found.traceback, found
            assert isinstance(attempt("full", player), dict)


def test_one_that_hangs_is_ended_in_time_and_one_that_sleeps_only_costs_seconds(home: Path):
    hangs = "import signal\n\ndef agent(observation, rng):\n    every = signal.valid_signals()\n"
    hangs += "    signal.pthread_sigmask(signal.SIG_BLOCK, every)\n    while True:\n        time.sleep(60)\n"
    sleeps = "def agent(observation, rng):\n    time.sleep(1.6)\n    return full(observation, rng)\n"
    built = "class agent:\n    def __init__(self):\n        time.sleep(60)\n"
    with closing(Companion(3.0)) as player:
        full = attempt("full", player)
        slow = attempt(write(home, "sleeps", sleeps), player)
        assert student(slow) == student(full)
        assert isinstance(slow, dict)
        assert slow["results"]["seconds"]["select"] > 2 * 1.6  # more than is allowed for one decision
        for name, code, doing in (("hangs", hangs, "for one decision"), ("built", built, "to be made")):
            start = time.monotonic()
            found = attempt(write(home, f"late_{name}", code), player)
            assert isinstance(found, Failure)
            assert found.error == f"the agent took more than 3 s {doing}; --agent-timeout allows longer"
            assert 3 < time.monotonic() - start < 30
            assert student(attempt("full", player)) == student(full)


def test_test_images_and_caches_of_a_folder_are_closed(home: Path):
    root = home / "images"
    trees.imagefolder(root)
    settings = {"root": str(root), "budget": 1.0, "batch_size": 8, "device": "cpu", "model": "mlp:4"}
    with closing(Companion(60.0)) as player:
        for i, path in enumerate(("test/cat/00000.png", "train/dog/00001.png", "test/../test/dog/../dog/00002.png")):
            code = f"def agent(observation, rng):\n    open(HOME / 'images' / {path!r}, 'rb')\n"
            run = Run("prune_env/ImageFolder-v0", settings, write(home, f"opens{i}", code), 0)
            found = workers.attempt(run.key(run.make_env()), run, player, Terms())
            assert isinstance(found, Failure)
            assert found.error.startswith(f"{OPEN}{(root / path).resolve()}: it decides by what it observes")
        code = "def agent(observation, rng):\n    (HOME / 'images' / 'notes.txt').write_text('mine')\n"
        code += "    return full(observation, rng)\n"
        run = Run("prune_env/ImageFolder-v0", settings, write(home, "notes", code), 0)
        assert isinstance(workers.attempt(run.key(run.make_env()), run, player, Terms()), dict)  # its own files it may


OTHER_NAMES = {
    "os.link(test / 'cat' / '00000.png', HOME / 'linked')": "test/cat/00000.png",
    "os.link('00000.png', HOME / 'linked', src_dir_fd=os.open(test / 'cat', os.O_RDONLY))": "test/cat",
    "os.link('cat/00000.png', HOME / 'linked', src_dir_fd=os.open(test, os.O_RDONLY))": "test/cat/00000.png",
    "os.symlink(test / 'cat', HOME / 'link')": "test/cat",
    "os.rename(test / 'cat' / '00000.png', HOME / 'moved')": "test/cat/00000.png",
    "(test / 'cat').rename(HOME / 'moved')": "test/cat",
    "os.replace(test, HOME / 'moved')": "test",  # what is around them
    "os.chdir(HOME); os.rename('images', 'moved')": "",
    "os.open('cat/00000.png', os.O_RDONLY, dir_fd=os.open(test, os.O_RDONLY))": "test/cat/00000.png",
    "os.symlink(test, HOME / 'link'); os.open('link/cat/00000.png', 0, dir_fd=os.open(HOME, 0))": "test/cat/00000.png",
    "open(HOME / 'other.zip')": "../other.zip",  # a hard link that was there
    "os.remove(test / 'cat' / '00000.png')": "test/cat/00000.png",
    "os.remove('00000.png', dir_fd=os.open(test / 'cat', os.O_RDONLY))": "test/cat",
    "os.truncate(test / 'cat' / '00000.png', 3)": "test/cat/00000.png",
    "os.rmdir(test / 'cat')": "test/cat",
    "os.makedirs(test / 'cat' / 'new' / 'folder')": "test/cat/new",
    "os.chmod(test / 'cat' / '00000.png', 0)": "test/cat/00000.png",
    "os.utime(test / 'cat' / '00000.png', (1, 1))": "test/cat/00000.png",
}


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="which folders are open is not told")
def test_what_is_closed_is_closed_by_any_name(home: Path):
    root = home / "images"
    trees.imagefolder(root)
    (root / "test" / "all.zip").write_bytes(b"images")
    os.link(root / "test" / "all.zip", home / "other.zip")
    closed = closed_to_agents(list(root.rglob("*.png")))
    observation = {"loss": np.zeros(3, np.float32)}
    with closing(Companion(60.0)) as player:
        for i, (code, path) in enumerate(OTHER_NAMES.items()):
            code = f"def agent(observation, rng):\n    test = HOME / 'images' / 'test'\n    {code}\n"
            player.begin(write(home, f"names{i}", code), 0, closed)
            with pytest.raises(AgentError) as refused:
                player.act(observation)
            assert str(refused.value).startswith(f"{OPEN}{(root / path).resolve()}: "), code
    assert len(Image.open(root / "test" / "cat" / "00000.png").getbands()) == 3  # all is there, and whole


def test_what_is_closed(tmp_path: Path):
    files = [tmp_path / "test" / "a.png", tmp_path / "test" / "b.png", tmp_path / "train"]
    (tmp_path / "train").mkdir()
    (tmp_path / "test").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "test")
    embedded = str(Path(sources.__file__).with_name("digits.npz").resolve())
    expected = {str((tmp_path / "test").resolve()), str(cache.folder().resolve()), embedded}
    assert set(closed_to_agents(files)) == expected
    assert set(closed_to_agents([tmp_path / "link" / "a.png"])) == expected


def test_large_observations_and_actions_cross(home: Path):
    n = 300_000  # many times what a pipe holds
    rng = np.random.default_rng(0)
    observation = {name: rng.random(n, np.float32) for name in ("loss", "loss_mean", "visits", "age")}
    observation |= {"label": np.arange(n), "spent": np.array([0.5], np.float32)}
    code = "def agent(observation, rng):\n    assert not observation['loss'].flags.writeable\n"
    code += "    return {'weight': observation['loss'] * 2, 'mixup': np.zeros_like(observation['loss'])}\n"
    with closing(Companion(60.0)) as player:
        player.begin(write(home, "doubles", code), 0, [])
        action = player.act(observation)
    np.testing.assert_array_equal(action["weight"], observation["loss"] * 2)
    assert action["weight"].dtype == np.float32
    with pytest.raises(ValueError, match="read-only"):
        action["weight"][0] = 1


def test_bytes_that_are_no_answer_end_the_process(home: Path):
    """An agent that has found the pipe can say what it likes there: that is plain, so nothing of it runs here."""
    code = """
import gc
from multiprocessing.connection import Connection
from prune_env.plain import pack

def agent(observation, rng):
    pipes = [thing for frame in sys._current_frames().values() for thing in of(frame)]
    for pipe in pipes:
        pipe.send_bytes(FORGED)
    time.sleep(60)

def of(frame):
    while frame is not None:
        yield from (value for value in frame.f_locals.values() if isinstance(value, Connection))
        frame = frame.f_back
"""
    observation = {"loss": np.zeros(3, np.float32)}
    with closing(Companion(60.0)) as player:
        for i, forged in enumerate(("b'rubbish'", "b'null\\n'", "pack([1])", "pack({'value': 3})", "pack({})")):
            spec = write(home, f"forges{i}", code.replace("FORGED", forged))
            player.begin(spec, 0, [])
            if "value" in forged:  # for what it is is looked at by the environment
                assert player.act(observation) == 3
            else:
                with pytest.raises(AgentError, match="the agent's process sent what is no answer"):
                    player.act(observation)
            player.begin("full", 0, [])
            assert player.act(observation)["weight"].tolist() == [1, 1, 1]


@pytest.mark.parametrize("told", ["''", "'0' * 63", "'0' * 63 + 'G'", "None", "[1]"])
def test_an_agent_that_tells_no_digest_is_not_looked_for_in_the_process_that_trains(home: Path, told: str):
    code = f"""
import agents

agents.source_digest = lambda spec: {told}
(HOME / f"imported-{{os.getpid()}}").touch()

def agent(observation, rng):
    return full(observation, rng)
"""
    run = Run("prune_env/Digits-v0", SETTINGS, write(home, "nameless", code), 0, "digits")
    key = run.key(run.make_env(), "0" * 64)
    with closing(Companion(60.0)) as player:
        found = workers.attempt(key, run, player, Terms())
    assert isinstance(found, Failure)
    assert found.error == "the agent's process told no digest of the agent's code"
    assert run.key(run.make_env(), "") != key  # an empty one is no reason to look either
    assert not (home / f"imported-{os.getpid()}").exists()


def test_answers_that_nobody_asked_for_do_not_reach_the_next_run(home: Path):
    code = """
from multiprocessing.connection import Connection
from prune_env.plain import pack

def agent(observation, rng):
    frame = sys._getframe()
    while frame is not None:
        for value in list(frame.f_locals.values()):
            if isinstance(value, Connection):
                value.send_bytes(pack({"value": {"weight": np.full(100, 0.5), "mixup": np.zeros(100)}}))
        frame = frame.f_back
    return full(observation, rng)
"""
    run = Run("prune_env/Digits-v0", SETTINGS, "random", 0, "digits")
    with closing(Companion(60.0)) as player:
        attempt(write(home, "echoes", code), player)
        assert student(attempt("random", player)) == student(play(run, run.make_env()))


def test_what_an_agent_has_changed_in_its_process_does_not_reach_the_next_run(home: Path):
    code = """
import agents
from agents.baselines import Random
from prune_env import selection

def agent(observation, rng):
    Random.__call__ = lambda self, observation, rng: full(observation, rng)
    selection.select = prune_env.select = np.argsort = np.partition = None
    torch.set_default_dtype(torch.float64)
    return full(observation, rng)
"""
    run = Run("prune_env/Digits-v0", SETTINGS, "random", 0, "digits")
    with closing(Companion(60.0)) as player:
        assert isinstance(attempt(write(home, "patches", code), player), dict)
        assert student(attempt("random", player)) == student(play(run, run.make_env()))


def test_memory_that_is_kept_in_a_module_does_not_reach_the_next_run(home: Path):
    code = "seen = []\n\ndef agent(observation, rng):\n    seen.append(0)\n    action = full(observation, rng)\n"
    code += "    action['weight'][: len(seen)] = 0\n    return action\n"
    spec = write(home, "learns", code)
    with closing(Companion(60.0)) as player:
        first, second = (student(attempt(spec, player)) for _ in range(2))
    assert first == second


RESETS = """
steps = 0

class agent:
    def reset(self):
        global steps
        steps = 0

    def __call__(self, observation, rng):
        global steps
        steps += 1
        action = full(observation, rng)
        action["weight"][steps:] = 0
        return action
"""
FORGETS = {
    "forgets": """
class agent:
    def __init__(self):
        self.steps = 0

    def state_dict(self):
        return {"steps": self.steps}

    def load_state_dict(self, state):
        pass

    def __call__(self, observation, rng):
        self.steps += 1
        return full(observation, rng)
""",
    "counts": """
class agent:
    steps = 0

    def __call__(self, observation, rng):
        agent.steps += 1
        return full(observation, rng)
""",
}


def test_a_memory_is_tried_where_the_agent_that_plays_is_not(home: Path):
    """What making and resetting another one does to its module is not the agent's, and so no number depends on it."""
    observation = {"loss": np.zeros(9, np.float32)}
    with closing(Companion(60.0)) as player:
        player.begin(write(home, "resets", RESETS), 0, [])
        for step in range(1, 5):
            assert np.count_nonzero(player.act(observation)["weight"]) == step
            assert player.memory() is not None


def test_a_trial_that_is_killed_says_nothing_of_the_memory(home: Path):
    code = """
class agent:
    def __init__(self):
        (HOME / 'made').open('a').write('x')
        if (HOME / 'made').stat().st_size == 3:
            os._exit(3)

    def __call__(self, observation, rng):
        return prune_env.select(np.ones(9))
"""
    spec, observation = write(home, "dies_once", code), {"loss": np.zeros(9, np.float32)}
    with closing(Companion(60.0)) as player:
        player.begin(spec, 0, [])
        made = (home / "made").stat().st_size
        for step in range(4):
            player.act(observation)
            (home / "made").write_bytes(b"xx" if step == 0 else b"")  # the first trial is of the third that is made
            assert player.memory() is not None
        assert made == 1


@pytest.mark.skipif(not companion.FORKS, reason="no process that others are forked from")
def test_one_that_stops_what_agents_are_forked_from_is_ended(home: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(companion, "CONTEXT", multiprocessing.get_context("forkserver"))
    code = "def agent(observation, rng):\n    os.kill(os.getppid(), signal.SIGSTOP)\n    time.sleep(600)\n"
    spec = write(home, "stops", f"import signal\n{code}")
    with closing(Companion(1.0)) as player:
        for _ in range(2):
            player.begin(spec, 0, [])
            with pytest.raises(AgentError, match="the agent took more than 1 s"):
                player.act({"loss": np.zeros(3, np.float32)})


@pytest.mark.parametrize("name", FORGETS)
def test_a_memory_that_a_new_agent_does_not_take_is_none(home: Path, name: str):
    observation = {"loss": np.zeros(9, np.float32)}
    why = "Opaque: a new agent that is told this memory does not have it then"
    with closing(Companion(60.0)) as player:
        for _ in range(2):  # it is said in each run, once
            player.begin(write(home, name, FORGETS[name]), 0, [])
            assert player.memory() is not None
            player.act(observation)
            with pytest.warns(UserWarning, match=f"^no checkpoints of runs with agent '{name}:agent': {why}") as told:
                assert player.memory() is player.memory() is None
            assert len(told) == 1
            assert player.act(observation)["weight"].tolist() == [1] * 9  # and the run goes on


def test_a_line_for_any_error():
    class Odd(Exception):
        def __str__(self):
            raise ValueError

    assert line_of(KeyError("a")) == "KeyError: 'a'"
    assert line_of(OSError("no b\udcff.png")) == "OSError: no b\\udcff.png"  # as a name of a file can be
    assert line_of(ValueError("a\n\tb")) == "ValueError: a b"
    assert line_of(Odd()).endswith("Odd: <exception str() failed>")
    assert line_of(SyntaxError("a", ("f", 1, 1, "x y", 1, 2))).count("\n") == 0
    assert line_of(KeyboardInterrupt()) == "KeyboardInterrupt"
    assert line_of(KeyError("a" * 10**6)) == f"KeyError: '{'a' * (companion.LINE - 11)}... (1,000,012 characters)"


def test_long_errors_are_cut_and_printed_at_once(home: Path):
    with closing(Companion(60.0)) as player:
        code = "def agent(observation, rng):\n    raise ValueError('x' * 3_000_000)\n"
        failure = attempt(write(home, "shouts", code), player)
    assert isinstance(failure, Failure)
    assert failure.error == f"ValueError: {'x' * (companion.LINE - 12)}... (3,000,012 characters)"
    assert failure.traceback.startswith("Traceback (most recent call last)")
    assert len(failure.traceback) < 1.01 * workers.TRACEBACK
    told = io.StringIO()
    with runner._Bar({failure.key: failure.run}, Console(file=told)) as bar:
        begun = time.monotonic()
        bar.advance(failure.run, "x" * 40_000)  # which took twelve seconds
        assert time.monotonic() - begun < 4
    assert "x" * 40_000 in told.getvalue()


def test_an_answer_that_is_too_large_is_not_taken(home: Path, monkeypatch: pytest.MonkeyPatch):
    spec = write(home, "fills", "agent = full\n")
    with closing(Companion(60.0)) as player:
        assert isinstance(attempt(spec, player), dict)
        monkeypatch.setattr(companion, "LARGEST", 1000)  # an action of a hundred samples has more
        failure = attempt(spec, player)
    assert isinstance(failure, Failure)
    assert failure.error == workers.DIED


def test_who_cannot_start_has_died_and_the_next_one_starts(monkeypatch: pytest.MonkeyPatch):
    """The process that agents are forked from was killed while it was asked for one."""

    def cut_off(self: object) -> None:
        raise EOFError("unexpected EOF")

    run = Run("prune_env/Digits-v0", SETTINGS, "full", 0)
    with closing(Companion(60.0)) as agent:
        with monkeypatch.context() as killed:
            killed.setattr(companion.CONTEXT.Process, "start", cut_off)
            for _ in range(2):
                told = workers.attempt("key", run, agent, Terms())
                assert isinstance(told, Failure)
                assert (told.error, told.final) == (workers.DIED, False)
        agent.begin("full", 0, [])
        assert len(agent.digest) == 64


def test_a_companion_that_is_gone_says_so():
    with closing(Companion(60.0)) as player:
        player.begin("full", 0, [])
        player._process.kill()
        with pytest.raises(AgentDied):
            player.act({"loss": np.zeros(3, np.float32)})
        player.begin("full", 0, [])  # and there is another
        assert player.act({"loss": np.zeros(3, np.float32)})["weight"].tolist() == [1, 1, 1]


def test_an_agent_may_take_for_ever(home: Path, capfd: pytest.CaptureFixture[str]):
    code = "def agent(observation, rng):\n    time.sleep(0.2)\n    return full(observation, rng)"
    with closing(Companion(float("inf"))) as player:
        player.begin(write(home, "sleeps", code), 0, [])
        assert player.act({"loss": np.zeros(3, np.float32)})["weight"].tolist() == [1, 1, 1]
    assert "OverflowError" not in capfd.readouterr().err


@pytest.mark.parametrize("end", ["closed", "late", "asker killed"])
def test_what_an_agent_has_forked_ends_with_its_process(home: Path, end: str):
    code = "def agent(observation, rng):\n    child = os.fork()\n    if not child:\n        time.sleep(100)\n"
    code += "    (HOME / 'child').write_text(str(child))\n    time.sleep(float(observation['loss'][0]))\n"
    spec = write(home, f"forks_{end[:4]}", code + "    return full(observation, rng)\n")

    def ask(player: Companion, seconds: float) -> None:
        player.begin(spec, 0, [])
        player.act({"loss": np.full(3, seconds, np.float32)})

    def wait_to_be_killed() -> None:
        companion.FORKS = False  # there is one of those already, and it is not this process's child
        ask(Companion(60.0), 0)
        (home / "asked").touch()
        time.sleep(100)

    if end == "asker killed":
        asker = fork(wait_to_be_killed)
        until((home / "asked").exists)
        kill(asker)
    else:
        late = pytest.raises(AgentError, match="more than 2 s") if end == "late" else nullcontext()
        with closing(Companion(2.0)) as player, late:
            ask(player, 100 if end == "late" else 0)
    child = int((home / "child").read_text())
    until(lambda: not alive(child), seconds=10)


HOLDS = """
import ctypes
from pathlib import Path

class Holds:
    def __call__(self, observation, rng):
        Path(__file__).with_name("holds").touch()
        ctypes.PyDLL(None).sleep(1000)  # unlike CDLL, it keeps the interpreter to itself
"""
ASKS = """
import sys
import numpy as np
from train.execution.companion import Companion

if __name__ == "__main__":
    sys.path.insert(0, sys.argv[1])
    companion = Companion(3.0)
    companion.begin("holder:Holds", 0, [])
    print(companion._process.pid, flush=True)
    companion.act({"loss": np.zeros(3, np.float32)})
"""


@pytest.mark.slow
def test_an_agent_that_never_frees_the_interpreter_does_not_outlive_who_asked_it(tmp_path: Path):
    """No thread of its process can see that the parent is gone."""
    (tmp_path / "holder.py").write_text(HOLDS)
    (tmp_path / "asks.py").write_text(ASKS)
    paths = os.pathsep.join([str(tmp_path), str(ROOT)])
    command = [sys.executable, str(tmp_path / "asks.py"), str(tmp_path)]
    asking = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": paths}, stdout=subprocess.PIPE, text=True)
    assert asking.stdout is not None
    agent = int(asking.stdout.readline())
    until((tmp_path / "holds").exists)
    time.sleep(0.2)
    asking.kill()
    asking.wait()
    time.sleep(0.5)
    assert alive(agent)
    until(lambda: not alive(agent), seconds=30)
    asking.stdout.close()
