"""Rules: a few numbers, the rule parameters, choose among N samples.

Pure functions. Every array may have leading batch axes (…), one run each. Runs of unlike size are padded with samples
of label -1; a sample is `valid` if its label is 0 or more.
"""

from __future__ import annotations

import math
import zlib

import numpy as np
from numpy.typing import NDArray

from prune_env.policy.features import Floats, Observation, class_sums, masked_mean
from prune_env.sampling import ranks

# Each lies in [-1, 1].
RULE_PARAMETERS = (
    "keep",  # share kept, log scale: 0.1 at -1, 0.32 at 0, everything at 1
    "loss",  # prefers large running losses; below 0, small ones
    "middle",  # prefers the middle of their ranks; below 0, both ends
    "volatility",  # prefers losses of large running variance
    "age",  # prefers what was measured long ago
    "randomness",  # -1 takes the largest preferences, 1 draws uniformly, 0 draws softly
    "weighting",  # loss weights: 1 undoes the preference (importance weights), -1 doubles it, 0 is none
    "mixup",  # share of the kept samples that are blended with a dropped one: none at -1, all at 1
    "balance",  # prefers rare classes: at 1 (and randomness 0) by inverse class frequency; below 0, large ones
    "need",  # prefers classes of low validation accuracy; below 0, of high
    "wrong",  # avoids what is confidently predicted as another class, by the running margin; below 0, prefers it
    "right",  # avoids what is confidently predicted right; below 0, prefers it
)
FULL = np.array([{"keep": 1.0, "mixup": -1.0}.get(name, 0.0) for name in RULE_PARAMETERS])  # full training
SMALLEST_KEEP = 0.1
SHARE_DIGITS = 6  # a keep share is rounded to so many: float32 keeps these
TILT = 2.0  # preference of a sample at the logit 1 of its rank, where the parameter is 1
MIDDLE_WIDTH = 1.8  # as in agents.difficulty.Middle
NEED_TILT = 2.0  # preference of a class 1 below the mean accuracy of classes, where the parameter is 1
MARGIN_TILT = 6.0  # preference of a sample of running margin -1 (`wrong`) or 1 (`right`), where that parameter is -1
MAX_RATIO = 3.0  # largest ratio of a loss weight to the mean weight
MIN_RANDOMNESS = 1e-9  # at -1, so that ties are drawn uniformly


def apply_rule(obs: Observation, parameters: Floats, draws: Floats | None = None) -> dict[str, NDArray[np.float32]]:
    """Choose samples by a rule.

    Each sample has a preference u, the sum of its tilts. With z the logit of a rank in (0, 1), m the running margin, s
    the size of the sample's class relative to the mean size, a the validation accuracy of the class, ā the mean over
    classes:
    `2 loss z_loss - middle (z_loss / 1.8)² + 2 volatility z_volatility + 2 age z_age
    - balance log s + 2 need (ā - a) - 6 wrong max(-m, 0) - 6 right max(m, 0)`. Its key is (1-r) u + r g, g a
    Gumbel draw and r the randomness in [0, 1]; the k = max(1, round(keep n)) largest keys are kept. That is an
    exponential race with weights exp((1-r) u / r), of exact size. Given the largest key that was not kept, t,
    sample i was kept with probability π_i = 1 - exp(-exp(((1-r) u_i - t) / r)) (priority sampling), and its loss
    weight is π_i^-weighting over the mean of those kept, within a factor of 3. A kept sample that was trained on
    before is blended with probability (mixup + 1) / 2, with a share in [0, 0.5] of mean 1/6.

    Args:
        obs: statistics (…, N), labels (…, N) with -1 for padding, `val_class_accuracy` (…, C).
        parameters: (…, R), named by RULE_PARAMETERS, clipped to [-1, 1].
        draws: (…, N, 2) uniform in [0, 1). None seeds them with `obs` itself (`spent`, `val_accuracy`, and `label`,
            `loss` and `visits` of the valid samples), so that equal observations draw alike, also batched or padded.

    Returns:
        {"weight": (…, N), "mixup": (…, N)}, float32.

    Raises:
        ValueError: there are not R finite parameters a run, or the draws have another shape.
    """
    parameters = np.asarray(parameters, np.float64)
    valid = obs["label"] >= 0
    if parameters.shape != (*valid.shape[:-1], len(RULE_PARAMETERS)) or not np.isfinite(parameters).all():
        names = ", ".join(RULE_PARAMETERS)
        raise ValueError(f"a rule is {len(RULE_PARAMETERS)} finite numbers, {names}; got {parameters}")
    if draws is None:
        draws = _draws_from(obs, valid)
    elif draws.shape != (*valid.shape, 2):
        raise ValueError(f"draws have shape {draws.shape}; they must have {(*valid.shape, 2)}, two a sample")
    keep, loss, middle, volatility, age, randomness, weighting, mixup, balance, need, wrong, right = np.moveaxis(
        np.clip(parameters, -1.0, 1.0)[..., None], -2, 0
    )  # (…, 1) each
    r = np.maximum((randomness + 1.0) / 2.0, MIN_RANDOMNESS)

    preference = np.zeros(valid.shape)
    if loss.any() or middle.any():  # ranking is most of the work: only statistics that count are ranked
        z = _logit(ranks(obs["loss_mean"], valid))
        preference += TILT * loss * z - middle * (z / MIDDLE_WIDTH) ** 2
    for tilt, name in ((volatility, "loss_var"), (age, "age")):
        if tilt.any():
            preference += TILT * tilt * _logit(ranks(obs[name], valid))
    if balance.any() or need.any():
        preference += _tilt_of_classes(obs, balance, need)
    if wrong.any() or right.any():
        margin = obs["margin_mean"]
        preference -= MARGIN_TILT * (wrong * np.maximum(-margin, 0.0) + right * np.maximum(margin, 0.0))
    gumbel = -np.log(-np.log(np.clip(draws[..., 0], 1e-300, 1.0 - 1e-16)))
    keys = np.where(valid, (1.0 - r) * preference + r * gumbel, -np.inf)  # (…, N)

    n = valid.sum(axis=-1, keepdims=True)
    keep_share = np.round(SMALLEST_KEEP ** ((1.0 - keep) / 2.0), SHARE_DIGITS)  # half of an odd n is as for agents
    k = np.maximum(1, np.rint(keep_share * n)).astype(np.int64)  # (…, 1)
    kept, border = _top_k(keys, k)
    kept &= valid

    border = np.where(k < n, border, -np.inf)  # t; where all are kept, π is 1
    reach = np.clip(((1.0 - r) * np.where(valid, preference, 0.0) - border) / r, -30.0, 30.0)
    log_probability = np.log(-np.expm1(-np.exp(reach)))  # log π
    weight = np.exp(-weighting * log_probability)
    weight = np.clip(weight / masked_mean(weight, kept)[..., None], 1.0 / MAX_RATIO, MAX_RATIO)

    blend = (mixup + 1.0) / 2.0  # probability
    blended = kept & (draws[..., 1] < blend) & (obs["visits"] > 0)
    share = 0.5 * (draws[..., 1] / np.maximum(blend, 1e-12)) ** 2  # given that it is blended: half a uniform's square
    return {
        "weight": np.where(kept, weight, 0.0).astype(np.float32),
        "mixup": np.where(blended, share, 0.0).astype(np.float32),
    }


def _tilt_of_classes(obs: Observation, balance: Floats, need: Floats) -> NDArray[np.float64]:
    """Return `-balance log s + 2 need (ā - a)` of each sample, (…, N); see `apply_rule`."""
    label = obs["label"]
    counts = class_sums(label, np.ones(label.shape))  # (…, C)
    present = counts > 0
    size = counts / np.maximum(masked_mean(counts, present)[..., None], 1.0)
    accuracy = obs["val_class_accuracy"][..., : counts.shape[-1]]
    behind = masked_mean(accuracy, present)[..., None] - accuracy
    tilt = NEED_TILT * need * behind - balance * np.log(np.where(present, size, 1.0))  # (…, C)
    return np.take_along_axis(tilt, np.maximum(label, 0), axis=-1)


def draw_uniform(rng: np.random.Generator, valid: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Draw (N, 2) uniform numbers for the `valid` samples (N,); others get zeros and use up no draw."""
    draws = np.zeros((len(valid), 2))
    draws[valid] = rng.random((np.count_nonzero(valid), 2))
    return draws


def keep_parameter(share: float) -> float:
    """Return the rule parameter `keep` that keeps this share, from 0.1 to 1."""
    return 1.0 - 2.0 * math.log(share) / math.log(SMALLEST_KEEP)


def _draws_from(obs: Observation, valid: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Draw (…, N, 2) uniform numbers by a generator for each run, seeded with a checksum of the run's observation."""
    draws = np.empty((*valid.shape, 2))
    for run in np.ndindex(valid.shape[:-1]):
        shown = [obs[name][run] for name in ("spent", "val_accuracy")]
        shown += [obs[name][run][valid[run]] for name in ("label", "loss", "visits")]
        seed = 0
        for values in shown:
            seed = zlib.crc32(np.asarray(values, np.float32).tobytes(), seed)
        draws[run] = draw_uniform(np.random.default_rng(seed), valid[run])
    return draws


def _top_k(keys: NDArray[np.float64], k: NDArray[np.int64]) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    """Mark the k (…, 1) largest of `keys` (…, N) in each run, and find the largest key that is not among them.

    Ties at the border are broken in the order of `np.argsort`. Where k = N the second result has no meaning.

    Returns:
        (…, N) bool, (…, 1) float64.
    """
    n = keys.shape[-1]
    kept, border = np.zeros(keys.shape, np.bool_), np.zeros(k.shape)
    for run in np.ndindex(keys.shape[:-1]):
        row, count = keys[run], int(k[run][0])
        if count == n:
            kept[run] = True
            continue
        border[run], smallest = np.partition(row, (n - count - 1, n - count))[n - count - 1 : n - count + 1]
        if border[run] < smallest:
            kept[run] = row >= smallest
        else:
            kept[run][np.argsort(-row)[:count]] = True
    return kept, border


def _logit(share: Floats) -> Floats:
    """Map (0, 1) to the real line, and ½ to 0."""
    return np.log(share / (1.0 - share))
