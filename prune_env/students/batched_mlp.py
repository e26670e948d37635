"""One epoch of many students: fully connected ones of one depth in batched matrix products, others in turn.

Narrower layers and smaller images are padded with zeros, and so are short batches. Zero rows and columns of a weight
have zero gradients and stay zero, so padding changes no number but by rounding, and is charged to nobody.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Sequence
from contextlib import ExitStack
from dataclasses import fields

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from prune_env import stats
from prune_env.budget import Epoch, Stopwatch
from prune_env.selection import Selection
from prune_env.students import augment, models
from prune_env.threads import one_thread
from prune_env.trainer import EVALUATION_BATCH, EpochResult, Trainer, Work, bits, number, tally

FETCHED = 2**24  # bytes of images that are gathered at a time: 16 MiB
ENTERED = 2**18  # logits whose statistics are entered at a time: 1 MiB, which a cache holds
# options of training that may differ inside a batch; a student that sets another one trains by itself
KNOWN = ("model", "batch_size", "lr", "weight_decay", "momentum", "warmup", "label_smoothing", "ema", "precision")


def train_epochs(trainers: Sequence[Trainer], selections: Sequence[Selection]) -> list[EpochResult]:
    """Do for each of K distinct trainers what `train_epoch` does with its selection; if one raises, nothing changed.

    On a CPU vmapped convolutions are slower than a loop, and batched matrix products faster.
    """
    epochs = [trainer.fit(selection) for trainer, selection in zip(trainers, selections, strict=True)]
    alike: dict[Hashable, list[int]] = defaultdict(list)
    for k, trainer in enumerate(trainers):
        alike[_kind(trainer) or k].append(k)
    works: dict[int, Work] = {}
    with ExitStack() as stack:
        if len(alike) > 1 or any(len(epoch.rows.scored) for epoch in epochs):
            # else all train on copies, and change when nothing can raise any more
            for trainer in trainers:
                stack.enter_context(trainer.all_or_nothing())
        for members in alike.values():
            of_members = [trainers[k] for k in members], [epochs[k] for k in members]
            works |= zip(members, run_alike(*of_members), strict=True)
    return [trainer.charge(works[k]) for k, trainer in enumerate(trainers)]


def _kind(trainer: Trainer) -> Hashable:
    """What students that train in one batch have in common; None if this one trains by itself."""
    other = [option for option in fields(trainer.recipe) if option.name not in KNOWN]
    unknown = any(getattr(trainer.recipe, option.name) != option.default for option in other)
    if unknown or trainer.bf16 or trainer.ranks.size > 1 or not models.is_fully_connected(trainer.model):
        return None
    depth = len(trainer.parameters)
    return depth, len(trainer.train_data.classes), trainer.device, trainer.small


def run_alike(trainers: list[Trainer], epochs: list[Epoch]) -> list[Work]:
    """Do for each trainer of one kind what its `run` does."""
    if len(trainers) == 1:
        return [trainers[0].run(epochs[0])]
    # with the most batches first, those that still train are always the first so many
    batches = [len(trainer.sizes(len(epoch.rows))) for trainer, epoch in zip(trainers, epochs, strict=True)]
    order = sorted(range(len(trainers)), key=lambda k: -batches[k])
    watch = Stopwatch(trainers[0].device)
    with one_thread(trainers[0].small):
        watch.mark()
        students = Students([trainers[k] for k in order])
        trained = students.train([epochs[k] for k in order])
        watch.mark()
        loss, validated = students.validate()
        watch.mark()
        students.hand_back()
        scored = torch.cat([trainers[k].score(epochs[k]) for k in order])[:, None]
        watch.mark()
        counts = torch.cat([trained, scored, validated, bits(loss)[:, None]], dim=1).tolist()  # the host waits here
    train, evaluate, score = (passed / len(trainers) for passed in watch.stretches())
    works = {
        k: Work(epochs[k], own, number(loss_bits), (train, score, evaluate))
        for k, (*own, loss_bits) in zip(order, counts, strict=True)
    }
    return [works[k] for k in range(len(trainers))]


class Students:
    """Copies of the weights, momenta and statistics of K students; forward and backward written out."""

    def __init__(self, trainers: list[Trainer]):
        self.trainers = trainers
        self.device = trainers[0].device
        # weights and biases of each layer in turn, a view (outputs, inputs) or (outputs, 1) a student
        self.views = [[_matrix(p.detach()) for p in t.parameters] for t in trainers]
        self.buffers = [[_matrix(buffer) for buffer in t.optimizer.momenta()] for t in trainers]
        self.weights, self.momenta = (
            [_stacked(column) for column in zip(*each, strict=True)] for each in (self.views, self.buffers)
        )  # (K, outputs, inputs) and (K, outputs, 1)
        self.gradients = [torch.empty_like(weight) for weight in self.weights]
        self.features, self.classes = self.weights[0].shape[2], self.weights[-1].shape[1]
        self.samples = [len(trainer.stats.table) for trainer in trainers]
        self.table = torch.cat([trainer.stats.table for trainer in trainers])  # (sum of N, F)
        self.batches = [trainer.batches for trainer in trainers]
        self.rates = [trainer.optimizer.param_groups[0]["lr"] for trainer in trainers]

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
        """Give every trainer what its copies have become."""
        tables = self.table.split(self.samples)
        for k, trainer in enumerate(self.trainers):
            for mine, stacked in ((self.views[k], self.weights), (self.buffers[k], self.momenta)):
                corners = [all_of[k, : own.shape[0], : own.shape[1]] for own, all_of in zip(mine, stacked, strict=True)]
                torch._foreach_copy_(mine, corners)  # pyright: ignore[reportPrivateImportUsage]
            trainer.stats.table.copy_(tables[k])
            trainer.batches = self.batches[k]
            trainer.optimizer.param_groups[0]["lr"] = self.rates[k]

    @torch.no_grad()
    def train(self, epochs: list[Epoch]) -> Tensor:
        """Train on the rows of each epoch, the most batches first; return (K, 3) counts as `stats.enter` gives them."""
        trainers, device, count = self.trainers, self.device, len(epochs)
        counts = torch.zeros(count, 3, dtype=torch.int64, device=device)
        sizes = [trainer.sizes(len(epoch.rows)) for trainer, epoch in zip(trainers, epochs, strict=True)]
        ticks, most = len(sizes[0]), max(trainer.batch_size for trainer in trainers)  # T batches of at most B rows
        rates = np.zeros((count, ticks))
        places = []  # of each student's rows among T * B: smaller batches, and the last one, leave some empty
        for k, (trainer, epoch) in enumerate(zip(trainers, epochs, strict=True)):
            batch, place = np.divmod(np.arange(len(epoch.rows)), trainer.batch_size)
            places.append(k * ticks * most + batch * most + place)
            self.batches[k] += sum(rows > 1 for rows in sizes[k])
            rates[k, : len(sizes[k])] = trainer.rates(epoch, sizes[k])
            if sizes[k]:
                self.rates[k] = float(rates[k, len(sizes[k]) - 1])
        places = np.concatenate(places)

        def placed(rows: list[NDArray]) -> NDArray:
            """(K, T, B), 0 where there is no row."""
            values = np.zeros(count * ticks * most, rows[0].dtype)
            values[places] = np.concatenate(rows)
            return values.reshape(count, ticks, most)

        weights = [epoch.rows.weights / trainer.batch_size for trainer, epoch in zip(trainers, epochs, strict=True)]
        index, partner, weight, share = (
            torch.from_numpy(placed(rows)).to(device)
            for rows in (
                [epoch.rows.indices for epoch in epochs],
                [epoch.rows.partners for epoch in epochs],
                weights,
                [epoch.rows.shares for epoch in epochs],
            )
        )
        real = placed([np.ones(len(places), np.bool_)])
        mixed = any(epoch.rows.mixed for epoch in epochs)
        rate = torch.from_numpy(rates).to(device).float()[..., None]  # (K, T, 1)
        active = [sum(len(own) > tick for own in sizes) for tick in range(ticks)]
        first = torch.tensor([0, *np.cumsum(self.samples)[:-1]], device=device)  # (K,) row of each one's first sample
        spent = torch.tensor([epoch.spent for epoch in epochs], device=device)  # (K,)
        ema = torch.tensor([trainer.stats.ema for trainer in trainers], device=device)  # (K,)
        several = max(1, FETCHED // max(1, count * most * self.features))
        for start in range(0, ticks, several):
            part = slice(active[start]), slice(start, start + several)
            images, labels = self._fetch(index[part])
            target, (others, other_labels) = self._target(labels), self._fetch(partner[part]) if mixed else (None, None)
            if other_labels is not None:
                target = torch.lerp(target, self._target(other_labels), share[part][..., None])
            logits = torch.zeros_like(target)
            for tick in range(start, min(start + several, ticks)):
                a, t = active[tick], tick - start
                x = self._normalize(images[:a, t])
                if others is not None:
                    x = torch.lerp(x, self._normalize(others[:a, t]), share[:a, tick, :, None])
                logits[:a, t] = self._step(x, target[:a, t], weight[:a, tick], rate[:a, tick, None])
            # places of real rows among these A * T * B, found on the host, lest it waits for the device
            found = torch.from_numpy(np.flatnonzero(real[part])).to(device)
            member = found // (labels.shape[1] * most)
            samples = first[member] + index[part].flatten()[found]
            clean = share[part].flatten()[found] == 0.0
            columns = logits.flatten(0, 2)[found], labels.flatten()[found], clean, spent[member], ema[member]
            pieces = zip(*(column.split(ENTERED // self.classes) for column in (samples, *columns)), strict=True)
            flags = torch.cat([stats.enter(self.table, *piece) for piece in pieces], dim=1)  # (3, R)
            counts.index_add_(0, member, flags.long().t())
        return counts

    def _fetch(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Images (A, T, B, features) uint8, augmented and padded, and labels (A, T, B) int64 of `index`."""
        batches = []
        for trainer, rows in zip(self.trainers, index.flatten(1), strict=False):
            images, labels = trainer.train_data.batch(rows)
            if trainer.train_data.augment:
                images = augment.crop_flip(images, trainer.augmentation, rows, trainer.stats.visits(rows))
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
    def validate(self) -> tuple[Tensor, Tensor]:
        """The sums of `tally` over each student's validation part: loss (K,), counts (K, 1 + 2 C)."""
        sums: list[tuple[Tensor, Tensor]] = []
        longest = max(len(trainer.val_data) for trainer in self.trainers)
        for rows in torch.arange(longest, device=self.device).split(EVALUATION_BATCH):
            batches = [t.val_data.batch(rows.clamp(max=len(t.val_data) - 1)) for t in self.trainers]
            labels = [y.where(rows < len(t.val_data), -1) for t, (_, y) in zip(self.trainers, batches, strict=True)]
            images = self._normalize(_stacked([images.flatten(1) for images, _ in batches]))
            logits = forward(self.weights, images.transpose(1, 2))[-1].transpose(1, 2)
            sums.append(tally(logits, torch.stack(labels)))
        loss, counts = zip(*sums, strict=True)
        return torch.stack(loss).sum(dim=0), torch.stack(counts).sum(dim=0)


def forward(layers: list[Tensor], x: Tensor) -> list[Tensor]:
    """Inputs (A, …, B) of each layer of A students, and the logits (A, C, B).

    The batch comes last: products with few outputs are then twice as fast on a CPU.

    Args:
        layers: weights (A, outputs, inputs) and biases (A, outputs, 1) of each layer in turn.
        x: (A, features, B) float32.
    """
    passed = [x]
    for weight, bias in zip(layers[::2], layers[1::2], strict=True):
        if len(passed) > 1:
            x = x.relu_()
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
