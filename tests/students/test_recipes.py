"""The schedule against its closed form, the table of tuned values against the file, and what is refused."""

import json
import math
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

import prune_env
from prune_env.students import recipes
from prune_env.students.recipes import Recipe, nearest, tuned
from tests.helpers import reference

TABLE = json.loads((Path(prune_env.__file__).parent / "students" / "recipes.json").read_text())


@given(st.floats(0, 1), st.just(0.0) | st.floats(1e-3, 0.99), st.floats(1e-4, 10))
def test_the_rate_rises_and_falls_in_straight_lines(progress, warmup, lr):
    recipe = Recipe("mlp", 32, lr, warmup=warmup)
    assert recipe.rate(progress) == pytest.approx(reference.schedule(progress, lr, warmup), rel=1e-6, abs=1e-9 * lr)
    assert recipe.rate(1.0) == 0.0  # exactly


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("batch_size", 0),
        ("lr", 0.0),
        ("lr", float("nan")),
        ("momentum", 1.0),
        ("weight_decay", -1e-4),
        ("warmup", 1.0),
        ("label_smoothing", -0.1),
        ("ema", 0.0),
        ("precision", "float16"),
        ("compile", "on"),
    ],
)
def test_a_wrong_value_is_named(name, value):
    with pytest.raises(ValueError, match=rf"{name}.*{value}"):
        Recipe(**{"model": "mlp", "batch_size": 32, "lr": 0.1, name: value})


@pytest.mark.parametrize("name", ["model", "batch_size", "lr"])
def test_a_recipe_leaves_nothing_open(name):
    given = {"model": "mlp", "batch_size": 32, "lr": 0.1}
    del given[name]
    with pytest.raises(TypeError, match=f"{name} is None"):
        Recipe(**given)


# What was tuned


def entry(lr: float | dict[str, float], command: str | None = "somehow", **noisy: float) -> dict:
    """An entry of recipes.json: a rate, or rates by budget; and rates by share of wrong labels, as `of_20=0.1`."""
    found = {"batch_size": 7, "weight_decay": 0.25, "lr": lr if isinstance(lr, dict) else {"2": lr}}
    shares = {f"0.{name[3:]}": {"lr": {"2": rate}, "command": "somehow"} for name, rate in noisy.items()}
    return {**found, "command": command, "noisy": shares}


@pytest.fixture
def planted(tmp_path, monkeypatch):
    """Recipes of its own."""

    def plant(table: dict) -> None:
        (tmp_path / "recipes.json").write_text(json.dumps(table))
        monkeypatch.setattr(recipes, "resources", SimpleNamespace(files=lambda package: tmp_path))

    return plant


def test_the_first_entry_counts_from_the_most_particular_to_the_most_general(planted):
    order = [("digits:4", "mlp:9"), ("digits:4", "mlp"), ("digits", "mlp:9"), ("digits", "mlp"), ("*", "mlp:9")]
    order.append(("*", "mlp"))
    table: dict = {}
    for rate, (of, model) in enumerate(order, start=1):
        table.setdefault(of, {})[model] = entry(float(rate))
    for rate, (of, model) in enumerate(order, start=1):
        planted(table)
        found = tuned("digits", "mlp:9", 4.0, image_size=4)
        assert found.values == {"model": "mlp:9", "batch_size": 7, "weight_decay": 0.25, "lr": rate}
        assert found.fits == (of != "*" and model == "mlp:9")
        del table[of][model]
    planted({"digits:4": {"mlp": entry(0.3)}, "*": {"mlp": entry(1.0), "torchvision:resnet18": entry(0.5)}})
    assert [tuned("digits", "mlp", 4.0, image_size=size).values["lr"] for size in (4, 5, None)] == [0.3, 1.0, 1.0]
    assert tuned("any", "torchvision:resnet18", 4.0).values["lr"] == 0.5
    assert prune_env.PruneEnv(image_size=4, train_size=50).recipe.lr == 0.3


@pytest.mark.parametrize(
    ("noise", "lr", "words", "fits"),
    [
        (0.0, 0.3, "clean labels", True),
        (0.04, 0.3, "clean labels", False),
        (0.06, 0.1, "10% wrong labels", False),
        (0.1, 0.1, "10% wrong labels", True),
        (0.9, 0.05, "40% wrong labels", False),
    ],
)
def test_the_rates_of_the_nearest_share_of_wrong_labels_are_taken(planted, noise, lr, words, fits):
    planted({"digits": {"mlp": entry(0.3, of_10=0.1, of_40=0.05)}, "*": {}})
    found = tuned("digits", "mlp", 7, noise)
    assert (found.values["lr"], found.fits) == (lr, fits)
    assert found.description == f"lr {lr}: tuned for full training of mlp on digits, budget 2, {words}"


@pytest.mark.parametrize(
    ("imbalance", "noise", "lr", "words", "fits"),
    [
        (1.0, 0.0, 0.3, "clean labels", True),
        (3.0, 0.0, 0.3, "clean labels", False),
        (4.0, 0.0, 0.2, "clean labels, classes 10:1", False),  # 4 is nearer to 10 than to 1 in ratio
        (10.0, 0.0, 0.2, "clean labels, classes 10:1", True),
        (10.0, 0.4, 0.4, "40% wrong labels, classes 10:1", True),
        (10.0, 0.1, 0.1, "10% wrong labels", False),  # a wrong share of wrong labels would do more harm
        (500.0, 0.0, 0.2, "clean labels, classes 10:1", False),  # 100:1 has rates for 40 % only
        (500.0, 0.5, 0.6, "40% wrong labels, classes 100:1", False),
    ],
)
def test_the_rates_of_the_nearest_imbalance_are_taken(planted, imbalance, noise, lr, words, fits):
    unlike = {"10": entry(0.2, of_40=0.4), "100": {"noisy": entry(0.0, of_40=0.6)["noisy"]}}
    planted({"digits": {"mlp": {**entry(0.3, of_10=0.1), "unlike": unlike}}, "*": {}})
    found = tuned("digits", "mlp", 7, noise, imbalance=imbalance)
    assert (found.values["lr"], found.fits) == (lr, fits)
    assert found.description == f"lr {lr}: tuned for full training of mlp on digits, budget 2, {words}"


def test_what_is_not_tuned_says_so(planted):
    planted({"digits": {"mlp": entry(0.3, None)}, "*": {"convnet": entry(0.2)}})
    assert tuned("digits", "mlp", 2) == ({**tuned("digits", "mlp", 2).values}, "lr 0.3: customary, not tuned", False)
    assert "on other images" in tuned("digits", "convnet", 2).description


@given(st.lists(st.floats(0.1, 1e3), min_size=1, max_size=6, unique=True), st.floats(0.01, 1e4))
def test_nearest_means_in_ratio(budgets, budget):
    ratio = {other: max(other / budget, budget / other) for other in budgets}
    assert ratio[nearest(budgets, budget)] <= min(ratio.values()) * (1 + 1e-9)


def test_the_table_itself_makes_recipes():
    for dataset, models in TABLE.items():
        for name, found in models.items():
            assert set(found) - {"noisy", "unlike"} == {"batch_size", "weight_decay", "lr", "command"}
            kinds = {(1.0, 0.0): found, **{(1.0, float(share)): its for share, its in found.get("noisy", {}).items()}}
            for ratio, rates in found.get("unlike", {}).items():
                kinds |= {(float(ratio), 0.0): rates} if "lr" in rates else {}
                kinds |= {(float(ratio), float(share)): its for share, its in rates.get("noisy", {}).items()}
            for (ratio, share), rates in kinds.items():
                command = rates["command"]
                assert command is None or re.match("(python -m train.|prune-env )(tune|rates) ", command)
                for budget, lr in rates["lr"].items():
                    of, _, size = dataset.partition(":")
                    values = tuned(of, name, float(budget), share, int(size or 0), imbalance=ratio).values
                    assert Recipe(**values) == Recipe(name, found["batch_size"], lr, found["weight_decay"])


def test_an_environment_tells_nobody_the_share_of_wrong_labels():
    assert tuned("digits", "mlp", 10, 0.2).values["lr"] < tuned("digits", "mlp", 10).values["lr"]
    assert prune_env.PruneEnv(label_noise=0.2).recipe == prune_env.PruneEnv().recipe


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (("digits", "perceptron", 10), "perceptron"),
        (("digits", 3, 10), "model is 3"),
        (("digits", "mlp", 0), "budget is 0"),
        (("digits", "mlp", math.nan), "budget is nan"),
        (("digits", "mlp", 10, "much"), "label_noise is 'much'"),
    ],
)
def test_what_cannot_be_looked_up_is_named(given, words):
    with pytest.raises((ValueError, TypeError), match=words):
        tuned(*given)
