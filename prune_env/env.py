"""The Gymnasium face of a training run."""

from __future__ import annotations

import copy
import math
from dataclasses import asdict
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray

from prune_env import data, render, selection, stats
from prune_env.checks import real, text
from prune_env.data.columns import MAX_REFERENCE
from prune_env.data.task import Variant
from prune_env.students import models
from prune_env.students.recipes import Recipe, Training, tuned
from prune_env.trainer import EpochResult, Trainer, ledger_of

MAX_BUDGET = 1e6  # full-epoch equivalents: a finite bound for the observation


class PruneEnv(gym.Env[dict[str, Any], dict[str, Any]]):
    """Which samples should this epoch train on?

    ## Description
    An image classifier is trained under a hard budget of compute. At each step the agent sees what training
    has revealed about every sample and chooses a weighted subset, on which the classifier is trained once.
    N is the number of training samples, C the number of classes.

    ## Action Space
    `Dict(weight=Box(0, 10, (N,)), mixup=Box(0, 0.5, (N,)), score=Box(0, 1, (N,)))`, float32, which `prune_env.select`
    builds. `weight[i]` multiplies the loss of sample i, and 0 drops it; a batch's loss is `sum(w_i l_i) / batch_size`.
    `mixup[i]` is the share of a partner image blended into it, its label too. Where `score[i]` is not 0, sample i is
    measured after the training by a forward pass alone.

    ## Observation Space
    `Dict` of the statistics of every sample, (N,), and of the run's figures. docs/environment.md says what each entry
    means, and each key of `info`.

    ## Rewards
    `(val_accuracy - previous val_accuracy) / budget - price * spent`, with this step's `spent` in full-epoch
    equivalents. Without a price the sum over an episode is the accuracy gained per unit of compute: the forward and
    backward pass of N samples, of which a forward pass alone is a third. Validation is free.

    ## Starting State
    A freshly initialised classifier; its validation accuracy is observed before the first step. Equal seeds share
    initial weights, order and augmentation, whatever is selected. Equal seeds and actions give equal numbers, bit
    for bit on a CPU with the same number of threads.

    ## Episode End
    `terminated` when less than one batch of the budget is left, when the action neither trains on a sample nor
    scores one (the agent stops early), or when training diverges. Never `truncated`. A step that would overrun the
    budget trains on a random part of its selection that just fits, and scores a random part with the rest.

    ## Arguments
    - `dataset`: `digits`, `cifar10`, `cifar100`, `tiny_imagenet`, `imagenet` or `imagefolder`; the id sets it. Images
      in memory are `prune_env.data.Arrays`, also beside the id `prune_env/Arrays-v0`.
    - `budget`: full-epoch equivalents of compute.
    - `price`: taken from the reward for each full-epoch equivalent.
    - `root`, `download`, `image_size`: where the images are (else `PRUNE_ENV_DATA`), whether to fetch them, and
      the side they are resized to. Decoded images are cached in `PRUNE_ENV_CACHE`, else ~/.cache/prune_env.
    - `images`: where decoded images are kept: on the `device`, in a file of the cache that is `mapped` into memory, or
      in the first of these that has room (`auto`). No number depends on it.
    - `device`: `auto` (CUDA where there is one), or any name torch knows.
    - `render_mode`: `rgb_array` or `ansi`; `human` comes with Gymnasium's wrapper.
    - the fields of `prune_env.data.task.Variant`, such as `train_size` and `label_noise`, vary the task.
    - the fields of `prune_env.students.recipes.Training`, such as `model` and `lr`, set the student and its training.
      The tuned learning rate is the one for clean labels and classes of like size: agents could read the trouble from
      another.

    ## Version History
    - v0: initial version.
    """

    metadata = {"render_modes": ["rgb_array", "ansi"], "render_fps": 4}  # noqa: RUF012  (Gymnasium's way)

    def __init__(
        self,
        dataset: str | data.Arrays = "digits",
        budget: float = 10.0,
        *,
        price: float = 0.0,
        root: str | None = None,
        download: bool = False,
        image_size: int | None = None,
        images: str = "auto",
        device: str = "auto",
        render_mode: str | None = None,
        **options: Any,  # fields of Variant and of Training
    ):
        if not 0.0 < real("budget", budget) <= MAX_BUDGET:
            raise ValueError(f"budget is {budget}; it must lie in (0, {MAX_BUDGET:g}], in full-epoch equivalents")
        if not 0.0 <= real("price", price) < math.inf:
            raise ValueError(f"price is {price}; it must be 0 or a positive number")
        if render_mode is not None and render_mode not in self.metadata["render_modes"]:
            raise ValueError(f"render_mode is {render_mode!r}; it must be None, 'rgb_array' or 'ansi'")
        self.budget = float(budget)
        self.price = float(price)
        self.render_mode = render_mode

        variant, training = asdict(Variant()), asdict(Training())
        for name, value in options.items():
            if name not in {**variant, **training}:
                known = ", ".join((*variant, *training))
                raise TypeError(f"PruneEnv got an unexpected keyword argument {name!r}; there are {known}")
            (variant if name in variant else training)[name] = value
        # for clean labels and classes of like size, whatever the trouble: the rate must not tell it
        name, optimizer = data.sources.name_of(dataset), training["optimizer"]
        values = tuned(name, training["model"], self.budget, image_size=image_size, optimizer=optimizer).values
        self.recipe = Recipe(**values | {name: value for name, value in training.items() if value is not None})
        target = _device(device)
        train, val = data.load(
            dataset, root=root, download=download, image_size=image_size, images=images, device=target, **variant
        )
        self.train_data, self.val_data = train, val
        self._labels = train.labels.cpu().numpy()
        self.trainer: Trainer | None = None
        self.history = render.History()
        self._finished = False
        self._before: dict[str, NDArray] = {}  # `loss_mean` and `visits` before the next step, to render it

        n, channels, size, _ = train.images.shape
        # what does not fit raises now, not at reset
        model = self.recipe.model
        self.traits = models.check(model, channels, size, len(train.classes))
        if self.recipe.compile != "off" and self.traits.random:  # compiled code would draw from the global generator
            raise ValueError(
                f"compile is {self.recipe.compile!r}; {model!r} draws random numbers (dropout) and needs 'off'"
            )
        ledger_of(train, self.recipe, self.budget)
        self.action_space = actions(n)
        with_reference = train.reference is not None
        self.observation_space = observations(n, len(train.classes), self.budget, reference=with_reference)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, NDArray], dict[str, Any]]:
        """Start training anew. Without a seed it is drawn from the environment's generator.

        Raises:
            ValueError: `options` are given; there are none.
        """
        if options:
            raise ValueError(
                f"reset options {sorted(options)} are not known; there are none here. Tasks are pinned in "
                "prune_env.policy.tasks.TaskEnv, environments of summaries and vector environments"
            )
        super().reset(seed=seed)
        run_seed = int(self.np_random.integers(2**32))
        self.trainer = Trainer(self.train_data, self.val_data, self.recipe, self.budget, run_seed)
        self.history = render.History()
        self._finished = False
        self.history.record(0.0, self.trainer.val_accuracy)
        observation = self._observe()
        return observation, self._info(self.trainer, self.trainer.start, observation)

    def step(self, action: dict[str, NDArray]) -> tuple[dict[str, NDArray], float, bool, bool, dict[str, Any]]:
        """Train once on what `action` selects.

        Raises:
            gymnasium.error.ResetNeeded: before the first `reset`, or after the episode ended.
            TypeError, ValueError: the action is not valid, see `selection.check`.

        If it raises, also an OSError of images that cannot be read, the run is unchanged.
        """
        trainer = self.running
        rows = trainer.select(selection.check(action, len(self.train_data)))
        return self.outcome(trainer.train_epoch(rows))

    @property
    def running(self) -> Trainer:
        """The run in progress.

        Raises:
            gymnasium.error.ResetNeeded: before the first `reset`, or after the episode ended.
        """
        if self.trainer is None or self._finished:
            raise gym.error.ResetNeeded("the budget of this run is spent, or none was started: call reset()")
        return self.trainer

    def outcome(self, result: EpochResult) -> tuple[dict[str, NDArray], float, bool, bool, dict[str, Any]]:
        """Return the five values of `step`, once the trainer has trained."""
        trainer, before = self.running, self._before
        observation = self._observe()
        if self.render_mode is not None:
            self.history.choose(before["loss_mean"], observation["visits"] > before["visits"])
            self.history.record(trainer.ledger.spent, result.val_accuracy)
        reward = result.gained / self.budget - self.price * result.spent
        info = self._info(trainer, result, observation)
        self._finished = result.finished
        return observation, reward, result.finished, False, info

    def _info(self, trainer: Trainer, result: EpochResult, observation: dict[str, NDArray]) -> dict[str, np.generic]:
        """Return the same names after `reset` and `step`, as numpy scalars, which tools can stack."""
        values = vars(result) | {
            "kept": result.trained / len(self.train_data),
            "coverage": float(np.mean(observation["visits"] > 0)),
            "total_spent": trainer.ledger.spent,
            "step": trainer.step,
            "seed": trainer.seed,
        }
        # flags are 0 or 1: vector environments would stack numpy's booleans as objects
        return {name: (np.float64 if isinstance(value, float) else np.int64)(value) for name, value in values.items()}

    def state_dict(self) -> dict[str, Any]:
        """The run as it stands, for `load_state_dict`: plain values, arrays and tensors.

        The tensors are the live ones, as in torch: copy or save what is to outlast the next step.

        Raises:
            gymnasium.error.ResetNeeded: before the first `reset`.
        """
        if self.trainer is None:
            raise gym.error.ResetNeeded("there is no run yet: call reset()")
        return {
            "trainer": self.trainer.state_dict(),
            "history": dict(vars(self.history)),
            "finished": self._finished,
            "generator": self.np_random.bit_generator.state,
        }

    def load_state_dict(self, state: dict[str, Any]) -> dict[str, NDArray]:
        """Go on with a run of the same data, recipe and budget, bit for bit on a CPU; the observation at that point.

        Raises:
            ValueError: the state belongs to another run, or is none; nothing has changed then.
        """
        history, generator = render.History(), copy.deepcopy(self.np_random.bit_generator)
        try:
            seed = state["trainer"]["run"]["seed"]
            trainer = Trainer(self.train_data, self.val_data, self.recipe, self.budget, seed)
            trainer.load_state_dict(state["trainer"])
            vars(history).update({name: copy.deepcopy(state["history"][name]) for name in vars(history)})
            generator.state = state["generator"]
            finished = bool(state["finished"])
        except ValueError:
            raise
        except Exception as error:  # what torch and numpy raise differs with what is wrong
            raise ValueError(f"the state is not one of a run: {type(error).__name__}: {error}") from error
        self.trainer, self.history, self._finished = trainer, history, finished
        self.np_random.bit_generator.state = generator.state
        return self._observe()

    def _observe(self) -> dict[str, NDArray]:
        assert self.trainer is not None
        observation = self.trainer.observe()
        if self.render_mode is not None:
            self._before = {name: observation[name].copy() for name in ("loss_mean", "visits")}
        of_data = {"label": self._labels, "reference": self.train_data.reference}
        return observation | {name: values.copy() for name, values in of_data.items() if values is not None}

    def render(self) -> NDArray[np.uint8] | str | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The run so far: (H, W, 3) uint8 for `rgb_array`, text for `ansi`.

        Raises:
            gymnasium.error.ResetNeeded: before the first `reset`.
        """
        if self.trainer is None:
            raise gym.error.ResetNeeded("there is no run to show yet: call reset()")
        if self.render_mode == "rgb_array":
            return render.frame(self.history, self.train_data, self.budget)
        if self.render_mode == "ansi":
            return render.text(self.history, self.budget)
        gym.logger.warn('render() needs gym.make(..., render_mode="rgb_array"), or "ansi"')
        return None

    def close(self) -> None:
        """Let go of the run; `reset` would start another."""
        self.trainer = None


def actions(n: int) -> spaces.Dict:
    """Return the action space for n samples."""
    bounds = selection.BOUNDS.items()
    return spaces.Dict({name: spaces.Box(0.0, bound, (n,), np.float32) for name, bound in bounds})


def observations(n: int, classes: int, budget: float, first_label: int = 0, *, reference: bool = False) -> spaces.Dict:
    """Return the observation space for n samples, with a reference or not.

    With `first_label=-1`, a label of -1 marks padding.
    """
    per_sample = {**stats.BOUNDS, "age": (0.0, budget)}
    if reference:
        per_sample["reference"] = (-MAX_REFERENCE, MAX_REFERENCE)
    figures = {"spent": 1.0, "budget": budget, "val_accuracy": 1.0, "train_accuracy": 1.0}
    seen: dict[str, spaces.Space[Any]] = {"label": spaces.Box(first_label, classes - 1, (n,), np.int64)}
    seen |= {name: spaces.Box(*bounds, (n,), np.float32) for name, bounds in per_sample.items()}
    seen |= {name: spaces.Box(0.0, bound, (1,), np.float32) for name, bound in figures.items()}
    seen["val_class_accuracy"] = spaces.Box(0.0, 1.0, (classes,), np.float32)
    return spaces.Dict(seen)


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(text("device", name))
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device is {name!r}, which torch cannot use here: {error}") from error
    return device
