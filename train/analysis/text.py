"""Write numbers and names in words, for the terminal, tables, pages and figures."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from decimal import Decimal

import numpy as np
from numpy.typing import NDArray

from train.analysis.statistics import Interval


def readable(text: str) -> str:
    r"""Return `text` with the bytes of names that are not UTF-8 written as \xe9, so that it can be printed."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def number(value: float, form: str) -> str:
    """Return a number in a form such as "+.2f", the same for values that differ only by floating-point rounding.

    -0.095 may be computed as -0.09499999999999 or as -0.09500000000001: both are "-0.10".
    """
    return f"{Decimal(repr(round(float(value), 9))) if math.isfinite(value) else value:{form}}"


def folded(name: str, width: int, behind: str = ":,+/") -> str:
    """Return a name in lines of at most `width` characters, folded behind the characters `behind` if there are some."""
    lines, width = [""], max(width, 2)
    for part in re.findall(rf"[^{behind}]{{1,{width - 1}}}[{behind}]|[^{behind}]{{1,{width}}}|[{behind}]", name):
        if lines[-1] and len(lines[-1] + part) > width:
            lines.append("")
        lines[-1] += part
    return "\n".join(lines)


def spread(mean: float, interval: Interval | None, form: str, without: str = "") -> str:
    """Return a number with its interval: "94.12 [93.48, 94.77]"; from one seed with `without` in its place."""
    ends = without if interval is None else f" [{number(interval[0], form)}, {number(interval[1], form)}]"
    return number(mean, form) + ends


def plus_minus(values: Sequence[float] | NDArray, form: str) -> str:
    """Return the mean of `values`, one a seed, with its standard error: "94.12 ± 0.21"; of one seed the value alone."""
    error = "" if len(values) < 2 else f" ± {number(float(np.std(values, ddof=1)) / len(values) ** 0.5, '.2f')}"
    return f"{number(float(np.mean(values)), form)}{error}"


def count(many: int, what: str) -> str:
    """Return how many, in words: 1 run, 2 runs."""
    return f"{many:,} {what}" + ("" if many == 1 else "s")


def listed(names: Iterable[str]) -> str:
    """Return names in a sentence: a, b and c."""
    *first, last = ["", *names]
    return " and ".join(filter(None, [", ".join(first[1:]), last]))
