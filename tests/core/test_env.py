"""The Gymnasium face: spaces, rewards, ends, errors, and what runs share when they share a seed."""

import copy
import itertools
import math
import pickle
import re
import warnings
from dataclasses import fields
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.envs.registration import EnvSpec
from gymnasium.utils import env_checker
from stable_baselines3.common import env_checker as sb3

import prune_env
from prune_env import PruneEnv, select
from prune_env.students.recipes import Recipe
from prune_env.trainer import Trainer
from tests.core.test_selection import WRONG_ACTIONS
from tests.helpers import trees
from tests.helpers.reference import toy

IDS = ["Digits", "CIFAR10", "CIFAR100", "TinyImageNet", "ImageFolder", "ImageNet"]
TASK = {"train_size": 100, "budget": 3.0, "batch_size": 16}
PER_SAMPLE = (
    "loss loss_mean loss_var confidence margin entropy el2n correct forgets visits age".split()  # noqa: SIM905
)
FIGURES = ["spent", "budget", "val_accuracy", "train_accuracy"]


def make(**kwargs) -> gym.Env:
    return gym.make("prune_env/Digits-v0", **{**TASK, **kwargs})


def core(env: gym.Env) -> PruneEnv:
    assert isinstance(env.unwrapped, PruneEnv)
    return env.unwrapped


def student(env: gym.Env) -> Trainer:
    trainer = core(env).trainer
    assert trainer is not None
    return trainer


def size(env: gym.Env) -> int:
    assert isinstance(env.action_space, gym.spaces.Dict)
    shape = env.action_space["weight"].shape
    assert shape is not None
    return shape[0]


def random_action(rng: np.random.Generator, n: int, keep: float = 0.6) -> dict[str, np.ndarray]:
    return select(rng.uniform(0.1, 3, n) * (rng.random(n) < keep), 0.5 * rng.random(n) * (rng.random(n) < 0.3))


def equal(a: Any, b: Any) -> None:
    """Exactly, key by key."""
    assert set(a) == set(b)
    for key in a:
        np.testing.assert_array_equal(a[key], b[key], err_msg=key)
        assert np.asarray(a[key]).dtype == np.asarray(b[key]).dtype


def play(env: gym.Env, seed: int | None, steps: int = 20, agent_seed: int = 0) -> list:
    """Everything an episode of random actions returns."""
    rng = np.random.default_rng(agent_seed)
    trace: list = [env.reset(seed=seed)]
    for _ in range(steps):
        trace.append(env.step(random_action(rng, size(env))))
        if trace[-1][2]:
            break
    return trace


def equal_traces(a: list, b: list) -> None:
    assert len(a) == len(b)
    for first, second in zip(a, b, strict=True):
        equal(first[0], second[0])
        assert first[1:-1] == second[1:-1]
        equal(first[-1], second[-1])


def differ(a: list, b: list) -> bool:
    return any(not np.array_equal(x[0]["loss"], y[0]["loss"]) for x, y in zip(a, b, strict=False))


# ---------------------------------------------------------------- the contract


@pytest.fixture
def roots(tmp_path, monkeypatch) -> dict[str, dict[str, Any]]:
    trees.cifar10(tmp_path, monkeypatch)
    trees.cifar100(tmp_path, monkeypatch)
    trees.tiny_imagenet(tmp_path)
    trees.imagefolder(tmp_path / "folder")
    trees.imagenet(tmp_path / "imagenet")
    small = {"root": str(tmp_path), "model": "convnet:2-2-2", "batch_size": 16, "budget": 2.5}
    return {
        "Digits": {"budget": 2.5, "train_size": 60},
        "CIFAR10": small,
        "CIFAR100": small,
        "TinyImageNet": {**small, "image_size": 64},
        "ImageFolder": {**small, "root": str(tmp_path / "folder"), "image_size": 32},
        "ImageNet": {**small, "root": str(tmp_path / "imagenet"), "image_size": 32},
    }


@pytest.mark.parametrize("name", IDS)
def test_both_checkers_pass(name, roots):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        env = gym.make(f"prune_env/{name}-v0", **roots[name])
        env_checker.check_env(env.unwrapped)
    texts = [re.sub(r"\x1b\[\d+m", "", str(w.message)) for w in caught]
    advice = "For Box action spaces, we recommend using a symmetric and normalized space"
    assert [text for text in texts if advice not in text] == []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        sb3.check_env(core(env), warn=True, skip_render_check=False)
    texts = [str(w.message) for w in caught]
    assert [text for text in texts if "Dict" not in text or "action" not in text.lower()] == []
    env.close()


@pytest.mark.parametrize("name", IDS)
def test_ids_name_their_data_sets(name, roots):
    env = gym.make(f"prune_env/{name}-v0", **roots[name])
    classes = {"Digits": 10, "CIFAR10": 10, "CIFAR100": 100, "TinyImageNet": 3, "ImageFolder": 2, "ImageNet": 3}[name]
    assert len(core(env).train_data.classes) == classes
    assert env.spec is not None
    assert env.spec.max_episode_steps is None
    assert core(env).train_data.augment == (name != "Digits")
    assert core(env).recipe.model == ("mlp" if name == "Digits" else "convnet:2-2-2")


def test_spaces_are_those_of_the_contract():
    env = make()
    env.reset(seed=0)
    assert isinstance(env.action_space, gym.spaces.Dict)
    assert isinstance(env.observation_space, gym.spaces.Dict)
    assert set(env.action_space.spaces) == {"mixup", "weight", "score"}
    for name, bound in (("weight", 10), ("mixup", 0.5)):
        space = env.action_space[name]
        assert isinstance(space, gym.spaces.Box)
        assert (space.shape, space.dtype) == ((100,), np.float32)
        assert (space.low.tolist(), space.high.tolist()) == ([0] * 100, [bound] * 100)
    shapes = {name: space.shape for name, space in env.observation_space.spaces.items()}
    assert shapes == dict.fromkeys([*PER_SAMPLE, "label"], (100,)) | dict.fromkeys(FIGURES, (1,))
    for name, space in env.observation_space.spaces.items():
        assert isinstance(space, gym.spaces.Box)
        assert space.dtype == (np.int64 if name == "label" else np.float32)
        assert np.isfinite(space.low).all()
        assert np.isfinite(space.high).all()


def test_bounds_are_those_of_the_contract():
    env = make(budget=2.7)
    count = 2.0**24
    bounds = dict.fromkeys(["confidence", "entropy", "correct", "spent", "val_accuracy", "train_accuracy"], (0, 1))
    bounds |= {"loss": (0, 100), "loss_mean": (0, 100), "loss_var": (0, 100**2), "margin": (-1, 1)}
    bounds |= {"el2n": (0, 2**0.5), "forgets": (0, count), "visits": (0, count), "label": (0, 9)}
    bounds |= {"age": (0, 2.7), "budget": (0, 2.7)}
    assert isinstance(env.observation_space, gym.spaces.Dict)
    assert set(env.observation_space.spaces) == set(bounds)
    for name, (low, high) in bounds.items():
        space = env.observation_space[name]
        assert isinstance(space, gym.spaces.Box)
        np.testing.assert_array_equal(space.low, space.low.dtype.type(low), err_msg=name)
        np.testing.assert_array_equal(space.high, space.high.dtype.type(high), err_msg=name)


def test_age_is_never_more_than_what_was_spent():
    ages = []
    for obs, *_, info in play(make(), seed=0):
        spent = info.get("total_spent", 0.0)
        assert 0 <= obs["age"].min() <= obs["age"].max() <= np.float32(spent)
        ages.append(obs["age"].max())
    assert ages[0] == 0 < ages[-1]


def test_observations_lie_in_the_space_and_say_what_happened():
    env = make(lr=0.5)
    trace = play(env, seed=0)
    labels = core(env).train_data.labels.numpy()
    spent = 0.0
    for step, (obs, *_, info) in enumerate(trace):
        assert env.observation_space.contains(obs)
        np.testing.assert_array_equal(obs["label"], labels)
        spent += info.get("spent", 0.0)
        assert obs["spent"][0] == pytest.approx(spent / 3.0, rel=1e-6)
        assert obs["budget"][0] == 3.0
        assert obs["val_accuracy"][0] == np.float32(info["val_accuracy"])
        assert obs["visits"].sum() == pytest.approx(spent * 100, rel=1e-6)
        if step:
            assert obs["train_accuracy"][0] == np.float32(info["train_accuracy"])
            assert info["coverage"] == np.mean(obs["visits"] > 0)
            assert info["total_spent"] == pytest.approx(spent)
            assert ((obs["age"] > 0) | (obs["visits"] > 0)).all()
    assert trace[-1][2]
    assert trace[0][0]["train_accuracy"][0] == trace[0][0]["spent"][0] == 0


@pytest.mark.parametrize("budget", [0.7, 1 / 3, 2.0999999, 3.3])
def test_observations_lie_in_the_space_whatever_the_budget(budget):
    env = make(budget=budget, batch_size=1)
    env.reset(seed=0)
    done = False
    while not done:
        obs, _, done, *_ = env.step(select(np.arange(100) < 34))
        assert env.observation_space.contains(obs)
        assert obs["age"].max() <= np.float32(budget)


def test_kept_is_the_share_that_was_trained_on_after_the_budget_cut_it():
    env = make(budget=1.2)
    env.reset(seed=0)
    *_, info = env.step(select(np.arange(100) < 80))
    assert (info["kept"], info["trained"], info["cut"], info["spent"]) == (0.8, 80, False, 0.8)
    *_, info = env.step(select(np.arange(100) < 80))
    assert (info["kept"], info["trained"], info["cut"], info["spent"]) == (0.4, 40, True, 0.4)


@pytest.mark.parametrize("price", [0.0, 0.05])
def test_the_reward_telescopes(price):
    env = make(price=price, budget=3.0)
    trace = play(env, seed=1)
    total = sum(step[1] for step in trace[1:])
    spent = sum(step[4]["spent"] for step in trace[1:])
    gained = trace[-1][0]["val_accuracy"][0] - trace[0][0]["val_accuracy"][0]
    assert gained > 0.3
    assert spent == pytest.approx(3.0, abs=0.16)
    assert total == pytest.approx(float(gained) / 3.0 - price * spent, abs=1e-6)
    for before, step in itertools.pairwise(trace):
        change = step[4]["val_accuracy"] - before[-1]["val_accuracy"]
        assert step[1] == pytest.approx(change / 3.0 - price * step[4]["spent"], abs=1e-12)


def test_info_holds_counted_work_only():
    first, *steps = play(make(), seed=0)
    for step in steps:
        assert step[4].keys() == first[-1].keys()
        assert type(step[1]) is float
        assert (type(step[2]), type(step[3])) == (bool, bool)
        assert step[3] is False
        for name, value in step[4].items():
            assert not re.search("second|time|wall", name)
            assert isinstance(value, np.number | np.bool_)
            assert math.isfinite(value)


# ---------------------------------------------------------------- ends


def test_a_run_that_ended_asks_for_reset():
    env = make().unwrapped
    action = select(np.ones(100, bool))
    with pytest.raises(gym.error.ResetNeeded, match="reset"):
        env.step(action)
    env.reset(seed=0)
    assert [env.step(action)[2] for _ in range(3)] == [False, False, True]
    with pytest.raises(gym.error.ResetNeeded, match="reset"):
        env.step(action)
    env.reset()
    assert env.step(action)[2] is False


def test_dropping_everything_terminates_without_reward():
    env = make()
    before, _ = env.reset(seed=0)
    after, reward, terminated, truncated, info = env.step(select(np.zeros(100, bool)))
    assert (reward, terminated, truncated, info["diverged"], info["trained"]) == (0.0, True, False, False, 0)
    equal(before, after)


def test_divergence_terminates_and_the_next_run_is_healthy():
    env = make(lr=1e6, budget=20.0)
    env.reset(seed=0)
    while True:
        obs, reward, done, truncated, info = env.step(select(np.ones(100, bool)))
        if done:
            break
    assert (info["diverged"], truncated) == (True, False)
    assert info["total_spent"] < 19
    assert math.isfinite(float(reward))
    assert all(map(math.isfinite, info.values()))
    assert env.observation_space.contains(obs)
    obs, info = env.reset(seed=1)
    fresh, fresh_info = make(lr=1e6, budget=20.0).reset(seed=1)
    equal(obs, fresh)
    assert info == fresh_info
    assert all(torch.isfinite(p).all() for p in student(env).model.parameters())


def test_closing_lets_go_of_the_run():
    env = make().unwrapped
    env.reset(seed=0)
    env.close()
    with pytest.raises(gym.error.ResetNeeded):
        env.step(select(np.ones(100, bool)))


# ---------------------------------------------------------------- errors


def test_wrong_actions_leave_the_run_as_it_was():
    calm, disturbed = make().unwrapped, make().unwrapped
    equal(calm.reset(seed=3)[0], disturbed.reset(seed=3)[0])
    rng = np.random.default_rng(0)
    wrong = [action for action, _ in WRONG_ACTIONS.values()]
    full = np.ones(100, np.float32)
    for at, value in ((7, np.nan), (8, np.inf), (9, -1.0), (10, 11.0)):
        wrong.append({"weight": np.where(np.arange(100) == at, value, full), "mixup": 0 * full})
        wrong.append({"weight": full, "mixup": np.where(np.arange(100) == at, value, 0)})
    done = False
    while not done:
        for action in wrong:
            with pytest.raises((ValueError, TypeError), match="action"):
                disturbed.step(action)
        action = random_action(rng, 100)
        a, b = calm.step(action), disturbed.step(action)
        equal_traces([a], [b])
        done = a[2]
    for x, y in zip(student(calm).model.parameters(), student(disturbed).model.parameters(), strict=True):
        assert torch.equal(x, y)


WRONG_ARGUMENTS = [
    ("budget", 0.0),
    ("budget", -1.0),
    ("budget", math.nan),
    ("budget", math.inf),
    ("price", -0.1),
    ("price", math.nan),
    ("price", math.inf),
    ("dataset", "mnist"),
    ("image_size", 0),
    ("train_size", 5),
    ("train_size", 10_000),
    ("train_size", 20.5),
    ("label_noise", 1.5),
    ("label_noise", math.nan),
    ("imbalance", 0.5),
    ("imbalance", math.inf),
    ("duplicates", 1.0),
    ("duplicates", -0.1),
    ("task_seed", -1),
    ("model", "perceptron"),
    ("batch_size", 0),
    ("batch_size", 1.5),
    ("lr", 0.0),
    ("lr", math.nan),
    ("momentum", 1.0),
    ("weight_decay", -1.0),
    ("warmup", 1.0),
    ("label_smoothing", 1.0),
    ("ema", 0.0),
    ("precision", "float64"),
    ("compile", "fast"),
    ("device", "gpu"),
    ("render_mode", "pdf"),
    ("budget", "10"),
    ("budget", True),
    ("price", None),
    ("model", 3),
    ("model", "mlp:a"),
    ("model", "resnet18:5"),
    ("model", "torchvision:nope"),
    ("batch_size", 32.0),
    ("batch_size", "32"),
    ("batch_size", math.nan),
    ("lr", "a"),
    ("device", 0),
    ("device", "meta"),
    ("root", 5),
    ("label_noise", "0.1"),
]
CALLED = {"dataset": "data set"}


@pytest.mark.parametrize(("name", "value"), WRONG_ARGUMENTS)
def test_a_wrong_argument_raises_one_error_that_names_it(name, value):
    with pytest.raises((ValueError, TypeError), match=rf"{CALLED.get(name, name)}.*{re.escape(str(value))}"):
        PruneEnv(**{**TASK, name: value})


@pytest.mark.parametrize(("model", "size"), [("convnet:2-2-2", 4), ("torchvision:alexnet", 32)])
def test_images_too_small_for_the_model_are_named_at_construction(tmp_path, model, size):
    trees.imagefolder(tmp_path)
    with pytest.raises(ValueError, match=f"model '{model}' .*{size} pixels.*image_size"):
        PruneEnv("imagefolder", root=str(tmp_path), image_size=size, model=model, batch_size=4)


def test_a_budget_below_one_batch_is_named():
    with pytest.raises(ValueError, match=r"budget is 0\.1.*16"):
        PruneEnv(**{**TASK, "budget": 0.1})


def test_a_missing_data_set_says_where_it_was_looked_for(tmp_path):
    with pytest.raises(FileNotFoundError, match=re.escape(str(tmp_path))):
        gym.make("prune_env/CIFAR10-v0", root=str(tmp_path))


def test_reset_takes_no_options_and_a_wrong_call_reseeds_nothing():
    env, calm = make(), make()
    for each in (env, calm):
        each.reset(seed=0)
    with pytest.raises(ValueError, match="colour"):
        env.reset(seed=9, options={"colour": "red"})
    assert env.reset()[1] == calm.reset()[1]
    assert student(env).seed == student(calm).seed


# ---------------------------------------------------------------- seeds


def test_the_same_seed_gives_the_same_numbers_and_another_seed_others():
    first = play(make(), seed=0)
    equal_traces(first, play(make(), seed=0))
    assert differ(first, play(make(), seed=1))


def test_a_second_episode_equals_that_of_a_fresh_env():
    env = make()
    play(env, seed=5, agent_seed=1)
    equal_traces(play(env, seed=2), play(make(), seed=2))


def test_resets_without_a_seed_follow_from_the_last_seed():
    traces = []
    for _ in range(2):
        env = make()
        traces.append([play(env, seed) for seed in (0, None, None)])
    for a, b in zip(*traces, strict=True):
        equal_traces(a, b)
    for i in range(3):
        assert not any(differ(a, b) is False for a, b in zip(traces[0][:i], traces[0][1 : i + 1], strict=True))


def test_paired_seeds_share_weights_and_order():
    envs = [make(), make()]
    for env in envs:
        env.reset(seed=7)
    a, b = (copy.deepcopy(student(env).model.state_dict()) for env in envs)
    assert all(torch.equal(a[name], b[name]) for name in a)
    orders: list[list[int]] = [[], []]

    def spy(trainer: Trainer, order: list[int]) -> None:
        fetch = trainer._fetch

        def noting(indices, sizes):
            order.extend(indices.tolist())
            return fetch(indices, sizes)

        trainer._fetch = noting  # pyright: ignore[reportAttributeAccessIssue]

    for env, order in zip(envs, orders, strict=True):
        spy(student(env), order)
    rng = np.random.default_rng(0)
    for keeps in ((0.9, 0.4), (0.5, 0.8)):
        for env, order, keep in zip(envs, orders, keeps, strict=True):
            order.clear()
            env.step(select(rng.random(100) < keep))
        common = set(orders[0]) & set(orders[1])
        assert len(common) > 20
        first, second = ([i for i in order if i in common] for order in orders)
        assert first == second


def test_paired_seeds_share_the_looks_of_each_visit():
    seen: list[dict[tuple[int, int], np.ndarray]] = []
    train = toy(30, channels=3, size=16, augment=True)
    for agent in (0, 1):
        trainer = Trainer(train, toy(6, channels=3, size=16), Recipe("mlp:2", 8, 0.1), 5.0, seed=3)
        images: list[np.ndarray] = []

        def look(module, args, images=images) -> None:
            if module.training:
                images.extend(args[0].numpy().copy())

        trainer.model.register_forward_pre_hook(look)
        looks = {}
        rng = np.random.default_rng(agent)
        visits = np.zeros(30, int)
        for _ in range(6):
            images.clear()
            selection = trainer.select(select(rng.random(30) < 0.6))
            trainer.train_epoch(selection)
            for i, image in zip(selection.indices.tolist(), images, strict=True):
                looks[i, int(visits[i])] = image
                visits[i] += 1
        seen.append(looks)
    common = set(seen[0]) & set(seen[1])
    assert len(common) > 60
    for key in common:
        np.testing.assert_array_equal(seen[0][key], seen[1][key])
    assert any(not np.array_equal(seen[0][i, 0], seen[0][i, 1]) for i, v in common if v == 1 and (i, 0) in seen[0])


# ---------------------------------------------------------------- specs and copies


def test_a_spec_survives_json():
    kwargs = {
        "budget": 1.5,
        "price": 0.01,
        "train_size": 80,
        "label_noise": 0.2,
        "imbalance": 2.0,
        "duplicates": 0.1,
        "task_seed": 3,
        "model": "mlp:12",
        "batch_size": 10,
        "lr": 0.3,
        "momentum": 0.5,
        "weight_decay": 1e-3,
        "warmup": 0.2,
        "label_smoothing": 0.1,
        "ema": 0.5,
        "precision": "float32",
        "compile": "off",
        "device": "cpu",
    }
    env = gym.make("prune_env/Digits-v0", **kwargs)
    assert env.spec is not None
    again = gym.make(EnvSpec.from_json(env.spec.to_json()))
    assert again.spec is not None
    assert again.spec.kwargs == {"dataset": "digits", **kwargs}
    recipe = Recipe(**{option.name: kwargs[option.name] for option in fields(Recipe)})
    assert core(again).recipe == core(env).recipe == recipe
    equal_traces(play(env, seed=4), play(again, seed=4))


def test_every_argument_reaches_the_run():
    base = play(make(), seed=0)
    changes = {
        "price": 0.1,
        "label_noise": 0.3,
        "imbalance": 3.0,
        "duplicates": 0.3,
        "task_seed": 1,
        "model": "mlp:30",
        "batch_size": 20,
        "lr": 0.05,
        "momentum": 0.5,
        "weight_decay": 0.05,
        "warmup": 0.5,
        "label_smoothing": 0.2,
        "ema": 0.3,
        "precision": "bfloat16",
    }
    for name, value in changes.items():
        other = play(make(**{name: value}), seed=0)
        same = all(
            np.array_equal(x[0]["loss_mean"], y[0]["loss_mean"]) and x[1:2] == y[1:2]
            for x, y in zip(base[1:], other[1:], strict=False)
        )
        assert not same, name


def test_arrays_never_share_memory():
    env = make().unwrapped
    assert isinstance(env, PruneEnv)
    rng = np.random.default_rng(0)
    observations = [env.reset(seed=0)[0]]
    actions = []
    for _ in range(3):
        actions.append(random_action(rng, 100))
        observations.append(env.step(actions[-1])[0])
    trainer = student(env)
    inside = [trainer.stats.table, *trainer.model.parameters(), trainer.train_data.labels, trainer.train_data.images]
    arrays = [x for part in (observations, actions) for d in part for x in d.values()]
    arrays += [tensor.detach().numpy() for tensor in inside]
    for i, a in enumerate(arrays):
        assert not any(np.shares_memory(a, b) for b in arrays[:i])


def test_what_an_agent_writes_changes_nothing():
    clean, dirty = make().unwrapped, make().unwrapped
    a, b = clean.reset(seed=0)[0], dirty.reset(seed=0)[0]
    rng = np.random.default_rng(0)
    done = False
    while not done:
        equal(a, b)
        action = random_action(rng, 100)
        scribbled = {name: values.copy() for name, values in action.items()}
        for values in b.values():
            values[:] = 1
        a, *_, done, _, _ = clean.step(action)
        b = dirty.step(scribbled)[0]
        for values in scribbled.values():
            values[:] = 0
    equal(a, b)


def test_the_package_has_its_public_names():
    assert set(prune_env.__all__) == {"PruneEnv", "select"}
    assert re.match(r"\d+\.\d+\.\d+", prune_env.__version__)


# ---------------------------------------------------------------- copies and vectors


def test_a_vector_of_two_is_two_envs_with_seeds_that_follow():
    seed = 4
    vector = gym.make_vec("prune_env/Digits-v0", num_envs=2, vectorization_mode="sync", **TASK)
    singles = [make(), make()]
    seen, infos = vector.reset(seed=seed)
    alone = [single.reset(seed=seed + i) for i, single in enumerate(singles)]
    rng = np.random.default_rng(0)
    for _ in range(3):
        for i, (obs, info) in enumerate(alone):
            equal({name: values[i] for name, values in seen.items()}, obs)
            assert infos["val_accuracy"][i] == info["val_accuracy"]
        actions = [select(rng.permutation(100)[:90], n=100) for _ in singles]
        together = {name: np.stack([action[name] for action in actions]) for name in actions[0]}
        seen, rewards, terminated, truncated, infos = vector.step(together)
        steps = [single.step(action) for single, action in zip(singles, actions, strict=True)]
        assert rewards.tolist() == [step[1] for step in steps]
        assert terminated.tolist() == [step[2] for step in steps] == [False, False]
        assert truncated.tolist() == [False, False]
        alone = [(step[0], step[4]) for step in steps]
    assert differ([alone[0]], [alone[1]])
    vector.close()


def copied(env: gym.Env) -> gym.Env:
    return copy.deepcopy(env)


def pickled(env: gym.Env) -> gym.Env:
    return pickle.loads(pickle.dumps(env))


@pytest.mark.parametrize("way", [copied, pickled])
@pytest.mark.parametrize("model", ["mlp:8", "convnet:2-2-2"])
def test_a_copy_in_mid_episode_goes_on_alike(way, model):
    env = make(model=model, render_mode="ansi")
    rng = np.random.default_rng(0)
    env.reset(seed=0)
    env.step(random_action(rng, 100))
    twin = way(env)
    assert student(twin) is not student(env)
    actions = [random_action(rng, 100, keep=0.8) for _ in range(2)]
    traces = [[each.step(action) for action in actions] for each in (env, twin)]
    equal_traces(*traces)
    assert env.render() == twin.render()
    for each in (env, twin):
        for a, b in zip(student(env).model.parameters(), student(each).model.parameters(), strict=True):
            assert torch.equal(a, b)
    equal(env.reset()[0], twin.reset()[0])  # the next seed too


@pytest.mark.parametrize("way", [copied, pickled])
def test_a_copy_draws_the_masks_of_dropout_alike(way, tmp_path):
    trees.imagefolder(tmp_path)
    model = "torchvision:mobilenet_v3_small"
    env = gym.make("prune_env/ImageFolder-v0", root=str(tmp_path), model=model, batch_size=9, budget=3.0)
    env.reset(seed=0)
    env.step(select(np.ones(18, bool)))
    twin = way(env)
    steps = [each.step(select(np.ones(18, bool))) for each in (env, twin)]
    equal_traces(steps[:1], steps[1:])
    masks = [student(each).masks for each in (env, twin)]
    assert masks[0] is not None
    assert masks[1] is not None
    assert masks[0] is not masks[1]
    assert torch.equal(masks[0].get_state(), masks[1].get_state())
