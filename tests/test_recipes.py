"""The schedule against its closed form, the table of tuned values against the file, and what is refused."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import prune_env
from prune_env.recipes import Recipe, tuned
from tests import reference

TABLE = json.loads((Path(prune_env.__file__).parent / "recipes.json").read_text())


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


@pytest.mark.parametrize("dataset", sorted(TABLE))
def test_the_rate_of_the_nearest_budget_is_taken(dataset):
    for family, entry in TABLE[dataset].items():
        rates = {float(budget): lr for budget, lr in entry["lr"].items()}
        for budget in (0.01, 1.0, 3.3, 7.0, 10.0, 11.9, 15.0, 47.0, 100.0, 1e4):
            chosen = tuned(dataset, f"{family}:1-2-3", budget)
            distance = {at: max(at / budget, budget / at) for at in rates}
            nearest = {rates[at] for at in rates if distance[at] <= min(distance.values()) * (1 + 1e-9)}
            assert chosen["lr"] in nearest
            assert chosen == {**entry, "lr": chosen["lr"]}


def test_a_data_set_without_tuning_takes_the_general_values():
    assert tuned("cifar_of_tomorrow", "resnet18", 200)["batch_size"] == TABLE["*"]["resnet18"]["batch_size"]


def test_every_tuned_value_makes_a_recipe():
    for models in TABLE.values():
        for family, entry in models.items():
            for lr in entry["lr"].values():
                Recipe(family, **{**entry, "lr": lr})


def test_an_unknown_model_is_named():
    with pytest.raises(ValueError, match="perceptron"):
        tuned("digits", "perceptron", 10)
