"""Agents: rules that say which samples the next step trains on.

An agent is a callable `agent(observation, rng) -> action`, numpy in and out; `prune_env.select` builds the action. An
agent with state has `reset()`, called at the start of each episode. A line, its spec, names an agent and sets it:

    [same_amounts:]name[:option=value,...][+mixup=p][+anneal=s][+oscillate=a]

The name is a key of AGENTS; or `module:Class`, or `module:function`, which is the agent itself and takes no options; or
`learned:PATH[,trust=True][,agents=full/ucb:keep=0.3,c=2/random]`, a trained policy, which may choose among agents.
Values are Python literals. Switches at the end of a spec are the whole agent's.
"""

from __future__ import annotations

import ast
import copy
import importlib
import inspect
import re
import sys
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, cast

from agents.bandits import UCB, UCB1, EpsilonGreedy
from agents.baselines import Balanced, ClassWeights, Full, Random, StaticRandom
from agents.difficulty import LossTopK, Middle, OrderDP, RhoLoss, SelectiveBackprop
from agents.infobatch import InfoBatch
from agents.kakurenbo import Kakurenbo
from agents.learned import Learned
from agents.mastery import IES, PDD
from agents.rcap import RCAP
from agents.repb import RePB
from agents.rules import RandomRule, Rule
from agents.seta import SeTa
from agents.statics import CCS, DUAL, EL2N, DynUnc, Forgetting, Grand
from agents.swdpp import SwDPP
from agents.switches import SameAmounts, Switched
from prune_env.sampling import Agent

AGENTS: dict[str, type] = {
    "full": Full,
    "random": Random,
    "static_random": StaticRandom,
    "balanced": Balanced,
    "class_weights": ClassWeights,
    "epsilon_greedy": EpsilonGreedy,
    "ucb": UCB,
    "ucb1": UCB1,
    "swdpp": SwDPP,
    "infobatch": InfoBatch,
    "loss_topk": LossTopK,
    "middle": Middle,
    "orderdp": OrderDP,
    "selective_backprop": SelectiveBackprop,
    "rcap": RCAP,
    "rho_loss": RhoLoss,
    "seta": SeTa,
    "kakurenbo": Kakurenbo,
    "ies": IES,
    "pdd": PDD,
    "repb": RePB,
    "el2n": EL2N,
    "forgetting": Forgetting,
    "grand": Grand,
    "ccs": CCS,
    "dyn_unc": DynUnc,
    "dual": DUAL,
    "learned": Learned,
    "rule": Rule,
    "random_rule": RandomRule,
}
SAME_AMOUNTS = "same_amounts"
SWITCHES = ("anneal", "mixup", "oscillate")
SWITCH = r"\+(?=[A-Za-z_]\w*=)"  # stands before each switch; 1e+5 is a number
# A path may have any sign in it, so only what ends the spec in the form of an option or a switch is one.
LEARNED = re.compile(
    r"(?P<path>.*?)(?P<trust>,trust=[\w']+)?(,agents=(?P<agents>.*?))?"
    rf"(?P<switches>(\+({'|'.join(SWITCHES)})=[\d.e-]+)*)",
    re.DOTALL,
)


class Unimportable(ValueError):
    """The user's own module is there, but importing it raises."""


@dataclass(frozen=True)
class Spec:
    """What a spec says."""

    name: str  # key of AGENTS, `same_amounts`, or module:attribute
    options: dict[str, Any]
    within: tuple[str, ...]  # specs of the agent that this one copies amounts of, or chooses among
    switches: dict[str, Any]


def make(spec: str) -> Agent:
    """Build the agent that `spec` describes, see the module.

    Raises:
        ValueError: an unknown name, option or switch, a value that is no literal or out of range, a module that
            cannot be imported or has no such attribute.
    """
    return _build(spec, True)


def check(spec: str) -> None:
    """Check a spec; of a user's own agent this runs the module, and no more. Raises as `make`."""
    _build(spec, False)


def _build(spec: str, yours: bool) -> Agent:
    """As `make`; without `yours`, `Random` stands in for any agent of a user's own."""
    parsed = parse(spec)
    options, within = dict(parsed.options), [_build(other, yours) for other in parsed.within]
    if parsed.name == SAME_AMOUNTS:
        agent = SameAmounts(agent=within[0])
    else:
        if within:
            options["agents"] = within
        found = _find(spec, parsed.name)
        _check_options(spec, parsed.name, found, options)
        if not yours and parsed.name not in AGENTS:
            agent = Random()
        else:  # an instance may keep state, which must not pass from run to run
            agent = found(**options) if isinstance(found, type) else copy.deepcopy(found)
    return Switched(agent=agent, **parsed.switches) if parsed.switches else agent


def needs_reference(agent: Any) -> bool:
    """Say whether an agent, its class or its spec has `needs_reference`; raises as `make`."""
    if isinstance(agent, SameAmounts | Switched):
        return needs_reference(agent.agent)
    if isinstance(agent, Learned):
        return any(map(needs_reference, agent.agents))
    if not isinstance(agent, str):
        return bool(getattr(agent, "needs_reference", False))
    parsed = parse(agent)
    if parsed.within:
        return any(map(needs_reference, parsed.within))
    return needs_reference(_find(agent, parsed.name))


def spec_with_keep(spec: str, keep: float) -> str:
    """Return `spec` with `keep` set to this share, where its agent takes a share and `spec` does not set it.

    Raises:
        ValueError: as for `make`, apart from values that only the agent checks.
    """
    parsed, (base, _) = parse(spec), split_switches(spec)
    switches = spec[len(base) :]
    if parsed.within:
        head = base[: -len("/".join(parsed.within))]
        return head + "/".join(spec_with_keep(other, keep) for other in parsed.within) + switches
    found = _find(spec, parsed.name)
    if not isinstance(found, type) or "keep" not in inspect.signature(found).parameters or "keep" in parsed.options:
        return spec
    options = base[len(parsed.name) + 1 :]
    return f"{parsed.name}:keep={keep}" + (f",{options}" if options else "") + switches


def own_files(spec: str) -> list[Path]:
    """Return the user's own files that `spec` names: modules with agents, and policies. Raises as `make`."""
    parsed, file = parse(spec), None
    if parsed.name == "learned":
        file = parsed.options.get("path")
    elif parsed.name not in (SAME_AMOUNTS, *AGENTS):
        _find(spec, parsed.name)
        file = getattr(sys.modules[parsed.name.partition(":")[0]], "__file__", None)
    within = [path for other in parsed.within for path in own_files(other)]
    return [Path(file), *within] if file else within


def split_switches(spec: str) -> tuple[str, list[str]]:
    """Split a spec from its switches: "ucb:c=2+mixup=0.5" -> "ucb:c=2", ["mixup=0.5"]."""
    policy = re.match(f"({SAME_AMOUNTS}:)*learned:", spec)
    if policy is None:
        base, *found = re.split(SWITCH, spec)
        return base, found
    switches = cast(re.Match, LEARNED.fullmatch(spec, policy.end()))["switches"]
    return spec[: len(spec) - len(switches)], switches.split("+")[1:]


def parse(spec: str) -> Spec:
    """Read a spec.

    Raises:
        ValueError: its form, its name or a switch is not known, or a value is no literal.
    """
    base, found = split_switches(spec)
    switches = _literals(spec, ",".join(found))
    if unknown := sorted(set(switches) - set(SWITCHES)):
        raise ValueError(f"agent {spec!r}: switch {unknown[0]!r} is not known; there are {', '.join(SWITCHES)}")
    head, _, rest = base.partition(":")
    if head == SAME_AMOUNTS:
        if not rest:
            raise ValueError(f"agent {spec!r} needs the agent whose amounts it takes: {SAME_AMOUNTS}:AGENT")
        return Spec(head, {}, (rest,), switches)
    if head == "learned" and rest:
        policy = cast(re.Match, LEARNED.fullmatch(rest))
        options = {"path": policy["path"], **_literals(spec, (policy["trust"] or "")[1:])}
        among = () if policy["agents"] is None else tuple(policy["agents"].split("/"))
        return Spec(head, options, among, switches)
    if head in AGENTS:
        return Spec(head, _literals(spec, rest), (), switches)
    attribute, _, options = rest.partition(":")
    if attribute.isidentifier() and all(part.isidentifier() for part in head.split(".")):
        return Spec(f"{head}:{attribute}", _literals(spec, options), (), switches)
    close = get_close_matches(head, AGENTS, n=1)
    meant = f"; did you mean {close[0]}?" if close else ";"
    raise ValueError(
        f"unknown agent {spec!r}{meant} there are {', '.join(AGENTS)}, {SAME_AMOUNTS}:AGENT, "
        "and your own are called module:Class or module:function"
    )


def _find(spec: str, name: str) -> Any:
    """Return the class or function of a name."""
    if name in AGENTS:
        return AGENTS[name]
    module, _, attribute = name.partition(":")
    try:
        imported = importlib.import_module(module)
    except (Exception, SystemExit) as error:  # a module of yours can raise anything
        missing = isinstance(error, ModuleNotFoundError) and f"{module}.".startswith(f"{error.name}.")
        wrong = f"agent {spec!r}: module {module!r} cannot be imported: {type(error).__name__}: {error}"
        if module.endswith(".py"):
            wrong += f"; name the module without .py: {module[:-3]}:{attribute}"
        elif missing:
            wrong += "; start in the folder that holds it"
        raise (ValueError if missing else Unimportable)(wrong) from error
    if not hasattr(imported, attribute):
        file = getattr(imported, "__file__", None)  # a module of ours or of Python's may hide yours
        raise ValueError(f"agent {spec!r}: module {module!r} has no {attribute!r}; its file is {file}")
    found = getattr(imported, attribute)
    if not callable(found):
        raise ValueError(f"agent {spec!r}: {name} is {found!r}, which cannot be called")
    return found


def _check_options(spec: str, name: str, found: Any, options: dict[str, Any]) -> None:
    """Raise ValueError unless the class or function takes the options; a function takes none."""
    if not isinstance(found, type):
        if options:
            raise ValueError(f"agent {spec!r}: {name} is not a class, so it takes no options")
        return
    signature = inspect.signature(found)
    try:
        signature.bind(**options)
    except TypeError as error:
        known = [str(option.replace(annotation=option.empty)) for option in signature.parameters.values()]
        takes = f"the options of {name} are: {', '.join(known) or 'none'}"
        raise ValueError(f"agent {spec!r}: {error}; {takes}") from None


def _literals(spec: str, options: str) -> dict[str, Any]:
    """Return options as keyword arguments: "keep=0.3,c=2" -> {"keep": 0.3, "c": 2}."""
    wrong = f"agent {spec!r}: {options!r} is not of the form option=value,option=value with Python literals as values"
    try:
        call = cast(ast.Call, ast.parse(f"agent({options})", mode="eval").body)
        found = {cast(str, option.arg): ast.literal_eval(option.value) for option in call.keywords}
        is_plain = ast.unparse(call.func) == "agent" and not call.args and len(found) == len(call.keywords)
    except (SyntaxError, ValueError, TypeError, AttributeError):
        raise ValueError(f"{wrong}; quote strings") from None
    if not is_plain or None in found:
        raise ValueError(f"{wrong}, each once")
    return found
