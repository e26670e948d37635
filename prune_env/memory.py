"""What an agent remembers from step to step, so that a run that was killed goes on with it."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, ClassVar


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
