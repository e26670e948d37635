"""Observations of runs without a run: random statistics, later ones, padded ones, hostile ones."""

import math
from typing import Any

import numpy as np
from hypothesis import strategies as st

from prune_env.stats import BOUNDS

Obs = dict[str, np.ndarray]
FIGURES = ("spent", "budget", "val_accuracy", "train_accuracy")
OF_THE_RUN = (*FIGURES, "val_class_accuracy")  # entries that are no statistics of samples
CLASSES = 10  # at most; accuracies of classes that no sample has are not looked at
HOSTILE = ("low", "high", "tiny", "huge", "random")


def f32(values) -> np.ndarray:
    return np.asarray(values, np.float32)


def observe(seed: int, n: int = 60, classes: int = 5, unseen: float = 0.2) -> Obs:
    """Random statistics as a run in its middle has them: some samples unseen, some just measured, uneven classes."""
    rng = np.random.default_rng(seed)
    seen = rng.random(n) >= unseen
    mean = np.where(seen, rng.gamma(1.0, 0.8, n), math.log(classes))
    stats = {
        "loss": mean + rng.random(n),
        "loss_mean": mean,
        "loss_var": seen * rng.gamma(1.0, 0.3, n),
        "confidence": rng.random(n),
        "margin": rng.uniform(-1, 1, n),
        "margin_mean": seen * rng.uniform(-1, 1, n),
        "entropy": rng.random(n),
        "el2n": rng.uniform(0, 1.4, n),
        "correct": seen & (rng.random(n) < 0.6),
        "forgets": seen * rng.poisson(0.5, n),
        "visits": seen * rng.integers(1, 6, n),
        "age": np.where(seen, rng.choice([0.0, 0.3, 1.1, 2.5], n), 3.0),
    }
    figures = {"spent": 0.1 + 0.4 * rng.random(), "budget": 8.0, "val_accuracy": 0.6, "train_accuracy": rng.random()}
    obs: Obs = {name: f32(values) for name, values in stats.items()}
    obs |= {name: f32([value]) for name, value in figures.items()}
    obs["label"] = np.minimum(rng.geometric(0.4, n) - 1, classes - 1).astype(np.int64)
    obs["val_class_accuracy"] = f32(rng.random(CLASSES))
    return obs


def first_step(n: int = 60, classes: int = 5) -> Obs:
    """What `reset` observes: a uniform prediction for everything."""
    start = {"loss": math.log(classes), "loss_mean": math.log(classes), "entropy": 1.0, "confidence": 1 / classes}
    start |= {"el2n": math.sqrt(1 - 1 / classes)}
    obs: Obs = {name: np.full(n, start.get(name, 0.0), np.float32) for name in BOUNDS | {"age": 0}}
    obs |= {name: f32([0.0]) for name in FIGURES} | {"budget": f32([10.0]), "val_accuracy": f32([0.11])}
    obs["label"] = np.arange(n) % classes
    obs["val_class_accuracy"] = np.full(CLASSES, 0.11, np.float32)
    return obs


def later(obs: Obs, seed: int, keep: float = 0.4, mix: float = 0.3) -> Obs:
    """An observation after `obs`, when a share was kept and some of that was blended."""
    rng = np.random.default_rng(seed)
    n = len(obs["label"])
    kept = rng.random(n) < keep
    measured = kept & (rng.random(n) >= mix)
    new = dict(obs)
    new["visits"] = f32(obs["visits"] + kept)
    new["age"] = f32(np.where(measured, 0.0, obs["age"] + np.float32(0.4)))
    new["loss_mean"] = f32(np.where(measured, rng.gamma(1.0, 0.5, n), obs["loss_mean"]))
    new["correct"] = f32(np.where(measured, rng.random(n) < 0.7, obs["correct"]))
    new["spent"] = obs["spent"] + np.float32(0.05)
    new["val_accuracy"] = f32([rng.uniform(0.2, 0.9)])
    new["train_accuracy"] = f32([rng.uniform(0.2, 0.9)])
    new["margin_mean"] = f32(np.where(measured, rng.uniform(-1, 1, n), obs["margin_mean"]))
    new["val_class_accuracy"] = f32(rng.random(CLASSES))
    return new


def change(obs: Obs, rows) -> Obs:
    """Rows taken out, repeated or put in another order."""
    return {name: values if name in OF_THE_RUN else values[rows] for name, values in obs.items()}


def pad(obs: Obs, n: int, seed: int = 0) -> Obs:
    """Rows that are not there, among the others' end, of statistics that mean nothing."""
    rng = np.random.default_rng(seed)
    more = n - len(obs["label"])
    garbage = {name: rng.choice([0.0, 0.5, high, np.nan], more) for name, (_, high) in BOUNDS.items()}
    garbage |= {"age": rng.choice([0.0, 7.0], more), "label": np.full(more, -1)}
    return {
        name: values if name in OF_THE_RUN else np.concatenate([values, garbage[name].astype(values.dtype)])
        for name, values in obs.items()
    }


def stack(observations: list[Obs]) -> Obs:
    return {name: np.stack([obs[name] for obs in observations]) for name in observations[0]}


@st.composite
def hostile(draw) -> Obs:
    """Columns at a bound, of the smallest or largest floats there are; one sample, one class, none seen."""
    n = draw(st.sampled_from([1, 2, 3, 11]))
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    obs: Obs = {}
    for name, (low, high) in {**BOUNDS, "age": (0.0, 1e6)}.items():
        kind = draw(st.sampled_from(HOSTILE))
        largest = 3e38 if name.startswith("loss") else high
        column: dict[str, Any] = {"low": low, "high": high, "tiny": 1e-45, "huge": rng.choice([0.0, largest], n)}
        obs[name] = f32(np.broadcast_to(column.get(kind, rng.uniform(low, high, n)), n))
    for name in FIGURES:
        obs[name] = f32([draw(st.sampled_from([0.0, 1e-45, 0.5, 1.0]))])
    obs["budget"] = f32([draw(st.sampled_from([1e-3, 1.0, 1e6]))])
    obs["label"] = rng.integers(0, draw(st.sampled_from([1, 2, 1000])), n)
    obs["val_class_accuracy"] = f32(rng.choice([0.0, 1e-45, 0.5, 1.0], 1000))
    return obs
