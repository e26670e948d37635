"""The Gymnasium face: spaces, rewards, ends, errors, and what runs share when they share a seed."""

import copy
import math
import pickle
import re
import warnings
from dataclasses import fields
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.envs.registration import EnvSpec
from gymnasium.utils import env_checker
from stable_baselines3.common import env_checker as sb3

import prune_env
from prune_env import PruneEnv, select
from prune_env.students.recipes import Recipe
from tests.core.test_selection import WRONG_ACTIONS
from tests.helpers import trees
from tests.helpers.reference import toy
from tests.helpers.runs import DROPOUT, Watched, digits, own_digits, play, random_action, run, same, trainer

# classes of each
IDS = {
    "Digits": 10,
    "CIFAR10": 10,
    "CIFAR100": 100,
    "TinyImageNet": 3,
    "ImageFolder": 2,
    "ImageNet": 3,
    "Arrays": 10,
}  # classes
TASK: dict[str, Any] = {"train_size": 100, "budget": 3.0, "batch_size": 16}

# ---------------------------------------------------------------- the contract


@pytest.fixture
def settings(tmp_path, monkeypatch):
    """Small images of each data set, and a small student: a function of the id's name."""

    def of(name: str) -> dict[str, Any]:
        make = {
            "CIFAR10": lambda: trees.cifar10(tmp_path, monkeypatch),
            "CIFAR100": lambda: trees.cifar100(tmp_path, monkeypatch),
            "TinyImageNet": lambda: trees.tiny_imagenet(tmp_path),
            "ImageFolder": lambda: trees.imagefolder(tmp_path),
            "ImageNet": lambda: trees.imagenet(tmp_path),
        }
        if name == "Arrays":
            return {"dataset": own_digits(), "model": "mlp:4", "batch_size": 16, "budget": 2.5}
        if name == "Digits":
            return {"budget": 2.5, "train_size": 60}
        make[name]()
        size = {} if name.startswith("CIFAR") else {"image_size": 32}
        return {"root": str(tmp_path), "model": "convnet:2-2-2", "batch_size": 16, "budget": 2.5, **size}

    return of


@pytest.mark.parametrize("name", IDS)
def test_every_id_names_its_data_set_and_passes_both_checkers_silently(name, settings):
    env = gym.make(f"prune_env/{name}-v0", **settings(name))
    core = env.unwrapped
    assert isinstance(core, PruneEnv)
    assert env.spec is not None
    assert env.spec.max_episode_steps is None
    assert len(core.train_data.classes) == IDS[name]
    assert core.train_data.augment == (name not in ("Digits", "Arrays"))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        env_checker.check_env(core)
        sb3.check_env(core, warn=True, skip_render_check=False)
    texts = [re.sub(r"\x1b\[\d+m", "", str(w.message)) for w in caught]
    advice = "For Box action spaces, we recommend using a symmetric and normalized space"  # actions are weights
    unsupported = "Dict"  # stable-baselines3 has no actions of several parts
    assert [text for text in texts if advice not in text and unsupported not in text] == []


def test_spaces_and_bounds_are_those_of_the_contract():
    env, count = digits(budget=2.7), 2.0**24
    sample = dict.fromkeys(["confidence", "entropy", "correct"], (0, 1)) | {"el2n": (0, 2**0.5)}
    sample |= {"margin": (-1, 1), "margin_mean": (-1, 1)}
    sample |= {"loss": (0, 100), "loss_mean": (0, 100), "loss_var": (0, 100**2), "age": (0, 2.7), "label": (0, 9)}
    sample |= {"forgets": (0, count), "visits": (0, count)}
    figures = dict.fromkeys(["spent", "val_accuracy", "train_accuracy"], (0, 1)) | {"budget": (0, 2.7)}
    figures |= {"val_class_accuracy": (0, 1)}
    actions = {"weight": (0, 10), "mixup": (0, 0.5), "score": (0, 1)}
    expected = [(env.observation_space, {**sample, **figures}), (env.action_space, actions)]
    for spaces, bounds in expected:
        assert isinstance(spaces, gym.spaces.Dict)
        assert set(spaces.spaces) == set(bounds)
        for name, (low, high) in bounds.items():
            space = spaces[name]
            assert isinstance(space, gym.spaces.Box)
            assert space.shape == ((10,) if name == "val_class_accuracy" else (1,) if name in figures else (100,))
            assert space.dtype == (np.int64 if name == "label" else np.float32)
            np.testing.assert_array_equal(space.low, space.dtype.type(low), err_msg=name)
            np.testing.assert_array_equal(space.high, space.dtype.type(high), err_msg=name)
    env.reset(seed=0)
    env.action_space.seed(0)
    *_, info = env.step(env.action_space.sample())
    assert info["scored"] == 100  # a uniform draw is hardly ever 0


@pytest.mark.parametrize("budget", [3.0, 1 / 3, 2.0999999])
def test_observations_lie_in_the_space_and_say_what_happened(budget):
    env = digits(budget=budget, batch_size=1 if budget < 1 else 16)
    trace, labels = play(env, seed=0), env.train_data.labels.numpy()
    trained = spent = 0.0
    for step, (obs, *_, info) in enumerate(trace):
        assert env.observation_space.contains(obs)
        np.testing.assert_array_equal(obs["label"], labels)
        spent += info["spent"]
        trained += info["trained"]
        assert (obs["spent"][0], obs["budget"][0]) == pytest.approx((spent / budget, budget), rel=2e-2)
        assert obs["val_accuracy"][0] == np.float32(info["val_accuracy"])
        assert obs["train_accuracy"][0] == np.float32(info["train_accuracy"])
        assert obs["visits"].sum() == trained
        assert info["coverage"] == np.mean(obs["visits"] > 0)
        assert info["total_spent"] == pytest.approx(spent)
        assert info["kept"] == info["trained"] / 100
        assert obs["age"].max() <= np.float32(info["total_spent"])
        assert info["step"] == step
    assert (trace[0][0]["train_accuracy"][0], trace[0][0]["spent"][0]) == (0, 0)


def test_an_action_without_score_scores_nothing():
    envs = [digits(), digits()]
    traces: list[list[tuple]] = [[env.reset(seed=3)] for env in envs]
    for keep in (0.5, 0.8):
        action = select(np.random.default_rng(0).random(100) < keep, 0.25)
        traces[0].append(envs[0].step(action))
        del action["score"]
        traces[1].append(envs[1].step(action))
    assert same(*traces)


# ---------------------------------------------------------------- ends


def test_a_run_that_ended_or_was_closed_asks_for_reset():
    env, action = digits(), select(np.ones(100, bool))
    with pytest.raises(gym.error.ResetNeeded, match="reset"):
        env.step(action)
    env.reset(seed=0)
    assert [env.step(action)[2:4] for _ in range(3)] == [(False, False), (False, False), (True, False)]
    with pytest.raises(gym.error.ResetNeeded, match="reset"):
        env.step(action)
    env.reset()
    assert env.step(action)[2] is False
    env.close()
    with pytest.raises(gym.error.ResetNeeded):
        env.step(action)


def test_dropping_everything_terminates_without_reward():
    env = digits()
    before, _ = env.reset(seed=0)
    after, reward, terminated, truncated, info = env.step(select(np.zeros(100, bool)))
    assert (reward, terminated, truncated, info["diverged"], info["trained"]) == (0.0, True, False, 0, 0)
    assert same(before, after)


# ---------------------------------------------------------------- errors


def test_wrong_actions_leave_the_run_as_it_was():
    calm, disturbed = digits(), digits()
    assert same(calm.reset(seed=3), disturbed.reset(seed=3))
    rng, done = np.random.default_rng(0), False
    while not done:
        for wrong, _ in WRONG_ACTIONS.values():  # some of them for no other reason than their length
            with pytest.raises((ValueError, TypeError), match="action"):
                disturbed.step(wrong)
        with pytest.raises(ValueError, match=r"mixup'\]\[7\] is nan"):
            disturbed.step({**select(np.ones(100)), "mixup": np.where(np.arange(100) == 7, np.nan, 0)})
        action = random_action(rng, 100)
        step = calm.step(action)
        assert same(step, disturbed.step(action))
        done = step[2]


WRONG_ARGUMENTS: dict[str, list] = {
    "budget": [0.0, math.nan, math.inf, "10", True],
    "price": [-0.1, math.inf, None],
    "dataset": ["mnist"],
    "root": [5],
    "image_size": [0],
    "train_size": [5, 10_000, 20.5],
    "label_noise": [1.5, "0.1"],
    "label_noise_kind": ["odd", 1],
    "labels": ["labels.txt", 3],
    "corrupted": [1.5, "0.1"],
    "reference": ["reference.txt", 3],
    "imbalance": [0.5],
    "duplicates": [1.0],
    "task_seed": [-1],
    "images": ["host"],
    "model": ["perceptron", 3, "mlp:a", "resnet18:5", "torchvision:nope"],
    "batch_size": [0, 32.0, "32"],
    "lr": [0.0, math.nan],
    "momentum": [1.0],
    "weight_decay": [-1.0],
    "warmup": [1.0],
    "label_smoothing": [1.0],
    "ema": [0.0],
    "precision": ["float64"],
    "compile": ["fast"],
    "device": ["gpu", "meta", 0],
    "render_mode": ["pdf"],
}


@pytest.mark.parametrize("name", WRONG_ARGUMENTS)
def test_a_wrong_argument_raises_one_error_that_names_it(name):
    called = {"dataset": "data set"}.get(name, name)
    for value in WRONG_ARGUMENTS[name]:
        with pytest.raises((ValueError, TypeError), match=rf"{called}.*{re.escape(str(value))}"):
            PruneEnv(**{**TASK, name: value})


def test_what_does_not_fit_is_named_at_construction(tmp_path):
    with pytest.raises(TypeError, match="unexpected keyword argument 'colour'"):
        PruneEnv(**{**TASK, "colour": 1})
    with pytest.raises(ValueError, match=r"budget is 0\.1.*16"):
        PruneEnv(**{**TASK, "budget": 0.1})
    with pytest.raises(ValueError, match=r"imbalance=1000000.0 leaves class \d empty: use \d+ or less"):
        PruneEnv(imbalance=1e6)
    with pytest.raises(FileNotFoundError, match=re.escape(str(tmp_path))):
        gym.make("prune_env/CIFAR10-v0", root=str(tmp_path))
    trees.imagefolder(tmp_path)
    with pytest.raises(ValueError, match=r"model 'convnet:2-2-2' .*4 pixels.*image_size"):
        PruneEnv("imagefolder", root=str(tmp_path), image_size=4, model="convnet:2-2-2", batch_size=4)


def test_reset_takes_no_options_and_a_wrong_call_reseeds_nothing():
    env, calm = digits(), digits()
    for each in (env, calm):
        each.reset(seed=0)
    with pytest.raises(ValueError, match="colour"):
        env.reset(seed=9, options={"colour": "red"})
    assert same(env.reset(), calm.reset())


# ---------------------------------------------------------------- seeds


def test_runs_follow_from_their_seed():
    """The same seed gives the same numbers, in a used environment too; another seed gives others."""
    env, traces = digits(), []
    for _ in range(2):
        traces.append([play(env, seed) for seed in (0, None, None)])
    assert same(*traces)
    assert same(play(digits(), seed=0), traces[0][0])
    ends = [trace[-1][0]["loss"] for trace in [*traces[0], play(env, seed=1)]]
    assert len({end.tobytes() for end in ends}) == 4


def test_equal_seeds_share_weights_order_and_augmentation_whatever_is_selected():
    train = toy(60, channels=3, size=16, augment=True)
    students = [trainer(train, model="mlp:2", budget=5.0, seed=3) for _ in range(2)]
    assert same(students[0].model.state_dict(), students[1].model.state_dict())
    looks: list[dict[tuple[int, int], np.ndarray]] = [{}, {}]  # an image by sample and visit
    watched, rng = [Watched(student) for student in students], np.random.default_rng(0)
    for _ in range(4):
        orders: list[list[int]] = []
        for student, seen, look in zip(students, watched, looks, strict=True):
            seen.clear()
            visits = student.observe()["visits"]
            selection = student.select(select(rng.random(60) < 0.6))
            student.train_epoch(selection)
            orders.append(selection.indices.tolist())
            look |= {(i, int(visits[i])): x for i, x in zip(orders[-1], seen.images("trained"), strict=True)}
        common = set(orders[0]) & set(orders[1])
        assert len(common) > 10
        first, second = ([i for i in order if i in common] for order in orders)
        assert first == second
    common = looks[0].keys() & looks[1].keys()
    assert len(common) > 60
    assert all(np.array_equal(looks[0][key], looks[1][key]) for key in common)
    assert any(not np.array_equal(looks[0][i, 0], looks[0][i, 1]) for i, visit in looks[0] if visit == 1)


# ---------------------------------------------------------------- specs, arguments, copies


def test_a_spec_survives_json():
    kwargs = {"budget": 1.5, "price": 0.01, "train_size": 80, "label_noise": 0.2, "imbalance": 2.0, "duplicates": 0.1}
    kwargs |= {"task_seed": 3, "model": "mlp:12", "batch_size": 10, "lr": 0.3, "momentum": 0.5, "weight_decay": 1e-3}
    kwargs |= {"warmup": 0.2, "label_smoothing": 0.1, "ema": 0.5, "precision": "float32", "compile": "off"}
    kwargs |= {"optimizer": "adamw"}
    env = gym.make("prune_env/Digits-v0", **kwargs, device="cpu")
    assert env.spec is not None
    again = gym.make(EnvSpec.from_json(env.spec.to_json()))
    assert again.spec is not None
    assert again.spec.kwargs == {"dataset": "digits", **kwargs, "device": "cpu"}
    cores = [each.unwrapped for each in (env, again)]
    assert isinstance(cores[0], PruneEnv)
    assert isinstance(cores[1], PruneEnv)
    of_training = kwargs.keys() & {option.name for option in fields(Recipe)}
    assert cores[1].recipe == Recipe(**{name: kwargs[name] for name in of_training})
    assert same(play(cores[0], seed=4), play(cores[1], seed=4))


def test_every_argument_reaches_the_run():
    changes = {"price": 0.1, "label_noise": 0.3, "imbalance": 3.0, "duplicates": 0.3, "task_seed": 1, "model": "mlp:30"}
    changes |= {"batch_size": 20, "lr": 0.05, "momentum": 0.5, "weight_decay": 0.05, "warmup": 0.5, "ema": 0.3}
    changes |= {"label_smoothing": 0.2, "precision": "bfloat16", "budget": 2.0, "train_size": 99, "val_rest": True}
    changes |= {"optimizer": "adamw", "corrupted": 0.3}
    found = [play(digits(**{"budget": 1.5, name: value}), seed=0) for name, value in changes.items()]
    for number, trace in enumerate([play(digits(budget=1.5), seed=0), *found]):
        for other in found[number:]:
            assert not same(trace, other), changes


def test_arrays_never_share_memory():
    env, rng = digits(), np.random.default_rng(0)
    dicts: list[dict] = [env.reset(seed=0)[0]]
    for _ in range(3):
        action = random_action(rng, 100)
        dicts += [action, env.step(action)[0]]
    run = env.trainer
    assert run is not None
    inside = [run.stats.table, *run.model.parameters(), run.train_data.labels, run.train_data.images]
    arrays = [x for each in dicts for x in each.values()] + [tensor.detach().numpy() for tensor in inside]
    for i, a in enumerate(arrays):
        assert not any(np.shares_memory(a, b) for b in arrays[:i])


def test_the_package_has_its_public_names():
    assert set(prune_env.__all__) == {"PruneEnv", "Pruner", "select"}
    assert re.match(r"\d+\.\d+\.\d+", prune_env.__version__)


@pytest.mark.parametrize("way", [copy.deepcopy, lambda env: pickle.loads(pickle.dumps(env))], ids=["copy", "pickle"])
def test_a_copy_in_mid_episode_goes_on_alike(way):
    env, rng = digits(model="convnet:2-2-2", render_mode="ansi"), np.random.default_rng(0)
    env.reset(seed=0)
    env.step(random_action(rng, 100))
    twin = way(env)
    actions = [random_action(rng, 100, keep=0.8) for _ in range(2)]
    assert same(*([each.step(action) for action in actions] for each in (env, twin)))
    assert env.render() == twin.render()
    assert same(env.state_dict()["trainer"]["model"], twin.state_dict()["trainer"]["model"])
    assert same(env.reset(), twin.reset())  # the next seed too


def test_a_copy_draws_the_masks_of_dropout_alike():
    student = trainer(toy(24, 3, 3, 16), model=DROPOUT)
    run(student, np.ones(24))
    twin = pickle.loads(pickle.dumps(student))
    assert run(student, np.ones(24)) == run(twin, np.ones(24))
    assert same(student.model.state_dict(), twin.model.state_dict())
