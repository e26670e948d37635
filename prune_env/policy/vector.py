"""Many training runs at once behind Gymnasium's VectorEnv."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from prune_env import selection
from prune_env.checks import whole
from prune_env.env import PruneEnv, actions, observations
from prune_env.policy.tasks import Episodes, TaskDistribution, distribution
from prune_env.selection import Action
from prune_env.students.batched_mlp import train_epochs

Arrays = dict[str, NDArray]


class PruneVectorEnv(gym.vector.VectorEnv[Arrays, Arrays, NDArray]):
    """K training runs, stepped together: `gym.make_vec("prune_env/Digits-v0", num_envs=64)`.

    Each member is what a `PruneEnv` of the same settings and seed is; see there for spaces, rewards and info.
    Fully connected students of one depth train in batched matrix products, others in turn. A member equals a `PruneEnv`
    with the same actions up to rounding, which training amplifies. Padding is charged to nobody. A member that has
    finished is reset by the next step, whatever its action (NEXT_STEP).

    Members may differ in everything: a list or tuple of K values gives each its own, as in
    `budget=[3, 6], label_noise=[0.0, 0.2]`. Where they differ in the number of samples, N is the largest: a member
    with fewer has the label -1 and zeros for the rest, and what an action says there is ignored. The space always
    has room for that label, since a task of fewer samples can be pinned.

    Args:
        num_envs: K.
        tasks: draw each episode's task from this distribution, the one of this name, or of these arguments (which
            an `EnvSpec` in JSON makes of it), with the member's generator; settings that tasks set cannot be given
            beside it.
        max_episode_steps: truncate an episode after so many steps, as Gymnasium's `TimeLimit` does.
        render_mode: as for `PruneEnv`; `render` returns a frame a member.
        settings: keyword arguments of `PruneEnv`, one value for all or a list of K.

    Raises:
        ValueError: a list that is not of K values, and what `PruneEnv` raises.
    """

    metadata = {  # noqa: RUF012  (Gymnasium's way)
        "autoreset_mode": AutoresetMode.NEXT_STEP,
        "render_modes": PruneEnv.metadata["render_modes"],
        "render_fps": PruneEnv.metadata["render_fps"],
    }

    def __init__(
        self,
        num_envs: int = 1,
        *,
        tasks: str | TaskDistribution | Mapping[str, Any] | None = None,
        max_episode_steps: int | None = None,
        render_mode: str | None = None,
        **settings: Any,
    ):
        if max_episode_steps == -1:  # Gymnasium's word for no limit
            max_episode_steps = None
        if max_episode_steps is not None and whole("max_episode_steps", max_episode_steps) < 1:
            raise ValueError(f"max_episode_steps is {max_episode_steps}; it must be at least 1")
        self.max_episode_steps = math.inf if max_episode_steps is None else max_episode_steps
        if num_envs < 1:
            raise ValueError(f"num_envs is {num_envs}; it must be at least 1")
        self.num_envs = num_envs
        self.render_mode = render_mode
        self.tasks = None if tasks is None else distribution(tasks, settings)
        of_members = [
            {name: _of_member(name, value, k, num_envs) for name, value in settings.items()} for k in range(num_envs)
        ]
        self._episodes = [Episodes({**own, "render_mode": render_mode}, self.tasks) for own in of_members]
        rooms = [_needed(env) for env in self.envs]
        if self.tasks is not None:
            rooms.append(
                (self.tasks.samples, self.tasks.classes, max(*self.tasks.budgets, *self.tasks.held_out_budgets))
            )
        samples, classes, budget = self._room = tuple(map(max, zip(*rooms, strict=True)))
        self.single_action_space = actions(samples)
        self._space = observations(samples, classes, budget, first_label=-1)
        self.single_observation_space = self._space
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self._samples = samples
        self._seen: list[Arrays | None] = [None] * num_envs  # each member's last observation
        self._done = np.zeros(num_envs, np.bool_)

    @property
    def envs(self) -> list[PruneEnv]:
        """The members, as they are in this episode."""
        return [episodes.env for episodes in self._episodes]

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Arrays, dict[str, Any]]:
        """Start training anew.

        Args:
            seed: of the first member, the others following it by 1; or a list of one for each.
            options: `reset_mask`, (K,) bool, resets these members only. `task`, a `Task` or a mapping of settings,
                or a list of K such, pins what these members train on, in the episodes that follow too, until
                they are reset by a call without it.

        Returns:
            Observations of all, infos of those reset.

        Raises:
            ValueError: unknown options, a list that is not of K values, a seed below 0, a task that the spaces have
                no room for; and what `PruneEnv` raises, also a TypeError. Nothing has changed then.
            gymnasium.error.ResetNeeded: a member that is not in the mask has never been reset; likewise.
        """
        given = dict(options or {})
        mask, task = given.pop("reset_mask", np.ones(self.num_envs, np.bool_)), given.pop("task", None)
        if given:
            raise ValueError(f"reset options {sorted(given)} are not known; there are reset_mask and task")
        mask = np.asarray(mask)
        if mask.shape != (self.num_envs,) or mask.dtype != np.bool_ or not mask.any():
            raise ValueError(f"reset_mask is {mask}; it must be a bool array of {self.num_envs} with a True")
        for k in np.flatnonzero(~mask).tolist():
            if self._seen[k] is None:
                raise gym.error.ResetNeeded(f"member {k} has never been reset")
        seeds = _seeds(seed, self.num_envs)
        pins = [_of_member("task", task, k, self.num_envs) for k in range(self.num_envs)]
        members = np.flatnonzero(mask).tolist()
        for k in members:  # all are made before any is reset
            self._require_room(k, self._episodes[k].environment(pins[k]))
        infos: dict[str, Any] = {}
        for k in members:
            self._episodes[k].pin(pins[k])
            infos = self._add(infos, self._reset(k, seeds[k]), k)
        return self._observe(), infos

    def _require_room(self, k: int, env: PruneEnv) -> None:
        for name, needed, room in zip(("samples", "classes", "budget"), _needed(env), self._room, strict=True):
            if needed > room:
                raise ValueError(f"the task of member {k} has {name} {needed}; the spaces have room for {room}")

    def _reset(self, k: int, seed: int | None = None) -> dict[str, Any]:
        """Start member k's next episode; its info."""
        self._seen[k], info = self._episodes[k].reset(seed)
        self._done[k] = False
        return info

    def step(self, actions: Arrays) -> tuple[Arrays, NDArray, NDArray, NDArray, dict[str, Any]]:
        """Train every member once on what its row of `actions` selects; reset those that had finished.

        Raises:
            gymnasium.error.ResetNeeded: before the first `reset`.
            TypeError, ValueError: an action is not valid, see `selection.check`; nothing has changed then.
        """
        if any(seen is None for seen in self._seen):
            raise gym.error.ResetNeeded("there are no runs yet: call reset()")
        if not isinstance(actions, Mapping):
            raise TypeError(f"actions are a {type(actions).__name__}; they must be a dict of arrays (K, N)")
        for name, rows in actions.items():
            if np.shape(rows) != (self.num_envs, self._samples):
                raise ValueError(
                    f"actions[{name!r}] has shape {np.shape(rows)}; it must be ({self.num_envs}, {self._samples})"
                )
        members = np.flatnonzero(~self._done).tolist()
        checked = [self._check(k, actions) for k in members]  # all, before any is acted upon
        trainers = [self.envs[k].running for k in members]
        chosen = [trainer.select(action) for trainer, action in zip(trainers, checked, strict=True)]
        results = train_epochs(trainers, chosen)
        rewards = np.zeros(self.num_envs)
        terminated, truncated = np.zeros((2, self.num_envs), np.bool_)
        infos: dict[str, Any] = {}
        for k in np.flatnonzero(self._done).tolist():
            infos = self._add(infos, self._reset(k), k)
        for k, trainer, result in zip(members, trainers, results, strict=True):
            self._seen[k], rewards[k], terminated[k], _, info = self.envs[k].outcome(result)
            truncated[k] = trainer.step >= self.max_episode_steps
            infos = self._add(infos, info, k)
        self._done = terminated | truncated
        return self._observe(), rewards, terminated, truncated, infos

    def _add(self, infos: dict[str, Any], info: dict[str, np.generic], k: int) -> dict[str, Any]:
        """`infos` with those of member k, as arrays of the scalars' own dtypes."""
        return self._add_info(infos, {name: np.asarray(value) for name, value in info.items()}, k)

    def _check(self, k: int, actions: Arrays) -> Action:
        """Member k's row of `actions`; beyond its own samples nothing is looked at."""
        n = len(self.envs[k].train_data)
        try:
            return selection.check({name: np.asarray(rows)[k][:n] for name, rows in actions.items()}, n)
        except (TypeError, ValueError) as error:
            raise type(error)(f"member {k}: {error}") from error

    def _observe(self) -> Arrays:
        """All members' observations (K, …), as fresh arrays."""
        batch: Arrays = {}
        for name, space in self._space.items():
            fill = -1 if name == "label" else 0
            batch[name] = np.full((self.num_envs, *(space.shape or ())), fill, space.dtype)
            for row, seen in zip(batch[name], self._seen, strict=True):
                assert seen is not None
                row[: len(seen[name])] = seen[name]
        return batch

    def render(self) -> tuple[Any, ...]:
        """A frame a member, as `PruneEnv.render`."""
        return tuple(env.render() for env in self.envs)

    def close_extras(self, **kwargs: Any) -> None:
        """Let go of all runs."""
        for env in self.envs:
            env.close()


def _of_member(name: str, value: Any, k: int, count: int) -> Any:
    """Member k's share of a value for all, or of a list of `count`. Raises ValueError for another length."""
    if not isinstance(value, list | tuple):
        return value
    if len(value) != count:
        raise ValueError(f"{name} has {len(value)} values; it must be one for all, or a list of {count}")
    return value[k]


def _seeds(seed: int | Sequence[int | None] | None, count: int) -> list[int | None]:
    """Each member's own. Raises ValueError for one that is no whole number from 0 on."""
    seeds = [_of_member("seed", seed, k, count) for k in range(count)]
    for one in seeds:
        if one is not None and not (isinstance(one, int | np.integer) and one >= 0):
            raise ValueError(f"seed is {one!r}; it must be a whole number, 0 or more")
    steps = [0] * count if isinstance(seed, list | tuple) else range(count)
    return [None if one is None else int(one) + step for one, step in zip(seeds, steps, strict=True)]


def _needed(env: PruneEnv) -> tuple[int, int, float]:
    """What the spaces must have room for: samples, classes and budget."""
    return len(env.train_data), len(env.train_data.classes), env.budget
