"""Make the model card of a learned policy, for the terminal: who trained it, on what, how well it did, its limits."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

from rich.table import Table
from rich.text import Text

from prune_env.policy.learned import Network
from train.analysis.text import count, listed, readable

DRAWS = ("task_seed", "val_rest")  # fields of tasks that draw other samples from the same images


def make(network: Network, name: str, spec: str) -> Table:
    """Return the card of a policy called `name`, a line a question; `spec` is what plays it as an agent.

    What its file does not tell is left out.
    """
    card = dict(network.card)
    told = {part: card.pop(part, {}) for part in ("arguments", "training", "tasks", "validation", "code")}
    parts = told["tasks"].get("parts", [told["tasks"]])  # a mixture has several distributions
    program = card.pop("program", "learn")
    chosen = "It was chosen as the best on the validation tasks, so its points are biased upwards. "
    biased = program == "learn" and told["validation"]
    trained_on = "the tasks above and no others" if told["tasks"] else "tasks that its file does not list"
    machines = card.pop("machines", None) or list(filter(None, [card.pop("machine", None)]))
    sizes = [network.layers[0][0].shape[1], *(len(bias) for _, bias in network.layers)]
    lines = {
        "policy": f"{name}: {sizes[0]} features of a run go in, {sizes[-1]} numbers of the next step's rule come out "
        f"(layers of {' × '.join(map(str, sizes))})",
        "trained by": _trained_by(program, told["arguments"], told["code"], machines),
        "on tasks": ". And: ".join(_tasks(part.get("values", {})) for part in parts),
        "how long": _how_long(told["training"]),
        "validation": _validation(told["validation"], sum(part.get("validations", 0) for part in parts)),
        "use it for": "training classifiers on tasks like its own. It takes any number of samples and classes, and any "
        f"budget: --agents {spec}, or prune_env.Pruner in a training loop of your own",
        "limits": f"It was trained on {trained_on}. On other images, larger networks, more wrong "
        "labels or longer budgets it may lose: compare it with full and random there first. "
        f"{chosen if biased else ''}Another training seed gives another policy.",
        **{key: str(value) for key, value in card.items() if key not in ("fixed_rule", "waste")},
    }
    table = Table.grid("", "", padding=(0, 2, 0, 0))
    for question, answer in lines.items():
        if answer:
            table.add_row(Text(question, style="bold"), Text(readable(answer)))
    return table


def _trained_by(program: str, arguments: Mapping[str, Any], code: Mapping[str, Any], machines: list[str]) -> str:
    lists = {name: v if isinstance(v, list | tuple) else [v] for name, v in arguments.items() if v not in (None, "")}
    given = {name: shlex.join(map(str, v)) for name, v in lists.items()}
    words = [str(given.pop("sweeps", ""))]  # of distil; the only argument without a flag
    words += [f"--{name.replace('_', '-')} {value}" for name, value in given.items() if value]
    command = [" ".join([f"prune-env {program}", *filter(None, words)])] if arguments else []
    changed = " with changes" if code.get("dirty") else ""
    version = [f"prune_env {code['version']}"] if "version" in code else []
    commit = [f"commit {code['commit'][:7]}{changed}"] if code.get("commit") else []
    return "; ".join([*command, *version, *commit, *machines])


def _tasks(values: Mapping[str, Any]) -> str:
    given = {"dataset": ["digits"], **values} if values else {}
    told = [f"{name} {listed(map(str, of))}" for name, of in given.items() if name not in DRAWS]
    draws = [count(len(values["task_seed"]), "draw") + " of the samples"] if "task_seed" in values else []
    return "; ".join([*told, *draws])


def _how_long(training: Mapping[str, Any]) -> str:
    if "episodes" not in training:
        return ""
    searched = f"after a search over {count(training['searched'], 'run')} for the rules that it starts from"
    length = f"{count(training['episodes'], 'run')} with {count(training['steps'], 'step')} in all"
    return f"{length}, {searched}; {training['seconds'] / 60:.1f} minutes"


def _validation(validation: Mapping[str, Any], tasks: int) -> str:
    over = {"points_over_full": "full training", "points_over_fixed_rule": "the best rule that never changes"}
    points = [f"{validation[name]:+.2f} points over {what}" for name, what in over.items() if name in validation]
    if not points:
        return ""
    where = f" of {count(tasks, 'task')}, budgets apart," if tasks else ""
    return f"{listed(points)}, means of {count(validation['pairs'], 'run')}{where} whose runs it did not learn from"
