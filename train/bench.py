"""What the environment costs: its step against a bare PyTorch loop, agents' decisions, bytes a sample.

    python -m train.bench                                   # digits, many students, decisions, bytes
    python -m train.bench --root DIR --train-size 10000     # and the images in DIR/train/<class>/

Ratios are medians over pairs that were timed one after the other in this process, on one thread unless a title says so.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass

import gymnasium as gym
import numpy as np
import torch
import tyro
from rich.console import Console
from rich.table import Table
from torch.nn import functional as F

import agents
import prune_env
from prune_env import augment, models
from prune_env.env import PruneEnv
from prune_env.stats import BOUNDS, COLUMNS


@dataclass
class Args:
    root: str | None = None
    """Folder of images, as for prune_env/ImageFolder-v0: its step is timed too."""
    train_size: int = 10_000
    """Training images taken from it."""
    image_size: int | None = None
    """Their side; the id's default without."""
    samples: tuple[int, ...] = (50_000, 1_281_167)
    """Numbers of samples at which every agent decides."""
    members: tuple[int, ...] = (1, 8, 64)
    """Numbers of students in a vector environment."""
    rounds: int = 15
    """Timed pairs, or decisions; the median counts. Digits take three times as many pairs."""
    device: str = "auto"
    """Where the student trains."""


def bare_epoch(env: PruneEnv, model: torch.nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> float:
    """An epoch and a validation pass as anyone would write them, without statistics, weights or a ledger.

    Same images, batch size, augmentation, precision and optimiser as the environment's. Returns the mean
    accuracy, which waits for the device.
    """
    trainer, data, val = env.trainer, env.train_data, env.val_data
    assert trainer is not None
    device = data.device
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(seed)).to(device)
    visits = torch.full((trainer.batch_size,), seed, device=device)

    def forward(images: torch.Tensor) -> torch.Tensor:
        images = images.contiguous(memory_format=trainer.format)
        with torch.autocast(device.type, torch.bfloat16) if trainer.bf16 else nullcontext():
            return model(images)

    model.train()
    for rows in order.split(trainer.batch_size):
        images = (data.images[rows].float() - trainer.mean) * trainer.scale
        if data.augment:
            images = augment.crop_flip(images, seed, rows, visits[: len(rows)])
        F.cross_entropy(forward(images).float(), data.labels[rows]).backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()
    right = torch.zeros((), device=device)
    with torch.no_grad():
        for images, labels in zip(val.images.split(512), val.labels.split(512), strict=True):
            logits = forward((images.float() - trainer.mean) * trainer.scale)
            right += (logits.argmax(1) == labels).sum()
    return float(right) / len(val)


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def time_step(env_id: str, rounds: int, **kwargs) -> tuple[float, float, float]:
    """Median seconds of a step and of a bare epoch, and the median of their ratios."""
    env = gym.make(env_id, budget=2.0 * rounds + 4.0, disable_env_checker=True, **kwargs)
    env.reset(seed=0)
    run = env.unwrapped
    assert isinstance(run, PruneEnv)
    assert run.trainer is not None
    action = prune_env.select(np.ones(len(run.train_data), dtype=np.bool_))
    _, channels, size, _ = run.train_data.images.shape
    model = models.build(run.recipe.model, channels, size, len(run.train_data.classes), seed=0)
    model = model.to(run.trainer.device).to(memory_format=run.trainer.format)
    recipe = run.recipe
    optimizer = torch.optim.SGD(
        model.parameters(),
        lr=recipe.lr / 10,
        momentum=recipe.momentum,
        weight_decay=recipe.weight_decay,
        nesterov=True,
        fused=True,
    )
    steps, bares = [], []
    for pair in range(rounds + 1):
        steps.append(seconds(lambda: env.step(action)))
        bares.append(seconds(lambda seed=pair: bare_epoch(run, model, optimizer, seed)))
    steps, bares = np.array(steps[1:]), np.array(bares[1:])  # the first pair warms up
    return float(np.median(steps)), float(np.median(bares)), float(np.median(steps / bares))


def time_many(members: int, rounds: int, **kwargs) -> tuple[float, float, float]:
    """Median epochs per second of so many students in one vector environment and in a loop, and of their ratios.

    Both on as many threads as there are cores.
    """
    budget = rounds + 3.0
    together = gym.make_vec("prune_env/Digits-v0", num_envs=members, budget=budget, **kwargs)
    together.reset(seed=0)
    singles = [
        gym.make("prune_env/Digits-v0", budget=budget, disable_env_checker=True, **kwargs) for _ in range(members)
    ]
    for seed, env in enumerate(singles):
        env.reset(seed=seed)
    action = prune_env.select(np.ones(together.single_action_space["weight"].shape[0], dtype=np.bool_))  # pyright: ignore
    actions = {name: np.stack([values] * members) for name, values in action.items()}
    before = torch.get_num_threads()
    torch.set_num_threads(os.cpu_count() or 1)
    batched, looped = [], []
    for _ in range(rounds + 1):
        batched.append(seconds(lambda: together.step(actions)))
        looped.append(seconds(lambda: [env.step(action) for env in singles]))
    torch.set_num_threads(before)
    batched, looped = np.array(batched[1:]), np.array(looped[1:])  # the first pair warms up
    return members / float(np.median(batched)), members / float(np.median(looped)), float(np.median(looped / batched))


def observation(n: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Plausible statistics of n samples in the middle of a run."""
    seen = {name: rng.random(n, dtype=np.float32) for name in BOUNDS}
    loss = rng.exponential(0.7, n).astype(np.float32)
    seen |= {"loss": loss, "loss_mean": loss * rng.random(n, dtype=np.float32) * 2, "loss_var": loss**2}
    seen |= {"visits": np.ceil(seen["visits"] * 9), "age": seen["forgets"] * 5}
    seen |= {"correct": np.round(seen["correct"]), "forgets": np.floor(seen["forgets"] * 4)}
    figures = {"spent": 0.4, "budget": 100.0, "val_accuracy": 0.7, "train_accuracy": 0.75}
    return {
        **seen,
        "label": rng.integers(10, size=n),
        **{name: np.array([value], np.float32) for name, value in figures.items()},
    }


def time_decision(spec: str, n: int, rounds: int) -> float:
    """Median seconds of a decision that is not the episode's first, for bandits one that selects anew."""
    rng = np.random.default_rng(0)
    seen = observation(n, rng)
    agent = agents.make(spec)
    times = []
    for turn in range(rounds + 1):
        seen["spent"] = np.array([0.01 + 0.8 * turn / (rounds + 1)], np.float32)
        times.append(seconds(lambda: agent(seen, rng)))
    return float(np.median(times[1:]))


def main(args: Args) -> None:
    torch.set_num_threads(1)
    console = Console(width=100)
    steps = Table(title="A step of the environment against a bare PyTorch loop")
    for column in ("task", "step, ms", "bare, ms", "ratio (median)"):
        steps.add_column(column, justify="left" if column == "task" else "right")
    step, bare, ratio = time_step("prune_env/Digits-v0", 3 * args.rounds, device=args.device)
    steps.add_row("digits, mlp", f"{step * 1e3:.1f}", f"{bare * 1e3:.1f}", f"{ratio:.3f}")
    if args.root is not None:
        step, bare, ratio = time_step(
            "prune_env/ImageFolder-v0",
            args.rounds,
            root=args.root,
            train_size=args.train_size,
            image_size=args.image_size,
            device=args.device,
        )
        steps.add_row(f"{args.train_size:,} images, convnet", f"{step * 1e3:.0f}", f"{bare * 1e3:.0f}", f"{ratio:.3f}")
    console.print(steps)

    many = Table(title="Epochs per second of many students, mlp on digits, all cores")
    for column in ("students", "one vector environment", "a loop", "ratio (median)"):
        many.add_column(column, justify="right")
    for members in args.members:
        batched, looped, ratio = time_many(members, args.rounds, device=args.device)
        many.add_row(str(members), f"{batched:.0f}", f"{looped:.0f}", f"{ratio:.2f}")
    console.print(many)

    decisions = Table(title="Milliseconds of an agent's decision, median")
    decisions.add_column("agent")
    for n in args.samples:
        decisions.add_column(f"{n:,} samples", justify="right")
    for spec in sorted(agents.AGENTS):
        times = [time_decision(spec, n, args.rounds) for n in args.samples]
        decisions.add_row(spec, *(f"{t * 1e3:.1f}" for t in times))
    console.print(decisions)

    table, observed = 4 * len(COLUMNS), 4 * (len(BOUNDS) + 1) + 8
    console.print(f"Statistics on the device: {table} bytes a sample; an observation on the host: {observed}.")


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
