"""The steps of every run, as a CSV file and as TensorBoard events."""

from __future__ import annotations

import csv
import hashlib
import re
import shutil
import uuid
from collections.abc import Sequence
from io import StringIO
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

from prune_env import io
from train.execution.results import Record
from train.execution.run import CURVE

SCALARS = tuple(name for name in CURVE if name != "spent")
NAME = 100  # characters of an agent's spec in a folder's name, which may have 255 bytes
PER_UNIT = 1000  # TensorBoard's steps are whole numbers: thousandths of a full-epoch equivalent


def write_csv(path: Path, records: Sequence[Record]) -> None:
    """One row a step: agent, budget, seed, step, compute spent so far, and what the step gave."""
    text = StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(["agent", "budget", "seed", "step", *CURVE])
    for record in records:
        run = [record[name] for name in ("agent", "budget", "seed")]
        steps = zip(*(record["curve"][name] for name in CURVE), strict=True)
        writer.writerows([*run, step, *row] for step, row in enumerate(steps, start=1))
    io.replace(path, text.getvalue().encode())


def write_events(folder: Path, records: Sequence[Record]) -> None:
    """TensorBoard events of each run in `folder`/<agent>-b<budget>-s<seed>; what was in `folder` goes.

    The step is the compute spent, in thousandths of a full-epoch equivalent, so that agents compare at equal
    compute. The last step has the test accuracy.
    """
    beside = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}")
    try:
        for record in records:
            with SummaryWriter(str(beside / run_name(record))) as writer:
                for name in SCALARS:
                    for spent, value in zip(record["curve"]["spent"], record["curve"][name], strict=True):
                        writer.add_scalar(name, value, round(PER_UNIT * spent))
                end = round(PER_UNIT * record["results"]["spent"]["total"])
                writer.add_scalar("test_accuracy", record["results"]["test_accuracy"], end)
        shutil.rmtree(folder, ignore_errors=True)
        beside.rename(folder)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def run_name(record: Record) -> str:
    """A folder's name for a run, with a digest of the agent's spec where only that tells it from others."""
    spec = record["agent"]
    agent = re.sub(r"[^\w.=,-]+", "-", spec, flags=re.ASCII)[:NAME]
    if agent != spec.replace(":", "-"):
        agent += f"-{hashlib.sha256(spec.encode()).hexdigest()[:8]}"
    return f"{agent}-b{record['budget']:g}-s{record['seed']}"
