"""`train.learning.sb3_env`: the same numbers as Stable-Baselines3's own vector environment, in every autoreset mode."""

from __future__ import annotations

import warnings
from copy import deepcopy
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv
from gymnasium.vector.utils import batch_space
from gymnasium.wrappers import TimeAwareObservation, TimeLimit
from gymnasium.wrappers.vector import RecordEpisodeStatistics
from stable_baselines3 import PPO
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import (
    DummyVecEnv,
    VecMonitor,
)

from train.learning.sb3_env import SB3VecEnv

MODES = list(AutoresetMode)
cart_pole = partial(gym.make, "CartPole-v1", max_episode_steps=15)  # short enough to be cut off as well as to fall


class Walk(gym.Env):
    """A random walk with all that an adapter can lose: a dict to observe, options, nested and rare information."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 1}  # noqa: RUF012
    observation_space = spaces.Dict({"at": spaces.Box(-99, 99, (2,), np.float32), "door": spaces.Discrete(100)})
    action_space = spaces.Discrete(3)

    def __init__(self, render_mode: str | None = None) -> None:
        self.render_mode = render_mode
        self.colour = 7

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        super().reset(seed=seed)
        self.at = self.np_random.normal(size=2) + (options or {}).get("shift", 0)
        self.door = int(self.np_random.integers(100))
        return self._seen(), {"start": self.door, "map": {"name": f"room {self.door}"}}

    def step(self, action: Any):
        self.at = self.at + action - 1 + self.np_random.normal(size=2)
        info: dict[str, Any] = {"far": float(np.abs(self.at).max()), "map": {"at": self.at.copy(), "deep": {"er": 3}}}
        if self.at[0] > 0:
            info["right"] = "yes"
        return self._seen(), float(self.at.sum()), info["far"] > 4, False, info

    def _seen(self) -> dict[str, Any]:
        return {"at": self.at.astype(np.float32), "door": self.door}

    def render(self):
        return np.full((2, 4, 3), self.colour, np.uint8)

    def painted(self, colour: int) -> int:
        """The colour before; what a method call returns."""
        before, self.colour = self.colour, colour
        return before


def walk(render_mode: str | None = None) -> gym.Env:
    return TimeLimit(Walk(render_mode), 6)


class Counter(VectorEnv):
    """A batch without members: member i counts to i + 2; odd ones are then cut off, even ones at their end.

    It returns the same arrays each time, which a reset clears, and counts what reaches it.
    """

    metadata = {"autoreset_mode": AutoresetMode.NEXT_STEP}  # noqa: RUF012
    single_observation_space = spaces.Box(0, 99, (1,), np.float32)
    single_action_space = spaces.Box(-9, 9, (1,), np.float32)

    def __init__(self, num_envs: int) -> None:
        self.num_envs = num_envs
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.member = np.arange(num_envs)
        self.seen = np.zeros((num_envs, 1), np.float32)
        self.rewards, self.ended, self.cut = np.zeros(num_envs), np.zeros(num_envs, bool), np.zeros(num_envs, bool)
        self.resets, self.received = np.zeros(num_envs, int), np.zeros(num_envs)

    def reset(self, *, seed=None, options=None):
        mask = (options or {}).get("reset_mask", np.ones(self.num_envs, bool))
        for array in (self.seen, self.rewards, self.ended, self.cut):
            array[mask] = 0
        self.resets += mask
        return self.seen, {"resets": self.resets, "_resets": mask}

    def step(self, actions):
        again = self.ended | self.cut
        self.seen += 1
        self.received += np.where(again, 0, actions[:, 0])
        last, odd = self.seen[:, 0] == self.member + 2, self.member % 2 == 1
        self.rewards[:] = 10 * self.member + self.seen[:, 0]
        self.ended[:], self.cut[:] = last & ~odd, last & odd
        if again.any():
            self.reset(options={"reset_mask": again})
        return self.seen, self.rewards, self.ended, self.cut, {"total": self.rewards, "seen": self.seen}

    def halves(self):
        return self.member / 2


class Aim(Counter):
    """Rewards -(action - observation)²: the optimum is 0, and every episode has four steps."""

    def reset(self, *, seed=None, options=None):
        mask = (options or {}).get("reset_mask", np.ones(self.num_envs, bool))
        if seed is not None:
            self.rng = np.random.default_rng(seed)
        self.seen[mask] = self.rng.uniform(-1, 1, (mask.sum(), 1))
        self.left = np.where(mask, 4, getattr(self, "left", 4))
        return self.seen, {}

    def step(self, actions):
        rewards = -((actions - self.seen)[:, 0] ** 2)
        again = self.left == 0
        self.left = self.left - 1
        self.seen[:] = self.rng.uniform(-1, 1, self.seen.shape)
        if again.any():
            self.reset(options={"reset_mask": again})
        return self.seen, np.where(again, -100.0, rewards), np.zeros(len(again), bool), self.left == 0, {}


def sync(env_fn, mode: AutoresetMode, members: int = 3, **kwargs: Any) -> SB3VecEnv:
    return SB3VecEnv(SyncVectorEnv([env_fn] * members, autoreset_mode=mode, **kwargs))


def assert_same(ours: Any, theirs: Any, steps: int, seed: int = 5) -> tuple[int, int]:
    """Both give the same, from the first reset on; returns how many episodes were cut off, and how many ended."""
    rng = np.random.default_rng(seed)
    assert ours.seed(seed) == theirs.seed(seed)
    np.testing.assert_equal(ours.reset(), theirs.reset())
    np.testing.assert_equal(ours.reset_infos, theirs.reset_infos)
    cut = ended = 0
    for _ in range(steps):
        actions = rng.integers(theirs.action_space.n, size=theirs.num_envs)
        (obs, rewards, dones, infos), (their_obs, their_rewards, their_dones, their_infos) = (
            venv.step(actions) for venv in (ours, theirs)
        )
        np.testing.assert_equal((obs, rewards, dones, infos), (their_obs, their_rewards, their_dones, their_infos))
        np.testing.assert_equal(ours.reset_infos, theirs.reset_infos)
        assert (rewards.dtype, dones.dtype, type(infos)) == (np.float32, bool, list)
        for array, other in ((obs, their_obs),) if not isinstance(obs, dict) else ((obs[k], their_obs[k]) for k in obs):
            assert array.dtype == other.dtype
        cut += sum(info["TimeLimit.truncated"] for info in infos)
        ended += dones.sum()
        assert [("terminal_observation" in info) for info in infos] == dones.tolist()
    assert ours.observation_space == theirs.observation_space
    return cut, ended - cut


@pytest.mark.parametrize("mode", MODES)
def test_cart_pole_as_stable_baselines3_has_it(mode):
    cut, fallen = assert_same(sync(cart_pole, mode), DummyVecEnv([cart_pole] * 3), 400)
    assert cut > 20
    assert fallen > 20


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("copy", [True, False])
def test_dicts_and_information_as_stable_baselines3_has_them(mode, copy):
    cut, ended = assert_same(sync(walk, mode, copy=copy), DummyVecEnv([walk] * 3), 150)
    assert min(cut, ended) > 10


def test_a_batch_by_hand():
    """Two members, six steps: no step is lost at an episode's end, and none is made up."""
    env = Counter(2)
    venv: Any = VecMonitor(SB3VecEnv(env))
    assert venv.reset().tolist() == [[0], [0]]
    steps = [venv.step(np.full((2, 1), 2.0**t)) for t in range(6)]
    assert [obs.ravel().tolist() for obs, *_ in steps] == [[1, 1], [0, 2], [1, 0], [0, 1], [1, 2], [0, 0]]
    assert [rewards.tolist() for _, rewards, _, _ in steps] == [[1, 11], [2, 12], [1, 13], [2, 11], [1, 12], [2, 13]]
    first, second = ([bool(dones[i]) for _, _, dones, _ in steps] for i in range(2))
    assert first == [False, True, False, True, False, True]
    assert second == [False, False, True, False, False, True]
    for t, (_, rewards, dones, infos) in enumerate(steps):
        for i, info in enumerate(infos):
            assert info["total"] == rewards[i]
            assert info["TimeLimit.truncated"] is (i == 1 and bool(dones[i]))
            if dones[i]:
                assert info["terminal_observation"].tolist() == [i + 2]
                episode = {key: info["episode"][key] for key in "rl"}
                assert episode == ({"r": 3, "l": 2}, {"r": 36, "l": 3})[i], t
    assert env.received.tolist() == [63, 63]  # each member acted on all six actions
    assert env.resets.tolist() == [4, 3]
    assert venv.unwrapped.reset_infos == [{"resets": 4}, {"resets": 3}]


@pytest.mark.parametrize("make", [lambda: SB3VecEnv(Counter(3)), lambda: sync(cart_pole, MODES[0], copy=False)])
def test_what_was_returned_stays(make):
    venv = make()
    kept = [(venv.reset(), None)]
    was = deepcopy(kept)
    for _ in range(40):
        obs, _, _, infos = venv.step(np.stack([venv.action_space.sample() for _ in range(3)]))
        kept.append((obs, infos))
        was.append(deepcopy(kept[-1]))
    np.testing.assert_equal(kept, was)


def test_options_reach_all_members_once():
    ours: Any = sync(walk, AutoresetMode.DISABLED)
    theirs = DummyVecEnv([walk] * 3)
    for venv in (ours, theirs):
        venv.set_options({"shift": 50})
    assert_same(ours, theirs, 3)
    assert ours.reset()["at"].max() < 40
    each = [{"shift": 100}, {"shift": 200}, {}, {"shift": 200}]
    ours, theirs = sync(walk, AutoresetMode.NEXT_STEP, members=4), DummyVecEnv([walk] * 4)
    for venv in (ours, theirs):
        venv.set_options(each)  # pyright: ignore[reportArgumentType]
    assert_same(ours, theirs, 30)
    batch = SB3VecEnv(gym.make_vec("CartPole-v1", 3))
    batch.set_options([{"low": 0.01, "high": 0.02}, {"low": 0.03, "high": 0.04}, {}])
    with pytest.raises(ValueError, match="the same for all 3 members"):
        batch.reset()


def test_members_attributes_and_methods():
    def timed(render_mode=None):
        return TimeAwareObservation(gym.make("CartPole-v1"))

    venv = sync(partial(walk, "rgb_array"), AutoresetMode.NEXT_STEP)
    assert venv.render_mode == "rgb_array"
    assert venv.get_attr("colour", 1) == [7]
    assert venv.get_attr("painted", [0])[0](8) == 7  # the method itself, not called on the way
    assert venv.env_method("painted", colour=9) == [8, 7, 7]
    venv.set_attr("colour", 6)
    assert venv.get_attr("colour") == [6, 6, 6]
    assert not venv.has_attr("no_such")
    frame = venv.render()
    assert frame is not None
    assert frame.shape == (4, 8, 3)  # three frames and an empty one, in a square
    assert set(np.unique(frame)) == {0, 6}
    assert venv.env_is_wrapped(TimeLimit) == [True] * 3
    assert venv.env_is_wrapped(TimeAwareObservation, [0, 2]) == [False] * 2
    assert sync(timed, AutoresetMode.NEXT_STEP).env_is_wrapped(TimeAwareObservation) == [True] * 3
    venv.set_attr("colour", 1, indices=[0, -1])
    assert venv.get_attr("colour") == [1, 6, 1]
    assert venv.env_method("painted", 2, indices=[1, 2]) == [6, 1]
    assert venv.get_attr("colour") == [1, 2, 2]


@pytest.mark.parametrize("algorithm", [PPO])
def test_learning_is_the_same_to_the_last_bit(algorithm):
    def learned(venv):
        sizes: Any = {"n_steps": 64, "batch_size": 64, "n_epochs": 2} if algorithm is PPO else {"n_steps": 16}
        return algorithm("MlpPolicy", venv, seed=3, device="cpu", **sizes).learn(300).policy

    reference = torch.nn.utils.parameters_to_vector(learned(DummyVecEnv([cart_pole] * 2)).parameters())
    for mode in MODES:
        policy = learned(sync(cart_pole, mode, members=2))
        assert torch.equal(torch.nn.utils.parameters_to_vector(policy.parameters()), reference)


def test_ppo_learns_where_the_best_is_known():
    venv = VecMonitor(SB3VecEnv(Aim(32)))
    model = PPO(
        "MlpPolicy", venv, seed=0, device="cpu", n_steps=16, batch_size=128, learning_rate=3e-3, gamma=0.5,
        policy_kwargs={"net_arch": [16], "log_std_init": -1.0},
    )  # fmt: skip
    before: Any = evaluate_policy(model, venv, 100)[0]
    after: Any = evaluate_policy(model.learn(10_000), venv, 100)[0]
    assert before < -0.8  # four steps; an action of zero costs 1/3 a step
    assert after > -0.08


def test_refuses_what_would_go_wrong_silently():
    with pytest.raises(ValueError, match=r"autoreset_mode.* is None; make it a gymnasium.vector.AutoresetMode"):
        SB3VecEnv(gym.make("CartPole-v1"))  # type: ignore[arg-type]
    named = Counter(2)
    named.metadata = {"autoreset_mode": "NextStep"}
    with pytest.raises(ValueError, match="is 'NextStep'"):
        SB3VecEnv(named)
    nested = Counter(2)
    nested.observation_space = spaces.Dict({"a": spaces.Dict({"b": nested.observation_space})})
    with pytest.raises(TypeError, match="flat dict of arrays"):
        SB3VecEnv(nested)
    for mode in MODES:
        with pytest.raises(ValueError, match="wrap SB3VecEnv in VecMonitor"):
            SB3VecEnv(RecordEpisodeStatistics(SyncVectorEnv([cart_pole], autoreset_mode=mode)))
    workers = AsyncVectorEnv([cart_pole], shared_memory=False)
    with pytest.raises(ValueError, match="set shared_memory=True"):
        SB3VecEnv(workers)
    workers.close()


def test_a_batch_that_ignores_masks_begins_episodes_with_a_step_that_only_resets():
    """Gymnasium's own batches of CartPole: all that their members do is what the batch does by itself."""
    venv = SB3VecEnv(gym.make_vec("CartPole-v1", 3))
    plain = gym.make_vec("CartPole-v1", 3)
    venv.seed(0)
    np.testing.assert_array_equal(venv.reset(), plain.reset(seed=0)[0])
    rng, ended, known = np.random.default_rng(0), np.zeros(3, bool), True
    for _ in range(200):
        actions = rng.integers(2, size=3)
        began = ended
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            obs, rewards, dones, infos = venv.step(actions)
        seen, theirs, terminated, truncated, _ = plain.step(actions)
        ended = terminated | truncated
        np.testing.assert_array_equal(rewards, theirs)
        assert not rewards[began & ~np.full(3, known)].any()
        if known and ended.any():  # everybody was reset: those that had not ended are cut off
            assert "vectorization_mode='sync'" in str(told[0].message)
            assert dones.all()
            assert [info["TimeLimit.truncated"] for info in infos] == (~terminated).tolist()
            np.testing.assert_array_equal([info["terminal_observation"] for info in infos], seen)
            fresh, _ = plain.reset()
            np.testing.assert_array_equal(obs, fresh)
            assert np.abs(fresh).max() <= 0.05
            known, ended = False, np.zeros(3, bool)
            continue
        assert told == []
        np.testing.assert_array_equal(obs, seen)
        np.testing.assert_array_equal(dones, ended)
        for i in np.flatnonzero(ended):
            np.testing.assert_array_equal(infos[i]["terminal_observation"], seen[i])
    assert not known
