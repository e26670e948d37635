"""Prune timm's training loop: `python docs/recipes/timm_digits.py`. Needs `pip install timm`.

The loop restates timm's train.py: model, optimiser, scheduler and averaged weights come from timm's factories.
"""

import numpy as np
import timm
import timm.optim
import timm.scheduler
import timm.utils
import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from prune_env import Pruner, select
from prune_env.data import load


def thin(observation, rng):
    """Drop a random half of the easier half, and count the rest of it double: gradients stay unbiased."""
    easy = observation["loss"] < np.median(observation["loss"])
    drop = easy & (rng.random(len(easy)) < 0.5)
    return select(np.where(drop, 0.0, np.where(easy, 2.0, 1.0)))


def make_model():
    return timm.create_model("test_efficientnet_ln", in_chans=1, num_classes=10)


def train_one_epoch(model, model_ema, loader, optimizer, scheduler, pruner, epochs):
    model.train()
    for index, images, labels in loader:
        logits = model(images)
        losses = F.cross_entropy(logits, labels, reduction="none", label_smoothing=0.1)  # (B,), not their mean
        loss = (losses * pruner.record(index, logits)).sum()
        optimizer.zero_grad()
        loss.backward()
        timm.utils.dispatch_clip_grad(model.parameters(), 1.0)
        optimizer.step()
        model_ema.update(model)
        scheduler.step_update(num_updates=pruner.progress * epochs)


@torch.inference_mode()
def validate(model, loader):
    model.eval()
    top1 = timm.utils.AverageMeter()
    for _, images, labels in loader:
        (accuracy,) = timm.utils.accuracy(model(images), labels)
        top1.update(accuracy.item() / 100, len(labels))
    return top1.avg


def main(agent=thin, epochs=10, lr=0.005):
    torch.manual_seed(0)
    train, val = (TensorDataset(torch.arange(len(part)), part.images / 240, part.labels) for part in load("digits"))
    model = make_model()
    model_ema = timm.utils.ModelEmaV3(model, decay=0.9)
    optimizer = timm.optim.create_optimizer_v2(model, opt="adamw", lr=lr, weight_decay=0.01)
    scheduler, _ = timm.scheduler.create_scheduler_v2(
        optimizer,
        sched="cosine",
        num_epochs=epochs,
        warmup_epochs=1,
        warmup_lr=lr / 100,
        step_on_epochs=False,  # but on updates, of which a full epoch of compute counts as one
        updates_per_epoch=1,
    )
    pruner = Pruner(agent, train.tensors[2], epochs, batch_size=64)
    loader, val_loader = DataLoader(train, batch_sampler=pruner), DataLoader(val, batch_size=256)
    while not pruner.finished:  # instead of `for epoch in range(num_epochs)`
        train_one_epoch(model, model_ema, loader, optimizer, scheduler, pruner, epochs)
        pruner.end_epoch(validate(model_ema, val_loader))
    return model, pruner


if __name__ == "__main__":
    _, pruner = main()
    print(f"{pruner.step} epochs for the price of {pruner.ledger.spent:.1f}, accuracy {pruner.val_accuracy:.3f}")
