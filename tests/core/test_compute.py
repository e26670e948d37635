"""Compute: the ledger against fractions, against the rows that go through the student, and what an episode costs."""

from collections import Counter
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch.nn.modules.module import register_module_forward_hook

from agents import AGENTS, make
from prune_env import PruneEnv, select
from prune_env.budget import Ledger
from prune_env.policy.vector import PruneVectorEnv
from tests.helpers.runs import digits

# ---------------------------------------------------------------- the ledger


def test_a_pass_counted_by_hand():
    ledger = Ledger(n=10, budget=2.5)
    assert (ledger.total, ledger.used, ledger.affordable, ledger.spent, ledger.share) == (75, 0, 25, 0, 0)
    ledger.train += 10
    assert (ledger.spent, ledger.share, ledger.affordable) == (1.0, 0.4, 15)
    ledger.score += 10  # a forward pass alone is a third
    assert ledger.spent == pytest.approx(4 / 3)
    assert ledger.affordable == 11  # 35 thirds are left
    ledger.evaluate += 1000
    assert ledger.spent == pytest.approx(4 / 3)
    ledger.train += 11
    assert (ledger.used, ledger.affordable) == (73, 0)


@pytest.mark.parametrize(
    ("budget", "n", "samples"), [(0.7, 10, 7), (4.1, 30, 123), (0.29, 100, 29), (98.0, 1000, 98_000)]
)
def test_rounding_of_the_budget_loses_no_sample(budget, n, samples):
    assert Ledger(n, budget).affordable == samples


@given(
    n=st.integers(1, 2**40),
    thousandths=st.integers(1, 10**6),
    steps=st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), max_size=8),
)
@settings(max_examples=60)
def test_a_ledger_agrees_with_fractions_and_lets_no_more_be_spent_than_there_is(n, thousandths, steps):
    budget, ledger = Fraction(thousandths, 1000), Ledger(n, thousandths / 1000)
    assume(1 <= budget * n * 3 < 2**50)  # of a float's 53 digits
    assert abs(ledger.total - budget * n * 3 // 1) <= ledger.total * Fraction(1, 10**14)
    for train, score in steps:
        k = int(train * ledger.affordable)
        k, s = ledger.fit(k, int(score * ledger.total))
        ledger.train += k
        ledger.score += s
        charged = 3 * ledger.train + ledger.score
        assert ledger.used == charged <= ledger.total
        assert ledger.affordable == (ledger.total - charged) // 3
        assert 0.0 <= ledger.share <= 1.0
        assert ledger.spent == pytest.approx(charged / 3 / n, rel=1e-14)


# ---------------------------------------------------------------- what goes through the student


def play_and_count(agent, budget: float, **settings) -> tuple[PruneEnv, Counter]:
    """An episode of 150 samples, and rows through the student by its mode: True in training, False in evaluation."""
    passes: list[tuple[object, bool, int]] = []
    hook = register_module_forward_hook(
        lambda module, args, out: passes.append((module, module.training, len(args[0])))
    )
    try:
        env = digits(train_size=150, budget=budget, **settings)
        observation, _ = env.reset(seed=0)
        rng, done = np.random.default_rng(0), False
        getattr(agent, "reset", lambda: None)()
        while not done:
            observation, _, done, *_ = env.step(agent(observation, rng))
    finally:
        hook.remove()
    rows: Counter = Counter()
    assert env.trainer is not None
    for module, training, count in passes:
        if module is env.trainer.model:
            rows[training] += count
    return env, rows


def scoring(observation, rng):
    """Mix and score some of the rows: a mixed one goes through the network once."""
    return select(rng.random(150) < 0.5, 0.5 * (rng.random(150) < 0.5), rng.random(150) < 0.4)


SCORE = {"scoring", "grand", "kakurenbo", "pdd", "selective_backprop"}  # the others never do, or not so soon


@pytest.mark.parametrize("name", ["scoring", *AGENTS, "kakurenbo+mixup=0.5", "same_amounts:kakurenbo"])
def test_every_row_that_an_agent_causes_is_charged(name, tmp_path):
    np.save(tmp_path / "reference.npy", np.arange(1300))  # free; only `rho_loss` reads it
    settings = {"budget": 3.3, "reference": str(tmp_path / "reference.npy")}
    env, rows = play_and_count(scoring if name == "scoring" else make(name), **settings)
    assert env.trainer is not None
    ledger = env.trainer.ledger
    scored = rows[False] - ledger.evaluate  # in evaluation mode, but not of validation
    assert (ledger.train, ledger.score) == (rows[True], scored)
    assert ledger.spent == pytest.approx((rows[True] + scored / 3) / 150)
    assert (scored > 0) == (name.partition("+")[0] in SCORE)
    assert ledger.evaluate % len(env.val_data) == 0
    assert 0 <= 3 * 495 - 3 * rows[True] - scored < 3 * 16  # all of the budget is used, but for a part of a batch


def test_validation_is_counted_apart_and_free_and_seconds_are_measured_beside_it():
    env, rows = play_and_count(lambda observation, rng: select(np.arange(150) < 100), budget=2.0)
    assert env.trainer is not None
    ledger = env.trainer.ledger
    assert rows == {True: 300, False: 4 * 260}  # before the run and after each of three steps
    env.trainer.evaluate(env.val_data)
    assert (ledger.spent, ledger.evaluate) == (2.0, 5 * 260)
    assert set(ledger.seconds) == {"train", "score", "evaluate"}
    assert min(ledger.seconds["train"], ledger.seconds["evaluate"]) > 0


# ---------------------------------------------------------------- the accounts of an episode


def any_action(rng: np.random.Generator, n: int) -> dict[str, np.ndarray]:
    """An action of any kind: none, one, some or all, to train on and to score, at any weight and share."""

    def some(bound: float) -> np.ndarray:
        share = rng.choice([0.0, 1 / n, 0.3, 0.8, 1.0], p=[0.1, 0.2, 0.3, 0.3, 0.1])
        return (rng.permutation(n) < round(share * n)) * rng.choice([bound, bound / 10, rng.uniform(0, bound)])

    return {"weight": some(10.0), "mixup": some(0.5), "score": some(1.0)}


class Account:
    """What one episode must come to, in whole thirds of a sample."""

    def __init__(self, n: int, budget: float, price: float, val_accuracy: float):
        self.n, self.budget, self.price = n, Fraction(str(budget)), price
        self.first = self.last = val_accuracy
        self.thirds, self.reward, self.spent = 0, 0.0, 0.0

    def book(self, obs: dict[str, np.ndarray], reward: float, terminated: bool, info: dict[str, Any]) -> None:
        """Check one step."""
        step = 3 * int(info["trained"]) + int(info["scored"])
        self.thirds += step
        self.reward += reward
        self.spent += info["spent"]
        whole = 3 * self.n * self.budget // 1
        assert self.thirds <= whole
        assert info["spent"] == pytest.approx(step / 3 / self.n, rel=1e-12)
        assert info["total_spent"] == pytest.approx(self.thirds / 3 / self.n, rel=1e-12)
        assert info["total_spent"] == pytest.approx(self.spent, rel=1e-12)
        assert obs["spent"][0] == pytest.approx(self.thirds / float(whole), rel=1e-6)
        gained = (info["val_accuracy"] - self.last) / float(self.budget)
        assert reward == pytest.approx(gained - self.price * step / 3 / self.n, abs=1e-9)
        self.last = info["val_accuracy"]
        gained = (self.last - self.first) / float(self.budget)
        assert self.reward == pytest.approx(gained - self.price * self.spent, abs=1e-9)  # it telescopes
        assert bool(info["cut"]) <= (self.thirds > whole - 3)  # cut only where nothing is left
        assert info["mixed"] <= info["trained"] <= round(info["kept"] * self.n)
        if terminated and step and not info["diverged"]:
            assert whole - self.thirds < 3 * min(self.n, 8)  # less than a batch
            assert info["lr"] == 0.0  # fully decayed


TENTHS, RATES = st.integers(10, 45), st.sampled_from([0.1, 1e30])


@given(
    seed=st.integers(0, 2**32 - 1), n=st.integers(10, 30), tenths=TENTHS, price=st.sampled_from([0.0, 0.3]), lr=RATES
)
@settings(max_examples=12)
def test_episodes_of_any_actions_keep_their_accounts(seed, n, tenths, price, lr):
    budget, rng = tenths / 10, np.random.default_rng(seed)
    env = digits(train_size=n, budget=budget, price=price, model="mlp:4", batch_size=8, lr=lr)
    _, info = env.reset(seed=seed)
    account, terminated = Account(n, budget, price, info["val_accuracy"]), False
    while not terminated:
        obs, reward, terminated, _, info = env.step(any_action(rng, n))
        account.book(obs, reward, terminated, info)


@given(seed=st.integers(0, 2**32 - 1), tenths=st.lists(TENTHS, min_size=3, max_size=3))
@settings(max_examples=4)
def test_members_of_a_vector_keep_their_accounts(seed, tenths):
    sizes, budgets, rng = [30, 17, 22], [t / 10 for t in tenths], np.random.default_rng(seed)
    task: dict[str, Any] = {"train_size": sizes, "budget": budgets, "lr": [0.1, 1e30, 0.2]}
    env = PruneVectorEnv(3, model="mlp:4", batch_size=8, price=0.2, **task)
    _, infos = env.reset(seed=seed)
    starts = infos["val_accuracy"]
    accounts = [Account(n, budget, 0.2, start) for n, budget, start in zip(sizes, budgets, starts, strict=True)]
    ended = np.zeros(3, bool)
    for _ in range(12):
        each = [any_action(rng, 30) for _ in sizes]
        obs, rewards, terminated, _, infos = env.step({name: np.stack([a[name] for a in each]) for name in each[0]})
        for k in range(3):
            info = {name: values[k] for name, values in infos.items()}
            if ended[k]:  # this step has only reset it
                accounts[k] = Account(sizes[k], budgets[k], 0.2, info["val_accuracy"])
            else:
                accounts[k].book({name: values[k] for name, values in obs.items()}, rewards[k], terminated[k], info)
        ended = terminated
