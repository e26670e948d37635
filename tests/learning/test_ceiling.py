"""The ceiling: its searches on digits, the oracle against a loop, and a table that is counted by hand."""

import json

import numpy as np
import pytest
from PIL import Image

from prune_env import PruneEnv, select
from prune_env.policy.rules import FULL, RULE_PARAMETERS
from prune_env.policy.tasks import Task
from tests.learning.here import Here
from train import ceiling
from train.learning import search
from train.learning.rollouts import play

TASK = Task(train_size=60, val_size=40, label_noise=0.4, model="mlp:8", budget=2.0)


def test_the_oracle_trains_on_right_labels_alone():
    env = PruneEnv(**TASK.settings())
    _, info = env.reset(seed=3)
    wrong = env.train_data.wrong.numpy()
    assert wrong.sum() == 24
    over = False
    while not over:
        observation, _, over, _, info = env.step(select((~wrong).astype(float)))
        assert not observation["visits"][wrong].any()
    assert ceiling.oracle(TASK, 3) == info["val_accuracy"]


@pytest.mark.parametrize("free", [("keep", "balance"), ("loss", "right", "mixup")])
def test_parameters_that_are_not_searched_stay_as_full_training_has_them(free):
    class Likes:
        def play(self, pairs, rules):
            return -np.abs(rules - 0.3).sum(axis=1)

    steps = iter([True] * 20 + [False])
    rule, _ = search.fixed_rule(Likes(), ceiling_tasks(), np.random.default_rng(0), lambda _: next(steps), free)  # pyright: ignore[reportArgumentType]
    for name, value, full in zip(RULE_PARAMETERS, rule, FULL, strict=True):
        assert value == full if name not in free else abs(value - 0.3) < 0.15


def ceiling_tasks():
    return ceiling.tasks_of(ceiling.Arguments(image_size=4, model="mlp:4", train_size=60, val_size=40), "duplicates")


def test_folders_of_one_name_are_told_apart_and_what_cannot_be_searched_is_refused(tmp_path, capsys):
    keys = []
    for of in ("a", "b"):
        for split, shade in (("train", 0), ("test", 0), ("train", 100 * (of == "b"))):
            for name in ("cat", "dog"):
                folder = tmp_path / of / "photos" / split / name
                folder.mkdir(parents=True, exist_ok=True)
                for i in range(20):
                    Image.new("RGB", (4, 4), (shade + i, i, 0)).save(folder / f"{i}.png")
        given = ceiling.Arguments(root=str(tmp_path / of / "photos"), image_size=4, train_size=20, val_size=4)
        keys.append(ceiling.key_of(given, "clean", "tilts of ranks"))
    assert len(set(keys)) == 2
    assert str(tmp_path) not in keys[0]
    assert ceiling.main(["--processes", "0"]) == 2
    (tmp_path / "file").touch()
    assert ceiling.main(["--out", str(tmp_path / "file")]) == 2
    first, second = capsys.readouterr().err.splitlines()
    assert first == "error: --generations, --runs and --processes must be at least 1"
    assert second.startswith("error: ")
    assert "file" in second


def test_runs_that_judge_are_no_runs_of_the_search():
    tasks = ceiling_tasks()
    pairs = ceiling.judged(tasks, 5)
    assert len({(task, seed) for task, seed in pairs}) == 5
    assert not {task for task, _ in pairs} & set(tasks.training)
    assert {task.duplicates for task, _ in pairs} == {0.3}


def test_the_program_goes_on_and_its_table_says_what_the_runs_say(tmp_path, monkeypatch):
    monkeypatch.setattr(ceiling, "Workers", Here)
    monkeypatch.setattr(Here, "played", [], raising=False)
    monkeypatch.setattr(search, "CANDIDATES", 3)
    monkeypatch.setattr(search, "ELITES", 2)
    monkeypatch.setattr(search, "PAIRS", 1)
    monkeypatch.setattr(ceiling, "TROUBLES", {"20 % wrong labels": {"label_noise": 0.2}})
    small = (
        "--model mlp:4 --image-size 4 --train-size 60 --val-size 40 --budget 2 --generations 1 --runs 3 --processes 1"
    )
    assert ceiling.main([*small.split(), "--out", str(tmp_path)]) == 0
    path = tmp_path / "ceiling.jsonl"
    lines = path.read_text().splitlines()
    found = [json.loads(line) for line in lines]
    assert [one["space"] for one in found] == list(ceiling.SPACES)
    task = Task(image_size=4, model="mlp:4", train_size=60, val_size=40, budget=2.0, label_noise=0.2)
    pairs = ceiling.judged(ceiling.TaskDistribution({n: (v,) for n, v in vars(task).items()}, 0, 0), 3)
    full = play(pairs, FULL, ceiling.TaskDistribution({n: (v,) for n, v in vars(task).items()}, 0, 0))
    clean = np.array([ceiling.oracle(*pair) for pair in pairs])
    for one in found:
        assert one["full"] == pytest.approx(100 * full, abs=0.01)
        assert one["oracle_over_full"] == pytest.approx(100 * (clean - full), abs=0.01)
        assert all(one["rule"][n] == 0 for n in ("balance", "wrong")) == (one["space"] == "tilts of ranks")
    path.write_text(lines[0] + "\n" + lines[1][:50])  # as after a kill
    assert ceiling.main([*small.split(), "--out", str(tmp_path)]) == 0
    again = [json.loads(line) for line in path.read_text().splitlines()]
    assert [{k: v for k, v in one.items() if k != "code"} for one in again] == [
        {k: v for k, v in one.items() if k != "code"} for one in found
    ]
    assert f"{np.mean(found[1]['over_full']):+.1f}" in (tmp_path / "ceiling.txt").read_text()
    monkeypatch.setattr(ceiling, "SPACES", {"tilts of ranks": RULE_PARAMETERS[:8]})
    assert ceiling.main([*small.split(), "--out", str(tmp_path), "--seed", "1"]) == 0  # is another search
    assert len(path.read_text().splitlines()) == 3
