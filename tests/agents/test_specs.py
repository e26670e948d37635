"""The language of specs: what one builds, what it may hold, what is wrong with one."""

import ast
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import agents
from agents import AGENTS, make, own_files, parse, spec_with_keep
from agents.bandits import UCB
from agents.baselines import Full
from agents.learned import Learned
from agents.switches import SameAmounts, Switched
from prune_env.policy.learned import SHIPPED

MINE = """
import numpy as np
from prune_env import select
class MyAgent:
    def __init__(self, sizes, keep=0.5, mode="a,b"):
        self.settings = sizes, keep, mode
    def __call__(self, observation, rng):
        return {}
class Unmade:
    def __init__(self):
        raise AssertionError
    def __call__(self, observation, rng): ...
class Counter:
    calls = 0
    def __call__(self, observation, rng):
        self.calls += 1
        return select(np.ones(3))
counter = Counter()
def function(observation, rng):
    return select(np.ones(3))
number = 3
"""


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """A module of the user's own, and one that cannot be imported."""
    (tmp_path / "mine.py").write_text(MINE)
    (tmp_path / "broken.py").write_text("import there_is_no_such_module")
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path / "mine.py"
    sys.modules.pop("mine", None)


BUILDS = {
    "ucb:": UCB(),
    "ucb:keep=0.3, c=1e+5": UCB(keep=0.3, c=100000.0),
    "ucb:c=1e+5+anneal=1e-1+mixup=5e-1": Switched(agent=UCB(c=100000.0), anneal=0.1, mixup=0.5),
    "full+anneal=0.125+mixup=1": Switched(agent=Full(), anneal=0.125, mixup=1),
    "same_amounts:same_amounts:ucb:c=2": SameAmounts(agent=SameAmounts(agent=UCB(c=2))),
    "same_amounts:full+mixup=0.5": Switched(agent=SameAmounts(agent=Full()), mixup=0.5),
    "learned": Learned(path=str(SHIPPED)),
    f"learned:{SHIPPED},trust=False": Learned(),
    f"same_amounts:learned:{SHIPPED},trust=True+anneal=0.25": Switched(
        agent=SameAmounts(agent=Learned(trust=True)), anneal=0.25
    ),
}


def test_what_a_spec_builds():
    assert {spec: make(spec) for spec in BUILDS} == BUILDS
    assert {name: type(make(name)) for name in AGENTS} == AGENTS


def test_agents_of_your_own(mine):
    agent: Any = make("mine:MyAgent:sizes=(1, 2),mode='x:y,z'")
    assert agent.settings == ((1, 2), 0.5, "x:y,z")
    assert make("mine:function")({}, np.random.default_rng())["weight"].tolist() == [1] * 3
    make("mine:counter")({}, np.random.default_rng())
    assert sys.modules["mine"].counter.calls == 0  # an instance passes no state from run to run
    agents.check("same_amounts:mine:Unmade")  # it is not made
    with pytest.raises(agents.Unimportable, match="there_is_no_such_module"):
        agents.check("broken:Agent")


PATHS = st.text("ab/+=,:. _", min_size=1).map(lambda path: f"{path}policy.npz")


@settings(deadline=None)
@given(PATHS, st.sampled_from(["", "+mixup=0.5", "+anneal=1e-1+mixup=1"]), st.sampled_from(["", "same_amounts:"]))
@example("runs/a+b=1/policy.npz", "", "")
@example("a+mixup=0.5/b,trust=True/c:keep=3,agents/p,lr=0.1.npz", "+mixup=0.5", "same_amounts:")
def test_a_path_may_have_any_sign_in_it(path, switches, around):
    spec = f"{around}learned:{path}{switches}"
    parsed = parse(spec)
    assert parsed.switches == {k: float(v) for k, _, v in (s.partition("=") for s in switches.split("+")[1:])}
    inner = parse(parsed.within[0]) if around else parsed
    assert (inner.name, inner.options, inner.within) == ("learned", {"path": path}, ())
    assert own_files(spec) == [Path(path)]
    assert spec_with_keep(spec, 0.3) == spec


def test_a_policy_in_such_a_folder_is_read(tmp_path):
    folder = tmp_path / "lr=0.1,seed:3" / "it's é, a+b=1"
    folder.mkdir(parents=True)
    (folder / "policy.npz").write_bytes(SHIPPED.read_bytes())
    agent: Any = make(f"learned:{folder}/policy.npz+mixup=0.5")
    assert agent.agent.path == f"{folder}/policy.npz"


def test_agents_that_a_policy_chooses_among_may_have_options_and_switches():
    parsed = parse("learned:p.zip,trust=True,agents=full/ucb:keep=0.3,c=1e+5/random+mixup=0.1/full+anneal=0.5")
    assert parsed.options == {"path": "p.zip", "trust": True}
    assert parsed.within == ("full", "ucb:keep=0.3,c=1e+5", "random+mixup=0.1", "full")
    assert parsed.switches == {"anneal": 0.5}


WRONG = {
    "ucbb:keep=0.3": ["'ucbb:keep=0.3'", *AGENTS, "module:Class"],
    "": ["unknown agent ''; there are full"],
    "midle:keep=0.3": ["unknown agent 'midle:keep=0.3'; did you mean middle? there are full"],
    ":MyAgent": ["unknown agent ':MyAgent'"],
    "ucb:kep=0.3": ["'kep'", "keep=0.5, c=1.0, period=0.05"],
    "full:keep=0.3": ["'keep'", "the options of full are: none"],
    "ucb:0.3": ["'0.3'", "option=value"],
    "ucb:keep=": ["'keep='", "option=value"],
    "ucb:keep=0.3)(c=2": ["'keep=0.3)(c=2'", "option=value"],
    "ucb:keep=0.3,keep=0.5": ["keep=0.5", "once"],
    "ucb:**{}": ["**{}"],
    "ucb:keep=abc": ["keep=abc", "literal"],
    "ucb:keep=3": ["keep", "(0, 1]", "3"],
    "nowhere:Agent": ["'nowhere'", "cannot be imported", "start in the folder that holds it"],
    "nowhere.py:Agent:keep=0.3": ["'nowhere.py'", "without .py: nowhere:Agent"],
    "broken:Agent": ["'broken'", "there_is_no_such_module"],
    "mine:Nobody": ["'mine'", "'Nobody'", "mine.py"],
    "mine:number": ["mine:number", "3", "cannot be called"],
    "mine:function:keep=0.3": ["mine:function", "takes no options"],
    "mine:MyAgent": ["'sizes'", "sizes, keep=0.5, mode='a,b'"],
    "ucb+keep=0.3": ["'ucb+keep=0.3'", "'keep'", "anneal, mixup, oscillate"],
    "ucb+mixup=0.5+mixup=0.3": ["'ucb+mixup=0.5+mixup=0.3'", "once"],
    "ucb+mixup": ["'ucb+mixup'", "unknown agent"],
    "ucb+mixup=half": ["mixup=half", "literal"],
    "ucb+mixup=1.5": ["mixup must be a number in [0, 1]", "1.5"],
    "+mixup=0.5": ["unknown agent"],
    "same_amounts": ["same_amounts:AGENT"],
    "same_amounts:+mixup=0.5": ["same_amounts:AGENT"],
    "same_amounts:ucbb": ["unknown agent 'ucbb'"],
    "same_amounts:infobatch:keep=0.3": ["'keep'", "r=0.5, anneal=0.125"],
    "learned:policy.zip": ["learned:policy.zip,trust=True", "npz"],
    "learned:a+b=1/policy.npz": ["policy a+b=1/policy.npz cannot be read", "No such file"],
    "learned:p.npz,trust='no'": ["trust must be True or False"],
    "learned:nowhere.zip,trust=True": ["policy nowhere.zip cannot be read", "No such file"],
    f"learned:{SHIPPED},agents=full/random": ["is given 2 agents, but it chooses rules: leave out agents="],
    f"learned:{SHIPPED},agents=full/randon": ["unknown agent 'randon'", "there are full, random"],
    f"learned:{SHIPPED},agents=full/": ["unknown agent ''"],
    f"learned:{SHIPPED},agents=ucb:d=2": ["agent 'ucb:d=2'", "'d'", "c="],
}


def test_what_is_wrong_with_a_spec_is_said(mine):
    for spec, words in WRONG.items():
        for build in (make, agents.check):
            with pytest.raises(ValueError) as error:  # noqa: PT011
                build(spec)
            for word in words:
                assert word in str(error.value), spec


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("ucb", "ucb:keep=0.3"),
        ("ucb:c=1e+5+mixup=0.5+anneal=0.1", "ucb:keep=0.3,c=1e+5+mixup=0.5+anneal=0.1"),
        ("same_amounts:same_amounts:ucb:c=2+anneal=0.1", "same_amounts:same_amounts:ucb:keep=0.3,c=2+anneal=0.1"),
        ("mine:MyAgent:sizes=1", "mine:MyAgent:keep=0.3,sizes=1"),
        ("learned:p.zip,agents=ucb/full+mixup=0.5", "learned:p.zip,agents=ucb:keep=0.3/full+mixup=0.5"),
        ("ucb:keep=0.7+mixup=0.5", "ucb:keep=0.7+mixup=0.5"),
        ("infobatch+mixup=0.5", "infobatch+mixup=0.5"),
        ("mine:function", "mine:function"),
        ("learned", "learned"),
    ],
)
def test_spec_with_keep(mine, spec, expected):
    assert spec_with_keep(spec, 0.3) == expected
    assert spec_with_keep(expected, 0.9) == expected  # what is set stays


def test_the_files_of_a_users_own(mine):
    assert [own_files(spec) for spec in ("ucb", "same_amounts:random+mixup=0.5", "learned")] == [[], [], []]
    assert own_files("learned:p.zip,agents=full/mine:MyAgent/learned:q.zip") == [Path("p.zip"), mine, Path("q.zip")]


def test_an_agents_file_can_be_copied(repository):
    """It imports nothing but numpy, prune_env and Python's own modules."""
    files = [path for path in (repository / "agents").glob("*.py") if path.stem not in ("__init__", "learned")]
    assert len(files) > 8
    for path in files:
        nodes = list(ast.walk(ast.parse(path.read_text())))
        names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
        names += [str(node.module) for node in nodes if isinstance(node, ast.ImportFrom)]
        assert {name.partition(".")[0] for name in names} <= {"numpy", "prune_env", *sys.stdlib_module_names}, path
