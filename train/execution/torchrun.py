"""One run on several devices: `torchrun --nproc-per-node 2 -m train.evaluate ...`, a process (rank) for each.

Every rank runs the whole program: it plans, and in each run asks the agent itself, about the same statistics and with
the same generator. In training only gradients and statistics are exchanged, see `prune_env.ranks`. Rank 0 alone reads
and writes results, prints, and keeps checkpoints; what it has read it tells the others.
"""

from __future__ import annotations

import functools
import os
import signal
import sys
from collections.abc import Callable, Generator, Iterable
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from train.execution import checkpoints
from train.execution.agent import AgentError, Seat, TimeLimit
from train.execution.checkpoints import Checkpoint
from train.execution.executors import Outcome
from train.execution.run import CHANGED, NOTE, Failure, Run, Terms, environment, play

PATIENCE = timedelta(seconds=300)  # that ranks wait for each other in training
WAIT = timedelta(days=7)  # and for what may take long: images that are decoded, a whole plan
STAYS = "what is there stays, and the same command goes on, on any number of ranks"

T = TypeVar("T")


class ToldToEnd(BaseException):
    """A signal asks this process to end."""


def _told_to_end(*_: object) -> None:
    raise ToldToEnd("this one was told to end")


def together(device: str, program: Callable[[], int]) -> int:
    """Run `program` on every rank; return its exit status, 4 if a rank is lost.

    Args:
        device: as given to the program; on CUDA every rank has one of its own.
        program: it does its runs by `outcomes`.
    """
    if device == "cuda" or (device == "auto" and torch.cuda.is_available()):
        own = int(os.environ["LOCAL_RANK"])
        if own >= torch.cuda.device_count():
            print("error: torchrun started more processes here than there are CUDA devices", file=sys.stderr)
            return 2
        torch.cuda.set_device(own)
    signal.signal(signal.SIGTERM, _told_to_end)  # torchrun's way to end the others once a rank is gone
    try:
        dist.init_process_group(timeout=PATIENCE)
        status = program()
        if status in (0, 1):  # else nobody waits for anybody
            dist.barrier(group=_group())  # torchrun ends the others once one is gone: rank 0 has a report to write
            dist.destroy_process_group()
        return status
    except (RuntimeError, ToldToEnd) as error:  # collectives raise RuntimeErrors; runs keep what is theirs
        why = " ".join(str(error).split())
        print(f"error: a rank of this job is lost, or cannot go on: {why}; {STAYS}", file=sys.stderr, flush=True)
        return 4


@functools.cache
def _group() -> Any:
    """For what ranks tell each other beside training; all ranks ask for it at the same point, first."""
    return dist.new_group(backend="gloo", timeout=WAIT)


def from_first(make: Callable[[], T]) -> T:
    """Return what `make` returns on rank 0, on every rank. An exception there is raised here too."""
    told: list[Any] = [None, None]
    if dist.get_rank() == 0:
        try:
            told[0] = make()
        except Exception as error:
            told[1] = error
    dist.broadcast_object_list(told, src=0, group=_group(), device=torch.device("cpu"))
    if told[1] is not None:
        raise told[1]
    return told[0]


def after_first(make: Callable[[], T]) -> T:
    """Return what `make` returns here, called on the other ranks once rank 0 is done: it may fetch or decode images."""
    made: list[T] = []
    from_first(lambda: made.append(make()))
    return made[0] if made else make()


def outcomes(runs: Iterable[Run], terms: Terms) -> Generator[Outcome, None, None]:
    """Yield what each run came to, one after the other, on every rank. What is not the agent's ends the program."""
    for run in runs:
        checkpoint = _Shared(run, terms)
        note = checkpoint.folder / NOTE if dist.get_rank() == 0 else None
        dist.barrier(group=_group())
        try:
            from_first(functools.partial(_raise_if_late, note))
            limit = TimeLimit(terms.agent_timeout, note)
            try:
                record = play(run, environment(run), Seat(run.agent, run.seed, limit), checkpoint)
            finally:
                limit.close()
        except AgentError as error:
            yield Failure(run, str(error), error.traceback, final=True)
        except OSError as error:
            raise RuntimeError(str(error)) from error
        else:
            yield record if record["key"] == run.key else Failure(run, CHANGED, "")


def _raise_if_late(note: Any) -> None:
    if late := TimeLimit.told(note):
        raise late


class _Shared(Checkpoint):
    """The checkpoint of a run, on rank 0: where that goes on, the others do."""

    def __init__(self, run: Run, terms: Terms):
        assert terms.folder is not None
        self.folder = checkpoints.folder_of(terms.folder, run.key)
        super().__init__(self.folder, terms.checkpoint_seconds)

    def load(self) -> Any:
        """As `Checkpoint`."""
        return from_first(super().load)

    def due(self) -> bool:
        """As `Checkpoint`; never on other ranks."""
        return dist.get_rank() == 0 and super().due()

    def forget(self) -> None:
        """As `Checkpoint`."""
        if dist.get_rank() == 0:
            super().forget()
