"""Compare agents at equal compute: `prune-env evaluate --help`."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro
from rich.console import Group
from rich.text import Text

from prune_env.students.recipes import default_model
from train.analysis import table
from train.analysis.text import readable
from train.execution.plan import TASK, Block, Options, dataset_of
from train.execution.program import Running, carry_out
from train.execution.results import Record

DEFAULT_AGENTS = (
    "full",
    "random",
    "random:fresh=True",
    "static_random",
    "epsilon_greedy",
    "ucb",
    "ucb1",
    "swdpp",
    "infobatch",
    "loss_topk",
    "middle",
)


@dataclass(kw_only=True)
class Arguments(Options, Running):
    """Train with every agent under equal budgets and paired seeds; compare test accuracy.

    Results go to OUT/NAME: results.jsonl (one line a run, with its provenance), curves.csv, accuracy.png,
    table.txt, tensorboard/ (its steps are thousandths of a full-epoch equivalent), and failures.jsonl if an
    agent failed. Runs that results.jsonl has are not run again.
    """

    agents: tuple[str, ...] = DEFAULT_AGENTS
    """Agents, e.g. `ucb`, `ucb:keep=0.3,c=2`, `my_module:MyAgent:option=1`."""
    budget: tuple[float, ...] = (10.0,)
    """Compute of a run in full-epoch equivalents; several give a table each."""
    keep: tuple[float, ...] = (0.5,)
    """Share of the samples kept in a step, for agents that take `keep` and do not set it; several are compared."""
    seeds: int = 5
    """Number of paired seeds: 0, 1, ..."""

    def block(self) -> tuple[str, Block]:
        """Return the default name of the folder of results, and what to run."""
        settings, dataset = self.settings(), dataset_of(self.env)
        model = settings.get("model") or default_model(dataset)
        task = [f"{name}{value:g}" for name, value in settings.items() if name in TASK]
        name = re.sub(r"[^\w.-]+", "-", "-".join([dataset, model, *task]))
        heading = ", ".join([self.env, model, *(f"{n}={v}" for n, v in settings.items() if n != "model")])
        return name, Block(heading, self.env, settings, self.agents, self.keep, self.budget, self.seeds)


def report(folder: Path, records: Sequence[Record], seeds: int) -> None:
    """Print the table, and write it with the curves and the figure into the folder of results."""
    # imported here: worker processes import this module too, and these take a second
    from train.analysis import curves, figures

    heading = records[0]["task"]
    table.show(folder / "table.txt", Group(Text(readable(heading)), table.render(records, seeds)))
    curves.write_csv(folder / "curves.csv", records)
    figures.write_accuracy(folder / "accuracy.png", records, heading)
    curves.write_events(folder / "tensorboard", records)


def main(args: Sequence[str] | None = None) -> int:
    """Run the program with `args` (else those of the command line); return its exit status, see `carry_out`."""
    try:
        arguments = tyro.cli(Arguments, args=args)
    except (TypeError, ValueError) as error:  # an option that is out of its range
        print(f"error: {error}", file=sys.stderr)
        return 2
    command = shlex.join(["prune-env", "evaluate", *(sys.argv[1:] if args is None else args)])

    def blocks() -> tuple[str, list[Block], str]:
        name, block = arguments.block()
        return name, [block], ""

    return carry_out(arguments, command, blocks, lambda folder, records, _: report(folder, records, arguments.seeds))


if __name__ == "__main__":
    sys.exit(main())
