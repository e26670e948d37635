"""Features of a training run: the same ~50 numbers for any number of samples and classes, and any scale of losses.

Pure functions. Every array may have leading batch axes (…), one run each. Runs of unlike size are padded with samples
of label -1; a sample is `valid` if its label is 0 or more.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from prune_env.sampling import ranks

Observation = Mapping[str, NDArray]
Floats = NDArray[np.floating]

HISTORY = ("spent", "val_accuracy", "train_accuracy", "hard_loss", "visits")  # running means, but for the visits
LOSS_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.9, 0.97)
QUANTILES = (0.5, 0.9)  # of volatility and age
MARGIN_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


def _names(prefix: str, shares: tuple[float, ...]) -> tuple[str, ...]:
    return tuple(f"{prefix}{round(100 * share)}" for share in shares)


FEATURES = (
    "spent",
    "log_budget",
    "log_classes",
    "balance",  # entropy of the labels' shares, relative to that of equal ones
    "val_accuracy",
    "train_accuracy",
    "gap",  # train minus validation accuracy
    "val_slope",
    "train_slope",
    "loss",  # mean running loss against log C
    *_names("loss_q", LOSS_QUANTILES),  # against the mean
    *_names("loss_c", LOSS_QUANTILES),  # against log C
    "loss_top_tenth",  # share of all loss that the largest tenth carries
    "loss_spread_of_classes",
    "hard_slope",  # of the mean loss of the tenth with the largest, against log C: wrong labels stay hard
    *_names("margin_q", MARGIN_QUANTILES),  # of running margins
    "margin_bimodality",  # Sarle's coefficient: high where some samples are right for sure and others wrong
    "class_spread",  # deviation of validation accuracy over classes
    "class_worst",  # lowest validation accuracy of a class
    "rare_behind",  # minus the correlation of log class size and accuracy, over classes
    "right",
    "never_seen",
    "never_right",
    "forgotten",
    "ever_forgotten",
    "surely_wrong",  # margin below -0.5
    "surely_right",  # margin above 0.5
    "confidence",
    "entropy",
    "el2n",
    *_names("volatility_q", QUANTILES),  # deviation of the loss against its mean
    *_names("age_q", QUANTILES),
    "visits_gini",
    "last_kept",
    "last_mixed",
    "last_loss_rank",  # of what was measured in the last step, by the running loss
    "last_right",  # shares right: of what was measured in the last step, minus of what was seen before; else 0
)


def initial_history(*batch: int) -> NDArray[np.float32]:
    """Return the history (*batch, P) of runs that have just begun."""
    return np.full((*batch, len(HISTORY)), -1.0, np.float32)


def update_history(history: Floats, obs: Observation) -> NDArray[np.float32]:
    """Return the history (…, P) that the features of the next observation need, once `obs` has been acted on."""
    valid = obs["label"] >= 0
    hard = _mean_of_top_tenth(_sorted(obs["loss_mean"], valid), valid)
    figures = [*(_scalar(obs, name) for name in HISTORY[:3]), hard, masked_mean(obs["visits"], valid)]
    now = np.stack(figures, axis=-1)
    new = np.where(history[..., :1] < 0.0, now, 0.5 * (history + now))
    new[..., -1] = now[..., -1]
    return new.astype(np.float32)


def extract_features(obs: Observation, history: Floats | None = None) -> NDArray[np.float32]:
    """Describe runs in D numbers that do not depend on N, C or the scale of losses.

    Args:
        obs: statistics (…, N), labels (…, N) with -1 for padding, scalars (…, 1).
        history: (…, P) from `update_history`; None counts as just begun.

    Returns:
        (…, D) float32 within [-1, 1], named by FEATURES.
    """
    label = obs["label"]
    valid = label >= 0  # (…, N)
    history = initial_history(*label.shape[:-1]) if history is None else np.asarray(history)
    spent, val, train = (_scalar(obs, name) for name in HISTORY[:3])
    elapsed = np.where(history[..., 0] < 0.0, 0.0, spent - history[..., 0])

    def slope(now: Floats, before: Floats) -> Floats:
        """Change of a figure over the share of the budget that has elapsed."""
        return np.tanh(np.where(elapsed > 0.0, now - before, 0.0) / np.maximum(elapsed, 1e-6))

    counts = class_sums(label, np.ones(label.shape))  # (…, C)
    classes = np.maximum((counts > 0).sum(axis=-1), 2)
    log_c = np.log(classes)
    share = counts / counts.sum(axis=-1, keepdims=True)
    balance = -(share * np.log(np.maximum(share, 1e-12))).sum(axis=-1) / log_c

    loss = obs["loss_mean"]
    mean = np.maximum(masked_mean(loss, valid), 1e-6)
    ordered = _sorted(loss, valid)
    quantiles = _quantiles(ordered, valid, LOSS_QUANTILES)  # (…, 6)
    of_class = class_sums(label, loss) / np.maximum(counts, 1.0)  # (…, C)
    deviation = of_class - masked_mean(of_class, counts > 0)[..., None]
    spread = np.sqrt(masked_mean(deviation**2, counts > 0)) / mean

    accuracy = obs["val_class_accuracy"][..., : counts.shape[-1]]  # (…, C)
    behind = masked_mean(accuracy, counts > 0)[..., None] - accuracy

    seen = valid & (obs["visits"] > 0)
    right, forgets, margin = obs["correct"] > 0, obs["forgets"], obs["margin"]
    volatility = np.sqrt(obs["loss_var"]) / np.maximum(loss, 1e-6)
    visits = masked_mean(obs["visits"], valid)
    just = seen & (obs["age"] == 0.0)  # measured in the last step; what was mixed is not
    others = seen & ~just
    measured = just.any(axis=-1)
    kept = np.where(history[..., 0] < 0.0, 0.0, np.clip(visits - history[..., -1], 0.0, 1.0))
    some = kept > 1e-5  # below is what float32 rounds off the mean of the visits
    mixed = np.where(some, 1.0 - masked_mean(just, valid) / np.maximum(kept, 1e-5), 0.0)

    def over_chance(accuracy: Floats) -> Floats:
        """Map the accuracy of guessing to -1 and full accuracy to 1."""
        return 2.0 * (accuracy * classes - 1.0) / (classes - 1.0) - 1.0

    def mean_of(values: NDArray) -> Floats:
        """Map the mean of values in [0, 1] over the samples to [-1, 1]."""
        return 2.0 * masked_mean(values, valid) - 1.0

    named = {
        "spent": 2.0 * spent - 1.0,
        "log_budget": np.log10(np.maximum(_scalar(obs, "budget"), 1e-6)) - 1.0,
        "log_classes": np.log10(classes) - 1.0,
        "balance": 2.0 * balance - 1.0,
        "val_accuracy": over_chance(val),
        "train_accuracy": over_chance(train),
        "gap": train - val,
        "val_slope": slope(val, history[..., 1]),
        "train_slope": slope(train, history[..., 2]),
        "loss": _squash(mean / log_c),
        "loss_top_tenth": 2.0 * _share_of_top_tenth(ordered, valid) - 1.0,
        "loss_spread_of_classes": _squash(spread),
        "hard_slope": slope(_mean_of_top_tenth(ordered, valid) / log_c, history[..., 3] / log_c),
        "margin_bimodality": 2.0 * _bimodality(obs["margin_mean"], valid) - 1.0,
        "class_spread": 4.0 * np.sqrt(masked_mean(behind**2, counts > 0)) - 1.0,
        "class_worst": 2.0 * np.where(counts > 0, accuracy, 1.0).min(axis=-1) - 1.0,
        "rare_behind": _correlation(-np.log(np.maximum(counts, 1.0)), behind, counts > 0),
        "right": mean_of(right),
        "never_seen": mean_of(~seen),
        "never_right": mean_of(seen & ~right & (forgets == 0)),
        "forgotten": mean_of(seen & ~right & (forgets > 0)),
        "ever_forgotten": mean_of(forgets > 0),
        "surely_wrong": mean_of(margin < -0.5),
        "surely_right": mean_of(margin > 0.5),
        "confidence": mean_of(obs["confidence"]),
        "entropy": mean_of(obs["entropy"]),
        "el2n": np.sqrt(2.0) * masked_mean(obs["el2n"], valid) - 1.0,
        "visits_gini": 2.0 * _gini(obs["visits"], valid) - 1.0,
        "last_kept": 2.0 * kept - 1.0,
        "last_mixed": 2.0 * mixed - 1.0,
        "last_loss_rank": np.where(measured, 2.0 * masked_mean(ranks(loss, valid), just) - 1.0, 0.0),
        "last_right": np.where(
            measured & others.any(axis=-1), masked_mean(right, just) - masked_mean(right, others), 0.0
        ),
    }
    for name, values, shares in (
        ("loss_q", quantiles / mean[..., None], LOSS_QUANTILES),
        ("loss_c", quantiles / log_c[..., None], LOSS_QUANTILES),
        ("volatility_q", _quantiles(_sorted(volatility, valid), valid, QUANTILES), QUANTILES),
        ("age_q", _quantiles(_sorted(obs["age"], valid), valid, QUANTILES), QUANTILES),
    ):
        named |= zip(_names(name, shares), np.moveaxis(_squash(values), -1, 0), strict=True)
    margins = _quantiles(_sorted(obs["margin_mean"], valid), valid, MARGIN_QUANTILES)
    named |= zip(_names("margin_q", MARGIN_QUANTILES), np.moveaxis(margins, -1, 0), strict=True)
    columns = [named[name] for name in FEATURES]
    return np.clip(np.stack(columns, axis=-1), -1.0, 1.0).astype(np.float32)


def _scalar(obs: Observation, name: str) -> Floats:
    """Return an entry (…, 1) of the observation as (…) float64."""
    return np.asarray(obs[name], np.float64)[..., 0]


def masked_mean(values: NDArray, mask: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return the mean over the last axis where the mask is set; 0 where it is nowhere set."""
    total = np.where(mask, values, 0).sum(axis=-1, dtype=np.float64)
    return total / np.maximum(mask.sum(axis=-1), 1)


def _sorted(values: Floats, valid: NDArray[np.bool_]) -> Floats:
    """Sort the last axis in rising order, with infinity for samples that are not valid."""
    return np.sort(np.where(valid, values, np.float32(np.inf)), axis=-1)


def _quantiles(ordered: Floats, valid: NDArray[np.bool_], shares: tuple[float, ...]) -> NDArray[np.float64]:
    """Return quantiles (…, Q) of `_sorted` values, interpolated linearly."""
    at = np.maximum(valid.sum(axis=-1, keepdims=True) - 1, 0) * np.array(shares)
    low = np.floor(at).astype(np.int64)
    below = np.take_along_axis(ordered, low, axis=-1).astype(np.float64)
    above = np.take_along_axis(ordered, np.ceil(at).astype(np.int64), axis=-1)
    return below + (at - low) * (above - below)


def _top_tenth(valid: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Mark where, in `_sorted` values (…, N), the largest tenth is."""
    n = valid.sum(axis=-1)
    position = np.arange(valid.shape[-1])
    return (position >= (n - np.maximum(n // 10, 1))[..., None]) & (position < n[..., None])


def _mean_of_top_tenth(ordered: Floats, valid: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return the mean of the largest tenth of `_sorted` values."""
    return masked_mean(ordered, _top_tenth(valid))


def _share_of_top_tenth(ordered: Floats, valid: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return the share of the sum of `_sorted` values that the largest tenth of them carries."""
    finite = np.where(np.isfinite(ordered), ordered, 0.0)
    total = finite.sum(axis=-1, dtype=np.float64)
    return (finite * _top_tenth(valid)).sum(axis=-1, dtype=np.float64) / np.maximum(total, 1e-6)


def _bimodality(values: Floats, valid: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return (skewness² + 1) / kurtosis, in (0, 1]: 1/3 for a normal distribution, 5/9 for a uniform one.

    It is 1 where there are just two values, and by definition 1/3 where all are equal.
    """
    deviation = values - masked_mean(values, valid)[..., None]
    second, third, fourth = (masked_mean(deviation**power, valid) for power in (2, 3, 4))
    spread = np.maximum(second, 1e-12)
    coefficient = (third**2 / spread**3 + 1.0) / np.maximum(fourth / spread**2, 1.0)
    return np.where(second > 1e-8, np.minimum(coefficient, 1.0), 1.0 / 3.0)


def _correlation(a: Floats, b: Floats, mask: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return Pearson's correlation over the last axis where the mask is set, 0 where one of them does not vary."""
    a, b = (x - masked_mean(x, mask)[..., None] for x in (a, b))
    spread = masked_mean(a**2, mask) * masked_mean(b**2, mask)
    return masked_mean(a * b, mask) / np.sqrt(np.maximum(spread, 1e-12)) * (spread > 1e-10)


def class_sums(label: NDArray[np.integer], values: Floats) -> NDArray[np.float64]:
    """Sum `values` (…, N) by label, to (…, C)."""
    classes = int(label.max(initial=1)) + 1
    runs = label.reshape(-1, label.shape[-1])
    flat = (runs + 1) + (classes + 1) * np.arange(len(runs))[:, None]  # bin 0 of a run: not valid
    sums = np.bincount(flat.ravel(), np.asarray(values, np.float64).ravel(), len(runs) * (classes + 1))
    return sums.astype(np.float64).reshape(*label.shape[:-1], classes + 1)[..., 1:]


def _gini(values: Floats, valid: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return the Gini coefficient over the last axis, 0 for equal values."""
    ordered = np.sort(np.where(valid, values, 0.0), axis=-1)  # samples that are not valid come first and weigh nothing
    n = valid.sum(axis=-1)
    rank = np.arange(1, values.shape[-1] + 1) - (values.shape[-1] - n)[..., None]
    total = ordered.sum(axis=-1, dtype=np.float64)
    gini = 2.0 * (rank * ordered).sum(axis=-1, dtype=np.float64) / np.maximum(n * total, 1e-12) - (n + 1) / np.maximum(
        n, 1
    )
    return np.where(total > 0, gini, 0.0)


def _squash(ratio: Floats) -> Floats:
    """Map [0, ∞) to [-1, 1), and 1 to 0."""
    return 1.0 - 2.0 / (1.0 + np.minimum(ratio, 1e6))
