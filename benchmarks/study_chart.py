"""The chart of a user study: part I as shares by category, part II as shares of ranks, as SFT-GAN's paper has them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from restoration_env.rendering import INK, LINE, MUTED, PAPER, Colour

OURS, THEIRS = (32, 92, 150), (214, 190, 150)
RANKS: tuple[Colour, ...] = ((32, 92, 150), (110, 155, 195), (214, 190, 150), (176, 120, 62), (120, 80, 50))
_MARGIN, _BAR, _GAP, _HEADING, _WIDTH = 36, 26, 12, 58, 560  # pixels; the last is the whole bar's length
_font = lru_cache(ImageFont.load_default)


def draw_study(result: Mapping[str, Any]) -> np.ndarray:
    """Draw what `restoration_env.benchmarks.study_analysis.analysis` returns.

    Returns:
        uint8 (H, W, 3).
    """
    panels: list[tuple[str, str, list[_Bar]]] = []
    ours = result["ours"]
    for other, categories in result["preferred"].items():
        bars = [
            _Bar(
                name,
                [(row["share"], OURS), (1 - row["share"], THEIRS)],
                f"{row['votes']} votes",
                (row["low"], row["high"]),
            )
            for name, row in categories.items()
        ]
        panels.append((f"{ours} preferred to {other}", f"blue: {ours}; sand: {other}; line: 95 % interval", bars))
    if result["ranks"]:
        bars = [
            _Bar(method, [(share, RANKS[min(i, len(RANKS) - 1)]) for i, share in enumerate(shares)])
            for method, shares in result["ranks"].items()
        ]
        panels.append(("Ranked first to last", "from the left: the share of first, second, third, ... places", bars))
    names = [bar.name for _, _, bars in panels for bar in bars] + list(result["strengths"])
    left = _MARGIN + round(max(_font(16).getlength(name) for name in names)) + _GAP
    heights = [_HEADING + len(bars) * (_BAR + _GAP) + _MARGIN for _, _, bars in panels]
    rows = len(result["strengths"])
    height = 84 + sum(heights) + (_HEADING + rows * (_BAR + _GAP) + _MARGIN if rows else 0)
    page = Image.new("RGB", (left + _WIDTH + 150, height), PAPER)
    draw = ImageDraw.Draw(page)
    draw.text((_MARGIN, 44), "User study", INK, font=_font(24), anchor="ls")
    count = sum(result["answers"].values())
    raters = "1 rater" if result["raters"] == 1 else f"{result['raters']} raters"
    draw.text((_MARGIN, 70), f"{raters}, {count} answers", MUTED, font=_font(15), anchor="ls")
    y = 84
    for (title, note, bars), tall in zip(panels, heights, strict=True):
        _heading(draw, y, title, note)
        for row, bar in enumerate(bars):
            bar.draw(draw, left, y + _HEADING + row * (_BAR + _GAP))
        y += tall
    if rows:
        _heading(draw, y, "Strength (Bradley-Terry)", "log odds of being preferred; line: 95 % interval")
        _strengths(draw, left, y + _HEADING, result["strengths"])
    return np.array(page)


def _heading(draw: ImageDraw.ImageDraw, y: int, title: str, note: str) -> None:
    draw.text((_MARGIN, y + 24), title, INK, font=_font(18), anchor="ls")
    draw.text((_MARGIN, y + 44), note, MUTED, font=_font(13), anchor="ls")


class _Bar:
    """One bar: coloured shares that sum to one, with their percentages, a note, and an interval on the first."""

    def __init__(
        self,
        name: str,
        shares: Sequence[tuple[float, Colour]],
        note: str = "",
        interval: tuple[float, float] | None = None,
    ) -> None:
        self.name, self.shares, self.note, self.interval = name, shares, note, interval

    def draw(self, draw: ImageDraw.ImageDraw, left: int, y: int) -> None:
        draw.text((left - _GAP, y + _BAR / 2), self.name, INK, font=_font(16), anchor="rm")
        start = 0.0
        for share, colour in self.shares:
            edges = [left + round(_WIDTH * value) for value in (start, start + share)]
            if edges[1] > edges[0]:
                draw.rectangle((edges[0], y, edges[1] - 1, y + _BAR - 1), fill=colour)
            if share >= 0.07:
                ink = PAPER if sum(colour) < 420 else INK
                text = f"{100 * share:.1f} %" if share >= 0.12 else f"{100 * share:.0f}"
                place = edges[0] + 8 if self.interval else sum(edges) / 2
                draw.text((place, y + _BAR / 2), text, ink, font=_font(14), anchor="lm" if self.interval else "mm")
            start += share
        if self.interval:
            low, high = (left + round(_WIDTH * value) for value in self.interval)
            draw.line((low, y + _BAR + 3, high, y + _BAR + 3), fill=MUTED, width=2)
        draw.text((left + _WIDTH + _GAP, y + _BAR / 2), self.note, MUTED, font=_font(13), anchor="lm")


def _strengths(draw: ImageDraw.ImageDraw, left: int, y: int, rows: Mapping[str, Mapping[str, float]]) -> None:
    values = [value for row in rows.values() for value in row.values()]
    low, high = min(0.0, *values), max(0.0, *values)
    span = max(high - low, 1e-6)

    def place(value: float) -> float:
        return left + 8 + (_WIDTH - 16) * (value - low) / span

    bottom = y + len(rows) * (_BAR + _GAP) - _GAP
    draw.line((place(0.0), y - 4, place(0.0), bottom), fill=LINE, width=2)
    for number, (name, row) in enumerate(rows.items()):
        middle = y + number * (_BAR + _GAP) + _BAR / 2
        draw.text((left - _GAP, middle), name, INK, font=_font(16), anchor="rm")
        if "low" in row:
            draw.line((place(row["low"]), middle, place(row["high"]), middle), fill=MUTED, width=2)
        x = place(row["strength"])
        draw.ellipse((x - 6, middle - 6, x + 6, middle + 6), fill=OURS)
        draw.text((left + _WIDTH + _GAP, middle), f"{row['strength']:+.2f}", MUTED, font=_font(14), anchor="lm")
