"""`python -m train.evaluate`: the program as it is run, and the parts of a record."""

import csv
import dataclasses
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
import torch
from matplotlib.image import imread
from rich.console import Group
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import prune_env
from prune_env import data, io
from prune_env.data.task import Variant
from prune_env.students.recipes import Recipe, Training, tuned
from tests.helpers import trees
from tests.helpers.processes import alive, until
from tests.helpers.runs import own_digits
from train import evaluate, report, tune
from train.analysis import curves, records, table
from train.execution import checkpoints, command_line, executors, plan, process, program, provenance, results, saved
from train.execution.plan import Block, Place, make_plan
from train.execution.run import DIED, Failure, Run, play

ROOT = Path(__file__).resolve().parents[2]
SMALL = ("--train-size", "100", "--budget", "1.5", "--seeds", "2")
SPECS = ("full", "random:keep=0.5", "first_half:FirstHalf")
FIRST_HALF = """
import numpy as np
from prune_env import select

class FirstHalf:
    def __call__(self, observation, rng):
        n = len(observation["loss"])
        return select(np.arange(n // 2), n=n)
"""
# what takes as long to import as torch, and is for few runs or none
HEAVY = {"torch._dynamo", "sympy", "torchvision", "pandas", "ray", "submitit"}
OWN_NETWORK = """
import torch

def make(channels, size, classes):
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(channels * size**2, classes))
"""
PROGRAM = f"""
import sys
from train import evaluate
status = evaluate.main()
sys.exit(status or ", ".join({HEAVY} & set(sys.modules)) or 0)
"""


@dataclasses.dataclass
class Done:
    """A finished command: its folder of modules, its results, and what it printed."""

    home: Path
    folder: Path
    arguments: list[str]
    stdout: str
    records: list[dict]

    def copy(self, to: Path) -> list[str]:
        """Copy the results to another folder; return the arguments that go on there, without agents."""
        shutil.copytree(self.folder, to / "small")
        return [*SMALL, "--name", "small", "--out", str(to)]


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Done:
    """The command with three agents and two workers, run from a folder that holds one of the agents.

    It takes seconds: this is the one real process, which imports everything.
    """
    home = tmp_path_factory.mktemp("home")
    (home / "first_half.py").write_text(FIRST_HALF)
    out = home / "results"
    arguments = ["--agents", "full", "random", "first_half:FirstHalf", *SMALL, "--name", "small", "--out", str(out)]
    command = [sys.executable, "-c", PROGRAM, *arguments, "--workers", "2"]
    ended = subprocess.run(command, cwd=home, env=_environment(), capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stderr
    return Done(home, out / "small", arguments, ended.stdout, _records(out / "small"))


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT)}


def _records(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]


def _numbers(records: list[dict]) -> dict[tuple, dict]:
    """Results and curves without seconds, by agent and seed."""
    found = {}
    for record in records:
        outcome = {name: value for name, value in record["results"].items() if name != "seconds"}
        found[record["agent"], record["seed"]] = {"results": outcome, "curve": record["curve"]}
    return found


def _runs(*specs: str, seeds: int = 2) -> list[Run]:
    settings = {"train_size": 100, "budget": 1.5, "device": "auto"}
    return [Run("prune_env/Digits-v0", settings, spec, seed) for seed in range(seeds) for spec in specs]


def test_prints_a_table_and_writes_every_file(done: Done):
    lines = done.stdout.splitlines()
    assert max(map(len, lines)) <= table.WIDTH
    assert all(any(spec in line for line in lines) for spec in SPECS)
    assert "Few seeds: 2" in done.stdout
    assert lines[0] == "prune_env/Digits-v0, mlp, train_size=100"
    assert lines[1] == "Learning rate: lr 0.2: tuned for full training of mlp on digits, budget 3, clean labels."
    assert done.stdout == (done.folder / "table.txt").read_text()
    files = {"accuracy.png", "curves.csv", "results.jsonl", "table.txt", "tensorboard"}
    assert files <= {path.name for path in done.folder.iterdir()}
    height, width, _ = imread(done.folder / "accuracy.png").shape
    assert width > height > 300


def test_a_second_command_runs_nothing(done: Done, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(done.home))
    monkeypatch.setattr(executors, "start", None)
    done.copy(tmp_path)
    assert evaluate.main([*done.arguments, "--out", str(tmp_path)]) == 0
    for name in ("results.jsonl", "table.txt", "curves.csv"):
        assert (tmp_path / "small" / name).read_bytes() == (done.folder / name).read_bytes()


def test_numbers_do_not_depend_on_the_workers(done: Done, monkeypatch: pytest.MonkeyPatch, one_thread: None):
    """Two workers and a plain loop: the same bit for bit."""
    monkeypatch.syspath_prepend(str(done.home))
    sequence = [play(run, run.make_env()) for run in _runs(*SPECS)]
    assert _numbers(json.loads(json.dumps(sequence))) == _numbers(done.records)


# The plan


def _plan(budgets: tuple[float, ...], root: str | None = None, **settings: Any) -> list[Run]:
    block = Block("it", "prune_env/Digits-v0", settings, ("full",), (0.5,), budgets, 1)
    return list(make_plan([block], Place(root, False, "cpu")).runs.values())


def test_each_setting_makes_runs_of_its_own_and_the_place_of_images_does_not(tmp_path: Path):
    keys = set()
    others: tuple[dict[str, Any], ...] = ({}, {"lr": 0.05}, {"label_noise": 0.1}, {"model": "mlp:4"}, {"ema": 0.5})
    for count, settings in enumerate(others, start=1):
        keys |= {run.key for root in (None, str(tmp_path)) for run in _plan((1.0,), root, **settings)}
        assert len(keys) == count


def test_runs_have_the_rate_of_their_budget_and_share_of_wrong_labels():
    runs = _plan((3.0, 10.0, 24.0), label_noise=0.2)
    assert [run.settings["lr"] for run in runs] == [0.1, 0.025, 0.00625]
    assert [run.make_env().unwrapped.recipe.lr for run in runs] == [0.1, 0.025, 0.00625]  # pyright: ignore[reportAttributeAccessIssue]
    assert runs[1].rate == tuned("digits", "mlp", 10.0, 0.2).description
    # without wrong labels it is the environment's own, and the settings stay as they were
    (clean,) = _plan((10.0,), train_size=100)
    assert "lr" not in clean.settings
    assert "clean labels" in clean.rate
    (unlike,) = _plan((10.0,), imbalance=10.0)  # given, so that agents cannot tell from the environment's own
    best = tuned("digits", "mlp", 10.0, imbalance=10.0)
    assert unlike.settings["lr"] == best.values["lr"]
    assert unlike.rate.startswith(best.description)
    given = _plan((3.0, 10.0), label_noise=0.2, lr={3.0: 0.1, 12.0: 0.5})
    assert [run.settings["lr"] for run in given] == [0.1, 0.5]
    assert [run.rate.partition(":")[2][:9] for run in given] == [" tuned fo", " as given"]


@pytest.mark.parametrize(
    ("env", "settings"),
    [
        ("prune_env/CIFAR10-v0", {"model": "resnet18"}),
        ("prune_env/Digits-v0", {"model": "my_module:make_model", "optimizer": "adamw"}),
        ("prune_env/CIFAR10-v0", {"label_noise": 0.3, "image_size": 32, "weight_decay": 0.001}),
        ("prune_env/CIFAR10-v0", {"label_noise": 0.3, "imbalance": 20.0}),
        ("prune_env/Digits-v0", {"model": "mlp:7", "val_rest": True, "train_size": 100, "lr": 0.2}),
    ],
)
def test_what_is_not_tuned_names_the_command_that_tunes_it(env: str, settings: dict[str, Any]):
    """The command asks for the same task, network and budgets, and its rates are found then."""
    block = Block("it", env, settings, ("full",), (0.5,), (30.0, 8.0), 1)
    for _, rate in plan.with_rates(block).values():
        command = shlex.split(rate.partition("tune it: ")[2])
        assert command[:2] == ["prune-env", "tune"]
        asked = command_line.read("tune", tune.Arguments, command[2:])
        dataset = plan.dataset_of(env)
        without_rate = {name: value for name, value in settings.items() if name != "lr"}
        given = {"model": tuned(dataset, None, 8.0).values["model"], **without_rate}
        assert plan.settings_of(asked.task, asked.training) == given
        assert (asked.env, asked.budget) == (env, (8.0, 30.0))
        assert asked.save == (f"{dataset}:32" if "image_size" in settings else dataset)


def test_the_options_of_a_command_are_given_in_full_and_only_those_that_are_set():
    flags = {"env": "prune_env/Digits-v0", "budget": [3.0, 8.123456789], "lr": 1e-06, "val_rest": False, "labels": None}
    words = plan.command_of("evaluate", {**flags, "nesterov": True}, root="photos").split()
    given = "--env prune_env/Digits-v0 --budget 3 8.123456789 --lr 1e-06 --nesterov"
    assert words == ["prune-env", "evaluate", *given.split()]


def test_the_command_that_tunes_is_told_as_it_can_be_copied(tmp_path: Path):
    """It has the folder of the images, and stands in one line whatever its length."""
    block = Block("it", "prune_env/CIFAR10-v0", {"model": "resnet18"}, ("full",), (0.5,), (8.0,), 1)
    root = str(tmp_path / ("long name " * 12))
    ((_, rate),) = plan.with_rates(block, root).values()
    shown = table.plain(Group(*table.rate_lines([{"budget": 8.0, "rate": rate}])))
    asked = command_line.read("tune", tune.Arguments, shlex.split(shown.splitlines()[-1])[2:])
    assert asked.root == root
    assert asked.save == "cifar10"


def test_a_folder_of_images_whose_name_is_no_text_can_be_printed():
    root, env = os.fsdecode(b"/images/caf\xe9"), "prune_env/ImageFolder-v0"
    name, heading = evaluate.names(env, {}, root)
    ((_, rate),) = plan.with_rates(Block("it", env, {}, ("full",), (0.5,), (8.0,), 1), root).values()
    assert (name, heading) == ("imagefolder-caf-xe9-convnet", r"prune_env/ImageFolder-v0, caf\xe9, convnet")
    assert rate.encode().endswith(rb"--root '/images/caf\xe9'")


@pytest.mark.slow
def test_dropping_hard_samples_does_not_win_by_an_untuned_baseline(tmp_path: Path):
    """At the rate for clean labels `middle` is 3.6 points over `full` here."""
    arguments = ["--label-noise", "0.2", "--agents", "full", "middle", "--budget", "10", "--seeds", "10"]
    assert evaluate.main([*arguments, "--out", str(tmp_path), "--name", "it"]) == 0
    records = _records(tmp_path / "it")
    agents = ("full", "middle:keep=0.5")
    full, middle = table.rows({name: [record for record in records if record["agent"] == name] for name in agents})
    assert full.accuracy.mean > 89
    assert middle.difference is not None
    assert 0 < middle.difference.mean < 0.8


def test_rows_pair_by_seed():
    def record(agent: str, seed: int, accuracy: float) -> dict:
        seconds = {"total": 1.0, "select": 0.1}
        outcome = {"test_accuracy": accuracy, "kept": 0.5, "coverage": 1.0, "spent": {"total": 1.0}, "seconds": seconds}
        return {"agent": agent, "seed": seed, "budget": 1.0, "results": outcome}

    full = [record("full", seed, accuracy) for seed, accuracy in enumerate((0.90, 0.80, 0.70))]
    other = [record("other", seed, accuracy) for seed, accuracy in ((2, 0.71), (0, 0.91), (7, 0.99))]
    first, second = table.rows({"other": other, "full": full})
    assert (first.agent, first.difference, first.accuracy.mean) == ("full", None, pytest.approx(80.0))
    assert second.difference is not None
    assert second.difference.mean == pytest.approx(1.0)  # of seeds 0 and 2; seed 7 has no partner
    assert second.difference.interval == pytest.approx((1.0, 1.0))
    (alone,) = table.rows({"other": other[:1]})
    assert (alone.difference, alone.accuracy.interval, alone.accuracy.seeds) == (None, None, 1)


# Options


def test_every_option_is_a_flag_an_argument_and_an_entry_of_sweep_files(tmp_path: Path):
    """There is one declaration of each: a field of `Variant` or of `Training`."""
    values = {"image_size": 5, "train_size": 50, "label_noise": 0.1, "label_noise_kind": "pair"}
    values |= {"labels": str(tmp_path / "own.npy"), "corrupted": 0.1, "imbalance": 2.0, "duplicates": 0.2}
    values |= {"task_seed": 3, "val_rest": True, "val_size": 30, "reference": str(tmp_path / "own.npy")}
    np.save(tmp_path / "own.npy", np.arange(1300) % 10)
    values |= {"model": "mlp:3", "batch_size": 9, "lr": 0.3}
    values["weight_decay"] = 0.01
    values["optimizer"] = "adamw"
    values |= {"momentum": 0.5, "warmup": 0.2, "label_smoothing": 0.1, "ema": 0.5, "precision": "float32"}
    values["compile"] = "step"
    assert list(values)[1:] == [field.name for of in (Variant, Training) for field in dataclasses.fields(of)]
    assert set(plan.SETTINGS) == set(values)
    flags = []
    for name, value in values.items():
        flags += [f"--{name.replace('_', '-')}", *([] if value is True else [str(value)])]
    for words, expected in ((flags, values), ([], {})):
        asked = command_line.read("evaluate", evaluate.Arguments, words)
        assert plan.settings_of(asked.task, asked.training) == expected
    env = prune_env.PruneEnv(**{**values, "compile": "off"})
    assert env.recipe == Recipe(
        **{field.name: values[field.name] for field in dataclasses.fields(Training) if field.name != "compile"}
    )
    assert (len(env.train_data), env.train_data.images.shape[2]) == (50, 5)
    with pytest.raises(TypeError, match=r"unexpected keyword argument 'lable_noise'; there are .*label_noise"):
        prune_env.PruneEnv(lable_noise=0.1)


WRONG = {  # and what the line says
    "--env prune_env/Nothing-v0": "Nothing",
    "--env CartPole-v1": "'CartPole-v1' is not one of prune_env's",
    "--env digit": "'digit' is not one of prune_env's: digits, cifar10, ",
    "--optimizer adam": "optimizer is 'adam'; it must be one of sgd, adamw",
    "--env prune_env/DigitsSummary-v0": "use 'prune_env/Digits-v0'",
    "--env prune_env/ImageFolder-v0 --root nowhere": "nowhere",
    "--agents full fool": "unknown agent 'fool'",
    "--agents no_such_module:Agent": "no_such_module",
    "--agents json:Agent": "module 'json' has no 'Agent'",
    "--agents agents.bandits:UCB:kept=0.5": "kept",
    "--agents": "agents needs at least one value",
    "--keep 1.5": "1.5",
    "--budget 0.001": "budget is 0.001",
    "--seeds 0": "seeds is 0",
    "--workers -1": "--workers is -1",
    "--agent-timeout 0": "--agent-timeout is 0.0; it must be a number of seconds above 0",
    "--checkpoint-seconds -1": "--checkpoint-seconds is -1.0",
    "--model perceptron": "perceptron",
    "--label-noise 2": "label_noise",
    "--device abacus": "abacus",
}


def test_wrong_arguments_end_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    for arguments, message in WRONG.items():
        assert evaluate.main([*arguments.split(), "--out", str(tmp_path / "out")]) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ")
        assert message in error
        assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_damaged_test_image_is_named_before_anything_is_trained(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    trees.imagefolder(tmp_path)
    image = tmp_path / "test" / "dog" / "00019.png"
    image.write_bytes(image.read_bytes()[:-500])
    small = ["--env", "prune_env/ImageFolder-v0", "--model", "mlp:8", "--budget", "1", "--seeds", "1"]
    assert evaluate.main([*small, "--root", str(tmp_path), "--out", str(tmp_path), "--name", "it"]) == 2
    assert f"error: cannot decode the image {image}" in capsys.readouterr().err
    assert not (tmp_path / "it").exists()


def test_an_interruption_of_the_plan_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    def interrupted(*_: object) -> NoReturn:
        raise KeyboardInterrupt

    monkeypatch.setattr(program, "make_plan", interrupted)
    assert evaluate.main(["--agents", "full", *SMALL, "--out", str(tmp_path / "out")]) == 130
    assert capsys.readouterr().err.splitlines()[-1] == "interrupted before the first run"
    assert not (tmp_path / "out").exists()


# Data and networks of the user's own


def _perceptron(channels: int, size: int, classes: int) -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(channels * size**2, classes))


def test_own_data_and_an_own_network_are_planned_played_and_recorded():
    """Records are JSON; what is trained on, and the network, tell runs apart."""
    keys = set()
    for size, model in ((120, _perceptron), (121, _perceptron), (120, "mlp:4")):
        settings = {"dataset": own_digits(size), "model": model, "optimizer": "adamw"}
        block = Block("it", "prune_env/Arrays-v0", settings, ("full",), (0.5,), (1.5,), 1)
        (run,) = make_plan([block], Place(None, False, "cpu")).runs.values()
        keys.add(run.key)
        assert run.rate == "lr 0.001: customary for AdamW, not tuned"
        record = json.loads(json.dumps(play(run, run.make_env())))
        assert record["key"] == run.key
        name = model if isinstance(model, str) else f"{__name__}:_perceptron"
        assert record["configuration"]["recipe"]["model"] == name
        assert record["configuration"]["settings"] == {
            "dataset": "arrays",
            "model": name,
            "optimizer": "adamw",
            "budget": 1.5,
            "device": "cpu",
        }
        assert record["provenance"]["data"]["test"] == data.load_test("digits").digest
    assert len(keys) == 3


def test_an_own_network_is_a_flag(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "own_network.py").write_text(OWN_NETWORK)
    monkeypatch.syspath_prepend(str(tmp_path))
    flags = ["--model", "own_network:make", "--optimizer", "adamw", "--lr", "0.02", "--agents", "full"]
    assert evaluate.main([*flags, *SMALL, "--seeds", "1", "--workers", "1", "--out", str(tmp_path)]) == 0
    (record,) = _records(tmp_path / "digits-own_network-make-train_size100")
    assert record["configuration"]["recipe"]["model"] == "own_network:make"
    assert record["rate"] == "lr 0.02: as given"
    network = record["configuration"]["network"]
    (tmp_path / "own_network.py").write_text(OWN_NETWORK.replace("2, classes", "2, 7), torch.nn.Linear(7, classes"))
    monkeypatch.delitem(sys.modules, "own_network")  # as of a notebook that reloads it
    run = Run("prune_env/Digits-v0", {"model": "own_network:make", "budget": 1.5}, "full", 0)
    assert run.configuration(run.make_env())["network"] != network


# The record


def test_a_record_tells_where_it_comes_from(done: Done):
    train, val = data.load("digits", train_size=100)
    digests = {"train": train.digest, "val": val.digest, "test": data.load_test("digits").digest}
    recipe = dataclasses.asdict(_runs("full")[0].make_env().unwrapped.recipe)  # pyright: ignore[reportAttributeAccessIssue]
    for record in done.records:
        found = record["provenance"]
        assert found["version"] == prune_env.__version__
        assert found["commit"] == provenance.of_code()["commit"]
        assert found["command"].startswith("prune-env evaluate --agents full random first_half:FirstHalf")
        assert abs(time.time() - np.datetime64(found["time"][:19]).astype("datetime64[s]").astype(int)) < 3600
        assert found["data"] == digests
        assert record["configuration"]["recipe"] == recipe
        assert record["configuration"]["settings"] == {"train_size": 100, "budget": 1.5, "device": "auto"}
        assert (record["budget"], record["configuration"]["env"]) == (1.5, "prune_env/Digits-v0")


def test_the_commit_is_of_the_checkout_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name in [name for name in os.environ if name.startswith("GIT_")]:
        monkeypatch.delenv(name)  # a hook that runs the tests sets them, and git below would write elsewhere
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b.c"]

    def state() -> tuple:
        found = provenance.of_code(tmp_path)
        return found["commit"], found["dirty"]

    assert state() == (None, None)
    subprocess.run([*git, "init", "-q"], check=True)
    assert state() == (None, None)  # no commit yet
    (tmp_path / "file").write_text("1")
    subprocess.run([*git, "add", "file"], check=True)
    subprocess.run([*git, "commit", "-q", "-m", "file", "--no-verify"], check=True)
    head = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
    assert state() == (head, False)
    (tmp_path / "file").write_text("2")
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "elsewhere"))
    assert state() == (head, True)
    (tmp_path / "below").mkdir()
    assert provenance.of_code(tmp_path / "below")["commit"] is None  # inside somebody else's checkout


def test_curves_agree_with_the_records(done: Done):
    with open(done.folder / "curves.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == sum(record["results"]["steps"] for record in done.records)
    for record in done.records:
        own = [r for r in rows if (r["agent"], int(r["seed"])) == (record["agent"], record["seed"])]
        outcome = record["results"]
        assert float(own[-1]["val_accuracy"]) == pytest.approx(outcome["val_accuracy"], abs=1e-6)
        assert float(own[-1]["spent"]) == outcome["spent"]["total"] == outcome["spent"]["train"]
        assert float(own[-1]["coverage"]) == outcome["coverage"]
        assert float(own[-1]["lr"]) == 0.0
        assert np.mean([float(row["kept"]) for row in own]) == pytest.approx(outcome["kept"])

        events = EventAccumulator(
            str(done.folder / "tensorboard" / saved.run_name(record["agent"], record["budget"], record["seed"]))
        ).Reload()
        assert sorted(events.Tags()["scalars"]) == sorted([*curves.SCALARS, "test_accuracy"])
        points = events.Scalars("val_accuracy")
        assert [p.step for p in points] == [round(1000 * float(row["spent"])) for row in own]
        assert [p.value for p in points] == pytest.approx([float(row["val_accuracy"]) for row in own])
        assert events.Scalars("test_accuracy")[0].value == pytest.approx(outcome["test_accuracy"])


def test_every_run_has_its_own_folder_of_curves(tmp_path: Path):
    long = "learned:" + "/folder" * 50
    specs = ["full", "learned:a/b", "learned:a+b", "learned:/a/b", "learned:ä", "learned:ö", long, f"{long}/b"]
    names = {saved.run_name(agent, 1.5, 0) for agent in [*specs, "ö" * 300]}
    assert len(names) == len(specs) + 1
    for name in names:
        (tmp_path / name).mkdir()


def test_nothing_else_opens_the_test_split():
    sources = [path for folder in ("prune_env", "agents", "train") for path in (ROOT / folder).rglob("*.py")]
    callers = {path.relative_to(ROOT).as_posix() for path in sources if "load_test(" in path.read_text()}
    assert callers == {"prune_env/data/__init__.py", "train/execution/run.py", "train/execution/plan.py"}
    planned = (ROOT / "train" / "execution" / "plan.py").read_text()
    assert re.findall(r"load_test\(.*\)(.*)", planned) == [".digest"]  # all that the plan takes of it


def test_the_test_split_is_opened_once_a_run_after_its_end(monkeypatch: pytest.MonkeyPatch):
    run = _runs("full")[0]
    env = run.make_env()
    plain: Any = env.unwrapped
    opened, load_test = [], data.load_test
    monkeypatch.setattr(
        data, "load_test", lambda *given, **more: opened.append(plain.trainer.ledger.spent) or load_test(*given, **more)
    )
    play(run, env)
    assert opened == [1.5]


def test_diagnostics_of_a_known_rule(done: Done):
    """The first half of the samples, three times: budget 1.5 over half the data."""
    train, val = data.load("digits", train_size=100)
    labels, validated = train.labels.numpy(), len(val)
    shares = np.bincount(labels[:50], minlength=10) / np.bincount(labels, minlength=10)
    for record in [record for record in done.records if record["agent"] == "first_half:FirstHalf"]:
        outcome = record["results"]
        assert (outcome["steps"], outcome["kept"], outcome["coverage"]) == (3, 0.5, 0.5)
        assert outcome["visits_gini"] == pytest.approx(0.5)
        assert outcome["class_visits"] == pytest.approx(2 * shares, abs=1e-4)
        assert outcome["visits"] == [0] * 10 + outcome["visits"][10:11] + [3] * 10
        assert outcome["wrong_visits"] is None
        assert outcome["age"] == pytest.approx(0.5 * 0.0 + 0.5 * 1.5)
        assert outcome["spent"] == pytest.approx(
            {"train": 1.5, "score": 0.0, "reference": 0.0, "evaluate": 4 * validated / 300, "total": 1.5}
        )
        assert not outcome["diverged"]
        assert 0 < outcome["seconds"]["select"] < outcome["seconds"]["total"]


def test_an_agent_that_stops_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "lazy.py").write_text(
        "import numpy as np\nfrom prune_env import select\n\n"
        "def nothing(observation, rng):\n    return select(np.zeros(len(observation['loss'])))\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    (run,) = _runs("lazy:nothing", seeds=1)
    record = play(run, run.make_env())
    json.dumps(record, allow_nan=False)
    outcome = record["results"]
    assert (outcome["steps"], outcome["coverage"], outcome["visits_gini"]) == (1, 0.0, 0.0)
    assert outcome["class_visits"] == [1.0] * 10


# The folder of results


@pytest.fixture
def no_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the table, the figure and the curves, which take a second each time."""
    monkeypatch.setattr(evaluate, "report", lambda *_: None)


def test_who_writes_to_a_folder_is_alone_also_in_the_report(
    done: Done, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """Who comes next sweeps the folder of what is in the writing."""
    arguments = [*done.copy(tmp_path), "--agents", "full"]
    before = (tmp_path / "small" / "results.jsonl").read_bytes()
    with process.locked(tmp_path / "small"):
        assert evaluate.main(arguments) == 2
    assert "another program is writing to" in capsys.readouterr().err
    assert (tmp_path / "small" / "results.jsonl").read_bytes() == before

    def written(folder: Path, _: object) -> None:
        with pytest.raises(process.Taken), process.locked(folder.parent):
            pass

    monkeypatch.setattr(curves, "write_events", written)
    assert evaluate.main(arguments) == 0
    cells = json.loads((tmp_path / "small" / "cells.json").read_bytes())
    assert set(cells["keys"]) == {record["key"] for record in done.records}  # `train.report` shows all there are


def test_other_budgets_and_agents_hide_nothing(done: Done, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    arguments = done.copy(tmp_path)
    assert evaluate.main([*arguments, "--agents", "full", "ucb", "--budget", "1", "--workers", "0"]) == 0
    printed, error = capsys.readouterr()
    assert f"4 runs, 0 of them done before; {tmp_path / 'small'} has 6 more, not asked for now" in error
    assert printed.endswith(f"{tmp_path / 'small' / 'table.txt'} also has the 6 other runs in this folder.\n")
    assert "first_half" not in printed
    now = {("full", 1.0), ("ucb:keep=0.5", 1.0)}
    cells = now | {(spec, 1.5) for spec in SPECS}
    with open(tmp_path / "small" / "curves.csv", newline="") as file:
        assert {(row["agent"], float(row["budget"])) for row in csv.DictReader(file)} == cells
    assert report.main([str(tmp_path / "small"), "--out", str(tmp_path / "report")]) == 0
    for folder in ("small", "report"):
        tables = (tmp_path / folder / "table.txt").read_text().split("Budget ")[1:]
        found = {(spec, float(text.split()[0])) for text in tables for spec in (*SPECS, "ucb:keep=0.5") if spec in text}
        assert found == cells
    assert len(list((tmp_path / "small" / "tensorboard").iterdir())) == 2 * len(cells)


def test_labels_name_agents_in_tables_and_in_records(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    it = ["--env", "DIGITS", "--train-size", "60", "--budget", "1", "--seeds", "1", "--workers", "0"]
    it += ["--out", str(tmp_path), "--name", "it", "--agents", "full"]
    always = {"": "full", "fifth": "ucb:keep=0.2"}
    one = {"half": "ucb:keep=0.5"}
    several = {"half:keep=0.5": "ucb:keep=0.5", "half:keep=0.4": "ucb:keep=0.4"}
    for keep, more in ((["0.5"], one), (["0.5", "0.4"], several)):
        assert evaluate.main([*it, "--keep", *keep, "--label", "half=ucb", "fifth=ucb:keep=0.2"]) == 0
        assert {record["label"]: record["agent"] for record in _records(tmp_path / "it")} == {**always, **more}
        names = {"full", "fifth", *more}
        assert {run["agent"] for run in records.read(tmp_path / "it").records} == names
        rows = {line.split()[0] for line in (tmp_path / "it" / "table.txt").read_text().splitlines() if "[–]" in line}
        assert rows == names
        told = " ".join(capsys.readouterr().out.split())
        assert "; ".join(f"{label} is {spec}" for label, spec in [*more.items(), ("fifth", always["fifth"])]) in told
    # a name that is given to another agent tells neither which it is
    for agent in ("ucb", "random"):
        assert evaluate.main([*it, "--name", "twice", "--label", f"half={agent}"]) == 0
    names = {"full", "half (ucb:keep=0.5)", "half (random:keep=0.5)"}
    assert {run["agent"] for run in records.read(tmp_path / "twice").records} == names
    for label, words in (("half", "NAME=AGENT"), ("ucb=random", "no agent has yet"), ("mine=full", "no other name")):
        assert evaluate.main([*it, "--label", label]) == 2
        assert words in capsys.readouterr().err


def test_two_image_folders_of_one_name_are_told_apart(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    small = ["--env", "prune_env/ImageFolder-v0", "--model", "mlp:8", "--budget", "1", "--seeds", "1", "--workers", "0"]
    small += ["--agents", "full", "--out", str(tmp_path / "runs")]
    headings = []
    for per_class in (10, 12):
        root = tmp_path / str(per_class) / "my pets"
        trees.imagefolder(root, per_class=per_class, size=8)
        assert evaluate.main([*small, "--root", str(root)]) == 0
        headings.append(capsys.readouterr().out.splitlines()[0])
    (folder,) = (tmp_path / "runs").iterdir()
    assert folder.name == "imagefolder-my-pets-mlp-8"
    assert headings[0] == "prune_env/ImageFolder-v0, my pets, mlp:8"
    assert re.fullmatch(re.escape(headings[0]) + ", data [0-9a-f]{8}", headings[1])
    told = [line for line in (folder / "table.txt").read_text().splitlines() if line.startswith(headings[0])]
    assert len(told) == 2
    assert told[1] == headings[1] != told[0]


def test_checkpoints_of_former_plans_go_once_all_runs_are_there(
    done: Done, no_report: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    arguments = [*done.copy(tmp_path), "--agents", "full"]
    former = tmp_path / "small" / checkpoints.FOLDER / "a" / "checkpoint.pt"
    io.write_atomic(former, b"")
    with monkeypatch.context() as patch:
        patch.setattr("train.execution.executors.local.attempt", lambda run, terms: Failure(run, DIED, ""))
        assert evaluate.main([*arguments, "ucb"]) == 1
    assert former.exists()  # who asks for that plan again goes on from there
    assert evaluate.main(arguments) == 0
    assert not former.parent.parent.exists()


def test_a_full_disk_ends_the_program_with_what_is_there(
    done: Done, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def full(*_: object) -> NoReturn:
        raise OSError("No space left on device")

    arguments = done.copy(tmp_path)
    monkeypatch.setattr(io, "append_line", full)
    assert evaluate.main([*arguments, "--agents", "ucb"]) == 3
    assert "No space left on device; what is there stays, the same command goes on" in capsys.readouterr().err
    assert _records(tmp_path / "small") == done.records


def test_an_own_agent_that_has_changed_is_told_and_fresh_runs_all_anew(
    no_report: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """Modules that cannot be imported, and agents that raise, cost their own runs."""
    monkeypatch.syspath_prepend(str(tmp_path))
    module = tmp_path / "moody.py"
    module.write_text("def raises(observation, rng):\n    raise KeyError('no idea')\n")
    (tmp_path / "broken.py").write_text("raise RuntimeError('at import')\n")
    arguments = ["--agents", "full", "moody:raises", "broken:agent", *SMALL, "--name", "it", "--out", str(tmp_path)]
    assert evaluate.main(arguments) == 1
    printed = capsys.readouterr()
    assert "4 run(s) failed, of broken:agent, moody:raises" in printed.err
    assert re.search(r"budget 1.5, seed [01]: failed: KeyError: 'no idea' at moody.py:2 in step 1\n", printed.err)
    failures = [json.loads(line) for line in (tmp_path / "it" / "failures.jsonl").read_text().splitlines()]
    assert "cannot be imported: RuntimeError: at import" in failures[0]["error"]
    assert "raise RuntimeError" in failures[0]["traceback"]

    arguments.remove("broken:agent")
    for number in range(3):
        module.write_text(f"from agents import make\n\nraises = make('full')  # {number}\n")
        monkeypatch.delitem(sys.modules, "moody")
        assert evaluate.main([*arguments, *["--fresh"][: number // 2]]) == 0
        printed = capsys.readouterr()
        assert ("moody:raises has changed since 2 of its runs; --fresh runs" in printed.err) == (number == 1)
        assert f"4 runs, {(2, 4, 0)[number]} of them done before" in printed.err
    assert not (tmp_path / "it" / "failures.jsonl").exists()
    assert len(_records(tmp_path / "it")) == 4

    module.write_text("raise RuntimeError('at import')\n")  # its runs are done: nothing is to be imported
    monkeypatch.delitem(sys.modules, "moody")
    assert evaluate.main(arguments) == 0
    assert "moody:raises has changed since 2 of its runs" in capsys.readouterr().err
    assert len(_records(tmp_path / "it")) == 4


def test_a_table_of_several_commits_says_so(done: Done, tmp_path: Path):
    arguments, lines = done.copy(tmp_path), _records(done.folder)
    lines[0]["provenance"]["commit"] = 40 * "a"
    results.write(tmp_path / "small" / "results.jsonl", lines)
    assert evaluate.main([*arguments, "--agents", "full", "random"]) == 0
    (told,) = re.findall("^Mixed commits: .*$", (tmp_path / "small" / "table.txt").read_text(), re.M)
    assert "aaaaaaa" in told
    assert "Mixed commits" not in (done.folder / "table.txt").read_text()


# Signals


@pytest.mark.slow
def test_workers_end_when_their_parent_is_killed(tmp_path: Path):
    (tmp_path / "asleep.py").write_text(
        "import os, pathlib, time\n\n"
        "def agent(observation, rng):\n    pathlib.Path(f'asleep-{os.getpid()}').touch()\n    time.sleep(600)\n"
    )
    arguments = ["--agents", "asleep:agent", *SMALL, "--out", str(tmp_path), "--workers", "2"]
    command = [sys.executable, "-m", "train.evaluate", *arguments]
    with subprocess.Popen(command, cwd=tmp_path, env=_environment(), stderr=subprocess.DEVNULL) as program:
        try:
            until(lambda: len(list(tmp_path.glob("asleep-*"))) == 2)
        finally:
            program.kill()
    children = [int(path.name.removeprefix("asleep-")) for path in tmp_path.glob("asleep-*")]
    until(lambda: not any(map(alive, children)), 30.0)


@pytest.mark.slow
def test_an_interrupted_command_keeps_what_is_done(tmp_path: Path):
    (tmp_path / "slow.py").write_text(f"import time\n{FIRST_HALF.replace('n = len', 'time.sleep(0.1); n = len')}")
    arguments = ["--agents", "slow:FirstHalf", *SMALL[:4], "--seeds", "500", "--name", "slow", "--out", str(tmp_path)]
    with subprocess.Popen(
        [sys.executable, "-m", "train.evaluate", *arguments, "--workers", "1"],
        cwd=tmp_path,
        env=_environment(),
        stderr=subprocess.PIPE,
        text=True,
        # a shell lets what it starts in the background, perhaps these tests, ignore the signal
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    ) as command:
        until((tmp_path / "slow" / "results.jsonl").exists)
        command.send_signal(signal.SIGINT)
        _, error = command.communicate(timeout=60)
    assert command.returncode == 130
    assert "interrupted" in error
    assert "Traceback" not in error
    found, unreadable = results.read(tmp_path / "slow" / "results.jsonl")
    assert 0 < len(found) < 500
    assert unreadable == 0
