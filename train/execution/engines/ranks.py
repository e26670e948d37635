"""One run on several devices: `torchrun --nproc-per-node 2 -m train.evaluate ...`, a process (rank) for each.

Rank 0 is the program: it plans, lets the agent decide, writes. The others take part in the training, and are told what
to do next: a run, an action. Whatever else a run depends on is drawn from its seed, in every rank alike.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Generator, Mapping
from contextlib import closing, suppress
from datetime import timedelta

import torch.distributed as dist

from train.execution import checkpoints, lockstep, workers
from train.execution.companion import AgentDied, AgentError, Companion
from train.execution.engines import Where
from train.execution.episode import Run, play
from train.execution.lockstep import Dropped, Follower, Leader, Line, Shared, Told, ToldToEnd
from train.execution.results import Record
from train.execution.workers import CHANGED, DIED, Failure, Terms, environment

PATIENCE = 300.0  # seconds that ranks wait for each other in training
INTERRUPTED = 130  # exit status after Ctrl-C
STAYS = "what is there stays, and the same command goes on, on any number of ranks"


def together(device: str, program: Callable[[], int]) -> int:
    """Run `program` on rank 0, and take part in it on the others; return the exit status, 4 if a rank is lost.

    Args:
        device: as given to the program; on CUDA every rank has one of its own.
        program: it does its runs by `outcomes`.
    """
    if not lockstep.own_device(device):
        print("error: torchrun started more processes here than there are CUDA devices", file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, lockstep.told_to_end)  # torchrun's way to end the others once a rank is gone
    status = 0
    try:
        dist.init_process_group(timeout=timedelta(seconds=PATIENCE))
        line = lockstep.line()
        if dist.get_rank():
            _follow(line)
        else:
            status = program()
            if status != INTERRUPTED:  # the others were, too
                line.tell("end")
    except (RuntimeError, ToldToEnd) as error:  # collectives raise RuntimeErrors; runs keep what is theirs
        why = " ".join(str(error).split())
        print(f"error: a rank of this job is lost, or cannot go on: {why}; {STAYS}", file=sys.stderr, flush=True)
        return 4
    dist.destroy_process_group()
    return status


def outcomes(runs: Mapping[str, Run], terms: Terms, where: Where) -> Generator[Record | Failure, None, None]:
    """An `Engine`, on rank 0: all ranks do one run after the other."""
    yield from workers.with_second_try(lambda some, _: _in_turn(some, terms), runs, 1)


def _in_turn(runs: Mapping[str, Run], terms: Terms) -> Generator[Record | Failure, None, None]:
    line = lockstep.line()
    assert terms.folder is not None
    with closing(Companion(terms.agent_timeout)) as companion:
        for key, run in runs.items():
            folder = checkpoints.folder_of(terms.folder, key)
            keeper = Shared(folder, terms.checkpoint_seconds, key, line)
            line.tell("run", run)
            try:
                env, closed = environment(run)
                line.meet()
                companion.begin(run.agent, run.seed, [*closed, *terms.closed()])
                line.tell("begin", None)
                record = play(run, env, Leader(companion, line), keeper)
            except AgentError as error:
                line.tell("drop")
                died = isinstance(error, AgentDied)
                if not died and keeper.refuse(error):
                    yield from _in_turn({key: run}, terms)
                    continue
                yield Failure(key, run, DIED if died else str(error), error.traceback, final=not died)
            except OSError as error:  # not of the results, which only the program writes
                raise RuntimeError(str(error)) from error
            else:
                yield record if record["key"] == key else Failure(key, run, CHANGED, "")


def _follow(line: Line) -> None:
    """Take part in the runs that rank 0 tells of, until it ends."""
    message = line.hear()
    while message[0] != "end":
        if message[0] == "run":
            run = message[1]
            env, _ = environment(run)
            line.meet()
            with suppress(Dropped):
                line.expect("begin")
                play(run, env, Follower(line), Told(line))
        message = line.hear()
