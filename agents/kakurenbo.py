"""KAKURENBO: hiding the samples that are learned, while watching them by a forward pass alone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from prune_env import select
from prune_env.sampling import Action, Observation, all_samples, check, in_last, top_k_mask

DECAYS = (0.3, 0.6, 0.8)  # shares of the budget spent: epochs 60, 120, 160 of 200 and 30, 60, 80 of 100


@dataclass(kw_only=True, frozen=True)
class Kakurenbo:
    """KAKURENBO (Nguyen et al., arXiv 2310.10102).

    Of the floor(F_e N) smallest last losses, H = {i seen: predicted right, confidence_i >= τ} is hidden; the
    others of them are moved back. F_e is F until 0.3 of the budget is spent, 0.8 F until 0.6, 0.6 F until 0.8,
    0.4 F after that. Equal losses at the border are drawn uniformly. H is measured at the end of the step by a
    forward pass alone (`score`), so that a sample that is forgotten comes back. The first step trains on all
    data.

    The paper multiplies the learning rate by 1/(1-F_e), since fewer batches are trained on. An agent has only
    the loss weights: each kept sample has 1/(1-|H|/N), so that a step's weights sum to N, as without hiding.
    Weight decay is not multiplied. The authors' code takes the nominal F_e in place of |H|/N (the paper's words
    could not be checked (?)), which raises the rate also where nothing can be hidden yet; `nominal` does so.
    There is no keep: at least 1-F_e is kept.

    Args:
        hide: largest share F that is hidden, in [0, 0.9]; a weight 1/(1-F) is at most 10. The authors have 0.3
            for ImageNet and CIFAR-100.
        confidence: threshold τ, in [0, 1].
        nominal: weights 1/(1-F_e) in every step but the first, however many are hidden.

    Raises:
        ValueError: a hyper-parameter out of range.
    """

    hide: float = 0.3
    confidence: float = 0.7
    nominal: bool = False

    def __post_init__(self) -> None:
        check("hide", self.hide, "[0, 0.9]")
        check("confidence", self.confidence, "[0, 1]")
        check("nominal", self.nominal, bool)

    def __call__(self, observation: Observation, rng: np.random.Generator) -> Action:
        loss, seen = observation["loss"], observation["visits"] > 0
        if not seen.any():
            return all_samples(observation)
        share = self.hide * (1 - sum(in_last(observation, 1 - spent) for spent in DECAYS) / 5)
        easy = top_k_mask(-loss, int(share * len(loss) + 1e-9), rng)  # 0.29 * 100 is 28.999999999999996
        sure = (observation["correct"] > 0) & (observation["confidence"] >= np.float32(self.confidence))
        hidden = easy & sure & seen
        weight = 1 / (1 - (share if self.nominal else hidden.mean()))
        return select(np.where(hidden, 0, min(weight, 10.0)), score=hidden)
