"""An agent's memory as plain values: one that goes on from it decides as if nothing had happened."""

import io
import os
import random
import subprocess
import sys
from abc import ABC, abstractmethod
from collections import OrderedDict, deque
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from enum import Enum
from functools import cache, cached_property, partial, partialmethod
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from sb3_contrib import RecurrentPPO

import agents
from agents import make, switches
from agents.state import Opaque, capture, restore
from prune_env.plain import pack, unpack
from prune_env.policy.features import FEATURES
from prune_env.policy.rules import RULE_PARAMETERS
from tests.agents.test_learned import choosing
from train.execution.companion import Seat

SPECS = [
    *agents.AGENTS,
    "same_amounts:infobatch",
    "same_amounts:forgetting",
    "ucb:keep=0.3+anneal=0.2",
    "seta+mixup=0.5",
    "same_amounts:ccs+mixup=0.3",
    "el2n:scoring=0.5",
]


@pytest.fixture(scope="module")
def env() -> gym.Env:
    return gym.make("prune_env/Digits-v0", train_size=60, budget=8.0, model="mlp:4", batch_size=16, device="cpu")


def run(spec: str, env: gym.Env) -> tuple[list[Any], list[Any], list[bytes]]:
    """Observations, actions, and the memory before each, of an agent that is not interrupted."""
    agent, rng = make(spec), np.random.default_rng(5)
    switches.reset(agent)
    observation, _ = env.reset(seed=3)
    seen, done, memories, ended = [], [], [], False
    while not ended:
        memories.append(pack([capture(agent), capture(rng)]))
        seen.append(observation)
        done.append(agent(observation, rng))
        observation, _, ended, _, _ = env.step(done[-1])
    assert len(done) >= 7
    return seen, done, memories


def follows(agent: Any, rng: np.random.Generator, seen: list[Any], done: list[Any]) -> bool:
    """Whether an agent decides as another did, from here to the end."""
    found = [agent(observation, rng) for observation in seen]
    return all(
        one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one)
        for one, other in zip(found, done, strict=True)
    )


@pytest.mark.parametrize("spec", SPECS)
def test_who_recalls_goes_on_as_if_nothing_had_happened(spec: str, env: gym.Env):
    seen, done, memories = run(spec, env)
    for at in range(len(done)):
        agent, rng = make(spec), np.random.default_rng(0)
        switches.reset(agent)
        for thing, memory in zip((agent, rng), unpack(memories[at]), strict=True):
            restore(thing, memory)
        assert pack([capture(agent), capture(rng)]) == memories[at]
        assert follows(agent, rng, seen[at:], done[at:]), f"{spec} at {at}"


@pytest.mark.parametrize("spec", ["infobatch", "ucb", "seta", "swdpp", "el2n", "learned"])
def test_these_remember_something(spec: str, env: gym.Env):
    """So that the test above can fail: without its memory, or without its generator's, an agent decides otherwise."""
    seen, done, memories = run(spec, env)
    wrong = 0
    for at in range(2, len(done)):
        agent, rng = make(spec), np.random.default_rng(0)
        switches.reset(agent)
        wrong += not follows(agent, rng, seen[at:], done[at:])
        agent_memory, _ = unpack(memories[at])
        assert capture(rng) is not None
        agent = make(spec)
        switches.reset(agent)
        restore(agent, agent_memory)
    assert wrong


def test_a_seat_recalls_and_the_agent_cannot_tell(env: gym.Env):
    """The same through the whole way: agent and generator of a run, as bytes."""
    first = Seat("infobatch", 3)
    observation, _ = env.reset(seed=3)
    ended, memory, later = False, None, []
    while not ended:
        action = first.act(observation)
        if memory is not None:
            later.append((observation, action))
        observation, _, ended, _, _ = env.step(action)
        if memory is None and observation["spent"][0] > 0.4:
            memory = first.memory()
            assert memory == first.memory()  # to look changes nothing
    assert memory is not None
    second = Seat("infobatch", 3)
    second.recall(memory)
    assert len(later) > 2
    for observation, action in later:
        again = second.act(observation)
        assert all(np.array_equal(action[name], again[name]) for name in action)


def test_a_recurrent_policy_of_stable_baselines3(env: gym.Env, tmp_path: Path):
    class Summaries(gym.Env):
        observation_space = gym.spaces.Box(-1.0, 1.0, (len(FEATURES),), np.float32)
        action_space = gym.spaces.Box(-1.0, 1.0, (len(RULE_PARAMETERS),), np.float32)

    model = RecurrentPPO("MlpLstmPolicy", Summaries(), n_steps=8, batch_size=8, seed=0)
    with torch.no_grad():  # not trained, so make it say something that depends on what it saw
        for parameter in model.policy.parameters():
            parameter.mul_(3.0)
    model.save(tmp_path / "model.zip")
    spec = f"learned:{tmp_path / 'model.zip'},trust=True"
    seen, done, memories = run(spec, env)
    at = 4
    for recalls in (True, False):
        agent, rng = make(spec), np.random.default_rng(0)
        agent_memory, generator = unpack(memories[at])
        restore(rng, generator)
        if recalls:
            restore(agent, agent_memory)
        assert follows(agent, rng, seen[at:], done[at:]) == recalls


def test_those_that_a_policy_chooses_among_remember(env: gym.Env, tmp_path: Path):
    spec = f"{choosing(tmp_path / 'policy.zip', 4)},agents=infobatch/seta/same_amounts:ucb/swdpp"
    seen, done, memories = run(spec, env)
    wrong = 0
    for at in range(len(done)):
        for recalls in (True, False):
            agent: Any = make(spec)
            rng = np.random.default_rng(0)
            agent_memory, generator = unpack(memories[at])
            restore(rng, generator)
            restore(agent, agent_memory)
            assert pack([capture(agent), capture(rng)]) == memories[at]
            if not recalls:
                for one in agent.agents:
                    switches.reset(one)
            went = follows(agent, rng, seen[at:], done[at:])
            assert went or not recalls
            wrong += not went
    assert wrong  # without it they decide otherwise


class Holds:
    """Keeps the generator of the run."""

    def __init__(self):
        self.rng = np.random.default_rng(0)

    def __call__(self, observation: Any, rng: np.random.Generator) -> Any:
        self.rng = rng
        return make("full")(observation, rng)


def test_a_memory_that_a_chosen_agent_cannot_be_given_back_is_noticed(env: gym.Env, tmp_path: Path):
    """Its policy is given the generator with the next observation only."""
    spec = f"{choosing(tmp_path / 'policy.zip', 1)},agents=tests.agents.test_state:Holds"
    observation, _ = env.reset(seed=3)
    first, second = Seat(spec, 3), Seat(spec, 3)
    first.act(observation)
    memory = first.memory()
    assert memory is not None
    second.recall(memory)
    assert second.memory() != memory


# Agents of somebody's own


class Nested:
    """Everything that can be remembered."""

    def __init__(self):
        self.rng = np.random.default_rng(7)
        self.inner = SimpleNamespace(counts=np.zeros(3), names=["a"], more={"x": {1: (2, None)}})
        self.list = [np.arange(2), {"rng": np.random.Generator(np.random.PCG64DXSM(1))}]
        self.function, self.kind, self.builtin = make, dict, len
        self.text, self.data, self.flag, self.nothing = "a", b"b", True, None
        self.scalar = np.float32(0.1)

    def act(self) -> float:
        self.inner.counts += self.rng.random(3)
        self.inner.names.append("b" * len(self.inner.names))
        self.inner.more["x"][len(self.inner.names)] = self.inner.counts.sum()
        self.list[0][0] += 1
        self.list[1]["new"] = (self.scalar, float("nan"))
        self.added = [self.text, self.rng.random()]
        if hasattr(self, "flag"):
            del self.flag
        return float(self.inner.counts.sum() + self.list[1]["rng"].random() + self.rng.normal())


def test_nested_objects_generators_and_attributes_that_come_and_go():
    first = Nested()
    for _ in range(3):
        first.act()
    told = capture(first)
    memory = pack(told)
    expected = [first.act() for _ in range(4)]
    assert pack(told) == memory  # a copy: what the agent does later is not in it
    second = Nested()
    restore(second, unpack(memory))
    assert not hasattr(second, "flag")
    assert second.added == ["a", second.added[1]]
    assert second.function is make
    assert second.inner.more["x"][1] == (2, None)
    assert [second.act() for _ in range(4)] == expected
    third = Nested()
    restore(third, unpack(memory))
    assert capture(third) is not None
    assert third.act() == expected[0]  # what the second did to its arrays is not in the bytes either


@dataclass(frozen=True)
class Frozen:
    keep: float = 0.5
    counts: np.ndarray = field(default_factory=lambda: np.zeros(3))


def test_frozen_dataclasses():
    first, second = Frozen(), Frozen()
    first.counts[1] = 4
    object.__setattr__(first, "keep", 0.25)
    restore(second, unpack(pack(capture(first))))
    assert (second.keep, second.counts.tolist()) == (0.25, [0, 4, 0])


class Told:
    """Has its own say, also about what could not be looked at."""

    def __init__(self):
        self.seen, self.asked = deque(maxlen=3), 0

    def state_dict(self) -> dict[str, Any]:
        self.asked += 1
        return {"seen": list(self.seen)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.seen = deque(state["seen"], maxlen=3)


def test_who_has_state_dict_and_load_state_dict_is_asked():
    first, second = SimpleNamespace(inner=Told()), SimpleNamespace(inner=Told())
    first.inner.seen.extend([1.5, 2, 3])
    restore(second, unpack(pack(capture(first))))
    assert second.inner.seen == deque([1.5, 2, 3])
    assert first.inner.asked == 1
    assert second.inner.seen.maxlen == 3


class Half:
    """One of the two methods is none of the protocol."""

    def __init__(self):
        self.x = 1

    def state_dict(self) -> dict[str, Any]:
        raise AssertionError


def test_half_of_the_protocol_is_not_asked():
    first, second = Half(), Half()
    first.x = 2
    restore(second, capture(first))
    assert second.x == 2


class Slots:
    __slots__ = ("a",)


class SomeSlots(Slots):
    pass


class List(list):
    pass


class Error(Exception):
    pass


class Phase(Enum):
    ONE = 1


def count(observation: Any, rng: Any, calls: list[int] = []) -> None:  # noqa: B006  (a memory that some use)
    calls.append(1)


def remembers(observation: Any, rng: Any) -> None:
    remembers.calls = 1  # pyright: ignore[reportFunctionMemberAccess]


remembers(0, 0)


def closure() -> Any:
    count = 0

    def agent(observation: Any, rng: Any) -> int:
        nonlocal count
        count += 1
        return count

    return agent


array = np.zeros(4)
twice = [1]
cyclic: list[Any] = []
cyclic.append(cyclic)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (closure(), "the agent.x is a function with variables of its own"),
        ({1, 2}, "the agent.x is a builtins.set"),
        (frozenset(), "the agent.x is a builtins.frozenset"),
        (deque(), "the agent.x is a collections.deque"),
        (OrderedDict(a=1), "the agent.x is a collections.OrderedDict"),
        (np.array([{}]), "the agent.x is an array of objects"),
        ([array, array[1:]], r"the agent.x\[1\] shares its memory with another array"),
        ({"a": array, "b": array}, r"the agent.x\['b'\] is in two places"),
        ((twice, twice), r"the agent.x\[1\] is in two places"),
        (cyclic, r"the agent.x\[0\] is in two places"),
        ({(1, 2): 3}, r"the agent.x has the key \(1, 2\)"),
        ([{"a": [object()]}], r"the agent.x\[0\]\['a'\]\[0\] is a builtins.object"),
        (Slots(), "the agent.x is a .*Slots"),
        (List(), "the agent.x is a .*List"),
        (iter([1]), "the agent.x is a builtins.list_iterator"),
        # what is not in its attributes would be lost
        (torch.zeros(2), "the agent.x is a torch.Tensor"),
        (torch.Generator(), "the agent.x is a torch._C.Generator"),
        (random.Random(0), "the agent.x is a random.Random"),
        (np.random.RandomState(0), "the agent.x is a numpy.random.mtrand.RandomState"),
        (Nested().act, "the agent.x is a builtins.method"),
        (partial(Nested.act, Nested()), "the agent.x is a functools.partial"),
        (np.random.default_rng(0).random, "the agent.x is a "),
        ([1].append, "the agent.x is a function with variables of its own"),
        (count, "the agent.x is a function with variables of its own"),
        (remembers, "the agent.x is a function with variables of its own"),
        (SomeSlots(), "the agent.x is a .*SomeSlots"),
        (Error("a"), "the agent.x is a .*Error"),
        (Phase.ONE, "the agent.x is a .*Phase"),  # there is one of each: to restore another into it would change both
        (np.ma.array([1]), "the agent.x is a numpy.ma.*MaskedArray"),
    ],
)
def test_what_cannot_be_told_is_refused_by_place(value: Any, words: str):
    with pytest.raises(Opaque, match=f"^{words}"):
        capture(SimpleNamespace(x=value))


def test_equal_constants_and_what_is_soon_gone_are_in_one_place_each():
    """Python has one empty tuple, and gives an address again as soon as it is free."""
    state = capture(SimpleNamespace(a=(), b=(), c=[(1, 2), (1, 2)], told=[Told() for _ in range(50)]))
    assert state[2]["a"] == state[2]["b"] == ["tuple", []]
    capture([np.random.default_rng(i) for i in range(50)])


def test_functions_remember_nothing_and_closures_are_refused():
    restore(np.argsort, capture(np.argsort))
    assert capture(make) == ["function", "agents.make"]
    with pytest.raises(Opaque, match=r"^the agent is a function with variables of its own"):
        capture(closure())


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (SimpleNamespace(x=np.random.Generator(np.random.MT19937(0))), "the agent.x is no generator of the same kind"),
        (SimpleNamespace(x=3), "the agent.x is no generator of the same kind"),
        (SimpleNamespace(), "the agent.x is no generator of the same kind"),
        (Frozen(), "the agent is no types.SimpleNamespace"),
        (make, "the agent is no types.SimpleNamespace"),
    ],
)
def test_memory_of_another_agent_is_refused(other: Any, words: str):
    state = capture(SimpleNamespace(x=np.random.default_rng(0)))
    with pytest.raises(Opaque, match=words):
        restore(other, unpack(pack(state)))


def test_other_functions_and_objects_are_refused():
    state = capture(SimpleNamespace(f=make, inner=Told()))
    for other in (
        SimpleNamespace(f=len, inner=Told()),
        SimpleNamespace(f=make, inner=Half()),
        SimpleNamespace(f=make, inner=None),
        SimpleNamespace(f=None, inner=Told()),
    ):
        with pytest.raises(Opaque, match="when the agent is new"):
            restore(other, state)


class Scalars:
    """Remembers scalars of numpy as they come out of its arithmetic."""

    def __init__(self):
        self.arm, self.mean = np.int64(0), np.float32(0.0)


def test_scalars_of_numpy_stay_scalars():
    one, other = Scalars(), Scalars()
    one.arm, one.mean = np.int64(2), np.float32(0.1)
    restore(other, unpack(pack(capture(one))))
    names: dict[Any, str] = {2: "a"}
    assert names[other.arm] == "a"
    assert type(other.mean) is np.float32
    assert type(other.mean + np.float64(1)) is type(one.mean + np.float64(1))
    assert other.mean == one.mean


EASY = lambda observation: observation["loss"]  # noqa: E731
HARD = lambda observation: -observation["loss"]  # noqa: E731


def renamed(observation: Any) -> Any:
    return observation


renamed.__qualname__ = "EASY"


class Local:
    def rule(self) -> Any:
        def inner(observation: Any) -> Any:
            return observation

        return inner


@pytest.mark.parametrize("function", [EASY, Local().rule(), renamed, type("Nowhere", (), {})])
def test_what_a_module_does_not_have_by_its_name_is_refused(function: Any):
    """Two lambdas have one name, so that the one in place of the other would not be noticed."""
    with pytest.raises(Opaque, match=r"^the agent.x is a function, or a class, that its module does not have"):
        capture(SimpleNamespace(x=function))


def test_the_generator_of_the_run_stays_that():
    """An agent may hold what it is called with: afterwards both are one again."""
    rng, other = np.random.default_rng(3), np.random.default_rng(0)
    first = SimpleNamespace(own=np.random.default_rng(7), rng=rng, more=[{"rng": rng}])
    second = SimpleNamespace(own=np.random.default_rng(7), rng=np.random.default_rng(7), more=[])
    rng.random(5)
    first.own.random(2)
    restore(second, unpack(pack(capture(first, rng))), other)
    restore(other, unpack(pack(capture(rng))))
    assert second.rng is second.more[0]["rng"] is other
    assert [second.rng.random(), other.random(), second.own.random()] == [
        rng.random(),
        rng.random(),
        first.own.random(),
    ]


def test_generators_that_share_their_numbers_are_refused():
    rng = np.random.default_rng(3)
    with pytest.raises(Opaque, match=r"^the bit generator of the agent.x is in two places"):
        capture(SimpleNamespace(x=np.random.Generator(rng.bit_generator)), rng)
    with pytest.raises(Opaque, match=r"^the bit generator of the agent\[1\] is in two places"):
        capture([rng, np.random.Generator(rng.bit_generator)])


@pytest.mark.parametrize(
    "one",
    [
        [],
        {},
        set(),
        np.zeros(2),
        np.random.default_rng(0),
        deque(),
        (1, []),
        SimpleNamespace(),
        object(),
        Told(),
        [].append,
        # functions, for methods are that
        closure(),
        remembers,
        cache(len),
        property(closure()),
        property(None, None, cache(print)),
        staticmethod(closure()),
        classmethod(closure()),
        cached_property(closure()),
        partialmethod(closure()),
        Told().state_dict,
        (closure(),),
        # classes, for these have things in turn
        type("Inner", (), {"losses": []}),
        type("Inner", (type("Above", (), {"losses": []}),), {}),
        type("Inner", (), {"deeper": type("Inmost", (), {"losses": []})}),
        (type("Inner", (), {"__memory__": []}),),
        staticmethod(type("Inner", (), {"losses": {}})),
    ],
)
def test_what_a_class_has_and_could_change_is_refused(one: Any):
    with pytest.raises(Opaque, match=r"^the agent could remember something in Has\._one, which its class has"):
        capture(type("Has", (), {"_one": one})())


def test_a_call_that_could_remember_something_is_refused():
    """Of what Python gives its meaning by its name, this is what runs at each decision."""
    with pytest.raises(Opaque, match=r"^the agent could remember something in Has\.__call__, which its class has"):
        capture(type("Has", (), {"__call__": closure()})())


class Config:
    losses: list[float] = []  # noqa: RUF012
    limit = 3


class Limits:
    limit = 3
    myself: Any = None


Limits.myself = Limits


@pytest.mark.parametrize("hold", [lambda kind: kind, lambda kind: [kind], lambda kind: {"a": (kind,)}])
def test_a_class_in_an_attribute_is_looked_into(hold: Any, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(Opaque, match=r"could remember something in Config\.losses, which its class has"):
        capture(SimpleNamespace(held=hold(Config)))
    agent = SimpleNamespace(held=hold(Limits))
    before = pack(capture(agent))
    assert pack(capture(agent)) == before
    monkeypatch.setattr(Limits, "limit", 4)
    assert pack(capture(agent)) != before
    restore(agent, unpack(before))
    assert agent.held == hold(Limits)


def test_an_attribute_of_a_constructor_could_be_changed():
    def init(self) -> None:
        init.count += 1  # pyright: ignore[reportFunctionMemberAccess]

    init.count = 0  # pyright: ignore[reportFunctionMemberAccess]
    with pytest.raises(Opaque, match=r"could remember something in Has\.__init__"):
        capture(type("Has", (), {"__init__": init})())


def harmless(observation: Any) -> Any:
    return observation


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (0, 1),
        (1, True),
        (0.1, np.nextafter(0.1, 1.0).item()),
        (np.float32(1), np.float64(1)),
        ((1, (2, 3)), (1, (3, 2))),
        (frozenset({"a", "b"}), frozenset({"a", "c"})),
        (Slots, SomeSlots),
        (len, max),
        (harmless, make),
        (np.argsort, np.sort),
    ],
)
def test_a_class_whose_names_stand_for_other_values_is_another(one: Any, other: Any):
    """An agent that counts in its class has another count than a new one."""
    base = type("Base", (), {"x": one})
    kind = type("Kind", (base,), {})
    agent, before = kind(), pack(capture(kind()))
    assert pack(capture(agent)) == before
    setattr(base, "x", other)  # noqa: B010
    assert pack(capture(agent)) != before
    setattr(base, "x", one)  # noqa: B010
    assert pack(capture(agent)) == before
    setattr(kind, "x", one)  # noqa: B010  (as `cls.x = ...` does)
    assert pack(capture(agent)) != before


def test_what_a_class_has_is_told_alike_by_every_process():
    """No address in it, and no order of hashes."""
    code = "class Has:\n    names = frozenset('abcdefgh')\n    kind, builtin = dict, (len, abs)\n"
    code += "    def act(self): ...\n    also = act, classmethod(act), property(act)\n    once = property(act)\n"
    code += "from agents.state import capture\nprint(capture(Has()), end='')\n"
    environment = {**os.environ, "PYTHONHASHSEED": "1"}
    there = subprocess.check_output([sys.executable, "-c", code], env=environment, cwd=Path(__file__).parents[2])
    here = io.StringIO()
    with redirect_stdout(here):
        exec(code, {"__name__": "__main__"})
    assert there.decode() == here.getvalue() != ""


class Abstract(ABC):
    @abstractmethod
    def what(self) -> int: ...


class Constants(Abstract):
    """What cannot change, or belongs to classes."""

    a, b, c, d = 1, (2.5, "x", (None, b"y")), frozenset({"a", "b", "c", "d"}), np.float32(0.1)
    kind, function, builtin, numpys = dict, make, len, np.argsort
    inner = Told

    def what(self) -> int:
        return 1

    def __call__(self) -> int:
        return super().__hash__()  # has `__class__`

    @property
    def twice(self) -> int:
        return 2

    @classmethod
    def of(cls) -> int:
        return 3

    @staticmethod
    def plain() -> int:
        return 4

    @cached_property
    def found(self) -> int:
        return 2


def test_a_class_may_have_constants_and_methods():
    first, second = Constants(), Constants()
    assert first.found == 2
    restore(second, capture(first))
    assert vars(second) == {"found": 2}


SEATED = """
import numpy as np
from prune_env import select

EASY, HARD = lambda loss: -loss, lambda loss: loss

def top(score):
    return select(np.argsort(-score)[: len(score) // 2], n=len(score))

class Alias:
    def __init__(self):
        self.rng, self.first = np.random.default_rng(0), True

    def __call__(self, observation, rng):
        if self.first:
            self.rng, self.first = rng, False
        n = len(observation["loss"])
        return top(self.rng.random(n) + 2 * rng.random(n))

class Switches:
    def __init__(self):
        self.rule, self.steps = EASY, 0

    def __call__(self, observation, rng):
        self.steps += 1
        if self.steps == 2:
            self.rule = HARD
        return top(self.rule(observation["loss"]))
"""


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("Alias", None),
        ("Switches", "the agent.rule is a function, or a class, that its module does not have by its name"),
    ],
)
def test_a_seat_goes_on_bit_for_bit_or_says_that_it_cannot(
    name: str, why: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "seated.py").write_text(SEATED)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "seated", raising=False)
    observations = [{"loss": np.random.default_rng([9, t]).random(60, np.float32)} for t in range(6)]
    first, second = Seat(f"seated:{name}", 0), Seat(f"seated:{name}", 0)
    for observation in observations[:3]:
        first.act(observation)
    if why is not None:
        with pytest.warns(UserWarning, match=f"^no checkpoints of runs with agent 'seated:{name}': Opaque: {why}"):
            assert first.memory() is None
        return
    memory = first.memory()
    assert memory is not None
    second.recall(memory)
    for observation in observations[3:]:
        assert np.array_equal(first.act(observation)["weight"], second.act(observation)["weight"])


class Shared:
    seen: list[int] = []  # noqa: RUF012


@pytest.mark.parametrize("what", ["spawned", "of the class", "transposed"])
def test_memory_that_would_come_back_another_is_refused(what: str):
    agent: Any = Scalars()
    if what == "spawned":
        agent.arm = np.random.default_rng(0)
        capture(agent)
        agent.arm.spawn(1)
    elif what == "of the class":
        agent = Shared()
    else:
        agent.arm = np.ones((2, 3)).T
    with pytest.raises(Opaque):
        capture(agent)
