"""Scatter plots as a PNG, drawn with Pillow: a grid of panels, dots coloured by group under one legend."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from bitagent_jax.video import INK, PAPER, label_font, save_png

COLORS = ((0, 90, 180), (230, 120, 0), (0, 150, 110), (200, 60, 60), (140, 90, 190), (120, 120, 120), (190, 150, 0))
GRID, ALPHA = (225, 225, 225), 110
WIDTH, HEIGHT = 320, 260  # of a panel
LEFT, RIGHT, TOP, BOTTOM = 52, 14, 44, 40  # of its plot
LINE = 18  # of the legend
DOT, FINE = 2.2, 2  # radius; pixels drawn for each that is kept, which smooths edges


class Panel(NamedTuple):
    """One plot.

    Attributes:
        y_name, x_name: of the axes.
        note: a line above the plot.
        x, y: finite ``[N]``.
        group: names ``[N]``, each of which has a colour, the same in all panels.
    """

    y_name: str
    x_name: str
    note: str
    x: np.ndarray
    y: np.ndarray
    group: np.ndarray


def scatter(path: str | Path, lines: Sequence[Sequence[Panel]]) -> Path:
    """Write lines of panels as a PNG; returns the path.

    Args:
        path: the target, ending in ``.png``; its folder is created.
        lines: panels from left to right, from top to bottom.

    Raises:
        ValueError: no panel, one without dots, or another ending.
    """
    panels = [panel for line in lines for panel in line]
    if not panels or not all(len(panel.x) for panel in panels):
        raise ValueError("a scatter plot needs panels, and each of them a dot")
    names = sorted({name for panel in panels for name in panel.group.tolist()})
    colors = {name: COLORS[index % len(COLORS)] for index, name in enumerate(names)}
    width = max(len(line) for line in lines) * WIDTH
    places = _legend(names, width)
    band = places[-1][1] + LINE
    sheet = Image.new("RGB", (FINE * width, FINE * (len(lines) * HEIGHT + band)), PAPER)
    draw = ImageDraw.Draw(sheet, "RGBA")
    for (name, color), (x, y) in zip(colors.items(), places, strict=True):
        _dot(draw, FINE * x, FINE * y, FINE * 4, (*color, 255))
        draw.text((FINE * (x + 9), FINE * y), name, INK, label_font(FINE * 12), anchor="lm")
    for row, line in enumerate(lines):
        for column, panel in enumerate(line):
            _panel(draw, panel, colors, column * WIDTH, row * HEIGHT + band)
    return save_png(sheet.resize((sheet.width // FINE, sheet.height // FINE), Image.Resampling.LANCZOS), Path(path))


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Return at most ``count + 1`` round numbers in [low, high], in steps of 1, 2 or 5 times a power of ten."""
    raw = max(high - low, 1e-9) / count
    power = 10.0 ** np.floor(np.log10(raw))
    step = power * next(factor for factor in (1, 2, 5, 10) if factor * power >= raw * 0.999)
    first = int(np.ceil(low / step - 1e-6))
    return [index * step for index in range(first, int(np.floor(high / step + 1e-6)) + 1)]


def _legend(names: Sequence[str], width: int) -> list[tuple[int, int]]:
    """Place the names in lines no wider than the sheet; returns each one's dot."""
    places, x, y = [], LEFT, LINE
    for name in names:
        needed = round(label_font(12).getlength(name)) + 30
        if x > LEFT and x + needed > width:
            x, y = LEFT, y + LINE
        places.append((x, y))
        x += needed
    return places


def _panel(draw: ImageDraw.ImageDraw, panel: Panel, colors: dict[str, tuple], left: int, top: int) -> None:
    box = (left + LEFT, top + TOP, left + WIDTH - RIGHT, top + HEIGHT - BOTTOM)
    small, font = label_font(12 * FINE), label_font(13 * FINE)
    (x0, x1), (y0, y1) = _range(panel.x), _range(panel.y)
    at_x = lambda x: FINE * (box[0] + (x - x0) / (x1 - x0) * (box[2] - box[0]))  # noqa: E731
    at_y = lambda y: FINE * (box[3] - (y - y0) / (y1 - y0) * (box[3] - box[1]))  # noqa: E731
    for value in ticks(x0, x1):
        draw.line([(at_x(value), FINE * box[1]), (at_x(value), FINE * box[3])], GRID, FINE)
        draw.text((at_x(value), FINE * (box[3] + 10)), f"{value:.4g}", INK, small, anchor="mm")
    for value in ticks(y0, y1):
        draw.line([(FINE * box[0], at_y(value)), (FINE * box[2], at_y(value))], GRID, FINE)
        draw.text((FINE * (box[0] - 6), at_y(value)), f"{value:.4g}", INK, small, anchor="rm")
    for index in np.random.default_rng(0).permutation(len(panel.x)):  # so that no group lies on top of all others
        color = (*colors[str(panel.group[index])], ALPHA)
        _dot(draw, at_x(panel.x[index]), at_y(panel.y[index]), DOT * FINE, color)
    draw.rectangle([FINE * side for side in box], outline=INK, width=FINE)
    draw.text((FINE * box[0], FINE * (box[1] - 28)), panel.y_name, INK, font, anchor="lm")
    draw.text((FINE * box[0], FINE * (box[1] - 11)), panel.note, INK, small, anchor="lm")
    draw.text((FINE * (box[0] + box[2]) / 2, FINE * (box[3] + 27)), panel.x_name, INK, font, anchor="mm")


def _range(values: np.ndarray) -> tuple[float, float]:
    low, high = float(values.min()), float(values.max())
    room = 0.04 * (high - low) or 0.5 * max(abs(low), 1e-3)
    return low - room, high + room


def _dot(draw: ImageDraw.ImageDraw, x: float, y: float, radius: float, color: tuple) -> None:
    draw.ellipse([x - radius, y - radius, x + radius, y + radius], fill=color)
