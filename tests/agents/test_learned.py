"""Policies that act by eight numbers: their files, what they do in a run, and those of Stable-Baselines3."""

from __future__ import annotations

import itertools
import json
import os
import pickle
import shutil
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
from numpy.typing import NDArray
from sb3_contrib import ARS, QRDQN, RecurrentPPO
from scipy import stats
from stable_baselines3 import A2C, DQN, PPO, SAC
from torch import nn

import agents
from agents import learned, make, rules, spec_with_keep, switches
from agents.bandits import UCB
from agents.baselines import Full, Random
from agents.learned import Learned, Network
from agents.rules import RandomRule, Rule
from agents.switches import SameAmounts, Switched
from prune_env import PruneEnv
from prune_env.policy import encoding
from prune_env.policy.encoding import RULE, SUMMARY, decode_rule, remember, summarize
from prune_env.policy.wrappers import RULE_STREAM, AgentChoice, SummaryObservation
from tests.agents.test_agents import STATES, observe
from tests.helpers.trees import imagefolder

SMALL = {"train_size": 50, "batch_size": 16, "lr": 0.1}


def network(seed: int = 0, hidden: str = "tanh", output: str = "clip", sizes=(5,), card: Any = None) -> Network:
    """Of random weights, large enough that its numbers reach the bounds here and there."""
    rng, sizes = np.random.default_rng(seed), (len(SUMMARY), *sizes, len(RULE))
    layers = [
        (rng.normal(0, 0.4, (b, a)).astype(np.float32), rng.normal(0, 0.3, b).astype(np.float32))
        for a, b in itertools.pairwise(sizes)
    ]
    return Network(layers, hidden, output, card or {})


def summaries(count: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng([seed, 1]).uniform(-1, 1, (count, len(SUMMARY))).astype(np.float32)


@pytest.fixture
def policy(tmp_path) -> Path:
    path = tmp_path / "policy.safetensors"
    network().save(path)
    return path


# Networks


@pytest.mark.parametrize("sizes", [(), (7,), (6, 5, 4)])
@pytest.mark.parametrize("output", learned.OUTPUT)
@pytest.mark.parametrize("hidden", learned.HIDDEN)
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


# Files


def test_every_byte_that_changes_is_noticed(policy):
    data, damaged = policy.read_bytes(), policy.with_name("damaged.safetensors")
    header = 8 + int.from_bytes(data[:8], "little")
    rng = np.random.default_rng(0)
    padding = range(len(data[:header].rstrip(b" ")), header)
    changes = [(i, data[i] ^ int(rng.integers(1, 256))) for i in range(header)]
    changes += [(i, byte) for i in padding for byte in b"\t\n\r\0"]
    changes += [(i, data[i] ^ 1) for i in rng.integers(header, len(data), 200).tolist()]
    for at, byte in changes:
        damaged.write_bytes(data[:at] + bytes([byte]) + data[at + 1 :])
        with pytest.raises(ValueError, match=r"damaged\.safetensors"):
            Network.load(damaged)
    text = data[:header].decode(errors="replace")
    for old, new in (("F32", "I32"), ("F32", "U32"), ("0.bias", "0.bits"), ("tanh", "relu"), ("clip", "tanh")):
        assert old in text
        damaged.write_bytes(data.replace(old.encode(), new.encode(), 1))
        with pytest.raises(ValueError, match=r"damaged.safetensors is damaged"):
            Network.load(damaged)


def test_padding_is_part_of_the_file(policy):
    """The one place where the format allows more than what is written; not every header needs some."""
    data = policy.read_bytes()
    header = int.from_bytes(data[:8], "little")
    longer = (header + 8).to_bytes(8, "little") + data[8 : 8 + header]
    for blanks, fine in ((8 * b" ", True), (7 * b" " + b"\n", False), (b"\t" + 7 * b" ", False)):
        policy.write_bytes(longer + blanks + data[8 + header :])
        if fine:
            Network.load(policy)
        else:
            with pytest.raises(ValueError, match="padded"):
                Network.load(policy)


def test_half_a_file_is_noticed(policy):
    data = policy.read_bytes()
    for part in [*(data[:n] for n in (0, 1, 7, 8, 9, 100, len(data) // 2, len(data) - 1)), data + b"\0", data + data]:
        policy.write_bytes(part)
        with pytest.raises(ValueError, match=r"policy.safetensors is damaged"):
            Network.load(policy)


def test_what_is_no_policy_of_ours_says_so(tmp_path, policy):
    foreign = tmp_path / "foreign.safetensors"
    for metadata in (None, {"format": "pt"}, {"format": "prune_env policy 2"}):
        safetensors.numpy.save_file({"a": np.zeros(3, np.float32)}, foreign, metadata)
        with pytest.raises(ValueError, match=r"foreign.safetensors has the format .* 'prune_env policy 1'"):
            Network.load(foreign)
    safetensors.numpy.save_file({"a": np.zeros(3, np.float32)}, foreign, {"format": learned.FORMAT})
    with pytest.raises(ValueError, match=r"foreign.safetensors is damaged"):
        Network.load(foreign)
    for content in (b"PK\x03\x04 a zip", pickle.dumps({"a": 1}), b"{}", bytes(1000)):
        foreign.write_bytes(content)
        with pytest.raises(ValueError, match=r"foreign.safetensors is damaged, or no safetensors file"):
            Network.load(foreign)
    with pytest.raises(FileNotFoundError, match=r"nowhere.safetensors"):
        Network.load(tmp_path / "nowhere.safetensors")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"hidden": "gelu"}, "hidden is 'gelu'; it must be tanh or relu"),
        ({"output": "none"}, "output is 'none'; it must be clip or tanh"),
        ({"layers": []}, "0 layers end in 43 numbers; they must end in 8"),
        ({"layers": [(np.zeros((8, 42)), np.zeros(8))]}, r"layer 0 has weights \(8, 42\) .* its inputs are 43"),
        ({"layers": [(np.zeros((8, 43)), np.zeros(7))]}, r"layer 0 has weights \(8, 43\) and biases \(7,\)"),
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


@pytest.mark.parametrize(("name", "word"), [("SUMMARY", "inputs"), ("RULE", "outputs")])
def test_other_numbers_than_today_are_refused(policy, monkeypatch, name, word):
    own = getattr(encoding, name)
    for other in (own[:-1], (*own, "more"), (own[1], own[0], *own[2:])):
        monkeypatch.setattr(encoding, name, other)
        with pytest.raises(ValueError, match=rf"policy.safetensors has other {word} than"):
            Network.load(policy)


def test_a_file_is_replaced_whole_or_not_at_all(policy, monkeypatch):
    before = policy.read_bytes()

    def fail(*_):
        raise OSError("the disk is full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk is full"):
        network(7).save(policy)
    assert policy.read_bytes() == before
    assert [path.name for path in policy.parent.iterdir()] == [policy.name]


class Payload:
    """Whoever unpickles it makes a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("suffix", [".zip", ".safetensors", ".ZIP", ".pkl", ""])
def test_nothing_is_unpickled_without_trust(tmp_path, suffix):
    made, data = tmp_path / "made", pickle.dumps(Payload(tmp_path / "made"))
    pickled, zipped = tmp_path / f"pickled{suffix}", tmp_path / f"zipped{suffix}"
    pickled.write_bytes(data)
    with zipfile.ZipFile(zipped, "w") as file:
        file.writestr("data", json.dumps({"policy_class": {"__module__": "stable_baselines3.common.policies"}}))
        file.writestr("policy.pth", data)
        file.writestr("pytorch_variables.pth", data)
    for path in (pickled, zipped):
        for build in (lambda path: Learned(path=str(path)), lambda path: make(f"learned:{path}"), check):
            with pytest.raises(ValueError, match=path.name):
                build(path)
    assert not made.exists()
    pickle.loads(data)
    assert made.exists()  # the trap works


def check(path: Path) -> None:
    agents.check(f"learned:{path}")


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
    rng, past = np.random.default_rng([seed, 9]), encoding.begin()
    for observation, action in steps:
        n = len(observation["label"])
        numbers = act(summarize(observation, past))
        expected = decode_rule(observation, numbers, rng.random((n, 2)))
        past = remember(past, observation)
        np.testing.assert_array_equal(action["weight"], expected["weight"])
        np.testing.assert_array_equal(action["mixup"], expected["mixup"])
        assert not action["score"].any()


@pytest.mark.parametrize(
    "settings", [{"budget": 1.0}, {"budget": 30.0, "model": "mlp:4"}, {"budget": 4.0, "imbalance": 3.0}], ids=str
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


def test_it_acts_on_images_of_a_folder(policy, tmp_path):
    imagefolder(tmp_path / "images", ("a", "b", "c"), per_class=8, size=16)
    settings = {"dataset": "imagefolder", "root": str(tmp_path / "images"), "image_size": 16, "model": "mlp:4"}
    steps = play(Learned(path=str(policy)), budget=3.0, batch_size=4, lr=0.01, **settings)
    restate(steps, network())
    assert len(steps) > 2


def test_the_past_is_part_of_what_it_sees(policy):
    """Else the comparison above would say nothing of `remember`."""
    steps = play(Learned(path=str(policy)), budget=6.0, **SMALL)
    with pytest.raises(AssertionError):
        restate(steps, lambda seen: network()(np.where(np.array(SUMMARY) == "last_kept", -1.0, seen)))


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
    shutil.copy(policy, odd)
    assert make(f"learned:{odd}") == Learned(path=str(odd))
    assert make(f"learned:{odd},trust=True") == Learned(path=str(odd), trust=True)
    for one in (spec, f"{spec},trust=True", f"same_amounts:{spec}+mixup=0.5", "rule:keep=0.3,loss=-1", "random_rule"):
        agents.check(one)
    for unchanged in (spec, f"same_amounts:{spec}", "learned", "random_rule", f"{spec}+mixup=0.5"):
        assert spec_with_keep(unchanged, 0.3) == unchanged
    assert spec_with_keep("rule:loss=1", 0.3) == "rule:keep=0.3,loss=1"


def test_same_amounts_keep_as_many(policy):
    inner, steps = Learned(path=str(policy)), play(make(f"same_amounts:learned:{policy}"), budget=5.0, **SMALL)
    rng = np.random.default_rng(3)  # how many are kept does not depend on what is drawn
    for observation, action in steps:
        assert np.count_nonzero(action["weight"]) == np.count_nonzero(inner(observation, rng)["weight"])
        assert set(action["weight"]) <= {0, 1}
    assert len({np.count_nonzero(action["weight"]) for _, action in steps}) > 1


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("learned:{},trust=1", ["trust must be True or False", "1"]),
        ("learned:{},trust='no'", ["trust must be True or False"]),
        ("learned:{},keep=0.5", ["safetensors,keep=0.5 cannot be read"]),
        ("learned:{},path='a'", ["path='a' cannot be read"]),
        ("learned:{},True", ["safetensors,True cannot be read"]),
        ("learned:{}x", ["policy.safetensorsx cannot be read", "No such file"]),
        ("learned:{}/..", ["cannot be read"]),
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
    assert numbers.shape == (200, len(RULE))
    assert numbers.std(axis=0).max() > 0.05  # it reacts to what it sees


# Policies of Stable-Baselines3


ALGORITHMS: dict[str, Callable[..., Any]] = {
    "ppo": lambda env: PPO("MlpPolicy", env, n_steps=8, batch_size=8, n_epochs=1, seed=0),
    "a2c": lambda env: A2C("MlpPolicy", env, n_steps=8, seed=0),
    "sac": lambda env: SAC("MlpPolicy", env, learning_starts=8, buffer_size=100, batch_size=8, seed=0),
    "recurrent_ppo": lambda env: RecurrentPPO("MlpLstmPolicy", env, n_steps=8, batch_size=8, n_epochs=1, seed=0),
    "ars": lambda env: ARS("MlpPolicy", env, n_delta=1, zero_policy=False, delta_std=0.3, seed=0),
}


class WithGradients(gym.Wrapper):
    """Trains its student also where the algorithm around it has switched gradients off, as ARS does."""

    def step(self, action):
        with torch.enable_grad():
            return self.env.step(action)


@pytest.fixture(scope="module")
def summary_env() -> gym.Env:
    env = gym.make("prune_env/DigitsSummary-v0", train_size=60, budget=1.0, model="mlp:4", batch_size=16)
    return WithGradients(env)


@pytest.mark.parametrize("algo", ALGORITHMS)
def test_policies_of_stable_baselines3(algo, summary_env, tmp_path):
    model = ALGORITHMS[algo](summary_env)
    model.learn(16)
    model.save(tmp_path / "model.zip")
    agent: Any = make(f"learned:{tmp_path / 'model.zip'},trust=True")
    settings = {"budget": 4.0, **SMALL}
    for seed in (0, 1):  # the second only goes well if a reset forgets
        state: Any = None

        def act(seen: NDArray) -> NDArray:
            nonlocal state
            first = np.array([state is None])
            numbers, state = model.predict(seen, state=state, episode_start=first, deterministic=True)
            state = state or ()
            return numbers

        steps = play(agent, seed, **settings)
        assert len(steps) > 3
        restate(steps, act, seed)
    if algo == "recurrent_ppo":  # what it does depends on what it saw before
        with pytest.raises(AssertionError):
            restate(steps, lambda seen: model.predict(seen, deterministic=True)[0], seed)
    with pytest.raises(ValueError, match=r"model.zip,trust=True.*safetensors file beside it"):
        make(f"learned:{tmp_path / 'model.zip'}")
    agents.check(f"learned:{tmp_path / 'model.zip'},trust=True")


def test_policies_of_other_spaces_and_algorithms_are_refused(tmp_path):
    at, env = tmp_path / "model.zip", gym.make("CartPole-v1")
    for build, words in (
        (lambda: PPO("MlpPolicy", env, n_steps=8, batch_size=8), "not trained on summaries and rules"),
        (lambda: A2C("MlpPolicy", gym.make("Pendulum-v1")), "not trained on summaries and rules"),
        (lambda: PPO("MlpPolicy", Shown(gym.spaces.MultiBinary(3)), n_steps=8, batch_size=8), "not trained on"),
        (lambda: PPO("MlpPolicy", Shown(gym.spaces.Discrete(3, start=1)), n_steps=8, batch_size=8), "not trained on"),
        (lambda: QRDQN("MlpPolicy", env, buffer_size=10), "is of sb3_contrib.qrdqn.policies; known are"),
    ):
        build().save(at)
        with pytest.raises(ValueError, match=rf"policy .*model.zip .*{words}"):
            Learned(path=str(at), trust=True)


@pytest.mark.parametrize("data", [None, "[]", "{}", "no json", '{"policy_class": 3}', '{"policy_class": {}}'])
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


@pytest.mark.parametrize(("within", "old"), [("policy.pth", b""), ("data", b'"observation_space"')])
def test_a_zip_that_is_damaged_within_is_named(tmp_path, within, old):
    env, at = gym.make("prune_env/DigitsSummary-v0", train_size=60, model="mlp:4"), tmp_path / "m.zip"
    PPO("MlpPolicy", env, n_steps=8, batch_size=8).save(at)
    with zipfile.ZipFile(at) as file:
        content = {name: file.read(name) for name in file.namelist()}
    content[within] = content[within].replace(old, b'"x"') if old else b"junk"
    with zipfile.ZipFile(at, "w") as file:
        for name, data in content.items():
            file.writestr(name, data)
    with pytest.raises(ValueError, match=r"^policy .*m\.zip cannot be loaded: "):
        Learned(path=str(at), trust=True)


# Policies that choose among agents


class Shown(gym.Env):
    """Spaces for a policy that is never trained."""

    observation_space = gym.spaces.Box(-1.0, 1.0, (len(SUMMARY),), np.float32)

    def __init__(self, action_space: gym.Space):
        self.action_space = action_space


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
        (RecurrentPPO, {"policy": "MlpLstmPolicy", "n_steps": 16, "batch_size": 16, "n_epochs": 1}),
    ],
    ids=["ppo", "dqn", "recurrent_ppo"],
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


FOREIGN = """
raise AssertionError("imported")
"""


def test_specs_of_choices(choice, tmp_path, monkeypatch):
    path = choice.removeprefix("learned:").removesuffix(",trust=True")
    spec = f"{choice},agents=full/ucb:keep=0.3,c=2/random"
    expected = Learned(path=path, trust=True, agents=[Full(), UCB(keep=0.3, c=2), Random()])
    assert make(spec) == expected
    assert make(f"same_amounts:{spec}") == SameAmounts(agent=expected)
    assert make(f"{spec}+anneal=0.25+mixup=0.5") == Switched(agent=expected, anneal=0.25, mixup=0.5)
    nested: Any = make(f"{choice},agents=same_amounts:infobatch/learned/tests.agents.test_learned:keeps_all")
    assert nested.agents[:2] == [make("same_amounts:infobatch"), Learned()]
    for one in (spec, f"same_amounts:{spec}+mixup=0.5"):
        agents.check(one)
        assert agents.is_ours(one)
    # shares are given to those that take one and have none
    kept = f"{choice},agents=full/ucb:keep=0.3,c=2/random:keep=0.7"
    assert spec_with_keep(spec, 0.7) == kept == spec_with_keep(kept, 0.2)
    assert spec_with_keep(f"same_amounts:{spec}+mixup=0.5", 0.7) == f"same_amounts:{kept}+mixup=0.5"
    # somebody's own
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "never.py").write_text(FOREIGN)
    foreign = f"{choice},agents=full/never:Agent:keep=0.3/random"
    assert not agents.is_ours(foreign)
    assert not agents.is_ours(f"same_amounts:{foreign}")
    with pytest.raises(agents.Unimportable, match="AssertionError: imported"):
        agents.check(foreign)
    agents.check(f"{choice},agents=full/random/tests.agents.test_learned:Unmade")  # it is not made


def keeps_all(observation, rng):
    return make("full")(observation, rng)


class Unmade:
    def __init__(self):
        raise AssertionError

    def __call__(self, observation, rng): ...


@pytest.mark.parametrize(
    ("agents_named", "words"),
    [
        ("", ["is given 0 agents, but it chooses among 3: name them", "order of its training", "agents=FIRST/SECOND"]),
        (",agents=full", ["is given 1 agents, but it chooses among 3"]),
        (",agents=full/random/full/full", ["is given 4 agents, but it chooses among 3"]),
        (",agents=full/random/randon", ["unknown agent 'randon'", "there are full, random"]),
        (",agents=full/random/", ["unknown agent ''"]),
        (",agents=", ["unknown agent ''"]),
        (",agents=full/random/ucb:d=2", ["agent 'ucb:d=2'", "'d'", "c="]),
        (",agents=full/random/random:keep=2", ["keep must be"]),
        (",agents=full/random/same_amounts:", ["needs the agent whose amounts"]),
        (",agents=full/random/full+mixup=0.5/full", ["is given 4 agents"]),
        (",agents=full/random/learned:none.safetensors", ["policy none.safetensors cannot be read"]),
    ],
)
def test_choices_that_are_wrong(choice, agents_named, words):
    for build in (make, agents.check):
        with pytest.raises(ValueError) as error:  # noqa: PT011
            build(choice + agents_named)
        for word in words:
            assert word in str(error.value)


def test_rules_take_no_agents(policy, summary_env, tmp_path):
    PPO("MlpPolicy", summary_env, n_steps=8, batch_size=8).save(tmp_path / "model.zip")
    for spec in (f"learned:{policy}", f"learned:{tmp_path / 'model.zip'},trust=True"):
        for build in (make, agents.check):
            with pytest.raises(ValueError, match="is given 2 agents, but it chooses rules: leave out agents="):
                build(f"{spec},agents=full/random")


def test_agents_are_not_unpickled_without_trust_either(choice):
    with pytest.raises(ValueError, match="loading one runs code"):
        make(f"{choice.removesuffix(',trust=True')},agents=full/random/full")


# Rules without a network


@pytest.mark.parametrize("state", STATES)
def test_a_rule_is_its_numbers(state):
    settings = {"keep": 0.3, "loss": -0.4, "middle": 0.5, "volatility": 1.0, "age": -1.0, "randomness": -0.2}
    settings |= {"weighting": 0.7, "mixup": 0.25}
    numbers = np.array([1 + 2 * np.log10(0.3), -0.4, 0.5, 1.0, -1.0, -0.2, 0.7, -0.5])
    observation = observe(60, state)
    agent, rng = make("rule:" + ",".join(f"{name}={value}" for name, value in settings.items())), rng_of(3)
    agent(observation, rng)
    action = agent(observation, rng)
    rng = rng_of(3)
    rng.random((60, 2))
    expected = decode_rule(observation, numbers, rng.random((60, 2)))
    np.testing.assert_allclose(action["weight"], expected["weight"], rtol=1e-6)
    np.testing.assert_array_equal(action["mixup"], expected["mixup"])
    assert np.count_nonzero(action["weight"]) == 18


def rng_of(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_rules_at_their_ends():
    observation = observe(50)
    np.testing.assert_array_equal(Rule(keep=1)(observation, rng_of(0))["weight"], np.ones(50))
    for keep in (0.1, 0.25, 0.5, 1):
        action = Rule(keep=keep)(observation, rng_of(0))
        assert np.count_nonzero(action["weight"]) == round(keep * 50)
        assert not action["mixup"].any()
        assert not action["score"].any()
    largest = Rule(keep=0.2, loss=1, randomness=-1)(observation, rng_of(0))["weight"] > 0
    assert set(np.flatnonzero(largest)) == set(np.argsort(-observation["loss_mean"])[:10])
    assert np.all(Rule(keep=0.5, mixup=1)(observation, rng_of(0))["mixup"][largest] >= 0)
    assert tuple(vars(Rule())) == RULE


@pytest.mark.parametrize("wrong", [-1.01, 1.01, float("nan"), True, "much", None])
@pytest.mark.parametrize("name", RULE)
def test_numbers_of_a_rule_are_checked(name, wrong):
    with pytest.raises(ValueError, match=rf"{name} must be a number in \["):
        Rule(**{name: wrong})


@pytest.mark.parametrize(("name", "wrong"), [("keep", 0.0999), ("keep", 0), ("mixup", -0.1)])
def test_shares_of_a_rule_are_checked(name, wrong):
    with pytest.raises(ValueError, match=f"{name} must be"):
        Rule(**{name: wrong})


def test_random_rules_are_uniform_and_follow_the_generator(monkeypatch):
    observation, seen = observe(20), []
    first, again = (RandomRule()(observation, rng_of(5)) for _ in range(2))
    np.testing.assert_array_equal(first["weight"], again["weight"])

    def note(observation, numbers, draws):
        seen.append(numbers)
        return decode_rule(observation, numbers, draws)

    monkeypatch.setattr(rules, "decode_rule", note)
    agent, rng = RandomRule(), rng_of(0)
    for _ in range(1000):
        agent(observation, rng)
    numbers = np.array(seen)
    assert numbers.shape == (1000, len(RULE))
    for column in numbers.T:
        assert stats.kstest(column, "uniform", (-1, 2)).pvalue > 0.001
    correlations = np.corrcoef(numbers.T) - np.eye(len(RULE))
    assert np.abs(correlations).max() < 5 / 1000**0.5


def test_a_project_without_safetensors_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(ValueError, match=r"digits.safetensors cannot be read: .*safetensors"):
        make("learned")
