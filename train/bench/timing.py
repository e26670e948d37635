"""Seconds of what is called, and of several works in turn: ratios within a round outlast a busy machine."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

Work = Callable[[], object]


def seconds(work: Work, device: torch.device | None = None) -> float:
    """Wall-clock seconds of a call, with all that it has sent to `device` if that is CUDA."""
    cuda = device is not None and device.type == "cuda"
    if cuda:
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    work()
    if cuda:
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def in_turn(works: Sequence[Work], rounds: int, device: torch.device | None = None) -> NDArray[np.float64]:
    """Seconds (rounds, W) of W works, called one after the other; a round before them warms up."""
    times = [[seconds(work, device) for work in works] for _ in range(rounds + 1)]
    return np.array(times[1:])


def ratio(times: NDArray[np.float64], work: int, to: int = 0) -> float:
    """Median over rounds of how many times as long as the work `to` another took; `times` as `in_turn` returns them."""
    return float(np.median(times[:, work] / times[:, to]))
