"""What `train.evaluate` and `train.sweep` share: do the runs that are missing, keep each as it ends, report."""

from __future__ import annotations

import os
import shlex
import sys
from collections import Counter
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Annotated

import gymnasium as gym
import tyro
from rich.console import Console

from prune_env import io, ranks
from train.analysis.text import count
from train.execution import checkpoints, command_line, executors, provenance, results, torchrun
from train.execution.executors import Unavailable, Where
from train.execution.plan import Block, Place, Plan, make_plan
from train.execution.process import Taken, locked
from train.execution.progress import RunProgress
from train.execution.results import Record
from train.execution.run import Failure, Outcome, Run, Terms, here

Source = Callable[[], tuple[str, Sequence[Block], str]]
Report = Callable[[Path, list[Record], str], None]


@dataclass
class Running:
    """Arguments that every program with runs has."""

    name: str | None = None
    """Folder of the results; by default named after what is run."""
    out: Path = Path("runs")
    """Folder in which the folder of results is."""
    fresh: bool = False
    """Run everything anew, also what has results."""
    save_models: bool = False
    """Save the weights of each run's student in models/, see docs/records.md."""
    save_selections: bool = False
    """Save what each step of a run trained on in selections/, see docs/records.md."""
    root: str | None = None
    """Folder with the images; by default $PRUNE_ENV_DATA."""
    download: bool = False
    """Fetch images that are not there."""
    images: str = "auto"
    """Where images are kept: `device`, `mapped`, or `auto`, the first of these that fits; no number changes."""
    where: Annotated[Where, tyro.conf.arg(name="machine", prefix_name=False, help="")] = field(default_factory=Where)


def carry_out(running: Running, command: str, source: Source, report: Report) -> int:
    """Run a program: plan, do what is missing, report; return its exit status.

    0: all runs are there; 1: some failed; 2: nothing was run, the arguments are wrong; 3: the results cannot be
    written; 4: under torchrun, another of its processes is gone; 130: interrupted.

    Args:
        running: how to run.
        command: the command line, for the provenance.
        source: gives the default name of the folder of results, what to run, and the text of the file that says so, if
            there is one; raises if that is wrong.
        report: called with the folder, the records there are, and that text.
    """
    program = partial(_carry_out, running, command, source, report)
    return torchrun.together(running.where.device, program) if torchrun.active() else program()


def _carry_out(running: Running, command: str, source: Source, report: Report) -> int:
    first = ranks.here().rank == 0
    console = Console(stderr=True, quiet=not first)
    try:
        with console.status("reading the images and checking the arguments"):
            folder, plan, text = planned(running, source)
        if not first:  # it takes part in the runs that the first finds missing, which reports what fails
            for _ in torchrun.outcomes(list, _terms(running, folder, plan)):
                pass
            return 0
        folder.mkdir(parents=True, exist_ok=True)
        print(f"results in {folder}", file=sys.stderr)
    except (ValueError, TypeError, OSError, gym.error.Error) as error:
        return command_line.refused(error)
    except KeyboardInterrupt:
        print("interrupted before the first run", file=sys.stderr)
        return 130
    try:
        failed = finish(plan, folder, running, command, text, report)
    except Taken:
        return command_line.refused(f"another program is writing to {folder}; wait for its end, or choose --name")
    except Unavailable as error:
        return command_line.refused(error)
    except OSError as error:
        if running.where.workers == 0:  # it may be an agent's
            raise
        why = f"cannot go on in {folder}: {error}; what is there stays, the same command goes on"
        return command_line.refused(why, 3)
    except KeyboardInterrupt:
        print("interrupted; finished runs are kept, and the same command goes on from there", file=sys.stderr)
        return 130
    written = sorted(f"{path.name}{'/' * path.is_dir()}" for path in folder.iterdir() if path.name[0] != ".")
    print(f"wrote to {folder}: {', '.join(written)}", file=sys.stderr)
    root = ["--root", running.root] if running.root else []
    print(f"next: {shlex.join(['prune-env', 'report', str(folder), *root])}", file=sys.stderr)
    if failed:
        agents, path = ", ".join(dict.fromkeys(run.agent for run in failed)), folder / "failures.jsonl"
        return command_line.refused(f"{len(failed)} run(s) failed, of {agents}; tracebacks are in {path}", 1)
    return 0


def planned(running: Running, source: Source) -> tuple[Path, Plan, str]:
    """Return the folder of results, what is to be run, and the text of the file that it is from.

    Raises:
        ValueError, TypeError, OSError, gymnasium.error.Error: what is wrong, in one line.
    """
    executors.check(running.where)
    if not running.where.agent_timeout > 0:
        raise ValueError(f"--agent-timeout is {running.where.agent_timeout}; it must be a number of seconds above 0")
    if not running.where.checkpoint_seconds >= 0:
        raise ValueError(f"--checkpoint-seconds is {running.where.checkpoint_seconds}; it must be 0 or more")
    name, blocks, text = source()
    root = running.root and os.path.abspath(os.path.expanduser(running.root))  # for processes elsewhere
    plan = partial(make_plan, blocks, Place(root, running.download, running.where.device, running.images))
    if torchrun.active():
        if any(block.settings.get("compile", "off") != "off" for block in blocks):
            raise ValueError("--compile is for one device; under torchrun it must be off")
        plan = partial(torchrun.after_first, plan)
    return running.out / (running.name or name), plan(), text


def _terms(running: Running, folder: Path, plan: Plan) -> Terms:
    """Return how the runs of a plan are done."""
    times = (running.where.agent_timeout, running.where.checkpoint_seconds)
    return Terms(folder.absolute(), *times, plan.device, running.save_models, running.save_selections)


def finish(plan: Plan, folder: Path, running: Running, command: str, text: str, report: Report) -> list[Run]:
    """Do what is missing of a plan, keep each run as it ends in `folder`, and report; return the runs that failed.

    Other arguments as of `carry_out`, and what `planned` returned.

    Raises:
        Taken, Unavailable, OSError: it cannot go on, or not here.
        Exception: without workers, what the first run that fails raises.
    """
    with locked(folder):
        io.sweep(folder)
        records, failed = _run_missing(plan, folder, running, command, text)
        if records:
            report(folder, records, text)
    return failed


def _run_missing(plan: Plan, folder: Path, running: Running, command: str, text: str) -> tuple[list[Record], list[Run]]:
    """Do the runs that results.jsonl lacks, appending each as it ends; return the plan's records, and what failed.

    results.jsonl may also hold runs of former plans. A run whose files are asked for and missing is done again.
    """
    terms, path, failures = _terms(running, folder, plan), folder / "results.jsonl", folder / "failures.jsonl"
    records, torn = results.read(path)
    # a sweep file says all that its folder is about; without one, whatever is there counts
    former = [] if text else [key for key in records if key not in plan.runs]
    results.write_plan(folder, [*former, *plan.runs], text)  # what was asked for last counts
    progress = RunProgress(folder)
    if torn:
        progress.say(f"warning: {torn} line(s) of {path} are torn, and dropped")
    fresh = {key for key, run in plan.runs.items() if running.fresh or run.own}
    again = sum(records.pop(key, None) is not None for key in fresh)
    done, missing = [], []
    for key, run in plan.runs.items():
        if key in records and all(file.exists() for file in terms.files(run).values()):
            done.append(key)
        else:
            missing.append(run)
    others = len(records.keys() - plan.runs.keys())
    for key in done:
        records[key] |= {"task": plan.runs[key].task, "label": plan.runs[key].label}  # which may be others by now
    if path.exists():
        results.write(path, records.values())
    for key in [*fresh, *done]:  # of the latter if a kill came between its record and this
        checkpoints.forget(folder, key)
    replaced = f", {again} done again in place of earlier results" if again else ""
    more = f"; {folder} has {others} more, not asked for now" if others else ""
    progress.say(f"{count(len(plan.runs), 'run')}, {len(done)} of them done before{replaced}{more}")
    stale = Counter(records[key]["agent"] for key in done if _changed(records[key], plan.own_files))
    for agent, runs in stale.items():
        progress.say(f"warning: {agent} has changed since {runs} of its runs; --fresh runs all of them anew")
    failures.unlink(missing_ok=True)
    failed: list[Run] = []
    code = {**provenance.of_code(), "command": command}
    # without workers such an agent raises once more, with its traceback; runs that are done have no need of it
    given_up = [] if running.where.workers == 0 else [f for f in plan.failures if f.run.key not in done]
    keys = {failure.run.key for failure in given_up}
    outcomes = _outcomes([run for run in missing if run.key not in keys], terms, running)
    with progress.of(missing), closing(outcomes):
        for outcome in chain(given_up, outcomes):
            if isinstance(outcome, Failure):
                failure = {"key": outcome.run.key, **asdict(outcome)}
                settings = results.plain_settings(outcome.run.settings)
                failure["run"]["settings"] = {n: v for n, v in settings.items() if n not in ("root", "images")}
                io.append_line(failures, failure)
                failed.append(outcome.run)
                if outcome.final:
                    checkpoints.forget(folder, outcome.run.key)
                progress.advance(outcome, outcome.run)
            else:
                key = outcome["key"]
                outcome["provenance"] |= code
                io.append_line(path, outcome)
                records[key] = outcome
                checkpoints.forget(folder, key)
                progress.advance(outcome, plan.runs[key])
    if not failed:
        checkpoints.forget_others(folder, plan.runs)
    return [records[key] for key in plan.runs if key in records], failed


def _outcomes(missing: list[Run], terms: Terms, running: Running) -> Generator[Outcome, None, None]:
    """Yield what the missing runs come to, wherever they are done."""
    if torchrun.active():
        yield from torchrun.outcomes(lambda: missing, terms)
    elif running.where.workers == 0:
        yield from here(missing, terms)
    elif missing:
        yield from executors.outcomes(executors.start(running.where, terms, len(missing)), missing)


def _changed(record: Record, own_files: dict[str, str]) -> bool:
    """Say whether the agent of a record is a user's own, and had other files than now."""
    then = record["provenance"].get("own_files")
    return bool(then) and then != own_files.get(record["agent"])
