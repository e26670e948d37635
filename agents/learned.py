"""Frozen policies, trained by `python -m train.learn`: from what a run shows to the numbers of a rule.

Those of Stable-Baselines3 can also choose among agents, as in `prune_env.policy.wrappers.AgentChoice`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile, ZipFile

import numpy as np
from numpy.typing import NDArray

from agents.switches import reset
from prune_env import select
from prune_env.memory import load_state, state_of
from prune_env.policy import encoding
from prune_env.sampling import Action, Agent, Observation, check

SHIPPED = Path(__file__).with_name("policies") / "digits.safetensors"
FORMAT = "prune_env policy 1"
HIDDEN = {"tanh": np.tanh, "relu": lambda x: np.maximum(x, 0.0)}
Policy = Callable[[NDArray], NDArray]  # numbers (R,), or of an agent (), from a summary (D,)
OUTPUT = {"clip": lambda x: np.clip(x, -1.0, 1.0), "tanh": np.tanh}
# the module of a policy in SB3's zip -> module and class of an algorithm that predicts with it
SB3 = {
    "stable_baselines3.common.policies": ("stable_baselines3", "PPO"),
    "stable_baselines3.dqn.policies": ("stable_baselines3", "DQN"),
    "stable_baselines3.sac.policies": ("stable_baselines3", "SAC"),
    "stable_baselines3.td3.policies": ("stable_baselines3", "TD3"),
    "sb3_contrib.common.recurrent.policies": ("sb3_contrib", "RecurrentPPO"),
    "sb3_contrib.ars.policies": ("sb3_contrib", "ARS"),
}


@dataclass(frozen=True)
class Network:
    """A fully connected policy: summaries (D,) to the numbers (R,) of a rule.

    Args:
        layers: weight (outputs, inputs) and bias (outputs,) of each, float32.
        hidden: what follows each layer but the last, a key of HIDDEN.
        output: what follows the last, a key of OUTPUT.
        card: where the policy comes from: tasks, seeds, commit, compute, results. Plain values.
    """

    layers: Sequence[tuple[NDArray, NDArray]]
    hidden: str
    output: str
    card: Mapping[str, Any]

    def __call__(self, summary: NDArray, begun: object = None) -> NDArray:
        """Numbers (…, R) for summaries (…, D); which runs have just `begun` is nothing to a policy without memory."""
        x = summary
        for weight, bias in self.layers[:-1]:
            x = HIDDEN[self.hidden](x @ weight.T + bias)
        weight, bias = self.layers[-1]
        return OUTPUT[self.output](x @ weight.T + bias)

    def save(self, path: str | Path) -> None:
        """Write a safetensors file, whole or not at all; `load` notices every byte that changes."""
        from prune_env.io import write_atomic

        write_atomic(path, self.content())

    def content(self) -> bytes:
        """The file that `save` writes."""
        from safetensors.numpy import save

        tensors = {}
        for i, (weight, bias) in enumerate(self.layers):
            tensors |= {f"{i}.weight": weight, f"{i}.bias": bias}
        # safetensors writes memory as it lies, whatever the strides
        tensors = {name: np.ascontiguousarray(values, np.float32) for name, values in tensors.items()}
        said = {"format": FORMAT, "hidden": self.hidden, "output": self.output, "card": json.dumps(self.card)}
        said |= {"inputs": json.dumps(encoding.SUMMARY), "outputs": json.dumps(encoding.RULE)}
        return save(tensors, {**said, "sha256": _digest(said, tensors)})

    @classmethod
    def load(cls, path: str | Path) -> Network:
        """Read what `save` wrote.

        Raises:
            ValueError: the file is damaged, of another format, or made for other summaries or rules.
            FileNotFoundError: there is none.
        """
        from safetensors import SafetensorError
        from safetensors.numpy import load

        data = Path(path).read_bytes()
        try:
            tensors, said = load(data), _said(data)
        except (SafetensorError, KeyError, ValueError) as error:  # KeyError: of a type that numpy does not have
            raise ValueError(f"policy {path} is damaged, or no safetensors file: {error}") from error
        if said.get("format") != FORMAT:
            raise ValueError(f"policy {path} has the format {said.get('format')!r}; it must be {FORMAT!r}")
        digest = said.pop("sha256", None)
        if digest != _digest(said, tensors):
            raise ValueError(f"policy {path} is damaged: its content does not match its digest")
        for name, own in (("inputs", encoding.SUMMARY), ("outputs", encoding.RULE)):
            if tuple(json.loads(said[name])) != own:
                raise ValueError(f"policy {path} has other {name} than this version of prune_env; train it anew")
        layers = [(tensors[f"{i}.weight"], tensors[f"{i}.bias"]) for i in range(len(tensors) // 2)]
        network = cls(layers, said["hidden"], said["output"], json.loads(said["card"]))
        if wrong := network.wrong():
            raise ValueError(f"policy {path}: {wrong}")
        return network

    def wrong(self) -> str | None:
        """What keeps this from being a policy, in words; None if nothing does."""
        for name, known in (("hidden", HIDDEN), ("output", OUTPUT)):
            if getattr(self, name) not in known:
                return f"{name} is {getattr(self, name)!r}; it must be {' or '.join(known)}"
        numbers = len(encoding.SUMMARY)
        for i, (weight, bias) in enumerate(self.layers):
            if weight.ndim != 2 or weight.shape[1] != numbers or bias.shape != weight.shape[:1]:
                return f"layer {i} has weights {weight.shape} and biases {bias.shape}; its inputs are {numbers}"
            if not (np.isfinite(weight).all() and np.isfinite(bias).all()):
                return f"layer {i} has weights that are not finite"
            numbers = len(bias)
        if not self.layers or numbers != len(encoding.RULE):
            return f"{len(self.layers)} layers end in {numbers} numbers; they must end in {len(encoding.RULE)}"
        return None


def _said(data: bytes) -> dict[str, str]:
    """The metadata of a safetensors file. Raises ValueError if its header is not padded as it is written."""
    header = data[8 : 8 + int.from_bytes(data[:8], "little")]
    if not header.rstrip(b" ").endswith(b"}"):  # other blanks are allowed, but are not what was written
        raise ValueError("the header is not padded with spaces")
    return json.loads(header).get("__metadata__", {})


def _digest(said: Mapping[str, str], tensors: Mapping[str, NDArray]) -> str:
    digest = hashlib.sha256(json.dumps(said, sort_keys=True).encode())
    for name in sorted(tensors):
        digest.update(f"{name} {tensors[name].shape} {tensors[name].dtype}".encode() + tensors[name].tobytes())
    return digest.hexdigest()


@dataclass(kw_only=True)
class Learned:
    """The rule, or the agent, that a trained policy chooses anew in every step, from `encoding.summarize` of the run.

    It works for any number of samples and classes and any budget. Nothing is drawn but by what is chosen. Agents act as
    in `AgentChoice`: each sees the observations of the steps that it is chosen for, and no others.

    Args:
        path: a policy of `train.learn`, or a zip of Stable-Baselines3; the shipped policy by default.
        trust: a zip of Stable-Baselines3 is loaded by unpickling, which runs whatever code it holds; True says
            that you know where it is from.
        agents: those that a policy with `Discrete(A)` actions chooses among, A in the order of its training.

    Raises:
        ValueError: a zip without `trust`, a file that cannot be read, more agents or fewer than the policy chooses
            among, or what `Network.load` raises.
    """

    path: str = str(SHIPPED)
    trust: bool = False
    agents: Sequence[Agent] = ()

    def __post_init__(self) -> None:
        check("trust", self.trust, bool)
        try:
            self._start, choices = self._load()
        except (OSError, ImportError) as error:  # the latter without the project's extra `train`
            raise ValueError(f"policy {self.path} cannot be read: {error}") from error
        if len(self.agents) != choices:
            needs = f"it chooses among {choices}: name them, in the order of its training, by agents=FIRST/SECOND/..."
            raise ValueError(
                f"policy {self.path} is given {len(self.agents)} agents, but "
                + (needs if choices else "it chooses rules: leave out agents=...")
            )
        self.reset()

    def _load(self) -> tuple[Callable[[], Policy], int]:
        """What starts an episode, and how many agents the policy chooses among, 0 if it chooses rules."""
        if Path(self.path).suffix != ".zip":
            network = Network.load(self.path)
            return lambda: network, 0
        if not self.trust:
            raise ValueError(
                f"policy {self.path} is a zip of Stable-Baselines3, and loading one runs code that it holds: say "
                f"learned:{self.path},trust=True if you know where it is from, or use the safetensors file beside it"
            )
        return _sb3(self.path)

    def reset(self) -> None:
        self._policy = self._start()
        self._past = encoding.begin()
        for agent in self.agents:
            reset(agent)

    def state_dict(self) -> dict[str, Any] | None:
        """Return what it remembers of the episode, None if one of its agents cannot tell its own state."""
        memory = self._policy.memory if isinstance(self._policy, Recurrent) else None
        of_agents = [state_of(agent) for agent in self.agents]
        return None if None in of_agents else {"past": self._past, "memory": memory, "agents": of_agents}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Remember what `state_dict` of the same policy told."""
        self._past = state["past"]
        if isinstance(self._policy, Recurrent):
            self._policy.memory = state["memory"]
        for agent, of_agent in zip(self.agents, state["agents"], strict=True):
            load_state(agent, of_agent)

    def __call__(self, observation: Observation, rng: np.random.Generator) -> Action:
        numbers = self._policy(encoding.summarize(observation, self._past))
        self._past = encoding.remember(self._past, observation)
        if self.agents:
            return self.agents[int(numbers)](observation, rng)
        action = encoding.decode_rule(observation, numbers, rng.random((len(observation["loss"]), 2)))
        return select(action["weight"], action["mixup"])


@dataclass
class Recurrent:
    """A policy of Stable-Baselines3 in one episode; most remember nothing."""

    model: Any
    memory: tuple[NDArray, ...] | None = None  # None at the start of the episode

    def __call__(self, summary: NDArray) -> NDArray:
        first = np.array([self.memory is None])
        numbers, state = self.model.predict(summary, state=self.memory, episode_start=first, deterministic=True)
        self.memory = state or ()
        return numbers


def _sb3(path: str) -> tuple[Callable[[], Policy], int]:
    """As `Learned._load`, for an SB3 policy that was trained on summaries, and on rules or a choice of agents."""
    import importlib

    from gymnasium.spaces import Discrete

    try:
        with ZipFile(path) as file:
            module = str(json.loads(file.read("data"))["policy_class"]["__module__"])
    except (BadZipFile, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"policy {path} is damaged, or no zip of Stable-Baselines3: {error}") from error
    if module not in SB3:
        raise ValueError(f"policy {path} is of {module}; known are {', '.join(SB3)}")
    package, name = SB3[module]
    try:
        model = getattr(importlib.import_module(package), name).load(path, device="cpu")
    except Exception as error:  # what unpickling a damaged file raises is anything
        raise ValueError(f"policy {path} cannot be loaded: {type(error).__name__}: {error}") from error
    actions = model.action_space
    choices = int(actions.n) if isinstance(actions, Discrete) and actions.start == 0 else 0
    of_summaries = model.observation_space.shape == (len(encoding.SUMMARY),)
    if not of_summaries or not (choices or actions.shape == (len(encoding.RULE),)):
        raise ValueError(
            f"policy {path} was not trained on summaries and rules, or agents: use prune_env/DigitsSummary-v0, or "
            "SummaryObservation(AgentChoice(env, agents))"
        )

    return lambda: Recurrent(model), choices
