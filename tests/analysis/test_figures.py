"""The figures of a report: nothing is cut or lies on something else, however few or long the names are."""

from itertools import pairwise
from typing import Any, cast

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from tests.analysis.test_summary import runs
from train.analysis import figures, summary
from train.analysis.statistics import Mean

LONG = "same_amounts:epsilon_greedy:keep=0.75,epsilon=0.125+mixup=0.5+anneal=0.25"
TASKS = ("digits", "CIFAR-10, 20 % wrong labels, classes 10:1", "convnet:8-16-16, 16 pixels, 1000: duplicates")


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """Figures as they are drawn, instead of being compressed."""
    found: list[Figure] = []

    def keep(figure: Figure) -> bytes:
        FigureCanvasAgg(figure).draw()
        found.append(figure)
        return b""

    monkeypatch.setattr(figures, "_small_png", keep)
    return found


def assert_whole(figure: Figure) -> None:
    box, (width, height) = figure.get_tightbbox(), figure.get_size_inches()
    assert min(box.x0, box.y0) > -0.01
    assert box.x1 < width + 0.01
    assert box.y1 < height + 0.01


@pytest.mark.parametrize("many", [1, 4])
def test_nothing_is_cut(many: int, drawn: list[Figure]):
    agents = ["full", "ucb:keep=0.5", LONG, "random:keep=0.5"][-many:]
    means = {agent: Mean(-12.5, (-13.25, -11.75), 5) for agent in agents}
    figures.forest(means, "difference to full at budget 21.43 (points)")
    figures.kept({agent: np.full((20, 10), 0.5) for agent in agents})
    figures.divided({agent: [0.1, 0.2, 0.7] for agent in agents})
    rows = summary.rows({agent: runs(agent, 4.0, [80.0, 81.0]) for agent in agents})
    figures.accuracy({4.0: rows, 8.5: rows}, agents)
    assert len(drawn) == 4
    for figure in drawn:
        assert_whole(figure)


@pytest.mark.parametrize("columns", [2, figures.CELLS])
def test_a_glance_says_each_difference_where_it_belongs(columns: int, drawn: list[Figure]):
    rng = np.random.default_rng(0)
    agents, cells = ["ucb:keep=0.5", LONG, "random"], [(TASKS[i % 3], float(2 + i)) for i in range(columns)]
    points = dict(zip(cells, rng.normal(0, 9, (columns, 3)), strict=True))
    means = {c: {a: Mean(m, (m - 1.2, m + 1.2), 5) for a, m in zip(agents, points[c], strict=True)} for c in cells}
    means[cells[0]]["random"] = Mean(-26.12, None, 1)  # one seed
    assert len(figures.glance(means)) == 1
    (figure,) = drawn
    assert_whole(figure)
    (axes,) = figure.axes
    mesh: Any = axes.collections[0]
    shades = mesh.get_array().reshape(3, columns)
    for text, (column, row) in zip(axes.texts, [(c, r) for r in range(3) for c in range(columns)], strict=True):
        each = means[cells[column]][agents[row]]
        apart = each.interval is None or abs(each.mean) > 1.2
        assert text.get_text() == f"{each.mean:+.1f}" + ("" if each.interval is None else "±1.2")
        assert shades[row, column] == (each.mean if apart else 0.0)
        box = text.get_window_extent().transformed(axes.transData.inverted())
        assert column < box.x0 < box.x1 < column + 1  # no number reaches into the next cell
    told = [
        abs(each.mean) for of in means.values() for each in of.values() if not each.interval or abs(each.mean) > 1.2
    ]
    assert mesh.norm.vmax == -mesh.norm.vmin == np.median(told)
    heads = [label.get_window_extent() for label in axes.get_xticklabels()]
    assert len(heads) == columns
    assert all(one.x1 < other.x0 for one, other in pairwise(heads))


def test_the_figure_of_an_evaluation_names_its_agents_on_the_axis(monkeypatch: pytest.MonkeyPatch):
    agents = ["full", *(f"ucb:keep=0.5,c={n}" for n in range(20)), LONG]
    records = [record for n, agent in enumerate(agents) for record in runs(agent, 4.0, [80.0 + n, 81.0 + n])]
    for record in records:
        record["curve"] = {"spent": [1.0, 4.0], "val_accuracy": [0.5, record["results"]["test_accuracy"]]}
    figure = figures.evaluation(records, "a task")
    FigureCanvasAgg(figure).draw()
    assert_whole(figure)
    curves, ends = figure.axes
    bars: Any = ends.containers
    ended: dict[float, Any] = {round(line.get_ydata()[-1], 6): line for line in cast(Any, curves.lines)}
    named = [label.get_text().replace("\n", "") for label in ends.get_yticklabels()]
    assert named == ["full", *agents[:0:-1]]  # as in the table: full first, then the best
    for agent, container in zip(named, bars, strict=True):
        point = container.lines[0]
        place, colour, marker = 80.5 + agents.index(agent), point.get_color(), point.get_marker()
        assert point.get_xdata() == pytest.approx([place])
        assert (ended[place].get_color(), ended[place].get_marker()) == (colour, marker)
    labels = [label.get_window_extent() for label in ends.get_yticklabels()]
    assert all(upper.y0 >= lower.y1 - 1 for upper, lower in pairwise(labels))
