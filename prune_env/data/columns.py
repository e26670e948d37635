"""Read what somebody keeps beside the images: labels of their own, or a number for each image."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path, PurePath
from typing import Any

import numpy as np

from prune_env.data.source import composed
from prune_env.io import read_columns

FLOPS = "flops"  # column with what each number cost
MAX_REFERENCE = 1e6
MAX_FLOPS = 1e30  # of one number: sums of them stay finite
NUMBER = re.compile(r"(\d+)(?:\.0)?")  # 7, or 7.0 as pandas writes it beside an empty field
FORM = re.compile(r"(.+\.(?:csv|parquet|npy))(?::(.+))?")  # FILE or FILE:COLUMN


def values_of(
    name: str, file: str, rows: np.ndarray, n: int, paths: Callable[[], Sequence[Path]]
) -> tuple[list[Any], float]:
    """Return the value of each of some images, and the sum of the file's column `flops`, 0 without one.

    The first column of a CSV or Parquet file is the key: the image's number in the official training split, or its file
    name, with as many of its folders as tell it from others. The values are the column that `file` names, or the only
    other one. A .npy file has a value for each image of the split, in the official order.

    Args:
        name: of the option, for errors.
        file: `FILE` or `FILE:COLUMN`.
        rows: (k,) of the official training split; each must have a value. Others may have one.
        n: images of that split.
        paths: gives their files.

    Raises ValueError for another form, a key that is there twice or stands for several images, or an image without a
    value, OSError for a file that cannot be read.
    """
    form = FORM.fullmatch(file)
    if form is None:
        raise ValueError(f"{name}={file!r} must be a file that ends in .csv, .parquet or .npy, or such a FILE:COLUMN")
    path = Path(form[1]).expanduser()
    if not path.exists():
        raise FileNotFoundError(f"{name}={file!r}: {path} does not exist")
    if path.suffix == ".npy":
        try:
            array = np.load(path, allow_pickle=False)
        except (ValueError, EOFError) as error:
            raise ValueError(f"{path} is no array of plain values: {error}") from error
        if not isinstance(array, np.ndarray):
            raise ValueError(f"{path} is an archive of arrays; save one array with numpy.save")
        if array.shape != (n,):
            raise ValueError(f"{path} has shape {array.shape}; it must be ({n},), the whole official training split")
        return array[rows].tolist(), 0.0
    columns = read_columns(path)
    keys, values = _key_and_values(path, columns, form[2])
    names = [composed(key) for key in keys]
    numbers = [int(found[1]) if (found := NUMBER.fullmatch(name)) else -1 for name in names]
    numbered = max(numbers) >= 0
    if numbered and (wrong := [name for name, number in zip(names, numbers, strict=True) if not 0 <= number < n]):
        raise ValueError(f"{path} has the key {wrong[0]!r}; the images of the training split are numbered 0 to {n - 1}")
    # 7 and 07 are the same, and so are a/b.png and a//b.png
    keys = numbers if numbered else [str(PurePath(name)) for name in names]
    if len(set(keys)) < len(keys):
        raise ValueError(f"{path} has the key {Counter(keys).most_common(1)[0][0]!r} twice")
    line_of = {key: line for line, key in enumerate(keys)} if numbered else _by_name(path, names, paths())
    needed = np.unique(rows).tolist()
    if missing := [row for row in needed if row not in line_of]:
        example = f"number {missing[0]}" if numbered else str(paths()[missing[0]])
        raise ValueError(f"{path} has no line for {len(missing)} of {len(needed)} training images, such as {example}")
    costs = _numbers(f"{path}, column {FLOPS}", columns.get(FLOPS, ()), 0.0, MAX_FLOPS)
    return [values[line_of[row]] for row in rows.tolist()], math.fsum(costs)


def _key_and_values(path: Path, columns: dict[str, list[Any]], name: str | None) -> tuple[list[Any], list[Any]]:
    key, *others = columns or [""]
    others = [other for other in others if other != FLOPS]
    if re.search("[;\t]", str(key)) and not others:
        raise ValueError(f"{path} has no commas between its columns: {key!r}; export it with commas")
    if not others or not columns[key]:
        raise ValueError(f"{path} must have a line for each image: a number or a file name, then a value")
    if name is None and len(others) == 1:
        name = others[0]
    if name not in others:
        raise ValueError(f"{path} has the columns {', '.join(others)}; name one of them, as in {path}:{others[0]}")
    return columns[key], columns[name]


def _by_name(path: Path, keys: Sequence[str], images: Sequence[Path]) -> dict[int, int]:
    """Return the line of each row of the split that has one. Raises ValueError for a key of several images."""
    line_of = {PurePath(key).parts: line for line, key in enumerate(keys)}
    depths = sorted({len(parts) for parts in line_of})
    row_of: dict[int, int] = {}
    for row, image in enumerate(images):
        parts = tuple(map(composed, image.parts))
        for depth in depths:
            line = line_of.get(parts[-depth:])
            if line is not None and row_of.setdefault(line, row) != row:
                folders = "/".join(parts[-depth - 1 :])
                raise ValueError(f"{path}: {keys[line]!r} are several images; write folders too, as in {folders}")
    lines: dict[int, int] = {}
    for line, row in row_of.items():
        if lines.setdefault(row, line) != line:
            raise ValueError(f"{path}: {keys[lines[row]]!r} and {keys[line]!r} are the same image")
    return lines


def as_classes(file: str, values: Sequence[Any], classes: tuple[str, ...]) -> np.ndarray:
    """Return labels (k,) int64 of names of classes, or else of their numbers. Raises ValueError, naming the value."""
    names = [composed(value) for value in values]
    of_name = {composed(name): number for number, name in enumerate(classes)}
    of_number = {str(number): number for number in range(len(classes))}
    numbers = of_number.keys() >= set(names) and not of_name.keys() >= set(names)
    number_of = of_number if numbers else of_name
    wrong = [name for name in names if name not in number_of]
    if wrong:
        unknown = next((name for name in wrong if name not in of_number), wrong[0])
        known = ", ".join(classes[:5]) + (", ..." if len(classes) > 5 else "")
        raise ValueError(f"{file}: {unknown!r} is no class; there are {known}, or the numbers 0 to {len(classes) - 1}")
    return np.array([number_of[name] for name in names], np.int64)


def as_numbers(file: str, values: Sequence[Any]) -> np.ndarray:
    """Return (k,) float32. Raises ValueError, naming the value, for what is no number within ±MAX_REFERENCE."""
    return np.array(_numbers(file, values, -MAX_REFERENCE, MAX_REFERENCE), np.float32)


def _numbers(where: str, values: Sequence[Any], low: float, high: float) -> list[float]:
    for value in values:
        try:
            fits = low <= float(value) <= high
        except (TypeError, ValueError):
            fits = False
        if not fits:
            raise ValueError(f"{where}: {value!r} must be a number between {low:g} and {high:g}")
    return [float(value) for value in values]
