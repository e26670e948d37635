"""Prune a Lightning module's training: `python docs/recipes/lightning_digits.py`. Needs `pip install lightning`."""

import lightning
import numpy as np
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader, TensorDataset

from prune_env import Pruner, select
from prune_env.data import load


def thin(observation, rng):
    """Drop a random half of the easier half, and count the rest of it double: gradients stay unbiased."""
    easy = observation["loss"] < np.median(observation["loss"])
    drop = easy & (rng.random(len(easy)) < 0.5)
    return select(np.where(drop, 0.0, np.where(easy, 2.0, 1.0)))


class Digits(lightning.LightningModule):
    def __init__(self, agent, epochs, lr):
        super().__init__()
        self.agent, self.epochs, self.lr = agent, epochs, lr
        self.model = nn.Sequential(nn.Flatten(), nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))

    def setup(self, stage):  # the ranks have met by now: each pruner knows its part
        self.train_set, self.val_set = (
            TensorDataset(torch.arange(len(part)), part.images / 240, part.labels) for part in load("digits")
        )
        device = self.trainer.strategy.root_device
        self.pruner = Pruner(self.agent, self.train_set.tensors[2], self.epochs, batch_size=64, device=device)
        self.loader = DataLoader(self.train_set, batch_sampler=self.pruner)

    def train_dataloader(self):
        return self.loader

    def val_dataloader(self):
        return DataLoader(self.val_set, batch_size=256)

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), self.lr)
        scheduler = LambdaLR(optimizer, lambda _: 1 - self.pruner.progress)
        return [optimizer], [{"scheduler": scheduler, "interval": "step"}]

    def training_step(self, batch, _):
        index, images, labels = batch
        return self.pruner.loss(self.model(images), labels, index)

    def validation_step(self, batch, _):
        _, images, labels = batch
        logits = self.model(images)
        self.log("val_loss", F.cross_entropy(logits, labels), sync_dist=True)
        self.log("val_accuracy", (logits.argmax(1) == labels).float().mean(), sync_dist=True)

    def on_train_epoch_end(self):  # after validation, before ModelCheckpoint saves
        self.pruner.end_epoch(self.trainer.callback_metrics["val_accuracy"].item())
        self.trainer.should_stop = self.pruner.finished

    def on_save_checkpoint(self, checkpoint):
        checkpoint["pruner"] = self.pruner.state_dict()

    def on_load_checkpoint(self, checkpoint):
        self.pruner.load_state_dict(checkpoint["pruner"])


def main(agent=thin, epochs=10, lr=0.003, folder="runs/lightning", resume=None, devices="auto"):
    torch.manual_seed(0)
    module = Digits(agent, epochs, lr)
    trainer = lightning.Trainer(
        max_epochs=-1,  # the pruner says when the budget is spent
        reload_dataloaders_every_n_epochs=1,  # epochs differ in length
        use_distributed_sampler=False,  # the pruner gives each rank its part
        devices=devices,
        logger=False,
        enable_progress_bar=False,
        callbacks=[ModelCheckpoint(folder, save_last=True)],
    )
    trainer.fit(module, ckpt_path=resume)
    return module.model, module.pruner


if __name__ == "__main__":
    _, pruner = main()
    print(f"{pruner.step} epochs for the price of {pruner.ledger.spent:.1f}, accuracy {pruner.val_accuracy:.3f}")
