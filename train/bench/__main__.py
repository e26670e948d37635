"""What the environment costs: against loops that others write, with many students, and at a million samples.

    prune-env bench                                          # all sections; digits only
    prune-env bench --root DIR --train-size 10000            # and the images in DIR/train/<class>/
    prune-env bench --only scale decisions --samples 1281167 10000000
    prune-env bench --device cuda                            # the same tables on a GPU

Ratios are medians over rounds in which both were timed one after the other in this process. Sections: `steps`, a step
against a bare PyTorch loop; `peers`, an epoch against DataLoader loops; `students`, many in one vector environment;
`scale`, what samples cost beside training; `decisions`, of every agent; `pruner`, what `Pruner` costs a loop.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

import agents
from prune_env.stats import BOUNDS, COLUMNS
from train.bench.peers import time_many, time_peers, time_step
from train.bench.pruner import BATCH, PARTS, time_epoch, time_loops
from train.bench.scale import EVERY_EPOCH, time_decision, time_parts, time_selecting, turns
from train.bench.timing import in_turn, ratio
from train.execution import command_line

Section = Literal["steps", "peers", "students", "scale", "decisions", "pruner"]


@dataclass
class Args:
    only: tuple[Section, ...] = ("steps", "peers", "students", "scale", "decisions", "pruner")
    """Sections to run."""
    root: str | None = None
    """Folder of images, as for prune_env/ImageFolder-v0: its epochs are timed too."""
    train_size: int = 10_000
    """Training images taken from it."""
    image_size: int | None = None
    """Their side; the id's default without."""
    samples: tuple[int, ...] = (50_000, 1_281_167)
    """Numbers of samples for `scale`, `decisions` and `pruner`, rising."""
    classes: int = 1000
    """Classes of the stub student of `scale`."""
    rows: int = 1024
    """Rows of a batch of `pruner` at these numbers of samples."""
    steps: int = 20
    """Steps of an epoch of its training loops."""
    members: tuple[int, ...] = (1, 8, 64)
    """Numbers of students in a vector environment."""
    conv_members: tuple[int, ...] = (1, 8)
    """Likewise, of convolutional ones."""
    workers: tuple[int, ...] = (0, 2)
    """Loading processes that a DataLoader may have, beside ours; the fastest number counts."""
    threads: int = 1
    """Threads of torch."""
    rounds: int = 15
    """Timed rounds; the median counts. Steps on digits take three times as many, large numbers of samples fewer."""
    device: str = "auto"
    """Where the student trains."""


def main(args: Args | None = None) -> int:
    """Print the tables that `args` (else the command line's arguments) ask for."""
    args = args or command_line.read("bench", Args, None, __doc__)
    torch.set_num_threads(args.threads)
    console = Console(width=100)
    for section in args.only:
        for table in SECTIONS[section](args):
            console.print(table)
    return 0


def _tasks(args: Args) -> list[tuple[str, str, dict[str, Any]]]:
    """Name, id and settings of what is trained on."""
    device = {"device": args.device}
    tasks: list[tuple[str, str, dict[str, Any]]] = [("digits, mlp", "prune_env/Digits-v0", device)]
    if args.root is not None:
        folder = {"root": args.root, "train_size": args.train_size, "image_size": args.image_size}
        tasks.append((f"{args.train_size:,} images, convnet", "prune_env/ImageFolder-v0", {**folder, **device}))
    return tasks


def _device(args: Args) -> torch.device:
    return torch.device(("cuda" if torch.cuda.is_available() else "cpu") if args.device == "auto" else args.device)


def _table(title: str, *columns: str) -> Table:
    """A table whose first column is text, and the others numbers."""
    table = Table(title=title)
    for i, column in enumerate(columns):
        table.add_column(column, justify="right" if i else "left", no_wrap=not i)
    return table


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:,.1f}" if seconds < 0.1 else f"{seconds * 1e3:,.0f}"


def steps(args: Args) -> list[Table]:
    title = "A step of the environment against a bare PyTorch loop"
    table = _table(title, "task", "step, ms", "bare, ms", "step ÷ bare (median)")
    for i, (name, env_id, settings) in enumerate(_tasks(args)):
        step, bare, times = time_step(env_id, args.rounds if i else 3 * args.rounds, **settings)
        table.add_row(name, _ms(step), _ms(bare), f"{times:.3f}")
    return [table]


def peers(args: Args) -> list[Table]:
    """Full training against a plain DataLoader loop, infobatch against InfoBatch's."""
    title = "An epoch of an agent, validation included, against its DataLoader loop"
    table = _table(title, "task", "agent", "kept", "ours, ms", "peer, ms", "its workers", "peer ÷ ours (median)")
    for name, env_id, settings in _tasks(args):
        for agent in ("full", "infobatch"):
            epochs = 1 if "root" in settings else 8  # those of the digits take milliseconds
            duel = time_peers(env_id, agent, args.rounds, args.workers, epochs, **settings)
            numbers = f"{duel.kept:.2f}", _ms(duel.ours), _ms(duel.peer), str(duel.workers), f"{duel.ratio:.2f}"
            table.add_row(name, agent, *numbers)
    return [table]


def students(args: Args) -> list[Table]:
    peak = gemm(_device(args))
    title = f"Epochs per second of many students on digits; one large matrix product: {peak / 1e9:,.0f} GFLOP/s"
    table = _table(title, "network", "students", "one vector env", "a loop of singles", "ratio (median)", "GFLOP/s")
    for model, counts in (("mlp", args.members), ("convnet", args.conv_members)):
        for members in counts:
            many, looped, times, flops = time_many(members, args.rounds, model=model, device=args.device)
            table.add_row(model, str(members), f"{many:.1f}", f"{looped:.1f}", f"{times:.2f}", f"{flops / 1e9:.1f}")
    return [table]


def gemm(device: torch.device, side: int = 2048, rounds: int = 5) -> float:
    """Floating point operations a second of a product of square float32 matrices, the best of some rounds."""
    matrix = torch.ones(side, side, device=device)
    return 2 * side**3 / float(in_turn([lambda: matrix @ matrix], rounds, device).min())


def scale(args: Args) -> list[Table | str]:
    device = _device(args)
    title = f"Milliseconds beside training by number of samples, stub student of {args.classes:,} classes"
    costs = _table(title, "part", *(f"{n:,}" for n in args.samples), GROWTH, "host's peak, bytes a sample")
    measured = [time_parts(n, turns(args.rounds, n), args.classes, device) for n in args.samples]
    times = np.array([[seconds for seconds, _ in parts.values()] for parts in measured])  # (numbers of samples, parts)
    for (name, (_, peak)), of_part in zip(measured[-1].items(), times.T, strict=True):
        costs.add_row(name, *map(_ms, of_part), _growth(of_part, args.samples), f"{peak:.0f}")
    sums = times[:, :EVERY_EPOCH].sum(axis=1)
    costs.add_section()
    costs.add_row("an epoch: the first five", *map(_ms, sums), _growth(sums, args.samples), "")

    title = "InfoBatch's selection against prune() in the shape of its authors' code, ms"
    columns = ("samples", "prune()", "decision", "prune() ÷ decision", "with check and order", "prune() ÷ that")
    selections = _table(title, *columns)
    for n in args.samples:
        found = time_selecting(n, turns(args.rounds, n))
        prune, decision, whole = map(_ms, np.median(found, axis=0))
        over_decision, over_whole = (f"{ratio(found, 0, to=work):.1f}" for work in (1, 2))
        selections.add_row(f"{n:,}", prune, decision, over_decision, whole, over_whole)

    table, observed = 4 * len(COLUMNS), 4 * (len(BOUNDS) + 1) + 8
    said = f"Statistics on the device: {table} bytes a sample; an observation on the host: {observed}."
    return [costs, selections, said]


def decisions(args: Args) -> list[Table]:
    title = "Milliseconds of an agent's decision by number of samples, median"
    table = _table(title, "agent", *(f"{n:,}" for n in args.samples), GROWTH)
    for spec in sorted(agents.AGENTS):
        times = [time_decision(spec, n, turns(args.rounds, n)) for n in args.samples]
        table.add_row(spec, *(f"{t * 1e3:,.1f}" for t in times), _growth(times, args.samples))
    return [table]


def pruner(args: Args) -> list[Table]:
    device = _device(args)
    title = f"A training step of a convnet with Pruner, and without; {BATCH} random images (3, 32, 32)"
    loops = _table(title, "", "with, ms", "without, ms", "with ÷ without (median)")
    ours, bare, overhead = time_loops(args.steps, args.rounds, device)
    loops.add_row("step", _ms(ours), _ms(bare), f"{overhead:.3f}")

    title = f"Milliseconds of Pruner in an epoch on all samples, batches of {args.rows:,} losses"
    costs = _table(title, "part", *(f"{n:,}" for n in args.samples), GROWTH)
    measured = [time_epoch(n, args.rows, max(3, turns(args.rounds, n)), device) for n in args.samples]
    for name, *times in zip(PARTS, *measured, strict=True):
        costs.add_row(name, *map(_ms, times), _growth(times, args.samples))
    sums = [sum(times[1:-1]) for times in measured]
    costs.add_section()
    costs.add_row("without observation and statistics", *map(_ms, sums), _growth(sums, args.samples))
    return [loops, costs]


GROWTH = "ns a sample, last ÷ first"


def _growth(times: Sequence[float] | NDArray, samples: Sequence[int]) -> str:
    """1 where seconds are in proportion to samples."""
    return f"{times[-1] / times[0] * samples[0] / samples[-1]:.2f}"


SECTIONS: dict[Section, Callable[[Args], list[Any]]] = {
    "steps": steps,
    "peers": peers,
    "students": students,
    "scale": scale,
    "decisions": decisions,
    "pruner": pruner,
}


if __name__ == "__main__":
    sys.exit(main())
