"""Agents: rules that say which samples the next step trains on.

An agent is a callable `agent(observation, rng) -> action`, numpy in and out; `prune_env.select` builds the
action. One that keeps state has `reset()`, called at the start of each episode. A line names and sets one:
`ucb`, `ucb:keep=0.3,c=2`, `learned:policy.safetensors`, `my_module:MyAgent`, `my_module:MyAgent:keep=0.3`,
`my_module:function`; what it is wrapped in stands around that: `same_amounts:infobatch`,
`ucb:keep=0.5+anneal=0.125+mixup=0.5`. A policy that chooses among agents has them at its end:
`learned:policy.zip,trust=True,agents=full/ucb:keep=0.3,c=2/random`.
"""

from __future__ import annotations

import ast
import copy
import hashlib
import importlib
import inspect
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any, cast

from agents import learned, rules, switches
from agents.bandits import UCB, UCB1, EpsilonGreedy
from agents.baselines import Full, Random, StaticRandom
from agents.difficulty import LossTopK, Middle, OrderDP
from agents.infobatch import InfoBatch
from agents.kakurenbo import Kakurenbo
from agents.learned import Learned
from agents.repb import RePB
from agents.rules import RandomRule, Rule
from agents.seta import SeTa
from agents.statics import CCS, EL2N, Forgetting, Grand
from agents.swdpp import SwDPP
from agents.switches import SameAmounts, Switched
from prune_env import sampling
from prune_env.policy import features
from prune_env.policy import rules as policy_rules
from prune_env.sampling import Agent

AGENTS: dict[str, type] = {
    "full": Full,
    "random": Random,
    "static_random": StaticRandom,
    "epsilon_greedy": EpsilonGreedy,
    "ucb": UCB,
    "ucb1": UCB1,
    "swdpp": SwDPP,
    "infobatch": InfoBatch,
    "loss_topk": LossTopK,
    "middle": Middle,
    "orderdp": OrderDP,
    "seta": SeTa,
    "kakurenbo": Kakurenbo,
    "repb": RePB,
    "el2n": EL2N,
    "forgetting": Forgetting,
    "grand": Grand,
    "ccs": CCS,
    "learned": Learned,
    "rule": Rule,
    "random_rule": RandomRule,
}
SAME_AMOUNTS = "same_amounts"
AMONG = ",agents="  # stands before those that a learned policy chooses among
SWITCHES = ("anneal", "mixup")
SWITCH = r"\+(?=[A-Za-z_]\w*=)"  # stands before each in a spec; 1e+5 is a number


class Unimportable(ValueError):
    """A module of somebody's own that is there, but raises when it is imported."""


def make(spec: str) -> Agent:
    """Build the agent that `spec` describes.

    Args:
        spec: `name[:option=value,...]` with a name in AGENTS, or `module:attribute[:option=value,...]` where
            the attribute is a class, or a function that is the agent itself and takes no options; or
            `same_amounts:` and another spec. Each may be followed by `+anneal=SHARE` and `+mixup=PROBABILITY`. Values
            are Python literals. `learned:PATH[,option=value,...]` may end in `,agents=` and the specs of those that the
            policy chooses among, with a slash between each two. All up to the next slash is an agent's, also its
            commas, so that it can have several options, but no slash; switches are the whole policy's. Who needs
            either within names an agent of a module.

    Raises:
        ValueError: an unknown name, option or switch, a value that is no literal or out of range, a module that
            cannot be imported or has no such attribute.
    """
    base, switched = _switches(spec)
    agent = _make(base, [make(other) for other in _within(base)])
    return Switched(agent=agent, **switched) if switched else agent


def _make(spec: str, within: list[Agent]) -> Agent:
    """The agent of a spec without switches, around those of the specs `within`."""
    if _is_same_amounts(spec):
        return SameAmounts(agent=within[0])
    found, settings = _bind(spec)
    if within:
        settings["agents"] = within
    # an instance may keep state, which must not pass from run to run
    return found(**settings) if isinstance(found, type) else copy.deepcopy(found)


def is_ours(spec: str) -> bool:
    """Whether the agent of `spec`, and any within, is one of AGENTS; to look at others runs code of somebody's own.

    Raises:
        ValueError: it is neither, or its switches are wrong.
    """
    base, _ = _switches(spec)
    return all(map(is_ours, _within(base))) and (_is_same_amounts(base) or _split(base)[0] in AGENTS)


def check(spec: str) -> None:
    """Check all of `spec` that can be checked without running code of the agent's, but for what its module imports.

    The agents of this package are built; of others it is looked whether they can be found and take the options.

    Raises:
        ValueError: as for `make`.
    """
    base, switched = _switches(spec)
    within = _within(base)
    for other in within:
        check(other)
    if _is_same_amounts(base) or _split(base)[0] in AGENTS:
        _make(base, [Full() for _ in within])
    else:
        _bind(base)
    Switched(agent=Full(), **switched)


def _bind(spec: str) -> tuple[Any, dict[str, Any]]:
    """What a spec without switches names, and the options that it takes."""
    name, options = _split(spec)
    found = _find(spec, name)
    settings = _parse(spec, options)
    if not isinstance(found, type):
        if settings:
            raise ValueError(f"agent {spec!r}: {name} is not a class, so it takes no options")
        return found, settings
    signature = inspect.signature(found)
    try:
        signature.bind(**settings)
    except TypeError as error:
        plain = [str(option.replace(annotation=option.empty)) for option in signature.parameters.values()]
        known = ", ".join(plain) or "none"
        raise ValueError(f"agent {spec!r}: {error}; the options of {name} are: {known}") from None
    return found, settings


def spec_with_keep(spec: str, keep: float) -> str:
    """`spec` with `keep` set to this share if its agent takes one and `spec` does not set it; else `spec`.

    Raises:
        ValueError: as for `make`, but for values that only the agent checks.
    """
    base, _ = _switches(spec)
    rest = spec[len(base) :]
    if within := _within(base):
        head = base[: len(base) - len("/".join(within))]
        return head + "/".join(spec_with_keep(other, keep) for other in within) + rest
    name, options = _split(base)
    found = _find(base, name)
    takes_keep = isinstance(found, type) and "keep" in inspect.signature(found).parameters
    if not takes_keep or "keep" in _parse(base, options):
        return spec
    return f"{name}:keep={keep}" + (f",{options}" if options else "") + rest


def source_digest(spec: str) -> str:
    """SHA-256 (hex) of the agent's code: the files of the modules that `spec` names, and prune_env/sampling.py.

    Of a learned policy also its file, features and rules. What a module of yours imports is not looked at.

    Raises:
        ValueError: an unknown agent, as for `make`, or a module without a source file.
    """
    digest = hashlib.sha256()
    for module in [*_modules(spec), sampling]:
        if module.__file__ is None:
            raise ValueError(f"agent {spec!r}: module {module.__name__} has no source file")
        digest.update(hashlib.sha256(Path(module.__file__).read_bytes()).digest())
    for policy in _policies(spec):
        digest.update(hashlib.sha256(Path(policy).read_bytes()).digest())
    return digest.hexdigest()


def _policies(spec: str) -> list[str]:
    """The files of the policies that `spec` has learned."""
    base, _ = _switches(spec)
    within = [policy for other in _within(base) for policy in _policies(other)]
    if _is_same_amounts(base):
        return within
    name, options = _split(base)
    return [_parse(base, options).get("path", Learned.path), *within] if name == "learned" else []


def _modules(spec: str) -> list[ModuleType]:
    """The modules whose code an agent is, but for `prune_env.sampling`."""
    base, switched = _switches(spec)
    within = [module for other in _within(base) for module in _modules(other)]
    if _is_same_amounts(base):
        return [switches, *within]
    name, _ = _split(base)
    found = _find(base, name)
    module = sys.modules[found.__module__ if name in AGENTS else name.partition(":")[0]]
    more = [features, policy_rules] if module in (learned, rules) else []
    return [*([switches] if switched or within else []), module, *more, *within]


def _switches(spec: str) -> tuple[str, dict[str, Any]]:
    """A spec without its switches, and these: "ucb:c=2+mixup=0.5" -> "ucb:c=2", {"mixup": 0.5}."""
    base, *found = re.split(SWITCH, spec)
    settings = _parse(spec, ",".join(found))
    unknown = sorted(set(settings) - set(SWITCHES))
    if unknown:
        raise ValueError(f"agent {spec!r}: switch {unknown[0]!r} is not known; there are {', '.join(SWITCHES)}")
    return base, settings


def _is_same_amounts(base: str) -> bool:
    return base.partition(":")[0] == SAME_AMOUNTS


def _within(base: str) -> list[str]:
    """The specs that one without switches stands around: what follows `same_amounts:` or `,agents=`."""
    head, _, rest = base.partition(":")
    if head == "learned" and AMONG in rest:
        return rest.partition(AMONG)[2].split("/")
    if head == SAME_AMOUNTS and not rest:
        raise ValueError(f"agent {base!r} needs the agent whose amounts it takes: {SAME_AMOUNTS}:AGENT")
    return [rest] if head == SAME_AMOUNTS else []


def _split(spec: str) -> tuple[str, str]:
    """Name and options of a spec: "ucb:c=2" -> "ucb", "c=2"; "a.b:C:c=2" -> "a.b:C", "c=2"."""
    head, _, rest = spec.partition(":")
    attribute, _, options = rest.partition(":")
    if head == "learned" and rest:  # a path, and what follows it but for the agents
        own = rest.partition(AMONG)[0]
        path, options = cast(re.Match, re.fullmatch(r"(.*?)((?:,\w+=[^,]*)*)", own, re.DOTALL)).groups()
        return head, f"path={path!r}{options}"
    if head in AGENTS:
        return head, rest
    if attribute.isidentifier() and all(part.isidentifier() for part in head.split(".")):
        return f"{head}:{attribute}", options
    raise ValueError(
        f"unknown agent {spec!r}; there are {', '.join(AGENTS)}, {SAME_AMOUNTS}:AGENT, "
        "and your own are called module:Class or module:function"
    )


def _find(spec: str, name: str) -> Any:
    """The class or function that a name from `_split` stands for."""
    if name in AGENTS:
        return AGENTS[name]
    module, _, attribute = name.partition(":")
    try:
        imported = importlib.import_module(module)
    except (Exception, SystemExit) as error:  # a module of yours can raise anything
        missing = isinstance(error, ModuleNotFoundError) and f"{module}.".startswith(f"{error.name}.")
        reason = f"{type(error).__name__}: {error}"
        wrong = f"agent {spec!r}: module {module!r} cannot be imported: {reason}"
        raise (ValueError if missing else Unimportable)(wrong) from error
    if not hasattr(imported, attribute):
        raise ValueError(f"agent {spec!r}: module {module!r} has no {attribute!r}")
    found = getattr(imported, attribute)
    if not callable(found):
        raise ValueError(f"agent {spec!r}: {name} is {found!r}, which cannot be called")
    return found


def _parse(spec: str, options: str) -> dict[str, Any]:
    """Options as keyword arguments: "keep=0.3,c=2" -> {"keep": 0.3, "c": 2}."""
    try:
        call = ast.parse(f"agent({options})", mode="eval").body
    except SyntaxError:
        call = None
    if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name) or call.args:
        raise ValueError(f"agent {spec!r}: {options!r} is not of the form option=value,option=value")
    settings: dict[str, Any] = {}
    for option in call.keywords:
        if option.arg is None or option.arg in settings:
            raise ValueError(f"agent {spec!r}: {ast.unparse(option)} is not an option of its own")
        try:
            settings[option.arg] = ast.literal_eval(option.value)
        except (ValueError, TypeError):
            message = f"agent {spec!r}: the value in {ast.unparse(option)} is no Python literal; quote strings"
            raise ValueError(message) from None
    return settings
