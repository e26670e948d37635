"""`python -m train.sweep`: sweep files, and the program as it is run, killed and resumed."""

import contextlib
import io
import itertools
import json
import os
import random
import re
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import agents
from train import sweep
from train.execution import plan, program
from train.execution.plan import Block, Place, make_plan

ROOT = Path(__file__).resolve().parents[2]
DIGITS = 'env = "prune_env/Digits-v0"'
TASK = f"[tasks.digits]\n{DIGITS}\n"


def read(path: Path, more_agents: tuple[str, ...] = ()) -> list[plan.Block]:
    """The blocks of a sweep file, its text apart."""
    return sweep.read(path, more_agents)[0]


def write(folder: Path, text: str, name: str = "mine.toml") -> Path:
    path = folder / name
    path.write_text(text)
    return path


# The file


def test_a_file_as_documented(tmp_path: Path):
    path = write(
        tmp_path,
        f"""
agents = ["full", "random", "infobatch+mixup=0.5"]
budgets = [3, 12.5]
keep = [0.5, 0.3]
seeds = 10
[tasks.clean]
{DIGITS}
[tasks."noisy, and small"]
{DIGITS}
label_noise = 0.2
train_size = 100
model = "mlp:8"
[[blocks]]
[[blocks]]
tasks = ["clean"]
agents = ["full"]
budgets = [6]
keep = [1]
seeds = 3
[[blocks]]
tasks = ["noisy, and small", "clean"]
budgets = [1]
""",
    )
    env, top = "prune_env/Digits-v0", ("full", "random", "infobatch+mixup=0.5")
    noisy = {"label_noise": 0.2, "train_size": 100, "model": "mlp:8"}
    expected = [
        Block("clean", env, {}, top, (0.5, 0.3), (3.0, 12.5), 10),
        Block("noisy, and small", env, noisy, top, (0.5, 0.3), (3.0, 12.5), 10),
        Block("clean", env, {}, ("full",), (1.0,), (6.0,), 3),
        Block("noisy, and small", env, noisy, top, (0.5, 0.3), (1.0,), 10),
        Block("clean", env, {}, top, (0.5, 0.3), (1.0,), 10),
    ]
    assert read(path) == expected
    more = read(path, ("mine:Own", "ucb"))
    assert [block.agents for block in more] == [(*block.agents, "mine:Own", "ucb") for block in expected]


def test_defaults_and_a_block_that_sets_all(tmp_path: Path):
    (block,) = read(write(tmp_path, f'agents = ["full"]\nbudgets = [2]\n{TASK}'))
    assert (block.keep, block.seeds, block.task) == ((0.5,), 5, "digits")
    (block,) = read(write(tmp_path, f'{TASK}[[blocks]]\nagents = ["full"]\nbudgets = [2]\nseeds = 1'))
    assert block == Block("digits", "prune_env/Digits-v0", {}, ("full",), (0.5,), (2.0,), 1)


def test_a_task_may_have_learning_rates_by_budget(tmp_path: Path):
    text = f'agents = ["full", "random"]\nbudgets = [2, 4.5, 7, 40]\nseeds = 1\n{TASK}lr = {{3 = 0.1, "12.5" = 0.05}}\n'
    (block,) = read(write(tmp_path, text))
    assert block.settings == {"lr": {3.0: 0.1, 12.5: 0.05}}
    runs = make_plan([block], Place(None, False, "cpu")).runs.values()
    # nearest in ratio: the geometric mean of 3 and 12.5 is 6.12
    rates = {2: 0.1, 4.5: 0.1, 7: 0.05, 40: 0.05}
    assert {(run.settings["budget"], run.settings["lr"]) for run in runs} == set(rates.items())


def test_cells_are_planned_once_however_often_they_are_named(tmp_path: Path):
    top = 'agents = ["full", "full", "ucb", "ucb:keep=0.5"]\nbudgets = [2, 2.0]\nkeep = [0.5, 0.5, 0.25]\nseeds = 2\n'
    path = write(tmp_path, f'{top}{TASK}[[blocks]]\n[[blocks]]\nseeds = 3\nagents = ["full"]')
    runs = make_plan(read(path), Place(None, False, "cpu")).runs.values()
    expected = {(agent, seed) for agent in ("full", "ucb:keep=0.5", "ucb:keep=0.25") for seed in (0, 1)} | {("full", 2)}
    assert sorted((run.agent, run.seed) for run in runs) == sorted(expected)


def test_runs_of_several_blocks_fail_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "no_import.py").write_text("import nothing_of_this_name\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    path = write(tmp_path, f'agents = ["no_import:Mine"]\nbudgets = [2]\nseeds = 2\n{TASK}[[blocks]]\n[[blocks]]\n')
    failed = make_plan(read(path), Place(None, False, "cpu")).failures
    assert [failure.run.seed for failure in failed] == [0, 1]


@pytest.mark.parametrize("path", sorted((ROOT / "sweeps").glob("*.toml")), ids=lambda path: path.stem)
def test_committed_files_are_valid(path: Path):
    for block in read(path):
        plan.dataset_of(block.env)
        for spec, keep in itertools.product(block.agents, block.keep):
            agents.make(agents.spec_with_keep(spec, keep))
        assert min(block.budgets) > 0
        # where kinds of tasks are compared, cells take the place of seeds
        assert block.seeds >= 5 or path.stem.endswith("-cpu") or path.stem.startswith(("proxies", "teachers-"))


TOP = 'agents = ["full"]\nbudgets = [2]\n'
WRONG = {  # of the file
    "agents = [": ["is not a TOML file"],
    "": ["no tasks"],
    f'{TOP}tasks = ["digits"]': ["no tasks", "[tasks.NAME]"],
    f"{TOP}[tasks.digits]\nlr = 0.1": ["task 'digits'", "needs an env"],
    f"{TOP}{TASK}learning_rate = 0.1": ["task 'digits'", "'learning_rate'", "lr"],
    f'{TOP}{TASK}root = "/"': ["task 'digits'", "'root' is not known"],
    f"{TOP}seed = 3\n{TASK}": ["'seed' is not known", "seeds"],
    f'{TOP}model = "mlp"\n{TASK}': ["'model' is not known", "a setting of a task, and stands below [tasks.NAME]"],
    f"{TOP}{TASK}[[blocks]]\n[[blocks]]\nbudget = [3]": ["block 2", "'budget' is not known"],
    f"blocks = []\n{TOP}{TASK}": ["blocks must be tables"],
    f"budgets = [2]\n{TASK}": ["block 1", "agents is None", "list of strings"],
    f'agents = "full"\nbudgets = [2]\n{TASK}': ["block 1", "agents is 'full'", "list of strings"],
    f'agents = ["full"]\nbudgets = [true]\n{TASK}': ["block 1", "budgets", "True"],
    f"{TOP}{TASK}[[blocks]]\n[[blocks]]\nkeep = []": ["block 2", "keep is []"],
    f"{TOP}seeds = 2.5\n{TASK}": ["block 1", "seeds is 2.5"],
    f"{TOP}{TASK}lr = {{}}": ["task 'digits'", "lr is {}"],
    f"{TOP}{TASK}target = 0": ["task 'digits'", "target is 0", "points over full"],
    f"{TOP}{TASK}target = true": ["task 'digits'", "target is True"],
    f"{TOP}{TASK}lr = {{3 = 0}}": ["task 'digits'", "positive"],
    f'{TOP}{TASK}[[blocks]]\ntasks = ["digit"]': ["block 1", "task 'digit'", "digits"],
    f"{TOP}{TASK}[tasks.again]\n{DIGITS}": ["'digits' and 'again' are the same task"],
}
PLANNED = {  # what only the plan finds is named without the file and the block
    f'agents = ["full+mixin=1"]\nbudgets = [2]\n{TASK}': ["'full+mixin=1'", "'mixin'"],
    f'agents = ["full"]\nbudgets = [nan]\n{TASK}': ["budget is nan"],
    f'{TOP}[tasks.a]\nenv = "prune_env/DigitsSummary-v0"': ["use 'prune_env/Digits-v0'"],
    f'{TOP}[tasks.a]\nenv = "prune_env/ImageFolder-v0"': ["imagefolder"],
    f'{TOP}{TASK}label_noise = "much"': ["label_noise", "'much'"],
    f"{TOP}{TASK}model = 3": ["model", "3"],
}


def test_a_wrong_file_ends_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("PRUNE_ENV_DATA", raising=False)
    for text, words in {**WRONG, **PLANNED}.items():
        path = write(tmp_path, text)
        assert sweep.main([str(path), "--out", str(tmp_path / "out")]) == 2
        error = capsys.readouterr().err
        assert error.startswith(f"error: {path}" if text in WRONG else "error: ")
        assert error.count("\n") == 1
        for word in words:
            assert word in error
    assert not (tmp_path / "out").exists()


def test_a_file_that_cannot_be_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "no_text.toml").write_bytes(b"\xff\xfe\x00")
    for path in (tmp_path / "absent.toml", tmp_path, tmp_path / "no_text.toml"):
        assert sweep.main([str(path), "--out", str(tmp_path / "out")]) == 2
        assert re.fullmatch(rf"error: .*{path}.*\n", capsys.readouterr().err)


def test_the_copy_is_of_what_was_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A file that is edited after it was planned is not what the results are of."""
    text = f'agents = ["full"]\r\nbudgets = [1]\r\nseeds = 1\r\n{TASK}train_size = 60\r\nmodel = "mlp:4"\r\n'
    path = tmp_path / "mine.toml"
    path.write_bytes(text.encode())
    monkeypatch.setattr(program, "make_plan", lambda *given: (make_plan(*given), path.write_text("other = 1"))[0])
    assert sweep.main([str(path), "--workers", "1", "--out", str(tmp_path), "--name", "run"]) == 0
    assert (tmp_path / "run" / "sweep.toml").read_bytes() == text.encode()
    assert json.loads((tmp_path / "run" / "cells.json").read_bytes())["file"] == text


# The program

SWEEP = f"""
agents = ["full", "random"]
budgets = [1.5]
seeds = 2
[tasks.clean]
{DIGITS}
train_size = 100
[tasks.noisy]
{DIGITS}
train_size = 100
label_noise = 0.2
[[blocks]]
[[blocks]]
tasks = ["noisy"]
agents = ["kakurenbo+mixup=0.5"]
budgets = [1.5]
seeds = 3
"""
MY_MODULE = """
from prune_env import select

class MyAgent:
    def __init__(self, keep=0.5):
        self.keep = keep

    def __call__(self, observation, rng):
        n = len(observation["loss"])
        return select(rng.permutation(n)[: round(self.keep * n)], n=n)
"""
MINE = "my_module:MyAgent:keep=0.5"
CELLS = [
    *itertools.product(["clean", "noisy"], ["full", "random:keep=0.5", MINE], [1.5], [0, 1]),
    *(("noisy", "kakurenbo+mixup=0.5", 1.5, seed) for seed in range(3)),
    ("noisy", MINE, 1.5, 2),  # seeds 0 and 1 are above
]


def records_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]


def cell(record: dict) -> tuple:
    return record["task"], record["agent"], record["budget"], record["seed"]


@dataclass
class Done:
    home: Path
    stdout: str
    stderr: str


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Done:
    """The program run once, outside the repository, with an agent of one's own."""
    home = tmp_path_factory.mktemp("home")
    (home / "my_module.py").write_text(MY_MODULE)
    arguments = [
        str(write(home, SWEEP)),
        "--workers",
        "1",
        "--agents",
        "my_module:MyAgent",
        "--out",
        str(home / "runs"),
    ]
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        patch.syspath_prepend(str(home))
        assert sweep.main(arguments) == 0
    return Done(home, out.getvalue(), err.getvalue())


def test_the_cells_are_the_product_each_once(done: Done):
    records = records_of(done.home / "runs" / "mine")
    assert sorted(map(cell, records)) == sorted(CELLS)
    assert len({record["key"] for record in records}) == len(records)
    for record in records:
        settings = {"train_size": 100, "budget": record["budget"], "device": "auto"}
        settings |= {"label_noise": 0.2, "lr": 0.1} if record["task"] == "noisy" else {}
        assert record["configuration"]["settings"] == settings
        assert re.match(r"prune-env sweep \S*mine.toml --workers 1 --agents my", record["provenance"]["command"])
        spent = record["results"]["spent"]
        assert spent["total"] == pytest.approx(spent["train"] + spent["score"])
        assert spent["total"] <= record["budget"]
        assert (spent["score"] > 0) <= (record["agent"] == "kakurenbo+mixup=0.5")


def test_the_folder_of_results(done: Done):
    folder = done.home / "runs" / "mine"
    assert (folder / "sweep.toml").read_text() == SWEEP
    assert done.stdout == (folder / "table.txt").read_text()
    lines = done.stdout.splitlines()
    for task, labels in (("clean", "clean labels"), ("noisy", "20% wrong labels")):
        rate = lines[lines.index(task) + 1]
        assert re.fullmatch(rf"Learning rate: lr .*: tuned for .* of mlp on digits, budget 3, {labels}\.", rate)
    for spec in (MINE, "kakurenbo+mixup=0.5"):
        assert spec in done.stdout


def test_progress_tells_the_time_left_where_there_is_no_terminal(done: Done):
    where, first, *lines, written, after = done.stderr.splitlines()
    total = len(CELLS)
    assert where == f"results in {done.home}/runs/mine"
    assert first == f"{total} runs, 0 of them done before"
    pattern = re.compile(
        r"(\d+)/(\d+) (clean|noisy), (\S+), budget ([\d.]+): test accuracy [\d.]+ % in (\d) runs; "
        r"(\d+):(\d\d):(\d\d) left"
    )
    found = [pattern.fullmatch(line) for line in lines]
    assert all(found)
    groups: list[Any] = [match.groups() for match in found if match]
    ended = [int(done) for done, *_ in groups]
    assert ended == sorted(ended)
    assert (ended[-1], {int(of) for _, of, *_ in groups}) == (total, {total})
    told = {(task, agent, float(budget)): int(runs) for _, _, task, agent, budget, runs, *_ in groups}
    assert told == Counter((task, agent, budget) for task, agent, budget, _ in CELLS)  # a line an agent
    assert groups[-1][-3:] == ("0", "00", "00")
    assert re.match(rf"wrote to {done.home}/runs/mine: accuracy-clean.png, accuracy-noisy.png, .*tensorboard/", written)
    assert after == f"next: prune-env report {done.home}/runs/mine"


# Kills

DRIVER = """
import json, os, signal, sys, time
from pathlib import Path
from train import sweep

arguments, out, moments = json.loads(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3])

def start():
    pid = os.fork()  # of a process with one thread, which has imported everything
    if pid == 0:
        os._exit(sweep.main(arguments))
    return pid

def lines():
    return out.read_bytes().count(b"\\n") if out.exists() else 0

torn = False
for many, delay in moments:
    pid = start()
    while lines() < many and os.waitpid(pid, os.WNOHANG) == (0, 0):
        time.sleep(0.002)
    time.sleep(delay)
    os.kill(pid, signal.SIGKILL)
    assert os.WIFSIGNALED(os.waitpid(pid, 0)[1])
    if lines() and not torn:  # and a kill in the middle of a line
        out.write_bytes(out.read_bytes()[:-100])
        torn = True
sys.exit(os.waitstatus_to_exitcode(os.waitpid(start(), 0)[1]))
"""


def numbers(record: dict) -> dict:
    """A record but for seconds, the time, the command and the state of the checkout, which others may edit."""
    results = {name: value for name, value in record["results"].items() if name != "seconds"}
    varies = ("time", "command", "commit", "dirty")
    provenance = {name: value for name, value in record["provenance"].items() if name not in varies}
    return {**record, "results": results, "provenance": provenance}


@pytest.mark.slow
def test_killed_at_ten_random_moments_it_ends_the_same(done: Done):
    rng = random.Random()
    many = sorted(rng.randrange(len(CELLS) // 2) for _ in range(10))  # results; before the first it takes longer
    # a fast machine does it all in two seconds
    moments = [(lines, rng.uniform(0.0, 0.03 if lines else 0.5)) for lines in many]
    arguments = json.dumps(["mine.toml", "--agents", "my_module:MyAgent", "--workers", "2", "--out", "killed"])
    command = [sys.executable, "-c", DRIVER, arguments, "killed/mine/results.jsonl", json.dumps(moments)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    ended = subprocess.run(command, cwd=done.home, env=environment, capture_output=True, text=True, timeout=900)
    assert ended.returncode == 0, (moments, ended.stderr)
    assert "warning: 1 line(s) of killed/mine/results.jsonl are torn, and dropped" in ended.stderr
    resumed, straight = (records_of(done.home / folder / "mine") for folder in ("killed", "runs"))
    assert {r["key"]: numbers(r) for r in resumed} == {r["key"]: numbers(r) for r in straight}
    tables = [(done.home / folder / "mine" / "table.txt").read_text() for folder in ("killed", "runs")]
    accuracies = [re.findall(r"\d+\.\d+ \[.*?\]", text) for text in tables]
    assert accuracies[0] == accuracies[1] != []
