"""`rho_loss` from its file to the report: made on held-out halves, charged to those that ask, and to no others."""

import csv
import math
import shlex
from pathlib import Path

import numpy as np
import pytest

from prune_env.data import load
from train import evaluate, reference
from train.analysis import sheets
from train.execution import command_line
from train.execution.plan import Block, with_rates

TASK = ["--train-size", "100", "--model", "mlp:8", "--label-noise", "0.3"]
FLOPS = 2 * (64 * 8 + 8 * 10)


def made(folder: Path, *options: str) -> dict[str, np.ndarray]:
    path = folder / "il.csv"
    assert reference.main([str(path), *TASK, *options]) == 0
    with open(path, newline="") as file:
        lines = list(csv.DictReader(file))
    return {name: np.array([float(line[name]) for line in lines]) for name in lines[0]}


def test_losses_are_of_models_that_did_not_see_the_sample_and_all_their_compute_is_there(tmp_path: Path, capsys):
    train, _ = load("digits", train_size=100, label_noise=0.3)
    columns = made(tmp_path, "--budget", "40")
    # 40 epochs of mlp:8 and a forward pass of all, in epochs of the network that evaluate trains
    said = capsys.readouterr().out
    pays = (40 + 1 / 3) * (64 * 8 + 8 * 10) / (64 * 64 + 64 * 10)
    assert f"pays {pays:.3g} full-epoch equivalents of its --budget" in said
    words = shlex.split(said.splitlines()[-1].removeprefix("next: prune-env evaluate "))
    asked = command_line.read("evaluate", evaluate.Arguments, words)
    assert asked.budget == (math.ceil(pays) + 40.0,)  # for the losses, and 40 to train on
    assert (asked.task.train_size, asked.task.label_noise, asked.task.reference) == (100, 0.3, str(tmp_path / "il.csv"))
    assert columns["index"].tolist() == train.source.tolist()
    # two halves of 50 for 40 epochs, forward and backward, and a forward pass of all
    assert columns["flops"].sum() == pytest.approx(FLOPS * (3 * 40 * 100 + 100))
    wrong = train.wrong.numpy()
    assert columns["reference"][wrong].mean() > math.log(10)  # 40 epochs learn the wrong labels of their own half
    assert columns["reference"][~wrong].mean() < math.log(10)


def test_who_asks_pays_and_the_others_run_as_without(tmp_path: Path):
    made(tmp_path, "--budget", "2")
    task = {"train_size": 100, "model": "mlp:8", "label_noise": 0.3, "corrupted": 0.2, "budgets": [4], "seeds": 1}
    given = str(tmp_path / "il.csv")
    found = evaluate.evaluate(["full", "same_amounts:rho_loss", "rho_loss"], reference=given, **task).records
    records = {record["agent"].partition(":")[0]: record for record in found}
    (bare,) = evaluate.evaluate(["full"], **task).records
    assert bare["key"] == records["full"]["key"]
    assert bare["results"]["test_accuracy"] == records["full"]["results"]["test_accuracy"]
    for name, record in records.items():
        spent = record["results"]["spent"]
        assert spent["reference"] == (0.0 if name == "full" else pytest.approx(2 + 1 / 3))
        assert spent["total"] == pytest.approx(4, abs=0.35)
        assert spent["train"] == pytest.approx(spent["total"] - spent["reference"])
        assert record["configuration"]["settings"].get("reference") == (None if name == "full" else "il.csv")
    line = sheets.make(found)["agents.csv"].splitlines()
    columns = next(csv.DictReader(line))
    assert float(columns["wrong_visits"]) == float(columns["corrupted_visits"]) == 1  # `full`


def test_a_reference_that_is_missing_or_wrong_is_named_before_anything_runs(tmp_path: Path, capsys):
    assert evaluate.main(["--agents", "rho_loss", "--out", str(tmp_path)]) == 2
    assert (
        "agent 'rho_loss' needs --reference FILE (reference=FILE), which prune-env reference can make"
        in capsys.readouterr().err
    )
    assert evaluate.main(["--agents", "rho_loss", "--reference", "nowhere.csv", "--out", str(tmp_path)]) == 2
    assert "nowhere.csv does not exist" in capsys.readouterr().err
    assert reference.main([str(tmp_path / "il.csv"), "--duplicates", "0.2"]) == 2
    assert "leave out --reference, and --duplicates" in capsys.readouterr().err
    assert reference.main([str(tmp_path / "il.csv"), "--seed", "-1"]) == 2
    assert "seed=-1 must be 0 or more" in capsys.readouterr().err
    assert reference.main([str(tmp_path / "il.txt")]) == 2
    assert "must end in .csv or .parquet" in capsys.readouterr().err


def test_the_rate_is_that_of_the_share_of_wrong_labels_in_a_file(tmp_path: Path):
    train, _ = load("digits", train_size=100)
    own = np.zeros(1300, np.int64)
    own[train.source.numpy()] = train.labels.numpy()
    own[train.source[:20].numpy()] += 1
    np.save(tmp_path / "own.npy", own % 10)
    block = Block(
        "it",
        "prune_env/Digits-v0",
        {"train_size": 100, "labels": str(tmp_path / "own.npy")},
        ("full",),
        (0.5,),
        (3.0,),
        1,
    )
    assert "20% wrong labels" in with_rates(block)[3.0][1]
