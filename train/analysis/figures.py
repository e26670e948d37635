"""Draw the figures: of an evaluation, accuracy against compute; of a report, panels or lines of agents.

A report's figures are as wide as a phone. Agents have panels or lines of their own, so that there is no legend to look
up however many they are. All colours can be told apart by the colour-blind.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from io import BytesIO
from itertools import cycle, product
from typing import Any, TypeVar

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator
from numpy.typing import NDArray
from PIL import Image

from train.analysis.records import Record
from train.analysis.statistics import Interval, Mean, side
from train.analysis.summary import FULL, Row, grouped, rows
from train.analysis.text import folded, number, readable, spread

# Okabe and Ito's colours
COLOURS = ("#E69F00", "#56B4E9", "#009E73", "#0072B2", "#D55E00", "#CC79A7")
ORANGE, _, GREEN, BLUE, VERMILION, _ = COLOURS
SIDES = {1: GREEN, 0: "#444444", -1: VERMILION}
STYLES = ("-", "--", ":", "-.")
MARKERS = ("o", "s", "^", "D")
SHOWN_FROM = 0.25  # share of the budget from which on every curve lies inside the picture

WIDTH = 4.2  # inches: 7 points are then legible on a phone
DPI = 180
LETTERS: Any = {
    "font.size": 6.6,  # of ticks and panels
    "axes.titlesize": 6.6,
    "axes.labelsize": 7.5,
    "figure.labelsize": 7.5,
    "legend.fontsize": 7.5,
}
PANELS = 12  # in a figure of small multiples, at most; more agents make more figures
COLUMNS = 3
CELLS = 6  # columns in a figure of agents × troubles, at most

Item = TypeVar("Item")


# An evaluation


class Shown(Figure):
    """A figure that a notebook shows, also without pyplot."""

    def _repr_png_(self) -> bytes:
        return png(self)


def evaluation(records: Sequence[Record], title: str) -> Figure:
    """Draw validation accuracy over compute, and the final test accuracy beside it, by budget.

    Lines are means over seeds and bands reach from the lowest seed to the highest; the error bars of the test
    accuracy are the 95 % intervals of the table.
    """
    groups = grouped(records)
    looks = _looks(list(dict.fromkeys(agent for agents in groups.values() for agent in agents)))
    names = {budget: {agent: _text(folded(agent, 24)) for agent in agents} for budget, agents in groups.items()}
    heights = [max(4.2, 1.0 + float(_heights(of.values(), 0.17).sum())) for of in names.values()]
    figure = Shown(figsize=(11, 0.8 + sum(heights)), dpi=120, layout="constrained")
    figure.suptitle(_text(title))
    panels = figure.subplots(len(groups), 2, squeeze=False, width_ratios=(2, 1), height_ratios=heights)
    for (left, right), (budget, agents) in zip(panels, groups.items(), strict=True):
        _draw_curves(left, agents, looks)
        left.set_title(f"budget {budget:g}: validation, mean and range over seeds")
        left.set_xlabel("compute spent (full-epoch equivalents)")
        left.set_ylabel("validation accuracy (%)")
        ordered = rows(agents)
        labels = [names[budget][row.agent] for row in ordered]
        space = _heights(labels, 0.17)
        places = np.cumsum(space) - space / 2
        for place, row in zip(places, ordered, strict=True):
            mean, (low, high) = row.accuracy.mean, _ends(row.accuracy)
            right.errorbar(mean, place, xerr=[[mean - low], [high - mean]], capsize=3, **looks[row.agent])
        right.set_title("final test, 95 % interval")
        right.set_yticks(places, labels)
        right.set_ylim(float(space.sum()), 0.0)
        right.set_xlabel("test accuracy (%)")
        right.grid(alpha=0.3)
    return figure


def png(figure: Figure) -> bytes:
    """Return a figure as a PNG file's bytes, as it is; a report's are smaller, see `_small_png`."""
    image = BytesIO()
    figure.savefig(image, format="png")
    return image.getvalue()


def _looks(agents: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Colour, line and marker of each agent; no two of the first 24 are alike."""
    turns = cycle(product(zip(STYLES, MARKERS, strict=True), COLOURS))
    others = [agent for agent in agents if agent != FULL]
    looks = {
        agent: {"color": color, "linestyle": line, "marker": marker}
        for agent, ((line, marker), color) in zip(others, turns, strict=False)
    }
    return {FULL: {"color": "black", "linestyle": "-", "marker": "*"}, **looks}


def _draw_curves(axes: Axes, agents: dict[str, list[Record]], looks: dict[str, dict[str, Any]]) -> None:
    lowest, highest = 100.0, 0.0
    for agent, records in agents.items():
        spent, accuracy = _on_one_grid(records)
        mean = accuracy.mean(axis=0)
        axes.plot(spent, mean, linewidth=1.6, markevery=[-1], **looks[agent])
        lows, highs = accuracy.min(axis=0), accuracy.max(axis=0)
        axes.fill_between(spent, lows, highs, color=looks[agent]["color"], alpha=0.08)
        lowest = min(lowest, float(np.interp(SHOWN_FROM * records[0]["budget"], spent, mean)))
        highest = max(highest, float(highs.max()))
    axes.set_ylim(lowest - 1.0, highest + 1.0)
    axes.set_xlim(left=0.0)
    axes.grid(alpha=0.3)


def _on_one_grid(records: list[Record]) -> tuple[NDArray, NDArray]:
    """Compute spent (T,) and validation accuracy in per cent (seeds, T), linear between a run's own steps.

    A run that ended early stays where it was.
    """
    curves = [(np.array(r["curve"]["spent"]), np.array(r["curve"]["val_accuracy"])) for r in records]
    spent = np.unique(np.concatenate([points for points, _ in curves]))
    spent = spent[spent >= max(points[0] for points, _ in curves)]
    return spent, 100.0 * np.stack([np.interp(spent, points, accuracy) for points, accuracy in curves])


# A report


@rc_context(LETTERS)
def forest(differences: Mapping[str, Mean], label: str) -> bytes:
    """Draw a line an agent: its difference with the interval, and the numbers at the right; 0 is a vertical line."""
    figure, axes, places, _ = _lines(list(differences), 0.55)
    low, high = _limits(differences.values(), zero=True)
    for place, difference in zip(places, differences.values(), strict=True):
        mean, colour = difference.mean, SIDES[side(difference.interval)]
        axes.plot(_ends(difference), [place, place], color=colour, linewidth=1.4, solid_capstyle="butt")
        outside = "<" if mean < low else ">" if mean > high else "o"
        axes.plot(min(max(mean, low), high), place, outside, color=colour, markersize=3.5, clip_on=False)
        numbers = spread(mean, difference.interval, "+.2f")
        axes.text(1.02, place, numbers, transform=axes.get_yaxis_transform(), va="center", color=colour)
    axes.axvline(0.0, color="black", linewidth=0.8)
    axes.set_xlim(low, high)
    axes.locator_params(axis="x", nbins=4)
    axes.set_xlabel(label)
    axes.grid(axis="x", alpha=0.3)
    axes.spines[["top", "right", "left"]].set_visible(False)
    return _small_png(figure)


@rc_context(LETTERS)
def accuracy(cells: Mapping[float, Sequence[Row]], agents: Sequence[str]) -> bytes:
    """Draw test accuracy over log budget, a panel an agent, with `full` in black; bands are the intervals."""
    curves: dict[str, dict[float, Mean]] = {}
    for budget, of_budget in cells.items():
        for row in of_budget:
            curves.setdefault(row.agent, {})[budget] = row.accuracy
    figure, panels = _panels(agents, 1.15)
    low, high = _limits(mean for curve in curves.values() for mean in curve.values())
    for agent, axes in zip(agents, panels, strict=True):
        if agent != FULL and FULL in curves:
            _draw_means(axes, curves[FULL], "black", "--")
        _draw_means(axes, curves[agent], "black" if agent == FULL else BLUE, "-")
        below = [number(mean.mean, ".1f") for mean in curves[agent].values() if mean.mean < low]
        if below:
            axes.text(0.97, 0.03, "▼ " + ", ".join(below), transform=axes.transAxes, ha="right", size=5.8, color=BLUE)
        axes.grid(alpha=0.3)
    first = panels[0]  # whose axes all share
    first.set_xscale("log")
    first.xaxis.set_major_locator(FixedLocator(list(cells), nbins=4))
    first.xaxis.set_major_formatter("{x:g}")
    first.xaxis.set_minor_locator(NullLocator())
    first.set_xlim(min(cells) / 1.15, max(cells) * 1.15)
    first.set_ylim(low, high)
    figure.supxlabel("budget (full-epoch equivalents, log scale)")
    figure.supylabel("test accuracy (%)")
    return _small_png(figure)


def _draw_means(axes: Axes, curve: Mapping[float, Mean], colour: str, line: str) -> None:
    budgets, means = list(curve), np.array([mean.mean for mean in curve.values()])
    low, high = np.transpose([_ends(mean) for mean in curve.values()])
    axes.fill_between(budgets, low, high, color=colour, alpha=0.2, linewidth=0)
    style = {"color": colour, "linestyle": line, "linewidth": 0.9, "marker": "o", "markersize": 2}
    axes.errorbar(budgets, means, [means - low, high - means], **style)


@rc_context(LETTERS)
def kept(shares: Mapping[str, NDArray]) -> bytes:
    """Draw what each agent kept, (times, ranks) from the easiest to the hardest, NaN where nothing is known."""
    figure, panels = _panels(list(shares), 1.2)
    norm = Normalize(0, 1)
    for axes, share in zip(panels, shares.values(), strict=True):
        axes.set_facecolor("0.8")
        grid = np.ma.masked_invalid(share).T
        axes.imshow(grid, "viridis", norm, origin="lower", aspect="auto", extent=(0, 100, 0, 100))
    panels[0].set_xticks([0, 50, 100])
    panels[0].set_yticks([0, 50, 100])
    figure.supxlabel("budget spent (%)")
    figure.supylabel("rank of difficulty (%),\nhardest on top")
    scale, height = ScalarMappable(norm, "viridis"), 0.3 / figure.get_figheight()
    figure.colorbar(scale, ax=figure.axes, location="top", fraction=height, aspect=40, label="share kept")
    return _small_png(figure)


@rc_context(LETTERS)
def divided(shares: Mapping[str, Sequence[float]]) -> bytes:
    """Draw a bar an agent: the shares of samples always, sometimes and never kept."""
    figure, axes, places, heights = _lines(list(shares), 0.8)
    left = np.zeros(len(shares))
    groups = (("always", BLUE, "white"), ("sometimes", ORANGE, "black"), ("never", "#CFCFCF", "black"))
    for (group, colour, ink), values in zip(groups, 100 * np.array(list(shares.values())).T, strict=True):
        bars = axes.barh(places, values, 0.8 * heights, left, color=colour, label=group)
        axes.bar_label(bars, [f"{v:.0f}" if v >= 8 else "" for v in values], label_type="center", color=ink)
        left += values
    axes.set_xlim(0, 100)
    axes.set_xlabel("samples (%)")
    figure.legend(loc="outside upper center", ncols=3, frameon=False)
    return _small_png(figure)


def glance(
    cells: Mapping[tuple[str, float], Mapping[str, Mean]], what: str = "points of test accuracy over full training"
) -> list[bytes]:
    """Draw agents × troubles: points over `full`, with their interval, in colour where the interval leaves out 0.

    `cells` maps a task and budget, a column, to the differences of the agents, which are the same in each; those of one
    seed, without an interval, have colours too. An image has up to CELLS columns. All have the same colours.
    """
    told = [abs(d.mean) for of_cell in cells.values() for d in of_cell.values() if _told(d)]
    reach = max(float(np.median(told or [0.0])), 0.5)  # points from which on a colour is full
    return [_glance({cell: cells[cell] for cell in some}, reach, what) for some in chunks(list(cells), CELLS)]


def _told(difference: Mean) -> bool:
    return difference.interval is None or bool(side(difference.interval))


@rc_context(LETTERS)
def _glance(cells: Mapping[tuple[str, float], Mapping[str, Mean]], reach: float, what: str) -> bytes:
    agents = list(next(iter(cells.values())))
    differences = [[of_cell[agent] for of_cell in cells.values()] for agent in agents]  # rows of cells
    figure, axes, places, heights = _lines(agents, 1.2)
    shown = np.array([[d.mean if _told(d) else 0.0 for d in row] for row in differences])
    scale = LinearSegmentedColormap.from_list("", (VERMILION, "white", GREEN))
    edges = np.concatenate([[0.0], np.cumsum(heights)])
    axes.pcolormesh(np.arange(len(cells) + 1), edges, shown, cmap=scale, norm=Normalize(-reach, reach), edgecolor="0.9")
    for place, row in zip(places, differences, strict=True):
        for column, each in enumerate(row):
            half = "" if each.interval is None else f"±{each.interval[1] - each.mean:.1f}"
            ink = "black" if _told(each) else "0.35"
            axes.text(column + 0.5, place, f"{each.mean:+.1f}{half}", ha="center", va="center", size=5.7, color=ink)
    width, several = 80 // (2 + len(cells)), len({task for task, _ in cells}) > 1
    names = [(_text(folded(task, width, " :,+/_=-")) + "\n" if several else "") + f"budget {b:g}" for task, b in cells]
    axes.set_xticks(np.arange(len(cells)) + 0.5, names)
    axes.tick_params(axis="x", length=0, top=False, bottom=False, labeltop=True, labelbottom=False)
    axes.spines[:].set_visible(False)
    several_seeds = any(each.interval for row in differences for each in row)
    figure.supxlabel(what + (", ± 95 % interval;\nwhite: not told apart from it" if several_seeds else ""))
    return _small_png(figure)


def chunks(items: Sequence[Item], many: int = PANELS) -> list[Sequence[Item]]:
    """Divide items among several figures, which hold up to `many` and about as many each."""
    parts = math.ceil(len(items) / many)
    size = math.ceil(len(items) / max(parts, 1))
    return [items[start : start + size] for start in range(0, len(items), max(size, 1))]


def _lines(agents: Sequence[str], around: float) -> tuple[Figure, Axes, NDArray, NDArray]:
    """A figure with a line for each agent, the first on top: its axes, and the lines' places and heights in inches."""
    names = [_text(folded(agent, 24)) for agent in agents]
    heights = _heights(names, 0.11)
    places = np.cumsum(heights) - heights / 2
    figure = Figure(figsize=(WIDTH, around + float(heights.sum())), dpi=DPI, layout="constrained")
    axes = figure.subplots()
    axes.set_yticks(places, names)
    axes.set_ylim(float(heights.sum()), 0.0)
    axes.tick_params(axis="y", length=0)
    return figure, axes, places, heights


def _heights(names: Iterable[str], line: float) -> NDArray[np.float64]:
    """Inches that folded names take, with the space between two, for lines of `line` inches."""
    return np.array([line * (1 + name.count("\n")) + 0.1 for name in names])


def _panels(agents: Sequence[str], height: float) -> tuple[Figure, list[Axes]]:
    """A figure with a panel for each agent, all with the same axes."""
    lines = math.ceil(len(agents) / COLUMNS)
    names = [_text(folded(agent, 21)) for agent in agents]
    folds = max(name.count("\n") for name in names)
    figure = Figure(figsize=(WIDTH, 0.55 + (height + 0.1 * folds) * lines), dpi=DPI, layout="constrained")
    grid = figure.subplots(lines, COLUMNS, squeeze=False, sharex=True, sharey=True).ravel()
    for axes in grid[len(agents) :]:
        axes.set_axis_off()
    for place, name in enumerate(names):
        grid[place].set_title(name, pad=3)
        # the lowest panel of each column has the numbers, also where the last line is not full
        grid[place].tick_params(length=2, labelbottom=place + COLUMNS >= len(agents))
    return figure, list(grid[: len(agents)])


def _ends(mean: Mean) -> Interval:
    return mean.interval or (mean.mean, mean.mean)


def _limits(means: Iterable[Mean], zero: bool = False) -> tuple[float, float]:
    """Ends of an axis that show all but the far outliers, which would leave no room for the others."""
    lows, highs = np.transpose([_ends(mean) for mean in means])
    first, last = np.quantile(lows, 0.25), np.quantile(highs, 0.75)
    reach = max(last - first, 0.1 * abs(last) / 100)
    low, high = max(lows.min(), first - reach), min(highs.max(), last + reach)
    if zero:
        low, high = min(low, 0.0), max(high, 0.0)
    space = 0.05 * (high - low) or 0.5
    return low - space, high + space


def _text(text: str) -> str:
    """Text that matplotlib does not take for mathematics."""
    return readable(text).replace("$", r"\$")


def _small_png(figure: Figure) -> bytes:
    """The figure with a palette of 256 colours, which takes a third of the bytes."""
    image = BytesIO()
    picture = Image.open(BytesIO(png(figure))).convert("RGB")
    picture.quantize(256, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE).save(image, "png", optimize=True)
    return image.getvalue()
