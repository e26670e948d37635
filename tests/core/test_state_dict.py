"""The state of an environment: a loop of one's own goes on from it, bit for bit."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import gymnasium as gym
import numpy as np
import pytest
import torch

from prune_env import PruneEnv, select
from prune_env.trainer import Trainer
from tests.helpers import trees
from train.execution.checkpoints import Checkpoint

pytestmark = pytest.mark.usefixtures("one_thread")


def same(one: Any, two: Any) -> bool:
    """Whether two trees of plain values, arrays and tensors are equal, NaN to NaN."""
    if isinstance(one, dict):
        return one.keys() == two.keys() and all(same(one[name], two[name]) for name in one)
    if isinstance(one, list | tuple):
        return len(one) == len(two) and all(map(same, one, two))
    if isinstance(one, torch.Tensor):
        return one.dtype == two.dtype and one.stride() == two.stride() and torch.equal(one, two)
    if isinstance(one, np.ndarray | float):
        return np.array_equal(one, two, equal_nan=np.asarray(one).dtype.kind == "f")
    return one == two


def digits(model: str, **more: Any) -> PruneEnv:
    settings = {"train_size": 60, "budget": 4.0, "batch_size": 16, "device": "cpu", **more}
    return cast(PruneEnv, gym.make("prune_env/Digits-v0", model=model, **settings).unwrapped)


def folder(root: Path) -> PruneEnv:
    """With dropout: its masks are drawn from a generator of their own."""
    if not root.exists():
        trees.imagefolder(root, per_class=16)
    settings = {"root": str(root), "model": "torchvision:mobilenet_v3_small", "budget": 3.0, "batch_size": 8}
    return cast(PruneEnv, gym.make("prune_env/ImageFolder-v0", **settings, device="cpu").unwrapped)


ENVIRONMENTS: dict[str, Callable[[Path], PruneEnv]] = {
    "ansi": lambda _: digits("mlp:8", render_mode="ansi", label_smoothing=0.1, price=0.01),
    "rgb_array": lambda _: digits("mlp:8", render_mode="rgb_array", momentum=0.0),
    "convnet": lambda _: digits("convnet:4-4-4"),  # in channels_last, its momentum too
    "dropout": folder,
}


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=[pytest.mark.slow] if kind == "dropout" else []) for kind in ENVIRONMENTS]
)
def test_an_environment_goes_on_bit_for_bit(kind: str, tmp_path: Path):
    """From a file, before the first step, in the middle and before the last; the next run begins alike too."""
    env, other = (ENVIRONMENTS[kind](tmp_path / "images") for _ in "ab")
    n, rng = len(env.train_data), np.random.default_rng(4)
    chosen = [
        select(rng.random(n) < 0.6, rng.random(n) * 0.5 * (i % 2), rng.random(n) < 0.2)
        for i in range(4 if kind == "dropout" else 30)
    ]
    seen, over = env.reset(seed=5)[0], False
    states, straight = [], []
    for number, action in enumerate(chosen):
        checkpoint = Checkpoint(tmp_path / str(number))
        checkpoint.save(env.state_dict())
        states.append((seen, checkpoint))
        straight.append(env.step(action))
        seen, over = straight[-1][0], straight[-1][2]
        if over:
            break
    weights = copy.deepcopy(cast(Trainer, env.trainer).model.state_dict())
    picture = env.render() if env.render_mode else None
    following = env.reset()
    for at in {0, len(states) // 2, len(states) - 1}:
        other.reset(seed=8 + at)  # whatever it was at before
        seen, checkpoint = states[at]
        assert same(other.load_state_dict(checkpoint.load()), seen)
        for action, expected in zip(chosen[at:], straight[at:], strict=False):
            assert same(other.step(action), expected)
        assert same(cast(Trainer, other.trainer).model.state_dict(), weights)
        assert same(other.render() if other.render_mode else None, picture)
        if over:
            assert same(other.reset(), following)
            with pytest.raises(gym.error.ResetNeeded):
                ENVIRONMENTS["ansi"](tmp_path).state_dict()


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"budget": 5.0}, "a run with budget=4.0; this one has 5.0"),
        ({"lr": 0.123}, "this one has 0.123"),
        ({"label_noise": 0.2}, "a run with data="),
        ({"model": "mlp:9"}, "a run with model='mlp:8'; this one has 'mlp:9'"),
    ],
)
def test_the_state_of_another_run_is_refused_and_changes_nothing(changed: dict[str, Any], words: str):
    env = digits("mlp:8")
    env.reset(seed=5)
    env.step(select(np.ones(60)))
    state = env.state_dict()
    other = digits(**{"model": "mlp:8", **changed})
    other.reset(seed=6)
    other.step(select(np.ones(len(other.train_data))))
    before, trainer = copy.deepcopy(other.state_dict()), other.trainer
    with pytest.raises(ValueError, match=words):
        other.load_state_dict(state)
    assert same(other.state_dict(), before)
    assert other.trainer is trainer


NO_STATES: dict[str, tuple[tuple[Any, ...], Any]] = {  # where something is put, and what
    "None": ((), None),
    "no run": (("trainer", "run"), None),
    "a weight": (("trainer", "model", "1.weight"), torch.ones(1, 64)),
    "NaN": (("trainer", "statistics"), torch.full((60, 11), float("nan"))),
    "no rate": (("trainer", "optimizer", "param_groups"), []),
    "no history": (("history",), {}),
    "another generator": (("generator", "bit_generator"), "MT19937"),
}


@pytest.mark.parametrize("kind", NO_STATES)
def test_what_is_no_state_is_refused_and_changes_nothing(kind: str):
    env = digits("mlp:8", render_mode="ansi")
    env.reset(seed=5)
    env.step(select(np.arange(60) < 30))
    (*path, last), bad = ["state", *NO_STATES[kind][0]], {"state": copy.deepcopy(env.state_dict())}
    env.step(select(np.arange(60) < 40))
    before, trainer = copy.deepcopy(env.state_dict()), env.trainer
    part = bad
    for name in path:
        part = part[name]
    part[last] = NO_STATES[kind][1]
    with pytest.raises(ValueError, match="state"):
        env.load_state_dict(bad["state"])
    assert env.trainer is trainer
    assert same(env.state_dict(), before)
