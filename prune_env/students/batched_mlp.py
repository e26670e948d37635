"""One epoch of many students: fully connected ones of one depth in batched matrix products, others in turn.

Narrower layers and smaller images are padded with zeros, and so are short batches. Zero rows and columns of a weight
have zero gradients and stay zero, so padding changes no number but by rounding, and is charged to nobody.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Hashable, Sequence
from contextlib import ExitStack

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from prune_env import stats
from prune_env.budget import Stopwatch
from prune_env.selection import Selection
from prune_env.students import augment, models
from prune_env.threads import one_thread
from prune_env.trainer import EVALUATION_BATCH, Epoch, EpochResult, Trainer, bits, number, tally

FETCHED = 2**22  # numbers of images that are gathered at a time: 16 MiB


def train_epochs(trainers: Sequence[Trainer], selections: Sequence[Selection]) -> list[EpochResult]:
    """Do for each of K distinct trainers what `train_epoch` does with its selection; if one raises, nothing changed.

    On a CPU vmapped convolutions are slower than a loop, and batched matrix products faster.
    """
    results: dict[int, EpochResult] = {}
    alike: dict[Hashable, list[int]] = defaultdict(list)
    for k, trainer in enumerate(trainers):
        alike[_kind(trainer) or k].append(k)
    with ExitStack() as stack:
        for trainer in trainers:
            stack.enter_context(trainer.all_or_nothing())
        for members in alike.values():
            if len(members) == 1:
                done = [trainers[members[0]].train_epoch(selections[members[0]])]
            else:
                done = _train_alike([trainers[k] for k in members], [selections[k] for k in members])
            results |= zip(members, done, strict=True)
    return [results[k] for k in range(len(trainers))]


def _kind(trainer: Trainer) -> Hashable:
    """What students that train in one batch have in common; None if this one trains by itself."""
    alone = trainer.bf16 or trainer.recipe.compile != "off" or trainer.ranks.size > 1
    if alone or not models.is_fully_connected(trainer.model):
        return None
    depth = len(trainer.parameters)
    return depth, len(trainer.train_data.classes), trainer.device, trainer.small


def _train_alike(trainers: list[Trainer], selections: list[Selection]) -> list[EpochResult]:
    epochs = [trainer.fit(selection) for trainer, selection in zip(trainers, selections, strict=True)]
    # with the most batches first, those that still train are always the first so many
    batches = [len(trainer.sizes(len(epoch.rows))) for trainer, epoch in zip(trainers, epochs, strict=True)]
    order = sorted(range(len(trainers)), key=lambda k: -batches[k])
    with one_thread(trainers[0].small):
        watch = Stopwatch(trainers[0].device)
        watch.mark()
        students = Students([trainers[k] for k in order])
        trained = students.train([epochs[k] for k in order])
        students.hand_back()
        watch.mark()
        scored = torch.cat([trainers[k].score(epochs[k]) for k in order])[:, None]
        watch.mark()
        loss, validated = students.validate()
        watch.mark()
        rows = torch.cat([trained, scored, validated, bits(loss)[:, None]], dim=1).tolist()  # the host waits here
    seconds = [passed / len(trainers) for passed in watch.stretches()]
    results = {}
    for k, (*counts, loss_bits) in zip(order, rows, strict=True):
        results[k] = trainers[k].charge(epochs[k], counts, number(loss_bits), seconds)
    return [results[k] for k in range(len(trainers))]


class Students:
    """The weights and momenta of K students, a row of one matrix each; forward and backward written out."""

    def __init__(self, trainers: list[Trainer]):
        self.trainers = trainers
        self.device = trainers[0].device
        columns = list(zip(*(trainer.parameters for trainer in trainers), strict=True))
        self.shapes = [tuple(max(p.shape[d] for p in column) for d in range(column[0].dim())) for column in columns]
        self.weights = torch.zeros(len(trainers), sum(map(math.prod, self.shapes)), device=self.device)  # (K, P)
        self.momenta = torch.zeros_like(self.weights)
        self._copy(into_trainers=False)

        def column(name: str) -> Tensor:
            return torch.tensor([getattr(t.recipe, name) for t in trainers], device=self.device)[:, None]  # (K, 1)

        self.momentum, self.decay, self.smoothing = map(column, ("momentum", "weight_decay", "label_smoothing"))

    def layers(self, flat: Tensor) -> list[Tensor]:
        """Weights (A, outputs, inputs) and biases (A, outputs) of each layer in turn, as views of (A, P)."""
        parts = flat.split([math.prod(shape) for shape in self.shapes], dim=1)
        return [part.view(len(flat), *shape) for part, shape in zip(parts, self.shapes, strict=True)]

    @torch.no_grad()
    def _copy(self, *, into_trainers: bool) -> None:
        for column, stacked, momenta in zip(
            zip(*(trainer.parameters for trainer in self.trainers), strict=True),
            self.layers(self.weights),
            self.layers(self.momenta),
            strict=True,
        ):
            for k, p in enumerate(column):
                corner = (k, *map(slice, p.shape))
                state = self.trainers[k].optimizer.state
                if into_trainers:
                    p.copy_(stacked[corner])
                    if self.trainers[k].recipe.momentum:
                        state[p]["momentum_buffer"] = momenta[corner].clone()
                else:
                    stacked[corner] = p
                    if (momentum := state.get(p, {}).get("momentum_buffer")) is not None:
                        momenta[corner] = momentum

    def hand_back(self) -> None:
        """Give every trainer its weights and momenta."""
        self._copy(into_trainers=True)

    @torch.no_grad()
    def train(self, epochs: list[Epoch]) -> Tensor:
        """Train on the rows of each epoch, the most batches first; return (K, 3) counts as `stats.enter` tells them."""
        trainers, device, count = self.trainers, self.device, len(epochs)
        counts = torch.zeros(count, 3, dtype=torch.int64, device=device)
        sizes = [trainer.sizes(len(epoch.rows)) for trainer, epoch in zip(trainers, epochs, strict=True)]
        ticks, most = len(sizes[0]), max(trainer.batch_size for trainer in trainers)  # T batches of at most B rows
        index, partner = np.zeros((2, count, ticks, most), np.int64)
        weight, share = np.zeros((2, count, ticks, most), np.float32)
        real, rates = np.zeros((count, ticks, most), np.bool_), np.zeros((count, ticks))
        for k, (trainer, epoch) in enumerate(zip(trainers, epochs, strict=True)):
            at = np.divmod(np.arange(len(epoch.rows)), trainer.batch_size)
            index[k][at], partner[k][at] = epoch.rows.indices, epoch.rows.partners
            weight[k][at], share[k][at] = epoch.rows.weights / trainer.batch_size, epoch.rows.shares
            real[k][at] = True
            rates[k, : len(sizes[k])] = trainer.rates(epoch, sizes[k])
            trainer.batches += sum(rows > 1 for rows in sizes[k])
            if sizes[k]:
                trainer.optimizer.param_groups[0]["lr"] = float(rates[k, len(sizes[k]) - 1])
        mixed = any(epoch.rows.mixed for epoch in epochs)
        index, partner, weight, share, rates = (
            torch.from_numpy(values).to(device) for values in (index, partner, weight, share, rates)
        )
        rates = rates.float()  # on the host they stay as exact as a single student has them
        active = [sum(len(own) > tick for own in sizes) for tick in range(ticks)]
        table = torch.cat([trainer.stats.table for trainer in trainers])  # (sum of N, F)
        samples = [len(trainer.stats.table) for trainer in trainers]
        first = torch.tensor([0, *np.cumsum(samples)[:-1]], device=device)[:, None, None]  # of each one's rows
        spent = torch.tensor([epoch.spent for epoch in epochs], device=device)[:, None, None].expand_as(weight)
        ema = torch.tensor([trainer.stats.ema for trainer in trainers], device=device)[:, None, None].expand_as(weight)
        member = torch.arange(count, device=device)[:, None, None].expand_as(index)
        several = max(1, FETCHED // (count * most * self.shapes[0][1]))
        for start in range(0, ticks, several):
            part, now = slice(start, start + several), active[start]
            own = slice(now), part
            images, labels = self._fetch(index[own])
            target = self._target(labels)
            if mixed:
                others, other_labels = self._fetch(partner[own])
                blend = share[own][..., None]
                images, target = (
                    torch.lerp(images, others, blend),
                    torch.lerp(target, self._target(other_labels), blend),
                )
            logits = torch.zeros_like(target)
            for tick in range(start, min(start + several, ticks)):
                a, t = active[tick], tick - start
                logits[:a, t] = self._step(images[:a, t], target[:a, t], weight[:a, tick], rates[:a, tick])
            rows = tuple(torch.from_numpy(np.stack(np.nonzero(real[own]))).to(device))
            told = stats.enter(
                table,
                (first[:now] + index[own])[rows],
                logits[rows],
                labels[rows],
                (share[own] == 0.0)[rows],
                spent[own][rows],
                ema[own][rows],
            )
            counts.index_add_(0, member[own][rows], told.long().t())
        for trainer, rows in zip(trainers, table.split(samples), strict=True):
            trainer.stats.table.copy_(rows)
        return counts

    def _fetch(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Images (A, T, B, features) float32, normalised, augmented and padded, and labels (A, T, B) of `index`."""
        images, labels = [], []
        for trainer, rows in zip(self.trainers, index.flatten(1), strict=False):
            x, y = trainer.train_data.batch(rows)
            x = (x.float() - trainer.mean) * trainer.scale
            if trainer.train_data.augment:
                x = augment.crop_flip(x, trainer.augmentation, rows, trainer.stats.visits(rows))
            images.append(self._padded(x))
            labels.append(y)
        return torch.stack(images).unflatten(1, index.shape[1:]), torch.stack(labels).view_as(index)

    def _padded(self, images: Tensor) -> Tensor:
        """(R, C, H, W) to (R, features), zeros last."""
        return F.pad(images.flatten(1), (0, self.shapes[0][1] - images[0].numel()))

    def _target(self, labels: Tensor) -> Tensor:
        """(A, T, B, classes) float32: the smoothed one-hot labels of (A, T, B)."""
        classes = self.shapes[-1][0]
        smoothing = self.smoothing[: len(labels), :, None, None]
        return F.one_hot(labels, classes) * (1.0 - smoothing) + smoothing / classes

    def _step(self, x: Tensor, target: Tensor, weight: Tensor, rate: Tensor) -> Tensor:
        """Take one step of SGD with the first A students, each on its own batch.

        Args:
            x: (A, B, features) float32.
            target: (A, B, C) float32, which sums to 1 over classes.
            weight: (A, B) float32, of the loss, over the batch size.
            rate: (A,) float32, learning rates.

        Returns:
            (A, B, C) float32 logits before the step.
        """
        count = len(x)
        flat, momenta = self.weights[:count], self.momenta[:count]
        layers = self.layers(flat)
        inputs = forward(layers, x)
        logits = inputs.pop()
        error = (logits.softmax(dim=-1) - target) * weight[..., None]  # gradient of sum(w_i l_i) by the logits
        gradients: list[Tensor] = []  # of biases and weights, the last layer's first
        for layer in reversed(range(len(inputs))):
            h = inputs[layer]
            gradients += [error.sum(dim=1), torch.bmm(error.transpose(1, 2), h).flatten(1)]
            if layer:
                error = torch.bmm(error, layers[2 * layer])
                error = torch.ops.aten.threshold_backward(error, h, 0.0)  # ReLU's, in one pass
        gradient = torch.cat(gradients[::-1], dim=1).addcmul_(flat, self.decay[:count])  # (A, P)
        momentum = self.momentum[:count]
        momenta.mul_(momentum).add_(gradient)
        flat.addcmul_(gradient.addcmul_(momenta, momentum), rate[:, None], value=-1.0)  # Nesterov
        return logits

    @torch.no_grad()
    def validate(self) -> tuple[Tensor, Tensor]:
        """The sums of `tally` over each student's validation part: loss (K,), counts (K, 1 + 2 C)."""
        sums: list[tuple[Tensor, Tensor]] = []
        parts = [trainer.val_data for trainer in self.trainers]
        layers = self.layers(self.weights)
        for start in range(0, max(map(len, parts)), EVALUATION_BATCH):
            images, labels = zip(*(self._validation(trainer, start) for trainer in self.trainers), strict=True)
            sums.append(tally(forward(layers, torch.stack(images))[-1], torch.stack(labels)))
        loss, counts = zip(*sums, strict=True)
        return torch.stack(loss).sum(dim=0), torch.stack(counts).sum(dim=0)

    def _validation(self, trainer: Trainer, start: int) -> tuple[Tensor, Tensor]:
        """Images (R, features) and labels (R,) of a student's validation part from `start`; -1 where it has ended."""
        data = trainer.val_data
        rows = torch.arange(start, max(min(start + EVALUATION_BATCH, len(data)), start), device=self.device)
        images, labels = data.batch(rows)
        missing = min(EVALUATION_BATCH, max(len(t.val_data) for t in self.trainers) - start) - len(rows)
        x = (
            self._padded((images.float() - trainer.mean) * trainer.scale)
            if len(rows)
            else images.new_zeros(0, self.shapes[0][1], dtype=torch.float32)
        )
        return F.pad(x, (0, 0, 0, missing)), F.pad(labels, (0, missing), value=-1)


def forward(layers: list[Tensor], x: Tensor) -> list[Tensor]:
    """Inputs (A, B, …) of each layer of A students, and the logits (A, B, C).

    Args:
        layers: weights (A, outputs, inputs) and biases (A, outputs) of each layer in turn.
        x: (A, B, features) float32.
    """
    passed = [x]
    for weight, bias in zip(layers[::2], layers[1::2], strict=True):
        if len(passed) > 1:
            x = x.relu_()
        x = torch.baddbmm(bias[:, None], x, weight.transpose(1, 2))
        passed.append(x)
    return passed
