"""Rewards over a baseline: as two runs by hand have them, exactly 0 for the baseline itself, each one played once."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import SyncVectorEnv
from numpy.typing import NDArray

import agents
from prune_env import PruneEnv, select
from prune_env.policy import PairedReward, VectorPairedReward
from prune_env.policy.rules import FULL, RULE_PARAMETERS
from prune_env.policy.tasks import Task, TaskDistribution, TaskEnv
from prune_env.policy.vector import PruneVectorEnv
from prune_env.policy.wrappers import AgentChoice, SummaryEnv, vector_summary

N = 60
SETTINGS: dict[str, Any] = {"train_size": N, "budget": 2.5, "batch_size": 16, "model": "mlp:8"}
SMALL = TaskDistribution(
    {"train_size": (40, 60), "label_noise": (0.0, 0.2), "model": ("mlp:4",), "budget": (1.0, 2.5)},
    validations=0,
    held_outs=0,
)
RULE = np.array([-0.5, 0.3, 0.2, 0.1, 0, 0.4, 0.5, 0.2, 0.3, 0.2, 0.5, -0.1])


def full(observation: dict[str, NDArray], rng: np.random.Generator) -> dict[str, NDArray]:
    return select(observation["label"] >= 0)


def half(observation: dict[str, NDArray], rng: np.random.Generator) -> dict[str, NDArray]:
    return select(rng.permutation(len(observation["label"])) < 20)


class Alternating:
    """Trains on all samples in every second step, on a few in the others: it has a state."""

    def __init__(self) -> None:
        self.steps = self.resets = 0

    def reset(self) -> None:
        self.steps, self.resets = 0, self.resets + 1

    def __call__(self, observation, rng):
        self.steps += 1
        return select(np.arange(N) < (N if self.steps % 2 else 10))


def episode(env: Any, policy: Any, seed: int | None = None, options: Any = None) -> tuple[list[float], dict[str, Any]]:
    """The rewards and the last info of an episode of a policy, an agent or the same action again and again."""
    seen, info = env.reset(seed=seed, options=options)
    rewards, over, rng = [], False, np.random.default_rng(5)
    while not over:
        seen, reward, terminated, truncated, info = env.step(policy(seen, rng) if callable(policy) else policy)
        rewards.append(reward)
        over = terminated or truncated
    return rewards, info


@pytest.mark.parametrize(
    ("make", "policy", "baseline"),
    [
        (lambda: gym.make("prune_env/Digits-v0", **SETTINGS), full, None),
        (lambda: gym.make("prune_env/DigitsSummary-v0", **SETTINGS), FULL, None),
        (lambda: gym.make("prune_env/DigitsSummary-v0", tasks=SMALL), FULL, full),
        (lambda: gym.make("prune_env/DigitsSummary-v0", tasks=SMALL), RULE, RULE),
        (lambda: TaskEnv(SMALL), full, None),
        (lambda: PruneEnv(**SETTINGS), Alternating(), Alternating()),
        (lambda: AgentChoice(PruneEnv(**SETTINGS), {"only": agents.make("ucb")}), 0, agents.make("ucb")),
    ],
)
def test_the_baseline_itself_is_paid_exactly_nothing(make, policy, baseline):
    """In every episode, also those that no seed was given for."""
    env, lengths = PairedReward(make(), baseline), set()
    for seed in (3, None, None, 4, None):
        if isinstance(policy, Alternating):
            policy.reset()
        rewards, _ = episode(env, policy, seed)
        assert rewards == [0.0] * len(rewards)
        lengths.add(len(rewards))
    assert max(lengths) > 1


def test_an_episode_is_paid_at_its_end_as_by_hand():
    """Two environments of the same seeds, one for the policy and one for the baseline."""
    for baseline, played in ((None, full), (Alternating(), Alternating())):
        env, own, others = PairedReward(PruneEnv(**SETTINGS), baseline), PruneEnv(**SETTINGS), PruneEnv(**SETTINGS)
        for seed in (7, None, None, 8):
            if isinstance(played, Alternating):
                played.reset()
            rewards, info = episode(env, half, seed)
            _, mine = episode(own, half, seed)
            _, theirs = episode(others, played, seed)
            assert info == mine
            assert rewards[:-1] == [0.0] * (len(rewards) - 1)
            assert rewards[-1] == pytest.approx(100 * (mine["val_accuracy"] - theirs["val_accuracy"]), abs=1e-9)
            assert abs(rewards[-1]) > 0.1
        if isinstance(baseline, Alternating):
            assert (baseline.steps, baseline.resets) == (0, 0)  # a copy played


def test_a_pinned_task_is_the_baselines_too():
    env = PairedReward(SummaryEnv(**SETTINGS))
    pinned = {"task": {"label_noise": 0.4, "train_size": 40}}
    assert episode(env, FULL, 3, pinned)[0][-1] == 0.0
    assert episode(env, RULE, 3, pinned)[0][-1] != 0.0


def vector(make: Any, baseline: Any, pool: Any = None, count: int = 3) -> VectorPairedReward:
    return VectorPairedReward(make(count), baseline, pool)


@pytest.mark.parametrize(
    ("settings", "baseline"), [({**SETTINGS, "budget": [1.0, 2.5, 2.0]}, half), ({"tasks": SMALL}, None)]
)
def test_a_vector_is_paid_as_its_members_alone(settings, baseline):
    """Over several episodes, which the vector begins by itself. Rounding moves an image or two of 260."""
    members = [
        {name: value[k] if isinstance(value, list) else value for name, value in settings.items()} for k in range(3)
    ]
    alone = SyncVectorEnv([lambda m=m: PairedReward(SummaryEnv(**m), baseline) for m in members])
    env = vector(lambda count: vector_summary(count, **settings), baseline)
    rng, paid = np.random.default_rng(0), 0
    env.reset(seed=5)
    alone.reset(seed=5)
    for _ in range(10):
        actions = rng.uniform(-1, 1, (3, len(RULE_PARAMETERS))).astype(np.float32)
        _, rewards, terminated, *_ = env.step(actions)
        _, expected, others, _, _ = alone.step(actions)
        np.testing.assert_array_equal(terminated, others)
        np.testing.assert_allclose(rewards, expected, atol=0.8)
        assert (rewards[~terminated] == 0).all()
        paid += np.count_nonzero(rewards)
    assert paid > 3


def test_full_training_in_a_vector_is_paid_nothing():
    env = vector(lambda count: PruneVectorEnv(count, tasks=SMALL), None)
    env.reset(seed=0)
    ones = np.ones((3, 60), np.float32)
    for _ in range(9):
        _, rewards, *_ = env.step({"weight": ones, "mixup": 0 * ones})
        np.testing.assert_allclose(rewards, 0.0, atol=0.8)


class Counting:
    """Full training that notes each run that it begins; its copies share the notes."""

    def __init__(self, begun: list[float]):
        self.begun = begun

    def __deepcopy__(self, memo: Any) -> Counting:
        return Counting(self.begun)

    def __call__(self, observation, rng):
        if observation["spent"] == 0:
            self.begun.append(float(observation["val_accuracy"][0]))
        return full(observation, rng)


PAIRS = [(SMALL.training[k % len(SMALL.training)], 100 + k) for k in range(5)]


def by_hand(pairs: list[tuple[Task, int]], rule: NDArray) -> NDArray:
    """Points of a rule over full training on each pair, in environments of their own."""
    reached = [
        [episode(SummaryEnv(**task.settings()), one, seed)[1]["val_accuracy"] for one in (rule, FULL)]
        for task, seed in pairs
    ]
    return 100 * -np.diff(reached)[:, 0]


def test_a_pool_is_what_is_played_and_each_baseline_is_played_once():
    points, played, seed = by_hand(PAIRS, RULE), [], 1
    run_seeds = np.array([PruneEnv(**SETTINGS).reset(seed=s)[1]["seed"] for _, s in PAIRS])
    single = PairedReward(SummaryEnv(SMALL), Counting(played), PAIRS)
    draws = np.random.default_rng(seed)
    for k in range(8):
        rewards, _ = episode(single, RULE, seed if k == 0 else None)
        assert rewards[-1] == pytest.approx(points[draws.integers(5, size=1)[0]], abs=1e-9)
    assert len(played) <= 5

    played.clear()
    env = vector(lambda count: vector_summary(count, tasks=SMALL), Counting(played), PAIRS)
    env.reset(seed=seed)
    draws = np.random.default_rng(seed)
    at, done, over = draws.integers(5, size=3), np.zeros(3, bool), []
    for _ in range(20):  # members that are over are reset by the next step
        if done.any():
            at = np.where(done, draws.integers(5, size=3), at)
        _, rewards, done, _, infos = env.step(np.tile(RULE, (3, 1)))
        np.testing.assert_array_equal(infos["seed"], run_seeds[at])
        np.testing.assert_allclose(rewards, np.where(done, points[at], 0.0), atol=0.8)
        over += at[done].tolist()
    assert set(over) == set(range(5))
    assert len(played) <= 5 + 2  # members that begin together may play the same pair


def test_a_pool_of_seeds_and_known_accuracies():
    env = PairedReward(gym.make("prune_env/Digits-v0", **SETTINGS), pool=range(3))
    seeds = {PruneEnv(**SETTINGS).reset(seed=s)[1]["seed"] for s in range(3)}
    assert {int(env.reset()[1]["seed"]) for _ in range(30)} == seeds
    known = PairedReward(PruneEnv(**SETTINGS), Counting(played := []), {7: 0.25})
    rewards, info = episode(known, half)
    assert rewards[-1] == pytest.approx(100 * (info["val_accuracy"] - 0.25))
    assert not played


def test_what_is_refused():
    with pytest.raises(TypeError, match="CartPole"):
        PairedReward(gym.make("CartPole-v1"))
    with pytest.raises(TypeError, match="SyncVectorEnv"):
        VectorPairedReward(SyncVectorEnv([lambda: PruneEnv(**SETTINGS)]))
    for baseline in ("full", [0.0, 1.0]):
        with pytest.raises(ValueError, match=f"baseline is .*; it must be an agent .*or {len(FULL)} numbers"):
            PairedReward(PruneEnv(**SETTINGS), baseline)
    for env in (PairedReward(SummaryEnv(**SETTINGS), pool=[1]), vector(lambda n: vector_summary(n), None, [1])):
        with pytest.raises(ValueError, match=r"\['task'\] cannot be given beside a pool"):
            env.reset(options={"task": {"train_size": 40}})
