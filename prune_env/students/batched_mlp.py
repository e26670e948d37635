"""One epoch of many students: fully connected ones of one depth in batched matrix products, others in turn.

Narrower layers and smaller images are padded with zeros, and so are short batches. Zero rows and columns of a weight
have zero gradients and stay zero, so padding changes no number but by rounding, and is charged to nobody.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Hashable, Iterator, Sequence
from contextlib import ExitStack

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

FETCHED = 2**20  # numbers of images that are gathered at a time: 4 MiB


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
    alone = trainer.bf16 or trainer.recipe.compile != "off" or trainer.ranks.size > 1
    if alone or not models.is_fully_connected(trainer.model):
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
        columns = zip(*(map(torch.atleast_2d, trainer.parameters) for trainer in trainers), strict=True)
        shapes = [tuple(max(p.shape[d] for p in column) for d in range(2)) for column in columns]
        # of each layer in turn: weights (K, outputs, inputs) and biases (K, 1, outputs)
        self.weights = [torch.zeros(len(trainers), *shape, device=self.device) for shape in shapes]
        self.momenta = [torch.zeros_like(weight) for weight in self.weights]
        for trainer, *corners in self._corners():
            for p, weight, momentum in zip(trainer.parameters, *corners, strict=True):
                weight.copy_(torch.atleast_2d(p.detach()))
                if (buffer := trainer.optimizer.state.get(p, {}).get("momentum_buffer")) is not None:
                    momentum.copy_(torch.atleast_2d(buffer))
        self.features, self.classes = shapes[0][1], shapes[-1][1]
        self.samples = [len(trainer.stats.table) for trainer in trainers]
        self.table = torch.cat([trainer.stats.table for trainer in trainers])  # (sum of N, F)
        self.batches = [trainer.batches for trainer in trainers]
        self.rates = [trainer.optimizer.param_groups[0]["lr"] for trainer in trainers]

        def column(name: str) -> Tensor:
            values = [getattr(trainer.recipe, name) for trainer in trainers]
            return torch.tensor(values, device=self.device)[:, None, None]  # (K, 1, 1)

        self.momentum, self.decay, self.smoothing = map(column, ("momentum", "weight_decay", "label_smoothing"))
        self.mean, self.scale = torch.zeros(2, len(trainers), 1, self.features, device=self.device)
        for k, trainer in enumerate(trainers):
            shape = trainer.train_data.images.shape[1:]
            self.mean[k, 0, : math.prod(shape)] = trainer.mean.expand(shape).flatten()
            self.scale[k, 0, : math.prod(shape)] = trainer.scale.expand(shape).flatten()

    def _corners(self) -> Iterator[tuple[Trainer, list[Tensor], list[Tensor]]]:
        """Each trainer with the parts of the stacked weights and momenta that are its own: the rest is padding."""
        for k, trainer in enumerate(self.trainers):
            places = [(k, *map(slice, torch.atleast_2d(p).shape)) for p in trainer.parameters]
            weights, momenta = (
                [stacked[place] for stacked, place in zip(each, places, strict=True)]
                for each in (self.weights, self.momenta)
            )
            yield trainer, weights, momenta

    @torch.no_grad()
    def hand_back(self) -> None:
        """Give every trainer what its copies have become."""
        tables = self.table.split(self.samples)
        for k, (trainer, weights, momenta) in enumerate(self._corners()):
            for p, weight, momentum in zip(trainer.parameters, weights, momenta, strict=True):
                p.copy_(weight.reshape(p.shape))
                if trainer.recipe.momentum:
                    trainer.optimizer.state[p]["momentum_buffer"] = momentum.reshape(p.shape).clone()
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
        rate = (
            torch.from_numpy(rates).to(device).float()[..., None]
        )  # on the host they stay as exact as a single student's
        active = [sum(len(own) > tick for own in sizes) for tick in range(ticks)]
        first = torch.tensor([0, *np.cumsum(self.samples)[:-1]], device=device)  # (K,) row of each one's first sample
        spent = torch.tensor([epoch.spent for epoch in epochs], device=device)  # (K,)
        ema = torch.tensor([trainer.stats.ema for trainer in trainers], device=device)  # (K,)
        several = max(1, FETCHED // max(1, count * most * self.features))
        for start in range(0, ticks, several):
            part = slice(active[start]), slice(start, start + several)
            images, labels = self._fetch(index[part])
            target = self._target(labels)
            if mixed:
                others, other_labels = self._fetch(partner[part])
                blend = share[part][..., None]
                images = torch.lerp(images, others, blend)
                target = torch.lerp(target, self._target(other_labels), blend)
            logits = torch.zeros_like(target)
            for tick in range(start, min(start + several, ticks)):
                a, t = active[tick], tick - start
                logits[:a, t] = self._step(images[:a, t], target[:a, t], weight[:a, tick], rate[:a, tick, None])
            # found on the host, lest it waits for the device: (R,) places of real rows among these A * T * B
            rows = torch.from_numpy(np.flatnonzero(real[part])).to(device)
            member = rows // (labels.shape[1] * most)
            flags = stats.enter(
                self.table,
                first[member] + index[part].flatten()[rows],
                logits.flatten(0, 2)[rows],
                labels.flatten()[rows],
                share[part].flatten()[rows] == 0.0,
                spent[member],
                ema[member],
            )
            counts.index_add_(0, member, flags.long().t())
        return counts

    def _fetch(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Images (A, T, B, features) float32, normalised, augmented and padded, and labels (A, T, B) of `index`."""
        trainers, rows = self.trainers[: len(index)], index.flatten(1)
        batches = [t.train_data.batch(own) for t, own in zip(trainers, rows, strict=True)]
        images = self._normalize([images for images, _ in batches])
        for k, trainer in enumerate(trainers):
            if trainer.train_data.augment:
                own = images[k, :, : batches[k][0][0].numel()]
                visits = trainer.stats.visits(rows[k])
                whole = augment.crop_flip(own.view_as(batches[k][0]), trainer.augmentation, rows[k], visits)
                own.copy_(whole.flatten(1))
        labels = torch.stack([labels for _, labels in batches])
        return images.unflatten(1, index.shape[1:]), labels.view_as(index)

    def _normalize(self, images: list[Tensor]) -> Tensor:
        """(R, C, H, W) uint8 images of each of A students to (A, R, features) float32, padded with zeros."""
        flat = [each.flatten(1) for each in images]
        if any(each.shape[1] < self.features for each in flat):
            flat = [F.pad(each, (0, self.features - each.shape[1])) for each in flat]
        return torch.stack(flat).float().sub_(self.mean[: len(flat)]).mul_(self.scale[: len(flat)])

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
        weights, momenta = ([stacked[:count] for stacked in each] for each in (self.weights, self.momenta))
        momentum, decay = self.momentum[:count], self.decay[:count]
        inputs = forward(weights, x)
        logits = inputs.pop()
        error = logits.softmax(dim=-1).sub_(target).mul_(weight[..., None])  # gradient of sum(w_i l_i) by the logits
        gradients: list[Tensor] = []  # of biases and weights, the last layer's first
        for layer in reversed(range(len(inputs))):
            h = inputs[layer]
            gradients += [error.sum(dim=1, keepdim=True), torch.bmm(error.transpose(1, 2), h)]
            if layer:
                error = torch.bmm(error, weights[2 * layer])
                error = torch.ops.aten.threshold_backward(error, h, 0.0)  # ReLU's, in one pass
        for p, v, g in zip(weights, momenta, reversed(gradients), strict=True):
            g.addcmul_(p, decay)
            torch.addcmul(g, v, momentum, out=v)
            p.addcmul_(g.addcmul_(v, momentum), rate, value=-1.0)  # Nesterov
        return logits

    @torch.no_grad()
    def validate(self) -> tuple[Tensor, Tensor]:
        """The sums of `tally` over each student's validation part: loss (K,), counts (K, 1 + 2 C)."""
        sums: list[tuple[Tensor, Tensor]] = []
        longest = max(len(trainer.val_data) for trainer in self.trainers)
        for rows in torch.arange(longest, device=self.device).split(EVALUATION_BATCH):
            batches = [t.val_data.batch(rows.clamp(max=len(t.val_data) - 1)) for t in self.trainers]
            labels = [y.where(rows < len(t.val_data), -1) for t, (_, y) in zip(self.trainers, batches, strict=True)]
            images = self._normalize([images for images, _ in batches])
            sums.append(tally(forward(self.weights, images)[-1], torch.stack(labels)))
        loss, counts = zip(*sums, strict=True)
        return torch.stack(loss).sum(dim=0), torch.stack(counts).sum(dim=0)


def forward(layers: list[Tensor], x: Tensor) -> list[Tensor]:
    """Inputs (A, B, …) of each layer of A students, and the logits (A, B, C).

    Args:
        layers: weights (A, outputs, inputs) and biases (A, 1, outputs) of each layer in turn.
        x: (A, B, features) float32.
    """
    passed = [x]
    for weight, bias in zip(layers[::2], layers[1::2], strict=True):
        if len(passed) > 1:
            x = x.relu_()
        x = torch.baddbmm(bias, x, weight.transpose(1, 2))
        passed.append(x)
    return passed
