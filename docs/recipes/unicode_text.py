"""Prune a text classifier: `python docs/recipes/unicode_text.py`.

The texts are the names of Unicode characters ("LATIN SMALL LETTER A WITH GRAVE"), which come with Python. A bag of
words tells the category of the character: lower-case letter, digit, mathematical symbol.
"""

import unicodedata
import zlib

import numpy as np
import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader

from prune_env import Pruner, select

WORDS = 4096  # words are hashed into so many rows


def thin(observation, rng):
    """Drop a random half of the easier half, and count the rest of it double: gradients stay unbiased."""
    easy = observation["loss"] < np.median(observation["loss"])
    drop = easy & (rng.random(len(easy)) < 0.5)
    return select(np.where(drop, 0.0, np.where(easy, 2.0, 1.0)))


def texts():
    """Return (text, class) of the characters below U+3000, a fifth of them apart for validation; and the classes."""
    characters = [chr(code) for code in range(0x3000) if unicodedata.name(chr(code), None)]
    classes = sorted({unicodedata.category(character) for character in characters})
    samples = [(unicodedata.name(c), classes.index(unicodedata.category(c))) for c in characters]
    val = [sample for sample in samples if zlib.crc32(sample[0].encode()) % 5 == 0]
    return [sample for sample in samples if zlib.crc32(sample[0].encode()) % 5], val, classes


class Texts(torch.utils.data.Dataset):
    """An item is (index, words, class): the collator passes the index on, whatever else it does with a batch."""

    def __init__(self, samples):
        self.samples = samples

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, i):
        text, label = self.samples[i]
        return i, torch.tensor([zlib.crc32(word.encode()) % WORDS for word in text.replace("-", " ").split()]), label


def collate(batch):
    """Return index (B,), words (sum of lengths,), offsets (B,) into these, and labels (B,)."""
    indices, words, labels = zip(*batch, strict=True)
    ends = torch.tensor([len(part) for part in words]).cumsum(0)
    return torch.tensor(indices), torch.cat(words), torch.cat([torch.zeros(1).long(), ends[:-1]]), torch.tensor(labels)


def main(agent=thin, epochs=3, lr=0.02):
    torch.manual_seed(0)
    train, val, classes = texts()
    bag = nn.EmbeddingBag(WORDS, 32)
    head = nn.Linear(32, len(classes))
    optimizer = torch.optim.AdamW([*bag.parameters(), *head.parameters()], lr)
    pruner = Pruner(agent, [label for _, label in train], epochs, batch_size=64, classes=len(classes))
    scheduler = LambdaLR(optimizer, lambda _: 1 - pruner.progress)
    loader = DataLoader(Texts(train), batch_sampler=pruner, collate_fn=collate)
    _, words, offsets, labels = collate([*Texts(val)])
    while not pruner.finished:
        for index, *text, targets in loader:
            loss = pruner.loss(head(bag(*text)), targets, index)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            scheduler.step()
        with torch.no_grad():
            accuracy = (head(bag(words, offsets)).argmax(1) == labels).float().mean()
        pruner.end_epoch(accuracy.item())
    return nn.Sequential(bag, head), pruner


if __name__ == "__main__":
    _, pruner = main()
    print(f"{pruner.step} epochs for the price of {pruner.ledger.spent:.1f}, accuracy {pruner.val_accuracy:.3f}")
