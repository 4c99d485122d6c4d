"""Learning curves as a picture: lines with a band of one standard deviation."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from restoration_env.errors import InvalidArgument
from restoration_env.rendering import INK, LINE, MUTED, PAPER

WIDTH, HEIGHT = 920, 520
LEFT, RIGHT, TOP, BOTTOM = 76, 210, 58, 62  # margins; on the right stand the names
MARK_ROOM = 56  # pixels between the middles of two numbers under the picture
COLOURS = (
    (32, 92, 150),
    (196, 98, 16),
    (34, 128, 84),
    (164, 42, 78),
    (112, 82, 168),
    (120, 104, 32),
    (20, 132, 148),
    (96, 96, 96),
)
_font = lru_cache(ImageFont.load_default)
Points = Sequence[tuple[float, float, float]]


def draw_curves(
    curves: Mapping[str, Points], title: str, across: str, up: str, *, logarithmic: bool = False
) -> np.ndarray:
    """Draw curves of x, mean and standard deviation, each with its name at its end.

    Args:
        curves: by name, each of at least one point.
        title: of the picture.
        across: what x is.
        up: what the mean is.
        logarithmic: scale of x.

    Returns:
        uint8 (H, W, 3).

    Raises:
        InvalidArgument: for no curves, or an empty one.
    """
    if not curves or not all(curves.values()):
        raise InvalidArgument("curves", "at least one, each of at least one point")
    everything = [point for points in curves.values() for point in points]
    xs = [_place(x, logarithmic) for x, _, _ in everything]
    low, high = min(y - s for _, y, s in everything), max(y + s for _, y, s in everything)
    ticks = _ticks(low, high)
    low, high = min(low, ticks[0]), max(high, ticks[-1])
    first, last = min(xs), max(xs)

    def spot(x: float, y: float) -> tuple[float, float]:
        right = (_place(x, logarithmic) - first) / ((last - first) or 1.0)
        above = (y - low) / ((high - low) or 1.0)
        return LEFT + right * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - above * (HEIGHT - TOP - BOTTOM)

    page = Image.new("RGB", (WIDTH, HEIGHT), PAPER)
    draw = ImageDraw.Draw(page, "RGBA")
    draw.text((LEFT, 32), title, INK, font=_font(18), anchor="ls")
    for tick in ticks:
        _, y = spot(everything[0][0], tick)
        draw.line((LEFT, y, WIDTH - RIGHT, y), LINE)
        draw.text((LEFT - 10, y), f"{tick:g}", MUTED, font=_font(13), anchor="rm")
    last_mark = math.inf
    for x in reversed(_marks(sorted({x for x, _, _ in everything}))):
        place, _ = spot(x, low)
        if last_mark - place < MARK_ROOM:
            continue
        last_mark = place
        draw.text((place, HEIGHT - BOTTOM + 16), f"{x:,.0f}", MUTED, font=_font(13), anchor="mm")
    draw.text(((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 18), across, INK, font=_font(14), anchor="mm")
    draw.text((LEFT, TOP - 12), up, MUTED, font=_font(13), anchor="ls")
    for number, points in enumerate(curves.values()):
        colour = COLOURS[number % len(COLOURS)]
        band = [spot(x, y + s) for x, y, s in points] + [spot(x, y - s) for x, y, s in reversed(points)]
        if len(points) > 1:
            draw.polygon(band, fill=(*colour, 36))
            draw.line([spot(x, y) for x, y, _ in points], colour, width=3, joint="curve")
        x, y = spot(*points[-1][:2])
        draw.ellipse((x - 4, y - 4, x + 4, y + 4), colour)
    ends = {name: spot(*points[-1][:2]) for name, points in curves.items()}
    beside = _apart([y for _, y in ends.values()])
    for number, ((name, (x, y)), height) in enumerate(zip(ends.items(), beside, strict=True)):
        colour = COLOURS[number % len(COLOURS)]
        draw.line((x + 6, y, WIDTH - RIGHT + 18, height), (*colour, 120))
        draw.text(
            (WIDTH - RIGHT + 22, height), f"{name}  {curves[name][-1][1]:+.2f}", colour, font=_font(14), anchor="lm"
        )
    return np.asarray(page)


def _place(x: float, logarithmic: bool) -> float:
    return math.log10(max(x, 1.0)) if logarithmic else x


def _ticks(low: float, high: float) -> list[float]:
    """Round numbers, four to nine of them, around and between."""
    span = (high - low) or 1.0
    step = 10.0 ** math.floor(math.log10(span / 4.0))
    step *= next(factor for factor in (1, 2, 5, 10) if span / (step * factor) <= 8)
    return [round(step * i, 10) for i in range(math.floor(low / step), math.ceil(high / step) + 1)]


def _marks(xs: Sequence[float]) -> list[float]:
    """At most six of the places, the first and the last among them."""
    count = min(6, len(xs))
    return [xs[round(i * (len(xs) - 1) / max(1, count - 1))] for i in range(count)]


def _apart(heights: Sequence[float], room: float = 19.0) -> list[float]:
    """Heights of names near those of their curves, none over another."""
    order = sorted(range(len(heights)), key=heights.__getitem__)
    placed = list(heights)
    for above, below in itertools.pairwise(order):
        placed[below] = max(placed[below], placed[above] + room)
    overflow = max(0.0, placed[order[-1]] - (HEIGHT - BOTTOM))
    for one in reversed(order):
        placed[one] -= overflow
        higher = [placed[other] for other in order[: order.index(one)]]
        overflow = max(0.0, max(higher) + room - placed[one]) if higher else 0.0
    return placed
