"""Prune a regression on a table, by its losses alone: `python docs/recipes/friedman_table.py`.

The table is the first problem of Friedman (Annals of Statistics 19, 1991): ten columns, of which five matter.
"""

import numpy as np
import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader, TensorDataset

from prune_env import Pruner, select


def thin(observation, rng):
    """Drop a random half of the easier half, and count the rest of it double: gradients stay unbiased."""
    easy = observation["loss"] < np.median(observation["loss"])
    drop = easy & (rng.random(len(easy)) < 0.5)
    return select(np.where(drop, 0.0, np.where(easy, 2.0, 1.0)))


def table(n, seed):
    """Return columns (n, 10) and targets (n,) of mean 0 and variance 1, of which 0.04 is noise."""
    x = torch.rand(n, 10, generator=torch.Generator().manual_seed(seed))
    noise = torch.randn(n, generator=torch.Generator().manual_seed(seed + 1))
    y = 10 * torch.sin(torch.pi * x[:, 0] * x[:, 1]) + 20 * (x[:, 2] - 0.5) ** 2 + 10 * x[:, 3] + 5 * x[:, 4]
    return x, (y + noise - 14.4) / 5


def main(agent=thin, epochs=20, lr=0.005):
    torch.manual_seed(0)
    x, y = table(2000, seed=1)
    val_x, val_y = table(1000, seed=3)
    model = nn.Sequential(nn.Linear(10, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 1))
    optimizer = torch.optim.AdamW(model.parameters(), lr)
    pruner = Pruner(agent, len(y), epochs, batch_size=64, initial_loss=1.0)  # a number of samples: no classes
    scheduler = LambdaLR(optimizer, lambda _: 1 - pruner.progress)
    loader = DataLoader(TensorDataset(torch.arange(len(y)), x, y), batch_sampler=pruner)
    while not pruner.finished:
        for index, columns, targets in loader:
            losses = (model(columns).squeeze(1) - targets) ** 2  # (B,), before any mean
            loss = (losses * pruner.record(index, losses=losses)).sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            scheduler.step()
        with torch.no_grad():
            explained = 1 - ((model(val_x).squeeze(1) - val_y) ** 2).mean() / val_y.var()
        pruner.end_epoch(max(explained.item(), 0.0))  # agents take it for the accuracy: it must lie in [0, 1]
    return model, pruner


if __name__ == "__main__":
    _, pruner = main()
    print(f"{pruner.step} epochs for the price of {pruner.ledger.spent:.1f}, share explained {pruner.val_accuracy:.3f}")
