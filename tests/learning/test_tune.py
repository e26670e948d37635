"""`train.tune`: what it measures, what it chooses, what it writes, what it refuses."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from gymnasium.utils import seeding

import prune_env
from prune_env import data
from prune_env.selection import select
from prune_env.students import recipes
from prune_env.students.recipes import Recipe, tuned
from prune_env.trainer import Trainer
from train import tune
from train.execution import command_line
from train.tune import full_training, store

RECIPES = Path(prune_env.__file__).parent / "students" / "recipes.json"


@pytest.fixture
def path(tmp_path) -> Path:
    """A copy of the recipes, as the program wrote them."""
    copy = tmp_path / "recipes.json"
    copy.write_bytes(RECIPES.read_bytes())
    return copy


def test_full_training_is_a_loop_over_everything():
    settings = {"train_size": 100, "budget": 2.5, "batch_size": 16, "lr": 0.3, "weight_decay": 1e-3, "model": "mlp:8"}
    train, val = data.load("digits", train_size=100)
    for seed in (0, 3):
        run_seed = int(seeding.np_random(seed)[0].integers(2**32))
        student = Trainer(train, val, Recipe("mlp:8", 16, 0.3, weight_decay=1e-3), 2.5, run_seed)
        steps = [student.train_epoch(student.select(select(np.ones(100, bool)))) for _ in range(3)]
        assert [step.trained for step in steps] == [100, 100, 50]
        assert full_training("prune_env/Digits-v0", settings, seed) == steps[-1].val_accuracy > 0.3


@pytest.mark.parametrize(("diverged", "accuracy"), [(True, 0.0), (False, 0.7)])
def test_a_run_that_diverges_counts_as_nothing(monkeypatch, diverged, accuracy):
    """Whatever validation says: weights can be finite where a training row was not."""
    observation, info = {"loss": np.zeros(5)}, {"val_accuracy": 0.7, "diverged": diverged}
    planted = SimpleNamespace(
        reset=lambda seed: (observation, {"val_accuracy": 0.1}),
        step=lambda action: (observation, 0.0, True, False, info),
    )
    monkeypatch.setattr(tune.gym, "make", lambda *args, **kwargs: planted)
    assert full_training("any", {}, 0) == accuracy


@pytest.mark.parametrize(("dataset", "family"), [("digits", "mlp"), ("*", "convnet")])
def test_store_replaces_one_entry_and_keeps_the_rest_as_it_was(path, dataset, family):
    before = json.loads(path.read_text())
    lines = path.read_text().splitlines()
    store(path, dataset, Recipe(family, 17, 0.9, weight_decay=0.125), {30.0: 0.4, 2.5: 0.1}, "python -m 'it'")
    after = json.loads(path.read_text())
    entry = {"batch_size": 17, "weight_decay": 0.125, "lr": {"2.5": 0.1, "30": 0.4}, "command": "python -m 'it'"}
    entry |= {name: noisy for name, noisy in before[dataset][family].items() if name == "noisy"}
    assert after == {**before, dataset: {**before[dataset], family: entry}}
    assert list(after[dataset][family]["lr"]) == ["2.5", "30"]  # ascending
    changed = [a for a, b in zip(lines, path.read_text().splitlines(), strict=True) if a != b]
    assert len(changed) == 1
    assert changed[0].lstrip().startswith(f'"{family}"')


def test_rates_for_wrong_labels_stand_beside_those_for_clean_ones(path):
    before = json.loads(path.read_text())
    for noise, rates in ((0.4, {6.0: 0.1}), (0.4, {3.0: 0.2}), (0.05, {3.0: 0.3})):
        store(path, "digits", Recipe("mlp", 17, 0.9), rates, f"tune {rates}", noise)
    after = json.loads(path.read_text())
    mlp = before["digits"]["mlp"]
    mlp["batch_size"] = 17
    mlp["noisy"] |= {
        "0.4": {"lr": {"3": 0.2}, "command": "tune {3.0: 0.2}"},
        "0.05": {"lr": {"3": 0.3}, "command": "tune {3.0: 0.3}"},
    }
    assert after == before


@pytest.mark.parametrize(
    ("save", "model", "noise", "size", "imbalance"),
    [
        ("*", "convnet:64-256-256", 0.0, None, 1.0),
        ("cifar100", "resnet9", 0.3, None, 1.0),
        ("imagefolder:17", "resnet9", 0.0, 17, 1.0),
        ("imagefolder:17", "resnet9", 0.3, 17, 1.0),
        ("imagefolder:17", "resnet9", 0.0, 17, 20.0),
        ("cifar100", "resnet9", 0.3, None, 20.0),
    ],
)
def test_what_is_stored_is_found(path, monkeypatch, save, model, noise, size, imbalance):
    """For just that network, size, share and imbalance; what else there is stays as it was."""
    dataset = "cifar100" if save == "*" else save.partition(":")[0]
    monkeypatch.setattr(recipes, "resources", SimpleNamespace(files=lambda package: path.parent))
    others = [(dataset, "convnet:1-2-3", 8.0), ("digits", "mlp", 8.0, noise), (dataset, model, 8.0, 0.0, size)]
    before = [tuned(*other).values for other in others]
    store(path, save, Recipe(model, 64, 0.1, 1e-3), {4.0: 0.123, 16.0: 0.234}, "prune-env tune", noise, imbalance)
    for budget, rate in ((3.0, 0.123), (20.0, 0.234)):
        found = tuned(dataset, model, budget, noise, size, imbalance=imbalance)
        assert found.values == {"model": model, "batch_size": 64, "weight_decay": 1e-3, "lr": rate}
        assert found.fits == (save != "*")
    after = [tuned(*other) for other in others]
    assert [found.values for found in after[:2]] == before[:2]
    if noise or imbalance != 1.0:  # the rate for clean labels is the one that was in use, and not called tuned
        assert after[2].values["lr"] == before[2]["lr"]
        assert "not tuned" in after[2].description


def test_a_round_trip_through_the_program(path, monkeypatch, capsys):
    monkeypatch.setattr(tune, "RECIPES", path)
    monkeypatch.setattr(recipes, "resources", SimpleNamespace(files=lambda package: path.parent))
    monkeypatch.setattr(tune, "ProcessPoolExecutor", lambda workers, **_: ThreadPoolExecutor(workers))
    options = ["--model", "mlp:5", "--train-size", "60", "--val-rest", "--label-noise", "0.3", "--image-size", "4"]
    arguments = [*options, "--budget", "2", "--lr", "0.05", "0.5", "--seeds", "1", "--workers", "1"]
    assert tune.main([*arguments, "--save", "digits:4"]) == 0
    found = tuned("digits", "mlp:5", 2.0, 0.3, 4)
    settings = {"model": "mlp:5", "train_size": 60, "val_rest": True, "label_noise": 0.3, "image_size": 4, "budget": 2}
    reached = {lr: full_training("prune_env/Digits-v0", {**settings, "lr": lr}, 0) for lr in (0.05, 0.5)}
    assert found.values["lr"] == max(reached, key=lambda lr: reached[lr])
    assert found.fits
    assert json.loads(path.read_text())["digits:4"]["mlp:5"]["noisy"]["0.3"]["command"].endswith("--save digits:4")
    out = capsys.readouterr().out  # one seed has no error of the mean
    assert f"{100 * max(reached.values()):.2f}*" in out
    assert "±" not in out


def test_rates_of_adamw_stand_beside_the_rates_of_sgd(path, monkeypatch):
    monkeypatch.setattr(recipes, "resources", SimpleNamespace(files=lambda package: path.parent))
    sgd = tuned("digits", "mlp", 10.0)
    customary = tuned("digits", "mlp", 10.0, optimizer="adamw")
    assert customary.values == {**sgd.values, "lr": 0.001, "weight_decay": 0.01}
    assert customary.description == "lr 0.001: customary for AdamW, not tuned"
    recipe = Recipe(**customary.values, optimizer="adamw")
    store(path, "digits", recipe, {10.0: 0.003}, "somehow")
    found = tuned("digits", "mlp", 10.0, optimizer="adamw")
    assert found.values == {**customary.values, "lr": 0.003}
    assert (found.fits, tuned("digits", "mlp", 10.0)) == (True, sgd)
    rates = [command_line.read("tune", tune.Arguments, args).lr for args in ([], ["--optimizer", "adamw"])]
    assert [rates[0], [rate * 40 for rate in rates[1]]] == [(0.0125, 0.025, 0.05, 0.1, 0.2, 0.4, 0.8), [*rates[0]]]


def test_the_best_mean_is_stored(path, monkeypatch, capsys):
    planted = {
        (3.0, 0.1): [50.0, 60.0, 61.0],
        (3.0, 0.2): [99.0, 20.0, 30.0],  # the best seed, not the best mean
        (3.0, 0.4): [56.9, 57.0, 56.9],  # the best worst seed
        (12.0, 0.1): [70.0, 70.0, 70.0],
        (12.0, 0.2): [70.1, 70.0, 70.0],
        (12.0, 0.4): [0.0, 99.0, 99.0],
    }
    monkeypatch.setattr(tune, "tune", lambda args, fixed: planted)
    monkeypatch.setattr(tune, "RECIPES", path)
    options = ["--budget", "12", "3", "--lr", "0.1", "0.2", "0.4", "--seeds", "3", "--batch-size", "24"]
    assert tune.main([*options, "--save", "digits"]) == 0
    entry = json.loads(path.read_text())["digits"]["mlp"]
    assert (entry["lr"], entry["batch_size"]) == ({"3": 0.1, "12": 0.2}, 24)
    assert entry["command"] == f"prune-env tune {' '.join(options)} --save digits"
    starred = [line for line in capsys.readouterr().out.splitlines() if "±" in line and "*" in line]
    assert len(starred) == 2
    assert "57.00 ± 3.51*" in starred[0]  # sqrt((49 + 9 + 16) / 2 / 3)
    assert "70.03 ± 0.03*" in starred[1]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("--budget 3 0", "budget is 0.0"),
        ("--lr 0.1 -1", "lr is -1.0"),
        ("--seeds 0", "--seeds"),
        ("--save digits --corrupted 0.3", "--save keeps rates for uniform label noise and unlike classes"),
        ("--save digits --duplicates 0.3", "--save keeps rates for uniform label noise and unlike classes"),
        ("--save digit", "--save is 'digit'"),
        ("--save *:4 --image-size 4", "--save is '*:4'"),
        ("--save digits:4 --image-size 5", "--save is 'digits:4'"),
        ("--label-noise 2", "label_noise=2.0"),
        ("--env prune_env/DigitsSummary-v0", "use 'prune_env/Digits-v0'"),
        ("--env CartPole-v1", "not one of prune_env's"),
        ("--env prune_env/ImageFolder-v0 --root nowhere", "nowhere"),
    ],
)
def test_wrong_arguments_end_at_once(arguments, words, monkeypatch, capsys):
    monkeypatch.setattr(tune, "tune", None)
    assert tune.main(arguments.split()) == 2
    out, error = capsys.readouterr()
    assert out == ""
    assert error.startswith("error: ")
    assert words in error
    assert error.count("\n") == 1
