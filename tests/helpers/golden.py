"""Short trajectories with fixed seeds and actions, and the numbers they gave when they were last recorded.

    python -m tests.helpers.golden              # how far this machine's numbers are from the recorded ones
    python -m tests.helpers.golden --record     # record anew, into tests/golden.json
    python -m tests.helpers.golden --spread     # how far they are with other kernels and numbers of threads

There is one trajectory for each registered id (images are made on the spot), for each member of a `make_vec`, and for
a training by Stable-Baselines3. They notice a default, a stream of random numbers or an algorithm that has changed,
here or in a new release of torch, gymnasium, numpy or stable-baselines3.

**Tolerances.** What is counted in whole numbers, or follows from such by one IEEE operation after the other, must be
*equal*: samples, visits, seeds, compute, rates. What comes out of a network may differ by rounding, since the order in
which a CPU's kernels add differs: losses, margins, weights and what a policy learns, by ROUNDING relative to their
size, or absolutely below 1. Accuracies count right predictions, of which one may tip where two logits are as good as
equal; a reward is the difference of two.

`--spread` measures what rounding does. With the kernels for CPUs without vector units, with AVX2 and with AVX-512,
with oneDNN held to SSE 4.1 and AVX2, MKL to what all CPUs have in common and to AVX2, and with two threads, no entry
was further away than 0.05 of its tolerance, and no prediction tipped. A network of ReLUs and maxima amplifies
rounding where two of its inputs are as good as equal: the gradient then takes another way, and a loss may move by a
hundredth. So the seeds in SEEDS are such that this is unlikely: with initial weights that are off by a millionth of
themselves, ten times the rounding of a float32, all entries stayed inside of their tolerances in 30 trials of 30.
Students compute in float32 here, as `precision="auto"` is bfloat16 on CPUs that have it and float32 on others.

The tolerance leaves no room for what is meant: the changes in tests/core/test_golden.py, 1 % of the momentum or of the
size of initial weights, a stream of random numbers, a batch of warm-up, are at least ten tolerances away.
"""

from __future__ import annotations

import argparse
import functools
import inspect
import json
import os
import platform
import random
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple, cast

import gymnasium as gym
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from stable_baselines3 import PPO

from prune_env import PruneEnv, io, select
from prune_env.data.task import Variant
from prune_env.policy.features import FEATURES
from prune_env.policy.rules import RULE_PARAMETERS
from prune_env.students import models, recipes
from tests.helpers import trees

PATH = Path(__file__).with_name("golden.json")
ROUNDING = 1e-4
VECTOR, LEARNING = "make_vec of Digits-v0", "PPO on DigitsSummary-v0"

Numbers = dict[str, Any]  # floats, and the name of a model
Recorded = dict[str, list[Numbers]]  # by trajectory: its reset, then its steps

# What comes out of a network: by the entry's name up to the first underscore, or the whole of it.
ROUNDED = {"loss", "loss_var", "margin", "entropy", "el2n", "age", "val_loss", "weights", "summary", "learned"}

SMALL = {"budget": 2.0, "price": 0.01, "precision": "float32", "device": "cpu"}
TASK = {"train_size": 120, "label_noise": 0.1, "imbalance": 2.0, "duplicates": 0.1, "task_seed": 1}
CONVNET = {"model": "convnet:4-4-4", "batch_size": 45, "lr": 0.01}
SEEDS = {
    "Digits": 3,
    "CIFAR10": 12,
    "CIFAR100": 9,
    "TinyImageNet": 6,
    "ImageFolder": 2,
    "ImageNet": 4,
}  # see the docstring
SETTINGS: dict[str, dict[str, Any]] = {
    "Digits": {**SMALL, **TASK, "model": "mlp:16"},
    "CIFAR10": {**SMALL, **CONVNET, "train_size": 40, "batch_size": 20},
    "CIFAR100": {**SMALL, **CONVNET, "train_size": 100},
    "TinyImageNet": {**SMALL, **CONVNET, "batch_size": 13, "image_size": 32},
    "ImageFolder": {**SMALL, **CONVNET, "batch_size": 13, "image_size": 24},
    "ImageNet": {**SMALL, **CONVNET, "batch_size": 13, "image_size": 32},
}
MEMBERS = {"budget": [2.5, 1.5, 2.0], "train_size": [120, 90, 60], "label_noise": [0.1, 0.0, 0.2]}


class Difference(NamedTuple):
    """An entry that is not what was recorded; None stands for one that is missing."""

    of: str  # trajectory
    step: int
    entry: str
    recorded: float | str | None
    found: float | str | None
    tolerance: float  # 0: it must be equal

    def __str__(self) -> str:
        allowed = f"may differ by {self.tolerance:.2g}" if self.tolerance else "must be equal"
        return f"{self.of}, step {self.step}, {self.entry}: recorded {self.recorded}, found {self.found}; {allowed}"


def tolerance(entry: str, recorded: Numbers) -> float:
    """By how much this entry of a recorded step may differ."""
    if "loss" not in recorded and "learned_norm" not in recorded:
        return 0.0  # no step at all, but defaults
    if entry in ROUNDED or entry.partition("_")[0] in ("summary", "learned"):
        return ROUNDING * max(1.0, abs(recorded[entry]))
    measured = recorded.get("trained", 0) - recorded.get("mixed", 0) + recorded.get("scored", 0)
    one_prediction = {
        "val_accuracy": lambda: 1.0 / recorded["val_rows"],
        "gained": lambda: 2.0 / recorded["val_rows"],
        "reward": lambda: 2.0 / recorded["val_rows"] / recorded["budget"],
        "train_accuracy": lambda: 1.0 / max(measured, 1),
        "correct": lambda: 1.0 / recorded["rows"],
        "forgets": lambda: 1.0,
    }
    return (1.0 + 1e-6) * one_prediction[entry]() if entry in one_prediction else 0.0


def compare(recorded: Recorded, found: Recorded) -> list[Difference]:
    """Every entry of the trajectories in `found` that is outside of its tolerance."""
    differences = []
    for of, steps in found.items():
        expected = recorded.get(of, [])
        if len(expected) != len(steps):
            differences.append(Difference(of, 0, "number of steps", len(expected), len(steps), 0.0))
        for i, (then, now) in enumerate(zip(expected, steps, strict=False)):
            for entry in dict.fromkeys([*then, *now]):
                a, b = then.get(entry), now.get(entry)
                allowed = 0.0 if a is None or b is None else tolerance(entry, then)
                if a != b and (not allowed or not abs(cast(float, a) - cast(float, b)) <= allowed):  # NaN differs
                    differences.append(Difference(of, i, entry, a, b, allowed))
    return differences


def compare_defaults(recorded: dict[str, dict[str, Any]]) -> list[Difference]:
    """Likewise for what `defaults` says."""
    then, now = ({f"defaults of {of}": [values] for of, values in held.items()} for held in (recorded, defaults()))
    return compare(then, now)


def complaint(differences: list[Difference], then: dict[str, str]) -> str:
    """What to tell whoever changed something, knowing or not."""
    changed = [f"{name} {then.get(name)} -> {now}" for name, now in versions().items() if then.get(name) != now]
    return "\n".join(
        [
            f"{len(differences)} numbers are not those recorded in {PATH.name}. The first:",
            *map(str, differences[:8]),
            f"Recorded with {', '.join(f'{name} {number}' for name, number in then.items())}.",
            f"Since then: {', '.join(changed) or 'the same versions and CPU, so the code has changed'}.",
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
    found["Recipe"] = {field.name: field.default for field in fields(recipes.Recipe) if field.default is not None}
    for dataset, model in (("digits", "mlp"), ("cifar10", "convnet"), ("tiny_imagenet", "convnet")):
        for budget in (3.0, 10.0, 30.0):
            values = recipes.tuned(dataset, model, budget).values
            assert values.pop("model") == model
            found[f"{model} on {dataset}, budget {budget:g}"] = values
    return found


@contextmanager
def images() -> Iterator[dict[str, str]]:
    """Trees of images on disk: the `root` of each id that needs one. The checksums are torchvision's meanwhile."""
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setenv("PRUNE_ENV_CACHE", f"{folder}/cache")
        roots = {name: Path(folder) / name for name in SETTINGS if name != "Digits"}
        trees.cifar10(roots["CIFAR10"], patch)
        trees.cifar100(roots["CIFAR100"], patch)
        trees.tiny_imagenet(roots["TinyImageNet"])
        trees.imagefolder(roots["ImageFolder"])
        trees.imagenet(roots["ImageNet"])
        yield {name: str(root) for name, root in roots.items()}


def episode(name: str, seed: int, **settings: Any) -> list[Numbers]:
    """A run of `prune_env/{name}`, and the beginning of the next."""
    env = gym.make(f"prune_env/{name}", **settings)
    core, rng = cast(PruneEnv, env.unwrapped), np.random.default_rng(11)
    seen, info = env.reset(seed=seed)
    steps, done = [{**_recipe(core), **_numbers(core, seen, info)}], False
    while not done:
        action = _draw(rng, seen)
        seen, reward, done, _, info = env.step(action)
        steps.append(_numbers(core, seen, {**info, "reward": reward}))
    seen, info = env.reset()
    return [*steps, _numbers(core, seen, info)]


def members() -> dict[str, list[Numbers]]:
    """What each member of a vector env does in its first steps, resets among them."""
    env = gym.make_vec("prune_env/Digits-v0", num_envs=3, **{**SETTINGS["Digits"], **MEMBERS})
    cores, rng = cast(Any, env.unwrapped).envs, np.random.default_rng(12)
    seen, infos = env.reset(seed=5)
    steps = [[_numbers(core, seen, _row(infos, k))] for k, core in enumerate(cores)]
    for _ in range(6):
        actions = [_draw(rng, seen) for _ in cores]
        seen, rewards, _, _, infos = env.step({name: np.stack([a[name] for a in actions]) for name in actions[0]})
        for k, core in enumerate(cores):
            steps[k].append(_numbers(core, seen, {**_row(infos, k), "reward": float(rewards[k])}))
    return {f"{VECTOR}, member {k}": steps[k] for k in range(len(cores))}


def learning() -> list[Numbers]:
    """A training by Stable-Baselines3, which seeds the global generators: they are put back."""
    env = gym.make("prune_env/DigitsSummary-v0", **{**SMALL, "train_size": 60, "model": "mlp:8"})
    before = torch.get_rng_state(), np.random.get_state(), random.getstate()  # noqa: NPY002
    try:
        policy: dict[str, Any] = {"net_arch": [16], "log_std_init": -1.0}
        model = PPO("MlpPolicy", env, n_steps=32, batch_size=16, n_epochs=3, seed=7, device="cpu", policy_kwargs=policy)
        steps = []
        for _ in range(3):
            if steps:
                model.learn(64, reset_num_timesteps=False)
            steps.append(_learned(model))
    finally:
        torch.set_rng_state(before[0])
        np.random.set_state(before[1])  # noqa: NPY002
        random.setstate(before[2])
    return steps


def _learned(model: PPO) -> Numbers:
    parameters = _vector(model.policy)
    asked: Any = np.linspace(-1, 1, len(FEATURES), dtype=np.float32)
    answers, _ = model.predict(asked, deterministic=True)
    episodes = list(model.ep_info_buffer or [])
    return {
        "steps": model.num_timesteps,
        "updates": model._n_updates,
        "episodes": len(episodes),
        "episode_steps": float(sum(one["l"] for one in episodes)),
        "learned_parameters": float(parameters.abs().sum()),
        "learned_norm": float(parameters.norm()),
        "reward": float(np.mean([one["r"] for one in episodes] or [0.0])),
        "val_rows": 260,
        "budget": SMALL["budget"],
        **{f"learned_{name}": float(answer) for name, answer in zip(RULE_PARAMETERS, answers, strict=True)},
    }


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


def _recipe(env: PruneEnv) -> Numbers:
    return {f"recipe_{k}": v for k, v in asdict(env.recipe).items()}


def _row(infos: Mapping[str, NDArray], k: int) -> dict[str, Any]:
    """Member k's info."""
    return {name: infos[name][k] for name in infos if f"_{name}" in infos and infos[f"_{name}"][k]}


def _numbers(env: PruneEnv, seen: Any, info: Mapping[str, Any]) -> Numbers:
    """A step's numbers: those of the info, means of what is observed, and of the network's weights."""
    trainer = env.trainer
    assert trainer is not None
    observed = trainer.observe()
    # `step` goes without saying; nothing was trained before step 0, and the recorded resets have these two
    left_out = {"step", "seed"} if info["step"] else info.keys() - {"val_accuracy", "seed", "reward"}
    numbers = {name: float(value) for name, value in info.items() if name not in left_out}
    for name in ("loss", "loss_var", "margin", "entropy", "el2n", "age", "correct"):
        numbers[name] = float(observed[name].mean(dtype=np.float64))
    for name in ("visits", "forgets"):
        numbers[name] = float(observed[name].sum(dtype=np.float64))
    numbers["weights"] = float(_vector(trainer.model).norm())
    if not isinstance(seen, Mapping):
        numbers |= {"summary_sum": float(seen.sum(dtype=np.float64)), "summary_norm": float(np.linalg.norm(seen))}
    numbers["rows"] = len(trainer.train_data)
    numbers["val_rows"] = len(trainer.val_data)
    numbers["budget"] = env.budget
    return numbers


def play(only: str = "", threads: int = 1) -> Recorded:
    """All trajectories, or those whose name begins with `only`."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    found: Recorded = {}
    try:
        faces = {f"{name}{face}": name for name in SETTINGS for face in ("-v0", "Summary-v0")}
        asked = {face: name for face, name in faces.items() if face.startswith(only)}
        with images() if asked else nullcontext({}) as roots:
            for face, name in asked.items():
                place = {"root": roots[name]} if name in roots else {}
                found[face] = episode(face, SEEDS[name], **SETTINGS[name], **place)
        if VECTOR.startswith(only):
            found |= members()
        if LEARNING.startswith(only):
            found[LEARNING] = learning()
    finally:
        torch.set_num_threads(before)
    return found


def read() -> tuple[Recorded, dict[str, dict[str, Any]], dict[str, str]]:
    """What was recorded: trajectories, defaults, versions."""
    held = json.loads(PATH.read_text())
    return held["trajectories"], held["defaults"], held["versions"]


def record() -> None:
    """Put what is found now in the place of what was recorded, a line a step."""
    lines = [f'{{"versions": {json.dumps(versions())},', f'"defaults": {json.dumps(defaults())},']
    trajectories = [f"{json.dumps(of)}: [\n" + ",\n".join(map(json.dumps, s)) + "\n]" for of, s in play().items()]
    io.write_atomic(PATH, "\n".join([*lines, '"trajectories": {', ",\n".join(trajectories), "}}", ""]).encode())


@contextmanager
def nudged(seed: int, size: float = 1e-6) -> Iterator[None]:
    """Initial weights that are off by about `size` of themselves: ten times the rounding of a float32."""
    build, generator = models.build, torch.Generator().manual_seed(seed)

    @functools.wraps(build)
    def nudge(*args: Any, **kwargs: Any) -> torch.nn.Module:
        model = build(*args, **kwargs)
        with torch.no_grad():
            for weights in model.parameters():
                weights.mul_(1.0 + size * torch.randn(weights.shape, generator=generator))
        return model

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(models, "build", nudge)
        yield


def distance(then: list[Numbers], now: list[Numbers]) -> float:
    """The largest difference of any entry, in tolerances; infinite for one that must be equal and is not."""
    if len(then) != len(now):
        return float("inf")
    largest = 0.0
    for a, b in zip(then, now, strict=True):
        for entry in a:
            if a[entry] != b[entry]:
                allowed = tolerance(entry, a)
                largest = max(largest, abs(a[entry] - b[entry]) / allowed if allowed else float("inf"))
    return largest


KERNELS = (
    {"ATEN_CPU_CAPABILITY": "default"},
    {"ATEN_CPU_CAPABILITY": "avx2"},
    {"ATEN_CPU_CAPABILITY": "avx512"},
    {"ONEDNN_MAX_CPU_ISA": "SSE41"},
    {"ONEDNN_MAX_CPU_ISA": "AVX2"},
    {"MKL_CBWR": "COMPATIBLE"},
    {"MKL_CBWR": "AVX2"},
    {"OMP_NUM_THREADS": "2"},
)


def spread(nudges: int) -> None:
    """Print how far the numbers are from those of this process, with other kernels and with nudged weights."""
    here = play()
    there: dict[str, Recorded] = {}
    code = "import json; from tests import golden; print(json.dumps(golden.play(threads={})))"
    for kernels in KERNELS:
        ((name, value),) = kernels.items()
        command = [sys.executable, "-c", code.format(value if name == "OMP_NUM_THREADS" else 1)]
        done = subprocess.run(command, env={**os.environ, **kernels}, capture_output=True, text=True, check=True)
        there[f"{name}={value}"] = json.loads(done.stdout)
    for seed in range(nudges):
        with nudged(seed):
            there[f"weights off by 1e-6, {seed}"] = play()
    worst: dict[str, float] = defaultdict(float)
    for way, numbers in there.items():
        for of, steps in numbers.items():
            far = distance(here[of], steps)
            worst[way], worst[of] = max(worst[way], far), max(worst[of], far)
    for name, far in worst.items():
        print(f"{name:40} {far:10.2g} of the tolerance")


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.helpers.golden", description="Compare with recorded numbers."
    )
    parser.add_argument("--record", action="store_true", help="record anew")
    parser.add_argument("--spread", type=int, nargs="?", const=20, help="with how many nudges of the weights (20)")
    given = parser.parse_args()
    if given.spread is not None:
        spread(given.spread)
        return 0
    if given.record:
        record()
        return 0
    recorded, _, then = read()
    differences = compare(recorded, play())
    print(complaint(differences, then) if differences else "every number is as it was recorded")
    return bool(differences)


if __name__ == "__main__":
    sys.exit(main())
