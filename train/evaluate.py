"""Compare agents at equal compute: `python -m train.evaluate --help`."""

from __future__ import annotations

import io
import shlex
import sys
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict

import gymnasium as gym
import tyro
from rich.console import Console, Group
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from prune_env import files
from train import provenance, results, table, workers
from train.plan import Arguments, Plan, make_plan
from train.results import Record
from train.workers import Failure


def run_missing(plan: Plan, command: str, console: Console) -> tuple[dict[str, Record], list[Failure]]:
    """Do the runs that the results file lacks, appending each as it ends.

    Returns:
        All records of the plan by key, and what failed.
    """
    path = plan.folder / "results.jsonl"
    done, unreadable = results.read(path)
    if unreadable:
        dropped = f"warning: {unreadable} unreadable line(s) dropped from {path}; those runs are done again"
        console.print(dropped, markup=False, soft_wrap=True)
    missing = {key: run for key, run in plan.runs.items() if key not in done}
    found = f"{len(plan.runs)} runs, {len(plan.runs) - len(missing)} of them done before; results in {plan.folder}"
    console.print(found, markup=False, soft_wrap=True)
    failures: list[Failure] = []
    failed = plan.folder / "failures.jsonl"
    failed.unlink(missing_ok=True)
    code = {**provenance.of_code(), "command": command}
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    if missing:
        with (
            Progress(*columns, console=console) as progress,
            closing(workers.outcomes(missing, min(plan.workers, len(missing)))) as outcomes,
        ):
            bar = progress.add_task("runs", total=len(missing))
            for outcome in outcomes:
                if isinstance(outcome, Failure):
                    results.append(failed, asdict(outcome))
                    if outcome.run.agent not in {failure.run.agent for failure in failures}:
                        progress.console.print(f"{outcome.run.agent} failed: {outcome.error}", markup=False)
                    failures.append(outcome)
                else:
                    outcome["provenance"] |= code
                    results.append(path, outcome)
                    done[outcome["key"]] = outcome
                progress.advance(bar)
    return {key: done[key] for key in plan.runs if key in done}, failures


def report(plan: Plan, records: Sequence[Record], seeds: int) -> None:
    """Print the table, and write it with the curves and the figure into the folder of results."""
    # imported here: worker processes import this module too, and these take a second
    from train import curves, figures

    heading = table.heading(records[0])
    rendered = Group(Text(heading), table.render(records, seeds))
    text = io.StringIO()
    Console(width=table.WIDTH, file=text).print(rendered)
    plain = "".join(line.rstrip() + "\n" for line in text.getvalue().splitlines())
    files.replace(plan.folder / "table.txt", plain.encode())
    if sys.stdout.isatty():
        Console().print(rendered)
    else:
        print(plain, end="")
    curves.write_csv(plan.folder / "curves.csv", records)
    figures.write_accuracy(plan.folder / "accuracy.png", records, heading)
    curves.write_events(plan.folder / "tensorboard", records)


def main(args: Sequence[str] | None = None) -> int:
    """Run the program with `args` (else those of the command line); return its exit status.

    0: all runs are there; 1: some failed; 2: nothing was run, the arguments are wrong; 130: interrupted.
    """
    arguments = tyro.cli(Arguments, args=args)
    console = Console(stderr=True)
    try:
        with console.status("reading the images and checking the arguments"):
            plan = make_plan(arguments)
        plan.folder.mkdir(parents=True, exist_ok=True)
    except (ValueError, TypeError, OSError, gym.error.Error) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    command = shlex.join(["python", "-m", "train.evaluate", *(sys.argv[1:] if args is None else args)])
    try:
        records, failures = run_missing(plan, command, console)
    except KeyboardInterrupt:
        print("interrupted; finished runs are kept, and the same command goes on from there", file=sys.stderr)
        return 130
    if records:
        report(plan, list(records.values()), arguments.seeds)
    if failures:
        failed = ", ".join(dict.fromkeys(failure.run.agent for failure in failures))
        path = plan.folder / "failures.jsonl"
        print(f"error: {len(failures)} run(s) failed, of {failed}; tracebacks are in {path}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
