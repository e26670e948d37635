"""One run on several devices: `torchrun --nproc-per-node 2 -m train.evaluate ...`, a process (rank) for each.

Every rank runs the whole program: it plans, and in each run asks the agent itself, about the same statistics and with
the same generator. In training only gradients and statistics are exchanged, see `prune_env.ranks`. Rank 0 alone reads
and writes results, prints, and keeps checkpoints; it tells the others what it has read.
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
from train.execution.agent import late
from train.execution.checkpoints import Checkpoint, Note
from train.execution.run import NOTE, Outcome, Run, Terms, perform

PATIENCE = timedelta(seconds=300)  # that ranks wait for each other in training
WAIT = timedelta(days=7)  # and for what may take long: images that are decoded, a whole plan

T = TypeVar("T")


class Terminated(BaseException):
    """A signal asks this process to end."""


def _terminate(*_: object) -> None:
    raise Terminated("this one was told to end")


def active() -> bool:
    """Say whether this process is one of those that torchrun has started."""
    return "TORCHELASTIC_RUN_ID" in os.environ


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
    signal.signal(signal.SIGTERM, _terminate)  # torchrun's way to end the others once a rank is gone
    try:
        dist.init_process_group(timeout=PATIENCE)
        status = program()
        if status in (0, 1):  # else nobody waits for anybody
            dist.barrier(group=_group())  # torchrun ends the others once one is gone: rank 0 has a report to write
            dist.destroy_process_group()
        return status
    except (RuntimeError, Terminated) as error:  # collectives raise RuntimeErrors; runs keep what is theirs
        lost = f"a rank of this job is lost, or cannot go on: {' '.join(str(error).split())}"
        stays = "what is there stays, and the same command goes on, on any number of ranks"
        print(f"error: {lost}; {stays}", file=sys.stderr, flush=True)
        return 4


@functools.cache
def _group() -> Any:
    """Return the group for what ranks tell each other beside training; all ranks ask for it at the same point."""
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


def outcomes(runs: Callable[[], Iterable[Run]], terms: Terms) -> Generator[Outcome, None, None]:
    """Yield what each run of rank 0 came to, one after the other, on every rank.

    Raises:
        RuntimeError: what is not the agent's ends the program.
    """
    for run in from_first(lambda: list(runs())):
        checkpoint = _Shared(checkpoints.folder_of(terms.folder, run.key), terms.checkpoint_seconds)
        try:
            if dist.get_rank() == 0:
                checkpoint.path.parent.mkdir(parents=True, exist_ok=True)
            note = checkpoint.path.with_name(NOTE)
            told = from_first(functools.partial(late, note))
            outcome = perform(run, terms, checkpoint, note if dist.get_rank() == 0 else None, told)
        except OSError as error:
            raise RuntimeError(str(error)) from error
        yield outcome


class _Shared(Checkpoint):
    """The checkpoint of a run, on rank 0: the others go on from it too."""

    def load(self) -> Any:
        """As `Checkpoint`."""
        return from_first(super().load)

    def tell(self, note: Note) -> None:
        """As `Checkpoint`, on rank 0."""
        if dist.get_rank() == 0:
            super().tell(note)

    def due(self) -> bool:
        """As `Checkpoint`; never on other ranks."""
        return dist.get_rank() == 0 and super().due()

    def forget(self) -> None:
        """As `Checkpoint`."""
        if dist.get_rank() == 0:
            super().forget()
