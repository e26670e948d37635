"""Episodes for learning: in batches as alone, in several processes as in one, and judged by hand."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import SyncVectorEnv
from numpy.typing import NDArray

from prune_env.policy.rules import FULL, RULE_PARAMETERS
from prune_env.policy.sb3 import SB3VecEnv
from prune_env.policy.tasks import TaskDistribution
from prune_env.policy.wrappers import SummaryEnv
from tests.learning.here import VARIED
from train.learning import rollouts, search
from train.learning.rollouts import Pair, distribution, draw_pairs, play, training_env
from train.learning.subproc_env import ProcessVecEnv
from train.learning.workers import Died, Workers

ROOT = Path(__file__).parents[2]


def pairs_of(count: int, seed: int = 0) -> list[Pair]:
    return draw_pairs(VARIED, count, np.random.default_rng(seed))


def test_a_distribution_of_a_file(tmp_path):
    path = tmp_path / "own.toml"
    values = "\n".join(f"{name} = {json.dumps(values)}" for name, values in VARIED.values.items())
    path.write_text(f"validations = 1\nheld_outs = 1\n[values]\n{values}\n")
    found = rollouts.distribution(str(path))
    assert (found.held_out, found.validation, found.training) == (VARIED.held_out, VARIED.validation, VARIED.training)
    for text, words in (
        ("values = ", "own.toml is no distribution of tasks"),
        ("values = 3", "own.toml is no distribution of tasks"),
        ("held_outs = 1", "own.toml is no distribution of tasks: .*values"),
        ("more = 1\n[values]\nmodel = ['mlp']", "own.toml is no distribution of tasks: .*more"),
        ("[values]\ndepth = [1, 2]", "own.toml is no distribution of tasks: tasks have no 'depth'"),
    ):
        path.write_text(text)
        with pytest.raises(ValueError, match=words):
            rollouts.distribution(str(path))
    with pytest.raises(FileNotFoundError):
        rollouts.distribution(str(tmp_path / "missing.toml"))


def test_the_file_in_the_docs_makes_tasks(tmp_path):
    path = tmp_path / "own.toml"
    path.write_text((ROOT / "docs" / "learning.md").read_text().split("```toml\n")[1].split("```")[0])
    tasks = rollouts.distribution(str(path))
    counts = [len(part) for part in (tasks.held_out, tasks.validation, tasks.training)]
    assert counts == [8, 8, 16]  # of 2 x 2 x 4 tasks at two budgets
    assert {(task.dataset, task.root) for task in tasks.training} == {("imagefolder", "photos")}


class Steps:
    """Acts by what it sees and by how many steps a run has had: it goes wrong where it is not told who begins."""

    def __init__(self) -> None:
        self.steps: NDArray | None = None

    def __call__(self, summaries: NDArray, begun: NDArray[np.bool_]) -> NDArray:
        assert summaries.dtype == np.float32
        self.steps = np.where(begun, 0, 0 if self.steps is None else self.steps + 1)
        numbers = (
            np.sin(np.outer(1 + self.steps, np.arange(1, len(RULE_PARAMETERS) + 1)))
            + 0.3 * summaries[:, : len(RULE_PARAMETERS)]
        )
        return np.clip(numbers, -1, 1)


def alone(pair: Pair, policy: Any) -> tuple[float, int]:
    """Final validation accuracy of one run in an env of its own, and its steps."""
    task, seed = pair
    env: Any = SummaryEnv(**task.settings())
    seen, info = env.reset(seed=seed)
    over, steps = False, 0
    while not over:
        numbers = policy if isinstance(policy, np.ndarray) else policy(seen[None], np.array([steps == 0]))[0]
        seen, _, over, _, info = env.step(numbers)
        steps += 1
    return info["val_accuracy"], steps


def test_runs_are_what_they_are_alone():
    pairs = pairs_of(7)
    expected = [alone(pair, Steps()) for pair in pairs]
    assert len({steps for _, steps in expected}) > 2
    for width in (1, 3):
        np.testing.assert_array_equal(play(pairs, Steps(), VARIED, width), [accuracy for accuracy, _ in expected])


def test_plays_share_an_environment_and_leave_nothing_in_it():
    """Others may have been in the middle of a run when the last one ended."""
    first, others = pairs_of(5), pairs_of(7, seed=1)
    fresh = play(first, Steps(), VARIED, width=3)
    env = rollouts._kept_env(3, VARIED)
    assert play(others, Steps(), VARIED, width=3).shape == (7,)
    np.testing.assert_array_equal(play(first, Steps(), VARIED, width=3), fresh)
    assert rollouts._kept_env(3, VARIED) is env
    assert rollouts._kept_env(2, VARIED).num_envs == 2
    changed = TaskDistribution({**VARIED.values, "train_size": (40, 50)}, validations=1, held_outs=1)
    assert rollouts._kept_env(2, changed).unwrapped.tasks == changed  # pyright: ignore[reportAttributeAccessIssue]


def test_rules_are_of_all_or_of_each():
    pairs, rng = pairs_of(3), np.random.default_rng(1)
    rules = rng.uniform(-1, 1, (3, len(RULE_PARAMETERS)))
    expected = [alone(pair, rule)[0] for pair, rule in zip(pairs, rules, strict=True)]
    np.testing.assert_array_equal(play(pairs, rules, VARIED, 2), expected)
    np.testing.assert_array_equal(play(pairs, rules[0], VARIED, 2), [alone(pair, rules[0])[0] for pair in pairs])


def test_pairs_are_drawn_alike():
    tasks = VARIED.training
    pairs = draw_pairs(VARIED, 2000, np.random.default_rng(0))
    counts = [sum(task == one for task, _ in pairs) for one in tasks]
    assert len(tasks) == 4
    assert max(abs(count - 500) for count in counts) < 5 * (2000 * 0.25 * 0.75) ** 0.5
    assert len({seed for _, seed in pairs}) == 2000
    assert pairs[:7] == pairs_of(7)


def test_a_file_holds_one_distribution_or_several(tmp_path):
    path = tmp_path / "own.toml"
    path.write_text("validations = 1\nheld_outs = 0\n[values]\ntrain_size = [40, 60]\n")
    one = TaskDistribution({"train_size": [40, 60]}, validations=1, held_outs=0)  # pyright: ignore[reportArgumentType]
    assert distribution(str(path)) == one
    several = "".join(
        f"[[parts]]\nvalidations = 0\nheld_outs = 0\n[parts.values]\ntrain_size = [{n}]\n" for n in (40, 60)
    )
    path.write_text(several)
    assert [task.train_size for task in distribution(str(path)).training] == [40, 60]
    path.write_text(several + "depth = [1]\n")
    with pytest.raises(ValueError, match=r"own\.toml is no distribution of tasks: tasks have no 'depth'"):
        distribution(str(path))


class Refusing:
    def __call__(self, summaries, begun):
        raise ArithmeticError("no numbers today")


def test_an_episode_is_judged_at_its_end_by_the_baseline():
    """Members draw pairs, are reset one by one as they end, and get clipped points; all as restated here."""
    pairs, members, rule = pairs_of(6), 3, np.array([-0.5, 0.3, *[0.0] * (len(RULE_PARAMETERS) - 2)])
    accuracy = [alone(pair, rule)[0] for pair in pairs]
    baseline = np.array(accuracy) + np.array([-0.02, 0.0, 0.03, 0.5, -0.5, 0.01])
    env = training_env(VARIED, members, pairs, baseline.tolist())
    env.seed(4)
    draws, points = np.random.default_rng(4), [2.0, 0.0, -3.0, -10.0, 10.0, -1.0]
    at = draws.integers(len(pairs), size=members)
    begins = [SummaryEnv(**task.settings()).reset(seed=seed)[0] for task, seed in pairs]
    np.testing.assert_array_equal(env.reset(), [begins[i] for i in at])
    ended = []
    for _ in range(40):
        seen, rewards, dones, infos = env.step(np.tile(rule, (members, 1)))
        np.testing.assert_allclose(rewards, np.where(dones, [points[i] for i in at], 0.0), atol=1e-4)
        assert isinstance(seen, np.ndarray)
        ended += at[dones].tolist()
        if dones.any():
            at = np.where(dones, draws.integers(len(pairs), size=members), at)
            np.testing.assert_array_equal(seen[dones], [begins[i] for i in at[dones]])
        assert [("terminal_observation" in info) for info in infos] == dones.tolist()
    assert set(ended) == set(range(len(pairs)))
    env.close()


# In processes


def poles(members: int) -> SB3VecEnv:
    return SB3VecEnv(SyncVectorEnv([partial(gym.make, "CartPole-v1", max_episode_steps=12)] * members))


def cramped() -> SB3VecEnv:
    raise ValueError("no room")


def check_workers(workers: Workers) -> None:
    """Check that two workers do what this process does, and that what they raise arrives."""
    pairs = pairs_of(5)
    rules = np.random.default_rng(1).uniform(-1, 1, (5, len(RULE_PARAMETERS)))
    np.testing.assert_array_equal(workers.play(pairs, Steps()), play(pairs, Steps(), VARIED))
    np.testing.assert_array_equal(workers.play(pairs, rules), play(pairs, rules, VARIED))
    np.testing.assert_array_equal(workers.play(pairs[:1], FULL), play(pairs[:1], FULL, VARIED))
    with pytest.raises(ArithmeticError, match="no numbers today"):
        workers.play(pairs, Refusing())
    with pytest.raises(ValueError, match="no room"):
        ProcessVecEnv(workers, [cramped])
    parts, whole = ProcessVecEnv(workers, [partial(poles, 2), partial(poles, 1)]), poles(3)
    assert (parts.num_envs, parts.observation_space) == (3, whole.observation_space)
    assert parts.action_space == whole.action_space
    rng, ended = np.random.default_rng(0), 0
    for seed in (5, None):  # the second time they go on with their generators
        if seed is not None:
            parts.seed(seed)
            whole.seed(seed)
        np.testing.assert_array_equal(parts.reset(), whole.reset())
        for _ in range(40):
            actions = rng.integers(2, size=3)
            ours, theirs = parts.step(actions), whole.step(actions)
            np.testing.assert_equal(ours, theirs)
            ended += ours[2].sum()
    assert parts.episodes == ended > 5
    with pytest.raises(AssertionError, match="9"):
        parts.step(np.array([0, 1, 9]))


@pytest.mark.slow  # processes of its own
def test_processes_do_what_one_does():
    workers = Workers(VARIED, 2)
    try:
        check_workers(workers)
        (process,) = workers._pools[0]._processes.values()
        process.kill()
        with pytest.raises(Died, match="a process of the training environment died"):
            workers.play(pairs_of(2), FULL)
    finally:
        workers.close()


# The search of the best fixed rule


class Bowl:
    """Accuracy falls with the squared distance from a best rule; pairs differ by much more."""

    def __init__(self, best: NDArray):
        self.best, self.pairs = best, []

    def play(self, pairs, rules):
        self.pairs.append(pairs)
        luck = np.array([np.random.default_rng(seed).normal(0, 0.3) for _, seed in pairs])
        noise = np.random.default_rng(len(self.pairs)).normal(0, 0.01, len(pairs))
        return 0.8 + luck + noise - 0.1 * ((rules - self.best) ** 2).sum(axis=1)


def test_the_search_finds_the_best_rule():
    rng = np.random.default_rng(0)
    best = rng.uniform(-0.8, 0.8, len(RULE_PARAMETERS))
    workers, left = Bowl(best), iter([True] * 24 + [False])
    rule, episodes = search.fixed_rule(workers, VARIED, rng, lambda generations: next(left))  # pyright: ignore[reportArgumentType]
    assert np.abs(rule - best).max() < 0.2
    assert np.abs(rule - best).mean() < 0.08
    assert episodes == 25 * search.CANDIDATES * search.PAIRS == sum(map(len, workers.pairs))


def test_a_generation_is_tried_on_the_same_pairs_and_the_next_on_others():
    workers, left = Bowl(FULL), iter([True, True, False])
    search.fixed_rule(workers, VARIED, np.random.default_rng(0), lambda generations: next(left))  # pyright: ignore[reportArgumentType]
    generations = [set(pairs) for pairs in workers.pairs]
    assert [len(pairs) for pairs in generations] == [search.PAIRS] * 3
    assert len(set.union(*generations)) == 3 * search.PAIRS
    for pairs in workers.pairs:
        assert list(pairs) == list(pairs[: search.PAIRS]) * search.CANDIDATES
    assert {task for task, _ in set.union(*generations)} <= set(VARIED.training)
