"""Prune a loop with Accelerate: `python docs/recipes/accelerate_digits.py`. Needs `pip install accelerate`.

On several devices: `accelerate launch docs/recipes/accelerate_digits.py`.
"""

import numpy as np
import torch
from accelerate import Accelerator
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


def main(agent=thin, epochs=10, lr=0.003, folder="runs/accelerate", resume=None):
    accelerator = Accelerator()  # before the pruner: the ranks meet here
    torch.manual_seed(0)
    train, val = (TensorDataset(torch.arange(len(part)), part.images / 240, part.labels) for part in load("digits"))
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
    optimizer = torch.optim.AdamW(model.parameters(), lr)
    pruner = Pruner(agent, train.tensors[2], epochs, batch_size=64, device=accelerator.device)
    loader = DataLoader(train, batch_sampler=pruner)  # not prepared: `prepare` would share its batches out once more
    model, optimizer = accelerator.prepare(model, optimizer)
    scheduler = LambdaLR(optimizer, lambda _: 1 - pruner.progress)  # not prepared: it would step once for each rank
    val_loader = accelerator.prepare(DataLoader(val, batch_size=256))
    accelerator.register_for_checkpointing(pruner, scheduler)
    if resume is not None:
        accelerator.load_state(resume)
    while not pruner.finished:
        model.train()
        for batch in loader:
            index, images, labels = (part.to(accelerator.device) for part in batch)
            loss = pruner.loss(model(images), labels, index)
            optimizer.zero_grad()
            accelerator.backward(loss)
            optimizer.step()
            scheduler.step()
        model.eval()
        right = []
        for _, images, labels in val_loader:
            with torch.no_grad():
                right.append(accelerator.gather_for_metrics(model(images).argmax(1) == labels))
        pruner.end_epoch(torch.cat(right).float().mean().item())
        accelerator.save_state(folder)
    return accelerator.unwrap_model(model), pruner


if __name__ == "__main__":
    _, pruner = main()
    print(f"{pruner.step} epochs for the price of {pruner.ledger.spent:.1f}, accuracy {pruner.val_accuracy:.3f}")
