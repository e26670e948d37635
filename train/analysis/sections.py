"""The section of a report on one task."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prune_env.data import Data
from train.analysis import pictures, plots, summary
from train.analysis.markup import (
    SHOWN,
    Markup,
    breakable,
    coloured,
    count,
    difference,
    folded,
    folding,
    image,
    join,
    listed,
    remark,
    spread,
    table,
    tag,
)
from train.analysis.plots import COLUMNS, PANELS, Point
from train.analysis.statistics import FEW_SEEDS, MARGIN, ROUNDING, Interval, mean_interval
from train.analysis.summary import FULL, AgainstLarger
from train.analysis.table import MOSTLY, Row, rows
from train.execution.results import Record, grouped


@dataclass
class Gallery:
    """The figures there are, by the names of their files."""

    images: dict[str, bytes] = field(default_factory=dict)

    def show(self, name: str, drawn: Iterable[tuple[str, bytes]], caption: str | Markup) -> Markup:
        """A figure of one or more images, each with its description in words; nothing if there are none."""
        shown = []
        for number, (alt, png) in enumerate(drawn, start=1):
            self.images[f"{name}-{number}.png"] = png
            shown.append(image(png, alt, loading="lazy"))
        if not shown:
            return Markup()
        return tag("figure", tag("div", *shown, class_="figures"), tag("figcaption", caption))


@dataclass(frozen=True)
class Task:
    """What the sections need to know of a task."""

    name: str
    label: str  # of its anchors and files
    records: list[Record]
    cells: dict[float, list[Row]]  # by budget
    budget: float  # the one of the diagnostics: the largest of those with most agents
    agents: dict[str, list[Record]]  # that have it, in the order of the table
    data: Data | None  # what was trained on, if it may be shown
    missing: str  # why not

    @property
    def order(self) -> list[str]:
        """All agents, those of `agents` first."""
        return list(dict.fromkeys([*self.agents, *(record["agent"] for record in self.records)]))

    def classes(self) -> list[str]:
        """Names of the classes, numbers if the data are not there."""
        numbers = range(len(self.records[0]["results"]["class_visits"]))
        return list(self.data.classes) if self.data else list(map(str, numbers))


def make_task(number: int, name: str, records: list[Record], root: str | None) -> Task:
    groups = grouped(records)
    cells = {budget: rows(agents) for budget, agents in groups.items()}
    budget = max(cells, key=lambda budget: (len(cells[budget]), budget))
    agents = {row.agent: groups[budget][row.agent] for row in cells[budget]}
    train, missing = pictures.training_data(records[-1], root)
    name = name or records[0]["configuration"]["env"]
    slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:40]
    return Task(name, f"{number}-{slug}".rstrip("-"), records, cells, budget, agents, train, missing)


def section(task: Task, gallery: Gallery) -> Markup:
    return tag(
        "section",
        tag("h2", task.name, id=task.label),
        tag("h3", "All agents, by budget"),
        *_tables(task),
        tag("h3", "Lossless?"),
        _lossless(task),
        tag("h3", "Compute saved at equal accuracy"),
        _savings(task),
        tag("h3", "What brings it? Agents that differ in one thing"),
        _attribution(task),
        tag("h3", "One number for all budgets: area under accuracy over log budget"),
        _areas(task),
        tag("h3", "Accuracy over budget"),
        _accuracy(task, gallery),
        tag("h3", "Paired differences to full"),
        _forests(task, gallery),
        tag("h3", "Accuracy against seconds"),
        _seconds(task, gallery),
        tag("h3", f"What was kept over time, at budget {task.budget:g}"),
        remark(
            f"From here on all is of budget {task.budget:g}, the largest of those at which most agents ran: "
            f"{len(task.agents)} of {len(task.order)}."
        ),
        _kept(task, gallery),
        tag("h3", f"Visits per sample, at budget {task.budget:g}"),
        _visits(task, gallery),
        tag("h3", f"Classes, at budget {task.budget:g}"),
        _classes(task, gallery),
        tag("h3", f"Sometimes samples, at budget {task.budget:g}"),
        _sometimes(task, gallery),
    )


def _tables(task: Task) -> Iterable[Markup]:
    heads = ("agent", "test accuracy %", "difference to full", "worst class %", "kept %", "cover %", "Gini", "spent")
    heads += ("scoring", "time s", "agent s", "seeds")
    groups = grouped(task.records)
    everything = sum(map(len, task.cells.values())) <= SHOWN
    unequal = diverged = False
    for budget, cells in task.cells.items():
        lines = []
        for row in cells:
            runs = groups[budget][row.agent]
            less = row.spent < MOSTLY * budget
            lost = sum(run["results"]["diverged"] for run in runs)
            unequal, diverged = unequal or less, diverged or bool(lost)
            line = (
                join([breakable(row.agent), f" ({lost} diverged)" if lost else ""]),
                spread(row.accuracy, _interval_of(row), ".2f"),
                "" if row.difference is None else coloured(row.difference, row.difference_interval),
                f"{100 * _mean(runs, lambda r: r['test_worst_class_accuracy']):.1f}",
                f"{row.kept:.1f}",
                f"{row.coverage:.1f}",
                f"{_mean(runs, lambda r: r['visits_gini']):.2f}",
                f"{row.spent:.2f}" + (" †" if less else ""),
                f"{_mean(runs, lambda r: r['spent']['score']):.2f}",
                f"{row.seconds:.2f}",
                f"{row.select_seconds:.3f}",
                str(row.seeds),
            )
            lines.append(line)
        name = f"Budget {budget:g}: {count(len(lines), 'agent')}"
        shown = everything or budget == task.budget
        yield folded(name, table(heads, lines, f"{task.name}, budget {budget:g}"), shown=shown)
    note = (
        "Kept: share of the samples kept in a step, of those that train. Cover: share ever trained "
        "on. Gini of the visits: 0 when every sample was trained on equally often. Spent: full-epoch equivalents, and "
        "what of it went into scoring samples without training on them. Time: seconds of a whole run, and of these "
        "what the agent took."
    )
    if unequal:
        note += f" † Not at equal compute: less than {MOSTLY:.0%} of the budget was spent."
    if diverged:
        note += " A run that diverged ended early."
    if len({record["seed"] for record in task.records}) < FEW_SEEDS:
        note += f" Few seeds: {FEW_SEEDS} or more are needed to tell agents apart."
    yield remark(note)


def _lossless(task: Task) -> Markup:
    found = summary.equivalences(task.records)
    if not found:
        return remark("No agent that keeps a share k ran at a budget B together with full at B / k.")
    note = (
        "An agent that keeps a share k of the samples is compared with full training of about as many steps, at "
        f"budget / k. Lossless: the whole interval of the difference lies above -{MARGIN:g} points; lossy: all of it "
        f"lies below; else undecided, as always with fewer than {FEW_SEEDS} seeds."
    )
    vacuous = [each for each in found if each.verdict == "lossless" and each.vacuous]
    heads = ("agent", "budget", "full at", "verdict", "difference to that", "to full at the same budget")
    lines = [
        (
            breakable(each.agent),
            f"{each.budget:g}",
            f"{each.larger:g}",
            tag("span", f"{each.verdict} (so is full itself)", class_="note")
            if each in vacuous
            else tag("span", each.verdict, class_={"lossless": "up", "lossy": "down"}.get(each.verdict, "")),
            difference(each.difference),
            difference(each.same),
        )
        for each in found
    ]
    counts = Counter(each.verdict for each in found)
    so_is_full = f" ({len(vacuous)} where full itself is)" if vacuous else ""
    verdicts = f"{counts['lossless']} lossless{so_is_full}, {counts['undecided']} undecided, {counts['lossy']} lossy"
    named = [
        f"{each.agent} at budget {each.budget:g}"
        for each in found
        if each.verdict == "lossless" and each not in vacuous
    ]
    where = " where full itself is not found so" if vacuous else ""
    parts = [
        tag("p", note),
        tag("p", tag("strong", f"Lossless{where}: {listed(named) if named else 'none'}.")),
        *_brings_nothing([each for each in found if each.vacuous]),
        folding(heads, lines, verdicts, f"Lossless, {task.name}"),
        remark(
            f"{count(len(found), 'verdict')}, each by itself: with few seeds some are lossless by chance, of agents "
            "that lose exactly the margin about 5 % at ten seeds and 8 % at five."
        ),
    ]
    compared = {each.agent for each in found}
    keeps = {agent: summary.keep_of(agent) for agent in task.order if agent not in (FULL, *compared)}
    own = [agent for agent, keep in keeps.items() if keep is None or not 0 < keep < 1]
    others = [agent for agent in keeps if agent not in own]
    if own:
        parts.append(
            remark(f"Never a verdict: {listed(own)}. They set no share k: they choose their own amounts, or keep all.")
        )
    if others:
        parts.append(remark(f"No verdict: {listed(others)}. Full has not run with their seeds at budget / k."))
    return join(parts)


def _brings_nothing(vacuous: Sequence[AgainstLarger]) -> Iterable[Markup]:
    """Where verdicts are vacuous, and why; of several agents at one budget that with most seeds has the numbers."""
    most = sorted(vacuous, key=lambda each: each.itself.seeds if each.itself else 0)
    places = {(each.budget, each.larger): each.itself for each in most}
    told = [
        f"{budget:g} against {larger:g} ({spread(itself.mean, itself.interval, '+.2f')} points)"
        for (budget, larger), itself in sorted(places.items())
        if itself
    ]
    if told:
        yield tag(
            "p",
            f"At {listed(told)} training longer brings nothing: full itself at the smaller budget is lossless, so "
            "that an agent is lossless there says nothing of its choice.",
        )


def _savings(task: Task) -> Markup:
    found = summary.savings(task.records)
    if not found:
        return remark("This needs runs of full with the same seeds at two budgets or more.")
    note = (
        "Full training would need the budget in the third column for the agent's mean accuracy, read off its mean "
        "accuracies, linear in log budget; saved is 1 - budget / that. Negative: the agent needs more than full. ≤: "
        "full has that accuracy at its smallest budget already; ≥: at no budget that it ran. Intervals end there too."
    )
    curve = summary.full_curve(task.records)
    if any(after < before - ROUNDING for before, after in pairwise(curve.values())):
        means = listed(f"{mean:.2f} % at {budget:g}" for budget, mean in curve.items())
        note += (
            f" Full's mean falls somewhere with the budget here: {means}. The smallest budget with the accuracy "
            "counts, whatever full has at larger ones."
        )
    sign = {"at_least": "≥ ", "at_most": "≤ ", None: ""}
    lines = []
    for each in found:
        ends = each.interval and (round(100 * each.interval[0]), round(100 * each.interval[1]))
        # where all resamples lie out of full's range the interval has no width, and says nothing
        saved = spread(round(100 * each.saved), ends if ends and ends[0] < ends[1] else None, "+.0f")
        budgets = (f"{each.budget:g}", f"{sign[each.bound]}{each.full_budget:.3g}")
        lines.append((breakable(each.agent), *budgets, sign[each.bound] + saved))
    heads = ("agent", "budget", "full needs", "saved %")
    return join([tag("p", note), folding(heads, lines, count(len(lines), "comparison"), f"Savings, {task.name}")])


def _attribution(task: Task) -> Markup:
    lines = [
        (breakable(first), breakable(second), f"{each.budget:g}", difference(each.difference))
        for first, second in summary.one_apart(task.order)
        for each in summary.pairs(task.records, first, second)
    ]
    if not lines:
        return remark("No two agents differ in one thing only.")
    note = (
        "Paired difference in points between an agent and one that lacks a single switch or option of it; that takes "
        "only the numbers of samples from it and draws them at random (same_amounts: without the agent's choice, and "
        "without its weights, Mixup and scoring too where it has them); or that draws its random samples once for "
        "the run."
    )
    heads = ("agent", "against", "budget", "difference")
    return join([tag("p", note), folding(heads, lines, count(len(lines), "comparison"), f"Switches, {task.name}")])


def _areas(task: Task) -> Markup:
    found = sorted(summary.areas(task.records), key=lambda area: -area.area)
    if not found:
        return remark("This needs two budgets or more at which agents have the same seeds.")
    budgets, seeds = found[0].budgets, found[0].seeds
    note = (
        f"Mean test accuracy over log budget, from budget {budgets[0]:g} to {budgets[-1]:g}, by trapezoids between "
        f"the completed runs at {listed(f'{b:g}' for b in budgets)}, of the agents that have "
        f"{count(seeds, 'common seed')} at all of these."
    )
    lines = [
        (
            breakable(area.agent),
            spread(area.area, area.interval, ".2f"),
            difference(area.difference) if area.agent != FULL else "",
        )
        for area in found
    ]
    heads = ("agent", "area %", "difference to full")
    return join([tag("p", note), folding(heads, lines, count(len(lines), "agent"), f"Areas, {task.name}")])


def _accuracy(task: Task, gallery: Gallery) -> Markup:
    drawn = [
        (f"Test accuracy over log budget: {', '.join(some)}", plots.accuracy(task.cells, some))
        for some in chunks(task.order)
    ]
    caption = (
        "Test accuracy of completed runs against the budget, on a log scale: one panel an agent in blue, full "
        "training in dashed black in each. Bands and bars are 95 % intervals. Above the dashed line is better at "
        "equal compute; left of it is cheaper at equal accuracy. Of far outliers, below the panels, the means are "
        "given as numbers."
    )
    return gallery.show(f"{task.label}-accuracy", drawn, caption)


def _forests(task: Task, gallery: Gallery) -> Markup:
    drawn = []
    for budget, cells in task.cells.items():
        points = [Point(r.agent, r.difference, r.difference_interval) for r in cells if r.difference is not None]
        if points:
            points.sort(key=lambda point: -point.mean)
            png = plots.forest(points, f"difference to full at budget {budget:g} (points)", "+.2f", 0.0)
            drawn.append((f"Paired differences to full at budget {budget:g}, {count(len(points), 'agent')}", png))
    if not drawn:
        return remark("The difference needs the agent full.")
    caption = (
        "Difference in test accuracy to full training at the same budget, paired by seed, best first: the mean as a "
        "dot, its 95 % interval as a line, both as numbers at the right. Green: the whole interval lies above 0; "
        "vermilion: below; grey: not told apart from full. A triangle stands for a mean outside the panel."
    )
    return gallery.show(f"{task.label}-differences", drawn, caption)


def _seconds(task: Task, gallery: Gallery) -> Markup:
    drawn = [
        (
            f"Test accuracy against seconds of a run at budget {budget:g}",
            plots.seconds(cells, f"seconds of a run, budget {budget:g}"),
        )
        for budget, cells in task.cells.items()
        if len(cells) > 1 or len(task.order) == 1
    ]
    caption = (
        "Mean test accuracy, with its interval, against the mean wall-clock seconds of a run at one budget. Named: "
        "full (star) and the agents, in blue, that no other beats in both; the rest is grey. Equal budgets are "
        "equal counted compute; seconds also have the agent's own time. They are wall-clock of runs that shared the "
        "machine with each other (on a CPU one process a core), and with whatever else ran there: compare with care."
    )
    return gallery.show(f"{task.label}-seconds", drawn, caption)


def _kept(task: Task, gallery: Gallery) -> Markup:
    shares = {
        agent: _average([_grid(r["results"]["kept_by_difficulty"]) for r in runs])
        for agent, runs in task.agents.items()
    }
    drawn = [(f"Share kept by difficulty and time: {', '.join(some)}", plots.kept(some)) for some in chunks_of(shares)]
    caption = (
        "Left to right: the budget as it is spent, in twentieths. Bottom to top: the samples by their running mean "
        "loss, in tenths, the hardest on top. Yellow: all were kept in these steps; dark: none. A pattern that "
        "changes from left to right is what static pruning cannot do. Means over seeds; a step lasts until the next "
        "begins."
    )
    return gallery.show(f"{task.label}-kept", drawn, caption)


def _visits(task: Task, gallery: Gallery) -> Markup:
    found = {agent: _average([r["results"]["visits"] for r in runs]) for agent, runs in task.agents.items()}
    drawn = [
        (f"Visits per sample, in ascending order: {', '.join(some)}", plots.visits(some, task.budget))
        for some in chunks_of(found)
    ]
    caption = (
        "How often samples were trained on, from the least to the most visited, mean over seeds. Dashed: full "
        "training, where every sample has its turn in every epoch. Flat is even; a rise at the right is a few "
        "samples seen again and again; 0 at the left is data never used."
    )
    parts = [gallery.show(f"{task.label}-visits", drawn, caption)]
    wrong = _points(task, lambda result: result["wrong_visits"])
    if wrong:
        png = plots.forest(wrong, "visits of wrong labels, relative to all", ".2f", 1.0, better=-1)
        caption = (
            "How often the samples with a wrong label were trained on, relative to all samples: 1 is as often as "
            "others, 2 twice as often. Preferring high losses finds them and trains on them (vermilion: the interval "
            "lies above 1); below 1 (green) they were avoided."
        )
        parts.append(gallery.show(f"{task.label}-wrong", [("Relative visits of wrong labels, by agent", png)], caption))
    return join(parts)


def _classes(task: Task, gallery: Gallery) -> Markup:
    names = task.classes()
    visits = {agent: _average([r["results"]["class_visits"] for r in runs]) for agent, runs in task.agents.items()}
    tested = {
        agent: 100 * _average([r["results"]["test_class_accuracy"] for r in runs])
        for agent, runs in task.agents.items()
    }
    worst = _points(task, lambda result: 100 * result["test_worst_class_accuracy"])
    drawn = [
        (
            "Relative visits of each class, by agent",
            plots.classes(visits, names, "visits relative to the class's share", ".2f", 1.0),
        ),
        ("Test accuracy of each class, by agent", plots.classes(tested, names, "test accuracy (%)", ".0f", None)),
        (
            "Test accuracy of the worst class, by agent",
            plots.forest(worst, "test accuracy of the worst class (%)", ".1f"),
        ),
    ]
    caption = (
        "First, the balance of the classes: how often a class was trained on, relative to its share of the data; 1, "
        "in white, is in proportion. Second, the test accuracy of each class. Third, that of the worst class of "
        "each run, mean and 95 % interval. Means over seeds; agents in the order of their test accuracy, full first."
    )
    return gallery.show(f"{task.label}-classes", drawn, caption)


def _sometimes(task: Task, gallery: Gallery) -> Markup:
    groups = ("always", "sometimes", "never")
    shares = {}
    for agent, runs in task.agents.items():
        found = [[run["results"]["sometimes"][group] for group in groups] for run in runs]
        chosen = [values for values in found if None not in values]
        if chosen:
            shares[agent] = np.mean(chosen, axis=0).tolist()
    if not shares:
        return remark("No agent dropped anything.")
    note = (
        "Raju et al. (arXiv 2111.12621) call the samples that a rule keeps in some epochs and not in others "
        "sometimes samples: only a dynamic rule can use them. Counted over the steps that dropped something; agents "
        "that dropped nothing have no bar."
    )
    caption = "Shares of the training samples (%) kept in all of these steps, in some, and in none; means over seeds."
    drawn = [("Shares of samples always, sometimes and never kept, by agent", plots.divided(shares))]
    return join(
        [tag("p", note), gallery.show(f"{task.label}-sometimes", drawn, caption), _pictures(task, list(shares))]
    )


def _pictures(task: Task, agents: Sequence[str]) -> Markup:
    """Samples that some agents kept always, sometimes and never, if their pictures are there."""
    if task.data is None:
        return remark(f"No pictures: {task.missing}")
    parts = []
    for agent in pictures.pictured(agents):
        run = min(task.agents[agent], key=lambda run: run["seed"])
        parts.append(tag("h4", f"{agent}, seed {run['seed']}"))
        for group, examples in run["results"]["sometimes"]["examples"].items():
            if examples:
                shown = (pictures.thumbnail(task.data, index, share) for index, share in examples)
                parts += [
                    remark(f"{group} kept".capitalize()),
                    tag("div", *shown, class_="thumbnails"),
                ]
    note = (
        "Below each picture: its class as training sees it, and the share of the steps in which it was kept; of the "
        "sometimes samples those nearest to one half. A thick frame marks a wrong label."
    )
    return join([remark(note), *parts])


def _mean(runs: Sequence[Record], value: Callable[[dict[str, Any]], float]) -> float:
    return float(np.mean([value(run["results"]) for run in runs]))


def _points(task: Task, value: Callable[[dict[str, Any]], float | None]) -> list[Point]:
    """A number of each agent, mean and interval over seeds, largest first; without those that do not have it."""
    points = []
    for agent, runs in task.agents.items():
        values = [found for run in runs if (found := value(run["results"])) is not None]
        if values:
            points.append(Point(agent, float(np.mean(values)), mean_interval(values) if len(values) > 1 else None))
    return sorted(points, key=lambda point: -point.mean)


def _average(values: Sequence[Any]) -> NDArray:
    """Mean over seeds, (...) of (S, ...), of what is there: None and NaN are not; NaN where nothing is."""
    return np.ma.masked_invalid(np.array(values, dtype=np.float64)).mean(axis=0).filled(np.nan)


def _grid(shares: Sequence[Sequence[float | None] | None]) -> list[Sequence[float | None]]:
    """Shares kept, in each part of the budget those of the last step that had begun."""
    rows: list[Sequence[float | None]] = [[None] * max(len(row) for row in shares if row is not None)]
    for row in shares:
        rows.append(rows[-1] if row is None else row)
    return rows[1:]


def _interval_of(row: Row) -> Interval | None:
    return row.accuracy_interval if row.seeds > 1 else None


def chunks(agents: Sequence[str]) -> list[list[str]]:
    """Agents for each of several figures, about as many in each, in full lines."""
    figures = max(-(-len(agents) // PANELS), 1)
    size = max(-(-len(agents) // (figures * COLUMNS)) * COLUMNS, 1)
    return [list(agents[start : start + size]) for start in range(0, len(agents), size)]


def chunks_of(found: dict[str, Any]) -> list[dict[str, Any]]:
    return [{agent: found[agent] for agent in some} for some in chunks(list(found))]
