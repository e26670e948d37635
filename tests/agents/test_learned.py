"""Learned policies: their files, what they do in a run, and those of Stable-Baselines3."""

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
import safetensors.numpy
import torch
from gymnasium import wrappers
from numpy.typing import NDArray
from scipy import stats
from stable_baselines3 import A2C, DQN, PPO, SAC
from stable_baselines3.common.vec_env import DummyVecEnv, VecFrameStack, VecNormalize
from torch import nn

import agents
from agents import learned, make, rules, spec_with_keep, switches
from agents.bandits import UCB
from agents.baselines import Full, Random
from agents.learned import Learned, Network
from agents.rules import RandomRule, Rule
from agents.switches import SameAmounts, Switched
from prune_env import PruneEnv
from prune_env.policy.features import FEATURES, extract_features, initial_history, update_history
from prune_env.policy.rules import RULE_PARAMETERS, apply_rule
from prune_env.policy.wrappers import RULE_STREAM, AgentChoice, SummaryEnv, SummaryObservation
from tests.helpers.observations import observe

SMALL = {"train_size": 50, "batch_size": 16, "lr": 0.1}


def network(seed: int = 0, hidden: str = "tanh", output: str = "clip", sizes=(5,), card: Any = None) -> Network:
    """Of random weights, large enough that its numbers reach the bounds here and there."""
    rng, sizes = np.random.default_rng(seed), (len(FEATURES), *sizes, len(RULE_PARAMETERS))
    layers = [
        (rng.normal(0, 0.4, (b, a)).astype(np.float32), rng.normal(0, 0.3, b).astype(np.float32))
        for a, b in itertools.pairwise(sizes)
    ]
    return Network(layers, hidden, output, card or {})


def summaries(count: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng([seed, 1]).uniform(-1, 1, (count, len(FEATURES))).astype(np.float32)


@pytest.fixture
def policy(tmp_path) -> Path:
    path = tmp_path / "policy.safetensors"
    network().save(path)
    return path


# Networks and their files


@pytest.mark.parametrize(("hidden", "output", "sizes"), [("tanh", "clip", (6, 5, 4)), ("relu", "tanh", ())])
def test_a_network_computes_what_torch_does(hidden, output, sizes):
    ours = network(1, hidden, output, sizes)
    parts: list[nn.Module] = []
    for weight, bias in ours.layers:
        linear = nn.Linear(weight.shape[1], weight.shape[0])
        linear.load_state_dict({"weight": torch.tensor(weight), "bias": torch.tensor(bias)})
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
    card = {"tasks": {"budget": [3.0, 6.0]}, "steps": 12, "name": 'quo"te \\ é', "none": None}
    ours = network(2, "relu", "tanh", (9, 4), card)
    ours.save(tmp_path / "new" / "policy.safetensors")
    loaded = Network.load(tmp_path / "new" / "policy.safetensors")
    for mine, theirs in zip(ours.layers, loaded.layers, strict=True):
        for a, b in zip(mine, theirs, strict=True):
            assert a.dtype == b.dtype
            np.testing.assert_array_equal(a, b)
    assert (loaded.hidden, loaded.output, loaded.card) == ("relu", "tanh", card)
    np.testing.assert_array_equal(ours(summaries(5)), loaded(summaries(5)))
    assert set(safetensors.numpy.load_file(tmp_path / "new" / "policy.safetensors")) == {
        f"{i}.{part}" for i in range(3) for part in ("weight", "bias")
    }


def test_weights_are_saved_however_they_lie_in_memory(tmp_path):
    weight, bias = network().layers[0]
    wide = np.repeat(weight.astype(np.float64), 2, axis=1)[:, ::2]
    ours = Network(
        [(np.asfortranarray(weight), bias[::-1]), (wide[:5, :8].T, np.arange(16.0)[::2])], "tanh", "clip", {}
    )
    ours.save(tmp_path / "policy.safetensors")
    for mine, theirs in zip(ours.layers, Network.load(tmp_path / "policy.safetensors").layers, strict=True):
        np.testing.assert_array_equal(mine[0], theirs[0])
        np.testing.assert_array_equal(mine[1], theirs[1])


def test_damaged_and_foreign_files_are_named(policy):
    data = policy.read_bytes()
    for content in (*(data[:n] for n in (0, 1, 8, 100, len(data) - 1)), data + b"\0", b"PK\x03\x04", pickle.dumps({})):
        policy.write_bytes(content)
        with pytest.raises(ValueError, match=r"policy.safetensors is damaged, or no safetensors file"):
            Network.load(policy)
    for metadata in (None, {"format": "pt"}):
        safetensors.numpy.save_file({"a": np.zeros(3, np.float32)}, policy, metadata)
        with pytest.raises(ValueError, match=r"policy.safetensors has the format .* 'prune_env policy 1'"):
            Network.load(policy)
    safetensors.numpy.save_file({"a": np.zeros(3, np.float32)}, policy, {"format": learned.FORMAT})
    with pytest.raises(ValueError, match=r"policy.safetensors is damaged"):
        Network.load(policy)
    with pytest.raises(FileNotFoundError, match=r"nowhere.safetensors"):
        Network.load(policy.with_name("nowhere.safetensors"))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"hidden": "gelu"}, "hidden is 'gelu'; it must be tanh or relu"),
        ({"output": "none"}, "output is 'none'; it must be clip or tanh"),
        ({"layers": []}, "0 layers end in 43 numbers; they must end in 8"),
        ({"layers": [(np.zeros((8, 42)), np.zeros(8))]}, r"layer 0 has weights \(8, 42\) .* its inputs are 43"),
        ({"layers": [(np.zeros((5, 43)), np.zeros(5)), (np.zeros((8, 6)), np.zeros(8))]}, "layer 1 .* inputs are 5"),
        ({"layers": [(np.zeros((7, 43)), np.zeros(7))]}, "1 layers end in 7 numbers; they must end in 8"),
        ({"layers": [(np.full((8, 43), np.nan), np.zeros(8))]}, "layer 0 has weights that are not finite"),
        ({"layers": [(np.zeros((8, 43)), np.full(8, np.inf))]}, "layer 0 has weights that are not finite"),
    ],
)
def test_networks_that_are_no_policies_are_refused_when_they_are_loaded(change, words, tmp_path):
    path = tmp_path / "own.safetensors"
    sound: dict[str, Any] = {"layers": [(np.zeros((8, 43)), np.zeros(8))], "hidden": "tanh", "output": "clip"}
    Network(**sound, card={}).save(path)
    assert Network.load(path)(np.zeros(43)).tolist() == [0.0] * 8
    Network(**{**sound, **change}, card={}).save(path)
    with pytest.raises(ValueError, match=words):
        Network.load(path)


@pytest.mark.parametrize(("name", "word"), [("FEATURES", "inputs"), ("RULE_PARAMETERS", "outputs")])
def test_policies_for_other_features_or_rules_are_refused(policy, monkeypatch, name, word):
    own = getattr(learned, name)
    for other in ((*own, "more"), (own[1], own[0], *own[2:])):
        monkeypatch.setattr(learned, name, other)
        with pytest.raises(ValueError, match=rf"policy.safetensors has other {word} than"):
            Network.load(policy)


class Payload:
    """Whoever unpickles it makes a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("suffix", [".zip", ".safetensors", ".pkl"])
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


def play(agent, seed: int = 0, **settings) -> list[tuple[dict, dict]]:
    """Observations and actions of a run."""
    env = PruneEnv(**settings)
    observation, _ = env.reset(seed=seed)
    rng, found, over = np.random.default_rng([seed, 9]), [], False
    getattr(agent, "reset", lambda: None)()
    while not over:
        action = agent(observation, rng)
        found.append((observation, action))
        observation, _, over, _, _ = env.step(action)
    return found


def restate(steps: list[tuple[dict, dict]], act: Callable[[NDArray], NDArray], seed: int = 0) -> None:
    """Compare actions with those of the numbers that `act` gives for each summary."""
    rng, history = np.random.default_rng([seed, 9]), initial_history()
    for observation, action in steps:
        n = len(observation["label"])
        numbers = act(extract_features(observation, history))
        expected = apply_rule(observation, numbers, rng.random((n, 2)))
        history = update_history(history, observation)
        np.testing.assert_array_equal(action["weight"], expected["weight"])
        np.testing.assert_array_equal(action["mixup"], expected["mixup"])
        assert not action["score"].any()


@pytest.mark.parametrize(
    "settings", [{"budget": 1.0}, {"budget": 9.0, "model": "mlp:4"}, {"budget": 4.0, "imbalance": 3.0}], ids=str
)
def test_it_does_what_its_network_says(policy, settings):
    agent = Learned(path=str(policy))
    first = play(agent, **SMALL, **settings)
    restate(first, network())
    assert len({np.count_nonzero(action["weight"]) for _, action in first}) > 1 or len(first) < 4
    again = play(agent, seed=1, **SMALL, **settings)  # reset forgets the run before
    restate(again, network(), seed=1)
    other = play(Learned(path=str(policy)), **SMALL, **settings)
    for (_, a), (_, b) in zip(first, other, strict=True):
        np.testing.assert_array_equal(a["weight"], b["weight"])


def test_the_history_is_part_of_what_it_sees(policy):
    """Else the comparison above would say nothing of `update_history`."""
    steps = play(Learned(path=str(policy)), budget=6.0, **SMALL)
    with pytest.raises(AssertionError):
        restate(steps, lambda seen: network()(np.where(np.array(FEATURES) == "last_kept", -1.0, seen)))


def test_specs(policy, tmp_path):
    spec = f"learned:{policy}"
    assert make(spec) == Learned(path=str(policy))
    assert make(f"{spec},trust=False") == Learned(path=str(policy))
    assert make(f"{spec},trust=True") == Learned(path=str(policy), trust=True)  # nothing to trust
    switched = make(f"{spec}+anneal=0.25+mixup=0.5")
    assert switched == Switched(agent=Learned(path=str(policy)), anneal=0.25, mixup=0.5)
    assert make(f"same_amounts:{spec}") == SameAmounts(agent=Learned(path=str(policy)))
    both = make(f"same_amounts:{spec},trust=True+anneal=0.25")
    assert both == Switched(agent=SameAmounts(agent=Learned(path=str(policy), trust=True)), anneal=0.25)
    odd = tmp_path / "it's é, and more.safetensors"
    odd.write_bytes(policy.read_bytes())
    assert make(f"learned:{odd}") == Learned(path=str(odd))
    assert make(f"learned:{odd},trust=True") == Learned(path=str(odd), trust=True)
    for one in (spec, f"{spec},trust=True", f"same_amounts:{spec}+mixup=0.5", "rule:keep=0.3,loss=-1", "random_rule"):
        agents.check(one)
    for unchanged in (spec, f"same_amounts:{spec}", "learned", "random_rule", f"{spec}+mixup=0.5"):
        assert spec_with_keep(unchanged, 0.3) == unchanged
    assert spec_with_keep("rule:loss=1", 0.3) == "rule:keep=0.3,loss=1"


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("learned:{},trust=1", ["trust must be True or False", "1"]),
        ("learned:{},trust='no'", ["trust must be True or False"]),
        ("learned:{},keep=0.5", ["policy.safetensors,keep=0.5 cannot be read", "No such file"]),
        ("learned:{}x", ["policy.safetensorsx cannot be read", "No such file"]),
        ("learned:nowhere.zip,trust=True", ["policy nowhere.zip cannot be read", "No such file"]),
        ("same_amounts:learned:nowhere.safetensors", ["policy nowhere.safetensors cannot be read"]),
    ],
)
def test_specs_that_are_wrong(policy, spec, words):
    for build in (make, agents.check):
        with pytest.raises(ValueError) as error:  # noqa: PT011
            build(spec.format(policy))
        for word in words:
            assert word in str(error.value)


def test_the_shipped_policy():
    shipped = Network.load(learned.SHIPPED)
    assert make("learned") == Learned() == Learned(path=str(learned.SHIPPED))
    agents.check("learned")
    restate(play(make("learned"), budget=3.0, **SMALL), shipped)
    assert {"tasks", "arguments", "validation", "code"} <= set(shipped.card)
    assert learned.SHIPPED.stat().st_size < 200_000
    numbers = shipped(summaries(200))
    assert numbers.shape == (200, len(RULE_PARAMETERS))
    assert numbers.std(axis=0).max() > 0.05  # it reacts to what it sees


# Policies of Stable-Baselines3


ALGORITHMS: dict[str, Callable[..., Any]] = {
    "ppo": lambda env: PPO("MlpPolicy", env, n_steps=8, batch_size=8, n_epochs=1, seed=0),
    "a2c": lambda env: A2C("MlpPolicy", env, n_steps=8, seed=0),
    "sac": lambda env: SAC("MlpPolicy", env, learning_starts=8, buffer_size=100, batch_size=8, seed=0),
}


def summary_env() -> gym.Env:
    return SummaryEnv(train_size=60, budget=1.0, model="mlp:4", batch_size=16)


def trained(env: Any, path: Path, algo: str = "ppo") -> Any:
    model = ALGORITHMS[algo](env)
    model.learn(16)
    model.save(path)
    return model


@pytest.mark.parametrize("algo", ALGORITHMS)
def test_policies_of_stable_baselines3(algo, tmp_path):
    at = tmp_path / "model.zip"
    model = trained(summary_env(), at, algo)
    steps = play(make(f"learned:{at},trust=True"), budget=4.0, **SMALL)
    assert len(steps) > 3
    restate(steps, lambda seen: model.predict(seen, deterministic=True)[0])
    with pytest.raises(ValueError, match=r"model.zip,trust=True.*safetensors file beside it"):
        make(f"learned:{at}")


def test_a_policy_keeps_the_share_that_it_was_trained_at(tmp_path):
    env = summary_env()
    model: Any = PPO("MlpPolicy", env, n_steps=8, batch_size=8, n_epochs=1, seed=0, learning_rate=1e-6)
    with torch.no_grad():
        model.policy.action_net.weight.zero_()
        model.policy.action_net.bias[0] = np.log10(0.4) * 2 + 1
    model.learn(16)
    model.save(tmp_path / "x.zip")
    steps = play(make(f"learned:{tmp_path / 'x.zip'},trust=True"), budget=3.0, **SMALL)
    assert {np.count_nonzero(action["weight"]) for _, action in steps} == {20}  # of 50


def normalized(**settings) -> VecNormalize:
    return VecNormalize(DummyVecEnv([summary_env] * 2), **settings)


@pytest.mark.parametrize("algo", ALGORITHMS)
def test_behind_vec_normalize_the_statistics_are_needed_and_used(algo, tmp_path):
    at, env = tmp_path / "x.zip", normalized(clip_obs=3.0)
    model = trained(env, at, algo)
    with pytest.raises(ValueError, match=r"x.zip was trained behind VecNormalize .*save them as .*x.pkl.* or train it"):
        make(f"learned:{at},trust=True")
    env.save(str(tmp_path / "x.pkl"))
    agent: Any = make(f"learned:{at},trust=True")
    steps = play(agent, budget=4.0, **SMALL)
    mean, deviation = env.obs_rms.mean, np.sqrt(env.obs_rms.var + env.epsilon)  # pyright: ignore

    def act(seen: NDArray) -> NDArray:
        changed = np.clip((seen - mean) / deviation, -3.0, 3.0).astype(np.float32)
        return model.predict(changed, deterministic=True)[0]

    restate(steps, act)
    with pytest.raises(AssertionError):
        restate(steps, lambda seen: model.predict(seen, deterministic=True)[0])


def test_behind_vec_normalize_of_rewards_alone_nothing_changes(tmp_path):
    at, env = tmp_path / "x.zip", normalized(norm_obs=False)
    model = trained(env, at)
    env.save(str(tmp_path / "x.pkl"))
    steps = play(make(f"learned:{at},trust=True"), budget=3.0, **SMALL)
    restate(steps, lambda seen: model.predict(seen, deterministic=True)[0])


def test_statistics_of_something_else_are_named(tmp_path):
    at = tmp_path / "x.zip"
    trained(normalized(), at)
    for content, words in ((b"junk", "cannot be loaded"), (pickle.dumps({"mean": 1}), "has no statistics")):
        (tmp_path / "x.pkl").write_bytes(content)
        with pytest.raises(ValueError, match=rf"x.pkl {words}"):
            make(f"learned:{at},trust=True")


RESCALED: dict[str, Callable[[gym.Env], Any]] = {
    "rescaled actions": lambda env: wrappers.RescaleAction(env, np.float32(0.0), np.float32(1.0)),
    "normalized": wrappers.NormalizeObservation,
    "rescaled": lambda env: wrappers.RescaleObservation(env, np.float32(0.0), np.float32(1.0)),
    "transformed": lambda env: wrappers.TransformObservation(
        env, lambda seen: 5.0 * seen, gym.spaces.Box(-5.0, 5.0, (len(FEATURES),))
    ),
    "transformed within the old space": lambda env: wrappers.TransformObservation(env, lambda seen: 5.0 * seen, None),
    "stacked": lambda env: VecFrameStack(DummyVecEnv([lambda: env]), 2),
    "with the time": wrappers.TimeAwareObservation,
}


@pytest.mark.parametrize("wrap", RESCALED.values(), ids=RESCALED)
def test_policies_trained_behind_a_wrapper_that_changes_numbers_are_refused(wrap, tmp_path):
    env = wrappers.TimeLimit(summary_env(), 50) if wrap is wrappers.TimeAwareObservation else summary_env()
    trained(wrap(env), tmp_path / "x.zip")
    with pytest.raises(ValueError, match=r"policy .*x.zip (observed|acted|was not trained on summaries)"):
        make(f"learned:{tmp_path / 'x.zip'},trust=True")


@pytest.mark.parametrize("wrap", [wrappers.FlattenObservation, wrappers.NormalizeReward], ids=["flat", "reward"])
def test_policies_trained_behind_a_wrapper_that_changes_nothing_play(wrap, tmp_path):
    model = trained(wrap(summary_env()), tmp_path / "x.zip")
    steps = play(make(f"learned:{tmp_path / 'x.zip'},trust=True"), budget=3.0, **SMALL)
    restate(steps, lambda seen: model.predict(seen, deterministic=True)[0])


@pytest.mark.parametrize("algo", ["RecurrentPPO", "ARS", "QRDQN"])
def test_policies_of_sb3_contrib_where_it_is_installed(algo, tmp_path, monkeypatch):
    contrib, at = pytest.importorskip("sb3_contrib"), tmp_path / "x.zip"
    if algo == "QRDQN":  # of which no summary policy can be
        contrib.QRDQN("MlpPolicy", gym.make("CartPole-v1"), buffer_size=10).save(at)
        with pytest.raises(ValueError, match=r"is of sb3_contrib.qrdqn.policies; known are"):
            make(f"learned:{at},trust=True")
        return
    settings = {"n_steps": 8, "batch_size": 8} if algo == "RecurrentPPO" else {"n_delta": 1, "zero_policy": False}
    kind = "MlpLstmPolicy" if algo == "RecurrentPPO" else "MlpPolicy"
    model = getattr(contrib, algo)(kind, summary_env(), **settings)
    model.save(at)
    agent: Any = make(f"learned:{at},trust=True")
    for seed in (0, 1):  # the second only goes well if a reset forgets
        state: Any = None

        def act(seen: NDArray) -> NDArray:
            nonlocal state
            first = np.array([state is None])
            numbers, state = model.predict(seen, state=state, episode_start=first, deterministic=True)
            state = state or ()
            return numbers

        restate(play(agent, seed, budget=4.0, **SMALL), act, seed)
    monkeypatch.setitem(sys.modules, "sb3_contrib", None)
    with pytest.raises(ValueError, match="needs sb3_contrib: pip install sb3-contrib"):
        make(f"learned:{at},trust=True")


class Shown(gym.Env):
    """Spaces for a policy that is never trained."""

    observation_space = gym.spaces.Box(-1.0, 1.0, (len(FEATURES),), np.float32)

    def __init__(self, action_space: gym.Space):
        self.action_space = action_space


def test_policies_of_other_spaces_are_refused(tmp_path):
    at = tmp_path / "model.zip"
    for env in (
        gym.make("CartPole-v1"),
        Shown(gym.spaces.MultiBinary(3)),
        Shown(gym.spaces.Discrete(3, start=1)),
        Shown(gym.spaces.MultiDiscrete([2] * len(RULE_PARAMETERS))),
    ):
        PPO("MlpPolicy", env, n_steps=8, batch_size=8).save(at)
        with pytest.raises(ValueError, match=r"policy .*model.zip was not trained on summaries and rules"):
            Learned(path=str(at), trust=True)


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
    model = PPO("MlpPolicy", Shown(gym.spaces.Discrete(choices)), n_steps=8, batch_size=8, seed=1)
    decisive(model)
    model.save(path)
    return f"learned:{path},trust=True"


def decisive(model: Any) -> None:
    """Let what a policy chooses depend on what it sees, without much training."""
    with torch.no_grad():
        for parameter in model.policy.parameters():
            parameter.mul_(8.0)


@pytest.fixture(scope="module")
def choice(tmp_path_factory) -> str:
    return choosing(tmp_path_factory.mktemp("choice") / "policy.zip", 3)


class Recorded(gym.Wrapper):
    """Keeps what its env was asked to do."""

    def step(self, action):
        self.action = action
        return self.env.step(action)


@pytest.mark.parametrize(
    ("algo", "settings"),
    [
        (PPO, {"n_steps": 16, "batch_size": 16, "n_epochs": 1}),
        (DQN, {"learning_starts": 8, "buffer_size": 100, "batch_size": 8}),
    ],
    ids=["ppo", "dqn"],
)
def test_it_does_what_the_wrapper_does(algo, settings, tmp_path):
    """Step by step, in two episodes: the second only goes well if a reset forgets."""
    among = ["random:keep=0.6", "infobatch", "ucb:keep=0.3,c=2", "seta"]
    within = Recorded(PruneEnv(budget=6.0, **SMALL))
    env = SummaryObservation(AgentChoice(within, {spec: make(spec) for spec in among}))
    model = algo(**{"policy": "MlpPolicy", "env": env, "seed": 0, **settings})
    model.learn(32)
    decisive(model)
    model.save(tmp_path / "model.zip")
    agent: Any = make(f"learned:{tmp_path / 'model.zip'},trust=True,agents={'/'.join(among)}")
    alone, chosen = PruneEnv(budget=6.0, **SMALL), set()
    for seed in (0, 1):
        seen, info = env.reset(seed=seed)
        observation, _ = alone.reset(seed=seed)
        rng, state, over = np.random.default_rng([info["seed"], RULE_STREAM]), None, False
        switches.reset(agent)
        while not over:
            first = np.array([state is None])
            choice, state = model.predict(seen, state=state, episode_start=first, deterministic=True)
            state = state or ()
            chosen.add(int(choice))
            seen, reward, over, _, info = env.step(choice)
            action = agent(observation, rng)
            for name, values in within.action.items():
                np.testing.assert_array_equal(action[name], values)
            observation, its, ended, _, told = alone.step(action)
            assert (its, ended, told["total_spent"]) == (reward, over, info["total_spent"])
    assert len(chosen) > 1


def test_an_agent_sees_the_steps_that_it_is_chosen_for(choice):
    class Noting:
        def __init__(self):
            self.seen, self.resets = [], 0

        def reset(self):
            self.resets += 1

        def __call__(self, observation, rng):
            self.seen.append(observation["spent"].item())
            return make("random:keep=0.3")(observation, rng)

    path = choice.removeprefix("learned:").removesuffix(",trust=True")
    among = [Noting(), Noting(), Noting()]
    agent = Learned(path=path, trust=True, agents=among)
    before = [one.resets for one in among]
    steps = play(agent, budget=4.0, **SMALL)
    assert [one.resets - was for one, was in zip(among, before, strict=True)] == [1, 1, 1]
    assert sorted(spent for one in among for spent in one.seen) == [step[0]["spent"].item() for step in steps]
    assert sum(bool(one.seen) for one in among) > 1


def test_specs_of_choices(choice):
    path = choice.removeprefix("learned:").removesuffix(",trust=True")
    spec = f"{choice},agents=full/ucb:keep=0.3,c=2/random"
    expected = Learned(path=path, trust=True, agents=[Full(), UCB(keep=0.3, c=2), Random()])
    assert make(spec) == expected
    assert make(f"same_amounts:{spec}") == SameAmounts(agent=expected)
    assert make(f"{spec}+anneal=0.25+mixup=0.5") == Switched(agent=expected, anneal=0.25, mixup=0.5)
    for one in (spec, f"same_amounts:{spec}+mixup=0.5"):
        agents.check(one)
        assert agents.is_ours(one)
    # shares are given to those that take one and have none
    kept = f"{choice},agents=full/ucb:keep=0.3,c=2/random:keep=0.7"
    assert spec_with_keep(spec, 0.7) == kept == spec_with_keep(kept, 0.2)
    assert spec_with_keep(f"same_amounts:{spec}+mixup=0.5", 0.7) == f"same_amounts:{kept}+mixup=0.5"


@pytest.mark.parametrize(
    ("agents_named", "words"),
    [
        ("", ["is given 0 agents, but it chooses among 3: name them", "order of its training", "agents=FIRST/SECOND"]),
        (",agents=full/random/full/full", ["is given 4 agents, but it chooses among 3"]),
        (",agents=full/random/randon", ["unknown agent 'randon'", "there are full, random"]),
        (",agents=full/random/", ["unknown agent ''"]),
        (",agents=full/random/ucb:d=2", ["agent 'ucb:d=2'", "'d'", "c="]),
        (",agents=full/random/same_amounts:", ["needs the agent whose amounts"]),
        (",agents=full/random/learned:none.safetensors", ["policy none.safetensors cannot be read"]),
    ],
)
def test_choices_that_are_wrong(choice, agents_named, words):
    for build in (make, agents.check):
        with pytest.raises(ValueError) as error:  # noqa: PT011
            build(choice + agents_named)
        for word in words:
            assert word in str(error.value)


def test_rules_take_no_agents(policy):
    with pytest.raises(ValueError, match="is given 2 agents, but it chooses rules: leave out agents="):
        make(f"learned:{policy},agents=full/random")


# Rules without a network


def rng_of(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_a_rule_is_its_numbers():
    settings = {"keep": 0.3, "loss": -0.4, "middle": 0.5, "volatility": 1.0, "age": -1.0, "randomness": -0.2}
    settings |= {"weighting": 0.7, "mixup": 0.25}
    numbers = np.array([1 + 2 * np.log10(0.3), -0.4, 0.5, 1.0, -1.0, -0.2, 0.7, -0.5])
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
    np.testing.assert_array_equal(Rule(keep=1)(observation, rng_of(0))["weight"], np.ones(50))
    for keep in (0.1, 0.25, 0.5, 1):
        action = Rule(keep=keep)(observation, rng_of(0))
        assert np.count_nonzero(action["weight"]) == round(keep * 50)
        assert not action["mixup"].any()
        assert not action["score"].any()
    largest = Rule(keep=0.2, loss=1, randomness=-1)(observation, rng_of(0))["weight"] > 0
    assert set(np.flatnonzero(largest)) == set(np.argsort(-observation["loss_mean"])[:10])
    assert np.all(Rule(keep=0.5, mixup=1)(observation, rng_of(0))["mixup"][largest] >= 0)
    assert tuple(vars(Rule())) == RULE_PARAMETERS


@pytest.mark.parametrize("name", RULE_PARAMETERS)
def test_numbers_of_a_rule_are_checked(name):
    wrong: Any
    for wrong in (-1.01, 1.01, float("nan"), True, "much"):
        with pytest.raises(ValueError, match=rf"{name} must be a number in \["):
            Rule(**{name: wrong})


def test_random_rules_are_uniform_and_follow_the_generator(monkeypatch):
    observation, seen = observe(0, n=20), []
    first, again = (RandomRule()(observation, rng_of(5)) for _ in range(2))
    np.testing.assert_array_equal(first["weight"], again["weight"])

    def note(observation, numbers, draws):
        seen.append(numbers)
        return apply_rule(observation, numbers, draws)

    monkeypatch.setattr(rules, "apply_rule", note)
    agent, rng = RandomRule(), rng_of(0)
    for _ in range(1000):
        agent(observation, rng)
    numbers = np.array(seen)
    assert numbers.shape == (1000, len(RULE_PARAMETERS))
    for column in numbers.T:
        assert stats.kstest(column, "uniform", (-1, 2)).pvalue > 0.001
    correlations = np.corrcoef(numbers.T) - np.eye(len(RULE_PARAMETERS))
    assert np.abs(correlations).max() < 5 / 1000**0.5


def test_a_project_without_safetensors_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(ValueError, match=r"digits.safetensors cannot be read: .*safetensors"):
        make("learned")
