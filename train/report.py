"""Report on a sweep as one HTML file: `prune-env report --help`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from prune_env import io
from train.analysis import page, records, sheets, summary, table
from train.analysis.text import readable
from train.execution import command_line


@dataclass
class Arguments:
    """Write report.html, which needs no network and no JavaScript, its figures, its numbers as CSV, and table.txt.

    FOLDER is what `evaluate` or `sweep` wrote; its results.jsonl may be compressed, as those in
    results/ are. It may still be running: nothing else is touched. Runs of a sweep that its file does not have any
    more are left out.
    """

    folder: tyro.conf.Positional[Path]
    """Folder with results.jsonl, results.jsonl.xz or results.jsonl.gz."""
    out: Path | None = None
    """Folder for the report; by default FOLDER."""
    root: str | None = None
    """Folder with the images, to show some of them; without it only those that come with the package are shown."""


def main(args: Sequence[str] | None = None) -> int:
    """Run the program with `args` (else those of the command line); return its exit status: 2 without results."""
    arguments = command_line.read("report", Arguments, args)
    out = arguments.out or arguments.folder
    try:
        results = records.read(arguments.folder)
        runs = summary.latest(results.records)
        files = {name: text.encode() for name, text in sheets.make(runs).items()}
        title = f"prune_env: {arguments.folder.resolve().name}"
        text, images = page.render(results, title, list(files), arguments.root)
        files |= {"report.html": text.encode(), **{f"figures/{name}": png for name, png in images.items()}}
        for name in {path.name for path in (out / "figures").glob("*.png")} - images.keys():
            (out / "figures" / name).unlink()  # of a report that had other tasks
        for name, content in files.items():
            io.write_atomic(out / name, content)
        table.write(out / "table.txt", table.render_tasks(runs, records.targets(results.source)))
    except (ValueError, OSError) as error:
        return command_line.refused(error)
    print(readable(str(out / "report.html")))
    return 0


if __name__ == "__main__":
    sys.exit(main())
