"""The figures: of an evaluation, accuracy against compute; of a report, one colour or two on panels or lines of agents.

A report's figures are as wide as a phone. Agents have panels or lines of their own, so that there is no legend to look
up however many they are. All colours can be told apart by the colour-blind.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Mapping, Sequence
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize, TwoSlopeNorm
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont, get_font
from numpy.typing import NDArray
from PIL import Image

from prune_env import io
from train.analysis.records import Record
from train.analysis.statistics import Interval, side
from train.analysis.summary import grouped
from train.analysis.table import Row, rows
from train.analysis.text import readable, spread

# Okabe and Ito's colours
COLOURS = ("#E69F00", "#56B4E9", "#009E73", "#0072B2", "#D55E00", "#CC79A7")
ORANGE, _, GREEN, BLUE, VERMILION, _ = COLOURS
SIDES = {1: GREEN, 0: "#444444", -1: VERMILION}
STYLES = ("-", "--", ":", "-.")
MARKERS = ("o", "s", "^", "D")
SHOWN_FROM = 0.25  # share of the budget from which on every curve lies inside the picture

WIDTH = 4.2  # inches: 7 points are then legible on a phone
DPI = 180
SHADES = 256  # colours of a figure's palette
PANELS = 12  # in a figure of small multiples, at most; more agents make more figures
COLUMNS = 3
NUMBERED = 12  # classes up to which each cell has its number
NAMED = 30  # classes up to which each column has its name
NAME = 22  # characters of a class's name; a longer one is cut


# An evaluation


def write_accuracy(path: Path, records: Sequence[Record], title: str) -> None:
    """Draw a PNG: validation accuracy over compute, and the final test accuracy beside it, by budget.

    Lines are means over seeds and bands reach from the lowest seed to the highest; the error bars of the test
    accuracy are the 95 % intervals of the table.
    """
    groups = grouped(records)
    names = list(dict.fromkeys(agent for agents in groups.values() for agent in agents))
    looks = _looks(names)
    figure = Figure(figsize=(11, 0.8 + 4.2 * len(groups)), dpi=120, layout="constrained")
    figure.suptitle(_text(title))
    panels = figure.subplots(len(groups), 2, squeeze=False, width_ratios=(3, 1.4))
    for (left, right), (budget, agents) in zip(panels, groups.items(), strict=True):
        _draw_curves(left, agents, looks)
        left.set_title(f"budget {budget:g}: validation, mean and range over seeds")
        left.set_xlabel("compute spent (full-epoch equivalents)")
        left.set_ylabel("validation accuracy (%)")
        _draw_tests(right, agents, looks)
        right.set_title("final test, 95 % interval")
        right.set_ylabel("test accuracy (%)")
    handles, labels = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper", frameon=False, handlelength=3.5)
    io.write_atomic(path, png(figure))


def png(figure: Figure) -> bytes:
    """Return a figure as a PNG file's bytes, as it is; a report's are smaller, see `_png`."""
    image = BytesIO()
    figure.savefig(image, format="png")
    return image.getvalue()


class Look(NamedTuple):
    """How an agent is drawn."""

    color: str
    linestyle: str
    marker: str


def _looks(names: Sequence[str]) -> dict[str, Look]:
    """A look for each agent; no two of the first 24 are alike."""
    others = [name for name in names if name != "full"]
    looks = {"full": Look("black", "-", "*")}
    for i, name in enumerate(others):
        turn = i // len(COLOURS)
        looks[name] = Look(COLOURS[i % len(COLOURS)], STYLES[turn % len(STYLES)], MARKERS[turn % len(MARKERS)])
    return looks


def _draw_curves(axes: Axes, agents: dict[str, list[Record]], looks: dict[str, Look]) -> None:
    lowest, highest = 100.0, 0.0
    for agent, records in agents.items():
        spent, accuracy = _on_one_grid(records)
        mean = accuracy.mean(axis=0)
        look = looks[agent]
        axes.plot(
            spent,
            mean,
            label=_text(agent),
            color=look.color,
            linestyle=look.linestyle,
            linewidth=1.6,
            marker=look.marker,
            markevery=[-1],
        )
        axes.fill_between(spent, accuracy.min(axis=0), accuracy.max(axis=0), color=look.color, alpha=0.08)
        lowest = min(lowest, float(np.interp(SHOWN_FROM * records[0]["budget"], spent, mean)))
        highest = max(highest, float(accuracy.max()))
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


def _draw_tests(axes: Axes, agents: dict[str, list[Record]], looks: dict[str, Look]) -> None:
    shown = {row.agent: row for row in rows(agents)}
    for place, agent in enumerate(agents):
        row, look = shown[agent], looks[agent]
        low, high = row.accuracy_interval or (row.accuracy, row.accuracy)
        axes.errorbar(
            place,
            row.accuracy,
            yerr=[[row.accuracy - low], [high - row.accuracy]],
            color=look.color,
            marker=look.marker,
            capsize=3,
        )
    axes.set_xticks([])
    axes.set_xlabel("agents in the order of the legend")
    axes.grid(alpha=0.3)


# A report


class Point(NamedTuple):
    """A number of an agent with its interval, None from one seed."""

    agent: str
    mean: float
    interval: Interval | None


def forest(points: Sequence[Point], label: str) -> bytes:
    """Draw a line an agent: its difference with the interval, and the numbers at the right; 0 is a vertical line."""
    names = [_folded(point.agent, 24) for point in points]
    heights = np.array([0.11 * (1 + name.count("\n")) + 0.1 for name in names])
    places = np.cumsum(heights) - heights / 2
    figure = Figure(figsize=(WIDTH, 0.55 + float(heights.sum())), dpi=DPI)
    axes = figure.add_axes((0.35, 0.42 / figure.get_figheight(), 0.34, heights.sum() / figure.get_figheight()))
    ends = [point.interval or (point.mean, point.mean) for point in points]
    low, high = _limits([low for low, _ in ends], [high for _, high in ends], zero=True)
    for place, point, (left, right) in zip(places, points, ends, strict=True):
        colour = SIDES[side(point.interval)]
        axes.plot([left, right], [place, place], color=colour, linewidth=1.4, solid_capstyle="butt")
        outside = "<" if point.mean < low else ">" if point.mean > high else "o"
        axes.plot(min(max(point.mean, low), high), place, outside, color=colour, markersize=3.5, clip_on=False)
        axes.annotate(
            spread(point.mean, point.interval, "+.2f"),
            (1.0, place),
            (4, 0),
            ("axes fraction", "data"),
            "offset points",
            va="center",
            size=6.3,
            color=colour,
        )
    axes.axvline(0.0, color="black", linewidth=0.8)
    axes.set_xlim(low, high)
    axes.set_ylim(float(heights.sum()), 0.0)
    axes.set_yticks(places, names, size=6.8)
    axes.tick_params(axis="y", length=0)
    axes.tick_params(axis="x", labelsize=6.8)
    axes.locator_params(axis="x", nbins=4)
    axes.set_xlabel(label, size=7.5)
    axes.grid(axis="x", alpha=0.3)
    axes.spines[["top", "right", "left"]].set_visible(False)
    return _png(figure)


def accuracy(cells: Mapping[float, Sequence[Row]], agents: Sequence[str]) -> bytes:
    """Draw test accuracy over log budget, a panel an agent, with `full` in black; bands are the intervals."""
    curves: dict[str, list[tuple[float, Row]]] = {}
    for budget, of_budget in cells.items():
        for row in of_budget:
            curves.setdefault(row.agent, []).append((budget, row))
    shown = [row for of_budget in cells.values() for row in of_budget]
    figure, panels = _panels(agents, 1.15)
    low, high = _limits([_ends(row)[0] for row in shown], [_ends(row)[1] for row in shown])
    for agent, axes in zip(agents, panels, strict=True):
        if agent != "full":
            _curve(axes, curves.get("full", []), "black", "--")
        _curve(axes, curves[agent], "black" if agent == "full" else BLUE, "-")
        below = [f"{row.accuracy:.1f}" for _, row in curves[agent] if row.accuracy < low]
        if below:
            axes.text(0.97, 0.03, "▼ " + ", ".join(below), transform=axes.transAxes, ha="right", size=5.8, color=BLUE)
        axes.grid(alpha=0.3)
    panels[0].set_xscale("log")
    panels[0].set_xticks(_spread(list(cells)), [f"{budget:g}" for budget in _spread(list(cells))])
    panels[0].set_xticks([], minor=True)
    panels[0].set_xlim(min(cells) / 1.15, max(cells) * 1.15)
    panels[0].set_ylim(low, high)
    figure.supxlabel("budget (full-epoch equivalents, log scale)", size=7.5)
    figure.supylabel("test accuracy (%)", size=7.5)
    return _png(figure)


def _curve(axes: Axes, curve: Sequence[tuple[float, Row]], colour: str, line: str) -> None:
    budgets = [budget for budget, _ in curve]
    means = np.array([row.accuracy for _, row in curve])
    low, high = np.array([_ends(row) for _, row in curve]).reshape(-1, 2).T
    axes.fill_between(budgets, low, high, color=colour, alpha=0.2, linewidth=0)
    axes.errorbar(
        budgets,
        means,
        [means - low, high - means],
        color=colour,
        linestyle=line,
        linewidth=0.9,
        marker="o",
        markersize=2,
    )


def _ends(row: Row) -> Interval:
    return row.accuracy_interval or (row.accuracy, row.accuracy)


def kept(shares: Mapping[str, NDArray]) -> bytes:
    """Draw what each agent kept, (times, ranks) from the easiest to the hardest, NaN where nothing is known."""
    figure, panels = _panels(list(shares), 1.2)
    scale = ScalarMappable(Normalize(0, 1), "viridis")
    for axes, share in zip(panels, shares.values(), strict=True):
        axes.set_facecolor("0.8")
        axes.imshow(
            np.ma.masked_invalid(share).T,
            origin="lower",
            aspect="auto",
            vmin=0,
            vmax=1,
            cmap=scale.cmap,
            extent=(0, 100, 0, 100),
        )
    panels[0].set_xticks([0, 50, 100])
    panels[0].set_yticks([0, 50, 100])
    figure.supxlabel("budget spent (%)", size=7.5)
    figure.supylabel("rank of difficulty (%), hardest on top", size=7.5)
    bar = figure.colorbar(scale, ax=figure.axes, location="top", fraction=0.3 / figure.get_figheight(), aspect=40)
    bar.ax.tick_params(labelsize=6.8)
    bar.set_label("share kept", size=7.5)
    return _png(figure)


def classes(
    values: Mapping[str, NDArray], names: Sequence[str], label: str, form: str = ".0f", even: float | None = None
) -> bytes:
    """Draw a line an agent, a column a class, (classes,) each; colours diverge from `even` if there is one."""
    agents = [_folded(agent, 24) for agent in values]
    heights = 0.11 * (1 + max(agent.count("\n") for agent in agents)) + 0.06
    figure = Figure(figsize=(WIDTH, 1.6 + heights * len(agents)), dpi=DPI, layout="constrained")
    axes = figure.subplots()
    grid = np.ma.masked_invalid(np.stack(list(values.values())))
    norm = None
    if even is not None:
        reach = max(float(np.ma.abs(grid - even).max()), 0.05)
        norm = TwoSlopeNorm(even, even - reach, even + reach)
    axes.set_facecolor("0.8")
    drawn = axes.imshow(grid, aspect="auto", cmap="viridis" if norm is None else "PuOr_r", norm=norm)
    if len(names) <= NUMBERED:
        shades = drawn.to_rgba(grid)[..., :3] @ (0.299, 0.587, 0.114)
        for (line, column), value in np.ndenumerate(grid):
            colour = "white" if shades[line, column] < 0.5 else "black"
            axes.text(column, line, f"{value:{form}}", ha="center", va="center", size=5.3, color=colour)
    axes.tick_params(labelsize=6.5, length=0)
    if len(names) <= NAMED:
        shown = class_labels(names)
        upright = max(map(len, shown)) <= 3
        axes.set_xticks(range(len(shown)), [_text(name) for name in shown], rotation=0 if upright else 90)
    axes.set_yticks(range(len(agents)), agents)
    axes.set_xlabel("class", size=7.5)
    bar = figure.colorbar(drawn, ax=axes, location="top", fraction=0.25 / figure.get_figheight(), aspect=40)
    bar.ax.tick_params(labelsize=6.5)
    bar.set_label(label, size=7.5)
    return _png(figure)


def class_labels(names: Sequence[str]) -> list[str]:
    """Return what a figure calls the classes: their names, cut if long, or the index of a class that it cannot write.

    It cannot write what its font does not have, nor what runs from right to left.
    """
    labels = []
    for index, name in enumerate(map(readable, names)):
        label = name if len(name) <= NAME else name[: NAME - 1].rstrip(" ,") + "…"
        written = label.strip() and all(
            ord(c) in _characters() and unicodedata.bidirectional(c) not in ("R", "AL") for c in label
        )
        labels.append(label if written else str(index))
    return [label if labels.count(label) == 1 else str(index) for index, label in enumerate(labels)]


@lru_cache(maxsize=1)
def _characters() -> frozenset[int]:
    """Code points that the figures' font has."""
    return frozenset(get_font(findfont("DejaVu Sans")).get_charmap())


def divided(shares: Mapping[str, Sequence[float]]) -> bytes:
    """Draw a bar an agent: the shares of samples always, sometimes and never kept."""
    agents = [_folded(agent, 24) for agent in shares]
    heights = 0.11 * (1 + max(agent.count("\n") for agent in agents)) + 0.08
    figure = Figure(figsize=(WIDTH, 0.8 + heights * len(agents)), dpi=DPI, layout="constrained")
    axes = figure.subplots()
    grid = 100 * np.array(list(shares.values()))
    starts = np.cumsum(grid, axis=1) - grid
    for group, colour, values, left in zip(
        ("always", "sometimes", "never"), (BLUE, ORANGE, "#CFCFCF"), grid.T, starts.T, strict=True
    ):
        axes.barh(range(len(agents)), values, left=left, color=colour, label=group, height=0.8)
        for line, (value, start) in enumerate(zip(values, left, strict=True)):
            if value >= 8:
                shade = "white" if colour == BLUE else "black"
                axes.text(start + value / 2, line, f"{value:.0f}", ha="center", va="center", size=6.3, color=shade)
    axes.set_yticks(range(len(agents)), agents, size=6.8)
    axes.set_ylim(len(agents) - 0.5, -0.5)
    axes.set_xlim(0, 100)
    axes.tick_params(labelsize=6.8)
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel("samples (%)", size=7.5)
    figure.legend(loc="outside upper center", ncols=3, frameon=False, fontsize=7.5)
    return _png(figure)


def chunks(agents: Sequence[str]) -> list[list[str]]:
    """Divide agents among several figures of panels, about as many in each, in full lines."""
    figures = max(-(-len(agents) // PANELS), 1)
    size = max(-(-len(agents) // (figures * COLUMNS)) * COLUMNS, 1)
    return [list(agents[start : start + size]) for start in range(0, len(agents), size)]


def _panels(agents: Sequence[str], height: float) -> tuple[Figure, list[Axes]]:
    """A figure with a panel for each agent, all with the same axes."""
    lines, columns = math.ceil(len(agents) / COLUMNS), COLUMNS
    names = [_folded(agent, 21) for agent in agents]
    folds = max(name.count("\n") for name in names)
    figure = Figure(figsize=(WIDTH, 0.55 + (height + 0.1 * folds) * lines), dpi=DPI, layout="constrained")
    grid = figure.subplots(lines, columns, squeeze=False, sharex=True, sharey=True).ravel()
    for place, axes in enumerate(grid):
        if place >= len(agents):
            axes.set_axis_off()
            continue
        axes.set_title(names[place], size=6.6, pad=3)
        # the lowest panel of each column has the numbers, also where the last line is not full
        axes.tick_params(labelsize=6.5, length=2, labelbottom=place + columns >= len(agents))
    return figure, list(grid[: len(agents)])


def _limits(lows: Sequence[float], highs: Sequence[float], zero: bool = False) -> tuple[float, float]:
    """Ends of an axis that show all but the far outliers, which would leave no room for the others."""
    first, last = np.quantile(lows, 0.25), np.quantile(highs, 0.75)
    reach = max(float(last - first), 0.1 * abs(float(last)) / 100)
    inside = (0.0,) if zero else ()
    low = min(max(min(lows), float(first) - reach), *inside, math.inf)
    high = max(min(max(highs), float(last) + reach), *inside, -math.inf)
    space = 0.05 * (high - low) or 0.5
    return low - space, high + space


def _spread(budgets: Sequence[float]) -> list[float]:
    """Budgets that can stand beside one another below a narrow log axis."""
    least = math.log(max(budgets) / min(budgets)) / 4
    chosen: list[float] = []
    for budget in sorted(budgets):
        if not chosen or math.log(budget / chosen[-1]) >= least:
            chosen.append(budget)
    return chosen


def _folded(agent: str, width: int) -> str:
    """An agent's spec in lines of about `width` characters, folded behind punctuation where there is some."""
    lines = [""]
    for part in re.findall(rf"[^:,+]{{1,{width}}}[:,+]?|[:,+]", agent):
        if lines[-1] and len(lines[-1] + part) > width:
            lines.append("")
        lines[-1] += part
    return _text("\n".join(lines))


def _text(text: str) -> str:
    """Text that matplotlib does not take for mathematics."""
    return readable(text).replace("$", r"\$")


def _png(figure: Figure) -> bytes:
    """The figure with a palette, which takes a third of the bytes."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    picture = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
    png = BytesIO()
    picture.quantize(SHADES, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE).save(png, "png", optimize=True)
    return png.getvalue()
