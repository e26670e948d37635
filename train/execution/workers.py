"""Runs in parallel processes, each with one thread: the numbers do not depend on how many there are.

The pool is our own: that of `concurrent.futures` loses every run when one process dies, and cannot end a single one. A
process has a second one, where the agent lives: see `train.execution.companion`.
"""

from __future__ import annotations

import os
import time
import traceback
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection, wait
from pathlib import Path

import gymnasium as gym
import torch

from prune_env.data import sources
from train.execution import checkpoints
from train.execution.checkpoints import Keeper
from train.execution.companion import POLL, AgentDied, AgentError, Companion, closed_to_agents, line_of, printable
from train.execution.episode import Run, play
from train.execution.process import CONTEXT, Taken, locked, start
from train.execution.results import Record

CHANGED = "the agent's code or the data changed while the evaluation ran"
GRACE = 5.0  # seconds that idle processes get for their exit: an agent may have files open
DIED = "the process died: out of memory, or ended by the agent"
TRACEBACK = 20_000  # characters kept of one
OTHERS_END = 120.0  # seconds for another process at a run: an engine that was killed ends its own, not all at once


@dataclass(frozen=True)
class Terms:
    """How runs are done."""

    agent_timeout: float = 600.0  # seconds that an agent may take for one decision
    folder: Path | None = None  # of the results, where checkpoints are kept meanwhile
    checkpoint_seconds: float = 60.0  # from one to the next
    device: str = "cpu"  # type of that which `auto` is

    def closed(self) -> list[str]:
        """What agents must not open, beside images."""
        return [] if self.folder is None else [os.path.realpath(self.folder)]


@dataclass(frozen=True)
class Failure:
    """A run that has no record."""

    key: str
    run: Run
    error: str  # one line: type and message of what was raised, or what became of the process
    traceback: str
    final: bool = False  # it is the agent's: going on from a checkpoint would end there again

    def __post_init__(self) -> None:
        told = printable(self.traceback)
        if len(told) > TRACEBACK:  # it ends with the agent's message, which can be of any length
            told = f"{told[:TRACEBACK]}... ({len(told):,} characters)"
        object.__setattr__(self, "traceback", told)


def outcomes(runs: Mapping[str, Run], workers: int, terms: Terms) -> Generator[Record | Failure, None, None]:
    """Do `runs`, given by their keys, in `workers` processes; yield each outcome as it comes.

    Leaving the iteration, by an exception or by closing it, ends the processes.
    """
    return with_second_try(partial(_in_pool, terms=terms), runs, workers)


def with_second_try(
    do: Callable[[Mapping[str, Run], int], Generator[Record | Failure, None, None]], runs: Mapping[str, Run], size: int
) -> Generator[Record | Failure, None, None]:
    """What `do(runs, size)` yields, where a process that dies takes only its own run with it.

    Memory may have been short, so that run is tried again at the very end, with nothing beside it, from its last
    checkpoint on.
    """
    died: dict[str, Run] = {}
    with closing(do(runs, size)) as outcomes:
        for outcome in outcomes:
            if isinstance(outcome, Failure) and outcome.error == DIED:
                died[outcome.key] = outcome.run
            else:
                yield outcome
    yield from do(died, 1)


def _in_pool(runs: Mapping[str, Run], size: int, terms: Terms) -> Generator[Record | Failure, None, None]:
    """Outcomes of `runs` in at most `size` processes at a time."""
    waiting = deque(runs.items())
    pool: list[_Worker] = []
    try:
        while waiting or any(worker.job for worker in pool):
            while len(pool) < min(size, len(waiting) + sum(worker.job is not None for worker in pool)):
                try:
                    pool.append(_Worker(terms))
                except BrokenPipeError:  # killed before it had read what to do; not replaced, as below
                    size -= 1
            if not pool:
                for key, run in waiting:
                    yield Failure(key, run, "no process could start; why is on the standard error", "")
                return
            wait([worker.connection for worker in pool], POLL)  # readable too when the process is gone
            for worker in tuple(pool):
                outcome = worker.look()
                if worker.gone:
                    pool.remove(worker)
                    size -= not worker.started  # not replaced: its successor might not start either, for ever
                elif waiting and worker.started and worker.job is None:
                    worker.give(*waiting.popleft())
                if outcome is not None:
                    yield outcome
        for worker in pool:
            worker.connection.close()  # the process sees that and exits, if it is not just starting
        deadline = time.monotonic() + GRACE
        for worker in pool:
            worker.process.join(max(0.0, deadline - time.monotonic()) if worker.started else 0.0)
    finally:
        for worker in pool:
            worker.process.kill()  # a run can take hours: do not wait for its end
        for worker in pool:
            worker.end()


class _Worker:
    """A process, and the parent's view of it."""

    def __init__(self, terms: Terms) -> None:
        self.job: tuple[str, Run] | None = None
        self.started = False  # has said that it is ready for a first job
        self.gone = False
        self.connection, other = CONTEXT.Pipe()
        self.process = CONTEXT.Process(target=_serve, args=(other, terms))
        self.process.start()
        other.close()  # the process has its own: once that is closed, reading here ends

    def give(self, key: str, run: Run) -> None:
        """Let the process do this run."""
        self.job = key, run
        with suppress(OSError):  # it is gone, as the next look finds
            self.connection.send(self.job)

    def look(self) -> Record | Failure | None:
        """What the job came to, None while that is open. Ends a process that is dead; then it is `gone`."""
        alive = self.process.is_alive()  # the pipe says so too, but not while a child of it holds that
        try:
            if self.connection.poll():
                outcome = self.connection.recv()
                self.started, self.job = True, None
                return outcome  # None is "ready"
            if alive:
                return None
        except Exception:  # end of file, or half an answer, which can fail to unpickle in any way
            self.process.join(0.5)  # it is about to be dead: its own exit code tells more than that of our kill
        code = self.process.exitcode  # of a signal its negative number, None before our kill
        self.end()
        self.gone = True
        return Failure(*self.job, DIED, "" if code is None else f"exit code {code}") if self.job else None

    def end(self) -> None:
        """Kill the process if it still is, and wait for that."""
        self.process.kill()
        self.process.join()
        self.connection.close()


def _serve(connection: Connection, terms: Terms) -> None:
    """The life of a process: one job after the other until the parent closes `connection`."""
    start()
    companion = Companion(terms.agent_timeout)
    with suppress(EOFError, ConnectionError), closing(companion):
        connection.send(None)
        while True:
            key, run = connection.recv()
            connection.send(attempt(key, run, companion, terms))


# the last environment by its settings, and what its agents must not open: its data is not read for every run
_kept: dict[str, tuple[gym.Env, list[str]]] = {}


def environment(run: Run) -> tuple[gym.Env, list[str]]:
    """The environment of a run, and what its agent must not open: see `companion.closed_to_agents`."""
    settings = repr((run.env, run.settings))
    if settings not in _kept:
        _kept.clear()  # first, so that two data sets are never held at once
        env = run.make_env()
        where = gym.spec(run.env).kwargs["dataset"], run.settings.get("root"), run.settings.get("image_size")
        _kept[settings] = env, closed_files(*where)
    return _kept[settings]


def closed_files(dataset: str, root: str | None, image_size: int | None) -> list[str]:
    """What agents must not open of a data set that is there: see `companion.closed_to_agents`."""
    splits = (sources.find(dataset, split, root, False, image_size)[0] for split in ("train", "test"))
    return closed_to_agents([path for split in splits for path in split.files])


def alone(key: str, run: Run, terms: Terms) -> Record | Failure:
    """`attempt` in a process that somebody else has started: with one thread, and no agent left when it has ended."""
    torch.set_num_threads(1)
    with closing(Companion(terms.agent_timeout)) as companion:
        return attempt(key, run, companion, terms)


def attempt(key: str, run: Run, companion: Companion, terms: Terms) -> Record | Failure:
    """Do one run with its agent in the companion; whatever is raised becomes a `Failure`, but for SystemExit."""
    folder = None if terms.folder is None else checkpoints.folder_of(terms.folder, key)
    keeper = Keeper(folder, terms.checkpoint_seconds, key)
    try:
        env, closed = environment(run)
        with nullcontext() if folder is None else _once_free(folder):
            companion.begin(run.agent, run.seed, [*closed, *terms.closed()])
            record = play(run, env, companion, keeper)
        if record["key"] != key:
            raise RuntimeError(CHANGED)
    except AgentDied as error:
        return Failure(key, run, DIED, error.traceback)
    except AgentError as error:
        if keeper.refuse(error):
            return attempt(key, run, companion, terms)
        return Failure(key, run, str(error), error.traceback, final=True)
    except SystemExit:  # a scheduler ends this process in its own way, and the run goes on in another
        raise
    except BaseException as error:
        return Failure(key, run, line_of(error), traceback.format_exc())
    return record


@contextmanager
def _once_free(folder: Path) -> Iterator[None]:
    """Be alone at the run with these checkpoints; raises Taken if another process is, and does not end in time."""
    folder.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + OTHERS_END
    with ExitStack() as stack:
        while True:
            try:
                stack.enter_context(locked(folder))
                break
            except Taken:
                if time.monotonic() >= end:
                    raise
            time.sleep(POLL)
        yield
