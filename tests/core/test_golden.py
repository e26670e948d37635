"""The recorded trajectories are met, within tolerances that let rounding pass and no more; see helpers/golden.py."""

import copy

import gymnasium as gym
import pytest
import torch

from tests.helpers import golden

RECORDED, DEFAULTS, VERSIONS = golden.read()


@pytest.fixture(scope="module")
def found() -> golden.Recorded:
    return golden.play()  # several seconds: two episodes of each id, and a policy that learns


@pytest.mark.parametrize("name", RECORDED)
def test_numbers_are_as_recorded(name, found):
    said = golden.differences(RECORDED, {name: found[name]})
    assert not said, golden.complaint(said, VERSIONS)


def test_defaults_are_as_recorded():
    assert golden.defaults() == DEFAULTS


def test_every_id_has_a_trajectory(found):
    ids = {spec.removeprefix("prune_env/") for spec in gym.registry if spec.startswith("prune_env/")}
    assert len(ids) >= 12
    assert ids <= RECORDED.keys() == found.keys()


def less_momentum(patch: pytest.MonkeyPatch) -> None:
    plain = torch._fused_sgd_  # pyright: ignore[reportPrivateImportUsage]
    patch.setattr(torch, "_fused_sgd_", lambda *tensors, **given: plain(*tensors, **{**given, "momentum": 0.891}))


def larger_weights(patch: pytest.MonkeyPatch) -> None:
    """Start layers 1 % larger, as a release of torch with another initialisation would."""
    reset = torch.nn.Linear.reset_parameters

    def larger(self: torch.nn.Linear) -> None:
        reset(self)
        self.weight.data.mul_(1.01)

    patch.setattr(torch.nn.Linear, "reset_parameters", larger)


@pytest.mark.parametrize("change", [less_momentum, larger_weights])
def test_a_change_is_noticed(change, monkeypatch):
    change(monkeypatch)
    changed = golden.play("Digits-v0")
    far = golden.distances(RECORDED["Digits-v0"], changed["Digits-v0"])
    assert len(far) > 3
    assert max(value for entry, value in far.items() if entry.startswith(golden.ROUNDED)) > 10.0


def test_the_complaint_says_what_where_and_what_to_do():
    changed = copy.deepcopy(RECORDED["Digits-v0"])
    changed["loss"][2] = (changed["loss"][2] or 0.0) + 0.01
    changed["trained"][3] = None
    changed["val_loss"][3] = float("nan")
    del changed["lr"]
    changed["margin"] = [(x or 0.0) + 1e-6 for x in changed["margin"]]  # rounding
    said = golden.differences(RECORDED, {"Digits-v0": changed})
    assert [line.partition(":")[0] for line in said] == [
        f"Digits-v0, {x}" for x in ("trained", "lr", "val_loss", "loss")
    ]
    text = golden.complaint(said, {**VERSIONS, "torch": "0.0.1"})
    assert f"loss: recorded {RECORDED['Digits-v0']['loss']}, found {changed['loss']}" in text
    assert f"torch 0.0.1 -> {golden.versions()['torch']}" in text
    assert "python -m tests.helpers.golden --record" in text
