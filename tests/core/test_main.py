"""The command `prune-env`: in any folder, whatever files lie there."""

import json
import os
import re
import subprocess
import sys
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import pytest

import agents
from prune_env import __main__ as command
from prune_env.students import models
from train import report
from train.execution import plan
from train.learning.workers import Died

ROOT = Path(__file__).parents[2]
# The script that pip writes for an editable installation, of this checkout.
SCRIPT = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from prune_env.__main__ import main
sys.path.remove({str(ROOT)!r})
if __name__ == "__main__":
    sys.exit(main())
"""
MINE = """
import numpy as np
from prune_env import select
class Half:
    def __call__(self, observation, rng):
        return select(np.arange(len(observation["loss"])) % 2 == 0)
"""
SMALL = ["--train-size", "60", "--budget", "1", "--seeds", "1", "--name", "small"]


@pytest.fixture
def call(tmp_path, monkeypatch):
    """Run the command in this process, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))

    def run(*arguments: str) -> int:
        monkeypatch.setattr(sys, "argv", ["/somewhere/bin/prune-env", *arguments])
        return command.main()

    return run


def test_it_lists_the_programs_of_train(call, capsys):
    files = {path.stem for path in (ROOT / "train").glob("*.py")} - {"__init__"}
    assert set(command.PROGRAMS) == files | {"bench"}
    for arguments in ((), ("--help",)):
        assert call(*arguments) == 0
        lines = capsys.readouterr().out.splitlines()
        assert {line.split()[0] for line in lines[2:]} == set(command.PROGRAMS)
    assert call("evalute") == 2
    assert capsys.readouterr().err == f"error: there is no program 'evalute'; there are {', '.join(command.PROGRAMS)}\n"


@pytest.mark.parametrize("name", command.PROGRAMS)
def test_the_usage_names_the_program(name, call, capsys):
    with pytest.raises(SystemExit) as ended:
        call(name, "--help")
    assert ended.value.code == 0
    out = capsys.readouterr().out
    assert out.startswith(f"usage: prune-env {name} ")
    examples = [line for line in out.splitlines()[1:] if "prune-env " in line.split("#")[0]]
    assert all(line.count("prune-env ") == 1 for line in examples)  # each on a line of its own


def test_what_is_listed_can_be_pasted(call, capsys):
    def listed(kind: str) -> list[str]:
        assert call("list", kind) == 0
        return re.findall(r"^  (\S+)\n", capsys.readouterr().out.replace(",\n  ", ","), flags=re.MULTILINE)

    for spec in listed("agents"):
        if not re.search("PATH|AGENT|my_module", spec):
            agents.make(spec)
    assert listed("envs") == ["digits", "cifar10", "cifar100", "tinyimagenet", "imagenet", "imagefolder"]
    assert [plan.short_id(plan.full_id(name)) for name in listed("envs")] == listed("envs")
    names = listed("models")
    assert {name.partition(":")[0] for name in names} == {*models.FAMILIES, "my_module"}
    for name in names[:4]:
        models.build(name, 3, 8, 10, seed=0)
    for kind in ("prune_env/CIFAR10-v0", "cifar10", "CIFAR10", "cifar10-v0", "prune_env/cifar10"):
        assert plan.full_id(kind) == "prune_env/CIFAR10-v0"
    assert plan.full_id("tiny_imagenet") == "prune_env/TinyImageNet-v0"


def test_the_help_begins_with_what_is_compared_and_shows_no_none(call, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit):
        call("evaluate", "--help")
    out = capsys.readouterr().out
    flags = re.findall(r"^. (--[a-z-]+)", out, flags=re.MULTILINE)
    assert "Train with every agent under equal budgets and paired seeds" in out
    assert flags[:7] == ["--agents", "--env", "--budget", "--seeds", "--keep", "--label", "--train-size"]
    assert flags.index("--save-models") > flags.index("--lr")
    assert flags.index("--engine") > flags.index("--name")
    assert "None" not in out
    assert "--no-" not in out
    assert max(len(line) for line in out.splitlines() if " --" in line and "prune-env" not in line) == 100


def test_in_a_wheel_it_says_where_the_programs_are(call, capsys, monkeypatch, tmp_path):
    (tmp_path / "train").mkdir()  # of somebody else's package
    monkeypatch.setattr(command, "CHECKOUT", tmp_path)
    assert call("evaluate") == 2
    said = "error: evaluate is not in the wheel; in a clone of prune_env's repository: pip install -e '.[train]'\n"
    assert capsys.readouterr().err == said


def test_without_the_extra_it_names_what_is_missing(call, capsys, monkeypatch):
    monkeypatch.delitem(sys.modules, "train.report", raising=False)
    monkeypatch.setitem(sys.modules, "tyro", None)
    assert call("report") == 2
    assert capsys.readouterr().err == f"error: report needs tyro; in {ROOT}: pip install -e '.[train]'\n"


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (KeyboardInterrupt(), 130, "interrupted\n"),
        (Died("gone"), 1, "error: a process of prune-env report died: out of memory, or ended\n"),
        (BrokenProcessPool("gone"), 1, "error: a process of prune-env report died: out of memory, or ended\n"),
    ],
)
def test_ctrl_c_and_a_dead_process_end_in_one_line(error, status, said, call, capsys, monkeypatch):
    def end() -> int:
        raise error

    monkeypatch.setattr(report, "main", end)
    assert call("report") == status
    assert capsys.readouterr().err == said


# over 2 s on a busy machine: the one real process, and its workers
@pytest.mark.parametrize("engine", ["local", pytest.param("ray", marks=pytest.mark.slow)])
def test_a_users_files_never_stand_in_for_ours(engine, tmp_path):
    if engine == "ray":
        pytest.importorskip("ray")
    script, home = tmp_path / "bin" / "prune-env", tmp_path / "home"
    script.parent.mkdir()
    script.write_text(SCRIPT)
    (home / "train").mkdir(parents=True)
    for name in ("train/__init__", "train/evaluate", "agents", "prune_env", "random", "numpy", "torch", "tyro"):
        (home / f"{name}.py").write_text("raise SystemExit('this is not ours')")
    (home / "my_agents.py").write_text(MINE)
    arguments = ["evaluate", "--agents", "full", "my_agents:Half", *SMALL, "--workers", "2", "--engine", engine]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    ended = subprocess.run(
        [sys.executable, script, *arguments], cwd=home, env=environment, capture_output=True, text=True, timeout=120
    )
    assert ended.returncode == 0, ended.stderr
    lines = (home / "runs" / "small" / "results.jsonl").read_text().splitlines()
    records = {record["agent"]: record for record in map(json.loads, lines)}
    assert records.keys() == {"full", "my_agents:Half"}
    assert records["full"]["provenance"]["command"] == f"prune-env {' '.join(arguments)}"
