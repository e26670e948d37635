"""HTML in which every text is escaped: what is not `Markup` is text."""

from __future__ import annotations

import base64
import html
import re
import sys
from collections.abc import Iterable, Sequence

from train.analysis.plots import number, side
from train.analysis.statistics import Interval
from train.analysis.summary import Difference

SHOWN = 30  # rows of a table up to which it is unfolded


class Markup(str):
    """HTML that stands as it is."""

    __slots__ = ()


def tag(name: str, *content: str, **attributes: str) -> Markup:
    """An element; texts in `content` and the values of `attributes` are escaped. `class_` is written class."""
    return Markup(f"{_opening(name, attributes)}{join(content)}</{name}>")


def image(png: bytes, alt: str, **attributes: str) -> Markup:
    """An image that the page itself holds."""
    source = f"data:image/png;base64,{base64.b64encode(png).decode()}"
    return Markup(_opening("img", {"src": source, "alt": alt, **attributes}))


def join(content: Iterable[str], between: str = "") -> Markup:
    """Texts, escaped, and markup one after the other."""
    return Markup(escaped(between).join(map(escaped, content)))


def escaped(text: str) -> Markup:
    """`text` as HTML; markup stays what it is."""
    return text if isinstance(text, Markup) else Markup(html.escape(text))


def breakable(name: str) -> Markup:
    """A long name that may go on in the next line behind its punctuation."""
    return Markup(re.sub(r"(?<=[:,+])", "<wbr>", escaped(name)))


def table(heads: Sequence[str], rows: Iterable[Sequence[str]], label: str, *, stacked: bool = False) -> Markup:
    """A table that scrolls sideways in a narrow window; the first cell of each row is its head.

    Args:
        heads: of the columns.
        rows: cells, as many as heads.
        label: what the table has, for those who do not see it.
        stacked: in a narrow window the cells of a row stand below one another instead.
    """
    lines = []
    for first, *rest in rows:
        named = ({"data_head": head} if stacked else {} for head in heads[1:])
        cells = (tag("td", text, **head) for text, head in zip(rest, named, strict=True))
        lines.append(tag("tr", tag("th", first, scope="row", **({"data_head": heads[0]} if stacked else {})), *cells))
    head = tag("thead", tag("tr", *(tag("th", text, scope="col") for text in heads)))
    whole = tag("table", head, tag("tbody", *lines), class_="stacked" if stacked else "wide")
    return tag("div", whole, class_="scroll", role="region", aria_label=label, tabindex="0")


def folded(summary: str, *content: str, shown: bool = False) -> Markup:
    """Content below a line that opens and closes it."""
    return tag("details", tag("summary", summary), *content, **({"open": ""} if shown else {}))


def spread(mean: float, interval: Interval | None, form: str) -> str:
    """A number with its interval: "94.12 [93.48, 94.77]"."""
    text = number(mean, form)
    return text if interval is None else f"{text} [{number(interval[0], form)}, {number(interval[1], form)}]"


def coloured(mean: float, interval: Interval | None) -> Markup:
    """A difference with its interval, marked if that lies off 0."""
    text = spread(mean, interval, "+.2f")
    name = {1: "up", -1: "down"}.get(side(interval))
    return tag("span", text, class_=name) if name else escaped(text)


def difference(difference: Difference | None) -> Markup:
    """`coloured`, or a dash."""
    return Markup("–") if difference is None else coloured(difference.mean, difference.interval)


def wrapped(text: str) -> Markup:
    """A cell's text that may take several lines."""
    return tag("span", text, class_="wrapped")


def folding(heads: Sequence[str], lines: Sequence[Sequence[str]], name: str, label: str) -> Markup:
    """A table that is folded away if it is long."""
    return folded(name, table(heads, lines, label), shown=len(lines) <= SHOWN)


def remark(why: str) -> Markup:
    """A paragraph in small print."""
    return tag("p", why, class_="note")


def bullets(lines: Iterable[str]) -> Markup:
    """A list."""
    return tag("ul", *(tag("li", line) for line in lines))


def count(many: int, what: str) -> str:
    """How many, in words: 1 run, 2 runs."""
    return f"{many:,} {what}" + ("" if many == 1 else "s")


def listed(names: Iterable[str], most: int = sys.maxsize) -> str:
    """Names in a sentence: a, b and c; with more than `most`: a, b and 7 more."""
    every = list(names)
    if len(every) > most:
        every = [*every[:most], f"{len(every) - most} more"]
    return " and ".join(filter(None, [", ".join(every[:-1]), every[-1]]))


def _opening(name: str, attributes: dict[str, str]) -> str:
    written = (f' {key.rstrip("_").replace("_", "-")}="{html.escape(value)}"' for key, value in attributes.items())
    return f"<{name}{''.join(written)}>"
