"""One run on several devices: `torchrun --nproc-per-node 2 -m train.evaluate ...`, one process (rank) for each.

Rank 0 is the program: it plans, lets the agent decide, writes. The others take part in the training, and are told what
to do next: a run, an action. Whatever else a run depends on is drawn from its seed, in every rank alike.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing, suppress
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from agents.parts import Action, Observation
from train import checkpoints
from train.checkpoints import Keeper
from train.companion import AgentDied, AgentError, Companion
from train.episode import Run, play
from train.results import Record
from train.workers import DIED, Failure, Terms, _env_for

PATIENCE = 60.0  # seconds that ranks wait for each other, beside the agent's
INTERRUPTED = 130  # exit status after Ctrl-C
LOST = "a rank of this job is gone, or it was told to end; the same command goes on, on any number of ranks"


class _ToldToEnd(BaseException):
    """A signal asks this process to end."""


class _Dropped(Exception):
    """Rank 0 has given this run up: its agent failed."""


def launched() -> bool:
    """Whether this process is one of torchrun's."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def together(agent_timeout: float, program: Callable[[], int]) -> int:
    """Run `program` on rank 0, and take part in it on the others; return the exit status, 4 if a rank is gone.

    Args:
        agent_timeout: seconds that ranks wait for each other, beside PATIENCE: an agent may take that long.
        program: it does its runs by `outcomes`.
    """
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    signal.signal(signal.SIGTERM, _told_to_end)  # torchrun's way to end the others once a rank is gone
    status = 0
    try:
        dist.init_process_group(timeout=timedelta(seconds=agent_timeout + PATIENCE))
        if dist.get_rank():
            _follow()
        else:
            status = program()
            if status != INTERRUPTED:  # the others were, too
                _tell("end")
    except (RuntimeError, _ToldToEnd) as error:  # collectives raise RuntimeErrors; runs keep what is theirs
        print(f"error: {LOST} ({' '.join(str(error).split())})", file=sys.stderr, flush=True)
        return 4
    dist.destroy_process_group()
    return status


def _told_to_end(*_: object) -> None:
    raise _ToldToEnd("SIGTERM")


def outcomes(runs: Mapping[str, Run], terms: Terms) -> Generator[Record | Failure, None, None]:
    """Do `runs`, given by their keys, one after the other on all ranks; rank 0's side of it."""
    with closing(Companion(terms.agent_timeout)) as companion:
        for key, run in runs.items():
            folder = None if terms.folder is None else checkpoints.folder_of(terms.folder, key)
            results = [] if terms.folder is None else [os.path.realpath(terms.folder)]
            _tell("run", run)
            env, closed = _env_for(run)
            try:
                companion.begin(run.agent, run.seed, [*closed, *results])
                yield play(run, env, _Leader(companion), _Shared(folder, terms.checkpoint_seconds))
            except AgentError as error:
                _tell("drop")
                died = isinstance(error, AgentDied)
                yield Failure(key, run, DIED if died else str(error), error.traceback, final=not died)


def _follow() -> None:
    """Take part in the runs that rank 0 tells of, until it ends."""
    message = _hear()
    while message[0] != "end":
        if message[0] == "run":
            run = message[1]
            env, _ = _env_for(run)
            with suppress(_Dropped):
                play(run, env, _Follower(), _Told())
        message = _hear()


def _tell(*message: Any) -> None:
    dist.broadcast_object_list([message], src=0, device=torch.device("cpu"))


def _hear() -> tuple[Any, ...]:
    heard: list[Any] = [None]
    dist.broadcast_object_list(heard, src=0, device=torch.device("cpu"))
    return heard[0]


def _expect(kind: str) -> Any:
    message = _hear()
    if message[0] != kind:
        raise _Dropped
    return message[1]


class _Leader:
    """The agent of a run, on rank 0: what it does, the others are told."""

    def __init__(self, companion: Companion):
        self._companion = companion
        self.digest = companion.digest

    def act(self, observation: Observation) -> Action:
        action = self._companion.act(observation)
        _tell("action", action)
        return action

    def memory(self) -> bytes | None:
        return self._companion.memory()

    def recall(self, memory: bytes) -> None:
        self._companion.recall(memory)


class _Follower:
    """The same, on other ranks."""

    digest = ""

    def act(self, observation: Observation) -> Action:
        return _expect("action")

    def memory(self) -> bytes | None:
        return None

    def recall(self, memory: bytes) -> None:
        pass


class _Told(Keeper):
    """Nothing is kept on other ranks, and they go on from where rank 0 does."""

    def states(self) -> Iterator[Any]:
        while (state := _expect("state")) is not None:
            yield state


class _Shared(Keeper):
    """The checkpoints of a run, on rank 0: where the run goes on, the others do."""

    def states(self) -> Iterator[Any]:
        for state in super().states():
            _tell("state", state)
            yield state
        _tell("state", None)
