"""Tasks: what they say is what is trained, and what is held out is never drawn."""

import itertools
import json
import math
import pickle
from collections import Counter
from dataclasses import asdict, replace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.envs.registration import EnvSpec
from scipy import stats

from prune_env import PruneEnv, data, select
from prune_env.policy import tasks as module
from prune_env.policy.rules import RULE_PARAMETERS
from prune_env.policy.tasks import TASK_FIELDS, Task, TaskDistribution, TaskEnv, TaskMixture, distribution
from prune_env.policy.vector import PruneVectorEnv
from prune_env.policy.wrappers import SummaryEnv, vector_summary
from tests.helpers import trees

DIGITS = TaskDistribution.named("digits")
VALUES = {"train_size": (20, 30), "label_noise": (0.0, 0.2), "model": ("mlp:4", "mlp:5"), "budget": (1.0, 2.0)}
SMALL = TaskDistribution(VALUES, validations=2, held_outs=1)


def apart_from_budget(tasks) -> set[Task]:
    return {replace(task, budget=0.0) for task in tasks}


# ---------------------------------------------------------------- the cut


def test_parts_are_the_grid_cut_in_three():
    parts = SMALL.held_out, SMALL.validation, SMALL.training
    assert list(map(len, parts)) == [1 * 2, 2 * 2, 5 * 2]
    assert set(itertools.chain(*parts)) == {
        Task(**dict(zip(VALUES, chosen, strict=True))) for chosen in itertools.product(*VALUES.values())
    }
    for one, other in itertools.combinations(parts, 2):  # a task is in one part at all budgets
        assert not apart_from_budget(one) & apart_from_budget(other)


def test_the_cut_is_a_permutation_of_the_seed_in_which_shares_of_wrong_labels_take_turns():
    grid = [
        Task(train_size=n, label_noise=noise, model=model, budget=1.0)
        for n in (20, 30)
        for noise in (0.0, 0.2)
        for model in ("mlp:4", "mlp:5")
    ]
    for seed in (0, 1):
        drawn = np.random.default_rng(seed).permutation(8).tolist()
        first, other = ([i for i in drawn if grid[i].label_noise == noise] for noise in (0.0, 0.2))
        if drawn.index(other[0]) < drawn.index(first[0]):
            first, other = other, first
        order = [first[0], other[0]]
        for left in (1, 2, 3):  # within a turn the one that was drawn earlier comes first
            order += sorted((first[left], other[left]), key=drawn.index)
        tasks = TaskDistribution(VALUES, validations=2, held_outs=1, seed=seed)
        assert tasks.held_out[::2] == (grid[order[0]],)
        assert tasks.validation[::2] == tuple(grid[i] for i in order[1:3])
        assert tasks.training[::2] == tuple(grid[i] for i in order[3:])
        assert tasks.training[1::2] == tuple(replace(grid[i], budget=2.0) for i in order[3:])


def test_draws_are_training_tasks_each_equally_likely():
    rng = np.random.default_rng(0)
    drawn = Counter(SMALL.draw(rng) for _ in range(200 * len(SMALL.training)))
    assert set(drawn) == set(SMALL.training)
    assert stats.chisquare([drawn[task] for task in SMALL.training]).pvalue > 1e-3


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"values": {"depth": (1, 2)}}, "tasks have no 'depth'; there are budget, corrupted, dataset"),
        ({"values": {**VALUES, "model": ()}}, r"'model' are \(\)"),
        ({"values": {**VALUES, "model": "mlp"}}, "'model' are mlp; they must be a tuple"),
        ({"values": {**VALUES, "label_noise": (1, 1.0)}}, "'label_noise' are .*distinct"),
        ({"values": VALUES, "validations": 4, "held_outs": 4}, "8 tasks, budgets apart: too few for 4 .* and 4 to"),
        ({"values": VALUES, "validations": -1, "held_outs": 2}, "validations=-1"),
        ({"values": VALUES, "held_out_values": {"depth": (1,)}}, "have no 'depth'"),
        (
            {"values": VALUES, "validations": 2, "held_outs": 2, "held_out_values": {"task_seed": (0, 1)}},
            "held_out_values=.*: in one field beside the budget none may be among",  # all have the default 0
        ),
    ],
)
def test_what_cannot_be_cut_is_named(change, match):
    with pytest.raises(ValueError, match=match):
        TaskDistribution(**change)


def test_held_out_tasks_with_values_of_their_own():
    own = {"model": ("mlp:6",), "budget": (3.0, 5.0), "task_seed": (7, 8)}
    tasks = TaskDistribution(VALUES, validations=2, held_outs=5, held_out_values=own)
    assert (tasks.budgets, tasks.held_out_budgets) == (VALUES["budget"], (3.0, 5.0))
    grid = itertools.product((20, 30), (0.0, 0.2), (3.0, 5.0), (7, 8))
    assert set(tasks.held_out) <= {
        Task(train_size=n, label_noise=noise, model="mlp:6", budget=budget, task_seed=seed)
        for n, noise, budget, seed in grid
    }
    assert len(set(tasks.held_out)) == 10
    # nothing of the grid of the others is lost
    assert len({*tasks.validation, *tasks.training}) == math.prod(map(len, VALUES.values()))
    # what wrong labels there are takes turns
    assert [task.label_noise for task in tasks.held_out[::2]] in ([0.0, 0.2] * 2 + [0.0], [0.2, 0.0] * 2 + [0.2])


def test_other_budgets_alone_hold_nothing_out_that_is_trained_on():
    tasks = TaskDistribution(VALUES, validations=2, held_outs=3, held_out_values={"budget": (3.0, 5.0)})
    same = TaskDistribution(VALUES, validations=2, held_outs=3)
    assert (tasks.training, tasks.validation) == (same.training, same.validation)
    assert {task.budget for task in tasks.held_out} == {3.0, 5.0}
    assert apart_from_budget(tasks.held_out) == apart_from_budget(same.held_out)


def test_no_held_out_digits_task_has_a_draw_a_student_or_a_budget_of_training():
    others = (*DIGITS.validation, *DIGITS.training)
    for name in ("task_seed", "model", "budget"):
        assert not {getattr(task, name) for task in DIGITS.held_out} & {getattr(task, name) for task in others}


def test_a_pickle_has_the_arguments_alone():
    pickled = pickle.dumps(DIGITS)
    assert len(pickled) < 2000 < len(DIGITS.training)  # it travels with every part that a process plays
    assert pickle.loads(pickled).held_out == DIGITS.held_out


@pytest.mark.parametrize(
    ("values", "samples"),
    [
        ({"train_size": (20, 30)}, 30),
        ({"train_size": (20, None)}, 1040),
        ({"imbalance": (1.0, 4.0)}, 1040),
        ({"imbalance": (4.0, 8.0), "duplicates": (0.0, 0.5)}, 400),  # the smallest class has 100
        ({"imbalance": (4.0, 8.0), "train_size": (None, 100)}, 400),
    ],
)
def test_there_is_room_for_the_most_samples_of_any_task(values, samples):
    if samples == 400:
        samples = len(data.load("digits", imbalance=4.0)[0])
    assert TaskDistribution(values, validations=0, held_outs=0).room == (samples, 10, 10.0, 0)
    given = {**values, "reference": ("of_all.csv", None)}
    assert TaskDistribution(given, validations=0, held_outs=0).room == (samples, 10, 10.0, 1)


def test_there_is_room_for_every_data_set(tmp_path):
    trees.imagefolder(tmp_path, per_class=20, size=8)
    trees.imagefolder(tmp_path / "many", classes=tuple(f"class {c}" for c in range(12)), per_class=4, size=8)
    roots = (str(tmp_path), str(tmp_path / "many"))
    tasks = TaskDistribution({"dataset": ("imagefolder",), "root": roots}, validations=0, held_outs=0)
    lengths = [len(data.load("imagefolder", root=root)[0]) for root in roots]
    assert lengths[0] != lengths[1]
    assert tasks.room == (max(lengths), 12, 10.0, 0)


# ---------------------------------------------------------------- several distributions as one


ONE = TaskDistribution({"train_size": (20,), "budget": (1.0,)}, validations=0, held_outs=0)
BOTH = TaskMixture((ONE, SMALL))


def test_a_mixture_draws_each_part_equally_often():
    """However many tasks it has: one here, against ten."""
    rng = np.random.default_rng(0)
    drawn = Counter(BOTH.draw(rng) for _ in range(4000))
    expected = {ONE.training[0]: 2000, **dict.fromkeys(SMALL.training, 200)}
    assert set(drawn) == set(expected)
    assert stats.chisquare([drawn[task] for task in expected], list(expected.values())).pvalue > 1e-3


def test_a_mixture_has_the_tasks_and_the_room_of_its_parts():
    assert BOTH.training == ONE.training + SMALL.training
    assert (BOTH.validation, BOTH.held_out) == (SMALL.validation, SMALL.held_out)
    assert BOTH.budgets == BOTH.held_out_budgets == (1.0, 2.0)
    assert (BOTH.room, BOTH.datasets) == ((30, 10, 2.0, 0), {"digits"})


def test_a_mixture_survives_json_and_pickle():
    plain = json.loads(json.dumps(asdict(BOTH)))
    for again in (distribution(plain), pickle.loads(pickle.dumps(BOTH))):
        assert isinstance(again, TaskMixture)
        assert (again.training, again.validation, again.held_out) == (BOTH.training, BOTH.validation, BOTH.held_out)
    env: Any = gym.make("prune_env/DigitsSummary-v0", tasks=BOTH)
    again: Any = gym.make(EnvSpec.from_json(env.spec.to_json()))
    assert again.unwrapped.tasks.training == BOTH.training


def test_names_are_joined_and_roots_are_for_tasks_of_folders():
    mixed = distribution("mixed", ("here", "there"))
    digits, natural = mixed.parts
    assert digits == DIGITS
    for part in (natural.training, natural.validation, natural.held_out):
        assert {task.root for task in part} == {"here", "there"}
    assert {task.root for task in digits.training} == {None}
    assert distribution("digits+natural", ("here", "there")) == mixed
    assert distribution("natural").training[0].root is None  # the folder of the environment
    with pytest.raises(ValueError, match="the root here is for tasks of image folders, and there are none"):
        distribution("digits", ("here",))
    with pytest.raises(ValueError, match="no tasks called 'oil'; there are digits, natural, convnets, mixed"):
        distribution("digits+oil")


@pytest.mark.parametrize(
    ("name", "fields"), [("natural", ("task_seed", "model", "budget")), ("convnets", ("task_seed",))]
)
def test_held_out_tasks_of_folders_are_of_draws_that_no_other_task_has(name, fields):
    tasks = TaskDistribution.named(name)
    others = (*tasks.validation, *tasks.training)
    for field in fields:
        assert not {getattr(task, field) for task in tasks.held_out} & {getattr(task, field) for task in others}


def test_members_of_a_mixture_see_what_they_see_alone(tmp_path):
    """A folder of three classes beside the ten of the digits."""
    trees.imagefolder(tmp_path, classes=("a", "b", "c"), per_class=20, size=8)
    folder = {"dataset": ("imagefolder",), "root": (str(tmp_path),), "model": ("mlp:4",), "budget": (1.5,)}
    digits = {"train_size": (70,), "model": ("mlp:4",), "budget": (1.5,)}
    mixture = TaskMixture(tuple(TaskDistribution(values, 0, 0) for values in (digits, folder)))
    env, seeds = vector_summary(6, tasks=mixture), list(range(6))
    seen, _ = env.reset(seed=seeds)  # pyright: ignore[reportArgumentType]  (a list of seeds is allowed)
    rules = np.random.default_rng(0).uniform(-1, 1, (6, len(RULE_PARAMETERS)))
    second = env.step(rules)[0]
    kinds = set()
    for k in seeds:
        alone: Any = SummaryEnv(mixture)
        np.testing.assert_allclose(seen[k], alone.reset(seed=k)[0], atol=1e-6)
        np.testing.assert_allclose(second[k], alone.step(rules[k])[0], atol=1e-4)
        kinds.add(len(alone.train_data.classes))
    assert kinds == {3, 10}


# ---------------------------------------------------------------- what a task says


def test_full_training_of_digits_tasks_has_rates_of_its_own_for_each_size_student_budget_and_trouble(repository):
    table = json.loads((repository / "prune_env" / "students" / "recipes.json").read_text())
    for task in (*DIGITS.held_out, *DIGITS.validation, *DIGITS.training[:500]):
        entry = table[f"digits:{task.image_size}"][task.model]
        entry = entry if task.imbalance == 1.0 else entry["unlike"][f"{task.imbalance:g}"]
        rates = entry["noisy"][f"{task.label_noise:g}"]["lr"] if task.label_noise else entry["lr"]
        assert task.settings()["lr"] == pytest.approx(task.lr_factor * rates[f"{task.budget:g}"])


def test_settings_give_what_they_say():
    rng = np.random.default_rng(0)
    official, _ = data.load("digits")
    for i in rng.choice(len(DIGITS.training), 6, replace=False):
        task = DIGITS.training[i]
        settings = task.settings()
        assert set(settings) == {*TASK_FIELDS} - {"lr_factor", "root"} | {"lr"}
        env = PruneEnv(**settings)
        train, n = env.train_data, len(env.train_data)
        assert n == task.train_size
        assert int(train.wrong.sum()) == round(task.label_noise * n)
        assert len(train.source.unique()) == n - round(task.duplicates * n)
        at = np.searchsorted(official.source.numpy(), train.source.numpy())
        counts = np.bincount(official.labels.numpy()[at])
        if not task.duplicates:  # which change the shares a little
            assert counts.max() / counts.min() == pytest.approx(task.imbalance, rel=0.25)
        assert (env.budget, env.recipe.model, env.recipe.lr) == (task.budget, task.model, settings["lr"])
        assert train.images.shape[1:] == (1, task.image_size, task.image_size)
        assert len(env.val_data) == 1300 - n


@pytest.mark.slow  # twelve seconds: an environment for each of the draws of the data
def test_every_task_can_be_built():
    everything = (*DIGITS.held_out, *DIGITS.validation, *DIGITS.training)
    of_data: dict[Task, Task] = {}  # of each draw of the data, the task with the smallest budget
    for task in sorted(everything, key=lambda task: -task.budget):
        of_data[replace(task, model="", lr_factor=0.0, budget=0.0)] = task
    built = [PruneEnv(**task.settings()) for task in of_data.values()]
    assert max(len(env.train_data) for env in built) == DIGITS.room[0]
    for model in DIGITS.values["model"]:
        PruneEnv(**replace(everything[0], model=model).settings())


# ---------------------------------------------------------------- episodes


def of_episode(env: Any) -> tuple:
    """What tells the task of this episode."""
    return len(env.train_data), int(env.train_data.wrong.sum()), env.recipe.model, env.recipe.lr, env.budget


def told(task: Task) -> tuple:
    settings = task.settings()
    wrong = round(settings["label_noise"] * settings["train_size"])
    return settings["train_size"], wrong, settings["model"], settings["lr"], settings["budget"]


def test_episodes_without_tasks_are_those_of_one_environment():
    settings = {"train_size": 20, "budget": 1.0, "model": "mlp:4"}
    env, plain = TaskEnv(**settings), PruneEnv(**settings)
    for seed in (4, None, None, 2, None):
        observation, info = env.reset(seed=seed)
        expected, expected_info = plain.reset(seed=seed)
        assert info == expected_info
        for name in expected:
            np.testing.assert_array_equal(observation[name], expected[name])


def test_episodes_draw_training_tasks_from_the_stream_of_the_seed():
    env, rng = TaskEnv(SMALL, momentum=0.5), np.random.default_rng([5, 6])
    for episode in range(8):
        observation, _ = env.reset(seed=None if episode else 5)
        task = SMALL.draw(rng)
        assert of_episode(env) == told(task)
        assert env.recipe.momentum == 0.5
        assert len(env.action_space.sample()["weight"]) == len(observation["label"]) == task.train_size
        assert env.observation_space.contains(observation)
        assert env.observation_space.contains(env.step(env.action_space.sample())[0])


def test_seeds_of_runs_do_not_depend_on_the_tasks_between():
    settings = {"train_size": 20, "budget": 1.0, "model": "mlp:4"}
    plain, drawing, pinned = TaskEnv(**settings), TaskEnv(SMALL), TaskEnv(**settings)
    for step, seed in enumerate((4, None, None, None)):
        options = {"task": {"train_size": 20 + step}} if step % 2 else None
        seeds = {env.reset(seed=seed)[1]["seed"] for env in (plain, drawing)}
        assert seeds == {pinned.reset(seed=seed, options=options)[1]["seed"]}


def test_a_pinned_task_is_that_of_one_episode_and_draws_go_on():
    env, calm = TaskEnv(SMALL), TaskEnv(SMALL)
    wanted = Task(train_size=25, model="mlp:3", budget=3.0, label_noise=0.2, lr_factor=0.5)
    calm.reset(seed=2)
    for given in (wanted, asdict(wanted), json.loads(json.dumps(asdict(wanted)))):
        env.reset(seed=2, options={"task": given})
        assert of_episode(env) == told(wanted)
    env.reset(options={"task": {"train_size": 22, "model": "mlp:2"}})
    assert of_episode(env)[:3] == (22, 0, "mlp:2")
    env.reset()
    assert of_episode(env) == of_episode(calm)  # the seed's first draw


def test_an_episode_builds_no_environment_but_its_own(monkeypatch):
    """Also where the vector environment has looked at it before."""
    built: list[dict] = []
    monkeypatch.setattr(module, "PruneEnv", lambda **given: built.append(given) or PruneEnv(**given))
    env: Any = PruneVectorEnv(2, tasks=SMALL)
    built.clear()
    for _ in range(2):  # the second time they are the ones that there are
        env.reset(seed=0, options={"task": list(SMALL.training[:2])})
    assert len(built) == 1  # each member first had the first task


def test_nothing_observed_tells_the_share_of_wrong_labels_or_the_rate():
    clean = Task(train_size=60, label_noise=0.0, budget=4.0)
    wrong = replace(clean, label_noise=0.35)
    assert clean.settings()["lr"] != wrong.settings()["lr"]
    env = TaskEnv(SMALL)
    (observation, info), (other, other_info) = (env.reset(seed=3, options={"task": task}) for task in (clean, wrong))
    assert info == other_info
    for name, values in observation.items():
        if name != "label":
            np.testing.assert_array_equal(values, other[name])


def test_a_pinned_task_is_of_the_images_that_the_environment_has(tmp_path):
    trees.imagefolder(tmp_path, per_class=20, size=8)
    env = TaskEnv(dataset="imagefolder", root=str(tmp_path), image_size=8, model="mlp:4", budget=3.0)
    task = Task(dataset="imagefolder", image_size=8, train_size=24, label_noise=0.2, model="mlp:4", budget=2.0)
    expected = PruneEnv(**{**task.settings(), "root": str(tmp_path)})
    env.reset(seed=0, options={"task": task})
    assert torch.equal(env.train_data.images, expected.train_data.images)
    assert torch.equal(env.train_data.labels, expected.train_data.labels)
    with pytest.raises(ValueError, match="task has dataset='digits'; episodes here are of imagefolder"):
        env.reset(seed=0, options={"task": Task(train_size=24)})


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"tasks": 1, "a": 2}, ValueError, r"\['a', 'tasks'\] are not known; there is task"),
        ({"task": "digits"}, TypeError, "task is 'digits'"),
        ({"task": {"label_noise": 7}}, ValueError, "label_noise=7"),
    ],
)
def test_a_wrong_reset_is_named_and_the_run_goes_on(options, error, match):
    env, calm = TaskEnv(SMALL), TaskEnv(SMALL)
    for each in (env, calm):
        each.reset(seed=1)
    with pytest.raises(error, match=match):
        env.reset(options=options)
    action = select(np.ones(len(env.train_data)))
    np.testing.assert_array_equal(env.step(action)[0]["loss"], calm.step(action)[0]["loss"])
    for _ in range(3):
        assert env.reset()[1] == calm.reset()[1]
        assert of_episode(env) == of_episode(calm)


def test_tasks_go_through_the_json_of_a_spec():
    env = gym.make("prune_env/DigitsSummary-v0", tasks=SMALL, price=0.2)
    assert env.spec is not None
    again = gym.make(EnvSpec.from_json(env.spec.to_json()))
    for seed in (3, None, None):
        np.testing.assert_array_equal(again.reset(seed=seed)[0], env.reset(seed=seed)[0])
        assert of_episode(again.unwrapped) == of_episode(env.unwrapped)


def test_closing_lets_go_of_the_run():
    env = TaskEnv(SMALL)
    env.reset(seed=0)
    action = env.action_space.sample()
    env.close()
    env.close()
    assert env.trainer is None
    with pytest.raises(gym.error.ResetNeeded):
        env.step(action)
    with pytest.raises(gym.error.ResetNeeded):
        env.render()


@pytest.mark.parametrize("make", [TaskEnv, lambda tasks, **settings: PruneVectorEnv(2, tasks=tasks, **settings)])
@pytest.mark.parametrize(
    ("tasks", "settings", "error", "match"),
    [
        (5, {}, TypeError, "it must be a TaskDistribution, a TaskMixture, or the name of one"),
        ("cifar", {}, ValueError, "no tasks called 'cifar'; there are digits"),
        (SMALL, {"budget": 3.0, "price": 1.0, "lr": 0.1}, ValueError, "^budget, lr cannot be given beside tasks"),
        ({"values": {"depth": (1, 2)}}, {}, ValueError, "tasks have no 'depth'"),
        ({"values": {"label_noise": (0.0, "a")}}, {}, TypeError, "label_noise is 'a'; it must be a number"),
        ({"values": {"budget": (0.0,)}}, {}, ValueError, "budget=0.0 must be above 0"),
        ({"values": {"dataset": ("mnist",)}}, {}, ValueError, "unknown data set 'mnist': choose one of"),
        ({"parts": []}, {}, ValueError, "a mixture is a list of parts, at least one"),
        ({"parts": [{"values": {}}], "seed": 1}, {}, ValueError, "and has nothing beside"),
        (SMALL, {"momentum": 2.0}, ValueError, "momentum is 2.0"),
        (SMALL, {"dataset": "cifar10"}, ValueError, "the tasks are of digits, not of cifar10"),
    ],
)
def test_tasks_that_cannot_be_are_named(make, tasks, settings, error, match):
    with pytest.raises(error, match=match):
        make(tasks, **settings)
