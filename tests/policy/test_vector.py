"""Many runs behind Gymnasium's VectorEnv: what K single environments would do, whatever they differ in."""

import copy
import itertools
import random
import warnings
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.envs.registration import EnvSpec
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import VecMonitor

from prune_env import PruneEnv, select
from prune_env.policy.sb3 import SB3VecEnv
from prune_env.policy.tasks import TASK_STREAM, Task, TaskDistribution
from prune_env.policy.vector import PruneVectorEnv
from prune_env.trainer import Trainer
from tests.helpers import trees

TASK: dict[str, Any] = {"train_size": 40, "budget": 2.0, "batch_size": 16, "model": "mlp:8"}
FIGURES = {"spent", "budget", "val_accuracy", "train_accuracy", "val_class_accuracy"}  # not of samples


def make(num_envs: int = 3, **settings) -> PruneVectorEnv:
    env = gym.make_vec("prune_env/Digits-v0", num_envs=num_envs, **{**TASK, **settings})
    assert isinstance(env, PruneVectorEnv)
    return env


class Padded(gym.ObservationWrapper):
    """A run of fewer samples beside larger ones, as the contract has it."""

    def __init__(self, env: PruneEnv, like: PruneVectorEnv):
        super().__init__(env)
        self.n, self.own = size(like), len(env.train_data)
        self.action_space, self.observation_space = like.single_action_space, like.single_observation_space

    def observation(self, observation):
        def padded(name: str, values: np.ndarray) -> np.ndarray:
            rest = np.full(self.n - self.own, -1 if name == "label" else 0)
            return values if name in FIGURES else np.concatenate([values, rest.astype(values.dtype)])

        return {name: padded(name, values) for name, values in observation.items()}

    def step(self, action):
        return super().step({name: values[: self.own] for name, values in action.items()})


def one_by_one(like: PruneVectorEnv, *members: dict[str, Any]) -> SyncVectorEnv:
    """The reference: Gymnasium's loop over single environments."""
    return SyncVectorEnv(
        [lambda m=m: Padded(PruneEnv(**{**TASK, **m}), like) for m in members], observation_mode="different"
    )


def size(env: gym.vector.VectorEnv) -> int:
    assert isinstance(env.single_action_space, gym.spaces.Dict)
    shape = env.single_action_space["weight"].shape
    assert shape is not None
    return shape[0]


def trainers(env: PruneVectorEnv | SyncVectorEnv) -> list[Trainer]:
    members = [member.unwrapped for member in env.envs]
    assert all(isinstance(member, PruneEnv) for member in members)
    return [member.trainer for member in members]  # pyright: ignore[reportAttributeAccessIssue]


def some_actions(env: PruneVectorEnv, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Of every kind: some, all, a single row, rarely none; beyond a member's own samples there is rubbish."""
    n = size(env)
    rows = []
    for member in env.envs:
        own = len(member.train_data)
        share = rng.choice([0.0, 1 / own, 0.3, 0.7, 1.0], p=[0.05, 0.15, 0.3, 0.3, 0.2])
        weight = (rng.permutation(own) < round(share * own)) * rng.choice([1.0, rng.uniform(0.2, 4)])
        mixup = 0.5 * rng.random(own) * (rng.random(own) < rng.choice([0.0, 0.5, 1.0]))
        score = rng.random(own) < rng.choice([0.0, 0.3, 1.0])
        rubbish = rng.choice([np.nan, -3.0, 99.0], (3, n - own))
        rows.append(np.concatenate([np.stack([weight, mixup, score]), rubbish], axis=1).astype(np.float32))
    return dict(zip(("weight", "mixup", "score"), np.stack(rows, axis=1), strict=True))


def everything(env: PruneVectorEnv) -> dict[str, np.ndarray]:
    ones = np.ones((env.num_envs, size(env)), np.float32)
    return {"weight": ones, "mixup": 0 * ones, "score": 0 * ones}


def equal(ours: Any, theirs: Any, tolerance: float = 1e-5) -> None:
    """The same keys, dtypes and shapes; what is not a float, exactly."""
    if isinstance(theirs, dict):
        assert set(ours) == set(theirs)
        for name in theirs:
            equal(ours[name], theirs[name], tolerance)
    elif isinstance(theirs, tuple):
        assert len(ours) == len(theirs)
        for one, other in zip(ours, theirs, strict=True):
            equal(one, other, tolerance)
    else:
        theirs = theirs.astype(bool) if theirs.dtype == object else theirs  # what Gymnasium makes of numpy's bools
        assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape)
        loose = tolerance if ours.dtype.kind == "f" else 0.0
        np.testing.assert_allclose(ours, theirs, atol=loose, rtol=10 * loose)


def equal_runs(ours: Trainer, theirs: Trainer) -> None:
    for a, b in zip(ours.model.parameters(), theirs.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4, equal_nan=True)
    assert {**vars(ours.ledger), "seconds": 0} == {**vars(theirs.ledger), "seconds": 0}


def compare(env: PruneVectorEnv, plain: SyncVectorEnv, episodes: int = 2, seed: int = 3) -> None:
    """Step both until every member has ended so many times."""
    equal(env.reset(seed=seed), plain.reset(seed=seed))
    rng = np.random.default_rng(seed)
    ended = np.zeros(env.num_envs, int)
    while ended.min() < episodes:
        actions = some_actions(env, rng)
        ours = env.step(actions)
        equal(ours, plain.step(actions))
        for a, b in zip(trainers(env), trainers(plain), strict=True):
            equal_runs(a, b)
        ended += ours[2]
        assert ended.max() < 60


# ---------------------------------------------------------------- K members are K single environments

DIFFERENT: dict[str, dict[str, list]] = {
    "in nothing": {"price": [0.01] * 3},
    "in training and data": {
        "lr": [0.05, 0.2, 0.1],
        "momentum": [0.9, 0.0, 0.5],
        "weight_decay": [0.0, 0.01, 5e-4],
        "label_smoothing": [0.2, 0.0, 0.1],
        "warmup": [0.0, 0.3, 0.1],
        "ema": [0.8, 0.3, 1.0],
        "price": [0.0, 0.1, 0.0],
        "budget": [1.0, 3.3, 2.1],
        "label_noise": [0.0, 0.3, 0.1],
        "task_seed": [0, 1, 2],
        "train_size": [40, 23, 31],
        "val_rest": [False, True, False],
    },
    "in widths and batches": {"model": ["mlp:8", "mlp:5", "mlp:5-4", "mlp:5"], "batch_size": [8, 16, 64, 7]},
    "in being convolutional": {
        "model": ["mlp:8", "convnet:2-2-2", "mlp:8"],
        "precision": ["float32", "float32", "bfloat16"],
    },
}


@pytest.mark.parametrize("different", DIFFERENT.values(), ids=DIFFERENT)
def test_members_are_single_environments_that_differ(different):
    count = len(next(iter(different.values())))
    env = make(count, **different)
    members = [{name: values[k] for name, values in different.items()} for k in range(count)]
    compare(env, one_by_one(env, *members))


def test_members_are_single_environments_that_augment_colour_images(tmp_path):
    trees.imagefolder(tmp_path, per_class=16, size=8)
    task = {**TASK, "root": str(tmp_path), "train_size": None, "lr": 0.02}
    env = gym.make_vec("prune_env/ImageFolder-v0", num_envs=3, **{**task, "train_size": [28, 20, 28]})
    assert isinstance(env, PruneVectorEnv)
    assert all(member.train_data.augment for member in env.envs)
    compare(env, one_by_one(env, *({**task, "dataset": "imagefolder", "train_size": n} for n in (28, 20, 28))))


def test_the_seeds_of_a_list_are_the_members_own():
    env = make()
    observations, infos = env.reset(seed=[7, 0, 7])
    for k, seed in enumerate((7, 0, 7)):
        single, info = PruneEnv(**TASK).reset(seed=seed)
        equal({name: values[k] for name, values in observations.items()}, single)
        assert infos["seed"][k] == info["seed"]
    # without seeds the next runs follow from the last ones; None leaves a member's as it is
    _, infos = env.reset(seed=[None, 5, None])
    single = PruneEnv(**TASK)
    single.reset(seed=7)
    assert infos["seed"][0] == infos["seed"][2] == single.reset()[1]["seed"]
    assert infos["seed"][1] == single.reset(seed=5)[1]["seed"]
    four: Any = np.int64(4)
    assert make().reset(seed=four)[1]["seed"].tolist() == make().reset(seed=[4, 5, 6])[1]["seed"].tolist()


def test_without_a_seed_runs_differ():
    assert len({*make().reset()[1]["seed"].tolist(), *make().reset()[1]["seed"].tolist()}) == 6


def test_the_spaces_hold_what_is_seen():
    env = make(train_size=[40, 23, 31], budget=[1.0, 3.3, 2.1])
    plain = PruneEnv(**{**TASK, "budget": 3.3})
    assert env.single_action_space == plain.action_space
    assert isinstance(env.single_observation_space, gym.spaces.Dict)
    for name, space in plain.observation_space.spaces.items():  # pyright: ignore[reportAttributeAccessIssue]
        low = -1 if name == "label" else space.low
        assert env.single_observation_space[name] == gym.spaces.Box(low, space.high, space.shape, space.dtype), name
    observations, _ = env.reset(seed=0)
    assert env.observation_space.contains(observations)
    assert env.action_space.contains(env.action_space.sample())
    rng = np.random.default_rng(0)
    for _ in range(8):
        observations, *_ = env.step(some_actions(env, rng))
        assert env.observation_space.contains(observations)
    assert observations["label"][1, 23:].tolist() == [-1] * 17
    assert not any(observations[name][1, 23:].any() for name in set(observations) - {"label"} - FIGURES)
    assert (observations["label"][1, :23] >= 0).all()


def test_a_limit_of_steps_truncates_as_gymnasiums_time_limit_does():
    env = gym.make_vec("prune_env/Digits-v0", num_envs=2, **{**TASK, "budget": [9.0, 2.0]}, max_episode_steps=3)
    singles = [gym.make("prune_env/Digits-v0", **{**TASK, "budget": b}, max_episode_steps=3) for b in (9.0, 2.0)]
    env.reset(seed=0)
    for k, single in enumerate(singles):
        single.reset(seed=k)
    ended = [False, False]
    action = {name: rows[0] for name, rows in everything(env.unwrapped).items()}  # pyright: ignore[reportArgumentType]
    for step in range(1, 5):
        _, _, terminated, truncated, infos = env.step(everything(env.unwrapped))  # pyright: ignore[reportArgumentType]
        for k, single in enumerate(singles):
            _, _, *end, _ = (*single.reset(), False, False, {})[-5:] if ended[k] else single.step(action)
            assert [terminated[k], truncated[k]] == end
            ended[k] = any(end)
        assert infos["step"].tolist() == [[1, 1], [2, 2], [3, 0], [0, 1]][step - 1]
    with pytest.raises(ValueError, match="max_episode_steps is 0; it must be at least 1"):
        make(2, max_episode_steps=0)


def test_an_error_in_one_member_leaves_all_as_they_were():
    env = make(model=["mlp:8", "mlp:8", "convnet:2-2-2"])
    env.reset(seed=0)
    env.step(everything(env))
    calm = copy.deepcopy(env)
    data, env.envs[2].trainer.val_data = env.envs[2].trainer.val_data, None  # pyright: ignore
    with pytest.raises((TypeError, AttributeError)):
        env.step(everything(env))
    env.envs[2].trainer.val_data = data  # pyright: ignore[reportOptionalMemberAccess]
    for one, other in zip(trainers(env), trainers(calm), strict=True):
        assert one.ledger == other.ledger
        assert torch.equal(one.stats.table, other.stats.table)
    equal(env.step(everything(env)), calm.step(everything(calm)), 0.0)


def test_a_finished_member_is_reset_whatever_its_next_action():
    env, single = make(2, budget=[1.0, 3.0]), PruneEnv(**{**TASK, "budget": 1.0})
    env.reset(seed=0)
    single.reset(seed=0)
    assert env.step(everything(env))[2].tolist() == [True, False]
    single.step(select(np.ones(40)))
    actions = everything(env)
    actions["weight"][0] = np.nan
    observations, rewards, terminated, truncated, infos = env.step(actions)
    expected, info = single.reset()
    equal({name: values[0] for name, values in observations.items()}, expected)
    assert (rewards[0], terminated.tolist(), truncated.tolist()) == (0.0, [False, False], [False, False])
    assert infos["step"].tolist() == [0, 2]
    assert infos["seed"][0] == info["seed"]
    assert infos["_val_accuracy"].all()


# ---------------------------------------------------------------- errors


def wrong(rows: np.ndarray, k: int, i: int, value: float) -> np.ndarray:
    rows = rows.copy()
    rows[k, i] = value
    return rows


FULL = np.ones((3, 40), np.float32)
NONE = 0 * FULL
WRONG_ACTIONS: list[tuple[Any, type[Exception], str]] = [
    ([FULL, NONE], TypeError, "actions are a list; they must be a dict"),
    ({"weight": FULL[0], "mixup": NONE}, ValueError, r"actions\['weight'\] has shape \(40,\).*\(3, 40\)"),
    ({"weight": FULL[:, :39], "mixup": NONE[:, :39]}, ValueError, r"\(3, 39\).*\(3, 40\)"),
    ({"weight": FULL}, ValueError, r"member 0: .*keys \['weight'\]"),
    ({"weight": FULL * 1j, "mixup": NONE}, TypeError, "member 0: .*complex"),
    ({"weight": FULL, "mixup": FULL.astype(str)}, TypeError, "member 0: .*'mixup'.*<U32"),
    ({"weight": wrong(FULL, 2, 39, np.nan), "mixup": NONE}, ValueError, r"member 2: .*\[39\] is nan"),
    ({"weight": FULL, "mixup": wrong(NONE, 1, 3, 0.6)}, ValueError, r"member 1: .*\[3\] is 0\.6"),
]


def test_wrong_actions_are_named_and_change_nothing_in_any_member():
    calm, disturbed = make(), make()
    equal(calm.reset(seed=0), disturbed.reset(seed=0), 0.0)
    for _ in range(2):
        for actions, error, match in WRONG_ACTIONS:
            with pytest.raises(error, match=match):
                disturbed.step(actions)
        equal(calm.step(everything(calm)), disturbed.step(everything(calm)), 0.0)


def test_a_step_needs_a_reset():
    env = make()
    with pytest.raises(gym.error.ResetNeeded, match="reset"):
        env.step(everything(env))
    with pytest.raises(gym.error.ResetNeeded, match="member 0 has never been reset"):
        env.reset(options={"reset_mask": np.array([False, True, True])})
    with pytest.raises(gym.error.ResetNeeded):
        env.step(everything(env))
    env.reset()
    env.step(everything(env))
    env.close()
    with pytest.raises(gym.error.ResetNeeded):
        env.step(everything(env))


def task_of_last(task: Any) -> dict[str, Any]:
    return {"options": {"task": [{}, {}, task]}}


WRONG_RESETS: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"options": {"tasks": 1, "a": 2}}, ValueError, r"\['a', 'tasks'\].*reset_mask and task"),
    ({"options": {"reset_mask": np.ones(3)}}, ValueError, "reset_mask.*bool"),
    ({"options": {"reset_mask": np.ones(2, bool)}}, ValueError, "reset_mask.*3"),
    ({"options": {"reset_mask": np.zeros(3, bool)}}, ValueError, "reset_mask.*True"),
    ({"seed": [1, 2]}, ValueError, "seed has 2 values.*list of 3"),
    ({"seed": [1, 2, -3]}, ValueError, "seed is -3"),
    ({"seed": 1.5}, ValueError, "seed is 1.5"),
    ({"options": {"task": [{}] * 2}}, ValueError, "task has 2 values.*list of 3"),
    (task_of_last(5), TypeError, "task is 5"),
    (task_of_last({"train_size": 41}), ValueError, "member 2 has samples 41.*room for 40"),
    (task_of_last({"budget": 2.5}), ValueError, r"member 2 has budget 2\.5.*room for 2\.0"),
    (task_of_last({"depth": 5}), TypeError, "depth"),
    (task_of_last({"label_noise": 7}), ValueError, "label_noise=7"),
]


def test_wrong_resets_are_named_and_change_nothing():
    calm, disturbed = make(), make()
    equal(calm.reset(seed=0), disturbed.reset(seed=0), 0.0)
    for _ in range(2):
        for call, error, match in WRONG_RESETS:
            with pytest.raises(error, match=match):
                disturbed.reset(**call)
        equal(calm.step(everything(calm)), disturbed.step(everything(calm)), 0.0)
    mask = {"reset_mask": np.array([True, False, False])}
    equal(calm.reset(options=mask), disturbed.reset(options=mask), 0.0)


@pytest.mark.parametrize(
    ("settings", "error", "match"),
    [
        ({"num_envs": 0}, ValueError, "num_envs is 0"),
        ({"budget": [1.0, 2.0]}, ValueError, "budget has 2 values.*list of 3"),
        ({"label_noise": (0.0,) * 4}, ValueError, "label_noise has 4 values"),
        ({"lr": [0.1, 0.1, -1.0]}, ValueError, "lr is -1"),
        ({"depth": 3}, TypeError, "depth"),
        ({"tasks": "cifar"}, ValueError, "no tasks called 'cifar'; there are digits"),
        ({"tasks": "digits"}, ValueError, "budget, model, train_size cannot be given beside tasks"),
        ({"render_mode": "human"}, ValueError, "render_mode"),
    ],
)
def test_wrong_settings_are_named(settings, error, match):
    with pytest.raises(error, match=match):
        PruneVectorEnv(**{"num_envs": 3, **TASK, **settings})


# ---------------------------------------------------------------- reset options


def test_a_mask_resets_these_members_only():
    env, calm = make(), make()
    for each in (env, calm):
        each.reset(seed=0)
        before, *_ = each.step(everything(each))
    observations, infos = env.reset(seed=[9, 9, 9], options={"reset_mask": np.array([False, True, False])})
    assert infos["_seed"].tolist() == infos["_val_accuracy"].tolist() == [False, True, False]
    single = PruneEnv(**TASK)
    equal({name: values[1] for name, values in observations.items()}, single.reset(seed=9)[0])
    for name, values in observations.items():
        np.testing.assert_array_equal(values[[0, 2]], before[name][[0, 2]])
    # the others' runs go on: to the same end, at which they are reset as ever
    for step in range(3):
        ours, theirs = env.step(everything(env)), calm.step(everything(calm))
        for one, other in zip(ours[:4], theirs[:4], strict=True):
            for a, b in zip(*((x.values() if isinstance(x, dict) else [x]) for x in (one, other)), strict=True):
                np.testing.assert_allclose(a[[0, 2]], b[[0, 2]], atol=1e-5, rtol=1e-5)
        assert ours[2].tolist() == [step == 0, step == 1, step == 0]


def test_a_mask_may_spare_a_member_that_has_ended():
    env = make(2, budget=1.0)
    env.reset(seed=0)
    assert env.step(everything(env))[2].all()
    env.reset(options={"reset_mask": np.array([True, False])})
    *_, terminated, _, infos = env.step(everything(env))
    assert terminated.tolist() == [True, False]
    assert infos["step"].tolist() == [1, 0]


def test_a_pinned_task_stays_until_a_reset_without_it():
    own = {**TASK, "label_noise": 0.1, "budget": 1.0}  # an episode is a step
    env = make(**own)
    task = Task(train_size=30, label_noise=0.2, model="mlp:4", budget=1.0, lr_factor=0.5)
    change = {"train_size": 20, "model": "mlp:5"}
    plain = one_by_one(env, {**own, **task.settings()}, {**own, **change}, own)
    equal(env.reset(seed=0, options={"task": [task, change, None]}), plain.reset(seed=0))
    for _ in range(6):
        assert [len(member.train_data) for member in env.envs] == [30, 20, 40]
        assert [int(member.train_data.wrong.sum()) for member in env.envs] == [6, 2, 4]
        observations, *rest = env.step(everything(env))
        assert env.observation_space.contains(observations)
        equal((observations, *rest), plain.step(everything(env)))
    env.reset(options={"reset_mask": np.array([False, True, False])})
    assert [len(member.train_data) for member in env.envs] == [30, 40, 40]
    env.reset()
    assert [len(member.train_data) for member in env.envs] == [40, 40, 40]
    assert {member.recipe.model for member in env.envs} == {"mlp:8"}
    env.reset(options={"task": task})
    assert [len(member.train_data) for member in env.envs] == [30, 30, 30]


def test_a_task_of_other_classes_needs_room(tmp_path):
    trees.imagefolder(tmp_path, per_class=16, size=8)
    task = {"dataset": "imagefolder", "root": str(tmp_path), "model": "mlp:4", "train_size": 20}
    env = make()
    env.reset(seed=0, options={"task": task})
    assert [len(member.train_data.classes) for member in env.envs] == [2, 2, 2]
    few = PruneVectorEnv(2, **{**TASK, **task})
    with pytest.raises(ValueError, match="member 0 has classes 10; the spaces have room for 2"):
        few.reset(options={"task": {"dataset": "digits", "root": None}})


# ---------------------------------------------------------------- tasks that are drawn

SMALL = TaskDistribution(
    {
        "train_size": (20, 30),
        "label_noise": (0.0, 0.2, 0.4),
        "model": ("mlp:4", "mlp:5"),
        "budget": (1.0, 2.0),
        "val_rest": (True,),
    },
    validations=2,
    held_outs=2,
)


def seen_tasks(env: PruneVectorEnv) -> list[tuple]:
    return [
        (
            len(member.train_data),
            round(float(member.train_data.wrong.float().mean()), 2),
            member.recipe.model,
            member.budget,
        )
        for member in env.envs
    ]


def test_each_member_draws_training_tasks_that_follow_from_its_seed():
    env = PruneVectorEnv(3, tasks=SMALL)
    assert size(env) == 30
    rngs = [np.random.default_rng([5 + k, TASK_STREAM]) for k in range(3)]
    env.reset(seed=5)
    nothing = {name: 0 * rows for name, rows in everything(env).items()}
    for _ in range(6):
        drawn = [SMALL.draw(rng) for rng in rngs]
        assert seen_tasks(env) == [(t.train_size, t.label_noise, t.model, t.budget) for t in drawn]
        env.step(nothing)  # which ends every run
        observations, *_ = env.step(nothing)
        assert env.observation_space.contains(observations)


def test_a_pinned_task_goes_before_a_drawn_one_and_draws_go_on():
    env, calm = PruneVectorEnv(2, tasks=SMALL), PruneVectorEnv(2, tasks=SMALL)
    held_out = SMALL.held_out[0]
    wanted = (held_out.train_size, held_out.label_noise, held_out.model, held_out.budget)
    env.reset(seed=0, options={"task": held_out})
    assert seen_tasks(env) == [wanted] * 2
    env.step(nothing := {name: 0 * rows for name, rows in everything(env).items()})
    env.step(nothing)
    assert seen_tasks(env) == [wanted] * 2
    calm.reset(seed=0)
    env.reset()
    assert seen_tasks(env) == seen_tasks(calm)  # the first draw of the seed, which the pin did not use


def test_tasks_by_name_and_other_settings_beside_them():
    env: Any = gym.make_vec("prune_env/Digits-v0", num_envs=2, tasks="digits", momentum=[0.9, 0.5], price=0.1)
    assert (size(env), env.single_observation_space["budget"].high) == (400, 16.0)
    observations, _ = env.reset(seed=0)
    assert env.observation_space.contains(observations)
    assert [(member.recipe.momentum, member.price) for member in env.envs] == [(0.9, 0.1), (0.5, 0.1)]


# ---------------------------------------------------------------- determinism, and whose memory it is


def play(env: PruneVectorEnv, steps: int = 7) -> list:
    rng = np.random.default_rng(0)
    return [env.reset(seed=0), *(env.step(some_actions(env, rng)) for _ in range(steps))]


MANY = {"train_size": [40, 23, 31, 40], "budget": [1.0, 3.3, 2.1, 2.0], "model": ["mlp:8", "mlp:8", "mlp:8", "mlp:5"]}


def test_twice_is_the_same_bit_for_bit_and_global_generators_are_left_alone():
    traces = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        random.seed(seed)
        before = torch.get_rng_state(), np.random.get_state(), random.getstate()  # noqa: NPY002
        traces.append(play(make(4, **MANY)))
        assert torch.equal(torch.get_rng_state(), before[0])
        np.testing.assert_equal(np.random.get_state(), before[1])  # noqa: NPY002
        assert random.getstate() == before[2]
    for one, other in zip(*traces, strict=True):
        equal(one, other, 0.0)


def arrays(returned: Any) -> list[np.ndarray]:
    if isinstance(returned, np.ndarray):
        return [returned]
    parts = returned.values() if isinstance(returned, dict) else returned
    return [array for part in parts for array in arrays(part)]


def test_what_is_returned_belongs_to_the_caller():
    env, calm = make(4, **MANY), make(4, **MANY)
    rng = np.random.default_rng(0)
    returned: list[tuple] = [env.reset(seed=0)]
    calm.reset(seed=0)
    for _ in range(6):
        for array in arrays(returned[-1]):
            array[...] = 1  # spoils nothing
        actions = some_actions(env, rng)
        copied = {name: rows.copy() for name, rows in actions.items()}
        returned.append(env.step(actions))
        equal(actions, copied, 0.0)  # which belong to the caller, too
        equal(returned[-1], calm.step(actions), 0.0)
    everything_ = [array for one in returned for array in arrays(one)]
    for a, b in itertools.combinations(everything_, 2):
        assert not np.may_share_memory(a, b)


# ---------------------------------------------------------------- Gymnasium


@pytest.mark.parametrize(
    "settings", [{**TASK, "budget": [1.0, 3.3, 2.0, 2.0], "render_mode": "ansi"}, {"tasks": "digits"}, {"tasks": SMALL}]
)
def test_a_vector_made_from_json_is_the_same(settings):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        env: Any = gym.make_vec("prune_env/Digits-v0", num_envs=4, **settings)
        again: Any = gym.make_vec(EnvSpec.from_json(env.unwrapped.spec.to_json()))
    assert env.unwrapped.spec.to_json() == again.unwrapped.spec.to_json()
    assert again.render_mode == env.render_mode
    for one, other in zip(play(env, 1), play(again, 1), strict=True):
        equal(one, other, 0.0)


def test_what_gymnasium_asks_of_a_vector():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        env: Any = gym.wrappers.vector.RecordEpisodeStatistics(make(2, render_mode="rgb_array"))
        assert env.metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP
        alone: Any = PruneEnv(**TASK, render_mode="rgb_array")
        env.reset(seed=0)
        alone.reset(seed=1)
        env.step(everything(env.unwrapped))
        alone.step(select(np.ones(40)))
        np.testing.assert_array_equal(env.render()[1], alone.render())
        *_, infos = env.step(everything(env.unwrapped))
    assert infos["episode"]["l"].tolist() == [2, 2]
    env.close()
    env.close()
    assert env.unwrapped.envs[0].trainer is None


def test_stable_baselines_learns_on_summaries_and_rules_of_drawn_tasks():
    env = SB3VecEnv(gym.make_vec("prune_env/DigitsSummary-v0", num_envs=3, tasks=SMALL))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = PPO("MlpPolicy", VecMonitor(env), n_steps=8, batch_size=12, n_epochs=2, seed=0, device="cpu")
        before = [p.detach().clone() for p in model.policy.parameters()]
        model.learn(24)
    assert model.num_timesteps == 24
    assert len(model.ep_info_buffer or ()) >= 3
    assert all(-1 < episode["r"] < 1 for episode in model.ep_info_buffer or ())
    assert not all(torch.equal(p, q) for p, q in zip(model.policy.parameters(), before, strict=True))
    assert all(torch.isfinite(p).all() for p in model.policy.parameters())
