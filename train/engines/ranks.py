"""One run on several devices: `torchrun --nproc-per-node 2 -m train.evaluate ...`, a process (rank) for each.

Rank 0 is the program: it plans, lets the agent decide, writes. The others take part in the training, and are told what
to do next: a run, an action. Whatever else a run depends on is drawn from its seed, in every rank alike.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Generator, Mapping
from contextlib import closing, suppress
from datetime import timedelta

import torch
import torch.distributed as dist

from train import checkpoints
from train.companion import AgentDied, AgentError, Companion
from train.engines import Where
from train.episode import Run, play
from train.lockstep import Dropped, Follower, Leader, Shared, Told, hear, tell
from train.results import Record
from train.workers import CHANGED, DIED, Failure, Terms, environment

PATIENCE = 60.0  # seconds that ranks wait for each other, beside the agent's
DAY = 24 * 60 * 60.0
INTERRUPTED = 130  # exit status after Ctrl-C
STAYS = "what is there stays, and the same command goes on, on any number of ranks"


class _ToldToEnd(BaseException):
    """A signal asks this process to end."""


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
        dist.init_process_group(timeout=timedelta(seconds=min(max(0.0, agent_timeout), DAY) + PATIENCE))
        if dist.get_rank():
            _follow()
        else:
            status = program()
            if status != INTERRUPTED:  # the others were, too
                tell("end")
    except (RuntimeError, _ToldToEnd) as error:  # collectives raise RuntimeErrors; runs keep what is theirs
        print(
            f"error: a rank of this job is lost: {' '.join(str(error).split())}; {STAYS}", file=sys.stderr, flush=True
        )
        return 4
    dist.destroy_process_group()
    return status


def _told_to_end(*_: object) -> None:
    raise _ToldToEnd("this one was told to end")


def outcomes(runs: Mapping[str, Run], terms: Terms, where: Where) -> Generator[Record | Failure, None, None]:
    """An `Engine`, on rank 0: all ranks do one run after the other."""
    with closing(Companion(terms.agent_timeout)) as companion:
        for key, run in runs.items():
            folder = None if terms.folder is None else checkpoints.folder_of(terms.folder, key)
            results = [] if terms.folder is None else [os.path.realpath(terms.folder)]
            env, closed = environment(run)
            try:
                companion.begin(run.agent, run.seed, [*closed, *results])
                tell("run", run)
                record = play(run, env, Leader(companion), Shared(folder, terms.checkpoint_seconds))
            except AgentError as error:
                tell("drop")
                died = isinstance(error, AgentDied)
                yield Failure(key, run, DIED if died else str(error), error.traceback, final=not died)
            else:
                yield record if record["key"] == key else Failure(key, run, CHANGED, "")


def _follow() -> None:
    """Take part in the runs that rank 0 tells of, until it ends."""
    message = hear()
    while message[0] != "end":
        if message[0] == "run":
            run = message[1]
            env, _ = environment(run)
            with suppress(Dropped):
                play(run, env, Follower(), Told())
        message = hear()
