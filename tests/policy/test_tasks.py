"""Tasks: what they say is what is trained, and what is held out is never drawn."""

import itertools
import json
import pickle
from collections import Counter
from dataclasses import asdict, fields, replace
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
from prune_env.policy.tasks import Episodes, Task, TaskDistribution, TaskEnv, distribution
from prune_env.policy.vector import PruneVectorEnv
from prune_env.policy.wrappers import SummaryEnv, vector_summary
from tests.helpers import trees

DIGITS = TaskDistribution.named("digits")
VALUES = {"train_size": (20, 30), "label_noise": (0.0, 0.2), "model": ("mlp:4", "mlp:5"), "budget": (1.0, 2.0)}
SMALL = TaskDistribution(VALUES, validations=2, held_outs=1)


def apart_from_budget(tasks) -> set[tuple]:
    return {tuple({**asdict(task), "budget": 0}.values()) for task in tasks}


# ---------------------------------------------------------------- the cut


def test_parts_are_the_grid_cut_in_three():
    tasks = SMALL
    parts = tasks.held_out, tasks.validation, tasks.training
    budgets = tasks.held_out_budgets, tasks.budgets, tasks.budgets
    assert len(parts[0]) == tasks.held_outs * len(budgets[0])
    assert len(parts[1]) == tasks.validations * len(budgets[1])
    everything = set(itertools.chain(*parts))
    assert len(everything) == sum(map(len, parts))
    own = len(tasks.held_out) if tasks.held_out_values else 0
    assert len(everything) - own == np.prod([len(values) for values in tasks.values.values()])
    for chosen in itertools.product(*tasks.values.values()):
        assert Task(**dict(zip(tasks.values, chosen, strict=True))) in everything
    # also apart from the budgets, all of which a task is in one part with
    for one, other in itertools.combinations(parts, 2):
        assert not apart_from_budget(one) & apart_from_budget(other)
    for part, of_part in zip(map(set, parts), budgets, strict=True):
        for task in part:
            assert {replace(task, budget=budget) for budget in of_part} <= part


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
    assert not apart_from_budget(drawn) & apart_from_budget((*SMALL.held_out, *SMALL.validation))
    counts = [drawn[task] for task in SMALL.training]
    assert stats.chisquare(counts).pvalue > 1e-3
    one, other = ([SMALL.draw(rng) for _ in range(50)] for rng in map(np.random.default_rng, (7, 7)))
    assert one == other


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"values": {"depth": (1, 2)}}, "tasks have no 'depth'; there are budget, dataset"),
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
    assert {task.task_seed for task in tasks.held_out} == {7, 8}
    grid = {
        replace(task, model="mlp:6", task_seed=seed, budget=budget)
        for task in (*tasks.validation, *tasks.training)
        for seed in (7, 8)
        for budget in (3.0, 5.0)
    }
    assert set(tasks.held_out) <= grid
    assert len(set(tasks.held_out)) == 10
    # nothing of the grid of the others is lost
    assert len({*tasks.validation, *tasks.training}) == np.prod([len(values) for values in VALUES.values()])
    # what wrong labels there are takes turns
    assert [task.label_noise for task in tasks.held_out[::2]] in ([0.0, 0.2] * 2 + [0.0], [0.2, 0.0] * 2 + [0.2])


def test_other_budgets_alone_hold_nothing_out_that_is_trained_on():
    own = {"budget": (3.0, 5.0)}
    tasks = TaskDistribution(VALUES, validations=2, held_outs=3, held_out_values=own)
    same = TaskDistribution(VALUES, validations=2, held_outs=3)
    assert (tasks.training, tasks.validation) == (same.training, same.validation)
    assert {task.budget for task in tasks.held_out} == set(own["budget"])
    assert apart_from_budget(tasks.held_out) == apart_from_budget(same.held_out)
    assert not apart_from_budget(tasks.held_out) & apart_from_budget((*tasks.training, *tasks.validation))


def test_no_held_out_digits_task_has_a_draw_a_student_or_a_budget_of_training():
    assert {task.image_size for task in DIGITS.held_out} == {8, 5, 3}
    for name in ("task_seed", "model", "budget"):
        held_out, others = (
            {getattr(task, name) for task in part} for part in (DIGITS.held_out, (*DIGITS.validation, *DIGITS.training))
        )
        assert held_out
        assert not held_out & others
    assert {task.lr_factor for task in DIGITS.held_out} == {1.0}


def test_a_pickle_has_the_arguments_alone():
    assert len(DIGITS.training) > 20_000
    pickled = pickle.dumps(DIGITS)
    assert len(pickled) < 2000  # it travels with every part that a process plays
    assert pickle.loads(pickled).held_out == DIGITS.held_out


# ---------------------------------------------------------------- what a task says


def test_full_training_of_digits_tasks_has_rates_of_its_own_for_each_size_student_budget_and_noise(repository):
    table = json.loads((repository / "prune_env" / "students" / "recipes.json").read_text())
    for task in (*DIGITS.held_out, *DIGITS.validation, *DIGITS.training[:500]):
        entry = table["digits" if task.image_size == 8 else f"digits:{task.image_size}"][task.model]
        rates = entry["noisy"][f"{task.label_noise:g}"]["lr"] if task.label_noise else entry["lr"]
        assert task.settings()["lr"] == pytest.approx(task.lr_factor * rates[f"{task.budget:g}"])


def test_settings_give_what_they_say():
    rng = np.random.default_rng(0)
    official, _ = data.load("digits")
    for i in rng.choice(len(DIGITS.training), 6, replace=False):
        task = DIGITS.training[i]
        settings = task.settings()
        assert set(settings) == {field.name for field in fields(Task)} - {"lr_factor", "root"} | {"lr"}
        env = PruneEnv(**settings)
        train, n = env.train_data, len(env.train_data)
        assert n == task.train_size or task.train_size is None
        assert int(train.wrong.sum()) == round(task.label_noise * n)
        assert len(train.source.unique()) == n - round(task.duplicates * n)
        at = np.searchsorted(official.source.numpy(), train.source.numpy())
        counts = np.bincount(official.labels.numpy()[at])
        if not task.duplicates:  # which change the shares a little
            assert counts.max() / counts.min() == pytest.approx(task.imbalance, rel=0.25)
        assert (env.budget, env.recipe.model) == (task.budget, task.model)
        assert env.train_data.images.shape[1:] == (1, task.image_size, task.image_size)
        assert env.recipe.lr == settings["lr"]
        assert len(env.val_data) == 1300 - n


@pytest.mark.slow  # twelve seconds: an environment for each of the draws of the data
def test_every_task_can_be_built():
    tasks = DIGITS
    everything = (*tasks.held_out, *tasks.validation, *tasks.training)
    of_data = {}
    for task in everything:
        of_data.setdefault(tuple({**asdict(task), "model": "", "lr_factor": 0, "budget": 0}.values()), []).append(task)
    rng = np.random.default_rng(0)
    largest = 0
    for alike in of_data.values():  # tasks of one data setting, of which the one of the smallest budget is built
        least = min(task.budget for task in alike)
        task = rng.choice([task for task in alike if task.budget == least])  # pyright: ignore[reportArgumentType]
        env = PruneEnv(**task.settings())
        assert task.train_size in (None, len(env.train_data))
        assert env.budget * len(env.train_data) >= env.recipe.batch_size
        largest = max(largest, len(env.train_data))
    assert largest == tasks.samples
    assert tasks.classes == 10
    for model in tasks.values["model"]:
        PruneEnv(**replace(everything[0], model=model).settings())


@pytest.mark.parametrize(
    ("values", "samples"),
    [
        ({"train_size": (20, 30)}, 30),
        ({"train_size": (20, None)}, 1040),
        ({"imbalance": (1.0, 4.0)}, 1040),
        ({"imbalance": (4.0, 8.0), "duplicates": (0.0, 0.5)}, None),
        ({"imbalance": (4.0, 8.0), "train_size": (None, 100)}, None),
    ],
)
def test_samples_are_the_most_of_any_task(values, samples):
    tasks = TaskDistribution(values, validations=0, held_outs=0)
    if samples is None:
        samples = len(data.load("digits", imbalance=4.0)[0])
        assert samples < 1040
    assert tasks.samples == samples


def test_samples_and_classes_of_several_data_sets(tmp_path):
    trees.imagefolder(tmp_path, per_class=20, size=8)
    trees.imagefolder(tmp_path / "many", classes=tuple(f"class {c}" for c in range(12)), per_class=4, size=8)
    roots = (str(tmp_path), str(tmp_path / "many"))
    tasks = TaskDistribution({"dataset": ("imagefolder",), "root": roots}, validations=0, held_outs=0)
    expected = [data.load("imagefolder", root=root)[0] for root in roots]
    assert len(expected[0]) != len(expected[1])
    assert (tasks.samples, tasks.classes) == (max(map(len, expected)), 12)


# ---------------------------------------------------------------- episodes


def test_episodes_without_tasks_are_those_of_one_environment():
    settings = {"train_size": 20, "budget": 1.0, "model": "mlp:4"}
    episodes, env = Episodes(settings), PruneEnv(**settings)
    for seed in (4, None, None, 2, None):
        observation, info = episodes.reset(seed)
        expected, expected_info = env.reset(seed=seed)
        assert info == expected_info
        for name in expected:
            np.testing.assert_array_equal(observation[name], expected[name])


def test_seeds_of_runs_do_not_depend_on_the_tasks_between():
    settings = {"train_size": 20, "budget": 1.0, "model": "mlp:4"}
    plain, drawing, pinned = Episodes(settings), Episodes({}, SMALL), Episodes(settings)
    for step, seed in enumerate((4, None, None, None)):
        pinned.pin({"train_size": 20 + step} if step % 2 else None)
        seeds = {episodes.reset(seed)[1]["seed"] for episodes in (plain, drawing, pinned)}
        assert len(seeds) == 1


def test_looking_at_an_environment_changes_nothing():
    episodes, calm = Episodes({"price": 0.1}, SMALL), Episodes({"price": 0.1}, SMALL)
    for each in (episodes, calm):
        each.reset(0)
    env = episodes.env
    looked_at = episodes.environment(Task(train_size=25, model="mlp:3"))
    assert (len(looked_at.train_data), looked_at.recipe.model, looked_at.price) == (25, "mlp:3", 0.1)
    assert episodes.env is env
    with pytest.raises(ValueError, match="label_noise=7"):
        episodes.environment({"label_noise": 7})
    with pytest.raises(TypeError, match="task is 'digits'"):
        episodes.environment("digits")  # pyright: ignore[reportArgumentType]
    for _ in range(3):
        assert episodes.reset()[1] == calm.reset()[1]
        assert episodes.env.recipe == calm.env.recipe


def test_an_episode_builds_no_environment_but_its_own(monkeypatch):
    """And looks at a task's settings once, even where it was looked at before it was pinned."""
    built, settings = [], Task.settings
    monkeypatch.setattr(module, "PruneEnv", lambda **given: built.append(given) or PruneEnv(**given))
    monkeypatch.setattr(Task, "settings", lambda task: seen.append(task) or settings(task))
    seen: list[Task] = []
    episodes = Episodes({}, SMALL)
    env: Any = PruneVectorEnv(2, tasks=SMALL)
    built.clear()
    seen.clear()
    tasks = list(SMALL.training[:2])
    for _ in range(2):  # the second time they are the ones that there are
        episodes.environment(tasks[1])
        episodes.pin(tasks[1])
        episodes.reset(0)
        env.reset(seed=0, options={"task": tasks})
    assert len(built) == len(seen) == 2  # each first had the first task


def test_nothing_observed_tells_the_share_of_wrong_labels_or_the_rate():
    clean = Task(train_size=60, label_noise=0.0, budget=4.0)
    wrong = replace(clean, label_noise=0.35)
    assert clean.settings()["lr"] != wrong.settings()["lr"]
    env, seen = TaskEnv(SMALL), []
    for task in (clean, wrong):
        seen.append(env.reset(seed=3, options={"task": task}))
    (observation, info), (other, other_info) = seen
    assert info == other_info
    for name, values in observation.items():
        if name != "label":
            np.testing.assert_array_equal(values, other[name])


# ---------------------------------------------------------------- the face of one run


def made(**settings) -> gym.Env:
    return gym.make("prune_env/DigitsSummary-v0", tasks=SMALL, **settings)


def of_episode(env: gym.Env) -> tuple:
    """What tells the task of this episode."""
    within: Any = env.unwrapped
    run = within.env
    return len(run.train_data), int(run.train_data.wrong.sum()), run.recipe.model, run.recipe.lr, run.budget


def told(task: Task) -> tuple:
    settings = task.settings()
    wrong = round(settings["label_noise"] * settings["train_size"])
    return settings["train_size"], wrong, settings["model"], settings["lr"], settings["budget"]


def test_one_run_draws_and_shows_what_the_first_of_many_does():
    members = 3
    env = made(price=0.1)
    many: Any = gym.make_vec("prune_env/DigitsSummary-v0", num_envs=members, tasks=SMALL, price=0.1)
    rng, drawn, within = np.random.default_rng(0), [], 1e-3  # sums of batches are rounded
    seen, info = env.reset(seed=5)
    rows, infos = many.reset(seed=5)
    for _ in range(6):
        drawn.append(of_episode(env))
        first = many.unwrapped.envs[0]
        assert first.recipe == env.unwrapped.env.recipe  # pyright: ignore[reportAttributeAccessIssue]
        assert info["seed"] == infos["seed"][0]
        over, rules = False, np.zeros((members, len(RULE_PARAMETERS)))
        while not over:
            np.testing.assert_allclose(rows[0], seen, atol=within)
            rules = rng.uniform(-1, 1, (members, len(RULE_PARAMETERS)))
            seen, reward, over, _, info = env.step(rules[0])
            rows, rewards, dones, _, infos = many.step(rules)
            assert (dones[0], rewards[0]) == (over, pytest.approx(reward, abs=within))
        np.testing.assert_allclose(rows[0], seen, atol=within)
        seen, info = env.reset()
        rows, *_, infos = many.step(rules)
    assert set(drawn) <= set(map(told, SMALL.training))
    assert len(set(drawn)) > 2
    expected = np.random.default_rng([5, 6])
    assert drawn == [told(SMALL.draw(expected)) for _ in drawn]


def test_a_pinned_task_is_that_of_one_episode_and_draws_go_on():
    env, calm = made(), made()
    wanted = Task(train_size=25, model="mlp:3", budget=3.0, label_noise=0.2)
    first, _ = calm.reset(seed=2)
    env.reset(seed=2, options={"task": wanted})
    assert of_episode(env) == told(wanted)
    env.reset(options={"task": {"train_size": 22, "model": "mlp:2"}})
    assert of_episode(env)[:3] == (22, 0, "mlp:2")
    env.reset()
    assert of_episode(env) == of_episode(calm)  # the seed's first draw
    assert env.reset(seed=2)[0] == pytest.approx(first, abs=0)
    alone = SummaryEnv(**wanted.settings())
    np.testing.assert_array_equal(env.reset(seed=7, options={"task": wanted})[0], alone.reset(seed=7)[0])
    np.testing.assert_array_equal(
        env.step(np.zeros(len(RULE_PARAMETERS)))[0], alone.step(np.zeros(len(RULE_PARAMETERS)))[0]
    )


def test_a_task_that_went_through_json_can_be_pinned():
    wanted = Task(label_noise=0.2, budget=2.0, lr_factor=0.5, train_size=60, model="mlp:4")
    env, other = made(), made()
    env.reset(seed=0, options={"task": wanted})
    other.reset(seed=0, options={"task": json.loads(json.dumps(asdict(wanted)))})
    assert of_episode(env) == of_episode(other)
    assert of_episode(env)[0] == 60


@pytest.mark.parametrize("kind", ["one", "many"])
def test_a_pinned_task_is_of_the_images_that_the_environment_has(kind, tmp_path):
    trees.imagefolder(tmp_path, per_class=20, size=8)
    settings = {"dataset": "imagefolder", "root": str(tmp_path), "image_size": 8, "model": "mlp:4", "budget": 3.0}
    env: Any = TaskEnv(**settings) if kind == "one" else PruneVectorEnv(1, **settings)

    def pin(task):
        env.reset(seed=0, options={"task": task})
        return env.env if kind == "one" else env.envs[0]

    task = Task(dataset="imagefolder", image_size=8, train_size=24, label_noise=0.2, model="mlp:4", budget=2.0)
    expected = PruneEnv(**{**task.settings(), "root": str(tmp_path)})
    for given in (task, asdict(task)):
        assert torch.equal(pin(given).train_data.images, expected.train_data.images)
        assert torch.equal(pin(given).train_data.labels, expected.train_data.labels)
    for given in (Task(train_size=24), asdict(Task(train_size=24))):
        with pytest.raises(ValueError, match="task has dataset='digits'; episodes here are of imagefolder"):
            pin(given)


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
    action = select(np.ones(len(env.env.train_data)))
    np.testing.assert_array_equal(env.step(action)[0]["loss"], calm.step(action)[0]["loss"])
    for _ in range(3):
        assert env.reset()[1] == calm.reset()[1]
        assert env.env.recipe == calm.env.recipe


def test_spaces_are_those_of_the_episode():
    env = TaskEnv(SMALL, momentum=0.5)
    sizes = set()
    for seed in range(8):
        observation, _ = env.reset(seed=seed)
        sizes.add(len(observation["label"]))
        assert env.observation_space.contains(observation)
        action = env.action_space.sample()
        assert len(action["weight"]) == len(observation["label"]) == len(env.env.train_data)
        assert env.env.recipe.momentum == 0.5
        assert env.observation_space.contains(env.step(action)[0])
    assert sizes == {20, 30}


def test_the_spec_goes_through_json():
    env = made(price=0.2)
    assert env.spec is not None
    again = gym.make(EnvSpec.from_json(env.spec.to_json()))
    for seed in (3, None, None):
        np.testing.assert_array_equal(again.reset(seed=seed)[0], env.reset(seed=seed)[0])
        assert of_episode(again) == of_episode(env)


def test_closing_lets_go_of_the_run():
    env = TaskEnv(SMALL)
    env.reset(seed=0)
    action = env.action_space.sample()
    env.close()
    env.close()
    assert env.env.trainer is None
    with pytest.raises(gym.error.ResetNeeded):
        env.step(action)
    with pytest.raises(gym.error.ResetNeeded):
        TaskEnv(SMALL).render()


@pytest.mark.parametrize(
    "make", [TaskEnv, SummaryEnv, lambda tasks, **settings: vector_summary(2, tasks=tasks, **settings)]
)
@pytest.mark.parametrize(
    ("tasks", "settings", "error", "match"),
    [
        ("cifar", {}, ValueError, "no tasks called 'cifar'; there are digits"),
        (SMALL, {"budget": 3.0, "price": 1.0, "lr": 0.1}, ValueError, "^budget, lr cannot be given beside tasks"),
        ({"values": {"depth": (1, 2)}}, {}, ValueError, "tasks have no 'depth'"),
        (SMALL, {"momentum": 2.0}, ValueError, "momentum is 2.0"),
        (SMALL, {"dataset": "cifar10"}, ValueError, "the tasks are of digits, not of cifar10"),
    ],
)
def test_tasks_that_cannot_be_are_named(make, tasks, settings, error, match):
    with pytest.raises(error, match=match):
        make(tasks, **settings)


@pytest.mark.parametrize("tasks", [5, ["digits"]])
def test_tasks_of_another_type_are_named(tasks):
    with pytest.raises(TypeError, match="it must be a TaskDistribution, or the name of one"):
        TaskEnv(tasks)
    assert distribution(SMALL, {"momentum": 0.5, "dataset": "digits"}) is SMALL
