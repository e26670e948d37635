"""How a student is trained: one record, and the values tuned for each data set and network."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any

from prune_env.checks import real, text, whole


@dataclass(frozen=True)
class Recipe:
    """Everything about training but the data, the budget and the seed.

    The learning rate rises linearly over `warmup`, a share of the budget, then falls linearly to 0 at its end.
    A batch takes the rate of its middle.

    Args:
        model: name of the network, see `models.build`.
        batch_size: rows of a batch B; a batch's loss is sum(w_i l_i) / B, also when it is short.
        lr: peak learning rate of SGD with Nesterov momentum.
        momentum: in [0, 1).
        weight_decay: on all parameters; it is scaled by the learning rate and decays with it.
        warmup: share of the budget, in [0, 1).
        label_smoothing: in [0, 1); of the training loss, never of the statistics.
        ema: weight of the newest loss in the running mean and variance, in (0, 1].
        precision: `float32`, `bfloat16` (autocast) or `auto`: bfloat16 for convolutional students where the
            device computes in it.
        compile: `off`; `step`, forward, loss and backward of full batches compiled by torch; or `graphs`, that replayed
            as CUDA graphs, where there is CUDA. Rounding differs. Not for networks with dropout.

    Raises:
        TypeError, ValueError: a value of another type, or out of its range.
    """

    model: str
    batch_size: int
    lr: float
    momentum: float = 0.9
    weight_decay: float = 5e-4
    warmup: float = 0.1
    label_smoothing: float = 0.0
    ema: float = 0.8
    precision: str = "auto"
    compile: str = "off"

    def __post_init__(self):
        text("model", self.model)
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
        if self.precision not in PRECISIONS:
            raise ValueError(f"precision is {self.precision!r}; it must be one of {', '.join(PRECISIONS)}")
        if self.compile not in COMPILE:
            raise ValueError(f"compile is {self.compile!r}; it must be one of {', '.join(COMPILE)}")

    def rate(self, progress: float) -> float:
        """Learning rate at `progress`, the fraction of the budget that is spent, in [0, 1]."""
        if progress < self.warmup:
            return self.lr * progress / self.warmup
        return self.lr * max(0.0, 1.0 - progress) / (1.0 - self.warmup)


PRECISIONS = ("auto", "float32", "bfloat16")
COMPILE = ("off", "step", "graphs")


def tuned(
    dataset: str, model: str, budget: float, label_noise: float = 0.0, image_size: int | None = None
) -> dict[str, Any]:
    """Batch size, weight decay and learning rate for a task: keyword arguments of `Recipe`.

    The rates in recipes.json were tuned for full training on validation, by the command that stands beside
    them; without one they are customary values, not tuned. The one of the nearest budget, in ratio, is taken. A
    data set that was not tuned takes the values under "*". What is best for full training falls with the share of
    wrong labels: where that was tuned too, the nearest share's rates are taken.

    Args:
        dataset: name of the source.
        model: name of the network. What was tuned for just this one is taken, else widths after a colon do not count.
        budget: full-epoch equivalents.
        label_noise: share of wrong labels that is known of; an environment knows of none.
        image_size: side of the images. What was tuned for just this size, under "DATASET:SIZE", is taken first.
    """
    table = _table(resources.files("prune_env.students").joinpath("recipes.json").read_text())
    family = model.partition(":")[0]
    known = [table.get(name, {}) for name in (f"{dataset}:{image_size}", dataset)]
    found = [entries[name] for entries in known for name in (model, family) if name in entries]
    entry = found[0] if found else table["*"].get(family)
    if entry is None:
        raise ValueError(f"model {model!r} is not known; there are {', '.join(table['*'])}")
    by_noise = {0.0: entry["lr"], **{float(share): rates["lr"] for share, rates in entry.get("noisy", {}).items()}}
    rates = by_noise[min(by_noise, key=lambda share: abs(share - label_noise))]
    rate = nearest({float(tuned_at): rate for tuned_at, rate in rates.items()}, budget)
    return {"batch_size": entry["batch_size"], "weight_decay": entry["weight_decay"], "lr": rate}


@functools.lru_cache(maxsize=1)
def _table(text: str) -> dict[str, dict[str, Any]]:
    return json.loads(text)


def nearest(rates: Mapping[float, float], budget: float) -> float:
    """Of learning rates by budget, that of the budget nearest in ratio."""
    return rates[min(rates, key=lambda tuned_at: abs(math.log(tuned_at / budget)))]
