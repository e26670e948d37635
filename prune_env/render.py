"""Frames of a run: what was kept, by difficulty, and what came of it."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont  # Pillow comes with torchvision

from prune_env.data import Data

BINS = 50  # of difficulty rank, easiest first
SHOWN = 6  # images of each kind at most, 3 in a row

WIDTH, HEIGHT = 720, 480
CURVE = (62, 66, 438, 226)  # left, top, right, bottom of validation accuracy over compute
STRIP = (62, 288, 438, 438)  # of the shares kept: one pixel column a stretch of compute, 3 rows a bin
KEPT = (468, 66)  # left, top of the first image kept
DROPPED = (468, 288)
THUMB = 72  # side of an image shown
PITCH = (82, 92)  # from one image to the next, across and down

INK, MUTED, GRID, PAPER, EMPTY = (33, 37, 41), (108, 117, 125), (222, 226, 230), (255, 255, 255), (241, 243, 245)
LINE = (31, 119, 180)
SHADES = np.array([[68, 1, 84], [59, 82, 139], [33, 145, 140], [94, 201, 98], [253, 231, 37]])  # viridis, 0 to 1
BLOCKS = "▁▂▃▄▅▆▇█"


class History:
    """What a frame shows, recorded as the run goes on."""

    def __init__(self):
        self.spent: list[float] = []  # full-epoch equivalents, at the start and after each step
        self.accuracy: list[float] = []  # of validation, likewise
        self.kept_by_rank: list[NDArray[np.float32]] = []  # one (BINS,) a step, shares kept, easiest first
        self.kept = np.zeros(0, np.int64)  # last step's samples, easiest first
        self.dropped = np.zeros(0, np.int64)

    def choose(self, difficulty: NDArray[np.float32], keeps: NDArray[np.bool_]) -> None:
        """Note what a step trained on, (N,), by the running mean of the losses (N,) as the agent saw it.

        Equally difficult samples, as all are before the first step, count as kept in equal parts: their order
        means nothing.
        """
        _, group, size = np.unique(difficulty, return_inverse=True, return_counts=True)
        order = np.argsort(group, kind="stable")
        self.kept, self.dropped = order[keeps[order]], order[~keeps[order]]
        share = (np.bincount(group, weights=keeps) / size)[group[order]]  # (N,), easiest first
        n = len(order)
        self.kept_by_rank.append(_means(share, np.arange(n + 1), np.linspace(0, n, BINS + 1)).astype(np.float32))

    def record(self, spent: float, accuracy: float) -> None:
        """Note where the run stands: full-epoch equivalents spent, and validation accuracy."""
        self.spent.append(spent)
        self.accuracy.append(accuracy)


def frame(history: History, data: Data, budget: float) -> NDArray[np.uint8]:
    """(HEIGHT, WIDTH, 3) picture of a run, after its start is recorded; `data` holds the training images."""
    image = Image.new("RGB", (WIDTH, HEIGHT), PAPER)
    draw = ImageDraw.Draw(image)
    _write(draw, (20, 22), _headline(history, budget), size=16)
    _draw_curve(image, draw, history, budget)
    _draw_strip(image, draw, history, budget)
    _write(draw, (KEPT[0], 22), "Samples, easiest to hardest", colour=MUTED)
    if not history.kept_by_rank:
        _write(draw, (KEPT[0], KEPT[1] - 18), "No step has been taken yet")
    else:
        _draw_samples(image, draw, history.kept, "kept", KEPT, history, data)
        _draw_samples(image, draw, history.dropped, "dropped", DROPPED, history, data)
    return np.array(image)


def text(history: History, budget: float) -> str:
    """A run in a few lines of text."""
    lines = [
        _headline(history, budget),
        f"Validation accuracy {history.accuracy[-1]:.1%} {_blocks(_sampled(np.array(history.accuracy), 60))}",
    ]
    if history.kept_by_rank:
        by_rank = history.kept_by_rank[-1].reshape(10, -1).mean(axis=1)
        lines.append(f"Last step kept {_count(history.kept, history)}: easiest {_blocks(by_rank)} hardest")
    return "\n".join(lines)


def _headline(history: History, budget: float) -> str:
    spent = history.spent[-1]
    return f"Step {len(history.spent) - 1}: {spent:.2f} of {budget:g} full epochs spent ({spent / budget:.0%})"


def _count(part: NDArray[np.int64], history: History) -> str:
    n = len(history.kept) + len(history.dropped)
    return f"{len(part):,} of {n:,} ({len(part) / n:.0%})"


def _blocks(values: NDArray) -> str:
    """One block character for each value between 0 and 1."""
    return "".join(BLOCKS[int(level)] for level in np.rint(np.clip(values, 0, 1) * (len(BLOCKS) - 1)))


def _sampled(values: NDArray, most: int) -> NDArray:
    """At most `most` entries of `values` (n,), evenly spaced, the first and the last among them."""
    if len(values) <= most:
        return values
    return values[np.rint(np.linspace(0, len(values) - 1, most)).astype(np.int64)]


def _means(values: NDArray, edges: NDArray, at: NDArray) -> NDArray[np.float64]:
    """Means of a step function over stretches that it covers at least in part.

    Args:
        values: (k,), the i-th holds from edges[i] to edges[i + 1].
        edges: (k + 1,) ascending.
        at: (m + 1,) ascending, ends of the stretches.

    Returns:
        (m,), 0 where nothing is covered.
    """
    total = np.concatenate([[0.0], np.cumsum(values * np.diff(edges))])
    width = np.diff(np.clip(at, edges[0], edges[-1]))
    return np.diff(np.interp(at, edges, total)) / np.where(width > 0, width, 1)


def _draw_curve(image: Image.Image, draw: ImageDraw.ImageDraw, history: History, budget: float) -> None:
    left, top, right, bottom = CURVE
    draw.rectangle((left, top, right - 1, bottom), fill=EMPTY)
    for value in (0.0, 0.25, 0.5, 0.75, 1.0):
        y = bottom - round(value * (bottom - top))
        draw.line((left, y, right - 1, y), fill=GRID)
        _write(draw, (left - 8, y), f"{value:.0%}", colour=MUTED, anchor="rm")
    _draw_compute_axis(draw, CURVE, budget)
    _write(draw, (left, top - 18), "Validation accuracy")
    _write(draw, (right, top - 18), f"{history.accuracy[-1]:.1%}", colour=LINE, anchor="rm", size=16)

    x = left + np.clip(np.array(history.spent) / budget, 0, 1) * (right - 1 - left)
    y = bottom - np.array(history.accuracy) * (bottom - top)
    # Pillow's lines have hard edges: draw four times as large, and let the reduction blend
    points = [(4 * a + 2, 4 * b + 2) for a, b in zip(x.tolist(), y.tolist(), strict=True)]
    large = Image.new("L", (4 * WIDTH, 4 * HEIGHT))
    pen = ImageDraw.Draw(large)
    pen.line(points, fill=255, width=8, joint="curve")
    for a, b in points if len(points) <= 30 else points[-1:]:
        pen.ellipse((a - 11, b - 11, a + 11, b + 11), fill=255)
    image.paste(LINE, (0, 0), large.reduce(4))


def _draw_strip(image: Image.Image, draw: ImageDraw.ImageDraw, history: History, budget: float) -> None:
    left, top, right, bottom = STRIP
    draw.rectangle((left, top, right - 1, bottom - 1), fill=EMPTY)
    edges, at = np.array(history.spent), np.linspace(0, budget, right - left + 1)
    at = at[: 1 + np.count_nonzero((at[:-1] + at[1:]) / 2 < edges[-1])]  # columns at least half spent
    if len(at) > 1:
        shares = np.stack([_means(row, edges, at) for row in np.stack(history.kept_by_rank, axis=1)])  # (BINS, w)
        colours = _shade(np.repeat(shares[::-1], (bottom - top) // BINS, axis=0))
        image.paste(Image.fromarray(colours), (left, top))
    _write(draw, (left, top - 18), "Share kept, by difficulty")
    _write(draw, (left - 8, top + 6), "hardest", colour=MUTED, anchor="rm")
    _write(draw, (left - 8, bottom - 6), "easiest", colour=MUTED, anchor="rm")
    _draw_compute_axis(draw, STRIP, budget)
    _write(draw, ((left + right) // 2, bottom + 30), "Compute, full epochs", colour=MUTED, anchor="mm")

    scale = _shade(np.broadcast_to(np.linspace(0, 1, 80), (8, 80)))
    image.paste(Image.fromarray(scale), (right - 104, top - 22))
    _write(draw, (right - 110, top - 18), "none", colour=MUTED, anchor="rm")
    _write(draw, (right, top - 18), "all", colour=MUTED, anchor="rm")


def _shade(shares: NDArray) -> NDArray[np.uint8]:
    """(h, w) shares kept to (h, w, 3) colours."""
    stops = np.linspace(0, 1, len(SHADES))
    return np.stack([np.rint(np.interp(shares, stops, channel)) for channel in SHADES.T], axis=-1).astype(np.uint8)


def _draw_compute_axis(draw: ImageDraw.ImageDraw, box: tuple[int, int, int, int], budget: float) -> None:
    left, _, right, bottom = box
    magnitude = 10.0 ** np.floor(np.log10(budget))
    step = next(s for s in (0.1, 0.2, 0.5, 1, 2) if budget / (s * magnitude) <= 6) * magnitude
    for value in np.arange(0, budget * 1.001, step):
        x = left + round(value / budget * (right - 1 - left))
        draw.line((x, bottom, x, bottom + 4), fill=MUTED)
        _write(draw, (x, bottom + 13), f"{value:.6g}", colour=MUTED, anchor="mm")


def _draw_samples(
    image: Image.Image,
    draw: ImageDraw.ImageDraw,
    part: NDArray[np.int64],
    word: str,
    corner: tuple[int, int],
    history: History,
    data: Data,
) -> None:
    """Some of the samples `part` (k,), easiest first, from `corner` rightwards and down."""
    left, top = corner
    _write(draw, (left, top - 18), f"Last step {word} {_count(part, history)}")
    chosen = torch.from_numpy(_sampled(part, SHOWN)).to(data.device)
    images, labels = (tensor.cpu().numpy() for tensor in data.batch(chosen))
    for place, (pixels, label) in enumerate(zip(images.transpose(0, 2, 3, 1), labels, strict=True)):
        x, y = left + place % 3 * PITCH[0], top + place // 3 * PITCH[1]
        colours = np.ascontiguousarray(np.broadcast_to(pixels, (*pixels.shape[:2], 3)))
        method = Image.Resampling.NEAREST if len(pixels) < THUMB else Image.Resampling.BOX
        image.paste(Image.fromarray(colours).resize((THUMB, THUMB), method), (x, y))
        name = data.classes[label]
        while draw.textlength(name, _font(12)) > THUMB:
            name = name[:-1]
        _write(draw, (x + THUMB // 2, y + THUMB + 9), name, colour=MUTED, anchor="mm", size=12)


def _write(
    draw: ImageDraw.ImageDraw,
    place: tuple[float, float],
    words: str,
    colour: tuple[int, int, int] = INK,
    anchor: str = "lm",
    size: int = 13,
) -> None:
    draw.text(place, words, fill=colour, font=_font(size), anchor=anchor)


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
