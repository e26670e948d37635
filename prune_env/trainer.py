"""One student in training: model, optimiser, data and statistics on one device, under a budget."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from itertools import repeat
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from prune_env import ranks, streams
from prune_env.budget import TRAIN_COST, Epoch, Ledger, batch_sizes
from prune_env.data import Data
from prune_env.evaluation import Evaluation, tally, total
from prune_env.selection import Action, Selection
from prune_env.stats import Stats
from prune_env.stopwatch import Stopwatch
from prune_env.students import augment, models
from prune_env.students.optimizers import KINDS
from prune_env.students.recipes import Recipe
from prune_env.threads import one_thread

EVALUATION_BATCH = 512
FETCHED_PIXELS = 2**18  # gathered at a time, if that is more than a batch: 1 MiB
PENDING_LOGITS = 2**24  # numbers kept until the statistics are updated: 64 MiB
FIGURES = ("step", "batches", "val_accuracy", "val_class_accuracy", "train_accuracy")  # of a run, in its state


@dataclass(frozen=True, kw_only=True)
class EpochResult:
    """What one step did, an entry of `info` each; counted, never timed. By default nothing, as before any step."""

    trained: int = 0  # samples
    mixed: int = 0  # of these, blended with a partner
    scored: int = 0  # samples measured by a forward pass alone
    cut: bool = False  # whether the budget allowed a part of the selection only, to train on or to score
    spent: float = 0.0  # full-epoch equivalents
    train_accuracy: float = 0.0  # over the samples measured; the last known if none was
    val_accuracy: float
    val_loss: float  # mean cross-entropy, clipped to MAX_LOSS
    gained: float = 0.0  # validation accuracy minus the one before
    lr: float  # after the step
    nonfinite: int  # rows whose logits were not finite, of those trained on, scored and validated
    diverged: bool  # whether there was one
    finished: bool = False  # nothing can follow: no batch left, nothing trained on or scored, or diverged


class Trainer:
    """Trains one student on the subsets it is given until the budget is spent.

    In a torch.distributed job each rank has one, and they take every step together: see `prune_env.ranks`.

    Args:
        train: training part, for the device that trains.
        val: validation part, likewise.
        recipe: how to train.
        budget: full-epoch equivalents of compute.
        seed: of weights, order and augmentation; runs with equal seeds share all three.

    What the reference of `train` took is charged before the first step.

    Raises:
        ValueError: a budget of less than one batch.
    """

    def __init__(self, train: Data, val: Data, recipe: Recipe, budget: float, seed: int):
        n, channels, size, _ = train.images.shape
        classes = len(train.classes)
        self.train_data = train
        self.val_data = val
        self.recipe = recipe
        self.seed = seed
        self.device = train.device
        self.batch_size = min(recipe.batch_size, n)
        self.ledger = ledger_of(train, recipe, budget)
        self.stats = Stats(n, classes, recipe.ema, self.device)
        self.ranks = ranks.here()
        self.step = 0
        self.batches = 0  # trained on, of more than one row
        self.train_accuracy = 0.0

        traits = models.check(recipe.model, channels, size, classes)
        model = models.build(recipe.model, channels, size, classes, self._seed(streams.WEIGHTS))
        self.bf16 = recipe.precision == "bfloat16" or (
            recipe.precision == "auto" and models.is_convolutional(model) and _has_bf16(self.device)
        )
        self.format = torch.channels_last if traits.channels_last else torch.contiguous_format
        self.model = self.ranks.synchronised(model).to(self.device).to(memory_format=self.format)
        self.parallel = self.ranks.parallel(self.model)
        self.small = self.device.type == "cpu" and models.is_small(self.model, self.batch_size)
        self.compiled: Callable[[Tensor], Tensor] = self.parallel  # what full batches go through
        if recipe.compile != "off":
            if self.ranks.size > 1:
                raise ValueError(f"compile is {recipe.compile!r}; a student on several devices needs 'off'")
            mode = "reduce-overhead" if recipe.compile == "graphs" else None
            self.compiled = torch.compile(self.model, dynamic=False, mode=mode)
        self.parameters = list(self.model.parameters())
        self.optimizer = KINDS[recipe.optimizer](self.parameters, recipe)
        self.masks: torch.Generator | None = None  # of dropout, in networks that have it
        if traits.random:
            self.masks = torch.Generator(self.device).manual_seed(self._seed(streams.MASKS))
        norms = [module for module in self.model.modules() if isinstance(module, _BatchNorm)]
        self._norms = [(norm, norm.momentum or 0.0) for norm in norms]  # with the momentum that each keeps
        mean, std = train.moments
        self.augmentation_seed = self._seed(streams.AUGMENTATION)
        self.mean, self.scale = mean[:, None, None], 1.0 / std[:, None, None]  # (C, 1, 1) float32

        untrained = self.evaluate(val)
        self.val_accuracy, self.val_class_accuracy = untrained.accuracy, untrained.known_class_accuracy
        self.start = EpochResult(  # as if a step had done nothing
            val_accuracy=untrained.accuracy,
            val_loss=untrained.loss,
            lr=recipe.rate(0.0),
            nonfinite=untrained.nonfinite,
            diverged=untrained.nonfinite > 0,
        )

    def _seed(self, *purpose: int) -> int:
        return int(np.random.SeedSequence([self.seed, *purpose]).generate_state(1)[0])

    def select(self, action: Action) -> Selection:
        """Return the rows that a checked action keeps, and those it scores, in this step's order."""
        return Selection.from_action(action, np.random.default_rng([self.seed, streams.ORDER, self.step]))

    def train_epoch(self, selection: Selection) -> EpochResult:
        """Train once on each selected sample, then score, both as far as the budget goes, then validate and charge.

        The host waits for the device once, after validation. A step that raises, as for an image that cannot be read,
        leaves everything as it was.
        """
        epoch = self.ledger.plan(selection, self.batch_size)
        with self.all_or_nothing():
            counts, seconds = self.run(epoch)
        return self.charge(epoch, counts, seconds)

    def run(self, epoch: Epoch) -> tuple[list[int], list[float]]:
        """Train, score and validate; nothing is charged yet.

        Returns:
            Counts: trained rows with finite logits, of these measured, of these right, scored rows with finite logits,
            then what `_validate` sums up. And the seconds of training, scoring and validation.
        """
        watch = Stopwatch(self.device)
        with one_thread(self.small):
            trained = self._train(epoch)
            watch.mark()
            scored = self.score(epoch)
            watch.mark()
            validated = self._validate(self.val_data)
            watch.mark()
            counts = torch.cat([self.ranks.sum(torch.cat([trained, scored])), validated])
        return counts.tolist(), watch.stretches()  # the host waits here, once

    @torch.enable_grad()  # whatever an agent's library has switched off around the step
    def _train(self, epoch: Epoch) -> Tensor:
        """Train on the rows of an epoch; return (3,) int64: rows with finite logits, measured, right."""
        counts = torch.zeros(3, dtype=torch.int64, device=self.device)
        selection, sizes = epoch.rows, self.sizes(len(epoch.rows))
        if not sizes:
            return counts
        if self.masks is not None and self.ranks.rank:
            # each rank drops other units; rank 0's generator is the one in a checkpoint
            self.masks.manual_seed(self._seed(streams.MASKS, self.ranks.rank, self.step))
        parts = self.ranks.positions(sizes)  # this rank's rows of each batch, k of them; all that follows is of these
        lengths = [len(part) for part in parts]
        columns = (selection.indices, selection.weights, selection.shares, selection.partners)
        indices, weights, shares, partners = (  # (k,) each
            torch.from_numpy(column[np.concatenate(parts)]).to(self.device) for column in columns
        )
        weights = weights * self.ranks.size / self.batch_size  # w_i / batch_size; gradients are a mean over ranks
        clean = shares == 0.0
        pending: list[tuple[Tensor, Tensor]] = []  # logits and labels of the rows from `first` on
        first = last = 0
        self.model.train()
        rates, batches = self.rates(epoch, sizes), self._fetch(indices, lengths)
        others = self._fetch(partners, lengths) if selection.mixed else repeat(None, len(sizes))
        steps = zip(rates, batches, others, weights.split(lengths), shares.split(lengths), strict=True)
        for i, (rate, (images, labels), other, weight, share) in enumerate(steps):
            last += lengths[i]
            self.optimizer.param_groups[0]["lr"] = rate
            settled = self._settle_norms(sizes[i])
            # compiled code is for one shape, and for the momentum that norms keep once they are settled
            network = self.compiled if sizes[i] == self.batch_size and settled else self.parallel
            if other is None:
                logits = self._forward(network, images)
                loss = self.loss(logits, labels)
            else:
                logits = self._forward(network, augment.blend(images, other[0], share))
                loss = torch.lerp(self.loss(logits, labels), self.loss(logits, other[1]), share)
            (loss @ weight).backward()  # sum(w_i l_i) / batch_size; backward(weight) imports sympy, 0.5 s
            self.optimizer.step()
            for parameter in self.parameters:  # zero_grad() takes longer than all of a small network's gradients
                parameter.grad = None
            logits = logits.detach()
            pending.append((logits.clone() if self.recipe.compile == "graphs" else logits, labels))  # replays reuse it
            if i + 1 == len(sizes) or (last - first) * logits.shape[1] >= PENDING_LOGITS:
                seen, truth = (torch.cat(tensors) for tensors in zip(*pending, strict=True))
                flags = self.stats.update(indices[first:last], seen, truth, clean[first:last], epoch.ends_at)
                counts += flags.sum(dim=1)
                pending, first = [], last
        self.ranks.exchange(self.stats.table, indices, self.ranks.totals(sizes))
        return counts

    def sizes(self, k: int) -> list[int]:
        """Rows of each batch of k. With batch norm a lone row joins the batch before it."""
        return batch_sizes(k, self.batch_size, least=2 if self._norms else 1)

    def rates(self, epoch: Epoch, sizes: list[int]) -> list[float]:
        """Return the learning rate at each batch's midpoint in compute."""
        middles = np.cumsum(sizes) - np.array(sizes) / 2
        return [self.recipe.rate(epoch.progress(float(middle))) for middle in middles]

    def _fetch(self, indices: Tensor, sizes: list[int]) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield batches of `sizes` rows: normalised, augmented images (B, C, H, W) float32 and labels (B,) int64.

        Small images are fetched for several batches at a time: it is the calls that cost, not the work.
        """
        several = max(1, FETCHED_PIXELS // (self.batch_size * math.prod(self.train_data.images.shape[1:])))
        groups = [sizes[i : i + several] for i in range(0, len(sizes), several)]
        parts = indices.split([sum(group) for group in groups])
        visits = self.stats.visits(indices)  # before the step: a partner's do not depend on the rank that trains on it
        augmented = zip(groups, parts, visits.split([len(rows) for rows in parts]), strict=True)
        for (group, rows, seen), (images, labels) in zip(augmented, self.train_data.batches(parts), strict=True):
            images = self._normalize(images)
            if self.train_data.augment:
                images = augment.crop_flip(images, self.augmentation_seed, rows, seen)
            yield from zip(images.split(group), labels.split(group), strict=True)

    def _settle_norms(self, rows: int) -> bool:
        """Average the first batches' statistics evenly, lest their initial values outlast a small budget.

        A step of one row has no statistics: it is normalised with the running ones. Return whether every norm has the
        momentum that it keeps.
        """
        self.batches += rows > 1
        for norm, momentum in self._norms:
            norm.training = rows > 1
            norm.momentum = max(momentum, 1.0 / max(self.batches, 1))
        return all(norm.momentum == momentum for norm, momentum in self._norms)

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the training loss of each row, (B,) float32, before weights."""
        return F.cross_entropy(logits, labels, reduction="none", label_smoothing=self.recipe.label_smoothing)

    @torch.no_grad()
    def score(self, epoch: Epoch) -> Tensor:
        """Measure the samples an epoch scores, without training; return (1,) int64, rows of finite logits."""
        samples = epoch.rows.scored
        count = torch.zeros(1, dtype=torch.int64, device=self.device)
        if len(samples) == 0:  # as for most agents: nothing is sent to the device
            return count
        indices = torch.from_numpy(self.ranks.part(samples)).to(self.device)
        for rows, logits, labels in self.predict(self.train_data, indices):
            clean = torch.ones_like(rows, dtype=torch.bool)
            count += self.stats.update(rows, logits, labels, clean, epoch.ends_at, trained=False)[0].sum()
        self.ranks.exchange(self.stats.table, indices, self.ranks.totals([len(samples)]))
        return count

    @torch.no_grad()
    def _validate(self, data: Data) -> Tensor:
        """Predict a whole split; return the `total` of its batches, (2 + 2 C,) int64 on the device."""
        own = torch.arange(len(data), device=self.device)[self.ranks.rank :: self.ranks.size]
        return total([tally(logits, labels) for _, logits, labels in self.predict(data, own)], self.ranks)

    def evaluate(self, data: Data) -> Evaluation:
        """Judge a whole split. Free, and counted with validation."""
        with one_thread(self.small):
            evaluation = Evaluation.of(self._validate(data).tolist(), data)
        self.ledger.evaluate += len(data)
        return evaluation

    def predict(self, data: Data, indices: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Yield samples (B,), their logits (B, C) and labels (B,), in evaluation mode and without augmentation."""
        self.model.eval()
        parts = indices.split(EVALUATION_BATCH)
        for rows, (images, labels) in zip(parts, data.batches(parts), strict=True):
            yield rows, self._forward(self.model, self._normalize(images)), labels

    def _forward(self, network: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
        """Return the logits (B, classes) float32 of images (B, C, H, W) float32."""
        images = images.contiguous(memory_format=self.format)
        masks = models.Seeded(self.masks) if self.masks is not None and self.model.training else nullcontext()
        half = torch.autocast(self.device.type, torch.bfloat16) if self.bf16 else nullcontext()
        with masks, half:
            return network(images).float()

    def _normalize(self, images: Tensor) -> Tensor:
        return (images.float() - self.mean) * self.scale

    def charge(self, epoch: Epoch, counts: list[int], seconds: Sequence[float]) -> EpochResult:
        """Enter what `run` returned for an epoch into the ledger and the run's figures."""
        finite, measured, right, finite_scored, *validated = counts
        k, s = len(epoch.rows), len(epoch.rows.scored)
        evaluation = Evaluation.of(validated, self.val_data)
        nonfinite = k - finite + s - finite_scored + evaluation.nonfinite
        finished = self.ledger.charge(epoch, nonfinite)
        self.ledger.evaluate += len(self.val_data)
        for name, passed in zip(("train", "score", "evaluate"), seconds, strict=True):
            self.ledger.seconds[name] += passed
        gained = evaluation.accuracy - self.val_accuracy
        self.val_accuracy, self.val_class_accuracy = evaluation.accuracy, evaluation.known_class_accuracy
        self.train_accuracy = right / measured if measured else self.train_accuracy
        self.step += 1
        return EpochResult(
            trained=k,
            mixed=epoch.rows.mixed,
            scored=s,
            cut=epoch.cut,
            spent=(self.ledger.used - epoch.used) / (TRAIN_COST * self.ledger.n),
            train_accuracy=self.train_accuracy,
            val_accuracy=evaluation.accuracy,
            val_loss=evaluation.loss,
            gained=gained,
            lr=self.recipe.rate(self.ledger.used / epoch.horizon),
            nonfinite=nonfinite,
            diverged=nonfinite > 0,
            finished=finished,
        )

    @contextmanager
    def all_or_nothing(self) -> Iterator[None]:
        """Put everything back as it was if the block raises, also if the user interrupts it."""
        before = copied(self._state())
        try:
            yield
        except BaseException:
            self._restore(before)
            for parameter in self.parameters:
                parameter.grad = None
            raise

    def observe(self) -> dict[str, NDArray]:
        """Return the observation but for its labels, as fresh arrays: statistics (N,) and the run's figures."""
        return self.stats.observe(
            self.ledger.spent,
            spent=self.ledger.share,
            budget=self.ledger.budget,
            val_accuracy=self.val_accuracy,
            val_class_accuracy=self.val_class_accuracy,
            train_accuracy=self.train_accuracy,
        )

    def state_dict(self) -> dict:
        """Everything a run needs to go on: model, optimiser, statistics, ledger, generator, figures.

        The tensors are the live ones, as in torch: copy or save what is to outlast the next step.
        """
        return {"run": self._identity(), **self._state()}

    def _state(self) -> dict:
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "statistics": self.stats.table,
            "ledger": self.ledger.state_dict(),
            "masks": None if self.masks is None else self.masks.get_state(),
            **{name: getattr(self, name) for name in FIGURES},
        }

    def _identity(self) -> dict[str, object]:
        """Return what must agree between a run and a state that it loads."""
        parts: dict[str, object] = {"data": self.train_data.digest, "validation": self.val_data.digest}
        parts["reference"] = self.train_data.reference_digest or None  # None also in states from before there was one
        return {**self.recipe.plain(), **parts, "budget": self.ledger.budget, "seed": self.seed}

    def load_state_dict(self, state: dict) -> None:
        """Go on from `state_dict()` of a trainer of the same data, recipe, budget and seed.

        Raises:
            ValueError: the state belongs to another run; nothing has changed then. A state with missing parts raises
                other errors, and leaves this trainer unusable.
        """
        for name, own in self._identity().items():
            theirs = state.get("run", {}).get(name)
            if theirs != own:
                raise ValueError(f"the state is of a run with {name}={theirs!r}; this one has {own!r}")
        table = state["statistics"]
        if table.shape != self.stats.table.shape or not torch.isfinite(table).all():
            raise ValueError(f"the state's statistics must be {tuple(self.stats.table.shape)} finite numbers")
        self._restore(copied(state))  # the optimiser would go on in the tensors that it is given

    def _restore(self, state: dict) -> None:
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        for parameter, kept in self.optimizer.state.items():  # in the parameter's memory format, as they were
            for name, value in kept.items():
                like = parameter if value.shape == parameter.shape else value  # numbers of steps have no shape
                kept[name] = torch.empty_like(like, device=parameter.device).copy_(value)
        self.stats.table.copy_(state["statistics"])
        self.ledger = Ledger(**state["ledger"])
        if self.masks is not None:
            self.masks.set_state(state["masks"])
        for name in FIGURES:
            setattr(self, name, state[name])


def ledger_of(train: Data, recipe: Recipe, budget: float) -> Ledger:
    """Return the ledger of a run before its first step.

    Raises:
        ValueError: the budget allows no batch, once the reference is charged.
    """
    n, channels, size, _ = train.images.shape
    reference = 0
    if train.reference_flops:
        reference = round(train.reference_flops / models.flops(recipe.model, channels, size, len(train.classes)))
    ledger = Ledger(n, budget, reference=reference)
    ledger.require_batch(min(recipe.batch_size, n))
    return ledger


def copied(state: Any) -> Any:
    """Copy nested dicts and lists, and clone their tensors: 8 times as fast as `copy.deepcopy`, before every step."""
    if isinstance(state, Tensor):
        return state.clone()
    if isinstance(state, dict):
        return {name: copied(value) for name, value in state.items()}
    if isinstance(state, list):
        return [copied(value) for value in state]
    return state


def _has_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and torch.cpu._is_avx512_bf16_supported()
