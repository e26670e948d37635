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
from prune_env.policy.tasks import TaskEnv, Tasks, distribution
from prune_env.selection import Action
from prune_env.students.batched_mlp import train_epochs

Arrays = dict[str, NDArray]
ROOM = ("samples", "classes", "budget", "references")  # what the spaces have room for, the last 0 or 1
NONE = np.empty(0, np.float32)  # what a member observes of a reference that it does not have


class PruneVectorEnv(gym.vector.VectorEnv[Arrays, Arrays, NDArray]):
    """K training runs, stepped together: `gym.make_vec("prune_env/Digits-v0", num_envs=64)`.

    Each member is what a `PruneEnv` of the same settings and seed is; see there for spaces, rewards and info.
    Fully connected students of one depth train in batched matrix products, others in turn. A member equals a `PruneEnv`
    with the same actions up to rounding, which training amplifies. Padding is charged to nobody. A member that has
    finished is reset by the next step, whatever its action (NEXT_STEP).

    Members may differ in everything: a list or tuple of K values gives each its own, as in
    `budget=[3, 6], label_noise=[0.0, 0.2]`. Where they differ in the number of samples, N is the largest: a member
    with fewer has the label -1 and zeros for the rest, and what an action says there is ignored. The space always
    has room for that label, since a task of fewer samples can be pinned. If a member has a reference, all observe one:
    it is 0 where there is none.

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
        tasks: str | Tasks | Mapping[str, Any] | None = None,
        max_episode_steps: int | None = None,
        render_mode: str | None = None,
        **settings: Any,
    ):
        if max_episode_steps in (None, -1):  # -1 is Gymnasium's word for no limit
            self.max_episode_steps = math.inf
        elif (limit := whole("max_episode_steps", max_episode_steps)) < 1:
            raise ValueError(f"max_episode_steps is {limit}; it must be at least 1")
        else:
            self.max_episode_steps = limit
        if num_envs < 1:
            raise ValueError(f"num_envs is {num_envs}; it must be at least 1")
        self.num_envs = num_envs
        self.render_mode = render_mode
        self.tasks = None if tasks is None else distribution(tasks)
        own = {name: _per_member(name, value, num_envs) for name, value in settings.items()}
        self._members = [
            TaskEnv(self.tasks, render_mode=render_mode, **{name: values[k] for name, values in own.items()})
            for k in range(num_envs)
        ]
        rooms = [_needed(env) for env in self.envs] + ([] if self.tasks is None else [self.tasks.room])
        self._room = samples, classes, budget, references = tuple(map(max, zip(*rooms, strict=True)))
        self.single_action_space = actions(samples)
        self.single_observation_space = seen = observations(
            samples, classes, budget, first_label=-1, reference=references > 0
        )
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self._lengths = {name: math.prod(space.shape or ()) for name, space in seen.items()}
        self._pins: list[Any] = [None] * num_envs  # what each member trains on until a reset without a task
        self._seen: list[Arrays] = [{}] * num_envs  # each member's last observation; empty before its first reset
        self._done = np.zeros(num_envs, np.bool_)

    @property
    def envs(self) -> list[PruneEnv]:
        """The members, as they are in this episode."""
        return [member.env for member in self._members]

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
            if not self._seen[k]:
                raise gym.error.ResetNeeded(f"member {k} has never been reset")
        seeds = _seeds(seed, self.num_envs)
        pins = _per_member("task", task, self.num_envs)
        members = np.flatnonzero(mask).tolist()
        for k in members:  # all environments are made before any is reset
            needed = self._room if pins[k] is None else _needed(self._members[k].environment(pins[k]))
            for name, least, room in zip(ROOM, needed, self._room, strict=True):
                if least > room:
                    raise ValueError(f"the task of member {k} has {name} {least}; the spaces have room for {room}")
        infos = {}
        for k in members:
            self._pins[k] = pins[k]
            infos[k] = self._reset(k, seeds[k])
        return self._observe(), self._collect(infos)

    def _reset(self, k: int, seed: int | None = None) -> dict[str, Any]:
        """Start member k's next episode; return its info."""
        self._seen[k], info = self._members[k].reset(seed=seed, options={"task": self._pins[k]})
        self._done[k] = False
        return info

    def step(self, actions: Arrays) -> tuple[Arrays, NDArray, NDArray, NDArray, dict[str, Any]]:
        """Train every member once on what its row of `actions` selects; reset those that had finished.

        Raises:
            gymnasium.error.ResetNeeded: before the first `reset`.
            TypeError, ValueError: an action is not valid, see `selection.check`; nothing has changed then.
        """
        if not all(self._seen):
            raise gym.error.ResetNeeded("there are no runs yet: call reset()")
        members = np.flatnonzero(~self._done).tolist()
        checked = self._checked(actions, members)  # all, before any is acted upon
        envs = [self._members[k].env for k in members]
        trainers = [env.running for env in envs]
        chosen = [trainer.select(action) for trainer, action in zip(trainers, checked, strict=True)]
        results = train_epochs(trainers, chosen)
        infos = {k: self._reset(k) for k in np.flatnonzero(self._done).tolist()}
        rewards = np.zeros(self.num_envs)
        terminated, truncated = np.zeros((2, self.num_envs), np.bool_)
        for k, env, result in zip(members, envs, results, strict=True):
            self._seen[k], rewards[k], terminated[k], _, infos[k] = env.outcome(result)
            truncated[k] = infos[k]["step"] >= self.max_episode_steps
        self._done = terminated | truncated
        return self._observe(), rewards, terminated, truncated, self._collect(infos)

    def _checked(self, actions: Arrays, members: list[int]) -> list[Action]:
        """Return the rows of `members`, checked. A row is looked at as far as its member has samples."""
        if not isinstance(actions, Mapping):
            raise TypeError(f"actions are a {type(actions).__name__}; they must be a dict of arrays (K, N)")
        shape = self.num_envs, self._lengths["label"]
        for name, rows in actions.items():
            if np.shape(rows) != shape:
                raise ValueError(f"actions[{name!r}] has shape {np.shape(rows)}; it must be {shape}")
        sizes = [len(self._members[k].env.train_data) for k in members]
        looked_at = np.zeros(shape, np.bool_)
        for k, n in zip(members, sizes, strict=True):
            looked_at[k, :n] = True
        try:  # all rows as one long one takes a fifth of the time
            flat = {name: np.where(looked_at, rows, 0).ravel() for name, rows in actions.items()}
            checked = {name: rows.reshape(shape) for name, rows in selection.check(flat, looked_at.size).items()}
        except (TypeError, ValueError):
            return [_check_row(actions, k, n) for k, n in zip(members, sizes, strict=True)]
        return [{name: rows[k, :n] for name, rows in checked.items()} for k, n in zip(members, sizes, strict=True)]

    def _observe(self) -> Arrays:
        """Return all members' observations (K, …), as fresh arrays."""
        return {
            name: np.array([_padded(seen.get(name, NONE), length, -1 if name == "label" else 0) for seen in self._seen])
            for name, length in self._lengths.items()
        }

    def _collect(self, infos: Mapping[int, Mapping[str, Any]]) -> dict[str, Any]:
        """Return the infos of some members as arrays (K,), and beside each name a mask `_name` of these members."""
        members = list(infos)
        given = np.zeros(self.num_envs, np.bool_)
        given[members] = True
        collected: dict[str, Any] = {}
        for name, first in infos[members[0]].items():
            collected[name] = np.zeros(self.num_envs, first.dtype)
            collected[name][members] = [info[name] for info in infos.values()]
            collected[f"_{name}"] = given.copy()
        return collected

    def render(self) -> tuple[Any, ...]:
        """Draw a frame a member, as `PruneEnv.render`."""
        return tuple(env.render() for env in self.envs)

    def close_extras(self, **kwargs: Any) -> None:
        """Let go of all runs."""
        for env in self.envs:
            env.close()


def _per_member(name: str, value: Any, count: int) -> Sequence[Any]:
    """Return a list of `count` values, or a single value `count` times. Raises ValueError for another length."""
    if not isinstance(value, list | tuple):
        return [value] * count
    if len(value) != count:
        raise ValueError(f"{name} has {len(value)} values; it must be one for all, or a list of {count}")
    return value


def _seeds(seed: int | Sequence[int | None] | None, count: int) -> list[int | None]:
    """Return each member's seed. Raises ValueError for one that is no whole number from 0 on."""
    seeds = _per_member("seed", seed, count)
    for one in seeds:
        if one is not None and not (isinstance(one, int | np.integer) and one >= 0):
            raise ValueError(f"seed is {one!r}; it must be a whole number, 0 or more")
    steps = [0] * count if isinstance(seed, list | tuple) else range(count)
    return [None if one is None else int(one) + step for one, step in zip(seeds, steps, strict=True)]


def _needed(env: PruneEnv) -> tuple[int, int, float, int]:
    """Return what the spaces must have room for, see ROOM."""
    train = env.train_data
    return len(train), len(train.classes), env.budget, int(train.reference is not None)


def _check_row(actions: Arrays, k: int, n: int) -> Action:
    """Return member k's row, checked alone, so that an error names the member and the sample."""
    try:
        return selection.check({name: np.asarray(rows)[k][:n] for name, rows in actions.items()}, n)
    except (TypeError, ValueError) as error:
        raise type(error)(f"member {k}: {error}") from error


def _padded(values: NDArray, length: int, fill: int) -> NDArray:
    missing = length - len(values)
    return np.pad(values, (0, missing), constant_values=fill) if missing else values
