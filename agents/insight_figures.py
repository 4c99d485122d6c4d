"""Pictures of a policy: what it does at each step with which damage, and toolchains with the Q values behind them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from restoration_env.agents.demo import Scene
from restoration_env.agents.insight import (
    PlayRecord,
    damage_thirds,
    harm_rate,
    mean_step_gains,
    mean_tools,
    shares_by_damage,
    stop_rates,
)
from restoration_env.errors import InvalidArgument
from restoration_env.rendering import EMPTY, GAIN, INK, LINE, MUTED, PAPER, Colour, Strip, contact_sheet

CELL, ROW = 46, 27  # pixels of a cell, with the two that separate it from the next
MARGIN, BESIDE, BETWEEN, GROUP = 28, 12, 36, 10  # around, between names and cells, between panels, between kinds
TITLE, HEADING, FOOT = 84, 76, 30  # heights of the picture's title, a panel's heading and its line of counts
ACROSS = 3  # panels beside each other
TOOL_COLOUR, STOP_COLOUR, BAR = (32, 92, 150), (176, 96, 22), (186, 196, 206)
CHART = 208  # side of a chart of Q values
_UNITS = {"blur": "blur, sigma", "noise": "noise, sigma", "JPEG": "JPEG, quality"}
_font = lru_cache(ImageFont.load_default)


def draw_policy(record: PlayRecord, note: str = "") -> np.ndarray:
    """A heat map for each step: the share of every action (rows) for every third of the damage (columns).

    Shares are of the images that had not stopped before; the most frequent action of a column is framed, and the
    line under a column counts its images. The title says how often the policy stops at each step and how many
    images it makes worse.

    Args:
        record: what the policy did.
        note: said of the patches after their number, for example where they come from.

    Returns:
        uint8 (H, W, 3).
    """
    names, thirds, shares = record.names, damage_thirds(record), shares_by_damage(record)
    left = MARGIN + round(max(_font(14).getlength(name) for name in names)) + BESIDE
    panel = CELL * len(thirds) + GROUP * 2
    height = HEADING + ROW * len(names) + GROUP + FOOT + MARGIN
    across = min(ACROSS, record.steps)
    title, below = _title(record), _explanation(record, note)
    text = max(_font(19).getlength(title), _font(14).getlength(below))
    width = max(left + across * (panel + BETWEEN) - BETWEEN, MARGIN + round(text)) + MARGIN
    page = Image.new("RGB", (width, TITLE + -(-record.steps // across) * height), PAPER)
    draw = ImageDraw.Draw(page)
    draw.text((MARGIN, MARGIN + 16), title, INK, font=_font(19), anchor="ls")
    draw.text((MARGIN, MARGIN + 42), below, MUTED, font=_font(14), anchor="ls")
    for step in range(record.steps):
        x, y = left + step % across * (panel + BETWEEN), TITLE + step // across * height
        if step % across == 0:
            for row, name in enumerate(names):
                draw.text((left - BESIDE, _middle(y, row, names)), name, INK, font=_font(14), anchor="rm")
            draw.text((left - BESIDE, _foot(y, names)), "patches", MUTED, font=_font(13), anchor="rm")
        _heading(draw, record, step, (x, y))
        for column, third in enumerate(thirds):
            edge = x + CELL * column + GROUP * (column // 3)
            centre = edge + CELL / 2 - 1
            if column % 3 == 1:
                draw.text((centre, y + 40), _UNITS[third.kind], MUTED, font=_font(13), anchor="mm")
            draw.text((centre, y + 60), third.label, INK, font=_font(12), anchor="mm")
            _column(draw, shares[column, step].tolist(), names, (edge, y))
            count = str(int(record.going()[third.members, step].sum()))
            draw.text((centre, _foot(y, names)), count, MUTED, font=_font(13), anchor="mm")
    return np.array(page)


def _title(record: PlayRecord) -> str:
    rates = stop_rates(record).tolist()
    stops = ", ".join(f"{percent(rate)} at step {step}" for step, rate in enumerate(rates, 1) if rate == rate)
    return f"{record.policy}, {record.severity} damage: harms {percent(harm_rate(record))} of patches, stops {stops}"


def _explanation(record: PlayRecord, note: str) -> str:
    gain = f"{record.gain.mean().item():+z.2f} dB, {mean_tools(record):.1f} tools on average"
    images = f"{len(record)} patches{note and ' '}{note}"
    return f"{gain}, {images}. Share of each action among the patches not stopped before; the most frequent is framed."


def _heading(draw: ImageDraw.ImageDraw, record: PlayRecord, step: int, corner: tuple[int, int]) -> None:
    """What a panel is about: the step, the images that reach it, and what it gains."""
    x, y = corner
    left, gain = int(record.going()[:, step].sum()), mean_step_gains(record)[step].item()
    text = f"step {step + 1}"
    draw.text((x, y + 16), text, INK, font=_font(16), anchor="ls")
    x += round(_font(16).getlength(text)) + 10
    facts = f"{left} patches, {gain:+z.2f} dB" if left else "no patch left"
    draw.text((x, y + 16), facts, MUTED, font=_font(14), anchor="ls")


def _column(draw: ImageDraw.ImageDraw, shares: list[float], names: Sequence[str], corner: tuple[int, int]) -> None:
    """One cell for each action, the most frequent framed; empty cells where no patch was left."""
    for row, share in enumerate(shares):
        x, middle = corner[0], _middle(corner[1], row, names)
        box = (x, middle - ROW // 2 + 1, x + CELL - 3, middle + ROW // 2 - 1)
        if share != share:
            draw.rectangle(box, fill=EMPTY)
            continue
        fill = _shade(share, STOP_COLOUR if row == len(names) - 1 else TOOL_COLOUR)
        draw.rectangle(box, fill=fill, outline=INK if share == max(shares) else None, width=2)
        if share > 0:
            ink = PAPER if share > 0.5 else INK
            draw.text((x + CELL / 2 - 1, middle), percent(share), ink, font=_font(13), anchor="mm")


def _middle(top: int, row: int, names: Sequence[str]) -> int:
    """Height of a row's middle in a panel; stop, the last one, stands a little apart."""
    return top + HEADING + ROW * row + ROW // 2 + (GROUP if row == len(names) - 1 else 0)


def _foot(top: int, names: Sequence[str]) -> int:
    """Height of the line of counts in a panel."""
    return _middle(top, len(names) - 1, names) + (ROW + FOOT) // 2


def percent(share: float) -> str:
    """A share in whole percent, "<1%" for little that is not nothing."""
    return f"{share:.0%}" if share == 0 or share >= 0.005 else "<1%"


def _shade(share: float, full: Colour) -> Colour:
    """From nearly white to the full colour."""
    strength = share**0.6
    red, green, blue = (round(243 + (channel - 243) * strength) for channel in full)
    return red, green, blue


def draw_toolchains(scenes: Sequence[Scene], names: Sequence[str], title: str) -> np.ndarray:
    """A row for each scene: the damaged photograph, then Q values and result of every step, and the clean one.

    Args:
        scenes: as `restored_scenes` makes them.
        names: of the agent's actions.
        title: heading of the picture.

    Returns:
        uint8 (H, W, 3).

    Raises:
        InvalidArgument: if there are no scenes.
    """
    strips = []
    for scene in scenes:
        (_, first), *steps = scene.steps()
        frames, captions = [_enlarged(scene.restoration.frames[0])], [("damaged", f"{first:.2f} dB")]
        for step, values in enumerate(scene.restoration.q_values):
            frames.append(q_chart(values, names))
            chosen = int(values.argmax())
            captions.append((f"Q values, step {step + 1}", f"{names[chosen]}: {values[chosen]:z.2f} dB"))
            if step < len(steps):
                tool, after = steps[step]
                frames.append(_enlarged(scene.restoration.frames[step + 1]))
                captions.append((tool, f"{after:.2f} dB {after - scene.psnr[step]:+z.2f}"))
        label = f"{scene.name}: {_damage(scene)}, together {scene.gain:+z.2f} dB"
        strips.append(Strip(frames, captions, label, (_enlarged(scene.clean), ("clean", ""))))
    return contact_sheet(strips, title=title, scale=1)


def _damage(scene: Scene) -> str:
    blur, noise, quality = scene.strengths
    return f"blur {blur:.1f}, noise {noise:.0f}, " + (f"JPEG {quality:.0f}" if np.isfinite(quality) else "no JPEG")


def q_chart(values: np.ndarray, names: Sequence[str], side: int = CHART) -> np.ndarray:
    """Horizontal bars of the Q values of all actions, the highest one highlighted.

    The scale is the chart's own, up to the highest value and at least half a dB to the right, half as far to the
    left; lower bars are cut where it ends. The numbers beside the bars are in dB.

    Args:
        values: (actions,).
        names: of the actions.
        side: of the picture in pixels.

    Returns:
        uint8 (side, side, 3).

    Raises:
        InvalidArgument: if there is not one name for each value.
    """
    if len(values) != len(names) or not len(names):
        raise InvalidArgument("names", f"{len(values)} names, one for each value", len(names))
    page = Image.new("RGB", (side, side), PAPER)
    draw = ImageDraw.Draw(page)
    row = side / len(names)
    font = _font(max(6, min(12, int(row * 0.75))))
    texts = [f"{value:z.2f}" for value in values]
    left = round(max(map(font.getlength, names))) + 6
    right = side - round(max(map(font.getlength, texts))) - 6
    reach = max(0.5, float(values.max()))
    zero = left + (right - left) / 3
    for i, (name, value, text) in enumerate(zip(names, values, texts, strict=True)):
        middle, chosen = (i + 0.5) * row, i == int(values.argmax())
        ink = INK if chosen else MUTED
        end = max(left, zero + (right - zero) * float(value) / reach)
        thick = row * 0.32
        draw.rectangle((min(zero, end), middle - thick, max(zero, end), middle + thick), fill=GAIN if chosen else BAR)
        draw.text((left - 6, middle), name, ink, font=font, anchor="rm")
        draw.text((side, middle), text, ink, font=font, anchor="rm")
    draw.line((zero, 0, zero, side), fill=LINE)
    return np.array(page)


def _enlarged(frame: np.ndarray) -> np.ndarray:
    """Pixels as blocks, as large as a chart at most."""
    factor = max(1, CHART // max(frame.shape[:2]))
    return frame.repeat(factor, axis=0).repeat(factor, axis=1)
