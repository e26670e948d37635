"""What an agent remembers from step to step, so that a run that was killed goes on with it."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import torch


class Remembers:
    """Give an agent `state_dict()` and `load_state_dict()` for the attributes that it names in `remembers`.

    Each holds plain values (None, numbers, strings, arrays, and lists, tuples and dicts of these), or another agent.
    """

    remembers: ClassVar[tuple[str, ...]] = ()

    def state_dict(self) -> dict[str, Any] | None:
        """Return copies of what the attributes hold, None if an agent among them cannot tell its own state."""
        state: dict[str, Any] = {}
        for name in self.remembers:
            value = getattr(self, name, None)
            state[name] = state_of(value) if callable(value) else copy.deepcopy(value)
            if callable(value) and state[name] is None:
                return None
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` of an agent with the same options returned."""
        for name in self.remembers:
            value = getattr(self, name, None)
            if callable(value):
                load_state(value, state[name])
            else:
                setattr(self, name, copy.deepcopy(state[name]))


def reset(agent: Any) -> None:
    """Start an agent anew, if it keeps state."""
    forget = getattr(agent, "reset", None)
    if forget is not None:
        forget()


def state_of(agent: Any) -> dict[str, Any] | None:
    """Return the agent's `state_dict()`, {} for a frozen dataclass, which remembers nothing, and None for others."""
    if callable(getattr(agent, "state_dict", None)) and callable(getattr(agent, "load_state_dict", None)):
        return agent.state_dict()
    parameters = getattr(type(agent), "__dataclass_params__", None)
    return {} if parameters is not None and parameters.frozen else None


def load_state(agent: Any, state: Mapping[str, Any]) -> None:
    """Let an agent go on from what `state_of` returned for another one with the same options."""
    if callable(getattr(agent, "load_state_dict", None)):
        agent.load_state_dict(state)


_ARRAY = "numpy array"


def arrays_to_tensors(state: Any) -> Any:
    """Return a state in which tensors stand for arrays and numbers of numpy, which `torch.load` refuses by default."""
    if isinstance(state, np.ndarray | np.generic):
        return {_ARRAY: torch.tensor(state)}
    if isinstance(state, Mapping):
        return {name: arrays_to_tensors(value) for name, value in state.items()}
    if isinstance(state, list | tuple):
        return type(state)(arrays_to_tensors(value) for value in state)
    return state


def tensors_to_arrays(state: Any) -> Any:
    """Return the state that `arrays_to_tensors` was given; its arrays share no memory with this one."""
    if isinstance(state, Mapping):
        if list(state) == [_ARRAY]:
            return state[_ARRAY].cpu().numpy().copy()[()]  # a number, if it has no axis
        return {name: tensors_to_arrays(value) for name, value in state.items()}
    if isinstance(state, list | tuple):
        return type(state)(tensors_to_arrays(value) for value in state)
    return state
