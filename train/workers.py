"""Runs in parallel processes, each with one thread: the numbers do not depend on how many there are.

The pool is our own: that of `concurrent.futures` loses every run when one process dies, and cannot end a single one.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import AbstractContextManager, closing, contextmanager, suppress
from ctypes import c_double
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait

import gymnasium as gym
import torch

from train.episode import Run, play
from train.results import Record

CONTEXT = multiprocessing.get_context("spawn")  # a fork of a process that has used torch's threads, or CUDA, can hang
POLL = 0.25  # seconds between looks at the clocks of the agents
GRACE = 5.0  # seconds that idle processes get for their exit: an agent may have files open
DIED = "the process died: out of memory, or ended by the agent"


@dataclass(frozen=True)
class Failure:
    """A run that has no record."""

    key: str
    run: Run
    error: str  # one line: type and message of what was raised, or what became of the process
    traceback: str


def outcomes(runs: Mapping[str, Run], workers: int, agent_timeout: float) -> Generator[Record | Failure, None, None]:
    """Do `runs`, given by their keys, in `workers` processes; yield each outcome as it comes.

    A process that dies takes only its own run with it. Memory may have been short, so that run is tried again at the
    very end, with nothing beside it. An agent that takes more than `agent_timeout` seconds for one call fails.
    Leaving the iteration, by an exception or by closing it, ends the processes.
    """
    died: dict[str, Run] = {}
    with closing(_in_pool(runs, workers, agent_timeout)) as pool:
        for outcome in pool:
            if isinstance(outcome, Failure) and outcome.error == DIED:
                died[outcome.key] = outcome.run
            else:
                yield outcome
    yield from _in_pool(died, 1, agent_timeout)


def _in_pool(runs: Mapping[str, Run], size: int, agent_timeout: float) -> Generator[Record | Failure, None, None]:
    """Outcomes of `runs` in at most `size` processes at a time."""
    waiting = deque(runs.items())
    pool: list[_Worker] = []
    try:
        while waiting or any(worker.job for worker in pool):
            while len(pool) < min(size, len(waiting) + sum(worker.job is not None for worker in pool)):
                pool.append(_Worker())
            if not pool:
                for key, run in waiting:
                    yield Failure(key, run, "no process could start; why is on the standard error", "")
                return
            wait([worker.connection for worker in pool], POLL)  # readable too when the process is gone
            for worker in tuple(pool):
                outcome = worker.look(agent_timeout)
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

    def __init__(self) -> None:
        self.job: tuple[str, Run] | None = None
        self.started = False  # has said that it is ready for a first job
        self.gone = False
        self.connection, other = CONTEXT.Pipe()
        self.called = CONTEXT.RawValue(c_double, 0.0)  # when the agent was called (monotonic), 0 between calls
        self.process = CONTEXT.Process(target=_serve, args=(other, self.called))
        self.process.start()
        other.close()  # the process has its own: once that is closed, reading here ends

    def give(self, key: str, run: Run) -> None:
        """Let the process do this run."""
        self.job = key, run
        with suppress(OSError):  # it is gone, as the next look finds
            self.connection.send(self.job)

    def look(self, agent_timeout: float) -> Record | Failure | None:
        """What the job came to, None while that is open. Ends a process that is dead or hangs; then `gone`."""
        alive = self.process.is_alive()  # the pipe says so too, but not while a child that the agent forked holds it
        called = self.called.value
        error = DIED
        try:
            if self.connection.poll():
                outcome = self.connection.recv()
                self.started, self.job = True, None
                return outcome  # None is "ready"
            if alive and called and time.monotonic() - called > agent_timeout:
                error = f"the agent took more than {agent_timeout:g} s for one decision; --agent-timeout allows longer"
            elif alive:
                return None
        except Exception:  # end of file, or half an answer, which can fail to unpickle in any way
            self.process.join(0.5)  # it is about to be dead: its own exit code tells more than that of our kill
        code = self.process.exitcode  # of a signal its negative number, None before our kill
        self.end()
        self.gone = True
        return Failure(*self.job, error, "" if code is None else f"exit code {code}") if self.job else None

    def end(self) -> None:
        """Kill the process if it still is, and wait for that."""
        self.process.kill()
        self.process.join()
        self.connection.close()


def _serve(connection: Connection, called: c_double) -> None:
    """The life of a process: one job after the other until the parent closes `connection`."""
    start()

    @contextmanager
    def watch() -> Iterator[None]:
        called.value = time.monotonic()  # one clock for all processes of a machine
        try:
            yield
        finally:
            called.value = 0.0

    with suppress(EOFError, BrokenPipeError):
        connection.send(None)
        while True:
            key, run = connection.recv()
            connection.send(attempt(key, run, watch))


def start() -> None:
    """Prepare a worker process: one thread, deaf to Ctrl-C, gone when its parent is."""
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches every process; the parent ends this one
    threading.Thread(target=_follow_parent, daemon=True).start()


def _follow_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)  # the parent was killed: nobody would ever read the results


_kept: dict[str, gym.Env] = {}  # the last environment by its settings: its data is not read for every run


def _env_for(run: Run) -> gym.Env:
    settings = repr((run.env, run.settings))
    if settings not in _kept:
        _kept.clear()  # first, so that two data sets are never held at once
        _kept[settings] = run.make_env()
    return _kept[settings]


def attempt(key: str, run: Run, watch: Callable[[], AbstractContextManager[None]]) -> Record | Failure:
    """Do one run, entering `watch()` around each call of the agent; whatever that raises becomes a `Failure`."""
    torch.set_num_threads(1)  # an agent before may have set another number, and that changes rounding
    try:
        record = play(run, _env_for(run), watch)
        if record["key"] != key:
            raise RuntimeError("the agent's code or the data changed while the evaluation ran")
    except BaseException as error:  # Ctrl-C is ignored here: this too is the agent's
        lines = traceback.format_exception_only(type(error), error)  # unlike str(error), this never raises itself
        return Failure(key, run, " ".join("".join(lines).split()), traceback.format_exc())
    return record
