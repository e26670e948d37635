"""Small spaces from big ones: what a policy sees of N samples, and how a few numbers choose among them.

Pure functions; every array may have leading batch axes (…), one run each. A sample whose label is -1 is not
there: runs of unlike size are padded with such. Single env, vector env, wrappers and agents share these.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

Observation = Mapping[str, NDArray]
Floats = NDArray[np.floating]

# What the numbers of a rule mean; each lies in [-1, 1].
RULE = (
    "keep",  # share kept, log scale: 0.1 at -1, 0.32 at 0, everything at 1
    "loss",  # prefers large running losses; below 0, small ones
    "middle",  # prefers the middle of their ranks; below 0, both ends
    "volatility",  # prefers losses of large running variance
    "age",  # prefers what was measured long ago
    "randomness",  # -1 takes the largest preferences, 1 draws uniformly, 0 draws softly
    "weighting",  # loss weights: 1 undoes the preference (importance weights), -1 doubles it, 0 is none
    "mixup",  # share of the kept samples that are blended with a dropped one: none at -1, all at 1
)
SMALLEST_KEEP = 0.1
SHARE_DIGITS = 6  # that a share has, which float32 keeps
TILT = 2.0  # preference of a sample at the logit 1 of its rank, where the rule's number is 1
MIDDLE_WIDTH = 1.8  # as in agents.difficulty.Middle
MAX_RATIO = 3.0  # of a loss weight to the mean weight
TIE = 1e-9  # share of randomness that is left at -1: equals are drawn uniformly

PAST = ("spent", "val_accuracy", "train_accuracy", "visits")  # the first three as running means
LOSS_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.9, 0.97)
SUMMARY = (
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
    *(f"loss_q{round(100 * q)}" for q in LOSS_QUANTILES),  # against the mean
    *(f"loss_c{round(100 * q)}" for q in LOSS_QUANTILES),  # against log C
    "loss_top_tenth",  # share of all loss that the largest tenth carries
    "loss_spread_of_classes",
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
    "volatility_q50",
    "volatility_q90",
    "age_q50",
    "age_q90",
    "visits_gini",
    "last_kept",
    "last_mixed",
    "last_loss_rank",  # of what was measured in the last step, by the running loss
    "last_right",  # shares right: of what was measured in the last step, minus of what was seen before; else 0
)


def begin(*batch: int) -> NDArray[np.float32]:
    """The past (*batch, P) of runs that have none."""
    return np.full((*batch, len(PAST)), -1.0, np.float32)


def remember(past: Floats, obs: Observation) -> NDArray[np.float32]:
    """The past (…, P) once `obs` has been acted on: what slopes and the last action are read from."""
    there = obs["label"] >= 0
    now = np.stack([*(_figure(obs, name) for name in PAST[:3]), _mean(obs["visits"], there)], axis=-1)
    new = np.where(past[..., :1] < 0.0, now, 0.5 * (past + now))
    new[..., 3] = now[..., 3]
    return new.astype(np.float32)


def summarize(obs: Observation, past: Floats | None = None) -> NDArray[np.float32]:
    """A run's state in D numbers, free of N, C and the scale of losses.

    Args:
        obs: statistics (…, N), labels (…, N) with -1 for no sample, figures (…, 1).
        past: (…, P) from `remember` or `begin`; without one the run counts as just begun.

    Returns:
        (…, D) float32 within [-1, 1], named by SUMMARY.
    """
    label = obs["label"]
    there = label >= 0  # (…, N)
    past = begin(*label.shape[:-1]) if past is None else np.asarray(past)
    spent, val, train = (_figure(obs, name) for name in PAST[:3])
    passed = np.where(past[..., 0] < 0.0, 0.0, spent - past[..., 0])

    def slope(now: Floats, before: Floats) -> Floats:
        """Change per tenth of the budget, tenfold."""
        return np.tanh(np.where(passed > 0.0, now - before, 0.0) / np.maximum(passed, 1e-6))

    counts = _class_counts(label, np.ones(label.shape))  # (…, C)
    classes = np.maximum((counts > 0).sum(axis=-1), 2)
    log_c = np.log(classes)
    share = counts / counts.sum(axis=-1, keepdims=True)
    balance = -(share * np.log(np.maximum(share, 1e-12))).sum(axis=-1) / log_c

    loss = obs["loss_mean"]
    mean = np.maximum(_mean(loss, there), 1e-6)
    ordered = _sorted(loss, there)
    quantiles = _quantiles(ordered, there, LOSS_QUANTILES)  # (…, 6)
    n = there.sum(axis=-1)
    position = np.arange(label.shape[-1])
    tenth = (position >= (n - np.maximum(n // 10, 1))[..., None]) & (position < n[..., None])
    finite = np.where(np.isfinite(ordered), ordered, 0.0)
    total = finite.sum(axis=-1, dtype=np.float64)
    top = (finite * tenth).sum(axis=-1, dtype=np.float64) / np.maximum(total, 1e-6)
    by_class = _class_counts(label, loss) / np.maximum(counts, 1.0)
    spread = np.sqrt(_mean((by_class - _mean(by_class, counts > 0)[..., None]) ** 2, counts > 0)) / mean

    seen = there & (obs["visits"] > 0)
    right, forgets, margin = obs["correct"] > 0, obs["forgets"], obs["margin"]
    volatility = np.sqrt(obs["loss_var"]) / np.maximum(loss, 1e-6)
    visits = _mean(obs["visits"], there)
    just = seen & (obs["age"] == 0.0)  # measured in the last step; what was mixed is not
    others = seen & ~just
    kept = np.where(past[..., 0] < 0.0, 0.0, np.clip(visits - past[..., 3], 0.0, 1.0))
    mixed = np.where(kept > 0.0, 1.0 - _mean(just, there) / np.maximum(kept, 1e-6), 0.0)

    def chance(accuracy: Floats) -> Floats:
        """Accuracy with that of guessing at -1 and 1 at 1."""
        return 2.0 * (accuracy * classes - 1.0) / (classes - 1.0) - 1.0

    columns = [
        2.0 * spent - 1.0,
        np.log10(np.maximum(_figure(obs, "budget"), 1e-6)) - 1.0,
        np.log10(classes) - 1.0,
        2.0 * balance - 1.0,
        chance(val),
        chance(train),
        train - val,
        slope(val, past[..., 1]),
        slope(train, past[..., 2]),
        _squash(mean / log_c),
        *np.moveaxis(_squash(quantiles / mean[..., None]), -1, 0),
        *np.moveaxis(_squash(quantiles / log_c[..., None]), -1, 0),
        2.0 * top - 1.0,
        _squash(spread),
        2.0 * _mean(right, there) - 1.0,
        2.0 * _mean(~seen, there) - 1.0,
        2.0 * _mean(seen & ~right & (forgets == 0), there) - 1.0,
        2.0 * _mean(seen & ~right & (forgets > 0), there) - 1.0,
        2.0 * _mean(forgets > 0, there) - 1.0,
        2.0 * _mean(margin < -0.5, there) - 1.0,
        2.0 * _mean(margin > 0.5, there) - 1.0,
        2.0 * _mean(obs["confidence"], there) - 1.0,
        2.0 * _mean(obs["entropy"], there) - 1.0,
        np.sqrt(2.0) * _mean(obs["el2n"], there) - 1.0,
        *np.moveaxis(_squash(_quantiles(_sorted(volatility, there), there, (0.5, 0.9))), -1, 0),
        *np.moveaxis(_squash(_quantiles(_sorted(obs["age"], there), there, (0.5, 0.9))), -1, 0),
        2.0 * _gini(obs["visits"], there) - 1.0,
        2.0 * kept - 1.0,
        2.0 * mixed - 1.0,
        np.where(just.any(axis=-1), 2.0 * _mean(ranks(loss, there), just) - 1.0, 0.0),
        np.where(just.any(axis=-1) & others.any(axis=-1), _mean(right, just) - _mean(right, others), 0.0),
    ]
    return np.clip(np.stack(columns, axis=-1), -1.0, 1.0).astype(np.float32)


def decode_rule(obs: Observation, numbers: Floats, draws: Floats | None = None) -> dict[str, NDArray[np.float32]]:
    """The action that a rule of a few numbers takes.

    Each sample has a preference u, the sum of its tilts: with z the logit of a rank in (0, 1),
    `2 loss z_loss - middle (z_loss / 1.8)² + 2 volatility z_volatility + 2 age z_age`. Its key is (1-r) u + r g, g a
    Gumbel draw and r the randomness in [0, 1]; the k = max(1, round(keep n)) largest keys are kept. That is an
    exponential race with weights exp((1-r) u / r), of exact size. Given the largest key that was not kept, t,
    sample i was kept with probability π_i = 1 - exp(-exp(((1-r) u_i - t) / r)) (priority sampling), and its loss
    weight is π_i^-weighting over the mean of those kept, within a factor of 3. A kept sample that was trained on
    before is blended with probability (mixup + 1) / 2, with a share in [0, 0.5] of mean 1/6.

    Args:
        obs: statistics (…, N), labels (…, N) with -1 for no sample.
        numbers: (…, R), named by RULE, clipped to [-1, 1].
        draws: (…, N, 2) uniform in [0, 1). None makes them follow from `obs` itself, from `spent`, `val_accuracy`, and
            `label`, `loss` and `visits` of the samples that are there: a run draws the same whenever it shows the same,
            also in a batch or padded, and something else when any of these differs.

    Returns:
        {"weight": (…, N), "mixup": (…, N)}, float32.

    Raises:
        ValueError: numbers that are not R a run, or not finite; draws of another shape.
    """
    numbers = np.asarray(numbers, np.float64)
    there = obs["label"] >= 0
    if numbers.shape != (*there.shape[:-1], len(RULE)) or not np.isfinite(numbers).all():
        raise ValueError(f"a rule is {len(RULE)} finite numbers, {', '.join(RULE)}; got {numbers}")
    if draws is None:
        draws = _draws_of(obs, there)
    elif draws.shape != (*there.shape, 2):
        raise ValueError(f"draws have shape {draws.shape}; they must have {(*there.shape, 2)}, two a sample")
    keep, loss, middle, volatility, age, randomness, weighting, mixup = np.moveaxis(
        np.clip(numbers, -1.0, 1.0)[..., None], -2, 0
    )  # (…, 1) each
    r = np.maximum((randomness + 1.0) / 2.0, TIE)

    preference = np.zeros(there.shape)
    if loss.any() or middle.any():  # ranking is most of the work: only what counts is ranked
        z = _logit(ranks(obs["loss_mean"], there))
        preference += TILT * loss * z - middle * (z / MIDDLE_WIDTH) ** 2
    for number, name in ((volatility, "loss_var"), (age, "age")):
        if number.any():
            preference += TILT * number * _logit(ranks(obs[name], there))
    gumbel = -np.log(-np.log(np.clip(draws[..., 0], 1e-300, 1.0 - 1e-16)))
    keys = np.where(there, (1.0 - r) * preference + r * gumbel, -np.inf)  # (…, N)

    n = there.sum(axis=-1, keepdims=True)
    share = np.round(SMALLEST_KEEP ** ((1.0 - keep) / 2.0), SHARE_DIGITS)  # a half of an odd n is one, as for agents
    k = np.maximum(1, np.rint(share * n)).astype(np.int64)  # (…, 1)
    kept, border = _largest(keys, k)
    kept &= there
    border = np.where(k < n, border, -np.inf)
    reach = np.clip(((1.0 - r) * np.where(there, preference, 0.0) - border) / r, -30.0, 30.0)
    weight = np.exp(-weighting * np.log(-np.expm1(-np.exp(reach))))
    weight = np.clip(weight / _mean(weight, kept)[..., None], 1.0 / MAX_RATIO, MAX_RATIO)

    q = (mixup + 1.0) / 2.0
    blended = kept & (draws[..., 1] < q) & (obs["visits"] > 0)
    share = 0.5 * (draws[..., 1] / np.maximum(q, 1e-12)) ** 2
    return {
        "weight": np.where(kept, weight, 0.0).astype(np.float32),
        "mixup": np.where(blended, share, 0.0).astype(np.float32),
    }


def draw(rng: np.random.Generator, there: NDArray[np.bool_]) -> NDArray[np.float64]:
    """(N, 2) uniform numbers; a sample that is not `there` (N,) has zeros and uses up none."""
    draws = np.zeros((len(there), 2))
    draws[there] = rng.random((np.count_nonzero(there), 2))
    return draws


def keep_number(share: float) -> float:
    """The number of a rule that keeps this share, in [SMALLEST_KEEP, 1]."""
    return 1.0 - 2.0 * math.log(share) / math.log(SMALLEST_KEEP)


def ranks(values: Floats, there: NDArray[np.bool_] | None = None) -> NDArray[np.float64]:
    """Ranks of `values` (…, N) among those that are there, in (0, 1): (average 1-based rank - ½) / n.

    The mean of these is ½; a sample that is not there gets ½.
    """
    there = np.ones(values.shape, np.bool_) if there is None else there
    masked = np.where(there, values, np.inf)
    order = np.argsort(masked, axis=-1)
    ordered = np.take_along_axis(masked, order, axis=-1)
    position = np.broadcast_to(np.arange(masked.shape[-1]), masked.shape)
    new = np.ones(masked.shape, np.bool_)  # where a group of equals starts
    new[..., 1:] = ordered[..., 1:] != ordered[..., :-1]
    first = np.maximum.accumulate(np.where(new, position, 0), axis=-1)
    end = np.roll(new, -1, axis=-1)
    end[..., -1] = True
    last = np.minimum.accumulate(np.where(end, position, masked.shape[-1])[..., ::-1], axis=-1)[..., ::-1]
    result = np.empty(masked.shape)
    n = np.maximum(there.sum(axis=-1, keepdims=True), 1)
    np.put_along_axis(result, order, (0.5 * (first + last) + 0.5) / n, axis=-1)
    return np.where(there, result, 0.5)


def _draws_of(obs: Observation, there: NDArray[np.bool_]) -> NDArray[np.float64]:
    """(…, N, 2) from `draw`, by a generator for each run, which is seeded with a digest of what `obs` holds of it."""
    draws = np.empty((*there.shape, 2))
    for run in np.ndindex(there.shape[:-1]):
        shown = [obs[name][run] for name in ("spent", "val_accuracy")]
        shown += [obs[name][run][there[run]] for name in ("label", "loss", "visits")]
        seed = 0
        for values in shown:
            seed = zlib.crc32(np.asarray(values, np.float32).tobytes(), seed)
        draws[run] = draw(np.random.default_rng(seed), there[run])
    return draws


def _largest(keys: NDArray[np.float64], k: NDArray[np.int64]) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    """Which of `keys` (…, N) are among the k (…, 1) largest of their run, and the largest one that is not.

    Equals at the border are parted in the order of `np.argsort`. Where k = N the second is of no meaning.

    Returns:
        (…, N) bool, (…, 1) float64.
    """
    n = keys.shape[-1]
    kept, border = np.zeros(keys.shape, np.bool_), np.zeros(k.shape)
    for run in np.ndindex(keys.shape[:-1]):
        of_run, count = keys[run], int(k[run][0])
        if count == n:
            kept[run] = True
            continue
        border[run], smallest = np.partition(of_run, (n - count - 1, n - count))[n - count - 1 : n - count + 1]
        if border[run] < smallest:
            kept[run] = of_run >= smallest
        else:
            kept[run][np.argsort(-of_run)[:count]] = True
    return kept, border


def _figure(obs: Observation, name: str) -> Floats:
    return np.asarray(obs[name], np.float64)[..., 0]


def _mean(values: NDArray, mask: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Mean over the last axis where the mask is set; 0 without any."""
    total = np.where(mask, values, 0).sum(axis=-1, dtype=np.float64)
    return total / np.maximum(mask.sum(axis=-1), 1)


def _sorted(values: Floats, there: NDArray[np.bool_]) -> Floats:
    """In rising order, what is not there last, as infinity."""
    return np.sort(np.where(there, values, np.float32(np.inf)), axis=-1)


def _quantiles(ordered: Floats, there: NDArray[np.bool_], shares: tuple[float, ...]) -> NDArray[np.float64]:
    """(…, Q) of `_sorted` values, interpolated linearly."""
    at = np.maximum(there.sum(axis=-1, keepdims=True) - 1, 0) * np.array(shares)
    low = np.floor(at).astype(np.int64)
    below = np.take_along_axis(ordered, low, axis=-1).astype(np.float64)
    above = np.take_along_axis(ordered, np.ceil(at).astype(np.int64), axis=-1)
    return below + (at - low) * (above - below)


def _class_counts(label: NDArray[np.integer], values: Floats) -> NDArray[np.float64]:
    """(…, C) sums of `values` (…, N) by label."""
    classes = int(label.max(initial=1)) + 1
    runs = label.reshape(-1, label.shape[-1])
    flat = (runs + 1) + (classes + 1) * np.arange(len(runs))[:, None]  # bin 0 of a run: not there
    sums = np.bincount(flat.ravel(), np.asarray(values, np.float64).ravel(), len(runs) * (classes + 1))
    return sums.astype(np.float64).reshape(*label.shape[:-1], classes + 1)[..., 1:]


def _gini(values: Floats, there: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Gini coefficient over the last axis, 0 for equal values."""
    ordered = np.sort(np.where(there, values, 0.0), axis=-1)  # what is not there comes first and weighs nothing
    n = there.sum(axis=-1)
    rank = np.arange(1, values.shape[-1] + 1) - (values.shape[-1] - n)[..., None]
    total = ordered.sum(axis=-1, dtype=np.float64)
    gini = 2.0 * (rank * ordered).sum(axis=-1, dtype=np.float64) / np.maximum(n * total, 1e-12) - (n + 1) / np.maximum(
        n, 1
    )
    return np.where(total > 0, gini, 0.0)


def _squash(ratio: Floats) -> Floats:
    """[0, ∞) to [-1, 1), 1 to 0."""
    return 1.0 - 2.0 / (1.0 + np.minimum(ratio, 1e6))


def _logit(share: Floats) -> Floats:
    return np.log(share / (1.0 - share))
