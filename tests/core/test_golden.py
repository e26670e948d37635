"""The recorded trajectories are met, within tolerances that let rounding pass and no more; see helpers/golden.py."""

import copy
import functools
import math
from typing import Any

import gymnasium as gym
import pytest
import torch

from prune_env import trainer
from prune_env.policy import wrappers
from prune_env.students import augment
from prune_env.students.recipes import Training
from tests.helpers import golden

RECORDED, DEFAULTS, VERSIONS = golden.read()
IDS = [spec.removeprefix("prune_env/") for spec in gym.registry if spec.startswith("prune_env/")]


@pytest.fixture(scope="module")
def found() -> golden.Recorded:
    return golden.play()


@pytest.mark.parametrize("of", RECORDED)
def test_numbers_are_as_recorded(of: str, found: golden.Recorded):
    differences = golden.compare(RECORDED, {of: found[of]})
    assert not differences, golden.complaint(differences, VERSIONS)


def test_defaults_are_as_recorded():
    differences = golden.compare_defaults(DEFAULTS)
    assert not differences, golden.complaint(differences, VERSIONS)


def test_every_id_has_a_trajectory(found: golden.Recorded):
    assert len(IDS) == 12
    assert {*IDS} <= RECORDED.keys() == found.keys()


def scaled_init(patch: pytest.MonkeyPatch) -> None:
    """Layers that start 1 % larger, as a release of torch with another initialisation would have them."""
    reset = torch.nn.Linear.reset_parameters

    def larger(self: torch.nn.Linear) -> None:
        reset(self)
        self.weight.data.mul_(1.01)

    patch.setattr(torch.nn.Linear, "reset_parameters", larger)


def setting(name: str, value: Any):
    return lambda patch: [patch.setitem(of, name, value) for of in golden.SETTINGS.values()]


def stream(where: Any, name: str):
    return lambda patch: patch.setattr(where, name, 77)


def sgd(**changed: Any):
    plain = torch._fused_sgd_  # pyright: ignore[reportPrivateImportUsage]

    def descend(*tensors: Any, **given: Any) -> None:
        plain(*tensors, **{**given, **changed})

    return lambda patch: patch.setattr(torch, "_fused_sgd_", descend)


CHANGES = {
    "1 % of the momentum": (sgd(momentum=0.891), "Digits-v0"),
    "no Nesterov": (sgd(nesterov=False), "CIFAR10-v0"),
    "one more batch of warm-up": (setting("warmup", 0.1 + 32 / 120 / 2.0), "Digits-v0"),
    "a little label smoothing": (setting("label_smoothing", 0.01), "CIFAR100-v0"),
    "another initialisation": (scaled_init, "ImageFolder-v0"),
    "another stream of weights": (stream(trainer, "_WEIGHTS"), "ImageFolderSummary-v0"),
    "another stream of order": (stream(trainer, "_ORDER"), "make_vec"),
    "another stream of augmentation": (stream(trainer, "_AUGMENTATION"), "CIFAR10Summary-v0"),
    "another stream of rules": (stream(wrappers, "RULE_STREAM"), "DigitsSummary-v0"),
    "no flips": (
        lambda patch: patch.setattr(augment, "draw", functools.partial(_same_sample, augment.draw)),
        "TinyImageNet-v0",
    ),
    "1 % of PPO's lambda": (
        lambda patch: patch.setattr(golden, "PPO", functools.partial(golden.PPO, gae_lambda=0.9405)),
        "PPO",
    ),
}


def _same_sample(draw: Any, seed: int, indices: torch.Tensor, visits: torch.Tensor) -> tuple[Any, Any]:
    sample, visit = draw(seed, indices, visits)
    return sample // 2 * 2 + visits % 2, visit


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_is_noticed(change: str, monkeypatch: pytest.MonkeyPatch):
    make, of = CHANGES[change]
    make(monkeypatch)
    changed = golden.play(of)
    assert changed
    for name, steps in changed.items():
        differences = golden.compare(RECORDED, {name: steps})
        numbers = [d for d in differences if not d.entry.startswith("recipe")]
        assert len(numbers) > 3, change
        far = [abs(float(d.found or 0) - float(d.recorded or 0)) / d.tolerance for d in numbers if d.tolerance]
        assert max(far) > 10.0, change  # not a matter of how the tolerance is chosen


def test_a_changed_default_is_noticed(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Training.__dataclass_fields__["ema"], "default", 0.7)
    found = {str(difference) for difference in golden.compare_defaults(DEFAULTS)}
    of = ("PruneEnv", "Recipe")  # both have the field
    assert found == {f"defaults of {name}, step 0, ema: recorded 0.8, found 0.7; must be equal" for name in of}


def test_rounding_is_let_through(monkeypatch: pytest.MonkeyPatch):
    with golden.nudged(seed=0):
        nudged = golden.play("Digits")
    assert nudged["Digits-v0"] != RECORDED["Digits-v0"]
    assert golden.compare(RECORDED, nudged) == []


def test_the_complaint_says_what_where_and_what_to_do():
    steps = copy.deepcopy(RECORDED["Digits-v0"])
    steps[2]["loss"] += 0.01
    steps[3]["trained"] -= 1
    steps[3]["val_loss"] = math.nan
    del steps[3]["lr"]
    changed = {"Digits-v0": steps[:-1]}
    differences = golden.compare(RECORDED, changed)
    wrong = [(0, "number of steps"), (2, "loss"), (3, "lr"), (3, "trained"), (3, "val_loss")]
    assert sorted((difference.step, difference.entry) for difference in differences) == wrong
    text = golden.complaint(differences, {**VERSIONS, "torch": "0.0.1"})
    recorded = RECORDED["Digits-v0"][2]["loss"]
    assert f"Digits-v0, step 2, loss: recorded {recorded}, found {recorded + 0.01}; may differ by" in text
    assert f"torch 0.0.1 -> {golden.versions()['torch']}" in text
    assert "python -m tests.helpers.golden --record" in text
