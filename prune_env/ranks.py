"""One student on several devices: the processes of a torch.distributed job, which torchrun calls ranks.

Each has the whole student and the statistics of every sample, trains on its part of every batch, and holds the same
numbers as all others after every step. A process that is alone is rank 0 of 1, for which nothing here does anything.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel


@dataclass(frozen=True)
class Ranks:
    """This process among the ranks of its job."""

    rank: int
    size: int

    def part(self, rows: NDArray) -> NDArray:
        """This rank's part of rows (k,): (k_r,), in their order; parts differ by one row at most."""
        return rows[self.rank :: self.size]

    def positions(self, sizes: Sequence[int]) -> list[NDArray[np.int64]]:
        """This rank's part of each of the batches of `sizes` that are made of rows 0, 1, …: places among these rows."""
        ends = np.cumsum([0, *sizes])
        return [self.part(np.arange(a, b)) for a, b in pairwise(ends)]

    def totals(self, sizes: Sequence[int]) -> list[int]:
        """The number of rows that each rank has of batches of `sizes`."""
        return [sum(len(range(rank, size, self.size)) for size in sizes) for rank in range(self.size)]

    def sum(self, values: Tensor) -> Tensor:
        """The sum over ranks, in place."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def gather(self, values: Tensor, sizes: Sequence[int]) -> Tensor:
        """Rows (k_r, …) of every rank, one below the other: (k, …). `sizes` are the k_r of all ranks."""
        padded = values.new_zeros(max(sizes), *values.shape[1:])
        padded[: len(values)] = values
        every = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(every, padded)
        return torch.cat([rows[:size] for rows, size in zip(every, sizes, strict=True)])

    def exchange(self, table: Tensor, indices: Tensor, totals: Sequence[int]) -> None:
        """Let every rank know the rows (k_r,) of a table (N, F) that this one has changed; `totals` are all k_r."""
        if self.size > 1:
            rows = self.gather(table[indices], totals)
            table.index_copy_(0, self.gather(indices, totals), rows)

    def parallel(self, model: nn.Module) -> nn.Module:
        """`model` as it is to be called in training: gradients are then the mean over ranks."""
        return DistributedDataParallel(model) if self.size > 1 else model

    def synchronised(self, model: nn.Module) -> nn.Module:
        """`model` with batch norm over the rows of all ranks; parameters and buffers keep their names."""
        if self.size > 1:
            for name, child in model.named_children():
                setattr(model, name, SyncNorm.of(child) if isinstance(child, _BatchNorm) else self.synchronised(child))
        return model


def here() -> Ranks:
    """This process among its ranks, once `torch.distributed.init_process_group` was called."""
    if dist.is_available() and dist.is_initialized():
        return Ranks(dist.get_rank(), dist.get_world_size())
    return Ranks(0, 1)


class _Sum(torch.autograd.Function):
    """The sum over ranks of a tensor on which the losses of all of them depend."""

    @staticmethod
    def forward(ctx, values: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        values = values.clone()
        dist.all_reduce(values)
        return values

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        gradient = gradient.clone()
        dist.all_reduce(gradient)
        return gradient


class SyncNorm(_BatchNorm):
    """Batch norm with the mean and variance of the rows of all ranks; one of them may have none.

    That of torch, `SyncBatchNorm`, refuses tensors on a CPU.
    """

    @classmethod
    def of(cls, norm: _BatchNorm) -> SyncNorm:
        """A twin of a batch norm, which shares its parameters and buffers."""
        twin = cls(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
        twin.__dict__["_parameters"], twin.__dict__["_buffers"] = norm._parameters, norm._buffers
        return twin

    def _check_input_dim(self, input: Tensor) -> None:
        pass

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return super().forward(input)
        x = input.to(torch.promote_types(input.dtype, torch.float32))
        shape = (1, -1, *[1] * (x.dim() - 2))
        over = [0, *range(2, x.dim())]
        rows = x.new_full((1,), x.numel() // x.shape[1])
        sums = _Sum.apply(torch.cat([x.sum(dim=over), rows]))  # (C + 1,)
        count = sums[-1].detach()
        mean = sums[:-1] / count
        centred = x - mean.view(shape)
        var = _Sum.apply(centred.square().sum(dim=over)) / count
        with torch.no_grad():
            assert self.running_mean is not None
            assert self.running_var is not None
            assert self.num_batches_tracked is not None
            momentum = self.momentum or 0.0
            self.running_mean.lerp_(mean, momentum)
            self.running_var.lerp_(var * (count / (count - 1)), momentum)
            self.num_batches_tracked.add_(1)
        y = centred * (var + self.eps).rsqrt().view(shape)
        if self.affine:
            y = y * self.weight.view(shape) + self.bias.view(shape)
        return y.to(input.dtype)
