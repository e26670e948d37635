"""`train.explain`: a planted dependence is found, only what was acted on is shown, and in units that people know."""

from __future__ import annotations

import io
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image
from rich.table import Table

from prune_env.policy import tasks as distributions
from prune_env.policy.features import FEATURES
from prune_env.policy.learned import SHIPPED, Network
from prune_env.policy.rules import RULE_PARAMETERS
from prune_env.policy.tasks import Task, TaskDistribution
from prune_env.policy.wrappers import SummaryEnv
from tests.learning.here import TINY, VARIED, Here
from train import explain
from train.analysis.statistics import mean_interval
from train.explain import GROUPS, choices, inputs, trouble
from train.learning.rollouts import Pair, Seen, draw_pairs, play

D, R = len(FEATURES), len(RULE_PARAMETERS)


@pytest.fixture(autouse=True)
def _nothing_played(monkeypatch):
    monkeypatch.setattr(Here, "played", [], raising=False)


def network(seed: int = 0, only: str | None = None, size: float = 0.6) -> Network:
    """Random layers, which see one input `only`."""
    rng = np.random.default_rng(seed)
    first, bias = rng.normal(0, size, (6, D)).astype(np.float32), rng.normal(0, size, 6).astype(np.float32)
    if only is not None:
        first[:, np.arange(D) != FEATURES.index(only)] = 0.0
    last = rng.normal(0, size, (R, 6)).astype(np.float32), rng.normal(0, 0.3, R).astype(np.float32)
    return Network([(first, bias), last], "tanh", "clip", {"made": "for a test"})


def rows(table: Table) -> dict[str, str]:
    names, points = ([str(cell) for cell in column.cells] for column in table.columns)
    return dict(zip(names, points, strict=True))


def test_every_input_is_in_one_group():
    grouped = [name for names in GROUPS.values() for name in names]
    assert sorted(grouped) == sorted(FEATURES)


class Judges:
    """Of run i a policy loses by how far its numbers for summary i are from those of the network as it is."""

    def __init__(self, policy: Network, summaries: NDArray):
        self.expected, self.summaries = policy(summaries), summaries

    def lost(self, numbers: NDArray) -> NDArray:
        return np.abs(numbers - self.expected).sum(axis=1) / 100

    def play(self, pairs, policy) -> NDArray:
        assert len(pairs) == len(self.summaries)
        return 0.9 - self.lost(policy(self.summaries, np.ones(len(pairs), np.bool_)))


def test_inputs_are_worth_what_is_lost_without_them():
    rng = np.random.default_rng(2)
    summaries, means = rng.uniform(-1, 1, (6, D)).astype(np.float32), rng.uniform(-1, 1, D)
    pairs = [(task, seed) for task in VARIED.training[:2] for seed in (5, 6, 7)]
    policy = network()
    judges = Judges(policy, summaries)
    table = inputs(policy, pairs, judges, means)  # pyright: ignore[reportArgumentType]
    assert "6 runs" in str(table.title)
    expected: dict[str, NDArray] = {}
    for group, names in GROUPS.items():
        held, places = summaries.copy(), [FEATURES.index(name) for name in names]
        held[:, places] = means[places]
        expected[group] = 100 * judges.lost(policy(held))
    assert list(rows(table)) == sorted(GROUPS, key=lambda group: -expected[group].mean())
    for group, told in rows(table).items():
        found = tuple(map(float, re.findall(r"[+-]\d+\.\d\d", told)))
        by_seed = expected[group].reshape(2, 3).mean(axis=0)
        assert found == pytest.approx((by_seed.mean(), *mean_interval(by_seed)), abs=0.006)


def test_tasks_are_told_apart_by_their_trouble():
    troubles = {
        "clean": Task(), "duplicates": Task(duplicates=0.3), "wrong labels": Task(label_noise=0.1, duplicates=0.3),
        "unlike classes": Task(imbalance=5.0), "wrong labels, unlike classes": Task(label_noise=0.4, imbalance=3.0),
    }  # fmt: skip
    assert {trouble(task): task for task in troubles.values()} == troubles


@pytest.mark.slow  # eleven times four runs
def test_a_planted_dependence_is_found_in_runs():
    only = "confidence"
    policy, pairs = network(0, only=only, size=2.0), draw_pairs(VARIED, 4, np.random.default_rng(0))
    means = np.full(D, 0.1)
    told = rows(inputs(policy, pairs, Here(VARIED, 1), means))
    (group,) = (group for group, names in GROUPS.items() if only in names)
    assert len(GROUPS[group]) > 2
    constant = policy(np.full(D, 0.1, np.float32))  # the rule that is left when the input stands still
    points = 100 * (play(pairs, policy, VARIED) - play(pairs, constant, VARIED))
    low, high = mean_interval(points)
    assert {name for name, points in told.items() if points != "+0.00 [+0.00, +0.00]"} == {group}
    assert list(told)[0 if told[group].startswith("+") else -1] == group
    assert told[group] == f"{points.mean():+.2f} [{low:+.2f}, {high:+.2f}]"


def run_alone(pairs: list[Pair], policy: Network) -> tuple[list[NDArray], list[float]]:
    """Return what the policy saw in runs of each pair, one after the other, and their validation accuracies."""
    seen, accuracy = [], []
    for task, seed in pairs:
        env: Any = SummaryEnv(**task.settings())
        now, info = env.reset(seed=seed)
        over = False
        while not over:
            seen.append(now)
            now, _, over, _, info = env.step(policy(now))
        accuracy.append(info["val_accuracy"])
    return seen, accuracy


def test_what_is_recorded_is_what_was_acted_on_in_the_runs_asked_for():
    """Members without a run left go on with something else, which is nothing to look at."""
    policy, pairs = network(), draw_pairs(VARIED, 5, np.random.default_rng(0))
    steps: Seen = []
    accuracy = play(pairs, policy, VARIED, width=2, seen_in=steps)
    seen, reached = run_alone(pairs, policy)
    chosen = [policy(now) for now in seen]
    assert accuracy.tolist() == reached
    features = np.concatenate([step for _, step in steps])
    recorded = features, policy(features)
    assert [len(values) for values in recorded] == [len(seen)] * 2
    for values, alone in zip(recorded, (seen, chosen), strict=True):
        for value in values:  # students in batches differ by the rounding of sums
            assert np.abs(np.array(alone) - value).max(axis=1).min() < 1e-3
        np.testing.assert_allclose(values.sum(axis=0), np.sum(alone, axis=0), atol=1e-2)


def recorded(spent: list[float], chosen: NDArray) -> tuple[NDArray, NDArray]:
    """As if these numbers (T, R) had been chosen at these shares of the budget."""
    seen = np.zeros((len(spent), D))
    seen[:, FEATURES.index("spent")] = 2.0 * np.array(spent) - 1.0
    return seen, chosen


# over 2 s: matplotlib draws eight panels
def test_choices_draws_every_number_of_the_rule(monkeypatch):
    drawn: list[Figure] = []

    class Kept(Figure):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            drawn.append(self)

    monkeypatch.setattr(explain, "Figure", Kept)
    rng = np.random.default_rng(0)
    spent = [0.0, 0.02, 0.04, 0.06, 0.55, 0.58, 0.51, 1.0]
    groups = {"0% wrong labels": rng.uniform(-1, 1, (8, R)), "20% wrong labels": rng.uniform(-1, 1, (8, R))}
    png = choices({group: recorded(spent, chosen) for group, chosen in groups.items()})
    with Image.open(io.BytesIO(png)) as image:
        assert (image.format, image.size) == ("PNG", (1320, 900))

    (figure,) = drawn
    assert [panel.get_title() for panel in figure.axes] == [
        "share kept", "loss", "middle", "volatility", "age", "randomness", "weighting", "share blended",
        "balance", "need", "wrong", "right",
    ]  # fmt: skip
    assert [text.get_text() for text in figure.legends[0].get_texts()] == list(groups)
    for r, panel in enumerate(figure.axes):
        low_edge, high_edge = panel.get_ylim()
        for line, band, chosen in zip(panel.lines, panel.collections, groups.values(), strict=True):
            numbers = chosen[:, r]
            if RULE_PARAMETERS[r] == "keep":  # 10 % at -1, everything at 1, even on a log scale
                numbers = 10.0 ** ((numbers - 1.0) / 2.0)
            elif RULE_PARAMETERS[r] == "mixup":
                numbers = (1.0 + numbers) / 2.0
            bins = [numbers[:4], numbers[4:7], numbers[7:]]  # of 0 to 10 %, 50 to 60 %, 90 to 100 %
            np.testing.assert_allclose(np.array(line.get_xdata()), [0.05, 0.55, 0.95])
            np.testing.assert_allclose(np.array(line.get_ydata()), [x.mean() for x in bins])
            quartiles = {round(float(y), 6) for x in bins for y in np.quantile(x, (0.25, 0.75))}
            heights = {round(float(y), 6) for y in np.array(band.get_paths()[0].vertices)[:, 1]}
            assert heights == quartiles
            assert low_edge <= min(numbers) <= max(numbers) <= high_edge


@pytest.fixture
def policy(tmp_path, monkeypatch) -> Path:
    """A policy in a folder of its own, and tasks called tiny."""
    monkeypatch.setitem(distributions.DISTRIBUTIONS, "tiny", TINY)
    path = tmp_path / "mine" / "policy.npz"
    path.parent.mkdir()
    network().save(path)
    return path


@pytest.mark.slow
def test_from_the_command_line(policy, tmp_path, monkeypatch, capsys):
    arguments = [str(policy), "--tasks", "tiny", "--seeds", "2", "--processes", "1"]
    assert explain.main(arguments) == 0
    printed = capsys.readouterr().out
    assert {path.name for path in policy.parent.iterdir()} == {policy.name, "choices.png", "inputs.txt"}
    told = (policy.parent / "inputs.txt").read_text()
    assert told == printed
    assert "4 runs" in " ".join(told.split())  # a narrow table folds its title
    found = re.findall(r"│ (\w[\w, ]*\w) +│ +[+-]\d+\.\d\d \[[+-]\d+\.\d\d, [+-]\d+\.\d\d\] │", told)
    assert sorted(found) == sorted(GROUPS)
    with Image.open(policy.parent / "choices.png") as image:
        assert (image.format, image.size) == ("PNG", (1320, 900))

    monkeypatch.setattr(explain, "Workers", Here)  # in this process: the same again, on validation tasks only
    out = tmp_path / "deep" / "er"
    assert explain.main([*arguments, "--out", str(out)]) == 0
    tasks = TaskDistribution(**TINY)
    pairs = {(task, 20_000 + seed) for task in tasks.validation for seed in (0, 1)}
    assert {pair for played, _ in Here.played for pair in played} == pairs
    assert {path.name for path in out.iterdir()} == {"choices.png", "inputs.txt"}
    for name in ("choices.png", "inputs.txt"):
        assert (out / name).read_bytes() == (policy.parent / name).read_bytes()


def test_means_are_over_what_was_seen(policy, monkeypatch):
    given: list = []
    monkeypatch.setattr(explain, "Workers", Here)
    monkeypatch.setattr(explain, "inputs", lambda *arguments: given.extend(arguments) or Table("a", "b"))
    assert explain.main([str(policy), "--tasks", "tiny", "--seeds", "2"]) == 0
    _, pairs, _, means = given
    assert set(pairs) == {(task, 20_000 + seed) for task in TaskDistribution(**TINY).validation for seed in (0, 1)}
    seen, _ = run_alone(pairs, Network.load(policy))
    np.testing.assert_allclose(means, np.mean(seen, axis=0), atol=1e-3)


def card_of(path: Path, capsys) -> str:
    """The card as it is printed, without its line breaks."""
    assert explain.main([str(path), "--card"]) == 0
    return " ".join(capsys.readouterr().out.split())


def test_the_card_says_what_the_file_says(tmp_path, capsys):
    card = {
        "arguments": {"tasks": "own.toml", "minutes": 10.0, "steps": None, "evaluate_every": 96, "seed": 3},
        "training": {"seconds": 90.0, "steps": 12_345, "episodes": 678, "searched": 1},
        "tasks": {"values": {"label_noise": [0.0, 0.2], "task_seed": [0, 1]}, "validations": 4},
        "validation": {"pairs": 48, "points_over_full": -0.25, "points_over_fixed_rule": 1.5},
        "code": {"version": "9.8", "commit": "abcdef1234", "dirty": True},
        "machine": "a machine",
        "by": "[bold]J. Doe",
    }
    path = tmp_path / "policy.npz"
    replace(network(), card=card).save(path)
    told = card_of(path, capsys)
    for words in (
        "prune-env learn --tasks own.toml --minutes 10.0 --evaluate-every 96 --seed 3; prune_env 9.8; "
        "commit abcdef1 with changes; a machine",
        "dataset digits; label_noise 0.0 and 0.2; 2 draws of the samples",
        "678 runs with 12,345 steps in all, after a search over 1 run for",
        "; 1.5 minutes",
        "-0.25 points over full training and +1.50 points over the best rule that never changes",
        "means of 48 runs of 4 tasks",
        "by [bold]J. Doe",
    ):
        assert words in told


def test_the_card_of_a_mixture_has_all_its_tasks(tmp_path, capsys):
    parts = [
        {"values": {"budget": [4.0]}, "validations": 3},
        {"values": {"dataset": ["imagefolder"]}, "validations": 2},
    ]
    card = {"arguments": {"root": ["a", "b"], "tasks": "x"}, "tasks": {"parts": parts}}
    card["validation"] = {"pairs": 9, "points_over_full": 1.0}
    path = tmp_path / "policy.npz"
    replace(network(), card=card).save(path)
    told = card_of(path, capsys)
    assert "prune-env learn --root a b --tasks x" in told
    assert "dataset digits; budget 4.0. And: dataset imagefolder" in told
    assert "means of 9 runs of 5 tasks" in told


def test_the_card_of_a_distilled_policy_has_a_command_that_works(tmp_path, capsys):
    path = tmp_path / "policy.npz"
    card = {"program": "distil", "arguments": {"sweeps": ["a", "b"], "tasks": "x", "root": [], "rounds": 0}}
    replace(network(), card=card).save(path)
    assert "prune-env distil a b --tasks x --rounds 0" in card_of(path, capsys)


def test_the_card_of_a_policy_saved_by_hand_claims_nothing_that_its_file_does_not_say(tmp_path, capsys):
    path = tmp_path / "policy.npz"
    replace(network(), card={"trained": "by hand"}).save(path)
    told = card_of(path, capsys)
    assert "trained by hand" in told
    assert "tasks that its file does not list" in told
    for words in ("tasks above", "validation tasks", "trained by "):
        assert words not in told.replace("trained by hand", "")


def test_cards_of_a_policy_that_learn_made_of_the_shipped_one_and_of_none(policy, tmp_path, capsys):
    assert "made for a test" in card_of(policy, capsys)
    shipped = card_of(SHIPPED, capsys)
    assert "--agents learned, or" in shipped  # no path, which other machines lack
    points: Any = Network.load(SHIPPED).card["validation"]
    assert f"{points['points_over_full']:+.2f} points over full training" in shipped
    for question in ("trained by", "on tasks", "how long", "validation", "use it for", "limits"):
        assert f" {question} " in shipped
    bare = tmp_path / "bare.npz"
    replace(network(), card={}).save(bare)
    assert explain.main([str(bare), "--card"]) == 2
    assert capsys.readouterr().err == f"error: {bare} has no card; policies of prune-env learn have one\n"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["POLICY", "--tasks", "mnist"], ["mnist", "digits"]),
        (["POLICY", "--processes", "0"], ["--processes"]),
        (["POLICY", "--tasks", "natural"], ["imagefolder", "PRUNE_ENV_DATA"]),
        (["DAMAGED"], ["DAMAGED", "damaged"]),
        (["POLICY", "--out", "DAMAGED"], ["DAMAGED"]),
    ],
)
def test_what_is_wrong_is_told_in_one_line(arguments: list[str], words, policy, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(explain, "Workers", None)  # nothing is played
    damaged = tmp_path / "damaged.npz"
    damaged.write_bytes(policy.read_bytes()[:-9])
    named: dict[str, str] = {"POLICY": str(policy), "DAMAGED": str(damaged)}
    assert explain.main(["--tasks", "tiny", *(named.get(word, word) for word in arguments)]) == 2
    out, error = capsys.readouterr()
    assert out == ""
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    for word in words:
        assert named.get(word, word) in error
    assert {path.name for path in policy.parent.iterdir()} == {policy.name}
