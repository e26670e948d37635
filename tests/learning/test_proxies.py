"""Proxies: gains, correlations and the best rule's gain, counted by hand on made-up records."""

import json
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import rankdata

from train import proxies
from train.analysis import figures, records

RULES = ("a", "b", "c")
GAINS = {  # by kind and trouble, of the three rules
    "target": {"clean": (1.0, -1.0, 0.5), "noise": (2.0, 3.0, -4.0)},
    "same": {"clean": (2.0, -2.0, 1.0), "noise": (4.0, 6.0, -8.0)},
    "odd": {"clean": (-1.0, 0.5, 1.0), "noise": (2.5, 3.5, 0.0)},
}


def write(folder: Path, seeds: int = 2) -> None:
    """Records of runs whose `full` differs by the seed, by which no gain does."""
    lines = []
    for kind, troubles in GAINS.items():
        for trouble, gains in troubles.items():
            for seed in range(seeds):
                full = 0.6 + 0.1 * seed
                for agent, gain in (("full", 0.0), *zip(RULES, gains, strict=True)):
                    results = {"val_accuracy": full + gain / 100, "seconds": {"total": 3.0 if kind == "odd" else 8.0}}
                    record = {"key": f"{len(lines)}", "task": f"{kind}: {trouble}", "agent": agent, "seed": seed}
                    lines.append(json.dumps({**record, "budget": 8.0, "results": results}))
    (folder / "results.jsonl").write_text("\n".join(lines) + "\n")


def test_gains_are_means_over_seeds_and_agree_as_numpy_says(tmp_path):
    write(tmp_path)
    means, seconds = proxies.gains(records.read(tmp_path).records)
    assert seconds == {"target": 8.0, "same": 8.0, "odd": 3.0}
    for kind, troubles in GAINS.items():
        for trouble, gains in troubles.items():
            assert [means[kind][trouble, rule] for rule in RULES] == pytest.approx(gains)
    assert proxies.agreement(means["same"], means["target"]) == pytest.approx([1.0, 1.0])
    flat = {kind: np.array([x for gains in troubles.values() for x in gains]) for kind, troubles in GAINS.items()}
    inside = [np.corrcoef(rankdata(GAINS["odd"][t]), rankdata(GAINS["target"][t]))[0, 1] for t in ("clean", "noise")]
    expected = np.corrcoef(flat["odd"], flat["target"])[0, 1], np.mean(inside)
    assert proxies.agreement(means["odd"], means["target"]) == pytest.approx(expected)


def test_the_table_says_what_a_proxys_best_rule_gains_on_the_target(tmp_path, capsys):
    write(tmp_path)
    assert proxies.main([str(tmp_path)]) == 0
    text = (tmp_path / "proxies.txt").read_text()
    assert [line.split()[-2] for line in text.splitlines() if "odd" in line] == ["+1.75"]  # c: 0.5, b: 3.0
    assert [line.split()[-2] for line in text.splitlines() if "same" in line] == ["+2.00"]  # a: 1.0, b: 3.0
    assert proxies.main([str(tmp_path), "--target", "nothing"]) == 2
    assert "no tasks of the kind 'nothing'; there are target, same, odd" in capsys.readouterr().err


def test_the_committed_table_is_that_of_the_committed_records(tmp_path):
    committed = Path(__file__).parents[2] / "results" / "proxies"
    for name in ("results.jsonl.xz", "sweep.toml"):
        (tmp_path / name).write_bytes((committed / name).read_bytes())
    assert proxies.main([str(tmp_path)]) == 0
    assert (tmp_path / "proxies.txt").read_text() == (committed / "proxies.txt").read_text()


def test_the_figure_has_a_line_for_each_rule_the_best_on_top(tmp_path, monkeypatch):
    write(tmp_path)
    drawn: list = []
    monkeypatch.setattr(figures, "_small_png", lambda figure: drawn.append(figure) or b"a picture")
    assert proxies.main([str(tmp_path)]) == 0
    assert (tmp_path / "gains.png").read_bytes() == b"a picture"
    (axes,) = drawn[0].axes
    of_target = GAINS["target"]
    order = sorted(range(len(RULES)), key=lambda rule: -sum(gains[rule] for gains in of_target.values()))
    assert [text.get_text() for text in axes.get_yticklabels()] == [RULES[rule] for rule in order]
    assert [label.get_text() for label in axes.get_xticklabels()] == [f"{trouble}\nbudget 8" for trouble in of_target]
    cells = [f"{of_target[trouble][rule]:+.1f}" for rule in order for trouble in of_target]
    assert [text.get_text() for text in axes.texts] == cells


def test_several_budgets_are_refused_and_rules_with_gaps_are_not_drawn(tmp_path, capsys):
    write(tmp_path)
    path = tmp_path / "results.jsonl"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines, lines[0].replace('"0"', '"x"').replace("8.0,", "4.0,", 1)]) + "\n")
    assert proxies.main([str(tmp_path)]) == 2
    assert "has runs at the budgets [4.0, 8.0]" in capsys.readouterr().err
    of_target = {("clean", "a"): 1.0, ("noise", "a"): 2.0, ("clean", "b"): 9.0}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figures, "glance", lambda shown, _: [shown])
        shown = proxies.picture(of_target, 8.0)
    assert {cell: list(agents) for cell, agents in shown.items()} == {("clean", 8.0): ["a"], ("noise", 8.0): ["a"]}  # pyright: ignore[reportAttributeAccessIssue]
