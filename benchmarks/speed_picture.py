"""The picture of ``restoration-env speed``: steps a second against N, and what the time of a step grows with."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from restoration_env.rendering import INK, LINE, MUTED, PAPER, Colour

WIDTH, TOP, SIDE, GAP = 1180, 96, 330, 64
COLOURS: tuple[Colour, ...] = ((32, 92, 150), (176, 96, 22), (22, 120, 70), (186, 52, 42))
_LEAST = 4.0  # times that an axis spans, so that what hardly changes looks so
_font = lru_cache(ImageFont.load_default)
Points = Sequence[Sequence[float]]


def draw_speed(result: Mapping[str, Any]) -> np.ndarray:
    """Steps a second against N (both logarithmic), and three panels of growth with the line that fits.

    Args:
        result: what ``restoration-env speed --json`` writes.

    Returns:
        uint8 (H, W, 3).
    """
    page = Image.new("RGB", (WIDTH, TOP + 2 * SIDE + 3 * GAP), PAPER)
    draw = ImageDraw.Draw(page)
    draw.text((GAP, 44), "Environment steps a second", INK, font=_font(22), anchor="ls")
    on = result["device"] + (f", {result['threads']} threads" if "CPU" in result["device"] else "")
    said = f"{on}, random actions"
    draw.text((GAP, 70), said, MUTED, font=_font(14), anchor="ls")
    naive = result["rates"]["naive"]["steps_per_second"]
    series = {
        name: [(int(n), row["steps_per_second"]) for n, row in rows.items()] for name, rows in result["sweep"].items()
    }
    sizes = [n for points in series.values() for n, _ in points]
    series["naive DummyVecEnv (measured at N = 64)"] = [(min(sizes), naive), (max(sizes), naive)]
    _chart(draw, (GAP, TOP, WIDTH - GAP, TOP + SIDE), series, "N, environments side by side")
    width = (WIDTH - 4 * GAP) // 3
    words = {"images": "images in a batch", "tools": "tools in the toolbox", "side": "side of an image in pixels"}
    for column, (what, row) in enumerate(result["growth"].items()):
        x, y = GAP + column * (width + GAP), TOP + SIDE + 2 * GAP
        points = row["milliseconds"]
        slope = row["exponent"]
        offset = np.mean([math.log(t) - slope * math.log(v) for v, t in points])
        fit = [(v, math.exp(offset + slope * math.log(v))) for v, _ in points]
        draw.text((x, y - 14), f"ms for a step, exponent {slope:.2f}", INK, font=_font(15), anchor="ls")
        _chart(draw, (x, y, x + width, y + SIDE - GAP // 2), {"": points}, words[what], fit)
    return np.array(page)


def _chart(
    draw: ImageDraw.ImageDraw,
    box: tuple[int, int, int, int],
    series: Mapping[str, Points],
    below: str,
    fit: Points = (),
) -> None:
    """Lines through points, both axes logarithmic, with the names of the lines inside."""
    left, top, right, bottom = box
    left += 56
    every = [point for points in (*series.values(), fit) for point in points]
    x_range, y_range = (_range([point[axis] for point in every]) for axis in (0, 1))

    def place(point: Sequence[float]) -> tuple[float, float]:
        x = (math.log(point[0]) - x_range[0]) / (x_range[1] - x_range[0])
        y = (math.log(point[1]) - y_range[0]) / (y_range[1] - y_range[0])
        return left + x * (right - left), bottom - y * (bottom - top)

    draw.rectangle((left, top, right, bottom), outline=LINE)
    for value in _ticks(y_range):
        _, y = place((every[0][0], value))
        draw.line((left, y, right, y), LINE)
        draw.text((left - 8, y), f"{value:,g}", MUTED, font=_font(13), anchor="rm")
    for value in sorted({point[0] for point in every}):
        x, _ = place((value, every[0][1]))
        draw.text((x, bottom + 16), f"{value:,g}", MUTED, font=_font(12), anchor="mm")
    draw.text(((left + right) / 2, bottom + 36), below, MUTED, font=_font(14), anchor="mm")
    if fit:
        draw.line([place(point) for point in fit], MUTED, 1)
    for number, (name, points) in enumerate(series.items()):
        colour = COLOURS[number % len(COLOURS)]
        places = [place(point) for point in points]
        if not fit:
            draw.line(places, colour, 2)
        for x, y in places:
            draw.ellipse((x - 4, y - 4, x + 4, y + 4), fill=colour)
        if name:
            draw.text((left + 14, top + 26 + 20 * number), name, colour, font=_font(15), anchor="ls")


def _range(values: Sequence[float]) -> tuple[float, float]:
    low, high = math.log(min(values)), math.log(max(values))
    margin = max(0.08 * (high - low), 0.5 * (math.log(_LEAST) - (high - low)))
    return low - margin, high + margin


def _ticks(y_range: tuple[float, float]) -> list[float]:
    low, high = math.exp(y_range[0]), math.exp(y_range[1])
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    return [step * 10.0**decade for decade in decades for step in (1, 2, 3, 5, 7) if low <= step * 10.0**decade <= high]
