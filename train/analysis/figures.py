"""The picture of an evaluation: accuracy against compute."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from prune_env import io
from train.analysis.table import rows
from train.execution.results import Record, grouped

# Okabe and Ito's colours, told apart by the colour-blind; `full` is black
COLOURS = ("#E69F00", "#56B4E9", "#009E73", "#0072B2", "#D55E00", "#CC79A7")
STYLES = ("-", "--", ":", "-.")
MARKERS = ("o", "s", "^", "D")
SHOWN_FROM = 0.25  # share of the budget from which on every curve lies inside the picture


def write_accuracy(path: Path, records: Sequence[Record], title: str) -> None:
    """Draw a PNG: validation accuracy over compute, and the final test accuracy beside it, by budget.

    Lines are means over seeds and bands reach from the lowest seed to the highest; the error bars of the test
    accuracy are the 95 % bootstrap intervals of the table.
    """
    groups = grouped(records)
    names = list(dict.fromkeys(agent for agents in groups.values() for agent in agents))
    looks = _looks(names)
    figure = Figure(figsize=(11, 0.8 + 4.2 * len(groups)), dpi=120, layout="constrained")
    figure.suptitle(title)
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
    """A figure as a PNG file's bytes, as it is; a report's are smaller, see `train.analysis.plots`."""
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
            label=agent,
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
        low, high = row.accuracy_interval
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
