"""Ways to learn a policy from digits tasks, at equal epochs of students.

    python -m results.alternatives.alternatives                          # in the checkout: the table of trials.jsonl
    python -m results.alternatives.alternatives --seeds 0 1 2            # run what it lacks, some minutes a trial

All begin with the fixed rule of the ten-minute policy, and are judged on validation tasks of `prune-env learn`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium.vector import VectorEnv
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from stable_baselines3.common.vec_env import VecMonitor
from torch import Tensor, nn

from prune_env import io
from prune_env.policy.features import FEATURES
from prune_env.policy.learned import Network
from prune_env.policy.paired import start
from prune_env.policy.rules import FULL, RULE_PARAMETERS, apply_rule
from prune_env.policy.tasks import TaskDistribution
from prune_env.policy.vector import PruneVectorEnv
from train.analysis.statistics import mean_of
from train.analysis.text import spread
from train.learn import VALIDATION_SEEDS, _moments
from train.learning import ppo
from train.learning.rollouts import CLIP, Pair, draw_pairs, make_env, play, training_env

HERE = Path(__file__).parent
TEN_MINUTES = HERE.parent / "learned" / "ten-minutes.npz"
MEMBERS = 96  # episodes of a round, all of one budget
ROUNDS = 20
LOOKS = 2  # at the validation tasks
POOL = 256  # pairs of task and seed with a known baseline
GROUP = 8  # episodes of a pair, where their mean is the baseline
NOISE = 0.2  # deviation of each rule parameter, the same through an episode
STEP = 0.05  # deviation of each weight in evolution
AGE = RULE_PARAMETERS.index("age")


class Setting:
    """What all methods of a seed share: tasks, the fixed rule, the scale of features, baselines."""

    def __init__(self, seed: int):
        self.tasks = TaskDistribution.named("digits")
        self.rule = np.array(list(Network.load(TEN_MINUTES).card["fixed_rule"].values()))
        self.rng = np.random.default_rng(seed)
        self.pool = draw_pairs(self.tasks, POOL, self.rng)
        self.shift, self.scale = _moments(self.tasks, self.rule, self.rng)
        self.validation = [(task, s) for task in self.tasks.validation for s in VALIDATION_SEEDS[:3]]
        kept = Path("runs") / f"alternatives-{seed}.f8"  # the same for all methods: computed once
        if not kept.exists():
            kept.parent.mkdir(exist_ok=True)
            full, rule = (play(self.pool + self.validation, x, self.tasks) for x in (FULL, self.rule))
            io.write_atomic(kept, np.stack([full, rule]).tobytes())
        full, rule = np.frombuffer(kept.read_bytes()).reshape(2, -1)
        self.baseline = (full[:POOL] + rule[:POOL]) / 2
        self.full, self.fixed = full[POOL:], rule[POOL:]

    def judge(self, policy: Any) -> float:
        """Return points over full training on the validation tasks."""
        return 100.0 * float(np.mean(play(self.validation, policy, self.tasks) - self.full))

    def draw(self, count: int, budgets: tuple[float, ...]) -> NDArray[np.integer]:
        """Draw places (count,) in the pool, all with one of these budgets."""
        budget = self.rng.choice(budgets)
        return self.rng.choice([i for i, (task, _) in enumerate(self.pool) if task.budget == budget], count)


def episodes(env: VectorEnv, pairs: list[Pair], act: Callable[[Any, NDArray[np.bool_]], Any]) -> NDArray[np.float64]:
    """Play one episode of each pair; return their final accuracies. `act` gets what is seen, and which runs go on."""
    seen, _ = start(env, np.ones(len(pairs), np.bool_), pairs)
    live, accuracy = np.ones(len(pairs), np.bool_), np.empty(len(pairs))
    while live.any():
        seen, _, done, _, infos = env.step(act(seen, live))
        ended = done & live
        accuracy[ended] = infos["val_accuracy"][ended]
        live = live & ~done
    return accuracy


class Actor(nn.Module):
    """Means of rule parameters (T, K, R) from features (T, K, D)."""

    def __init__(self, setting: Setting, recurrent: bool):
        super().__init__()
        inputs, outputs = len(FEATURES), len(RULE_PARAMETERS)
        self.shift, self.scale = (torch.tensor(x, dtype=torch.float32) for x in (setting.shift, setting.scale))
        self.first = nn.GRU(inputs, 64) if recurrent else nn.Sequential(nn.Linear(inputs, 64), nn.Tanh())
        self.second, self.last = nn.Sequential(nn.Linear(64, 64), nn.Tanh()), nn.Linear(64, outputs)
        with torch.no_grad():
            self.last.weight.mul_(0.01)
            self.last.bias.copy_(torch.tensor(setting.rule))
        self.memory: Tensor | None = None  # (1, K, 64)

    def forward(self, features: Tensor, memory: Tensor | None = None) -> Tensor:
        hidden = (features - self.shift) / self.scale
        if isinstance(self.first, nn.GRU):
            hidden, self.memory = self.first(hidden, memory)
        else:
            hidden = self.first(hidden)
        return self.last(self.second(hidden))

    @torch.no_grad()
    def mean(self, features: NDArray, begun: bool) -> NDArray:
        """Return means (K, R) for the next step of K runs."""
        return self(torch.tensor(features)[None], None if begun else self.memory)[0].numpy()

    def policy(self, features: NDArray, begun: NDArray[np.bool_]) -> NDArray:
        """Return parameters (K, R) for the next step of K runs, some of which have just begun."""
        if self.memory is not None and not begun.all():
            self.memory = self.memory * torch.tensor(~begun)[None, :, None]
        return np.clip(self.mean(features, bool(begun.all())), -1.0, 1.0)


def gradient(
    setting: Setting, *, recurrent: bool = False, group: bool = False, budgets: tuple[float, ...] = (4.0, 8.0, 16.0)
) -> list[float]:
    """Train by clipped policy gradients without a critic; return points in validation."""
    env, actor = make_env(MEMBERS, setting.tasks), Actor(setting, recurrent)
    optimizer = torch.optim.Adam(actor.parameters(), 1e-3)
    rounds, points = round(ROUNDS * np.mean(setting.tasks.budgets) / np.mean(budgets)), []
    for i in range(rounds):
        at = setting.draw(MEMBERS // GROUP if group else MEMBERS, budgets).repeat(GROUP if group else 1)
        noise = NOISE * setting.rng.standard_normal((MEMBERS, len(RULE_PARAMETERS))).astype(np.float32)
        reached, *steps = explored(env, [setting.pool[j] for j in at], actor, noise)
        known = reached.reshape(-1, GROUP).mean(axis=1).repeat(GROUP) if group else setting.baseline[at]
        gains = np.clip(100.0 * (reached - known), -CLIP, CLIP)
        advantage = torch.tensor(gains / gains.std(), dtype=torch.float32)
        improve(actor, optimizer, *steps, advantage, setting.rng)
        if (i + 1) * LOOKS // rounds > i * LOOKS // rounds:
            points.append(setting.judge(actor.policy))
    return points


def explored(env: VectorEnv, pairs: list[Pair], actor: Actor, noise: NDArray) -> tuple[NDArray, Tensor, Tensor, Tensor]:
    """Play with the actor's means and noise (K, R); return accuracies, and what `improve` takes of all steps."""
    steps: list[tuple[NDArray, NDArray, NDArray]] = []

    def act(features: NDArray, live: NDArray[np.bool_]) -> NDArray:
        steps.append((features, live, actor.mean(features, not steps) + noise))
        return np.clip(steps[-1][-1], -1.0, 1.0)

    reached = episodes(env, pairs, act)
    seen, live, actions = (torch.tensor(np.array(column)) for column in zip(*steps, strict=True))
    return reached, seen, live, actions


def improve(
    actor: Actor,
    optimizer: torch.optim.Optimizer,
    seen: Tensor,  # (T, K, D)
    live: Tensor,  # (T, K)
    actions: Tensor,  # (T, K, R)
    advantage: Tensor,  # (K,)
    rng: np.random.Generator,
) -> None:
    """Take six epochs of PPO's clipped steps (arXiv 1707.06347), a quarter of the episodes at a time."""

    def log_probability(means: Tensor, of: Tensor) -> Tensor:
        return -((actions[:, of] - means) ** 2).sum(dim=2) / (2 * NOISE**2)

    everyone = torch.arange(len(advantage))
    with torch.no_grad():
        before = log_probability(actor(seen), everyone)
    for _ in range(6):
        for some in torch.tensor(rng.permutation(len(advantage))).split(len(advantage) // 4):
            ratio = (log_probability(actor(seen[:, some]), some) - before[:, some]).exp()
            gain = torch.minimum(ratio * advantage[some], ratio.clip(0.8, 1.2) * advantage[some])
            optimizer.zero_grad()
            (-(gain * live[:, some]).sum() / live[:, some].sum()).backward()
            optimizer.step()


SAMPLE = ("loss_mean", "confidence", "margin", "margin_mean", "entropy", "correct", "forgets", "visits")


class Sizes:
    """Layers of a network as places in a vector of weights."""

    def __init__(self, *widths: int):
        self.shapes = list(zip(widths[1:], widths[:-1], strict=True))

    def __call__(self, weights: NDArray, x: NDArray) -> NDArray:
        """Return outputs (K, S, O) of K networks (K, P) for inputs (K, S, I)."""
        at = 0
        for i, (rows, columns) in enumerate(self.shapes):
            matrix = weights[:, at : (at := at + rows * columns)].reshape(-1, rows, columns)
            bias = weights[:, None, at : (at := at + rows)]
            x = x @ matrix.transpose(0, 2, 1) + bias
            x = np.tanh(x) if i + 1 < len(self.shapes) else x
        return x


def evolution(setting: Setting, *, scores: bool = False) -> list[float]:
    """Train by evolution strategies (arXiv 1703.03864) with twins of opposite steps on the same pair.

    With `scores` the network does not choose a rule. It gives every sample a number, whose ranks tilt the fixed rule in
    place of the age's; how much, is learned too.
    """
    rng, outputs = setting.rng, len(RULE_PARAMETERS)
    sizes = Sizes(len(SAMPLE) + 1, 16, 1) if scores else Sizes(len(FEATURES), 64, 64, outputs)
    weights = np.concatenate([rng.standard_normal(r * c + r) / np.sqrt(c) for r, c in sizes.shapes])
    if not scores:
        weights[-outputs * 65 :] = np.append(0.01 * weights[-outputs * 65 : -outputs], setting.rule)
    else:
        weights = np.append(weights, 0.0)  # the tilt

    def choose(of: NDArray, seen: Any, _: object = None) -> Any:  # of K networks (K, P), for K runs
        if not scores:
            return np.clip(sizes(of, ((seen - setting.shift) / setting.scale)[:, None])[:, 0], -1.0, 1.0)
        spent = np.broadcast_to(seen["spent"].reshape(-1, 1), seen["loss_mean"].shape)
        x = np.stack([*(np.log1p(np.abs(seen[name])) * np.sign(seen[name]) for name in SAMPLE), spent], axis=2)
        rules = np.broadcast_to(setting.rule, (len(of), outputs)).copy()
        rules[:, AGE] = of[:, -1]
        return apply_rule({**seen, "age": sizes(of, x)[..., 0]}, rules)

    def judge() -> float:
        if not scores:
            return setting.judge(lambda seen, begun: choose(np.broadcast_to(weights, (len(seen), len(weights))), seen))
        order = sorted(range(len(setting.validation)), key=lambda i: setting.validation[i][0].budget)
        reached = np.empty(len(order))
        for some in np.split(np.array(order), range(MEMBERS, len(order), MEMBERS)):
            whole = np.resize(some, MEMBERS)  # the last are played twice
            every = np.broadcast_to(weights, (MEMBERS, len(weights)))
            pairs = [setting.validation[i] for i in whole]
            reached[whole] = episodes(env, pairs, partial(choose, every))
        return 100.0 * float(np.mean(reached - setting.full))

    env: VectorEnv = PruneVectorEnv(MEMBERS, tasks=setting.tasks) if scores else make_env(MEMBERS, setting.tasks)
    points, first, second = [], np.zeros_like(weights), np.zeros_like(weights)
    for i in range(ROUNDS):
        at = setting.draw(MEMBERS // 2, setting.tasks.budgets)
        away = rng.standard_normal((MEMBERS // 2, len(weights)))
        tried = np.concatenate([weights + STEP * away, weights - STEP * away])
        reached = episodes(env, [setting.pool[j] for j in np.tile(at, 2)], partial(choose, tried))
        gains = np.clip(100.0 * (reached[: len(at)] - reached[len(at) :]), -CLIP, CLIP)
        slope = (gains / gains.std()) @ away / len(at)
        first, second = 0.9 * first + 0.1 * slope, 0.99 * second + 0.01 * slope**2  # Adam's moments
        weights = weights + 0.02 * (first / (1 - 0.9 ** (i + 1))) / (np.sqrt(second / (1 - 0.99 ** (i + 1))) + 1e-8)
        if (i + 1) * LOOKS // ROUNDS > i * LOOKS // ROUNDS:
            points.append(judge())
    return points


def proximal(setting: Setting) -> list[float]:
    """Train by PPO as `prune-env learn` does."""
    env = VecMonitor(training_env(setting.tasks, MEMBERS, setting.pool, setting.baseline.tolist()))
    seed = int(setting.rng.integers(2**31))
    model = ppo.build(env, setting.rule.tolist(), setting.shift.tolist(), setting.scale.tolist(), seed)
    points = []
    for look in range(1, LOOKS + 1):
        while env.episode_count < look * ROUNDS * MEMBERS / LOOKS:
            model.learn(1, reset_num_timesteps=False)  # one rollout
        points.append(setting.judge(ppo.network_of(model, {})))
    return points


METHODS: dict[str, Callable[[Setting], list[float]]] = {
    "PPO, as prune-env learn": proximal,
    "policy gradients": gradient,
    "policy gradients, mean of 8 as baseline": lambda setting: gradient(setting, group=True),
    "policy gradients, recurrent": lambda setting: gradient(setting, recurrent=True),
    "policy gradients, budget 4 only": lambda setting: gradient(setting, budgets=(4.0,)),
    "policy gradients, budget 16 only": lambda setting: gradient(setting, budgets=(16.0,)),
    "evolution strategies": evolution,
    "evolution strategies, a score a sample": lambda setting: evolution(setting, scores=True),
}


def table(trials: list[dict[str, Any]]) -> Table:
    """Return a row a method: points in validation over full training, and over the fixed rule, with t intervals."""
    shown = Table(title="Points over full training on the validation tasks of digits: mean over seeds [95 % interval]")
    heads = ("method", "seeds", *(f"after {look}/{LOOKS}" for look in range(1, LOOKS)), "at the end", "over the rule")
    for head in heads:
        shown.add_column(head, justify="left" if head == "method" else "right")
    for method in METHODS:
        of = [trial for trial in trials if trial["method"] == method]
        if not of:
            continue
        looks = [mean_of(points) for points in zip(*(trial["points"] for trial in of), strict=True)]
        over = mean_of([trial["points"][-1] - trial["rule"] for trial in of])
        cells = [spread(one.mean, one.interval if one is looks[-1] else None, "+.2f") for one in looks]
        shown.add_row(method, str(len(of)), *cells, spread(over.mean, over.interval, "+.2f"))
    return shown


def main() -> None:
    """Run a trial, or print the table of those that were run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="*", default=[], help="run these; without, print the table")
    parser.add_argument("--methods", nargs="*", default=list(METHODS), choices=list(METHODS))
    given = parser.parse_args()
    torch.set_num_threads(1)
    path = HERE / "trials.jsonl"
    trials = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    for seed in given.seeds:
        for method in given.methods:
            if any((trial["method"], trial["seed"]) == (method, seed) for trial in trials):
                continue
            setting = Setting(seed)
            torch.manual_seed(seed)
            rule = 100.0 * float(np.mean(setting.fixed - setting.full))
            trial = {"method": method, "seed": seed, "rule": rule, "points": METHODS[method](setting)}
            print(trial, flush=True)
            with path.open("a") as file:
                file.write(json.dumps(trial) + "\n")
    if not given.seeds:
        Console(width=150).print(table(trials))


if __name__ == "__main__":
    main()
