"""The language of specs: what one builds, what it may hold, what is wrong with one."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import agents
from agents import AGENTS, make, own_files, parse, spec_with_keep
from agents.learned import SHIPPED
from agents.switches import SameAmounts, Switched

ROOT = Path(__file__).resolve().parents[2]
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


def settings_of(agent: Any) -> Any:
    """An agent as nested names and settings."""
    if isinstance(agent, Switched):
        return {"anneal": agent.anneal, "mixup": agent.mixup, "agent": settings_of(agent.agent)}
    return ["same", settings_of(agent.agent)] if isinstance(agent, SameAmounts) else repr(agent)


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("ucb:", "UCB(keep=0.5, c=1.0, period=0.05)"),
        ("ucb:keep=0.3, c=1e+5", "UCB(keep=0.3, c=100000.0, period=0.05)"),
        (
            "ucb:c=1e+5+anneal=1e-1+mixup=5e-1",
            {"anneal": 0.1, "mixup": 0.5, "agent": "UCB(keep=0.5, c=100000.0, period=0.05)"},
        ),
        ("full+anneal=0.125+mixup=1", {"anneal": 0.125, "mixup": 1, "agent": "Full()"}),
        ("same_amounts:same_amounts:ucb:c=2", ["same", ["same", "UCB(keep=0.5, c=2, period=0.05)"]]),
        ("same_amounts:full+mixup=0.5", {"anneal": 0.0, "mixup": 0.5, "agent": ["same", "Full()"]}),
    ],
)
def test_what_a_spec_builds(spec, expected):
    assert settings_of(make(spec)) == expected


def test_every_name_builds_its_class():
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


PATHS = st.text("ab/+=,:. _", min_size=1).map(lambda path: f"{path}policy.safetensors")


@settings(deadline=None)
@given(PATHS, st.sampled_from(["", "+mixup=0.5", "+anneal=1e-1+mixup=1"]), st.sampled_from(["", "same_amounts:"]))
@example("runs/a+b=1/policy.safetensors", "", "")
@example("a+mixup=0.5/b,trust=True/c:keep=3,agents/p,lr=0.1.safetensors", "+mixup=0.5", "same_amounts:")
def test_a_path_may_have_any_sign_in_it(path, switches, around):
    spec = f"{around}learned:{path}{switches}"
    parsed = parse(spec)
    assert parsed.switches == {k: float(v) for k, _, v in (s.partition("=") for s in switches.split("+")[1:])}
    inner = parse(parsed.within[0]) if around else parsed
    assert (inner.name, inner.options, inner.within) == ("learned", {"path": path}, ())
    assert own_files(spec) == [Path(path)]
    assert spec_with_keep(spec, 0.3) == spec


def test_a_policy_in_such_a_folder_is_read(tmp_path):
    folder = tmp_path / "lr=0.1,seed:3" / "a+b=1"
    folder.mkdir(parents=True)
    (folder / "policy.safetensors").write_bytes(SHIPPED.read_bytes())
    agent: Any = make(f"learned:{folder}/policy.safetensors+mixup=0.5")
    assert agent.agent.path == f"{folder}/policy.safetensors"


def test_agents_that_a_policy_chooses_among_may_have_options_and_switches():
    parsed = parse("learned:p.zip,trust=True,agents=full/ucb:keep=0.3,c=1e+5/random+mixup=0.1/full+anneal=0.5")
    assert parsed.options == {"path": "p.zip", "trust": True}
    assert parsed.within == ("full", "ucb:keep=0.3,c=1e+5", "random+mixup=0.1", "full")
    assert parsed.switches == {"anneal": 0.5}


WRONG = {
    "ucbb:keep=0.3": ["'ucbb:keep=0.3'", *AGENTS, "module:Class"],
    "": ["unknown agent ''"],
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
    "nowhere:Agent": ["'nowhere'", "cannot be imported"],
    "broken:Agent": ["'broken'", "there_is_no_such_module"],
    "mine:Nobody": ["'mine'", "'Nobody'"],
    "mine:number": ["mine:number", "3", "cannot be called"],
    "mine:function:keep=0.3": ["mine:function", "takes no options"],
    "mine:MyAgent": ["'sizes'", "sizes, keep=0.5, mode='a,b'"],
    "ucb+keep=0.3": ["'ucb+keep=0.3'", "'keep'", "anneal, mixup"],
    "ucb+mixup=0.5+mixup=0.3": ["'ucb+mixup=0.5+mixup=0.3'", "once"],
    "ucb+mixup": ["'ucb+mixup'", "unknown agent"],
    "ucb+mixup=half": ["mixup=half", "literal"],
    "ucb+mixup=1.5": ["mixup must be a number in [0, 1]", "1.5"],
    "+mixup=0.5": ["unknown agent"],
    "same_amounts": ["same_amounts:AGENT"],
    "same_amounts:+mixup=0.5": ["same_amounts:AGENT"],
    "same_amounts:ucbb": ["unknown agent 'ucbb'"],
    "same_amounts:infobatch:keep=0.3": ["'keep'", "r=0.5, anneal=0.125"],
    "learned:policy.zip": ["learned:policy.zip,trust=True", "safetensors"],
    "learned:a+b=1/policy.safetensors": ["policy a+b=1/policy.safetensors cannot be read", "No such file"],
}


@pytest.mark.parametrize("spec", WRONG)
def test_what_is_wrong_with_a_spec_is_said(mine, spec):
    for build in (make, agents.check):
        with pytest.raises(ValueError) as error:  # noqa: PT011
            build(spec)
        for word in WRONG[spec]:
            assert word in str(error.value)


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
    assert [agents.is_ours(spec) for spec in ("ucb", "same_amounts:mine:function")] == [True, False]


def test_a_module_in_the_folder_where_a_program_runs(tmp_path):
    (tmp_path / "my_module.py").write_text(MINE)
    program = "import agents; print(agents.make('my_module:MyAgent:sizes=3').settings)"
    run = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert run.stdout == "(3, 0.5, 'a,b')\n", run.stderr


def test_an_agents_file_works_when_it_is_copied(tmp_path):
    """With numpy and the wheel alone, under another name; torch is slow to import, so all files share a process."""
    rest = ("__init__", "learned", "state")
    names = [f"copy_of_{path.stem}" for path in (ROOT / "agents").glob("*.py") if path.stem not in rest]
    for name in names:
        (tmp_path / f"{name}.py").write_bytes((ROOT / "agents" / f"{name.removeprefix('copy_of_')}.py").read_bytes())
    program = f"""
import importlib, importlib.abc, sys
class Nothing(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        assert name.split(".")[0] not in ("agents", "train", "tests", "scipy"), name
sys.meta_path.insert(0, Nothing())
for name in {names}:
    importlib.import_module(name)
print("imported", len({names}))
"""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    run = subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, text=True)
    assert run.stdout == f"imported {len(names)}\n", run.stderr
    assert len(names) > 8
