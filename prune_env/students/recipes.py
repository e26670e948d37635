"""How a student is trained: what can be set, and the values tuned for each data set and network."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from importlib import resources
from typing import Any, NamedTuple

from prune_env.checks import named, real, whole

PRECISIONS = ("auto", "float32", "bfloat16")
COMPILE = ("off", "step", "graphs")
OPTIMIZERS = ("sgd", "adamw")
# customary values where nothing was tuned: for networks of the caller's own, and for AdamW
OWN = {"batch_size": 64, "weight_decay": 5e-4, "lr": 0.05}
ADAMW = {"weight_decay": 0.01, "lr": 1e-3}
DEFAULT_MODEL = {"digits": "mlp", "imagenet": "torchvision:resnet50"}  # every other data set: convnet


@dataclass(frozen=True)
class Training:
    """What can be set of training. None stands for what suits the data set, the network and the budget.

    These fields are arguments of `PruneEnv`, flags of the programs, and entries of a sweep file's tasks.
    """

    model: str | None = None  # from Python also a function, see `models.build`
    """Network, see `prune-env list models`; by default one that suits the data set."""
    batch_size: int | None = None
    """Rows of a batch B; a batch's loss is sum(w_i l_i) / B, also when the batch is short. By default as tuned."""
    lr: float | None = None
    """Peak learning rate; by default as tuned, and for `adamw` mostly a customary 0.001."""
    weight_decay: float | None = None
    """Weight decay on all parameters; the learning rate scales it. By default as tuned, or 0.01 for `adamw`."""
    optimizer: str = "sgd"
    """`sgd` (with Nesterov momentum) or `adamw`."""
    momentum: float = 0.9
    """Momentum, in [0, 1); beta_1 of `adamw`."""
    warmup: float = 0.1
    """Share of the budget, in [0, 1), in which the learning rate rises linearly; then it falls linearly to 0."""
    label_smoothing: float = 0.0
    """Label smoothing, in [0, 1), of the training loss and never of the statistics."""
    ema: float = 0.8
    """Weight of the newest loss in the running mean and variance, in (0, 1]."""
    precision: str = "auto"
    """`float32`, `bfloat16` (autocast), or `auto`: bfloat16 for convolutional students where the device has it."""
    compile: str = "off"
    """`off`, `step` (torch compiles the pass over a full batch) or `graphs` (replays it as CUDA graphs)."""


@dataclass(frozen=True)
class Recipe(Training):
    """All of training but the data, the budget and the seed: a `Training` in which nothing is open.

    Raises TypeError or ValueError if a value is missing, has another type, or is out of its range.
    """

    # without a value these are None, as in `Training`, and refused below
    model: str | Callable[..., Any]  # pyright: ignore[reportGeneralTypeIssues, reportIncompatibleVariableOverride]
    batch_size: int  # pyright: ignore[reportGeneralTypeIssues]
    lr: float  # pyright: ignore[reportGeneralTypeIssues]
    weight_decay: float = 5e-4

    def __post_init__(self):
        named("model", self.model)
        if whole("batch_size", self.batch_size) < 1:
            raise ValueError(f"batch_size is {self.batch_size}; it must be at least 1")
        if not 0.0 < real("lr", self.lr) < math.inf:
            raise ValueError(f"lr is {self.lr}; it must be a positive number")
        if not 0.0 <= real("weight_decay", self.weight_decay) < math.inf:
            raise ValueError(f"weight_decay is {self.weight_decay}; it must be 0 or a positive number")
        for name in ("momentum", "warmup", "label_smoothing"):
            if not 0.0 <= real(name, getattr(self, name)) < 1.0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must lie in [0, 1)")
        if not 0.0 < real("ema", self.ema) <= 1.0:
            raise ValueError(f"ema is {self.ema}; the weight of the newest loss must lie in (0, 1]")
        for name, known in (("optimizer", OPTIMIZERS), ("precision", PRECISIONS), ("compile", COMPILE)):
            _one_of(name, getattr(self, name), known)

    def plain(self) -> dict[str, Any]:
        """Return all values, with the name of a network of the caller's own in its place."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {**values, "model": named("model", self.model)}

    def rate(self, progress: float) -> float:
        """Return the learning rate at `progress`, the share of the budget that is spent, in [0, 1]."""
        if progress < self.warmup:
            return self.lr * progress / self.warmup
        return self.lr * max(0.0, 1.0 - progress) / (1.0 - self.warmup)


def _one_of(name: str, value: object, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ValueError(f"{name} is {value!r}; it must be one of {', '.join(known)}")


class Tuned(NamedTuple):
    """What recipes.json has for a task."""

    values: dict[str, Any]  # model, batch_size, weight_decay, lr: keyword arguments of `Recipe`
    description: str  # what the learning rate was tuned for, or that it was not
    fits: bool  # whether it was tuned for this data set, network, share of wrong labels and imbalance


def tuned(
    dataset: str,
    model: str | Callable[..., Any] | None,
    budget: float,
    label_noise: float = 0.0,
    image_size: int | None = None,
    optimizer: str = "sgd",
    imbalance: float = 1.0,
) -> Tuned:
    """Look up network, batch size, weight decay and learning rate for a task.

    The rates are the best ones for full training, found on validation by the command that stands beside them. Without
    a command they are customary and not tuned. The first entry counts of: data set with this size of images, data set,
    any data set ("*"); in each the network itself, then its family, the name before the colon. Of the entry, the rates
    of the nearest share of wrong labels, among these of the nearest imbalance in ratio, and of the nearest budget in
    ratio are taken. Networks of the caller's own that have no entry get customary values. For AdamW an entry is called
    as in `mlp+adamw`; without one the rate and the weight decay are customary, and the batch size is the one for SGD.

    Args:
        dataset: name of the source.
        model: name of the network, or what makes it; None is the data set's default.
        budget: full-epoch equivalents.
        label_noise: share of wrong labels. An environment passes none: its recipe would tell agents the share.
        imbalance: ratio of the largest to the smallest class; likewise.
        image_size: side of the images in pixels.
        optimizer: as in a recipe.

    Raises TypeError for a value of another type, ValueError if no entry knows the network, for an unknown optimiser, or
    for a budget that is not a positive number.
    """
    _one_of("optimizer", optimizer, OPTIMIZERS)
    if not 0.0 < real("budget", budget) < math.inf:
        raise ValueError(f"budget is {budget}; it must be a positive number of full-epoch equivalents")
    wrong, unlike = real("label_noise", label_noise), real("imbalance", imbalance)
    model = named("model", model or default_model(dataset))
    names = [entry_name(of, optimizer) for of in (model, model.partition(":")[0])]
    table = _table(resources.files("prune_env.students").joinpath("recipes.json").read_text())
    order = [(of, name) for of in (f"{dataset}:{image_size}", dataset, "*") for name in names]
    known = [(of, name) for of, name in order if name in table.get(of, {})]
    if not known and optimizer == "adamw":
        values = {**tuned(dataset, model, budget, image_size=image_size).values, **ADAMW}
        return Tuned(values, f"lr {values['lr']:g}: customary for AdamW, not tuned", False)
    if not known and ":" in model:
        return Tuned({"model": model, **OWN}, f"lr {OWN['lr']:g}: customary, not tuned", False)
    if not known:
        raise ValueError(f"model {model!r} is not known; there are {', '.join(table['*'])}, or module:function")
    of, name = known[0]
    entry = table[of][name]
    kinds = {}  # rates by share of wrong labels and imbalance
    for ratio, its in {"1": entry, **entry.get("unlike", {})}.items():
        of_shares = {"0": its} if "lr" in its else {}
        kinds |= {(float(of), float(ratio)): rates for of, rates in (of_shares | its.get("noisy", {})).items()}
    share = min({share for share, _ in kinds}, key=lambda share: (abs(share - wrong), share))
    ratio = nearest([ratio for of, ratio in kinds if of == share], max(unlike, 1.0))
    kind = kinds[share, ratio]
    rates = {float(at): rate for at, rate in kind["lr"].items()}
    at = nearest(rates, budget)
    values = {"model": model, "batch_size": entry["batch_size"], "weight_decay": entry["weight_decay"], "lr": rates[at]}
    if kind["command"] is None:
        return Tuned(values, f"lr {rates[at]:g}: customary, not tuned", False)
    images = "other images" if of == "*" else of
    labels = f"{share:.0%} wrong labels" if share else "clean labels"
    labels += f", classes {ratio:g}:1" * (ratio != 1.0)
    description = f"lr {rates[at]:g}: tuned for full training of {name} on {images}, budget {at:g}, {labels}"
    return Tuned(values, description, of != "*" and name == names[0] and (share, ratio) == (wrong, unlike))


def entry_name(model: str, optimizer: str) -> str:
    """Return what recipes.json calls a network that is trained with an optimiser."""
    return model if optimizer == "sgd" else f"{model}+{optimizer}"


def default_model(dataset: str) -> str:
    """Return the network that suits a data set."""
    return DEFAULT_MODEL.get(dataset, "convnet")


@functools.lru_cache(maxsize=1)
def _table(text: str) -> dict[str, dict[str, Any]]:
    return json.loads(text)


def nearest(budgets: Iterable[float], budget: float) -> float:
    """Return which of `budgets` is nearest to `budget` in ratio."""
    return min(budgets, key=lambda other: abs(math.log(other / budget)))
