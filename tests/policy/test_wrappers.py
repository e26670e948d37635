"""Other faces of the environment: both checkers, what seeds decide, and one run alone against the same in a vector."""

import copy
import pickle
import threading
import warnings
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec
from gymnasium.utils import env_checker
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from stable_baselines3.common import env_checker as sb3

import agents
from prune_env import PruneEnv, select
from prune_env.policy import features, rules
from prune_env.policy.rules import RULE_PARAMETERS
from prune_env.policy.tasks import TaskEnv
from prune_env.policy.wrappers import (
    RULE_STREAM,
    AgentChoice,
    MaskAction,
    RuleAction,
    SummaryEnv,
    SummaryObservation,
    VectorRuleAction,
    VectorSummaryObservation,
)

N = 60
TASK: dict[str, Any] = {"train_size": N, "budget": 1.5, "batch_size": 16}


def make(**settings) -> PruneEnv:
    return PruneEnv(**{**TASK, **settings})


def choice(env: gym.Env) -> AgentChoice:
    return AgentChoice(env, {name: agents.make(name) for name in ("full", "random", "ucb:keep=0.3", "infobatch")})


STACKS = {
    "summary": lambda: SummaryObservation(make(budget=4.0)),
    "choice": lambda: choice(make()),
    "mask": lambda: MaskAction(make()),
    "summary of rule": lambda: SummaryObservation(RuleAction(make())),
    "summary of choice": lambda: SummaryObservation(choice(make())),
    "entry point": lambda: SummaryEnv(**TASK),
    "id": lambda: gym.make("prune_env/DigitsSummary-v0", **TASK),
    "rule": lambda: RuleAction(gym.make("prune_env/Digits-v0", **TASK)),
}
stacks = pytest.mark.parametrize("stack", STACKS.values(), ids=STACKS)


def equal(a: Any, b: Any) -> None:
    """Exactly, whatever is nested in what."""
    if isinstance(a, dict):
        assert set(a) == set(b)
        for key in a:
            equal(a[key], b[key])
    elif isinstance(a, list | tuple):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            equal(x, y)
    else:
        np.testing.assert_array_equal(a, b)
        assert np.asarray(a).dtype == np.asarray(b).dtype


def play(env: gym.Env, seed: int | None, action_seed: int = 0) -> list:
    """Everything that an episode of sampled actions returns."""
    env.action_space.seed(action_seed)
    trace: list = [env.reset(seed=seed)]
    while len(trace) < 100:
        trace.append(env.step(env.action_space.sample()))
        if trace[-1][2]:
            return trace
    raise AssertionError("the episode has no end")


def rule(**numbers: float) -> np.ndarray:
    return np.array([numbers.get(name, 0.0) for name in RULE_PARAMETERS], np.float32)


# ---------------------------------------------------------------- the contract


@stacks
def test_both_checkers_pass(stack):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        env = stack()
        said = ["is different from the unwrapped version"]  # of every wrapper
        said += [] if env.spec else ["not having a spec"]
        said += ["symmetric and normalized space"] if isinstance(env.action_space, spaces.Dict) else []
        for text in said:
            warnings.filterwarnings("ignore", f"(?s).*{text}")
        env_checker.check_env(env)
        if isinstance(env.action_space, spaces.Dict):
            return  # which SB3 has no agents for
        sb3.check_env(env, warn=True, skip_render_check=False)


@pytest.mark.parametrize(("given", "within"), [(TASK, "budget"), ({"tasks": "digits"}, "tasks")], ids=["one", "tasks"])
def test_what_the_ids_make_passes_both_checkers_without_a_warning(given, within):
    """As they ask for it: what is within the wrappers that `gym.make` adds."""
    env = gym.make("prune_env/DigitsSummary-v0", **given).unwrapped
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        env_checker.check_env(env)
        sb3.check_env(env, warn=True)
    assert env.get_wrapper_attr(within)
    with pytest.raises(AttributeError, match="no_such"):
        env.get_wrapper_attr("no_such")


@stacks
def test_episodes_run_to_their_end_within_the_spaces(stack):
    env = stack()
    trace = play(env, seed=0)
    assert all(env.observation_space.contains(step[0]) for step in trace)
    assert trace[-1][2:4] == (True, False)
    for _, reward, terminated, truncated, info in trace[1:]:
        assert (type(reward), type(terminated), type(truncated)) == (float, bool, bool)
        assert 0.0 < info["spent"] <= 1.0 + isinstance(env.action_space, spaces.Dict) / 3  # that samples scores too
    with pytest.raises(gym.error.ResetNeeded):
        env.step(env.action_space.sample())
    env.close()


@stacks
def test_a_seed_decides_the_run_and_those_after_it(stack):
    first, second = stack(), stack()
    traces = [[play(env, seed) for seed in (0, None)] for env in (first, second)]
    equal(*traces)
    equal(play(first, 0), traces[0][0])  # also in an env that has run before
    rewards = [[step[1] for step in trace[1:]] for trace in (*traces[0], play(first, 1))]
    assert rewards[0] != rewards[1] != rewards[2] != rewards[0]


@pytest.mark.parametrize("way", [copy.deepcopy, lambda env: pickle.loads(pickle.dumps(env))])
@stacks
def test_a_copy_in_mid_episode_goes_on_alike(stack, way):
    env = stack()
    env.reset(seed=0)
    env.action_space.seed(3)
    env.step(env.action_space.sample())
    twin = way(env)
    action = env.action_space.sample()
    equal(env.step(action), twin.step(action))


def test_a_spec_makes_the_same_env_also_from_json():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        env = gym.make("prune_env/DigitsSummary-v0", **TASK, lr=0.3)
        assert env.spec is not None
        twins = [gym.make(env.spec), gym.make(EnvSpec.from_json(env.spec.to_json())), pickle.loads(pickle.dumps(env))]
    for twin in twins:
        assert str(twin) == str(env)
        assert twin.spec == env.spec
        assert twin.get_wrapper_attr("recipe").lr == 0.3
        equal(play(twin, seed=4), play(env, seed=4))


# ---------------------------------------------------------------- what each does


def test_a_summary_has_the_past_that_was_acted_on():
    plain, env = make(), SummaryObservation(make())
    for seed in (0, 1):  # the second episode has nothing of the first
        before, info = plain.reset(seed=seed)
        small, small_info = env.reset(seed=seed)
        past = features.initial_history()
        equal(small, features.extract_features(before, past))
        assert info == small_info
        done = False
        while not done:
            action = select(np.random.default_rng(len(info)).random(N) < 0.4)
            past = features.update_history(past, before)
            before, *rest = plain.step(action)
            small, *small_rest = env.step(action)
            equal(small, features.extract_features(before, past))
            equal(rest, small_rest)
            done = rest[1]


def test_a_rule_draws_from_a_stream_of_its_own():
    plain, env = make(), RuleAction(make())
    space = env.action_space
    space.seed(0)
    for seed in (3, 4):
        obs, info = plain.reset(seed=seed)
        equal((obs, info), env.reset(seed=seed))
        rng = np.random.default_rng([info["seed"], RULE_STREAM])
        assert RULE_STREAM not in range(5)  # the trainer's and the agents'
        done = False
        while not done:
            numbers = space.sample()
            step = plain.step(rules.apply_rule(obs, numbers, rng.random((N, 2))))
            equal(step, env.step(numbers))
            obs, _, done, *_ = step


def test_a_refused_rule_costs_no_draw_and_what_the_caller_writes_reaches_nobody():
    calm, disturbed = RuleAction(make()), RuleAction(make())
    a, b = calm.reset(seed=0)[0], disturbed.reset(seed=0)[0]
    for wrong in (
        np.zeros(len(RULE_PARAMETERS) + 1),
        np.full(len(RULE_PARAMETERS), np.nan),
        np.zeros((2, len(RULE_PARAMETERS))),
    ):
        with pytest.raises(ValueError, match="a rule is 8 finite numbers"):
            disturbed.step(wrong)
    for values in b.values():
        values[:] = 1
    numbers = rule(loss=0.5, mixup=0.3, weighting=0.4)
    for _ in range(2):
        a, b = calm.step(numbers)[0], disturbed.step(numbers)[0]
        equal(a, b)
        for values in b.values():
            values[:] = 1


def test_a_mask_keeps_what_it_names():
    for mask in (np.arange(N) < 20, (np.arange(N) % 2).astype(np.int8), np.zeros(N)):
        plain, env = make(), MaskAction(make())
        equal(plain.reset(seed=0), env.reset(seed=0))
        equal(plain.step(select(mask > 0)), env.step(mask))
    assert env.action_space == spaces.MultiBinary(N)


class Counting:
    """Keeps one sample more at each step of an episode, from its own generator's draws."""

    def __init__(self):
        self.resets = self.steps = 0

    def reset(self):
        self.resets += 1
        self.steps = 0

    def __call__(self, observation, rng):
        self.steps += 1
        assert observation["visits"].shape == (N,)
        return select(np.argsort(rng.random(N))[: 10 + self.steps], n=N)


def everything(observation, rng):
    return select(np.ones(N, bool))


def test_the_chosen_agent_acts_and_all_are_reset():
    given = Counting()
    env = AgentChoice(make(), {"all": everything, "counting": given})
    counting: Any = env._agents[1]  # a copy
    assert env.names == ("all", "counting")
    assert env.action_space == spaces.Discrete(2)
    _, info = env.reset(seed=0)
    assert counting.resets == 1
    first = [env.step(at)[4]["trained"] for at in (1, np.int64(1), np.array(1), 0)]
    assert first == [11, 12, 13, 54]  # the budget is 90 samples
    env.reset(seed=0)
    assert (counting.resets, env.step(1)[4]["trained"]) == (2, 11)

    plain = make()
    obs, _ = plain.reset(seed=0)
    alone, rng = Counting(), np.random.default_rng([info["seed"], RULE_STREAM])
    obs, *_ = plain.step(alone(obs, rng))
    env.reset(seed=0)
    equal(env.step(1)[0], obs)


def test_environments_share_no_agent():
    """As `make_vec_env(lambda: AgentChoice(make(), among), 2)` makes them: RS2 remembers how far it is."""
    among = {"rs2": agents.make("random:keep=0.3")}
    alone, env, beside = (AgentChoice(make(), among) for _ in range(3))
    for each in (alone, env, beside):
        each.reset(seed=0)
    for _ in range(3):
        expected, *_ = alone.step(0)
        beside.step(0)
        equal(env.step(0)[0], expected)
        beside.reset(seed=1)


def test_a_mask_is_of_the_samples_of_the_episode():
    env = MaskAction(TaskEnv(**TASK))
    for n in (30, N, 20):
        env.reset(seed=0, options={"task": {"train_size": n}})
        assert env.action_space == spaces.MultiBinary(n)
        env.action_space.seed(0)
        mask = env.action_space.sample()
        assert env.step(mask)[4]["trained"] == mask.sum()


# ---------------------------------------------------------------- errors


@pytest.mark.parametrize("wrapper", [RuleAction, choice, SummaryObservation])
@pytest.mark.parametrize("inner", [SummaryObservation, lambda env: gym.make("CartPole-v1")])
def test_what_needs_the_observation_says_so_at_construction(wrapper, inner):
    with pytest.raises(TypeError, match=r"needs an env with PruneEnv's own spaces.*SummaryObservation\(RuleAction"):
        wrapper(inner(make()))


@pytest.mark.parametrize(
    ("wrong", "error", "text"),
    [
        ({}, ValueError, r"agents is \{\}; it must name one agent or more"),
        ({"all": everything, "seven": 7}, TypeError, r"agents\['seven'\] is 7, which cannot be called"),
        ({"spec": "ucb"}, TypeError, r"agents\['spec'\] is 'ucb'"),
        ([everything], TypeError, "agents is a list; it must be a mapping"),
        ({"locked": partial(everything, threading.Lock())}, TypeError, r"agents\['locked'\] is .*cannot be copied"),
    ],
)
def test_wrong_agents_are_named(wrong, error, text):
    with pytest.raises(error, match=text):
        AgentChoice(make(), wrong)


@pytest.mark.parametrize("wrong", [-1, 4, 1.5, "ucb"])
def test_a_wrong_index_is_named(wrong):
    env = choice(make())
    env.reset(seed=0)
    with pytest.raises(ValueError, match="it must be a whole number from 0 to 3"):
        env.step(wrong)


@pytest.mark.parametrize(
    "wrong", [np.ones(N - 1), np.arange(N), np.full(N, 0.5), np.ones((2, N)), 1, np.full(N, np.nan)]
)
def test_a_wrong_mask_is_named(wrong):
    env = MaskAction(make())
    env.reset(seed=0)
    with pytest.raises(ValueError, match=rf"the action has shape .*\({N},\) zeros and ones"):
        env.step(wrong)


@stacks
def test_a_step_before_the_first_reset_is_refused(stack):
    env = stack()
    with pytest.raises(gym.error.ResetNeeded, match="reset"):
        env.step(env.action_space.sample())


# ---------------------------------------------------------------- vectors


def vector(k: int = 3, mode: AutoresetMode = AutoresetMode.NEXT_STEP, **settings) -> VectorSummaryObservation:
    plain = SyncVectorEnv([lambda: make(**settings)] * k, autoreset_mode=mode)
    return VectorSummaryObservation(VectorRuleAction(plain))


def numbers_of(seed: int, steps: int, k: int = 3) -> np.ndarray:
    """Rules of which some keep little and some much, so that members end at different steps."""
    return np.random.default_rng(seed).uniform(-1, 1, (steps, k, len(RULE_PARAMETERS))).astype(np.float32)


@pytest.mark.parametrize("k", [1, 3])
def test_a_vector_is_its_members_one_by_one_over_several_episodes(k):
    env, singles = vector(k), [SummaryEnv(**TASK) for _ in range(k)]
    observations, _ = env.reset(seed=7)
    for i, single in enumerate(singles):
        equal(observations[i], single.reset(seed=7 + i)[0])
    ended, episodes = [False] * k, [0] * k
    for numbers in numbers_of(0, 25, k):
        numbers[ended] = np.nan  # of those that are only reset, nobody looks at them
        observations, rewards, terminated, truncated, infos = env.step(numbers)
        for i, single in enumerate(singles):
            if ended[i]:
                obs, info = single.reset()
                reward, ended[i] = 0.0, False
                assert infos["seed"][i] == info["seed"]
            else:
                obs, reward, ended[i], _, info = single.step(numbers[i])
                episodes[i] += ended[i]
                assert infos["trained"][i] == info["trained"]
            equal(observations[i], obs)
            assert (rewards[i], terminated[i], truncated[i]) == (reward, ended[i], False)
    assert min(episodes) >= 2
    assert k == 1 or len(set(episodes)) > 1


def test_a_partial_reset_spares_the_others():
    env = vector(mode=AutoresetMode.DISABLED, budget=3.0)
    singles = [SummaryEnv(**{**TASK, "budget": 3.0}) for _ in range(3)]
    env.reset(seed=0)
    for i, single in enumerate(singles):
        single.reset(seed=i)
    numbers = numbers_of(1, 6) * 0.3 - 0.7
    before = np.zeros(0)
    for step in range(6):
        if step == 3:
            observations, _ = env.reset(seed=[0, 9, 0], options={"reset_mask": np.array([False, True, False])})
            equal(observations[1], singles[1].reset(seed=9)[0])
            equal(observations[[0, 2]], before[[0, 2]])
        observations, _, terminated, *_ = env.step(numbers[step])
        for i, single in enumerate(singles):
            equal(observations[i], single.step(numbers[step, i])[0])
        assert not terminated.any()
        before = observations


def test_vectors_of_anything_else_are_refused():
    plain = SyncVectorEnv([make] * 2)
    for wrapper, env in (
        (VectorRuleAction, VectorSummaryObservation(plain)),
        (VectorRuleAction, VectorRuleAction(plain)),
        (VectorSummaryObservation, VectorSummaryObservation(plain)),
        (VectorSummaryObservation, SyncVectorEnv([lambda: gym.make("CartPole-v1")])),
    ):
        with pytest.raises(TypeError, match="needs an env with PruneEnv's own spaces"):
            wrapper(env)
    with pytest.raises(ValueError, match=r"SAME_STEP.*use NEXT_STEP"):
        vector(mode=AutoresetMode.SAME_STEP)
    with pytest.raises(gym.error.ResetNeeded, match="reset"):
        vector().step(np.zeros((3, len(RULE_PARAMETERS))))


@pytest.mark.parametrize("vectorization", ["sync", "vector_entry_point"])
def test_the_summary_id_makes_a_vector_of_the_same_runs(vectorization):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        env = gym.make_vec("prune_env/DigitsSummary-v0", num_envs=2, vectorization_mode=vectorization, **TASK)
    seen, expected = (each.reset(seed=3)[0] for each in (env, vector(2)))
    np.testing.assert_allclose(seen, expected, atol=1e-6)
    assert env.single_action_space == SummaryEnv(**TASK).action_space
    spent = [env.step(numbers)[4]["spent"] for numbers in numbers_of(0, 2, 2)]
    assert np.shape(spent) == (2, 2)
    env.close()
