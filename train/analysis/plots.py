"""The figures of a report, each as PNG and as wide as a phone; one colour or two, told apart by the colour-blind.

Agents have panels or lines of their own, so that there is no legend to look up however many they are.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize, TwoSlopeNorm
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from train.analysis.statistics import ROUNDING, Interval, Profile
from train.analysis.table import Row

WIDTH = 4.2  # inches: 7 points are then legible on a phone
DPI = 180
SHADES = 256  # colours of a figure's palette
PANELS = 12  # in a figure of small multiples, at most; more agents make more figures
COLUMNS = 3
NUMBERED = 12  # classes up to which each cell has its number
# Okabe and Ito's colours
BLUE, ORANGE, VERMILION, GREEN, GREY = "#0072B2", "#E69F00", "#D55E00", "#009E73", "#8C8C8C"
SIDES = {1: GREEN, 0: "#444444", -1: VERMILION}


class Point(NamedTuple):
    """A number of an agent with its interval, None from one seed."""

    agent: str
    mean: float
    interval: Interval | None


def side(interval: Interval | None, reference: float = 0.0) -> int:
    """1 if the interval lies above the reference, -1 below, 0 if it touches it or there is none."""
    if interval is None:
        return 0
    return int(interval[0] > reference + ROUNDING) - int(interval[1] < reference - ROUNDING)


def number(value: float, form: str) -> str:
    """`value` as text; what a float's rounding leaves of 0 has no sign of its own."""
    return f"{round(value, 9) + 0.0:{form}}"


def forest(
    points: Sequence[Point], label: str, form: str, reference: float | None = None, better: Literal[1, -1] = 1
) -> bytes:
    """A line an agent: mean and interval, and the numbers at the right.

    Args:
        points: from top to bottom.
        label: of the axis.
        form: of the numbers, as in an f-string.
        reference: a vertical line; intervals on its better side are green, on the other vermilion.
        better: 1 if that is the upper side.
    """
    names = [_folded(point.agent, 24) for point in points]
    heights = np.array([0.11 * (1 + name.count("\n")) + 0.1 for name in names])
    places = np.cumsum(heights) - heights / 2
    figure = Figure(figsize=(WIDTH, 0.55 + float(heights.sum())), dpi=DPI)
    axes = figure.add_axes((0.35, 0.42 / figure.get_figheight(), 0.34, heights.sum() / figure.get_figheight()))
    ends = [point.interval or (point.mean, point.mean) for point in points]
    low, high = _limits([low for low, _ in ends], [high for _, high in ends], reference)
    for place, point, (left, right) in zip(places, points, ends, strict=True):
        colour = SIDES[0 if reference is None else better * side(point.interval, reference)]
        axes.plot([left, right], [place, place], color=colour, linewidth=1.4, solid_capstyle="butt")
        outside = "<" if point.mean < low else ">" if point.mean > high else "o"
        axes.plot(min(max(point.mean, low), high), place, outside, color=colour, markersize=3.5, clip_on=False)
        numbers = number(point.mean, form)
        if point.interval is not None:
            numbers += f" [{number(left, form)}, {number(right, form)}]"
        axes.annotate(
            numbers,
            (1.0, place),
            (4, 0),
            ("axes fraction", "data"),
            "offset points",
            va="center",
            size=6.3,
            color=colour,
        )
    if reference is not None:
        axes.axvline(reference, color="black", linewidth=0.8)
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
    """Test accuracy over log budget, a panel an agent, with `full` in black; bands are the intervals."""
    curves: dict[str, list[tuple[float, Row]]] = {}
    for budget, rows in cells.items():
        for row in rows:
            curves.setdefault(row.agent, []).append((budget, row))
    shown = [row for rows in cells.values() for row in rows]
    figure, panels = _panels(agents, 1.15)
    low, high = _limits([row.accuracy_interval[0] for row in shown], [row.accuracy_interval[1] for row in shown])
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
    low, high = np.array([row.accuracy_interval for _, row in curve]).reshape(-1, 2).T
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


def seconds(rows: Sequence[Row], label: str) -> bytes:
    """Test accuracy against the seconds of a run; `full` and the agents that none beats in both have their names."""
    figure = Figure(figsize=(WIDTH, 3.0), dpi=DPI, layout="constrained")
    axes = figure.subplots()
    low, high = _limits([row.accuracy_interval[0] for row in rows], [row.accuracy_interval[1] for row in rows])
    front = [
        row for row in rows if not any(other.accuracy > row.accuracy and other.seconds <= row.seconds for other in rows)
    ]
    named = sorted({row.agent: row for row in rows if row in front or row.agent == "full"}.values(), key=_place)
    for row in sorted(rows, key=lambda row: row in named):
        colour = "black" if row.agent == "full" else BLUE if row in front else "#B5B5B5"
        place = min(max(row.accuracy, low), high)
        axes.vlines(row.seconds, *row.accuracy_interval, color=colour, linewidth=1.0)
        marker = "v" if row.accuracy < low else "*" if row.agent == "full" else "o"
        axes.plot(row.seconds, place, marker, color=colour, markersize=7 if marker == "*" else 4, clip_on=False)
    axes.set_ylim(low, high)
    least, most = min(row.seconds for row in rows), max(row.seconds for row in rows)
    axes.locator_params(axis="x", nbins=5)
    if most > 5 * least:
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter(lambda x, _: f"{x:g}" if f"{x:.0e}"[0] in "235" else "")
    spaces = np.linspace(0.04, 0.96, max(len(named), 8))  # of the axes' height, for names from the bottom up
    taken = -1
    for i, row in enumerate(named):
        share = (min(max(row.accuracy, low), high) - low) / (high - low)
        nearest = int(np.abs(spaces - share).argmin())
        taken = min(max(nearest, taken + 1), len(spaces) - len(named) + i)
        axes.annotate(
            _folded(row.agent, 30),
            (row.seconds, low + share * (high - low)),
            (1.03, float(spaces[taken])),
            textcoords="axes fraction",
            va="center",
            size=6.5,
            color="black" if row.agent == "full" else BLUE,
            arrowprops={"arrowstyle": "-", "color": GREY, "linewidth": 0.5, "shrinkA": 1, "shrinkB": 3},
        )
    axes.tick_params(which="both", labelsize=6.8)
    axes.set_xlabel(label, size=7.5)
    axes.set_ylabel("test accuracy (%)", size=7.5)
    axes.grid(alpha=0.3)
    return _png(figure)


def _place(row: Row) -> tuple[float, float]:
    return row.accuracy, row.seconds


def kept(shares: Mapping[str, NDArray]) -> bytes:
    """What each agent kept, (times, ranks) from the easiest to the hardest, NaN where nothing is known."""
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


def visits(quantiles: Mapping[str, NDArray], even: float | None) -> bytes:
    """Visits of the samples in ascending order, (quantiles,) an agent; `even` is what each has in full training."""
    figure, panels = _panels(list(quantiles), 1.05)
    for axes, values in zip(panels, quantiles.values(), strict=True):
        share = np.linspace(0, 100, len(values))
        axes.fill_between(share, values, color=BLUE, alpha=0.25, linewidth=0)
        axes.plot(share, values, color=BLUE, linewidth=1.2)
        if even is not None:
            axes.axhline(even, color="black", linewidth=0.8, linestyle="--")
        axes.grid(alpha=0.3)
    panels[0].set_xlim(0, 100)
    panels[0].set_xticks([0, 50, 100])
    panels[0].set_ylim(bottom=0)
    figure.supxlabel("samples, least visited first (%)", size=7.5)
    figure.supylabel("visits", size=7.5)
    return _png(figure)


def profiles(profiles: Mapping[str, Profile], thresholds: NDArray) -> bytes:
    """Share of the runs whose difference to `full` lies above each threshold, with pointwise intervals."""
    figure, panels = _panels(list(profiles), 1.05)
    for axes, profile in zip(panels, profiles.values(), strict=True):
        axes.fill_between(thresholds, 100 * profile.low, 100 * profile.high, color=BLUE, alpha=0.25, linewidth=0)
        axes.plot(thresholds, 100 * profile.share, color=BLUE, linewidth=1.2)
        axes.axvline(0, color="black", linewidth=0.8)
        axes.axhline(50, color="black", linewidth=0.5, linestyle=":")
        axes.grid(alpha=0.3)
    panels[0].set_xlim(thresholds[0], thresholds[-1])
    panels[0].set_ylim(0, 100)
    panels[0].set_yticks([0, 50, 100])
    figure.supxlabel("difference to full (points)", size=7.5)
    figure.supylabel("runs above (%)", size=7.5)
    return _png(figure)


def classes(values: Mapping[str, NDArray], names: Sequence[str], label: str, form: str, even: float | None) -> bytes:
    """A line an agent, a column a class, (classes,) each; colours diverge from `even` if there is one."""
    agents = [_folded(agent, 24) for agent in values]
    heights = 0.11 * (1 + max(agent.count("\n") for agent in agents)) + 0.06
    figure = Figure(figsize=(WIDTH, 1.0 + heights * len(agents)), dpi=DPI, layout="constrained")
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
        upright = max(map(len, names)) <= 3
        axes.set_xticks(range(len(names)), [_text(name) for name in names], size=6.5, rotation=0 if upright else 90)
    else:
        axes.tick_params(axis="x", labelsize=6.5)
    axes.set_yticks(range(len(agents)), agents, size=6.5)
    axes.tick_params(length=0)
    axes.set_xlabel("class", size=7.5)
    bar = figure.colorbar(drawn, ax=axes, location="top", fraction=0.25 / figure.get_figheight(), aspect=40)
    bar.ax.tick_params(labelsize=6.5)
    bar.set_label(label, size=7.5)
    return _png(figure)


def divided(shares: Mapping[str, Sequence[float]]) -> bytes:
    """A bar an agent: the shares of samples always, sometimes and never kept."""
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


def _limits(lows: Sequence[float], highs: Sequence[float], reference: float | None = None) -> tuple[float, float]:
    """Ends of an axis that show all but the far outliers, which would leave no room for the others."""
    first, last = np.quantile(lows, 0.25), np.quantile(highs, 0.75)
    reach = max(float(last - first), 0.1 * abs(float(last)) / 100)
    inside = () if reference is None else (reference,)
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
    return text.replace("$", r"\$")


def _png(figure: Figure) -> bytes:
    """The figure with a palette, which takes a third of the bytes."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    picture = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
    png = io.BytesIO()
    picture.quantize(SHADES, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE).save(png, "png", optimize=True)
    return png.getvalue()
