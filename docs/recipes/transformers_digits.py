"""Prune training with Hugging Face's Trainer: `python docs/recipes/transformers_digits.py`.

Needs `pip install transformers accelerate`.
"""

from pathlib import Path

import numpy as np
import torch
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader, Dataset
from transformers import ConvNextConfig, ConvNextForImageClassification, Trainer, TrainerCallback, TrainingArguments

from prune_env import Pruner, select
from prune_env.data import load


def thin(observation, rng):
    """Drop a random half of the easier half, and count the rest of it double: gradients stay unbiased."""
    easy = observation["loss"] < np.median(observation["loss"])
    drop = easy & (rng.random(len(easy)) < 0.5)
    return select(np.where(drop, 0.0, np.where(easy, 2.0, 1.0)))


class Digits(Dataset):
    def __init__(self, data):
        self.data = data

    def __len__(self):
        return len(self.data)

    def __getitem__(self, i):
        return {"index": i, "pixel_values": self.data.images[i] / 240, "labels": self.data.labels[i]}


class FullLength(DataLoader):
    """Tells Trainer the length of the longest epoch; it would cut those that are longer than the first one."""

    def __len__(self):
        return -(-len(self.dataset) // self.batch_sampler.batch_size)


class PrunedTrainer(Trainer):
    def __init__(self, pruner, **arguments):
        super().__init__(**arguments)
        self.pruner = pruner

    def get_train_dataloader(self):  # without accelerate's prepare, which would share the batches out once more
        return FullLength(self.train_dataset, batch_sampler=self.pruner, collate_fn=self.data_collator)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        index = inputs.pop("index")
        outputs = model(**inputs)
        loss = self.pruner.loss(outputs.logits, inputs["labels"], index) if model.training else outputs.loss
        return (loss, outputs) if return_outputs else loss


class EndEpoch(TrainerCallback):
    def __init__(self, pruner):
        self.pruner = pruner

    def on_evaluate(self, args, state, control, metrics, **_):
        if not self.pruner.finished:
            self.pruner.end_epoch(float(metrics["eval_accuracy"]))
            control.should_training_stop = self.pruner.finished

    def on_save(self, args, state, control, **_):  # after on_evaluate
        state_dict = self.pruner.state_dict()  # on all ranks: they exchange statistics
        if state.is_world_process_zero:
            torch.save(state_dict, f"{args.output_dir}/checkpoint-{state.global_step}/pruner.pt")


def make_model():
    stages = {"patch_size": 2, "num_stages": 2, "hidden_sizes": [32, 64], "depths": [1, 1]}
    return ConvNextForImageClassification(ConvNextConfig(image_size=8, num_channels=1, num_labels=10, **stages))


def main(agent=thin, epochs=10, lr=0.005, folder="runs/transformers", resume=None):
    arguments = TrainingArguments(
        folder,
        num_train_epochs=1000,  # more than the budget allows: the pruner says when it is spent
        eval_strategy="epoch",
        save_strategy="epoch",
        remove_unused_columns=False,  # "index" is no argument of the model
        ignore_data_skip=True,  # on resuming, the pruner itself goes on where it was
        max_grad_norm=0.0,
        report_to="none",
        disable_tqdm=True,
    )
    torch.manual_seed(0)
    model, (train, val) = make_model(), load("digits")
    pruner = Pruner(agent, train.labels, epochs, batch_size=64, device=arguments.device)
    if resume is not None:
        pruner.load_state_dict(torch.load(Path(resume) / "pruner.pt"))
    optimizer = torch.optim.AdamW(model.parameters(), lr)
    trainer = PrunedTrainer(
        pruner,
        model=model,
        args=arguments,
        train_dataset=Digits(train),
        eval_dataset=Digits(val),
        compute_metrics=lambda result: {"accuracy": (result.predictions.argmax(1) == result.label_ids).mean()},
        optimizers=(optimizer, LambdaLR(optimizer, lambda _: 1 - pruner.progress)),
        callbacks=[EndEpoch(pruner)],
    )
    trainer.train(resume_from_checkpoint=resume)
    return trainer.model, pruner


if __name__ == "__main__":
    _, pruner = main()
    print(f"{pruner.step} epochs for the price of {pruner.ledger.spent:.1f}, accuracy {pruner.val_accuracy:.3f}")
