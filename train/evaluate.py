"""Compare agents at equal compute: `python -m train.evaluate --help`."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import gymnasium as gym
import tyro
from rich.console import Group
from rich.text import Text

from prune_env.env import DEFAULT_MODEL
from train.analysis import table
from train.execution import provenance
from train.execution.plan import SETTINGS, TASK, Block
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


@dataclass
class Arguments(Running):
    """Train with every agent under equal budgets and paired seeds; compare test accuracy.

    Results go to OUT/NAME: results.jsonl (one line a run, with its provenance), curves.csv, accuracy.png,
    table.txt, tensorboard/ (its steps are thousandths of a full-epoch equivalent), and failures.jsonl if an
    agent failed. Runs that results.jsonl has are not run again.
    """

    agents: tuple[str, ...] = DEFAULT_AGENTS
    """Agents, e.g. `ucb`, `ucb:keep=0.3,c=2`, `my_module:MyAgent:option=1`."""
    env: str = "prune_env/Digits-v0"
    """Environment id: the data set."""
    model: str | None = None
    """Network; by default one that suits the data set."""
    budget: tuple[float, ...] = (10.0,)
    """Compute of a run in full-epoch equivalents; several give a table each."""
    keep: tuple[float, ...] = (0.5,)
    """Share of the samples kept in a step, for agents that take `keep` and do not set it; several are compared."""
    seeds: int = 5
    """Number of paired seeds: 0, 1, ..."""

    train_size: int | None = None
    """Number of training samples, classes keeping their shares; by default all."""
    label_noise: float | None = None
    """Share of the training labels that are wrong."""
    imbalance: float | None = None
    """Ratio of the largest class to the smallest."""
    duplicates: float | None = None
    """Share of the training samples that repeat others."""
    task_seed: int | None = None
    """Seed of the four above."""
    val_rest: bool | None = None
    """Let validation also have the samples that training leaves out."""

    image_size: int | None = None
    """Side, in pixels, that images are resized to, where the data set allows it."""

    batch_size: int | None = None
    """Rows of a batch; by default the tuned recipe's, as for the next two."""
    lr: float | None = None
    """Peak learning rate."""
    weight_decay: float | None = None
    """Weight decay."""
    momentum: float | None = None
    """Momentum of SGD, 0.9 by default."""
    warmup: float | None = None
    """Share of the budget in which the learning rate rises, 0.1 by default."""
    label_smoothing: float | None = None
    """Smoothing of the training labels, none by default."""
    ema: float | None = None
    """Weight of the newest loss in its running mean and variance, 0.8 by default."""
    precision: str | None = None
    """`float32`, `bfloat16` or `auto` (the default)."""
    compile: str | None = None
    """`off` (the default), `step`, or `graphs` for CUDA graphs: compile the pass over a full batch."""

    def block(self) -> tuple[str, Block]:
        """Default name of the folder of results, and what to run."""
        settings = {n: getattr(self, n) for n in SETTINGS if getattr(self, n) is not None}
        dataset = gym.spec(self.env).kwargs.get("dataset", "")  # without one the plan says what is wrong
        model = self.model or DEFAULT_MODEL.get(dataset, "convnet")
        task = [f"{name}{settings[name]:g}" for name in TASK if name in settings]
        name = re.sub(r"[^\w.-]+", "-", "-".join([dataset, model, *task]))
        heading = ", ".join([self.env, model, *(f"{n}={v}" for n, v in settings.items() if n != "model")])
        return name, Block(heading, self.env, settings, self.agents, self.keep, self.budget, self.seeds)


def report(folder: Path, records: Sequence[Record], seeds: int) -> None:
    """Print the table, and write it with the curves and the figure into the folder of results."""
    # imported here: worker processes import this module too, and these take a second
    from train.analysis import curves, figures

    heading = records[0]["task"]
    parts = [Text(heading), table.render(records, seeds)]
    parts += [Text(line) for line in [provenance.mixed(records)] if line]
    table.show(folder / "table.txt", Group(*parts))
    curves.write_csv(folder / "curves.csv", records)
    figures.write_accuracy(folder / "accuracy.png", records, heading)
    curves.write_events(folder / "tensorboard", records)


def main(args: Sequence[str] | None = None) -> int:
    """Run the program with `args` (else those of the command line); return its exit status, see `carry_out`."""
    arguments = tyro.cli(Arguments, args=args)
    command = shlex.join(["python", "-m", "train.evaluate", *(sys.argv[1:] if args is None else args)])

    def blocks() -> tuple[str, list[Block], str]:
        name, block = arguments.block()
        return name, [block], ""

    return carry_out(arguments, command, blocks, lambda folder, records, _: report(folder, records, arguments.seeds))


if __name__ == "__main__":
    sys.exit(main())
