"""Pictures of restoration: a strip of steps, a sheet of strips, and a line of text for each step."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from restoration_env.errors import InvalidArgument
from restoration_env.files import replacing

Frames = Sequence[np.ndarray]
Captions = Sequence[tuple[str, str]]
Size = tuple[int, ...]
Colour = tuple[int, int, int]

PAPER, EMPTY, LINE = (251, 250, 247), (242, 240, 234), (222, 219, 210)
INK, MUTED, GAIN, LOSS = (34, 34, 32), (112, 110, 104), (22, 120, 70), (186, 52, 42)
SHOWN_SIDE = 190  # small frames are enlarged to about this many pixels
_SIGNED = re.compile(r"(?<!\S)(\(?[+-]\d+(?:\.\d+)?(?: dB)?\)?)(?!\S)")
_PLAIN = str.maketrans("\u2212\u2013\u2014\u00d7\u2192", "---x>")  # signs that Pillow's font does not have
_font = lru_cache(ImageFont.load_default)


@dataclass(frozen=True)
class Strip:
    """One row of a contact sheet.

    Attributes:
        frames: uint8 arrays (H, W, 3), left to right; sizes may differ.
        captions: two lines of text for each frame.
        label: heading of the row; empty for none.
        reference: a last frame (usually the clean image) and its caption, drawn in a column of its own.
        steps: whether each frame was made from the one before it, which a sign between them says.
    """

    frames: Frames
    captions: Captions
    label: str = ""
    reference: tuple[np.ndarray, tuple[str, str]] | None = None
    steps: bool = True


def describe_step(step: int, name: str, psnr: float, gain: float) -> str:
    """One line of text: the tool, the PSNR before and after it in dB, and the difference ``gain``."""
    return f"step {step}  {name:<10}  {psnr - gain:.2f} -> {psnr:.2f} dB  ({gain:+z.2f})"


def filmstrip(frames: Frames, captions: Captions, *, slots: int | None = None, scale: int | None = None) -> np.ndarray:
    """Draw frames in a row, left to right, each with two lines of text under it.

    The picture's size depends on the first frame, ``slots`` and ``scale`` only, so that the strips of an
    episode make a video; larger frames are shrunk into the first one's place. Gains such as "+2.10 dB"
    are green, losses red.

    Args:
        frames: uint8 arrays (H, W, 3).
        captions: two lines of text for each frame.
        slots: number of places, those without a frame drawn empty; None for as many as there are frames.
        scale: factor by which frames are enlarged; None to show small ones about 190 pixels wide.

    Returns:
        uint8 (height, width, 3), both even.

    Raises:
        InvalidArgument: if an argument does not have that form.
    """
    _check(frames, captions)
    if slots is not None and slots < len(frames):
        raise InvalidArgument("slots", f"at least the number of frames, {len(frames)}", slots)
    return _draw([Strip(frames, captions)], [frames[0].shape], slots or len(frames), scale, "", EMPTY)


def contact_sheet(rows: Sequence[Strip], *, title: str | None = None, scale: int | None = None) -> np.ndarray:
    """Draw strips above each other with their columns aligned, references in a column at the right.

    Args:
        rows: the strips; shorter ones leave places empty.
        title: heading of the sheet.
        scale: as in `filmstrip`; 2 makes a sheet of photographs with text for high-resolution displays.

    Returns:
        uint8 (height, width, 3), both even.

    Raises:
        InvalidArgument: if there are no rows, or an argument does not have that form.
    """
    if not rows:
        raise InvalidArgument("rows", "at least one strip", "none")
    for row in rows:
        _check(row.frames, row.captions)
        if row.reference:
            _check([row.reference[0]], [row.reference[1]], "reference")
    shown = [[frame.shape for frame in (*row.frames, *(row.reference or ())[:1])] for row in rows]
    sizes = [tuple(map(max, zip(*shapes, strict=True))) for shapes in shown]
    columns = max(len(row.frames) for row in rows) + any(row.reference is not None for row in rows)
    return _draw(rows, sizes, columns, scale, title or "", PAPER)


def save_png(path: str | os.PathLike[str], image: np.ndarray) -> None:
    """Write a uint8 picture (H, W, 3) as PNG, atomically."""
    _check([image], [("", "")], "image")
    with replacing(path) as temporary:
        Image.fromarray(image).save(temporary, format="PNG", optimize=True)


def _check(frames: Frames, captions: Captions, name: str = "frames") -> None:
    if len(frames) == 0:
        raise InvalidArgument(name, "at least one frame", "none")
    for frame in frames:
        if getattr(frame, "dtype", None) != np.uint8 or frame.shape[2:] != (3,) or 0 in frame.shape:
            got = f"{frame.dtype} {frame.shape}" if isinstance(frame, np.ndarray) else type(frame).__name__
            raise InvalidArgument(name, "uint8 of shape (H, W, 3), none of them 0", got)
    pairs = [c for c in captions if not isinstance(c, str) and [isinstance(t, str) for t in c] == [True] * 2]
    if not len(pairs) == len(captions) == len(frames):
        raise InvalidArgument("captions", f"{len(frames)} pairs of strings, one for each frame", captions)


def _draw(
    rows: Sequence[Strip], sizes: list[Size], slots: int, scale: int | None, title: str, gap: Colour
) -> np.ndarray:
    """Lay out and draw; ``sizes``: height and width of each row's frames; ``gap``: colour of empty slots."""
    if scale is not None and scale < 1:
        raise InvalidArgument("scale", "at least 1", scale)
    scale = scale or max(1, round(SHOWN_SIDE / max(max(size[:2]) for size in sizes)))
    width, heights = max(size[1] for size in sizes) * scale, [scale * size[0] for size in sizes]
    em = min(max(round(width * 0.075), 13), 48)  # of the text; the other lengths follow from it
    gutter, heading, under = round(1.8 * em), round(1.9 * em), round(6.7 * em)
    column = max(width, 9 * em)  # wide enough for a tool's name under the narrowest frame
    lefts = [gutter + i * (column + gutter) for i in range(slots)]
    right, top = lefts[-1] + column, gutter + (round(3.3 * em) if title else 0)
    bottom = top + sum(heights) + len(rows) * under + heading * sum(bool(row.label) for row in rows)
    page = Image.new("RGB", ((right + gutter + 1) // 2 * 2, (bottom - gutter + 1) // 2 * 2), PAPER)
    draw = ImageDraw.Draw(page)
    _write(draw, gutter, gutter + round(1.5 * em), title, right - gutter, round(1.6 * em), INK)
    for number, (row, height) in enumerate(zip(rows, heights, strict=True)):
        if number > 0:
            draw.line((gutter, top - gutter, right - 1, top - gutter), fill=LINE, width=max(1, em // 14))
        if row.label:
            _write(draw, gutter, top + em, row.label, right - gutter, em, MUTED)
            top += heading
        for x in lefts[len(row.frames) :]:
            draw.rectangle((x, top, x + width - 1, top + height - 1), fill=gap)
        cells = list(zip(lefts, row.frames, row.captions, strict=False))
        cells += [(lefts[-1], *row.reference)] if row.reference else []
        for i, (x, frame, (name, value)) in enumerate(cells):
            page.paste(_fit(frame, width, height, scale), (x, top))
            if row.steps and 0 < i < len(row.frames):
                middle = (x - gutter / 2, top + height / 2)
                draw.text(middle, "\u203a", fill=MUTED, font=_font(round(1.7 * em)), anchor="mm")
            baseline = top + height + round(1.5 * em)
            _write(draw, x, baseline, name, column, em, INK)
            _write(draw, x, baseline + round(1.4 * em), value, column, em, MUTED)
        top += height + under
    return np.array(page)


def _fit(frame: np.ndarray, width: int, height: int, scale: int) -> Image.Image:
    """Enlarge pixels to blocks by the largest factor up to ``scale`` that fits, or shrink."""
    image = Image.fromarray(frame)
    room = min(width / image.width, height / image.height)
    factor = min(int(room), scale) if room >= 1 else room
    shape = (max(1, round(image.width * factor)), max(1, round(image.height * factor)))
    return image.resize(shape, Image.Resampling.NEAREST if room >= 1 else Image.Resampling.LANCZOS)


def _write(draw: ImageDraw.ImageDraw, x: float, y: int, text: str, room: int, em: int, ink: Colour) -> None:
    """Write one line from its left end on the baseline, gains in their colour, cut where the room ends."""
    font, text = _font(em), " ".join(text.translate(_PLAIN).split())
    text = _SIGNED.sub(r" \1", text).strip()  # the font's spaces are narrow: two before a gain
    if draw.textlength(text, font) > room:
        while text and draw.textlength(text + "\u2026", font) > room:
            text = text[:-1].rstrip()
        text += "\u2026"
    for part in _SIGNED.split(text):
        gain = _SIGNED.fullmatch(part) and re.search("[1-9]", part)
        fill = ink if not gain else GAIN if "+" in part else LOSS
        draw.text((x, y), part, fill=fill, font=font, anchor="ls")
        x += draw.textlength(part, font)
