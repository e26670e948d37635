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
        dataset, root, image_size: the images; see `PruneEnv`, as for all but `lr_factor`.
        train_size, label_noise, imbalance, duplicates, task_seed, val_rest: how its parts are made.
        model: the student.
        lr_factor: multiplies the rate tuned for full training at that budget and label noise.
        budget: full-epoch equivalents.
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
        """Keyword arguments of `PruneEnv`, all but a `root` that is None: images are where the environment has them."""
        settings = asdict(self)
        factor = settings.pop("lr_factor")
        if self.root is None:
            del settings["root"]
        rate = recipes.tuned(self.dataset, self.model, self.budget, self.label_noise, self.image_size).values["lr"]
        return {**settings, "lr": factor * rate}


@dataclass(frozen=True)
class TaskDistribution:
    """A grid of tasks, cut once for all into those for training, validation, and held out.

    What is cut is the grid without its budgets: a task that is held out is so at every budget, and the area under
    accuracy over log budget can be taken on it. The cut is a fixed permutation of the grid in which the shares of wrong
    labels and the sizes of images take turns: the three parts are disjoint, and listed by `training`, `validation` and
    `held_out`.

    Args:
        values: for each field of `Task`, the values it takes; fields left out have their default.
        validations: how many tasks, budgets apart, are for choosing a policy.
        held_outs: how many are for judging it.
        seed: of the cut.
        held_out_values: of the fields in which held-out tasks have other values, in one of them beside the budget none
            that the others have; without, or with other budgets alone, they are of the same grid, in combinations that
            the others do not have.

    Raises:
        ValueError: a field that tasks do not have, one without values, a grid too small to be cut, or held-out values
            that the other tasks have too.
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
        """Values that make held-out tasks a grid of their own; budgets do not: tasks are cut without them."""
        return {name: values for name, values in self.held_out_values.items() if name != "budget"}

    @property
    def _skipped(self) -> int:
        """Tasks of the grid that are held out."""
        return 0 if self._apart else self.held_outs

    @cached_property
    def _grid(self) -> list[Task]:
        return self._in_order(self.values)

    @cached_property
    def _held_out_grid(self) -> list[Task]:
        return self._in_order({**self.values, **self.held_out_values}) if self._apart else self._grid

    def _in_order(self, values: Mapping[str, tuple]) -> list[Task]:
        """All tasks with these values, at the first budget only, in the order of the cut."""
        names = [name for name in values if name != "budget"]
        tasks = [
            Task(**dict(zip(names, chosen, strict=True)), budget=values.get("budget", (Task().budget,))[0])
            for chosen in itertools.product(*(values[name] for name in names))
        ]
        drawn = [tasks[i] for i in np.random.default_rng(self.seed).permutation(len(tasks))]
        # by turns, so that every part has its share of each: what is best depends on these two most of all
        before: Counter[tuple[float, int | None]] = Counter()
        turns = []
        for task in drawn:
            kind = task.label_noise, task.image_size
            turns.append(before[kind])
            before[kind] += 1
        return [drawn[i] for i in np.argsort(turns, kind="stable")]

    @classmethod
    def named(cls, name: str) -> TaskDistribution:
        """A distribution of this project. Raises ValueError, listing the names, if there is none."""
        if name not in DISTRIBUTIONS:
            raise ValueError(f"there are no tasks called {name!r}; there are {', '.join(DISTRIBUTIONS)}")
        return cls(**DISTRIBUTIONS[name])

    def draw(self, rng: np.random.Generator) -> Task:
        """A training task, each equally likely."""
        return self.training[rng.integers(len(self.training))]

    @property
    def budgets(self) -> tuple[float, ...]:
        """Those of training and validation."""
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
    def samples(self) -> int:
        """The most training samples of any task."""
        return max(samples for samples, _ in self._extents)

    @cached_property
    def classes(self) -> int:
        """The most classes of any task."""
        return max(classes for _, classes in self._extents)

    @cached_property
    def _extents(self) -> list[tuple[int, int]]:
        """Samples and classes of the largest training part of each data set, in each grid."""
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
    """Grows with the number of training samples, in a grid."""
    return task.train_size or math.inf, -task.imbalance


DISTRIBUTIONS: dict[str, dict[str, Any]] = {
    # What is hard and clean is another regime than what is hard because its label is wrong, and what is best in one
    # loses in the other: so some digits have 3 or 4 pixels a side, which no student fits. Budgets below 4 tell little:
    # accuracies vary by six points with the seed there, twice as much as at 4. Many draws of the training
    # part: with one, policies learn what suits just those samples. What is held out has draws, students, budgets and a
    # size of images of its own, and rates that are best for full training.
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
    """The environment of each episode: of a drawn task, of one that is pinned, or always the same.

    Args:
        settings: keyword arguments of `PruneEnv`.
        tasks: what episodes draw from; its tasks' settings come before `settings`.
    """

    def __init__(self, settings: Mapping[str, Any], tasks: TaskDistribution | None = None):
        self._settings = dict(settings)
        self._tasks = tasks
        self._sets = None if tasks is None else _sets(tasks)
        self._pinned: dict[str, Any] | None = None
        self._draws = np.random.default_rng()
        self._current = {} if tasks is None else tasks.training[0].settings()  # until the first reset draws
        self.env = PruneEnv(**{**self._settings, **self._current})
        self._made = self._current, self.env  # the last one that was made

    def pin(self, task: Task | Mapping[str, Any] | None) -> None:
        """Let all episodes from the next on be of `task`, a mapping being settings that it changes; None: none."""
        self._pinned = self._wanted(task)

    def environment(self, task: Task | Mapping[str, Any] | None) -> PruneEnv:
        """That of the next episode if `task` is pinned, to look at; nothing has changed. Raises what it raises."""
        wanted = self._wanted(task)
        return self.env if wanted is None else self._make(wanted)

    def _wanted(self, task: Task | Mapping[str, Any] | None) -> dict[str, Any] | None:
        """Keyword arguments of `PruneEnv`. Raises ValueError for a `Task` of images that episodes are not of."""
        task = _task(task)
        if not isinstance(task, Task):
            return None if task is None else dict(task)
        sets = self._sets or {self._settings.get("dataset", Task().dataset)}
        if task.dataset not in sets:
            raise ValueError(f"task has dataset={task.dataset!r}; episodes here are of {', '.join(sorted(sets))}")
        return task.settings()

    def _make(self, wanted: dict[str, Any]) -> PruneEnv:
        """The environment with these settings, once for looking at it and using it."""
        if wanted == self._current:
            return self.env
        if wanted != self._made[0]:
            self._made = wanted, PruneEnv(**{**self._settings, **wanted})
        return self._made[1]

    def reset(self, seed: int | None = None) -> tuple[dict[str, NDArray], dict[str, Any]]:
        """Start the next episode; as `PruneEnv.reset`."""
        if seed is not None:
            self._draws = np.random.default_rng([seed, TASK_STREAM])
        wanted = self._pinned
        if wanted is None:
            wanted = {} if self._tasks is None else self._tasks.draw(self._draws).settings()
        if wanted != self._current:
            env = self._make(wanted)
            env.np_random = self.env.np_random  # seeds follow from the last one, as without tasks
            self.env, self._current = env, wanted
        return self.env.reset(seed=seed)


class TaskEnv(gym.Env[dict[str, NDArray], dict[str, NDArray]]):
    """A `PruneEnv` whose every episode is of another task; its spaces, too, are those of the episode.

    Policies need spaces that stay as they are: see `wrappers.SummaryEnv`, which makes them of this. What else
    is asked of it, as `trainer` or `recipe`, is what the episode's `PruneEnv` has.

    Args:
        tasks: what episodes draw from, with the generator that `reset` seeds; a name, or a distribution. Without,
            they are of `settings`, but for those whose task `reset` pins.
        render_mode: as for `PruneEnv`.
        settings: keyword arguments of `PruneEnv` that tasks do not set.

    Raises:
        ValueError: a name or a setting that cannot be.
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
        """That of this episode."""
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
            seed: of the run and of the draws of tasks.
            options: `task`, a `Task` or a mapping of settings, pins what is trained on in this episode.

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
        """As `PruneEnv.step`."""
        return self.env.step(action)

    def render(self) -> Any:
        """As `PruneEnv.render`."""
        return self.env.render()

    def close(self) -> None:
        """Let go of the run."""
        self.env.close()


def distribution(tasks: str | Mapping[str, Any] | TaskDistribution, settings: Mapping[str, Any]) -> TaskDistribution:
    """The distribution of this name or these arguments.

    Raises:
        ValueError: there is none; or `settings` has what tasks set, but for the data set, which an id brings, and
            which must be among theirs.
        TypeError: `tasks` is something else.
    """
    if isinstance(tasks, str):
        tasks = TaskDistribution.named(tasks)
    elif isinstance(tasks, Mapping):  # what the JSON of a spec makes of one
        tasks = TaskDistribution(**tasks)
    elif not isinstance(tasks, TaskDistribution):
        raise TypeError(f"tasks is {tasks!r}; it must be a TaskDistribution, or the name of one")
    theirs = {*(field.name for field in fields(Task)), "lr"} - {"dataset"}
    both = sorted(set(settings) & theirs)
    if both:
        raise ValueError(f"{', '.join(both)} cannot be given beside tasks, which set them")
    sets = _sets(tasks)
    wanted = settings.get("dataset", [])
    for dataset in [wanted] if isinstance(wanted, str) else wanted:  # of each member
        if dataset not in sets:
            raise ValueError(f"the tasks are of {', '.join(sorted(sets))}, not of {dataset}")
    return tasks


def _sets(tasks: TaskDistribution) -> set[str]:
    """Data sets of its tasks."""
    return {task.dataset for task in (*tasks.training, *tasks.validation, *tasks.held_out)}


def _task(task: Task | Mapping[str, Any] | None) -> Task | Mapping[str, Any] | None:
    """The same, but a `Task` where all fields of one are given. Raises TypeError for what is no task."""
    if not isinstance(task, Task | Mapping | None):
        raise TypeError(f"task is {task!r}; it must be a Task, or a mapping of settings")
    if isinstance(task, Mapping) and set(task) == {field.name for field in fields(Task)}:
        return Task(**dict(task))  # what asdict() makes of one
    return task
