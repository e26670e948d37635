"""Runs in parallel processes, each with one thread: the numbers do not depend on how many there are."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import traceback
from collections.abc import Generator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from dataclasses import dataclass

import gymnasium as gym
import torch

from train.episode import Run, play
from train.results import Record


@dataclass(frozen=True)
class Failure:
    """A run that raised."""

    key: str
    run: Run
    error: str  # type and message, one line
    traceback: str


def outcomes(runs: Mapping[str, Run], workers: int) -> Generator[Record | Failure, None, None]:
    """Do `runs`, given by their keys, in `workers` processes; yield each outcome as it comes.

    When a process dies (for want of memory, or because an agent ends it) all are lost. What is left is then
    done one after the other: memory may suffice for that, and if not, it shows whose run it is.
    Leaving the iteration, by an exception or by closing it, ends the processes.
    """
    left = dict(runs)
    while left:
        with closing(_in_pool(left, workers)) as pool:
            for outcome in pool:
                del left[outcome["key"] if isinstance(outcome, dict) else outcome.key]
                yield outcome
        if left and workers == 1:
            key = next(iter(left))  # one worker goes by their order
            yield Failure(key, left.pop(key), "the process died: out of memory, or ended by the agent", "")
        workers = 1


def _in_pool(runs: Mapping[str, Run], workers: int) -> Generator[Record | Failure]:
    """Outcomes of `runs` in one pool of processes; those that a dying process took with it are left out."""
    # spawn: a fork of a process that has used torch's threads, or CUDA, can hang
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=start)
    try:
        futures = [pool.submit(attempt, key, run) for key, run in runs.items()]
        for future in as_completed(futures):
            if not isinstance(future.exception(), BrokenProcessPool):
                yield future.result()
    except BaseException:
        for process in multiprocessing.active_children():  # a run can take hours: do not wait for its end
            process.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


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


def attempt(key: str, run: Run) -> Record | Failure:
    """Do one run; whatever an agent raises becomes a `Failure`."""
    try:
        record = play(run, _env_for(run))
        if record["key"] != key:
            raise RuntimeError("the agent's code or the data changed while the evaluation ran")
    except (Exception, SystemExit) as error:
        message = " ".join(f"{type(error).__name__}: {error}".split())
        return Failure(key, run, message, traceback.format_exc())
    return record
