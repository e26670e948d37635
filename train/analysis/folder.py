"""Write what `prune-env evaluate` and `prune-env sweep` leave in their folders of results, beside the records."""

from __future__ import annotations

import re
import shutil
from collections.abc import Collection, Sequence
from pathlib import Path

from prune_env import io
from train.analysis import summary, table
from train.analysis.records import Record, targets


def write(folder: Path, records: Sequence[Record], tasks: Collection[str], source: str = "") -> None:
    """Write table.txt and curves.csv of all records, and figure and TensorBoard's events of those on some tasks.

    These are accuracy.png and tensorboard/, and accuracy-TASK.png and tensorboard/TASK/ where there are several tasks.
    `source` is the text of the sweep file, which may have targets.
    """
    from train.analysis import curves, figures  # they take a second

    table.write(folder / "table.txt", table.render_tasks(records, targets(source)))
    curves.write_csv(folder / "curves.csv", records)
    shutil.rmtree(folder / "tensorboard", ignore_errors=True)
    for task, own in summary.by_task(records).items():
        if task in tasks:
            name = re.sub(r"[^\w.=,-]+", "-", task) if len(tasks) > 1 else ""
            figure = figures.png(figures.evaluation(own, task))
            io.write_atomic(folder / (f"accuracy-{name}.png" if name else "accuracy.png"), figure)
            curves.write_events(folder / "tensorboard" / name, own)
