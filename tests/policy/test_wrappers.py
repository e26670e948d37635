"""Other faces of the environment: both checkers, what seeds decide, and one run alone against the same in a vector."""

import copy
import pickle
import warnings
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec
from gymnasium.utils import env_checker
from stable_baselines3.common import env_checker as sb3

import agents
from prune_env import PruneEnv, select
from prune_env.policy import features, rules
from prune_env.policy.rules import RULE_PARAMETERS
from prune_env.policy.wrappers import RULE_STREAM, AgentChoice, SummaryEnv, SummaryObservation, vector_summary

N = 60
TASK: dict[str, Any] = {"train_size": N, "budget": 1.5, "batch_size": 16}


def make(**settings) -> PruneEnv:
    return PruneEnv(**{**TASK, **settings})


def choice(env: gym.Env) -> AgentChoice:
    return AgentChoice(env, {name: agents.make(name) for name in ("full", "random", "ucb:keep=0.3", "infobatch")})


STACKS = {
    "summary": lambda: SummaryObservation(make(budget=4.0)),
    "choice": lambda: choice(make()),
    "summary of choice": lambda: SummaryObservation(choice(make())),
    "id": lambda: gym.make("prune_env/DigitsSummary-v0", **TASK),
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


def play(env: gym.Env, seed: int | None) -> list:
    """Everything that an episode of sampled actions returns."""
    env.action_space.seed(0)
    trace: list = [env.reset(seed=seed)]
    while not (len(trace) > 1 and trace[-1][2]):
        trace.append(env.step(env.action_space.sample()))
        assert len(trace) < 100
    return trace


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
        if not isinstance(env.action_space, spaces.Dict):  # which SB3 has no agents for
            sb3.check_env(env, warn=True, skip_render_check=False)


# over 2 s: the checkers play many episodes, of changing tasks
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
def test_a_seed_decides_the_episodes_and_they_end_within_the_spaces(stack):
    first, second = stack(), stack()
    with pytest.raises(gym.error.ResetNeeded, match="reset"):
        first.step(first.action_space.sample())
    traces = [[play(env, seed) for seed in (0, None)] for env in (first, second)]
    equal(*traces)
    equal(play(first, 0), traces[0][0])  # also in an env that has run before
    rewards = [[step[1] for step in trace[1:]] for trace in (*traces[0], play(first, 1))]
    assert rewards[0] != rewards[1] != rewards[2] != rewards[0]
    assert all(first.observation_space.contains(step[0]) for step in traces[0][0])
    for step in traces[0][0][1:]:
        assert tuple(map(type, step[1:4])) == (float, bool, bool)
    with pytest.raises(gym.error.ResetNeeded):
        first.step(first.action_space.sample())


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


def test_a_summary_and_its_rule_are_the_functions_on_the_plain_run():
    """With the history that was acted on, and draws from a stream of the run's own."""
    assert RULE_STREAM not in range(5)  # the trainer's and the agents'
    plain, env = make(), SummaryEnv(**TASK)
    env.action_space.seed(0)
    for seed in (3, 4):  # the second episode has nothing of the first
        seen, info = plain.reset(seed=seed)
        history, rng = features.initial_history(), np.random.default_rng([info["seed"], RULE_STREAM])
        equal(env.reset(seed=seed), (features.extract_features(seen, history), info))
        done = False
        while not done:
            parameters = env.action_space.sample()
            history = features.update_history(history, seen)
            seen, *rest = plain.step(rules.apply_rule(seen, parameters, rng.random((N, 2))))
            equal(env.step(parameters), (features.extract_features(seen, history), *rest))
            done = rest[1]


def test_a_refused_rule_costs_no_draw():
    calm, disturbed = SummaryEnv(**TASK), SummaryEnv(**TASK)
    equal(calm.reset(seed=0), disturbed.reset(seed=0))
    for wrong in (np.zeros(13), np.full(12, np.nan), np.zeros((2, 12))):
        with pytest.raises(ValueError, match="a rule is 12 finite numbers"):
            disturbed.step(wrong)
    equal(calm.step(np.zeros(12)), disturbed.step(np.zeros(12)))


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
    env = AgentChoice(make(), {"all": everything, "counting": Counting()})
    counting: Any = env._agents[1]  # a copy
    assert (env.names, env.action_space) == (("all", "counting"), spaces.Discrete(2))
    _, info = env.reset(seed=0)
    assert counting.resets == 1
    first = [env.step(at)[4]["trained"] for at in (1, np.int64(1), np.array(1), 0)]
    assert first == [11, 12, 13, 54]  # the budget is 90 samples
    env.reset(seed=0)
    assert (counting.resets, env.step(1)[4]["trained"]) == (2, 11)

    plain = make()
    obs, _ = plain.reset(seed=0)
    obs, *_ = plain.step(Counting()(obs, np.random.default_rng([info["seed"], RULE_STREAM])))
    env.reset(seed=0)
    equal(env.step(1)[0], obs)


def test_environments_share_neither_agents_nor_what_they_return():
    """As `make_vec_env(lambda: AgentChoice(make(), among), 2)` makes them: RS2 remembers how far it is."""
    among = {"rs2": agents.make("random:keep=0.3"), "hard": agents.make("loss_topk:keep=0.3")}
    alone, env, beside = (AgentChoice(make(), among) for _ in range(3))
    for each in (alone, env, beside):
        returned = each.reset(seed=0)[0]
    for at in (0, 0, 1):
        expected, *_ = alone.step(at)
        beside.step(at)
        returned = env.step(at)[0]
        equal(returned, expected)
        for values in returned.values():
            values[:] = 1  # the caller's to write to
        beside.reset(seed=1)


# ---------------------------------------------------------------- errors


@pytest.mark.parametrize("wrapper", [choice, SummaryObservation])
@pytest.mark.parametrize("inner", [SummaryObservation, lambda env: gym.make("CartPole-v1")])
def test_what_needs_the_observation_says_so_at_construction(wrapper, inner):
    with pytest.raises(TypeError, match=r"needs an env with PruneEnv's own spaces.*SummaryObservation\(AgentChoice"):
        wrapper(inner(make()))


@pytest.mark.parametrize(
    ("wrong", "error", "text"),
    [
        ({}, ValueError, r"agents is \{\}; it must name one agent or more"),
        ({"all": everything, "spec": "ucb"}, TypeError, r"agents\['spec'\] is 'ucb', which cannot be called"),
        ([everything], TypeError, "agents is a list; it must be a mapping"),
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


# ---------------------------------------------------------------- vectors


@pytest.mark.parametrize("vectorization", ["sync", "vector_entry_point"])
def test_the_summary_id_makes_a_vector_of_its_runs_over_several_episodes(vectorization):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        env = gym.make_vec("prune_env/DigitsSummary-v0", num_envs=3, vectorization_mode=vectorization, **TASK)
    singles = [SummaryEnv(**TASK) for _ in range(3)]
    assert env.single_action_space == singles[0].action_space
    assert env.single_observation_space == singles[0].observation_space
    seen, _ = env.reset(seed=7)  # batched sums are rounded, hence tolerances
    for k, single in enumerate(singles):
        np.testing.assert_allclose(seen[k], single.reset(seed=7 + k)[0], atol=1e-3)
    ended, episodes, rng = [False] * 3, [0] * 3, np.random.default_rng(0)
    for _ in range(15):
        parameters = rng.uniform(-1, 1, (3, len(RULE_PARAMETERS))).astype(np.float32)
        seen, rewards, terminated, truncated, infos = env.step(parameters)
        for k, single in enumerate(singles):
            if ended[k]:
                (expected, info), reward, ended[k] = single.reset(), 0.0, False
            else:
                expected, reward, ended[k], _, info = single.step(parameters[k])
                episodes[k] += ended[k]
            np.testing.assert_allclose(seen[k], expected, atol=1e-3)
            assert (rewards[k], terminated[k], truncated[k]) == (pytest.approx(reward, abs=1e-3), ended[k], False)
            assert [infos[name][k] for name in ("seed", "trained")] == [info[name] for name in ("seed", "trained")]
    assert min(episodes) >= 2
    assert len(set(episodes)) > 1


def test_members_that_a_reset_spares_keep_history_and_draws():
    env: Any = vector_summary(3, **{**TASK, "budget": 3.0})
    singles = [SummaryEnv(**{**TASK, "budget": 3.0}) for _ in range(3)]
    env.reset(seed=0)
    for k, single in enumerate(singles):
        single.reset(seed=k)
    parameters = np.random.default_rng(1).uniform(-1, -0.4, (6, 3, len(RULE_PARAMETERS)))
    before = np.zeros(0)
    for step in range(6):
        if step == 3:
            seen, _ = env.reset(seed=[0, 9, 0], options={"reset_mask": np.array([False, True, False])})
            np.testing.assert_allclose(seen[1], singles[1].reset(seed=9)[0], atol=1e-6)
            equal(seen[[0, 2]], before[[0, 2]])
        before, _, terminated, *_ = env.step(parameters[step])
        for k, single in enumerate(singles):
            np.testing.assert_allclose(before[k], single.step(parameters[step, k])[0], atol=1e-3)
        assert not terminated.any()


def test_a_vector_needs_a_reset_and_refuses_a_wrong_rule_for_all():
    env, calm = (vector_summary(2, **TASK) for _ in range(2))
    with pytest.raises(gym.error.ResetNeeded, match="reset"):
        env.step(np.zeros((2, 12)))
    equal(env.reset(seed=0), calm.reset(seed=0))
    for wrong in (np.zeros(12), np.full((2, 12), np.nan)):
        with pytest.raises(ValueError, match="a rule is 12 finite numbers"):
            env.step(wrong)
    equal(env.step(np.zeros((2, 12))), calm.step(np.zeros((2, 12))))
