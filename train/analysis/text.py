"""Write numbers and names in words, for the terminal, tables, pages and figures."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from train.analysis.statistics import Interval


def readable(text: str) -> str:
    r"""Return `text` with the bytes of names that are not UTF-8 written as \xe9, so that it can be printed."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def spread(mean: float, interval: Interval | None, form: str, without: str = "") -> str:
    """Return a number with its interval: "94.12 [93.48, 94.77]"; from one seed with `without` in its place."""
    return f"{mean:{form}}" + (without if interval is None else f" [{interval[0]:{form}}, {interval[1]:{form}}]")


def plus_minus(values: Sequence[float] | NDArray, form: str) -> str:
    """Return the mean of `values`, one a seed, with its standard error: "94.12 ± 0.21"; of one seed the value alone."""
    error = "" if len(values) < 2 else f" ± {np.std(values, ddof=1) / len(values) ** 0.5:.2f}"
    return f"{np.mean(values):{form}}{error}"


def count(many: int, what: str) -> str:
    """Return how many, in words: 1 run, 2 runs."""
    return f"{many:,} {what}" + ("" if many == 1 else "s")


def listed(names: Iterable[str]) -> str:
    """Return names in a sentence: a, b and c."""
    *first, last = ["", *names]
    return " and ".join(filter(None, [", ".join(first[1:]), last]))
