"""`train.rates`: what it plays is full training at each rate, and what is best is stored where tasks find it."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import prune_env
from prune_env.policy import tasks as distributions
from prune_env.policy.tasks import Task, TaskDistribution
from prune_env.students.recipes import tuned
from tests.learning.here import Here
from train import rates
from train.tune import full_training

RECIPES = Path(prune_env.__file__).parent / "students" / "recipes.json"
VALUES = {
    "model": ("mlp:4",),
    "train_size": (60,),
    "image_size": (4,),
    "label_noise": (0.2, 0.0),
    "imbalance": (1.0, 2.0),
    "budget": (1.0, 2.5),
    "val_rest": (True,),
    "task_seed": (0, 1),
}
OWN = {"validations": 1, "held_outs": 2, "held_out_values": {"model": ("mlp:5",), "budget": (2.0,)}}


def test_a_kind_is_a_student_a_size_an_imbalance_and_a_share_of_wrong_labels():
    kinds = rates.kinds_of(TaskDistribution(VALUES, **OWN))
    plain = Task(model="mlp:4", train_size=60, image_size=4, val_rest=True, budget=1.0)
    held_out = replace(plain, model="mlp:5")  # two of the four kinds
    assert [kind for kind, budgets in kinds.items() if budgets == (1.0, 2.5)] == [
        plain,
        replace(plain, label_noise=0.2),
        replace(plain, imbalance=2.0),
        replace(plain, imbalance=2.0, label_noise=0.2),
    ]
    others = [kind for kind, budgets in kinds.items() if budgets == (2.0,)]
    assert len(others) == len(kinds) - 4 == 2
    assert {replace(kind, imbalance=1.0, label_noise=0.0) for kind in others} == {held_out}


@pytest.mark.parametrize("name", ["digits", "mixed", "convnets"])
def test_no_distribution_of_ours_needs_two_rates_in_one_place(name):
    kinds = rates.kinds_of(distributions.distribution(name))
    assert len(set(map(rates.place, kinds))) == len(kinds)


def test_two_rates_in_one_place_are_refused():
    with pytest.raises(ValueError, match="one rate for tasks that differ in train_size only"):
        rates.kinds_of(TaskDistribution({"train_size": (60, 80), "label_noise": (0.0, 0.2)}, 0, 0))


def test_a_data_set_of_held_out_tasks_alone_has_a_root(monkeypatch):
    own = {**OWN, "held_out_values": {"dataset": ("imagefolder",), "root": ("somewhere",)}}
    monkeypatch.setitem(distributions.DISTRIBUTIONS, "own", {"values": VALUES, **own})
    roots: dict = {}

    def accuracies(kind, budgets, of_kind, *_):
        roots[kind.dataset] = of_kind
        raise ValueError("enough")

    monkeypatch.setattr(rates, "accuracies", accuracies)
    monkeypatch.setattr(rates, "Workers", Here)
    monkeypatch.setattr(rates, "kinds_of", lambda tasks: {replace(tasks.held_out[0], root=None): (1.0,)})
    assert rates.main(["own", "--processes", "1"]) == 2
    assert roots == {"imagefolder": ["somewhere"]}


def test_the_best_rate_of_full_training_is_stored(tmp_path, monkeypatch, capsys):
    path = tmp_path / "recipes.json"
    path.write_bytes(RECIPES.read_bytes())
    monkeypatch.setattr(rates, "RECIPES", path)
    monkeypatch.setattr(rates, "Workers", Here)
    monkeypatch.setattr(Here, "played", [], raising=False)
    monkeypatch.setitem(distributions.DISTRIBUTIONS, "own", {"values": VALUES, "validations": 1, "held_outs": 1})
    assert rates.main(["own", "--lr", "0.05", "0.8", "--seeds", "2", "--processes", "1"]) == 0
    entry = json.loads(path.read_text())["digits:4"]["mlp:4"]
    assert entry["command"] == entry["noisy"]["0.2"]["command"]
    assert entry["command"] == "prune-env rates own --lr 0.05 0.8 --seeds 2 --processes 1"
    settings: dict = {"model": "mlp:4", "train_size": 60, "image_size": 4, "val_rest": True}
    printed = capsys.readouterr().out
    of_two = entry["unlike"]["2"]
    kinds = {
        (1.0, 0.0): entry,
        (1.0, 0.2): entry["noisy"]["0.2"],
        (2.0, 0.0): of_two,
        (2.0, 0.2): of_two["noisy"]["0.2"],
    }
    for (imbalance, noise), found in kinds.items():
        settings["imbalance"] = imbalance
        for budget in (1.0, 2.5):
            reached = {
                lr: 100
                * np.array(
                    [
                        full_training(
                            "prune_env/Digits-v0",
                            {**settings, "label_noise": noise, "budget": budget, "lr": lr, "task_seed": seed},
                            seed,
                        )
                        for seed in (0, 1)
                    ]
                )
                for lr in (0.05, 0.8)
            }
            best = max(reached, key=lambda lr: reached[lr].mean())
            assert found["lr"][f"{budget:g}"] == best
            assert f"{reached[best].mean():.2f}" in printed


def test_wrong_arguments_are_named(capsys):
    for wrong, words in {
        "oil": "no tasks called 'oil'",
        "digits --seeds 0": "--seeds and --processes must be at least 1",
        "digits --root here": "the root here is for tasks of image folders",
    }.items():
        assert rates.main(wrong.split()) == 2
        assert words in capsys.readouterr().err


@pytest.mark.parametrize("name", ["natural"])
def test_rates_are_tuned_for_all_tasks_of_folders(name):
    tasks = TaskDistribution.named(name)
    for task in {replace(task, task_seed=0) for task in (*tasks.training, *tasks.validation, *tasks.held_out)}:
        found = tuned(task.dataset, task.model, task.budget, task.label_noise, task.image_size)
        assert found.fits, task
        assert f"budget {task.budget:g}" in found.description
        assert found.values["batch_size"] == 32
