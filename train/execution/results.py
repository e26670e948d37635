"""The results file: one JSON line per finished run, with a digest, appended as runs end."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from prune_env import io

Record = dict[str, Any]
CELLS = "cells 1"  # of cells.json, the plan: its keys, and the text of the file that it is from
KIND = "record 1"  # of each line, see `io.seal_line`


def read(path: Path, *, repair: bool = True) -> tuple[dict[str, Record], int]:
    """The records in `path` by their keys, and how many lines were not as they were written.

    A kill can tear the last line, and a disk or a hand change any: such lines, and those of another format, are never
    used. They are moved to NAME.damaged beside it, so that appending goes on from a whole line. Who only looks must
    leave them, as a line may be half written at this moment: `repair=False`. A file that is not there has no records.
    """
    if not path.exists():
        return {}, 0
    lines = path.read_bytes().split(b"\n")
    parsed = [(line, _parse(line)) for line in lines if line]
    damaged = [line for line, record in parsed if record is None]
    text = b"".join(line + b"\n" for line, record in parsed if record is not None)
    if repair and damaged:
        aside = path.with_name(path.name + ".damaged")
        before = aside.read_bytes() if aside.exists() else b""
        io.write_atomic(aside, before + b"".join(line + b"\n" for line in damaged))
    if repair and text != b"\n".join(lines):
        io.write_atomic(path, text)
    return {record["key"]: record for _, record in parsed if record is not None}, len(damaged)


def _parse(line: bytes) -> Record | None:
    try:
        record = io.unseal_line(KIND, line)
    except io.DamagedFile:
        return None
    return record if "key" in record else None


def write(path: Path, records: Iterable[Record]) -> None:
    """Put these records in place of the file. Errors as for `append`."""
    io.write_atomic(path, b"".join(io.seal_line(KIND, record) for record in records))


def append(path: Path, record: Record) -> None:
    """Add one line, on the disk when this returns; if it cannot be written, the file is as before.

    Raises:
        ValueError: a number that JSON does not know (NaN, infinity).
        OSError: the disk is full, or the file must not be written.
    """
    line = io.seal_line(KIND, record)
    with open(path, "a+b", buffering=0) as file:
        before = file.seek(0, os.SEEK_END)
        if before:
            file.seek(before - 1)
            if file.read(1) != b"\n":  # a torn line, which is lost; this one must not be
                line = b"\n" + line
        try:
            written = 0
            while written < len(line):  # a disk that is nearly full takes a part
                written += file.write(line[written:]) or 0
            os.fsync(file.fileno())
            if not before:  # the file is new: its name too must outlast a power cut, as checkpoints go after this
                io.sync_folder(path.parent)
        except OSError:
            file.truncate(before)
            raise


def grouped(records: Sequence[Record]) -> dict[float, dict[str, list[Record]]]:
    """Records by budget, ascending, then by agent in the order of appearance."""
    groups: dict[float, dict[str, list[Record]]] = {}
    for record in sorted(records, key=lambda record: record["budget"]):
        groups.setdefault(record["budget"], {}).setdefault(record["agent"], []).append(record)
    return groups
