"""`prune_env.policy.sb3`: the same numbers as Stable-Baselines3's own vector environment."""

from __future__ import annotations

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
from stable_baselines3.common.vec_env import DummyVecEnv, VecMonitor

from prune_env.policy.sb3 import MODES, SB3VecEnv

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
        """Return the colour before."""
        before, self.colour = self.colour, colour
        return before


def walk(render_mode: str | None = None) -> gym.Env:
    return TimeLimit(Walk(render_mode), 6)


class Counter(VectorEnv):
    """A batch without members: member i counts to i + 2; odd ones are then cut off, even ones at their end.

    It returns the same arrays each time, which a reset clears, and sums up the actions that reach it.
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
        self.rewards, self.received = np.zeros(num_envs), np.zeros(num_envs)

    def reset(self, *, seed=None, options=None):
        mask = (options or {}).get("reset_mask", np.ones(self.num_envs, bool))
        self.seen[mask] = 0
        self.rewards[mask] = 0
        return self.seen, {}

    def step(self, actions):
        self.seen += 1
        self.received += actions[:, 0]
        last, odd = self.seen[:, 0] == self.member + 2, self.member % 2 == 1
        self.rewards[:] = 10 * self.member + self.seen[:, 0]
        return self.seen, self.rewards, last & ~odd, last & odd, {"total": self.rewards.copy()}


def sync(env_fn, members: int = 3, mode: AutoresetMode = AutoresetMode.NEXT_STEP) -> SB3VecEnv:
    return SB3VecEnv(SyncVectorEnv([env_fn] * members, autoreset_mode=mode))


def assert_same(ours: Any, theirs: Any, steps: int) -> tuple[int, int]:
    """Check that both give the same; return how many episodes were cut off, and how many ended."""
    rng = np.random.default_rng(5)
    assert ours.seed(5) == theirs.seed(5)
    np.testing.assert_equal(ours.reset(), theirs.reset())
    np.testing.assert_equal(ours.reset_infos, theirs.reset_infos)
    cut = ended = 0
    for _ in range(steps):
        actions = rng.integers(theirs.action_space.n, size=theirs.num_envs)
        stepped, expected = (venv.step(actions) for venv in (ours, theirs))
        np.testing.assert_equal(stepped, expected)
        np.testing.assert_equal(ours.reset_infos, theirs.reset_infos)
        _, rewards, dones, infos = stepped
        assert (rewards.dtype, dones.dtype, type(infos)) == (np.float32, bool, list)
        cut += sum(info["TimeLimit.truncated"] for info in infos)
        ended += dones.sum()
        assert [("terminal_observation" in info) for info in infos] == dones.tolist()
    assert ours.observation_space == theirs.observation_space
    return cut, ended - cut


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("env_fn", [cart_pole, walk])
def test_episodes_are_as_stable_baselines3_has_them(env_fn, mode):
    cut, ended = assert_same(sync(env_fn, mode=mode), DummyVecEnv([env_fn] * 3), 150)
    assert min(cut, ended) > 5


def test_a_batch_by_hand():
    """Two members, six steps: no step is lost at an episode's end, none is made up, and what was returned stays."""
    env = Counter(2)
    venv: Any = VecMonitor(SB3VecEnv(env))
    assert venv.reset().tolist() == [[0], [0]]
    steps = [venv.step(np.full((2, 1), 2.0**t)) for t in range(6)]
    assert [obs.ravel().tolist() for obs, *_ in steps] == [[1, 1], [0, 2], [1, 0], [0, 1], [1, 2], [0, 0]]
    assert [rewards.tolist() for _, rewards, _, _ in steps] == [[1, 11], [2, 12], [1, 13], [2, 11], [1, 12], [2, 13]]
    first, second = ([bool(dones[i]) for _, _, dones, _ in steps] for i in range(2))
    assert first == [False, True, False, True, False, True]
    assert second == [False, False, True, False, False, True]
    for _, rewards, dones, infos in steps:
        for i, info in enumerate(infos):
            assert info["total"] == rewards[i]
            assert info["TimeLimit.truncated"] is (i == 1 and bool(dones[i]))
            if dones[i]:
                assert info["terminal_observation"].tolist() == [i + 2]
                episode = {key: info["episode"][key] for key in "rl"}
                assert episode == ({"r": 3, "l": 2}, {"r": 36, "l": 3})[i]
    assert env.received.tolist() == [63, 63]  # each member acted on all six actions


def test_options_reach_all_members_once():
    ours, theirs = sync(walk), DummyVecEnv([walk] * 3)
    for venv in (ours, theirs):
        venv.set_options({"shift": 50})
    assert_same(ours, theirs, 3)
    again: Any = ours.reset()
    assert again["at"].max() < 40
    ours.set_options([{"shift": 1}, {"shift": 2}, {}])
    with pytest.raises(ValueError, match="the same for all 3 members"):
        ours.reset()


def test_members_attributes_and_methods():
    venv = sync(partial(walk, "rgb_array"))
    assert venv.render_mode == "rgb_array"
    assert venv.get_attr("colour", 1) == [7]
    assert venv.env_method("painted", colour=9) == [7, 7, 7]
    venv.set_attr("colour", 6)
    venv.set_attr("colour", 1, indices=[0, -1])
    assert venv.get_attr("colour") == [1, 6, 1]
    assert venv.env_method("painted", 2, indices=[1, 2]) == [6, 1]
    assert not venv.has_attr("no_such")
    frame = venv.render()
    assert frame is not None
    assert frame.shape == (4, 8, 3)  # three frames and an empty one, in a square
    assert venv.env_is_wrapped(TimeLimit) == [True] * 3
    assert venv.env_is_wrapped(TimeAwareObservation, [0, 2]) == [False] * 2
    apart = SB3VecEnv(Counter(2))
    assert (apart.render_mode, apart.env_is_wrapped(TimeLimit)) == (None, [False] * 2)
    with pytest.raises(NotImplementedError, match="not in this process"):
        apart.set_attr("colour", 6)


def test_ppo_learns_the_same_to_the_last_bit():
    def learned(venv):
        policy = PPO("MlpPolicy", venv, seed=3, device="cpu", n_steps=32, batch_size=64, n_epochs=1).learn(128).policy
        return torch.nn.utils.parameters_to_vector(policy.parameters())

    assert torch.equal(learned(sync(cart_pole, members=2)), learned(DummyVecEnv([cart_pole] * 2)))


@pytest.mark.slow  # members in processes of their own
def test_members_in_other_processes():
    ours = SB3VecEnv(AsyncVectorEnv([walk] * 2))
    assert_same(ours, DummyVecEnv([walk] * 2), 40)
    ours.close()


def test_refuses_what_would_go_wrong_silently():
    with pytest.raises(ValueError, match=r"autoreset_mode.* is None; it must be AutoresetMode.NEXT_STEP or"):
        SB3VecEnv(gym.make("CartPole-v1"))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="SAME_STEP"):
        sync(cart_pole, mode=AutoresetMode.SAME_STEP)
    with pytest.raises(ValueError, match="wrap SB3VecEnv in VecMonitor"):
        SB3VecEnv(RecordEpisodeStatistics(SyncVectorEnv([cart_pole])))
    ignores = SB3VecEnv(gym.make_vec("CartPole-v1", 3))  # Gymnasium's own batch resets everybody
    ignores.seed(1)  # with other starts all may fall in the same step, and are then reset together
    ignores.reset()
    for _ in range(7):  # all push one way, and fall after eight steps or more
        ignores.step(np.zeros(3, int))
    with pytest.raises(ValueError, match="ignores options"):
        list(map(ignores.step, [np.zeros(3, int)] * 5))
