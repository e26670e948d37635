"""Any agent in a PyTorch loop of your own."""

from __future__ import annotations

import math
import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
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
from prune_env.budget import Epoch, Ledger, batch_sizes
from prune_env.checks import real, whole
from prune_env.io import write_columns
from prune_env.memory import arrays_to_tensors, load_state, reset, state_of, tensors_to_arrays
from prune_env.selection import Action, Selection
from prune_env.stats import MAX_LOSS, Stats, of_losses
from prune_env.trainer import PENDING_LOGITS

FIGURES = ("step", "done", "finished", "val_accuracy", "val_class_accuracy", "train_accuracy")  # of a run, in its state
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
        labels: (N,) class of each sample of the data set, 0 to C - 1; or N, if there are no classes.
        epochs: budget in full-epoch equivalents of compute.
        batch_size: rows of a batch, over all ranks.
        seed: of the order of the batches and of the agent's generator; the same on all ranks.
        classes: C; by default the largest label and one more.
        val_accuracy: of the untrained model, in [0, 1], for agents that look at it.
        val_class_accuracy: (C,) the same for each class; by default `val_accuracy`.
        initial_loss: roughly the untrained model's, for a loop that gives losses without logits: agents then see no
            other statistics than `stats.OF_LOSSES`. Samples have this loss before their first visit.
        least: rows, over all ranks, that a batch must have; fewer join the batch before. Batch norm needs 2 a rank.
        ema: weight of the newest loss in the running mean and variance.
        device: where the statistics are kept; that of the model.
        history: whether to remember each epoch's weights for `history()`: 4 N bytes an epoch.
        reference: (N,) a number from outside for each sample, which agents see as `reference`. What it took is not
            charged here: take it off `epochs`.

    Raises:
        TypeError: an agent that cannot be called, such as a class or a name.
        ValueError: labels that are no classes, a budget of less than one batch, or an argument out of range.
    """

    def __init__(
        self,
        agent: Agent,
        labels: ArrayLike | int,
        epochs: float,
        *,
        batch_size: int,
        seed: int = 0,
        classes: int | None = None,
        val_accuracy: float = 0.0,
        val_class_accuracy: Sequence[float] | None = None,
        initial_loss: float | None = None,
        least: int = 2,
        ema: float = 0.8,
        device: torch.device | str = "cpu",
        history: bool = False,
        reference: ArrayLike | None = None,
    ):
        if isinstance(agent, type) or not callable(agent):
            raise TypeError(
                f"agent is {agent!r}; it must be a function or an object to call, such as Learned() or "
                "agents.make('infobatch')"
            )
        if not 0.0 < real("epochs", epochs) < math.inf:
            raise ValueError(f"epochs is {epochs}; it must be a positive number of full-epoch equivalents")
        if whole("seed", seed) < 0:
            raise ValueError(f"seed is {seed}; it must be 0 or more")
        if not 0.0 < real("ema", ema) <= 1.0:
            raise ValueError(f"ema is {ema}; the weight of the newest loss must lie in (0, 1]")
        if initial_loss is not None and not 0.0 <= real("initial_loss", initial_loss) <= MAX_LOSS:
            raise ValueError(f"initial_loss is {initial_loss}; it must lie in [0, {MAX_LOSS:g}]: scale the losses")
        self.agent = agent
        self._arguments = {  # a state fits a pruner with the same
            "agent": agent.__name__ if isinstance(agent, FunctionType) else type(agent).__name__,
            "epochs": epochs,
            "batch_size": batch_size,
            "seed": seed,
            "classes": classes,
            "initial_loss": initial_loss,
            "least": least,
            "ema": ema,
            "history": history,
        }
        self.initial_loss = initial_loss
        self.device = torch.device(device)
        self.labels = _labels(labels, initial_loss is not None)  # (N,) int64, or None
        self.n = whole("labels", labels) if self.labels is None else len(self.labels)
        top = 0 if self.labels is None else int(self.labels.max())
        self.classes = top + 1 if classes is None else whole("classes", classes)
        if top >= self.classes:
            raise ValueError(f"classes is {classes}; there is a label {top}")
        if self.classes < 2 and initial_loss is None:
            raise ValueError("there is one class, whose cross-entropy is 0: give losses, and initial_loss here")
        self.reference = None if reference is None else np.array(reference, np.float32)
        if self.reference is not None:
            if self.reference.shape != (self.n,):
                raise ValueError(f"reference has shape {self.reference.shape}; it must be ({self.n},) finite numbers")
            if len(wrong := np.flatnonzero(~np.isfinite(self.reference))):
                raise ValueError(f"reference[{wrong[0]}] is {self.reference[wrong[0]]}; it must be a finite number")
        self._targets = None if self.labels is None else torch.from_numpy(self.labels).to(self.device)  # (N,) int64
        self.ranks = ranks.here()
        rows = whole("batch_size", batch_size)
        if rows < self.ranks.size:
            raise ValueError(f"batch_size is {batch_size}; it must be at least 1, and at least the number of ranks")
        self.batch_size = min(rows, self.n)
        self.least = max(whole("least", least), self.ranks.size)
        self.ledger = Ledger(self.n, epochs)
        self.ledger.require_batch(self.batch_size)
        self.stats = Stats(self.n, self.classes, ema, self.device, initial_loss=initial_loss)
        # PruneEnv draws the seed of a run from the seed of `reset`
        self.seed = int(seeding.np_random(int(seed))[0].integers(2**32))
        if int(self.ranks.sum(torch.tensor(self.seed, device=self.device))) != self.seed * self.ranks.size:
            raise ValueError(f"seed is {seed}, and another one on another rank; it must be the same on all")
        self.rng = np.random.default_rng([seed, streams.AGENT])
        self.val_accuracy, self.val_class_accuracy = self._validated(val_accuracy, val_class_accuracy)
        self.train_accuracy = 0.0
        self.step = 0
        self.done = 0  # batches of this epoch whose loss was taken
        self.finished = False
        self._epoch: Epoch | None = None
        self._history: list[NDArray[np.float32]] | None = [] if history else None  # weights (N,) of each epoch
        reset(agent)

    def begin_epoch(self) -> Epoch:
        """Ask the agent what this epoch trains on, unless it was asked already; the loader and `indices` do it too."""
        if self._epoch is None:
            if self.finished:
                raise RuntimeError("the run has ended: loop `while not pruner.finished`")
            action = selection.check(self.agent(self.observe(), self.rng), self.n)
            order = np.random.default_rng([self.seed, streams.ORDER, self.step])
            self._start(self.ledger.plan(Selection.from_action(action, order), self.batch_size))
        return self._running()

    def _start(self, epoch: Epoch, done: int = 0) -> None:
        """Go through an epoch from batch number `done` on."""
        rows = epoch.rows
        if 0 < len(rows) < self.ranks.size:
            raise ValueError(f"the agent keeps {len(rows)} samples; each of {self.ranks.size} ranks needs one")
        self._epoch = epoch
        self._ends = np.cumsum(
            [0, *batch_sizes(len(rows), self.batch_size, self.least)]
        ).tolist()  # of batches, in the rows
        self.done, self._mixed, self._scored, self._asked_for_more = done, False, 0, False
        self._pending: list[tuple[Tensor, dict[str, Tensor]]] = []  # indices, with what `record` was given
        self._counts = torch.zeros(3, dtype=torch.int64, device=self.device)  # rows that are finite, measured, right
        self._order = torch.from_numpy(rows.indices).to(self.device)  # (k,) int64
        self._kept, shares, partners = np.zeros(self.n, np.float32), np.zeros(self.n, np.float32), np.arange(self.n)
        self._kept[rows.indices] = rows.weights  # (N,) float32
        if rows.mixed:
            shares[rows.indices], partners[rows.indices] = rows.shares, rows.partners
        weights = self._kept * self.ranks.size / self.batch_size  # gradients are a mean over ranks
        self._weights, self._shares, self._partners = (
            torch.from_numpy(values).to(self.device) for values in (weights, shares, partners)
        )

    def __iter__(self) -> Iterator[list[int]]:
        """Yield the indices of each batch of this epoch, of this rank: what a DataLoader's `batch_sampler` does.

        Raises:
            RuntimeError: as `indices`.
        """
        rows = self.begin_epoch().rows.indices
        yield from (rows[part].tolist() for part in self._left())

    def __len__(self) -> int:
        """Return the number of batches of this epoch, 0 once the budget is spent: a loader may still be asked then."""
        if self.finished:
            return 0
        self.begin_epoch()
        return len(self._ends) - 1

    def indices(self) -> Iterator[Tensor]:
        """Yield the indices (B,) int64 of each batch of this epoch, as the loader has them, on the device.

        Raises:
            RuntimeError: no batch was left the last time either: `end_epoch` was forgotten.
        """
        self.begin_epoch()
        yield from (self._order[part] for part in self._left())

    def _left(self) -> list[slice]:
        """Where this rank's rows of the batches that are left are among the rows of the epoch."""
        if self.done == len(self):
            if self._asked_for_more:
                raise RuntimeError(f"all {self.done} batches of this epoch are done: call end_epoch after the last one")
            self._asked_for_more = True  # once is right: the run was stopped between its last batch and end_epoch
        return self._parts(self.done, len(self))

    def _parts(self, first: int, last: int) -> list[slice]:
        """Where this rank's rows of batches `first` to `last` - 1 are among the rows of the epoch."""
        ends = self._ends[first : last + 1]
        return [slice(a + self.ranks.rank, b, self.ranks.size) for a, b in pairwise(ends)]

    @property
    def progress(self) -> float:
        """Share of the budget that is spent at the middle of the batch whose loss was taken last, in [0, 1].

        Between epochs, and after the last one, what is spent; a part that allows no other batch may be left.
        """
        if self._epoch is None:
            return self.ledger.share
        a, b = self._ends[max(self.done - 1, 0)], self._ends[min(max(self.done, 1), len(self))]
        return self._epoch.progress((a + b) / 2)

    def loss(self, logits: Tensor, targets: Tensor, index: Tensor) -> Tensor:
        """Return sum(w_i l_i) / batch_size, () float32, and remember the statistics of the batch.

        Args:
            logits: (B, C) of the batch's images, which `mix` has blended if the agent wants it.
            targets: (B,) int64, the labels that the loader gave.
            index: (B,) int64, from `indices`.

        Raises:
            ValueError: the agent blends images of this batch, and `mix` was not called for it; or the targets of the
                run's first batch are not the labels of its indices, as if the loader had other batches.
        """
        self._running()
        first = self.step == self.done == 0  # the one batch for which the host waits
        if first and self._targets is not None and not torch.equal(targets, self._targets[index]):
            raise ValueError(
                "the targets are not the labels of these indices: does the loader have the pruner as batch_sampler? "
                "Other targets than labels, such as soft ones, are for losses of your own and `record`"
            )
        mixed, weights = self._mixed, self.record(index, logits)  # which checks what it is given
        losses = F.cross_entropy(logits.float(), targets, reduction="none")
        if mixed and self._targets is not None:
            others = self._targets[self._partners[index]]
            losses = torch.lerp(losses, F.cross_entropy(logits.float(), others, reduction="none"), self._shares[index])
        return losses.dot(weights)  # autocast would take a product by @ in half precision

    def record(self, index: Tensor, logits: Tensor | None = None, *, losses: Tensor | None = None) -> Tensor:
        """Remember the statistics of a batch; return the weights (B,) by which its losses are to be multiplied.

        The weights are over the batch size: the batch's loss is the sum of the products.

        Args:
            index: (B,) int64, from `indices`.
            logits: (B, C); None if the pruner has `initial_loss`.
            losses: (B,), before weights; the statistics clip them to [0, 100]. By default the logits' cross-entropies.

        Raises:
            ValueError: the agent blends images, and `mix` was not called for this batch; logits or losses are missing,
                or have another shape.
            RuntimeError: all batches of this epoch were recorded already.
        """
        if self._running().rows.mixed and not self._mixed:
            raise ValueError(
                "the agent blends images (mixup): call pruner.mix before the model, or let it return no mixup"
            )
        if self.done == len(self):
            raise RuntimeError(
                f"all {len(self)} batches of this epoch are recorded: call end_epoch after the last one, and "
                "loss or record once a batch"
            )
        given = self._given(index, logits, losses)
        self._mixed = False
        self.done += 1
        self._pending.append((index, given))
        numbers = sum(values.numel() for values in given.values())
        if len(self._pending) * numbers >= PENDING_LOGITS:  # all batches but the last have as many rows
            self._flush()
        return self._weights[index]

    def _given(self, index: Tensor, logits: Tensor | None, losses: Tensor | None) -> dict[str, Tensor]:
        """Return what was given of a batch, in float32."""
        if self.initial_loss is None and logits is None:
            raise ValueError("logits are missing: a loop that has losses alone makes the pruner with initial_loss")
        if self.initial_loss is not None and (logits is not None or losses is None):
            raise ValueError("the pruner was made with initial_loss: give it losses, (B,), and no logits")
        if logits is not None and logits.shape != (len(index), self.classes):
            raise ValueError(
                f"logits have shape {tuple(logits.shape)}; there are {len(index)} indices and {self.classes} classes, "
                "which the pruner's argument `classes` sets"
            )
        if losses is not None and losses.shape != (len(index),):
            raise ValueError(
                f"losses have shape {tuple(losses.shape)}; they must be one for each of {len(index)} indices, "
                'as with reduction="none"'
            )
        given = {"logits": logits, "losses": losses}
        return {name: values.detach().float() for name, values in given.items() if values is not None}

    def partners(self, index: Tensor) -> Tensor:
        """Return which sample is blended into each of (B,) samples, (B,) int64; itself where none is."""
        self._running()
        return self._partners[index]

    def mix(self, images: Tensor, others: Tensor, index: Tensor) -> Tensor:
        """Blend each image with its partner's, as the agent wants it.

        Args:
            images: (B, …) floats, of the batch.
            others: (B, …) of the same dtype, images of `partners(index)`.
            index: (B,) int64, from `indices`.

        Raises:
            TypeError: the images are whole numbers.
        """
        self._running()
        if not images.is_floating_point():
            raise TypeError(f"images have dtype {images.dtype}; blend them as floats, once they are normalised")
        self._mixed = True
        shares = self._shares[index].to(images.dtype)
        return torch.lerp(images, others, shares.view(-1, *[1] * (images.dim() - 1)))

    def to_score(self) -> Tensor:
        """Return the samples (s,) int64 that the agent wants measured after this epoch's training, of this rank."""
        return torch.from_numpy(self.ranks.part(self._running().rows.scored)).to(self.device)

    def score(self, index: Tensor, logits: Tensor | None = None, *, losses: Tensor | None = None) -> None:
        """Enter logits or losses, as of `record`, of samples from `to_score`: a forward pass in evaluation mode."""
        given = self._given(index, logits, losses)
        self._flush()
        self._scored += len(index)
        self._counts[0] += self._enter(index, given, trained=False)[0]

    def end_epoch(self, val_accuracy: float | None = None, val_class_accuracy: Sequence[float] | None = None) -> None:
        """Enter the statistics, charge the epoch, and end the run if the budget is spent. The host waits once.

        Args:
            val_accuracy: of the model now, in [0, 1]; by default the last one. The mean over the ranks that give it.
            val_class_accuracy: (C,) the same for each class; by default `val_accuracy`.

        Raises:
            RuntimeError: batches of this epoch are left.
            ValueError: the agent wants samples scored, and `score` was not called for all of them; an accuracy is not
                in [0, 1], or there is another number of classes.
        """
        epoch = self._running()
        rows = epoch.rows
        if self.done < len(self):
            raise RuntimeError(
                f"{self.done} of {len(self)} batches of this epoch were trained on: each needs `loss` or `record`"
            )
        if self._scored < len(self.ranks.part(rows.scored)):
            raise ValueError(f"the agent scores {len(rows.scored)} samples: call pruner.score for pruner.to_score()")
        validated = self._validated(val_accuracy, val_class_accuracy)
        self._exchange()
        self.ranks.exchange(self.stats.table, self.to_score(), self.ranks.totals([len(rows.scored)]))
        finite, measured, right = self.ranks.sum(self._counts).tolist()  # the host waits here
        nonfinite = len(rows) + len(rows.scored) - finite
        self.finished = self.ledger.charge(epoch, nonfinite)
        if self.finished and not epoch.last:
            why = f"logits or losses of {nonfinite} rows are not finite" if nonfinite else "the agent keeps no sample"
            warnings.warn(f"the run ends at {self.ledger.share:.0%} of the budget: {why}", stacklevel=2)
        self.train_accuracy = right / measured if measured else self.train_accuracy
        self.val_accuracy, self.val_class_accuracy = validated
        self.step += 1
        if self._history is not None:
            self._history.append(self._kept)
        self._epoch, self.done = None, 0

    def _validated(self, accuracy: float | None, by_class: Sequence[float] | None) -> tuple[float, list[float]]:
        """Return the accuracy of validation, and of each class; what is not given is as it was, or alike for all.

        Ranks need the same numbers, and batch norm makes theirs differ: they take the mean over those that give any.
        """
        given = accuracy is not None or by_class is not None
        overall = self.val_accuracy if accuracy is None else float(accuracy)
        if by_class is None:
            by_class = [overall] * self.classes if given else self.val_class_accuracy
        if len(by_class) != self.classes:
            raise ValueError(f"val_class_accuracy has {len(by_class)} numbers; there are {self.classes} classes")
        numbers = [overall, *map(float, by_class)]
        wrong = [number for number in numbers if not 0.0 <= number <= 1.0]
        if wrong:
            raise ValueError(f"an accuracy of validation is {wrong[0]}; it must lie in [0, 1]")
        if self.ranks.size > 1:
            summed = given * torch.tensor([1.0, *numbers], dtype=torch.float64, device=self.device)
            givers, *sums = self.ranks.sum(summed).tolist()
            numbers = [total / givers for total in sums] if givers else numbers
        return numbers[0], numbers[1:]

    def _flush(self) -> None:
        """Enter what was recorded."""
        if self._pending:
            index = torch.cat([index for index, _ in self._pending])
            given = {name: torch.cat([given[name] for _, given in self._pending]) for name in self._pending[0][1]}
            self._counts += self._enter(index, given)
        self._pending = []

    def _enter(self, index: Tensor, given: dict[str, Tensor], *, trained: bool = True) -> Tensor:
        """Enter visits or measurements of samples (B,); return (3,) int64: rows finite, measured, right."""
        index = index.to(self.device)  # a data set's own may lie elsewhere
        labels = None if self._targets is None else self._targets[index]
        clean = self._shares[index] == 0.0 if trained else torch.ones_like(index, dtype=torch.bool)
        spent, logits, losses = self._running().ends_at, given.get("logits"), given.get("losses")
        return self.stats.update(index, logits, labels, clean, spent, losses, trained=trained).sum(dim=1)

    def _exchange(self) -> None:
        """Let all ranks know the statistics of the batches whose loss was taken."""
        self._flush()
        if self.done and self.ranks.size > 1:
            own = torch.cat([self._order[part] for part in self._parts(0, self.done)])
            sizes = [b - a for a, b in pairwise(self._ends[: self.done + 1])]
            self.ranks.exchange(self.stats.table, own, self.ranks.totals(sizes))

    def _running(self) -> Epoch:
        if self._epoch is None:
            raise RuntimeError("no epoch has begun: take batches from pruner.indices(), or call pruner.begin_epoch()")
        return self._epoch

    def observe(self) -> dict[str, NDArray]:
        """Return what the agent sees, see docs/environment.md."""
        seen = self.stats.observe(
            self.ledger.spent,
            spent=self.ledger.share,
            budget=self.ledger.budget,
            val_accuracy=self.val_accuracy,
            val_class_accuracy=self.val_class_accuracy,
            train_accuracy=self.train_accuracy,
        )
        if self.labels is not None:
            seen["label"] = self.labels.copy()
        if self.reference is not None:
            seen["reference"] = self.reference.copy()
        return seen if self.initial_loss is None else of_losses(seen)

    def history(self, ids: Sequence[object] | None = None) -> dict[str, NDArray]:
        """Return what was kept: columns with a row for each epoch and sample.

        `epoch` from 1 on, `id`, `kept` (0 or 1), `weight` of the loss (0 if not kept), `visits` so far.

        Args:
            ids: (N,) names of the samples, as of their files; by default their indices.

        Raises:
            RuntimeError: this pruner does not remember: it was made without `history=True`.
            ValueError: another number of names than of samples.
        """
        if self._history is None:
            raise RuntimeError("there is no history: make the pruner with history=True")
        names = np.arange(self.n) if ids is None else np.asarray(ids, object)
        if names.shape != (self.n,):
            raise ValueError(f"ids has shape {names.shape}; it must be ({self.n},), one name a sample")
        epochs = len(self._history)
        weights = np.array(self._history, np.float32).reshape(epochs, self.n)
        return {
            "epoch": np.repeat(np.arange(1, epochs + 1), self.n),
            "id": np.tile(names, epochs),
            "kept": (weights > 0).astype(np.int8).ravel(),
            "weight": weights.ravel(),
            "visits": np.cumsum(weights > 0, axis=0).ravel(),
        }

    def write_history(self, path: str | Path, ids: Sequence[object] | None = None) -> None:
        """Write `history(ids)` to a CSV file, or to a Parquet file if the name ends so, which needs pyarrow."""
        write_columns(path, self.history(ids))

    def state_dict(self) -> dict[str, Any]:
        """Everything the run needs to go on, also from the middle of an epoch; `torch.load` takes it by default.

        Batches that a loader has fetched ahead do not count: those whose loss was taken do. All ranks call this
        together, as it exchanges their statistics. Any rank's state then serves all of them.

        Raises:
            TypeError: the agent has a state that it cannot tell: it lacks `state_dict`.
            RuntimeError: samples were scored in this epoch, and `end_epoch` has not followed.
        """
        agent = {} if isinstance(self.agent, FunctionType) else state_of(self.agent)
        if agent is None:
            raise TypeError(
                f"the agent {self.agent!r} has no state_dict() and load_state_dict(): it cannot go on. "
                "One that remembers nothing can be a function or a frozen dataclass"
            )
        epoch = counts = None
        if self._epoch is not None:
            if self._scored:
                raise RuntimeError("samples were scored: take the state before that, or after pruner.end_epoch()")
            self._exchange()
            epoch, counts = asdict(self._epoch), self.ranks.sum(self._counts.clone())
        state = {
            "arguments": self._arguments,
            "samples": self._samples(),
            "agent": agent,
            "rng": self.rng.bit_generator.state,
            "statistics": self.stats.table,
            "ledger": self.ledger.state_dict(),
            "epoch": epoch,
            "counts": counts,
            "history": self._history,
            **{name: getattr(self, name) for name in FIGURES},
        }
        return arrays_to_tensors(state)

    def _samples(self) -> int:
        """A checksum: with the samples in another order, each would have the statistics of another one."""
        given = (values.tobytes() for values in (self.labels, self.reference) if values is not None)
        return zlib.crc32(b"".join(given))

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict()` of a pruner with the same arguments, on any rank.

        Raises:
            ValueError: the state is of a pruner with other samples or arguments.
        """
        state = tensors_to_arrays(state)
        if state["statistics"].shape != self.stats.table.shape:
            raise ValueError(f"the state is of {len(state['statistics'])} samples; there are {self.n}")
        if state["samples"] != self._samples():
            raise ValueError("the state is of a pruner with other labels or references, or with them in another order")
        for name, value in self._arguments.items():
            if value != state["arguments"][name]:
                raise ValueError(f"the state is of a pruner with {name}={state['arguments'][name]}; here it is {value}")
        load_state(self.agent, state["agent"])
        self.rng.bit_generator.state = state["rng"]
        self.stats.table.copy_(state["statistics"])
        self.ledger = Ledger(**state["ledger"])
        self._epoch, self._history = None, state["history"]
        for name in FIGURES:
            setattr(self, name, state[name])
        if state["epoch"] is not None:
            rows = Selection(**state["epoch"].pop("rows"))
            self._start(Epoch(rows=rows, **state["epoch"]), state["done"])
            if self.ranks.rank == 0:  # the counts are of all ranks
                self._counts.copy_(state["counts"])


def _labels(labels: ArrayLike | int, optional: bool) -> NDArray[np.int64] | None:
    array = np.asarray(labels)
    if optional and array.ndim == 0:
        if whole("labels", labels) < 1:
            raise ValueError(f"labels is {labels}; without classes it is the number of samples")
        return None
    if array.ndim != 1 or not len(array) or array.dtype.kind not in "iu":
        raise ValueError(
            f"labels have dtype {array.dtype} and shape {array.shape}; they must be (N,) classes from 0 on, as from "
            "np.unique(labels, return_inverse=True)[1], or N for a loop with initial_loss"
        )
    if array.min() < 0:
        raise ValueError(f"there is a label {array.min()}; classes are numbered from 0 on")
    return array.astype(np.int64)
