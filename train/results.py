"""The results file: one JSON line per finished run, appended as runs end."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from prune_env import files

Record = dict[str, Any]


def read(path: Path, *, repair: bool = True) -> tuple[dict[str, Record], int]:
    """The records in `path` by their keys, and how many lines could not be read.

    A kill can tear the last line; what cannot be read is dropped from the file, so that appending goes on from
    a whole line. Who only looks must leave that, as a line may be half written at this moment: `repair=False`.
    A file that is not there has no records.
    """
    if not path.exists():
        return {}, 0
    lines = path.read_bytes().split(b"\n")
    parsed = [(line, _parse(line)) for line in lines if line]
    whole = [line for line, record in parsed if record is not None]
    text = b"".join(line + b"\n" for line in whole)
    if repair and text != b"\n".join(lines):
        files.replace(path, text)
    return {record["key"]: record for _, record in parsed if record is not None}, len(parsed) - len(whole)


def _parse(line: bytes) -> Record | None:
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) and "key" in record else None


def write(path: Path, records: Iterable[Record]) -> None:
    """Put these records in place of the file. Errors as for `append`."""
    files.replace(path, b"".join(map(_line, records)))


def append(path: Path, record: Record) -> None:
    """Add one line, on the disk when this returns.

    Raises:
        ValueError: a number that JSON does not know (NaN, infinity).
    """
    line = _line(record)
    with open(path, "ab") as file:
        file.write(line)
        file.flush()
        os.fsync(file.fileno())


def _line(record: Record) -> bytes:
    return json.dumps(record, allow_nan=False, separators=(",", ":")).encode() + b"\n"


def grouped(records: Sequence[Record]) -> dict[float, dict[str, list[Record]]]:
    """Records by budget, ascending, then by agent in the order of appearance."""
    groups: dict[float, dict[str, list[Record]]] = {}
    for record in sorted(records, key=lambda record: record["budget"]):
        groups.setdefault(record["budget"], {}).setdefault(record["agent"], []).append(record)
    return groups
