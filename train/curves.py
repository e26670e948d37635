"""The steps of every run, as a CSV file and as TensorBoard events."""

from __future__ import annotations

import csv
import io
import re
import shutil
import uuid
from collections.abc import Sequence
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

from prune_env import files
from train.results import Record

SCALARS = ("val_accuracy", "train_accuracy", "kept", "mixed", "coverage", "lr", "reward")
PER_UNIT = 1000  # TensorBoard's steps are whole numbers: thousandths of a full-epoch equivalent


def write_csv(path: Path, records: Sequence[Record]) -> None:
    """One row a step: agent, budget, seed, step, compute spent so far, and what the step gave."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, ["agent", "budget", "seed", "step", "spent", *SCALARS])
    writer.writeheader()
    for record in records:
        run = {name: record[name] for name in ("agent", "budget", "seed")}
        writer.writerows({**run, **row} for row in record["curve"])
    files.replace(path, text.getvalue().encode())


def write_events(folder: Path, records: Sequence[Record]) -> None:
    """TensorBoard events of each run in `folder`/<agent>-b<budget>-s<seed>; what was in `folder` goes.

    The step is the compute spent, in thousandths of a full-epoch equivalent, so that agents compare at equal
    compute. The last step has the test accuracy.
    """
    beside = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}")
    try:
        for record in records:
            with SummaryWriter(str(beside / run_name(record))) as writer:
                for row in record["curve"]:
                    for name in SCALARS:
                        writer.add_scalar(name, row[name], round(PER_UNIT * row["spent"]))
                end = round(PER_UNIT * record["results"]["spent"]["total"])
                writer.add_scalar("test_accuracy", record["results"]["test_accuracy"], end)
        shutil.rmtree(folder, ignore_errors=True)
        beside.rename(folder)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def run_name(record: Record) -> str:
    """A folder's name for a run."""
    agent = re.sub(r"[^\w.=,-]+", "-", record["agent"])
    return f"{agent}-b{record['budget']:g}-s{record['seed']}"
