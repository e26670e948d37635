"""Which samples a step trains on: from an agent's action to the rows that are batched."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray

from prune_env.checks import whole

MAX_WEIGHT = 10.0  # upper bound W of `weight`: room for 1 / (1 - r) at r = 0.9
MAX_MIXUP = 0.5  # a larger share would make the partner the main image
BOUNDS = {"weight": MAX_WEIGHT, "mixup": MAX_MIXUP, "score": 1.0}

Action = dict[str, NDArray[np.float32]]

_REMEDY = (
    'it must be {"weight": (N,), "mixup": (N,)} and, to score, "score": (N,), which '
    "prune_env.select(weight, mixup, score) builds"
)


def select(
    weight: ArrayLike, mixup: ArrayLike | None = None, score: ArrayLike | None = None, *, n: int | None = None
) -> Action:
    """Build a valid action from a mask, from weights, or from indices.

    Args:
        weight: (N,) bool mask, which may also be of the integers 0 and 1; or (N,) float loss weights in [0, 10], 0
            drops the sample; or (k,) distinct integer indices of the samples to keep, each with weight 1.
        mixup: (N,) float in [0, 0.5] or one number for all, the share of a partner image; none by default.
        score: (N,) bool mask of the samples whose statistics are to be measured afresh after the training, by a
            forward pass alone that costs a third of a visit; none by default.
        n: number of training samples N. Needed with indices, which do not tell it, and checked otherwise.

    Returns:
        {"weight": (N,) float32, "mixup": (N,) float32, "score": (N,) float32}.

    Raises:
        ValueError: indices without `n`, out of range or repeated; a wrong shape; a value out of bounds.
        TypeError: an array that is neither bool, integer nor float.
    """
    if n is not None and whole("n", n) < 0:
        raise ValueError(f"n is {n}; it must be a number of samples")
    weights = _array("weight", weight)
    if weights.size == 0 and isinstance(weight, list | tuple):
        weights = weights.astype(np.int64)  # no indices; numpy takes an empty list for floats
    if weights.ndim != 1:
        raise ValueError(f"weight has shape {weights.shape}; it must have one axis: a mask, weights or indices")
    if np.issubdtype(weights.dtype, np.integer):
        weights = _mask(weights, n)
    if n is not None and len(weights) != n:
        raise ValueError(
            f"weight has {len(weights)} entries of {weights.dtype}; n says {n} samples. Indices must be integers"
        )
    given: dict[str, ArrayLike] = {"weight": weights}
    if mixup is not None:
        shares = _array("mixup", mixup)
        given["mixup"] = shares if shares.ndim else np.broadcast_to(shares, weights.shape)
    if score is not None:
        given["score"] = score
    return _checked(given, len(weights))


def _mask(indices: NDArray[np.integer], n: int | None) -> NDArray[np.bool_]:
    zeros, ones = np.count_nonzero(indices == 0), np.count_nonzero(indices == 1)
    if zeros + ones == len(indices) and max(zeros, ones) > 1 and n in (None, len(indices)):
        return indices == 1  # as indices they would repeat
    if n is None:
        raise ValueError("integers are read as indices: say how many samples there are, select(indices, n=N)")
    wrong = indices[(indices < 0) | (indices >= n)]
    if len(wrong):
        raise ValueError(f"index {wrong[0]} is not among the {n} samples; indices run from 0 to {n - 1}")
    mask = np.zeros(n, dtype=np.bool_)
    mask[indices] = True
    if np.count_nonzero(mask) != len(indices):
        raise ValueError("an index is repeated; a sample is trained on at most once in a step")
    return mask


def check(action: object, n: int) -> Action:
    """Return `action` as float32 copies, or say what is wrong with it.

    Args:
        action: what an agent returned: {"weight": (n,), "mixup": (n,), "score": (n,)}, any real dtype; without
            "score" nothing is scored.
        n: number of training samples.

    Raises:
        TypeError: not a mapping of real arrays.
        ValueError: wrong keys, a wrong shape, or a value that is NaN, negative or above the bound.
    """
    if not isinstance(action, Mapping):
        found = "None, as of a function without `return`" if action is None else f"a {type(action).__name__}"
        raise TypeError(f"the action is {found}; {_REMEDY}")
    if set(action) | {"score"} != set(BOUNDS):
        raise ValueError(f"the action has the keys {sorted(map(str, action))}; {_REMEDY}")
    return _checked(action, n)


def _checked(given: Mapping, n: int) -> Action:
    """Return float32 copies of the entries that are given, once they are valid, and zeros for the others."""
    return {
        key: _check_entry(key, given[key], n, bound) if key in given else np.zeros(n, np.float32)
        for key, bound in BOUNDS.items()
    }


def _array(name: str, values: object) -> NDArray:
    try:
        return np.asarray(values)
    except (ValueError, TypeError, RuntimeError) as error:  # ragged lists, tensors with a gradient or in bfloat16
        raise ValueError(f"{name} cannot be read as an array: {error}") from error


def _check_entry(key: str, values: object, n: int, bound: float) -> NDArray[np.float32]:
    array = _array(f"action[{key!r}]", values)
    if array.dtype.kind not in "biuf":
        raise TypeError(f"action[{key!r}] has dtype {array.dtype}; it must hold real numbers")
    if array.shape != (n,):
        raise ValueError(f"action[{key!r}] has shape {array.shape}; it must be ({n},), one number a sample")
    with np.errstate(over="ignore"):  # what becomes infinite is refused below
        array = array.astype(np.float32)
    # min and max carry a NaN through, and a comparison with NaN is false
    if n and not (array.min() >= 0.0 and array.max() <= bound):
        at = int(np.flatnonzero(~((array >= 0.0) & (array <= bound)))[0])
        raise ValueError(f"action[{key!r}][{at}] is {array[at]}; it must lie in [0, {bound}]")
    return array


@dataclass(frozen=True)
class Selection:
    """The k rows that a step trains on, (k,) each, in the order in which they are batched, and those it scores."""

    indices: NDArray[np.int64]  # distinct samples
    weights: NDArray[np.float32]  # > 0, multiplies the loss
    partners: NDArray[np.int64]  # sample blended in; the sample itself where it is not mixed
    shares: NDArray[np.float32]  # share of the partner, in [0, 0.5]
    scored: NDArray[np.int64]  # (s,) distinct samples to measure by a forward pass alone, in random order

    def __len__(self) -> int:
        return len(self.indices)

    @cached_property  # loops ask for every batch
    def mixed(self) -> int:
        """Number of rows that are blended with a partner."""
        return int(np.count_nonzero(self.shares))

    def head(self, k: int, scored: int) -> Selection:
        """Return the first k rows and so many scored ones: a random part, since the order is random."""
        return Selection(self.indices[:k], self.weights[:k], self.partners[:k], self.shares[:k], self.scored[:scored])

    @classmethod
    def from_action(cls, action: Action, rng: np.random.Generator) -> Selection:
        """Shuffle what a checked action keeps, and draw the partners.

        Every sample draws its place and its partner's whether it is kept or not, so that with equal
        generators two agents see the samples that both keep in the same order. Partners are drawn from the dropped
        samples, or from all if none is dropped; a sample can then be its own partner.

        Args:
            action: as returned by `check` or `select`; (N,) each.
            rng: this step's generator; advanced by N draws, and by N more if anything is mixed.
        """
        weight, mixup = action["weight"], action["mixup"]
        place = rng.random(len(weight))
        kept, scored = (rows[order(place[rows])] for rows in map(np.flatnonzero, (weight > 0, action["score"] > 0)))
        shares = mixup[kept]
        partners = kept.copy()
        mixed = np.flatnonzero(shares)
        if len(mixed):
            partner = rng.random(len(weight))
            pool = np.flatnonzero(weight == 0)
            pool = pool if len(pool) else np.sort(kept)
            partners[mixed] = pool[(partner[kept[mixed]] * len(pool)).astype(np.int64)]
        return cls(kept, weight[kept], partners, shares, scored)


def order(place: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return the stable `np.argsort` of uniform draws (k,) from [0, 1), in a sixth of the time for a million.

    A draw's leading bits and its index are packed into one integer, and numpy sorts integers fast.
    """
    bits = len(place).bit_length()
    keys = (place * 2.0 ** (64 - bits)).astype(np.uint64) << np.uint64(bits) | np.arange(len(place), dtype=np.uint64)
    keys.sort()
    found = (keys & np.uint64(2**bits - 1)).astype(np.int64)
    placed = place[found]
    if np.any(placed[1:] < placed[:-1]):  # draws that differ in the last bits only
        found = found[np.argsort(placed, kind="stable")]
    return found
