"""Short trajectories with fixed seeds and actions, and the numbers they gave when they were last recorded.

    python -m tests.helpers.golden              # how far this machine's numbers are from the recorded ones
    python -m tests.helpers.golden --record     # record anew, into tests/helpers/golden.json

There is one trajectory for each registered id (images are made on the spot), for each member of a `make_vec`, and for
a training by Stable-Baselines3. They notice a default, a stream of random numbers or an algorithm that has changed,
here or in a new release of torch, gymnasium, numpy or stable-baselines3.

Counts, and what follows from counts, must be equal: samples, visits, seeds, compute, rates, accuracies, rewards. What
comes out of a network may differ by ROUNDING relative to its size (absolutely below 1), since the kernels of CPUs add
in different orders: losses, margins, weights, and what a policy learns. SEEDS were chosen so that rounding decides no
prediction: with kernels for other CPUs, two threads, or initial weights that are off by a millionth, all entries stayed
within their tolerance. The changes in tests/core/test_golden.py are at least ten tolerances away.
"""

from __future__ import annotations

import argparse
import inspect
import json
import platform
import random
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import gymnasium as gym
import numpy as np
import pytest
import torch
from stable_baselines3 import PPO

from prune_env import PruneEnv, io, select
from prune_env.data.task import Variant
from prune_env.policy.features import FEATURES
from prune_env.policy.rules import RULE_PARAMETERS
from prune_env.students import recipes
from tests.helpers import trees
from tests.helpers.runs import own_digits

PATH = Path(__file__).with_name("golden.json")
ROUNDING = 1e-4
ROUNDED = ("val_loss", "loss", "loss_var", "margin", "entropy", "el2n", "age", "weights", "summary", "learned")
COUNTED = ("trained", "mixed", "scored", "spent", "lr", "val_accuracy", "train_accuracy", "coverage", "reward", "seed")
VECTOR, LEARNING = "make_vec of Digits-v0", "PPO on DigitsSummary-v0"

Trajectory = dict[str, list[float | None]]  # entries by name, one number a step; None where a step has none
Recorded = dict[str, Trajectory]

SMALL = {"budget": 2.0, "price": 0.01, "precision": "float32", "device": "cpu"}
TASK = {"train_size": 120, "label_noise": 0.1, "imbalance": 2.0, "duplicates": 0.1, "task_seed": 1}
CONVNET = {"model": "convnet:4-4-4", "batch_size": 45, "lr": 0.01}
SEEDS = {"Digits": 3, "CIFAR10": 12, "CIFAR100": 9, "TinyImageNet": 6, "ImageFolder": 2, "ImageNet": 4, "Arrays": 1}
SETTINGS: dict[str, dict[str, Any]] = {
    "Digits": {**SMALL, **TASK, "model": "mlp:16"},
    "CIFAR10": {**SMALL, **CONVNET, "train_size": 40, "batch_size": 20},
    "CIFAR100": {**SMALL, **CONVNET, "train_size": 100},
    "TinyImageNet": {**SMALL, **CONVNET, "batch_size": 13, "image_size": 32},
    "ImageFolder": {**SMALL, **CONVNET, "batch_size": 13, "image_size": 24},
    "ImageNet": {**SMALL, **CONVNET, "batch_size": 13, "image_size": 32},
    "Arrays": {**SMALL, "model": "mlp:16", "optimizer": "adamw", "lr": 0.01, "dataset": own_digits()},
}
MEMBERS = {"budget": [2.5, 1.5, 2.0], "train_size": [120, 90, 60], "label_noise": [0.1, 0.0, 0.2]}


def distances(recorded: Trajectory, found: Trajectory) -> dict[str, float]:
    """How far the entries of a trajectory are from the recorded ones, in tolerances; those that are equal left out.

    What must be equal, or is missing, is infinitely far.
    """
    far: dict[str, float] = {}
    for entry in dict.fromkeys([*recorded, *found]):
        then, now = recorded.get(entry), found.get(entry)
        if then == now:
            continue
        far[entry] = np.inf
        if then and now and len(then) == len(now) and entry.startswith(ROUNDED):
            a, b = np.array(then, np.float64), np.array(now, np.float64)  # None becomes NaN
            far[entry] = float(np.nanmax(np.abs(a - b) / (ROUNDING * np.maximum(1.0, np.abs(a)))))
            if (np.isnan(a) != np.isnan(b)).any():
                far[entry] = np.inf
    return far


def differences(recorded: Recorded, found: Recorded) -> list[str]:
    """Say which entries of the trajectories in `found` are outside of their tolerance."""
    said = []
    for name, trajectory in found.items():
        then = recorded.get(name, {})
        for entry, far in distances(then, trajectory).items():
            if far > 1.0:
                said.append(f"{name}, {entry}: recorded {then.get(entry)}, found {trajectory.get(entry)}")
    return said


def complaint(said: list[str], recorded_with: dict[str, str]) -> str:
    """What to tell whoever changed something, knowing or not."""
    now = versions()
    changed = [
        f"{name} {recorded_with.get(name)} -> {now[name]}" for name in now if recorded_with.get(name) != now[name]
    ]
    return "\n".join(
        [
            f"{len(said)} entries are not those recorded in {PATH.name}. The first:",
            *said[:8],
            f"Changed since: {', '.join(changed) or 'no version and no CPU, so the code has changed'}.",
            "If that is meant, say so in the changelog and record anew: python -m tests.helpers.golden --record",
        ]
    )


def versions() -> dict[str, str]:
    """What the numbers were made with."""
    packages = ("torch", "torchvision", "numpy", "gymnasium", "stable_baselines3", "pillow")
    machine = f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"
    return {"python": platform.python_version(), **{name: version(name) for name in packages}, "cpu": machine}


def defaults() -> dict[str, dict[str, Any]]:
    """The values of settings that are not given, by the name of what takes them."""
    own = inspect.signature(PruneEnv.__init__).parameters.values()
    found: dict[str, dict[str, Any]] = {"PruneEnv": {p.name: p.default for p in own if p.default is not p.empty}}
    found["PruneEnv"] |= {field.name: field.default for of in (Variant, recipes.Training) for field in fields(of)}
    for dataset, model in (("digits", "mlp"), ("cifar10", "convnet"), ("tiny_imagenet", "convnet")):
        for budget in (3.0, 10.0, 30.0):
            found[f"{model} on {dataset}, budget {budget:g}"] = recipes.tuned(dataset, model, budget).values
    return found


@contextmanager
def images() -> Iterator[dict[str, str]]:
    """Trees of images on disk: the `root` of each id that needs one. The checksums are torchvision's meanwhile."""
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setenv("PRUNE_ENV_CACHE", f"{folder}/cache")
        roots = {name: Path(folder) / name for name in SETTINGS if name not in ("Digits", "Arrays")}
        trees.cifar10(roots["CIFAR10"], patch)
        trees.cifar100(roots["CIFAR100"], patch)
        trees.tiny_imagenet(roots["TinyImageNet"])
        trees.imagefolder(roots["ImageFolder"])
        trees.imagenet(roots["ImageNet"])
        yield {name: str(root) for name, root in roots.items()}


def episode(name: str, seed: int, **settings: Any) -> Trajectory:
    """A run of `prune_env/{name}`, and the beginning of the next."""
    env = gym.make(f"prune_env/{name}", **settings)
    core, rng = cast(PruneEnv, env.unwrapped), np.random.default_rng(11)
    seen, info = env.reset(seed=seed)
    steps, done = [_numbers(core, seen, info)], False
    while not done:
        seen, reward, done, _, info = env.step(_draw(rng, seen))
        steps.append(_numbers(core, seen, {**info, "reward": reward}))
    seen, info = env.reset()
    return _columns([*steps, _numbers(core, seen, info)])


def members() -> Recorded:
    """What each member of a vector env does in its first steps, resets among them."""
    env = gym.make_vec("prune_env/Digits-v0", num_envs=3, **{**SETTINGS["Digits"], **MEMBERS})
    cores, rng = cast(Any, env.unwrapped).envs, np.random.default_rng(12)
    seen, infos = env.reset(seed=5)
    steps = [[_numbers(core, seen, _row(infos, k))] for k, core in enumerate(cores)]
    for _ in range(6):
        actions = [_draw(rng, seen) for _ in cores]
        seen, rewards, _, _, infos = env.step({name: np.stack([a[name] for a in actions]) for name in actions[0]})
        for k, core in enumerate(cores):
            steps[k].append(_numbers(core, seen, {**_row(infos, k), "reward": rewards[k]}))
    return {f"{VECTOR}, member {k}": _columns(steps[k]) for k in range(len(cores))}


def learning() -> Trajectory:
    """A training by Stable-Baselines3, which seeds the global generators: they are put back."""
    env = gym.make("prune_env/DigitsSummary-v0", **{**SMALL, "train_size": 60, "model": "mlp:8"})
    before = torch.get_rng_state(), np.random.get_state(), random.getstate()  # noqa: NPY002
    try:
        policy: dict[str, Any] = {"net_arch": [16], "log_std_init": -1.0}
        model = PPO("MlpPolicy", env, n_steps=32, batch_size=16, n_epochs=3, seed=7, device="cpu", policy_kwargs=policy)
        steps = [_learned(model)]
        for _ in range(2):
            steps.append(_learned(model.learn(64, reset_num_timesteps=False)))
    finally:
        torch.set_rng_state(before[0])
        np.random.set_state(before[1])  # noqa: NPY002
        random.setstate(before[2])
    return _columns(steps)


def _learned(model: PPO) -> dict[str, float]:
    asked: Any = np.linspace(-1, 1, len(FEATURES), dtype=np.float32)
    answers, _ = model.predict(asked, deterministic=True)
    numbers = {f"learned_{name}": float(answer) for name, answer in zip(RULE_PARAMETERS, answers, strict=True)}
    return {"steps": model.num_timesteps, "learned_norm": float(_vector(model.policy).norm()), **numbers}


def _vector(module: torch.nn.Module) -> torch.Tensor:
    """All numbers of a network (P,) float64."""
    return torch.cat([value.detach().flatten().double() for value in module.state_dict().values()])


def _draw(rng: np.random.Generator, seen: Any) -> Any:
    """An action that depends on nothing that was seen: weights, mixup and scoring; or numbers of a rule."""
    if not isinstance(seen, Mapping):
        return rng.uniform(-1, 1, len(RULE_PARAMETERS)).astype(np.float32)
    n = np.shape(seen["loss"])[-1]
    weight = rng.uniform(0.5, 2.0, n) * (rng.random(n) < 0.6)
    return select(weight, 0.3 * (rng.random(n) < 0.2), rng.random(n) < 0.15)


def _row(infos: Mapping[str, Any], k: int) -> dict[str, Any]:
    """Member k's info."""
    return {name: infos[name][k] for name in infos if f"_{name}" in infos and infos[f"_{name}"][k]}


def _numbers(env: PruneEnv, seen: Any, info: Mapping[str, Any]) -> dict[str, float]:
    """Numbers of a step: from the info, and means of what is observed, the size of the network's weights."""
    trainer = env.trainer
    assert trainer is not None
    observed = trainer.observe()
    numbers = {name: float(info[name]) for name in (*COUNTED, "val_loss") if name in info}
    for name in ("loss", "loss_var", "margin", "entropy", "el2n", "age"):
        numbers[name] = float(observed[name].mean(dtype=np.float64))
    for name in ("visits", "forgets"):
        numbers[name] = float(observed[name].sum(dtype=np.float64))
    numbers["weights"] = float(_vector(trainer.model).norm())
    if not isinstance(seen, Mapping):
        numbers |= {"summary_sum": float(seen.sum(dtype=np.float64)), "summary_norm": float(np.linalg.norm(seen))}
    return numbers


def _columns(steps: list[dict[str, float]]) -> Trajectory:
    return {entry: [step.get(entry) for step in steps] for entry in dict.fromkeys(e for step in steps for e in step)}


def play(only: str = "") -> Recorded:
    """All trajectories, or those whose name begins with `only`."""
    found: Recorded = {}
    with images() as roots:
        for name in SETTINGS:
            for of in (f"{name}-v0", f"{name}Summary-v0"):
                if of.startswith(only):
                    root = {"root": roots[name]} if name in roots else {}
                    found[of] = episode(of, SEEDS[name], **SETTINGS[name], **root)
    if VECTOR.startswith(only):
        found |= members()
    if LEARNING.startswith(only):
        found[LEARNING] = learning()
    return found


def read() -> tuple[Recorded, dict[str, dict[str, Any]], dict[str, str]]:
    """What was recorded: trajectories, defaults, versions."""
    held = json.loads(PATH.read_text())
    return held["trajectories"], held["defaults"], held["versions"]


def record(trajectories: Recorded) -> None:
    """Put trajectories in the place of what was recorded, one a line."""
    lines = [f'{{"versions": {json.dumps(versions())},', f'"defaults": {json.dumps(defaults())},', '"trajectories": {']
    lines.append(",\n".join(f"{json.dumps(name)}: {json.dumps(found)}" for name, found in trajectories.items()))
    io.write_atomic(PATH, "\n".join([*lines, "}}", ""]).encode())


def main() -> int:
    about = "Compare with recorded numbers."
    parser = argparse.ArgumentParser(prog="python -m tests.helpers.golden", description=about)
    parser.add_argument("--record", action="store_true", help="record anew")
    torch.set_num_threads(1)
    if parser.parse_args().record:
        record(play())
        return 0
    recorded, _, recorded_with = read()
    said = differences(recorded, play())
    print(complaint(said, recorded_with) if said else "every number is as it was recorded")
    return bool(said)


if __name__ == "__main__":
    sys.exit(main())
