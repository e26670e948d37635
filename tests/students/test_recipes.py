"""The schedule against its closed form, the table of tuned values against the file, and what is refused."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import prune_env
from prune_env.students import recipes
from prune_env.students.recipes import Recipe, tuned
from tests.helpers import reference

TABLE = json.loads((Path(prune_env.__file__).parent / "students" / "recipes.json").read_text())


@given(st.floats(0, 1), st.just(0.0) | st.floats(1e-3, 0.99), st.floats(1e-4, 10))
def test_the_rate_rises_and_falls_in_straight_lines(progress, warmup, lr):
    recipe = Recipe("mlp", 32, lr, warmup=warmup)
    assert recipe.rate(progress) == pytest.approx(reference.schedule(progress, lr, warmup), rel=1e-6, abs=1e-9 * lr)


@pytest.mark.parametrize("warmup", [0.0, 0.1, 0.5])
def test_the_rate_ends_at_exactly_zero(warmup):
    recipe = Recipe("mlp", 32, 0.3, warmup=warmup)
    assert recipe.rate(1.0) == 0.0
    assert recipe.rate(warmup) == pytest.approx(0.3)
    assert max(recipe.rate(x) for x in np.linspace(0, 1, 101)) <= 0.3 * (1 + 1e-12)
    assert min(recipe.rate(x) for x in np.linspace(0, 1, 101)) >= 0.0


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("batch_size", 0),
        ("batch_size", -3),
        ("batch_size", 2.5),
        ("lr", 0.0),
        ("lr", -0.1),
        ("lr", float("nan")),
        ("lr", float("inf")),
        ("momentum", 1.0),
        ("momentum", -0.1),
        ("weight_decay", -1e-4),
        ("weight_decay", float("nan")),
        ("warmup", 1.0),
        ("warmup", float("nan")),
        ("label_smoothing", 1.0),
        ("label_smoothing", -0.1),
        ("ema", 0.0),
        ("ema", 1.1),
        ("ema", float("nan")),
        ("precision", "float16"),
    ],
)
def test_a_wrong_value_is_named(name, value):
    with pytest.raises(ValueError, match=rf"{name}.*{value}"):
        Recipe(**{"model": "mlp", "batch_size": 32, "lr": 0.1, name: value})


@pytest.mark.parametrize("dataset", sorted(name for name in TABLE if ":" not in name))
def test_the_rate_of_the_nearest_budget_is_taken(dataset):
    for family, entry in TABLE[dataset].items():
        rates = {float(budget): lr for budget, lr in entry["lr"].items()}
        for budget in (0.01, 1.0, 3.3, 7.0, 10.0, 11.9, 15.0, 47.0, 100.0, 1e4):
            chosen = tuned(dataset, family if ":" in family else f"{family}:1-2-3", budget)
            distance = {at: max(at / budget, budget / at) for at in rates}
            nearest = {rates[at] for at in rates if distance[at] <= min(distance.values()) * (1 + 1e-9)}
            assert chosen["lr"] in nearest
            fixed = {name: entry[name] for name in ("batch_size", "weight_decay")}
            assert chosen == {**fixed, "lr": chosen["lr"]}


def test_what_was_tuned_for_just_this_network_goes_before_its_family(tmp_path, monkeypatch):
    plain = {"batch_size": 7, "weight_decay": 0.25, "lr": {"2": 0.3}, "command": "somehow"}
    own = {**plain, "lr": {"2": 0.5}, "noisy": {"0.2": {"lr": {"2": 0.1}, "command": "somehow"}}}
    (tmp_path / "recipes.json").write_text(json.dumps({"digits": {"mlp": plain, "mlp:9": own}, "*": {"mlp": plain}}))
    monkeypatch.setattr(recipes, "resources", SimpleNamespace(files=lambda package: tmp_path))
    for dataset, model, noise, lr in (
        ("digits", "mlp:9", 0.0, 0.5),
        ("digits", "mlp:9", 0.3, 0.1),
        ("digits", "mlp:8", 0.3, 0.3),
        ("digits", "mlp", 0.0, 0.3),
        ("others", "mlp:9", 0.0, 0.3),
    ):
        assert tuned(dataset, model, 4.0, noise)["lr"] == lr


def test_what_was_tuned_for_just_this_size_of_images_goes_first(tmp_path, monkeypatch):
    def entry(lr: float) -> dict:
        return {"batch_size": 7, "weight_decay": 0.25, "lr": {"2": lr}, "command": "somehow"}

    table = {
        "digits": {"mlp": entry(0.1), "mlp:9": entry(0.2)},
        "digits:4": {"mlp": entry(0.3)},
        "*": {"mlp": entry(1)},
    }
    (tmp_path / "recipes.json").write_text(json.dumps(table))
    monkeypatch.setattr(recipes, "resources", SimpleNamespace(files=lambda package: tmp_path))
    for size, model, lr in (
        (4, "mlp", 0.3),
        (4, "mlp:9", 0.3),
        (5, "mlp:9", 0.2),
        (None, "mlp:9", 0.2),
        (5, "mlp", 0.1),
    ):
        assert tuned("digits", model, 4.0, image_size=size)["lr"] == lr
    env = prune_env.PruneEnv(image_size=4, train_size=50)
    assert (env.recipe.lr, env.recipe.batch_size) == (0.3, 7)


@pytest.mark.parametrize(
    ("budget", "lr"), [(0.1, 0.3), (2, 0.3), (6.3, 0.3), (6.4, 0.7), (8, 0.7), (11, 0.7), (1e3, 0.7)]
)
def test_nearest_means_in_ratio(tmp_path, monkeypatch, budget, lr):
    """Tuned at 2 and 20: the border is sqrt(40) = 6.32, not 11."""
    entry = {"batch_size": 7, "weight_decay": 0.25, "lr": {"2": 0.3, "20": 0.7}, "command": "somehow"}
    (tmp_path / "recipes.json").write_text(json.dumps({"digits": {"mlp": entry}, "*": {}}))
    monkeypatch.setattr(recipes, "resources", SimpleNamespace(files=lambda package: tmp_path))
    assert tuned("digits", "mlp", budget) == {"batch_size": 7, "weight_decay": 0.25, "lr": lr}


def test_a_data_set_without_tuning_takes_the_general_values():
    assert tuned("cifar_of_tomorrow", "resnet18", 200)["batch_size"] == TABLE["*"]["resnet18"]["batch_size"]


def test_every_tuned_value_makes_a_recipe():
    for models in TABLE.values():
        for family, entry in models.items():
            for tuned_for in (entry, *entry.get("noisy", {}).values()):
                for lr in tuned_for["lr"].values():
                    recipe = Recipe(family, entry["batch_size"], lr, weight_decay=entry["weight_decay"])
                    assert recipe.rate(recipe.warmup) == pytest.approx(lr)
                command = tuned_for["command"]
                assert command is None or command.startswith("python -m train.tune ")
            assert set(entry) - {"noisy"} == {"batch_size", "weight_decay", "lr", "command"}


@pytest.mark.parametrize(
    ("noise", "budget", "lr"), [(0.0, 2, 0.3), (0.14, 90, 0.7), (0.16, 2, 0.1), (0.5, 2, 0.1), (0.2, 21, 0.01)]
)
def test_with_wrong_labels_the_nearest_share_s_rates_are_taken(tmp_path, monkeypatch, noise, budget, lr):
    entry = {"batch_size": 7, "weight_decay": 0.25, "lr": {"2": 0.3, "20": 0.7}, "command": "somehow"}
    entry["noisy"] = {"0.3": {"lr": {"2": 0.1, "20": 0.01}, "command": "somehow"}}
    (tmp_path / "recipes.json").write_text(json.dumps({"digits": {"mlp": entry}, "*": {}}))
    monkeypatch.setattr(recipes, "resources", SimpleNamespace(files=lambda package: tmp_path))
    assert tuned("digits", "mlp", budget, noise) == {"batch_size": 7, "weight_decay": 0.25, "lr": lr}


def test_an_unknown_model_is_named():
    with pytest.raises(ValueError, match="perceptron"):
        tuned("digits", "perceptron", 10)
