"""What `train.evaluate` and `train.sweep` share: do the runs that are missing, keep each as it ends, report."""

from __future__ import annotations

import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from datetime import timedelta
from functools import partial
from itertools import chain
from pathlib import Path

import gymnasium as gym
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from prune_env import io, ranks
from train.execution import checkpoints, executors, provenance, results
from train.execution.executors import Outcome, Unavailable, Where
from train.execution.plan import Block, Place, Plan, make_plan
from train.execution.process import Taken, locked
from train.execution.results import Record
from train.execution.run import Failure, Run, Terms


@dataclass
class Running(Where):
    """Arguments that every program with runs has."""

    root: str | None = None
    """Folder with the images; by default $PRUNE_ENV_DATA."""
    download: bool = False
    """Fetch images that are not there."""
    images: str = "auto"
    """Where they are kept: `device`, `mapped`, or `auto`, the first of these that fits; no number changes."""
    device: str = "auto"
    """Where to train: `auto` (CUDA where there is one), or a name torch knows."""
    agent_timeout: float = 600.0
    """Seconds that an agent may take for one decision, or to be imported; one that takes longer loses its run."""
    checkpoint_seconds: float = 60.0
    """Time between checkpoints of a run, taken at the end of a step: what a kill can cost it, beside one step."""
    fresh: bool = False
    """Run everything anew, also what has results."""
    name: str | None = None
    """Folder of the results; by default named after what is run."""
    out: Path = Path("runs")
    """Folder of that folder."""


def carry_out(
    running: Running,
    command: str,
    blocks: Callable[[], tuple[str, Sequence[Block], str]],
    report: Callable[[Path, list[Record], str], None],
) -> int:
    """Run a program: plan, do what is missing, report; return its exit status.

    0: all runs are there; 1: some failed; 2: nothing was run, the arguments are wrong; 3: the results cannot be
    written; 4: under torchrun, another of its processes is gone; 130: interrupted.

    Args:
        running: how to run.
        command: the command line, for the provenance.
        blocks: gives the default name of the folder of results, what to run, and the text of the file that says so, if
            there is one; raises if that is wrong.
        report: called with the folder, the records there are, and that text.
    """
    program = partial(_carry_out, running, command, blocks, report)
    if not executors.by_torchrun():
        return program()
    from train.execution import torchrun  # torch.distributed is for its processes alone

    return torchrun.together(running.device, program)


def _carry_out(
    running: Running,
    command: str,
    blocks: Callable[[], tuple[str, Sequence[Block], str]],
    report: Callable[[Path, list[Record], str], None],
) -> int:
    first = ranks.here().rank == 0
    console = Console(stderr=True, quiet=not first)
    try:
        with console.status("reading the images and checking the arguments"):
            folder, plan, source = _planned(running, blocks)
        if not first:
            return _follow(_terms(running, plan, folder))
        folder.mkdir(parents=True, exist_ok=True)
    except (ValueError, TypeError, OSError, gym.error.Error) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted before the first run", file=sys.stderr)
        return 130
    try:
        with locked(folder):
            io.sweep(folder)
            results.write_plan(folder, plan.runs, source)
            records, failures = _run_missing(plan, folder, running, command, console)
            if records:
                report(folder, records, source)
    except Taken:
        print(f"error: another program is writing to {folder}; wait for its end, or choose --name", file=sys.stderr)
        return 2
    except Unavailable as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(
            f"error: cannot go on in {folder}: {error}; what is there stays, the same command goes on", file=sys.stderr
        )
        return 3
    except KeyboardInterrupt:
        print("interrupted; finished runs are kept, and the same command goes on from there", file=sys.stderr)
        return 130
    if failures:
        failed = ", ".join(dict.fromkeys(failure.run.agent for failure in failures))
        path = folder / "failures.jsonl"
        print(f"error: {len(failures)} run(s) failed, of {failed}; tracebacks are in {path}", file=sys.stderr)
        return 1
    return 0


def _planned(running: Running, blocks: Callable[[], tuple[str, Sequence[Block], str]]) -> tuple[Path, Plan, str]:
    """The folder of results, what is to be run, and the text of the file that it is from."""
    executors.check(running)
    if not running.agent_timeout > 0:
        raise ValueError(f"--agent-timeout is {running.agent_timeout}; it must be a number of seconds above 0")
    if not running.checkpoint_seconds >= 0:
        raise ValueError(f"--checkpoint-seconds is {running.checkpoint_seconds}; it must be 0 or more")
    name, what, source = blocks()
    root = running.root and os.path.abspath(os.path.expanduser(running.root))  # for processes elsewhere
    plan = partial(make_plan, what, Place(root, running.download, running.device, running.images))
    if executors.by_torchrun():
        from train.execution import torchrun

        if any(block.settings.get("compile", "off") != "off" for block in what):
            raise ValueError("--compile is for one device; under torchrun it must be off")
        plan = partial(torchrun.after_first, plan)
    return running.out / (running.name or name), plan(), source


def _terms(running: Running, plan: Plan, folder: Path) -> Terms:
    return Terms(running.agent_timeout, folder.absolute(), running.checkpoint_seconds, plan.device)


def _outcomes(missing: list[Run], terms: Terms, running: Running) -> Generator[Outcome, None, None]:
    """What the missing runs come to, wherever they are done."""
    if executors.by_torchrun():
        from train.execution import torchrun

        yield from torchrun.outcomes(torchrun.from_first(lambda: missing), terms)
    elif missing:
        yield from executors.outcomes(executors.start(running, terms, len(missing)), missing)


def _follow(terms: Terms) -> int:
    """Under torchrun, on every rank but the first: take part in the runs that it finds missing."""
    from train.execution import torchrun

    for _ in torchrun.outcomes(torchrun.from_first(list), terms):
        pass
    return 0  # what failed is told by the first


def _run_missing(
    plan: Plan, folder: Path, running: Running, command: str, console: Console
) -> tuple[list[Record], list[Failure]]:
    """Do the runs that results.jsonl lacks, appending each as it ends; return the plan's records, and what failed.

    results.jsonl may also hold runs of former plans.
    """
    path, failed = folder / "results.jsonl", folder / "failures.jsonl"
    done, unreadable = results.read(path)
    if unreadable:
        console.print(f"warning: {unreadable} line(s) of {path} are torn, and dropped", markup=False, soft_wrap=True)
    there = {key: run for key, run in plan.runs.items() if key in done and not running.fresh}
    if running.fresh:
        done = {key: record for key, record in done.items() if key not in plan.runs}
        for key in plan.runs:
            checkpoints.forget(folder, key)
    done |= {key: done[key] | {"task": run.task} for key, run in there.items()}  # tasks may have other names by now
    if path.exists():
        results.write(path, done.values())
    for key in there:  # a kill came between its record and this
        checkpoints.forget(folder, key)
    missing = [run for key, run in plan.runs.items() if key not in there]
    found = f"{len(plan.runs)} runs, {len(there)} of them done before; results in {folder}"
    console.print(found, markup=False, soft_wrap=True)
    _tell_changed(plan, [done[key] for key in there], console)
    failed.unlink(missing_ok=True)
    failures: list[Failure] = []
    code = {**provenance.of_code(), "command": command}
    given_up = {failure.run.key for failure in plan.failures}
    able = [run for run in missing if run.key not in given_up]
    outcomes = _outcomes(able, _terms(running, plan, folder), running)
    with _Bar(missing, console) as bar, closing(outcomes):
        for outcome in chain(plan.failures, outcomes):
            if isinstance(outcome, Failure):
                failure = {"key": outcome.run.key, **asdict(outcome)}
                for name in ("root", "images"):
                    failure["run"]["settings"].pop(name, None)
                results.append(failed, failure)
                bar.advance(outcome.run, f"failed: {outcome.error}")
                failures.append(outcome)
                if outcome.final:
                    checkpoints.forget(folder, outcome.run.key)
            else:
                outcome["provenance"] |= code
                results.append(path, outcome)
                done[outcome["key"]] = outcome
                checkpoints.forget(folder, outcome["key"])
                bar.advance(plan.runs[outcome["key"]], f"{outcome['results']['test_accuracy']:.2%}")
    if not failures:
        checkpoints.forget_others(folder, plan.runs)
    return [done[key] for key in plan.runs if key in done], failures


def _tell_changed(plan: Plan, records: Sequence[Record], console: Console) -> None:
    """Say which of one's own agents have other files than their runs had."""
    now = plan.own_files
    then = ((record["agent"], record["provenance"].get("own_files")) for record in records)
    changed = Counter(agent for agent, digest in then if digest and digest != now.get(agent))
    for agent, count in changed.items():
        told = f"warning: {agent} has changed since {count} of its runs; --fresh runs all of them anew"
        console.print(told, markup=False, soft_wrap=True)


class _Bar:
    """Progress with the time left, by compute done; lines where no terminal shows a bar."""

    def __init__(self, runs: Sequence[Run], console: Console):
        self._left = sum(run.settings["budget"] for run in runs)
        self._done = 0.0
        self._start = time.monotonic()
        columns = (TextColumn("runs"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"))
        self._progress = Progress(*columns, console=console, disable=not console.is_terminal)
        self._console = console
        self._task = self._progress.add_task("", total=len(runs))
        self._failed: set[str] = set()

    def __enter__(self) -> _Bar:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def advance(self, run: Run, outcome: str) -> None:
        """Count a run that has ended."""
        budget = run.settings["budget"]
        self._done += budget
        self._left -= budget
        seconds = (time.monotonic() - self._start) * self._left / self._done
        left = f"{timedelta(seconds=round(seconds))} left"
        self._progress.update(self._task, advance=1, description=left)
        task = self._progress.tasks[0]
        line = f"{run.task}, {run.agent}, budget {budget:g}, seed {run.seed}: {outcome}"
        if not self._console.is_terminal:
            self._print(f"{task.completed:g}/{task.total:g} {line}; {left}")
        elif outcome.startswith("failed") and run.agent not in self._failed:
            self._failed.add(run.agent)
            self._print(line)

    def _print(self, line: str) -> None:
        """Without highlighting: of a long word, as an agent's error can be, it takes quadratic time."""
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)
