"""Processes of this machine, with one thread each: the numbers do not depend on how many there are.

On Linux they are forked from the program, which has imported everything: that takes milliseconds. What may have used
CUDA must not be forked, and other systems advise against it: there processes are spawned.
"""

from __future__ import annotations

import multiprocessing
import sys
import traceback
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from multiprocessing.connection import Connection
from multiprocessing.context import BaseContext
from queue import SimpleQueue

import torch

from prune_env.machine import cores
from train.execution import process
from train.execution.agent import line_of
from train.execution.executors import Outcome, Where
from train.execution.run import Failure, Run, Terms, attempt, lost

POLL = 0.25  # seconds between looks whether a process is alive


def start(where: Where, terms: Terms, runs: int) -> Processes:
    """The executor: one process a core on the CPU, and one on CUDA."""
    size = where.workers or (1 if terms.device == "cuda" else cores())
    return Processes(min(size, runs), terms)


class Processes:
    """An executor. A process does one run after the other; one that dies is replaced.

    The pool of `concurrent.futures` would lose every run when one process dies.
    """

    def __init__(self, size: int, terms: Terms):
        self.at_once = size
        self._terms = terms
        self._closed = False
        may_fork = sys.platform == "linux" and not torch.cuda.is_available()
        context = multiprocessing.get_context("fork") if may_fork else process.CONTEXT
        self._workers = [_Worker(context, terms) for _ in range(size)]  # before this process has threads
        self._idle: SimpleQueue[_Worker] = SimpleQueue()
        for worker in self._workers:
            self._idle.put(worker)
        self._threads = ThreadPoolExecutor(size)

    def submit(self, run: Run) -> Future[Outcome]:
        """As `Executor`."""
        return self._threads.submit(self._do, run)

    def _do(self, run: Run) -> Outcome:
        worker = self._idle.get()
        outcome = worker.do(run)
        if not worker.process.is_alive() and not self._closed:
            self._workers.remove(worker)
            worker.end()
            worker = _Worker(process.CONTEXT, self._terms)  # threads are there now, so it is not forked
            self._workers.append(worker)
            if self._closed:
                worker.end()
        self._idle.put(worker)
        return outcome

    def close(self) -> None:
        """As `Executor`: a run can take hours, so processes are killed."""
        self._closed = True
        self._threads.shutdown(wait=False, cancel_futures=True)
        for worker in list(self._workers):
            worker.end()
        self._threads.shutdown()


class _Worker:
    """A process, and the parent's end of the pipe to it."""

    def __init__(self, context: BaseContext, terms: Terms):
        self._terms = terms
        self._connection, other = context.Pipe()
        self.process = context.Process(target=_serve, args=(other, terms))  # pyright: ignore[reportAttributeAccessIssue]
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
    """The life of a process: one run after the other until the program closes `connection`, or is gone."""
    process.start()
    with suppress(EOFError, ConnectionError):
        while True:
            run = connection.recv()
            try:
                outcome = attempt(run, terms)
            except SystemExit as error:  # of the agent
                outcome = Failure(run, line_of(error), traceback.format_exc(), final=True)
            connection.send(outcome)
