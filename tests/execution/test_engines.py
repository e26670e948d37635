"""Engines: the numbers are those of a run in this process, whatever is killed."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

pytest.importorskip("ray")
pytest.importorskip("submitit")
import ray
from ray.cluster_utils import Cluster
from safetensors.numpy import load_file

from tests.execution.test_sweep import numbers, records_of
from tests.execution.test_workers import _numbers
from tests.helpers import processes
from tests.helpers.processes import alive
from tests.learning.test_learn import SCRIPT, start_of
from tests.learning.test_practice import poles
from tests.slow.soak import TINY_TASKS
from train import learn, sweep
from train.execution.engines import Engine, Where, ray_learn, slurm
from train.execution.engines import ray as ray_engine
from train.execution.episode import Run, play
from train.execution.results import Record
from train.execution.workers import DIED, Failure, Terms
from train.learning.subproc_env import Died

ROOT = Path(__file__).parents[2]
until = partial(processes.until, seconds=300)  # a cluster takes long to start on a machine that is busy
pytestmark = pytest.mark.usefixtures("one_thread")
MODULE = """
import os, signal, time
from pathlib import Path
from agents import make

full, here = make("full"), Path(__file__).parent

def worker():
    with open(f"/proc/{os.getppid()}/stat") as file:  # the parent forks agents, its own parent does the run
        return int(file.read().rpartition(")")[2].split()[1])

def steady(observation, rng):
    return full(observation, rng)

def raises(observation, rng):
    raise KeyError("no idea")

def dies(observation, rng):
    with open(here / "died", "a") as file:
        file.write("again ")
    os._exit(7)

def ends_its_worker(observation, rng):
    if observation["spent"] > 0 and not (here / "ended").exists():
        (here / "ended").write_text(str(os.getpid()))
        os.kill(worker(), signal.SIGKILL)
        time.sleep(600)
    return full(observation, rng)

def waits(observation, rng):
    if observation["spent"] > 0 and not (here / "go").exists():
        (here / "waits").write_text(f"{os.getpid()} {worker()}")
        while not (here / "go").exists():
            time.sleep(0.05)
    return full(observation, rng)
"""


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """Of a cluster on this machine, as `ray start` begins one."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
    yield str(cluster.gcs_address)
    cluster.shutdown()


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the agents' module, which processes elsewhere find as this one does."""
    (tmp_path / "my_agents.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "my_agents", raising=False)
    return tmp_path


@pytest.fixture
def local_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Slurm's part is played by submitit's executor for this machine, whose ids are those of processes."""
    for name, value in {"CLUSTER": "local", "CANCEL": ("kill", "-INT"), "POLL": 0.05}.items():
        monkeypatch.setattr(slurm, name, value)


def _runs(*agents: str) -> dict[str, Run]:
    settings = {"train_size": 100, "budget": 3.0, "device": "cpu"}
    specs = [f"my_agents:{agent}" if agent in MODULE else agent for agent in agents]
    runs = [Run("prune_env/Digits-v0", settings, spec, seed, "digits") for seed, spec in enumerate(specs)]
    env = runs[0].make_env()
    return {run.key(env): run for run in runs}


def _done(engine: Engine, runs: Mapping[str, Run], folder: Path, where: Where) -> dict[str, Record | Failure]:
    """What each agent's run came to, by the agent's name."""
    found: dict[str, Record | Failure] = {}
    for outcome in engine(runs, Terms(300.0, folder, checkpoint_seconds=0.0), where):
        key = outcome.key if isinstance(outcome, Failure) else outcome["key"]
        found[runs[key].agent.rpartition(":")[2]] = outcome
    assert len(found) == len(runs)
    return found


def _assert_done(
    found: Mapping[str, Any], runs: Mapping[str, Run], home: Path, interrupted: str = "ends_its_worker"
) -> None:
    """As in this process, with one interruption for the agent whose worker was lost."""
    for key, run in runs.items():
        name = run.agent.rpartition(":")[2]
        if name == "raises":
            assert (found[name].error, found[name].final) == ("KeyError: 'no idea'", True)
            assert "raise KeyError" in found[name].traceback
        elif name == "dies":
            assert found[name].error == DIED
            assert (home / "died").read_text() == "again again "
        else:
            expected = play(run, run.make_env())
            waste = found[name]["provenance"].pop("waste")
            assert waste["interruptions"] == (name == interrupted)
            del expected["provenance"]["waste"]
            assert found[name]["key"] == key
            assert _numbers(found[name]) == _numbers(expected)


# Ray


def test_ray_does_what_is_done_here_and_does_again_what_is_killed(address: str, home: Path):
    runs = _runs("ends_its_worker", "full", "raises", "random", "dies")
    found = _done(ray_engine.outcomes, runs, home / "results", Where(engine="ray", address=address))
    _assert_done(found, runs, home)
    until(lambda: not alive(int((home / "ended").read_text())))  # the agent whose worker was killed


@pytest.mark.slow
def test_a_node_that_is_lost_costs_nothing(home: Path):
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    nodes = {node.all_processes["raylet"][0].process.pid: node for node in (cluster.add_node(), cluster.add_node())}

    def lose() -> None:
        until((home / "waits").exists)
        worker = (home / "waits").read_text().split()[1]
        raylet = Path(f"/proc/{worker}/stat").read_text().rpartition(")")[2].split()[1]
        cluster.remove_node(nodes[int(raylet)], allow_graceful=False)
        until(lambda: not alive(int(worker)))  # it notices a moment later, and could end its run before
        (home / "go").touch()

    try:
        runs, where = _runs("waits"), Where(engine="ray", address=cluster.gcs_address)
        with ThreadPoolExecutor(1) as pool:
            losing = pool.submit(lose)
            found = _done(ray_engine.outcomes, runs, home / "results", where)
            losing.result()
        _assert_done(found, runs, home, "waits")
    finally:
        cluster.shutdown()


@pytest.mark.slow
def test_leaving_early_ends_what_runs_on_ray(address: str, home: Path):
    runs = _runs("full", "waits")
    where = Where(engine="ray", address=address)
    with closing(ray_engine.outcomes(runs, Terms(300.0, home / "results"), where)) as found:
        assert isinstance(next(found), dict)
        until((home / "waits").exists)
    for pid in (home / "waits").read_text().split():
        until(lambda pid=pid: not alive(int(pid)))


SWEEP = """
agents = ["full", "my_agents:waits"]
budgets = [3]
seeds = 2
[tasks.digits]
env = "prune_env/Digits-v0"
train_size = 100
"""
DRIVER = """
import sys
from train import sweep
from train.execution.engines import slurm
slurm.CLUSTER = "local"
sys.exit(sweep.main(sys.argv[1:]))
"""


def _killed_and_started_again(home: Path, options: list[str], cancels: bool) -> None:
    """A driver is killed while a run is in its second step; another goes on and ends with the local engine's records.

    Args:
        home: the folder of agents.
        options: of the engine.
        cancels: the run of the former driver ends with it; else it goes on, and the other waits for it.
    """
    (home / "mine.toml").write_text(SWEEP)
    arguments = [str(home / "mine.toml"), "--checkpoint-seconds", "0"]
    mine = [*arguments, *options, "--out", str(home / "killed")]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{home}"}
    with subprocess.Popen([sys.executable, "-c", DRIVER, *mine], env=environment, stderr=subprocess.PIPE) as driver:
        until((home / "waits").exists)
        results = home / "killed" / "mine" / "results.jsonl"
        until(lambda: results.exists() and results.read_bytes().count(b"\n") == 2)  # of `full`
        driver.kill()
    former = [int(pid) for pid in (home / "waits").read_text().split()]
    (home / "waits").unlink()

    def go_on() -> None:
        if cancels:
            until((home / "waits").exists)
            assert not any(map(alive, former))
        else:
            time.sleep(3.0)
            assert not (home / "waits").exists()  # although another is there for it
            assert all(map(alive, former))
        (home / "go").touch()

    with ThreadPoolExecutor(1) as pool:
        going_on = pool.submit(go_on)
        assert sweep.main(mine) == 0
        going_on.result()
    assert sweep.main([*arguments, "--out", str(home / "local"), "--workers", "1"]) == 0
    killed, straight = (records_of(home / out / "mine") for out in ("killed", "local"))
    assert {r["key"]: numbers(r) for r in killed} == {r["key"]: numbers(r) for r in straight}
    waste = {r["seed"]: r["provenance"]["waste"]["interruptions"] for r in killed if r["agent"] == "my_agents:waits"}
    assert max(waste.values()) == 1
    assert not (home / "killed" / "mine" / "checkpoints").exists()


@pytest.mark.slow
def test_a_driver_of_ray_is_killed_and_started_again(address: str, home: Path):
    _killed_and_started_again(home, ["--engine", "ray", "--address", address, "--workers", "1"], True)


@pytest.mark.slow
def test_a_driver_of_a_cluster_of_its_own_is_killed_and_started_again(home: Path):
    _killed_and_started_again(home, ["--engine", "ray", "--workers", "1"], True)


# Slurm


@pytest.mark.parametrize(
    "agents",
    [("full", "raises"), pytest.param(("ends_its_worker", "random", "dies"), marks=pytest.mark.slow, id="killed")],
)
def test_jobs_do_what_is_done_here(local_jobs: None, home: Path, agents: tuple[str, ...]):
    runs, folder = _runs(*agents), home / "results"
    folder.mkdir()
    _assert_done(_done(slurm.outcomes, runs, folder, Where(engine="slurm", workers=2)), runs, home)
    assert {path.suffix for path in (folder / "slurm").iterdir()} == {".out", ".err"}  # of those that failed


@pytest.mark.slow
@pytest.mark.parametrize("cancels", [True, False])
def test_a_driver_of_jobs_is_killed_and_started_again(
    local_jobs: None, home: Path, cancels: bool, monkeypatch: pytest.MonkeyPatch
):
    """Jobs outlive it. One that is not cancelled in time keeps others from its run until it has ended."""
    if not cancels:
        monkeypatch.setattr(slurm, "CANCEL", ("true",))
    _killed_and_started_again(home, ["--engine", "slurm", "--workers", "1"], cancels)


# What can be wrong


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--address", "auto"], ["--address", "--engine ray", "local"]),
        (["--engine", "slurm", "--address", "auto"], ["--address", "--engine ray", "slurm"]),
        (["--engine", "ray", "--partition", "gpu"], ["--partition", "--engine slurm"]),
        (["--engine", "ray", "--minutes", "5"], ["--minutes", "--engine slurm"]),
        (["--gpus-per-run", "0.5"], ["--gpus-per-run", "--engine ray or --engine slurm"]),
        (["--engine", "slurm", "--gpus-per-run", "0.5"], ["--gpus-per-run is 0.5", "whole"]),
        (["--engine", "ray", "--gpus-per-run", "1.5"], ["--gpus-per-run is 1.5", "a part"]),
        (["--engine", "ray", "--gpus-per-run", "-1"], ["--gpus-per-run is -1", "0 or more"]),
        (["--engine", "ray", "--gpus-per-run", "nan"], ["--gpus-per-run is nan"]),
        (["--engine", "slurm", "--minutes", "0"], ["--minutes is 0"]),
        (["--engine", "ray", "--workers", "0"], ["--workers is 0"]),
        (["--engine", "ray", "--address", "nowhere"], ["--address nowhere", "ray status"]),
        (["--engine", "slurm"], ["srun", "sbatch"]),
    ],
)
def test_options_that_are_wrong(options: list[str], words: list[str], home: Path, capsys: pytest.CaptureFixture[str]):
    _assert_refused([*options, "--out", str(home / "out")], words, home, capsys)


@pytest.mark.parametrize(("engine", "package"), [("ray", "ray"), ("slurm", "submitit")])
def test_what_is_not_installed(
    engine: str, package: str, home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.delitem(sys.modules, f"train.execution.engines.{engine}")
    _assert_refused(["--engine", engine], [f"needs {package}: pip install -e '.[{engine}]'"], home, capsys)


def test_more_gpus_than_there_are(address: str, home: Path, capsys: pytest.CaptureFixture[str]):
    options = ["--engine", "ray", "--address", address, "--gpus-per-run", "1", "--out", str(home)]
    _assert_refused(options, ["1 GPU", "--gpus-per-run"], home, capsys)


def _assert_refused(options: list[str], words: list[str], home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (home / "mine.toml").write_text(SWEEP)
    assert sweep.main([str(home / "mine.toml"), *options]) == 2
    *_, error = capsys.readouterr().err.splitlines()
    assert error.startswith("error: ")
    for word in words:
        assert word in error


# Learning


def test_learning_collects_in_actors_what_it_collects_in_processes(address: str):
    rng = np.random.default_rng(0)
    with ray_engine.connected(address, 2):
        actors, whole = ray_learn.Shards([partial(poles, 2), partial(poles, 1)]), poles(3)
        with closing(actors):
            actors.seed(5)
            whole.seed(5)
            np.testing.assert_array_equal(actors.reset(), whole.reset())
            for _ in range(40):
                actions = rng.integers(2, size=3)
                for ours, theirs in zip(actors.step(actions)[:3], whole.step(actions)[:3], strict=True):
                    np.testing.assert_array_equal(ours, theirs, strict=True)
            with pytest.raises(AssertionError, match="9"):
                actors.step(np.array([0, 1, 9]))
            actor = cast(Any, actors._pipes[0])._actor
            os.kill(ray.get(actor.__ray_call__.remote(lambda self: os.getpid())), signal.SIGKILL)
            with pytest.raises(Died, match="died"):
                actors.step(np.array([0, 0, 0]))


@pytest.mark.slow
def test_the_command_with_actors(address: str, home: Path):
    """Two runs of `train.learn`, told apart by nothing but their seconds."""
    (home / "tiny.py").write_text(SCRIPT.replace("{TINY_TASKS}", repr(TINY_TASKS)))
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    arguments = ["--tasks", "tiny", "--members", "3", "--processes", "2", "--pool", "4", "--steps", "100"]
    lines = []
    for options in ([], ["--engine", "ray", "--address", address]):
        out = home / str(len(options))
        command = [sys.executable, str(home / "tiny.py"), *arguments, *options, "--out", str(out)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        folder = out / "tiny-ppo-0"
        policy = load_file(folder / "policy.safetensors")
        told = json.loads((folder / "evaluations.jsonl").read_text())
        del told["seconds"]
        lines.append([told, start_of(folder), {name: a.tolist() for name, a in policy.items()}])
    assert lines[0] == lines[1]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--address", "auto"], ["--address", "--engine ray"]),
        (["--engine", "ray", "--processes", "3"], ["--processes is 3", "2 CPUs"]),
    ],
)
def test_options_of_learning_that_are_wrong(
    address: str, options: list[str], words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    where = [] if "--address" in options else ["--address", address]
    assert learn.main([*options, *where, "--members", "3", "--out", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    for word in words:
        assert word in error
