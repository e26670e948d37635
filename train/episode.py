"""One run: an agent trains one student to the end of its budget, and the test split is opened once."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
from typing import Any, cast

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

import agents
import prune_env
from prune_env import data
from prune_env.compute import SCORE_COST, TRAIN_COST
from prune_env.trainer import Trainer
from train import provenance

AGENT_STREAM = 4  # of random numbers, beside the trainer's four


@dataclasses.dataclass(frozen=True)
class Run:
    """What there is to do; small, so that it travels to a worker."""

    env: str  # id
    settings: dict[str, Any]  # keyword arguments of the environment, the budget among them
    agent: str  # spec
    seed: int

    def make_env(self) -> gym.Env:
        """The environment of this run; building it reads the data."""
        return gym.make(self.env, disable_env_checker=True, **self.settings)

    def configuration(self, env: gym.Env) -> dict[str, Any]:
        """Everything that a result depends on, but for agent, seed and code. `env` is from `make_env`."""
        plain = _unwrapped(env)
        return {
            "env": self.env,
            # where the data lies says nothing about a result: the digests stand for it
            "settings": {name: value for name, value in self.settings.items() if name != "root"},
            "recipe": dataclasses.asdict(plain.recipe),
            "device": plain.train_data.images.device.type,
            "data": {"train": plain.train_data.digest, "val": plain.val_data.digest},
        }

    def key(self, env: gym.Env) -> str:
        """SHA-256 (hex) that equal runs share: configuration, agent and its code, seed, code of the training."""
        parts = {
            "configuration": self.configuration(env),
            "agent": self.agent,
            "agent_digest": agents.source_digest(self.agent),
            "seed": self.seed,
            "version": prune_env.__version__,
            "code": provenance.decisive_digest(),
        }
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def play(run: Run, env: gym.Env) -> dict[str, Any]:
    """Do one run in `env` (from `run.make_env()`, or that of another run with the same settings).

    Returns:
        The record: plain numbers, strings, lists and dicts. Accuracies and shares lie in [0, 1], `spent` is in
        full-epoch equivalents, seconds are wall-clock.
    """
    agent = agents.make(run.agent)
    reset = getattr(agent, "reset", None)
    if reset is not None:
        reset()
    rng = np.random.default_rng([run.seed, AGENT_STREAM])
    plain = _unwrapped(env)
    start = time.perf_counter()
    observation, info = env.reset(seed=run.seed)
    curve: list[dict[str, float]] = []
    selecting = 0.0
    terminated = False
    while not terminated:
        before = time.perf_counter()
        action = agent(observation, rng)
        selecting += time.perf_counter() - before
        observation, reward, terminated, _, info = env.step(action)
        curve.append(_row(len(curve) + 1, float(reward), info))
    total = time.perf_counter() - start

    trainer = cast(Trainer, plain.trainer)
    results = {
        "val_accuracy": trainer.val_accuracy,
        "kept": float(np.mean([row["kept"] for row in curve])),
        "coverage": curve[-1]["coverage"],
        "visits_gini": gini(observation["visits"]),
        "class_balance": class_balance(observation["visits"], observation["label"]),
        "age": float(np.mean(observation["age"], dtype=np.float64)),
        "steps": len(curve),
        "diverged": bool(info["diverged"]),
        "spent": _spent(trainer),
        "seconds": {**trainer.ledger.seconds, "select": selecting, "total": total},
    }
    test = data.load_test(
        gym.spec(run.env).kwargs["dataset"],
        root=run.settings.get("root"),
        image_size=run.settings.get("image_size"),
    )
    tested = trainer.evaluate(test.to(trainer.device))
    results |= {
        "test_accuracy": tested.accuracy,
        "test_loss": tested.loss,
        "test_worst_class_accuracy": float(np.nanmin(tested.class_accuracy)),
    }
    configuration = run.configuration(env)
    return {
        "key": run.key(env),
        "agent": run.agent,
        "budget": plain.budget,
        "seed": run.seed,
        "configuration": configuration,
        "results": results,
        "curve": curve,
        "provenance": {
            **provenance.of_process(trainer.device),
            "bf16": trainer.bf16,
            "agent_digest": agents.source_digest(run.agent),
            "data": {**configuration["data"], "test": test.digest},
        },
    }


def _unwrapped(env: gym.Env) -> prune_env.PruneEnv:
    return cast(prune_env.PruneEnv, env.unwrapped)


def _row(step: int, reward: float, info: dict[str, Any]) -> dict[str, float]:
    """One point of the curve."""
    figures = ("val_accuracy", "train_accuracy", "kept", "mixed", "coverage", "lr")
    return {"step": step, "spent": info["total_spent"], **{f: float(info[f]) for f in figures}, "reward": reward}


def _spent(trainer: Trainer) -> dict[str, float]:
    """Full-epoch equivalents by class; `evaluate`, the validation, is free and not in `total`."""
    ledger = trainer.ledger
    return {
        "train": ledger.train / ledger.n,
        "score": ledger.score * SCORE_COST / (ledger.n * TRAIN_COST),
        "evaluate": ledger.evaluate * SCORE_COST / (ledger.n * TRAIN_COST),
        "total": ledger.spent,
    }


def gini(visits: NDArray) -> float:
    """Gini coefficient of `visits` (N,), counts: 0 all equal, 1 - 1/N all on one sample; 0 without visits."""
    ordered = np.sort(visits.astype(np.float64))
    n, total = len(ordered), ordered.sum()
    if total == 0.0:
        return 0.0
    return float((2 * np.arange(1, n + 1) - n - 1) @ ordered / (n * total))


def class_balance(visits: NDArray, labels: NDArray) -> dict[str, float]:
    """How often classes were visited, relative to their share of the data: smallest and largest of them.

    Args:
        visits: (N,) counts.
        labels: (N,) class indices. Classes without samples do not count.

    Returns:
        {"smallest", "largest"}: 1 is in proportion to the data, and what no visits at all give.
    """
    if not visits.any():
        return {"smallest": 1.0, "largest": 1.0}
    samples = np.bincount(labels)
    there = samples > 0
    per_sample = np.bincount(labels, weights=visits)[there] / samples[there]  # mean visits of a class's samples
    relative = per_sample / np.mean(visits, dtype=np.float64)
    return {"smallest": float(relative.min()), "largest": float(relative.max())}
