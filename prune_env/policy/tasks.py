"""Tasks: what varies between training runs, in distributions whose held-out part is never drawn for training."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cached_property
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from prune_env import data
from prune_env.env import PruneEnv
from prune_env.students import recipes

TASK_STREAM = 6  # of random numbers: the trainer has 0 to 3, agents 4, rules 5


@dataclass(frozen=True, kw_only=True)
class Task:
    """One training problem.

    Args:
        lr_factor: multiplies the rate tuned for full training at this budget and share of wrong labels.
        others: as for `PruneEnv`.
    """

    dataset: str = "digits"
    train_size: int | None = None
    label_noise: float = 0.0
    imbalance: float = 1.0
    duplicates: float = 0.0
    task_seed: int = 0
    val_rest: bool = False
    model: str = "mlp"
    lr_factor: float = 1.0
    budget: float = 10.0
    root: str | None = None
    image_size: int | None = None

    def settings(self) -> dict[str, Any]:
        """Return keyword arguments of `PruneEnv`. A `root` of None is left out: an environment may set its own."""
        settings = asdict(self)
        factor = settings.pop("lr_factor")
        if self.root is None:
            del settings["root"]
        rate = recipes.tuned(self.dataset, self.model, self.budget, self.label_noise, self.image_size).values["lr"]
        return {**settings, "lr": factor * rate}


@dataclass(frozen=True)
class TaskDistribution:
    """A grid of tasks, cut into disjoint parts: `training`, `validation` and `held_out`.

    The grid is cut without its budgets, so a held-out task is held out at every budget. The cut is a fixed permutation
    in which the shares of wrong labels and the sizes of images take turns.

    Args:
        values: for each field of `Task`, the values it takes; fields left out have their default.
        validations: number of tasks, not counting budgets, for choosing a policy.
        held_outs: number of tasks, not counting budgets, for judging it.
        seed: of the cut.
        held_out_values: other values of fields in held-out tasks. At least one field beside the budget must share no
            value with the other tasks. If this is empty, or has budgets only, held-out tasks are combinations of
            `values` that the other parts do not have.

    Raises:
        ValueError: an unknown field, a field without values, a grid that is too small, or held-out values that other
            tasks have too.
    """

    values: Mapping[str, tuple]
    validations: int = 8
    held_outs: int = 8
    seed: int = 0
    held_out_values: Mapping[str, tuple] = field(default_factory=dict)

    def __post_init__(self) -> None:
        known = {field.name for field in fields(Task)}
        for name, values in (*self.values.items(), *self.held_out_values.items()):
            if name not in known:
                raise ValueError(f"tasks have no {name!r}; there are {', '.join(sorted(known))}")
            if not isinstance(values, tuple | list) or not values or len(set(values)) < len(values):
                raise ValueError(f"the values of {name!r} are {values}; they must be a tuple of distinct ones")
        if min(self.validations, self.held_outs) < 0:
            raise ValueError(f"validations={self.validations}, held_outs={self.held_outs}; they must be 0 or more")
        if len(self._grid) <= self.validations + self._skipped or len(self._held_out_grid) < self.held_outs:
            raise ValueError(
                f"the grid has {len(self._grid)} tasks, budgets apart: too few for {self.validations} to validate "
                f"and {self.held_outs} to hold out"
            )
        others = {name: self.values.get(name, (getattr(Task(), name),)) for name in self._apart}
        if others and all(set(values) & set(others[name]) for name, values in self._apart.items()):
            raise ValueError(
                f"held_out_values={self.held_out_values}: in one field beside the budget none may be among `values`"
            )

    @property
    def _apart(self) -> dict[str, tuple]:
        """The values that give held-out tasks their own grid. Budgets do not, since the grid is cut without them."""
        return {name: values for name, values in self.held_out_values.items() if name != "budget"}

    @property
    def _skipped(self) -> int:
        """Number of tasks of the first grid that are held out."""
        return 0 if self._apart else self.held_outs

    @cached_property
    def _grid(self) -> list[Task]:
        return self._in_order(self.values)

    @cached_property
    def _held_out_grid(self) -> list[Task]:
        return self._in_order({**self.values, **self.held_out_values}) if self._apart else self._grid

    def _in_order(self, values: Mapping[str, tuple]) -> list[Task]:
        """List all tasks with these values, at the first budget only, in the order of the cut."""
        names = [name for name in values if name != "budget"]
        tasks = [
            Task(**dict(zip(names, chosen, strict=True)), budget=values.get("budget", (Task().budget,))[0])
            for chosen in itertools.product(*(values[name] for name in names))
        ]
        drawn = [tasks[i] for i in np.random.default_rng(self.seed).permutation(len(tasks))]
        # the best policy depends most on these two, so every part gets its share of each
        counts: Counter[tuple[float, int | None]] = Counter()
        turns = []
        for task in drawn:
            kind = task.label_noise, task.image_size
            turns.append(counts[kind])
            counts[kind] += 1
        return [drawn[i] for i in np.argsort(turns, kind="stable")]

    @classmethod
    def named(cls, name: str) -> TaskDistribution:
        """Return a distribution of this project. Raises ValueError, listing the names, if there is none."""
        if name not in DISTRIBUTIONS:
            raise ValueError(f"there are no tasks called {name!r}; there are {', '.join(DISTRIBUTIONS)}")
        return cls(**DISTRIBUTIONS[name])

    def draw(self, rng: np.random.Generator) -> Task:
        """Draw a training task, each equally likely."""
        return self.training[rng.integers(len(self.training))]

    @property
    def budgets(self) -> tuple[float, ...]:
        """Budgets of training and validation tasks."""
        return tuple(self.values.get("budget", (Task().budget,)))

    @property
    def held_out_budgets(self) -> tuple[float, ...]:
        return tuple(self.held_out_values.get("budget", self.budgets))

    @cached_property
    def held_out(self) -> tuple[Task, ...]:
        return _at(self._held_out_grid[: self.held_outs], self.held_out_budgets)

    @cached_property
    def validation(self) -> tuple[Task, ...]:
        return _at(self._grid[self._skipped :][: self.validations], self.budgets)

    @cached_property
    def training(self) -> tuple[Task, ...]:
        return _at(self._grid[self._skipped + self.validations :], self.budgets)

    @cached_property
    def datasets(self) -> frozenset[str]:
        """Data sets of all tasks."""
        return frozenset(task.dataset for task in (*self.training, *self.validation, *self.held_out))

    @cached_property
    def samples(self) -> int:
        """The largest number of training samples of any task."""
        return max(samples for samples, _ in self._extents)

    @cached_property
    def classes(self) -> int:
        """The largest number of classes of any task."""
        return max(classes for _, classes in self._extents)

    def __reduce__(self):
        """Pickle the arguments alone: the lists of tasks are long, and made from them anew."""
        return type(self), tuple(getattr(self, field.name) for field in fields(self))

    @cached_property
    def _extents(self) -> list[tuple[int, int]]:
        """Samples and classes of the largest training part of each data set in each grid."""
        largest: dict[tuple, Task] = {}
        for which, grid in enumerate((self._grid, self._held_out_grid) if self._apart else (self._grid,)):
            for task in grid:
                key = which, task.dataset, task.root, task.image_size
                if key not in largest or _extent(task) > _extent(largest[key]):
                    largest[key] = task
        sizing = ("dataset", "root", "image_size", "train_size", "imbalance")
        parts = [data.load(**{name: getattr(task, name) for name in sizing})[0] for task in largest.values()]
        return [(len(train), len(train.classes)) for train in parts]


def _at(tasks: Sequence[Task], budgets: Sequence[float]) -> tuple[Task, ...]:
    return tuple(replace(task, budget=budget) for task in tasks for budget in budgets)


def _extent(task: Task) -> tuple[float, float]:
    """Return what grows with the number of training samples, within a grid."""
    return task.train_size or math.inf, -task.imbalance


DISTRIBUTIONS: dict[str, dict[str, Any]] = {
    # Shrunken digits (3 or 4 pixels a side) are hard and clean: no student fits them. They are here since the best rule
    # for hard samples loses where samples are hard because their labels are wrong. Budgets below 4 are left out: there
    # accuracies vary by six points with the seed. With one draw of the training part (`task_seed`) policies learn what
    # suits just those samples, hence sixteen. Held-out tasks have other draws, students, budgets and sizes of images.
    "digits": {
        "values": {
            "image_size": (8, 4, 3),
            "train_size": (400,),
            "label_noise": (0.0, 0.1, 0.2, 0.35),
            "imbalance": (1.0, 3.0, 10.0),
            "duplicates": (0.0, 0.3),
            "model": ("mlp:16", "mlp:64"),
            "lr_factor": (0.7, 1.0, 1.4),
            "budget": (4.0, 8.0, 16.0),
            "val_rest": (True,),
            "task_seed": tuple(range(16)),
        },
        "validations": 12,
        "held_outs": 12,
        "held_out_values": {
            "image_size": (8, 5, 3),
            "model": ("mlp:24", "mlp:48"),
            "lr_factor": (1.0,),
            "budget": (3.0, 6.0, 12.0),
            "task_seed": tuple(range(16, 24)),
        },
    },
}


class Episodes:
    """Makes the environment of each episode: of a drawn task, of a pinned one, or always the same.

    Args:
        settings: keyword arguments of `PruneEnv`.
        tasks: what episodes are drawn from; a task's settings come before `settings`.

    Attributes:
        env: the environment of this episode.
    """

    def __init__(self, settings: Mapping[str, Any], tasks: TaskDistribution | None = None):
        self._settings = dict(settings)
        self._tasks = tasks
        self._datasets = {self._settings.get("dataset", Task().dataset)} if tasks is None else tasks.datasets
        self._pinned: Task | dict[str, Any] | None = None
        self._draws = np.random.default_rng()
        self._current = {} if tasks is None else tasks.training[0]  # until the first reset draws
        self.env = self._build(self._current)
        self._built = self._current, self.env  # the last one that was built

    def pin(self, task: Task | Mapping[str, Any] | None) -> None:
        """Let all following episodes have this task, or the settings that it changes. None lets them be drawn."""
        self._pinned = self._checked(task)

    def environment(self, task: Task | Mapping[str, Any] | None) -> PruneEnv:
        """Return the environment that pinning `task` would use, without pinning it."""
        wanted = self._checked(task)
        return self.env if wanted is None else self._environment(wanted)

    def reset(self, seed: int | None = None) -> tuple[dict[str, NDArray], dict[str, Any]]:
        """Start the next episode; see `PruneEnv.reset`."""
        if seed is not None:
            self._draws = np.random.default_rng([seed, TASK_STREAM])
        wanted = self._pinned
        if wanted is None:
            wanted = {} if self._tasks is None else self._tasks.draw(self._draws)
        env = self._environment(wanted)
        if env is not self.env:
            env.np_random = self.env.np_random  # seeds follow from the last one, as without tasks
            self.env, self._current = env, wanted
        return self.env.reset(seed=seed)

    def _checked(self, task: Task | Mapping[str, Any] | None) -> Task | dict[str, Any] | None:
        """Return a task or settings. Raises TypeError for anything else, ValueError for a task of other images."""
        if not isinstance(task, Task | Mapping | None):
            raise TypeError(f"task is {task!r}; it must be a Task, or a mapping of settings")
        if isinstance(task, Mapping) and set(task) == {field.name for field in fields(Task)}:
            task = Task(**dict(task))  # as asdict() makes it
        if not isinstance(task, Task):
            return None if task is None else dict(task)
        if task.dataset not in self._datasets:
            sets = ", ".join(sorted(self._datasets))
            raise ValueError(f"task has dataset={task.dataset!r}; episodes here are of {sets}")
        return task

    def _environment(self, wanted: Task | dict[str, Any]) -> PruneEnv:
        """Return the environment of this task: the present one, the one that was looked at, or a new one."""
        if wanted == self._current:
            return self.env
        if wanted != self._built[0]:
            self._built = wanted, self._build(wanted)
        return self._built[1]

    def _build(self, wanted: Task | dict[str, Any]) -> PruneEnv:
        return PruneEnv(**{**self._settings, **(wanted.settings() if isinstance(wanted, Task) else wanted)})


class TaskEnv(gym.Env[dict[str, NDArray], dict[str, NDArray]]):
    """A `PruneEnv` with another task in every episode. Its spaces are those of the episode.

    Policies need spaces that stay as they are; `wrappers.SummaryEnv` has such. Other attributes, such as `trainer` or
    `recipe`, are those of the episode's `PruneEnv`.

    Args:
        tasks: a distribution, its name or its arguments; episodes draw from it with the generator that `reset` seeds.
            Without it every episode has `settings`, except where `reset` pins a task.
        render_mode: as for `PruneEnv`.
        settings: keyword arguments of `PruneEnv` that tasks do not set.

    Raises:
        ValueError: an unknown name, or a setting that tasks set.
    """

    metadata = PruneEnv.metadata

    def __init__(
        self,
        tasks: str | Mapping[str, Any] | TaskDistribution | None = None,
        *,
        render_mode: str | None = None,
        **settings: Any,
    ):
        self.tasks = None if tasks is None else distribution(tasks, settings)
        self.render_mode = render_mode
        self._episodes = Episodes({**settings, "render_mode": render_mode}, self.tasks)
        self._show()

    @property
    def env(self) -> PruneEnv:
        """The environment of this episode."""
        return self._episodes.env

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):  # also while this is being copied, and has no episodes yet
            raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")
        return getattr(self.env, name)

    def _show(self) -> None:
        self.observation_space, self.action_space = self.env.observation_space, self.env.action_space

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, NDArray], dict[str, Any]]:
        """Start the next episode.

        Args:
            seed: seeds the run and the draws of tasks.
            options: `task`, a `Task` or a mapping of settings, pins the task of this episode.

        Raises:
            ValueError: other options.
        """
        given = dict(options or {})
        task = given.pop("task", None)
        if given:
            raise ValueError(f"reset options {sorted(given)} are not known; there is task")
        self._episodes.pin(task)
        super().reset(seed=seed)
        observation, info = self._episodes.reset(seed)
        self._show()
        return observation, info

    def step(self, action: dict[str, NDArray]) -> tuple[dict[str, NDArray], float, bool, bool, dict[str, Any]]:
        """Train once; see `PruneEnv.step`."""
        return self.env.step(action)

    def render(self) -> Any:
        """Draw the run; see `PruneEnv.render`."""
        return self.env.render()

    def close(self) -> None:
        """Let go of the run."""
        self.env.close()


def distribution(tasks: str | Mapping[str, Any] | TaskDistribution, settings: Mapping[str, Any]) -> TaskDistribution:
    """Return the distribution of this name, or with these arguments.

    Raises:
        ValueError: there is none, or `settings` has something that tasks set. It may have the data set, since an id
            sets it, but the tasks must have it too.
        TypeError: `tasks` is something else.
    """
    if isinstance(tasks, str):
        tasks = TaskDistribution.named(tasks)
    elif isinstance(tasks, Mapping):  # what the JSON of a spec makes of one
        tasks = TaskDistribution(**tasks)
    elif not isinstance(tasks, TaskDistribution):
        raise TypeError(f"tasks is {tasks!r}; it must be a TaskDistribution, or the name of one")
    both = sorted(set(settings) & ({*(field.name for field in fields(Task)), "lr"} - {"dataset"}))
    if both:
        raise ValueError(f"{', '.join(both)} cannot be given beside tasks, which set them")
    wanted = settings.get("dataset", [])
    for dataset in [wanted] if isinstance(wanted, str) else wanted:  # one for each member of a vector env
        if dataset not in tasks.datasets:
            raise ValueError(f"the tasks are of {', '.join(sorted(tasks.datasets))}, not of {dataset}")
    return tasks
