"""`train.heldout`: a sweep of exactly the held-out tasks, and comparisons by hand arithmetic."""

from __future__ import annotations

import csv
import io
import re
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from rich.table import Table

from prune_env import PruneEnv
from prune_env.policy import tasks as distributions
from prune_env.policy.tasks import DISTRIBUTIONS, MIXTURES, Task, TaskDistribution, distribution
from train import heldout, sweep
from train.analysis.statistics import mean_interval
from train.execution import results
from train.execution.plan import Block, Place, make_plan

VALUES = {
    "train_size": (60, 80),
    "label_noise": (0.0, 0.2),
    "imbalance": (1.0, 2.0),
    "model": ("mlp:4",),
    "lr_factor": (0.5, 1.4),
    "budget": (1.0, 2.5, 6.0),
    "val_rest": (True,),
}
TINY = {"values": VALUES, "validations": 2, "held_outs": 3}


@pytest.fixture
def tiny(monkeypatch) -> TaskDistribution:
    monkeypatch.setitem(distributions.DISTRIBUTIONS, "tiny", TINY)
    return TaskDistribution(**TINY)


def without_budgets(tasks) -> list[Task]:
    return list(dict.fromkeys(replace(task, budget=1.0) for task in tasks))


# Tasks


def test_parts_are_counted_and_their_ranges_told(tiny, capsys):
    assert heldout.main(["tasks", "tiny"]) == 0
    parts = re.split(r"^(?=\w)", capsys.readouterr().out, flags=re.MULTILINE)[1:]
    each = "each at the budgets 1, 2.5, 6"
    heads = [f"{head}, {each}" for head in ("held_out: 3 tasks", "validation: 2 tasks", "training: 11 tasks")]
    assert [part.splitlines()[0] for part in parts] == heads
    ranges = "  train_size: 60, 80\n  label_noise: 0.0, 0.2\n  imbalance: 1.0, 2.0\n  val_rest: True\n"
    assert parts[2] == f"{heads[2]}\n{ranges}  model: mlp:4\n  lr_factor: 0.5, 1.4\n"
    many = [Task(task_seed=seed, train_size=None if seed else 9) for seed in range(20)]
    assert heldout.ranges(many) == {"train_size": "None, 9", "task_seed": "0 to 19, 20 values"}


def test_titles_say_what_differs_from_a_plain_task():
    assert heldout.title(Task(budget=3.0)) == "digits"
    noisy = Task(dataset="cifar10", label_noise=0.2, model="convnet", lr_factor=0.7, budget=3.0, val_rest=True)
    assert heldout.title(noisy) == "cifar10, label_noise 0.2, model convnet, lr_factor 0.7"
    sized = Task(dataset="imagefolder", root="/somewhere", train_size=9, image_size=8, task_seed=2, duplicates=0.5)
    assert heldout.title(sized) == "imagefolder, train_size 9, duplicates 0.5, task_seed 2, image_size 8"


# The sweep


def blocks_of(folder: Path, capsys, name: str, *more: str) -> list[Block]:
    assert heldout.main(["sweep", name, *more]) == 0
    path = folder / "sweep.toml"
    path.write_text(capsys.readouterr().out)
    return sweep.read(path)[0]


@pytest.mark.parametrize("name", ["tiny", *DISTRIBUTIONS, *MIXTURES, "digits+convnets"])  # the last of unlike budgets
def test_the_sweep_is_of_the_held_out_tasks(name, tiny, tmp_path, capsys):
    tasks = distribution(name)
    ids = {"digits": "prune_env/Digits-v0", "imagefolder": "prune_env/ImageFolder-v0"}
    agents = ("learned:a/b c.npz", "full", 'mine:Own,text="x"')
    blocks = blocks_of(tmp_path, capsys, name, "--agents", *agents, "--seeds", "7")
    cells = {(heldout.title(task), task.budget) for task in tasks.held_out}
    assert {(block.task, budget) for block in blocks for budget in block.budgets} == cells
    expected = without_budgets(tasks.held_out)
    for block, task in zip(blocks, expected, strict=True):
        assert block.task == heldout.title(task)
        assert (block.env, block.agents, block.keep, block.seeds) == (ids[task.dataset], agents, (0.5,), 7)
        given = dict(block.settings)
        rates = {budget: replace(task, budget=budget).settings()["lr"] for budget in block.budgets}
        assert given.pop("lr") == pytest.approx(rates)
        apart = {"dataset", "root", "budget", "lr_factor"}
        said = {name: value for name, value in asdict(task).items() if name not in apart and value is not None}
        assert given == said


def test_its_plan_trains_and_validates_on_them(tiny, tmp_path, capsys):
    blocks = blocks_of(tmp_path, capsys, "tiny", "--agents", "full", "random", "--seeds", "2")
    runs = make_plan(blocks, Place(None, False, "cpu")).runs.values()
    assert len(runs) == 3 * 3 * 2 * 2
    by_title = {(heldout.title(task), task.budget): task for task in tiny.held_out}
    assert {(run.task, run.settings["budget"]) for run in runs} == set(by_title)
    assert {(run.agent, run.seed) for run in runs} == {(a, s) for a in ("full", "random:keep=0.5") for s in (0, 1)}
    for run in runs:
        if (run.agent, run.seed) != ("full", 0):
            continue
        env: Any = run.make_env().unwrapped
        meant = PruneEnv(**by_title[run.task, run.settings["budget"]].settings())
        assert env.budget == meant.budget
        assert asdict(env.recipe) == pytest.approx(asdict(meant.recipe))
        assert torch.equal(env.train_data.images, meant.train_data.images)
        assert torch.equal(env.train_data.labels, meant.train_data.labels)
        assert torch.equal(env.val_data.images, meant.val_data.images)


def test_nothing_held_out_is_no_sweep(tmp_path, capsys):
    own = tmp_path / "own.toml"
    own.write_text("validations = 1\nheld_outs = 0\n[values]\ntrain_size = [50, 60]\n")
    assert heldout.main(["sweep", str(own), "--agents", "full"]) == 2
    assert capsys.readouterr() == ("", f"error: {own} holds out no tasks: held_outs is 0\n")
    assert heldout.main(["tasks", str(own)]) == 0
    assert "held_out: 0 tasks, each at the budgets 10\nvalidation: 1 task" in capsys.readouterr().out


def test_tasks_of_one_title_are_refused(tmp_path, capsys):
    own = tmp_path / "own.toml"  # of eight tasks five, so that two have one title
    grid = "train_size = [50, 60, 70, 80]\nval_rest = [true, false]\n"
    own.write_text(f"validations = 1\nheld_outs = 5\n[values]\n{grid}")
    assert heldout.main(["sweep", str(own), "--agents", "full"]) == 2
    out, error = capsys.readouterr()
    assert out == ""
    assert "2 held-out tasks would be called 'digits, train_size" in error


def test_images_of_folders_have_an_id_and_seeds_are_twenty(tmp_path, capsys, monkeypatch):
    values = {"dataset": ("imagefolder",), "model": ("convnet",), "label_noise": (0.0, 0.3)}
    monkeypatch.setitem(distributions.DISTRIBUTIONS, "own", {"values": values, "validations": 0, "held_outs": 1})
    (block,) = blocks_of(tmp_path, capsys, "own", "--agents", "full")
    assert (block.env, block.seeds) == ("prune_env/ImageFolder-v0", 20)


# The comparison


def record(agent: str, task: str, budget: float, seed: int, accuracy: float) -> dict[str, Any]:
    """What a comparison reads of a line; `accuracy` in per cent."""
    cell = {"task": task, "agent": agent, "budget": budget, "seed": seed}
    return {"key": str(list(cell.values())), **cell, "results": {"test_accuracy": accuracy / 100}}


def runs(agent: str, task: str, accuracies: dict[float, list[float]]) -> list[dict[str, Any]]:
    """By budget, a number a seed 0, 1, ..."""
    return [record(agent, task, b, s, a) for b, of_seeds in accuracies.items() for s, a in enumerate(of_seeds)]


def cells(table: Table) -> dict[str, list[str]]:
    """Rows by agent."""
    columns = [[str(getattr(cell, "spec", cell)) for cell in column.cells] for column in table.columns]
    return {row[0]: list(row[1:]) for row in zip(*columns, strict=True)}


def told(cells: list[list[float]]) -> str:
    """Mean and interval of cells with a value a seed each: the seeds that all have, means over the cells, are units."""
    seeds = [sum(values) / len(values) for values in zip(*cells, strict=False)]
    if len(seeds) < 2:
        return f"{sum(seeds) / len(seeds):+.2f}"
    low, high = mean_interval(seeds)
    return f"{sum(seeds) / len(seeds):+.2f} [{low:+.2f}, {high:+.2f}]"


OWN = [
    *runs("own", "one", {1.0: [80.0, 82.0], 2.0: [84.0, 85.0], 8.0: [90.0, 93.0]}),
    *runs("own", "two", {1.0: [50.0, 51.0], 2.0: [60.0, 62.0], 8.0: [70.0, 70.0]}),
]
FULL = [  # differences to own: 1, 3; 0, -1; 2, 2.5, and -2, 0; 3, 1; 0, 0
    *runs("full", "one", {1.0: [79.0, 79.0], 2.0: [84.0, 86.0], 8.0: [88.0, 90.5]}),
    *runs("full", "two", {1.0: [52.0, 51.0], 2.0: [57.0, 61.0], 8.0: [70.0, 70.0]}),
]


def test_differences_and_areas_by_hand():
    shuffled = [(OWN + FULL)[i] for i in np.random.default_rng(0).permutation(24)]
    rows = cells(heldout.comparison(shuffled, "own"))
    assert list(rows) == ["own", "full"]
    assert rows["own"] == ["73.08", "", "", ""]  # (81 + 84.5 + 91.5 + 50.5 + 61 + 70) / 6 = 73.083
    accuracy, difference, area, better = rows["full"]
    assert accuracy == "72.29"  # (79 + 85 + 89.25 + 51.5 + 59 + 70) / 6 = 72.292, 0.79 less than own
    assert difference == told([[1.0, 3.0], [0.0, -1.0], [2.0, 2.5], [-2.0, 0.0], [3.0, 1.0], [0.0, 0.0]])
    assert difference.startswith("+0.79 [")
    # budgets 1, 2 and 8 are one and two doublings apart: (1 (a + b) / 2 + 2 (b + c) / 2) / 3 = (a + 3 b + 2 c) / 6
    assert area == told([[5.0 / 6, 5.0 / 6], [7.0 / 6, 3.0 / 6]])
    assert area.startswith("+0.83 [")
    assert better == "3 of 6"  # the means are 2, -½, 2¼, -1, 2, 0


def test_what_is_saved_is_read_off_the_mean_over_tasks_by_hand():
    """Means over both tasks are 65.75, 72.75, 80.75, those of full 65.25, 72, 79.625 at budgets 1, 2, 8."""
    more = [*runs("full", "three", {1.0: [0.0, 0.0]}), record("full", "one", 1.0, 2, 0.0)]  # not of own's cells
    caption = heldout.comparison(OWN + FULL + more, "own").caption
    first, second, third = str(caption).splitlines()
    needed, least = 2 ** (0.5 / 6.75), 2 * 4 ** (0.75 / 7.625)
    assert first.startswith(f"budget 1: full training needs {needed:.3g} for the same mean, saved +5 % [")
    assert second.startswith(f"budget 2: full training needs {least:.3g} for the same mean, saved +13 % [")
    assert round(100 * (1 - 1 / needed)) == 5
    assert round(100 * (1 - 2 / least)) == 13
    assert third.startswith("budget 8: full training needs more than 8 for the same mean, saved at least +0 %")
    assert heldout.comparison(OWN + FULL, "full").caption is None
    assert heldout.comparison(OWN, "own").caption is None


def test_who_lacks_a_run_is_compared_on_the_others_and_what_others_have_more_is_ignored():
    more = [
        *[{**line, "agent": "more"} for line in FULL],
        *runs("more", "three", {1.0: [0.0, 0.0]}),
        *runs("more", "one", {4.0: [0.0]}),
        record("more", "one", 1.0, 2, 0.0),
    ]
    lacking = [{**line, "agent": "lacking"} for line in FULL[:-1]]
    rows = cells(heldout.comparison(more + OWN + lacking + FULL, "own"))
    assert list(rows)[-1] == "lacking"
    caption = str(heldout.comparison(more + OWN + lacking + FULL, "own").caption)
    assert caption.splitlines()[0] == "on a part of these runs: lacking"
    # without the last of OWN's runs (task two, budget 8, second seed) one seed is common to all cells
    accuracy, difference, _, better = rows["lacking"]
    assert (accuracy, difference, better) == ("", told([[1.0], [0.0], [2.0], [-2.0], [3.0], [0.0]]), "3 of 6")
    assert rows["more"] == rows["full"] == cells(heldout.comparison(OWN + FULL, "own"))["full"]
    assert set(cells(heldout.comparison(OWN + lacking + FULL, "lacking"))) == {"own", "lacking", "full"}


def test_a_comparison_in_midway():
    """Cells weigh the same, whatever their number of seeds; areas are of the seeds that have every budget."""
    own = [
        *runs("own", "one", {1.0: [80.0, 82.0, 84.0], 4.0: [90.0, 91.0]}),
        *runs("own", "two", {1.0: [50.0]}),
    ]
    full = [{**line, "agent": "full"} for line in own]
    for line, fewer in zip(full, (1.0, 2.0, 6.0, 3.0, 4.0, -2.0), strict=True):
        line["results"] = {"test_accuracy": line["results"]["test_accuracy"] - fewer / 100}
    accuracy, difference, area, better = cells(heldout.comparison(own + full, "own"))["full"]
    assert accuracy == f"{(79 + 87 + 52) / 3:.2f}"
    assert difference == told([[1.0, 2.0, 6.0], [3.0, 4.0], [-2.0]])
    assert area == told([[2.0, 3.0]])
    assert better == "2 of 3"


def test_one_budget_has_no_area():
    row = cells(heldout.comparison([line for line in OWN + FULL if line["budget"] == 2.0], "own"))["full"]
    assert row[1:] == [told([[0.0, -1.0], [3.0, 1.0]]), "", "1 of 2"]


def test_rounding_makes_nobody_better():
    own, full = [70.0, 70.2], [70.1, 70.1]  # of equal means
    assert np.mean([100 * (a / 100) - 100 * (b / 100) for a, b in zip(own, full, strict=True)]) != 0
    for first, second in ((own, full), (full, own)):
        records = runs("a", "t", {1.0: first}) + runs("b", "t", {1.0: second})
        assert cells(heldout.comparison(records, "a"))["b"][3] == "0 of 1"


def test_specs_are_shown_as_they_are():
    specs = ["mine:Own,text=[red]", "mine:Own,text=[/x]", f"learned:{'folder/' * 30}policy.npz"]
    records = [{**line, "agent": spec} for spec in specs for line in FULL] + OWN
    for agent in (*specs, "own"):
        text = io.StringIO()
        Console(width=130, file=text).print(heldout.comparison(records, agent))
        assert "…" not in text.getvalue()
        lines = text.getvalue().splitlines()
        first = "".join(line[1:].split("│")[0].strip() for line in lines if line.startswith("│"))
        assert all(spec in first for spec in specs)


# The program


def write(folder: Path, records: list[dict[str, Any]]) -> str:
    folder.mkdir()
    results.write(folder / "results.jsonl", records)
    return str(folder)


def shown(table: Table, capsys) -> str:
    Console(width=100).print(table)
    return capsys.readouterr().out


def test_compare_reads_folders(tmp_path, capsys):
    outdated = [{**line, "key": "old", "results": {"test_accuracy": 0.0}} for line in OWN[:1]]
    # has "two" in its name, and is another task
    others = [{**line, "key": f"more {line['key']}", "task": "two, too"} for line in OWN + FULL]
    folders = [
        write(tmp_path / "a", outdated + OWN[:4]),
        write(tmp_path / "b", FULL + OWN[4:]),
        write(tmp_path / "c", [{**line, "results": {"test_accuracy": 0.1}} for line in others]),
    ]
    with open(tmp_path / "b" / "results.jsonl", "a") as file:
        file.write('{"key": "half a li')  # of a sweep that is running
    of_two = [line for line in OWN + FULL if line["task"] == "two"]
    at_one = [line for line in of_two if line["budget"] == 1.0]
    for arguments, expected in (
        (folders[:2], OWN + FULL),
        ([*folders[:2], "--where", "tw"], of_two),
        ([*folders, "--where", "two"], of_two),
        ([*folders, "--where", "two", "--budgets", "1"], at_one),
    ):
        assert heldout.main(["compare", "own", *arguments]) == 0
        out, error = capsys.readouterr()
        assert "warning: 1 line(s)" in error
        assert out == shown(heldout.comparison(expected, "own"), capsys)


def test_compare_can_leave_the_table_and_every_run_s_accuracy(tmp_path, capsys):
    folder, out = write(tmp_path / "results", OWN + FULL), tmp_path / "out"
    assert heldout.main(["compare", "own", folder, "--where", "tw", "--out", str(out)]) == 0
    capsys.readouterr()
    assert "own: points of test accuracy over others, on 1 tasks" in (out / "comparison.txt").read_text()
    with open(out / "accuracy.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    told = {(row["agent"], float(row["budget"]), int(row["seed"])): row["test_accuracy"] for row in rows}
    of_two = [line for line in OWN + FULL if line["task"] == "two"]
    assert told == {
        (line["agent"], line["budget"], line["seed"]): f"{100 * line['results']['test_accuracy']:.2f}"
        for line in of_two
    }
    assert {row["task"] for row in rows} == {"two"}
    assert len(rows) == len(of_two)
    with open(out / "cells.csv", newline="") as file:
        cells_of = {float(row["budget"]): row for row in csv.DictReader(file)}
    gap = cells_of[1.0]  # -2 and 0: the mean is -1, its interval ± t(0.975, 1) √2 / √2
    assert (gap["task"], gap["against"], gap["difference"], gap["seeds"]) == ("two", "full", "-1.00", "2")
    assert (gap["low"], gap["high"]) == (f"{-1 - 12.7062:.2f}", f"{-1 + 12.7062:.2f}")
    assert (gap["accuracy"], len(cells_of)) == ("50.50", 3)


def test_policies_of_one_pattern_are_one_agent(tmp_path, capsys):
    names = {"one": "learned:a/without-x.npz", "two": "learned:a/without-y.npz"}
    parts = [{**line, "agent": names[line["task"]]} for line in OWN]
    folder = write(tmp_path / "results", [{**line, "key": str(i)} for i, line in enumerate(parts + FULL)])
    assert heldout.main(["compare", "learned:a/without-*.npz", folder]) == 0
    found = capsys.readouterr().out
    as_one = heldout.comparison(
        [{**line, "agent": "learned:a/without-*.npz"} for line in OWN] + FULL, "learned:a/without-*.npz"
    )
    assert found == shown(as_one, capsys)
    assert heldout.main(["compare", "*l*", folder]) == 2
    assert "'*l*' is both learned:a/without-x.npz and full on one" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["tasks", "mnist"], ["mnist", "digits"]),
        (["compare", "own", "FOLDER", "--where", "three"], ["FOLDER", "no runs of 'own'"]),
        (["compare", "own", "FOLDER", "missing"], ["missing/results.jsonl has no results"]),
        (["compare", "own"], ["at least one folder"]),
    ],
)
def test_what_is_wrong_is_told_in_one_line(arguments, words, tmp_path, capsys):
    folder = write(tmp_path / "results", OWN + FULL)
    assert heldout.main([folder if word == "FOLDER" else word for word in arguments]) == 2
    out, error = capsys.readouterr()
    assert out == ""
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    for word in words:
        assert word.replace("FOLDER", folder) in error
