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

from prune_env import checks, data
from prune_env.data.task import VARIANT, Variant
from prune_env.env import PruneEnv
from prune_env.students import recipes

TASK_STREAM = 6  # of random numbers: the trainer has 0 to 3, agents 4, rules 5


@dataclass(frozen=True, kw_only=True)
class Task(Variant):
    """One training problem: a variant of a data set, a student and a budget. See `PruneEnv` for the fields."""

    dataset: str = "digits"
    model: str = "mlp"
    lr_factor: float = 1.0
    """Factor on the rate tuned for full training at this budget, share of wrong labels and imbalance."""
    budget: float = 10.0
    root: str | None = None
    image_size: int | None = None

    def __post_init__(self) -> None:
        """Check nothing. A distribution makes thousands of tasks, and `PruneEnv` checks those that are trained on."""

    def settings(self) -> dict[str, Any]:
        """Return keyword arguments of `PruneEnv`. A `root` of None is left out: an environment may set its own."""
        settings = asdict(self)
        factor = settings.pop("lr_factor")
        if self.root is None:
            del settings["root"]
        noise, size = self.label_noise, self.image_size
        best = recipes.tuned(self.dataset, self.model, self.budget, noise, size, imbalance=self.imbalance)
        return {**settings, "lr": factor * best.values["lr"]}


TASK_FIELDS = tuple(field.name for field in fields(Task))


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
        ValueError, TypeError: an unknown field, a field without values or with a value that no task can have, a grid
            that is too small, or held-out values that other tasks have too.
    """

    values: Mapping[str, tuple]
    validations: int = 8
    held_outs: int = 8
    seed: int = 0
    held_out_values: Mapping[str, tuple] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, values in (*self.values.items(), *self.held_out_values.items()):
            if name not in TASK_FIELDS:
                raise ValueError(f"tasks have no {name!r}; there are {', '.join(sorted(TASK_FIELDS))}")
            if not isinstance(values, tuple | list) or not values or len(set(values)) < len(values):
                raise ValueError(f"the values of {name!r} are {values}; they must be a tuple of distinct ones")
            for value in values:  # one at a time: a grid has thousands of tasks
                _check(name, value)
        if min(self.validations, self.held_outs) < 0:
            raise ValueError(f"validations={self.validations}, held_outs={self.held_outs}; they must be 0 or more")
        held_out, _, training = self._cut
        if not training or len(held_out) < self.held_outs:
            count = math.prod(len(values) for name, values in self.values.items() if name != "budget")
            raise ValueError(
                f"the grid has {count} tasks, budgets apart: too few for {self.validations} to validate "
                f"and {self.held_outs} to hold out"
            )
        own = self._own_values
        if own and all(set(values) & set(self._values_of(name)) for name, values in own.items()):
            raise ValueError(
                f"held_out_values={self.held_out_values}: in one field beside the budget none may be among `values`"
            )

    def _values_of(self, name: str) -> tuple:
        """Return the values of a field in training and validation tasks."""
        return tuple(self.values.get(name, (getattr(Task(), name),)))

    @property
    def _own_values(self) -> dict[str, tuple]:
        """Values that give held-out tasks their own grid. Budgets do not, since the grid is cut without them."""
        return {name: values for name, values in self.held_out_values.items() if name != "budget"}

    @cached_property
    def _cut(self) -> tuple[list[Task], list[Task], list[Task]]:
        """Held-out, validation and training tasks, each at one budget only."""
        grid = self._in_order(self.values)
        held_out = self._in_order({**self.values, **self._own_values}) if self._own_values else grid
        rest = grid if self._own_values else grid[self.held_outs :]
        return held_out[: self.held_outs], rest[: self.validations], rest[self.validations :]

    def _in_order(self, values: Mapping[str, tuple]) -> list[Task]:
        """List all tasks with these values, at one budget only, in the order of the cut."""
        names = [name for name in values if name != "budget"]
        tasks = [
            Task(**dict(zip(names, chosen, strict=True))) for chosen in itertools.product(*(values[n] for n in names))
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
            raise ValueError(f"there are no tasks called {name!r}; there are {', '.join((*DISTRIBUTIONS, *MIXTURES))}")
        return cls(**DISTRIBUTIONS[name])

    @property
    def parts(self) -> tuple[TaskDistribution, ...]:
        """This distribution alone; a `TaskMixture` has several."""
        return (self,)

    def draw(self, rng: np.random.Generator) -> Task:
        """Draw a training task, each equally likely."""
        return self.training[rng.integers(len(self.training))]

    @property
    def budgets(self) -> tuple[float, ...]:
        """Budgets of training and validation tasks."""
        return self._values_of("budget")

    @property
    def held_out_budgets(self) -> tuple[float, ...]:
        return tuple(self.held_out_values.get("budget", self.budgets))

    @cached_property
    def held_out(self) -> tuple[Task, ...]:
        return _at(self._cut[0], self.held_out_budgets)

    @cached_property
    def validation(self) -> tuple[Task, ...]:
        return _at(self._cut[1], self.budgets)

    @cached_property
    def training(self) -> tuple[Task, ...]:
        return _at(self._cut[2], self.budgets)

    @property
    def datasets(self) -> set[str]:
        """Data sets of all tasks."""
        return {*self._values_of("dataset"), *self.held_out_values.get("dataset", ())}

    @cached_property
    def room(self) -> tuple[int, int, float, int]:
        """The largest number of samples, of classes and budget of any task, and 1 if one has a reference, else 0."""
        tasks = list(itertools.chain(*self._cut))
        largest: dict[tuple, Task] = {}  # of each training split, the one that leaves out the fewest samples
        for task in sorted(tasks, key=lambda task: (task.train_size or math.inf, -task.imbalance)):
            largest[task.dataset, task.root, task.image_size] = task
        sizing = ("dataset", "root", "image_size", "train_size", "imbalance")
        loaded = [data.load(**{name: getattr(task, name) for name in sizing})[0] for task in largest.values()]
        samples = max(*map(len, loaded), *(task.train_size or 0 for task in tasks))
        classes, references = max(len(train.classes) for train in loaded), any(task.reference for task in tasks)
        return samples, classes, max(*self.budgets, *self.held_out_budgets), int(references)

    def __reduce__(self):
        """Pickle the arguments alone: the lists of tasks are long, and made from them anew."""
        return type(self), tuple(getattr(self, field.name) for field in fields(self))


@dataclass(frozen=True)
class TaskMixture:
    """Several distributions as one. A training task is drawn from each equally often, however many tasks it has."""

    parts: tuple[TaskDistribution, ...]

    def draw(self, rng: np.random.Generator) -> Task:
        """Draw a training task: a part, then a task of this part, each equally likely."""
        return self.parts[rng.integers(len(self.parts))].draw(rng)

    @property
    def budgets(self) -> tuple[float, ...]:
        """Budgets of training and validation tasks, each once."""
        return tuple(sorted({budget for part in self.parts for budget in part.budgets}))

    @property
    def held_out_budgets(self) -> tuple[float, ...]:
        return tuple(sorted({budget for part in self.parts for budget in part.held_out_budgets}))

    @cached_property
    def held_out(self) -> tuple[Task, ...]:
        return tuple(itertools.chain(*(part.held_out for part in self.parts)))

    @cached_property
    def validation(self) -> tuple[Task, ...]:
        return tuple(itertools.chain(*(part.validation for part in self.parts)))

    @cached_property
    def training(self) -> tuple[Task, ...]:
        return tuple(itertools.chain(*(part.training for part in self.parts)))

    @property
    def datasets(self) -> set[str]:
        """Data sets of all tasks."""
        return set().union(*(part.datasets for part in self.parts))

    @cached_property
    def room(self) -> tuple[int, int, float, int]:
        """The largest number of samples, of classes and budget of any task, and 1 if one has a reference, else 0."""
        samples, classes, budget, references = map(max, zip(*(part.room for part in self.parts), strict=True))
        return samples, classes, budget, references

    def __reduce__(self):
        """Pickle the arguments alone, as `TaskDistribution` does."""
        return type(self), (self.parts,)


Tasks = TaskDistribution | TaskMixture


def _at(tasks: Sequence[Task], budgets: Sequence[float]) -> tuple[Task, ...]:
    return tuple(replace(task, budget=budget) for task in tasks for budget in budgets)


_FOLDERS: dict[str, tuple] = {  # of images: kinds of trouble, also in combination
    "dataset": ("imagefolder",),
    "train_size": (2000,),
    "val_size": (1000,),
    "label_noise": (0.0, 0.1, 0.2, 0.4),
    "imbalance": (1.0, 5.0, 10.0, 20.0),
    "duplicates": (0.0, 0.3),
    "task_seed": tuple(range(16)),
}
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
    # Folders of images, by default the one of the environment. These students and sizes order rules most as a convnet
    # on thousands of images of 32 pixels does, for their seconds (docs/learning.md). Validation images are a thousand:
    # to predict these takes a sixth of the time of an epoch.
    "natural": {
        "values": {
            **_FOLDERS,
            "image_size": (8,),
            "model": ("mlp:64",),
            "lr_factor": (0.7, 1.0, 1.4),
            "budget": (4.0, 8.0, 16.0),
        },
        "validations": 12,
        "held_outs": 12,
        "held_out_values": {
            "model": ("mlp:48", "mlp:96"),
            "lr_factor": (1.0,),
            "budget": (3.0, 6.0, 12.0),
            "task_seed": tuple(range(16, 24)),
        },
    },
    # An episode takes some thirty times as long: these students train one after the other.
    "convnets": {
        "values": {
            **_FOLDERS,
            "image_size": (16,),
            "model": ("convnet:8-16-16",),
            "lr_factor": (0.7, 1.0, 1.4),
            "budget": (4.0, 8.0),
        },
        "validations": 4,
        "held_outs": 4,
        "held_out_values": {"lr_factor": (1.0,), "task_seed": tuple(range(16, 24))},
    },
}
MIXTURES = {"mixed": "digits+natural"}


class TaskEnv(gym.Env[Any, Any]):
    """A `PruneEnv` with another task in every episode.

    Its spaces, `trainer`, `recipe` and other attributes are the ones of `env`, the episode's `PruneEnv`. Policies need
    spaces that stay as they are; `wrappers.SummaryEnv` has such.

    Args:
        tasks: a distribution, its name or its arguments; episodes draw from it with the generator that `reset` seeds.
            Without it every episode has `settings`, except where `reset` pins a task.
        settings: keyword arguments of `PruneEnv` that tasks do not set.

    Raises:
        ValueError: an unknown name, or a setting that tasks set.
    """

    metadata = PruneEnv.metadata

    def __init__(self, tasks: str | Mapping[str, Any] | Tasks | None = None, **settings: Any):
        self.tasks = None if tasks is None else distribution(tasks)
        self._settings = settings
        dataset = settings.get("dataset", Task().dataset)
        self._datasets = {dataset}
        if self.tasks is not None:
            both = sorted(set(settings) & {*TASK_FIELDS, "lr", "optimizer"} - {"dataset"})
            if both:
                raise ValueError(f"{', '.join(both)} cannot be given beside tasks, which set them")
            self._datasets = self.tasks.datasets
            if settings.get("dataset") not in {None, *self._datasets}:  # which an id sets
                raise ValueError(f"the tasks are of {', '.join(sorted(self._datasets))}, not of {dataset}")
        self._draws = np.random.default_rng()
        self._built: tuple[Any, Any] = None, None  # the last environment that was built, after its task
        self.env = self.environment({} if self.tasks is None else self.tasks.training[0])
        self.render_mode = self.env.render_mode

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):  # also while this is being copied, and has nothing yet
            raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")
        return getattr(self.env, name)

    def environment(self, task: Task | Mapping[str, Any]) -> PruneEnv:
        """Return the environment that `reset` would use for a task, or with these settings changed.

        Raises:
            TypeError: `task` is something else.
            ValueError: a task of another data set.
        """
        if not isinstance(task, Task | Mapping):
            raise TypeError(f"task is {task!r}; it must be a Task, or a mapping of settings")
        if isinstance(task, Mapping) and "lr_factor" in task:
            task = Task(**task)  # as asdict() and JSON make it
        if isinstance(task, Task) and task.dataset not in self._datasets:
            sets = ", ".join(sorted(map(str, self._datasets)))
            raise ValueError(f"task has dataset={task.dataset!r}; episodes here are of {sets}")
        if task != self._built[0]:
            changed = task.settings() if isinstance(task, Task) else task
            self._built = task, PruneEnv(**{**self._settings, **changed})
        return self._built[1]

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Start the next episode.

        Args:
            seed: seeds the run and the draws of tasks.
            options: `task`, a `Task` or a mapping of settings, pins the task of this episode.

        Raises:
            TypeError: `task` is something else.
            ValueError: other options, or a task that cannot be; the run in progress goes on then.
        """
        given = dict(options or {})
        task = given.pop("task", None)
        if given:
            raise ValueError(f"reset options {sorted(given)} are not known; there is task")
        env = None if task is None else self.environment(task)
        super().reset(seed=seed)
        if seed is not None:
            self._draws = np.random.default_rng([seed, TASK_STREAM])
        if env is None:
            env = self.environment({} if self.tasks is None else self.tasks.draw(self._draws))
        if env is not self.env:
            env.np_random = self.env.np_random  # seeds follow from the last one, as without tasks
            self.env = env
        return self.env.reset(seed=seed)

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Train once; see `PruneEnv.step`."""
        return self.env.step(action)

    def render(self) -> Any:
        """Draw the run; see `PruneEnv.render`."""
        return self.env.render()

    def close(self) -> None:
        """Let go of the run."""
        self.env.close()


def _check(name: str, value: object) -> None:
    """Raise TypeError or ValueError for a value that no task can have in a field."""
    if name in VARIANT:
        Variant(**{name: value})  # pyright: ignore[reportArgumentType]  (which it checks)
    elif name in ("budget", "lr_factor") and not checks.real(name, value) > 0.0:
        raise ValueError(f"{name}={value} must be above 0")
    elif name == "dataset" and value not in data.sources.SOURCES:
        raise ValueError(f"unknown data set {value!r}: choose one of {', '.join(data.sources.SOURCES)}")


def distribution(tasks: str | Mapping[str, Any] | Tasks, roots: Sequence[str] = ()) -> Tasks:
    """Return the distribution of this name, or with these arguments, which the JSON of a spec holds.

    Args:
        tasks: a name; several joined by `+`, which are drawn equally often; the arguments of a `TaskDistribution`, or
            of a `TaskMixture`.
        roots: folders of images, each equally likely, for the tasks of image folders.

    Raises:
        ValueError: there is none, or `roots` are given and there are no tasks of image folders.
        TypeError: `tasks` is something else.
    """
    if isinstance(tasks, str):
        found = _joined([TaskDistribution.named(name) for name in MIXTURES.get(tasks, tasks).split("+")])
    elif isinstance(tasks, Mapping):
        if "parts" in tasks and (len(tasks) > 1 or not tasks["parts"]):
            raise ValueError(f"a mixture is a list of parts, at least one, and has nothing beside; got {dict(tasks)}")
        found = _joined([TaskDistribution(**part) for part in tasks.get("parts", [tasks])])
    elif isinstance(tasks, Tasks):
        found = tasks
    else:
        raise TypeError(f"tasks is {tasks!r}; it must be a TaskDistribution, a TaskMixture, or the name of one")
    if not roots:
        return found
    of_folders = [part.datasets == {"imagefolder"} for part in found.parts]
    if not any(of_folders):
        raise ValueError(f"the root {', '.join(roots)} is for tasks of image folders, and there are none")
    rooted = [replace(part, values={**part.values, "root": tuple(roots)}) for part in found.parts]
    return _joined([new if own else part for new, own, part in zip(rooted, of_folders, found.parts, strict=True)])


def _joined(parts: Sequence[TaskDistribution]) -> Tasks:
    return parts[0] if len(parts) == 1 else TaskMixture(tuple(parts))
