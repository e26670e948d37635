"""Bootstrap intervals over seeds."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

LEVEL = 0.95
RESAMPLES = 10_000
SEED = 0  # fixed: the same results always print the same table


def mean_interval(values: ArrayLike) -> tuple[float, float]:
    """Percentile bootstrap interval, at 95 %, of the mean of `values` (S,): (low, high).

    One value gives the degenerate interval (value, value): nothing is known about the spread.

    Raises:
        ValueError: no value, or more than one axis.
    """
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 1 or not len(values):
        raise ValueError(f"values have shape {values.shape}; there must be one axis with at least one value")
    rng = np.random.default_rng(SEED)
    means = values[rng.integers(len(values), size=(RESAMPLES, len(values)))].mean(axis=1)  # (RESAMPLES,)
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)
