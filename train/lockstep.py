"""The same run on all ranks of a job: rank 0 has the agent and the checkpoints, and the others do what it tells them.

What they are told are Python objects, pickled: the ranks of a job are one program.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist

from agents.parts import Action, Observation
from train.checkpoints import Keeper
from train.companion import Companion


class Dropped(Exception):
    """Rank 0 has given the run up: its agent failed."""


def tell(*message: Any) -> None:
    """On rank 0: what the others hear next."""
    dist.broadcast_object_list([message], src=0, device=torch.device("cpu"))


def hear() -> tuple[Any, ...]:
    """On other ranks: what rank 0 tells next, a word and what goes with it."""
    heard: list[Any] = [None]
    dist.broadcast_object_list(heard, src=0, device=torch.device("cpu"))
    return heard[0]


def _expect(kind: str) -> Any:
    message = hear()
    if message[0] != kind:
        raise Dropped
    return message[1]


class Leader:
    """The agent of a run, on rank 0: what it does, the others are told."""

    def __init__(self, companion: Companion):
        self._companion = companion
        self.digest = companion.digest

    def act(self, observation: Observation) -> Action:
        action = self._companion.act(observation)
        tell("action", action)
        return action

    def memory(self) -> bytes | None:
        return self._companion.memory()

    def recall(self, memory: bytes) -> None:
        self._companion.recall(memory)


class Follower:
    """The same, on other ranks."""

    digest = ""

    def act(self, observation: Observation) -> Action:
        return _expect("action")

    def memory(self) -> bytes | None:
        return None

    def recall(self, memory: bytes) -> None:
        pass


class Told(Keeper):
    """Nothing is kept on other ranks, and they go on from where rank 0 does."""

    def states(self) -> Iterator[Any]:
        while (state := _expect("state")) is not None:
            yield state


class Shared(Keeper):
    """The checkpoints of a run, on rank 0: where the run goes on, the others do."""

    def states(self) -> Iterator[Any]:
        for state in super().states():
            tell("state", state)
            yield state
        tell("state", None)
