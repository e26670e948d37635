"""Learned policies: their files, what they do in a run, and policies of Stable-Baselines3."""

from __future__ import annotations

import itertools
import json
import pickle
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import wrappers
from numpy.typing import NDArray
from scipy import stats
from stable_baselines3 import PPO, SAC
from stable_baselines3.common.vec_env import DummyVecEnv, VecFrameStack, VecNormalize
from torch import nn

from agents import make, rules, switches
from agents.learned import Learned
from agents.rules import RandomRule, Rule
from prune_env import PruneEnv
from prune_env.data import digits
from prune_env.policy import Learned as Shipped
from prune_env.policy import learned
from prune_env.policy.features import FEATURES, extract_features, initial_history, update_history
from prune_env.policy.learned import Network
from prune_env.policy.rules import RULE_PARAMETERS, apply_rule
from prune_env.policy.wrappers import RULE_STREAM, AgentChoice, SummaryEnv, SummaryObservation
from tests.helpers.observations import observe

SMALL = {"train_size": 50, "batch_size": 16, "lr": 0.1}


def network(seed: int = 0, hidden: str = "tanh", output: str = "clip", sizes=(5,), card: Any = None) -> Network:
    """Of random weights, large enough that its numbers reach the bounds here and there, as columns in memory."""
    rng, sizes = np.random.default_rng(seed), (len(FEATURES), *sizes, len(RULE_PARAMETERS))
    layers = [
        (np.asfortranarray(rng.normal(0, 0.4, (b, a)), np.float32), rng.normal(0, 0.3, b).astype(np.float32)[::-1])
        for a, b in itertools.pairwise(sizes)
    ]
    return Network(layers, hidden, output, card or {})


def summaries(count: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng([seed, 1]).uniform(-1, 1, (count, len(FEATURES))).astype(np.float32)


@pytest.fixture
def policy(tmp_path) -> Path:
    path = tmp_path / "policy.npz"
    network().save(path)
    return path


# Networks and their files


@pytest.mark.parametrize(("hidden", "output", "sizes"), [("tanh", "clip", (6, 5, 4)), ("relu", "tanh", ())])
def test_a_network_computes_what_torch_does(hidden, output, sizes):
    ours = network(1, hidden, output, sizes)
    parts: list[nn.Module] = []
    for weight, bias in ours.layers:
        linear = nn.Linear(weight.shape[1], weight.shape[0])
        linear.load_state_dict({"weight": torch.tensor(weight), "bias": torch.tensor(bias.copy())})
        parts += [linear, {"tanh": nn.Tanh, "relu": nn.ReLU}[hidden]()]
    parts[-1] = {"tanh": nn.Tanh, "clip": lambda: nn.Hardtanh(-1, 1)}[output]()
    x = summaries(40)
    with torch.no_grad():
        theirs = nn.Sequential(*parts)(torch.tensor(x)).numpy()
    np.testing.assert_allclose(ours(x), theirs, atol=1e-6)
    np.testing.assert_allclose(ours(x[3]), theirs[3], atol=1e-6)  # one run
    np.testing.assert_allclose(ours(x.reshape(4, 10, -1)), theirs.reshape(4, 10, -1), atol=1e-6)
    assert np.abs(theirs).max() <= 1
    assert theirs.std() > 0.1


def test_what_is_saved_is_loaded(tmp_path):
    """However the weights lie in memory."""
    card = {"tasks": {"budget": [3.0, 6.0]}, "steps": 12, "name": 'quo"te \\ é', "none": None}
    ours = network(2, "relu", "tanh", (9, 4), card)
    ours.save(tmp_path / "new" / "policy.npz")
    loaded = Network.load(tmp_path / "new" / "policy.npz")
    for mine, theirs in zip(ours.layers, loaded.layers, strict=True):
        for a, b in zip(mine, theirs, strict=True):
            assert a.dtype == b.dtype
            np.testing.assert_array_equal(a, b)
    assert (loaded.hidden, loaded.output, loaded.card) == ("relu", "tanh", card)


def test_damaged_and_foreign_files_are_named(policy):
    data, at = policy.read_bytes(), policy.read_bytes().index(b"1.weight") + 200
    flipped = data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]
    parts = (data[:n] for n in (0, 1, 8, 100, len(data) - 1))
    for content in (
        *parts,
        flipped,
        b"PK\x03\x04",
        pickle.dumps({}),
        Path(digits.__file__).with_name("digits.npz").read_bytes(),
    ):
        policy.write_bytes(content)
        with pytest.raises(ValueError, match=r"policy.npz is damaged, or no file of `prune-env learn`"):
            Network.load(policy)
    np.savez(policy, metadata=np.array('{"format": "another"}', "S"))
    with pytest.raises(ValueError, match=r"policy.npz has the format 'another'; it must be 'prune_env policy 2'"):
        Network.load(policy)
    with pytest.raises(FileNotFoundError, match=r"nowhere.npz"):
        Network.load(policy.with_name("nowhere.npz"))


@pytest.mark.parametrize(("name", "word"), [("FEATURES", "inputs"), ("RULE_PARAMETERS", "outputs")])
def test_policies_for_other_features_or_rules_are_refused(policy, monkeypatch, name, word):
    own = getattr(learned, name)
    monkeypatch.setattr(learned, name, (own[1], own[0], *own[2:]))
    with pytest.raises(ValueError, match=rf"policy.npz has other {word} than"):
        Network.load(policy)


class Payload:
    """Whoever unpickles it makes a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("suffix", [".zip", ".npz", ".pkl"])
def test_nothing_is_unpickled_without_trust(tmp_path, suffix):
    made, data = tmp_path / "made", pickle.dumps(Payload(tmp_path / "made"))
    pickled, zipped = tmp_path / f"pickled{suffix}", tmp_path / f"zipped{suffix}"
    pickled.write_bytes(data)
    with zipfile.ZipFile(zipped, "w") as file:
        file.writestr("data", json.dumps({"policy_class": {"__module__": "stable_baselines3.common.policies"}}))
        file.writestr("policy.pth", data)
    for path in (pickled, zipped):
        with pytest.raises(ValueError, match=path.name):
            make(f"learned:{path}")
    assert not made.exists()
    pickle.loads(data)
    assert made.exists()  # the trap works


# In a run


def play(agent, seed: int = 0, budget: float = 4.0) -> list[tuple[dict, dict]]:
    """Observations and actions of a run."""
    env = PruneEnv(**SMALL, budget=budget)
    observation, _ = env.reset(seed=seed)
    rng, found, over = np.random.default_rng([seed, 9]), [], False
    switches.reset(agent)
    while not over:
        action = agent(observation, rng)
        found.append((observation, action))
        observation, _, over, _, _ = env.step(action)
    return found


def restate(steps: list[tuple[dict, dict]], act: Callable[[NDArray], NDArray], seed: int = 0) -> None:
    """Compare actions with the rule of the numbers that `act` gives for each summary."""
    rng, history = np.random.default_rng([seed, 9]), initial_history()
    for observation, action in steps:
        n = len(observation["label"])
        numbers = act(extract_features(observation, history))
        expected = apply_rule(observation, numbers, rng.random((n, 2)))
        history = update_history(history, observation)
        np.testing.assert_array_equal(action["weight"], expected["weight"])
        np.testing.assert_array_equal(action["mixup"], expected["mixup"])
        assert not action["score"].any()


def test_it_does_what_its_network_says(policy):
    agent, network = Learned(path=str(policy)), Network.load(policy)
    steps = play(agent, budget=6.0)
    restate(steps, network)
    assert len({np.count_nonzero(action["weight"]) for _, action in steps}) > 1
    restate(play(agent, seed=1), network, seed=1)  # reset forgets the run before
    with pytest.raises(AssertionError):  # the history is part of what it sees
        restate(steps, lambda seen: network(np.where(np.array(FEATURES) == "last_kept", -1.0, seen)))


def test_the_shipped_policy():
    shipped = Network.load(learned.SHIPPED)
    restate(play(make("learned"), budget=3.0), shipped)
    assert {"tasks", "arguments", "validation", "code"} <= set(shipped.card)
    assert learned.SHIPPED.stat().st_size < 200_000
    numbers = shipped(summaries(200))
    assert numbers.shape == (200, len(RULE_PARAMETERS))
    assert numbers.std(axis=0).max() > 0.05  # it reacts to what it sees


def test_the_wheel_has_it_and_it_goes_on_from_its_state():
    agent, again = Shipped(), Shipped()
    steps = play(agent, seed=1)
    restate(steps, Network.load(learned.SHIPPED), seed=1)
    agent.reset()
    for observation, _ in steps[:2]:
        agent(observation, rng_of(0))
    again.load_state_dict(pickle.loads(pickle.dumps(agent.state_dict())))
    for one in (agent, again):
        one(steps[2][0], rng_of(0))
    actions = [one(steps[3][0], rng_of(0)) for one in (agent, again, Shipped())]
    np.testing.assert_equal(actions[0], actions[1])
    with pytest.raises(AssertionError):  # one that has seen nothing
        np.testing.assert_equal(actions[0], actions[2])


# Policies of Stable-Baselines3


class Shown(gym.Env):
    """Spaces for a policy that is never trained."""

    observation_space = gym.spaces.Box(-1.0, 1.0, (len(FEATURES),), np.float32)

    def __init__(self, action_space: gym.Space | None = None):
        self.action_space = action_space or gym.spaces.Box(-1.0, 1.0, (len(RULE_PARAMETERS),), np.float32)


def ppo(env: Any, **more: Any) -> PPO:
    return PPO("MlpPolicy", env, n_steps=8, batch_size=8, n_epochs=1, seed=0, **more)


ALGORITHMS: dict[str, Callable[..., Any]] = {  # on and off their own policy
    "ppo": ppo,
    "sac": lambda env: SAC("MlpPolicy", env, learning_starts=8, buffer_size=100, batch_size=8, seed=0),
}


def normalized(**settings) -> VecNormalize:
    env = {"train_size": 60, "budget": 1.0, "model": "mlp:4", "batch_size": 16}
    return VecNormalize(DummyVecEnv([lambda: SummaryEnv(**env)] * 2), **settings)


def trained(env: Any, path: Path, algo: str = "ppo") -> Any:
    model = ALGORITHMS[algo](env)
    model.learn(16)
    model.save(path)
    return model


@pytest.mark.parametrize("algo", ALGORITHMS)
def test_behind_vec_normalize_the_statistics_are_needed_and_used(algo, tmp_path):
    at, env = tmp_path / "x.zip", normalized(clip_obs=3.0)
    model = trained(env, at, algo)
    with pytest.raises(ValueError, match=r"x.zip was trained behind VecNormalize .*save them as .*x.pkl.* or train it"):
        make(f"learned:{at},trust=True")
    for content, words in ((b"junk", "cannot be loaded"), (pickle.dumps({"mean": 1}), "has no statistics")):
        (tmp_path / "x.pkl").write_bytes(content)
        with pytest.raises(ValueError, match=rf"x.pkl {words}"):
            make(f"learned:{at},trust=True")
    env.save(str(tmp_path / "x.pkl"))
    steps = play(make(f"learned:{at},trust=True"))
    mean, deviation = env.obs_rms.mean, np.sqrt(env.obs_rms.var + env.epsilon)  # pyright: ignore

    def act(seen: NDArray) -> NDArray:
        changed = np.clip((seen - mean) / deviation, -3.0, 3.0).astype(np.float32)
        return model.predict(changed, deterministic=True)[0]

    restate(steps, act)
    with pytest.raises(AssertionError):
        restate(steps, lambda seen: model.predict(seen, deterministic=True)[0])


@pytest.mark.parametrize("algo", ALGORITHMS)
def test_policies_of_stable_baselines3(algo, tmp_path):
    """Rewards that were normalized change nothing."""
    at = tmp_path / "model.zip"
    model = trained(normalized(norm_obs=False), at, algo)
    restate(play(make(f"learned:{at},trust=True")), lambda seen: model.predict(seen, deterministic=True)[0])
    with pytest.raises(ValueError, match=r"model.zip,trust=True.*npz file beside it"):
        make(f"learned:{at}")


REFUSED: dict[str, Callable[[], Any]] = {
    "acted within [0, 1]": lambda: wrappers.RescaleAction(Shown(), np.float32(0.0), np.float32(1.0)),
    "observed within [-inf, inf]": lambda: wrappers.NormalizeObservation(Shown()),
    "observed within [0, 1]": lambda: wrappers.RescaleObservation(Shown(), np.float32(0.0), np.float32(1.0)),
    "was not trained on summaries and rules": lambda: VecFrameStack(DummyVecEnv([Shown]), 2),
    "trained on summaries and rules, or agents": lambda: gym.make("CartPole-v1"),
    "was not trained on summaries": lambda: Shown(gym.spaces.Discrete(3, start=1)),
    "SummaryObservation": lambda: Shown(gym.spaces.MultiDiscrete([2] * len(RULE_PARAMETERS))),
}


def test_a_wrapper_that_keeps_the_space_and_changes_the_numbers_is_found(tmp_path):
    env = wrappers.TransformObservation(SummaryEnv(dataset="digits", train_size=100, budget=2.0), lambda x: 5 * x, None)
    trained(DummyVecEnv([lambda: env]), tmp_path / "x.zip")
    with pytest.raises(ValueError, match=r"x.zip observed 5 in training.* such as TransformObservation"):
        make(f"learned:{tmp_path / 'x.zip'},trust=True")


@pytest.mark.parametrize("words", REFUSED)
def test_policies_that_saw_or_did_other_numbers_are_refused(words, tmp_path):
    ppo(REFUSED[words]()).save(tmp_path / "x.zip")
    with pytest.raises(ValueError) as error:  # noqa: PT011
        make(f"learned:{tmp_path / 'x.zip'},trust=True")
    assert words in str(error.value)


def test_a_recurrent_policy_where_sb3_contrib_is_installed(tmp_path, monkeypatch):
    contrib, at = pytest.importorskip("sb3_contrib"), tmp_path / "x.zip"
    model = contrib.RecurrentPPO("MlpLstmPolicy", Shown(), n_steps=8, batch_size=8)
    model.save(at)
    agent: Any = make(f"learned:{at},trust=True")
    for seed in (0, 1):  # the second only goes well if a reset forgets
        state: Any = None

        def act(seen: NDArray) -> NDArray:
            nonlocal state
            first = np.array([state is None])
            numbers, state = model.predict(seen, state=state, episode_start=first, deterministic=True)
            return numbers

        restate(play(agent, seed), act, seed)
    monkeypatch.setitem(sys.modules, "sb3_contrib", None)
    with pytest.raises(ValueError, match="needs sb3_contrib: pip install sb3-contrib"):
        make(f"learned:{at},trust=True")


@pytest.mark.parametrize("data", [None, "[]", "no json", '{"policy_class": {}}'])
def test_zips_that_are_none_of_stable_baselines3(tmp_path, data):
    at = tmp_path / "model.zip"
    with zipfile.ZipFile(at, "w") as file:
        file.writestr("other", "")
        if data is not None:
            file.writestr("data", data)
    for _ in range(2):
        with pytest.raises(ValueError, match=r"model.zip is damaged, or no zip of Stable-Baselines3"):
            Learned(path=str(at), trust=True)
        at.write_bytes(at.read_bytes()[:20])


# Policies that choose among agents


def choosing(path: Path, choices: int) -> str:
    """Save a policy of random weights that chooses among as many agents; the beginning of its spec."""
    model = ppo(Shown(gym.spaces.Discrete(choices)))
    decisive(model)
    model.save(path)
    return f"learned:{path},trust=True"


def decisive(model: Any) -> None:
    """Let what a policy chooses depend on what it sees, without much training."""
    with torch.no_grad():
        for parameter in model.policy.parameters():
            parameter.mul_(8.0)


class Recorded(gym.Wrapper):
    """Keeps what its env was asked to do."""

    def step(self, action):
        self.action = action
        return self.env.step(action)


def test_it_does_what_the_wrapper_does(tmp_path):
    """Step by step, in two episodes: the second only goes well if a reset forgets."""
    among = ["random:keep=0.6", "infobatch", "ucb:keep=0.3,c=2", "seta"]
    within = Recorded(PruneEnv(budget=6.0, **SMALL))
    env = SummaryObservation(AgentChoice(within, {spec: make(spec) for spec in among}))
    model = ppo(env)
    decisive(model)
    model.save(tmp_path / "model.zip")
    agent: Any = make(f"learned:{tmp_path / 'model.zip'},trust=True,agents={'/'.join(among)}")
    alone, chosen = PruneEnv(budget=6.0, **SMALL), set()
    for seed in (0, 1):
        seen, info = env.reset(seed=seed)
        observation, _ = alone.reset(seed=seed)
        rng, over = np.random.default_rng([info["seed"], RULE_STREAM]), False
        switches.reset(agent)
        while not over:
            choice, _ = model.predict(seen, deterministic=True)
            chosen.add(int(choice))
            seen, reward, over, _, info = env.step(choice)
            action = agent(observation, rng)
            for name, values in within.action.items():
                np.testing.assert_array_equal(action[name], values)
            observation, its, ended, _, told = alone.step(action)
            assert (its, ended, told["total_spent"]) == (reward, over, info["total_spent"])
    assert len(chosen) > 1


def test_it_needs_as_many_agents_as_it_chooses_among(tmp_path):
    spec = choosing(tmp_path / "policy.zip", 3)
    agent: Any = make(f"{spec},agents=full/ucb:keep=0.3,c=2/random")
    assert agent.agents == [make(one) for one in ("full", "ucb:keep=0.3,c=2", "random")]
    for given, count in (("", 0), (",agents=full/random/full/full", 4)):
        with pytest.raises(ValueError, match=rf"is given {count} agents, but it chooses among 3: name them.*FIRST/"):
            make(spec + given)


# Rules without a network


def rng_of(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_a_rule_is_its_numbers():
    settings = {"keep": 0.3, "loss": -0.4, "middle": 0.5, "volatility": 1.0, "age": -1.0, "randomness": -0.2}
    settings |= {"weighting": 0.7, "mixup": 0.25, "balance": 0.3, "need": -0.1, "wrong": 0.8, "right": -0.6}
    numbers = np.array([1 + 2 * np.log10(0.3), -0.4, 0.5, 1.0, -1.0, -0.2, 0.7, -0.5, 0.3, -0.1, 0.8, -0.6])
    observation = observe(4)
    agent, rng = make("rule:" + ",".join(f"{name}={value}" for name, value in settings.items())), rng_of(3)
    agent(observation, rng)
    action = agent(observation, rng)
    rng = rng_of(3)
    rng.random((60, 2))
    expected = apply_rule(observation, numbers, rng.random((60, 2)))
    np.testing.assert_allclose(action["weight"], expected["weight"], rtol=1e-6)
    np.testing.assert_array_equal(action["mixup"], expected["mixup"])
    assert np.count_nonzero(action["weight"]) == 18


def test_rules_at_their_ends():
    observation = observe(1, n=50, unseen=0.0)
    for keep in (0.1, 0.25, 0.5, 1):
        action = Rule(keep=keep)(observation, rng_of(0))
        assert np.count_nonzero(action["weight"]) == round(keep * 50)
        assert not action["mixup"].any()
        assert not action["score"].any()
    largest = Rule(keep=0.2, loss=1, randomness=-1)(observation, rng_of(0))["weight"] > 0
    assert set(np.flatnonzero(largest)) == set(np.argsort(-observation["loss_mean"])[:10])
    assert tuple(vars(Rule())) == RULE_PARAMETERS


def test_random_rules_are_uniform(monkeypatch):
    observation, seen = observe(0, n=20), []

    def note(observation, numbers, draws):
        seen.append(numbers)
        return apply_rule(observation, numbers, draws)

    monkeypatch.setattr(rules, "apply_rule", note)
    agent, rng = RandomRule(), rng_of(0)
    for _ in range(400):
        agent(observation, rng)
    numbers = np.array(seen)
    assert numbers.shape == (400, len(RULE_PARAMETERS))
    for column in numbers.T:
        assert stats.kstest(column, "uniform", (-1, 2)).pvalue > 0.001
    correlations = np.corrcoef(numbers.T) - np.eye(len(RULE_PARAMETERS))
    assert np.abs(correlations).max() < 5 / 400**0.5
