"""One epoch of many students: fully connected ones of one depth in batched matrix products, others in turn.

Narrower layers and smaller images are padded with zeros, and so are short batches. Zero rows and columns of a weight
have zero gradients and stay zero, so padding changes no number but by rounding, and is charged to nobody.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Hashable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, fields

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from prune_env import stats
from prune_env.budget import Epoch
from prune_env.evaluation import tally, total
from prune_env.selection import Selection
from prune_env.stopwatch import Stopwatch
from prune_env.students import augment, models
from prune_env.threads import one_thread
from prune_env.trainer import EVALUATION_BATCH, EpochResult, Trainer

FETCHED = 2**24  # bytes of images that are gathered at a time: 16 MiB, and as many of partners
# options of training that may differ inside a batch; a student that sets another one trains by itself
KNOWN = ("model", "batch_size", "lr", "weight_decay", "momentum", "warmup", "label_smoothing", "ema", "precision")


def train_epochs(trainers: Sequence[Trainer], selections: Sequence[Selection]) -> list[EpochResult]:
    """Do for each of K distinct trainers what `train_epoch` does with its selection; if one raises, nothing changed.

    On a CPU vmapped convolutions are slower than a loop, and batched matrix products faster.
    """
    epochs = [trainer.ledger.plan(rows, trainer.batch_size) for trainer, rows in zip(trainers, selections, strict=True)]
    alike: dict[Hashable, list[int]] = defaultdict(list)
    for k, trainer in enumerate(trainers):
        alike[_kind(trainer) or ("alone", k)].append(k)
    done: dict[int, tuple[list[int], list[float]]] = {}
    with ExitStack() as stack:
        for k, trainer in enumerate(trainers):
            # a batch works on copies and hands them back last of all, unless something is scored
            if len(alike) > 1 or len(trainers) == 1 or len(epochs[k].rows.scored):
                stack.enter_context(trainer.all_or_nothing())
        for members in alike.values():
            of_members = [trainers[k] for k in members], [epochs[k] for k in members]
            done |= zip(members, run_batched(*of_members), strict=True)
    return [trainer.charge(epochs[k], *done[k]) for k, trainer in enumerate(trainers)]


def _kind(trainer: Trainer) -> Hashable:
    """What students that train in one batch have in common; None if this one trains by itself."""
    other = [option for option in fields(trainer.recipe) if option.name not in KNOWN]
    unknown = any(getattr(trainer.recipe, option.name) != option.default for option in other)
    if unknown or trainer.bf16 or trainer.ranks.size > 1 or not models.is_fully_connected(trainer.model):
        return None
    depth = len(trainer.parameters)
    return depth, len(trainer.train_data.classes), trainer.device, trainer.small


def run_batched(trainers: list[Trainer], epochs: list[Epoch]) -> list[tuple[list[int], list[float]]]:
    """Do for each trainer of one kind what its `run` does."""
    if len(trainers) == 1:
        return [trainers[0].run(epochs[0])]
    # with the most batches first, those that still train are always the first so many
    batches = [len(trainer.sizes(len(epoch.rows))) for trainer, epoch in zip(trainers, epochs, strict=True)]
    by_length = sorted(range(len(trainers)), key=lambda k: -batches[k])
    watch = Stopwatch(trainers[0].device)
    with one_thread(trainers[0].small):
        students = Students([trainers[k] for k in by_length])
        trained = students.train([epochs[k] for k in by_length])
        watch.mark()
        validated = students.validate()
        watch.mark()
        scoring = any(len(epoch.rows.scored) for epoch in epochs)
        if scoring:  # by the trainers themselves, whose states `train_epochs` keeps
            students.hand_back()
        scored = torch.cat([trainers[k].score(epochs[k]) for k in by_length])[:, None]
        watch.mark()
        counts = torch.cat([trained, scored, validated], dim=1).tolist()  # the host waits here
        if not scoring:
            students.hand_back()
    train, evaluate, score = (passed / len(trainers) for passed in watch.stretches())
    of_student = dict(zip(by_length, counts, strict=True))
    return [(of_student[k], [train, score, evaluate]) for k in range(len(trainers))]


@dataclass(frozen=True)
class Schedule:
    """The rows of K epochs, in T batches of B slots."""

    index: Tensor  # (K, T, B) int64, samples; 0 in empty slots
    partner: Tensor  # (K, T, B) int64
    weight: Tensor  # (K, T, B) float32, of the loss, over the batch size; 0 in empty slots
    share: Tensor  # (K, T, B) float32, of the partner
    rate: Tensor  # (K, T, 1, 1) float32, learning rates
    valid: NDArray[np.bool_]  # (K, T, B), whether a slot holds a row; on the host
    active: list[int]  # (T,), how many students have a t-th batch: the first ones


class Students:
    """Copies of the weights, momenta and statistics of K students; forward and backward written out."""

    def __init__(self, trainers: list[Trainer]):
        self.trainers = trainers
        self.device = trainers[0].device
        # of each student's layers in turn, as views: weights (outputs, inputs) and biases (outputs, 1)
        self.own_weights = [[_matrix(p.detach()) for p in t.parameters] for t in trainers]
        self.own_momenta = [[_matrix(buffer) for buffer in t.optimizer.momenta()] for t in trainers]
        self.weights, self.momenta = (
            [_stacked(column) for column in zip(*each, strict=True)] for each in (self.own_weights, self.own_momenta)
        )  # (K, outputs, inputs) and (K, outputs, 1)
        self.gradients = [torch.empty_like(weight) for weight in self.weights]  # filled by each step anew
        self.features, self.classes = self.weights[0].shape[2], self.weights[-1].shape[1]  # the last is a bias
        self.table_sizes = [len(trainer.stats.table) for trainer in trainers]
        self.table = torch.cat([trainer.stats.table for trainer in trainers])  # (sum of N, F)
        self.batches = [trainer.batches for trainer in trainers]
        self.rates = [trainer.optimizer.param_groups[0]["lr"] for trainer in trainers]  # checkpoints have them

        def column(name: str) -> Tensor:
            values = [getattr(trainer.recipe, name) for trainer in trainers]
            return torch.tensor(values, device=self.device)[:, None, None]  # (K, 1, 1)

        self.momentum, self.decay, self.smoothing = map(column, ("momentum", "weight_decay", "label_smoothing"))
        shapes = [trainer.train_data.images.shape[1:] for trainer in trainers]
        self.mean, self.scale = (  # (K, 1, features) each, 0 where images are padded
            _stacked([x.expand(shape).reshape(1, -1) for x, shape in zip(moments, shapes, strict=True)])
            for moments in zip(*((trainer.mean, trainer.scale) for trainer in trainers), strict=True)
        )

    @torch.no_grad()
    def hand_back(self) -> None:
        """Copy weights, momenta and statistics back to the trainers."""
        tables = self.table.split(self.table_sizes)
        for k, trainer in enumerate(self.trainers):
            for own, stacked in ((self.own_weights[k], self.weights), (self.own_momenta[k], self.momenta)):
                corners = [all_k[k, : p.shape[0], : p.shape[1]] for p, all_k in zip(own, stacked, strict=True)]
                torch._foreach_copy_(own, corners)  # pyright: ignore[reportPrivateImportUsage]
            trainer.stats.table.copy_(tables[k])
            trainer.batches = self.batches[k]
            trainer.optimizer.param_groups[0]["lr"] = self.rates[k]

    @torch.no_grad()
    def train(self, epochs: list[Epoch]) -> Tensor:
        """Train on the rows of each epoch, the most batches first; return (K, 3) counts as `stats.enter` gives them."""
        counts = torch.zeros(len(epochs), 3, dtype=torch.int64, device=self.device)
        plan = self._schedule(epochs)
        mixed = any(epoch.rows.mixed for epoch in epochs)
        offsets = torch.tensor([0, *np.cumsum(self.table_sizes)[:-1]], device=self.device)  # (K,) in the table
        ends = torch.tensor([epoch.ends_at for epoch in epochs], device=self.device)  # (K,)
        ema = torch.tensor([trainer.stats.ema for trainer in self.trainers], device=self.device)  # (K,)
        _, n_batches, batch_rows = plan.valid.shape
        at_once = max(1, FETCHED // max(1, len(epochs) * batch_rows * self.features))
        for start in range(0, n_batches, at_once):
            chunk = slice(plan.active[start]), slice(start, start + at_once)  # T of the batches, of A students
            index, share = plan.index[chunk], plan.share[chunk]
            images, labels = self._fetch(index)
            target, others = self._target(labels), None
            if mixed:
                others, other_labels = self._fetch(plan.partner[chunk])
                target = torch.lerp(target, self._target(other_labels), share[..., None])
            logits = torch.zeros_like(target)
            for t, a in enumerate(plan.active[start : start + at_once]):
                x = self._normalize(images[:a, t])
                if others is not None:
                    x = torch.lerp(x, self._normalize(others[:a, t]), share[:a, t, :, None])
                weight, rate = plan.weight[:a, start + t], plan.rate[:a, start + t]
                logits[:a, t] = self._step(x, target[:a, t], weight, rate)
            # slots that hold a row, found on the host, lest it waits for the device
            rows = torch.from_numpy(np.flatnonzero(plan.valid[chunk])).to(self.device)
            student = rows // (labels.shape[1] * batch_rows)  # (R,)
            flags = stats.enter(
                self.table,
                offsets[student] + index.flatten()[rows],
                logits.flatten(0, 2)[rows],
                labels.flatten()[rows],
                share.flatten()[rows] == 0.0,
                ends[student],
                ema[student],
            )
            counts.index_add_(0, student, flags.long().t())
        return counts

    def _schedule(self, epochs: list[Epoch]) -> Schedule:
        """Lay the rows of each epoch out in batches."""
        sizes = [trainer.sizes(len(epoch.rows)) for trainer, epoch in zip(self.trainers, epochs, strict=True)]
        shape = len(epochs), len(sizes[0]), max(trainer.batch_size for trainer in self.trainers)  # (K, T, B)
        rates = np.zeros((*shape[:2], 1, 1))
        slots = []  # where each student's rows go: smaller batches, and the last one, leave some empty
        for k, (trainer, epoch) in enumerate(zip(self.trainers, epochs, strict=True)):
            batch, place = np.divmod(np.arange(len(epoch.rows)), trainer.batch_size)
            slots.append((k * shape[1] + batch) * shape[2] + place)
            self.batches[k] += sum(rows > 1 for rows in sizes[k])
            if sizes[k]:
                rates[k, : len(sizes[k]), 0, 0] = trainer.rates(epoch, sizes[k])
                self.rates[k] = float(rates[k, len(sizes[k]) - 1, 0, 0])
        slots = np.concatenate(slots)

        def scattered(rows: list[NDArray]) -> NDArray:
            """Put each student's rows (k,) into their slots (K, T, B); the empty ones are 0."""
            values = np.zeros(math.prod(shape), rows[0].dtype)
            values[slots] = np.concatenate(rows)
            return values.reshape(shape)

        def sent(values: NDArray) -> Tensor:
            return torch.from_numpy(values).to(self.device)

        pairs = list(zip(self.trainers, epochs, strict=True))
        return Schedule(
            index=sent(scattered([epoch.rows.indices for epoch in epochs])),
            partner=sent(scattered([epoch.rows.partners for epoch in epochs])),
            weight=sent(scattered([epoch.rows.weights / trainer.batch_size for trainer, epoch in pairs])),
            share=sent(scattered([epoch.rows.shares for epoch in epochs])),
            rate=sent(rates.astype(np.float32)),
            valid=scattered([np.ones(len(epoch.rows), np.bool_) for epoch in epochs]),
            active=[sum(len(own) > t for own in sizes) for t in range(shape[1])],
        )

    def _fetch(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Images (A, T, B, features) uint8, augmented and padded, and labels (A, T, B) int64 of `index`."""
        batches = []
        for trainer, rows in zip(self.trainers[: len(index)], index.flatten(1), strict=True):
            images, labels = trainer.train_data.batch(rows)
            if trainer.train_data.augment:
                visits = trainer.stats.visits(rows)  # before this epoch: self.table is a copy
                images = augment.crop_flip(images, trainer.augmentation_seed, rows, visits)
            batches.append((images.flatten(1), labels))
        images, labels = zip(*batches, strict=True)
        return _stacked(images).unflatten(1, index.shape[1:]), torch.stack(labels).view_as(index)

    def _normalize(self, images: Tensor) -> Tensor:
        """(A, B, features) uint8 to float32; what is padded becomes 0."""
        return images.float().sub_(self.mean[: len(images)]).mul_(self.scale[: len(images)])

    def _target(self, labels: Tensor) -> Tensor:
        """(A, T, B, classes) float32: the smoothed one-hot labels of (A, T, B)."""
        others = self.smoothing[: len(labels), None] / self.classes
        own = 1.0 - (self.classes - 1) * others
        target = others.repeat(1, *labels.shape[1:], self.classes)
        return target.scatter_(-1, labels[..., None], own.expand(*labels.shape, 1))

    def _step(self, x: Tensor, target: Tensor, weight: Tensor, rate: Tensor) -> Tensor:
        """Take one step of SGD with the first A students, each on its own batch.

        Args:
            x: (A, B, features) float32.
            target: (A, B, C) float32, which sums to 1 over classes.
            weight: (A, B) float32, of the loss, over the batch size.
            rate: (A, 1, 1) float32, learning rates.

        Returns:
            (A, B, C) float32 logits before the step.
        """
        count = len(x)
        weights, momenta, gradients = (
            [stacked[:count] for stacked in each] for each in (self.weights, self.momenta, self.gradients)
        )
        momentum, decay = self.momentum[:count], self.decay[:count]
        inputs = forward(weights, x.transpose(1, 2))
        logits = inputs.pop()
        # the gradient of sum(w_i l_i) by the logits, then by the inputs of each layer
        error = logits.softmax(dim=1).sub_(target.transpose(1, 2)).mul_(weight[:, None])
        for layer in reversed(range(len(inputs))):
            h = inputs[layer]
            torch.bmm(error, h.transpose(1, 2), out=gradients[2 * layer])
            torch.sum(error, dim=2, keepdim=True, out=gradients[2 * layer + 1])
            if layer:
                error = torch.bmm(weights[2 * layer].transpose(1, 2), error)
                error = torch.ops.aten.threshold_backward(error, h, 0.0)  # ReLU's, in one pass
        for p, v, g in zip(weights, momenta, gradients, strict=True):
            g.addcmul_(p, decay)
            torch.addcmul(g, v, momentum, out=v)
            p.addcmul_(g.addcmul_(v, momentum), rate, value=-1.0)  # Nesterov
        return logits.transpose(1, 2)

    @torch.no_grad()
    def validate(self) -> Tensor:
        """Predict each student's validation part; return the `total` of its batches, (K, 2 + 2 C) int64."""
        tallies: list[tuple[Tensor, Tensor]] = []
        longest = max(len(trainer.val_data) for trainer in self.trainers)
        for rows in torch.arange(longest, device=self.device).split(EVALUATION_BATCH):
            batches = [t.val_data.batch(rows.clamp(max=len(t.val_data) - 1)) for t in self.trainers]
            labels = [y.where(rows < len(t.val_data), -1) for t, (_, y) in zip(self.trainers, batches, strict=True)]
            images = self._normalize(_stacked([images.flatten(1) for images, _ in batches]))
            logits = forward(self.weights, images.transpose(1, 2))[-1].transpose(1, 2).contiguous()  # for fast argmax
            tallies.append(tally(logits, torch.stack(labels)))
        return total(tallies, self.trainers[0].ranks)


def forward(layers: list[Tensor], x: Tensor) -> list[Tensor]:
    """Return the input (A, …, B) of each layer of A students, from the second on after ReLU, and the logits (A, C, B).

    The batch comes last: products with few outputs are then twice as fast on a CPU.

    Args:
        layers: weights (A, outputs, inputs) and biases (A, outputs, 1) of each layer in turn.
        x: (A, features, B) float32.
    """
    passed = [x]
    for weight, bias in zip(layers[::2], layers[1::2], strict=True):
        if len(passed) > 1:
            x = x.relu_()  # in place: it is the input of this layer in `passed`
        x = torch.baddbmm(bias, weight, x)
        passed.append(x)
    return passed


def _stacked(matrices: Sequence[Tensor]) -> Tensor:
    """Stack K matrices to (K, rows, columns), padded with zeros."""
    rows, columns = (max(matrix.shape[d] for matrix in matrices) for d in range(2))
    if any(matrix.shape != (rows, columns) for matrix in matrices):
        matrices = [F.pad(each, (0, columns - each.shape[1], 0, rows - each.shape[0])) for each in matrices]
    return torch.stack(list(matrices))


def _matrix(parameter: Tensor) -> Tensor:
    """Return a weight (outputs, inputs) as it is, and a bias as a view (outputs, 1)."""
    return parameter if parameter.dim() == 2 else parameter[:, None]
