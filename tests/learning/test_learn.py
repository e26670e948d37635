"""`python -m train.learn`: what it leaves behind, how it goes on, and that what it trains learns."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray
from rich.console import Console
from scipy import stats
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import agents
from agents.learned import Learned
from prune_env.policy import tasks as distributions
from prune_env.policy.features import FEATURES
from prune_env.policy.learned import Network
from prune_env.policy.rules import FULL, RULE_PARAMETERS
from prune_env.policy.sb3 import SB3VecEnv
from prune_env.policy.tasks import Task, TaskDistribution
from tests.learning.here import TINY, Here
from train import learn
from train.learning import ppo, search
from train.learning.phases import Phases
from train.learning.rollouts import CLIP, draw_pairs, play

ROOT = Path(__file__).parents[2]
D, R = len(FEATURES), len(RULE_PARAMETERS)


class Planted(Here):
    """Full training reaches 0.5, and a policy's evaluations what is planted."""

    planted: list[float]

    def play(self, pairs, policy) -> NDArray:
        return np.full(len(pairs), self.planted.pop(0) if callable(policy) else 0.5)


@pytest.fixture
def tiny(monkeypatch) -> TaskDistribution:
    """Tasks called tiny, a short search, and everything in one process; it fails if a held-out task is built."""
    monkeypatch.setitem(distributions.DISTRIBUTIONS, "tiny", TINY)
    monkeypatch.setattr(learn, "Workers", Here)
    monkeypatch.setattr(Here, "played", [], raising=False)
    for name, value in {"CANDIDATES": 6, "ELITES": 2, "PAIRS": 2}.items():
        monkeypatch.setattr(search, name, value)
    for name, value in {"PROBES": 8, "GENERATIONS": 2, "VALIDATION_SEEDS": range(10_000, 10_002)}.items():
        monkeypatch.setattr(learn, name, value)
    monkeypatch.setattr(ppo, "SETTINGS", {**ppo.SETTINGS, "n_steps": 8, "batch_size": 32, "n_epochs": 1})
    tasks, settings = TaskDistribution(**TINY), Task.settings
    held_out = set(tasks.held_out)

    def built(task):
        assert task not in held_out
        return settings(task)

    monkeypatch.setattr(Task, "settings", built)
    return tasks


@pytest.fixture
def planted(tiny, monkeypatch) -> None:
    monkeypatch.setattr(learn, "Workers", Planted)
    monkeypatch.setattr(Planted, "planted", [0.4, 0.6, 0.55, 0.6, 0.3], raising=False)
    monkeypatch.setattr(learn, "_moments", lambda *_: (np.zeros(D), np.ones(D)))


def run(out: Path, *more: str) -> int:
    arguments = ["--tasks", "tiny", "--members", "4", "--processes", "1", "--pool", "4", "--evaluate-every", "1"]
    return learn.main([*arguments, "--out", str(out), *more])


def evaluations(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "evaluations.jsonl").read_text().splitlines()]


def results(folder: Path) -> tuple:
    """All that a run leaves, but for seconds."""
    lines = [{name: value for name, value in line.items() if name != "seconds"} for line in evaluations(folder)]
    network = Network.load(folder / "policy.npz")
    return lines, [part.tolist() for layer in network.layers for part in layer]


def features(count: int) -> NDArray[np.float32]:
    return np.random.default_rng(1).uniform(-1, 1, (count, D)).astype(np.float32)


# over 2 s: it trains, stops, goes on, and reads everything that is left
def test_it_leaves_a_policy_and_goes_on(tiny, tmp_path, capsys):
    assert run(tmp_path, "--steps", "1") == 0
    folder = tmp_path / "tiny-ppo-0"
    names = {path.name for path in folder.iterdir()} - {".lock"}
    assert names == {"checkpoint.pt", "evaluations.jsonl", "tensorboard", "model.zip", "policy.npz"}
    first = evaluations(folder)
    assert [line["steps"] for line in first] == [32]
    start = torch.load(folder / "checkpoint.pt", weights_only=True)["start"]
    assert start["searched"] == 12 * learn.GENERATIONS
    pairs = draw_pairs(tiny, 4, np.random.default_rng([0, 0]))
    two = [play(pairs, rules, tiny) for rules in (FULL, np.array(start["rule"]))]
    np.testing.assert_array_equal(start["baseline"], np.mean(two, axis=0))

    Here.played.clear()
    assert run(tmp_path, "--steps", "60") == 0
    lines = evaluations(folder)
    assert all(callable(policy) for _, policy in Here.played)  # the baseline and the search are not done again
    assert lines[:1] == first
    assert [line["steps"] for line in lines] == [32, 64]
    points = [line["points"] for line in lines]
    assert [line["best"] for line in lines] == np.maximum.accumulate(points).tolist()

    network = Network.load(folder / "policy.npz")
    validation = [(task, seed) for task in tiny.validation for seed in learn.VALIDATION_SEEDS]
    full = play(validation, FULL, tiny)
    assert 100 * np.mean(play(validation, network, tiny) - full) == pytest.approx(max(points))
    card: Any = network.card
    assert card["validation"]["points_over_full"] == pytest.approx(max(points))
    assert str(tmp_path) not in json.dumps(card)
    zipped = agents.make(f"learned:{folder / 'model.zip'},trust=True")
    assert isinstance(zipped, Learned)
    for seen in features(20):
        np.testing.assert_allclose(zipped._policy(seen), network(seen), atol=1e-4)
    read = EventAccumulator(str(folder / "tensorboard")).Reload()
    assert [event.step for event in read.Scalars("validation/points_over_full")] == [32, 64]
    returns = [event.value for event in read.Scalars("rollout/ep_rew_mean")]
    assert max(map(abs, returns)) <= CLIP
    said = capsys.readouterr().out.splitlines()
    assert [line for line in said if line.endswith("...")] == [
        *("full training ...", "search of a fixed rule ...", "that rule, for comparison ...", "training ..."),
        "training ...",  # it went on
    ]
    gains = 100 * (play(validation, network, tiny) - full)
    assert said[-2:] == [
        f"the best policy is {folder / 'policy.npz'}: {max(points):+.2f} points over full training in validation",
        f"prune-env evaluate --agents full balanced learned:{folder / 'policy.npz'}",
    ]
    assert f"; ± is the standard error over {len(validation)} pairs of task and seed" in " ".join(said)
    best = f"{gains.mean():+.2f} ± {stats.sem(gains):.2f} points over full training"
    (line,) = (line for line in said if " steps, " in line and f"validation {best}" in line)
    assert f"return {returns[int(np.argmax(points))]:+.2f};" in line
    assert run(tmp_path, "--steps", "60") == 0  # there is nothing left to do
    assert evaluations(folder) == lines


def test_the_same_seed_learns_the_same_and_another_something_else(planted, tmp_path):
    Planted.planted = [0.5] * 3
    for name, seed in (("a", "0"), ("b", "0"), ("c", "1")):
        assert run(tmp_path, "--steps", "1", "--name", name, "--seed", seed) == 0
    a, b, c = (results(tmp_path / name) for name in "abc")
    assert a == b != c


# over 2 s: it searches for a rule and trains until one is better
def test_the_best_policy_is_kept(planted, tmp_path):
    assert run(tmp_path, "--steps", "140") == 0
    lines = evaluations(tmp_path / "tiny-ppo-0")
    assert [line["points"] for line in lines] == pytest.approx([-10, 10, 5, 10, -20])
    card: Any = Network.load(tmp_path / "tiny-ppo-0" / "policy.npz").card
    assert card["training"]["steps"] == 64
    assert card["validation"]["points_over_fixed_rule"] == pytest.approx(10)


# over 2 s: it trains twice
def test_it_ends_with_its_time_or_its_steps(planted, tmp_path):
    """If the search took all the time, there still is a policy: the best fixed rule."""
    Planted.planted = [0.5] * 10_000
    assert run(tmp_path, "--minutes", "0.02", "--name", "time") == 0
    assert 1.2 <= evaluations(tmp_path / "time")[-1]["seconds"] < 60
    assert run(tmp_path, "--steps", "64", "--minutes", "30", "--name", "steps") == 0
    assert [line["steps"] for line in evaluations(tmp_path / "steps")] == [32, 64]
    assert run(tmp_path, "--minutes", "0.000001", "--name", "none") == 0
    assert [line["steps"] for line in evaluations(tmp_path / "none")] == [0]
    start = torch.load(tmp_path / "none" / "checkpoint.pt", weights_only=True)["start"]
    rule = np.clip(start["rule"], -ppo.LARGEST_START, ppo.LARGEST_START)
    np.testing.assert_allclose(Network.load(tmp_path / "none" / "policy.npz")(features(50)).mean(0), rule, atol=0.02)


def test_too_little_time_is_said_after_the_first_runs(planted, tiny, tmp_path, monkeypatch, capsys):
    """As if two runs had taken a minute: 12 of the search, 2, 12 in validation, 8 probes and 32 steps follow."""
    monkeypatch.setattr(learn, "PAIRS", 2)
    monkeypatch.setattr(learn.Learning, "_seconds", 60.0)
    Planted.planted = [0.5]
    assert run(tmp_path, "--minutes", "1.01", "--steps", "1") == 0
    pairs = draw_pairs(tiny, 4, np.random.default_rng([0, 0]))
    budget = sum(task.budget for task, _ in pairs) / 4
    needed = 1 + (12 + 2 + 3 * 4 + 8 + 32 / budget) / 2
    said = capsys.readouterr().out
    assert "warning: --minutes 1.01 may be too little: going by the first 2 runs, it takes about" in said
    assert f"{needed:.2g} until a policy has learned from anything; give {int(np.ceil(3 * needed))} or more" in said


def test_time_that_is_enough_is_not_warned_of(planted, tmp_path, capsys):
    Planted.planted = [0.5] * 2
    assert run(tmp_path, "--minutes", "30", "--steps", "1") == 0
    assert "warning" not in capsys.readouterr().out


def test_phases_are_bars_on_a_terminal():
    written = StringIO()
    with Phases(Console(file=written, force_terminal=True, width=100, color_system=None)) as phases:
        with phases.phase("search") as show:
            show(0.5, "return +1.00")
            phases._bars.refresh()
            half = written.getvalue()
        phases.say("a line")
        with phases.phase("training") as show:
            show(1.7)
            assert [bar.completed for bar in phases._bars.tasks] == [1.0, 1.0]
    assert re.search("search +━+╸? +.*return \\+1.00", half)
    assert "..." not in written.getvalue()
    assert "a line" in written.getvalue()


def test_it_takes_ten_minutes_unless_told_otherwise(tiny, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(learn.Learning, "run", lambda self: seen.append(self._given.minutes))
    for more in ([], ["--steps", "5"], ["--steps", "5", "--minutes", "3"]):
        assert run(tmp_path, *more) == 0
    assert seen == [10.0, None, 3.0]


class Killed(BaseException):
    """Nothing of the program gets to handle it, as with a kill."""


@pytest.mark.parametrize(
    ("owner", "name", "count"),
    [
        pytest.param("learn", "_moments", 1, marks=pytest.mark.slow),
        pytest.param("Clock", "_on_step", 3, marks=pytest.mark.slow),
        ("Clock", "_on_step", 13),  # over 2 s: a whole run and a killed one, since resume must be exact
        pytest.param("Learning", "_save", 3, marks=pytest.mark.slow),
    ],
)
def test_killed_anywhere_it_ends_as_if_it_had_not_been(owner, name, count, tiny, tmp_path, monkeypatch):
    calls, holder = [0], learn if owner == "learn" else getattr(learn, owner)
    original = getattr(holder, name)

    def counted(*arguments):
        calls[0] += 1
        if calls[0] == count:
            raise Killed
        return original(*arguments)

    assert run(tmp_path, "--steps", "64", "--name", "whole") == 0
    with monkeypatch.context() as patch:
        patch.setattr(holder, name, counted)
        with pytest.raises(Killed):
            run(tmp_path, "--steps", "64", "--name", "killed")
    assert run(tmp_path, "--steps", "64", "--name", "killed") == 0
    assert results(tmp_path / "killed") == results(tmp_path / "whole")


def test_an_interrupt_is_said_and_a_damaged_checkpoint_starts_over(planted, tmp_path, monkeypatch, capsys):
    Planted.planted = [0.5] * 100

    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(learn.Learning, "_train", interrupted)
        assert run(tmp_path, "--steps", "40") == 130
    assert capsys.readouterr().err == "interrupted; the same command goes on from the last evaluation\n"
    (tmp_path / "tiny-ppo-0" / "checkpoint.pt").write_bytes(b"junk")
    assert run(tmp_path, "--steps", "40") == 0
    assert "cannot be read, so this run starts over" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (["--pool", "0"], "--processes and --pool must be at least 1"),
        (["--processes", "5"], "--members no fewer than --processes"),
        (["--steps", "0"], "--steps is 0; it must be above 0"),
        (["--minutes", "nan"], "--minutes is nan; it must be above 0"),
        (["--evaluate-every", "0"], "--evaluate-every is 0"),
        (["--seed", "-1"], "--seed is -1"),
        (["--address", "auto"], "--address needs --engine ray"),
        (["--tasks", "mnist"], "no tasks called 'mnist'; there are digits"),
        (["--tasks", "none.toml"], "No such file"),
    ],
)
def test_wrong_arguments_are_named(change, words, tiny, tmp_path, capsys):
    assert run(tmp_path, *change) == 2
    assert words in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_task_that_cannot_be_built_is_named_before_the_start(tiny, tmp_path, monkeypatch, capsys):
    wrong = {**TINY, "values": {**TINY["values"], "model": ("mlp:4", "mlp:x")}}
    monkeypatch.setitem(distributions.DISTRIBUTIONS, "tiny", wrong)
    assert run(tmp_path) == 2
    assert "--tasks tiny: Task(" in capsys.readouterr().err


def test_a_run_with_other_arguments_is_not_gone_on_with(planted, tmp_path, monkeypatch, capsys):
    Planted.planted = [0.5] * 100
    assert run(tmp_path, "--steps", "1", "--name", "x") == 0
    assert run(tmp_path, "--steps", "1", "--name", "x", "--seed", "1") == 2
    assert "holds a run with --tasks tiny --seed 0 --pool 4" in capsys.readouterr().err
    monkeypatch.setitem(distributions.DISTRIBUTIONS, "tiny", {**TINY, "validations": 2})
    assert run(tmp_path, "--steps", "1", "--name", "x") == 2
    assert "holds a run with other tasks than 'tiny' has" in capsys.readouterr().err
    monkeypatch.setattr(learn, "RULE_PARAMETERS", (*RULE_PARAMETERS[1:], RULE_PARAMETERS[0]))
    assert run(tmp_path, "--steps", "1", "--name", "x") == 2
    assert "holds a run with other features or rules than this version" in capsys.readouterr().err


# What it trains


class Hidden(VectorEnv):
    """The best rule is a point that the first R features say; an episode has one step."""

    metadata = {"autoreset_mode": AutoresetMode.DISABLED}  # noqa: RUF012

    def __init__(self, members: int):
        self.num_envs = members
        self.single_observation_space = spaces.Box(-1, 1, (D,), np.float32)
        self.single_action_space = spaces.Box(-1, 1, (R,), np.float32)
        self.observation_space = batch_space(self.single_observation_space, members)
        self.action_space = batch_space(self.single_action_space, members)

    def reset(self, *, seed=None, options=None):
        if seed is not None:
            self._rng = np.random.default_rng(seed)
        mask = (options or {}).get("reset_mask", np.ones(self.num_envs, bool))
        new = self._rng.uniform(-1, 1, (self.num_envs, D)).astype(np.float32)
        self._seen = np.where(mask[:, None], new, getattr(self, "_seen", new))
        return self._seen, {}

    def step(self, actions):
        done = np.ones(self.num_envs, bool)
        return self._seen, -loss(self._seen, np.clip(actions, -1, 1)), done, ~done, {}


def loss(seen: NDArray, parameters: NDArray) -> NDArray:
    return ((parameters - seen[:, :R]) ** 2)[:, :5].sum(axis=1)


def test_a_policy_begins_as_the_rule_and_its_network_is_the_model():
    rng = np.random.default_rng(0)
    scale = np.where(np.arange(D) == 7, np.inf, rng.uniform(0.1, 2, D))
    rule = [0.3, -0.2, 1.0, *[0.0] * (R - 4), -1.0]
    model = ppo.build(SB3VecEnv(Hidden(16)), rule, rng.normal(size=D).tolist(), scale.tolist(), 0)
    network = ppo.network_of(model, {})
    np.testing.assert_allclose(network(features(9)), [[0.3, -0.2, 0.95, *[0.0] * (R - 4), -0.95]] * 9, atol=0.05)
    with torch.no_grad():
        for parameter in model.policy.mlp_extractor.parameters():
            parameter.mul_(3)
        model.policy.action_net.weight.mul_(100)  # pyright: ignore[reportCallIssue]
    seen = features(40)
    network = ppo.network_of(model, {})
    np.testing.assert_allclose(network(seen), model.predict(seen, deterministic=True)[0], atol=1e-4)
    assert network(seen).std() > 0.1
    other = seen.copy()
    other[:, 7] += 1  # a feature that never varied is not read
    np.testing.assert_array_equal(network(other), network(seen))


@pytest.mark.slow  # half a minute of PPO
def test_ppo_learns_what_the_best_rule_depends_on():
    """The best fixed rule loses 5/3 a step, a policy that looks nearly nothing."""
    model = ppo.build(SB3VecEnv(Hidden(32)), [0.0] * R, [0.0] * D, [0.58] * D, 0)
    seen = features(2000)
    assert loss(seen, model.predict(seen, deterministic=True)[0]).mean() == pytest.approx(5 / 3, rel=0.1)
    model.learn(30_000)
    assert loss(seen, model.predict(seen, deterministic=True)[0]).mean() < 0.5 * 5 / 3


@pytest.mark.slow  # processes of its own
def test_the_program_itself(tmp_path):
    path = tmp_path / "own.toml"
    values = "\n".join(f"{name} = {json.dumps(values)}" for name, values in TINY["values"].items())
    path.write_text(f"validations = 1\nheld_outs = 1\n[values]\n{values}\n")
    command = [sys.executable, "-m", "train.learn", "--tasks", str(path), "--steps", "64", "--members", "4"]
    command += ["--processes", "2", "--pool", "4", "--minutes", "0.2", "--out", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "points over full training, best" in " ".join(done.stdout.split())
    agents.make(f"learned:{tmp_path / 'own-ppo-0' / 'policy.npz'}")
