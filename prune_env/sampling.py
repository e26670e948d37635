"""Parts of rules: how many samples, the largest scores, draws, ranks, what the last steps have shown, Mixup shares.

An agent needs numpy and this package only, so its file can be copied into any project:

    import numpy as np
    from prune_env import sampling, select

    class HardHalf:
        '''Keep a fifth at random, and of the others the largest losses up to a half.'''

        def __call__(self, observation, rng):
            n = len(observation["loss"])
            drawn = sampling.uniform(n, sampling.n_keep(0.2, n), rng)
            scores = np.where(drawn, np.inf, observation["loss"])
            return select(sampling.top_k_mask(scores, sampling.n_keep(0.5, n), rng))

N is the number of samples and k the number to keep. Masks are (N,) bool. All take O(N) but
`ranks` and `proportional`, which sort.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from prune_env.selection import select

Observation = Mapping[str, np.ndarray]
Action = dict[str, NDArray[np.float32]]  # weight (N,), mixup (N,), score (N,)
Agent = Callable[[Observation, np.random.Generator], Action]
Mask = NDArray[np.bool_]

SAMPLE = 4096  # scores that bracket the border of a selection


def check(name: str, value: object, allowed: str | type[bool]) -> None:
    """Check a hyper-parameter of an agent.

    Args:
        name: what the message calls it.
        value: its value.
        allowed: `bool`, or an interval as mathematics writes it, e.g. "(0, 1]".

    Raises:
        ValueError: the value is not a number in the interval (or not True or False).
    """
    if isinstance(allowed, type):
        if not isinstance(value, allowed):
            raise ValueError(f"{name} must be True or False, not {value!r}")
        return
    low, high = map(float, allowed[1:-1].split(","))
    inside = (
        isinstance(value, (int, float, np.integer, np.floating))
        and not isinstance(value, bool)
        and low <= value <= high
        and not (value == low and allowed[0] == "(")
        and not (value == high and allowed[-1] == ")")
    )
    if not inside:
        raise ValueError(f"{name} must be a number in {allowed}, not {value!r}")


def check_whole(name: str, value: object, allowed: str) -> None:
    """Check a hyper-parameter that counts something, as `check` does; raises ValueError, also for 2.5."""
    check(name, value, allowed)
    if value != int(value):  # pyright: ignore[reportArgumentType]
        raise ValueError(f"{name} must be a whole number, not {value!r}")


def all_samples(observation: Observation) -> Action:
    """Return the action that keeps all samples with weight 1."""
    return select(np.ones(len(observation["loss"]), dtype=np.bool_))


def n_keep(keep: float, n: int) -> int:
    """Return how many of n samples a share `keep` in (0, 1] stands for: max(1, round(keep n))."""
    return max(1, round(keep * n))


def in_last(observation: Observation, share: float) -> bool:
    """Return whether the last `share` of the budget, in [0, 1], has begun."""
    return float(observation["spent"][0]) >= 1 - share - 1e-6  # spent is float32: 0.9 arrives as 0.89999998


def top_k_mask(scores: NDArray[np.floating], k: int, rng: np.random.Generator) -> Mask:
    """Return the mask of the k largest `scores` (N,), 0 <= k <= N; equals at the border are drawn uniformly."""
    mask = np.zeros(len(scores), dtype=np.bool_)
    if k == 0:
        return mask
    border = kth_largest(scores, k)
    mask = scores > border
    equals = np.flatnonzero(scores == border)
    mask[rng.choice(equals, k - np.count_nonzero(mask), replace=False, shuffle=False)] = True
    return mask


def kth_largest(scores: NDArray[np.floating], k: int) -> np.floating:
    """Return the k-th largest of `scores` (N,), 1 <= k <= N.

    Of many scores an evenly spaced sample brackets it (Floyd and Rivest 1975), and the few inside are partitioned:
    which takes a quarter of the time. Where the order of the scores makes the sample a poor one, all are partitioned.
    """
    step = len(scores) // SAMPLE
    if step >= 4:
        sample = np.sort(scores[::step])
        place = len(sample) * (1 - k / len(scores))
        margin = 2 * math.sqrt(len(sample)) + 1  # four standard errors at the most
        low, high = (sample[min(max(int(place + side), 0), len(sample) - 1)] for side in (-margin, margin))
        inside = scores[np.flatnonzero((scores >= low) & (scores <= high))]
        left = k - np.count_nonzero(scores > high)  # the place that is looked for, inside
        if 1 <= left <= len(inside):
            scores, k = inside, left
    return np.partition(scores, len(scores) - k)[len(scores) - k]


def ranks(values: NDArray[np.floating], valid: NDArray[np.bool_] | None = None) -> NDArray[np.float64]:
    """Rank `values` (…, N) among the valid ones, to (0, 1): (average 1-based rank - ½) / n.

    The mean of these is ½. A sample that is not in `valid` (…, N), which defaults to all, gets ½.
    """
    valid = np.ones(values.shape, np.bool_) if valid is None else valid
    masked = np.where(valid, values, np.inf)
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
    n = np.maximum(valid.sum(axis=-1, keepdims=True), 1)
    np.put_along_axis(result, order, (0.5 * (first + last) + 0.5) / n, axis=-1)
    return np.where(valid, result, 0.5)


def uniform(n: int, k: int, rng: np.random.Generator) -> Mask:
    """Return a mask of k of n samples; each subset of that size is equally likely."""
    return top_k_mask(rng.random(n, dtype=np.float32), k, rng)  # a third of the time that rng.choice takes


def fill(mask: Mask, k: int, rng: np.random.Generator) -> Mask:
    """Return `mask` (N,) with uniformly drawn other samples added, k in all; k is at least the mask's own number."""
    key = rng.random(len(mask), dtype=np.float32)
    np.maximum(key, mask, out=key)  # 1 is above every draw from [0, 1)
    return top_k_mask(key, k, rng)


def systematic(pi: NDArray[np.float64], k: int, rng: np.random.Generator) -> Mask:
    """Draw exactly k distinct samples, sample i with probability exactly pi_i; return their mask (N,).

    Systematic sampling: the samples lie end to end in random order, each as long as its pi. Those are drawn that one
    of the points u, u+1, ..., u+k-1 falls on, u ~ U[0, 1). The random order ties no pair together.

    Args:
        pi: (N,) inclusion probabilities in [0, 1] that sum to k.
        k: number of samples.
        rng: the agent's generator.
    """
    mask = pi > 1 - 1e-9  # taken outright: a step over any other then stays below 1 despite rounding
    order = rng.permutation(np.flatnonzero(~mask))
    left = k - np.count_nonzero(mask)
    points = np.minimum(np.ceil(np.cumsum(pi[order]) - rng.random()), left)  # points before each one's end
    points[-1:] = left  # where rounding of the sum lost the last point
    mask[order[np.diff(points, prepend=0.0) > 0]] = True
    return mask


def proportional(size: NDArray[np.float64], k: int) -> NDArray[np.float64]:
    """Return inclusion probabilities (N,) that sum to k, proportional to `size` (N,) > 0 as far as 1 allows.

    A sample whose share of k would be above 1 is certain, and the others divide the rest of k among them. Sorts.
    """
    if k == len(size):
        return np.ones(k)
    falling = np.sort(size)[::-1]
    rest = np.cumsum(falling[::-1])[::-1]  # of a sample and all smaller ones
    certain = int(np.argmax((k - np.arange(k)) * falling[:k] <= rest[:k] * (1 + 1e-12)))  # the first that is not
    return np.minimum(1.0, (k - certain) * size / rest[certain])


def latest(history: NDArray, values: NDArray, length: int) -> NDArray:
    """Return `history` (t, N), oldest first, with `values` (N,) as its newest row: the last `length` rows of it.

    An agent starts with no rows, np.empty((0, N)), and adds a statistic of each sample in every step.
    """
    return np.stack([*history, values][-length:])


def mixup_shares(mask: Mask, q: float, rng: np.random.Generator) -> NDArray[np.float32]:
    """Return shares (N,) float32 of a partner image: a sample of `mask` (N,) has one with probability q, others have 0.

    The share is min(λ, 1-λ), λ ~ Beta(0.4, 0.4): Mixup (Zhang et al., arXiv 1710.09412), the sample's own image
    staying the main one.
    """
    mixed = mask & (rng.random(len(mask)) < q)
    lam = rng.beta(0.4, 0.4, size=np.count_nonzero(mixed))
    shares = np.zeros(len(mask), dtype=np.float32)
    shares[mixed] = np.minimum(lam, 1 - lam)
    return shares
