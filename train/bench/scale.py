"""What N samples cost beside training: statistics, observation, decisions, selection, with a stub for the student."""

from __future__ import annotations

import tracemalloc

import numpy as np
import torch
from numpy.typing import NDArray

import agents
from prune_env.policy import features, rules
from prune_env.selection import Selection, check
from prune_env.stats import BOUNDS, Stats
from train.bench.peers import Published
from train.bench.timing import Work, in_turn

BATCH = 4096  # rows of logits at a time: 16 MiB at 1,000 classes
BATCHES = 8  # timed in a round; statistics of all samples take as long as so many of these
EVERY_EPOCH = 5  # parts
PER_PART = 20_000_000  # samples that a part is timed on at least, which bounds the rounds at large N


def turns(rounds: int, n: int) -> int:
    """Rounds at n samples: fewer where each takes long, at least one."""
    return max(1, min(rounds, PER_PART // n))


def observation(n: int, rng: np.random.Generator, classes: int = 10) -> dict[str, np.ndarray]:
    """Plausible statistics of n samples in the middle of a run."""
    seen = {name: rng.random(n, dtype=np.float32) for name in BOUNDS}
    loss = rng.exponential(0.7, n).astype(np.float32)
    seen |= {"loss": loss, "loss_mean": loss * rng.random(n, dtype=np.float32) * 2, "loss_var": loss**2}
    seen |= {"visits": np.ceil(seen["visits"] * 9), "age": seen["forgets"] * 5}
    seen |= {"correct": np.round(seen["correct"]), "forgets": np.floor(seen["forgets"] * 4)}
    figures = {"spent": 0.4, "budget": 100.0, "val_accuracy": 0.7, "train_accuracy": 0.75}
    return {
        **seen,
        "label": rng.integers(classes, size=n),
        **{name: np.array([value], np.float32) for name, value in figures.items()},
        "val_class_accuracy": rng.random(classes, dtype=np.float32),
    }


def time_decision(spec: str, n: int, rounds: int) -> float:
    """Median seconds of a decision that is not the episode's first, for bandits one that selects anew."""
    rng = np.random.default_rng(0)
    seen, agent = observation(n, rng), agents.make(spec)
    if agents.needs_reference(spec):
        seen["reference"] = rng.random(n, np.float32)
    spent = iter([0.01 + 0.8 * turn / (rounds + 1) for turn in range(rounds + 1)])

    def decide() -> None:
        seen["spent"] = np.array([next(spent)], np.float32)
        agent(seen, rng)

    return float(np.median(in_turn([decide], rounds)))


def time_parts(n: int, rounds: int, classes: int, device: torch.device) -> dict[str, tuple[float, float]]:
    """Time what n samples of so many classes cost beside training; return median seconds and the peak of each part.

    The peak is what numpy holds at once on the host, the result included, in bytes a sample. The student is a block of
    noise that stands for the logits of every batch. Statistics are timed on some batches of random samples, and scaled.
    Every epoch does the first EVERY_EPOCH parts, whatever the agent.
    """
    rng = np.random.default_rng(0)
    stats = Stats(n, classes, 0.8, device)
    rows = min(BATCH, n)
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(rows, classes, generator=generator).to(device)
    labels = torch.randint(classes, (rows,), generator=generator).to(device)
    clean = torch.ones(rows, dtype=torch.bool, device=device)
    batches = torch.randperm(n, generator=generator)[: n // rows * rows][: rows * BATCHES].to(device).split(rows)

    def update() -> None:
        for batch in batches:
            stats.update(batch, logits, labels, clean, 1.0)

    update()
    classes_of = rng.integers(classes, size=n)
    seen = observation(n, rng, classes)
    agent = agents.make("infobatch")
    action = agent(seen, rng)
    tilted = np.where(np.isin(rules.RULE_PARAMETERS, ("keep", "randomness", "mixup")), 0.0, 0.5)
    works: dict[str, Work] = {
        "statistics of all samples": update,
        "observation": lambda: {**stats.observe(1.0), "label": classes_of.copy()},
        "infobatch's decision": lambda: agent(seen, rng),
        "check of an action": lambda: check(action, n),
        "order of the batches": lambda: Selection.from_action(action, rng),
        f"summary in {len(features.FEATURES)} numbers": lambda: features.extract_features(seen),
        f"rule of {len(rules.RULE_PARAMETERS)} numbers": lambda: rules.apply_rule(seen, tilted, rng.random((n, 2))),
    }
    parts = {}
    for name, work in works.items():
        scale = n / (rows * len(batches)) if work is update else 1.0
        parts[name] = scale * float(np.median(in_turn([work], rounds, device))), peak(work) / n
    return parts


def peak(work: Work) -> int:
    """Bytes that Python and numpy allocate at once during a call, beyond what they hold before it."""
    tracemalloc.start()
    work()
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return most


def time_selecting(n: int, rounds: int) -> NDArray[np.float64]:
    """Time InfoBatch's selection on the same losses: seconds (rounds, 3).

    The columns are the published `prune()`, which also shuffles; our decision; and that with the check and the order of
    the batches.
    """
    rng = np.random.default_rng(0)
    seen = observation(n, rng)
    published = Published(n)
    published.scores.copy_(torch.from_numpy(seen["loss"]))
    agent = agents.make("infobatch")
    works = (
        published.prune,
        lambda: agent(seen, rng),
        lambda: Selection.from_action(check(agent(seen, rng), n), rng),
    )
    return in_turn(works, rounds)
