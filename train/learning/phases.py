"""How far a run is: a bar with the time left for each of its phases on a terminal, else a line."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn


class Phases:
    """The phases of a run, one after the other; a context manager. Lines are printed above the bars."""

    def __init__(self, console: Console):
        self._console = console
        columns = (
            TextColumn("{task.description:25}"),
            BarColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
        )
        self._bars = Progress(*columns, console=console, disable=not console.is_terminal)

    def __enter__(self) -> Phases:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def say(self, line: str) -> None:
        """Print a line as it is."""
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)

    @contextmanager
    def phase(self, name: str) -> Iterator[Callable[..., None]]:
        """Show a phase. What is yielded takes the share that is done, in [0, 1], and a note beside the bar."""
        if not self._console.is_terminal:
            self.say(f"{name} ...")
        bar = self._bars.add_task(name, total=1.0, note="")

        def show(share: float, note: str = "") -> None:
            self._bars.update(bar, completed=min(share, 1.0), note=note)

        yield show
        show(1.0)
