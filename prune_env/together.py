"""One epoch of many students: fully connected ones of like shape in batched matrix products, others in turn."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from prune_env import augment, stats
from prune_env.compute import Stopwatch
from prune_env.selection import Selection
from prune_env.trainer import EVALUATION_BATCH, EpochResult, Plan, Trainer, pack, tally

FETCHED = 2**22  # numbers of images that are gathered at a time: 16 MiB
NARROW = 128  # hidden layers up to this width are padded to the widest: it is the calls that cost, not the work


def run_epochs(trainers: Sequence[Trainer], selections: Sequence[Selection]) -> list[EpochResult]:
    """What `run_epoch` of each of K distinct trainers does with its selection, to the rounding of sums.

    On a CPU vmapped convolutions are slower than a loop, and batched matrix products faster.
    """
    results: dict[int, EpochResult] = {}
    alike: dict[object, list[int]] = defaultdict(list)
    for i, trainer in enumerate(trainers):
        alike[_shape(trainer) or i].append(i)
    for members in alike.values():
        if len(members) == 1:
            results[members[0]] = trainers[members[0]].run_epoch(selections[members[0]])
        else:
            done = _run_alike([trainers[i] for i in members], [selections[i] for i in members])
            results |= zip(members, done, strict=True)
    return [results[i] for i in range(len(trainers))]


def _shape(trainer: Trainer) -> object:
    """What students have in common whose layers can be stacked; None if this one has to train by itself."""
    layers = list(trainer.model)[1:] if isinstance(trainer.model, nn.Sequential) else []
    alone = trainer.bf16 or trainer.recipe.compile != "off" or trainer.ranks.size > 1
    if alone or not layers or not all(isinstance(layer, nn.Linear | nn.ReLU) for layer in layers):
        return None
    hidden = tuple(max(layer.out_features, NARROW) for layer in layers[:-1] if isinstance(layer, nn.Linear))
    images = tuple(trainer.train_data.images.shape[1:]), trainer.train_data.augment
    return hidden, len(trainer.train_data.classes), images, trainer.batch_size, trainer.device


def _run_alike(trainers: list[Trainer], selections: list[Selection]) -> list[EpochResult]:
    plans = [trainer.plan(selection) for trainer, selection in zip(trainers, selections, strict=True)]
    # with the longest first, those that still train are always the first so many
    order = sorted(range(len(plans)), key=lambda i: -len(plans[i].chosen))
    longest_first = [trainers[i] for i in order]
    device = trainers[0].device

    watch = Stopwatch(device)
    watch.mark()
    students = _Stack(longest_first)
    training = students.train([plans[i] for i in order])
    students.hand_back()
    watch.mark()
    scoring = torch.cat([trainers[i].score(plans[i].scored) for i in order])[:, None]
    watch.mark()
    validation = students.evaluate()
    watch.mark()
    counted = torch.cat([training, scoring, validation], dim=1).tolist()  # the one wait for the device
    seconds = [passed / len(trainers) for passed in watch.stretches()]
    of = dict(zip(order, counted, strict=True))
    return [trainer.conclude(plans[i], of[i], seconds) for i, trainer in enumerate(trainers)]


class _Stack:
    """The layers of K students, stacked, with their momenta; forward, backward and SGD written out.

    Layers are as wide as the widest student's. What is added to others has weights of 0, so that its outputs and
    gradients are 0, and stays so.
    """

    def __init__(self, trainers: list[Trainer]):
        self.trainers = trainers
        self.device = trainers[0].device
        columns = [list(trainer.model.parameters()) for trainer in trainers]
        self.parameters = [_padded([p.detach() for p in layer]) for layer in zip(*columns, strict=True)]
        momenta = [[_momentum(trainer, p) for p in column] for trainer, column in zip(trainers, columns, strict=True)]
        self.momenta = [_padded(layer) for layer in zip(*momenta, strict=True)]
        recipes = [trainer.recipe for trainer in trainers]
        self.decay = torch.tensor([recipe.weight_decay for recipe in recipes], device=self.device)  # (K,) each
        self.factor = torch.tensor([recipe.momentum for recipe in recipes], device=self.device)
        self.smoothing = torch.tensor([recipe.label_smoothing for recipe in recipes], device=self.device)
        self.mean = torch.stack([trainer.mean for trainer in trainers])[:, None]  # (K, 1, C, 1, 1)
        self.scale = torch.stack([trainer.scale for trainer in trainers])[:, None]

    def hand_back(self) -> None:
        """Give every trainer its weights and momenta."""
        with torch.no_grad():
            for k, trainer in enumerate(self.trainers):
                for p, new, momentum in zip(trainer.model.parameters(), self.parameters, self.momenta, strict=True):
                    own = (k, *map(slice, p.shape))
                    p.copy_(new[own])
                    trainer.optimizer.state[p]["momentum_buffer"] = momentum[own].clone()

    @torch.no_grad()
    def train(self, plans: list[Plan]) -> Tensor:
        """A pass over what was chosen, the longest first; (K, 3) int64 counts of rows as `stats.enter` tells them.

        A batch is padded to full length with rows of weight 0, which are not charged: they belong to nobody.
        """
        trainers, first = self.trainers, self.trainers[0]
        size, count = first.batch_size, len(plans)
        lengths = [len(plan.chosen) for plan in plans]
        ticks = -(-max(lengths) // size)
        if ticks == 0:
            return torch.zeros(count, 3, dtype=torch.int64, device=self.device)
        for trainer, plan in zip(trainers, plans, strict=True):
            trainer.batches += sum(rows > 1 for rows in trainer.sizes(len(plan.chosen)))

        padded = (count, ticks * size)
        host = {name: np.zeros(padded, kind) for name, kind in _ROWS.items()}
        rates = np.zeros((ticks, count))
        for k, (trainer, plan) in enumerate(zip(trainers, plans, strict=True)):
            chosen, length = plan.chosen, lengths[k]
            host["index"][k, :length] = chosen.indices
            host["partner"][k, :length] = chosen.partners
            host["weight"][k, :length] = chosen.weights / size
            host["share"][k, :length] = chosen.shares
            of_batches = trainer.rates(plan, trainer.sizes(length))
            rates[: len(of_batches), k] = of_batches
            if of_batches:
                trainer.optimizer.param_groups[0]["lr"] = of_batches[-1]
        mixed = any(plan.chosen.mixed for plan in plans)
        index, partner, weight, share = (torch.from_numpy(host[name]).to(self.device) for name in _ROWS)
        rate = torch.from_numpy(rates).float().to(self.device)[..., None, None]  # (T, K, 1, 1)
        active = [sum(length > tick * size for length in lengths) for tick in range(ticks)]

        table = torch.cat([trainer.stats.table for trainer in trainers])  # (sum of N, F)
        samples = [len(trainer.stats.table) for trainer in trainers]
        firsts = torch.tensor([0, *np.cumsum(samples)[:-1]], device=self.device)  # (K,), row of each one's first
        counts = torch.zeros(count, 3, dtype=torch.int64, device=self.device)
        several = max(1, FETCHED // (count * size * math.prod(first.train_data.images.shape[1:])))
        parts = [range(start, min(start + several, ticks)) for start in range(0, ticks, several)]
        spent = torch.tensor([trainer.ledger.spent for trainer in trainers], device=self.device)  # (K,)
        ema = torch.tensor([trainer.stats.ema for trainer in trainers], device=self.device)
        borders = [part.start * size for part in parts]
        for part, (member, at) in zip(parts, self._real(lengths, borders), strict=True):
            start, members = part.start, active[part.start]
            columns = slice(part.start * size, part.stop * size)
            images, target = self._fetch(index[:members, columns])
            labels = target
            soft = self._soft(target)
            if mixed:
                others, other_target = self._fetch(partner[:members, columns])
                blend = share[:members, columns]
                images = torch.lerp(images, others, blend[..., None])
                soft = torch.lerp(soft, self._soft(other_target), blend[..., None])
            logits = torch.zeros_like(soft)
            for tick in part:
                rows, a = slice((tick - start) * size, (tick - start + 1) * size), active[tick]
                logits[:a, rows] = self._step(
                    images[:a, rows], soft[:a, rows], weight[:a, tick * size : (tick + 1) * size], rate[tick, :a]
                )
            told = stats.enter(
                table,
                firsts[member] + index[member, at],
                logits[member, at - columns.start],
                labels[member, at - columns.start],
                share[member, at] == 0.0,
                spent[member],
                ema[member],
            )
            counts.index_add_(0, member, told.long().t())
        for trainer, rows in zip(trainers, table.split(samples), strict=True):
            trainer.stats.table.copy_(rows)
        return counts

    def _real(self, lengths: list[int], borders: list[int]) -> Iterator[tuple[Tensor, Tensor]]:
        """Member and column, (R,) int64 each, of the rows that are somebody's between one border and the next."""
        member = np.repeat(np.arange(len(lengths)), lengths)
        column = np.concatenate([np.arange(length) for length in lengths])
        part = np.searchsorted(borders, column, side="right")
        order = np.argsort(part, kind="stable")
        rows = torch.from_numpy(np.stack([member, column])[:, order]).to(self.device)  # (2, all), sent at once
        for of_part in rows.split(np.bincount(part)[1:].tolist(), dim=1):
            yield of_part[0], of_part[1]

    def _fetch(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Images (A, R, features) float32, normalised and augmented, and labels (A, R) of samples `index` (A, R)."""
        images, labels = [], []
        for trainer, rows in zip(self.trainers, index, strict=False):
            x, y = trainer.train_data.batch(rows)
            x = (x.float() - trainer.mean) * trainer.scale
            if trainer.train_data.augment:
                x = augment.crop_flip(x, trainer.augmentation, rows, trainer.stats.visits(rows))
            images.append(x.flatten(1))
            labels.append(y)
        return torch.stack(images), torch.stack(labels)

    def _soft(self, labels: Tensor) -> Tensor:
        """Labels (A, R) to targets (A, R, C) float32, smoothed."""
        classes = self.parameters[-1].shape[1]
        smoothing = self.smoothing[: len(labels), None, None]
        one_hot = (labels[..., None] == torch.arange(classes, device=self.device)).float()
        return one_hot * (1.0 - smoothing) + smoothing / classes

    def _step(self, x: Tensor, target: Tensor, weight: Tensor, rate: Tensor) -> Tensor:
        """One batch of the first A students.

        Args:
            x: (A, B, features) float32.
            target: (A, B, C) float32.
            weight: (A, B) float32, of the loss, over the batch size.
            rate: (A, 1, 1) float32.

        Returns:
            (A, B, C) float32 logits before the step.
        """
        a = len(x)
        inputs = _forward([p[:a] for p in self.parameters], x)
        logits = inputs.pop()
        gradient = (logits.softmax(dim=-1) - target) * weight[..., None]  # of sum(w_i l_i) by the logits
        for layer in reversed(range(len(inputs))):
            w, h = self.parameters[2 * layer][:a], inputs[layer]
            gradients = [torch.bmm(gradient.transpose(1, 2), h), gradient.sum(dim=1)]
            if layer:
                gradient = torch.bmm(gradient, w).masked_fill_(h <= 0.0, 0.0)
            for i, g in enumerate(gradients, start=2 * layer):
                self._descend(i, g, rate)
        return logits

    def _descend(self, i: int, gradient: Tensor, rate: Tensor) -> None:
        """SGD with (Nesterov) momentum and weight decay on the i-th parameters of the first A students."""
        a = len(gradient)
        p, momentum = self.parameters[i][:a], self.momenta[i][:a]
        shape = (-1, *(1 for _ in p.shape[1:]))
        rate, decay, factor = (values[:a].view(shape) for values in (rate, self.decay, self.factor))
        gradient = torch.addcmul(gradient, p, decay)
        momentum.mul_(factor).add_(gradient)
        p.addcmul_(rate, torch.addcmul(gradient, momentum, factor), value=-1.0)

    @torch.no_grad()
    def evaluate(self) -> Tensor:
        """(K, 2 + 2 C) int64: `tally` of each student's validation part, as `pack` packs it."""
        sharing: dict[str, list[int]] = defaultdict(list)
        for k, trainer in enumerate(self.trainers):
            sharing[trainer.val_data.digest].append(k)
        sums: dict[int, Tensor] = {}
        for members in sharing.values():
            val = self.trainers[members[0]].val_data
            at = torch.tensor(members, device=self.device)
            parameters = [p[at] for p in self.parameters]
            loss = torch.zeros(len(members), device=self.device)
            counts = torch.zeros(len(members), 1 + 2 * len(val.classes), dtype=torch.int64, device=self.device)
            fetched = max(1, FETCHED // (len(members) * math.prod(val.images.shape[1:])))
            for rows in torch.arange(len(val), device=self.device).split(min(EVALUATION_BATCH, fetched)):
                images, labels = val.batch(rows)
                x = ((images.float() - self.mean[at]) * self.scale[at]).flatten(2)  # (M, B, features)
                of_rows = tally(_forward(parameters, x)[-1], labels)
                loss += of_rows[:, 0]
                counts += of_rows[:, 1:].long()
            sums |= zip(members, pack(loss, counts), strict=True)
        return torch.stack([sums[k] for k in range(len(self.trainers))])


def _forward(parameters: list[Tensor], x: Tensor) -> list[Tensor]:
    """Inputs of each layer of A students, and the logits.

    Args:
        parameters: weights (A, outputs, inputs) and biases (A, outputs) of each layer in turn.
        x: (A, B, features) float32.

    Returns:
        (A, B, …) float32 each.
    """
    inputs = [x]
    for layer in range(0, len(parameters), 2):
        w, b = parameters[layer : layer + 2]
        out = torch.baddbmm(b[:, None], inputs[-1], w.transpose(1, 2))
        inputs.append(out.relu_() if layer + 2 < len(parameters) else out)
    return inputs


_ROWS = {"index": np.int64, "partner": np.int64, "weight": np.float32, "share": np.float32}


def _padded(tensors: Sequence[Tensor]) -> Tensor:
    """Tensors of one number of axes, stacked; zeros where one is smaller than the largest."""
    shapes = {tuple(tensor.shape) for tensor in tensors}
    if len(shapes) == 1:
        return torch.stack(list(tensors))
    stacked = tensors[0].new_zeros(len(tensors), *map(max, zip(*shapes, strict=True)))
    for k, tensor in enumerate(tensors):
        stacked[(k, *map(slice, tensor.shape))] = tensor
    return stacked


def _momentum(trainer: Trainer, p: Tensor) -> Tensor:
    buffer = trainer.optimizer.state.get(p, {}).get("momentum_buffer")
    return torch.zeros_like(p) if buffer is None else buffer
