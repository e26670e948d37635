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
from prune_env.budget import Ledger
from prune_env.checks import real, text
from prune_env.students import models
from prune_env.students.recipes import Recipe, tuned
from prune_env.trainer import EpochResult, Trainer

DEFAULT_MODEL = {"digits": "mlp", "imagenet": "torchvision:resnet50"}  # every other source: convnet
MAX_BUDGET = 1e6  # full-epoch equivalents: a finite bound for the observation


class PruneEnv(gym.Env[dict[str, Any], dict[str, Any]]):
    """Which samples should this epoch train on?

    ## Description
    An image classifier is trained under a hard budget of compute. At each step the agent sees what training
    has revealed about every sample and chooses a weighted subset, on which the classifier is trained once.
    N is the number of training samples, C the number of classes.

    ## Action Space
    `Dict(weight=Box(0, 10, (N,)), mixup=Box(0, 0.5, (N,)), score=Box(0, 1, (N,)))`, float32; `score` may be
    left out. `weight[i]` multiplies the loss of sample i, and 0 drops it; a batch's loss is
    `sum(w_i l_i) / batch_size`, never renormalised. `mixup[i]` is the share of a partner image, drawn uniformly
    from the dropped samples (from the kept ones if none is dropped), that is blended into sample i, its label
    too. Where `score[i]` is not 0, sample i is measured after the training by a forward pass alone, in
    evaluation mode and without augmentation, at a third of the price. `prune_env.select` builds actions.

    ## Observation Space
    `Dict`; the first eleven are (N,) float32.

    | entry | meaning |
    |---|---|
    | `loss` | last seen cross-entropy, unsmoothed, of the image unmixed; log C before the first visit |
    | `loss_mean`, `loss_var` | exponential moving mean and variance of `loss` |
    | `confidence` | predicted probability of the label |
    | `margin` | that minus the largest other probability |
    | `entropy` | of the prediction, divided by log C |
    | `el2n` | Euclidean distance of the prediction from the one-hot label (arXiv 2107.07075) |
    | `correct` | whether the last prediction was right |
    | `forgets` | transitions from right to wrong (arXiv 1812.05159) |
    | `visits` | times trained on |
    | `age` | full-epoch equivalents of compute since last measured; 0 is this step |
    | `label` | (N,) int64, class index |
    | `spent`, `budget` | (1,) float32, share of the budget used; the budget in full-epoch equivalents |
    | `val_accuracy` | (1,) float32, after the last step |
    | `train_accuracy` | (1,) float32, over the samples measured in the last step |

    Mixed visits count as visits, and are not measured. Scored samples are measured, which is no visit.

    ## Rewards
    `(val_accuracy - previous val_accuracy) / budget - price * spent`, `spent` being this step's compute in
    full-epoch equivalents. Without a price the sum over an episode is the accuracy gained per unit of compute.

    ## Starting State
    A freshly initialised classifier; its validation accuracy is observed before the first step. Equal seeds
    share initial weights, order and augmentation whatever is selected. Equal seeds and actions give equal
    numbers, bit for bit on a CPU with the same number of threads.

    ## Episode End
    `terminated` when less than one batch of the budget is left, when the action neither trains on a sample nor
    scores one (the agent stops early), or when training diverges (`info["diverged"]`). Never `truncated`. A step
    that would overrun the budget trains on a random part of its selection that just fits, and scores a random
    part of what it should with the rest. The learning rate has fallen to 0 at the end of the budget; an agent
    that stops early stops before that.

    ## Compute
    One unit is the forward and backward pass of N samples, a forward pass alone a third. Validation is free.
    `info` has counted work only, in numpy scalars, and the same entries after `reset` (0 where nothing happened yet)
    and `step`. `spent` is this step's and `total_spent` the run's compute, in full-epoch equivalents. `trained`, `mixed`
    and `scored` are numbers of samples. `kept` (trained on in this step) and `coverage` (ever trained on) are shares of
    N. `nonfinite` is how many rows had logits that were not finite, of those trained on, scored and validated in this
    step: such a row is never measured and never right, and a single one is divergence. `step` counts the steps of the
    run, and `seed` is the run's. Seconds are in `env.unwrapped.trainer.ledger.seconds`.

    ## Arguments
    `None` stands for the value that suits the data set and model. Plain Python values survive `EnvSpec.to_json`.

    - `dataset`: `digits`, `cifar10`, `cifar100`, `tiny_imagenet`, `imagenet` or `imagefolder`; the id sets it.
    - `budget`: full-epoch equivalents of compute.
    - `price`: taken from the reward for each full-epoch equivalent.
    - `root`, `download`, `image_size`: where the images are (else `PRUNE_ENV_DATA`), whether to fetch them, and
      the side they are resized to. Decoded images are cached in `PRUNE_ENV_CACHE`, else ~/.cache/prune_env.
    - `images`: where decoded images are kept: on the `device`, on the `host`, in a file of the cache that is `mapped`
      into memory, nowhere (their `files` are decoded as they are needed), or in the first of these that has room
      (`auto`); see `prune_env.data.load`. No number depends on it.
    - `train_size`, `label_noise`, `imbalance`, `duplicates`, `task_seed`: make another task of the data; see
      `prune_env.data.load`. Validation and test stay as they are, unless `val_rest` adds to validation what training
      does without.
    - `model`, `batch_size`, `lr`, `momentum`, `weight_decay`, `warmup`, `label_smoothing`, `ema`, `precision`,
      `compile`: see `prune_env.students.recipes.Recipe`.
    - `device`: `auto` (CUDA where there is one), or any name torch knows.
    - `render_mode`: `rgb_array` or `ansi`; `human` comes with Gymnasium's wrapper.

    ## Version History
    - v0: initial version.
    """

    metadata = {"render_modes": ["rgb_array", "ansi"], "render_fps": 4}  # noqa: RUF012  (Gymnasium's way)

    def __init__(
        self,
        dataset: str = "digits",
        budget: float = 10.0,
        *,
        price: float = 0.0,
        root: str | None = None,
        download: bool = False,
        image_size: int | None = None,
        train_size: int | None = None,
        label_noise: float = 0.0,
        imbalance: float = 1.0,
        duplicates: float = 0.0,
        task_seed: int = 0,
        val_rest: bool = False,
        images: str = "auto",
        model: str | None = None,
        batch_size: int | None = None,
        lr: float | None = None,
        momentum: float = 0.9,
        weight_decay: float | None = None,
        warmup: float = 0.1,
        label_smoothing: float = 0.0,
        ema: float = 0.8,
        precision: str = "auto",
        compile: str = "off",
        device: str = "auto",
        render_mode: str | None = None,
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

        model = text("model", model or DEFAULT_MODEL.get(text("dataset", dataset), "convnet"))
        given = {"batch_size": batch_size, "lr": lr, "weight_decay": weight_decay}
        chosen = tuned(dataset, model, self.budget, image_size=image_size)
        chosen |= {name: value for name, value in given.items() if value is not None}
        self.recipe = Recipe(
            model=model,
            momentum=momentum,
            warmup=warmup,
            label_smoothing=label_smoothing,
            ema=ema,
            precision=precision,
            compile=compile,
            **chosen,
        )
        target = _device(device)
        train, val = data.load(
            dataset,
            root=root,
            download=download,
            image_size=image_size,
            train_size=train_size,
            label_noise=label_noise,
            imbalance=imbalance,
            duplicates=duplicates,
            task_seed=task_seed,
            val_rest=val_rest,
            images=images,
            device=target,
        )
        self.train_data, self.val_data = train, val
        self._labels = train.labels.cpu().numpy()
        self.trainer: Trainer | None = None
        self.history = render.History()
        self._finished = False
        self._before = np.empty((2, 0), np.float32)  # `loss_mean` and `visits` as last seen, to render what follows

        n, channels, size, _ = train.images.shape
        Ledger(n, self.budget).require_batch(min(self.recipe.batch_size, n))
        # what does not fit raises now, not at reset
        is_random = models.check(model, channels, size, len(train.classes))
        if compile != "off" and is_random:  # compiled code would draw from the global generator
            raise ValueError(f"compile is {compile!r}; {model!r} draws random numbers (dropout) and needs 'off'")
        self.action_space = actions(n)
        self.observation_space = observations(n, len(train.classes), self.budget)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, NDArray], dict[str, Any]]:
        """Start training anew.

        Args:
            seed: of the run; without one the next run follows from the last seed.
            options: none exist.

        Raises:
            ValueError: `options` are given.
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
        return observation, self._info(self.trainer.nothing_yet(), observation)

    def step(self, action: dict[str, NDArray]) -> tuple[dict[str, NDArray], float, bool, bool, dict[str, Any]]:
        """Train once on what `action` selects.

        Raises:
            gymnasium.error.ResetNeeded: before the first `reset`, or after the episode ended.
            TypeError, ValueError: the action is not valid, see `selection.check`.

        Whatever it raises, also an OSError of images that cannot be read, nothing has changed then.
        """
        trainer = self.running
        chosen = trainer.select(selection.check(action, len(self.train_data)))
        return self.outcome(trainer.train_epoch(chosen))

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
        """What `step` returns of an epoch's result."""
        trainer = self.running
        before = self._before
        observation = self._observe()
        if self.render_mode is not None:
            self.history.choose(before[0], observation["visits"] > before[1])
            self.history.record(trainer.ledger.spent, result.val_accuracy)
        reward = result.gained / self.budget - self.price * result.spent
        info = self._info(result, observation)
        self._finished = result.finished
        return observation, reward, result.finished, False, info

    def _info(self, result: EpochResult, observation: dict[str, NDArray]) -> dict[str, np.generic]:
        """The same names after `reset` and `step`, as numpy scalars, which tools can stack."""
        trainer = self.running
        values = asdict(result) | {
            "kept": result.trained / len(self.train_data),
            "coverage": float(np.mean(observation["visits"] > 0)),
            "total_spent": trainer.ledger.spent,
            "step": trainer.step,
            "seed": trainer.seed,
        }
        return {name: np.asarray(value)[()] for name, value in values.items()}

    def state_dict(self) -> dict[str, Any]:
        """The run as it stands, for `load_state_dict`: plain values, arrays and tensors, which `prune_env.plain` packs.

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
            self._before = np.stack([observation["loss_mean"], observation["visits"]])
        return {**observation, "label": self._labels.copy()}

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
    """What can be done with n samples."""
    bounds = selection.BOUNDS.items()
    return spaces.Dict({name: spaces.Box(0.0, bound, (n,), np.float32) for name, bound in bounds})


def observations(n: int, classes: int, budget: float, first_label: int = 0) -> spaces.Dict:
    """What is seen of up to n samples of some classes under up to a budget; a label of -1 stands for no sample."""
    per_sample = {**stats.BOUNDS, "age": (0.0, budget)}
    figures = {"spent": 1.0, "budget": budget, "val_accuracy": 1.0, "train_accuracy": 1.0}
    seen: dict[str, spaces.Space[Any]] = {"label": spaces.Box(first_label, classes - 1, (n,), np.int64)}
    seen |= {name: spaces.Box(*bounds, (n,), np.float32) for name, bounds in per_sample.items()}
    seen |= {name: spaces.Box(0.0, bound, (1,), np.float32) for name, bound in figures.items()}
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
