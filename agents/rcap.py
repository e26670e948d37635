"""RCAP: how many samples of each class by its loss, and which of them by theirs."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from prune_env import select
from prune_env.sampling import Action, Observation, check, n_keep, proportional, systematic


@dataclass(kw_only=True, frozen=True)
class RCAP:
    """RCAP (Hassan, Khare, Paik, arXiv 2606.11761), in part reconstructed.

    u is the last loss, clipped at ln C, which is also the loss of a sample never seen. Class c with n_c samples has
    a share of the round(kN) kept samples that is proportional to sqrt(L_c n_c/N), L_c being the mean of u in the
    class. No class has more than its n_c: what is over goes to the others in the same proportion. Within a class
    the samples are drawn without replacement with weights exp(u/β), by the exponential race in its Gumbel form.
    Weights of the loss are 1.

    The shares, the cap, the clipping and the draw are those of the authors' code. There L_c is the softmax mass that
    the samples kept last have in their class, which is 1 for all classes at first. The paper's words, "class-wise
    aggregated loss", could be read only in its abstract (?), and the mean is this project's reading. The code rounds
    the number of each class up; here it is rounded up or down at random, so that exactly round(kN) are kept.

    Args:
        keep: share k kept in a step, in (0, 1].
        beta: temperature β of the draw within a class, above 0. The authors' example has 1/4.

    Raises:
        ValueError: a hyper-parameter out of range.
    """

    keep: float = 0.5
    beta: float = 0.25

    def __post_init__(self) -> None:
        check("keep", self.keep, "(0, 1]")
        check("beta", self.beta, "(0, inf)")

    def __call__(self, observation: Observation, rng: np.random.Generator) -> Action:
        label, n = observation["label"], len(observation["label"])
        k, size = n_keep(self.keep, n), np.bincount(label)
        loss = np.minimum(observation["loss"], math.log(np.count_nonzero(size)))
        of_class = np.maximum(np.bincount(label, loss), 1e-9) / n  # L_c n_c/N; above 0, so that no share is 0/0
        pi = proportional((np.sqrt(of_class) / np.maximum(size, 1))[label], k)  # sums to a class's share
        share = np.bincount(label, pi)
        count = np.floor(share + 1e-9).astype(np.int64)
        count += systematic(np.maximum(share - count, 0.0), k - count.sum(), rng)

        keys = loss / self.beta + rng.gumbel(size=n)
        order = np.lexsort((-keys, label))  # class by class, each from its largest key
        place = np.arange(n) - np.repeat(np.cumsum(size) - size, size)  # in its class
        mask = np.zeros(n, dtype=np.bool_)
        mask[order] = place < np.repeat(count, size)
        return select(mask)
