"""The same run on all ranks of a job: rank 0 has the agent and the checkpoints, and the others do what it tells them.

What they are told are Python objects, pickled: the ranks of a job are one program.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from prune_env.sampling import Action, Observation
from train.execution.checkpoints import Keeper
from train.execution.companion import Companion

WAIT = timedelta(days=7)


class Dropped(Exception):
    """Rank 0 has given the run up: its agent failed."""


class ToldToEnd(BaseException):
    """A signal asks this process to end."""


def told_to_end(*_: object) -> None:
    """A handler of signals."""
    raise ToldToEnd("this one was told to end")


def own_device(device: str) -> bool:
    """Have a CUDA device of its own be this rank's, if the program's `device` means CUDA; whether there is one."""
    if device != "cuda" and not (device == "auto" and torch.cuda.is_available()):
        return True
    own = int(os.environ["LOCAL_RANK"])
    if own >= torch.cuda.device_count():
        return False
    torch.cuda.set_device(own)
    return True


class Line:
    """From rank 0 to the others. Long waits are for this: for an agent, a plan, images that are decoded."""

    def __init__(self) -> None:
        self._group: Any = dist.new_group(backend="gloo", timeout=WAIT)

    def tell(self, *message: Any) -> None:
        """On rank 0: what the others hear next."""
        dist.broadcast_object_list([message], src=0, group=self._group, device=torch.device("cpu"))

    def hear(self) -> tuple[Any, ...]:
        """On other ranks: what rank 0 tells next, a word and what goes with it."""
        heard: list[Any] = [None]
        dist.broadcast_object_list(heard, src=0, group=self._group, device=torch.device("cpu"))
        return heard[0]

    def expect(self, kind: str) -> Any:
        """What goes with the next word, which is this one. Raises Dropped if it is not."""
        message = self.hear()
        if message[0] != kind:
            raise Dropped
        return message[1]

    def meet(self) -> None:
        """Wait until all ranks are here."""
        dist.barrier(group=self._group)


@functools.cache
def line() -> Line:
    """That of this process; all ranks ask for it at the same point, first."""
    return Line()


class Leader:
    """The agent of a run, on rank 0: what it does, the others are told."""

    def __init__(self, companion: Companion, line: Line):
        self._companion = companion
        self._line = line
        self.digest = companion.digest

    def act(self, observation: Observation) -> Action:
        action = self._companion.act(observation)
        self._line.tell("action", action)
        return action

    def memory(self) -> bytes | None:
        return self._companion.memory()

    def recall(self, memory: bytes) -> None:
        self._companion.recall(memory)


class Follower:
    """The same, on other ranks."""

    digest = "rank 0's"  # its code is never imported here

    def __init__(self, line: Line):
        self._line = line

    def act(self, observation: Observation) -> Action:
        return self._line.expect("action")

    def memory(self) -> bytes | None:
        return None

    def recall(self, memory: bytes) -> None:
        pass


class Told(Keeper):
    """Nothing is kept on other ranks, and they go on from where rank 0 does."""

    def __init__(self, line: Line):
        super().__init__()
        self._line = line

    def states(self) -> Iterator[Any]:
        while (state := self._line.expect("state")) is not None:
            yield state


class Shared(Keeper):
    """The checkpoints of a run, on rank 0: where the run goes on, the others do."""

    def __init__(self, folder: Path | None, every: float, of: str, line: Line):
        super().__init__(folder, every, of)
        self._line = line

    def states(self) -> Iterator[Any]:
        for state in super().states():
            self._line.tell("state", state)
            yield state
        self._line.tell("state", None)
