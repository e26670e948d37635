"""Write the steps of every run as a CSV file and as TensorBoard events."""

from __future__ import annotations

import csv
import time
from collections.abc import Sequence
from io import StringIO
from pathlib import Path

from tensorboard.compat.proto import event_pb2, summary_pb2
from tensorboard.summary.writer.event_file_writer import EventFileWriter  # torch's takes two seconds to import

from prune_env import io
from train.analysis.records import Record
from train.analysis.text import readable
from train.execution.run import CURVE
from train.execution.saved import run_name

RUN = ("task", "agent", "budget", "seed")
SCALARS = tuple(name for name in CURVE if name != "spent")
PER_UNIT = 1000  # TensorBoard's steps are whole numbers: thousandths of a full-epoch equivalent


def write_csv(path: Path, records: Sequence[Record]) -> None:
    """Write one row a step: task, agent, budget, seed, step, compute spent so far, and what the step gave."""
    text = StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow([*RUN, "step", *CURVE])
    for record in records:
        run = [record[name] for name in RUN]
        steps = zip(*(record["curve"][name] for name in CURVE), strict=True)
        writer.writerows([*run, step, *row] for step, row in enumerate(steps, start=1))
    io.write_atomic(path, readable(text.getvalue()).encode())


def write_events(folder: Path, records: Sequence[Record]) -> None:
    """Write TensorBoard events of each run to `folder`/<agent>-b<budget>-s<seed>.

    The step is the compute spent, in thousandths of a full-epoch equivalent, so that agents compare at equal
    compute. The last step has the test accuracy.
    """
    for record in records:
        curve, results = record["curve"], record["results"]
        writer = EventFileWriter(str(folder / run_name(record["agent"], record["budget"], record["seed"])))
        for step, spent in enumerate(curve["spent"]):
            _add(writer, spent, {name: curve[name][step] for name in SCALARS})
        _add(writer, results["spent"]["total"], {"test_accuracy": results["test_accuracy"]})
        writer.close()


def _add(writer: EventFileWriter, spent: float, values: dict[str, float]) -> None:
    # the classes are made at import, where pyright does not see them
    summary = summary_pb2.Summary()  # pyright: ignore[reportAttributeAccessIssue]
    for name, value in values.items():
        summary.value.add(tag=name, simple_value=value)
    event = event_pb2.Event  # pyright: ignore[reportAttributeAccessIssue]
    writer.add_event(event(wall_time=time.time(), step=round(PER_UNIT * spent), summary=summary))
