"""The environment's epoch against loops that others write: bare tensors, a DataLoader, InfoBatch's; many students."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, Sampler
from torch.utils.flop_counter import FlopCounterMode

import agents
import prune_env
from prune_env.data import Data
from prune_env.env import PruneEnv
from prune_env.students import augment, models
from prune_env.trainer import EVALUATION_BATCH
from train.bench.timing import in_turn, ratio, seconds

UNSEEN = 3.0  # score of a sample before its first visit, in InfoBatch's code


@dataclass
class Student:
    """A network with its optimiser, as a loop of one's own has it."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    device: torch.device
    bf16: bool = False
    format: torch.memory_format = torch.contiguous_format

    @classmethod
    def like(cls, env: PruneEnv) -> Student:
        """With the network, recipe, precision and memory format of the environment's, and a tenth of its rate."""
        trainer, recipe = env.running, env.recipe
        _, channels, size, _ = env.train_data.images.shape
        model = models.build(recipe.model, channels, size, len(env.train_data.classes), seed=0)
        model = model.to(trainer.device).to(memory_format=trainer.format)
        optimizer = torch.optim.SGD(
            model.parameters(),
            lr=recipe.lr / 10,
            momentum=recipe.momentum,
            weight_decay=recipe.weight_decay,
            nesterov=True,
            fused=True,
        )
        return cls(model, optimizer, trainer.device, trainer.bf16, trainer.format)

    def logits(self, images: Tensor) -> Tensor:
        """(B, C, H, W) float32 to (B, classes) float32."""
        images = images.contiguous(memory_format=self.format)
        with torch.autocast(self.device.type, torch.bfloat16) if self.bf16 else nullcontext():
            return self.model(images).float()

    def descend(self, loss: Tensor) -> None:
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()


def bare_epoch(env: PruneEnv, student: Student, seed: int) -> float:
    """An epoch and a validation pass on device-resident tensors, without statistics, weights or a ledger.

    Same images, batch size, augmentation, precision and optimiser as the environment's. Returns the mean
    accuracy, which waits for the device.
    """
    trainer, data, val = env.running, env.train_data, env.val_data
    device = data.device
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(seed)).to(device)
    visits = torch.full((trainer.batch_size,), seed, device=device)
    student.model.train()
    for rows in order.split(trainer.batch_size):
        images = (data.images[rows].float() - trainer.mean) * trainer.scale
        if data.augment:
            images = augment.crop_flip(images, seed, rows, visits[: len(rows)])
        student.descend(F.cross_entropy(student.logits(images), data.labels[rows]))
    student.model.eval()
    right = torch.zeros((), device=device)
    with torch.no_grad():
        for images, labels in zip(val.images.split(512), val.labels.split(512), strict=True):
            logits = student.logits((images.float() - trainer.mean) * trainer.scale)
            right += (logits.argmax(1) == labels).sum()
    return float(right) / len(val)


def time_step(env_id: str, rounds: int, **settings: Any) -> tuple[float, float, float]:
    """Median seconds of a step and of a bare epoch, and how many times as long the step takes."""
    env, _ = _started(env_id, rounds, settings)
    action = prune_env.select(np.ones(len(env.train_data), dtype=np.bool_))
    student = Student.like(env)
    seeds = iter(range(rounds + 1))
    works = (lambda: bare_epoch(env, student, next(seeds)), lambda: env.step(action))
    times = in_turn(works, rounds, env.running.device)
    bare, step = np.median(times, axis=0).tolist()
    return step, bare, ratio(times, 1)


def _started(env_id: str, rounds: int, settings: dict[str, Any]) -> tuple[PruneEnv, dict[str, NDArray]]:
    """An environment and its first observation; its budget is not half used after so many rounds and a few more."""
    env = gym.make(env_id, budget=2.0 * rounds + 24.0, disable_env_checker=True, **settings).unwrapped
    assert isinstance(env, PruneEnv)
    return env, env.reset(seed=0)[0]


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


class Images(Dataset[tuple[int, Tensor, int]]):
    """Samples as torchvision's CIFAR holds them: bytes on the host, each made an image and transformed when asked for.

    Args:
        data: of the environment.
        augmented: whether to flip and crop at random, if that suits the data.
        moments: mean and deviation of each channel, (C,) each, in grey levels of 0 to 255.
    """

    def __init__(self, data: Data, augmented: bool, moments: tuple[Tensor, Tensor]):
        from torchvision import transforms  # takes a second

        pixels = data.images.permute(0, 2, 3, 1).contiguous().cpu().numpy()  # (N, H, W, C)
        self.pixels = pixels[..., 0] if pixels.shape[3] == 1 else pixels
        self.labels = data.labels.tolist()
        size = pixels.shape[1]
        crop = transforms.RandomCrop(size, padding=size // 8, padding_mode="reflect")
        mean, deviation = ((values.cpu() / 255).tolist() for values in moments)
        self.transform = transforms.Compose(
            [
                *([transforms.RandomHorizontalFlip(), crop] if augmented and data.augment else []),
                transforms.ToTensor(),
                transforms.Normalize(mean, deviation),
            ]
        )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[int, Tensor, int]:
        from PIL import Image

        image: Any = self.transform(Image.fromarray(self.pixels[index]))
        return index, image, self.labels[index]


class LoaderLoop:
    """Training with a DataLoader, in the shape of InfoBatch's example: `.item()` of loss and hits in every batch.

    Its scheduler and gradient scaler are left out, and validation has our batch size: what is left can only be faster.

    Args:
        env: whose images, network, recipe and precision it takes, after `reset`.
        pruned: with InfoBatch; else all samples in each epoch, in random order.
        workers: processes that load.
    """

    def __init__(self, env: PruneEnv, pruned: bool, workers: int):
        self.student = Student.like(env)
        self.published = Published(len(env.train_data)) if pruned else None
        moments = env.train_data.moments
        loading: dict[str, Any] = {"num_workers": workers, "persistent_workers": workers > 0}
        self.train = DataLoader(
            Images(env.train_data, True, moments),
            batch_size=env.running.batch_size,
            sampler=self.published,
            shuffle=None if pruned else True,
            **loading,
        )
        self.val = DataLoader(Images(env.val_data, False, moments), batch_size=EVALUATION_BATCH, **loading)

    def epoch(self) -> tuple[int, float]:
        """Train once and validate; the number of samples trained on, and validation accuracy."""
        student, trained, right = self.student, 0, 0
        total = 0.0
        student.model.train()
        for rows, images, labels in self.train:
            images, labels = images.to(student.device), labels.to(student.device)
            logits = student.logits(images)
            losses = F.cross_entropy(logits, labels, reduction="none")
            loss = losses.mean() if self.published is None else self.published.update(rows, losses)
            student.descend(loss)
            total += loss.item()
            right += (logits.argmax(1) == labels).sum().item()
            trained += len(rows)
        student.model.eval()
        hits = 0
        with torch.no_grad():
            for _, images, labels in self.val:
                logits = student.logits(images.to(student.device))
                hits += (logits.argmax(1) == labels.to(student.device)).sum().item()
        return trained, hits / len(self.val.dataset)  # pyright: ignore[reportArgumentType]


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
    InfoBatch's loop. Before each of its turns it is given our losses, so that both keep as many samples.

    Args:
        env_id: of the environment.
        agent: `full` or `infobatch`.
        rounds: timed turns of each.
        workers: numbers of loading processes to try.
        epochs: of a turn, one after the other as in training: short ones would pay for the caches that the peer left.
        settings: of the environment.
    """
    env, seen = _started(env_id, rounds * epochs, settings)
    n, device = len(env.train_data), env.running.device
    loops = [LoaderLoop(env, agent == "infobatch", count) for count in workers]
    decide, rng = agents.make(agent), np.random.default_rng(0)
    kept = trained = 0.0
    times: list[list[float]] = []

    def ours() -> None:
        nonlocal seen, kept
        for _ in range(epochs):
            seen, *_, info = env.step(decide(seen, rng))
            kept = info["trained"] / n

    def theirs(loop: LoaderLoop) -> None:
        nonlocal trained
        for _ in range(epochs):
            trained = loop.epoch()[0] / n

    for _ in range(rounds + 2):  # the first has nothing to go by, the second warms up
        for loop in loops:
            if loop.published is not None and seen["visits"].any():
                loop.published.scores.copy_(torch.from_numpy(seen["loss"]))
        peers = [lambda loop=loop: theirs(loop) for loop in loops]
        times.append([seconds(work, device) for work in (ours, *peers)])
    measured = np.array(times[2:]) / epochs
    medians = np.median(measured, axis=0)
    fastest = 1 + int(medians[1:].argmin())
    return Duel(
        kept=kept,
        kept_by_peer=trained,
        ours=float(medians[0]),
        peer=float(medians[fastest]),
        workers=workers[fastest - 1],
        ratio=ratio(measured, fastest),
    )


@dataclass(frozen=True)
class Many:
    """Many students in one vector environment, and in a loop of single ones."""

    batched: float  # epochs a second, median
    looped: float  # likewise
    ratio: float  # median over rounds
    flops: float  # floating point operations a second of the vector environment's students


def time_many(members: int, rounds: int, env_id: str = "prune_env/Digits-v0", **settings: Any) -> Many:
    """Time epochs of so many students in one vector environment and in a loop, in turns."""
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
    return Many(batched, looped, ratio(times, 1), batched * counter.get_total_flops())
