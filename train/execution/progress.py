"""Say how far a program is: a bar on a terminal, and elsewhere a line for each agent."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from threading import Event, Thread
from typing import TypeVar

import numpy as np
from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, TextColumn, track
from rich.text import Text

from train.analysis.text import count, listed, number
from train.execution import checkpoints
from train.execution.checkpoints import Note
from train.execution.run import Failure, Outcome, Run

SILENCE = 600.0  # seconds, where there is no terminal
SHOWN = 8  # runs that are shown under the bar

T = TypeVar("T")


def follow(items: Iterable[T], what: str, total: int) -> Iterator[T]:
    """Yield `items`, of which there are `total`, and say how far they are."""
    console = Console(stderr=True)
    if console.is_terminal:
        yield from track(items, what, total, console=console)
        return
    console.print(f"{what}: {total}", highlight=False)
    said = time.monotonic()
    for done, item in enumerate(items):
        if time.monotonic() - said > SILENCE:
            said = time.monotonic()
            console.print(f"{what}: {done} of {total}", highlight=False)
        yield item


class RunProgress:
    """Runs done, where those that go on stand, and the time left, by the compute that is done.

    Args:
        folder: of the results, where runs leave notes, see `Checkpoint.tell`.
    """

    def __init__(self, folder: Path):
        self._folder = folder
        self._console = Console(stderr=True, force_jupyter=False)

    def say(self, line: str) -> None:
        """Print a line as it is."""
        self._said = time.monotonic()
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)

    @contextmanager
    def of(self, runs: Sequence[Run]) -> Iterator[None]:
        """Show, inside, how far these runs are; they begin now, or go on from their checkpoints."""
        self._pending, self._total = {run.key: run for run in runs}, len(runs)
        self._cells = Counter(map(_cell, runs))  # runs that have not ended
        self._accuracies: dict[str, list[float]] = defaultdict(list)
        self._failed: set[str] = set()
        self._before = {key: note for key, note in checkpoints.notes(self._folder).items() if key in self._pending}
        steps = sorted({note["saved"] for note in self._before.values() if note["saved"]})
        if steps:
            at = listed(map(str, steps)) if len(steps) <= SHOWN else f"{steps[0]} to {steps[-1]}"
            many = sum(note["saved"] > 0 for note in self._before.values())
            self.say(f"goes on with {count(many, 'run')} at step {at}")
        self._compute = sum(run.settings["budget"] - self._spent_before(run.key) for run in runs)
        self._done, self._estimated, self._begun, self._start = 0.0, 0.0, time.monotonic(), None
        over = Event()
        if self._console.is_terminal:
            with _Bar(self):
                yield
            return
        Thread(target=self._speak_up, args=(over,), daemon=True).start()
        try:
            yield
        finally:
            over.set()

    def advance(self, outcome: Outcome, run: Run) -> None:
        """Count a run that has ended."""
        del self._pending[run.key]
        self._done += run.settings["budget"] - self._spent_before(run.key)
        cell = _cell(run)
        self._cells[cell] -= 1
        if isinstance(outcome, Failure):
            if run.agent not in self._failed:
                self._failed.add(run.agent)
                self.say(f"{cell}, seed {run.seed}: failed: {outcome.error}")
        else:
            self._note_start(outcome["results"]["seconds"]["total"])
            self._accuracies[cell].append(100.0 * outcome["results"]["test_accuracy"])
        if not self._cells[cell] and not self._console.is_terminal:
            found = self._accuracies[cell]
            mean = f"test accuracy {number(float(np.mean(found)), '.2f')} %" if found else "failed"
            mean += f" in {count(len(found), 'run')}" if found else ""
            left = f"; {self.look()[1]}" if self._start is not None else ""
            self.say(f"{self.ended()} {cell}: {mean}{left}")

    def ended(self) -> str:
        """Return how many runs have ended, of how many."""
        return f"{self._total - len(self._pending)}/{self._total}"

    def look(self) -> tuple[float, str, list[str]]:
        """Return the share of the compute that is done, the time left in words, and where each run stands."""
        notes = checkpoints.notes(self._folder)
        live = {key: notes[key] for key in list(self._pending) if key in notes and notes[key] != self._before.get(key)}
        done, lines = self._done, []
        for key, note in live.items():
            self._note_start(note["seconds"])
            done += max(0.0, note["spent"] - self._spent_before(key))
            lines.append(_line(self._pending.get(key), note))
        if self._start is None or not done:
            return 0.0, "starting", []
        now = time.monotonic()
        if done != self._estimated:  # until something has been done again, the time left goes down
            # start-up does not count: neither that of processes nor the reading of images
            self._end = now + (now - self._start) * max(0.0, self._compute - done) / done
            self._estimated = done
        return done / self._compute, f"{timedelta(seconds=round(max(0.0, self._end - now)))} left", lines

    def _spent_before(self, key: str) -> float:
        note = self._before.get(key)
        return note["spent"] if note and note["saved"] else 0.0

    def _note_start(self, seconds: float) -> None:
        """Take down when the first run began to train: so many seconds ago, and not before this program."""
        if self._start is None:
            self._start = max(self._begun, time.monotonic() - seconds)

    def _speak_up(self, over: Event) -> None:
        """Say now and then how far it is."""
        while not over.wait(SILENCE / 10):
            if time.monotonic() - self._said > SILENCE:
                _, left, lines = self.look()
                self.say("; ".join([f"{self.ended()} runs, {left}", *lines[:SHOWN]]))


def _cell(run: Run) -> str:
    return f"{run.task}, {run.label or run.agent}, budget {run.settings['budget']:g}"


def _line(run: Run | None, note: Note) -> str:
    if run is None:  # it has ended just now
        return ""
    where = f"step {note['step']}, {note['spent']:.1f} of {run.settings['budget']:g}"
    return f"{where}, validation {100.0 * note['val_accuracy']:.1f} %: {run.label or run.agent}, seed {run.seed}"


class _Bar(Progress):
    """The bar, and under it where the runs stand."""

    def __init__(self, runs: RunProgress):
        self._runs = runs
        columns = TextColumn("{task.fields[ended]} runs"), BarColumn(), TextColumn("{task.description}")
        super().__init__(*columns, console=runs._console, refresh_per_second=2)
        self.add_task("starting", total=1.0, ended=runs.ended())

    def get_renderables(self) -> Iterable[RenderableType]:
        if not self.tasks:  # asked while it is made
            return
        share, left, lines = self._runs.look()
        self.update(self.task_ids[0], completed=share, description=left, ended=self._runs.ended())
        yield self.make_tasks_table(self.tasks)
        for line in lines[:SHOWN]:
            yield Text(f"  {line}", no_wrap=True, overflow="ellipsis")
