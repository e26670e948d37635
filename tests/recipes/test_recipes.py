"""The programs of docs/recipes train on what the agent selects, as a plain loop does, and go on after a kill.

Tests of a library that is not installed are skipped: `pip install -e '.[recipes]'`.
"""

import importlib
import importlib.util
import os
import random
import re
import runpy
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional as F

from prune_env import Pruner, select
from prune_env.sampling import top_k_mask
from tests.helpers.processes import fork, wait

FOLDER = Path(__file__).parents[2] / "docs" / "recipes"
LIBRARIES = ("lightning", "transformers", "accelerate", "timm")
slow = pytest.mark.slow


def path(name: str) -> str:
    """Return the file of a recipe; skip the test where its library is not installed."""
    library = name.partition("_")[0]
    if library in LIBRARIES:
        pytest.importorskip(library)
    return str(FOLDER / f"{name}.py")


def recipe(name: str) -> Any:
    """Return a recipe as a module."""
    spec = importlib.util.spec_from_file_location(name, path(name))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def _a_process_of_their_own(tmp_path, monkeypatch):
    """Programs seed the global generators, and write into the current folder."""
    monkeypatch.chdir(tmp_path)
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
    with torch.random.fork_rng():
        yield
    random.setstate(python)
    np.random.set_state(numpy)  # noqa: NPY002


@pytest.mark.parametrize(
    ("name", "budget", "floor"),
    [
        ("pytorch_digits", 10.0, 0.93),
        pytest.param("lightning_digits", 10.0, 0.93, marks=slow),
        pytest.param("transformers_digits", 10.0, 0.93, marks=slow),
        pytest.param("accelerate_digits", 10.0, 0.93, marks=slow),
        pytest.param("timm_digits", 10.0, 0.93, marks=slow),
        ("unicode_text", 3.0, 0.88),
        ("friedman_table", 20.0, 0.88),
    ],
)
def test_a_recipe_spends_its_budget_and_learns(name, budget, floor, capsys):
    runpy.run_path(path(name), run_name="__main__")
    said = re.search(r"(\d+) epochs for the price of ([\d.]+), .* ([\d.]+)\n", capsys.readouterr().out)
    assert said is not None
    epochs, price, accuracy = map(float, said.groups())
    assert price == budget
    assert epochs > price
    assert accuracy > floor


SHARES = (0.25, 0.75, 1.0, 0.5)  # of the samples, in each epoch; later ones are longer than the first one
BUDGET = sum(SHARES)


class Killed(Exception):
    pass


def hardest(actions: list[NDArray], killed_at: int | None = None) -> Callable:
    """Return an agent that keeps SHARES of the samples, the largest losses, with weights, and notes each action."""

    def agent(observation: dict, rng: np.random.Generator) -> dict:
        if len(actions) == killed_at:
            raise Killed
        n = len(observation["loss"])
        mask = top_k_mask(observation["loss"], round(SHARES[len(actions)] * n), rng)
        actions.append(np.where(mask, rng.choice([0.5, 2.0], n), 0.0))
        return select(actions[-1])

    return agent


class Logits(nn.Module):
    """A model of a recipe, with outputs that are its logits."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        outputs = self.model(images)
        return outputs if isinstance(outputs, torch.Tensor) else outputs.logits


@pytest.mark.parametrize(
    "name", ["pytorch_digits", "lightning_digits", "transformers_digits", "accelerate_digits", "timm_digits"]
)
def test_the_statistics_are_of_the_samples_that_the_agent_selects(name):
    actions: list[NDArray] = []
    model, pruner = recipe(name).main(hardest(actions), epochs=BUDGET, lr=0.0)  # the model stays as it is
    assert pruner.finished
    assert len(pruner) == 0  # Lightning still asks its loader
    assert pruner.ledger.share == 1.0
    seen = pruner.observe()
    np.testing.assert_array_equal(seen["visits"], np.sum([weights > 0 for weights in actions], axis=0))
    _, images, labels = recipe("pytorch_digits").digits()[0].tensors
    with torch.no_grad():
        losses = F.cross_entropy(Logits(model).eval()(images), labels, reduction="none")
    np.testing.assert_allclose(seen["loss"], losses, rtol=1e-4, atol=1e-5)


def test_the_statistics_are_of_the_right_texts():
    actions: list[NDArray] = []
    module = recipe("unicode_text")
    model, pruner = module.main(hardest(actions), epochs=BUDGET, lr=0.0)
    train, _, _ = module.texts()
    with torch.no_grad():
        logits = [model[1](model[0](module.Texts(train)[i][1][None]))[0] for i in range(len(train))]  # one by one
    losses = F.cross_entropy(torch.stack(logits), torch.tensor([label for _, label in train]), reduction="none")
    np.testing.assert_allclose(pruner.observe()["loss"], losses, rtol=1e-4, atol=1e-5)


def test_the_statistics_are_of_the_right_rows_of_a_table():
    actions: list[NDArray] = []
    module = recipe("friedman_table")
    model, pruner = module.main(hardest(actions), epochs=BUDGET, lr=0.0)
    x, y = module.table(pruner.n, seed=1)
    seen = pruner.observe()
    np.testing.assert_array_equal(seen["visits"], np.sum([weights > 0 for weights in actions], axis=0))
    np.testing.assert_allclose(seen["loss"], (model(x)[:, 0] - y).detach().square(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "name", ["lightning_digits", pytest.param("transformers_digits", marks=slow), "accelerate_digits"]
)
def test_a_recipe_selects_and_learns_what_the_plain_loop_does(name):
    theirs: list[NDArray] = []
    ours: list[NDArray] = []
    module, plain = recipe(name), recipe("pytorch_digits")
    model, pruner = module.main(hardest(theirs), epochs=BUDGET, lr=0.003)
    torch.manual_seed(0)
    expected = Logits(getattr(module, "make_model", plain.make_model)())
    train, val = plain.digits()
    reference = Pruner(hardest(ours), train.tensors[2], BUDGET, batch_size=64)
    plain.fit(expected, torch.optim.AdamW(expected.parameters(), 0.003), reference, train, val)
    np.testing.assert_array_equal(theirs, ours)
    assert pruner.val_accuracy == pytest.approx(reference.val_accuracy, abs=1e-6)
    torch.testing.assert_close(dict(model.state_dict()), dict(expected.model.state_dict()))


def save_every_nine_steps(module: Any) -> None:
    if module.__name__ == "lightning_digits":
        checkpoint = module.ModelCheckpoint
        module.ModelCheckpoint = lambda folder, **_: checkpoint(folder, every_n_train_steps=9, save_top_k=-1)
    else:
        arguments, steps = module.TrainingArguments, {"save_strategy": "steps", "save_steps": 9}
        module.TrainingArguments = lambda folder, **others: arguments(folder, **{**others, **steps})


@pytest.mark.parametrize(
    ("name", "checkpoint", "change"),
    [
        ("lightning_digits", "last.ckpt", None),
        ("lightning_digits", "epoch=1-step=9.ckpt", save_every_nine_steps),
        pytest.param("transformers_digits", "checkpoint-18", None, marks=slow),  # two epochs, of 5 and 13 batches
        pytest.param("transformers_digits", "checkpoint-9", save_every_nine_steps, marks=slow),
        ("accelerate_digits", ".", None),
    ],
)
def test_a_killed_run_goes_on_as_if_nothing_had_happened(name, checkpoint, change, tmp_path):
    module = recipe(name)
    if change is not None:
        change(module)
    whole: list[NDArray] = []
    expected, reference = module.main(hardest(whole), epochs=BUDGET, folder=tmp_path / "whole")
    parts: list[NDArray] = []
    folder = tmp_path / "killed"
    with pytest.raises(Killed):
        module.main(hardest(parts, killed_at=2), epochs=BUDGET, folder=folder)
    model, pruner = module.main(hardest(parts), epochs=BUDGET, folder=folder, resume=folder / checkpoint)
    np.testing.assert_array_equal(parts, whole)
    assert pruner.val_accuracy == reference.val_accuracy
    torch.testing.assert_close(dict(model.state_dict()), dict(expected.state_dict()))


@slow
@pytest.mark.parametrize(
    ("name", "settings"),
    [("lightning_digits", {"devices": 2}), ("transformers_digits", {}), ("accelerate_digits", {})],
)
def test_two_ranks_train_as_one(name, settings, tmp_path):
    module = recipe(name)
    if name != "accelerate_digits":  # states are told in the middle of an epoch, too
        save_every_nine_steps(module)
    alone: list[NDArray] = []
    expected, _ = module.main(hardest(alone), epochs=BUDGET, lr=0.001)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def rank(number: int) -> None:  # as torchrun starts it
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_RUN_ID": "test"}
        os.environ |= {"RANK": str(number), "LOCAL_RANK": str(number), "GROUP_RANK": "0", "ROLE_RANK": str(number)}
        os.environ |= {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "ACCELERATE_USE_CPU": "true"}
        if name == "accelerate_digits":  # it remembers that it was alone
            importlib.import_module("accelerate.state").AcceleratorState._reset_state(reset_partial_state=True)
        actions: list[NDArray] = []
        model, pruner = module.main(hardest(actions), epochs=BUDGET, lr=0.001, folder="ranks", **settings)
        assert pruner.ranks.size == 2
        torch.save((actions, dict(model.state_dict()), pruner.observe()["visits"]), f"{number}.pt")

    pids = [fork(lambda number=number: rank(number)) for number in range(2)]
    assert [wait(pid) for pid in pids] == [0, 0]
    for number in range(2):
        actions, state, visits = torch.load(f"{number}.pt", weights_only=False)
        np.testing.assert_array_equal(visits, np.sum([weights > 0 for weights in actions], axis=0))
        assert np.mean(np.array(actions) == np.array(alone)) > 0.99  # the losses are equal up to rounding
        torch.testing.assert_close(state, dict(expected.state_dict()), rtol=1e-3, atol=1e-4)
