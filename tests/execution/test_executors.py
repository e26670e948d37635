"""Executors: the numbers are those of a run in this process, whatever is killed."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.helpers import processes
from tests.helpers.processes import alive
from train import sweep
from train.execution import checkpoints, executors, results
from train.execution.executors import Executor, Unavailable, Where, local
from train.execution.results import Record
from train.execution.run import DIED, Failure, Run, Terms, play

ROOT = Path(__file__).parents[2]
until = partial(processes.until, seconds=300)  # a cluster takes long to start on a machine that is busy
pytestmark = pytest.mark.usefixtures("one_thread")
MODULE = """
import os, signal, sys, time
from pathlib import Path
from agents import make

full, here = make("full"), Path(__file__).parent

def steady(observation, rng):
    return full(observation, rng)

def raises(observation, rng):
    raise KeyError("no idea")

def leaves(observation, rng):
    sys.exit("enough")

def hangs(observation, rng):
    with open(here / "hangs", "a") as file:
        file.write("again ")
    time.sleep(600)

def dies(observation, rng):
    with open(here / "died", "a") as file:
        file.write("again ")
    os._exit(7)

def dies_once(observation, rng):
    if observation["spent"] > 0 and not (here / "ended").exists():
        (here / "ended").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return full(observation, rng)

def leaves_a_child(observation, rng):
    if os.fork():
        os._exit(7)
    while not (here / "over").exists():
        time.sleep(0.1)  # holds what it has inherited, the pipe to the program too
    os._exit(0)

def waits(observation, rng):
    if observation["spent"] > 0 and not (here / "go").exists():
        (here / "waits").write_text(str(os.getpid()))
        while not (here / "go").exists():
            time.sleep(0.05)
    return full(observation, rng)
"""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the agents' module, which processes elsewhere find as this one does."""
    (tmp_path / "my_agents.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "my_agents", raising=False)
    return tmp_path


def runs_of(*agents: str) -> list[Run]:
    """Planned runs of agents of the module above, or of the package's, seeds counting up."""
    settings = {"train_size": 100, "budget": 3.0, "device": "cpu"}
    specs = [f"my_agents:{agent}" if f"def {agent}(" in MODULE else agent for agent in agents]
    runs = [Run("prune_env/Digits-v0", settings, spec, seed, "digits") for seed, spec in enumerate(specs)]
    known = play(replace(runs[0], agent="full"), runs[0].make_env())
    test = known["provenance"]["data"]["test"]
    return [replace(run, key=results.key_of(known["configuration"], run.agent, run.seed, test)) for run in runs]


def outcomes_of(executor: Executor, runs: Iterable[Run]) -> dict[str, Any]:
    """What each agent's run came to, by the agent's name, as they ended."""
    found = {}
    for outcome in executors.outcomes(executor, runs):
        agent = outcome.run.agent if isinstance(outcome, Failure) else outcome["agent"]
        found[agent.rpartition(":")[2]] = outcome
    assert not multiprocessing.active_children()
    return found


def numbers(record: Record) -> str:
    """A record without times."""
    outcome = {name: value for name, value in record["results"].items() if name != "seconds"}
    provenance = {name: value for name, value in record["provenance"].items() if name != "time"}
    return json.dumps({**record, "results": outcome, "provenance": provenance})


def check(found: Mapping[str, Any], runs: Iterable[Run], home: Path) -> None:
    """As in this process; who fails costs its own run, and who dies twice has died."""
    for run in runs:
        name = run.agent.rpartition(":")[2]
        if name == "raises":
            assert found[name].error == "KeyError: 'no idea' at my_agents.py:12 in step 1"
            assert found[name].final
            assert "raise KeyError" in found[name].traceback
        elif name == "hangs":
            assert found[name].error.startswith("the agent took more than 3 s for one decision")
            assert "my_agents.py" in found[name].traceback
        elif name in ("dies", "leaves_a_child"):
            assert found[name].error == DIED
        else:
            assert numbers(found[name]) == numbers(play(run, run.make_env())), name
    if (home / "died").exists():
        assert (home / "died").read_text() == "again again "


def terms_of(home: Path, **more: Any) -> Terms:
    return Terms(home / "results", **{"agent_timeout": 300.0, "checkpoint_seconds": 0.0, **more})


def test_outcomes_come_as_runs_end_at_most_so_many_at_a_time():
    working, most, events = set(), [], []

    def do(run: Run) -> Record:
        working.add(run.seed)
        most.append(len(working))
        time.sleep(0.01 * run.seed)
        working.remove(run.seed)
        return {"seed": run.seed}

    executor = Executor(2, do, lambda: events.append("stop"), lambda: events.append("end"))
    runs = [Run("env", {}, "full", seed) for seed in (9, 1, 2, 3)]
    found = [outcome["seed"] for outcome in executors.outcomes(executor, runs) if isinstance(outcome, dict)]
    assert found == [1, 2, 3, 9]
    assert max(most) == 2
    assert events == ["stop", "end"]


# ---------------------------------------------------------------- processes of this machine


def test_forked_processes_give_the_numbers_of_this_one(home: Path):
    runs = runs_of("full", "raises", "random")
    check(outcomes_of(local.start(Where(workers=2), terms_of(home), len(runs)), runs), runs, home)


def test_leaving_early_ends_the_processes(home: Path):
    runs = runs_of("full", "waits")
    with closing(executors.outcomes(local.start(Where(workers=1), terms_of(home), 2), runs)) as found:
        assert isinstance(next(found), dict)
        until((home / "waits").exists)
    assert not alive(int((home / "waits").read_text()))
    assert not multiprocessing.active_children()


@pytest.mark.slow  # each process that is spawned imports torch
@pytest.mark.parametrize("kind", ["fork", "spawn"])
def test_a_process_that_dies_costs_its_own_run_only(kind: str, home: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(local.sys, "platform", {"fork": "linux", "spawn": "win32"}[kind])
    runs = runs_of("dies_once", "full", "raises", "dies", "random")
    found = outcomes_of(local.start(Where(workers=2), terms_of(home), len(runs)), runs)
    check(found, runs, home)
    assert list(found)[-2:] in (["dies_once", "dies"], ["dies", "dies_once"])  # tried again, alone
    assert found["dies"].traceback == "exit code 7"


@pytest.mark.slow
def test_an_agent_that_hangs_leaves_or_has_a_child_fails_alone(home: Path):
    runs = runs_of("hangs", "leaves", "leaves_a_child", "full")
    found = outcomes_of(local.start(Where(workers=2), terms_of(home, agent_timeout=3.0), len(runs)), runs)
    (home / "over").touch()
    assert found.pop("leaves").error == "SystemExit: enough"
    check(found, [run for run in runs if "leaves" not in run.agent or "child" in run.agent], home)
    assert (home / "hangs").read_text() == "again "  # not tried again
    late = [run for run in runs if "hangs" in run.agent]
    found = outcomes_of(local.start(Where(workers=1), terms_of(home), 1), late)  # and not before it was told
    check(found, late, home)
    checkpoints.forget(home / "results", late[0].key)


# ---------------------------------------------------------------- a cluster of Ray, jobs of Slurm

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
if "slurm" in sys.argv:
    from train.execution.executors import slurm
    slurm.CLUSTER, slurm.CANCEL, slurm.POLL = "local", ("kill", "-INT"), 0.05
sys.exit(sweep.main(sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """Of a cluster on this machine, as `ray start` begins one."""
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
    yield str(cluster.gcs_address)
    cluster.shutdown()


@pytest.mark.slow
def test_ray_does_what_is_done_here_and_does_again_what_is_killed(address: str, home: Path):
    runs = runs_of("dies_once", "full", "raises", "random", "hangs")
    where = Where(engine="ray", address=address)
    check(outcomes_of(executors.start(where, terms_of(home, agent_timeout=3.0), 5), runs), runs, home)
    for wrong, words in (({"address": "nowhere"}, "--address nowhere.*`ray status`"), ({"gpus_per_run": 1}, "1 GPUs")):
        with pytest.raises(Unavailable, match=words):
            executors.start(replace(where, **wrong), terms_of(home), 1)


@pytest.mark.slow
def test_jobs_do_what_is_done_here_and_do_again_what_is_killed(home: Path, monkeypatch: pytest.MonkeyPatch):
    """Slurm's part is played by submitit's executor for this machine, whose ids are those of processes."""
    slurm = pytest.importorskip("train.execution.executors.slurm")
    for name, value in {"CLUSTER": "local", "CANCEL": ("kill", "-INT"), "POLL": 0.05}.items():
        monkeypatch.setattr(slurm, name, value)
    runs, where = runs_of("full", "raises", "dies_once", "random", "dies"), Where(engine="slurm", workers=2)
    check(outcomes_of(executors.start(where, terms_of(home), 5), runs), runs, home)
    assert {path.suffix for path in (home / "results" / "slurm").iterdir()} <= {".out", ".err"}  # of those that failed


def test_a_job_is_submitted_watched_and_cancelled(home: Path, monkeypatch: pytest.MonkeyPatch):
    """With a queue that runs jobs here, as a process for each would import torch."""
    slurm = pytest.importorskip("train.execution.executors.slurm")
    job, submitted, cancelled = pytest.importorskip("submitit").Job, [], []

    class Queue:
        def __init__(self, folder: Path, cluster: str):
            self.folder = folder

        def update_parameters(self, **parameters: Any) -> None:
            assert parameters["timeout_min"] == 7

        def submit(self, work: Any, run: Run, terms: Terms) -> Any:
            made = job(self.folder, f"job{len(submitted)}")
            submitted.append(os.environ["PYTHONPATH"])
            assert os.environ["PYTHONSAFEPATH"] == "1"
            self.folder.mkdir(parents=True, exist_ok=True)
            made.paths.result_pickle.touch()
            outcome = None if run.agent.endswith("waits") else work(run, terms)
            monkeypatch.setattr(made, "done", lambda: outcome is not None)
            monkeypatch.setattr(made, "exception", lambda: None)
            monkeypatch.setattr(made, "result", lambda: outcome)
            monkeypatch.setattr(made, "cancel", lambda check: cancelled.append(run))
            return made

    monkeypatch.setattr(slurm.submitit, "AutoExecutor", Queue)
    monkeypatch.setattr(slurm, "POLL", 0.01)
    runs, where = runs_of("full", "raises", "waits"), Where(engine="slurm", workers=2, minutes=7)
    found = executors.outcomes(executors.start(where, terms_of(home), 3), runs)
    first = [next(found), next(found)]
    found.close()
    check({"full" if isinstance(one, dict) else "raises": one for one in first}, runs[:2], home)
    assert [str(home) in path for path in submitted] == [True] * 3
    assert cancelled == runs[2:]
    assert not list((home / "results" / "slurm").iterdir())


def test_slurm_that_is_not_there_is_told(home: Path):
    pytest.importorskip("submitit")
    with pytest.raises(Unavailable, match=r"srun.*--engine slurm runs where sbatch accepts jobs"):
        executors.start(Where(engine="slurm"), terms_of(home), 1)


def killed_and_started_again(home: Path, options: list[str]) -> None:
    """A program is killed while a run is in its second step; the same command ends with the records of local runs."""
    (home / "mine.toml").write_text(SWEEP)
    arguments = [str(home / "mine.toml"), "--checkpoint-seconds", "0"]
    mine = [sys.executable, "-c", DRIVER, *arguments, *options, "--out", str(home / "killed")]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{home}"}
    with subprocess.Popen(mine, env=environment, stderr=subprocess.PIPE) as driver:
        until((home / "waits").exists)
        lines = home / "killed" / "mine" / "results.jsonl"
        until(lambda: lines.exists() and lines.read_bytes().count(b"\n") == 2)  # of `full`
        driver.send_signal(signal.SIGKILL)
    former = int((home / "waits").read_text())
    (home / "waits").unlink()

    def go_on() -> None:
        until((home / "waits").exists)
        until(lambda: not alive(former))  # nobody does what nobody asks for
        (home / "go").touch()

    with ThreadPoolExecutor(1) as pool:
        going_on = pool.submit(go_on)
        done = subprocess.run(mine, env=environment, capture_output=True, text=True, timeout=500)
        assert done.returncode == 0, done.stderr
        going_on.result()
    assert sweep.main([*arguments, "--out", str(home / "local"), "--workers", "1"]) == 0
    killed, straight = (results.read(home / out / "mine" / "results.jsonl")[0] for out in ("killed", "local"))
    assert killed.keys() == straight.keys()
    for key, record in killed.items():
        for part in ("curve", "configuration"):
            assert record[part] == straight[key][part]
        assert {**record["results"], "seconds": 0} == {**straight[key]["results"], "seconds": 0}
    assert not (home / "killed" / "mine" / "checkpoints").exists()


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["local", "ray", "slurm"])
def test_a_program_is_killed_and_started_again(engine: str, home: Path):
    if engine != "local":
        pytest.importorskip({"ray": "ray", "slurm": "submitit"}[engine])
    killed_and_started_again(home, ["--engine", engine, "--workers", "1"])


# ---------------------------------------------------------------- options

WRONG: list[tuple[Where, list[str]]] = [  # and what the line says
    (Where(address="auto"), ["--address", "--engine ray", "local"]),
    (Where(engine="slurm", address="auto"), ["--address", "--engine ray", "slurm"]),
    (Where(gpus_per_run=0.5), ["--gpus-per-run", "--engine ray or --engine slurm"]),
    (Where(engine="slurm", gpus_per_run=0.5), ["--gpus-per-run is 0.5", "whole"]),
    (Where(engine="ray", gpus_per_run=1.5), ["--gpus-per-run is 1.5", "a part"]),
    (Where(engine="ray", gpus_per_run=float("nan")), ["--gpus-per-run is nan"]),
    (Where(engine="slurm", minutes=0), ["--minutes is 0"]),
    (Where(workers=-1), ["--workers is -1"]),
    (Where(engine="ray", debug=True), ["--workers is 0"]),
]


def test_wrong_options_are_named():
    for where, words in WRONG:
        with pytest.raises(ValueError) as error:  # noqa: PT011
            executors.check(where)
        for word in words:
            assert word in str(error.value)


@pytest.mark.parametrize(("engine", "package"), [("ray", "ray"), ("slurm", "submitit")])
def test_what_is_not_installed_is_told(
    engine: str, package: str, home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.delitem(sys.modules, f"train.execution.executors.{engine}", raising=False)
    (home / "mine.toml").write_text(SWEEP)
    assert sweep.main([str(home / "mine.toml"), "--engine", engine]) == 2
    assert capsys.readouterr().err.endswith(f"error: --engine {engine} needs {package}: pip install -e '.[{engine}]'\n")
