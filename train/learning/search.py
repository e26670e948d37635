"""The best fixed rule, by the cross-entropy method: the start of a policy, and a baseline for it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from prune_env.policy.rules import FULL, RULE_PARAMETERS
from prune_env.policy.tasks import Tasks
from train.learning.rollouts import draw_pairs
from train.learning.workers import Workers

CANDIDATES = 48  # rules of a generation
ELITES = 12
PAIRS = 6  # of task and seed, on which all rules of a generation are tried
SMOOTHING = 0.7  # of the step from a generation's mean and deviation to the next one's
SPREAD = 0.45  # deviation of the first generation in every number
SMALLEST_SPREAD = 0.08


def fixed_rule(
    workers: Workers,
    tasks: Tasks,
    rng: np.random.Generator,
    go_on: Callable[[int], bool],
    free: Sequence[str] = RULE_PARAMETERS,
) -> tuple[NDArray[np.float64], int]:
    """Search the rule (R,) with the highest mean validation accuracy over training tasks.

    All candidates of a generation are tried on the same tasks and seeds, new ones in each generation.

    Args:
        workers: play the episodes.
        tasks: only the training part is drawn from.
        rng: draws candidates and tasks.
        free: the parameters that are searched; the others stay as full training has them.
        go_on: asked before each generation but the first, with the number of generations so far.

    Returns:
        The rule, and the number of episodes that it took.
    """
    searched = np.isin(RULE_PARAMETERS, free)
    mean, spread = np.where(searched, 0.5, 1.0) * FULL, SPREAD * searched
    episodes = 0
    while episodes == 0 or go_on(episodes // (CANDIDATES * PAIRS)):
        rules = np.clip(mean + spread * rng.standard_normal((CANDIDATES, len(RULE_PARAMETERS))), -1.0, 1.0)
        pairs = draw_pairs(tasks, PAIRS, rng)
        accuracy = workers.play(pairs * CANDIDATES, np.repeat(rules, PAIRS, axis=0)).reshape(CANDIDATES, PAIRS)
        episodes += accuracy.size
        elites = rules[np.argsort(-accuracy.mean(axis=1))[:ELITES]]
        mean = (1 - SMOOTHING) * mean + SMOOTHING * elites.mean(axis=0)
        spread = (1 - SMOOTHING) * spread + SMOOTHING * elites.std(axis=0)
        spread = np.maximum(spread, SMALLEST_SPREAD) * searched
    return mean, episodes
