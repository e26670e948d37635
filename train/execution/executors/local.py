"""Processes of this machine, with one thread each: the numbers do not depend on how many there are.

On Linux they are forked from the program, which has imported everything: that takes milliseconds. What may have used
CUDA must not be forked, and other systems advise against it: there processes are spawned. A process does one run after
the other; one that dies is replaced. The pool of `concurrent.futures` would lose every run when one process dies.
"""

from __future__ import annotations

import multiprocessing
import sys
import traceback
from contextlib import suppress
from multiprocessing.connection import Connection
from multiprocessing.context import BaseContext
from queue import SimpleQueue
from threading import Lock

import torch

from prune_env.machine import cores
from train.execution import process
from train.execution.agent import line_of
from train.execution.executors import Executor, Outcome, Where
from train.execution.run import Failure, Run, Terms, attempt, lost

POLL = 0.25  # seconds between looks whether a process is alive


def start(where: Where, terms: Terms, runs: int) -> Executor:
    """Return the executor: one process a core on the CPU, and one on CUDA."""
    size = min(where.workers or (1 if terms.device == "cuda" else cores()), runs)
    may_fork = sys.platform == "linux" and not torch.cuda.is_available()
    context = multiprocessing.get_context("fork") if may_fork else process.CONTEXT
    workers = {_Worker(context, terms) for _ in range(size)}  # before this process has threads
    idle: SimpleQueue[_Worker] = SimpleQueue()
    for worker in workers:
        idle.put(worker)
    lock, stopped = Lock(), False

    def do(run: Run) -> Outcome:
        worker = idle.get()
        outcome = worker.do(run)
        with lock:
            if not worker.process.is_alive() and not stopped:
                worker.end()
                workers.remove(worker)
                worker = _Worker(process.CONTEXT, terms)  # threads are there now, so it is not forked
                workers.add(worker)
        idle.put(worker)
        return outcome

    def stop() -> None:
        """Kill the processes: a run can take hours."""
        nonlocal stopped
        with lock:
            stopped = True
            for worker in workers:
                worker.end()

    return Executor(size, do, stop)


class _Worker:
    """A process, and the parent's end of the pipe to it."""

    def __init__(self, context: BaseContext, terms: Terms):
        self._terms = terms
        self._connection, other = context.Pipe()
        self.process = context.Process(target=_serve, args=(other, terms))  # pyright: ignore[reportAttributeAccessIssue]
        with process.without_main():
            self.process.start()
        other.close()  # the process has its own: once that is closed, reading here ends

    def do(self, run: Run) -> Outcome:
        """Have the process do a run."""
        try:
            self._connection.send(run)
            # the pipe says that the process is gone, but not while a child of it holds that
            while not self._connection.poll(POLL):
                if not self.process.is_alive() and not self._connection.poll():
                    raise EOFError
            return self._connection.recv()
        except (EOFError, OSError):
            self.process.join(0.5)  # it is about to be dead: its own exit code tells more than that of our kill
            code = self.process.exitcode  # of a signal its negative number, None before our kill
            self.process.kill()
            self.process.join()
            return lost(run, self._terms, "" if code is None else f"exit code {code}")

    def end(self) -> None:
        """Kill the process, which may be at a run."""
        self.process.kill()
        self.process.join()
        with suppress(OSError):
            self._connection.close()


def _serve(connection: Connection, terms: Terms) -> None:
    """Do one run after the other until the program closes `connection`, or is gone."""
    process.start()
    with suppress(EOFError, ConnectionError):
        while True:
            run = connection.recv()
            try:
                outcome = attempt(run, terms)
            except SystemExit as error:  # of the agent
                outcome = Failure(run, line_of(error), traceback.format_exc(), final=True)
            connection.send(outcome)
