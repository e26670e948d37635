"""Any agent in a PyTorch loop of your own."""

from __future__ import annotations

import copy
import csv
from collections.abc import Callable, Iterator, Mapping, Sequence
from io import BytesIO, StringIO
from itertools import pairwise
from pathlib import Path
from types import FunctionType
from typing import Any

import numpy as np
import torch
from gymnasium.utils import seeding
from numpy.typing import ArrayLike, NDArray
from torch import Tensor
from torch.nn import functional as F

from prune_env import ranks, selection, streams
from prune_env.budget import Epoch, Ledger
from prune_env.checks import whole
from prune_env.io import write_atomic
from prune_env.memory import load_state, state_of
from prune_env.selection import Action, Selection
from prune_env.stats import Stats
from prune_env.trainer import PENDING_LOGITS

Agent = Callable[[dict[str, NDArray], np.random.Generator], Action]


class Pruner:
    """Chooses what each epoch of a training loop trains on, and counts what that costs.

    ```python
    pruner = Pruner(agent, labels, epochs=30, batch_size=128)
    loader = DataLoader(dataset, batch_sampler=pruner, num_workers=4)
    while not pruner.finished:
        for index, (images, targets) in zip(pruner.indices(), loader):
            loss = pruner.loss(model(images), targets, index)
            set_rate(optimizer, pruner.progress)
            loss.backward(), optimizer.step(), optimizer.zero_grad()
        pruner.end_epoch(val_accuracy=evaluate(model))
    ```

    The statistics, the selections, the budget and the order of the batches are those of `PruneEnv` with the same seed.

    Args:
        agent: `agent(observation, rng) -> action`, see docs/environment.md. One with `reset` is reset.
        labels: (N,) class of each sample of the data set, 0 to C - 1.
        epochs: budget in full-epoch equivalents of compute.
        batch_size: rows of a batch, over all ranks.
        seed: of the order of the batches and of the agent's generator.
        classes: C; by default the largest label and one more.
        val_accuracy: of the untrained model, in [0, 1], for agents that look at it.
        least: rows that a batch must have; fewer join the batch before. Batch norm needs 2 on each device.
        ema: weight of the newest loss in the running mean and variance.
        device: where the statistics are kept; that of the model.
        history: whether to remember each epoch's weights for `write_history`: 4 N bytes an epoch.

    Raises:
        ValueError: labels that are no classes, or a budget of less than one batch.
    """

    def __init__(
        self,
        agent: Agent,
        labels: ArrayLike,
        epochs: float,
        *,
        batch_size: int,
        seed: int = 0,
        classes: int | None = None,
        val_accuracy: float = 0.0,
        least: int = 2,
        ema: float = 0.8,
        device: torch.device | str = "cpu",
        history: bool = False,
    ):
        self.agent = agent
        self.labels = _labels(labels)  # (N,) int64
        self.classes = int(self.labels.max()) + 1 if classes is None else whole("classes", classes)
        if self.labels.max() >= self.classes:
            raise ValueError(f"classes is {classes}; there is a label {self.labels.max()}")
        self.device = torch.device(device)
        self._targets = torch.from_numpy(self.labels).to(self.device)  # (N,) int64
        self.batch_size = min(whole("batch_size", batch_size), len(self.labels))
        if self.batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}; it must be at least 1")
        self.ranks = ranks.here()
        self.least = max(least, self.ranks.size)
        self.ledger = Ledger(len(self.labels), epochs)
        self.ledger.require_batch(self.batch_size)
        self.stats = Stats(len(self.labels), self.classes, ema, self.device)
        # PruneEnv draws the seed of a run from the seed of `reset`
        self.seed = int(seeding.np_random(seed)[0].integers(2**32))
        self.rng = np.random.default_rng([seed, streams.AGENT])
        self.val_accuracy = val_accuracy
        self.train_accuracy = 0.0
        self.step = 0
        self.finished = False
        self._epoch: Epoch | None = None
        self._history: list[NDArray[np.float32]] | None = [] if history else None  # weights (N,) of each epoch
        if callable(reset := getattr(agent, "reset", None)):
            reset()

    # An epoch

    def begin_epoch(self) -> Epoch:
        """Ask the agent what this epoch trains on, unless it was asked already; the loader and `indices` do it too."""
        if self._epoch is None:
            if self.finished:
                raise RuntimeError("the budget is spent: loop `while not pruner.finished`")
            action = selection.check(self.agent(self.observe(), self.rng), len(self.labels))
            order = np.random.default_rng([self.seed, streams.ORDER, self.step])
            self._start(Epoch.plan(Selection.from_action(action, order), self.ledger, self.batch_size))
        assert self._epoch is not None
        return self._epoch

    def _start(self, epoch: Epoch, done: int = 0) -> None:
        """Go through an epoch from batch number `done` on."""
        rows = epoch.rows
        if 0 < len(rows) < self.ranks.size:
            raise ValueError(f"the agent keeps {len(rows)} samples; each of {self.ranks.size} ranks needs one")
        ends = np.cumsum([0, *_sizes(len(rows), self.batch_size, self.least)])
        self._epoch = epoch
        self._parts = [rows.indices[a:b] for a, b in pairwise(ends)]  # over all ranks
        self._ends, self._done, self._mixed = ends, done, False
        self._pending: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
        self._counts = torch.zeros(3, dtype=torch.int64, device=self.device)
        self._scored = 0
        weights, shares = np.zeros((2, len(self.labels)), np.float32)
        weights[rows.indices] = rows.weights * self.ranks.size / self.batch_size  # gradients are a mean over ranks
        shares[rows.indices] = rows.shares
        partners = np.arange(len(self.labels))
        partners[rows.indices] = rows.partners
        self._weights, self._shares, self._partners = (
            torch.from_numpy(values).to(self.device) for values in (weights, shares, partners)
        )

    def __iter__(self) -> Iterator[list[int]]:
        """Yield the indices of each batch of this epoch, of this rank: what a DataLoader's `batch_sampler` does."""
        return (part.tolist() for part in self._own())

    def __len__(self) -> int:
        """Return the number of batches of this epoch, 0 once the budget is spent: a loader may still be asked then."""
        if self.finished:
            return 0
        self.begin_epoch()
        return len(self._parts)

    def indices(self) -> Iterator[Tensor]:
        """Yield the indices (B,) int64 of each batch of this epoch, as the loader has them, on the device."""
        return (torch.from_numpy(part).to(self.device) for part in self._own())

    def _own(self) -> Iterator[NDArray[np.int64]]:
        self.begin_epoch()
        for part in self._parts[self._done :]:
            yield self.ranks.part(part)

    @property
    def progress(self) -> float:
        """Share of the budget that is spent at the middle of the batch whose loss was taken last, in [0, 1]."""
        if self._epoch is None:
            return self.ledger.share
        a, b = self._ends[max(self._done - 1, 0)], self._ends[min(max(self._done, 1), len(self._ends) - 1)]
        return self._epoch.progress(float(a + b) / 2)

    def loss(self, logits: Tensor, targets: Tensor, index: Tensor) -> Tensor:
        """Return sum(w_i l_i) / batch_size, () float32, and remember the statistics of the batch.

        Args:
            logits: (B, C) of the batch's images, which `mix` has blended if the agent wants it.
            targets: (B,) int64, the labels that the loader gave.
            index: (B,) int64, from `indices`.

        Raises:
            ValueError: the agent blends images of this batch, and `mix` was not called for it.
        """
        losses = F.cross_entropy(logits.float(), targets, reduction="none")
        if self._mixed:
            others = self._targets[self._partners[index]]
            losses = torch.lerp(losses, F.cross_entropy(logits.float(), others, reduction="none"), self._shares[index])
        return losses @ self.record(index, logits, targets)

    def record(self, index: Tensor, logits: Tensor, targets: Tensor) -> Tensor:
        """Remember the statistics of a batch; return the weights (B,) by which its losses are to be multiplied.

        The weights are over the batch size: the batch's loss is the sum of the products. Arguments as of `loss`.
        """
        epoch = self._running()
        if epoch.rows.mixed and not self._mixed:
            raise ValueError("the agent blends images (mixup): call pruner.mix before the model, or wrap the agent")
        self._mixed = False
        self._done += 1
        clean = self._shares[index] == 0.0
        self._pending.append((index, logits.detach().float(), targets, clean))
        if len(self._pending) * logits.numel() >= PENDING_LOGITS:  # all batches but the last have as many rows
            self._flush()
        return self._weights[index]

    def partners(self, index: Tensor) -> Tensor:
        """Return which sample is blended into each of (B,) samples, (B,) int64; itself where none is."""
        self._running()
        return self._partners[index]

    def mix(self, images: Tensor, others: Tensor, index: Tensor) -> Tensor:
        """Blend each image with its partner's, as the agent wants it.

        Args:
            images: (B, …) float32, of the batch.
            others: (B, …) float32, images of `partners(index)`.
            index: (B,) int64, from `indices`.
        """
        self._running()
        self._mixed = True
        return torch.lerp(images, others, self._shares[index].view(-1, *[1] * (images.dim() - 1)))

    def to_score(self) -> Tensor:
        """Return the samples (s,) int64 that the agent wants measured after this epoch's training, of this rank."""
        return torch.from_numpy(self.ranks.part(self._running().rows.scored)).to(self.device)

    def score(self, index: Tensor, logits: Tensor) -> None:
        """Enter the logits (B, C) of samples (B,) from `to_score`: a forward pass alone, in evaluation mode."""
        epoch = self._running()
        self._flush()
        self._scored += len(index)
        targets = self._targets[index]
        clean = torch.ones_like(index, dtype=torch.bool)
        self.stats.update(index, logits.detach().float(), targets, clean, epoch.ends_at, trained=False)

    def end_epoch(self, val_accuracy: float | None = None) -> None:
        """Enter the statistics, charge the epoch, and end the run if the budget is spent. The host waits once.

        Args:
            val_accuracy: of the model now, in [0, 1]; by default the last one.

        Raises:
            RuntimeError: batches of this epoch are left.
            ValueError: the agent wants samples scored, and `score` was not called for all of them.
        """
        epoch = self._running()
        rows = epoch.rows
        if self._done < len(self._parts):
            raise RuntimeError(f"{self._done} of {len(self._parts)} batches of this epoch were trained on")
        if self._scored < len(self.ranks.part(rows.scored)):
            raise ValueError(
                f"the agent scores {len(rows.scored)} samples: give the logits of pruner.to_score() to pruner.score"
            )
        self._flush()
        own = [self.ranks.part(part) for part in self._parts]
        sizes = [len(part) for part in self._parts]
        trained = torch.from_numpy(np.concatenate([*own, np.empty(0, np.int64)])).to(self.device)
        self.ranks.exchange(self.stats.table, trained, self.ranks.totals(sizes))
        self.ranks.exchange(self.stats.table, self.to_score(), self.ranks.totals([len(rows.scored)]))
        finite, measured, right = self.ranks.sum(self._counts).tolist()  # the host waits here
        self.ledger.train += len(rows)
        self.ledger.score += len(rows.scored)
        self.train_accuracy = right / measured if measured else self.train_accuracy
        self.val_accuracy = self.val_accuracy if val_accuracy is None else float(val_accuracy)
        self.step += 1
        if self._history is not None:
            weights = np.zeros(len(self.labels), np.float32)
            weights[rows.indices] = rows.weights
            self._history.append(weights)
        self.finished = epoch.last or len(rows) + len(rows.scored) == 0 or finite < len(rows)
        self._epoch = None

    def _flush(self) -> None:
        if self._pending:
            index, logits, targets, clean = (torch.cat(column) for column in zip(*self._pending, strict=True))
            self._counts += self.stats.update(index, logits, targets, clean, self._running().ends_at).sum(dim=1)
        self._pending = []

    def _running(self) -> Epoch:
        if self._epoch is None:
            raise RuntimeError("no epoch has begun: take batches from pruner.indices(), or call pruner.begin_epoch()")
        return self._epoch

    def observe(self) -> dict[str, NDArray]:
        """Return what the agent sees, see docs/environment.md."""
        figures = self.stats.observe(
            self.ledger.spent,
            spent=self.ledger.share,
            budget=self.ledger.budget,
            val_accuracy=self.val_accuracy,
            train_accuracy=self.train_accuracy,
        )
        return {**figures, "label": self.labels.copy()}

    def write_history(self, path: str | Path, ids: Sequence[object] | None = None) -> None:
        """Write a CSV file, or a Parquet file if the name ends so: a row for each epoch and sample.

        Columns: `epoch` from 1 on, `id`, `kept` (0 or 1), `weight` of the loss (0 if not kept), `visits` so far.
        Parquet needs pyarrow.

        Args:
            path: of the file, which is replaced.
            ids: (N,) names of the samples, as of their files; by default their indices.

        Raises:
            RuntimeError: this pruner does not remember: it was made without `history=True`.
            ValueError: another number of names than of samples.
        """
        if self._history is None:
            raise RuntimeError("there is no history: make the pruner with history=True")
        n, epochs = len(self.labels), len(self._history)
        names = list(range(n)) if ids is None else list(ids)
        if len(names) != n:
            raise ValueError(f"ids has {len(names)} names; there are {n} samples")
        weights = np.array(self._history, np.float32).reshape(epochs, n)
        columns = {
            "epoch": np.repeat(np.arange(1, epochs + 1), n),
            "id": names * epochs,
            "kept": (weights > 0).astype(np.int8).ravel(),
            "weight": weights.ravel(),
            "visits": np.cumsum(weights > 0, axis=0).ravel(),
        }
        if Path(path).suffix == ".parquet":
            import pyarrow  # pyright: ignore[reportMissingImports]
            from pyarrow import parquet  # pyright: ignore[reportMissingImports]

            content = BytesIO()
            parquet.write_table(pyarrow.table(columns), content)
            write_atomic(Path(path), content.getvalue())
        else:
            text = StringIO(newline="")
            writer = csv.writer(text)
            writer.writerow(columns)
            writer.writerows(zip(*columns.values(), strict=True))
            write_atomic(Path(path), text.getvalue().encode())

    def state_dict(self) -> dict[str, Any]:
        """Everything the run needs to go on, also from the middle of an epoch; the tensors are the live ones.

        Batches that a loader has fetched ahead do not count: those whose loss was taken do.

        Raises:
            TypeError: the agent has a state that it cannot tell: it lacks `state_dict`.
        """
        agent = {} if isinstance(self.agent, FunctionType) else state_of(self.agent)
        if agent is None:
            raise TypeError(f"the agent {self.agent!r} has no state_dict() and load_state_dict(): it cannot go on")
        self._flush()
        epoch = None if self._epoch is None else {**vars(self._epoch), "rows": vars(self._epoch.rows)}
        return {
            "agent": agent,
            "rng": self.rng.bit_generator.state,
            "statistics": self.stats.table,
            "ledger": self.ledger.state_dict(),
            "epoch": epoch,
            "done": self._done if epoch else 0,
            "scored": self._scored if epoch else 0,
            "counts": self._counts if epoch else None,
            "history": self._history,
            "step": self.step,
            "finished": self.finished,
            "val_accuracy": self.val_accuracy,
            "train_accuracy": self.train_accuracy,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict()` of a pruner with the same arguments.

        Raises:
            ValueError: the state is of another number of samples.
        """
        state = copy.deepcopy(dict(state))
        if state["statistics"].shape != self.stats.table.shape:
            raise ValueError(f"the state is of {len(state['statistics'])} samples; there are {len(self.labels)}")
        load_state(self.agent, state["agent"])
        self.rng.bit_generator.state = state["rng"]
        self.stats.table.copy_(state["statistics"])
        self.ledger = Ledger(**state["ledger"])
        self.step, self.finished, self._history = state["step"], state["finished"], state["history"]
        self.val_accuracy, self.train_accuracy = state["val_accuracy"], state["train_accuracy"]
        self._epoch = None
        if state["epoch"] is not None:
            rows = Selection(**state["epoch"].pop("rows"))
            self._start(Epoch(rows=rows, **state["epoch"]), state["done"])
            self._scored = state["scored"]
            self._counts.copy_(state["counts"])


def _sizes(rows: int, batch_size: int, least: int) -> list[int]:
    """Rows of each batch: full ones, then the rest, which joins the batch before if it is less than `least`."""
    full, rest = divmod(rows, batch_size)
    if rest and full and rest < least:
        return [batch_size] * (full - 1) + [batch_size + rest]
    return [batch_size] * full + ([rest] if rest else [])


def _labels(labels: ArrayLike) -> NDArray[np.int64]:
    array = np.asarray(labels)
    if array.ndim != 1 or not len(array) or array.dtype.kind not in "iu" or array.min() < 0:
        raise ValueError(
            f"labels have dtype {array.dtype} and shape {array.shape}; they must be (N,) classes from 0 on"
        )
    return array.astype(np.int64)
