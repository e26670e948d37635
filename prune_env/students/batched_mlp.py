"""One epoch of many students: fully connected ones of like shape in batched matrix products, others in turn."""

from __future__ import annotations

import functools
import math
from collections import defaultdict
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from prune_env import stats
from prune_env.budget import Stopwatch
from prune_env.selection import Selection
from prune_env.students import augment
from prune_env.trainer import EVALUATION_BATCH, EpochResult, Plan, Trainer, pack, tally

FETCHED = 2**22  # numbers of images that are gathered at a time: 16 MiB
PROBED = 8  # products that are tried in one batch, or as many as threads; more are taken to round like these
TRIED = 10_000  # numbers in which they must agree
ALIGNED = 16  # numbers: 64 bytes, where torch has every tensor of its own begin


def run_epochs(trainers: Sequence[Trainer], selections: Sequence[Selection]) -> list[EpochResult]:
    """What `run_epoch` of each of K distinct trainers does with its selection.

    On a CPU vmapped convolutions are slower than a loop, and batched matrix products faster. Students that are stacked
    take the operations of `run_epoch` one by one, on shapes that give every number the same rounding: training
    amplifies the smallest difference, over a long episode to a tenth of a weight.
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
    batch = trainer.batch_size * math.prod(trainer.train_data.images.shape[1:])
    if trainer.device.type == "cpu" and batch % ALIGNED:
        return None  # a single student's batches do not begin where tensors do, and round accordingly
    # widths are not padded: products of other shapes round otherwise
    widths = tuple(layer.out_features for layer in layers if isinstance(layer, nn.Linear))
    images = tuple(trainer.train_data.images.shape[1:]), trainer.train_data.augment
    return widths, images, trainer.batch_size, trainer.recipe.label_smoothing, trainer.device


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
    """The layers of K students, stacked, with their momenta; forward and backward written out."""

    def __init__(self, trainers: list[Trainer]):
        self.trainers = trainers
        self.device = trainers[0].device
        columns = [list(trainer.model.parameters()) for trainer in trainers]
        self.parameters = [torch.stack([p.detach() for p in layer]) for layer in zip(*columns, strict=True)]
        momenta = [[_momentum(trainer, p) for p in column] for trainer, column in zip(trainers, columns, strict=True)]
        self.momenta = [torch.stack(layer) for layer in zip(*momenta, strict=True)]
        self.own = _of_each(self.parameters), _of_each(self.momenta)
        self.mean = torch.stack([trainer.mean for trainer in trainers])[:, None]  # (K, 1, C, 1, 1)
        self.scale = torch.stack([trainer.scale for trainer in trainers])[:, None]

    def hand_back(self) -> None:
        """Give every trainer its weights and momenta."""
        with torch.no_grad():
            for k, trainer in enumerate(self.trainers):
                for p, new, momentum in zip(trainer.model.parameters(), self.parameters, self.momenta, strict=True):
                    p.copy_(new[k])
                    if trainer.recipe.momentum:
                        trainer.optimizer.state[p]["momentum_buffer"] = momentum[k].clone()

    @torch.no_grad()
    def train(self, plans: list[Plan]) -> Tensor:
        """A pass over what was chosen, the longest first; (K, 3) int64 counts of rows as `stats.enter` tells them.

        Images are gathered for full batches; rows beyond what was chosen are not trained on, and charged to nobody.
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
        batches = [list(_batches(lengths, tick * size, size)) for tick in range(ticks)]

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
            start, members = part.start, batches[part.start][-1][0].stop
            columns = slice(part.start * size, part.stop * size)
            images, labels = self._fetch(index[:members, columns])
            other_labels, blend = None, share[:members, columns]
            if mixed:
                others, other_labels = self._fetch(partner[:members, columns])
                images = torch.lerp(images, others, blend[..., None])
            logits = torch.zeros(*labels.shape, len(first.train_data.classes), device=self.device)
            for tick in part:
                for own, count_of_rows in batches[tick]:
                    rows = slice((tick - start) * size, (tick - start) * size + count_of_rows)
                    logits[own, rows] = self._step(
                        own,
                        images[own, rows],
                        labels[own, rows],
                        None if other_labels is None else other_labels[own, rows],
                        blend[own, rows],
                        weight[own, tick * size : tick * size + count_of_rows],
                        rates[tick, own],
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

    def _step(
        self,
        own: slice,
        x: Tensor,
        labels: Tensor,
        others: Tensor | None,
        share: Tensor,
        weight: Tensor,
        rates: NDArray,
    ) -> Tensor:
        """One batch of A students.

        Args:
            own: which they are.
            x: (A, B, features) float32.
            labels: (A, B) int64.
            others: (A, B) int64 labels of partners, if any is blended.
            share: (A, B) float32, of the partners.
            weight: (A, B) float32, of the loss, over the batch size.
            rates: (A,) learning rates.

        Returns:
            (A, B, C) float32 logits before the step.
        """
        parameters = [p[own] for p in self.parameters]
        inputs = _forward(parameters, x)
        logits = inputs.pop()
        gradient = self._gradient(logits, labels, others, share, weight)
        gradients: list[Tensor] = []  # of weights and biases, the last layer's first
        for layer in reversed(range(len(inputs))):
            h = inputs[layer]
            gradients += [gradient.sum(dim=1), product(gradient.transpose(1, 2), h)]
            if layer:
                gradient = product(gradient, parameters[2 * layer]).masked_fill_(h <= 0.0, 0.0)
        self._descend(own, _of_each(gradients[::-1]), rates)
        return logits

    @torch.enable_grad()
    def _gradient(self, logits: Tensor, labels: Tensor, others: Tensor | None, share: Tensor, weight: Tensor) -> Tensor:
        """Of sum(w_i l_i) by the logits (A, B, C), the trainers' own loss; arguments as of `_step`."""
        trainer, flat = self.trainers[0], logits.flatten(0, 1).requires_grad_()
        if others is None:
            loss = trainer.loss(flat, labels.flatten())
        else:
            loss = trainer.mixed_loss(flat, labels.flatten(), others.flatten(), share.flatten())
        (gradient,) = torch.autograd.grad(loss, flat, weight.flatten())
        return gradient.view_as(logits)

    def _descend(self, own: slice, gradients: list[list[Tensor]], rates: NDArray) -> None:
        """SGD with (Nesterov) momentum and weight decay for A students, given the gradients and the rate (A,) of each.

        By the call that their optimisers make: its rounding is its own, and `step()` around it takes ten times as long.
        """
        parameters, momenta = (of_each[own] for of_each in self.own)
        for k, p, momentum, g, rate in zip(
            range(own.start, own.stop), parameters, momenta, gradients, rates, strict=True
        ):
            recipe = self.trainers[k].recipe
            torch._fused_sgd_(  # pyright: ignore[reportPrivateImportUsage]
                p,
                g,
                momentum if recipe.momentum else [],
                weight_decay=recipe.weight_decay,
                momentum=recipe.momentum,
                lr=float(rate),
                dampening=0.0,
                nesterov=recipe.momentum > 0.0,
                maximize=False,
                is_first_step=False,
            )

    @torch.no_grad()
    def evaluate(self) -> Tensor:
        """(K, 2 + 2 C) int64: `tally` of each student's validation part, as `pack` packs it."""
        alike: dict[tuple[int, int], list[int]] = defaultdict(list)
        for k, trainer in enumerate(self.trainers):
            alike[len(trainer.val_data), len(trainer.val_data.classes)].append(k)
        together = max(1, FETCHED // (EVALUATION_BATCH * math.prod(self.trainers[0].val_data.images.shape[1:])))
        parts = [m[i : i + together] for m in alike.values() for i in range(0, len(m), together)]
        places = torch.tensor([k for members in parts for k in members], device=self.device)  # sent at once
        sums: dict[int, Tensor] = {}
        for members, at in zip(parts, places.split([len(members) for members in parts]), strict=True):
            vals = [self.trainers[k].val_data for k in members]
            parameters = [p[at] for p in self.parameters]
            loss = torch.zeros(len(members), device=self.device)
            counts = torch.zeros(len(members), 1 + 2 * len(vals[0].classes), dtype=torch.int64, device=self.device)
            for rows in torch.arange(len(vals[0]), device=self.device).split(EVALUATION_BATCH):
                batches = zip(*(val.batch(rows) for val in vals), strict=True)
                images, labels = map(torch.stack, batches)  # (M, B, C, H, W), (M, B)
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
        out = product(inputs[-1], w.transpose(1, 2), b)
        inputs.append(out.relu_() if layer + 2 < len(parameters) else out)
    return inputs


def product(a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
    """a[k] @ b[k], plus bias[k] in each row, for each of A pairs of matrices.

    On a CPU every bit is that of `torch.mm` and `addmm` on tensors of their own, by which a single student is trained.
    Where batched products round otherwise, which depends on shapes, on the number of threads and on where in memory a
    matrix begins, it is one after the other.

    Args:
        a: (A, n, m) float32.
        b: (A, m, p) float32.
        bias: (A, p) float32.

    Returns:
        (A, n, p) float32.
    """
    if a.device.type == "cpu":
        threads = torch.get_num_threads()
        form = tuple(a.shape[1:]), tuple(b.shape[1:]), _is_transposed(a), _is_transposed(b), bias is not None
        aligned = _is_aligned(a) and _is_aligned(b) and a.shape[1] * b.shape[2] % ALIGNED == 0
        if len(a) == 1 or not aligned or not _rounds_alike(min(len(a), max(PROBED, threads)), *form, threads):
            return _one_by_one(_apart(a), _apart(b), bias)
    return _batched(a, b, bias)


def _is_transposed(x: Tensor) -> bool:
    return x.stride(1) == 1 and x.shape[2] > 1


def _is_aligned(x: Tensor) -> bool:
    """Whether each matrix of (A, n, m) begins where one of its own would, as far as its rounding goes."""
    return x.data_ptr() % (4 * ALIGNED) == 0 and (len(x) == 1 or x.stride(0) % ALIGNED == 0)


def _apart(x: Tensor) -> list[Tensor]:
    """The matrices of (A, n, m), in memory of their own unless they begin like such."""
    return list(x) if _is_aligned(x) else [matrix.clone() for matrix in x]


def _batched(a: Tensor, b: Tensor, bias: Tensor | None) -> Tensor:
    return torch.bmm(a, b) if bias is None else torch.baddbmm(bias[:, None], a, b)


def _one_by_one(a: list[Tensor], b: list[Tensor], bias: Tensor | None) -> Tensor:
    if bias is None:
        return torch.stack([torch.mm(x, y) for x, y in zip(a, b, strict=True)])
    return torch.stack([torch.addmm(of, x, y) for of, x, y in zip(bias, a, b, strict=True)])


@functools.cache
def _rounds_alike(
    count: int,
    left: tuple[int, int],
    right: tuple[int, int],
    left_transposed: bool,
    right_transposed: bool,
    biased: bool,
    threads: int,
) -> bool:
    """Whether batched products of this form are those of single ones, to the bit: tried on TRIED numbers."""
    generator = torch.Generator().manual_seed(0)

    def draw(shape: tuple[int, ...], transposed: bool = False) -> Tensor:
        if transposed:
            return draw((shape[1], shape[0])).transpose(1, 2)
        return torch.randn(count, *shape, generator=generator)

    for _ in range(-(-TRIED // (count * left[0] * right[1]))):
        a, b = draw(left, left_transposed), draw(right, right_transposed)
        bias = draw(right[1:]) if biased else None
        if not torch.equal(_batched(a, b, bias), _one_by_one(_apart(a), _apart(b), bias)):
            return False
    return True


_ROWS = {"index": np.int64, "partner": np.int64, "weight": np.float32, "share": np.float32}


def _of_each(stacked: Sequence[Tensor]) -> list[list[Tensor]]:
    """Tensors (K, …) of all students as lists of each student's."""
    return [list(own) for own in zip(*(tensor.unbind() for tensor in stacked), strict=True)]


def _batches(lengths: Sequence[int], start: int, size: int) -> Iterator[tuple[slice, int]]:
    """Students and rows of a batch each: of these falling lengths, what is left from `start` on, at most `size`.

    Those with a full batch go together. A short one is trained on by itself: padded, its products would be of another
    shape, and round otherwise.
    """
    full = sum(length >= start + size for length in lengths)
    if full:
        yield slice(0, full), size
    for k in range(full, sum(length > start for length in lengths)):
        yield slice(k, k + 1), lengths[k] - start


def _momentum(trainer: Trainer, p: Tensor) -> Tensor:
    buffer = trainer.optimizer.state.get(p, {}).get("momentum_buffer")
    return torch.zeros_like(p) if buffer is None else buffer
