"""List what the programs take: `prune-env list --help`."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import gymnasium as gym
import tyro
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.text import Text

from agents import AGENTS
from prune_env.data import sources
from prune_env.students.recipes import default_model
from train.analysis import table
from train.execution import command_line
from train.execution.plan import PLAIN, short_id

SPECS = {
    "my_module:MyAgent:keep=0.3": "Your own class, or function, of my_module.py in this folder.",
    "same_amounts:AGENT": "As many samples in each step as AGENT keeps, drawn uniformly.",
    "AGENT+anneal=0.1": "AGENT, but the last tenth of the budget trains on all samples.",
    "AGENT+mixup=0.5": "AGENT, with half of the kept samples blended with a dropped one.",
    "AGENT+oscillate=0.2": "AGENT, which keeps a share of 0.2 less and 0.2 more by turns.",
}
MODELS = {
    "mlp:128-64": "Fully connected, with these hidden widths; `mlp` alone has 64.",
    "convnet:16-64-64": "Three convolutions of these widths.",
    "resnet9:64-128-256-512": "ResNet-9 of these widths.",
    "resnet18": "ResNet-18 with the stem for small images.",
    "torchvision:NAME": "Any classifier of torchvision, untrained.",
    "my_module:function": "Your own: it is called with channels, size and classes, and makes a network.",
}


@dataclass
class Arguments:
    """List the agents with their options, the environments, and the models.

    Try:
        prune-env list
        prune-env list agents
    """

    what: tyro.conf.Positional[Literal["all", "agents", "envs", "models"]] = "all"
    """What is listed."""


def agents() -> dict[str, str]:
    """Return what each agent does, by its spec with all options at their defaults."""
    found = {}
    for name, kind in AGENTS.items():
        options = inspect.signature(kind).parameters.values()
        values = "PATH" if name == "learned" else ",".join(f"{option.name}={option.default}" for option in options)
        found[f"{name}:{values}" if values else name] = (inspect.getdoc(kind) or "").split("\n")[0]
    return found | SPECS


def envs() -> dict[str, str]:
    """Return the data, and the model, of each environment in which agents choose samples."""
    found = {}
    for env_id, spec in gym.registry.items():
        dataset = spec.kwargs.get("dataset")
        if spec.entry_point == PLAIN and dataset in sources.SOURCES:
            source = sources.get(dataset)
            where = "in the package" if dataset == "digits" else "--download" if source.fetch else "your own, --root"
            size = f"{source.image_size} x {source.image_size} pixels"
            found[short_id(env_id)] = f"{env_id}: images of {size} ({where}), model {default_model(dataset)}"
    return found


def main(args: Sequence[str] | None = None) -> int:
    """Run the program with `args` (else those of the command line); return its exit status."""
    what = command_line.read("list", Arguments, args).what
    tables = {"agents, for --agents": agents, "envs, for --env": envs, "models, for --model": MODELS.copy}
    lines: list[RenderableType] = []
    for title, make in tables.items():
        if what in (title.partition(",")[0], "all"):
            lines.append(Text(title, style="bold"))
            for name, does in make().items():
                lines += [Padding(Text(name, style="cyan"), (0, 2)), Padding(Text(does), (0, 2, 0, 6))]
    table.display(Group(*lines))
    return 0


if __name__ == "__main__":
    sys.exit(main())
