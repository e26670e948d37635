"""`python -m train.learn`: what it leaves behind, how it goes on, and that what it trains learns."""

from __future__ import annotations

import copy
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import VecEnvWrapper
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import agents
import prune_env
from agents.learned import Learned, Network
from prune_env.policy import tasks as distributions
from prune_env.policy.encoding import RULE, SUMMARY
from prune_env.policy.tasks import Task, TaskDistribution
from tests.slow.soak import TINY_TASKS
from train import explain, learn
from train.execution import checkpoints
from train.execution import run as episode
from train.execution.run import Run
from train.learning import search
from train.learning.rollouts import FULL, draw_pairs, play
from train.learning.sb3_env import SB3VecEnv

ROOT = Path(__file__).parents[2]
TRAINED = {  # with settings that let few steps be enough for some updates
    "ppo": {"n_steps": 8, "batch_size": 16, "n_epochs": 2},
    "a2c": {"n_steps": 8},
    "sac": {"learning_starts": 20, "batch_size": 16, "buffer_size": 500, "train_freq": 8},
    "ars": {"n_delta": 1, "n_top": 1},
    "recurrent_ppo": {"n_steps": 8, "batch_size": 16, "n_epochs": 2},
}
MEMORYLESS = [algo for algo in TRAINED if algo != "recurrent_ppo"]
D, R = len(SUMMARY), len(RULE)


class Here(VecEnvWrapper):
    """`Shards` in this process, without the time that processes take to start."""

    def __init__(self, makers):
        super().__init__(makers[0]())
        assert len(makers) == 1
        self.episodes = 0

    def reset(self):
        self.venv.seed(self._seeds[0])
        self._reset_seeds()
        return self.venv.reset()

    def step_wait(self):
        with torch.enable_grad():  # ARS switches gradients off, in its own process
            seen, rewards, dones, infos = self.venv.step_wait()
        self.episodes += int(dones.sum())
        return seen, rewards, dones, infos


class Players:
    """`practice.Players` in this process; notes what was played."""

    played: list[tuple[list, Any]]

    def __init__(self, tasks: TaskDistribution, processes: int):
        self._tasks = tasks

    def play(self, pairs, policy) -> NDArray:
        self.played.append((list(pairs), policy))
        return play(pairs, policy, self._tasks)

    def close(self) -> None:
        pass


@pytest.fixture
def tiny(monkeypatch) -> TaskDistribution:
    """Tasks called tiny, a short search, and everything in one process; it fails if a held-out task is built."""
    monkeypatch.setitem(distributions.DISTRIBUTIONS, "tiny", TINY_TASKS)
    monkeypatch.setattr(learn, "Shards", Here)
    monkeypatch.setattr(learn, "Players", Players)
    monkeypatch.setattr(Players, "played", [], raising=False)
    for name, value in {"CANDIDATES": 6, "ELITES": 2, "PAIRS": 2}.items():
        monkeypatch.setattr(search, name, value)
    monkeypatch.setattr(learn, "PROBES", 8)
    for algo, (module, name, policy, settings) in learn.ALGORITHMS.items():
        monkeypatch.setitem(learn.ALGORITHMS, algo, (module, name, policy, {**settings, **TRAINED[algo]}))
    tasks, settings = TaskDistribution(**TINY_TASKS), Task.settings
    held_out = set(tasks.held_out)
    assert len(held_out) == 2

    def built(task):
        assert task not in held_out
        return settings(task)

    monkeypatch.setattr(Task, "settings", built)
    return tasks


def run(out: Path, algo: str, *more: str) -> int:
    arguments = ["--tasks", "tiny", "--algo", algo, "--members", "4", "--processes", "1"]
    if "--steps" not in more:
        arguments += ["--minutes", "0.000001"]
    return learn.main([*arguments, "--pool", "4", "--evaluate-every", "1", "--out", str(out), *more])


def kept_last(folder: Path) -> dict[str, Any]:
    """What the last checkpoint has."""
    return checkpoints.Checkpoint(folder / checkpoints.FOLDER).load()


def start_of(folder: Path) -> dict[str, Any]:
    return kept_last(folder)["start"]


def evaluations(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "evaluations.jsonl").read_text().splitlines()]


def validation_points(folder: Path, tasks: TaskDistribution, policy) -> float:
    """Of a policy, from the files alone."""
    pairs = [(task, seed) for task in tasks.validation for seed in learn.VALIDATION_SEEDS]
    full = play(pairs, FULL, tasks)
    np.testing.assert_array_equal(full, start_of(folder)["full"])
    return 100 * float(np.mean(play(pairs, policy, tasks) - full))


def summaries(count: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng([seed, 1]).uniform(-1, 1, (count, D)).astype(np.float32)


# The program


@pytest.mark.parametrize(
    "algo",
    [pytest.param(algo, marks=pytest.mark.slow) if algo != "ppo" else algo for algo in TRAINED],
)
def test_every_algorithm_leaves_a_policy_and_goes_on(algo, tiny, tmp_path):
    assert run(tmp_path, algo, "--steps", "100") == 0
    folder = tmp_path / f"tiny-{algo}-0"
    files = {"checkpoints", "evaluations.jsonl", "tensorboard", "model.zip", ".lock"}
    files |= {"policy.safetensors"} if algo in MEMORYLESS else set()
    assert {path.name for path in folder.iterdir()} == files
    first = evaluations(folder)
    rollout = 200 if algo == "ars" else 32  # at most, of 4 members
    assert 100 <= first[-1]["steps"] < 100 + rollout
    assert first[-1]["episodes"] > 10

    start = start_of(folder)
    assert len(start["rule"]) == R
    assert len(start["shift"]) == len(start["scale"]) == D
    assert start["searched"] == 12 * learn.GENERATIONS
    pairs = draw_pairs(tiny.training, 4, np.random.default_rng([0, 0]))
    two = [play(pairs, rules, tiny) for rules in (FULL, np.array(start["rule"]))]
    np.testing.assert_array_equal(start["baseline"], np.mean(two, axis=0))

    Players.played.clear()
    assert run(tmp_path, algo, "--steps", "160") == 0
    lines = evaluations(folder)
    assert start_of(folder) == start
    assert all(callable(policy) for _, policy in Players.played)  # the baseline and the search are not done again
    assert lines[: len(first)] == first
    steps, episodes = ([line[name] for line in lines] for name in ("steps", "episodes"))
    assert steps == sorted(steps)
    assert 160 <= steps[-1] < 160 + rollout
    assert episodes == sorted(episodes)
    assert episodes[-1] > first[-1]["episodes"]
    seconds = [line["seconds"] for line in lines]
    assert seconds == sorted(seconds)

    points = [line["points"] for line in lines]
    assert [line["best"] for line in lines] == np.maximum.accumulate(points).tolist()
    at = folder / ("policy.safetensors" if algo in MEMORYLESS else "model.zip")
    agent = Learned(path=str(at), trust=True)
    assert agents.make(f"learned:{at},trust=True") == agent
    if algo in MEMORYLESS:
        network = Network.load(at)
        assert validation_points(folder, tiny, network) == pytest.approx(max(points))
        card: Any = network.card
        assert card["validation"]["points_over_full"] == pytest.approx(max(points))
        assert card["training"]["best"] == max(points)
        assert card["arguments"]["algo"] == algo
        assert str(tmp_path) not in json.dumps(card)
        zipped = Learned(path=str(folder / "model.zip"), trust=True)._start()
        for seen in summaries(20):
            np.testing.assert_allclose(zipped(seen), network(seen), atol=1e-4)
    read = EventAccumulator(str(folder / "tensorboard")).Reload()
    assert sorted(event.step for event in read.Scalars("validation/points_over_full")) == steps
    if algo == "ppo":
        returns = [event.value for event in read.Scalars("rollout/ep_rew_mean")]
        assert any(returns)
        assert max(map(abs, returns)) <= learn.CLIP

    assert run(tmp_path, algo, "--steps", "160") == 0  # there is nothing left to do
    assert evaluations(folder) == lines


class Planted(Players):
    """Full training reaches 0.5, and a policy's evaluations what is planted."""

    def play(self, pairs, policy) -> NDArray:
        self.played.append((list(pairs), policy))
        return np.full(len(pairs), self.planted.pop(0) if callable(policy) else 0.5)

    planted: list[float]


@pytest.fixture
def planted(tiny, monkeypatch) -> None:
    monkeypatch.setattr(learn, "Players", Planted)
    monkeypatch.setattr(Planted, "planted", [0.4, 0.6, 0.55, 0.6, 0.3], raising=False)
    monkeypatch.setattr(learn, "_moments", lambda *_: (np.zeros(D), np.ones(D)))


def test_the_same_seed_learns_the_same_and_another_something_else(planted, tmp_path):
    Planted.planted = [0.5, 0.6] * 3
    for name, seed in (("a", "0"), ("b", "0"), ("c", "1")):
        assert run(tmp_path, "ppo", "--steps", "40", "--name", name, "--seed", seed) == 0
    a, b, c = (Network.load(tmp_path / name / "policy.safetensors")(summaries(5)) for name in "abc")
    np.testing.assert_array_equal(a, b)
    assert np.abs(a - c).max() > 1e-3


def test_the_best_policy_is_kept(planted, tmp_path):
    assert run(tmp_path, "ppo", "--steps", "140") == 0
    lines = evaluations(tmp_path / "tiny-ppo-0")
    assert [line["points"] for line in lines] == pytest.approx([-10, 10, 5, 10, -20])
    assert [line["steps"] for line in lines] == [32, 64, 96, 128, 160]
    card: Any = Network.load(tmp_path / "tiny-ppo-0" / "policy.safetensors").card
    assert card["training"]["steps"] == 64
    assert card["validation"]["points_over_full"] == pytest.approx(10)
    assert card["validation"]["points_over_fixed_rule"] == pytest.approx(10)


def test_it_ends_with_its_time(planted, tmp_path):
    """ARS too, which asks nobody whether to go on; and if the search took it all, there still is a policy."""
    Planted.planted = [0.5] * 10_000
    for algo, minutes in (("ppo", 0.02), ("ars", 0.02), ("a2c", 1e-6)):
        begun = time.perf_counter()
        assert run(tmp_path, algo, "--minutes", f"{minutes:f}") == 0
        took = time.perf_counter() - begun
        lines = evaluations(tmp_path / f"tiny-{algo}-0")
        assert lines[-1]["seconds"] < took < 60
        # The last evaluation may lie just before the end: what is built for the next stretch takes time too.
        assert took >= 60 * minutes
        Network.load(tmp_path / f"tiny-{algo}-0" / "policy.safetensors")
    assert [line["steps"] for line in lines] == [0]
    assert run(tmp_path, "a2c", "--minutes", "0.000001") == 0
    assert evaluations(tmp_path / "tiny-a2c-0") == lines


def test_steps_and_minutes_end_it_whichever_comes_first(planted, tmp_path):
    Planted.planted = [0.5] * 10_000
    assert run(tmp_path, "ppo", "--steps", "64", "--minutes", "30") == 0
    assert [line["steps"] for line in evaluations(tmp_path / "tiny-ppo-0")] == [32, 64]
    assert run(tmp_path, "a2c", "--steps", "64", "--minutes", "0.000001") == 0
    assert [line["steps"] for line in evaluations(tmp_path / "tiny-a2c-0")] == [0]


@pytest.mark.parametrize(("steps", "rollouts"), [(1, 1), (32, 1), (33, 2), (70, 3)])
def test_every_rollout_is_learned_from(steps, rollouts, planted, tmp_path, monkeypatch):
    """Those of PPO have 8 steps of 4 members here; also the last one, that --steps ends in."""
    Planted.planted = [0.5] * 100
    learned, train = [], PPO.train

    def noted(model):
        learned.append(model.num_timesteps)
        train(model)

    monkeypatch.setattr(PPO, "train", noted)
    assert run(tmp_path, "ppo", "--steps", str(steps)) == 0
    assert learned == [32 * (k + 1) for k in range(rollouts)]
    assert evaluations(tmp_path / "tiny-ppo-0")[-1]["steps"] == 32 * rollouts


def test_it_takes_ten_minutes_unless_told_otherwise(tiny, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(learn.Learning, "run", lambda self: seen.append(self._given.minutes))
    for more in ([], ["--steps", "5"], ["--steps", "5", "--minutes", "3"]):
        assert learn.main(["--tasks", "tiny", "--out", str(tmp_path), *more]) == 0
    assert seen == [10.0, None, 3.0]


def test_it_goes_on_after_it_was_interrupted(planted, tmp_path, monkeypatch, capsys):
    evaluate_once, build, seeds = learn.Learning._evaluate, learn.build, []

    def noted(algo, env, start, seed):
        seeds.append(seed)
        return build(algo, env, start, seed)

    monkeypatch.setattr(learn, "build", noted)

    def interrupted(learning):
        evaluate_once(learning)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(learn.Learning, "_evaluate", interrupted)
        assert run(tmp_path, "ppo", "--steps", "100") == 130
    assert capsys.readouterr().err == "interrupted; the same command goes on from the last evaluation\n"
    assert [line["steps"] for line in evaluations(tmp_path / "tiny-ppo-0")] == [32]
    stopped, begun = Network.load(tmp_path / "tiny-ppo-0" / "policy.safetensors"), []
    monkeypatch.setattr(
        learn.Learning, "_on_training_start", lambda learning: begun.append(learn.network_of(learning.model, {}))
    )
    assert run(tmp_path, "ppo", "--steps", "100") == 0
    assert [line["steps"] for line in evaluations(tmp_path / "tiny-ppo-0")] == [32, 64, 96, 128]
    np.testing.assert_array_equal(begun[0](summaries(9)), stopped(summaries(9)))
    assert len(set(seeds)) == 5  # what was drawn is not drawn again: four stretches, and a look whether there is more


class Killed(BaseException):
    """Nothing of the program gets to handle it, as with a kill."""


def killed_at(monkeypatch, place: str, count: int) -> None:
    """Let the program end at the count-th call of a function, after it has done half of its work."""
    calls, owner, name = (
        [0],
        *{
            "step": (learn.Learning, "_on_step"),
            "save": (learn.Learning, "_save"),
            "write": (learn.Learning, "_write"),
            "prepare": (learn, "_moments"),
        }[place],
    )
    original = getattr(owner, name)

    def now(*arguments):
        calls[0] += 1
        if calls[0] == count:
            if place == "save":
                kept = arguments[0]._folder / checkpoints.FOLDER
                kept.mkdir(exist_ok=True)
                (kept / f".checkpoint.pt.{'0' * 32}").write_bytes(b"a half")
            raise Killed
        return original(*arguments)

    monkeypatch.setattr(owner, name, now)


@pytest.mark.slow
@pytest.mark.parametrize("algo", TRAINED)
def test_killed_anywhere_it_ends_as_if_it_had_not_been(algo, tiny, tmp_path, monkeypatch):
    arguments = (algo, "--steps", "100", "--evaluate-every", "32")
    assert run(tmp_path, *arguments, "--name", "whole") == 0
    interruptions = 0
    places = [("prepare", 1), ("step", 3), ("save", 1), ("step", 13), ("write", 1), ("save", 2), ("step", 2)]
    for place, count in places:
        with monkeypatch.context() as patch:
            killed_at(patch, place, count)
            try:
                run(tmp_path, *arguments, "--name", "killed")
            except Killed:
                interruptions += 1
    assert interruptions >= (4 if algo == "ars" else len(places))  # it has fewer evaluations
    assert run(tmp_path, *arguments, "--name", "killed") == 0
    whole, killed = (evaluations(tmp_path / name) for name in ("whole", "killed"))
    for line in (*whole, *killed):
        del line["seconds"]
    assert killed == whole
    for one, other in zip(models(tmp_path / "whole"), models(tmp_path / "killed"), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
    if algo in MEMORYLESS:
        one, other = (Network.load(tmp_path / name / "policy.safetensors") for name in ("whole", "killed"))
        for ours, theirs in zip(one.layers, other.layers, strict=True):
            np.testing.assert_array_equal(ours[0], theirs[0])
            np.testing.assert_array_equal(ours[1], theirs[1])
    assert not [path for path in (tmp_path / "killed").rglob(".*") if path.name != ".lock"]


def models(folder: Path) -> list[Any]:
    """Parameters and optimiser at the end, from the last checkpoint, and the steps they took."""
    kept = kept_last(folder)
    return [kept["model"]["parameters"], kept["state"]["steps"]]


@pytest.mark.slow
def test_a_damaged_checkpoint_is_named_and_the_run_starts_over(tiny, tmp_path):
    arguments = ("ppo", "--evaluate-every", "32")
    assert run(tmp_path, *arguments, "--steps", "64") == 0
    folder = tmp_path / "tiny-ppo-0"
    whole = evaluations(folder)
    last = folder / "checkpoints" / "checkpoint.pt"
    last.write_bytes(last.read_bytes()[:-100])
    with pytest.warns(UserWarning, match=str(last)):
        assert run(tmp_path, *arguments, "--steps", "64") == 0
    for line in (*whole, *(again := evaluations(folder))):
        del line["seconds"]
    assert again == whole


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--tasks", "nothing"], ["'nothing'", "digits"]),
        (["--members", "0"], ["--members"]),
        (["--members", "2", "--processes", "3"], ["--members", "--processes"]),
        (["--processes", "0"], ["--processes"]),
        (["--pool", "0"], ["--pool"]),
        (["--minutes", "0"], ["--minutes is 0.0"]),
        (["--minutes", "nan"], ["--minutes is nan"]),
        (["--minutes", "-1", "--steps", "5"], ["--minutes is -1.0"]),
        (["--steps", "0"], ["--steps is 0"]),
        (["--tasks", "nowhere.toml"], ["nowhere.toml"]),
        (["--seed", "-1"], ["--seed is -1"]),
    ],
)
def test_arguments_that_are_wrong(arguments, words, tmp_path, capsys):
    assert learn.main([*arguments, "--out", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    for word in words:
        assert word in error
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('model = ["mlp:4", "nosuch"]', ["model", "nosuch"]),
        ("budget = [1.0, 0.01]", ["budget"]),
        ("train_size = [50, 9000]", ["train_size=9000"]),
        ("train_size = [100, 800]\nimbalance = [1.0, 10.0]", ["train_size=800"]),  # each of these can be, with others
        ('train_size = [50, "a"]', ["train_size"]),
        ("lr_factor = [1.0, -1.0]", ["lr"]),
        ('root = ["/nowhere"]\ndataset = ["imagefolder"]', ["/nowhere"]),
    ],
)
def test_values_of_tasks_that_are_wrong_are_told_before_anything_runs(line, words, tmp_path, capsys):
    own = tmp_path / "own.toml"
    own.write_text(f"validations = 1\nheld_outs = 0\n[values]\ntask_seed = [0, 1, 2]\n{line}\n")
    assert learn.main(["--tasks", str(own), "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: --tasks {own}: Task(")
    assert error.count("\n") == 1
    for word in words:
        assert word in error.partition("): ")[2]
    assert not (tmp_path / "out").exists()


def test_tasks_without_validation_are_refused(tmp_path, capsys):
    own = tmp_path / "own.toml"
    own.write_text("validations = 0\nheld_outs = 0\n[values]\ntask_seed = [0, 1]\n")
    assert learn.main(["--tasks", str(own), "--out", str(tmp_path / "out")]) == 2
    assert explain.main(["--tasks", str(own), "--out", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err.count("has no validation tasks") == 2
    assert not (tmp_path / "out").exists()


def test_where_full_training_takes_long_the_pool_has_fewer_pairs(tiny, tmp_path, monkeypatch, capsys):
    """The time is over at once: two pairs are played, and there is no training."""
    monkeypatch.setattr(learn, "PAIRS", 2)
    assert run(tmp_path, "ppo") == 0
    folder = tmp_path / "tiny-ppo-0"
    assert len(start_of(folder)["baseline"]) == 2
    assert Network.load(folder / "policy.safetensors").card["training"]["pool"] == 2
    assert "no time was left to train" in capsys.readouterr().out
    assert run(tmp_path, "ppo", "--steps", "32", "--name", "by steps") == 0
    assert len(start_of(tmp_path / "by steps")["baseline"]) == 4
    assert "no time was left" not in capsys.readouterr().out


def test_an_unknown_algorithm_is_refused(capsys):
    with pytest.raises(SystemExit) as ended:
        learn.main(["--algo", "dqn"])
    assert ended.value.code == 2
    assert "recurrent_ppo" in capsys.readouterr().err


def test_a_folder_of_another_run_is_left_alone(tiny, tmp_path, capsys):
    assert run(tmp_path, "ppo", "--name", "mine") == 0
    before = {path: path.read_bytes() for path in (tmp_path / "mine").rglob("*") if path.is_file()}
    capsys.readouterr()
    others = ["--seed", "1"], ["--pool", "5"], ["--algo", "a2c"], ["--members", "5"], ["--evaluate-every", "2"]
    for more in others:
        assert run(tmp_path, "ppo", "--name", "mine", *more) == 2
        error = capsys.readouterr().err
        said = "--tasks tiny --algo ppo --seed 0 --pool 4 --members 4 --processes 1 --evaluate-every 1;"
        assert f"mine holds a run with {said}" in error
        assert error.count("\n") == 1
    assert {path: path.read_bytes() for path in (tmp_path / "mine").rglob("*") if path.is_file()} == before


def with_other_rates(copy: Path) -> Path:
    shutil.copytree(Path(prune_env.__file__).parent, copy)
    recipes = copy / "recipes.json"
    recipes.write_text(recipes.read_text().replace("0.4", "0.3"))
    return copy / "__init__.py"


def test_a_folder_of_other_tasks_or_code_is_left_alone(tiny, tmp_path, capsys, monkeypatch):
    assert run(tmp_path, "ppo", "--steps", "32") == 0
    before = {path: path.read_bytes() for path in (tmp_path / "tiny-ppo-0").rglob("*") if path.is_file()}
    capsys.readouterr()
    for change in (
        lambda patch: patch.setitem(distributions.DISTRIBUTIONS, "tiny", {**TINY_TASKS, "seed": 1}),
        lambda patch: patch.setattr(learn.provenance, "decisive_digest", lambda: "another"),
        lambda patch: patch.setattr(prune_env, "__file__", str(with_other_rates(tmp_path / "package"))),
    ):
        with monkeypatch.context() as patch:
            change(patch)
            patch.setattr(learn, "_try", lambda *_: None)  # other tasks than `tiny` lets be built
            assert run(tmp_path, "ppo", "--steps", "64") == 2
        said = "holds a run from when the tasks 'tiny', or the code that trains students, were others"
        assert said in (error := capsys.readouterr().err)
        assert error.count("\n") == 1
    assert {path: path.read_bytes() for path in (tmp_path / "tiny-ppo-0").rglob("*") if path.is_file()} == before


def test_tasks_of_a_file(tiny, tmp_path):
    """A TOML file with the same arguments stands for the same tasks, in a folder of its name."""
    path = tmp_path / "own.toml"
    lines = [f"{name} = {json.dumps(value)}" for name, value in TINY_TASKS.items() if name != "values"]
    lines += ["[values]", *(f"{name} = {json.dumps(list(values))}" for name, values in TINY_TASKS["values"].items())]
    path.write_text("\n".join(lines))
    own, named = (learn.Arguments(tasks=tasks, out=tmp_path) for tasks in (str(path), "tiny"))
    for part in ("training", "validation", "held_out"):
        assert getattr(learn.check(own), part) == getattr(learn.check(named), part)
    assert learn.folder_of(own) == tmp_path / "own-ppo-0"


def test_what_hardly_varies_is_not_read(tiny, tmp_path):
    """`log_classes` is 0 in all of these tasks; whatever it is elsewhere, the policy answers the same."""
    assert run(tmp_path, "ppo", "--steps", "32") == 0
    network = Network.load(tmp_path / "tiny-ppo-0" / "policy.safetensors")
    seen = summaries(200)
    scale = np.array(start_of(tmp_path / "tiny-ppo-0")["scale"])
    assert np.isinf(scale[SUMMARY.index("log_classes")])
    assert np.isfinite(scale[SUMMARY.index("val_accuracy")])
    for name, differs in (("log_classes", False), ("val_accuracy", True)):
        other = seen.copy()
        other[:, SUMMARY.index(name)] = -1.0
        assert (network(other) != network(seen)).any() == differs


SCRIPT = """
import runpy, sys
from prune_env import tasks
from train import search
search.CANDIDATES, search.ELITES, search.PAIRS = 6, 2, 2
tasks.DISTRIBUTIONS["tiny"] = {TINY_TASKS}
if __name__ == "__main__":
    sys.argv[0] = "learn"
    runpy.run_module("train.learn", run_name="__main__", alter_sys=True)
"""


@pytest.mark.slow
def test_the_command_with_processes_of_its_own(tmp_path, monkeypatch):
    """As a user runs it; its policy and its zip then play as `train.evaluate` lets agents play."""
    script = tmp_path / "learn_tiny.py"
    script.write_text(SCRIPT.replace("{TINY_TASKS}", repr(TINY_TASKS)))
    arguments = ["--tasks", "tiny", "--members", "3", "--processes", "1", "--pool", "4"]
    command = [sys.executable, str(script), *arguments, "--steps", "100", "--out", str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert f"best fixed rule after {12 * learn.GENERATIONS} episodes" in done.stdout
    folder = tmp_path / "tiny-ppo-0"
    assert [line["steps"] for line in evaluations(folder)] == [102]
    settings = {"train_size": 60, "budget": 1.0, "model": "mlp:4"}
    specs = [f"learned:{folder / 'policy.safetensors'}", f"learned:{folder / 'model.zip'},trust=True"]
    runs = [Run("prune_env/Digits-v0", settings, spec, 0) for spec in specs]
    ours, theirs = (episode.play(run, run.make_env()) for run in runs)
    assert ours["key"] != theirs["key"]
    assert ours["curve"]["spent"][-1] == pytest.approx(1.0, abs=0.3)
    np.testing.assert_allclose(ours["curve"]["kept"], theirs["curve"]["kept"], atol=0.02)


# Algorithms


class Hidden(VectorEnv):
    """Episodes of two steps whose best rule has the first summary as its third number, and 0.3 elsewhere."""

    metadata = {"autoreset_mode": AutoresetMode.NEXT_STEP}  # noqa: RUF012
    single_observation_space = spaces.Box(-1, 1, (D,), np.float32)
    single_action_space = spaces.Box(-1, 1, (R,), np.float32)

    def __init__(self, num_envs: int):
        self.num_envs = num_envs
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.rng = np.random.default_rng(0)
        self.seen, self.lost, self.age = np.zeros((num_envs, D), np.float32), np.zeros(num_envs), np.zeros(num_envs)

    def look(self, mask):
        self.seen[mask] = self.rng.uniform(-1, 1, (mask.sum(), D))

    def reset(self, *, seed=None, options=None):
        mask = (options or {}).get("reset_mask", np.ones(self.num_envs, bool))
        self.look(mask)
        self.lost[mask] = self.age[mask] = 0
        return self.seen.copy(), {}

    def step(self, actions):
        self.lost += loss(self.seen, actions)
        self.age += 1
        self.look(np.ones(self.num_envs, bool))
        done = self.age == 2
        return self.seen.copy(), np.where(done, -self.lost, 0), done, np.zeros_like(done), {}


def loss(seen: NDArray, numbers: NDArray) -> NDArray:
    best = np.full((len(seen), R), 0.3)
    best[:, 2] = seen[:, 0]
    return 5 * ((numbers - best) ** 2).sum(axis=1)


def begin(**change) -> learn.Start:
    """Scales and a rule that a search might have found."""
    rng = np.random.default_rng(3)
    given: dict[str, Any] = {
        "of": {},
        "conditions": "",
        "rule": [0.3, 0.3, 0.0, *[0.3] * (R - 3)],
        "searched": 0,
        "shift": rng.uniform(-0.5, 0.5, D).tolist(),
        "scale": rng.uniform(0.05, 1.0, D).tolist(),
        "baseline": [],
        "full": [],
        "fixed": [],
    }
    return learn.Start(**given | change)


def small(monkeypatch) -> None:
    for algo, (module, name, policy, settings) in learn.ALGORITHMS.items():
        monkeypatch.setitem(learn.ALGORITHMS, algo, (module, name, policy, {**settings, **TRAINED[algo]}))


@pytest.mark.parametrize("algo", TRAINED)
def test_a_policy_starts_as_the_best_fixed_rule(algo):
    rule = [-1.0, -0.5, 0.0, 0.2, 0.5, 0.8, 1.0, 0.93]
    model = learn.build(algo, SB3VecEnv(Hidden(16)), begin(rule=rule), 0)
    numbers, _ = model.predict(summaries(200), deterministic=True)
    expected = np.clip(rule, -learn.LARGEST_START, learn.LARGEST_START)
    assert np.abs(numbers - expected).max() < 0.1
    np.testing.assert_allclose(numbers.mean(axis=0), expected, atol=0.05)
    if algo == "ars":  # what it perturbs
        weights = torch.nn.utils.parameters_to_vector(model.policy.parameters())
        assert torch.equal(getattr(model, "weights"), weights)  # noqa: B009
    other, _ = learn.build(algo, SB3VecEnv(Hidden(16)), begin(rule=rule), 1).predict(summaries(200), deterministic=True)
    assert not np.array_equal(numbers, other)


@pytest.mark.parametrize("algo", TRAINED)
def test_the_network_is_the_policy(algo, monkeypatch):
    small(monkeypatch)
    model = learn.build(algo, SB3VecEnv(Hidden(4)), begin(), 0)
    before, _ = model.predict(summaries(50), deterministic=True)
    model.learn(200)
    network = learn.network_of(model, {"steps": 200})
    if algo not in MEMORYLESS:
        assert network is None
        return
    assert network is not None
    numbers, _ = model.predict(summaries(50), deterministic=True)
    np.testing.assert_allclose(network(summaries(50)), numbers, atol=2e-5)
    assert np.abs(numbers - before).max() > 1e-3  # it has learned something
    assert network.card == {"steps": 200}
    assert all(layer.dtype == np.float32 for pair in network.layers for layer in pair)
    held = network(summaries(50))
    model.learn(100)
    np.testing.assert_array_equal(network(summaries(50)), held)  # a copy


def test_numbers_at_their_bounds_are_exported_too():
    model = learn.build("ppo", SB3VecEnv(Hidden(16)), begin(), 0)
    with torch.no_grad():
        model.policy.action_net.weight.mul_(3e4)  # pyright: ignore[reportAttributeAccessIssue, reportCallIssue]
    network, (numbers, _) = learn.network_of(model, {}), model.predict(summaries(50), deterministic=True)
    assert network is not None
    assert (np.abs(numbers) == 1).mean() > 0.1
    np.testing.assert_allclose(network(summaries(50)), numbers, atol=1e-3)


@pytest.mark.parametrize("algo", TRAINED)
def test_a_checkpoint_holds_all_that_training_changes(algo, monkeypatch):
    small(monkeypatch)
    model: Any = learn.build(algo, SB3VecEnv(Hidden(4)), begin(), 0)
    model.learn(200)
    kept = copy.deepcopy(learn.model_state(model))
    other: Any = learn.build(algo, SB3VecEnv(Hidden(4)), begin(), 5)
    learn.load_model_state(other, kept, 200)
    torch.testing.assert_close(other.get_parameters(), model.get_parameters(), rtol=0, atol=0)
    assert other.num_timesteps == 200
    if algo == "sac":
        assert other.log_ent_coef.item() == model.log_ent_coef.item() != 0
        assert other.replay_buffer.size() == model.replay_buffer.size() > 0
        for name in learn.BUFFER:
            seen, kept_rows = (getattr(one.replay_buffer, name)[: model.replay_buffer.size()] for one in (model, other))
            np.testing.assert_array_equal(seen, kept_rows)
    if algo == "ars":
        assert torch.equal(other.weights, model.weights)
    other.learn(100, reset_num_timesteps=False)


def test_memory_is_carried_through_and_forgotten_at_the_start():
    model: Any = learn.build("recurrent_ppo", SB3VecEnv(Hidden(3)), begin(), 0)
    with torch.no_grad():
        model.policy.action_net.weight.mul_(100)
    seen, begun = [summaries(3, seed) for seed in range(4)], np.zeros((4, 3), bool)
    begun[0], begun[2, 1] = True, True
    memory, together = learn.Memory(model), []
    for row, new in zip(seen, begun, strict=True):
        together.append(memory(row, new))
    for k in range(3):
        state = None
        for t in range(4):
            if k == 1 and t == 2:
                state = None
            numbers, state = model.predict(seen[t][k], state=state, deterministic=True)
            np.testing.assert_allclose(together[t][k], numbers, atol=1e-5)
    alone, _ = model.predict(seen[3], deterministic=True)
    assert np.abs(alone - together[3]).max() > 1e-3


def test_ppo_learns_what_the_best_rule_depends_on():
    """The best fixed rule loses 5/3 a step, a policy that looks nearly nothing."""
    model = learn.build("ppo", SB3VecEnv(Hidden(32)), begin(shift=[0.0] * D, scale=[0.58] * D), 0)
    seen = summaries(2000)
    before = loss(seen, model.predict(seen, deterministic=True)[0]).mean()
    assert before == pytest.approx(5 / 3, rel=0.1)
    model.learn(30_000)
    assert loss(seen, model.predict(seen, deterministic=True)[0]).mean() < 0.5 * before
