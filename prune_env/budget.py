"""Compute, counted in passes through the network: prices, what a step may do, and the ledger of a run."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field

from prune_env.selection import Selection

# A forward and backward pass of one sample costs 3, a forward alone 1: counts stay integers, sums exact.
TRAIN_COST = 3
SCORE_COST = 1


@dataclass(frozen=True)
class Epoch:
    """What one step trains on and scores, as far as the budget goes."""

    rows: Selection  # to train on, and to score afterwards
    cut: bool  # whether the budget allowed a part of the selection only
    used: int  # `Ledger.used` before it
    ends_at: float  # full-epoch equivalents that are charged once it has ended
    horizon: int  # `Ledger.used` at which the learning rate is 0
    last: bool  # the budget allows no further batch

    def progress(self, rows: float) -> float:
        """Return the share of the budget that is spent once so many of the rows were trained on, in [0, 1]."""
        return (self.used + TRAIN_COST * rows) / self.horizon


def batch_sizes(rows: int, batch_size: int, least: int) -> list[int]:
    """Rows of each batch: full ones, then the rest, which joins the batch before if it is less than `least`."""
    full, rest = divmod(rows, batch_size)
    if rest and full and rest < least:
        return [batch_size] * (full - 1) + [batch_size + rest]
    return [batch_size] * full + ([rest] if rest else [])


@dataclass
class Ledger:
    """What a run has put through the network, against a hard budget.

    `total` and `used` count forward passes of one sample. `budget` and `spent` are in full-epoch equivalents: forward
    and backward passes of all N training samples. Validation is counted and never charged.

    Args:
        n: number of training samples N.
        budget: full-epoch equivalents that may be spent.
        reference: forward passes that a reference took before the run; the rest of the budget is for training, and the
            learning rate runs on the share of that rest.
    """

    n: int
    budget: float
    train: int = 0  # samples, forward and backward
    score: int = 0  # samples, forward only, for an agent's sake
    evaluate: int = 0  # samples, forward only, validation: free
    seconds: dict[str, float] = field(default_factory=lambda: {"train": 0.0, "score": 0.0, "evaluate": 0.0})
    reference: int = 0

    @property
    def total(self) -> int:
        """Return the budget of the steps in forward passes of one sample."""
        passes = self.budget * self.n * TRAIN_COST
        # 4.1 * 30 * 3 is 368.99…; of 1e10 the last digit is 2e-6
        return int(passes + 1e-6 + 1e-15 * passes) - self.reference

    @property
    def used(self) -> int:
        """Return what the steps have used so far, in forward passes of one sample."""
        return TRAIN_COST * self.train + SCORE_COST * self.score

    @property
    def spent(self) -> float:
        """Return what is charged so far, in full-epoch equivalents."""
        return (self.reference + self.used) / (TRAIN_COST * self.n)

    @property
    def share(self) -> float:
        """Return the share of the budget that is used, in [0, 1]."""
        return (self.reference + self.used) / (self.reference + self.total)

    @property
    def affordable(self) -> int:
        """Return how many more samples can be trained on."""
        return (self.total - self.used) // TRAIN_COST

    def fit(self, train: int, score: int) -> tuple[int, int]:
        """Return how many of `train` samples can be trained on, and then how many of `score` be scored."""
        train = min(train, self.affordable)
        return train, min(score, (self.total - self.used - TRAIN_COST * train) // SCORE_COST)

    def require_batch(self, rows: int) -> None:
        """Raises ValueError, naming the budget, unless it still allows a batch of `rows` samples."""
        if self.affordable < rows:
            charged = f" once the reference is charged {self.spent:.3g}" if self.reference else ""
            raise ValueError(
                f"budget is {self.budget}, {max(0, self.affordable)} of {self.n} samples{charged}; it must allow a "
                f"batch of {rows}: raise the budget or lower batch_size"
            )

    def plan(self, selection: Selection, batch_size: int) -> Epoch:
        """Return the part of a selection that the budget still allows; nothing is charged yet."""
        k, s = self.fit(len(selection), len(selection.scored))
        trained_to = self.used + TRAIN_COST * k
        after = trained_to + SCORE_COST * s
        last = (self.total - after) // TRAIN_COST < batch_size
        return Epoch(
            rows=selection.head(k, s),
            cut=k < len(selection) or s < len(selection.scored),
            used=self.used,
            ends_at=(self.reference + after) / (TRAIN_COST * self.n),
            # The rate reaches 0 with the last batch that can be afforded, even if a part of one stays unspent.
            horizon=max(trained_to, 1) if last else self.total,
            last=last,
        )

    def charge(self, epoch: Epoch, nonfinite: int) -> bool:
        """Charge what an epoch trained on and scored; return whether the run is finished.

        Args:
            epoch: as `plan` returned it.
            nonfinite: rows whose logits or losses were not finite; one ends the run.
        """
        trained, scored = len(epoch.rows), len(epoch.rows.scored)
        self.train += trained
        self.score += scored
        return epoch.last or trained + scored == 0 or nonfinite > 0

    def state_dict(self) -> dict:
        return asdict(self)
