"""Report on a sweep as one HTML file: `python -m train.report --help`."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from prune_env import io
from train.analysis import plots, summary
from train.analysis.markup import (
    Markup,
    breakable,
    bullets,
    coloured,
    count,
    difference,
    escaped,
    folded,
    folding,
    join,
    listed,
    remark,
    spread,
    table,
    tag,
    wrapped,
)
from train.analysis.sections import Gallery, Task, chunks_of, make_task, section
from train.analysis.summary import FULL, Win
from train.execution import results
from train.execution.results import Record

NAMED = 4  # agents that are named in a line; more are folded
THRESHOLDS = 81  # of a performance profile


@dataclass
class Arguments:
    """Write FOLDER/report.html, which needs no network and no JavaScript, and its figures as PNG beside it.

    FOLDER is what `train.sweep` or `train.evaluate` wrote. It may still be running: nothing else is touched. Runs that
    the last plan, cells.json there, does not have are left out.
    """

    folder: tyro.conf.Positional[Path]
    """Folder with results.jsonl."""
    root: str | None = None
    """Folder with the images, to show some of them; without it only those that come with the package are shown."""


def build(folder: Path, root: str | None = None) -> tuple[str, dict[str, bytes]]:
    """The report on a folder of results, as HTML, and its figures by name.

    Raises:
        ValueError: there are no results, or none of the last plan; or cells.json, its keys, is damaged.
        OSError: they cannot be read.
    """
    found, unreadable = results.read(folder / "results.jsonl")
    failed, unreadable_failures = results.read(folder / "failures.jsonl")
    cells = folder / "cells.json"
    keys, source = results.read_plan(folder, found)
    planned = len(keys)
    found = {key: found[key] for key in keys if key in found}
    failed = {key: failed[key] for key in keys if key in failed} if cells.exists() else failed
    if not found:
        of_plan = " of the plan in cells.json" if cells.exists() else ""
        raise ValueError(f"{folder / 'results.jsonl'} has no results{of_plan}; is {folder} what train.sweep wrote?")
    records = summary.latest(list(found.values()))
    failures = list(failed.values())
    tasks = [
        make_task(number, name, of_task, root)
        for number, (name, of_task) in enumerate(summary.by_task(records).items(), start=1)
    ]
    gallery = Gallery()
    title = f"prune_env: {folder.resolve().name}"
    content = [
        tag("h1", title),
        tag(
            "p",
            _compared(tasks, records, f"{len(found):,} of {planned:,} planned runs" if len(found) < planned else ""),
        ),
        _contents(tasks, len(failures)),
        _answer(tasks, records),
        *(section(task, gallery) for task in tasks),
        _together(records, len(tasks), gallery),
        _failures(failures),
        _provenance(source, tasks, records, unreadable, unreadable_failures),
    ]
    style = (Path(__file__).parent / "analysis" / "report.css").read_text()
    page = f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escaped(title)}</title>
<style>
{style}</style>
</head>
<body>
<main>
{join(content, Markup(chr(10)))}
</main>
</body>
</html>
"""
    return page, gallery.images


# The first screen


def _compared(tasks: Sequence[Task], records: Sequence[Record], part: str) -> str:
    """What was run; `part` says how many of the planned runs if not all of them."""
    networks = dict.fromkeys(record["configuration"]["recipe"]["model"] for record in records)
    budgets = sorted({record["budget"] for record in records})
    names = [task.name + (f" ({len(task.data):,} training samples)" if task.data else "") for task in tasks]
    seeds = len({record["seed"] for record in records})
    return (
        f"{part or count(len(records), 'run')} of {count(len({r['agent'] for r in records}), 'agent')} on "
        f"{listed(names)}: network {listed(networks)}, {count(seeds, 'seed')}, "
        f"{'budgets' if len(budgets) > 1 else 'budget'} {listed(f'{b:g}' for b in budgets)}, in full-epoch "
        "equivalents of compute. Every number is the test accuracy of a completed run, whose test split was opened "
        "once, at its end. Intervals are 95 % bootstrap intervals over seeds; differences to full training are "
        "paired by seed."
    )


def _contents(tasks: Sequence[Task], failures: int) -> Markup:
    links = [(task.label, task.name) for task in tasks]
    links.append(("together", "All together"))
    if failures:
        links.append(("failures", count(failures, "failed run")))
    links.append(("provenance", "Provenance"))
    return tag("nav", join((tag("a", name, href=f"#{label}") for label, name in links), " "), aria_label="Sections")


def _answer(tasks: Sequence[Task], records: Sequence[Record]) -> Markup:
    parts = [tag("h2", "Which agent should I use at my budget?")]
    for task in tasks:
        parts += [tag("h3", task.name), tag("div", _verdict(task)), _longer(task), _best(task)]
    wins = summary.wins(records)
    if wins.cells:
        chance = (
            f"How much of this is chance? Of {count(wins.cells, 'comparison')} with full training at equal budget, "
            f"{wins.above} {'has its' if wins.above == 1 else 'have their'} whole interval above 0 and {wins.below} "
            f"below. If no agent differed from full, about {wins.expected_few:.1f} would on each side: 2.5 % of "
            f"them, {wins.expected:.1f}, were the intervals exact, but with this few seeds they are too narrow. The "
            "best of many agents is lucky as well as good."
        )
        parts.append(remark(chance))
    return tag("section", *parts, class_="answer")


def _verdict(task: Task) -> Markup:
    """In words: which agents beat full, at which budget."""
    wins = summary.wins(task.records)
    if not wins.cells:
        why = "no agent has two seeds in common with it" if FULL in task.order else "the agent full was not run"
        return tag("p", f"Nothing can be told apart from full training: {why}.")
    if not wins.winning:
        return tag("p", tag("strong", "At no budget does an agent beat full training beyond its interval."))
    budgets: dict[float, list[Win]] = {}
    for win in sorted(wins.winning, key=lambda win: (win.budget, -win.difference.mean)):
        budgets.setdefault(win.budget, []).append(win)
    lines = []
    for budget, (first, *others) in budgets.items():
        beaten = f" {first.agent}, {spread(first.difference.mean, first.difference.interval, '+.2f')} points"
        more = f"; {count(len(others), 'other agent')} by less" if others else ""
        lines.append(join([tag("strong", f"At budget {budget:g}"), beaten, more, "."]))
    compared = [
        f"{b:g}" for b, row in task.cells.items() if b not in budgets and any(r.difference_interval for r in row)
    ]
    if compared:
        lines.append(join([tag("strong", f"At budget {listed(compared)}"), " none."]))
    return join([tag("p", tag("strong", "Better than full training beyond its interval:")), bullets(lines)])


def _longer(task: Task) -> Markup:
    """In words: whether the best mean, and that of full, are had before the largest budget; else nothing."""
    every = summary.best(task.records)
    rivals = [best.budget for best in every if len(task.cells[best.budget]) > 1] or [best.budget for best in every]
    top = max(every, key=lambda best: best.accuracy, default=None)
    told = []
    if top and top.budget < max(rivals):
        told.append(
            f"More compute than budget {top.budget:g} does not help here: the highest mean of all, "
            f"{top.accuracy:.2f} %, is {top.agent}'s at budget {top.budget:g}."
        )
    curve = summary.full_curve(task.records)
    at = max(curve, key=lambda budget: (round(curve[budget], 9), -budget), default=0.0)
    if curve and at < max(curve) and not (told and top and top.agent == FULL):
        last = max(curve)
        told.append(f"Full training is best at budget {at:g}: {curve[at]:.2f} %, and {curve[last]:.2f} % at {last:g}.")
    return tag("p", " ".join(told)) if told else Markup()


def _best(task: Task) -> Markup:
    """The best agent at each budget, but for those at which full alone ran: they are there to compare with."""
    lines, alone = [], []
    for best in summary.best(task.records):
        others = len(task.cells[best.budget]) - 1
        if not others and len(task.order) > 1:
            alone += [f"{best.agent} at {best.budget:g}"] if best.agent != FULL else []
            continue
        tied = join(map(breakable, best.tied), ", ") or ("none: every other is told apart" if others else "–")
        if len(best.tied) > NAMED:
            tied = folded(f"{len(best.tied)} of the {others} others", tied)
        lines.append(
            (
                f"{best.budget:g}",
                breakable(best.agent),
                spread(best.accuracy, best.interval, ".2f"),
                difference(best.difference) if best.agent != FULL else "",
                wrapped(tied),
            )
        )
    heads = ("budget", "best mean", "test accuracy %", "difference to full", "not told apart from")
    note = f"Alone at a budget: {listed(alone)}." if alone else ""
    return join([table(heads, lines, f"Best agents, {task.name}", stacked=True), remark(note) if note else ""])


# All tasks, failures, provenance


def _together(records: Sequence[Record], tasks: int, gallery: Gallery) -> Markup:
    parts = [tag("h2", "All tasks and budgets together" if tasks > 1 else "All budgets together", id="together")]
    found = sorted(summary.improvements(records), key=lambda each: -each.probability)
    if not found:
        return tag("section", *parts, remark("This needs the agent full."))
    note = (
        "Probability that a run of the agent beats the run of full training with the same seed, ties half: 0.5 is "
        "no improvement. It is averaged over the cells (task and budget) that both have, which weigh the same; "
        "agents that were run in other cells are not on the same footing."
    )
    heads = ("agent", "P(better than full)", "difference, points", "cells", "pairs")
    lines = [
        (
            breakable(each.agent),
            spread(each.probability, each.interval, ".2f"),
            coloured(each.difference, each.difference_interval),
            str(each.cells),
            str(each.pairs),
        )
        for each in found
    ]
    parts += [
        tag("h3", "Probability of improvement"),
        tag("p", note),
        folding(heads, lines, count(len(lines), "agent"), "Probability of improvement"),
        tag("h3", "Performance profile"),
        _profiles(records, gallery),
    ]
    return tag("section", *parts)


def _profiles(records: Sequence[Record], gallery: Gallery) -> Markup:
    differences = [abs(each.difference) for each in summary.improvements(records)]
    reach = max(1.0, float(np.ceil(2 * np.median(differences))))
    thresholds = np.linspace(-reach, reach, THRESHOLDS)
    found = summary.profile(records, thresholds)
    drawn = [
        (f"Performance profiles: {', '.join(some)}", plots.profiles(some, thresholds)) for some in chunks_of(found)
    ]
    caption = (
        "Share of an agent's runs whose difference to full lies above each value, with pointwise 95 % intervals, "
        "over the largest set of agents and cells in which each agent has each cell. Further to the right is better; "
        "an agent like full passes 0 points below 50 %, by half of the runs that equal full's."
    )
    return gallery.show("profile", drawn, caption) or remark("No cell has all seeds of full.")


def _failures(failures: Sequence[Record]) -> Markup:
    if not failures:
        return Markup()
    parts = [tag("h2", count(len(failures), "failed run"), id="failures")]
    for failure in failures:
        run = failure["run"]
        cell = f"{run['task']}, {run['agent']}, budget {run['settings']['budget']:g}, seed {run['seed']}"
        line = f"{cell}: {failure['error']}"
        parts.append(folded(line, tag("pre", failure["traceback"])))
    return tag("section", *parts)


def _provenance(
    source: str, tasks: Sequence[Task], records: Sequence[Record], unreadable: int, unreadable_failures: int
) -> Markup:
    of_runs = [record["provenance"] for record in records]
    names = (
        "version",
        "commit",
        "dirty",
        "python",
        "torch",
        "numpy",
        "gymnasium",
        "device",
        "threads",
        "bf16",
        "command",
    )
    labels = {"version": "prune_env", "dirty": "files differ from the commit", "bf16": "bfloat16"}
    lines = [(labels.get(name, name), _values(run.get(name) for run in of_runs)) for name in names]
    times = sorted(run["time"] for run in of_runs)
    lines.append(("runs ended", escaped(f"{times[0]} to {times[-1]}")))
    parts = [tag("h2", "Provenance", id="provenance"), _plain_table(lines, "Provenance")]
    for name, lines in (("results.jsonl", unreadable), ("failures.jsonl", unreadable_failures)):
        if lines:
            parts.append(remark(f"Lines of {name} that could not be read: {lines}."))
    for task in tasks:
        parts += [tag("h3", task.name), _plain_table(_recipe(task), f"Recipe and data, {task.name}")]
    parts.append(_code(records))
    if source:
        parts += [tag("h3", "Sweep file"), tag("pre", source)]
    return tag("section", *parts)


def _recipe(task: Task) -> list[tuple[str, Markup]]:
    """What was trained how, a line a setting; values that are not the same for all runs with their budgets."""
    configurations = [(record["budget"], record["configuration"]) for record in task.records]
    lines = [("env", _values(c["env"] for _, c in configurations))]
    for part in ("settings", "recipe"):
        for name in dict.fromkeys(name for _, c in configurations for name in c[part] if name != "budget"):
            by_budget: dict[float, Counter[str]] = {}
            for budget, c in configurations:
                by_budget.setdefault(budget, Counter())[str(c[part].get(name))] += 1
            same = len({value for values in by_budget.values() for value in values}) == 1
            told = [_one_or_more(values) + ("" if same else f" at {budget:g}") for budget, values in by_budget.items()]
            lines.append((name, escaped("; ".join(dict.fromkeys(told)))))
    parts = dict.fromkeys(part for r in task.records for part in r["provenance"]["data"])
    digests = [
        (f"{part} data, SHA-256", _values(r["provenance"]["data"].get(part) for r in task.records)) for part in parts
    ]
    return lines + digests


def _one_or_more(values: Counter[str]) -> str:
    """A value, or several of one budget, each with how many runs have it."""
    return next(iter(values)) if len(values) == 1 else listed(f"{v} ({count(n, 'run')})" for v, n in values.items())


def _code(records: Sequence[Record]) -> Markup:
    """Digests of the agents' code, shortened."""
    digests: dict[str, Counter[str]] = {}
    for record in records:
        digest = str(record["provenance"].get("agent_digest") or "–")[:12]
        digests.setdefault(record["agent"], Counter())[digest] += 1
    several = sum(len(of_agent) > 1 for of_agent in digests.values())
    lines = [
        (
            breakable(agent),
            join([_one_or_more(found), tag("span", " several", class_="down") if len(found) > 1 else ""]),
        )
        for agent, found in digests.items()
    ]
    name = "Code of the agents, SHA-256" + (f" ({count(several, 'agent')} with several)" if several else "")
    return folded(name, table(("agent", "digest"), lines, name))


def _values(values: Iterable[Any]) -> Markup:
    """Different values, each with how many runs have it if there are several."""
    counts = Counter(str(value) for value in values)
    lines = [[tag("code", value), "" if len(counts) == 1 else f" ({count(n, 'run')})"] for value, n in counts.items()]
    return join(map(join, lines), Markup("<br>"))


def _plain_table(lines: Iterable[tuple[str, Markup]], label: str) -> Markup:
    return table(("", ""), [(name, wrapped(value)) for name, value in lines], label)


def main(args: Sequence[str] | None = None) -> int:
    """Run the program with `args` (else those of the command line); return its exit status: 2 without results."""
    arguments = tyro.cli(Arguments, args=args)
    try:
        page, images = build(arguments.folder, arguments.root)
        figures = arguments.folder / "figures"
        for name, png in images.items():
            io.replace(figures / name, png)
        io.replace(arguments.folder / "report.html", page.encode("utf-8", "backslashreplace"))
        for name in {path.name for path in figures.glob("*.png")} - images.keys():
            (figures / name).unlink()  # of a report that had other tasks
    except (ValueError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    print(arguments.folder / "report.html")
    return 0


if __name__ == "__main__":
    sys.exit(main())
