"""Prune a training loop in plain PyTorch: `python docs/recipes/pytorch_digits.py`."""

import numpy as np
import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader, TensorDataset

from prune_env import Pruner, select
from prune_env.data import load


def thin(observation, rng):
    """Drop a random half of the easier half, and count the rest of it double: gradients stay unbiased."""
    easy = observation["loss"] < np.median(observation["loss"])
    drop = easy & (rng.random(len(easy)) < 0.5)
    return select(np.where(drop, 0.0, np.where(easy, 2.0, 1.0)))


def digits():
    """Return the training and the validation part of the digits; an item is (index, image, label)."""
    return [TensorDataset(torch.arange(len(part)), part.images / 240, part.labels) for part in load("digits")]


def make_model():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))


def fit(model, optimizer, pruner, train, val):
    scheduler = LambdaLR(optimizer, lambda _: 1 - pruner.progress)  # by the compute spent, not by counted steps
    loader = DataLoader(train, batch_sampler=pruner)
    while not pruner.finished:
        model.train()
        for index, images, labels in loader:
            loss = pruner.loss(model(images), labels, index)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            scheduler.step()
        model.eval()
        with torch.no_grad():
            _, images, labels = val.tensors
            accuracy = (model(images).argmax(1) == labels).float().mean()
        pruner.end_epoch(accuracy.item())


def main(agent=thin, epochs=10, lr=0.003):
    torch.manual_seed(0)
    train, val = digits()
    model = make_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr)
    pruner = Pruner(agent, train.tensors[2], epochs, batch_size=64)
    fit(model, optimizer, pruner, train, val)
    return model, pruner


if __name__ == "__main__":
    _, pruner = main()
    print(f"{pruner.step} epochs for the price of {pruner.ledger.spent:.1f}, accuracy {pruner.val_accuracy:.3f}")
