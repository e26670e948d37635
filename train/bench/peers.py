"""The environment's epoch against loops that others write: bare tensors, a DataLoader, InfoBatch's; many students."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, Sampler
from torch.utils.flop_counter import FlopCounterMode

import agents
import prune_env
from prune_env.data import Data
from prune_env.env import PruneEnv
from prune_env.students import augment
from prune_env.trainer import EVALUATION_BATCH
from train.bench.timing import in_turn, ratio, seconds

UNSEEN = 3.0  # score of a sample before its first visit, in InfoBatch's code

Batch = tuple[Tensor, Tensor, Tensor]  # rows (B,), normalised images (B, C, H, W) float32, labels (B,)


class Published(Sampler[int]):
    """InfoBatch in the shape of its authors' code (github.com/NUS-HPC-AI-Lab/InfoBatch, arXiv 2303.04947).

    A sampler that prunes when it is iterated: scores and weights live on the host, (N,) float32 each, rows in a
    list. Its random numbers are of numpy's old kind, as theirs are, but from a generator of their own.

    Args:
        n: number of samples N.
        keep: share of the samples below the mean score that is kept.
    """

    def __init__(self, n: int, keep: float = 0.5):
        self.keep = keep
        self.scores = torch.full((n,), UNSEEN)
        self.weights = torch.ones(n)
        self.rng = np.random.RandomState(0)

    def prune(self) -> list[int]:
        """Rows to train on, in random order; sets the weights."""
        easy = (self.scores < self.scores.mean()).numpy()
        (learned,), (rest,) = np.where(easy), np.where(~easy)
        chosen = self.rng.choice(learned, int(self.keep * len(learned)), replace=False)
        self.weights[:] = 1.0
        self.weights[chosen] = 1.0 / self.keep
        rows = rest.tolist()
        rows.extend(chosen)
        self.rng.shuffle(rows)
        return rows

    def __iter__(self) -> Iterator[int]:
        return iter(self.prune())

    def update(self, rows: Tensor, losses: Tensor) -> Tensor:
        """Write losses (B,) of `rows` (B,) back to the host; their weighted mean."""
        self.scores[rows] = losses.detach().cpu()
        return (losses * self.weights[rows].to(losses.device)).mean()


class Loop:
    """A loop of one's own around a network like the environment's, with torch's optimiser and a tenth of its rate.

    With `published` it is InfoBatch's: the sampler of the training batches, which takes their losses.
    """

    def __init__(self, env: PruneEnv, published: Published | None = None):
        self.trainer, self.published, recipe = env.running, published, env.recipe
        self.model = copy.deepcopy(self.trainer.model)
        momenta = {"momentum": recipe.momentum, "nesterov": True, "weight_decay": recipe.weight_decay}
        self.optimizer = torch.optim.SGD(self.model.parameters(), recipe.lr / 10, fused=True, **momenta)

    def logits(self, images: Tensor) -> Tensor:
        """(B, C, H, W) float32 to (B, classes) float32, in the environment's precision and memory format."""
        images = images.contiguous(memory_format=self.trainer.format)
        with torch.autocast(images.device.type, torch.bfloat16) if self.trainer.bf16 else nullcontext():
            return self.model(images).float()

    def epoch(self, train: Iterable[Batch], val: Iterable[Batch], reads: bool = False) -> tuple[int, float]:
        """Train and validate once; return the number of samples trained on, and validation accuracy.

        With `reads` the host reads loss and hits of every batch, as in InfoBatch's example. That one's scheduler and
        gradient scaler are left out, and validation has our batch size: what is left can only be faster.
        """
        device, trained, hits, samples = self.trainer.device, 0, [], 0
        self.model.train()
        for rows, images, labels in train:
            images, labels = images.to(device), labels.to(device)
            logits = self.logits(images)
            if self.published is None:
                loss = F.cross_entropy(logits, labels)
            else:
                loss = self.published.update(rows, F.cross_entropy(logits, labels, reduction="none"))
            loss.backward()
            self.optimizer.step()
            self.optimizer.zero_grad()
            trained += len(rows)
            if reads:
                for figure in (loss, (logits.argmax(1) == labels).sum()):
                    figure.item()
        self.model.eval()
        with torch.no_grad():
            for _, images, labels in val:
                hits.append((self.logits(images.to(device)).argmax(1) == labels.to(device)).sum())
                samples += len(labels)
        return trained, int(torch.stack(hits).sum()) / samples


def bare_batches(env: PruneEnv, seed: int) -> tuple[Iterator[Batch], Iterator[Batch]]:
    """Batches of an epoch and of validation from device-resident tensors, without statistics, weights or a ledger.

    Same images, batch size and augmentation as the environment's.
    """
    trainer, data, val = env.running, env.train_data, env.val_data
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(seed)).to(data.device)

    def batches(data: Data, parts: Iterable[Tensor], augmented: bool) -> Iterator[Batch]:
        for rows in parts:
            images = (data.images[rows].float() - trainer.mean) * trainer.scale
            if augmented:
                images = augment.crop_flip(images, seed, rows, torch.full_like(rows, seed))
            yield rows, images, data.labels[rows]

    whole = torch.arange(len(val), device=val.device).split(EVALUATION_BATCH)
    return batches(data, order.split(trainer.batch_size), data.augment), batches(val, whole, False)


class Images(Dataset[tuple[int, Tensor, int]]):
    """Samples as torchvision's CIFAR holds them: bytes on the host, each made an image and transformed when asked for.

    Args:
        data: of the environment.
        augmented: whether to flip and crop at random.
        moments: mean and deviation of each channel, (C,) each, in grey levels of 0 to 255.
    """

    def __init__(self, data: Data, augmented: bool, moments: tuple[Tensor, Tensor]):
        from torchvision import transforms  # takes a second

        pixels = data.images.permute(0, 2, 3, 1).contiguous().cpu().numpy()  # (N, H, W, C)
        self.pixels = pixels[..., 0] if pixels.shape[3] == 1 else pixels
        self.labels = data.labels.tolist()
        size = pixels.shape[1]
        crop = transforms.RandomCrop(size, padding=size // 8, padding_mode="reflect")
        random = [transforms.RandomHorizontalFlip(), crop] if augmented else []
        mean, deviation = ((values.cpu() / 255).tolist() for values in moments)
        self.transform = transforms.Compose([*random, transforms.ToTensor(), transforms.Normalize(mean, deviation)])

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[int, Tensor, int]:
        image: Any = self.transform(Image.fromarray(self.pixels[index]))
        return index, image, self.labels[index]


def loaders(env: PruneEnv, published: Published | None, workers: int) -> tuple[DataLoader, DataLoader]:
    """Load the batches of an epoch and of validation with DataLoaders, in so many processes.

    Batches of training are of the samples that `published` keeps, else of all, in random order.
    """
    data, moments = env.train_data, env.train_data.moments
    loading: dict[str, Any] = {"num_workers": workers, "persistent_workers": workers > 0}
    order: dict[str, Any] = {"shuffle": True} if published is None else {"sampler": published}
    train = DataLoader(Images(data, data.augment, moments), env.running.batch_size, **order, **loading)
    return train, DataLoader(Images(env.val_data, False, moments), EVALUATION_BATCH, **loading)


def _started(env_id: str, rounds: int, settings: dict[str, Any]) -> tuple[PruneEnv, dict[str, NDArray]]:
    """An environment and its first observation; its budget is not half used after so many rounds and a few more."""
    env = gym.make(env_id, budget=2.0 * rounds + 24.0, disable_env_checker=True, **settings).unwrapped
    assert isinstance(env, PruneEnv)
    return env, env.reset(seed=0)[0]


def time_step(env_id: str, rounds: int, **settings: Any) -> tuple[float, float, float]:
    """Median seconds of a step and of a bare epoch, and how many times as long the step takes."""
    env, _ = _started(env_id, rounds, settings)
    action = prune_env.select(np.ones(len(env.train_data), dtype=np.bool_))
    loop, seeds = Loop(env), iter(range(rounds + 1))
    works = (lambda: loop.epoch(*bare_batches(env, next(seeds))), lambda: env.step(action))
    times = in_turn(works, rounds, env.running.device)
    bare, step = np.median(times, axis=0).tolist()
    return step, bare, ratio(times, 1)


@dataclass(frozen=True)
class Duel:
    """An epoch of ours and of a DataLoader loop, medians."""

    kept: float  # share of the samples that the last epoch of ours trained on
    kept_by_peer: float
    ours: float  # seconds
    peer: float  # seconds
    workers: int  # of the peer
    ratio: float  # how many times as long the peer takes


def time_peers(
    env_id: str, agent: str, rounds: int, workers: tuple[int, ...] = (0, 2), epochs: int = 1, **settings: Any
) -> Duel:
    """Time a step with its agent's decision against a DataLoader loop with the fastest number of workers.

    Both train the same network in the same batches on the same images and validate it. The peer of `infobatch` is
    InfoBatch's loop. Before each of its turns it is given our losses, so that both keep as many samples. A turn has so
    many `epochs`, one after the other as in training: short ones would pay for the caches that the peer left.
    """
    env, seen = _started(env_id, rounds * epochs, settings)
    n, decide, rng = len(env.train_data), agents.make(agent), np.random.default_rng(0)
    loops = [Loop(env, Published(n) if agent == "infobatch" else None) for _ in workers]
    loaded = [loaders(env, loop.published, count) for loop, count in zip(loops, workers, strict=True)]
    kept = trained = 0
    times: list[list[float]] = []

    def ours() -> None:
        nonlocal seen, kept
        for _ in range(epochs):
            seen, *_, info = env.step(decide(seen, rng))
            kept = info["trained"]

    def theirs(peer: int) -> None:
        nonlocal trained
        for _ in range(epochs):
            trained, _ = loops[peer].epoch(*loaded[peer], reads=True)

    works = [ours, *(partial(theirs, peer) for peer in range(len(workers)))]
    for _ in range(rounds + 2):  # the first has nothing to go by, the second warms up
        for loop in loops:
            if loop.published is not None and seen["visits"].any():
                loop.published.scores.copy_(torch.from_numpy(seen["loss"]))
        times.append([seconds(work, env.running.device) for work in works])
    measured = np.array(times[2:]) / epochs
    medians = np.median(measured, axis=0).tolist()
    fastest = int(np.argmin(medians[1:]))
    return Duel(
        kept=kept / n,
        kept_by_peer=trained / n,
        ours=medians[0],
        peer=medians[1 + fastest],
        workers=workers[fastest],
        ratio=ratio(measured, 1 + fastest),
    )


def time_many(
    members: int, rounds: int, env_id: str = "prune_env/Digits-v0", **settings: Any
) -> tuple[float, float, float, float]:
    """Time epochs of so many students in one vector environment and in a loop of single ones, in turns.

    Returns epochs a second of the vector environment and of the loop, medians; their ratio, the median over rounds; and
    the floating point operations a second of the vector environment's students.
    """
    budget = rounds + 4.0
    together = gym.make_vec(env_id, num_envs=members, budget=budget, **settings)
    together.reset(seed=0)
    singles = [gym.make(env_id, budget=budget, disable_env_checker=True, **settings) for _ in range(members)]
    for seed, env in enumerate(singles):
        env.reset(seed=seed)
    first = singles[0].unwrapped
    assert isinstance(first, PruneEnv)
    action = prune_env.select(np.ones(len(first.train_data), dtype=np.bool_))
    actions: dict[str, NDArray] = {name: np.stack([values] * members) for name, values in action.items()}
    works = (lambda: together.step(actions), lambda: [env.step(action) for env in singles])
    times = in_turn(works, rounds, first.running.device)
    batched, looped = (members / np.median(times, axis=0)).tolist()
    with FlopCounterMode(display=False) as counter:
        first.step(action)
    return batched, looped, ratio(times, 1), batched * counter.get_total_flops()
