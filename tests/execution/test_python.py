"""`train.evaluate.evaluate`, agents of the calling program, and what runs leave besides."""

import json
import multiprocessing
import multiprocessing.spawn
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from agents.difficulty import RhoLoss
from prune_env import data, select
from prune_env.students import models
from tests.helpers.runs import digits
from train import evaluate as program
from train.evaluate import evaluate
from train.execution import process
from train.execution.run import CURVE

ROOT = Path(__file__).resolve().parents[2]
SMALL: dict[str, Any] = {"train_size": np.int64(100), "budgets": [1.5], "seeds": 2}


class FirstHalf:
    """Keeps the first half; has no state, so that it is checked how it is made."""

    made = 0

    def __init__(self) -> None:
        FirstHalf.made += 1

    def __call__(self, observation, rng):
        n = len(observation["loss"])
        return select(np.arange(n // 2), n=n)


class Counts:
    """Fails in a second run, unless it is reset."""

    steps = 0

    def reset(self) -> None:
        self.steps = 0

    def __call__(self, observation, rng):
        assert self.steps == 0 or observation["spent"] > 0
        self.steps += 1
        return select(np.ones(len(observation["loss"])))


def raises(observation, rng):
    raise KeyError("no idea") from OSError("the cause")


def numbers(records: list[dict]) -> dict[tuple, str]:
    """Results without seconds, as JSON, by agent and seed."""
    found = {}
    for record in records:
        outcome = {name: value for name, value in record["results"].items() if name != "seconds"}
        found[record["agent"], record["seed"]] = json.dumps([outcome, record["curve"], record["budget"]])
    return found


def test_it_gives_what_the_program_gives_and_keeps_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    out = tmp_path / "runs"
    (tmp_path / "half.py").write_text("from tests.execution.test_python import FirstHalf\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    asked = ["--agents", "full", "random", "half:FirstHalf", "--budget", "1.5", "--seeds", "2", "--train-size", "100"]
    assert program.main([*asked, "--out", str(out), "--name", "it", "--workers", "2"]) == 0
    theirs = [json.loads(line) for line in (out / "it" / "results.jsonl").read_text().splitlines()]

    for name in ("here", "temporary"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    FirstHalf.made = 0
    agents = {"full": "full", "again": "random", "mine": FirstHalf}
    found = evaluate(agents, **SMALL)
    assert FirstHalf.made == 2  # one a run
    assert not [*(tmp_path / "here").iterdir(), *(tmp_path / "temporary").iterdir()]
    named = {"full": "full", "random:keep=0.5": "again", "half:FirstHalf": "mine"}
    ours = numbers(found.records)
    assert ours == {(named[agent], seed): of for (agent, seed), of in numbers(theirs).items()}

    printed = found.table()
    monkeypatch.setenv("FORCE_COLOR", "1")  # as Jupyter sets it
    assert found.table() == printed
    assert str(printed) == repr(printed) == repr(found)
    theirs_printed = (out / "it" / "table.txt").read_text()
    assert printed.splitlines()[0] == theirs_printed.splitlines()[0]
    for spec, name in named.items():
        (mine,), (other,) = (
            [line.split()[1:7] for line in text.splitlines() if line.split()[:1] == [agent] and "[" in line]
            for text, agent in ((printed, name), (theirs_printed, spec))
        )
        assert mine == other
    assert found.plot()._repr_png_().startswith(b"\x89PNG")  # pyright: ignore[reportAttributeAccessIssue]
    with_workers = evaluate({"full": "full", "again": "random"}, workers=2, **SMALL)
    assert numbers(with_workers.records).items() <= ours.items()


def test_objects_are_reset_and_stay_as_they_are():
    mine = Counts()
    assert [r["agent"] for r in evaluate([mine, "full"], **SMALL).records] == ["Counts", "Counts", "full", "full"]
    assert mine.steps == 0


def test_the_first_error_is_raised_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def check(call: Callable[[], object]) -> None:
        with pytest.raises(KeyError, match="no idea") as error:
            call()
        assert isinstance(error.value.__cause__, OSError)
        assert error.traceback[-1].name == "raises"
        if sys.version_info >= (3, 11):
            (note,) = error.value.__notes__
            assert re.fullmatch(r"mine.*, budget 1(\.5)?, seed 0: KeyError: 'no idea' at test_.*:\d+ in step 1", note)

    check(lambda: evaluate({"mine": raises}, **SMALL))
    (tmp_path / "mine.py").write_text("from tests.execution.test_python import raises\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    check(lambda: program.main(["--agents", "full", "mine:raises", "--debug", "--budget", "1", "--out", str(tmp_path)]))
    with pytest.raises(RuntimeError, match=r"2 of 2 runs failed, the first with KeyError: 'no idea' at test_python.py"):
        evaluate(["mine:raises"], workers=1, **SMALL)
    with pytest.warns(UserWarning, match="2 of 4 runs failed"):
        found = evaluate(["full", "mine:raises"], workers=1, **SMALL)
    assert ([r["agent"] for r in found.records], len(found.failures)) == (["full", "full"], 2)


@pytest.mark.parametrize(
    ("agents", "more", "words"),
    [
        ({"mine": raises}, {"workers": 2}, "workers is 2; mine must then be given by name"),
        ({"best": "full"}, {}, "'best' is 'full'; differences are to 'full'"),
        ({"mine": RhoLoss()}, {"workers": 0}, "agent 'mine' needs --reference"),
        ({"mine": RhoLoss(), "full": "full"}, {"workers": 0}, "agent 'mine' needs --reference"),
        ({"full": raises}, {}, "'full' names an agent of this project"),
        ({"a": "ucb", "b": "ucb:keep=0.5"}, {}, "'a' and 'b' are the same agent"),
        (["full"], {"save_models": True}, "need a folder"),
        (["full"], {"budgets": []}, "budgets needs at least one value"),
        ([lambda seen, rng: None, lambda seen, rng: 0], {}, "two agents are called '<lambda>'; give them names"),
        ("full", {}, r"agents is 'full'; it must be several, as in \['full'\]"),
        (raises, {}, "agents is <function raises"),
        ({3: "full"}, {}, "name of an agent is 3; it must be a string"),
        ({"mine": None}, {}, "'mine' is None; it must be a spec, such as 'ucb:c=2', or"),
        (["full"], {"budgets": 3}, r"budgets is 3; it must be several, as in \[3\]"),
        (["full"], {"budgets": ["3"]}, "budgets is '3'; it must be a number"),
        (["full"], {"budget": 3}, "'budget' is no setting.*budgets=, seeds= and agents="),
        (["full"], {"lable_noise": 0.1}, "'lable_noise' is no setting.*label_noise"),
        (["full"], {"workers": "2"}, "workers is '2'; it must be a number"),
        (["full"], {"workers": 1.5}, "workers is 1.5; it must be a whole number"),
    ],
)
def test_what_cannot_be_is_refused(agents: Any, more: dict[str, Any], words: str):
    with pytest.raises((TypeError, ValueError), match=words):
        evaluate(agents, **more)


def test_the_heading_is_of_what_was_trained():
    train, _ = data.load("digits")
    own = data.Arrays((train.images, train.labels), test=(train.images[:20], train.labels[:20]))
    env = "prune_env/ImageFolder-v0"
    (record,) = evaluate(["full"], env, dataset=own, train_size=50, budgets=[1], seeds=1, lr=None, image_size=8).records
    assert record["configuration"]["recipe"]["model"] == "convnet"
    assert record["task"] == f"{env}, convnet, dataset=arrays, train_size=50, image_size=8"
    assert "tuned for full training of convnet" in record["rate"]


def test_a_folder_keeps_runs_and_saves_students_and_selections(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], one_thread: None
):
    agents = {"full": "full", "mine": FirstHalf()}
    first = evaluate(agents, folder=tmp_path, **SMALL)
    saving = {"save_models": True, "save_selections": True, **SMALL}
    again = evaluate(agents, folder=tmp_path, **saving)
    assert numbers(again.records) == numbers(first.records)
    assert "4 runs, 0 of them done before" in capsys.readouterr().err  # nothing was saved
    evaluate(agents, folder=tmp_path, **saving)
    assert "4 runs, 2 of them done before, 2 done again in place of" in capsys.readouterr().err  # an object has no key
    assert len((tmp_path / "results.jsonl").read_text().splitlines()) == 4

    env = digits(train_size=100)
    train, test = env.train_data, data.load_test("digits")
    _, channels, size, _ = train.images.shape
    mean, std = train.moments
    images = (test.images - mean[:, None, None]) / std[:, None, None]
    for record in again.records:
        agent, seed, n = record["agent"], record["seed"], len(train)
        (path,) = (tmp_path / "models").glob(f"{agent}-b1.5-s{seed}-{record['key'][:8]}.pt")
        student = models.build("mlp", channels, size, len(train.classes), seed=99)
        student.load_state_dict(torch.load(path, weights_only=True))
        with torch.no_grad():
            accuracy = (student(images).argmax(1) == test.labels).float().mean()
        assert accuracy == pytest.approx(record["results"]["test_accuracy"], abs=1e-6)
        (path,) = (tmp_path / "selections").glob(f"{agent}-b1.5-s{seed}-{record['key'][:8]}.npz")
        kept = np.load(path)
        assert kept["source"].tolist() == train.source.tolist()
        if agent == "full":
            assert kept["weight"].sum(axis=1).tolist() == [100, 50]  # the budget ends in the second step
            assert kept["spent"].tolist() == [1.0, 1.5]
        else:
            assert kept["weight"].tolist() == [[1.0] * (n // 2) + [0.0] * (n // 2)] * 3


def test_a_network_that_was_edited_is_told_apart_from_the_former_of_its_name(tmp_path: Path):
    """Else one table would take the difference of an agent on one network to full training of another."""

    def of_width(width: int) -> Callable[[int, int, int], torch.nn.Module]:
        def network(channels: int, size: int, classes: int) -> torch.nn.Module:
            layers = torch.nn.Flatten(), torch.nn.Linear(channels * size**2, width), torch.nn.Linear(width, classes)
            return torch.nn.Sequential(*layers)

        network.__qualname__ = "network"
        return network

    few = {**SMALL, "seeds": 1, "folder": tmp_path}
    first = evaluate(["full", "infobatch"], model=of_width(4), **few).records
    second = evaluate(["full"], model=of_width(5), **few).records
    assert first[0]["task"] == second[0]["task"]
    table = (tmp_path / "table.txt").read_text()
    parts = re.split(re.escape(first[0]["task"]) + r", network [0-9a-f]{8}\n", table)[1:]
    shown = [re.findall(r"^ (full|infobatch) +(\d+\.\d+)", part, re.MULTILINE) for part in parts]
    for rows, records in zip(shown, [first, second], strict=True):
        assert dict(rows) == {r["agent"]: f"{100 * r['results']['test_accuracy']:.2f}" for r in records}


def test_a_frame_has_a_row_a_run(monkeypatch: pytest.MonkeyPatch):
    found = evaluate(["full"], **SMALL)
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "pandas", None)
        with pytest.raises(ModuleNotFoundError, match="needs pandas: pip install pandas"):
            found.to_frame()
    pytest.importorskip("pandas")
    frame = found.to_frame()
    assert frame[["agent", "budget", "seed"]].to_numpy().tolist() == [["full", 1.5, 0], ["full", 1.5, 1]]
    assert frame["test_accuracy"].tolist() == [record["results"]["test_accuracy"] for record in found.records]
    assert frame["spent_total"].tolist() == [1.5, 1.5]


def test_the_page_names_every_field_of_a_record():
    page = (ROOT / "docs" / "records.md").read_text()
    (record,) = evaluate(["full"], train_size=100, budgets=[1.0], seeds=1).records
    fields = [*record, *record["results"], *CURVE, *record["configuration"], *record["provenance"]]
    assert [name for name in fields if f"`{name}`" not in page] == []


def test_workers_that_are_spawned_do_not_import_the_main_module(monkeypatch: pytest.MonkeyPatch):
    main = sys.modules["__main__"]
    monkeypatch.setattr(main, "__file__", __file__, raising=False)
    monkeypatch.setattr(main, "__spec__", None)

    def told() -> list[str]:
        return [name for name in multiprocessing.spawn.get_preparation_data("it") if name.startswith("init_main")]

    assert told() == ["init_main_from_path"]
    with process.without_main():
        assert told() == []
    assert sys.modules["__main__"] is main


SCRIPT = """
import multiprocessing
from train.evaluate import evaluate
from train.execution import process

print("begins")
multiprocessing.get_context = lambda _: process.CONTEXT  # as where processes are not forked
found = evaluate(["full", "random"], budgets=[1.0], seeds=1, train_size=100, workers=2)
print([record["agent"] for record in found.records])
"""


@pytest.mark.slow
def test_a_script_without_a_guard_starts_once(tmp_path: Path):
    (tmp_path / "script.py").write_text(SCRIPT)
    command = [sys.executable, "script.py"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    ended = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert ended.stdout.splitlines() == ["begins", "['full', 'random:keep=0.5']"], ended.stderr
