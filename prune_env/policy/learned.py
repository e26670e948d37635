"""Frozen policies: networks that choose the next step's rule by the features of the run. One is shipped."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prune_env.io import write_atomic
from prune_env.memory import Remembers
from prune_env.policy.features import FEATURES, extract_features, initial_history, update_history
from prune_env.policy.rules import RULE_PARAMETERS, apply_rule
from prune_env.sampling import Action, Observation
from prune_env.selection import select

SHIPPED = Path(__file__).with_name("shipped.npz")
FORMAT = "prune_env policy 2"
HIDDEN = {"tanh": np.tanh, "relu": lambda x: np.maximum(x, 0.0)}
OUTPUT = {"clip": lambda x: np.clip(x, -1.0, 1.0), "tanh": np.tanh}
Policy = Callable[[NDArray], NDArray]  # rule parameters (R,), or the number of an agent (), from features (D,)


@dataclass(frozen=True)
class Network:
    """A fully connected policy: features (D,) to rule parameters (R,).

    Args:
        layers: weight (outputs, inputs) and bias (outputs,) of each, float32.
        hidden: activation after each layer but the last, `tanh` or `relu`.
        output: activation after the last layer, `tanh` or `clip` (to [-1, 1]).
        card: where the policy comes from: tasks, seeds, commit, compute, results. Plain values.
    """

    layers: Sequence[tuple[NDArray, NDArray]]
    hidden: str
    output: str
    card: Mapping[str, Any]

    def __call__(self, features: NDArray, begun: object = None) -> NDArray:
        """Return parameters (…, R) for features (…, D). `begun` is for policies with memory."""
        x = features
        for weight, bias in self.layers[:-1]:
            x = HIDDEN[self.hidden](x @ weight.T + bias)
        weight, bias = self.layers[-1]
        return OUTPUT[self.output](x @ weight.T + bias)

    def save(self, path: str | Path) -> None:
        """Write an npz file, whole or not at all."""
        metadata = {"format": FORMAT, "hidden": self.hidden, "output": self.output, "card": self.card}
        metadata |= {"inputs": FEATURES, "outputs": RULE_PARAMETERS}
        arrays = {"metadata": np.array(json.dumps(metadata), "S")}
        for i, (weight, bias) in enumerate(self.layers):
            arrays |= {f"{i}.weight": weight, f"{i}.bias": bias}
        for name in arrays.keys() - {"metadata"}:  # products of other strides may have other last bits
            arrays[name] = np.ascontiguousarray(arrays[name], np.float32)
        file = BytesIO()
        np.savez(file, **arrays)  # pyright: ignore[reportArgumentType]
        write_atomic(path, file.getvalue())

    @classmethod
    def load(cls, path: str | Path) -> Network:
        """Read what `save` wrote.

        Raises:
            ValueError: the file is damaged, has another format, or was made for other features or rules.
            FileNotFoundError: there is none.
        """
        data = Path(path).read_bytes()
        try:
            arrays = dict(np.load(BytesIO(data)))
            metadata = json.loads(arrays.pop("metadata").item())
        except Exception as error:  # zipfile and numpy raise anything for damaged bytes
            raise ValueError(f"policy {path} is damaged, or no file of `prune-env learn`: {error}") from error
        if metadata.get("format") != FORMAT:
            raise ValueError(f"policy {path} has the format {metadata.get('format')!r}; it must be {FORMAT!r}")
        for name, own in (("inputs", FEATURES), ("outputs", RULE_PARAMETERS)):
            if tuple(metadata[name]) != own:
                differ = ", ".join(sorted(set(metadata[name]) ^ set(own))) or "in another order"
                raise ValueError(f"policy {path} has other {name} than this version, {differ}: train it anew")
        layers = [(arrays[f"{i}.weight"], arrays[f"{i}.bias"]) for i in range(len(arrays) // 2)]
        return cls(layers, metadata["hidden"], metadata["output"], metadata["card"])


@dataclass
class Learned(Remembers):
    """A trained policy: in every step it chooses a rule by the features of the run.

    It works for any number of samples and classes and any budget, and may blend samples (Mixup).

    Args:
        path: a policy of `prune-env learn`, or saved by `Network.save`; the shipped policy by default.

    Raises:
        ValueError, OSError: what `Network.load` raises.
    """

    remembers = ("history",)

    path: str = str(SHIPPED)

    def __post_init__(self) -> None:
        self._policy: Policy = Network.load(self.path)
        self.reset()

    def reset(self) -> None:
        """Begin an episode."""
        self.history = initial_history()

    def choose(self, observation: Observation) -> NDArray:
        """Return the rule parameters (R,) for the next step, and remember the observation."""
        chosen = self._policy(extract_features(observation, self.history))
        self.history = update_history(self.history, observation)
        return chosen

    def __call__(self, observation: Observation, rng: np.random.Generator) -> Action:
        action = apply_rule(observation, self.choose(observation), rng.random((len(observation["loss"]), 2)))
        return select(action["weight"], action["mixup"])
